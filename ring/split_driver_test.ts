import {
  assert,
  assertEquals,
  assertStrictEquals,
  assertThrows,
} from "@std/assert";
import { RingError, type RingErrorCode } from "./errors.ts";
import { GuestMemory } from "./memory.ts";
import { BufferList, type IndirectTables, type QueueConfig } from "./queue.ts";
import { SplitDriver } from "./split_driver.ts";

const NEXT = 1;
const WRITE = 2;
const INDIRECT = 4;

const MEMORY_SIZE = 0x40000;
const TABLE = 0;
const AVAIL = 0x8000;
const USED = 0xc000;
const TABLES = 0x20000;

/** A device that writes what it likes, word by word. */
class Device {
  readonly view: DataView = new DataView(new ArrayBuffer(MEMORY_SIZE));
  readonly memory: GuestMemory;
  readonly config: QueueConfig;

  constructor(size: number, change: Partial<QueueConfig> = {}) {
    new Uint8Array(this.view.buffer).fill(0xa5);
    this.memory = new GuestMemory([
      { guestAddress: 0, size: MEMORY_SIZE, buffer: this.view.buffer },
    ]);
    this.config = {
      size,
      descriptorArea: TABLE,
      driverArea: AVAIL,
      deviceArea: USED,
      ...change,
    };
  }

  driver(indirect?: IndirectTables): SplitDriver {
    return new SplitDriver(
      this.memory,
      this.config,
      indirect === undefined ? {} : { indirect },
    );
  }
  u16(address: number): number {
    return this.view.getUint16(address, true);
  }
  set16(address: number, value: number): void {
    this.view.setUint16(address, value, true);
  }
  /** Descriptor `index` of the table at `table`: [addr, len, flags, next if it counts]. */
  descriptor(index: number, table = TABLE): number[] {
    const at = table + 16 * index;
    const flags = this.u16(at + 12);
    const entry = [
      Number(this.view.getBigUint64(at, true)),
      this.view.getUint32(at + 8, true),
      flags,
    ];
    if ((flags & NEXT) !== 0) entry.push(this.u16(at + 14));
    return entry;
  }
  available(index: number): number {
    return this.u16(AVAIL + 4 + 2 * (index % this.config.size));
  }
  get usedIdx(): number {
    return this.u16(USED + 2);
  }
  set usedIdx(value: number) {
    this.set16(USED + 2, value);
  }
  /** Writes entry `usedIdx` and moves the index. */
  use(id: number, len: number): void {
    const at = USED + 4 + 8 * (this.usedIdx % this.config.size);
    this.view.setUint32(at, id, true);
    this.view.setUint32(at + 4, len, true);
    this.usedIdx = (this.usedIdx + 1) & 0xffff;
  }
}

function fatal(code: RingErrorCode, run: () => unknown): RingError {
  const error = assertThrows(run, RingError);
  assertEquals([error.code, error.fatal], [code, true]);
  return error;
}

const one = (length = 8) => new BufferList().addWritable(0x1000, length);

Deno.test("new SplitDriver() clears the areas and nothing else", () => {
  const device = new Device(8);
  device.driver();
  const bytes = new Uint8Array(device.view.buffer);
  const areas: [number, number][] = [[TABLE, 128], [AVAIL, 22], [USED, 70]];
  let cleared = 0;
  for (const byte of bytes) if (byte === 0) cleared++;
  assertEquals(cleared, 220);
  for (const [start, length] of areas) {
    assert(bytes.subarray(start, start + length).every((byte) => byte === 0));
  }
});

Deno.test("new SplitDriver() refuses a bad size, bad areas and bad indirect tables", () => {
  fatal("BAD_QUEUE_SIZE", () => new Device(3).driver());
  fatal("BAD_QUEUE_ADDRESS", () => new Device(8, { driverArea: 1 }).driver());
  const device = new Device(8, { indirect: true });
  for (const address of [TABLES + 8, MEMORY_SIZE - 8 * 2 * 16 + 16, -16, NaN]) {
    fatal("BAD_QUEUE_ADDRESS", () => device.driver({ address, entries: 2 }));
  }
  for (const entries of [0, 1.5, 32769]) {
    assertThrows(() => device.driver({ address: TABLES, entries }), RangeError);
  }
  assertThrows(
    () => new Device(8).driver({ address: TABLES, entries: 2 }),
    TypeError,
  );
  const bytes = new Uint8Array(device.view.buffer);
  assert(bytes.every((byte) => byte === 0xa5), "memory is left alone");
});

