import type { Chain } from "../ring/chain.ts";
import { PassingQueue } from "../ring/passing_queue.ts";
import type { DeviceQueue } from "../ring/queue.ts";
import { VIRTQ_DESC_SIZE } from "../ring/virtio_ring.ts";

/** Buffer ids of a packed queue are 16 bits. */
const ID_LIMIT = 65536;
/** Segments that there is room for at first. */
const FIRST_ROWS = 64;
const NONE = -1;

/** Whoever has to know which bytes of guest memory a device writes. */
export interface WriteLog {
  /** `length` bytes at guest address `address` were written; may be 0. */
  mark(address: number, length: number): void;
}

/** What a {@link LoggedQueue} has to know of its ring. */
export type LoggedRing = {
  /** Guest address of the descriptor area. */
  descriptorArea: number;
  /** VIRTIO_F_EVENT_IDX was negotiated. */
  eventIdx: boolean;
  /** See {@link LoggedQueue.logRing}. */
  logAddress: number;
};

/**
 * A device queue whose writes to guest memory are logged; all else is the queue's that it stands before.
 *
 * Of a buffer it logs the bytes that `push()` says were written, from the first writable one on. Of the
 * ring it logs the entries of completions, the index or flags that publish them, and the words that ask
 * for kicks. It has to see each buffer from its `pop()` on, so it is put before a queue, and taken
 * away, while the queue has no buffer in flight but restored ones that were not fetched yet.
 */
export class LoggedQueue extends PassingQueue {
  readonly #log: WriteLog;
  readonly #split: boolean;
  readonly #eventIdx: boolean;
  readonly #descriptorArea: number;
  #logAddress: number;

  // What the queue has written about kicks last.
  #kicks: "unknown" | "armed" | "off" = "unknown";
  // Where the first completion since the last publish() lies.
  #firstStaged = NONE;

  // By token: the first row of its writable segments. Rows are linked, free ones too; there are as many
  // as the buffers that were in flight at a time had segments.
  #first: Int32Array;
  #next: Int32Array = new Int32Array(FIRST_ROWS);
  #address: Float64Array = new Float64Array(FIRST_ROWS);
  #length: Float64Array = new Float64Array(FIRST_ROWS);
  #rows = 0;
  #freeRow = NONE;

  /**
   * Stands before `queue`. Words that ask for kicks are logged at once: a queue that was restored has
   * written them when it was made.
   */
  constructor(queue: DeviceQueue, log: WriteLog, ring: LoggedRing) {
    super(queue);
    this.#log = log;
    this.#split = queue.format === "split";
    this.#eventIdx = ring.eventIdx;
    this.#descriptorArea = ring.descriptorArea;
    this.#logAddress = ring.logAddress;
    this.#first = new Int32Array(queue.size).fill(NONE);
    this.#markEvent();
  }

  /**
   * Logs writes to the ring from now on. `address` is what the first byte of the used ring (split) or
   * of the device event structure (packed) counts as in the log; -1 ends it. The descriptors of a packed
   * ring, which the device writes too, are logged at their guest address.
   */
  logRing(address: number): void {
    this.#logAddress = address;
  }

  /** Fetches a buffer and notes where it is writable. */
  override pop(chain: Chain): boolean {
    if (!this.queue.pop(chain)) return false;
    const { token, readable, memory } = chain;
    if (token >= this.#first.length) this.#growTokens();
    let first = NONE;
    for (let i = chain.count - 1; i >= readable; i--) {
      const row = this.#takeRow();
      this.#address[row] = memory.regions[chain.region[i]!]!.guestAddress +
        chain.offset[i]!;
      this.#length[row] = chain.length[i]!;
      this.#next[row] = first;
      first = row;
    }
    this.#first[token] = first;
    return true;
  }

  /** Gives a buffer back; nothing was written to it. */
  override unpop(token: number): void {
    this.queue.unpop(token);
    this.#forget(token, 0);
  }

  /** Stages a completion and logs the bytes that were written. */
  override push(token: number, written: number): void {
    const position = this.queue.usedPosition;
    this.queue.push(token, written);
    this.#forget(token, written);
    if (this.#firstStaged === NONE) this.#firstStaged = position;
    this.#markEntry(position);
  }

  /** Publishes what was staged and logs that. */
  override publish(): boolean {
    const published = this.queue.publish();
    const first = this.#firstStaged;
    this.#firstStaged = NONE;
    if (published && this.#logAddress >= 0) {
      if (this.#split) this.#log.mark(this.#logAddress + 2, 2);
      else if (first !== NONE) this.#markEntry(first);
    }
    return published;
  }

  /** Asks for kicks and logs the words that say so. */
  override armKicks(): boolean {
    const came = this.queue.armKicks();
    // A packed queue writes flags only where they change.
    if (this.#split || this.#eventIdx || this.#kicks !== "armed") {
      this.#markEvent();
    }
    this.#kicks = "armed";
    return came;
  }

  /** Tells the driver that kicks are not needed, and logs that where it is written. */
  override disarmKicks(): void {
    this.queue.disarmKicks();
    // With VIRTIO_F_EVENT_IDX, events that were armed need no taking back.
    if (this.#eventIdx && (this.#split || this.#kicks !== "unknown")) return;
    if (this.#kicks === "off") return;
    this.#kicks = "off";
    const address = this.#logAddress;
    if (address >= 0) this.#log.mark(address, this.#split ? 2 : 4);
  }

  // The words that armKicks() writes.
  #markEvent(): void {
    const address = this.#logAddress;
    if (address < 0) return;
    if (!this.#split) this.#log.mark(address, 4);
    else if (this.#eventIdx) this.#log.mark(address + 4 + 8 * this.size, 2);
    else this.#log.mark(address, 2);
  }

  // The used element (split), or length, id and flags of the used descriptor (packed).
  #markEntry(position: number): void {
    if (this.#logAddress < 0) return;
    const entry = this.#split
      ? this.#logAddress + 4 + 8 * position
      : this.#descriptorArea + VIRTQ_DESC_SIZE * position + 8;
    this.#log.mark(entry, 8);
  }

  // Frees the rows of a buffer and marks the first `written` bytes.
  #forget(token: number, written: number): void {
    const next = this.#next;
    let left = written;
    let row = this.#first[token] ?? NONE;
    this.#first[token] = NONE;
    while (row !== NONE) {
      const length = this.#length[row]!;
      const take = left < length ? left : length;
      this.#log.mark(this.#address[row]!, take);
      left -= take;
      const following = next[row]!;
      next[row] = this.#freeRow;
      this.#freeRow = row;
      row = following;
    }
  }

  #takeRow(): number {
    const row = this.#freeRow;
    if (row !== NONE) {
      this.#freeRow = this.#next[row]!;
      return row;
    }
    if (this.#rows === this.#next.length) this.#growRows();
    return this.#rows++;
  }

  #growRows(): void {
    const capacity = this.#next.length * 2;
    const next = new Int32Array(capacity);
    const address = new Float64Array(capacity);
    const length = new Float64Array(capacity);
    next.set(this.#next);
    address.set(this.#address);
    length.set(this.#length);
    this.#next = next;
    this.#address = address;
    this.#length = length;
  }

  #growTokens(): void {
    const first = new Int32Array(ID_LIMIT).fill(NONE);
    first.set(this.#first);
    this.#first = first;
  }
}
