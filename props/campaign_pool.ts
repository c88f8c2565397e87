/**
 * Campaigns of many properties in many threads.
 *
 * The threads take batches of the properties in turn, so that each property gets the same share of the time. Which batches are run
 * and what is found in them does not depend on the number of threads, unless the time ends the campaign: of each property, what counts is
 * all batches up to the first one that failed.
 *
 * @module
 */

import {
  addTally,
  batchSeed,
  emptyTally,
  type Finding,
  type Shard,
  shardBatches,
  type Tally,
} from "./campaign.ts";
import type { AnyScript } from "./queue_properties.ts";

/** What a thread is told. */
export type BatchOrder = {
  /** Name of the property. */
  readonly property: string;
  readonly seed: number;
  readonly runs: number;
};

/** What a thread tells: how far it is, a few times a second, and then what became of the batch. */
export type BatchNews =
  | { readonly kind: "ready" }
  | { readonly kind: "alive"; readonly runs: number; readonly holds: boolean }
  | {
    readonly kind: "done";
    readonly tally: Tally;
    readonly failure: BatchFailure | null;
  };

/** What does not hold; without a script where the property itself is broken. */
export type BatchFailure = {
  readonly invariant: string;
  readonly message: string;
  readonly lines: readonly string[];
  readonly script: AnyScript | null;
};

/** What a campaign is. */
export type PoolOptions = {
  /** Names of the properties. */
  readonly properties: readonly string[];
  readonly seed: number;
  readonly shard: Shard;
  /** Runs of each property, in all shards together. */
  readonly runs: number;
  /** Seconds after which no new batch is begun. */
  readonly seconds: number;
  /** Threads. */
  readonly jobs: number;
  /** Ends it at once. */
  readonly signal: AbortSignal;
  /** Hears of each property that does not hold. */
  readonly found: (name: string, finding: Finding) => void;
  /** Seconds that one run may take; beyond, it comes to no end. */
  readonly stuckSeconds?: number;
};

/** What became of a property in a campaign, or in a shard of it. */
export type PropertyResult = Tally & {
  name: string;
  /** What does not hold; at most one of a shard. */
  findings: Finding[];
};

/** How far a campaign is. */
export type PoolProgress = {
  seconds: number;
  /** Runs so far, with those of batches that are under way. */
  runs: number;
  /** Share of the campaign that is done, 0 to 1. */
  share: number;
  /** What the threads are busy with; with `shrinking` in place of a name's end. */
  current: string[];
  /** Properties that do not hold. */
  failed: number;
};

const STUCK_SECONDS = 120;

type Done = { tally: Tally; finding: Finding | null };

/** A property whose batches are given out. */
class Lane {
  readonly result: PropertyResult;
  /** Thread seconds of all batches that have ended. */
  spent = 0;
  /** Batches that are under way. */
  busy = 0;
  given = 0;
  ended = 0;
  readonly #batches: Iterator<{ batch: number; runs: number }>;
  #next: { batch: number; runs: number } | undefined;
  /** Ends of batches, by number in the order in which they were given, of which one before has not ended. */
  readonly #done: Map<number, Done> = new Map();
  #counted = 0;

  constructor(name: string, shard: Shard, runs: number) {
    this.result = { name, ...emptyTally(), findings: [] };
    this.#batches = shardBatches(shard, runs);
    this.#advance();
  }

  get open(): boolean {
    return this.#next !== undefined;
  }

  /** Time spent, with a guess at that of what is under way. */
  get cost(): number {
    const mean = this.ended === 0 ? 0 : this.spent / this.ended;
    return this.spent + this.busy * mean;
  }

  take(): { batch: number; runs: number; order: number } {
    const next = this.#next!;
    this.busy++;
    this.#advance();
    return { ...next, order: this.given++ };
  }

  /** Notes the end of a batch; returns what counts now and does not hold. */
  end(order: number, done: Done): Finding | null {
    this.busy--;
    this.ended++;
    this.spent += done.tally.seconds;
    // What comes behind a failure does not count, what is before it does.
    if (done.finding !== null) this.#next = undefined;
    this.#done.set(order, done);
    for (;;) {
      const due = this.#done.get(this.#counted);
      if (due === undefined || this.result.findings.length > 0) return null;
      this.#done.delete(this.#counted++);
      addTally(this.result, due.tally);
      if (due.finding === null) continue;
      this.#next = undefined;
      this.result.findings.push(due.finding);
      return due.finding;
    }
  }

  #advance(): void {
    const { done, value } = this.#batches.next();
    this.#next = done ? undefined : value;
  }
}

type Job = {
  lane: Lane;
  order: number;
  batch: number;
  seed: number;
  runs: number;
  holds: boolean;
};

class Thread {
  readonly worker: Worker = new Worker(
    new URL("./campaign_worker.ts", import.meta.url),
    { type: "module" },
  );
  job: Job | null = null;
  heard: number = performance.now();
}

/** A campaign under way. */
export class CampaignPool {
  /** Settles when it has ended, or was aborted; rejects when a thread cannot work at all. */
  readonly done: Promise<void>;
  readonly #options: PoolOptions;
  readonly #lanes: readonly Lane[];
  readonly #threads: Set<Thread> = new Set();
  /** When it began, or its first thread was ready. */
  #started: number = performance.now();
  #anyReady = false;
  readonly #total: number;
  readonly #watch: ReturnType<typeof setInterval>;
  readonly #resolve: () => void;
  readonly #reject: (error: unknown) => void;
  #over = false;

