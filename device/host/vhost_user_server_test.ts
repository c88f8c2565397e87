import {
  assert,
  assertEquals,
  assertGreater,
  assertStringIncludes,
} from "@std/assert";
import type { GuestMemory } from "../../ring/memory.ts";
import { Diagnostics } from "../diagnostics.ts";
import { type DeviceModel, VirtioDevice } from "../virtio_device.ts";
import {
  VHOST_F_LOG_ALL,
  VHOST_USER_F_PROTOCOL_FEATURES,
  VHOST_USER_GET_FEATURES,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_SET_FEATURES,
  VHOST_USER_SET_MEM_TABLE,
  VHOST_USER_SET_PROTOCOL_FEATURES,
  VHOST_USER_SET_VRING_ADDR,
  VHOST_USER_SET_VRING_BASE,
  VHOST_USER_SET_VRING_CALL,
  VHOST_USER_SET_VRING_ENABLE,
  VHOST_USER_SET_VRING_KICK,
  VHOST_USER_SET_VRING_NUM,
} from "../vhost_user/constants.ts";
import {
  encodeMemoryTable,
  encodeRequest,
  encodeU64,
  encodeVringAddresses,
  encodeVringState,
} from "../vhost_user/message.ts";
import { EAGAIN } from "./errno.ts";
import { EventLoop } from "./event_loop.ts";
import { REPLY_TIMEOUT_MS } from "./fd_ports.ts";
import { fixedBytes, libc } from "./ffi.ts";
import { createMemfd, resizeFile } from "./mmap.ts";
import {
  closeFd,
  connectTo,
  createEventFd,
  drainEventFd,
  FdChannel,
  raiseSignal,
  receiveBytes,
  sendBytes,
  signalOf,
  socketPair,
} from "./socket.ts";
import { VhostUserServer } from "./vhost_user_server.ts";

libc(); // Opened here, because a library opened inside a test counts as a leak.

const MEMORY = 1 << 20;
const VERSION_1_AND_PROTOCOL = (1n << 32n) |
  (1n << BigInt(VHOST_USER_F_PROTOCOL_FEATURES));

/** A device with one queue that only notes what happens to it. */
class FakeModel implements DeviceModel {
  readonly deviceId = 19;
  readonly features = 0n;
  readonly maxQueueSizes: readonly number[] = [256];
  readonly log: string[] = [];
  memory: GuestMemory | null = null;
  configSpace(): Uint8Array {
    return new Uint8Array(8);
  }
  featuresAccepted(): void {}
  queueStarted(index: number): void {
    this.log.push(`start ${index}`);
  }
  queueStopped(index: number): void {
    this.log.push(`stop ${index}`);
  }
  memoryChanging(): void {}
  memoryChanged(memory: GuestMemory): void {
    this.memory = memory;
  }
  queueKicked(index: number): void {
    this.log.push(`kick ${index}`);
  }
  reset(): void {
    this.log.push("reset");
  }
}

type Bench = {
  path: string;
  loop: EventLoop;
  model: FakeModel;
  device: VirtioDevice;
  server: VhostUserServer;
  diagnostics: Diagnostics;
  lines: string[];
  settle(): void;
};

async function withServer(
  body: (bench: Bench) => void | Promise<void>,
): Promise<void> {
  const dir = await Deno.makeTempDir();
  const before = [...Deno.readDirSync("/proc/self/fd")].length;
  const loop = new EventLoop();
  const lines: string[] = [];
  const diagnostics = new Diagnostics((level, text) =>
    lines.push(`${level}: ${text}`)
  );
  const model = new FakeModel();
  const device = new VirtioDevice(model, { diagnostics });
  const path = `${dir}/vhost.sock`;
  const server = new VhostUserServer({
    loop,
    socketPath: path,
    device,
    diagnostics,
    side: 1,
  });
  server.start();
  const settle = (): void => {
    for (let idle = 0; idle < 2;) idle = loop.turn(0) === 0 ? idle + 1 : 0;
  };
  try {
    await body({
      path,
      loop,
      model,
      device,
      server,
      diagnostics,
      lines,
      settle,
    });
  } finally {
    server.stop();
    assertEquals(loop.size, 0);
    loop.close();
    await Deno.remove(dir, { recursive: true });
  }
  assertEquals([...Deno.readDirSync("/proc/self/fd")].length, before);
}

