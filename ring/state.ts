import { maxIndirectEntries } from "./_indirect.ts";
import { RingError } from "./errors.ts";
import type {
  InFlightBuffer,
  InFlightDescriptor,
  QueueState,
  RingFormat,
} from "./queue.ts";
import { VIRTQ_MAX_SIZE } from "./virtio_ring.ts";

/** The state of a split queue. */
export type SplitQueueState = Extract<QueueState, { format: "split" }>;
/** The state of a packed queue. */
export type PackedQueueState = Extract<QueueState, { format: "packed" }>;

/**
 * The two words of the proposed queue-state facility (VIRTIO_F_QUEUE_STATE), each a le16.
 *
 * Split: `available` is `last_avail_idx`, `used` means nothing and is 0. Packed: each has an index in
 * bits 0 to 14 and a wrap counter in bit 15.
 */
export type QueueStateWords = {
  /** Available state: where the device reads next. */
  available: number;
  /** Used state: where the device writes next; packed only. */
  used: number;
};

/** Returns the state of a queue that nothing has happened to. */
export function initialQueueState(format: "split"): SplitQueueState;
/** Returns the state of a queue that nothing has happened to. */
export function initialQueueState(format: "packed"): PackedQueueState;
/** Returns the state of a queue that nothing has happened to. */
export function initialQueueState(format: RingFormat): QueueState;
export function initialQueueState(format: RingFormat): QueueState {
  if (format === "split") {
    return { format, lastAvailIdx: 0, usedIdx: 0, inFlight: [] };
  }
  return {
    format,
    lastAvailIdx: 0,
    lastAvailWrapCounter: 1,
    usedIdx: 0,
    usedWrapCounter: 1,
    inFlight: [],
  };
}

/**
 * Converts a saved state that is not trusted into one that a queue of `size` descriptors can have
 * been in; the result is a copy and shares nothing with `value`.
 *
 * The rules, where a distance is what was fetched and not used:
 *
 * - Split: both indices are 16-bit; the distance, mod 2^16, is the number of buffers in flight; each id is
 *   below `size`.
 * - Packed: both indices are below `size`; with equal wrap counters the available index is not behind
 *   the used one, with different ones not ahead of it (equal then means full); the distance is the
 *   number of slots in flight; each id is 16-bit.
 * - Ids differ from each other; a buffer takes 1 to `size` slots; its descriptors have addresses below
 *   2^53 and 32-bit lengths, readable ones first, and are no more than a chain can have.
 *
 * Where `format` is given, the state has it.
 *
 * @throws {RingError} `BAD_QUEUE_STATE` naming the rule that is broken.
 */
export function checkQueueState(
  value: unknown,
  size: number,
  format: "split",
): SplitQueueState;
/** Converts an untrusted state of a packed queue. */
export function checkQueueState(
  value: unknown,
  size: number,
  format: "packed",
): PackedQueueState;
/** Converts an untrusted state of a queue of either format. */
export function checkQueueState(
  value: unknown,
  size: number,
  format?: RingFormat,
): QueueState;
export function checkQueueState(
  value: unknown,
  size: number,
  format?: RingFormat,
): QueueState {
  if (!Number.isInteger(size) || size < 1 || size > VIRTQ_MAX_SIZE) {
    throw new RangeError(
      `Cannot check a queue's state: the queue's size is ${size}`,
    );
  }
  const state = record(value, "the state");
  const found = state.format;
  if (found !== "split" && found !== "packed") {
    throw bad(`its format is ${show(found)}`);
  }
  if (format !== undefined && found !== format) {
    throw bad(`its format is ${found}, that of the queue ${format}`);
  }
  return found === "split" ? checkSplit(state, size) : checkPacked(state, size);
}

