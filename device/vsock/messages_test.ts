import { assert, assertEquals } from "@std/assert";
import { featureMask } from "../virtio_device.ts";
import {
  ASK,
  Guest,
  ops,
  type Packet,
  REQUEST,
  RESPONSE,
  RINGS,
  RST,
  RW,
  SHUTDOWN,
  UPDATE,
} from "./_fixture.ts";
import type { VsockDeviceOptions } from "./device.ts";
import {
  MESSAGE_TOO_LONG,
  type MessagesAnswer,
  STREAM_BROKEN,
  STREAM_EOF,
} from "./host.ts";
import { MAX_EMPTY_MESSAGES } from "./message_queue.ts";

// Seqpacket sockets, rule by rule (virtio 1.4, 5.10.6.6), packet by packet.

const EOM = 1;
const EOR = 2;

function test(
  name: string,
  body: (
    start: (options?: Partial<VsockDeviceOptions>, rxBytes?: number) => Guest,
  ) => void,
): void {
  for (const ring of RINGS) {
    Deno.test(`${name} (${ring})`, () =>
      body((options, rxBytes) => {
        const guest = new Guest(ring, options, rxBytes);
        guest.post();
        return guest;
      }));
  }
}

/** Sends a fragment. */
function fragment(
  guest: Guest,
  payload: number[] | Uint8Array,
  flags: number,
  fields: Partial<Packet> = {},
): void {
  guest.send({ op: RW, type: 2, flags, ...fields }, payload);
}

test("VsockDevice answers a seqpacket by RST where the driver has not negotiated it", (start) => {
  const guest = start();
  guest.virtio.reset();
  const { virtio } = guest;
  const offered = virtio.offeredFeatures;
  assert((offered & featureMask(1)) !== 0n);
  // The same device, a driver that leaves bit 1 out.
  const without = offered & ~featureMask(1);
  Object.defineProperty(virtio, "offeredFeatures", { get: () => without });
  guest.start();
  guest.post();
  guest.send({ op: REQUEST, type: 2 });
  const [answer] = guest.run();
  assertEquals([answer!.op, answer!.type], [RST, 2]);
  assertEquals(guest.count("type_unknown"), 1);
  assertEquals(guest.host.messages.length, 0);
  const reasons: string[] = [];
  const { hostPort } = guest.vsock.connectMessages(80, refusals(reasons));
  assertEquals([hostPort, reasons], [-1, [
    "the guest has no seqpacket sockets",
  ]]);
  // Streams are implied.
  guest.connect();
});

function refusals(reasons: string[]): MessagesAnswer {
  return {
    accepted: () => {
      throw new Error("accepted");
    },
    refused: (reason) => void reasons.push(reason),
  };
}

test("VsockDevice hands a message over whole, and only when its end has come", (start) => {
  const guest = start();
  const end = guest.connectMessages();
  fragment(guest, [1, 2], 0);
  fragment(guest, [3], 0);
  guest.run();
  assertEquals([end.written, end.writes], [[], 0]);
  fragment(guest, [4, 5], EOM);
  fragment(guest, [6], EOM | EOR);
  guest.run();
  assertEquals(end.written, [[1, 2, 3, 4, 5], [6]]);
  assertEquals(end.records, [false, true]);
});

test("VsockDevice takes empty messages, and empty ends of messages", (start) => {
  const guest = start();
  const end = guest.connectMessages();
  fragment(guest, [], EOM);
  fragment(guest, [1, 2], 0);
  fragment(guest, [], 0);
  fragment(guest, [], EOM);
  fragment(guest, [], EOM | EOR);
  // An end of a record that is no end of a message ends nothing.
  fragment(guest, [3], EOR);
  fragment(guest, [4], EOM);
  guest.run();
  assertEquals(end.written, [[], [1, 2], [], [3, 4]]);
  assertEquals(end.records, [false, false, true, false]);
});

test("VsockDevice ignores ends of messages in a stream", (start) => {
  const guest = start();
  const stream = guest.connect();
  guest.send({ op: RW, flags: EOM | EOR }, [1]);
  guest.send({ op: RW, flags: EOM }, []);
  guest.send({ op: RW }, [2]);
  guest.run();
  assertEquals(stream.written, [1, 2]);
});

