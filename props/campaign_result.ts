/**
 * What a campaign came to: as a file, put together from shards, and as a table.
 *
 * @module
 */

import {
  addTally,
  emptyTally,
  type Finding,
  NOTIONS,
  type Shard,
  type Tally,
} from "./campaign.ts";
import type { PropertyResult } from "./campaign_pool.ts";
import { MAX_RUNS, MAX_SECONDS, MAX_SHARDS } from "./cli_args.ts";
import {
  COUNTEREXAMPLE_KIND,
  isObject,
  isScript,
  KeptFileError,
  parseJson,
} from "./counterexample.ts";

/** What a campaign, or a shard of it, came to. */
export type CampaignReport = {
  readonly seed: number;
  /** Which part of the campaign. */
  readonly shard: Shard;
  /** Runs of each property in all shards together; the greatest there may be where time ends it. */
  readonly runs: number;
  /** Seconds for all properties, of this shard. */
  readonly seconds: number;
  /** How long it took. */
  readonly took: number;
  /** Threads. */
  readonly jobs: number;
  /** Whether it was ended by hand. */
  readonly interrupted: boolean;
  readonly properties: readonly PropertyResult[];
};

const KIND = "ringside-campaign";
const VERSION = 1;

/** Text of a result file, one property a line. */
export function encodeReport(report: CampaignReport): string {
  const { properties, ...rest } = report;
  const head = JSON.stringify({ kind: KIND, version: VERSION, ...rest });
  const lines = properties.map((one) => JSON.stringify(one));
  return `${head.slice(0, -1)},"properties":[\n${lines.join(",\n")}\n]}\n`;
}

/**
 * Reads what {@link encodeReport} wrote; null for a counterexample, which may lie beside it.
 *
 * @throws {KeptFileError} If it is neither.
 */
export function decodeReport(text: string): CampaignReport | null {
  const value = parseJson(text);
  if (!isObject(value) || value.kind !== KIND) {
    if (isObject(value) && value.kind === COUNTEREXAMPLE_KIND) return null;
    throw new KeptFileError("it is no result of a campaign");
  }
  if (value.version !== VERSION) {
    throw new KeptFileError(
      `its version is ${JSON.stringify(value.version)}, not ${VERSION}`,
    );
  }
  const shard = value.shard;
  if (!isObject(shard)) throw new KeptFileError("it has no shard");
  const of = whole(shard, "of", 1, MAX_SHARDS);
  const { interrupted, properties } = value;
  if (typeof interrupted !== "boolean") {
    throw new KeptFileError("interrupted is neither true nor false");
  }
  if (!Array.isArray(properties)) {
    throw new KeptFileError("it has no properties");
  }
  return {
    seed: whole(value, "seed", -0x8000_0000, 0x7fff_ffff),
    shard: { index: whole(shard, "index", 0, of - 1), of },
    runs: whole(value, "runs", 1, MAX_RUNS),
    seconds: whole(value, "seconds", 1, MAX_SECONDS),
    took: amount(value, "took"),
    jobs: whole(value, "jobs", 1, Number.MAX_SAFE_INTEGER),
    interrupted,
    properties: properties.map(decodeProperty),
  };
}

function decodeProperty(value: unknown): PropertyResult {
  if (!isObject(value) || !Array.isArray(value.findings)) {
    throw new KeptFileError("a property has no findings");
  }
  const runs = whole(value, "runs", 0, Number.MAX_SAFE_INTEGER);
  const tally: Tally = {
    runs,
    seconds: amount(value, "seconds"),
    buffers: whole(value, "buffers", 0, Number.MAX_SAFE_INTEGER),
    midFlight: null,
    wrapped: null,
    full: null,
    indirect: null,
  };
  for (const notion of NOTIONS) {
    if (value[notion] !== null) tally[notion] = whole(value, notion, 0, runs);
  }
  return {
    name: word(value, "name"),
    ...tally,
    findings: value.findings.map(decodeFinding),
  };
}

function decodeFinding(value: unknown): Finding {
  if (!isObject(value)) throw new KeptFileError("a finding is no object");
  const { lines, script } = value;
  if (
    !Array.isArray(lines) || !lines.every((line) => typeof line === "string")
  ) throw new KeptFileError("the lines of a finding are no text");
  if (script !== null && !isScript(script)) {
    throw new KeptFileError("the script of a finding is none");
  }
  return {
    invariant: word(value, "invariant"),
    message: word(value, "message"),
    lines,
    script,
    batch: whole(value, "batch", 0, MAX_RUNS),
    seed: whole(value, "seed", -0x8000_0000, 0x7fff_ffff),
  };
}

function whole(
  from: Record<string, unknown>,
  name: string,
  lowest: number,
  highest: number,
): number {
  const value = from[name];
  if (
    typeof value !== "number" || !Number.isInteger(value) ||
    value < lowest || value > highest
  ) {
    throw new KeptFileError(
      `${name} is ${shown(value)}, no number from ${lowest} to ${highest}`,
    );
  }
  return value;
}

function amount(from: Record<string, unknown>, name: string): number {
  const value = from[name];
  if (typeof value !== "number" || !(value >= 0)) {
    throw new KeptFileError(`${name} is ${shown(value)}, no amount`);
  }
  return value;
}

function word(from: Record<string, unknown>, name: string): string {
  const value = from[name];
  if (typeof value === "string") return value;
  throw new KeptFileError(`${name} is ${shown(value)}, no text`);
}

