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
   * Index at which the reclaimed end of the ring lies in each state. Split: 0, or `size` before the wrap of the
   * 16-bit indices. Packed: where the walk begins, 0 or the ring's last descriptor.
   */
  readonly start: "zero" | "wrap";
  /**
   * Which notifications are interleaved freely. In a walk without one of them, its side decides in the same step
   * as it publishes, and the other side neither arms nor disarms it: it looks whenever it likes.
   */
  readonly notify: "both" | "kicks" | "interrupts" | "none";
};

/** One step of a side, at the grain of the queue contract; `push` is `PUSH` and the token. */
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
/** Complete the buffer of token 0; those of the others follow. */
export const PUSH = 14;

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
];

/** What a step is called in a script. */
export function stepName(step: number): string {
  return NAMES[step] ?? `device.push(${step - PUSH})`;
}

/** Bytes that the device says it wrote: none for some, and different ones for chains of 1 and 2. */
export function writtenBytes(token: number, kind: number): number {
  return kind === 2 ? token + 3 : (token & 1) === 0 ? 0 : token + 1;
}

/**
 * Where each buffer is, by what the sides were asked to do; it looks at nothing that they keep.
 *
 * A token goes through the lists from `staged` to `used`, each in the order in which it must leave. A restore
 * puts what was fetched before what is pending.
 */
export class WalkModel {
  /** By token: descriptors of its buffer, 0 where it is free. */
  readonly kind: Uint8Array;
  /** Added, not published. */
  staged: number[] = [];
  /** To be popped. */
  pending: number[] = [];
  /** Popped and not pushed. */
  fetched: number[] = [];
  /** Pushed, not published. */
  done: number[] = [];
  /** To be reclaimed. */
  used: number[] = [];
  /** How many at the front of `pending` a saved state has brought back. */
  again = 0;
  /** The device sleeps until it is kicked. */
  deviceAsleep = false;
  /** The driver sleeps until it is interrupted. */
  driverAsleep = false;
  /** Published since the last kick decision: buffers (split) or descriptors (packed). */
  unkicked = 0;
  /** Published since the last interrupt decision. */
  untold = 0;
  /** The device was restored and has made no interrupt decision. */
  fresh = false;
  readonly #size: number;
  readonly #packed: boolean;
  readonly #chains: number;
  readonly #kicks: boolean;
  readonly #interrupts: boolean;

  /** @param setup What is walked. */
  constructor(setup: WalkSetup) {
    this.#size = setup.size;
    this.#packed = setup.format === "packed";
    this.#chains = setup.chains;
    this.#kicks = setup.notify === "both" || setup.notify === "kicks";
    this.#interrupts = setup.notify === "both" || setup.notify === "interrupts";
    this.kind = new Uint8Array(setup.size);
  }

  /** Descriptors of the buffers of `tokens`. */
  slots(tokens: readonly number[]): number {
    let sum = 0;
    for (const token of tokens) sum += this.kind[token]!;
    return sum;
  }

  /** Descriptors that are with no buffer. */
  get free(): number {
    let free = this.#size;
    for (const kind of this.kind) free -= kind;
    return free;
  }

  /** What the bookkeeping of notifications counts. */
  units(tokens: readonly number[]): number {
    return this.#packed ? this.slots(tokens) : tokens.length;
  }

