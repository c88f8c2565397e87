import type { BufferList, DriverQueue } from "../../ring/queue.ts";
import { ClosedTuples } from "./closed_tuples.ts";
import { ConnectionTable } from "./connection_table.ts";
import {
  CONNECT_TIMEOUT_MS,
  EVENT_QUEUE,
  type ObservedPacket,
  RX_QUEUE,
  TX_QUEUE,
  type VsockDriverOptions,
  VsockViolation,
} from "./driver_options.ts";
import { EventBuffers } from "./event_buffers.ts";
import { type ConnectionPort, GuestConnection } from "./guest_connection.ts";
import { GuestListener } from "./guest_listener.ts";
import { checkPacket } from "./packet_check.ts";
import { PacketSender } from "./packet_sender.ts";
import type { RawSend } from "./raw_sender.ts";
import { ReceiveBuffers, RX_LAYOUT_LINUX_6 } from "./receive_buffers.ts";
import {
  CID_HOST,
  EVENT_TRANSPORT_RESET,
  HEADER_BYTES,
  OP_REQUEST,
  OP_RESPONSE,
  OP_RST,
  OP_RW,
  opName,
  type PacketFields,
  PacketHeader,
  TYPE_SEQPACKET,
  TYPE_STREAM,
} from "./vsock_header.ts";

const FIRST_EPHEMERAL_PORT = 1024;
/** Rounds of one `poll()`: a device on another core must not hold it for ever. */
const MAX_ROUNDS = 64;

/**
 * A guest's vsock stack over its virtqueues, as Linux has it, which checks the device it talks to.
 *
 * Nothing happens by itself: `poll()` takes what the device has used, answers, posts buffers and
 * kicks; `expire()` lets time pass. What the device does against the specification (virtio 1.4, 5.10) is
 * kept in `violations`, and thrown at the end of `poll()` unless `strict` is false.
 */
export class VsockDriver {
  /** What the device did against the specification. */
  readonly violations: string[] = [];
  /** Packets to claimed ports, oldest first; see {@link VsockDriver.claimPort}. */
  readonly rawPackets: ObservedPacket[] = [];
  /** Packets received, by operation. */
  readonly received: Float64Array = new Float64Array(8);
  /** Events received. */
  events = 0;
  /** True keeps the driver from posting receive buffers: the device runs out of them. */
  rxPaused = false;
  /** True keeps the driver from taking receive buffers back, as a guest that is busy elsewhere. */
  rxBlocked = false;

  readonly #rx: DriverQueue;
  readonly #tx: DriverQueue;
  readonly #event: DriverQueue | null;
  readonly #kick: (queue: number) => void;
  readonly #readCid: () => number;
  readonly #now: () => number;
  readonly #strict: boolean;
  readonly #seqpackets: boolean;
  readonly #bufAlloc: number;
  readonly #maxPayload: number;
  readonly #receiveBuffers: ReceiveBuffers;
  readonly #eventBuffers: EventBuffers | null;
  readonly #sender: PacketSender;
  // By token: which of our buffers it is.
  readonly #rxBuffer: Int32Array;
  readonly #rxFree: number[] = [];
  readonly #header: PacketHeader = new PacketHeader();
  readonly #table: ConnectionTable = new ConnectionTable();
  readonly #listeners: Map<number, GuestListener> = new Map();
  readonly #claimed: Set<number> = new Set();
  readonly #closed: ClosedTuples = new ClosedTuples();
  // Connections with a message that is not all sent.
  readonly #sending: Set<GuestConnection> = new Set();
  readonly #port: ConnectionPort;
  #guestCid: number;
  #claimAll = false;
  #nextPort = FIRST_EPHEMERAL_PORT;
  #thrown = 0;
  #usedBefore = 0;

