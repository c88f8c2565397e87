import {
  assert,
  assertEquals,
  assertGreater,
  assertLess,
  assertMatch,
  assertNotEquals,
  assertThrows,
} from "@std/assert";
import { createMemfd, resizeFile } from "../device/host/mmap.ts";
import {
  acceptFrom,
  closeFd,
  connectTo,
  listenAt,
  receiveBytes,
  sendBytes,
  SHUT_RD,
  shutdownSocket,
} from "../device/host/socket.ts";
import {
  VHOST_USER_ADD_MEM_REG,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
} from "../device/vhost_user/constants.ts";
import { encodeMemoryRegion } from "../device/vhost_user/message.ts";
import { BufferList, type RingFormat } from "../ring/queue.ts";
import { VIRTQ_DESC_F_AVAIL, VIRTQ_DESC_F_NEXT } from "../ring/virtio_ring.ts";
import { cpuMs, exists, openFds, Rig, RIG_CID } from "./front_end_rig.ts";
import { FrontEndError, VhostUserChannel } from "./guest/vhost_user_channel.ts";
import {
  CID_HOST,
  encodeHeader,
  OP_CREDIT_REQUEST,
  OP_REQUEST,
  OP_RESPONSE,
  OP_RST,
  OP_RW,
  SHUTDOWN_RCV,
  SHUTDOWN_SEND,
  TYPE_STREAM,
} from "./guest/vsock_header.ts";
import { readExactly, readLine, text, write } from "./streams.ts";

/** Bound of the issue for a refusal. */
const REFUSAL_LIMIT_MS = 200;

/** Some bytes that are not all alike. */
function bytesOf(length: number, seed = 1): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (i * 31 + seed) ^ (i >> 8));
}

/** The rest of what a host program's end can read: all of it, up to the end or a reset. */
async function rest(far: Deno.Conn): Promise<number> {
  let count = 0;
  const chunk = new Uint8Array(65536);
  try {
    for (;;) {
      const got = await far.read(chunk);
      if (got === null) return count;
      count += got;
    }
  } catch (error) {
    if (error instanceof Deno.errors.ConnectionReset) return count;
    throw error;
  }
}

/** A test on both formats. */
function both(name: string, test: (ring: RingFormat) => Promise<void>): void {
  for (const ring of ["split", "packed"] as const) {
    Deno.test(`${name} (${ring})`, () => test(ring));
  }
}

// -- Ways to negotiate --

for (
  const [name, options] of [
    ["two queues", { queues: 2 }],
    ["three queues", { queues: 3 }],
    ["no protocol features", { protocolFeatures: [] }],
    ["a memory table instead of memory slots", {
      protocolFeatures: [
        VHOST_USER_PROTOCOL_F_MQ,
        VHOST_USER_PROTOCOL_F_CONFIG,
        VHOST_USER_PROTOCOL_F_REPLY_ACK,
      ],
    }],
    ["neither event index nor indirect descriptors", {
      eventIdx: false,
      indirectEntries: 0,
    }],
    ["base 0 for new rings", { packedBase: 0 }],
    ["a queue of 256", { queueSize: 256 }],
  ] as const
) {
  both(`Device serves a front-end with ${name}`, async (ring) => {
    await using rig = await Rig.start({ ring, ...options });
    assertEquals(rig.front.driver.guestCid, RIG_CID);
    await rig.echo();
    const { near, far } = await rig.fromHost(80);
    await write(far, text("hello"));
    assertEquals(await rig.readNear(near, 5), text("hello"));
    await rig.sendNear(near, text("hi"));
    assertEquals(await rig.readFar(far, 2), text("hi"));
  });
}

Deno.test("Device held to split refuses a packed front-end in words and serves the next one", async () => {
  await using rig = await Rig.start({ ring: "split" }, { ring: "split" });
  assertThrows(() => rig.reconnect({ ring: "packed" }), FrontEndError);
  rig.reconnect();
  await rig.echo();
  assertMatch(rig.log.join("\n"), /VIRTIO_F_RING_PACKED/);
});

both("Device serves the next front-end when one has hung up", async (ring) => {
  await using rig = await Rig.start({ ring });
  const { far } = await rig.fromGuest(900);
  rig.reconnect();
  assertEquals(await rig.drive(rest(far)), 0);
  await rig.echo();
  rig.front.reboot();
  await rig.echo();
});

