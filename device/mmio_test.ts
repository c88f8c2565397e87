import { assert, assertEquals, assertThrows } from "@std/assert";
import { featureBits } from "../props/guest/mmio_driver.ts";
import {
  EchoDevice,
  initialWords,
  MmioRig,
  type MmioRigOptions,
} from "../props/guest/mmio_rig.ts";
import { GuestMemory } from "../ring/memory.ts";
import type { RingFormat } from "../ring/queue.ts";
import {
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_ORDER_PLATFORM,
} from "../ring/virtio_ring.ts";
import { testTransport } from "./_test_transport.ts";
import { MmioTransport } from "./mmio.ts";
import {
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FAILED,
  VIRTIO_CONFIG_S_NEEDS_RESET,
  VirtioDevice,
} from "./virtio_device.ts";
import {
  VIRTIO_MMIO_CONFIG,
  VIRTIO_MMIO_DEVICE_ID,
  VIRTIO_MMIO_INTERRUPT_ACK,
  VIRTIO_MMIO_INTERRUPT_STATUS,
  VIRTIO_MMIO_MAGIC_VALUE,
  VIRTIO_MMIO_QUEUE_DESC_HIGH,
  VIRTIO_MMIO_QUEUE_DESC_LOW,
  VIRTIO_MMIO_QUEUE_NOTIFY,
  VIRTIO_MMIO_QUEUE_NUM,
  VIRTIO_MMIO_QUEUE_NUM_MAX,
  VIRTIO_MMIO_QUEUE_READY,
  VIRTIO_MMIO_QUEUE_RESET,
  VIRTIO_MMIO_QUEUE_SEL,
  VIRTIO_MMIO_SHM_BASE_HIGH,
  VIRTIO_MMIO_SHM_BASE_LOW,
  VIRTIO_MMIO_SHM_LEN_HIGH,
  VIRTIO_MMIO_SHM_LEN_LOW,
  VIRTIO_MMIO_SHM_SEL,
  VIRTIO_MMIO_STATUS,
  VIRTIO_MMIO_VENDOR_ID,
  VIRTIO_MMIO_VERSION,
} from "./virtio_mmio.ts";

testTransport(
  Deno.test,
  "MmioTransport",
  "mmio",
  (options) => new MmioRig(options),
);

const FORMATS = ["split", "packed"] as const;

function started(format: RingFormat, more: MmioRigOptions = {}): MmioRig {
  const rig = new MmioRig({ format, ...more });
  rig.start();
  return rig;
}

Deno.test("MmioTransport.read() tells magic value, version 2, device and vendor", () => {
  const { mmio } = new MmioRig();
  const at = (offset: number) => mmio.read(offset, 4);
  assertEquals(at(VIRTIO_MMIO_MAGIC_VALUE), 0x74726976);
  assertEquals(at(VIRTIO_MMIO_VERSION), 2);
  assertEquals(at(VIRTIO_MMIO_DEVICE_ID), 63);
  assertEquals(at(VIRTIO_MMIO_VENDOR_ID), 0x676e6952);
  const named = new MmioTransport(new VirtioDevice(new EchoDevice([8])), {
    memory: () => new GuestMemory([]),
    interrupt: () => {},
    vendorId: 0xfedcba98,
  });
  assertEquals(named.read(VIRTIO_MMIO_VENDOR_ID, 4), 0xfedcba98);
});

Deno.test("MmioTransport does not touch a queue after QueueReady 0", () => {
  for (const format of FORMATS) {
    const rig = started(format);
    rig.send(0, "one");
    assertEquals(rig.receive(0), ["one"]);
    rig.registers.stopQueue(0);
    assertEquals(rig.registers.queueReady(0), false);
    const { deviceArea } = rig.areas[0]!;
    const before = rig.memory.bytes(deviceArea, 4).slice();
    rig.send(0, "two");
    assertEquals(rig.receive(0), []);
    assertEquals(rig.memory.bytes(deviceArea, 4), before);
    rig.send(1, "other");
    assertEquals(rig.receive(1), ["other"]);
  }
});

Deno.test("MmioTransport freezes a queue while it is ready", () => {
  const rig = started("split");
  const { registers } = rig;
  registers.set(VIRTIO_MMIO_QUEUE_SEL, 0);
  registers.set(VIRTIO_MMIO_QUEUE_NUM, 4);
  registers.set(VIRTIO_MMIO_QUEUE_DESC_LOW, 0);
  registers.set(VIRTIO_MMIO_QUEUE_DESC_HIGH, 1);
  assertEquals(rig.faults("mmio_queue_refused"), 3);
  assertEquals(rig.virtio.queueSetup(0), rig.areas[0]);
  rig.send(0, "unmoved");
  assertEquals(rig.receive(0), ["unmoved"]);
});

