/**
 * What a socket device answers to any packet, as rules of its own: it imports nothing of what it judges.
 *
 * It stands where a guest stands whose device has nothing to do between two packets, so that each
 * packet has one right answer.
 *
 * @module
 */

import { expectSame, Violation } from "./violation.ts";
import { DirectionModel } from "./vsock_model.ts";

const REQUEST = 1;
const RESPONSE = 2;
const RST = 3;
const SHUTDOWN = 4;
const RW = 5;
const CREDIT_UPDATE = 6;
const CREDIT_REQUEST = 7;
const STREAM = 1;
const NO_RECEIVE = 1;
const NO_SEND = 2;
const NEITHER = 3;
const HOST_CID = 2;
/** How long a device waits for the answer to its REQUEST, and to its SHUTDOWN of both directions. */
const ANSWER_MS = 10_000;
const END_MS = 8_000;

/** The fields of a packet's header. */
export type WirePacket = {
  srcCid: number;
  dstCid: number;
  srcPort: number;
  dstPort: number;
  type: number;
  op: number;
  flags: number;
  len: number;
  bufAlloc: number;
  fwdCnt: number;
};

/** What a model of a device's answers has to know of it. */
export type WireSetup = {
  guestCid: number;
  /** Receive buffer of a connection of the device, in bytes. */
  deviceBuffer: number;
  /** Bytes that a host program lets wait before it has read them. */
  hostRoom: number;
  maxConnections: number;
  /** Host port where a program listens, and where one answers when it likes. */
  listening: number;
  held: number;
};

/**
 * A connection that the device has.
 *
 * `asked`: no host program has answered. `offered`: the guest has not answered. `closing`: the host program
 * has ended both directions. `over`: it is none any more; what came before may wait for its program.
 */
export class WireConnection {
  /** Where it stands. */
  state: "asked" | "offered" | "open" | "closing" | "over";
  /** The guest's port. */
  readonly guestPort: number;
  /** The host's port. */
  readonly hostPort: number;
  /** Guest to host. */
  readonly up: DirectionModel;
  /** Host to guest. */
  readonly down: DirectionModel;
  /** What the guest has told of its buffer. */
  bufAlloc = 0;
  /** Bytes that the guest has told that it read. */
  fwdCnt = 0;
  /** Bytes that the device has told that it passed on. */
  told = 0;
  /** Flags of SHUTDOWN, of either side, together. */
  guestShut = 0;
  deviceShut = 0;
  /** The host program sends no more, or has closed. */
  hostEnded = false;
  hostClosed = false;
  /** The host program takes nothing any more, and the device has seen it. */
  deaf = false;
  deafSeen = false;
  /** When the device gives up. */
  deadline: number = Infinity;

  /** Made by {@link WireModel}. */
  constructor(
    state: "asked" | "offered" | "open",
    guestPort: number,
    hostPort: number,
    seed: number,
  ) {
    this.state = state;
    this.guestPort = guestPort;
    this.hostPort = hostPort;
    const name = `guest port ${guestPort}, host port ${hostPort}`;
    this.up = new DirectionModel(`the stream to the host of ${name}`, 2 * seed);
    this.down = new DirectionModel(
      `the stream to the guest of ${name}`,
      2 * seed + 1,
    );
  }

  /** Bytes that the guest can take, by what it has told. */
  get guestRoom(): number {
    return Math.max(0, this.bufAlloc - (this.down.received - this.fwdCnt));
  }
}

/** The answers of a device. */
export class WireModel {
  readonly #setup: WireSetup;
  readonly #live: Map<string, WireConnection> = new Map();
  readonly #lingering: Set<WireConnection> = new Set();
  /** Answers that are due and answers that came, in words. */
  #due: string[] = [];
  #came: string[] = [];
  /** A packet with news of credit is due for these. */
  readonly #asking: Set<WireConnection> = new Set();
  #made = 0;

  /** @param setup What there is to know of the device. */
  constructor(setup: WireSetup) {
    this.#setup = setup;
  }

  /** Connections, in the order in which they were made. */
  get connections(): readonly WireConnection[] {
    return [...this.#live.values()];
  }

  /** The connection of two ports. */
  find(guestPort: number, hostPort: number): WireConnection | null {
    return this.#live.get(`${guestPort}:${hostPort}`) ?? null;
  }

  /** Connections that the device has, those included that are over for the guest alone. */
  get count(): number {
    return this.#live.size + this.#waiting().length;
  }

  /** True where bytes of an earlier connection of these ports wait for their program. */
  isWaiting(guestPort: number, hostPort: number): boolean {
    return this.#waiting().some((one) =>
      one.guestPort === guestPort && one.hostPort === hostPort
    );
  }

