/**
 * Constants of the socket device, spelled as in virtio 1.4, 5.10, and in Linux's
 * `virtio_vsock.h` where the specification has no name for them.
 */

/** Device type of a socket device (5.10.1). */
export const VIRTIO_ID_VSOCK = 19;

/** Queue of packets to the guest (5.10.2). */
export const VSOCK_QUEUE_RX = 0;
/** Queue of packets from the guest (5.10.2). */
export const VSOCK_QUEUE_TX = 1;
/** Queue of events to the guest (5.10.2). */
export const VSOCK_QUEUE_EVENT = 2;

/** Feature bit: stream sockets (5.10.3). */
export const VIRTIO_VSOCK_F_STREAM = 0;
/** Feature bit: seqpacket sockets (5.10.3). */
export const VIRTIO_VSOCK_F_SEQPACKET = 1;
/** Feature bit: SEQPACKET does not imply STREAM (5.10.3). */
export const VIRTIO_VSOCK_F_NO_IMPLIED_STREAM = 2;

/** No operation; never valid (5.10.6). */
export const VIRTIO_VSOCK_OP_INVALID = 0;
/** Asks for a connection (5.10.6). */
export const VIRTIO_VSOCK_OP_REQUEST = 1;
/** Accepts a connection (5.10.6). */
export const VIRTIO_VSOCK_OP_RESPONSE = 2;
/** Refuses or aborts a connection (5.10.6). */
export const VIRTIO_VSOCK_OP_RST = 3;
/** Ends one or both directions (5.10.6). */
export const VIRTIO_VSOCK_OP_SHUTDOWN = 4;
/** Carries payload (5.10.6). */
export const VIRTIO_VSOCK_OP_RW = 5;
/** Tells the sender's buffer space (5.10.6). */
export const VIRTIO_VSOCK_OP_CREDIT_UPDATE = 6;
/** Asks for the peer's buffer space (5.10.6). */
export const VIRTIO_VSOCK_OP_CREDIT_REQUEST = 7;

/** Socket type of a stream (5.10.6.2). */
export const VIRTIO_VSOCK_TYPE_STREAM = 1;
/** Socket type of a seqpacket (5.10.6.2). */
export const VIRTIO_VSOCK_TYPE_SEQPACKET = 2;

/** Mask in a SHUTDOWN's flags: the sender receives no more (5.10.6.5, bit 0). */
export const VIRTIO_VSOCK_SHUTDOWN_RCV = 1;
/** Mask in a SHUTDOWN's flags: the sender sends no more (5.10.6.5, bit 1). */
export const VIRTIO_VSOCK_SHUTDOWN_SEND = 2;
/** Both directions. */
export const VIRTIO_VSOCK_SHUTDOWN_MASK = 3;

/** Flag of a seqpacket's RW: last packet of a message (5.10.6.6.1). */
export const VIRTIO_VSOCK_SEQ_EOM = 1;
/** Flag of a seqpacket's RW, beside EOM: the message ends a record (5.10.6.6.1). */
export const VIRTIO_VSOCK_SEQ_EOR = 2;

/** Event: connections are lost, `guest_cid` is to be read again (5.10.6.7). */
export const VIRTIO_VSOCK_EVENT_TRANSPORT_RESET = 0;
/** Bytes of a `struct virtio_vsock_event` (5.10.6.7). */
export const VSOCK_EVENT_SIZE = 4;

/** Bytes of a `struct virtio_vsock_hdr` (5.10.6). */
export const VSOCK_HEADER_SIZE = 44;

/** The host's CID (5.10.4). */
export const VMADDR_CID_HOST = 2;
/** Any CID; reserved (5.10.4). */
export const VMADDR_CID_ANY = 0xffffffff;
/** Any port; never one that can be connected to. */
export const VMADDR_PORT_ANY = 0xffffffff;

/** Tells whether `cid` can be a guest's: an integer from 3 to 0xfffffffe (5.10.4). */
export function isGuestCid(cid: number): boolean {
  return Number.isInteger(cid) && cid > VMADDR_CID_HOST && cid < VMADDR_CID_ANY;
}
