import {
  assert,
  assertEquals,
  assertStrictEquals,
  assertThrows,
} from "@std/assert";
import { newDevice, PAIR_DATA, PAIR_RING, TestPair } from "./_test_pair.ts";
import { Chain } from "./chain.ts";
import { ChainBatch } from "./chain_batch.ts";
import { RingError } from "./errors.ts";
import { GuestMemory } from "./memory.ts";
import { PackedDevice } from "./packed_device.ts";
import { BufferList, type QueueState, type RingFormat } from "./queue.ts";
import { SplitDevice } from "./split_device.ts";

type Device = SplitDevice | PackedDevice;

/** One buffer in words, as both ways of fetching show it. */
function wordsOf(chain: Chain): string {
  const { token, count, readable, readableBytes, writableBytes, fault } = chain;
  let text = `${token} ${readable}/${count} ${readableBytes}+${writableBytes}`;
  for (let i = 0; i < count; i++) {
    text += ` ${chain.region[i]}:${chain.offset[i]}+${chain.length[i]}`;
  }
  return fault === null ? text : `${text} ${fault.code}`;
}

function wordsOfBatch(batch: ChainBatch, index: number): string {
  const begin = batch.first[index]!;
  const end = batch.first[index + 1]!;
  let text = `${batch.token[index]} ${batch.firstWritable[index]! - begin}/${
    end - begin
  } ${batch.readableBytes[index]}+${batch.writableBytes[index]}`;
  for (let i = begin; i < end; i++) {
    text += ` ${batch.region[i]}:${batch.offset[i]}+${batch.length[i]}`;
  }
  const fault = batch.fault(index);
  return fault === null ? text : `${text} ${fault.code}`;
}

/** A ring twice, with the same driver: one device takes single buffers, the other one batches. */
class Twins {
  readonly pairs: TestPair[] = [];
  readonly memories: GuestMemory[] = [];
  readonly devices: Device[] = [];
  readonly inFlight: { token: number; writable: number }[] = [];
  readonly random: (below: number) => number;
  readonly inOrder: boolean;
  readonly format: RingFormat;
  readonly chain: Chain;
  batch: ChainBatch;
  popped = 0;
  faults = 0;
  broken = false;

  constructor(seed: number) {
    let state = seed * 2654435761 >>> 0;
    this.random = (below) => {
      state = Math.imul(state ^ state >>> 15, 0x2c1b3c6d) + 0x9e3779b9 >>> 0;
      return (state >>> 8) % below;
    };
    const pick = this.random;
    this.format = pick(2) === 0 ? "split" : "packed";
    this.inOrder = pick(4) === 0;
    const options = {
      eventIdx: pick(2) === 0,
      indirect: pick(2) === 0,
      inOrder: this.inOrder,
      strongOrdering: pick(4) !== 0,
    };
    const size = [4, 8, 64, 256][pick(4)]!;
    const regions = pick(3);
    for (let i = 0; i < 2; i++) {
      const pair = new TestPair(this.format, size, options);
      this.pairs.push(pair);
      const { buffer, length } = pair.bytes;
      // The buffers' memory in one region, in two that adjoin, or in one behind a hole.
      const cut = PAIR_DATA + 0x800;
      const memory = regions === 0 ? pair.memory : new GuestMemory([
        { guestAddress: 0, size: cut, buffer },
        {
          guestAddress: regions === 1 ? cut : cut + 16,
          size: length - cut - 16,
          buffer,
          byteOffset: regions === 1 ? cut : cut + 16,
        },
      ]);
      this.memories.push(memory);
      this.devices.push(this.#device(i));
    }
    this.chain = new Chain(this.memories[0]!);
    this.batch = new ChainBatch(this.memories[1]!);
  }

  #device(index: number, state?: QueueState): Device {
    const memory = this.memories[index]!;
    const { config } = this.pairs[index]!;
    return this.format === "split"
      ? new SplitDevice(memory, config, state)
      : new PackedDevice(memory, config, state);
  }

  /** The driver offers some buffers, of which some are spoiled. */
  offer(hostile: boolean): void {
    const pick = this.random;
    for (let count = pick(20); count > 0; count--) {
      const readable = pick(3);
      const writable = pick(3) + (readable === 0 ? 1 : 0);
      const length = pick(8) === 0 ? 0 : 1 + pick(60);
      const spoil = hostile && pick(12) === 0;
      const [field, value] = [pick(16), pick(256)];
      for (const pair of this.pairs) {
        if (pair.add(readable, writable, length) < 0 || !spoil) continue;
        const at = PAIR_RING + (count * 5 % pair.config.size) * 16 + field;
        pair.bytes[at] = value;
      }
    }
    const spoilRing = hostile && pick(10) === 0;
    const [entry, head] = [pick(256), pick(300)];
    for (const pair of this.pairs) {
      const { driverArea, size } = pair.config;
      if (spoilRing && this.format === "split") {
        pair.bytes[driverArea + 4 + entry % size * 2] = head;
      }
      pair.driver.publish();
      pair.driver.needsKick();
    }
  }

