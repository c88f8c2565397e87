/**
 * What a driver tells in a notification where VIRTIO_F_NOTIFICATION_DATA was negotiated (virtio 1.4, 2.9).
 *
 * On the wire it is a le32: `queue` in bits 0 to 15, `nextOff` in bits 16 to 30, `nextWrap` in bit 31.
 */
export type NotificationData = {
  /** Index of the queue, or its `queue_notif_config_data` where that was negotiated; 16 bits. */
  queue: number;
  /** Split: the available index without its top bit. Packed: where the driver writes next. */
  nextOff: number;
  /** Split: top bit of the available index. Packed: the driver's wrap counter. */
  nextWrap: 0 | 1;
};

/** Packs a notification; the result is unsigned. */
export function encodeNotification(data: NotificationData): number {
  return (data.nextWrap << 31 | data.nextOff << 16 | data.queue) >>> 0;
}

/** Unpacks a notification; every u32 is one. */
export function decodeNotification(word: number): NotificationData {
  return {
    queue: word & 0xffff,
    nextOff: word >>> 16 & 0x7fff,
    nextWrap: word >>> 31 === 0 ? 0 : 1,
  };
}
