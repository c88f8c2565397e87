import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  newDevice,
  PAIR_DATA,
  PAIR_DEVICE_AREA,
  PAIR_RING,
  TestPair,
} from "./_test_pair.ts";
import { Chain } from "./chain.ts";
import { RingError } from "./errors.ts";
import { inflightRegionSize, openInflight } from "./inflight.ts";
import { GuestMemory } from "./memory.ts";
import { PackedDriver } from "./packed_driver.ts";
import {
  BufferList,
  type DeviceQueue,
  type QueueConfig,
  type RingFormat,
} from "./queue.ts";
import { SplitDriver } from "./split_driver.ts";
import { initialQueueState } from "./state.ts";
import { TrackedQueue } from "./tracked_queue.ts";

const FORMATS = ["split", "packed"] as const;

/** A pair whose device is tracked, with its region. */
function tracked(
  format: RingFormat,
  size: number,
  options: Partial<QueueConfig> = {},
): { pair: TestPair; bytes: Uint8Array; region: DataView } {
  const pair = new TestPair(format, size, options);
  const bytes = new Uint8Array(inflightRegionSize(format, size));
  pair.device = backend(pair, bytes);
  return { pair, bytes, region: new DataView(bytes.buffer) };
}

function backend(pair: TestPair, bytes: Uint8Array): DeviceQueue {
  const { format, memory, config } = pair;
  const region = openInflight(format, bytes, memory, config);
  let state = initialQueueState(format);
  if (region.initialized) state = region.recover();
  else region.initialize(state);
  return new TrackedQueue(newDevice(memory, config, format, state), region);
}

Deno.test("inflightRegionSize() has room for header and entries, up to a multiple of 64", () => {
  assertEquals(inflightRegionSize("split", 1), 64);
  assertEquals(inflightRegionSize("split", 3), 64);
  assertEquals(inflightRegionSize("split", 4), 128);
  assertEquals(inflightRegionSize("split", 128), 2112);
  assertEquals(inflightRegionSize("packed", 1), 64);
  assertEquals(inflightRegionSize("packed", 2), 128);
  assertEquals(inflightRegionSize("packed", 128), 4160);
  assertEquals(inflightRegionSize("packed", 32768), 32 * 32768 + 64);
});

Deno.test("A split region is laid out as QueueRegionSplit", () => {
  const { pair, region } = tracked("split", 4);
  assertEquals(region.getBigUint64(0, true), 0n, "features");
  assertEquals(region.getUint16(8, true), 1, "version");
  assertEquals(region.getUint16(10, true), 4, "desc_num");
  const tokens = [pair.add(0, 1), pair.add(0, 1), pair.add(0, 1)];
  pair.driver.publish();
  for (const token of tokens) assertEquals(pair.pop(), token);
  const entry = (token: number) => ({
    inflight: region.getUint8(16 + 16 * token),
    next: region.getUint16(16 + 16 * token + 6, true),
    counter: region.getBigUint64(16 + 16 * token + 8, true),
  });
  tokens.forEach((token, i) => {
    assertEquals(entry(token), { inflight: 1, next: 0, counter: BigInt(i) });
  });
  pair.device.push(tokens[2]!, 1);
  pair.device.push(tokens[0]!, 1);
  assertEquals(entry(tokens[0]!).inflight, 1);
  pair.device.publish();
  assertEquals(region.getUint16(12, true), tokens[0], "last_batch_head");
  assertEquals(region.getUint16(14, true), 2, "used_idx");
  assertEquals(entry(tokens[0]!).next, tokens[2]);
  assertEquals(tokens.map((token) => entry(token).inflight), [0, 1, 0]);
  const late = pair.add(0, 1);
  pair.driver.publish();
  assertEquals(pair.pop(), late);
  assertEquals([entry(late).inflight, entry(late).counter], [1, 3n]);
  pair.device.unpop(late);
  assertEquals(entry(late).inflight, 0);
});

