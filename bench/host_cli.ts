/**
 * `deno task bench:host`: the device as its users start it beside vhost-device-vsock, by turns, each driven over
 * its vhost-user socket by the same guest, with the same host programs at the other end.
 *
 * @module
 */

import {
  buildPeer,
  buildProgram,
  type CpuSeconds,
  cpuSeconds,
  PEER_VERSION,
  residentBytes,
  Side,
} from "./host/processes.ts";
import {
  type Bar,
  CASES,
  type HostCase,
  MOST_CONNECTIONS,
  QUICK,
  type Round,
} from "./host/cases.ts";
import { buildFloor, FLOORS, measureFloors } from "./host/floor.ts";
import { GUEST_PORT, PROGRAM_PORT } from "./host/load.ts";
import { fromFileUrl } from "./paths.ts";
import { median, table } from "./stats.ts";

const MIB = 1024 * 1024;

type Options = {
  rounds: number;
  filter: string;
  check: boolean;
  quick: boolean;
  shares: boolean;
  floor: boolean;
  peer: string | null;
  json: string | null;
};

const USAGE =
  `Usage: deno task bench:host [--rounds N] [--filter TEXT] [--quick] [--shares] [--floor] [--peer PATH | --no-peer] [--json PATH] [--check]

  --rounds N     rounds by turns [default: 9]
  --filter TEXT  only cases whose name has it
  --quick        one short round of few cases
  --shares       also what share of a core guest, device and host programs used in each case
  --floor        also what the system's calls alone cost in some cases, by loops in C
  --peer PATH    a vhost-device-vsock that is there already; none is built then
  --no-peer      without vhost-device-vsock
  --json PATH    also write every figure of every round to a file
  --check        exit code 1 where a bar is missed
`;

/** A command line that cannot be obeyed. */
class UsageError extends Error {}

function parse(args: readonly string[]): Options {
  const options: Options = {
    rounds: 9,
    filter: "",
    check: false,
    quick: false,
    shares: false,
    floor: false,
    peer: null,
    json: null,
  };
  for (let i = 0; i < args.length; i++) {
    const name = args[i]!;
    if (name === "--help") {
      print(USAGE);
      Deno.exit(0);
    }
    if (name === "--check") options.check = true;
    else if (name === "--quick") options.quick = true;
    else if (name === "--shares") options.shares = true;
    else if (name === "--floor") options.floor = true;
    else if (name === "--no-peer") options.peer = "";
    else if (["--rounds", "--filter", "--peer", "--json"].includes(name)) {
      const value = args[++i];
      if (value === undefined) throw new UsageError(`${name} needs a value`);
      if (name === "--filter") options.filter = value;
      else if (name === "--peer") options.peer = value;
      else if (name === "--json") options.json = value;
      else options.rounds = Number(value);
    } else throw new UsageError(`unknown option ${name}`);
  }
  if (!(options.rounds >= 1)) {
    throw new UsageError("--rounds takes a number from 1");
  }
  return options;
}

/** One round of one side. */
async function measure(
  side: Side,
  entry: HostCase,
  amount: number,
): Promise<Round> {
  const request = entry.request(amount);
  // Connections are opened before the clock runs.
  if ("connections" in request) {
    await side.load({ kind: "hold", connections: request.connections });
  }
  const before = side.cpu();
  let seconds: number;
  let done: number;
  let connecting = 0;
  let p50 = 0;
  let p99 = 0;
  if (request.kind === "accept") {
    done = request.count;
    const { ns, cpuNs } = await side.connectFromHost(GUEST_PORT, request);
    seconds = ns / 1e9;
    connecting = cpuNs / 1e9;
  } else {
    const result = await side.load(request);
    seconds = result.ns / 1e9;
    done = "count" in request ? request.count : result.bytes;
    ({ p50 = 0, p99 = 0 } = result);
  }
  const { guest, device, program } = side.cpu();
  const cpu = {
    guest: guest - before.guest,
    device: device - before.device,
    program: program - before.program + connecting,
  };
  return { seconds, amount: done, cpu, p50, p99 };
}

