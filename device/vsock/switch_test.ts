import {
  assert,
  assertEquals,
  assertLessOrEqual,
  assertThrows,
} from "@std/assert";
import {
  CheckedSink,
  CheckedSource,
} from "../../props/guest/checked_stream.ts";
import type { GuestConnection } from "../../props/guest/guest_connection.ts";
import {
  InProcessGuest,
  type InProcessOptions,
} from "../../props/guest/in_process.ts";
import type { RingFormat } from "../../ring/queue.ts";
import { Diagnostics } from "../diagnostics.ts";
import { SnapshotError } from "../snapshot.ts";
import { VsockDevice, type VsockDeviceOptions } from "./device.ts";
import { LoopbackHost } from "./loopback.ts";
import { PIPE_BUFFER_BYTES } from "./pipe.ts";
import { VsockSwitch, type VsockSwitchOptions } from "./switch.ts";

const MIB = 1024 * 1024;
const SEQPACKET = { type: "seqpacket" } as const;

/** A guest, its device and its host side. */
class Node {
  readonly host: LoopbackHost;
  device: VsockDevice;
  readonly guest: InProcessGuest;
  readonly diagnostics: Diagnostics = new Diagnostics();

  constructor(
    guestCid: number,
    ring: RingFormat,
    options: Partial<VsockDeviceOptions> = {},
    guest: Partial<InProcessOptions> = {},
  ) {
    const { diagnostics } = this;
    this.host = new LoopbackHost({
      schedule: (work) => this.guest.schedule(work),
    });
    this.device = new VsockDevice({
      guestCid,
      host: this.host,
      diagnostics,
      ...options,
    });
    this.host.attach(this.device);
    this.guest = new InProcessGuest({
      device: this.device,
      ring,
      memoryBytes: 24 * MIB,
      ...guest,
    });
  }

  count(kind: string): number {
    return this.diagnostics.counters.get(kind) ?? 0;
  }
}

/** Guests that a switch joins, each of which runs only where something woke it. */
class Network {
  readonly nodes = new Map<number, Node>();
  readonly switch: VsockSwitch<VsockDevice>;
  readonly diagnostics: Diagnostics = new Diagnostics();

  constructor(options: VsockSwitchOptions<VsockDevice> = {}) {
    this.switch = new VsockSwitch({
      wake: ({ guestCid }) => this.nodes.get(guestCid)?.guest.wake(),
      diagnostics: this.diagnostics,
      ...options,
    });
  }

  add(node: Node): Node {
    this.nodes.set(node.device.guestCid, node);
    this.switch.join(node.device);
    return node;
  }

  run(): void {
    for (let busy = true; busy;) {
      busy = false;
      for (const { guest } of this.nodes.values()) {
        guest.driver.poll();
        while (guest.step()) busy = true;
      }
    }
  }

  /** Connects port of one node's guest to a port of another's. */
  connect(
    from: Node,
    to: Node,
    port = 1000,
    options: { type?: "stream" | "seqpacket" } = {},
  ): [GuestConnection, GuestConnection] {
    const listener = to.guest.driver.listen(port, 128, options);
    const cid = to.device.guestCid;
    const one = from.guest.driver.connect(port, { cid, ...options });
    this.run();
    const other = listener.accept();
    listener.close();
    assert(other !== null, `${one.state}: ${one.closeReason}`);
    assertEquals(one.state, "connected");
    assertEquals(other.peerCid, from.device.guestCid);
    assertEquals(other.peerPort, one.localPort);
    return [one, other];
  }
}

function pair(
  options: VsockSwitchOptions<VsockDevice> = {},
  driver: InProcessOptions["driver"] = {},
): { network: Network; a: Node; b: Node } {
  const network = new Network(options);
  const a = network.add(new Node(3, "split"));
  const b = network.add(new Node(4, "packed", {}, { driver }));
  return { network, a, b };
}

