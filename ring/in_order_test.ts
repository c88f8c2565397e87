import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { Chain } from "./chain.ts";
import { RingError } from "./errors.ts";
import { GuestMemory } from "./memory.ts";
import { PackedDevice } from "./packed_device.ts";
import { PackedDriver } from "./packed_driver.ts";
import {
  BufferList,
  type DeviceQueue,
  type DriverQueue,
  type QueueConfig,
  type QueueState,
  type RingFormat,
} from "./queue.ts";
import { SplitDevice } from "./split_device.ts";
import { SplitDriver } from "./split_driver.ts";

const FORMATS = ["split", "packed"] as const;
const RING = 0x10000;
const DRIVER_AREA = 0x90000;
const DEVICE_AREA = 0xb0000;
const TABLES = 0x100000;
const TABLE_ENTRIES = 4;
const DATA = 0x400000;
const BYTES = 0x500000;
/** What used entries and ids hold before a device writes them. */
const UNTOUCHED = 0xdeadbeef;

type Options = {
  eventIdx?: boolean;
  indirect?: boolean;
  strongOrdering?: boolean;
  inOrder?: boolean;
};

class Pair {
  readonly format: RingFormat;
  readonly config: QueueConfig;
  readonly memory: GuestMemory;
  readonly words: DataView;
  readonly driver: DriverQueue;
  readonly chain: Chain;
  device: DeviceQueue;

  constructor(format: RingFormat, size: number, options: Options = {}) {
    const buffer = new ArrayBuffer(BYTES);
    this.format = format;
    this.memory = new GuestMemory([{ guestAddress: 0, size: BYTES, buffer }]);
    this.words = new DataView(buffer);
    this.config = {
      size,
      descriptorArea: RING,
      driverArea: DRIVER_AREA,
      deviceArea: DEVICE_AREA,
      inOrder: true,
      ...options,
    };
    const tables = options.indirect
      ? { indirect: { address: TABLES, entries: TABLE_ENTRIES } }
      : {};
    this.driver = format === "split"
      ? new SplitDriver(this.memory, this.config, tables)
      : new PackedDriver(this.memory, this.config, tables);
    this.device = this.newDevice();
    this.chain = new Chain(this.memory);
  }

  newDevice(state?: QueueState): DeviceQueue {
    return this.format === "split"
      ? new SplitDevice(this.memory, this.config, state)
      : new PackedDevice(this.memory, this.config, state);
  }

  /** Adds a buffer of segments with these lengths, readable and writable ones; its token. */
  add(readable: number[], writable: number[]): number {
    const list = new BufferList(readable.length + writable.length);
    for (const length of readable) list.addReadable(DATA, length);
    for (const length of writable) list.addWritable(DATA, length);
    return this.driver.add(list);
  }

  /** Pops all there is: the tokens, in order. */
  pop(): number[] {
    const tokens: number[] = [];
    while (this.device.pop(this.chain)) {
      assertEquals(this.chain.fault, null);
      tokens.push(this.chain.token);
    }
    return tokens;
  }

  /** Takes back what is used: tokens with lengths. */
  reclaim(): [number, number][] {
    const back: [number, number][] = [];
    for (;;) {
      const token = this.driver.reclaim();
      if (token < 0) return back;
      back.push([token, this.driver.usedLength]);
    }
  }

  /** Marks the places of used entries, to see which ones a device writes. */
  markEntries(): void {
    for (let i = 0; i < this.config.size; i++) {
      if (this.format === "split") {
        this.words.setUint32(DEVICE_AREA + 4 + 8 * i, UNTOUCHED, true);
        this.words.setUint32(DEVICE_AREA + 8 + 8 * i, UNTOUCHED, true);
      }
    }
  }

  /** The used entries that were written, with their positions: [position, id, length]. */
  entries(before: DataView): [number, number, number][] {
    const found: [number, number, number][] = [];
    for (let i = 0; i < this.config.size; i++) {
      const split = this.format === "split";
      const at = split ? DEVICE_AREA + 4 + 8 * i : RING + 16 * i;
      const changed = split
        ? this.words.getUint32(at, true) !== UNTOUCHED
        : this.words.getUint16(at + 14, true) !==
          before.getUint16(at + 14, true);
      if (!changed) continue;
      found.push(
        split
          ? [
            i,
            this.words.getUint32(at, true),
            this.words.getUint32(at + 4, true),
          ]
          : [
            i,
            this.words.getUint16(at + 12, true),
            this.words.getUint32(at + 8, true),
          ],
      );
    }
    return found;
  }

