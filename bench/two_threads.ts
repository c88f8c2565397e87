import { type BatchDeviceQueue, ChainBatch, type RingFormat } from "../mod.ts";
import { MEMORY_BYTES, RingMemory } from "./ring_memory.ts";

/** Buffers that the driver has in flight at most. */
const OUTSTANDING = 64;
/** Bytes that the device says it wrote. */
const WRITTEN = 7;

// Words by which the driver's thread starts a run and the device's tells of its end.
const RUN = 0;
const BUFFERS = 1;
const ENDED = 2;
const BYTES = 3;
/** Never written. */
const NOTHING = 4;
const WORDS = 5;
/** Looks without work after which a thread lets others run: where there are more threads than cores. */
const IDLE_LOOKS = 10_000;
const IDLE_MS = 0.05;
/** Run that asks the device's thread to end. */
const STOP = -1;

/** What the device's thread is started with. */
export type TwoThreadsOrder = {
  format: RingFormat;
  batch: number;
  buffer: SharedArrayBuffer;
  control: SharedArrayBuffer;
};

/** Driver and device in two threads, both looking for work without rest while they run. */
export class TwoThreads {
  readonly #ring: RingMemory;
  readonly #batch: number;
  readonly #worker: Worker;
  readonly #control: Int32Array;
  readonly #move: (buffers: number) => number;
  #runs = 0;

  /** Starts the device's thread. @param batch Buffers that are published at once. */
  constructor(format: RingFormat, batch: number) {
    const buffer = new SharedArrayBuffer(MEMORY_BYTES);
    const control = new SharedArrayBuffer(WORDS * 4);
    this.#ring = new RingMemory(format, { buffer });
    this.#batch = batch;
    this.#control = new Int32Array(control);
    this.#move = this.#driver();
    this.#worker = new Worker(
      new URL("./two_threads_worker.ts", import.meta.url),
      { type: "module" },
    );
    const order: TwoThreadsOrder = { format, batch, buffer, control };
    this.#worker.postMessage(order);
  }

  /** Moves that many buffers; the milliseconds that they took, from the first that came back. */
  run(buffers: number): number {
    const control = this.#control;
    control[BUFFERS] = buffers;
    this.#start(++this.#runs);
    const ms = this.#move(buffers);
    while (Atomics.load(control, ENDED) !== this.#runs) rest(control);
    if (control[BYTES] !== buffers * this.#ring.bytes % 2 ** 31) {
      throw new Error(`the device saw ${control[BYTES]} bytes`);
    }
    return ms;
  }

  /** Ends the device's thread. */
  close(): void {
    this.#start(STOP);
    this.#worker.terminate();
  }

  #start(run: number): void {
    Atomics.store(this.#control, RUN, run);
    Atomics.notify(this.#control, RUN);
  }

  #driver(): (buffers: number) => number {
    const ring = this.#ring;
    const batch = this.#batch;
    const control = this.#control;
    const driver = ring.driver();
    const lists = Array.from({ length: ring.buffers }, (_, i) => ring.list(i));
    // What is added at once; buffers are taken in turns.
    const batches = Array.from(
      { length: lists.length / batch },
      (_, i) => lists.slice(i * batch, (i + 1) * batch),
    );
    const tokens = new Uint32Array(batch);
    const used = new Uint32Array(OUTSTANDING);
    const lengths = new Float64Array(OUTSTANDING);
    return (buffers) => {
      let added = 0;
      let moved = 0;
      let start = 0;
      let idle = 0;
      while (moved < buffers) {
        // Both run once the first buffers are back.
        if (start === 0 && moved > 0) start = performance.now();
        while (added < buffers && added - moved + batch <= OUTSTANDING) {
          driver.addBatch(batches[added / batch % batches.length]!, tokens);
          added += batch;
          driver.publish();
          driver.needsKick();
        }
        const count = driver.reclaimBatch(used, lengths);
        if (count !== 0) idle = 0;
        else if (++idle === IDLE_LOOKS) idle = rest(control);
        for (let i = 0; i < count; i++) if (lengths[i] === WRITTEN) moved++;
      }
      return performance.now() - start;
    };
  }
}

/** Lets other threads run for a moment; returns 0. */
function rest(control: Int32Array): number {
  Atomics.wait(control, NOTHING, 0, IDLE_MS);
  return 0;
}

/** The device's thread: serves one run after the other until it is asked to end. */
export function serveRuns(order: TwoThreadsOrder): void {
  const { format, batch, buffer } = order;
  const control = new Int32Array(order.control);
  const ring = new RingMemory(format, { buffer });
  const device = ring.device();
  const chains = new ChainBatch(ring.memory, batch);
  for (let run = 1;; run++) {
    Atomics.wait(control, RUN, run - 1);
    if (Atomics.load(control, RUN) === STOP) return;
    control[BYTES] = serve(device, chains, control) % 2 ** 31;
    Atomics.store(control, ENDED, run);
  }
}

function serve(
  device: BatchDeviceQueue,
  batch: ChainBatch,
  control: Int32Array,
): number {
  const buffers = control[BUFFERS]!;
  const { readableBytes, writableBytes, written } = batch;
  let bytes = 0;
  let idle = 0;
  for (let done = 0; done < buffers;) {
    const count = device.popBatch(batch);
    if (count === 0) {
      if (++idle === IDLE_LOOKS) idle = rest(control);
      continue;
    }
    idle = 0;
    for (let i = 0; i < count; i++) {
      bytes += readableBytes[i]! + writableBytes[i]!;
      written[i] = WRITTEN;
    }
    device.pushBatch(batch);
    device.publish();
    device.needsInterrupt();
    done += count;
  }
  return bytes;
}
