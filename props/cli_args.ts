/**
 * The command line of `deno task props`.
 *
 * @module
 */

import type { Shard } from "./campaign.ts";

/** What the command line asks for. */
export type PropsArgs = {
  /** Runs of each property, in all shards together. */
  readonly runs: number;
  /** Seconds for all properties together. */
  readonly seconds: number;
  /** Seed of the campaign; `undefined` for a fresh one. */
  readonly seed: number | undefined;
  /** Which part of the campaign. */
  readonly shard: Shard;
  /** Threads; `undefined` for one a core. */
  readonly jobs: number | undefined;
  /** The properties to run, in their own order. */
  readonly only: readonly string[];
  /** A script to take once: the word that a failure has printed, or a file. */
  readonly replay: string | undefined;
  /** Result files, or folders of them, to be merged. */
  readonly merge: readonly string[] | undefined;
  /** Where results go, a file or a folder. */
  readonly out: string | undefined;
};

/** Thrown for a command line that cannot be obeyed; the message is one line. */
export class PropsUsageError extends Error {
  /** @param message What is wrong. */
  constructor(message: string) {
    super(message);
    this.name = "PropsUsageError";
  }
}

const DEFAULT_RUNS = 500;
/** Where no number of runs ends a campaign. */
export const MAX_RUNS = 1_000_000_000;
/** Where no time ends a campaign. */
export const MAX_SECONDS = 86_400;
/** Most parts of a campaign. */
export const MAX_SHARDS = 9999;
const MAX_JOBS = 256;

/** The text of `--help`, for properties of these names. */
export function helpText(names: readonly string[]): string {
  return `Drives queues and devices by random scripts and judges them by models.

Usage: deno task props [OPTIONS]

Options:
  --runs N          Runs of each property; default: ${DEFAULT_RUNS}, without end if
                    --seconds is given
  --seconds S       Seconds for all properties together, the same share for each;
                    default: as many as it takes
  --seed X          Seed, -2147483648 to 2147483647; default: a fresh one, printed
  --only NAME       A property; all below it (queue for queue/...); or a pattern
                    with * for any characters; may be given more than once
  --jobs N          Threads; default: one a core. What is run does not depend on it
  --shard I/N       Part I, counted from 0, of a campaign in N parts; --runs and
                    --seed are those of the whole, --seconds those of the part
  --out PATH        Write results there: to a file if it ends in .json, else to a
                    folder; scripts that failed go beside them
  --replay SCRIPT   Take one script: the word that a failure has printed, or the
                    file that it has written
  --merge PATHS     Put results of shards together: files, or folders of them
  --help            Print this text

Exit code 1 if an invariant does not hold; then the shortest script that was found
is printed and written to a file, with the command line that takes it again. Exit
code 130 after Ctrl-C, with the table of what was run until then.

Properties:
  ${names.join("\n  ")}
`;
}

/**
 * Names that one `--only` stands for: the property of that name, else those below it, else those that match it as a pattern.
 */
export function selectNames(
  pattern: string,
  names: readonly string[],
): readonly string[] {
  if (names.includes(pattern)) return [pattern];
  if (!pattern.includes("*")) {
    const folder = pattern.endsWith("/") ? pattern : `${pattern}/`;
    return names.filter((name) => name.startsWith(folder));
  }
  const escaped = pattern.split("*").map((part) =>
    part.replaceAll(/[.+?^${}()|[\]\\]/g, "\\$&")
  );
  const matcher = new RegExp(`^${escaped.join(".*")}$`);
  return names.filter((name) => matcher.test(name));
}

/**
 * Reads the command line.
 *
 * @param args Its words.
 * @param names Names of the properties.
 * @returns What it asks for, or `"help"`.
 * @throws {PropsUsageError} If it cannot be obeyed.
 */
export function parsePropsArgs(
  args: readonly string[],
  names: readonly string[],
): PropsArgs | "help" {
  const words = [...args];
  let runs: number | undefined;
  let seconds: number | undefined;
  let seed: number | undefined;
  let shard: Shard | undefined;
  let jobs: number | undefined;
  const only = new Set<string>();
  let replay: string | undefined;
  let merge: string[] | undefined;
  let out: string | undefined;
  while (words.length > 0) {
    const word = words.shift()!;
    const equals = word.startsWith("--") ? word.indexOf("=") : -1;
    const name = equals < 0 ? word : word.slice(0, equals);
    if (equals >= 0) words.unshift(word.slice(equals + 1));
    const value = (): string => {
      const next = words.shift();
      if (next === undefined || next === "") {
        throw new PropsUsageError(`${name} needs a value`);
      }
      return next;
    };
    const number = (lowest: number, highest: number): number => {
      const text = value();
      const parsed = /^-?\d{1,10}$/.test(text) ? Number(text) : NaN;
      if (!(parsed >= lowest && parsed <= highest)) {
        throw new PropsUsageError(
          `${name} takes a number from ${lowest} to ${highest}, not ${text}`,
        );
      }
      return parsed;
    };
    if (name === "--help" || name === "-h") return "help";
    else if (name === "--runs") runs = number(1, MAX_RUNS);
    else if (name === "--seconds") seconds = number(1, MAX_SECONDS);
    else if (name === "--seed") seed = number(-0x8000_0000, 0x7fff_ffff);
    else if (name === "--shard") shard = parseShard(value());
    else if (name === "--jobs") jobs = number(1, MAX_JOBS);
    else if (name === "--replay") replay = value();
    else if (name === "--out") out = value();
    else if (name === "--merge") {
      merge ??= [];
      do merge.push(value()); while (
        words.length > 0 && !words[0]!.startsWith("--")
      );
    } else if (name === "--only") {
      const text = value();
      const selected = selectNames(text, names);
      if (selected.length === 0) {
        throw new PropsUsageError(`no property is called ${text}`);
      }
      for (const one of selected) only.add(one);
    } else throw new PropsUsageError(`unknown option ${name}`);
  }
  const isCampaign = runs !== undefined || seconds !== undefined ||
    seed !== undefined || shard !== undefined || jobs !== undefined ||
    only.size > 0;
  if (merge !== undefined && (isCampaign || replay !== undefined)) {
    throw new PropsUsageError("--merge goes with --out only");
  }
  if (replay !== undefined && (isCampaign || out !== undefined)) {
    throw new PropsUsageError("--replay goes with no other option");
  }
  if (shard !== undefined && shard.of > 1 && seed === undefined) {
    throw new PropsUsageError("--shard needs the --seed that all shards have");
  }
  return {
    runs: runs ?? (seconds === undefined ? DEFAULT_RUNS : MAX_RUNS),
    seconds: seconds ?? MAX_SECONDS,
    seed,
    shard: shard ?? { index: 0, of: 1 },
    jobs,
    only: names.filter((name) => only.size === 0 || only.has(name)),
    replay,
    merge,
    out,
  };
}

function parseShard(text: string): Shard {
  const [, index, of] = /^(\d{1,4})\/(\d{1,4})$/.exec(text) ?? [];
  if (index === undefined || !(Number(index) < Number(of))) {
    throw new PropsUsageError(
      `--shard takes I/N with I from 0 and below N, not ${text}`,
    );
  }
  return { index: Number(index), of: Number(of) };
}
