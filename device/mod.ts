/**
 * The virtio socket device, its host side in memory, and the vhost-user back-end without its
 * input and output: everything that runs wherever JavaScript does.
 *
 * @module
 */

// What the device's interfaces are made of.
export {
  type BatchDeviceQueue,
  Chain,
  ChainBatch,
  type DeviceQueue,
  GuestMemory,
  type GuestRegion,
  type InFlightBuffer,
  type InFlightDescriptor,
  type MemoryRegion,
  PackedDevice,
  type QueueConfig,
  type QueueState,
  type QueueStateWords,
  RingError,
  type RingErrorCode,
  type RingFormat,
  SplitDevice,
} from "../ring/mod.ts";
export {
  type DeviceSnapshot,
  type QueueSnapshot,
  SNAPSHOT_VERSION,
} from "./device_snapshot.ts";
export {
  type Plain,
  SnapshotError,
  type SnapshotErrorCode,
} from "./snapshot.ts";
export { Diagnostics, type Log, type LogLevel } from "./diagnostics.ts";
export { type EmulatorOptions, followMemory } from "./emulator.ts";
export type { FieldPartsSnapshot } from "./_field_parts.ts";
export type { PciCommonSnapshot } from "./_pci_common.ts";
export type { RegisterSnapshot } from "./_registers.ts";
export { type MmioOptions, type MmioSnapshot, MmioTransport } from "./mmio.ts";
export { type PciOptions, type PciSnapshot, PciTransport } from "./pci.ts";
export type { PciIdentity } from "./pci_config.ts";
export type { PciSpace } from "./pci_layout.ts";
export type { MsixSnapshot, PciMsixOptions } from "./pci_msix.ts";
export type {
  FacilityEntry,
  FacilitySnapshot,
  QueueStateAccess,
} from "./queue_state.ts";
export {
  type TransportFeatureOptions,
  VIRTIO_F_QUEUE_STATE,
  VIRTIO_F_SUSPEND,
} from "./transport_features.ts";
export {
  VIRTIO_MMIO_QUEUE_AVAIL_STATE,
  VIRTIO_MMIO_QUEUE_USED_STATE,
} from "./virtio_mmio.ts";
export {
  VIRTIO_PCI_COMMON_Q_AVAIL_STATE,
  VIRTIO_PCI_COMMON_Q_USED_STATE,
} from "./virtio_pci.ts";
export {
  type DeviceModel,
  featureMask,
  type QueueSetup,
  type RingChoice,
  type TransportPort,
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FAILED,
  VIRTIO_CONFIG_S_FEATURES_OK,
  VIRTIO_CONFIG_S_NEEDS_RESET,
  VIRTIO_CONFIG_S_SUSPEND,
  VirtioDevice,
  type VirtioDeviceOptions,
} from "./virtio_device.ts";
export type { ConnectionState } from "./vsock/connection.ts";
export type { CreditState } from "./vsock/credit.ts";
export { VsockDevice, type VsockDeviceOptions } from "./vsock/device.ts";
export {
  type ConnectAnswer,
  type ConnectionAddress,
  type ConnectRequest,
  type HostMessages,
  type HostSide,
  type HostStream,
  MESSAGE_AGAIN,
  MESSAGE_TOO_LONG,
  type MessageEvents,
  type MessagesAnswer,
  type MessagesRequest,
  type PeerAddress,
  type PeerMessagesRequest,
  type PeerRequest,
  type PeerSide,
  type PendingConnect,
  type RestoredConnection,
  STREAM_AGAIN,
  STREAM_BROKEN,
  STREAM_EOF,
  type StreamEvents,
} from "./vsock/host.ts";
export {
  LOOPBACK_BACKLOG,
  type LoopbackDevice,
  LoopbackHost,
  LoopbackListener,
  type LoopbackSnapshot,
  type SeqpacketOption,
  type SocketOption,
} from "./vsock/loopback.ts";
export {
  LOOPBACK_BUFFER_BYTES,
  LoopbackConn,
  type LoopbackConnSnapshot,
  type LoopbackContext,
} from "./vsock/loopback_conn.ts";
export {
  LOOPBACK_BUFFER_MESSAGES,
  type LoopbackMessage,
  LoopbackMessages,
  type LoopbackMessageSnapshot,
  type LoopbackMessagesSnapshot,
} from "./vsock/loopback_messages.ts";
export type { LinkState, OutgoingState } from "./vsock/host_link.ts";
export {
  PIPE_BUFFER_BYTES,
  PIPE_BUFFER_MESSAGES,
  type PipeEndSnapshot,
  type PipeSnapshot,
} from "./vsock/pipe.ts";
export {
  DEFAULT_MAX_PEER_CONNECTIONS,
  type SwitchedDevice,
  type SwitchSnapshot,
  VsockSwitch,
  type VsockSwitchOptions,
} from "./vsock/switch.ts";
export { MAX_SEGMENTS, Segments } from "./vsock/segments.ts";
export type {
  ConnectionSnapshot,
  StraySnapshot,
  VsockSnapshot,
} from "./vsock/snapshot.ts";
export {
  VhostUserError,
  type VhostUserErrorCode,
} from "./vhost_user/errors.ts";
export type { VhostUserMessage } from "./vhost_user/message.ts";
export { MessageAssembler } from "./vhost_user/message_assembler.ts";
export type { MappedMemory, SessionPorts } from "./vhost_user/ports.ts";
export {
  VhostUserSession,
  type VhostUserSessionOptions,
} from "./vhost_user/session.ts";
