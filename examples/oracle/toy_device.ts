import type {
  DeviceUnderTest,
  FetchedBuffer,
  Segment,
} from "../../props/oracle/mod.ts";
import type { GuestMemory } from "../../ring/memory.ts";
import type { QueueConfig } from "../../ring/queue.ts";

const F_NEXT = 1;
const F_WRITE = 2;

/** Mistakes, by the word that switches each on. */
export const BUGS = {
  "used-length": "counts the bytes that it read in used.len",
  "twice": "tells of a buffer twice when it tells of several",
  "index-first": "stores used.idx before the entry",
  "last-id": "names a buffer by its last descriptor, not by its head",
  "no-wrap": "compares avail.idx by <, which fails when it wraps",
  "no-first": "takes the descriptor behind the head as the first one",
  "interrupt-if-equal": "interrupts only if used_event is the last entry used",
  "no-recheck": "asks for kicks and does not look at avail.idx again",
} as const;

/** One of {@link BUGS}. */
export type Bug = keyof typeof BUGS;

/** The device, with a mistake or without. One thread uses both sides, so plain stores will do. */
export class ToyDevice implements DeviceUnderTest {
  readonly #size: number;
  readonly #eventIdx: boolean;
  readonly #bug: Bug | null;
  readonly #table: DataView;
  readonly #avail: DataView;
  readonly #used: DataView;
  readonly #fetched: Map<number, readonly Segment[]> = new Map();
  #lastAvail = 0;
  /** Behind the last entry; behind what is published; behind what an interrupt was decided on. */
  #usedIdx = 0;
  #published = 0;
  #decided = 0;

  constructor(memory: GuestMemory, config: QueueConfig, bug: Bug | null) {
    const { size, eventIdx = false } = config;
    const view = (address: number, length: number) => {
      const { buffer, byteOffset } = memory.bytes(address, length);
      return new DataView(buffer, byteOffset, length);
    };
    this.#size = size;
    this.#eventIdx = eventIdx;
    this.#bug = bug;
    this.#table = view(config.descriptorArea, 16 * size);
    this.#avail = view(config.driverArea, 6 + 2 * size);
    this.#used = view(config.deviceArea, 6 + 8 * size);
  }

  pop(): FetchedBuffer | null {
    if (!this.#hasAvailable()) return null;
    const entry = this.#lastAvail % this.#size;
    const head = this.#avail.getUint16(4 + 2 * entry, true);
    this.#lastAvail = (this.#lastAvail + 1) & 0xffff;
    const segments: Segment[] = [];
    let index = head;
    let token = head;
    for (let more = true; more;) {
      const at = 16 * index;
      const flags = this.#table.getUint16(at + 12, true);
      segments.push({
        address: Number(this.#table.getBigUint64(at, true)),
        length: this.#table.getUint32(at + 8, true),
        writable: (flags & F_WRITE) !== 0,
      });
      if (this.#bug === "last-id") token = index;
      more = (flags & F_NEXT) !== 0;
      index = this.#table.getUint16(at + 14, true);
    }
    if (this.#bug === "no-first" && segments.length > 2) segments.shift();
    this.#fetched.set(token, segments);
    return { token, segments };
  }

  push(token: number, written: number): void {
    let length = written;
    for (const segment of this.#fetched.get(token)!) {
      const counts = this.#bug === "used-length" && !segment.writable;
      if (counts) length += segment.length;
    }
    this.#fetched.delete(token);
    this.#use(token, length);
    const staged = (this.#usedIdx - this.#published) & 0xffff;
    if (this.#bug === "twice" && staged === 2) this.#use(token, length);
  }

  publish(): void {
    this.#published = this.#usedIdx;
    this.#used.setUint16(2, this.#usedIdx, true);
  }

  needsInterrupt(): boolean {
    const before = this.#decided;
    const now = this.#published;
    this.#decided = now;
    if (before === now) return false;
    if (!this.#eventIdx) return (this.#avail.getUint16(0, true) & 1) === 0;
    const event = this.#avail.getUint16(4 + 2 * this.#size, true);
    if (this.#bug === "interrupt-if-equal") {
      return event === ((now - 1) & 0xffff);
    }
    return ((now - event - 1) & 0xffff) < ((now - before) & 0xffff);
  }

  armKicks(): boolean {
    if (this.#eventIdx) {
      this.#used.setUint16(4 + 8 * this.#size, this.#lastAvail, true);
    } else this.#used.setUint16(0, 0, true);
    return this.#bug === "no-recheck" ? false : this.#hasAvailable();
  }

  disarmKicks(): void {
    if (!this.#eventIdx) this.#used.setUint16(0, 1, true);
  }

  #hasAvailable(): boolean {
    const idx = this.#avail.getUint16(2, true);
    return this.#bug === "no-wrap"
      ? this.#lastAvail < idx
      : this.#lastAvail !== idx;
  }

  #use(token: number, length: number): void {
    const at = 4 + 8 * (this.#usedIdx % this.#size);
    this.#usedIdx = (this.#usedIdx + 1) & 0xffff;
    if (this.#bug === "index-first") this.publish();
    this.#used.setUint32(at, token, true);
    this.#used.setUint32(at + 4, length, true);
  }
}
