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

  // Guest memory is copied here once, so that no field can change between check and use.
  readonly #bytes = new Uint8Array(VSOCK_HEADER_SIZE);
  readonly #words = new Uint32Array(this.#bytes.buffer);

  /**
   * Reads the header from a chain's readable segments, which may split it anywhere; false where
   * they have fewer than 44 bytes.
   */
  readFrom(chain: Chain): boolean {
    if (chain.read(this.#bytes) < VSOCK_HEADER_SIZE) return false;
    const words = this.#words;
    this.srcCid = words[0]! + words[1]! * 0x1_0000_0000;
    this.dstCid = words[2]! + words[3]! * 0x1_0000_0000;
    this.srcPort = words[4]!;
    this.dstPort = words[5]!;
    this.len = words[6]!;
    const typeAndOp = words[7]!;
    this.type = typeAndOp & 0xffff;
    this.op = typeAndOp >>> 16;
    this.flags = words[8]!;
    this.bufAlloc = words[9]!;
    this.fwdCnt = words[10]!;
    return true;
  }

  /**
   * Writes the header to the start of a chain's writable segments; false where they are shorter
   * than 44 bytes. CIDs must be below 2^32.
   */
  writeTo(chain: Chain): boolean {
    const words = this.#words;
    words[0] = this.srcCid;
    words[1] = 0;
    words[2] = this.dstCid;
    words[3] = 0;
    words[4] = this.srcPort;
    words[5] = this.dstPort;
    words[6] = this.len;
    words[7] = this.type | (this.op << 16);
    words[8] = this.flags;
    words[9] = this.bufAlloc;
    words[10] = this.fwdCnt;
    return chain.write(this.#bytes) === VSOCK_HEADER_SIZE;
  }
}
