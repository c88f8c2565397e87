/**
 * Constants of split and packed virtqueues, spelled as in the virtio 1.4 specification
 * (2.7 Split Virtqueues, 2.8 Packed Virtqueues, Appendix A `virtio_queue.h`).
 */

/** The buffer continues in the descriptor that follows (2.7.5, 2.8.5). */
export const VIRTQ_DESC_F_NEXT = 1;
/** The device writes the buffer; without it the device reads it (2.7.5, 2.8.5). */
export const VIRTQ_DESC_F_WRITE = 2;
/** The buffer holds a table of descriptors (2.7.5.3, 2.8.7). */
export const VIRTQ_DESC_F_INDIRECT = 4;
/** Packed: the driver's wrap counter when the descriptor was made available (2.8.1). */
export const VIRTQ_DESC_F_AVAIL = 0x80;
/** Packed: equal to AVAIL in a used descriptor, its inverse in an available one (2.8.1). */
export const VIRTQ_DESC_F_USED = 0x8000;

/** Split, `avail.flags`: the driver asks for no interrupts (2.7.6). */
export const VIRTQ_AVAIL_F_NO_INTERRUPT = 1;
/** Split, `used.flags`: the device asks for no available-buffer notifications (2.7.8). */
export const VIRTQ_USED_F_NO_NOTIFY = 1;

/** Packed event suppression: notify of every change (2.8.10). */
export const RING_EVENT_FLAGS_ENABLE = 0;
/** Packed event suppression: do not notify (2.8.10). */
export const RING_EVENT_FLAGS_DISABLE = 1;
/** Packed event suppression: notify at the descriptor named by `desc_event_off_wrap` (2.8.10). */
export const RING_EVENT_FLAGS_DESC = 2;

/** Bytes of one descriptor, split and packed: le64 addr, le32 len, two le16 (2.7.5, 2.8.13). */
export const VIRTQ_DESC_SIZE = 16;
/** Largest queue: the count of descriptors fits a le16 and is at most 2^15 (2.7, 2.8). */
export const VIRTQ_MAX_SIZE = 32768;

/** Feature bit: descriptors may point at tables of descriptors (6). */
export const VIRTIO_F_INDIRECT_DESC = 28;
/** Feature bit: notification is suppressed by an index, not by a flag (6). */
export const VIRTIO_F_EVENT_IDX = 29;
/** Feature bit: the device follows virtio 1.0 or later (6). */
export const VIRTIO_F_VERSION_1 = 32;
/** Feature bit: the device reaches memory through a platform translation (6). */
export const VIRTIO_F_ACCESS_PLATFORM = 33;
/** Feature bit: packed virtqueues (6). */
export const VIRTIO_F_RING_PACKED = 34;
/** Feature bit: buffers are used in the order in which they were made available (6). */
export const VIRTIO_F_IN_ORDER = 35;
/** Feature bit: memory accesses are ordered as the platform describes (6). */
export const VIRTIO_F_ORDER_PLATFORM = 36;
/** Feature bit: notifications carry the available index (6). */
export const VIRTIO_F_NOTIFICATION_DATA = 38;
/** Feature bit: the driver tells the device's own value in notifications (6). */
export const VIRTIO_F_NOTIF_CONFIG_DATA = 39;
/** Feature bit: one queue can be reset alone (6). */
export const VIRTIO_F_RING_RESET = 40;
