import {
  assert,
  assertEquals,
  assertStrictEquals,
  assertThrows,
} from "@std/assert";
import { Chain } from "./chain.ts";
import { RingError, type RingErrorCode } from "./errors.ts";
import { GuestMemory } from "./memory.ts";
import type { QueueConfig, QueueState } from "./queue.ts";
import { readUsedIdx, SplitDevice } from "./split_device.ts";

const NEXT = 1;
const WRITE = 2;
const INDIRECT = 4;

const BASE = 0x100000;
const MEMORY_SIZE = 0x40000;
const TABLE = BASE;
const AVAIL = BASE + 0x8000;
const USED = BASE + 0xc000;
const DATA = BASE + 0x20000;

type Descriptor = [addr: number, len: number, flags: number, next?: number];

/** A guest that writes what it likes, word by word. */
class Guest {
  readonly memory: GuestMemory;
  readonly config: QueueConfig;
  readonly view: DataView;

  constructor(size: number, change: Partial<QueueConfig> = {}) {
    const buffer = new ArrayBuffer(MEMORY_SIZE);
    this.memory = new GuestMemory([
      { guestAddress: BASE, size: MEMORY_SIZE, buffer },
    ]);
    this.view = new DataView(buffer);
    this.config = {
      size,
      descriptorArea: TABLE,
      driverArea: AVAIL,
      deviceArea: USED,
      ...change,
    };
  }

  u16(address: number): number {
    return this.view.getUint16(address - BASE, true);
  }
  set16(address: number, value: number): void {
    this.view.setUint16(address - BASE, value, true);
  }
  u32(address: number): number {
    return this.view.getUint32(address - BASE, true);
  }

  /** Writes descriptor `index` of the table at `table`. */
  descriptor(index: number, entry: Descriptor, table = TABLE): void {
    const [addr, len, flags, next = 0] = entry;
    const at = table - BASE + 16 * index;
    this.view.setBigUint64(at, BigInt(addr), true);
    this.view.setUint32(at + 8, len, true);
    this.view.setUint16(at + 12, flags, true);
    this.view.setUint16(at + 14, next, true);
  }

  get availIdx(): number {
    return this.u16(AVAIL + 2);
  }
  set availIdx(value: number) {
    this.set16(AVAIL + 2, value);
  }

  /** Puts heads into the available ring and moves its index. */
  offer(...heads: number[]): void {
    let idx = this.availIdx;
    for (const head of heads) {
      this.set16(AVAIL + 4 + 2 * (idx % this.config.size), head);
      idx = (idx + 1) & 0xffff;
    }
    this.availIdx = idx;
  }

  get usedIdx(): number {
    return this.u16(USED + 2);
  }
  /** Entry `index` of the used ring: [id, len]. */
  used(index: number): [number, number] {
    const at = USED + 4 + 8 * (index % this.config.size);
    return [this.u32(at), this.u32(at + 4)];
  }
  get usedFlags(): number {
    return this.u16(USED);
  }
  get availEvent(): number {
    return this.u16(USED + 4 + 8 * this.config.size);
  }
  set usedEvent(value: number) {
    this.set16(AVAIL + 4 + 2 * this.config.size, value);
  }
  set availFlags(value: number) {
    this.set16(AVAIL, value);
  }

  device(state?: QueueState): SplitDevice {
    return new SplitDevice(this.memory, this.config, state);
  }
  chain(capacity?: number): Chain {
    return new Chain(this.memory, capacity);
  }
}

/** The segments as [guest address, length, writable]. */
function segments(chain: Chain): [number, number, boolean][] {
  return Array.from({ length: chain.count }, (_, i) => [
    chain.memory.regions[chain.region[i]!]!.guestAddress + chain.offset[i]!,
    chain.length[i]!,
    i >= chain.readable,
  ]);
}

function fatal(code: RingErrorCode, run: () => unknown): RingError {
  const error = assertThrows(run, RingError);
  assertEquals([error.code, error.fatal], [code, true]);
  return error;
}

/** Pops one buffer that must be at fault with `code`, completes it and sees that the queue goes on. */
function faultOf(guest: Guest, head: number, code: RingErrorCode): void {
  const device = guest.device();
  const chain = guest.chain();
  guest.offer(head);
  assert(device.pop(chain));
  assertEquals(chain.fault?.code, code);
  assertEquals(chain.fault?.fatal, false);
  assertEquals(chain.token, head);
  assertEquals(
    [chain.count, chain.readable, chain.readableBytes, chain.writableBytes],
    [0, 0, 0, 0],
  );
  assertEquals(device.inFlight, 1);
  assertThrows(() => device.push(head, 1), RangeError);
  device.push(head, 0);
  assert(device.publish());
  assertEquals(guest.used(0), [head, 0]);
  // A good buffer after the bad one.
  const last = guest.config.size - 1;
  guest.descriptor(last, [DATA, 8, 0]);
  guest.offer(last);
  assert(device.pop(chain));
  assertEquals(chain.fault, null);
  assertEquals(segments(chain), [[DATA, 8, false]]);
}

