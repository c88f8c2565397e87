import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  PAIR_DATA,
  PAIR_DEVICE_AREA,
  PAIR_RING,
  TestPair,
} from "./_test_pair.ts";
import { RingError } from "./errors.ts";
import { type BatchDriverQueue, BufferList } from "./queue.ts";

/** A ring twice: one driver works on single buffers, the other one on batches; the devices do the same. */
class Twins {
  readonly pairs: readonly [TestPair, TestPair];
  readonly one: BatchDriverQueue;
  readonly many: BatchDriverQueue;
  readonly random: (below: number) => number;
  readonly inOrder: boolean;
  readonly held: { token: number; writable: number }[] = [];
  reclaimed = 0;
  broken = false;

  constructor(seed: number) {
    let state = seed * 2654435761 >>> 0;
    this.random = (below) => {
      state = Math.imul(state ^ state >>> 15, 0x2c1b3c6d) + 0x9e3779b9 >>> 0;
      return (state >>> 8) % below;
    };
    const pick = this.random;
    this.inOrder = pick(4) === 0;
    const format = pick(2) === 0 ? "split" : "packed";
    const size = [1, 4, 8, 64, 256][pick(5)]!;
    const options = {
      eventIdx: pick(2) === 0,
      indirect: pick(3) === 0,
      inOrder: this.inOrder,
      strongOrdering: pick(4) !== 0,
    };
    this.pairs = [
      new TestPair(format, size, options),
      new TestPair(format, size, options),
    ];
    this.one = this.pairs[0].driver as BatchDriverQueue;
    this.many = this.pairs[1].driver as BatchDriverQueue;
  }

  lists(): BufferList[] {
    const pick = this.random;
    return Array.from({ length: pick(30) }, () => {
      const list = new BufferList(8);
      const readable = pick(4);
      const segments = readable + pick(3) + (readable === 0 ? 1 : 0);
      for (let i = 0; i < segments; i++) {
        const address = PAIR_DATA + 16 * pick(1000);
        if (i < readable) list.addReadable(address, pick(60));
        else list.addWritable(address, pick(60));
      }
      return list;
    }).filter(({ count }) => count <= this.one.size);
  }

  add(): void {
    const { one, many } = this;
    const lists = this.lists();
    const tokens = new Uint32Array(this.random(3) === 0 ? 5 : 40);
    const count = many.addBatch(lists, tokens);
    for (let i = 0; i < count; i++) assertEquals(one.add(lists[i]!), tokens[i]);
    if (count < lists.length && count < tokens.length) {
      assertEquals(one.add(lists[count]!), -1);
    }
    this.assertSame();
    if (this.random(3) === 0) return;
    assertEquals(one.publish(), many.publish());
    assertEquals(one.needsKick(), many.needsKick());
    this.assertSame();
  }

  assertSame(): void {
    const { one, many } = this;
    assertEquals([one.free, one.inFlight], [many.free, many.inFlight]);
    assertEquals(this.pairs[0].bytes, this.pairs[1].bytes);
  }

  serve(): void {
    const pick = this.random;
    const [left, right] = this.pairs;
    while (pick(8) !== 0) {
      const token = left.pop();
      assertEquals(right.pop(), token);
      if (token < 0) break;
      this.held.push({ token, writable: left.chain.writableBytes });
    }
    while (this.held.length !== 0 && pick(6) !== 0) {
      const at = this.inOrder ? 0 : pick(this.held.length);
      const { token, writable } = this.held.splice(at, 1)[0]!;
      const written = pick(3) === 0 ? writable : pick(writable + 1);
      for (const { device } of this.pairs) device.push(token, written);
    }
    for (const { device } of this.pairs) {
      device.publish();
      device.armKicks();
    }
  }

  /** Spoils what the devices wrote. */
  spoil(): void {
    const pick = this.random;
    const [at, value] = [
      this.pairs[0].format === "split"
        ? PAIR_DEVICE_AREA + 4 + 8 * pick(this.one.size) + pick(8)
        : PAIR_RING + 16 * pick(this.one.size) + 8 + pick(6),
      pick(256),
    ];
    for (const { bytes } of this.pairs) bytes[at] = value;
  }

