import type { Chain } from "../../ring/chain.ts";
import { VSOCK_HEADER_SIZE } from "./virtio_vsock.ts";

/**
 * A packet header, `struct virtio_vsock_hdr` (virtio 1.4, 5.10.6): reusable scratch of 44 bytes.
 *
 * | bytes | field | bytes | field |
 * |---|---|---|---|
 * | 0-7 | src_cid | 28-29 | type |
 * | 8-15 | dst_cid | 30-31 | op |
 * | 16-19 | src_port | 32-35 | flags |
 * | 20-23 | dst_port | 36-39 | buf_alloc |
 * | 24-27 | len | 40-43 | fwd_cnt |
 *
 * All little-endian. A CID of 2^53 or more, whose upper half the specification reserves, loses
 * low bits as a number; it is still told apart from every valid one.
 */
export class PacketHeader {
  /** CID of the sender. */
  srcCid = 0;
  /** CID of the receiver. */
  dstCid = 0;
  /** Port of the sender, u32. */
  srcPort = 0;
  /** Port of the receiver, u32. */
  dstPort = 0;
  /** Bytes of payload, u32. */
  len = 0;
  /** Socket type, u16. */
  type = 0;
  /** Operation, u16. */
  op = 0;
  /** Flags, by operation, u32. */
  flags = 0;
  /** Sender's receive buffer in bytes, u32. */
  bufAlloc = 0;
  /** Bytes that the sender has taken out of its buffer, u32, wrapping. */
  fwdCnt = 0;

  // For a header that is split or not aligned to words.
  readonly #bytes = new Uint8Array(VSOCK_HEADER_SIZE);
  readonly #words = new Uint32Array(this.#bytes.buffer);

  /**
   * Reads the header from a chain's readable segments, which may split it anywhere; false where
   * they have fewer than 44 bytes. Each field is read once, so that none can change between check and use.
   */
  readFrom(chain: Chain): boolean {
    if (wholeAt(chain, 0, chain.readable)) {
      this.#load(wordsOf(chain, 0), chain.offset[0]! / 4);
      return true;
    }
    if (chain.read(this.#bytes) < VSOCK_HEADER_SIZE) return false;
    this.#load(this.#words, 0);
    return true;
  }

  #load(words: Uint32Array, at: number): void {
    this.srcCid = words[at]! + words[at + 1]! * 0x1_0000_0000;
    this.dstCid = words[at + 2]! + words[at + 3]! * 0x1_0000_0000;
    this.srcPort = words[at + 4]!;
    this.dstPort = words[at + 5]!;
    this.len = words[at + 6]!;
    const typeAndOp = words[at + 7]!;
    this.type = typeAndOp & 0xffff;
    this.op = typeAndOp >>> 16;
    this.flags = words[at + 8]!;
    this.bufAlloc = words[at + 9]!;
    this.fwdCnt = words[at + 10]!;
  }

  /**
   * Writes the header to the start of a chain's writable segments; false where they are shorter
   * than 44 bytes. CIDs must be below 2^32.
   */
  writeTo(chain: Chain): boolean {
    const first = chain.readable;
    if (wholeAt(chain, first, chain.count)) {
      this.#store(wordsOf(chain, first), chain.offset[first]! / 4);
      return true;
    }
    this.#store(this.#words, 0);
    return chain.write(this.#bytes) === VSOCK_HEADER_SIZE;
  }

  #store(words: Uint32Array, at: number): void {
    words[at] = this.srcCid;
    words[at + 1] = 0;
    words[at + 2] = this.dstCid;
    words[at + 3] = 0;
    words[at + 4] = this.srcPort;
    words[at + 5] = this.dstPort;
    words[at + 6] = this.len;
    words[at + 7] = this.type | (this.op << 16);
    words[at + 8] = this.flags;
    words[at + 9] = this.bufAlloc;
    words[at + 10] = this.fwdCnt;
  }
}

// True where row `row` of a chain, below `end`, has a whole header that is aligned to words.
function wholeAt(chain: Chain, row: number, end: number): boolean {
  return row < end && chain.length[row]! >= VSOCK_HEADER_SIZE &&
    (chain.offset[row]! & 3) === 0;
}

function wordsOf(chain: Chain, row: number): Uint32Array {
  return chain.memory.regions[chain.region[row]!]!.words;
}
