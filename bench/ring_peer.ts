/**
 * One of the programs that `ring_cli.ts` compares: the ring of this package, as its users import it.
 *
 * Reads lines "CASE BUFFERS" from its standard input, such as "split/pop_push/b32 131072", moves that many
 * buffers and answers each with the nanoseconds that one took. `peers/ring.c` does the same in C, over the same
 * memory.
 *
 * @module
 */

import {
  type BatchDeviceQueue,
  Chain,
  ChainBatch,
  type RingFormat,
} from "../mod.ts";
import { check } from "./check.ts";
import { type ReplayDriver, replayDriver } from "./replay_driver.ts";
import { READABLE_BYTES, RingMemory, WRITABLE_BYTES } from "./ring_memory.ts";
import { TwoThreads } from "./two_threads.ts";

const WRITTEN = 7;

/** Moves that many buffers; the milliseconds that it took. */
type Case = (buffers: number) => number;

/** The device side alone: index read, publication and decision once a batch. */
function popPush(ring: RingMemory, batch: number): Case {
  const driver: ReplayDriver = replayDriver(ring);
  const device = ring.device();
  const serve = batch === 1 ? serveOne(ring, device) : serveMany(ring, device);
  const lap = driver.buffers;
  return (buffers) => {
    let interrupts = 0;
    let bytes = 0;
    const start = performance.now();
    for (let left = buffers; left > 0; left -= lap) {
      driver.beginLap();
      for (let left = lap; left > 0; left -= batch) {
        driver.offer(batch);
        bytes += serve();
        if (device.needsInterrupt()) interrupts++;
      }
    }
    const ms = performance.now() - start;
    driver.checkLap(WRITTEN);
    checkMoved(interrupts, bytes, buffers, buffers / batch);
    return ms;
  };
}

/** Takes one buffer and publishes it; its bytes. */
function serveOne(ring: RingMemory, device: BatchDeviceQueue): () => number {
  const chain = new Chain(ring.memory);
  return () => {
    if (!device.pop(chain)) return 0;
    device.push(chain.token, WRITTEN);
    device.publish();
    return chain.readableBytes + chain.writableBytes;
  };
}

/** Takes what is available and publishes it; the bytes of it. */
function serveMany(ring: RingMemory, device: BatchDeviceQueue): () => number {
  const batch = new ChainBatch(ring.memory, ring.buffers);
  const { readableBytes, writableBytes, written } = batch;
  return () => {
    let bytes = 0;
    const count = device.popBatch(batch);
    for (let i = 0; i < count; i++) {
      bytes += readableBytes[i]! + writableBytes[i]!;
      written[i] = WRITTEN;
    }
    device.pushBatch(batch);
    device.publish();
    return bytes;
  };
}

/** Both sides in one thread. */
function roundTrip(ring: RingMemory, batch: number): Case {
  const driver = ring.driver();
  const device = ring.device();
  const serve = batch === 1 ? serveOne(ring, device) : serveMany(ring, device);
  const lists = Array.from({ length: batch }, (_, i) => ring.list(i));
  const tokens = new Uint32Array(batch);
  const lengths = new Float64Array(batch);
  return (buffers) => {
    let moved = 0;
    let notifications = 0;
    let bytes = 0;
    const start = performance.now();
    for (let left = buffers; left > 0; left -= batch) {
      driver.addBatch(lists, tokens);
      driver.publish();
      if (driver.needsKick()) notifications++;
      bytes += serve();
      if (device.needsInterrupt()) notifications++;
      if (device.armKicks()) throw new Error("a buffer was left");
      const count = driver.reclaimBatch(tokens, lengths);
      for (let i = 0; i < count; i++) if (lengths[i] === WRITTEN) moved++;
      if (driver.armInterrupts()) throw new Error("a buffer was left");
    }
    const ms = performance.now() - start;
    check("buffers that came back", moved, buffers);
    checkMoved(notifications, bytes, buffers, buffers / batch * 2);
    return ms;
  };
}

function checkMoved(
  notifications: number,
  bytes: number,
  buffers: number,
  expected: number,
): void {
  check("notifications", notifications, expected);
  check("bytes", bytes, buffers * (READABLE_BYTES + WRITABLE_BYTES));
}

function makeCase(name: string): Case {
  const [format, kind, size] = name.split("/") as [RingFormat, string, string];
  const ring = new RingMemory(format);
  const batch = size === "full" ? ring.buffers : Number(size.slice(1));
  switch (kind) {
    case "pop_push":
      return popPush(ring, batch);
    case "round_trip":
      return roundTrip(ring, batch);
    case "two_threads": {
      const threads = new TwoThreads(format, batch);
      return (buffers) => threads.run(buffers);
    }
    default:
      throw new Error(`no case ${name}`);
  }
}

function main(): void {
  const cases = new Map<string, Case>();
  const bytes = new Uint8Array(256);
  const decoder = new TextDecoder();
  const encoder = new TextEncoder();
  let text = "";
  for (;;) {
    const end = text.indexOf("\n");
    if (end < 0) {
      const count = Deno.stdin.readSync(bytes);
      if (count === null) Deno.exit(0);
      text += decoder.decode(bytes.subarray(0, count));
      continue;
    }
    const [name = "", count = ""] = text.slice(0, end).split(" ");
    text = text.slice(end + 1);
    let run = cases.get(name);
    if (run === undefined) cases.set(name, run = makeCase(name));
    const ns = run(Number(count)) * 1e6 / Number(count);
    Deno.stdout.writeSync(encoder.encode(`${ns.toFixed(4)}\n`));
  }
}

if (import.meta.main) main();