Deno.test("Device survives a front-end that sends rubbish", async () => {
  await using rig = await Rig.start();
  await rig.echo();
  rig.front.close();
  for (const bytes of [text("GET / HTTP/1.1\r\n\r\n"), new Uint8Array(100)]) {
    const channel = new VhostUserChannel(rig.socketPath, 2000);
    try {
      channel.sendBytes(bytes);
      assertEquals(channel.receive(), null);
      assert(channel.ended);
    } finally {
      channel.close();
    }
  }
  rig.reconnect();
  await rig.echo();
});

// -- What a field of other back-ends gets wrong --

both(
  "1. A host client that leaves between REQUEST and RESPONSE does no harm",
  async (ring) => {
    await using rig = await Rig.start({ ring });
    const { driver } = rig.front;
    driver.claimPort(5000);
    const far = await rig.dial();
    await write(far, text("CONNECT 5000\n"));
    await rig.front.until(() => driver.rawPackets.length === 1);
    const { op, srcPort } = driver.rawPackets[0]!.header;
    assertEquals(op, OP_REQUEST);
    far.close();
    await rig.pass(50);
    driver.sendPacket({ op: OP_RESPONSE, srcPort: 5000, dstPort: srcPort });
    await rig.front.until(() => driver.rawPackets.length >= 2);
    for (const { header } of driver.rawPackets.slice(1)) {
      assertEquals([header.op, header.srcPort], [OP_RST, srcPort]);
    }
    await rig.echo();
  },
);

both(
  "2. A client that sends CONNECT and closes at once leaves nothing behind",
  async (ring) => {
    await using rig = await Rig.start({ ring });
    await rig.echo();
    const before = openFds(rig.pid);
    const listener = rig.front.driver.listen(5000);
    for (let i = 0; i < 100; i++) {
      const far = await rig.dial();
      // Every other one to a port where nobody listens.
      await write(far, text(`CONNECT ${5000 + i % 2}\n`));
      far.close();
      await rig.pass(0);
      listener.accept()?.close();
    }
    await rig.front.until(() => {
      listener.accept()?.close();
      return openFds(rig.pid) === before && rig.front.driver.connections === 0;
    });
    await rig.drive(rig.device.metrics());
    const cpu = cpuMs(rig.pid);
    await new Promise((resolve) => setTimeout(resolve, 400));
    assertLess(cpuMs(rig.pid) - cpu, 200, "an idle device uses the CPU");
    await rig.echo();
  },
);

both(
  "4. A broken ring stops itself alone, and a reboot of the guest brings it back",
  async (ring) => {
    await using rig = await Rig.start({ ring });
    const { far } = await rig.fromGuest(900);
    const { size, descriptorArea, driverArea } = rig.front.queueConfig(1);
    if (ring === "split") {
      const avail = rig.front.memory.bytes(driverArea, 4);
      avail[3]! ^= 0x40;
    } else {
      // One chain that is as long as the ring and goes on.
      const table = rig.front.memory.bytes(descriptorArea, 16 * size);
      const view = new DataView(table.buffer, table.byteOffset);
      for (let i = 0; i < size; i++) {
        view.setUint16(
          16 * i + 14,
          VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_AVAIL,
          true,
        );
      }
    }
    rig.front.kick(1);
    let broken = false;
    await rig.front.until(() => broken ||= rig.front.takeError(1));
    rig.front.reboot();
    // The connections of the old driver are over.
    assertEquals(await rig.drive(rest(far)), 0);
    await rig.echo();
    rig.reconnect();
    await rig.echo();
  },
);

both(
  "5. A host listener with a full backlog holds nobody else up",
  async (ring) => {
    await using rig = await Rig.start({ ring });
    const { near, far } = await rig.fromGuest(900);
    const listener = listenAt(`${rig.udsPath}_600`, 0);
    const waiting: number[] = [];
    try {
      for (;;) {
        const fd = connectTo(`${rig.udsPath}_600`);
        if (fd < 0) break;
        waiting.push(fd);
      }
      assertGreater(waiting.length, 0);
      const stuck = rig.front.driver.connect(600);
      for (let i = 0; i < 10; i++) {
        await rig.sendNear(near, bytesOf(1000, i));
        assertEquals(await rig.readFar(far, 1000), bytesOf(1000, i));
      }
      assertEquals(stuck.state, "connecting");
      // Before the guest gives up by itself, it is told.
      await rig.front.until(() => stuck.state === "closed");
      assertEquals(stuck.closeReason, "refused");
      // With room in time, it is connected.
      const patient = rig.front.driver.connect(600);
      await rig.pass(20);
      for (
        let fd = acceptFrom(listener.fd);
        fd >= 0;
        fd = acceptFrom(listener.fd)
      ) {
        waiting.push(fd);
      }
      await rig.front.until(() => patient.state === "connected");
    } finally {
      for (const fd of waiting) closeFd(fd);
      listener.close();
    }
  },
);

