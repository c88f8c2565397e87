import type { GuestMemory } from "../ring/memory.ts";
import type { QueueConfig } from "../ring/queue.ts";
import type { Cursor, WalkModel } from "./exhaustive_model.ts";
import type {
  PackedDeviceFields,
  PackedDriverFields,
} from "./exhaustive_open.ts";
import { putBuffers, takeBuffers } from "./exhaustive_split.ts";
import { expectSame, Violation } from "./violation.ts";

/** What dead memory holds. */
const POISON_16 = 0xdead;
const POISON_32 = 0xdeaddead;
/** Bits of the flags by which a descriptor is available or used; never dead. */
const AVAIL_USED = 0x8080;
/** The other bits of the flags of a dead descriptor: all but VIRTQ_DESC_F_NEXT are set. */
const POISON_FLAGS = 0x7f7e;
const F_WRITE = 2;
const F_AVAIL = 0x80;
/** Buffers that come from a state lie nowhere in the ring. */
const NOT_IN_RING = 0xffffffff;

/**
 * Canonical form of a packed pair.
 *
 * It has, of memory: both event structures; of every descriptor the two bits that make it available or used;
 * of those that the driver added and the device did not push, all other bits, too; of the first one of a buffer that
 * was pushed and not reclaimed, its id, length and VIRTQ_DESC_F_WRITE. All else is dead: it is written before the
 * other side may read it, and `load()` fills it with poison.
 *
 * Of both sides: every field that changes, as it is, except
 *
 * - the driver's `usedLength`, which is looked at right after `reclaim()`; its rows of ids that are free, and those
 *   ids in its stack that are taken; `batchOf`, of which only counts whether it is the open batch;
 * - the device's rows of ids that are not in flight; `book`'s owner of a slot, where it is not in flight any more
 *   or was copied (`#ownerOf()` is the only reader, and a new owner is written with the row that it needs); where
 *   the staged batch begins while there is none; `moved` while it is not valid, since the next decision forgets
 *   it; of a copied descriptor all flags but VIRTQ_DESC_F_WRITE, since it is only resolved; `batch` and
 *   `batchBits`, which only VIRTIO_F_IN_ORDER reads; what only `unpop()` reads, which is no step.
 *
 * Nothing is relative: positions are below the size and there are two laps, so that the states are finite. The one
 * thing that is not, `moved`, is held to `size + 1` by the model's bound.
 */
export class PackedForm {
  readonly #size: number;
  readonly #u16: Uint16Array;
  readonly #u32: Uint32Array;
  readonly #events: Uint16Array;
  readonly #deviceEvents: Uint16Array;

  /** @param memory Where the ring is. @param config The ring's. */
  constructor(memory: GuestMemory, config: QueueConfig) {
    const { size, descriptorArea, driverArea, deviceArea } = config;
    this.#size = size;
    const ring = memory.bytes(descriptorArea, size * 16);
    this.#u16 = new Uint16Array(ring.buffer, ring.byteOffset, size * 8);
    this.#u32 = new Uint32Array(ring.buffer, ring.byteOffset, size * 4);
    const driver = memory.bytes(driverArea, 4);
    this.#events = new Uint16Array(driver.buffer, driver.byteOffset, 2);
    const device = memory.bytes(deviceArea, 4);
    this.#deviceEvents = new Uint16Array(device.buffer, device.byteOffset, 2);
  }

