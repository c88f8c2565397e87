import type { GuestMemory } from "../ring/memory.ts";
import type { InFlightBuffer, QueueConfig } from "../ring/queue.ts";
import type { Cursor, WalkModel } from "./exhaustive_model.ts";
import type {
  SplitDeviceFields,
  SplitDriverFields,
} from "./exhaustive_open.ts";
import { expectSame, Violation } from "./violation.ts";

/** What dead memory holds: no address, no length and no index that anything would accept. */
const POISON_16 = 0xdead;
const POISON_32 = 0xdeaddead;
const FREE = -1;
const WAITING = -2;

/** Appends buffers of a saved state. */
export function putBuffers(
  out: number[],
  list: readonly InFlightBuffer[],
): void {
  out.push(list.length);
  for (const { id, slots, descriptors } of list) {
    out.push(id, slots, descriptors.length);
    for (const { addr, len, writable } of descriptors) {
      out.push(addr, len, writable ? 1 : 0);
    }
  }
}

/** Takes back buffers of a saved state. */
export function takeBuffers(from: Cursor): InFlightBuffer[] {
  const list: InFlightBuffer[] = [];
  for (let n = from.next(); n > 0; n--) {
    const id = from.next();
    const slots = from.next();
    const descriptors: InFlightBuffer["descriptors"] = [];
    for (let d = from.next(); d > 0; d--) {
      const addr = from.next();
      const len = from.next();
      descriptors.push({ addr, len, writable: from.next() === 1 });
    }
    list.push({ id, slots, descriptors });
  }
  return list;
}

/**
 * Canonical form of a split pair.
 *
 * It has, of memory: both flags, both indices, both events; the entries of the available ring from the published
 * used index to the staged available one; the entries of the used ring from the reclaimed index to the staged
 * used one; the descriptors that hang on the head of a buffer. Every other word is dead: its owner writes it
 * before the other side may read it. It is not in the form, and `load()` fills it with poison, so that an
 * implementation that reads one all the same is found out.
 *
 * Of both sides: every field that changes, except
 *
 * - `usedLength`, which is looked at right after `reclaim()`; `batchIdx`, which only VIRTIO_F_IN_ORDER reads;
 * - the driver's rows of heads that are no buffer's, and the links behind the end of a list: written before they are
 *   read, and given fixed values by `load()`;
 * - `order`: of the driver only whether it is below `publishedCount`, of the device only the rank, since they are
 *   only compared; and restored buffers that were pushed already, which only `unpop()` counts, which is no step;
 * - `signalled` while it is not valid.
 *
 * All free-running indices are relative to the largest multiple of the size that is not above the driver's reclaimed
 * index. The code uses them only as differences and equality mod 2^16 and masked by the size, so that pairs that
 * differ by a multiple of the size behave the same; `load()` puts each state at the walk's base, hence each
 * one is really taken across the wrap in a walk that has its base there. An event is relative to the index
 * that it is compared with, and no further behind it than `size + 2`: decisions look back `size + 1` at most (the
 * model's bound), so all those events are passed already. They would be met again after 65536 buffers without
 * arming, and then cause a needless notification, which the walk does not see.
 */
export class SplitForm {
  readonly #size: number;
  readonly #mask: number;
  readonly #eventIdx: boolean;
  readonly #base: number;
  readonly #table: Uint32Array;
  readonly #avail: Uint16Array;
  readonly #used: Uint16Array;
  readonly #usedEntries: Uint32Array;

