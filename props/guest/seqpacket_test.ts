import { assert, assertEquals, assertGreater, assertThrows } from "@std/assert";
import { VsockDevice } from "../../device/vsock/device.ts";
import { LoopbackHost } from "../../device/vsock/loopback.ts";
import type { LoopbackMessages } from "../../device/vsock/loopback_messages.ts";
import type { GuestConnection } from "./guest_connection.ts";
import { InProcessGuest } from "./in_process.ts";
import type { VsockDriverOptions } from "./driver_options.ts";
import { OP_RW, SEQ_EOM, TYPE_SEQPACKET } from "./vsock_header.ts";

const SEQPACKET = { type: "seqpacket" } as const;

/** A guest and a host side, and between them what a test connects. */
class Machine {
  readonly host: LoopbackHost;
  readonly vsock: VsockDevice;
  readonly guest: InProcessGuest;

  constructor(
    ring: "split" | "packed",
    bufAlloc = 256 * 1024,
    driver: Partial<VsockDriverOptions> = {},
  ) {
    this.host = new LoopbackHost({
      schedule: (work) => this.guest.schedule(work),
    });
    this.vsock = new VsockDevice({ guestCid: 3, host: this.host, bufAlloc });
    this.guest = new InProcessGuest({ device: this.vsock, ring, driver });
    this.host.attach(this.vsock);
  }

  byGuest(): { guest: GuestConnection; host: LoopbackMessages } {
    const listener = this.host.listen(1234, SEQPACKET);
    const guest = this.guest.driver.connect(1234, SEQPACKET);
    this.guest.run();
    const host = listener.tryAccept()!;
    listener.close();
    return { guest, host };
  }

  async byHost(): Promise<{ guest: GuestConnection; host: LoopbackMessages }> {
    const listener = this.guest.driver.listen(99, 1, SEQPACKET);
    const connecting = this.host.connect(99, SEQPACKET);
    this.guest.run();
    const host = await connecting;
    return { guest: listener.accept()!, host };
  }
}

/** A message of `length` bytes that no other has. */
function message(length: number, seed: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let x = seed + 1;
  for (let i = 0; i < length; i++) {
    x = Math.imul(x ^ x >>> 15, 0x2c1b3c6d) + i;
    bytes[i] = x >>> 24;
  }
  return bytes;
}

const LENGTHS = [
  ...[0, 1, 2, 43, 44, 45, 3731, 3732, 3733, 7464, 7465, 65_535, 65_536],
  ...[65_537, 131_072, 200_000, 262_143, 262_144],
];

