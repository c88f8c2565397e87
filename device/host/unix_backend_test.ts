import { assert, assertEquals, assertThrows } from "@std/assert";
import { Diagnostics } from "../diagnostics.ts";
import {
  type ConnectAnswer,
  type ConnectRequest,
  type HostStream,
  type PendingConnect,
  STREAM_AGAIN,
  STREAM_BROKEN,
  STREAM_EOF,
  type StreamEvents,
} from "../vsock/host.ts";
import { Chain } from "../../ring/chain.ts";
import { GuestMemory } from "../../ring/memory.ts";
import { Segments } from "../vsock/segments.ts";
import { EAGAIN } from "./errno.ts";
import { EventLoop } from "./event_loop.ts";
import { fixedBytes, libc } from "./ffi.ts";
import {
  acceptFrom,
  closeFd,
  connectTo,
  listenAt,
  receiveBytes,
  sendBytes,
  SHUT_WR,
  shutdownSocket,
} from "./socket.ts";
import {
  BACKLOG_TIMEOUT_MS,
  CONNECT_LINE_TIMEOUT_MS,
  MAX_PENDING_CLIENTS,
  parseConnectLine,
  UnixBackend,
} from "./unix_backend.ts";

libc(); // Opened here, because a library opened inside a test counts as a leak.

/** One host program's wish, as the fake guest sees it. */
type Asked = {
  port: number;
  answer: ConnectAnswer;
  cancelled: boolean;
};

/** A guest that answers when the test says so. */
class FakeGuest {
  readonly asked: Asked[] = [];
  running = true;

  connect(port: number, answer: ConnectAnswer): PendingConnect {
    if (!this.running) {
      answer.refused("no guest is running");
      return {
        hostPort: 1,
        cancel: () => {},
      };
    }
    const entry = { port, answer, cancelled: false };
    this.asked.push(entry);
    return {
      hostPort: 1,
      cancel: () => entry.cancelled = true,
    };
  }
}

