import {
  assert,
  assertEquals,
  assertGreater,
  assertInstanceOf,
  assertThrows,
} from "@std/assert";
import {
  CheckedSink,
  CheckedSource,
} from "../../props/guest/checked_stream.ts";
import type { GuestConnection } from "../../props/guest/guest_connection.ts";
import { InProcessGuest } from "../../props/guest/in_process.ts";
import type { DeviceSnapshot } from "../device_snapshot.ts";
import { checksum, type Plain, SnapshotError } from "../snapshot.ts";
import { VirtioDevice } from "../virtio_device.ts";
import { VsockDevice, type VsockDeviceOptions } from "./device.ts";
import { type LoopbackConn, LoopbackHost } from "./loopback.ts";
import type { VsockSnapshot } from "./snapshot.ts";

const RINGS = ["split", "packed"] as const;
type Ring = typeof RINGS[number];

/** A guest in this process whose device is replaced by restored ones. */
class Machine {
  host: LoopbackHost = new LoopbackHost({
    schedule: (work) => this.guest.schedule(work),
  });
  readonly guest: InProcessGuest;
  vsock: VsockDevice;
  readonly options: Partial<VsockDeviceOptions>;
  now = 0;

  constructor(ring: Ring, options: Partial<VsockDeviceOptions> = {}) {
    this.options = options;
    this.vsock = this.device();
    this.guest = new InProcessGuest({ device: this.vsock, ring });
    this.host.attach(this.vsock);
  }

  device(): VsockDevice {
    return new VsockDevice({
      guestCid: 3,
      host: this.host,
      now: () => this.now,
      ...this.options,
    });
  }

  /** To another device, with the same host programs. */
  migrate(): DeviceSnapshot {
    this.host.detach();
    this.vsock = this.device();
    this.host.attach(this.vsock);
    return this.guest.migrate(this.vsock);
  }

  /** To another device and another host side, as in another process. */
  migrateWithHost(): LoopbackConn[] {
    const saved = JSON.parse(JSON.stringify(this.host.save()));
    this.host.detach();
    this.host = new LoopbackHost({
      schedule: (work) => this.guest.schedule(work),
    });
    const conns = this.host.restore(saved);
    this.vsock = this.device();
    this.host.attach(this.vsock);
    this.guest.migrate(this.vsock);
    return conns;
  }
}

type Stream = {
  guest: GuestConnection;
  host: LoopbackConn;
  up: CheckedSource;
  down: CheckedSource;
  atHost: CheckedSink;
  atGuest: CheckedSink;
};

function connectAll(machine: Machine, count: number, total: number): Stream[] {
  const listener = machine.host.listen(1234);
  return Array.from({ length: count }, (_, i) => {
    const guest = machine.guest.driver.connect(1234);
    machine.guest.run();
    return {
      guest,
      host: listener.tryAccept()!,
      up: new CheckedSource(2 * i + 1, total),
      down: new CheckedSource(2 * i + 2, total),
      atHost: new CheckedSink(2 * i + 1, total),
      atGuest: new CheckedSink(2 * i + 2, total),
    };
  });
}

const scratch = new Uint8Array(10_000);

/** One round of all four programs of a stream; each may be slow. */
function pump(stream: Stream, random: () => number): void {
  const { guest, host, up, down, atHost, atGuest } = stream;
  if (random() < 0.7) up.pump((bytes) => guest.send(bytes));
  if (random() < 0.7) down.pump((bytes) => host.tryWrite(bytes));
  // A few reads of any length.
  const some = (read: (target: Uint8Array) => number | null) => {
    let reads = Math.floor(random() * 8);
    return (target: Uint8Array): number =>
      reads-- > 0
        ? read(target.subarray(0, 1 + Math.floor(random() * 10_000))) ?? 0
        : 0;
  };
  atHost.pump(some((target) => host.tryRead(target)));
  atGuest.pump(some((target) => guest.read(target)));
}

function randomNumbers(seed: number): () => number {
  return () => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return seed / 2 ** 32;
  };
}

