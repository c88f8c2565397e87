import { assert, assertEquals, assertGreater, assertThrows } from "@std/assert";
import { Diagnostics } from "../device/diagnostics.ts";
import type { EmulatorOptions } from "../device/emulator.ts";
import { VIRTIO_F_QUEUE_STATE } from "../device/transport_features.ts";
import {
  VIRTIO_CONFIG_S_NEEDS_RESET,
  VirtioDevice,
} from "../device/virtio_device.ts";
import { VsockDevice } from "../device/vsock/device.ts";
import { type LoopbackConn, LoopbackHost } from "../device/vsock/loopback.ts";
import { GuestMemory } from "../ring/memory.ts";
import type { RingFormat } from "../ring/queue.ts";
import type { QueueStateWords } from "../ring/state.ts";
import {
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
} from "../ring/virtio_ring.ts";
import { CheckedSink, CheckedSource } from "./guest/checked_stream.ts";
import { layOutQueue, makeDriverQueue } from "./guest/driver_queue.ts";
import type { GuestConnection } from "./guest/guest_connection.ts";
import { MemoryArena } from "./guest/memory_arena.ts";
import {
  featureBits,
  type QueueAreas,
  type RegisterDriver,
} from "./guest/register_driver.ts";
import { initialWords, type RigTransport } from "./guest/register_rig.ts";
import { VsockDriver } from "./guest/vsock_driver.ts";

const QUEUES = 3;
const INDIRECT_ENTRIES = 20;
const MEMORY_START = 0x8000_0000;
const MEMORY_BYTES = 24 << 20;

/** Plugs a device into registers. */
export type Plug<T extends RigTransport> = (
  virtio: VirtioDevice,
  emulator: EmulatorOptions,
) => T;

/** A driver of registers, which may be others each time that it is asked. */
export type Drive<T extends RigTransport> = (
  transport: () => T,
) => RegisterDriver;

/** A guest that knows its vsock device by registers and memory only. */
class Machine<T extends RigTransport> {
  readonly diagnostics = new Diagnostics();
  readonly host: LoopbackHost;
  vsock: VsockDevice;
  virtio: VirtioDevice;
  transport: T;
  readonly registers: RegisterDriver;
  readonly areas: QueueAreas[];
  readonly driver: VsockDriver;
  memory: GuestMemory;
  edges = 0;
  readonly #features: bigint;
  readonly #works: (() => void)[] = [];
  readonly #plug: Plug<T>;
  #signalled = false;

