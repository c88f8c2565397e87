import type { GuestMemory } from "../../ring/memory.ts";

/** Alignment that every virtqueue area, table and buffer of the guest side is content with. */
const ALIGNMENT_BYTES = 16;

/**
 * A guest's allocator over one region of its memory: for rings, tables and packet buffers.
 *
 * Pieces come from the start of the region upwards and have a multiple of 16 bytes; a piece that was
 * given back is handed out again for the next request of the same rounded size. Allocation and
 * `free` take constant time. The memory is the region's owner's; what a piece holds is undefined.
 */
export class MemoryArena {
  /** Memory that holds the region. */
  readonly memory: GuestMemory;
  readonly #bytes: Uint8Array;
  readonly #start: number;
  readonly #end: number;
  readonly #free: Map<number, number[]> = new Map();
  #next: number;

  /**
   * Allocates in region `region` of `memory`, 0 unless told, from `skip` bytes behind its start on.
   *
   * @throws {RangeError} when `memory` has no such region or `skip` lies behind its end.
   */
  constructor(memory: GuestMemory, region = 0, skip = 0) {
    const found = memory.regions[region];
    if (found === undefined) {
      throw new RangeError(
        `Cannot allocate guest memory: it has ${memory.regions.length} regions, none numbered ${region}`,
      );
    }
    if (!(skip >= 0 && skip <= found.size)) {
      throw new RangeError(
        `Cannot allocate guest memory: ${skip} bytes lie behind the region's end`,
      );
    }
    this.memory = memory;
    this.#bytes = found.bytes;
    this.#start = found.guestAddress;
    this.#end = found.guestAddress + found.size;
    this.#next = found.guestAddress + roundUp(skip, ALIGNMENT_BYTES);
  }

  /** Bytes at the region's end that no piece has used yet. */
  get untouched(): number {
    return this.#end - this.#next;
  }

  /**
   * Returns the guest address of a free piece of `size` bytes, a multiple of `alignment`, which is a
   * power of two of at least 16.
   *
   * @throws {RangeError} when there is no room, or an argument is out of range.
   */
  allocate(size: number, alignment: number = ALIGNMENT_BYTES): number {
    const rounded = roundUp(size, ALIGNMENT_BYTES);
    if (!(size >= 1) || !Number.isSafeInteger(rounded)) {
      throw new RangeError(`Cannot allocate ${size} bytes of guest memory`);
    }
    if (
      alignment < ALIGNMENT_BYTES || (alignment & (alignment - 1)) !== 0
    ) {
      throw new RangeError(
        `Cannot allocate guest memory aligned to ${alignment} bytes`,
      );
    }
    if (alignment === ALIGNMENT_BYTES) {
      const again = this.#free.get(rounded)?.pop();
      if (again !== undefined) return again;
    }
    const address = roundUp(this.#next, alignment);
    if (address + rounded > this.#end) {
      throw new RangeError(
        `Cannot allocate ${size} bytes of guest memory: ${this.untouched} are left`,
      );
    }
    this.#next = address + rounded;
    return address;
  }

  /** Gives back the piece of `size` bytes that {@link MemoryArena.allocate} returned. */
  free(address: number, size: number): void {
    const rounded = roundUp(size, ALIGNMENT_BYTES);
    const list = this.#free.get(rounded);
    if (list === undefined) this.#free.set(rounded, [address]);
    else list.push(address);
  }

  /**
   * Returns a view of `length` bytes at a guest address of the region, over the guest's memory.
   *
   * @throws {RangeError} when they are not inside it.
   */
  bytes(address: number, length: number): Uint8Array {
    const offset = address - this.#start;
    if (!(offset >= 0 && offset + length <= this.#bytes.length)) {
      throw new RangeError(
        `Cannot view ${length} bytes at guest address 0x${
          address.toString(16)
        }: not in the arena`,
      );
    }
    return this.#bytes.subarray(offset, offset + length);
  }
}

function roundUp(value: number, multiple: number): number {
  return Math.ceil(value / multiple) * multiple;
}
