import { mapPackedViews, packedEventPassed } from "./_packed.ts";
import { badAddress, chainFault, PackedWalker } from "./_packed_walk.ts";
import { Chain } from "./chain.ts";
import type { ChainBatch } from "./chain_batch.ts";
import { RingError } from "./errors.ts";
import type { GuestMemory } from "./memory.ts";
import type {
  BatchDeviceQueue,
  InFlightBuffer,
  QueueConfig,
  QueueState,
  RingFormat,
} from "./queue.ts";
import { checkQueueState } from "./state.ts";

// Local copies of the constants in virtio_ring.ts: an imported binding costs a load at each use
// on the hot path (34 against 30 ns a buffer).
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
/** Flags that are read ahead of the buffers, in one go; bounds the work, and 10 ns are shared. */
const SCAN_DESCRIPTORS = 128;
/** Buffer ids are 16 bits; a driver may choose them beyond the queue's size. */
const ID_LIMIT = 65536;
/** Where a restored buffer lies: nowhere in the ring any more. */
const NOT_IN_RING = 0xffffffff;
/** Largest used length. */
const LENGTH_LIMIT = 0xffffffff;
// Columns of `#book`, four words a row.
const SLOTS = 0;
const START = 1;
const LIMIT = 2;
const OWNER = 3;

/** Descriptors of an in-flight buffer whose slots may have been overwritten: addr, len, flags. */
type Copy = { slots: number; table: Uint32Array };

/**
 * Device side of a packed virtqueue (virtio 1.4, 2.8).
 *
 * Hand-off words are read and written by Atomics, once a batch where possible: `publish()` stores
 * the flags of the first used descriptor last, so that a driver, which stops at the first
 * descriptor that is not used, sees all of the batch or nothing. See
 * {@link QueueConfig.strongOrdering} for the reading side.
 *
 * The guest owns the memory. Each descriptor is read once. A buffer that completes out of order
 * has its used descriptor written over slots of buffers that are still in flight; these are
 * copied first, so that `save()` can always tell what is in flight.
 */
export class PackedDevice implements BatchDeviceQueue {
  /** Always `"packed"`. */
  readonly format: RingFormat = "packed";
  /** Descriptors. */
  readonly size: number;

  readonly #size: number;
  readonly #eventIdx: boolean;
  readonly #indirect: boolean;
  readonly #strong: boolean;
  readonly #inOrder: boolean;
  readonly #config: QueueConfig;

  #memory: GuestMemory;
  #u16: Uint16Array;
  #u32: Uint32Array;
  #driverEvent: Uint16Array;
  #deviceEvent: Uint16Array;
  #walker: PackedWalker;

  // Next descriptor to fetch, with the flag bits that an available one has there.
  #avail = 0;
  #availBits = F_AVAIL;
  // Descriptors from #avail on whose flags were seen available (strong ordering only).
  #ready = 0;
  // Slots between the staged used position and #avail.
  #outstanding = 0;
  #inFlight = 0;

  // Next used descriptor to write, staged completions included, with the flag bits it gets.
  #used = 0;
  #usedBits = F_AVAIL_USED;
  // The batch since the last publish(): slots passed, and where it begins with which flags.
  #stagedSlots = 0;
  #stagedFirst = 0;
  #stagedFlags = 0;
  // In order: where the used descriptor of the last buffer goes that was pushed, with the flag bits
  // that it gets there.
  #batch = 0;
  #batchBits = F_AVAIL_USED;
  // Slots published since needsInterrupt() was asked; not valid after a restore.
  #moved = 0;
  #movedValid = true;
  // What the device event flags hold, -1 where unknown.
  #eventFlags = -1;

  // Four words a row, in one array since each further one costs 1 to 2 ns a buffer. By id: slots
  // taken (0: not in flight), the first of them, writable bytes. By slot: id of the last buffer
  // that began there, plus 1.
  #book: Uint32Array;
  // By id, in the order of the first fetch: buffers whose slots can't be re-read. They are all
  // older than the others in flight, since used descriptors go round the ring in the same order.
  #copies: Map<number, Copy> = new Map();
  #copied = 0;

