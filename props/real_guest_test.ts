/**
 * Real Linux kernels, unmodified, on the device: user-mode-linux and QEMU, split and packed.
 *
 * One boot serves all scenarios of a machine and a ring. AF_VSOCK is opened in the guests only;
 * host programs use Unix sockets.
 */
import { assert, assertEquals, assertLess } from "@std/assert";
import { bootGuest, type Guest } from "./guest/vm/mod.ts";
import { skippedWithout } from "./guest/vm/skip.ts";
import { GuestSetup } from "./guest_setup.ts";
import {
  type Digest,
  randomBytes,
  readAll,
  sha256,
  within,
  write,
} from "./streams.ts";

const MIB = 1024 * 1024;
const BULK_BYTES = 64 * MIB;

/** For guest and host alike: sends messages one way, and compares each that comes the other way. */
const SEQPACKET_PROGRAM = `
import hashlib, json, random, socket, sys, threading

LENGTHS = [1, 2, 43, 44, 45, 3731, 3732, 3733, 4096, 65535, 65536, 65537, 131072, 204800]

def messages(seed):
    source = random.Random(seed)
    small = [source.randrange(1, 20000) for _ in range(100)]
    for length in LENGTHS + small + LENGTHS[::-1]:
        yield source.randbytes(length)

def exchange(stream, mine, theirs):
    def send():
        for message in messages(mine):
            stream.send(message)
        stream.shutdown(socket.SHUT_WR)
    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    digest = hashlib.sha256()
    count = 0
    for expected in messages(theirs):
        got = stream.recv(1 << 20)
        if got != expected:
            return {"error": "message %d: %d bytes instead of %d" % (count, len(got), len(expected))}
        digest.update(got)
        count += 1
    rest = stream.recv(1)
    sender.join(30)
    stream.close()
    return {"count": count, "sha256": digest.hexdigest(), "rest": len(rest)}
`;

/** What both ends of a seqpacket connection say. */
type Exchanged = { count: number; sha256: string; rest: number };

/** Runs a host program; what it prints is a line of JSON. */
async function hostPython<T>(code: string, ...args: string[]): Promise<T> {
  const { success, stdout, stderr } = await new Deno.Command("python3", {
    args: ["-c", code, ...args],
    stdout: "piped",
    stderr: "piped",
  }).output();
  assert(success, new TextDecoder().decode(stderr));
  return JSON.parse(new TextDecoder().decode(stdout)) as T;
}

/** What a scenario says is printed. */
type Scenario = (setup: GuestSetup) => Promise<string | void>;

