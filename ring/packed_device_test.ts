import {
  assert,
  assertEquals,
  assertInstanceOf,
  assertLessOrEqual,
  assertStrictEquals,
  assertThrows,
} from "@std/assert";
import fc from "fast-check";
import { Chain } from "./chain.ts";
import { ChainBatch } from "./chain_batch.ts";
import { RingError, type RingErrorCode } from "./errors.ts";
import { GuestMemory } from "./memory.ts";
import { PackedDevice } from "./packed_device.ts";
import type { QueueConfig, QueueState } from "./queue.ts";
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
const TABLES = BASE + 0x100;
const DATA = BASE + 0x8000;
const RING = BASE + 0x10000;

type Segment = { addr: number; len: number; writable?: boolean };
type Used = { id: number; len: number; flags: number };

/** A guest that fills the ring by hand, word by word; it shares no code with PackedDriver. */
class Guest {
  readonly size: number;
  readonly memory: GuestMemory;
  readonly config: QueueConfig;
  readonly view: DataView;
  next = 0;
  wrap = 1;

  constructor(size: number, options: Partial<QueueConfig> = {}) {
    this.size = size;
    const bytes = 0x10000 + size * 16;
    const buffer = new ArrayBuffer(bytes);
    this.view = new DataView(buffer);
    this.memory = new GuestMemory([{
      guestAddress: BASE,
      size: bytes,
      buffer,
    }]);
    this.config = {
      size,
      descriptorArea: RING,
      driverArea: DRIVER_EVENT,
      deviceArea: DEVICE_EVENT,
      indirect: true,
      ...options,
    };
  }

  device(state?: QueueState): PackedDevice {
    return new PackedDevice(this.memory, this.config, state);
  }

  /** Writes four fields of 16 bytes at a guest address. */
  write(
    at: number,
    addr: number,
    len: number,
    id: number,
    flags: number,
  ): void {
    const offset = at - BASE;
    this.view.setBigUint64(offset, BigInt(addr), true);
    this.view.setUint32(offset + 8, len, true);
    this.view.setUint16(offset + 12, id, true);
    this.view.setUint16(offset + 14, flags, true);
  }

  /** Puts one descriptor at the driver's position, available, and goes on by one. */
  put(addr: number, len: number, id: number, flags: number): number {
    const slot = this.next;
    this.write(
      RING + slot * 16,
      addr,
      len,
      id,
      flags | (this.wrap ? AVAIL : USED),
    );
    if (++this.next === this.size) {
      this.next = 0;
      this.wrap ^= 1;
    }
    return slot;
  }

  /** Puts a chain; only its last descriptor has the right id. */
  offer(id: number, segments: Segment[]): void {
    segments.forEach(({ addr, len, writable }, i) => {
      const last = i === segments.length - 1;
      this.put(
        addr,
        len,
        last ? id : 0xdead,
        (last ? 0 : NEXT) | (writable ? WRITE : 0),
      );
    });
  }

  /** Puts a buffer with an indirect table at `table`. */
  offerTable(id: number, table: number, segments: Segment[]): void {
    segments.forEach(({ addr, len, writable }, i) =>
      this.write(table + i * 16, addr, len, 0xbeef, writable ? WRITE : 0)
    );
    this.put(table, segments.length * 16, id, INDIRECT);
  }

  slot(index: number): Used {
    const offset = RING - BASE + index * 16;
    return {
      id: this.view.getUint16(offset + 12, true),
      len: this.view.getUint32(offset + 8, true),
      flags: this.view.getUint16(offset + 14, true),
    };
  }

  event(at: number): { off: number; wrap: number; flags: number } {
    const offWrap = this.view.getUint16(at - BASE, true);
    const flags = this.view.getUint16(at - BASE + 2, true);
    return { off: offWrap & 0x7fff, wrap: offWrap >> 15, flags };
  }

  setDriverEvent(off: number, wrap: number, flags: number): void {
    this.view.setUint16(DRIVER_EVENT - BASE, off | (wrap << 15), true);
    this.view.setUint16(DRIVER_EVENT - BASE + 2, flags, true);
  }
}

/** What a chain holds, by guest address. */
function contents(chain: Chain): Segment[] {
  const segments: Segment[] = [];
  for (let i = 0; i < chain.count; i++) {
    const region = chain.memory.regions[chain.region[i]!]!;
    segments.push({
      addr: region.guestAddress + chain.offset[i]!,
      len: chain.length[i]!,
      writable: i >= chain.readable,
    });
  }
  return segments;
}

function readable(addr: number, len: number): Segment {
  return { addr, len, writable: false };
}

function writable(addr: number, len: number): Segment {
  return { addr, len, writable: true };
}

function ringError(fn: () => unknown, code: RingErrorCode): RingError {
  const error = assertThrows(fn, RingError);
  assertEquals(error.code, code);
  return error;
}

Deno.test("PackedDevice.constructor() rejects a size that is not 1 to 32768", () => {
  for (const size of [0, -1, 1.5, NaN, 32769, 65536, Infinity]) {
    const guest = new Guest(8);
    guest.config.size = size;
    const error = ringError(() => guest.device(), "BAD_QUEUE_SIZE");
    assertEquals(error.fatal, true);
  }
});

Deno.test("PackedDevice.constructor() rejects areas that are misaligned or not in one region", () => {
  const a = {
    guestAddress: BASE,
    size: 0x1000,
    buffer: new ArrayBuffer(0x1000),
  };
  const b = { ...a, guestAddress: BASE + 0x1000 };
  const memory = new GuestMemory([a, b]);
  const good: QueueConfig = {
    size: 16,
    descriptorArea: BASE + 0x100,
    driverArea: BASE,
    deviceArea: BASE + 4,
  };
  new PackedDevice(memory, good);
  for (
    const wrong of [
      { descriptorArea: BASE + 0x108 },
      { descriptorArea: BASE + 0x1000 - 16 },
      { descriptorArea: 0 },
      { descriptorArea: -16 },
      { descriptorArea: NaN },
      { descriptorArea: 2 ** 60 },
      { driverArea: BASE + 2 },
      { driverArea: BASE + 0x2000 },
      { deviceArea: BASE + 6 },
      { deviceArea: BASE - 4 },
    ]
  ) {
    ringError(
      () => new PackedDevice(memory, { ...good, ...wrong }),
      "BAD_QUEUE_ADDRESS",
    );
  }
});

Deno.test("PackedDevice goes on with the size that it was made with when the configuration changes", () => {
  const guest = new Guest(3);
  const device = guest.device();
  const chain = new Chain(guest.memory);
  guest.config.size = 2;
  guest.config.descriptorArea = DATA;
  for (let i = 0; i < 9; i++) {
    guest.offer(0, [readable(DATA, 1)]);
    assert(device.pop(chain));
    device.push(0, 0);
    device.publish();
  }
  device.rebind(guest.memory);
  assertEquals(device.size, 3);
  const state = device.save();
  assert(state.format === "packed");
  assertEquals([state.lastAvailIdx, state.lastAvailWrapCounter], [0, 0]);
});

Deno.test("PackedDevice.pop() takes nothing from a zeroed ring, whatever its first wrap counter", () => {
  const guest = new Guest(4);
  const device = guest.device();
  const chain = new Chain(guest.memory);
  assertEquals(device.pop(chain), false);
  assertEquals(device.armKicks(), false);
  assertEquals(device.save(), {
    format: "packed",
    lastAvailIdx: 0,
    lastAvailWrapCounter: 1,
    usedIdx: 0,
    usedWrapCounter: 1,
    inFlight: [],
  });
});