Deno.test("new SplitDevice() refuses sizes that are no power of two up to 32768", () => {
  for (const size of [0, 3, 6, 255, 65536, -1, 1.5, NaN]) {
    fatal("BAD_QUEUE_SIZE", () => new Guest(size).device());
  }
});

Deno.test("new SplitDevice() refuses areas that are misaligned or not in one region", () => {
  const end = BASE + MEMORY_SIZE;
  for (
    const change of [
      { descriptorArea: TABLE + 8 },
      { driverArea: AVAIL + 1 },
      { deviceArea: USED + 2 },
      { descriptorArea: end - 112 },
      { driverArea: end - 20 },
      { deviceArea: end - 68 },
      { descriptorArea: BASE - 16 },
      { deviceArea: 2 ** 53 },
      { driverArea: NaN },
    ]
  ) {
    fatal("BAD_QUEUE_ADDRESS", () => new Guest(8, change).device());
  }
  // The last address that fits, for each.
  new Guest(8, { descriptorArea: end - 128 }).device();
  new Guest(8, { driverArea: end - 22 }).device();
  new Guest(8, { deviceArea: end - 72 }).device();
});

Deno.test("new SplitDevice() freezes what it was told", () => {
  const guest = new Guest(4);
  const config = { ...guest.config };
  const device = new SplitDevice(guest.memory, config);
  config.size = 1;
  config.descriptorArea = 0;
  guest.descriptor(3, [DATA, 5, 0]);
  guest.offer(3);
  const chain = guest.chain();
  assert(device.pop(chain));
  assertEquals(device.size, 4);
  device.rebind(guest.memory);
});

Deno.test("SplitDevice.pop() follows a chain of readable and writable buffers", () => {
  const guest = new Guest(8);
  guest.descriptor(6, [DATA, 44, NEXT, 1]);
  guest.descriptor(1, [DATA + 100, 0, NEXT, 7]);
  guest.descriptor(7, [DATA + 200, 10, NEXT | WRITE, 0]);
  guest.descriptor(0, [DATA + 300, 20, WRITE, 5]);
  const device = guest.device();
  const chain = guest.chain(1);
  assertEquals(device.pop(chain), false);
  guest.offer(6);
  assert(device.pop(chain));
  assertEquals(chain.token, 6);
  assertEquals(segments(chain), [
    [DATA, 44, false],
    [DATA + 200, 10, true],
    [DATA + 300, 20, true],
  ]);
  assertEquals([chain.readableBytes, chain.writableBytes], [44, 30]);
  assertEquals(device.inFlight, 1);
  assertEquals(device.pop(chain), false);
});

Deno.test("SplitDevice.pop() takes a chain as long as the queue", () => {
  const guest = new Guest(8);
  for (let i = 0; i < 8; i++) {
    guest.descriptor(i, [DATA + 16 * i, 1, i < 7 ? NEXT : 0, i + 1]);
  }
  guest.offer(0);
  const chain = guest.chain(2);
  assert(guest.device().pop(chain));
  assertEquals([chain.fault, chain.count], [null, 8]);
});

Deno.test("SplitDevice.pop() splits a segment at the border of two regions", () => {
  const low = 0x100000;
  const memory = new GuestMemory([
    { guestAddress: 2 ** 40, size: low, buffer: new ArrayBuffer(low) },
    {
      guestAddress: 2 ** 40 + low,
      size: 0x1000,
      buffer: new ArrayBuffer(0x1000),
    },
    { guestAddress: 0, size: 0x1000, buffer: new ArrayBuffer(0x1000) },
  ]);
  const config = {
    size: 2,
    descriptorArea: 0,
    driverArea: 0x100,
    deviceArea: 0x200,
  };
  const device = new SplitDevice(memory, config);
  const words = new DataView(memory.regions[0]!.bytes.buffer);
  for (let i = 0; i < 3; i++) {
    words.setBigUint64(0, 2n ** 40n + BigInt(low - 3), true);
    words.setUint32(8, 5, true);
    words.setUint16(12, WRITE, true);
    words.setUint16(0x102, i + 1, true);
    const chain = new Chain(memory);
    assert(device.pop(chain));
    assertEquals(segments(chain), [[2 ** 40 + low - 3, 3, true], [
      2 ** 40 + low,
      2,
      true,
    ]]);
    assertEquals([...chain.region.subarray(0, 2)], [1, 2]);
    device.push(0, 5);
    device.publish();
  }
});

