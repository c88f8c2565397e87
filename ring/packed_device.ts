import { mapPackedViews, packedEventPassed } from "./_packed.ts";
import type { Chain } from "./chain.ts";
import { RingError, type RingErrorCode } from "./errors.ts";
import type { GuestMemory } from "./memory.ts";
import type {
  DeviceQueue,
  InFlightBuffer,
  InFlightDescriptor,
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

/** Addresses are Numbers: the high word of one below 2^53 is below this. */
const ADDRESS_HIGH_LIMIT = 0x200000;
const TWO_32 = 4294967296;
/** Flags that are read ahead of the buffers, in one go; bounds the work, and 10 ns are shared. */
const SCAN_DESCRIPTORS = 128;
/** An indirect table may have as many entries as the queue, and this many in a small queue. */
const INDIRECT_ENTRIES = 1024;
/** Buffer ids are 16 bits; a driver may choose them beyond the queue's size. */
const ID_LIMIT = 65536;
/** Where a restored buffer lies: nowhere in the ring any more. */
const NOT_IN_RING = -1;
/** What `#limit` holds for an id that is not in flight. */
const FREE = -1;

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
export class PackedDevice implements DeviceQueue {
  /** Always `"packed"`. */
  readonly format: RingFormat = "packed";
  /** Descriptors. */
  readonly size: number;

  readonly #size: number;
  readonly #eventIdx: boolean;
  readonly #indirect: boolean;
  readonly #strong: boolean;
  readonly #config: QueueConfig;

  #memory: GuestMemory;
  #u16: Uint16Array;
  #u32: Uint32Array;
  #driverEvent: Uint16Array;
  #deviceEvent: Uint16Array;
  // Word views for indirect tables, by region.
  #words: Uint32Array[];

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
  // Slots published since needsInterrupt() was asked; not valid after a restore.
  #moved = 0;
  #movedValid = true;
  // What the device event flags hold, -1 where unknown.
  #eventFlags = -1;

  // By id: writable bytes of the buffer or FREE, slots taken, and the first of them.
  #limit: Float64Array;
  #slots: Uint16Array;
  #start: Int32Array;
  // By slot: the id of the last buffer that began there.
  #owner: Int32Array;
  // By id, in the order of the first fetch: buffers whose slots can't be re-read. They are all
  // older than the others in flight, since used descriptors go round the ring in the same order.
  #copies: Map<number, Copy> = new Map();
  #copied = 0;

  // Restored buffers; from #nextRestored on they wait to be handed out (again).
  #restored: InFlightBuffer[] = [];
  #nextRestored = 0;
  #restoredLeft = 0;
  // Where the ring stood then, and whether a buffer of the ring was pushed while some remained.
  #restoredAvail = 0;
  #restoredBits = 0;
  #pastRestored = false;

  #broken: RingError | null = null;

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
    this.#memory = memory;
    this.#u16 = views.u16;
    this.#u32 = views.u32;
    this.#driverEvent = views.driverEvent;
    this.#deviceEvent = views.deviceEvent;
    this.#words = wordViews(memory);
    this.#limit = new Float64Array(size).fill(FREE);
    this.#slots = new Uint16Array(size);
    this.#start = new Int32Array(size);
    this.#owner = new Int32Array(size).fill(-1);
    if (state !== undefined) this.#restore(state);
  }

  /** Buffers that were popped and not pushed. */
  get inFlight(): number {
    return this.#inFlight;
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
    let bits = this.#availBits;
    let flags = 0;
    if (!this.#strong) {
      flags = Atomics.load(this.#u16, first * 8 + 7);
    } else {
      if (this.#ready === 0 && !this.#scan()) return false;
      flags = this.#u16[first * 8 + 7]!;
    }
    if ((flags & F_AVAIL_USED) !== bits) {
      this.#ready = 0;
      return false;
    }

    const size = this.#size;
    const room = size - this.#outstanding;
    const memory = this.#memory;
    chain.memory = memory;
    chain.clear();
    let fault: RingError | null = null;
    let writable = false;
    let slot = first;
    let slots = 0;
    let id = 0;
    for (;;) {
      // Also where the ring is full already: what looks available there is no lawful descriptor.
      if (slots === room) return this.#break(tooLong(size));
      const low = u32[slot * 4]!;
      const high = u32[slot * 4 + 1]!;
      const length = u32[slot * 4 + 2]!;
      // The id counts in the last descriptor only (2.8.6).
      const idAndFlags = u32[slot * 4 + 3]!;
      id = idAndFlags & 0xffff;
      if (slots !== 0) flags = idAndFlags >>> 16;
      slots++;
      slot++;
      if (slot === size) {
        slot = 0;
        bits ^= F_AVAIL_USED;
      }
      if (fault === null) {
        if ((flags & F_INDIRECT) !== 0) {
          fault = this.#fetchTable(
            chain,
            low,
            high,
            length,
            slots === 1 && (flags & F_NEXT) === 0,
          );
        } else {
          if ((flags & F_WRITE) !== 0) {
            writable = true;
          } else if (writable) {
            fault = outOfOrder();
          }
          if (
            high >= ADDRESS_HIGH_LIMIT ||
            !chain.append(high * TWO_32 + low, length, writable)
          ) {
            fault ??= badAddress(high, low, length);
          }
        }
      }
      if ((flags & F_NEXT) === 0) break;
    }

    if (fault !== null) {
      chain.clear();
      chain.fault = fault;
    }
    if (id >= this.#limit.length) this.#growIds();
    const limit = this.#limit;
    if (limit[id] !== FREE) return this.#break(idInFlight(id));
    limit[id] = chain.writableBytes;
    this.#slots[id] = slots;
    this.#start[id] = first;
    this.#owner[first] = id;
    this.#avail = slot;
    this.#availBits = bits;
    this.#outstanding += slots;
    this.#inFlight++;
    const ready = this.#ready;
    this.#ready = ready > slots ? ready - slots : 0;
    chain.token = id;
    return true;
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

  // Appends the entries of an indirect table (2.8.7); returns what is wrong, or null.
  #fetchTable(
    chain: Chain,
    low: number,
    high: number,
    length: number,
    alone: boolean,
  ): RingError | null {
    if (!this.#indirect) {
      return chainFault(
        "INDIRECT_NOT_NEGOTIATED",
        "2.8.19",
        "its descriptor is indirect",
      );
    }
    if (!alone) {
      return chainFault(
        "INDIRECT_WITH_NEXT",
        "2.8.19",
        "an indirect descriptor is in a chain",
      );
    }
    const size = this.#size;
    const most = size > INDIRECT_ENTRIES ? size : INDIRECT_ENTRIES;
    if (length === 0 || (length & 15) !== 0 || length > most * 16) {
      return chainFault(
        "INDIRECT_TABLE_SIZE",
        "2.8.7",
        `its indirect table has ${length} bytes`,
      );
    }
    const memory = this.#memory;
    const region = high < ADDRESS_HIGH_LIMIT
      ? memory.locate(high * TWO_32 + low)
      : -1;
    if (region < 0 || memory.foundRoom < length) {
      return badAddress(high, low, length);
    }
    let offset = memory.foundOffset;
    let words = this.#words[region]!;
    if ((offset & 3) !== 0) {
      // No driver does this, but nothing forbids it.
      words = new Uint32Array(
        memory.regions[region]!.bytes.slice(offset, offset + length).buffer,
      );
      offset = 0;
    }
    let writable = false;
    const end = offset / 4 + length / 4;
    for (let word = offset / 4; word < end; word += 4) {
      const entryLow = words[word]!;
      const entryHigh = words[word + 1]!;
      const entryLength = words[word + 2]!;
      // WRITE is the only flag that counts: no NEXT, no nesting.
      if (((words[word + 3]! >>> 16) & F_WRITE) !== 0) {
        writable = true;
      } else if (writable) {
        return outOfOrder();
      }
      if (
        entryHigh >= ADDRESS_HIGH_LIMIT ||
        !chain.append(entryHigh * TWO_32 + entryLow, entryLength, writable)
      ) {
        return badAddress(entryHigh, entryLow, entryLength);
      }
    }
    return null;
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
    if (id >= this.#limit.length) this.#growIds();
    this.#limit[id] = chain.writableBytes;
    this.#slots[id] = slots;
    this.#start[id] = NOT_IN_RING;
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
    const limit = this.#limit[token];
    if (limit === undefined || limit === FREE) {
      throw new TypeError(
        `Cannot give buffer ${token} back: it is not in flight`,
      );
    }
    const slots = this.#slots[token]!;
    const start = this.#start[token]!;
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
    this.#limit[token] = FREE;
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
   * does not see it before `publish()`. A buffer may be pushed in any order.
   *
   * @throws {RangeError} when `token` is not in flight, or `written` is no count of bytes up to
   * those that the buffer has.
   */
  push(token: number, written: number): void {
    const limit = this.#limit;
    // One comparison for both: FREE is negative, an id beyond the table reads undefined.
    if (!(written <= limit[token]!) || written >>> 0 !== written) {
      this.#refusePush(token, written);
    }
    const slots = this.#slots[token]!;
    const used = this.#used;
    if (this.#copied !== 0 || this.#start[token] !== used) {
      this.#saveOverwritten(token, slots);
    }
    limit[token] = FREE;
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

  // Out of order: copies the descriptors of other buffers in flight out of the slots that now
  // count as used, before the device writes there and the driver may.
  #saveOverwritten(token: number, slots: number): void {
    const size = this.#size;
    const copies = this.#copies;
    let slot = this.#used;
    for (let i = 0; i < slots; i++) {
      const id = this.#owner[slot]!;
      if (
        id >= 0 && id !== token && this.#start[id] === slot &&
        this.#limit[id] !== FREE && !copies.has(id)
      ) {
        const taken = this.#slots[id]!;
        copies.set(id, { slots: taken, table: this.#copyOut(slot, taken) });
      }
      if (++slot === size) slot = 0;
    }
    if (this.#start[token] !== NOT_IN_RING) this.#pastRestored = true;
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
    const flags = Atomics.load(event, 1) & 3;
    if (flags !== EVENT_DESC || !this.#eventIdx) return flags !== EVENT_DISABLE;
    // Where the published part ends; usually nothing is staged by now.
    let position = this.#used - this.#stagedSlots;
    let wrap = this.#usedBits >>> 15;
    if (position < 0) {
      position += this.#size;
      wrap ^= 1;
    }
    const event0 = Atomics.load(event, 0);
    return packedEventPassed(event0, position, wrap, moved, this.#size);
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
      inFlight.push({ id, slots, descriptors: this.#resolve(table) });
    }
    // What was not copied stands in the ring as it was fetched.
    const size = this.#size;
    let slot = this.#used;
    for (let left = this.#outstanding; left > 0;) {
      const id = this.#owner[slot]!;
      let slots = 1;
      if (
        id >= 0 && this.#start[id] === slot && this.#limit[id] !== FREE &&
        !this.#copies.has(id)
      ) {
        slots = this.#slots[id]!;
        const descriptors = this.#resolve(this.#copyOut(slot, slots));
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

  // Descriptors as plain data; none where the buffer breaks a rule.
  #resolve(table: Uint32Array): InFlightDescriptor[] {
    const first = table[3]! >>> 16;
    let words = table;
    let bits = F_WRITE | F_INDIRECT;
    if ((first & F_INDIRECT) !== 0) {
      const length = table[2]!;
      const limit = Math.max(this.#size, INDIRECT_ENTRIES) * 16;
      const region = this.#memory.locate(table[1]! * TWO_32 + table[0]!);
      if (
        !this.#indirect || table.length !== 4 || length % 16 !== 0 ||
        length > limit || region < 0 || length > this.#memory.foundRoom
      ) return [];
      const offset = this.#memory.foundOffset;
      const { bytes } = this.#memory.regions[region]!;
      words = new Uint32Array(bytes.slice(offset, offset + length).buffer);
      bits = F_WRITE;
    }
    const descriptors: InFlightDescriptor[] = [];
    let writable = false;
    for (let i = 0; i < words.length; i += 4) {
      const addr = words[i + 1]! * TWO_32 + words[i]!;
      const flags = (words[i + 3]! >>> 16) & bits;
      if (
        (flags & F_INDIRECT) !== 0 || addr > Number.MAX_SAFE_INTEGER ||
        (writable && flags === 0)
      ) return [];
      writable = flags !== 0;
      descriptors.push({ addr, len: words[i + 2]!, writable });
    }
    return descriptors;
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
    this.#words = wordViews(memory);
    this.#ready = 0;
  }

  #restore(untrusted: QueueState): void {
    const state = checkQueueState(untrusted, this.#size, "packed");
    this.#avail = state.lastAvailIdx;
    this.#availBits = state.lastAvailWrapCounter === 1 ? F_AVAIL : F_USED;
    this.#used = state.usedIdx;
    this.#usedBits = state.usedWrapCounter === 1 ? F_AVAIL_USED : 0;
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

  #growIds(): void {
    const limit = new Float64Array(ID_LIMIT).fill(FREE);
    const slots = new Uint16Array(ID_LIMIT);
    const start = new Int32Array(ID_LIMIT);
    limit.set(this.#limit);
    slots.set(this.#slots);
    start.set(this.#start);
    this.#limit = limit;
    this.#slots = slots;
    this.#start = start;
  }

  #refusePush(token: number, written: number): never {
    const limit = this.#limit[token];
    throw new RangeError(
      limit === undefined || limit === FREE
        ? `Cannot push buffer ${token}: it is not in flight`
        : `Cannot push buffer ${token} with ${written} bytes: it has room for ${limit}`,
    );
  }

  #break(error: RingError): never {
    this.#broken = error;
    throw error;
  }
}

function wordViews(memory: GuestMemory): Uint32Array[] {
  return memory.regions.map(({ bytes }) =>
    new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length >>> 2)
  );
}

function chainFault(
  code: RingErrorCode,
  section: string,
  why: string,
): RingError {
  return new RingError(code, section, `Cannot use a buffer: ${why}`);
}

function outOfOrder(): RingError {
  return chainFault(
    "READABLE_AFTER_WRITABLE",
    "2.8.17",
    "a readable descriptor comes after a writable one",
  );
}

function badAddress(high: number, low: number, length: number): RingError {
  const address = (BigInt(high) << 32n | BigInt(low)).toString(16);
  return chainFault(
    "BAD_ADDRESS",
    "2.8.5",
    `no region holds all of ${length} bytes at guest address 0x${address}`,
  );
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
