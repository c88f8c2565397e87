import { assert, assertEquals, assertThrows } from "@std/assert";
import { featureBits } from "../props/guest/mmio_driver.ts";
import {
  EchoDevice,
  initialWords,
  MmioRig,
  type MmioRigOptions,
} from "../props/guest/mmio_rig.ts";
import { GuestMemory } from "../ring/memory.ts";
import { encodeNotificationData } from "../ring/notify.ts";
import type { RingFormat } from "../ring/queue.ts";
import {
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_ORDER_PLATFORM,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_RING_RESET,
  VIRTIO_F_VERSION_1,
} from "../ring/virtio_ring.ts";
import { MmioTransport } from "./mmio.ts";
import { VIRTIO_F_SUSPEND } from "./transport_features.ts";
import {
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FAILED,
  VIRTIO_CONFIG_S_FEATURES_OK,
  VIRTIO_CONFIG_S_NEEDS_RESET,
  VIRTIO_CONFIG_S_SUSPEND,
  VirtioDevice,
} from "./virtio_device.ts";
import {
  VIRTIO_MMIO_CONFIG,
  VIRTIO_MMIO_CONFIG_GENERATION,
  VIRTIO_MMIO_DEVICE_FEATURES,
  VIRTIO_MMIO_DEVICE_FEATURES_SEL,
  VIRTIO_MMIO_DEVICE_ID,
  VIRTIO_MMIO_DRIVER_FEATURES,
  VIRTIO_MMIO_DRIVER_FEATURES_SEL,
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

Deno.test("MmioTransport offers features by words of 32 bits", () => {
  const { registers, virtio } = new MmioRig();
  assertEquals(registers.offeredFeatures(), virtio.offeredFeatures);
  for (const word of [4, 5, 0xffffffff]) {
    registers.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, word);
    assertEquals(registers.get(VIRTIO_MMIO_DEVICE_FEATURES), 0);
  }
});

Deno.test("MmioTransport does not take FEATURES_OK for features that were not offered", () => {
  const refused = (write: (rig: MmioRig) => void) => {
    const rig = new MmioRig({ ring: "split" });
    write(rig);
    rig.registers.addStatus(VIRTIO_CONFIG_S_FEATURES_OK);
    assertEquals(rig.registers.status & VIRTIO_CONFIG_S_FEATURES_OK, 0);
    assertEquals(rig.faults("features_refused"), 1);
    // A reset makes a clean start.
    rig.registers.reset();
    assert(rig.registers.accept(featureBits(VIRTIO_F_VERSION_1)));
  };
  const accept = (features: bigint) => (rig: MmioRig) => {
    assert(!rig.registers.accept(features));
    rig.virtio.diagnostics.counters.clear();
  };
  refused(accept(0n));
  refused(accept(featureBits(VIRTIO_F_VERSION_1, VIRTIO_F_RING_PACKED)));
  refused(accept(featureBits(VIRTIO_F_VERSION_1, VIRTIO_F_RING_RESET)));
  refused(accept(featureBits(VIRTIO_F_VERSION_1, 127)));
  refused((rig) => {
    for (const [word, bits] of [[1, 1], [0x8000_0000, 4], [7, 0]] as const) {
      rig.registers.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, word);
      rig.registers.set(VIRTIO_MMIO_DRIVER_FEATURES, bits);
    }
  });
});

Deno.test("MmioTransport freezes the features at FEATURES_OK", () => {
  const rig = new MmioRig();
  rig.negotiate();
  rig.registers.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
  rig.registers.set(VIRTIO_MMIO_DRIVER_FEATURES, 0xff);
  assertEquals(rig.virtio.features, rig.features);
  assertEquals(rig.faults("mmio_features_refused"), 1);
});

for (const format of FORMATS) {
  Deno.test(`MmioTransport carries a driver from probe to traffic: ${format}`, () => {
    const rig = new MmioRig({ format, sizes: [8, 4, 16] });
    const { registers } = rig;
    assertEquals(registers.probe(), 63);
    registers.reset();
    rig.negotiate();
    for (const [index, areas] of rig.areas.entries()) {
      assertEquals(registers.queueReady(index), false);
      assertEquals(registers.maxQueueSize(index), areas.size);
      assert(registers.setupQueue(index, areas));
    }
    assertEquals(registers.maxQueueSize(3), 0);
    // Before DRIVER_OK nothing is consumed and nothing told (2.1.2).
    rig.send(2, "early");
    assertEquals(rig.receive(2), []);
    assertEquals(rig.line, false);
    registers.driverOk();
    assertEquals(rig.receive(2), ["early"]);
    for (let i = 0; i < 100; i++) {
      rig.send(i % 3, `text ${i}`);
      assertEquals(rig.receive(i % 3), [`text ${i}`]);
    }
    assertGreaterThanZero(rig.edges);
    assertEquals(rig.allFaults, []);
  });
}