const SCENARIOS: Record<string, Scenario> = {
  "64 MiB from guest to host arrive as they were sent": async (setup) => {
    const port = setup.port();
    using listener = setup.listen(port);
    const sending = setup.guest.agent<Digest>({
      op: "send",
      port,
      bytes: BULK_BYTES,
      half_close: false,
    });
    using conn = await listener.accept();
    const started = performance.now();
    const received = await readAll(conn);
    const seconds = (performance.now() - started) / 1000;
    const { bytes, sha256 } = await sending;
    assertEquals(received, { bytes, sha256 });
    assertEquals(bytes, BULK_BYTES);
    return `${(bytes / 1e6 / seconds).toFixed(0)} MB/s`;
  },

  "64 MiB from host to guest arrive as they were sent": async (setup) => {
    const port = setup.port();
    const receiving = setup.guest.start({ op: "recv", listen: port });
    await receiving.event("listening");
    const data = randomBytes(BULK_BYTES);
    const conn = await setup.connect(port);
    const started = performance.now();
    await write(conn, data);
    conn.close();
    const received = await receiving.result as Digest;
    const seconds = (performance.now() - started) / 1000;
    assertEquals([received.bytes, received.sha256], [
      data.length,
      await sha256(data),
    ]);
    return `${(data.length / 1e6 / seconds).toFixed(0)} MB/s`;
  },

  "50 connections of the guest echo 1 MiB each at the same time": async (
    setup,
  ) => {
    const port = setup.port();
    using listener = setup.listen(port);
    const serving: Promise<void>[] = [];
    const accepting = (async () => {
      for (let i = 0; i < 50; i++) {
        const conn = await listener.accept();
        serving.push(conn.readable.pipeTo(conn.writable));
      }
    })();
    const { good, bad } = await setup.guest.agent<
      { good: number; bad: string[] }
    >({
      op: "echo_clients",
      port,
      count: 50,
      bytes: MIB,
    }, { timeoutMs: 120_000 });
    assertEquals([good, bad], [50, []]);
    await accepting;
    await Promise.all(serving);
  },

  "50 connections of the host echo 1 MiB each at the same time": async (
    setup,
  ) => {
    const port = setup.port();
    const serving = setup.guest.start({ op: "echo_server", port }, {
      timeoutMs: 120_000,
    });
    await serving.event("listening");
    const data = randomBytes(MIB);
    const digest = await sha256(data);
    const conns = await Promise.all(
      Array.from({ length: 50 }, () => setup.connect(port)),
    );
    await Promise.all(conns.map(async (conn) => {
      const reading = readAll(conn);
      await write(conn, data);
      await conn.closeWrite();
      assertEquals(await reading, { bytes: MIB, sha256: digest });
      conn.close();
    }));
    await setup.guest.agent({ op: "tell", to: serving.id, word: "stop" });
    assertEquals(await serving.result, {
      connections: 50,
      bytes: 50 * MIB,
      failures: [],
    });
  },

  "a connection to nobody is refused at once": async (setup) => {
    const dead = setup.port();
    // A socket file that nobody listens on any more.
    const leftover = `${setup.folder}/vm_${dead}`;
    const listener = setup.listen(dead);
    await Deno.rename(leftover, `${leftover}.kept`);
    listener.close();
    await Deno.rename(`${leftover}.kept`, leftover);
    const times: string[] = [];
    for (
      const [what, where] of Object.entries({
        "no listener": { port: setup.port() },
        "dead socket file": { port: dead },
        "unknown CID": { port: 1, cid: 77 },
      })
    ) {
      const tries: number[] = [];
      for (let i = 0; i < 3; i++) {
        const answer = await setup.guest.agent<{ errno: string; ms: number }>(
          {
            op: "connect_time",
            ...where,
          },
        );
        // A CID that is not the host's may also be refused by the guest's own kernel.
        const names = what === "unknown CID"
          ? ["ECONNRESET", "ENODEV"]
          : ["ECONNRESET"];
        assert(names.includes(answer.errno), `${what}: ${answer.errno}`);
        tries.push(answer.ms);
      }
      tries.sort((a, b) => a - b);
      assertLess(tries[1]!, 200, what);
      times.push(`${what} ${tries[1]!.toFixed(1)} ms`);
    }
    await Deno.remove(leftover);
    const refused = await setup.connect(setup.port()).then(
      (conn) => conn.close(),
      String,
    );
    assert(
      refused?.includes("the guest refused"),
      "a port of the guest that nobody listens on",
    );
    return times.join(", ");
  },

  "the guest's half-close delivers what was sent before it, and the answer":
    async (setup) => {
      const answer = randomBytes(300_000);
      const answered = await sha256(answer);
      // The guest connects.
      const port = setup.port();
      using listener = setup.listen(port);
      const calling = setup.guest.agent<Digest & { received: Digest }>({
        op: "send",
        port,
        bytes: 3 * MIB,
      });
      using first = await listener.accept();
      const one = await readAll(first);
      await write(first, answer);
      first.close();
      const called = await calling;
      assertEquals(one, { bytes: called.bytes, sha256: called.sha256 });
      assertEquals([called.received.bytes, called.received.sha256], [
        answer.length,
        answered,
      ]);
      // The host connects.
      const back = setup.port();
      const listening = setup.guest.start({
        op: "send",
        listen: back,
        bytes: 3 * MIB,
      });
      await listening.event("listening");
      using second = await setup.connect(back);
      const two = await readAll(second);
      await write(second, answer);
      second.close();
      const listened = await listening.result as Digest & {
        received: Digest;
      };
      assertEquals(two, { bytes: listened.bytes, sha256: listened.sha256 });
      assertEquals([listened.received.bytes, listened.received.sha256], [
        answer.length,
        answered,
      ]);
    },

  "the host's half-close delivers what was sent before it, and the answer":
    async (setup) => {
      const data = randomBytes(3 * MIB);
      const digest = await sha256(data);
      type Answer = Digest & { answered: Digest };
      // The guest connects.
      const port = setup.port();
      using listener = setup.listen(port);
      const calling = setup.guest.agent<Answer>({
        op: "recv",
        port,
        answer_bytes: 300_000,
      });
      using first = await listener.accept();
      await write(first, data);
      await first.closeWrite();
      const one = await readAll(first);
      const called = await calling;
      assertEquals([called.bytes, called.sha256], [data.length, digest]);
      assertEquals(one, called.answered);
      // The host connects.
      const back = setup.port();
      const listening = setup.guest.start({
        op: "recv",
        listen: back,
        answer_bytes: 300_000,
      });
      await listening.event("listening");
      using second = await setup.connect(back);
      await write(second, data);
      await second.closeWrite();
      const two = await readAll(second);
      const listened = await listening.result as Answer;
      assertEquals([listened.bytes, listened.sha256], [data.length, digest]);
      assertEquals(two, listened.answered);
    },

  "a host program that dies in mid-stream ends the guest's stream": async (
    setup,
  ) => {
    const port = setup.port();
    // Takes 1 MiB, says so, and is killed while the guest goes on sending.
    const program = new Deno.Command("python3", {
      args: [
        "-c",
        `
import socket, sys, time
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("listening", flush=True)
stream, _ = listener.accept()
taken = 0
while taken < 1 << 20:
    taken += len(stream.recv(65536))
print("taken", flush=True)
time.sleep(60)
`,
        `${setup.folder}/vm_${port}`,
      ],
      stdout: "piped",
    }).spawn();
    const words = program.stdout.pipeThrough(new TextDecoderStream())
      .getReader();
    const line = async (): Promise<string> => {
      let all = "";
      while (!all.endsWith("\n")) {
        const { value, done } = await words.read();
        if (done) break;
        all += value;
      }
      return all;
    };
    const heard = () => within(10_000, "the host program", line());
    try {
      assertEquals(await heard(), "listening\n");
      const sending = setup.guest.python<{ error: string; ms: number }>(
        `
stream = connect(args["port"])
emit("connected")
block = b"x" * 65536
failed = None
try:
    while True:
        stream.sendall(block)
except OSError as error:
    failed = errno.errorcode[error.errno]
result = {"error": failed}
`,
        { port },
      );
      assertEquals(await heard(), "taken\n");
      program.kill("SIGKILL");
      const { error } = await within(
        3000,
        "the guest's end of stream",
        sending,
      );
      assert(["EPIPE", "ECONNRESET", "ENOTCONN"].includes(error), error);
    } finally {
      await words.cancel();
      try {
        program.kill("SIGKILL");
      } catch {
        // It was killed above.
      }
      await program.status;
    }
    await setup.guest.agent({ op: "ping" });
  },

  "a guest program that dies in mid-stream ends the host's stream": async (
    setup,
  ) => {
    const port = setup.port();
    using listener = setup.listen(port);
    const dying = setup.guest.agent<{ bytes: number; signal: number }>({
      op: "die_midstream",
      port,
      bytes: MIB,
    });
    using conn = await listener.accept();
    const received = await readAll(conn);
    const { bytes, signal } = await dying;
    assertEquals(signal, 9);
    assert(
      received.bytes >= bytes,
      `${received.bytes} of ${bytes} bytes came`,
    );
  },

  "a slow reader in the guest does not stall another connection": async (
    setup,
  ) => {
    const port = setup.port();
    const slow = setup.guest.start({ op: "slow_reader", listen: port });
    await slow.event("listening");
    using conn = await setup.connect(port);
    const data = randomBytes(4 * MIB);
    const writing = write(conn, data).then(() => conn.closeWrite());
    await slow.event("waiting");
    await SCENARIOS[
      "the host's half-close delivers what was sent before it, and the answer"
    ]!(
      setup,
    );
    await setup.guest.agent({ op: "tell", to: slow.id, word: "resume" });
    const received = await slow.result as Digest;
    await writing;
    assertEquals([received.bytes, received.sha256], [
      data.length,
      await sha256(data),
    ]);
  },

  "a slow reader on the host does not stall another connection": async (
    setup,
  ) => {
    const port = setup.port();
    using listener = setup.listen(port);
    const sending = setup.guest.agent<Digest>({
      op: "send",
      port,
      bytes: 4 * MIB,
      half_close: false,
    });
    using conn = await listener.accept();
    await SCENARIOS[
      "the guest's half-close delivers what was sent before it, and the answer"
    ]!(
      setup,
    );
    const received = await readAll(conn);
    const { bytes, sha256 } = await sending;
    assertEquals(received, { bytes, sha256 });
  },

  "seqpackets of 1 B to 200 KiB keep their boundaries both ways, connected by either end":
    async (setup) => {
      const whole = (one: Exchanged, other: Exchanged): void => {
        assertEquals([one.rest, other.rest], [0, 0], JSON.stringify(one));
        assertEquals([one.count, other.count], [128, 128]);
        assert(one.sha256 !== other.sha256);
      };
      // The guest connects to a host program that may not listen yet.
      const port = setup.port();
      const hosting = hostPython<Exchanged>(
        `${SEQPACKET_PROGRAM}
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(sys.argv[1])
listener.listen()
stream, _ = listener.accept()
print(json.dumps(exchange(stream, 1, 2)))
`,
        `${setup.folder}/vm_${port}`,
      );
      const called = await setup.guest.python<Exchanged>(
        `${SEQPACKET_PROGRAM}
deadline = time.monotonic() + 30
while True:
    stream = socket.socket(socket.AF_VSOCK, socket.SOCK_SEQPACKET)
    try:
        stream.connect((HOST_CID, args["port"]))
        break
    except ConnectionResetError:
        stream.close()
        if time.monotonic() > deadline:
            raise
        time.sleep(0.05)
result = exchange(stream, 2, 1)
`,
        { port },
      );
      whole(called, await hosting);

      // The host connects.
      const back = setup.port();
      const serving = setup.guest.start({
        op: "python",
        args: { port: back },
        code: `${SEQPACKET_PROGRAM}
listener = socket.socket(socket.AF_VSOCK, socket.SOCK_SEQPACKET)
listener.bind((socket.VMADDR_CID_ANY, args["port"]))
listener.listen()
emit("listening")
stream, _ = listener.accept()
listener.close()
result = exchange(stream, 3, 4)
`,
      });
      await serving.event("listening");
      const calling = hostPython<Exchanged>(
        `${SEQPACKET_PROGRAM}
stream = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
stream.connect(sys.argv[1])
stream.send(b"CONNECT %s\\n" % sys.argv[2].encode())
assert stream.recv(100).startswith(b"OK ")
print(json.dumps(exchange(stream, 4, 3)))
`,
        `${setup.folder}/vm.seqpacket`,
        `${back}`,
      );
      whole(await serving.result as Exchanged, await calling);

      // A stream's listener is none for seqpackets.
      const streams = setup.port();
      using _listener = setup.listen(streams);
      const refused = await setup.guest.python<string>(
        `
stream = socket.socket(socket.AF_VSOCK, socket.SOCK_SEQPACKET)
try:
    stream.connect((HOST_CID, args["port"]))
    result = "connected"
except OSError as error:
    result = errno.errorcode[error.errno]
stream.close()
`,
        { port: streams },
      );
      assertEquals(refused, "ECONNRESET");
    },

  "the front-end reconnects after the guest has shut down": async (setup) => {
    const port = setup.port();
    const waiting = setup.guest.start({ op: "slow_reader", listen: port });
    await waiting.event("listening");
    using open = await setup.connect(port);
    await setup.guest.shutdown();
    await waiting.result.catch(() => {});
    await readAll(open);
    const nobody = await setup.connect(port).then(
      (conn) => conn.close(),
      String,
    );
    assert(nobody !== undefined, "there is no guest to connect to");
    await setup.boot();
    await SCENARIOS[
      "the guest's half-close delivers what was sent before it, and the answer"
    ]!(
      setup,
    );
  },
};

