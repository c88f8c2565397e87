import {
  assert,
  assertEquals,
  assertGreater,
  assertLess,
  assertRejects,
  assertThrows,
} from "@std/assert";
import type { VirtioDevice } from "../../device/virtio_device.ts";
import { Chain } from "../../ring/chain.ts";
import { GuestMemory } from "../../ring/memory.ts";
import type { DeviceQueue } from "../../ring/queue.ts";
import { VsockDevice } from "../../device/vsock/device.ts";
import {
  type LoopbackConn,
  LoopbackHost,
} from "../../device/vsock/loopback.ts";
import { Diagnostics } from "../../device/diagnostics.ts";
import { CheckedSink, CheckedSource } from "./checked_stream.ts";
import type { GuestConnection } from "./guest_connection.ts";
import {
  InProcessGuest,
  type InProcessOptions,
  type PolledDevice,
} from "./in_process.ts";
import { OP_RST, OP_RW, SHUTDOWN_SEND } from "./vsock_header.ts";

type Machine = {
  guest: InProcessGuest;
  host: LoopbackHost;
  vsock: VsockDevice;
  diagnostics: Diagnostics;
};

function machine(
  options: Omit<InProcessOptions, "device"> = {},
  bufAlloc?: number,
): Machine {
  const host = new LoopbackHost({ schedule: (work) => guest.schedule(work) });
  const diagnostics = new Diagnostics();
  const vsock = new VsockDevice({
    guestCid: 7,
    host,
    diagnostics,
    ...(bufAlloc === undefined ? {} : { bufAlloc }),
  });
  host.attach(vsock);
  const guest = new InProcessGuest({ device: vsock, ...options });
  return { guest, host, vsock, diagnostics };
}

/** A connection that the guest opens. */
function pair(
  { guest, host }: Machine,
  port = 1234,
): { near: GuestConnection; far: LoopbackConn } {
  const listener = host.listen(port);
  const near = guest.driver.connect(port);
  guest.run();
  const far = listener.tryAccept();
  listener.close();
  assert(far !== null);
  assertEquals(near.state, "connected");
  return { near, far };
}

/** Moves a checked stream each way at once; `between` runs after each round. */
function exchange(
  { guest }: Machine,
  { near, far }: { near: GuestConnection; far: LoopbackConn },
  total: number,
  between: (round: number) => void = () => {},
): void {
  const up = [new CheckedSource(1, total), new CheckedSink(1, total)] as const;
  const down = [
    new CheckedSource(2, total),
    new CheckedSink(2, total),
  ] as const;
  for (let round = 0; !up[1].done || !down[1].done; round++) {
    let progress = up[0].pump((bytes) => near.send(bytes)) +
      down[0].pump((bytes) => far.tryWrite(bytes));
    between(round);
    guest.run();
    progress += up[1].pump((target) => far.tryRead(target) ?? 0) +
      down[1].pump((target) => near.read(target));
    assertEquals([up[1].wrongAt, down[1].wrongAt], [-1, -1]);
    assertGreater(progress, 0, "the traffic stands still");
  }
}

const CASES: [name: string, options: Omit<InProcessOptions, "device">][] = [
  ["split", {}],
  ["packed", { ring: "packed" }],
  ["split without event index", { eventIdx: false }],
  ["packed without event index", { ring: "packed", eventIdx: false }],
  ["split without indirect descriptors", { indirectEntries: 0 }],
  ["packed without indirect descriptors", {
    ring: "packed",
    indirectEntries: 0,
    queueSize: 61,
  }],
  ["split over shared memory, two queues", { shared: true, eventQueue: false }],
  ["packed over shared memory, two queues", {
    ring: "packed",
    shared: true,
    eventQueue: false,
  }],
  ["split, rx of 44 + 4096, tx in pages", {
    driver: { rxLayout: [44, 4096], txLayout: { segmentBytes: 4096 } },
  }],
  ["packed, rx of 44 + 4096, tx in pages", {
    ring: "packed",
    driver: { rxLayout: [44, 4096], txLayout: { segmentBytes: 4096 } },
  }],
  ["split, header in pieces both ways", {
    driver: {
      rxLayout: [7, 30, 40, 1000],
      txLayout: { header: [1, 40, 3], joined: true, segmentBytes: 5000 },
      maxPayload: 20_000,
    },
  }],
  ["packed, header in pieces both ways", {
    ring: "packed",
    driver: {
      rxLayout: [7, 30, 40, 1000],
      txLayout: { header: [1, 40, 3], joined: true, segmentBytes: 5000 },
      maxPayload: 20_000,
    },
  }],
];

