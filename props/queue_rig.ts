import { Chain } from "../ring/chain.ts";
import { ChainBatch } from "../ring/chain_batch.ts";
import {
  type InflightRegion,
  inflightRegionSize,
  openInflight,
} from "../ring/inflight.ts";
import { GuestMemory, type MemoryRegion } from "../ring/memory.ts";
import { PackedDevice } from "../ring/packed_device.ts";
import { PackedDriver } from "../ring/packed_driver.ts";
import type {
  BatchDeviceQueue,
  BatchDriverQueue,
  DeviceQueue,
  DriverQueue,
  QueueConfig,
  QueueState,
} from "../ring/queue.ts";
import { BufferList } from "../ring/queue.ts";
import { SplitDevice } from "../ring/split_device.ts";
import { SplitDriver } from "../ring/split_driver.ts";
import { initialQueueState } from "../ring/state.ts";
import { TrackedQueue } from "../ring/tracked_queue.ts";
import { QueueHost } from "./queue_host.ts";
import { type Exposed, type QueueSetup, TABLE_ENTRIES } from "./queue_model.ts";
import { expectSame, Violation } from "./violation.ts";

/** Longest segment, and the bytes between the starts of two: what lies between is watched. */
export const MAX_SEGMENT = 24;
const CELL = 32;
const UNTOUCHED = 0xa5;

/** Guest addresses: not 0, so that an address taken for an offset is seen. */
const RING_START = 0x10_0000;
const DATA_START = 0x4000_0000;

/** What the device puts into byte `i` of the writable part. */
function answered(generation: number, i: number): number {
  return (generation * 59 + i * 17 + 101) & 0xff;
}

/** Makers of sides that are not Ringside's own; of the two at most one is given. */
export type QueueSides = {
  /** Makes the driver side. */
  readonly driver?: (memory: GuestMemory, config: QueueConfig) => DriverQueue;
  /** Makes the device side. It is never restored: what replaces a device is not among the steps then. */
  readonly device?: (memory: GuestMemory, config: QueueConfig) => DeviceQueue;
};

/** Both sides of a queue over memory in one region, or in three of which two adjoin in the middle of a segment. */
export class QueueRig {
  /** The queue's. */
  readonly config: QueueConfig;
  /** All of it. */
  memory: GuestMemory;
  /** Driver side; another one after a reset of the queue. */
  driver: DriverQueue;
  /** Device side; another one after each restore. */
  device: DeviceQueue;
  /** The virtio device around it, where there is one. */
  host: QueueHost | null = null;
  /** Buffers of this device's fetches that came from a saved state. */
  restored = 0;
  /** Sides that are not Ringside's own, which tell only what their side of a ring has to tell. */
  readonly sides: QueueSides;
  readonly #setup: QueueSetup;
  readonly #format: "split" | "packed";
  readonly #tables: number;
  readonly #view: DataView;
  readonly #region: Uint8Array | null;
  readonly #bytes: Uint8Array;
  readonly #dataStart: number;
  readonly #border: number;
  readonly #belowAt: number;
  readonly #aboveAt: number;
  readonly #cells: number[] = [];
  readonly #list: BufferList;
  readonly #chains: Map<number, Chain> = new Map();
  readonly #spare: Chain[] = [];
  readonly #regions: MemoryRegion[];
  #batch: ChainBatch | null = null;

