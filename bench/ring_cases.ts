import {
  type BatchDeviceQueue,
  Chain,
  ChainBatch,
  type DeviceQueue,
  type RingFormat,
} from "../mod.ts";
import { check } from "./check.ts";
import {
  type NaiveDevice,
  type NaiveDriver,
  NaivePackedDevice,
  NaivePackedDriver,
  type NaiveSegment,
  NaiveSplitDevice,
  NaiveSplitDriver,
} from "./naive_ring.ts";
import { type ReplayDriver, replayDriver } from "./replay_driver.ts";
import {
  QUEUE_SIZE,
  READABLE_BYTES,
  RingMemory,
  type RingMemoryOptions,
  WRITABLE_BYTES,
} from "./ring_memory.ts";
import { TwoThreads } from "./two_threads.ts";

/** Buffers that one iteration of a ring benchmark moves. */
export const RING_BUFFERS = 4096;

/** Bytes that the device says it wrote. */
const WRITTEN = 7;

/** What the batch of a benchmark is called: `full` is as many buffers as fit. */
const BATCHES: readonly [string, number][] = [
  ["b1", 1],
  ["b32", 32],
  ["full", QUEUE_SIZE],
];

/** Other buffers and other rings, which are measured in batches of 32 only. */
const VARIANTS: readonly [string, RingMemoryOptions][] = [
  ["/chain1", { segments: 1 }],
  ["/chain8", { segments: 8 }],
  ["/chain8/indirect", { segments: 8, indirect: true }],
  ["/no_event_idx", { eventIdx: false }],
];

/** The device side of a queue over `laps` laps, in batches of `batch`. */
function serve(
  device: DeviceQueue,
  chain: Chain,
  driver: ReplayDriver,
  batch: number,
  laps: number,
): void {
  let moved = 0;
  let interrupts = 0;
  let bytes = 0;
  for (let lap = 0; lap < laps; lap++) {
    driver.beginLap();
    for (let left = driver.buffers; left > 0; left -= batch) {
      driver.offer(batch);
      while (device.pop(chain)) {
        bytes += chain.readableBytes + chain.writableBytes;
        device.push(chain.token, WRITTEN);
        moved++;
      }
      device.publish();
      if (device.needsInterrupt()) interrupts++;
    }
    driver.checkLap(WRITTEN);
  }
  checkMoved(moved, interrupts, bytes, batch, driver.bytes);
}

/** The same with everything that is available in one batch. */
function serveBatch(
  device: BatchDeviceQueue,
  chains: ChainBatch,
  driver: ReplayDriver,
  batch: number,
  laps: number,
): void {
  const { readableBytes, writableBytes, written } = chains;
  let moved = 0;
  let interrupts = 0;
  let bytes = 0;
  for (let lap = 0; lap < laps; lap++) {
    driver.beginLap();
    for (let left = driver.buffers; left > 0; left -= batch) {
      driver.offer(batch);
      const count = device.popBatch(chains);
      for (let i = 0; i < count; i++) {
        bytes += readableBytes[i]! + writableBytes[i]!;
        written[i] = WRITTEN;
      }
      device.pushBatch(chains);
      moved += count;
      device.publish();
      if (device.needsInterrupt()) interrupts++;
    }
    driver.checkLap(WRITTEN);
  }
  checkMoved(moved, interrupts, bytes, batch, driver.bytes);
}

function serveNaive(
  device: NaiveDevice,
  driver: ReplayDriver,
  batch: number,
  laps: number,
): void {
  let moved = 0;
  let interrupts = 0;
  let bytes = 0;
  for (let lap = 0; lap < laps; lap++) {
    driver.beginLap();
    for (let left = driver.buffers; left > 0; left -= batch) {
      driver.offer(batch);
      for (;;) {
        const buffer = device.pop();
        if (buffer === null) break;
        for (const { length } of buffer.segments) bytes += length;
        device.push(buffer, WRITTEN);
        moved++;
      }
      if (device.needsInterrupt()) interrupts++;
    }
    driver.checkLap(WRITTEN);
  }
  checkMoved(moved, interrupts, bytes, batch, driver.bytes);
}

function checkMoved(
  moved: number,
  notifications: number,
  bytes: number,
  batch: number,
  each: number = READABLE_BYTES + WRITABLE_BYTES,
): void {
  check("buffers", moved, RING_BUFFERS);
  check("notifications", notifications, RING_BUFFERS / batch);
  check("bytes", bytes, RING_BUFFERS * each);
}