Deno.test("PackedDevice.pop() takes the id from the last descriptor of a chain", () => {
  const guest = new Guest(8);
  const device = guest.device();
  const chain = new Chain(guest.memory);
  const segments = [
    readable(DATA, 44),
    readable(DATA + 64, 7),
    writable(DATA + 128, 100),
  ];
  guest.offer(5, segments);
  assert(device.pop(chain));
  assertEquals(chain.token, 5);
  assertEquals(contents(chain), segments);
  assertEquals([chain.readable, chain.readableBytes, chain.writableBytes], [
    2,
    51,
    100,
  ]);
  assertEquals(device.inFlight, 1);
  device.push(5, 100);
  assertEquals(device.inFlight, 0);
  assert(device.publish());
  assertEquals(guest.slot(0), { id: 5, len: 100, flags: AVAIL | USED | WRITE });
});

Deno.test("PackedDevice.push() sets WRITE only where something was written", () => {
  const guest = new Guest(2);
  const device = guest.device();
  const chain = new Chain(guest.memory);
  for (let i = 0; i < 2; i++) {
    guest.offer(i, [writable(DATA, 10)]);
    assert(device.pop(chain));
  }
  device.push(0, 0);
  device.push(1, 10);
  device.publish();
  assertEquals(guest.slot(0).flags, AVAIL | USED);
  assertEquals(guest.slot(1), { id: 1, len: 10, flags: AVAIL | USED | WRITE });
});

for (const strongOrdering of [false, true]) {
  const how = strongOrdering ? "strong" : "weak";

  for (const size of [1, 2, 3, 5, 7, 8, 256, 32768]) {
    Deno.test(`PackedDevice moves chains of every length round a ring of ${size}, ${how} ordering`, () => {
      const guest = new Guest(size, { strongOrdering });
      const device = guest.device();
      const chain = new Chain(guest.memory);
      let used = 0;
      let wrap = 1;
      const lengths: number[] = [];
      // Steps through all lengths up to the ring's, the full ring among them.
      const most = Math.min(size, 9);
      const rounds = size > 1000 ? 40 : 400;
      let serial = 0;
      for (let round = 0; round < rounds; round++) {
        let room = size;
        lengths.length = 0;
        const fullRing = round % 5 === 4;
        while (room > 0 && lengths.length < 20) {
          const length = fullRing ? size : 1 + serial++ * 5 % most;
          if (length > room) break;
          room -= length;
          const segments: Segment[] = [];
          for (let i = 0; i < length; i++) {
            segments.push({
              addr: DATA + (i & 0xff),
              len: 1 + (i & 0x3f),
              writable: i >= length / 2,
            });
          }
          guest.offer(lengths.length, segments);
          lengths.push(length);
        }
        for (let id = 0; id < lengths.length; id++) {
          assert(device.pop(chain), `buffer ${id} of round ${round}`);
          assertEquals(chain.fault, null);
          assertEquals(chain.token, id);
          assertEquals(chain.count, lengths[id]);
          assertEquals(chain.readable, Math.ceil(lengths[id]! / 2));
        }
        assertEquals(device.pop(chain), false);
        for (let id = 0; id < lengths.length; id++) {
          device.push(id, lengths[id]! > 1 ? 1 : 0);
        }
        device.publish();
        for (let id = 0; id < lengths.length; id++) {
          const entry = guest.slot(used);
          assertEquals(entry.id, id);
          assertEquals(entry.flags & (AVAIL | USED), wrap ? AVAIL | USED : 0);
          used += lengths[id]!;
          if (used >= size) {
            used -= size;
            wrap ^= 1;
          }
        }
        assertEquals([used, wrap], [guest.next, guest.wrap]);
        assertEquals(device.inFlight, 0);
      }
    });
  }

  Deno.test(`PackedDevice.pop() flips the wrap counter after one chain that fills the ring, ${how} ordering`, () => {
    const guest = new Guest(4, { strongOrdering });
    const device = guest.device();
    const chain = new Chain(guest.memory);
    const full = [1, 2, 3, 4].map((len) => readable(DATA, len));
    for (let lap = 0; lap < 6; lap++) {
      guest.offer(1, full);
      assert(device.pop(chain), `lap ${lap}`);
      // The slots that it took still look available, with the old wrap counter.
      assertEquals(device.pop(chain), false);
      device.push(1, 0);
      device.publish();
      assertEquals(
        guest.slot(0).flags & (AVAIL | USED),
        lap % 2 === 0 ? AVAIL | USED : 0,
      );
      assertEquals(device.pop(chain), false);
    }
  });

  Deno.test(`PackedDevice.pop() follows a chain over the end of the ring, ${how} ordering`, () => {
    const guest = new Guest(5, { strongOrdering });
    const device = guest.device();
    const chain = new Chain(guest.memory);
    guest.offer(0, [1, 2, 3].map((len) => readable(DATA, len)));
    assert(device.pop(chain));
    device.push(0, 0);
    device.publish();
    const over = [
      readable(DATA + 10, 11),
      readable(DATA + 20, 12),
      writable(DATA + 30, 13),
      writable(DATA + 40, 14),
    ];
    guest.offer(2, over);
    assertEquals(guest.next, 2);
    assert(device.pop(chain));
    assertEquals(contents(chain), over);
    assertEquals(chain.token, 2);
    device.push(2, 27);
    device.publish();
    assertEquals(guest.slot(3), {
      id: 2,
      len: 27,
      flags: AVAIL | USED | WRITE,
    });
    guest.offer(3, [readable(DATA, 1)]);
    assert(device.pop(chain));
    device.push(3, 0);
    device.publish();
    assertEquals(guest.slot(2), { id: 3, len: 0, flags: 0 });
  });

  Deno.test(`PackedDevice.pop() does not take a chain whose head is not available, ${how} ordering`, () => {
    const guest = new Guest(8, { strongOrdering });
    const device = guest.device();
    const chain = new Chain(guest.memory);
    guest.offer(0, [readable(DATA, 1)]);
    // The tail of a second chain is written, its head is not.
    const head = guest.next;
    guest.offer(1, [readable(DATA, 2), readable(DATA, 3)]);
    const flags = guest.slot(head).flags;
    guest.view.setUint16(RING - BASE + head * 16 + 14, 0, true);
    guest.offer(2, [readable(DATA, 4)]);
    assert(device.pop(chain));
    assertEquals(device.pop(chain), false);
    assertEquals(device.armKicks(), false);
    guest.view.setUint16(RING - BASE + head * 16 + 14, flags, true);
    assertEquals(device.armKicks(), true);
    assert(device.pop(chain));
    assertEquals(chain.token, 1);
    assert(device.pop(chain));
    assertEquals(chain.token, 2);
  });
}

Deno.test("PackedDevice.push() marks with the used wrap counter while the available one is a lap on", () => {
  const guest = new Guest(2);
  const device = guest.device();
  const chain = new Chain(guest.memory);
  guest.offer(0, [readable(DATA, 1)]);
  guest.offer(1, [readable(DATA, 1)]);
  assert(device.pop(chain) && device.pop(chain));
  assertEquals(guest.wrap, 0);
  device.push(0, 0);
  device.publish();
  assertEquals(guest.slot(0).flags, AVAIL | USED);
});

Deno.test("PackedDevice.push() goes on by the number of slots of the chain, 1 with an indirect table", () => {
  const guest = new Guest(8);
  const device = guest.device();
  const chain = new Chain(guest.memory);
  guest.offer(0, [readable(DATA, 1), readable(DATA, 1), readable(DATA, 1)]);
  guest.offerTable(1, TABLES, [readable(DATA, 1), readable(DATA, 1)]);
  guest.offer(2, [readable(DATA, 1)]);
  for (let id = 0; id < 3; id++) {
    assert(device.pop(chain));
    device.push(id, 0);
    device.publish();
  }
  assertEquals([guest.slot(0).id, guest.slot(3).id, guest.slot(4).id], [
    0,
    1,
    2,
  ]);
  for (const slot of [0, 3, 4]) {
    assertEquals(guest.slot(slot).flags, AVAIL | USED);
  }
});