Deno.test("SplitDevice.pop() reaches buffers on both sides of 4 GiB in one region", () => {
  const start = 2 ** 32 - 0x10000;
  const memory = new GuestMemory([
    { guestAddress: start, size: 0x20000, buffer: new ArrayBuffer(0x20000) },
  ]);
  const config = {
    size: 4,
    descriptorArea: start,
    driverArea: start + 0x100,
    deviceArea: start + 0x200,
  };
  const device = new SplitDevice(memory, config);
  const words = new DataView(memory.regions[0]!.bytes.buffer);
  const chain = new Chain(memory);
  let idx = 0;
  const places = [
    0x8000,
    0xffff,
    0x10000,
    0x18000,
    0xfffe,
    0x1ffff,
    0x10001,
    0xfff0,
  ];
  for (const offset of [...places, ...places]) {
    words.setBigUint64(0, BigInt(start + offset), true);
    words.setUint32(8, Math.min(4, 0x20000 - offset), true);
    words.setUint16(0x102, ++idx, true);
    assert(device.pop(chain));
    assertEquals(segments(chain), [[
      start + offset,
      Math.min(4, 0x20000 - offset),
      false,
    ]]);
    assertEquals(chain.offset[0], offset);
    device.push(0, 0);
    device.publish();
  }
});

Deno.test("SplitDevice.pop() rejects a descriptor loop", () => {
  const guest = new Guest(4);
  guest.descriptor(0, [DATA, 1, NEXT, 1]);
  guest.descriptor(1, [DATA, 1, NEXT, 0]);
  faultOf(guest, 0, "DESCRIPTOR_LOOP");
  const own = new Guest(4);
  own.descriptor(2, [DATA, 0, NEXT, 2]);
  faultOf(own, 2, "DESCRIPTOR_LOOP");
});

Deno.test("SplitDevice.pop() rejects a next outside the table", () => {
  const guest = new Guest(4);
  guest.descriptor(0, [DATA, 1, NEXT, 4]);
  faultOf(guest, 0, "NEXT_OUT_OF_RANGE");
});

Deno.test("SplitDevice.pop() rejects a readable buffer behind a writable one", () => {
  const guest = new Guest(4);
  guest.descriptor(0, [DATA, 1, NEXT | WRITE, 1]);
  guest.descriptor(1, [DATA, 1, 0]);
  faultOf(guest, 0, "READABLE_AFTER_WRITABLE");
  const empty = new Guest(4);
  empty.descriptor(0, [DATA, 0, NEXT | WRITE, 1]);
  empty.descriptor(1, [DATA, 1, 0]);
  faultOf(empty, 0, "READABLE_AFTER_WRITABLE");
});

Deno.test("SplitDevice.pop() rejects addresses outside guest memory", () => {
  for (
    const [addr, len] of [
      [BASE - 1, 2],
      [BASE + MEMORY_SIZE - 1, 2],
      [BASE + MEMORY_SIZE, 1],
      [DATA + 2 ** 32, 1],
      [2 ** 53, 1],
      [2 ** 53, 0],
      [2 ** 64 - 2048, 4096],
      [DATA, 0xffffffff],
    ] as const
  ) {
    for (const flags of [0, WRITE]) {
      const guest = new Guest(4);
      guest.descriptor(0, [addr, len, flags]);
      faultOf(guest, 0, "BAD_ADDRESS");
    }
  }
});

Deno.test("SplitDevice.pop() resolves an indirect table, also behind direct descriptors", () => {
  for (const table of [DATA, DATA + 8, DATA + 3]) {
    const guest = new Guest(4, { indirect: true });
    guest.descriptor(0, [DATA + 0x1000, 4, 0 | NEXT, 2], table);
    guest.descriptor(2, [DATA + 0x2000, 8, WRITE | NEXT, 1], table);
    guest.descriptor(1, [DATA + 0x3000, 16, WRITE], table);
    // WRITE in the descriptor that refers to the table is to be ignored.
    guest.descriptor(3, [table, 48, INDIRECT | WRITE]);
    guest.descriptor(1, [DATA + 0x4000, 2, NEXT, 3]);
    const device = guest.device();
    const chain = guest.chain();
    guest.offer(3, 1);
    const inTable: [number, number, boolean][] = [
      [DATA + 0x1000, 4, false],
      [DATA + 0x2000, 8, true],
      [DATA + 0x3000, 16, true],
    ];
    assert(device.pop(chain));
    assertEquals(segments(chain), inTable);
    assert(device.pop(chain));
    assertEquals(segments(chain), [[DATA + 0x4000, 2, false], ...inTable]);
    assertEquals(chain.token, 1);
  }
});

