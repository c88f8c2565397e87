import { mapPackedViews, packedEventPassed } from "./_packed.ts";
import { RingError, type RingErrorCode } from "./errors.ts";
import type { GuestMemory } from "./memory.ts";
import { encodeNotification } from "./notify.ts";
import type {
  BatchDriverQueue,
  BufferList,
  IndirectTables,
  QueueConfig,
  RingFormat,
} from "./queue.ts";

// Local copies of the constants in virtio_ring.ts; see packed_device.ts.
const F_NEXT = 1;
const F_WRITE = 2;
const F_INDIRECT = 4;
const F_AVAIL = 0x80;
const F_USED = 0x8000;
const F_AVAIL_USED = 0x8080;
const EVENT_ENABLE = 0;
const EVENT_DISABLE = 1;
const EVENT_DESC = 2;

const TWO_32 = 4294967296;
/** Entries that a table may have at most. */
const MAX_ENTRIES = 32768;
/** Used buffers that are looked for ahead, in one go, with strong ordering. */
const SCAN_BUFFERS = 64;
/** No buffer. */
const NONE = -1;

/** What a {@link PackedDriver} can be told. */
export type PackedDriverOptions = {
  /** Where it may build indirect tables; without it every buffer is a chain in the ring. */
  indirect?: IndirectTables;
};

/**
 * Driver side of a packed virtqueue (virtio 1.4, 2.8).
 *
 * `publish()` stores the flags of the first head of a batch last and by Atomics; the device stops
 * at a descriptor that is not available, so it sees all of the batch or nothing. The device is not
 * trusted: lengths and descriptor counts by id are kept here and nothing is read back from the
 * ring but the used descriptors, which are checked.
 *
 * The caller owns the memory and must not touch the ring while the queue is in use.
 */
export class PackedDriver implements BatchDriverQueue {
  /** Always `"packed"`. */
  readonly format: RingFormat = "packed";
  /** Descriptors. */
  readonly size: number;

  readonly #size: number;
  readonly #eventIdx: boolean;
  readonly #strong: boolean;
  readonly #inOrder: boolean;
  readonly #u16: Uint16Array;
  readonly #u32: Uint32Array;
  readonly #driverEvent: Uint16Array;
  readonly #deviceEvent: Uint16Array;
  // Indirect tables: words, guest address of the first, and entries of each (0: none).
  readonly #tables: Uint32Array;
  readonly #tablesAddress: number;
  readonly #entries: number;

  // Next descriptor to fill, with the flag bits that make one available there.
  #next = 0;
  #nextBits = F_AVAIL;
  #free: number;
  #inFlight = 0;
  #usedLength = 0;

  // Next descriptor to be used by the device, with the flag bits that say so.
  #used = 0;
  #usedBits = F_AVAIL_USED;
  // Used buffers from #used on that were seen (strong ordering only).
  #ready = 0;

  // The batch since the last publish(): slots filled, and where it begins with which flags.
  #stagedSlots = 0;
  #stagedFirst = 0;
  #stagedFlags = 0;
  #batch = 0;
  // Slots published since needsKick() was asked.
  #moved = 0;
  // What the driver event flags hold.
  #eventFlags = EVENT_ENABLE;

  // Free ids, as a stack; its height is size - inFlight.
  readonly #ids: Uint16Array;
  // By id: slots taken (0 is free), writable bytes, and the batch in which it was added.
  readonly #slots: Uint16Array;
  readonly #room: Float64Array;
  readonly #batchOf: Float64Array;

  // In order: ids round in the order in which they were added, from #oldest on, and the last buffer of
  // the batch that is being taken back, with its length; NONE where there is no batch.
  readonly #added: Uint16Array;
  #oldest = 0;
  #batchLast = NONE;
  #batchLength = 0;

  #fault: RingError | null = null;