Deno.test("SplitDriver.add() writes a chain, publish() shows it", () => {
  const device = new Device(4);
  const driver = device.driver();
  const list = new BufferList()
    .addReadable(2 ** 33 + 5, 44)
    .addReadable(0x1000, 0)
    .addWritable(2 ** 53 - 1, 0xf0000000);
  const token = driver.add(list);
  assertEquals([driver.free, driver.inFlight], [1, 1]);
  assertEquals(device.u16(AVAIL + 2), 0);
  const second = device.descriptor(token)[3]!;
  const third = device.descriptor(second)[3]!;
  assertEquals(device.descriptor(token), [2 ** 33 + 5, 44, NEXT, second]);
  assertEquals(device.descriptor(second), [0x1000, 0, NEXT, third]);
  assertEquals(device.descriptor(third), [2 ** 53 - 1, 0xf0000000, WRITE]);
  assertEquals(new Set([token, second, third]).size, 3);
  assertEquals([driver.publish(), driver.publish()], [true, false]);
  assertEquals([device.u16(AVAIL + 2), device.available(0)], [1, token]);
});

Deno.test("SplitDriver.add() says -1 where there is no room and refuses what never fits", () => {
  const device = new Device(4);
  const driver = device.driver();
  const list = new BufferList();
  assertThrows(() => driver.add(list), RangeError);
  for (let i = 0; i < 3; i++) list.addReadable(0, 1);
  const token = driver.add(list);
  assertEquals(driver.add(list), -1);
  assertEquals([driver.inFlight, driver.free], [1, 1]);
  list.addReadable(0, 1).addReadable(0, 1);
  assertThrows(
    () => driver.add(list),
    RangeError,
    "5 segments to a queue of 4",
  );
  driver.publish();
  device.use(token, 0);
  assertEquals(driver.reclaim(), token);
  assertEquals(driver.free, 4);
  const huge = new BufferList().addReadable(0, 2 ** 32 - 1).addWritable(0, 2);
  assertThrows(() => driver.add(huge), RangeError, "4294967297 bytes");
  assertEquals(driver.free, 4);
});

Deno.test("SplitDriver.add() builds an indirect table for two segments and more", () => {
  const device = new Device(2, { indirect: true });
  const driver = device.driver({ address: TABLES, entries: 3 });
  const list = new BufferList().addReadable(0x1000, 1).addReadable(0x2000, 2)
    .addWritable(0x3000, 3);
  const a = driver.add(list);
  const b = driver.add(list.clear().addWritable(0x4000, 4));
  assertEquals([driver.free, driver.add(list)], [0, -1]);
  const table = TABLES + a * 3 * 16;
  assertEquals(device.descriptor(a), [table, 48, INDIRECT]);
  assertEquals([0, 1, 2].map((i) => device.descriptor(i, table)), [
    [0x1000, 1, NEXT, 1],
    [0x2000, 2, NEXT, 2],
    [0x3000, 3, WRITE],
  ]);
  assertEquals(device.descriptor(b), [0x4000, 4, WRITE]);
  driver.publish();
  device.use(a, 3);
  assertEquals([driver.reclaim(), driver.usedLength, driver.free], [a, 3, 1]);
});

Deno.test("SplitDriver.add() chains in the ring what is too long for a table", () => {
  const device = new Device(4, { indirect: true });
  const driver = device.driver({ address: TABLES, entries: 2 });
  const list = new BufferList();
  for (let i = 0; i < 3; i++) list.addReadable(0x1000 * i, 1);
  const token = driver.add(list);
  assertEquals(driver.free, 1);
  assertEquals(device.descriptor(token)[2], NEXT);
});

Deno.test("SplitDriver.reclaim() takes buffers back in the device's order", () => {
  const device = new Device(4);
  const driver = device.driver();
  const tokens = [10, 20, 30].map((length) => driver.add(one(length)));
  driver.publish();
  assertEquals(driver.reclaim(), -1);
  device.use(tokens[2]!, 30);
  device.use(tokens[0]!, 0);
  assertEquals([driver.reclaim(), driver.usedLength], [tokens[2]!, 30]);
  assertEquals([driver.reclaim(), driver.usedLength], [tokens[0]!, 0]);
  assertEquals([driver.reclaim(), driver.inFlight, driver.free], [-1, 1, 3]);
});

Deno.test("SplitDriver.reclaim() keeps its free list out of the device's reach", () => {
  const device = new Device(4);
  const driver = device.driver();
  const list = new BufferList().addReadable(0, 1).addReadable(0, 1);
  const token = driver.add(list);
  driver.publish();
  new Uint8Array(device.view.buffer, TABLE, 64).fill(0xff);
  device.use(token, 0);
  assertEquals(driver.reclaim(), token);
  const tokens = [0, 1, 2, 3].map(() => driver.add(one()));
  assertEquals(tokens.sort(), [0, 1, 2, 3]);
  assertEquals(driver.add(one()), -1);
});

