/**
 * Campaigns: random scripts of a property in batches, whose seeds follow from one seed.
 *
 * Batch 0 has the seed of the campaign, so that a batch that failed can be taken again as a campaign of its own. A shard I of N takes
 * the batches I, I + N, I + 2N and so on: what the shards run is disjoint, and together it is what one campaign would have run.
 *
 * @module
 */

import {
  type AnyScript,
  type NamedProperty,
  ScriptFailure,
} from "./queue_properties.ts";
import type { QueueRun } from "./queue_steps.ts";

/** Runs that have one seed; a campaign longer than that goes on with the next. */
export const BATCH_RUNS = 20;

/** How long to look. */
export type CampaignLimits = {
  /** Runs of the property. */
  runs: number;
  /** Seconds after which no new batch is begun. */
  seconds: number;
};

/** What runs came to; shares of runs are null where the property has no such notion. */
export type Tally = {
  /** Runs that held, without those to shrink a failure. */
  runs: number;
  /** How long they took, in one thread. */
  seconds: number;
  /** Buffers that went round, or bytes. */
  buffers: number;
  /** Runs in which a device was restored with buffers in flight. */
  midFlight: number | null;
  /** Runs in which positions came round. */
  wrapped: number | null;
  /** Runs in which the ring was full. */
  full: number | null;
  /** Runs that used an indirect table. */
  indirect: number | null;
};

/** What statistics tell in shares of runs. */
export const NOTIONS = ["midFlight", "wrapped", "full", "indirect"] as const;

/** What a campaign found. */
export type CampaignResult = Tally & {
  /** Name of the property. */
  name: string;
  /** The shrunk script on which it failed, if it did. */
  failure: ScriptFailure | null;
  /** Seed of the batch that failed. */
  failedSeed: number;
};

/** What does not hold, as plain data. */
export type Finding = {
  /** Name of the invariant. */
  invariant: string;
  /** What was seen. */
  message: string;
  /** The shrunk script, a line a step, and those in which it came to rest. */
  lines: readonly string[];
  /** The script; null where there is none, since a run came to no end or the property itself is broken. */
  script: AnyScript | null;
  /** Which batch of the campaign failed. */
  batch: number;
  /** Seed of that batch. */
  seed: number;
};

/** Part `index`, from 0, of a campaign in `of` parts. */
export type Shard = { readonly index: number; readonly of: number };

/** No runs. */
export function emptyTally(): Tally {
  return {
    runs: 0,
    seconds: 0,
    buffers: 0,
    midFlight: null,
    wrapped: null,
    full: null,
    indirect: null,
  };
}

/** Adds what other runs came to. */
export function addTally(into: Tally, more: Readonly<Tally>): void {
  into.runs += more.runs;
  into.seconds += more.seconds;
  into.buffers += more.buffers;
  for (const notion of NOTIONS) {
    const count = more[notion];
    if (count !== null) into[notion] = (into[notion] ?? 0) + count;
  }
}

function addRun(into: Tally, run: QueueRun): void {
  into.runs++;
  into.buffers += run.buffers;
  for (const notion of NOTIONS) {
    const did = run[notion];
    if (did !== null) into[notion] = (into[notion] ?? 0) + (did ? 1 : 0);
  }
}

/**
 * Seed of a batch: `x -> a x + c` modulo 2^32, as often as there are batches before it. All of them differ, and campaigns whose seeds
 * are neighbours have nothing in common.
 */
export function batchSeed(seed: number, batch: number): number {
  let a = 1_664_525;
  let c = 1_013_904_223;
  let x = seed | 0;
  for (let n = batch; n > 0; n = Math.floor(n / 2)) {
    if (n % 2 === 1) x = (Math.imul(a, x) + c) | 0;
    c = (Math.imul(a, c) + c) | 0;
    a = Math.imul(a, a);
  }
  return x;
}

/** A hash of 32 bits (FNV-1a), signed. */
export function hashOf(text: string): number {
  let hash = 0x811c_9dc5;
  for (let i = 0; i < text.length; i++) {
    hash = Math.imul(hash ^ text.charCodeAt(i), 0x0100_0193);
  }
  return hash;
}

/** The batches of a shard, of a campaign of `runs` runs, and how many runs each has. */
export function* shardBatches(
  { index, of }: Shard,
  runs: number,
): Generator<{ batch: number; runs: number }> {
  for (let batch = index; batch * BATCH_RUNS < runs; batch += of) {
    yield { batch, runs: Math.min(BATCH_RUNS, runs - batch * BATCH_RUNS) };
  }
}

/**
 * Runs one batch. Properties that make the same kind of scripts make different ones from the same seed.
 *
 * @param tell Hears of every run, with false from the first one that failed: what follows shrinks it.
 * @returns What the runs came to, and the shrunk script on which one failed.
 * @throws what the property threw, if that is no {@link ScriptFailure}.
 */
export function runBatch(
  property: NamedProperty,
  seed: number,
  runs: number,
  tell: (holds: boolean) => void = () => {},
): { tally: Tally; failure: ScriptFailure | null } {
  const tally = emptyTally();
  const started = performance.now();
  let failed = false;
  const seen = (run: QueueRun | null) => {
    if (run === null) failed = true;
    // Runs that shrink a failure are no sample.
    if (run !== null && !failed) addRun(tally, run);
    tell(!failed);
  };
  const details = property.check(seen, {
    seed: seed ^ hashOf(property.name),
    numRuns: runs,
  });
  tally.seconds = (performance.now() - started) / 1000;
  if (!details.failed) return { tally, failure: null };
  const { errorInstance } = details;
  if (!(errorInstance instanceof ScriptFailure)) {
    throw errorInstance ?? new Error(`${property.name} makes no scripts`);
  }
  return { tally, failure: errorInstance };
}

/**
 * Runs a property on random scripts in this thread, batch by batch, until a limit is reached or it fails; the script that failed is
 * shrunk.
 *
 * @param tell Hears of the runs so far, after each batch.
 */
export function runCampaign(
  property: NamedProperty,
  seed: number,
  limits: CampaignLimits,
  tell: (runs: number) => void = () => {},
): CampaignResult {
  const sum = emptyTally();
  let failure: ScriptFailure | null = null;
  let failedSeed = 0;
  const started = performance.now();
  const seconds = () => (performance.now() - started) / 1000;
  for (const part of shardBatches({ index: 0, of: 1 }, limits.runs)) {
    if (part.batch > 0 && seconds() >= limits.seconds) break;
    const own = batchSeed(seed, part.batch);
    const result = runBatch(property, own, part.runs);
    addTally(sum, result.tally);
    failure = result.failure;
    if (failure !== null) {
      failedSeed = own;
      break;
    }
    tell(sum.runs);
  }
  return {
    ...sum,
    seconds: seconds(),
    name: property.name,
    failure,
    failedSeed,
  };
}