Deno.test("SplitDevice.pop() takes an indirect table longer than a small queue", () => {
  const guest = new Guest(2, { indirect: true });
  for (let i = 0; i < 1024; i++) {
    guest.descriptor(
      i,
      [DATA + 0x8000 + i, 1, i < 1023 ? NEXT : 0, i + 1],
      DATA,
    );
  }
  guest.descriptor(0, [DATA, 1024 * 16, INDIRECT]);
  guest.offer(0);
  const chain = guest.chain();
  assert(guest.device().pop(chain));
  assertEquals([chain.fault, chain.count, chain.readableBytes], [
    null,
    1024,
    1024,
  ]);
});

Deno.test("SplitDevice.pop() rejects an indirect table that breaks a rule", () => {
  type Case = [RingErrorCode, Descriptor, Descriptor[], boolean?];
  const good: Descriptor = [DATA + 0x1000, 1, 0];
  const cases: Case[] = [
    ["INDIRECT_NOT_NEGOTIATED", [DATA, 16, INDIRECT], [good], false],
    ["INDIRECT_WITH_NEXT", [DATA, 16, INDIRECT | NEXT, 1], [good]],
    ["INDIRECT_TABLE_SIZE", [DATA, 0, INDIRECT], [good]],
    ["INDIRECT_TABLE_SIZE", [DATA, 24, INDIRECT], [good]],
    ["INDIRECT_TABLE_SIZE", [DATA, 1025 * 16, INDIRECT], [good]],
    ["BAD_ADDRESS", [BASE - 16, 32, INDIRECT], [good]],
    ["BAD_ADDRESS", [BASE + MEMORY_SIZE - 16, 32, INDIRECT], [good]],
    ["BAD_ADDRESS", [2 ** 53, 16, INDIRECT], [good]],
    ["INDIRECT_NESTED", [DATA, 16, INDIRECT], [[DATA, 16, INDIRECT]]],
    ["INDIRECT_NESTED", [DATA, 32, INDIRECT], [[DATA, 1, NEXT, 1], [
      DATA,
      16,
      INDIRECT,
    ]]],
    ["NEXT_OUT_OF_RANGE", [DATA, 16, INDIRECT], [[DATA, 1, NEXT, 1]]],
    ["DESCRIPTOR_LOOP", [DATA, 32, INDIRECT], [[DATA, 1, NEXT, 1], [
      DATA,
      1,
      NEXT,
      0,
    ]]],
    ["BAD_ADDRESS", [DATA, 16, INDIRECT], [[0, 1, 0]]],
    ["BAD_ADDRESS", [DATA, 16, INDIRECT], [[2 ** 53, 0, 0]]],
    ["READABLE_AFTER_WRITABLE", [DATA, 32, INDIRECT], [
      [DATA, 1, NEXT | WRITE, 1],
      good,
    ]],
  ];
  for (const [code, head, table, indirect = true] of cases) {
    for (const shift of [0, 2]) {
      const guest = new Guest(4, { indirect });
      const [addr, ...rest] = head;
      guest.descriptor(0, addr === DATA ? [addr + shift, ...rest] : head);
      table.forEach((entry, i) => guest.descriptor(i, entry, DATA + shift));
      faultOf(guest, 0, code);
    }
  }
});

Deno.test("SplitDevice.pop() holds readable before writable across the border of an indirect table", () => {
  const guest = new Guest(4, { indirect: true });
  guest.descriptor(0, [DATA, 1, WRITE | NEXT, 1]);
  guest.descriptor(1, [DATA, 16, INDIRECT]);
  guest.descriptor(0, [DATA + 64, 1, 0], DATA);
  faultOf(guest, 0, "READABLE_AFTER_WRITABLE");
});

Deno.test("SplitDevice.pop() stops for good at an available index too far ahead", () => {
  for (const idx of [5, 0x8000, 0xffff]) {
    const guest = new Guest(4);
    const device = guest.device();
    const chain = guest.chain();
    guest.availIdx = idx;
    const first = fatal("AVAIL_IDX_JUMP", () => device.pop(chain));
    guest.availIdx = 1;
    assertStrictEquals(fatal("AVAIL_IDX_JUMP", () => device.pop(chain)), first);
    assertEquals(device.armKicks(), false);
  }
});

Deno.test("SplitDevice.pop() counts buffers in flight against the available index", () => {
  const guest = new Guest(4);
  for (let i = 0; i < 4; i++) guest.descriptor(i, [DATA, 1, 0]);
  const device = guest.device();
  const chain = guest.chain();
  guest.offer(0, 1, 2, 3);
  for (let i = 0; i < 4; i++) assert(device.pop(chain));
  device.push(0, 0);
  // Not published: the driver can't know that head 0 is free.
  guest.offer(0);
  fatal("AVAIL_IDX_JUMP", () => device.pop(chain));
  // What is in flight can still be completed.
  assert(device.publish());
  assertEquals(guest.used(0), [0, 0]);
});

