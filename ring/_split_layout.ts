import { RingError } from "./errors.ts";
import type { GuestMemory } from "./memory.ts";
import type { QueueConfig } from "./queue.ts";
import { VIRTQ_DESC_SIZE, VIRTQ_MAX_SIZE } from "./virtio_ring.ts";

/**
 * Typed views over the three areas of a split virtqueue (virtio 1.4, 2.7).
 *
 * Words by which the two sides synchronise are all 16-bit, and both sides reach them through
 * 16-bit views: an atomic access orders only against one of the same bytes.
 */
export type SplitViews = {
  /** Descriptor table: four words a descriptor (addr low, addr high, len, flags | next << 16). */
  table: Uint32Array;
  /** Available ring: flags, idx, ring[size], used_event. */
  avail: Uint16Array;
  /** Used ring: flags, idx, then four half-words an entry, then avail_event. */
  used: Uint16Array;
  /** The used ring's entries: two words each (id, len). */
  usedRing: Uint32Array;
};

/** Index of `flags` in the 16-bit views of both rings. */
export const FLAGS = 0;
/** Index of `idx` in the 16-bit views of both rings. */
export const IDX = 1;

/**
 * Checks the size and the three areas of a split queue and returns views over them.
 *
 * @throws {RingError} `BAD_QUEUE_SIZE` where the size is no power of two up to 32768,
 * `BAD_QUEUE_ADDRESS` where an area is not aligned or does not lie in one region.
 */
export function splitViews(
  memory: GuestMemory,
  config: QueueConfig,
): SplitViews {
  const { size, descriptorArea, driverArea, deviceArea } = config;
  if (
    !Number.isInteger(size) || size < 1 || size > VIRTQ_MAX_SIZE ||
    (size & (size - 1)) !== 0
  ) {
    throw new RingError(
      "BAD_QUEUE_SIZE",
      "2.7",
      `Cannot set up the split queue: its size is ${size}, not a power of two up to ${VIRTQ_MAX_SIZE}`,
      true,
    );
  }
  const table = area(
    memory,
    "descriptor area",
    descriptorArea,
    16,
    VIRTQ_DESC_SIZE * size,
  );
  const avail = area(memory, "driver area", driverArea, 2, 6 + 2 * size);
  const used = area(memory, "device area", deviceArea, 4, 6 + 8 * size);
  return {
    table: new Uint32Array(table.buffer, table.byteOffset, 4 * size),
    avail: new Uint16Array(avail.buffer, avail.byteOffset, 3 + size),
    used: new Uint16Array(used.buffer, used.byteOffset, 3 + 4 * size),
    usedRing: new Uint32Array(used.buffer, used.byteOffset + 4, 2 * size),
  };
}

function area(
  memory: GuestMemory,
  name: string,
  address: number,
  alignment: number,
  length: number,
): Uint8Array {
  let wrong: string;
  if (!Number.isSafeInteger(address) || address < 0) {
    wrong = "is no address below 2^53";
  } else if (address % alignment !== 0) {
    wrong = `is not aligned to ${alignment} bytes`;
  } else if (memory.locate(address) < 0 || memory.foundRoom < length) {
    wrong = `does not have ${length} bytes in one region`;
  } else {
    return memory.bytes(address, length);
  }
  throw new RingError(
    "BAD_QUEUE_ADDRESS",
    "2.7",
    `Cannot set up the split queue: its ${name} at ${address} ${wrong}`,
    true,
  );
}
