import { assert, assertEquals, assertGreater, assertThrows } from "@std/assert";
import { RingError } from "../../ring/errors.ts";
import { VirtioDevice } from "../virtio_device.ts";
import {
  ASK,
  CID,
  Guest,
  Host,
  type Packet,
  RESPONSE,
  RINGS,
  RST,
  RW,
  SHUTDOWN,
  UPDATE,
} from "./_fixture.ts";
import { VsockDevice } from "./device.ts";
import { STREAM_EOF } from "./host.ts";

// Requirements that no single function answers for, on a device with its three queues.

for (const ring of RINGS) {
  Deno.test(`VsockDevice tells its credit, and lawful CIDs, in every packet of a stream (${ring})`, () => {
    const guest = new Guest(ring, { bufAlloc: 1000 });
    const seen: Packet[] = [];
    const run = () => seen.push(...guest.run());
    guest.post();
    guest.send({ op: 1 });
    run();
    const stream = guest.host.streams[0]!;
    guest.send({ op: RW }, new Uint8Array(300));
    run();
    guest.send({ op: ASK });
    run();
    assertEquals(seen.at(-1)!.fwdCnt, 300);
    stream.room = 0;
    guest.send({ op: RW }, new Uint8Array(200));
    stream.say(1, 2, 3);
    run();
    assertEquals(seen.at(-1)!.fwdCnt, 300, "200 bytes wait for the host");
    stream.room = Infinity;
    stream.events!.hostWritable();
    run();
    guest.send({ op: UPDATE, bufAlloc: 3, fwdCnt: 0 });
    stream.say(4);
    run();
    guest.now += 60_000;
    guest.vsock.expire(guest.now);
    run();
    guest.send({ op: UPDATE, fwdCnt: 3 });
    run();
    stream.end(STREAM_EOF);
    run();
    assertEquals(seen.at(-1)!.fwdCnt, 500);
    const kinds = new Set(seen.map(({ op }) => op));
    for (const op of [RESPONSE, RW, UPDATE, ASK, SHUTDOWN]) {
      assert(kinds.has(op), `no packet of operation ${op}`);
    }
    let last = 0;
    for (const packet of seen) {
      assertEquals(packet.bufAlloc, 1000);
      assert(packet.fwdCnt >= last && packet.fwdCnt <= 500);
      last = packet.fwdCnt;
      // All 64 bits of the CIDs are compared.
      assertEquals([packet.srcCid, packet.dstCid], [2, CID]);
      assertEquals([packet.srcPort, packet.dstPort], [1234, 5]);
      assertEquals(packet.type, 1);
    }
  });

  Deno.test(`VirtioDevice leaves queues and driver alone after a reset, until it is initialized again (${ring})`, () => {
    const guest = new Guest(ring);
    guest.post();
    const stream = guest.connect();
    guest.run();
    // Work for all three queues, which the device has not looked at.
    guest.send({ op: RW }, [1, 2, 3]);
    stream.say(1, 2, 3);
    guest.virtio.setStatus(0);
    assertEquals(guest.virtio.status, 0);
    assertEquals(guest.virtio.features, 0n);
    const bytes = guest.memory.bytes(0, 1 << 21);
    const before = bytes.slice();
    const interrupts = [...guest.interrupts];
    for (let index = 0; index < 3; index++) {
      guest.virtio.kick(index);
      assertEquals(guest.virtio.queueRunning(index), false);
    }
    guest.vsock.transportReset();
    guest.vsock.resetConnections();
    guest.now += 60_000;
    guest.vsock.expire(guest.now);
    assertEquals(guest.vsock.process(), false);
    assertEquals(bytes, before);
    assertEquals(guest.interrupts, interrupts);
    assertEquals(stream.written, []);

    // The same features are accepted again.
    guest.start();
    guest.post();
    guest.connect();
  });

  Deno.test(`VirtioDevice uses no buffer and sends no interrupt before its queues are given to it (${ring})`, () => {
    const guest = new Guest(ring);
    for (let index = 0; index < 3; index++) {
      guest.virtio.enableQueue(index, false);
    }
    const interrupts = [...guest.interrupts];
    guest.post();
    guest.send({ op: 1 });
    for (let index = 0; index < 3; index++) guest.virtio.kick(index);
    assertEquals(guest.run(), []);
    assertEquals(guest.reclaim(), 0);
    assertEquals(guest.interrupts, interrupts);
    for (let index = 0; index < 3; index++) {
      guest.virtio.enableQueue(index, true);
    }
    assertEquals(guest.run().map(({ op }) => op), [RESPONSE]);
  });

  Deno.test(`VirtioDevice tells of DEVICE_NEEDS_RESET by a configuration change, after DRIVER_OK only (${ring})`, () => {
    const guest = new Guest(ring);
    let changes = 0;
    guest.virtio.connect({
      interrupt: () => {},
      configChanged: () => changes++,
    });
    const generation = guest.virtio.configGeneration;
    guest.virtio.breakQueue(
      1,
      new RingError("HEAD_OUT_OF_RANGE", "2.7.6", "broken"),
    );
    assertEquals(guest.virtio.status & 64, 64);
    assertEquals(changes, 1);
    assertGreater(guest.virtio.configGeneration, generation);

    guest.virtio.setStatus(0);
    assertEquals(guest.virtio.status, 0);
    guest.virtio.setStatus(1 | 2);
    guest.virtio.setFeatures(guest.virtio.offeredFeatures);
    guest.virtio.setStatus(1 | 2 | 8);
    changes = 0;
    guest.virtio.breakQueue(
      1,
      new RingError("HEAD_OUT_OF_RANGE", "2.7.6", "broken"),
    );
    assertEquals(changes, 0);
  });

  Deno.test(`VsockDevice goes on after kicks that announce nothing (${ring})`, () => {
    const guest = new Guest(ring);
    guest.post();
    const stream = guest.connect();
    const interrupts = [...guest.interrupts];
    for (let i = 0; i < 10; i++) {
      for (let index = 0; index < 5; index++) guest.virtio.kick(index);
      assertEquals(guest.run(), []);
    }
    assertEquals(guest.interrupts, interrupts);
    guest.send({ op: RW }, [7]);
    guest.run();
    assertEquals(stream.written, [7]);
  });

  Deno.test(`VsockDevice carries streams for a driver that accepts no bit of a socket device (${ring})`, () => {
    const guest = new Guest(ring);
    const { virtio } = guest;
    virtio.setStatus(0);
    virtio.setFeatures = (features) => {
      VirtioDevice.prototype.setFeatures.call(virtio, features & ~7n);
    };
    guest.start();
    assertEquals(virtio.features & 7n, 0n);
    guest.post();
    const stream = guest.connect();
    guest.send({ op: RW }, [1, 2]);
    stream.say(3);
    assertEquals(guest.run().map(({ payload }) => payload), [[3]]);
    assertEquals(stream.written, [1, 2]);
  });

  Deno.test(`VsockDevice answers an unknown type by RST, also where the connection exists (${ring})`, () => {
    const guest = new Guest(ring);
    guest.post();
    const stream = guest.connect();
    for (const type of [0, 2, 3, 0xffff]) {
      guest.send({ op: RW, type }, [1]);
      const [reply, ...more] = guest.run();
      assertEquals([reply?.op, reply?.type, more.length], [RST, type, 0]);
    }
    assertEquals(stream.written, []);
  });
}

