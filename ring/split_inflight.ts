import {
  badRegion,
  checkFlag,
  checkHeader,
  checkRegion,
  INFLIGHT_VERSION,
  readCounter,
} from "./_inflight.ts";
import { IDX, splitViews } from "./_split_layout.ts";
import { indirectEntries, resolveSplit } from "./_split_resolve.ts";
import type { InflightRegion } from "./inflight.ts";
import type { GuestMemory } from "./memory.ts";
import type { QueueConfig, QueueState, RingFormat } from "./queue.ts";

// QueueRegionSplit, in 16-bit words: features (4 of them), then these.
const VERSION = 4;
const DESC_NUM = 5;
const LAST_BATCH_HEAD = 6;
const USED_IDX = 7;
const HEADER_BYTES = 16;
// DescStateSplit: a byte `inflight`, `next` at byte 6, `counter` at byte 8.
const ENTRY_BYTES = 16;

const TWO_32 = 0x100000000;

/**
 * The in-flight region of a split queue: a flag and a counter for each head, and a list of those that
 * were published last (vhost-user, "Inflight I/O tracking", `QueueRegionSplit`).
 *
 * The flags of a batch are taken back after `used.idx` has told of it. A crash between the two shows in
 * `used_idx`, the region's copy of `used.idx`; the list then says whose flags are wrong.
 */
export class SplitInflight implements InflightRegion {
  /** Always `"split"`. */
  readonly format: RingFormat = "split";
  /** Descriptors. */
  readonly size: number;

  readonly #config: QueueConfig;
  readonly #u8: Uint8Array;
  readonly #u16: Uint16Array;
  readonly #u32: Uint32Array;
  #memory: GuestMemory;
  #counter = 0;
  #lastBatchHead = 0;
  #usedIdx = 0;
  // Heads of completions that are staged.
  readonly #staged: Uint16Array;
  #stagedCount = 0;

  /** Opens a region: see `openInflight()`. */
  constructor(bytes: Uint8Array, memory: GuestMemory, config: QueueConfig) {
    splitViews(memory, config);
    const { size } = config;
    const length = HEADER_BYTES + ENTRY_BYTES * size;
    checkRegion(bytes, length);
    this.size = size;
    this.#config = { ...config };
    this.#memory = memory;
    this.#u8 = new Uint8Array(bytes.buffer, bytes.byteOffset, length);
    this.#u16 = new Uint16Array(bytes.buffer, bytes.byteOffset, length / 2);
    this.#u32 = new Uint32Array(bytes.buffer, bytes.byteOffset, length / 4);
    this.#staged = new Uint16Array(size);
  }

  /** See {@link InflightRegion.initialized}. */
  get initialized(): boolean {
    return this.#u16[VERSION] !== 0;
  }

  /** See {@link InflightRegion.initialize}. */
  initialize(state: QueueState): void {
    if (state.format !== "split") {
      throw new TypeError("Cannot set up a split region: the state is packed");
    }
    Atomics.store(this.#u16, VERSION, 0);
    this.#u32.fill(0);
    this.#u16[DESC_NUM] = this.size;
    this.#u16[USED_IDX] = state.usedIdx;
    this.#usedIdx = state.usedIdx;
    this.#lastBatchHead = 0;
    this.#stagedCount = 0;
    this.#counter = 0;
    for (const { id } of state.inFlight) this.fetched(id);
    Atomics.store(this.#u16, VERSION, INFLIGHT_VERSION);
  }

  /** See {@link InflightRegion.recover}. */
  recover(): QueueState {
    const u16 = this.#u16;
    const { size } = this;
    checkHeader(u16[VERSION]!, u16[DESC_NUM]!, size);
    const views = splitViews(this.#memory, this.#config);
    const usedIdx = Atomics.load(views.used, IDX);
    this.#takeBackLastBatch(usedIdx);

    const found: { id: number; counter: number }[] = [];
    for (let id = 0; id < size; id++) {
      const at = HEADER_BYTES + id * ENTRY_BYTES;
      if (!checkFlag(this.#u8[at]!, `inflight of entry ${id}`)) continue;
      found.push({ id, counter: readCounter(this.#u32, at / 4 + 2) });
    }
    found.sort((a, b) => a.counter - b.counter);
    this.#counter = (found.at(-1)?.counter ?? -1) + 1;
    this.#lastBatchHead = u16[LAST_BATCH_HEAD]!;
    this.#usedIdx = usedIdx;
    this.#stagedCount = 0;
    const table = {
      memory: this.#memory,
      table: views.table,
      size,
      maxIndirect: indirectEntries(this.#config),
    };
    return {
      format: "split",
      lastAvailIdx: (usedIdx + found.length) & 0xffff,
      usedIdx,
      inFlight: found.map(({ id }) => resolveSplit(table, id)),
    };
  }

  // Where used.idx has told of a batch, and the region was not brought up to that.
  #takeBackLastBatch(usedIdx: number): void {
    const u16 = this.#u16;
    const batch = (usedIdx - u16[USED_IDX]!) & 0xffff;
    if (batch > this.size) {
      throw badRegion(
        `used.idx is ${usedIdx}, ${batch} ahead of the region's`,
      );
    }
    const seen = new Set<number>();
    let head = u16[LAST_BATCH_HEAD]!;
    for (let i = 0; i < batch; i++) {
      if (head >= this.size || seen.has(head)) {
        throw badRegion(`the last batch's list does not have ${batch} entries`);
      }
      seen.add(head);
      head = u16[(HEADER_BYTES + head * ENTRY_BYTES) / 2 + 3]!;
    }
    for (const id of seen) this.#u8[HEADER_BYTES + id * ENTRY_BYTES] = 0;
    if (batch !== 0) Atomics.store(u16, USED_IDX, usedIdx);
  }

  /** See {@link InflightRegion.fetched}. */
  fetched(token: number): void {
    const at = HEADER_BYTES + token * ENTRY_BYTES;
    const counter = this.#counter++;
    this.#u32[at / 4 + 2] = counter;
    this.#u32[at / 4 + 3] = counter / TWO_32;
    Atomics.store(this.#u8, at, 1);
  }

  /** See {@link InflightRegion.returned}. */
  returned(token: number): void {
    this.#u8[HEADER_BYTES + token * ENTRY_BYTES] = 0;
  }

  /** See {@link InflightRegion.stage}. */
  stage(token: number): void {
    this.#staged[this.#stagedCount++] = token;
  }

  /** See {@link InflightRegion.beginPublish}. */
  beginPublish(): void {
    if (this.#stagedCount === 0) return;
    const u16 = this.#u16;
    let last = this.#lastBatchHead;
    for (let i = 0; i < this.#stagedCount; i++) {
      const head = this.#staged[i]!;
      u16[(HEADER_BYTES + head * ENTRY_BYTES) / 2 + 3] = last;
      last = head;
    }
    u16[LAST_BATCH_HEAD] = last;
    this.#lastBatchHead = last;
  }

  /** See {@link InflightRegion.endPublish}. */
  endPublish(): void {
    if (this.#stagedCount === 0) return;
    for (let i = 0; i < this.#stagedCount; i++) {
      this.#u8[HEADER_BYTES + this.#staged[i]! * ENTRY_BYTES] = 0;
    }
    this.#usedIdx = (this.#usedIdx + this.#stagedCount) & 0xffff;
    this.#stagedCount = 0;
    Atomics.store(this.#u16, USED_IDX, this.#usedIdx);
  }

  /** See {@link InflightRegion.rebind}. */
  rebind(memory: GuestMemory): void {
    splitViews(memory, this.#config);
    this.#memory = memory;
  }
}
