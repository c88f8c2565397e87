/**
 * Runs all properties in one thread, for `deno task props:coverage`, which starts it with `--coverage`.
 *
 * @module
 */

// deno-lint-ignore-file no-console

import { runCampaign } from "./campaign.ts";
import { PROPERTIES } from "./properties.ts";

/** A run of these takes longer: whole devices, workers, or rings of many descriptors. */
const SLOW = /^(hostile\/|queue\/large$)/;
/** Of those a run in so many. */
const SLOW_SHARE = 10;

function run(runs: number, seed: number): number {
  let failed = 0;
  for (const { name, check, replay } of PROPERTIES) {
    // No limit of time: a busy machine reaches the lines that an idle one does.
    const limits = {
      runs: SLOW.test(name) ? Math.ceil(runs / SLOW_SHARE) : runs,
      seconds: Infinity,
    };
    const property = { name, check, replay };
    const { runs: held, seconds, failure } = runCampaign(
      property,
      seed,
      limits,
    );
    console.log(`${name}: ${held} runs, ${seconds.toFixed(1)} s`);
    if (failure === null) continue;
    console.log(`${name} does not hold: ${failure.message}`);
    console.log(JSON.stringify(failure.script));
    failed++;
  }
  return failed;
}

if (import.meta.main) {
  const [runs, seed] = Deno.args.map(Number);
  // No sudden end, at which the counts would be lost.
  Deno.exitCode = run(runs!, seed!) === 0 ? 0 : 1;
}
