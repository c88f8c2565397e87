import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  EchoDevice,
  initialWords,
  MmioRig,
  type MmioRigOptions,
} from "../props/guest/mmio_rig.ts";
import {
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_NEEDS_RESET,
  VirtioDevice,
} from "./virtio_device.ts";
import {
  VIRTIO_F_QUEUE_STATE,
  VIRTIO_F_SUSPEND,
} from "./transport_features.ts";
import {
  VIRTIO_MMIO_QUEUE_AVAIL_STATE,
  VIRTIO_MMIO_QUEUE_SEL,
} from "./virtio_mmio.ts";
import type { RingFormat } from "../ring/queue.ts";

const FORMATS = ["split", "packed"] as const;
const NONE = [null, null];

function rig(format: RingFormat, more: MmioRigOptions = {}): MmioRig {
  return new MmioRig({
    format,
    queueState: true,
    accept: [VIRTIO_F_QUEUE_STATE],
    ...more,
  });
}

function initial(format: RingFormat): ReturnType<typeof initialWords>[] {
  return [initialWords(format), initialWords(format)];
}

/** A rig in the middle of its life: `rounds` buffers went over queue 0, one over queue 1. */
function running(format: RingFormat, rounds = 3, more = {}): MmioRig {
  const r = rig(format, more);
  r.start(initial(format));
  for (let i = 0; i < rounds; i++) {
    r.send(0, `before ${i}`);
    assertEquals(r.receive(0), [`before ${i}`]);
  }
  r.send(1, "other");
  assertEquals(r.receive(1), ["other"]);
  return r;
}

Deno.test("queue state: the available state field has last_avail_idx, packed with last_avail_wrap_counter in bit 15", () => {
  const split = running("split", 5);
  split.registers.reset();
  assertEquals(split.registers.queueState(0)!.available, 5);
  // One buffer takes two descriptors: five of them are ten, two into the second lap of eight.
  const packed = running("packed", 5);
  packed.registers.reset();
  assertEquals(packed.registers.queueState(0)!.available, 0x0002);
  const lap = running("packed", 9);
  lap.registers.reset();
  assertEquals(lap.registers.queueState(0)!.available, 0x8002);
});

Deno.test("queue state: the used state field has used_idx and used_wrap_counter, and nothing for a split queue", () => {
  const split = running("split", 5);
  split.registers.reset();
  assertEquals(split.registers.queueState(0)!.used, 0);
  const packed = running("packed", 5);
  packed.registers.reset();
  assertEquals(packed.registers.queueState(0)!.used, 0x0002);
});

Deno.test("queue state: a driver MUST set the state of each virtqueue", () => {
  for (const format of FORMATS) {
    const r = rig(format);
    r.start([initialWords(format), null]);
    assertEquals(
      r.registers.status & VIRTIO_CONFIG_S_NEEDS_RESET,
      VIRTIO_CONFIG_S_NEEDS_RESET,
    );
    assertEquals(r.faults("ring_bad_queue_state"), 1);
    assertEquals(r.model.events.slice(-2), ["reset", "start 0 fresh"]);
    // The other queue works.
    r.send(0, "alone");
    assertEquals(r.receive(0), ["alone"]);
  }
});

Deno.test("queue state: a driver MUST set both words of a packed queue", () => {
  const r = rig("packed");
  r.negotiate();
  r.setUp(initial("packed"));
  r.registers.reset();
  r.negotiate();
  r.setUp([initialWords("packed"), null]);
  r.virtio.setAvailableState(1, 0x8000);
  r.registers.driverOk();
  assertEquals(r.faults("ring_bad_queue_state"), 1);
  assertEquals(r.model.events.includes("start 1 fresh"), false);
});

