import { Violation } from "./violation.ts";

/** What is walked: one queue and how its driver and device may behave. */
export type WalkSetup = {
  /** Layout of the ring. */
  readonly format: "split" | "packed";
  /** Descriptors. */
  readonly size: number;
  /** Most descriptors of a buffer, 1 or 2. */
  readonly chains: 1 | 2;
  /** VIRTIO_F_EVENT_IDX. */
  readonly eventIdx: boolean;
  /**
   * Where in the ring the reclaimed end lies in each state.
   *
   * `zero`: split: any index from 0 to `size - 1`; packed: descriptor 0, in either lap. `wrap`: split: one of the last
   * `size` indices before 2^16, so that the wrap lies before, among or behind all that is in flight; packed: any
   * other descriptor, so that what is in flight goes over the end of the ring.
   */
  readonly start: "zero" | "wrap";
  /**
   * Which notifications are interleaved freely. In a walk without one of them, its side decides in the same step
   * as it publishes, and the other side neither arms nor disarms it: it looks whenever it likes.
   */
  readonly notify: "both" | "kicks" | "interrupts" | "none";
  /**
   * What there is beyond that: nothing; a step that gives the last fetched buffer back; or buffers of two
   * descriptors that have them in an indirect table (VIRTIO_F_INDIRECT_DESC) and take one in the ring.
   */
  readonly more: "nothing" | "unpop" | "indirect";
};

/** One step of a side, at the grain of the queue contract; `push` is `PUSH` and a place among the fetched. */
export const ADD = 0;
/** A buffer of two descriptors. */
export const ADD_TWO = 1;
/** The driver's. */
export const PUBLISH = 2;
/** Kick if so; the kick arrives at once. */
export const NEEDS_KICK = 3;
/** One buffer. */
export const RECLAIM = 4;
/** Sleep where it says false. */
export const ARM_INTERRUPTS = 5;
/** Stay awake. */
export const DISARM_INTERRUPTS = 6;
/** One buffer. */
export const POP = 7;
/** The device's. */
export const PUBLISH_USED = 8;
/** Interrupt if so; it arrives at once. */
export const NEEDS_INTERRUPT = 9;
/** Sleep where it says false. */
export const ARM_KICKS = 10;
/** Stay awake. */
export const DISARM_KICKS = 11;
/** Save with a list of what is in flight, and go on with a fresh device. */
export const CARRY = 12;
/** Save with the fetches taken back where that is possible. */
export const REWIND = 13;
/** The last fetched buffer; refused where one that was fetched after it was pushed. */
export const UNPOP = 14;
/** What has to be refused and to change nothing, with a buffer that is drawn. */
export const MISUSE = 15;
/** Complete the buffer that was fetched first of those in flight; the others follow. */
export const PUSH = 16;

const NAMES = [
  "driver.add(1 descriptor)",
  "driver.add(2 descriptors)",
  "driver.publish()",
  "driver.needsKick()",
  "driver.reclaim()",
  "driver.armInterrupts()",
  "driver.disarmInterrupts()",
  "device.pop()",
  "device.publish()",
  "device.needsInterrupt()",
  "device.armKicks()",
  "device.disarmKicks()",
  "save (carry), reset, restore",
  "save (rewind), reset, restore",
  "device.unpop(the last of the fetched)",
  "what is not allowed",
];

/** What a step is called in a script. */
export function stepName(step: number): string {
  return NAMES[step] ?? `device.push(number ${step - PUSH + 1} of the fetched)`;
}

/** Bytes of a form. */
export const FORM_BYTES = 16;

/** Writes a form, byte by byte. */
export class FormWriter {
  /** The form; 0 behind what was put. */
  readonly bytes: Uint8Array = new Uint8Array(FORM_BYTES);
  /** Bytes that were put. */
  length = 0;

  /** Begins anew. */
  begin(): this {
    this.bytes.fill(0);
    this.length = 0;
    return this;
  }

