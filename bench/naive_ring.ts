/**
 * Virtqueues as one would write them down first: an object a descriptor, DataView for every field, each
 * buffer published by itself. What the benchmarks compare with; only what they need of it is here.
 *
 * @module
 */

const F_NEXT = 1;
const F_WRITE = 2;
const F_INDIRECT = 4;
const F_AVAIL = 0x80;
const F_USED = 0x8000;

/** Where a ring lies in its memory, in bytes. */
export type NaivePlace = {
  buffer: ArrayBufferLike;
  size: number;
  descriptors: number;
  driver: number;
  device: number;
};

/** A piece of a buffer. */
export type NaiveSegment = {
  address: number;
  length: number;
  writable: boolean;
};

/** A buffer that was fetched. */
export type NaiveBuffer = {
  id: number;
  slots: number;
  segments: NaiveSegment[];
};

/** The device side that is compared with. */
export interface NaiveDevice {
  /** Fetches the next buffer. */
  pop(): NaiveBuffer | null;
  /** Completes a buffer and publishes that. */
  push(buffer: NaiveBuffer, written: number): void;
  /** Whether what was completed since the last time passed the driver's event. */
  needsInterrupt(): boolean;
}

/** The driver side that is compared with. */
export interface NaiveDriver {
  /** Offers a buffer and publishes that; its id. */
  add(segments: readonly NaiveSegment[]): number;
  /** Whether what was offered since the last time passed the device's event. */
  needsKick(): boolean;
  /** Takes a used buffer back. */
  reclaim(): { id: number; length: number } | null;
}

type Descriptor = {
  address: number;
  length: number;
  /** Bytes 12 and 13: flags of a split descriptor, id of a packed one. */
  flags: number;
  /** Bytes 14 and 15: the next one of a split descriptor, flags of a packed one. */
  next: number;
};

function read(view: DataView, at: number): Descriptor {
  return {
    address: Number(view.getBigUint64(at, true)),
    length: view.getUint32(at + 8, true),
    flags: view.getUint16(at + 12, true),
    next: view.getUint16(at + 14, true),
  };
}

function write(
  view: DataView,
  at: number,
  { address, length, flags, next }: Descriptor,
): void {
  view.setBigUint64(at, BigInt(address), true);
  view.setUint32(at + 8, length, true);
  view.setUint16(at + 12, flags, true);
  view.setUint16(at + 14, next, true);
}

function toSegment({ address, length }: Descriptor, flags: number) {
  return { address, length, writable: (flags & F_WRITE) !== 0 };
}

function eventPassed(event: number, now: number, before: number): boolean {
  return ((now - event - 1) & 0xffff) < ((now - before) & 0xffff);
}

/** Device side of a split queue. */
export class NaiveSplitDevice implements NaiveDevice {
  readonly #place: NaivePlace;
  readonly #view: DataView;
  readonly #words: Uint16Array;
  #lastAvail = 0;
  #used = 0;
  #signalled = 0;

  /** @param place Where it lies. */
  constructor(place: NaivePlace) {
    this.#place = place;
    this.#view = new DataView(place.buffer);
    this.#words = new Uint16Array(place.buffer);
  }

