import { assert, assertEquals, assertThrows } from "@std/assert";
import { Chain } from "./chain.ts";
import { GuestMemory } from "./memory.ts";
import { PackedDevice } from "./packed_device.ts";
import { PackedDriver } from "./packed_driver.ts";
import {
  BufferList,
  type DeviceQueue,
  type DriverQueue,
  type QueueConfig,
  type QueueState,
} from "./queue.ts";
import { SplitDevice } from "./split_device.ts";
import { SplitDriver } from "./split_driver.ts";

// One script for every kind of queue: what can be observed through the contract is the same.

const BASE = 0x40000000;
const RING_BYTES = 0x80000;
const TABLES = BASE + RING_BYTES;
const TABLE_ENTRIES = 8;
const DATA = BASE + 2 * RING_BYTES;
const CELL = 64;
const CELLS = 4096;

type Kind = {
  name: string;
  format: "split" | "packed";
  strongOrdering: boolean;
};

const KINDS: readonly Kind[] = [
  { name: "split", format: "split", strongOrdering: false },
  { name: "packed, weak ordering", format: "packed", strongOrdering: false },
  { name: "packed, strong ordering", format: "packed", strongOrdering: true },
];

type Options = {
  size: number;
  eventIdx?: boolean;
  indirect?: boolean;
  /** Takes shared memory, as between two threads. */
  shared?: boolean;
};

/** A driver and a device over one memory, and a log of what each observes. */
class Pair {
  readonly kind: Kind;
  readonly memory: GuestMemory;
  readonly config: QueueConfig;
  readonly driver: DriverQueue;
  device: DeviceQueue;
  readonly chain: Chain;
  readonly log: string[] = [];
  /** Name of each buffer by its token, for a log that names no token. */
  readonly names: Map<number, string> = new Map();
  #cell = 0;
  #serial = 0;

  constructor(kind: Kind, options: Options) {
    this.kind = kind;
    const bytes = 2 * RING_BYTES + CELL * CELLS;
    const buffer = options.shared
      ? new SharedArrayBuffer(bytes)
      : new ArrayBuffer(bytes);
    this.memory = new GuestMemory([{
      guestAddress: BASE,
      size: bytes,
      buffer,
    }]);
    const { size, eventIdx = false, indirect = false } = options;
    this.config = {
      size,
      descriptorArea: BASE,
      driverArea: BASE + 0x80000 - 0x20000,
      deviceArea: BASE + 0x80000 - 0x10000 - 0x40000,
      eventIdx,
      indirect,
      strongOrdering: kind.strongOrdering,
    };
    const tables = indirect
      ? { indirect: { address: TABLES, entries: TABLE_ENTRIES } }
      : {};
    if (kind.format === "split") {
      this.driver = new SplitDriver(this.memory, this.config, tables);
      this.device = new SplitDevice(this.memory, this.config);
    } else {
      this.driver = new PackedDriver(this.memory, this.config, tables);
      this.device = new PackedDevice(this.memory, this.config);
    }
    this.chain = new Chain(this.memory);
  }

  /** A device that goes on from a state which went through JSON. */
  restore(state: QueueState): void {
    const copy = JSON.parse(JSON.stringify(state)) as QueueState;
    this.device = this.kind.format === "split"
      ? new SplitDevice(this.memory, this.config, copy)
      : new PackedDevice(this.memory, this.config, copy);
  }

  /** Adds a buffer of some readable and some writable segments; its name, or null while full. */
  add(readable: number, writable: number): string | null {
    const list = new BufferList(readable + writable);
    const name = `b${this.#serial}`;
    const cell = this.#cell;
    for (let i = 0; i < readable + writable; i++) {
      const address = DATA + ((cell + i) % CELLS) * CELL;
      if (i < readable) list.addReadable(address, 1 + (cell + i) % 60);
      else list.addWritable(address, 1 + (cell + i) % 60);
    }
    const token = this.driver.add(list);
    if (token < 0) {
      this.log.push(`full`);
      return null;
    }
    assert(!this.names.has(token), `token ${token} is in use`);
    this.names.set(token, name);
    this.#cell += readable + writable;
    this.#serial++;
    return name;
  }

  publish(): void {
    this.log.push(
      `driver published ${this.driver.publish()}, kick ${this.driver.needsKick()}`,
    );
  }

