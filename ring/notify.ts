/**
 * Tells whether an index that moved from `oldIdx` to `newIdx` passed `event`: whether one of the
 * entries `oldIdx`, ..., `newIdx - 1` is the one that the other side wants to be told of.
 *
 * All three are free-running indices mod 2^16 (only their low 16 bits count); `newIdx` equal to
 * `oldIdx` means that nothing moved, so the answer is false. The distances are compared mod 2^16
 * because the indices wrap: a plain `>=` loses notifications behind 65535. Serves both directions
 * of both formats; a packed ring adds its size to an offset of another lap first
 * (virtio 1.4, 2.7.7.2, 2.7.10.1, 2.8.10; Appendix A `virtq_need_event`).
 */
export function vringNeedEvent(
  event: number,
  newIdx: number,
  oldIdx: number,
): boolean {
  return ((newIdx - event - 1) & 0xffff) < ((newIdx - oldIdx) & 0xffff);
}

/**
 * What a driver tells in a notification where VIRTIO_F_NOTIFICATION_DATA was negotiated (virtio 1.4, 2.9).
 *
 * As a le32, which PCI and MMIO carry: `queue` in bits 0 to 15, `nextOff` in bits 16 to 30, `nextWrap` in
 * bit 31. Split: the upper half is the available index, all 16 bits of it. Packed: a position in the ring
 * with its wrap counter, laid out like those of the queue-state words.
 */
export type NotificationData = {
  /**
   * Index of the queue (`vq_index`), or where VIRTIO_F_NOTIF_CONFIG_DATA was negotiated what the device
   * gave for it (`vq_notif_config_data`); 16 bits.
   */
  queue: number;
  /** Split: the available index without its top bit. Packed: the descriptor that is filled next. */
  nextOff: number;
  /** Split: top bit of the available index. Packed: the driver's wrap counter there. */
  nextWrap: 0 | 1;
};

/**
 * Packs what a notification tells into its 32-bit value, which is unsigned (2.9).
 *
 * @throws {RangeError} when a field does not fit.
 */
export function encodeNotificationData(data: NotificationData): number {
  const { queue, nextOff, nextWrap } = data;
  return encodeNotification(queue, nextOff, 0x7fff, nextWrap);
}

/** Unpacks the 32-bit value of a notification; any number is one, and only its low 32 bits count (2.9). */
export function decodeNotificationData(value: number): NotificationData {
  return {
    queue: value & 0xffff,
    nextOff: value >>> 16 & 0x7fff,
    nextWrap: value >>> 31 === 0 ? 0 : 1,
  };
}

/** Packs a queue with a position of up to `most`, and a wrap counter above its 15 bits. */
export function encodeNotification(
  queue: number,
  position: number,
  most: number,
  wrap: 0 | 1,
): number {
  if (!(queue >>> 0 === queue && queue <= 0xffff)) {
    throw new RangeError(`Cannot notify of queue ${queue}: not 0 to 65535`);
  }
  if (!(position >>> 0 === position && position <= most) || wrap >>> 1 !== 0) {
    throw new RangeError(
      `Cannot notify of position ${position} with wrap counter ${wrap}`,
    );
  }
  return (wrap << 31 | position << 16 | queue) >>> 0;
}
