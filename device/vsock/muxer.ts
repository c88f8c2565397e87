import type { Chain } from "../../ring/chain.ts";
import type { GuestMemory } from "../../ring/memory.ts";
import type { Diagnostics } from "../diagnostics.ts";
import {
  type AnyAnswer,
  Connection,
  type ConnectionOwner,
  type ConnectionSetup,
  TRANSMIT_MORE,
  TRANSMIT_STARVED,
} from "./connection.ts";
import { ConnectionTable } from "./connection_table.ts";
import type {
  HostSide,
  PeerAddress,
  PeerSide,
  PendingConnect,
} from "./host.ts";
import { PacketHeader } from "./packet.ts";
import type { RxWriter } from "./rx_writer.ts";
import { Segments } from "./segments.ts";
import type {
  ConnectionSnapshot,
  StraySnapshot,
  VsockSnapshot,
} from "./snapshot.ts";
import {
  VIRTIO_VSOCK_OP_CREDIT_REQUEST,
  VIRTIO_VSOCK_OP_CREDIT_UPDATE,
  VIRTIO_VSOCK_OP_REQUEST,
  VIRTIO_VSOCK_OP_RESPONSE,
  VIRTIO_VSOCK_OP_RST,
  VIRTIO_VSOCK_OP_RW,
  VIRTIO_VSOCK_OP_SHUTDOWN,
  VIRTIO_VSOCK_TYPE_SEQPACKET,
  VIRTIO_VSOCK_TYPE_STREAM,
  VMADDR_CID_HOST,
  VMADDR_PORT_ANY,
  VSOCK_HEADER_SIZE,
} from "./virtio_vsock.ts";

/** Receive buffer of a connection unless told otherwise; Linux guests advertise the same. */
export const DEFAULT_BUF_ALLOC_BYTES = 262_144;
/** Connections at a time unless told otherwise. */
export const DEFAULT_MAX_CONNECTIONS = 2_048;
/**
 * Answers to packets of no connection that wait for receive buffers at most. While as many wait,
 * no packet is taken from the guest (5.10.6.1).
 */
export const MAX_STRAY_RESETS = 256;

/** Connections whose payload is gathered at a time; a list takes 16 KiB at most. */
const MAX_GATHERING = 64;

/** First port of host programs that connect to a guest; the ones below are for listeners. */
const FIRST_HOST_PORT = 0x4000_0000;

/** What a muxer is made with. */
export type MuxerOptions = {
  /** The guest's CID. */
  guestCid: number;
  /** Where the guest's connections go. */
  host: HostSide;
  /** Counters and log. */
  diagnostics: Diagnostics;
  /** Bytes that a connection buffers for its host program, 1 to 2^31. */
  bufAlloc: number;
  /** Connections at a time, those that linger included. */
  maxConnections: number;
  /** Milliseconds that never go back. */
  now: () => number;
};

/**
 * Routes packets between a guest and the host side: a table of connections by their ports, the
 * connections that have something to send in the order of their turns, and the rules for packets
 * that belong to none (virtio 1.4, 5.10.6.5).
 */
export class Muxer implements ConnectionOwner {
  /** True where the driver has negotiated seqpackets. */
  seqpackets = false;
  /** Where connections to other guests go; null where there are none. */
  peers: PeerSide | null = null;

  readonly #guestCid: number;
  readonly #host: HostSide;
  readonly #diagnostics: Diagnostics;
  #bufAlloc: number;
  readonly #maxConnections: number;
  readonly #now: () => number;

  readonly #table = new ConnectionTable();
  readonly #all = new Set<Connection>();
  // Packets come in runs.
  #last: Connection | null = null;
  #nextHostPort = FIRST_HOST_PORT;

  // A queue of turns: `#ready[#readyHead]` is next.
  #ready: Connection[] = [];
  #readyHead = 0;

  readonly #header = new PacketHeader();
  readonly #out = new PacketHeader();

  // RSTs that belong to no connection: source port, destination port, type, destination CID,
  // source CID, in a ring of rows.
  readonly #strays = new Float64Array(MAX_STRAY_RESETS * STRAY_COLUMNS);
  #strayHead = 0;
  #strayCount = 0;

  // Payload that waits for gathering writes, a list for each of the first `#gatheringCount` connections: what
  // several of them send in turns is gathered nevertheless. Lists are made when they are needed.
  readonly #gathers: Segments[] = [];
  readonly #gathering: (Connection | null)[] = [];
  #gatheringCount = 0;
  // Lent to a connection, and empty otherwise.
  readonly #segments: Segments;