function checkSplit(
  state: Record<string, unknown>,
  size: number,
): SplitQueueState {
  const lastAvailIdx = integer(state.lastAvailIdx, "lastAvailIdx", 0xffff);
  const usedIdx = integer(state.usedIdx, "usedIdx", 0xffff);
  const inFlight = buffers(state.inFlight, size, size - 1);
  const distance = (lastAvailIdx - usedIdx) & 0xffff;
  if (distance !== inFlight.length) {
    throw bad(
      `lastAvailIdx ${lastAvailIdx} is ${distance} ahead of usedIdx ${usedIdx}, but ${inFlight.length} buffers are in flight`,
    );
  }
  return { format: "split", lastAvailIdx, usedIdx, inFlight };
}

function checkPacked(
  state: Record<string, unknown>,
  size: number,
): PackedQueueState {
  const lastAvailIdx = integer(state.lastAvailIdx, "lastAvailIdx", size - 1);
  const lastAvailWrapCounter = bit(
    state.lastAvailWrapCounter,
    "lastAvailWrapCounter",
  );
  const usedIdx = integer(state.usedIdx, "usedIdx", size - 1);
  const usedWrapCounter = bit(state.usedWrapCounter, "usedWrapCounter");
  const inFlight = buffers(state.inFlight, size, 0xffff);
  let distance = lastAvailIdx - usedIdx;
  if (lastAvailWrapCounter !== usedWrapCounter) distance += size;
  if (distance < 0) {
    throw bad(
      `lastAvailIdx ${lastAvailIdx} is behind usedIdx ${usedIdx} in the same lap`,
    );
  }
  if (distance > size) {
    throw bad(
      `lastAvailIdx ${lastAvailIdx} is more than a lap ahead of usedIdx ${usedIdx}`,
    );
  }
  let slots = 0;
  for (const buffer of inFlight) slots += buffer.slots;
  if (distance !== slots) {
    throw bad(
      `the available position is ${distance} slots ahead of the used one, but ${slots} are in flight`,
    );
  }
  return {
    format: "packed",
    lastAvailIdx,
    lastAvailWrapCounter,
    usedIdx,
    usedWrapCounter,
    inFlight,
  };
}

function buffers(
  value: unknown,
  size: number,
  maxId: number,
): InFlightBuffer[] {
  const list = array(value, "inFlight", size);
  const seen = new Set<number>();
  return list.map((entry, i) => {
    const name = `inFlight[${i}]`;
    const buffer = record(entry, name);
    const id = integer(buffer.id, `${name}.id`, maxId);
    if (seen.has(id)) throw bad(`id ${id} is in flight twice`);
    seen.add(id);
    const slots = integer(buffer.slots, `${name}.slots`, size);
    if (slots === 0) throw bad(`${name}.slots is 0`);
    return {
      id,
      slots,
      descriptors: descriptors(buffer.descriptors, name, size),
    };
  });
}

function descriptors(
  value: unknown,
  owner: string,
  size: number,
): InFlightDescriptor[] {
  // A chain as long as the queue, whose last descriptor may refer to a table.
  const most = size + maxIndirectEntries(size);
  const name = `${owner}.descriptors`;
  let writing = false;
  return array(value, name, most).map((entry, i) => {
    const descriptor = record(entry, `${name}[${i}]`);
    const addr = integer(
      descriptor.addr,
      `${name}[${i}].addr`,
      Number.MAX_SAFE_INTEGER,
    );
    const len = integer(descriptor.len, `${name}[${i}].len`, 0xffffffff);
    const writable = descriptor.writable;
    if (typeof writable !== "boolean") {
      throw bad(`${name}[${i}].writable is ${show(writable)}`);
    }
    if (writable) writing = true;
    else if (writing) {
      throw bad(`${name}[${i}] is readable behind a writable one`);
    }
    return { addr, len, writable };
  });
}

/**
 * Packs a state into the words of the queue-state facility.
 *
 * @throws {TypeError} when buffers are in flight, which two words cannot tell.
 */
export function encodeQueueStateWords(state: QueueState): QueueStateWords {
  refuseInFlight(state);
  if (state.format === "split") {
    return { available: state.lastAvailIdx, used: 0 };
  }
  return {
    available: state.lastAvailWrapCounter << 15 | state.lastAvailIdx,
    used: state.usedWrapCounter << 15 | state.usedIdx,
  };
}

