/**
 * The guest's process of `deno task bench:host`: `load.ts SOCKET FORMAT`.
 *
 * Reads lines of JSON, each a {@link LoadRequest}, from its standard input, and answers each by a
 * {@link LoadResult}. The guest stays connected from line to line.
 *
 * @module
 */

import type { RingFormat } from "../../ring/queue.ts";
import { quantile } from "../stats.ts";
import { type LoadConnection, LoadGuest } from "./guest.ts";

/** Port of the host program that does what it is asked. */
export const PROGRAM_PORT = 7_000;
/** Port in the guest that host programs connect to. */
export const GUEST_PORT = 5_000;

const SINK = 1;
const SOURCE = 2;
const ECHO = 3;

/** Streams `bytes` in writes of `size`, in equal parts over `connections`. */
export type StreamRequest = {
  kind: "guest-to-host" | "host-to-guest";
  size: number;
  bytes: number;
  connections: number;
};

/** One load. */
export type LoadRequest =
  | StreamRequest
  /** `count` messages of `size` there and back, one at a time. */
  | { kind: "round-trip"; size: number; count: number }
  /** The guest connects and closes `count` times, `window` at a time. */
  | { kind: "connect"; count: number; window: number }
  /** Accepts until `count` connections of host programs are over, which come `window` at a time. */
  | { kind: "accept"; count: number; window: number }
  /** Keeps that many connections open. */
  | { kind: "hold"; connections: number };

/** What a load came to. */
export type LoadResult = {
  /** Nanoseconds in all. */
  ns: number;
  /** Bytes that were moved, a little more or less than was asked for where parts are equal. */
  bytes: number;
  /** Of round trips: quantiles, in ns. */
  p50?: number;
  p99?: number;
};

class Load {
  readonly #guest: LoadGuest;
  #open: LoadConnection[] = [];

  constructor(guest: LoadGuest) {
    this.#guest = guest;
  }

  run(request: LoadRequest): LoadResult {
    switch (request.kind) {
      case "guest-to-host":
      case "host-to-guest":
        return this.#stream(request);
      case "round-trip":
        return this.#roundTrip(request.size, request.count);
      case "connect":
        return this.#connect(request.count, request.window);
      case "accept":
        return this.#accept(request.count, request.window);
      case "hold":
        this.#hold(request.connections);
        return { ns: 1, bytes: 0 };
    }
  }

  #hold(count: number): LoadConnection[] {
    const open = this.#open;
    if (open.length > count) this.#guest.closeAll(open.splice(count));
    else if (open.length < count) {
      open.push(...this.#guest.open(PROGRAM_PORT, count - open.length));
    }
    return open;
  }

  #ask(
    connection: LoadConnection,
    mode: number,
    size: number,
    bytes: number,
  ): void {
    const request = new DataView(new ArrayBuffer(16));
    request.setUint32(0, mode, true);
    request.setUint32(4, size, true);
    request.setBigUint64(8, BigInt(bytes), true);
    connection.received = 0;
    const guest = this.#guest;
    // Where all packets are on their way, some come back first.
    guest.awaitPacket();
    guest.write(connection, new Uint8Array(request.buffer));
  }

  #stream({ kind, size, bytes, connections }: StreamRequest): LoadResult {
    const guest = this.#guest;
    const open = this.#hold(connections);
    const writes = Math.max(1, Math.floor(bytes / connections / size));
    const part = writes * size;
    const up = kind === "guest-to-host";
    // Elsewhere device and host program keep two processors busy, and need the one that looking takes.
    const look = up && connections === 1;
    const start = performance.now();
    for (const connection of open) {
      this.#ask(connection, up ? SINK : SOURCE, size, part);
      connection.toSend = up ? part : 0;
      connection.rest = 0;
    }
    const wanted = up ? 1 : part;
    // How many have all that they wait for is looked up from where that was left.
    let done = 0;
    for (;;) {
      const moved = up && guest.pump(open, size);
      const came = guest.poll();
      while (done < open.length && open[done]!.received >= wanted) done++;
      if (done === open.length) break;
      if (!moved && !came) guest.wait(look);
    }
    const ns = (performance.now() - start) * 1e6;
    for (const { received } of open) {
      if (received !== wanted) throw new Error(`${received} of ${wanted} came`);
    }
    return { ns, bytes: part * connections };
  }

  #roundTrip(size: number, count: number): LoadResult {
    const guest = this.#guest;
    const [connection] = this.#hold(1);
    this.#ask(connection!, ECHO, size, size * count);
    const bytes = new Uint8Array(size);
    const times = new Float64Array(count);
    const start = performance.now();
    let last = start;
    for (let i = 0; i < count; i++) {
      connection!.received = 0;
      guest.write(connection!, bytes);
      while (connection!.received < size) {
        if (!guest.poll()) guest.wait(true);
      }
      const now = performance.now();
      times[i] = (now - last) * 1e6;
      last = now;
    }
    return {
      ns: (last - start) * 1e6,
      bytes: size * count,
      p50: quantile([...times], 0.5),
      p99: quantile([...times], 0.99),
    };
  }

  #connect(count: number, window: number): LoadResult {
    const guest = this.#guest;
    const start = performance.now();
    const slots: LoadConnection[] = [];
    let begun = 0;
    let done = 0;
    const closing = new Set<LoadConnection>();
    while (begun < window && begun < count) {
      slots.push(guest.connect(PROGRAM_PORT));
      begun++;
    }
    guest.publish();
    while (done < count) {
      let progress = guest.poll();
      for (let i = 0; i < slots.length; i++) {
        const connection = slots[i]!;
        if (connection.state === "open" && !closing.has(connection)) {
          closing.add(connection);
          guest.shutdown(connection);
          progress = true;
        } else if (connection.state === "closed") {
          if (!closing.delete(connection)) continue;
          done++;
          progress = true;
          if (begun < count) {
            slots[i] = guest.connect(PROGRAM_PORT);
            begun++;
          }
        }
      }
      guest.publish();
      // With more, the device is busy anyway, and answers that are taken one by one would cost it more.
      if (!progress) guest.wait(window === 1);
    }
    return { ns: (performance.now() - start) * 1e6, bytes: 0 };
  }

  #accept(count: number, window: number): LoadResult {
    const guest = this.#guest;
    guest.served = 0;
    const start = performance.now();
    guest.until(() => guest.served >= count, window === 1);
    return { ns: (performance.now() - start) * 1e6, bytes: 0 };
  }
}

function main([socketPath, ring]: readonly string[]): void {
  const load = new Load(new LoadGuest(socketPath!, ring as RingFormat));
  const decoder = new TextDecoder();
  const encoder = new TextEncoder();
  const bytes = new Uint8Array(4_096);
  let text = "";
  Deno.stdout.writeSync(encoder.encode("{}\n"));
  for (;;) {
    const end = text.indexOf("\n");
    if (end < 0) {
      const count = Deno.stdin.readSync(bytes);
      if (count === null) Deno.exit(0);
      text += decoder.decode(bytes.subarray(0, count));
      continue;
    }
    const request = JSON.parse(text.slice(0, end)) as LoadRequest;
    text = text.slice(end + 1);
    const result = load.run(request);
    Deno.stdout.writeSync(encoder.encode(`${JSON.stringify(result)}\n`));
  }
}

if (import.meta.main) main(Deno.args);