Deno.test("queue state: a driver MUST set the state after FEATURES_OK", () => {
  for (const format of FORMATS) {
    const r = rig(format);
    const words = { available: 0x8001, used: 0x8001 };
    r.registers.setQueueState(0, words);
    r.registers.addStatus(VIRTIO_CONFIG_S_ACKNOWLEDGE);
    r.registers.setQueueState(0, words);
    r.registers.addStatus(VIRTIO_CONFIG_S_DRIVER);
    r.registers.setQueueState(0, words);
    assertEquals(r.faults("mmio_state_refused"), 6);
    assertThrows(
      () => r.virtio.setAvailableState(0, 0),
      TypeError,
      "Cannot set the state of queue 0: FEATURES_OK is not set",
    );
    r.negotiate();
    r.setUp(initial(format));
    r.registers.driverOk();
    // What came too early left nothing behind.
    r.send(0, "fresh");
    assertEquals(r.receive(0), ["fresh"]);
  }
});

Deno.test("queue state: a driver MUST set the state before DRIVER_OK", () => {
  for (const format of FORMATS) {
    const r = running(format);
    r.registers.setQueueState(0, initialWords(format));
    assertEquals(r.faults("mmio_state_refused"), 2);
    assertThrows(
      () => r.virtio.setUsedState(0, 0),
      TypeError,
      "Cannot set the state of queue 0: DRIVER_OK is set",
    );
    r.send(0, "as before");
    assertEquals(r.receive(0), ["as before"]);
  }
});

Deno.test("queue state: it cannot be set while the device is suspended, though DRIVER_OK is off", () => {
  const r = running("packed", 3, {
    suspend: true,
    accept: [VIRTIO_F_QUEUE_STATE, VIRTIO_F_SUSPEND],
  });
  assert(r.registers.suspend());
  r.registers.setQueueState(0, { available: 0x8001, used: 0x8001 });
  assertEquals(r.registers.queueState(0), null);
  assertEquals(r.faults("mmio_state_refused"), 4);
  r.registers.driverOk();
  r.send(0, "resumed");
  assertEquals(r.receive(0), ["resumed"]);
});

Deno.test("queue state: a driver MUST reset the device before getting the state", () => {
  for (const format of FORMATS) {
    const r = running(format);
    assertEquals(r.states(), NONE);
    r.registers.set(VIRTIO_MMIO_QUEUE_SEL, 0);
    assertEquals(
      r.registers.get(VIRTIO_MMIO_QUEUE_AVAIL_STATE),
      0xffffffff,
    );
    assertThrows(
      () => r.virtio.availableState(0),
      TypeError,
      "Cannot get the state of queue 0: the device was not reset",
    );
    // Nor between FEATURES_OK and DRIVER_OK, when it is only being set.
    const early = rig(format);
    early.negotiate();
    early.setUp(initial(format));
    assertEquals(early.states(), NONE);
    // A device that never ran has nothing to tell.
    assertEquals(rig(format).states(), NONE);
  }
});

Deno.test("queue state: a device MUST NOT clear the state upon reset", () => {
  for (const format of FORMATS) {
    const r = running(format, 3);
    r.registers.reset();
    const states = r.states();
    const one = format === "split"
      ? { available: 3, used: 0 }
      : { available: 0x8006, used: 0x8006 };
    const other = format === "split"
      ? { available: 1, used: 0 }
      : { available: 0x8002, used: 0x8002 };
    assertEquals(states, [one, other]);
    assertEquals(r.virtio.keptRingFormat, format);
    // Nor upon further ones.
    r.registers.reset();
    r.registers.reset();
    assertEquals(r.states(), states);
    assertEquals(r.virtio.keptRingFormat, format);
    // Nothing else is left of the driver.
    assertEquals([r.virtio.status, r.virtio.features], [0, 0n]);
    assertEquals(r.registers.queueReady(0), false);
  }
});

Deno.test("queue state: a device MUST reset the state when ACKNOWLEDGE is set", () => {
  for (const format of FORMATS) {
    const r = running(format);
    r.registers.reset();
    r.registers.addStatus(VIRTIO_CONFIG_S_ACKNOWLEDGE);
    assertEquals(r.states(), NONE);
    assertThrows(
      () => r.virtio.usedState(1),
      TypeError,
      "Cannot get the state of queue 1: ACKNOWLEDGE, once set, clears it",
    );
    assertEquals(r.virtio.keptRingFormat, null);
    // A reset does not bring it back.
    r.registers.reset();
    assertEquals(r.states(), NONE);
    // And it is cleared for the next driver as well: what is not set is missing.
    r.start(NONE);
    assertEquals(r.faults("ring_bad_queue_state"), 2);
  }
});