/** Rounds of one case by turns; by side, what each came to. */
async function measureAll(
  sides: readonly Side[],
  entry: HostCase,
  rounds: number,
  seconds: number,
): Promise<Round[][]> {
  const amounts: number[] = [];
  for (const side of sides) {
    // Compilers that work at run time are done after the second one.
    let amount = entry.first;
    for (let i = 0; i < 2; i++) {
      const tried = await measure(side, entry, amount);
      amount = Math.max(
        Math.min(tried.amount / tried.seconds * seconds, amount * 50),
        entry.first / 4,
      );
    }
    amounts.push(amount);
  }
  const columns = sides.map((): Round[] => []);
  for (let round = 0; round < rounds; round++) {
    for (let i = 0; i < sides.length; i++) {
      // Another one is first in each round.
      const at = (i + round) % sides.length;
      columns[at]!.push(await measure(sides[at]!, entry, amounts[at]!));
    }
  }
  return columns;
}

type Row = {
  name: string;
  unit: string;
  digits: number;
  values: Record<string, number[]>;
  bar?: Bar;
  /** By side and process, the share of a core in each round; with the first figure of a case. */
  shares?: Record<string, Shares>;
};

/** Of each process, the share of a core in each round. */
type Shares = Record<keyof CpuSeconds, number[]>;

function sharesOf(rounds: readonly Round[]): Shares {
  const share = (process: keyof CpuSeconds) =>
    rounds.map(({ cpu, seconds }) => cpu[process] / seconds);
  return {
    guest: share("guest"),
    device: share("device"),
    program: share("program"),
  };
}

/** Who was busy in each case: medians of the shares of a core. */
function sharesTable(rows: readonly Row[], sides: readonly string[]): string {
  const head = sides.flatMap((side) => [`${side}: guest`, "device", "program"]);
  const lines = rows.filter((row) => row.shares !== undefined).map((row) => [
    row.name,
    ...sides.flatMap((side) => {
      const { guest, device, program } = row.shares![side]!;
      return [guest, device, program].map((of) => median(of).toFixed(2));
    }),
  ]);
  return table([["share of a core", ...head], ...lines]);
}

/** Of each round, one figure over another's; the median. */
function ratio(over: readonly number[], under: readonly number[]): number {
  return median(over.map((value, i) => value / under[i]!));
}

function kept(value: number, bar: Bar | undefined): boolean {
  if (bar === undefined || Number.isNaN(value)) return true;
  return "least" in bar ? value >= bar.least : value <= bar.most;
}

function cells(row: Row): string[] {
  const { values, bar, digits } = row;
  const { split, packed, peer } = values;
  const figure = (column: number[] | undefined) =>
    column === undefined ? "-" : median(column).toFixed(digits);
  const over = peer === undefined ? NaN : ratio(split!, peer);
  const packedOver = peer === undefined ? NaN : ratio(packed!, peer);
  const number = (value: number) =>
    Number.isNaN(value) ? "-" : value.toFixed(2);
  const missed = [
    ...kept(over, bar) ? [] : ["split"],
    ...kept(packedOver, bar) ? [] : ["packed"],
  ];
  return [
    row.name,
    row.unit,
    figure(split),
    figure(packed),
    figure(peer),
    number(over),
    number(packedOver),
    bar === undefined
      ? "-"
      : "least" in bar
      ? `>= ${bar.least}`
      : `<= ${bar.most}`,
    missed.length === 0 ? "" : `missed: ${missed.join(", ")}`,
  ];
}