/** A front-end that says what it is told to. */
class Client {
  readonly fd: number;
  readonly #channel = new FdChannel();

  constructor(path: string) {
    this.fd = connectTo(path);
    assert(this.fd >= 0);
  }

  send(
    request: number,
    payload?: Uint8Array,
    fds: readonly number[] = [],
  ): void {
    const message = new Uint8Array(encodeRequest(request, payload));
    const sent = this.#channel.send(this.fd, message, message.length, fds);
    assertEquals(sent, message.length);
  }

  /** What has arrived: a reply's u64, "" or "EOF". */
  reply(): bigint | string {
    const target = fixedBytes(20);
    const n = receiveBytes(this.fd, target, 20);
    if (n === -EAGAIN) return "";
    if (n <= 0) return "EOF";
    return new DataView(target.buffer).getBigUint64(12, true);
  }

  /** Negotiates and starts queue 0 in `memfd`; the descriptors stay the caller's. */
  start(memfd: number, kick: number, call: number): void {
    const region = {
      guestAddress: 0,
      size: MEMORY,
      userAddress: 0x7000_0000,
      mmapOffset: 0,
    };
    const state = (num: number): Uint8Array =>
      encodeVringState({ index: 0, num });
    this.send(VHOST_USER_SET_FEATURES, encodeU64(VERSION_1_AND_PROTOCOL));
    this.send(VHOST_USER_SET_MEM_TABLE, encodeMemoryTable([region]), [memfd]);
    this.send(VHOST_USER_SET_VRING_NUM, state(64));
    this.send(VHOST_USER_SET_VRING_BASE, state(0));
    this.send(
      VHOST_USER_SET_VRING_ADDR,
      encodeVringAddresses({
        index: 0,
        flags: 0,
        descriptor: 0x7000_0000,
        used: 0x7000_2000,
        available: 0x7000_1000,
        log: 0n,
      }),
    );
    this.send(VHOST_USER_SET_VRING_CALL, encodeU64(0), [call]);
    this.send(VHOST_USER_SET_VRING_KICK, encodeU64(0), [kick]);
    this.send(VHOST_USER_SET_VRING_ENABLE, state(1));
  }

  close(): void {
    closeFd(this.fd);
  }
}

Deno.test("VhostUserServer takes messages in pieces and many at a time", async () => {
  await withServer(({ path, loop, settle }) => {
    const client = new Client(path);
    const message = new Uint8Array(encodeRequest(VHOST_USER_GET_FEATURES));
    for (const byte of message) {
      assertEquals(client.reply(), "");
      sendBytes(client.fd, new Uint8Array([byte]), 1);
      loop.turn(0);
      loop.turn(0);
    }
    const bit = (index: number): bigint => 1n << BigInt(index);
    assertEquals(
      client.reply(),
      bit(VHOST_F_LOG_ALL) | bit(28) | bit(29) |
        bit(VHOST_USER_F_PROTOCOL_FEATURES) | bit(32) |
        bit(34),
    );
    for (let i = 0; i < 100; i++) client.send(VHOST_USER_GET_FEATURES);
    settle();
    for (let i = 0; i < 100; i++) assertEquals(typeof client.reply(), "bigint");
    assertEquals(client.reply(), "");
    client.close();
    settle();
  });
});

Deno.test("VhostUserServer carries kicks and calls between a front-end and its device", async () => {
  await withServer(({ path, model, device, server, settle }) => {
    const client = new Client(path);
    const memfd = createMemfd(MEMORY);
    const kick = createEventFd();
    const call = createEventFd();
    client.start(memfd, kick, call);
    settle();
    assertEquals(model.log[0], "start 0");
    assertEquals(model.memory!.regions.length, 1);
    assertGreater(model.memory!.regions[0]!.hostAddress, 0);

    model.log.length = 0;
    drainEventFd(call);
    for (let i = 0; i < 3; i++) {
      raiseSignal(signalOf(kick));
      settle();
    }
    assertEquals(model.log, ["kick 0", "kick 0", "kick 0"]);
    device.interrupt(0);
    assert(drainEventFd(call));
    assertGreater(server.kicks, 2);
    assertGreater(server.calls, 0);

    // A kick descriptor that was taken back kicks nobody, though it is still open here.
    const other = createEventFd();
    client.send(VHOST_USER_SET_VRING_KICK, encodeU64(0), [other]);
    settle();
    model.log.length = 0;
    raiseSignal(signalOf(kick));
    settle();
    assertEquals(model.log, []);
    raiseSignal(signalOf(other));
    settle();
    assertEquals(model.log, ["kick 0"]);
    client.close();
    settle();
    for (const fd of [memfd, kick, call, other]) closeFd(fd);
  });
});