  /** Pops one buffer: its token, or -1. */
  pop(): number {
    const { chain, device } = this;
    if (!device.pop(chain)) {
      this.log.push("nothing");
      return -1;
    }
    const segments: string[] = [];
    for (let i = 0; i < chain.count; i++) {
      const at = BASE + chain.offset[i]! - DATA;
      segments.push(
        `${i < chain.readable ? "r" : "w"}${at}+${chain.length[i]}`,
      );
    }
    this.log.push(
      `popped ${this.names.get(chain.token)} ${segments.join(" ")}`,
    );
    assertEquals(chain.fault, null);
    return chain.token;
  }

  /** Completes buffers and publishes them in one batch. */
  complete(...completions: [number, number][]): void {
    for (const [token, written] of completions) {
      this.device.push(token, written);
    }
    this.log.push(
      `device published ${this.device.publish()}, interrupt ${this.device.needsInterrupt()}`,
    );
  }

  /** Takes back all that was used. */
  reclaim(): void {
    for (;;) {
      const token = this.driver.reclaim();
      if (token < 0) break;
      this.log.push(
        `reclaimed ${this.names.get(token)} ${this.driver.usedLength}`,
      );
      assert(this.names.delete(token));
    }
    this.log.push(`driver has ${this.driver.inFlight} out`);
  }
}

/** Runs a script over every kind of queue and compares the logs; returns the common one. */
function history(options: Options, script: (pair: Pair) => void): string[] {
  let first: string[] | undefined;
  for (const shared of [false, true]) {
    for (const kind of KINDS) {
      const pair = new Pair(kind, { ...options, shared });
      script(pair);
      if (first === undefined) first = pair.log;
      else {assertEquals(
          pair.log,
          first,
          `${kind.name}, ${shared ? "" : "not "}shared`,
        );}
    }
  }
  return first!;
}

Deno.test("A queue hands readable and writable segments over, in order and as they are", () => {
  const log = history({ size: 8 }, (pair) => {
    pair.add(1, 1);
    pair.add(2, 0);
    pair.add(0, 3);
    pair.publish();
    const a = pair.pop();
    const b = pair.pop();
    const c = pair.pop();
    pair.pop();
    pair.complete([a, 2], [b, 0], [c, 15]);
    pair.reclaim();
  });
  assertEquals(log, [
    "driver published true, kick true",
    "popped b0 r0+1 w64+2",
    "popped b1 r128+3 r192+4",
    "popped b2 w256+5 w320+6 w384+7",
    "nothing",
    "device published true, interrupt true",
    "reclaimed b0 2",
    "reclaimed b1 0",
    "reclaimed b2 15",
    "driver has 0 out",
  ]);
});

for (const size of [1, 2, 8, 256]) {
  for (const eventIdx of [false, true]) {
    for (const indirect of [false, true]) {
      Deno.test(`A queue of ${size} goes round for many laps, eventIdx ${eventIdx}, indirect ${indirect}`, () => {
        const laps = size === 256 ? 20 : 300;
        let filled = 0;
        history({ size, eventIdx, indirect }, (pair) => {
          let shape = 0;
          for (let lap = 0; lap < laps; lap++) {
            for (let i = 0; i < size; i++) {
              // Room in the ring is told alike: a chain takes a slot a segment, a table one.
              const count = Math.min(1 + shape % 5, size);
              const readable = shape % (count + 1);
              shape++;
              if (pair.add(readable, count - readable) === null) {
                filled++;
                break;
              }
            }
            pair.driver.publish();
            const popped: number[] = [];
            for (let token = pair.pop(); token >= 0; token = pair.pop()) {
              popped.push(token);
              assertEquals(pair.device.inFlight, popped.length);
            }
            assertEquals(popped.length, pair.driver.inFlight);
            const order = lap % 3 === 0
              ? popped
              : lap % 3 === 1
              ? popped.reverse()
              : popped.sort((a, b) => {
                const serial = (token: number) =>
                  Number(pair.names.get(token)!.slice(1)) * 7 % 11;
                return serial(a) - serial(b);
              });
            for (const token of order) pair.device.push(token, 0);
            assertEquals(pair.device.inFlight, 0);
            pair.device.publish();
            pair.reclaim();
            assertEquals(pair.driver.free, size);
          }
        });
        // A table needs one descriptor, so then the ring is never short of them.
        assertEquals(filled > 0, size > 1 && !indirect);
      });
    }
  }
}

