import {
  assert,
  assertEquals,
  assertMatch,
  assertStrictEquals,
  assertThrows,
} from "@std/assert";
import { Chain } from "../../ring/chain.ts";
import { GuestMemory } from "../../ring/memory.ts";
import type { QueueConfig } from "../../ring/queue.ts";
import { SplitDevice } from "../../ring/split_device.ts";
import { type VsockDriverOptions, VsockViolation } from "./driver_options.ts";
import type { GuestConnection } from "./guest_connection.ts";
import { layOutQueue, makeDriverQueue } from "./driver_queue.ts";
import { MemoryArena } from "./memory_arena.ts";
import { VsockDriver } from "./vsock_driver.ts";
import {
  encodeHeader,
  HEADER_BYTES,
  OP_CREDIT_REQUEST,
  OP_CREDIT_UPDATE,
  OP_REQUEST,
  OP_RESPONSE,
  OP_RST,
  OP_RW,
  OP_SHUTDOWN,
  opName,
  type PacketFields,
  PacketHeader,
  SHUTDOWN_BOTH,
  SHUTDOWN_RCV,
  SHUTDOWN_SEND,
} from "./vsock_header.ts";

const CID = 3;

type Sent = PacketFields & { payload: Uint8Array; segments: number[] };

/** A device that a test plays by hand, so that it can break every rule. */
class HandDevice {
  readonly driver: VsockDriver;
  readonly kicks: number[] = [];
  cid = CID;
  clock = 0;
  readonly #queues: SplitDevice[];
  readonly #chain: Chain;

  constructor(options: Partial<VsockDriverOptions> = {}, queueSize = 16) {
    const size = 4 * 1024 * 1024;
    const memory = new GuestMemory([
      { guestAddress: 0x10000, size, buffer: new ArrayBuffer(size) },
    ]);
    const arena = new MemoryArena(memory);
    const configs: QueueConfig[] = [0, 1, 2].map(() =>
      layOutQueue(arena, "split", queueSize)
    );
    const [rx, tx, event] = configs.map((config) =>
      makeDriverQueue(arena, "split", config, 0)
    );
    this.#queues = configs.map((config) => new SplitDevice(memory, config));
    this.#chain = new Chain(memory);
    this.driver = new VsockDriver({
      rx: rx!,
      tx: tx!,
      event: event!,
      arena,
      readCid: () => this.cid,
      kick: (queue) => this.kicks.push(queue),
      now: () => this.clock,
      ...options,
    });
    this.driver.poll();
  }

  /** Takes the packets that the driver has sent. */
  take(): Sent[] {
    this.driver.poll();
    const tx = this.#queues[1]!;
    const chain = this.#chain;
    const packets: Sent[] = [];
    while (tx.pop(chain)) {
      const bytes = new Uint8Array(chain.readableBytes);
      chain.read(bytes);
      packets.push({
        ...new PacketHeader().read(new DataView(bytes.buffer), 0).fields(),
        payload: bytes.subarray(HEADER_BYTES),
        segments: [...chain.length.subarray(0, chain.count)],
      });
      tx.push(chain.token, 0);
    }
    tx.publish();
    this.driver.poll();
    return packets;
  }