  #scratch = new Uint8Array(0);
  #timed = new Set<Connection>();
  #nextDeadline = Infinity;

  /** Makes a muxer without connections, over `memory`. */
  constructor(memory: GuestMemory, options: MuxerOptions) {
    this.#segments = new Segments(memory);
    this.#guestCid = options.guestCid;
    this.#host = options.host;
    this.#diagnostics = options.diagnostics;
    this.#bufAlloc = options.bufAlloc;
    this.#maxConnections = options.maxConnections;
    this.#now = options.now;
  }

  /** Connections, those that linger included. */
  get connectionCount(): number {
    return this.#all.size;
  }

  /** True when connections or answers have something to send to the guest. */
  get hasOutput(): boolean {
    return this.#strayCount > 0 || this.waiting > 0;
  }

  /** Connections that wait for their turn, at most twice those that there can be. */
  get waiting(): number {
    return this.#ready.length - this.#readyHead;
  }

  /** True when another packet of the guest can be answered. */
  get canReceive(): boolean {
    return this.#strayCount < MAX_STRAY_RESETS;
  }

  /** The memory that chains are in from now on; nothing is being gathered. */
  setMemory(memory: GuestMemory): void {
    this.#segments.memory = memory;
    for (const gather of this.#gathers) {
      gather.memory = memory;
      gather.clear();
    }
  }

  // -- From the guest --

  /** Takes one packet from the guest; `chain` may be pushed after the next `flush()`. */
  receive(chain: Chain): void {
    if (this.#header.readFrom(chain)) this.#route(chain, this.#header);
    else this.#wrongLength("packet_short", chain, VSOCK_HEADER_SIZE);
  }

  // Apart from `receive()`, into which V8 inlines the reading of the header, and no more: a tenth of the time
  // of a small packet. No closure is made in here, as each would cost every packet.
  #route(chain: Chain, header: PacketHeader): void {
    const op = header.op;
    if (op !== VIRTIO_VSOCK_OP_RW) this.flush();

    const { srcCid, dstCid, srcPort, dstPort, type } = header;
    if (
      type !== VIRTIO_VSOCK_TYPE_STREAM &&
      !(type === VIRTIO_VSOCK_TYPE_SEQPACKET && this.seqpackets)
    ) {
      return this.#refuse("type_unknown");
    }
    if (srcCid !== this.#guestCid) return this.#refuse("source_cid_wrong");
    let connection = this.#last;
    if (
      connection === null || connection.guestPort !== srcPort ||
      connection.hostPort !== dstPort || connection.peerCid !== dstCid
    ) {
      connection = this.#table.find(srcPort, dstCid, dstPort);
      this.#last = connection;
    }
    if (connection === null) return this.#stray(header);
    // A socket has one type; the ports are taken for both.
    if (connection.packetType !== type) return this.#refuse("type_wrong");
    connection.receiveCredit(header.bufAlloc, header.fwdCnt);
    if (op === VIRTIO_VSOCK_OP_RW) {
      this.#data(connection, chain, header.len, header.flags);
    } else {
      this.#control(connection, header);
    }
  }

  /** Takes a packet that belongs to no connection. */
  #stray(header: PacketHeader): void {
    const { op, dstCid } = header;
    if (dstCid !== VMADDR_CID_HOST && !this.peers?.reaches(dstCid)) {
      return this.#refuse("destination_cid_unknown");
    }
    switch (op) {
      case VIRTIO_VSOCK_OP_REQUEST:
        this.#request(header);
        break;
      case VIRTIO_VSOCK_OP_RST:
        this.#diagnostics.count("reset_unknown");
        break;
      case VIRTIO_VSOCK_OP_SHUTDOWN:
      case VIRTIO_VSOCK_OP_CREDIT_UPDATE:
      case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
        // Our RST was on its way: no reason to complain.
        this.#diagnostics.count("packet_late");
        this.#answerReset();
        break;
      default:
        this.#refuse("connection_unknown");
    }
  }

