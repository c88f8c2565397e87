import { assert, assertEquals, assertThrows } from "@std/assert";
import { GuestMemory } from "../../ring/memory.ts";
import { BufferList } from "../../ring/queue.ts";
import { SplitDevice } from "../../ring/split_device.ts";
import { Diagnostics } from "../diagnostics.ts";
import { featureMask, VirtioDevice } from "../virtio_device.ts";
import { CONNECT_TIMEOUT_MS, DISCONNECT_TIMEOUT_MS } from "./connection.ts";
import { VsockDevice, type VsockDeviceOptions } from "./device.ts";
import {
  ASK,
  CID,
  Guest,
  Host,
  ops,
  packetBytes,
  REQUEST,
  RESPONSE,
  RINGS,
  RST,
  RW,
  SHUTDOWN,
  type Stream,
  UPDATE,
} from "./_fixture.ts";
import { STREAM_BROKEN, STREAM_EOF } from "./host.ts";
import { MAX_STRAY_RESETS } from "./muxer.ts";

function test(
  name: string,
  body: (
    guest: (options?: Partial<VsockDeviceOptions>, rxBytes?: number) => Guest,
  ) => void,
) {
  for (const ring of RINGS) {
    Deno.test(`${name} (${ring})`, () =>
      body((options, rxBytes) => new Guest(ring, options, rxBytes)));
  }
}

test("VsockDevice answers a REQUEST by RESPONSE with its credit", (start) => {
  const guest = start();
  guest.post();
  guest.send({ op: REQUEST });
  assertEquals(guest.run(), [{
    srcCid: 2,
    dstCid: CID,
    srcPort: 1234,
    dstPort: 5,
    len: 0,
    type: 1,
    op: RESPONSE,
    flags: 0,
    bufAlloc: 262_144,
    fwdCnt: 0,
    payload: [],
  }]);
  assertEquals(guest.reclaim(), 1);
  assert(guest.interrupts[0]! > 0);
});

test("VsockDevice answers a REQUEST to nobody by RST", (start) => {
  const guest = start();
  guest.post();
  guest.send({ op: REQUEST, dstPort: 99 });
  const [rst] = guest.run();
  assertEquals([rst!.op, rst!.srcPort, rst!.dstPort, rst!.type], [
    RST,
    99,
    5,
    1,
  ]);
  assertEquals(guest.vsock.connectionCount, 0);
});

test("VsockDevice carries bytes both ways", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect();
  guest.send({}, [1, 2, 3]);
  assertEquals(guest.run(), []);
  assertEquals(stream.written, [1, 2, 3]);
  stream.say(7, 8, 9, 10);
  const [data] = guest.run();
  assertEquals([data!.op, data!.payload, data!.fwdCnt], [RW, [7, 8, 9, 10], 3]);
});

test("VsockDevice takes a packet whose header and payload are cut anywhere", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect();
  const expected: number[] = [];
  for (const cut of [[1], [43], [44], [45], [10, 34, 1, 1], [20, 20, 20]]) {
    const payload = Array.from(
      { length: 30 },
      (_, i) => expected.length + i & 0xff,
    );
    expected.push(...payload);
    guest.raw(packetBytes({}, payload), ...cut);
  }
  guest.run();
  assertEquals(stream.written, expected);
  assertEquals(guest.reclaim(), 6);
});

test("VsockDevice uses only the first len bytes of a longer buffer", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect();
  guest.send({ len: 2 }, [1, 2, 3, 4, 5]);
  guest.run();
  assertEquals(stream.written, [1, 2]);
});

test("VsockDevice gathers consecutive packets into one write", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect();
  for (let i = 0; i < 20; i++) guest.send({}, [i]);
  guest.run();
  assertEquals(stream.written.length, 20);
  assertEquals(stream.writes, 1);
});

test("VsockDevice gathers what connections send in turns into one write each", (start) => {
  const guest = start();
  guest.post();
  const streams = [5, 6, 7].map((srcPort) => guest.connect({ srcPort }));
  for (let i = 0; i < 18; i++) guest.send({ srcPort: 5 + i % 3 }, [i]);
  guest.run();
  assertEquals(streams.map(({ writes }) => writes), [1, 1, 1]);
  assertEquals(streams[1]!.written, [1, 4, 7, 10, 13, 16]);
  // What one of them ends with comes after its bytes, and a second batch starts anew.
  for (let i = 0; i < 6; i++) guest.send({ srcPort: 5 + i % 3 }, [i]);
  guest.send({ srcPort: 6, op: SHUTDOWN, flags: 3 });
  guest.send({ srcPort: 7 }, [9]);
  guest.run();
  assertEquals(streams.map(({ writes }) => writes), [2, 2, 3]);
  assertEquals(streams[1]!.written.slice(-2), [1, 4]);
  assertEquals(streams[1]!.calls, ["close"]);
  assertEquals(streams[2]!.written.slice(-3), [2, 5, 9]);
});

