import {
  assert,
  assertEquals,
  assertInstanceOf,
  assertStringIncludes,
} from "@std/assert";
import { inflightRegionSize } from "../../ring/inflight.ts";
import { BufferList, type RingFormat } from "../../ring/queue.ts";
import { PackedDevice } from "../../ring/packed_device.ts";
import { SplitDevice } from "../../ring/split_device.ts";
import { TrackedQueue } from "../../ring/tracked_queue.ts";
import { featureMask } from "../virtio_device.ts";
import {
  GUEST_BASE,
  PROTOCOL_FEATURES,
  Rig,
  type RigOptions,
  ringAt,
  withRig,
} from "./_fixture.ts";
import * as vu from "./constants.ts";
import {
  encodeInflight,
  encodeLog,
  encodeReply,
  encodeU64,
  type InflightDescription,
  parseInflight,
} from "./message.ts";
import { PACKED_INITIAL_BASE } from "../ring_position.ts";

const FORMATS: readonly RingFormat[] = ["split", "packed"];
const SIZE = 8;
const NONE = { mmapSize: 0, mmapOffset: 0, numQueues: 0, queueSize: 0 };

function initialBase(format: RingFormat): number {
  return format === "split" ? 0 : PACKED_INITIAL_BASE;
}

function shape(
  numQueues: number,
  queueSize: number,
  mmapSize = 0,
  mmapOffset = 0,
): InflightDescription {
  return { mmapSize, mmapOffset, numQueues, queueSize };
}

function getInflight(
  rig: Rig,
  numQueues: number,
  queueSize: number,
): { description: InflightDescription; file: ArrayBuffer | undefined } {
  rig.ports.replyFiles.length = 0;
  const payload = rig.get(
    vu.VHOST_USER_GET_INFLIGHT_FD,
    encodeInflight(shape(numQueues, queueSize)),
  );
  return {
    description: parseInflight(payload),
    file: rig.ports.replyFiles[0],
  };
}

function setInflight(
  rig: Rig,
  description: InflightDescription,
  file: ArrayBuffer,
): number {
  return rig.ask(
    vu.VHOST_USER_SET_INFLIGHT_FD,
    encodeInflight(description),
    [rig.ports.newFd(file)],
  );
}

/** Asks for regions and hands them back, as a front-end does at its first start. */
function track(rig: Rig, numQueues: number, queueSize = SIZE): ArrayBuffer {
  const { description, file } = getInflight(rig, numQueues, queueSize);
  assertEquals(setInflight(rig, description, file!), 0, rig.lines.join("\n"));
  return file!;
}

/** The same memory, handed to another back-end. */
function handOver(rig: Rig, file: ArrayBuffer, numQueues: number): number {
  const description = shape(numQueues, SIZE, file.byteLength);
  return setInflight(rig, description, file);
}

/** A back-end after the one of `rig`, which is gone. */
function successor(
  rig: Rig,
  format: RingFormat,
  test: (next: Rig) => void,
  options: RigOptions = {},
): void {
  withRig((next) => {
    next.negotiate(format);
    test(next);
  }, { ...options, memory: rig.memory });
}

/** Offers `count` buffers of one writable byte each, at addresses of their own; returns the tokens. */
function offer(
  rig: Rig,
  driver: ReturnType<Rig["driver"]>,
  index: number,
  count: number,
  at: number,
): number[] {
  const list = new BufferList();
  const tokens: number[] = [];
  for (let i = 0; i < count; i++) {
    list.clear().addWritable(GUEST_BASE + 0x20000 + 16 * (at + i), 1);
    tokens.push(driver.add(list));
    driver.publish();
  }
  rig.session.kick(index);
  return tokens;
}

function reclaimAll(driver: ReturnType<Rig["driver"]>): number[] {
  const tokens: number[] = [];
  for (let token; (token = driver.reclaim()) >= 0;) tokens.push(token);
  return tokens;
}

