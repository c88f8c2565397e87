import { FLAGS, IDX, splitViews } from "./_split_layout.ts";
import { RingError, type RingErrorCode } from "./errors.ts";
import type { GuestMemory } from "./memory.ts";
import { encodeNotification, vringNeedEvent } from "./notify.ts";
import type {
  BatchDriverQueue,
  BufferList,
  IndirectTables,
  QueueConfig,
  RingFormat,
} from "./queue.ts";
import {
  VIRTQ_AVAIL_F_NO_INTERRUPT,
  VIRTQ_DESC_F_INDIRECT,
  VIRTQ_DESC_F_NEXT,
  VIRTQ_DESC_F_WRITE,
  VIRTQ_DESC_SIZE,
  VIRTQ_MAX_SIZE,
  VIRTQ_USED_F_NO_NOTIFY,
} from "./virtio_ring.ts";

// Copies, since a method that reads an imported constant pays for it (measured: 34 -> 30 ns).
const F_NEXT = VIRTQ_DESC_F_NEXT;
const F_WRITE = VIRTQ_DESC_F_WRITE;
const F_INDIRECT = VIRTQ_DESC_F_INDIRECT;
const AT_FLAGS = FLAGS;
const AT_IDX = IDX;
const TWO_32 = 0x100000000;

/** What `#limit` holds for a head that is no buffer's. */
const FREE = -1;
/** No buffer. */
const NONE = -1;

/** What a {@link SplitDriver} can be told. */
export type SplitDriverOptions = {
  /** Where it may build indirect tables; without it every buffer is a chain in the ring. */
  indirect?: IndirectTables;
};

/**
 * Driver side of a split virtqueue (virtio 1.4, 2.7.13 and 2.7.14).
 *
 * It owns the ring areas, which it clears when it is made. The device can write the used ring only,
 * but shares the memory of the rest: which descriptors belong to which buffer is kept here and never read
 * back from it.
 */
export class SplitDriver implements BatchDriverQueue {
  /** A split queue. */
  readonly format: RingFormat = "split";
  /** Descriptors. */
  readonly size: number;

  readonly #eventIdx: boolean;
  readonly #inOrder: boolean;
  readonly #mask: number;
  readonly #table: Uint32Array;
  readonly #availRing: Uint16Array;
  readonly #usedRing: Uint16Array;
  readonly #usedEntries: Uint32Array;

  // Free-running indices mod 2^16. Their order is
  // lastUsedIdx <= usedIdx <= availIdx <= nextAvailIdx, with at most `size` between the outer two:
  // reclaimed, last seen in the used ring, published, staged.
  #lastUsedIdx = 0;
  #usedIdx = 0;
  #availIdx = 0;
  #nextAvailIdx = 0;

  // The available index that the last kick decision saw.
  #kicked = 0;
  #kickedValid = true;
  #interruptsOff = false;

  // The free descriptors, linked by #next, in which a buffer's descriptors stay linked, too.
  #freeHead = 0;
  #free: number;
  readonly #next: Uint16Array;
  // By head: the buffer's last descriptor, how many it has, and its writable bytes or FREE.
  readonly #tail: Uint16Array;
  readonly #slots: Uint16Array;
  readonly #limit: Float64Array;
  // By head: when it was added; those from #publishedCount on are staged, not yet the device's to use.
  readonly #order: Float64Array;
  #addedCount = 0;
  #publishedCount = 0;
  #usedLength = 0;

  // In order: the heads by available index, and the last buffer of the batch that is being taken back, with
  // its length; NONE where there is no batch.
  readonly #heads: Uint16Array;
  #batchLast = NONE;
  #batchLength = 0;

  readonly #tables: Uint32Array;
  readonly #tablesAddress: number;
  readonly #tableEntries: number;

  #fault: RingError | null = null;

