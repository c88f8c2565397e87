import type { Chain } from "./chain.ts";
import type { ChainBatch } from "./chain_batch.ts";
import type { GuestMemory } from "./memory.ts";
import { VIRTQ_DESC_F_WRITE } from "./virtio_ring.ts";

const TWO_32 = 0x100000000;

/** How a virtqueue is laid out in memory. */
export type RingFormat = "split" | "packed";

/** Where a virtqueue lies and what was negotiated for it. */
export type QueueConfig = {
  /** Descriptors, 1 to 32768; a power of two for a split queue. */
  size: number;
  /** Guest address of the descriptor area; a multiple of 16. */
  descriptorArea: number;
  /** Guest address of the driver area: avail ring (multiple of 2) or event structure (of 4). */
  driverArea: number;
  /** Guest address of the device area: used ring or event structure; a multiple of 4. */
  deviceArea: number;
  /** VIRTIO_F_EVENT_IDX was negotiated. False unless told. */
  eventIdx?: boolean;
  /** VIRTIO_F_INDIRECT_DESC was negotiated. False unless told. */
  indirect?: boolean;
  /**
   * VIRTIO_F_IN_ORDER was negotiated (2.7.9, 2.8.8): buffers are used in the order in which they were made
   * available, and a device may tell of several by one used entry. False unless told.
   */
  inOrder?: boolean;
  /**
   * Plain reads of this machine stay in order, as on x86 (total store order), or no other thread or process
   * shares the memory. Two things are read plainly then: a run of packed flags, with one atomic load at its end
   * instead of one a buffer; and what the driver wants to be told of, behind the atomic store that publishes. False,
   * which is right everywhere, unless told.
   */
  strongOrdering?: boolean;
};

/** One descriptor of a buffer in flight, copied out of the ring. */
export type InFlightDescriptor = {
  /** Guest address, below 2^53. */
  addr: number;
  /** Bytes. */
  len: number;
  /** VIRTQ_DESC_F_WRITE or 0; an indirect table is resolved when it is saved. */
  writable: boolean;
};

/** A buffer that the device fetched and has not used. */
export type InFlightBuffer = {
  /** Split: index of the head. Packed: buffer id. */
  id: number;
  /** Descriptors that it takes in the ring (an indirect one takes 1). */
  slots: number;
  /** Its segments, readable ones first; none where it was malformed, which it still is when restored. */
  descriptors: InFlightDescriptor[];
};

/**
 * State of a virtqueue's device side between two descriptors: plain data that survives JSON and
 * `structuredClone`, and is not trusted on the way in.
 *
 * The split indices run freely mod 2^16; its `usedIdx` is the value that stands in memory. The
 * packed ones are below the queue's size and have a wrap counter, 1 at first.
 */
export type QueueState =
  | {
    format: "split";
    lastAvailIdx: number;
    usedIdx: number;
    /** In the order in which they were fetched. */
    inFlight: InFlightBuffer[];
  }
  | {
    format: "packed";
    lastAvailIdx: number;
    lastAvailWrapCounter: 0 | 1;
    usedIdx: number;
    usedWrapCounter: 0 | 1;
    /** In the order in which they were fetched. */
    inFlight: InFlightBuffer[];
  };

/**
 * Device side of a virtqueue.
 *
 * One batch is: `disarmKicks()`, `pop()` until false, `push()` for each, `publish()` once,
 * interrupt if `needsInterrupt()`, then `armKicks()` and over again if that says so.
 */
export interface DeviceQueue {
  /** Split or packed. */
  readonly format: RingFormat;
  /** Descriptors. */
  readonly size: number;
  /** Buffers that were popped and not pushed. */
  readonly inFlight: number;
  /**
   * Where the next `push()` writes: entry of the used ring (split) or descriptor (packed). With
   * VIRTIO_F_IN_ORDER it may be the place of the last `push()` again.
   */
  readonly usedPosition: number;

  /**
   * Fetches the next available buffer into `chain`; false where there is none.
   *
   * A malformed buffer comes with `chain.fault` set and no segments: push its token with 0.
   * A restored queue hands out its in-flight buffers first, in the order of their first fetch; one that
   * was malformed then has a `BAD_QUEUE_STATE` fault.
   *
   * @throws {RingError} with `fatal` when the ring itself is broken; then at each further call.
   */
  pop(chain: Chain): boolean;

  /**
   * Gives back a buffer that was popped and not pushed; the next `pop()` fetches it again. May be
   * repeated: buffers are given back from the last fetched one on, so that those which remain
   * were all fetched before it.
   *
   * @throws {TypeError} when `token` is not in flight, or is not the last fetched buffer.
   */
  unpop(token: number): void;