function assertUntracked(rig: Rig, index: number, format: RingFormat): void {
  const queue = rig.model.queues[index];
  if (format === "split") assertInstanceOf(queue, SplitDevice);
  else assertInstanceOf(queue, PackedDevice);
}

function use(rig: Rig, index: number, tokens: readonly number[]): void {
  const queue = rig.model.queues[index]!;
  for (const token of tokens) queue.push(token, 1);
  queue.publish();
}

/** Runs a ring until five buffers were fetched, the second and fourth of which are used, and stops there. */
function overtaken(
  rig: Rig,
  format: RingFormat,
  index: number,
): { driver: ReturnType<Rig["driver"]>; left: number[] } {
  const driver = rig.driver(index, SIZE, format);
  rig.startRing(index, SIZE, initialBase(format));
  assertInstanceOf(rig.model.queues[index], TrackedQueue);
  rig.roundTrips(driver, index, 2 * SIZE + 3);
  rig.model.keep = true;
  const tokens = offer(rig, driver, index, 5, 0);
  const kept = rig.model.kept.splice(0);
  assertEquals(kept.length, 5);
  use(rig, index, [kept[1]!, kept[3]!]);
  assertEquals(reclaimAll(driver), [tokens[1], tokens[3]]);
  return { driver, left: [tokens[0]!, tokens[2]!, tokens[4]!] };
}

