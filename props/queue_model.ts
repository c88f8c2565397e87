/**
 * What a virtqueue and its two sides promise, as bookkeeping of its own: it imports nothing of what it
 * judges and never looks at the ring.
 *
 * @module
 */

import { Violation } from "./violation.ts";

/** What was negotiated for the device around a queue; what is not told was not. */
export type DeviceFeatures = {
  /** Bit 40: VIRTIO_F_RING_RESET, or VIRTIO_F_QUEUE_STATE, which exclude each other. */
  bit40: "none" | "reset" | "state";
  /** VIRTIO_F_SUSPEND. */
  suspend: boolean;
  /** VIRTIO_F_NOTIFICATION_DATA. */
  notificationData: boolean;
  /** VIRTIO_F_NOTIF_CONFIG_DATA. */
  configData: boolean;
  /** VIRTIO_F_ORDER_PLATFORM. */
  orderPlatform: boolean;
};

/** What a queue is set up with, plain data. */
export type QueueSetup = {
  format: "split" | "packed";
  /** Descriptors. */
  size: number;
  eventIdx: boolean;
  indirect: boolean;
  inOrder: boolean;
  strongOrdering: boolean;
  /** Ring and buffers lie in one region; otherwise in three. */
  oneRegion: boolean;
  /** Buffers that have gone round before the script begins. */
  start: number;
  /** The queue is one of a whole virtio device, with these features; bare unless told. */
  device?: DeviceFeatures;
  /** Buffers in flight are noted in a region outside of the device; not unless told. */
  tracked?: boolean;
};

/** Descriptors in each indirect table; a longer buffer is chained in the ring. */
export const TABLE_ENTRIES = 4;

/** A piece of a buffer. */
export type Segment = { address: number; length: number; writable: boolean };

/** A buffer that the driver has exposed. A token is free again at once, so its generation tells it apart. */
export type Exposed = {
  /** Number of the `add()`, never used again. */
  generation: number;
  /** What `add()` returned. */
  token: number;
  /** Readable ones first. */
  segments: Segment[];
  /** Descriptors of the ring that it takes. */
  slots: number;
  /** Bytes of all writable segments. */
  writableBytes: number;
  /** Bytes that the device said it wrote. */
  written: number;
  /** Bytes that a device wrote which was gone before it could tell. */
  touched: number;
  /** Something that was fetched later was used before it, so its fetching cannot be taken back. */
  overtaken: boolean;
};

/** Period after which a free-running split index says the same again. */
const SPLIT_PERIOD = 0x1_0000;

/**
 * One direction of notifications: what the listener asked for last, and what the teller may and must answer.
 *
 * Positions are absolute: nothing wraps here, so an answer that is wrong at a wrap is seen.
 */
export class Listening {
  /** Told of everything, of nothing, or of the position that is passed. */
  wish: "all" | "none" | number;
  /** The listener gave a hint that it needs nothing, which the teller may not see. */
  hinted = false;
  /** The next answer has to be yes, since an earlier notification may be lost. */
  forced = false;
  /** Position at the last answer. */
  decided = 0;
  readonly #eventIdx: boolean;
  readonly #period: number;
  readonly #lap: number;

  /** @param setup The queue's. */
  constructor(setup: QueueSetup) {
    const split = setup.format === "split";
    this.#eventIdx = setup.eventIdx;
    this.#period = split ? SPLIT_PERIOD : 2 * setup.size;
    this.#lap = split ? SPLIT_PERIOD - 1 : setup.size;
    // The areas begin as zeros: an event index of 0, or the flags that enable.
    this.wish = split && setup.eventIdx ? 0 : "all";
  }

  /** The listener wants to know of what comes at `position`. */
  arm(position: number): void {
    this.wish = this.#eventIdx ? position : "all";
    this.hinted = false;
  }

