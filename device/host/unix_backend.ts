/**
 * Host programs by Unix sockets: the hybrid protocol of Firecracker, cloud-hypervisor and
 * vhost-device-vsock.
 *
 * | who connects | how |
 * |---|---|
 * | host program to guest port P | to `UDS`, sends `CONNECT P\n`, reads `OK <host port>\n` once the guest has accepted; then bytes flow |
 * | guest to host port P | the device connects to `UDS_P`, where the host program listens |
 * | host program to guest port P, by a seqpacket socket | to `UDS.seqpacket`, a SOCK_SEQPACKET socket; both lines are messages |
 * | guest to host port P, by a seqpacket socket | the same `UDS_P`, where a SOCK_SEQPACKET socket listens |
 *
 * A host program that the guest does not accept, or that does not keep to this, reads end of file.
 *
 * @module
 */

import type { Diagnostics } from "../diagnostics.ts";
import type {
  ConnectAnswer,
  ConnectRequest,
  HostMessages,
  HostSide,
  HostStream,
  MessageEvents,
  MessagesAnswer,
  MessagesRequest,
  PendingConnect,
  StreamEvents,
} from "../vsock/host.ts";
import {
  EAGAIN,
  EMFILE,
  ENFILE,
  ENOBUFS,
  ENOMEM,
  errnoName,
  SystemError,
} from "./errno.ts";
import {
  EPOLLET,
  EPOLLHUP,
  EPOLLIN,
  type EventLoop,
  type FdHandler,
  type Timer,
} from "./event_loop.ts";
import { fixedBytes } from "./ffi.ts";
import {
  acceptFrom,
  closeFd,
  connectTo,
  listenAt,
  type Listener,
  MAX_SOCKET_PATH_BYTES,
  peekBytes,
  receiveBytes,
  sendBytes,
  SHUT_RDWR,
  shutdownSocket,
  type SocketKind,
  socketPathBytes,
} from "./socket.ts";
import type { EndOwner, UnixEnd } from "./unix_end.ts";
import { UnixMessages } from "./unix_messages.ts";
import { UnixStream } from "./unix_stream.ts";
import { VectorIo } from "./vector_io.ts";

/** What is appended to the path for host programs that connect by seqpacket sockets. */
export const SEQPACKET_SUFFIX = ".seqpacket";

/** Longest CONNECT line, newline included; `CONNECT 4294967294\n` has 19 bytes. */
export const MAX_CONNECT_LINE_BYTES = 32;
/** How long a host program may take to send its CONNECT line. */
export const CONNECT_LINE_TIMEOUT_MS = 10_000;
/** Host programs that are not connected yet at most; more wait in the socket's backlog. */
export const MAX_PENDING_CLIENTS = 256;
/**
 * How long a listener with a full backlog is tried for; a guest gives up after 2 s, and hears of
 * it earlier this way.
 */
export const BACKLOG_TIMEOUT_MS = 1_800;
/** Guest connections that wait for a listener with a full backlog at most. */
export const MAX_WAITING_CONNECTS = 1_024;
const BACKLOG_RETRY_MS = 5;
/** Pause in accepting while the system is out of descriptors or memory. */
const ACCEPT_PAUSE_MS = 100;
/** Host programs that one wake-up accepts. */
const MAX_ACCEPTS = 16;
const LISTEN_BACKLOG = 1_024;
const VMADDR_PORT_ANY = 0xffff_ffff;
const NEWLINE = 10;

/** The guest, as host programs connect to it: a `VsockDevice`. */
export interface GuestSide {
  /** Connects a host program to a guest's port; `answer` hears of it, now or later. */
  connect(guestPort: number, answer: ConnectAnswer): PendingConnect;
  /** The same by a seqpacket socket; without it there are none. */
  connectMessages?(guestPort: number, answer: MessagesAnswer): PendingConnect;
}