Deno.test("SplitDevice.pop() stops for good at a head outside the table", () => {
  const guest = new Guest(4);
  const device = guest.device();
  guest.descriptor(0, [DATA, 1, 0]);
  guest.offer(0, 4);
  const chain = guest.chain();
  assert(device.pop(chain));
  fatal("HEAD_OUT_OF_RANGE", () => device.pop(chain));
  fatal("HEAD_OUT_OF_RANGE", () => device.pop(chain));
  device.unpop(0);
  fatal("HEAD_OUT_OF_RANGE", () => device.pop(chain));
});

Deno.test("SplitDevice.pop() stops for good at a head that is in flight", () => {
  const guest = new Guest(4);
  const device = guest.device();
  guest.descriptor(2, [DATA, 1, 0]);
  guest.offer(2);
  const chain = guest.chain();
  assert(device.pop(chain));
  guest.offer(2);
  fatal("ID_IN_FLIGHT", () => device.pop(chain));
  assertEquals(device.inFlight, 1);
});

Deno.test("SplitDevice.unpop() makes the next pop() fetch the same buffer", () => {
  const guest = new Guest(4, { indirect: true });
  guest.descriptor(0, [DATA, 1, 0]);
  guest.descriptor(1, [DATA, 16, INDIRECT]);
  guest.descriptor(0, [DATA + 64, 7, WRITE], DATA);
  const device = guest.device();
  const chain = guest.chain();
  for (const token of [0, 4, -1, NaN]) {
    assertThrows(() => device.unpop(token), TypeError, "not in flight");
  }
  guest.offer(0, 1);
  assert(device.pop(chain));
  assert(device.pop(chain));
  assertThrows(() => device.unpop(0), TypeError, "not the last one");
  device.unpop(1);
  assertEquals(device.inFlight, 1);
  assertThrows(() => device.push(1, 0), RangeError);
  assertThrows(() => device.unpop(1), TypeError, "not in flight");
  device.unpop(0);
  assertEquals(device.inFlight, 0);
  assert(device.pop(chain));
  assertEquals([chain.token, chain.writableBytes], [0, 0]);
  assertEquals(device.armKicks(), true);
  assert(device.pop(chain));
  assertEquals([chain.token, chain.writableBytes], [1, 7]);
  assertEquals(device.pop(chain), false);
  device.push(1, 7);
  // What was fetched after it is used: the ring has no way back to it.
  assertThrows(() => device.unpop(0), TypeError, "not the last one");
  assertEquals(device.inFlight, 1);
});

Deno.test("SplitDevice.push() refuses what is not in flight and more bytes than there are", () => {
  const guest = new Guest(4);
  guest.descriptor(1, [DATA, 10, NEXT, 2]);
  guest.descriptor(2, [DATA, 20, WRITE]);
  const device = guest.device();
  const chain = guest.chain();
  guest.offer(1);
  for (const token of [1, 0, 4, -1, 0.5, NaN]) {
    assertThrows(() => device.push(token, 0), RangeError, "not in flight");
  }
  device.pop(chain);
  for (const written of [21, -1, 0.5, NaN, 2 ** 32]) {
    assertThrows(
      () => device.push(1, written),
      RangeError,
      "writable part has 20",
    );
  }
  device.push(1, 20);
  assertThrows(() => device.push(1, 20), RangeError, "not in flight");
  assert(device.publish());
  assertEquals([guest.usedIdx, ...guest.used(0)], [1, 1, 20]);
});

Deno.test("SplitDevice.publish() shows a whole batch at once, in the order of the pushes", () => {
  const guest = new Guest(4);
  for (let i = 0; i < 4; i++) guest.descriptor(i, [DATA, 10, WRITE]);
  const device = guest.device();
  const chain = guest.chain();
  guest.offer(0, 1, 2, 3);
  while (device.pop(chain));
  assertEquals(device.publish(), false);
  for (const token of [2, 0, 3]) {
    device.push(token, token);
    assertEquals(guest.usedIdx, 0);
  }
  assertEquals(device.publish(), true);
  assertEquals(device.publish(), false);
  assertEquals(guest.usedIdx, 3);
  assertEquals([0, 1, 2].map((i) => guest.used(i)), [[2, 2], [0, 0], [3, 3]]);
});

/** Lets the device complete `count` buffers of head 0 one after the other. */
function complete(guest: Guest, device: SplitDevice, count = 1): void {
  const chain = guest.chain();
  for (let i = 0; i < count; i++) {
    guest.offer(0);
    assert(device.pop(chain));
    device.push(0, 0);
    assert(device.publish());
  }
}

