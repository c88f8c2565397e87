import type { GuestMemory } from "../ring/memory.ts";
import type { BufferList, InFlightBuffer, QueueConfig } from "../ring/queue.ts";
import type { Member } from "./exhaustive_draw.ts";
import type { FormReader, FormWriter, WalkModel } from "./exhaustive_model.ts";
import type {
  PackedDeviceFields,
  PackedDriverFields,
} from "./exhaustive_open.ts";
import { keptBuffer, PUSHED, roomOf, sameBuffer } from "./exhaustive_split.ts";
import type { Tables } from "./exhaustive_tables.ts";
import { expectIs, Violation } from "./violation.ts";

/** What dead memory holds. */
const POISON_16 = 0xdead;
const POISON_32 = 0xdeaddead;
/** Bits of the flags by which a descriptor is available or used; never dead. */
const AVAIL_USED = 0x8080;
/** The other bits of the flags of a dead descriptor: all but VIRTQ_DESC_F_NEXT are set. */
const POISON_FLAGS = 0x7f7e;
const F_NEXT = 1;
const F_WRITE = 2;
const F_INDIRECT = 4;
const F_AVAIL = 0x80;
const F_USED = 0x8000;
const EVENT_DESC = 2;
/** Buffers that come from a state lie nowhere in the ring. */
const NOT_IN_RING = 0xffffffff;
// Where the other side's event lies.
const PASSED = 0;
const DUE = 1;
const AHEAD = 2;

/** Where a form has its two decisions, behind what the model puts. */
export const DECISIONS_AT = 2;

/** Whether a decision has the event behind what is undecided. */
export function wasPassed(decision: number): boolean {
  return (decision & 3) === PASSED;
}

/**
 * Canonical form of a packed pair, behind that of the model.
 *
 * What the model and the names tell is not in it, but is compared with them in every state: all positions with
 * their laps; of every descriptor the two bits that make it available or used; of those that the driver added and the
 * device did not use, address, length, id and flags; of the used ones that the driver did not reclaim, id, length and
 * VIRTQ_DESC_F_WRITE; the staged batch of each side; the driver's rows of ids in flight and its stack of free ids,
 * which has all others once; the device's rows of buffers in flight, and what it keeps of restored and
 * overwritten ones, in their order.
 *
 * What is left, for each direction: the event structure's flags with its owner's copy of them, how many
 * descriptors were published since the last decision, which makes no difference above the ring's size, and where
 * the event lies: behind those, among them, or at what will be published next. In a ring of more than one
 * descriptor, an event that lies behind is put as little behind as can be; in truth it may be met again after two laps
 * without arming, and then cause a needless notification. Of those the walk does not see all.
 *
 * Dead words are overwritten when a state is made of its form, so that an implementation that reads one all the
 * same is found out: what is no part of the above, as a descriptor that is in flight but whose contents the device has
 * copied; `usedLength`, which is looked at right after `reclaim()`; where a staged batch begins while there is
 * none; where a copied buffer began; what only VIRTIO_F_IN_ORDER and `unpop()` read, which is no step. Of a free
 * descriptor the two bits of its flags are those of a buffer used there a lap ago, or, where buffers can have
 * two descriptors, may be those of one that was passed over: which of them is drawn.
 */
export class PackedForm {
  readonly #size: number;
  readonly #eventIdx: boolean;
  readonly #chains: number;
  readonly #lists: readonly (readonly BufferList[])[];
  readonly #tables: Tables | null;
  readonly #kept: InFlightBuffer[][] = [];
  readonly #u16: Uint16Array;
  readonly #u32: Uint32Array;
  readonly #events: Uint16Array;
  readonly #deviceEvents: Uint16Array;
  // Where the driver reclaims next in the state at hand, and the wrap counter there.
  #base = 0;
  #wrap = 1;

