/**
 * The embedded default: a guest's driver and the device over one shared buffer, in one process,
 * without a VM, files, sockets or permissions.
 *
 * Moves checked streams over eight connections each way, over split and then over packed queues, saves,
 * resets and restores the device in the middle of it, and compares every byte. Exits with 1 if one is
 * wrong.
 *
 * ```sh
 * deno run examples/demo.ts [--bytes N] [--corrupt]
 * ```
 *
 * @module
 */

// deno-lint-ignore-file no-console

import { VsockDevice } from "../device/vsock/device.ts";
import { type LoopbackConn, LoopbackHost } from "../device/vsock/loopback.ts";
import { CheckedSink, CheckedSource } from "../props/guest/checked_stream.ts";
import type { GuestConnection } from "../props/guest/guest_connection.ts";
import { InProcessGuest } from "../props/guest/in_process.ts";
import type { QueueState, RingFormat } from "../ring/queue.ts";

const DEFAULT_BYTES = 256 * 1024 * 1024;
const CONNECTIONS = 8;
const HOST_PORT = 1234;
const GUEST_PORT = 5678;
/** Saves, resets and restores in each direction. */
const RESTORES = 3;
const QUEUE_NAMES = ["rx", "tx", "event"];

type Direction = "guest to host" | "host to guest";

/** Both ends of one connection. */
type Pair = { guest: GuestConnection; host: LoopbackConn };

type Row = {
  ring: RingFormat;
  direction: Direction;
  moved: number;
  verified: number;
  seconds: number;
  restores: number;
  wrong: string[];
};

/** A guest with eight connections to a host side in memory, four made by either end. */
class Machine {
  readonly guest: InProcessGuest;
  readonly pairs: Pair[] = [];
  readonly #host: LoopbackHost;

  constructor(ring: RingFormat) {
    this.#host = new LoopbackHost({
      schedule: (work) => this.guest.schedule(work),
    });
    const vsock = new VsockDevice({ guestCid: 3, host: this.#host });
    this.#host.attach(vsock);
    this.guest = new InProcessGuest({ device: vsock, ring });
  }

  async connect(): Promise<void> {
    const { driver } = this.guest;
    const hostListener = this.#host.listen(HOST_PORT);
    const guestListener = driver.listen(GUEST_PORT);
    for (let i = 0; i < CONNECTIONS / 2; i++) {
      const guest = driver.connect(HOST_PORT);
      this.guest.run();
      const host = hostListener.tryAccept();
      if (host === null) throw new Error("the host side did not accept");
      this.pairs.push({ guest, host });
    }
    for (let i = 0; i < CONNECTIONS / 2; i++) {
      const connecting = this.#host.connect(GUEST_PORT);
      this.guest.run();
      const host = await connecting;
      const guest = guestListener.accept();
      if (guest === null) throw new Error("the guest did not accept");
      this.pairs.push({ guest, host });
    }
    hostListener.close();
    guestListener.close();
  }

  /** Closes half of the connections from either end; both ends must see it. */
  disconnect(): void {
    for (const [i, { guest, host }] of this.pairs.entries()) {
      if (i % 2 === 0) guest.close();
      else host.close();
    }
    this.guest.run();
    for (const { guest } of this.pairs) {
      if (guest.state !== "closed") throw new Error("a connection stays open");
    }
  }
}

/** Moves `bytes` in one direction over all connections at once. */
function move(
  machine: Machine,
  ring: RingFormat,
  direction: Direction,
  bytes: number,
  corrupt: boolean,
): Row {
  const { guest, pairs } = machine;
  const share = Math.floor(bytes / pairs.length);
  const streams = pairs.map((pair, i) => {
    const total = i === 0 ? bytes - share * (pairs.length - 1) : share;
    const seed = (direction.length * 31 + i) * 0x51ed270b >>> 0;
    const source = new CheckedSource(seed, total);
    const sink = new CheckedSink(seed, total);
    const toHost = direction === "guest to host";
    return {
      source,
      sink,
      send: (chunk: Uint8Array) =>
        toHost ? pair.guest.send(chunk) : pair.host.tryWrite(chunk),
      read: (target: Uint8Array) =>
        toHost ? pair.host.tryRead(target) ?? 0 : pair.guest.read(target),
    };
  });
  let moved = 0;
  let restores = 0;
  let flipped = !corrupt;
  const start = performance.now();
  for (;;) {
    let progress = 0;
    for (const { source, send } of streams) progress += source.pump(send);
    if (!flipped && progress > 0 && direction === "guest to host") {
      flipped = flipOneByte(guest, streams[0]!.source.chunk);
    }
    if (
      restores < RESTORES && moved >= (restores + 1) * bytes / (RESTORES + 1)
    ) {
      // The driver has published and kicked; the device has not seen any of it.
      guest.driver.poll();
      const states = guest.saveResetRestore();
      if (restores === 0) printStates(ring, direction, states, guest);
      restores++;
    }
    guest.run();
    for (const { sink, read } of streams) {
      const got = sink.pump(read);
      moved += got;
      progress += got;
    }
    if (progress === 0) break;
  }
  const seconds = (performance.now() - start) / 1000;
  const wrong: string[] = [];
  for (const [i, { sink }] of streams.entries()) {
    if (sink.wrongAt >= 0) {
      wrong.push(`connection ${i}: a wrong byte at ${sink.wrongAt}`);
    } else if (!sink.done) {
      wrong.push(`connection ${i}: ${sink.received} of ${sink.total} bytes`);
    }
  }
  const verified = streams.reduce((sum, { sink }) => sum + sink.verified, 0);
  return { ring, direction, moved, verified, seconds, restores, wrong };
}

