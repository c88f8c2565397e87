import {
  assert,
  assertEquals,
  assertGreater,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import type { GuestConnection } from "../../props/guest/guest_connection.ts";
import {
  type FrontEndOptions,
  VhostUserFrontEnd,
} from "../../props/guest/vhost_user_front_end.ts";
import { type DeviceOptions, startDevice } from "./device.ts";
import { libc } from "./ffi.ts";
import { closeFd, listenAt } from "./socket.ts";

libc(); // Opened here, because a library opened inside a test counts as a leak.

type Bench = { dir: string; socketPath: string; udsPath: string };

/** Sockets and shared memory; the thread of a Worker has a socket too, until it ends. */
function ownDescriptors(): number {
  let count = 0;
  for (const { name } of Deno.readDirSync("/proc/self/fd")) {
    try {
      const target = Deno.readLinkSync(`/proc/self/fd/${name}`);
      if (/^socket:|^\/memfd:ringside/.test(target)) count++;
    } catch {
      // Closed meanwhile.
    }
  }
  return count;
}

async function inTempDir(
  body: (bench: Bench) => Promise<void>,
): Promise<void> {
  const dir = await Deno.makeTempDir();
  const before = ownDescriptors();
  try {
    await body({
      dir,
      socketPath: `${dir}/vhost.sock`,
      udsPath: `${dir}/vsock`,
    });
    const end = performance.now() + 5000;
    while (ownDescriptors() > before && performance.now() < end) {
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    assertEquals(ownDescriptors(), before);
    const left = [...Deno.readDirSync(dir)].map((entry) => entry.name);
    assertEquals(left.filter((name) => !name.startsWith("keep")), []);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

/** Echoes what comes to host port `port`; ends with `close()`. */
function echoServer(
  udsPath: string,
  port: number,
): { close(): Promise<void> } {
  const listener = Deno.listen({
    transport: "unix",
    path: `${udsPath}_${port}`,
  });
  const served: Promise<void>[] = [];
  const loop = (async () => {
    for await (const connection of listener) {
      served.push(
        connection.readable.pipeTo(connection.writable).catch(() => {}),
      );
    }
  })();
  return {
    close: async () => {
      listener.close();
      await loop;
      await Promise.all(served);
    },
  };
}

async function readLine(connection: Deno.Conn): Promise<string> {
  const one = new Uint8Array(1);
  let line = "";
  while (!line.endsWith("\n")) {
    if (await connection.read(one) === null) return `${line}EOF`;
    line += String.fromCharCode(one[0]!);
  }
  return line;
}

function pattern(length: number): Uint8Array {
  return new Uint8Array(length).map((_, i) => (i * 31 + (i >> 9)) & 0xff);
}

/** Sends `bytes` on a guest's connection and reads as many back. */
async function exchange(
  frontEnd: VhostUserFrontEnd,
  connection: GuestConnection,
  bytes: Uint8Array,
): Promise<Uint8Array> {
  const got = new Uint8Array(bytes.length);
  let sent = 0;
  let received = 0;
  await frontEnd.until(() => {
    sent += connection.send(bytes.subarray(sent));
    received += connection.read(got.subarray(received));
    return received === bytes.length || connection.state === "closed";
  }, 20_000);
  return got.subarray(0, received);
}

for (const ring of ["split", "packed"] as const) {
  Deno.test(`startDevice() carries a ${ring} guest's connections both ways`, async () => {
    await inTempDir(async ({ socketPath, udsPath }) => {
      const device = await startDevice({ socketPath, udsPath, guestCid: 42 });
      const echo = echoServer(udsPath, 1234);
      const frontEnd = new VhostUserFrontEnd({ socketPath, ring });
      assertEquals(frontEnd.driver.guestCid, 42);

      const bytes = pattern(1 << 20);
      const out = frontEnd.driver.connect(1234);
      await frontEnd.until(() => out.state === "connected");
      assertEquals(await exchange(frontEnd, out, bytes), bytes);

      const listener = frontEnd.driver.listen(77);
      const program = await Deno.connect({ transport: "unix", path: udsPath });
      await program.write(new TextEncoder().encode("CONNECT 77\nhello"));
      let inward: GuestConnection | null = null;
      await frontEnd.until(() => (inward = listener.accept()) !== null);
      const line = readLine(program);
      let text = "";
      await frontEnd.until(() => {
        const target = new Uint8Array(100);
        text += new TextDecoder().decode(
          target.subarray(0, inward!.read(target)),
        );
        return text.length >= 5;
      });
      assertEquals(text, "hello");
      assertEquals(await line, "OK 1073741824\n");

      const nobody = frontEnd.driver.connect(9);
      await frontEnd.until(() => nobody.state === "closed");
      assertEquals(nobody.closeReason, "refused");

      const metrics = await device.metrics();
      assertEquals(metrics.connections, 2);
      assertEquals(metrics.host_streams, 2);
      assertEquals(metrics.front_end_connected, 1);
      assertGreater(metrics.kicks!, 0);
      assertGreater(metrics.calls!, 0);

      out.close();
      await frontEnd.until(() => out.state === "closed");
      frontEnd.close();
      assertEquals(await program.read(new Uint8Array(1)), null);
      program.close();
      await echo.close();
      await device.stop();
    });
  });
}

Deno.test("startDevice() joins several guests, a split and a packed one, and keeps each one's host programs apart", async () => {
  await inTempDir(async ({ dir, socketPath, udsPath }) => {
    const other = {
      socketPath: `${dir}/other.sock`,
      udsPath: `${dir}/other`,
      guestCid: 43,
    };
    const device = await startDevice({
      socketPath,
      udsPath,
      guestCid: 42,
      moreGuests: [other],
    });
    const a = new VhostUserFrontEnd({ socketPath, ring: "split" });
    const b = new VhostUserFrontEnd({
      socketPath: other.socketPath,
      ring: "packed",
    });
    assertEquals([a.driver.guestCid, b.driver.guestCid], [42, 43]);
    const both = async (condition: () => boolean): Promise<void> => {
      const end = performance.now() + 30_000;
      while (!condition()) {
        assert(performance.now() < end, "it stands still");
        for (const frontEnd of [a, b]) frontEnd.wait(1);
        // For the host programs of this thread.
        await new Promise((resolve) => setTimeout(resolve, 0));
      }
    };
    const listener = b.driver.listen(7);
    const one = a.driver.connect(7, { cid: 43 });
    let accepted: GuestConnection | null = null;
    await both(() => {
      accepted ??= listener.accept();
      return accepted !== null && one.state === "connected";
    });
    const end: GuestConnection = accepted!;
    assertEquals(end.peerCid, 42);
    const bytes = pattern(2 << 20);
    const got = [new Uint8Array(bytes.length), new Uint8Array(bytes.length)];
    const sent = [0, 0];
    const received = [0, 0];
    await both(() => {
      for (const [i, connection] of [one, end].entries()) {
        sent[i]! += connection.send(bytes.subarray(sent[i]));
        received[i]! += connection.read(got[i]!.subarray(received[i]));
      }
      return received.every((count) => count === bytes.length);
    });
    assertEquals(got, [bytes, bytes]);

    // Host programs meet the guest whose path they use.
    const echo = echoServer(other.udsPath, 9);
    const wrong = a.driver.connect(9);
    const right = b.driver.connect(9);
    await both(() => wrong.state === "closed" && right.state === "connected");
    assertEquals(wrong.closeReason, "refused");
    assertEquals((await device.metrics()).front_end_connected, 2);

    // A guest that is gone resets what it had with the other.
    b.close();
    await a.until(() => one.state === "closed", 20_000);
    assertEquals(one.closeReason, "reset");
    const gone = a.driver.connect(7, { cid: 43 });
    await a.until(() => gone.state === "closed", 20_000);
    a.close();
    await echo.close();
    await device.stop();
  });
});

Deno.test("startDevice() refuses guests that share a CID or a path", async () => {
  await inTempDir(async ({ dir, socketPath, udsPath }) => {
    const guest = { socketPath, udsPath, guestCid: 5 };
    const more = { socketPath: `${dir}/b`, udsPath: `${dir}/c`, guestCid: 6 };
    const refused = async (other: typeof more, text: string): Promise<void> => {
      const start = startDevice({ ...guest, moreGuests: [other] });
      await assertRejects(() => start, TypeError, text);
    };
    await refused({ ...more, guestCid: 5 }, "of two guests");
    await refused({ ...more, socketPath: udsPath }, "two sockets");
    await refused({ ...more, udsPath: more.socketPath }, "two sockets");
    // What is in use is found by the Worker, and nothing is left behind.
    await Deno.writeTextFile(`${dir}/keep`, "");
    await refused({ ...more, udsPath: `${dir}/keep` }, "no socket");
  });
});

Deno.test("startDevice() listens with sockets of its own user, and stop() removes them", async () => {
  await inTempDir(async ({ socketPath, udsPath }) => {
    const device = await startDevice({ socketPath, udsPath });
    for (const path of [socketPath, udsPath]) {
      const { isSocket, mode } = await Deno.lstat(path);
      assert(isSocket);
      assertEquals(mode! & 0o777, 0o600);
    }
    assertEquals((await device.metrics()).front_end_connected, 0);
    await Promise.all([device.stop(), device.stop()]);
    await device.closed;
    assertEquals(await device.metrics(), {});
    await device.stop();
  });
});

Deno.test("RunningDevice.stop() tells the guest by RST and host programs by end of file", async () => {
  await inTempDir(async ({ socketPath, udsPath }) => {
    const device = await startDevice({ socketPath, udsPath });
    const listener = Deno.listen({ transport: "unix", path: `${udsPath}_5` });
    const frontEnd = new VhostUserFrontEnd({ socketPath });
    const connection = frontEnd.driver.connect(5);
    await frontEnd.until(() => connection.state === "connected");
    const program = await listener.accept();
    const waiting = await Deno.connect({ transport: "unix", path: udsPath });
    const stopped = device.stop();
    await frontEnd.until(() => connection.state === "closed");
    assertEquals(connection.closeReason, "reset");
    await stopped;
    assertEquals(await program.read(new Uint8Array(1)), null);
    assertEquals(await waiting.read(new Uint8Array(1)), null);
    program.close();
    waiting.close();
    listener.close();
    frontEnd.close();
  });
});

Deno.test("startDevice() outlives its guests, with its connections ended each time", async () => {
  await inTempDir(async ({ socketPath, udsPath }) => {
    const lines: string[] = [];
    const device = await startDevice({
      socketPath,
      udsPath,
      onLog: (level, text) => lines.push(`${level}: ${text}`),
    });
    const listener = Deno.listen({ transport: "unix", path: `${udsPath}_5` });
    const rings: FrontEndOptions["ring"][] = ["split", "packed", "split"];
    for (const ring of rings) {
      const frontEnd = new VhostUserFrontEnd({ socketPath, ring });
      const connection = frontEnd.driver.connect(5);
      await frontEnd.until(() => connection.state === "connected");
      const program = await listener.accept();
      frontEnd.close();
      assertEquals(await program.read(new Uint8Array(1)), null);
      program.close();
      // Without a guest, host programs are refused.
      const early = await Deno.connect({ transport: "unix", path: udsPath });
      await early.write(new TextEncoder().encode("CONNECT 5\n"));
      assertEquals(await readLine(early), "EOF");
      early.close();
    }
    assertEquals((await device.metrics()).front_ends, 3);
    assertStringIncludes(lines.join("\n"), "listening again");
    await device.stop();
    listener.close();
  });
});

Deno.test("startDevice() runs several devices in one process", async () => {
  await inTempDir(async ({ dir }) => {
    const names = ["a", "b", "c"];
    const devices = await Promise.all(names.map((name, i) =>
      startDevice({
        socketPath: `${dir}/${name}.sock`,
        udsPath: `${dir}/${name}`,
        guestCid: 10 + i,
      })
    ));
    for (const [i, name] of names.entries()) {
      const frontEnd = new VhostUserFrontEnd({
        socketPath: `${dir}/${name}.sock`,
      });
      assertEquals(frontEnd.driver.guestCid, 10 + i);
      frontEnd.close();
    }
    await Promise.all(devices.map((device) => device.stop()));
  });
});

Deno.test("startDevice() held to split refuses a front-end that wants packed, in words", async () => {
  await inTempDir(async ({ socketPath, udsPath }) => {
    const lines: string[] = [];
    const device = await startDevice({
      socketPath,
      udsPath,
      ring: "split",
      onLog: (_, text) => lines.push(text),
    });
    let message = "";
    try {
      new VhostUserFrontEnd({ socketPath, ring: "packed" }).close();
    } catch (error) {
      message = (error as Error).message;
    }
    assert(message !== "");
    new VhostUserFrontEnd({ socketPath, ring: "split" }).close();
    await device.stop();
    assertStringIncludes(lines.join("\n"), "VIRTIO_F_RING_PACKED");
  });
});

Deno.test("startDevice() rejects options that cannot be right", async () => {
  await inTempDir(async ({ socketPath, udsPath }) => {
    const bad: [Partial<DeviceOptions>, new () => Error, string][] = [
      [{ guestCid: 0 }, RangeError, "guestCid"],
      [{ guestCid: 1 }, RangeError, "guestCid"],
      [{ guestCid: 2 }, RangeError, "guestCid"],
      [{ guestCid: 0xffff_ffff }, RangeError, "guestCid"],
      [{ guestCid: 2 ** 32 + 3 }, RangeError, "guestCid"],
      [{ guestCid: 3.5 }, RangeError, "guestCid"],
      [{ guestCid: NaN }, RangeError, "guestCid"],
      [{ socketPath: "" }, RangeError, "socketPath"],
      [{ socketPath: `/${"x".repeat(107)}` }, RangeError, "108"],
      [{ udsPath: `/${"é".repeat(54)}` }, RangeError, "109"],
      [{ udsPath: "/a\0b" }, RangeError, "udsPath"],
      [{ udsPath: socketPath }, TypeError, "the same"],
      [{ udsPath: `${udsPath}/.././vhost.sock` }, TypeError, "the same"],
      [{ ring: "both" as "auto" }, RangeError, "ring"],
      [{ logLevel: "all" as "info" }, RangeError, "logLevel"],
      [{ allowedHostPorts: [2 ** 32] }, RangeError, "port"],
      [{ allowedGuestPorts: [-1] }, RangeError, "port"],
      [{ pollUs: -1 }, RangeError, "pollUs"],
      [{ pollUs: 1001 }, RangeError, "pollUs"],
      [{ pollUs: NaN }, RangeError, "pollUs"],
    ];
    for (const [options, kind, text] of bad) {
      await assertRejects(
        () => startDevice({ socketPath, udsPath, ...options }),
        kind,
        text,
      );
    }
  });
});

Deno.test("startDevice() replaces stale sockets, and nothing else", async () => {
  await inTempDir(async ({ dir, socketPath, udsPath }) => {
    closeFd(listenAt(socketPath, 1).fd); // as a killed process leaves them
    closeFd(listenAt(udsPath, 1).fd);
    const device = await startDevice({ socketPath, udsPath });
    const free = `${dir}/free`;
    for (
      const paths of [
        { socketPath, udsPath: free },
        { socketPath: free, udsPath },
      ]
    ) {
      await assertRejects(() => startDevice(paths), TypeError, "live process");
    }
    await Deno.writeTextFile(`${dir}/keep`, "data");
    await assertRejects(
      () => startDevice({ socketPath: free, udsPath: `${dir}/keep` }),
      TypeError,
      "no socket",
    );
    assertEquals(await Deno.readTextFile(`${dir}/keep`), "data");
    await assertRejects(
      () => startDevice({ socketPath: `${dir}/none/s`, udsPath: free }),
      Error,
      "ENOENT",
    );
    await device.stop();
  });
});

Deno.test("startDevice() warns of a path that has no room for every port", async () => {
  await inTempDir(async ({ dir, socketPath }) => {
    for (const [length, warned] of [[96, false], [97, true]] as const) {
      const udsPath = `${dir}/${"u".repeat(length - dir.length - 1)}`;
      const lines: string[] = [];
      const onLog = (_: string, text: string): number => lines.push(text);
      const device = await startDevice({ socketPath, udsPath, onLog });
      await device.metrics();
      assertEquals(lines.join("").includes("high ports"), warned);
      await device.stop();
    }
  });
});