  /** Both devices fetch; all that they show is the same. */
  fetch(): void {
    const [one, many] = this.devices as [Device, Device];
    const pick = this.random;
    if (pick(8) === 0) {
      this.batch = new ChainBatch(this.memories[1]!, 1 + pick(12), pick(4));
    }
    const most = pick(3) === 0 ? 1 + pick(8) : undefined;
    const room = Math.min(most ?? Infinity, this.batch.capacity);
    let count = -1;
    try {
      count = many.popBatch(this.batch, most);
    } catch (error) {
      assert(error instanceof RingError && error.fatal, String(error));
      const code = error.code;
      const same = assertThrows(() => one.pop(this.chain), RingError);
      assertEquals(same.code, code);
      this.broken = true;
      return;
    }
    assertEquals(count, this.batch.count);
    for (let i = 0; i < count; i++) {
      assert(one.pop(this.chain));
      const words = wordsOf(this.chain);
      assertEquals(wordsOfBatch(this.batch, i), words);
      assertEquals(this.batch.written[i], 0);
      const copy = new Chain(this.memories[1]!, 0);
      this.batch.copyTo(i, copy);
      assertEquals(wordsOf(copy), words);
      assertStrictEquals(copy.memory, this.memories[1]!);
      this.inFlight.push({
        token: this.chain.token,
        writable: this.chain.fault === null ? this.chain.writableBytes : 0,
      });
      this.popped++;
      if (this.chain.fault !== null) this.faults++;
    }
    assertEquals(one.inFlight, many.inFlight);
    if (count < room && this.restored === 0) {
      // It stops short where there is nothing left, or what comes is no buffer.
      const next = again(one, this.memories[0]!);
      assertEquals(again(many, this.memories[1]!), next);
      this.broken = next !== "none" && next !== "one";
    }
    this.restored = Math.max(0, this.restored - count);
  }

  restored = 0;

  /** Both devices complete what they fetched last, or some of all that is in flight. */
  complete(): void {
    const [one, many] = this.devices as [Device, Device];
    const { batch, inFlight } = this;
    const pick = this.random;
    const written = (writable: number) =>
      pick(3) === 0 ? writable : Math.min(writable, pick(60));
    const last = inFlight.length - batch.count;
    if (batch.count !== 0 && (!this.inOrder || last === 0) && pick(3) !== 0) {
      // An older one before the batch, and some between them left behind.
      if (last > 0 && pick(2) === 0) {
        const { token } = inFlight.splice(0, 1)[0]!;
        one.push(token, 0);
        many.push(token, 0);
      }
      inFlight.splice(inFlight.length - batch.count).forEach(
        ({ token, writable }, i) => {
          assertEquals(batch.token[i], token);
          batch.written[i] = written(writable);
          one.push(token, batch.written[i]!);
        },
      );
      many.pushBatch(batch);
    } else {
      for (let left = pick(inFlight.length + 1); left > 0; left--) {
        const at = this.inOrder ? 0 : pick(inFlight.length);
        const { token, writable } = inFlight.splice(at, 1)[0]!;
        const length = written(writable);
        one.push(token, length);
        many.push(token, length);
      }
    }
    batch.clear();
    assertEquals(batch.count, 0);
    assertEquals(one.usedPosition, many.usedPosition);
    assertEquals(one.publish(), many.publish());
    assertEquals(one.needsInterrupt(), many.needsInterrupt());
    assertEquals(this.pairs[0]!.bytes, this.pairs[1]!.bytes);
    assertEquals(one.save(), many.save());
    if (pick(2) === 0) assertEquals(one.armKicks(), many.armKicks());
  }

  /** Gives back what was fetched last, one by one. */
  giveBack(): void {
    const { batch, inFlight } = this;
    for (let left = this.random(batch.count + 1); left > 0; left--) {
      const { token } = inFlight.pop()!;
      for (const device of this.devices) device.unpop(token);
    }
    batch.clear();
    if (this.restored !== 0) this.restored = inFlight.length;
  }

