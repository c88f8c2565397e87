import type { RingError } from "./errors.ts";
import type { GuestMemory } from "./memory.ts";

/**
 * One buffer taken from a virtqueue: a reusable scratch of columns, one row a segment.
 *
 * Rows 0 to `readable - 1` are device-readable, rows `readable` to `count - 1` device-writable.
 * A segment lies in one region; a descriptor that crosses two adjoining regions makes two
 * segments, a zero-length descriptor makes none. A chain is filled by `pop()` and is valid until
 * the next `pop()` into it; the bytes that it describes belong to the device until it pushes
 * `token` and publishes.
 */
export class Chain {
  /** What `push()` takes to complete this buffer: split the head's index, packed the buffer id. */
  token = 0;
  /** Segments in all. */
  count = 0;
  /** Segments that the device reads; they come first. */
  readable = 0;
  /** Bytes in the readable segments. */
  readableBytes = 0;
  /** Bytes in the writable segments. */
  writableBytes = 0;
  /** What is wrong with the buffer, or null. A bad buffer has no segments; complete it with 0. */
  fault: RingError | null = null;
  /** The memory that `region` indexes. */
  memory: GuestMemory;
  /** Index into `memory.regions`, by segment. */
  region: Int32Array;
  /** Offset of the segment in its region, by segment. */
  offset: Float64Array;
  /** Bytes, by segment. */
  length: Uint32Array;

  /** Makes an empty chain over `memory`, with room for `capacity` segments to begin with. */
  constructor(memory: GuestMemory, capacity = 64) {
    this.memory = memory;
    this.region = new Int32Array(capacity);
    this.offset = new Float64Array(capacity);
    this.length = new Uint32Array(capacity);
  }

  /** Forgets the segments. */
  clear(): void {
    this.count = 0;
    this.readable = 0;
    this.readableBytes = 0;
    this.writableBytes = 0;
    this.fault = null;
  }

  /**
   * Appends the bytes at a guest address; the caller has checked that readable comes before writable.
   *
   * Returns false where some of them lie in no region; the chain is then incomplete.
   */
  append(address: number, length: number, writable: boolean): boolean {
    if (writable) this.writableBytes += length;
    else this.readableBytes += length;
    const memory = this.memory;
    while (length > 0) {
      const region = memory.locate(address);
      if (region < 0) return false;
      const room = memory.foundRoom;
      const take = length < room ? length : room;
      let i = this.count;
      if (i === this.region.length) this.#grow();
      this.region[i] = region;
      this.offset[i] = memory.foundOffset;
      this.length[i] = take;
      this.count = ++i;
      if (!writable) this.readable = i;
      length -= take;
      address += take;
    }
    return true;
  }

  /** Returns a view of segment `index`, over the guest's memory. */
  bytes(index: number): Uint8Array {
    if (!(index >= 0 && index < this.count)) {
      throw new RangeError(
        `Cannot view segment ${index}: the chain has ${this.count}`,
      );
    }
    const offset = this.offset[index]!;
    return this.memory.regions[this.region[index]!]!.bytes.subarray(
      offset,
      offset + this.length[index]!,
    );
  }

  /**
   * Copies readable bytes, from `skip` on, into `target`; returns how many.
   *
   * Less than `target.length` only where the readable part ends.
   */
  read(target: Uint8Array, skip = 0): number {
    let done = 0;
    const regions = this.memory.regions;
    for (let i = 0; i < this.readable && done < target.length; i++) {
      const length = this.length[i]!;
      if (skip >= length) {
        skip -= length;
        continue;
      }
      const take = Math.min(length - skip, target.length - done);
      const from = this.offset[i]! + skip;
      copyBytes(regions[this.region[i]!]!.bytes, from, target, done, take);
      done += take;
      skip = 0;
    }
    return done;
  }

  /**
   * Copies `source` into the writable bytes, from `skip` on; returns how many fitted.
   */
  write(source: Uint8Array, skip = 0): number {
    let done = 0;
    const regions = this.memory.regions;
    for (let i = this.readable; i < this.count && done < source.length; i++) {
      const length = this.length[i]!;
      if (skip >= length) {
        skip -= length;
        continue;
      }
      const take = Math.min(length - skip, source.length - done);
      copyBytes(
        source,
        done,
        regions[this.region[i]!]!.bytes,
        this.offset[i]! + skip,
        take,
      );
      done += take;
      skip = 0;
    }
    return done;
  }

  /** Makes room for `segments` segments. */
  reserve(segments: number): void {
    while (this.region.length < segments) this.#grow();
  }

  #grow(): void {
    const capacity = this.region.length * 2 || 4;
    const region = new Int32Array(capacity);
    const offset = new Float64Array(capacity);
    const length = new Uint32Array(capacity);
    region.set(this.region);
    offset.set(this.offset);
    length.set(this.length);
    this.region = region;
    this.offset = offset;
    this.length = length;
  }
}

// Below this a loop beats a subarray and a set(), which allocate: measured at 50-80 bytes.
const LOOP_BYTES = 64;

function copyBytes(
  source: Uint8Array,
  from: number,
  target: Uint8Array,
  to: number,
  length: number,
): void {
  if (length <= LOOP_BYTES) {
    for (let i = 0; i < length; i++) target[to + i] = source[from + i]!;
  } else {
    target.set(source.subarray(from, from + length), to);
  }
}
