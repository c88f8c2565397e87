import { assert, assertEquals, assertThrows } from "@std/assert";
import { BufferList, type RingFormat } from "../../ring/queue.ts";
import { featureMask } from "../virtio_device.ts";
import {
  ALL_PROTOCOL_FEATURES,
  GUEST_BASE,
  PROTOCOL_FEATURES,
  type Rig,
  ringAt,
  USER_BASE,
  withRig,
} from "./_fixture.ts";
import * as vu from "./constants.ts";
import { VhostUserError } from "./errors.ts";
import {
  encodeLog,
  encodeReply,
  encodeRequest,
  encodeU64,
  encodeVringAddresses,
} from "./message.ts";
import { PACKED_INITIAL_BASE } from "../ring_position.ts";

const FORMATS: readonly RingFormat[] = ["split", "packed"];
const LOG_ALL = featureMask(vu.VHOST_F_LOG_ALL);
const PAGE = 4096;
/** What the fixture's buffers write to. */
const BUFFER_PAGE = (GUEST_BASE + 0x30008) / PAGE | 0;
const RING_SIZE = 16;

/** A log that covers the fixture's memory, as the front-end sees it. */
class Log {
  readonly file: ArrayBuffer = new ArrayBuffer(
    (GUEST_BASE + 0x40000) / PAGE / 8,
  );
  pages(): number[] {
    const bytes = new Uint8Array(this.file);
    const pages: number[] = [];
    for (let page = 0; page < bytes.length * 8; page++) {
      if ((bytes[page >> 3]! >> (page & 7) & 1) === 1) pages.push(page);
    }
    bytes.fill(0);
    return pages;
  }
}

function start(rig: Rig, format: RingFormat): void {
  const base = format === "split" ? 0 : PACKED_INITIAL_BASE;
  rig.startRing(0, RING_SIZE, base);
}

function setLog(rig: Rig, log: Log): Uint8Array[] {
  return rig.send(
    vu.VHOST_USER_SET_LOG_BASE,
    encodeLog({ size: log.file.byteLength, offset: 0 }),
    [rig.ports.newFd(log.file)],
  );
}

function setFeatures(rig: Rig, format: RingFormat, extra: bigint): number {
  return rig.ask(
    vu.VHOST_USER_SET_FEATURES,
    encodeU64(rig.featureBits(format) | extra),
  );
}

function logAt(rig: Rig, log: bigint, flags = 1): number {
  const { descriptorArea, driverArea, deviceArea } = ringAt(0, RING_SIZE);
  const user = USER_BASE - GUEST_BASE;
  return rig.ask(
    vu.VHOST_USER_SET_VRING_ADDR,
    encodeVringAddresses({
      index: 0,
      flags,
      descriptor: descriptorArea + user,
      available: driverArea + user,
      used: deviceArea + user,
      log,
    }),
  );
}

