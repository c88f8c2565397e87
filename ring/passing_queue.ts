import type { Chain } from "./chain.ts";
import type { GuestMemory } from "./memory.ts";
import type { DeviceQueue, QueueState, RingFormat } from "./queue.ts";

/**
 * A device queue that passes every call on to the one that it stands before: what stands before a queue
 * to see or to change some calls extends it, and says only what it does to those.
 *
 * Throws what the queue behind it throws.
 */
export class PassingQueue<Queue extends DeviceQueue = DeviceQueue>
  implements DeviceQueue {
  /** The format of the queue behind it. */
  readonly format: RingFormat;
  /** Descriptors. */
  readonly size: number;
  /** The queue behind it. */
  protected readonly queue: Queue;

  /** Stands before `queue`, which nobody else uses from now on. */
  constructor(queue: Queue) {
    this.format = queue.format;
    this.size = queue.size;
    this.queue = queue;
  }

  /** Buffers that were popped and not pushed. */
  get inFlight(): number {
    return this.queue.inFlight;
  }

  /** See {@link DeviceQueue.usedPosition}. */
  get usedPosition(): number {
    return this.queue.usedPosition;
  }

  /** Fetches a buffer. */
  pop(chain: Chain): boolean {
    return this.queue.pop(chain);
  }

  /** Gives a buffer back. */
  unpop(token: number): void {
    this.queue.unpop(token);
  }

  /** Stages a completion. */
  push(token: number, written: number): void {
    this.queue.push(token, written);
  }

  /** Publishes what was staged. */
  publish(): boolean {
    return this.queue.publish();
  }

  /** Tells whether an interrupt is due. */
  needsInterrupt(): boolean {
    return this.queue.needsInterrupt();
  }

  /** Asks for kicks. */
  armKicks(): boolean {
    return this.queue.armKicks();
  }

  /** Tells the driver that kicks are not needed. */
  disarmKicks(): void {
    this.queue.disarmKicks();
  }

  /** State of the queue. */
  save(): QueueState {
    return this.queue.save();
  }

  /** Goes on over other memory. */
  rebind(memory: GuestMemory): void {
    this.queue.rebind(memory);
  }
}