  // Restored buffers; from #nextRestored on they wait to be handed out (again).
  #restored: InFlightBuffer[] = [];
  #nextRestored = 0;
  #restoredLeft = 0;
  #restoredPushed = 0;
  // Where the ring stood then, and whether a buffer of the ring was pushed while some remained.
  #restoredAvail = 0;
  #restoredBits = 0;
  #pastRestored = false;

  #broken: RingError | null = null;

  // For the buffers of a batch that need more than the usual.
  #chain: Chain | null = null;

  /**
   * Sets up a queue over `memory`, fresh or from a saved `state`.
   *
   * With a state the queue asks for kicks at once, and `needsInterrupt()` is true once: the caller
   * pops without waiting for a kick and sends one interrupt, since either may have been lost.
   *
   * `config.driverArea` and `config.deviceArea` are the event suppression structures, 4 bytes
   * each. Size and addresses are checked and copied; each area lies in one region.
   *
   * @throws {RingError} `BAD_QUEUE_SIZE`, `BAD_QUEUE_ADDRESS` or `BAD_QUEUE_STATE`.
   */
  constructor(memory: GuestMemory, config: QueueConfig, state?: QueueState) {
    this.#config = { ...config };
    const views = mapPackedViews(memory, this.#config);
    const size = this.#config.size;
    this.size = size;
    this.#size = size;
    this.#eventIdx = this.#config.eventIdx === true;
    this.#indirect = this.#config.indirect === true;
    this.#strong = this.#config.strongOrdering === true;
    this.#inOrder = this.#config.inOrder === true;
    this.#memory = memory;
    this.#u16 = views.u16;
    this.#u32 = views.u32;
    this.#driverEvent = views.driverEvent;
    this.#deviceEvent = views.deviceEvent;
    this.#walker = new PackedWalker(memory, views.u32, size, this.#indirect);
    this.#book = new Uint32Array(size * 4);
    if (state !== undefined) this.#restore(state);
  }

  /** Buffers that were popped and not pushed. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** Descriptor that the next `push()` writes. */
  get usedPosition(): number {
    return this.#inOrder ? this.#batch : this.#used;
  }

  /** Descriptors of the ring that a buffer in flight takes; 0 where `token` is not in flight. */
  slotsOf(token: number): number {
    return this.#isInFlight(token) ? this.#book[token * 4 + SLOTS]! : 0;
  }

  /**
   * Fetches the next available buffer into `chain`; false where there is none.
   *
   * A malformed buffer comes with `chain.fault` set and no segments: push its token with 0.
   * A restored queue hands out its in-flight buffers first, in the order of their first fetch.
   *
   * @throws {RingError} with `fatal` when the ring itself is broken; then at each further call.
   */
  pop(chain: Chain): boolean {
    if (this.#broken !== null) throw this.#broken;
    if (this.#restoredLeft !== 0) return this.#popRestored(chain);
    const u32 = this.#u32;
    const first = this.#avail;
    let flags = 0;
    if (!this.#strong) {
      flags = Atomics.load(this.#u16, first * 8 + 7);
    } else {
      if (this.#ready === 0 && !this.#scan()) return false;
      flags = u32[first * 4 + 3]! >>> 16;
    }
    if ((flags & F_AVAIL_USED) !== this.#availBits) {
      this.#ready = 0;
      return false;
    }

    const size = this.#size;
    const room = size - this.#outstanding;
    const slots = this.#walker.walk(chain, first, room);
    // Also where the ring is full already: what looks available there is no lawful descriptor.
    if (slots === 0) return this.#break(tooLong(size));
    let next = first + slots;
    let bits = this.#availBits;
    if (next >= size) {
      next -= size;
      bits ^= F_AVAIL_USED;
    }
    // The id counts in the last descriptor only (2.8.6).
    const id = u32[(next === 0 ? size : next) * 4 - 1]! & 0xffff;
    const row = id * 4;
    if (row >= this.#book.length) this.#growIds();
    const book = this.#book;
    if (book[row + SLOTS] !== 0) return this.#break(idInFlight(id));
    const writableBytes = chain.writableBytes;
    book[row + SLOTS] = slots;
    book[row + START] = first;
    book[row + LIMIT] = writableBytes < LENGTH_LIMIT
      ? writableBytes
      : LENGTH_LIMIT;
    book[first * 4 + OWNER] = id + 1;
    this.#avail = next;
    this.#availBits = bits;
    this.#outstanding += slots;
    this.#inFlight++;
    const ready = this.#ready;
    this.#ready = ready > slots ? ready - slots : 0;
    chain.token = id;
    return true;
  }

  /** Fetches available buffers many at a time: see {@link BatchDeviceQueue.popBatch}. */
  popBatch(batch: ChainBatch, most: number = batch.capacity): number {
    batch.clear();
    const room = most < batch.capacity ? most : batch.capacity;
    while (batch.count < room) {
      if (this.#strong && this.#restoredLeft === 0 && this.#broken === null) {
        if (this.#ready === 0 && !this.#scan()) break;
        this.#popRun(batch, room);
        if (batch.count === room) break;
        if (this.#ready === 0) continue;
      }
      // What the run stopped at, or each one where none was made.
      const chain = this.#chain ??= new Chain(this.#memory);
      if (batch.count === 0) {
        if (!this.pop(chain)) break;
      } else {
        try {
          if (!this.pop(chain)) break;
        } catch {
          // The ring is broken, and stays so: the next call says it.
          break;
        }
      }
      batch.append(chain);
    }
    return batch.count;
  }

  // Fetches buffers of which #scan() has seen the flags, like pop() and PackedWalker.walk() do, with the columns
  // of a batch: all locals are loaded once a batch. Stops at the first one that asks for more.
  #popRun(batch: ChainBatch, room: number): void {
    const begun = batch.count | 0;
    const end = room | 0;
    if (begun >= end) return;
    const u32 = this.#u32;
    const size = this.#size | 0;
    const book = this.#book;
    const walker = this.#walker;
    const region = walker.region | 0;
    const windowHigh = walker.windowHigh | 0;
    const windowStart = walker.windowStart | 0;
    const windowSize = walker.windowSize >>> 0;
    const windowOffset = walker.windowOffset;
    const tokens = batch.token;
    const firsts = batch.first;
    const firstWritable = batch.firstWritable;
    const readableOf = batch.readableBytes;
    const writableOf = batch.writableBytes;
    const written = batch.written;
    const regions = batch.region;
    const offsets = batch.offset;
    const lengths = batch.length;
    let segment = firsts[begun]! | 0;
    // A segment is a descriptor here: how far those go that were seen, and those that there is room for.
    const start = segment;
    const seen = (start + this.#ready) | 0;
    const free = (start + size - this.#outstanding) | 0;
    const most = Math.min(free, regions.length) | 0;
    // V8 looks at each array's kind, length and address here, not once a buffer: see SplitDevice.
    u32[0];
    book[0];
    tokens[0];
    firstWritable[0];
    readableOf[0];
    writableOf[0];
    written[0];
    regions[0];
    offsets[0];
    lengths[0];
    let avail = this.#avail | 0;
    let bits = this.#availBits << 16;
    let i = begun;
    run: while (i < end && segment < seen) {
      const begin = segment;
      let into = begin;
      let slot = avail;
      let readable = begin;
      let readableBytes = 0;
      let writableBytes = 0;
      let word = F_NEXT << 16;
      while ((word & (F_NEXT << 16)) !== 0) {
        const at = slot * 4;
        word = u32[at + 3]! | 0;
        if (into === begin && (word & (F_AVAIL_USED << 16)) !== bits) break run;
        const low = u32[at]!;
        const high = u32[at + 1]!;
        const length = u32[at + 2]!;
        const offset = ((low | 0) - windowStart) >>> 0;
        if (
          (high | 0) !== windowHigh || offset >= windowSize ||
          ((length - 1) >>> 0) >= ((windowSize - offset) >>> 0) ||
          (word & (F_INDIRECT << 16)) !== 0 || into >= most
        ) {
          break run;
        }
        if ((word & (F_WRITE << 16)) !== 0) {
          writableBytes += length;
        } else {
          if (readable !== into) break run;
          readable = (readable + 1) | 0;
          readableBytes += length;
        }
        regions[into] = region;
        offsets[into] = windowOffset === 0 ? offset : offset + windowOffset;
        lengths[into] = length;
        into = (into + 1) | 0;
        slot = (slot + 1) | 0;
        if (slot === size) slot = 0;
      }
      // The id counts in the last descriptor only (2.8.6).
      const id = word & 0xffff;
      const row = id * 4;
      // An id beyond the table reads undefined.
      if (book[row + SLOTS] !== 0 || writableBytes > LENGTH_LIMIT) break;
      book[row + SLOTS] = into - begin;
      book[row + START] = avail;
      book[row + LIMIT] = writableBytes;
      book[avail * 4 + OWNER] = id + 1;
      tokens[i] = id;
      firstWritable[i] = readable;
      readableOf[i] = readableBytes;
      writableOf[i] = writableBytes;
      written[i] = 0;
      i = (i + 1) | 0;
      firsts[i] = into;
      segment = into;
      if (slot <= avail) bits ^= F_AVAIL_USED << 16;
      avail = slot;
    }
    batch.count = i;
    batch.memory = this.#memory;
    this.#avail = avail;
    this.#availBits = bits >>> 16;
    this.#outstanding += segment - start;
    this.#inFlight += i - begun;
    this.#ready = seen > segment ? seen - segment : 0;
  }

  /**
   * Reads flags ahead, from the next descriptor on; false where it is not available.
   *
   * Plain reads up to the first descriptor that is not available, then one atomic load of the
   * last one that is. Where loads stay in order (see `strongOrdering`) the driver's stores before
   * each of these flags are visible to loads that come later; the atomic load keeps the compiler
   * from moving those up. A descriptor inside a chain whose head was not stored yet is never
   * counted, because the run stops at that head.
   */
  #scan(): boolean {
    const u16 = this.#u16;
    const size = this.#size;
    let bits = this.#availBits;
    let index = this.#avail * 8 + 7;
    let last = index;
    let run = 0;
    while (
      run < SCAN_DESCRIPTORS && (u16[index]! & F_AVAIL_USED) === bits
    ) {
      last = index;
      run++;
      index += 8;
      if (index >= size * 8) {
        index = 7;
        bits ^= F_AVAIL_USED;
      }
    }
    this.#ready = run;
    if (run === 0) return false;
    Atomics.load(u16, last);
    return true;
  }

  #popRestored(chain: Chain): boolean {
    const { id, slots, descriptors } = this.#restored[this.#nextRestored]!;
    chain.memory = this.#memory;
    chain.clear();
    let fault: RingError | null = null;
    if (descriptors.length === 0) {
      fault = chainFault(
        "BAD_QUEUE_STATE",
        "2.8.6",
        "it was malformed when the queue was saved",
      );
    }
    for (const { addr, len, writable } of descriptors) {
      if (!chain.append(addr, len, writable)) {
        fault = badAddress(Math.floor(addr / TWO_32), addr % TWO_32, len);
        break;
      }
    }
    if (fault !== null) {
      chain.clear();
      chain.fault = fault;
    }
    this.#nextRestored++;
    this.#restoredLeft--;
    if (id * 4 >= this.#book.length) this.#growIds();
    this.#book[id * 4 + SLOTS] = slots;
    this.#book[id * 4 + START] = NOT_IN_RING;
    this.#book[id * 4 + LIMIT] = Math.min(chain.writableBytes, LENGTH_LIMIT);
    this.#inFlight++;
    chain.token = id;
    return true;
  }

  /**
   * Gives back a buffer that was popped and not pushed; the next `pop()` fetches it again. May be
   * repeated: buffers are given back from the last fetched one on, so that those which remain
   * were all fetched before it.
   *
   * @throws {TypeError} when `token` is not in flight, or is not the last fetched buffer.
   */
  unpop(token: number): void {
    if (!this.#isInFlight(token)) {
      throw new TypeError(
        `Cannot give buffer ${token} back: it is not in flight`,
      );
    }
    const slots = this.#book[token * 4 + SLOTS]!;
    const start = this.#book[token * 4 + START]!;
    // The last one fetched ends where the next one begins. One that was copied can look so by
    // having done so a lap ago.
    const last = start === NOT_IN_RING
      ? this.#isLastRestored(token)
      : (start + slots) % this.#size === this.#avail &&
        !this.#copies.has(token);
    if (!last) {
      throw new TypeError(
        `Cannot give buffer ${token} back: it is not the last one fetched`,
      );
    }
    this.#book[token * 4 + SLOTS] = 0;
    this.#inFlight--;
    if (start === NOT_IN_RING) {
      this.#nextRestored--;
      this.#restoredLeft++;
      return;
    }
    this.#avail = start;
    if (start + slots >= this.#size) this.#availBits ^= F_AVAIL_USED;
    this.#outstanding -= slots;
    this.#ready = 0;
  }

  // While a restored buffer is in flight, buffers of the ring that were fetched after it are
  // either in flight, which the available position tells, or pushed, which has been noted.
  #isLastRestored(token: number): boolean {
    return !this.#pastRestored && this.#avail === this.#restoredAvail &&
      this.#availBits === this.#restoredBits &&
      this.#restored[this.#nextRestored - 1]!.id === token;
  }

  /**
   * Stages the completion of a buffer with `written` bytes in its writable part; the driver
   * does not see it before `publish()`. A buffer may be pushed in any order, unless
   * VIRTIO_F_IN_ORDER was negotiated (2.8.8): see {@link DeviceQueue.push}.
   *
   * @throws {RangeError} when `token` is not in flight, or not the first fetched of those in flight where
   * the order counts, or `written` is no count of bytes up to those that the buffer has.
   */
  push(token: number, written: number): void {
    const book = this.#book;
    const row = token * 4;
    // A token beyond the table reads undefined.
    const slots = book[row + SLOTS]!;
    if (
      !(slots > 0 && written <= book[row + LIMIT]!) ||
      token >>> 0 !== token || written >>> 0 !== written
    ) {
      this.#refusePush(token, written);
    }
    if (this.#inOrder) return this.#pushInOrder(token, written, slots);
    const used = this.#used;
    if (this.#copied !== 0 || book[row + START] !== used) {
      this.#saveOverwritten(token, slots);
    }
    book[row + SLOTS] = 0;
    this.#outstanding -= slots;
    this.#inFlight--;

    // WRITE says that the length counts (2.8.3, 2.8.4).
    const bits = this.#usedBits;
    const flags = written === 0 ? bits : bits | F_WRITE;
    const staged = this.#stagedSlots;
    this.#u32[used * 4 + 2] = written;
    if (staged === 0) {
      this.#stagedFirst = used;
      this.#stagedFlags = flags;
      this.#u16[used * 8 + 6] = token;
    } else {
      // Flags and all, since the driver can't pass the batch's first descriptor.
      this.#u32[used * 4 + 3] = token | (flags << 16);
    }
    this.#stagedSlots = staged + slots;
    const next = used + slots;
    if (next >= this.#size) {
      this.#used = next - this.#size;
      this.#usedBits = bits ^ F_AVAIL_USED;
    } else {
      this.#used = next;
    }
  }

  /** Stages the completion of all buffers of a batch: see {@link BatchDeviceQueue.pushBatch}. */
  pushBatch(batch: ChainBatch): void {
    const count = batch.count;
    const tokens = batch.token;
    const written = batch.written;
    const book = this.#book;
    const u32 = this.#u32;
    const size = this.#size;
    let i = 0;
    while (i < count) {
      let used = this.#used;
      let bits = this.#usedBits;
      let passed = 0;
      const begun = i;
      // The first of what is published together has its own way, and so has what completes out of order.
      if (this.#stagedSlots !== 0 && this.#copied === 0 && !this.#inOrder) {
        while (i < count) {
          const token = tokens[i]!;
          const length = written[i]!;
          const row = token * 4;
          const slots = book[row + SLOTS]!;
          if (
            !(slots > 0 && length <= book[row + LIMIT]!) ||
            book[row + START] !== used
          ) break;
          book[row + SLOTS] = 0;
          u32[used * 4 + 2] = length;
          const flags = length === 0 ? bits : bits | F_WRITE;
          u32[used * 4 + 3] = token | flags << 16;
          passed += slots;
          used += slots;
          if (used >= size) {
            used -= size;
            bits ^= F_AVAIL_USED;
          }
          i++;
        }
        this.#used = used;
        this.#usedBits = bits;
        this.#stagedSlots += passed;
        this.#outstanding -= passed;
        this.#inFlight -= i - begun;
        if (i === count) break;
      }
      this.push(tokens[i]!, written[i]!);
      i++;
    }
    batch.clear();
  }

  // One used descriptor for a run of buffers that were used completely and the one behind them: it lies
  // where the first one's would, and has the id and length of the last (2.8.8). So each is written over the
  // one before.
  #pushInOrder(token: number, written: number, slots: number): void {
    const book = this.#book;
    const row = token * 4;
    // Restored buffers are older than all others, which still stand in the ring.
    const first = this.#restoredPushed < this.#restored.length
      ? this.#restored[this.#restoredPushed]!.id === token
      : book[row + START] === this.#used;
    if (!first) {
      throw new RangeError(
        `Cannot push buffer ${token}: buffers in flight were fetched before it, and VIRTIO_F_IN_ORDER was negotiated`,
      );
    }
    if (this.#restoredPushed < this.#restored.length) {
      this.#restoredPushed++;
      this.#copies.delete(token);
      this.#copied = this.#copies.size;
    }
    // A longer writable part than a used length can tell is never complete.
    const complete = written === book[row + LIMIT] && written !== LENGTH_LIMIT;
    book[row + SLOTS] = 0;
    this.#outstanding -= slots;
    this.#inFlight--;

    const at = this.#batch;
    const flags = written === 0 ? this.#batchBits : this.#batchBits | F_WRITE;
    this.#u32[at * 4 + 2] = written;
    if (this.#stagedSlots === 0 || at === this.#stagedFirst) {
      this.#stagedFirst = at;
      this.#stagedFlags = flags;
      this.#u16[at * 8 + 6] = token;
    } else {
      this.#u32[at * 4 + 3] = token | (flags << 16);
    }
    this.#stagedSlots += slots;
    const next = this.#used + slots;
    if (next >= this.#size) {
      this.#used = next - this.#size;
      this.#usedBits ^= F_AVAIL_USED;
    } else {
      this.#used = next;
    }
    if (!complete) this.#closeBatch();
  }

  #closeBatch(): void {
    this.#batch = this.#used;
    this.#batchBits = this.#usedBits;
  }

  // Out of order: copies the descriptors of other buffers in flight out of the slots that now
  // count as used, before the device writes there and the driver may.
  #saveOverwritten(token: number, slots: number): void {
    const size = this.#size;
    const copies = this.#copies;
    let slot = this.#used;
    for (let i = 0; i < slots; i++) {
      const id = this.#ownerOf(slot);
      if (id >= 0 && id !== token) {
        const taken = this.#book[id * 4 + SLOTS]!;
        copies.set(id, { slots: taken, table: this.#copyOut(slot, taken) });
      }
      if (++slot === size) slot = 0;
    }
    if (this.#book[token * 4 + START] !== NOT_IN_RING) {
      this.#pastRestored = true;
    }
    copies.delete(token);
    this.#copied = copies.size;
  }

  #copyOut(slot: number, slots: number): Uint32Array {
    const table = new Uint32Array(slots * 4);
    const head = Math.min(slots, this.#size - slot);
    table.set(this.#u32.subarray(slot * 4, (slot + head) * 4));
    table.set(this.#u32.subarray(0, (slots - head) * 4), head * 4);
    return table;
  }

  /**
   * Makes all staged completions visible to the driver; false where there were none.
   *
   * One atomic store, of the flags of the batch's first used descriptor: everything else was
   * stored before it, and the driver looks at no later descriptor before this one is used.
   */
  publish(): boolean {
    const staged = this.#stagedSlots;
    if (staged === 0) return false;
    Atomics.store(this.#u16, this.#stagedFirst * 8 + 7, this.#stagedFlags);
    this.#stagedSlots = 0;
    this.#moved += staged;
    if (this.#inOrder) this.#closeBatch();
    return true;
  }

  /**
   * Tells, after `publish()`, whether the driver wants an interrupt for what was published.
   *
   * True once after a restore, whatever the driver asks for: what was published before the save
   * may not have been told. A reserved value of the flags counts as enabled, because a needless
   * interrupt is lawful and a lost one hangs (virtio 1.4, 2.8.10).
   */
  needsInterrupt(): boolean {
    const moved = this.#moved;
    this.#moved = 0;
    if (!this.#movedValid) {
      this.#movedValid = true;
      return true;
    }
    if (moved === 0) return false;
    const event = this.#driverEvent;
    // Plainly only where that is sure to come in this order behind the store in publish().
    const strong = this.#strong;
    const flags = (strong ? event[1]! : Atomics.load(event, 1)) & 3;
    if (flags !== EVENT_DESC || !this.#eventIdx) return flags !== EVENT_DISABLE;
    // Where the published part ends; usually nothing is staged by now.
    let position = this.#used - this.#stagedSlots;
    let wrap = this.#usedBits >>> 15;
    if (position < 0) {
      position += this.#size;
      wrap ^= 1;
    }
    const offWrap = strong ? event[0]! : Atomics.load(event, 0);
    return packedEventPassed(offWrap, position, wrap, moved, this.#size);
  }

  /**
   * Asks the driver for kicks; true when work arrived meanwhile, so that one may be missed.
   *
   * With EVENT_IDX for the next descriptor that the driver makes available, else for any. False
   * on a broken ring, which has no more work.
   */
  armKicks(): boolean {
    if (this.#broken !== null) return false;
    const event = this.#deviceEvent;
    const avail = this.#avail;
    const bits = this.#availBits;
    const flags = this.#eventIdx ? EVENT_DESC : EVENT_ENABLE;
    if (flags === EVENT_DESC) {
      Atomics.store(event, 0, avail | ((bits & F_AVAIL) << 8));
    }
    if (this.#eventFlags !== flags) {
      Atomics.store(event, 1, flags);
      this.#eventFlags = flags;
    }
    return this.#restoredLeft !== 0 ||
      (Atomics.load(this.#u16, avail * 8 + 7) & F_AVAIL_USED) === bits;
  }

  /**
   * Tells the driver that kicks are not needed; a hint, which it may not see at once.
   *
   * With EVENT_IDX the event that was armed last lies behind once the driver has passed it, so
   * that nothing needs to be written.
   */
  disarmKicks(): void {
    const flags = this.#eventFlags;
    if (flags === EVENT_DISABLE || flags === EVENT_DESC) return;
    this.#deviceEvent[1] = EVENT_DISABLE;
    this.#eventFlags = EVENT_DISABLE;
  }

  /**
   * State from which another instance goes on, with the buffers in flight; changes nothing.
   *
   * Indirect tables are resolved; a buffer that is malformed has no descriptors.
   *
   * @throws {TypeError} when completions are staged that were not published.
   */
  save(): QueueState {
    if (this.#stagedSlots !== 0) {
      throw new TypeError(
        "Cannot save the queue: completions are not published",
      );
    }
    const inFlight: InFlightBuffer[] = [];
    for (const [id, { slots, table }] of this.#copies) {
      inFlight.push({ id, slots, descriptors: this.#walker.resolve(table) });
    }
    // What was not copied stands in the ring as it was fetched.
    const size = this.#size;
    let slot = this.#used;
    for (let left = this.#outstanding; left > 0;) {
      const id = this.#ownerOf(slot);
      let slots = 1;
      if (id >= 0) {
        slots = this.#book[id * 4 + SLOTS]!;
        const descriptors = this.#walker.resolve(this.#copyOut(slot, slots));
        inFlight.push({ id, slots, descriptors });
      }
      left -= slots;
      slot += slots;
      if (slot >= size) slot -= size;
    }
    return {
      format: "packed",
      lastAvailIdx: this.#avail,
      lastAvailWrapCounter: this.#availBits === F_AVAIL ? 1 : 0,
      usedIdx: this.#used,
      usedWrapCounter: this.#usedBits === 0 ? 0 : 1,
      inFlight,
    };
  }

  /**
   * Goes on over the same guest addresses in `memory`: a memory table that changed, or a buffer
   * that moved. Segments in chains popped before belong to the old memory.
   *
   * @throws {RingError} `BAD_QUEUE_ADDRESS` when the ring is not inside it; the queue is unchanged.
   */
  rebind(memory: GuestMemory): void {
    const views = mapPackedViews(memory, this.#config);
    this.#memory = memory;
    this.#u16 = views.u16;
    this.#u32 = views.u32;
    this.#driverEvent = views.driverEvent;
    this.#deviceEvent = views.deviceEvent;
    this.#walker = new PackedWalker(
      memory,
      views.u32,
      this.#size,
      this.#indirect,
    );
    this.#ready = 0;
  }

  #restore(untrusted: QueueState): void {
    const state = checkQueueState(untrusted, this.#size, "packed");
    this.#avail = state.lastAvailIdx;
    this.#availBits = state.lastAvailWrapCounter === 1 ? F_AVAIL : F_USED;
    this.#used = state.usedIdx;
    this.#usedBits = state.usedWrapCounter === 1 ? F_AVAIL_USED : 0;
    this.#closeBatch();
    this.#outstanding = state.lastAvailWrapCounter === state.usedWrapCounter
      ? state.lastAvailIdx - state.usedIdx
      : state.lastAvailIdx - state.usedIdx + this.#size;
    this.#movedValid = false;
    this.#restoredAvail = this.#avail;
    this.#restoredBits = this.#availBits;
    this.#restored = state.inFlight;
    this.#restoredLeft = state.inFlight.length;
    for (const { id, slots, descriptors } of state.inFlight) {
      const table = new Uint32Array(descriptors.length * 4);
      descriptors.forEach(({ addr, len, writable }, i) => {
        table[i * 4] = addr % TWO_32;
        table[i * 4 + 1] = Math.floor(addr / TWO_32);
        table[i * 4 + 2] = len;
        table[i * 4 + 3] = (writable ? F_WRITE : 0) << 16;
      });
      this.#copies.set(id, { slots, table });
    }
    this.#copied = this.#copies.size;
    this.armKicks();
  }

  #isInFlight(token: number): boolean {
    return token >>> 0 === token && token * 4 < this.#book.length &&
      this.#book[token * 4 + SLOTS] !== 0;
  }

  // The buffer in flight that begins at a slot and stands there as it was fetched, or -1.
  #ownerOf(slot: number): number {
    const id = this.#book[slot * 4 + OWNER]! - 1;
    return this.#isInFlight(id) && this.#book[id * 4 + START] === slot &&
        !this.#copies.has(id)
      ? id
      : -1;
  }

  #growIds(): void {
    const book = new Uint32Array(ID_LIMIT * 4);
    book.set(this.#book);
    this.#book = book;
  }

  #refusePush(token: number, written: number): never {
    throw new RangeError(
      this.#isInFlight(token)
        ? `Cannot push buffer ${token} with ${written} bytes: it has room for ${
          this.#book[token * 4 + LIMIT]
        }`
        : `Cannot push buffer ${token}: it is not in flight`,
    );
  }

  #break(error: RingError): never {
    this.#broken = error;
    throw error;
  }
}

function tooLong(size: number): RingError {
  return new RingError(
    "CHAIN_TOO_LONG_FOR_RING",
    "2.8.17",
    `Cannot fetch a buffer: more descriptors are available than the ring's ${size}`,
    true,
  );
}

function idInFlight(id: number): RingError {
  return new RingError(
    "ID_IN_FLIGHT",
    "2.8.21.1",
    `Cannot fetch a buffer: its id ${id} is in flight already`,
    true,
  );
}
