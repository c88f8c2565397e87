import { Segments } from "../device/vsock/segments.ts";
import { Chain } from "../ring/chain.ts";
import { GuestMemory } from "../ring/memory.ts";
import { Violation } from "./violation.ts";

const REGION_BYTES = 0x20_0000;
const SECOND_REGION = 0x100_0000;
const UNTOUCHED = 0xa5;

/** Guest memory in two regions, for bytes in pieces that lie apart. */
export class SegmentMemory {
  readonly #memory: GuestMemory;

  /** Makes it, empty. */
  constructor() {
    this.#memory = new GuestMemory([0, SECOND_REGION].map((guestAddress) => {
      const buffer = new ArrayBuffer(REGION_BYTES);
      return { guestAddress, size: REGION_BYTES, buffer };
    }));
  }

  /** Room for `bytes` in at most so many pieces, from either region in turns. */
  place(bytes: number, pieces: number): Segments {
    const chain = new Chain(this.#memory);
    const each = Math.max(1, Math.ceil(bytes / pieces));
    // Apart by a byte at least.
    for (let left = bytes, n = 0; left > 0; n++) {
      const length = Math.min(each, left);
      const { guestAddress, bytes: region } = this.#memory.regions[n % 2]!;
      const offset = 1 + (each + 1) * (n >>> 1);
      chain.append(guestAddress + offset, length, true);
      region.fill(UNTOUCHED, offset - 1, offset + length + 1);
      left -= length;
    }
    const segments = new Segments(this.#memory);
    segments.add(chain, 0, chain.count, 0, bytes);
    return segments;
  }

  /** The same with bytes in it. */
  hold(bytes: Uint8Array, pieces: number): Segments {
    const segments = this.place(bytes.length, pieces);
    let at = 0;
    for (let i = 0; i < segments.count; i++) {
      const view = this.#piece(segments, i);
      view.set(bytes.subarray(at, at += view.length));
    }
    return segments;
  }

  /**
   * The first `count` bytes of what was written.
   *
   * @throws {Violation} when a byte behind them, or between the pieces, was written.
   */
  copy(segments: Segments, count: number): Uint8Array {
    const bytes = new Uint8Array(count);
    let at = 0;
    for (let i = 0; i < segments.count; i++) {
      const view = this.#piece(segments, i);
      const part = view.subarray(0, count - at);
      bytes.set(part, at);
      at += part.length;
      const { bytes: region } = this.#memory.regions[segments.region[i]!]!;
      const offset = segments.offset[i]!;
      const spoiled = region[offset - 1] !== UNTOUCHED ||
        view.subarray(part.length).some((byte) => byte !== UNTOUCHED) ||
        region[offset + view.length] !== UNTOUCHED;
      if (spoiled) {
        throw new Violation("packets", "a byte beside what came was written");
      }
    }
    return bytes;
  }

  #piece({ region, offset, length }: Segments, i: number): Uint8Array {
    const { bytes } = this.#memory.regions[region[i]!]!;
    return bytes.subarray(offset[i]!, offset[i]! + length[i]!);
  }
}
