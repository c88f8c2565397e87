import { assertEquals, assertThrows } from "@std/assert";
import {
  addTally,
  BATCH_RUNS,
  batchSeed,
  emptyTally,
  type Finding,
  runBatch,
  runCampaign,
  shardBatches,
} from "./campaign.ts";
import { CampaignPool, type PoolOptions } from "./campaign_pool.ts";
import { PROPERTIES } from "./properties.ts";
import type { NamedProperty } from "./queue_properties.ts";

Deno.test("batchSeed() gives the campaign's seed first, and no seed twice", () => {
  for (const seed of [0, 1, -5, 0x7fff_ffff, -0x8000_0000]) {
    assertEquals(batchSeed(seed, 0), seed);
    const seeds = new Set<number>();
    let next = seed;
    for (let batch = 0; batch < 10_000; batch++) {
      // One batch at a time comes to the same as many at once.
      assertEquals(batchSeed(seed, batch), next);
      next = batchSeed(next, 1);
      seeds.add(next);
    }
    assertEquals(seeds.size, 10_000);
  }
  const far = batchSeed(7, 2 ** 31 + 5);
  assertEquals(far, batchSeed(batchSeed(batchSeed(7, 2 ** 31), 3), 2));
});

Deno.test("Campaigns whose seeds are neighbours have no batches in common", () => {
  const seeds = new Set<number>();
  for (let seed = 0; seed < 20; seed++) {
    for (let batch = 0; batch < 1000; batch++) {
      seeds.add(batchSeed(seed, batch));
    }
  }
  assertEquals(seeds.size, 20_000);
});

Deno.test("shardBatches() of all shards are the batches of the whole campaign, each once", () => {
  for (const parties of [1, 2, 3, 7, 50]) {
    for (const runs of [1, BATCH_RUNS, 10 * BATCH_RUNS - 3, 601]) {
      const whole = [...shardBatches({ index: 0, of: 1 }, runs)];
      assertEquals(whole.reduce((sum, part) => sum + part.runs, 0), runs);
      const parts: typeof whole = [];
      for (let index = 0; index < parties; index++) {
        parts.push(...shardBatches({ index, of: parties }, runs));
      }
      parts.sort((a, b) => a.batch - b.batch);
      assertEquals(parts, whole);
    }
  }
});

Deno.test("addTally() adds shares only where a property has the notion", () => {
  const sum = emptyTally();
  addTally(sum, { ...emptyTally(), runs: 3, buffers: 5, full: 2 });
  addTally(sum, { ...emptyTally(), runs: 4, seconds: 1, full: 1, wrapped: 0 });
  assertEquals(sum, {
    runs: 7,
    seconds: 1,
    buffers: 5,
    midFlight: null,
    wrapped: 0,
    full: 3,
    indirect: null,
  });
});

Deno.test("runBatch() makes other scripts for each property", () => {
  const seeds: number[] = [];
  const property = (name: string): NamedProperty => ({
    name,
    check: (_, { seed }) => {
      seeds.push(seed);
      return { failed: false, errorInstance: null };
    },
    replay: () => {
      throw new Error("not asked for");
    },
  });
  for (const name of ["a", "b", "a"]) runBatch(property(name), 5, 1);
  const [a, b, again] = seeds;
  assertEquals(a, again);
  assertEquals(a === b, false);
});

Deno.test("runBatch() passes on what is wrong with a property itself", () => {
  const broken: NamedProperty = {
    name: "broken",
    check: () => ({ failed: true, errorInstance: new TypeError("no such") }),
    replay: () => {
      throw new TypeError("no such");
    },
  };
  assertThrows(() => runBatch(broken, 1, 1), TypeError, "no such");
  const idle = {
    ...broken,
    check: () => ({ failed: true, errorInstance: null }),
  };
  assertThrows(() => runBatch(idle, 1, 1), Error, "broken makes no scripts");
});

/** The fastest properties. */
const NAMES = ["queue/hostile", "facility"];
const RUNS = 70;

async function pool(options: Partial<PoolOptions>): Promise<CampaignPool> {
  const pool = new CampaignPool({
    properties: NAMES,
    seed: 11,
    shard: { index: 0, of: 1 },
    runs: RUNS,
    seconds: 600,
    jobs: 2,
    signal: new AbortController().signal,
    found: () => {},
    ...options,
  });
  await pool.done;
  return pool;
}

Deno.test("CampaignPool runs what one thread would, whatever the number of threads", async () => {
  const expected = NAMES.map((name) => {
    const property = PROPERTIES.find((one) => one.name === name)!;
    const { failure, failedSeed: _, ...tally } = runCampaign(property, 11, {
      runs: RUNS,
      seconds: 600,
    });
    assertEquals(failure, null);
    return { ...tally, seconds: 0, findings: [] as Finding[] };
  });
  for (const jobs of [1, 3]) {
    const { results } = await pool({ jobs });
    const found = results.map((one) => ({ ...one, seconds: 0 }));
    assertEquals(found, expected);
  }
});

Deno.test("CampaignPool begins no batch when its time is over", async () => {
  const { results, progress } = await pool({ runs: 1e9, seconds: 1 });
  for (const { runs } of results) assertEquals(runs % BATCH_RUNS, 0);
  assertEquals(results.some(({ runs }) => runs > 0), true);
  assertEquals(progress.share, 1);
});

Deno.test("CampaignPool gives each property the same share of the time", async () => {
  const abort = new AbortController();
  const running = new CampaignPool({
    properties: NAMES,
    seed: 11,
    shard: { index: 0, of: 1 },
    runs: 1e9,
    seconds: 600,
    jobs: 2,
    signal: abort.signal,
    found: () => {},
  });
  const isFair = () => {
    const [one, other] = running.results;
    const share = one!.seconds / (one!.seconds + other!.seconds);
    const enough = Math.min(one!.runs, other!.runs) >= 10 * BATCH_RUNS;
    return enough && share > 0.4 && share < 0.6;
  };
  const deadline = performance.now() + 30_000;
  while (!isFair() && performance.now() < deadline) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  const fair = isFair();
  abort.abort();
  await running.done;
  assertEquals(fair, true);
});

Deno.test("CampaignPool ends at once when it is aborted, with what was run", async () => {
  const abort = new AbortController();
  const running = new CampaignPool({
    properties: NAMES,
    seed: 11,
    shard: { index: 0, of: 1 },
    runs: 1e9,
    seconds: 600,
    jobs: 1,
    signal: abort.signal,
    found: () => {},
  });
  while (running.results.some(({ runs }) => runs === 0)) {
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  assertEquals(running.progress.failed, 0);
  abort.abort();
  await running.done;
  for (const { runs } of running.results) assertEquals(runs % BATCH_RUNS, 0);
});

Deno.test("CampaignPool takes a run that comes to no end for a failure", async () => {
  const names: string[] = [];
  const { results } = await pool({
    // As long as that the threads' very first sign of life is too late.
    stuckSeconds: 0,
    properties: ["queue/large"],
    runs: 1e9,
    jobs: 1,
    found: (name) => names.push(name),
  });
  assertEquals(names, ["queue/large"]);
  const [finding] = results[0]!.findings;
  assertEquals(finding!.invariant, "comes to an end");
  assertEquals(finding!.script, null);
});

Deno.test("CampaignPool tells of a property that its threads do not know", async () => {
  const { results } = await pool({ properties: ["nothing"], runs: 1 });
  assertEquals(results[0]!.findings.length, 1);
  assertEquals(results[0]!.runs, 0);
});