Deno.test("PackedDevice.publish() places a batch at the running sum and hands over its first descriptor last", () => {
  const guest = new Guest(16);
  const device = guest.device();
  const chain = new Chain(guest.memory);
  const lengths = [3, 1, 4, 2];
  lengths.forEach((length, id) =>
    guest.offer(id, Array.from({ length }, () => writable(DATA, 9)))
  );
  while (device.pop(chain));
  lengths.forEach((_, id) => device.push(id, id));
  // A driver stops here: the first descriptor is not used yet.
  assertEquals(guest.slot(0).flags & USED, 0);
  assertEquals([guest.slot(3).id, guest.slot(4).id, guest.slot(8).id], [
    1,
    2,
    3,
  ]);
  assert(device.publish());
  assertEquals(device.publish(), false);
  assertEquals(guest.slot(0), { id: 0, len: 0, flags: AVAIL | USED });
  assertEquals(guest.slot(3), { id: 1, len: 1, flags: AVAIL | USED | WRITE });
  assertEquals(guest.slot(4), { id: 2, len: 2, flags: AVAIL | USED | WRITE });
  assertEquals(guest.slot(8), { id: 3, len: 3, flags: AVAIL | USED | WRITE });
});

Deno.test("PackedDevice.push() rejects a completion that was made already, and lengths out of range", () => {
  const guest = new Guest(4);
  const device = guest.device();
  const chain = new Chain(guest.memory);
  guest.offer(3, [writable(DATA, 10)]);
  for (const token of [0, 3, 4, -1, 1.5, NaN, 65535, 65536]) {
    assertThrows(() => device.push(token, 0), RangeError, "not in flight");
  }
  assert(device.pop(chain));
  for (const written of [11, -1, 0.5, NaN, 2 ** 32]) {
    assertThrows(() => device.push(3, written), RangeError);
  }
  device.push(3, 10);
  assertThrows(() => device.push(3, 10), RangeError, "not in flight");
  device.publish();
  assertThrows(() => device.push(3, 10), RangeError, "not in flight");
  assertEquals(device.inFlight, 0);
});

Deno.test("PackedDevice.pop() accepts any 16-bit buffer id", () => {
  const guest = new Guest(4);
  const device = guest.device();
  const chain = new Chain(guest.memory);
  for (const id of [2, 4, 65535, 1000]) {
    guest.offer(id, [readable(DATA, id & 0xff)]);
  }
  const tokens: number[] = [];
  while (device.pop(chain)) tokens.push(chain.token);
  assertEquals(tokens, [2, 4, 65535, 1000]);
  for (const id of [65535, 2, 1000, 4]) device.push(id, 0);
  device.publish();
  assertEquals([0, 1, 2, 3].map((i) => guest.slot(i).id), [65535, 2, 1000, 4]);
});

Deno.test("PackedDevice.pop() stops for good when an id is in flight already", () => {
  const guest = new Guest(4);
  const device = guest.device();
  const chain = new Chain(guest.memory);
  guest.offer(1, [readable(DATA, 1)]);
  guest.offer(1, [readable(DATA, 1)]);
  assert(device.pop(chain));
  const error = ringError(() => device.pop(chain), "ID_IN_FLIGHT");
  assertEquals(error.fatal, true);
  assertStrictEquals(assertThrows(() => device.pop(chain)), error);
  assertEquals(device.armKicks(), false);
});

Deno.test("PackedDevice.pop() stops for good at a chain longer than the ring", () => {
  for (const strongOrdering of [false, true]) {
    for (const size of [1, 3, 8, 32768]) {
      const guest = new Guest(size, { strongOrdering });
      const device = guest.device();
      const chain = new Chain(guest.memory);
      for (let i = 0; i < size; i++) guest.put(DATA, 1, 0, NEXT);
      const error = ringError(
        () => device.pop(chain),
        "CHAIN_TOO_LONG_FOR_RING",
      );
      assertEquals(error.fatal, true);
      assertStrictEquals(assertThrows(() => device.pop(chain)), error);
      assertLessOrEqual(chain.count, size);
    }
  }
});

Deno.test("PackedDevice.pop() stops for good when slots in flight are made available again", () => {
  const guest = new Guest(2);
  const device = guest.device();
  const chain = new Chain(guest.memory);
  guest.offer(0, [readable(DATA, 1)]);
  guest.offer(1, [readable(DATA, 1)]);
  assert(device.pop(chain) && device.pop(chain));
  guest.offer(7, [readable(DATA, 1)]);
  ringError(() => device.pop(chain), "CHAIN_TOO_LONG_FOR_RING");
  device.push(0, 0);
  assertEquals(device.publish(), true);
});

Deno.test("PackedDevice.pop() stops for good at a buffer that reaches into slots in flight", () => {
  for (const indirect of [false, true]) {
    const guest = new Guest(4);
    const device = guest.device();
    const chain = new Chain(guest.memory);
    const held = indirect ? 4 : 2;
    for (let id = 0; id < held; id++) guest.offer(id, [readable(DATA, 1)]);
    for (let id = 0; id < held; id++) assert(device.pop(chain));
    const segments = [readable(DATA, 1), readable(DATA, 1), readable(DATA, 1)];
    if (indirect) guest.offerTable(7, TABLES, segments);
    else guest.offer(7, segments);
    ringError(() => device.pop(chain), "CHAIN_TOO_LONG_FOR_RING");
    assertEquals(device.inFlight, held);
  }
});

type Malformed = {
  name: string;
  code: RingErrorCode;
  slots: number;
  indirect?: boolean;
  offer: (guest: Guest) => void;
};

const FAR = 0x7fff0000;

const MALFORMED: Malformed[] = [
  {
    name: "a readable descriptor behind a writable one",
    code: "READABLE_AFTER_WRITABLE",
    slots: 3,
    offer: (g) =>
      g.offer(6, [readable(DATA, 1), writable(DATA, 1), readable(DATA, 1)]),
  },
  {
    name: "an address in no region",
    code: "BAD_ADDRESS",
    slots: 2,
    offer: (g) => g.offer(6, [readable(FAR, 1), readable(DATA, 1)]),
  },
  {
    name: "an address of 2^53",
    code: "BAD_ADDRESS",
    slots: 1,
    offer: (g) => g.offer(6, [readable(2 ** 53, 1)]),
  },
  {
    name: "the highest address, whose end wraps round",
    code: "BAD_ADDRESS",
    slots: 1,
    offer(g) {
      const slot = g.put(0, 0x20000000, 6, 0);
      g.view.setBigUint64(
        RING - BASE + slot * 16,
        0xffff_ffff_fff0_0000n,
        true,
      );
    },
  },
  {
    name: "a length that runs out of the region",
    code: "BAD_ADDRESS",
    slots: 1,
    offer: (g) => g.offer(6, [writable(DATA, 0xffffffff)]),
  },
  {
    name: "an indirect descriptor that was not negotiated",
    code: "INDIRECT_NOT_NEGOTIATED",
    slots: 1,
    indirect: false,
    offer: (g) => g.offerTable(6, TABLES, [readable(DATA, 1)]),
  },
  {
    name: "an indirect head that continues",
    code: "INDIRECT_WITH_NEXT",
    slots: 2,
    offer(g) {
      g.put(TABLES, 16, 0, INDIRECT | NEXT);
      g.put(DATA, 1, 6, 0);
    },
  },
  {
    name: "an indirect descriptor at the end of a chain",
    code: "INDIRECT_WITH_NEXT",
    slots: 2,
    offer(g) {
      g.put(DATA, 1, 0, NEXT);
      g.put(TABLES, 16, 6, INDIRECT);
    },
  },
  {
    name: "an empty indirect table",
    code: "INDIRECT_TABLE_SIZE",
    slots: 1,
    offer: (g) => g.put(TABLES, 0, 6, INDIRECT),
  },
  {
    name: "an indirect table that is no multiple of 16 bytes",
    code: "INDIRECT_TABLE_SIZE",
    slots: 1,
    offer: (g) => g.put(TABLES, 24, 6, INDIRECT),
  },
  {
    name: "an indirect table of more than 1024 entries",
    code: "INDIRECT_TABLE_SIZE",
    slots: 1,
    offer: (g) => g.put(TABLES, 1025 * 16, 6, INDIRECT),
  },
  {
    name: "an indirect table in no region",
    code: "BAD_ADDRESS",
    slots: 1,
    offer: (g) => g.put(FAR, 16, 6, INDIRECT),
  },
  {
    name: "an indirect table that runs out of its region",
    code: "BAD_ADDRESS",
    slots: 1,
    offer: (g) => g.put(RING + 8 * 16 - 16, 32, 6, INDIRECT),
  },
  {
    name: "an indirect table with a bad address",
    code: "BAD_ADDRESS",
    slots: 1,
    offer: (g) =>
      g.offerTable(6, TABLES, [readable(DATA, 1), readable(FAR, 1)]),
  },
  {
    name: "an indirect table that reads after it writes",
    code: "READABLE_AFTER_WRITABLE",
    slots: 1,
    offer: (g) =>
      g.offerTable(6, TABLES, [writable(DATA, 1), readable(DATA, 1)]),
  },
];

