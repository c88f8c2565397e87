/**
 * Runs all properties in one thread, for `deno task props:coverage`, which starts it with `--coverage`.
 *
 * @module
 */

// deno-lint-ignore-file no-console

import { runCampaign } from "./campaign.ts";
import { PROPERTIES } from "./properties.ts";

/** Runs of a property, unless the time is up before. */
const RUNS = 2000;

function run(seconds: number, seed: number): number {
  let failed = 0;
  for (const { name, check, replay } of PROPERTIES) {
    const limits = { runs: RUNS, seconds: seconds / PROPERTIES.length };
    const property = { name, check, replay };
    const { runs, failure } = runCampaign(property, seed, limits);
    console.log(`${name}: ${runs} runs`);
    if (failure === null) continue;
    console.log(`${name} does not hold: ${failure.message}`);
    failed++;
  }
  return failed;
}

if (import.meta.main) {
  const [seconds, seed] = Deno.args.map(Number);
  // No sudden end, at which the counts would be lost.
  Deno.exitCode = run(seconds!, seed!) === 0 ? 0 : 1;
}