/**
 * Unpacks the words of the queue-state facility; a queue checks the result against its size.
 *
 * `usedIdx` is the split queue's used index, read from its ring; a packed queue does without it.
 *
 * @throws {RingError} `BAD_QUEUE_STATE` where a word has more than 16 bits.
 */
export function decodeQueueStateWords(
  format: RingFormat,
  words: QueueStateWords,
  usedIdx = 0,
): QueueState {
  const available = integer(words.available, "the available state", 0xffff);
  if (format === "split") {
    return {
      format,
      lastAvailIdx: available,
      usedIdx: integer(usedIdx, "usedIdx", 0xffff),
      inFlight: [],
    };
  }
  const used = integer(words.used, "the used state", 0xffff);
  return {
    format,
    lastAvailIdx: available & 0x7fff,
    lastAvailWrapCounter: wrapOf(available),
    usedIdx: used & 0x7fff,
    usedWrapCounter: wrapOf(used),
    inFlight: [],
  };
}

/**
 * Packs a state into the number that vhost-user calls a vring base.
 *
 * Split: `last_avail_idx`. Packed: available index in bits 0 to 14 and its wrap counter in bit 15, used
 * index in bits 16 to 30 and its wrap counter in bit 31; at first 0x80008000. The result is unsigned.
 *
 * @throws {TypeError} when buffers are in flight, which the number cannot tell.
 */
export function encodeVringBase(state: QueueState): number {
  const { available, used } = encodeQueueStateWords(state);
  return (used << 16 | available) >>> 0;
}

/**
 * Unpacks a vring base; a queue checks the result against its size.
 *
 * `usedIdx` is the split queue's used index, read from its ring. A packed base is taken as it stands:
 * 0 means both wrap counters 0, though some front-ends send it for a queue that is new.
 *
 * @throws {RingError} `BAD_QUEUE_STATE` where the number does not fit: 32 bits, split 16 bits.
 */
export function decodeVringBase(
  format: RingFormat,
  base: number,
  usedIdx = 0,
): QueueState {
  integer(base, "the vring base", format === "split" ? 0xffff : 0xffffffff);
  return decodeQueueStateWords(
    format,
    { available: base & 0xffff, used: base >>> 16 },
    usedIdx,
  );
}

function refuseInFlight(state: QueueState): void {
  const count = state.inFlight.length;
  if (count !== 0) {
    throw new TypeError(
      `Cannot encode the queue's state: ${count} buffers are in flight`,
    );
  }
}

function wrapOf(word: number): 0 | 1 {
  return word >>> 15 === 0 ? 0 : 1;
}

function record(value: unknown, name: string): Record<string, unknown> {
  if (typeof value !== "object" || value === null) {
    throw bad(`${name} is ${show(value)}`);
  }
  return value as Record<string, unknown>;
}

function array(value: unknown, name: string, most: number): unknown[] {
  if (!Array.isArray(value)) throw bad(`${name} is ${show(value)}`);
  if (value.length > most) {
    throw bad(`${name} has ${value.length} entries, more than ${most}`);
  }
  // A copy without holes, which map() would skip.
  return Array.from(value);
}

function integer(value: unknown, name: string, most: number): number {
  if (
    typeof value !== "number" || !Number.isInteger(value) || value < 0 ||
    value > most
  ) {
    throw bad(`${name} is ${show(value)}, not 0 to ${most}`);
  }
  return value + 0; // -0 becomes 0
}

function bit(value: unknown, name: string): 0 | 1 {
  if (value !== 0 && value !== 1) throw bad(`${name} is ${show(value)}`);
  return value === 0 ? 0 : 1;
}

function show(value: unknown): string {
  if (typeof value === "string") return JSON.stringify(value.slice(0, 32));
  return typeof value === "object" && value !== null
    ? Array.isArray(value) ? "an array" : "an object"
    : String(value);
}

function bad(rule: string): RingError {
  return new RingError(
    "BAD_QUEUE_STATE",
    "2.7",
    `Cannot restore a queue: ${rule}`,
    true,
  );
}