  /** Both go on from their states; what was in flight is fetched again. */
  restore(): void {
    const states = this.devices.map((device) => device.save());
    assertEquals(states[0], states[1]);
    this.restored = states[0]!.inFlight.length;
    for (let i = 0; i < 2; i++) this.devices[i] = this.#device(i, states[i]);
    this.inFlight.length = 0;
    this.batch.clear();
  }

  /** The driver takes back what was used. */
  reclaim(): void {
    const [left, right] = this.pairs as [TestPair, TestPair];
    for (;;) {
      const token = left.driver.reclaim();
      assertEquals(right.driver.reclaim(), token);
      if (token < 0) return;
      assertEquals(left.driver.usedLength, right.driver.usedLength);
    }
  }
}

/** What one more try to fetch says: "none", or the code of the ring's fault. */
function again(device: Device, memory: GuestMemory): string {
  try {
    const chain = new Chain(memory);
    if (!device.pop(chain)) return "none";
    device.unpop(chain.token);
    return "one";
  } catch (error) {
    assert(error instanceof RingError && error.fatal, String(error));
    return error.code;
  }
}

function live(seed: number, hostile: boolean): Twins {
  const twins = new Twins(seed);
  for (let step = 0; step < 40 && !twins.broken; step++) {
    twins.offer(hostile);
    const restores = twins.random(10) === 0;
    twins.fetch();
    if (twins.broken) break;
    if (restores && !hostile) {
      twins.restore();
      continue;
    }
    if (twins.random(6) === 0) twins.giveBack();
    twins.complete();
    try {
      twins.reclaim();
    } catch (error) {
      // A driver whose descriptors were spoiled may see what it did not offer.
      assert(hostile && error instanceof RingError, String(error));
      break;
    }
  }
  return twins;
}

Deno.test("popBatch() and pushBatch() do what pop() and push() do, over lawful rings", () => {
  let popped = 0;
  for (let seed = 1; seed <= 150; seed++) {
    const twins = live(seed, false);
    assertEquals(twins.broken, false, `seed ${seed}`);
    popped += twins.popped;
  }
  assert(popped > 10_000, `${popped} buffers`);
});

Deno.test("popBatch() and pushBatch() do what pop() and push() do, over spoiled rings", () => {
  let faults = 0;
  let broken = 0;
  for (let seed = 1000; seed < 1300; seed++) {
    const twins = live(seed, true);
    faults += twins.faults;
    if (twins.broken) broken++;
  }
  assert(faults > 100 && broken > 10, `${faults} faults, ${broken} broken`);
});

