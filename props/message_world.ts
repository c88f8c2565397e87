/**
 * Seqpacket connections: a guest that cuts its messages into fragments at will, host programs that send and
 * receive whole ones, and the device between them.
 *
 * @module
 */

import fc from "fast-check";
import type {
  LoopbackHost,
  LoopbackListener,
} from "../device/vsock/loopback.ts";
import {
  CID_HOST,
  OP_CREDIT_REQUEST,
  OP_CREDIT_UPDATE,
  OP_REQUEST,
  OP_RESPONSE,
  OP_RST,
  OP_RW,
  OP_SHUTDOWN,
  opName,
  SEQ_EOM,
  SEQ_EOR,
  SHUTDOWN_BOTH,
  SHUTDOWN_RCV,
  SHUTDOWN_SEND,
  TYPE_SEQPACKET,
  TYPE_STREAM,
} from "./guest/mod.ts";
import {
  MessagesModel,
  MessageStore,
  type SentMessage,
} from "./message_model.ts";
import type { QueueRun } from "./queue_steps.ts";
import { SLOW_MESSAGES } from "./slow_host.ts";
import { newRun, type ScriptWorld } from "./script_property.ts";
import { expectSame, Violation } from "./violation.ts";
import { refused } from "./refused.ts";
import { VsockRig, type VsockSetup } from "./vsock_rig.ts";
import type { WirePacket } from "./wire_model.ts";

/** One step of a script; picks count modulo the connections that there are. */
export type MessageStep =
  | { do: "connect"; bufAlloc: number }
  | { do: "hostConnect" }
  /** The guest begins a message, which ends a record or not. */
  | { do: "message"; pick: number; bytes: number; endOfRecord: boolean }
  /** The guest sends a fragment of what it has begun, or all that is left. */
  | { do: "fragment"; pick: number; bytes: number }
  | { do: "rest"; pick: number; more: number }
  /** A host program sends as many, by itself or in its own time. */
  | {
    do: "hostMessage";
    pick: number;
    bytes: number;
    endOfRecord: boolean;
    count: number;
    waits: boolean;
  }
  | { do: "hostReceive"; pick: number; count: number }
  /** The guest reads whole messages, and tells of a buffer that grows by so many bytes. */
  | { do: "read"; pick: number; grows: number }
  | { do: "wrongType"; pick: number; op: number }
  | { do: "shutdown"; pick: number; flags: number }
  | { do: "reset"; pick: number }
  | { do: "hostCloseWrite" | "hostClose" | "hostBreak"; pick: number }
  | { do: "time"; ms: number }
  /** The guest's buffer becomes smaller, at a bad time perhaps. */
  | { do: "shrink"; pick: number; bufAlloc: number }
  /** Empty messages, more than anybody may leave unread. */
  | { do: "empties"; pick: number }
  | { do: "spoiledSnapshot"; seed: number }
  | { do: "restore" | "migrate" | "migrateAll" };

type Program = LoopbackHost["messageConnections"][number];

type Connection = {
  guestPort: number;
  hostPort: number;
  up: MessagesModel;
  down: MessagesModel;
  store: MessageStore;
  /** What is left of a message that the guest has begun. */
  begun: { message: SentMessage; done: number } | null;
  bufAlloc: number;
  fwdCnt: number;
  /** Bytes of whole messages, and of all fragments, that the guest got. */
  whole: number;
  received: number;
  sent: number;
  program: Program | null;
  guestShut: number;
  deviceShut: number;
  hostEnded: boolean;
  /** The host program takes nothing any more. */
  deaf: boolean;
  over: boolean;
  /** The guest has done what the device may end the connection for. */
  tempted: boolean;
  /** When the device has ended both directions. */
  closingAt: number;
};

const PORT = 1234;
const STREAM_PORT = 1235;
const SERVER_PORT = 80;
const FIRST_GUEST_PORT = 5000;
const SERVER_BUFFER = 3000;
/** More than a device and a program keep: 1024 and 64. */
const MANY_EMPTIES = 1200;
/** No more than a device keeps in any case. */
const FEW_EMPTIES = 1000;
const MAX_ROUNDS = 3000;
/** How long a device waits for the answer to its SHUTDOWN of both directions. */
const END_MS = 8000;
const LONG_MS = 20_000;

