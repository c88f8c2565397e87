/**
 * What runs in the page, but for how it looks: a machine, its terminal, and programs that talk to it by vsock.
 *
 * Nothing moves but the machine by itself: the programs have a turn when {@link Session.pump} is called.
 *
 * @module
 */

import { base64, FieldReader, type Plain } from "../../../device/snapshot.ts";
import { featureMask } from "../../../device/virtio_device.ts";
import {
  LoopbackConn,
  type LoopbackListener,
} from "../../../device/vsock/loopback.ts";
import {
  VIRTIO_VSOCK_F_SEQPACKET,
  VSOCK_QUEUE_RX,
  VSOCK_QUEUE_TX,
} from "../../../device/vsock/virtio_vsock.ts";
import { Machine, type MachineOptions } from "../machine.ts";
import { CheckedStream, guestCounts } from "../streams.ts";
import { PacketLog } from "./packet_log.ts";
import { PacketTap, type RingPosition } from "./packet_tap.ts";
import { COLUMNS, ROWS, Screen } from "./screen.ts";

/** Whoever connects to this port gets back what it sends, in capitals. */
export const CAPITALS_PORT = 1234;
/** Port of the first of the checked streams. */
const STREAMS_PORT = 5000;
/** Bytes that the guest writes to a stream at once, at most. */
const STREAM_CHUNK = 4096;
/** Bytes that a stream moves each way in a turn: the machine has other things to do, too. */
const STREAM_TURN = 2048;
/** The same when the streams are about to end. */
const LAST_TURN = 65_536;
const BUFFER = 4096;
/** What is kept of the guest's words. */
const SAID = 20_000;
const FIRST_LINE =
  `stty echo columns ${COLUMNS} rows ${ROWS}; cd; setsid cttyhack sh`;

const FEATURES: readonly (readonly [number, string])[] = [
  [VIRTIO_VSOCK_F_SEQPACKET, "SEQPACKET"],
  [28, "INDIRECT_DESC"],
  [29, "EVENT_IDX"],
  [32, "VERSION_1"],
  [34, "RING_PACKED"],
  [35, "IN_ORDER"],
  [38, "NOTIFICATION_DATA"],
  [40, "RING_RESET"],
];

/** What the streams are doing. */
export type StreamsState = "none" | "opening" | "running" | "ending" | "ended";

/** What a connection to {@link CAPITALS_PORT} has received and not sent back. */
type Capitals = { conn: LoopbackConn; pending: Uint8Array<ArrayBuffer> };

/** A machine in a page. */
export class Session {
  /** The machine. */
  readonly machine: Machine;
  /** Its terminal. */
  readonly screen: Screen;
  /** Its packets. */
  readonly log: PacketLog;
  /** The page's ends of the checked streams. */
  streams: readonly CheckedStream[] = [];
  /** What they are doing. */
  streamsState: StreamsState = "none";
  /** What was wrong with streams that have ended; empty where both ends agree on each. */
  verdict: readonly string[] = [];

  readonly #tap: PacketTap;
  readonly #listener: LoopbackListener;
  #said = "";
  #capitals: Capitals[] = [];
  #held = true;

