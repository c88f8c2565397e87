/**
 * What seqpacket connections promise, as bookkeeping of its own: it imports nothing of what it judges.
 *
 * @module
 */

import { expectSame, Violation } from "./violation.ts";

const INVARIANT = "seqpacket-messages";
const EOM = 1;
const EOR = 2;

/** A message as its sender made it. */
export type SentMessage = { bytes: Uint8Array; endOfRecord: boolean };

/** One direction of a connection: messages come out as they went in, each as a whole. */
export class MessagesModel {
  /** Sent and not received yet, in order. */
  readonly waiting: SentMessage[] = [];
  /** Why what was sent need not arrive; empty where it has to. */
  lossy = "";
  /** The sender has ended it. */
  ended = false;
  readonly #name: string;
  readonly #seed: number;
  #made = 0;
  // What has come of a message whose end has not.
  #partial: Uint8Array[] = [];

  /** @param name In messages. @param seed Tells its bytes from those of others. */
  constructor(name: string, seed: number) {
    this.#name = name;
    this.#seed = seed;
  }

  /** Bytes that have come of a message whose end has not. */
  get partial(): number {
    return this.#partial.reduce((sum, { length }) => sum + length, 0);
  }

  /** A message to send; no two are alike, but for empty ones. */
  offer(length: number, endOfRecord: boolean): SentMessage {
    const made = this.#made++;
    const bytes = Uint8Array.from(
      { length },
      (_, i) => this.#seed * 67 + made * 31 + i * 7 + (i >>> 8),
    );
    return { bytes, endOfRecord };
  }

  /** It was sent. */
  sent(message: SentMessage): void {
    this.waiting.push(message);
  }

  /** Judges a message that the receiver got. */
  take(bytes: Uint8Array, endOfRecord: boolean): void {
    const expected = this.waiting.shift();
    const what = `a message of ${this.#name}`;
    if (expected === undefined) {
      throw new Violation(INVARIANT, `${what} was never sent`);
    }
    expectSame(
      INVARIANT,
      `${what}: length`,
      bytes.length,
      expected.bytes.length,
    );
    const wrong = expected.bytes.findIndex((byte, i) => byte !== bytes[i]);
    if (wrong >= 0) {
      throw new Violation(INVARIANT, `${what}: byte ${wrong} is wrong`);
    }
    const eor = expected.endOfRecord;
    expectSame(INVARIANT, `${what}: end of record`, endOfRecord, eor);
  }

  /** Judges a fragment; true where it completed a message. */
  takeFragment(bytes: Uint8Array, flags: number): boolean {
    const last = (flags & EOM) !== 0;
    if ((flags & ~(EOM | EOR)) !== 0 || (!last && (flags & EOR) !== 0)) {
      throw new Violation(INVARIANT, `a fragment with flags ${flags}`);
    }
    if (bytes.length === 0 && (!last || this.#partial.length > 0)) {
      throw new Violation(INVARIANT, "an empty fragment of a message");
    }
    this.#partial.push(bytes);
    const [next] = this.waiting;
    if (next !== undefined && this.partial > next.bytes.length) {
      throw new Violation(
        INVARIANT,
        `${this.partial} bytes of a message of ${next.bytes.length} of ${this.#name}`,
      );
    }
    if (!last) return false;
    const whole = new Uint8Array(this.partial);
    let at = 0;
    for (const piece of this.#partial) {
      whole.set(piece, at);
      at += piece.length;
    }
    this.#partial = [];
    this.take(whole, (flags & EOR) !== 0);
    return true;
  }

  /** Judges an end of file. */
  takeEnd(): void {
    if (this.lossy !== "") return;
    if (!this.ended || this.waiting.length > 0) {
      throw new Violation(
        INVARIANT,
        `${this.#name} ends with ${this.waiting.length} messages on their way, and its sender has ${
          this.ended ? "" : "not "
        }ended it`,
      );
    }
  }

  /** What was sent may be lost from now on; the first reason is kept. */
  cut(reason: string): void {
    this.lossy ||= reason;
  }

  /** Where it stands, in words. */
  toString(): string {
    return `${this.#name}: ${this.waiting.length} messages on their way`;
  }
}

/** What waits for a host program, which takes no more than so many bytes at a time, but one message always. */
export class MessageStore {
  /** Lengths of messages that have left the device, and of those that have not. */
  readonly #taken: number[] = [];
  readonly #kept: number[] = [];
  readonly #room: number;
  /** Bytes that have left the device. */
  passedOn = 0;

  readonly #messages: number;

  /** @param room Bytes that wait for the program before it has read them. @param messages As many at most. */
  constructor(room: number, messages: number) {
    this.#room = room;
    this.#messages = messages;
  }

  /** A whole message came from the guest. */
  add(length: number): void {
    this.#kept.push(length);
    this.#move();
  }

  /** The program has received one. */
  received(): void {
    this.#taken.shift();
    this.#move();
  }

  /** True where a message has left the device and not been received. */
  get hasNext(): boolean {
    return this.#taken.length > 0;
  }

  /** True where messages are in the device. */
  get holdsBack(): boolean {
    return this.#kept.length > 0;
  }

  #move(): void {
    for (;;) {
      const [next] = this.#kept;
      if (next === undefined) return;
      const bytes = this.#taken.reduce((sum, length) => sum + length, 0);
      const full = bytes + next > this.#room ||
        this.#taken.length >= this.#messages;
      if (this.#taken.length > 0 && full) return;
      this.#kept.shift();
      this.#taken.push(next);
      this.passedOn += next;
    }
  }
}