  copy(): DataView {
    return new DataView(this.words.buffer.slice(0));
  }
}

for (const format of FORMATS) {
  const section = format === "split" ? "2.7.9" : "2.8.8";

  Deno.test(`${section} IN_ORDER: a batch is told by one used entry (${format})`, () => {
    const pair = new Pair(format, 16);
    for (let i = 0; i < 4; i++) pair.add([10, 10], []);
    pair.driver.publish();
    const tokens = pair.pop();
    pair.markEntries();
    const before = pair.copy();
    for (const token of tokens) pair.device.push(token, 0);
    assert(pair.device.publish());
    assertEquals(pair.entries(before), [[0, tokens[3]!, 0]]);
    if (format === "split") {
      assertEquals(pair.words.getUint16(DEVICE_AREA + 2, true), 4);
    }
    assertEquals(pair.reclaim(), tokens.map((token) => [token, 0]));
    assertEquals([pair.driver.inFlight, pair.driver.free], [0, 16]);

    // The next batch lies at the place of the first available buffer of that batch.
    for (let i = 0; i < 3; i++) pair.add([10, 10], []);
    pair.driver.publish();
    const more = pair.pop();
    pair.markEntries();
    const then = pair.copy();
    for (const token of more) pair.device.push(token, 0);
    pair.device.publish();
    const place = format === "split" ? 4 : 8;
    assertEquals(pair.entries(then), [[place, more[2]!, 0]]);
    assertEquals(pair.reclaim(), more.map((token) => [token, 0]));
  });

  Deno.test(`${section} IN_ORDER: a buffer that was not filled has an entry of its own, so that no length is lost (${format})`, () => {
    const pair = new Pair(format, 16);
    for (let i = 0; i < 8; i++) pair.add([], [100]);
    pair.driver.publish();
    const tokens = pair.pop();
    pair.markEntries();
    const before = pair.copy();
    const lengths = [100, 100, 44, 0, 100, 99, 100, 100];
    const positions: number[] = [];
    tokens.forEach((token, i) => {
      positions.push(pair.device.usedPosition);
      pair.device.push(token, lengths[i]!);
    });
    pair.device.publish();
    assertEquals(positions, [0, 0, 0, 3, 4, 4, 6, 6]);
    assertEquals(pair.device.usedPosition, 8);
    assertEquals(pair.entries(before), [
      [0, tokens[2]!, 44],
      [3, tokens[3]!, 0],
      [4, tokens[5]!, 99],
      [6, tokens[7]!, 100],
    ]);
    assertEquals(
      pair.reclaim(),
      tokens.map((token, i) => [token, lengths[i]!]),
    );
  });

  Deno.test(`${section} IN_ORDER: skipped buffers count as used completely (${format})`, () => {
    const pair = new Pair(format, 8);
    const shapes: [number[], number[]][] = [
      [[5], [7, 8]],
      [[5, 6], []],
      [[], [9]],
      [[], [50]],
    ];
    const tokens = shapes.map(([readable, writable]) =>
      pair.add(readable, writable)
    );
    pair.driver.publish();
    pair.pop();
    [15, 0, 9, 3].forEach((written, i) =>
      pair.device.push(tokens[i]!, written)
    );
    pair.device.publish();
    assertEquals(pair.reclaim(), [
      [tokens[0]!, 15],
      [tokens[1]!, 0],
      [tokens[2]!, 9],
      [tokens[3]!, 3],
    ]);
  });

  Deno.test(`${section} IN_ORDER: nothing is merged over a publish() (${format})`, () => {
    const pair = new Pair(format, 8);
    const tokens = [1, 2, 3].map(() => pair.add([1], []));
    pair.driver.publish();
    pair.pop();
    for (const token of tokens) {
      pair.device.push(token, 0);
      pair.device.publish();
      assertEquals(pair.reclaim(), [[token, 0]]);
    }
  });

  Deno.test(`A queue of 32768 completes all its buffers in any order (${format})`, () => {
    const size = 32768;
    const pair = new Pair(format, size, { inOrder: false, eventIdx: true });
    for (let lap = 0; lap < 3; lap++) {
      for (let i = 0; i < size; i++) assert(pair.add([], [64]) >= 0);
      assertEquals(pair.add([], [64]), -1);
      pair.driver.publish();
      const tokens = pair.pop();
      assertEquals(tokens.length, size);
      // Every 4097th, which is odd, so that each comes once.
      const order = tokens.map((_, i) => tokens[i * 4097 % size]!);
      order.forEach((token, i) => pair.device.push(token, i % 65));
      pair.device.publish();
      assert(pair.device.needsInterrupt());
      assertEquals(pair.reclaim(), order.map((token, i) => [token, i % 65]));
      assertEquals(pair.driver.free, size);
      assertEquals(pair.driver.armInterrupts(), false);
    }
  });

  Deno.test(`${section} IN_ORDER: push() out of the order of fetch is a mistake that changes nothing (${format})`, () => {
    const pair = new Pair(format, 8);
    const tokens = [1, 2, 3].map(() => pair.add([1], [4]));
    pair.driver.publish();
    pair.pop();
    assertThrows(
      () => pair.device.push(tokens[1]!, 0),
      RangeError,
      "VIRTIO_F_IN_ORDER",
    );
    assertEquals(pair.device.publish(), false);
    for (const token of tokens) pair.device.push(token, 4);
    pair.device.publish();
    assertEquals(pair.reclaim(), tokens.map((token) => [token, 4]));

    // The order is that of the first fetch, also over a restore.
    const more = [1, 2, 3].map(() => pair.add([1], [4]));
    pair.driver.publish();
    pair.device.pop(pair.chain);
    pair.device.pop(pair.chain);
    pair.device = pair.newDevice(pair.device.save());
    assertEquals(pair.pop(), more);
    for (const late of [2, 1]) {
      assertThrows(() => pair.device.push(more[late]!, 0), RangeError);
    }
    pair.device.push(more[0]!, 1);
    assertThrows(() => pair.device.push(more[2]!, 0), RangeError);
    pair.device.push(more[1]!, 4);
    pair.device.push(more[2]!, 4);
    pair.device.publish();
    assertEquals(pair.reclaim(), more.map((token, i) => [token, i ? 4 : 1]));
  });

  Deno.test(`${section} IN_ORDER: armInterrupts() tells that a batch is not taken back to its end (${format})`, () => {
    for (const eventIdx of [false, true]) {
      const pair = new Pair(format, 8, { eventIdx });
      for (let i = 0; i < 3; i++) pair.add([1], []);
      pair.driver.publish();
      for (const token of pair.pop()) pair.device.push(token, 0);
      pair.device.publish();
      for (let left = 3; left > 0; left--) {
        assert(pair.driver.armInterrupts());
        assert(pair.driver.reclaim() >= 0);
      }
      assertEquals(pair.driver.armInterrupts(), false);
    }
  });

  Deno.test(`${section} IN_ORDER: a driver takes single entries of a device that makes no batches (${format})`, () => {
    const pair = new Pair(format, 4);
    const config = { ...pair.config, inOrder: false };
    pair.device = format === "split"
      ? new SplitDevice(pair.memory, config)
      : new PackedDevice(pair.memory, config);
    for (let lap = 0; lap < 9; lap++) {
      const tokens = [pair.add([1], [4]), pair.add([], [4])];
      pair.driver.publish();
      for (const token of pair.pop()) pair.device.push(token, 4);
      pair.device.publish();
      assertEquals(pair.reclaim(), tokens.map((token) => [token, 4]));
    }
  });

  Deno.test(`${section} IN_ORDER: buffers are merged over the end of the ring, also a ringful of them (${format})`, () => {
    for (const size of [1, 2, 8, 32768]) {
      const pair = new Pair(format, size);
      const counts = size === 32768
        ? [20000, 32768, 32768, 30000]
        : [1, size, size, size, Math.ceil(size / 2), size];
      for (const count of counts) {
        const tokens: number[] = [];
        for (let i = 0; i < count; i++) tokens.push(pair.add([], [64]));
        assert(tokens.every((token) => token >= 0));
        pair.driver.publish();
        for (const token of pair.pop()) pair.device.push(token, 64);
        pair.device.publish();
        assert(pair.device.needsInterrupt());
        assertEquals(pair.reclaim(), tokens.map((token) => [token, 64]));
        assertEquals(pair.driver.free, size);
      }
    }
  });

  for (const inOrder of [false, true]) {
    Deno.test(`A chain can be as long as a queue of 32768, and segments can be empty (${format}, inOrder ${inOrder})`, () => {
      const size = 32768;
      const pair = new Pair(format, size, { inOrder });
      for (let lap = 0; lap < 3; lap++) {
        const long = pair.add(
          new Array(size / 2).fill(1),
          new Array(size / 2).fill(2),
        );
        assertEquals(pair.driver.free, 0);
        pair.driver.publish();
        assertEquals(pair.pop(), [long]);
        assertEquals(
          [
            pair.chain.count,
            pair.chain.readableBytes,
            pair.chain.writableBytes,
          ],
          [size, size / 2, size],
        );
        pair.device.push(long, size);
        pair.device.publish();
        assertEquals(pair.reclaim(), [[long, size]]);
        const empty = [
          pair.add([0], []),
          pair.add([0, 0], [0]),
          pair.add([], [0]),
        ];
        pair.driver.publish();
        assertEquals(pair.pop(), empty);
        assertEquals(pair.chain.count, 0);
        for (const token of empty) pair.device.push(token, 0);
        pair.device.publish();
        assertEquals(pair.reclaim(), empty.map((token) => [token, 0]));
      }
    });
  }

  Deno.test(`${section} IN_ORDER: lengths, order and room are kept through any traffic (${format})`, () => {
    const command = fc.record({
      adds: fc.array(
        fc.tuple(fc.nat(2), fc.nat(2), fc.integer({ min: 0, max: 3 })),
        { maxLength: 4 },
      ),
      pops: fc.nat(5),
      unpops: fc.nat(2),
      completions: fc.array(fc.nat(3), { maxLength: 5 }),
      publish: fc.boolean(),
      reclaims: fc.nat(6),
      restore: fc.nat(5),
    });
    fc.assert(
      fc.property(
        fc.array(command, { minLength: 1, maxLength: 40 }),
        fc.constantFrom(1, 2, 4, 8),
        fc.boolean(),
        fc.boolean(),
        fc.boolean(),
        (commands, size, eventIdx, indirect, strongOrdering) => {
          const pair = new Pair(format, size, {
            eventIdx,
            indirect,
            strongOrdering,
          });
          // Writable bytes by token; what each stage holds, oldest first.
          const rooms = new Map<number, number>();
          let offered: number[] = [];
          let fetched: number[] = [];
          let staged: [number, number][] = [];
          let used: [number, number][] = [];
          for (const step of commands) {
            for (const [readable, writable, length] of step.adds) {
              const count = readable + writable;
              if (count === 0 || count > size) continue;
              const token = pair.add(
                new Array(readable).fill(4),
                new Array(writable).fill(length),
              );
              if (token < 0) continue;
              assert(!rooms.has(token));
              rooms.set(token, writable * length);
              offered.push(token);
            }
            pair.driver.publish();
            for (let i = 0; i < step.pops; i++) {
              assertEquals(pair.device.pop(pair.chain), offered.length > 0);
              const token = offered.shift();
              if (token === undefined) break;
              assertEquals(pair.chain.token, token);
              assertEquals(pair.chain.writableBytes, rooms.get(token));
              fetched.push(token);
            }
            for (let i = 0; i < step.unpops && fetched.length > 0; i++) {
              const token = fetched.pop()!;
              pair.device.unpop(token);
              offered.unshift(token);
            }
            for (const kind of step.completions) {
              const token = fetched.shift();
              if (token === undefined) break;
              const room = rooms.get(token)!;
              const written = kind === 0 ? Math.min(1, room) : room;
              pair.device.push(token, written);
              staged.push([token, written]);
            }
            if (step.publish) {
              assertEquals(pair.device.publish(), staged.length > 0);
              used.push(...staged);
              staged = [];
            }
            for (let i = 0; i < step.reclaims; i++) {
              const token = pair.driver.reclaim();
              const expected = used.shift();
              assertEquals(
                token < 0 ? undefined : [token, pair.driver.usedLength],
                expected,
              );
              if (expected === undefined) break;
              rooms.delete(token);
            }
            if (step.restore === 0 && staged.length === 0) {
              const state = JSON.parse(JSON.stringify(pair.device.save()));
              pair.device = pair.newDevice(state);
              offered = [...fetched, ...offered];
              fetched = [];
            }
          }
          const rest = [...fetched, ...pair.pop()];
          for (const token of rest) {
            pair.device.push(token, rooms.get(token)!);
            staged.push([token, rooms.get(token)!]);
          }
          pair.device.publish();
          used = [...used, ...staged];
          assertEquals(pair.reclaim(), used);
          assertEquals([pair.driver.inFlight, pair.driver.free], [0, size]);
        },
      ),
      { numRuns: 400, seed: 0x10de },
    );
  });
}