for (const format of FORMATS) {
  Deno.test(`VhostUserSession answers GET_INFLIGHT_FD with memory for ${format} regions`, () => {
    withRig((rig) => {
      rig.negotiate(format);
      for (const numQueues of [1, 2, 3]) {
        for (const queueSize of [1, 128, 32768]) {
          const { description, file } = getInflight(rig, numQueues, queueSize);
          const mmapSize = numQueues * inflightRegionSize(format, queueSize);
          assertEquals(description, shape(numQueues, queueSize, mmapSize));
          assertEquals(file!.byteLength, mmapSize);
          assert(new Uint8Array(file!).every((byte) => byte === 0));
          assertEquals(rig.ports.mapped, 1, "only guest memory is mapped");
        }
      }
    });
  });

  Deno.test(`VhostUserSession takes up ${format} buffers that a back-end left in flight`, () => {
    for (const numQueues of [2, 3]) {
      const index = numQueues - 1;
      const rig = new Rig();
      rig.negotiate(format);
      const file = track(rig, numQueues);
      const { driver, left } = overtaken(rig, format, index);
      // The driver goes on while there is no back-end.
      const list = new BufferList();
      list.clear().addWritable(GUEST_BASE + 0x20000 + 16 * 5, 1);
      const late = driver.add(list);
      driver.publish();
      rig.finish();
      successor(rig, format, (next) => {
        assertEquals(handOver(next, file, numQueues), 0);
        next.model.keep = true;
        // What a front-end can know: the used index, or nothing.
        const { deviceArea } = ringAt(index, SIZE);
        const used = next.guest.bytes(deviceArea, 4);
        const base = format === "split"
          ? used[2]! | used[3]! << 8
          : PACKED_INITIAL_BASE;
        next.startRing(index, SIZE, base);
        assertEquals(next.model.events.at(-1), `start ${index}`);
        const kept = next.model.kept.splice(0);
        assertEquals(kept.length, 4, "those in flight, and the late one");
        use(next, index, kept);
        assertEquals(reclaimAll(driver), [...left, late], "in their order");
        assertEquals(driver.inFlight, 0);
        next.model.keep = false;
        next.roundTrips(driver, index, 3 * SIZE);
        assertEquals(next.device.diagnostics.counters.size, 0);
      });
    }
  });

  Deno.test(`VhostUserSession lets the region of a ${format} ring win over its base`, () => {
    for (const ahead of [0, 3, 5]) {
      const rig = new Rig();
      rig.negotiate(format);
      const file = track(rig, 2);
      const { driver, left } = overtaken(rig, format, 0);
      rig.finish();
      successor(rig, format, (next) => {
        assertEquals(handOver(next, file, 2), 0);
        const used = 2 * SIZE + 3 + 2;
        // A buffer of the fixture takes one slot of a packed ring, in which it has come 2 laps around.
        const base = format === "split"
          ? used + ahead
          : (0x8000_8000 + (used % SIZE << 16) + (used + ahead) % SIZE) >>> 0;
        next.startRing(0, SIZE, base);
        assertEquals(reclaimAll(driver), left);
        next.roundTrips(driver, 0, 2 * SIZE);
      });
    }
  });

  Deno.test(`VhostUserSession stops a ${format} ring with overtaken buffers and loses none`, () => {
    withRig((rig) => {
      rig.negotiate(format);
      track(rig, 3);
      const { driver, left } = overtaken(rig, format, 0);
      const base = rig.getBase(0);
      rig.model.keep = false;
      rig.startRing(0, SIZE, base);
      assertEquals(reclaimAll(driver), left);
      rig.roundTrips(driver, 0, 2 * SIZE);
      assertEquals(rig.device.diagnostics.counters.size, 0);
      // And with memory taken away under it.
      rig.model.keep = true;
      offer(rig, driver, 0, 3, 0);
      const kept = rig.model.kept.splice(0);
      use(rig, 0, [kept[2]!]);
      assertEquals(reclaimAll(driver).length, 1);
      rig.model.keep = false;
      rig.ok(vu.VHOST_USER_SET_MEM_TABLE, new Uint8Array(8));
      assertEquals(rig.device.queueRunning(0), false);
      assertEquals(rig.addRegion(rig.region(), rig.memory), 0);
      assertEquals(reclaimAll(driver).length, 2);
      rig.roundTrips(driver, 0, 2 * SIZE);
    });
  });

  Deno.test(`VhostUserSession sets a ${format} region up anew for a driver that is new`, () => {
    withRig((rig) => {
      rig.negotiate(format);
      const file = track(rig, 2);
      overtaken(rig, format, 0);
      rig.getBase(0);
      rig.model.keep = false;
      // A reboot: the ring is empty, the region still tells of the old one.
      const driver = rig.driver(0, SIZE, format);
      rig.startRing(0, SIZE, initialBase(format));
      assertEquals(rig.model.events.at(-1), "start 0 fresh");
      rig.roundTrips(driver, 0, 3 * SIZE);
      rig.model.keep = true;
      const tokens = offer(rig, driver, 0, 2, 0);
      rig.getBase(0);
      rig.model.keep = false;
      rig.startRing(0, SIZE, 0);
      assertEquals(reclaimAll(driver), tokens, "as the new region says");
      assertEquals(handOver(rig, file, 2), 1, "not under a running ring");
    });
  });

  Deno.test(`VhostUserSession sets a ${format} region up in mid-life, as after a migration`, () => {
    const rig = new Rig();
    rig.negotiate(format);
    const driver = rig.driver(0, SIZE, format);
    rig.startRing(0, SIZE, initialBase(format));
    rig.roundTrips(driver, 0, SIZE + 3);
    const base = rig.getBase(0);
    rig.finish();
    let file = new ArrayBuffer(0);
    const target = new Rig({ memory: rig.memory });
    target.negotiate(format);
    file = track(target, 2);
    target.startRing(0, SIZE, base);
    target.roundTrips(driver, 0, 3);
    target.model.keep = true;
    const tokens = offer(target, driver, 0, 3, 0);
    target.finish();
    successor(rig, format, (next) => {
      assertEquals(handOver(next, file, 2), 0);
      next.startRing(0, SIZE, base);
      assertEquals(reclaimAll(driver), tokens);
    });
  });

  Deno.test(`VhostUserSession refuses ${format} regions that no back-end has left, and goes on`, () => {
    const rig = new Rig();
    rig.negotiate(format);
    const file = track(rig, 2);
    const { driver } = overtaken(rig, format, 0);
    rig.finish();
    const header = format === "split" ? 16 : 32;
    const stride = inflightRegionSize(format, SIZE);
    const spoils: ((bytes: Uint8Array) => void)[] = [
      (bytes) => bytes[10] = 7, // desc_num
      (bytes) => bytes.fill(2, header, header + 1), // inflight
      (bytes) => bytes.fill(0xff, 12, header), // heads and indices
      (bytes) => bytes.fill(0xff, header, stride), // all entries
    ];
    successor(rig, format, (next) => {
      for (const spoil of spoils) {
        const copy = file.slice();
        spoil(new Uint8Array(copy));
        const { memory } = rig;
        const before = memory.slice();
        assertEquals(handOver(next, copy, 2), 0);
        next.ok(vu.VHOST_USER_SET_VRING_NUM, next.state(0, SIZE));
        next.ok(vu.VHOST_USER_SET_VRING_BASE, next.state(0, 5));
        next.ok(vu.VHOST_USER_SET_VRING_ADDR, next.addresses(0, SIZE));
        const fd = next.ports.newFd();
        const kick = vu.VHOST_USER_SET_VRING_KICK;
        assertEquals(next.ask(kick, encodeU64(0), [fd]), 1);
        assertStringIncludes(next.lines.at(-1)!, "in-flight region");
        assertEquals(next.device.queueRunning(0), false);
        assertEquals(new Uint8Array(memory), new Uint8Array(before));
        next.getBase(0);
      }
      // Another ring is not touched by that, and the true region is still good.
      const other = next.driver(1, SIZE, format);
      next.startRing(1, SIZE, initialBase(format));
      next.roundTrips(other, 1, SIZE);
      next.getBase(1);
      assertEquals(handOver(next, file, 2), 0);
      next.startRing(0, SIZE, 5);
      assertEquals(reclaimAll(driver).length, 3);
      next.roundTrips(driver, 0, SIZE);
    });
  });

  Deno.test(`VhostUserSession tracks ${format} rings that are smaller than their region, not larger ones`, () => {
    withRig((rig) => {
      rig.negotiate(format);
      track(rig, 2, SIZE);
      const small = rig.driver(1, 4, format);
      rig.startRing(1, 4, initialBase(format));
      rig.roundTrips(small, 1, 11);
      assertInstanceOf(rig.model.queues[1], TrackedQueue);
      rig.ok(vu.VHOST_USER_SET_VRING_NUM, rig.state(0, 16));
      const base = rig.state(0, initialBase(format));
      rig.ok(vu.VHOST_USER_SET_VRING_BASE, base);
      rig.ok(vu.VHOST_USER_SET_VRING_ADDR, rig.addresses(0, 16));
      const fds = [rig.ports.newFd()];
      assertEquals(rig.ask(vu.VHOST_USER_SET_VRING_KICK, encodeU64(0), fds), 1);
      assertStringIncludes(rig.lines.at(-1)!, "of 16 descriptors");
      // A third ring has no region, and is served without one.
      const third = rig.driver(2, 16, format);
      rig.startRing(2, 16, initialBase(format));
      rig.roundTrips(third, 2, 40);
      assertUntracked(rig, 2, format);
    });
  });

  Deno.test(`VhostUserSession logs and tracks a ${format} ring at once`, () => {
    const log = new ArrayBuffer((GUEST_BASE + 0x40000) / 4096 / 8);
    const pages = (): number =>
      new Uint8Array(log).reduce((sum, byte) => sum + (byte === 0 ? 0 : 1), 0);
    const setLog = (rig: Rig): void => {
      rig.send(
        vu.VHOST_USER_SET_LOG_BASE,
        encodeLog({ size: log.byteLength, offset: 0 }),
        [rig.ports.newFd(log)],
      );
    };
    const setFeatures = (rig: Rig, extra: bigint): void => {
      const bits = rig.featureBits(format) | extra;
      rig.ok(vu.VHOST_USER_SET_FEATURES, encodeU64(bits));
    };
    const logAll = featureMask(vu.VHOST_F_LOG_ALL);
    const rig = new Rig();
    rig.negotiate(format);
    const file = track(rig, 2);
    const driver = rig.driver(0, SIZE, format);
    rig.startRing(0, SIZE, initialBase(format));
    setLog(rig);
    // On and off in mid-life: what tracks the ring stays.
    for (let round = 0; round < 3; round++) {
      setFeatures(rig, logAll);
      rig.roundTrips(driver, 0, 5);
      assert(pages() > 0);
      setFeatures(rig, 0n);
      new Uint8Array(log).fill(0);
      rig.roundTrips(driver, 0, 5);
      assertEquals(pages(), 0);
    }
    setFeatures(rig, logAll);
    rig.model.keep = true;
    const tokens = offer(rig, driver, 0, 5, 0);
    const kept = rig.model.kept.splice(0);
    use(rig, 0, [kept[1]!, kept[3]!]);
    assertEquals(reclaimAll(driver), [tokens[1], tokens[3]]);
    rig.finish();
    successor(rig, format, (next) => {
      setLog(next);
      setFeatures(next, logAll);
      new Uint8Array(log).fill(0);
      assertEquals(handOver(next, file, 2), 0);
      next.model.keep = true;
      next.startRing(0, SIZE, 0);
      use(next, 0, next.model.kept);
      assertEquals(reclaimAll(driver), [tokens[0], tokens[2], tokens[4]]);
      assert(pages() > 0, "the buffers that were taken up again are logged");
      next.model.keep = false;
      next.roundTrips(driver, 0, 2 * SIZE);
    });
  });

  Deno.test(`VhostUserSession gives ${format} queues that nobody tracks to its model as they are`, () => {
    withRig((rig) => {
      rig.negotiate(format);
      getInflight(rig, 2, SIZE); // alone it tracks nothing
      rig.startRing(0, SIZE, initialBase(format));
      assertUntracked(rig, 0, format);
    });
  });
}