async function idleRows(
  sides: readonly Side[],
  seconds: number,
): Promise<Row[]> {
  const rows: Row[] = [];
  const add = (name: string, unit: string, digits: number) => {
    const row: Row = { name, unit, digits, values: {} };
    rows.push(row);
    return row.values;
  };
  const start = add("memory at start", "MiB", 1);
  const each = add(
    `memory an idle connection, of ${MOST_CONNECTIONS}`,
    "KiB",
    1,
  );
  const idle = add(`${MOST_CONNECTIONS} idle connections: CPU`, "ms/s", 2);
  for (const side of sides) {
    start[side.name] = [side.startBytes / MIB];
    // What the first connections of all take is not theirs.
    await side.load({ kind: "hold", connections: 32 });
    await side.load({ kind: "hold", connections: 0 });
    const before = residentBytes(side.pid);
    await side.load({ kind: "hold", connections: MOST_CONNECTIONS });
    await pause(0.2);
    const after = residentBytes(side.pid);
    each[side.name] = [(after - before) / 1024 / MOST_CONNECTIONS];
    const cpu = cpuSeconds(side.pid);
    await pause(seconds);
    // Threads that have ended meanwhile take their time with them.
    const used = Math.max(0, cpuSeconds(side.pid) - cpu);
    idle[side.name] = [used * 1000 / seconds];
    await side.load({ kind: "hold", connections: 0 });
  }
  return rows;
}

function pause(seconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, seconds * 1000));
}

function print(text: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(text));
}

/** Runs the command line; the exit code. */
export async function main(args: readonly string[]): Promise<number> {
  let options: Options;
  try {
    options = parse(args);
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    const text = `bench:host: ${error.message}\nTry --help.\n`;
    Deno.stderr.writeSync(new TextEncoder().encode(text));
    return 2;
  }
  const {
    rounds: asked,
    filter,
    check,
    quick,
    shares,
    floor,
    peer: given,
    json,
  } = options;
  const rounds = quick ? 1 : asked;
  const seconds = quick ? 0.02 : 0.25;
  const program = await buildProgram();
  if ("missing" in program) {
    throw new Error(`the host programs are C: ${program.missing}`);
  }
  const peer = given === null
    ? await buildPeer()
    : given === ""
    ? { missing: "--no-peer" }
    : { path: given };
  const folder = await Deno.makeTempDir({ prefix: "ringside_bench_" });
  const sides: Side[] = [];
  const rows: Row[] = [];
  const loaded = new Map<Side, number>();
  try {
    const script = fromFileUrl(
      new URL("../device/host/cli.ts", import.meta.url),
    );
    const ours = [Deno.execPath(), "run", "-A", "--quiet", script];
    const start = async (
      name: string,
      command: readonly string[],
      ring: "split" | "packed",
    ) => {
      sides.push(
        await Side.start(
          name,
          command,
          ring,
          folder,
          program.path,
          PROGRAM_PORT,
        ),
      );
    };
    await start("split", ours, "split");
    await start("packed", ours, "packed");
    if ("path" in peer) await start("peer", [peer.path], "split");

    // First, as a heap that has grown under load has room for a thousand connections.
    if (filter === "" || "memory".includes(filter)) {
      rows.push(...await idleRows(sides, quick ? 0.2 : 5));
    }
    for (const entry of CASES) {
      if (!entry.name.includes(filter)) continue;
      if (quick && !QUICK.has(entry.name)) continue;
      const columns = await measureAll(sides, entry, rounds, seconds);
      const first = rows.length;
      for (const { name, unit, digits, of, bar } of entry.figures) {
        const values = Object.fromEntries(
          sides.map((side, i) => [side.name, columns[i]!.map(of)]),
        );
        rows.push({ name, unit, digits, values, ...(bar ? { bar } : {}) });
      }
      rows[first]!.shares = Object.fromEntries(
        sides.map((side, i) => [side.name, sharesOf(columns[i]!)]),
      );
      for (const side of sides) {
        const bytes = residentBytes(side.pid);
        loaded.set(side, Math.max(bytes, loaded.get(side) ?? 0));
      }
      await Deno.stderr.write(new TextEncoder().encode(`${entry.name}\n`));
    }
    const load = { name: "memory under load, at most", unit: "MiB", digits: 1 };
    const most = sides.map((side) => [side.name, [loaded.get(side)! / MIB]]);
    rows.push({ ...load, values: Object.fromEntries(most) });
  } finally {
    for (const side of sides) await side.close();
    await Deno.remove(folder, { recursive: true });
  }
  if (rows.length === 0) throw new TypeError(`no case has ${filter} in it`);

  const lines = rows.map(cells);
  const missed = lines.filter((line) => line.at(-1) !== "").length;
  const notes = [
    `${rounds} rounds by turns, medians; a ratio is the median of those of the rounds.`,
    "missing" in peer
      ? `No ratio was measured: vhost-device-vsock is left out: ${peer.missing}`
      : missed === 0
      ? "All bars are met."
      : `${missed} bars are missed.`,
  ];
  const own = memoryAndWidth(rows);
  print(`${
    table([[
      "",
      "",
      "ours, split",
      "ours, packed",
      `vhost-device-vsock ${PEER_VERSION}`,
      "split / it",
      "packed / it",
      "bar",
      "",
    ], ...lines])
  }\n\n${notes.join("\n")}\n${own}${
    shares ? `\n${sharesTable(rows, sides.map(({ name }) => name))}\n` : ""
  }`);
  if (floor) {
    const loops = await buildFloor();
    if ("missing" in loops) {
      throw new Error(`the loops are C: ${loops.missing}`);
    }
    const floors = await measureFloors(loops.path, rounds);
    print(`\n${floorTable(rows, floors, sides.map(({ name }) => name))}\n`);
  }
  if (json !== null) {
    await Deno.writeTextFile(json, JSON.stringify(rows, null, 1) + "\n");
  }
  return check && missed > 0 ? 1 : 0;
}

