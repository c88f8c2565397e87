/**
 * Listens to the rings of a vsock device: each packet as it lies in the guest's memory, and where the rings are.
 *
 * It stands before the queues, where the device lets others stand, so that a device without it does nothing more.
 *
 * Works in a browser.
 *
 * @module
 */

import type { VirtioDevice } from "../../../device/virtio_device.ts";
import { PacketHeader } from "../../../device/vsock/packet.ts";
import {
  VSOCK_HEADER_SIZE,
  VSOCK_QUEUE_RX,
  VSOCK_QUEUE_TX,
} from "../../../device/vsock/virtio_vsock.ts";
import { Chain } from "../../../ring/chain.ts";
import type { GuestMemory } from "../../../ring/memory.ts";
import { PassingQueue } from "../../../ring/passing_queue.ts";
import type { DeviceQueue } from "../../../ring/queue.ts";

/** A packet; the header is overwritten by the next one. */
export type OnPacket = (
  direction: "to guest" | "to page",
  header: PacketHeader,
) => void;

/** Where a ring is. */
export type RingPosition = {
  format: "split" | "packed";
  /** Descriptors. */
  size: number;
  /** The next buffer to fetch: split free running, packed in the ring. */
  available: number;
  /** The next completion. */
  used: number;
  /** Packed: wrap counter of `available`. */
  wrap: 0 | 1 | null;
  /** Buffers fetched and not used. */
  inFlight: number;
};

/** Listens to a device until it is gone. */
export class PacketTap {
  readonly #queues = new Map<number, DeviceQueue>();

  /** Stands before the queues of `virtio`, those that run and those that are started later. */
  constructor(virtio: VirtioDevice, onPacket: OnPacket) {
    virtio.wrapQueues((index, queue) => {
      this.#queues.set(index, queue);
      if (index === VSOCK_QUEUE_TX) return new TxTap(queue, onPacket);
      if (index === VSOCK_QUEUE_RX) return new RxTap(queue, onPacket);
      return queue;
    });
  }

  /** Where queue `index` is; null where it has not been started. */
  position(index: number): RingPosition | null {
    const queue = this.#queues.get(index);
    if (queue === undefined) return null;
    const state = queue.save();
    return {
      format: state.format,
      size: queue.size,
      available: state.lastAvailIdx,
      used: state.usedIdx,
      wrap: state.format === "packed" ? state.lastAvailWrapCounter : null,
      inFlight: state.inFlight.length,
    };
  }
}

/** A queue whose packets are told of. */
class Tap extends PassingQueue {
  protected readonly onPacket: OnPacket;
  protected readonly header = new PacketHeader();

  constructor(queue: DeviceQueue, onPacket: OnPacket) {
    super(queue);
    this.onPacket = onPacket;
  }
}

/** Packets from the guest, as they are fetched. */
class TxTap extends Tap {
  override pop(chain: Chain): boolean {
    if (!super.pop(chain)) return false;
    if (chain.fault === null && this.header.readFrom(chain)) {
      this.onPacket("to page", this.header);
    }
    return true;
  }
}

/** Packets to the guest, as they are completed. */
class RxTap extends Tap {
  /** By token: guest address and length of each segment that a header is in. */
  readonly #places = new Map<number, { address: number; length: number }[]>();
  #memory: GuestMemory | null = null;

  override pop(chain: Chain): boolean {
    if (!super.pop(chain)) return false;
    this.#memory = chain.memory;
    const places: { address: number; length: number }[] = [];
    let left = VSOCK_HEADER_SIZE;
    for (let i = chain.readable; i < chain.count && left > 0; i++) {
      const length = Math.min(left, chain.length[i]!);
      const region = chain.memory.regions[chain.region[i]!]!;
      places.push({
        address: region.guestAddress + chain.offset[i]!,
        length,
      });
      left -= length;
    }
    this.#places.set(chain.token, places);
    return true;
  }

  override unpop(token: number): void {
    super.unpop(token);
    this.#places.delete(token);
  }

  override push(token: number, written: number): void {
    super.push(token, written);
    const places = this.#places.get(token);
    this.#places.delete(token);
    if (written < VSOCK_HEADER_SIZE || places === undefined) return;
    // Written by the device: it is read again as if it were the guest's.
    const chain = new Chain(this.#memory!, places.length);
    for (const { address, length } of places) {
      chain.append(address, length, false);
    }
    if (this.header.readFrom(chain)) this.onPacket("to guest", this.header);
  }
}