  /** Reads the CID and posts receive buffers; the first `poll()` publishes them. */
  constructor(options: VsockDriverOptions) {
    const { rx, tx, event = null, arena } = options;
    this.#rx = rx;
    this.#tx = tx;
    this.#event = event;
    this.#kick = options.kick;
    this.#readCid = options.readCid;
    this.#now = options.now ?? (() => performance.now());
    this.#strict = options.strict ?? true;
    this.#seqpackets = options.seqpackets ?? false;
    this.#bufAlloc = options.bufAlloc ?? 256 * 1024;
    this.#maxPayload = options.maxPayload ?? 64 * 1024;
    const layout = options.rxLayout ?? RX_LAYOUT_LINUX_6;
    const count = options.rxBuffers ?? rx.size;
    this.#receiveBuffers = new ReceiveBuffers(arena, layout, count);
    this.#rxBuffer = new Int32Array(rx.size).fill(-1);
    for (let i = count - 1; i >= 0; i--) this.#rxFree.push(i);
    this.#sender = new PacketSender(
      tx,
      arena,
      options.txLayout ?? {},
      this.#maxPayload,
      this.#closed,
      this.#violation,
    );
    this.#eventBuffers = event === null ? null : new EventBuffers(event, arena);
    this.#port = {
      maxPayload: this.#maxPayload,
      now: this.#now,
      sendControl: (c, op, flags) => this.#sendControl(c, op, flags),
      sendPayload: (c, bytes, from, length, flags) =>
        this.#sendPayload(c, bytes, from, length, flags),
      sendLater: (c) => this.#sending.add(c),
      connectionClosed: (c) => this.#forget(c),
      violation: this.#violation,
    };
    this.#guestCid = this.#readCid();
    this.rxPaused = options.rxPaused ?? false;
    if (!this.rxPaused) this.#postReceiveBuffers();
    this.#eventBuffers?.post();
  }

  /** The guest's CID as it was read last. */
  get guestCid(): number {
    return this.#guestCid;
  }

  /** Connections that are not closed. */
  get connections(): number {
    return this.#table.size;
  }

  /** Packets sent, by operation. */
  get sent(): Float64Array {
    return this.#sender.sent;
  }

  /** Chains of {@link VsockDriver.sendRaw} that the device has used, oldest first. */
  get rawCompletions(): RawSend[] {
    return this.#sender.rawCompletions;
  }

  /** Packets that wait for room in the transmit queue. */
  get pendingPackets(): number {
    return this.#sender.waiting;
  }

  /** Packets and raw chains that the device has taken and used. */
  get usedPackets(): number {
    return this.#sender.used;
  }

  /** Receive buffers that the device has. */
  get postedBuffers(): number {
    return this.#rx.inFlight;
  }

  /** Packets and raw chains that the device has not used. */
  get unusedPackets(): number {
    return this.#tx.inFlight;
  }

  /**
   * Asks for a connection to `port`; the state says what became of it.
   *
   * `cid` is 2 unless told, `localPort` a free one, `timeoutMs` {@link CONNECT_TIMEOUT_MS}, and `type` a
   * stream.
   *
   * @throws {TypeError} when the local port is connected there, or seqpackets were not negotiated.
   */
  connect(
    port: number,
    options: {
      cid?: number;
      localPort?: number;
      timeoutMs?: number;
      type?: "stream" | "seqpacket";
    } = {},
  ): GuestConnection {
    const type = this.#typeOf(options.type ?? "stream");
    const cid = options.cid ?? CID_HOST;
    const localPort = options.localPort ?? this.#ephemeralPort(cid, port);
    if (this.#table.find(localPort, cid, port) !== null) {
      throw new TypeError(
        `Cannot connect: port ${localPort} is connected to ${cid}:${port} already`,
      );
    }
    const connection = new GuestConnection(
      this.#port,
      localPort,
      cid,
      port,
      this.#bufAlloc,
      "connecting",
      type,
    );
    connection.deadline = this.#now() +
      (options.timeoutMs ?? CONNECT_TIMEOUT_MS);
    this.#closed.delete(localPort, cid, port);
    this.#table.insert(connection);
    this.#sendControl(connection, OP_REQUEST, 0);
    return connection;
  }

  /**
   * Accepts connections to `port`; up to `backlog`, 128 unless told, wait for `accept()`. They are streams
   * unless told.
   *
   * @throws {TypeError} when somebody listens there, or seqpackets were not negotiated.
   */
  listen(
    port: number,
    backlog = 128,
    options: { type?: "stream" | "seqpacket" } = {},
  ): GuestListener {
    const type = this.#typeOf(options.type ?? "stream");
    if (this.#listeners.has(port)) {
      throw new TypeError(`Cannot listen: port ${port} is in use`);
    }
    const listener = new GuestListener(
      port,
      backlog,
      type,
      () => this.#listeners.delete(port),
    );
    this.#listeners.set(port, listener);
    return listener;
  }

  /**
   * Keeps packets to guest port `port` out of the stack: they are not checked, answered or
   * counted, but kept in {@link VsockDriver.rawPackets}. Without a port: all packets.
   */
  claimPort(port?: number): void {
    if (port === undefined) this.#claimAll = true;
    else this.#claimed.add(port);
  }

  /** Gives packets to `port`, or without one all packets, back to the stack. */
  releasePort(port?: number): void {
    if (port === undefined) this.#claimAll = false;
    else this.#claimed.delete(port);
  }

  /**
   * Sends any bytes in any descriptors: one for each of `segments`, then a device-writable one for
   * each length in `writable`; null where the queue has no room for the chain.
   *
   * The result is filled in, and appended to {@link VsockDriver.rawCompletions}, once the device has
   * used the chain.
   */
  sendRaw(
    segments: readonly Uint8Array[],
    writable: readonly number[] = [],
  ): RawSend | null {
    return this.#sender.sendRaw(segments, writable);
  }

  /**
   * Sends a chain of segments at any guest addresses, lawful or not; null where the queue has no room.
   * The memory stays the caller's until the result says that the chain was used.
   */
  sendList(list: BufferList): RawSend | null {
    return this.#sender.sendList(list);
  }

  /** Sends a packet with these header fields and payload; the guest's CID and `len` unless told. */
  sendPacket(
    fields: Partial<PacketFields>,
    payload: Uint8Array = new Uint8Array(0),
  ): RawSend | null {
    const header = new Uint8Array(HEADER_BYTES);
    new PacketHeader().set({
      srcCid: this.#guestCid,
      dstCid: CID_HOST,
      type: TYPE_STREAM,
      len: payload.length,
      bufAlloc: this.#bufAlloc,
      ...fields,
    }).write(new DataView(header.buffer), 0);
    return this.sendRaw(payload.length === 0 ? [header] : [header, payload]);
  }

  /**
   * Takes what the device has used, answers, posts receive buffers, publishes and kicks; true when
   * there was anything.
   *
   * @throws {VsockViolation} when the device broke a rule, unless `strict` is false.
   * @throws {RingError} when it broke a ring.
   */
  poll(): boolean {
    let busy = false;
    for (let round = 0; round < MAX_ROUNDS; round++) {
      // What the device took before its packets of this round were looked at.
      if (!this.rxBlocked) this.#usedBefore = this.#sender.used;
      // The transmit queue first: a packet that is an answer comes after what it answers was used.
      let more = this.#sender.reclaim();
      if (this.#takeReceived()) more = true;
      if (this.#takeEvents()) more = true;
      if (this.#sender.flush()) more = true;
      if (this.#sendMessages()) more = true;
      this.#publish();
      let late = this.#tx.armInterrupts();
      if (!this.rxBlocked && this.#rx.armInterrupts()) late = true;
      if (this.#event !== null && this.#event.armInterrupts()) late = true;
      if (more) busy = true;
      if (!late) break;
    }
    if (this.#strict && this.violations.length > this.#thrown) {
      const texts = this.violations.slice(this.#thrown);
      this.#thrown = this.violations.length;
      throw new VsockViolation(texts.join("; "));
    }
    return busy;
  }

  /** Publishes and kicks what was staged since the last `poll()`, without taking anything back. */
  flush(): void {
    this.#sender.flush();
    this.#publish();
  }

  /** Lets time pass: connections whose deadline has come are given up, as Linux does. */
  expire(now: number = this.#now()): void {
    for (const connection of this.#table.all()) {
      if (connection.deadline > now) continue;
      // A connect is withdrawn silently; a close that is not confirmed ends by RST.
      connection.drop("timeout", connection.state === "closing");
    }
  }

  #typeOf(type: "stream" | "seqpacket"): number {
    if (type === "stream") return TYPE_STREAM;
    if (this.#seqpackets) return TYPE_SEQPACKET;
    throw new TypeError(
      "Cannot use a seqpacket socket: the device has not been told of them",
    );
  }

  /** Goes on with messages that there was no room for; true where something was sent. */
  #sendMessages(): boolean {
    if (this.#sending.size === 0) return false;
    let any = false;
    for (const connection of [...this.#sending]) {
      this.#sending.delete(connection);
      if (connection.sendRest()) any = true;
    }
    return any;
  }

  // -- Queues --

  #publish(): void {
    if (this.#tx.publish() && this.#tx.needsKick()) this.#kick(TX_QUEUE);
    if (!this.rxPaused) this.#postReceiveBuffers();
    if (this.#rx.publish() && this.#rx.needsKick()) this.#kick(RX_QUEUE);
    const event = this.#event;
    if (event === null) return;
    this.#eventBuffers?.post();
    if (event.publish() && event.needsKick()) this.#kick(EVENT_QUEUE);
  }

  #postReceiveBuffers(): void {
    const free = this.#rxFree;
    while (free.length > 0) {
      const buffer = free[free.length - 1]!;
      const token = this.#rx.add(this.#receiveBuffers.list(buffer));
      if (token < 0) break;
      free.pop();
      this.#receiveBuffers.blank(buffer);
      this.#rxBuffer[token] = buffer;
    }
  }

  #takeReceived(): boolean {
    if (this.rxBlocked) return false;
    const rx = this.#rx;
    // Linux stops taking packets while this many answers wait for room.
    const limit = rx.size;
    let any = false;
    while (this.#sender.waiting < limit) {
      const token = rx.reclaim();
      if (token < 0) break;
      any = true;
      const buffer = this.#rxBuffer[token]!;
      this.#receive(buffer, rx.usedLength);
      this.#rxFree.push(buffer);
    }
    return any;
  }

  #takeEvents(): boolean {
    const buffers = this.#eventBuffers;
    if (buffers === null) return false;
    let any = false;
    for (;;) {
      const id = buffers.take(this.#violation);
      if (id < 0) return any;
      any = true;
      this.events++;
      if (id === EVENT_TRANSPORT_RESET) {
        this.#guestCid = this.#readCid();
        for (const connection of this.#table.all()) {
          connection.drop("transport", false);
        }
        this.#closed.clear();
      } else {
        this.#violation(`unknown event ${id}`);
      }
    }
  }

  // -- Packets from the device --

  #receive(buffer: number, usedLength: number): void {
    const buffers = this.#receiveBuffers;
    const header = this.#header;
    buffers.readHeader(buffer, header);
    if (this.#claimAll || this.#claimed.has(header.dstPort)) {
      this.rawPackets.push({
        header: header.fields(),
        payload: buffers.copy(
          buffer,
          HEADER_BYTES,
          Math.max(0, usedLength - HEADER_BYTES),
        ),
        usedLength,
      });
      return;
    }
    if (!buffers.guardsIntact(buffer)) {
      this.#violation("the device wrote behind a receive buffer's segment");
      return;
    }
    const usable = checkPacket(
      header,
      usedLength,
      this.#guestCid,
      this.#seqpackets,
      this.#violation,
    );
    if (!usable) return;
    this.received[header.op]!++;
    if (
      header.type !== TYPE_STREAM &&
      !(header.type === TYPE_SEQPACKET && this.#seqpackets)
    ) {
      // Whatever its ports, it belongs to no socket (5.10.6.4.1).
      if (header.op !== OP_RST) this.#sendReset(header);
      return;
    }
    const { dstPort, srcCid, srcPort } = header;
    const connection = this.#table.find(dstPort, srcCid, srcPort);
    if (connection !== null && connection.type !== header.type) {
      this.#violation(
        `${
          opName(header.op)
        } of type ${header.type} on a connection of type ${connection.type}`,
      );
      if (header.op !== OP_RST) this.#sendReset(header);
    } else if (connection !== null) {
      connection.receive(header, buffers, buffer);
    } else if (header.op === OP_REQUEST) {
      this.#receiveRequest(header);
    } else {
      this.#receiveStray(header);
    }
  }

  #receiveRequest(header: PacketHeader): void {
    const { dstPort, srcCid, srcPort } = header;
    this.#closed.delete(dstPort, srcCid, srcPort);
    const listener = this.#listeners.get(dstPort);
    if (
      listener === undefined || listener.type !== header.type ||
      listener.waiting >= listener.backlog
    ) {
      this.#resetStranger(header);
      return;
    }
    const connection = new GuestConnection(
      this.#port,
      dstPort,
      srcCid,
      srcPort,
      this.#bufAlloc,
      "connected",
      header.type,
    );
    connection.takeRequest(header);
    this.#table.insert(connection);
    this.#sendControl(connection, OP_RESPONSE, 0);
    listener.push(connection);
  }

  #receiveStray(header: PacketHeader): void {
    const problem = this.#closed.judge(header);
    if (problem !== null) {
      this.#violation(
        `${problem} (guest port ${header.dstPort}, peer ${header.srcCid}:${header.srcPort})`,
      );
    }
    if (header.op !== OP_RST) this.#resetStranger(header);
  }

  /** Answers a packet that belongs to no connection; never an RST. */
  #resetStranger(header: PacketHeader): void {
    const { dstPort, srcCid, srcPort } = header;
    this.#closed.resetByGuest(dstPort, srcCid, srcPort, true);
    this.#sendReset(header);
  }

  #sendReset(header: PacketHeader): void {
    const { dstPort, srcCid, srcPort } = header;
    const out = this.#address(dstPort, srcCid, srcPort);
    out.type = header.type;
    out.op = OP_RST;
    out.bufAlloc = 0;
    out.fwdCnt = 0;
    this.#sender.sendControl();
  }

  // -- Packets to the device --

  #sendControl(connection: GuestConnection, op: number, flags: number): void {
    const out = this.#describe(connection);
    out.op = op;
    out.flags = flags;
    this.#sender.sendControl();
    connection.lastFwdCnt = connection.fwdCnt;
  }

  #sendPayload(
    connection: GuestConnection,
    bytes: Uint8Array,
    from: number,
    length: number,
    flags: number,
  ): boolean {
    const out = this.#describe(connection);
    out.op = OP_RW;
    out.flags = flags;
    out.len = length;
    if (!this.#sender.sendPayload(bytes, from, length)) return false;
    connection.lastFwdCnt = connection.fwdCnt;
    return true;
  }

  /** The scratch header, addressed to the other end and with the credit of a connection. */
  #describe(connection: GuestConnection): PacketHeader {
    const { localPort, peerCid, peerPort } = connection;
    const out = this.#address(localPort, peerCid, peerPort);
    out.type = connection.type;
    out.bufAlloc = connection.bufAlloc;
    out.fwdCnt = connection.fwdCnt;
    return out;
  }

  /** The scratch header, addressed to the other end, with neither flags nor payload. */
  #address(
    localPort: number,
    peerCid: number,
    peerPort: number,
  ): PacketHeader {
    const out = this.#sender.header;
    out.srcCid = this.#guestCid;
    out.srcCidHigh = 0;
    out.dstCid = peerCid;
    out.dstCidHigh = 0;
    out.srcPort = localPort;
    out.dstPort = peerPort;
    out.len = 0;
    out.flags = 0;
    return out;
  }

  // -- Connections --

  #forget(connection: GuestConnection): void {
    if (!this.#table.delete(connection)) return;
    const { localPort, peerCid, peerPort, closeReason } = connection;
    const untaken = this.#tx.inFlight + this.#sender.waiting;
    if (connection.resetSent) {
      // An RST of the device may have crossed ours, except where it was done already; then packets before ours
      // may find no connection any more.
      const answered = closeReason === "shutdown" && untaken <= 1;
      this.#closed.resetByGuest(localPort, peerCid, peerPort, answered);
    } else if (
      closeReason === "refused" || closeReason === "reset" ||
      closeReason === "shutdown"
    ) {
      // The device may have taken a packet after it sent the RST, and not have answered it yet.
      const crossing = untaken > 0 || this.#sender.used > this.#usedBefore;
      this.#closed.resetByDevice(localPort, peerCid, peerPort, crossing);
    }
  }

  #ephemeralPort(cid: number, peerPort: number): number {
    for (;;) {
      const port = this.#nextPort;
      this.#nextPort = port >= 0x7fffffff ? FIRST_EPHEMERAL_PORT : port + 1;
      if (
        !this.#listeners.has(port) &&
        this.#table.find(port, cid, peerPort) === null
      ) return port;
    }
  }

  readonly #violation: (text: string) => void = (text) => {
    this.violations.push(text);
  };
}
