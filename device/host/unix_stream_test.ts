import { assert, assertEquals, assertGreater } from "@std/assert";
import { Chain } from "../../ring/chain.ts";
import { GuestMemory } from "../../ring/memory.ts";
import { STREAM_AGAIN, STREAM_BROKEN, STREAM_EOF } from "../vsock/host.ts";
import { Segments } from "../vsock/segments.ts";
import { EAGAIN, ECONNRESET, EPIPE } from "./errno.ts";
import { EventLoop } from "./event_loop.ts";
import { fixedBytes, libc } from "./ffi.ts";
import { createMemfd, Mapping } from "./mmap.ts";
import {
  closeFd,
  FdChannel,
  receiveBytes,
  sendBytes,
  SHUT_WR,
  shutdownSocket,
  socketPair,
} from "./socket.ts";
import { UnixStream } from "./unix_stream.ts";
import { VectorIo } from "./vector_io.ts";

libc(); // Opened here, because a library opened inside a test counts as a leak.

const SIZE = 1 << 20;

/** Two regions of guest memory, mapped or not, or one of each. */
type Kind = "mapped" | "unmapped" | "mixed";

type Bench = {
  loop: EventLoop;
  stream: UnixStream;
  /** The host program's end. */
  peer: number;
  memory: GuestMemory;
  /** What happened, in order. */
  log: string[];
  /** Guest memory at [address, length] pairs. */
  segments(...pieces: readonly (readonly [number, number])[]): Segments;
};

function withStream(kind: Kind, body: (bench: Bench) => void): void {
  const before = [...Deno.readDirSync("/proc/self/fd")].length;
  const mapping = new Mapping(createMemfd(SIZE), SIZE, 0);
  const regions = [0, 1].map((index) => {
    const mapped = kind === "mapped" || (kind === "mixed" && index === 0);
    return mapped
      ? {
        guestAddress: index * SIZE / 2,
        size: SIZE / 2,
        buffer: mapping.buffer,
        byteOffset: index * SIZE / 2,
        hostAddress: mapping.hostAddress + index * SIZE / 2,
      }
      : {
        guestAddress: index * SIZE / 2,
        size: SIZE / 2,
        buffer: new ArrayBuffer(SIZE / 2),
      };
  });
  const memory = new GuestMemory(regions);
  const loop = new EventLoop();
  const [fd, peer] = socketPair();
  const log: string[] = [];
  const stream = new UnixStream(loop, new VectorIo(), fd, {
    hostReadable: () => log.push("readable"),
    hostWritable: () => log.push("writable"),
    hostHangup: () => log.push("hangup"),
  }, { endClosed: () => log.push("closed") });
  body({
    loop,
    stream,
    peer,
    memory,
    log,
    segments: (...pieces) => {
      const chain = new Chain(memory);
      const segments = new Segments(memory);
      for (const [address, length] of pieces) {
        assert(chain.append(address, length, false));
      }
      segments.add(chain, 0, chain.count, 0, chain.readableBytes);
      return segments;
    },
  });
  stream.close(true);
  stream.close(true);
  assertEquals(log.filter((line) => line === "closed").length, 1);
  assertEquals(loop.size, 0);
  closeFd(peer);
  loop.close();
  mapping.release();
  assertEquals([...Deno.readDirSync("/proc/self/fd")].length, before);
}

function fill(memory: GuestMemory): void {
  for (const [index, region] of memory.regions.entries()) {
    for (let i = 0; i < region.size; i++) {
      region.bytes[i] = (i * 7 + (i >> 8) + index * 101) & 0xff;
    }
  }
}