  /** Bytes that have left the device's buffer. */
  passedOn({ up, hostClosed, deafSeen }: WireConnection): number {
    return hostClosed || deafSeen
      ? up.sent
      : Math.min(up.sent, up.received + this.#setup.hostRoom);
  }

  /** Bytes that the device takes, whatever it has told. */
  deviceRoom(connection: WireConnection): number {
    return this.#setup.deviceBuffer -
      (connection.up.sent - this.passedOn(connection));
  }

  // -- What the guest does --

  /** The guest sends a packet with `carried` bytes behind its header. */
  guestSends(packet: WirePacket, carried: number): void {
    const { type, op, srcCid, dstCid, srcPort, dstPort } = packet;
    const { guestCid } = this.#setup;
    if (type !== STREAM || srcCid !== guestCid || dstCid !== HOST_CID) {
      if (op !== RST) this.#refuse(packet);
      return;
    }
    const connection = this.find(srcPort, dstPort);
    if (connection === null) {
      if (op === REQUEST) this.#request(packet);
      else if (op !== RST) this.#refuse(packet);
      return;
    }
    connection.bufAlloc = packet.bufAlloc;
    connection.fwdCnt = packet.fwdCnt;
    switch (op) {
      case RW:
        this.#data(connection, packet, carried);
        break;
      case CREDIT_UPDATE:
        break;
      case CREDIT_REQUEST:
        if (connection.state === "open" || connection.state === "closing") {
          this.#asking.add(connection);
        }
        break;
      case SHUTDOWN:
        this.#shutdown(connection, packet);
        break;
      case RST:
        this.#end(connection, true);
        break;
      case RESPONSE:
        if (connection.state !== "offered") this.#fail(connection, packet);
        else {
          connection.state = "open";
          connection.deadline = Infinity;
        }
        break;
      default:
        this.#fail(connection, packet);
    }
  }

  #request(packet: WirePacket): void {
    const { srcPort, dstPort, bufAlloc, fwdCnt } = packet;
    const { listening, held, maxConnections } = this.#setup;
    const full = this.count >= maxConnections;
    if (full || (dstPort !== listening && dstPort !== held)) {
      return this.#refuse(packet);
    }
    const state = dstPort === held ? "asked" : "open";
    const made = this.#add(state, srcPort, dstPort);
    made.bufAlloc = bufAlloc;
    made.fwdCnt = fwdCnt;
    if (state === "open") this.#dueOf(RESPONSE, packet);
  }