  /**
   * Stages the completion of a buffer with `written` bytes in its writable part; the driver
   * does not see it before `publish()`. A buffer may be pushed in any order, unless
   * VIRTIO_F_IN_ORDER was negotiated: then in the order in which they were fetched.
   *
   * With VIRTIO_F_IN_ORDER, buffers that are published together and were used completely (`written`
   * is all of their writable bytes) are told by the entry of the next one, since a driver takes
   * a buffer without an entry of its own for used completely. Any other has its own entry, so that no
   * length is lost.
   *
   * @throws {RangeError} when `token` is not in flight, or not the first fetched of those in flight where
   * the order counts.
   */
  push(token: number, written: number): void;

  /** Makes all staged completions visible to the driver; false where there were none. */
  publish(): boolean;

  /** Tells, after `publish()`, whether the driver wants an interrupt for what was published. */
  needsInterrupt(): boolean;

  /** Asks the driver for kicks; true when work arrived meanwhile, so that one may be missed. */
  armKicks(): boolean;

  /** Tells the driver that kicks are not needed; a hint, which it may not see at once. */
  disarmKicks(): void;

  /**
   * State from which another instance goes on, with the buffers in flight; changes nothing.
   *
   * @throws {TypeError} when completions are staged that were not published.
   */
  save(): QueueState;

  /**
   * Goes on over the same guest addresses in `memory`: a memory table that changed, or a buffer
   * that moved. Segments in chains popped before belong to the old memory.
   *
   * @throws {RingError} `BAD_QUEUE_ADDRESS` when the ring is not inside it; the queue is unchanged.
   */
  rebind(memory: GuestMemory): void;
}

/**
 * A device queue that also fetches and completes buffers many at a time, which costs less a buffer. Both ways may be
 * mixed: what `popBatch()` fetched may be completed by `push()`, and the other way round.
 */
export interface BatchDeviceQueue extends DeviceQueue {
  /**
   * Fetches available buffers into `batch`, up to its capacity and up to `most`; how many, 0 only where there are
   * none.
   *
   * A malformed buffer comes with a fault and no segments, as by `pop()`. The work is bounded by the buffers that
   * are asked for, each up to the size of the largest table.
   *
   * @throws {RingError} with `fatal` when the ring itself is broken. Buffers before that place are handed out
   * first: then the next call throws.
   */
  popBatch(batch: ChainBatch, most?: number): number;

  /**
   * Stages the completion of all buffers in `batch`, each with `batch.written` bytes, in the order in which they
   * were fetched, and leaves the batch empty.
   *
   * @throws {RangeError} as `push()` does; buffers before the one that is refused are staged.
   */
  pushBatch(batch: ChainBatch): void;
}

/**
 * Segments of a buffer that a driver offers: reusable columns, readable ones first.
 *
 * They are to be read only: what a queue puts into its descriptors is made by `addReadable()`, `addWritable()` and
 * `setLength()`.
 */
export class BufferList {
  /** Segments in all. */
  count = 0;
  /** Segments that the device reads. */
  readable = 0;
  /** Guest address, by segment. */
  address: Float64Array;
  /** Bytes, by segment. */
  length: Uint32Array;
  /** Bytes in all. */
  bytes = 0;
  /** Bytes that the device may write. */
  writableBytes = 0;
  /** Four words a segment, as a descriptor has them: address, low word first, length, VIRTQ_DESC_F_WRITE or 0. */
  words: Uint32Array;

  /** Makes an empty list with room for `capacity` segments. */
  constructor(capacity = 32) {
    this.address = new Float64Array(capacity);
    this.length = new Uint32Array(capacity);
    this.words = new Uint32Array(capacity * 4);
  }

  /** Forgets the segments; returns itself. */
  clear(): this {
    this.count = 0;
    this.readable = 0;
    this.bytes = 0;
    this.writableBytes = 0;
    return this;
  }

  /**
   * Appends a segment that the device reads; returns itself.
   *
   * @throws {TypeError} when a writable segment is there already (2.7.4.2).
   */
  addReadable(address: number, length: number): this {
    if (this.readable !== this.count) {
      throw new TypeError(
        "Cannot add a readable segment: a writable one comes before it",
      );
    }
    this.#add(address, length, 0);
    this.readable = this.count;
    return this;
  }

  /** Appends a segment that the device writes; returns itself. */
  addWritable(address: number, length: number): this {
    this.#add(address, length, VIRTQ_DESC_F_WRITE);
    this.writableBytes += this.length[this.count - 1]!;
    return this;
  }

