import { FieldReader, SnapshotError } from "../snapshot.ts";
import type {
  ConnectAnswer,
  ConnectRequest,
  HostSide,
  HostStream,
  PendingConnect,
  RestoredConnection,
  StreamEvents,
} from "./host.ts";
import {
  LoopbackConn,
  type LoopbackConnSnapshot,
  type LoopbackContext,
} from "./loopback_conn.ts";

export { LOOPBACK_BUFFER_BYTES, LoopbackConn } from "./loopback_conn.ts";
export type { LoopbackConnSnapshot, LoopbackContext } from "./loopback_conn.ts";

/** Connections that wait for `accept()` at most; further ones are refused. */
export const LOOPBACK_BACKLOG = 128;

/** The connections of a {@link LoopbackHost} as plain data, to go on in another process. */
export type LoopbackSnapshot = {
  /** 1. */
  version: number;
  /** In the order in which they were made. */
  connections: LoopbackConnSnapshot[];
};

/** What {@link LoopbackHost} needs of its device; a `VsockDevice` is one. */
export interface LoopbackDevice {
  /** Connects a host program to a guest's port. */
  connect(guestPort: number, answer: ConnectAnswer): PendingConnect;
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
  readonly #listeners = new Map<number, LoopbackListener>();
  readonly #schedule: (work: () => void) => void;
  // Until the device is through with them. Ports can be in it twice: what a guest sent before it
  // closed may still be there when it has connected again.
  readonly #connections = new Set<LoopbackConn>();
  readonly #context: LoopbackContext = {
    wake: () => this.#wake(),
    opened: (conn) => this.#connections.add(conn),
    released: (conn) => this.#connections.delete(conn),
  };
  readonly #connecting = new Map<string, ConnectAnswer>();
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
   * connections: their programs notice nothing.
   */
  detach(): void {
    this.#device = null;
    for (const conn of this.#connections) conn.suspend();
  }

  /** Connections with which the device is not through, in the order in which they were made. */
  get connections(): readonly LoopbackConn[] {
    return [...this.#connections];
  }

  /** Its connections as plain data. Programs whose connect is not answered are not in it. */
  save(): LoopbackSnapshot {
    return {
      version: 1,
      connections: this.connections.map((conn) => conn.save()),
    };
  }

  /**
   * Makes the connections of a snapshot, before the device is restored that goes on with them;
   * returns them in the same order, for programs to go on with.
   *
   * @throws {SnapshotError} when it is no such snapshot; then nothing is made.
   */
  restore(snapshot: unknown): LoopbackConn[] {
    const fields = new FieldReader(snapshot, "host");
    if (fields.any("version") !== 1) {
      throw new SnapshotError(
        "VERSION",
        "its host side is of another version than 1",
      );
    }
    const values = fields.array("connections", Infinity);
    const conns: LoopbackConn[] = [];
    try {
      for (const [i, value] of values.entries()) {
        const one = new FieldReader(value, `host.connections[${i}]`);
        conns.push(LoopbackConn.restore(one, this.#context));
      }
    } catch (error) {
      for (const conn of conns) this.#connections.delete(conn);
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

  /** Goes on with a connect that the guest has not answered; called by the device. */
  resumeConnect(connection: RestoredConnection): ConnectAnswer | null {
    return this.#connecting.get(keyOf(connection)) ?? null;
  }

  /**
   * Listens on a host port, 0 to 0xfffffffe.
   *
   * @throws {RangeError} when it is no port.
   * @throws {TypeError} when somebody listens there already.
   */
  listen(port: number): LoopbackListener {
    if (!(Number.isInteger(port) && port >= 0 && port < 0xffffffff)) {
      throw new RangeError(`Cannot listen on port ${port}: it is no port`);
    }
    if (this.#listeners.has(port)) {
      throw new TypeError(`Cannot listen on port ${port}: it is in use`);
    }
    const listener = new LoopbackListener(
      port,
      this.#context,
      () => this.#listeners.delete(port),
    );
    this.#listeners.set(port, listener);
    return listener;
  }

  /**
   * Connects to a guest's port.
   *
   * Rejects with an Error when the guest refuses or is not there.
   */
  connect(guestPort: number): Promise<LoopbackConn>;
  /** Takes a guest's connection; called by the device. */
  connect(request: ConnectRequest): void;
  connect(to: number | ConnectRequest): Promise<LoopbackConn> | void {
    if (typeof to === "number") return this.#connectToGuest(to);
    const listener = this.#listeners.get(to.hostPort);
    if (listener === undefined || !listener.offer(to)) to.refuse();
  }

  #connectToGuest(guestPort: number): Promise<LoopbackConn> {
    const device = this.#device;
    if (device === null) {
      return Promise.reject(
        new TypeError("Cannot connect: the host side has no device"),
      );
    }
    return new Promise((resolve, reject) => {
      let key = "";
      const answer: ConnectAnswer = {
        accepted: (hostPort, events) => {
          this.#connecting.delete(key);
          const conn = new LoopbackConn(hostPort, guestPort, this.#context);
          resolve(conn);
          return conn.resume(events);
        },
        refused: (reason) => {
          this.#connecting.delete(key);
          reject(
            new Error(`Cannot connect to guest port ${guestPort}: ${reason}`),
          );
        },
      };
      const { hostPort } = device.connect(guestPort, answer);
      if (hostPort >= 0) {
        key = keyOf({ hostPort, guestPort });
        this.#connecting.set(key, answer);
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
export class LoopbackListener implements AsyncIterable<LoopbackConn> {
  /** The host port. */
  readonly port: number;
  readonly #context: LoopbackContext;
  readonly #onClose: () => void;
  readonly #backlog: LoopbackConn[] = [];
  readonly #waiting: ((conn: LoopbackConn | null) => void)[] = [];
  #closed = false;

  /** Made by {@link LoopbackHost.listen}. */
  constructor(port: number, context: LoopbackContext, onClose: () => void) {
    this.port = port;
    this.#context = context;
    this.#onClose = onClose;
  }

  /** Takes a guest's connection; false where the backlog is full. */
  offer(request: ConnectRequest): boolean {
    if (this.#closed || this.#backlog.length >= LOOPBACK_BACKLOG) return false;
    request.accept((events) => {
      const conn = new LoopbackConn(
        request.hostPort,
        request.guestPort,
        this.#context,
      );
      const waiting = this.#waiting.shift();
      if (waiting === undefined) this.#backlog.push(conn);
      else waiting(conn);
      return conn.resume(events);
    });
    return true;
  }

  /** A connection that waits, or null at once; for programs that poll. */
  tryAccept(): LoopbackConn | null {
    return this.#backlog.shift() ?? null;
  }

  /** The next connection, or null when the listener is closed. */
  accept(): Promise<LoopbackConn | null> {
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
  async *[Symbol.asyncIterator](): AsyncIterator<LoopbackConn> {
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