Deno.test("2.7.9 IN_ORDER: a driver refuses a batch that ends behind used.idx (split)", () => {
  const pair = new Pair("split", 4);
  const tokens = [1, 2, 3].map(() => pair.add([1], []));
  pair.driver.publish();
  pair.words.setUint32(DEVICE_AREA + 4, tokens[2]!, true);
  pair.words.setUint16(DEVICE_AREA + 2, 2, true);
  for (let i = 0; i < 2; i++) {
    const error = assertThrows(() => pair.driver.reclaim(), RingError);
    assertEquals([error.code, error.section], ["USED_ID_UNKNOWN", "2.7.9"]);
  }
});

Deno.test("2.7.9 IN_ORDER: a driver refuses ids that are not in flight, not published or taken back (split)", () => {
  for (const id of [1, 2, 3, 4, 0xffffffff]) {
    const pair = new Pair("split", 4);
    assertEquals(pair.add([1], []), 0);
    assertEquals(pair.add([1], []), 1);
    pair.driver.publish();
    assertEquals(pair.add([1], []), 2);
    for (const token of pair.pop()) pair.device.push(token, 0);
    pair.device.publish();
    assertEquals(pair.reclaim(), [[0, 0], [1, 0]]);
    pair.words.setUint32(DEVICE_AREA + 4 + 16, id, true);
    pair.words.setUint16(DEVICE_AREA + 2, 3, true);
    const error = assertThrows(() => pair.driver.reclaim(), RingError);
    assertEquals(error.code, "USED_IDX_JUMP");
    assertEquals(pair.driver.inFlight, 1);
  }
  for (const id of [2, 3, 4, 0xffffffff]) {
    const pair = new Pair("split", 4);
    pair.add([1], []);
    pair.add([1], []);
    pair.driver.publish();
    pair.add([1], []);
    pair.words.setUint32(DEVICE_AREA + 4, id, true);
    pair.words.setUint16(DEVICE_AREA + 2, 1, true);
    const error = assertThrows(() => pair.driver.reclaim(), RingError);
    assertEquals(error.code, "USED_ID_UNKNOWN");
  }
});