/** Registers `ring/FORMAT/pop_push/...`: the device side alone. */
export function benchPopPush(format: RingFormat): void {
  for (const indirect of [false, true]) {
    for (const [label, batch] of BATCHES) {
      const kind = indirect ? "/indirect" : "";
      benchDevice(format, `${label}${kind}`, batch, { indirect });
    }
  }
  for (const [kind, options] of VARIANTS) {
    benchDevice(format, `b32${kind}`, 32, options);
  }
}

function benchDevice(
  format: RingFormat,
  name: string,
  wanted: number,
  options: RingMemoryOptions,
): void {
  const group = `ring/${format}/pop_push/q${QUEUE_SIZE}/${name}`;
  const ring = new RingMemory(format, options);
  const batch = Math.min(wanted, ring.buffers);
  const laps = RING_BUFFERS / ring.buffers;
  const driver = replayDriver(ring);
  const device = ring.device();
  const chain = new Chain(ring.memory);
  Deno.bench(group, { group }, () => {
    serve(device, chain, driver, batch, laps);
  });

  if (batch > 1) {
    const batched = new RingMemory(format, options);
    const batchedDriver = replayDriver(batched);
    const batchedDevice = batched.device();
    const chains = new ChainBatch(batched.memory, batch);
    Deno.bench(`${group}/batch`, { group }, () => {
      serveBatch(batchedDevice, chains, batchedDriver, batch, laps);
    });
  }

  const other = new RingMemory(format, options);
  const otherDriver = replayDriver(other);
  const naive = format === "split"
    ? new NaiveSplitDevice(other.place)
    : new NaivePackedDevice(other.place);
  Deno.bench(`${group}/naive`, { group, baseline: true }, () => {
    serveNaive(naive, otherDriver, batch, laps);
  });
}

/** Both sides of a queue in one thread. */
function roundTrip(ring: RingMemory, batch: number): () => void {
  const driver = ring.driver();
  const device = ring.device();
  const chain = new Chain(ring.memory);
  const lists = Array.from({ length: batch }, (_, i) => ring.list(i));
  return () => {
    let moved = 0;
    let notifications = 0;
    let bytes = 0;
    for (let left = RING_BUFFERS; left > 0; left -= batch) {
      for (let i = 0; i < batch; i++) driver.add(lists[i]!);
      driver.publish();
      if (driver.needsKick()) notifications++;
      while (device.pop(chain)) {
        bytes += chain.readableBytes + chain.writableBytes;
        device.push(chain.token, WRITTEN);
      }
      device.publish();
      if (device.needsInterrupt()) notifications++;
      if (device.armKicks()) throw new Error("a buffer was left");
      while (driver.reclaim() >= 0) {
        if (driver.usedLength === WRITTEN) moved++;
      }
      if (driver.armInterrupts()) throw new Error("a buffer was left");
    }
    checkMoved(moved, notifications / 2, bytes, batch);
  };
}

/** The same with all that a side has to do in one batch. */
function roundTripBatch(ring: RingMemory, batch: number): () => void {
  const driver = ring.driver();
  const device = ring.device();
  const chains = new ChainBatch(ring.memory, batch);
  const { readableBytes, writableBytes, written } = chains;
  const lists = Array.from({ length: batch }, (_, i) => ring.list(i));
  const tokens = new Uint32Array(batch);
  const lengths = new Float64Array(batch);
  return () => {
    let moved = 0;
    let notifications = 0;
    let bytes = 0;
    for (let left = RING_BUFFERS; left > 0; left -= batch) {
      check("buffers added", driver.addBatch(lists, tokens), batch);
      driver.publish();
      if (driver.needsKick()) notifications++;
      const count = device.popBatch(chains);
      for (let i = 0; i < count; i++) {
        bytes += readableBytes[i]! + writableBytes[i]!;
        written[i] = WRITTEN;
      }
      device.pushBatch(chains);
      device.publish();
      if (device.needsInterrupt()) notifications++;
      if (device.armKicks()) throw new Error("a buffer was left");
      const used = driver.reclaimBatch(tokens, lengths);
      for (let i = 0; i < used; i++) if (lengths[i] === WRITTEN) moved++;
      if (driver.armInterrupts()) throw new Error("a buffer was left");
    }
    checkMoved(moved, notifications / 2, bytes, batch);
  };
}

