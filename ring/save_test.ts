import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { newDevice, PAIR_DATA, PAIR_RING, TestPair } from "./_test_pair.ts";
import { RingError } from "./errors.ts";
import { GuestMemory } from "./memory.ts";
import type { QueueState } from "./queue.ts";
import { rewindInFlight, saveQueue } from "./save.ts";
import { encodeVringBase } from "./state.ts";

const FORMATS = ["split", "packed"] as const;

function offer(pair: TestPair, count: number, segments = 1): void {
  for (let i = 0; i < count; i++) assert(pair.add(0, segments) >= 0);
  pair.driver.publish();
}

function serve(pair: TestPair): void {
  for (let token = pair.pop(); token >= 0; token = pair.pop()) {
    pair.device.push(token, 1);
  }
  pair.device.publish();
  pair.device.armKicks();
  while (pair.driver.reclaim() >= 0);
}

for (const format of FORMATS) {
  Deno.test(`rewindInFlight() gives back ${format} buffers that nothing overtook`, () => {
    const pair = new TestPair(format, 8, { eventIdx: true });
    const { device, memory, config } = pair;
    for (let start = 0; start < 20; start++) {
      offer(pair, 3, 2);
      for (let i = 0; i < 3; i++) assert(pair.pop() >= 0);
      const state = device.save();
      assertEquals(state.inFlight.length, 3);
      const rewound = rewindInFlight(memory, config, state)!;
      assertEquals(rewound.inFlight, []);
      const expected = { ...state, lastAvailIdx: state.usedIdx, inFlight: [] };
      if (expected.format === "packed" && state.format === "packed") {
        expected.lastAvailWrapCounter = state.usedWrapCounter;
      }
      assertEquals(rewound, expected);
      for (const { id } of state.inFlight) device.push(id, 2);
      serve(pair);
      offer(pair, 1);
      serve(pair);
    }
  });

  Deno.test(`rewindInFlight() refuses ${format} buffers that were overtaken`, () => {
    const pair = new TestPair(format, 8, { eventIdx: true });
    offer(pair, 3);
    pair.pop();
    pair.device.push(pair.pop(), 1);
    pair.device.publish();
    const state = pair.device.save();
    assertEquals(state.inFlight.length, 1);
    assertEquals(rewindInFlight(pair.memory, pair.config, state), null);
  });

  Deno.test(`saveQueue() says which way it took: drain, rewind or carry (${format})`, () => {
    const pair = new TestPair(format, 8);
    const { memory, config } = pair;
    const ways = () =>
      (["rewind", "carry"] as const).map((prefer) =>
        saveQueue(pair.device, memory, config, prefer).way
      );
    assertEquals(ways(), ["drain", "drain"]);
    offer(pair, 3, 2);
    assertEquals(ways(), ["drain", "drain"]);
    const [a, b] = [pair.pop(), pair.pop()];
    assertEquals(ways(), ["rewind", "carry"]);
    const state = pair.device.save();
    assertEquals(
      saveQueue(pair.device, memory, config, "carry").state,
      state,
    );
    const rewound = saveQueue(pair.device, memory, config).state;
    assertEquals(encodeVringBase(rewound), format === "split" ? 0 : 0x80008000);

    pair.device.push(b, 1);
    assertThrows(() => saveQueue(pair.device, memory, config), TypeError);
    pair.device.publish();
    assertEquals(ways(), ["carry", "carry"]);
    pair.device.push(a, 1);
    pair.device.publish();
    assertEquals(ways(), ["drain", "drain"]);
    // What was overtaken is past: the rest can be rewound.
    pair.pop();
    assertEquals(ways(), ["rewind", "carry"]);
  });

  Deno.test(`saveQueue() in the middle of any traffic loses no buffer and hands none out twice (${format})`, () => {
    const step = fc.record({
      adds: fc.array(fc.tuple(fc.nat(2), fc.nat(2)), { maxLength: 4 }),
      pops: fc.nat(4),
      completions: fc.array(fc.nat(7), { maxLength: 4 }),
      save: fc.constantFrom("rewind", "rewind", "carry", "no"),
    });
    const ways = new Set<string>();
    fc.assert(
      fc.property(
        fc.array(step, { minLength: 1, maxLength: 40 }),
        fc.constantFrom(1, 2, 4, 8),
        fc.boolean(),
        fc.boolean(),
        (steps, size, indirect, inOrder) => {
          const pair = new TestPair(format, size, { indirect, inOrder });
          // All buffers in the order in which they were made available. The first `fetched` of them are
          // behind the device's position; those that wait there are handed out again first.
          type Buffer = { token: number; seen: string; used: boolean };
          const made: Buffer[] = [];
          let published = 0;
          let fetched = 0;
          let waiting: Buffer[] = [];
          const unused = () => made.slice(0, fetched).filter((b) => !b.used);
          const pop = (): boolean => {
            const token = pair.pop();
            const buffer = waiting.shift() ??
              (fetched < published ? made[fetched++] : undefined);
            if (buffer === undefined) {
              assertEquals(token, -1);
              return false;
            }
            const seen = pair.seen();
            if (buffer.seen === "") buffer.seen = seen;
            assertEquals([token, seen], [buffer.token, buffer.seen]);
            assertEquals(buffer.used, false);
            return true;
          };
          const complete = (kind: number) => {
            const open = unused().filter((b) => !waiting.includes(b));
            if (open.length === 0) return;
            const buffer = open[inOrder ? 0 : kind % open.length]!;
            pair.device.push(buffer.token, 0);
            buffer.used = true;
          };
          for (const { adds, pops, completions, save } of steps) {
            for (const [readable, writable] of adds) {
              const count = readable + writable;
              if (count === 0 || count > size) continue;
              const token = pair.add(readable, writable);
              if (token >= 0) made.push({ token, seen: "", used: false });
            }
            pair.driver.publish();
            published = made.length;
            for (let i = 0; i < pops; i++) if (!pop()) break;
            completions.forEach(complete);
            pair.device.publish();
            if (save !== "no") {
              const { way, state } = saveQueue(
                pair.device,
                pair.memory,
                pair.config,
                save,
              );
              const open = unused();
              const suffix = open.length === 0 ||
                made.slice(made.indexOf(open[0]!), fetched).every((b) =>
                  !b.used
                );
              assertEquals(
                way,
                open.length === 0
                  ? "drain"
                  : suffix && save === "rewind"
                  ? "rewind"
                  : "carry",
              );
              assertEquals(
                state.inFlight.map(({ id }) => id),
                way === "carry" ? open.map(({ token }) => token) : [],
              );
              if (way === "rewind") fetched -= open.length;
              waiting = way === "carry" ? open : [];
              ways.add(way);
              pair.restore(state);
            }
            while (pair.driver.reclaim() >= 0);
          }
          while (pop());
          while (unused().length > 0) complete(0);
          pair.device.publish();
          while (pair.driver.reclaim() >= 0);
          assertEquals(made.every(({ used }) => used), true);
          assertEquals([pair.driver.inFlight, pair.driver.free], [0, size]);
        },
      ),
      { numRuns: 500, seed: 0x5a5e },
    );
    assertEquals([...ways].sort(), ["carry", "drain", "rewind"]);
  });

  Deno.test(`A malformed buffer in flight comes back as a fault, carried or rewound (${format})`, () => {
    const pair = new TestPair(format, 4);
    pair.add(1, 1);
    pair.add(1, 0);
    pair.driver.publish();
    // The address of the first segment lies nowhere, and both are writable before a readable one.
    const words = new DataView(pair.bytes.buffer);
    const flagsAt = PAIR_RING + (format === "split" ? 12 : 14);
    words.setUint16(flagsAt, words.getUint16(flagsAt, true) | 2, true);
    const secondAt = flagsAt + 16;
    words.setUint16(secondAt, words.getUint16(secondAt, true) & ~2, true);
    const token = pair.pop();
    assertEquals(pair.chain.fault?.code, "READABLE_AFTER_WRITABLE");
    const { way, state } = saveQueue(
      pair.device,
      pair.memory,
      pair.config,
      "carry",
    );
    assertEquals(way, "carry");
    assertEquals(state.inFlight, [{ id: token, slots: 2, descriptors: [] }]);
    const rewound = saveQueue(pair.device, pair.memory, pair.config);
    assertEquals(rewound.way, "rewind");
    for (
      const [from, code] of [
        [state, "BAD_QUEUE_STATE"],
        [rewound.state, "READABLE_AFTER_WRITABLE"],
      ] as const
    ) {
      pair.restore(from);
      assertEquals(pair.pop(), token);
      assertEquals(
        [pair.chain.fault?.code, pair.chain.fault?.fatal, pair.chain.count],
        [code, false, 0],
      );
    }
    pair.device.push(token, 0);
    pair.device.publish();
    assertEquals(pair.driver.reclaim(), token);
    assert(pair.pop() >= 0);
    assertEquals(pair.chain.fault, null);
  });

  Deno.test(`A buffer of empty descriptors in flight is carried as it is (${format})`, () => {
    for (const indirect of [false, true]) {
      const pair = new TestPair(format, 4, { indirect });
      pair.add(1, 1, 0);
      pair.add(0, 1, 0);
      pair.driver.publish();
      const tokens = [pair.pop(), pair.pop()];
      const state = pair.device.save();
      assertEquals(
        state.inFlight.map(({ descriptors }) =>
          descriptors.map(({ len, writable }) => [len, writable])
        ),
        [[[0, false], [0, true]], [[0, true]]],
      );
      pair.restore(state);
      for (const token of tokens) {
        assertEquals(pair.pop(), token);
        assertEquals([pair.chain.fault, pair.chain.count], [null, 0]);
        pair.device.push(token, 0);
      }
      pair.device.publish();
      for (const token of tokens) assertEquals(pair.driver.reclaim(), token);
    }
  });
}

