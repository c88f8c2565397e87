import type { GuestMemory } from "../ring/memory.ts";
import type { BufferList, IndirectTables } from "../ring/queue.ts";
import { expectIs } from "./violation.ts";

const POISON_32 = 0xdeaddead;
const F_NEXT = 1;
const F_WRITE = 2;
/** Descriptors of a table. */
const ENTRIES = 2;

/** Indirect tables of a driver, one for each token, with buffers of two segments. */
export class Tables {
  /** What the driver is told. */
  readonly place: IndirectTables;
  readonly #linked: boolean;
  readonly #words: Uint32Array;

  /** @param linked Split: entries say which one comes next. Packed: they follow each other. */
  constructor(
    memory: GuestMemory,
    address: number,
    size: number,
    linked: boolean,
  ) {
    this.place = { address, entries: ENTRIES };
    this.#linked = linked;
    const bytes = memory.bytes(address, size * ENTRIES * 16);
    this.#words = new Uint32Array(
      bytes.buffer,
      bytes.byteOffset,
      size * ENTRIES * 4,
    );
  }

  #address(token: number): number {
    return this.place.address + token * ENTRIES * 16;
  }

  #flags(list: BufferList, i: number): number {
    const write = i < list.readable ? 0 : F_WRITE;
    if (!this.#linked) return write << 16;
    return i + 1 < list.count ? write | F_NEXT | (i + 1) << 16 : write;
  }

  /** Fills all with poison. */
  clear(): void {
    this.#words.fill(POISON_32);
  }

  /** Writes a token's table, and the descriptor that refers to it at a word of the ring. */
  load(
    token: number,
    list: BufferList,
    ring: Uint32Array,
    at: number,
    flags: number,
  ): void {
    ring[at] = this.#address(token);
    ring[at + 1] = 0;
    ring[at + 2] = list.count * 16;
    ring[at + 3] = flags;
    this.loadEntries(token, list);
  }

  /** Writes a token's table. */
  loadEntries(token: number, list: BufferList): void {
    let word = token * ENTRIES * 4;
    for (let i = 0; i < list.count; i++, word += 4) {
      this.#words[word] = list.address[i]!;
      this.#words[word + 1] = 0;
      this.#words[word + 2] = list.length[i]!;
      this.#words[word + 3] = this.#flags(list, i);
    }
  }

  /** Checks both; `flags` are those of the fourth word, which a split ring's descriptor has in its low half. */
  check(
    token: number,
    list: BufferList,
    ring: Uint32Array,
    at: number,
    flags: number,
  ): void {
    const what = "descriptors";
    expectIs(what, "a table", ring[at]!, this.#address(token));
    expectIs(what, "a table's high address", ring[at + 1]!, 0);
    expectIs(what, "a table's bytes", ring[at + 2]!, list.count * 16);
    expectIs(what, "a table's flags", ring[at + 3]!, flags);
    this.checkEntries(token, list);
  }

  /** Checks a token's table. */
  checkEntries(token: number, list: BufferList): void {
    const what = "indirect table";
    let word = token * ENTRIES * 4;
    for (let i = 0; i < list.count; i++, word += 4) {
      expectIs(what, "low address", this.#words[word]!, list.address[i]!);
      expectIs(what, "high address", this.#words[word + 1]!, 0);
      expectIs(what, "length", this.#words[word + 2]!, list.length[i]!);
      expectIs(what, "flags", this.#words[word + 3]!, this.#flags(list, i));
    }
  }
}
