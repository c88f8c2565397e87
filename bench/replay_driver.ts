import type { RingMemory } from "./ring_memory.ts";
import { QUEUE_SIZE } from "./ring_memory.ts";

/**
 * Stands in for a driver, so that the device side is measured alone: makes the same buffers available lap
 * after lap, a batch at a time, and asks for an interrupt with each. It costs two plain stores a batch, and
 * for a packed ring a copy of 4 KiB a lap.
 */
export interface ReplayDriver {
  /** Buffers of a lap. */
  readonly buffers: number;
  /** Bytes of a buffer. */
  readonly bytes: number;
  /** Readies the lap; all buffers of the one before are used. */
  beginLap(): void;
  /** Makes the next `count` buffers available. */
  offer(count: number): void;
  /** Throws unless all buffers of the lap came back, in order, with `written` bytes. */
  checkLap(written: number): void;
}

/** Makes the stand-in for a driver of `ring`. */
export function replayDriver(ring: RingMemory): ReplayDriver {
  return ring.format === "split"
    ? new ReplaySplit(ring)
    : new ReplayPacked(ring);
}

function addAll(ring: RingMemory): number[] {
  const driver = ring.driver();
  const tokens: number[] = [];
  for (let i = 0; i < ring.buffers; i++) tokens.push(driver.add(ring.list(i)));
  driver.publish();
  return tokens;
}

class ReplaySplit implements ReplayDriver {
  readonly buffers: number;
  readonly bytes: number;
  readonly #heads: number[];
  readonly #avail: Uint16Array;
  readonly #used: Uint32Array;
  readonly #usedIdx: Uint16Array;
  #idx = 0;

  constructor(ring: RingMemory) {
    const { buffer, driver, device } = ring.place;
    this.buffers = ring.buffers;
    this.bytes = ring.bytes;
    this.#heads = addAll(ring);
    this.#avail = new Uint16Array(buffer, driver, 3 + QUEUE_SIZE);
    this.#usedIdx = new Uint16Array(buffer, device, 2);
    this.#used = new Uint32Array(buffer, device + 4, QUEUE_SIZE * 2);
    for (let i = 0; i < QUEUE_SIZE; i++) {
      this.#avail[2 + i] = this.#heads[i % this.buffers]!;
    }
    this.#avail[1] = 0;
  }

  beginLap(): void {}

  offer(count: number): void {
    const avail = this.#avail;
    avail[2 + QUEUE_SIZE] = this.#idx;
    this.#idx = (this.#idx + count) & 0xffff;
    avail[1] = this.#idx;
  }

  checkLap(written: number): void {
    if (this.#usedIdx[1] !== this.#idx) throw new Error("used.idx is wrong");
    for (let i = 0; i < this.buffers; i++) {
      const at = (this.#idx - this.buffers + i) & (QUEUE_SIZE - 1);
      if (
        this.#used[at * 2] !== this.#heads[i] ||
        this.#used[at * 2 + 1] !== written
      ) throw new Error(`used entry ${at} is wrong`);
    }
  }
}

const F_AVAIL = 0x80;
const F_USED = 0x8000;
const F_AVAIL_USED = 0x8080;
const EVENT_DESC = 2;

class ReplayPacked implements ReplayDriver {
  readonly buffers: number;
  readonly bytes: number;
  readonly #ids: number[];
  readonly #slots: number;
  readonly #ring: Uint32Array;
  readonly #flags: Uint16Array;
  readonly #event: Uint16Array;
  /** The ring as a driver fills it in laps with wrap counter 0 and 1. */
  readonly #images: Uint32Array[];
  #wrap = 0;
  #slot = 0;

  constructor(ring: RingMemory) {
    const { buffer, descriptors, driver } = ring.place;
    this.buffers = ring.buffers;
    this.bytes = ring.bytes;
    this.#slots = QUEUE_SIZE / ring.buffers;
    this.#ids = addAll(ring);
    this.#ring = new Uint32Array(buffer, descriptors, QUEUE_SIZE * 4);
    this.#flags = new Uint16Array(buffer, descriptors, QUEUE_SIZE * 8);
    this.#event = new Uint16Array(buffer, driver, 2);
    this.#event[1] = ring.config.eventIdx === true ? EVENT_DESC : 0;
    this.#images = [F_USED, F_AVAIL].map((bits) => {
      const image = this.#ring.slice();
      for (let i = 0; i < QUEUE_SIZE; i++) {
        const at = i * 4 + 3;
        image[at] = image[at]! & ~(F_AVAIL_USED << 16) | bits << 16;
      }
      return image;
    });
    // No head is available before it is offered.
    for (let i = 0; i < QUEUE_SIZE; i++) this.#flags[i * 8 + 7] = 0;
  }

  beginLap(): void {
    this.#wrap ^= 1;
    this.#slot = 0;
    this.#ring.set(this.#images[this.#wrap]!);
    // The whole lap is there but for its first head; offer() moves that gap on.
    this.#flags[7]! ^= F_AVAIL_USED;
  }

  offer(count: number): void {
    const flags = this.#flags;
    const first = this.#slot;
    const next = first + count * this.#slots;
    this.#event[0] = first | this.#wrap << 15;
    if (next < QUEUE_SIZE) flags[next * 8 + 7]! ^= F_AVAIL_USED;
    flags[first * 8 + 7]! ^= F_AVAIL_USED;
    this.#slot = next;
  }

  checkLap(written: number): void {
    const bits = this.#wrap === 1 ? F_AVAIL_USED : 0;
    for (let i = 0; i < this.buffers; i++) {
      const at = i * this.#slots;
      if (
        (this.#flags[at * 8 + 7]! & F_AVAIL_USED) !== bits ||
        this.#flags[at * 8 + 6] !== this.#ids[i] ||
        this.#ring[at * 4 + 2] !== written
      ) throw new Error(`used descriptor ${at} is wrong`);
    }
  }
}
