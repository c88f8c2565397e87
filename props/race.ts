/**
 * What the two threads of a race over one virtqueue agree on: the memory, the doorbells, and what is in a buffer.
 *
 * @module
 */

import { GuestMemory } from "../ring/memory.ts";
import type { QueueConfig, RingFormat } from "../ring/queue.ts";

/** One race: a queue, what is negotiated for it, and how many buffers go through it. */
export type RaceOptions = {
  /** Split or packed. */
  ring: RingFormat;
  /** Descriptors, 4 to {@link RACE_MAX_SIZE}. */
  size: number;
  /** VIRTIO_F_EVENT_IDX. */
  eventIdx: boolean;
  /** VIRTIO_F_INDIRECT_DESC: buffers of 2 or 3 segments lie in tables, longer ones in the ring. */
  indirect: boolean;
  /** VIRTIO_F_IN_ORDER. */
  inOrder: boolean;
  /** Packed: both sides read runs of flags plainly. */
  strongOrdering: boolean;
  /** Buffers in all; below 2^32. */
  buffers: number;
  /** Chooses batches, windows and the order of completions. */
  seed: number;
  /** A side that sleeps so long has missed a wake-up. */
  timeoutMs: number;
};

/** How one side of a race ended. */
export type RaceResult = {
  /** Buffers that it has done with. */
  buffers: number;
  /** Times that it went to sleep. */
  sleeps: number;
  /** Times that it woke the other side. */
  rings: number;
  /** What went wrong, in words, or null. */
  problem: string | null;
};

/** Most descriptors of a race's queue. */
export const RACE_MAX_SIZE = 256;
/** Guest address of the memory: not 0, so that an address taken for an offset is seen. */
const MEMORY_START = 0x10_0000;
/** Bytes before the memory in its buffer: the words by which the threads meet. */
const CONTROL_BYTES = 4096;
const TABLE_ENTRIES = 3;
const TABLES = 0x8000;
const CELLS = 0x1_0000;
const CELL_BYTES = 256;
/** Where a buffer's writable bytes begin in its cell. */
const REPLY_OFFSET = 128;
const MEMORY_BYTES = CELLS + RACE_MAX_SIZE * CELL_BYTES;

/** Bytes of a buffer's header: sequence number, token, generation of the token, words of payload. */
export const HEADER_WORDS = 4;
/** Words of payload at most. */
export const MAX_PAYLOAD_WORDS = 12;
/** Writable bytes of a buffer that has any. */
export const REPLY_BYTES = 96;

/** Bytes of the one buffer that both threads share. */
export const RACE_BYTES: number = CONTROL_BYTES + MEMORY_BYTES;

// 32-bit words at the start of the shared buffer, each in a cache line of its own.
const KICK_BELL = 0;
const INTERRUPT_BELL = 16;
const STOPPED = 32;

/** The two doorbells, which count like an eventfd, and the word by which a side that failed stops the other. */
export class Doorbells {
  /** Times that this side went to sleep. */
  sleeps = 0;
  /** Times that this side woke the other one. */
  rings = 0;
  readonly #words: Int32Array;
  readonly #own: number;
  readonly #other: number;

  /** The bells of `side` in a race's shared buffer. */
  constructor(buffer: SharedArrayBuffer, side: "driver" | "device") {
    this.#words = new Int32Array(buffer, 0, CONTROL_BYTES / 4);
    this.#own = side === "driver" ? INTERRUPT_BELL : KICK_BELL;
    this.#other = side === "driver" ? KICK_BELL : INTERRUPT_BELL;
  }

  /** How often this side's bell has rung: read before looking for work. */
  get count(): number {
    return Atomics.load(this.#words, this.#own);
  }

  /** True when a side has given up. */
  get stopped(): boolean {
    return Atomics.load(this.#words, STOPPED) !== 0;
  }

  /** Wakes the other side. */
  ring(): void {
    this.rings++;
    Atomics.add(this.#words, this.#other, 1);
    Atomics.notify(this.#words, this.#other);
  }

  /** Sleeps until the bell has rung since `count` was read; false when that takes `timeoutMs`. */
  sleep(count: number, timeoutMs: number): boolean {
    this.sleeps++;
    return Atomics.wait(this.#words, this.#own, count, timeoutMs) !==
      "timed-out";
  }

  /** Stops both sides. */
  stop(): void {
    Atomics.store(this.#words, STOPPED, 1);
    for (const bell of [this.#own, this.#other]) {
      Atomics.add(this.#words, bell, 1);
      Atomics.notify(this.#words, bell);
    }
  }
}

/** Guest memory over a race's shared buffer. */
export function raceMemory(buffer: SharedArrayBuffer): GuestMemory {
  return new GuestMemory([{
    guestAddress: MEMORY_START,
    size: MEMORY_BYTES,
    buffer,
    byteOffset: CONTROL_BYTES,
  }]);
}

/** The guest's memory as words. */
export function raceWords(buffer: SharedArrayBuffer): Uint32Array {
  return new Uint32Array(buffer, CONTROL_BYTES, MEMORY_BYTES / 4);
}

/** Where the queue of a race lies. */
export function raceConfig(options: RaceOptions): QueueConfig {
  const { size, eventIdx, indirect, inOrder, strongOrdering } = options;
  return {
    size,
    descriptorArea: MEMORY_START,
    driverArea: MEMORY_START + 0x2000,
    deviceArea: MEMORY_START + 0x3000,
    eventIdx,
    indirect,
    inOrder,
    strongOrdering,
  };
}

/** Where the driver of a race builds indirect tables. */
export function raceTables(
  options: RaceOptions,
): { indirect?: { address: number; entries: number } } {
  if (!options.indirect) return {};
  return {
    indirect: { address: MEMORY_START + TABLES, entries: TABLE_ENTRIES },
  };
}

/** Guest address of what the device reads in cell `cell`. */
export function requestAddress(cell: number): number {
  return MEMORY_START + CELLS + cell * CELL_BYTES;
}

/** Guest address of what the device writes in cell `cell`. */
export function replyAddress(cell: number): number {
  return requestAddress(cell) + REPLY_OFFSET;
}

/** Index of the first word at guest address `address`. */
export function wordAt(address: number): number {
  return (address - MEMORY_START) / 4;
}

/** Word `i` of what is read in buffer `seq`; what is written is its complement. */
export function payloadWord(seq: number, i: number): number {
  const word = Math.imul(seq ^ Math.imul(i + 1, 0x9e3779b1), 0x85ebca6b);
  return (word ^ (word >>> 15)) >>> 0;
}

/** Words of payload of buffer `seq`. */
export function payloadWords(seq: number): number {
  return payloadWord(seq, 100) % (MAX_PAYLOAD_WORDS + 1);
}

/** Shape of buffer `seq`, 0 to 7; see the driver, which gives it its segments. */
export function shapeOf(seq: number): number {
  return payloadWord(seq, 101) & 7;
}

/** A random number below `below`, from a seed (mulberry32). */
export function randomBelow(seed: number): (below: number) => number {
  let state = seed | 0;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}
