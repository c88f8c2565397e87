import type { GuestMemory } from "../../ring/memory.ts";
import type { QueueConfig } from "../../ring/queue.ts";

/** A piece of a buffer. */
export type Segment = {
  /** Guest address. */
  readonly address: number;
  /** Bytes; 0 is lawful. */
  readonly length: number;
  /** The device may write it, and not read it; else it is the other way round. */
  readonly writable: boolean;
};

/** A buffer that a device has fetched. */
export type FetchedBuffer = {
  /** What names it to the driver: of a split ring the index of the head, of a packed one the buffer id. */
  readonly token: number;
  /** In the order of their descriptors. */
  readonly segments: readonly Segment[];
};

/** A buffer that a driver has got back. */
export type UsedBuffer = {
  /** What `add()` returned for it. */
  readonly token: number;
  /** Bytes that the device says it wrote. */
  readonly length: number;
};

/**
 * The device side of a virtqueue that is to be judged. The bytes of buffers are written and read by the
 * judge, at the addresses that `pop()` tells.
 */
export interface DeviceUnderTest {
  /** Fetches the next available buffer; null where there is none. */
  pop(): FetchedBuffer | null;
  /** Completes a fetched buffer, of which the first `written` writable bytes were written. Any order. */
  push(token: number, written: number): void;
  /** Shows all completions to the driver, where `push()` has not done so by itself. */
  publish?(): void;
  /**
   * Whether the driver is to be interrupted for what was published since the last call. Without it
   * the device interrupts whenever something was published, and the driver never asks for less.
   */
  needsInterrupt?(): boolean;
  /** Asks for kicks; true where a buffer is available already, so that the kick for it may have been lost. */
  armKicks(): boolean;
  /** Tells the driver that kicks are not needed. */
  disarmKicks?(): void;
}

/** The driver side of a virtqueue that is to be judged. */
export interface DriverUnderTest {
  /**
   * Takes a buffer in, readable segments first, each by one descriptor of the ring, and does not show it to
   * the device yet. Returns its token: of a split ring the index of the head, of a packed one the
   * buffer id; -1 where there are not enough free descriptors.
   */
  add(segments: readonly Segment[]): number;
  /** Shows what was added to the device. */
  publish(): void;
  /**
   * Whether the device is to be kicked for what was published since the last call. Without it the driver
   * kicks whenever something was published, and the device never asks for less.
   */
  needsKick?(): boolean;
  /** Takes back the next used buffer; null where there is none. Its token is free again. */
  reclaim(): UsedBuffer | null;
  /** Asks for interrupts; true where a used buffer is there already, so that the interrupt for it may have been lost. */
  armInterrupts(): boolean;
  /** Tells the device that interrupts are not needed. */
  disarmInterrupts?(): void;
}

/**
 * Makes one side of a queue, over memory that is all zero. Addresses are guest addresses, which
 * `memory.bytes(address, length)` turns into bytes; all of the memory is one region.
 */
export type MakeSide<Side> = (memory: GuestMemory, config: QueueConfig) => Side;
