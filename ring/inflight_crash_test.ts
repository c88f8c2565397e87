import { assert, assertEquals } from "@std/assert";
import { newDevice, TestPair } from "./_test_pair.ts";
import { Chain } from "./chain.ts";
import { inflightRegionSize, openInflight } from "./inflight.ts";
import type { GuestMemory } from "./memory.ts";
import type { DeviceQueue, QueueConfig, RingFormat } from "./queue.ts";
import { rewindInFlight, saveQueue } from "./save.ts";
import { initialQueueState } from "./state.ts";
import { TrackedQueue } from "./tracked_queue.ts";

// A back-end is stopped after each single store that it makes to the ring or the region in turn. For that,
// the typed arrays that it makes over these two buffers are replaced by proxies that count.

/** The death of a back-end. */
class Stop extends Error {}

const ARRAYS = ["Uint8Array", "Uint16Array", "Uint32Array"] as const;
type Global = Record<string, unknown>;

/** Counts stores to some buffers while it is installed, and stops at one of them. */
class Stores {
  /** Stores so far. */
  count = 0;
  /** After which one to stop. */
  stopAfter = Infinity;
  #counting = false;
  readonly #buffers: Set<unknown>;
  readonly #real = new WeakMap<object, object>();

  constructor(...buffers: ArrayBufferLike[]) {
    this.#buffers = new Set(buffers);
  }

  /** Runs `body` with all arrays that are made in it counted; stores count only in `during()`. */
  install<T>(body: () => T): T {
    const world = globalThis as unknown as Global;
    const saved = new Map<string, unknown>();
    for (const name of ARRAYS) {
      const Real = world[name] as new (...args: unknown[]) => object;
      saved.set(name, Real);
      world[name] = new Proxy(Real, {
        construct: (target, args) => {
          const array = Reflect.construct(target, args) as object;
          return this.#buffers.has(args[0]) ? this.#spy(array) : array;
        },
      });
    }
    const { load, store } = Atomics;
    const plain = (array: object) => this.#real.get(array) ?? array;
    const atomics = Atomics as unknown as Global;
    atomics.load = (array: object, index: number) =>
      load(plain(array) as Uint16Array, index);
    atomics.store = (array: object, index: number, value: number) => {
      store(plain(array) as Uint16Array, index, value);
      if (this.#real.has(array)) this.#tick();
      return value;
    };
    try {
      return body();
    } finally {
      for (const [name, real] of saved) world[name] = real;
      atomics.load = load;
      atomics.store = store;
    }
  }

  /** Runs a step of the back-end. */
  during<T>(step: () => T): T {
    this.#counting = true;
    try {
      return step();
    } finally {
      this.#counting = false;
    }
  }

  #tick(): void {
    if (this.#counting && ++this.count === this.stopAfter) throw new Stop();
  }

  #spy(array: object): object {
    const spy = new Proxy(array, {
      get: (target, key) => {
        const value = Reflect.get(target, key, target) as unknown;
        return typeof value === "function" ? value.bind(target) : value;
      },
      set: (target, key, value) => {
        Reflect.set(target, key, value, target);
        this.#tick();
        return true;
      },
    });
    this.#real.set(spy, array);
    return spy;
  }
}

/** Numbers that look random and are the same in each run. */
function randomOf(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor(state / 0x100000000 * below);
  };
}

const FIRST_LENGTH = 5;
const LATER_LENGTH = 7;

type Kind = {
  format: RingFormat;
  size: number;
  options: Partial<QueueConfig>;
};

/** A driver, its ring and the region, and what is known of its buffers without the device. */
class World {
  readonly pair: TestPair;
  readonly region: Uint8Array<ArrayBuffer>;
  /** Tokens that were made available, in that order, without those taken back. */
  readonly open: number[] = [];

  constructor({ format, size, options }: Kind) {
    this.pair = new TestPair(format, size, options);
    this.region = new Uint8Array(inflightRegionSize(format, size));
  }

