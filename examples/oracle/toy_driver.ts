import type {
  DriverUnderTest,
  Segment,
  UsedBuffer,
} from "../../props/oracle/mod.ts";
import type { GuestMemory } from "../../ring/memory.ts";
import type { QueueConfig } from "../../ring/queue.ts";

const F_NEXT = 1;
const F_WRITE = 2;

/** Mistakes, by the word that switches each on. */
export const BUGS = {
  "no-next": "forgets VIRTQ_DESC_F_NEXT, so that a buffer is cut off",
  "self-next": "lets a descriptor's `next` name the descriptor itself",
  "writable-first": "puts writable segments before readable ones",
  "early-index": "stores avail.idx in add(), and not only in publish()",
  "index-first": "stores avail.idx before the entry, in publish()",
  "index-mod-size": "stores avail.idx modulo the queue's size",
  "reuse": "takes descriptors in ring order, also those still in flight",
  "kick-if-equal": "kicks only if avail_event is the last entry published",
  "no-recheck": "asks for interrupts and does not look at used.idx again",
} as const;

/** One of {@link BUGS}. */
export type Bug = keyof typeof BUGS;

/** The driver, with a mistake or without. One thread uses both sides, so plain stores will do. */
export class ToyDriver implements DriverUnderTest {
  readonly #size: number;
  readonly #eventIdx: boolean;
  readonly #bug: Bug | null;
  readonly #table: DataView;
  readonly #avail: DataView;
  readonly #used: DataView;
  readonly #free: number[] = [];
  /** Descriptors of each buffer in flight, by its head. */
  readonly #chains: Map<number, number[]> = new Map();
  #turn = 0;
  /** Heads that were added and not published. */
  readonly #heads: number[] = [];
  /** Behind what is published; behind what a kick was decided on. */
  #published = 0;
  #decided = 0;
  #lastUsed = 0;

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
    for (let i = size - 1; i >= 0; i--) this.#free.push(i);
  }

  add(segments: readonly Segment[]): number {
    const count = segments.length;
    if (count > this.#free.length) return -1;
    const chain = segments.map(() => this.#takeDescriptor());
    const ordered = this.#bug === "writable-first"
      ? segments.toSorted((a, b) => Number(b.writable) - Number(a.writable))
      : segments;
    for (const [i, { address, length, writable }] of ordered.entries()) {
      const last = i === count - 1;
      const next = this.#bug === "self-next" ? chain[i] : chain[i + 1];
      const hasNext = !last && this.#bug !== "no-next";
      const at = 16 * chain[i]!;
      this.#table.setBigUint64(at, BigInt(address), true);
      this.#table.setUint32(at + 8, length, true);
      const flags = (hasNext ? F_NEXT : 0) | (writable ? F_WRITE : 0);
      this.#table.setUint16(at + 12, flags, true);
      this.#table.setUint16(at + 14, last ? 0 : next!, true);
    }
    const head = chain[0]!;
    this.#heads.push(head);
    this.#chains.set(head, chain);
    if (this.#bug === "early-index") this.publish();
    return head;
  }

  publish(): void {
    const heads = this.#heads.splice(0);
    const before = this.#published;
    this.#published = (before + heads.length) & 0xffff;
    if (this.#bug === "index-first") this.#storeIndex();
    for (const [i, head] of heads.entries()) {
      const entry = (before + i) % this.#size;
      this.#avail.setUint16(4 + 2 * entry, head, true);
    }
    this.#storeIndex();
  }

  needsKick(): boolean {
    const before = this.#decided;
    const now = this.#published;
    this.#decided = now;
    if (before === now) return false;
    if (!this.#eventIdx) return (this.#used.getUint16(0, true) & 1) === 0;
    const event = this.#used.getUint16(4 + 8 * this.#size, true);
    if (this.#bug === "kick-if-equal") return event === ((now - 1) & 0xffff);
    return ((now - event - 1) & 0xffff) < ((now - before) & 0xffff);
  }

  reclaim(): UsedBuffer | null {
    if (!this.#hasUsed()) return null;
    const at = 4 + 8 * (this.#lastUsed % this.#size);
    this.#lastUsed = (this.#lastUsed + 1) & 0xffff;
    const token = this.#used.getUint32(at, true);
    const length = this.#used.getUint32(at + 4, true);
    this.#free.push(...this.#chains.get(token) ?? []);
    this.#chains.delete(token);
    return { token, length };
  }

  armInterrupts(): boolean {
    if (this.#eventIdx) {
      this.#avail.setUint16(4 + 2 * this.#size, this.#lastUsed, true);
    } else this.#avail.setUint16(0, 0, true);
    return this.#bug === "no-recheck" ? false : this.#hasUsed();
  }

  disarmInterrupts(): void {
    if (!this.#eventIdx) this.#avail.setUint16(0, 1, true);
  }

  #takeDescriptor(): number {
    const free = this.#free.pop()!;
    return this.#bug === "reuse" ? this.#turn++ % this.#size : free;
  }

  #storeIndex(): void {
    const idx = this.#bug === "index-mod-size"
      ? this.#published % this.#size
      : this.#published;
    this.#avail.setUint16(2, idx, true);
  }

  #hasUsed(): boolean {
    return this.#used.getUint16(2, true) !== this.#lastUsed;
  }
}