Deno.test("VhostUserSession makes in-flight memory with room for either format before features are accepted", () => {
  withRig((rig) => {
    rig.send(vu.VHOST_USER_SET_PROTOCOL_FEATURES, encodeU64(PROTOCOL_FEATURES));
    const { description, file } = getInflight(rig, 3, SIZE);
    assertEquals(
      description.mmapSize,
      3 * inflightRegionSize("packed", SIZE),
    );
    assertEquals(setInflight(rig, description, file!), 0);
    for (const format of FORMATS) {
      rig.negotiate(format);
      new Uint8Array(rig.memory).fill(0);
      const driver = rig.driver(2, SIZE, format);
      rig.startRing(2, SIZE, initialBase(format));
      assertInstanceOf(rig.model.queues[2], TrackedQueue);
      rig.roundTrips(driver, 2, 3 * SIZE);
      rig.getBase(2);
    }
  });
});

Deno.test("VhostUserSession starts no packed ring in regions with room for split ones", () => {
  withRig((rig) => {
    rig.send(vu.VHOST_USER_SET_PROTOCOL_FEATURES, encodeU64(PROTOCOL_FEATURES));
    const size = 2 * inflightRegionSize("split", 64);
    const file = new ArrayBuffer(size);
    assertEquals(setInflight(rig, shape(2, 64, size), file), 0);
    rig.negotiate("packed");
    rig.ok(vu.VHOST_USER_SET_VRING_NUM, rig.state(1, 64));
    rig.ok(
      vu.VHOST_USER_SET_VRING_BASE,
      rig.state(1, PACKED_INITIAL_BASE),
    );
    rig.ok(vu.VHOST_USER_SET_VRING_ADDR, rig.addresses(1, 64));
    const fds = [rig.ports.newFd()];
    assertEquals(rig.ask(vu.VHOST_USER_SET_VRING_KICK, encodeU64(1), fds), 1);
    assertStringIncludes(rig.lines.at(-1)!, "Cannot start ring 1, packed");
  });
});

