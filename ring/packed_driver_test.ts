import {
  assert,
  assertEquals,
  assertStrictEquals,
  assertThrows,
} from "@std/assert";
import { RingError, type RingErrorCode } from "./errors.ts";
import { GuestMemory } from "./memory.ts";
import { PackedDriver, type PackedDriverOptions } from "./packed_driver.ts";
import { BufferList, type QueueConfig } from "./queue.ts";
import {
  RING_EVENT_FLAGS_DESC,
  RING_EVENT_FLAGS_DISABLE,
  RING_EVENT_FLAGS_ENABLE,
  VIRTQ_DESC_F_AVAIL as AVAIL,
  VIRTQ_DESC_F_INDIRECT as INDIRECT,
  VIRTQ_DESC_F_NEXT as NEXT,
  VIRTQ_DESC_F_USED as USED,
  VIRTQ_DESC_F_WRITE as WRITE,
} from "./virtio_ring.ts";

const BASE = 0x100000;
const DRIVER_EVENT = BASE;
const DEVICE_EVENT = BASE + 16;
const RING = BASE + 0x100;
const DATA = 0x9_8765_4000;

type Descriptor = { addr: number; len: number; id: number; flags: number };

/** A device that works the ring by hand, word by word; it shares no code with PackedDevice. */
class Host {
  readonly driver: PackedDriver;
  readonly memory: GuestMemory;
  readonly view: DataView;
  readonly size: number;
  used = 0;
  wrap = 1;

  constructor(
    size: number,
    config: Partial<QueueConfig> = {},
    options: (tables: number) => PackedDriverOptions = () => ({}),
  ) {
    const bytes = 0x100 + size * 16 + size * 64;
    const buffer = new ArrayBuffer(bytes);
    new Uint8Array(buffer).fill(0xff);
    this.size = size;
    this.view = new DataView(buffer);
    this.memory = new GuestMemory([{
      guestAddress: BASE,
      size: bytes,
      buffer,
    }]);
    this.driver = new PackedDriver(
      this.memory,
      {
        size,
        descriptorArea: RING,
        driverArea: DRIVER_EVENT,
        deviceArea: DEVICE_EVENT,
        ...config,
      },
      options(RING + size * 16),
    );
  }

  at(address: number): Descriptor {
    const offset = address - BASE;
    return {
      addr: Number(this.view.getBigUint64(offset, true)),
      len: this.view.getUint32(offset + 8, true),
      id: this.view.getUint16(offset + 12, true),
      flags: this.view.getUint16(offset + 14, true),
    };
  }

  slot(index: number): Descriptor {
    return this.at(RING + index * 16);
  }

  /** Writes a used descriptor at the device's position and goes on by `slots`. */
  use(id: number, len: number, slots: number, flags: number = WRITE): void {
    const offset = RING - BASE + this.used * 16;
    this.view.setUint32(offset + 8, len, true);
    this.view.setUint16(offset + 12, id, true);
    this.view.setUint16(
      offset + 14,
      flags | (this.wrap ? AVAIL | USED : 0),
      true,
    );
    this.used += slots;
    if (this.used >= this.size) {
      this.used -= this.size;
      this.wrap ^= 1;
    }
  }

  setDeviceEvent(off: number, wrap: number, flags: number): void {
    this.view.setUint16(DEVICE_EVENT - BASE, off | (wrap << 15), true);
    this.view.setUint16(DEVICE_EVENT - BASE + 2, flags, true);
  }

  get driverEvent(): { off: number; wrap: number; flags: number } {
    const offWrap = this.view.getUint16(DRIVER_EVENT - BASE, true);
    const flags = this.view.getUint16(DRIVER_EVENT - BASE + 2, true);
    return { off: offWrap & 0x7fff, wrap: offWrap >> 15, flags };
  }
}

function list(readable: number, writable: number): BufferList {
  const buffers = new BufferList(readable + writable);
  for (let i = 0; i < readable; i++) {
    buffers.addReadable(DATA + i * 256, 10 + i);
  }
  for (let i = 0; i < writable; i++) {
    buffers.addWritable(DATA + 0x8000 + i * 256, 100 + i);
  }
  return buffers;
}

function ringError(fn: () => unknown, code: RingErrorCode): RingError {
  const error = assertThrows(fn, RingError);
  assertEquals([error.code, error.fatal], [code, true]);
  return error;
}

Deno.test("PackedDriver.constructor() clears the ring and both event structures", () => {
  const { view, driver } = new Host(5);
  for (let offset = 0; offset < 4; offset++) {
    assertEquals([view.getUint8(offset), view.getUint8(16 + offset)], [0, 0]);
  }
  for (let offset = 0x100; offset < 0x100 + 80; offset++) {
    assertEquals(view.getUint8(offset), 0);
  }
  assertEquals(view.getUint8(0x100 + 80), 0xff);
  assertEquals([driver.size, driver.free, driver.inFlight], [5, 5, 0]);
  assertEquals(driver.reclaim(), -1);
  assertEquals(driver.publish(), false);
  assertEquals(driver.needsKick(), false);
});

