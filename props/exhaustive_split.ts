import type { GuestMemory } from "../ring/memory.ts";
import type { BufferList, InFlightBuffer, QueueConfig } from "../ring/queue.ts";
import type { Member } from "./exhaustive_draw.ts";
import type { FormReader, FormWriter, WalkModel } from "./exhaustive_model.ts";
import type {
  SplitDeviceFields,
  SplitDriverFields,
} from "./exhaustive_open.ts";
import type { Tables } from "./exhaustive_tables.ts";
import { expectIs, Violation } from "./violation.ts";

/** What dead memory holds: no address, no length and no index that anything would accept. */
const POISON_16 = 0xdead;
const POISON_32 = 0xdeaddead;
const FREE = -1;
const WAITING = -2;
const F_NEXT = 1;
const F_WRITE = 2;
const F_INDIRECT = 4;
// Where the other side's event lies.
const PASSED = 0;
const DUE = 1;
const AHEAD = 2;

/** A restored buffer that was pushed: nobody looks at it. */
export const PUSHED: InFlightBuffer = {
  id: POISON_16,
  slots: POISON_16,
  descriptors: [],
};

/** What a buffer looks like in a saved state. */
export function keptBuffer(
  token: number,
  slots: number,
  list: BufferList,
): InFlightBuffer {
  const descriptors: InFlightBuffer["descriptors"] = [];
  for (let i = 0; i < list.count; i++) {
    descriptors.push({
      addr: list.address[i]!,
      len: list.length[i]!,
      writable: i >= list.readable,
    });
  }
  return { id: token, slots, descriptors };
}

/** Whether two of them are the same. */
export function sameBuffer(
  a: InFlightBuffer | undefined,
  b: InFlightBuffer,
): boolean {
  if (
    a === undefined || a.id !== b.id || a.slots !== b.slots ||
    a.descriptors.length !== b.descriptors.length
  ) return false;
  for (let i = 0; i < b.descriptors.length; i++) {
    const x = a.descriptors[i]!;
    const y = b.descriptors[i]!;
    if (x.addr !== y.addr || x.len !== y.len || x.writable !== y.writable) {
      return false;
    }
  }
  return true;
}

/**
 * Canonical form of a split pair, behind that of the model.
 *
 * What the model and the names tell is not in it, but is compared with them in every state: all indices; the entries
 * of the available ring from the published used index on and those of the used ring from the reclaimed one on; the
 * descriptors, lengths and links of every buffer in flight; the list of free descriptors, which has all
 * others once; which buffers the device has in flight, in which order, and what it keeps of restored ones.
 *
 * What is left: how far each side has looked ahead in the other's ring, the flags, and for each direction what a
 * decision about a notification depends on.
 *
 * - Published and undecided: the index of the last decision counts only as the lower end of a range in which an event
 *   may lie. An event is armed where its side stands, and no side ever stands before the published used index
 *   (kicks; a rewind goes back to there) or the reclaimed one (interrupts). So whatever lies below is put there.
 * - An event lies behind that range, in it, or at what will be published next; more no decision can see. Behind
 *   it, it would be met again after 65536 buffers without arming, and then cause a needless notification, which
 *   the walk does not see.
 *
 * Dead words are overwritten with poison when a state is made of its form, so that an implementation that reads
 * one all the same is found out: the rest of both rings, descriptors that are in no chain, entries of the available
 * ring whose buffer was used (no sequence of buffers in flight can be found there), `usedLength`, which is
 * looked at right after `reclaim()`, rows of heads that are no buffer's, the last decision where there is none, and
 * events without VIRTIO_F_EVENT_IDX.
 */
export class SplitForm {
  readonly #size: number;
  readonly #mask: number;
  readonly #eventIdx: boolean;
  readonly #lists: readonly (readonly BufferList[])[];
  readonly #tables: Tables | null;
  readonly #kept: InFlightBuffer[][] = [];
  readonly #table: Uint32Array;
  readonly #avail: Uint16Array;
  readonly #used: Uint16Array;
  readonly #usedEntries: Uint32Array;