Deno.test("SplitDriver.reclaim() stops for good at a used index that jumps", () => {
  for (const idx of [3, 0xffff, 0x8000]) {
    const device = new Device(4);
    const driver = device.driver();
    driver.add(one());
    driver.add(one());
    driver.publish();
    driver.add(one()); // staged, so not the device's to use
    device.usedIdx = idx;
    const first = fatal("USED_IDX_JUMP", () => driver.reclaim());
    device.usedIdx = 1;
    assertStrictEquals(fatal("USED_IDX_JUMP", () => driver.reclaim()), first);
    assertEquals(driver.armInterrupts(), false);
  }
});

Deno.test("SplitDriver.reclaim() refuses ids that are not in flight, among them staged ones", () => {
  const cases = [
    (token: number) => token ^ 1,
    () => 4,
    () => 0xffffffff,
    (token: number) => token | 0x10000,
  ];
  for (const wrong of cases) {
    const device = new Device(4);
    const driver = device.driver();
    const token = driver.add(one());
    driver.publish();
    device.use(wrong(token), 0);
    fatal("USED_ID_UNKNOWN", () => driver.reclaim());
    fatal("USED_ID_UNKNOWN", () => driver.reclaim());
  }
  const device = new Device(4);
  const driver = device.driver();
  driver.add(one());
  driver.publish();
  device.use(driver.add(one()), 0);
  fatal("USED_ID_UNKNOWN", () => driver.reclaim());
});

Deno.test("SplitDriver.reclaim() refuses a completion that comes twice", () => {
  const device = new Device(4);
  const driver = device.driver();
  const token = driver.add(one());
  driver.add(one());
  driver.publish();
  device.use(token, 0);
  device.use(token, 0);
  assertEquals(driver.reclaim(), token);
  fatal("USED_ID_UNKNOWN", () => driver.reclaim());
});

Deno.test("SplitDriver.reclaim() refuses more bytes than the writable part has", () => {
  for (
    const [len, lawful] of [[8, true], [9, false], [0xffffffff, false]] as const
  ) {
    const device = new Device(4);
    const driver = device.driver();
    const token = driver.add(
      new BufferList().addReadable(0, 100).addWritable(0, 8),
    );
    driver.publish();
    device.use(token, len);
    if (lawful) assertEquals([driver.reclaim(), driver.usedLength], [token, 8]);
    else fatal("USED_LEN_TOO_LARGE", () => driver.reclaim());
  }
});

/** Adds, publishes, lets the device use and reclaims one buffer. */
function lap(device: Device, driver: SplitDriver): void {
  const token = driver.add(one());
  assert(driver.publish());
  device.use(token, 0);
  assertEquals(driver.reclaim(), token);
}

Deno.test("SplitDriver.needsKick() follows avail_event across the wrap of the index", () => {
  const device = new Device(2, { eventIdx: true });
  const driver = device.driver();
  const availEvent = USED + 4 + 8 * 2;
  device.set16(USED, 1); // to be ignored
  assertEquals(driver.needsKick(), false);
  let added = 0;
  for (const event of [0, 3, 3, 0xfffe, 0xffff, 0]) {
    device.set16(availEvent, event);
    do {
      lap(device, driver);
      added++;
      assertEquals(driver.needsKick(), ((added - 1) & 0xffff) === event);
      assertEquals(driver.needsKick(), false);
    } while (((added - 1) & 0xffff) !== event);
  }
  assertEquals(added, 2 * 65536 + 1);
  for (let i = 0; i < 65536; i++) lap(device, driver);
  device.set16(availEvent, 0x8000);
  assertEquals([driver.needsKick(), driver.needsKick()], [true, false]);
});

Deno.test("SplitDriver.needsKick() follows the flag without VIRTIO_F_EVENT_IDX", () => {
  const device = new Device(2);
  const driver = device.driver();
  device.set16(USED + 4 + 8 * 2, 1); // avail_event, to be ignored
  lap(device, driver);
  assertEquals([driver.needsKick(), driver.needsKick()], [true, false]);
  device.set16(USED, 1);
  lap(device, driver);
  assertEquals(driver.needsKick(), false);
});

Deno.test("SplitDriver.armInterrupts() sets used_event or the flag and looks again", () => {
  for (const eventIdx of [false, true]) {
    const device = new Device(2, { eventIdx });
    const driver = device.driver();
    const usedEvent = AVAIL + 4 + 2 * 2;
    for (let i = 0; i < 3; i++) lap(device, driver);
    driver.disarmInterrupts();
    assertEquals(device.u16(AVAIL), eventIdx ? 0 : 1);
    assertEquals(driver.armInterrupts(), false);
    assertEquals(device.u16(AVAIL), 0);
    assertEquals(device.u16(usedEvent), eventIdx ? 3 : 0);
    const token = driver.add(one());
    driver.publish();
    device.use(token, 0);
    assertEquals(driver.armInterrupts(), true);
    assertEquals(driver.reclaim(), token);
  }
});
