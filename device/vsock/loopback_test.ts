import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { Chain } from "../../ring/chain.ts";
import { GuestMemory } from "../../ring/memory.ts";
import {
  type ConnectAnswer,
  type ConnectRequest,
  type HostStream,
  type PendingConnect,
  STREAM_AGAIN,
  STREAM_BROKEN,
  STREAM_EOF,
  type StreamEvents,
} from "./host.ts";
import {
  LOOPBACK_BACKLOG,
  LOOPBACK_BUFFER_BYTES,
  type LoopbackConn,
  LoopbackHost,
} from "./loopback.ts";
import { Segments } from "./segments.ts";

const memory = new GuestMemory([
  { guestAddress: 0, size: 1 << 20, buffer: new ArrayBuffer(1 << 20) },
]);

/** `length` bytes of guest memory in two segments. */
function segments(length: number): Segments {
  const chain = new Chain(memory);
  chain.append(0, length >> 1, true);
  chain.append(1 << 19, length - (length >> 1), true);
  const list = new Segments(memory);
  list.add(chain, 0, chain.count, 0, length);
  return list;
}

function bytesOf(list: Segments, length = list.bytes): number[] {
  const bytes = new Uint8Array(length);
  list.copyTo(bytes);
  return [...bytes];
}

/** A device that records what its host side tells it. */
class FakeDevice implements StreamEvents {
  readonly events: string[] = [];
  answer: ConnectAnswer | null = null;
  passes = 0;
  hostReadable(): void {
    this.events.push("readable");
  }
  hostWritable(): void {
    this.events.push("writable");
  }
  hostHangup(): void {
    this.events.push("hangup");
  }
  connect(_guestPort: number, answer: ConnectAnswer): PendingConnect {
    this.answer = answer;
    return { hostPort: 77, cancel: () => {} };
  }
  process(): boolean {
    this.passes++;
    return false;
  }
}

