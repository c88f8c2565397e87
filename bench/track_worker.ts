/**
 * One process of the tracker: measures its benchmarks by turns with the calibration and prints the times as JSON.
 *
 *   track_worker.ts ROOT ROUNDS NAME...
 *
 * ROOT is the URL of the tree whose benchmarks are measured; those that it does not have are left out.
 *
 * @module
 */

import { calibrate } from "./calibration.ts";
import { registered } from "./registry.ts";
import { median } from "./stats.ts";

/** Milliseconds that a benchmark runs before its times count, and for which it is repeated within a round. */
const WARM_MS = 150;
const ROUND_MS = 10;
/** Times that a benchmark and the calibration run in a round at least. */
const LEAST_TIMES = 10;
const CALIBRATIONS = 12;
/** A process takes no further round after this time, on a machine that is very busy. */
const LIMIT_MS = 6000;
const LEAST_ROUNDS = 3;

/** What a process prints. */
export type TrackTimes = {
  /** Median milliseconds of the calibration. */
  calibrationMs: number;
  /** By name: median over the rounds of what one iteration took at least, in times of the
   * calibration in the same round. */
  ratios: Record<string, number>;
};

const FILES: readonly string[] = [
  "ring_split_bench.ts",
  "ring_packed_bench.ts",
  "vsock_packet_bench.ts",
  "vsock_stream_bench.ts",
  "vsock_connections_bench.ts",
];

/** The shortest of some times in milliseconds: one that nothing has interrupted, if there was any. */
function shortest(fn: () => void, times: number): number {
  let least = Infinity;
  for (let i = 0; i < times; i++) {
    const start = performance.now();
    fn();
    least = Math.min(least, performance.now() - start);
  }
  return least;
}

async function main(): Promise<void> {
  const [root = "", rounds = "", ...names] = Deno.args;
  const benches = await registered(async () => {
    for (const file of FILES) {
      const url = new URL(`bench/${file}`, root).href;
      try {
        await import(url);
      } catch (error) {
        // An older tree may lack a file; this one must not.
        if (new URL("..", import.meta.url).href === root) throw error;
      }
    }
  });
  const chosen = benches.filter(({ name }) => names.includes(name));
  const repeats = chosen.map(({ fn }) => {
    const start = performance.now();
    while (performance.now() - start < WARM_MS) fn();
    return Math.max(LEAST_TIMES, Math.round(ROUND_MS / shortest(fn, 3)));
  });
  for (let i = 0; i < 100; i++) calibrate();
  const calibrations: number[] = [];
  const columns = chosen.map((): number[] => []);
  const end = performance.now() + LIMIT_MS;
  for (let round = 0; round < Number(rounds); round++) {
    if (round >= LEAST_ROUNDS && performance.now() > end) break;
    for (let i = 0; i < chosen.length; i++) {
      // Before and behind, so that a machine that changes its speed meanwhile counts by half.
      const before = shortest(calibrate, CALIBRATIONS);
      const ms = shortest(chosen[i]!.fn, repeats[i]!);
      const behind = shortest(calibrate, CALIBRATIONS);
      calibrations.push(before, behind);
      columns[i]!.push(ms / ((before + behind) / 2));
    }
  }
  const times: TrackTimes = {
    calibrationMs: median(calibrations),
    ratios: Object.fromEntries(
      chosen.map(({ name }, i) => [name, median(columns[i]!)]),
    ),
  };
  await Deno.stdout.write(new TextEncoder().encode(JSON.stringify(times)));
}

if (import.meta.main) await main();
