import {
  badRegion,
  checkFlag,
  checkHeader,
  checkRegion,
  INFLIGHT_VERSION,
  readCounter,
} from "./_inflight.ts";
import { mapPackedViews, type PackedViews } from "./_packed.ts";
import { PackedWalker } from "./_packed_walk.ts";
import { RingError } from "./errors.ts";
import type { InflightRegion } from "./inflight.ts";
import type { GuestMemory } from "./memory.ts";
import type {
  InFlightBuffer,
  QueueConfig,
  QueueState,
  RingFormat,
} from "./queue.ts";
import { checkQueueState } from "./state.ts";

const F_AVAIL = 0x80;
const F_USED = 0x8000;
const F_AVAIL_USED = 0x8080;
const ID_LIMIT = 65536;
const TWO_32 = 0x100000000;

// QueueRegionPacked: features (8 bytes), then 16-bit words and two bytes, padded to 32.
const VERSION = 4;
const DESC_NUM = 5;
const FREE_HEAD = 6;
const OLD_FREE_HEAD = 7;
const USED_IDX = 8;
const OLD_USED_IDX = 9;
const USED_WRAP_BYTE = 20;
const OLD_USED_WRAP_BYTE = 21;
/** The word that holds `free_head` and, above it, `old_free_head`. */
const FREE_HEADS_WORD = 3;
const HEADER_BYTES = 32;
// DescStatePacked: a byte `inflight`; 16-bit words next, last, num; counter at byte 8; 16-bit words id
// and flags at 16; len at 20; addr at 24.
const ENTRY_BYTES = 32;
const NEXT = 1;
const LAST = 2;
const NUM = 3;

/**
 * The in-flight region of a packed queue: copies of the descriptors of buffers in flight, in lists of
 * entries, and a list of free ones (vhost-user, "Inflight I/O tracking", `QueueRegionPacked`).
 *
 * What is written over the ring by completions can be read here. A batch is entered under `free_head`,
 * `used_idx` and `used_wrap_counter` before it is published, and under their `old_` twins after it. A crash
 * between the two shows in their difference; whether the batch was published shows in the ring.
 *
 * Beyond the document: a batch as long as the ring moves the wrap counter only, so that is compared
 * too; `old_free_head` alone being up to date tells that the batch was published; and used descriptors of
 * a batch that was not published, which a driver would come upon when later ones are, are made
 * available ones again.
 */
export class PackedInflight implements InflightRegion {
  /** Always `"packed"`. */
  readonly format: RingFormat = "packed";
  /** Descriptors. */
  readonly size: number;

  readonly #config: QueueConfig;
  readonly #u8: Uint8Array;
  readonly #u16: Uint16Array;
  readonly #u32: Uint32Array;
  #memory: GuestMemory;
  #ring: PackedViews;
  #counter = 0;
  // What the region holds, which is not read back: the list of free entries, `size` where it ends, and by
  // head entry the last one and how many there are.
  readonly #next: Uint16Array;
  readonly #last: Uint16Array;
  readonly #num: Uint16Array;
  #freeHead = 0;
  #free = 0;
  #usedIdx = 0;
  #usedWrap = 1;
  // Where the next buffer is fetched.
  #avail = 0;
  // By buffer id: its head entry.
  readonly #entryOf: Uint16Array = new Uint16Array(ID_LIMIT);
  // Head entries of completions that are staged.
  readonly #staged: Uint16Array;
  #stagedCount = 0;

  /** Opens a region: see `openInflight()`. */
  constructor(bytes: Uint8Array, memory: GuestMemory, config: QueueConfig) {
    this.#ring = mapPackedViews(memory, config);
    const { size } = config;
    const length = HEADER_BYTES + ENTRY_BYTES * size;
    checkRegion(bytes, length);
    this.size = size;
    this.#config = { ...config };
    this.#memory = memory;
    this.#u8 = new Uint8Array(bytes.buffer, bytes.byteOffset, length);
    this.#u16 = new Uint16Array(bytes.buffer, bytes.byteOffset, length / 2);
    this.#u32 = new Uint32Array(bytes.buffer, bytes.byteOffset, length / 4);
    this.#next = new Uint16Array(size);
    this.#last = new Uint16Array(size);
    this.#num = new Uint16Array(size);
    this.#staged = new Uint16Array(size);
  }

  /** See {@link InflightRegion.initialized}. */
  get initialized(): boolean {
    return this.#u16[VERSION] !== 0;
  }