for (const format of FORMATS) {
  Deno.test(`VhostUserSession logs what it writes by a ${format} queue, from LOG_ALL on until it is dropped`, () => {
    withRig((rig) => {
      rig.negotiate(format);
      const driver = rig.driver(0, RING_SIZE, format);
      start(rig, format);
      rig.roundTrips(driver, 0, 5);
      const log = new Log();
      assertEquals(setLog(rig, log), [
        encodeReply(vu.VHOST_USER_SET_LOG_BASE, encodeU64(0)),
      ]);
      rig.roundTrips(driver, 0, 5);
      assertEquals(log.pages(), [], "a log alone starts nothing");

      assertEquals(setFeatures(rig, format, LOG_ALL), 0);
      log.pages();
      rig.roundTrips(driver, 0, 3);
      assertEquals(log.pages(), [BUFFER_PAGE], "the ring was not asked for");

      const { deviceArea, descriptorArea } = ringAt(0, RING_SIZE);
      assertEquals(logAt(rig, BigInt(deviceArea)), 0);
      rig.roundTrips(driver, 0, RING_SIZE);
      const ring = format === "split"
        ? [deviceArea / PAGE]
        : [descriptorArea / PAGE, deviceArea / PAGE];
      assertEquals(log.pages(), [...ring, BUFFER_PAGE]);
      assertEquals(logAt(rig, 0n), 0);
      rig.roundTrips(driver, 0, 3);
      const elsewhere = format === "split" ? [0] : [0, descriptorArea / PAGE];
      assertEquals(log.pages(), [...elsewhere, BUFFER_PAGE]);
      assertEquals(logAt(rig, 0xffff_ffff_ffff_ffffn, 0), 0);
      rig.roundTrips(driver, 0, 3);
      assertEquals(log.pages(), [BUFFER_PAGE]);

      assertEquals(setFeatures(rig, format, 0n), 0);
      rig.roundTrips(driver, 0, 5);
      assertEquals(log.pages(), []);
      assertEquals(
        rig.model.events.slice(1),
        ["start 0 fresh", "stop 0", "start 0", "stop 0", "start 0"],
        "the driver stays the one from before",
      );
    });
  });

  Deno.test(`VhostUserSession loses no buffer of a ${format} queue when logging starts and ends`, () => {
    withRig((rig) => {
      rig.negotiate(format);
      const driver = rig.driver(0, RING_SIZE, format);
      start(rig, format);
      const log = new Log();
      setLog(rig, log);
      const list = new BufferList();
      for (let round = 0; round < 50; round++) {
        rig.offer(driver, list, round); // its kick is on the way
        assertEquals(
          setFeatures(rig, format, round % 2 === 0 ? LOG_ALL : 0n),
          0,
        );
        rig.session.kick(0);
        rig.collect(driver, round);
        assertEquals(log.pages(), round % 2 === 0 ? [BUFFER_PAGE] : []);
      }
      assertEquals(rig.model.served, 50);
      const base = rig.getBase(0);
      assertEquals(base, format === "split" ? 50 : 0x80048004);
    });
  });

  Deno.test(`VhostUserSession logs a ${format} queue that is started in mid-migration`, () => {
    withRig((rig) => {
      rig.negotiate(format);
      const driver = rig.driver(0, RING_SIZE, format);
      start(rig, format);
      rig.roundTrips(driver, 0, 3);
      const base = rig.getBase(0);
      // A front-end that starts its rings then gives the log last, and enables them after that.
      assertEquals(setFeatures(rig, format, LOG_ALL), 0);
      const { deviceArea } = ringAt(0, RING_SIZE);
      rig.ok(vu.VHOST_USER_SET_VRING_NUM, rig.state(0, RING_SIZE));
      rig.ok(vu.VHOST_USER_SET_VRING_BASE, rig.state(0, base));
      rig.enable(0, 0);
      assertEquals(logAt(rig, BigInt(deviceArea)), 0);
      rig.ok(vu.VHOST_USER_SET_VRING_KICK, encodeU64(0), [rig.ports.newFd()]);
      assert(rig.device.queueRunning(0));
      const log = new Log();
      setLog(rig, log);
      assertEquals(log.pages(), [deviceArea / PAGE], "it has asked for kicks");
      rig.enable(0, 1);
      rig.roundTrips(driver, 0, 3);
      assert(log.pages().includes(BUFFER_PAGE));
      assertEquals(
        rig.device.diagnostics.counters.has("vhost_user_no_log"),
        false,
      );

      // Stopped and started while it is logged: the restored queue asks for kicks at once.
      const again = rig.getBase(0);
      log.pages();
      rig.startRing(0, RING_SIZE, again);
      assertEquals(log.pages(), [], "the flag was not set again");
      rig.getBase(0);
      assertEquals(logAt(rig, BigInt(deviceArea)), 0);
      rig.ok(vu.VHOST_USER_SET_VRING_KICK, encodeU64(0), [rig.ports.newFd()]);
      assertEquals(log.pages(), [deviceArea / PAGE]);
      rig.roundTrips(driver, 0, 3);
    });
  });

  Deno.test(`VhostUserSession touches neither a ${format} ring nor the log after GET_VRING_BASE`, () => {
    withRig((rig) => {
      rig.negotiate(format);
      const driver = rig.driver(0, RING_SIZE, format);
      start(rig, format);
      const log = new Log();
      setLog(rig, log);
      setFeatures(rig, format, LOG_ALL);
      logAt(rig, 0n);
      rig.roundTrips(driver, 0, 3);
      rig.getBase(0);
      log.pages();
      const before = new Uint8Array(rig.memory).slice();
      rig.session.kick(0);
      assertEquals(setFeatures(rig, format, 0n), 0);
      assertEquals(setFeatures(rig, format, LOG_ALL), 0);
      assertEquals(new Uint8Array(rig.memory), before);
      assertEquals(log.pages(), []);
    });
  });
}

