/**
 * Memory that another thread changes.
 *
 * @module
 */

import type { Scribbling } from "./hostile_worker.ts";

/** A thread that writes to memory that a device reads. */
export class Scribbler {
  /** Words written until the last `stop()`. */
  words = 0;
  readonly #worker: Worker = new Worker(
    new URL("./hostile_worker.ts", import.meta.url),
    { type: "module" },
  );
  readonly #control: SharedArrayBuffer = new SharedArrayBuffer(4);
  #done: Promise<number> | null = null;

  /** Begins to write; a `SharedArrayBuffer` it must be. */
  start(
    memory: ArrayBufferLike,
    seed: number,
    ranges: Scribbling["ranges"],
    values?: number[],
  ): void {
    new Int32Array(this.#control)[0] = 0;
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
  }

  /** Ends it, and waits until nothing more is written. */
  async stop(): Promise<void> {
    Atomics.store(new Int32Array(this.#control), 0, 1);
    if (this.#done !== null) this.words += await this.#done;
    this.#done = null;
  }

  /** Ends the thread. */
  terminate(): void {
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
    if (scribbler.words < 10_000) {
      throw new Error(`only ${scribbler.words} words were written`);
    }
  } finally {
    await scribbler.stop();
    scribbler.terminate();
  }
}

/** Gives the other thread time to begin; no test depends on it. */
export const breathe = (): Promise<void> =>
  new Promise((resolve) => setTimeout(resolve, 2));