for (const [name, options] of CASES) {
  Deno.test(`InProcessGuest moves streams both ways: ${name}`, () => {
    const m = machine(options);
    const ends = pair(m);
    exchange(m, ends, 2_000_003);
    ends.near.close();
    m.guest.run();
    assertEquals(ends.near.closeReason, "shutdown");
    assertEquals(m.vsock.connectionCount, 0);
    assertEquals([...m.diagnostics.counters], []);
  });

  Deno.test(`InProcessGuest.saveResetRestore() loses nothing in mid-stream: ${name}`, () => {
    const m = machine(options);
    const ends = pair(m);
    let restores = 0;
    exchange(m, ends, 2_000_003, (round) => {
      // At different depths of what the device has seen of the driver's work.
      m.guest.driver.poll();
      for (let step = 0; step < round % 4; step++) m.guest.step();
      const states = m.guest.saveResetRestore();
      const format = options.ring ?? "split";
      assertEquals(
        states.map((state) => state.format === format).includes(false),
        false,
      );
      restores++;
    });
    assertGreater(restores, 5);
    assertEquals([...m.diagnostics.counters], []);
    ends.far.close();
    m.guest.run();
    assertEquals(ends.near.state, "closed");
  });
}

/** A device that keeps the packets it is sent and completes them late, in another order. */
class Hoarder implements PolledDevice {
  readonly deviceId = 19;
  readonly features = 0n;
  readonly maxQueueSizes: readonly number[] = [256, 256];
  /** The first payload byte of each packet that was completed. */
  readonly completed: number[] = [];
  /** Buffers that it lets go at the next pass. */
  release = 0;
  #virtio: VirtioDevice | null = null;
  #queue: DeviceQueue | null = null;
  #chain: Chain = new Chain(new GuestMemory([]));
  readonly #held: { token: number; byte: number }[] = [];

  attach(virtio: VirtioDevice): void {
    this.#virtio = virtio;
  }