Deno.test("A packed region is laid out as QueueRegionPacked", () => {
  const { pair, region } = tracked("packed", 4);
  const header = () => ({
    version: region.getUint16(8, true),
    desc_num: region.getUint16(10, true),
    free_head: region.getUint16(12, true),
    old_free_head: region.getUint16(14, true),
    used_idx: region.getUint16(16, true),
    old_used_idx: region.getUint16(18, true),
    used_wrap_counter: region.getUint8(20),
    old_used_wrap_counter: region.getUint8(21),
  });
  const fresh = {
    version: 1,
    desc_num: 4,
    free_head: 0,
    old_free_head: 0,
    used_idx: 0,
    old_used_idx: 0,
    used_wrap_counter: 1,
    old_used_wrap_counter: 1,
  };
  assertEquals(header(), fresh);
  const a = pair.add(1, 1);
  const b = pair.add(1, 0);
  pair.driver.publish();
  assertEquals([pair.pop(), pair.pop()], [a, b]);
  assertEquals(header(), { ...fresh, free_head: 3, old_free_head: 3 });
  const head = (entry: number) => ({
    inflight: region.getUint8(32 + 32 * entry),
    last: region.getUint16(32 + 32 * entry + 4, true),
    num: region.getUint16(32 + 32 * entry + 6, true),
    counter: region.getBigUint64(32 + 32 * entry + 8, true),
  });
  assertEquals(head(0), { inflight: 1, last: 1, num: 2, counter: 0n });
  assertEquals(head(2), { inflight: 1, last: 2, num: 1, counter: 1n });
  const copy = (entry: number) => ({
    id: region.getUint16(32 + 32 * entry + 16, true),
    flags: region.getUint16(32 + 32 * entry + 18, true),
    len: region.getUint32(32 + 32 * entry + 20, true),
    addr: region.getBigUint64(32 + 32 * entry + 24, true),
  });
  const data = BigInt(PAIR_DATA);
  assertEquals(copy(0), { id: a, flags: 0x81, len: 16, addr: data });
  assertEquals(copy(1), { id: a, flags: 0x82, len: 16, addr: data + 64n });
  assertEquals(copy(2), { id: b, flags: 0x80, len: 16, addr: data + 128n });
  pair.device.push(a, 1);
  assertEquals(header(), { ...fresh, free_head: 3, old_free_head: 3 });
  pair.device.publish();
  assertEquals(header(), {
    ...fresh,
    used_idx: 2,
    old_used_idx: 2,
  });
  assertEquals(head(0).inflight, 0);
  const next = (entry: number) => region.getUint16(32 + 32 * entry + 2, true);
  assertEquals([next(0), next(1), next(3)], [1, 3, 4]);
});

