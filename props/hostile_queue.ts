/**
 * A look at what a device fetches from its queues.
 *
 * @module
 */

import type { Chain } from "../ring/chain.ts";
import { PassingQueue } from "../ring/passing_queue.ts";
import type { DeviceQueue } from "../ring/queue.ts";

/** A writable segment: a view of its region, and where it lies there. */
type Segment = { bytes: Uint8Array; offset: number; length: number };

/** What the queues of a device were asked for since the last `begin()`. */
export class QueueWatch {
  /** Calls of `pop()`. */
  looks = 0;
  /** Buffers that were fetched. */
  fetched = 0;
  /** Segments that the device may write, or could at some time since. */
  writable: Segment[] = [];
  readonly #live: Map<object, Map<number, Segment[]>> = new Map();

  /** Forgets what was pushed before. */
  begin(): void {
    this.looks = 0;
    this.fetched = 0;
    this.writable = [...this.#live.values()].flatMap((buffers) =>
      [...buffers.values()].flat()
    );
  }

  /** Forgets everything: the queues are gone. */
  clear(): void {
    this.#live.clear();
    this.begin();
  }

  /** Notes a buffer that `queue` has handed out. */
  popped(queue: object, chain: Chain): void {
    this.fetched++;
    const segments: Segment[] = [];
    for (let i = 0; i < chain.count; i++) {
      const region = chain.region[i]!;
      const offset = chain.offset[i]!;
      const length = chain.length[i]!;
      const size = chain.memory.regions[region]!.size;
      if (!(offset >= 0 && offset + length <= size)) {
        throw new Error(
          `a segment of ${length} bytes at ${offset} of a region of ${size}`,
        );
      }
      const { bytes } = chain.memory.regions[region]!;
      if (i >= chain.readable) segments.push({ bytes, offset, length });
    }
    let buffers = this.#live.get(queue);
    if (buffers === undefined) this.#live.set(queue, buffers = new Map());
    buffers.set(chain.token, segments);
    this.writable.push(...segments);
  }

  /** Notes that a buffer is not the device's any more. */
  done(queue: object, token: number): void {
    const buffers = this.#live.get(queue);
    buffers?.delete(token);
    if (buffers?.size === 0) this.#live.delete(queue);
  }
}

/** A queue that tells a {@link QueueWatch}. */
export class WatchedQueue extends PassingQueue {
  readonly #watch: QueueWatch;

  /** Stands before `queue`. */
  constructor(queue: DeviceQueue, watch: QueueWatch) {
    super(queue);
    this.#watch = watch;
  }

  override pop(chain: Chain): boolean {
    this.#watch.looks++;
    if (!super.pop(chain)) return false;
    this.#watch.popped(this.queue, chain);
    return true;
  }

  override unpop(token: number): void {
    super.unpop(token);
    this.#watch.done(this.queue, token);
  }

  override push(token: number, written: number): void {
    super.push(token, written);
    this.#watch.done(this.queue, token);
  }
}