  /** A back-end that sets its region up, or goes on from it. */
  backend(): DeviceQueue {
    const { memory, config, format } = this.pair;
    const region = openInflight(format, this.region, memory, config);
    let state = initialQueueState(format);
    if (region.initialized) state = region.recover();
    else region.initialize(state);
    const queue = newDevice(memory, config, format, state);
    return new TrackedQueue(queue, region);
  }

  /** The driver adds what there is room for, up to `count`. */
  add(count: number, random: (below: number) => number): void {
    const { pair } = this;
    for (let i = 0; i < count; i++) {
      const segments = 1 + random(Math.min(3, pair.config.size));
      const token = pair.add(segments - 1, 1);
      if (token >= 0) this.open.push(token);
    }
    pair.driver.publish();
  }

  /** The driver takes everything back that is used, and it must be of these lengths. */
  reclaim(...lengths: number[]): number[] {
    const { driver } = this.pair;
    const back: number[] = [];
    for (let token = driver.reclaim(); token >= 0; token = driver.reclaim()) {
      const at = this.open.indexOf(token);
      assert(at >= 0, `buffer ${token} is used twice`);
      assert(lengths.includes(driver.usedLength), `${driver.usedLength} bytes`);
      this.open.splice(at, 1);
      back.push(token);
    }
    return back;
  }
}

/** Traffic of a first back-end, which may be stopped in it. */
function traffic(world: World, seed: number, stores: Stores): void {
  const random = randomOf(seed);
  const { pair } = world;
  const inOrder = pair.config.inOrder === true;
  const queue = stores.during(() => world.backend());
  const chain = new Chain(pair.memory);
  const held: number[] = [];
  for (let round = 0; round < 7; round++) {
    world.add(1 + random(4), random);
    for (let pops = random(5); pops > 0; pops--) {
      if (!stores.during(() => queue.pop(chain))) break;
      held.push(chain.token);
    }
    if (held.length > 0 && random(4) === 0) {
      // The last one fetched is given back, unless something fetched later was used.
      const token = held.pop()!;
      stores.during(() => {
        try {
          queue.unpop(token);
        } catch (error) {
          if (!(error instanceof TypeError)) throw error;
          held.push(token);
        }
      });
    }
    for (let pushes = random(4); pushes > 0 && held.length > 0; pushes--) {
      const [token] = held.splice(inOrder ? 0 : random(held.length), 1);
      stores.during(() => queue.push(token!, FIRST_LENGTH));
    }
    if (random(4) !== 0) stores.during(() => queue.publish());
    if (random(2) === 0) world.reclaim(FIRST_LENGTH);
  }
}

/** Completes everything by a new back-end, one by one, and sees that each comes back once. */
function finish(world: World, seed: number): void {
  const random = randomOf(seed);
  const { pair } = world;
  const inOrder = pair.config.inOrder === true;
  // What was published is the driver's; the rest is to be handed out once, in order.
  world.reclaim(FIRST_LENGTH);
  const queue = world.backend();
  assertEquals(world.reclaim(), [], "a repair publishes nothing");
  const chain = new Chain(pair.memory);
  for (let lap = 0; lap < 3; lap++) {
    const popped: number[] = [];
    while (queue.pop(chain)) {
      assertEquals(chain.fault, null);
      assert(chain.writableBytes === 16, "a buffer is as its driver made it");
      popped.push(chain.token);
    }
    assertEquals(popped, world.open);
    while (popped.length > 0) {
      const at = inOrder ? 0 : random(popped.length);
      const [token] = popped.splice(at, 1);
      queue.push(token!, LATER_LENGTH);
      assertEquals(world.reclaim(), []);
      queue.publish();
      assertEquals(world.reclaim(LATER_LENGTH), [token]);
    }
    world.add(pair.config.size, random);
  }
}