  /** Sends bytes to the driver as one packet. */
  put(bytes: Uint8Array, usedLength = bytes.length, queue = 0): void {
    const device = this.#queues[queue]!;
    assert(device.pop(this.#chain), "the driver has posted a buffer");
    assertEquals(this.#chain.write(bytes), bytes.length);
    device.push(this.#chain.token, usedLength);
    device.publish();
  }

  /** Sends a packet for `connection`, or with these fields alone. */
  send(
    op: number,
    fields: Partial<PacketFields> = {},
    payload = new Uint8Array(0),
    connection?: GuestConnection,
  ): void {
    const header = encodeHeader({
      srcCid: 2,
      dstCid: this.cid,
      srcPort: connection?.peerPort ?? 70,
      dstPort: connection?.localPort ?? 80,
      len: payload.length,
      type: 1,
      op,
      bufAlloc: 65536,
      ...fields,
    });
    const bytes = new Uint8Array(HEADER_BYTES + payload.length);
    bytes.set(header);
    bytes.set(payload, HEADER_BYTES);
    this.put(bytes);
  }

  /** Opens a connection from the guest. */
  connected(bufAlloc = 65536): GuestConnection {
    const connection = this.driver.connect(1234);
    assertEquals(names(this.take()), ["REQUEST"]);
    this.send(OP_RESPONSE, { bufAlloc }, undefined, connection);
    this.driver.poll();
    assertEquals(connection.state, "connected");
    return connection;
  }

  /** Expects the driver to find this fault. */
  refused(text: RegExp): void {
    const error = assertThrows(() => this.driver.poll(), VsockViolation);
    assertMatch(error.message, text);
  }
}

function names(packets: Sent[]): string[] {
  return packets.map(({ op }) => opName(op));
}

Deno.test("VsockDriver.connect() sends REQUEST and is connected by RESPONSE", () => {
  const device = new HandDevice();
  const connection = device.driver.connect(1234);
  const [request] = device.take();
  assertEquals(
    { ...request, payload: 0 },
    {
      srcCid: CID,
      srcCidHigh: 0,
      dstCid: 2,
      dstCidHigh: 0,
      srcPort: connection.localPort,
      dstPort: 1234,
      len: 0,
      type: 1,
      op: OP_REQUEST,
      flags: 0,
      bufAlloc: 262144,
      fwdCnt: 0,
      payload: 0,
      segments: [44],
    },
  );
  assertEquals(connection.state, "connecting");
  assertEquals(connection.send(new Uint8Array(1)), 0);
  device.send(OP_RESPONSE, {}, undefined, connection);
  device.driver.poll();
  assertEquals(connection.state, "connected");
});

Deno.test("VsockDriver.connect() is refused by RST and given up after 2 s", () => {
  const device = new HandDevice();
  const refused = device.driver.connect(1);
  const silent = device.driver.connect(2);
  device.take();
  device.send(OP_RST, { bufAlloc: 0 }, undefined, refused);
  device.clock = 1999;
  device.driver.poll();
  device.driver.expire();
  assertEquals(refused.closeReason, "refused");
  assertEquals(silent.state, "connecting");
  device.clock = 2000;
  device.driver.expire();
  assertEquals(silent.closeReason, "timeout");
  assertEquals(device.driver.connections, 0);
  // A RESPONSE that comes too late finds nobody.
  device.send(OP_RESPONSE, {}, undefined, silent);
  assertEquals(names(device.take()), ["RST"]);
});

Deno.test("VsockDriver.listen() accepts as long as its backlog has room", () => {
  const device = new HandDevice();
  const listener = device.driver.listen(80, 1);
  device.send(OP_REQUEST);
  device.send(OP_REQUEST, { srcPort: 71 });
  device.send(OP_REQUEST, { dstPort: 81 });
  assertEquals(
    device.take().map(({ op, srcPort, dstPort }) => [op, srcPort, dstPort]),
    [[OP_RESPONSE, 80, 70], [OP_RST, 80, 71], [OP_RST, 81, 70]],
  );
  const connection = listener.accept();
  assertEquals([connection?.state, connection?.peerPort], ["connected", 70]);
  assertStrictEquals(listener.accept(), null);
  listener.close();
  device.send(OP_REQUEST, { srcPort: 72 });
  assertEquals(names(device.take()), ["RST"]);
});

Deno.test("GuestConnection.send() stops at the device's credit and goes on with more", () => {
  const device = new HandDevice({ maxPayload: 1000 });
  const connection = device.connected(2500);
  assertEquals(connection.send(new Uint8Array(4000)), 2500);
  assertEquals(device.take().map(({ len }) => len), [1000, 1000, 500]);
  assertEquals(connection.send(new Uint8Array(1)), 0);
  device.send(
    OP_CREDIT_UPDATE,
    { bufAlloc: 2500, fwdCnt: 1100 },
    undefined,
    connection,
  );
  device.driver.poll();
  assertEquals(connection.credit, 1100);
  assertEquals(connection.send(new Uint8Array(4000)), 1100);
});

Deno.test("GuestConnection counts credit across 2^32", () => {
  const device = new HandDevice();
  const connection = device.connected();
  connection.txCnt = connection.peerFwdCnt = 0xffff_fff0;
  assertEquals(connection.send(new Uint8Array(100)), 100);
  assertEquals(connection.txCnt, 84);
  assertEquals(connection.credit, 65536 - 100);
  device.take();
  device.send(OP_CREDIT_UPDATE, { fwdCnt: 80 }, undefined, connection);
  device.driver.poll();
  assertEquals(connection.credit, 65536 - 4);
});

Deno.test("GuestConnection.read() tells of its room before the device runs out", () => {
  const device = new HandDevice({ bufAlloc: 70000 });
  const connection = device.connected();
  const chunk = new Uint8Array(3000).map((_, i) => i);
  device.send(OP_RW, {}, chunk, connection);
  device.send(OP_RW, {}, chunk, connection);
  device.driver.poll();
  assertEquals(connection.available, 6000);
  const target = new Uint8Array(4464);
  // 70000 - 4464 is the threshold of 64 KiB, which is room enough.
  assertEquals(connection.read(target), 4464);
  assertEquals(target[3001], 1);
  assertEquals(device.take(), []);
  assertEquals(connection.read(target.subarray(0, 1)), 1);
  const [update] = device.take();
  assertEquals([update?.op, update?.fwdCnt], [OP_CREDIT_UPDATE, 4465]);
});

Deno.test("GuestConnection answers CREDIT_REQUEST", () => {
  const device = new HandDevice();
  const connection = device.connected();
  device.send(OP_CREDIT_REQUEST, {}, undefined, connection);
  assertEquals(names(device.take()), ["CREDIT_UPDATE"]);
});

Deno.test("GuestConnection drains what came before SHUTDOWN, then sends RST", () => {
  const device = new HandDevice();
  const connection = device.connected();
  device.send(OP_RW, {}, new Uint8Array(10), connection);
  device.send(OP_SHUTDOWN, { flags: SHUTDOWN_SEND }, undefined, connection);
  device.driver.poll();
  assertEquals([connection.available, connection.atEnd], [10, false]);
  assertEquals(connection.send(new Uint8Array(5)), 5);
  device.send(OP_SHUTDOWN, { flags: SHUTDOWN_RCV }, undefined, connection);
  device.driver.poll();
  assertEquals(connection.send(new Uint8Array(5)), 0);
  assertEquals(names(device.take()), ["RW"]);
  assertEquals(connection.read(new Uint8Array(20)), 10);
  assertEquals(connection.closeReason, "shutdown");
  assert(connection.atEnd);
  assertEquals(names(device.take()), ["RST"]);
});

Deno.test("GuestConnection.close() sends SHUTDOWN and waits 8 s for RST", () => {
  const device = new HandDevice();
  const first = device.connected();
  const second = device.connected();
  first.close();
  second.close();
  const packets = device.take();
  assertEquals(packets.map(({ op, flags }) => [op, flags]), [
    [OP_SHUTDOWN, SHUTDOWN_BOTH],
    [OP_SHUTDOWN, SHUTDOWN_BOTH],
  ]);
  device.send(OP_RST, {}, undefined, first);
  device.driver.poll();
  assertEquals([first.state, second.state], ["closed", "closing"]);
  device.clock = 8000;
  device.driver.expire();
  assertEquals(second.closeReason, "timeout");
  assertEquals(names(device.take()), ["RST"]);
});

Deno.test("VsockDriver drops all connections on TRANSPORT_RESET and reads its CID", () => {
  const device = new HandDevice();
  const connection = device.connected();
  device.cid = 9;
  device.put(new Uint8Array(4), 4, 2);
  assertEquals(device.take(), []);
  assertEquals(connection.closeReason, "transport");
  assertEquals([device.driver.guestCid, device.driver.events], [9, 1]);
  device.driver.connect(5);
  assertEquals(device.take().map(({ srcCid }) => srcCid), [9]);
});

Deno.test("VsockDriver keeps its listeners over TRANSPORT_RESET, with the new CID", () => {
  const device = new HandDevice();
  const listener = device.driver.listen(80);
  device.cid = 9;
  device.put(new Uint8Array(4), 4, 2);
  device.driver.poll();
  device.send(OP_REQUEST);
  assertEquals(
    device.take().map(({ op, srcCid, srcPort }) => [op, srcCid, srcPort]),
    [[OP_RESPONSE, 9, 80]],
  );
  assertEquals(listener.accept()?.state, "connected");
});

Deno.test("VsockDriver answers an unknown type by RST", () => {
  const device = new HandDevice({ strict: false });
  const connection = device.connected();
  for (const type of [0, 2, 3, 0xffff]) {
    device.send(OP_RW, { type }, new Uint8Array(4), connection);
    assertEquals(
      device.take().map(({ op, type: echo, dstPort }) => [op, echo, dstPort]),
      [[OP_RST, type, connection.peerPort]],
    );
  }
  assertEquals(connection.available, 0);
});

Deno.test("VsockDriver tells its credit in every packet of a stream", () => {
  const device = new HandDevice();
  const connection = device.connected();
  const { bufAlloc } = connection;
  device.send(OP_RW, {}, new Uint8Array(300), connection);
  device.driver.poll();
  assertEquals(connection.read(new Uint8Array(200)), 200);
  connection.send(new Uint8Array(5));
  connection.updateCredit();
  connection.requestCredit();
  assertEquals(connection.read(new Uint8Array(200)), 100);
  connection.send(new Uint8Array(5));
  connection.shutdown(SHUTDOWN_SEND);
  const packets = device.take();
  assertEquals(
    packets.map(({ op, bufAlloc, fwdCnt }) => [opName(op), bufAlloc, fwdCnt]),
    [
      ["RW", bufAlloc, 200],
      ["CREDIT_UPDATE", bufAlloc, 200],
      ["CREDIT_REQUEST", bufAlloc, 200],
      ["RW", bufAlloc, 300],
      ["SHUTDOWN", bufAlloc, 300],
    ],
  );
});

Deno.test("VsockDriver cuts packets into descriptors as it is told", () => {
  const payload = Uint8Array.from({ length: 10_000 }, (_, i) => i % 251);
  for (
    const [txLayout, segments] of [
      [{}, [44, 10_000]],
      [{ header: [20, 24] }, [20, 24, 10_000]],
      [{ joined: true }, [10_044]],
      [{ joined: true, header: [40, 4], segmentBytes: 4096 }, [
        40,
        4100,
        4096,
        1808,
      ]],
      [{ segmentBytes: 1000 }, [44, ...new Array(10).fill(1000)]],
    ] as const
  ) {
    const device = new HandDevice({ txLayout, maxPayload: 10_000 });
    const connection = device.connected();
    assertEquals(connection.send(payload), 10_000);
    const [packet] = device.take();
    assertEquals(packet?.segments, [...segments]);
    assertEquals(packet?.payload, payload);
    connection.updateCredit();
    assertEquals(device.take()[0]?.op, OP_CREDIT_UPDATE);
  }
});

Deno.test("VsockDriver receives into any layout of descriptors", () => {
  for (const rxLayout of [[3776], [44, 4096], [4140], [10, 30, 20, 4000]]) {
    const device = new HandDevice({ rxLayout }, 64);
    const connection = device.connected();
    const payload = Uint8Array.from({ length: 3700 }, (_, i) => i % 253);
    device.send(OP_RW, {}, payload, connection);
    device.driver.poll();
    const target = new Uint8Array(4000);
    assertEquals(connection.read(target), 3700);
    assertEquals(target.subarray(0, 3700), payload);
  }
});

Deno.test("VsockDriver keeps packets for a full queue and sends them in order", () => {
  const device = new HandDevice({}, 4);
  const connection = device.connected();
  assertEquals(connection.send(new Uint8Array(10)), 10);
  assertEquals(connection.send(new Uint8Array(20)), 20);
  assertEquals(connection.send(new Uint8Array(30)), 0);
  connection.requestCredit();
  connection.shutdown(SHUTDOWN_SEND);
  assertEquals(device.driver.pendingPackets, 2);
  assertEquals(names(device.take()), ["RW", "RW"]);
  assertEquals(names(device.take()), ["CREDIT_REQUEST", "SHUTDOWN"]);
});

Deno.test("VsockDriver.sendRaw() sends any descriptors and returns what was written", () => {
  const device = new HandDevice();
  device.driver.claimPort(80);
  const raw = device.driver.sendRaw(
    [new Uint8Array(3), new Uint8Array(0), new Uint8Array(41)],
    [8],
  );
  assertEquals(device.take()[0]?.segments, [3, 41, 8]);
  assertEquals([raw?.used, raw?.usedLength], [true, 0]);
  assertEquals(raw?.written, [new Uint8Array(8)]);
  assertStrictEquals(device.driver.rawCompletions[0], raw);
  // Claimed ports are neither checked nor answered.
  device.send(OP_RW, { type: 7 }, new Uint8Array([1, 2]));
  assertEquals(device.take(), []);
  const [packet] = device.driver.rawPackets;
  assertEquals(
    [packet?.header.type, packet?.usedLength, [...packet!.payload]],
    [7, 46, [1, 2]],
  );
});

Deno.test("VsockDriver answers strangers with RST, and RST with nothing", () => {
  const device = new HandDevice();
  device.send(OP_RW, {}, new Uint8Array(4));
  assertEquals(
    device.take().map(({ op, srcPort, dstPort }) => [op, srcPort, dstPort]),
    [[OP_RST, 80, 70]],
  );
  device.send(OP_RST, { srcPort: 99 });
  assertEquals(device.take(), []);
});

// What the driver must see: each entry breaks one rule.
const FAULTS: [
  name: string,
  fault: (device: HandDevice, connection: GuestConnection) => void,
  text: RegExp,
][] = [
  [
    "used.len that does not count the payload",
    (d, c) => {
      const { localPort: dstPort } = c;
      const header = encodeHeader({
        srcCid: 2,
        dstCid: CID,
        srcPort: 1234,
        dstPort,
        len: 4,
        type: 1,
        op: OP_RW,
      });
      d.put(header, 44);
    },
    /RW with len 4 in 44 used bytes/,
  ],
  [
    "more bytes than the credit",
    (d, c) => {
      for (let i = 0; i < 3; i++) d.send(OP_RW, {}, new Uint8Array(3000), c);
    },
    /credit exceeded: 9000 bytes sent ahead of fwd_cnt 0, buf_alloc 8192/,
  ],
  [
    "a packet from a CID that is not the device's to use",
    (d, c) => d.send(OP_RW, { srcCid: 1 }, undefined, c),
    /from CID 1/,
  ],
  [
    "a source CID of more than 32 bits",
    (d, c) => d.send(OP_RW, { srcCidHigh: 1 }, undefined, c),
    /from CID 2/,
  ],
  [
    "a packet to another CID",
    (d, c) => d.send(OP_RW, { dstCid: 4 }, undefined, c),
    /to CID 4/,
  ],
  [
    "another type",
    (d, c) => d.send(OP_RW, { type: 2 }, undefined, c),
    /RW of type 2/,
  ],
  [
    "unknown flags",
    (d, c) => d.send(OP_SHUTDOWN, { flags: 4 }, undefined, c),
    /SHUTDOWN with flags 0x4/,
  ],
  [
    "an unknown operation",
    (d, c) => d.send(8, {}, undefined, c),
    /operation 8 is unknown/,
  ],
  [
    "payload in a packet that has none",
    (d, c) => d.send(OP_CREDIT_UPDATE, {}, new Uint8Array(1), c),
    /CREDIT_UPDATE with 1 bytes of payload/,
  ],
  ["a packet of zeros", (d) => d.put(new Uint8Array(44)), /packet of zeros/],
  [
    "a buffer that was not written",
    (d) => d.put(new Uint8Array(0), 0),
    /packet of zeros, 0 bytes used/,
  ],
  [
    "data after SHUTDOWN(SEND)",
    (d, c) => {
      d.send(OP_SHUTDOWN, { flags: SHUTDOWN_SEND }, undefined, c);
      d.send(OP_RW, {}, new Uint8Array(1), c);
    },
    /RW after SHUTDOWN\(SEND\)/,
  ],
  [
    "a second RESPONSE",
    (d, c) => d.send(OP_RESPONSE, {}, undefined, c),
    /RESPONSE on a connected connection/,
  ],
  [
    "a REQUEST on a connection",
    (d, c) => d.send(OP_REQUEST, {}, undefined, c),
    /REQUEST on a connected connection/,
  ],
  [
    "fwd_cnt beyond what was sent",
    (d, c) => d.send(OP_CREDIT_UPDATE, { fwdCnt: 1 }, undefined, c),
    /fwd_cnt went from 0 to 1 with 0 bytes sent/,
  ],
  [
    "a packet after the device's RST",
    (d, c) => {
      d.send(OP_RST, {}, undefined, c);
      d.send(OP_RW, {}, new Uint8Array(1), c);
    },
    /RW after the device's RST/,
  ],
  [
    "an RST in answer to an RST",
    (d) => {
      d.send(OP_RW, {}, new Uint8Array(1));
      assertEquals(names(d.take()), ["RST"]);
      d.send(OP_RST);
    },
    /RST in answer to an RST/,
  ],
  [
    "data before RESPONSE",
    (d) => {
      const connecting = d.driver.connect(9);
      d.take();
      d.send(OP_RW, {}, new Uint8Array(1), connecting);
    },
    /RW before RESPONSE/,
  ],
  [
    "an event that is not 4 bytes long",
    (d) => d.put(new Uint8Array(4), 0, 2),
    /an event of 0 bytes/,
  ],
  [
    "an unknown event",
    (d) => d.put(new Uint8Array([1, 0, 0, 0]), 4, 2),
    /unknown event 1/,
  ],
];

for (const [name, fault, text] of FAULTS) {
  Deno.test(`VsockDriver.poll() reports ${name}`, () => {
    const device = new HandDevice({ bufAlloc: 8192 });
    const connection = device.connected();
    fault(device, connection);
    device.refused(text);
    // It is told once, and the driver goes on.
    device.take();
    assertEquals(device.driver.violations.length, 1);
    device.connected();
  });
}

Deno.test("VsockDriver.poll() reports bytes behind a receive buffer's segment", () => {
  const buffer = new ArrayBuffer(1 << 20);
  const memory = new GuestMemory([
    { guestAddress: 0x10000, size: buffer.byteLength, buffer },
  ]);
  const arena = new MemoryArena(memory);
  const configs = [0, 1].map(() => layOutQueue(arena, "split", 4));
  const [rx, tx] = configs.map((c) => makeDriverQueue(arena, "split", c, 0));
  const device = new SplitDevice(memory, configs[0]!);
  const driver = new VsockDriver({
    rx: rx!,
    tx: tx!,
    arena,
    readCid: () => CID,
    kick: () => {},
    rxLayout: [44, 100],
    maxPayload: 64,
  });
  driver.poll();
  const chain = new Chain(memory);
  assert(device.pop(chain));
  const header = encodeHeader({ srcCid: 2, dstCid: CID, type: 1, op: OP_RST });
  chain.write(header);
  new Uint8Array(buffer)[chain.offset[1]! + 100] = 0;
  device.push(chain.token, 44);
  device.publish();
  const error = assertThrows(() => driver.poll(), VsockViolation);
  assertMatch(error.message, /behind a receive buffer's segment/);
});

Deno.test("VsockDriver without strict keeps the violations to itself", () => {
  const device = new HandDevice({ strict: false });
  device.put(new Uint8Array(44));
  device.driver.poll();
  assertEquals(device.driver.violations.length, 1);
});
