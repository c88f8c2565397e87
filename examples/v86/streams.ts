/**
 * The host's end of the streams that `guest/streams.c` runs: both ways without pause, every byte checked.
 *
 * Works in a browser.
 *
 * @module
 */

import { FieldReader, type Plain } from "../../device/snapshot.ts";
import type { LoopbackConn } from "../../device/vsock/loopback.ts";

/** Bytes that are made or compared at a time. */
const CHUNK_BYTES = 65_536;
/** Bytes that a stream moves each way in one turn, unless told: as little as leaves the guest time to send. */
const TURN_BYTES = 4096;
/** One word more, as a position may be in the middle of one. */
const words = new Uint32Array(CHUNK_BYTES / 4 + 1);
const wordBytes = new Uint8Array(words.buffer);
const received = new Uint8Array(CHUNK_BYTES);

/** Bytes of a stream from position `at` on; overwritten by the next call. */
function pattern(seed: number, at: number, length: number): Uint8Array {
  const first = at >>> 2;
  const count = ((at & 3) + length + 3) >>> 2;
  for (let i = 0; i < count; i++) {
    let x = Math.imul((first + i) ^ seed, 0x9e3779b1);
    x ^= x >>> 15;
    words[i] = Math.imul(x, 0x85ebca6b);
  }
  return wordBytes.subarray(at & 3, (at & 3) + length);
}

function seedOf(index: number, toHost: 0 | 1): number {
  return Math.imul(2 * index + toHost + 1, 0x01000193);
}

/** What is counted at one end of a stream. */
export type StreamCounts = {
  sent: number;
  received: number;
  /** Bytes received that were wrong. */
  wrong: number;
};

/** The host's end of one stream. */
export class CheckedStream {
  /** Which of the guest's streams it is. */
  readonly index: number;
  /** Bytes sent. */
  sent = 0;
  /** Bytes received. */
  received = 0;
  /** Bytes received that were wrong. */
  wrong = 0;
  /** The guest has ended it. */
  ended = false;
  /** It was reset, or broke otherwise: in words. */
  broken: string | null = null;
  readonly #conn: LoopbackConn;
  #ending = false;

  /** Runs over `conn`. */
  constructor(index: number, conn: LoopbackConn) {
    this.index = index;
    this.#conn = conn;
  }

  /** Goes on where another process has saved it, over its connection. */
  static restore(saved: unknown, conn: LoopbackConn): CheckedStream {
    const fields = new FieldReader(saved, "stream");
    const stream = new CheckedStream(fields.integer("index", 0, 1000), conn);
    const count = (name: string) =>
      fields.integer(name, 0, Number.MAX_SAFE_INTEGER);
    stream.sent = count("sent");
    stream.received = count("received");
    stream.wrong = count("wrong");
    stream.#ending = fields.boolean("ending");
    stream.ended = fields.boolean("ended");
    return stream;
  }

  /** Ports of its connection. */
  get ports(): { hostPort: number; guestPort: number } {
    const { hostPort, guestPort } = this.#conn;
    return { hostPort, guestPort };
  }

  /** Its position, and the ports of its connection. */
  save(): Plain {
    const { index, sent, received, wrong, ended, ports } = this;
    return { index, sent, received, wrong, ended, ending: this.#ending, ports };
  }

  /** Sends no more; the guest ends its side when it has read all. */
  end(): void {
    this.#ending = true;
    this.#conn.closeWrite();
  }

  /** Moves what can be moved now, up to `limit` bytes each way, 65,536 at most; how many bytes. */
  pump(limit: number = TURN_BYTES): number {
    if (this.ended || this.broken !== null) return 0;
    try {
      return this.#receive(limit) + this.#transmit(limit);
    } catch (error) {
      this.broken = (error as Error).message;
      return 0;
    }
  }

  #receive(limit: number): number {
    const got = this.#conn.tryRead(received.subarray(0, limit));
    if (got === null) {
      this.ended = true;
      this.#conn.close();
      return 0;
    }
    const right = pattern(seedOf(this.index, 1), this.received, got);
    for (let i = 0; i < got; i++) {
      if (received[i] !== right[i]) this.wrong++;
    }
    this.received += got;
    return got;
  }

  #transmit(limit: number): number {
    if (this.#ending || this.ended) return 0;
    const bytes = pattern(seedOf(this.index, 0), this.sent, limit);
    const done = this.#conn.tryWrite(bytes);
    this.sent += done;
    return done;
  }
}

/** What the guest has counted of a stream, modulo 2^32, and the error that it had, or 0. */
export type GuestCounts = StreamCounts & { error: number };

/** What the guest's program says of its streams at the end, by index. */
export function guestCounts(said: string): Map<number, GuestCounts> {
  const counts = new Map<number, GuestCounts>();
  const lines = said.matchAll(
    /^stream (\d+) sent (\d+) received (\d+) wrong (\d+) error (\d+)\r?$/gm,
  );
  for (const line of lines) {
    const [index, sent, got, wrong, error] = line.slice(1).map(Number);
    counts.set(index!, {
      sent: sent!,
      received: got!,
      wrong: wrong!,
      error: error!,
    });
  }
  return counts;
}
