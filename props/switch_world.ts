/**
 * Two guests that talk to each other through a switch: programs in both, and devices that move.
 *
 * @module
 */

import fc from "fast-check";
import { VsockDevice } from "../device/vsock/device.ts";
import { LoopbackHost } from "../device/vsock/loopback.ts";
import { VsockSwitch } from "../device/vsock/switch.ts";
import { type GuestConnection, InProcessGuest } from "./guest/mod.ts";
import { MessagesModel } from "./message_model.ts";
import type { QueueRun } from "./queue_steps.ts";
import { newRun, type ScriptWorld } from "./script_property.ts";
import { expectSame, Violation } from "./violation.ts";
import { randomBelow } from "./race.ts";
import { refused } from "./refused.ts";
import { DirectionModel } from "./vsock_model.ts";
import { refusal, spoil } from "./vsock_rig.ts";

/** What two guests and their devices are made with. */
export type SwitchSetup = {
  formats: ("split" | "packed")[];
  /** Descriptors of each queue. */
  size: number;
  eventIdx: boolean;
  indirect: boolean;
  /** Receive buffers of guests and of devices, in bytes. */
  guestBuffer: number;
  deviceBuffer: number;
  /** Connections that one guest may open to the other. */
  maxConnections: number;
};

/** One step of a script; `side` is a guest, picks count modulo the connections that there are. */
export type SwitchStep =
  /** To a program, a port of nobody or one that is not allowed, or to no guest. */
  | { do: "connect"; side: number; messages: boolean; to: number }
  | { do: "accept" }
  | { do: "send" | "read"; pick: number; side: number; bytes: number }
  | { do: "shutdown"; pick: number; side: number; flags: number }
  | { do: "close" | "abort"; pick: number; side: number }
  | { do: "run"; steps: number }
  | { do: "time"; ms: number }
  /** One guest moves to another device, or all of them to another switch. */
  | { do: "move"; side: number }
  | { do: "moveAll" }
  /** A guest leaves the switch and joins it again. */
  | { do: "rejoin"; side: number }
  /** Calls that must be refused. */
  | { do: "misuse"; seed: number }
  | { do: "transportReset"; side: number };

type Way = { bytes: DirectionModel; messages: MessagesModel };

type Connection = {
  messages: boolean;
  /** The end that connected, and the other one once it is known. */
  ends: [GuestConnection, GuestConnection | null];
  /** Which guest has the first end. */
  from: number;
  /** From the first end, and to it. */
  ways: [Way, Way];
};

const CIDS = [3, 4];
const STREAM_PORT = 80;
const MESSAGES_PORT = 81;
const NO_PORT = 82;
const FORBIDDEN_PORT = 83;
const ANY_PORT = 0xffff_ffff;
const NO_CID = 9;
const MAX_ROUNDS = 3000;
const IDLE_ROUNDS = 4;
const SEQPACKET = { type: "seqpacket" } as const;

/** Two guests, their devices, and the switch between them. */
export class SwitchWorld implements ScriptWorld<SwitchStep> {
  /** For statistics. */
  readonly run: QueueRun = newRun("midFlight", "wrapped", "full", "indirect");
  readonly #setup: SwitchSetup;
  readonly #devices: VsockDevice[];
  readonly #guests: InProcessGuest[];
  readonly #listeners: ReturnType<InProcessGuest["driver"]["listen"]>[][];
  readonly #all: Connection[] = [];
  #switch!: VsockSwitch<VsockDevice>;
  #now = 0;