  /** @param base What the driver's reclaimed index is put at, less its offset in the ring; a multiple of the size. */
  constructor(memory: GuestMemory, config: QueueConfig, base: number) {
    const { size, descriptorArea, driverArea, deviceArea } = config;
    this.#size = size;
    this.#mask = size - 1;
    this.#eventIdx = config.eventIdx === true;
    this.#base = base;
    const words = (address: number, length: number) => {
      const bytes = memory.bytes(address, length);
      return [bytes.buffer, bytes.byteOffset] as const;
    };
    this.#table = new Uint32Array(
      ...words(descriptorArea, size * 16),
      size * 4,
    );
    const avail = words(driverArea, 6 + 2 * size);
    this.#avail = new Uint16Array(...avail, 3 + size);
    const [buffer, at] = words(deviceArea, 6 + 8 * size);
    this.#used = new Uint16Array(buffer, at, 3 + size * 4);
    this.#usedEntries = new Uint32Array(buffer, at + 4, size * 2);
  }

  /** Appends the state of the pair. */
  save(
    out: number[],
    model: WalkModel,
    driver: SplitDriverFields,
    device: SplitDeviceFields,
  ): void {
    const size = this.#size;
    const mask = this.#mask;
    const avail = this.#avail;
    const used = this.#used;
    const base = driver.$lastUsedIdx & ~mask;
    const rel = (index: number) => (index - base) & 0xffff;
    out.push(avail[0]!, rel(avail[1]!), used[0]!, rel(used[1]!));
    if (this.#eventIdx) {
      out.push(
        this.#behind(avail[2 + size]!, device.$usedIdx),
        this.#behind(used[2 + 4 * size]!, driver.$availIdx),
      );
    }
    out.push(
      rel(driver.$lastUsedIdx),
      rel(driver.$usedIdx),
      rel(driver.$availIdx),
      rel(driver.$nextAvailIdx),
      rel(driver.$kicked),
      (driver.$kickedValid ? 1 : 0) | (driver.$interruptsOff ? 2 : 0) |
        (device.$signalledValid ? 4 : 0) | (device.$kicksOff ? 8 : 0),
      driver.$free,
      rel(device.$lastAvailIdx),
      rel(device.$availIdx),
      rel(device.$usedIdx),
      rel(device.$nextUsedIdx),
      device.$signalledValid ? rel(device.$signalled) : 0,
    );
    this.#saveRings(out, driver, device);
    this.#saveTable(out, model, driver);
    this.#saveInFlight(out, device);
  }

  #behind(event: number, index: number): number {
    const most = this.#size + 2;
    const distance = (index - event) << 16 >> 16;
    return Math.max(-most, Math.min(most, distance)) + most;
  }

  #saveRings(
    out: number[],
    driver: SplitDriverFields,
    device: SplitDeviceFields,
  ): void {
    const mask = this.#mask;
    let left = (driver.$nextAvailIdx - device.$usedIdx) & 0xffff;
    expectAtMost("avail.idx - used.idx", left, this.#size);
    for (let i = device.$usedIdx; left > 0; i++, left--) {
      out.push(this.#avail[2 + (i & mask)]!);
    }
    left = (device.$nextUsedIdx - driver.$lastUsedIdx) & 0xffff;
    expectAtMost("used.idx - last used", left, this.#size);
    for (let i = driver.$lastUsedIdx; left > 0; i++, left--) {
      const at = (i & mask) * 2;
      out.push(this.#usedEntries[at]!, this.#usedEntries[at + 1]!);
    }
  }

  #saveTable(
    out: number[],
    model: WalkModel,
    driver: SplitDriverFields,
  ): void {
    const { kind } = model;
    for (let head = 0; head < this.#size; head++) {
      if (kind[head] === 0) {
        expectSame(
          "exactly once",
          `room of ${head}`,
          driver.$limit[head],
          FREE,
        );
        continue;
      }
      const staged = driver.$order[head]! >= driver.$publishedCount;
      out.push(
        driver.$tail[head]!,
        driver.$slots[head]!,
        driver.$limit[head]!,
        staged ? 1 : 0,
      );
      let index = head;
      for (let left = kind[head]!; left > 0; left--) {
        if (index >= this.#size) {
          throw new Violation("descriptors", `next is ${index}`);
        }
        const at = index * 4;
        const flags = this.#table[at + 3]!;
        out.push(this.#table[at]!, this.#table[at + 2]!);
        out.push(flags & 0xffff, left > 1 ? flags >>> 16 : 0);
        if (left > 1) out.push(driver.$next[index]!);
        index = flags >>> 16;
      }
    }
    let index = driver.$freeHead;
    for (let left = driver.$free; left > 0; left--) {
      if (index >= this.#size) {
        throw new Violation("descriptors", `a free one is ${index}`);
      }
      out.push(index);
      index = driver.$next[index]!;
    }
  }

  #saveInFlight(out: number[], device: SplitDeviceFields): void {
    const { $limit: limit, $order: order } = device;
    const heads: number[] = [];
    for (let head = 0; head < this.#size; head++) {
      if (limit[head] !== FREE) heads.push(head);
    }
    heads.sort((a, b) => order[a]! - order[b]!);
    const restored: InFlightBuffer[] = [];
    out.push(heads.length);
    for (const head of heads) {
      out.push(head, limit[head]! + 2);
      const buffer = device.$restored[order[head]!];
      if (buffer !== undefined) restored.push(buffer);
    }
    putBuffers(out, restored);
  }

  /** Takes a state back. */
  load(
    from: Cursor,
    model: WalkModel,
    driver: SplitDriverFields,
    device: SplitDeviceFields,
  ): void {
    const size = this.#size;
    const base = this.#base;
    const real = (index: number) => (index + base) & 0xffff;
    const avail = this.#avail.fill(POISON_16);
    const used = this.#used.fill(POISON_16);
    this.#table.fill(POISON_32);
    avail[0] = from.next();
    avail[1] = real(from.next());
    used[0] = from.next();
    used[1] = real(from.next());
    const usedEvent = this.#eventIdx ? from.next() - size - 2 : 0;
    const availEvent = this.#eventIdx ? from.next() - size - 2 : 0;
    driver.$lastUsedIdx = real(from.next());
    driver.$usedIdx = real(from.next());
    driver.$availIdx = real(from.next());
    driver.$nextAvailIdx = real(from.next());
    driver.$kicked = real(from.next());
    const flags = from.next();
    driver.$kickedValid = (flags & 1) !== 0;
    driver.$interruptsOff = (flags & 2) !== 0;
    device.$signalledValid = (flags & 4) !== 0;
    device.$kicksOff = (flags & 8) !== 0;
    driver.$free = from.next();
    device.$lastAvailIdx = real(from.next());
    device.$availIdx = real(from.next());
    device.$usedIdx = real(from.next());
    device.$nextUsedIdx = real(from.next());
    device.$batchIdx = device.$usedIdx;
    device.$signalled = real(from.next());
    avail[2 + size] = this.#eventIdx ? device.$usedIdx - usedEvent : 0;
    used[2 + 4 * size] = this.#eventIdx ? driver.$availIdx - availEvent : 0;
    driver.$fault = null;
    device.$fault = null;
    driver.$usedLength = 0;
    this.#loadRings(from, driver, device);
    this.#loadTable(from, model, driver);
    this.#loadInFlight(from, device);
  }

  #loadRings(
    from: Cursor,
    driver: SplitDriverFields,
    device: SplitDeviceFields,
  ): void {
    const mask = this.#mask;
    let left = (driver.$nextAvailIdx - device.$usedIdx) & 0xffff;
    for (let i = device.$usedIdx; left > 0; i++, left--) {
      this.#avail[2 + (i & mask)] = from.next();
    }
    left = (device.$nextUsedIdx - driver.$lastUsedIdx) & 0xffff;
    for (let i = driver.$lastUsedIdx; left > 0; i++, left--) {
      const at = (i & mask) * 2;
      this.#usedEntries[at] = from.next();
      this.#usedEntries[at + 1] = from.next();
    }
  }

  #loadTable(
    from: Cursor,
    { kind }: WalkModel,
    driver: SplitDriverFields,
  ): void {
    const size = this.#size;
    const next = driver.$next.fill(size);
    driver.$tail.fill(size);
    driver.$slots.fill(0);
    driver.$limit.fill(FREE);
    driver.$order.fill(0);
    driver.$publishedCount = 1;
    driver.$addedCount = 1;
    for (let head = 0; head < size; head++) {
      if (kind[head] === 0) continue;
      driver.$tail[head] = from.next();
      driver.$slots[head] = from.next();
      driver.$limit[head] = from.next();
      if (from.next() === 1) {
        driver.$order[head] = 1;
        driver.$addedCount = 2;
      }
      let index = head;
      for (let left = kind[head]!; left > 0; left--) {
        const at = index * 4;
        this.#table[at] = from.next();
        this.#table[at + 1] = 0;
        this.#table[at + 2] = from.next();
        const flags = from.next();
        const link = from.next();
        this.#table[at + 3] = flags | link << 16;
        if (left > 1) next[index] = from.next();
        index = link;
      }
    }
    driver.$freeHead = size;
    let before = -1;
    for (let left = driver.$free; left > 0; left--) {
      const index = from.next();
      if (before < 0) driver.$freeHead = index;
      else next[before] = index;
      before = index;
    }
  }

  #loadInFlight(from: Cursor, device: SplitDeviceFields): void {
    device.$limit.fill(FREE);
    device.$order.fill(0);
    const count = from.next();
    let waiting = 0;
    for (let i = 0; i < count; i++) {
      const head = from.next();
      const limit = from.next() - 2;
      if (limit === WAITING) waiting++;
      device.$limit[head] = limit;
      device.$order[head] = i;
    }
    device.$restored = takeBuffers(from);
    device.$fetched = count;
    device.$waiting = waiting;
    device.$restoredNext = device.$restored.length - waiting;
  }

  /** Checks what must hold in each state. */
  check(
    model: WalkModel,
    driver: SplitDriverFields,
    device: SplitDeviceFields,
  ): void {
    const { pending, fetched, done, used } = model;
    const distance = (a: number, b: number) => (a - b) & 0xffff;
    const availIdx = this.#avail[1]!;
    const usedIdx = this.#used[1]!;
    expectAtMost(
      "avail.idx - last_avail",
      distance(availIdx, device.$lastAvailIdx),
      this.#size,
    );
    expectSame(
      "split distance",
      "avail.idx - used.idx",
      distance(availIdx, usedIdx),
      pending.length + fetched.length + done.length,
    );
    expectSame(
      "split distance",
      "last_avail - used.idx",
      distance(device.$lastAvailIdx, usedIdx),
      model.again + fetched.length + done.length,
    );
    expectSame(
      "split distance",
      "used.idx - last used",
      distance(usedIdx, driver.$lastUsedIdx),
      used.length,
    );
    expectSame("split distance", "device's used", device.$usedIdx, usedIdx);
    expectSame("split distance", "driver's avail", driver.$availIdx, availIdx);
  }
}

function expectAtMost(what: string, found: number, most: number): void {
  if (found > most) {
    throw new Violation("split distance", `${what} is ${found}, above ${most}`);
  }
}