both(
  "6. A device without free descriptors refuses and waits, and goes on when there are some",
  async (ring) => {
    await using rig = await Rig.startProcess({ ring }, 80);
    await rig.echo();
    using listener = rig.listen(800);
    const clients: Deno.Conn[] = [];
    for (let i = 0; i < 100; i++) clients.push(await rig.dial());
    await rig.pass(200);
    const start = performance.now();
    const refused = rig.front.driver.connect(800);
    await rig.front.until(() => refused.state === "closed");
    assertEquals(refused.closeReason, "refused");
    assertLess(performance.now() - start, REFUSAL_LIMIT_MS);
    const cpu = cpuMs(rig.pid);
    await rig.pass(500);
    assertLess(cpuMs(rig.pid) - cpu, 250, "it spins on accept");
    for (const client of clients) client.close();
    await rig.pass(200);
    const near = rig.front.driver.connect(800);
    const far = await rig.drive(listener.accept());
    far.close();
    await rig.front.until(() => near.state === "closed");
    await rig.echo();
  },
);

both(
  "7. A guest that reads slowly causes no endless exchange of credit",
  async (ring) => {
    await using rig = await Rig.start({ ring });
    const { near, far } = await rig.fromGuest(900);
    const bytes = bytesOf(2_000_000);
    const writing = write(far, bytes);
    await rig.front.until(() => near.available === near.bufAlloc);
    const { received, sent } = rig.front.driver;
    const [asked, answered] = [
      received[OP_CREDIT_REQUEST]!,
      sent.reduce((a, b) => a + b),
    ];
    await rig.pass(1500);
    assertLess(received[OP_CREDIT_REQUEST]! - asked, 20);
    assertLess(sent.reduce((a, b) => a + b) - answered, 20);
    assertEquals(await rig.readNear(near, bytes.length), bytes);
    await writing;
  },
);

both(
  "8. A guest that closes with unread data gets its RST, and the host its end",
  async (ring) => {
    await using rig = await Rig.start({ ring });
    // All of it with the guest, and more than the guest has room for.
    for (const length of [100_000, 2_000_000]) {
      const { near, far } = await rig.fromGuest(900);
      const writing = write(far, bytesOf(length)).catch((error) => {
        if (!(error instanceof Deno.errors.BrokenPipe)) throw error;
      });
      const waiting = Math.min(length, near.bufAlloc);
      await rig.front.until(() => near.available === waiting);
      near.close();
      await rig.front.until(() => near.state === "closed", 1000);
      assertEquals(near.closeReason, "shutdown");
      await rig.drive(writing, 1000);
      assertEquals(await rig.drive(rest(far), 1000), 0);
    }
  },
);

both(
  "9. A malformed tx chain is returned, and the others are delivered",
  async (ring) => {
    await using rig = await Rig.start({ ring });
    const { driver } = rig.front;
    const { near, far } = await rig.fromGuest(900);
    driver.claimPort(40);
    const rw = { srcCid: RIG_CID, dstCid: CID_HOST, srcPort: 40, dstPort: 50 };
    const header = encodeHeader({
      ...rw,
      type: TYPE_STREAM,
      op: OP_RW,
      len: 9,
    });
    const hole = 0x8000_0000;
    const good = rig.front.memory.regions[1]!.guestAddress +
      rig.front.memory.regions[1]!.size - 64;
    const chains = [
      driver.sendRaw([new Uint8Array(10)]),
      driver.sendRaw([header]),
      driver.sendRaw([header, new Uint8Array(8)]),
      driver.sendRaw([header, new Uint8Array(10)]),
      driver.sendRaw([], [44]),
      driver.sendRaw([header, new Uint8Array(9)], [44]),
      driver.sendRaw([header.subarray(0, 43)]),
      driver.sendList(new BufferList().addReadable(hole, 44)),
      driver.sendList(
        new BufferList().addReadable(good, 44).addReadable(hole, 9),
      ),
      driver.sendList(new BufferList().addReadable(good, 1000)),
      driver.sendList(new BufferList().addReadable(2 ** 52, 44)),
    ];
    await rig.front.until(() => chains.every((chain) => chain!.used));
    for (const chain of chains) assertEquals(chain!.usedLength, 0);
    await rig.sendNear(near, bytesOf(5000));
    assertEquals(await rig.readFar(far, 5000), bytesOf(5000));
  },
);