  /**
   * Sets up a queue over `memory` and clears its three areas.
   *
   * `config.driverArea` and `config.deviceArea` are the event suppression structures, 4 bytes
   * each. With `options.indirect` (VIRTIO_F_INDIRECT_DESC negotiated) a buffer of 2 to `entries`
   * segments takes one descriptor and a table; a longer one is chained in the ring.
   *
   * @throws {RingError} `BAD_QUEUE_SIZE` or `BAD_QUEUE_ADDRESS`, the latter also for the tables.
   * @throws {TypeError} when tables are given but indirect descriptors were not negotiated.
   * @throws {RangeError} when `entries` is not 1 to 32768.
   */
  constructor(
    memory: GuestMemory,
    config: QueueConfig,
    options: PackedDriverOptions = {},
  ) {
    const views = mapPackedViews(memory, config);
    const size = config.size;
    this.size = size;
    this.#size = size;
    this.#eventIdx = config.eventIdx === true;
    this.#inOrder = config.inOrder === true;
    // Used descriptors are looked for one by one, then: a batch is at most one load.
    this.#strong = config.strongOrdering === true && !this.#inOrder;
    this.#added = new Uint16Array(this.#inOrder ? size : 0);
    this.#u16 = views.u16;
    this.#u32 = views.u32;
    this.#driverEvent = views.driverEvent;
    this.#deviceEvent = views.deviceEvent;
    const { indirect } = options;
    this.#tables = indirect === undefined
      ? new Uint32Array(0)
      : tablesOf(memory, config, indirect);
    this.#tablesAddress = indirect === undefined ? 0 : indirect.address;
    this.#entries = indirect === undefined ? 0 : indirect.entries;
    this.#free = size;
    this.#ids = new Uint16Array(size);
    for (let i = 0; i < size; i++) this.#ids[i] = size - 1 - i;
    this.#slots = new Uint16Array(size);
    this.#room = new Float64Array(size);
    this.#batchOf = new Float64Array(size);
    views.u32.fill(0);
    views.driverEvent.fill(0);
    views.deviceEvent.fill(0);
  }

