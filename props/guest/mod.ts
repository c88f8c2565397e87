/**
 * The guest's side of a virtio-vsock device, for tests, benchmarks and programs that need no VM: a vsock
 * stack that checks the device it drives, in one process ({@link InProcessGuest}) or over a vhost-user
 * socket ({@link VhostUserFrontEnd}).
 *
 * @module
 */

export { CheckedSink, CheckedSource } from "./checked_stream.ts";
export {
  CONNECT_TIMEOUT_MS,
  EVENT_QUEUE,
  type ObservedPacket,
  RX_QUEUE,
  TX_QUEUE,
  type VsockDriverOptions,
  VsockViolation,
} from "./driver_options.ts";
export {
  CLOSE_TIMEOUT_MS,
  type ConnectionPort,
  CREDIT_UPDATE_THRESHOLD_BYTES,
  type GuestCloseReason,
  GuestConnection,
  type GuestConnectionState,
} from "./guest_connection.ts";
export type { GuestMessage } from "./guest_messages.ts";
export { GuestListener } from "./guest_listener.ts";
export {
  InProcessGuest,
  type InProcessOptions,
  type PolledDevice,
} from "./in_process.ts";
export { ByteRing } from "./byte_ring.ts";
export { MemoryArena } from "./memory_arena.ts";
export type { RawSend } from "./raw_sender.ts";
export {
  ReceiveBuffers,
  RX_LAYOUT_LINUX_6,
  RX_LAYOUT_LINUX_OLD,
  RX_LAYOUT_ONE_PIECE,
} from "./receive_buffers.ts";
export type { SendLayout } from "./send_buffers.ts";
export {
  FrontEndError,
  pollFds,
  VhostUserChannel,
} from "./vhost_user_channel.ts";
export {
  type FrontEndOptions,
  VhostUserFrontEnd,
} from "./vhost_user_front_end.ts";
export { VsockDriver } from "./vsock_driver.ts";
export {
  CID_HOST,
  encodeHeader,
  HEADER_BYTES,
  OP_CREDIT_REQUEST,
  OP_CREDIT_UPDATE,
  OP_REQUEST,
  OP_RESPONSE,
  OP_RST,
  OP_RW,
  OP_SHUTDOWN,
  opName,
  type PacketFields,
  PacketHeader,
  SEQ_EOM,
  SEQ_EOR,
  SHUTDOWN_BOTH,
  SHUTDOWN_RCV,
  SHUTDOWN_SEND,
  TYPE_SEQPACKET,
  TYPE_STREAM,
} from "./vsock_header.ts";
export type { MemoryRegionDescription } from "../../device/vhost_user/message.ts";