  /**
   * @param lists By token: a buffer of one segment and one of two.
   * @param tables Indirect tables for those of two, or null.
   */
  constructor(
    memory: GuestMemory,
    config: QueueConfig,
    lists: readonly (readonly BufferList[])[],
    tables: Tables | null,
  ) {
    const { size, descriptorArea, driverArea, deviceArea } = config;
    this.#size = size;
    this.#mask = size - 1;
    this.#eventIdx = config.eventIdx === true;
    this.#lists = lists;
    this.#tables = tables;
    for (let token = 0; token < size; token++) {
      this.#kept.push(
        lists[token]!.map((list, i) =>
          keptBuffer(token, tables === null ? i + 1 : 1, list)
        ),
      );
    }
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

  /**
   * Checks all that follows from the model, and puts the rest.
   *
   * @throws {Violation} where the sides or the memory are not what they must be.
   */
  save(
    out: FormWriter,
    model: WalkModel,
    driver: SplitDriverFields,
    device: SplitDeviceFields,
  ): void {
    this.#checkIndices(model, driver, device);
    this.#checkRings(model, driver, device);
    this.#checkBuffers(model, driver);
    this.#checkInFlight(model, device);
    const avail = this.#avail;
    const used = this.#used;
    const seenUsed = (driver.$usedIdx - driver.$lastUsedIdx) & 0xffff;
    const seenAvail = (device.$availIdx - device.$lastAvailIdx) & 0xffff;
    if (
      seenUsed > model.used.length ||
      seenAvail > model.pending.length - model.again
    ) {
      throw new Violation(
        "split distance",
        `the driver looked ${seenUsed} ahead, the device ${seenAvail}`,
      );
    }
    out.put(seenUsed << 4 | seenAvail);
    if (avail[0]! > 1 || used[0]! > 1) {
      throw new Violation("flags", `they are ${avail[0]} and ${used[0]}`);
    }
    out.put(
      avail[0]! | used[0]! << 1 | (driver.$kickedValid ? 4 : 0) |
        (driver.$interruptsOff ? 8 : 0) | (device.$signalledValid ? 16 : 0) |
        (device.$kicksOff ? 32 : 0),
    );
    this.#putDecision(
      out,
      driver.$availIdx,
      driver.$kicked,
      device.$usedIdx,
      used[2 + 4 * this.#size]!,
    );
    this.#putDecision(
      out,
      device.$usedIdx,
      device.$signalledValid ? device.$signalled : device.$usedIdx,
      driver.$lastUsedIdx,
      avail[2 + this.#size]!,
    );
  }

