import { resolveSplit, type SplitTable } from "../../ring/_split_resolve.ts";
import type { GuestMemory } from "../../ring/memory.ts";
import type { QueueConfig } from "../../ring/queue.ts";
import { StoreWatch } from "../store_watch.ts";
import { Violation } from "../violation.ts";
import type { MakeSide } from "./sides.ts";

/** Name of the invariant. */
export const STORE_ORDER = "store-order";

/** What it promises. */
export const STORE_ORDER_PROMISE =
  "what an index announces is in memory before the index is (virtio 1.4, 2.7.13)";

/**
 * What the index of one side of a split ring announces, as it stood at that moment: another thread may read it then.
 *
 * Its own views are made before stores are watched, so that its looks are not seen.
 */
class Announced {
  readonly #name: string;
  readonly #index: Uint8Array;
  readonly #size: number;
  readonly #entry: (position: number) => string;
  readonly #entries: Map<number, string> = new Map();
  #last: number;

  constructor(
    which: "driver" | "device",
    memory: GuestMemory,
    config: QueueConfig,
  ) {
    const { size, driverArea, deviceArea } = config;
    const ofDriver = which === "driver";
    const ring = ofDriver
      ? memory.bytes(driverArea, 4 + 2 * size)
      : memory.bytes(deviceArea, 4 + 8 * size);
    this.#name = ofDriver ? "avail.idx" : "used.idx";
    this.#size = size;
    this.#index = ring.subarray(2, 4);
    this.#entry = ofDriver
      ? bufferOf(ring, tableOf(memory, config))
      : (position) => ring.subarray(4 + 8 * position, 12 + 8 * position).join();
    this.#last = this.#read();
  }

  #read(): number {
    return this.#index[0]! | this.#index[1]! << 8;
  }

  /** Notes what is announced now and was not before. */
  look(): void {
    const now = this.#read();
    const count = (now - this.#last) & 0xffff;
    // An index that jumps, or is stored by halves, is for others to name.
    if (count > this.#size) return;
    for (let i = 0; i < count; i++) {
      const position = (this.#last + i) % this.#size;
      this.#entries.set(position, this.#entry(position));
    }
    this.#last = now;
  }

  /** Compares it with what stands there at the end of a call. */
  check(): void {
    for (const [position, entry] of this.#entries) {
      if (this.#entry(position) === entry) continue;
      throw new Violation(
        STORE_ORDER,
        `${this.#name} was stored before entry ${position}, or what that names: the other side may see the index first`,
      );
    }
    this.#entries.clear();
    this.#last = this.#read();
  }
}

function tableOf(
  memory: GuestMemory,
  { size, descriptorArea }: QueueConfig,
): SplitTable {
  const { buffer, byteOffset } = memory.bytes(descriptorArea, 16 * size);
  const table = new Uint32Array(buffer, byteOffset, 4 * size);
  return { memory, table, size, maxIndirect: 0 };
}

/** An entry of the available ring, with the buffer that it names, as text. */
function bufferOf(
  ring: Uint8Array,
  table: SplitTable,
): (position: number) => string {
  return (position) => {
    const head = ring[4 + 2 * position]! | ring[5 + 2 * position]! << 8;
    return head < table.size
      ? JSON.stringify(resolveSplit(table, head))
      : String(head);
  };
}

/**
 * Makes sides whose stores are watched: what one of their indices announces must not change until the end of the
 * call in which it was stored. Sees stores by index to unsigned arrays of up to 32 bits, by the setters of a `DataView`
 * and by `Atomics`, of views that the side has made by `new`.
 */
export function inStoreOrder<Side extends object>(
  which: "driver" | "device",
  make: MakeSide<Side>,
): MakeSide<Side> {
  return (memory, config) => {
    const watch = new StoreWatch(memory.regions[0]!.bytes.buffer);
    watch.dataViews = true;
    const announced = new Announced(which, memory, config);
    watch.onStore = () => announced.look();
    const side = watch.during(() => make(memory, config));
    return new Proxy(side, {
      get: (target, key) => {
        const value: unknown = Reflect.get(target, key, target);
        if (typeof value !== "function") return value;
        return (...args: unknown[]) => {
          const result: unknown = watch.during(() => value.apply(target, args));
          announced.check();
          return result;
        };
      },
    });
  };
}