Deno.test("PackedDriver.constructor() rejects sizes, areas and tables that cannot be", () => {
  for (const size of [0, 32769, 2.5]) {
    const memory = new GuestMemory([{
      guestAddress: BASE,
      size: 4096,
      buffer: new ArrayBuffer(4096),
    }]);
    ringError(
      () =>
        new PackedDriver(memory, {
          size,
          descriptorArea: BASE,
          driverArea: BASE,
          deviceArea: BASE,
        }),
      "BAD_QUEUE_SIZE",
    );
  }
  ringError(
    () => new Host(4, { descriptorArea: RING + 4 }),
    "BAD_QUEUE_ADDRESS",
  );
  ringError(() => new Host(4, { driverArea: 0 }), "BAD_QUEUE_ADDRESS");
  assertThrows(
    () => new Host(4, {}, (address) => ({ indirect: { address, entries: 4 } })),
    TypeError,
    "not negotiated",
  );
  for (const entries of [0, 1.5, NaN, 32769]) {
    assertThrows(
      () =>
        new Host(
          4,
          { indirect: true },
          (address) => ({ indirect: { address, entries } }),
        ),
      RangeError,
    );
  }
  for (
    const [add, entries] of [[8, 2], [0, 5], [-BASE * 2, 1], [NaN, 1]] as const
  ) {
    ringError(
      () =>
        new Host(
          4,
          { indirect: true },
          (at) => ({ indirect: { address: at + add, entries } }),
        ),
      "BAD_QUEUE_ADDRESS",
    );
  }
});

Deno.test("PackedDriver.add() writes a chain, with the flags of its batch's first descriptor at publish()", () => {
  const host = new Host(8);
  const { driver } = host;
  const a = driver.add(list(2, 1));
  const b = driver.add(list(1, 0));
  const c = driver.add(list(0, 2));
  assertEquals(new Set([a, b, c]).size, 3);
  assertEquals([driver.free, driver.inFlight], [2, 3]);
  // A device stops at the first one.
  assertEquals(host.slot(0).flags, 0);
  const rest = [
    { addr: DATA + 256, len: 11, id: a, flags: AVAIL | NEXT },
    { addr: DATA + 0x8000, len: 100, id: a, flags: AVAIL | WRITE },
    { addr: DATA, len: 10, id: b, flags: AVAIL },
    { addr: DATA + 0x8000, len: 100, id: c, flags: AVAIL | WRITE | NEXT },
    { addr: DATA + 0x8100, len: 101, id: c, flags: AVAIL | WRITE },
  ];
  assertEquals([1, 2, 3, 4, 5].map((i) => host.slot(i)), rest);
  assertEquals(driver.publish(), true);
  assertEquals(driver.publish(), false);
  assertEquals(host.slot(0), {
    addr: DATA,
    len: 10,
    id: a,
    flags: AVAIL | NEXT,
  });
  assertEquals([1, 2, 3, 4, 5].map((i) => host.slot(i)), rest);
});

Deno.test("PackedDriver.add() refuses what can't fit and says -1 while the ring is full", () => {
  const { driver } = new Host(3);
  assertThrows(() => driver.add(new BufferList()), RangeError);
  assertThrows(() => driver.add(list(2, 2)), RangeError);
  assertThrows(
    () =>
      driver.add(new BufferList().addWritable(0, 0xffffffff).addWritable(0, 2)),
    RangeError,
    "bytes",
  );
  assertEquals(driver.add(list(1, 1)) >= 0, true);
  assertEquals(driver.add(list(1, 1)), -1);
  assertEquals(driver.add(list(1, 0)) >= 0, true);
  assertEquals(driver.add(list(1, 0)), -1);
  assertEquals([driver.free, driver.inFlight], [0, 2]);
});