Deno.test("VhostUserSession answers a GET_INFLIGHT_FD that it cannot serve by memory of no bytes", () => {
  withRig((rig) => {
    rig.negotiate("split");
    const no = [
      encodeReply(vu.VHOST_USER_GET_INFLIGHT_FD, encodeInflight(NONE)),
    ];
    const get = vu.VHOST_USER_GET_INFLIGHT_FD;
    for (
      const payload of [
        encodeInflight(shape(0, 128)),
        encodeInflight(shape(4, 128)),
        encodeInflight(shape(65535, 65535)),
        encodeInflight(shape(2, 0)),
        encodeInflight(shape(2, 32769)),
        new Uint8Array(19),
        new Uint8Array(24).fill(0xff),
      ]
    ) {
      assertEquals(rig.send(get, payload, [rig.ports.newFd()]), no);
      assertEquals(rig.ports.replyFiles, []);
    }
    rig.ports.failMap = true;
    assertEquals(rig.send(get, encodeInflight(shape(2, 128))), no);
    rig.ports.failMap = false;
    // A descriptor too many is closed and counted, and the request served.
    const fds = [rig.ports.newFd()];
    const replies = rig.send(get, encodeInflight(shape(2, 128)), fds);
    assertEquals(replies.length, 1);
    assertEquals(rig.ports.replyFiles.length, 1);
    assertEquals(rig.ports.open.size, 0);
  });
});