test("VsockDevice drops what it has gathered for a guest that is gone", (start) => {
  const guest = start();
  guest.post();
  const streams = [5, 6].map((srcPort) => guest.connect({ srcPort }));
  // The first host program, at its bytes, makes the guest lose its connections.
  const write = streams[0]!.write.bind(streams[0]);
  streams[0]!.write = (from) => {
    guest.vsock.transportReset();
    return write(from);
  };
  guest.send({ srcPort: 5 }, [1]);
  guest.send({ srcPort: 6 }, [2]);
  guest.run();
  assertEquals(streams[1]!.written, []);
  guest.post();
  const fresh = guest.connect({ srcPort: 8 });
  guest.send({ srcPort: 8 }, [3]);
  guest.run();
  assertEquals(fresh.written, [3]);
});

test("VsockDevice cuts the host's bytes to the guest's buffers", (start) => {
  const guest = start({}, 100);
  guest.post();
  const stream = guest.connect();
  const bytes = Array.from({ length: 150 }, (_, i) => i);
  stream.say(...bytes);
  const packets = guest.run();
  assertEquals(packets.map(({ len }) => len), [56, 56, 38]);
  assertEquals(packets.flatMap(({ payload }) => payload), bytes);
});

test("VsockDevice keeps what the host program does not take, and then advertises the room", (start) => {
  const guest = start({ bufAlloc: 1000 });
  guest.post();
  const stream = guest.connect();
  stream.room = 100;
  guest.send({}, new Uint8Array(300).fill(1));
  guest.send({}, new Uint8Array(400).fill(2));
  assertEquals(guest.run(), []);
  assertEquals(stream.written.length, 100);
  stream.room = Infinity;
  stream.events!.hostWritable();
  const [update] = guest.run();
  assertEquals([update!.op, update!.fwdCnt, update!.bufAlloc], [
    UPDATE,
    700,
    1000,
  ]);
  assertEquals(stream.written, [...Array(300).fill(1), ...Array(400).fill(2)]);
});

test("VsockDevice resets a guest that sends more than it was granted", (start) => {
  const guest = start({ bufAlloc: 1000 });
  guest.post();
  const stream = guest.connect();
  stream.room = 0;
  guest.send({}, new Uint8Array(1000));
  guest.send({}, [1]);
  assertEquals(ops(guest.run()), [RST]);
  assertEquals(guest.count("credit_exceeded"), 1);
  assertEquals(stream.calls, ["reset"]);
});

test("VsockDevice sends no more than the guest has room for, and goes on when it has", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect({ bufAlloc: 5000 });
  stream.say(...Array(12_500).fill(1));
  const sent = (): number => guest.run().reduce((sum, { len }) => sum + len, 0);
  assertEquals(sent(), 5000);
  assertEquals(sent(), 0);
  guest.send({ op: UPDATE, bufAlloc: 5000, fwdCnt: 5000 });
  assertEquals(sent(), 5000);
  guest.send({ op: UPDATE, bufAlloc: 5000, fwdCnt: 7500 });
  assertEquals(sent(), 2500);
  guest.send({ op: UPDATE, bufAlloc: 5000, fwdCnt: 7500 });
  assertEquals(sent(), 0);
});

test("VsockDevice asks a guest without room for credit, ever more rarely", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect({ bufAlloc: 4096 });
  stream.say(...Array(8192).fill(1));
  guest.run();
  let asked = 0;
  for (guest.now = 0; guest.now < 10_000; guest.now += 5) {
    guest.vsock.expire(guest.now);
    for (const { op } of guest.run()) {
      assertEquals(op, ASK);
      asked++;
      // A guest that answers and still has no room is not a reason to ask at once.
      guest.send({ op: UPDATE, bufAlloc: 4096, fwdCnt: 0 });
    }
    guest.post();
  }
  assert(asked >= 5 && asked <= 20, `asked ${asked} times`);
});

test("VsockDevice answers a CREDIT_REQUEST", (start) => {
  const guest = start();
  guest.post();
  guest.connect();
  guest.send({ op: ASK });
  assertEquals(ops(guest.run()), [UPDATE]);
});

test("VsockDevice limits the packets that a guest has unread", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect({ bufAlloc: 8 * 1024 });
  let packets = 0;
  for (let i = 0; i < 20; i++) {
    stream.say(1);
    packets += guest.run().filter(({ op }) => op === RW).length;
    guest.post();
  }
  assertEquals(packets, 8);
});