test("VsockDevice marks the end of a message on its last fragment only", (start) => {
  // 100 bytes of payload in a receive buffer.
  const guest = start({}, 144);
  const end = guest.connectMessages();
  end.say(new Uint8Array(250).fill(1));
  end.say(new Uint8Array(100).fill(2), true);
  end.say(new Uint8Array(0));
  end.say(new Uint8Array(201).fill(3), true);
  const seen = guest.run().map(({ type, op, len, flags }) => [
    type,
    op,
    len,
    flags,
  ]);
  assertEquals(seen, [
    [2, RW, 100, 0],
    [2, RW, 100, 0],
    [2, RW, 50, EOM],
    [2, RW, 100, EOM | EOR],
    [2, RW, 0, EOM],
    [2, RW, 100, 0],
    [2, RW, 100, 0],
    [2, RW, 1, EOM | EOR],
  ]);
});

test("VsockDevice counts only payload of seqpackets, and tells of room after each message", (start) => {
  const guest = start({ bufAlloc: 10_000 });
  const end = guest.connectMessages();
  fragment(guest, new Uint8Array(10), EOM);
  const [first] = guest.run();
  assertEquals([first!.op, first!.type, first!.fwdCnt], [UPDATE, 2, 10]);
  // Nothing of a message leaves the buffer before its end.
  fragment(guest, new Uint8Array(9000), 0);
  assertEquals(guest.run(), []);
  guest.send({ op: ASK, type: 2 });
  assertEquals(guest.run()[0]!.fwdCnt, 10);
  fragment(guest, new Uint8Array(1000), EOM);
  assertEquals(guest.run()[0]!.fwdCnt, 10_010);
  fragment(guest, [], EOM);
  assertEquals(guest.run(), [], "an empty message frees nothing");
  assertEquals(end.written.map(({ length }) => length), [10, 10_000, 0]);
});

test("VsockDevice resets a guest that sends more of a message than it was granted", (start) => {
  const guest = start({ bufAlloc: 1000 });
  const end = guest.connectMessages();
  fragment(guest, new Uint8Array(600), 0);
  fragment(guest, new Uint8Array(401), EOM);
  const [answer] = guest.run();
  assertEquals([answer!.op, answer!.type], [RST, 2]);
  assertEquals(guest.count("credit_exceeded"), 1);
  assertEquals([end.written, end.calls], [[], ["reset"]]);
  assertEquals(guest.vsock.connectionCount, 0);
});

test("VsockDevice keeps messages for a host program that does not take them, in order", (start) => {
  const guest = start({ bufAlloc: 1000 });
  const end = guest.connectMessages();
  end.room = 1;
  for (const value of [1, 2, 3]) {
    fragment(guest, new Uint8Array(200).fill(value), value & 1);
    fragment(guest, new Uint8Array(100).fill(value), EOM);
  }
  const length = (): number[] => end.written.map(({ length }) => length);
  assertEquals(guest.run().at(-1)!.fwdCnt, 200);
  assertEquals(length(), [200]);
  assertEquals(end.writes, 2, "one that waits is not offered again and again");
  end.room = 2;
  end.events!.hostWritable();
  assertEquals(guest.run().at(-1)!.fwdCnt, 600);
  end.room = Infinity;
  end.events!.hostWritable();
  assertEquals(guest.run().at(-1)!.fwdCnt, 900);
  assertEquals(length(), [200, 100, 300, 200, 100]);
  assertEquals(end.written.map(([first]) => first), [1, 1, 2, 3, 3]);
});

test("VsockDevice resets a guest that floods it with empty messages", (start) => {
  const guest = start();
  const healthy = guest.connect({ srcPort: 6 });
  const end = guest.connectMessages();
  end.room = 0;
  for (let i = 0; i <= MAX_EMPTY_MESSAGES; i++) {
    fragment(guest, [], EOM);
    if (i < MAX_EMPTY_MESSAGES && i % 16 === 0) {
      assertEquals(ops(guest.run()), []);
    }
  }
  assertEquals(ops(guest.run()), [RST]);
  assertEquals(guest.count("empty_messages_exceeded"), 1);
  assertEquals(end.calls, ["reset"]);
  guest.send({ op: RW, srcPort: 6 }, [1]);
  guest.run();
  assertEquals(healthy.written, [1]);
});