Deno.test("A carried buffer over adjoining regions has the descriptors that its driver wrote", () => {
  for (const format of FORMATS) {
    for (const indirect of [false, true]) {
      const pair = new TestPair(format, 4, { indirect });
      const { buffer } = pair.bytes;
      const cut = PAIR_DATA + 16;
      const memory = new GuestMemory([
        { guestAddress: 0, size: cut, buffer },
        {
          guestAddress: cut,
          size: buffer.byteLength - cut,
          buffer,
          byteOffset: cut,
        },
      ]);
      pair.device = newDevice(memory, pair.config, format);
      pair.add(1, 1, 40);
      pair.driver.publish();
      pair.pop();
      assertEquals(pair.chain.count, 3);
      const { inFlight } = pair.device.save();
      assertEquals(inFlight[0]!.slots, indirect ? 1 : 2);
      assertEquals(inFlight[0]!.descriptors, [
        { addr: PAIR_DATA, len: 40, writable: false },
        { addr: PAIR_DATA + 64, len: 40, writable: true },
      ]);
    }
  }
});

Deno.test("rewindInFlight() refuses slots that look available but do not say what was fetched", () => {
  const pair = new TestPair("packed", 4);
  pair.add(0, 1);
  pair.driver.publish();
  pair.pop();
  const state = pair.device.save();
  assert(rewindInFlight(pair.memory, pair.config, state) !== null);
  new DataView(pair.bytes.buffer).setUint32(PAIR_RING + 8, 5, true);
  assertEquals(rewindInFlight(pair.memory, pair.config, state), null);
});