test("VsockDevice delivers what was sent before the guest's half-close", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect();
  stream.room = 1;
  guest.send({}, [1, 2]);
  guest.send({ op: SHUTDOWN, flags: 2 });
  guest.run();
  assertEquals(stream.calls, [], "not while bytes wait");
  stream.room = Infinity;
  stream.events!.hostWritable();
  assertEquals([stream.written, stream.calls], [[1, 2], ["shutdownWrite"]]);
  stream.say(3);
  assertEquals(
    guest.run().map(({ payload }) => payload),
    [[3]],
    "the other direction is open",
  );
});

test("VsockDevice tells the guest of the host's half-close, after its bytes", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect();
  stream.input.push(1, 2);
  stream.end(STREAM_EOF);
  const [data, shutdown] = guest.run();
  assertEquals([data!.op, data!.payload], [RW, [1, 2]]);
  assertEquals([shutdown!.op, shutdown!.flags], [SHUTDOWN, 2]);
  guest.send({}, [9]);
  guest.run();
  assertEquals(stream.written, [9]);
});

test("VsockDevice stops reading for a guest that receives no more", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect();
  guest.send({ op: SHUTDOWN, flags: 1 });
  guest.run();
  assertEquals(stream.calls, ["shutdownRead"]);
  stream.say(1, 2, 3);
  assertEquals(guest.run(), []);
  stream.events!.hostHangup();
  const [shutdown] = guest.run();
  assertEquals([shutdown!.op, shutdown!.flags], [SHUTDOWN, 3]);
});

test("VsockDevice confirms a close by RST; hints of SHUTDOWN accumulate", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect();
  guest.send({ op: SHUTDOWN, flags: 1 });
  guest.send({ op: SHUTDOWN, flags: 2 });
  assertEquals(ops(guest.run()), [RST]);
  assertEquals(stream.calls.at(-1), "close");
  assertEquals(guest.vsock.connectionCount, 0);
  guest.connect();
});

test("VsockDevice delivers what a guest sent before its close, however slow the host program", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect();
  stream.room = 1;
  guest.send({}, [1, 2, 3]);
  guest.send({ op: SHUTDOWN, flags: 3 });
  assertEquals(ops(guest.run()), [RST], "the guest need not wait");
  guest.connect();
  assertEquals(guest.vsock.connectionCount, 2);
  stream.room = 1;
  stream.events!.hostWritable();
  assertEquals(stream.calls, []);
  stream.room = Infinity;
  stream.events!.hostWritable();
  assertEquals([stream.written, stream.calls], [[1, 2, 3], ["close"]]);
  assertEquals(guest.vsock.connectionCount, 1);
});

test("VsockDevice forgets a lingering connection when its host program dies", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect();
  stream.room = 1;
  guest.send({}, [1, 2, 3]);
  guest.send({ op: SHUTDOWN, flags: 3 });
  guest.run();
  assertEquals(guest.vsock.connectionCount, 1);
  stream.events!.hostHangup();
  assertEquals(guest.vsock.connectionCount, 0);
  assertEquals(stream.calls, ["close"]);
});

test("VsockDevice ends both directions when the host program is gone, and waits for RST", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect();
  stream.input.push(5);
  stream.atEnd = STREAM_EOF;
  stream.events!.hostHangup();
  const packets = guest.run();
  assertEquals(ops(packets), [RW, SHUTDOWN]);
  assertEquals(packets[1]!.flags, 3);
  assertEquals(guest.vsock.connectionCount, 1);
  guest.send({}, [1]);
  guest.send({ op: RST });
  assertEquals(guest.run(), [], "a RST is never answered");
  assertEquals(guest.vsock.connectionCount, 0);
});

test("VsockDevice ends a close that the guest does not confirm by RST", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect();
  stream.atEnd = STREAM_EOF;
  stream.events!.hostHangup();
  guest.run();
  assertEquals(guest.vsock.nextDeadline(), DISCONNECT_TIMEOUT_MS);
  guest.vsock.expire(DISCONNECT_TIMEOUT_MS - 1);
  assertEquals(guest.run(), []);
  guest.vsock.expire(DISCONNECT_TIMEOUT_MS);
  assertEquals(ops(guest.run()), [RST]);
  assertEquals(guest.vsock.connectionCount, 0);
  assertEquals(guest.vsock.nextDeadline(), Infinity);
});