  /** The listener needs nothing: with an event index it is a hint, without it is exact. */
  disarm(): void {
    if (this.#eventIdx) this.hinted = true;
    else this.wish = "none";
  }

  /** Judges the teller's answer, given with `position` reached. */
  judge(name: string, answer: boolean, position: number): void {
    const from = this.decided;
    this.decided = position;
    const forced = this.forced;
    this.forced = false;
    const [must, may] = forced ? [true, true] : this.#bounds(from, position);
    if (must && !answer) {
      throw new Violation(
        "progress",
        `${name} is false, but ${this.#text()} and ${from} to ${position} is news`,
      );
    }
    if (!may && answer) {
      throw new Violation(
        "suppression",
        `${name} is true, but ${this.#text()} and ${from} to ${position} is news`,
      );
    }
  }

  #bounds(from: number, to: number): [boolean, boolean] {
    const { wish } = this;
    if (from === to || wish === "none") return [false, false];
    if (wish === "all") return [!this.hinted, true];
    // An old event looks like a new one after a period, and beyond a lap nothing can be told.
    const back = to - 1 - wish;
    const alias = back >= 0 && back % this.#period < to - from;
    const passed = wish >= from && wish < to;
    return [passed && !this.hinted, alias || to - from > this.#lap];
  }

  #text(): string {
    return typeof this.wish === "number"
      ? `the other side waits for position ${this.wish}`
      : `the other side wants ${this.wish}`;
  }
}

/** Where every buffer of a queue is; the lists are in order, first come first. */
export class QueueModel {
  /** The queue's. */
  readonly setup: QueueSetup;
  /** Added, not yet published. */
  staged: Exposed[] = [];
  /** Published, not fetched. */
  available: Exposed[] = [];
  /** In flight when the device was saved, and not handed out again. */
  waiting: Exposed[] = [];
  /** Fetched, not completed. */
  fetched: Exposed[] = [];
  /** Completed, not yet published. */
  completed: Exposed[] = [];
  /** Published by the device, not reclaimed. */
  used: Exposed[] = [];
  /** All of them, by token. */
  readonly owners: Map<number, Exposed> = new Map();
  /** Fetches of this device since it was made, and not given back; completed ones stay. */
  history: Exposed[] = [];
  /** What was fetched at once, last. */
  batch: Exposed[] = [];
  /** Kicks, as the device asks for them. */
  kicks: Listening;
  /** Interrupts, as the driver asks for them. */
  interrupts: Listening;
  /** The device waits for a kick. */
  deviceAsleep = false;
  /** The driver waits for an interrupt. */
  driverAsleep = false;
  /** Descriptors that `add()` can take. */
  free: number;
  /** Absolute position behind what the driver published. */
  published = 0;
  /** Absolute position behind what the driver reclaimed. */
  reclaimed = 0;
  /** The device has the queue; not while it is suspended. */
  running = true;
  #generation = 0;

  /** @param setup The queue's. */
  constructor(setup: QueueSetup) {
    this.setup = setup;
    this.free = setup.size;
    this.kicks = new Listening(setup);
    this.interrupts = new Listening(setup);
  }

  /** Counts of the ring's positions that a buffer takes: entries of the available ring, or descriptors. */
  places(buffers: readonly Exposed[]): number {
    if (this.setup.format === "split") return buffers.length;
    let sum = 0;
    for (const { slots } of buffers) sum += slots;
    return sum;
  }

  /** Absolute position of the next buffer that the device fetches from the ring. */
  get availPosition(): number {
    return this.published - this.places(this.available);
  }

  /** Absolute position behind what the device published as used. */
  get usedPosition(): number {
    return this.reclaimed + this.places(this.used);
  }

  /** Buffers that the device has to use: handed out ones, then those that wait for it again. */
  get unused(): Exposed[] {
    return [...this.fetched, ...this.waiting];
  }

  /** Buffers that were added and not reclaimed. */
  get exposed(): number {
    return this.owners.size;
  }

  /** Descriptors that a buffer of `count` segments takes. */
  slotsFor(count: number): number {
    return this.isIndirect(count) ? 1 : count;
  }

  /** Whether a buffer of `count` segments goes through a table. */
  isIndirect(count: number): boolean {
    return this.setup.indirect && count > 1 && count <= TABLE_ENTRIES;
  }

  /** Number that the next buffer gets. */
  nextGeneration(): number {
    return ++this.#generation;
  }

  /** Takes a buffer in; its token must not be any other's. */
  add(buffer: Exposed): void {
    const { token, slots } = buffer;
    if (!(token >= 0 && token < this.setup.size) || this.owners.has(token)) {
      throw new Violation(
        "exactly-once",
        `add() returned token ${token}, which is ${
          this.owners.has(token) ? "in use" : "out of range"
        }`,
      );
    }
    this.owners.set(token, buffer);
    this.free -= slots;
    this.staged.push(buffer);
  }

  /** The driver publishes. */
  publish(): void {
    this.published += this.places(this.staged);
    this.available.push(...this.staged);
    this.staged = [];
  }