Deno.test("Guests are isolated from each other unless a switch joins them", () => {
  const a = new Node(3, "split");
  const b = new Node(4, "packed");
  b.guest.driver.listen(1000);
  const connection = a.guest.driver.connect(1000, { cid: 4 });
  a.guest.run();
  assertEquals(connection.closeReason, "refused");
  assertEquals(a.count("destination_cid_unknown"), 1);
});

Deno.test("VsockSwitch moves streams between a split and a packed guest, every byte in order, both ways", () => {
  const { network, a, b } = pair();
  const count = 4;
  const total = 16 * MIB;
  const flows = Array.from({ length: count }, (_, i) => {
    const [one, other] = i % 2 === 0
      ? network.connect(a, b, 1000 + i)
      : network.connect(b, a, 1000 + i);
    return [one, other].map((end, n) => ({
      end,
      source: new CheckedSource(i * 2 + n, total),
      // What the other end sends.
      sink: new CheckedSink(i * 2 + (1 - n), total),
    }));
  }).flat();
  for (let round = 0; !flows.every(({ sink }) => sink.done); round++) {
    assert(round < 20_000, "it stands still");
    for (const { end, source, sink } of flows) {
      source.pump((bytes) => end.send(bytes));
      sink.pump((target) => end.read(target));
      assertEquals(sink.wrongAt, -1);
    }
    network.run();
  }
  for (const { end } of flows) end.close();
  network.run();
  assertEquals(network.switch.connectionCount, 0);
  assertEquals([a.device.connectionCount, b.device.connectionCount], [0, 0]);
});

Deno.test("VsockSwitch moves messages between guests, whole and in order, both ways", () => {
  const { network, a, b } = pair();
  const [one, other] = network.connect(a, b, 7, SEQPACKET);
  const lengths = [0, 1, 3732, 3733, 65_536, 65_537, 200_000, 262_144, 5];
  const message = (i: number, side: number): Uint8Array =>
    new Uint8Array(lengths[i % lengths.length]!).fill(i + side);
  const ends = [one, other].map((end, side) => ({
    end,
    side,
    sent: 0,
    got: 0,
  }));
  const most = 5 * lengths.length;
  for (let round = 0; ends.some(({ got }) => got < most); round++) {
    assert(round < 5000, "it stands still");
    for (const flow of ends) {
      const { end, side } = flow;
      if (
        flow.sent < most &&
        end.sendMessage(message(flow.sent, side), flow.sent % 3 === 0)
      ) flow.sent++;
      for (let got = end.readMessage(); got; got = end.readMessage()) {
        assertEquals(got.bytes, message(flow.got, 1 - side) as never);
        assertEquals(got.endOfRecord, flow.got % 3 === 0);
        flow.got++;
      }
    }
    network.run();
  }
  one.close();
  network.run();
  assertEquals(other.atEnd, true);
  assertEquals(network.switch.connectionCount, 0);
});

Deno.test("VsockSwitch lets a guest that does not read hold up its writer, and nobody else", () => {
  const { network, a, b } = pair();
  const [writer, reader] = network.connect(a, b);
  const [other, healthy] = network.connect(a, b, 2000);
  const source = new CheckedSource(9, 8 * MIB);
  for (let i = 0; i < 300; i++) {
    source.pump((bytes) => writer.send(bytes));
    network.run();
  }
  // The reader's buffer, the pipe, the writer's device: nothing else can hold any of it.
  const bound = 256 * 1024 + PIPE_BUFFER_BYTES + 256 * 1024;
  assertLessOrEqual(source.sent, bound);
  assert(source.sent > 256 * 1024, `${source.sent} bytes`);
  const stream = new CheckedSource(1, MIB);
  const sink = new CheckedSink(1, MIB);
  for (let i = 0; i < 1000 && !sink.done; i++) {
    stream.pump((bytes) => other.send(bytes));
    network.run();
    sink.pump((target) => healthy.read(target));
  }
  assert(sink.done);
  const rest = new CheckedSink(9, 8 * MIB);
  for (let i = 0; i < 5000 && !rest.done; i++) {
    rest.pump((target) => reader.read(target));
    source.pump((bytes) => writer.send(bytes));
    network.run();
  }
  assert(rest.done, `${rest.received} bytes, wrong at ${rest.wrongAt}`);
});

