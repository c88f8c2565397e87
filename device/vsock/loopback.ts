import { FieldReader, SnapshotError } from "../snapshot.ts";
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
  RestoredConnection,
  StreamEvents,
} from "./host.ts";
import {
  LoopbackConn,
  type LoopbackConnSnapshot,
  type LoopbackContext,
} from "./loopback_conn.ts";

import {
  LoopbackMessages,
  type LoopbackMessagesSnapshot,
} from "./loopback_messages.ts";

export { LOOPBACK_BUFFER_BYTES, LoopbackConn } from "./loopback_conn.ts";
export type { LoopbackConnSnapshot, LoopbackContext } from "./loopback_conn.ts";

/** Connections that wait for `accept()` at most; further ones are refused. */
export const LOOPBACK_BACKLOG = 128;

/** The connections of a {@link LoopbackHost} as plain data, to go on in another process. */
export type LoopbackSnapshot = {
  /** 2. */
  version: number;
  /** Streams, in the order in which they were made. */
  connections: LoopbackConnSnapshot[];
  /** Seqpacket connections, in the order in which they were made. */
  messages: LoopbackMessagesSnapshot[];
};

const VERSION = 2;

/** Says that a port, or a connection, is one of seqpackets. */
export type SeqpacketOption = {
  /** The type of the socket. */
  type: "seqpacket";
};

/** Says what kind of socket a port, or a connection, is of. */
export type SocketOption = {
  /** The type of the socket. A stream unless told. */
  type?: "stream" | "seqpacket";
};

/** What {@link LoopbackHost} needs of its device; a `VsockDevice` is one. */
export interface LoopbackDevice {
  /** Connects a host program to a guest's port by a stream. */
  connect(guestPort: number, answer: ConnectAnswer): PendingConnect;
  /** Connects a host program to a guest's port by a seqpacket socket; a device without them has it not. */
  connectMessages?(guestPort: number, answer: MessagesAnswer): PendingConnect;
  /** Does pending work; true when there is more. */
  process(): boolean;
}

/**
 * The host side in memory: host programs are JavaScript in the same thread.
 *
 * What a program reads or writes may give the device work. It is done in a microtask, by
 * `device.process()`, unless `schedule` says otherwise.
 *
 * @example
 * ```ts ignore
 * const host = new LoopbackHost();
 * const vsock = new VsockDevice({ guestCid: 3, host });
 * host.attach(vsock);
 * for await (const conn of host.listen(1234)) conn.readable.pipeTo(conn.writable);
 * ```
 */
