/**
 * A small driver of a split virtqueue with mistakes that can be switched on, and the oracle that names them.
 *
 * ```sh
 * deno run examples/oracle/driver.ts             # each mistake in turn, and the driver without one
 * deno run examples/oracle/driver.ts no-next     # one mistake, with the steps that show it
 * ```
 *
 * Needs no permissions. To judge a driver of your own, write a class like {@link ToyDriver} around it and
 * give it to `checkDriver()`.
 *
 * @module
 */

import { checkDriver, type Finding } from "../../props/oracle/mod.ts";
import { runExample } from "./_run.ts";
import { type Bug, BUGS, ToyDriver } from "./toy_driver.ts";

/** Judges the driver; null where nothing is wrong with it. */
export function judge(bug: Bug | null, seed: number): Finding | null {
  return checkDriver(
    (memory, config) => new ToyDriver(memory, config, bug),
    { format: "split", sizes: [1, 2, 4, 8], eventIdx: true, seed },
  );
}

if (import.meta.main) {
  Deno.exit(runExample("driver", BUGS, judge, Deno.args));
}