Deno.test("SplitDevice.needsInterrupt() follows used_event across the wrap of the index", () => {
  const guest = new Guest(2, { eventIdx: true });
  guest.descriptor(0, [DATA, 1, 0]);
  const device = guest.device();
  guest.availFlags = 1; // to be ignored
  assertEquals(device.needsInterrupt(), false);
  let asked = 0;
  for (const event of [0, 5, 5, 0x7fff, 0xfffe, 0xffff, 0, 1]) {
    guest.usedEvent = event;
    do {
      complete(guest, device);
      asked++;
      assertEquals(
        device.needsInterrupt(),
        ((asked - 1) & 0xffff) === event,
        `used index ${asked}, event ${event}`,
      );
      assertEquals(device.needsInterrupt(), false);
    } while (((asked - 1) & 0xffff) !== event);
  }
  assertEquals(asked, 2 * 65536 + 2);
});

Deno.test("SplitDevice.needsInterrupt() counts everything since it was asked last", () => {
  const guest = new Guest(2, { eventIdx: true });
  guest.descriptor(0, [DATA, 1, 0]);
  const device = guest.device();
  guest.usedEvent = 3;
  complete(guest, device, 10);
  assertEquals(device.needsInterrupt(), true);
  guest.usedEvent = 9;
  complete(guest, device, 10);
  assertEquals(device.needsInterrupt(), false);
  // A whole lap of the index and more: nobody can tell any more, so it asks.
  guest.usedEvent = 5;
  complete(guest, device, 65536);
  assertEquals(device.needsInterrupt(), true);
  assertEquals(device.needsInterrupt(), false);
});

Deno.test("SplitDevice.needsInterrupt() follows the flag without VIRTIO_F_EVENT_IDX", () => {
  const guest = new Guest(2);
  guest.descriptor(0, [DATA, 1, 0]);
  const device = guest.device();
  guest.usedEvent = 1; // to be ignored
  complete(guest, device);
  assertEquals(device.needsInterrupt(), true);
  assertEquals(device.needsInterrupt(), false);
  guest.availFlags = 1;
  complete(guest, device);
  assertEquals(device.needsInterrupt(), false);
  guest.availFlags = 0;
  assertEquals(device.needsInterrupt(), false);
  complete(guest, device);
  assertEquals(device.needsInterrupt(), true);
});

Deno.test("SplitDevice.armKicks() sets avail_event and tells of work that came meanwhile", () => {
  const guest = new Guest(2, { eventIdx: true });
  guest.descriptor(0, [DATA, 1, 0]);
  const device = guest.device();
  complete(guest, device, 3);
  device.disarmKicks();
  assertEquals(device.armKicks(), false);
  assertEquals([guest.availEvent, guest.usedFlags], [3, 0]);
  guest.offer(0);
  assertEquals(device.armKicks(), true);
  assertEquals(guest.availEvent, 3);
});

Deno.test("SplitDevice.disarmKicks() sets the flag without VIRTIO_F_EVENT_IDX, armKicks() clears it", () => {
  const guest = new Guest(2);
  const device = guest.device();
  device.disarmKicks();
  assertEquals(guest.usedFlags, 1);
  assertEquals(device.armKicks(), false);
  assertEquals(guest.usedFlags, 0);
  device.disarmKicks();
  assertEquals(guest.usedFlags, 1);
  assertEquals(guest.availEvent, 0);
});