Deno.test("queue state: the format is that of the rings that were saved, although the reset forgets the features", () => {
  for (const format of FORMATS) {
    const r = running(format);
    assertEquals(r.virtio.keptRingFormat, null);
    r.registers.reset();
    assertEquals(r.virtio.ringFormat, "split");
    assertEquals(r.virtio.keptRingFormat, format);
    assertEquals(
      r.registers.queueState(0)!.used,
      format === "packed" ? 0x8006 : 0,
    );
  }
});

Deno.test("queue state: a state that was set and not used survives a reset", () => {
  for (const format of FORMATS) {
    const r = rig(format);
    r.negotiate();
    const words = { available: 0x8003, used: format === "packed" ? 0x8003 : 0 };
    r.registers.setQueueState(0, words);
    r.registers.reset();
    // Queue 1 has the state that ACKNOWLEDGE gave it.
    assertEquals(r.states(), [words, initialWords(format)]);
  }
});

Deno.test("queue state: a queue that was stopped keeps its state until the reset, and is not started again", () => {
  for (const format of FORMATS) {
    const r = running(format, 2);
    r.registers.stopQueue(0);
    assertEquals(r.registers.setupQueue(0, r.areas[0]!), false);
    assertEquals(r.faults("queue_not_ready"), 1);
    r.registers.reset();
    assertEquals(
      r.registers.queueState(0)!.available,
      format === "split" ? 2 : 0x8004,
    );
  }
});

for (const format of FORMATS) {
  for (const eventIdx of [false, true]) {
    Deno.test(
      `queue state: save, reset, get, set and go on with buffers waiting in the ring: ${format}${
        eventIdx ? ", EVENT_IDX" : ""
      }`,
      () => {
        const r = rig(format, { eventIdx });
        r.start(initial(format));
        const sent: string[] = [];
        const answered: string[] = [];
        for (let round = 0; round < 40; round++) {
          for (let i = 0; i <= round % 3; i++) {
            const text = `${round}.${i}`;
            r.send(0, text);
            sent.push(text);
          }
          // Half of the time the device has not looked at them.
          if (round % 2 === 0) r.model.process();
          r.registers.reset();
          const states = JSON.parse(JSON.stringify(r.states()));
          assertEquals(states.includes(null), false);
          r.start(states);
          answered.push(...r.receive(0));
          assertEquals(answered, sent);
        }
        assertEquals(r.allFaults, []);
        // The model was never told of a reset, and got no fresh queue but the first.
        assertEquals(
          r.model.events.filter((event) => event.includes("fresh")).length,
          2,
        );
        assertEquals(
          r.model.events.filter((event) => event === "reset").length,
          1,
        );
      },
    );
  }
}

Deno.test("queue state: a restore interrupts once, as an interrupt may have been lost", () => {
  for (const format of FORMATS) {
    const r = running(format);
    r.send(0, "answered, but not told");
    r.model.process();
    r.registers.reset();
    assertEquals(r.line, false);
    const states = r.states();
    r.start(states);
    assertEquals(r.line, true);
    assertEquals(r.registers.takeInterrupt(), 1);
    assertEquals(r.receive(0), ["answered, but not told"]);
  }
});

Deno.test("queue state: another device goes on with the same driver", () => {
  for (const format of FORMATS) {
    const source = running(format, 4);
    source.send(0, "waiting");
    source.registers.reset();
    const states = source.states();
    // The same memory under another device.
    const target = rig(format);
    target.memory = source.memory;
    target.negotiate();
    for (const [index, areas] of source.areas.entries()) {
      assert(target.registers.setupQueue(index, areas));
      target.registers.setQueueState(index, states[index]!);
    }
    target.registers.driverOk();
    target.model.process();
    assertEquals(source.receive(0), ["waiting"]);
    assertEquals(target.allFaults, []);
    assertEquals(target.model.events.slice(-2), ["start 0", "start 1"]);
  }
});