for (const ring of ["split", "packed"] as const) {
  for (const by of ["guest", "host"] as const) {
    Deno.test(`Seqpackets keep their boundaries in both directions, connected by the ${by} (${ring})`, async () => {
      const machine = new Machine(ring);
      const { guest, host } = by === "guest"
        ? machine.byGuest()
        : await machine.byHost();
      const up = LENGTHS.map((length) => message(length, length));
      const down = LENGTHS.map((length) => message(length, length + 7));
      let sentUp = 0;
      let sentDown = 0;
      const gotUp: Uint8Array[] = [];
      const gotDown: Uint8Array[] = [];
      for (let idle = 0; idle < 3; idle++) {
        while (sentUp < up.length && guest.sendMessage(up[sentUp]!)) sentUp++;
        while (sentDown < down.length && host.trySend(down[sentDown]!)) {
          sentDown++;
        }
        machine.guest.run();
        for (let got = host.tryReceive(); got; got = host.tryReceive()) {
          gotUp.push(got.bytes);
          assert(!got.endOfRecord);
          idle = 0;
        }
        for (let got = guest.readMessage(); got; got = guest.readMessage()) {
          gotDown.push(got.bytes);
          assert(!got.endOfRecord);
          idle = 0;
        }
      }
      assertEquals(gotUp.map(({ length }) => length), LENGTHS);
      assertEquals(gotUp, up);
      assertEquals(gotDown.map(({ length }) => length), LENGTHS);
      assertEquals(gotDown, down);
      // An orderly end.
      guest.close();
      machine.guest.run();
      assertEquals(await host.receive(), null);
      host.close();
      machine.guest.run();
      assertEquals(machine.vsock.connectionCount, 0);
      assertEquals(machine.guest.driver.connections, 0);
    });
  }

  Deno.test(`Seqpackets carry ends of records (${ring})`, () => {
    const machine = new Machine(ring);
    const { guest, host } = machine.byGuest();
    const records = [false, true, false, false, true];
    for (const [i, end] of records.entries()) {
      guest.sendMessage(message(5000 * i, i), end);
      host.trySend(message(5000 * i, i), { endOfRecord: end });
    }
    machine.guest.run();
    for (const [i, end] of records.entries()) {
      const up = host.tryReceive()!;
      const down = guest.readMessage()!;
      assertEquals([up.endOfRecord, down.endOfRecord], [end, end]);
      assertEquals([up.bytes.length, down.bytes.length], [5000 * i, 5000 * i]);
    }
  });

  Deno.test(`LoopbackMessages.trySend() refuses what the guest can never take (${ring})`, () => {
    const machine = new Machine(ring, 256 * 1024, { bufAlloc: 1000 });
    const { guest, host } = machine.byGuest();
    assertEquals(host.maxMessageBytes, 1000);
    assertThrows(() => host.trySend(new Uint8Array(1001)), RangeError, "1000");
    assert(host.trySend(new Uint8Array(1000)));
    machine.guest.run();
    assertEquals(guest.readMessage()!.bytes.length, 1000);
    assertThrows(() => guest.sendMessage(new Uint8Array(1001)), RangeError);
    assert(guest.sendMessage(new Uint8Array(1000)));
    machine.guest.run();
    assertEquals(host.tryReceive()!.bytes.length, 1000);
  });

  Deno.test(`Seqpackets go on over a snapshot in the middle of messages (${ring})`, () => {
    const machine = new Machine(ring);
    const { guest, host } = machine.byGuest();
    // Nobody reads: both ends hold whole messages, and parts.
    const lengths = [0, 100_000, 150_000, 90_000, 1, 70_000, 120_000];
    let up = 0;
    let down = 0;
    const feed = (): void => {
      while (
        up < lengths.length && guest.sendMessage(message(lengths[up]!, up))
      ) {
        up++;
      }
      while (
        down < lengths.length && host.trySend(message(lengths[down]!, down))
      ) down++;
      machine.guest.run();
    };
    for (let i = 0; i < 3; i++) feed();
    assert(guest.sending);

    const state = JSON.parse(JSON.stringify(machine.host.save()));
    machine.host.detach();
    const newHost = new LoopbackHost({
      schedule: (work) => machine.guest.schedule(work),
    });
    newHost.restore(state);
    const newDevice = new VsockDevice({ guestCid: 3, host: newHost });
    const snapshot = machine.guest.migrate(newDevice);
    newHost.attach(newDevice);
    const saved = (snapshot.model as unknown as {
      connections: {
        outgoing: unknown;
        messages: number[];
        buffered: string;
      }[];
    }).connections[0]!;
    assert(saved.outgoing !== null, "a message to the guest is under way");
    assertGreater(saved.buffered.length, 0);

    const newEnd = newHost.messageConnections[0]!;
    const got: [number, number] = [0, 0];
    for (let idle = 0; idle < 3; idle++) {
      while (
        up < lengths.length && guest.sendMessage(message(lengths[up]!, up))
      ) {
        up++;
      }
      while (
        down < lengths.length && newEnd.trySend(message(lengths[down]!, down))
      ) down++;
      machine.guest.run();
      for (let one = newEnd.tryReceive(); one; one = newEnd.tryReceive()) {
        assertEquals(one.bytes, message(lengths[got[0]]!, got[0]) as never);
        got[0]++;
        idle = 0;
      }
      for (let one = guest.readMessage(); one; one = guest.readMessage()) {
        assertEquals(one.bytes, message(lengths[got[1]]!, got[1]) as never);
        got[1]++;
        idle = 0;
      }
    }
    assertEquals(got, [lengths.length, lengths.length]);
  });
}

Deno.test("VsockDriver.connect() refuses a seqpacket socket that was not negotiated", () => {
  const host = new LoopbackHost({ schedule: (work) => guest.schedule(work) });
  const device = new VsockDevice({ guestCid: 3, host, seqpackets: false });
  const guest = new InProcessGuest({ device });
  host.attach(device);
  assertThrows(() => guest.driver.connect(1, SEQPACKET), TypeError);
  assertThrows(() => guest.driver.listen(1, 1, SEQPACKET), TypeError);
});

Deno.test("LoopbackHost.connect() rejects for a guest without seqpackets, or with a stream's listener", async () => {
  for (const seqpackets of [false, true]) {
    const host = new LoopbackHost({ schedule: (work) => guest.schedule(work) });
    const device = new VsockDevice({ guestCid: 3, host });
    const guest = new InProcessGuest({ device, seqpackets });
    host.attach(device);
    guest.driver.listen(7);
    const failed = host.connect(7, SEQPACKET).then(() => "", String);
    guest.run();
    const words = seqpackets ? "the guest refused" : "no seqpacket sockets";
    assert((await failed).includes(words), await failed);
  }
});

Deno.test("VsockDevice marks the end of a message on its last packet only", () => {
  const machine = new Machine("split", 4096, { strict: false });
  const { guest, host } = machine.byGuest();
  machine.guest.driver.claimPort(guest.localPort);
  host.trySend(new Uint8Array(5000).subarray(0, 4096));
  machine.guest.run();
  const flags = machine.guest.driver.rawPackets.map(({ header }) => [
    header.type,
    header.op,
    header.flags,
    header.len,
  ]);
  assertEquals(flags, [
    [TYPE_SEQPACKET, OP_RW, 0, 3732],
    [TYPE_SEQPACKET, OP_RW, SEQ_EOM, 364],
  ]);
});