for (const format of FORMATS) {
  Deno.test(`A back-end that is gone leaves its buffers to the next one, in order (${format})`, () => {
    const { pair, bytes } = tracked(format, 8);
    const tokens = [1, 2, 3, 4, 5].map(() => pair.add(0, 1));
    pair.driver.publish();
    for (const _ of tokens.slice(1)) pair.pop();
    pair.device.push(tokens[2]!, 3);
    pair.device.publish();
    pair.device.push(tokens[0]!, 3);
    pair.device.unpop(tokens[3]!);
    // Buffer 0 was not published and 3 was given back; 4 was never fetched.
    pair.device = backend(pair, bytes);
    assertEquals(pair.driver.reclaim(), tokens[2]);
    const popped = [pair.pop(), pair.pop(), pair.pop(), pair.pop()];
    assertEquals(popped, [tokens[0], tokens[1], tokens[3], tokens[4]]);
    assertEquals(pair.pop(), -1);
    assertEquals(pair.device.inFlight, 4);
    // A third one, after some of the second's were given back.
    pair.device.unpop(tokens[4]!);
    pair.device.unpop(tokens[3]!);
    pair.device.unpop(tokens[1]!);
    pair.device = backend(pair, bytes);
    for (const token of popped) {
      assertEquals(pair.pop(), token);
      pair.device.push(token, 1);
    }
    pair.device.publish();
    for (const token of popped) assertEquals(pair.driver.reclaim(), token);
    assertEquals(pair.driver.inFlight, 0);
  });

  Deno.test(`TrackedQueue passes everything else on (${format})`, () => {
    const { pair } = tracked(format, 4, { eventIdx: true });
    const { device, driver } = pair;
    assertEquals([device.format, device.size], [format, 4]);
    assertEquals(device.publish(), false);
    pair.add(0, 1);
    driver.publish();
    assertEquals(device.armKicks(), true);
    device.disarmKicks();
    pair.pop();
    assertEquals(device.armKicks(), false);
    assertEquals(device.inFlight, 1);
    assertEquals(device.save().inFlight.length, 1);
    assertEquals(device.usedPosition, 0);
    device.push(pair.chain.token, 0);
    assertThrows(() => device.push(pair.chain.token, 0), RangeError);
    assertThrows(() => device.unpop(pair.chain.token), TypeError);
    assertEquals(device.usedPosition, 1);
    assert(device.publish());
    assert(device.needsInterrupt());
    assertThrows(() => device.rebind(new GuestMemory([])), RingError);
    device.rebind(pair.memory);
  });

  Deno.test(`A region can be set up in mid-life, and anew (${format})`, () => {
    const { pair } = tracked(format, 4);
    for (let i = 0; i < 6; i++) {
      pair.add(0, 1);
      pair.driver.publish();
      pair.device.push(pair.pop(), 1);
      pair.device.publish();
      pair.driver.reclaim();
    }
    const state = pair.device.save();
    const { memory, config } = pair;
    const bytes = new Uint8Array(inflightRegionSize(format, 4)).fill(0xff);
    const region = openInflight(format, bytes, memory, config);
    assert(region.initialized);
    region.initialize(state);
    const other = initialQueueState(format === "split" ? "packed" : "split");
    assertThrows(() => region.initialize(other), TypeError);
    const queue = newDevice(memory, config, format, state);
    pair.device = new TrackedQueue(queue, region);
    const tokens = [pair.add(0, 1), pair.add(0, 1)];
    pair.driver.publish();
    pair.pop();
    pair.pop();
    pair.device = backend(pair, bytes);
    assertEquals([pair.pop(), pair.pop(), pair.pop()], [...tokens, -1]);
  });

  Deno.test(`A region that no back-end can have left is refused with the rule (${format})`, () => {
    const split = format === "split";
    const header = split ? 16 : 32;
    const u16 = (at: number, value: number) => (view: DataView) =>
      view.setUint16(at, value, true);
    const u8 = (at: number, value: number) => (view: DataView) =>
      view.setUint8(at, value);
    const cases: [(view: DataView) => void, string][] = [
      [u16(8, 2), "version is 2"],
      [u16(10, 5), "5 entries, the queue 4"],
      [u8(header, 2), "inflight of entry 0 is 2"],
      [
        (view) => view.setBigUint64(header + 8, 1n << 53n, true),
        "2^53 or more",
      ],
      ...(split
        ? [
          [u16(14, 0xfff0), "ahead of the region's"],
          [u16(14, 0xfffe), "does not have 3 entries"],
          [
            (view: DataView) => {
              u16(12, 4)(view);
              u16(14, 0)(view);
            },
            "does not have 1 entries",
          ],
        ]
        : [
          [u8(20, 2), "used_wrap_counter is 2"],
          [u8(21, 2), "old_used_wrap_counter is 2"],
          [u16(12, 5), "behind 4 entries"],
          [u16(14, 5), "behind 4 entries"],
          [u16(16, 4), "used index is not below 4"],
          [u16(18, 4), "used index is not below 4"],
          [u16(header + 6, 0), "does not end at"],
          [u16(header + 6, 4), "does not have 4 entries"],
          [u16(header + 4, 3), "does not end at 3"],
          [u16(header + 2 * 32 + 2, 9), "goes on at entry 9"],
          [u16(header + 2 * 32 + 2, 2), "goes on at entry 2"],
          [u16(header + 2 * 32 + 2, 4), "of 4"],
          [u8(header, 0), "of 4"],
        ]) as [(view: DataView) => void, string][],
    ];
    for (const [spoil, words] of cases) {
      const { pair, bytes, region } = tracked(format, 4);
      // Entry 0 is in flight with two descriptors, and one more buffer was used.
      pair.add(1, 1);
      const used = pair.add(0, 1);
      pair.driver.publish();
      pair.pop();
      pair.pop();
      pair.device.push(used, 0);
      pair.device.publish();
      backend(pair, bytes.slice());
      spoil(region);
      const error = assertThrows(
        () => backend(pair, bytes),
        RingError,
        words,
      );
      assertEquals([error.code, error.fatal], ["BAD_QUEUE_STATE", true]);
    }
  });

  Deno.test(`openInflight() wants enough bytes, aligned, and a queue in memory (${format})`, () => {
    const { memory, config } = new TestPair(format, 4);
    const least = (format === "split" ? 16 : 32) * 5;
    const bytes = new Uint8Array(least + 8);
    openInflight(format, bytes.subarray(8), memory, config);
    for (const wrong of [bytes.subarray(0, least - 1), bytes.subarray(4)]) {
      assertThrows(
        () => openInflight(format, wrong, memory, config),
        RangeError,
      );
    }
    assertThrows(
      () => openInflight(format, bytes, new GuestMemory([]), config),
      RingError,
    );
    const region = openInflight(format, bytes, memory, config);
    const other = new TestPair(format, 2);
    assertThrows(
      () =>
        new TrackedQueue(newDevice(other.memory, other.config, format), region),
      TypeError,
      "Cannot track",
    );
  });

  Deno.test(`A region of a queue of 32768 is recovered with everything in flight (${format})`, () => {
    const size = 32768;
    const bytes = 0x200000;
    const memory = new GuestMemory([
      { guestAddress: 0, size: bytes, buffer: new ArrayBuffer(bytes) },
    ]);
    const config = {
      size,
      descriptorArea: 0x1000,
      driverArea: 0x100000,
      deviceArea: 0x140000,
    };
    const driver = format === "split"
      ? new SplitDriver(memory, config)
      : new PackedDriver(memory, config);
    const region = openInflight(
      format,
      new Uint8Array(inflightRegionSize(format, size)),
      memory,
      config,
    );
    region.initialize(initialQueueState(format));
    const list = new BufferList().addWritable(0x1f0000, 64);
    const chain = new Chain(memory);
    let queue = new TrackedQueue(newDevice(memory, config, format), region);
    const order: number[] = [];
    for (let i = 0; i < size; i++) order.push(driver.add(list));
    driver.publish();
    for (let lap = 0; lap < 2; lap++) {
      for (const token of order) {
        assert(queue.pop(chain));
        assertEquals(chain.token, token);
      }
      assertEquals(queue.pop(chain), false);
      const state = region.recover();
      assertEquals(state.inFlight.length, size);
      queue = new TrackedQueue(
        newDevice(memory, config, format, state),
        region,
      );
    }
    for (const token of order) {
      assert(queue.pop(chain));
      queue.push(token, 64);
    }
    queue.publish();
    for (const token of order) assertEquals(driver.reclaim(), token);
    // A chain as long as the queue.
    const long = new BufferList(size);
    for (let i = 0; i < size; i++) long.addWritable(0x1f0000, 1);
    const token = driver.add(long);
    driver.publish();
    assert(queue.pop(chain));
    const [buffer] = region.recover().inFlight;
    assertEquals([buffer!.id, buffer!.slots], [token, size]);
    assertEquals(buffer!.descriptors.length, size);
  });
}