Deno.test("VsockSwitch ends each direction by itself", () => {
  const { network, a, b } = pair();
  const [one, other] = network.connect(a, b);
  one.send(Uint8Array.of(1, 2, 3));
  one.shutdown(2);
  network.run();
  const target = new Uint8Array(10);
  assertEquals(other.read(target), 3);
  assert(other.atEnd && other.state === "connected");
  assertEquals(other.send(Uint8Array.of(9)), 1);
  network.run();
  assertEquals([one.read(target), target[0]], [1, 9]);
  other.close();
  network.run();
  assertEquals([one.state, other.state], ["closed", "closed"]);
  // A direction that its reader ends.
  const [up, down] = network.connect(a, b);
  down.shutdown(1);
  network.run();
  up.send(Uint8Array.of(1));
  network.run();
  assert(up.sendEnded && up.state === "connected");
  assertEquals(down.send(Uint8Array.of(5)), 1);
  network.run();
  assertEquals(up.read(target), 1);
});

Deno.test("VsockSwitch delivers what a guest sent before it closed", () => {
  const { network, a, b } = pair();
  const [one, other] = network.connect(a, b);
  const source = new CheckedSource(5, 400_000);
  for (let i = 0; i < 20; i++) {
    source.pump((bytes) => one.send(bytes));
    network.run();
  }
  assert(source.done);
  one.close();
  network.run();
  assertEquals(one.closeReason, "shutdown", "confirmed before it was read");
  const sink = new CheckedSink(5, 400_000);
  for (let i = 0; i < 50 && !sink.done; i++) {
    sink.pump((target) => other.read(target));
    network.run();
  }
  assert(sink.done);
  assertEquals(other.closeReason, "shutdown");
  assertEquals(network.switch.connectionCount, 0);
});

Deno.test("VsockSwitch answers by RST where nobody listens, or there is no such guest", () => {
  const { network, a, b } = pair();
  const { driver } = a.guest;
  const nobody = driver.connect(1, { cid: 4 });
  const unknown = driver.connect(1, { cid: 5 });
  const any = driver.connect(0xffffffff, { cid: 4 });
  b.guest.driver.listen(2);
  const otherType = driver.connect(2, { cid: 4, ...SEQPACKET });
  network.run();
  for (const connection of [nobody, unknown, any, otherType]) {
    assertEquals(connection.closeReason, "refused");
  }
  assertEquals(a.count("destination_cid_unknown"), 1);
  assertEquals(a.device.connectionCount + b.device.connectionCount, 0);
});

Deno.test("VsockSwitch tells a guest of the other one's reset, reboot and transport reset", () => {
  const ends: [string, (b: Node, other: GuestConnection) => void][] = [
    ["RST", (_b, other) => other.abort()],
    ["reboot", (b) => b.guest.virtio.reset()],
    ["TRANSPORT_RESET", (b) => b.device.transportReset()],
    ["RSTs of its device", (b) => b.device.resetConnections()],
  ];
  for (const [what, end] of ends) {
    const { network, a, b } = pair();
    const [one, other] = network.connect(a, b);
    const [messages] = network.connect(a, b, 5, SEQPACKET);
    end(b, other);
    if (what === "RST") {
      // Only that connection.
      network.run();
      assertEquals([one.closeReason, messages.state], ["reset", "connected"]);
      continue;
    }
    network.run();
    assertEquals([one.closeReason, messages.closeReason], ["reset", "reset"]);
    assertEquals(network.switch.connectionCount, 0, what);
    assertEquals(a.device.connectionCount, 0, what);
  }
});

Deno.test("VsockSwitch refuses a connect that its guest has withdrawn, and one whose target has no driver", () => {
  const { network, a, b } = pair();
  const listener = b.guest.driver.listen(8);
  const early = a.guest.driver.connect(8, { cid: 4, timeoutMs: 0 });
  a.guest.run();
  early.abort();
  a.guest.run();
  assertEquals(a.device.connectionCount, 0);
  network.run();
  const accepted = listener.accept()!;
  assertEquals(accepted.closeReason, "reset", "nobody is at the other end");
  assertEquals(network.switch.connectionCount, 0);
  b.guest.virtio.reset();
  const late = a.guest.driver.connect(8, { cid: 4 });
  network.run();
  assertEquals(late.closeReason, "refused");
});