  /** Takes a packet of a connection that carries no payload. */
  #control(connection: Connection, header: PacketHeader): void {
    switch (header.op) {
      case VIRTIO_VSOCK_OP_CREDIT_UPDATE:
        break;
      case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
        connection.receiveCreditRequest();
        break;
      case VIRTIO_VSOCK_OP_SHUTDOWN:
        connection.receiveShutdown(header.flags);
        break;
      case VIRTIO_VSOCK_OP_RST:
        connection.receiveReset();
        break;
      case VIRTIO_VSOCK_OP_RESPONSE:
        connection.receiveResponse();
        break;
      case VIRTIO_VSOCK_OP_REQUEST:
        this.#complain("request_duplicate");
        connection.reset();
        break;
      default:
        this.#complain("operation_unknown");
        connection.reset();
    }
  }

  /** Hands gathered payload to its host program; chains received before may be pushed then. */
  flush(): void {
    const count = this.#gatheringCount;
    if (count === 0) return;
    this.#gatheringCount = 0;
    for (let i = 0; i < count; i++) {
      const connection = this.#gathering[i];
      // All of them were abandoned by what the one before has caused.
      if (!connection) return;
      const gather = this.#gathers[i]!;
      this.#gathering[i] = null;
      connection.gatherIndex = -1;
      connection.gathered(gather);
      gather.clear();
    }
  }

  #data(
    connection: Connection,
    chain: Chain,
    length: number,
    flags: number,
  ): void {
    if (length > chain.readableBytes - VSOCK_HEADER_SIZE) {
      this.#wrongLength("length_wrong", chain, VSOCK_HEADER_SIZE + length);
      connection.reset();
      return;
    }
    // Of an empty packet only the end of a message means something.
    if (
      length === 0 && connection.packetType === VIRTIO_VSOCK_TYPE_STREAM
    ) return;
    const scratch = this.#segments;
    if (!connection.receiveData(chain, length, flags, scratch)) return;
    let gather = this.#gatherOf(connection);
    const rows = chain.readable;
    let done = gather.add(chain, 0, rows, VSOCK_HEADER_SIZE, length);
    while (done < length) {
      // The list is full.
      this.flush();
      gather = this.#gatherOf(connection);
      done += gather.add(
        chain,
        0,
        rows,
        VSOCK_HEADER_SIZE + done,
        length - done,
      );
    }
  }

  /** The list for a connection's payload. */
  #gatherOf(connection: Connection): Segments {
    let index = connection.gatherIndex;
    if (index < 0) {
      if (this.#gatheringCount === MAX_GATHERING) this.flush();
      index = this.#gatheringCount++;
      connection.gatherIndex = index;
      this.#gathering[index] = connection;
    }
    return this.#gathers[index] ??= new Segments(this.#segments.memory);
  }

  #request(header: PacketHeader): void {
    const { srcPort, dstCid, dstPort, type } = header;
    if (this.#all.size >= this.#maxConnections) {
      return this.#refuse("connections_exhausted");
    }
    const connection = this.#add(type, srcPort, dstCid, dstPort, null);
    connection.credit.hear(header.bufAlloc, header.fwdCnt);
    connection.askHost(this.#sideOf(dstCid));
  }

  /** Counts what is wrong with the packet in hand. */
  #complain(kind: string): void {
    const { type, op, srcCid, srcPort, dstCid, dstPort } = this.#header;
    this.#diagnostics.fault(
      kind,
      () =>
        `operation ${op}, type ${type}, from ${srcCid}:${srcPort} to ${dstCid}:${dstPort}, with ${this.#all.size} connections there`,
    );
  }

  #wrongLength(kind: string, chain: Chain, wanted: number): void {
    const { readableBytes } = chain;
    this.#diagnostics.fault(
      kind,
      () =>
        `a packet has ${readableBytes} bytes where its header wants ${wanted}`,
    );
  }

  /** Counts a packet that nobody takes and answers it by RST, unless it is one. */
  #refuse(kind: string): void {
    this.#complain(kind);
    if (this.#header.op !== VIRTIO_VSOCK_OP_RST) this.#answerReset();
  }

  /** Answers the packet of no connection; ports and CIDs change places on the way back. */
  #answerReset(): void {
    const { dstPort, srcPort, type, srcCid, dstCid } = this.#header;
    this.#addStray(dstPort, srcPort, type, srcCid, dstCid);
  }

  #addStray(
    srcPort: number,
    dstPort: number,
    type: number,
    dstCid: number,
    srcCid: number,
  ): void {
    const at = ((this.#strayHead + this.#strayCount) % MAX_STRAY_RESETS) *
      STRAY_COLUMNS;
    const strays = this.#strays;
    strays[at] = srcPort;
    strays[at + 1] = dstPort;
    strays[at + 2] = type;
    strays[at + 3] = dstCid;
    strays[at + 4] = srcCid;
    this.#strayCount++;
  }

  // -- To the guest --

  /**
   * Sends what there is to send, turn by turn, until the guest has no receive buffer or the pass
   * of `rx` has used up its share.
   */
  transmit(rx: RxWriter): void {
    if (!this.#transmitStrays(rx)) return;
    const header = this.#out;
    while (this.#readyHead < this.#ready.length && !rx.exhausted) {
      const connection = this.#ready[this.#readyHead]!;
      const result = connection.transmit(rx, header);
      if (result === TRANSMIT_STARVED) break;
      this.#readyHead++;
      if (result === TRANSMIT_MORE) this.#ready.push(connection);
      else connection.scheduled = false;
    }
    // Dropping the front at each turn would move the rest each time.
    if (this.#readyHead >= this.#ready.length) {
      this.#ready.length = 0;
      this.#readyHead = 0;
    } else if (this.#readyHead > 1024) {
      this.#ready.splice(0, this.#readyHead);
      this.#readyHead = 0;
    }
  }

  #transmitStrays(rx: RxWriter): boolean {
    const header = this.#out;
    const strays = this.#strays;
    while (this.#strayCount > 0) {
      const at = this.#strayHead * STRAY_COLUMNS;
      header.srcPort = strays[at]!;
      header.dstPort = strays[at + 1]!;
      header.type = strays[at + 2]!;
      header.dstCid = strays[at + 3]!;
      header.srcCid = strays[at + 4]!;
      header.op = VIRTIO_VSOCK_OP_RST;
      header.flags = 0;
      header.bufAlloc = 0;
      header.fwdCnt = 0;
      if (!rx.sendControl(header)) return false;
      this.#strayHead = (this.#strayHead + 1) % MAX_STRAY_RESETS;
      this.#strayCount--;
    }
    return true;
  }

  // -- From the host side --

  /**
   * Connects a host program, or another guest's port, to a guest's port by a socket of `type`, whose end
   * `answer` gives; it hears of it, now or later.
   *
   * @throws {RangeError} when `guestPort` is no port.
   */
  connect(
    type: number,
    guestPort: number,
    answer: AnyAnswer,
    peer: PeerAddress | null = null,
  ): PendingConnect {
    if (
      !(Number.isInteger(guestPort) && guestPort >= 0 &&
        guestPort < VMADDR_PORT_ANY)
    ) {
      throw new RangeError(
        `Cannot connect to guest port ${guestPort}: it is no port`,
      );
    }
    if (type === VIRTIO_VSOCK_TYPE_SEQPACKET && !this.seqpackets) {
      answer.refused("the guest has no seqpacket sockets");
      return { hostPort: -1, cancel: () => {} };
    }
    if (this.#all.size >= this.#maxConnections) {
      answer.refused("too many connections");
      return { hostPort: -1, cancel: () => {} };
    }
    const cid = peer?.cid ?? VMADDR_CID_HOST;
    let hostPort = peer?.port ?? this.#nextHostPort;
    if (peer === null) {
      while (this.#table.find(guestPort, cid, hostPort) !== null) {
        hostPort = followingHostPort(hostPort);
      }
      this.#nextHostPort = followingHostPort(hostPort);
    } else if (this.#table.find(guestPort, cid, hostPort) !== null) {
      // What the other guest has closed is not over for this one.
      answer.refused("the ports are connected");
      return { hostPort: -1, cancel: () => {} };
    }
    const connection = this.#add(type, guestPort, cid, hostPort, answer);
    this.schedule(connection);
    return connection;
  }

  /** Ends every connection by RST, which the next `transmit()` sends. */
  resetAll(): void {
    for (const connection of [...this.#all]) connection.reset();
  }

  /**
   * Ends every connection for the host programs alone, as the guest is not there any more; what it
   * sent before it closed is still delivered.
   */
  abandonAll(): void {
    for (const connection of this.#all) connection.gatherIndex = -1;
    for (const gather of this.#gathers) gather.clear();
    this.#gathering.length = 0;
    this.#gatheringCount = 0;
    this.#strayCount = 0;
    // First, since a host program that hears of it may connect again.
    for (const connection of this.#ready) connection.scheduled = false;
    this.#ready.length = 0;
    this.#readyHead = 0;
    for (const connection of [...this.#all]) connection.abandon();
  }

  // -- Snapshots --

  /** Connections and answers that wait, as plain data; `flush()` was called. */
  save(): Pick<
    VsockSnapshot,
    "bufAlloc" | "nextHostPort" | "strays" | "connections"
  > {
    const now = this.#now();
    const strays: StraySnapshot[] = [];
    for (let i = 0; i < this.#strayCount; i++) {
      const at = ((this.#strayHead + i) % MAX_STRAY_RESETS) * STRAY_COLUMNS;
      const [srcPort, dstPort, type, dstCid, srcCid] = this.#strays.subarray(
        at,
        at + STRAY_COLUMNS,
      );
      strays.push({
        srcPort: srcPort!,
        dstPort: dstPort!,
        type: type!,
        dstCid: dstCid!,
        srcCid: srcCid!,
      });
    }
    const connections: ConnectionSnapshot[] = [];
    for (const connection of this.#all) {
      const saved = connection.save(now);
      if (saved !== null) connections.push(saved);
    }
    return {
      bufAlloc: this.#bufAlloc,
      nextHostPort: this.#nextHostPort,
      strays,
      connections,
    };
  }

  /** Goes on from a snapshot that was checked; there are no connections yet. */
  restore(snapshot: VsockSnapshot): void {
    this.#bufAlloc = snapshot.bufAlloc;
    this.#nextHostPort = snapshot.nextHostPort;
    for (const { srcPort, dstPort, type, dstCid, srcCid } of snapshot.strays) {
      this.#addStray(srcPort, dstPort, type, dstCid, srcCid);
    }
    for (const saved of snapshot.connections) {
      const { type, guestPort, peerCid, hostPort } = saved;
      this.#add(type, guestPort, peerCid, hostPort, null)
        .restore(saved, this.#sideOf(peerCid));
    }
  }

  // -- Time --

  /** When `expire` is due; Infinity where nothing waits. */
  get nextDeadline(): number {
    return this.#nextDeadline;
  }

  /** Handles what was due by `now`. */
  expire(now: number): void {
    if (now < this.#nextDeadline) return;
    let next = Infinity;
    this.#nextDeadline = Infinity;
    for (const connection of [...this.#timed]) {
      if (connection.deadline <= now) {
        connection.deadline = Infinity;
        this.#timed.delete(connection);
        connection.expire();
      }
    }
    for (const connection of this.#timed) {
      if (connection.deadline < next) next = connection.deadline;
    }
    this.#nextDeadline = next;
  }

  // -- ConnectionOwner --

  /** Gives a connection a turn. */
  schedule(connection: Connection): void {
    if (connection.scheduled) return;
    connection.scheduled = true;
    // Those that ended while they waited are left in the queue, but not for ever: a guest could open
    // and reset connections, and take no packet, without end.
    if (this.waiting >= 2 * this.#maxConnections) this.#dropClosed();
    this.#ready.push(connection);
  }

  #dropClosed(): void {
    const head = this.#readyHead;
    // The first may have its turn just now.
    this.#ready = this.#ready.filter((connection, i) =>
      i === head || (i > head && connection.state !== "closed")
    );
    this.#readyHead = 0;
  }

  /** Frees the address tuple of a connection. */
  forget(connection: Connection): void {
    this.#table.delete(connection);
    if (this.#last === connection) this.#last = null;
  }

  /** Forgets a connection whose host program has everything, too. */
  finished(connection: Connection): void {
    this.#all.delete(connection);
    this.#timed.delete(connection);
  }

  /** Sets when a connection's time is up; Infinity for never. */
  setTimer(connection: Connection, ms: number): void {
    if (ms === Infinity) {
      connection.deadline = Infinity;
      this.#timed.delete(connection);
      return;
    }
    const deadline = this.#now() + ms;
    connection.deadline = deadline;
    this.#timed.add(connection);
    if (deadline < this.#nextDeadline) this.#nextDeadline = deadline;
  }

  /** Counts a fault of the guest. */
  fault(kind: string, text: () => string): void {
    this.#diagnostics.fault(kind, text);
  }

  #sideOf(cid: number): HostSide | null {
    return cid === VMADDR_CID_HOST ? this.#host : this.peers;
  }

  /** Lends memory until the next call. */
  scratch(length: number): Uint8Array {
    if (this.#scratch.length < length) this.#scratch = new Uint8Array(length);
    return this.#scratch.subarray(0, length);
  }

  #add(
    packetType: number,
    guestPort: number,
    peerCid: number,
    hostPort: number,
    answer: AnyAnswer | null,
  ): Connection {
    const setup: ConnectionSetup = {
      guestCid: this.#guestCid,
      guestPort,
      peerCid,
      hostPort,
      packetType,
      bufAlloc: this.#bufAlloc,
    };
    const connection = new Connection(this, setup, answer);
    this.#table.insert(connection);
    this.#all.add(connection);
    return connection;
  }
}

const STRAY_COLUMNS = 5;

function followingHostPort(port: number): number {
  return port + 1 < VMADDR_PORT_ANY ? port + 1 : FIRST_HOST_PORT;
}