Deno.test("2.8.8 IN_ORDER: a driver refuses ids that are not in flight or not published (packed)", () => {
  for (const staged of [false, true]) {
    const pair = new Pair("packed", 4);
    pair.add([1], []);
    pair.add([1], []);
    pair.driver.publish();
    const id = staged ? pair.add([1], []) : 3;
    pair.words.setUint16(RING + 12, id, true);
    pair.words.setUint16(RING + 14, 0x8080, true);
    const error = assertThrows(() => pair.driver.reclaim(), RingError);
    assertEquals(error.code, "USED_ID_UNKNOWN");
  }
});

Deno.test("2.7.5 IN_ORDER: a driver uses descriptors in ring order, and next of the last one is 0 (split)", () => {
  const size = 8;
  const pair = new Pair("split", size);
  let expected = 0;
  for (let lap = 0; lap < 20; lap++) {
    const count = 3 + lap % 3;
    const token = pair.add(new Array(count).fill(1), []);
    assertEquals(token, expected);
    for (let i = 0; i < count; i++) {
      const at = RING + 16 * ((expected + i) % size);
      const last = i === count - 1;
      assertEquals(pair.words.getUint16(at + 12, true), last ? 0 : 1);
      if (!last) {
        assertEquals(
          pair.words.getUint16(at + 14, true),
          (expected + i + 1) % size,
        );
      }
    }
    expected = (expected + count) % size;
    // A second one, so that there are two in flight.
    assertEquals(pair.add([1], []), expected);
    expected = (expected + 1) % size;
    pair.driver.publish();
    for (const back of pair.pop()) pair.device.push(back, 0);
    pair.device.publish();
    assertEquals(pair.reclaim().length, 2);
  }
});

Deno.test("2.8.8 IN_ORDER: a device keeps a length of 2^32 - 1 of a longer writable part (packed)", () => {
  const memory = new GuestMemory([
    { guestAddress: 0, size: BYTES, buffer: new ArrayBuffer(BYTES) },
  ]);
  const config = {
    size: 4,
    descriptorArea: RING,
    driverArea: DRIVER_AREA,
    deviceArea: DEVICE_AREA,
    inOrder: true,
    indirect: true,
  };
  const driver = new PackedDriver(memory, config, {
    indirect: { address: TABLES, entries: 2048 },
  });
  const device = new PackedDevice(memory, config);
  const list = new BufferList(1024);
  for (let i = 0; i < 1024; i++) list.addWritable(DATA - 0x300000, 0x400000);
  const tokens = [driver.add(list), driver.add(list)];
  driver.publish();
  const chain = new Chain(memory);
  for (const token of tokens) {
    assert(device.pop(chain));
    assertEquals(chain.writableBytes, 2 ** 32);
    device.push(token, 2 ** 32 - 1);
  }
  device.publish();
  for (const token of tokens) {
    assertEquals(driver.reclaim(), token);
    assertEquals(driver.usedLength, 2 ** 32 - 1);
  }
});