  private constructor(
    machine: Machine,
    screen: Screen,
    log: PacketLog,
    serial: { take: (byte: number) => void },
  ) {
    this.machine = machine;
    this.screen = screen;
    this.log = log;
    this.#tap = new PacketTap(
      machine.device.virtio,
      (direction, header) => this.log.add(direction, header),
    );
    serial.take = (byte) => {
      screen.write(byte);
      this.#said = (this.#said + String.fromCharCode(byte)).slice(-SAID);
    };
    this.#listener = machine.listen({ port: CAPITALS_PORT });
    this.#accept();
  }

  /** Makes one of a machine that has booted and has not begun to use its device; it gives a shell. */
  static async start(
    options: MachineOptions,
    booted: Uint8Array<ArrayBuffer>,
  ): Promise<Session> {
    const { session } = await Session.#make(options, booted);
    await session.resume();
    session.machine.type(`${FIRST_LINE}\n`);
    return session;
  }

  /**
   * Makes one that goes on where another was saved, here or in another page; {@link Session.resume} lets it.
   *
   * @throws {SnapshotError} when it is no such file.
   */
  static async restore(
    options: MachineOptions,
    file: Uint8Array<ArrayBuffer>,
  ): Promise<Session> {
    const { session, connections, programs } = await Session.#make(
      options,
      file,
      true,
    );
    try {
      session.#restore(programs!, connections);
      return session;
    } catch (error) {
      await session.close();
      throw error;
    }
  }

  static async #make(
    options: MachineOptions,
    file: Uint8Array<ArrayBuffer>,
    running = false,
  ): Promise<
    {
      session: Session;
      connections: LoopbackConn[];
      programs: FieldReader | null;
    }
  > {
    const serial = { take: (_: number): void => {} };
    const { machine, connections, programs } = await Machine.restore({
      ...options,
      serial: (byte) => serial.take(byte),
    }, file);
    try {
      const fields = running ? new FieldReader(programs, "programs") : null;
      const screen = new Screen((text) => machine.type(text));
      const log = fields === null
        ? new PacketLog()
        : PacketLog.restore(fields.any("packets"));
      if (fields !== null) {
        screen.restore(new FieldReader(fields.any("screen"), "screen"));
      }
      const session = new Session(machine, screen, log, serial);
      return { session, connections, programs: fields };
    } catch (error) {
      await machine.close();
      throw error;
    }
  }

  #restore(fields: FieldReader, connections: LoopbackConn[]): void {
    const find = (value: unknown): LoopbackConn => {
      const ports = new FieldReader(value, "ports");
      const hostPort = ports.u32("hostPort");
      const guestPort = ports.u32("guestPort");
      const conn = connections.find((conn) =>
        conn.hostPort === hostPort && conn.guestPort === guestPort
      );
      if (conn === undefined) throw ports.bad("hostPort", "of no connection");
      return conn;
    };
    this.#said = fields.string("said");
    this.streamsState = fields.oneOf(
      "streamsState",
      ["none", "running", "ending", "ended"] as const,
    );
    this.verdict = fields.array("verdict", 1000).map(String);
    this.streams = fields.array("streams", 100).map((saved) => {
      const stream = new FieldReader(saved, "stream");
      const ports = stream.any("ports");
      const conn = stream.boolean("ended") ? endedConn(ports) : find(ports);
      return CheckedStream.restore(saved, conn);
    });
    this.#capitals = fields.array("capitals", 1000).map((saved) => {
      const one = new FieldReader(saved, "capitals");
      return {
        conn: find(one.any("ports")),
        pending: one.bytes("pending", BUFFER),
      };
    });
  }

  // -- What there is to see --

  /** Names of the features that device and driver have agreed upon; empty before that. */
  get features(): string[] {
    const { features } = this.machine.device.virtio;
    return FEATURES
      .filter(([bit]) => (features & featureMask(bit)) !== 0n)
      .map(([, name]) => name);
  }

  /** Where the rings are. */
  get rings(): { rx: RingPosition | null; tx: RingPosition | null } {
    this.machine.device.pci.syncMemory();
    return {
      rx: this.#tap.position(VSOCK_QUEUE_RX),
      tx: this.#tap.position(VSOCK_QUEUE_TX),
    };
  }

  /** Bytes that the streams have moved, both ways. */
  get moved(): number {
    return this.streams.reduce((sum, one) => sum + one.sent + one.received, 0);
  }

  /** What the device has counted, faults of the guest and more, by kind. */
  get counters(): string[] {
    const { virtio, vsock } = this.machine.device;
    return [...virtio.diagnostics.counters, ...vsock.diagnostics.counters]
      .map(([kind, count]) => `${kind} ${count}`);
  }

  // -- What can be done --

  /** Opens `count` checked streams, half of them from each side, by a program that is started in the shell. */
  async startStreams(count: number): Promise<void> {
    if (this.streamsState !== "none" && this.streamsState !== "ended") {
      throw new TypeError("Cannot start streams: there are some");
    }
    this.streamsState = "opening";
    this.streams = [];
    this.verdict = [];
    this.#said = "";
    try {
      this.streams = await this.#openStreams(count);
      this.streamsState = "running";
    } finally {
      if (this.streamsState === "opening") this.streamsState = "none";
    }
  }

  async #openStreams(count: number): Promise<CheckedStream[]> {
    const connecting = Math.ceil(count / 2);
    const accepted: Promise<LoopbackConn | null>[] = [];
    for (let i = 0; i < connecting; i++) {
      const listener = this.machine.listen({ port: STREAMS_PORT + i });
      accepted.push(listener.accept().finally(() => listener.close()));
    }
    this.machine.type(
      `streams 2 ${STREAMS_PORT} ${count} ${STREAM_CHUNK} &\n`,
    );
    const conns: LoopbackConn[] = [];
    for (const conn of await Promise.all(accepted)) {
      conns.push(conn!);
    }
    // The guest listens before it connects.
    for (let i = connecting; i < count; i++) {
      conns.push(await this.machine.connect({ port: STREAMS_PORT + i }));
    }
    return conns.map((conn, i) => new CheckedStream(i, conn));
  }

  /** Ends the streams: the guest says what it has counted, and both are compared. */
  endStreams(): void {
    if (this.streamsState !== "running") return;
    this.streamsState = "ending";
    for (const stream of this.streams) stream.end();
  }

  /** Gives the programs a turn. */
  pump(): void {
    if (this.#held) return;
    // At the end it may all come at once.
    const limit = this.streamsState === "ending" ? LAST_TURN : STREAM_TURN;
    for (const stream of this.streams) stream.pump(limit);
    this.#capitals = this.#capitals.filter((one) => this.#echo(one));
    if (this.streamsState === "ending") this.#compare();
  }

  /** Stops the machine and saves it with what its programs have in their hands; {@link Session.resume} goes on. */
  async save(): Promise<Uint8Array<ArrayBuffer>> {
    if (this.streamsState === "opening") {
      throw new TypeError("Cannot save: streams are being opened");
    }
    await this.pause();
    return await this.machine.save({ programs: this.#programs() });
  }

  /** Stops the machine and its programs. */
  async pause(): Promise<void> {
    this.#held = true;
    await this.machine.stop();
  }

  /** Lets them go on. */
  async resume(): Promise<void> {
    await this.machine.run();
    this.#held = false;
  }

  /** Ends it. */
  async close(): Promise<void> {
    this.#held = true;
    this.#listener.close();
    await this.machine.close();
  }

  // -- Programs --

  #programs(): Plain {
    return {
      said: this.#said,
      screen: this.screen.save(),
      packets: this.log.save(),
      streamsState: this.streamsState,
      verdict: [...this.verdict],
      streams: this.streams.map((stream) => stream.save()),
      capitals: this.#capitals.map(({ conn, pending }) => ({
        ports: { hostPort: conn.hostPort, guestPort: conn.guestPort },
        pending: base64(pending),
      })),
    };
  }

  async #accept(): Promise<void> {
    for await (const conn of this.#listener) {
      this.#capitals.push({ conn, pending: new Uint8Array() });
    }
  }

  /** Sends back in capitals what has come; false when the connection has ended. */
  #echo(one: Capitals): boolean {
    const { conn } = one;
    try {
      if (one.pending.length === 0) {
        const bytes = new Uint8Array(BUFFER);
        const got = conn.tryRead(bytes);
        if (got === null) {
          conn.close();
          return false;
        }
        one.pending = bytes.subarray(0, got).map((byte) =>
          byte >= 0x61 && byte <= 0x7a ? byte - 0x20 : byte
        );
      }
      const done = conn.tryWrite(one.pending);
      one.pending = one.pending.subarray(done);
      return true;
    } catch {
      conn.close(); // the guest has reset it, or reads no more
      return false;
    }
  }

  #compare(): void {
    const { streams } = this;
    if (streams.some((one) => !one.ended && one.broken === null)) return;
    // Its words may stand behind a prompt, and what was typed there.
    const words = /^.*(?=stream \d+ sent |streams done)/gm;
    const said = this.#said.replaceAll(words, "");
    if (!/^streams done\r?$/m.test(said)) return;
    const counts = guestCounts(said);
    const wrong: string[] = [];
    for (const stream of streams) {
      const guest = counts.get(stream.index);
      const agreed = stream.broken === null && stream.wrong === 0 &&
        guest !== undefined && guest.wrong === 0 && guest.error === 0 &&
        // The guest counts modulo 2^32.
        guest.received === stream.sent % 2 ** 32 &&
        guest.sent === stream.received % 2 ** 32;
      if (!agreed) {
        wrong.push(
          `stream ${stream.index}: page ${
            JSON.stringify(stream.save())
          }, guest ${JSON.stringify(guest)}`,
        );
      }
    }
    this.verdict = wrong;
    this.streamsState = "ended";
  }
}

/** Stands for a connection that is over. */
function endedConn(value: unknown): LoopbackConn {
  const ports = new FieldReader(value, "ports");
  return new LoopbackConn(ports.u32("hostPort"), ports.u32("guestPort"), {
    wake: () => {},
    opened: () => {},
    released: () => {},
  });
}
