/**
 * Virtqueues over guest memory, device side and driver side, split and packed (virtio 1.4, 2.7 and 2.8).
 *
 * @module
 */

export { RingError, type RingErrorCode } from "./errors.ts";
export { GuestMemory, type GuestRegion, type MemoryRegion } from "./memory.ts";
export { Chain } from "./chain.ts";
export { ChainBatch } from "./chain_batch.ts";
export {
  type BatchDeviceQueue,
  type BatchDriverQueue,
  BufferList,
  type DeviceQueue,
  type DriverQueue,
  type IndirectTables,
  type InFlightBuffer,
  type InFlightDescriptor,
  type QueueConfig,
  type QueueState,
  type RingFormat,
} from "./queue.ts";
export {
  decodeNotificationData,
  encodeNotificationData,
  type NotificationData,
  vringNeedEvent,
} from "./notify.ts";
export {
  rewindInFlight,
  type RingPlace,
  type SavedQueue,
  saveQueue,
  type SaveWay,
} from "./save.ts";
export {
  type InflightRegion,
  inflightRegionSize,
  openInflight,
} from "./inflight.ts";
export { SplitInflight } from "./split_inflight.ts";
export { PackedInflight } from "./packed_inflight.ts";
export { PassingQueue } from "./passing_queue.ts";
export { TrackedQueue } from "./tracked_queue.ts";
export {
  checkQueueState,
  decodeQueueStateWords,
  decodeVringBase,
  encodeQueueStateWords,
  encodeVringBase,
  initialQueueState,
  type PackedQueueState,
  type QueueStateWords,
  type SplitQueueState,
} from "./state.ts";
export { readUsedIdx, SplitDevice } from "./split_device.ts";
export { SplitDriver, type SplitDriverOptions } from "./split_driver.ts";
export { PackedDevice } from "./packed_device.ts";
export { PackedDriver, type PackedDriverOptions } from "./packed_driver.ts";
export {
  RING_EVENT_FLAGS_DESC,
  RING_EVENT_FLAGS_DISABLE,
  RING_EVENT_FLAGS_ENABLE,
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_NOTIF_CONFIG_DATA,
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_ORDER_PLATFORM,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_RING_RESET,
  VIRTIO_F_VERSION_1,
  VIRTQ_AVAIL_F_NO_INTERRUPT,
  VIRTQ_DESC_F_AVAIL,
  VIRTQ_DESC_F_INDIRECT,
  VIRTQ_DESC_F_NEXT,
  VIRTQ_DESC_F_USED,
  VIRTQ_DESC_F_WRITE,
  VIRTQ_DESC_SIZE,
  VIRTQ_MAX_SIZE,
  VIRTQ_USED_F_NO_NOTIFY,
} from "./virtio_ring.ts";
