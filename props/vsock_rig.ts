import { SnapshotError } from "../device/snapshot.ts";
import { VsockDevice } from "../device/vsock/device.ts";
import { type LoopbackConn, LoopbackHost } from "../device/vsock/loopback.ts";
import type {
  LoopbackMessage,
  LoopbackMessages,
} from "../device/vsock/loopback_messages.ts";
import {
  InProcessGuest,
  RX_LAYOUT_LINUX_6,
  RX_LAYOUT_LINUX_OLD,
  RX_LAYOUT_ONE_PIECE,
  type SendLayout,
} from "./guest/mod.ts";
import type { QueueRun } from "./queue_steps.ts";
import { SlowHost } from "./slow_host.ts";
import { randomBelow } from "./race.ts";
import { expectSame, Violation } from "./violation.ts";

/** Layouts of receive buffers, by name. */
export const RX_LAYOUTS: Readonly<
  Record<"3776" | "44+4096" | "4140" | "20+30+100" | "30+60", readonly number[]>
> = {
  "3776": RX_LAYOUT_LINUX_6,
  "44+4096": RX_LAYOUT_LINUX_OLD,
  "4140": RX_LAYOUT_ONE_PIECE,
  "20+30+100": [20, 30, 100],
  "30+60": [30, 60],
};

/** How packets from the guest are cut into descriptors: four at most, as many as a queue has at least. */
export const TX_LAYOUTS: Readonly<
  Record<"44" | "20+24" | "joined" | "10+34 joined" | "halves", SendLayout>
> = {
  "44": {},
  "20+24": { header: [20, 24] },
  joined: { joined: true },
  "10+34 joined": { header: [10, 34], joined: true },
  halves: { header: [1, 43] },
};

/** What guest and device are made with. */
export type VsockSetup = {
  format: "split" | "packed";
  /** Descriptors of each queue. */
  size: number;
  eventIdx: boolean;
  indirect: boolean;
  rx: keyof typeof RX_LAYOUTS;
  tx: keyof typeof TX_LAYOUTS;
  /** Most bytes of payload that the guest puts into a packet. */
  maxPayload: number;
  /** Receive buffers of the guest's streams and the device's, in bytes. */
  guestBuffer: number;
  deviceBuffer: number;
  /** Bytes that a host program lets wait before it has read them. */
  hostRoom: number;
  /** Connections that the device takes. */
  maxConnections: number;
  /** Connections that wait for the guest to accept them. */
  backlog: number;
  /** The guest has no seqpackets. False unless told. */
  streamsOnly?: boolean;
};

/** What is wrong with a snapshot, in words. */
export function refusal(work: () => unknown): string {
  try {
    work();
    return "taken";
  } catch (error) {
    if (error instanceof SnapshotError) return error.code;
    throw new Violation("snapshot", `a spoiled snapshot threw ${error}`);
  }
}

/** Changes one value anywhere in plain data. */
export function spoil(
  value: unknown,
  pick: (below: number) => number,
): unknown {
  const places: [Record<string, unknown>, string][] = [];
  const walk = (one: unknown): void => {
    if (typeof one !== "object" || one === null) return;
    for (const key of Object.keys(one)) {
      places.push([one as Record<string, unknown>, key]);
      walk((one as Record<string, unknown>)[key]);
    }
  };
  walk(value);
  const [owner, key] = places[pick(places.length)]!;
  const before = owner[key];
  if (Array.isArray(before) && before.length > 0 && pick(2) === 0) {
    before.push(before[0]);
  } else {
    const others = [-1, 0, 1, 2 ** 32, 1.5, null, "", "AAAA", [], {}, true];
    owner[key] = others[pick(others.length)];
  }
  return value;
}

/** Guest memory for send buffers of this many bytes in all. */
function memoryFor(bytes: number): number {
  return (1 << 20) + 2 * bytes;
}

/** A guest with its device and its host, with a clock of their own. */
export class VsockRig {
  /** Milliseconds of the clock. */
  now = 0;
  /** Where host programs are; another one where they have moved with their device. */
  host: LoopbackHost;
  /** The guest. */
  readonly guest: InProcessGuest;
  /** The device; another one after each migration. */
  device: VsockDevice;
  readonly #setup: VsockSetup;
  /** What stands between the device and its host programs. */
  readonly slow: SlowHost;
  /** Packets from the device that its guest's stack has not counted. */
  taken = 0;

  /** @param setup What it is made with. */
  constructor(setup: VsockSetup) {
    this.#setup = setup;
    const { format, size, eventIdx, indirect, rx, tx, guestBuffer } = setup;
    const { maxPayload } = setup;
    this.host = new LoopbackHost({
      schedule: (work) => this.guest.schedule(work),
    });
    this.slow = new SlowHost(this.host, setup.hostRoom);
    this.device = this.#newDevice();
    this.guest = new InProcessGuest({
      device: this.device,
      ring: format,
      queueSize: size,
      eventIdx,
      indirectEntries: indirect ? 4 : 0,
      seqpackets: setup.streamsOnly !== true,
      memoryBytes: memoryFor(maxPayload * size),
      driver: {
        rxLayout: RX_LAYOUTS[rx],
        // Without tables a buffer takes as many descriptors as it has segments.
        rxBuffers: indirect ? size : Math.floor(size / RX_LAYOUTS[rx].length),
        txLayout: tx === "halves"
          ? { ...TX_LAYOUTS[tx], segmentBytes: maxPayload / 2 }
          : TX_LAYOUTS[tx],
        maxPayload,
        bufAlloc: guestBuffer,
        now: () => this.now,
        strict: false,
      },
    });
    this.host.attach(this.slow.before(this.device));
  }