  process(): boolean {
    const queue = this.#queue;
    if (queue === null) return false;
    const bytes = new Uint8Array(45);
    do {
      while (queue.pop(this.#chain)) {
        this.#chain.read(bytes);
        this.#held.push({ token: this.#chain.token, byte: bytes[44]! });
      }
    } while (queue.armKicks());
    for (; this.release > 0 && this.#held.length > 0; this.release--) {
      const at = (this.completed.length * 7) % this.#held.length;
      const { token, byte } = this.#held.splice(at, 1)[0]!;
      queue.push(token, 0);
      this.completed.push(byte);
    }
    queue.publish();
    if (queue.needsInterrupt()) this.#virtio?.interrupt(1);
    return false;
  }

  configSpace(): Uint8Array {
    return new Uint8Array([7, 0, 0, 0, 0, 0, 0, 0]);
  }

  queueStarted(index: number, queue: DeviceQueue): void {
    if (index === 1) this.#queue = queue;
  }

  queueStopped(index: number): void {
    // What it holds stays in flight, and comes again from the restored queue.
    if (index === 1) {
      this.#queue = null;
      this.#held.length = 0;
    }
  }

  memoryChanged(memory: GuestMemory): void {
    this.#chain = new Chain(memory);
  }

  featuresAccepted(): void {}
  memoryChanging(): void {}
  queueKicked(): void {}
  reset(): void {}
}

Deno.test("InProcessGuest.saveResetRestore() carries buffers in flight that complete out of order", () => {
  for (const ring of ["split", "packed"] as const) {
    for (const indirectEntries of [0, 20]) {
      const device = new Hoarder();
      const guest = new InProcessGuest({
        device,
        ring,
        indirectEntries,
        eventQueue: false,
        queueSize: 64,
      });
      const sends: { used: boolean }[] = [];
      let largest = 0;
      for (let byte = 0; byte < 250; byte++) {
        const raw = guest.driver.sendPacket(
          { op: OP_RW },
          new Uint8Array([byte]),
        );
        assert(raw !== null);
        sends.push(raw);
        device.release = byte % 9 === 8 ? 9 : 0;
        guest.wake();
        guest.run();
        if (byte % 5 !== 4) continue;
        const [, tx] = guest.saveResetRestore();
        assertEquals(
          tx!.inFlight.length,
          sends.filter(({ used }) => !used).length,
        );
        largest = Math.max(largest, tx!.inFlight.length);
      }
      device.release = 250;
      guest.wake();
      guest.run();
      assertGreater(largest, 5);
      assertEquals(sends.every(({ used }) => used), true);
      assertEquals(
        device.completed.toSorted((a, b) => a - b),
        Array.from({ length: 250 }, (_, i) => i),
      );
    }
  }
});

Deno.test("InProcessGuest suppresses notifications", () => {
  for (const ring of ["split", "packed"] as const) {
    const m = machine({ ring, driver: { maxPayload: 512 } });
    const ends = pair(m);
    exchange(m, ends, 4_000_000);
    const packets = m.guest.driver.usedPackets;
    assertGreater(packets, 7000);
    assertLess(m.guest.kicks, packets / 4);
  }
});

Deno.test("InProcessGuest accepts the features that it knows, whatever else is offered", () => {
  class Newer extends VsockDevice {
    override readonly features: bigint = 1n | 1n << 2n | 1n << 20n | 1n << 99n;
  }
  const host = new LoopbackHost({ schedule: (work) => guest.schedule(work) });
  const vsock = new Newer({ guestCid: 7, host });
  host.attach(vsock);
  const guest = new InProcessGuest({ device: vsock, ring: "packed" });
  const { offeredFeatures, features } = guest.virtio;
  assertEquals(offeredFeatures >> 99n, 1n);
  assertEquals(features, 1n | 1n << 28n | 1n << 29n | 1n << 32n | 1n << 34n);
  const listener = host.listen(5);
  const connection = guest.driver.connect(5);
  guest.run();
  assertEquals(connection.state, "connected");
  listener.close();
});

Deno.test("InProcessGuest refuses a device that is attached already", () => {
  const m = machine();
  assertThrows(
    () => new InProcessGuest({ device: m.vsock }),
    TypeError,
    "is attached",
  );
});

Deno.test("InProcessGuest carries connections that the host opens", async () => {
  const m = machine();
  await assertRejects(
    async () => {
      const connecting = m.host.connect(80);
      m.guest.run();
      await connecting;
    },
    Error,
    "refused",
  );
  const listener = m.guest.driver.listen(80);
  const connecting = m.host.connect(80);
  m.guest.run();
  const far = await connecting;
  const near = listener.accept();
  assert(near !== null);
  exchange(m, { near, far }, 300_000);
  near.shutdown(SHUTDOWN_SEND);
  m.guest.run();
  assertEquals(far.tryRead(new Uint8Array(1)), null);
  assertEquals(far.tryWrite(new Uint8Array(3)), 3);
  m.guest.run();
  assertEquals(near.available, 3);
  far.close();
  m.guest.run();
  assertEquals(near.read(new Uint8Array(9)), 3);
  m.guest.run();
  assertEquals([near.state, m.vsock.connectionCount], ["closed", 0]);
});

Deno.test("InProcessGuest refuses a connection to nobody at once", () => {
  const m = machine();
  const connection = m.guest.driver.connect(4321);
  m.guest.run();
  assertEquals(connection.closeReason, "refused");
});

Deno.test("InProcessGuest stands still without receive buffers and goes on with them", () => {
  for (const ring of ["split", "packed"] as const) {
    const m = machine({ ring, driver: { rxBuffers: 4 } });
    const ends = pair(m);
    m.guest.driver.rxPaused = true;
    assertEquals(ends.far.tryWrite(new Uint8Array(100_000)), 100_000);
    m.guest.run();
    assertEquals(m.guest.driver.postedBuffers, 0);
    const stuck = ends.near.available;
    assertLess(stuck, 4 * 3776);
    // Transmitting goes on meanwhile.
    assertEquals(ends.near.send(new Uint8Array(1000)), 1000);
    m.guest.run();
    assertEquals(ends.far.tryRead(new Uint8Array(2000)), 1000);
    m.guest.driver.rxPaused = false;
    m.guest.run();
    assertEquals(ends.near.available, 100_000);
  }
});

Deno.test("VsockDevice holds the guest to its credit and does not exceed the guest's", () => {
  const m = machine({ driver: { bufAlloc: 5000 } }, 3000);
  const ends = pair(m);
  // The host program's end takes 256 KiB; nobody reads there.
  const room = 262_144 + 3000;
  let sent = 0;
  for (let more = 1; more > 0;) {
    more = ends.near.send(new Uint8Array(10_000));
    sent += more;
    m.guest.run();
  }
  assertEquals(sent, room);
  assertEquals(ends.far.tryWrite(new Uint8Array(9000)), 9000);
  m.guest.run();
  assertEquals(ends.near.available, 5000);
  // A guest that sends more than it may is reset.
  m.guest.driver.sendPacket({
    op: OP_RW,
    srcPort: ends.near.localPort,
    dstPort: ends.near.peerPort,
  }, new Uint8Array(10));
  m.guest.run();
  assertEquals(ends.near.closeReason, "reset");
});

Deno.test("VsockDriver in raw mode sees the device's answer to a stranger", () => {
  for (const ring of ["split", "packed"] as const) {
    const m = machine({ ring });
    const { driver } = m.guest;
    driver.claimPort(99);
    driver.sendPacket(
      { op: OP_RW, srcPort: 99, dstPort: 1 },
      new Uint8Array(4),
    );
    driver.sendPacket({ op: OP_RST, srcPort: 99, dstPort: 2 });
    m.guest.run();
    assertEquals(driver.rawCompletions.map(({ usedLength }) => usedLength), [
      0,
      0,
    ]);
    assertEquals(
      driver.rawPackets.map(({ header }) => [header.op, header.srcPort]),
      [[OP_RST, 1]],
    );
  }
});

Deno.test("VsockDevice.transportReset() drops the guest's connections", () => {
  const m = machine();
  const ends = pair(m);
  m.vsock.transportReset();
  m.guest.run();
  assertEquals(ends.near.closeReason, "transport");
  assertEquals(m.vsock.connectionCount, 0);
});