  /**
   * Makes a queue at `config` and clears its areas.
   *
   * With `options.indirect` (VIRTIO_F_INDIRECT_DESC negotiated) a buffer of 2 to `entries` segments takes
   * one descriptor and a table; a longer one is chained in the ring. The specification holds a table to the
   * queue's size (2.7.5.3.1), Linux does not: `entries` above the size is the caller's choice.
   *
   * @throws {RingError} `BAD_QUEUE_SIZE` or `BAD_QUEUE_ADDRESS`, the latter also for the tables.
   * @throws {TypeError} when tables are given but indirect descriptors were not negotiated.
   * @throws {RangeError} when `entries` is not 1 to 32768.
   */
  constructor(
    memory: GuestMemory,
    config: QueueConfig,
    options: SplitDriverOptions = {},
  ) {
    const views = splitViews(memory, config);
    const size = config.size;
    this.size = size;
    this.#mask = size - 1;
    this.#eventIdx = config.eventIdx === true;
    this.#inOrder = config.inOrder === true;
    this.#heads = new Uint16Array(this.#inOrder ? size : 0);
    this.#table = views.table;
    this.#availRing = views.avail;
    this.#usedRing = views.used;
    this.#usedEntries = views.usedRing;
    this.#free = size;
    this.#next = new Uint16Array(size);
    for (let i = 0; i < size; i++) this.#next[i] = i + 1;
    // In order, descriptors are taken and freed round the table (2.7.5).
    if (this.#inOrder) this.#next[size - 1] = 0;
    this.#tail = new Uint16Array(size);
    this.#slots = new Uint16Array(size);
    this.#limit = new Float64Array(size).fill(FREE);
    this.#order = new Float64Array(size);
    const indirect = options.indirect;
    this.#tables = indirect === undefined
      ? new Uint32Array(0)
      : tablesOf(memory, config, indirect);
    this.#tablesAddress = indirect === undefined ? 0 : indirect.address;
    this.#tableEntries = indirect === undefined ? 0 : indirect.entries;
    // Nothing is refused any more.
    views.table.fill(0);
    views.avail.fill(0);
    views.used.fill(0);
  }

  /** Buffers that were added and not reclaimed. */
  get inFlight(): number {
    return (this.#nextAvailIdx - this.#lastUsedIdx) & 0xffff;
  }

  /** Descriptors that `add()` can still take. */
  get free(): number {
    return this.#free;
  }

  /** After `reclaim()` has returned a token: the bytes that the device says it wrote. */
  get usedLength(): number {
    return this.#usedLength;
  }

  /**
   * Stages a buffer of one or more segments; the device does not see it before `publish()`.
   *
   * Returns its token, 0 to size - 1, which is free again once reclaimed; -1 where there is no
   * room. With indirect tables a buffer of two or more segments takes one descriptor.
   *
   * @throws {RangeError} when the list is empty, can never fit, or has more than 2^32 bytes (2.7.5.2).
   */
  add(buffers: BufferList): number {
    const count = buffers.count;
    const indirect = count > 1 && count <= this.#tableEntries;
    if (count === 0 || (count > this.size && !indirect)) {
      throw new RangeError(
        `Cannot add a buffer of ${count} segments to a queue of ${this.size}`,
      );
    }
    const slots = indirect ? 1 : count;
    if (slots > this.#free) return -1;

    const readable = buffers.readable;
    const address = buffers.address;
    const length = buffers.length;
    const next = this.#next;
    const head = this.#freeHead;
    // In a table the descriptors follow each other; in the ring they lie where descriptors are free.
    const table = indirect ? this.#tables : this.#table;
    const base = indirect ? head * this.#tableEntries : 0;
    let index = indirect ? 0 : head;
    let tail = head;
    let total = 0;
    let writable = 0;
    // Nobody looks at what it writes before the buffer is staged.
    for (let i = 0; i < count; i++) {
      const start = address[i]!;
      const bytes = length[i]!;
      const at = (base + index) * 4;
      tail = index;
      index = indirect ? index + 1 : next[index]!;
      let flags = i + 1 < count ? F_NEXT | index << 16 : 0;
      if (i >= readable) {
        flags |= F_WRITE;
        writable += bytes;
      }
      total += bytes;
      table[at] = start;
      table[at + 1] = start < TWO_32 ? 0 : start / TWO_32;
      table[at + 2] = bytes;
      table[at + 3] = flags;
    }
    if (total > TWO_32) {
      throw new RangeError(`Cannot add a buffer of ${total} bytes`);
    }
    if (indirect) {
      this.#placeTable(head, count);
      tail = head;
      index = next[head]!;
    }
    this.#freeHead = index;
    this.#free -= slots;
    this.#tail[head] = tail;
    this.#slots[head] = slots;
    this.#limit[head] = writable;
    this.#order[head] = this.#addedCount++;

    const nextAvailIdx = this.#nextAvailIdx;
    this.#availRing[2 + (nextAvailIdx & this.#mask)] = head;
    if (this.#inOrder) this.#heads[nextAvailIdx & this.#mask] = head;
    this.#nextAvailIdx = (nextAvailIdx + 1) & 0xffff;
    return head;
  }

  /** Stages buffers many at a time: see {@link BatchDriverQueue.addBatch}. */
  addBatch(lists: readonly BufferList[], tokens: Uint32Array): number {
    const end = Math.min(lists.length, tokens.length);
    let i = this.#tableEntries === 0 && !this.#inOrder
      ? this.#addRun(lists, tokens, end)
      : 0;
    for (; i < end; i++) {
      const token = this.add(lists[i]!);
      if (token < 0) break;
      tokens[i] = token;
    }
    return i;
  }

  // Stages chains in the ring like add(), which it repeats: all locals are loaded once a batch. Stops at the first one
  // that add() may have to refuse.
  #addRun(
    lists: readonly BufferList[],
    tokens: Uint32Array,
    room: number,
  ): number {
    const end = room | 0;
    if (end === 0) return 0;
    const table = this.#table;
    const availRing = this.#availRing;
    const next = this.#next;
    const tails = this.#tail;
    const slots = this.#slots;
    const limits = this.#limit;
    const orders = this.#order;
    const mask = this.#mask | 0;
    const added = this.#addedCount;
    const position = this.#nextAvailIdx | 0;
    let head = this.#freeHead | 0;
    let free = this.#free | 0;
    // V8 looks at each array's kind, length and address here, not once a buffer: see SplitDevice.
    table[0];
    availRing[0];
    next[0];
    tails[0];
    slots[0];
    limits[0];
    orders[0];
    tokens[0];
    let i = 0;
    while (i < end) {
      const list = lists[i]!;
      const count = list.count | 0;
      if (count === 0 || count > free || list.bytes > TWO_32) break;
      const words = list.words;
      const last = (count - 1) * 4;
      let index = head;
      let tail = head;
      for (let from = 0;; from += 4) {
        const at = index * 4;
        table[at] = words[from]!;
        table[at + 1] = words[from + 1]!;
        table[at + 2] = words[from + 2]!;
        const flags = words[from + 3]!;
        tail = index;
        index = next[index]!;
        if (from === last) {
          table[at + 3] = flags;
          break;
        }
        table[at + 3] = flags | F_NEXT | index << 16;
      }
      tails[head] = tail;
      slots[head] = count;
      limits[head] = list.writableBytes;
      orders[head] = added + i;
      availRing[(2 + ((position + i) & mask)) | 0] = head;
      free = (free - count) | 0;
      tokens[i] = head;
      i = (i + 1) | 0;
      head = index;
    }
    this.#freeHead = head;
    this.#free = free;
    this.#addedCount = added + i;
    this.#nextAvailIdx = (position + i) & 0xffff;
    return i;
  }

  /** Makes all staged buffers visible to the device; false where there were none. */
  publish(): boolean {
    const next = this.#nextAvailIdx;
    const before = this.#availIdx;
    if (next === before) return false;
    Atomics.store(this.#availRing, AT_IDX, next);
    this.#availIdx = next;
    this.#publishedCount = this.#addedCount;
    // Without a decision for a whole lap of the index, the two ends no longer tell what lies between.
    if (((next - this.#kicked) & 0xffff) < ((next - before) & 0xffff)) {
      this.#kickedValid = false;
    }
    return true;
  }

  /**
   * Tells, after `publish()`, whether the device wants a kick for what was published since the last
   * call (2.7.10.1).
   */
  needsKick(): boolean {
    const availIdx = this.#availIdx;
    const kicked = this.#kicked;
    this.#kicked = availIdx;
    if (!this.#kickedValid) {
      this.#kickedValid = true;
      return true;
    }
    if (availIdx === kicked) return false;
    if (this.#eventIdx) {
      const event = Atomics.load(this.#usedRing, 2 + 4 * this.size);
      return vringNeedEvent(event, availIdx, kicked);
    }
    const flags = Atomics.load(this.#usedRing, AT_FLAGS);
    return (flags & VIRTQ_USED_F_NO_NOTIFY) === 0;
  }

  /** What a kick carries with VIRTIO_F_NOTIFICATION_DATA: see {@link DriverQueue.notificationData}. */
  notificationData(queue: number): number {
    return encodeNotification(queue, this.#availIdx, 0xffff, 0);
  }

  /**
   * Takes back one used buffer: its token, with `usedLength` set, or -1 where there is none.
   *
   * With VIRTIO_F_IN_ORDER a used entry can stand for several: see {@link DriverQueue.reclaim}.
   *
   * @throws {RingError} when the device's entry is no lawful completion; then at each further call.
   */
  reclaim(): number {
    const lastUsedIdx = this.#lastUsedIdx;
    if (lastUsedIdx === this.#usedIdx && !this.#refill()) return -1;
    if (this.#inOrder) return this.#reclaimInOrder();
    const at = (lastUsedIdx & this.#mask) << 1;
    const head = this.#usedEntries[at]!;
    const length = this.#usedEntries[at + 1]!;
    const limit = this.#limit;
    // One comparison for both: FREE is negative, and an id beyond the table reads undefined. Where nothing is
    // staged the id need not be looked up among what is.
    if (
      !(length <= limit[head]!) ||
      (this.#availIdx !== this.#nextAvailIdx &&
        this.#order[head]! >= this.#publishedCount)
    ) {
      this.#refuseUsed(head, length);
    }
    limit[head] = FREE;
    this.#next[this.#tail[head]!] = this.#freeHead;
    this.#freeHead = head;
    this.#free += this.#slots[head]!;
    this.#usedLength = length;
    this.#lastUsedIdx = (lastUsedIdx + 1) & 0xffff;
    return head;
  }

  /** Takes back used buffers many at a time: see {@link BatchDriverQueue.reclaimBatch}. */
  reclaimBatch(tokens: Uint32Array, lengths: Float64Array): number {
    const end = Math.min(tokens.length, lengths.length);
    let i = 0;
    while (i < end) {
      if (!this.#inOrder) {
        if (i !== 0 && this.#lastUsedIdx === this.#usedIdx) break;
        i = this.#reclaimRun(tokens, lengths, i, end);
        if (i === end) break;
      }
      let token: number;
      try {
        token = this.reclaim();
      } catch (error) {
        if (i === 0) throw error;
        // The device has broken the rules, for good: the next call says it.
        break;
      }
      if (token < 0) break;
      tokens[i] = token;
      lengths[i++] = this.#usedLength;
    }
    return i;
  }

  // Takes back what was seen used like reclaim(), which it repeats. Stops at the first entry that is to be refused.
  #reclaimRun(
    tokens: Uint32Array,
    lengths: Float64Array,
    begin: number,
    end: number,
  ): number {
    const entries = this.#usedEntries;
    const next = this.#next;
    const tails = this.#tail;
    const slots = this.#slots;
    const limits = this.#limit;
    const mask = this.#mask;
    const usedIdx = this.#usedIdx;
    // Where buffers are staged, one by one.
    if (this.#availIdx !== this.#nextAvailIdx) return begin;
    let lastUsed = this.#lastUsedIdx;
    let freeHead = this.#freeHead;
    let free = this.#free;
    let i = begin;
    while (i < end && lastUsed !== usedIdx) {
      const at = (lastUsed & mask) << 1;
      const head = entries[at]!;
      const length = entries[at + 1]!;
      // One comparison for both: FREE is negative, and an id beyond the table reads undefined.
      if (!(length <= limits[head]!)) break;
      limits[head] = FREE;
      next[tails[head]!] = freeHead;
      freeHead = head;
      free += slots[head]!;
      tokens[i] = head;
      lengths[i++] = length;
      lastUsed = (lastUsed + 1) & 0xffff;
    }
    this.#lastUsedIdx = lastUsed;
    this.#freeHead = freeHead;
    this.#free = free;
    return i;
  }

  #reclaimInOrder(): number {
    const lastUsedIdx = this.#lastUsedIdx;
    const at = lastUsedIdx & this.#mask;
    const limit = this.#limit;
    const order = this.#order;
    const head = this.#heads[at]!;
    if (this.#batchLast === NONE) {
      const last = this.#usedEntries[at << 1]!;
      const length = this.#usedEntries[(at << 1) + 1]!;
      if (!(length <= limit[last]!) || order[last]! >= this.#publishedCount) {
        this.#refuseUsed(last, length);
      }
      // The batch has to end within what used.idx tells of.
      const count = order[last]! - order[head]! + 1;
      const told = (this.#usedIdx - lastUsedIdx) & 0xffff;
      if (count > told) {
        this.#stop(
          "USED_ID_UNKNOWN",
          `Cannot reclaim a buffer: id ${last} ends a batch of ${count}, but used.idx tells of ${told}`,
          "2.7.9",
        );
      }
      this.#batchLast = last;
      this.#batchLength = length;
    }
    if (head === this.#batchLast) {
      this.#batchLast = NONE;
      this.#usedLength = this.#batchLength;
    } else {
      this.#usedLength = limit[head]!;
    }
    limit[head] = FREE;
    this.#free += this.#slots[head]!;
    this.#lastUsedIdx = (lastUsedIdx + 1) & 0xffff;
    return head;
  }

  /** Asks the device for interrupts; true when a completion arrived meanwhile (2.7.7.1). */
  armInterrupts(): boolean {
    if (this.#fault !== null) return false;
    const lastUsedIdx = this.#lastUsedIdx;
    if (this.#eventIdx) {
      Atomics.store(this.#availRing, 2 + this.size, lastUsedIdx);
    } else {
      Atomics.store(this.#availRing, AT_FLAGS, 0);
      this.#interruptsOff = false;
    }
    return Atomics.load(this.#usedRing, AT_IDX) !== lastUsedIdx;
  }

  /**
   * Tells the device that interrupts are not needed; a hint.
   *
   * With VIRTIO_F_EVENT_IDX there is nothing to do: once the device has passed `used_event`, it does
   * not interrupt before `armInterrupts()` moves it.
   */
  disarmInterrupts(): void {
    if (this.#eventIdx || this.#interruptsOff) return;
    this.#interruptsOff = true;
    this.#availRing[AT_FLAGS] = VIRTQ_AVAIL_F_NO_INTERRUPT;
  }

  #placeTable(head: number, count: number): void {
    const address = this.#tablesAddress +
      head * this.#tableEntries * VIRTQ_DESC_SIZE;
    const table = this.#table;
    const at = head << 2;
    table[at] = address;
    table[at + 1] = address / TWO_32;
    table[at + 2] = count * VIRTQ_DESC_SIZE;
    table[at + 3] = F_INDIRECT;
  }

  // Looks for buffers that the device used since the last look.
  #refill(): boolean {
    if (this.#fault !== null) throw this.#fault;
    const lastUsedIdx = this.#lastUsedIdx;
    const usedIdx = Atomics.load(this.#usedRing, AT_IDX);
    if (usedIdx === lastUsedIdx) return false;
    const published = (this.#availIdx - lastUsedIdx) & 0xffff;
    if (((usedIdx - lastUsedIdx) & 0xffff) > published) {
      this.#stop(
        "USED_IDX_JUMP",
        `Cannot reclaim a buffer: used.idx went from ${lastUsedIdx} to ${usedIdx} with ${published} published`,
      );
    }
    this.#usedIdx = usedIdx;
    return true;
  }

  #refuseUsed(head: number, length: number): never {
    const limit = this.#limit[head];
    if (
      limit === undefined || limit < 0 ||
      this.#order[head]! >= this.#publishedCount
    ) {
      this.#stop(
        "USED_ID_UNKNOWN",
        `Cannot reclaim a buffer: id ${head} is not in flight`,
      );
    }
    this.#stop(
      "USED_LEN_TOO_LARGE",
      `Cannot reclaim buffer ${head}: ${length} bytes are used of ${limit} writable ones`,
    );
  }

  // Breaks the queue: each further reclaim() comes to #refill(), which throws the same fault.
  #stop(code: RingErrorCode, message: string, section = "2.7.8"): never {
    this.#usedIdx = this.#lastUsedIdx;
    this.#fault = new RingError(code, section, message, true);
    throw this.#fault;
  }
}

function tablesOf(
  memory: GuestMemory,
  config: QueueConfig,
  { address, entries }: IndirectTables,
): Uint32Array {
  if (config.indirect !== true) {
    throw new TypeError(
      "Cannot use indirect tables: VIRTIO_F_INDIRECT_DESC was not negotiated",
    );
  }
  if (
    !Number.isInteger(entries) || entries < 1 || entries > VIRTQ_MAX_SIZE
  ) {
    throw new RangeError(`Cannot make indirect tables of ${entries} entries`);
  }
  const length = config.size * entries * VIRTQ_DESC_SIZE;
  if (
    !Number.isSafeInteger(address) || address < 0 || address % 16 !== 0 ||
    memory.locate(address) < 0 || memory.foundRoom < length
  ) {
    throw new RingError(
      "BAD_QUEUE_ADDRESS",
      "2.7.5.3",
      `Cannot use indirect tables at ${address}: no region holds ${length} bytes there`,
      true,
    );
  }
  const bytes = memory.bytes(address, length);
  return new Uint32Array(bytes.buffer, bytes.byteOffset, length / 4);
}
