/**
 * Watches that nothing becomes slower.
 *
 * Each round has processes of its own, since a compiler that works at run time decides differently in each. A figure that
 * is beyond its band is measured again, twice; the exit code is 1 where it was beyond it all three times.
 *
 * @module
 */

import { chart, type History } from "./chart.ts";
import { fromFileUrl } from "./paths.ts";
import { median, table } from "./stats.ts";
import {
  actionJson,
  type Baseline,
  calibratedNs,
  judge,
  makeBaseline,
  type Ratios,
  ROUNDS_THAT_CONVICT,
  TRACKED,
  type Verdict,
} from "./track.ts";
import type { TrackTimes } from "./track_worker.ts";

const HERE = new URL("./", import.meta.url);
const BASELINE = new URL("baseline.json", HERE);
const HISTORY = new URL("history.json", HERE);
const CHART = new URL("../docs/performance.svg", HERE);

/** Processes of a round, of which the median counts, and rounds within each. */
const PROCESSES = 3;
const TURNS = 11;
/** Rounds of a baseline or of a point of the history. */
const MANY = 5;

const USAGE = `\
Compares what the ring and the device take with bench/baseline.json.

Usage: deno task bench:track [--json FILE]
       deno task bench:track --write
       deno task bench:track --record NAME [--root FOLDER]

Options:
  --json FILE    Also write FILE, for github-action-benchmark
  --write        Measure bench/baseline.json anew
  --record NAME  Add a point to bench/history.json, and draw docs/performance.svg
  --root FOLDER  Measure the sources of another checkout
  --help         Print this text

Exit code 1 where something is slower by more than its band, three times.
`;

/** A command line that cannot be obeyed; the message is one line. */
class UsageError extends Error {}

type Options = {
  json: string | null;
  write: boolean;
  record: string | null;
  root: string;
};

function parse(args: readonly string[]): Options {
  const options: Options = {
    json: null,
    write: false,
    record: null,
    root: new URL("../", HERE).href,
  };
  for (let i = 0; i < args.length; i++) {
    const name = args[i]!;
    if (name === "--write") {
      options.write = true;
      continue;
    }
    if (!["--json", "--record", "--root"].includes(name)) {
      throw new UsageError(`unknown option ${name}`);
    }
    const value = args[++i];
    if (value === undefined) throw new UsageError(`${name} needs a value`);
    if (name === "--json") options.json = value;
    else if (name === "--record") options.record = value;
    else options.root = rootUrl(value);
  }
  return options;
}

function rootUrl(folder: string): string {
  try {
    return new URL(`file://${Deno.realPathSync(folder)}/`).href;
  } catch {
    throw new UsageError(`--root takes a folder, not ${folder}`);
  }
}

/** The processor, by what tells one kind from the other. */
async function machineName(): Promise<string> {
  try {
    const text = await Deno.readTextFile("/proc/cpuinfo");
    const field = (name: string) =>
      text.match(new RegExp(`^${name}\\s*:\\s*(.*)$`, "m"))?.[1] ?? "?";
    return `${field("model name")} (${field("cpu family")}/${field("model")})`;
  } catch {
    return Deno.build.target;
  }
}

async function measureOnce(
  root: string,
  names: readonly string[],
): Promise<TrackTimes> {
  const script = fromFileUrl(new URL("track_worker.ts", HERE));
  const { success, stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", "--quiet", script, root, `${TURNS}`]
      .concat(names),
    stdin: "null",
    stderr: "inherit",
  }).output();
  if (!success) throw new Error("a process of the tracker has failed");
  return JSON.parse(new TextDecoder().decode(stdout));
}

/** One round: the medians of some processes. */
async function measureRound(
  root: string,
  names: readonly string[],
): Promise<TrackTimes> {
  const all: TrackTimes[] = [];
  for (let i = 0; i < PROCESSES; i++) all.push(await measureOnce(root, names));
  const ratios: Record<string, number> = {};
  for (const name of Object.keys(all[0]!.ratios)) {
    ratios[name] = median(all.map((times) => times.ratios[name]!));
  }
  return {
    calibrationMs: median(all.map((times) => times.calibrationMs)),
    ratios,
  };
}