/** What a {@link UnixBackend} is made with. */
export type UnixBackendOptions = {
  /** The loop that watches its sockets. */
  loop: EventLoop;
  /** Path of the socket for host programs, and prefix of theirs. At most 107 bytes. */
  udsPath: string;
  /** Counters and log. */
  diagnostics: Diagnostics;
  /** Host ports that the guest may connect to; all unless told. */
  allowedHostPorts?: readonly number[];
  /** Guest ports that host programs may connect to; all unless told. */
  allowedGuestPorts?: readonly number[];
  /** Take seqpacket connections, in both directions. True unless told. */
  seqpackets?: boolean;
};

/** The guest port of a CONNECT line without its newline, or -1 where it is not a lawful one. */
export function parseConnectLine(line: string): number {
  const match = /^CONNECT ([0-9]{1,10})$/i.exec(line);
  if (match === null) return -1;
  const port = Number(match[1]);
  return port < VMADDR_PORT_ANY ? port : -1;
}

/** A guest's wish, whatever it is to carry. */
type Wish = {
  readonly kind: SocketKind;
  readonly request: Pick<
    ConnectRequest,
    "hostPort" | "cancelled" | "refuse"
  >;
  /** Gives the guest a connected socket; false when it has withdrawn. */
  accept(fd: number): boolean;
};

type Waiting = {
  readonly wish: Wish;
  readonly path: string;
  readonly deadline: number;
};

/** A listening socket for host programs. */
type Door = { readonly kind: SocketKind; readonly listener: Listener };

/** Host side of a vsock device over Unix sockets. */
export class UnixBackend implements HostSide, EndOwner {
  /** Scratch for a line from or to a host program. */
  readonly line: Uint8Array<ArrayBuffer> = fixedBytes(MAX_CONNECT_LINE_BYTES);

  readonly #loop: EventLoop;
  readonly #udsPath: string;
  readonly #seqpackets: boolean;
  readonly #diagnostics: Diagnostics;
  readonly #hostPorts: ReadonlySet<number> | null;
  readonly #guestPorts: ReadonlySet<number> | null;
  readonly #io = new VectorIo();
  readonly #clients = new Set<PendingClient>();
  readonly #ends = new Set<UnixEnd>();
  #guest: GuestSide | null = null;
  #doors: readonly Door[] = [];
  #accepting = false;
  #resume: Timer | null = null;
  #waiting: Waiting[] = [];
  #retry: Timer | null = null;

  /** Makes a backend that does not listen yet; guests' connections are refused until then. */
  constructor(options: UnixBackendOptions) {
    const { allowedHostPorts, allowedGuestPorts } = options;
    this.#loop = options.loop;
    this.#udsPath = options.udsPath;
    this.#seqpackets = options.seqpackets ?? true;
    this.#diagnostics = options.diagnostics;
    this.#hostPorts = allowedHostPorts ? new Set(allowedHostPorts) : null;
    this.#guestPorts = allowedGuestPorts ? new Set(allowedGuestPorts) : null;
  }

  /** Connections in both directions, open ones only. */
  get streamCount(): number {
    return this.#ends.size;
  }

  /** Host programs and guest connections that wait for an answer. */
  get pendingCount(): number {
    return this.#clients.size + this.#waiting.length;
  }

  /**
   * Listens for host programs that want to connect to `guest`.
   *
   * @throws {RangeError} when the path is too long.
   * @throws {TypeError} when a live process listens there, or it is no socket.
   * @throws {SystemError} when the system refuses.
   */
  start(guest: GuestSide): void {
    const streams = listenAt(this.#udsPath, LISTEN_BACKLOG);
    const doors: Door[] = [{ kind: "stream", listener: streams }];
    const path = this.#udsPath + SEQPACKET_SUFFIX;
    if (!this.#seqpackets || guest.connectMessages === undefined) {
      // There is nothing behind that door.
    } else if (socketPathBytes(path) > MAX_SOCKET_PATH_BYTES) {
      this.#diagnostics.log(
        "warn",
        `${this.#udsPath} leaves no room for ${SEQPACKET_SUFFIX} behind it: host programs cannot connect by seqpacket sockets`,
      );
    } else {
      try {
        const listener = listenAt(path, LISTEN_BACKLOG, "seqpacket");
        doors.push({ kind: "seqpacket", listener });
      } catch (error) {
        streams.close();
        throw error;
      }
    }
    this.#doors = doors;
    this.#guest = guest;
    this.#accept(true);
  }