Deno.test("VsockSwitch knows a guest by its device, whatever it writes", () => {
  const { network, a, b } = pair();
  const c = network.add(new Node(5, "split"));
  const [one, other] = network.connect(a, b);
  // Guest 5 says that it is guest 3, on the connection of that one.
  c.guest.driver.claimPort();
  for (const op of [5, 3, 4, 1]) {
    c.guest.driver.sendPacket({
      srcCid: 3,
      dstCid: 4,
      srcPort: one.localPort,
      dstPort: 1000,
      op,
    });
  }
  // And with its own CID, the ports are another connection's.
  for (const op of [5, 4]) {
    c.guest.driver.sendPacket({
      dstCid: 4,
      srcPort: one.localPort,
      dstPort: 1000,
      op,
    });
  }
  network.run();
  assertEquals(c.count("source_cid_wrong"), 4);
  assertEquals([one.state, other.state], ["connected", "connected"]);
  one.send(Uint8Array.of(7));
  network.run();
  assertEquals(other.available, 1);
  // The same ports, from two guests, are two connections.
  const listener = b.guest.driver.listen(2000);
  const options = { cid: 4, localPort: 77 };
  c.guest.driver.releasePort();
  const from3 = a.guest.driver.connect(2000, options);
  const from5 = c.guest.driver.connect(2000, options);
  network.run();
  const accepted = [listener.accept()!, listener.accept()!];
  from3.send(Uint8Array.of(3));
  from5.send(Uint8Array.of(5));
  network.run();
  for (const connection of accepted) {
    const byte = new Uint8Array(1);
    connection.read(byte);
    assertEquals(byte[0], connection.peerCid);
  }
});

Deno.test("VsockSwitch.join() and leave() work while others go on", () => {
  const { network, a, b } = pair();
  assertThrows(() => network.switch.join(a.device), TypeError, "is there");
  assertThrows(
    () => new VsockSwitch().join(a.device),
    TypeError,
    "in a switch",
  );
  const c = new Node(6, "packed");
  assertThrows(() => network.switch.leave(c.device), TypeError, "not joined");
  network.add(c);
  assertEquals(network.switch.guestCids, [3, 4, 6]);
  const [ab, ba] = network.connect(a, b);
  const [ac, ca] = network.connect(a, c);
  const [cb, bc] = network.connect(c, b, 5, SEQPACKET);
  const listener = c.host.listen(99);
  const toHost = c.guest.driver.connect(99);
  network.run();
  network.switch.leave(c.device);
  network.run();
  for (const connection of [ac, ca, cb, bc]) {
    assertEquals([connection.state, connection.closeReason], [
      "closed",
      "reset",
    ]);
  }
  for (const connection of [ab, ba, toHost]) {
    assertEquals(connection.state, "connected");
  }
  listener.close();
  assertEquals(network.switch.connectionCount, 1);
  const after = a.guest.driver.connect(5, { cid: 6 });
  network.run();
  assertEquals(after.closeReason, "refused");
  // It may come back.
  network.switch.join(c.device);
  network.connect(c, a, 9);
});

Deno.test("VsockSwitch.leave() takes connects with it that are not answered", () => {
  for (const who of ["a", "b"] as const) {
    const nodes = pair();
    const { network, a, b } = nodes;
    const listener = b.guest.driver.listen(8);
    const one = a.guest.driver.connect(8, { cid: 4 });
    a.guest.run();
    assertEquals(one.state, "connecting");
    network.switch.leave(nodes[who].device);
    network.run();
    const accepted = listener.accept();
    assertEquals(accepted?.closeReason, "reset");
    assertEquals(one.closeReason, "refused");
    assertEquals(network.switch.connectionCount, 0);
    assertEquals(a.device.connectionCount + b.device.connectionCount, 0);
  }
});

