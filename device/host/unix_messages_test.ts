import { assert, assertEquals } from "@std/assert";
import { Chain } from "../../ring/chain.ts";
import { GuestMemory } from "../../ring/memory.ts";
import { Diagnostics } from "../diagnostics.ts";
import {
  type ConnectAnswer,
  type HostMessages,
  MESSAGE_AGAIN,
  MESSAGE_TOO_LONG,
  type MessageEvents,
  type MessagesAnswer,
  type MessagesRequest,
  type PendingConnect,
  STREAM_BROKEN,
  STREAM_EOF,
} from "../vsock/host.ts";
import { Segments } from "../vsock/segments.ts";
import { EAGAIN } from "./errno.ts";
import { EventLoop } from "./event_loop.ts";
import { fixedBytes, libc } from "./ffi.ts";
import { createMemfd, Mapping } from "./mmap.ts";
import {
  acceptFrom,
  closeFd,
  connectTo,
  FdChannel,
  listenAt,
  receiveBytes,
  sendBytes,
  SHUT_WR,
  shutdownSocket,
  socketPair,
} from "./socket.ts";
import { SEQPACKET_SUFFIX, UnixBackend } from "./unix_backend.ts";
import { UnixMessages } from "./unix_messages.ts";
import { VectorIo } from "./vector_io.ts";

libc(); // Opened here, because a library opened inside a test counts as a leak.

const SIZE = 1 << 20;

class Events implements MessageEvents {
  readonly maxMessageBytes = 262_144;
  readonly log: string[] = [];
  hostReadable(): void {
    this.log.push("readable");
  }
  hostWritable(): void {
    this.log.push("writable");
  }
  hostHangup(): void {
    this.log.push("hangup");
  }
}

type Bench = {
  loop: EventLoop;
  end: UnixMessages;
  peer: number;
  log: string[];
  /** Guest memory in two segments, with a pattern. */
  segments(length: number): Segments;
};

function withEnd(mapped: boolean, body: (bench: Bench) => void): void {
  const before = [...Deno.readDirSync("/proc/self/fd")].length;
  const mapping = new Mapping(createMemfd(SIZE), SIZE, 0);
  const memory = new GuestMemory([
    mapped
      ? {
        guestAddress: 0,
        size: SIZE,
        buffer: mapping.buffer,
        byteOffset: 0,
        hostAddress: mapping.hostAddress,
      }
      : { guestAddress: 0, size: SIZE, buffer: new ArrayBuffer(SIZE) },
  ]);
  memory.bytes(0, SIZE).forEach((_, i, all) => all[i] = i * 7 + (i >> 8));
  const loop = new EventLoop();
  const [fd, peer] = socketPair("seqpacket");
  const events = new Events();
  const closed: string[] = [];
  const end = new UnixMessages(loop, new VectorIo(), fd, events, {
    endClosed: () => closed.push("closed"),
  });
  body({
    loop,
    end,
    peer,
    log: events.log,
    segments: (length) => {
      const chain = new Chain(memory);
      const list = new Segments(memory);
      const half = length >> 1;
      assert(chain.append(0, half, false));
      assert(chain.append(SIZE / 2, length - half, false));
      list.add(chain, 0, chain.count, 0, length);
      return list;
    },
  });
  end.close(true);
  assertEquals(closed, ["closed"]);
  assertEquals(loop.size, 0);
  closeFd(peer);
  loop.close();
  mapping.release();
  assertEquals([...Deno.readDirSync("/proc/self/fd")].length, before);
}

const target = fixedBytes(SIZE);

function receive(fd: number): number {
  return receiveBytes(fd, target, target.length);
}

function bytes(length: number, value = 1): Uint8Array<ArrayBuffer> {
  return fixedBytes(length).fill(value);
}

for (const mapped of [true, false]) {
  const kind = mapped ? "mapped" : "unmapped";

  Deno.test(`UnixMessages.writeMessage() sends each message whole from ${kind} memory`, () => {
    withEnd(mapped, ({ end, peer, segments }) => {
      for (const length of [1, 2, 4096, 65_536, 200_000, 0, 5]) {
        const from = segments(length);
        assertEquals(end.writeMessage(from), length);
        assertEquals(receive(peer), length);
        const sent = new Uint8Array(length);
        from.copyTo(sent);
        assertEquals(target.subarray(0, length), sent as never);
      }
      assertEquals(end.writeMessageBytes(bytes(262_144)), 262_144);
      assertEquals(receive(peer), 262_144);
    });
  });
}

