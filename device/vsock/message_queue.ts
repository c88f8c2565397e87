import { ByteQueue } from "./byte_queue.ts";

/**
 * Empty messages that wait for a host program at most. They take no credit, so that a guest could send
 * them without end.
 */
export const MAX_EMPTY_MESSAGES = 1024;

/**
 * A bounded queue of messages: what a host program has not taken yet, and at the end what has come of
 * a message that is not complete.
 *
 * Takes 4 bytes a message beside its bytes; while it is empty it holds what a {@link ByteQueue} does.
 */
export class MessageQueue {
  /** Bytes, those of the incomplete message included; the caller may fill and count them. */
  readonly bytes: ByteQueue;
  // Twice the length of each whole message, plus 1 at the end of a record: a ring.
  #words: Uint32Array = EMPTY;
  #first = 0;
  #count = 0;
  #empty = 0;
  #complete = 0;

  /** Makes an empty queue for messages of at most `limit` bytes in all, less than 2^31. */
  constructor(limit: number) {
    this.bytes = new ByteQueue(limit);
  }

  /** Whole messages. */
  get count(): number {
    return this.#count;
  }

  /** Bytes of the message at the end that is not complete. */
  get partial(): number {
    return this.bytes.length - this.#complete;
  }

  /** Length of the first message; there must be one. */
  get firstLength(): number {
    return this.#words[this.#first]! >>> 1;
  }

  /** The first message ends a record; there must be one. */
  get firstEndsRecord(): boolean {
    return (this.#words[this.#first]! & 1) !== 0;
  }

  /** Completes the message at the end; false, with nothing done, where too many are empty. */
  complete(endOfRecord: boolean): boolean {
    const length = this.partial;
    if (length === 0) {
      if (this.#empty >= MAX_EMPTY_MESSAGES) return false;
      this.#empty++;
    }
    if (this.#count === this.#words.length) this.#grow();
    const at = (this.#first + this.#count) % this.#words.length;
    this.#words[at] = length * 2 + (endOfRecord ? 1 : 0);
    this.#count++;
    this.#complete += length;
    return true;
  }

  /** The first message: a view that is valid until the next change, or a copy of it. */
  peek(): Uint8Array {
    const length = this.firstLength;
    const piece = this.bytes.peek();
    return piece.length >= length
      ? piece.subarray(0, length)
      : this.bytes.copy(length);
  }

  /** Drops the first message; there must be one. */
  drop(): void {
    const length = this.firstLength;
    this.bytes.drop(length);
    this.#complete -= length;
    if (length === 0) this.#empty--;
    this.#count--;
    this.#first = (this.#first + 1) % this.#words.length;
    if (this.#count === 0) {
      this.#words = EMPTY;
      this.#first = 0;
    }
  }

  /** Drops everything, and the memory. */
  clear(): void {
    this.bytes.clear();
    this.#words = EMPTY;
    this.#first = 0;
    this.#count = 0;
    this.#empty = 0;
    this.#complete = 0;
  }

  /** Its whole messages: twice the length, plus 1 at the end of a record. */
  save(): number[] {
    const words: number[] = [];
    for (let i = 0; i < this.#count; i++) {
      words.push(this.#words[(this.#first + i) % this.#words.length]!);
    }
    return words;
  }

  /** Fills an empty queue with what was saved and checked. */
  restore(bytes: Uint8Array, words: readonly number[]): void {
    let at = 0;
    for (const word of words) {
      const length = word >>> 1;
      this.bytes.push(bytes.subarray(at, at + length));
      this.complete((word & 1) !== 0);
      at += length;
    }
    this.bytes.push(bytes.subarray(at));
  }

  #grow(): void {
    // No more can there be: what is not empty has a byte.
    const most = this.bytes.limit + MAX_EMPTY_MESSAGES;
    const capacity = Math.min(Math.max(16, this.#words.length * 2), most);
    const grown = new Uint32Array(capacity);
    for (let i = 0; i < this.#count; i++) {
      grown[i] = this.#words[(this.#first + i) % this.#words.length]!;
    }
    this.#words = grown;
    this.#first = 0;
  }
}

const EMPTY = new Uint32Array(0);