async function measureMany(root: string): Promise<TrackTimes[]> {
  const rounds: TrackTimes[] = [];
  for (let i = 0; i < MANY; i++) {
    rounds.push(await measureRound(root, Object.keys(TRACKED)));
  }
  return rounds;
}

function say(text: string): Promise<number> {
  return Deno.stdout.write(new TextEncoder().encode(`${text}\n`));
}

async function compare(
  baseline: Baseline,
  options: Options,
): Promise<number> {
  const machine = await machineName();
  const rounds: Ratios[] = [];
  let names = Object.keys(TRACKED);
  let verdicts: Verdict[] = [];
  while (names.length !== 0 && rounds.length < ROUNDS_THAT_CONVICT) {
    rounds.push((await measureRound(options.root, names)).ratios);
    verdicts = judge(baseline, machine, rounds);
    names = verdicts.filter(({ state }) => state === "suspect")
      .map(({ name }) => name);
  }
  const first = rounds[0]!;
  const rows = [["", "ns, calibrated", "unit", "change", "band", ""]];
  for (const { name, changes, band, state } of verdicts) {
    const ns = calibratedNs(name, first[name]!, baseline.calibrationMs);
    rows.push([
      name,
      ns.toFixed(ns < 100 ? 1 : 0),
      TRACKED[name]!.unit.slice("ns/".length),
      changes.map((change) => `${percent(change - 1)}`).join(" ") || "-",
      `+${(100 * band).toFixed(0)} %`,
      state === "same" ? "" : state === "suspect" ? "same" : state,
    ]);
  }
  await say(table(rows));
  await say(
    machine === baseline.machine
      ? `\nThe baseline's processor: ${machine}.`
      : `\nThe baseline is of another processor (${baseline.machine}, this is ${machine}): the bands are wider.`,
  );
  const slower = verdicts.filter(({ state }) => state === "slower");
  await say(
    slower.length === 0
      ? "Nothing is slower than the baseline by more than its noise."
      : `${slower.length} slower than the baseline in ${ROUNDS_THAT_CONVICT} rounds.`,
  );
  if (options.json !== null) {
    await Deno.writeTextFile(options.json, actionJson(first, baseline));
  }
  return slower.length === 0 ? 0 : 1;
}

function percent(part: number): string {
  return `${part < 0 ? "-" : "+"}${Math.abs(100 * part).toFixed(0)}%`;
}

async function main(args: readonly string[]): Promise<number> {
  if (args.includes("--help")) {
    await say(USAGE.trimEnd());
    return 0;
  }
  let options: Options;
  try {
    options = parse(args);
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    const text = `bench:track: ${error.message}\nTry --help.\n`;
    await Deno.stderr.write(new TextEncoder().encode(text));
    return 2;
  }
  if (options.write) {
    const rounds = await measureMany(options.root);
    const baseline = makeBaseline(
      await machineName(),
      median(rounds.map(({ calibrationMs }) => calibrationMs)),
      rounds.map(({ ratios }) => ratios),
    );
    await Deno.writeTextFile(
      BASELINE,
      `${JSON.stringify(baseline, null, 2)}\n`,
    );
    return 0;
  }
  const baseline: Baseline = JSON.parse(await Deno.readTextFile(BASELINE));
  if (options.record !== null) {
    const rounds = await measureMany(options.root);
    const history: History = JSON.parse(await Deno.readTextFile(HISTORY));
    const figures: Record<string, number> = {};
    for (const name of Object.keys(rounds[0]!.ratios)) {
      const ratio = median(rounds.map(({ ratios }) => ratios[name]!));
      const ns = calibratedNs(name, ratio, baseline.calibrationMs);
      figures[name] = Number(ns.toPrecision(4));
    }
    history.points.push({ name: options.record, figures });
    await Deno.writeTextFile(HISTORY, `${JSON.stringify(history, null, 2)}\n`);
    await Deno.writeTextFile(CHART, chart(history));
    return 0;
  }
  return await compare(baseline, options);
}

if (import.meta.main) Deno.exit(await main(Deno.args));