/** What the system's calls alone cost beside what each side takes: medians. */
function floorTable(
  rows: readonly Row[],
  floors: readonly (readonly number[])[],
  sides: readonly string[],
): string {
  const seconds = (column: readonly number[] | undefined): string =>
    column === undefined ? "-" : median(column).toFixed(2);
  return table([
    ["CPU, s/GiB", "calls alone, C", ...sides],
    ...FLOORS.map(({ name }, i) => {
      const values = rows.find((row) => row.name === `${name}: CPU`)?.values;
      return [
        name,
        seconds(floors[i]),
        ...sides.map((side) => seconds(values?.[side])),
      ];
    }),
  ]);
}

/** What is asked of our own figures alone. */
function memoryAndWidth(rows: readonly Row[]): string {
  const find = (name: string, column: string): number => {
    const values = rows.find((row) => row.name === name)?.values[column];
    return values === undefined ? NaN : median(values);
  };
  let text = "";
  for (const column of ["split", "packed", "peer"]) {
    const at = (name: string) => find(name, column);
    for (const way of ["guest to host", "host to guest"]) {
      for (const size of ["4 KiB", "64 KiB"]) {
        const one = at(`${way}, ${size}: CPU`);
        const many = at(`${way}, ${size}, 1000 connections: CPU`);
        if (Number.isNaN(one + many)) continue;
        text +=
          `${column}: CPU a byte ${way} in writes of ${size}, 1000 connections over 1: ${
            (many / one).toFixed(2)
          } (bar <= 1.5)\n`;
      }
    }
  }
  const quotients = rows
    .filter(({ unit, values }) => unit === "MB/s" && values["packed"])
    .map(({ values }) => ratio(values["packed"]!, values["split"]!));
  if (quotients.length > 0) {
    text += `packed / split, median of the streams: ${
      median(quotients).toFixed(2)
    } (bar >= 1)\n`;
  }
  return text;
}

if (import.meta.main) Deno.exit(await main(Deno.args));
