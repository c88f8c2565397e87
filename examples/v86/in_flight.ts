/**
 * Buffers that a device has fetched and not used, on purpose.
 *
 * A device that works in the turns of one thread uses what it fetches before the turn is over. One that has a
 * thread of its own can be caught in between, and a snapshot must do for both: so this fetches, for a device that
 * is held.
 *
 * Works in a browser.
 *
 * @module
 */

import { Chain } from "../../ring/chain.ts";
import type { DeviceQueue, QueueState } from "../../ring/queue.ts";
import type { V86Vsock } from "./adapter.ts";

/** What there is in a queue. */
export type QueueCounts = {
  /** Buffers fetched and not used. */
  inFlight: number;
  /** Of these, buffers of one slot of the ring whose descriptors are in a table of their own. */
  indirect: number;
  /** Buffers that the driver has made available and nobody has fetched. */
  waiting: number;
  /** Position of the next buffer to fetch: split free running, packed in the ring. */
  available: number;
  /** Position of the next completion. */
  used: number;
  /** Packed: wrap counter of `available`. */
  wrap: 0 | 1 | null;
};

/** Fetches buffers of a held device, and gives them back. */
export class InFlight {
  readonly #device: V86Vsock;
  readonly #queues: DeviceQueue[] = [];
  #fetched: { queue: DeviceQueue; token: number }[] = [];

  /** Learns of the queues of `device`, those that run and those that are started later. */
  constructor(device: V86Vsock) {
    this.#device = device;
    device.virtio.wrapQueues((index, queue) => this.#queues[index] = queue);
  }

  /** Fetches up to `count` buffers of queue `index`; how many. */
  fetch(index: number, count: number): number {
    this.#device.pci.syncMemory();
    const queue = this.#queues[index];
    if (queue === undefined) return 0;
    const tokens = this.#pop(queue, count);
    this.#fetched.push(...tokens.map((token) => ({ queue, token })));
    return tokens.length;
  }

  /** Gives back what was fetched, before the device works again. */
  giveBack(): void {
    this.#device.pci.syncMemory();
    for (const { queue, token } of this.#fetched.reverse()) queue.unpop(token);
    this.#fetched = [];
  }

  /** What there is in queue `index`. */
  counts(index: number): QueueCounts {
    this.#device.pci.syncMemory();
    const queue = this.#queues[index]!;
    const state: QueueState = queue.save();
    const others = this.#pop(queue, queue.size);
    for (const token of others.reverse()) queue.unpop(token);
    return {
      inFlight: state.inFlight.length,
      indirect:
        state.inFlight.filter(({ slots, descriptors }) =>
          slots === 1 && descriptors.length > 1
        ).length,
      waiting: others.length,
      available: state.lastAvailIdx,
      used: state.usedIdx,
      wrap: state.format === "packed" ? state.lastAvailWrapCounter : null,
    };
  }

  #pop(queue: DeviceQueue, count: number): number[] {
    const chain = new Chain(this.#device.virtio.memory);
    const tokens: number[] = [];
    while (tokens.length < count && queue.pop(chain)) tokens.push(chain.token);
    return tokens;
  }
}
