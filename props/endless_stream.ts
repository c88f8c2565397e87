/** Random bytes that the pattern is made of; a prime, so that nothing else on the way fits it. */
const UNIT_BYTES = 1031;
/** Each unit of a period is the one before, plus 1 in each byte. More than any buffer on the way. */
const PERIOD_BYTES = 256 * UNIT_BYTES;
/** Bytes that a host program writes or reads at a time. */
const CHUNK_BYTES = 64 * 1024;
/** Distance of the streams' beginnings in the pattern. */
const STREAM_STEP_BYTES = 15_013;

/**
 * Random bytes that repeat: what byte a stream has at a position is known, however long it runs.
 */
export class Pattern {
  /** What the other end needs to make the same pattern. */
  readonly unit: Uint8Array<ArrayBuffer>;
  // Goes on over the end, so that each chunk is in one piece.
  readonly #bytes: Uint8Array;

  /** Makes a new pattern. */
  constructor() {
    this.unit = crypto.getRandomValues(new Uint8Array(UNIT_BYTES));
    this.#bytes = Uint8Array.from(
      { length: PERIOD_BYTES + CHUNK_BYTES },
      (_, i) => this.unit[i % UNIT_BYTES]! + Math.floor(i / UNIT_BYTES),
    );
  }

  /** Where stream `number` begins in the period. */
  static startOf(number: number): number {
    return number * STREAM_STEP_BYTES % PERIOD_BYTES;
  }

  /** Up to 64 KiB of stream `number` from position `at` on. */
  bytes(number: number, at: number, length: number = CHUNK_BYTES): Uint8Array {
    const from = (Pattern.startOf(number) + at) % PERIOD_BYTES;
    return this.#bytes.subarray(from, from + length);
  }

  /** Position in stream `number` of the first of `bytes`, which begin at `at`, that is wrong; or -1. */
  wrongAt(number: number, at: number, bytes: Uint8Array): number {
    const right = this.bytes(number, at, bytes.length);
    for (let i = 0; i < bytes.length; i++) {
      if (bytes[i] !== right[i]) return at + i;
    }
    return -1;
  }
}

/** What is counted at one end of a stream that runs both ways. */
export type StreamCounts = {
  /** Bytes sent. */
  sent: number;
  /** Bytes received. */
  received: number;
  /** Position of the first wrong byte received, or -1. */
  wrongAt: number;
};

/** Both ends agree: all that one sent came to the other, each byte right, in both directions. */
export function sameCounts(near: StreamCounts, far: StreamCounts): boolean {
  return near.wrongAt === -1 && far.wrongAt === -1 &&
    near.received === far.sent && near.sent === far.received;
}

/**
 * A host program's end of a stream that runs both ways without pause until it is told to end.
 *
 * It sends stream `2 * number` of the pattern and expects stream `2 * number + 1`.
 */
export class EndlessStream implements StreamCounts, Disposable {
  /** Bytes sent. */
  sent = 0;
  /** Bytes received. */
  received = 0;
  /** Position of the first wrong byte received, or -1. */
  wrongAt = -1;
  /** The other end is gone before it ended its stream, or while it was sent to. */
  cut = false;
  /** Resolves when both directions are over. */
  readonly finished: Promise<void>;
  readonly #conn: Deno.Conn;
  readonly #pattern: Pattern;
  readonly #number: number;
  #ending = false;

  /** Runs over `conn`, which is the stream's from here on. */
  constructor(conn: Deno.Conn, pattern: Pattern, number: number) {
    this.#conn = conn;
    this.#pattern = pattern;
    this.#number = number;
    this.finished = Promise.all([
      this.#over(this.#send()),
      this.#over(this.#receive()),
    ]).then(() => {});
    // For whoever waits.
    this.finished.catch(() => {});
  }

  /** Ends the sending direction behind what is being sent. */
  end(): void {
    this.#ending = true;
  }

  /** Closes the connection. */
  [Symbol.dispose](): void {
    this.#conn.close();
  }

  async #send(): Promise<void> {
    while (!this.#ending) {
      const bytes = this.#pattern.bytes(2 * this.#number, this.sent);
      this.sent += await this.#conn.write(bytes);
    }
    await this.#conn.closeWrite();
  }

  async #receive(): Promise<void> {
    const chunk = new Uint8Array(CHUNK_BYTES);
    for (;;) {
      const got = await this.#conn.read(chunk);
      if (got === null) return;
      const number = 2 * this.#number + 1;
      const bytes = chunk.subarray(0, got);
      const wrong = this.#pattern.wrongAt(number, this.received, bytes);
      if (wrong >= 0 && this.wrongAt < 0) this.wrongAt = wrong;
      this.received += got;
    }
  }

  async #over(direction: Promise<void>): Promise<void> {
    try {
      await direction;
    } catch (error) {
      // Closed here, or there.
      if (
        !(error instanceof Deno.errors.BrokenPipe ||
          error instanceof Deno.errors.ConnectionReset ||
          error instanceof Deno.errors.BadResource ||
          error instanceof Deno.errors.Interrupted)
      ) throw error;
      this.cut = true;
    }
  }
}