test("VsockDevice tells the guest at once that nobody takes its bytes", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect();
  stream.broken = true;
  guest.send({}, [1]);
  const [shutdown] = guest.run();
  assertEquals([shutdown!.op, shutdown!.flags], [SHUTDOWN, 1]);
  guest.send({}, [2]);
  assertEquals(guest.run(), []);
  stream.say(3);
  assertEquals(guest.run().map(({ payload }) => payload), [[3]]);
});

test("VsockDevice resets a connection whose host stream breaks", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect();
  stream.end(STREAM_BROKEN);
  assertEquals(ops(guest.run()), [RST]);
  assertEquals(guest.vsock.connectionCount, 0);
});

test("VsockDevice resets the host stream when the guest resets", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect();
  guest.send({ op: RST });
  assertEquals(guest.run(), []);
  assertEquals(stream.calls, ["reset"]);
});

test("VsockDevice lets a host program answer later, or too late", (start) => {
  const guest = start();
  guest.post();
  guest.send({ op: REQUEST, dstPort: 1235 });
  guest.send({ op: REQUEST, dstPort: 1235, srcPort: 6 });
  guest.send({ op: REQUEST, dstPort: 1235, srcPort: 7 });
  assertEquals(guest.run(), []);
  guest.send({ op: RST, dstPort: 1235, srcPort: 6 });
  assertEquals(guest.run(), []);
  const [first, second, third] = guest.host.slow;
  assertEquals([first!.cancelled, second!.cancelled], [false, true]);
  assert(guest.host.accept(first!));
  assert(!guest.host.accept(second!));
  second!.refuse();
  third!.refuse();
  assertEquals(guest.run().map(({ op, dstPort }) => [op, dstPort]), [[
    RESPONSE,
    5,
  ], [RST, 7]]);
  assertEquals(guest.vsock.connectionCount, 1);
});

test("VsockDevice connects a host program to a guest's port", (start) => {
  const guest = start();
  guest.post();
  let opened: Stream | null = null;
  const ports: number[] = [];
  guest.vsock.connect(80, {
    accepted: (hostPort, events) => {
      ports.push(hostPort);
      return opened = guest.host.open(events);
    },
    refused: (reason) => assert(false, reason),
  });
  const [request] = guest.run();
  assertEquals([request!.op, request!.dstPort, request!.bufAlloc], [
    REQUEST,
    80,
    262_144,
  ]);
  assertEquals(opened, null, "not before the guest accepts");
  guest.send({ op: RESPONSE, srcPort: 80, dstPort: request!.srcPort });
  guest.run();
  assertEquals(ports, [request!.srcPort]);
  opened!.say(1, 2);
  assertEquals(guest.run().map(({ op, dstPort }) => [op, dstPort]), [[RW, 80]]);
});

test("VsockDevice tells a host program of refusal, of silence and of no guest", (start) => {
  const guest = start();
  guest.post();
  const reasons: string[] = [];
  const answer = {
    accepted: () => {
      throw new Error("accepted");
    },
    refused: (reason: string) => void reasons.push(reason),
  };
  guest.vsock.connect(80, answer);
  const [first] = guest.run();
  guest.send({ op: RST, srcPort: 80, dstPort: first!.srcPort });
  assertEquals(guest.run(), []);
  assertEquals(reasons, ["the guest refused the connection"]);

  guest.vsock.connect(81, answer);
  assertEquals(ops(guest.run()), [REQUEST]);
  guest.vsock.expire(guest.now += CONNECT_TIMEOUT_MS);
  assertEquals(ops(guest.run()), [RST]);
  assertEquals(reasons[1], "the guest did not answer");

  const cancelled = guest.vsock.connect(82, answer);
  guest.run();
  cancelled.cancel();
  assertEquals(ops(guest.run()), [RST]);

  guest.virtio.reset();
  guest.vsock.connect(80, answer);
  assertEquals(reasons, [...reasons.slice(0, 2), "no guest is running"]);
  assertEquals(guest.vsock.connectionCount, 0);
  assertThrows(
    () => new Guest("split").vsock.connect(0xffffffff, answer),
    RangeError,
  );
});

test("VsockDevice sends RESPONSE before anything else", (start) => {
  const guest = start();
  guest.send({ op: REQUEST });
  guest.run();
  const stream = guest.host.streams[0]!;
  stream.input.push(1);
  stream.end(STREAM_EOF);
  guest.run();
  guest.post();
  assertEquals(ops(guest.run()), [RESPONSE, RW, SHUTDOWN]);
});