  /** See {@link InflightRegion.initialize}. */
  initialize(state: QueueState): void {
    if (state.format !== "packed") {
      throw new TypeError("Cannot set up a packed region: the state is split");
    }
    if (state.inFlight.length !== 0) {
      throw new TypeError(
        `Cannot set up a packed region: ${state.inFlight.length} buffers are in flight`,
      );
    }
    const { size } = this;
    const u16 = this.#u16;
    Atomics.store(u16, VERSION, 0);
    this.#u32.fill(0);
    u16[DESC_NUM] = size;
    for (let entry = 0; entry < size; entry++) {
      this.#setNext(entry, entry + 1);
    }
    this.#freeHead = 0;
    this.#free = size;
    u16[USED_IDX] = u16[OLD_USED_IDX] = this.#usedIdx = state.usedIdx;
    this.#u8[USED_WRAP_BYTE] = this.#usedWrap = state.usedWrapCounter;
    this.#u8[OLD_USED_WRAP_BYTE] = this.#usedWrap;
    this.#avail = state.lastAvailIdx;
    this.#counter = 0;
    this.#stagedCount = 0;
    Atomics.store(u16, VERSION, INFLIGHT_VERSION);
  }

  /** See {@link InflightRegion.recover}. */
  recover(): QueueState {
    checkHeader(this.#u16[VERSION]!, this.#u16[DESC_NUM]!, this.size);
    this.#settleLastBatch();
    const free = this.#walkFreeList();
    const { heads, taken } = this.#collect(free);
    if (free.size + taken !== this.size) {
      throw badRegion(
        `${free.size} entries are free and ${taken} in use, of ${this.size}`,
      );
    }
    this.#free = free.size;
    this.#stagedCount = 0;
    const walker = new PackedWalker(
      this.#memory,
      this.#ring.u32,
      this.size,
      this.#config.indirect === true,
    );
    const avail = this.#usedIdx + taken;
    const wraps = avail >= this.size;
    const state = checkQueueState(
      {
        format: "packed",
        lastAvailIdx: wraps ? avail - this.size : avail,
        lastAvailWrapCounter: wraps ? this.#usedWrap ^ 1 : this.#usedWrap,
        usedIdx: this.#usedIdx,
        usedWrapCounter: this.#usedWrap,
        inFlight: heads.map((head) => this.#bufferAt(head, walker)),
      },
      this.size,
      "packed",
    );
    this.#avail = state.lastAvailIdx;
    this.#withdraw(taken);
    return state;
  }

  // Decides whether the last batch was published, and makes the fields agree with their twins. Each
  // store leaves a region of which the next try thinks the same.
  #settleLastBatch(): void {
    const u16 = this.#u16;
    const u8 = this.#u8;
    const { size } = this;
    const freeHead = u16[FREE_HEAD]!;
    const oldFreeHead = u16[OLD_FREE_HEAD]!;
    const usedIdx = u16[USED_IDX]!;
    const oldUsedIdx = u16[OLD_USED_IDX]!;
    const wrap = checkFlag(u8[USED_WRAP_BYTE]!, "used_wrap_counter") ? 1 : 0;
    const oldWrap = checkFlag(u8[OLD_USED_WRAP_BYTE]!, "old_used_wrap_counter")
      ? 1
      : 0;
    if (freeHead > size || oldFreeHead > size) {
      throw badRegion(`a free list begins behind ${size} entries`);
    }
    if (usedIdx >= size || oldUsedIdx >= size) {
      throw badRegion(`a used index is not below ${size}`);
    }
    const moved = usedIdx !== oldUsedIdx || wrap !== oldWrap;
    if (
      moved &&
      (freeHead === oldFreeHead || !this.#available(oldUsedIdx, oldWrap))
    ) {
      u16[OLD_FREE_HEAD] = freeHead;
      u16[OLD_USED_IDX] = usedIdx;
      u8[OLD_USED_WRAP_BYTE] = wrap;
      this.#freeHead = freeHead;
      this.#usedIdx = usedIdx;
      this.#usedWrap = wrap;
      return;
    }
    if (moved) {
      u16[USED_IDX] = oldUsedIdx;
      u8[USED_WRAP_BYTE] = oldWrap;
    }
    if (freeHead !== oldFreeHead) u16[FREE_HEAD] = oldFreeHead;
    this.#freeHead = oldFreeHead;
    this.#usedIdx = oldUsedIdx;
    this.#usedWrap = oldWrap;
  }

  #available(slot: number, wrap: number): boolean {
    const flags = Atomics.load(this.#ring.u16, slot * 8 + 7) & F_AVAIL_USED;
    return flags === (wrap === 1 ? F_AVAIL : F_USED);
  }

  // Free entries are not in flight, whatever their flag says.
  #walkFreeList(): Set<number> {
    const free = new Set<number>();
    let entry = this.#freeHead;
    while (entry !== this.size) {
      if (entry > this.size || free.has(entry)) {
        throw badRegion(`the free list goes on at entry ${entry}`);
      }
      free.add(entry);
      const at = HEADER_BYTES + entry * ENTRY_BYTES;
      const next = this.#u16[at / 2 + NEXT]!;
      if (checkFlag(this.#u8[at]!, `inflight of entry ${entry}`)) {
        this.#u8[at] = 0;
      }
      this.#next[entry] = next;
      entry = next;
    }
    return free;
  }

  // Head entries of what is in flight, in the order of fetch, and how many entries these take in all.
  #collect(free: Set<number>): { heads: number[]; taken: number } {
    const { size } = this;
    const seen = new Set(free);
    const found: { head: number; counter: number }[] = [];
    for (let head = 0; head < size; head++) {
      const at = HEADER_BYTES + head * ENTRY_BYTES;
      if (!checkFlag(this.#u8[at]!, `inflight of entry ${head}`)) continue;
      const num = this.#u16[at / 2 + NUM]!;
      const last = this.#u16[at / 2 + LAST]!;
      let entry = head;
      for (let i = 0; i < num; i++) {
        if (entry >= size || seen.has(entry)) {
          throw badRegion(
            `the list of entry ${head} does not have ${num} entries of its own`,
          );
        }
        seen.add(entry);
        if (i === num - 1) break;
        const next = this
          .#u16[(HEADER_BYTES + entry * ENTRY_BYTES) / 2 + NEXT]!;
        this.#next[entry] = next;
        entry = next;
      }
      if (num === 0 || entry !== last) {
        throw badRegion(`the list of entry ${head} does not end at ${last}`);
      }
      this.#num[head] = num;
      this.#last[head] = last;
      found.push({ head, counter: readCounter(this.#u32, at / 4 + 2) });
    }
    found.sort((a, b) => a.counter - b.counter);
    this.#counter = (found.at(-1)?.counter ?? -1) + 1;
    return {
      heads: found.map(({ head }) => head),
      taken: seen.size - free.size,
    };
  }

  #bufferAt(head: number, walker: PackedWalker): InFlightBuffer {
    const slots = this.#num[head]!;
    const table = new Uint32Array(slots * 4);
    let entry = head;
    let id = 0;
    for (let i = 0; i < slots; i++) {
      const at = (HEADER_BYTES + entry * ENTRY_BYTES) / 4;
      const idFlags = this.#u32[at + 4]!;
      table[i * 4] = this.#u32[at + 6]!;
      table[i * 4 + 1] = this.#u32[at + 7]!;
      table[i * 4 + 2] = this.#u32[at + 5]!;
      table[i * 4 + 3] = idFlags;
      // The id counts in the last descriptor only (virtio 1.4, 2.8.6).
      id = idFlags & 0xffff;
      entry = this.#next[entry]!;
    }
    this.#entryOf[id] = head;
    return { id, slots, descriptors: walker.resolve(table) };
  }

  // Used descriptors behind the first one, which a crash has kept from being published.
  #withdraw(slots: number): void {
    const ring = this.#ring.u16;
    let slot = this.#usedIdx;
    let used = this.#usedWrap === 1 ? F_AVAIL_USED : 0;
    for (let i = 0; i < slots; i++) {
      const flags = ring[slot * 8 + 7]!;
      if ((flags & F_AVAIL_USED) === used) {
        if (i === 0) {
          throw badRegion(
            `descriptor ${slot} is used, though nothing was published there`,
          );
        }
        ring[slot * 8 + 7] = flags ^ F_USED;
      }
      if (++slot === this.size) {
        slot = 0;
        used ^= F_AVAIL_USED;
      }
    }
  }

  /** See {@link InflightRegion.fetched}. */
  fetched(token: number, slots: number): void {
    if (slots > this.#free) {
      // Only where a driver makes descriptors available that it has not seen used.
      throw new RingError(
        "CHAIN_TOO_LONG_FOR_RING",
        "2.8.17",
        `Cannot fetch a buffer: ${slots} descriptors, but ${this.#free} are not in flight`,
        true,
      );
    }
    const u16 = this.#u16;
    const u32 = this.#u32;
    const ring = this.#ring.u32;
    const head = this.#freeHead;
    const headAt = HEADER_BYTES + head * ENTRY_BYTES;
    const counter = this.#counter++;
    u16[headAt / 2 + NUM] = 0;
    u32[headAt / 4 + 2] = counter;
    u32[headAt / 4 + 3] = counter / TWO_32;
    this.#u8[headAt] = 1;
    let slot = this.#avail;
    let entry = head;
    let last = head;
    for (let i = 0; i < slots; i++) {
      const at = (HEADER_BYTES + entry * ENTRY_BYTES) / 4;
      u32[at + 6] = ring[slot * 4]!;
      u32[at + 7] = ring[slot * 4 + 1]!;
      u32[at + 5] = ring[slot * 4 + 2]!;
      u32[at + 4] = ring[slot * 4 + 3]!;
      last = entry;
      entry = this.#next[entry]!;
      if (++slot === this.size) slot = 0;
    }
    // Whatever a driver has made of its descriptor meanwhile.
    u16[(HEADER_BYTES + last * ENTRY_BYTES) / 2 + 8] = token;
    u16[headAt / 2 + NUM] = slots;
    u16[headAt / 2 + LAST] = last;
    this.#num[head] = slots;
    this.#last[head] = last;
    this.#entryOf[token] = head;
    this.#freeHead = entry;
    this.#free -= slots;
    this.#avail = slot;
    this.#storeFreeHeads(entry);
  }

  /** See {@link InflightRegion.returned}. */
  returned(token: number): void {
    const head = this.#entryOf[token]!;
    const slots = this.#num[head]!;
    this.#setNext(this.#last[head]!, this.#freeHead);
    this.#freeHead = head;
    this.#free += slots;
    const avail = this.#avail - slots;
    this.#avail = avail < 0 ? avail + this.size : avail;
    this.#storeFreeHeads(head);
    this.#u8[HEADER_BYTES + head * ENTRY_BYTES] = 0;
  }

  /** See {@link InflightRegion.stage}. */
  stage(token: number): void {
    this.#staged[this.#stagedCount++] = this.#entryOf[token]!;
  }

  /** See {@link InflightRegion.beginPublish}. */
  beginPublish(): void {
    if (this.#stagedCount === 0) return;
    let used = this.#usedIdx;
    for (let i = 0; i < this.#stagedCount; i++) {
      const head = this.#staged[i]!;
      const slots = this.#num[head]!;
      this.#setNext(this.#last[head]!, this.#freeHead);
      this.#freeHead = head;
      this.#free += slots;
      used += slots;
      if (used >= this.size) {
        used -= this.size;
        this.#usedWrap ^= 1;
      }
    }
    this.#usedIdx = used;
    this.#u16[FREE_HEAD] = this.#freeHead;
    this.#u16[USED_IDX] = used;
    this.#u8[USED_WRAP_BYTE] = this.#usedWrap;
  }

  /** See {@link InflightRegion.endPublish}. */
  endPublish(): void {
    if (this.#stagedCount === 0) return;
    for (let i = 0; i < this.#stagedCount; i++) {
      this.#u8[HEADER_BYTES + this.#staged[i]! * ENTRY_BYTES] = 0;
    }
    this.#stagedCount = 0;
    Atomics.store(this.#u16, OLD_FREE_HEAD, this.#freeHead);
    this.#u16[OLD_USED_IDX] = this.#usedIdx;
    this.#u8[OLD_USED_WRAP_BYTE] = this.#usedWrap;
  }

  /** See {@link InflightRegion.rebind}. */
  rebind(memory: GuestMemory): void {
    this.#ring = mapPackedViews(memory, this.#config);
    this.#memory = memory;
  }

  #setNext(entry: number, next: number): void {
    this.#next[entry] = next;
    this.#u16[(HEADER_BYTES + entry * ENTRY_BYTES) / 2 + NEXT] = next;
  }

  // Both at once, so that a buffer is either fetched or not.
  #storeFreeHeads(head: number): void {
    Atomics.store(this.#u32, FREE_HEADS_WORD, (head | head << 16) >>> 0);
  }
}