  /** Ends everything that waits, every stream, and the socket; the paths are free afterwards. */
  stop(): void {
    const doors = this.#doors;
    this.#accept(false);
    this.#doors = [];
    this.#guest = null;
    this.#resume?.cancel();
    this.#retry?.cancel();
    this.#retry = null;
    for (const client of [...this.#clients]) client.drop();
    for (const { wish } of this.#waiting) wish.request.refuse();
    this.#waiting = [];
    for (const end of [...this.#ends]) end.close(false);
    for (const { listener } of doors) listener.close();
  }

  // -- Guest to host --

  /** {@inheritDoc HostSide.connect} */
  connect(request: ConnectRequest): void {
    this.#reach({
      kind: "stream",
      request,
      accept: (fd) => request.accept((events) => this.#openStream(fd, events)),
    });
  }

  /** {@inheritDoc HostSide.connectMessages} */
  connectMessages(request: MessagesRequest): void {
    this.#reach({
      kind: "seqpacket",
      request,
      accept: (fd) =>
        request.accept((events) => this.#openMessages(fd, events)),
    });
  }

  #reach(wish: Wish): void {
    const { request, kind } = wish;
    const port = request.hostPort;
    if (this.#doors.length === 0) return request.refuse();
    if (this.#hostPorts !== null && !this.#hostPorts.has(port)) {
      this.#diagnostics.fault(
        "host_port_not_allowed",
        () => `the guest may not connect to port ${port}`,
      );
      return request.refuse();
    }
    const path = `${this.#udsPath}_${port}`;
    const result = connectTo(path, kind);
    if (result >= 0) return this.#connected(wish, result);
    if (result === -EAGAIN) return this.#wait(wish, path);
    this.#connectFailed(wish, path, -result);
  }

  #connected(wish: Wish, fd: number): void {
    if (wish.accept(fd)) this.#diagnostics.count("host_connects_accepted");
    else closeFd(fd);
  }

  #connectFailed({ request }: Wish, path: string, error: number): void {
    if (isExhaustion(error)) {
      this.#diagnostics.fault(
        "descriptors_exhausted",
        () => `cannot connect to ${path}: ${errnoName(error)}`,
      );
    } else if (socketPathBytes(path) > MAX_SOCKET_PATH_BYTES) {
      this.#diagnostics.fault(
        "host_path_too_long",
        () => `cannot connect to ${path}: longer than 107 bytes`,
      );
    } else {
      this.#diagnostics.count("host_connects_refused");
      this.#diagnostics.log(
        "debug",
        `cannot connect to ${path}: ${errnoName(error)}`,
      );
    }
    request.refuse();
  }

  /** The listener's backlog is full: tried again and again, which keeps nobody else waiting. */
  #wait(wish: Wish, path: string): void {
    this.#diagnostics.fault(
      "host_backlog_full",
      () => `the listener at ${path} does not accept`,
    );
    if (this.#waiting.length >= MAX_WAITING_CONNECTS) {
      return wish.request.refuse();
    }
    const deadline = this.#loop.now() + BACKLOG_TIMEOUT_MS;
    this.#waiting.push({ wish, path, deadline });
    this.#retry ??= this.#loop.after(BACKLOG_RETRY_MS, () => this.#tryAgain());
  }

  #tryAgain(): void {
    const now = this.#loop.now();
    const waiting = this.#waiting;
    // Refusals and acceptances may bring new ones.
    this.#waiting = [];
    this.#retry = null;
    const full = new Set<string>();
    const left: Waiting[] = [];
    for (const entry of waiting) {
      const { wish, path, deadline } = entry;
      const { request, kind } = wish;
      if (request.cancelled) continue;
      const result = full.has(path) ? -EAGAIN : connectTo(path, kind);
      if (result >= 0) this.#connected(wish, result);
      else if (result !== -EAGAIN) this.#connectFailed(wish, path, -result);
      else if (now >= deadline) {
        this.#diagnostics.count("host_connects_refused");
        request.refuse();
      } else {
        full.add(path);
        left.push(entry);
      }
    }
    this.#waiting = left.concat(this.#waiting);
    if (this.#waiting.length > 0) {
      this.#retry ??= this.#loop.after(
        BACKLOG_RETRY_MS,
        () => this.#tryAgain(),
      );
    }
  }

  #openStream(fd: number, events: StreamEvents): UnixStream {
    const stream = new UnixStream(this.#loop, this.#io, fd, events, this);
    this.#ends.add(stream);
    return stream;
  }

  #openMessages(fd: number, events: MessageEvents): UnixMessages {
    const end = new UnixMessages(this.#loop, this.#io, fd, events, this);
    this.#ends.add(end);
    return end;
  }

  /** {@inheritDoc EndOwner.endClosed} */
  endClosed(end: UnixEnd): void {
    this.#ends.delete(end);
  }

  // -- Host to guest --

  #accept(on: boolean): void {
    if (this.#doors.length === 0 || on === this.#accepting) return;
    this.#accepting = on;
    for (const { kind, listener } of this.#doors) {
      if (on) {
        this.#loop.register(listener.fd, EPOLLIN, {
          onEvents: () => this.#acceptSome(listener.fd, kind),
        });
      } else {
        // Level-triggered and left registered, it would wake the loop for ever.
        this.#loop.unregister(listener.fd);
      }
    }
  }

  #acceptSome(listener: number, kind: SocketKind): void {
    // One that comes alone is not followed by a look for another one: the listener is level-triggered.
    const most = this.#clients.size > 0 ? MAX_ACCEPTS : 1;
    for (let i = 0; i < most; i++) {
      if (this.#clients.size >= MAX_PENDING_CLIENTS) return this.#accept(false);
      const fd = acceptFrom(listener);
      if (fd < 0) {
        if (isExhaustion(-fd)) this.#pause(-fd);
        return;
      }
      try {
        this.#clients.add(new PendingClient(this, this.#loop, fd, kind));
      } catch (error) {
        if (!(error instanceof SystemError)) throw error;
        closeFd(fd);
        return this.#pause(error.errno);
      }
    }
  }

  #pause(error: number): void {
    this.#diagnostics.fault(
      "descriptors_exhausted",
      () => `cannot accept a host program: ${errnoName(error)}`,
    );
    this.#accept(false);
    this.#resume = this.#loop.after(ACCEPT_PAUSE_MS, () => this.#accept(true));
  }

  /** Called by a client that has sent its line; -1 is a bad one. */
  clientAsks(client: PendingClient, port: number, line: string): void {
    if (port < 0) {
      this.#diagnostics.fault(
        "connect_line_bad",
        () => `a host program sent ${JSON.stringify(line)}`,
      );
      return client.drop();
    }
    if (this.#guestPorts !== null && !this.#guestPorts.has(port)) {
      this.#diagnostics.fault(
        "guest_port_not_allowed",
        () => `host programs may not connect to port ${port}`,
      );
      return client.drop();
    }
    const guest = this.#guest;
    if (guest === null) return client.drop();
    const refused = (reason: string) => client.refused(reason);
    if (client.kind === "stream") {
      client.asked(guest.connect(port, {
        accepted: (hostPort, events): HostStream => {
          const fd = this.#clientAccepted(client, hostPort);
          return this.#openStream(fd, events);
        },
        refused,
      }));
    } else if (guest.connectMessages !== undefined) {
      client.asked(guest.connectMessages(port, {
        accepted: (hostPort, events): HostMessages => {
          const fd = this.#clientAccepted(client, hostPort);
          return this.#openMessages(fd, events);
        },
        refused,
      }));
    }
  }

  /** Tells a client that the guest has accepted, and returns its socket. */
  #clientAccepted(client: PendingClient, hostPort: number): number {
    const fd = client.release();
    this.clientGone(client);
    const line = `OK ${hostPort}\n`;
    const bytes = this.line;
    for (let i = 0; i < line.length; i++) bytes[i] = line.charCodeAt(i);
    // A fresh socket has room for it. Where the client is gone, the stream says so.
    if (sendBytes(fd, bytes, line.length) !== line.length) {
      shutdownSocket(fd, SHUT_RDWR);
    }
    this.#diagnostics.count("guest_connects_accepted");
    return fd;
  }

  /** Called by a client that is not pending any more. */
  clientGone(client: PendingClient): void {
    if (!this.#clients.delete(client)) return;
    if (!this.#resume?.pending) this.#accept(true);
  }

  /** Called by a client for what is only counted. */
  count(kind: string, reason: string): void {
    this.#diagnostics.count(kind);
    this.#diagnostics.log("debug", reason);
  }

  /** Closes a socket so that its other end reads end of file. */
  closeGently(fd: number): void {
    this.#loop.forget(fd);
    shutdownSocket(fd, SHUT_RDWR);
    this.#io.discard(fd);
    closeFd(fd);
  }
}

function isExhaustion(error: number): boolean {
  return error === EMFILE || error === ENFILE || error === ENOBUFS ||
    error === ENOMEM;
}

/**
 * A host program on its way to the guest: it sends its line, then waits for the answer.
 *
 * Bytes behind the line stay in the socket, where the stream finds them: the line is looked at
 * (MSG_PEEK) before exactly its bytes are taken.
 */
class PendingClient implements FdHandler {
  readonly kind: SocketKind;
  readonly #backend: UnixBackend;
  readonly #timer: Timer;
  #fd: number;
  #line = "";
  #complete = false;
  #connect: PendingConnect | null = null;

  constructor(
    backend: UnixBackend,
    loop: EventLoop,
    fd: number,
    kind: SocketKind,
  ) {
    this.kind = kind;
    this.#backend = backend;
    this.#fd = fd;
    // What follows the line, bytes or a half-close, is the stream's to find.
    loop.register(fd, EPOLLIN | EPOLLET, this);
    this.#timer = loop.after(CONNECT_LINE_TIMEOUT_MS, () => {
      backend.count("connect_line_timeouts", "a host program sent no line");
      this.drop();
    });
  }

  onEvents(events: number): void {
    if (!this.#complete) this.#readLine(events);
    else if ((events & EPOLLHUP) !== 0) {
      this.#backend.count(
        "host_programs_left",
        "a host program left before the guest answered",
      );
      this.drop();
    }
  }

  #readLine(events: number): void {
    const fd = this.#fd;
    const bytes = this.#backend.line;
    // A message is all there is of it, and nothing else.
    const whole = this.kind === "seqpacket";
    let end = -1;
    do {
      const room = MAX_CONNECT_LINE_BYTES - this.#line.length;
      const seen = peekBytes(fd, bytes, room);
      if (seen === -EAGAIN) return;
      if (seen <= 0) return this.drop();
      end = bytes.subarray(0, seen).indexOf(NEWLINE);
      if (whole && end !== seen - 1) end = -1;
      const take = end < 0 ? seen : end + 1;
      receiveBytes(fd, bytes, take);
      for (let i = 0; i < take && i !== end; i++) {
        this.#line += String.fromCharCode(bytes[i]!);
      }
    } while (
      end < 0 && this.#line.length < MAX_CONNECT_LINE_BYTES && !whole
    );
    this.#complete = true;
    this.#timer.cancel();
    if ((events & EPOLLHUP) !== 0) {
      this.#backend.count("host_programs_left", "a host program left at once");
      return this.drop();
    }
    const line = this.#line;
    this.#backend.clientAsks(this, end < 0 ? -1 : parseConnectLine(line), line);
  }

  /** The guest has been asked; it may have answered already. */
  asked(connect: PendingConnect): void {
    if (this.#fd >= 0) this.#connect = connect;
  }

  /** Gives its socket away, which is still watched. */
  release(): number {
    const fd = this.#fd;
    this.#fd = -1;
    this.#connect = null;
    return fd;
  }

  refused(reason: string): void {
    this.#connect = null;
    this.#backend.count("guest_connects_refused", reason);
    this.drop();
  }

  /** Ends it; the host program reads end of file. */
  drop(): void {
    const fd = this.#fd;
    if (fd < 0) return;
    this.#fd = -1;
    this.#timer.cancel();
    this.#backend.closeGently(fd);
    this.#backend.clientGone(this);
    const connect = this.#connect;
    this.#connect = null;
    connect?.cancel();
  }
}
