import {
  CID_HOST,
  HEADER_BYTES,
  OP_CREDIT_REQUEST,
  OP_RW,
  OP_SHUTDOWN,
  opName,
  type PacketHeader,
  SEQ_EOM,
  SEQ_EOR,
  SHUTDOWN_BOTH,
  TYPE_SEQPACKET,
  TYPE_STREAM,
} from "./vsock_header.ts";

/**
 * Checks what every packet of a device must be and names each broken rule (virtio 1.4, 5.10.6); false
 * where the packet cannot be used any further. `seqpackets` says that they were negotiated.
 */
export function checkPacket(
  header: PacketHeader,
  usedLength: number,
  guestCid: number,
  seqpackets: boolean,
  violation: (text: string) => void,
): boolean {
  if (header.blank) {
    violation(`a packet of zeros, ${usedLength} bytes used`);
    return false;
  }
  const op = header.op;
  const name = opName(op);
  if (usedLength !== HEADER_BYTES + header.len) {
    violation(
      `${name} with len ${header.len} in ${usedLength} used bytes`,
    );
    return false;
  }
  if (op === 0 || op > OP_CREDIT_REQUEST) {
    violation(`${name} is unknown`);
    return false;
  }
  if (header.len !== 0 && op !== OP_RW) {
    violation(`${name} with ${header.len} bytes of payload`);
  }
  if (header.dstCid !== guestCid || header.dstCidHigh !== 0) {
    violation(
      `${name} to CID ${header.dstCid}, which is not the guest's ${guestCid}`,
    );
    return false;
  }
  const source = header.srcCid;
  if (
    header.srcCidHigh !== 0 || source < CID_HOST || source === 0xffffffff ||
    source === guestCid
  ) {
    violation(`${name} from CID ${source}, which nobody can have`);
    return false;
  }
  const messages = header.type === TYPE_SEQPACKET && seqpackets;
  let known = 0;
  if (op === OP_SHUTDOWN) known = SHUTDOWN_BOTH;
  else if (op === OP_RW && messages) known = SEQ_EOM | SEQ_EOR;
  if ((header.flags & ~known) !== 0) {
    violation(`${name} with flags 0x${header.flags.toString(16)}`);
  }
  if (header.type !== TYPE_STREAM && !messages) {
    violation(`${name} of type ${header.type}`);
  }
  return true;
}