  constructor(format: RingFormat, plug: Plug<T>, drive: Drive<T>) {
    this.#plug = plug;
    this.host = new LoopbackHost({
      schedule: (work) => this.#works.push(work),
    });
    const buffer = new ArrayBuffer(MEMORY_BYTES);
    this.memory = new GuestMemory([
      { guestAddress: MEMORY_START, size: MEMORY_BYTES, buffer },
    ]);
    [this.vsock, this.virtio, this.transport] = this.#makeDevice();
    this.registers = drive(() => this.transport);
    const arena = new MemoryArena(this.memory);
    this.areas = [256, 256, 8].map((size) => layOutQueue(arena, format, size));
    this.#features = featureBits(
      VIRTIO_F_VERSION_1,
      VIRTIO_F_EVENT_IDX,
      VIRTIO_F_INDIRECT_DESC,
      VIRTIO_F_QUEUE_STATE,
      ...(format === "packed" ? [VIRTIO_F_RING_PACKED] : []),
    );
    const config = { eventIdx: true, indirect: true };
    const [rx, tx, event] = this.areas.map((areas, index) =>
      makeDriverQueue(
        arena,
        format,
        { ...areas, ...config },
        index === 2 ? 0 : INDIRECT_ENTRIES,
      )
    );
    assertEquals(this.registers.probe(), 19);
    this.start(Array.from({ length: QUEUES }, () => initialWords(format)));
    this.driver = new VsockDriver({
      rx: rx!,
      tx: tx!,
      event: event!,
      arena,
      readCid: () =>
        new DataView(this.registers.readConfig(8).buffer).getUint32(0, true),
      kick: (queue) => this.registers.kick(queue),
    });
    this.driver.poll();
  }

  #makeDevice(): [VsockDevice, VirtioDevice, T] {
    const vsock = new VsockDevice({
      guestCid: 7,
      host: this.host,
      diagnostics: this.diagnostics,
    });
    this.host.attach(vsock);
    const virtio = new VirtioDevice(vsock, {
      queueState: true,
      diagnostics: this.diagnostics,
    });
    vsock.attach(virtio);
    const transport = this.#plug(virtio, {
      memory: () => this.memory,
      interrupt: (level) => {
        if (level && !this.#signalled) this.edges++;
        this.#signalled = level;
      },
    });
    return [vsock, virtio, transport];
  }

  /**
   * Another device and other registers, from snapshots that have been text, for the same host programs; returns
   * how many buffers were in flight.
   */
  migrate(): number {
    const registers = JSON.stringify(this.transport.save());
    const saved = this.virtio.save();
    const device = JSON.stringify(saved);
    this.virtio.connect(null);
    this.host.detach();
    [this.vsock, this.virtio, this.transport] = this.#makeDevice();
    this.transport.restore(JSON.parse(registers));
    this.virtio.restore(JSON.parse(device));
    return saved.queues.reduce(
      (sum, { state }) => sum + (state?.inFlight.length ?? 0),
      0,
    );
  }

  /** From reset to DRIVER_OK, as a driver of the facility does. */
  start(states: readonly QueueStateWords[]): void {
    const { registers } = this;
    registers.reset();
    assertEquals(
      registers.offeredFeatures() & this.#features,
      this.#features,
    );
    assert(registers.accept(this.#features));
    for (const [index, areas] of this.areas.entries()) {
      assert(registers.setupQueue(index, areas));
      registers.setQueueState(index, states[index]!);
    }
    registers.driverOk();
    assertEquals(registers.status & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
  }

  /** Save, reset, get, ACKNOWLEDGE, set, DRIVER_OK: between any two steps of the traffic. */
  saveAndRestore(): QueueStateWords[] {
    this.registers.reset();
    const states = this.areas.map((_, index) => {
      const words = this.registers.queueState(index);
      assert(words !== null);
      return words;
    });
    this.start(JSON.parse(JSON.stringify(states)));
    return states;
  }

  /** One pass of whoever has something to do; false where nobody has. */
  step(): boolean {
    let busy = false;
    for (const work of this.#works.splice(0)) {
      work();
      busy = true;
    }
    this.transport.syncMemory();
    if (this.vsock.pending) busy = true;
    this.vsock.process();
    if (this.#signalled) {
      this.registers.takeInterrupt();
      // A message has no level; a line is down by now.
      this.#signalled = false;
      this.driver.poll();
      busy = true;
    }
    return busy;
  }

  run(): void {
    // What the guest's programs did since the last time.
    this.driver.poll();
    while (this.step());
  }
}

/** Two connections, one from either end. */
async function connect(
  machine: Machine<RigTransport>,
): Promise<{ near: GuestConnection; far: LoopbackConn }[]> {
  const listener = machine.host.listen(1234);
  const first = machine.driver.connect(1234);
  machine.run();
  const accepted = listener.tryAccept();
  assert(accepted !== null);
  const inGuest = machine.driver.listen(80);
  const connecting = machine.host.connect(80);
  machine.run();
  const second = await connecting;
  const near = inGuest.accept();
  assert(near !== null);
  listener.close();
  inGuest.close();
  return [{ near: first, far: accepted }, { near, far: second }];
}

/** Moves `total` bytes each way on each pair, and compares them all. */
function exchange(
  machine: Machine<RigTransport>,
  pairs: { near: GuestConnection; far: LoopbackConn }[],
  total: number,
  between: (round: number) => void,
): void {
  const streams = pairs.flatMap(({ near, far }, i) => [
    {
      source: new CheckedSource(2 * i + 1, total),
      sink: new CheckedSink(2 * i + 1, total),
      send: (bytes: Uint8Array) => near.send(bytes),
      read: (target: Uint8Array) => far.tryRead(target) ?? 0,
    },
    {
      source: new CheckedSource(2 * i + 2, total),
      sink: new CheckedSink(2 * i + 2, total),
      send: (bytes: Uint8Array) => far.tryWrite(bytes),
      read: (target: Uint8Array) => near.read(target),
    },
  ]);
  for (let round = 0;; round++) {
    let moved = 0;
    for (const { source, send } of streams) moved += source.pump(send);
    between(round);
    machine.run();
    for (const { sink, read } of streams) moved += sink.pump(read);
    if (moved === 0) break;
  }
  for (const { sink } of streams) {
    assertEquals([sink.wrongAt, sink.received], [-1, total]);
    assert(sink.done);
  }
}

/**
 * Registers, by `test`, the tests of vsock streams through the registers that `plug` makes and `drive` drives.
 */
export function testStreams<T extends RigTransport>(
  test: (name: string, body: () => void | Promise<void>) => void,
  name: string,
  plug: Plug<T>,
  drive: Drive<T>,
): void {
  for (const format of ["split", "packed"] as const) {
    test(`${name} carries vsock streams through registers only: ${format}`, async () => {
      const machine = new Machine(format, plug, drive);
      machine.run();
      const pairs = await connect(machine);
      exchange(machine, pairs, 1_000_003, () => {});
      assertGreater(machine.edges, 5);
      for (const { near } of pairs) near.close();
      machine.run();
      assertEquals(machine.vsock.connectionCount, 0);
      assertEquals([...machine.diagnostics.counters], []);
    });

    test(`${name} saves, resets and restores in the middle of vsock traffic, and no byte is lost: ${format}`, async () => {
      const machine = new Machine(format, plug, drive);
      machine.run();
      const pairs = await connect(machine);
      let restores = 0;
      const seen = new Set<string>();
      exchange(machine, pairs, 6_000_003, (round) => {
        machine.driver.poll();
        // At different depths of what the device has seen of the driver's work.
        for (let step = 0; step < round % 5; step++) machine.step();
        seen.add(JSON.stringify(machine.saveAndRestore()));
        restores++;
      });
      assertGreater(restores, 10);
      assertGreater(seen.size, 8);
      assertEquals([...machine.diagnostics.counters], []);
      for (const { far } of pairs) far.close();
      machine.run();
      assertEquals(machine.vsock.connectionCount, 0);
    });

    test(`${name} restores while guest memory moves: ${format}`, async () => {
      const machine = new Machine(format, plug, drive);
      machine.run();
      const pairs = await connect(machine);
      const [region] = machine.memory.regions;
      exchange(machine, pairs, 1_000_003, (round) => {
        machine.driver.poll();
        if (round % 2 === 0) machine.saveAndRestore();
        machine.memory = new GuestMemory([{
          guestAddress: MEMORY_START,
          size: MEMORY_BYTES,
          buffer: region!.bytes.buffer,
        }]);
        machine.step();
      });
      assertEquals([...machine.diagnostics.counters], []);
    });

    test(`${name} drops the streams when a driver starts anew: ${format}`, async () => {
      const machine = new Machine(format, plug, drive);
      machine.run();
      const [pair] = await connect(machine);
      // The guest boots again: new rings, and the states of new ones.
      machine.registers.reset();
      assertEquals(machine.vsock.connectionCount, 2);
      for (
        const { size, descriptorArea, driverArea, deviceArea } of machine.areas
      ) {
        machine.memory.bytes(descriptorArea, 16 * size).fill(0);
        machine.memory.bytes(driverArea, 4).fill(0);
        machine.memory.bytes(deviceArea, format === "split" ? 6 + 8 * size : 4)
          .fill(0);
      }
      machine.start(machine.areas.map(() => initialWords(format)));
      assertEquals(machine.vsock.connectionCount, 0);
      assertThrows(() => pair!.far.tryWrite(new Uint8Array(1)), Error);
    });

    test(`${name} goes on from a snapshot of the whole device: ${format}`, async () => {
      const machine = new Machine(format, plug, drive);
      machine.run();
      const pairs = await connect(machine);
      exchange(machine, pairs, 300_007, () => {});
      for (const { near } of pairs) near.close();
      machine.run();
      const other = new Machine(format, plug, drive);
      other.registers.reset();
      other.registers.accept(featureBits(VIRTIO_F_VERSION_1));
      other.registers.reset();
      other.memory = machine.memory;
      other.transport.syncMemory();
      const before = other.edges;
      other.transport.restore(
        JSON.parse(JSON.stringify(machine.transport.save())),
      );
      other.virtio.restore(JSON.parse(JSON.stringify(machine.virtio.save())));
      assertEquals(other.registers.status, machine.registers.status);
      for (const index of [0, 1, 2]) assert(other.registers.queueReady(index));
      // The driver is told to look, and its queues stand where they stood.
      assertGreater(other.edges, before);
      machine.registers.reset();
      other.registers.reset();
      for (const index of [0, 1, 2]) {
        const words = machine.registers.queueState(index);
        assert(words !== null);
        assertEquals(other.registers.queueState(index), words);
      }
    });

    test(`${name} moves to another machine in mid-traffic, and no stream notices: ${format}`, async () => {
      const machine = new Machine(format, plug, drive);
      machine.run();
      const pairs = await connect(machine);
      let moves = 0;
      let inFlight = 0;
      exchange(machine, pairs, 3_000_017, (round) => {
        machine.driver.poll();
        for (let step = 0; step < round % 5; step++) machine.step();
        inFlight += machine.migrate();
        moves++;
      });
      assertGreater(moves, 10);
      assertGreater(inFlight, 0);
      assertEquals([...machine.diagnostics.counters], []);
      for (const { near } of pairs) near.close();
      machine.run();
      assertEquals(machine.vsock.connectionCount, 0);
    });
  }
}
