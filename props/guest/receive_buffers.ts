import { BufferList } from "../../ring/queue.ts";
import type { ByteRing } from "./byte_ring.ts";
import type { MemoryArena } from "./memory_arena.ts";
import { HEADER_BYTES, type PacketHeader } from "./vsock_header.ts";

/** Descriptor lengths of a receive buffer of Linux 6.x on amd64. */
export const RX_LAYOUT_LINUX_6: readonly number[] = [3776];
/** Descriptor lengths of a receive buffer of older Linux kernels. */
export const RX_LAYOUT_LINUX_OLD: readonly number[] = [44, 4096];
/** Descriptor lengths of a receive buffer with the header and a page in one piece. */
export const RX_LAYOUT_ONE_PIECE: readonly number[] = [4140];

/** Bytes behind each segment that the device must leave alone. */
const GUARD_BYTES = 16;
const GUARD_VALUE = 0xa5;

/**
 * Receive buffers of one layout, numbered from 0: each has the same segments, which do not touch
 * each other in memory, so that a device that overruns one is seen by the guard behind it.
 */
export class ReceiveBuffers {
  /** Bytes that one buffer holds. */
  readonly size: number;
  readonly #layout: readonly number[];
  readonly #offsets: readonly number[];
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #stride: number;
  readonly #lists: BufferList[] = [];
  readonly #scratch: DataView = new DataView(new ArrayBuffer(HEADER_BYTES));
  readonly #scratchBytes: Uint8Array;

  /**
   * Allocates `count` buffers with segments of the lengths in `layout`.
   *
   * @throws {RangeError} when a length is not positive or the arena has no room.
   */
  constructor(arena: MemoryArena, layout: readonly number[], count: number) {
    if (layout.length === 0 || !layout.every((length) => length >= 1)) {
      throw new RangeError(`Cannot lay out a receive buffer as [${layout}]`);
    }
    let stride = 0;
    this.#layout = [...layout];
    this.#offsets = layout.map((length) => {
      const offset = stride;
      stride += Math.ceil((length + GUARD_BYTES) / 16) * 16;
      return offset;
    });
    this.#stride = stride;
    this.size = layout.reduce((sum, length) => sum + length, 0);
    const address = arena.allocate(stride * count);
    this.#bytes = arena.bytes(address, stride * count).fill(GUARD_VALUE);
    this.#view = new DataView(
      this.#bytes.buffer,
      this.#bytes.byteOffset,
      this.#bytes.length,
    );
    this.#scratchBytes = new Uint8Array(this.#scratch.buffer);
    for (let i = 0; i < count; i++) {
      const list = new BufferList(layout.length);
      for (const [part, offset] of this.#offsets.entries()) {
        list.addWritable(address + i * stride + offset, this.#layout[part]!);
      }
      this.#lists.push(list);
    }
  }

  /** How many there are. */
  get count(): number {
    return this.#lists.length;
  }

  /** The segments of a buffer, as a driver queue takes them. */
  list(buffer: number): BufferList {
    return this.#lists[buffer]!;
  }

  /** Makes the first bytes of a buffer 0, so that a header that is not written is seen. */
  blank(buffer: number): void {
    this.#copy(buffer, 0, HEADER_BYTES, null);
  }

  /** Reads the header of a buffer. */
  readHeader(buffer: number, header: PacketHeader): void {
    if (this.#layout[0]! >= HEADER_BYTES) {
      header.read(this.#view, buffer * this.#stride);
    } else {
      this.#copy(buffer, 0, HEADER_BYTES, this.#scratchBytes);
      header.read(this.#scratch, 0);
    }
  }

  /** Appends `length` bytes behind the header to `target`; they must lie in the buffer. */
  copyPayload(buffer: number, length: number, target: ByteRing): void {
    const start = buffer * this.#stride;
    let skip = HEADER_BYTES;
    for (let i = 0; i < this.#layout.length && length > 0; i++) {
      const size = this.#layout[i]!;
      if (skip >= size) {
        skip -= size;
        continue;
      }
      const take = Math.min(size - skip, length);
      const at = start + this.#offsets[i]! + skip;
      target.write(this.#bytes, at, at + take);
      length -= take;
      skip = 0;
    }
  }

  /** Returns a copy of bytes `from` to `from + length - 1` of a buffer, header included. */
  copy(buffer: number, from: number, length: number): Uint8Array {
    const copy = new Uint8Array(
      Math.max(0, Math.min(length, this.size - from)),
    );
    this.#copy(buffer, from, copy.length, copy);
    return copy;
  }

  /** Tells whether nothing was written behind the segments of a buffer. */
  guardsIntact(buffer: number): boolean {
    const bytes = this.#bytes;
    const start = buffer * this.#stride;
    for (let i = 0; i < this.#layout.length; i++) {
      const at = start + this.#offsets[i]! + this.#layout[i]!;
      for (let k = at; k < at + GUARD_BYTES; k++) {
        if (bytes[k] !== GUARD_VALUE) return false;
      }
    }
    return true;
  }

  /** Copies a run of a buffer into `target`, or zeroes it with null. */
  #copy(
    buffer: number,
    skip: number,
    length: number,
    target: Uint8Array | null,
  ): void {
    const start = buffer * this.#stride;
    let done = 0;
    for (let i = 0; i < this.#layout.length && done < length; i++) {
      const size = this.#layout[i]!;
      if (skip >= size) {
        skip -= size;
        continue;
      }
      const take = Math.min(size - skip, length - done);
      const at = start + this.#offsets[i]! + skip;
      if (target === null) this.#bytes.fill(0, at, at + take);
      else target.set(this.#bytes.subarray(at, at + take), done);
      done += take;
      skip = 0;
    }
  }
}
