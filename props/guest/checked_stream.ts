/** Bytes that a source prepares and a sink checks at a time. */
const CHUNK_BYTES = 64 * 1024;

/** Fills `words` with the pattern of stream `seed` from word `first` on. */
function fill(
  words: Int32Array,
  count: number,
  first: number,
  seed: number,
): void {
  for (let i = 0; i < count; i++) {
    let x = Math.imul((first + i) ^ seed, 0x9e3779b1);
    x ^= x >>> 15;
    words[i] = Math.imul(x, 0x85ebca6b);
  }
}

/** Index of the first of `count` words that is not the pattern's, or -1. */
function firstDifference(
  words: Int32Array,
  count: number,
  first: number,
  seed: number,
): number {
  for (let i = 0; i < count; i++) {
    let x = Math.imul((first + i) ^ seed, 0x9e3779b1);
    x ^= x >>> 15;
    if (words[i] !== Math.imul(x, 0x85ebca6b)) return i;
  }
  return -1;
}

/**
 * The sending end of a stream whose every byte is known from its position and a seed.
 *
 * A stream may have up to 2^34 bytes; then the pattern repeats.
 */
export class CheckedSource {
  /** Bytes of the stream. */
  readonly total: number;
  /** Bytes sent. */
  sent = 0;
  /** The bytes that are sent next, and some that may have been sent already. */
  readonly chunk: Uint8Array = new Uint8Array(CHUNK_BYTES);
  readonly #seed: number;
  readonly #words: Int32Array;
  #next = 0;
  #end = 0;

  /** Makes the stream `seed`, a u32, of `total` bytes. */
  constructor(seed: number, total: number) {
    this.#seed = seed;
    this.total = total;
    this.#words = new Int32Array(this.chunk.buffer);
  }

  /** True when all was sent. */
  get done(): boolean {
    return this.sent === this.total;
  }

  /** Offers bytes to `send`, which returns how many it took, until it takes none; how many in all. */
  pump(send: (bytes: Uint8Array) => number): number {
    const before = this.sent;
    while (this.sent < this.total) {
      if (this.#next === this.#end) {
        const words = CHUNK_BYTES / 4;
        fill(this.#words, words, this.sent / 4, this.#seed);
        this.#next = 0;
        this.#end = Math.min(CHUNK_BYTES, this.total - this.sent);
      }
      const taken = send(this.chunk.subarray(this.#next, this.#end));
      if (taken === 0) break;
      this.#next += taken;
      this.sent += taken;
    }
    return this.sent - before;
  }
}

/** The receiving end of a {@link CheckedSource}: compares every byte. */
export class CheckedSink {
  /** Bytes of the stream. */
  readonly total: number;
  /** Bytes received. */
  received = 0;
  /** Bytes compared; those of a word that is not complete come later. */
  verified = 0;
  /** Position of the first word with a wrong byte, or -1. */
  wrongAt: number = -1;
  readonly #seed: number;
  readonly #chunk: Uint8Array = new Uint8Array(CHUNK_BYTES);
  readonly #words: Int32Array;
  // Bytes of a word that is not complete, at the chunk's start.
  #left = 0;

  /** Expects the stream `seed` of `total` bytes. */
  constructor(seed: number, total: number) {
    this.#seed = seed;
    this.total = total;
    this.#words = new Int32Array(this.#chunk.buffer);
  }

  /** True when all was received and every byte is right. */
  get done(): boolean {
    return this.wrongAt < 0 && this.verified === this.total &&
      this.received === this.total;
  }

  /** Takes bytes from `read`, which returns how many it put there, until there are none. */
  pump(read: (target: Uint8Array) => number): number {
    const before = this.received;
    for (;;) {
      const taken = read(this.#chunk.subarray(this.#left));
      if (taken === 0) return this.received - before;
      this.received += taken;
      this.#check(this.#left + taken);
    }
  }

  #check(filled: number): void {
    const words = filled >>> 2;
    const first = this.verified / 4;
    const wrong = firstDifference(this.#words, words, first, this.#seed);
    if (wrong >= 0 && this.wrongAt < 0) this.wrongAt = (first + wrong) * 4;
    this.verified += words * 4;
    const left = filled & 3;
    if (words > 0) this.#chunk.copyWithin(0, words * 4, filled);
    this.#left = left;
    if (left === 0 || this.received < this.total) return;
    // The stream ends within a word.
    const last = new Int32Array(1);
    fill(last, 1, this.verified / 4, this.#seed);
    const bytes = new Uint8Array(last.buffer);
    for (let i = 0; i < left; i++) {
      if (this.#chunk[i] !== bytes[i] && this.wrongAt < 0) {
        this.wrongAt = this.verified;
      }
    }
    this.verified += left;
    this.#left = 0;
  }
}
