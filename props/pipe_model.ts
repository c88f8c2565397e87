/**
 * What the two ends of a connection between guests promise, as bookkeeping of its own: it imports nothing of what it judges.
 *
 * @module
 */

const AGAIN = 0;
const EOF = -1;
const BROKEN = -2;
const MESSAGE_AGAIN = -3;
const TOO_LONG = -4;
/** Bytes and messages that wait in one direction, or one longer message. */
const ROOM = 65_536;
const MAX_MESSAGES = 1024;
const EVENTS = ["readable", "writable", "hangup"] as const;

type Event = (typeof EVENTS)[number];

type End = {
  /** Lengths of what waits for this end: messages, or one of all bytes. */
  waiting: number[];
  writeEnded: boolean;
  readEnded: boolean;
  closed: boolean;
  broken: boolean;
  /** No device has it. */
  suspended: boolean;
  /** An event is owed: it found nothing, or no room. */
  readOwed: boolean;
  writeOwed: boolean;
  /** What its device is told when it works the next time. */
  due: Set<Event>;
};

function newEnd(): End {
  return {
    waiting: [],
    writeEnded: false,
    readEnded: false,
    closed: false,
    broken: false,
    suspended: false,
    readOwed: false,
    writeOwed: false,
    due: new Set(),
  };
}

/** Two ends, and what each of them answers. */
export class PipeModel {
  /** By side. */
  readonly ends: readonly [End, End] = [newEnd(), newEnd()];
  /** Which side has connected. */
  readonly from: number;

  /** @param from Which side has connected. */
  constructor(from: number) {
    this.from = from;
  }

  /** True when both devices are through with it. */
  get over(): boolean {
    return this.ends[0].closed && this.ends[1].closed;
  }

  /** Messages that wait for a side; of a stream, 1 where bytes do. */
  waiting(side: number): number {
    return this.ends[side]!.waiting.length;
  }

  /** A side writes; returns how many bytes are taken. */
  write(side: number, bytes: number): number {
    const { mine, other } = this.#sides(side);
    if (other.readEnded) return BROKEN;
    const there = sum(other.waiting);
    const take = Math.min(bytes, ROOM - there);
    if (take > 0) {
      other.waiting = [there + take];
      arrived(other);
    }
    mine.writeOwed = take < bytes;
    return take;
  }

  /** A side reads; returns how many bytes it gets. */
  read(side: number, bytes: number): number {
    const { mine, other } = this.#sides(side);
    const there = sum(mine.waiting);
    const take = Math.min(bytes, there);
    if (take === 0) return this.#nothing(side, AGAIN);
    mine.waiting = there > take ? [there - take] : [];
    roomMade(other);
    return take;
  }

  /** A side writes a message; returns its length where it is taken. */
  writeMessage(side: number, bytes: number, longest: number): number {
    const { mine, other } = this.#sides(side);
    if (other.readEnded) return BROKEN;
    if (!other.suspended && bytes > longest) return TOO_LONG;
    const { waiting } = other;
    const full = waiting.length >= MAX_MESSAGES || sum(waiting) + bytes > ROOM;
    if (waiting.length > 0 && full) {
      mine.writeOwed = true;
      return MESSAGE_AGAIN;
    }
    waiting.push(bytes);
    arrived(other);
    return bytes;
  }

  /** A side reads a message; returns its length. */
  readMessage(side: number): number {
    const { mine, other } = this.#sides(side);
    const length = mine.waiting.shift();
    if (length === undefined) return this.#nothing(side, MESSAGE_AGAIN);
    roomMade(other);
    return length;
  }

  /** A side sends no more. */
  shutdownWrite(side: number): void {
    const { mine, other } = this.#sides(side);
    mine.writeEnded = true;
    arrived(other);
  }

  /** A side receives no more. */
  shutdownRead(side: number): void {
    const { mine, other } = this.#sides(side);
    mine.readEnded = true;
    mine.waiting = [];
    roomMade(other);
  }

  /** A side is through with it. */
  close(side: number, reset: boolean): void {
    const { mine, other } = this.#sides(side);
    mine.closed = mine.writeEnded = mine.readEnded = true;
    mine.waiting = [];
    mine.due.clear();
    if (other.closed) return;
    other.broken ||= reset;
    tellAll(other);
  }

  /** The device of one side has left: neither end has a lawful end any more. */
  abort(): void {
    for (const end of this.ends) {
      if (end.closed) continue;
      end.broken = end.readEnded = true;
      end.waiting = [];
      tellAll(end);
    }
  }

  /** No device has a side's end any more. */
  suspend(side: number): void {
    const { mine } = this.#sides(side);
    if (mine.closed) return;
    mine.suspended = true;
    mine.due.clear();
  }

  /** Another device goes on with it. */
  resume(side: number): void {
    const { mine, other } = this.#sides(side);
    mine.suspended = mine.readOwed = mine.writeOwed = false;
    if (other.closed) tell(mine, "hangup");
  }

  /** Ends that no device has are reset. */
  settle(): void {
    for (const side of [0, 1]) {
      const { mine } = this.#sides(side);
      if (mine.suspended && !mine.closed) this.close(side, true);
    }
  }

  /** What the device of a side hears when it works. */
  hear(side: number): string {
    const { mine } = this.#sides(side);
    const heard = EVENTS.filter((event) => mine.due.has(event));
    mine.due.clear();
    return heard.join();
  }

  #nothing(side: number, again: number): number {
    const { mine, other } = this.#sides(side);
    if (mine.broken) return BROKEN;
    if (other.writeEnded) return EOF;
    mine.readOwed = true;
    return again;
  }

  #sides(side: number): { mine: End; other: End } {
    return { mine: this.ends[side]!, other: this.ends[1 - side]! };
  }
}

function sum(lengths: readonly number[]): number {
  return lengths.reduce((sum, length) => sum + length, 0);
}

function tell(end: End, event: Event): void {
  if (!end.suspended && !end.closed) end.due.add(event);
}

function tellAll(end: End): void {
  end.readOwed = end.writeOwed = false;
  for (const event of EVENTS) tell(end, event);
}

function arrived(end: End): void {
  if (!end.readOwed) return;
  end.readOwed = false;
  tell(end, "readable");
}

function roomMade(end: End): void {
  if (!end.writeOwed) return;
  end.writeOwed = false;
  tell(end, "writable");
}