function shown(value: unknown): string {
  const text = JSON.stringify(value) ?? "missing";
  return text.length > 40 ? `${text.slice(0, 40)}...` : text;
}

/** Reports of shards, put together. */
export type Merged = {
  /** As if one campaign had run it all, as far as its shards are there. */
  readonly report: CampaignReport;
  /** Shards that are not there. */
  readonly missing: readonly number[];
  /** Shards that were ended by hand. */
  readonly interrupted: readonly number[];
};

/**
 * Puts the reports of shards together.
 *
 * @param parts The reports, with where each comes from.
 * @throws {KeptFileError} If they are not of one campaign, or one is there twice.
 */
export function mergeReports(
  parts: readonly { from: string; report: CampaignReport }[],
): Merged {
  const [first] = parts;
  if (first === undefined) throw new KeptFileError("there is no result");
  const { seed, shard, runs, seconds } = first.report;
  const seen = new Map<number, string>();
  for (const { from, report } of parts) {
    const clash = difference(first.report, report);
    if (clash !== null) {
      throw new KeptFileError(
        `${first.from} and ${from} are not of one campaign: ${clash}`,
      );
    }
    const { index } = report.shard;
    const twin = seen.get(index);
    if (twin !== undefined) {
      throw new KeptFileError(
        `${twin} and ${from} are both shard ${index} of ${shard.of}`,
      );
    }
    seen.set(index, from);
  }
  const reports = parts.map(({ report }) => report)
    .sort((a, b) => a.shard.index - b.shard.index);
  const properties = first.report.properties.map(({ name }, i) => {
    const sum: PropertyResult = { name, ...emptyTally(), findings: [] };
    for (const report of reports) {
      const own = report.properties[i]!;
      addTally(sum, own);
      sum.findings.push(...own.findings);
    }
    sum.findings.sort((a, b) => a.batch - b.batch);
    return sum;
  });
  const missing: number[] = [];
  for (let i = 0; i < shard.of; i++) if (!seen.has(i)) missing.push(i);
  const interrupted = reports.filter((report) => report.interrupted)
    .map((report) => report.shard.index);
  return {
    report: {
      seed,
      shard: { index: 0, of: 1 },
      runs,
      seconds,
      took: Math.max(...reports.map(({ took }) => took)),
      jobs: reports.reduce((sum, { jobs }) => sum + jobs, 0),
      interrupted: interrupted.length + missing.length > 0,
      properties,
    },
    missing,
    interrupted,
  };
}

function difference(a: CampaignReport, b: CampaignReport): string | null {
  const names = ({ properties }: CampaignReport) =>
    properties.map(({ name }) => name).join(", ");
  const pairs: [string, unknown, unknown][] = [
    ["seeds", a.seed, b.seed],
    ["numbers of shards", a.shard.of, b.shard.of],
    ["numbers of runs", a.runs, b.runs],
    ["seconds", a.seconds, b.seconds],
    ["properties", names(a), names(b)],
  ];
  for (const [what, one, other] of pairs) {
    if (one !== other) return `their ${what} differ (${one}; ${other})`;
  }
  return null;
}

/** The table of a report, and what it comes to in all. */
export function reportLines(report: CampaignReport): string[] {
  const { properties, took, jobs } = report;
  const head = [
    "property",
    "sequences",
    "s",
    "per s",
    "buffers",
    "mid-flight restore",
    "wrapped",
    "ring full",
    "indirect",
    "",
  ];
  const row = (
    name: string,
    tally: Tally,
    share: (notion: typeof NOTIONS[number]) => string,
    outcome: string,
  ) => [
    name,
    String(tally.runs),
    tally.seconds.toFixed(1),
    tally.seconds === 0 ? "-" : (tally.runs / tally.seconds).toFixed(0),
    String(tally.buffers),
    ...NOTIONS.map(share),
    outcome,
  ];
  const rows = properties.map((one) =>
    row(
      one.name,
      one,
      (notion) => percent(one[notion], one.runs),
      one.findings.length > 0 ? "FAILED" : one.runs === 0 ? "-" : "holds",
    )
  );
  const sum = emptyTally();
  for (const one of properties) addTally(sum, one);
  const failed = properties.filter(({ findings }) => findings.length > 0);
  if (properties.length > 1) {
    // Of the runs of those properties that have such a notion.
    const share = (notion: typeof NOTIONS[number]) => {
      const asked = properties.filter((one) => one[notion] !== null);
      return percent(sum[notion], asked.reduce((n, { runs }) => n + runs, 0));
    };
    const outcome = failed.length === 0 ? "" : `${failed.length} FAILED`;
    rows.push(row("all", sum, share, outcome));
  }
  const widths = head.map((text, i) =>
    Math.max(text.length, ...rows.map((cells) => cells[i]!.length))
  );
  const table = [head, ...rows].map((cells) =>
    cells.map((cell, i) =>
      i === 0 || i === head.length - 1
        ? cell.padEnd(widths[i]!)
        : cell.padStart(widths[i]!)
    ).join("  ").trimEnd()
  );
  const speed = took === 0 ? 0 : sum.runs / took;
  return [
    ...table,
    "",
    `${sum.runs} sequences in ${took.toFixed(1)} s in ${jobs} thread${
      jobs === 1 ? "" : "s"
    }: ${speed.toFixed(0)} sequences/s`,
  ];
}

function percent(part: number | null, runs: number): string {
  return part === null || runs === 0
    ? "-"
    : `${(100 * part / runs).toFixed(1)} %`;
}
