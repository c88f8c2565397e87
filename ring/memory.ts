import { RingError } from "./errors.ts";

/**
 * One contiguous piece of guest memory, as its owner hands it over.
 *
 * `buffer` may be shared or not; it stays the caller's and must not be detached while a queue
 * uses it.
 */
export type MemoryRegion = {
  /** Guest physical address of the first byte; a multiple of 16, below 2^53. */
  guestAddress: number;
  /** Bytes; at least 1. */
  size: number;
  /** Memory that holds the region. */
  buffer: ArrayBufferLike;
  /** Offset of the first byte in `buffer`; a multiple of 16. 0 unless told. */
  byteOffset?: number;
  /** Address of the first byte in this process when the region is mapped, else 0. */
  hostAddress?: number;
};

/** One region of a {@link GuestMemory}, with a byte view over it. */
export type GuestRegion = {
  /** Guest physical address of the first byte. */
  readonly guestAddress: number;
  /** Bytes. */
  readonly size: number;
  /** The region's bytes; index 0 is `guestAddress`. */
  readonly bytes: Uint8Array;
  /** The same as words; what is less than a word at the end is left out. */
  readonly words: Uint32Array;
  /** Address of the first byte in this process, 0 when it is not mapped. */
  readonly hostAddress: number;
};

/**
 * Guest memory: regions by guest physical address.
 *
 * Addresses are JavaScript numbers below 2^53; a guest's 64-bit address beyond that lies in no
 * region. Translation is bounds-checked; it never touches the memory.
 */
export class GuestMemory {
  /** The regions, in ascending order of address. */
  readonly regions: readonly GuestRegion[];
  /** After a successful {@link GuestMemory.locate}: offset of the address in its region. */
  foundOffset = 0;
  /** After a successful {@link GuestMemory.locate}: bytes from there to the region's end. */
  foundRoom = 0;

  // The last region that answered: nearly every guest has one, and buffers cluster.
  #lastIndex = 0;
  #lastStart = 0;
  #lastSize = 0;

  /**
   * Takes the regions in any order.
   *
   * @throws {TypeError} when two regions overlap, or the machine is big-endian.
   * @throws {RangeError} when an address, a size or an alignment is out of range.
   */
  constructor(regions: readonly MemoryRegion[]) {
    if (new Uint8Array(new Uint16Array([1]).buffer)[0] !== 1) {
      throw new TypeError(
        "Cannot map guest memory: this machine is big-endian",
      );
    }
    const sorted = [...regions].sort((a, b) => a.guestAddress - b.guestAddress);
    let end = 0;
    this.regions = sorted.map((region) => {
      const { guestAddress, size, buffer, byteOffset = 0, hostAddress = 0 } =
        region;
      for (
        const [name, value] of Object.entries({
          guestAddress,
          size,
          byteOffset,
          hostAddress,
        })
      ) {
        if (!Number.isSafeInteger(value) || value < 0) {
          throw new RangeError(`Cannot map guest memory: ${name} is ${value}`);
        }
      }
      if (size === 0 || !Number.isSafeInteger(guestAddress + size)) {
        throw new RangeError(
          `Cannot map guest memory: a region of ${size} bytes at ${guestAddress}`,
        );
      }
      if (guestAddress % 16 !== 0 || byteOffset % 16 !== 0) {
        throw new RangeError(
          "Cannot map guest memory: a region is not aligned to 16 bytes",
        );
      }
      if (byteOffset + size > buffer.byteLength) {
        throw new RangeError(
          "Cannot map guest memory: a region ends behind its buffer",
        );
      }
      if (guestAddress < end) {
        throw new TypeError("Cannot map guest memory: two regions overlap");
      }
      end = guestAddress + size;
      return {
        guestAddress,
        size,
        bytes: new Uint8Array(buffer, byteOffset, size),
        // A division, since a region may be larger than a shift can hold.
        words: new Uint32Array(buffer, byteOffset, Math.floor(size / 4)),
        hostAddress,
      };
    });
    const first = this.regions[0];
    if (first !== undefined) {
      this.#lastStart = first.guestAddress;
      this.#lastSize = first.size;
    }
  }

  /**
   * Finds the region that holds guest address `address`.
   *
   * Returns its index in {@link GuestMemory.regions} with `foundOffset` and `foundRoom` set, or
   * -1 where no region holds it. `address` is any number, also one that a guest made up.
   */
  locate(address: number): number {
    const offset = address - this.#lastStart;
    if (offset >= 0 && offset < this.#lastSize) {
      this.foundOffset = offset;
      this.foundRoom = this.#lastSize - offset;
      return this.#lastIndex;
    }
    return this.#search(address);
  }

  #search(address: number): number {
    const regions = this.regions;
    for (let i = 0; i < regions.length; i++) {
      const region = regions[i]!;
      const offset = address - region.guestAddress;
      if (offset >= 0 && offset < region.size) {
        this.#lastIndex = i;
        this.#lastStart = region.guestAddress;
        this.#lastSize = region.size;
        this.foundOffset = offset;
        this.foundRoom = region.size - offset;
        return i;
      }
    }
    return -1;
  }

  /**
   * Returns a view of `length` bytes at guest address `address`; they lie in one region.
   *
   * The view shares the guest's memory. Used for rings and tables and by the in-memory sides;
   * not on the path of a payload.
   *
   * @throws {RingError} `BAD_ADDRESS` when they do not.
   */
  bytes(address: number, length: number): Uint8Array {
    const index = this.locate(address);
    if (index < 0 || length > this.foundRoom) {
      throw new RingError(
        "BAD_ADDRESS",
        "2.7.5",
        `Cannot reach ${length} bytes at guest address 0x${
          address.toString(16)
        }: no region holds them`,
      );
    }
    return this.regions[index]!.bytes.subarray(
      this.foundOffset,
      this.foundOffset + length,
    );
  }
}