  /** Appends the state of the pair. */
  save(
    out: number[],
    model: WalkModel,
    driver: PackedDriverFields,
    device: PackedDeviceFields,
  ): void {
    out.push(
      this.#events[0]!,
      this.#events[1]!,
      this.#deviceEvents[0]!,
      this.#deviceEvents[1]!,
      driver.$next,
      driver.$nextBits,
      driver.$free,
      driver.$inFlight,
      driver.$used,
      driver.$usedBits,
      driver.$stagedSlots,
      driver.$stagedSlots === 0 ? 0 : driver.$stagedFirst,
      driver.$stagedSlots === 0 ? 0 : driver.$stagedFlags,
      driver.$moved,
      driver.$eventFlags,
      device.$avail,
      device.$availBits,
      device.$outstanding,
      device.$inFlight,
      device.$used,
      device.$usedBits,
      device.$stagedSlots,
      device.$stagedSlots === 0 ? 0 : device.$stagedFirst,
      device.$stagedSlots === 0 ? 0 : device.$stagedFlags,
      device.$movedValid ? device.$moved : 0,
      device.$movedValid ? 1 : 0,
      device.$eventFlags & 0xffff,
    );
    const { kind } = model;
    for (let id = 0; id < this.#size; id++) {
      if (kind[id] === 0) {
        expectSame("exactly once", `slots of ${id}`, driver.$slots[id], 0);
        continue;
      }
      const open = driver.$batchOf[id] === driver.$batch;
      out.push(driver.$slots[id]!, driver.$room[id]!, open ? 1 : 0);
    }
    const taken = Math.max(0, Math.min(driver.$inFlight, this.#size));
    for (let i = 0; i < this.#size - taken; i++) out.push(driver.$ids[i]!);
    this.#saveRing(out, model, driver);
    this.#saveInFlight(out, device);
  }

  #saveRing(
    out: number[],
    model: WalkModel,
    driver: PackedDriverFields,
  ): void {
    const size = this.#size;
    const u16 = this.#u16;
    let slot = driver.$used;
    const step = () => {
      if (++slot === size) slot = 0;
    };
    for (const list of [model.used, model.done]) {
      for (const token of list) {
        out.push(u16[slot * 8 + 4]!, u16[slot * 8 + 6]!);
        out.push(u16[slot * 8 + 7]! & (AVAIL_USED | F_WRITE));
        step();
        for (let left = model.kind[token]! - 1; left > 0; left--) {
          out.push(u16[slot * 8 + 7]! & AVAIL_USED);
          step();
        }
      }
    }
    const held = model.slots(model.fetched) + model.slots(model.pending) +
      model.slots(model.staged);
    for (let left = held; left > 0; left--) {
      const at = slot * 8;
      out.push(u16[at]!, u16[at + 4]!, u16[at + 6]!, u16[at + 7]!);
      step();
    }
    for (let left = model.free; left > 0; left--) {
      out.push(u16[slot * 8 + 7]! & AVAIL_USED);
      step();
    }
  }

  #saveInFlight(out: number[], device: PackedDeviceFields): void {
    const size = this.#size;
    const book = device.$book;
    for (let id = 0; id < size; id++) {
      const slots = book[id * 4]!;
      out.push(slots);
      if (slots === 0) continue;
      const start = book[id * 4 + 1]!;
      out.push(start === NOT_IN_RING ? 0xffff : start, book[id * 4 + 2]!);
    }
    for (let slot = 0; slot < size; slot++) {
      const id = book[slot * 4 + 3]! - 1;
      const owned = id >= 0 && book[id * 4] !== 0 &&
        book[id * 4 + 1] === slot && !device.$copies.has(id);
      out.push(owned ? id + 1 : 0);
    }
    out.push(device.$copies.size);
    for (const [id, { slots, table }] of device.$copies) {
      out.push(id, slots, table.length / 4);
      for (let i = 0; i < table.length; i += 4) {
        const flags = (table[i + 3]! >>> 16) & F_WRITE;
        out.push(table[i]! & 0xffff, table[i + 2]! & 0xffff, flags);
      }
    }
    putBuffers(out, device.$restored.slice(device.$nextRestored));
  }

  /** Takes a state back. */
  load(
    from: Cursor,
    model: WalkModel,
    driver: PackedDriverFields,
    device: PackedDeviceFields,
  ): void {
    this.#events[0] = from.next();
    this.#events[1] = from.next();
    this.#deviceEvents[0] = from.next();
    this.#deviceEvents[1] = from.next();
    driver.$next = from.next();
    driver.$nextBits = from.next();
    driver.$free = from.next();
    driver.$inFlight = from.next();
    driver.$used = from.next();
    driver.$usedBits = from.next();
    driver.$stagedSlots = from.next();
    driver.$stagedFirst = from.next();
    driver.$stagedFlags = from.next();
    driver.$moved = from.next();
    driver.$eventFlags = from.next();
    driver.$usedLength = 0;
    driver.$fault = null;
    device.$avail = from.next();
    device.$availBits = from.next();
    device.$outstanding = from.next();
    device.$inFlight = from.next();
    device.$used = from.next();
    device.$usedBits = from.next();
    device.$stagedSlots = from.next();
    device.$stagedFirst = from.next();
    device.$stagedFlags = from.next();
    device.$moved = from.next();
    device.$movedValid = from.next() === 1;
    device.$eventFlags = from.next() << 16 >> 16;
    device.$batch = device.$used;
    device.$batchBits = device.$usedBits;
    device.$restoredAvail = 0;
    device.$restoredBits = 0;
    device.$pastRestored = true;
    device.$broken = null;
    driver.$slots.fill(0);
    driver.$room.fill(0);
    driver.$batchOf.fill(0);
    driver.$batch = 1;
    const { kind } = model;
    for (let id = 0; id < this.#size; id++) {
      if (kind[id] === 0) continue;
      driver.$slots[id] = from.next();
      driver.$room[id] = from.next();
      driver.$batchOf[id] = from.next();
    }
    driver.$ids.fill(POISON_16);
    for (let i = 0; i < this.#size - driver.$inFlight; i++) {
      driver.$ids[i] = from.next();
    }
    this.#loadRing(from, model, driver);
    this.#loadInFlight(from, device);
  }

  #loadRing(
    from: Cursor,
    model: WalkModel,
    driver: PackedDriverFields,
  ): void {
    const size = this.#size;
    const u16 = this.#u16;
    const u32 = this.#u32.fill(POISON_32);
    let slot = driver.$used;
    const step = () => {
      if (++slot === size) slot = 0;
    };
    for (const list of [model.used, model.done]) {
      for (const token of list) {
        u32[slot * 4 + 2] = from.next();
        u16[slot * 8 + 6] = from.next();
        u16[slot * 8 + 7] = from.next() | (POISON_FLAGS & ~F_WRITE);
        step();
        for (let left = model.kind[token]! - 1; left > 0; left--) {
          u16[slot * 8 + 7] = from.next() | POISON_FLAGS;
          step();
        }
      }
    }
    const held = model.slots(model.fetched) + model.slots(model.pending) +
      model.slots(model.staged);
    for (let left = held; left > 0; left--) {
      u32[slot * 4] = from.next();
      u32[slot * 4 + 1] = 0;
      u32[slot * 4 + 2] = from.next();
      u16[slot * 8 + 6] = from.next();
      u16[slot * 8 + 7] = from.next();
      step();
    }
    for (let left = model.free; left > 0; left--) {
      u16[slot * 8 + 7] = from.next() | POISON_FLAGS;
      step();
    }
  }