  reclaim(): void {
    const { one, many } = this;
    const room = 1 + this.random(40);
    const tokens = new Uint32Array(room);
    const lengths = new Float64Array(room);
    let count = 0;
    try {
      count = many.reclaimBatch(tokens, lengths);
    } catch (error) {
      assert(error instanceof RingError, String(error));
      const same = assertThrows(() => one.reclaim(), RingError);
      assertEquals(same.code, error.code);
      this.broken = true;
      return;
    }
    for (let i = 0; i < count; i++) {
      assertEquals(one.reclaim(), tokens[i]);
      assertEquals(one.usedLength, lengths[i]);
    }
    this.reclaimed += count;
    // It stops short at the end of what it had seen; what comes next is the same, or refused by both.
    if (count < room) {
      const next = codeOr(() => one.reclaim());
      const token = new Uint32Array(1);
      const same = codeOr(() =>
        many.reclaimBatch(token, lengths) === 0 ? -1 : token[0]!
      );
      assertEquals(same, next);
      if (typeof next === "number" && next >= 0) this.reclaimed++;
      this.broken = typeof next === "string";
      if (this.broken) return;
    }
    this.assertSame();
    if (this.random(2) === 0) {
      assertEquals(one.armInterrupts(), many.armInterrupts());
    }
  }
}

/** What a call returns, or the code of the fault that it throws. */
function codeOr(call: () => number): number | string {
  try {
    return call();
  } catch (error) {
    if (!(error instanceof RingError)) throw error;
    return error.code;
  }
}

Deno.test("addBatch() and reclaimBatch() do what add() and reclaim() do", () => {
  let reclaimed = 0;
  for (let seed = 1; seed <= 60; seed++) {
    const twins = new Twins(seed);
    for (let step = 0; step < 40; step++) {
      twins.add();
      twins.serve();
      twins.reclaim();
      assertEquals(twins.broken, false, `seed ${seed}`);
    }
    reclaimed += twins.reclaimed;
  }
  assert(reclaimed > 5000, `${reclaimed} buffers`);
});

Deno.test("reclaimBatch() refuses what reclaim() refuses, and hands out what comes before it", () => {
  let broken = 0;
  for (let seed = 1; seed <= 200; seed++) {
    const twins = new Twins(seed);
    for (let step = 0; step < 40 && !twins.broken; step++) {
      twins.add();
      twins.serve();
      if (twins.random(4) === 0) twins.spoil();
      twins.reclaim();
    }
    if (twins.broken) broken++;
  }
  assert(broken > 30, `${broken} broken`);
});

for (const format of ["split", "packed"] as const) {
  Deno.test(`addBatch() stages what comes before a buffer that can never fit, ${format}`, () => {
    const { driver, device, chain } = new TestPair(format, 4);
    const small = new BufferList().addWritable(PAIR_DATA, 16);
    const large = new BufferList();
    for (let i = 0; i < 5; i++) large.addWritable(PAIR_DATA + 64 * i, 16);
    const tokens = new Uint32Array(4);
    const batch = driver as BatchDriverQueue;
    assertThrows(
      () => batch.addBatch([small, small, large], tokens),
      RangeError,
      "5 segments",
    );
    assertThrows(
      () => batch.addBatch([new BufferList()], tokens),
      RangeError,
    );
    const huge = new BufferList().addWritable(0, 0xffffffff)
      .addWritable(PAIR_DATA, 2);
    assertThrows(() => batch.addBatch([huge], tokens), RangeError, "bytes");
    assertEquals([batch.inFlight, batch.free], [2, 2]);
    assertEquals(batch.addBatch([small, small, small], tokens), 2);
    batch.publish();
    for (let i = 0; i < 4; i++) assert(device.pop(chain));
    assertEquals(device.pop(chain), false);
  });
}

for (const format of ["split", "packed"] as const) {
  Deno.test(`reclaimBatch() refuses a buffer that is staged and not published, ${format}`, () => {
    const { driver, device, chain, bytes } = new TestPair(format, 8, {
      strongOrdering: true,
    });
    const batch = driver as BatchDriverQueue;
    const lists = Array.from(
      { length: 3 },
      (_, i) => new BufferList().addWritable(PAIR_DATA + 64 * i, 16),
    );
    const tokens = new Uint32Array(2);
    assertEquals(batch.addBatch(lists, tokens), 2);
    batch.publish();
    while (device.pop(chain)) device.push(chain.token, 16);
    device.publish();
    const staged = new Uint32Array(2);
    assertEquals(batch.addBatch(lists, staged), 2);
    // The second one that was used.
    const id = format === "split"
      ? PAIR_DEVICE_AREA + 4 + 8
      : PAIR_RING + 16 + 12;
    bytes[id] = staged[1]!;
    const used = new Uint32Array(8);
    const lengths = new Float64Array(8);
    assertEquals(batch.reclaimBatch(used, lengths), 1);
    assertEquals(used[0], tokens[0]);
    const error = assertThrows(
      () => batch.reclaimBatch(used, lengths),
      RingError,
    );
    assertEquals(error.code, "USED_ID_UNKNOWN");
  });
}