Deno.test("VhostUserSession refuses a SET_INFLIGHT_FD that is not lawful and keeps what it had", () => {
  for (const format of FORMATS) {
    withRig((rig) => {
      rig.negotiate(format);
      const file = track(rig, 2);
      const stride = inflightRegionSize(format, SIZE);
      const size = 2 * stride;
      const future = new ArrayBuffer(size);
      new Uint8Array(future)[stride + 8] = 2; // version of the second region
      const set = vu.VHOST_USER_SET_INFLIGHT_FD;
      for (
        const [description, files] of [
          [shape(2, SIZE, size), []],
          [shape(2, SIZE, size), [file, file]],
          [shape(2, SIZE, size), [new ArrayBuffer(size - 1)]],
          [shape(2, SIZE, size - 1), [file]],
          [shape(2, SIZE, 0), [file]],
          [shape(2, SIZE, size, 4), [new ArrayBuffer(size + 4)]],
          [shape(2, SIZE, size, 1 << 30), [file]],
          [shape(2, SIZE, size, Number.MAX_SAFE_INTEGER - 7), [file]],
          [shape(0, SIZE, size), [file]],
          [shape(4, SIZE, 4 * stride), [new ArrayBuffer(4 * stride)]],
          [shape(2, 0, size), [file]],
          [shape(2, 65535, size), [file]],
          [shape(2, SIZE, size), [future]],
        ] as const
      ) {
        const fds = files.map((file) => rig.ports.newFd(file));
        const lines = rig.lines.length;
        assertEquals(rig.ask(set, encodeInflight(description), fds), 1);
        assert(rig.lines.length >= lines);
        assertEquals(rig.ports.mapped, 2, "memory and the regions from before");
        assertEquals(rig.ports.open.size, 0);
      }
      const fds = [rig.ports.newFd(file)];
      assertEquals(rig.ask(set, new Uint8Array(19), fds), 1);
      assertEquals(
        [...rig.device.diagnostics.counters.keys()].toSorted(),
        [
          "vhost_user_bad_inflight_region",
          "vhost_user_bad_value",
          "vhost_user_map_failed",
          "vhost_user_missing_fd",
          "vhost_user_payload_too_short",
          "vhost_user_unexpected_fd",
        ],
      );
      // The one from before is still in use.
      const driver = rig.driver(0, SIZE, format);
      rig.startRing(0, SIZE, initialBase(format));
      assertInstanceOf(rig.model.queues[0], TrackedQueue);
      rig.roundTrips(driver, 0, SIZE);
      assertEquals(new Uint8Array(file)[8], 1);
      assertEquals(handOver(rig, file, 2), 1, "the ring runs");
      rig.roundTrips(driver, 0, SIZE);
    });
  }
});

