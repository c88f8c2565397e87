/**
 * Guest memory with canaries round it.
 *
 * @module
 */

import { GuestMemory, type MemoryRegion } from "../ring/memory.ts";

const CANARY_BYTES = 4096;
const CANARY = 0xc5;

/** The two regions, which adjoin for the guest and are apart in this process. */
export const HOSTILE_REGIONS: readonly {
  guestAddress: number;
  size: number;
}[] = [
  { guestAddress: 0x10_0000, size: 0x8_0000 },
  { guestAddress: 0x18_0000, size: 0x1_0000 },
];
/** Guest address of what belongs to hostile packets alone: the end of the first region. */
export const HOSTILE_AREA = 0x17_0000;
/** Bytes of it. */
export const HOSTILE_AREA_BYTES = 0x1_0000;

/** How often a device has asked where an address is. */
export class AccessCount {
  /** Addresses that were looked up. */
  lookups = 0;
  /** What was found outside its region, in words, or null. */
  outside: string | null = null;
}

/** The same memory, whose accesses are counted: nothing of it is reached but by an address that was looked up. */
export class CountingMemory extends GuestMemory {
  readonly #count: AccessCount;

  /** Takes the regions of `memory`. */
  constructor(memory: GuestMemory, count: AccessCount) {
    super(memory.regions.map(({ guestAddress, size, bytes, hostAddress }) => ({
      guestAddress,
      size,
      buffer: bytes.buffer,
      byteOffset: bytes.byteOffset,
      hostAddress,
    })));
    this.#count = count;
  }

  /** {@inheritDoc GuestMemory.locate} */
  override locate(address: number): number {
    const count = this.#count;
    count.lookups++;
    const index = super.locate(address);
    const region = this.regions[index];
    if (region === undefined) return index;
    const { guestAddress, size } = region;
    const right = this.foundOffset === address - guestAddress &&
      this.foundRoom === size - this.foundOffset && this.foundRoom > 0;
    if (!right) count.outside ??= `address ${address} of region ${index}`;
    return index;
  }
}

/** Two regions of guest memory, with bytes before, between and behind that nobody may write. */
export class HostileMemory {
  /** As a device takes them. */
  readonly regions: MemoryRegion[];
  /** The buffers behind them: one for both, or one for each. */
  readonly buffers: ArrayBufferLike[];
  readonly #views: Uint8Array[];
  readonly #copies: Uint8Array[];
  readonly #canaries: Uint8Array[] = [];

  /** With vhost-user each region has a buffer of its own, which it begins. */
  constructor(shared: boolean, transport: "direct" | "vhost-user") {
    const make = (bytes: number): ArrayBufferLike =>
      shared ? new SharedArrayBuffer(bytes) : new ArrayBuffer(bytes);
    const canary = (buffer: ArrayBufferLike, at: number): void => {
      this.#canaries.push(
        new Uint8Array(buffer, at, CANARY_BYTES).fill(CANARY),
      );
    };
    if (transport === "direct") {
      const sum = HOSTILE_REGIONS.reduce((n, { size }) => n + size, 0);
      const buffer = make(sum + CANARY_BYTES * (HOSTILE_REGIONS.length + 1));
      this.buffers = [buffer];
      let at = 0;
      this.regions = HOSTILE_REGIONS.map(({ guestAddress, size }) => {
        canary(buffer, at);
        const byteOffset = at + CANARY_BYTES;
        at = byteOffset + size;
        return { guestAddress, size, buffer, byteOffset };
      });
      canary(buffer, at);
    } else {
      this.regions = HOSTILE_REGIONS.map(({ guestAddress, size }) => {
        const buffer = make(size + CANARY_BYTES);
        canary(buffer, size);
        return { guestAddress, size, buffer, byteOffset: 0 };
      });
      this.buffers = this.regions.map(({ buffer }) => buffer);
    }
    this.#views = this.regions.map(({ buffer, byteOffset, size }) =>
      new Uint8Array(buffer, byteOffset, size)
    );
    this.#copies = this.#views.map(({ length }) => new Uint8Array(length));
  }

  /** Makes all of it 0. */
  clear(): void {
    for (const view of this.#views) view.fill(0);
  }

  /** The bytes at a guest address, up to the end of its region. */
  at(address: number): DataView {
    const view = this.#views[this.#index(address)]!;
    const offset = address -
      HOSTILE_REGIONS[this.#index(address)]!.guestAddress;
    return new DataView(
      view.buffer,
      view.byteOffset + offset,
      view.length - offset,
    );
  }

  /** Where the byte at a guest address of the first region lies in its buffer. */
  offset(address: number): number {
    return this.regions[0]!.byteOffset! + address -
      HOSTILE_REGIONS[0]!.guestAddress;
  }

  #index(address: number): number {
    return HOSTILE_REGIONS.findIndex(({ guestAddress, size }) =>
      address >= guestAddress && address < guestAddress + size
    );
  }

  /** Which canary is dead, in words, or null. */
  brokenCanary(): string | null {
    for (const [i, canary] of this.#canaries.entries()) {
      for (let k = 0; k < canary.length; k++) {
        if (canary[k] !== CANARY) return `byte ${k} of canary ${i}`;
      }
    }
    return null;
  }

  /** Keeps a copy, to see what is written from now on. */
  remember(): void {
    for (const [i, view] of this.#views.entries()) this.#copies[i]!.set(view);
  }

  /**
   * What was written to `length` bytes of a region is in order, `offset` bytes from its beginning. A region is
   * given by a view of it: a front-end may give it another guest address, so that a device counts regions differently.
   */
  allow(region: Uint8Array, offset: number, length: number): void {
    const index = this.#views.findIndex((view) =>
      view.buffer === region.buffer && view.byteOffset === region.byteOffset
    );
    const bytes = this.#views[index]!.subarray(offset, offset + length);
    this.#copies[index]!.set(bytes, offset);
  }

  /** Guest address of the first byte that changed and was not allowed, or null. */
  firstForbidden(): number | null {
    for (const [region, view] of this.#views.entries()) {
      const copy = this.#copies[region]!;
      const now = new Uint32Array(
        view.buffer,
        view.byteOffset,
        view.length / 4,
      );
      const then = new Uint32Array(copy.buffer);
      for (let i = 0; i < now.length; i++) {
        if (now[i] !== then[i]) {
          return HOSTILE_REGIONS[region]!.guestAddress + i * 4;
        }
      }
    }
    return null;
  }
}
