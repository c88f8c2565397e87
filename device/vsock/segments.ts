import type { Chain } from "../../ring/chain.ts";
import type { GuestMemory } from "../../ring/memory.ts";

/** Segments that one call takes at most: what `readv` and `writev` take on Linux (IOV_MAX). */
export const MAX_SEGMENTS = 1024;

/** Segments that there is room for at first: lists of many connections stay in the caches. */
const FIRST_SEGMENTS = 32;

// Below this a loop over words beats a subarray and a set(), which allocate.
const WORD_LOOP_BYTES = 256;

/**
 * Pieces of guest memory for one gathering write or scattering read: columns like a chain's, made
 * of parts of several chains, filled by {@link Segments.add}. A host side takes views or raw addresses of them,
 * so that no payload byte is copied on the way. The columns are others once the list has grown.
 */
export class Segments {
  /** Segments in use. */
  count = 0;
  /** Bytes in all. */
  bytes = 0;
  /** The memory that `region` indexes. */
  memory: GuestMemory;
  /** Index into `memory.regions`, by segment. */
  region: Int32Array = new Int32Array(FIRST_SEGMENTS);
  /** Offset of the segment in its region, by segment. */
  offset: Float64Array = new Float64Array(FIRST_SEGMENTS);
  /** Bytes, by segment. */
  length: Uint32Array = new Uint32Array(FIRST_SEGMENTS);

  /** Makes an empty list over `memory`. */
  constructor(memory: GuestMemory) {
    this.memory = memory;
  }

  /** Forgets the segments. */
  clear(): void {
    this.count = 0;
    this.bytes = 0;
  }

  /**
   * Appends up to `length` bytes of rows `from` to `to - 1` of a chain, after the first `skip`
   * bytes of those rows; returns how many bytes, fewer where the rows or the list end.
   */
  add(
    chain: Chain,
    from: number,
    to: number,
    skip: number,
    length: number,
  ): number {
    let left = length;
    let n = this.count;
    for (let i = from; i < to && left > 0 && n < MAX_SEGMENTS; i++) {
      const size = chain.length[i]!;
      if (skip >= size) {
        skip -= size;
        continue;
      }
      const room = size - skip;
      const take = room < left ? room : left;
      if (n === this.region.length) this.#grow();
      this.region[n] = chain.region[i]!;
      this.offset[n] = chain.offset[i]! + skip;
      this.length[n] = take;
      n++;
      left -= take;
      skip = 0;
    }
    this.count = n;
    this.bytes += length - left;
    return length - left;
  }

  #grow(): void {
    const capacity = this.region.length * 2;
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

  /** Returns a view of segment `index` over guest memory. */
  view(index: number): Uint8Array {
    if (!(index >= 0 && index < this.count)) {
      throw new RangeError(
        `Cannot view segment ${index}: there are ${this.count}`,
      );
    }
    const offset = this.offset[index]!;
    return this.memory.regions[this.region[index]!]!.bytes.subarray(
      offset,
      offset + this.length[index]!,
    );
  }

  /** Copies the bytes from `skip` on into `target` and returns how many. */
  copyTo(target: Uint8Array, skip = 0): number {
    const regions = this.memory.regions;
    let words: Uint32Array | null = null;
    let done = 0;
    for (let i = 0; i < this.count && done < target.length; i++) {
      const length = this.length[i]!;
      if (skip >= length) {
        skip -= length;
        continue;
      }
      const room = target.length - done;
      const take = length - skip < room ? length - skip : room;
      const from = this.offset[i]! + skip;
      const region = regions[this.region[i]!]!;
      if (
        take <= WORD_LOOP_BYTES &&
        ((from | take | done | target.byteOffset) & 3) === 0
      ) {
        words ??= new Uint32Array(
          target.buffer,
          target.byteOffset,
          target.length >>> 2,
        );
        copyWords(region.words, from / 4, words, done >>> 2, take >>> 2);
      } else {
        target.set(region.bytes.subarray(from, from + take), done);
      }
      done += take;
      skip = 0;
    }
    return done;
  }

  /** Copies `source` into the segments, after their first `skip` bytes; returns how many fitted. */
  copyFrom(source: Uint8Array, skip = 0): number {
    let done = 0;
    for (let i = 0; i < this.count && done < source.length; i++) {
      const view = this.view(i);
      if (skip >= view.length) {
        skip -= view.length;
        continue;
      }
      const take = Math.min(view.length - skip, source.length - done);
      view.set(source.subarray(done, done + take), skip);
      done += take;
      skip = 0;
    }
    return done;
  }
}

function copyWords(
  source: Uint32Array,
  from: number,
  target: Uint32Array,
  to: number,
  count: number,
): void {
  for (let i = 0; i < count; i++) target[to + i] = source[from + i]!;
}