  /** @param setup What guests and devices are made with. */
  constructor(setup: SwitchSetup) {
    this.#setup = setup;
    if (!setup.indirect) this.run.indirect = null;
    this.#switch = this.#newSwitch();
    this.#devices = CIDS.map((cid) => this.#newDevice(cid));
    this.#guests = this.#devices.map((device, i) =>
      new InProcessGuest({
        device,
        ring: setup.formats[i]!,
        queueSize: setup.size,
        eventIdx: setup.eventIdx,
        indirectEntries: setup.indirect ? 4 : 0,
        memoryBytes: 1 << 20,
        driver: {
          bufAlloc: setup.guestBuffer,
          maxPayload: 1000,
          now: () => this.#now,
          strict: false,
        },
      })
    );
    this.#listeners = this.#guests.map(({ driver }) => [
      driver.listen(STREAM_PORT),
      driver.listen(MESSAGES_PORT, 128, SEQPACKET),
    ]);
    for (const device of this.#devices) this.#switch.join(device);
  }

  /** Whether there is a connection for it. */
  possible(step: SwitchStep): boolean {
    return !("pick" in step) || this.#all.length > 0;
  }

  /** Takes a step and looks for rules that were broken. */
  take(step: SwitchStep): string {
    const outcome = this.#perform(step);
    this.#look();
    return outcome;
  }

  #perform(step: SwitchStep): string {
    const picked = "pick" in step
      ? this.#all[step.pick % this.#all.length]!
      : null;
    switch (step.do) {
      case "connect":
        return this.#connect(step.side, step.messages, step.to);
      case "accept":
        this.#accept();
        return "";
      case "send":
        return this.#send(picked!, step.side, step.bytes);
      case "read":
        return `${this.#read(picked!, step.side, step.bytes)}`;
      case "shutdown": {
        const end = picked!.ends[step.side];
        if (end?.state !== "connected") return "";
        if ((step.flags & 2) !== 0) this.#endWay(picked!, step.side);
        if ((step.flags & 1) !== 0) cut(picked!.ways[1 - step.side]!);
        end.shutdown(step.flags);
        return "";
      }
      case "close":
        this.#close(picked!, step.side);
        return "";
      case "abort": {
        picked!.ways.forEach(cut);
        picked!.ends[step.side]?.abort();
        return "";
      }
      case "run":
        for (let i = 0; i < step.steps; i++) {
          for (const { driver } of this.#guests) driver.poll();
          for (const guest of this.#guests) guest.step();
        }
        if (step.steps === 0) this.#runAll();
        return "";
      case "time":
        this.#passTime(step.ms);
        return "";
      case "move":
        this.#beforeMove();
        this.#switch.detach(this.#devices[step.side]!);
        this.#move(step.side);
        this.#switch.settle();
        return "";
      case "moveAll": {
        this.#beforeMove();
        const saved = JSON.stringify(this.#switch.save());
        for (const device of this.#devices) this.#switch.detach(device);
        this.#switch = this.#newSwitch();
        this.#switch.restore(JSON.parse(saved));
        const again = JSON.stringify(this.#switch.save());
        expectSame("snapshot", "the switch", again, saved);
        for (const side of CIDS.keys()) this.#move(side);
        this.#switch.settle();
        return "";
      }
      case "rejoin": {
        const device = this.#devices[step.side]!;
        this.#switch.leave(device);
        refused(TypeError, () => this.#switch.leave(device));
        for (const { ways } of this.#all) ways.forEach(cut);
        expectSame("misuse", "guests", this.#switch.guestCids.length, 1);
        this.#runAll();
        this.#switch.join(device);
        return "";
      }
      case "misuse":
        return this.#misuse(step.seed);
      case "transportReset": {
        const { driver } = this.#guests[step.side]!;
        driver.poll();
        this.#devices[step.side]!.transportReset();
        driver.poll();
        for (const { ways } of this.#all) ways.forEach(cut);
        return "";
      }
    }
  }

  /** Both guests read everything and close: nothing is left. */
  settle(): void {
    let idle = 0;
    for (let round = 0; round < MAX_ROUNDS && idle < IDLE_ROUNDS; round++) {
      this.#runAll();
      this.#accept();
      let news = 0;
      for (const connection of this.#all) {
        news += this.#read(connection, 0, 5000);
        news += this.#read(connection, 1, 5000);
      }
      if (news === 0) this.#passTime(1100);
      idle = news > 0 ? 0 : idle + 1;
      this.#look();
    }
    for (const { ways, ends, messages } of this.#all) {
      if (ends[1] === null) continue;
      for (const way of ways) {
        const one = messages ? way.messages : way.bytes;
        const done = one.lossy !== "" ||
          (messages ? way.messages.waiting.length === 0 : way.bytes.done);
        if (!done) throw new Violation("progress", `${one}`);
      }
    }
    for (const connection of this.#all) {
      this.#close(connection, 0);
      this.#close(connection, 1);
    }
    this.#runAll();
    this.#look();
    const left = [
      this.#switch.connectionCount,
      ...this.#devices.map(({ connectionCount }) => connectionCount),
      ...this.#guests.map(({ driver }) => driver.connections),
    ];
    const invariant = "every-connection-ends";
    expectSame(invariant, "what is left", left.join(), "0,0,0,0,0");
  }

  // -- Programs --

  #connect(side: number, messages: boolean, to: number): string {
    const port = messages ? MESSAGES_PORT : STREAM_PORT;
    const ports = [port, NO_PORT, FORBIDDEN_PORT, port, ANY_PORT];
    const end = this.#guests[side]!.driver.connect(ports[to]!, {
      cid: to === 3 ? NO_CID : CIDS[1 - side]!,
      ...(messages ? SEQPACKET : {}),
    });
    const id = 2 * this.#all.length;
    const way = (n: number): Way => ({
      bytes: new DirectionModel(`way ${n} of stream ${id / 2}`, id + n),
      messages: new MessagesModel(`way ${n} of connection ${id / 2}`, id + n),
    });
    const ways: [Way, Way] = [way(0), way(1)];
    this.#all.push({ messages, ends: [end, null], from: side, ways });
    return `port ${end.localPort}`;
  }

  #accept(): void {
    for (const [side, listeners] of this.#listeners.entries()) {
      for (const listener of listeners) {
        for (
          let end = listener.accept();
          end !== null;
          end = listener.accept()
        ) {
          const found = this.#all.find(({ ends, from }) =>
            from !== side && ends[0].localPort === end!.peerPort
          );
          if (found === undefined) {
            throw new Violation("packets", "a connection that nobody has made");
          }
          expectSame("packets", "CID", end.peerCid, CIDS[found.from]);
          found.ends[1] = end;
        }
      }
    }
  }

  #send({ ends, ways, messages }: Connection, side: number, bytes: number) {
    const end = ends[side];
    const way = ways[side]!;
    if (!end || end.state !== "connected" || end.sendEnded) return "";
    if (!messages) {
      const sent = end.send(way.bytes.offer(bytes));
      way.bytes.sent += sent;
      return `${sent} bytes`;
    }
    const most = Math.min(end.peerBufAlloc, end.bufAlloc);
    if (end.sending) return "it sends another";
    const message = way.messages.offer(Math.min(bytes, most), bytes % 2 === 0);
    if (!end.sendMessage(message.bytes, message.endOfRecord)) return "";
    way.messages.sent(message);
    return `${message.bytes.length} bytes`;
  }

  #read({ ends, ways, messages }: Connection, side: number, bytes: number) {
    const end = ends[side];
    const way = ways[1 - side]!;
    if (!end || end.state === "closing") return 0;
    if (messages) {
      const message = end.readMessage();
      if (message === null) return 0;
      way.messages.take(message.bytes, message.endOfRecord);
      return 1 + message.bytes.length;
    }
    const target = new Uint8Array(bytes);
    const count = end.read(target);
    way.bytes.take(target.subarray(0, count));
    if (count === 0 && end.state === "connected" && end.atEnd) {
      way.bytes.takeEnd();
    }
    return count;
  }

  #endWay({ ends, ways, messages }: Connection, side: number): void {
    const way = ways[side]!;
    way.bytes.ended = way.messages.ended = true;
    // What is left of a message is not sent any more.
    if (messages && ends[side]?.sending) cut(way);
  }

  #close(connection: Connection, side: number): void {
    const end = connection.ends[side];
    if (!end || end.state === "closed") return;
    if (end.state === "connecting") connection.ways.forEach(cut);
    this.#endWay(connection, side);
    cut(connection.ways[1 - side]!);
    end.close();
  }

  // -- Devices --

  #runAll(): void {
    for (let busy = true; busy;) {
      busy = false;
      for (const guest of this.#guests) {
        guest.driver.poll();
        while (guest.step()) busy = true;
      }
    }
  }

  #passTime(ms: number): void {
    this.#now += ms;
    for (const [i, device] of this.#devices.entries()) {
      device.expire(this.#now);
      this.#guests[i]!.wake();
    }
  }

  /** What has no answer yet is lost. */
  #beforeMove(): void {
    this.#accept();
    for (const { ends, ways } of this.#all) {
      const [one, other] = ends;
      if (other === null || one.state === "connecting") ways.forEach(cut);
      else this.run.midFlight = true;
    }
  }

  #misuse(seed: number): string {
    const [device] = this.#devices;
    refused(TypeError, () => this.#switch.join(device!));
    refused(TypeError, () => this.#newSwitch().join(device!));
    const saved = this.#switch.save();
    const spoiled = spoil(
      JSON.parse(JSON.stringify(saved)),
      randomBelow(seed),
    );
    const other = this.#newSwitch();
    const outcome = refusal(() => other.restore(spoiled));
    if (outcome !== "taken") {
      expectSame("snapshot", "what was made", other.connectionCount, 0);
    }
    return outcome;
  }

  #move(side: number): void {
    const device = this.#newDevice(CIDS[side]!);
    this.#devices[side] = device;
    this.#switch.join(device);
    this.#guests[side]!.migrate(device);
  }

  #newSwitch(): VsockSwitch<VsockDevice> {
    return new VsockSwitch<VsockDevice>({
      allow: (_from, _to, port) => port !== FORBIDDEN_PORT,
      maxConnections: this.#setup.maxConnections,
      wake: ({ guestCid }) => this.#guests[CIDS.indexOf(guestCid)]?.wake(),
    });
  }

  #newDevice(guestCid: number): VsockDevice {
    return new VsockDevice({
      guestCid,
      host: new LoopbackHost({ schedule: () => {} }),
      bufAlloc: this.#setup.deviceBuffer,
      now: () => this.#now,
    });
  }

  /** Looks for rules that were broken and for connections that nobody has cut. */
  #look(): void {
    let packets = 0;
    for (const { driver } of this.#guests) {
      const [violation] = driver.violations;
      if (violation !== undefined) throw new Violation("packets", violation);
      packets += driver.usedPackets;
      const { size, indirect } = this.#setup;
      if (driver.usedPackets > size) this.run.wrapped = true;
      if (driver.unusedPackets >= size || driver.pendingPackets > 0) {
        this.run.full = true;
      }
      if (indirect && driver.sent[5]! > 0) this.run.indirect = true;
    }
    this.run.buffers = packets;
    for (const { ends, ways, messages } of this.#all) {
      for (const end of ends) {
        if (end?.closeReason === "transport") ways.forEach(cut);
        if (end?.closeReason !== "reset") continue;
        const one = messages ? ways[0].messages : ways[0].bytes;
        const other = messages ? ways[1].messages : ways[1].bytes;
        if (one.lossy === "" && other.lossy === "") {
          throw new Violation("rst-rules", `nobody has cut ${one}`);
        }
      }
    }
  }
}

