import { build, type Built, CACHE } from "../peers.ts";
import { fromFileUrl } from "../paths.ts";

/** One loop of `floor.c`. */
export type Floor = {
  /** The row of `bench:host` whose system calls it makes. */
  name: string;
  args: readonly string[];
  /** MiB that are moved. */
  mib: number;
};

/** The loops, each for a case of `bench:host`. */
export const FLOORS: readonly Floor[] = [
  {
    name: "guest to host, 4 KiB",
    args: ["send", "1", "64", "100"],
    mib: 256,
  },
  {
    name: "guest to host, 4 KiB, 1000 connections",
    args: ["send", "1000", "1", "100"],
    mib: 128,
  },
  { name: "host to guest, 64 B", args: ["receive", "64"], mib: 16 },
  { name: "host to guest, 4 KiB", args: ["receive", "4096"], mib: 256 },
];

/** Builds the loops; needs gcc. */
export async function buildFloor(): Promise<Built> {
  await Deno.mkdir(CACHE, { recursive: true });
  const source = fromFileUrl(new URL("./floor.c", import.meta.url));
  const path = `${CACHE}host_floor`;
  return await build("gcc", ["-O2", "-o", path, source], path);
}

/**
 * What the system's calls alone cost: loops in C that send or receive on Unix sockets as a device has to, and do
 * nothing else. For each of {@link FLOORS}, seconds of processor time a GiB, by round.
 */
export async function measureFloors(
  program: string,
  rounds: number,
): Promise<number[][]> {
  const columns = FLOORS.map((): number[] => []);
  for (let round = 0; round < rounds; round++) {
    for (const [i, { args, mib }] of FLOORS.entries()) {
      columns[i]!.push(await secondsAGiB(program, [...args, String(mib)]));
    }
  }
  return columns;
}

async function secondsAGiB(program: string, args: string[]): Promise<number> {
  const output = await new Deno.Command(program, {
    args,
    stdin: "null",
    stderr: "inherit",
  }).output();
  const seconds = Number(new TextDecoder().decode(output.stdout));
  if (!output.success || !(seconds > 0)) {
    throw new Error(`${program} ${args.join(" ")} has failed`);
  }
  return seconds;
}
