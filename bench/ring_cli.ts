/**
 * Compares the ring with a loop in C and with rust-vmm's `virtio-queue`, by turns in one run.
 *
 * A figure is the median over the rounds, a ratio the median of the ratios within a round, so that a machine that is
 * busy for a while spoils neither. With `--check` the exit code is 1 where a bar is not met.
 *
 * @module
 */

import { buildC, buildRust, type Built, Peer, ringPeer } from "./peers.ts";
import { median, quantile, table } from "./stats.ts";

type RingCase = {
  name: string;
  /** Buffers of a round. */
  buffers: number;
  /** Times of C that ours may take. */
  barC: number;
  /** Times of ours that the Rust crate must take at least, where it has the case. */
  barRust?: number;
};

const CASES: readonly RingCase[] = (["split", "packed"] as const).flatMap(
  (format) => {
    const rust = (bar: number) => format === "split" ? { barRust: bar } : {};
    return [
      { name: "pop_push/b1", buffers: 16_384, barC: 5, ...rust(1) },
      { name: "pop_push/b32", buffers: 32_768, barC: 3, ...rust(3) },
      // No bar for the crate was set here; it has the case, so it is shown.
      { name: "pop_push/full", buffers: 32_768, barC: 3, ...rust(0) },
      { name: "round_trip/b32", buffers: 32_768, barC: 3.5 },
      { name: "two_threads/b32", buffers: 131_072, barC: 1.5 },
    ].map((entry) => ({ ...entry, name: `${format}/${entry.name}` }));
  },
);

/** Rounds before the ones that count: compilers that work at run time are done by then. */
const WARM_ROUNDS = 40;
/** A case ends after this time where it has had some rounds: two threads that wait for a busy machine take long. */
const CASE_LIMIT_MS = 15_000;
const LEAST_ROUNDS = 5;

const USAGE = `\
Compares the ring with a loop in C and with rust-vmm's virtio-queue, by turns in one run.

Usage: deno task bench:ring [OPTIONS]

Options:
  --rounds N     Rounds that count of each case; default: 150
  --filter TEXT  Only cases whose name has it
  --check        Exit code 1 where a bar is missed
  --help         Print this text

Each case has ${WARM_ROUNDS} rounds to warm up. The programs in C and Rust are built on the spot; one whose
compiler is missing is left out.
`;

type Options = { rounds: number; filter: string; check: boolean };

/** A command line that cannot be obeyed; the message is one line. */
class UsageError extends Error {}

function parse(args: readonly string[]): Options {
  const options: Options = { rounds: 150, filter: "", check: false };
  for (let i = 0; i < args.length; i++) {
    const name = args[i]!;
    if (name === "--check") options.check = true;
    else if (name === "--rounds" || name === "--filter") {
      const value = args[++i];
      if (value === undefined) throw new UsageError(`${name} needs a value`);
      if (name === "--rounds") options.rounds = rounds(value);
      else if (CASES.some((entry) => entry.name.includes(value))) {
        options.filter = value;
      } else throw new UsageError(`no case has ${value} in its name`);
    } else throw new UsageError(`unknown option ${name}`);
  }
  return options;
}

function rounds(text: string): number {
  if (/^[1-9]\d{0,5}$/.test(text)) return Number(text);
  throw new UsageError(`--rounds takes a number from 1, not ${text}`);
}

/** Measures one case by turns; a column of figures for each peer. Each case has processes of its own. */
async function measure(
  entry: RingCase,
  rounds: number,
  makers: readonly (() => Peer)[],
): Promise<number[][]> {
  const peers = makers.map((make) => make());
  try {
    const columns = peers.map((): number[] => []);
    const end = performance.now() + CASE_LIMIT_MS;
    for (let round = -WARM_ROUNDS; round < rounds; round++) {
      if (performance.now() > end) {
        if (round >= LEAST_ROUNDS) break;
        round = Math.max(round, 0);
      }
      for (let i = 0; i < peers.length; i++) {
        const ns = await peers[i]!.measure(entry.name, entry.buffers);
        if (round >= 0) columns[i]!.push(ns);
      }
    }
    return columns;
  } finally {
    for (const peer of peers) await peer.close();
  }
}

function ratio(over: readonly number[], under: readonly number[]): number {
  return median(over.map((ns, i) => ns / under[i]!));
}

function figure(column: readonly number[] | undefined): string {
  return column === undefined ? "-" : median(column).toFixed(1);
}

function missing(name: string, built: Built): string {
  return "missing" in built ? `${name} is left out: ${built.missing}\n` : "";
}

function write(stream: typeof Deno.stdout, text: string): void {
  const bytes = new TextEncoder().encode(text);
  for (let at = 0; at < bytes.length;) {
    at += stream.writeSync(bytes.subarray(at));
  }
}

async function main(args: readonly string[]): Promise<number> {
  if (args.includes("--help")) {
    write(Deno.stdout, USAGE);
    return 0;
  }
  let options: Options;
  try {
    options = parse(args);
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    write(Deno.stderr, `bench:ring: ${error.message}\nTry --help.\n`);
    return 2;
  }
  const { rounds, filter, check } = options;
  const c = await buildC();
  const rust = await buildRust();
  const rows = [[
    "ns a buffer, medians",
    "ours",
    "quiet",
    "C -O2",
    "ours / C",
    "bar",
    "virtio-queue 0.16",
    "it / ours",
    "bar",
    "",
  ]];
  let failed = 0;
  for (const entry of CASES) {
    if (!entry.name.includes(filter)) continue;
    const makers = [ringPeer];
    const hasC = "path" in c;
    const hasRust = "path" in rust && entry.barRust !== undefined;
    if (hasC) makers.push(() => new Peer(c.path));
    if (hasRust) makers.push(() => new Peer(rust.path));
    const columns = await measure(entry, rounds, makers);
    const ours = columns[0]!;
    const ofC = hasC ? columns[1]! : undefined;
    const ofRust = hasRust ? columns.at(-1)! : undefined;
    const overC = ofC === undefined ? NaN : ratio(ours, ofC);
    const overOurs = ofRust === undefined ? NaN : ratio(ofRust, ours);
    const barRust = entry.barRust ?? 0;
    // A ratio that was not measured misses no bar.
    const good = !(overC > entry.barC) && !(overOurs < barRust);
    if (!good) failed++;
    rows.push([
      entry.name,
      figure(ours),
      quantile(ours, 0.1).toFixed(1),
      figure(ofC),
      ofC === undefined ? "-" : overC.toFixed(2),
      `<= ${entry.barC}`,
      figure(ofRust),
      ofRust === undefined ? "-" : overOurs.toFixed(2),
      barRust === 0 ? "-" : `>= ${barRust}`,
      good ? "" : "missed",
    ]);
    if (Deno.stderr.isTerminal()) {
      write(Deno.stderr, `\r\x1b[Kmeasured: ${entry.name}`);
    }
  }
  if (Deno.stderr.isTerminal()) write(Deno.stderr, "\r\x1b[K");
  const text = `${
    table(rows)
  }\n\n${rounds} rounds by turns, fewer where a case took long. ${
    failed === 0 ? "All bars are met." : `${failed} bars are missed.`
  }\n${missing("C", c)}${missing("virtio-queue", rust)}`;
  write(Deno.stdout, text);
  return check && failed !== 0 ? 1 : 0;
}

if (import.meta.main) Deno.exit(await main(Deno.args));
