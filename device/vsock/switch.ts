import { Diagnostics } from "../diagnostics.ts";
import { FieldReader, SnapshotError } from "../snapshot.ts";
import type {
  ConnectAnswer,
  ConnectionAddress,
  ConnectRequest,
  HostMessages,
  HostStream,
  MessageEvents,
  MessagesAnswer,
  PeerAddress,
  PeerMessagesRequest,
  PeerRequest,
  PeerSide,
  PendingConnect,
  StreamEvents,
} from "./host.ts";
import {
  MessagePipeEnd,
  type PipeEnd,
  type PipeOwner,
  type PipeSnapshot,
  StreamPipeEnd,
} from "./pipe.ts";
import { VMADDR_PORT_ANY } from "./virtio_vsock.ts";

/** Connections that one guest may have opened to another, unless told otherwise. */
export const DEFAULT_MAX_PEER_CONNECTIONS = 512;

const VERSION = 1;

/** What a {@link VsockSwitch} needs of a device; a `VsockDevice` is one. */
export interface SwitchedDevice {
  /** CID of its guest. */
  readonly guestCid: number;
  /** Where connections to other guests go; the switch sets it. */
  peers: PeerSide | null;
  /** Connects another guest's socket to a port of this one, by a stream. */
  connectPeer(
    guestPort: number,
    peer: PeerAddress,
    answer: ConnectAnswer,
  ): PendingConnect;
  /** The same by a seqpacket socket. */
  connectPeerMessages(
    guestPort: number,
    peer: PeerAddress,
    answer: MessagesAnswer,
  ): PendingConnect;
  /** Does pending work; true when there is more. */
  process(): boolean;
}

/** What a {@link VsockSwitch} is made with. */
export type VsockSwitchOptions<Device extends SwitchedDevice = SwitchedDevice> =
  {
    /** Says whether guest `from` may connect to `port` of guest `to`. Any may unless told; none where it throws. */
    allow?: (from: number, to: number, port: number) => boolean;
    /** Connections that one guest may have opened to another. {@link DEFAULT_MAX_PEER_CONNECTIONS} unless told. */
    maxConnections?: number;
    /**
     * A device has work that another one's guest gave it; its owner sees to it that `process()` is
     * called, but not from within. A microtask does so unless told; a device behind a register transport
     * whose memory may move needs one that calls `syncMemory()` first.
     */
    wake?: (device: Device) => void;
    /** Counters and log. */
    diagnostics?: Diagnostics;
  };

/** The connections of a {@link VsockSwitch} as plain data. */
export type SwitchSnapshot = {
  /** 1. */
  version: number;
  /** In the order in which they were made. */
  pipes: PipeSnapshot[];
};

/**
 * Joins devices, so that their guests can connect to each other by CID: streams and seqpackets, with
 * credit from end to end.
 *
 * Without it guests are isolated: a packet to another guest's CID is answered by RST. A guest is known by
 * the CID of its device, whatever it writes into its packets. Between two guests, at most
 * `PIPE_BUFFER_BYTES` wait in each direction of a connection; a guest that does not read lets the other
 * one run out of credit.
 *
 * @example
 * ```ts ignore
 * const network = new VsockSwitch();
 * network.join(new VsockDevice({ guestCid: 3, host: hostOfOne }));
 * network.join(new VsockDevice({ guestCid: 4, host: hostOfOther }));
 * // In the guest with CID 3: connect((4, port)), in Linux with VMADDR_FLAG_TO_HOST.
 * ```
 */
export class VsockSwitch<Device extends SwitchedDevice = SwitchedDevice> {
  readonly #ports = new Map<number, SwitchPort<Device>>();
  readonly #pipes = new Set<PipeEnd>();
  readonly #counts = new Map<string, number>();
  // Connects that no device has answered.
  readonly #asked = new Set<Asked<Device>>();
  readonly #allow: (from: number, to: number, port: number) => boolean;
  readonly #maxConnections: number;
  readonly #wake: (device: Device) => void;
  readonly #diagnostics: Diagnostics;
  readonly #awake = new Set<Device>();

  /**
   * Makes a switch that nobody has joined.
   *
   * @throws {RangeError} when `maxConnections` is no number of connections.
   */
  constructor(options: VsockSwitchOptions<Device> = {}) {
    const { maxConnections = DEFAULT_MAX_PEER_CONNECTIONS } = options;
    if (!(Number.isInteger(maxConnections) && maxConnections >= 0)) {
      throw new RangeError(
        `Cannot make a switch for ${maxConnections} connections`,
      );
    }
    this.#allow = options.allow ?? (() => true);
    this.#maxConnections = maxConnections;
    this.#wake = options.wake ?? ((device) => this.#workLater(device));
    this.#diagnostics = options.diagnostics ?? new Diagnostics();
  }

