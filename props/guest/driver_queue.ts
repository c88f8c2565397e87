import { PackedDriver } from "../../ring/packed_driver.ts";
import type {
  DriverQueue,
  IndirectTables,
  QueueConfig,
  RingFormat,
} from "../../ring/queue.ts";
import { SplitDriver } from "../../ring/split_driver.ts";
import type { MemoryArena } from "./memory_arena.ts";

/** Allocates the three areas of a queue. */
export function layOutQueue(
  arena: MemoryArena,
  ring: RingFormat,
  size: number,
): {
  size: number;
  descriptorArea: number;
  driverArea: number;
  deviceArea: number;
} {
  const split = ring === "split";
  return {
    size,
    descriptorArea: arena.allocate(16 * size),
    driverArea: arena.allocate(split ? 6 + 2 * size : 4),
    deviceArea: arena.allocate(split ? 6 + 8 * size : 4),
  };
}

/** Makes the driver side of a queue, with indirect tables of `indirectEntries` unless that is 0. */
export function makeDriverQueue(
  arena: MemoryArena,
  ring: RingFormat,
  config: QueueConfig,
  indirectEntries: number,
): DriverQueue {
  const entries = indirectEntries;
  const options: { indirect?: IndirectTables } = entries === 0 ? {} : {
    indirect: {
      address: arena.allocate(config.size * entries * 16),
      entries,
    },
  };
  return ring === "packed"
    ? new PackedDriver(arena.memory, config, options)
    : new SplitDriver(arena.memory, config, options);
}