Deno.test("rewindInFlight() refuses a packed chain that no longer goes on where it did", () => {
  const pair = new TestPair("packed", 8);
  offer(pair, 1, 3);
  assert(pair.pop() >= 0);
  const state = pair.device.save();
  // As a used descriptor leaves it that has the length of the segment and was never published.
  for (let slot = 0; slot < 3; slot++) {
    const at = PAIR_RING + slot * 16 + 14;
    assert(rewindInFlight(pair.memory, pair.config, state) !== null);
    pair.bytes[at]! ^= 1;
    assertEquals(rewindInFlight(pair.memory, pair.config, state), null);
    pair.bytes[at]! ^= 1;
  }
});

Deno.test("A restored queue refuses a state that breaks a rule, and names the rule", () => {
  const one = (id: number, slots = 1) => ({
    id,
    slots,
    descriptors: [{ addr: 0x1000, len: 4, writable: false }],
  });
  const split = (change: object) => ({
    format: "split",
    lastAvailIdx: 1,
    usedIdx: 0,
    inFlight: [one(0)],
    ...change,
  });
  const packed = (change: object) => ({
    format: "packed",
    lastAvailIdx: 1,
    lastAvailWrapCounter: 1,
    usedIdx: 0,
    usedWrapCounter: 1,
    inFlight: [one(0)],
    ...change,
  });
  const descriptors = (...list: object[]) => ({
    inFlight: [{ ...one(0), descriptors: list }],
  });
  const good = { addr: 0x1000, len: 4, writable: true };
  for (
    const [make, format] of [[split, "split"], [packed, "packed"]] as const
  ) {
    const pair = new TestPair(format, 4);
    const restore = (state: unknown) =>
      newDevice(pair.memory, pair.config, format, state as QueueState);
    restore(make({}));
    const cases: [object, string][] = [
      [{ format: format === "split" ? "packed" : "split" }, "its format is"],
      [{ lastAvailIdx: -1 }, "lastAvailIdx is -1"],
      [{ usedIdx: 0.5 }, "usedIdx is 0.5"],
      [{ inFlight: [] }, format === "split" ? "0 buffers are" : "but 0 are"],
      [{ inFlight: [one(0), one(1)] }, format === "split" ? "but 2" : "but 2"],
      [{ lastAvailIdx: 2, inFlight: [one(2), one(2)] }, "in flight twice"],
      [{ inFlight: [one(0, 0)] }, "slots is 0"],
      [{ inFlight: [one(0, 5)] }, "slots is 5"],
      [{ inFlight: [one(0.5)] }, "id is 0.5"],
      [{ inFlight: null }, "inFlight is null"],
      [descriptors({ ...good, addr: 2 ** 53 }), "addr is 9007199254740992"],
      [descriptors({ ...good, addr: -1 }), "addr is -1"],
      [descriptors({ ...good, len: 2 ** 32 }), "len is 4294967296"],
      [descriptors({ ...good, writable: 1 }), "writable is 1"],
      [descriptors(good, { ...good, writable: false }), "readable behind"],
      [descriptors(...new Array(1029).fill(good)), "more than 1028"],
      ...(format === "split"
        ? [
          [{ lastAvailIdx: 65536 }, "not 0 to 65535"],
          [{ inFlight: [one(4)] }, "id is 4, not 0 to 3"],
        ] as [object, string][]
        : [
          [{ lastAvailIdx: 4 }, "not 0 to 3"],
          [{ usedIdx: 4 }, "not 0 to 3"],
          [{ usedWrapCounter: 2 }, "usedWrapCounter is 2"],
          [{ lastAvailWrapCounter: true }, "lastAvailWrapCounter is true"],
          [{ lastAvailIdx: 0, usedIdx: 1 }, "behind usedIdx 1 in the same"],
          [{ lastAvailWrapCounter: 0 }, "more than a lap ahead"],
          [{ lastAvailIdx: 0, usedWrapCounter: 0 }, "4 slots ahead"],
          [{ inFlight: [one(65536)] }, "id is 65536"],
          [{ lastAvailIdx: 3, inFlight: [one(0, 2)] }, "3 slots ahead"],
        ] as [object, string][]),
    ];
    for (const [change, words] of cases) {
      const error = assertThrows(() => restore(make(change)), RingError, words);
      assertEquals([error.code, error.fatal], ["BAD_QUEUE_STATE", true]);
    }
  }
});