  /**
   * Puts a byte.
   *
   * @throws {RangeError} when it is none, or there is no room.
   */
  put(byte: number): void {
    if (byte < 0 || byte > 0xff || this.length === FORM_BYTES) {
      throw new RangeError(`Cannot put ${byte} at ${this.length} of a form`);
    }
    this.bytes[this.length++] = byte;
  }
}

/** Reads a form from its beginning. */
export class FormReader {
  #bytes: Uint8Array = new Uint8Array(FORM_BYTES);
  #at = 0;

  /** Begins with another form. */
  begin(bytes: Uint8Array): this {
    this.#bytes = bytes;
    this.#at = 0;
    return this;
  }

  /** The next byte. */
  next(): number {
    return this.#bytes[this.#at++]!;
  }
}

/**
 * Where each buffer is, by what the sides were asked to do; it looks at nothing that they keep.
 *
 * A token goes through the lists from `staged` to `used`, each in the order in which it must leave. A restore
 * puts what was fetched before what is pending.
 */
export class WalkModel {
  /** By token: segments of its buffer, 0 where it is free. */
  readonly kind: Uint8Array;
  /** By token: descriptors that it takes in the ring, 0 where it is free. */
  readonly taken: Uint8Array;
  /** Added, not published. */
  readonly staged: number[] = [];
  /** To be popped. */
  readonly pending: number[] = [];
  /** Popped and not pushed. */
  readonly fetched: number[] = [];
  /** Pushed, not published. */
  readonly done: number[] = [];
  /** To be reclaimed. */
  readonly used: number[] = [];
  /** How many at the front of `pending` a saved state has brought back. */
  again = 0;
  /**
   * Whose the ring is from where the device has used to where it has fetched: tokens by entry of the available
   * ring (split) or by descriptor (packed). -1 where nobody has a reason to look: the buffer was used, or the
   * used descriptor of another one lies over the beginning of its own.
   */
  readonly window: number[] = [];
  /**
   * By token: bytes that the device says it wrote: none for one kind of buffer, which differs by the walk's start, else
   * a number of the token's own.
   */
  readonly written: Uint8Array;
  /** By token in flight: 1 where its descriptors or its entry are in `window`. */
  readonly intact: Uint8Array;
  /** By token in flight: 1 where its segments come from a saved state. */
  readonly kept: Uint8Array;
  /**
   * By fetched token: 1 where another buffer was pushed that was fetched after it, and before the next of those that
   * still are in flight. Known only where there is a step that gives buffers back.
   */
  readonly gap: Uint8Array;
  /** The device sleeps until it is kicked. */
  deviceAsleep = false;
  /** The driver sleeps until it is interrupted. */
  driverAsleep = false;
  /** Something was published since the last kick decision. */
  unkicked = false;
  /** Something was published since the last interrupt decision. */
  untold = false;
  /** The device was restored and has made no interrupt decision. */
  fresh = false;
  readonly #size: number;
  readonly #packed: boolean;
  readonly #chains: number;
  readonly #kicks: boolean;
  readonly #interrupts: boolean;
  readonly #unpop: boolean;
  readonly #indirect: boolean;
  // The kind whose buffers come back with no bytes written.
  readonly #empty: number;

  /** @param setup What is walked. */
  constructor(setup: WalkSetup) {
    this.#size = setup.size;
    this.#packed = setup.format === "packed";
    this.#chains = setup.chains;
    this.#kicks = setup.notify === "both" || setup.notify === "kicks";
    this.#interrupts = setup.notify === "both" || setup.notify === "interrupts";
    this.#empty = setup.start === "zero" ? 2 : 1;
    this.#unpop = setup.more === "unpop";
    this.#indirect = setup.more === "indirect";
    this.kind = new Uint8Array(setup.size);
    this.taken = new Uint8Array(setup.size);
    this.gap = new Uint8Array(setup.size);
    // A fresh queue asks for notifications.
    this.deviceAsleep = this.#kicks;
    this.driverAsleep = this.#interrupts;
    this.written = new Uint8Array(setup.size);
    this.intact = new Uint8Array(setup.size);
    this.kept = new Uint8Array(setup.size);
  }

