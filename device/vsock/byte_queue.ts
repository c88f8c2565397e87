/** Memory that a queue takes first, and keeps while it is empty: allocating it anew would cost every packet. */
const FIRST_BYTES = 4096;

/**
 * A bounded queue of bytes: what a host program has not taken yet.
 *
 * Holds no memory before its first byte, and no more than 4 KiB while it is empty; grows by doubling up to its
 * limit.
 */
export class ByteQueue {
  /** Bytes that it can hold. */
  readonly limit: number;
  #buffer: Uint8Array = EMPTY;
  #start = 0;
  #length = 0;

  /** Makes an empty queue for at most `limit` bytes. */
  constructor(limit: number) {
    this.limit = limit;
  }

  /** Bytes in the queue. */
  get length(): number {
    return this.#length;
  }

  /**
   * Makes room for `length` bytes behind the last one and returns it, in one or two pieces in
   * order, for the caller to fill; they count as queued.
   *
   * @throws {RangeError} when that exceeds the limit.
   */
  extend(length: number): [Uint8Array, Uint8Array] {
    const total = this.#length + length;
    if (total > this.limit) {
      throw new RangeError(
        `Cannot queue ${length} bytes: ${this.#length} of ${this.limit} are taken`,
      );
    }
    if (total > this.#buffer.length) this.#grow(total);
    const capacity = this.#buffer.length;
    const at = (this.#start + this.#length) % capacity;
    this.#length = total;
    const first = Math.min(length, capacity - at);
    return [
      this.#buffer.subarray(at, at + first),
      this.#buffer.subarray(0, length - first),
    ];
  }

  /** Queues a copy of `bytes`. */
  push(bytes: Uint8Array): void {
    const [first, second] = this.extend(bytes.length);
    first.set(bytes.subarray(0, first.length));
    second.set(bytes.subarray(first.length));
  }

  /** The first bytes, as many as lie in one piece; a view that is valid until the next change. */
  peek(): Uint8Array {
    const end = Math.min(this.#start + this.#length, this.#buffer.length);
    return this.#buffer.subarray(this.#start, end);
  }

  /** A copy of the first `length` bytes, all unless told; they stay in the queue. */
  copy(length: number = this.#length): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(length);
    const first = this.peek().subarray(0, length);
    bytes.set(first);
    bytes.set(this.#buffer.subarray(0, length - first.length), first.length);
    return bytes;
  }

  /** Drops the first `length` bytes. */
  drop(length: number): void {
    if (length > this.#length) {
      throw new RangeError(
        `Cannot drop ${length} bytes: ${this.#length} are queued`,
      );
    }
    this.#length -= length;
    if (this.#length === 0) {
      this.#start = 0;
      if (this.#buffer.length > FIRST_BYTES) this.#buffer = EMPTY;
    } else this.#start = (this.#start + length) % this.#buffer.length;
  }

  /** Drops everything, and the memory. */
  clear(): void {
    this.#buffer = EMPTY;
    this.#start = 0;
    this.#length = 0;
  }

  #grow(needed: number): void {
    let capacity = Math.max(FIRST_BYTES, this.#buffer.length);
    while (capacity < needed) capacity *= 2;
    const grown = new Uint8Array(Math.min(capacity, this.limit));
    const first = this.peek();
    grown.set(first);
    grown.set(
      this.#buffer.subarray(0, this.#length - first.length),
      first.length,
    );
    this.#buffer = grown;
    this.#start = 0;
  }
}

const EMPTY = new Uint8Array(0);
