import {
  assert,
  assertEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { BufferList, type RingFormat } from "../../ring/queue.ts";
import { VIRTIO_F_RING_PACKED } from "../../ring/virtio_ring.ts";
import { featureMask } from "../virtio_device.ts";
import {
  ALL_PROTOCOL_FEATURES,
  GUEST_BASE,
  PROTOCOL_FEATURES,
  REGION_BYTES,
  Rig,
  USER_BASE,
  withRig,
} from "./_fixture.ts";
import * as vu from "./constants.ts";
import { VhostUserError } from "./errors.ts";
import {
  encodeConfig,
  encodeMemoryRegion,
  encodeMemoryTable,
  encodeMessage,
  encodeU64,
  parseBits,
  parseConfig,
  parseMessage,
  parseU64,
} from "./message.ts";
import { PACKED_INITIAL_BASE } from "../ring_position.ts";

const FORMATS: readonly RingFormat[] = ["split", "packed"];
const initialBase = (format: RingFormat): number =>
  format === "split" ? 0 : PACKED_INITIAL_BASE;

Deno.test("VhostUserSession offers what it can do", () => {
  withRig((rig) => {
    const features = parseBits(rig.get(vu.VHOST_USER_GET_FEATURES));
    assert((features & featureMask(vu.VHOST_USER_F_PROTOCOL_FEATURES)) !== 0n);
    assert((features & featureMask(VIRTIO_F_RING_PACKED)) !== 0n);
    assert((features & featureMask(vu.VHOST_F_LOG_ALL)) !== 0n);
    assertEquals(
      parseBits(rig.get(vu.VHOST_USER_GET_PROTOCOL_FEATURES)),
      ALL_PROTOCOL_FEATURES,
    );
    assertEquals(parseU64(rig.get(vu.VHOST_USER_GET_QUEUE_NUM)), 3);
    assertEquals(parseU64(rig.get(vu.VHOST_USER_GET_MAX_MEM_SLOTS)), 64);
  });
});

for (const format of FORMATS) {
  Deno.test(`VhostUserSession carries a ${format} queue from its start to its end`, () => {
    withRig((rig) => {
      rig.negotiate(format);
      const driver = rig.driver(0, 16, format);
      rig.startRing(0, 16, initialBase(format));
      assertEquals(rig.model.events.slice(1), ["start 0 fresh"]);
      rig.roundTrips(driver, 0, 100);
      assert(rig.ports.calls[0]! > 0);
      rig.enable(0, 0);
      const base = rig.getBase(0);
      // Two descriptors a buffer: 200 slots are 12 laps of 16 and 8; 100 buffers are 100 indices.
      assertEquals(base, format === "split" ? 100 : 0x80088008);
    });
  });

  Deno.test(`VhostUserSession goes on with a ${format} queue after stop and cont, over all bits`, () => {
    withRig((rig) => {
      rig.negotiate(format);
      const driver = rig.driver(0, format === "split" ? 4 : 5, format);
      const size = driver.size;
      rig.startRing(0, size, initialBase(format));
      const bases = new Set<number>();
      for (let round = 0; round < 40; round++) {
        rig.roundTrips(driver, 0, 1 + round % 3);
        rig.enable(0, 0);
        const base = rig.getBase(0);
        bases.add(base);
        assertEquals(rig.device.queueRunning(0), false);
        assertEquals(rig.ports.held.has("kick 0"), false);
        const calls = rig.ports.calls[0]!;
        rig.startRing(0, size, base);
        assert(rig.ports.calls[0]! > calls, "one interrupt after a restart");
      }
      if (format === "packed") {
        assert([...bases].some((base) => base >>> 31 === 0));
        assert([...bases].some((base) => (base >>> 15 & 1) === 1));
      }
      const fresh = rig.model.events.filter((event) => event.endsWith("fresh"));
      assertEquals(fresh.length, 1, "the driver was new once");
      assertEquals(rig.model.events.includes("reset"), false);
    });
  });

  Deno.test(`VhostUserSession serves buffers of a ${format} queue that came while it was stopped`, () => {
    withRig((rig) => {
      rig.negotiate(format);
      const driver = rig.driver(0, 8, format);
      rig.startRing(0, 8, initialBase(format));
      rig.roundTrips(driver, 0, 3);
      const base = rig.getBase(0);
      const served = rig.model.served;
      rig.offer(driver, new BufferList(), 7);
      rig.session.kick(0);
      assertEquals(driver.reclaim(), -1, "a stopped ring is not touched");
      assertEquals(rig.model.served, served);
      rig.startRing(0, 8, base); // no kick: the session looks by itself
      rig.collect(driver, 7);
    });
  });

  Deno.test(`VhostUserSession does not touch a ${format} ring after GET_VRING_BASE`, () => {
    withRig((rig) => {
      rig.negotiate(format);
      const driver = rig.driver(0, 8, format);
      rig.startRing(0, 8, initialBase(format));
      rig.roundTrips(driver, 0, 3);
      rig.getBase(0);
      rig.offer(driver, new BufferList(), 7);
      const before = new Uint8Array(rig.memory).slice();
      rig.session.kick(0);
      rig.enable(0, 0);
      rig.enable(0, 1);
      rig.ok(
        vu.VHOST_USER_SET_VRING_CALL,
        encodeU64(0),
        [rig.ports.newFd()],
      );
      rig.session.poll();
      assertEquals(new Uint8Array(rig.memory), before);
    });
  });

  Deno.test(`VhostUserSession rewinds ${format} buffers that its model did not give back`, () => {
    withRig((rig) => {
      rig.negotiate(format);
      const driver = rig.driver(0, 8, format);
      rig.startRing(0, 8, initialBase(format));
      rig.roundTrips(driver, 0, 3);
      rig.model.keep = true;
      rig.offer(driver, new BufferList(), 9);
      rig.session.kick(0);
      rig.model.keep = false;
      const base = rig.getBase(0);
      assertEquals(base, format === "split" ? 3 : 0x80068006);
      rig.startRing(0, 8, base);
      rig.collect(driver, 9);
    });
  });

  Deno.test(`VhostUserSession adds memory under a running ${format} queue`, () => {
    withRig((rig) => {
      rig.negotiate(format);
      const driver = rig.driver(0, 16, format);
      rig.startRing(0, 16, initialBase(format));
      rig.roundTrips(driver, 0, 5);
      const more = new ArrayBuffer(4096);
      const region = {
        guestAddress: GUEST_BASE + REGION_BYTES,
        size: 4096,
        userAddress: 0x5000,
        mmapOffset: 0,
      };
      assertEquals(rig.addRegion(region, more), 0);
      const list = new BufferList().addReadable(GUEST_BASE, 0)
        .addWritable(region.guestAddress + 4000, 96);
      new Uint8Array(more).fill(1);
      driver.add(list);
      driver.publish();
      rig.session.kick(0);
      assert(driver.reclaim() >= 0);
      assertEquals(driver.usedLength, 96);
      assertEquals(new Uint8Array(more)[4000], 0);
      rig.roundTrips(driver, 0, 5);
      rig.ok(vu.VHOST_USER_REM_MEM_REG, encodeMemoryRegion(region));
      assertEquals(rig.ports.mapped, 1);
      rig.roundTrips(driver, 0, 5);
      assertEquals(rig.model.events.filter((e) => e.startsWith("stop")), []);
    });
  });

  Deno.test(`VhostUserSession lets a ${format} ring wait while its memory is away`, () => {
    withRig((rig) => {
      rig.negotiate(format);
      const driver = rig.driver(0, 16, format);
      rig.startRing(0, 16, initialBase(format));
      rig.roundTrips(driver, 0, 5);
      rig.ok(vu.VHOST_USER_REM_MEM_REG, encodeMemoryRegion(rig.region()));
      assertEquals(rig.device.queueRunning(0), false);
      assertEquals(rig.ports.mapped, 0);
      rig.offer(driver, new BufferList(), 3);
      rig.session.kick(0);
      assertEquals(rig.addRegion(rig.region(), rig.memory), 0);
      assertEquals(rig.model.events.at(-1), "start 0");
      rig.collect(driver, 3);
      rig.roundTrips(driver, 0, 5);
    });
  });

  Deno.test(`VhostUserSession keeps the model over status 0, in either order with GET_VRING_BASE (${format})`, () => {
    for (const statusFirst of [true, false]) {
      withRig((rig) => {
        rig.negotiate(format, ALL_PROTOCOL_FEATURES);
        const driver = rig.driver(0, 8, format);
        rig.ok(vu.VHOST_USER_SET_STATUS, encodeU64(11));
        rig.startRing(0, 8, initialBase(format));
        rig.ok(vu.VHOST_USER_SET_STATUS, encodeU64(15));
        assertEquals(parseU64(rig.get(vu.VHOST_USER_GET_STATUS)), 15);
        rig.roundTrips(driver, 0, 11);
        let base = 0;
        if (statusFirst) {
          rig.ok(vu.VHOST_USER_SET_STATUS, encodeU64(0));
          base = rig.getBase(0);
        } else {
          base = rig.getBase(0);
          rig.ok(vu.VHOST_USER_SET_STATUS, encodeU64(0));
        }
        assertEquals(parseU64(rig.get(vu.VHOST_USER_GET_STATUS)), 0);
        rig.ok(
          vu.VHOST_USER_SET_FEATURES,
          encodeU64(rig.featureBits(format)),
        );
        rig.startRing(0, 8, base);
        rig.roundTrips(driver, 0, 11);
        assertEquals(rig.model.events.includes("reset"), false);
        assertEquals(rig.model.events.at(-1), "start 0");
      });
    }
  });

  Deno.test(`VhostUserSession takes a new ${format} driver that only disabled its rings before`, () => {
    withRig((rig) => {
      rig.negotiate(format);
      let driver = rig.driver(0, 8, format);
      rig.startRing(0, 8, 0); // base 0, also for packed
      assertEquals(rig.model.events.at(-1), "start 0 fresh");
      rig.roundTrips(driver, 0, 11);
      rig.enable(0, 0);
      driver = rig.driver(0, 8, format); // clears the ring
      rig.ok(vu.VHOST_USER_SET_FEATURES, encodeU64(rig.featureBits(format)));
      rig.startRing(0, 8, 0);
      assertEquals(rig.model.events.slice(-2), ["stop 0", "start 0 fresh"]);
      rig.roundTrips(driver, 0, 11);
    });
  });

  Deno.test(`VhostUserSession starts a ${format} ring whatever comes last`, () => {
    const steps: ((rig: Rig) => void)[] = [
      (rig) =>
        rig.ok(
          vu.VHOST_USER_SET_FEATURES,
          encodeU64(rig.featureBits(format)),
        ),
      (rig) => rig.ok(vu.VHOST_USER_SET_VRING_NUM, rig.state(1, 8)),
      (rig) =>
        rig.ok(
          vu.VHOST_USER_SET_VRING_BASE,
          rig.state(1, initialBase(format)),
        ),
      (rig) => rig.ok(vu.VHOST_USER_SET_VRING_ADDR, rig.addresses(1, 8)),
      (rig) => assertEquals(rig.addRegion(rig.region(), rig.memory), 0),
      (rig) =>
        rig.ok(
          vu.VHOST_USER_SET_VRING_KICK,
          encodeU64(1),
          [rig.ports.newFd()],
        ),
      (rig) => rig.enable(1, 1),
    ];
    for (let shift = 0; shift < steps.length; shift++) {
      withRig((rig) => {
        rig.send(
          vu.VHOST_USER_SET_PROTOCOL_FEATURES,
          encodeU64(PROTOCOL_FEATURES),
        );
        const driver = rig.driver(1, 8, format);
        rig.offer(driver, new BufferList(), 5);
        for (let i = 0; i < steps.length; i++) {
          assertEquals(rig.model.served, 0);
          steps[(i + shift) % steps.length]!(rig);
        }
        assertEquals(rig.model.events.at(-1), "start 1 fresh");
        rig.collect(driver, 5);
      });
    }
  });
}

Deno.test("VhostUserSession knows a driver again whose packed ring stands at the start of a lap", () => {
  for (const buffers of [2, 4]) { // one lap and two of 4 descriptors
    withRig((rig) => {
      rig.negotiate("packed");
      const driver = rig.driver(0, 4, "packed");
      rig.startRing(0, 4, PACKED_INITIAL_BASE);
      rig.roundTrips(driver, 0, buffers);
      const base = rig.getBase(0);
      assertEquals(base, buffers === 2 ? 0 : PACKED_INITIAL_BASE);
      // A ring that is full of new buffers looks like one in its first lap.
      rig.offer(driver, new BufferList(), 1);
      rig.offer(driver, new BufferList(), 1);
      new Uint8Array(rig.memory).fill(0, 0x3000, 0x3004);
      rig.startRing(0, 4, base);
      assertEquals(rig.model.events.at(-1), "start 0");
      rig.collect(driver, 1);
    });
  }
});

Deno.test("VhostUserSession takes a new packed driver whose base is where the old one stopped", () => {
  for (const buffers of [2, 4]) { // one lap and two of 4 descriptors
    for (const offered of [0, 1]) {
      withRig((rig) => {
        rig.negotiate("packed");
        rig.startRing(0, 4, PACKED_INITIAL_BASE);
        rig.roundTrips(rig.driver(0, 4, "packed"), 0, buffers);
        const base = rig.getBase(0);
        assertEquals(base, buffers === 2 ? 0 : PACKED_INITIAL_BASE);
        const driver = rig.driver(0, 4, "packed"); // clears the ring
        for (let i = 0; i < offered; i++) {
          rig.offer(driver, new BufferList(), 1);
        }
        rig.startRing(0, 4, base);
        assertEquals(rig.model.events.at(-1), "start 0 fresh");
        for (let i = 0; i < offered; i++) rig.collect(driver, 1);
        rig.roundTrips(driver, 0, 11);
      });
    }
  }
});

Deno.test("VhostUserSession tells a new driver once, when its ring is used first", () => {
  withRig((rig) => {
    rig.negotiate("split");
    rig.driver(0, 8, "split");
    rig.ok(vu.VHOST_USER_SET_VRING_NUM, rig.state(0, 8));
    rig.ok(vu.VHOST_USER_SET_VRING_BASE, rig.state(0, 0));
    rig.ok(vu.VHOST_USER_SET_VRING_ADDR, rig.addresses(0, 8));
    rig.ok(vu.VHOST_USER_SET_VRING_KICK, encodeU64(0), [rig.ports.newFd()]);
    assertEquals(rig.device.queueRunning(0), true);
    assertEquals(rig.getBase(0), 0);
    rig.startRing(0, 8, 0);
    assertEquals(rig.model.events.at(-1), "start 0 fresh");
    assertEquals(rig.getBase(0), 0);
    rig.startRing(0, 8, 0);
    assertEquals(rig.model.events.at(-1), "start 0");
  });
});

Deno.test("VhostUserSession starts rings enabled without protocol features", () => {
  withRig((rig) => {
    rig.send(
      vu.VHOST_USER_SET_FEATURES,
      encodeU64(
        rig.featureBits("split") &
          ~featureMask(vu.VHOST_USER_F_PROTOCOL_FEATURES),
      ),
    );
    rig.send(
      vu.VHOST_USER_SET_MEM_TABLE,
      encodeMemoryTable([rig.region()]),
      [rig.ports.newFd(rig.memory)],
    );
    const driver = rig.driver(0, 8, "split");
    rig.send(vu.VHOST_USER_SET_VRING_NUM, rig.state(0, 8));
    rig.send(vu.VHOST_USER_SET_VRING_BASE, rig.state(0, 0));
    rig.send(vu.VHOST_USER_SET_VRING_ADDR, rig.addresses(0, 8));
    rig.send(vu.VHOST_USER_SET_VRING_KICK, encodeU64(0x100));
    assertEquals(rig.session.polling, true);
    rig.offer(driver, new BufferList(), 4);
    rig.session.poll();
    rig.collect(driver, 4);
  });
});

Deno.test("VhostUserSession leaves a disabled ring alone", () => {
  withRig((rig) => {
    rig.negotiate("split");
    const driver = rig.driver(0, 8, "split");
    rig.startRing(0, 8, 0);
    rig.enable(0, 0);
    rig.offer(driver, new BufferList(), 4);
    rig.session.kick(0);
    assertEquals(driver.reclaim(), -1);
    rig.enable(0, 1); // the kick was lost: it looks by itself
    rig.collect(driver, 4);
  });
});

Deno.test("VhostUserSession signals a new call descriptor once", () => {
  withRig((rig) => {
    rig.negotiate("split");
    rig.driver(0, 8, "split");
    rig.startRing(0, 8, 0);
    const calls = rig.ports.calls[0]!;
    rig.ok(vu.VHOST_USER_SET_VRING_CALL, encodeU64(0), [rig.ports.newFd()]);
    assertEquals(rig.ports.calls[0], calls + 1);
    rig.ok(vu.VHOST_USER_SET_VRING_CALL, encodeU64(0x100));
    assertEquals(rig.ports.calls[0], calls + 1);
  });
});

Deno.test("VhostUserSession refuses packed rings in words when it is held to split", () => {
  withRig((rig) => {
    rig.send(
      vu.VHOST_USER_SET_PROTOCOL_FEATURES,
      encodeU64(PROTOCOL_FEATURES),
    );
    const bits = rig.featureBits("split") | featureMask(VIRTIO_F_RING_PACKED);
    const error = assertThrows(
      () => rig.ask(vu.VHOST_USER_SET_FEATURES, encodeU64(bits)),
      VhostUserError,
    );
    assertEquals(error.code, "BAD_FEATURES");
    assertEquals(error.fatal, true);
    assertEquals(parseU64(parseMessage(rig.ports.replies[0]!).payload), 1);
    assertStringIncludes(rig.lines.join("\n"), "held to split rings");
    const fd = rig.ports.newFd();
    assertThrows(
      () => rig.send(vu.VHOST_USER_SET_VRING_KICK, encodeU64(0), [fd]),
      VhostUserError,
    );
  }, { ring: "split" });
});

Deno.test("VhostUserSession lets features come again, and no others under a running ring", () => {
  withRig((rig) => {
    rig.negotiate("split");
    rig.driver(0, 8, "split");
    rig.startRing(0, 8, 0);
    const bits = encodeU64(rig.featureBits("split"));
    rig.ok(vu.VHOST_USER_SET_FEATURES, bits);
    const packed = encodeU64(rig.featureBits("packed"));
    assertEquals(rig.ask(vu.VHOST_USER_SET_FEATURES, packed), 1);
    assertEquals(rig.device.ringFormat, "split");
    assertEquals(rig.ask(vu.VHOST_USER_SET_VRING_NUM, rig.state(0, 4)), 1);
    assertEquals(rig.ask(vu.VHOST_USER_SET_VRING_BASE, rig.state(0, 1)), 1);
    rig.ok(vu.VHOST_USER_SET_VRING_NUM, rig.state(0, 8));
    rig.ok(vu.VHOST_USER_SET_VRING_ADDR, rig.addresses(0, 8));
  });
});

Deno.test("VhostUserSession refuses bases that no ring can have", () => {
  withRig((rig) => {
    rig.negotiate("packed");
    rig.driver(0, 8, "packed");
    rig.ok(vu.VHOST_USER_SET_VRING_NUM, rig.state(0, 8));
    // index beyond the ring; available behind used; buffers in flight.
    for (const base of [0x80098009, 0x80048002, 0x80028004]) {
      assertEquals(
        rig.ask(vu.VHOST_USER_SET_VRING_BASE, rig.state(0, base)),
        1,
      );
    }
    assertEquals(
      rig.device.diagnostics.counters.get(
        "vhost_user_bad_vring_base",
      ),
      3,
    );
  });
  withRig((rig) => {
    rig.negotiate("split");
    rig.driver(0, 8, "split");
    assertEquals(
      rig.ask(vu.VHOST_USER_SET_VRING_BASE, rig.state(0, 0x10000)),
      1,
    );
    rig.ok(vu.VHOST_USER_SET_VRING_NUM, rig.state(0, 8));
    rig.ok(vu.VHOST_USER_SET_VRING_ADDR, rig.addresses(0, 8));
    rig.ok(vu.VHOST_USER_SET_VRING_BASE, rig.state(0, 5));
    const kick = [rig.ports.newFd()];
    // used.idx is 0: five buffers would be in flight, and nobody tells which.
    assertEquals(
      rig.ask(vu.VHOST_USER_SET_VRING_KICK, encodeU64(0), kick),
      1,
    );
    assertEquals(rig.device.queueRunning(0), false);
  });
});

Deno.test("VhostUserSession resets the device on RESET_DEVICE and keeps memory and calls", () => {
  withRig((rig) => {
    rig.negotiate("split");
    rig.driver(0, 8, "split");
    rig.startRing(0, 8, 0);
    rig.ok(vu.VHOST_USER_RESET_DEVICE);
    assertEquals(rig.model.events.slice(-2), ["stop 0", "reset"]);
    assertEquals([...rig.ports.held.keys()], ["call 0"]);
    assertEquals(rig.ports.mapped, 1);
    const driver = rig.driver(0, 8, "packed");
    rig.ok(vu.VHOST_USER_SET_FEATURES, encodeU64(rig.featureBits("packed")));
    rig.startRing(0, 8, PACKED_INITIAL_BASE);
    assertEquals(rig.model.events.at(-1), "start 0 fresh");
    rig.roundTrips(driver, 0, 3);
  });
});

Deno.test("VhostUserSession brings a broken ring back with its next driver", () => {
  withRig((rig) => {
    rig.negotiate("split");
    let driver = rig.driver(0, 8, "split");
    rig.ok(vu.VHOST_USER_SET_VRING_ERR, encodeU64(0), [rig.ports.newFd()]);
    rig.ok(vu.VHOST_USER_SET_BACKEND_REQ_FD, undefined, [rig.ports.newFd()]);
    rig.startRing(0, 8, 0);
    rig.roundTrips(driver, 0, 3);
    const avail = rig.guest.bytes(GUEST_BASE + 0x2000, 4);
    new DataView(avail.buffer, avail.byteOffset).setUint16(2, 1000, true);
    rig.session.kick(0);
    assertEquals(rig.ports.errors[0], 1);
    const told = parseMessage(rig.ports.backendRequests.at(-1)!);
    assertEquals(told.request, vu.VHOST_USER_BACKEND_CONFIG_CHANGE_MSG);
    rig.enable(0, 0);
    rig.enable(0, 1);
    rig.session.kick(0);
    assertEquals(rig.model.events.at(-1), "stop 0");
    rig.getBase(0);
    driver = rig.driver(0, 8, "split");
    rig.startRing(0, 8, 0);
    assertEquals(rig.model.events.at(-1), "start 0 fresh");
    rig.roundTrips(driver, 0, 3);
  });
});

Deno.test("VhostUserSession serves the configuration space", () => {
  withRig((rig) => {
    const read = (offset: number, size: number): Uint8Array =>
      rig.get(
        vu.VHOST_USER_GET_CONFIG,
        encodeConfig({ offset, size, flags: 0, bytes: new Uint8Array(0) }),
      );
    assertEquals(read(0, 8).length, 0, "not negotiated");
    rig.negotiate("split");
    assertEquals(parseConfig(read(0, 8)).bytes, rig.model.config);
    assertEquals(parseConfig(read(0, 2)).bytes, new Uint8Array([3, 0]));
    assertEquals(read(0, 9).length, 0);
    assertEquals(read(0, 0).length, 0);
    assertEquals(read(0xffffffff, 8).length, 0);
    const write = (flags: number, first: number): number =>
      rig.ask(
        vu.VHOST_USER_SET_CONFIG,
        encodeConfig({
          offset: 0,
          size: 8,
          flags,
          bytes: new Uint8Array([first, 0, 0, 0, 0, 0, 0, 0]),
        }),
      );
    assertEquals(write(0, 3), 1);
    assertEquals(write(1, 4), 1);
    assertEquals(write(1, 3), 0);
    rig.ok(vu.VHOST_USER_SET_BACKEND_REQ_FD, undefined, [rig.ports.newFd()]);
    rig.device.notifyConfig();
    assertEquals(rig.ports.backendRequests.length, 1);
  });
});

Deno.test("VhostUserSession moves to a new memory table before it releases the old one", () => {
  withRig((rig) => {
    rig.negotiate("split");
    const driver = rig.driver(0, 8, "split");
    rig.startRing(0, 8, 0);
    rig.ports.log.length = 0;
    rig.ok(
      vu.VHOST_USER_SET_MEM_TABLE,
      encodeMemoryTable([rig.region()]),
      [rig.ports.newFd(rig.memory)],
    );
    assertEquals(rig.ports.log, [`map ${REGION_BYTES}@0`, "release"]);
    rig.roundTrips(driver, 0, 5);
    // A table that can't be mapped leaves the old one in use.
    rig.ports.failMap = true;
    assertEquals(
      rig.ask(
        vu.VHOST_USER_SET_MEM_TABLE,
        encodeMemoryTable([rig.region()]),
        [rig.ports.newFd(rig.memory)],
      ),
      1,
    );
    rig.roundTrips(driver, 0, 5);
  });
});

Deno.test("VhostUserSession takes a table with room for more regions, and user addresses equal to guest addresses", () => {
  withRig((rig) => {
    rig.send(
      vu.VHOST_USER_SET_PROTOCOL_FEATURES,
      encodeU64(PROTOCOL_FEATURES),
    );
    const payload = new Uint8Array(72);
    payload.set(
      encodeMemoryTable([{ ...rig.region(), userAddress: GUEST_BASE }]),
    );
    rig.ok(vu.VHOST_USER_SET_MEM_TABLE, payload, [
      rig.ports.newFd(rig.memory),
    ]);
    assertEquals(rig.device.memory.regions.length, 1);
  });
});

Deno.test("VhostUserSession refuses memory that is not lawful", () => {
  withRig((rig) => {
    rig.negotiate("split");
    const ok = rig.region();
    const file = rig.memory;
    const far = { ...ok, guestAddress: 0x800000, userAddress: 0x800000 };
    for (
      const bad of [
        { ...far, size: 0 },
        { ...far, guestAddress: 0x800001 },
        { ...far, size: 2 ** 53 - 1 },
        { ...far, guestAddress: GUEST_BASE + REGION_BYTES - 16 },
        { ...far, userAddress: USER_BASE - 16 },
      ]
    ) assertEquals(rig.addRegion(bad, file), 1);
    assertEquals(rig.addRegion(far, new ArrayBuffer(16)), 1, "too short");
    // No descriptor, two of them, and a count that is not theirs.
    const add = encodeMemoryRegion(far);
    assertEquals(rig.ask(vu.VHOST_USER_ADD_MEM_REG, add), 1);
    const two = [rig.ports.newFd(file), rig.ports.newFd(file)];
    assertEquals(rig.ask(vu.VHOST_USER_ADD_MEM_REG, add, two), 1);
    assertEquals(
      rig.ask(vu.VHOST_USER_SET_MEM_TABLE, encodeMemoryTable([ok, far]), [
        rig.ports.newFd(file),
      ]),
      1,
    );
    // The second region can't be mapped: the first is given back, the old table stays.
    const fds = [rig.ports.newFd(file), rig.ports.newFd(new ArrayBuffer(16))];
    assertEquals(
      rig.ask(
        vu.VHOST_USER_SET_MEM_TABLE,
        encodeMemoryTable([ok, far]),
        fds,
      ),
      1,
    );
    assertEquals(rig.ports.mapped, 1);
    assertEquals(rig.device.memory.regions.length, 1);
    assertEquals(
      rig.ask(
        vu.VHOST_USER_SET_MEM_TABLE,
        encodeMemoryTable(new Array(9).fill(ok)),
      ),
      1,
    );
    assertEquals(rig.ask(vu.VHOST_USER_REM_MEM_REG, add), 1);
    // One descriptor that should not be there is closed and forgiven.
    const removed = encodeMemoryRegion({ ...ok, mmapOffset: 77 });
    const unexpected = (): number =>
      rig.device.diagnostics.counters.get("vhost_user_unexpected_fd") ?? 0;
    const before = unexpected();
    rig.ok(vu.VHOST_USER_REM_MEM_REG, removed, [rig.ports.newFd()]);
    assertEquals(unexpected(), before + 1);
    assertEquals(rig.ports.mapped, 0);
    for (let i = 0; i < 64; i++) {
      const region = {
        guestAddress: i * 32,
        size: 16,
        userAddress: i * 16,
        mmapOffset: 0,
      };
      assertEquals(rig.addRegion(region, new ArrayBuffer(16)), 0);
    }
    assertEquals(rig.addRegion(far, file), 1, "too many");
  });
});

Deno.test("VhostUserSession refuses what it does not know, and answers", () => {
  withRig((rig) => {
    rig.negotiate("split");
    for (const request of [0, 6, 19, 20, 22, 23, 28, 32, 35, 41, 999]) {
      const fds = [rig.ports.newFd()];
      assertEquals(rig.ask(request, encodeU64(0), fds), 1);
    }
    for (
      const request of [8, 9, 10, 12, 13, 14, 16, 18, 25, 37, 38, 5, 2]
    ) assertEquals(rig.ask(request, new Uint8Array(3)), 1);
    for (const request of [8, 9, 10, 12, 13, 14, 18]) {
      const payload = new Uint8Array(40).fill(7, 0, 1);
      const fds = [rig.ports.newFd()];
      assertEquals(rig.ask(request, payload, fds), 1, "no such ring");
    }
    assertEquals(rig.ask(vu.VHOST_USER_SET_VRING_ENABLE, rig.state(0, 2)), 1);
    assertEquals(rig.ask(vu.VHOST_USER_SET_VRING_NUM, rig.state(0, 0)), 1);
    assertEquals(rig.ask(vu.VHOST_USER_SET_VRING_NUM, rig.state(0, 32769)), 1);
    assertEquals(rig.ask(vu.VHOST_USER_SET_VRING_KICK, encodeU64(0)), 1);
    assertEquals(rig.ask(vu.VHOST_USER_SET_VRING_KICK, encodeU64(512)), 1);
    assertEquals(
      rig.ask(vu.VHOST_USER_SET_PROTOCOL_FEATURES, encodeU64(1n << 11n)),
      1,
    );
    assertEquals(rig.ask(vu.VHOST_USER_SET_STATUS, encodeU64(15)), 1);
    assertEquals(rig.ask(vu.VHOST_USER_SET_BACKEND_REQ_FD), 1);
    const reply = encodeMessage(
      3,
      vu.VHOST_USER_REPLY_FLAG | vu.VHOST_USER_NEED_REPLY_FLAG,
    );
    assertEquals(rig.sendBytes(reply).length, 1);
    const kinds = rig.lines.map((line) => line.slice(0, line.indexOf(":")));
    assertEquals(new Set(kinds).size, kinds.length, "one line a kind");
  });
});

Deno.test("VhostUserSession ends where the front-end would wait for ever", () => {
  withRig((rig) => {
    rig.negotiate("split");
    const error = assertThrows(
      () => rig.send(vu.VHOST_USER_GET_VRING_BASE, rig.state(3, 0)),
      VhostUserError,
    );
    assertEquals(error.code, "BAD_QUEUE_INDEX");
    assertEquals(error.fatal, true);
  });
});

Deno.test("VhostUserSession.close() stops the rings and may be called twice", () => {
  const rig = new Rig();
  rig.negotiate("split");
  rig.driver(0, 8, "split");
  rig.startRing(0, 8, 0);
  rig.session.close();
  assertEquals(rig.model.events.slice(-2), ["stop 0", "reset"]);
  const before = new Uint8Array(rig.memory).slice();
  rig.session.kick(0);
  rig.session.poll();
  rig.device.notifyConfig();
  rig.finish();
  assertEquals(new Uint8Array(rig.memory), before);
});

Deno.test("VhostUserSession tells of a driver whose front-end never shared memory", () => {
  const warned = (prepare: (rig: Rig) => void): number => {
    const rig = new Rig();
    prepare(rig);
    const { counters } = rig.device.diagnostics;
    rig.finish();
    return counters.get("vhost_user_no_memory") ?? 0;
  };
  assertEquals(warned(() => {}), 0, "nobody was ready");
  assertEquals(warned((rig) => rig.negotiate("split")), 0);
  assertEquals(
    warned((rig) => {
      const features = encodeU64(rig.featureBits("packed"));
      rig.send(vu.VHOST_USER_SET_FEATURES, features);
    }),
    1,
  );
});

Deno.test("VhostUserSession carries kicks and calls as messages to a front-end that wants them", () => {
  withRig((rig) => {
    const inband = featureMask(vu.VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS);
    assert((rig.session.offeredProtocolFeatures & inband) !== 0n);
    rig.negotiate("split", PROTOCOL_FEATURES | inband);
    rig.ok(vu.VHOST_USER_SET_BACKEND_REQ_FD, undefined, [rig.ports.newFd()]);
    const driver = rig.driver(0, 8, "split");
    rig.ok(vu.VHOST_USER_SET_VRING_NUM, rig.state(0, 8));
    rig.ok(vu.VHOST_USER_SET_VRING_BASE, rig.state(0, 0));
    rig.ok(vu.VHOST_USER_SET_VRING_ADDR, rig.addresses(0, 8));
    rig.enable(0, 1);
    rig.offer(driver, new BufferList(), 4);
    assertEquals(rig.model.served, 0);
    rig.ok(vu.VHOST_USER_VRING_KICK, rig.state(0, 0));
    rig.collect(driver, 4);
    assertEquals(rig.session.polling, false);
    const call = parseMessage(rig.ports.backendRequests.at(-1)!);
    assertEquals(call.request, vu.VHOST_USER_BACKEND_VRING_CALL);
    assertEquals(rig.ask(vu.VHOST_USER_VRING_KICK, rig.state(0, 1)), 1);
  }, { inbandNotifications: true });
  withRig((rig) => {
    const only = featureMask(vu.VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS);
    assertThrows(
      () => rig.send(vu.VHOST_USER_SET_PROTOCOL_FEATURES, encodeU64(only)),
      VhostUserError,
    );
  }, { inbandNotifications: true });
});