test("VsockDevice answers strays by RST that echoes the type, and a RST by nothing", (start) => {
  const guest = start({ seqpackets: false });
  guest.post();
  guest.send({ op: RW, srcPort: 77 }, [1]);
  guest.send({ op: REQUEST, type: 2 });
  guest.send({ op: REQUEST, type: 9 });
  guest.send({ op: REQUEST, dstCid: 55 });
  guest.send({ op: REQUEST, srcCid: 56 });
  guest.send({ op: 0, srcPort: 78 });
  guest.send({ op: RST, srcPort: 79 });
  guest.send({ op: RST, type: 9 });
  const rsts = guest.run();
  assertEquals(ops(rsts), [RST, RST, RST, RST, RST, RST]);
  assertEquals(rsts.map(({ type }) => type), [1, 2, 9, 1, 1, 1]);
  assertEquals(rsts.map(({ srcCid }) => srcCid), [2, 2, 2, 55, 2, 2]);
  assertEquals(rsts.map(({ dstCid }) => dstCid), [CID, CID, CID, CID, 56, CID]);
  assertEquals(rsts.map(({ dstPort }) => dstPort), [77, 5, 5, 5, 5, 78]);
  assertEquals(guest.count("type_unknown"), 3);
  assertEquals(guest.count("destination_cid_unknown"), 1);
  assertEquals(guest.count("source_cid_wrong"), 1);
  assertEquals(guest.count("connection_unknown"), 2);
  assertEquals(guest.count("reset_unknown"), 1);
});

test("VsockDevice answers what does not fit a connection's state by RST", (start) => {
  for (
    const [kind, packet] of [
      ["request_duplicate", { op: REQUEST }],
      ["response_unexpected", { op: RESPONSE }],
      ["operation_unknown", { op: 8 }],
      ["operation_unknown", { op: 0 }],
      ["length_wrong", { op: RW, len: 100 }],
    ] as const
  ) {
    const guest = start();
    guest.post();
    const stream = guest.connect();
    guest.send(packet);
    assertEquals(ops(guest.run()), [RST], kind);
    assertEquals(guest.count(kind), 1);
    assertEquals(stream.calls, ["reset"]);
    guest.connect();
  }
  const guest = start();
  guest.post();
  guest.send({ op: REQUEST, dstPort: 1235 });
  guest.send({ dstPort: 1235 }, [1]);
  assertEquals(ops(guest.run()), [RST]);
  assertEquals(guest.count("data_unexpected"), 1);
  const stream = guest.connect();
  guest.send({ op: SHUTDOWN, flags: 2 });
  guest.send({}, [1]);
  assertEquals(
    ops(guest.run()),
    [RST],
    "data after SHUTDOWN of that direction",
  );
  assertEquals(stream.written, []);
});

test("VsockDevice completes a packet that is shorter than a header, and goes on", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect();
  guest.raw(new Uint8Array(43));
  guest.send({}, [1]);
  assertEquals(guest.run(), []);
  assertEquals(guest.reclaim(), 2);
  assertEquals([stream.written, guest.count("packet_short")], [[1], 1]);
});

test("VsockDevice completes a chain that points nowhere, and goes on", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect();
  const tx = guest.queues[1]!;
  guest.reclaim();
  tx.add(new BufferList().addReadable(0x7fff_0000_0000, 44));
  tx.publish();
  guest.virtio.kick(1);
  guest.run();
  assert(tx.reclaim() >= 0);
  assertEquals(tx.usedLength, 0);
  assertEquals(guest.count("tx_bad_address"), 1);
  guest.send({}, [1]);
  guest.run();
  assertEquals(stream.written, [1]);
});

test("VsockDevice returns receive buffers that hold no packet", (start) => {
  const guest = start({}, 44);
  guest.post(3);
  guest.rxBytes = 100;
  guest.post(2);
  guest.send({ op: REQUEST });
  while (guest.vsock.process());
  const rx = guest.queues[0]!;
  const lengths: number[] = [];
  for (let token = rx.reclaim(); token >= 0; token = rx.reclaim()) {
    lengths.push(rx.usedLength);
  }
  assertEquals(lengths, [0, 0, 0, 44]);
  assertEquals(guest.count("rx_buffer_unusable"), 3);
});

test("VsockDevice processes tx while rx is full, as far as answers can wait", (start) => {
  const guest = start();
  let sent = 0;
  for (; sent < MAX_STRAY_RESETS + 20; sent++) {
    guest.send({ op: RW, srcPort: 1000 + sent }, [1]);
    guest.run();
    if (guest.queues[1]!.inFlight > 16) break;
  }
  guest.reclaim();
  assertEquals(
    sent - guest.queues[1]!.inFlight + 1,
    MAX_STRAY_RESETS,
    "the rest waits",
  );
  const ports = new Set<number>();
  for (let i = 0; i < 30; i++) {
    guest.post();
    for (const { op, dstPort } of guest.run()) {
      assertEquals(op, RST);
      ports.add(dstPort);
    }
  }
  assertEquals(ports.size, sent + 1, "each has its answer");
  guest.reclaim();
  assertEquals(guest.queues[1]!.inFlight, 0);
});

