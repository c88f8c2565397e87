/**
 * A small device side of a split virtqueue with mistakes that can be switched on, and the oracle that names them.
 *
 * ```sh
 * deno run examples/oracle/device.ts              # each mistake in turn, and the device without one
 * deno run examples/oracle/device.ts no-wrap      # one mistake, with the steps that show it
 * ```
 *
 * Needs no permissions. To judge a device of your own, write a class like {@link ToyDevice} around it and
 * give it to `checkDevice()`.
 *
 * @module
 */

import { checkDevice, type Finding } from "../../props/oracle/mod.ts";
import { runExample } from "./_run.ts";
import { type Bug, BUGS, ToyDevice } from "./toy_device.ts";

/** Judges the device; null where nothing is wrong with it. */
export function judge(bug: Bug | null, seed: number): Finding | null {
  return checkDevice(
    (memory, config) => new ToyDevice(memory, config, bug),
    { format: "split", sizes: [1, 2, 4, 8], eventIdx: true, seed },
  );
}

if (import.meta.main) {
  Deno.exit(runExample("device", BUGS, judge, Deno.args));
}