Deno.test("SplitDevice.save() keeps buffers that complete out of order, in the order of their fetch", () => {
  const guest = new Guest(8, { indirect: true, eventIdx: true });
  guest.descriptor(5, [DATA, 1, NEXT, 0]);
  guest.descriptor(0, [DATA + 16, 2, WRITE]);
  guest.descriptor(3, [DATA + 32, 3, WRITE]);
  guest.descriptor(4, [DATA + 0x100, 32, INDIRECT]);
  guest.descriptor(0, [DATA + 48, 4, NEXT, 1], DATA + 0x100);
  guest.descriptor(1, [DATA + 64, 5, WRITE], DATA + 0x100);
  guest.descriptor(6, [DATA + 80, 6, 0]);
  const device = guest.device();
  const chain = guest.chain();
  guest.offer(5, 3, 4, 6);
  for (let i = 0; i < 4; i++) assert(device.pop(chain));
  device.push(3, 3);
  assertThrows(() => device.save(), TypeError, "staged");
  device.publish();
  const state = device.save();
  assertEquals(state, {
    format: "split",
    lastAvailIdx: 4,
    usedIdx: 1,
    inFlight: [
      {
        id: 5,
        slots: 2,
        descriptors: [
          { addr: DATA, len: 1, writable: false },
          { addr: DATA + 16, len: 2, writable: true },
        ],
      },
      {
        id: 4,
        slots: 1,
        descriptors: [
          { addr: DATA + 48, len: 4, writable: false },
          { addr: DATA + 64, len: 5, writable: true },
        ],
      },
      {
        id: 6,
        slots: 1,
        descriptors: [{ addr: DATA + 80, len: 6, writable: false }],
      },
    ],
  });
  assertEquals(device.save(), state);

  // The next instance: first what was in flight, then what is new.
  guest.set16(USED + 4 + 8 * 8, 0xdead);
  const next = guest.device(JSON.parse(JSON.stringify(state)));
  assertEquals(guest.availEvent, 4);
  assertEquals(next.inFlight, 0);
  assertEquals(next.armKicks(), true);
  assertEquals(next.needsInterrupt(), true);
  assertEquals(next.needsInterrupt(), false);
  guest.descriptor(3, [DATA + 96, 7, 0]);
  guest.offer(3);
  assertThrows(() => next.push(5, 0), RangeError, "not in flight");
  assert(next.pop(chain));
  assertEquals(chain.token, 5);
  assertEquals(segments(chain), [[DATA, 1, false], [DATA + 16, 2, true]]);
  assertEquals(next.save().inFlight, state.inFlight);
  assert(next.pop(chain));
  assertEquals(chain.token, 4);
  assertThrows(() => next.unpop(5), TypeError, "not the last one");
  assertThrows(() => next.unpop(6), TypeError, "not in flight");
  next.unpop(4);
  assertEquals(next.inFlight, 1);
  next.unpop(5);
  assertEquals(next.inFlight, 0);
  assertEquals(next.save(), { ...state, lastAvailIdx: 4 });
  assert(next.pop(chain));
  assertEquals([chain.token, chain.count], [5, 2]);
  assert(next.pop(chain));
  assertEquals([chain.token, chain.readableBytes, chain.writableBytes], [
    4,
    4,
    5,
  ]);
  next.push(4, 5);
  next.publish();
  assertEquals(guest.used(1), [4, 5]);
  assertEquals(next.save().inFlight.map(({ id }) => id), [5, 6]);
  assert(next.pop(chain));
  assertEquals(chain.token, 6);
  assert(next.pop(chain));
  assertEquals([chain.token, chain.readableBytes], [3, 7]);
  assertEquals(next.pop(chain), false);
  // Back over the border between new and restored buffers, and forth again.
  next.unpop(3);
  next.unpop(6);
  assertThrows(() => next.unpop(5), TypeError, "not the last one");
  assertEquals(next.save().inFlight.map(({ id }) => id), [5, 6]);
  for (const token of [6, 3]) {
    assert(next.pop(chain));
    assertEquals(chain.token, token);
  }
  assertEquals(next.save().inFlight.map(({ id }) => id), [5, 6, 3]);
  for (const token of [3, 6, 5]) next.push(token, 0);
  next.publish();
  assertEquals([guest.usedIdx, next.inFlight], [5, 0]);
  assertEquals(next.save(), {
    format: "split",
    lastAvailIdx: 5,
    usedIdx: 5,
    inFlight: [],
  });
});

Deno.test("SplitDevice.save() is taken back by a restore whatever the guest does to its descriptors", () => {
  const guest = new Guest(4, { indirect: true });
  guest.descriptor(0, [DATA, 1, NEXT, 0]);
  guest.descriptor(1, [DATA, 1, 0]);
  guest.descriptor(2, [DATA, 1, WRITE | NEXT, 1]);
  const device = guest.device();
  const chain = guest.chain();
  guest.offer(0, 1);
  assert(device.pop(chain));
  assertEquals(chain.fault?.code, "DESCRIPTOR_LOOP");
  assert(device.pop(chain));
  guest.descriptor(1, [2 ** 60, 1, NEXT, 9]);
  const state = device.save();
  assertEquals(state.inFlight, [
    { id: 0, slots: 4, descriptors: [] },
    { id: 1, slots: 1, descriptors: [] },
  ]);
  const next = guest.device(state);
  assert(next.pop(chain));
  assertEquals([chain.token, chain.count], [0, 0]);
  assertEquals(chain.fault?.code, "BAD_QUEUE_STATE");
  assertEquals(chain.fault?.fatal, false);
});

Deno.test("SplitDevice that was restored interrupts once, also with nothing used and with suppression on", () => {
  for (const eventIdx of [false, true]) {
    const guest = new Guest(4, { eventIdx });
    guest.availFlags = 1;
    guest.usedEvent = 77;
    const device = guest.device({
      format: "split",
      lastAvailIdx: 0,
      usedIdx: 0,
      inFlight: [],
    });
    assertEquals([device.needsInterrupt(), device.needsInterrupt()], [
      true,
      false,
    ]);
    guest.descriptor(0, [DATA, 1, 0]);
    complete(guest, device);
    assertEquals(device.needsInterrupt(), false);
  }
});