both(
  "9. A payload in four descriptors and a header split over two are delivered",
  async (ring) => {
    for (const joined of [false, true]) {
      await using rig = await Rig.start({
        ring,
        driver: {
          maxPayload: 1000,
          txLayout: { header: [20, 24], segmentBytes: 250, joined },
          rxLayout: [30, 20, 1000],
        },
      });
      await rig.echo();
    }
  },
);

both(
  "10. Packets of no connection are answered by RST, an RST by nothing",
  async (ring) => {
    await using rig = await Rig.start({ ring });
    const { driver } = rig.front;
    using _listener = rig.listen(900);
    driver.claimPort(6000);
    const cases: [Parameters<typeof driver.sendPacket>[0], number][] = [
      [{ op: OP_REQUEST, type: 9, dstPort: 900 }, 9],
      [{ op: OP_RW, dstPort: 900, type: TYPE_STREAM }, TYPE_STREAM],
      [{ op: OP_RESPONSE, dstPort: 900 }, TYPE_STREAM],
      [{ op: OP_REQUEST, dstPort: 901 }, TYPE_STREAM],
      [{ op: OP_REQUEST, dstPort: 900, dstCid: 77 }, TYPE_STREAM],
    ];
    for (const [fields, type] of cases) {
      driver.rawPackets.length = 0;
      driver.sendPacket({ srcPort: 6000, ...fields });
      await rig.front.until(() => driver.rawPackets.length === 1);
      const { header, payload } = driver.rawPackets[0]!;
      assertEquals(
        [header.op, header.type, header.srcPort, header.srcCid, header.dstCid],
        [OP_RST, type, fields.dstPort, fields.dstCid ?? CID_HOST, RIG_CID],
      );
      assertEquals([header.flags, header.len, payload.length], [0, 0, 0]);
    }
    driver.rawPackets.length = 0;
    for (const [fields] of cases) {
      driver.sendPacket({ srcPort: 6000, ...fields, op: OP_RST });
    }
    await rig.echo();
    assertEquals(driver.rawPackets, []);
  },
);

both(
  "11. A memory region truncated by its owner does not kill the device",
  async (ring) => {
    // In a process of its own: SIGBUS would take this one along.
    await using rig = await Rig.startProcess({ ring });
    const { far } = await rig.fromGuest(900);
    const size = 1 << 20;
    const fd = createMemfd(size, { sealable: false });
    const guestAddress = 0x2_0000_0000;
    try {
      rig.front.tell(
        VHOST_USER_ADD_MEM_REG,
        encodeMemoryRegion({
          guestAddress,
          size,
          userAddress: guestAddress,
          mmapOffset: 0,
        }),
        [fd],
      );
      resizeFile(fd, 0);
      const { driver } = rig.front;
      for (let i = 0; i < 8; i++) {
        driver.sendList(
          new BufferList().addReadable(guestAddress + 4096 * i, 44),
        );
      }
      driver.flush();
      await rig.pass(200);
    } finally {
      closeFd(fd);
    }
    rig.reconnect();
    assertEquals(await rig.drive(rest(far)), 0);
    await rig.echo();
  },
);

// -- Refusals --

both(
  "Guest's connection is refused in under 200 ms where nobody can answer",
  async (ring) => {
    await using rig = await Rig.start({ ring });
    // A socket file that its program has left behind.
    const dead = listenAt(`${rig.udsPath}_700`, 1);
    closeFd(dead.fd);
    await Deno.writeTextFile(`${rig.udsPath}_701`, "not a socket");
    for (
      const [name, port, cid] of [
        ["nobody listens", 699, 2],
        ["a dead socket file", 700, 2],
        ["a file that is no socket", 701, 2],
        ["an unknown CID", 699, 77],
        ["the guest's own CID", 699, RIG_CID],
        ["the hypervisor's CID", 699, 0],
      ] as const
    ) {
      const start = performance.now();
      const connection = rig.front.driver.connect(port, { cid });
      // The device answers as the CID that was asked for, which the driver calls nobody's.
      if (cid === 0 || cid === RIG_CID) {
        rig.front.driver.claimPort(connection.localPort);
        await rig.front.until(() => rig.front.driver.rawPackets.length > 0);
        const [packet] = rig.front.driver.rawPackets.splice(0);
        assertEquals([packet!.header.op, packet!.header.srcCid], [OP_RST, cid]);
        connection.close();
      } else {
        await rig.front.until(() => connection.state === "closed");
        assertEquals(connection.closeReason, "refused", name);
      }
      assertLess(performance.now() - start, REFUSAL_LIMIT_MS, name);
    }
  },
);