Deno.test("A packed region cannot be set up with buffers in flight, a split one can", () => {
  for (const format of FORMATS) {
    const pair = new TestPair(format, 4);
    const tokens = [pair.add(0, 1), pair.add(0, 1)];
    pair.driver.publish();
    pair.pop();
    pair.pop();
    const state = pair.device.save();
    const bytes = new Uint8Array(inflightRegionSize(format, 4));
    const region = openInflight(format, bytes, pair.memory, pair.config);
    if (format === "packed") {
      assertThrows(() => region.initialize(state), TypeError, "in flight");
    } else {
      region.initialize(state);
      assertEquals(region.recover(), state);
      assertEquals(state.inFlight.map(({ id }) => id), tokens);
    }
  }
});

Deno.test("A packed ring that says its first buffer in flight is used is refused", () => {
  const { pair, bytes } = tracked("packed", 4);
  pair.add(0, 1);
  pair.driver.publish();
  pair.pop();
  new DataView(pair.bytes.buffer).setUint16(PAIR_RING + 14, 0x8080, true);
  assertThrows(() => backend(pair, bytes), RingError, "descriptor 0 is used");
});

Deno.test("A used.idx that a guest has moved is refused or takes back its own buffers only", () => {
  const { pair, bytes } = tracked("split", 4);
  const tokens = [pair.add(0, 1), pair.add(0, 1)];
  pair.driver.publish();
  pair.pop();
  pair.pop();
  const words = new DataView(pair.bytes.buffer);
  words.setUint16(PAIR_DEVICE_AREA + 2, 0x8000, true);
  assertThrows(() => backend(pair, bytes.slice()), RingError, "ahead");
  words.setUint16(PAIR_DEVICE_AREA + 2, 1, true);
  pair.device = backend(pair, bytes);
  assertEquals(pair.pop(), tokens[1]);
});

