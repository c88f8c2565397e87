/**
 * A guest that sends any packet at any time, lawful or not, to a device whose answers are all foretold.
 *
 * @module
 */

import fc from "fast-check";
import type {
  LoopbackConn,
  LoopbackListener,
} from "../device/vsock/loopback.ts";
import {
  CID_HOST,
  HEADER_BYTES,
  OP_CREDIT_REQUEST,
  OP_CREDIT_UPDATE,
  OP_REQUEST,
  OP_RESPONSE,
  OP_RST,
  OP_RW,
  OP_SHUTDOWN,
  opName,
  PacketHeader,
  SHUTDOWN_BOTH,
  TYPE_STREAM,
} from "./guest/mod.ts";
import type { QueueRun } from "./queue_steps.ts";
import { newRun, type ScriptWorld } from "./script_property.ts";
import { expectSame, Violation } from "./violation.ts";
import { refused } from "./refused.ts";
import { misuse, MISUSES } from "./vsock_misuse.ts";
import { VsockRig, type VsockSetup } from "./vsock_rig.ts";
import { STREAM_SETUPS } from "./vsock_stream_world.ts";
import {
  type WireConnection,
  WireModel,
  type WirePacket,
} from "./wire_model.ts";

/** How a packet is cut into descriptors: bytes of the header's first piece, and whether the rest is joined. */
type Cut = { cut: number; joined: boolean };

/** One step of a script; picks count modulo the connections that there are. */
export type WireStep =
  | { do: "request"; from: number; to: number; bufAlloc: number }
  /** Any packet on a connection; `lie` says what `len` says. */
  | ({
    do: "packet";
    pick: number;
    op: number;
    flags: number;
    bytes: number;
    lie: number;
  } & Cut)
  /** A packet from a port that has no connection, or of an unknown type or address. */
  | { do: "stray"; op: number; type: number; from: number; to: number }
  | ({ do: "data"; pick: number; bytes: number } & Cut)
  | { do: "excess"; pick: number; bytes: number }
  | { do: "credit"; pick: number; bufAlloc: number; read: number; ask: boolean }
  | { do: "answer"; pick: number; accept: boolean }
  | { do: "hostConnect"; port: number }
  | { do: "hostAnswer"; accept: boolean }
  /** By itself, or in its own time. */
  | { do: "hostSend" | "hostRead"; pick: number; bytes: number; waits: boolean }
  | { do: "hostCloseWrite" | "hostClose" | "hostBreak"; pick: number }
  | { do: "flood"; packets: number }
  | { do: "time"; ms: number }
  /** A host program that connects and gives up once it has asked. */
  | { do: "hostWithdraw" }
  /** The device's owner ends all connections. */
  | { do: "resetConnections" }
  | { do: "misuse"; which: number }
  | { do: "spoiledSnapshot"; seed: number }
  | { do: "restore" | "migrate" | "migrateAll" | "transportReset" }
  /** The host programs of a device that moves are not there any more. */
  | { do: "migrateAlone" };

const GUEST_CID = 3;
const LISTENING_PORT = 1234;
const HELD_PORT = 1235;
const HOST_PORTS: readonly number[] = [LISTENING_PORT, HELD_PORT, 99];
const FIRST_GUEST_PORT = 5;
/** Where a host program connects to: first guest port of these. */
const SERVER_PORT = 80;
const STRAY_PORT = 0x1000_0000;
/** Answers to packets of no connection that a device may hold. */
const MAX_ANSWERS = 256;
const MAX_ROUNDS = 5000;
/** Connections that come and go in a flood. */
const MANY_REQUESTS = 150;
/** Longer than a device waits for anything. */
const LONG_MS = 20_000;

/** The device, its host programs, and a guest that is a model of it. */
export class WireWorld implements ScriptWorld<WireStep> {
  /** For statistics. */
  readonly run: QueueRun = newRun("midFlight", "wrapped", "full", "indirect");
  readonly #setup: VsockSetup;
  readonly #rig: VsockRig;
  readonly #model: WireModel;
  #listeners: LoopbackListener[];
  readonly #programs: Map<LoopbackConn, WireConnection> = new Map();
  #strays = 0;
  #waits = true;
  #connects = 0;
  #events = 0;

