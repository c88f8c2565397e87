import type { BufferList } from "../../ring/queue.ts";
import type { MemoryArena } from "./memory_arena.ts";
import { HEADER_BYTES, type PacketHeader } from "./vsock_header.ts";

/** How a packet that is sent is cut into descriptors. */
export type SendLayout = {
  /** Lengths of the header's pieces; 44 in all. One piece unless told. */
  header?: readonly number[];
  /** The last piece of the header shares its descriptor with the first of the payload. */
  joined?: boolean;
  /** Bytes of payload in a descriptor. As many as a packet has unless told. */
  segmentBytes?: number;
};

/** Bytes between two segments, so that a device that reads on past a descriptor's end is seen. */
const GAP_BYTES = 16;
const GAP_VALUE = 0x5a;

/**
 * Buffers of packets that are sent, numbered from 0. Memory is taken from the arena when a buffer
 * is first used.
 */
export class SendBuffers {
  /** Segments that a packet can have. */
  readonly maxSegments: number;
  readonly #arena: MemoryArena;
  readonly #headerPieces: readonly number[];
  readonly #joined: boolean;
  readonly #segmentBytes: number;
  readonly #segmentStride: number;
  readonly #payloadOffset: number;
  readonly #bufferBytes: number;
  readonly #addresses: Float64Array;
  readonly #views: (Uint8Array | null)[];
  readonly #free: Int32Array;
  #freeCount: number;
  readonly #scratch: Uint8Array = new Uint8Array(HEADER_BYTES);
  readonly #scratchView: DataView;

  /**
   * Makes `count` buffers for payloads of up to `maxPayload` bytes.
   *
   * @throws {RangeError} when the header's pieces are not 44 bytes in all.
   */
  constructor(
    arena: MemoryArena,
    layout: SendLayout,
    maxPayload: number,
    count: number,
  ) {
    const pieces = layout.header ?? [HEADER_BYTES];
    const total = pieces.reduce((sum, length) => sum + length, 0);
    if (total !== HEADER_BYTES || !pieces.every((length) => length >= 1)) {
      throw new RangeError(
        `Cannot lay out a header as [${pieces}]: it has ${HEADER_BYTES} bytes`,
      );
    }
    this.#arena = arena;
    this.#headerPieces = [...pieces];
    this.#joined = layout.joined ?? false;
    this.#segmentBytes = layout.segmentBytes ?? maxPayload;
    this.#segmentStride = roundUp(this.#segmentBytes + GAP_BYTES);
    const segments = Math.ceil(maxPayload / this.#segmentBytes);
    this.maxSegments = pieces.length + segments - (this.#joined ? 1 : 0);
    this.#payloadOffset = pieces.reduce(
      (sum, length) => sum + roundUp(length + GAP_BYTES),
      0,
    );
    this.#bufferBytes = this.#payloadOffset + segments * this.#segmentStride;
    this.#addresses = new Float64Array(count);
    this.#views = new Array(count).fill(null);
    this.#free = Int32Array.from({ length: count }, (_, i) => count - 1 - i);
    this.#freeCount = count;
    this.#scratchView = new DataView(this.#scratch.buffer);
  }

  /** Takes a free buffer, or -1. */
  take(): number {
    if (this.#freeCount === 0) return -1;
    const buffer = this.#free[--this.#freeCount]!;
    if (this.#views[buffer] === null) {
      const address = this.#arena.allocate(this.#bufferBytes);
      this.#addresses[buffer] = address;
      this.#views[buffer] = this.#arena.bytes(address, this.#bufferBytes)
        .fill(GAP_VALUE);
    }
    return buffer;
  }

  /** Gives a buffer back. */
  release(buffer: number): void {
    this.#free[this.#freeCount++] = buffer;
  }

  /** Lists the segments of a packet with `length` bytes of payload. */
  describe(buffer: number, length: number, list: BufferList): BufferList {
    list.clear();
    const address = this.#addresses[buffer]!;
    const pieces = this.#headerPieces;
    const last = pieces.length - 1;
    let at = address;
    for (let i = 0; i < last; i++) {
      list.addReadable(at, pieces[i]!);
      at += roundUp(pieces[i]! + GAP_BYTES);
    }
    const payload = address + this.#payloadOffset;
    const segmentBytes = this.#segmentBytes;
    let done = 0;
    if (this.#joined) {
      // The header's last piece stands right before the payload.
      done = length < segmentBytes ? length : segmentBytes;
      list.addReadable(payload - pieces[last]!, pieces[last]! + done);
    } else {
      list.addReadable(at, pieces[last]!);
    }
    for (let i = this.#joined ? 1 : 0; done < length; i++) {
      const take = Math.min(segmentBytes, length - done);
      list.addReadable(payload + i * this.#segmentStride, take);
      done += take;
    }
    return list;
  }

  /** Writes header and payload, bytes `from` to `from + length - 1` of `source`. */
  fill(
    buffer: number,
    header: PacketHeader,
    source: Uint8Array,
    from: number,
    length: number,
  ): void {
    const bytes = this.#views[buffer]!;
    this.#fillHeader(bytes, header);
    const segmentBytes = this.#segmentBytes;
    let at = this.#payloadOffset;
    for (let done = 0; done < length; done += segmentBytes) {
      const take = Math.min(segmentBytes, length - done);
      bytes.set(source.subarray(from + done, from + done + take), at);
      at += this.#segmentStride;
    }
  }

  #fillHeader(bytes: Uint8Array, header: PacketHeader): void {
    header.write(this.#scratchView, 0);
    const pieces = this.#headerPieces;
    const last = pieces.length - 1;
    let at = 0;
    let done = 0;
    for (let i = 0; i <= last; i++) {
      const length = pieces[i]!;
      if (i === last && this.#joined) at = this.#payloadOffset - length;
      bytes.set(this.#scratch.subarray(done, done + length), at);
      done += length;
      at += roundUp(length + GAP_BYTES);
    }
  }
}

function roundUp(value: number): number {
  return Math.ceil(value / 16) * 16;
}