Deno.test("VhostUserSession refuses LOG_ALL under running rings without a log, and other features with it", () => {
  withRig((rig) => {
    rig.negotiate("split");
    const driver = rig.driver(0, RING_SIZE, "split");
    start(rig, "split");
    assertEquals(setFeatures(rig, "split", LOG_ALL), 1);
    assertEquals(rig.device.diagnostics.counters.get("vhost_user_no_log"), 1);
    const log = new Log();
    setLog(rig, log);
    assertEquals(setFeatures(rig, "packed", LOG_ALL), 1, "two changes");
    assertEquals(setFeatures(rig, "packed", 0n), 1);
    rig.roundTrips(driver, 0, 3);
    assertEquals(log.pages(), [], "what was refused has no effect");
    assertEquals(setFeatures(rig, "split", LOG_ALL), 0);
    assertEquals(setFeatures(rig, "split", LOG_ALL), 0, "again");
    assertEquals(setFeatures(rig, "packed", LOG_ALL), 1);
    rig.roundTrips(driver, 0, 3);
    assertEquals(log.pages(), [BUFFER_PAGE]);
  });
});

Deno.test("VhostUserSession says that rings are used without the log that LOG_ALL asks for", () => {
  withRig((rig) => {
    rig.negotiate("split");
    setFeatures(rig, "split", LOG_ALL);
    const driver = rig.driver(0, RING_SIZE, "split");
    start(rig, "split");
    assertEquals(rig.device.diagnostics.counters.get("vhost_user_no_log"), 1);
    rig.roundTrips(driver, 0, 3);
    const log = new Log();
    setLog(rig, log);
    rig.roundTrips(driver, 0, 3);
    assertEquals(log.pages(), [BUFFER_PAGE]);
  });
});

Deno.test("VhostUserSession goes over to a new log and gives the old one back", () => {
  withRig((rig) => {
    rig.negotiate("split");
    const driver = rig.driver(0, RING_SIZE, "split");
    start(rig, "split");
    const logs = [new Log(), new Log(), new Log()];
    setLog(rig, logs[0]!);
    setFeatures(rig, "split", LOG_ALL);
    for (const log of logs) {
      setLog(rig, log);
      assertEquals(rig.ports.mapped, 2, "memory and one log");
      rig.roundTrips(driver, 0, 2);
    }
    for (const log of logs) assertEquals(log.pages(), [BUFFER_PAGE]);
    assertEquals(
      rig.model.events.filter((event) => event.startsWith("stop")).length,
      1,
      "the queues do not notice",
    );
  });
});

Deno.test("VhostUserSession answers a SET_LOG_BASE that it cannot serve, asked or not", () => {
  withRig((rig) => {
    rig.negotiate("split");
    start(rig, "split");
    const log = new Log();
    const size = log.file.byteLength;
    const no = [encodeReply(vu.VHOST_USER_SET_LOG_BASE, encodeU64(1))];
    for (
      const [payload, fds] of [
        [encodeLog({ size, offset: 0 }), []],
        [encodeLog({ size, offset: 0 }), [log.file, log.file]],
        [encodeLog({ size: 0, offset: 0 }), [log.file]],
        [encodeLog({ size: size + 1, offset: 0 }), [log.file]],
        [encodeLog({ size, offset: 4096 }), [log.file]],
        [new Uint8Array(8), [log.file]],
        [new Uint8Array(16).fill(0xff), [log.file]],
      ] as const
    ) {
      setLog(rig, log);
      assertEquals(rig.ports.mapped, 2);
      for (const needReply of [false, true]) {
        const replies = rig.sendBytes(
          encodeRequest(vu.VHOST_USER_SET_LOG_BASE, payload, needReply),
          fds.map((file) => rig.ports.newFd(file)),
        );
        assertEquals(replies, no);
      }
      assertEquals(rig.ports.open.size, 0);
      assertEquals(rig.ports.mapped, 1, "nor does it go on with the old one");
      assertEquals(setFeatures(rig, "split", LOG_ALL), 1);
    }
  });
});

Deno.test("VhostUserSession ends where a log in use cannot be replaced", () => {
  withRig((rig) => {
    rig.negotiate("split");
    start(rig, "split");
    setLog(rig, new Log());
    setFeatures(rig, "split", LOG_ALL);
    const error = assertThrows(
      () =>
        rig.send(
          vu.VHOST_USER_SET_LOG_BASE,
          encodeLog({ size: 0, offset: 0 }),
          [rig.ports.newFd(new ArrayBuffer(8))],
        ),
      VhostUserError,
    );
    assert(error.fatal);
    assertEquals(rig.ports.replies, [
      encodeReply(vu.VHOST_USER_SET_LOG_BASE, encodeU64(1)),
    ]);
  });
});

