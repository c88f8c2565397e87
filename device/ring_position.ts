import type { GuestMemory } from "../ring/memory.ts";
import type { RingFormat } from "../ring/queue.ts";
import {
  VIRTQ_DESC_F_AVAIL,
  VIRTQ_DESC_F_USED,
  VIRTQ_DESC_SIZE,
} from "../ring/virtio_ring.ts";
import type { QueueSetup } from "./virtio_device.ts";

/** Base of a packed ring that nothing has happened to: both indices 0, both wrap counters 1. */
export const PACKED_INITIAL_BASE = 0x80008000;

/** Bytes of a ring's three areas. */
export type AreaSizes = { descriptor: number; driver: number; device: number };

/** Bytes of the areas of a ring with `size` descriptors (virtio 1.4, 2.7 and 2.8.10.1). */
export function areaSizes(format: RingFormat, size: number): AreaSizes {
  return format === "split"
    ? {
      descriptor: VIRTQ_DESC_SIZE * size,
      driver: 6 + 2 * size,
      device: 6 + 8 * size,
    }
    : { descriptor: VIRTQ_DESC_SIZE * size, driver: 4, device: 4 };
}

/** Tells whether each area of a ring lies in one region of `memory`. */
export function ringInMemory(
  memory: GuestMemory,
  format: RingFormat,
  setup: QueueSetup,
): boolean {
  const sizes = areaSizes(format, setup.size);
  return inMemory(memory, setup.descriptorArea, sizes.descriptor) &&
    inMemory(memory, setup.driverArea, sizes.driver) &&
    inMemory(memory, setup.deviceArea, sizes.device);
}

function inMemory(
  memory: GuestMemory,
  address: number,
  length: number,
): boolean {
  return memory.locate(address) >= 0 && memory.foundRoom >= length;
}

/**
 * Tells whether a ring for which a front-end gives `base` is new, so that no buffer in it was ever
 * used; its driver may have made buffers available already. The ring lies in `memory`.
 *
 * Split: the base is 0, and the used ring's index and entries are 0. An index that stands at 0 after
 * 65536 buffers has entries.
 *
 * Packed: the base is the initial one or 0, which some front-ends send for it, and each descriptor is
 * not available yet or available with the wrap counter of the first lap. A driver that is running
 * writes a descriptor's flags last: one that is not available yet can have an address already.
 *
 * In a ring that has lived and stands at 0 with wrap counter 0, the driver marks with the *other* wrap
 * counter and what is left of the lap before is used, so 0 leaves no doubt. With the initial base, a
 * descriptor used in the lap before has flags as if it was not available yet; but where one is all
 * zero, there was no lap before. One doubt is left: a ring that stands at the start of an odd lap, and
 * that its driver has filled to the last descriptor, looks the same. The device's event structure,
 * which this device writes, tells the two apart with EVENT_IDX.
 */
export function isFreshRing(
  memory: GuestMemory,
  format: RingFormat,
  setup: QueueSetup,
  base: number,
): boolean {
  const { size, descriptorArea, deviceArea } = setup;
  const sizes = areaSizes(format, size);
  if (format === "split") {
    if (base !== 0) return false;
    const used = memory.bytes(deviceArea, sizes.device);
    return isZero(used.subarray(2, 4 + 8 * size));
  }
  if (base !== 0 && base !== PACKED_INITIAL_BASE) return false;
  if (
    base !== 0 && !isZero(memory.bytes(deviceArea, sizes.device))
  ) return false;
  const ring = memory.bytes(descriptorArea, sizes.descriptor);
  const view = new DataView(ring.buffer, ring.byteOffset, ring.byteLength);
  let doubtful = false;
  let untouched = false;
  for (let at = 0; at < ring.length; at += VIRTQ_DESC_SIZE) {
    const flags = view.getUint16(at + 14, true);
    if ((flags & VIRTQ_DESC_F_USED) !== 0) return false;
    if ((flags & VIRTQ_DESC_F_AVAIL) !== 0) continue;
    if (isZero(ring.subarray(at, at + VIRTQ_DESC_SIZE))) untouched = true;
    else doubtful = true;
  }
  return base === 0 || untouched || !doubtful;
}

/**
 * Tells whether some descriptor of a packed ring is all zero, as its driver has made it and never
 * written it: the driver is in its first lap.
 */
export function hasUntouchedDescriptor(
  memory: GuestMemory,
  setup: QueueSetup,
): boolean {
  const { size, descriptorArea } = setup;
  const ring = memory.bytes(descriptorArea, VIRTQ_DESC_SIZE * size);
  for (let at = 0; at < ring.length; at += VIRTQ_DESC_SIZE) {
    if (isZero(ring.subarray(at, at + VIRTQ_DESC_SIZE))) return true;
  }
  return false;
}

function isZero(bytes: Uint8Array): boolean {
  for (let i = 0; i < bytes.length; i++) {
    if (bytes[i] !== 0) return false;
  }
  return true;
}