for (const { name, code, slots, indirect, offer } of MALFORMED) {
  Deno.test(`PackedDevice.pop() returns ${name} as a fault and goes on`, () => {
    for (const strongOrdering of [false, true]) {
      const guest = new Guest(8, {
        strongOrdering,
        indirect: indirect ?? true,
      });
      const device = guest.device();
      const chain = new Chain(guest.memory);
      for (let lap = 0; lap < 9; lap++) {
        const at = guest.next;
        const wrap = guest.wrap;
        offer(guest);
        guest.offer(2, [readable(DATA, 5)]);
        assert(device.pop(chain));
        assertInstanceOf(chain.fault, RingError);
        assertEquals(chain.fault.code, code);
        assertEquals(chain.fault.fatal, false);
        assertEquals([chain.count, chain.readableBytes, chain.writableBytes], [
          0,
          0,
          0,
        ]);
        assertEquals(chain.token, 6);
        device.push(6, 0);
        assert(device.pop(chain));
        assertEquals(chain.fault, null);
        assertEquals(contents(chain), [readable(DATA, 5)]);
        device.push(2, 0);
        device.publish();
        assertEquals(guest.slot(at), {
          id: 6,
          len: 0,
          flags: wrap ? AVAIL | USED : 0,
        });
        assertEquals(guest.slot((at + slots) % 8).id, 2);
      }
    }
  });
}

Deno.test("PackedDevice.pop() ignores all flags but WRITE in an indirect table, also one that points at itself", () => {
  const guest = new Guest(2);
  const device = guest.device();
  const chain = new Chain(guest.memory);
  guest.write(TABLES, TABLES, 48, 9, INDIRECT | NEXT);
  guest.write(TABLES + 16, DATA, 0, 9, NEXT | USED);
  guest.write(TABLES + 32, DATA, 8, 9, WRITE | INDIRECT | AVAIL);
  guest.put(TABLES, 48, 1, INDIRECT | WRITE);
  assert(device.pop(chain));
  assertEquals(chain.fault, null);
  assertEquals(contents(chain), [readable(TABLES, 48), writable(DATA, 8)]);
});

Deno.test("PackedDevice.pop() reads an indirect table at an odd address", () => {
  const guest = new Guest(2);
  const device = guest.device();
  const chain = new Chain(guest.memory);
  const segments = [readable(DATA, 3), writable(DATA + 4, 5)];
  guest.offerTable(1, TABLES + 3, segments);
  assert(device.pop(chain));
  assertEquals(contents(chain), segments);
});

Deno.test("PackedDevice.pop() takes a table of 1024 entries on a small queue and as many as a large one has", () => {
  for (const [size, entries] of [[1, 1024], [2000, 2000]] as const) {
    const guest = new Guest(size);
    const device = guest.device();
    const chain = new Chain(guest.memory, 1);
    guest.offerTable(
      0,
      TABLES,
      Array.from({ length: entries }, () => readable(DATA, 2)),
    );
    assert(device.pop(chain));
    assertEquals(chain.count, entries);
    assertEquals(chain.readableBytes, 2 * entries);
  }
});

Deno.test("PackedDevice.pop() splits a descriptor over adjoining regions and drops empty ones", () => {
  const a = {
    guestAddress: BASE,
    size: 0x1000,
    buffer: new ArrayBuffer(0x1000),
  };
  const b = {
    guestAddress: BASE + 0x1000,
    size: 0x1000,
    buffer: new ArrayBuffer(0x1000),
  };
  const memory = new GuestMemory([b, a]);
  const config = {
    size: 4,
    descriptorArea: BASE + 0x100,
    driverArea: BASE,
    deviceArea: BASE + 4,
  };
  const device = new PackedDevice(memory, config);
  const ring = new DataView(a.buffer, 0x100);
  ring.setUint32(0, BASE + 0xff0, true);
  ring.setUint32(8, 0x20, true);
  ring.setUint16(14, AVAIL | NEXT, true);
  ring.setUint32(16 + 8, 0, true);
  ring.setUint16(16 + 14, AVAIL | WRITE, true);
  const chain = new Chain(memory);
  assert(device.pop(chain));
  assertEquals(contents(chain), [
    readable(BASE + 0xff0, 16),
    readable(BASE + 0x1000, 16),
  ]);
});

Deno.test("PackedDevice.unpop() gives back all slots of a chain, over the end of the ring too", () => {
  for (const strongOrdering of [false, true]) {
    const guest = new Guest(5, { strongOrdering });
    const device = guest.device();
    const chain = new Chain(guest.memory);
    assertThrows(() => device.unpop(0), TypeError);
    for (let lap = 0; lap < 12; lap++) {
      const segments = [
        readable(DATA, 1),
        readable(DATA, 2),
        writable(DATA, 3),
      ];
      const state = device.save();
      guest.offer(3, segments);
      for (let again = 0; again < 3; again++) {
        assert(device.pop(chain));
        for (const token of [0, 4, 5, -1, NaN]) {
          assertThrows(() => device.unpop(token), TypeError);
        }
        device.unpop(3);
        assertThrows(() => device.unpop(3), TypeError, "not in flight");
        assertThrows(() => device.push(3, 0), RangeError);
        assertEquals(device.inFlight, 0);
        assertEquals(device.save(), state);
      }
      assert(device.pop(chain));
      assertEquals(contents(chain), segments);
      assertEquals(device.pop(chain), false);
      device.push(3, 3);
      assertThrows(() => device.unpop(3), TypeError);
      device.publish();
    }
    const full = [1, 2, 3, 4, 5].map((len) => readable(DATA, len));
    for (let lap = 0; lap < 3; lap++) {
      guest.offer(0, full);
      assert(device.pop(chain));
      device.unpop(0);
      assert(device.pop(chain));
      assertEquals(contents(chain), full);
      device.push(0, 0);
      device.publish();
    }
  }
});

Deno.test("PackedDevice.unpop() gives back several buffers from the last one on, and no other", () => {
  const guest = new Guest(8);
  const device = guest.device();
  const chain = new Chain(guest.memory);
  guest.offer(4, [readable(DATA, 1), readable(DATA, 1)]);
  guest.offer(5, [readable(DATA + 5, 1)]);
  guest.offer(6, [readable(DATA + 6, 1), readable(DATA, 1), readable(DATA, 1)]);
  while (device.pop(chain));
  assertThrows(() => device.unpop(5), TypeError, "not the last");
  device.unpop(6);
  assertThrows(() => device.unpop(4), TypeError, "not the last");
  device.unpop(5);
  assertEquals(device.inFlight, 1);
  assert(device.pop(chain));
  assertEquals([chain.token, contents(chain)], [5, [readable(DATA + 5, 1)]]);
  assert(device.pop(chain));
  // The last one was used: what was fetched before it can't be fetched again.
  device.push(6, 0);
  assertThrows(() => device.unpop(5), TypeError, "not the last");
  assertThrows(() => device.unpop(4), TypeError, "not the last");
  device.push(5, 0);
  device.push(4, 0);
  device.publish();
  assertEquals(device.inFlight, 0);
});