test("VsockDevice gives every connection its turn", (start) => {
  const guest = start({}, 2048);
  guest.post();
  const streams = [5, 6, 7].map((srcPort) => guest.connect({ srcPort }));
  guest.post();
  for (const stream of streams) {
    stream.input = Array(150_000).fill(1);
    stream.say();
  }
  const order: number[] = [];
  const fwdCnt = [0, 0, 0];
  for (let i = 0; i < 200; i++) {
    for (const { dstPort, len } of guest.run()) {
      order.push(dstPort);
      fwdCnt[dstPort - 5]! += len;
    }
    guest.post();
    for (const srcPort of [5, 6, 7]) {
      guest.send({ op: UPDATE, srcPort, fwdCnt: fwdCnt[srcPort - 5]! });
    }
  }
  assertEquals(fwdCnt, [150_000, 150_000, 150_000]);
  // A turn is 64 KiB: nobody is served twice before the others had theirs.
  const turns = order.filter((port, i) => port !== order[i - 1]);
  assertEquals(turns.slice(0, 6), [5, 6, 7, 5, 6, 7]);
});

test("VsockDevice refuses connections beyond its limit", (start) => {
  const guest = start({ maxConnections: 2 });
  guest.post();
  guest.connect({ srcPort: 5 });
  guest.connect({ srcPort: 6 });
  guest.send({ op: REQUEST, srcPort: 7 });
  assertEquals(ops(guest.run()), [RST]);
  const reasons: string[] = [];
  guest.vsock.connect(80, {
    accepted: () => {
      throw new Error("accepted");
    },
    refused: (reason) => void reasons.push(reason),
  });
  assertEquals(reasons, ["too many connections"]);
});

test("VsockDevice drops the streams of a driver that is gone", (start) => {
  const guest = start();
  guest.post();
  const first = guest.connect();
  guest.virtio.setStatus(0);
  assertEquals(first.calls, ["reset"]);
  assertEquals([guest.vsock.connectionCount, guest.vsock.ready], [0, false]);
  guest.start();
  guest.post();
  const second = guest.connect();
  guest.send({}, [1]);
  guest.run();
  assertEquals([first.written, second.written], [[], [1]]);
});

test("VsockDevice keeps its streams when queues stop and go on", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect();
  stream.room = 1;
  guest.send({}, [1, 2]);
  guest.run();
  const states = [0, 1, 2].map((index) => guest.virtio.stopQueue(index));
  assertEquals(
    states.map((state) => state!.inFlight),
    [[], [], []],
    "held buffers are given back",
  );
  guest.send({}, [3]);
  stream.say(9);
  assertEquals(guest.run(), [], "a stopped queue is left alone");
  states.forEach((state, index) => {
    guest.virtio.startQueue(index, JSON.parse(JSON.stringify(state)));
    guest.virtio.enableQueue(index, true);
  });
  assertEquals(guest.run().map(({ payload }) => payload), [[9]]);
  stream.room = Infinity;
  stream.events!.hostWritable();
  assertEquals(stream.written, [1, 2, 3]);
});

test("VsockDevice goes on when guest memory moves", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect();
  const old = guest.memory.regions[0]!.bytes;
  const moved = new Uint8Array(old.length);
  // The device has given its held buffers back by the time it sees the new memory.
  moved.set(old);
  guest.virtio.setMemory(
    new GuestMemory([{
      guestAddress: 0,
      size: moved.length,
      buffer: moved.buffer,
    }]),
  );
  stream.say(1, 2, 3);
  guest.vsock.process();
  assert(
    moved.some((byte, i) => byte !== old[i]),
    "the packet is in the new memory",
  );
});

test("VsockDevice tells of a broken ring by DEVICE_NEEDS_RESET, and works after the reset", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect();
  if (guest.virtio.ringFormat === "split") {
    new Uint16Array(guest.memory.bytes(0x2000 + 0x800, 4).slice().buffer);
    guest.memory.bytes(0x2000 + 0x802, 2).set([0xff, 0x7f]);
  } else {
    // Every descriptor available, each going on in the next one.
    const { wrapFlags } = packedChainWithoutEnd(guest);
    assert(wrapFlags !== 0);
  }
  guest.virtio.kick(1);
  guest.run();
  assertEquals(guest.virtio.status & 64, 64);
  guest.virtio.kick(1);
  guest.run();
  guest.virtio.setStatus(0);
  assertEquals(stream.calls, ["reset"]);
  guest.start();
  guest.post();
  guest.connect();
});