Deno.test("UnixMessages takes a message or leaves it, and says when there is room again", () => {
  withEnd(true, ({ end, peer, loop, log, segments }) => {
    let sent = 0;
    while (end.writeMessage(segments(50_000)) === 50_000) sent++;
    assert(sent > 1 && sent < 100, `${sent} messages`);
    assertEquals(end.writeMessageBytes(bytes(1)), MESSAGE_AGAIN);
    loop.turn(0);
    assertEquals(log, []);
    for (let i = 0; i < sent; i++) assertEquals(receive(peer), 50_000);
    assertEquals(receive(peer), -EAGAIN, "nothing was sent in part");
    loop.turn(0);
    assertEquals(log, ["writable"]);
    assertEquals(end.writeMessageBytes(bytes(1)), 1);
    while (loop.turn(0) > 0);
    assertEquals(log, ["writable"]);
  });
});

Deno.test("UnixMessages tells messages that the system cannot carry", () => {
  withEnd(true, ({ end }) => {
    const far = new Uint8Array(new ArrayBuffer(64 << 20));
    assertEquals(end.writeMessageBytes(far), MESSAGE_TOO_LONG);
    assertEquals(end.writeMessageBytes(bytes(10)), 10);
  });
});

Deno.test("UnixMessages.readMessage() tells empty messages from the end, and lengths beyond its room", () => {
  withEnd(true, ({ end, peer, loop, log }) => {
    const into = fixedBytes(1000);
    assertEquals(end.readMessage(into), MESSAGE_AGAIN);
    for (const length of [3, 0, 1000, 0, 1001, 100_000, 0]) {
      assertEquals(sendBytes(peer, bytes(length, 7), length), length);
    }
    loop.turn(0);
    assertEquals(log, ["readable"]);
    assertEquals(end.readMessage(into), 3);
    assertEquals([...into.subarray(0, 4)], [7, 7, 7, 0]);
    assertEquals(end.readMessage(into), 0);
    assertEquals(end.readMessage(into), 1000);
    assertEquals(end.readMessage(into), 0);
    assertEquals(end.readMessage(into), 1001);
    assertEquals(end.readMessage(into), 100_000);
    shutdownSocket(peer, SHUT_WR);
    assertEquals(end.readMessage(into), 0, "an empty message before the end");
    assertEquals(end.readMessage(into), STREAM_EOF);
    assertEquals(end.readMessage(into), STREAM_EOF);
  });
});

Deno.test("UnixMessages leaves descriptors that a host program sends to the system", () => {
  withEnd(true, ({ end, peer }) => {
    const before = [...Deno.readDirSync("/proc/self/fd")].length;
    assertEquals(new FdChannel().send(peer, bytes(4), 4, [peer, peer]), 4);
    assertEquals(end.readMessage(fixedBytes(10)), 4);
    assertEquals([...Deno.readDirSync("/proc/self/fd")].length, before);
  });
});

Deno.test("UnixMessages hears that its host program is gone", () => {
  withEnd(true, ({ end, peer, loop, log }) => {
    const [other, gone] = socketPair("seqpacket");
    closeFd(gone);
    closeFd(other);
    shutdownSocket(peer, 2);
    loop.turn(0);
    assertEquals(log, ["readable", "hangup"]);
    assertEquals(end.writeMessageBytes(bytes(1)), STREAM_BROKEN);
    assertEquals(end.readMessage(fixedBytes(1)), STREAM_EOF);
    end.close(false);
    assertEquals(end.writeMessageBytes(bytes(1)), STREAM_BROKEN);
    assertEquals(end.readMessage(fixedBytes(1)), STREAM_BROKEN);
  });
});

// -- The backend --

class FakeGuest {
  readonly streams: number[] = [];
  readonly asked: { port: number; answer: MessagesAnswer }[] = [];
  connect(port: number, _answer: ConnectAnswer): PendingConnect {
    this.streams.push(port);
    return { hostPort: 1, cancel: () => {} };
  }
  connectMessages(port: number, answer: MessagesAnswer): PendingConnect {
    this.asked.push({ port, answer });
    return { hostPort: 2, cancel: () => {} };
  }
}

class Request implements MessagesRequest {
  readonly hostPort: number;
  readonly guestPort = 99;
  readonly events: Events = new Events();
  cancelled = false;
  refused = 0;
  end: HostMessages | null = null;
  constructor(hostPort: number) {
    this.hostPort = hostPort;
  }
  accept(open: (events: MessageEvents) => HostMessages): boolean {
    this.end = open(this.events);
    return true;
  }
  refuse(): void {
    this.refused++;
  }
}

