import { assert, assertEquals, assertThrows } from "@std/assert";
import { EAGAIN, ECONNREFUSED, ENOENT, EPIPE, SystemError } from "./errno.ts";
import { fixedBytes, libc } from "./ffi.ts";
import { createMemfd, duplicateFd, Mapping } from "./mmap.ts";
import {
  acceptFrom,
  closeFd,
  connectTo,
  createEventFd,
  drainEventFd,
  FdChannel,
  isSocket,
  listenAt,
  MAX_MESSAGE_FDS,
  peekBytes,
  raiseSignal,
  receiveBytes,
  sendBytes,
  SHUT_WR,
  shutdownSocket,
  signalOf,
  socketPair,
  waitWritable,
} from "./socket.ts";

libc(); // Opened here, because a library opened inside a test counts as a leak.

function openDescriptors(): number {
  return [...Deno.readDirSync("/proc/self/fd")].length;
}

function bytesOf(text: string): Uint8Array<ArrayBuffer> {
  return new Uint8Array(new TextEncoder().encode(text));
}

async function inTempDir(
  body: (dir: string) => void | Promise<void>,
): Promise<void> {
  const dir = await Deno.makeTempDir();
  const before = openDescriptors();
  try {
    await body(dir);
    assertEquals(openDescriptors(), before, "descriptors leak");
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

Deno.test("FdChannel passes descriptors with their message", () => {
  const before = openDescriptors();
  const [a, b] = socketPair();
  const memfd = createMemfd(4096);
  const event = createEventFd();
  const channel = new FdChannel();
  assertEquals(channel.send(a, bytesOf("hello"), 5, [memfd, event]), 5);
  assertEquals(channel.send(a, bytesOf("plain"), 5, []), 5);

  const target = fixedBytes(5);
  assertEquals(channel.receive(b, target, 2), 2);
  assertEquals(channel.fds.length, 2);
  const [memfd2, event2] = channel.fds as [number, number];
  assert(memfd2 !== memfd);
  assertEquals(channel.receive(b, target, 3), 3);
  assertEquals(channel.fds, []);
  assertEquals(channel.receive(b, target, 5), 5);
  assertEquals(new TextDecoder().decode(target), "plain");
  assertEquals(channel.fds, []);
  assertEquals(channel.receive(b, target, 5), -EAGAIN);

  const one = new Mapping(memfd, 4096, 0);
  const two = new Mapping(duplicateFd(memfd2), 4096, 0);
  new Uint8Array(one.buffer)[7] = 9;
  assertEquals(new Uint8Array(two.buffer)[7], 9);
  one.release();
  two.release();
  raiseSignal(signalOf(event));
  assert(drainEventFd(event2));
  assert(!drainEventFd(event));
  const FD_CLOEXEC = 1, F_GETFD = 1;
  assertEquals(libc().fcntl(memfd2, F_GETFD, 0), FD_CLOEXEC);

  closeFd(a);
  assertEquals(channel.receive(b, target, 5), 0);
  for (const fd of [b, memfd2, event, event2]) closeFd(fd);
  assertEquals(openDescriptors(), before);
});

Deno.test("FdChannel.receive() tells that descriptors were dropped", () => {
  const before = openDescriptors();
  const [a, b] = socketPair();
  const channel = new FdChannel();
  // More than a message of ours takes: sent by hand, as a hostile peer does.
  const many = 40;
  const control = new DataView(new ArrayBuffer(16 + 4 * many));
  control.setBigUint64(0, BigInt(16 + 4 * many), true);
  control.setInt32(8, 1, true);
  control.setInt32(12, 1, true);
  for (let i = 0; i < many; i++) control.setInt32(16 + 4 * i, a, true);
  const at = (view: ArrayBufferView<ArrayBuffer>): bigint =>
    Deno.UnsafePointer.value(Deno.UnsafePointer.of(view));
  const byte = fixedBytes(1);
  const iovec = new BigUint64Array([at(byte), 1n]);
  const header = new BigUint64Array([
    0n,
    0n,
    at(iovec),
    1n,
    at(control),
    BigInt(control.byteLength),
    0n,
  ]);
  assertEquals(libc().sendmsg(a, header, 0), 1);
  assertEquals(channel.receive(b, fixedBytes(8), 8), 1);
  assert(channel.truncated);
  assertEquals(channel.fds.length, MAX_MESSAGE_FDS);
  for (const fd of channel.fds) closeFd(fd);
  assertThrows(
    () => channel.send(a, byte, 1, new Array(MAX_MESSAGE_FDS + 1).fill(a)),
    RangeError,
  );
  closeFd(a);
  closeFd(b);
  assertEquals(openDescriptors(), before);
});

Deno.test("sendBytes() answers EAGAIN when full and EPIPE without a reader", () => {
  const [a, b] = socketPair();
  const chunk = fixedBytes(65536);
  let sent = 0;
  for (;;) {
    const n = sendBytes(a, chunk, chunk.length);
    if (n < 0) {
      assertEquals(n, -EAGAIN);
      break;
    }
    sent += n;
  }
  assert(sent > 0);
  assert(!waitWritable(a, 0));
  closeFd(b);
  assertEquals(sendBytes(a, chunk, 1), -EPIPE); // and no SIGPIPE
  closeFd(a);
});

Deno.test("peekBytes() leaves the bytes", () => {
  const [a, b] = socketPair();
  sendBytes(a, bytesOf("abc"), 3);
  shutdownSocket(a, SHUT_WR);
  const target = fixedBytes(8);
  assertEquals(peekBytes(b, target, 8), 3);
  assertEquals(receiveBytes(b, target, 2), 2);
  assertEquals(receiveBytes(b, target, 8), 1);
  assertEquals(receiveBytes(b, target, 8), 0);
  closeFd(a);
  closeFd(b);
});

Deno.test("listenAt() makes a socket for its owner only and removes it", async () => {
  await inTempDir(async (dir) => {
    const path = `${dir}/s`;
    const listener = listenAt(path, 4);
    assertEquals((await Deno.lstat(path)).mode! & 0o777, 0o600);
    const client = connectTo(path);
    assert(client >= 0);
    const server = acceptFrom(listener.fd);
    assert(server >= 0 && isSocket(server));
    assertEquals(acceptFrom(listener.fd), -EAGAIN);
    closeFd(client);
    closeFd(server);
    listener.close();
    listener.close();
    assertThrows(() => Deno.lstatSync(path), Deno.errors.NotFound);
  });
});

Deno.test("listenAt() replaces a stale socket and keeps a live one", async () => {
  await inTempDir((dir) => {
    const path = `${dir}/s`;
    const stale = listenAt(path, 1);
    closeFd(stale.fd); // as a killed process does: the file stays
    assertEquals(connectTo(path), -ECONNREFUSED);
    const live = listenAt(path, 1);
    assertThrows(() => listenAt(path, 1), TypeError, "live process");
    // The probe above waits to be accepted; a full backlog is live as well.
    const fds = [acceptFrom(live.fd)];
    for (;;) {
      const fd = connectTo(path);
      if (fd < 0) {
        assertEquals(fd, -EAGAIN);
        break;
      }
      fds.push(fd);
    }
    assertThrows(() => listenAt(path, 1), TypeError, "live process");
    for (const fd of fds) closeFd(fd);
    live.close();
  });
});

Deno.test("listenAt() leaves a file that is no socket", async () => {
  await inTempDir(async (dir) => {
    const path = `${dir}/precious`;
    await Deno.writeTextFile(path, "data");
    assertThrows(() => listenAt(path, 1), TypeError, "no socket");
    assertEquals(await Deno.readTextFile(path), "data");
    assertThrows(() => listenAt(`${dir}/none/s`, 1), SystemError, "ENOENT");
  });
});

Deno.test("Listener.close() leaves a socket that took its place", async () => {
  await inTempDir(async (dir) => {
    const path = `${dir}/s`;
    const first = listenAt(path, 1);
    await Deno.remove(path);
    const second = listenAt(path, 1);
    first.close();
    assert((await Deno.lstat(path)).isSocket);
    second.close();
  });
});

Deno.test("listenAt() and connectTo() take a path of 107 bytes and no longer", async () => {
  await inTempDir((dir) => {
    const fits = `${dir}/${"x".repeat(107 - dir.length - 1)}`;
    const listener = listenAt(fits, 1);
    closeFd(connectTo(fits));
    listener.close();
    assertThrows(() => listenAt(`${fits}x`, 1), RangeError, "108 bytes");
    assertThrows(() => listenAt("", 1), RangeError);
    assertEquals(connectTo(`${fits}x`), -ENOENT);
    assertEquals(connectTo(fits), -ENOENT);
  });
});

Deno.test("raiseSignal() never waits, on eventfds and stream sockets", () => {
  const event = createEventFd();
  const full = new BigUint64Array([0xffff_ffff_ffff_fffen]);
  libc().write(event, full, 8);
  assert(raiseSignal(signalOf(event)));
  libc().fcntl(event, 4, 0); // F_SETFL: blocking now, and still full
  const blocking = signalOf(event);
  assert(blocking.blocking);
  assert(raiseSignal(blocking));
  assert(drainEventFd(event));
  assert(raiseSignal(blocking));
  assert(drainEventFd(event));
  closeFd(event);

  const [a, b] = socketPair();
  const signal = signalOf(a);
  assert(signal.socket);
  for (let i = 0; i < 100_000; i++) raiseSignal(signal);
  assert(raiseSignal(signal));
  const target = fixedBytes(9);
  assertEquals(receiveBytes(b, target, 8), 8);
  assertEquals([...target], [1, 0, 0, 0, 0, 0, 0, 0, 0]);
  closeFd(b);
  assert(!raiseSignal(signal));
  closeFd(a);
  assertThrows(() => signalOf(a), SystemError, "EBADF");
});