both(
  "Listener that never accepts does not hang the connections that run",
  async (ring) => {
    await using rig = await Rig.start({ ring });
    const { near, far } = await rig.fromGuest(900);
    using _listener = rig.listen(901);
    for (let i = 0; i < 20; i++) {
      const other = rig.front.driver.connect(901);
      await rig.front.until(() => other.state === "connected");
      while (other.send(bytesOf(65536)) > 0);
      await rig.sendNear(near, bytesOf(2000, i));
      assertEquals(await rig.readFar(far, 2000), bytesOf(2000, i));
    }
  },
);

// -- Half-closes --

both(
  "Guest's SHUTDOWN(SEND) ends what the host reads, and the answer comes back",
  async (ring) => {
    await using rig = await Rig.start({ ring });
    for (
      const { near, far } of [await rig.fromGuest(900), await rig.fromHost(80)]
    ) {
      const bytes = bytesOf(300_000);
      const reading = readExactly(far, bytes.length + 1);
      await rig.sendNear(near, bytes);
      near.shutdown(SHUTDOWN_SEND);
      assertEquals(await rig.drive(reading), bytes);
      const writing = write(far, bytes);
      assertEquals(await rig.readNear(near, bytes.length), bytes);
      await writing;
      far.close();
      await rig.front.until(() => near.state === "closed");
      assertEquals(near.closeReason, "shutdown");
    }
  },
);

both(
  "Guest's SHUTDOWN(RCV) ends what the host writes, and the guest goes on sending",
  async (ring) => {
    await using rig = await Rig.start({ ring });
    const { near, far } = await rig.fromGuest(900);
    near.shutdown(SHUTDOWN_RCV);
    let broken = false;
    const writing = (async () => {
      try {
        for (;;) await write(far, bytesOf(65536));
      } catch (error) {
        if (!(error instanceof Deno.errors.BrokenPipe)) throw error;
        broken = true;
      }
    })();
    await rig.front.until(() => broken);
    await writing;
    await rig.sendNear(near, bytesOf(100_000));
    assertEquals(await rig.readFar(far, 100_000), bytesOf(100_000));
  },
);

both(
  "Host's end of sending is the guest's end of file, and the answer comes back",
  async (ring) => {
    await using rig = await Rig.start({ ring });
    for (
      const { near, far } of [await rig.fromGuest(900), await rig.fromHost(80)]
    ) {
      const bytes = bytesOf(300_000);
      const writing = write(far, bytes).then(() => far.closeWrite());
      assertEquals(await rig.readNear(near, bytes.length), bytes);
      await writing;
      await rig.front.until(() => near.atEnd);
      assertEquals(near.peerShutdown, SHUTDOWN_SEND);
      const reading = readExactly(far, bytes.length + 1);
      await rig.sendNear(near, bytes);
      near.shutdown(SHUTDOWN_SEND);
      assertEquals(await rig.drive(reading), bytes);
      await rig.front.until(() => near.state === "closed");
    }
  },
);

both(
  "Host's end of receiving stops the guest's sending, and the host goes on",
  async (ring) => {
    await using rig = await Rig.start({ ring });
    const listener = listenAt(`${rig.udsPath}_900`, 4);
    let far = -1;
    try {
      const near = rig.front.driver.connect(900);
      await rig.front.until(() => (far = acceptFrom(listener.fd)) >= 0);
      await rig.front.until(() => near.state === "connected");
      shutdownSocket(far, SHUT_RD);
      await rig.front.until(() => {
        near.send(bytesOf(100));
        return near.sendEnded;
      });
      assertEquals([near.state, near.peerShutdown], [
        "connected",
        SHUTDOWN_RCV,
      ]);
      const bytes = bytesOf(50_000);
      let done = 0;
      await rig.front.until(() => {
        const piece = new Uint8Array(bytes.slice(done).buffer);
        const sent = sendBytes(far, piece, piece.length);
        if (sent > 0) done += sent;
        return done === bytes.length;
      });
      assertEquals(await rig.readNear(near, bytes.length), bytes);
    } finally {
      if (far >= 0) closeFd(far);
      listener.close();
    }
  },
);