/** The device, its host programs, and a guest that is a model of it. */
export class MessageWorld implements ScriptWorld<MessageStep> {
  /** For statistics. */
  readonly run: QueueRun = newRun("midFlight", "wrapped", "full", "indirect");
  readonly #setup: VsockSetup;
  readonly #rig: VsockRig;
  #listener: LoopbackListener<Program>;
  /** By guest port and host port. */
  readonly #live: Map<string, Connection> = new Map();
  readonly #all: Connection[] = [];
  /** RSTs and RESPONSEs that are due and that came. */
  #due: string[] = [];
  #came: string[] = [];
  #ports = 0;
  /** It takes a while, so that once is enough. */
  #flooded = false;
  #waits = true;

  /** @param setup What guest and device are made with. */
  constructor(setup: VsockSetup) {
    this.#setup = setup;
    if (!setup.indirect) this.run.indirect = null;
    const rig = new VsockRig(setup);
    this.#rig = rig;
    this.#listener = rig.host.listen(PORT, { type: "seqpacket" });
    rig.host.listen(STREAM_PORT);
    rig.guest.driver.claimPort();
    this.#rest();
  }

  /** Whether there is a connection for it. */
  possible(step: MessageStep): boolean {
    return !("pick" in step) || this.#live.size > 0;
  }

  /** Takes a step and compares what comes of it. */
  take(step: MessageStep): string {
    const outcome = this.#perform(step);
    this.#rest();
    this.#rig.tell(this.run);
    return outcome;
  }