  /**
   * Moves the guest to another device. Its host programs stay where they are, move to another host side, or are
   * lost. Returns what those that moved had before and have now.
   *
   * @throws {Violation} when saving changes what is saved, or the other device is not where this one was.
   */
  migrate(
    programs: "stay" | "move" | "are lost" = "stay",
  ): [before: object, after: object][] {
    const { guest } = this;
    const saved = JSON.stringify(guest.virtio.save());
    const again = JSON.stringify(guest.virtio.save());
    expectSame("snapshot", "what is saved twice", again, saved);
    this.host.detach();
    this.slow.forgetRequests();
    const ends = programs === "move" ? this.#moveHost() : [];
    if (programs === "are lost") this.#loseHost();
    this.device = this.#newDevice();
    this.host.attach(this.slow.before(this.device));
    const moved = JSON.stringify(guest.migrate(this.device));
    expectSame("snapshot", "what was moved", moved, saved);
    // Of a program that waits for the guest's answer nothing is saved.
    const whole = programs === "stay" ||
      (programs === "move" && !saved.includes('"asking-guest"'));
    if (whole) {
      const restored = JSON.stringify(guest.virtio.save());
      expectSame("snapshot", "what was restored", restored, saved);
    }
    return ends;
  }

  #loseHost(): void {
    this.host = new LoopbackHost({
      schedule: (work) => this.guest.schedule(work),
    });
    this.slow.moveTo(this.host, []);
  }

  #moveHost(): [before: object, after: object][] {
    const before = [...this.host.connections, ...this.host.messageConnections];
    const saved = JSON.stringify(this.host.save());
    this.host = new LoopbackHost({
      schedule: (work) => this.guest.schedule(work),
    });
    const streams = this.host.restore(JSON.parse(saved));
    const restored = JSON.stringify(this.host.save());
    expectSame("snapshot", "the programs' ends", restored, saved);
    const after = [...streams, ...this.host.messageConnections];
    const ends = before.map((one, i): [object, object] => [one, after[i]!]);
    this.slow.moveTo(this.host, ends);
    return ends;
  }

  /**
   * Offers a snapshot with one thing changed to another device and another host side, as `seed` chooses.
   *
   * @throws {Violation} when they do not say what is wrong with it, where they do not take it.
   */
  offerSpoiled(seed: number): string {
    const pick = randomBelow(seed);
    const device = spoil(JSON.parse(JSON.stringify(this.device.save())), pick);
    const host = spoil(JSON.parse(JSON.stringify(this.host.save())), pick);
    const other = this.#newDevice();
    const words = [
      refusal(() => other.prepareRestore(device)),
      refusal(() => new LoopbackHost({ schedule: () => {} }).restore(host)),
    ];
    expectSame("snapshot", "a device that refused", other.connectionCount, 0);
    return words.join("; ");
  }

  /** True where the guest has no seqpackets. */
  get streamsOnly(): boolean {
    return this.#setup.streamsOnly === true;
  }

  /** Notes what is known of the queues: of the guest's own, unless told. */
  tell(run: QueueRun): void {
    const { size, indirect, rx, tx } = this.#setup;
    const { driver } = this.guest;
    const { usedPackets, unusedPackets, pendingPackets, received } = driver;
    const taken = received.reduce((sum, count) => sum + count, this.taken);
    // Each is a descriptor at least.
    run.buffers = usedPackets + taken;
    if (usedPackets > size || taken > size) run.wrapped = true;
    if (pendingPackets > 0 || unusedPackets >= size) run.full = true;
    const pieces = TX_LAYOUTS[tx].header?.length ?? 1;
    if (
      indirect && (RX_LAYOUTS[rx].length > 1 && taken > 0 ||
        pieces > 1 && usedPackets > 0)
    ) run.indirect = true;
  }

  /** A host program reads what there is; null at the end. See `LoopbackConn.tryRead` for errors. */
  hostRead(conn: LoopbackConn, target: Uint8Array): number | null {
    const count = conn.tryRead(target);
    this.slow.wasRead(conn, count ?? 0);
    this.guest.wake();
    return count;
  }

  /** A host program reads the `count` bytes that there are, and hears how many later. */
  hostReadLater(conn: LoopbackConn, target: Uint8Array, count: number): void {
    conn.read(target).catch(() => {});
    this.slow.wasRead(conn, count);
    this.guest.wake();
  }

  /** A host program receives the next message; null where there is none. See `LoopbackMessages.tryReceive`. */
  hostReceive(program: LoopbackMessages): LoopbackMessage | null {
    const message = program.tryReceive();
    if (message !== null) {
      this.slow.wasReceived(program, message.bytes.length);
      this.guest.wake();
    }
    return message;
  }

  /** Lets time pass, for the device and where told for the guest. */
  passTime(ms: number, guestToo: boolean): void {
    this.now += ms;
    this.device.expire(this.now);
    if (guestToo) this.guest.driver.expire(this.now);
    this.guest.wake();
  }

  #newDevice(): VsockDevice {
    const { deviceBuffer, maxConnections } = this.#setup;
    return new VsockDevice({
      guestCid: 3,
      host: this.slow,
      bufAlloc: deviceBuffer,
      maxConnections,
      now: () => this.now,
    });
  }
}