  /** The next buffer that the device must get, or undefined. */
  get next(): Exposed | undefined {
    return this.waiting[0] ?? this.available[0];
  }

  /** Whether a buffer is among those that the device may get at some time. */
  isNext(token: number): boolean {
    return [...this.waiting, ...this.available].some((buffer) =>
      buffer.token === token
    );
  }

  /** The buffer that was made available before all others that are not back. */
  get oldest(): Exposed | undefined {
    // A token that comes again is entered again.
    return this.owners.values().next().value;
  }

  /** The device fetches it. */
  fetch(): void {
    const list = this.waiting.length > 0 ? this.waiting : this.available;
    const buffer = list.shift()!;
    this.fetched.push(buffer);
    this.history.push(buffer);
    this.deviceAsleep = false;
  }

  /** The buffer that the device may give back: the last fetched one, unless it was completed. */
  get lastFetched(): Exposed | undefined {
    const last = this.history.at(-1);
    return last !== undefined && last === this.fetched.at(-1)
      ? last
      : undefined;
  }

  /**
   * The device gives back {@link QueueModel.lastFetched}.
   *
   * @param restored Buffers of this device's history that were handed out from a saved state.
   */
  unpop(restored: number): void {
    const buffer = this.fetched.pop()!;
    this.history.pop();
    const list = this.history.length < restored ? this.waiting : this.available;
    list.unshift(buffer);
    this.deviceAsleep = false;
  }

  /** The device completes the buffer at `index` of {@link QueueModel.fetched}. */
  complete(index: number, written: number): void {
    const [buffer] = this.fetched.splice(index, 1);
    buffer!.written = written;
    this.completed.push(buffer!);
  }

  /** Whether all that was fetched at once can be completed at once. */
  get canCompleteBatch(): boolean {
    const { batch, fetched } = this;
    return batch.length > 0 &&
      batch.every((buffer, i) =>
        this.setup.inOrder ? fetched[i] === buffer : fetched.includes(buffer)
      );
  }

  /** The device publishes. */
  publishUsed(): void {
    let last = 0;
    for (const { generation } of this.completed) {
      last = Math.max(last, generation);
    }
    for (const buffer of last === 0 ? [] : this.unused) {
      if (buffer.generation < last) buffer.overtaken = true;
    }
    this.used.push(...this.completed);
    this.completed = [];
  }

  /** The driver reclaims the first used buffer. */
  reclaim(): void {
    const buffer = this.used.shift()!;
    this.reclaimed += this.places([buffer]);
    this.owners.delete(buffer.token);
    this.free += buffer.slots;
    this.driverAsleep = false;
  }

  /**
   * The device is gone; another one goes on, and what was told but not heard is lost.
   *
   * @param rewound Fetching was taken back, so buffers in flight stand in the ring again.
   */
  restored(rewound: boolean): void {
    const unused = this.unused;
    if (rewound) this.available.unshift(...unused);
    this.waiting = rewound ? [] : unused;
    this.fetched = [];
    this.history = [];
    this.batch = [];
    this.deviceAsleep = false;
    this.kicks.arm(this.availPosition);
    this.interrupts.forced = true;
  }

  /**
   * The device is gone without a word: what it completed and did not publish is in flight again, and all
   * that is comes in the order of the first fetch, which is that in which it was added.
   */
  died(): void {
    for (const buffer of this.completed) {
      buffer.touched = Math.max(buffer.touched, buffer.written);
      buffer.written = 0;
    }
    const unused = [...this.unused, ...this.completed];
    unused.sort((a, b) => a.generation - b.generation);
    this.completed = [];
    this.fetched = [];
    this.waiting = unused;
  }

  /** The queue is reset and starts anew, empty on both sides; its buffers are the driver's again. */
  reset(): void {
    this.staged = [];
    this.available = [];
    this.waiting = [];
    this.fetched = [];
    this.completed = [];
    this.used = [];
    this.history = [];
    this.batch = [];
    this.owners.clear();
    this.free = this.setup.size;
    this.published = 0;
    this.reclaimed = 0;
    this.running = true;
    this.deviceAsleep = false;
    this.driverAsleep = false;
    this.kicks = new Listening(this.setup);
    this.interrupts = new Listening(this.setup);
  }

  /** Whether the fetching of all buffers in flight can be taken back. */
  get canRewind(): boolean {
    return this.unused.every(({ overtaken }) => !overtaken);
  }
}
