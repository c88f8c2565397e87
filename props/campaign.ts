import {
  type AnyScript,
  type NamedProperty,
  type QueueScript,
  ScriptFailure,
} from "./queue_properties.ts";
import type { QueueRun } from "./queue_steps.ts";

/** Runs that have one seed; a campaign longer than that goes on with the next. */
export const BATCH_RUNS = 500;

/** How long to look. */
export type CampaignLimits = {
  /** Runs of the property. */
  runs: number;
  /** Seconds after which no new batch is begun. */
  seconds: number;
};

/** What a campaign found. */
export type CampaignResult = {
  /** Name of the property. */
  name: string;
  /** Runs that held, without those to shrink a failure. */
  runs: number;
  /** How long it took. */
  seconds: number;
  /** Buffers that went round. */
  buffers: number;
  /** Runs in which a device was restored with buffers in flight. */
  midFlight: number;
  /** Runs in which positions came round. */
  wrapped: number;
  /** Runs in which the ring was full. */
  full: number;
  /** Runs that used an indirect table. */
  indirect: number;
  /** The shrunk script on which it failed, if it did. */
  failure: ScriptFailure | null;
  /** Seed of the batch that failed. */
  failedSeed: number;
};

/**
 * Runs a property on random scripts, in batches whose seeds follow from `seed`, until a limit is reached or it
 * fails; the script that failed is shrunk.
 *
 * @param tell Hears of the runs so far, after each batch.
 */
export function runCampaign(
  property: NamedProperty,
  seed: number,
  limits: CampaignLimits,
  tell: (runs: number) => void = () => {},
): CampaignResult {
  const result: CampaignResult = {
    name: property.name,
    runs: 0,
    seconds: 0,
    buffers: 0,
    midFlight: 0,
    wrapped: 0,
    full: 0,
    indirect: 0,
    failure: null,
    failedSeed: 0,
  };
  const started = performance.now();
  const seconds = () => (performance.now() - started) / 1000;
  let failed = false;
  const seen = (run: QueueRun | null) => {
    if (run === null) failed = true;
    // Runs that shrink a failure are no sample.
    if (run === null || failed) return;
    result.runs++;
    result.buffers += run.buffers;
    if (run.midFlight) result.midFlight++;
    if (run.wrapped) result.wrapped++;
    if (run.full) result.full++;
    if (run.indirect) result.indirect++;
  };
  for (let batch = 0; result.runs < limits.runs; batch++) {
    if (batch > 0 && seconds() >= limits.seconds) break;
    const batchSeed = (seed + batch) | 0;
    const left = limits.runs - result.runs;
    const details = property.check(seen, {
      seed: batchSeed,
      numRuns: Math.min(BATCH_RUNS, left),
    });
    if (details.failed) {
      const { errorInstance } = details;
      if (!(errorInstance instanceof ScriptFailure)) throw errorInstance;
      result.failure = errorInstance;
      result.failedSeed = batchSeed;
      break;
    }
    tell(result.runs);
  }
  result.seconds = seconds();
  return result;
}

/** A script as one word for `--replay`. */
export function encodeToken(name: string, script: AnyScript): string {
  return btoa(JSON.stringify({ name, script })).replaceAll("=", "");
}

/** What {@link encodeToken} made; undefined where it is no such word. */
export function decodeToken(
  token: string,
): { name: string; script: QueueScript } | undefined {
  try {
    const value = JSON.parse(atob(token));
    const { name, script } = value;
    return typeof name === "string" && Array.isArray(script.steps) &&
        typeof script.setup === "object"
      ? value
      : undefined;
  } catch {
    return undefined;
  }
}