  /** Descriptors of the buffers of `tokens`. */
  slots(tokens: readonly number[]): number {
    let sum = 0;
    for (let i = 0; i < tokens.length; i++) sum += this.taken[tokens[i]!]!;
    return sum;
  }

  /** Descriptors that are with no buffer. */
  get free(): number {
    let free = this.#size;
    for (let i = 0; i < this.#size; i++) free -= this.taken[i]!;
    return free;
  }

  /** Buffers that the device has to push: fetched ones, and those that a state has brought back. */
  get inFlight(): number {
    return this.fetched.length + this.again;
  }

  /** One of them, in the order of the first fetch. */
  inFlightAt(place: number): number {
    const fetched = this.fetched.length;
    return place < fetched
      ? this.fetched[place]!
      : this.pending[place - fetched]!;
  }

  /**
   * The steps that may come next; which lead nowhere new is found out by taking them.
   *
   * A side may do anything at any time, also when it could sleep; it may put a decision off as long as it likes.
   */
  steps(into: number[]): void {
    into.length = 0;
    const { free } = this;
    if (free >= 1) into.push(ADD);
    if (this.#chains === 2 && free >= (this.#indirect ? 1 : 2)) {
      into.push(ADD_TWO);
    }
    if (this.staged.length > 0) into.push(PUBLISH);
    if (this.unkicked) into.push(NEEDS_KICK);
    into.push(RECLAIM, POP);
    if (this.#interrupts) into.push(ARM_INTERRUPTS, DISARM_INTERRUPTS);
    for (let i = 0; i < this.fetched.length; i++) into.push(PUSH + i);
    if (this.#unpop && this.fetched.length > 0) into.push(UNPOP);
    into.push(MISUSE);
    if (this.done.length > 0) into.push(PUBLISH_USED);
    if (this.untold || this.fresh) into.push(NEEDS_INTERRUPT);
    if (this.#kicks) into.push(ARM_KICKS, DISARM_KICKS);
    if (this.done.length === 0) {
      into.push(CARRY);
      // Without buffers in flight the two are one.
      if (this.inFlight > 0) into.push(REWIND);
    }
  }

  /**
   * The next step of two sides that go on alone, each while it is awake, until all has come back and they sleep;
   * -1 then, or where a side that would be needed sleeps.
   */
  restStep(): number {
    if (this.unkicked) return NEEDS_KICK;
    if (this.staged.length > 0) return PUBLISH;
    if (this.untold || this.fresh) return NEEDS_INTERRUPT;
    if (!this.deviceAsleep) {
      if (this.pending.length > 0) return POP;
      if (this.#kicks) return ARM_KICKS;
    }
    if (this.fetched.length > 0) return PUSH;
    if (this.done.length > 0) return PUBLISH_USED;
    if (!this.driverAsleep) {
      if (this.used.length > 0) return RECLAIM;
      if (this.#interrupts) return ARM_INTERRUPTS;
    }
    return -1;
  }

  /** The kick decision comes with `publish()`. */
  get kicksAtOnce(): boolean {
    return !this.#kicks;
  }

  /** The interrupt decision comes with the device's `publish()`. */
  get interruptsAtOnce(): boolean {
    return !this.#interrupts;
  }

  /** A buffer was added. */
  added(token: number, kind: number): void {
    if (!(this.kind[token] === 0)) {
      throw new Violation(
        "ids are unique",
        `add() returned ${token}, which is not free`,
      );
    }
    this.#setKind(token, kind);
    this.intact[token] = 0;
    this.kept[token] = 0;
    this.gap[token] = 0;
    this.staged.push(token);
  }

  #setKind(token: number, kind: number): void {
    this.kind[token] = kind;
    this.taken[token] = this.#indirect ? 1 : kind;
    this.written[token] = kind === this.#empty ? 0 : token + kind;
  }

  /** The driver has published. */
  published(): void {
    this.unkicked = true;
    move(this.staged, this.pending);
  }

  /** The device has fetched what is to be fetched next. */
  popped(): void {
    const token = this.pending.shift()!;
    this.fetched.push(token);
    if (this.again > 0) {
      this.again--;
      return;
    }
    this.intact[token] = 1;
    const slots = this.#packed ? this.taken[token]! : 1;
    for (let i = 0; i < slots; i++) this.window.push(token);
  }

  /** The last of the fetched, where it may be given back; else -1. */
  get last(): number {
    const { fetched } = this;
    const token = fetched.length === 0 ? -1 : fetched[fetched.length - 1]!;
    return token >= 0 && this.gap[token] === 0 ? token : -1;
  }

  /** It was given back. */
  unpopped(): void {
    const token = this.fetched.pop()!;
    this.pending.unshift(token);
    this.deviceAsleep = false;
    if (this.kept[token] === 1) {
      this.again++;
      return;
    }
    this.intact[token] = 0;
    const slots = this.#packed ? this.taken[token]! : 1;
    for (let i = 0; i < slots; i++) this.window.pop();
  }

  /** A fetched buffer was completed. */
  pushed(token: number): void {
    const place = this.fetched.indexOf(token);
    if (this.#unpop && place > 0) this.gap[this.fetched[place - 1]!] = 1;
    this.fetched.splice(place, 1);
    this.done.push(token);
    this.#forget(token);
    if (!this.#packed) return;
    // Its used descriptor is written where the window begins, and counts for as many.
    for (let left = this.taken[token]!; left > 0; left--) {
      const over = this.window.shift()!;
      if (over >= 0) this.#forget(over);
    }
  }

  #forget(token: number): void {
    const { window } = this;
    this.intact[token] = 0;
    for (let i = 0; i < window.length; i++) {
      if (window[i] === token) window[i] = -1;
    }
  }

  /** The device has published. */
  usedPublished(): void {
    if (!this.fresh) this.untold = true;
    if (!this.#packed) {
      // The entries of as many buffers lie behind; they may be those of others.
      for (let left = this.done.length; left > 0; left--) {
        const over = this.window.shift()!;
        if (over >= 0) this.intact[over] = 0;
      }
    }
    move(this.done, this.used);
  }

  /** A buffer was taken back. */
  reclaimed(): void {
    const token = this.used.shift()!;
    this.kind[token] = 0;
    this.taken[token] = 0;
  }

  /** Another device goes on. */
  restored(rewound: boolean): void {
    const { fetched, pending } = this;
    this.again += fetched.length;
    pending.unshift(...fetched);
    fetched.length = 0;
    for (let i = 0; i < this.again; i++) this.kept[pending[i]!] = 1;
    if (rewound) {
      // They come from the ring again, and are no debt of a state any more.
      for (let i = 0; i < this.again; i++) {
        this.kept[pending[i]!] = 0;
        this.intact[pending[i]!] = 0;
      }
      this.again = 0;
      this.window.length = 0;
    }
    this.gap.fill(0);
    // A restored queue asks for kicks at once.
    this.deviceAsleep = this.#kicks && pending.length === 0;
    this.fresh = true;
    this.untold = false;
  }

  /** Checks that no side sleeps while there is work that it will never be told of. */
  checkAwake(): void {
    if (this.deviceAsleep && this.pending.length > 0 && !this.unkicked) {
      throw new Violation(
        "no wake-up is lost",
        `the device sleeps with ${this.pending.length} buffers available and no kick is to come`,
      );
    }
    if (
      this.driverAsleep && this.used.length > 0 && !this.untold &&
      !this.fresh
    ) {
      throw new Violation(
        "no wake-up is lost",
        `the driver sleeps with ${this.used.length} buffers used and no interrupt is to come`,
      );
    }
  }

  /** Bytes that `save()` puts. */
  get bytes(): number {
    return this.#unpop ? 9 : 8;
  }

  /** Puts everything but the tokens. */
  save(out: FormWriter): void {
    const { kind } = this;
    putKinds(out, this.used, kind);
    putKinds(out, this.done, kind);
    putKinds(out, this.fetched, kind);
    putKinds(out, this.pending, kind);
    putKinds(out, this.staged, kind);
    out.put(
      this.again << 5 | (this.deviceAsleep ? 1 : 0) |
        (this.driverAsleep ? 2 : 0) | (this.fresh ? 4 : 0) |
        (this.unkicked ? 8 : 0) | (this.untold ? 16 : 0),
    );
    const { window } = this;
    let bits = 0;
    for (let i = 0; i < window.length; i++) {
      if (window[i]! >= 0) bits |= 1 << i;
    }
    out.put(bits);
    bits = 0;
    const inFlight = this.inFlight;
    for (let i = 0; i < inFlight; i++) {
      const token = this.inFlightAt(i);
      bits |= (this.kept[token]! | this.intact[token]! << 1) << 2 * i;
    }
    out.put(bits);
    if (!this.#unpop) return;
    bits = 0;
    for (let i = 0; i < this.fetched.length; i++) {
      bits |= this.gap[this.fetched[i]!]! << i;
    }
    out.put(bits);
  }

  /**
   * Takes everything back, with other tokens: those of `names`, in the order in which the buffers go through
   * the lists, from `used` to `staged`. A split ring's buffer takes as many names as it has descriptors.
   */
  load(from: FormReader, names: Uint8Array): void {
    this.kind.fill(0);
    this.taken.fill(0);
    this.gap.fill(0);
    this.intact.fill(0);
    this.kept.fill(0);
    let rank = this.#takeKinds(from, this.used, names, 0);
    rank = this.#takeKinds(from, this.done, names, rank);
    rank = this.#takeKinds(from, this.fetched, names, rank);
    rank = this.#takeKinds(from, this.pending, names, rank);
    this.#takeKinds(from, this.staged, names, rank);
    const flags = from.next();
    this.again = flags >>> 5;
    this.deviceAsleep = (flags & 1) !== 0;
    this.driverAsleep = (flags & 2) !== 0;
    this.fresh = (flags & 4) !== 0;
    this.unkicked = (flags & 8) !== 0;
    this.untold = (flags & 16) !== 0;
    const live = from.next();
    const of = from.next();
    const inFlight = this.inFlight;
    let length = this.#packed ? 0 : this.done.length;
    for (let i = 0; i < inFlight; i++) {
      const token = this.inFlightAt(i);
      this.kept[token] = of >>> 2 * i & 1;
      this.intact[token] = of >>> 2 * i + 1 & 1;
      length += this.#packed ? this.taken[token]! : 1;
    }
    if (this.#unpop) {
      const gaps = from.next();
      for (let i = 0; i < this.fetched.length; i++) {
        this.gap[this.fetched[i]!] = gaps >>> i & 1;
      }
    }
    const { window } = this;
    window.length = 0;
    let place = 0;
    while (window.length < length) {
      if ((live >>> window.length & 1) === 0) {
        window.push(-1);
        continue;
      }
      while (this.intact[this.inFlightAt(place)] === 0) place++;
      const token = this.inFlightAt(place++);
      const slots = this.#packed ? this.taken[token]! : 1;
      for (let i = 0; i < slots; i++) window.push(token);
    }
  }

  #takeKinds(
    from: FormReader,
    list: number[],
    names: Uint8Array,
    rank: number,
  ): number {
    const kinds = from.next();
    list.length = 0;
    for (let left = 30 - Math.clz32(kinds); left >= 0; left--) {
      const token = names[rank]!;
      const kind = 1 + (kinds >>> left & 1);
      this.#setKind(token, kind);
      list.push(token);
      rank += this.#packed ? 1 : this.taken[token]!;
    }
    return rank;
  }
}

function move(from: number[], to: number[]): void {
  for (let i = 0; i < from.length; i++) to.push(from[i]!);
  from.length = 0;
}

// A 1, and behind it a bit for each buffer: whether it has two descriptors.
function putKinds(
  out: FormWriter,
  list: readonly number[],
  kind: Uint8Array,
): void {
  let kinds = 1;
  for (let i = 0; i < list.length; i++) {
    kinds = kinds << 1 | kind[list[i]!]! - 1;
  }
  out.put(kinds);
}