  /** CIDs of the guests that have joined. */
  get guestCids(): readonly number[] {
    return [...this.#ports.keys()];
  }

  /** Connections between guests, those included that one end is through with. */
  get connectionCount(): number {
    return this.#pipes.size;
  }

  /**
   * Lets a device's guest connect to the others', and be connected to.
   *
   * @throws {TypeError} when a device with its CID has joined, or it is in another switch.
   */
  join(device: Device): void {
    const cid = device.guestCid;
    if (this.#ports.has(cid)) {
      throw new TypeError(`Cannot join: the guest with CID ${cid} is there`);
    }
    if (device.peers !== null) {
      throw new TypeError(
        `Cannot join: the guest with CID ${cid} is in a switch`,
      );
    }
    const port = new SwitchPort(device, this.#core);
    this.#ports.set(cid, port);
    device.peers = port;
  }

  /** Takes a device out: its connections to other guests are reset, at both ends. */
  leave(device: Device): void {
    const port = this.#portOf(device);
    this.#remove(port);
    const { guestCid } = device;
    for (const pipe of [...this.#pipes]) {
      const { address } = pipe;
      if (address.guestCid !== guestCid && address.peerCid !== guestCid) {
        continue;
      }
      for (const end of [pipe, pipe.peer]) {
        end.abort();
        if (end.address.guestCid === guestCid) port.moveEvents(end);
      }
    }
    // What it is told now it is told by nobody else.
    port.deliver();
    this.#wake(device);
  }

  /**
   * Takes a device out and keeps its connections, for another one that joins with the same CID and is
   * restored from a snapshot of it. Those that it does not go on with end by {@link VsockSwitch.settle}.
   * The old device is not to be used any more: a reset of it would end the connections of the new one.
   * Connects to its guest that have no answer are refused.
   */
  detach(device: Device): void {
    this.#remove(this.#portOf(device));
    for (const asked of [...this.#asked]) {
      if (asked.to === device) this.#refused(asked);
    }
    for (const pipe of this.#pipes) {
      for (const end of [pipe, pipe.peer]) {
        if (end.address.guestCid === device.guestCid) end.suspend();
      }
    }
  }

  /** Resets the connections of restored or detached devices that none has gone on with. */
  settle(): void {
    for (const pipe of [...this.#pipes]) {
      for (const end of [pipe, pipe.peer]) {
        if (end.suspended && !end.over) end.close(true);
      }
    }
  }

  /** Its connections as plain data; connects that are not answered are not among them. */
  save(): SwitchSnapshot {
    return {
      version: VERSION,
      pipes: [...this.#pipes].map((pipe) => ({
        type: pipe.type,
        ends: [pipe.save(), pipe.peer.save()],
      })),
    };
  }

  /**
   * Makes the connections of a snapshot, before the devices are restored that go on with them; afterwards
   * {@link VsockSwitch.settle} ends those that none went on with.
   *
   * @throws {SnapshotError} when it is no such snapshot; then nothing is made.
   */
  restore(snapshot: unknown): void {
    const fields = new FieldReader(snapshot, "switch");
    if (fields.any("version") !== VERSION) {
      throw new SnapshotError(
        "VERSION",
        `its switch is of another version than ${VERSION}`,
      );
    }
    const made = fields.array("pipes", Infinity).map((value, i) => {
      const pipe = new FieldReader(value, `switch.pipes[${i}]`);
      const type = pipe.oneOf("type", ["stream", "seqpacket"]);
      const ends = pipe.array("ends", 2).map((end, n) =>
        new FieldReader(end, `switch.pipes[${i}].ends[${n}]`)
      );
      const [one, other] = ends;
      if (one === undefined || other === undefined) {
        throw pipe.bad("ends", "not two");
      }
      const made = this.#makePipe(type, {
        guestCid: one.u32("cid"),
        guestPort: one.u32("port"),
        peerCid: other.u32("cid"),
        hostPort: other.u32("port"),
      });
      made.restore(one);
      made.peer.restore(other);
      // Such a one is not there any more, and nothing would end it.
      if (made.over && made.peer.over) {
        throw pipe.bad("ends", "both closed");
      }
      // A packet to the guest's own CID reaches nobody.
      if (made.address.guestCid === made.address.peerCid) {
        throw pipe.bad("ends", "of one guest");
      }
      return made;
    });
    for (const pipe of made) {
      this.#add(pipe);
      this.#count(pipe.address);
    }
  }

  // -- For its ports --

  readonly #core: SwitchCore = {
    has: (cid) => this.#ports.has(cid),
    connect: (request) => this.#connect(request),
    connectMessages: (request) => this.#connectMessages(request),
    find: (type, address) => this.#find(type, address),
  };