Deno.test("A packed driver that makes descriptors available before they are used breaks its ring only", () => {
  const { pair } = tracked("packed", 2);
  pair.add(0, 1);
  pair.add(0, 1);
  pair.driver.publish();
  const words = new DataView(pair.bytes.buffer);
  for (let i = 0; i < 2; i++) pair.device.push(pair.pop(), 1);
  // Nothing was published, and both are available again, on the next lap.
  for (let i = 0; i < 2; i++) {
    words.setUint16(PAIR_RING + 16 * i + 14, 0x8002, true);
  }
  for (let i = 0; i < 2; i++) {
    const error = assertThrows(() => pair.pop(), RingError);
    assertEquals([error.code, error.fatal], ["CHAIN_TOO_LONG_FOR_RING", true]);
  }
});

for (const format of FORMATS) {
  Deno.test(`recover() takes any region over any ring, or refuses it (${format})`, () => {
    let state = 7;
    const random = (below: number) => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return Math.floor(state / 0x100000000 * below);
    };
    const outcomes = { taken: 0, refused: 0 };
    for (let run = 0; run < 3000; run++) {
      const { pair, bytes } = tracked(format, 4);
      for (let i = 0; i < 6; i++) {
        pair.add(random(2), 1);
        pair.driver.publish();
        const token = pair.pop();
        if (token >= 0 && random(2) === 0) {
          pair.device.push(token, 0);
          pair.device.publish();
          pair.driver.reclaim();
        }
      }
      for (let hits = 1 + random(3); hits > 0; hits--) {
        const ring = format === "split" ? PAIR_DEVICE_AREA : PAIR_RING;
        if (random(4) === 0) pair.bytes[ring + random(64)] = random(256);
        else bytes[8 + random(bytes.length - 8)] = random(2) * random(256);
      }
      try {
        const device = backend(pair, bytes);
        while (device.pop(pair.chain)) device.push(pair.chain.token, 0);
        device.publish();
        outcomes.taken++;
      } catch (error) {
        if (!(error instanceof RingError)) throw error;
        outcomes.refused++;
      }
    }
    assert(outcomes.taken > 300 && outcomes.refused > 300);
  });
}
