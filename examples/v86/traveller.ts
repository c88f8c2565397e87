/**
 * A machine with streams that run both ways, which can be saved in the middle of them and go on elsewhere.
 *
 * Works in a browser.
 *
 * @module
 */

import { FieldReader } from "../../device/snapshot.ts";
import {
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_INDIRECT_DESC,
} from "../../ring/virtio_ring.ts";
import { featureMask } from "../../device/transport_features.ts";
import { InFlight, type QueueCounts } from "./in_flight.ts";
import { Machine, type MachineOptions } from "./machine.ts";
import { CheckedStream, type GuestCounts, guestCounts } from "./streams.ts";
import type { LoopbackConn } from "../../device/vsock/loopback.ts";

const PORT = 5000;
const FLOOD_PORT = 4999;
const TIMEOUT_MS = 60_000;
const RX = 0;
const TX = 1;

/** What is asked of a save. */
export type SaveWish = {
  /** Buffers in flight on tx, at least. */
  tx?: number;
  /** The tx ring is to be within so many descriptors of its end. */
  nearEnd?: number;
};

/** What was in the middle of its way when a machine was saved. */
export type SaveReport = {
  rx: QueueCounts;
  tx: QueueCounts;
  /** Descriptors of each ring. */
  size: number;
  eventIdx: boolean;
  indirect: boolean;
  /** Bytes that the host's programs have moved so far, both ways. */
  moved: number;
  /** Bytes in the buffers between device and host programs. */
  buffered: number;
  /** Bytes of the file. */
  bytes: number;
  /** When the device stopped, in milliseconds since 1970; the guest did soon after. */
  stoppedAt: number;
  /** From then until the file was made. */
  saveMs: number;
};

/** How the streams have ended. */
export type StreamsReport = {
  /** Bytes that the host has sent and received, over all streams. */
  sent: number;
  received: number;
  /** What is wrong, in words; empty where every byte came, once and right, and no stream was reset. */
  wrong: string[];
};

const now = (): number => performance.timeOrigin + performance.now();
const tick = (): Promise<void> => new Promise((resolve) => setTimeout(resolve));

/** A machine, its streams, and what the guest has said. */
export class Traveller {
  /** The machine. */
  readonly machine: Machine;
  readonly #inFlight: InFlight;
  readonly #serial: { said: string };
  #streams: CheckedStream[] = [];

  private constructor(machine: Machine, serial: { said: string }) {
    this.machine = machine;
    this.#serial = serial;
    this.#inFlight = new InFlight(machine.device);
  }

  /** Makes one of a machine that has booted and done nothing yet. */
  static async start(
    options: MachineOptions,
    booted: Uint8Array<ArrayBuffer>,
  ): Promise<Traveller> {
    const serial = { said: "" };
    const { machine } = await Machine.restore({
      ...options,
      serial: (byte) => serial.said += String.fromCharCode(byte),
    }, booted);
    const traveller = new Traveller(machine, serial);
    await machine.run();
    traveller.type("stty -echo; sh");
    return traveller;
  }

  /**
   * Makes one that goes on where another was saved; it runs.
   *
   * @throws {SnapshotError} when it is no such file.
   */
  static async restore(
    options: MachineOptions,
    file: Uint8Array<ArrayBuffer>,
  ): Promise<Traveller> {
    const serial = { said: "" };
    const { machine, connections, programs } = await Machine.restore({
      ...options,
      serial: (byte) => serial.said += String.fromCharCode(byte),
    }, file);
    const fields = new FieldReader(programs, "programs");
    serial.said = fields.string("said");
    const traveller = new Traveller(machine, serial);
    for (const saved of fields.array("streams", 1000)) {
      const ports = new FieldReader(
        new FieldReader(saved, "stream").any("ports"),
        "ports",
      );
      const conn = connections.find((conn) =>
        conn.hostPort === ports.u32("hostPort") &&
        conn.guestPort === ports.u32("guestPort")
      );
      if (conn === undefined) throw ports.bad("hostPort", "of no connection");
      traveller.#streams.push(CheckedStream.restore(saved, conn));
    }
    await machine.run();
    return traveller;
  }

  /** Position of the next buffer to fetch on rx and tx. */
  get positions(): { rx: number; tx: number } {
    return {
      rx: this.#inFlight.counts(RX).available,
      tx: this.#inFlight.counts(TX).available,
    };
  }