test("VsockDevice begins a message within the guest's room, and goes on with more", (start) => {
  // 1000 bytes of payload in a receive buffer.
  const guest = start({}, 1044);
  const bufAlloc = 8192;
  const end = guest.connectMessages({ bufAlloc });
  assertEquals(end.events!.maxMessageBytes, bufAlloc);
  end.say(new Uint8Array(2500));
  end.say(new Uint8Array(8000));
  const sizes = (packets: Packet[]) =>
    packets.filter(({ op }) => op === RW).map(({ len, flags }) => [len, flags]);
  assertEquals(sizes(guest.run()), [
    [1000, 0],
    [1000, 0],
    [500, EOM],
    [1000, 0],
    [1000, 0],
    [1000, 0],
    [1000, 0],
    [1000, 0],
    [692, 0],
  ]);
  // Packets are bounded, too, but not in the middle of a message, which frees none before its end.
  guest.send({ op: UPDATE, type: 2, bufAlloc, fwdCnt: 2500 });
  assertEquals(sizes(guest.run()), [[1000, 0], [1000, 0], [308, EOM]]);
  end.say(new Uint8Array(1));
  assertEquals(sizes(guest.run()), []);
  guest.send({ op: UPDATE, type: 2, bufAlloc, fwdCnt: 10_500 });
  assertEquals(sizes(guest.run()), [[1, EOM]]);
});

test("VsockDevice sends a message in more packets than a guest may have unread of others", (start) => {
  const guest = start({}, 45);
  const end = guest.connectMessages();
  end.say(Uint8Array.from({ length: 1000 }, (_, i) => i));
  end.say(new Uint8Array(2).fill(9));
  const got: number[] = [];
  const flags: number[] = [];
  for (let i = 0; i < 60; i++) {
    for (const packet of guest.run().filter(({ op }) => op === RW)) {
      got.push(...packet.payload);
      flags.push(packet.flags);
    }
    guest.post();
  }
  assertEquals(got.length, 1000, "the second waits until the first is read");
  assertEquals(got, Array.from({ length: 1000 }, (_, i) => i & 0xff));
  assertEquals(flags.filter((flag) => flag !== 0), [EOM]);
  // Its state is still lawful.
  const saved = JSON.parse(JSON.stringify(guest.virtio.save()));
  guest.virtio.reset();
  guest.virtio.restore(saved);
  assertEquals(guest.vsock.connectionCount, 1);
});

for (
  const [what, bufAlloc] of [
    ["the guest's buffer", 100],
    ["what the device keeps", 1 << 30],
  ] as const
) {
  test(`VsockDevice resets a host program whose message is longer than ${what}`, (start) => {
    const guest = start({ bufAlloc: 5000 });
    const end = guest.connectMessages({ bufAlloc });
    const most = Math.min(bufAlloc, 5000);
    end.say(new Uint8Array(most));
    assertEquals(ops(guest.run()).filter((op) => op === RST), []);
    guest.send({ op: UPDATE, type: 2, bufAlloc, fwdCnt: most });
    end.say(new Uint8Array(most + 1));
    assertEquals(ops(guest.run()), [RST]);
    assertEquals(guest.count("message_too_long"), 1);
    assertEquals(end.calls, ["reset"]);
  });
}

test("VsockDevice resets a message that a guest has made impossible by a smaller buffer", (start) => {
  const guest = start();
  const end = guest.connectMessages({ bufAlloc: 6000 });
  end.say(new Uint8Array(1000));
  end.say(new Uint8Array(5500));
  assertEquals(ops(guest.run()), [RW, RW, RW]);
  guest.send({ op: UPDATE, type: 2, bufAlloc: 5400, fwdCnt: 1000 });
  assertEquals(ops(guest.run()), [RW, RST], "400 more bytes of 500");
  assertEquals(guest.count("message_too_long"), 1);
});

test("VsockDevice resets a connection whose message the host program can never take", (start) => {
  for (const kept of [false, true]) {
    const guest = start();
    const end = guest.connectMessages();
    if (kept) {
      end.room = 0;
      fragment(guest, [1], EOM);
      guest.run();
    }
    end.answer = MESSAGE_TOO_LONG;
    if (kept) end.events!.hostWritable();
    else fragment(guest, [1], EOM);
    assertEquals(ops(guest.run()), [RST]);
    assertEquals(guest.count("message_too_long"), 1);
    assertEquals(end.calls, ["reset"]);
  }
});

test("VsockDevice tells a guest whose messages nobody reads any more, and drops them", (start) => {
  const guest = start();
  const end = guest.connectMessages();
  end.answer = STREAM_BROKEN;
  fragment(guest, [1, 2, 3], EOM);
  const packets = guest.run();
  const shutdown = packets.find(({ op }) => op === SHUTDOWN)!;
  assertEquals([shutdown.type, shutdown.flags], [2, 1]);
  assertEquals(packets.at(-1)!.fwdCnt, 3);
  fragment(guest, [4], 0);
  fragment(guest, [], EOM);
  guest.run();
  assertEquals([end.writes, guest.count("data_unexpected")], [1, 0]);
});