Deno.test("PackedDriver.add() puts two or more segments into a table, one or too many into the ring", () => {
  const host = new Host(
    8,
    { indirect: true },
    (address) => ({ indirect: { address, entries: 4 } }),
  );
  const { driver } = host;
  const tables = RING + 8 * 16;
  const a = driver.add(list(2, 2));
  const b = driver.add(list(0, 1));
  const c = driver.add(list(3, 2));
  assertEquals(driver.free, 1);
  driver.publish();
  const table = tables + a * 64;
  assertEquals(host.slot(0), {
    addr: table,
    len: 64,
    id: a,
    flags: AVAIL | INDIRECT,
  });
  assertEquals([0, 1, 2, 3].map((i) => host.at(table + i * 16)), [
    { addr: DATA, len: 10, id: 0, flags: 0 },
    { addr: DATA + 256, len: 11, id: 0, flags: 0 },
    { addr: DATA + 0x8000, len: 100, id: 0, flags: WRITE },
    { addr: DATA + 0x8100, len: 101, id: 0, flags: WRITE },
  ]);
  assertEquals(host.slot(1), {
    addr: DATA + 0x8000,
    len: 100,
    id: b,
    flags: AVAIL | WRITE,
  });
  assertEquals([2, 3, 4, 5, 6].map((i) => host.slot(i).flags), [
    AVAIL | NEXT,
    AVAIL | NEXT,
    AVAIL | NEXT,
    AVAIL | WRITE | NEXT,
    AVAIL | WRITE,
  ]);
  host.use(a, 201, 1);
  host.use(c, 201, 5);
  host.use(b, 100, 1);
  assertEquals([
    driver.reclaim(),
    driver.reclaim(),
    driver.reclaim(),
    driver.reclaim(),
  ], [a, c, b, -1]);
  assertEquals([driver.free, driver.inFlight], [8, 0]);
});

for (const strongOrdering of [false, true]) {
  for (const size of [1, 2, 3, 5, 7, 8, 256, 32768]) {
    Deno.test(`PackedDriver goes round a ring of ${size}, ${strongOrdering ? "strong" : "weak"} ordering`, () => {
      const host = new Host(size, { strongOrdering });
      const { driver } = host;
      const lists = [
        list(1, 0),
        list(1, 1),
        list(2, 1),
        list(0, 4),
        list(3, 3),
      ];
      const full = list(size > 1 ? 1 : 0, size - Math.min(size - 1, 1));
      let next = 0;
      let wrap = 1;
      for (let round = 0; round < (size > 1000 ? 12 : 300); round++) {
        const pending: { id: number; slots: number; len: number }[] = [];
        for (let k = 0; k < 20 && driver.free > 0; k++) {
          const buffers = round % 4 === 3
            ? full
            : lists[(round + k) % lists.length]!;
          if (buffers.count > driver.free) break;
          const id = driver.add(buffers);
          assert(id >= 0 && id < size);
          driver.publish();
          for (let i = 0; i < buffers.count; i++) {
            const { flags, len } = host.slot(next);
            const last = i === buffers.count - 1;
            assertEquals(flags & (AVAIL | USED), wrap ? AVAIL : USED);
            assertEquals(
              flags & (NEXT | WRITE),
              (last ? 0 : NEXT) | (i < buffers.readable ? 0 : WRITE),
            );
            assertEquals(len, buffers.length[i]);
            if (last) assertEquals(host.slot(next).id, id);
            if (++next === size) {
              next = 0;
              wrap ^= 1;
            }
          }
          const len = buffers.count > buffers.readable ? 100 : 0;
          pending.push({ id, slots: buffers.count, len });
        }
        assertEquals(driver.reclaim(), -1);
        // Completed from the last one on.
        for (const { id, len, slots } of pending.reverse()) {
          host.use(id, len, slots);
        }
        for (const { id, len } of pending) {
          assertEquals(driver.reclaim(), id);
          assertEquals(driver.usedLength, len);
        }
        assertEquals(driver.reclaim(), -1);
        assertEquals([driver.free, driver.inFlight], [size, 0]);
        assertEquals([next, wrap], [host.used, host.wrap]);
      }
    });
  }
}

Deno.test("PackedDriver.reclaim() takes no length from a used descriptor without WRITE", () => {
  const host = new Host(2);
  const id = host.driver.add(list(0, 1));
  host.driver.publish();
  host.use(id, 77, 1, 0);
  assertEquals(host.driver.reclaim(), id);
  assertEquals(host.driver.usedLength, 0);
});

Deno.test("PackedDriver.reclaim() keeps its own record of descriptors that the device has written over", () => {
  const host = new Host(4);
  const { driver } = host;
  const a = driver.add(list(1, 1));
  const b = driver.add(list(0, 2));
  driver.publish();
  // All of the ring but the used descriptor is garbage now.
  new Uint8Array(host.view.buffer, 0x100, 64).fill(0x5a);
  host.use(b, 201, 2);
  host.use(a, 100, 2);
  assertEquals([driver.reclaim(), driver.usedLength], [b, 201]);
  assertEquals([driver.reclaim(), driver.usedLength], [a, 100]);
  assertEquals(driver.free, 4);
});

