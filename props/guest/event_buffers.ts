import { BufferList, type DriverQueue } from "../../ring/queue.ts";
import type { MemoryArena } from "./memory_arena.ts";

/** Bytes of an event: le32 id (virtio 1.4, 5.10.6.7). */
const EVENT_BYTES = 4;
/** Buffers that Linux posts. */
const EVENT_BUFFERS = 8;
const STRIDE_BYTES = 16;
/** What a buffer and the bytes behind it hold before the device writes. */
const BLANK = 0xff;

/** A guest's event queue. */
export class EventBuffers {
  readonly #queue: DriverQueue;
  readonly #bytes: Uint8Array;
  readonly #lists: BufferList[] = [];
  readonly #free: number[] = [];
  // By token: which buffer it is.
  readonly #bufferOf: Int32Array;

  /** Makes the buffers for `queue`. */
  constructor(queue: DriverQueue, arena: MemoryArena) {
    this.#queue = queue;
    this.#bufferOf = new Int32Array(queue.size).fill(-1);
    const count = Math.min(queue.size, EVENT_BUFFERS);
    const address = arena.allocate(STRIDE_BYTES * count);
    this.#bytes = arena.bytes(address, STRIDE_BYTES * count);
    for (let i = 0; i < count; i++) {
      this.#lists.push(
        new BufferList(1).addWritable(address + STRIDE_BYTES * i, EVENT_BYTES),
      );
      this.#free.push(i);
    }
  }

  /** Gives all buffers that the driver has to the queue; they are not published. */
  post(): void {
    const free = this.#free;
    while (free.length > 0) {
      const buffer = free[free.length - 1]!;
      const token = this.#queue.add(this.#lists[buffer]!);
      if (token < 0) return;
      free.pop();
      const at = STRIDE_BYTES * buffer;
      this.#bytes.fill(BLANK, at, at + STRIDE_BYTES);
      this.#bufferOf[token] = buffer;
    }
  }

  /** Takes one used buffer back: the event's id, or -1 where there is none. */
  take(violation: (text: string) => void): number {
    const queue = this.#queue;
    const token = queue.reclaim();
    if (token < 0) return -1;
    const buffer = this.#bufferOf[token]!;
    this.#free.push(buffer);
    if (queue.usedLength !== EVENT_BYTES) {
      violation(`an event of ${queue.usedLength} bytes`);
    }
    const at = STRIDE_BYTES * buffer;
    const bytes = this.#bytes.slice(at, at + STRIDE_BYTES);
    if (!bytes.subarray(EVENT_BYTES).every((byte) => byte === BLANK)) {
      violation("the device wrote behind an event buffer");
    }
    return new DataView(bytes.buffer).getUint32(0, true);
  }
}