Deno.test("SplitDevice that was restored refuses a head that waits to be handed out", () => {
  const guest = new Guest(4);
  guest.descriptor(1, [DATA, 1, 0]);
  guest.availIdx = 2;
  guest.offer(1);
  const device = guest.device({
    format: "split",
    lastAvailIdx: 2,
    usedIdx: 1,
    inFlight: [{
      id: 1,
      slots: 1,
      descriptors: [{ addr: 0, len: 1, writable: true }],
    }],
  });
  const chain = guest.chain();
  assert(device.pop(chain));
  assertEquals([chain.token, chain.fault?.code, chain.count], [
    1,
    "BAD_ADDRESS",
    0,
  ]);
  fatal("ID_IN_FLIGHT", () => device.pop(chain));
});

Deno.test("new SplitDevice() refuses a state that no split queue can have been in", () => {
  const guest = new Guest(4);
  for (
    const state of [
      { format: "split", lastAvailIdx: 3, usedIdx: 1, inFlight: [] },
      {
        format: "packed",
        lastAvailIdx: 0,
        lastAvailWrapCounter: 1,
        usedIdx: 0,
        usedWrapCounter: 1,
        inFlight: [],
      },
    ] as QueueState[]
  ) {
    fatal("BAD_QUEUE_STATE", () => guest.device(state));
  }
});

Deno.test("SplitDevice that was restored without a used index takes it from readUsedIdx()", () => {
  const guest = new Guest(4);
  guest.descriptor(0, [DATA, 1, 0]);
  complete(guest, guest.device(), 7);
  assertEquals(readUsedIdx(guest.memory, guest.config), 7);
  const device = guest.device({
    format: "split",
    lastAvailIdx: 7,
    usedIdx: readUsedIdx(guest.memory, guest.config),
    inFlight: [],
  });
  complete(guest, device);
  assertEquals(guest.usedIdx, 8);
});

Deno.test("SplitDevice.rebind() goes on over another buffer with the same addresses", () => {
  const guest = new Guest(4);
  guest.descriptor(0, [DATA, 1, WRITE]);
  guest.descriptor(1, [DATA, 2, WRITE]);
  const device = guest.device();
  const chain = guest.chain();
  guest.offer(0);
  assert(device.pop(chain));
  const buffer = (guest.view.buffer as ArrayBuffer).slice(0);
  const memory = new GuestMemory([{
    guestAddress: BASE,
    size: MEMORY_SIZE,
    buffer,
  }]);
  device.rebind(memory);
  device.push(0, 1);
  device.publish();
  assertEquals(guest.usedIdx, 0);
  const after = new DataView(buffer);
  assertEquals(after.getUint16(USED - BASE + 2, true), 1);
  after.setUint16(AVAIL - BASE + 4 + 2, 1, true);
  after.setUint16(AVAIL - BASE + 2, 2, true);
  assert(device.pop(chain));
  assertEquals([chain.token, chain.memory === memory], [1, true]);
  fatal("BAD_QUEUE_ADDRESS", () =>
    device.rebind(
      new GuestMemory([
        { guestAddress: 0, size: BASE, buffer: new ArrayBuffer(BASE) },
      ]),
    ));
  device.push(1, 2);
  assert(device.publish());
  assertEquals(after.getUint16(USED - BASE + 2, true), 2);
});

Deno.test("SplitDevice.rebind() goes on over regions that are cut otherwise", () => {
  const guest = new Guest(4);
  guest.descriptor(0, [DATA + 0x100, 8, 0]);
  guest.descriptor(1, [DATA + 0x100 - 4, 8, 0]);
  const device = guest.device();
  const chain = guest.chain();
  complete(guest, device);
  const border = DATA + 0x100 - BASE;
  const buffer = guest.view.buffer;
  const memory = new GuestMemory([
    { guestAddress: 0, size: 16, buffer: new ArrayBuffer(16) },
    { guestAddress: BASE, size: border, buffer },
    {
      guestAddress: BASE + border,
      size: MEMORY_SIZE - border,
      buffer,
      byteOffset: border,
    },
  ]);
  device.rebind(memory);
  guest.offer(0, 1);
  assert(device.pop(chain));
  assertEquals([chain.region[0], chain.offset[0], chain.count], [2, 0, 1]);
  assert(device.pop(chain));
  assertEquals([...chain.region.subarray(0, chain.count)], [1, 2]);
  assertEquals(segments(chain), [[DATA + 0xfc, 4, false], [
    DATA + 0x100,
    4,
    false,
  ]]);
});
