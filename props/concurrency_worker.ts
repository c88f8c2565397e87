/**
 * The driver's thread of a race over one virtqueue.
 *
 * It takes one message with the race and its shared buffer, says `"ready"` when the ring is set up, runs to the
 * end, and answers with a {@link RaceResult}.
 *
 * @module
 */

import { PackedDriver } from "../ring/packed_driver.ts";
import { BufferList, type DriverQueue } from "../ring/queue.ts";
import { SplitDriver } from "../ring/split_driver.ts";
import {
  Doorbells,
  HEADER_WORDS,
  payloadWord,
  payloadWords,
  raceConfig,
  raceMemory,
  type RaceOptions,
  type RaceResult,
  raceTables,
  raceWords,
  randomBelow,
  REPLY_BYTES,
  replyAddress,
  requestAddress,
  shapeOf,
  wordAt,
} from "./race.ts";

/** What the thread is started with. */
export type RaceStart = { options: RaceOptions; buffer: SharedArrayBuffer };

/** The driver of a race: adds numbered buffers and checks each that comes back. */
class RaceDriver {
  readonly bells: Doorbells;
  reclaimed = 0;
  readonly #options: RaceOptions;
  readonly #queue: DriverQueue;
  readonly #words: Uint32Array;
  readonly #list: BufferList = new BufferList();
  readonly #random: (below: number) => number;
  readonly #freeCells: number[] = [];
  // By token: its buffer's cell or -1, sequence number, and how often the token was used.
  readonly #cell: Int32Array;
  readonly #seq: Uint32Array;
  readonly #generation: Uint32Array;
  #added = 0;
  #window = 1;
  #windowLeft = 0;

  constructor({ options, buffer }: RaceStart) {
    const { ring, size } = options;
    const memory = raceMemory(buffer);
    const Queue = ring === "packed" ? PackedDriver : SplitDriver;
    this.#queue = new Queue(memory, raceConfig(options), raceTables(options));
    this.#options = options;
    this.#words = raceWords(buffer);
    this.#random = randomBelow(options.seed);
    this.bells = new Doorbells(buffer, "driver");
    for (let i = 0; i < size; i++) this.#freeCells.push(i);
    this.#cell = new Int32Array(size).fill(-1);
    this.#seq = new Uint32Array(size);
    this.#generation = new Uint32Array(size);
  }

  run(): void {
    const queue = this.#queue;
    const bells = this.bells;
    const { buffers, timeoutMs } = this.#options;
    while (this.reclaimed < buffers) {
      const seen = bells.count;
      if (bells.stopped) throw new Error(`was stopped; ${this.#state()}`);
      queue.disarmInterrupts();
      this.#reclaim();
      const full = this.#fill();
      if (queue.publish() && queue.needsKick()) bells.ring();
      if (!full || this.reclaimed === buffers) continue;
      if (queue.armInterrupts()) continue;
      if (!bells.sleep(seen, timeoutMs)) {
        const lost = queue.armInterrupts();
        throw new Error(
          `${
            lost
              ? "lost wake-up: buffers were used and no interrupt told of them"
              : "the device stands still"
          }; ${this.#state()}`,
        );
      }
    }
  }

