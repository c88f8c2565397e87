import {
  BufferList,
  type DeviceQueue,
  type DriverQueue,
  GuestMemory,
  PackedDevice,
  PackedDriver,
  type QueueConfig,
  type RingFormat,
  SplitDevice,
  SplitDriver,
} from "../ring/mod.ts";
import type { NaivePlace } from "./naive_ring.ts";

/** Descriptors of each ring. */
export const QUEUE_SIZE = 256;
/** Bytes of the segment that the device reads. */
export const READABLE_BYTES = 44;
/** Bytes of the segment that the device writes. */
export const WRITABLE_BYTES = 64;
/** Descriptors in an indirect table. */
const TABLE_ENTRIES = 2;

const DESCRIPTORS = 0;
const DRIVER_AREA = 0x1000;
const DEVICE_AREA = 0x2000;
const TABLES = 0x3000;
const DATA = TABLES + QUEUE_SIZE * TABLE_ENTRIES * 16;
/** Bytes from one buffer's memory to the next one's. */
const STRIDE = 128;
const MEMORY_BYTES = DATA + QUEUE_SIZE * STRIDE;

/** A ring of 256 with EVENT_IDX in one region at guest address 0; addresses are offsets in `buffer`. */
export class RingMemory {
  /** All of it. */
  readonly buffer: ArrayBuffer = new ArrayBuffer(MEMORY_BYTES);
  /** The same, for the queues. */
  readonly memory: GuestMemory;
  /** What both sides are set up with. */
  readonly config: QueueConfig;
  /** Where the naive ones find it. */
  readonly place: NaivePlace;
  /** Split or packed. */
  readonly format: RingFormat;
  /** Buffers that fit. */
  readonly buffers: number;

  /** @param format Split or packed. @param indirect A buffer takes one descriptor and a table, not two. */
  constructor(format: RingFormat, indirect: boolean) {
    const { buffer } = this;
    this.format = format;
    this.buffers = indirect ? QUEUE_SIZE : QUEUE_SIZE / 2;
    this.memory = new GuestMemory([{
      guestAddress: 0,
      size: MEMORY_BYTES,
      buffer,
    }]);
    this.config = {
      size: QUEUE_SIZE,
      descriptorArea: DESCRIPTORS,
      driverArea: DRIVER_AREA,
      deviceArea: DEVICE_AREA,
      eventIdx: true,
      indirect,
      // One thread.
      strongOrdering: true,
    };
    this.place = {
      buffer,
      size: QUEUE_SIZE,
      descriptors: DESCRIPTORS,
      driver: DRIVER_AREA,
      device: DEVICE_AREA,
    };
  }

  /** Makes the driver side, which clears the ring. */
  driver(): DriverQueue {
    const options = this.config.indirect
      ? { indirect: { address: TABLES, entries: TABLE_ENTRIES } }
      : {};
    return this.format === "split"
      ? new SplitDriver(this.memory, this.config, options)
      : new PackedDriver(this.memory, this.config, options);
  }

  /** Makes the device side. */
  device(): DeviceQueue {
    return this.format === "split"
      ? new SplitDevice(this.memory, this.config)
      : new PackedDevice(this.memory, this.config);
  }

  /** Guest address of buffer `i`. */
  address(i: number): number {
    return DATA + i * STRIDE;
  }

  /** The segments of buffer `i`. */
  list(i: number): BufferList {
    return new BufferList(2)
      .addReadable(this.address(i), READABLE_BYTES)
      .addWritable(this.address(i) + READABLE_BYTES, WRITABLE_BYTES);
  }
}