  /**
   * @param lists By token: a buffer of one segment and one of two.
   * @param tables Indirect tables for those of two, or null.
   * @param chains Most descriptors that a buffer takes in the ring.
   */
  constructor(
    memory: GuestMemory,
    config: QueueConfig,
    lists: readonly (readonly BufferList[])[],
    tables: Tables | null,
    chains: number,
  ) {
    const { size, descriptorArea, driverArea, deviceArea } = config;
    this.#size = size;
    this.#eventIdx = config.eventIdx === true;
    this.#chains = chains;
    this.#lists = lists;
    this.#tables = tables;
    for (let token = 0; token < size; token++) {
      this.#kept.push(
        lists[token]!.map((list, i) =>
          keptBuffer(token, tables === null ? i + 1 : 1, list)
        ),
      );
    }
    const ring = memory.bytes(descriptorArea, size * 16);
    this.#u16 = new Uint16Array(ring.buffer, ring.byteOffset, size * 8);
    this.#u32 = new Uint32Array(ring.buffer, ring.byteOffset, size * 4);
    const driver = memory.bytes(driverArea, 4);
    this.#events = new Uint16Array(driver.buffer, driver.byteOffset, 2);
    const device = memory.bytes(deviceArea, 4);
    this.#deviceEvents = new Uint16Array(device.buffer, device.byteOffset, 2);
  }

  // A position is counted in descriptors from the base, 0 to 2 * size - 1.
  #slot(position: number): number {
    const slot = this.#base + position;
    return slot % this.#size;
  }

  #wrapAt(position: number): number {
    return this.#wrap ^ (Math.floor((this.#base + position) / this.#size) & 1);
  }

  #availBits(position: number): number {
    return this.#wrapAt(position) === 1 ? F_AVAIL : F_USED;
  }

  #usedBits(position: number): number {
    return this.#wrapAt(position) === 1 ? AVAIL_USED : 0;
  }

  // Of the other lap.
  #freeBits(position: number, passed: number): number {
    const wrap = this.#wrapAt(position);
    if (passed !== 0) return wrap === 1 ? F_USED : F_AVAIL;
    return wrap === 1 ? 0 : AVAIL_USED;
  }

  /**
   * Checks all that follows from the model, and puts the rest.
   *
   * @throws {Violation} where the sides or the memory are not what they must be.
   */
  save(
    out: FormWriter,
    model: WalkModel,
    driver: PackedDriverFields,
    device: PackedDeviceFields,
  ): void {
    const { used, done, pending, staged } = model;
    this.#base = driver.$used;
    this.#wrap = driver.$usedBits === 0 ? 0 : 1;
    const usedAt = model.slots(used);
    const deviceUsed = usedAt + model.slots(done);
    const avail = deviceUsed + model.window.length;
    let published = avail + model.slots(pending);
    for (let i = 0; i < model.again; i++) {
      published -= model.taken[pending[i]!]!;
    }
    const next = published + model.slots(staged);
    const what = "packed distance";
    expectIs(what, "driver's next", driver.$next, this.#slot(next));
    expectIs(what, "its bits", driver.$nextBits, this.#availBits(next));
    expectIs(what, "device's avail", device.$avail, this.#slot(avail));
    expectIs(what, "its bits", device.$availBits, this.#availBits(avail));
    expectIs(what, "device's used", device.$used, this.#slot(deviceUsed));
    expectIs(what, "its bits", device.$usedBits, this.#usedBits(deviceUsed));
    expectIs(
      what,
      "device's count",
      device.$outstanding,
      model.window.length,
    );
    this.#checkStaged(model, driver, device, usedAt, published);
    this.#checkRing(model, deviceUsed, published);
    this.#checkDriver(model, driver);
    this.#checkInFlight(model, device, deviceUsed);
    const events = this.#events;
    const deviceEvents = this.#deviceEvents;
    if (
      events[1]! > 2 || deviceEvents[1]! > 2 || driver.$eventFlags < 0 ||
      driver.$eventFlags > 2 || device.$eventFlags < -1 ||
      device.$eventFlags > 2
    ) throw new Violation("flags", `${events[1]} and ${deviceEvents[1]}`);
    out.put(
      events[1]! | deviceEvents[1]! << 2 | driver.$eventFlags << 4 |
        (device.$eventFlags + 1) << 6,
    );
    out.put(device.$movedValid ? 1 : 0);
    this.#putDecision(out, driver.$moved, published, deviceEvents);
    this.#putDecision(
      out,
      device.$movedValid ? device.$moved : 0,
      usedAt,
      events,
    );
  }

  // `moved` descriptors before `position` were published without a decision.
  #putDecision(
    out: FormWriter,
    moved: number,
    position: number,
    event: Uint16Array,
  ): void {
    const size = this.#size;
    if (!this.#eventIdx) {
      out.put(moved === 0 ? 0 : 1);
      return;
    }
    const undecided = Math.min(moved, size + 1);
    let where = PASSED;
    if (event[1] === EVENT_DESC) {
      const offset = event[0]! & 0x7fff;
      if (offset >= size) throw new Violation("events", `one is at ${offset}`);
      const lap = (event[0]! >>> 15) === this.#wrap ? 0 : size;
      const ends = 2 * size;
      const behind = (position - (offset - this.#base + lap) + 2 * ends) % ends;
      if (behind === 0) where = AHEAD;
      else if (undecided <= size && behind <= undecided) where = DUE;
    }
    out.put(undecided << 2 | where);
  }

  #checkStaged(
    { staged, done, kind, taken, written }: WalkModel,
    driver: PackedDriverFields,
    device: PackedDeviceFields,
    usedAt: number,
    published: number,
  ): void {
    let slots = 0;
    for (let i = 0; i < staged.length; i++) slots += taken[staged[i]!]!;
    const what = "staged batch";
    expectIs(what, "driver's", driver.$stagedSlots, slots);
    if (slots > 0) {
      const at = this.#slot(published);
      expectIs(what, "driver's first", driver.$stagedFirst, at);
      const flags = this.#availBits(published) |
        this.#flags(staged[0]!, kind[staged[0]!]!, 0);
      expectIs(what, "driver's flags", driver.$stagedFlags, flags);
    }
    slots = 0;
    for (let i = 0; i < done.length; i++) slots += taken[done[i]!]!;
    expectIs(what, "device's", device.$stagedSlots, slots);
    if (slots > 0) {
      const at = this.#slot(usedAt);
      expectIs(what, "device's first", device.$stagedFirst, at);
      const flags = this.#usedBits(usedAt) |
        (written[done[0]!] === 0 ? 0 : F_WRITE);
      expectIs(what, "device's flags", device.$stagedFlags, flags);
    }
  }

  // Of a descriptor of a buffer, without the two bits.
  #flags(token: number, kind: number, place: number): number {
    if (kind === 2 && this.#tables !== null) return F_INDIRECT;
    const list = this.#lists[token]![kind - 1]!;
    return (place < list.readable ? 0 : F_WRITE) |
      (place + 1 < kind ? F_NEXT : 0);
  }

  #checkRing(model: WalkModel, deviceUsed: number, published: number): void {
    const { kind, taken, window, pending, staged, again } = model;
    const u16 = this.#u16;
    const what = "ring memory";
    let position = this.#checkUsed(model);
    // What is in flight.
    for (let i = 0; i < window.length; i++, position++) {
      const token = window[i]!;
      if (token < 0) {
        const flags = u16[this.#slot(position) * 8 + 7]! & AVAIL_USED;
        expectIs(what, "a passed one", flags, this.#availBits(position));
        continue;
      }
      const place = i > 0 && window[i - 1] === token ? 1 : 0;
      this.#checkDescriptor(position, token, kind[token]!, place, false);
    }
    for (let which = 0; which < 2; which++) {
      const list = which === 0 ? pending : staged;
      for (let i = which === 0 ? again : 0; i < list.length; i++) {
        const token = list[i]!;
        const slots = taken[token]!;
        for (let place = 0; place < slots; place++, position++) {
          const first = which === 1 && position === published;
          this.#checkDescriptor(position, token, kind[token]!, place, first);
        }
      }
    }
    for (; position < this.#size; position++) this.#checkFree(position);
    if (deviceUsed + window.length > this.#size) {
      throw new Violation("packed distance", "more is in flight than fits");
    }
  }

  #checkUsed({ used, done, taken, written }: WalkModel): number {
    const u16 = this.#u16;
    const what = "ring memory";
    let position = 0;
    for (let which = 0; which < 2; which++) {
      const list = which === 0 ? used : done;
      for (let i = 0; i < list.length; i++) {
        const token = list[i]!;
        const at = this.#slot(position);
        const flags = u16[at * 8 + 7]!;
        const bytes = written[token]!;
        expectIs(what, "used id", u16[at * 8 + 6]!, token);
        expectIs(what, "used length", this.#u32[at * 4 + 2]!, bytes);
        if (which === 1 && i === 0) {
          // publish() stores its flags.
          expectIs(
            what,
            "used flags",
            flags & AVAIL_USED,
            this.#availBits(position),
          );
        } else {
          expectIs(
            what,
            "used flags",
            flags & (AVAIL_USED | F_WRITE),
            this.#usedBits(position) | (bytes === 0 ? 0 : F_WRITE),
          );
        }
        position++;
        for (let left = taken[token]! - 1; left > 0; left--, position++) {
          const flags = u16[this.#slot(position) * 8 + 7]! & AVAIL_USED;
          expectIs(what, "a passed one", flags, this.#availBits(position));
        }
      }
    }
    return position;
  }

  #checkFree(position: number): void {
    const flags = this.#u16[this.#slot(position) * 8 + 7]! & AVAIL_USED;
    if (
      flags !== this.#freeBits(position, 0) &&
      flags !== this.#freeBits(position, 1)
    ) throw new Violation("ring memory", `a free descriptor has ${flags}`);
  }

  #checkDescriptor(
    position: number,
    token: number,
    kind: number,
    place: number,
    first: boolean,
  ): void {
    const at = this.#slot(position);
    const u16 = this.#u16;
    const u32 = this.#u32;
    const list = this.#lists[token]![kind - 1]!;
    const what = "ring memory";
    if (kind === 2 && this.#tables !== null) {
      if (first) this.#checkFree(position);
      const flags = first
        ? u32[at * 4 + 3]! >>> 16
        : this.#availBits(position) | F_INDIRECT;
      this.#tables.check(token, list, u32, at * 4, (token | flags << 16) >>> 0);
      return;
    }
    expectIs(what, "low address", u32[at * 4]!, list.address[place]!);
    expectIs(what, "high address", u32[at * 4 + 1]!, 0);
    expectIs(what, "length", u32[at * 4 + 2]!, list.length[place]!);
    const id = place + 1 === kind ? token : ~token & 0xffff;
    expectIs(what, "id", u16[at * 8 + 6]!, id);
    if (first) return this.#checkFree(position);
    expectIs(
      what,
      "flags",
      u16[at * 8 + 7]!,
      this.#availBits(position) | this.#flags(token, kind, place),
    );
  }

  #checkDriver(model: WalkModel, driver: PackedDriverFields): void {
    const { kind, taken: slotsOf, staged } = model;
    const what = "ids";
    let taken = 0;
    let free = this.#size;
    let inFlight = 0;
    for (let id = 0; id < this.#size; id++) {
      const slots = slotsOf[id]!;
      expectIs(what, "slots", driver.$slots[id]!, slots);
      if (slots === 0) continue;
      taken |= 1 << id;
      free -= slots;
      inFlight++;
      const room = roomOf(this.#lists[id]![kind[id]! - 1]!);
      expectIs(what, "room", driver.$room[id]!, room);
      if (
        (driver.$batchOf[id] === driver.$batch) !== staged.includes(id)
      ) throw new Violation(what, `${id} is staged, or is not, to one side`);
    }
    expectIs(what, "free descriptors", driver.$free, free);
    expectIs(what, "in flight", driver.$inFlight, inFlight);
    for (let i = this.#size - inFlight - 1; i >= 0; i--) {
      const id = driver.$ids[i]!;
      if (id >= this.#size || (taken >>> id & 1) !== 0) {
        throw new Violation(what, `${id} is free, but taken or none`);
      }
      taken |= 1 << id;
    }
  }

  #checkInFlight(
    model: WalkModel,
    device: PackedDeviceFields,
    deviceUsed: number,
  ): void {
    const { kind, taken, kept, intact, fetched, window } = model;
    const book = device.$book;
    const what = "in flight";
    let rows = 0;
    for (let id = 0; id < this.#size; id++) {
      if (book[id * 4] !== 0) rows++;
    }
    expectIs(what, "rows", rows, fetched.length);
    const copies = device.$copies.entries();
    const inFlight = model.inFlight;
    let count = 0;
    let waiting = device.$nextRestored;
    for (let i = 0; i < inFlight; i++) {
      const token = model.inFlightAt(i);
      const slots = taken[token]!;
      const list = this.#lists[token]![kind[token]! - 1]!;
      if (i < fetched.length) {
        expectIs(what, "slots", book[token * 4]!, slots);
        expectIs(what, "room", book[token * 4 + 2]!, roomOf(list));
        const start = book[token * 4 + 1]!;
        expectIs(
          what,
          "from a state",
          start === NOT_IN_RING ? 1 : 0,
          kept[token]!,
        );
      } else if (
        !sameBuffer(
          device.$restored[waiting++],
          this.#kept[token]![kind[token]! - 1]!,
        )
      ) throw new Violation(what, `${token} is restored as another one`);
      if (kept[token] === 1 || intact[token] === 0) {
        count++;
        const copy = copies.next();
        if (
          copy.done === true || copy.value[0] !== token ||
          !this.#sameCopy(copy.value[1], token, list, slots, kept[token]!)
        ) throw new Violation(what, `${token} was not copied as it was`);
        continue;
      }
      const start = this.#slot(deviceUsed + window.indexOf(token));
      expectIs(what, "start", book[token * 4 + 1]!, start);
      expectIs(what, "owner", book[start * 4 + 3]!, token + 1);
    }
    expectIs(what, "copies", device.$copies.size, count);
    expectIs(what, "copied", device.$copied, count);
    expectIs(what, "to be restored", device.$restored.length, waiting);
    expectIs(what, "left to be restored", device.$restoredLeft, model.again);
  }

  /** Takes a state back, as the given member. */
  load(
    from: FormReader,
    model: WalkModel,
    member: Member,
    driver: PackedDriverFields,
    device: PackedDeviceFields,
  ): void {
    const { used, done, pending, staged, again, kind, taken, written } = model;
    this.#base = member.base;
    this.#wrap = member.wrap;
    const usedAt = model.slots(used);
    const deviceUsed = usedAt + model.slots(done);
    const avail = deviceUsed + model.window.length;
    let published = avail + model.slots(pending);
    for (let i = 0; i < again; i++) published -= taken[pending[i]!]!;
    const next = published + model.slots(staged);
    driver.$used = member.base;
    driver.$usedBits = this.#usedBits(0);
    driver.$next = this.#slot(next);
    driver.$nextBits = this.#availBits(next);
    driver.$free = this.#size - next;
    driver.$stagedSlots = next - published;
    driver.$stagedFirst = POISON_16;
    driver.$stagedFlags = POISON_16;
    if (next > published) {
      const token = staged[0]!;
      driver.$stagedFirst = this.#slot(published);
      driver.$stagedFlags = this.#availBits(published) |
        this.#flags(token, kind[token]!, 0);
    }
    driver.$usedLength = POISON_32;
    driver.$fault = null;
    device.$avail = this.#slot(avail);
    device.$availBits = this.#availBits(avail);
    device.$outstanding = avail - deviceUsed;
    device.$used = this.#slot(deviceUsed);
    device.$usedBits = this.#usedBits(deviceUsed);
    device.$stagedSlots = deviceUsed - usedAt;
    device.$stagedFirst = POISON_16;
    device.$stagedFlags = POISON_16;
    if (deviceUsed > usedAt) {
      device.$stagedFirst = this.#slot(usedAt);
      device.$stagedFlags = this.#usedBits(usedAt) |
        (written[done[0]!] === 0 ? 0 : F_WRITE);
    }
    device.$batch = POISON_16;
    device.$batchBits = POISON_16;
    device.$broken = null;
    const flags = from.next();
    this.#events[1] = flags & 3;
    this.#deviceEvents[1] = flags >>> 2 & 3;
    driver.$eventFlags = flags >>> 4 & 3;
    device.$eventFlags = (flags >>> 6) - 1;
    device.$movedValid = from.next() === 1;
    driver.$moved = this.#takeDecision(from, published, this.#deviceEvents);
    const moved = this.#takeDecision(from, usedAt, this.#events);
    device.$moved = device.$movedValid ? moved : POISON_16;
    this.#loadRing(model, member.bits, published);
    this.#loadDriver(model, member.names, driver);
    this.#loadInFlight(model, device, deviceUsed);
  }

  #takeDecision(
    from: FormReader,
    position: number,
    event: Uint16Array,
  ): number {
    const decision = from.next();
    event[0] = POISON_16;
    if (!this.#eventIdx) return decision;
    const undecided = decision >>> 2;
    if (event[1] !== EVENT_DESC) return undecided;
    const size = this.#size;
    // One that was passed lies right behind what is undecided, or, where all of that is no matter, behind one.
    const where = decision & 3;
    const behind = where === AHEAD
      ? 0
      : where === DUE || undecided > size
      ? 1
      : undecided + 1;
    const at = position - behind + 2 * size;
    event[0] = this.#slot(at) | this.#wrapAt(at) << 15;
    return undecided;
  }

  #loadRing(model: WalkModel, bits: number, published: number): void {
    const { kind, taken, window, pending, staged, again, used, done } = model;
    const u16 = this.#u16;
    const u32 = this.#u32.fill(POISON_32);
    this.#tables?.clear();
    // The device resolves a table when it saves the buffer, wherever its descriptor is.
    for (let i = 0; this.#tables !== null && i < model.inFlight; i++) {
      const token = model.inFlightAt(i);
      if (kind[token] === 2) {
        this.#tables.loadEntries(token, this.#lists[token]![1]!);
      }
    }
    let position = 0;
    for (let which = 0; which < 2; which++) {
      const list = which === 0 ? used : done;
      for (let i = 0; i < list.length; i++) {
        const token = list[i]!;
        const at = this.#slot(position);
        const bytes = model.written[token]!;
        u32[at * 4 + 2] = bytes;
        u16[at * 8 + 6] = token;
        u16[at * 8 + 7] = which === 1 && i === 0
          ? this.#availBits(position) | POISON_FLAGS
          : this.#usedBits(position) | (POISON_FLAGS & ~F_WRITE) |
            (bytes === 0 ? 0 : F_WRITE);
        position++;
        for (let left = taken[token]! - 1; left > 0; left--, position++) {
          u16[this.#slot(position) * 8 + 7] = this.#availBits(position) |
            POISON_FLAGS;
        }
      }
    }
    for (let i = 0; i < window.length; i++, position++) {
      const token = window[i]!;
      if (token < 0) {
        u16[this.#slot(position) * 8 + 7] = this.#availBits(position) |
          POISON_FLAGS;
        continue;
      }
      const place = i > 0 && window[i - 1] === token ? 1 : 0;
      this.#loadDescriptor(position, token, kind[token]!, place);
    }
    for (let which = 0; which < 2; which++) {
      const list = which === 0 ? pending : staged;
      for (let i = which === 0 ? again : 0; i < list.length; i++) {
        const token = list[i]!;
        const slots = taken[token]!;
        for (let place = 0; place < slots; place++, position++) {
          this.#loadDescriptor(position, token, kind[token]!, place);
        }
      }
    }
    // Where buffers of two descriptors came by, some were passed over.
    const passed = this.#chains === 2 ? bits : 0;
    if (staged.length > 0) {
      u16[this.#slot(published) * 8 + 7] =
        this.#freeBits(published, passed & 1) | POISON_FLAGS;
    }
    for (; position < this.#size; position++) {
      u16[this.#slot(position) * 8 + 7] =
        this.#freeBits(position, passed >>> position & 2) | POISON_FLAGS;
    }
  }

  #loadDescriptor(
    position: number,
    token: number,
    kind: number,
    place: number,
  ): void {
    const at = this.#slot(position);
    const list = this.#lists[token]![kind - 1]!;
    if (kind === 2 && this.#tables !== null) {
      const flags = this.#availBits(position) | F_INDIRECT;
      this.#tables.load(token, list, this.#u32, at * 4, token | flags << 16);
      return;
    }
    this.#u32[at * 4] = list.address[place]!;
    this.#u32[at * 4 + 1] = 0;
    this.#u32[at * 4 + 2] = list.length[place]!;
    this.#u16[at * 8 + 6] = place + 1 === kind ? token : ~token;
    this.#u16[at * 8 + 7] = this.#availBits(position) |
      this.#flags(token, kind, place);
  }

  #loadDriver(
    { kind, taken, staged }: WalkModel,
    names: Uint8Array,
    driver: PackedDriverFields,
  ): void {
    const size = this.#size;
    let inFlight = 0;
    driver.$batch = 1;
    driver.$batchOf.fill(0);
    for (let id = 0; id < size; id++) {
      const slots = taken[id]!;
      driver.$slots[id] = slots;
      if (slots === 0) {
        driver.$room[id] = -1;
        continue;
      }
      inFlight++;
      driver.$room[id] = roomOf(this.#lists[id]![kind[id]! - 1]!);
    }
    for (let i = 0; i < staged.length; i++) driver.$batchOf[staged[i]!] = 1;
    driver.$inFlight = inFlight;
    const ids = driver.$ids.fill(POISON_16);
    for (let i = inFlight; i < size; i++) ids[size - 1 - i] = names[i]!;
  }

  #loadInFlight(
    model: WalkModel,
    device: PackedDeviceFields,
    deviceUsed: number,
  ): void {
    const { kind, taken, kept, intact, fetched, again, gap, window } = model;
    const book = device.$book.fill(0);
    const copies = device.$copies;
    if (copies.size > 0) copies.clear();
    const restored: InFlightBuffer[] = [];
    const inFlight = fetched.length + again;
    // Where the ring stood when the last of the restored ones was fetched; not to be known behind a copied one.
    let stood = deviceUsed + window.length;
    for (let i = 0; i < inFlight; i++) {
      const token = model.inFlightAt(i);
      const list = this.#lists[token]![kind[token]! - 1]!;
      if (i < fetched.length) {
        book[token * 4] = taken[token]!;
        book[token * 4 + 2] = roomOf(list);
        if (kept[token] === 1) book[token * 4 + 1] = NOT_IN_RING;
      }
      if (kept[token] === 1) {
        restored.push(this.#kept[token]![kind[token]! - 1]!);
        if (gap[token] === 1) restored.push(PUSHED);
      } else if (i === 0 || kept[model.inFlightAt(i - 1)] === 1) {
        const at = window.indexOf(token);
        stood = at < 0 ? 0 : deviceUsed + at;
      }
      if (kept[token] === 1 || intact[token] === 0) {
        copies.set(token, {
          slots: taken[token]!,
          table: this.#copyOf(token, list, kept[token]!),
        });
      } else {
        const start = this.#slot(deviceUsed + window.indexOf(token));
        book[token * 4 + 1] = start;
        book[start * 4 + 3] = token + 1;
      }
    }
    device.$copied = copies.size;
    device.$inFlight = fetched.length;
    device.$restored = restored;
    device.$nextRestored = restored.length - again;
    device.$restoredLeft = again;
    device.$restoredAvail = this.#slot(stood);
    device.$restoredBits = this.#availBits(stood);
    device.$pastRestored = false;
  }

  // As it stood in the ring; one that a state brought has its segments instead of a table.
  #copyOf(token: number, list: BufferList, kept: number): Uint32Array {
    const table = new Uint32Array(
      4 * (kept === 0 && this.#isTable(list) ? 1 : list.count),
    );
    if (table.length < list.count * 4) {
      this.#tables!.load(token, list, table, 0, F_INDIRECT << 16);
      return table;
    }
    for (let i = 0; i < list.count; i++) {
      table[i * 4] = list.address[i]!;
      table[i * 4 + 2] = list.length[i]!;
      table[i * 4 + 3] = i < list.readable ? 0 : F_WRITE << 16;
    }
    return table;
  }

  #isTable(list: BufferList): boolean {
    return list.count > 1 && this.#tables !== null;
  }

  #sameCopy(
    copy: { slots: number; table: Uint32Array },
    token: number,
    list: BufferList,
    slots: number,
    kept: number,
  ): boolean {
    const { table } = copy;
    const expected = this.#copyOf(token, list, kept);
    if (copy.slots !== slots || table.length !== expected.length) return false;
    for (let i = 0; i < table.length; i++) {
      const bits = i % 4 === 3 ? (F_WRITE | F_INDIRECT) << 16 : -1;
      if (((table[i]! ^ expected[i]!) & bits) !== 0) return false;
    }
    return true;
  }
}