Deno.test("VirtioDevice offers what it can do and nothing else", () => {
  const offered = (
    ring: "auto" | "split" | "packed",
    seqpackets?: boolean,
  ): number[] => {
    const options = { guestCid: CID, host: new Host(), seqpackets };
    const vsock = new VsockDevice(options);
    const { offeredFeatures } = new VirtioDevice(vsock, { ring });
    return Array.from({ length: 128 }, (_, bit) => bit)
      .filter((bit) => (offeredFeatures >> BigInt(bit) & 1n) !== 0n);
  };
  // STREAM, SEQPACKET, INDIRECT_DESC, EVENT_IDX, VERSION_1, RING_PACKED.
  assertEquals(offered("split"), [0, 1, 28, 29, 32]);
  assertEquals(offered("packed"), [0, 1, 28, 29, 32, 34]);
  assertEquals(offered("auto"), [0, 1, 28, 29, 32, 34]);
  assertEquals(offered("split", false), [0, 28, 29, 32]);
});

Deno.test("VirtioDevice takes no features after FEATURES_OK", () => {
  const virtio = new VirtioDevice(
    new VsockDevice({ guestCid: CID, host: new Host() }),
  );
  virtio.setStatus(3);
  virtio.setFeatures(1n << 32n);
  virtio.setStatus(11);
  assertThrows(
    () => virtio.setFeatures(1n << 32n | 1n << 29n),
    TypeError,
    "FEATURES_OK is set",
  );
  assertEquals(virtio.features, 1n << 32n);
  virtio.setStatus(0);
  virtio.setFeatures(1n << 32n | 1n << 29n);
});

Deno.test("VirtioDevice lets its configuration be read before FEATURES_OK", () => {
  const vsock = new VsockDevice({ guestCid: CID, host: new Host() });
  const virtio = new VirtioDevice(vsock);
  for (const status of [0, 1, 3]) {
    if (status !== 0) virtio.setStatus(status);
    assertEquals(virtio.status, status);
    assertEquals([...virtio.model.configSpace()], [CID, 0, 0, 0, 0, 0, 0, 0]);
  }
});

Deno.test("VirtioDevice accepts any valid subset of its features, and keeps status bits until it is reset", () => {
  const make = () =>
    new VirtioDevice(new VsockDevice({ guestCid: CID, host: new Host() }));
  const version1 = 1n << 32n;
  const bits: bigint[] = [];
  for (let bit = 0n; bit < 64n; bit++) {
    const mask = 1n << bit;
    if (mask !== version1 && (make().offeredFeatures & mask) !== 0n) {
      bits.push(mask);
    }
  }
  for (let choice = 0; choice < 2 ** bits.length; choice++) {
    const virtio = make();
    let features = version1;
    for (const [i, mask] of bits.entries()) {
      if ((choice >> i & 1) !== 0) features |= mask;
    }
    // The same features are taken again after a reset.
    for (let round = 0; round < 2; round++) {
      virtio.setStatus(1);
      virtio.setStatus(3);
      virtio.setFeatures(features);
      virtio.setStatus(11);
      assertEquals(virtio.status, 11, `features 0x${features.toString(16)}`);
      virtio.setStatus(4);
      assertEquals(virtio.status, 15);
      virtio.setStatus(0);
      assertEquals(virtio.status, 0);
    }
  }
});