Deno.test("PackedDriver.reclaim() refuses ids that are not the device's, for good", () => {
  for (const strongOrdering of [false, true]) {
    for (const wrong of ["unknown", "beyond", "twice", "staged"]) {
      const host = new Host(4, { strongOrdering });
      const { driver } = host;
      const id = driver.add(list(0, 1));
      driver.publish();
      if (wrong === "twice") {
        host.use(id, 1, 1);
        assertEquals(driver.reclaim(), id);
        host.use(id, 1, 1);
      } else if (wrong === "staged") {
        host.use(driver.add(list(0, 1)), 1, 1);
      } else {
        host.use(wrong === "unknown" ? (id + 1) % 4 : 4, 1, 1);
      }
      const { free, inFlight } = driver;
      const error = ringError(() => driver.reclaim(), "USED_ID_UNKNOWN");
      assertEquals([driver.free, driver.inFlight], [free, inFlight]);
      assertStrictEquals(assertThrows(() => driver.reclaim()), error);
      assertEquals(driver.armInterrupts(), false);
    }
  }
});

Deno.test("PackedDriver.reclaim() refuses more bytes than the buffer's writable ones", () => {
  for (const [buffers, most] of [[list(2, 0), 0], [list(1, 2), 201]] as const) {
    const host = new Host(4);
    const { driver } = host;
    let id = driver.add(buffers);
    driver.publish();
    host.use(id, most, buffers.count);
    assertEquals([driver.reclaim(), driver.usedLength], [id, most]);
    id = driver.add(buffers);
    driver.publish();
    host.use(id, most + 1, buffers.count);
    ringError(() => driver.reclaim(), "USED_LEN_TOO_LARGE");
    ringError(() => driver.reclaim(), "USED_LEN_TOO_LARGE");
  }
});

Deno.test("PackedDriver.needsKick() follows the device's flags and takes a reserved value as enabled", () => {
  const host = new Host(4);
  const { driver } = host;
  const cases = [
    [RING_EVENT_FLAGS_ENABLE, true],
    [RING_EVENT_FLAGS_DISABLE, false],
    [RING_EVENT_FLAGS_DESC, true],
    [3, true],
    [RING_EVENT_FLAGS_DISABLE | 0x1230, false],
  ] as const;
  for (const [flags, expected] of cases) {
    host.setDeviceEvent(3, 0, flags);
    const id = driver.add(list(1, 0));
    assertEquals(driver.needsKick(), false);
    driver.publish();
    assertEquals(driver.needsKick(), expected, `flags ${flags}`);
    assertEquals(driver.needsKick(), false);
    host.use(id, 0, 1);
    assertEquals(driver.reclaim(), id);
  }
});

Deno.test("PackedDriver.needsKick() fires exactly when the event's descriptor is passed, at every position of two laps", () => {
  for (const size of [1, 2, 3, 7, 8]) {
    for (let slots = 1; slots <= size; slots++) {
      for (let event = 0; event < 2 * size; event++) {
        const host = new Host(size, { eventIdx: true });
        const { driver } = host;
        for (let total = 0; total < 2 * size; total += slots) {
          const ahead = event - total;
          const asks = ahead >= -size && ahead < size;
          host.setDeviceEvent(
            event % size,
            event < size ? 1 : 0,
            asks ? RING_EVENT_FLAGS_DESC : RING_EVENT_FLAGS_DISABLE,
          );
          const id = driver.add(list(slots, 0));
          driver.publish();
          const passed = event >= total && event < total + slots;
          assertEquals(
            driver.needsKick(),
            asks && passed,
            `size ${size}, chains of ${slots}, event ${event}, total ${total}`,
          );
          host.use(id, 0, slots);
          assertEquals(driver.reclaim(), id);
        }
      }
    }
  }
});

Deno.test("PackedDriver.armInterrupts() names the next used descriptor and sees one that is there already", () => {
  for (const eventIdx of [false, true]) {
    const host = new Host(3, { eventIdx });
    const { driver } = host;
    driver.disarmInterrupts();
    assertEquals(host.driverEvent.flags, RING_EVENT_FLAGS_DISABLE);
    for (let i = 0; i < 8; i++) {
      const id = driver.add(list(2, 0));
      driver.publish();
      assertEquals(driver.armInterrupts(), false);
      if (eventIdx) {
        assertEquals(host.driverEvent, {
          off: host.used,
          wrap: host.wrap,
          flags: RING_EVENT_FLAGS_DESC,
        });
      } else {
        assertEquals(host.driverEvent.flags, RING_EVENT_FLAGS_ENABLE);
      }
      host.use(id, 0, 2);
      assertEquals(driver.armInterrupts(), true);
      driver.disarmInterrupts();
      if (!eventIdx) {
        assertEquals(host.driverEvent.flags, RING_EVENT_FLAGS_DISABLE);
      }
      assertEquals(driver.reclaim(), id);
    }
  }
});