Deno.test("PackedDevice.unpop() keeps completions that were staged out of order", () => {
  const guest = new Guest(4);
  const device = guest.device();
  const chain = new Chain(guest.memory);
  for (let id = 0; id < 3; id++) guest.offer(id, [readable(DATA + id, 1)]);
  while (device.pop(chain));
  device.push(1, 0);
  device.unpop(2);
  // 0 was written over, 1 was used.
  assertThrows(() => device.unpop(0), TypeError, "not the last");
  device.publish();
  assert(device.pop(chain));
  assertEquals(contents(chain), [readable(DATA + 2, 1)]);
  assertEquals(chain.token, 2);
});

Deno.test("PackedDevice.unpop() does not take a buffer of an earlier lap for the last one", () => {
  const guest = new Guest(3);
  const device = guest.device();
  const chain = new Chain(guest.memory);
  guest.offer(9, [readable(DATA, 1)]);
  assert(device.pop(chain));
  // Round the ring, until the next position is behind the first slot once more.
  for (let i = 0; i < 3; i++) {
    guest.offer(1, [readable(DATA, 1)]);
    assert(device.pop(chain));
    device.push(1, 0);
    device.publish();
  }
  assertThrows(() => device.unpop(9), TypeError, "not the last");
  guest.offer(1, [readable(DATA + 7, 1)]);
  assert(device.pop(chain));
  device.unpop(1);
  assert(device.pop(chain));
  assertEquals(contents(chain), [readable(DATA + 7, 1)]);
});

Deno.test("PackedDevice.unpop() gives restored buffers back only while nothing was fetched after them", () => {
  const guest = new Guest(4);
  const first = guest.device();
  const chain = new Chain(guest.memory);
  guest.offer(0, [readable(DATA, 1)]);
  guest.offer(1, [readable(DATA + 1, 1)]);
  while (first.pop(chain));
  const device = guest.device(first.save());
  const tokens = () => {
    const list: number[] = [];
    while (device.pop(chain)) list.push(chain.token);
    return list;
  };
  assertEquals(tokens(), [0, 1]);
  assertThrows(() => device.unpop(0), TypeError, "not the last");
  device.unpop(1);
  device.unpop(0);
  guest.offer(2, [readable(DATA + 2, 1)]);
  assertEquals(tokens(), [0, 1, 2]);
  assertThrows(() => device.unpop(1), TypeError, "not the last");
  device.unpop(2);
  device.unpop(1);
  assertEquals(tokens(), [1, 2]);
  device.push(2, 0);
  device.publish();
  assertThrows(() => device.unpop(1), TypeError, "not the last");
  assertEquals(device.save().inFlight.map(({ id }) => id), [0, 1]);
  // Two laps on, the available position and its wrap counter are what they were at the restore.
  for (let i = 0; i < 7; i++) {
    guest.offer(2, [readable(DATA + 2, 1)]);
    assertEquals(tokens(), [2]);
    device.push(2, 0);
    device.publish();
  }
  assertThrows(() => device.unpop(1), TypeError, "not the last");
});

Deno.test("PackedDevice.needsInterrupt() follows the driver's flags and takes a reserved value as enabled", () => {
  const guest = new Guest(4);
  const device = guest.device();
  const chain = new Chain(guest.memory);
  const cases = [
    [RING_EVENT_FLAGS_ENABLE, true],
    [RING_EVENT_FLAGS_DISABLE, false],
    // DESC without EVENT_IDX and the reserved value: a needless interrupt hurts nobody.
    [RING_EVENT_FLAGS_DESC, true],
    [3, true],
    // Reserved bits are no flags.
    [RING_EVENT_FLAGS_DISABLE | 0xfff0, false],
  ] as const;
  for (const [flags, expected] of cases) {
    guest.setDriverEvent(3, 0, flags);
    assertEquals(device.needsInterrupt(), false);
    guest.offer(0, [readable(DATA, 1)]);
    assert(device.pop(chain));
    device.push(0, 0);
    assertEquals(device.needsInterrupt(), false);
    device.publish();
    assertEquals(device.needsInterrupt(), expected, `flags ${flags}`);
    assertEquals(device.needsInterrupt(), false);
  }
});

Deno.test("PackedDevice.needsInterrupt() fires exactly when the event's descriptor is passed, at every position of two laps", () => {
  for (const size of [1, 2, 3, 7, 8]) {
    for (let batch = 1; batch <= size; batch++) {
      for (let event = 0; event < 2 * size; event++) {
        const guest = new Guest(size, { eventIdx: true });
        const device = guest.device();
        const chain = new Chain(guest.memory);
        let total = 0;
        while (total < 2 * size) {
          for (let id = 0; id < batch; id++) {
            guest.offer(id, [readable(DATA, 1)]);
          }
          // A driver asks for no more than a lap ahead of what it has seen.
          const ahead = event - total;
          const asks = ahead >= -size && ahead < size;
          guest.setDriverEvent(
            event % size,
            event < size ? 1 : 0,
            asks ? RING_EVENT_FLAGS_DESC : RING_EVENT_FLAGS_DISABLE,
          );
          while (device.pop(chain)) device.push(chain.token, 0);
          device.publish();
          total += batch;
          const passed = event >= total - batch && event < total;
          assertEquals(
            device.needsInterrupt(),
            asks && passed,
            `size ${size}, batch ${batch}, event ${event}, total ${total}`,
          );
        }
      }
    }
  }
});

Deno.test("PackedDevice.needsInterrupt() subtracts the ring's size where the event is on the lap before", () => {
  const guest = new Guest(8, { eventIdx: true });
  const device = guest.device();
  const chain = new Chain(guest.memory);
  const move = (count: number) => {
    for (let id = 0; id < count; id++) guest.offer(id, [readable(DATA, 1)]);
    while (device.pop(chain)) device.push(chain.token, 0);
    device.publish();
    return device.needsInterrupt();
  };
  assert(move(6));
  // From 6 over the end to 2: 7 with the old wrap counter was passed, 1 with the new one too.
  guest.setDriverEvent(7, 1, RING_EVENT_FLAGS_DESC);
  assertEquals(move(4), true);
  // From 2 to 5: that event lies behind.
  assertEquals(move(3), false);
  // From 5 over the end to 1, event ahead at 1 of the lap after.
  guest.setDriverEvent(1, 1, RING_EVENT_FLAGS_DESC);
  assertEquals(move(4), false);
  assertEquals(move(1), true);
});

Deno.test("PackedDevice.needsInterrupt() covers several publications and leaves out what is only staged", () => {
  const guest = new Guest(8, { eventIdx: true });
  const device = guest.device();
  const chain = new Chain(guest.memory);
  for (let id = 0; id < 6; id++) guest.offer(id, [readable(DATA, 1)]);
  while (device.pop(chain));
  guest.setDriverEvent(0, 1, RING_EVENT_FLAGS_DESC);
  device.push(0, 0);
  device.publish();
  device.push(1, 0);
  device.publish();
  assertEquals(device.needsInterrupt(), true);
  guest.setDriverEvent(4, 1, RING_EVENT_FLAGS_DESC);
  device.push(2, 0);
  device.publish();
  device.push(3, 0);
  device.push(4, 0);
  assertEquals(device.needsInterrupt(), false);
  device.publish();
  assertEquals(device.needsInterrupt(), true);
});