for (const ring of RINGS) {
  for (const where of ["the same host side", "another host side"] as const) {
    Deno.test(`VirtioDevice.restore() goes on with every stream on ${where} (${ring})`, () => {
      const machine = new Machine(ring);
      const total = 600_000;
      const streams = connectAll(machine, 6, total);
      const random = randomNumbers(7);
      let moves = 0;
      let buffered = 0;
      let inFlight = 0;
      for (let round = 0; round < 100_000; round++) {
        for (const stream of streams) pump(stream, random);
        // Stopped in the middle of work, too.
        machine.guest.run(random() < 0.5 ? Math.floor(random() * 4) : Infinity);
        if (random() < 0.4) {
          if (where === "the same host side") {
            const snapshot = machine.migrate();
            const model = snapshot.model as unknown as VsockSnapshot;
            for (const connection of model.connections) {
              buffered += atob(connection.buffered).length;
            }
            for (const { state } of snapshot.queues) {
              inFlight += state!.inFlight.length;
            }
          } else {
            const conns = machine.migrateWithHost();
            streams.forEach((stream, i) => stream.host = conns[i]!);
          }
          moves++;
        }
        if (
          streams.every(({ atHost, atGuest }) =>
            atHost.received + atGuest.received === 2 * total
          )
        ) {
          break;
        }
      }
      for (const { atHost, atGuest } of streams) {
        assertEquals([atHost.received, atHost.verified, atHost.wrongAt], [
          total,
          total,
          -1,
        ]);
        assertEquals([atGuest.received, atGuest.verified, atGuest.wrongAt], [
          total,
          total,
          -1,
        ]);
      }
      assertGreater(moves, 10);
      if (where === "the same host side") {
        assertGreater(
          buffered,
          0,
          "bytes were moved in the device's own buffers",
        );
        assertGreater(inFlight, 0, "buffers were in flight");
      }
      assertEquals(machine.vsock.connectionCount, 6);
    });
  }

  Deno.test(`VirtioDevice.save() changes nothing (${ring})`, () => {
    const machine = new Machine(ring);
    const [stream] = connectAll(machine, 1, 500_000);
    const random = randomNumbers(3);
    for (let i = 0; i < 20; i++) {
      pump(stream!, random);
      machine.guest.run(3);
      const first = machine.guest.virtio.save();
      assertEquals(machine.guest.virtio.save(), first);
      assertEquals(structuredClone(first), first);
      assertEquals(JSON.parse(JSON.stringify(first)), first);
    }
  });

  Deno.test(`VirtioDevice.restore() forks: two machines go on from one snapshot (${ring})`, () => {
    const machine = new Machine(ring);
    const [stream] = connectAll(machine, 1, 100_000);
    stream!.down.pump((bytes) => stream!.host.tryWrite(bytes));
    machine.guest.run(2);
    const snapshot = machine.guest.virtio.save();
    const hostSnapshot = machine.host.save();
    const memory = machine.guest.memory;
    const copies = [0, 1].map(() => {
      const host = new LoopbackHost({ schedule: () => {} });
      host.restore(hostSnapshot);
      const vsock = new VsockDevice({ guestCid: 3, host });
      const virtio = new VirtioDevice(vsock);
      vsock.attach(virtio);
      virtio.setMemory(memory);
      virtio.restore(snapshot);
      return virtio.save();
    });
    assertEquals(copies[0], copies[1]);
  });

  Deno.test(`VirtioDevice.restore() refuses what it cannot go on from, and stays as it was (${ring})`, () => {
    const machine = new Machine(ring);
    const streams = connectAll(machine, 2, 100_000);
    streams[0]!.up.pump((bytes) => streams[0]!.guest.send(bytes));
    machine.guest.run();
    const good = machine.guest.virtio.save();
    const text = JSON.stringify(good);

    const host = new LoopbackHost();
    const vsock = new VsockDevice({ guestCid: 3, host });
    const virtio = new VirtioDevice(vsock);
    vsock.attach(virtio);
    virtio.setMemory(machine.guest.memory);
    const before = JSON.stringify(virtio.save());
    const refused = (code: string, snapshot: unknown): void => {
      const error = assertThrows(() => virtio.restore(snapshot));
      assertInstanceOf(error, SnapshotError, String(error));
      assertEquals(error.code, code, error.message);
      assert(error.message.startsWith("Cannot restore the snapshot: "));
      assertEquals(JSON.stringify(virtio.save()), before);
      assertEquals(vsock.connectionCount, 0);
    };
    refused("CONTENT", null);
    refused("CONTENT", 5);
    refused("CONTENT", []);
    refused("VERSION", {});
    refused("VERSION", { ...good, version: 1 });
    refused("VERSION", { ...good, version: 3 });
    refused("CHECKSUM", { ...good, status: good.status ^ 4 });
    refused("CHECKSUM", { ...good, queues: good.queues.slice(1) });
    // Edited, and sealed anew by somebody who knows how.
    type Edit = (snapshot: DeviceSnapshot, model: VsockSnapshot) => void;
    const edited = (edit: Edit): unknown => {
      const { version, checksum: _old, ...content } = JSON.parse(
        text,
      ) as DeviceSnapshot;
      edit(
        content as DeviceSnapshot,
        content.model as unknown as VsockSnapshot,
      );
      return { version, checksum: checksum(content as never), ...content };
    };
    refused("MISMATCH", edited((snapshot) => snapshot.deviceId = 1));
    refused("MISMATCH", edited((snapshot) => snapshot.queues.pop()));
    refused(
      "MISMATCH",
      edited((snapshot) => snapshot.features = "0x8000000000000000"),
    );
    refused("MISMATCH", edited((_, model) => model.guestCid = 4));
    // Each connection could fill so much.
    refused("MISMATCH", edited((_, model) => model.bufAlloc = 2 ** 31 - 1));
    refused("CONTENT", edited((snapshot) => snapshot.features = "12"));
    refused("CONTENT", edited((snapshot) => snapshot.status = -1));
    refused(
      "CONTENT",
      edited((snapshot) => snapshot.queues[0]!.setup.size = 0),
    );
    refused(
      "MISMATCH",
      edited((snapshot) => snapshot.queues[1]!.setup.descriptorArea = 2 ** 45),
    );
    refused(
      "CONTENT",
      edited((snapshot) => snapshot.queues[1]!.state!.usedIdx ^= 1),
    );
    refused("CONTENT", edited((snapshot) => snapshot.queues[1]!.state = null));
    refused(
      "CONTENT",
      edited((_, model) => model.connections[0]!.credit.txCnt = -1),
    );
    refused(
      "CONTENT",
      edited((_, model) => model.connections[0]!.credit.fwdCnt += 1),
    );
    refused(
      "CONTENT",
      edited((_, model) => model.connections[0]!.buffered = "%"),
    );
    refused(
      "CONTENT",
      edited((_, model) => model.connections[0]!.buffered = "AAAA"),
    );
    refused(
      "CONTENT",
      edited((_, model) => model.connections[0]!.state = "closed" as never),
    );
    refused(
      "CONTENT",
      edited((_, model) => model.connections[0]!.wantShutdown = 4),
    );
    refused(
      "CONTENT",
      edited((_, model) => model.connections.push(model.connections[0]!)),
    );
    refused("CONTENT", edited((_, model) => model.strays = "none" as never));
    refused("CONTENT", edited((_, model) => model.bufAlloc = 0));
    refused("CONTENT", edited((snapshot) => snapshot.model = null));
    // Cut anywhere: what still parses is refused, too.
    for (let at = 0; at < text.length; at += 97) {
      let cut: unknown;
      try {
        cut = JSON.parse(text.slice(0, at) + "}");
      } catch {
        continue;
      }
      assertThrows(() => virtio.restore(cut), SnapshotError);
    }
    const conns = host.restore(machine.host.save());
    virtio.restore(JSON.parse(text));
    assertEquals(vsock.connectionCount, 2);
    assertEquals(conns.every(({ suspended }) => !suspended), true);
    assertThrows(
      () => virtio.restore(good),
      TypeError,
      "not in its state after reset",
    );
  });

  Deno.test(`VsockDevice resets restored streams whose host program is not there (${ring})`, () => {
    const machine = new Machine(ring);
    const streams = connectAll(machine, 2, 1000);
    machine.host.detach();
    machine.host = new LoopbackHost({
      schedule: (work) => machine.guest.schedule(work),
    });
    machine.vsock = machine.device();
    machine.host.attach(machine.vsock);
    machine.guest.migrate(machine.vsock);
    machine.guest.run();
    assertEquals(streams.map(({ guest }) => guest.state), ["closed", "closed"]);
    assertEquals(machine.vsock.connectionCount, 0);
  });

  Deno.test(`VsockDevice goes on with connects, half-closes and closes in a snapshot (${ring})`, async () => {
    const machine = new Machine(ring);
    const { guest } = machine;
    const listener = machine.host.listen(1234);
    const served = guest.driver.listen(80);

    // A host program's connect that the guest has not seen.
    const connecting = machine.host.connect(80);
    machine.migrate();
    guest.run();
    const accepted = served.accept()!;
    const fromHost = await connecting;
    assertEquals(accepted.send(Uint8Array.of(1, 2)), 2);
    guest.run();
    assertEquals(fromHost.tryRead(scratch), 2);

    // A guest's half-close with bytes that the host program has not read.
    const half = guest.driver.connect(1234);
    guest.run();
    const atHost = listener.tryAccept()!;
    const data = new Uint8Array(400_000).map((_, i) => i % 251);
    let sent = 0;
    while (sent < data.length) {
      const taken = half.send(data.subarray(sent));
      sent += taken;
      guest.run();
      if (taken === 0) break;
    }
    half.shutdown(2);
    guest.run();
    machine.migrate();
    const received: number[] = [];
    for (;;) {
      const got = atHost.tryRead(scratch);
      if (got === null) break;
      if (got > 0) received.push(...scratch.subarray(0, got));
      guest.run();
    }
    assertEquals(Uint8Array.from(received), data.subarray(0, sent));
    assertEquals(atHost.tryWrite(Uint8Array.of(9)), 1);
    machine.migrate();
    guest.run();
    assertEquals(half.read(scratch), 1);

    // A guest's close that leaves bytes behind: the connection lingers over the move.
    let more = 0;
    const closing = guest.driver.connect(1234);
    guest.run();
    const slow = listener.tryAccept()!;
    for (let taken = -1; taken !== 0;) {
      taken = closing.send(data);
      more += taken;
      guest.run();
    }
    closing.close();
    guest.run();
    assertEquals(closing.state, "closed");
    machine.migrate();
    let rest = 0;
    for (;;) {
      const got = slow.tryRead(scratch);
      if (got === null) break;
      rest += got;
      guest.run();
    }
    assertEquals(rest, more);

    // A host program that closes, and a guest that has not answered.
    fromHost.close();
    machine.migrate();
    guest.run();
    assert(accepted.atEnd);
    atHost.close();
    guest.run();
    half.close();
    accepted.close();
    guest.run();
    machine.migrate();
    guest.run();
    assertEquals(machine.vsock.connectionCount, 0);
  });
}

Deno.test("checksum() does not depend on the order of keys, and on everything else", () => {
  const one = checksum({ a: 1, b: [true, null, "x"] });
  assertEquals(one.length, 16);
  assertEquals(checksum({ b: [true, null, "x"], a: 1 }), one);
  for (
    const other of [
      { a: 1, b: [true, "x", null] },
      { a: "1", b: [true, null, "x"] },
      { a: 1, b: [true, null, "y"] },
      { a: 1, b: [[true, null, "x"]] },
      { ab: 1, b: [true, null, "x"] },
    ] as Plain[]
  ) assert(checksum(other) !== one, JSON.stringify(other));
});
