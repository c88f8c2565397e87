/**
 * Judges one side of a virtqueue that is not Ringside's own: a driver or a device, behind a small interface.
 *
 * Random scripts drive it against Ringside's other side, and the model by which Ringside's own queues are judged says
 * after each step what must be. Needs `fast-check`, as a bare name.
 *
 * @module
 */

export {
  checkDevice,
  checkDriver,
  type CheckOptions,
  describeFinding,
  type Finding,
} from "./check.ts";
export type {
  DeviceUnderTest,
  DriverUnderTest,
  FetchedBuffer,
  MakeSide,
  Segment,
  UsedBuffer,
} from "./sides.ts";
// What these are made of.
export type { AnyScript } from "../queue_properties.ts";
export {
  GuestMemory,
  type GuestRegion,
  type MemoryRegion,
} from "../../ring/memory.ts";
export type { QueueConfig, RingFormat } from "../../ring/queue.ts";
export type { RingErrorCode } from "../../ring/errors.ts";
