import {
  type BatchDeviceQueue,
  type BatchDriverQueue,
  BufferList,
  GuestMemory,
  PackedDevice,
  PackedDriver,
  type QueueConfig,
  type RingFormat,
  SplitDevice,
  SplitDriver,
} from "../mod.ts";
import type { NaivePlace } from "./naive_ring.ts";

/** Descriptors of each ring. */
export const QUEUE_SIZE = 256;
/** Bytes of the segment that the device reads. */
export const READABLE_BYTES = 44;
/** Bytes of a segment that the device writes. */
export const WRITABLE_BYTES = 64;
/** Segments that a buffer may have. */
const MOST_SEGMENTS = 8;

const DESCRIPTORS = 0;
const DRIVER_AREA = 0x1000;
const DEVICE_AREA = 0x2000;
const TABLES = 0x3000;
const DATA = TABLES + QUEUE_SIZE * MOST_SEGMENTS * 16;
/** Bytes from one buffer's memory to the next one's. */
const STRIDE = MOST_SEGMENTS * WRITABLE_BYTES;
/** Bytes of the guest's memory. */
export const MEMORY_BYTES: number = DATA + QUEUE_SIZE * STRIDE;

/** What a ring can be told. */
export type RingMemoryOptions = {
  /** Segments of a buffer: the first one is read by the device and the others are written, a single one, too. */
  segments?: number;
  /** A buffer takes one descriptor and a table, not one descriptor a segment. */
  indirect?: boolean;
  /** VIRTIO_F_EVENT_IDX; true unless told. */
  eventIdx?: boolean;
  /** Memory, which threads may share; {@link MEMORY_BYTES} of it. */
  buffer?: ArrayBufferLike;
};

/** A ring of 256 in one region at guest address 0; addresses are offsets in `buffer`. */
export class RingMemory {
  /** All of it. */
  readonly buffer: ArrayBufferLike;
  /** The same, for the queues. */
  readonly memory: GuestMemory;
  /** What both sides are set up with. */
  readonly config: QueueConfig;
  /** Where the naive ones find it. */
  readonly place: NaivePlace;
  /** Split or packed. */
  readonly format: RingFormat;
  /** Segments of a buffer. */
  readonly segments: number;
  /** Buffers that fit. */
  readonly buffers: number;
  /** Bytes of a buffer. */
  readonly bytes: number;

  /** @param format Split or packed. @param options Two segments without a table unless told. */
  constructor(format: RingFormat, options: RingMemoryOptions = {}) {
    const { segments = 2, indirect = false, eventIdx = true } = options;
    const { buffer = new ArrayBuffer(MEMORY_BYTES) } = options;
    this.format = format;
    this.segments = segments;
    this.buffers = indirect ? QUEUE_SIZE : QUEUE_SIZE / segments;
    this.bytes = segments === 1
      ? WRITABLE_BYTES
      : READABLE_BYTES + (segments - 1) * WRITABLE_BYTES;
    this.buffer = buffer;
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
      eventIdx,
      indirect,
      // Where threads share it they are on x86 or on one core: see strongOrdering().
      strongOrdering: buffer instanceof ArrayBuffer ||
        Deno.build.arch === "x86_64",
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
  driver(): BatchDriverQueue {
    const options = this.config.indirect
      ? { indirect: { address: TABLES, entries: this.segments } }
      : {};
    return this.format === "split"
      ? new SplitDriver(this.memory, this.config, options)
      : new PackedDriver(this.memory, this.config, options);
  }

  /** Makes the device side. */
  device(): BatchDeviceQueue {
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
    const list = new BufferList(this.segments);
    let at = this.address(i);
    if (this.segments > 1) {
      list.addReadable(at, READABLE_BYTES);
      at += READABLE_BYTES;
    }
    while (list.count < this.segments) {
      list.addWritable(at, WRITABLE_BYTES);
      at += WRITABLE_BYTES;
    }
    return list;
  }
}