  /** @param setup The queue's. @param sides Those that are not Ringside's own. */
  constructor(setup: QueueSetup, sides: QueueSides = {}) {
    this.sides = sides;
    const {
      format,
      size,
      eventIdx,
      indirect,
      inOrder,
      strongOrdering,
      oneRegion,
    } = setup;
    this.#setup = setup;
    this.#format = format;
    this.#region = setup.tracked
      ? new Uint8Array(inflightRegionSize(format, size))
      : null;
    // Of a large queue only a part is filled.
    const cells = Math.min(size, 1024) * TABLE_ENTRIES;
    const below = (cells >> 1) * CELL + 16;
    const above = cells * CELL - below;
    const table = round(16 * size);
    const driverArea = round(format === "split" ? 6 + 2 * size : 4);
    const deviceArea = round(format === "split" ? 6 + 8 * size : 4);
    const tables = indirect ? size * TABLE_ENTRIES * 16 : 0;
    const ring = table + driverArea + deviceArea + tables;
    if (oneRegion) {
      const buffer = new ArrayBuffer(16 + ring + cells * CELL);
      this.#bytes = new Uint8Array(buffer);
      this.#view = new DataView(buffer, 16);
      this.#belowAt = this.#aboveAt = 16 + ring;
      this.#dataStart = RING_START + ring;
      this.#border = Infinity;
      this.#regions = [{
        guestAddress: RING_START,
        size: ring + cells * CELL,
        buffer,
        byteOffset: 16,
      }];
    } else {
      this.#aboveAt = 16;
      const ringAt = this.#aboveAt + above;
      this.#belowAt = ringAt + ring;
      const buffer = new ArrayBuffer(this.#belowAt + below);
      this.#bytes = new Uint8Array(buffer);
      this.#view = new DataView(buffer, ringAt);
      this.#dataStart = DATA_START;
      this.#border = DATA_START + below;
      this.#regions = [
        { guestAddress: RING_START, size: ring, buffer, byteOffset: ringAt },
        {
          guestAddress: DATA_START,
          size: below,
          buffer,
          byteOffset: this.#belowAt,
        },
        {
          guestAddress: this.#border,
          size: above,
          buffer,
          byteOffset: this.#aboveAt,
        },
      ];
    }
    this.memory = new GuestMemory(this.#regions);
    this.config = {
      size,
      descriptorArea: RING_START,
      driverArea: RING_START + table,
      deviceArea: RING_START + table + driverArea,
      eventIdx,
      indirect,
      inOrder,
      strongOrdering,
    };
    this.#tables = RING_START + table + driverArea + deviceArea;
    this.driver = this.#newDriver();
    if (setup.device === undefined) this.device = this.newDevice();
    else {
      this.host = new QueueHost(setup, this.memory, this.config);
      this.device = this.host.start();
    }
    for (let i = 0; i < cells; i++) {
      this.#cells.push(this.#dataStart + (cells - 1 - i) * CELL);
    }
    this.#list = new BufferList(Math.max(size, TABLE_ENTRIES));
  }

  #newDriver(): DriverQueue {
    const foreign = this.sides.driver?.(this.memory, this.config);
    if (foreign !== undefined) return foreign;
    const options = this.config.indirect
      ? { indirect: { address: this.#tables, entries: TABLE_ENTRIES } }
      : {};
    return this.#format === "split"
      ? new SplitDriver(this.memory, this.config, options)
      : new PackedDriver(this.memory, this.config, options);
  }

  /** The driver makes the queue anew. */
  replaceDriver(): void {
    this.driver = this.#newDriver();
  }

  /**
   * Makes a device side over the ring, fresh or from a state; where buffers in flight are noted in a
   * region, that is set up anew.
   */
  newDevice(state?: QueueState): DeviceQueue {
    const foreign = this.sides.device?.(this.memory, this.config);
    if (foreign !== undefined) return foreign;
    const device = this.#newQueue(state);
    if (this.#region === null) return device;
    const region = this.#openRegion(this.#region);
    region.initialize(state ?? initialQueueState(this.#format));
    return new TrackedQueue(device, region);
  }

  /** Makes a device side from what the region says. */
  recoverDevice(): DeviceQueue {
    const region = this.#openRegion(this.#region!);
    if (!region.initialized) {
      throw new Violation("exactly-once", "the region is not set up");
    }
    return new TrackedQueue(this.#newQueue(region.recover()), region);
  }

  /** Whether the region, where there is one or `anyway`, can tell of a state. */
  regionTakes(state: QueueState, anyway = false): boolean {
    return (this.#region === null && !anyway) || state.format === "split" ||
      state.inFlight.length === 0;
  }

  /** A state by way of a region of buffers in flight that is set up for it. */
  throughRegion(state: QueueState): QueueState {
    const { size } = this.config;
    const bytes = new Uint8Array(inflightRegionSize(this.#format, size));
    this.#openRegion(bytes).initialize(state);
    return this.#openRegion(bytes).recover();
  }

  #newQueue(state?: QueueState): SplitDevice | PackedDevice {
    return this.#format === "split"
      ? new SplitDevice(this.memory, this.config, state)
      : new PackedDevice(this.memory, this.config, state);
  }

  #openRegion(bytes: Uint8Array): InflightRegion {
    return openInflight(this.#format, bytes, this.memory, this.config);
  }

  /** Index that the driver of a split ring has published, as it stands in memory. */
  get availIdx(): number {
    return this.#view.getUint16(this.config.driverArea - RING_START + 2, true);
  }

  /** Index that the device of a split ring has published, as it stands in memory. */
  get usedIdx(): number {
    return this.#view.getUint16(this.config.deviceArea - RING_START + 2, true);
  }

  /** What its devices can write. */
  get buffers(): ArrayBufferLike[] {
    const region = this.#region === null ? [] : [this.#region.buffer];
    return [this.#bytes.buffer, ...region];
  }

  /** A copy of all memory, with the region of buffers in flight. */
  copyMemory(): Uint8Array {
    const region = this.#region ?? new Uint8Array(0);
    const copy = new Uint8Array(this.#bytes.length + region.length);
    copy.set(this.#bytes);
    copy.set(region, this.#bytes.length);
    return copy;
  }

  /** Checks that memory is as it was. */
  expectMemory(invariant: string, what: string, before: Uint8Array): void {
    const now = this.copyMemory();
    const at = now.findIndex((byte, i) => byte !== before[i]);
    if (at < 0) return;
    throw new Violation(
      invariant,
      `${what} changes byte ${at} of memory from ${before[at]} to ${now[at]}`,
    );
  }

  /** Puts another device side in the place of this one. */
  replaceDevice(device: DeviceQueue, restored: number): void {
    this.device = device;
    this.restored = restored;
    this.#spare.push(...this.#chains.values());
    this.#chains.clear();
  }

  /** Takes memory for `count` segments; undefined where there is none. */
  takeCells(count: number): number[] | undefined {
    return count > this.#cells.length ? undefined : this.#cells.splice(-count);
  }

  /** Gives memory back that was not offered. */
  returnCells(cells: readonly number[]): void {
    this.#cells.push(...cells);
  }

  /** Adds buffers, with their bytes filled, at once where they are more than one; the tokens of those that found room. */
  addAll(buffers: readonly Omit<Exposed, "token">[]): number[] {
    const { driver } = this;
    if (buffers.length > 1 && isBatchDriver(driver)) {
      const lists = buffers.map((buffer) => this.#fill(buffer));
      const tokens = new Uint32Array(buffers.length);
      return [...tokens.subarray(0, driver.addBatch(lists, tokens))];
    }
    const tokens: number[] = [];
    for (const buffer of buffers) {
      const token = driver.add(this.#fill(buffer, this.#list));
      if (token < 0) break;
      tokens.push(token);
    }
    return tokens;
  }

  #fill(
    { generation, segments }: Omit<Exposed, "token">,
    list: BufferList = new BufferList(segments.length),
  ): BufferList {
    list.clear();
    for (const { address, length, writable } of segments) {
      for (let i = 0; i < CELL; i++) {
        this.#bytes[this.#at(address + i)] = !writable && i < length
          ? this.#offered(generation, address, i)
          : UNTOUCHED;
      }
      if (writable) list.addWritable(address, length);
      else list.addReadable(address, length);
    }
    return list;
  }

  /** Takes up to `count` used buffers back at once, where the driver can; their tokens and used lengths. */
  reclaimBatch(count: number): [number, number][] {
    const { driver } = this;
    const most = Math.min(count, 16);
    if (!isBatchDriver(driver)) {
      const token = driver.reclaim();
      return token < 0 ? [] : [[token, driver.usedLength]];
    }
    const tokens = new Uint32Array(most);
    const lengths = new Float64Array(most);
    const number = driver.reclaimBatch(tokens, lengths);
    return Array.from(tokens.subarray(0, number), (token, i) => [
      token,
      lengths[i]!,
    ]);
  }

  /**
   * Spoils the ids of all but the last descriptor of a buffer that was just added at `position` of a packed
   * ring: they are reserved, and whoever reads them is wrong (virtio 1.4, 2.8.6).
   */
  spoilIds(position: number, slots: number): void {
    const { size, descriptorArea } = this.config;
    const ring = this.memory.bytes(descriptorArea, size * 16);
    for (let i = 0; i < slots - 1; i++) {
      const at = (position + i) % size * 16 + 12;
      ring[at] = ~ring[at]!;
    }
  }

  /** Sends `count` buffers of one readable byte round, a ring at a time. */
  goRound(count: number): void {
    const { driver, device } = this;
    const list = this.#list.clear().addReadable(this.#dataStart, 1);
    const chain = new Chain(this.memory, 2);
    let came = 0;
    for (let left = count; left > 0; left -= this.config.size) {
      const batch = Math.min(left, this.config.size);
      for (let i = 0; i < batch; i++) driver.add(list);
      driver.publish();
      // Bounded, since a device that is wrong may find buffers for ever.
      for (let i = 0; i < batch && device.pop(chain); i++) {
        device.push(chain.token, 0);
      }
      device.publish();
      for (let i = 0; i < batch && driver.reclaim() >= 0; i++) came++;
    }
    if (came !== count) {
      throw new Violation("exactly-once", `${came} of ${count} came back`);
    }
  }

  /** Fetches; the token, or -1. The chain is kept until the buffer is completed or given back. */
  fetch(): number {
    const chain = this.#spare.pop() ?? new Chain(this.memory, 2);
    if (!this.device.pop(chain)) {
      this.#spare.push(chain);
      return -1;
    }
    this.#chains.set(chain.token, chain);
    return chain.token;
  }

  /** Which segments a fetched buffer has, and the bytes in the readable ones. */
  seen(token: number): string {
    const chain = this.#chains.get(token)!;
    const bytes = new Uint8Array(chain.readableBytes);
    chain.read(bytes);
    const { count, readable, readableBytes, writableBytes } = chain;
    return `${readable} of ${count} segments, ${readableBytes} and ${writableBytes} bytes, ${bytes}`;
  }

  /** Fetches up to `count` buffers at once, where the device can; their tokens. */
  fetchBatch(count: number): number[] {
    const { device } = this;
    if (!isBatchQueue(device)) return this.#fetchOne();
    const batch = this.#batch ??= new ChainBatch(this.memory, 16, 4);
    const tokens: number[] = [];
    const number = device.popBatch(batch, Math.min(count, batch.capacity));
    for (let i = 0; i < number; i++) {
      const chain = this.#spare.pop() ?? new Chain(this.memory, 2);
      batch.copyTo(i, chain);
      this.#chains.set(chain.token, chain);
      tokens.push(chain.token);
    }
    return tokens;
  }

  #fetchOne(): number[] {
    const token = this.fetch();
    return token < 0 ? [] : [token];
  }

  /** Writes to buffers that were fetched at once, and completes them so. */
  completeBatch(buffers: readonly Exposed[], written: readonly number[]): void {
    const { device } = this;
    if (!isBatchQueue(device)) {
      for (const [i, buffer] of buffers.entries()) {
        this.complete(buffer, written[i]!);
      }
      return;
    }
    const batch = this.#batch!;
    expectSame("fetch-order", "batch.count", batch.count, buffers.length);
    for (const [i, buffer] of buffers.entries()) {
      this.#write(buffer, written[i]!);
      batch.written[i] = written[i]!;
      this.#drop(buffer.token);
    }
    device.pushBatch(batch);
    expectSame("exactly-once", "batch.count after", batch.count, 0);
  }

  /** The device goes on over another table of the same memory. */
  rebind(): void {
    this.memory = new GuestMemory(this.#regions);
    if (this.host === null) this.device.rebind(this.memory);
    else this.host.rebind(this.memory);
    for (const chain of this.#chains.values()) chain.memory = this.memory;
  }

  /** Checks that the chain of a fetched buffer is what the driver offered, byte by byte. */
  checkFetched({ token, generation, segments }: Exposed): void {
    const chain = this.#chains.get(token)!;
    if (chain.fault !== null) {
      const { fault } = chain;
      throw new Violation("bytes", `buffer ${token}: ${fault.message}`, fault);
    }
    const found: string[] = [];
    for (let i = 0; i < chain.count; i++) {
      const { guestAddress } = chain.memory.regions[chain.region[i]!]!;
      const kind = i < chain.readable ? "r" : "w";
      found.push(
        `${kind}${guestAddress + chain.offset[i]!}+${chain.length[i]}`,
      );
    }
    const expected: string[] = [];
    for (const { address, length, writable } of segments) {
      const kind = writable ? "w" : "r";
      const below = Math.max(0, Math.min(length, this.#border - address));
      if (below > 0) expected.push(`${kind}${address}+${below}`);
      if (length > below) {
        expected.push(`${kind}${address + below}+${length - below}`);
      }
    }
    if (found.join() !== expected.join()) {
      throw new Violation(
        "bytes",
        `buffer ${token} has segments ${found}, expected ${expected}`,
      );
    }
    const bytes = new Uint8Array(chain.readableBytes + 1);
    const count = chain.read(bytes);
    let at = 0;
    for (const { address, length, writable } of segments) {
      for (let i = 0; i < length && !writable; i++, at++) {
        if (bytes[at] !== this.#offered(generation, address, i)) {
          throw new Violation("bytes", `buffer ${token}: readable byte ${at}`);
        }
      }
    }
    if (count !== at) {
      throw new Violation(
        "bytes",
        `buffer ${token} gives ${count} readable bytes, expected ${at}`,
      );
    }
  }

  /** Gives a fetched buffer back to the ring. */
  unpop(token: number): void {
    this.device.unpop(token);
    this.#drop(token);
  }

  /** Writes `written` bytes and completes the buffer. */
  complete(buffer: Exposed, written: number): void {
    this.#write(buffer, written);
    this.device.push(buffer.token, written);
    this.#drop(buffer.token);
  }

  #write({ token, generation }: Exposed, written: number): void {
    const bytes = new Uint8Array(written);
    for (let i = 0; i < written; i++) bytes[i] = answered(generation, i);
    const fitted = this.#chains.get(token)!.write(bytes);
    if (fitted !== written) {
      throw new Violation(
        "bytes",
        `buffer ${token} has room for ${fitted} bytes, expected ${written}`,
      );
    }
  }

  /** Completes a buffer that cannot be completed now, which has to be refused. */
  refuse(token: number, invariant: string): void {
    try {
      this.device.push(token, 0);
    } catch (error) {
      if (error instanceof RangeError) return;
      throw error;
    }
    throw new Violation(
      invariant,
      `push() takes buffer ${token}, which was completed before or is not its turn`,
    );
  }

  /** Checks that a reclaimed buffer holds what was written, and nothing else was touched; frees its memory. */
  checkReclaimed(
    { token, generation, segments, written, touched }: Exposed,
  ): void {
    const wrote = Math.max(written, touched);
    let at = 0;
    for (const { address, length, writable } of segments) {
      for (let i = 0; i < CELL; i++) {
        let expected = UNTOUCHED;
        if (i < length && !writable) {
          expected = this.#offered(generation, address, i);
        }
        if (i < length && writable) {
          if (at < wrote) expected = answered(generation, at);
          at++;
        }
        const found = this.#bytes[this.#at(address + i)];
        if (found !== expected) {
          const kind = writable ? "writable" : "readable";
          throw new Violation(
            !writable || i >= length ? "readable-untouched" : "bytes",
            `buffer ${token}: byte ${i} of a ${kind} segment of ${length} is ${found}, expected ${expected}`,
          );
        }
      }
      this.#cells.unshift(address);
    }
  }

  /** Checks that what a device may only read is untouched in a buffer that a reset gave back; frees its memory. */
  checkCancelled({ token, generation, segments }: Exposed): void {
    for (const { address, length, writable } of segments) {
      for (let i = 0; i < CELL; i++) {
        const found = this.#bytes[this.#at(address + i)];
        const expected = i < length
          ? this.#offered(generation, address, i)
          : UNTOUCHED;
        if ((i < length && writable) || found === expected) continue;
        throw new Violation(
          "readable-untouched",
          `buffer ${token}: byte ${i} of a segment of ${length} is ${found}, expected ${expected}`,
        );
      }
      this.#cells.unshift(address);
    }
  }

  #drop(token: number): void {
    this.#spare.push(this.#chains.get(token)!);
    this.#chains.delete(token);
  }

  /** What the driver puts into byte `i` of a readable segment; it depends on its place, and not on where the data lie. */
  #offered(generation: number, address: number, i: number): number {
    const place = address - this.#dataStart;
    return (generation * 167 + place * 7 + i * 31 + 13) & 0xff;
  }

  #at(address: number): number {
    return address < this.#border
      ? this.#belowAt + address - this.#dataStart
      : this.#aboveAt + address - this.#border;
  }
}

function isBatchDriver(queue: DriverQueue): queue is BatchDriverQueue {
  return "addBatch" in queue;
}

function isBatchQueue(queue: DeviceQueue): queue is BatchDeviceQueue {
  return "popBatch" in queue;
}

function round(bytes: number): number {
  return Math.ceil(bytes / 16) * 16;
}
