import { assert, assertEquals } from "@std/assert";
import { Chain } from "../ring/chain.ts";
import { PackedDevice } from "../ring/packed_device.ts";
import type { DeviceQueue } from "../ring/queue.ts";
import { SplitDevice } from "../ring/split_device.ts";
import type { RaceStart } from "./concurrency_worker.ts";
import {
  Doorbells,
  HEADER_WORDS,
  MAX_PAYLOAD_WORDS,
  payloadWord,
  payloadWords,
  RACE_BYTES,
  raceConfig,
  raceMemory,
  type RaceOptions,
  type RaceResult,
  raceWords,
  randomBelow,
  shapeOf,
} from "./race.ts";

// Buffers a race. 70,000 take the indices of a split queue around 2^16.
const BUFFERS = Number(Deno.env.get("RINGSIDE_RACE_BUFFERS") ?? 70_000);
const SEED = Number(
  Deno.env.get("RINGSIDE_RACE_SEED") ?? crypto.getRandomValues(
    new Uint32Array(1),
  )[0],
);
// Generous: the other thread may have to wait for a processor.
const TIMEOUT_MS = 20_000;

/** The device of a race: checks each buffer that it fetches and answers in any order. */
class RaceDevice {
  readonly bells: Doorbells;
  served = 0;
  readonly #options: RaceOptions;
  readonly #queue: DeviceQueue;
  readonly #chain: Chain;
  readonly #words: Uint32Array;
  readonly #random: (below: number) => number;
  readonly #generation: Uint32Array;
  readonly #request: Uint32Array = new Uint32Array(
    HEADER_WORDS + MAX_PAYLOAD_WORDS,
  );
  readonly #reply: Uint32Array = new Uint32Array(2 + MAX_PAYLOAD_WORDS);
  // Fetched and not pushed.
  readonly #tokens: number[] = [];
  readonly #lengths: number[] = [];

  constructor({ options, buffer }: RaceStart) {
    const memory = raceMemory(buffer);
    const Queue = options.ring === "packed" ? PackedDevice : SplitDevice;
    this.#queue = new Queue(memory, raceConfig(options));
    this.#chain = new Chain(memory);
    this.#options = options;
    this.#words = raceWords(buffer);
    this.#random = randomBelow(~options.seed);
    this.#generation = new Uint32Array(options.size);
    this.bells = new Doorbells(buffer, "device");
  }

  run(): void {
    const queue = this.#queue;
    const bells = this.bells;
    const { buffers, timeoutMs } = this.#options;
    while (this.served < buffers) {
      const seen = bells.count;
      if (bells.stopped) throw new Error(`was stopped; ${this.#state()}`);
      queue.disarmKicks();
      let idle = false;
      for (let batch = 1 + this.#random(48); batch > 0; batch--) {
        if (!queue.pop(this.#chain)) {
          idle = true;
          break;
        }
        this.#serve();
      }
      this.#complete();
      if (queue.publish() && queue.needsInterrupt()) bells.ring();
      if (!idle || this.served === buffers || queue.armKicks()) continue;
      if (!bells.sleep(seen, timeoutMs)) {
        const lost = queue.armKicks();
        throw new Error(
          `${
            lost
              ? "lost wake-up: buffers are available and no kick told of them"
              : "the driver stands still"
          }; ${this.#state()}`,
        );
      }
    }
  }

  #state(): string {
    return `${this.served} served`;
  }

  #serve(): void {
    const chain = this.#chain;
    const request = this.#request;
    const expected = this.served;
    if (chain.fault !== null) throw chain.fault;
    const words = this.#words;
    let n = 0;
    for (let row = 0; row < chain.readable; row++) {
      const at = chain.offset[row]! / 4;
      for (let i = 0; i < chain.length[row]! / 4; i++) {
        request[n++] = words[at + i]!;
      }
    }
    const [seq, token, generation, payload] = request;
    if (
      seq !== expected || token !== chain.token ||
      payload !== payloadWords(seq) || n !== HEADER_WORDS + payload
    ) {
      throw new Error(
        `fetched buffer ${seq} as token ${chain.token} with ${n} words: expected ${expected}, which says token ${token}`,
      );
    }
    if (generation !== this.#generation[token]! + 1) {
      throw new Error(
        `fetched generation ${generation} of token ${token} after ${
          this.#generation[token]
        }`,
      );
    }
    this.#generation[token] = generation;
    for (let i = 0; i < payload; i++) {
      if (request[HEADER_WORDS + i] !== payloadWord(seq, i)) {
        throw new Error(`buffer ${seq} has a wrong byte in word ${i}`);
      }
    }
    const writable = (shapeOf(seq) & 6) !== 0;
    assertEquals(chain.count > chain.readable, writable);
    this.#tokens.push(token);
    this.#lengths.push(writable ? this.#answer(seq, generation, payload) : 0);
    this.served++;
  }

  #answer(seq: number, generation: number, payload: number): number {
    const reply = this.#reply;
    reply[0] = seq;
    reply[1] = generation;
    for (let i = 0; i < payload; i++) reply[2 + i] = ~payloadWord(seq, i);
    const chain = this.#chain;
    const words = this.#words;
    let n = 0;
    for (let row = chain.readable; row < chain.count; row++) {
      const at = chain.offset[row]! / 4;
      const end = chain.length[row]! / 4;
      for (let i = 0; i < end && n < 2 + payload; i++) {
        words[at + i] = reply[n++]!;
      }
    }
    return 4 * n;
  }

  /** Pushes what was fetched, in any order that is lawful. */
  #complete(): void {
    const tokens = this.#tokens;
    const lengths = this.#lengths;
    const { inOrder } = this.#options;
    const shuffled = !inOrder && this.#random(4) === 0;
    for (let i = 0; i < tokens.length; i++) {
      if (shuffled) {
        const other = i + this.#random(tokens.length - i);
        [tokens[i], tokens[other]] = [tokens[other]!, tokens[i]!];
        [lengths[i], lengths[other]] = [lengths[other]!, lengths[i]!];
      }
      this.#queue.push(tokens[i]!, lengths[i]!);
    }
    tokens.length = 0;
    lengths.length = 0;
  }
}