// -- Host programs --

both("Guest notices at once that a host program was killed", async (ring) => {
  await using rig = await Rig.start({ ring });
  // In mid-stream, with bytes in the socket that it has not read.
  const sending = await rig.fromGuest(900);
  sending.near.send(bytesOf(65536));
  await rig.pass(20);
  sending.far.close();
  const idle = await rig.fromHost(80);
  idle.far.close();
  await rig.front.until(
    () => sending.near.state === "closed" && idle.near.state === "closed",
    1000,
  );
  await rig.echo();
});

both("CONNECT line in pieces, with bytes behind it, is taken", async (ring) => {
  await using rig = await Rig.start({ ring });
  const listener = rig.front.driver.listen(80);
  const far = await rig.dial();
  for (const piece of ["CO", "NNECT", " 8", "0", "\nhel"]) {
    await write(far, text(piece));
    await rig.pass(15);
  }
  assertMatch(await rig.drive(readLine(far)), /^OK \d+$/);
  const near = listener.accept();
  assert(near !== null);
  await write(far, text("lo"));
  assertEquals(await rig.readNear(near, 5), text("hello"));
});

both(
  "CONNECT line that is none, or is refused, closes the connection without OK",
  async (ring) => {
    await using rig = await Rig.start({ ring });
    for (
      const line of [
        "CONNECT 80\n", // Nobody listens there.
        "CONNECT x\n",
        "CONNECT\n",
        "CONNECT -1\n",
        "CONNECT 4294967295\n",
        "CONNECT 99999999999999999999\n",
        "HELLO 80\n",
        "\n",
        `CONNECT ${"0".repeat(1000)}`,
      ]
    ) {
      const far = await rig.dial();
      await write(far, text(line));
      assertEquals(await rig.drive(rest(far)), 0, line);
    }
    await rig.echo();
  },
);

both("Host that speaks first is heard after RESPONSE", async (ring) => {
  await using rig = await Rig.start({ ring });
  const { driver } = rig.front;
  // The guest connects: its driver checks that RESPONSE comes before the data.
  using listener = rig.listen(900);
  const near = driver.connect(900);
  const far = await rig.drive(listener.accept());
  await write(far, text("hello"));
  assertEquals(await rig.readNear(near, 5), text("hello"));
  far.close();
  // The host connects: nothing but REQUEST before the guest has answered.
  driver.claimPort(5000);
  const eager = await rig.dial();
  await write(eager, text("CONNECT 5000\nhello"));
  await rig.pass(150);
  assertEquals(driver.rawPackets.map(({ header }) => header.op), [OP_REQUEST]);
  const { srcPort } = driver.rawPackets[0]!.header;
  driver.sendPacket({
    op: OP_RESPONSE,
    srcPort: 5000,
    dstPort: srcPort,
    bufAlloc: 65536,
  });
  await rig.front.until(() => driver.rawPackets.length > 1);
  const { header, payload } = driver.rawPackets[1]!;
  assertEquals([header.op, payload], [OP_RW, text("hello")]);
  assertMatch(await rig.drive(readLine(eager)), /^OK \d+$/);
});

// -- The end --

both(
  "SIGTERM tells guest and host programs and removes the socket files",
  async (ring) => {
    await using rig = await Rig.startProcess({ ring });
    const { near, far } = await rig.fromGuest(900);
    assert(exists(rig.socketPath) && exists(rig.udsPath));
    const stopped = rig.device.stop();
    await rig.front.until(() => near.state === "closed");
    assertEquals(await rest(far), 0);
    await stopped;
    assertEquals([exists(rig.socketPath), exists(rig.udsPath)], [false, false]);
  },
);

both("Device.stop() tells guest and host programs", async (ring) => {
  await using rig = await Rig.start({ ring });
  const { near, far } = await rig.fromHost(80);
  const stopped = rig.device.stop();
  await rig.front.until(() => near.state === "closed");
  assertEquals(await rest(far), 0);
  await stopped;
  assertEquals([exists(rig.socketPath), exists(rig.udsPath)], [false, false]);
  assertEquals(receiveBytes(rig.front.channel.fd, new Uint8Array(1), 1), 0);
  assertNotEquals(near.closeReason, "timeout");
});