  #connect(request: PeerRequest): void {
    this.#ask(
      request,
      () => this.#makePipe("stream", request) as StreamPipeEnd,
      (to, port, peer, answer) => to.connectPeer(port, peer, answer),
    );
  }

  #connectMessages(request: PeerMessagesRequest): void {
    this.#ask(
      request,
      () => this.#makePipe("seqpacket", request) as MessagePipeEnd,
      (to, port, peer, answer) => to.connectPeerMessages(port, peer, answer),
    );
  }

  /** Asks the other guest by `connect`; where it accepts, both have the ends of the pipe that `make` makes. */
  #ask<End, Events>(
    request: ConnectRequest<End, Events> & ConnectionAddress,
    make: () => PipeEndOf<End, Events>,
    connect: (
      to: Device,
      port: number,
      peer: PeerAddress,
      answer: ConnectAnswer<End, Events>,
    ) => PendingConnect,
  ): void {
    const way = this.#way(request);
    if (way === null) return request.refuse();
    const { guestCid: cid, guestPort: port, hostPort } = request;
    const { from, to } = way;
    const asked: Asked<Device> = { request, from, to };
    this.#asked.add(asked);
    connect(to, hostPort, { cid, port }, {
      accepted: (_port, events): End => {
        this.#asked.delete(asked);
        const pipe = make();
        this.#add(pipe);
        if (!way.open() || !request.accept((events) => pipe.resume(events))) {
          this.#withdrawn(request, pipe);
        }
        this.#wake(from);
        return pipe.peer.resume(events);
      },
      refused: () => this.#refused(asked),
    });
    this.#wake(to);
  }

  #refused(asked: Asked<Device>): void {
    if (!this.#asked.delete(asked)) return;
    const { request, from } = asked;
    this.#uncount(request);
    request.refuse();
    this.#wake(from);
  }

  #find(
    type: "stream" | "seqpacket",
    address: ConnectionAddress,
  ): PipeEnd | null {
    for (const pipe of this.#pipes) {
      if (pipe.type !== type) continue;
      for (const end of [pipe, pipe.peer]) {
        if (end.suspended && !end.over && same(end.address, address)) {
          return end;
        }
      }
    }
    return null;
  }

  /** The way to the device that a guest may connect to, or null; a connection on it is counted then. */
  #way(
    request: ConnectionAddress,
  ): { from: Device; to: Device; open: () => boolean } | null {
    const { guestCid, peerCid, hostPort } = request;
    const from = this.#ports.get(guestCid);
    const to = this.#ports.get(peerCid);
    if (from === undefined || to === undefined) return null;
    // What a guest wrote can be any port, and nobody listens at all of them.
    if (hostPort === VMADDR_PORT_ANY) return null;
    if (!this.#allows(guestCid, peerCid, hostPort)) {
      this.#diagnostics.fault(
        "peer_not_allowed",
        () =>
          `guest ${guestCid} may not connect to port ${hostPort} of guest ${peerCid}`,
      );
      return null;
    }
    const count = this.#counts.get(`${guestCid}:${peerCid}`) ?? 0;
    if (count >= this.#maxConnections) {
      this.#diagnostics.fault(
        "peer_connections_exhausted",
        () => `guest ${guestCid} has ${count} connections to guest ${peerCid}`,
      );
      return null;
    }
    this.#count(request);
    return {
      from: from.device,
      to: to.device,
      // One of the two may leave before the answer.
      open: () =>
        this.#ports.get(guestCid) === from && this.#ports.get(peerCid) === to,
    };
  }

  /** The guest that asked does not wait any more, or must not have what it asked for. */
  #withdrawn(request: { refuse(): void }, pipe: PipeEnd): void {
    pipe.close(true);
    request.refuse();
  }

  #count({ guestCid, peerCid }: ConnectionAddress): void {
    const key = `${guestCid}:${peerCid}`;
    this.#counts.set(key, (this.#counts.get(key) ?? 0) + 1);
  }

  #uncount({ guestCid, peerCid }: ConnectionAddress): void {
    const key = `${guestCid}:${peerCid}`;
    const count = (this.#counts.get(key) ?? 0) - 1;
    if (count > 0) this.#counts.set(key, count);
    else this.#counts.delete(key);
  }

  /** Makes both ends of a connection; the one of the guest that asked for it is returned. */
  #makePipe(
    type: "stream" | "seqpacket",
    address: ConnectionAddress,
  ): StreamPipeEnd | MessagePipeEnd {
    const { guestCid, guestPort, peerCid, hostPort } = address;
    const here = { guestCid, guestPort, peerCid, hostPort };
    const there = {
      guestCid: peerCid,
      guestPort: hostPort,
      peerCid: guestCid,
      hostPort: guestPort,
    };
    if (type === "stream") {
      const [one, other] = [here, there].map((address) =>
        new StreamPipeEnd(this.#owner, address)
      ) as [StreamPipeEnd, StreamPipeEnd];
      one.peer = other;
      other.peer = one;
      return one;
    }
    const [one, other] = [here, there].map((address) =>
      new MessagePipeEnd(this.#owner, address)
    ) as [MessagePipeEnd, MessagePipeEnd];
    one.peer = other;
    other.peer = one;
    return one;
  }

  #add(pipe: PipeEnd): void {
    this.#pipes.add(pipe);
  }

  readonly #owner: PipeOwner = {
    eventsDue: (end) => {
      const port = this.#ports.get(end.address.guestCid);
      if (port === undefined) return;
      port.moveEvents(end);
      this.#wake(port.device);
    },
    endClosed: (end) => {
      if (!end.peer.over) return;
      const pipe = this.#pipes.delete(end) ? end : end.peer;
      this.#pipes.delete(pipe);
      this.#uncount(pipe.address);
    },
  };

  #portOf(device: Device): SwitchPort<Device> {
    const port = this.#ports.get(device.guestCid);
    if (port === undefined || port.device !== device) {
      throw new TypeError(
        `Cannot take out the guest with CID ${device.guestCid}: it has not joined`,
      );
    }
    return port;
  }

  #remove(port: SwitchPort<Device>): void {
    this.#ports.delete(port.device.guestCid);
    port.device.peers = null;
  }

  /** The owner's policy; one that throws allows nothing. */
  #allows(from: number, to: number, port: number): boolean {
    try {
      return this.#allow(from, to, port);
    } catch (error) {
      this.#diagnostics.fault("peer_policy_failed", () => String(error));
      return false;
    }
  }

  #workLater(device: Device): void {
    if (this.#awake.has(device)) return;
    this.#awake.add(device);
    // Each by itself, so that one that throws takes no other's turn.
    queueMicrotask(() => {
      this.#awake.delete(device);
      if (device.process()) this.#workLater(device);
    });
  }
}

