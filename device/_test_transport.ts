// The tests that hold for every register transport: mmio_test.ts and pci_test.ts register them.
import { assert, assertEquals, assertGreater, assertThrows } from "@std/assert";
import {
  initialWords,
  type RegisterRig,
  type RigOptions,
} from "../props/guest/register_rig.ts";
import { featureBits } from "../props/guest/register_driver.ts";
import { GuestMemory } from "../ring/memory.ts";
import { encodeNotificationData } from "../ring/notify.ts";
import type { RingFormat } from "../ring/queue.ts";
import {
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_RING_RESET,
  VIRTIO_F_VERSION_1,
} from "../ring/virtio_ring.ts";
import { followMemory } from "./emulator.ts";
import { checksum, type Plain, SnapshotError } from "./snapshot.ts";
import {
  VIRTIO_F_QUEUE_STATE,
  VIRTIO_F_SUSPEND,
} from "./transport_features.ts";
import {
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FAILED,
  VIRTIO_CONFIG_S_FEATURES_OK,
  VIRTIO_CONFIG_S_NEEDS_RESET,
  VIRTIO_CONFIG_S_SUSPEND,
} from "./virtio_device.ts";

const FORMATS = ["split", "packed"] as const;
const MEMORY_START = 0x1000_0000;

/**
 * Registers the tests of transport `name`, whose counters begin with `prefix`, by `test`. Every `stride`th
 * access of a driver is one between which it is moved.
 */