for (const vm of ["uml", "qemu"] as const) {
  for (const ring of ["split", "packed"] as const) {
    Deno.test(`Linux on ${vm} drives the device over ${ring} rings`, async (t) => {
      if (await skippedWithout(vm)) return;
      await using setup = await GuestSetup.start(vm, ring);
      const { kernel } = setup.guest.info;
      const { bootMs } = setup.guest;
      // deno-lint-ignore no-console
      console.log(
        `  Linux ${kernel} on ${vm}, ${ring}: booted in ${
          (bootMs / 1000).toFixed(1)
        } s`,
      );
      for (const [name, scenario] of Object.entries(SCENARIOS)) {
        await t.step(name, async () => {
          const said = await scenario(setup);
          // deno-lint-ignore no-console
          if (said) console.log(`    ${said}`);
        });
      }
      const warnings = setup.log.filter((line) => /^(warn|error)/.test(line));
      assertEquals(
        warnings.filter((line) =>
          !/destination_cid_unknown|connection_unknown/.test(line)
        ),
        [],
        "a lawful guest gives no reason to complain",
      );
    });
  }
}

Deno.test("Two Linux guests of one device, one split and one packed, talk to each other", async (t) => {
  if (await skippedWithout("uml")) return;
  const folder = await Deno.makeTempDir({ prefix: "ringside-" });
  const other = {
    socketPath: `${folder}/vhost4`,
    udsPath: `${folder}/vm4`,
    guestCid: 4,
    ring: "packed",
  } as const;
  await using setup = await GuestSetup.startDevice({
    ring: "split",
    moreGuests: [other],
  });
  const guests: Guest[] = [];
  try {
    const [a, b] = await Promise.all([
      setup.boot("uml", "split").then(() => setup.guest),
      bootGuest({ vm: "uml", socketPath: other.socketPath, packed: true }),
    ]);
    guests.push(b);
    assertEquals([a.info.cid, b.info.cid], [3, 4]);

    for (const [from, to] of [[a, b], [b, a]] as const) {
      const name = `guest ${from.info.cid} connects to guest ${to.info.cid}`;
      await t.step(`${name} by a stream`, async () => {
        const port = setup.port();
        const receiving = to.start({
          op: "recv",
          listen: port,
          answer_bytes: 4 * MIB,
        });
        await receiving.event("listening");
        const sent = await from.agent<Digest & { received: Digest }>({
          op: "send",
          port,
          cid: to.info.cid,
          bytes: 16 * MIB,
        });
        const received = await receiving.result as Digest & {
          answered: Digest;
        };
        assertEquals([received.bytes, received.sha256], [
          16 * MIB,
          sent.sha256,
        ]);
        const { bytes, sha256 } = sent.received;
        assertEquals({ bytes, sha256 }, received.answered);
      });

      await t.step(`${name} by a seqpacket socket`, async () => {
        const port = setup.port();
        const serving = to.start({
          op: "python",
          args: { port },
          code: `${SEQPACKET_PROGRAM}
listener = socket.socket(socket.AF_VSOCK, socket.SOCK_SEQPACKET)
listener.bind((socket.VMADDR_CID_ANY, args["port"]))
listener.listen()
emit("listening")
stream, (cid, _) = listener.accept()
listener.close()
result = dict(exchange(stream, 3, 4), cid=cid)
`,
        });
        await serving.event("listening");
        const called = await from.python<Exchanged>(
          `${SEQPACKET_PROGRAM}
stream = socket.socket(socket.AF_VSOCK, socket.SOCK_SEQPACKET)
stream.connect((args["cid"], args["port"]))
result = exchange(stream, 4, 3)
`,
          { port, cid: to.info.cid },
        );
        const served = await serving.result as Exchanged & { cid: number };
        assertEquals([called.count, called.rest], [128, 0]);
        assertEquals([served.count, served.rest], [128, 0]);
        assertEquals(served.cid, from.info.cid, "the CID is the device's word");
      });
    }

    await t.step(
      "a guest that dies ends the other one's connection",
      async () => {
        const port = setup.port();
        const waiting = b.start({ op: "slow_reader", listen: port });
        await waiting.event("listening");
        const calling = a.start({ op: "recv", port, cid: 4 });
        await calling.event("connected");
        await waiting.event("waiting");
        await b.kill();
        await waiting.result.catch(() => {});
        const ended = await within(
          15_000,
          "the end of the stream",
          calling.result,
        ) as Digest & { error?: string };
        assertEquals(ended.bytes, 0);
        await a.agent({ op: "ping" });
      },
    );
  } finally {
    for (const guest of guests) await guest.kill();
    await Deno.remove(folder, { recursive: true });
  }
});