Deno.test("A queue's buffers can complete in any order", () => {
  const log = history({ size: 8 }, (pair) => {
    for (let i = 0; i < 4; i++) pair.add(1, 1);
    pair.publish();
    const [a, b, c, d] = [pair.pop(), pair.pop(), pair.pop(), pair.pop()];
    pair.complete([c, 1]);
    pair.complete([a, 2], [d, 3]);
    pair.reclaim();
    pair.add(2, 2);
    pair.publish();
    const e = pair.pop();
    pair.complete([e, 4], [b, 1]);
    pair.reclaim();
  });
  assertEquals(log.filter((line) => /reclaimed|has/.test(line)), [
    "reclaimed b2 1",
    "reclaimed b0 2",
    "reclaimed b3 3",
    "driver has 1 out",
    "reclaimed b4 4",
    "reclaimed b1 1",
    "driver has 0 out",
  ]);
});

Deno.test("A queue shows nothing of a batch before publish(), on either side", () => {
  history({ size: 8 }, (pair) => {
    pair.add(1, 0);
    pair.add(1, 0);
    assertEquals(pair.pop(), -1);
    assertEquals(pair.device.armKicks(), false);
    pair.publish();
    assertEquals(pair.device.armKicks(), true);
    const [a, b] = [pair.pop(), pair.pop()];
    pair.add(0, 1);
    assertEquals(pair.pop(), -1);
    pair.device.push(a, 0);
    pair.device.push(b, 0);
    assertEquals(pair.driver.reclaim(), -1);
    assertEquals(pair.driver.armInterrupts(), false);
    pair.complete();
    assertEquals(pair.driver.armInterrupts(), true);
    pair.reclaim();
    pair.publish();
    assert(pair.pop() >= 0);
    assertEquals(pair.device.publish(), false);
    assertEquals(pair.device.needsInterrupt(), false);
  });
});

for (const eventIdx of [false, true]) {
  Deno.test(`A queue kicks and interrupts once armed, and not while disarmed, eventIdx ${eventIdx}`, () => {
    history({ size: 4, eventIdx }, (pair) => {
      const { driver, device } = pair;
      const kick = () => {
        pair.add(1, 0);
        driver.publish();
        return driver.needsKick();
      };
      const interrupt = () => {
        const token = pair.pop();
        device.push(token, 0);
        device.publish();
        return device.needsInterrupt();
      };
      for (let lap = 0; lap < 50; lap++) {
        assertEquals(device.armKicks(), false);
        assertEquals(driver.armInterrupts(), false);
        assertEquals(kick(), true, `kick of lap ${lap}`);
        device.disarmKicks();
        assertEquals(kick(), false, `no kick of lap ${lap}`);
        assertEquals(interrupt(), true, `interrupt of lap ${lap}`);
        driver.disarmInterrupts();
        assertEquals(interrupt(), false, `no interrupt of lap ${lap}`);
        assertEquals(driver.armInterrupts(), true);
        driver.disarmInterrupts();
        pair.reclaim();
        // The last one came before arming: arming says so.
        kick();
        assertEquals(device.armKicks(), true);
        device.disarmKicks();
        interrupt();
        pair.reclaim();
      }
    });
  });
}

Deno.test("A queue gives back the last buffers by unpop() and fetches them again", () => {
  const log = history({ size: 8 }, (pair) => {
    for (let lap = 0; lap < 20; lap++) {
      pair.add(2, 1);
      pair.add(1, 1);
      pair.add(0, 1);
      pair.driver.publish();
      const a = pair.pop();
      const b = pair.pop();
      assertThrows(() => pair.device.unpop(a), TypeError);
      pair.device.unpop(b);
      pair.device.unpop(a);
      assertThrows(() => pair.device.unpop(a), TypeError);
      assertThrows(() => pair.device.push(b, 0), RangeError);
      assertEquals(pair.device.inFlight, 0);
      assertEquals(pair.device.armKicks(), true);
      assertEquals([pair.pop(), pair.pop()], [a, b]);
      const c = pair.pop();
      pair.device.push(c, 0);
      assertThrows(() => pair.device.unpop(c), TypeError);
      pair.complete([b, 1], [a, 1]);
      pair.reclaim();
    }
  });
  assertEquals(log.slice(0, 5).map((line) => line.slice(0, 9)), [
    "popped b0",
    "popped b1",
    "popped b0",
    "popped b1",
    "popped b2",
  ]);
});