  /** Begins. @param options What it is. */
  constructor(options: PoolOptions) {
    this.#options = options;
    const { properties, shard, runs, jobs, signal } = options;
    this.#lanes = properties.map((name) => new Lane(name, shard, runs));
    const batches = Math.ceil(runs / shard.of);
    this.#total = batches * properties.length;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.done = promise;
    this.#resolve = resolve;
    this.#reject = reject;
    this.#watch = setInterval(() => this.#findStuck(), 1000);
    signal.addEventListener("abort", this.#end);
    if (signal.aborted || !this.#lanes.some(({ open }) => open)) this.#end();
    else for (let i = 0; i < jobs; i++) this.#startThread();
  }

  /** What has come of it, in the order of the properties. */
  get results(): PropertyResult[] {
    return this.#lanes.map(({ result }) => result);
  }

  /** How far it is. */
  get progress(): PoolProgress {
    const seconds = (performance.now() - this.#started) / 1000;
    let runs = 0;
    let failed = 0;
    for (const { result } of this.#lanes) {
      runs += result.runs;
      failed += result.findings.length;
    }
    const current: string[] = [];
    for (const { job } of this.#threads) {
      if (job === null) continue;
      runs += job.runs;
      const { name } = job.lane.result;
      current.push(job.holds ? name : `${name} (shrinking)`);
    }
    const share = Math.min(
      1,
      Math.max(runs / this.#total, seconds / this.#options.seconds),
    );
    return { seconds, runs, share, current, failed };
  }

  #startThread(): void {
    const thread = new Thread();
    this.#threads.add(thread);
    const { worker } = thread;
    worker.onmessage = ({ data }: MessageEvent<BatchNews>) =>
      this.#hear(thread, data);
    worker.onerror = (event) => {
      event.preventDefault();
      this.#stop();
      this.#reject(new Error(`Cannot run a thread: ${event.message}`));
    };
  }

  #hear(thread: Thread, news: BatchNews): void {
    if (this.#over || !this.#threads.has(thread)) return;
    thread.heard = performance.now();
    const { job } = thread;
    if (news.kind === "ready") {
      // What a busy machine takes to start a thread is none of the campaign's time.
      if (!this.#anyReady) this.#started = thread.heard;
      this.#anyReady = true;
      this.#give(thread);
    } else if (news.kind === "alive") {
      job!.runs = news.runs;
      job!.holds = news.holds;
    } else {
      const { batch, seed } = job!;
      const { failure, tally } = news;
      const finding = failure === null ? null : { ...failure, batch, seed };
      this.#finish(thread, { tally, finding });
    }
  }

  #finish(thread: Thread, done: Done): void {
    const { lane, order } = thread.job!;
    thread.job = null;
    const finding = lane.end(order, done);
    if (finding !== null) this.#options.found(lane.result.name, finding);
    this.#give(thread);
  }

  /** Gives a thread the next batch of the property that had the least time; ends the campaign after the last. */
  #give(thread: Thread): void {
    const { seconds, seed } = this.#options;
    const passed = (performance.now() - this.#started) / 1000;
    let chosen: Lane | undefined;
    if (passed < seconds) {
      for (const lane of this.#lanes) {
        if (!lane.open) continue;
        if (
          chosen === undefined || lane.cost < chosen.cost ||
          (lane.cost === chosen.cost && lane.given < chosen.given)
        ) chosen = lane;
      }
    }
    if (chosen === undefined) {
      this.#threads.delete(thread);
      thread.worker.terminate();
      const busy = [...this.#threads].some(({ job }) => job !== null);
      if (!busy) this.#end();
      return;
    }
    const { batch, runs, order } = chosen.take();
    const own = batchSeed(seed, batch);
    thread.job = {
      lane: chosen,
      order,
      batch,
      seed: own,
      runs: 0,
      holds: true,
    };
    const told: BatchOrder = { property: chosen.result.name, seed: own, runs };
    thread.worker.postMessage(told);
  }

  /** Takes the batch from a thread whose run comes to no end. */
  #findStuck(): void {
    const now = performance.now();
    const limit = this.#options.stuckSeconds ?? STUCK_SECONDS;
    for (const thread of [...this.#threads]) {
      const { job } = thread;
      if (job === null || now - thread.heard < limit * 1000) continue;
      thread.worker.terminate();
      this.#threads.delete(thread);
      const { batch, seed } = job;
      const finding: Finding = {
        invariant: "comes to an end",
        message: `comes to an end: a run has taken ${limit} seconds`,
        lines: [],
        script: null,
        batch,
        seed,
      };
      const tally = { ...emptyTally(), seconds: limit };
      const found = job.lane.end(job.order, { tally, finding });
      if (found !== null) this.#options.found(job.lane.result.name, found);
      this.#startThread();
    }
  }

  #stop(): void {
    this.#over = true;
    clearInterval(this.#watch);
    this.#options.signal.removeEventListener("abort", this.#end);
    for (const { worker } of this.#threads) worker.terminate();
    this.#threads.clear();
  }

  readonly #end = (): void => {
    this.#stop();
    this.#resolve();
  };
}