/** Changes a byte of a packet that lies in guest memory on its way; false if it is not there. */
function flipOneByte(guest: InProcessGuest, chunk: Uint8Array): boolean {
  const { bytes } = guest.memory.regions[0]!;
  const needle = chunk.subarray(0, 16);
  let at = bytes.indexOf(needle[0]!);
  while (at >= 0) {
    if (needle.every((byte, i) => bytes[at + i] === byte)) {
      bytes[at + 7]! ^= 0x10;
      return true;
    }
    at = bytes.indexOf(needle[0]!, at + 1);
  }
  return false;
}

function printStates(
  ring: RingFormat,
  direction: Direction,
  states: QueueState[],
  guest: InProcessGuest,
): void {
  console.log(`\n${ring}, ${direction}: saved, reset and restored`);
  const open = [guest.driver.postedBuffers, guest.driver.unusedPackets];
  for (const [i, state] of states.entries()) {
    const wraps = state.format === "packed"
      ? [state.lastAvailWrapCounter, state.usedWrapCounter].map((wrap) =>
        ` (wrap ${wrap})`
      )
      : ["", ""];
    const held = open[i] === undefined
      ? ""
      : `, ${open[i]} buffers of the driver waiting in the ring`;
    console.log(
      `  ${QUEUE_NAMES[i]}: available ${state.lastAvailIdx}${wraps[0]}, ` +
        `used ${state.usedIdx}${wraps[1]}, ` +
        `in flight ${state.inFlight.length}${held}`,
    );
  }
}

function printTable(rows: Row[]): void {
  const cells = rows.map((row) => [
    row.ring,
    row.direction,
    row.moved.toLocaleString("en"),
    row.verified.toLocaleString("en"),
    row.seconds.toFixed(2),
    (row.moved / 1e6 / row.seconds).toFixed(0),
    String(row.restores),
    row.wrong.length === 0 ? "ok" : "WRONG",
  ]);
  const head = [
    "ring",
    "direction",
    "bytes moved",
    "bytes verified",
    "s",
    "MB/s",
    "restores",
    "",
  ];
  const widths = head.map((name, i) =>
    Math.max(name.length, ...cells.map((row) => row[i]!.length))
  );
  console.log();
  for (const row of [head, ...cells]) {
    const line = row.map((cell, i) =>
      i < 2 || i === 7 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!)
    );
    console.log(line.join("  ").trimEnd());
  }
}

type Options = { bytes: number; corrupt: boolean; help: boolean };

const HELP =
  `Moves checked streams between a guest's driver and the device in one process.

Usage: deno task demo [--bytes N] [--corrupt]

  --bytes N    bytes each way on each ring format; default: ${DEFAULT_BYTES}
  --corrupt    flip one byte on its way, to see that it is found (exit code 1)
  -h, --help   print this and exit`;

/** Reads the arguments; a text is what is wrong with them. */
function parse(args: readonly string[]): Options | string {
  const options: Options = {
    bytes: DEFAULT_BYTES,
    corrupt: false,
    help: false,
  };
  for (let i = 0; i < args.length; i++) {
    const arg = args[i];
    if (arg === "--corrupt") {
      options.corrupt = true;
    } else if (arg === "--bytes") {
      const bytes = Number(args[++i]);
      if (!(Number.isSafeInteger(bytes) && bytes >= 1)) {
        return `--bytes takes a number of bytes, not ${args[i] ?? "nothing"}`;
      }
      options.bytes = bytes;
    } else if (arg === "-h" || arg === "--help") {
      options.help = true;
    } else {
      return `unknown argument ${arg}`;
    }
  }
  return options;
}

async function main(args: readonly string[]): Promise<number> {
  const options = parse(args);
  if (typeof options === "string") {
    console.error(`demo: ${options}\n\n${HELP}`);
    return 2;
  }
  if (options.help) {
    console.log(HELP);
    return 0;
  }
  const { bytes } = options;
  console.log(
    `A guest's driver and a vsock device over shared memory: ${CONNECTIONS} connections, ` +
      `${bytes.toLocaleString("en")} bytes each way, every byte compared`,
  );
  const rows: Row[] = [];
  for (const ring of ["split", "packed"] as const) {
    const machine = new Machine(ring);
    await machine.connect();
    for (const direction of ["guest to host", "host to guest"] as const) {
      const corrupt = options.corrupt && ring === "split";
      rows.push(move(machine, ring, direction, bytes, corrupt));
    }
    machine.disconnect();
  }
  printTable(rows);
  const wrong = rows.flatMap(({ ring, direction, wrong }) =>
    wrong.map((text) => `${ring}, ${direction}, ${text}`)
  );
  console.log();
  for (const text of wrong) console.log(text);
  console.log(wrong.length === 0 ? "All bytes are right." : "FAILED");
  return wrong.length === 0 ? 0 : 1;
}

if (import.meta.main) Deno.exit(await main(Deno.args));
