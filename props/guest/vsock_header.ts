/**
 * A guest's own idea of the vsock packet header (virtio 1.4, 5.10.6).
 *
 * It shares nothing with the device's codec, so that an error in that one is seen.
 */

/** Bytes of a header. */
export const HEADER_BYTES = 44;

/** Host's context identifier. */
export const CID_HOST = 2;

/** Type: stream socket. */
export const TYPE_STREAM = 1;

/** Type: seqpacket socket. */
export const TYPE_SEQPACKET = 2;

/** Flag of a seqpacket's payload: end of a message. */
export const SEQ_EOM = 1;
/** Flag of a seqpacket's payload: end of a record, with the end of a message. */
export const SEQ_EOR = 2;

/** Operation: ask for a connection. */
export const OP_REQUEST = 1;
/** Operation: accept a connection. */
export const OP_RESPONSE = 2;
/** Operation: end or refuse a connection. */
export const OP_RST = 3;
/** Operation: announce that an end will not send or receive any more. */
export const OP_SHUTDOWN = 4;
/** Operation: payload. */
export const OP_RW = 5;
/** Operation: tell `buf_alloc` and `fwd_cnt`. */
export const OP_CREDIT_UPDATE = 6;
/** Operation: ask for a CREDIT_UPDATE. */
export const OP_CREDIT_REQUEST = 7;

/** SHUTDOWN flag: the sender receives no more. */
export const SHUTDOWN_RCV = 1;
/** SHUTDOWN flag: the sender sends no more. */
export const SHUTDOWN_SEND = 2;
/** Both SHUTDOWN flags. */
export const SHUTDOWN_BOTH = 3;

/** Event: all connections are gone and the guest's CID may be another one. */
export const EVENT_TRANSPORT_RESET = 0;

const OP_NAMES: readonly string[] = [
  "INVALID",
  "REQUEST",
  "RESPONSE",
  "RST",
  "SHUTDOWN",
  "RW",
  "CREDIT_UPDATE",
  "CREDIT_REQUEST",
];

/** Name of an operation, for messages. */
export function opName(op: number): string {
  return OP_NAMES[op] ?? `operation ${op}`;
}

/** The fields of one header; a reusable scratch. A CID is two u32, all others are u32 or u16. */
export class PacketHeader {
  /** Source CID, bits 0 to 31. */
  srcCid = 0;
  /** Source CID, bits 32 to 63; 0 for every CID that exists. */
  srcCidHigh = 0;
  /** Destination CID, bits 0 to 31. */
  dstCid = 0;
  /** Destination CID, bits 32 to 63; 0 for every CID that exists. */
  dstCidHigh = 0;
  /** Source port. */
  srcPort = 0;
  /** Destination port. */
  dstPort = 0;
  /** Bytes of payload. */
  len = 0;
  /** Socket type. */
  type = 0;
  /** Operation. */
  op = 0;
  /** Flags; their meaning depends on the operation. */
  flags = 0;
  /** Receive buffer of the sender, in bytes. */
  bufAlloc = 0;
  /** Bytes that the sender has taken out of that buffer, mod 2^32. */
  fwdCnt = 0;

  /** Reads the 44 bytes at `offset` of `view`; returns itself. */
  read(view: DataView, offset: number): this {
    this.srcCid = view.getUint32(offset, true);
    this.srcCidHigh = view.getUint32(offset + 4, true);
    this.dstCid = view.getUint32(offset + 8, true);
    this.dstCidHigh = view.getUint32(offset + 12, true);
    this.srcPort = view.getUint32(offset + 16, true);
    this.dstPort = view.getUint32(offset + 20, true);
    this.len = view.getUint32(offset + 24, true);
    this.type = view.getUint16(offset + 28, true);
    this.op = view.getUint16(offset + 30, true);
    this.flags = view.getUint32(offset + 32, true);
    this.bufAlloc = view.getUint32(offset + 36, true);
    this.fwdCnt = view.getUint32(offset + 40, true);
    return this;
  }

  /** Writes the 44 bytes at `offset` of `view`. */
  write(view: DataView, offset: number): void {
    view.setUint32(offset, this.srcCid, true);
    view.setUint32(offset + 4, this.srcCidHigh, true);
    view.setUint32(offset + 8, this.dstCid, true);
    view.setUint32(offset + 12, this.dstCidHigh, true);
    view.setUint32(offset + 16, this.srcPort, true);
    view.setUint32(offset + 20, this.dstPort, true);
    view.setUint32(offset + 24, this.len, true);
    view.setUint16(offset + 28, this.type, true);
    view.setUint16(offset + 30, this.op, true);
    view.setUint32(offset + 32, this.flags, true);
    view.setUint32(offset + 36, this.bufAlloc, true);
    view.setUint32(offset + 40, this.fwdCnt, true);
  }

  /** Sets the fields that are named and leaves the others alone; returns itself. */
  set(fields: Partial<PacketFields>): this {
    Object.assign(this, fields);
    return this;
  }

  /** A copy of the fields. */
  fields(): PacketFields {
    return {
      srcCid: this.srcCid,
      srcCidHigh: this.srcCidHigh,
      dstCid: this.dstCid,
      dstCidHigh: this.dstCidHigh,
      srcPort: this.srcPort,
      dstPort: this.dstPort,
      len: this.len,
      type: this.type,
      op: this.op,
      flags: this.flags,
      bufAlloc: this.bufAlloc,
      fwdCnt: this.fwdCnt,
    };
  }

  /** True when every field is 0, as in a buffer that was never written. */
  get blank(): boolean {
    return (this.srcCid | this.srcCidHigh | this.dstCid | this.dstCidHigh |
      this.srcPort | this.dstPort | this.len | this.type | this.op |
      this.flags | this.bufAlloc | this.fwdCnt) === 0;
  }
}

/** The fields of a header as plain data. */
export type PacketFields = {
  /** Source CID, bits 0 to 31. */
  srcCid: number;
  /** Source CID, bits 32 to 63. */
  srcCidHigh: number;
  /** Destination CID, bits 0 to 31. */
  dstCid: number;
  /** Destination CID, bits 32 to 63. */
  dstCidHigh: number;
  /** Source port. */
  srcPort: number;
  /** Destination port. */
  dstPort: number;
  /** Bytes of payload. */
  len: number;
  /** Socket type. */
  type: number;
  /** Operation. */
  op: number;
  /** Flags. */
  flags: number;
  /** Receive buffer of the sender, in bytes. */
  bufAlloc: number;
  /** Bytes taken out of that buffer, mod 2^32. */
  fwdCnt: number;
};

/** Returns the 44 bytes of a header with these fields; those left out are 0. */
export function encodeHeader(fields: Partial<PacketFields>): Uint8Array {
  const bytes = new Uint8Array(HEADER_BYTES);
  new PacketHeader().set(fields).write(new DataView(bytes.buffer), 0);
  return bytes;
}