function joined(parts: readonly Uint8Array[]): Uint8Array {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** All bytes that the peer can read now. */
function drain(peer: number): Uint8Array {
  const parts: Uint8Array[] = [];
  const target = fixedBytes(65536);
  for (;;) {
    const n = receiveBytes(peer, target, target.length);
    if (n <= 0) return joined(parts);
    parts.push(target.slice(0, n));
  }
}

for (const kind of ["mapped", "unmapped", "mixed"] as const) {
  Deno.test(`UnixStream gathers and scatters ${kind} guest memory`, () => {
    withStream(kind, ({ stream, peer, memory, segments }) => {
      fill(memory);
      const half = SIZE / 2;
      // Odd offsets, a single byte, and a piece that crosses the two regions.
      const out = segments([1, 1000], [half - 5, 11], [half + 4097, 1], [
        3,
        5000,
      ]);
      assertEquals(out.count, 5);
      const expected = new Uint8Array(out.bytes);
      out.copyTo(expected);
      assertEquals(stream.write(out), 6012);
      assertEquals(drain(peer), expected);

      sendBytes(peer, new Uint8Array(expected), expected.length);
      for (const region of memory.regions) region.bytes.fill(0);
      const into = segments([half + 1, 4000], [half - 3, 4], [17, 70_000]);
      assertEquals(stream.read(into), 6012);
      const got = new Uint8Array(6012);
      into.copyTo(got);
      assertEquals(got, expected);
      // Nothing behind the received bytes was touched.
      const touched = 6012 - 4004;
      assertEquals(memory.bytes(17 + touched, 1)[0], 0);
      assertEquals(stream.read(into), STREAM_AGAIN);
    });
  });

  Deno.test(`UnixStream keeps order under backpressure from ${kind} memory`, () => {
    withStream(kind, ({ loop, stream, peer, memory, log, segments }) => {
      fill(memory);
      const whole = new Uint8Array(SIZE);
      segments([0, SIZE]).copyTo(whole);
      const got: Uint8Array[] = [];
      let sent = 0;
      let short = 0;
      while (sent < SIZE) {
        const rest = segments([sent, SIZE - sent]);
        const n = stream.write(rest);
        assert(n >= 0);
        sent += n;
        if (n === rest.bytes) break;
        short++;
        log.length = 0;
        loop.turn(0);
        assertEquals(log, []); // full: no event
        got.push(drain(peer));
        loop.turn(0);
        assertEquals(log, ["writable"]);
        loop.turn(0);
        assertEquals(log, ["writable"]);
      }
      got.push(drain(peer));
      assertGreater(short, 1);
      assertEquals(joined(got), whole);
    });
  });
}

Deno.test("UnixStream.writeBytes() sends views of any buffer", () => {
  withStream("mapped", ({ stream, peer }) => {
    const buffer = new Uint8Array(1000).map((_, i) => i);
    assertEquals(stream.writeBytes(buffer.subarray(10, 20)), 10);
    assertEquals([...drain(peer)], [...buffer.subarray(10, 20)]);
    assertEquals(stream.writeBytes(new Uint8Array(0)), 0);
    const large = new Uint8Array(1 << 22);
    const taken = stream.writeBytes(large);
    assert(taken > 0 && taken < large.length);
    assertEquals(stream.writeBytes(large), 0);
  });
});

Deno.test("UnixStream tells of bytes once, after a read that found none", () => {
  withStream("mapped", ({ loop, stream, peer, log, segments }) => {
    loop.turn(0);
    assertEquals(log, []);
    const byte = fixedBytes(1);
    sendBytes(peer, byte, 1);
    loop.turn(0);
    sendBytes(peer, byte, 1);
    loop.turn(0);
    assertEquals(log, ["readable"]);
    const into = segments([0, 1]);
    assertEquals(stream.read(into), 1);
    assertEquals(stream.read(into), 1);
    loop.turn(0);
    assertEquals(log, ["readable"]);
    assertEquals(stream.read(into), STREAM_AGAIN);
    loop.turn(0);
    sendBytes(peer, byte, 1);
    loop.turn(0);
    assertEquals(log, ["readable", "readable"]);
  });
});

Deno.test("UnixStream is not woken by a host program that only reads", () => {
  withStream("mapped", ({ loop, stream, peer, log, segments }) => {
    for (let i = 0; i < 5; i++) {
      stream.write(segments([0, 64]));
      assertEquals(drain(peer).length, 64);
      assertEquals(loop.turn(0), 0);
    }
    assertEquals(log, []);
  });
});

Deno.test("UnixStream delivers what came before a half-close, and still writes", () => {
  withStream("mapped", ({ loop, stream, peer, log, segments }) => {
    sendBytes(peer, new Uint8Array([1, 2, 3]), 3);
    shutdownSocket(peer, SHUT_WR);
    loop.turn(0);
    assertEquals(log, ["readable"]);
    const into = segments([0, 100]);
    assertEquals(stream.read(into), 3);
    assertEquals(stream.read(into), STREAM_EOF);
    assertEquals(stream.write(segments([0, 3])), 3);
    assertEquals([...drain(peer)], [1, 2, 3]);
    loop.turn(0);
    assertEquals(log, ["readable"]);
  });
});

Deno.test("UnixStream.shutdownWrite() ends one direction, shutdownRead() the other", () => {
  withStream("mapped", ({ stream, peer, segments }) => {
    stream.write(segments([0, 5]));
    stream.shutdownWrite();
    assertEquals(drain(peer).length, 5);
    assertEquals(receiveBytes(peer, fixedBytes(1), 1), 0);
    assertEquals(sendBytes(peer, fixedBytes(4), 4), 4);
    assertEquals(stream.write(segments([0, 5])), STREAM_BROKEN);
    assertEquals(stream.read(segments([0, 100])), 4);
    stream.shutdownRead();
    assertEquals(sendBytes(peer, fixedBytes(4), 4), -EPIPE);
  });
});

Deno.test("UnixStream hangs up once, and what came before can be read", () => {
  withStream("mapped", ({ loop, stream, peer, log, segments }) => {
    loop.turn(0);
    sendBytes(peer, new Uint8Array([1, 2, 3]), 3);
    shutdownSocket(peer, 2);
    for (let i = 0; i < 3; i++) loop.turn(0);
    assertEquals(log, ["readable", "hangup"]);
    assertEquals(stream.write(segments([0, 5])), STREAM_BROKEN); // no SIGPIPE
    assertEquals(stream.writeBytes(new Uint8Array(3)), STREAM_BROKEN);
    assertEquals(stream.read(segments([0, 100])), 3);
    assertEquals(stream.read(segments([0, 100])), STREAM_EOF);
    for (let i = 0; i < 3; i++) assertEquals(loop.turn(0), 0);
  });
});

Deno.test("UnixStream.read() that took all there was is told of what comes next by an event", () => {
  withStream("mapped", ({ loop, stream, peer, log, segments }) => {
    loop.turn(0);
    sendBytes(peer, new Uint8Array([1, 2, 3]), 3);
    loop.turn(0);
    assertEquals(stream.read(segments([0, 100])), 3);
    sendBytes(peer, new Uint8Array([4, 5]), 2);
    assertEquals(stream.read(segments([0, 100])), STREAM_AGAIN);
    assertEquals(log.splice(0), ["readable"]);
    loop.turn(0);
    assertEquals(log.splice(0), ["readable"]);
    // The end comes before the read, its event after it.
    shutdownSocket(peer, SHUT_WR);
    assertEquals(stream.read(segments([0, 100])), 2);
    assertEquals(stream.read(segments([0, 100])), STREAM_AGAIN);
    loop.turn(0);
    assertEquals(log.splice(0), ["readable"]);
    assertEquals(stream.read(segments([0, 100])), STREAM_EOF);
  });
});

Deno.test("UnixStream.read() goes on behind bytes that came with descriptors", () => {
  withStream("mapped", ({ loop, stream, peer, segments }) => {
    loop.turn(0);
    const channel = new FdChannel();
    assertEquals(channel.send(peer, fixedBytes(2), 2, [peer]), 2);
    sendBytes(peer, new Uint8Array([3, 4, 5]), 3);
    loop.turn(0);
    // The kernel ends a read there. No event tells of the rest, which was there before.
    assertEquals(stream.read(segments([0, 100])), 2);
    assertEquals(stream.read(segments([0, 100])), 3);
    assertEquals(stream.read(segments([0, 100])), STREAM_AGAIN);
  });
});

Deno.test("UnixStream.read() goes on behind a byte out of band", () => {
  withStream("mapped", ({ loop, stream, peer, segments }) => {
    loop.turn(0);
    const MSG_OOB = 1;
    sendBytes(peer, new Uint8Array([1, 2]), 2);
    // Where the kernel has none on Unix sockets, there is nothing to stop at.
    libc().send(peer, fixedBytes(1), 1, MSG_OOB);
    sendBytes(peer, new Uint8Array([3, 4, 5]), 3);
    loop.turn(0);
    let bytes = 0;
    for (;;) {
      const got = stream.read(segments([0, 100]));
      if (got === STREAM_AGAIN) break;
      bytes += got;
    }
    assertEquals(bytes, 5);
  });
});

Deno.test("UnixStream is broken when the host program dies without having read", () => {
  withStream("mapped", ({ loop, stream, peer, log, segments }) => {
    // The peer's number is closed again at the end, so another descriptor takes it.
    stream.write(segments([0, 5]));
    closeFd(peer);
    assertEquals(libc().eventfd(0, 0), peer);
    loop.turn(0);
    assertEquals(log, ["readable", "hangup"]);
    assertEquals(stream.read(segments([0, 100])), STREAM_BROKEN);
    assertEquals(stream.write(segments([0, 100])), STREAM_BROKEN);
  });
});

Deno.test("UnixStream hears of room that comes with the host program's end", () => {
  withStream("mapped", ({ loop, stream, peer, log, segments }) => {
    while (stream.write(segments([0, SIZE])) === SIZE);
    loop.turn(0);
    log.length = 0;
    closeFd(peer);
    assertEquals(libc().eventfd(0, 0), peer);
    loop.turn(0);
    assertEquals(log, ["readable", "writable", "hangup"]);
    assertEquals(stream.write(segments([0, 100])), STREAM_BROKEN);
  });
});

Deno.test("UnixStream.close() lets the host program read its bytes and then the end", () => {
  withStream("mapped", ({ stream, peer, segments }) => {
    sendBytes(peer, fixedBytes(100_000), 100_000); // never read by the guest
    stream.write(segments([0, 5]));
    stream.close(false);
    const target = fixedBytes(10);
    assertEquals(receiveBytes(peer, target, 10), 5);
    assertEquals(receiveBytes(peer, target, 10), 0);
    assertEquals(sendBytes(peer, target, 10), -EPIPE);
    assertEquals(stream.read(segments([0, 5])), STREAM_BROKEN);
    assertEquals(stream.write(segments([0, 5])), STREAM_BROKEN);
    stream.shutdownWrite();
  });
});

Deno.test("UnixStream.close(true) resets a host program whose bytes were not taken", () => {
  withStream("mapped", ({ stream, peer, segments }) => {
    sendBytes(peer, fixedBytes(10), 10);
    stream.write(segments([0, 5]));
    stream.close(true);
    const target = fixedBytes(10);
    assertEquals(receiveBytes(peer, target, 10), 5);
    assertEquals(receiveBytes(peer, target, 10), -ECONNRESET);
  });
});

Deno.test("UnixStream may be closed by each of its own events", () => {
  for (const at of ["hostReadable", "hostWritable", "hostHangup"] as const) {
    const loop = new EventLoop();
    const [fd, peer] = socketPair();
    const log: string[] = [];
    const note = (event: string): void => {
      log.push(event);
      if (event === at) stream.close(false);
    };
    const stream = new UnixStream(loop, new VectorIo(), fd, {
      hostReadable: () => note("hostReadable"),
      hostWritable: () => note("hostWritable"),
      hostHangup: () => note("hostHangup"),
    }, { endClosed: () => {} });
    while (stream.writeBytes(new Uint8Array(65536)) > 0);
    closeFd(peer);
    for (let i = 0; i < 3; i++) loop.turn(0);
    assertEquals(log.at(-1), at);
    assertEquals(loop.size, 0);
    loop.close();
  }
});

Deno.test("UnixStream on a descriptor that cannot be watched is broken, not thrown", () => {
  const loop = new EventLoop();
  const log: string[] = [];
  const stream = new UnixStream(loop, new VectorIo(), createMemfd(10), {
    hostReadable: () => log.push("readable"),
    hostWritable: () => log.push("writable"),
    hostHangup: () => log.push("hangup"),
  }, { endClosed: () => log.push("closed") });
  const path = new TextEncoder().encode("x");
  assertEquals(stream.writeBytes(path), STREAM_BROKEN);
  loop.turn(0);
  assertEquals(log, ["readable", "hangup", "closed"]);
  stream.close(false);
  loop.close();
});

Deno.test("UnixStream answers broken, not a crash, for memory whose file shrank", () => {
  const mapping = new Mapping(createMemfd(SIZE, { sealable: false }), SIZE, 0);
  const memory = new GuestMemory([{
    guestAddress: 0,
    size: SIZE,
    buffer: mapping.buffer,
    hostAddress: mapping.hostAddress,
  }]);
  const fd = Number(
    [...Deno.readDirSync("/proc/self/fd")].map((entry) => entry.name)
      .find((name) => {
        try {
          return Deno.readLinkSync(`/proc/self/fd/${name}`).includes("memfd:");
        } catch {
          return false;
        }
      }),
  );
  libc().ftruncate(fd, 4096n);
  const loop = new EventLoop();
  const [a, peer] = socketPair();
  const stream = new UnixStream(loop, new VectorIo(), a, {
    hostReadable: () => {},
    hostWritable: () => {},
    hostHangup: () => {},
  }, { endClosed: () => {} });
  const chain = new Chain(memory);
  chain.append(8192, 100, false);
  const segments = new Segments(memory);
  segments.add(chain, 0, 1, 0, 100);
  assertEquals(stream.write(segments), STREAM_BROKEN);
  sendBytes(peer, fixedBytes(10), 10);
  assertEquals(stream.read(segments), STREAM_BROKEN);
  assertEquals(receiveBytes(peer, fixedBytes(10), 10), -EAGAIN);
  assert(!mapping.intact());
  stream.close(false);
  closeFd(peer);
  loop.close();
  mapping.release();
});