Deno.test("VhostUserSession goes over to other in-flight regions while its rings are disabled", () => {
  withRig((rig) => {
    rig.negotiate("split");
    const first = track(rig, 2);
    let driver = rig.driver(0, SIZE, "split");
    rig.startRing(0, SIZE, 0);
    rig.roundTrips(driver, 0, 3);
    rig.enable(0, 0);
    const second = track(rig, 2);
    assertEquals(rig.ports.mapped, 2, "the first one was released");
    assertEquals(rig.device.queueRunning(0), false);
    driver = rig.driver(0, SIZE, "split");
    // What was told of a ring that does not run stays.
    rig.startRing(0, SIZE, 0);
    rig.roundTrips(driver, 0, 3);
    assertEquals(new Uint16Array(first)[7], 3, "used_idx");
    assertEquals(new Uint16Array(second)[7], 3);
    // More memory than regions is lawful; no more is mapped than can be used.
    rig.getBase(0);
    const more = new ArrayBuffer(1 << 20);
    assertEquals(setInflight(rig, shape(2, SIZE, 1 << 20), more), 0);
    assertEquals(rig.ports.log.at(-2), `map ${2 * 320}@0`);
  });
});

Deno.test("VhostUserSession knows no in-flight regions after RESET_DEVICE", () => {
  withRig((rig) => {
    rig.negotiate("split");
    track(rig, 2);
    rig.startRing(0, SIZE, 0);
    assertEquals(rig.ports.mapped, 2);
    rig.ok(vu.VHOST_USER_RESET_DEVICE);
    assertEquals(rig.ports.mapped, 1);
    rig.ok(vu.VHOST_USER_SET_FEATURES, encodeU64(rig.featureBits("split")));
    rig.startRing(0, SIZE, 0);
    assertUntracked(rig, 0, "split");
  });
});

Deno.test("VhostUserSession does not serve in-flight requests that were not negotiated", () => {
  withRig((rig) => {
    const without = PROTOCOL_FEATURES &
      ~featureMask(vu.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD);
    rig.negotiate("split", without);
    const payload = encodeInflight(shape(2, SIZE, 640));
    assertEquals(rig.ask(vu.VHOST_USER_GET_INFLIGHT_FD, payload), 1);
    assertEquals(rig.send(vu.VHOST_USER_GET_INFLIGHT_FD, payload), []);
    const file = new ArrayBuffer(640);
    assertEquals(setInflight(rig, shape(2, SIZE, 640), file), 1);
    assertEquals(rig.ports.mapped, 1);
  });
});

Deno.test("VhostUserSession refuses the base of a split ring that lost buffers and has no region", () => {
  withRig((rig) => {
    rig.negotiate("split");
    const driver = rig.driver(0, SIZE, "split");
    rig.startRing(0, SIZE, 0);
    rig.roundTrips(driver, 0, 5);
    rig.getBase(0);
    for (const base of [4, 6]) {
      rig.ok(vu.VHOST_USER_SET_VRING_BASE, rig.state(0, base));
      const fds = [rig.ports.newFd()];
      const kick = vu.VHOST_USER_SET_VRING_KICK;
      assertEquals(rig.ask(kick, encodeU64(0), fds), 1);
      assertStringIncludes(rig.lines.at(-1)!, "in flight");
      rig.getBase(0);
    }
    rig.startRing(0, SIZE, 5);
    rig.roundTrips(driver, 0, 5);
  });
});