Deno.test("queue state: another device does not take a ring for new that stands where new ones do", () => {
  for (const eventIdx of [false, true]) {
    // Eight buffers of two descriptors: two laps of a ring of eight.
    const source = rig("packed", { eventIdx });
    source.start(initial("packed"));
    for (let i = 0; i < 8; i++) {
      source.send(0, `${i}`);
      assertEquals(source.receive(0), [`${i}`]);
    }
    source.registers.reset();
    assertEquals(source.states()[0], initialWords("packed"));
    const target = rig("packed", { eventIdx });
    target.memory = source.memory;
    target.start(initial("packed"));
    // Nothing was ever sent on queue 1.
    assertEquals(
      target.model.events.slice(-2),
      eventIdx ? ["start 0", "start 1"] : ["start 0", "start 1 fresh"],
    );
    source.send(0, "more");
    target.model.process();
    assertEquals(source.receive(0), ["more"]);
  }
});

Deno.test("queue state: buffers in flight are rewound where nothing overtook them", () => {
  for (const format of FORMATS) {
    const r = running(format, 2);
    r.model.hold = true;
    r.model.clings = true;
    for (const text of ["a", "b", "c"]) r.send(0, text);
    r.model.process();
    r.model.finish(0);
    assertEquals(r.model.held.length, 2);
    r.registers.reset();
    const states = r.states();
    assertEquals(
      states[0]!.available,
      format === "split" ? 3 : 0x8006,
    );
    r.model.hold = false;
    r.start(states);
    assertEquals(r.receive(0), ["", "b", "c"]);
  }
});

Deno.test("queue state: buffers in flight behind others that were used cannot be told", () => {
  for (const format of FORMATS) {
    const r = running(format, 2);
    r.model.hold = true;
    r.model.clings = true;
    for (const text of ["a", "b", "c"]) r.send(0, text);
    r.model.process();
    r.model.finish(1);
    r.registers.reset();
    const states = r.states();
    assertEquals(states[0], null);
    assert(states[1] !== null);
    assertEquals(r.faults("queue_state_lost"), 1);
    assertThrows(
      () => r.virtio.availableState(0),
      TypeError,
      "2 buffers are in flight behind others that were used",
    );
  }
});

const UNLAWFUL: [RingFormat, number, number, string][] = [
  ["split", 7, 0, "is ahead of what is in flight"],
  ["packed", 0x8008, 0x8006, "an index beyond the queue"],
  ["packed", 0x8006, 0x8007, "the available index behind the used one"],
  ["packed", 0x0007, 0x8006, "more than a lap ahead"],
  ["packed", 0x8007, 0x8006, "something in flight that is not told"],
  ["packed", 0x0006, 0x8006, "full of buffers that are not told"],
];

for (const [format, available, used, what] of UNLAWFUL) {
  Deno.test(`queue state: a state that no ${format} queue can have been in fails the start: ${what}`, () => {
    const r = running(format);
    r.registers.reset();
    const states = r.states();
    const ring = r.memory.bytes(r.areas[0]!.deviceArea, 4).slice();
    r.start([{ available, used }, states[1]!]);
    assertEquals(
      r.registers.status & VIRTIO_CONFIG_S_NEEDS_RESET,
      VIRTIO_CONFIG_S_NEEDS_RESET,
    );
    assertEquals(r.faults("ring_bad_queue_state"), 1);
    // The driver is told of the error, and its ring left alone.
    assertEquals(r.registers.takeInterrupt() & 2, 2);
    assertEquals(r.receive(0), []);
    assertEquals(r.memory.bytes(r.areas[0]!.deviceArea, 4), ring);
    // The other queue goes on, and a reset repairs.
    r.send(1, "unharmed");
    assertEquals(r.receive(1), ["unharmed"]);
    r.registers.reset();
    const again = r.states();
    assertEquals(again[0], { available, used });
    r.start([states[0]!, again[1]!]);
    r.send(0, "repaired");
    assertEquals(r.receive(0), ["repaired"]);
  });
}