  #data(
    connection: WireConnection,
    packet: WirePacket,
    carried: number,
  ): void {
    const { state, guestShut, up } = connection;
    const { len } = packet;
    if (len > carried) return this.#fail(connection, packet);
    if (len === 0) return;
    const takes = (state === "open" || state === "closing") &&
      (guestShut & NO_SEND) === 0;
    if (!takes || len > this.deviceRoom(connection)) {
      return this.#fail(connection, packet);
    }
    up.sent += len;
    if (connection.deaf) connection.deafSeen = true;
  }

  #shutdown(connection: WireConnection, packet: WirePacket): void {
    const { state } = connection;
    if (state !== "open" && state !== "closing") {
      return this.#fail(connection, packet);
    }
    connection.guestShut |= packet.flags & NEITHER;
    if ((connection.guestShut & NO_SEND) !== 0) connection.up.ended = true;
    if ((connection.guestShut & NO_RECEIVE) !== 0) {
      connection.down.cut("the guest receives no more");
    }
    if (connection.guestShut !== NEITHER) return;
    this.#dueOf(RST, packet);
    this.#end(connection, false);
  }

  /** The guest has broken a rule. */
  #fail(connection: WireConnection, packet: WirePacket): void {
    this.#dueOf(RST, packet);
    this.#end(connection, true);
  }

  #end(connection: WireConnection, lost: boolean): void {
    const { guestPort, hostPort, up, down } = connection;
    this.#live.delete(`${guestPort}:${hostPort}`);
    this.#asking.delete(connection);
    connection.state = "over";
    connection.deadline = Infinity;
    down.cut("the connection is over");
    if (lost) up.cut("the connection is over");
    else this.#lingering.add(connection);
  }

  // -- What others do --

  /** A host program connects; false where there is no room for it. */
  hostConnects(guestPort: number): boolean {
    if (this.count >= this.#setup.maxConnections) return false;
    this.#due.push(`REQUEST to port ${guestPort}`);
    return true;
  }

  /** A host program takes what was held, or refuses it. */
  hostAnswers(guestPort: number, hostPort: number, accepts: boolean): void {
    const connection = this.find(guestPort, hostPort)!;
    const { guestCid } = this.#setup;
    const from = { srcCid: guestCid, dstCid: HOST_CID, type: STREAM };
    const ports = { srcPort: guestPort, dstPort: hostPort };
    this.#dueOf(accepts ? RESPONSE : RST, { ...from, ...ports });
    if (accepts) connection.state = "open";
    else this.#end(connection, true);
  }

  /** A host program closes. */
  hostCloses(connection: WireConnection): void {
    connection.hostEnded = true;
    connection.hostClosed = true;
    connection.down.ended = true;
    connection.up.cut("the host's program has closed");
    this.#lingering.delete(connection);
  }

  /** Its owner ends every connection by RST. */
  endsAll(): void {
    for (const connection of this.connections) this.#resetByDevice(connection);
  }

  /** A host program does not wait for the guest's answer any more, or is lost. */
  withdraws(connection: WireConnection): void {
    this.#resetByDevice(connection);
  }

  /** The guest has reset a connection before its answer could be sent. */
  withdrawn({ guestPort, hostPort }: WireConnection): void {
    const { guestCid } = this.#setup;
    const to = `from ${HOST_CID}:${hostPort} to ${guestCid}:${guestPort}`;
    this.#due = this.#due.filter((one) =>
      !(one.startsWith("RESPONSE") && one.endsWith(to))
    );
  }

  /** A host program takes nothing any more, as the device sees where bytes wait, or when more come. */
  hostBreaks(connection: WireConnection): void {
    connection.deaf = true;
    connection.up.cut("the host's program takes nothing any more");
    if (connection.up.sent > this.passedOn(connection)) {
      connection.deafSeen = true;
    }
  }

  /** The device goes on without host programs: connections that had one are reset. */
  losesPrograms(): void {
    for (const connection of this.connections) {
      const { state } = connection;
      if (state === "open" || state === "offered") {
        this.#resetByDevice(connection);
      }
    }
    this.#lingering.clear();
  }

  /** The device has lost all connections, and the guest knows. */
  resets(): void {
    for (const connection of this.connections) this.#end(connection, true);
  }

  /** What is due by `now`. */
  timePasses(now: number): void {
    for (const connection of this.connections) {
      if (connection.deadline <= now) this.#resetByDevice(connection);
    }
  }

  #resetByDevice(connection: WireConnection): void {
    const { guestPort, hostPort } = connection;
    this.#dueOf(RST, {
      srcCid: this.#setup.guestCid,
      dstCid: HOST_CID,
      srcPort: guestPort,
      dstPort: hostPort,
      type: STREAM,
    });
    this.#end(connection, true);
  }

  // -- What the device sends --

  /** Judges a packet of the device. */
  receives(
    packet: WirePacket,
    payload: Uint8Array,
    usedLength: number,
    now: number,
  ): void {
    const { op, srcPort, dstPort, type, flags } = packet;
    expectSame("packets", "len", packet.len, payload.length);
    expectSame("packets", "used.len", usedLength, 44 + packet.len);
    if (op !== RW) expectSame("packets", "payload", packet.len, 0);
    if (op !== SHUTDOWN) expectSame("packets", "flags", flags, 0);
    if (op === RST || op === RESPONSE) {
      this.#came.push(words(op, packet));
      if (op === RST) return;
    }
    expectSame("packets", "type", type, STREAM);
    expectSame("packets", "src_cid", packet.srcCid, HOST_CID);
    expectSame("packets", "dst_cid", packet.dstCid, this.#setup.guestCid);
    if (op === REQUEST) {
      this.#came.push(`REQUEST to port ${dstPort}`);
      if (this.find(dstPort, srcPort) !== null) {
        throw new Violation("packets", `port ${srcPort} connects twice`);
      }
      this.#add("offered", dstPort, srcPort).deadline = now + ANSWER_MS;
    }
    const connection = this.find(dstPort, srcPort);
    if (connection === null) {
      throw new Violation("rst-rules", `${words(op, packet)} of no connection`);
    }
    this.#news(connection, packet);
    if (op === RW) this.#receivesData(connection, payload);
    else if (op === SHUTDOWN) this.#receivesShutdown(connection, flags, now);
    else if (op === 0 || op > CREDIT_REQUEST) {
      throw new Violation("packets", `operation ${op}`);
    }
  }

  #news(connection: WireConnection, packet: WirePacket): void {
    const { fwdCnt, bufAlloc } = packet;
    const { deviceBuffer } = this.#setup;
    expectSame("credit", "buf_alloc", bufAlloc, deviceBuffer);
    const most = this.passedOn(connection);
    if (fwdCnt < connection.told || fwdCnt > most) {
      throw new Violation(
        "credit",
        `fwd_cnt goes from ${connection.told} to ${fwdCnt} where ${most} bytes were passed on`,
      );
    }
    connection.told = fwdCnt;
    this.#asking.delete(connection);
  }

  #receivesData(connection: WireConnection, payload: Uint8Array): void {
    const { guestRoom, down, state } = connection;
    if (state !== "open" || (connection.deviceShut & NO_SEND) !== 0) {
      throw new Violation("packets", `data in state ${state}`);
    }
    if (payload.length > guestRoom) {
      throw new Violation(
        "credit",
        `${payload.length} bytes for a guest with room for ${guestRoom}`,
      );
    }
    if (payload.length === 0) throw new Violation("packets", "data of 0 bytes");
    down.take(payload);
  }

  #receivesShutdown(
    connection: WireConnection,
    flags: number,
    now: number,
  ): void {
    const { deviceShut, down, hostClosed, hostEnded } = connection;
    if (
      flags === 0 || (flags & ~NEITHER) !== 0 ||
      (flags | deviceShut) === deviceShut
    ) {
      throw new Violation("packets", `SHUTDOWN ${flags} after ${deviceShut}`);
    }
    if ((flags & NO_SEND) !== 0) {
      if (!hostEnded) {
        throw new Violation("packets", "the host's program has not ended");
      }
      down.takeEnd();
    }
    if ((flags & NO_RECEIVE) !== 0 && !hostClosed && !connection.deafSeen) {
      throw new Violation("packets", "the host's program has not closed");
    }
    connection.deviceShut |= flags;
    if (connection.deviceShut !== NEITHER) return;
    connection.state = "closing";
    connection.deadline = now + END_MS;
  }

  // -- At rest --

  /** What is due has come, and nothing else has. */
  atRest(): void {
    const due = this.#due.sort().join("; ");
    const came = this.#came.sort().join("; ");
    this.#due = [];
    this.#came = [];
    expectSame("rst-rules", "what was answered", came, due);
    if (this.#asking.size > 0) {
      throw new Violation("credit", "a CREDIT_REQUEST has no answer");
    }
    for (const connection of this.connections) this.#checkRest(connection);
  }

  #checkRest(connection: WireConnection): void {
    const { state, up, down, guestShut, deviceShut, told } = connection;
    const takes = (guestShut & NO_RECEIVE) === 0;
    if (state === "open" && takes) {
      // Without room a device need not look for more, nor for the end.
      const room = down.received === connection.fwdCnt &&
        connection.bufAlloc > 0;
      if (room && down.received < down.sent) {
        throw new Violation("progress", `${down}, and the guest has room`);
      }
      if (room && connection.hostEnded && (deviceShut & NO_SEND) === 0) {
        throw new Violation("progress", `${down}: no SHUTDOWN at its end`);
      }
    }
    if (state === "open" && connection.hostClosed && !takes) {
      throw new Violation("progress", "no SHUTDOWN after the host's program");
    }
    if (state !== "open") return;
    const { deviceBuffer } = this.#setup;
    const passed = this.passedOn(connection);
    if (up.sent - told >= deviceBuffer && passed === up.sent) {
      throw new Violation("progress", "the guest is not told of room");
    }
  }

  #waiting(): WireConnection[] {
    for (const one of this.#lingering) {
      if (this.passedOn(one) >= one.up.sent) this.#lingering.delete(one);
    }
    return [...this.#lingering];
  }

  #add(
    state: "asked" | "offered" | "open",
    guestPort: number,
    hostPort: number,
  ): WireConnection {
    const made = new WireConnection(state, guestPort, hostPort, this.#made++);
    this.#live.set(`${guestPort}:${hostPort}`, made);
    return made;
  }

  #refuse(packet: WirePacket): void {
    this.#dueOf(RST, packet);
  }

  /** An answer to `packet`: its addresses change places. */
  #dueOf(
    op: number,
    { srcCid, dstCid, srcPort, dstPort, type }: Pick<
      WirePacket,
      "srcCid" | "dstCid" | "srcPort" | "dstPort" | "type"
    >,
  ): void {
    this.#due.push(words(op, {
      srcCid: dstCid,
      dstCid: srcCid,
      srcPort: dstPort,
      dstPort: srcPort,
      type,
    }));
  }
}

function words(
  op: number,
  { srcCid, dstCid, srcPort, dstPort, type }: Pick<
    WirePacket,
    "srcCid" | "dstCid" | "srcPort" | "dstPort" | "type"
  >,
): string {
  const name = { [RST]: "RST", [RESPONSE]: "RESPONSE" }[op] ??
    `operation ${op}`;
  return `${name} of type ${type} from ${srcCid}:${srcPort} to ${dstCid}:${dstPort}`;
}
