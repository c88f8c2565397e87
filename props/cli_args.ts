/**
 * The command line of `deno task props`.
 *
 * @module
 */

/** What the command line asks for. */
export type PropsArgs = {
  /** Runs of each property. */
  readonly runs: number;
  /** Seconds for all properties together. */
  readonly seconds: number;
  /** Seed of the first batch of each property; `undefined` for a fresh one. */
  readonly seed: number | undefined;
  /** The one property to run; `undefined` for all. */
  readonly only: string | undefined;
  /** A script to take once, as a failure has printed it. */
  readonly replay: string | undefined;
};

/** Thrown for a command line that cannot be obeyed; the message is one line. */
export class PropsUsageError extends Error {
  /** @param message What is wrong. */
  constructor(message: string) {
    super(message);
    this.name = "PropsUsageError";
  }
}

const DEFAULT_RUNS = 2000;
const MAX_RUNS = 1_000_000_000;
const MAX_SECONDS = 86_400;

/** The text of `--help`, for properties of these names. */
export function helpText(names: readonly string[]): string {
  return `Drives queues and devices by random scripts and judges them by models.

Usage: deno task props [OPTIONS]

Options:
  --runs N       Runs of each property; default: ${DEFAULT_RUNS}, without end if
                 --seconds is given
  --seconds S    Seconds for all properties together; default: as many as it takes
  --seed X       Seed, -2147483648 to 2147483647; default: a fresh one, printed
  --only NAME    One property: ${names.join(", ")}
  --replay WORD  Take one script, as a failure has printed it
  --help         Print this text

Exit code 1 if an invariant does not hold; then the shortest script that was found
is printed, with the command line that takes it again.
`;
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
  let only: string | undefined;
  let replay: string | undefined;
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
    else if (name === "--replay") replay = value();
    else if (name === "--only") {
      only = value();
      if (!names.includes(only)) {
        throw new PropsUsageError(
          `--only takes ${names.join(" or ")}, not ${only}`,
        );
      }
    } else throw new PropsUsageError(`unknown option ${name}`);
  }
  return {
    runs: runs ?? (seconds === undefined ? DEFAULT_RUNS : MAX_RUNS),
    seconds: seconds ?? MAX_SECONDS,
    seed,
    only,
    replay,
  };
}