for (const format of ["split", "packed"] as const) {
  Deno.test(`popBatch() hands out what comes before a broken place, then throws, ${format}`, () => {
    const pair = new TestPair(format, 8, { strongOrdering: true });
    const device = pair.device as Device;
    const batch = new ChainBatch(pair.memory);
    for (let i = 0; i < 3; i++) pair.add(1, 0);
    pair.driver.publish();
    if (format === "split") {
      // The third head of the available ring lies beyond the table.
      new DataView(pair.bytes.buffer).setUint16(
        pair.config.driverArea + 4 + 2 * 2,
        99,
        true,
      );
    } else {
      // The third buffer has the id of the first.
      pair.bytes[PAIR_RING + 2 * 16 + 12] = pair.bytes[PAIR_RING + 12]!;
    }
    assertEquals(device.popBatch(batch), 2);
    const code = format === "split" ? "HEAD_OUT_OF_RANGE" : "ID_IN_FLIGHT";
    for (let i = 0; i < 2; i++) {
      const error = assertThrows(() => device.popBatch(batch), RingError);
      assertEquals([error.code, error.fatal], [code, true]);
      assertEquals(batch.count, 0);
    }
  });

  Deno.test(`pushBatch() refuses a length that a buffer has no room for, ${format}`, () => {
    const pair = new TestPair(format, 8, { strongOrdering: true });
    const device = pair.device as Device;
    const batch = new ChainBatch(pair.memory);
    for (let i = 0; i < 3; i++) pair.add(0, 1, 16);
    pair.driver.publish();
    assertEquals(device.popBatch(batch), 3);
    batch.written.set([16, 17, 16]);
    assertThrows(() => device.pushBatch(batch), RangeError, "17 bytes");
    // The one before it is staged; the others are still in flight.
    assertEquals(device.inFlight, 2);
    batch.written[1] = 15;
    device.push(batch.token[1]!, 15);
    device.push(batch.token[2]!, 16);
    device.publish();
    const lengths = [];
    while (pair.driver.reclaim() >= 0) lengths.push(pair.driver.usedLength);
    assertEquals(lengths, [16, 15, 16]);
    assertThrows(() => device.push(batch.token[1]!, 0), RangeError);
  });

  Deno.test(`popBatch() takes no more than is asked for, and the rest later, ${format}`, () => {
    const pair = new TestPair(format, 8, { strongOrdering: true });
    const device = pair.device as Device;
    const batch = new ChainBatch(pair.memory, 4);
    for (let i = 0; i < 7; i++) pair.add(1, 0);
    pair.driver.publish();
    assertEquals(device.popBatch(batch, 2), 2);
    assertEquals(device.popBatch(batch, 0), 0);
    assertEquals(device.popBatch(batch, 99), 4);
    assertEquals(device.popBatch(batch), 1);
    assertEquals(device.popBatch(batch), 0);
    assertEquals(device.inFlight, 7);
  });

  Deno.test(`popBatch() finds segments on both sides of 4 GiB, up to the ends of their region, ${format}`, () => {
    const pair = new TestPair(format, 16, { strongOrdering: true });
    const low = 2 ** 32 - 0x1000;
    const memory = new GuestMemory([
      { guestAddress: 0, size: pair.bytes.length, buffer: pair.bytes.buffer },
      { guestAddress: low, size: 0x2000, buffer: new ArrayBuffer(0x2000) },
    ]);
    const device = newDevice(memory, pair.config, format) as Device;
    const batch = new ChainBatch(memory);
    // Offsets in the high region, and bytes; -1 and less lies before it.
    const places = [
      [0, 16],
      [0xff0, 15],
      [0xff0, 16],
      [0xfff, 2],
      [0x1000, 0x1000],
      [0x1fff, 1],
      [0x1fff, 2],
      [0xff8, 16],
      [0x1000, 16],
      [0, 0x2000],
      [0, 0x2001],
      [0x2000, 1],
      [-1, 1],
    ];
    // Twice, so that the device comes to each place from others.
    for (const order of [places, places.toReversed()]) {
      for (const [offset, length] of order) {
        pair.driver.add(
          new BufferList(1).addWritable(low + offset!, length!),
        );
      }
      pair.driver.publish();
      assertEquals(device.popBatch(batch), places.length);
      order.forEach(([offset, length], i) => {
        const inside = offset! >= 0 && offset! + length! <= 0x2000;
        const text = wordsOfBatch(batch, i).replace(/^\d+ /, "");
        assertEquals(
          text,
          inside
            ? `0/1 0+${length} 1:${offset}+${length}`
            : "0/0 0+0 BAD_ADDRESS",
          `${length} bytes at ${offset}`,
        );
      });
      device.pushBatch(batch);
      device.publish();
      while (pair.driver.reclaim() >= 0);
    }
  });
}

Deno.test("popBatch() refuses a packed chain that reaches into descriptors in flight", () => {
  const pair = new TestPair("packed", 4, { strongOrdering: true });
  const device = pair.device as Device;
  const batch = new ChainBatch(pair.memory);
  pair.add(2, 0);
  pair.driver.publish();
  assertEquals(device.popBatch(batch), 1);
  pair.add(2, 0);
  pair.driver.publish();
  // Its last descriptor goes on in the first one that is in flight, which goes on in the second, with an id that
  // is free.
  pair.bytes[PAIR_RING + 3 * 16 + 14]! |= 1;
  pair.bytes[PAIR_RING + 1 * 16 + 12] = 3;
  const error = assertThrows(() => device.popBatch(batch), RingError);
  assertEquals(error.code, "CHAIN_TOO_LONG_FOR_RING");
});

Deno.test("ChainBatch grows for segments, and refuses buffers that it has no room for", () => {
  const pair = new TestPair("split", 64);
  const device = pair.device as Device;
  const batch = new ChainBatch(pair.memory, 2, 0);
  pair.add(5, 6);
  pair.add(0, 7);
  pair.driver.publish();
  assertEquals(device.popBatch(batch), 2);
  assertEquals([...batch.first], [0, 11, 18]);
  assertEquals([...batch.firstWritable], [5, 11]);
  const chain = new Chain(pair.memory);
  assertThrows(() => batch.append(chain), RangeError, "room for 2");
  assertThrows(() => batch.copyTo(2, chain), RangeError, "the batch has 2");
  assertThrows(() => batch.copyTo(-1, chain), RangeError);
  assertThrows(() => new ChainBatch(pair.memory, 0), RangeError);
  assertThrows(() => new ChainBatch(pair.memory, 4, -1), RangeError);
});