  #perform(step: MessageStep): string {
    const rig = this.#rig;
    const live = [...this.#live.values()];
    const picked = "pick" in step ? live[step.pick % live.length]! : null;
    switch (step.do) {
      case "connect": {
        const guestPort = FIRST_GUEST_PORT + this.#ports++;
        const { bufAlloc } = step;
        const { maxConnections } = this.#setup;
        const full = rig.device.connectionCount >= maxConnections;
        this.#due.push(words(full ? OP_RST : OP_RESPONSE, guestPort, PORT));
        if (!full) this.#add(guestPort, PORT, bufAlloc);
        const ports = { srcPort: guestPort, dstPort: PORT };
        this.#send({ ...ports, op: OP_REQUEST, bufAlloc, fwdCnt: 0 });
        return full ? "too many" : `port ${guestPort}`;
      }
      case "hostConnect":
        rig.host.connect(SERVER_PORT, { type: "seqpacket" }).catch(() => {});
        return "";
      case "message": {
        // Linux refuses what is longer than either buffer (EMSGSIZE).
        const most = Math.min(this.#setup.deviceBuffer, picked!.bufAlloc);
        const bytes = Math.min(step.bytes, most);
        if (!maySend(picked!) || picked!.begun !== null) return "";
        const message = picked!.up.offer(bytes, step.endOfRecord);
        picked!.begun = { message, done: 0 };
        if (bytes === 0) this.#fragment(picked!, 0);
        return `${bytes} bytes`;
      }
      case "fragment":
        return `${this.#fragment(picked!, step.bytes)} bytes`;
      case "rest": {
        const bytes = this.#fragment(picked!, 65_536);
        // And others of the same length.
        for (let i = 0; i < step.more && bytes > 0; i++) {
          if (picked!.begun !== null) break;
          const message = picked!.up.offer(bytes, false);
          picked!.begun = { message, done: 0 };
          this.#rig.guest.run();
          this.#fragment(picked!, 65_536);
        }
        return `${bytes} bytes`;
      }
      case "hostMessage": {
        let text = "";
        for (let i = 0; i < step.count; i++) {
          const { bytes, endOfRecord, waits } = step;
          text = this.#hostMessage(picked!, bytes, endOfRecord, waits);
        }
        return text;
      }
      case "hostReceive": {
        let count = 0;
        while (count < step.count && this.#hostReceive(picked!)) count++;
        return `${count} messages`;
      }
      case "read":
        this.#read(picked!, step.grows);
        return "";
      case "wrongType": {
        const { guestPort, hostPort } = picked!;
        const type = TYPE_STREAM;
        this.#sendOn(picked!, { op: step.op, type });
        if (step.op === OP_RST) return "";
        this.#due.push(words(OP_RST, guestPort, hostPort, type));
        return opName(step.op);
      }
      case "shutdown": {
        if (picked!.guestShut === SHUTDOWN_BOTH) return "";
        const { flags } = step;
        picked!.guestShut |= flags;
        if ((flags & SHUTDOWN_SEND) !== 0) {
          // What was begun is left out.
          picked!.up.ended = true;
          picked!.begun = null;
        }
        if ((flags & SHUTDOWN_RCV) !== 0) picked!.down.cut("not received");
        if (picked!.guestShut === SHUTDOWN_BOTH) {
          this.#due.push(words(OP_RST, picked!.guestPort, picked!.hostPort));
          this.#end(picked!);
        }
        this.#sendOn(picked!, { op: OP_SHUTDOWN, flags });
        return "";
      }
      case "reset":
        picked!.up.cut("the guest has reset it");
        this.#end(picked!);
        this.#sendOn(picked!, { op: OP_RST });
        return "";
      case "hostCloseWrite":
        if (picked!.program === null || picked!.hostEnded) return "";
        picked!.hostEnded = picked!.down.ended = true;
        picked!.program.closeWrite();
        return "";
      case "hostClose":
        this.#hostClose(picked!);
        return "";
      case "hostBreak": {
        const { program } = picked!;
        if (program === null) return "";
        picked!.deaf = true;
        picked!.up.cut("the host's program takes nothing any more");
        rig.slow.breakOff(program);
        rig.guest.wake();
        return "";
      }
      case "time":
        rig.passTime(step.ms, false);
        return "";
      case "restore":
      case "migrate":
        if (live.some((one) => this.#underWay(one))) this.run.midFlight = true;
        if (step.do === "restore") rig.guest.saveResetRestore();
        else rig.migrate();
        return "";
      case "migrateAll": {
        if (live.some((one) => this.#underWay(one))) this.run.midFlight = true;
        const ends = new Map(rig.migrate("move"));
        this.#listener = rig.host.listen(PORT, { type: "seqpacket" });
        for (const connection of this.#all) {
          const after = connection.program && ends.get(connection.program);
          if (after) connection.program = after as Program;
        }
        return "";
      }
      case "spoiledSnapshot":
        return rig.offerSpoiled(step.seed);
      case "shrink":
        picked!.fwdCnt = picked!.whole;
        picked!.bufAlloc = Math.min(picked!.bufAlloc, step.bufAlloc);
        picked!.tempted = true;
        this.#sendOn(picked!, { op: OP_CREDIT_UPDATE });
        return `${picked!.bufAlloc} bytes`;
      case "empties":
        return this.#sendEmpties(picked!);
    }
  }

  /** Everything is received, and both ends close: nothing is left. */
  settle(): void {
    for (const connection of this.#live.values()) {
      // A guest without a buffer may be sent nothing at all.
      if (connection.bufAlloc === 0) this.#read(connection, SERVER_BUFFER);
      this.#rest();
    }
    for (let round = 0; round < MAX_ROUNDS; round++) {
      let news = false;
      for (const connection of this.#all) {
        while (this.#hostReceive(connection)) {
          news = true;
          this.#rest();
        }
      }
      for (const connection of this.#live.values()) {
        if (connection.begun !== null && maySend(connection)) {
          if (this.#fragment(connection, 65_536) > 0) news = true;
          this.#rest();
        }
        if (connection.whole > connection.fwdCnt) {
          this.#read(connection, 0);
          this.#rest();
          news = true;
        }
      }
      if (!news) break;
    }
    // A message that does not fit any more is found by the clock.
    this.#rig.passTime(1100, false);
    this.#rest();
    for (const { up, down, tempted } of this.#all) {
      for (const one of tempted ? [] : [up, down]) {
        if (one.lossy !== "" || one.waiting.length === 0) continue;
        throw new Violation("progress", `${one}`);
      }
    }
    for (const connection of this.#all) this.#hostClose(connection);
    this.#rest();
    for (const connection of [...this.#live.values()]) {
      this.#end(connection);
      this.#sendOn(connection, { op: OP_RST });
      this.#rest();
    }
    this.#rig.passTime(LONG_MS, false);
    this.#rest();
    const { device, host } = this.#rig;
    const left = [device.connectionCount, host.messageConnections.length];
    expectSame("every-connection-ends", "what is left", left.join(), "0,0");
    this.#rig.tell(this.run);
  }

  // -- What the guest does --

  #fragment(connection: Connection, most: number): number {
    const { begun, up, store } = connection;
    if (begun === null || !maySend(connection)) return 0;
    const { bytes, endOfRecord } = begun.message;
    const free = this.#setup.deviceBuffer - (connection.sent - store.passedOn);
    const left = bytes.length - begun.done;
    const length = Math.min(most, left, free, 65_536);
    const last = length === left;
    // An empty fragment in the middle says nothing.
    if (length === 0 && !last) return 0;
    const flags = last ? SEQ_EOM | (endOfRecord ? SEQ_EOR : 0) : 0;
    const payload = bytes.subarray(begun.done, begun.done + length);
    this.#sendOn(connection, { op: OP_RW, flags }, payload);
    begun.done += length;
    connection.sent += length;
    if (last) {
      connection.begun = null;
      up.sent(begun.message);
      store.add(bytes.length);
    }
    return length;
  }

  #sendEmpties(connection: Connection): string {
    const closed = connection.program === null;
    if (connection.begun !== null || !maySend(connection)) return "";
    if (closed || this.#flooded) return "";
    this.#flooded = true;
    connection.tempted = true;
    let sent = 0;
    while (!connection.over && sent < MANY_EMPTIES) {
      connection.begun = { message: connection.up.offer(0, false), done: 0 };
      this.#fragment(connection, 0);
      sent++;
      if (sent < FEW_EMPTIES) this.#rig.guest.run();
      else this.#rest();
    }
    this.#rest();
    if (!connection.over) {
      throw new Violation("memory-bounded", `${sent} empty messages are kept`);
    }
    return `${sent} messages`;
  }

  #read(connection: Connection, grows: number): void {
    connection.fwdCnt = connection.whole;
    connection.bufAlloc += grows;
    this.#sendOn(connection, { op: OP_CREDIT_UPDATE });
  }

  #sendOn(
    { guestPort, hostPort, bufAlloc, fwdCnt }: Connection,
    fields: Partial<WirePacket>,
    payload: Uint8Array = new Uint8Array(0),
  ): void {
    const ports = { srcPort: guestPort, dstPort: hostPort };
    this.#send({ ...ports, bufAlloc, fwdCnt, ...fields }, payload);
  }

  #send(
    fields: Partial<WirePacket>,
    payload: Uint8Array = new Uint8Array(0),
  ): void {
    const { driver } = this.#rig.guest;
    driver.sendPacket({ type: TYPE_SEQPACKET, ...fields }, payload);
  }

  // -- What host programs do --

  #hostMessage(
    connection: Connection,
    bytes: number,
    endOfRecord: boolean,
    waits: boolean,
  ): string {
    const { program, down, bufAlloc, hostEnded, guestShut } = connection;
    if (program === null || hostEnded || connection.over) return "";
    if ((guestShut & SHUTDOWN_RCV) !== 0) return "";
    const most = Math.min(bufAlloc, this.#setup.deviceBuffer);
    expectSame("credit", "longest message", program.maxMessageBytes, most);
    const message = down.offer(bytes, endOfRecord);
    if (waits && bytes <= most && down.waiting.length === 0) {
      // There is room, so that it is sent at once.
      program.send(message.bytes, { endOfRecord }).catch(() => {});
      down.sent(message);
      return `${bytes} bytes`;
    }
    let sent = false;
    try {
      sent = program.trySend(message.bytes, { endOfRecord });
    } catch (error) {
      if (!(error instanceof RangeError) || bytes <= most) throw error;
      return "too long";
    }
    if (bytes > most) {
      throw new Violation("credit", `${bytes} bytes for a buffer of ${most}`);
    }
    if (sent) down.sent(message);
    return sent ? `${bytes} bytes` : "no room";
  }

  /** True where there was a message. */
  #hostReceive(connection: Connection): boolean {
    const { program, up, store } = connection;
    if (program === null) return false;
    try {
      const expected = store.hasNext;
      const message = this.#rig.hostReceive(program);
      if (message === null) {
        if (expected && up.lossy === "") {
          throw new Violation("progress", `${up}, and none is there`);
        }
        if (program.atEnd) up.takeEnd();
        return false;
      }
      up.take(message.bytes, message.endOfRecord);
      store.received();
      return true;
    } catch (error) {
      if (error instanceof Violation || error instanceof TypeError) throw error;
      if (!(error instanceof Error)) throw error;
      if (up.lossy === "") {
        throw new Violation("seqpacket-messages", `nobody has cut ${up}`);
      }
      connection.program = null;
      return false;
    }
  }

  #hostClose(connection: Connection): void {
    const { program, up, down } = connection;
    if (program === null) return;
    connection.program = null;
    connection.hostEnded = down.ended = true;
    up.cut("the host's program has closed");
    program[Symbol.dispose]();
    program.close();
    program.closeWrite();
    refused(TypeError, () => program.tryReceive());
    refused(TypeError, () => program.trySend(new Uint8Array(1)));
  }

  // -- At rest --

  #rest(): void {
    const { guest, host } = this.#rig;
    const { driver } = guest;
    do {
      guest.run();
      for (const { header, payload } of driver.rawPackets.splice(0)) {
        this.#rig.taken++;
        this.#receives(header, payload);
      }
      // What it sends in answer is taken, too.
    } while (driver.unusedPackets > 0 || driver.pendingPackets > 0);
    driver.rawCompletions.length = 0;
    const due = this.#due.sort().join("; ");
    const came = this.#came.sort().join("; ");
    this.#due = [];
    this.#came = [];
    expectSame("rst-rules", "what was answered", came, due);
    // One that waits gets the next one.
    if (this.#waits) this.#listener.accept().catch(() => {});
    this.#waits = false;
    while (this.#listener.tryAccept() !== null);
    for (const program of host.messageConnections) {
      const { guestPort, hostPort } = program;
      const connection = this.#live.get(`${guestPort}:${hostPort}`);
      if (connection !== undefined && !connection.hostEnded) {
        connection.program ??= program;
      }
    }
    for (const connection of this.#live.values()) this.#checkRest(connection);
  }

  #checkRest(connection: Connection): void {
    const { down, whole, fwdCnt, guestShut, deviceShut } = connection;
    const takes = (guestShut & SHUTDOWN_RCV) === 0;
    // A message that does not fit any more is found by the clock.
    if (connection.tempted) return;
    if (!takes || whole > fwdCnt || connection.bufAlloc === 0) return;
    // Nothing is unread but fragments of a message that fits.
    if (down.waiting.length > 0 && down.lossy === "") {
      throw new Violation("progress", `${down}, and the guest has room`);
    }
    if (connection.hostEnded && (deviceShut & SHUTDOWN_SEND) === 0) {
      throw new Violation("progress", `${down}: no SHUTDOWN at its end`);
    }
  }

  #receives(packet: WirePacket, payload: Uint8Array): void {
    const { op, srcPort, dstPort, type, flags, srcCid } = packet;
    expectSame("packets", "src_cid", srcCid, CID_HOST);
    expectSame("packets", "len", packet.len, payload.length);
    const ended = this.#live.get(`${dstPort}:${srcPort}`);
    if (op === OP_RST && type === TYPE_SEQPACKET && ended !== undefined) {
      const late = this.#rig.now >= ended.closingAt + END_MS;
      if (ended.tempted || late) {
        ended.up.cut("the device has ended it");
        this.#end(ended);
        return;
      }
    }
    if (op === OP_RST || op === OP_RESPONSE) {
      this.#came.push(words(op, dstPort, srcPort, type));
      return;
    }
    expectSame("packets", "type", type, TYPE_SEQPACKET);
    if (op === OP_REQUEST) {
      this.#add(dstPort, srcPort, SERVER_BUFFER);
      const ports = { srcPort: dstPort, dstPort: srcPort };
      const bufAlloc = SERVER_BUFFER;
      this.#send({ ...ports, op: OP_RESPONSE, bufAlloc, fwdCnt: 0 });
      return;
    }
    const connection = this.#live.get(`${dstPort}:${srcPort}`);
    if (connection === undefined) {
      throw new Violation("rst-rules", `${opName(op)} of no connection`);
    }
    const { store, hostEnded, deaf, sent } = connection;
    const passedOn = hostEnded || deaf ? sent : store.passedOn;
    if (packet.fwdCnt > passedOn) {
      throw new Violation("credit", `fwd_cnt ${packet.fwdCnt} of ${passedOn}`);
    }
    if (op === OP_RW) {
      connection.received += payload.length;
      if (connection.received - connection.fwdCnt > connection.bufAlloc) {
        throw new Violation("credit", "more than the guest has room for");
      }
      if (connection.down.takeFragment(payload, flags)) {
        connection.whole = connection.received;
      }
    } else if (op === OP_CREDIT_REQUEST) {
      this.#sendOn(connection, { op: OP_CREDIT_UPDATE });
    } else if (op === OP_SHUTDOWN) {
      if ((flags & SHUTDOWN_SEND) !== 0) connection.down.takeEnd();
      connection.deviceShut |= flags;
      if (connection.deviceShut === SHUTDOWN_BOTH) {
        connection.closingAt = this.#rig.now;
      }
    }
  }

  #underWay({ up, down, begun, store }: Connection): boolean {
    return begun !== null || store.holdsBack || up.waiting.length > 0 ||
      down.waiting.length > 0;
  }

  #end(connection: Connection): void {
    const { guestPort, hostPort, down } = connection;
    this.#live.delete(`${guestPort}:${hostPort}`);
    connection.over = true;
    connection.begun = null;
    down.cut("the connection is over");
  }

  #add(guestPort: number, hostPort: number, bufAlloc: number): void {
    const id = this.#all.length;
    const connection: Connection = {
      guestPort,
      hostPort,
      up: new MessagesModel(`connection ${id} to the host`, 2 * id),
      down: new MessagesModel(`connection ${id} to the guest`, 2 * id + 1),
      store: new MessageStore(this.#setup.hostRoom, SLOW_MESSAGES),
      begun: null,
      bufAlloc,
      fwdCnt: 0,
      whole: 0,
      received: 0,
      sent: 0,
      program: null,
      guestShut: 0,
      deviceShut: 0,
      hostEnded: false,
      deaf: false,
      over: false,
      tempted: false,
      closingAt: Infinity,
    };
    this.#all.push(connection);
    this.#live.set(`${guestPort}:${hostPort}`, connection);
  }
}

function maySend({ guestShut }: Connection): boolean {
  // A program that has closed takes everything and drops it.
  return (guestShut & SHUTDOWN_SEND) === 0;
}

function words(
  op: number,
  guestPort: number,
  hostPort: number,
  type: number = TYPE_SEQPACKET,
): string {
  return `${opName(op)} of type ${type} from ${hostPort} to ${guestPort}`;
}

/** Steps of random scripts; what stands there more than once comes up more often. */
export function messageSteps(): fc.Arbitrary<MessageStep>[] {
  const pick = fc.nat(5);
  const bytes = fc.oneof(
    fc.nat(3),
    fc.nat(200),
    fc.nat(6000),
    fc.constant(0),
  );
  const endOfRecord = fc.boolean();
  const of = <D extends MessageStep["do"]>(
    kind: D,
    shape: Record<string, fc.Arbitrary<unknown>> = {},
  ): fc.Arbitrary<MessageStep> =>
    fc.record(shape).map((fields) =>
      ({ do: kind, ...fields }) as unknown as MessageStep
    );
  const bufAlloc = fc.constantFrom(0, 1, 60, 1000, 5000, 262_144);
  const fromGuest = [
    of("message", { pick, bytes, endOfRecord }),
    of("fragment", { pick, bytes }),
    of("rest", { pick, more: fc.nat(3) }),
  ];
  const fromHost = [
    of("hostMessage", {
      pick,
      bytes,
      endOfRecord,
      count: fc.integer({ min: 1, max: 4 }),
      waits: fc.boolean(),
    }),
    of("read", { pick, grows: fc.constantFrom(0, 0, 0, 100) }),
  ];
  return [
    of("connect", { bufAlloc }),
    of("connect", { bufAlloc: fc.constantFrom(60, 1000, 5000) }),
    of("hostConnect"),
    ...fromGuest,
    ...fromGuest,
    ...fromHost,
    ...fromHost,
    ...fromHost,
    of("hostReceive", { pick, count: fc.integer({ min: 1, max: 4 }) }),
    of("wrongType", { pick, op: fc.integer({ min: 1, max: 7 }) }),
    of("shutdown", { pick, flags: fc.nat(3) }),
    of("reset", { pick }),
    of("hostCloseWrite", { pick }),
    of("hostClose", { pick }),
    of("hostBreak", { pick }),
    fc.oneof(
      {
        arbitrary: of("time", { ms: fc.constantFrom(5, 30, 1500) }),
        weight: 9,
      },
      { arbitrary: of("empties", { pick }), weight: 1 },
    ),
    of("restore"),
    of("migrate"),
    of("migrateAll"),
    of("shrink", { pick, bufAlloc: fc.constantFrom(1, 60, 500) }),
    of("spoiledSnapshot", { seed: fc.nat(0x7fff_ffff) }),
  ];
}