  /**
   * Sends small packets both ways until the free-running indices of split rings are `rx` and `tx`, or a
   * little more.
   */
  async flood(target: { rx: number; tx: number }): Promise<void> {
    // Packets to the guest make it send credit, so they come first.
    await this.#flood(0, async (conn) => {
      const byte = new Uint8Array(1);
      for (;;) {
        const left = target.rx - this.positions.rx;
        if (left <= 0) return;
        for (let i = 0; i < Math.min(left, 128); i++) {
          // Each is a packet, as the device has its turn in between.
          conn.tryWrite(byte);
          await null;
          await null;
        }
        await tick();
      }
    });
    const left = Math.max(0, target.tx - this.positions.tx);
    await this.#flood(left, async (conn) => {
      const bytes = new Uint8Array(65_536);
      while (!this.#serial.said.includes(`flood sent ${left}`)) {
        while (conn.tryRead(bytes) !== 0);
        await tick();
      }
    });
  }

  async #flood(
    count: number,
    run: (conn: LoopbackConn) => Promise<void>,
  ): Promise<void> {
    const { machine } = this;
    const listener = machine.listen({ port: FLOOD_PORT });
    const accepted = listener.accept();
    this.type(`flood ${FLOOD_PORT} ${count}`);
    const conn = (await accepted)!;
    listener.close();
    await run(conn);
    conn.closeWrite();
    await this.#said(`flood of ${count} done`);
    conn.close();
  }

  /** Opens `count` streams, half of them from each side, with writes of up to `chunk` bytes by the guest. */
  async open(count: number, chunk: number): Promise<void> {
    const { machine } = this;
    const connecting = Math.ceil(count / 2);
    const accepted: Promise<LoopbackConn | null>[] = [];
    for (let i = 0; i < connecting; i++) {
      const listener = machine.listen({ port: PORT + i });
      accepted.push(listener.accept().finally(() => listener.close()));
    }
    this.type(`streams 2 ${PORT} ${count} ${chunk}`);
    await this.#said("streams listen");
    for (const [i, conn] of (await Promise.all(accepted)).entries()) {
      this.#streams.push(new CheckedStream(i, conn!));
    }
    for (let i = connecting; i < count; i++) {
      const conn = await machine.connect({ port: PORT + i });
      this.#streams.push(new CheckedStream(i, conn));
    }
    await this.#said("streams run");
  }

  /** Bytes that the host's programs have moved, both ways. */
  get moved(): number {
    return this.#streams.reduce((sum, s) => sum + s.sent + s.received, 0);
  }

  /** Moves at least `bytes` each way on each stream; when the first came from the guest. */
  async move(bytes: number): Promise<{ firstAt: number }> {
    const streams = this.#streams;
    const before = streams.map(({ sent, received }) => ({ sent, received }));
    const deadline = now() + TIMEOUT_MS;
    let firstAt = 0;
    for (;;) {
      for (const stream of streams) stream.pump();
      const least = Math.min(...streams.map((stream, i) =>
        Math.min(
          stream.sent - before[i]!.sent,
          stream.received - before[i]!.received,
        )
      ));
      if (
        firstAt === 0 &&
        streams.some((stream, i) => stream.received > before[i]!.received)
      ) {
        firstAt = now();
      }
      const broken = streams.find(({ broken }) => broken !== null);
      if (broken !== undefined) {
        throw new Error(`stream ${broken.index}: ${broken.broken}`);
      }
      if (least >= bytes) return { firstAt };
      if (now() > deadline) {
        throw new Error(`streams stand still: ${this.#words()}`);
      }
      await tick();
    }
  }

  /**
   * Stops the machine in the middle of its streams and saves it. What the device has fetched and not used is
   * in the file; it may go on from here, too, by {@link Traveller.goOn}.
   */
  async save(
    wish: SaveWish = {},
  ): Promise<{ file: Uint8Array<ArrayBuffer>; report: SaveReport }> {
    const { machine } = this;
    const stoppedAt = await this.#catch(wish);
    await machine.stop();
    const rx = this.#inFlight.counts(RX);
    const tx = this.#inFlight.counts(TX);
    const file = await machine.save({
      programs: {
        said: this.#serial.said,
        streams: this.#streams.map((stream) => stream.save()),
      },
    });
    const { virtio } = machine.device;
    const has = (bit: number) => (virtio.features & featureMask(bit)) !== 0n;
    const host = machine.host.save();
    const report: SaveReport = {
      rx,
      tx,
      size: virtio.queueSetup(TX).size,
      eventIdx: has(VIRTIO_F_EVENT_IDX),
      indirect: has(VIRTIO_F_INDIRECT_DESC),
      moved: this.moved,
      buffered: host.connections.reduce(
        (sum, conn) => sum + atob(conn.in).length + atob(conn.out).length,
        0,
      ),
      bytes: file.length,
      stoppedAt,
      saveMs: now() - stoppedAt,
    };
    return { file, report };
  }

  /** Holds the device until the guest has handed it buffers, and fetches some; when it was held. */
  async #catch(wish: SaveWish): Promise<number> {
    const { device } = this.machine;
    const wanted = wish.tx ?? 2;
    const deadline = now() + TIMEOUT_MS;
    for (;;) {
      for (const stream of this.#streams) stream.pump();
      device.hold();
      const heldAt = now();
      // The guest goes on sending meanwhile.
      for (let i = 0; i < 20; i++) {
        await tick();
        const { size } = device.virtio.queueSetup(TX);
        const tx = this.#inFlight.counts(TX);
        const rx = this.#inFlight.counts(RX);
        // Up to the end of the ring, but not over it, where that is asked for.
        const room = size - 1 - tx.available % size;
        const take = wish.nearEnd === undefined
          ? wanted
          : Math.max(wanted, room - Math.floor(Math.random() * wish.nearEnd));
        const near = wish.nearEnd === undefined || take <= room;
        if (near && tx.waiting > take && rx.inFlight + rx.waiting > 0) {
          this.#inFlight.fetch(TX, take);
          if (rx.inFlight === 0) this.#inFlight.fetch(RX, 2);
          return heldAt;
        }
      }
      if (now() > deadline) {
        throw new Error(`Cannot save: ${this.#words()}`);
      }
      device.release();
      for (let i = 0; i < 3; i++) {
        for (const stream of this.#streams) stream.pump();
        await tick();
      }
    }
  }

  /** Lets a saved machine go on. */
  async goOn(): Promise<void> {
    this.#inFlight.giveBack();
    await this.machine.run();
  }

  /** Ends the streams, and compares what both ends have counted. */
  async end(): Promise<StreamsReport> {
    const streams = this.#streams;
    for (const stream of streams) stream.end();
    const deadline = now() + TIMEOUT_MS;
    while (streams.some((one) => !one.ended && one.broken === null)) {
      for (const stream of streams) stream.pump();
      if (now() > deadline) {
        throw new Error(`streams do not end: ${this.#words()}`);
      }
      await tick();
    }
    const counts = await this.counts();
    const wrong: string[] = [];
    for (const { index, sent, received, wrong: bad, broken } of streams) {
      const guest = counts.get(index);
      if (broken !== null) wrong.push(`stream ${index}: ${broken}`);
      if (bad !== 0) {
        wrong.push(`stream ${index}: ${bad} wrong bytes came to the host`);
      }
      if (guest === undefined) {
        wrong.push(`stream ${index}: the guest does not know it`);
        continue;
      }
      if (guest.error !== 0) {
        wrong.push(`stream ${index}: the guest had error ${guest.error}`);
      }
      if (guest.wrong !== 0) {
        wrong.push(
          `stream ${index}: ${guest.wrong} wrong bytes came to the guest`,
        );
      }
      // The guest counts modulo 2^32.
      if (guest.received !== sent % 2 ** 32) {
        wrong.push(
          `stream ${index}: the host sent ${sent}, the guest received ${guest.received}`,
        );
      }
      if (guest.sent !== received % 2 ** 32) {
        wrong.push(
          `stream ${index}: the guest sent ${guest.sent}, the host received ${received}`,
        );
      }
    }
    const faults = [...this.machine.device.virtio.diagnostics.counters];
    for (const [code, count] of faults) wrong.push(`${count} x ${code}`);
    return {
      sent: streams.reduce((sum, one) => sum + one.sent, 0),
      received: streams.reduce((sum, one) => sum + one.received, 0),
      wrong,
    };
  }

  /** Types a command into the guest's shell. */
  type(command: string): void {
    this.machine.type(`${command}\n`);
  }

  /** What the guest says of its streams when they are over, by index. */
  async counts(): Promise<Map<number, GuestCounts>> {
    await this.#said("streams done");
    return guestCounts(this.#serial.said);
  }

  /** Ends the machine. */
  async close(): Promise<void> {
    await this.machine.close();
  }

  /** Ends the machine at the end of an `await using` block. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #said(words: string): Promise<void> {
    const deadline = now() + TIMEOUT_MS;
    while (!this.#serial.said.includes(words)) {
      if (now() > deadline) {
        throw new Error(
          `The guest does not say "${words}", but: ${this.#words()}`,
        );
      }
      await tick();
    }
  }

  #words(): string {
    return `${this.#serial.said.slice(-500)} ${
      JSON.stringify(this.#streams.map((stream) => stream.save()))
    }`;
  }
}