async function race(changes: Partial<RaceOptions>): Promise<void> {
  const options: RaceOptions = {
    ring: "split",
    size: 256,
    eventIdx: true,
    indirect: true,
    inOrder: false,
    strongOrdering: false,
    buffers: BUFFERS,
    seed: SEED,
    timeoutMs: TIMEOUT_MS,
    ...changes,
  };
  const start: RaceStart = {
    options,
    buffer: new SharedArrayBuffer(RACE_BYTES),
  };
  const worker = new Worker(
    new URL("./concurrency_worker.ts", import.meta.url),
    { type: "module" },
  );
  try {
    const next = () =>
      new Promise<RaceResult | "ready">((resolve, reject) => {
        worker.onmessage = ({ data }) => resolve(data);
        worker.onerror = (event) => {
          event.preventDefault();
          reject(new Error(`the driver's thread failed: ${event.message}`));
        };
      });
    const ready = next();
    worker.postMessage(start);
    assertEquals(await ready, "ready");
    const result = next();
    const device = new RaceDevice(start);
    const before = performance.now();
    let problem: string | null = null;
    try {
      device.run();
    } catch (error) {
      problem = `device: ${error instanceof Error ? error.message : error}`;
      device.bells.stop();
    }
    const driver = await result;
    const seconds = (performance.now() - before) / 1000;
    assert(driver !== "ready");
    const problems = [problem, driver.problem].filter((text) => text !== null);
    if (problems.length > 0) {
      throw new Error(`${problems.join("\n")}\n(seed ${options.seed})`);
    }
    assertEquals(driver.buffers, options.buffers);
    assertEquals(device.served, options.buffers);
    const { sleeps, rings } = device.bells;
    // deno-lint-ignore no-console
    console.log(
      `${options.buffers} buffers, ${
        Math.round(options.buffers / seconds)
      }/s; device: ${sleeps} sleeps, ${rings} interrupts; driver: ${driver.sleeps} sleeps, ${driver.rings} kicks; seed ${options.seed}`,
    );
    // Where nobody sleeps, no wake-up can be lost; and where each buffer rings, nothing is suppressed.
    assert(sleeps > 0 && driver.sleeps > 0, "a side never slept");
    assert(rings + driver.rings < options.buffers, "nothing was suppressed");
  } finally {
    worker.terminate();
  }
}

const few = Math.ceil(BUFFERS / 3);

Deno.test("SplitDriver and SplitDevice race in two threads with event_idx", async () => {
  await race({ ring: "split" });
});

Deno.test("SplitDriver and SplitDevice race in two threads with flags over a small ring", async () => {
  await race({ ring: "split", eventIdx: false, size: 8, buffers: few });
});

Deno.test("SplitDriver and SplitDevice race in two threads in order", async () => {
  await race({ ring: "split", inOrder: true, size: 64, buffers: few });
});

Deno.test("PackedDriver and PackedDevice race in two threads with event_idx", async () => {
  await race({ ring: "packed", strongOrdering: false });
});

Deno.test("PackedDriver and PackedDevice race in two threads with strong ordering", async () => {
  await race({ ring: "packed", strongOrdering: true, size: 255 });
});

Deno.test("PackedDriver and PackedDevice race in two threads with flags over a small ring", async () => {
  await race({
    ring: "packed",
    eventIdx: false,
    size: 7,
    buffers: few,
    strongOrdering: true,
  });
});

Deno.test("PackedDriver and PackedDevice race in two threads with chains in the ring, in order", async () => {
  await race({
    ring: "packed",
    indirect: false,
    inOrder: true,
    size: 64,
    buffers: few,
  });
});