Deno.test("VhostUserServer carries kicks and calls over stream sockets, full or closed", async () => {
  await withServer(({ path, model, device, settle, loop }) => {
    const client = new Client(path);
    const memfd = createMemfd(MEMORY);
    const [kick, kickFar] = socketPair();
    const [call, callFar] = socketPair();
    client.start(memfd, kickFar, callFar);
    settle();
    model.log.length = 0;
    raiseSignal(signalOf(kick));
    settle();
    raiseSignal(signalOf(kick));
    settle();
    assertEquals(model.log, ["kick 0", "kick 0"]);
    for (let i = 0; i < 100_000; i++) device.interrupt(0); // EAGAIN
    const target = fixedBytes(8);
    while (receiveBytes(call, target, 8) > 0);
    device.interrupt(0);
    assertEquals(receiveBytes(call, target, 8), 8);
    closeFd(callFar);
    closeFd(call);
    device.interrupt(0); // EPIPE, and no SIGPIPE
    closeFd(kickFar);
    closeFd(kick);
    settle();
    assertEquals(loop.turn(0), 0);
    client.close();
    settle();
    closeFd(memfd);
  });
});

Deno.test("VhostUserServer resets the device when the front-end is gone, and serves the next", async () => {
  await withServer(({ path, model, device, server, settle, lines }) => {
    for (let round = 0; round < 3; round++) {
      const client = new Client(path);
      const memfd = createMemfd(MEMORY);
      const [kick, call] = [createEventFd(), createEventFd()];
      client.start(memfd, kick, call);
      settle();
      assert(server.connected);
      assert(device.queueRunning(0));
      const bytes = model.memory!.regions[0]!.bytes;
      client.close();
      settle();
      assert(!server.connected);
      assert(!device.queueRunning(0));
      assertEquals(device.status, 0);
      assertEquals(bytes.length, 0); // detached before it was unmapped
      assertEquals(model.memory!.regions.length, 0);
      for (const fd of [memfd, kick, call]) closeFd(fd);
    }
    assertStringIncludes(lines.at(-1)!, "listening again");
  });
});

Deno.test("VhostUserServer lets a second front-end wait until the first is gone", async () => {
  await withServer(({ path, settle, lines, loop, diagnostics }) => {
    const first = new Client(path);
    settle();
    const second = new Client(path);
    second.send(VHOST_USER_GET_FEATURES);
    settle();
    assertEquals(second.reply(), "");
    assertStringIncludes(lines.join("\n"), "another front-end has connected");
    assertEquals(loop.turn(0), 0);
    first.close();
    settle();
    assertEquals(typeof second.reply(), "bigint");
    assertEquals(diagnostics.counters.get("front_ends"), 2);
    second.close();
    settle();
  });
});

Deno.test("VhostUserServer ends a session that speaks nonsense, and serves the next", async () => {
  await withServer(({ path, settle, diagnostics, model }) => {
    const junk = new Client(path);
    const fd = createEventFd();
    const bytes = new Uint8Array(100).fill(0xff);
    new FdChannel().send(junk.fd, bytes, bytes.length, [fd, fd]);
    settle();
    assertEquals(junk.reply(), "EOF");
    assertEquals(diagnostics.counters.get("vhost_user_bad_version"), 1);
    junk.close();

    const many = new Client(path);
    const message = new Uint8Array(encodeRequest(VHOST_USER_GET_FEATURES));
    const fds = new Array(32).fill(fd);
    new FdChannel().send(many.fd, message, 7, fds);
    new FdChannel().send(many.fd, message.subarray(7), 5, fds);
    settle();
    assertEquals(many.reply(), "EOF");
    many.close();

    const half = new Client(path);
    sendBytes(half.fd, message, 7);
    settle();
    half.close();
    settle();

    const good = new Client(path);
    good.send(VHOST_USER_GET_FEATURES);
    settle();
    assertEquals(typeof good.reply(), "bigint");
    good.close();
    settle();
    assert(model.log.includes("reset"));
    closeFd(fd);
  });
});