Deno.test("A queue refuses a completion twice, of a stranger, and of more bytes than there is room for", () => {
  history({ size: 4 }, (pair) => {
    pair.add(1, 1);
    pair.publish();
    const token = pair.pop();
    assertThrows(() => pair.device.push(token, 3), RangeError);
    assertThrows(() => pair.device.push(token, -1), RangeError);
    assertThrows(() => pair.device.push((token + 1) % 4, 0), RangeError);
    assertThrows(() => pair.device.push(4, 0), RangeError);
    pair.device.push(token, 2);
    assertThrows(() => pair.device.push(token, 2), RangeError);
    pair.complete();
    assertThrows(() => pair.device.push(token, 2), RangeError);
    pair.reclaim();
  });
});

for (const indirect of [false, true]) {
  Deno.test(`A queue that is saved and restored in mid-traffic loses nothing, indirect ${indirect}`, () => {
    history({ size: 16, eventIdx: true, indirect }, (pair) => {
      const held: number[] = [];
      let state = 1;
      // The same numbers for every kind of queue.
      const random = (below: number) => {
        state = (Math.imul(state, 1103515245) + 12345) >>> 0;
        return (state >>> 16) % below;
      };
      for (let step = 0; step < 1500; step++) {
        const what = random(10);
        if (what < 4) {
          const count = 1 + random(4);
          const readable = random(count + 1);
          if (pair.driver.free < 4) pair.reclaim();
          if (pair.driver.free >= count) pair.add(readable, count - readable);
          pair.driver.publish();
        } else if (what < 7) {
          const token = pair.pop();
          if (token >= 0) held.push(token);
        } else if (what < 9) {
          const count = random(held.length + 1);
          for (let i = 0; i < count; i++) {
            const token = held.splice(random(held.length), 1)[0]!;
            pair.device.push(token, 0);
          }
          pair.device.publish();
          assertEquals(pair.device.inFlight, held.length);
        } else {
          const saved = pair.device.save();
          const before = held.map((token) => pair.names.get(token));
          assertEquals(
            saved.inFlight.map(({ id }) => pair.names.get(id)),
            [...before].sort((a, b) =>
              Number(a!.slice(1)) - Number(b!.slice(1))
            ),
          );
          pair.restore(saved);
          assertEquals(pair.device.save(), saved);
          assertEquals(pair.device.needsInterrupt(), true);
          assertEquals(pair.device.inFlight, 0);
          // They come again, in the order of their first fetch.
          const again: number[] = [];
          for (let i = 0; i < held.length; i++) again.push(pair.pop());
          assertEquals(again, saved.inFlight.map(({ id }) => id));
          held.splice(0, held.length, ...again);
        }
      }
      for (let token = pair.pop(); token >= 0; token = pair.pop()) {
        held.push(token);
      }
      for (const token of held) pair.device.push(token, 0);
      pair.device.publish();
      pair.reclaim();
      assertEquals(pair.driver.inFlight, 0);
      assertEquals(pair.driver.free, 16);
    });
  });
}

Deno.test("A queue goes on in other memory after rebind()", () => {
  history({ size: 4 }, (pair) => {
    pair.add(1, 1);
    pair.publish();
    const token = pair.pop();
    const { bytes } = pair.memory.regions[0]!;
    const copy = new ArrayBuffer(bytes.length);
    new Uint8Array(copy).set(bytes);
    const moved = new GuestMemory([{
      guestAddress: BASE,
      size: bytes.length,
      buffer: copy,
    }]);
    const away = new GuestMemory([{
      guestAddress: 0,
      size: 4096,
      buffer: copy,
    }]);
    assertThrows(() => pair.device.rebind(away));
    pair.device.rebind(moved);
    pair.complete([token, 2]);
    // The driver looks at the old memory.
    assertEquals(pair.driver.reclaim(), -1);
    pair.device.rebind(pair.memory);
    pair.add(1, 0);
    pair.publish();
    assert(pair.pop() >= 0);
  });
});
