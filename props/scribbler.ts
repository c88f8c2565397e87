/**
 * Memory that another thread changes.
 *
 * @module
 */

import type { Scribbling } from "./hostile_worker.ts";

/** How many words are a fair race. */
const FAIR_WORDS = 10_000;
/** How long a thread may take to begin, or to write as many. */
const PATIENCE_MS = 30_000;

/** A thread that writes to memory that a device reads. */
export class Scribbler {
  /** Words written until the last `stop()`. */
  words = 0;
  readonly #worker: Worker = new Worker(
    new URL("./hostile_worker.ts", import.meta.url),
    { type: "module" },
  );
  readonly #control: SharedArrayBuffer = new SharedArrayBuffer(8);
  readonly #words: Int32Array = new Int32Array(this.#control);
  #done: Promise<number> | null = null;

  /**
   * Begins to write to `memory`, which must be a `SharedArrayBuffer`.
   *
   * Returns when the first words are written: a thread may take seconds to begin on a busy machine.
   */
  async start(
    memory: ArrayBufferLike,
    seed: number,
    ranges: Scribbling["ranges"],
    values?: number[],
  ): Promise<void> {
    this.#words.fill(0);
    this.#done = new Promise((resolve, reject) => {
      this.#worker.onmessage = ({ data }) => resolve(data);
      this.#worker.onerror = (event) => {
        event.preventDefault();
        reject(new Error(`the other thread failed: ${event.message}`));
      };
    });
    const buffer = memory as SharedArrayBuffer;
    const scribbling: Scribbling = {
      buffer,
      control: this.#control,
      ranges,
      seed,
      ...(values === undefined ? {} : { values }),
    };
    this.#worker.postMessage(scribbling);
    await this.#written(1);
  }

  /** Waits until this many words are written since `start()`. */
  async #written(words: number): Promise<void> {
    const end = performance.now() + PATIENCE_MS;
    while (Atomics.load(this.#words, 1) < words) {
      if (performance.now() > end) {
        throw new Error(`the other thread has not written ${words} words yet`);
      }
      await Promise.race([breathe(), this.#done]);
    }
  }

  /** Ends it after a fair number of words, and waits until nothing more is written. */
  async stop(): Promise<void> {
    if (this.#done !== null) await this.#written(FAIR_WORDS);
    this.halt();
    if (this.#done !== null) this.words += await this.#done;
    this.#done = null;
  }

  /** Tells it to end. */
  halt(): void {
    Atomics.store(this.#words, 0, 1);
  }

  /** Ends the thread. */
  terminate(): void {
    this.halt();
    this.#worker.terminate();
  }
}

/** Runs `test` with another thread, which has to have written something. */
export async function withScribbler(
  test: (scribbler: Scribbler) => Promise<void>,
): Promise<void> {
  const scribbler = new Scribbler();
  try {
    await test(scribbler);
    if (scribbler.words < FAIR_WORDS) {
      throw new Error(`only ${scribbler.words} words were written`);
    }
  } finally {
    scribbler.terminate();
  }
}

/** Lets other tasks and threads have their turn; no test depends on it. */
export const breathe = (): Promise<void> =>
  new Promise((resolve) => setTimeout(resolve, 2));