Deno.test("VsockSwitch asks its policy, and bounds what one guest opens to another", () => {
  const asked: string[] = [];
  const { network, a, b } = pair({
    maxConnections: 3,
    allow: (from, to, port) => {
      asked.push(`${from} ${to} ${port}`);
      return port !== 666;
    },
  });
  b.guest.driver.listen(666);
  const forbidden = a.guest.driver.connect(666, { cid: 4 });
  network.run();
  assertEquals(forbidden.closeReason, "refused");
  assertEquals(asked, ["3 4 666"]);
  const open = [1, 2, 3].map((port) => network.connect(a, b, port)[0]);
  b.guest.driver.listen(50);
  const fourth = a.guest.driver.connect(50, { cid: 4 });
  network.run();
  assertEquals(fourth.closeReason, "refused");
  assertEquals(
    [...network.diagnostics.counters.keys()],
    ["peer_not_allowed", "peer_connections_exhausted"],
  );
  network.connect(b, a, 9);
  // One that has ended, or was refused, counts no more.
  open[0]!.close();
  network.run();
  a.guest.driver.connect(12345, { cid: 4 });
  network.run();
  network.connect(a, b, 10);
});

Deno.test("VsockSwitch refuses a connect on which its policy throws", () => {
  const { network, a, b } = pair({
    allow: (_from, _to, port) => {
      if (port === 666) throw new Error("no idea");
      return true;
    },
  });
  b.guest.driver.listen(666);
  const asked = a.guest.driver.connect(666, { cid: 4 });
  network.run();
  assertEquals(asked.closeReason, "refused");
  assertEquals(
    [...network.diagnostics.counters.keys()],
    ["peer_policy_failed", "peer_not_allowed"],
  );
  assertEquals(a.device.connectionCount + b.device.connectionCount, 0);
  network.connect(a, b, 7);
});

Deno.test("VsockSwitch goes on over a snapshot of both devices, with bytes and messages on the way", () => {
  const { network, a, b } = pair();
  const [up, down] = network.connect(a, b);
  const [one, other] = network.connect(b, a, 5, SEQPACKET);
  const total = 3 * MIB;
  const flows = [up, down].map((end, n) => ({
    end,
    source: new CheckedSource(n, total),
    sink: new CheckedSink(1 - n, total),
  }));
  // Nobody reads, so that everything is full.
  for (let i = 0; i < 50; i++) {
    for (const { end, source } of flows) {
      source.pump((bytes) => end.send(bytes));
    }
    one.sendMessage(new Uint8Array(60_000).fill(i));
    network.run();
  }
  const state = network.switch.save();
  const saved = state.pipes.flatMap(({ ends }) => ends);
  assert(saved.filter(({ waiting }) => waiting.length > 0).length >= 3);
  assert(saved.some(({ messages }) => messages.length > 0));

  const moved = new Network();
  moved.switch.restore(JSON.parse(JSON.stringify(state)));
  for (const node of [a, b]) {
    network.switch.detach(node.device);
    const { guestCid } = node.device;
    const host = new LoopbackHost();
    const device = new VsockDevice({ guestCid, host });
    moved.switch.join(device);
    moved.nodes.set(guestCid, node);
    node.guest.migrate(device);
    node.device = device;
  }
  moved.switch.settle();
  let last = -1;
  for (let round = 0; !flows.every(({ sink }) => sink.done); round++) {
    assert(round < 5000, "it stands still");
    for (const { end, source, sink } of flows) {
      source.pump((bytes) => end.send(bytes));
      sink.pump((target) => end.read(target));
      assertEquals(sink.wrongAt, -1);
    }
    for (let got = other.readMessage(); got; got = other.readMessage()) {
      assertEquals(got.bytes.length, 60_000);
      assert(got.bytes.every((byte) => byte === got!.bytes[0]));
      assert(got.bytes[0]! > last);
      last = got.bytes[0]!;
    }
    moved.run();
  }
  assertEquals([one.state, other.state], ["connected", "connected"]);
  assert(last >= 3, `${last} messages`);
  assertEquals(moved.switch.connectionCount, 2);
});