test("VsockDevice delivers messages before the end, and not the beginning of one", (start) => {
  const guest = start();
  const end = guest.connectMessages();
  end.room = 0;
  fragment(guest, [1], EOM);
  fragment(guest, [2, 3], EOM);
  fragment(guest, [4], 0);
  guest.send({ op: SHUTDOWN, type: 2, flags: 2 });
  assertEquals(ops(guest.run()), []);
  assertEquals(end.calls, []);
  end.room = Infinity;
  end.events!.hostWritable();
  assertEquals(end.written, [[1], [2, 3]]);
  assertEquals(end.calls, ["shutdownWrite"]);
  guest.run();
  // A close of both directions: confirmed at once, delivered later.
  const other = guest.connectMessages({ srcPort: 6 });
  other.room = 0;
  fragment(guest, [7, 8], EOM, { srcPort: 6 });
  fragment(guest, [9], 0, { srcPort: 6 });
  guest.send({ op: SHUTDOWN, type: 2, flags: 3, srcPort: 6 });
  assertEquals(ops(guest.run()), [RST]);
  assertEquals([other.written, other.calls], [[], []]);
  other.room = Infinity;
  other.events!.hostWritable();
  assertEquals([other.written, other.calls], [[[7, 8]], ["close"]]);
});

test("VsockDevice sends a host program's messages before its end of file", (start) => {
  const guest = start({}, 1044);
  const bufAlloc = 8192;
  const end = guest.connectMessages({ bufAlloc });
  end.say(new Uint8Array(6692));
  end.say(new Uint8Array(3000));
  end.end(STREAM_EOF);
  assertEquals(ops(guest.run()).filter((op) => op === SHUTDOWN), []);
  guest.send({ op: UPDATE, type: 2, bufAlloc, fwdCnt: 6692 });
  const rest = guest.run();
  assertEquals(ops(rest), [RW, RW, SHUTDOWN]);
  assertEquals(rest.map(({ flags }) => flags), [0, EOM, 2]);
});

test("VsockDevice answers a packet of another type than its connection's by RST, and leaves that alone", (start) => {
  const guest = start();
  const stream = guest.connect();
  const end = guest.connectMessages({ srcPort: 6 });
  fragment(guest, [1], EOM);
  guest.send({ op: RW, type: 1, srcPort: 6 }, [1]);
  guest.send({ op: RST, type: 2 });
  guest.send({ op: REQUEST, type: 2 });
  const answers = guest.run();
  assertEquals(answers.map(({ op, type, dstPort }) => [op, type, dstPort]), [
    [RST, 2, 5],
    [RST, 1, 6],
    [RST, 2, 5],
  ]);
  assertEquals(guest.count("type_wrong"), 4);
  guest.send({ op: RW }, [2]);
  fragment(guest, [3], EOM, { srcPort: 6 });
  guest.run();
  assertEquals([stream.written, end.written], [[2], [[3]]]);
});

test("VsockDevice.connectMessages() connects a host program by REQUEST of type 2", (start) => {
  const guest = start();
  const host = guest.host;
  const pending = guest.vsock.connectMessages(80, {
    accepted: (_port, events) => {
      host.connectMessages({
        hostPort: 1234,
        guestPort: 80,
        cancelled: false,
        accept: (open) => open(events) !== null,
        refuse: () => {},
      });
      return host.messages.at(-1)!;
    },
    refused: () => {
      throw new Error("refused");
    },
  });
  const [request] = guest.run();
  assertEquals([request!.op, request!.type], [REQUEST, 2]);
  const { hostPort } = pending;
  const tuple = { srcPort: 80, dstPort: hostPort };
  guest.send({ op: RESPONSE, type: 2, ...tuple });
  fragment(guest, [1, 2], EOM, tuple);
  guest.run();
  const end = host.messages[0]!;
  // The fixture's host side keeps the events of its own request.
  assertEquals(end.written, [[1, 2]]);
  assertEquals(end.events!.maxMessageBytes, 262_144);
});

test("VsockDevice refuses seqpackets where its host side has none", (start) => {
  const guest = start();
  Object.defineProperty(guest.host, "connectMessages", { value: undefined });
  guest.send({ op: REQUEST, type: 2 });
  const [answer] = guest.run();
  assertEquals([answer!.op, answer!.type], [RST, 2]);
});