Deno.test("PackedDevice.armKicks() names the next descriptor and sees work that is there already", () => {
  for (const eventIdx of [false, true]) {
    const guest = new Guest(3, { eventIdx });
    const device = guest.device();
    const chain = new Chain(guest.memory);
    let off = 0;
    let wrap = 1;
    device.disarmKicks();
    assertEquals(guest.event(DEVICE_EVENT).flags, RING_EVENT_FLAGS_DISABLE);
    for (let i = 0; i < 8; i++) {
      assertEquals(device.armKicks(), false);
      const event = guest.event(DEVICE_EVENT);
      if (eventIdx) {
        assertEquals(event, { off, wrap, flags: RING_EVENT_FLAGS_DESC });
      } else {
        assertEquals(event.flags, RING_EVENT_FLAGS_ENABLE);
      }
      guest.offer(0, [readable(DATA, 1)]);
      assertEquals(device.armKicks(), true);
      device.disarmKicks();
      if (!eventIdx) {
        assertEquals(guest.event(DEVICE_EVENT).flags, RING_EVENT_FLAGS_DISABLE);
      }
      assert(device.pop(chain));
      device.push(0, 0);
      device.publish();
      off = guest.next;
      wrap = guest.wrap;
    }
  }
});

/** Runs `fn` and returns the atomic accesses that it made, as `load 14` by byte offset in memory. */
function atomicsOf(fn: () => void): string[] {
  const { load, store } = Atomics;
  const log: string[] = [];
  const name = (array: { byteOffset: number }, index: number) =>
    (array.byteOffset + index * 2).toString(16);
  Atomics.load = ((array: Uint16Array, index: number) => {
    assertEquals(array.BYTES_PER_ELEMENT, 2);
    log.push(`load ${name(array, index)}`);
    return load(array, index);
  }) as typeof Atomics.load;
  Atomics.store = ((array: Uint16Array, index: number, value: number) => {
    assertEquals(array.BYTES_PER_ELEMENT, 2);
    log.push(`store ${name(array, index)}`);
    return store(array, index, value);
  }) as typeof Atomics.store;
  try {
    fn();
  } finally {
    Atomics.load = load;
    Atomics.store = store;
  }
  return log;
}

Deno.test("PackedDevice hands over by 16-bit atomics, in the order that the other side relies on", () => {
  for (const strongOrdering of [false, true]) {
    const guest = new Guest(8, { eventIdx: true, strongOrdering });
    const device = guest.device();
    const chain = new Chain(guest.memory);
    const flags = (slot: number) => (RING - BASE + slot * 16 + 14).toString(16);
    for (let id = 0; id < 3; id++) {
      guest.offer(id, [readable(DATA, 1), readable(DATA, 1)]);
    }
    assertEquals(
      atomicsOf(() => {
        while (device.pop(chain)) device.push(chain.token, 0);
      }),
      strongOrdering
        // One at the end of the run that was read ahead.
        ? [`load ${flags(5)}`]
        : [0, 2, 4, 6].map((slot) => `load ${flags(slot)}`),
    );
    assertEquals(atomicsOf(() => device.publish()), [`store ${flags(0)}`]);
    guest.setDriverEvent(0, 1, RING_EVENT_FLAGS_DESC);
    // Reader: flags, then offset. Writer: offset, then flags; and the head again at last.
    // With strong ordering plain reads do behind the store.
    const decision = strongOrdering ? [] : ["load 2", "load 0"];
    assertEquals(atomicsOf(() => device.needsInterrupt()), decision);
    assertEquals(atomicsOf(() => device.armKicks()), [
      "store 10",
      "store 12",
      `load ${flags(6)}`,
    ]);
  }
});

Deno.test("PackedDevice.pop() with strong ordering loads each hand-off once by atomics, over the end of the ring too", () => {
  const guest = new Guest(4, { strongOrdering: true });
  const device = guest.device();
  const chain = new Chain(guest.memory);
  const flags = (slot: number) => (RING - BASE + slot * 16 + 14).toString(16);
  const expected = [[1, 0], [1, 1], [3, 0], [4, 0], [1, 1], [2, 3]];
  for (const [count, last] of expected) {
    for (let id = 0; id < count!; id++) guest.offer(id, [readable(DATA, 1)]);
    const log = atomicsOf(() => {
      for (let id = 0; id < count!; id++) assert(device.pop(chain));
    });
    assertEquals(log, [`load ${flags(last!)}`]);
    for (let id = 0; id < count!; id++) device.push(id, 0);
    device.publish();
  }
});

Deno.test("PackedDevice.popBatch() with strong ordering loads each hand-off once by atomics", () => {
  const guest = new Guest(16, { strongOrdering: true });
  const device = guest.device();
  const batch = new ChainBatch(guest.memory);
  const flags = (slot: number) => (RING - BASE + slot * 16 + 14).toString(16);
  const buffer = [readable(DATA, 1), readable(DATA, 1)];
  for (let id = 0; id < 3; id++) guest.offer(id, buffer);
  const logs = [1, 1, 1].map((most) =>
    atomicsOf(() => assertEquals(device.popBatch(batch, most), 1))
  );
  assertEquals(logs, [[`load ${flags(5)}`], [], []]);
  // What comes later has a load of its own.
  guest.offer(3, buffer);
  assertEquals(
    atomicsOf(() => assertEquals(device.popBatch(batch, 1), 1)),
    [`load ${flags(7)}`],
  );
});

Deno.test("PackedDevice.save() refuses while completions are staged", () => {
  const guest = new Guest(4);
  const device = guest.device();
  const chain = new Chain(guest.memory);
  guest.offer(0, [readable(DATA, 1)]);
  assert(device.pop(chain));
  device.push(0, 0);
  assertThrows(() => device.save(), TypeError, "Cannot save");
  device.publish();
  assertEquals(device.save().inFlight, []);
});

Deno.test("PackedDevice.save() keeps the used half and the buffers in flight, in the order of their fetch", () => {
  const guest = new Guest(4);
  const device = guest.device();
  const chain = new Chain(guest.memory);
  guest.offer(1, [readable(DATA, 1), readable(DATA, 2), readable(DATA, 3)]);
  assert(device.pop(chain));
  device.push(1, 0);
  device.publish();
  guest.offer(0, [readable(DATA + 100, 4), writable(DATA + 200, 5)]);
  guest.offerTable(2, TABLES, [
    readable(DATA + 300, 6),
    writable(DATA + 400, 7),
    writable(DATA + 500, 0),
  ]);
  guest.offer(3, [readable(FAR, 1)]);
  while (device.pop(chain));
  const before = new Uint8Array(guest.view.buffer.slice(0));
  const expected: QueueState = {
    format: "packed",
    lastAvailIdx: 3,
    lastAvailWrapCounter: 0,
    usedIdx: 3,
    usedWrapCounter: 1,
    inFlight: [
      {
        id: 0,
        slots: 2,
        descriptors: [
          readable(DATA + 100, 4),
          writable(DATA + 200, 5),
        ] as never,
      },
      {
        id: 2,
        slots: 1,
        descriptors: [
          readable(DATA + 300, 6),
          writable(DATA + 400, 7),
          writable(DATA + 500, 0),
        ] as never,
      },
      { id: 3, slots: 1, descriptors: [readable(FAR, 1)] as never },
    ],
  };
  assertEquals(device.save(), expected);
  assertEquals(device.save(), JSON.parse(JSON.stringify(device.save())));
  assertEquals(new Uint8Array(guest.view.buffer), before);
});