function assertGreaterThanZero(value: number): void {
  assert(value > 0, `${value}`);
}

Deno.test("MmioTransport does not start a queue that is not ready", () => {
  for (const format of FORMATS) {
    const rig = new MmioRig({ format });
    rig.negotiate();
    assert(rig.registers.setupQueue(0, rig.areas[0]!));
    rig.registers.driverOk();
    rig.send(1, "nobody listens");
    assertEquals(rig.receive(1), []);
    // It may become ready later.
    assert(rig.registers.setupQueue(1, rig.areas[1]!));
    assertEquals(rig.receive(1), ["nobody listens"]);
  }
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

Deno.test("MmioTransport changes ConfigGeneration with the configuration", () => {
  const rig = started("split");
  const before = rig.registers.get(VIRTIO_MMIO_CONFIG_GENERATION);
  rig.model.config[0] = 1;
  rig.virtio.notifyConfig();
  assert(rig.registers.get(VIRTIO_MMIO_CONFIG_GENERATION) !== before);
  assertEquals(rig.registers.takeInterrupt(), 2);
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

Deno.test("MmioTransport takes notifications with data where VIRTIO_F_NOTIFICATION_DATA was negotiated", () => {
  for (const format of FORMATS) {
    const rig = started(format, {
      notificationData: true,
      accept: [VIRTIO_F_NOTIFICATION_DATA],
    });
    const kicks: number[] = [];
    rig.model.queueKicked = (index?: number) => kicks.push(index!);
    // Split: the available index, whose top bit is next_wrap. Packed: position and wrap counter.
    for (let i = 0; i < 20; i++) {
      rig.send(i % 2, `kick ${i}`);
      assertEquals(rig.receive(i % 2), [`kick ${i}`]);
    }
    assert(kicks.length >= 2);
    assertEquals(rig.allFaults, []);
    kicks.length = 0;
    const kick = (queue: number, nextOff: number, nextWrap: 0 | 1) =>
      rig.registers.kick(encodeNotificationData({ queue, nextOff, nextWrap }));
    kick(1, 7, 1);
    kick(0, 0, 0);
    kick(1, 8, 0);
    assertEquals(kicks, [1, 0, 1]);
    assertEquals(
      rig.faults("notification_position"),
      format === "packed" ? 1 : 0,
    );
    kick(2, 0, 0);
    assertEquals(rig.faults("notification_unknown"), 1);
  }
});

Deno.test("MmioTransport refuses to carry VIRTIO_F_NOTIF_CONFIG_DATA, for which it has no register", () => {
  assertThrows(
    () => new MmioRig({ notifConfigData: [5, 6] }),
    TypeError,
    "Cannot carry the device by virtio-mmio: it offers feature bit 39",
  );
});

for (const format of FORMATS) {
  Deno.test(`MmioTransport resets one queue alone where VIRTIO_F_RING_RESET was negotiated: ${format}`, () => {
    const rig = started(format, {
      ringReset: true,
      accept: [VIRTIO_F_RING_RESET],
    });
    rig.send(0, "one");
    rig.send(1, "uno");
    assertEquals([rig.receive(0), rig.receive(1)], [["one"], ["uno"]]);
    rig.model.hold = true;
    rig.send(0, "held");
    rig.model.process();
    assertEquals(rig.model.held.length, 1);
    assert(rig.registers.resetQueue(0));
    assertEquals(rig.model.held.length, 0);
    assertEquals(rig.model.events.at(-1), "stop 0");
    rig.model.hold = false;
    // No access to its memory, and no notification for it.
    const { descriptorArea, driverArea, deviceArea } = rig.areas[0]!;
    rig.memory.bytes(descriptorArea, 128).fill(0xee);
    rig.memory.bytes(deviceArea, 4).fill(0xee);
    rig.registers.takeInterrupt();
    rig.registers.kick(0);
    rig.model.process();
    assertEquals(rig.memory.bytes(descriptorArea, 128).every(isEe), true);
    assertEquals(rig.memory.bytes(deviceArea, 4).every(isEe), true);
    assertEquals(rig.line, false);
    // The other queue goes on.
    rig.send(1, "due");
    assertEquals(rig.receive(1), ["due"]);
    // Enabled again, in the default state, with another size, over rings that were cleared.
    const areas = { ...rig.areas[0]!, size: 4 };
    for (const area of [descriptorArea, driverArea, deviceArea]) {
      rig.memory.bytes(area, area === descriptorArea ? 128 : 4).fill(0);
    }
    assert(rig.registers.setupQueue(0, areas));
    assertEquals(rig.virtio.queueSetup(0).size, 4);
    // The driver is the one from before: what was agreed with it stands.
    assertEquals(rig.model.events.at(-1), "start 0");
    rig.replaceQueue(0, areas);
    for (let i = 0; i < 9; i++) {
      rig.send(0, `again ${i}`);
      assertEquals(rig.receive(0), [`again ${i}`]);
    }
    assertEquals(rig.allFaults, []);
  });
}

function isEe(byte: number): boolean {
  return byte === 0xee;
}

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

Deno.test("MmioTransport repairs a queue that its driver broke by QueueReset", () => {
  const rig = started("split", {
    ringReset: true,
    accept: [VIRTIO_F_RING_RESET],
    sizes: [8, 8],
  });
  const { driverArea, descriptorArea, deviceArea } = rig.areas[0]!;
  // An available index that no driver can have come to.
  new DataView(rig.memory.bytes(driverArea, 4).buffer)
    .setUint16(driverArea - 0x1000_0000 + 2, 100, true);
  rig.registers.kick(0);
  assertEquals(rig.receive(1), []);
  assertEquals(rig.faults("ring_avail_idx_jump"), 1);
  assertEquals(rig.registers.status & VIRTIO_CONFIG_S_NEEDS_RESET, 64);
  assert(rig.registers.resetQueue(0));
  rig.memory.bytes(driverArea, 22).fill(0);
  rig.memory.bytes(deviceArea, 70).fill(0);
  rig.memory.bytes(descriptorArea, 128).fill(0);
  assert(rig.registers.setupQueue(0, rig.areas[0]!));
  rig.replaceQueue(0, rig.areas[0]!);
  rig.send(0, "repaired");
  assertEquals(rig.receive(0), ["repaired"]);
});

Deno.test("MmioTransport ignores QueueReset without VIRTIO_F_RING_RESET", () => {
  const rig = started("packed", { ringReset: true });
  assertEquals(rig.registers.resetQueue(0), false);
  assertEquals(rig.faults("queue_reset_refused"), 1);
  rig.registers.set(VIRTIO_MMIO_QUEUE_RESET, 2);
  assertEquals(rig.faults("mmio_queue_refused"), 1);
  rig.send(0, "on");
  assertEquals(rig.receive(0), ["on"]);
});

for (const format of FORMATS) {
  Deno.test(`MmioTransport suspends and resumes a device where VIRTIO_F_SUSPEND was negotiated: ${format}`, () => {
    const rig = started(format, { suspend: true, accept: [VIRTIO_F_SUSPEND] });
    rig.send(0, "one");
    assertEquals(rig.receive(0), ["one"]);
    rig.model.hold = true;
    rig.send(0, "two");
    rig.model.process();
    assert(rig.registers.suspend());
    assertEquals(
      rig.registers.status,
      VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER |
        VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_SUSPEND,
    );
    rig.model.hold = false;
    // No notification, no access to queues, no change of the configuration that is told.
    rig.registers.takeInterrupt();
    const generation = rig.registers.get(VIRTIO_MMIO_CONFIG_GENERATION);
    const ring = rig.memory.bytes(rig.areas[0]!.deviceArea, 4).slice();
    rig.registers.kick(0);
    rig.model.process();
    rig.virtio.notifyConfig();
    rig.virtio.interrupt(0);
    rig.mmio.write(VIRTIO_MMIO_CONFIG, 1, 7);
    assertEquals(rig.line, false);
    assertEquals(
      rig.registers.get(VIRTIO_MMIO_CONFIG_GENERATION),
      generation,
    );
    assertEquals(rig.memory.bytes(rig.areas[0]!.deviceArea, 4), ring);
    assertEquals(rig.model.config[0], 0xa0);
    // The queues stay ready, and SUSPEND set once more changes nothing.
    assert(rig.registers.queueReady(0));
    assert(rig.registers.suspend());
    rig.registers.driverOk();
    assertEquals(rig.registers.status & VIRTIO_CONFIG_S_SUSPEND, 0);
    assertEquals(
      rig.registers.status & VIRTIO_CONFIG_S_DRIVER_OK,
      VIRTIO_CONFIG_S_DRIVER_OK,
    );
    // What was held back is told now.
    assertEquals(rig.registers.takeInterrupt() & 2, 2);
    assertEquals(rig.receive(0), ["two"]);
    assertEquals(rig.model.events.at(-1), "start 1");
    assertEquals(rig.allFaults, ["mmio_bad_write"]);
  });
}

Deno.test("MmioTransport ignores SUSPEND before DRIVER_OK and without VIRTIO_F_SUSPEND", () => {
  const rig = new MmioRig({ suspend: true, accept: [VIRTIO_F_SUSPEND] });
  rig.negotiate();
  assertEquals(rig.registers.suspend(), false);
  rig.setUp();
  // Both at once: the device is not initialized yet.
  rig.registers.addStatus(VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_SUSPEND);
  assertEquals(rig.registers.status, 15);
  rig.send(0, "on");
  assertEquals(rig.receive(0), ["on"]);
  const without = started("split", { suspend: true });
  assertEquals(without.registers.suspend(), false);
  assertEquals(without.faults("suspend_refused"), 1);
  without.send(0, "on");
  assertEquals(without.receive(0), ["on"]);
});

Deno.test("MmioTransport sets DEVICE_NEEDS_RESET where the device fails to suspend", () => {
  const rig = started("split", { suspend: true, accept: [VIRTIO_F_SUSPEND] });
  rig.model.hold = true;
  rig.model.clings = true;
  rig.send(0, "held");
  rig.model.process();
  assertEquals(rig.registers.suspend(), false);
  assertEquals(rig.registers.status & VIRTIO_CONFIG_S_NEEDS_RESET, 64);
  assertEquals(rig.registers.takeInterrupt() & 2, 2);
  assertEquals(rig.faults("suspend_failed"), 1);
});

Deno.test("MmioTransport goes on when guest memory moves between two accesses", () => {
  for (const format of FORMATS) {
    const rig = started(format);
    rig.model.hold = true;
    rig.send(0, "in the air");
    rig.model.process();
    const [region] = rig.memory.regions;
    // The same bytes in two regions, as other objects.
    rig.memory = new GuestMemory([0, 1].map((half) => ({
      guestAddress: region!.guestAddress + half * region!.size / 2,
      size: region!.size / 2,
      buffer: region!.bytes.buffer,
      byteOffset: half * region!.size / 2,
    })));
    rig.mmio.read(VIRTIO_MMIO_STATUS, 4);
    assertEquals(rig.model.events.at(-1), "memory");
    assertEquals(rig.model.held.length, 0);
    rig.model.hold = false;
    assertEquals(rig.receive(0), ["in the air"]);
    rig.send(0, "landed");
    assertEquals(rig.receive(0), ["landed"]);
    assertEquals(rig.allFaults, []);
  }
});

Deno.test("MmioTransport goes on when the buffer of guest memory is detached", () => {
  for (const format of FORMATS) {
    const rig = started(format);
    rig.send(0, "before");
    assertEquals(rig.receive(0), ["before"]);
    rig.send(0, "on the way");
    // As WebAssembly.Memory.grow() does: what the driver knows as memory is elsewhere now.
    const buffer = rig.memory.regions[0]!.bytes.buffer as ArrayBuffer;
    const moved = buffer.transfer();
    rig.memory = new GuestMemory([{
      guestAddress: 0x1000_0000,
      size: moved.byteLength,
      buffer: moved,
    }]);
    rig.registers.kick(0);
    rig.mmio.syncMemory();
    rig.model.process();
    assertEquals(rig.line, true);
    const used = new DataView(moved);
    const { deviceArea, descriptorArea } = rig.areas[0]!;
    // Both buffers are used: by the index, or by the flags of the third descriptor.
    if (format === "split") {
      assertEquals(used.getUint16(deviceArea - 0x1000_0000 + 2, true), 2);
    } else {
      const flags = descriptorArea - 0x1000_0000 + 2 * 16 + 14;
      assertEquals(used.getUint16(flags, true) & 0x8080, 0x8080);
    }
    assertEquals(rig.allFaults, []);
  }
});

Deno.test("MmioTransport breaks a queue that is not inside the memory any more", () => {
  const rig = started("split");
  rig.memory = new GuestMemory([]);
  assertEquals(
    rig.registers.status & VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_CONFIG_S_NEEDS_RESET,
  );
  assertEquals(rig.faults("ring_bad_queue_address"), 2);
  rig.registers.kick(0);
  rig.model.process();
  rig.registers.reset();
  assertEquals(rig.registers.status, 0);
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