export class LoopbackHost implements HostSide {
  // A port is one socket's, whatever its type.
  readonly #listeners = new Map<number, LoopbackListener>();
  readonly #messageListeners = new Map<
    number,
    LoopbackListener<LoopbackMessages>
  >();
  readonly #schedule: (work: () => void) => void;
  // Until the device is through with them. Ports can be in it twice: what a guest sent before it
  // closed may still be there when it has connected again.
  readonly #connections = new Set<LoopbackConn>();
  readonly #context: LoopbackContext = {
    wake: () => this.#wake(),
    opened: (conn) => this.#connections.add(conn),
    released: (conn) => this.#connections.delete(conn),
  };
  readonly #messages = new Set<LoopbackMessages>();
  readonly #messagesContext: LoopbackContext<LoopbackMessages> = {
    wake: () => this.#wake(),
    opened: (conn) => this.#messages.add(conn),
    released: (conn) => this.#messages.delete(conn),
  };
  readonly #connecting = new Map<string, ConnectAnswer>();
  readonly #messagesConnecting = new Map<string, MessagesAnswer>();
  #device: LoopbackDevice | null = null;
  #scheduled = false;

  /** Makes a host side without listeners; work is scheduled by `queueMicrotask` unless told. */
  constructor(options: { schedule?: (work: () => void) => void } = {}) {
    this.#schedule = options.schedule ?? queueMicrotask;
  }

  /** Gives it its device; another one after `detach()`. */
  attach(device: LoopbackDevice): void {
    if (this.#device !== null) {
      throw new TypeError("Cannot attach the host side: it is attached");
    }
    this.#device = device;
  }

  /**
   * Takes its device away. Another one, restored from a snapshot of it, goes on with the same
   * connections: their programs notice nothing. The old one is not to be used any more: a reset of it would
   * end them.
   */
  detach(): void {
    this.#device = null;
    for (const conn of this.#connections) conn.suspend();
    for (const conn of this.#messages) conn.suspend();
  }

  /** Streams with which the device is not through, in the order in which they were made. */
  get connections(): readonly LoopbackConn[] {
    return [...this.#connections];
  }

  /** Seqpacket connections with which the device is not through, in the order in which they were made. */
  get messageConnections(): readonly LoopbackMessages[] {
    return [...this.#messages];
  }

  /** Its connections as plain data. Programs whose connect is not answered are not in it. */
  save(): LoopbackSnapshot {
    return {
      version: VERSION,
      connections: this.connections.map((conn) => conn.save()),
      messages: this.messageConnections.map((conn) => conn.save()),
    };
  }

  /**
   * Makes the connections of a snapshot, before the device is restored that goes on with them;
   * returns the streams in the same order, for programs to go on with. Seqpacket connections are in
   * {@link LoopbackHost.messageConnections}.
   *
   * @throws {SnapshotError} when it is no such snapshot; then nothing is made.
   */
  restore(snapshot: unknown): LoopbackConn[] {
    const fields = new FieldReader(snapshot, "host");
    if (fields.any("version") !== VERSION) {
      throw new SnapshotError(
        "VERSION",
        `its host side is of another version than ${VERSION}`,
      );
    }
    const values = fields.array("connections", Infinity);
    const messages = fields.array("messages", Infinity);
    const conns: LoopbackConn[] = [];
    const messageConns: LoopbackMessages[] = [];
    try {
      for (const [i, value] of values.entries()) {
        const one = new FieldReader(value, `host.connections[${i}]`);
        conns.push(LoopbackConn.restore(one, this.#context));
      }
      for (const [i, value] of messages.entries()) {
        const one = new FieldReader(value, `host.messages[${i}]`);
        messageConns.push(LoopbackMessages.restore(one, this.#messagesContext));
      }
    } catch (error) {
      for (const conn of conns) this.#connections.delete(conn);
      for (const conn of messageConns) this.#messages.delete(conn);
      throw error;
    }
    return conns;
  }

  /** Goes on with a connection of a restored device; called by the device. */
  resume(
    connection: RestoredConnection,
  ): ((events: StreamEvents) => HostStream) | null {
    const { hostPort, guestPort } = connection;
    for (const conn of this.#connections) {
      if (
        conn.suspended && conn.hostPort === hostPort &&
        conn.guestPort === guestPort
      ) {
        return (events) => conn.resume(events);
      }
    }
    return null;
  }

  /** Goes on with a seqpacket connection of a restored device; called by the device. */
  resumeMessages(
    connection: RestoredConnection,
  ): ((events: MessageEvents) => HostMessages) | null {
    const { hostPort, guestPort } = connection;
    for (const conn of this.#messages) {
      if (
        conn.suspended && conn.hostPort === hostPort &&
        conn.guestPort === guestPort
      ) {
        return (events) => conn.resume(events);
      }
    }
    return null;
  }

  /** Goes on with a connect that the guest has not answered; called by the device. */
  resumeConnect(connection: RestoredConnection): ConnectAnswer | null {
    return this.#connecting.get(keyOf(connection)) ?? null;
  }

  /** The same with a seqpacket connect. */
  resumeConnectMessages(connection: RestoredConnection): MessagesAnswer | null {
    return this.#messagesConnecting.get(keyOf(connection)) ?? null;
  }

  /**
   * Listens on a host port, 0 to 0xfffffffe, for seqpacket connections.
   *
   * @throws {RangeError} when it is no port.
   * @throws {TypeError} when somebody listens there already.
   */
  listen(
    port: number,
    options: SeqpacketOption,
  ): LoopbackListener<LoopbackMessages>;
  /**
   * Listens on a host port, 0 to 0xfffffffe, for streams.
   *
   * @throws {RangeError} when it is no port.
   * @throws {TypeError} when somebody listens there already.
   */
  listen(port: number, options?: { type?: "stream" }): LoopbackListener;
  listen(
    port: number,
    options: SocketOption = {},
  ): LoopbackListener | LoopbackListener<LoopbackMessages> {
    if (!(Number.isInteger(port) && port >= 0 && port < 0xffffffff)) {
      throw new RangeError(`Cannot listen on port ${port}: it is no port`);
    }
    if (this.#listeners.has(port) || this.#messageListeners.has(port)) {
      throw new TypeError(`Cannot listen on port ${port}: it is in use`);
    }
    if (options.type === "seqpacket") {
      const listener = new LoopbackListener<LoopbackMessages>(
        port,
        () => this.#messageListeners.delete(port),
      );
      this.#messageListeners.set(port, listener);
      return listener;
    }
    const listener = new LoopbackListener(
      port,
      () => this.#listeners.delete(port),
    );
    this.#listeners.set(port, listener);
    return listener;
  }

  /**
   * Connects to a guest's port by a seqpacket socket.
   *
   * Rejects with an Error when the guest refuses, has no seqpackets, or is not there.
   */
  connect(
    guestPort: number,
    options: SeqpacketOption,
  ): Promise<LoopbackMessages>;
  /**
   * Connects to a guest's port by a stream.
   *
   * Rejects with an Error when the guest refuses or is not there.
   */
  connect(
    guestPort: number,
    options?: { type?: "stream" },
  ): Promise<LoopbackConn>;
  /** Takes a guest's connection; called by the device. */
  connect(request: ConnectRequest): void;
  connect(
    to: number | ConnectRequest,
    options: SocketOption = {},
  ): Promise<LoopbackConn | LoopbackMessages> | void {
    if (typeof to === "number") {
      return options.type === "seqpacket"
        ? this.#connectMessagesToGuest(to)
        : this.#connectToGuest(to);
    }
    const { hostPort, guestPort } = to;
    const listener = this.#listeners.get(hostPort);
    if (listener === undefined || !listener.hasRoom) return to.refuse();
    to.accept((events) => {
      const conn = new LoopbackConn(hostPort, guestPort, this.#context);
      listener.push(conn);
      return conn.resume(events);
    });
  }

  /** Takes a guest's seqpacket connection; called by the device. */
  connectMessages(request: MessagesRequest): void {
    const { hostPort, guestPort } = request;
    const listener = this.#messageListeners.get(hostPort);
    if (listener === undefined || !listener.hasRoom) return request.refuse();
    request.accept((events) => {
      const conn = new LoopbackMessages(
        hostPort,
        guestPort,
        this.#messagesContext,
      );
      listener.push(conn);
      return conn.resume(events);
    });
  }

  #connectToGuest(guestPort: number): Promise<LoopbackConn> {
    return this.#ask(
      guestPort,
      this.#connecting,
      (hostPort) => new LoopbackConn(hostPort, guestPort, this.#context),
      (conn, events) => conn.resume(events),
      (device, answer) => device.connect(guestPort, answer),
    );
  }

  #connectMessagesToGuest(guestPort: number): Promise<LoopbackMessages> {
    return this.#ask(
      guestPort,
      this.#messagesConnecting,
      (hostPort) =>
        new LoopbackMessages(hostPort, guestPort, this.#messagesContext),
      (conn, events) => conn.resume(events),
      (device, answer) => {
        if (device.connectMessages !== undefined) {
          return device.connectMessages(guestPort, answer);
        }
        answer.refused("the device has no seqpacket sockets");
        return { hostPort: -1, cancel: () => {} };
      },
    );
  }

  /** Asks the guest for a connection, of whichever type. */
  #ask<Conn, End, Events>(
    guestPort: number,
    connecting: Map<string, ConnectAnswer<End, Events>>,
    make: (hostPort: number) => Conn,
    resume: (conn: Conn, events: Events) => End,
    connect: (
      device: LoopbackDevice,
      answer: ConnectAnswer<End, Events>,
    ) => PendingConnect,
  ): Promise<Conn> {
    const device = this.#device;
    if (device === null) {
      return Promise.reject(
        new TypeError("Cannot connect: the host side has no device"),
      );
    }
    return new Promise((resolve, reject) => {
      let key = "";
      const answer: ConnectAnswer<End, Events> = {
        accepted: (hostPort, events) => {
          connecting.delete(key);
          const conn = make(hostPort);
          resolve(conn);
          return resume(conn, events);
        },
        refused: (reason) => {
          connecting.delete(key);
          reject(
            new Error(`Cannot connect to guest port ${guestPort}: ${reason}`),
          );
        },
      };
      const { hostPort } = connect(device, answer);
      if (hostPort >= 0) {
        key = keyOf({ hostPort, guestPort });
        connecting.set(key, answer);
      }
      this.#wake();
    });
  }

  readonly #wake: () => void = () => {
    if (this.#scheduled) return;
    this.#scheduled = true;
    this.#schedule(() => {
      this.#scheduled = false;
      if (this.#device?.process()) this.#wake();
    });
  };
}

/** Connections from a guest to one host port of a {@link LoopbackHost}. */
export class LoopbackListener<Conn extends { close(): void } = LoopbackConn>
  implements AsyncIterable<Conn> {
  /** The host port. */
  readonly port: number;
  readonly #onClose: () => void;
  readonly #backlog: Conn[] = [];
  readonly #waiting: ((conn: Conn | null) => void)[] = [];
  #closed = false;

  /** Made by {@link LoopbackHost.listen}. */
  constructor(port: number, onClose: () => void) {
    this.port = port;
    this.#onClose = onClose;
  }

  /** True where the backlog takes another connection. */
  get hasRoom(): boolean {
    return !this.#closed && this.#backlog.length < LOOPBACK_BACKLOG;
  }

  /** Takes a guest's connection; called by {@link LoopbackHost}. */
  push(conn: Conn): void {
    const waiting = this.#waiting.shift();
    if (waiting === undefined) this.#backlog.push(conn);
    else waiting(conn);
  }

  /** A connection that waits, or null at once; for programs that poll. */
  tryAccept(): Conn | null {
    return this.#backlog.shift() ?? null;
  }

  /** The next connection, or null when the listener is closed. */
  accept(): Promise<Conn | null> {
    const conn = this.#backlog.shift();
    if (conn !== undefined || this.#closed) {
      return Promise.resolve(conn ?? null);
    }
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  /** Stops listening; connections that nobody accepted are closed, accepted ones go on. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#onClose();
    for (const conn of this.#backlog.splice(0)) conn.close();
    for (const resolve of this.#waiting.splice(0)) resolve(null);
  }

  /** Connections until the listener is closed. */
  async *[Symbol.asyncIterator](): AsyncIterator<Conn> {
    for (
      let conn = await this.accept();
      conn !== null;
      conn = await this.accept()
    ) yield conn;
  }
}

function keyOf({ hostPort, guestPort }: RestoredConnection): string {
  return `${hostPort}:${guestPort}`;
}