/** Makes every descriptor of the transmit queue an available one that continues. */
function packedChainWithoutEnd(guest: Guest): { wrapFlags: number } {
  const bytes = guest.memory.bytes(0x2000, 16 * guest.size);
  const state = guest.virtio.stopQueue(1)!;
  assertEquals(state.format, "packed");
  const wrap = state.format === "packed" ? state.lastAvailWrapCounter : 0;
  const at = state.lastAvailIdx;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let wrapFlags = 0;
  for (let i = 0; i < guest.size; i++) {
    const lap = i >= at ? wrap : 1 - wrap;
    wrapFlags = lap === 1 ? 0x80 : 0x8000;
    view.setBigUint64(16 * i, 0x100000n, true);
    view.setUint32(16 * i + 8, 44, true);
    view.setUint16(16 * i + 14, wrapFlags | 1, true);
  }
  guest.virtio.startQueue(1, state);
  guest.virtio.enableQueue(1, true);
  return { wrapFlags };
}

test("VsockDevice.transportReset() writes the event once a buffer is there", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect();
  guest.vsock.transportReset();
  assertEquals(stream.calls, ["reset"]);
  const event = guest.queues[2]!;
  event.add(new BufferList().addWritable(0xe000, 2));
  event.add(new BufferList().addWritable(0xe010, 4));
  event.add(new BufferList().addWritable(0xe020, 4));
  guest.memory.bytes(0xe010, 4).fill(0xff);
  event.publish();
  guest.virtio.kick(2);
  guest.run();
  event.reclaim();
  assertEquals(event.usedLength, 0, "too small for an event");
  event.reclaim();
  assertEquals(event.usedLength, 4);
  assertEquals([...guest.memory.bytes(0xe010, 4)], [0, 0, 0, 0]);
  assertEquals(event.reclaim(), -1, "one event");
  assertEquals(guest.interrupts[2], 1);
  guest.connect();
});

for (const known of [true, false]) {
  const name = known
    ? "says nothing to a driver that it knows when its queues go on"
    : "tells a driver of another device that its connections are lost";
  test(`VsockDevice ${name}`, (start) => {
    const guest = start();
    guest.post();
    const stream = guest.connect();
    const states = [0, 1, 2].map((index) => guest.virtio.stopQueue(index));
    // As a new process is, which goes on with the queues of the one before.
    if (!known) guest.vsock.reset();
    for (const [index, state] of states.entries()) {
      guest.virtio.startQueue(index, state);
      guest.virtio.enableQueue(index, true);
    }
    const event = guest.queues[2]!;
    event.add(new BufferList().addWritable(0xe000, 4));
    event.publish();
    guest.run();
    if (known) {
      assertEquals(event.reclaim(), -1);
      guest.send({ op: RW }, [1, 2, 3]);
      guest.run();
      assertEquals(stream.calls, []);
    } else {
      assert(event.reclaim() >= 0);
      assertEquals([...guest.memory.bytes(0xe000, 4)], [0, 0, 0, 0]);
      assertEquals(event.reclaim(), -1);
      guest.connect({ srcPort: 77 });
    }
  });
}

test("VsockDevice takes boundedly many useless event buffers at a time", (start) => {
  const guest = start();
  // A guest that offers another one whenever the device completes one.
  let pushed = 0;
  const queue = new SplitDevice(guest.memory, {
    size: 32,
    descriptorArea: 0xa000,
    driverArea: 0xa800,
    deviceArea: 0xb000,
  });
  queue.pop = (chain) => {
    chain.clear();
    assert(pushed < 1000, "the device does not come back");
    return true;
  };
  queue.push = () => void pushed++;
  guest.vsock.queueStarted(2, queue, true);
  guest.vsock.transportReset();
  assertEquals(pushed, 32);
  assertEquals(guest.count("event_buffer_unusable"), 32);
});

test("VsockDevice.resetConnections() tells the guest by RST", (start) => {
  const guest = start();
  guest.post();
  const streams = [5, 6].map((srcPort) => guest.connect({ srcPort }));
  guest.vsock.resetConnections();
  assertEquals(guest.run().map(({ op, dstPort }) => [op, dstPort]), [[RST, 5], [
    RST,
    6,
  ]]);
  assertEquals(streams.map(({ calls }) => calls), [["reset"], ["reset"]]);
});