class FakeRequest implements ConnectRequest {
  readonly hostPort: number;
  readonly guestPort = 9999;
  cancelled = false;
  refused = false;
  stream: HostStream | null = null;
  readonly #events: StreamEvents;
  constructor(hostPort: number, events: StreamEvents) {
    this.hostPort = hostPort;
    this.#events = events;
  }
  accept(open: (events: StreamEvents) => HostStream): boolean {
    this.stream = open(this.#events);
    return true;
  }
  refuse(): void {
    this.refused = true;
  }
}

function connected(): {
  device: FakeDevice;
  conn: LoopbackConn;
  stream: HostStream;
} {
  const device = new FakeDevice();
  const host = new LoopbackHost();
  host.attach(device);
  const listener = host.listen(1);
  const request = new FakeRequest(1, device);
  host.connect(request);
  return { device, conn: listener.tryAccept()!, stream: request.stream! };
}

Deno.test("LoopbackHost refuses a port without listener and a full backlog", () => {
  const device = new FakeDevice();
  const host = new LoopbackHost();
  const listener = host.listen(80);
  const stray = new FakeRequest(81, device);
  host.connect(stray);
  assert(stray.refused);
  for (let i = 0; i < LOOPBACK_BACKLOG; i++) {
    const request = new FakeRequest(80, device);
    host.connect(request);
    assert(!request.refused);
  }
  const late = new FakeRequest(80, device);
  host.connect(late);
  assert(late.refused);
  listener.close();
  const after = new FakeRequest(80, device);
  host.connect(after);
  assert(after.refused);
});

Deno.test("LoopbackHost.listen() refuses what is no port and what is in use", () => {
  const host = new LoopbackHost();
  assertThrows(() => host.listen(0xffffffff), RangeError);
  assertThrows(() => host.listen(1.5), RangeError);
  host.listen(5);
  assertThrows(() => host.listen(5), TypeError, "in use");
});

Deno.test("LoopbackListener.accept() hands connections out in order, then null when closed", async () => {
  const host = new LoopbackHost();
  const listener = host.listen(7);
  const first = listener.accept();
  const second = listener.accept();
  const device = new FakeDevice();
  host.connect(new FakeRequest(7, device));
  assertEquals((await first)!.hostPort, 7);
  listener.close();
  assertEquals(await second, null);
  assertEquals(await listener.accept(), null);
});

Deno.test("LoopbackHost.connect() resolves on RESPONSE and rejects on RST", async () => {
  const device = new FakeDevice();
  const host = new LoopbackHost();
  await assertRejects(() => host.connect(1), TypeError, "no device");
  host.attach(device);
  const good = host.connect(5000);
  device.answer!.accepted(77, device);
  const conn = await good;
  assertEquals([conn.hostPort, conn.guestPort], [77, 5000]);
  const bad = host.connect(5000);
  device.answer!.refused("nobody there");
  await assertRejects(() => bad, Error, "nobody there");
});

Deno.test("LoopbackConn carries the guest's bytes in order and stops at its buffer", async () => {
  const { device, conn, stream } = connected();
  const list = segments(1000);
  list.copyFrom(Uint8Array.from({ length: 1000 }, (_, i) => i));
  assertEquals(stream.write(list), 1000);
  const target = new Uint8Array(400);
  assertEquals(await conn.read(target), 400);
  assertEquals([...target], bytesOf(list, 400));
  assertEquals(conn.tryRead(new Uint8Array(1000)), 600);
  assertEquals(conn.tryRead(target), 0);

  let filled = 0;
  for (;;) {
    const taken = stream.writeBytes(new Uint8Array(100_000));
    filled += taken;
    if (taken < 100_000) break;
  }
  assertEquals(filled, LOOPBACK_BUFFER_BYTES);
  assertEquals(device.events, []);
  conn.tryRead(target);
  conn.tryRead(target);
  assertEquals(device.events, ["writable"], "one event, once there is room");
});

Deno.test("LoopbackConn.read() waits for bytes, and ends at the guest's end", async () => {
  const { conn, stream } = connected();
  const target = new Uint8Array(10);
  const waiting = conn.read(target);
  stream.writeBytes(Uint8Array.of(1, 2, 3));
  assertEquals(await waiting, 3);
  const atEnd = conn.read(target);
  stream.shutdownWrite();
  assertEquals(await atEnd, null);
});

Deno.test("LoopbackConn.read() tells of a reset, after the bytes before it", () => {
  const { conn, stream } = connected();
  stream.writeBytes(Uint8Array.of(1));
  stream.close(true);
  assertEquals(conn.tryRead(new Uint8Array(4)), 1);
  assertThrows(() => conn.tryRead(new Uint8Array(4)), Error, "reset");
  assertThrows(
    () => conn.tryWrite(new Uint8Array(4)),
    Error,
    "receives no more",
  );
});

Deno.test("LoopbackConn gives the device its bytes, with one event after it found none", async () => {
  const { device, conn, stream } = connected();
  const list = segments(6);
  assertEquals(stream.read(list), STREAM_AGAIN);
  conn.tryWrite(Uint8Array.of(1, 2, 3, 4));
  conn.tryWrite(Uint8Array.of(5, 6, 7, 8));
  assertEquals(device.events, ["readable"]);
  assertEquals(stream.read(list), 6);
  assertEquals(bytesOf(list), [1, 2, 3, 4, 5, 6]);
  assertEquals(stream.read(list), 2);
  assertEquals(bytesOf(list, 2), [7, 8]);
  conn.closeWrite();
  assertEquals(stream.read(list), STREAM_EOF);
  assertThrows(() => conn.tryWrite(Uint8Array.of(1)), TypeError, "closed");
  await Promise.resolve();
  assert(device.passes > 0, "the device is woken in a microtask");
});

Deno.test("LoopbackConn.write() waits for the device to make room", async () => {
  const { conn, stream } = connected();
  const data = Uint8Array.from(
    { length: LOOPBACK_BUFFER_BYTES + 5000 },
    (_, i) => i % 251,
  );
  const writing = conn.write(data);
  const seen: number[] = [];
  const list = segments(50_000);
  while (seen.length < data.length) {
    const got = stream.read(list);
    if (got === STREAM_AGAIN) await Promise.resolve();
    else seen.push(...bytesOf(list, got));
  }
  assertEquals(await writing, data.length);
  assertEquals(Uint8Array.from(seen), data);
});

Deno.test("LoopbackConn.close() lets the device read the rest and breaks its writes", () => {
  const { device, conn, stream } = connected();
  conn.tryWrite(Uint8Array.of(9));
  conn.close();
  conn.close();
  assertEquals(device.events, ["hangup"]);
  const list = segments(4);
  assertEquals(stream.read(list), 1);
  assertEquals(stream.read(list), STREAM_EOF);
  assertEquals(stream.write(list), STREAM_BROKEN);
  assertEquals(stream.writeBytes(Uint8Array.of(1)), STREAM_BROKEN);
  assertThrows(() => conn.tryRead(new Uint8Array(1)), TypeError, "closed");
});

Deno.test("LoopbackConn.readable and writable are web streams", async () => {
  const { conn, stream } = connected();
  stream.writeBytes(new TextEncoder().encode("to the host"));
  stream.shutdownWrite();
  let text = "";
  for await (const chunk of conn.readable) {
    text += new TextDecoder().decode(chunk);
  }
  assertEquals(text, "to the host");
  const writer = conn.writable.getWriter();
  await writer.write(new TextEncoder().encode("to the guest"));
  await writer.close();
  const list = segments(100);
  assertEquals(stream.read(list), 12);
  assertEquals(stream.read(list), STREAM_EOF);
});
