import type { Chain } from "./chain.ts";
import type { InflightRegion } from "./inflight.ts";
import type { GuestMemory } from "./memory.ts";
import { PackedDevice } from "./packed_device.ts";
import { PassingQueue } from "./passing_queue.ts";
import type { SplitDevice } from "./split_device.ts";

/**
 * A device queue whose buffers in flight are noted in an in-flight region, so that they survive the process;
 * all else is the queue's that it stands before.
 *
 * ```ts
 * import {
 *   GuestMemory,
 *   inflightRegionSize,
 *   initialQueueState,
 *   openInflight,
 *   type QueueState,
 *   SplitDevice,
 *   TrackedQueue,
 * } from "@ringside/vsock";
 *
 * const buffer = new ArrayBuffer(0x10000);
 * const memory = new GuestMemory([{ guestAddress: 0, size: 0x10000, buffer }]);
 * const config = {
 *   size: 8,
 *   descriptorArea: 0x1000,
 *   driverArea: 0x2000,
 *   deviceArea: 0x3000,
 * };
 * // All zero for a new queue; else what the process before has left.
 * const bytes = new Uint8Array(inflightRegionSize("split", 8));
 *
 * const region = openInflight("split", bytes, memory, config);
 * let state: QueueState = initialQueueState("split");
 * if (region.initialized) state = region.recover();
 * else region.initialize(state);
 * const queue = new TrackedQueue(new SplitDevice(memory, config, state), region);
 * ```
 */
export class TrackedQueue extends PassingQueue<SplitDevice | PackedDevice> {
  readonly #packed: PackedDevice | null;
  readonly #region: InflightRegion;
  // Buffers that the region held from the start.
  readonly #resubmitted: Set<number>;
  #broken: unknown = null;

  /**
   * Stands before `queue`, which was made of the state that `region` was recovered to or set up for, and
   * was not used since.
   *
   * @throws {TypeError} when their formats or sizes differ.
   */
  constructor(queue: SplitDevice | PackedDevice, region: InflightRegion) {
    super(queue);
    if (queue.format !== region.format || queue.size !== region.size) {
      throw new TypeError(
        `Cannot track a ${queue.format} queue of ${queue.size}: the region is for a ${region.format} one of ${region.size}`,
      );
    }
    this.#packed = queue instanceof PackedDevice ? queue : null;
    this.#region = region;
    this.#resubmitted = new Set(queue.save().inFlight.map(({ id }) => id));
  }

  /** Fetches a buffer and notes that. */
  override pop(chain: Chain): boolean {
    if (this.#broken !== null) throw this.#broken;
    if (!this.queue.pop(chain)) return false;
    const { token } = chain;
    if (this.#resubmitted.size !== 0 && this.#resubmitted.has(token)) {
      return true;
    }
    try {
      const packed = this.#packed;
      this.#region.fetched(token, packed === null ? 1 : packed.slotsOf(token));
    } catch (error) {
      this.#broken = error;
      throw error;
    }
    return true;
  }

  /** Gives a buffer back and notes that. */
  override unpop(token: number): void {
    this.queue.unpop(token);
    if (!this.#resubmitted.has(token)) this.#region.returned(token);
  }

  /** Stages a completion. */
  override push(token: number, written: number): void {
    this.queue.push(token, written);
    this.#region.stage(token);
    if (this.#resubmitted.size !== 0) this.#resubmitted.delete(token);
  }

  /** Publishes what was staged, and notes it before and after. */
  override publish(): boolean {
    this.#region.beginPublish();
    const published = this.queue.publish();
    this.#region.endPublish();
    return published;
  }

  /** Goes on over other memory. */
  override rebind(memory: GuestMemory): void {
    this.queue.rebind(memory);
    this.#region.rebind(memory);
  }
}