  /**
   * The steps that may come next; which lead nowhere new is found out by taking them.
   *
   * A side may do anything at any time, also when it could sleep. The one bound: it decides about a
   * notification before more than `size + 1` units were published without a decision.
   */
  steps(into: number[]): void {
    into.length = 0;
    const { free } = this;
    if (free >= 1) into.push(ADD);
    if (this.#chains === 2 && free >= 2) into.push(ADD_TWO);
    const most = this.#size + 1;
    const staged = this.units(this.staged);
    if (
      staged > 0 && (this.unkicked === 0 || this.unkicked + staged <= most)
    ) into.push(PUBLISH);
    if (this.unkicked > 0) into.push(NEEDS_KICK);
    into.push(RECLAIM, POP);
    if (this.#interrupts) into.push(ARM_INTERRUPTS, DISARM_INTERRUPTS);
    for (const token of this.fetched) into.push(PUSH + token);
    const done = this.units(this.done);
    if (done > 0 && (this.untold === 0 || this.untold + done <= most)) {
      into.push(PUBLISH_USED);
    }
    if (this.untold > 0 || this.fresh) into.push(NEEDS_INTERRUPT);
    if (this.#kicks) into.push(ARM_KICKS, DISARM_KICKS);
    if (this.done.length === 0) into.push(CARRY, REWIND);
  }

  /**
   * The next step of two sides that go on alone, each while it is awake, until all has come back and they sleep;
   * -1 then, or where a side that would be needed sleeps.
   */
  restStep(): number {
    if (this.unkicked > 0) return NEEDS_KICK;
    if (this.staged.length > 0) return PUBLISH;
    if (this.untold > 0 || this.fresh) return NEEDS_INTERRUPT;
    if (!this.deviceAsleep) {
      if (this.pending.length > 0) return POP;
      if (this.#kicks) return ARM_KICKS;
    }
    if (this.fetched.length > 0) return PUSH + this.fetched[0]!;
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
    this.kind[token] = kind;
    this.staged.push(token);
  }

  /** The driver has published. */
  published(): void {
    this.unkicked += this.units(this.staged);
    this.pending.push(...this.staged);
    this.staged = [];
  }

  /** The device has published. */
  usedPublished(): void {
    if (!this.fresh) this.untold += this.units(this.done);
    this.used.push(...this.done);
    this.done = [];
  }

  /** Another device goes on. */
  restored(): void {
    this.again += this.fetched.length;
    this.pending.unshift(...this.fetched);
    this.fetched = [];
    this.deviceAsleep = false;
    this.fresh = true;
    this.untold = 0;
  }

  /** Checks that no side sleeps while there is work that it will never be told of. */
  checkAwake(): void {
    if (this.deviceAsleep && this.pending.length > 0 && this.unkicked === 0) {
      throw new Violation(
        "no wake-up is lost",
        `the device sleeps with ${this.pending.length} buffers available and no kick is to come`,
      );
    }
    if (
      this.driverAsleep && this.used.length > 0 && this.untold === 0 &&
      !this.fresh
    ) {
      throw new Violation(
        "no wake-up is lost",
        `the driver sleeps with ${this.used.length} buffers used and no interrupt is to come`,
      );
    }
  }

  /** Appends everything to `out`. */
  save(out: number[]): void {
    for (const kind of this.kind) out.push(kind);
    for (
      const list of [
        this.staged,
        this.pending,
        this.fetched,
        this.done,
        this.used,
      ]
    ) {
      out.push(list.length);
      for (const token of list) out.push(token);
    }
    out.push(
      this.again,
      this.unkicked,
      this.untold,
      (this.deviceAsleep ? 1 : 0) | (this.driverAsleep ? 2 : 0) |
        (this.fresh ? 4 : 0),
    );
  }

  /** Takes everything back. */
  load(from: Cursor): void {
    for (let i = 0; i < this.kind.length; i++) this.kind[i] = from.next();
    this.staged = from.list();
    this.pending = from.list();
    this.fetched = from.list();
    this.done = from.list();
    this.used = from.list();
    this.again = from.next();
    this.unkicked = from.next();
    this.untold = from.next();
    const flags = from.next();
    this.deviceAsleep = (flags & 1) !== 0;
    this.driverAsleep = (flags & 2) !== 0;
    this.fresh = (flags & 4) !== 0;
  }
}

/** Reads a canonical form from its beginning. */
export class Cursor {
  #form: Uint16Array = new Uint16Array(0);
  #at = 0;

  /** Begins with another form. */
  begin(form: Uint16Array): this {
    this.#form = form;
    this.#at = 0;
    return this;
  }

  /** The next word. */
  next(): number {
    return this.#form[this.#at++]!;
  }

  /** A list with its length before it. */
  list(): number[] {
    const list: number[] = [];
    for (let n = this.next(); n > 0; n--) list.push(this.next());
    return list;
  }
}
