import type { LoadRequest } from "./load.ts";
import type { CpuSeconds } from "./processes.ts";

const MB = 1e6;
const GIB = 1024 * 1024 * 1024;

/** Connections of the loads with the most of them. */
export const MOST_CONNECTIONS = 1_000;

/** A ratio that is asked for: of ours over the peer's. */
export type Bar = { least: number } | { most: number };

/** One load, for each side by turns. */
export type HostCase = {
  name: string;
  /** The load with that many bytes or operations. */
  request: (amount: number) => LoadRequest;
  /** Amount of the first try, by which that of the rounds is found. */
  first: number;
  /** What is measured, of one round. */
  figures: readonly Figure[];
};

/** One round of one load on one side. */
export type Round = {
  /** Seconds that it took. */
  seconds: number;
  /** Bytes or operations. */
  amount: number;
  /** Seconds of processor time, by process. */
  cpu: CpuSeconds;
  /** Of round trips: quantiles, in ns. */
  p50: number;
  p99: number;
};

/** One figure of a {@link Round}. */
export type Figure = {
  name: string;
  unit: string;
  of: (round: Round) => number;
  digits: number;
  bar?: Bar;
};

function streamCase(
  kind: "guest-to-host" | "host-to-guest",
  size: number,
  connections: number,
  bar: number,
  cpuBar: number,
): HostCase {
  const way = kind.replaceAll("-", " ");
  const many = connections === 1 ? "" : `, ${connections} connections`;
  const name = `${way}, ${sizeName(size)}${many}`;
  return {
    name,
    request: (bytes) => ({ kind, size, bytes, connections }),
    first: Math.max(size * 20_000, 4 * MB) / 4,
    figures: [
      {
        name,
        unit: "MB/s",
        of: ({ amount, seconds }) => amount / seconds / MB,
        digits: 0,
        ...(bar > 0 ? { bar: { least: bar } } : {}),
      },
      {
        name: `${name}: CPU`,
        unit: "s/GiB",
        of: ({ cpu, amount }) => cpu.device / (amount / GIB),
        digits: 2,
        ...(cpuBar > 0 ? { bar: { most: cpuBar } } : {}),
      },
    ],
  };
}

function sizeName(size: number): string {
  return size < 1024 ? `${size} B` : `${size / 1024} KiB`;
}

function connectCase(kind: "connect" | "accept", window: number): HostCase {
  const who = kind === "connect" ? "guest" : "host";
  return {
    name: `connects by the ${who}, ${window} at a time`,
    request: (count) => ({ kind, count: Math.ceil(count), window }),
    first: 200,
    figures: [{
      name: `connects by the ${who}, ${window} at a time`,
      unit: "1/s",
      of: ({ amount, seconds }) => amount / seconds,
      digits: 0,
      bar: { least: 1.2 },
    }, {
      name: `connects by the ${who}, ${window} at a time: CPU`,
      unit: "us each",
      of: ({ cpu, amount }) => cpu.device * 1e6 / amount,
      digits: 1,
    }],
  };
}

/** All loads, in the order in which they are measured. */
export const CASES: readonly HostCase[] = [
  streamCase("guest-to-host", 64, 1, 3, 0.6),
  streamCase("guest-to-host", 1024, 1, 3, 0.6),
  streamCase("guest-to-host", 4096, 1, 2.5, 0.6),
  streamCase("guest-to-host", 65536, 1, 1.6, 1),
  streamCase("host-to-guest", 64, 1, 1, 0.6),
  streamCase("host-to-guest", 1024, 1, 1.6, 0.6),
  streamCase("host-to-guest", 4096, 1, 2.8, 0.6),
  streamCase("host-to-guest", 65536, 1, 4.5, 0.6),
  {
    name: "round trip, 64 B",
    request: (count) => ({
      kind: "round-trip",
      size: 64,
      count: Math.ceil(count),
    }),
    first: 500,
    figures: [
      {
        name: "round trip, 64 B, p50",
        unit: "us",
        of: ({ p50 }) => p50 / 1000,
        digits: 1,
        bar: { most: 0.8 },
      },
      {
        name: "round trip, 64 B, p99",
        unit: "us",
        of: ({ p99 }) => p99 / 1000,
        digits: 1,
        bar: { most: 1 },
      },
    ],
  },
  connectCase("connect", 1),
  connectCase("connect", 16),
  connectCase("accept", 1),
  connectCase("accept", 16),
  ...[16, 256, 1000].flatMap((connections) => [
    streamCase("guest-to-host", 4096, connections, 0, 0),
    streamCase("host-to-guest", 4096, connections, 0, 0),
  ]),
  streamCase("guest-to-host", 65536, MOST_CONNECTIONS, 0, 0),
  streamCase("host-to-guest", 65536, MOST_CONNECTIONS, 0, 0),
];

/** What a quick run has: one of each kind. */
export const QUICK: ReadonlySet<string> = new Set([
  "guest to host, 64 B",
  "host to guest, 4 KiB",
  "round trip, 64 B",
  "connects by the guest, 16 at a time",
  "connects by the host, 16 at a time",
  "guest to host, 4 KiB, 16 connections",
]);