Deno.test("MmioTransport refuses a queue that cannot be used, and says so in QueueReady", () => {
  const cases: [string, Record<string, number>][] = [
    ["no power of two", { size: 5 }],
    ["outside of memory", { descriptorArea: 0x2000_0000 }],
    ["beyond 2^53", { deviceArea: 2 ** 63 }],
    ["not aligned", { descriptorArea: 0x1000_0008 }],
    ["at the end of memory", { driverArea: 0x1003_fff0 }],
  ];
  for (const [what, change] of cases) {
    const rig = new MmioRig();
    rig.negotiate();
    const areas = { ...rig.areas[0]!, ...change };
    assertEquals(rig.registers.setupQueue(0, areas), false, what);
    assertEquals(rig.faults("queue_not_ready"), 1, what);
    assert(rig.registers.setupQueue(0, rig.areas[0]!), what);
  }
  const rig = new MmioRig();
  // Before FEATURES_OK the format is open.
  assertEquals(rig.registers.setupQueue(0, rig.areas[0]!), false);
  rig.negotiate();
  for (const size of [0, 9, 0x10008, 0xffffffff]) {
    rig.registers.set(VIRTIO_MMIO_QUEUE_NUM, size);
  }
  assertEquals(rig.faults("mmio_queue_refused"), 4);
  rig.registers.set(VIRTIO_MMIO_QUEUE_READY, 2);
  rig.registers.set(VIRTIO_MMIO_QUEUE_SEL, 2);
  rig.registers.set(VIRTIO_MMIO_QUEUE_READY, 1);
  assertEquals(rig.faults("mmio_queue_refused"), 6);
  assertEquals(rig.registers.get(VIRTIO_MMIO_QUEUE_READY), 0);
  assertEquals(rig.registers.get(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
});

Deno.test("MmioTransport presents an event in InterruptStatus until it is acknowledged", () => {
  const rig = started("split");
  const { registers } = rig;
  rig.send(0, "x");
  assertEquals(rig.line, false);
  rig.model.process();
  assertEquals([rig.line, rig.mmio.interruptLevel], [true, true]);
  assertEquals(registers.get(VIRTIO_MMIO_INTERRUPT_STATUS), 1);
  rig.virtio.notifyConfig();
  assertEquals(registers.get(VIRTIO_MMIO_INTERRUPT_STATUS), 3);
  assertEquals(rig.edges, 1);
  registers.set(VIRTIO_MMIO_INTERRUPT_ACK, 1);
  assertEquals([rig.line, registers.get(VIRTIO_MMIO_INTERRUPT_STATUS)], [
    true,
    2,
  ]);
  registers.set(VIRTIO_MMIO_INTERRUPT_ACK, 4);
  assertEquals(rig.line, true);
  registers.set(VIRTIO_MMIO_INTERRUPT_ACK, 2);
  assertEquals(rig.line, false);
  assertEquals(rig.edges, 1);
});

Deno.test("MmioTransport clears InterruptStatus and QueueReady upon reset", () => {
  const rig = started("packed");
  rig.send(0, "x");
  rig.model.process();
  assertEquals(rig.line, true);
  rig.registers.reset();
  assertEquals([rig.line, rig.mmio.interruptLevel], [false, false]);
  assertEquals(rig.registers.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
  assertEquals(rig.registers.queueReady(0), false);
  assertEquals(rig.registers.queueReady(1), false);
  assertEquals(rig.registers.status, 0);
  assertEquals(rig.model.events.at(-1), "reset");
  // The addresses are gone, too: the queue is not ready by its bit alone.
  rig.negotiate();
  rig.registers.set(VIRTIO_MMIO_QUEUE_SEL, 0);
  rig.registers.set(VIRTIO_MMIO_QUEUE_READY, 1);
  assertEquals(rig.registers.queueReady(0), false);
});

Deno.test("MmioTransport.reset() is the machine's own reset", () => {
  const rig = started("split");
  rig.send(0, "x");
  rig.model.process();
  rig.mmio.reset();
  assertEquals([rig.line, rig.virtio.status], [false, 0]);
});

Deno.test("MmioTransport sets status bits one after the other and keeps them", () => {
  const { registers, virtio } = new MmioRig();
  registers.set(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE);
  registers.set(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_DRIVER);
  assertEquals(registers.status, 3);
  registers.set(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_FAILED);
  assertEquals(registers.status, 131);
  // The device's own bits are not the driver's to set, nor what is no status a reset.
  registers.set(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_NEEDS_RESET);
  registers.set(VIRTIO_MMIO_STATUS, 0x100);
  registers.set(VIRTIO_MMIO_STATUS, 0xff00_0000);
  assertEquals(registers.status, 131);
  assertEquals(virtio.diagnostics.counters.get("mmio_status_refused"), 2);
});

Deno.test("MmioTransport reads configuration space by bytes, half words and words", () => {
  const rig = new MmioRig();
  const { mmio } = rig;
  const at = (offset: number, width: number) =>
    mmio.read(VIRTIO_MMIO_CONFIG + offset, width);
  assertEquals(at(0, 1), 0xa0);
  assertEquals(at(2, 2), 0xa3a2);
  assertEquals(at(4, 4), 0xa7a6a5a4);
  assertEquals(at(8, 4), 0xabaaa9a8);
  assertEquals(at(11, 1), 0xab);
  assertEquals(rig.allFaults, []);
  for (const [offset, width] of [[9, 4], [11, 2], [12, 1], [0, 8], [0, 3]]) {
    assertEquals(at(offset!, width!), 0);
  }
  assertEquals(rig.faults("mmio_bad_read"), 5);
  assertEquals(rig.registers.readConfig(12), rig.model.config);
});

Deno.test("MmioTransport writes configuration space where the device takes it", () => {
  const rig = new MmioRig();
  rig.mmio.write(VIRTIO_MMIO_CONFIG + 4, 4, 0x04030201);
  rig.mmio.write(VIRTIO_MMIO_CONFIG + 9, 2, 0xfffe);
  rig.mmio.write(VIRTIO_MMIO_CONFIG + 1, 1, 0x155);
  assertEquals(rig.model.events.slice(-3), [
    "config 4: 1,2,3,4",
    "config 9: 254,255",
    "config 1: 85",
  ]);
  rig.mmio.write(VIRTIO_MMIO_CONFIG + 12, 1, 1);
  rig.mmio.write(VIRTIO_MMIO_CONFIG + 8, 8, 1);
  assertEquals(rig.faults("mmio_bad_write"), 2);
});

Deno.test("MmioTransport has no shared memory regions", () => {
  const { registers } = new MmioRig();
  for (const region of [0, 1, 255]) {
    registers.set(VIRTIO_MMIO_SHM_SEL, region);
    for (
      const offset of [
        VIRTIO_MMIO_SHM_LEN_LOW,
        VIRTIO_MMIO_SHM_LEN_HIGH,
        VIRTIO_MMIO_SHM_BASE_LOW,
        VIRTIO_MMIO_SHM_BASE_HIGH,
      ]
    ) {
      assertEquals(registers.get(offset), 0xffffffff);
    }
  }
});

Deno.test("MmioTransport counts and ignores what is no access to a register", () => {
  const rig = started("split");
  const { mmio, virtio } = rig;
  const bad: [number, number][] = [
    [VIRTIO_MMIO_STATUS, 1],
    [VIRTIO_MMIO_STATUS, 2],
    [VIRTIO_MMIO_STATUS, 8],
    [VIRTIO_MMIO_STATUS + 2, 4],
    [VIRTIO_MMIO_QUEUE_NOTIFY, 4],
    [0x018, 4],
    [0x0c4, 4],
    [0x0f8, 4],
    [-4, 4],
    [NaN, 4],
    [0.5, 4],
    [VIRTIO_MMIO_CONFIG + 0.5, 1],
    [Infinity, 4],
  ];
  for (const [offset, width] of bad) assertEquals(mmio.read(offset, width), 0);
  assertEquals(rig.faults("mmio_bad_read"), bad.length);
  for (const [offset, width] of bad) {
    if (offset !== VIRTIO_MMIO_QUEUE_NOTIFY) mmio.write(offset, width, 0);
  }
  mmio.write(VIRTIO_MMIO_MAGIC_VALUE, 4, 0);
  mmio.write(VIRTIO_MMIO_INTERRUPT_STATUS, 4, 0);
  assertEquals(rig.faults("mmio_bad_write"), bad.length + 1);
  assertEquals(virtio.status & VIRTIO_CONFIG_S_DRIVER_OK, 4);
});

Deno.test("MmioTransport ignores notifications that name no queue", () => {
  const rig = started("packed");
  for (const value of [2, 0xffff, 0x10000, 0xffffffff]) {
    rig.registers.set(VIRTIO_MMIO_QUEUE_NOTIFY, value);
  }
  assertEquals(rig.faults("notification_unknown"), 4);
});

Deno.test("MmioTransport refuses to carry VIRTIO_F_NOTIF_CONFIG_DATA, for which it has no register", () => {
  assertThrows(
    () => new MmioRig({ notifConfigData: [5, 6] }),
    TypeError,
    "Cannot carry the device by virtio-mmio: it offers feature bit 39",
  );
});

for (const format of FORMATS) {
  Deno.test(`VirtioDevice offers VIRTIO_F_IN_ORDER and VIRTIO_F_ORDER_PLATFORM where it is told: ${format}`, () => {
    const accept = [VIRTIO_F_IN_ORDER, VIRTIO_F_ORDER_PLATFORM];
    const rig = started(format, { inOrder: true, orderPlatform: true, accept });
    for (let round = 0; round < 20; round++) {
      const texts = ["a", "b", "c"].slice(round % 3);
      for (const text of texts) rig.send(0, text);
      assertEquals(rig.receive(0), texts);
    }
    // A device that does not keep the order is told so by its queue.
    rig.model.hold = true;
    for (const text of ["a", "b"]) rig.send(0, text);
    rig.model.process();
    assertThrows(() => rig.model.finish(1), RangeError, "VIRTIO_F_IN_ORDER");
    assertEquals(rig.allFaults, []);
    const plain = new VirtioDevice(new EchoDevice([8]));
    assertEquals(plain.offeredFeatures & featureBits(...accept), 0n);
  });
}

Deno.test("MmioTransport ignores QueueReset without VIRTIO_F_RING_RESET", () => {
  const rig = started("packed", { ringReset: true });
  assertEquals(rig.registers.resetQueue(0), false);
  assertEquals(rig.faults("queue_reset_refused"), 1);
  rig.registers.set(VIRTIO_MMIO_QUEUE_RESET, 2);
  assertEquals(rig.faults("mmio_queue_refused"), 1);
  rig.send(0, "on");
  assertEquals(rig.receive(0), ["on"]);
});

/** Numbers from a seed (xorshift32). */
function* numbers(seed: number): Generator<number, never> {
  let x = seed >>> 0 || 1;
  for (;;) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    yield x >>> 0;
  }
}

for (
  const [what, options] of [
    ["queue state", { queueState: true, suspend: true }],
    ["queue reset", { ringReset: true, notificationData: true, suspend: true }],
  ] as const
) {
  Deno.test(`MmioTransport throws for nothing that a guest does to its registers: ${what}`, () => {
    const values = [0, 1, 2, 3, 4, 7, 8, 11, 15, 16, 31, 64, 128, 255];
    for (let seed = 1; seed <= 60; seed++) {
      const format = seed % 2 === 0 ? "packed" : "split";
      const rig = new MmioRig({
        ...options,
        format,
        accept: seed % 4 < 2 ? [40, 43] : [],
      });
      const next = numbers(seed * 0x9e3779b1);
      const number = (below: number) => next.next().value % below;
      if (number(4) > 0) {
        rig.start([initialWords(format), initialWords(format)]);
      }
      const memory = rig.memory.bytes(0x1000_0000, 0x400);
      for (let step = 0; step < 1500; step++) {
        const offset = number(16) === 0 ? number(0x120) : 4 * number(0x48);
        const width = number(16) === 0 ? number(9) : 4;
        const kind = number(6);
        const value = kind < 3
          ? values[number(values.length)]!
          : kind === 3
          ? number(0x10000)
          : kind === 4
          ? 0x1000_0000 + 16 * number(0x4100)
          : next.next().value;
        if (number(3) === 0) {
          const read = rig.mmio.read(offset, width);
          assert(
            Number.isInteger(read) && read >= 0 && read <= 0xffffffff,
            `seed ${seed}: ${read} at ${offset}`,
          );
        } else {
          rig.mmio.write(offset, width, value);
        }
        // Now and then a driver that knows what it does, or one that spoils its rings.
        if (number(200) === 0) {
          rig.start([initialWords(format), initialWords(format)]);
        }
        if (number(100) === 0) memory[number(memory.length)] = number(256);
        if (number(8) === 0) rig.model.process();
        rig.model.hold = number(50) === 0 ? !rig.model.hold : rig.model.hold;
        assertEquals(rig.line, rig.mmio.interruptLevel);
      }
      // Whatever was done, a reset and a proper start make a device that works.
      rig.model.hold = false;
      rig.memory.bytes(0x1000_0000, 0x400).fill(0);
      const good = new MmioRig({ ...options, format, accept: [] });
      rig.registers.reset();
      assert(rig.registers.accept(good.features), `seed ${seed}`);
      for (const [index, areas] of good.areas.entries()) {
        assert(rig.registers.setupQueue(index, areas), `seed ${seed}`);
      }
      rig.memory = good.memory;
      rig.registers.driverOk();
      good.send(1, "well");
      rig.model.process();
      assertEquals(good.receive(1), ["well"], `seed ${seed}`);
    }
  });
}
