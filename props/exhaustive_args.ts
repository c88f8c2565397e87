/**
 * The command line of `deno task props:exhaustive`.
 *
 * @module
 */

import { PropsUsageError } from "./cli_args.ts";
import type { WalkLimits, WalkSetup } from "./exhaustive.ts";

/** One walk that the command line asks for. */
export type Walk = {
  readonly setup: WalkSetup;
  /** Where it ends at the latest, and in how many members each step is taken. */
  readonly limits: WalkLimits;
};

/** Sizes of the walks. */
const SIZES = { split: [1, 2, 4], packed: [1, 2, 3, 4] } as const;
const NOTIFY = ["both", "kicks", "interrupts", "none"] as const;
const MORE = ["nothing", "unpop", "indirect"] as const;
/** Members of a class in which each step is taken, by size. */
const MEMBERS: readonly number[] = [1, 4, 4, 2, 1];
/** The script of every so-manieth state is run plainly, by size. */
const PLAINLY: readonly number[] = [1, 1, 1, 10, 20];
/** Up to this size there are walks with something more. */
const MORE_SIZE = 2;
const MAX_MEMBERS = 10_000;
const MAX_STATES = 50_000_000;
const MAX_SECONDS = 86_400;

/** The text of `--help`. */
export const WALK_HELP: string =
  `Walks over all states of a driver and a device of a small ring.

Usage: deno task props:exhaustive [OPTIONS]
       deno task props:exhaustive --planted NAME|all

Options:
  --format F      split or packed; default: both
  --size N        Descriptors: ${SIZES.split.join(", ")} (split), ${
    SIZES.packed.join(", ")
  } (packed); default: all
  --chains N      Most descriptors of a buffer, 1 or 2; default: both
  --event-idx B   on or off; default: both
  --start S       zero, or wrap: in each state what is in flight lies around the
                  wrap of the 16-bit indices (split) or over the end of the
                  ring (packed); default: both
  --notify N      Notifications that are interleaved freely: both, kicks,
                  interrupts, none; default: both
  --more M        What there is beyond that: nothing, unpop (a step that gives the
                  last fetched buffer back), indirect (buffers of two
                  descriptors have them in a table); default: nothing, and up to
                  size ${MORE_SIZE} each of the others in a walk of its own
  --members N     In how many states that differ by names, place in the ring and
                  dead words each step is taken; they must agree; default:
                  ${MEMBERS[1]} up to size 2, ${MEMBERS[3]} for size 3, ${
    MEMBERS[4]
  } for size 4
  --plainly N     The script of every Nth state is run from a fresh pair, and must
                  come to that state; 0: none; default: ${
    PLAINLY[1]
  } up to size 2,
                  ${PLAINLY[3]} for size 3, ${PLAINLY[4]} for size 4
  --shard I/N     Every Nth of the walks from the Ith on, counted from 0
  --max-states N  End a walk at so many states; default and most: ${MAX_STATES}
  --seconds S     End a walk after so long; default: as long as it takes
  --planted NAME  Plant a bug in a copy of the sources, and walk until it is found
  --help          Print this text

Exit code 1 if an invariant does not hold; then the shortest script is printed.
A walk that a limit has ended says so: its frontier is not emptied.
`;

/**
 * Reads the command line.
 *
 * @returns The walks, in the order in which they are taken, or `"help"`.
 * @throws {PropsUsageError} If it cannot be obeyed.
 */
export function parseWalkArgs(args: readonly string[]): Walk[] | "help" {
  const words = [...args];
  const given = new Map<string, string>();
  while (words.length > 0) {
    const word = words.shift()!;
    if (word === "--help" || word === "-h") return "help";
    const equals = word.startsWith("--") ? word.indexOf("=") : -1;
    const name = equals < 0 ? word : word.slice(0, equals);
    if (equals >= 0) words.unshift(word.slice(equals + 1));
    if (!OPTIONS.includes(name)) {
      throw new PropsUsageError(`unknown option ${name}`);
    }
    const value = words.shift();
    if (value === undefined || value === "") {
      throw new PropsUsageError(`${name} needs a value`);
    }
    given.set(name, value);
  }
  const number = (name: string, most: number, least = 1): number => {
    const text = given.get(name);
    if (text === undefined) return most;
    const parsed = /^\d{1,10}$/.test(text) ? Number(text) : NaN;
    if (!(parsed >= least && parsed <= most)) {
      throw new PropsUsageError(
        `${name} takes a number from ${least} to ${most}, not ${text}`,
      );
    }
    return parsed;
  };
  const states = number("--max-states", MAX_STATES);
  const seconds = number("--seconds", MAX_SECONDS);
  const members = given.has("--members") ? number("--members", MAX_MEMBERS) : 0;
  const plainly = given.has("--plainly")
    ? number("--plainly", MAX_STATES, 0)
    : -1;
  const pick = <T extends string | number>(
    name: string,
    from: readonly T[],
    otherwise: readonly T[] = from,
  ): readonly T[] => {
    const text = given.get(name);
    if (text === undefined) return otherwise;
    const found = from.find((choice) => String(choice) === text);
    if (found === undefined) {
      throw new PropsUsageError(
        `${name} takes ${from.join(" or ")}, not ${text}`,
      );
    }
    return [found];
  };
  const walks: Walk[] = [];
  const sizes = pick("--size", [1, 2, 3, 4]);
  for (const size of sizes) {
    for (const format of pick("--format", ["split", "packed"] as const)) {
      if (!(SIZES[format] as readonly number[]).includes(size)) continue;
      for (const chains of pick("--chains", [1, 2] as const)) {
        for (const event of pick("--event-idx", ["off", "on"])) {
          for (const start of pick("--start", ["zero", "wrap"] as const)) {
            for (const notify of pick("--notify", NOTIFY, ["both"])) {
              const mores = size <= MORE_SIZE ? MORE : [MORE[0]];
              for (const more of pick("--more", MORE, mores)) {
                const indirect = more === "indirect";
                // One descriptor holds no chain of two, and a table has two.
                if (indirect ? chains === 1 : chains > size) continue;
                const eventIdx = event === "on";
                walks.push({
                  setup: {
                    format,
                    size,
                    chains,
                    eventIdx,
                    start,
                    notify,
                    more,
                  },
                  limits: {
                    states,
                    seconds,
                    members: members === 0 ? MEMBERS[size]! : members,
                    plainly: plainly < 0 ? PLAINLY[size]! : plainly,
                  },
                });
              }
            }
          }
        }
      }
    }
  }
  if (walks.length === 0) {
    throw new PropsUsageError("no walk is left by these options");
  }
  const [part, parts] = shard(given.get("--shard") ?? "0/1");
  return walks.filter((_, i) => i % parts === part);
}

const OPTIONS: readonly string[] = [
  "--format",
  "--size",
  "--chains",
  "--event-idx",
  "--start",
  "--notify",
  "--more",
  "--members",
  "--plainly",
  "--shard",
  "--max-states",
  "--seconds",
];

function shard(text: string): [number, number] {
  const [, part, parts] = /^(\d{1,4})\/(\d{1,4})$/.exec(text) ?? [];
  if (part === undefined || !(Number(part) < Number(parts))) {
    throw new PropsUsageError(`--shard takes I/N with I below N, not ${text}`);
  }
  return [Number(part), Number(parts)];
}