  /** @param setup What guest and device are made with. */
  constructor(setup: VsockSetup) {
    this.#setup = setup;
    if (!setup.indirect) this.run.indirect = null;
    const rig = new VsockRig(setup);
    this.#rig = rig;
    rig.slow.heldPort = HELD_PORT;
    this.#listeners = this.#listen();
    rig.guest.driver.claimPort();
    this.#model = new WireModel({
      guestCid: GUEST_CID,
      deviceBuffer: setup.deviceBuffer,
      hostRoom: setup.hostRoom,
      maxConnections: setup.maxConnections,
      listening: LISTENING_PORT,
      held: HELD_PORT,
    });
    this.#rest();
  }

  /** Whether there is a connection for it. */
  possible(step: WireStep): boolean {
    return !("pick" in step) || this.#model.connections.length > 0 ||
      (step.do === "hostRead" && this.#programs.size > 0);
  }

  /** Takes a step and compares the answers. */
  take(step: WireStep): string {
    const outcome = this.#perform(step);
    this.#rest();
    this.#rig.tell(this.run);
    return outcome;
  }

  #perform(step: WireStep): string {
    const rig = this.#rig;
    const model = this.#model;
    const connections = model.connections;
    const picked = "pick" in step
      ? connections[step.pick % (connections.length || 1)]
      : undefined;
    switch (step.do) {
      case "request": {
        const srcPort = FIRST_GUEST_PORT + step.from;
        const dstPort = HOST_PORTS[step.to]!;
        // Two connections of the same ports would be told apart by their programs alone.
        if (model.isWaiting(srcPort, dstPort)) return "";
        const { bufAlloc } = step;
        this.#send({ srcPort, dstPort, op: OP_REQUEST, bufAlloc });
        return `from port ${srcPort}`;
      }
      case "packet": {
        const { op, flags, bytes, lie } = step;
        const len = Math.max(0, bytes + lie);
        const payload = picked!.up.offer(bytes);
        this.#sendOn(picked!, { op, flags, len }, payload, step);
        return opName(op);
      }
      case "data": {
        const room = model.deviceRoom(picked!);
        const allowed = room - (model.passedOn(picked!) - picked!.told);
        const bytes = Math.min(step.bytes, Math.max(0, allowed));
        if (!mayCarry(picked!) || bytes === 0) return "";
        this.#sendOn(picked!, { op: OP_RW }, picked!.up.offer(bytes), step);
        return `${bytes} bytes`;
      }
      case "excess": {
        const bytes = model.deviceRoom(picked!) + 1 + step.bytes;
        if (bytes > 65_536) return "";
        this.#sendOn(picked!, { op: OP_RW }, picked!.up.offer(bytes));
        return `${bytes} bytes`;
      }
      case "credit": {
        const { fwdCnt, down } = picked!;
        const unread = down.received - fwdCnt;
        const read = fwdCnt + Math.ceil(unread * step.read / 4);
        const op = step.ask ? OP_CREDIT_REQUEST : OP_CREDIT_UPDATE;
        const { bufAlloc } = step;
        this.#sendOn(picked!, { op, fwdCnt: read, bufAlloc });
        return `${read} of ${down.received} bytes read`;
      }
      case "answer": {
        if (picked!.state !== "offered") return "";
        const op = step.accept ? OP_RESPONSE : OP_RST;
        this.#sendOn(picked!, { op, bufAlloc: 1000 });
        return "";
      }
      case "hostConnect":
        this.#connects++;
        model.hostConnects(SERVER_PORT + step.port);
        rig.host.connect(SERVER_PORT + step.port).catch(() => {});
        return "";
      case "hostAnswer": {
        const [request] = rig.slow.held;
        if (request === undefined) return "";
        const { guestPort, hostPort } = request;
        model.hostAnswers(guestPort, hostPort, step.accept);
        rig.slow.release(request, step.accept);
        rig.guest.wake();
        return `port ${guestPort}`;
      }
      case "hostSend":
        return `${this.#hostSend(picked!, step.bytes, step.waits)} bytes`;
      case "hostBreak": {
        const program = this.#programOf(picked!);
        if (program === null || picked!.state !== "open") return "";
        model.hostBreaks(picked!);
        rig.slow.breakOff(program);
        rig.guest.wake();
        return "";
      }
      case "hostRead": {
        const programs = [...this.#programs.keys()];
        const program = programs[step.pick % (programs.length || 1)];
        if (program === undefined) return "";
        return `${this.#hostRead(program, step.bytes, step.waits)} bytes`;
      }
      case "hostCloseWrite": {
        const program = this.#programOf(picked!);
        if (program === null || picked!.hostEnded) return "";
        picked!.hostEnded = picked!.down.ended = true;
        program.closeWrite();
        return "";
      }
      case "hostClose": {
        const program = this.#programOf(picked!);
        if (program !== null) this.#hostClose(program, picked!);
        return "";
      }
      case "stray": {
        const { op, type, from, to } = step;
        this.#send({
          srcPort: STRAY_PORT + this.#strays++,
          dstPort: LISTENING_PORT,
          // One that asks for a connection in vain.
          ...(op === OP_REQUEST ? { dstPort: 99 } : {}),
          op,
          type,
          srcCid: GUEST_CID + from,
          dstCid: CID_HOST + to,
        });
        return opName(op);
      }
      case "flood":
        return `${this.#flood(step.packets)} packets`;
      case "time":
        rig.passTime(step.ms, false);
        model.timePasses(rig.now);
        return "";
      case "restore":
      case "migrate":
        // Nothing is on its way in the queues; bytes wait at either end.
        if (connections.some(({ up, down }) => !up.done || !down.done)) {
          this.run.midFlight = true;
        }
        if (step.do === "restore") rig.guest.saveResetRestore();
        else rig.migrate();
        return "";
      case "migrateAll":
        this.#migrateAll();
        return "";
      case "migrateAlone":
        for (const { state } of connections) {
          if (state === "offered") this.#connects--;
        }
        model.losesPrograms();
        rig.migrate("are lost");
        this.#programs.clear();
        this.#listeners = this.#listen();
        return "";
      case "spoiledSnapshot":
        return rig.offerSpoiled(step.seed);
      case "misuse": {
        const before = rig.slow.connects.refused;
        const outcome = misuse(rig, step.which);
        // One that was refused at once.
        this.#connects += rig.slow.connects.refused - before;
        return outcome;
      }
      case "resetConnections":
        model.endsAll();
        rig.device.resetConnections();
        rig.guest.wake();
        return "";
      case "hostWithdraw":
        return this.#withdraw();
      case "transportReset":
        rig.device.transportReset();
        model.resets();
        this.#events++;
        return "";
    }
  }

  #migrateAll(): void {
    const rig = this.#rig;
    const ends = rig.migrate("move");
    this.#listeners = this.#listen();
    for (const [before, after] of ends as [LoopbackConn, LoopbackConn][]) {
      const connection = this.#programs.get(before);
      this.#programs.delete(before);
      if (connection !== undefined) this.#programs.set(after, connection);
    }
    // Of a program that waits for the guest's answer nothing is saved.
    for (const connection of this.#model.connections) {
      if (connection.state !== "offered") continue;
      this.#connects--;
      this.#model.withdraws(connection);
    }
  }

  #listen(): LoopbackListener[] {
    const { host } = this.#rig;
    return [LISTENING_PORT, HELD_PORT].map((port) => host.listen(port));
  }

  #withdraw(): string {
    const rig = this.#rig;
    const model = this.#model;
    if (!model.hostConnects(SERVER_PORT)) return "too many";
    const pending = rig.device.connect(SERVER_PORT, {
      accepted: () => {
        throw new Violation("packets", "nobody has accepted");
      },
      refused: () => {},
    });
    rig.guest.wake();
    this.#rest();
    model.withdraws(model.find(SERVER_PORT, pending.hostPort)!);
    pending.cancel();
    pending.cancel();
    rig.guest.wake();
    return `from port ${pending.hostPort}`;
  }

  /** Host programs read everything, the guest takes everything, and both end. */
  settle(): void {
    const rig = this.#rig;
    const model = this.#model;
    for (const request of rig.slow.held) {
      const { guestPort, hostPort } = request;
      model.hostAnswers(guestPort, hostPort, false);
      rig.slow.release(request, false);
      rig.guest.wake();
      this.#rest();
    }
    for (let round = 0; round < MAX_ROUNDS; round++) {
      let news = 0;
      for (const program of [...this.#programs.keys()]) {
        news += this.#hostRead(program, 65_536);
        this.#rest();
      }
      for (const connection of model.connections) {
        const { state, fwdCnt, down } = connection;
        if (state !== "open" || down.received === down.sent) continue;
        this.#sendOn(connection, {
          op: OP_CREDIT_UPDATE,
          bufAlloc: 5000,
          fwdCnt: down.received,
        });
        this.#rest();
        news += down.received - fwdCnt;
      }
      if (news === 0) break;
    }
    for (const connection of model.connections) {
      const { up, down, state } = connection;
      if (state === "open" && !(up.done && down.done)) {
        throw new Violation("progress", `${up}; ${down}`);
      }
    }
    for (const [program, connection] of this.#programs) {
      this.#hostClose(program, connection);
    }
    this.#rest();
    for (const connection of model.connections) {
      const op = connection.state === "closing" ? OP_RST : OP_SHUTDOWN;
      if (connection.state === "offered") continue;
      this.#sendOn(connection, {
        op,
        flags: op === OP_RST ? 0 : SHUTDOWN_BOTH,
      });
      this.#rest();
    }
    rig.passTime(LONG_MS, false);
    model.timePasses(rig.now);
    this.#rest();
    const { device, host, slow } = rig;
    const left = [model.count, device.connectionCount, host.connections.length];
    expectSame("every-connection-ends", "what is left", left.join(), "0,0,0");
    const { accepted, refused } = slow.connects;
    const answered = accepted + refused;
    expectSame("every-connection-ends", "answers", answered, this.#connects);
    expectSame("every-connection-ends", "pending", device.pending, false);
    const deadline = device.nextDeadline();
    expectSame("every-connection-ends", "deadline", deadline, Infinity);
    this.#rig.tell(this.run);
  }

  // -- What the guest sends --

  #sendOn(
    { guestPort, hostPort, bufAlloc, fwdCnt }: WireConnection,
    fields: Partial<WirePacket>,
    payload: Uint8Array = new Uint8Array(0),
    cut?: Cut,
  ): void {
    const ports = { srcPort: guestPort, dstPort: hostPort };
    this.#send({ ...ports, bufAlloc, fwdCnt, ...fields }, payload, cut);
  }

  #send(
    fields: Partial<WirePacket>,
    payload: Uint8Array = new Uint8Array(0),
    cut: Cut = { cut: 0, joined: false },
  ): boolean {
    const packet: WirePacket = {
      srcCid: GUEST_CID,
      dstCid: CID_HOST,
      srcPort: 0,
      dstPort: 0,
      type: TYPE_STREAM,
      op: 0,
      flags: 0,
      len: payload.length,
      bufAlloc: 0,
      fwdCnt: 0,
      ...fields,
    };
    const header = new Uint8Array(HEADER_BYTES);
    new PacketHeader().set(packet).write(new DataView(header.buffer), 0);
    const pieces = inPieces(header, payload, cut);
    if (this.#rig.guest.driver.sendRaw(pieces) === null) return false;
    this.#model.guestSends(packet, payload.length);
    return true;
  }

  /** Packets of no connection while the guest takes no answer. */
  #flood(packets: number): number {
    const { guest, device } = this.#rig;
    const { driver } = guest;
    driver.rxPaused = true;
    let sent = 0;
    for (; sent < packets; sent++) {
      const srcPort = STRAY_PORT + this.#strays;
      if (!this.#send({ srcPort, dstPort: 99, op: OP_RW })) {
        guest.run();
        if (!this.#send({ srcPort, dstPort: 99, op: OP_RW })) break;
      }
      this.#strays++;
    }
    guest.run();
    // Connections that come and go, with no buffer for an answer.
    const starved = driver.postedBuffers === 0;
    for (let i = 0; starved && i < MANY_REQUESTS; i++) {
      const ports = {
        srcPort: STRAY_PORT + this.#strays++,
        dstPort: LISTENING_PORT,
      };
      if (this.#model.count >= this.#setup.maxConnections) break;
      if (!this.#send({ ...ports, op: OP_REQUEST })) break;
      const made = this.#model.find(ports.srcPort, ports.dstPort)!;
      if (!this.#send({ ...ports, op: OP_RST })) {
        guest.run();
        if (!this.#send({ ...ports, op: OP_RST })) break;
      }
      this.#model.withdrawn(made);
      guest.run();
    }
    guest.run();
    const waiting = device.save().strays.length;
    if (waiting > MAX_ANSWERS) {
      throw new Violation("memory-bounded", `${waiting} answers wait`);
    }
    if (driver.unusedPackets > 0) this.run.full = true;
    driver.rxPaused = false;
    driver.poll();
    return sent;
  }

  // -- What host programs do --

  #programOf(connection: WireConnection): LoopbackConn | null {
    for (const [program, one] of this.#programs) {
      if (one === connection) return program;
    }
    return null;
  }

  #hostSend(
    connection: WireConnection,
    bytes: number,
    waits = false,
  ): number {
    const program = this.#programOf(connection);
    if (program === null || connection.hostEnded) return 0;
    if ((connection.guestShut & 1) !== 0) return 0;
    const { down } = connection;
    if (waits && down.received === down.sent) {
      // There is room, so that all is written at once.
      program.write(down.offer(bytes)).catch(() => {});
      down.sent += bytes;
      return bytes;
    }
    const sent = program.tryWrite(down.offer(bytes));
    down.sent += sent;
    return sent;
  }

  #hostRead(program: LoopbackConn, bytes: number, waits = false): number {
    const connection = this.#programs.get(program)!;
    const { up, state } = connection;
    const target = new Uint8Array(bytes);
    const there = this.#model.passedOn(connection) - up.received;
    if (waits && state === "open" && up.lossy === "" && there > 0) {
      // It has something to read, so that it reads at once.
      const count = Math.min(there, bytes);
      this.#rig.hostReadLater(program, target, count);
      up.take(target.subarray(0, count));
      return count;
    }
    try {
      const count = this.#rig.hostRead(program, target);
      if (count === null) up.takeEnd();
      else up.take(target.subarray(0, count));
      if (count === null && state === "over") this.#programs.delete(program);
      return count ?? 0;
    } catch (error) {
      if (!(error instanceof Error) || error instanceof Violation) throw error;
      if (error instanceof TypeError) throw error;
      if (up.lossy === "") {
        throw new Violation("bytes-in-order", `nobody has cut ${up}`);
      }
      this.#programs.delete(program);
      return 0;
    }
  }

  #hostClose(program: LoopbackConn, connection: WireConnection): void {
    this.#model.hostCloses(connection);
    program[Symbol.dispose]();
    program.close();
    program.closeWrite();
    refused(TypeError, () => program.tryRead(new Uint8Array(1)));
    refused(TypeError, () => program.tryWrite(new Uint8Array(1)));
    this.#programs.delete(program);
  }

  // -- At rest --

  /** Lets the device do all that it has to do, and looks at what it did. */
  #rest(): void {
    const { guest, device, host, now } = this.#rig;
    const { driver } = guest;
    const model = this.#model;
    guest.run();
    for (const { header, payload, usedLength } of driver.rawPackets) {
      if (header.srcCidHigh !== 0 || header.dstCidHigh !== 0) {
        throw new Violation("packets", "a CID of more than 32 bits");
      }
      this.#rig.taken++;
      model.receives(header, payload, usedLength, now);
    }
    driver.rawPackets.length = 0;
    for (const { usedLength } of driver.rawCompletions) {
      expectSame("packets", "used.len of a packet", usedLength, 0);
    }
    driver.rawCompletions.length = 0;
    model.atRest();
    const [violation] = driver.violations;
    if (violation !== undefined) throw new Violation("packets", violation);
    expectSame("packets", "events", driver.events, this.#events);
    for (const listener of this.#listeners) {
      // One that waits gets the next one.
      if (this.#waits) listener.accept().catch(() => {});
      while (listener.tryAccept());
    }
    this.#waits = false;
    for (const program of host.connections) {
      if (this.#programs.has(program)) continue;
      const { guestPort, hostPort } = program;
      const connection = model.find(guestPort, hostPort);
      // A program that has closed is not asked any more.
      if (connection === null || connection.hostClosed) continue;
      this.#programs.set(program, connection);
    }
    const { connectionCount } = device;
    expectSame("memory-bounded", "connections", connectionCount, model.count);
  }
}

function mayCarry({ state, guestShut }: WireConnection): boolean {
  return (state === "open" || state === "closing") && (guestShut & 2) === 0;
}

function inPieces(
  header: Uint8Array,
  payload: Uint8Array,
  { cut, joined }: Cut,
): Uint8Array[] {
  const first = header.subarray(0, cut);
  const rest = header.subarray(cut);
  const half = payload.length >>> 1;
  const pieces = joined
    ? [first, concat(rest, payload.subarray(0, half)), payload.subarray(half)]
    : [first, rest, payload.subarray(0, half), payload.subarray(half)];
  return pieces.filter(({ length }) => length > 0);
}

function concat(a: Uint8Array, b: Uint8Array): Uint8Array {
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}

/** What guest and device may be made with. */
export const WIRE_SETUPS: fc.Arbitrary<VsockSetup> = fc.tuple(
  STREAM_SETUPS,
  fc.boolean(),
).map(([setup, streamsOnly]) => ({ ...setup, streamsOnly }));

/** What a script of packets may be about more than of anything else. */
export type WireTheme = "credit" | "packets" | "floods";

/** Steps of random scripts; what stands there more than once comes up more often. */
export function wireSteps(theme: WireTheme): fc.Arbitrary<WireStep>[] {
  const pick = fc.nat(7);
  const bytes = fc.oneof(fc.nat(20), fc.nat(500), fc.nat(65_536));
  const bufAlloc = fc.constantFrom(0, 1, 44, 100, 1000, 5000, 262_144);
  const cut = fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 43 }));
  const joined = fc.boolean();
  const of = <D extends WireStep["do"]>(
    kind: D,
    shape: Record<string, fc.Arbitrary<unknown>> = {},
  ): fc.Arbitrary<WireStep> =>
    fc.record(shape).map((fields) =>
      ({ do: kind, ...fields }) as unknown as WireStep
    );
  const request = of("request", {
    from: fc.nat(3),
    to: fc.constantFrom(0, 0, 1, 2),
    bufAlloc,
  });
  const packet = of("packet", {
    pick,
    op: fc.nat(9),
    flags: fc.constantFrom(0, 1, 2, 3, 4, 0xffff_ffff),
    bytes: fc.constantFrom(0, 0, 1, 50),
    lie: fc.constantFrom(0, 0, -1, 1, 0x1_0000),
    cut,
    joined,
  });
  const stray = of("stray", {
    op: fc.oneof(fc.nat(9), fc.constantFrom(OP_RST, OP_REQUEST)),
    type: fc.constantFrom(1, 1, 1, 0, 2, 7, 0xffff),
    from: fc.constantFrom(0, 0, 0, 1, 4),
    to: fc.constantFrom(0, 0, 0, 1, 5),
  });
  const shutdown = of("packet", {
    pick,
    op: fc.constantFrom(OP_SHUTDOWN, OP_SHUTDOWN, OP_RST),
    flags: fc.nat(3),
    bytes: fc.constant(0),
    lie: fc.constant(0),
    cut,
    joined,
  });
  const data = of("data", { pick, bytes, cut, joined });
  const credit = of("credit", {
    pick,
    bufAlloc,
    read: fc.nat(4),
    ask: fc.boolean(),
  });
  const waits = fc.boolean();
  const hostSend = of("hostSend", { pick, bytes, waits });
  const hostRead = of("hostRead", { pick, bytes, waits });
  const themed = {
    credit: [data, data, credit, credit, credit, hostSend, hostSend, hostRead],
    packets: [
      packet,
      packet,
      stray,
      stray,
      shutdown,
      request,
      of("resetConnections"),
    ],
    floods: [
      of("flood", { packets: fc.constantFrom(3, 40, 300) }),
      request,
      data,
      shutdown,
      of("misuse", { which: fc.nat(MISUSES - 1) }),
      of("spoiledSnapshot", { seed: fc.nat(0x7fff_ffff) }),
    ],
  }[theme];
  return [
    request,
    request,
    packet,
    stray,
    data,
    data,
    of("excess", { pick, bytes: fc.constantFrom(0, 0, 100) }),
    credit,
    hostSend,
    hostRead,
    of("hostConnect", { port: fc.nat(1) }),
    of("answer", { pick, accept: fc.nat(3).map((n) => n > 0) }),
    of("answer", { pick, accept: fc.constant(true) }),
    of("hostAnswer", { accept: fc.nat(3).map((n) => n > 0) }),
    shutdown,
    of("hostCloseWrite", { pick }),
    of("hostClose", { pick }),
    of("hostBreak", { pick }),
    of("time", { ms: fc.constantFrom(5, 30, 1500, 5000, 9000) }),
    of("restore"),
    of("migrate"),
    of("migrateAll"),
    of("migrateAlone"),
    of("transportReset"),
    of("hostWithdraw"),
    ...themed,
  ];
}
