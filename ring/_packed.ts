import { RingError } from "./errors.ts";
import type { GuestMemory } from "./memory.ts";
import type { QueueConfig } from "./queue.ts";
import { VIRTQ_DESC_SIZE, VIRTQ_MAX_SIZE } from "./virtio_ring.ts";

/** Typed views over the three areas of a packed virtqueue; they share the guest's memory. */
export type PackedViews = {
  /** Descriptor ring: word 6 of each 8 is the id, word 7 the flags. */
  u16: Uint16Array;
  /** Descriptor ring: words of each 4 are addr low, addr high, len, id with flags above. */
  u32: Uint32Array;
  /** Driver event suppression: word 0 is the offset with its wrap counter, word 1 the flags. */
  driverEvent: Uint16Array;
  /** Device event suppression, laid out the same. */
  deviceEvent: Uint16Array;
};

/**
 * Maps the areas of a packed virtqueue (virtio 1.4, 2.8.10.1).
 *
 * @throws {RingError} `BAD_QUEUE_SIZE` or `BAD_QUEUE_ADDRESS`.
 */
export function mapPackedViews(
  memory: GuestMemory,
  config: QueueConfig,
): PackedViews {
  const { size, descriptorArea, driverArea, deviceArea } = config;
  if (!Number.isInteger(size) || size < 1 || size > VIRTQ_MAX_SIZE) {
    throw new RingError(
      "BAD_QUEUE_SIZE",
      "2.8",
      `Cannot set up a packed queue: its size is ${size}`,
      true,
    );
  }
  const ring = area(
    memory,
    "descriptor ring",
    descriptorArea,
    size * VIRTQ_DESC_SIZE,
    16,
  );
  const driver = area(memory, "driver event structure", driverArea, 4, 4);
  const device = area(memory, "device event structure", deviceArea, 4, 4);
  return {
    u16: new Uint16Array(ring.buffer, ring.byteOffset, size * 8),
    u32: new Uint32Array(ring.buffer, ring.byteOffset, size * 4),
    driverEvent: new Uint16Array(driver.buffer, driver.byteOffset, 2),
    deviceEvent: new Uint16Array(device.buffer, device.byteOffset, 2),
  };
}

function area(
  memory: GuestMemory,
  name: string,
  address: number,
  length: number,
  alignment: number,
): Uint8Array {
  if (
    !Number.isSafeInteger(address) || address < 0 || address % alignment !== 0
  ) {
    throw new RingError(
      "BAD_QUEUE_ADDRESS",
      "2.8.10.1",
      `Cannot set up a packed queue: its ${name} is at ${address}`,
      true,
    );
  }
  const index = memory.locate(address);
  if (index < 0 || length > memory.foundRoom) {
    throw new RingError(
      "BAD_QUEUE_ADDRESS",
      "2.8.10.1",
      `Cannot set up a packed queue: no region holds its ${name} of ${length} bytes at 0x${
        address.toString(16)
      }`,
      true,
    );
  }
  const offset = memory.foundOffset;
  return memory.regions[index]!.bytes.subarray(offset, offset + length);
}

/**
 * Tells whether the other side's event lies among the last `moved` ring positions.
 *
 * `position` and `wrap` are where this side stands now: the event fires when a position from
 * `position - moved` to `position - 1` was passed. An event with the other wrap counter lies on
 * the lap before, hence a ring's size lower (virtio 1.4, 2.8.10). After more than a lap there is
 * no telling, and a needless notification is lawful.
 */
export function packedEventPassed(
  offWrap: number,
  position: number,
  wrap: number,
  moved: number,
  size: number,
): boolean {
  let event = offWrap & 0x7fff;
  if (offWrap >>> 15 !== wrap) event -= size;
  return moved > size || (event < position && event >= position - moved);
}