  /**
   * Gives segment `index` another length in bytes.
   *
   * @throws {RangeError} when there is no such segment.
   */
  setLength(index: number, length: number): void {
    // Undefined for what is no index at all.
    const before = this.length[index];
    if (before === undefined || index >= this.count) {
      throw new RangeError(
        `Cannot change segment ${index}: there are ${this.count}`,
      );
    }
    this.length[index] = length;
    const after = this.length[index]!;
    this.words[index * 4 + 2] = after;
    this.bytes += after - before;
    if (index >= this.readable) this.writableBytes += after - before;
  }

  #add(address: number, length: number, flags: number): void {
    const i = this.count;
    if (i === this.address.length) {
      throw new RangeError(`Cannot add a segment: the list has room for ${i}`);
    }
    this.address[i] = address;
    this.length[i] = length;
    const { words } = this;
    words[i * 4] = address;
    words[i * 4 + 1] = address / TWO_32;
    words[i * 4 + 2] = length;
    words[i * 4 + 3] = flags;
    this.bytes += words[i * 4 + 2]!;
    this.count = i + 1;
  }
}

/** Memory that a driver queue may fill with indirect descriptor tables. */
export type IndirectTables = {
  /** Guest address; a multiple of 16. Bytes needed: queue size x entries x 16. */
  address: number;
  /** Descriptors in each table, 1 or more. */
  entries: number;
};

/**
 * Driver side of a virtqueue.
 *
 * The device is not trusted either: what it writes is checked before it is used.
 */
export interface DriverQueue {
  /** Split or packed. */
  readonly format: RingFormat;
  /** Descriptors. */
  readonly size: number;
  /** Buffers that were added and not reclaimed. */
  readonly inFlight: number;
  /** Descriptors that `add()` can still take. */
  readonly free: number;
  /** After `reclaim()` has returned a token: the bytes that the device says it wrote. */
  readonly usedLength: number;

  /**
   * Stages a buffer of one or more segments; the device does not see it before `publish()`.
   *
   * Returns its token, 0 to size - 1, which is free again once reclaimed; -1 where there is no
   * room. With indirect tables a buffer of two or more segments takes one descriptor.
   *
   * @throws {RangeError} when the list is empty or can never fit.
   */
  add(buffers: BufferList): number;

  /** Makes all staged buffers visible to the device; false where there were none. */
  publish(): boolean;

  /** Tells, after `publish()`, whether the device wants a kick for what was published. */
  needsKick(): boolean;

  /**
   * What a kick carries where VIRTIO_F_NOTIFICATION_DATA was negotiated: an unsigned 32-bit value with
   * the place where the next buffer will be made available, after those that were published (2.9).
   *
   * `queue` is the queue's index, or what its device gave for it where VIRTIO_F_NOTIF_CONFIG_DATA was
   * negotiated.
   *
   * @throws {RangeError} when `queue` has more than 16 bits.
   */
  notificationData(queue: number): number;

  /**
   * Takes back one used buffer: its token, with `usedLength` set, or -1 where there is none.
   *
   * With VIRTIO_F_IN_ORDER a used entry can stand for several buffers. They are taken back one by one;
   * `usedLength` of those without an entry of their own is all of their writable bytes.
   *
   * @throws {RingError} when the device's entry is no lawful completion.
   */
  reclaim(): number;

  /** Asks the device for interrupts; true when a completion arrived meanwhile. */
  armInterrupts(): boolean;

  /** Tells the device that interrupts are not needed; a hint. */
  disarmInterrupts(): void;
}

/**
 * A driver queue that also adds and takes back buffers many at a time, which costs less a buffer. Both ways may be
 * mixed.
 */
export interface BatchDriverQueue extends DriverQueue {
  /**
   * Stages buffers, from the first of `lists` on, as long as there is room and up to the length of `tokens`; how
   * many. `tokens` gets the token of each.
   *
   * @throws {RangeError} as `add()` does; buffers before the one that is refused are staged.
   */
  addBatch(lists: readonly BufferList[], tokens: Uint32Array): number;

  /**
   * Takes back used buffers, up to the length of `tokens`; how many, 0 only where there are none. `tokens` gets
   * the token of each, `lengths` the bytes that the device says it wrote.
   *
   * @throws {RingError} as `reclaim()` does. Buffers before that place are handed out first: then the next call
   * throws.
   */
  reclaimBatch(tokens: Uint32Array, lengths: Float64Array): number;
}