Deno.test("PackedDevice.save() has copies of the buffers whose slots were used for others and filled anew", () => {
  const guest = new Guest(6);
  const device = guest.device();
  const chain = new Chain(guest.memory);
  const long = [
    readable(DATA, 10),
    readable(DATA + 16, 11),
    writable(DATA + 32, 12),
  ];
  guest.offer(5, long);
  guest.offerTable(4, TABLES, [
    readable(DATA + 64, 20),
    writable(DATA + 80, 21),
  ]);
  guest.offer(3, [readable(DATA + 96, 30)]);
  while (device.pop(chain));
  // 3, the last, completes first: its used descriptor falls on the first slot of 5.
  device.push(3, 0);
  device.publish();
  assertEquals(guest.slot(0), { id: 3, len: 0, flags: AVAIL | USED });
  // Round the ring with short ones: all slots are written over.
  for (let i = 0; i < 20; i++) {
    guest.offer(i % 3, [readable(DATA + 1000 + i, 1)]);
    assert(device.pop(chain));
    assertEquals(chain.token, i % 3);
    device.push(chain.token, 0);
    device.publish();
  }
  guest.offer(0, [readable(DATA + 2000, 2), readable(DATA + 2001, 3)]);
  assert(device.pop(chain));
  const state = device.save();
  assertEquals(state.inFlight, [
    { id: 5, slots: 3, descriptors: long as never },
    {
      id: 4,
      slots: 1,
      descriptors: [readable(DATA + 64, 20), writable(DATA + 80, 21)] as never,
    },
    {
      id: 0,
      slots: 2,
      descriptors: [
        readable(DATA + 2000, 2),
        readable(DATA + 2001, 3),
      ] as never,
    },
  ]);
  assert(state.format === "packed");

  const next = new PackedDevice(
    guest.memory,
    guest.config,
    JSON.parse(JSON.stringify(state)),
  );
  assertEquals(next.save(), state);
  const taken: unknown[] = [];
  while (next.pop(chain)) taken.push([chain.token, contents(chain)]);
  assertEquals(
    taken,
    state.inFlight.map(({ id, descriptors }) => [id, descriptors]),
  );
  assertEquals(next.save(), state);
  next.push(4, 21);
  next.publish();
  assertEquals(guest.slot(state.usedIdx).id, 4);
  assertEquals(next.save().inFlight.map(({ id }) => id), [5, 0]);
  next.push(0, 0);
  next.push(5, 12);
  next.publish();
  assertEquals(next.inFlight, 0);
  assertEquals(next.save(), {
    format: "packed",
    lastAvailIdx: guest.next,
    lastAvailWrapCounter: guest.wrap,
    usedIdx: guest.next,
    usedWrapCounter: guest.wrap,
    inFlight: [],
  } as QueueState);
});

Deno.test("PackedDevice restored goes on without a kick, asks for kicks and interrupts once", () => {
  for (const eventIdx of [false, true]) {
    const guest = new Guest(5, { eventIdx });
    const device = guest.device();
    const chain = new Chain(guest.memory);
    for (let i = 0; i < 7; i++) {
      guest.offer(0, [readable(DATA, 1)]);
      assert(device.pop(chain));
      device.push(0, 0);
      device.publish();
    }
    device.disarmKicks();
    const state = device.save();
    guest.setDriverEvent(4, 1, RING_EVENT_FLAGS_DISABLE);
    guest.offer(2, [readable(DATA, 9)]);

    const next = guest.device(state);
    const event = guest.event(DEVICE_EVENT);
    if (eventIdx) {
      assertEquals(event, { off: 2, wrap: 0, flags: RING_EVENT_FLAGS_DESC });
    } else {
      assertEquals(event.flags, RING_EVENT_FLAGS_ENABLE);
    }
    assertEquals(next.needsInterrupt(), true);
    assertEquals(next.needsInterrupt(), false);
    assertEquals(next.armKicks(), true);
    assert(next.pop(chain));
    assertEquals(contents(chain), [readable(DATA, 9)]);
    next.push(2, 0);
    next.publish();
    assertEquals(next.needsInterrupt(), false);
    assertEquals(guest.slot(2), { id: 2, len: 0, flags: 0 });
  }
});

Deno.test("PackedDevice restored gives back, refuses and reports buffers that it has not handed out", () => {
  const guest = new Guest(4);
  const first = guest.device();
  const chain = new Chain(guest.memory);
  for (let id = 0; id < 4; id++) guest.offer(id, [writable(DATA + id, 4)]);
  while (first.pop(chain));
  const state = first.save();
  assert(state.format === "packed");
  // Full: equal indices, different wrap counters.
  assertEquals([state.lastAvailIdx, state.usedIdx], [0, 0]);
  assertEquals([state.lastAvailWrapCounter, state.usedWrapCounter], [0, 1]);

  const device = guest.device(state);
  assertEquals(device.inFlight, 0);
  assertEquals(device.armKicks(), true);
  assertThrows(() => device.push(0, 0), RangeError);
  assert(device.pop(chain) && device.pop(chain));
  assertEquals([device.inFlight, chain.token], [2, 1]);
  device.unpop(1);
  assertEquals(device.inFlight, 1);
  assertThrows(() => device.push(1, 0), RangeError);
  assert(device.pop(chain));
  assertEquals([chain.token, contents(chain)], [1, [writable(DATA + 1, 4)]]);
  device.push(1, 4);
  device.publish();
  assertEquals(device.save().inFlight.map(({ id }) => id), [0, 2, 3]);
  while (device.pop(chain));
  for (const id of [3, 0, 2]) device.push(id, 0);
  device.publish();
  assertEquals([0, 1, 2, 3].map((slot) => guest.slot(slot).id), [1, 3, 0, 2]);
  assertEquals([0, 1, 2, 3].map((slot) => guest.slot(slot).flags), [
    AVAIL | USED | WRITE,
    AVAIL | USED,
    AVAIL | USED,
    AVAIL | USED,
  ]);
});

Deno.test("PackedDevice restored returns a buffer that was malformed, or is now outside memory, as a fault", () => {
  const guest = new Guest(4);
  const first = guest.device();
  const chain = new Chain(guest.memory);
  guest.offer(0, [writable(DATA, 1), readable(DATA, 1)]);
  guest.offer(1, [readable(FAR, 1)]);
  guest.put(FAR, 16, 2, INDIRECT);
  while (first.pop(chain));
  const device = guest.device(first.save());
  const codes: unknown[] = [];
  while (device.pop(chain)) {
    codes.push([chain.token, chain.fault?.code, chain.count]);
    device.push(chain.token, 0);
  }
  assertEquals(codes, [[0, "BAD_QUEUE_STATE", 0], [1, "BAD_ADDRESS", 0], [
    2,
    "BAD_QUEUE_STATE",
    0,
  ]]);
  device.publish();
  assertEquals([0, 2, 3].map((slot) => guest.slot(slot).id), [0, 1, 2]);
});

Deno.test("PackedDevice.constructor() refuses a state that no packed queue can have been in", () => {
  const guest = new Guest(4);
  const good = guest.device().save();
  const buffer = {
    id: 0,
    slots: 1,
    descriptors: [{ addr: DATA, len: 1, writable: false }],
  };
  for (
    const wrong of [
      { format: "split" },
      { lastAvailIdx: 4 },
      { usedIdx: 4 },
      { lastAvailIdx: -1 },
      { usedIdx: 1 },
      { lastAvailIdx: 1, lastAvailWrapCounter: 0 },
      { lastAvailWrapCounter: 2 },
      { lastAvailIdx: 1 },
      { lastAvailIdx: 2, inFlight: [buffer, buffer] },
      { lastAvailIdx: 1, inFlight: [{ ...buffer, id: 65536 }] },
      { lastAvailIdx: 1, inFlight: [{ ...buffer, slots: 0 }] },
    ]
  ) {
    ringError(
      () => guest.device({ ...good, ...wrong } as QueueState),
      "BAD_QUEUE_STATE",
    );
  }
  assertEquals(guest.event(DEVICE_EVENT), { off: 0, wrap: 0, flags: 0 });
});