function cut({ bytes, messages }: Way): void {
  bytes.cut("cut");
  messages.cut("cut");
}

/** What guests and devices may be made with. */
export const SWITCH_SETUPS: fc.Arbitrary<SwitchSetup> = fc.record({
  formats: fc.tuple(
    fc.constantFrom("split" as const, "packed" as const),
    fc.constantFrom("split" as const, "packed" as const),
  ),
  size: fc.constantFrom(4, 8, 32),
  eventIdx: fc.boolean(),
  indirect: fc.boolean(),
  guestBuffer: fc.constantFrom(60, 500, 16_384),
  deviceBuffer: fc.constantFrom(60, 500, 262_144),
  maxConnections: fc.constantFrom(1, 100),
});

/** Steps of random scripts; what stands there more than once comes up more often. */
export function switchSteps(): fc.Arbitrary<SwitchStep>[] {
  const pick = fc.nat(5);
  const side = fc.nat(1);
  const bytes = fc.oneof(fc.nat(20), fc.nat(500), fc.nat(5000));
  const of = <D extends SwitchStep["do"]>(
    kind: D,
    shape: Record<string, fc.Arbitrary<unknown>> = {},
  ): fc.Arbitrary<SwitchStep> =>
    fc.record(shape).map((fields) =>
      ({ do: kind, ...fields }) as unknown as SwitchStep
    );
  const connect = of("connect", {
    side,
    messages: fc.boolean(),
    to: fc.constantFrom(0, 0, 0, 0, 0, 0, 1, 2, 3, 4),
  });
  const traffic = [
    of("send", { pick, side, bytes }),
    of("send", { pick, side, bytes }),
    of("read", { pick, side, bytes }),
    of("run", { steps: fc.nat(3) }),
    of("run", { steps: fc.constant(0) }),
  ];
  return [
    connect,
    connect,
    of("accept"),
    of("accept"),
    ...traffic,
    ...traffic,
    of("shutdown", { pick, side, flags: fc.nat(3) }),
    of("close", { pick, side }),
    of("abort", { pick, side }),
    of("time", { ms: fc.constantFrom(5, 50, 1500) }),
    of("move", { side }),
    of("moveAll"),
    of("rejoin", { side }),
    of("misuse", { seed: fc.nat(0x7fff_ffff) }),
    of("transportReset", { side }),
  ];
}