Deno.test("VhostUserServer refuses memory that is shorter than it is said to be", async () => {
  await withServer(({ path, settle, diagnostics, device }) => {
    const client = new Client(path);
    client.send(
      VHOST_USER_SET_PROTOCOL_FEATURES,
      encodeU64(1n << BigInt(VHOST_USER_PROTOCOL_F_REPLY_ACK)),
    );
    const memfd = createMemfd(MEMORY - 1);
    const [kick, call] = [createEventFd(), createEventFd()];
    client.start(memfd, kick, call);
    settle();
    assertEquals(diagnostics.counters.get("vhost_user_map_failed"), 1);
    assert(!device.queueRunning(0));
    client.close();
    settle();
    for (const fd of [memfd, kick, call]) closeFd(fd);
  });
});

Deno.test("VhostUserServer refuses a kick descriptor that cannot be watched", async () => {
  await withServer(({ path, settle, diagnostics, device, server }) => {
    const client = new Client(path);
    const memfd = createMemfd(MEMORY);
    const call = createEventFd();
    client.start(memfd, memfd, call);
    settle();
    assertEquals(diagnostics.counters.get("vhost_user_bad_value"), 1);
    assert(server.connected);
    assertEquals(device.status & 64, 0);
    client.close();
    settle();
    for (const fd of [memfd, call]) closeFd(fd);
  });
});

Deno.test("VhostUserServer makes it impossible to cut off sealable memory", async () => {
  await withServer(({ path, settle, server, model }) => {
    const client = new Client(path);
    const memfd = createMemfd(MEMORY);
    const [kick, call] = [createEventFd(), createEventFd()];
    client.start(memfd, kick, call);
    settle();
    assertEquals(libc().ftruncate(memfd, 0n), -1);
    model.memory!.regions[0]!.bytes[MEMORY - 1] = 1; // would be SIGBUS
    server.checkMemory();
    assert(server.connected);
    client.close();
    settle();
    for (const fd of [memfd, kick, call]) closeFd(fd);
  });
});

Deno.test("VhostUserServer ends the session when memory without a seal is cut off", async () => {
  await withServer(({ path, settle, server, loop, lines, device }) => {
    loop.setWork({
      failed: (error) => {
        throw error;
      },
      process: () => {
        server.checkMemory();
        return false;
      },
      nextDeadline: () => Infinity,
      expire: () => {},
    });
    const client = new Client(path);
    const memfd = createMemfd(MEMORY, { sealable: false });
    const [kick, call] = [createEventFd(), createEventFd()];
    client.start(memfd, kick, call);
    settle();
    assert(device.queueRunning(0));
    resizeFile(memfd, 4096);
    raiseSignal(signalOf(kick));
    settle();
    assert(!server.connected);
    assert(!device.queueRunning(0));
    assertStringIncludes(lines.join("\n"), "error: the front-end has cut off");
    assertEquals(client.reply(), "EOF");
    client.close();
    for (const fd of [memfd, kick, call]) closeFd(fd);
  });
});

Deno.test("VhostUserServer gives a front-end up that does not read its replies", async () => {
  await withServer(({ path, settle, server, loop }) => {
    const client = new Client(path);
    const message = new Uint8Array(encodeRequest(VHOST_USER_GET_FEATURES));
    const start = performance.now();
    while (!server.connected) loop.turn(0);
    while (server.connected) {
      sendBytes(client.fd, message, message.length);
      loop.turn(0);
      assert(performance.now() - start < REPLY_TIMEOUT_MS * 20);
    }
    assertGreater(performance.now() - start, REPLY_TIMEOUT_MS / 2);
    client.close();
    settle();
  });
});