async function withBackend(
  body: (bench: {
    uds: string;
    guest: FakeGuest;
    backend: UnixBackend;
    count(kind: string): number;
    settle(): void;
  }) => void,
  options: { seqpackets?: boolean } = {},
): Promise<void> {
  const dir = await Deno.makeTempDir();
  const uds = `${dir}/uds`;
  const loop = new EventLoop();
  const guest = new FakeGuest();
  const diagnostics = new Diagnostics();
  const udsPath = uds;
  const backend = new UnixBackend({ loop, udsPath, diagnostics, ...options });
  backend.start(guest);
  const settle = (): void => {
    for (let idle = 0; idle < 2;) idle = loop.turn(0) === 0 ? idle + 1 : 0;
  };
  try {
    body({
      uds,
      guest,
      backend,
      count: (kind) => diagnostics.counters.get(kind) ?? 0,
      settle,
    });
  } finally {
    backend.stop();
    assertEquals(loop.size, 0);
    loop.close();
    assertEquals([...Deno.readDirSync(dir)], []);
    await Deno.remove(dir, { recursive: true });
  }
}

function say(fd: number, text: string): void {
  const line = new Uint8Array(new TextEncoder().encode(text));
  assertEquals(sendBytes(fd, line, line.length), line.length);
}

function hear(fd: number): string {
  const got = receive(fd);
  if (got === 0) return "EOF";
  if (got < 0) return "";
  return new TextDecoder().decode(target.subarray(0, got));
}

Deno.test("UnixBackend connects host programs by a seqpacket socket of its own", async () => {
  await withBackend(({ uds, guest, backend, settle }) => {
    const fd = connectTo(uds + SEQPACKET_SUFFIX, "seqpacket");
    assert(fd >= 0);
    assertEquals(Deno.lstatSync(uds + SEQPACKET_SUFFIX).mode! & 0o777, 0o600);
    say(fd, "CONNECT 77\n");
    // Messages behind the line are the guest's.
    say(fd, "early");
    settle();
    assertEquals([guest.asked[0]!.port, guest.streams], [77, []]);
    const events = new Events();
    const end = guest.asked[0]!.answer.accepted(0x4000_0001, events);
    assertEquals(hear(fd), "OK 1073741825\n");
    const into = fixedBytes(100);
    assertEquals(end.readMessage(into), 5);
    assertEquals(end.readMessage(into), MESSAGE_AGAIN);
    say(fd, "later");
    settle();
    assertEquals(events.log, ["readable"]);
    assertEquals(end.readMessage(into), 5);
    assertEquals(backend.streamCount, 1);
    assertEquals(end.writeMessageBytes(bytes(3, 65), false), 3);
    assertEquals(hear(fd), "AAA");
    end.close(false);
    assertEquals(hear(fd), "EOF");
    closeFd(fd);
  });
});

Deno.test("UnixBackend refuses a seqpacket program that does not keep to its line", async () => {
  await withBackend(({ uds, guest, count, settle }) => {
    const lines = [
      "CONNECT 5",
      "CON",
      "CONNECT 5\nmore",
      "CONNECT 99999999999\n",
      "x".repeat(500),
    ];
    for (const line of lines) {
      const fd = connectTo(uds + SEQPACKET_SUFFIX, "seqpacket");
      say(fd, line);
      settle();
      assertEquals(hear(fd), "EOF", line);
      closeFd(fd);
    }
    assertEquals(count("connect_line_bad"), lines.length);
    assertEquals(guest.asked, []);
    // One that is refused by the guest reads the end as well.
    const fd = connectTo(uds + SEQPACKET_SUFFIX, "seqpacket");
    say(fd, "CONNECT 5\n");
    settle();
    guest.asked[0]!.answer.refused("no");
    assertEquals(hear(fd), "EOF");
    closeFd(fd);
  });
});

Deno.test("UnixBackend takes a guest's seqpacket connection to a listener of that type only", async () => {
  await withBackend(({ uds, backend, count }) => {
    const listener = listenAt(`${uds}_5`, 1, "seqpacket");
    const good = new Request(5);
    backend.connectMessages(good);
    assertEquals(good.refused, 0);
    const fd = acceptFrom(listener.fd);
    assert(fd >= 0);
    assertEquals(good.end!.writeMessageBytes(bytes(9), false), 9);
    assertEquals(receive(fd), 9);
    good.end!.close(false);
    closeFd(fd);
    listener.close();

    const streams = listenAt(`${uds}_6`, 1);
    const wrong = new Request(6);
    backend.connectMessages(wrong);
    assertEquals(wrong.refused, 1, "a stream's listener");
    streams.close();
    const nobody = new Request(7);
    backend.connectMessages(nobody);
    assertEquals(nobody.refused, 1);
    assertEquals(count("host_connects_refused"), 2);
  });
});

Deno.test("UnixBackend has no seqpacket socket where it is told so", async () => {
  await withBackend(({ uds }) => {
    assertEquals(connectTo(uds + SEQPACKET_SUFFIX, "seqpacket") < 0, true);
  }, { seqpackets: false });
});