export function testTransport(
  test: Test,
  name: string,
  prefix: string,
  make: (options: RigOptions) => RegisterRig,
  stride = 1,
): void {
  function started(format: RingFormat, more: RigOptions = {}): RegisterRig {
    const rig = make({ format, ...more });
    rig.start();
    return rig;
  }

  test(`${name} offers features by words of 32 bits`, () => {
    const { registers, virtio } = make({});
    assertEquals(registers.offeredFeatures(), virtio.offeredFeatures);
    for (const word of [4, 5, 0xffffffff]) {
      assertEquals(registers.readDeviceFeatures(word), 0);
    }
  });

  test(`${name} does not take FEATURES_OK for features that were not offered`, () => {
    const refused = (write: (rig: RegisterRig) => void) => {
      const rig = make({ ring: "split" });
      write(rig);
      rig.registers.addStatus(VIRTIO_CONFIG_S_FEATURES_OK);
      assertEquals(rig.registers.status & VIRTIO_CONFIG_S_FEATURES_OK, 0);
      assertEquals(rig.faults("features_refused"), 1);
      // A reset makes a clean start.
      rig.registers.reset();
      assert(rig.registers.accept(featureBits(VIRTIO_F_VERSION_1)));
    };
    const accept = (features: bigint) => (rig: RegisterRig) => {
      assert(!rig.registers.accept(features));
      rig.virtio.diagnostics.counters.clear();
    };
    refused(accept(0n));
    refused(accept(featureBits(VIRTIO_F_VERSION_1, VIRTIO_F_RING_PACKED)));
    refused(accept(featureBits(VIRTIO_F_VERSION_1, VIRTIO_F_RING_RESET)));
    refused(accept(featureBits(VIRTIO_F_VERSION_1, 127)));
    refused(({ registers }) => {
      registers.writeDriverFeatures(1, 1);
      registers.writeDriverFeatures(0x8000_0000, 4);
      registers.writeDriverFeatures(7, 0);
    });
  });

  test(`${name} freezes the features at FEATURES_OK`, () => {
    const rig = make({});
    rig.negotiate();
    rig.registers.writeDriverFeatures(0, 0xff);
    assertEquals(rig.virtio.features, rig.features);
    assertEquals(rig.faults(`${prefix}_features_refused`), 1);
  });

  for (const format of FORMATS) {
    test(`${name} carries a driver from probe to traffic: ${format}`, () => {
      const rig = make({ format, sizes: [8, 4, 16] });
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
      assertGreater(rig.edges, 0);
      assertEquals(rig.allFaults, []);
    });
  }

  test(`${name} does not start a queue that is not ready`, () => {
    for (const format of FORMATS) {
      const rig = make({ format });
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

  test(`${name} freezes a queue while it is ready`, () => {
    const rig = started("split");
    rig.registers.setupQueue(0, {
      size: 4,
      descriptorArea: 0x1_0000_0000,
      driverArea: 0,
      deviceArea: 0,
    });
    // The size and six halves of addresses.
    assertEquals(rig.faults(`${prefix}_queue_refused`), 7);
    assertEquals(rig.virtio.queueSetup(0), rig.areas[0]);
    rig.send(0, "unmoved");
    assertEquals(rig.receive(0), ["unmoved"]);
  });

  test(`${name} clears everything of the driver upon reset`, () => {
    const rig = started("packed");
    rig.send(0, "x");
    rig.model.process();
    assertEquals(rig.line, true);
    rig.registers.reset();
    assertEquals(rig.line, false);
    assertEquals(rig.registers.takeInterrupt(), 0);
    assertEquals(rig.registers.queueReady(0), false);
    assertEquals(rig.registers.queueReady(1), false);
    assertEquals(rig.registers.status, 0);
    assertEquals(rig.model.events.at(-1), "reset");
    assertEquals(rig.registers.accept(0n), false);
  });

  test(`${name} sets status bits one after the other and keeps them`, () => {
    const { registers } = make({});
    registers.writeStatus(VIRTIO_CONFIG_S_ACKNOWLEDGE);
    registers.writeStatus(VIRTIO_CONFIG_S_DRIVER);
    assertEquals(registers.status, 3);
    registers.writeStatus(VIRTIO_CONFIG_S_FAILED);
    assertEquals(registers.status, 131);
    // The device's own bits are not the driver's to set.
    registers.writeStatus(VIRTIO_CONFIG_S_NEEDS_RESET);
    assertEquals(registers.status, 131);
  });

  test(`${name} changes its generation with the configuration`, () => {
    const rig = started("split");
    const before = rig.registers.configGeneration;
    rig.model.config[0] = 1;
    rig.virtio.notifyConfig();
    assertEquals(rig.registers.takeInterrupt(), 2);
    assertEquals(rig.registers.readConfig(12), rig.model.config);
    assert(rig.registers.configGeneration !== before);
  });

  test(`${name} takes notifications with data where VIRTIO_F_NOTIFICATION_DATA was negotiated`, () => {
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
      assertGreater(kicks.length, 1);
      assertEquals(rig.allFaults, []);
      kicks.length = 0;
      const kick = (queue: number, nextOff: number, nextWrap: 0 | 1) =>
        rig.registers.kick(
          encodeNotificationData({ queue, nextOff, nextWrap }),
          queue,
        );
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

  for (const format of FORMATS) {
    test(`${name} resets one queue alone where VIRTIO_F_RING_RESET was negotiated: ${format}`, () => {
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
      assertEquals(rig.registers.maxQueueSize(0), 8);
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

    test(`${name} suspends and resumes a device where VIRTIO_F_SUSPEND was negotiated: ${format}`, () => {
      const rig = started(format, {
        suspend: true,
        accept: [VIRTIO_F_SUSPEND],
      });
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
      const generation = rig.registers.configGeneration;
      const ring = rig.memory.bytes(rig.areas[0]!.deviceArea, 4).slice();
      rig.registers.kick(0);
      rig.model.process();
      rig.virtio.notifyConfig();
      rig.virtio.interrupt(0);
      rig.registers.writeConfigField(0, 1, 7);
      assertEquals(rig.line, false);
      assertEquals(rig.registers.configGeneration, generation);
      assertEquals(rig.memory.bytes(rig.areas[0]!.deviceArea, 4), ring);
      assertEquals(rig.model.config[0], 0xa0);
      // The queues stay ready, and SUSPEND set once more changes nothing.
      assert(rig.registers.queueReady(0));
      assert(rig.registers.suspend());
      // Nor does a move to another device: what is due then is due there.
      rig.migrate();
      rig.registers.takeInterrupt();
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
    });
  }

  test(`${name} ignores SUSPEND before DRIVER_OK and without VIRTIO_F_SUSPEND`, () => {
    const rig = make({ suspend: true, accept: [VIRTIO_F_SUSPEND] });
    rig.negotiate();
    assertEquals(rig.registers.suspend(), false);
    rig.setUp();
    // Both at once: the device is not initialized yet.
    rig.registers.addStatus(
      VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_SUSPEND,
    );
    assertEquals(rig.registers.status, 15);
    rig.send(0, "on");
    assertEquals(rig.receive(0), ["on"]);
    const without = started("split", { suspend: true });
    assertEquals(without.registers.suspend(), false);
    assertEquals(without.faults("suspend_refused"), 1);
    without.send(0, "on");
    assertEquals(without.receive(0), ["on"]);
  });

  test(`${name} sets DEVICE_NEEDS_RESET where the device fails to suspend`, () => {
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

  test(`${name} repairs a queue that its driver broke by a reset of the queue`, () => {
    const rig = started("split", {
      ringReset: true,
      accept: [VIRTIO_F_RING_RESET],
      sizes: [8, 8],
    });
    const { driverArea, descriptorArea, deviceArea } = rig.areas[0]!;
    // An available index that no driver can have come to.
    rig.memory.bytes(driverArea, 4).set([100, 0], 2);
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

  test(`${name} ignores a reset of a queue without VIRTIO_F_RING_RESET`, () => {
    const rig = started("packed", { ringReset: true });
    assertEquals(rig.registers.resetQueue(0), false);
    assertEquals(rig.faults("queue_reset_refused"), 1);
    rig.send(0, "on");
    assertEquals(rig.receive(0), ["on"]);
  });

  test(`${name} carries the virtqueue state facility where VIRTIO_F_QUEUE_STATE is offered, and tells none otherwise`, () => {
    for (const format of FORMATS) {
      const accept = [VIRTIO_F_QUEUE_STATE];
      const rig = make({ format, queueState: true, accept });
      const { registers } = rig;
      const initial = initialWords(format);
      // Nothing was kept, and nothing can be set yet.
      assertEquals(registers.queueState(0), null);
      registers.setQueueState(0, initial);
      // A field that is read by bytes is counted for each.
      assertGreater(rig.faults(`${prefix}_state_refused`), 3);
      rig.start([initial, initial]);
      rig.send(1, "x");
      assertEquals(rig.receive(1), ["x"]);
      assertEquals(registers.queueState(1), null);
      registers.reset();
      const after = format === "split"
        ? { available: 1, used: 0 }
        : { available: 0x8002, used: 0x8002 };
      assertEquals(rig.states(), [initial, after]);
      assertEquals(registers.queueState(2), null);
      rig.negotiate();
      rig.setUp([initial, after]);
      const before = rig.faults(`${prefix}_state_refused`);
      registers.setQueueState(1, { available: 0x10000, used: 0x12345 });
      assertEquals(rig.faults(`${prefix}_state_refused`), before + 2);
      registers.driverOk();
      rig.send(1, "on");
      assertEquals(rig.receive(1), ["on"]);
      // Not offered: its driver finds no words.
      const without = started(format);
      without.registers.reset();
      assertEquals(without.registers.queueState(0), null);
    }
  });

  testMemory(test, name, make, started);
  testSnapshots(test, name, make, started, stride);
}

type Test = (name: string, body: () => void) => void;
type Started = (format: RingFormat, more?: RigOptions) => RegisterRig;
type Make = (options: RigOptions) => RegisterRig;

function testMemory(
  test: Test,
  name: string,
  make: Make,
  started: Started,
): void {
  test(`${name} goes on when guest memory moves between two accesses`, () => {
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
      assertEquals(rig.registers.status & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
      assertEquals(rig.model.events.at(-1), "memory");
      assertEquals(rig.model.held.length, 0);
      rig.model.hold = false;
      assertEquals(rig.receive(0), ["in the air"]);
      rig.send(0, "landed");
      assertEquals(rig.receive(0), ["landed"]);
      assertEquals(rig.allFaults, []);
    }
  });

  test(`${name} goes on when a WebAssembly memory grows under it, between any two accesses`, () => {
    for (const format of FORMATS) {
      const rig = make({ format });
      // Guest memory begins in the middle of what the emulator has. The driver's is another one, so that it
      // need not follow; its bytes are carried over each time that the device gets to work.
      const OFFSET = 0x3210;
      const { bytes, size } = rig.memory.regions[0]!;
      const wasm = new WebAssembly.Memory({ initial: 8 });
      rig.deviceMemory = followMemory(() => ({
        guestAddress: MEMORY_START,
        size,
        buffer: wasm.buffer,
        byteOffset: OFFSET,
      }));
      assert(rig.deviceMemory() === rig.deviceMemory());
      let grown = 0;
      rig.enter = () => {
        const { buffer } = wasm;
        wasm.grow(1);
        assertEquals(buffer.byteLength, 0);
        grown++;
        new Uint8Array(wasm.buffer, OFFSET, size).set(bytes);
      };
      rig.leave = () => bytes.set(new Uint8Array(wasm.buffer, OFFSET, size));
      rig.start();
      for (let i = 0; i < 12; i++) {
        rig.send(i % 2, `text ${i}`);
        assertEquals(rig.receive(i % 2), [`text ${i}`]);
      }
      // Also while the device has a buffer in its hands.
      rig.model.hold = true;
      rig.send(0, "held");
      rig.work();
      assertEquals(rig.model.held.length, 1);
      rig.model.hold = false;
      assertEquals(rig.receive(0), ["held"]);
      assertGreater(grown, 40);
      assertEquals(rig.allFaults, []);
    }
  });

  test(`${name} tells an emulator that its memory is detached, and goes on once it has another`, () => {
    for (const format of FORMATS) {
      const rig = started(format);
      rig.send(0, "before");
      assertEquals(rig.receive(0), ["before"]);
      rig.send(0, "on the way");
      // As WebAssembly.Memory.grow() does: what the driver knows as memory is elsewhere now.
      const buffer = rig.memory.regions[0]!.bytes.buffer as ArrayBuffer;
      const moved = buffer.transfer();
      for (
        const access of [
          () => rig.registers.status,
          () => rig.registers.kick(0),
          () => rig.transport.syncMemory(),
        ]
      ) {
        assertThrows(access, TypeError, "its buffer is detached");
      }
      rig.memory = new GuestMemory([{
        guestAddress: MEMORY_START,
        size: moved.byteLength,
        buffer: moved,
      }]);
      rig.registers.kick(0);
      rig.work();
      assertEquals(rig.line, true);
      const used = new DataView(moved);
      const { deviceArea, descriptorArea } = rig.areas[0]!;
      // Both buffers are used: by the index, or by the flags of the third descriptor.
      if (format === "split") {
        assertEquals(used.getUint16(deviceArea - MEMORY_START + 2, true), 2);
      } else {
        const flags = descriptorArea - MEMORY_START + 2 * 16 + 14;
        assertEquals(used.getUint16(flags, true) & 0x8080, 0x8080);
      }
      assertEquals(rig.allFaults, []);
    }
  });

  test(`${name} breaks a queue that is not inside the memory any more`, () => {
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

  for (const format of FORMATS) {
    test(`${name} tells of each byte that the device writes to guest memory: ${format}`, () => {
      for (const eventIdx of [true, false]) {
        const rig = make({ format, eventIdx, written: true, sizes: [8, 16] });
        const all = rig.memory.regions[0]!.bytes;
        let before = all.slice();
        // What the device wrote is what has changed beside what the driver did; it is told exactly.
        const check = (what: string) => {
          const told = new Uint8Array(all.length);
          for (let i = 0; i < rig.written.length; i += 2) {
            const [address, length] = [rig.written[i]!, rig.written[i + 1]!];
            assertGreater(length, 0);
            told.fill(
              1,
              address - MEMORY_START,
              address - MEMORY_START + length,
            );
          }
          rig.written.length = 0;
          for (let at = 0; at < all.length; at++) {
            if (all[at] === before[at] || told[at] === 1) continue;
            throw new Error(`${what}: byte ${at} was not told of`);
          }
          before = all.slice();
          return told.reduce((sum, bit) => sum + bit, 0);
        };
        rig.start();
        check("start");
        let bytes = 0;
        for (let i = 0; i < 40; i++) {
          const text = "x".repeat(i % 5 + 1) + i;
          rig.send(i % 2, text);
          before = all.slice();
          rig.transport.syncMemory();
          rig.model.process();
          bytes += check(`round ${i}`);
          before = all.slice();
          assertEquals(rig.receive(i % 2), [text]);
          rig.written.length = 0;
          before = all.slice();
        }
        // Not simply everything: the answer, its entry, an index and an event.
        assertGreater(40 * 40, bytes);
        rig.registers.reset();
      }
    });
  }

  test(`${name} does not look at what is written unless that is asked for`, () => {
    const rig = started("split");
    rig.send(0, "quiet");
    assertEquals(rig.receive(0), ["quiet"]);
    assertEquals(rig.written, []);
  });
}

function testSnapshots(
  test: Test,
  name: string,
  make: Make,
  started: Started,
  stride: number,
): void {
  const kinds: [string, RigOptions][] = [
    ["queue state", { queueState: true, accept: [VIRTIO_F_QUEUE_STATE] }],
    ["queue reset", { ringReset: true, accept: [VIRTIO_F_RING_RESET] }],
    ["bare", {}],
  ];
  for (const format of FORMATS) {
    for (const [what, more] of kinds) {
      test(`${name} moves to another machine between any two accesses of its driver: ${what}, ${format}`, () => {
        const options = { format, ...more };
        // The whole life of a driver: what it sees must not depend on where it was moved.
        const live = (
          moves: (access: number) => boolean,
        ): [string[], number] => {
          const rig = make(options);
          let access = 0;
          rig.enter = () => {
            if (moves(access++)) rig.migrate();
          };
          const seen: string[] = [];
          const words = more.queueState
            ? [initialWords(format), initialWords(format)]
            : [];
          rig.start(words);
          for (let i = 0; i < 3; i++) {
            rig.send(i % 2, `text ${i}`);
            seen.push(...rig.receive(i % 2));
          }
          rig.model.hold = true;
          rig.send(0, "held");
          rig.model.process();
          if (more.queueState) {
            rig.registers.reset();
            const states = rig.states();
            seen.push(JSON.stringify(states));
            rig.model.hold = false;
            rig.start(states);
          } else if (more.ringReset) {
            assert(rig.registers.resetQueue(1));
            const { driverArea, deviceArea, descriptorArea } = rig.areas[1]!;
            rig.memory.bytes(descriptorArea, 128).fill(0);
            rig.memory.bytes(driverArea, 4).fill(0);
            rig.memory.bytes(deviceArea, 4).fill(0);
            assert(rig.registers.setupQueue(1, rig.areas[1]!));
            rig.replaceQueue(1, rig.areas[1]!);
            // The device of a move knows it, too: this driver is no new one.
            seen.push(
              rig.model.events.filter((event) => event.startsWith("start 1"))
                .at(-1)!,
            );
          }
          // The device that has not moved gives it back, as the queue does that moved.
          rig.model.hold = false;
          rig.model.memoryChanging();
          rig.registers.kick(0);
          seen.push(...rig.receive(0));
          rig.send(1, "last");
          seen.push(...rig.receive(1));
          rig.virtio.notifyConfig();
          seen.push(`${rig.registers.takeInterrupt() & 2}`);
          rig.registers.reset();
          seen.push(`${rig.registers.status}`, ...rig.allFaults);
          return [seen, access];
        };
        const [expected, accesses] = live(() => false);
        assertGreater(accesses, 60);
        for (let at = 0; at < accesses; at += stride) {
          assertEquals(live((access) => access === at)[0], expected, `${at}`);
        }
        assertEquals(live(() => true)[0], expected);
      });
    }
  }

  test(`${name}.save() changes nothing, and survives JSON and structuredClone()`, () => {
    const rig = started("packed");
    rig.send(0, "x");
    rig.model.process();
    const saved = rig.transport.save();
    assertEquals(rig.transport.save(), saved);
    assertEquals(JSON.parse(JSON.stringify(saved)), saved);
    assertEquals(structuredClone(saved), saved);
    assertEquals(rig.line, true);
  });

  test(`${name}.restore() drives the interrupt line to where it was`, () => {
    const rig = started("split");
    rig.send(0, "x");
    rig.model.process();
    for (const level of [true, false]) {
      if (!level) rig.registers.takeInterrupt();
      const other = make({});
      other.line = !level;
      other.transport.restore(rig.transport.save());
      assertEquals(other.line, level);
      assertEquals(other.registers.takeInterrupt(), level ? 1 : 0);
    }
  });

  test(`${name}.restore() refuses what no such transport has saved, and stays as it was`, () => {
    const rig = started("split");
    const good = rig.transport.save() as { [key: string]: Plain };
    const reseal = (change: (content: { [key: string]: Plain }) => void) => {
      const copy = structuredClone(good);
      change(copy);
      const { version, checksum: _old, ...content } = copy;
      return { version, checksum: checksum(content), ...content };
    };
    const registers = (change: { [key: string]: Plain }) =>
      reseal((copy) => Object.assign(copy.registers as object, change));
    const cases: [string, string, unknown][] = [
      ["CONTENT", "nothing", null],
      ["CONTENT", "a text", "{}"],
      ["VERSION", "no version", {}],
      ["VERSION", "another version", { ...good, version: 99 }],
      ["VERSION", "no text", { ...good, version: { toString: 1, valueOf: 1 } }],
      ["CHECKSUM", "cut", { ...good, registers: null }],
      ["CHECKSUM", "edited", { ...good, more: 1 }],
      ["CONTENT", "no registers", reseal((copy) => delete copy.registers)],
      ["CONTENT", "a negative select", registers({ queueSelect: -1 })],
      ["CONTENT", "a fraction", registers({ deviceFeatureSelect: 0.5 })],
      ["CONTENT", "unknown bits", registers({ interruptStatus: 4 })],
      ["CONTENT", "words missing", registers({ driverFeatures: [1, 2] })],
      ["CONTENT", "no truth value", registers({ unknownFeatures: 0 })],
      ["MISMATCH", "queues missing", registers({ queues: [] })],
      [
        "CONTENT",
        "a queue too large",
        registers({
          queues: [
            { size: 9, areas: [0, 0, 0, 0, 0, 0] },
            { size: 8, areas: [0, 0, 0, 0, 0, 0] },
          ],
        }),
      ],
    ];
    const other = make({});
    const before = other.transport.save();
    for (const [code, what, snapshot] of cases) {
      const error = assertThrows(
        () => other.transport.restore(snapshot),
        SnapshotError,
        "Cannot restore the snapshot",
        what,
      );
      assertEquals((error as SnapshotError).code, code, what);
      assertEquals(other.transport.save(), before, what);
    }
    // However deep the engine can follow.
    for (const depth of [100, 3_000, 5_000, 8_000, 100_000]) {
      assertThrows(
        () => other.transport.restore({ ...good, more: nested(depth) }),
        SnapshotError,
      );
    }
    other.transport.restore(reseal(() => {}));
    // Not under a driver that runs.
    assertThrows(
      () => rig.transport.restore(good),
      TypeError,
      "Cannot restore: the device is not in its state after reset",
    );
  });

  test(`${name} refuses to make a queue ready that runs already, as one restored from another transport does`, () => {
    for (const format of FORMATS) {
      const rig = started(format);
      const { version, checksum: _sum, ...content } = rig.virtio.save();
      // A vhost-user front-end starts queues without any register.
      for (const queue of content.queues) queue.ready = false;
      const saved = {
        version,
        checksum: checksum(content as Plain),
        ...content,
      };
      const other = make({ format });
      other.memory = rig.memory;
      other.transport.syncMemory();
      other.virtio.restore(saved);
      for (const [index, areas] of rig.areas.entries()) {
        assertEquals(other.registers.setupQueue(index, areas), false);
        assertEquals(other.virtio.queueRunning(index), true);
      }
      const { counters } = other.virtio.diagnostics;
      const refused = [...counters.keys()].filter((kind) =>
        kind.endsWith("_queue_refused")
      );
      assertEquals(refused.length, 1);
    }
  });
}

function nested(depth: number): Plain {
  let value: Plain = 0;
  for (let i = 0; i < depth; i++) value = [value];
  return value;
}

function isEe(byte: number): boolean {
  return byte === 0xee;
}
