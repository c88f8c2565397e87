import { assert, assertEquals } from "@std/assert";
import { Chain } from "../ring/chain.ts";
import { GuestMemory } from "../ring/memory.ts";
import { PackedDevice } from "../ring/packed_device.ts";
import { PackedDriver } from "../ring/packed_driver.ts";
import {
  BufferList,
  type DeviceQueue,
  type DriverQueue,
  type RingFormat,
} from "../ring/queue.ts";
import { SplitDevice } from "../ring/split_device.ts";
import { SplitDriver } from "../ring/split_driver.ts";
import { encodeVringBase } from "../ring/state.ts";
import {
  isFreshRing,
  PACKED_INITIAL_BASE,
  ringInMemory,
} from "./ring_position.ts";

type Pair = {
  memory: GuestMemory;
  setup: {
    size: number;
    descriptorArea: number;
    driverArea: number;
    deviceArea: number;
  };
  driver: DriverQueue;
  device: DeviceQueue;
  chain: Chain;
};

function pair(format: RingFormat, size: number, eventIdx = true): Pair {
  const memory = new GuestMemory([
    { guestAddress: 0x1000, size: 0x8000, buffer: new ArrayBuffer(0x8000) },
  ]);
  const setup = {
    size,
    descriptorArea: 0x1000,
    driverArea: 0x4000,
    deviceArea: 0x5000,
  };
  const config = { ...setup, eventIdx };
  return {
    memory,
    setup,
    driver: format === "split"
      ? new SplitDriver(memory, config)
      : new PackedDriver(memory, config),
    device: format === "split"
      ? new SplitDevice(memory, config)
      : new PackedDevice(memory, config),
    chain: new Chain(memory),
  };
}

function offer({ driver }: Pair, count: number, segments = 1): void {
  const list = new BufferList();
  for (let i = 0; i < segments; i++) list.addWritable(0x6000 + 16 * i, 16);
  for (let i = 0; i < count; i++) assert(driver.add(list) >= 0);
  driver.publish();
}

function serve({ device, driver, chain }: Pair): void {
  while (device.pop(chain)) device.push(chain.token, 1);
  device.publish();
  device.armKicks();
  while (driver.reclaim() >= 0);
}

const fresh = ({ memory, setup, device }: Pair, base: number): boolean =>
  isFreshRing(memory, device.format, setup, base);

Deno.test("isFreshRing() takes a new split ring, filled or not", () => {
  const ring = pair("split", 8);
  assert(fresh(ring, 0));
  offer(ring, 8);
  assert(fresh(ring, 0));
  assertEquals(fresh(ring, 1), false);
});

Deno.test("isFreshRing() refuses a split ring that stands at index 0 after 65536 buffers", () => {
  const ring = pair("split", 8);
  for (let i = 0; i < 65536 / 8; i++) {
    offer(ring, 8);
    serve(ring);
    if (i === 0) assertEquals(fresh(ring, 0), false, "used.idx is 8");
  }
  assertEquals(encodeVringBase(ring.device.save()), 0);
  assertEquals(fresh(ring, 0), false);
});

for (const base of [0, PACKED_INITIAL_BASE]) {
  Deno.test(`isFreshRing() takes a new packed ring with base 0x${base.toString(16)}, filled or not`, () => {
    for (const segments of [1, 3]) {
      const ring = pair("packed", 9);
      assert(fresh(ring, base));
      offer(ring, 1, segments);
      assert(fresh(ring, base));
      offer(ring, 9 / segments - 1, segments);
      assert(fresh(ring, base));
      assertEquals(fresh(ring, 0x80018001), false);
      assertEquals(fresh(ring, 0x8000), false);
    }
  });
}

for (const base of [0, PACKED_INITIAL_BASE]) {
  Deno.test(`isFreshRing() takes a new packed ring with base 0x${base.toString(16)} while its driver writes a descriptor`, () => {
    for (const before of [0, 1, 7]) {
      const ring = pair("packed", 9);
      offer(ring, before);
      // The flags come last.
      const at = ring.setup.descriptorArea + 16 * before;
      ring.memory.bytes(at, 8).set([0, 0x60, 0xc2, 0x17]);
      assert(fresh(ring, base), `in the first of the ${9 - before} left`);
    }
  });
}

Deno.test("isFreshRing() refuses packed rings that have lived and stand at index 0", () => {
  for (const segments of [1, 3]) {
    for (const eventIdx of [true, false]) {
      for (let laps = 1; laps <= 4; laps++) {
        const ring = pair("packed", 9, eventIdx);
        const lap = 9 / segments;
        for (let i = 0; i < laps * lap; i++) {
          offer(ring, 1, segments);
          serve(ring);
        }
        const base = encodeVringBase(ring.device.save());
        assertEquals(base, laps % 2 === 1 ? 0 : PACKED_INITIAL_BASE);
        assertEquals(fresh(ring, base), false);
        // The driver makes some, then all of the ring available again.
        offer(ring, 1, segments);
        assertEquals(fresh(ring, base), false);
        offer(ring, lap - 1, segments);
        // Without the event structure nothing tells a full ring of an odd lap from a new one.
        assertEquals(fresh(ring, base), laps % 2 === 0 && !eventIdx);
      }
    }
  }
});

Deno.test("isFreshRing() refuses a packed ring after its first buffer", () => {
  const ring = pair("packed", 9);
  offer(ring, 9);
  ring.device.pop(ring.chain);
  ring.device.push(ring.chain.token, 1);
  ring.device.publish();
  assertEquals(fresh(ring, 0), false);
  assertEquals(fresh(ring, PACKED_INITIAL_BASE), false);
});

Deno.test("ringInMemory() wants each area in one region", () => {
  const memory = new GuestMemory([
    { guestAddress: 0x1000, size: 0x100, buffer: new ArrayBuffer(0x100) },
    { guestAddress: 0x1100, size: 0x100, buffer: new ArrayBuffer(0x100) },
  ]);
  const at = (
    descriptorArea: number,
    driverArea: number,
    deviceArea: number,
  ): boolean =>
    ringInMemory(memory, "split", {
      size: 8,
      descriptorArea,
      driverArea,
      deviceArea,
    });
  // 128, 22 and 70 bytes.
  assert(at(0x1080, 0x1100, 0x1120));
  assertEquals(at(0x1090, 0x1100, 0x1120), false);
  assertEquals(at(0x1080, 0x11ec, 0x1120), false);
  assertEquals(at(0x1080, 0x1100, 0x11c0), false);
  assertEquals(at(-1, 0x1100, 0x1120), false);
});