function naiveRoundTrip(ring: RingMemory, batch: number): () => void {
  const split = ring.format === "split";
  const driver: NaiveDriver = split
    ? new NaiveSplitDriver(ring.place)
    : new NaivePackedDriver(ring.place);
  const device: NaiveDevice = split
    ? new NaiveSplitDevice(ring.place)
    : new NaivePackedDevice(ring.place);
  const lists: NaiveSegment[][] = Array.from({ length: batch }, (_, i) => [
    { address: ring.address(i), length: READABLE_BYTES, writable: false },
    {
      address: ring.address(i) + READABLE_BYTES,
      length: WRITABLE_BYTES,
      writable: true,
    },
  ]);
  const words = new Uint16Array(ring.buffer);
  const { size, driver: driverArea, device: deviceArea } = ring.place;
  // Where each side says how far it is; a batch begins at the same position on both.
  const kickEvent = split ? deviceArea / 2 + 2 + size * 4 : deviceArea / 2;
  const callEvent = split ? driverArea / 2 + 2 + size : driverArea / 2;
  if (!split) words[driverArea / 2 + 1] = words[deviceArea / 2 + 1] = 2;
  let position = split ? 0 : 0x8000;
  const advance = () => {
    if (split) position = (position + batch) & 0xffff;
    else {
      const next = (position & 0x7fff) + batch * 2;
      position = next < size
        ? position & 0x8000 | next
        : (position & 0x8000 ^ 0x8000) | next - size;
    }
    Atomics.store(words, kickEvent, position);
    Atomics.store(words, callEvent, position);
  };
  Atomics.store(words, kickEvent, position);
  Atomics.store(words, callEvent, position);
  return () => {
    let moved = 0;
    let notifications = 0;
    let bytes = 0;
    for (let left = RING_BUFFERS; left > 0; left -= batch) {
      for (let i = 0; i < batch; i++) driver.add(lists[i]!);
      if (driver.needsKick()) notifications++;
      for (;;) {
        const buffer = device.pop();
        if (buffer === null) break;
        for (const { length } of buffer.segments) bytes += length;
        device.push(buffer, WRITTEN);
      }
      if (device.needsInterrupt()) notifications++;
      for (;;) {
        const used = driver.reclaim();
        if (used === null) break;
        if (used.length === WRITTEN) moved++;
      }
      advance();
    }
    checkMoved(moved, notifications / 2, bytes, batch);
  };
}

/** Registers `ring/FORMAT/round_trip/...`: driver and device in one thread. */
export function benchRoundTrip(format: RingFormat): void {
  for (const [label, wanted] of BATCHES) {
    const group = `ring/${format}/round_trip/q${QUEUE_SIZE}/${label}`;
    for (const indirect of [false, true]) {
      const ring = new RingMemory(format, { indirect });
      const batch = Math.min(wanted, ring.buffers);
      const name = indirect ? `${group}/indirect` : group;
      Deno.bench(name, { group }, roundTrip(ring, batch));
    }
    if (wanted > 1) {
      const batched = new RingMemory(format);
      const batch = Math.min(wanted, batched.buffers);
      const run = roundTripBatch(batched, batch);
      Deno.bench(`${group}/batch`, { group }, run);
    }
    const ring = new RingMemory(format);
    Deno.bench(
      `${group}/naive`,
      { group, baseline: true },
      naiveRoundTrip(ring, Math.min(wanted, ring.buffers)),
    );
  }
}

/**
 * Registers `ring/FORMAT/two_threads/...`: the driver in this thread, the device in another; 64 buffers are in flight
 * at most. Threads start with the first iteration; returns what ends them.
 */
export function benchTwoThreads(format: RingFormat): () => void {
  const group = `ring/${format}/two_threads/q${QUEUE_SIZE}`;
  const threads: TwoThreads[] = [];
  for (const batch of [1, 32]) {
    let pair: TwoThreads | undefined;
    Deno.bench(`${group}/b${batch}`, { group, baseline: batch === 1 }, () => {
      if (pair === undefined) {
        threads.push(pair = new TwoThreads(format, batch));
      }
      pair.run(RING_BUFFERS);
    });
  }
  return () => {
    for (const pair of threads) pair.close();
  };
}