Deno.test("VsockSwitch resets what only one of two devices goes on with", () => {
  const { network, a, b } = pair();
  const [one] = network.connect(a, b);
  const state = JSON.parse(JSON.stringify(network.switch.save()));
  // Guest 3 alone is restored elsewhere.
  const moved = new Network();
  moved.switch.restore(state);
  const device = new VsockDevice({ guestCid: 3, host: new LoopbackHost() });
  moved.switch.join(device);
  moved.nodes.set(3, a);
  a.guest.migrate(device);
  moved.run();
  assertEquals(one.state, "connected", "the other may still come");
  moved.switch.settle();
  moved.run();
  assertEquals(one.closeReason, "reset");
  // And with no switch at all.
  const [other] = ((): [GuestConnection] => {
    const rest = pair();
    const [end] = rest.network.connect(rest.a, rest.b);
    const alone = new VsockDevice({ guestCid: 3, host: new LoopbackHost() });
    rest.a.guest.migrate(alone);
    rest.a.guest.run();
    return [end];
  })();
  assertEquals(other.closeReason, "reset");
});

Deno.test("VsockSwitch refuses a bound that bounds nothing", () => {
  for (const maxConnections of [NaN, -1, 1.5, Infinity]) {
    assertThrows(() => new VsockSwitch({ maxConnections }), RangeError);
  }
});

Deno.test("VsockSwitch.restore() refuses what is no snapshot of a switch", () => {
  const { network, a, b } = pair();
  network.connect(a, b);
  const good = JSON.stringify(network.switch.save());
  const bad: ((state: ReturnType<typeof network.switch.save>) => void)[] = [
    (state) => state.version = 2,
    (state) => state.pipes[0]!.type = "dgram" as "stream",
    (state) => state.pipes[0]!.ends.pop(),
    (state) => state.pipes[0]!.ends[0].waiting = "?",
    (state) => state.pipes[0]!.ends[1].cid = -1,
    (state) => state.pipes[0]!.ends[1].closed = 1 as unknown as boolean,
    // Nobody would end it.
    (state) => state.pipes[0]!.ends.forEach((end) => end.closed = true),
    (state) => state.pipes[0]!.ends[1].cid = state.pipes[0]!.ends[0].cid,
  ];
  for (const edit of bad) {
    const state = JSON.parse(good);
    edit(state);
    const other = new VsockSwitch();
    assertThrows(() => other.restore(state), SnapshotError);
    assertEquals(other.connectionCount, 0);
  }
});

Deno.test("VsockSwitch does the devices' work in microtasks unless told otherwise", async () => {
  const network = new Network();
  const plain = new VsockSwitch();
  const a = new Node(3, "split");
  const b = new Node(4, "packed");
  plain.join(a.device);
  plain.join(b.device);
  network.nodes.set(3, a).set(4, b);
  const listener = b.guest.driver.listen(1000);
  const one = a.guest.driver.connect(1000, { cid: 4 });
  for (let i = 0; i < 20 && one.state !== "connected"; i++) {
    network.run();
    await Promise.resolve();
  }
  const other = listener.accept()!;
  one.send(Uint8Array.of(1));
  for (let i = 0; i < 20 && other.available === 0; i++) {
    network.run();
    await Promise.resolve();
  }
  assertEquals(other.available, 1);
});

Deno.test("VsockSwitch.detach() refuses the connects that its guest has not answered", () => {
  const { network, a, b } = pair();
  const one = a.guest.driver.connect(1000, { cid: 4 });
  a.guest.run();
  assertEquals([one.state, a.device.connectionCount], ["connecting", 1]);
  network.switch.detach(b.device);
  const device = new VsockDevice({ guestCid: 4, host: new LoopbackHost() });
  network.switch.join(device);
  b.guest.migrate(device);
  b.device = device;
  network.switch.settle();
  network.run();
  assertEquals(one.closeReason, "refused");
  assertEquals([a.device.connectionCount, device.connectionCount], [0, 0]);
});