/** Runs traffic up to its store number `stopAfter`; the world it leaves, and how many stores it made. */
function runTo(
  kind: Kind,
  seed: number,
  stopAfter: number,
): { world: World; count: number } {
  const world = new World(kind);
  const stores = new Stores(world.pair.bytes.buffer, world.region.buffer);
  stores.stopAfter = stopAfter;
  try {
    stores.install(() => traffic(world, seed, stores));
  } catch (error) {
    if (!(error instanceof Stop)) throw error;
  }
  return { world, count: stores.count };
}

function kinds(): Kind[] {
  const list: Kind[] = [];
  for (const format of ["split", "packed"] as const) {
    for (const size of format === "split" ? [1, 4, 8] : [1, 3, 8]) {
      for (const inOrder of [false, true]) {
        for (const indirect of [false, true]) {
          list.push({ format, size, options: { inOrder, indirect } });
        }
      }
    }
  }
  return list;
}

for (const kind of kinds()) {
  const { format, size, options } = kind;
  const name = `${format} queue of ${size}, inOrder ${options.inOrder}, ` +
    `indirect ${options.indirect}`;

  Deno.test(`A back-end that dies after any store loses no buffer and completes none twice: ${name}`, () => {
    let stops = 0;
    for (let seed = 1; seed <= 5; seed++) {
      const { world, count } = runTo(kind, seed, Infinity);
      finish(world, seed);
      for (let stopAfter = 1; stopAfter <= count; stopAfter++) {
        const { world } = runTo(kind, seed, stopAfter);
        finish(world, seed + stopAfter);
        stops++;
      }
    }
    assert(stops > 100, `${stops}`);
  });

  Deno.test(`A back-end that dies after any store of a repair is repaired, too: ${name}`, () => {
    for (let seed = 11; seed <= 11; seed++) {
      const { count } = runTo(kind, seed, Infinity);
      for (let stopAfter = 1; stopAfter <= count; stopAfter++) {
        for (let repair = 1;; repair++) {
          const { world } = runTo(kind, seed, stopAfter);
          const stores = new Stores(
            world.pair.bytes.buffer,
            world.region.buffer,
          );
          stores.stopAfter = repair;
          let died = false;
          stores.install(() => {
            try {
              stores.during(() => world.backend());
            } catch (error) {
              if (!(error instanceof Stop)) throw error;
              died = true;
            }
          });
          finish(world, seed + stopAfter);
          if (!died) break;
        }
      }
    }
  });
}

Deno.test("A queue that was repaired is rewound only where its ring says what was fetched", () => {
  const ways = new Set<string>();
  for (const format of ["split", "packed"] as const) {
    for (const indirect of [false, true]) {
      const kind: Kind = { format, size: 8, options: { indirect } };
      for (let seed = 1; seed <= 6; seed++) {
        const { count } = runTo(kind, seed, Infinity);
        for (let stopAfter = 1; stopAfter <= count; stopAfter++) {
          const { world } = runTo(kind, seed, stopAfter);
          world.reclaim(FIRST_LENGTH);
          const { memory, config } = world.pair;
          const { way, state } = saveQueue(world.backend(), memory, config);
          ways.add(way);
          // Goes on without the region, from what was saved.
          assertEquals(
            poppedBy(newDevice(memory, config, format, state), memory),
            world.open,
          );
          if (way === "rewind") {
            assertEquals(rewindInFlight(memory, config, state), state);
          }
        }
      }
    }
  }
  assertEquals([...ways].sort(), ["carry", "drain", "rewind"]);
});

function poppedBy(queue: DeviceQueue, memory: GuestMemory): number[] {
  const chain = new Chain(memory);
  const tokens: number[] = [];
  while (queue.pop(chain)) {
    assertEquals([chain.fault, chain.writableBytes], [null, 16]);
    tokens.push(chain.token);
  }
  return tokens;
}