  #state(): string {
    return `${this.#added} added, ${this.reclaimed} taken back`;
  }

  /** Adds a batch; true when the window is full or all were added, so that there is nothing to do but wait. */
  #fill(): boolean {
    const queue = this.#queue;
    const { buffers, size } = this.#options;
    // From one buffer in flight, where both sides sleep for each, to a full ring.
    if (this.#windowLeft <= 0) {
      this.#window = this.#random(24) === 0 ? 1 : 1 + this.#random(size);
      this.#windowLeft = this.#window === 1 ? 64 : 2048;
    }
    for (let batch = 1 + this.#random(32); batch > 0; batch--) {
      if (this.#added === buffers || queue.inFlight >= this.#window) {
        return true;
      }
      if (!this.#add()) return true;
    }
    return false;
  }

  #add(): boolean {
    const seq = this.#added;
    const cell = this.#freeCells.pop();
    if (cell === undefined) return false;
    const payload = payloadWords(seq);
    const shape = shapeOf(seq);
    const request = requestAddress(cell);
    const reply = replyAddress(cell);
    const list = this.#list.clear();
    const bytes = 4 * payload;
    if ((shape & 1) !== 0 && payload > 0) {
      list.addReadable(request, 4 * HEADER_WORDS)
        .addReadable(request + 4 * HEADER_WORDS, bytes);
    } else {
      list.addReadable(request, 4 * HEADER_WORDS + bytes);
    }
    if ((shape & 4) !== 0) {
      list.addWritable(reply, 8).addWritable(reply + 8, REPLY_BYTES - 8);
    } else if ((shape & 2) !== 0) {
      list.addWritable(reply, REPLY_BYTES);
    }
    const token = this.#queue.add(list);
    if (token < 0) {
      this.#freeCells.push(cell);
      return false;
    }
    if (this.#cell[token] !== -1) {
      throw new Error(`token ${token} was given out twice`);
    }
    const generation = this.#generation[token]! + 1;
    this.#generation[token] = generation;
    this.#cell[token] = cell;
    this.#seq[token] = seq;
    const words = this.#words;
    const at = wordAt(request);
    words[at] = seq;
    words[at + 1] = token;
    words[at + 2] = generation;
    words[at + 3] = payload;
    for (let i = 0; i < payload; i++) {
      words[at + HEADER_WORDS + i] = payloadWord(seq, i);
    }
    const answer = wordAt(reply);
    words.fill(0, answer, answer + REPLY_BYTES / 4);
    this.#added++;
    this.#windowLeft--;
    return true;
  }

  #reclaim(): void {
    const queue = this.#queue;
    for (let token = queue.reclaim(); token >= 0; token = queue.reclaim()) {
      const cell = this.#cell[token]!;
      const seq = this.#seq[token]!;
      if (cell < 0) throw new Error(`token ${token} came back twice`);
      if (this.#options.inOrder && seq !== this.reclaimed) {
        throw new Error(`buffer ${seq} came back at place ${this.reclaimed}`);
      }
      const payload = payloadWords(seq);
      const written = (shapeOf(seq) & 6) === 0 ? 0 : 4 * (2 + payload);
      if (queue.usedLength !== written) {
        throw new Error(
          `buffer ${seq} has ${queue.usedLength} bytes, not ${written}`,
        );
      }
      if (written > 0) this.#checkReply(seq, token, cell, payload);
      this.#cell[token] = -1;
      this.#freeCells.push(cell);
      this.reclaimed++;
    }
  }

  #checkReply(seq: number, token: number, cell: number, payload: number): void {
    const words = this.#words;
    const at = wordAt(replyAddress(cell));
    if (words[at] !== seq || words[at + 1] !== this.#generation[token]) {
      throw new Error(
        `buffer ${seq}, generation ${
          this.#generation[token]
        } of token ${token}, has the reply to ${words[at]}, generation ${
          words[at + 1]
        }`,
      );
    }
    for (let i = 0; i < payload; i++) {
      if (words[at + 2 + i] !== (~payloadWord(seq, i)) >>> 0) {
        throw new Error(`buffer ${seq} has a wrong byte in word ${i}`);
      }
    }
    if (words[at + 2 + payload] !== 0) {
      throw new Error(`buffer ${seq} was written behind its length`);
    }
  }
}

/** The worker's side of its messages, which the window's types do not have. */
const scope = globalThis as unknown as {
  onmessage: ((event: MessageEvent<RaceStart>) => void) | null;
  postMessage(message: RaceResult | "ready"): void;
};

scope.onmessage = ({ data }) => {
  const driver = new RaceDriver(data);
  scope.postMessage("ready");
  let problem: string | null = null;
  try {
    driver.run();
  } catch (error) {
    problem = `driver: ${error instanceof Error ? error.message : error}`;
    driver.bells.stop();
  }
  const { sleeps, rings } = driver.bells;
  scope.postMessage({ buffers: driver.reclaimed, sleeps, rings, problem });
};