class Events implements StreamEvents {
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

/** A guest's REQUEST. */
class Request implements ConnectRequest {
  readonly hostPort: number;
  readonly guestPort = 99;
  readonly events: Events = new Events();
  cancelled = false;
  refused = 0;
  stream: HostStream | null = null;
  constructor(hostPort: number) {
    this.hostPort = hostPort;
  }
  accept(open: (events: StreamEvents) => HostStream): boolean {
    if (this.cancelled) return false;
    this.stream = open(this.events);
    return true;
  }
  refuse(): void {
    this.refused++;
  }
}

type Bench = {
  dir: string;
  uds: string;
  loop: EventLoop;
  guest: FakeGuest;
  backend: UnixBackend;
  counters: Map<string, number>;
  /** Makes the loop's clock go on. */
  sleep(ms: number): void;
  /** Connects a host program and sends `text`. */
  client(text: string): number;
  /** Turns until nothing happens. */
  settle(): void;
};

type Options = { allowedHostPorts?: number[]; allowedGuestPorts?: number[] };

async function withBackend(
  body: (bench: Bench) => void | Promise<void>,
  options: Options = {},
): Promise<void> {
  const dir = await Deno.makeTempDir();
  const before = [...Deno.readDirSync("/proc/self/fd")].length;
  let skipped = 0;
  const loop = new EventLoop(() => performance.now() + skipped);
  const guest = new FakeGuest();
  const diagnostics = new Diagnostics();
  const uds = `${dir}/uds`;
  const backend = new UnixBackend({
    loop,
    udsPath: uds,
    diagnostics,
    ...options,
  });
  backend.start(guest);
  const clients: number[] = [];
  const settle = (): void => {
    for (let idle = 0; idle < 2;) idle = loop.turn(0) === 0 ? idle + 1 : 0;
  };
  try {
    await body({
      dir,
      uds,
      loop,
      guest,
      backend,
      counters: diagnostics.counters,
      sleep: (ms) => skipped += ms,
      client: (text) => {
        const fd = connectTo(uds);
        assert(fd >= 0);
        clients.push(fd);
        send(fd, text);
        return fd;
      },
      settle,
    });
  } finally {
    for (const fd of clients) closeFd(fd);
    settle();
    backend.stop();
    assertEquals(loop.size, 0);
    loop.close();
    assertThrows(() => Deno.lstatSync(uds), Deno.errors.NotFound);
    await Deno.remove(dir, { recursive: true });
  }
  assertEquals([...Deno.readDirSync("/proc/self/fd")].length, before);
}

function send(fd: number, text: string): void {
  const bytes = new Uint8Array(new TextEncoder().encode(text));
  assertEquals(sendBytes(fd, bytes, bytes.length), bytes.length);
}

/** What the host program reads now: text, "EOF" or "". */
function read(fd: number): string {
  const target = fixedBytes(4096);
  const n = receiveBytes(fd, target, target.length);
  if (n === 0) return "EOF";
  if (n === -EAGAIN) return "";
  assert(n > 0, `errno ${-n}`);
  return new TextDecoder().decode(target.subarray(0, n));
}

function memory(): Segments {
  const memory = new GuestMemory([{
    guestAddress: 0,
    size: 4096,
    buffer: new ArrayBuffer(4096),
  }]);
  const chain = new Chain(memory);
  chain.append(0, 4096, false);
  const segments = new Segments(memory);
  segments.add(chain, 0, 1, 0, 4096);
  return segments;
}

/** What the guest reads now. */
function readStream(stream: HostStream): string {
  const into = memory();
  const n = stream.read(into);
  if (n === STREAM_EOF) return "EOF";
  if (n === STREAM_BROKEN) return "BROKEN";
  if (n === STREAM_AGAIN) return "";
  const bytes = new Uint8Array(n);
  into.copyTo(bytes);
  return new TextDecoder().decode(bytes);
}

Deno.test("parseConnectLine() takes ports and nothing else", () => {
  const lines: Record<string, number> = {
    "CONNECT 0": 0,
    "CONNECT 1234": 1234,
    "connect 1": 1,
    "CONNECT 0017": 17,
    "CONNECT 4294967294": 4294967294,
    "CONNECT 4294967295": -1,
    "CONNECT 4294967296": -1,
    "CONNECT 99999999999": -1,
    "CONNECT": -1,
    "CONNECT ": -1,
    "CONNECT -1": -1,
    "CONNECT +1": -1,
    "CONNECT 1.5": -1,
    "CONNECT 0x10": -1,
    "CONNECT abc": -1,
    "CONNECT 1 2": -1,
    " CONNECT 1": -1,
    "CONNECT 1 ": -1,
    "CONNECT\t1": -1,
    "CONNECTION 1": -1,
    "": -1,
    "\u0000": -1,
  };
  for (const [line, port] of Object.entries(lines)) {
    assertEquals(parseConnectLine(line), port, JSON.stringify(line));
  }
});

Deno.test("UnixBackend answers OK only after the guest has accepted", async () => {
  await withBackend(({ client, settle, guest, backend }) => {
    const fd = client("CONNECT 1234\n");
    settle();
    assertEquals(guest.asked.map((entry) => entry.port), [1234]);
    assertEquals(read(fd), "");
    assertEquals(backend.pendingCount, 1);
    const stream = guest.asked[0]!.answer.accepted(0x4000_0000, new Events());
    assertEquals(read(fd), "OK 1073741824\n");
    assertEquals(backend.pendingCount, 0);
    assertEquals(backend.streamCount, 1);
    stream.writeBytes(new TextEncoder().encode("from the guest"));
    assertEquals(read(fd), "from the guest");
    stream.close(false);
    assertEquals(read(fd), "EOF");
    assertEquals(backend.streamCount, 0);
  });
});

Deno.test("UnixBackend takes a CONNECT line in pieces and keeps the bytes behind it", async () => {
  await withBackend(({ client, settle, guest }) => {
    const fd = client("CON");
    settle();
    for (const piece of ["NECT 1", "23", "4"]) {
      send(fd, piece);
      settle();
    }
    assertEquals(guest.asked.length, 0);
    send(fd, "\nearly ");
    settle();
    assertEquals(guest.asked[0]!.port, 1234);
    send(fd, "and later\n");
    settle();
    const events = new Events();
    const stream = guest.asked[0]!.answer.accepted(7, events);
    assertEquals(readStream(stream), "early and later\n");
    assertEquals(readStream(stream), "");
    send(fd, "live");
    settle();
    assertEquals(events.log, ["readable"]);
    assertEquals(readStream(stream), "live");
    assertEquals(read(fd), "OK 7\n");
    stream.close(false);
  });
});

Deno.test("UnixBackend delivers what came before a half-close, also before the answer", async () => {
  await withBackend(({ client, settle, guest, loop }) => {
    const fd = client("CONNECT 5\nall of it");
    shutdownSocket(fd, SHUT_WR);
    settle();
    assertEquals(loop.turn(0), 0); // and it does not spin
    const { answer, cancelled } = guest.asked[0]!;
    assert(!cancelled);
    const stream = answer.accepted(7, new Events());
    assertEquals(readStream(stream), "all of it");
    assertEquals(readStream(stream), "EOF");
    stream.writeBytes(new TextEncoder().encode("answer"));
    assertEquals(read(fd), "OK 7\nanswer");
    stream.close(false);
  });
});

Deno.test("UnixBackend closes a host program that sends a bad line", async () => {
  await withBackend(({ client, settle, guest, counters, backend }) => {
    const bad = [
      "HELLO\n",
      "CONNECT\n",
      "CONNECT abc\n",
      "CONNECT -1\n",
      "CONNECT 4294967295\n",
      "CONNECT 4294967296\n",
      "CONNECT 1 2\n",
      "\n",
      "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
      "x".repeat(32), // no newline where one must be
      "x".repeat(1000),
    ];
    for (const text of bad) {
      const fd = client(text);
      settle();
      assertEquals(read(fd), "EOF", JSON.stringify(text));
    }
    assertEquals(guest.asked.length, 0);
    assertEquals(counters.get("connect_line_bad"), bad.length);
    assertEquals(backend.pendingCount, 0);
  });
});

Deno.test("UnixBackend closes a host program that the guest refuses", async () => {
  await withBackend(({ client, settle, guest, backend }) => {
    const late = client("CONNECT 1\nignored");
    settle();
    guest.asked[0]!.answer.refused("no listener");
    assertEquals(read(late), "EOF");
    guest.running = false;
    const at_once = client("CONNECT 1\n");
    settle();
    assertEquals(read(at_once), "EOF");
    assertEquals(backend.pendingCount, 0);
  });
});

Deno.test("UnixBackend withdraws for a host program that leaves before the answer", async () => {
  await withBackend(({ uds, settle, guest, backend }) => {
    const fd = connectTo(uds);
    send(fd, "CONNECT 1\n");
    settle();
    assertEquals(guest.asked.length, 1);
    closeFd(fd);
    settle();
    assert(guest.asked[0]!.cancelled);
    assertEquals(backend.pendingCount, 0);
  });
});

Deno.test("UnixBackend survives a host program that leaves at the very moment of the answer", async () => {
  await withBackend(({ uds, settle, guest, backend }) => {
    const fd = connectTo(uds);
    send(fd, "CONNECT 1\nlast words");
    settle();
    closeFd(fd);
    const events = new Events();
    const stream = guest.asked[0]!.answer.accepted(7, events); // EPIPE
    settle();
    assertEquals(events.log, ["readable", "hangup"]);
    assertEquals(readStream(stream), "last words");
    assertEquals(readStream(stream), "EOF");
    assertEquals(stream.writeBytes(new Uint8Array(1)), STREAM_BROKEN);
    stream.close(false);
    assertEquals(backend.streamCount, 0);
  });
});

Deno.test("UnixBackend neither spins nor leaks for host programs that connect and close at once", async () => {
  await withBackend(({ uds, settle, guest, backend, loop }) => {
    for (let i = 0; i < 200; i++) {
      const fd = connectTo(uds);
      if (i % 2 === 0) send(fd, i % 4 === 0 ? "CONNECT 1\n" : "CONN");
      closeFd(fd);
      if (i % 50 === 49) settle();
    }
    assertEquals(loop.turn(0), 0);
    assertEquals(guest.asked.length, 0);
    assertEquals(backend.pendingCount, 0);
  });
});

Deno.test("UnixBackend closes a host program that sends no line in time", async () => {
  await withBackend(({ client, settle, guest, sleep }) => {
    const slow = client("CONNECT");
    const asked = client("CONNECT 1\n");
    settle();
    sleep(CONNECT_LINE_TIMEOUT_MS + 1);
    settle();
    assertEquals(read(slow), "EOF");
    assertEquals(read(asked), "");
    assertEquals(guest.asked.length, 1);
  });
});

Deno.test("UnixBackend lets host programs wait beyond its bound, and takes them in then", async () => {
  await withBackend(({ client, settle, guest, backend, loop }) => {
    const fds: number[] = [];
    for (let i = 0; i < MAX_PENDING_CLIENTS; i++) {
      fds.push(client("CONNECT 1\n"));
    }
    settle();
    assertEquals(backend.pendingCount, MAX_PENDING_CLIENTS);
    const extra = client("CONNECT 2\n");
    settle();
    assertEquals(loop.turn(0), 0);
    assertEquals(guest.asked.length, MAX_PENDING_CLIENTS);
    guest.asked[0]!.answer.refused("no");
    settle();
    assertEquals(guest.asked.at(-1)!.port, 2);
    assertEquals(read(extra), "");
  });
});

Deno.test("UnixBackend connects the guest to a listening host program", async () => {
  await withBackend(({ uds, backend, loop }) => {
    const listener = listenAt(`${uds}_4000`, 8);
    const request = new Request(4000);
    backend.connect(request);
    assert(request.stream !== null);
    assertEquals(request.refused, 0);
    const program = acceptFrom(listener.fd);
    request.stream.writeBytes(new TextEncoder().encode("hi"));
    assertEquals(read(program), "hi");
    send(program, "ho");
    loop.turn(0);
    assertEquals(request.events.log, ["readable"]);
    assertEquals(readStream(request.stream), "ho");
    request.stream.close(false);
    closeFd(program);
    listener.close();
  });
});

Deno.test("UnixBackend refuses at once where nobody listens", async () => {
  await withBackend(async ({ dir, uds, backend }) => {
    const refused = (port: number): void => {
      const request = new Request(port);
      backend.connect(request);
      assertEquals([request.refused, request.stream], [1, null], `${port}`);
    };
    refused(1); // no file
    closeFd(listenAt(`${uds}_2`, 1).fd); // the file of a program that is gone
    refused(2);
    await Deno.writeTextFile(`${uds}_3`, "");
    refused(3); // no socket
    await Deno.mkdir(`${uds}_4`);
    refused(4);
    refused(0xffff_ffff);
    await Deno.remove(`${uds}_2`);
    assert((await Deno.stat(dir)).isDirectory);
  });
});

Deno.test("UnixBackend refuses a path that is too long for a socket", async () => {
  const dir = await Deno.makeTempDir();
  const udsPath = `${dir}/${"u".repeat(107 - dir.length - 4)}`;
  const loop = new EventLoop();
  const diagnostics = new Diagnostics();
  const backend = new UnixBackend({ loop, udsPath, diagnostics });
  backend.start(new FakeGuest());
  const listener = listenAt(`${udsPath}_12`, 1);
  const fits = new Request(12);
  backend.connect(fits);
  assert(fits.stream !== null);
  const long = new Request(1234);
  backend.connect(long);
  assertEquals(long.refused, 1);
  assertEquals(diagnostics.counters.get("host_path_too_long"), 1);
  backend.stop();
  listener.close();
  loop.close();
  await Deno.remove(dir, { recursive: true });
});

Deno.test("UnixBackend tries a listener with a full backlog again, without blocking others", async () => {
  await withBackend(({ uds, backend, loop, sleep, settle }) => {
    const busy = listenAt(`${uds}_1`, 0);
    const other = listenAt(`${uds}_2`, 8);
    const fds: number[] = [];
    for (;;) {
      const fd = connectTo(`${uds}_1`);
      if (fd < 0) break;
      fds.push(fd);
    }
    const waiting = [new Request(1), new Request(1), new Request(1)];
    for (const request of waiting) backend.connect(request);
    assertEquals(backend.pendingCount, 3);
    const quick = new Request(2);
    backend.connect(quick);
    assert(quick.stream !== null);

    waiting[1]!.cancelled = true;
    fds.push(acceptFrom(busy.fd)); // room for one
    sleep(10);
    settle();
    assert(waiting[0]!.stream !== null);
    assertEquals(waiting[2]!.refused, 0);
    sleep(BACKLOG_TIMEOUT_MS);
    settle();
    assertEquals(waiting.map((request) => request.refused), [0, 0, 1]);
    assertEquals(backend.pendingCount, 0);
    assertEquals(loop.turn(0), 0);
    for (const fd of fds) closeFd(fd);
    waiting[0]!.stream.close(false);
    quick.stream.close(false);
    busy.close();
    other.close();
  });
});

Deno.test("UnixBackend keeps to its lists of ports", async () => {
  await withBackend(({ uds, client, settle, guest, backend, counters }) => {
    const listeners = [listenAt(`${uds}_1`, 1), listenAt(`${uds}_2`, 1)];
    const allowed = new Request(1);
    backend.connect(allowed);
    const forbidden = new Request(2);
    backend.connect(forbidden);
    assert(allowed.stream !== null);
    assertEquals(forbidden.refused, 1);
    assertEquals(read(client("CONNECT 20\n")), "");
    const wrong = client("CONNECT 10\n");
    settle();
    assertEquals(read(wrong), "EOF");
    assertEquals(guest.asked.map((entry) => entry.port), [20]);
    assertEquals(counters.get("host_port_not_allowed"), 1);
    assertEquals(counters.get("guest_port_not_allowed"), 1);
    for (const listener of listeners) listener.close();
    allowed.stream.close(false);
  }, { allowedHostPorts: [1], allowedGuestPorts: [20] });
});

Deno.test("UnixBackend.stop() ends everything that is under way", async () => {
  await withBackend(({ uds, client, settle, guest, backend }) => {
    const listener = listenAt(`${uds}_1`, 0);
    const fds: number[] = [];
    for (let fd = 0; (fd = connectTo(`${uds}_1`)) >= 0;) fds.push(fd);
    const waiting = new Request(1);
    backend.connect(waiting);
    const half = client("CONN");
    const asked = client("CONNECT 1\n");
    const open = client("CONNECT 2\n");
    settle();
    const entry = guest.asked.find((each) => each.port === 2)!;
    entry.answer.accepted(7, new Events());
    backend.stop();
    assertEquals(waiting.refused, 1);
    assertEquals(read(half), "EOF");
    assertEquals(read(asked), "EOF");
    assert(guest.asked.find((each) => each.port === 1)!.cancelled);
    assertEquals(read(open), "OK 7\n");
    assertEquals(read(open), "EOF");
    const late = new Request(1);
    backend.connect(late);
    assertEquals(late.refused, 1);
    for (const fd of fds) closeFd(fd);
    listener.close();
  });
});

Deno.test("UnixBackend waits for free descriptors instead of spinning", async () => {
  // In a process of its own with few descriptors.
  const dir = await Deno.makeTempDir();
  const at = (name: string): string => new URL(name, import.meta.url).href;
  const program = `
    import { Diagnostics } from ${JSON.stringify(at("../diagnostics.ts"))};
    import { EventLoop } from ${JSON.stringify(at("./event_loop.ts"))};
    import { UnixBackend } from ${JSON.stringify(at("./unix_backend.ts"))};
    import { closeFd, connectTo, createEventFd, listenAt } from ${
    JSON.stringify(at("./socket.ts"))
  };
    const loop = new EventLoop();
    const diagnostics = new Diagnostics();
    const udsPath = Deno.args[0] + "/uds";
    const backend = new UnixBackend({ loop, udsPath, diagnostics });
    const asked = [];
    backend.start({
      connect: (port) => (asked.push(port), { cancel() {} }),
    });
    const listener = listenAt(udsPath + "_1", 8);
    const client = connectTo(udsPath);
    const { libc } = await import(${JSON.stringify(at("./ffi.ts"))});
    libc().send(client, new TextEncoder().encode("CONNECT 9\\n"), 10, 0);
    const taken = [];
    for (;;) {
      try { taken.push(createEventFd()); } catch { break; }
    }
    const start = performance.now();
    let turns = 0;
    while (performance.now() - start < 350) { loop.turn(20); turns++; }
    let refused = 0;
    backend.connect({ hostPort: 1, guestPort: 2, cancelled: false,
      accept: () => { throw new Error(); }, refuse: () => refused++ });
    const before = asked.length;
    taken.forEach(closeFd);
    while (asked.length === 0) loop.turn(100);
    listener.close();
    backend.stop();
    console.log(JSON.stringify({ turns: turns < 60, refused, before, asked,
      counted: diagnostics.counters.get("descriptors_exhausted") >= 3 }));
  `;
  const file = `${dir}/program.ts`;
  await Deno.writeTextFile(file, program);
  const { stdout, stderr } = await new Deno.Command("sh", {
    args: [
      "-c",
      'ulimit -n 64; exec "$0" run -A --no-check --no-config "$1" "$2"',
      Deno.execPath(),
      file,
      dir,
    ],
  }).output();
  const text = new TextDecoder().decode(stdout);
  assertEquals(
    text && JSON.parse(text),
    { turns: true, refused: 1, before: 0, asked: [9], counted: true },
    new TextDecoder().decode(stderr),
  );
  await Deno.remove(dir, { recursive: true });
});
