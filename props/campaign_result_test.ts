import { assertEquals, assertMatch, assertThrows } from "@std/assert";
import { emptyTally } from "./campaign.ts";
import {
  type CampaignReport,
  decodeReport,
  encodeReport,
  mergeReports,
  reportLines,
} from "./campaign_result.ts";
import { encodeCounterexample, KeptFileError } from "./counterexample.ts";

const FINDING = {
  invariant: "bytes",
  message: "bytes: one is missing",
  lines: ["driver adds"],
  script: { setup: {}, steps: [{ do: "add" }] },
  batch: 4,
  seed: -9,
};

function reportOf(
  index: number,
  more: Partial<CampaignReport> = {},
): CampaignReport {
  return {
    seed: 5,
    shard: { index, of: 3 },
    runs: 100,
    seconds: 60,
    took: 2 + index,
    jobs: 2,
    interrupted: false,
    properties: [
      {
        ...emptyTally(),
        name: "queue/a",
        runs: 30,
        seconds: 1.5,
        buffers: 300,
        full: 15,
        findings: [{ ...FINDING, batch: 10 - index }],
      },
      {
        ...emptyTally(),
        name: "b",
        runs: 10,
        seconds: 0.5,
        buffers: 50,
        wrapped: 0,
        findings: [],
      },
    ],
    ...more,
  };
}

function named(
  ...reports: readonly CampaignReport[]
): { from: string; report: CampaignReport }[] {
  return reports.map((report, i) => ({ from: `${i}.json`, report }));
}

Deno.test("encodeReport() makes a file from which decodeReport() makes the report", () => {
  const report = reportOf(1);
  assertEquals(decodeReport(encodeReport(report)), report);
  const [property] = report.properties;
  const none = { ...report, properties: [{ ...property!, findings: [] }] };
  assertEquals(decodeReport(encodeReport(none)), none);
});

Deno.test("decodeReport() knows a counterexample", () => {
  const { script } = FINDING;
  assertEquals(decodeReport(encodeCounterexample("a", script, FINDING)), null);
});

Deno.test("decodeReport() refuses files that are none", () => {
  const good = JSON.parse(encodeReport(reportOf(0)));
  const spoiled = (change: Record<string, unknown>) =>
    JSON.stringify({ ...good, ...change });
  const property = (change: Record<string, unknown>) =>
    spoiled({ properties: [{ ...good.properties[0], ...change }] });
  const finding = (change: Record<string, unknown>) =>
    property({ findings: [{ ...FINDING, ...change }] });
  for (
    const [text, message] of [
      ["", "no JSON"],
      ["[]", "no result"],
      ["7", "no result"],
      [spoiled({ kind: "other" }), "no result"],
      [spoiled({ version: 2 }), "version is 2, not 1"],
      [spoiled({ version: undefined }), "version is undefined, not 1"],
      [spoiled({ seed: "5" }), 'seed is "5"'],
      [spoiled({ seed: 2 ** 31 }), "seed is 2147483648"],
      [spoiled({ seed: undefined }), "seed is missing"],
      [spoiled({ shard: 1 }), "no shard"],
      [spoiled({ shard: { index: 3, of: 3 } }), "index is 3"],
      [spoiled({ shard: { index: 0, of: 1e9 } }), "of is 1000000000"],
      [spoiled({ runs: 0 }), "runs is 0"],
      [spoiled({ took: -1 }), "took is -1"],
      [spoiled({ interrupted: 0 }), "interrupted"],
      [spoiled({ properties: {} }), "no properties"],
      [spoiled({ properties: [null] }), "no findings"],
      [property({ name: 1 }), "name is 1"],
      [property({ runs: 1.5 }), "runs is 1.5"],
      [property({ full: 31 }), "full is 31, no number from 0 to 30"],
      [property({ full: undefined }), "full is missing"],
      [property({ seconds: null }), "seconds is null"],
      [property({ findings: [1] }), "no object"],
      [finding({ lines: [1] }), "no text"],
      [finding({ script: {} }), "script"],
      [finding({ batch: -1 }), "batch is -1"],
      [finding({ message: null }), "message is null"],
    ] as const
  ) {
    assertThrows(() => decodeReport(text), KeptFileError, message);
  }
});

Deno.test("mergeReports() adds up what shards came to, in any order", () => {
  const parts = named(reportOf(2), reportOf(0), reportOf(1));
  const { report, missing, interrupted } = mergeReports(parts);
  assertEquals([missing, interrupted], [[], []]);
  assertEquals(report, {
    ...reportOf(0),
    shard: { index: 0, of: 1 },
    took: 4,
    jobs: 6,
    properties: [
      {
        ...emptyTally(),
        name: "queue/a",
        runs: 90,
        seconds: 4.5,
        buffers: 900,
        full: 45,
        findings: [8, 9, 10].map((batch) => ({ ...FINDING, batch })),
      },
      {
        ...emptyTally(),
        name: "b",
        runs: 30,
        seconds: 1.5,
        buffers: 150,
        wrapped: 0,
        findings: [],
      },
    ],
  });
});

Deno.test("mergeReports() says which shards are missing or were interrupted", () => {
  const parts = named(reportOf(1, { interrupted: true }));
  const { report, missing, interrupted } = mergeReports(parts);
  assertEquals(missing, [0, 2]);
  assertEquals(interrupted, [1]);
  assertEquals(report.interrupted, true);
});

Deno.test("mergeReports() refuses reports that are not of one campaign, or come twice", () => {
  const [property] = reportOf(0).properties;
  for (
    const [other, message] of [
      [reportOf(0), "0.json and 1.json are both shard 0 of 3"],
      [reportOf(1, { seed: 6 }), "their seeds differ (5; 6)"],
      [reportOf(1, { runs: 90 }), "numbers of runs differ"],
      [reportOf(1, { seconds: 61 }), "seconds differ"],
      [reportOf(1, { shard: { index: 1, of: 4 } }), "numbers of shards"],
      [
        reportOf(1, { properties: [property!] }),
        "0.json and 1.json are not of one campaign: their properties differ",
      ],
    ] as const
  ) {
    const parts = named(reportOf(0), other);
    assertThrows(() => mergeReports(parts), KeptFileError, message);
  }
  assertThrows(() => mergeReports([]), KeptFileError, "no result");
});

Deno.test("reportLines() tells shares of those runs whose property has the notion", () => {
  const none = { ...emptyTally(), name: "none", findings: [] };
  const { properties } = reportOf(0);
  const report = reportOf(0, { properties: [...properties, none] });
  const [head, a, b, idle, all, empty, sum, ...rest] = reportLines(report);
  assertMatch(head!, /^property +sequences +s +per s +buffers +mid-flight/);
  const cells = (line: string) => line.split(/ {2,}/);
  assertEquals(
    cells(a!),
    ["queue/a", "30", "1.5", "20", "300", "-", "-", "50.0 %", "-", "FAILED"],
  );
  assertEquals(
    cells(b!),
    ["b", "10", "0.5", "20", "50", "-", "0.0 %", "-", "-", "holds"],
  );
  assertEquals(
    cells(idle!),
    ["none", "0", "0.0", "-", "0", "-", "-", "-", "-", "-"],
  );
  assertEquals(
    cells(all!),
    ["all", "40", "2.0", "20", "350", "-", "0.0 %", "50.0 %", "-", "1 FAILED"],
  );
  assertEquals(empty, "");
  assertEquals(sum, "40 sequences in 2.0 s in 2 threads: 20 sequences/s");
  assertEquals(rest, []);
});