/** An end of a pipe that a device gets as an `End`. */
type PipeEndOf<End, Events> = PipeEnd & {
  readonly peer: { resume(events: Events): End };
  resume(events: Events): End;
};

/** A guest's connect to another one that has no answer. */
type Asked<Device> = {
  request: ConnectionAddress & { refuse(): void };
  from: Device;
  to: Device;
};

/** What a {@link SwitchPort} needs of its switch. */
interface SwitchCore {
  /** True where there is a guest with this CID. */
  has(cid: number): boolean;
  /** A guest connects to another's port by a stream. */
  connect(request: PeerRequest): void;
  /** A guest connects to another's port by a seqpacket socket. */
  connectMessages(request: PeerMessagesRequest): void;
  /** The end that a restored connection goes on with, or null. */
  find(
    type: "stream" | "seqpacket",
    address: ConnectionAddress,
  ): PipeEnd | null;
}

/** The place of one device in a {@link VsockSwitch}. */
class SwitchPort<Device extends SwitchedDevice> implements PeerSide {
  readonly device: Device;
  readonly #core: SwitchCore;
  #due = new Set<PipeEnd>();

  constructor(device: Device, core: SwitchCore) {
    this.device = device;
    this.#core = core;
  }

  get pending(): boolean {
    return this.#due.size > 0;
  }

  moveEvents(end: PipeEnd): void {
    this.#due.add(end);
  }

  deliver(): void {
    if (this.#due.size === 0) return;
    const due = this.#due;
    // What they cause is for the next time.
    this.#due = new Set();
    for (const end of due) end.deliver();
  }

  reaches(cid: number): boolean {
    return cid !== this.device.guestCid && this.#core.has(cid);
  }

  connect(request: PeerRequest): void {
    this.#core.connect(request);
  }

  connectMessages(request: PeerMessagesRequest): void {
    this.#core.connectMessages(request);
  }

  resume(
    address: ConnectionAddress,
  ): ((events: StreamEvents) => HostStream) | null {
    const end = this.#core.find("stream", address) as StreamPipeEnd | null;
    return end && ((events) => end.resume(events));
  }

  resumeMessages(
    address: ConnectionAddress,
  ): ((events: MessageEvents) => HostMessages) | null {
    const end = this.#core.find("seqpacket", address) as
      | MessagePipeEnd
      | null;
    return end && ((events) => end.resume(events));
  }
}

function same(one: ConnectionAddress, other: ConnectionAddress): boolean {
  return one.guestCid === other.guestCid &&
    one.guestPort === other.guestPort && one.peerCid === other.peerCid &&
    one.hostPort === other.hostPort;
}
