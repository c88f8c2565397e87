import type { RingFormat } from "../ring/queue.ts";
import {
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_NOTIF_CONFIG_DATA,
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_ORDER_PLATFORM,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_RING_RESET,
  VIRTIO_F_VERSION_1,
} from "../ring/virtio_ring.ts";

/**
 * Feature bit: the driver can set and get the state of the virtqueues ("virtio: introduce virtqueue
 * state as basic facility", V2).
 *
 * The proposal took bit 40. It was not adopted, and virtio 1.2 gave the bit to VIRTIO_F_RING_RESET, as
 * which real drivers negotiate it. So a device offers one of the two, this one by an explicit option,
 * on a register transport whose driver knows what it means; vhost-user has its own way, the vring base.
 */
export const VIRTIO_F_QUEUE_STATE = 40;

/** Feature bit: the driver can suspend the device by a status bit (virtio 1.4, 6 and 3.4). */
export const VIRTIO_F_SUSPEND = 43;

/** Features of queues and of status that a device offers where it is told to; all off unless told. */
export type TransportFeatureOptions = {
  /**
   * Offer {@link VIRTIO_F_QUEUE_STATE}: the state of the queues can be read after a reset, and set
   * before a start. Not together with `ringReset`, which has the same bit.
   */
  queueState?: boolean;
  /** Offer VIRTIO_F_RING_RESET: one queue can be reset alone (2.6.1). */
  ringReset?: boolean;
  /**
   * Offer VIRTIO_F_IN_ORDER: buffers are used in the order in which they came (6). For a model that does
   * so: a queue refuses another order.
   */
  inOrder?: boolean;
  /**
   * Offer VIRTIO_F_ORDER_PLATFORM: the driver uses barriers for real devices. Never needed here, as
   * both sides run on the processors of one machine; it costs the driver time (6).
   */
  orderPlatform?: boolean;
  /** Offer VIRTIO_F_NOTIFICATION_DATA: notifications tell the driver's position (2.9). */
  notificationData?: boolean;
  /**
   * Offer VIRTIO_F_NOTIF_CONFIG_DATA with these values, one for each queue, distinct and of 16 bits: the
   * driver names a queue by its value in notifications (2.9).
   */
  notifConfigData?: readonly number[];
  /** Offer {@link VIRTIO_F_SUSPEND}: the driver can suspend the device (3.4). */
  suspend?: boolean;
};

/** One mask of a feature bit. */
export function featureMask(bit: number): bigint {
  return 1n << BigInt(bit);
}

/**
 * The bits that `options` asks for, on a device with `queueCount` queues.
 *
 * @throws {TypeError} when two of them exclude each other.
 * @throws {RangeError} when the notification values do not fit the queues.
 */
export function transportFeatures(
  options: TransportFeatureOptions,
  queueCount: number,
): bigint {
  if (options.queueState && options.ringReset) {
    throw new TypeError(
      "Cannot offer VIRTIO_F_QUEUE_STATE and VIRTIO_F_RING_RESET: both are bit 40",
    );
  }
  let bits = 0n;
  if (options.queueState) bits |= featureMask(VIRTIO_F_QUEUE_STATE);
  if (options.ringReset) bits |= featureMask(VIRTIO_F_RING_RESET);
  if (options.inOrder) bits |= featureMask(VIRTIO_F_IN_ORDER);
  if (options.orderPlatform) bits |= featureMask(VIRTIO_F_ORDER_PLATFORM);
  if (options.notificationData) bits |= featureMask(VIRTIO_F_NOTIFICATION_DATA);
  if (options.suspend) bits |= featureMask(VIRTIO_F_SUSPEND);
  const values = options.notifConfigData;
  if (values !== undefined) {
    const lawful = values.every((value) =>
      Number.isInteger(value) && value >= 0 && value <= 0xffff
    );
    if (
      !lawful || values.length !== queueCount ||
      new Set(values).size !== queueCount
    ) {
      throw new RangeError(
        `Cannot use notification values ${
          JSON.stringify(values)
        }: not ${queueCount} different numbers of 16 bits`,
      );
    }
    bits |= featureMask(VIRTIO_F_NOTIF_CONFIG_DATA);
  }
  return bits;
}

/**
 * Makes sure that a transport can carry what a device offers.
 *
 * @throws {TypeError} when `offered` has one of `excluded`.
 */
export function refuseFeatures(
  offered: bigint,
  excluded: readonly number[],
  transport: string,
): void {
  for (const bit of excluded) {
    if ((offered & featureMask(bit)) === 0n) continue;
    throw new TypeError(
      `Cannot carry the device by ${transport}: it offers feature bit ${bit}, which has no meaning there`,
    );
  }
}

/** Why a driver cannot have `features` of those that are `offered`, in words; null where it can. */
export function featureProblem(
  features: bigint,
  offered: bigint,
  ring: "auto" | RingFormat,
): string | null {
  const packed = featureMask(VIRTIO_F_RING_PACKED);
  const unknown = features & ~offered;
  if ((unknown & packed) !== 0n) {
    return "the driver accepted VIRTIO_F_RING_PACKED (bit 34), which this device, held to split rings, did not offer";
  }
  if (unknown !== 0n) {
    return `the driver accepted features 0x${
      unknown.toString(16)
    } that were not offered`;
  }
  if ((features & featureMask(VIRTIO_F_VERSION_1)) === 0n) {
    return "the driver is a legacy one: it did not accept VIRTIO_F_VERSION_1 (bit 32)";
  }
  if (ring === "packed" && (features & packed) === 0n) {
    return "the driver did not accept VIRTIO_F_RING_PACKED (bit 34), to which this device is held";
  }
  return null;
}