  #loadInFlight(from: Cursor, device: PackedDeviceFields): void {
    const size = this.#size;
    const book = device.$book.fill(0);
    for (let id = 0; id < size; id++) {
      const slots = from.next();
      book[id * 4] = slots;
      if (slots === 0) continue;
      const start = from.next();
      book[id * 4 + 1] = start === 0xffff ? NOT_IN_RING : start;
      book[id * 4 + 2] = from.next();
    }
    for (let slot = 0; slot < size; slot++) book[slot * 4 + 3] = from.next();
    device.$copies.clear();
    for (let count = from.next(); count > 0; count--) {
      const id = from.next();
      const slots = from.next();
      const table = new Uint32Array(from.next() * 4);
      for (let i = 0; i < table.length; i += 4) {
        table[i] = from.next();
        table[i + 2] = from.next();
        table[i + 3] = from.next() << 16;
      }
      device.$copies.set(id, { slots, table });
    }
    device.$copied = device.$copies.size;
    device.$restored = takeBuffers(from);
    device.$nextRestored = 0;
    device.$restoredLeft = device.$restored.length;
  }

  /** Checks what must hold in each state. */
  check(
    model: WalkModel,
    driver: PackedDriverFields,
    device: PackedDeviceFields,
  ): void {
    const { staged, pending, fetched, done, used } = model;
    const size = this.#size;
    // Places with their lap: 0 to 2 * size - 1.
    const lap = (position: number, wrap: boolean) =>
      position + (wrap ? 0 : size);
    const next = lap(driver.$next, driver.$nextBits === F_AVAIL);
    const avail = lap(device.$avail, device.$availBits === F_AVAIL);
    const deviceUsed = lap(device.$used, device.$usedBits !== 0);
    const driverUsed = lap(driver.$used, driver.$usedBits !== 0);
    const expectDistance = (what: string, a: number, b: number, is: number) => {
      const found = (a - b + 2 * size) % (2 * size);
      if (found !== is) {
        throw new Violation(
          "packed distance",
          `${what} is ${found}, expected ${is}`,
        );
      }
    };
    const back = model.slots(pending.slice(0, model.again));
    const ahead = model.slots(pending) - back + model.slots(staged);
    const inFlight = model.slots(fetched) + back;
    expectDistance("driver's next - device's avail", next, avail, ahead);
    expectDistance("device's avail - used", avail, deviceUsed, inFlight);
    expectDistance(
      "device's used - driver's",
      deviceUsed,
      driverUsed,
      model.slots(done) + model.slots(used),
    );
    expectSame(
      "packed distance",
      "device's count",
      device.$outstanding,
      inFlight,
    );
  }
}
