/**
 * Bytes that were received and not read: a ring that grows by doubling up to a bound.
 *
 * `write` and `read` copy once; both take constant time a call plus the copy.
 */
export class ByteRing {
  /** Bytes that it may hold. */
  readonly limit: number;
  #bytes: Uint8Array = new Uint8Array(0);
  #head = 0;
  #length = 0;

  /** Makes an empty ring for up to `limit` bytes; takes no memory before the first write. */
  constructor(limit: number) {
    this.limit = limit;
  }

  /** Bytes that wait. */
  get length(): number {
    return this.#length;
  }

  /**
   * Appends bytes `from` to `to - 1` of `source`.
   *
   * @throws {RangeError} when more than `limit` bytes would wait.
   */
  write(source: Uint8Array, from: number, to: number): void {
    const count = to - from;
    if (count === 0) return;
    const length = this.#length + count;
    if (length > this.limit) {
      throw new RangeError(
        `Cannot keep ${length} bytes: the limit is ${this.limit}`,
      );
    }
    if (length > this.#bytes.length) this.#grow(length);
    const bytes = this.#bytes;
    const at = (this.#head + this.#length) & (bytes.length - 1);
    const first = Math.min(count, bytes.length - at);
    bytes.set(source.subarray(from, from + first), at);
    if (first < count) bytes.set(source.subarray(from + first, to), 0);
    this.#length = length;
  }

  /** Moves up to `target.length` bytes into `target` and returns how many. */
  read(target: Uint8Array): number {
    const count = Math.min(target.length, this.#length);
    if (count === 0) return 0;
    const bytes = this.#bytes;
    const head = this.#head;
    const first = Math.min(count, bytes.length - head);
    target.set(bytes.subarray(head, head + first), 0);
    if (first < count) target.set(bytes.subarray(0, count - first), first);
    this.#head = (head + count) & (bytes.length - 1);
    this.#length -= count;
    if (this.#length === 0) this.#head = 0;
    return count;
  }

  /** Forgets all bytes and gives the memory back. */
  clear(): void {
    this.#bytes = new Uint8Array(0);
    this.#head = 0;
    this.#length = 0;
  }

  #grow(length: number): void {
    let capacity = Math.max(4096, this.#bytes.length);
    while (capacity < length) capacity *= 2;
    const next = new Uint8Array(capacity);
    const waiting = this.#length;
    this.read(next.subarray(0, waiting));
    this.#bytes = next;
    this.#head = 0;
    this.#length = waiting;
  }
}