Deno.test("VsockDevice refuses reserved CIDs and senseless limits", () => {
  const host = new Host();
  for (const guestCid of [0, 1, 2, 0xffffffff, 2 ** 32, -1, 3.5, NaN]) {
    assertThrows(
      () => new VsockDevice({ guestCid, host }),
      RangeError,
      "no guest's",
    );
  }
  assertThrows(
    () => new VsockDevice({ guestCid: 3, host, bufAlloc: 0 }),
    RangeError,
  );
  assertThrows(
    () => new VsockDevice({ guestCid: 3, host, maxConnections: 0 }),
    RangeError,
  );
});

Deno.test("VsockDevice.configSpace() is the guest's CID as a le64", () => {
  const vsock = new VsockDevice({ guestCid: 0x01020304, host: new Host() });
  assertEquals([...vsock.configSpace()], [4, 3, 2, 1, 0, 0, 0, 0]);
});

Deno.test("VirtioDevice refuses the wrong features in words", () => {
  const lines: string[] = [];
  const diagnostics = new Diagnostics((_level, text) => lines.push(text));
  const refused = (ring: "split" | "packed", features: bigint): boolean => {
    const virtio = new VirtioDevice(
      new VsockDevice({ guestCid: 3, host: new Host() }),
      {
        ring,
        diagnostics,
      },
    );
    virtio.setStatus(3);
    virtio.setFeatures(features);
    virtio.setStatus(11);
    return (virtio.status & 8) === 0;
  };
  const version1 = featureMask(32);
  assert(!refused("split", version1));
  assert(refused("split", version1 | featureMask(34)));
  assert(lines[0]!.includes("RING_PACKED"));
  assert(refused("packed", version1));
  assert(!refused("packed", version1 | featureMask(34)));
  assert(refused("split", 0n));
  assert(refused("split", version1 | featureMask(63)));
  assertEquals(diagnostics.counters.get("features_refused"), 4);
});

test("VsockDevice lets a host program wait while the machine is paused, and not while there is none", (start) => {
  const guest = start();
  guest.post();
  const reasons: string[] = [];
  const connect = (): void => {
    guest.vsock.connect(80, {
      accepted: () => {
        throw new Error("accepted");
      },
      refused: (reason) => void reasons.push(reason),
    });
  };
  const states = [0, 1, 2].map((index) => guest.virtio.stopQueue(index));
  connect();
  assertEquals([guest.run(), reasons], [[], []]);
  states.forEach((state, index) => {
    guest.virtio.startQueue(index, state);
    guest.virtio.enableQueue(index, true);
  });
  assertEquals(ops(guest.run()), [REQUEST]);
  guest.virtio.reset();
  assertEquals(reasons, ["the guest is gone"]);
  connect();
  assertEquals(reasons[1], "no guest is running");
});

test("VsockDevice.process() is not entered twice", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect();
  const inner: boolean[] = [];
  const write = stream.write.bind(stream);
  stream.write = (from) => {
    inner.push(guest.vsock.process());
    return write(from);
  };
  for (let i = 0; i < 5; i++) guest.send({}, [i]);
  guest.run();
  assertEquals([inner, stream.written], [[true], [0, 1, 2, 3, 4]]);
});

test("VirtioDevice interrupts once for each queue that goes on from a saved state", (start) => {
  const guest = start();
  const states = [0, 1, 2].map((index) => guest.virtio.stopQueue(index));
  guest.interrupts.fill(0);
  states.forEach((state, index) => {
    guest.virtio.startQueue(index, state);
    guest.virtio.enableQueue(index, true);
  });
  guest.run();
  assert(
    guest.interrupts.every((count) => count >= 1),
    String(guest.interrupts),
  );
});

test("VsockDevice.process() is bounded where buffers are shown and hidden again", (start) => {
  const guest = start();
  let looks = 0;
  // A guest that writes to the ring meanwhile: each look finds nothing, each second look something.
  guest.virtio.wrapQueues((_index, queue) =>
    new Proxy(queue, {
      get(target, key) {
        if (key === "pop") {
          return () => {
            assert(++looks < 5_000, "process() looks for ever");
            return false;
          };
        }
        if (key === "armKicks") return () => true;
        const value: unknown = Reflect.get(target, key, target);
        return typeof value === "function" ? value.bind(target) : value;
      },
    })
  );
  guest.vsock.connect(80, {
    accepted: (_port, events) => guest.host.open(events),
    refused: () => {},
  });
  assert(guest.vsock.process());
  assert(looks > 100);
  guest.virtio.wrapQueues(null);
  guest.post();
  assertEquals(ops(guest.run()), [REQUEST]);
});
