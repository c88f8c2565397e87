import type { DriverQueue } from "../../ring/queue.ts";
import type { MemoryArena } from "./memory_arena.ts";
import type { SendLayout } from "./send_buffers.ts";
import type { PacketFields } from "./vsock_header.ts";

/** Queue on which the device sends packets. */
export const RX_QUEUE = 0;
/** Queue on which the guest sends packets. */
export const TX_QUEUE = 1;
/** Queue on which the device sends events. */
export const EVENT_QUEUE = 2;

/** How long `connect` waits for an answer unless told, as Linux does. */
export const CONNECT_TIMEOUT_MS: number = 2000;

/** A rule of the specification that the device broke, as the guest saw it. */
export class VsockViolation extends Error {
  /** `"VsockViolation"`. */
  override readonly name = "VsockViolation";
}

/** A packet as it was received. */
export type ObservedPacket = {
  /** The header. */
  header: PacketFields;
  /** Copy of the payload: what `used.len` counts behind the header. */
  payload: Uint8Array;
  /** Bytes that the device says it wrote. */
  usedLength: number;
};

/** Options of a `VsockDriver`. */
export type VsockDriverOptions = {
  /** Queue 0. */
  rx: DriverQueue;
  /** Queue 1. */
  tx: DriverQueue;
  /** Queue 2; a front-end may keep it to itself. */
  event?: DriverQueue | null;
  /** Memory for packet buffers. */
  arena: MemoryArena;
  /** Reads the guest's CID from the device's configuration: at start and on TRANSPORT_RESET. */
  readCid: () => number;
  /** Carries a kick of a queue to the device. */
  kick: (queue: number) => void;
  /** Descriptor lengths of a receive buffer. One of 3776, as Linux 6.x has it, unless told. */
  rxLayout?: readonly number[];
  /** Receive buffers that are posted at most. As many as the queue takes unless told. */
  rxBuffers?: number;
  /** Start value of `rxPaused`: no receive buffers are posted. False unless told. */
  rxPaused?: boolean;
  /** How packets that are sent are cut into descriptors. */
  txLayout?: SendLayout;
  /** Largest payload of a packet that is sent, in bytes. 65536 unless told. */
  maxPayload?: number;
  /** Receive buffer of a connection, in bytes. 262144 unless told. */
  bufAlloc?: number;
  /** Milliseconds of a steady clock. `performance.now` unless told. */
  now?: () => number;
  /** VIRTIO_VSOCK_F_SEQPACKET was negotiated. False unless told. */
  seqpackets?: boolean;
  /** `poll()` throws what `violations` collects. True unless told. */
  strict?: boolean;
};