  /** Fetches the next buffer. */
  pop(): NaiveBuffer | null {
    const { size, descriptors, driver } = this.#place;
    if (Atomics.load(this.#words, driver / 2 + 1) === this.#lastAvail) {
      return null;
    }
    const slot = this.#lastAvail % size;
    const id = this.#view.getUint16(driver + 4 + slot * 2, true);
    const segments: NaiveSegment[] = [];
    let descriptor = read(this.#view, descriptors + id * 16);
    if ((descriptor.flags & F_INDIRECT) !== 0) {
      const table = descriptor;
      for (let i = 0; i < table.length / 16; i++) {
        const entry = read(this.#view, table.address + i * 16);
        segments.push(toSegment(entry, entry.flags));
      }
    } else {
      segments.push(toSegment(descriptor, descriptor.flags));
      while ((descriptor.flags & F_NEXT) !== 0) {
        descriptor = read(this.#view, descriptors + descriptor.next * 16);
        segments.push(toSegment(descriptor, descriptor.flags));
      }
    }
    this.#lastAvail = (this.#lastAvail + 1) & 0xffff;
    return { id, slots: 1, segments };
  }

  /** Completes a buffer and publishes that. */
  push({ id }: NaiveBuffer, written: number): void {
    const { size, device } = this.#place;
    const at = device + 4 + (this.#used % size) * 8;
    this.#view.setUint32(at, id, true);
    this.#view.setUint32(at + 4, written, true);
    this.#used = (this.#used + 1) & 0xffff;
    Atomics.store(this.#words, device / 2 + 1, this.#used);
  }

  /** Whether what was completed since the last time passed the driver's event. */
  needsInterrupt(): boolean {
    const { size, driver } = this.#place;
    const event = Atomics.load(this.#words, driver / 2 + 2 + size);
    const before = this.#signalled;
    this.#signalled = this.#used;
    return eventPassed(event, this.#used, before);
  }
}

/** Driver side of a split queue, without indirect tables. */
export class NaiveSplitDriver implements NaiveDriver {
  readonly #place: NaivePlace;
  readonly #view: DataView;
  readonly #words: Uint16Array;
  readonly #free: number[] = [];
  readonly #taken: Map<number, number[]> = new Map();
  #avail = 0;
  #kicked = 0;
  #lastUsed = 0;

  /** @param place Where it lies. */
  constructor(place: NaivePlace) {
    this.#place = place;
    this.#view = new DataView(place.buffer);
    this.#words = new Uint16Array(place.buffer);
    for (let i = 0; i < place.size; i++) this.#free.push(i);
  }

  /** Offers a buffer and publishes that; its id. */
  add(segments: readonly NaiveSegment[]): number {
    const { size, descriptors, driver } = this.#place;
    const slots = this.#free.splice(-segments.length);
    segments.forEach(({ address, length, writable }, i) => {
      const last = i === segments.length - 1;
      write(this.#view, descriptors + slots[i]! * 16, {
        address,
        length,
        flags: (writable ? F_WRITE : 0) | (last ? 0 : F_NEXT),
        next: last ? 0 : slots[i + 1]!,
      });
    });
    const head = slots[0]!;
    this.#taken.set(head, slots);
    this.#view.setUint16(driver + 4 + (this.#avail % size) * 2, head, true);
    this.#avail = (this.#avail + 1) & 0xffff;
    Atomics.store(this.#words, driver / 2 + 1, this.#avail);
    return head;
  }

  /** Whether what was offered since the last time passed the device's event. */
  needsKick(): boolean {
    const { size, device } = this.#place;
    const event = Atomics.load(this.#words, device / 2 + 2 + size * 4);
    const before = this.#kicked;
    this.#kicked = this.#avail;
    return eventPassed(event, this.#avail, before);
  }

  /** Takes a used buffer back. */
  reclaim(): { id: number; length: number } | null {
    const { size, device } = this.#place;
    if (Atomics.load(this.#words, device / 2 + 1) === this.#lastUsed) {
      return null;
    }
    const at = device + 4 + (this.#lastUsed % size) * 8;
    const id = this.#view.getUint32(at, true);
    const length = this.#view.getUint32(at + 4, true);
    this.#lastUsed = (this.#lastUsed + 1) & 0xffff;
    this.#free.push(...this.#taken.get(id)!);
    this.#taken.delete(id);
    return { id, length };
  }
}

function availableBits(wrap: boolean): number {
  return wrap ? F_AVAIL : F_USED;
}

function packedPassed(
  offWrap: number,
  position: number,
  wrap: boolean,
  moved: number,
  size: number,
): boolean {
  let event = offWrap & 0x7fff;
  if ((offWrap & 0x8000) !== 0 !== wrap) event -= size;
  return event < position && event >= position - moved;
}

/** Device side of a packed queue. */
export class NaivePackedDevice implements NaiveDevice {
  readonly #place: NaivePlace;
  readonly #view: DataView;
  readonly #words: Uint16Array;
  #next = 0;
  #nextWrap = true;
  #used = 0;
  #usedWrap = true;
  #moved = 0;

  /** @param place Where it lies. */
  constructor(place: NaivePlace) {
    this.#place = place;
    this.#view = new DataView(place.buffer);
    this.#words = new Uint16Array(place.buffer);
  }

  /** Fetches the next buffer. */
  pop(): NaiveBuffer | null {
    const { descriptors, size } = this.#place;
    const flags = Atomics.load(
      this.#words,
      (descriptors + this.#next * 16) / 2 + 7,
    );
    if ((flags & (F_AVAIL | F_USED)) !== availableBits(this.#nextWrap)) {
      return null;
    }
    const segments: NaiveSegment[] = [];
    let slots = 0;
    for (;;) {
      const descriptor = read(this.#view, descriptors + this.#next * 16);
      // In a packed ring the flags come behind the id.
      const { flags: id, next: flags } = descriptor;
      slots++;
      if (++this.#next === size) {
        this.#next = 0;
        this.#nextWrap = !this.#nextWrap;
      }
      if ((flags & F_INDIRECT) !== 0) {
        for (let i = 0; i < descriptor.length / 16; i++) {
          const entry = read(this.#view, descriptor.address + i * 16);
          segments.push(toSegment(entry, entry.next));
        }
      } else segments.push(toSegment(descriptor, flags));
      if ((flags & F_NEXT) === 0) return { id, slots, segments };
    }
  }

  /** Completes a buffer and publishes that. */
  push({ id, slots }: NaiveBuffer, written: number): void {
    const { descriptors, size } = this.#place;
    const at = descriptors + this.#used * 16;
    this.#view.setUint32(at + 8, written, true);
    this.#view.setUint16(at + 12, id, true);
    const bits = this.#usedWrap ? F_AVAIL | F_USED : 0;
    Atomics.store(this.#words, at / 2 + 7, bits | F_WRITE);
    this.#moved += slots;
    this.#used += slots;
    if (this.#used >= size) {
      this.#used -= size;
      this.#usedWrap = !this.#usedWrap;
    }
  }

  /** Whether what was completed since the last time passed the driver's event. */
  needsInterrupt(): boolean {
    const { driver, size } = this.#place;
    const moved = this.#moved;
    this.#moved = 0;
    const flags = Atomics.load(this.#words, driver / 2 + 1);
    if (flags !== 2) return flags === 0;
    const event = Atomics.load(this.#words, driver / 2);
    return packedPassed(event, this.#used, this.#usedWrap, moved, size);
  }
}

/** Driver side of a packed queue, without indirect tables. */
export class NaivePackedDriver implements NaiveDriver {
  readonly #place: NaivePlace;
  readonly #view: DataView;
  readonly #words: Uint16Array;
  readonly #ids: number[] = [];
  readonly #taken: Map<number, number> = new Map();
  #next = 0;
  #nextWrap = true;
  #used = 0;
  #usedWrap = true;
  #moved = 0;

  /** @param place Where it lies. */
  constructor(place: NaivePlace) {
    this.#place = place;
    this.#view = new DataView(place.buffer);
    this.#words = new Uint16Array(place.buffer);
    for (let i = 0; i < place.size; i++) this.#ids.push(i);
  }

  /** Offers a buffer and publishes that; its id. */
  add(segments: readonly NaiveSegment[]): number {
    const { descriptors, size } = this.#place;
    const id = this.#ids.pop()!;
    const head = descriptors + this.#next * 16;
    let headFlags = 0;
    segments.forEach(({ address, length, writable }, i) => {
      const at = descriptors + this.#next * 16;
      const flags = (writable ? F_WRITE : 0) |
        (i === segments.length - 1 ? 0 : F_NEXT) |
        availableBits(this.#nextWrap);
      if (i === 0) headFlags = flags;
      const before = this.#view.getUint16(at + 14, true);
      const next = i === 0 ? before : flags;
      write(this.#view, at, { address, length, flags: id, next });
      if (++this.#next === size) {
        this.#next = 0;
        this.#nextWrap = !this.#nextWrap;
      }
    });
    this.#taken.set(id, segments.length);
    this.#moved += segments.length;
    Atomics.store(this.#words, head / 2 + 7, headFlags);
    return id;
  }

  /** Whether what was offered since the last time passed the device's event. */
  needsKick(): boolean {
    const { device, size } = this.#place;
    const moved = this.#moved;
    this.#moved = 0;
    const flags = Atomics.load(this.#words, device / 2 + 1);
    if (flags !== 2) return flags === 0;
    const event = Atomics.load(this.#words, device / 2);
    return packedPassed(event, this.#next, this.#nextWrap, moved, size);
  }

  /** Takes a used buffer back. */
  reclaim(): { id: number; length: number } | null {
    const { descriptors, size } = this.#place;
    const at = descriptors + this.#used * 16;
    const flags = Atomics.load(this.#words, at / 2 + 7);
    const bits = this.#usedWrap ? F_AVAIL | F_USED : 0;
    if ((flags & (F_AVAIL | F_USED)) !== bits) return null;
    const id = this.#view.getUint16(at + 12, true);
    const length = this.#view.getUint32(at + 8, true);
    this.#ids.push(id);
    this.#used += this.#taken.get(id)!;
    this.#taken.delete(id);
    if (this.#used >= size) {
      this.#used -= size;
      this.#usedWrap = !this.#usedWrap;
    }
    return { id, length };
  }
}