Deno.test("queue state: words have 16 bits", () => {
  const r = rig("packed");
  r.negotiate();
  for (const word of [-1, 0x10000, 1.5, NaN]) {
    assertThrows(() => r.virtio.setAvailableState(0, word), RangeError);
    assertThrows(() => r.virtio.setUsedState(0, word), RangeError);
  }
  r.registers.setQueueState(0, { available: 0x18000, used: 0xffffffff });
  assertEquals(r.faults("mmio_state_refused"), 2);
  assertThrows(() => r.virtio.setAvailableState(2, 0), RangeError, "queue 2");
});

Deno.test("queue state: a driver that starts anew gets fresh queues", () => {
  for (const format of FORMATS) {
    const r = running(format);
    r.registers.reset();
    // The model may go on, as far as it knows.
    assertEquals(r.model.events.filter((event) => event === "reset").length, 1);
    // A driver that zeroes its rings and sets the state of new ones.
    for (const { descriptorArea, driverArea, deviceArea } of r.areas) {
      r.memory.bytes(descriptorArea, 16 * 8).fill(0);
      r.memory.bytes(driverArea, format === "split" ? 22 : 4).fill(0);
      r.memory.bytes(deviceArea, format === "split" ? 70 : 4).fill(0);
    }
    r.start(initial(format));
    assertEquals(
      r.model.events.slice(-2),
      ["start 0 fresh", "start 1 fresh"],
    );
  }
});

Deno.test("queue state: a driver that does without it after a reset is a new one for the model", () => {
  for (const format of FORMATS) {
    const r = running(format);
    r.registers.reset();
    const before = r.model.events.length;
    const plain = r.features & ~(1n << BigInt(VIRTIO_F_QUEUE_STATE));
    assert(r.registers.accept(plain));
    assertEquals(r.virtio.queueStateProblem(0, "set"), DECLINED);
    r.registers.setQueueState(0, initialWords(format));
    assertEquals(r.faults("mmio_state_refused"), 2);
    r.setUp();
    r.registers.driverOk();
    assertEquals(r.model.events.slice(before), [
      "reset",
      "start 0 fresh",
      "start 1 fresh",
    ]);
    r.registers.reset();
    assertEquals(r.states(), NONE);
    assertEquals(r.model.events.at(-1), "reset");
  }
});

const DECLINED = "the driver did not accept VIRTIO_F_QUEUE_STATE";

Deno.test("VirtioDevice does not offer VIRTIO_F_QUEUE_STATE unless told, and never with VIRTIO_F_RING_RESET", () => {
  const bit = 1n << 40n;
  const model = () => new EchoDevice([8]);
  const plain = new VirtioDevice(model());
  assertEquals(plain.offeredFeatures & bit, 0n);
  assertEquals(
    plain.queueStateProblem(0, "get"),
    "VIRTIO_F_QUEUE_STATE is not offered",
  );
  assertEquals(
    new VirtioDevice(model(), { queueState: true }).offeredFeatures & bit,
    bit,
  );
  assertThrows(
    () => new VirtioDevice(model(), { queueState: true, ringReset: true }),
    TypeError,
    "both are bit 40",
  );
  // As RING_RESET the bit is no state facility.
  const reset = new MmioRig({ ringReset: true, accept: [40] });
  reset.start();
  reset.registers.reset();
  assertEquals(reset.states(), NONE);
  assertEquals(reset.model.events.at(-1), "reset");
});

Deno.test("queue state: DRIVER_OK is refused without FEATURES_OK, so no queue starts", () => {
  const r = rig("packed");
  r.registers.addStatus(
    VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER,
  );
  r.registers.driverOk();
  assertEquals(r.registers.status & VIRTIO_CONFIG_S_DRIVER_OK, 0);
  assertEquals(r.faults("driver_ok_early"), 1);
});