  // `index` is published, `decided` the last one that a decision saw, `lowest` where an event can be armed at least.
  #putDecision(
    out: FormWriter,
    index: number,
    decided: number,
    lowest: number,
    event: number,
  ): void {
    const undecided = (index - decided) & 0xffff;
    if (!this.#eventIdx) {
      out.put(undecided === 0 ? 0 : 1);
      return;
    }
    const behind = (index - event) & 0xffff;
    if (behind >= 0x8000) {
      throw new Violation("events", `one is ${-behind & 0xffff} ahead`);
    }
    const room = Math.max(1, (index - lowest) & 0xffff);
    out.put(
      (undecided === 0 ? 0 : Math.min(undecided, room)) << 2 |
        (behind === 0 ? AHEAD : behind <= undecided ? DUE : PASSED),
    );
  }

  #checkIndices(
    { pending, again, fetched, done, used, staged }: WalkModel,
    driver: SplitDriverFields,
    device: SplitDeviceFields,
  ): void {
    const availIdx = this.#avail[1]!;
    const usedIdx = this.#used[1]!;
    const what = "split distance";
    const held = fetched.length + done.length;
    const ahead = (availIdx - device.$lastAvailIdx) & 0xffff;
    if (ahead > this.#size) {
      throw new Violation(what, `avail.idx - last_avail is ${ahead}`);
    }
    expectIs(
      what,
      "avail.idx - used.idx",
      (availIdx - usedIdx) & 0xffff,
      pending.length + held,
    );
    expectIs(
      what,
      "last_avail - used.idx",
      (device.$lastAvailIdx - usedIdx) & 0xffff,
      again + held,
    );
    expectIs(
      what,
      "used.idx - last used",
      (usedIdx - driver.$lastUsedIdx) & 0xffff,
      used.length,
    );
    expectIs(what, "device's used", device.$usedIdx, usedIdx);
    expectIs(what, "driver's avail", driver.$availIdx, availIdx);
    expectIs(
      what,
      "driver's staged",
      (driver.$nextAvailIdx - availIdx) & 0xffff,
      staged.length,
    );
    expectIs(
      what,
      "device's staged",
      (device.$nextUsedIdx - usedIdx) & 0xffff,
      done.length,
    );
  }

  #checkRings(
    { window, pending, again, staged, used, done, written }: WalkModel,
    driver: SplitDriverFields,
    device: SplitDeviceFields,
  ): void {
    const mask = this.#mask;
    const avail = this.#avail;
    let index = device.$usedIdx;
    const lists = [window, pending, staged];
    for (let which = 0; which < 3; which++) {
      const list = lists[which]!;
      for (let i = which === 1 ? again : 0; i < list.length; i++) {
        const token = list[i]!;
        if (token >= 0) {
          expectIs(
            "available ring",
            "an entry",
            avail[2 + (index & mask)]!,
            token,
          );
        }
        index++;
      }
    }
    index = driver.$lastUsedIdx;
    for (let which = 0; which < 2; which++) {
      const list = which === 0 ? used : done;
      for (let i = 0; i < list.length; i++, index++) {
        const token = list[i]!;
        const at = (index & mask) * 2;
        expectIs("used ring", "an id", this.#usedEntries[at]!, token);
        expectIs(
          "used ring",
          "a length",
          this.#usedEntries[at + 1]!,
          written[token]!,
        );
      }
    }
  }

  #checkBuffers(
    { kind, staged, taken: slotsOf }: WalkModel,
    driver: SplitDriverFields,
  ): void {
    const size = this.#size;
    const words = this.#table;
    const what = "descriptors";
    let taken = 0;
    for (let head = 0; head < size; head++) {
      const slots = slotsOf[head]!;
      if (slots === 0) {
        expectIs("exactly once", "room", driver.$limit[head]!, FREE);
        continue;
      }
      const list = this.#lists[head]![kind[head]! - 1]!;
      const table = this.#tables === null || list.count === 1
        ? null
        : this.#tables;
      let index = head;
      for (let i = 0; i < slots; i++) {
        if (index >= size || (taken >>> index & 1) !== 0) {
          throw new Violation(
            what,
            `${index} is taken twice or does not exist`,
          );
        }
        taken |= 1 << index;
        if (table !== null) {
          table.check(head, list, words, index * 4, F_INDIRECT);
          break;
        }
        const at = index * 4;
        expectIs(what, "low address", words[at]!, list.address[i]!);
        expectIs(what, "high address", words[at + 1]!, 0);
        expectIs(what, "length", words[at + 2]!, list.length[i]!);
        const more = i + 1 < slots;
        const link = words[at + 3]! >>> 16;
        expectIs(
          what,
          "flags",
          words[at + 3]! & 0xffff,
          (i < list.readable ? 0 : F_WRITE) | (more ? F_NEXT : 0),
        );
        if (!more) break;
        expectIs(what, "link", driver.$next[index]!, link);
        index = link;
      }
      expectIs(what, "last one", driver.$tail[head]!, index);
      expectIs(what, "count", driver.$slots[head]!, slots);
      expectIs(what, "room", driver.$limit[head]!, roomOf(list));
      if (
        (driver.$order[head]! >= driver.$publishedCount) !==
          staged.includes(head)
      ) throw new Violation(what, `${head} is staged, or is not, to one side`);
    }
    let index = driver.$freeHead;
    for (let left = driver.$free; left > 0; left--) {
      if (index >= size || (taken >>> index & 1) !== 0) {
        throw new Violation(what, `${index} is free, but taken or none`);
      }
      taken |= 1 << index;
      index = driver.$next[index]!;
    }
    expectIs(what, "all", taken, (1 << size) - 1);
  }

  #checkInFlight(model: WalkModel, device: SplitDeviceFields): void {
    const { kind, kept, fetched } = model;
    const what = "in flight";
    const limit = device.$limit;
    const count = model.inFlight;
    let order = -1;
    let free = this.#size - count;
    for (let head = 0; head < this.#size; head++) {
      if (limit[head] === FREE) free--;
    }
    expectIs(what, "not with the device", free, 0);
    for (let i = 0; i < count; i++) {
      const head = model.inFlightAt(i);
      const room = roomOf(this.#lists[head]![kind[head]! - 1]!);
      expectIs(
        what,
        "room",
        limit[head]!,
        i < fetched.length ? room : WAITING,
      );
      const number = device.$order[head]!;
      if (number <= order) {
        throw new Violation(what, `${head} is not in the order of its fetch`);
      }
      order = number;
      const buffer = device.$restored[number];
      expectIs(
        what,
        "from a state",
        buffer === undefined ? 0 : 1,
        kept[head]!,
      );
      if (
        buffer !== undefined &&
        !sameBuffer(buffer, this.#kept[head]![kind[head]! - 1]!)
      ) throw new Violation(what, `a state has ${JSON.stringify(buffer)}`);
    }
    expectIs(what, "waiting", device.$waiting, model.again);
  }

  /** Takes a state back, as the given member. */
  load(
    from: FormReader,
    model: WalkModel,
    member: Member,
    driver: SplitDriverFields,
    device: SplitDeviceFields,
  ): void {
    const { staged, pending, fetched, done, used, again } = model;
    const avail = this.#avail.fill(POISON_16);
    const usedRing = this.#used.fill(POISON_16);
    const looked = from.next();
    const flags = from.next();
    const lastUsed = member.base;
    const usedIdx = (lastUsed + used.length) & 0xffff;
    const lastAvail = usedIdx + done.length + fetched.length + again;
    const availIdx = (lastAvail + pending.length - again) & 0xffff;
    avail[0] = flags & 1;
    avail[1] = availIdx;
    usedRing[0] = flags >>> 1 & 1;
    usedRing[1] = usedIdx;
    driver.$lastUsedIdx = lastUsed;
    driver.$usedIdx = (lastUsed + (looked >>> 4)) & 0xffff;
    driver.$availIdx = availIdx;
    driver.$nextAvailIdx = (availIdx + staged.length) & 0xffff;
    driver.$kickedValid = (flags & 4) !== 0;
    driver.$interruptsOff = (flags & 8) !== 0;
    device.$signalledValid = (flags & 16) !== 0;
    device.$kicksOff = (flags & 32) !== 0;
    device.$lastAvailIdx = lastAvail & 0xffff;
    device.$availIdx = (lastAvail + (looked & 15)) & 0xffff;
    device.$usedIdx = usedIdx;
    device.$nextUsedIdx = (usedIdx + done.length) & 0xffff;
    device.$batchIdx = POISON_16;
    let decision = from.next();
    driver.$kicked = (availIdx - (this.#undecided(decision))) & 0xffff;
    if (this.#eventIdx) {
      usedRing[2 + 4 * this.#size] = availIdx - behind(decision, member.bits);
    }
    decision = from.next();
    device.$signalled = device.$signalledValid
      ? (usedIdx - this.#undecided(decision)) & 0xffff
      : POISON_16;
    if (this.#eventIdx) {
      avail[2 + this.#size] = usedIdx - behind(decision, member.bits >>> 4);
    }
    driver.$fault = null;
    device.$fault = null;
    driver.$usedLength = POISON_32;
    this.#loadRings(model, lastUsed, usedIdx);
    this.#loadBuffers(model, member.names, driver);
    this.#loadInFlight(model, device);
  }

  #undecided(decision: number): number {
    return this.#eventIdx ? decision >>> 2 : decision;
  }

  #loadRings(
    { window, pending, again, staged, used, done, written }: WalkModel,
    lastUsed: number,
    usedIdx: number,
  ): void {
    const mask = this.#mask;
    const avail = this.#avail;
    let index = usedIdx;
    for (let i = 0; i < window.length; i++, index++) {
      if (window[i]! >= 0) avail[2 + (index & mask)] = window[i]!;
    }
    for (let i = again; i < pending.length; i++, index++) {
      avail[2 + (index & mask)] = pending[i]!;
    }
    for (let i = 0; i < staged.length; i++, index++) {
      avail[2 + (index & mask)] = staged[i]!;
    }
    index = lastUsed;
    for (let which = 0; which < 2; which++) {
      const list = which === 0 ? used : done;
      for (let i = 0; i < list.length; i++, index++) {
        const at = (index & mask) * 2;
        this.#usedEntries[at] = list[i]!;
        this.#usedEntries[at + 1] = written[list[i]!]!;
      }
    }
  }

  #loadBuffers(
    { kind, taken, used, done, fetched, pending, staged }: WalkModel,
    names: Uint8Array,
    driver: SplitDriverFields,
  ): void {
    const size = this.#size;
    const table = this.#table.fill(POISON_32);
    this.#tables?.clear();
    const next = driver.$next.fill(POISON_16);
    driver.$tail.fill(POISON_16);
    driver.$slots.fill(POISON_16);
    driver.$limit.fill(FREE);
    driver.$order.fill(0);
    driver.$publishedCount = 1;
    driver.$addedCount = 1 + staged.length;
    for (let i = 0; i < staged.length; i++) driver.$order[staged[i]!] = 1 + i;
    let rank = 0;
    const count = used.length + done.length + fetched.length +
      pending.length + staged.length;
    for (let left = count; left > 0; left--) {
      const head = names[rank]!;
      const slots = taken[head]!;
      const list = this.#lists[head]![kind[head]! - 1]!;
      driver.$slots[head] = slots;
      driver.$limit[head] = roomOf(list);
      if (this.#tables !== null && list.count > 1) {
        rank++;
        driver.$tail[head] = head;
        this.#tables.load(head, list, table, head * 4, F_INDIRECT);
        continue;
      }
      for (let i = 0; i < slots; i++) {
        const index = names[rank++]!;
        const at = index * 4;
        let flags = i < list.readable ? 0 : F_WRITE;
        if (i + 1 < slots) {
          flags |= F_NEXT | names[rank]! << 16;
          next[index] = names[rank]!;
        } else driver.$tail[head] = index;
        table[at] = list.address[i]!;
        table[at + 1] = 0;
        table[at + 2] = list.length[i]!;
        table[at + 3] = flags;
      }
    }
    driver.$free = size - rank;
    driver.$freeHead = rank < size ? names[rank]! : size;
    for (; rank < size; rank++) {
      next[names[rank]!] = rank + 1 < size ? names[rank + 1]! : size;
    }
  }

  #loadInFlight(model: WalkModel, device: SplitDeviceFields): void {
    const { kind, kept, again, gap } = model;
    device.$limit.fill(FREE);
    device.$order.fill(0);
    const restored: InFlightBuffer[] = [];
    const count = model.inFlight;
    const fetched = count - again;
    let number = 0;
    for (let i = 0; i < count; i++) {
      const head = model.inFlightAt(i);
      const list = this.#lists[head]![kind[head]! - 1]!;
      device.$limit[head] = i < fetched ? roomOf(list) : WAITING;
      device.$order[head] = number++;
      if (kept[head] === 1) {
        restored.push(this.#kept[head]![kind[head]! - 1]!);
        if (gap[head] === 1) restored.push(PUSHED);
      }
      if (gap[head] === 1) number++;
    }
    device.$restored = restored;
    device.$fetched = number;
    device.$waiting = again;
    device.$restoredNext = restored.length - again;
  }
}

/** Bytes that a device may write to a buffer, which are all in its last segment. */
export function roomOf(list: BufferList): number {
  return list.length[list.count - 1]!;
}

// How far an event lies behind what is published; one that is due or passed is drawn.
function behind(decision: number, bits: number): number {
  const undecided = decision >>> 2;
  switch (decision & 3) {
    case AHEAD:
      return 0;
    case DUE:
      return 1 + bits % undecided;
    default:
      return undecided + 1 + bits % 3;
  }
}