  /** Buffers that were added and not reclaimed. */
  get inFlight(): number {
    return this.#inFlight;
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
   * @throws {RangeError} when the list is empty, can never fit, or has more than 2^32 bytes.
   */
  add(buffers: BufferList): number {
    const count = buffers.count;
    const entries = this.#entries;
    const indirect = count > 1 && count <= entries;
    if (count === 0 || (count > this.#size && !indirect)) {
      throw new RangeError(
        `Cannot add a buffer of ${count} segments to a queue of ${this.#size}`,
      );
    }
    const slots = indirect ? 1 : count;
    if (slots > this.#free) return -1;
    const inFlight = this.#inFlight;
    const id = this.#ids[this.#size - 1 - inFlight]!;
    const address = buffers.address;
    const length = buffers.length;
    const readable = buffers.readable;
    const u32 = this.#u32;
    const size = this.#size;
    const first = this.#next;
    let total = 0;
    let room = 0;
    for (let i = 0; i < count; i++) {
      const bytes = length[i]!;
      total += bytes;
      if (i >= readable) room += bytes;
    }
    if (total > TWO_32) {
      throw new RangeError(`Cannot add a buffer of ${total} bytes`);
    }
    let slot = first;
    let bits = this.#nextBits;
    let firstFlags = 0;

    if (indirect) {
      const tables = this.#tables;
      let word = id * entries * 4;
      for (let i = 0; i < count; i++) {
        const at = address[i]!;
        tables[word] = at;
        tables[word + 1] = at / TWO_32;
        tables[word + 2] = length[i]!;
        tables[word + 3] = i < readable ? 0 : F_WRITE << 16;
        word += 4;
      }
      const table = this.#tablesAddress + id * entries * 16;
      firstFlags = bits | F_INDIRECT;
      u32[slot * 4] = table;
      u32[slot * 4 + 1] = table / TWO_32;
      u32[slot * 4 + 2] = count * 16;
      slot++;
      if (slot === size) {
        slot = 0;
        bits ^= F_AVAIL_USED;
      }
    } else {
      for (let i = 0; i < count; i++) {
        const at = address[i]!;
        u32[slot * 4] = at;
        u32[slot * 4 + 1] = at / TWO_32;
        u32[slot * 4 + 2] = length[i]!;
        let flags = bits;
        if (i >= readable) flags |= F_WRITE;
        if (i !== count - 1) flags |= F_NEXT;
        if (i === 0) {
          firstFlags = flags;
        } else {
          u32[slot * 4 + 3] = id | (flags << 16);
        }
        slot++;
        if (slot === size) {
          slot = 0;
          bits ^= F_AVAIL_USED;
        }
      }
    }
    if (this.#stagedSlots === 0) {
      // Its flags make the whole batch available: publish() stores them.
      this.#stagedFirst = first;
      this.#stagedFlags = firstFlags;
      this.#u16[first * 8 + 6] = id;
    } else {
      u32[first * 4 + 3] = id | (firstFlags << 16);
    }
    this.#stagedSlots += slots;
    this.#next = slot;
    this.#nextBits = bits;
    this.#free -= slots;
    this.#inFlight = inFlight + 1;
    this.#slots[id] = slots;
    this.#room[id] = room;
    this.#batchOf[id] = this.#batch;
    if (this.#inOrder) this.#added[(this.#oldest + inFlight) % size] = id;
    return id;
  }

  /** Stages buffers many at a time: see {@link BatchDriverQueue.addBatch}. */
  addBatch(lists: readonly BufferList[], tokens: Uint32Array): number {
    const end = Math.min(lists.length, tokens.length);
    let i = this.#entries === 0 && !this.#inOrder
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
  // that add() may have to refuse; leaves the first of what is published together to it, too.
  #addRun(
    lists: readonly BufferList[],
    tokens: Uint32Array,
    end: number,
  ): number {
    if (end === 0) return 0;
    let i = 0;
    if (this.#stagedSlots === 0) {
      const token = this.add(lists[0]!);
      if (token < 0) return 0;
      tokens[i++] = token;
    }
    const u32 = this.#u32;
    const size = this.#size | 0;
    const ids = this.#ids;
    const slotsOf = this.#slots;
    const roomOf = this.#room;
    const batchOf = this.#batchOf;
    const batch = this.#batch;
    const before = this.#free | 0;
    // Where the stack of free ids would end if the first buffer came at 0.
    const top = (size - 1 - this.#inFlight + i) | 0;
    const begun = i;
    // V8 looks at each array's kind, length and address here, not once a buffer: see SplitDevice.
    u32[0];
    ids[0];
    slotsOf[0];
    roomOf[0];
    batchOf[0];
    tokens[0];
    let slot = this.#next | 0;
    let bits = this.#nextBits << 16;
    let free = before;
    while (i < end) {
      const list = lists[i]!;
      const count = list.count | 0;
      if (count === 0 || count > free || list.bytes > TWO_32) break;
      const id = ids[top - i]!;
      const words = list.words;
      const end = count * 4;
      for (let from = 0; from < end; from += 4) {
        const at = slot * 4;
        u32[at] = words[from]!;
        u32[at + 1] = words[from + 1]!;
        u32[at + 2] = words[from + 2]!;
        // In any order, since the device can't pass the batch's first descriptor.
        const flags = id | words[from + 3]! << 16 | bits;
        u32[at + 3] = from + 4 < end ? flags | F_NEXT << 16 : flags;
        slot = (slot + 1) | 0;
        if (slot === size) {
          slot = 0;
          bits ^= F_AVAIL_USED << 16;
        }
      }
      free = (free - count) | 0;
      slotsOf[id] = count;
      roomOf[id] = list.writableBytes;
      batchOf[id] = batch;
      tokens[i] = id;
      i = (i + 1) | 0;
    }
    this.#next = slot;
    this.#nextBits = bits >>> 16;
    this.#stagedSlots += before - free;
    this.#free = free;
    this.#inFlight += i - begun;
    return i;
  }

  /** Makes all staged buffers visible to the device; false where there were none. */
  publish(): boolean {
    const staged = this.#stagedSlots;
    if (staged === 0) return false;
    Atomics.store(this.#u16, this.#stagedFirst * 8 + 7, this.#stagedFlags);
    this.#stagedSlots = 0;
    this.#moved += staged;
    this.#batch++;
    return true;
  }

  /**
   * Tells, after `publish()`, whether the device wants a kick for what was published.
   *
   * A reserved value of its flags counts as enabled (virtio 1.4, 2.8.10).
   */
  needsKick(): boolean {
    const moved = this.#moved;
    this.#moved = 0;
    if (moved === 0) return false;
    const event = this.#deviceEvent;
    const flags = Atomics.load(event, 1) & 3;
    if (flags !== EVENT_DESC || !this.#eventIdx) return flags !== EVENT_DISABLE;
    // Where the published part ends; usually nothing is staged by now.
    let position = this.#next - this.#stagedSlots;
    let wrap = this.#nextBits === F_AVAIL ? 1 : 0;
    if (position < 0) {
      position += this.#size;
      wrap ^= 1;
    }
    const offWrap = Atomics.load(event, 0);
    return packedEventPassed(offWrap, position, wrap, moved, this.#size);
  }

  /** What a kick carries with VIRTIO_F_NOTIFICATION_DATA: see {@link DriverQueue.notificationData}. */
  notificationData(queue: number): number {
    let position = this.#next - this.#stagedSlots;
    let wrap: 0 | 1 = this.#nextBits === F_AVAIL ? 1 : 0;
    if (position < 0) {
      position += this.#size;
      wrap = wrap === 1 ? 0 : 1;
    }
    return encodeNotification(queue, position, 0x7fff, wrap);
  }

  /**
   * Takes back one used buffer: its token, with `usedLength` set, or -1 where there is none.
   *
   * With VIRTIO_F_IN_ORDER a used descriptor can stand for several: see {@link DriverQueue.reclaim}.
   *
   * A used descriptor without VIRTQ_DESC_F_WRITE has no length: 0 (virtio 1.4, 2.8.4).
   *
   * @throws {RingError} `USED_ID_UNKNOWN` or `USED_LEN_TOO_LARGE` when the device's entry is no
   * lawful completion; then at each further call.
   */
  reclaim(): number {
    if (this.#fault !== null) throw this.#fault;
    if (this.#batchLast !== NONE) return this.#reclaimInOrder();
    const used = this.#used;
    const bits = this.#usedBits;
    let flags = 0;
    if (!this.#strong) {
      flags = Atomics.load(this.#u16, used * 8 + 7);
    } else {
      if (this.#ready === 0 && !this.#scan()) return -1;
      flags = this.#u16[used * 8 + 7]!;
    }
    if ((flags & F_AVAIL_USED) !== bits) {
      this.#ready = 0;
      return -1;
    }
    const id = this.#u16[used * 8 + 6]!;
    const length = (flags & F_WRITE) === 0 ? 0 : this.#u32[used * 4 + 2]!;
    const slots = this.#slots[id];
    // Staged ones are not the device's yet; usually there are none.
    if (
      slots === undefined || slots === 0 ||
      (this.#stagedSlots !== 0 && this.#batchOf[id] === this.#batch)
    ) {
      return this.#stop("USED_ID_UNKNOWN", `id ${id} is not in flight`);
    }
    if (length > this.#room[id]!) {
      return this.#stop(
        "USED_LEN_TOO_LARGE",
        `${length} bytes written to buffer ${id} of ${this.#room[id]}`,
      );
    }
    if (this.#inOrder) {
      this.#batchLast = id;
      this.#batchLength = length;
      return this.#reclaimInOrder();
    }
    this.#release(id, slots);
    if (this.#ready !== 0) this.#ready--;
    this.#usedLength = length;
    return id;
  }

  /** Takes back used buffers many at a time: see {@link BatchDriverQueue.reclaimBatch}. */
  reclaimBatch(tokens: Uint32Array, lengths: Float64Array): number {
    const end = Math.min(tokens.length, lengths.length);
    let i = 0;
    while (i < end) {
      if (this.#strong && this.#stagedSlots === 0 && this.#fault === null) {
        if (this.#ready === 0 && !this.#scan()) break;
        i = this.#reclaimRun(tokens, lengths, i, end);
        if (i === end) break;
        if (this.#ready === 0) continue;
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

  // Takes back what #scan() has seen used like reclaim(), which it repeats. Stops at the first descriptor that is to be
  // refused.
  #reclaimRun(
    tokens: Uint32Array,
    lengths: Float64Array,
    begin: number,
    end: number,
  ): number {
    const u32 = this.#u32;
    const size = this.#size;
    const ids = this.#ids;
    const slotsOf = this.#slots;
    const roomOf = this.#room;
    let used = this.#used;
    let bits = this.#usedBits;
    let ready = this.#ready;
    let inFlight = this.#inFlight;
    let free = this.#free;
    let i = begin;
    while (i < end && ready > 0) {
      const word = u32[used * 4 + 3]!;
      const flags = word >>> 16;
      if ((flags & F_AVAIL_USED) !== bits) break;
      const id = word & 0xffff;
      const length = (flags & F_WRITE) === 0 ? 0 : u32[used * 4 + 2]!;
      // An id beyond the table reads undefined.
      const slots = slotsOf[id]!;
      if (!(slots > 0) || length > roomOf[id]!) break;
      slotsOf[id] = 0;
      inFlight--;
      ids[size - 1 - inFlight] = id;
      free += slots;
      used += slots;
      if (used >= size) {
        used -= size;
        bits ^= F_AVAIL_USED;
      }
      ready--;
      tokens[i] = id;
      lengths[i++] = length;
    }
    this.#used = used;
    this.#usedBits = bits;
    this.#ready = ready;
    this.#inFlight = inFlight;
    this.#free = free;
    return i;
  }

  // Takes the oldest buffer back, which is one of a batch; the last of it has the length that was told.
  #reclaimInOrder(): number {
    const id = this.#added[this.#oldest]!;
    if (id === this.#batchLast) {
      this.#batchLast = NONE;
      this.#usedLength = this.#batchLength;
    } else {
      this.#usedLength = this.#room[id]!;
    }
    const oldest = this.#oldest + 1;
    this.#oldest = oldest === this.#size ? 0 : oldest;
    this.#release(id, this.#slots[id]!);
    return id;
  }

  // Frees an id and moves on by the slots of its buffer.
  #release(id: number, slots: number): void {
    this.#slots[id] = 0;
    const inFlight = this.#inFlight - 1;
    this.#ids[this.#size - 1 - inFlight] = id;
    this.#inFlight = inFlight;
    this.#free += slots;
    const next = this.#used + slots;
    if (next >= this.#size) {
      this.#used = next - this.#size;
      this.#usedBits ^= F_AVAIL_USED;
    } else {
      this.#used = next;
    }
  }

  #stop(code: RingErrorCode, why: string): never {
    this.#fault = new RingError(
      code,
      "2.8.22",
      `Cannot reclaim a buffer: ${why}`,
      true,
    );
    throw this.#fault;
  }

  // Counts used descriptors ahead plainly, then loads the flags of the last one by Atomics: see
  // PackedDevice.#scan(). What is read here is only a hint of where the next one is.
  #scan(): boolean {
    const u16 = this.#u16;
    const size = this.#size;
    let bits = this.#usedBits;
    let slot = this.#used;
    let last = slot;
    let run = 0;
    while (
      run < SCAN_BUFFERS && (u16[slot * 8 + 7]! & F_AVAIL_USED) === bits
    ) {
      last = slot;
      run++;
      const id = u16[slot * 8 + 6]!;
      if (id >= size) break;
      slot += this.#slots[id]!;
      if (slot >= size) {
        slot -= size;
        bits ^= F_AVAIL_USED;
      }
    }
    this.#ready = run;
    if (run === 0) return false;
    Atomics.load(u16, last * 8 + 7);
    return true;
  }

  /**
   * Asks the device for interrupts; true when a completion arrived meanwhile.
   *
   * With EVENT_IDX for the next descriptor that the device uses, else for any. False once the
   * device has broken the rules.
   */
  armInterrupts(): boolean {
    if (this.#fault !== null) return false;
    const event = this.#driverEvent;
    const used = this.#used;
    const bits = this.#usedBits;
    const flags = this.#eventIdx ? EVENT_DESC : EVENT_ENABLE;
    if (flags === EVENT_DESC) Atomics.store(event, 0, used | (bits & F_USED));
    if (this.#eventFlags !== flags) {
      Atomics.store(event, 1, flags);
      this.#eventFlags = flags;
    }
    // What is left of a batch has no used descriptors of its own.
    return this.#batchLast !== NONE ||
      (Atomics.load(this.#u16, used * 8 + 7) & F_AVAIL_USED) === bits;
  }

  /**
   * Tells the device that interrupts are not needed; a hint.
   *
   * With EVENT_IDX the event that was armed last lies behind once the device has passed it, so
   * that nothing needs to be written.
   */
  disarmInterrupts(): void {
    const flags = this.#eventFlags;
    if (flags === EVENT_DISABLE || flags === EVENT_DESC) return;
    this.#driverEvent[1] = EVENT_DISABLE;
    this.#eventFlags = EVENT_DISABLE;
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
  if (!Number.isInteger(entries) || entries < 1 || entries > MAX_ENTRIES) {
    throw new RangeError(`Cannot make indirect tables of ${entries} entries`);
  }
  const length = config.size * entries * 16;
  if (
    !Number.isSafeInteger(address) || address < 0 || address % 16 !== 0 ||
    memory.locate(address) < 0 || memory.foundRoom < length
  ) {
    throw new RingError(
      "BAD_QUEUE_ADDRESS",
      "2.8.7",
      `Cannot use indirect tables at ${address}: no region holds ${length} bytes there`,
      true,
    );
  }
  const bytes = memory.bytes(address, length);
  return new Uint32Array(bytes.buffer, bytes.byteOffset, length / 4);
}
