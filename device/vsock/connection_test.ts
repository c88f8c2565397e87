import { assertEquals } from "@std/assert";
import {
  ASK,
  Guest,
  ops,
  REQUEST,
  RESPONSE,
  RINGS,
  RST,
  RW,
  SHUTDOWN,
  UPDATE,
} from "./_fixture.ts";
import type { ConnectAnswer } from "./host.ts";
import { STREAM_EOF } from "./host.ts";

function test(
  name: string,
  body: (start: (...rest: [{ bufAlloc?: number }?]) => Guest) => void,
): void {
  for (const ring of RINGS) {
    Deno.test(`${name} (${ring})`, () =>
      body((options) => new Guest(ring, options)));
  }
}

function refusals(reasons: string[]): ConnectAnswer {
  return {
    accepted: () => {
      throw new Error("accepted");
    },
    refused: (reason) => void reasons.push(reason),
  };
}

test("Connection tells a guest that shrinks its buffer of room that it does not know of", (start) => {
  const guest = start();
  guest.post();
  guest.connect();
  for (let i = 0; i < 6; i++) {
    guest.send({}, new Uint8Array(10_000));
    assertEquals(guest.run(), [], "under a quarter of the window");
  }
  // Newer guests limit themselves to their own buffer too: this one believes that it has no credit.
  guest.send({ op: UPDATE, bufAlloc: 32_768 });
  const [update] = guest.run();
  assertEquals([update!.op, update!.fwdCnt], [UPDATE, 60_000]);
  guest.send({ op: UPDATE, bufAlloc: 16_384 });
  assertEquals(guest.run(), [], "nothing is new");
});

test("Connection asks at once for the room of packets, however it was told of the last", (start) => {
  const guest = start();
  guest.post();
  const bufAlloc = 8 * 1024;
  const stream = guest.connect({ bufAlloc });
  const say = (count: number): number[] => {
    const sent: number[] = [];
    for (let i = 0; i < count; i++) {
      stream.say(1);
      sent.push(...ops(guest.run()));
      guest.post();
    }
    return sent;
  };
  assertEquals(say(9), [RW, RW, RW, RW, RW, RW, RW, RW, ASK]);
  // The first of the two gives the connection a turn, the second the room.
  guest.send({ op: ASK, bufAlloc });
  guest.send({ op: UPDATE, bufAlloc, fwdCnt: 8 });
  assertEquals(ops(guest.run()), [RW]);
  assertEquals(guest.vsock.nextDeadline() - guest.now, 20);
  guest.post();
  assertEquals(say(8), [RW, RW, RW, RW, RW, RW, RW, ASK]);
});

test("Connection ends when its host program is gone and its guest receives no more", (start) => {
  const guest = start();
  guest.post();
  const bufAlloc = 4096;
  const stream = guest.connect({ bufAlloc });
  stream.input.push(...Array(8192).fill(1));
  stream.atEnd = STREAM_EOF;
  stream.events!.hostHangup();
  const flags = () =>
    guest.run().filter(({ op }) => op === SHUTDOWN).map(({ flags }) => flags);
  assertEquals(flags(), [1], "the rest waits for room");
  guest.send({ op: SHUTDOWN, flags: 1, bufAlloc });
  assertEquals(flags(), [3]);
  assertEquals(stream.calls, ["shutdownRead", "close"]);
  guest.send({ op: RST });
  guest.run();
  assertEquals(guest.vsock.connectionCount, 0);
});

test("Connection delivers what a guest sent before its close, though the guest is gone by then", (start) => {
  for (const confirmed of [true, false]) {
    const guest = start();
    guest.post(confirmed ? 2 : 1);
    const stream = guest.connect();
    stream.room = 1;
    guest.send({}, [1, 2, 3]);
    guest.send({ op: SHUTDOWN, flags: 3 });
    assertEquals(ops(guest.run()), confirmed ? [RST] : []);
    guest.virtio.setStatus(0);
    assertEquals([stream.calls, guest.vsock.connectionCount], [[], 1]);
    guest.start();
    guest.post();
    guest.connect();
    stream.room = Infinity;
    stream.events!.hostWritable();
    assertEquals([stream.written, stream.calls], [[1, 2, 3], ["close"]]);
    assertEquals(guest.vsock.connectionCount, 1);
  }
});

test("Connection takes what crosses its RST for no fault", (start) => {
  const guest = start();
  guest.post(1);
  guest.connect();
  guest.send({ len: 100 });
  guest.send({ op: SHUTDOWN, flags: 3 });
  guest.send({}, [1]);
  const reasons: string[] = [];
  guest.run();
  guest.post(2);
  assertEquals(ops(guest.run()), [RST]);

  const connect = guest.vsock.connect(80, refusals(reasons));
  const [request] = guest.run();
  connect.cancel();
  guest.send({ op: RESPONSE, srcPort: 80, dstPort: request!.srcPort });
  guest.run();
  guest.post();
  assertEquals(ops(guest.run()), [RST]);
  assertEquals(reasons, []);
  assertEquals([...guest.diagnostics.counters.keys()], ["length_wrong"]);
});

test("Connection that a host program gives up before the guest is asked leaves no trace", (start) => {
  const guest = start();
  const reasons: string[] = [];
  guest.vsock.connect(80, refusals(reasons)).cancel();
  assertEquals(guest.vsock.connectionCount, 0);
  guest.vsock.connect(81, refusals(reasons));
  guest.vsock.expire(guest.now = 10_000);
  assertEquals(reasons, ["the guest did not answer"]);
  assertEquals(guest.vsock.connectionCount, 0);
  assertEquals(guest.vsock.nextDeadline(), Infinity);
  guest.post();
  assertEquals(guest.run(), []);
  guest.vsock.connect(82, refusals(reasons));
  assertEquals(guest.run().map(({ op, dstPort }) => [op, dstPort]), [[
    REQUEST,
    82,
  ]]);
});

test("Connection ends a host program's input also where it breaks with the guest's last bytes waiting", (start) => {
  const guest = start();
  guest.post();
  const stream = guest.connect();
  stream.room = 1;
  guest.send({}, [1, 2, 3]);
  guest.send({ op: SHUTDOWN, flags: 2 });
  guest.run();
  assertEquals(stream.calls, [], "two bytes wait");
  stream.broken = true;
  stream.events!.hostWritable();
  assertEquals(stream.calls, ["shutdownWrite"]);
  const [connection] = guest.vsock.save().connections;
  assertEquals(
    [connection!.discard, connection!.hostWriteEnded, connection!.buffered],
    [true, true, ""],
  );
});