Deno.test("VhostUserSession takes no log from a front-end that did not negotiate it", () => {
  withRig((rig) => {
    const without = PROTOCOL_FEATURES &
      ~featureMask(vu.VHOST_USER_PROTOCOL_F_LOG_SHMFD);
    rig.negotiate("split", without);
    start(rig, "split");
    assertEquals(setLog(rig, new Log()), [], "then the request has no reply");
    assertEquals(rig.ports.open.size, 0);
    assertEquals(logAt(rig, 0n), 1);
    assertEquals(setFeatures(rig, "split", LOG_ALL), 1);
    rig.roundTrips(rig.driver(0, RING_SIZE, "split"), 0, 3);
  });
});

Deno.test("VhostUserSession judges where a ring is to be logged", () => {
  withRig((rig) => {
    rig.negotiate("split");
    const driver = rig.driver(0, RING_SIZE, "split");
    start(rig, "split");
    assertEquals(logAt(rig, 0n, 2), 1);
    assertEquals(logAt(rig, 0n, 3), 1);
    assertEquals(logAt(rig, 1n << 53n), 1);
    assertEquals(logAt(rig, 0xffff_ffff_ffff_ffffn), 1);
    assertEquals(logAt(rig, 0xffff_ffff_ffff_ffffn, 0), 0);
    rig.roundTrips(driver, 0, 3);
    // A disabled ring goes on, too, when it only learns where it is logged.
    rig.enable(0, 0);
    assertEquals(logAt(rig, 0x1000n), 0);
    rig.enable(0, 1);
    rig.roundTrips(driver, 0, 3);
    // Beyond the log: counted, and told once logging ends.
    setLog(rig, new Log());
    setFeatures(rig, "split", LOG_ALL);
    assertEquals(logAt(rig, (1n << 53n) - 0x8000n), 0);
    rig.roundTrips(driver, 0, 3);
    setFeatures(rig, "split", 0n);
    const kind = "vhost_user_log_too_small";
    assertEquals(rig.device.diagnostics.counters.get(kind), 1);
  });
});

Deno.test("VhostUserSession closes the descriptor of SET_LOG_FD", () => {
  withRig((rig) => {
    rig.negotiate("split");
    assertEquals(
      rig.ask(vu.VHOST_USER_SET_LOG_FD, undefined, [rig.ports.newFd()]),
      0,
    );
    assertEquals(rig.ports.open.size, 0);
    assertEquals(rig.ask(vu.VHOST_USER_SET_LOG_FD), 1);
  });
});

Deno.test("VhostUserSession logs no more after a reset, in any form", () => {
  withRig((rig) => {
    rig.negotiate("split", ALL_PROTOCOL_FEATURES);
    const log = new Log();
    setLog(rig, log);
    for (
      const reset of [
        () => rig.ok(vu.VHOST_USER_RESET_DEVICE),
        () => rig.ok(vu.VHOST_USER_SET_STATUS, encodeU64(0)),
      ]
    ) {
      assertEquals(setFeatures(rig, "split", LOG_ALL), 0);
      rig.ok(vu.VHOST_USER_SET_STATUS, encodeU64(15));
      const driver = rig.driver(0, RING_SIZE, "split");
      start(rig, "split");
      rig.roundTrips(driver, 0, 3);
      assertEquals(log.pages(), [BUFFER_PAGE]);
      rig.getBase(0);
      reset();
      assertEquals(setFeatures(rig, "split", 0n), 0);
      rig.ok(vu.VHOST_USER_SET_STATUS, encodeU64(15));
      new Uint8Array(rig.memory).fill(0);
      const next = rig.driver(0, RING_SIZE, "split");
      start(rig, "split");
      rig.roundTrips(next, 0, 3);
      assertEquals(log.pages(), []);
      rig.getBase(0);
      rig.ok(vu.VHOST_USER_SET_STATUS, encodeU64(0));
      new Uint8Array(rig.memory).fill(0);
    }
  });
});

Deno.test("VhostUserSession gives the log back when it closes while it logs", () => {
  withRig((rig) => {
    rig.negotiate("split");
    start(rig, "split");
    setLog(rig, new Log());
    setFeatures(rig, "split", LOG_ALL);
    rig.roundTrips(rig.driver(0, RING_SIZE, "split"), 0, 3);
    // withRig() checks that every descriptor and mapping was given back.
  });
});