Deno.test("PackedDevice.rebind() goes on in another memory and stays where it is when the ring is not there", () => {
  const guest = new Guest(4, { strongOrdering: true });
  const device = guest.device();
  const chain = new Chain(guest.memory);
  for (let id = 0; id < 3; id++) guest.offer(id, [writable(DATA + id, 1)]);
  assert(device.pop(chain));
  const copy = guest.view.buffer.slice(0) as ArrayBuffer;
  const moved = new GuestMemory([{
    guestAddress: BASE,
    size: copy.byteLength,
    buffer: copy,
  }]);
  const elsewhere = new GuestMemory([{
    guestAddress: 0,
    size: copy.byteLength,
    buffer: copy,
  }]);
  ringError(() => device.rebind(elsewhere), "BAD_QUEUE_ADDRESS");
  assert(device.pop(chain));
  assertStrictEquals(chain.memory, guest.memory);
  device.rebind(moved);
  assert(device.pop(chain));
  assertStrictEquals(chain.memory, moved);
  assertEquals(contents(chain), [writable(DATA + 2, 1)]);
  for (let id = 0; id < 3; id++) device.push(id, 1);
  device.publish();
  assertEquals(guest.slot(0).flags, AVAIL | WRITE);
  assertEquals(
    new DataView(copy).getUint16(RING - BASE + 14, true),
    AVAIL | USED | WRITE,
  );
});

Deno.test("PackedDevice survives any ring: it stops, faults or stays inside memory, in bounded work", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 9 }),
      fc.boolean(),
      fc.array(
        fc.record({
          addr: fc.constantFrom(
            DATA,
            TABLES,
            RING,
            FAR,
            BASE - 1,
            2 ** 53,
            2 ** 40,
          ),
          len: fc.constantFrom(0, 1, 16, 32, 48, 0x7fff, 0xffffffff),
          id: fc.integer({ min: 0, max: 12 }),
          flags: fc.integer({ min: 0, max: 7 }),
          wrong: fc.boolean(),
        }),
        { minLength: 1, maxLength: 40 },
      ),
      fc.infiniteStream(fc.nat(5)),
      (size, strongOrdering, descriptors, choices) => {
        const guest = new Guest(size, { strongOrdering, eventIdx: true });
        const device = guest.device();
        const chain = new Chain(guest.memory, 1);
        const held: number[] = [];
        const choose = () => choices.next().value as number;
        for (const { addr, len, id, flags, wrong } of descriptors) {
          // The flags of an available descriptor, or sometimes garbage.
          const slot = guest.put(addr, len, id, flags);
          if (wrong && choose() === 0) {
            guest.view.setUint16(
              RING - BASE + slot * 16 + 14,
              flags | USED,
              true,
            );
          }
          if (choose() < 3) continue;
          try {
            let pops = 0;
            while (device.pop(chain)) {
              assertLessOrEqual(++pops, size);
              held.push(chain.token);
              for (let i = 0; i < chain.count; i++) chain.bytes(i);
              if (chain.fault !== null) assertEquals(chain.count, 0);
            }
          } catch (error) {
            assertInstanceOf(error, RingError);
            assert(error.fatal);
          }
          assertEquals(device.inFlight, held.length);
          assertLessOrEqual(held.length, size);
          while (held.length > 0 && choose() < 4) {
            device.push(held.splice(choose() % held.length, 1)[0]!, 0);
          }
          device.publish();
          device.needsInterrupt();
          device.armKicks();
          const state = device.save();
          assertEquals(
            state.inFlight.map((buffer) => buffer.id).sort(),
            [...held].sort(),
          );
          // What was saved can be restored.
          const again = new PackedDevice(guest.memory, guest.config, state);
          assertEquals(again.save(), state);
        }
      },
    ),
    { numRuns: 1500, seed: 20261122 },
  );
});

Deno.test("PackedDevice.rebind() looks addresses up anew where the regions changed", () => {
  const guest = new Guest(4);
  const device = guest.device();
  const chain = new Chain(guest.memory);
  const segments = [readable(DATA, 4), writable(DATA + 8, 4)];
  const turn = () => {
    guest.offer(0, segments);
    guest.offerTable(1, TABLES, segments);
    for (let id = 0; id < 2; id++) {
      assert(device.pop(chain));
      assertEquals(chain.fault, null);
      assertEquals(contents(chain), segments);
      device.push(id, 0);
    }
    device.publish();
  };
  turn();
  turn();
  const { buffer } = guest.view;
  const below = {
    guestAddress: BASE - 0x10000,
    size: 0x10000,
    buffer: new ArrayBuffer(0x10000),
  };
  device.rebind(
    new GuestMemory([below, {
      guestAddress: BASE,
      size: buffer.byteLength,
      buffer,
    }]),
  );
  turn();
  turn();
});

Deno.test("PackedDevice.pop() finds segments on both sides of 4 GiB and in several regions", () => {
  const low = 2 ** 32 - 0x10000;
  const size = 0x20000;
  const buffer = new ArrayBuffer(size);
  const far = {
    guestAddress: 2 ** 40,
    size: 0x1000,
    buffer: new ArrayBuffer(0x1000),
  };
  const memory = new GuestMemory([{ guestAddress: low, size, buffer }, far]);
  const config: QueueConfig = {
    size: 4,
    descriptorArea: low,
    driverArea: low + 0x100,
    deviceArea: low + 0x200,
    indirect: true,
  };
  const device = new PackedDevice(memory, config);
  const chain = new Chain(memory);
  const view = new DataView(buffer);
  const write = (
    offset: number,
    { addr, len, writable }: Segment,
    flags: number,
  ) => {
    view.setBigUint64(offset, BigInt(addr), true);
    view.setUint32(offset + 8, len, true);
    view.setUint32(offset + 12, (flags | (writable ? WRITE : 0)) << 16, true);
  };
  const cases: Segment[][] = [
    [readable(low + 0x1000, 8), writable(low + 0x1100, 8)],
    [readable(2 ** 32 + 16, 8), writable(2 ** 32 + 32, 8)],
    [
      readable(low + 0x1000, 8),
      readable(2 ** 32, 8),
      writable(2 ** 40, 0x1000),
    ],
    [readable(2 ** 32 - 8, 16)],
    [readable(2 ** 32 - 8, 8), readable(2 ** 32, 8)],
    [writable(2 ** 32 + 0xfff0, 16)],
    [readable(2 ** 40 + 0xff0, 16)],
    [readable(2 ** 40 + 1, 7), writable(low + 0xfff0, 0x20)],
  ];
  let slot = 0;
  let wrap = 1;
  const put = (segment: Segment, flags: number) => {
    write(slot * 16, segment, flags | (wrap ? AVAIL : USED));
    if (++slot === 4) {
      slot = 0;
      wrap ^= 1;
    }
  };
  for (let round = 0; round < 40; round++) {
    const segments = cases[(round * 3) % cases.length]!;
    // The table crosses 4 GiB, too.
    const table = round % 4 === 1
      ? low + 0x10000 - 16
      : round % 4 === 3
      ? 2 ** 32 + 0x100
      : 0;
    if (table === 0) {
      segments.forEach((segment, i) =>
        put(segment, i === segments.length - 1 ? 0 : NEXT)
      );
    } else {
      segments.forEach((segment, i) => write(table - low + i * 16, segment, 0));
      put(readable(table, segments.length * 16), INDIRECT);
    }
    assert(device.pop(chain));
    assertEquals(chain.fault, null);
    assertEquals(contents(chain), segments, `round ${round}`);
    device.push(0, 0);
    device.publish();
  }
  for (
    const wrong of [
      readable(2 ** 32 + 0xfff1, 16),
      writable(2 ** 40 - 1, 2),
      readable(2 ** 40 + 0xfff, 2),
      readable(low - 1, 2),
    ]
  ) {
    put(wrong, 0);
    assert(device.pop(chain));
    assertEquals(chain.fault?.code, "BAD_ADDRESS");
    device.push(0, 0);
    device.publish();
  }
});
