import { base64, FieldReader, SnapshotError } from "../snapshot.ts";
import { ByteQueue } from "./byte_queue.ts";
import {
  type ConnectAnswer,
  type ConnectRequest,
  type HostSide,
  type HostStream,
  type PendingConnect,
  type RestoredConnection,
  STREAM_AGAIN,
  STREAM_BROKEN,
  STREAM_EOF,
  type StreamEvents,
} from "./host.ts";
import type { Segments } from "./segments.ts";

/** Bytes that a {@link LoopbackConn} holds in each direction. */
export const LOOPBACK_BUFFER_BYTES = 262_144;
/** Connections that wait for `accept()` at most; further ones are refused. */
export const LOOPBACK_BACKLOG = 128;

/** One {@link LoopbackConn} in a snapshot. */
export type LoopbackConnSnapshot = {
  hostPort: number;
  guestPort: number;
  /** Bytes that the program has not read, in base64. */
  in: string;
  /** Bytes that the device has not taken, in base64. */
  out: string;
  guestWriteEnded: boolean;
  guestReadEnded: boolean;
  writeClosed: boolean;
  closed: boolean;
  reset: boolean;
};

/** The connections of a {@link LoopbackHost} as plain data, to go on in another process. */
export type LoopbackSnapshot = {
  /** 1. */
  version: number;
  /** In the order in which they were made. */
  connections: LoopbackConnSnapshot[];
};

/** What a {@link LoopbackConn} tells its host side. */
export interface LoopbackContext {
  /** The device has work. */
  wake(): void;
  /** There is a new connection. */
  opened(conn: LoopbackConn): void;
  /** The device is through with it. */
  released(conn: LoopbackConn): void;
}

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

/**
 * A host program's end of a stream, in the manner of `Deno.Conn`.
 *
 * Each direction holds {@link LOOPBACK_BUFFER_BYTES} and ends by itself.
 */
export class LoopbackConn {
  /** The host's port. */
  readonly hostPort: number;
  /** The guest's port. */
  readonly guestPort: number;

  readonly #context: LoopbackContext;
  readonly #stream: HostStream;
  // Null while no device has it: before it is opened, and between a device and its successor.
  #events: StreamEvents | null = null;
  readonly #in = new ByteQueue(LOOPBACK_BUFFER_BYTES);
  readonly #out = new ByteQueue(LOOPBACK_BUFFER_BYTES);
  #readers: (() => void)[] = [];
  #writers: (() => void)[] = [];

  // Who has ended what: the guest its sending, the guest its receiving, the program its own two.
  #guestWriteEnded = false;
  #guestReadEnded = false;
  #writeClosed = false;
  #closed = false;
  #reset = false;
  // The device found the queue empty, or full, and is owed an event.
  #readEventOwed = false;
  #writeEventOwed = false;
  #readable: ReadableStream<Uint8Array<ArrayBuffer>> | null = null;
  #writable: WritableStream<Uint8Array> | null = null;

  /** Made by {@link LoopbackHost}. */
  constructor(
    hostPort: number,
    guestPort: number,
    context: LoopbackContext,
  ) {
    this.hostPort = hostPort;
    this.guestPort = guestPort;
    this.#context = context;
    this.#stream = {
      write: (from) => this.#deviceWrites(from),
      writeBytes: (from) => this.#deviceWritesBytes(from),
      read: (into) => this.#deviceReads(into),
      shutdownWrite: () => {
        this.#guestWriteEnded = true;
        this.#wakeReaders();
      },
      shutdownRead: () => {
        this.#guestReadEnded = true;
        this.#out.clear();
        this.#wakeWriters();
      },
      close: (reset) => {
        this.#reset ||= reset;
        this.#guestWriteEnded = true;
        this.#guestReadEnded = true;
        this.#out.clear();
        this.#events = null;
        this.#context.released(this);
        this.#wakeReaders();
        this.#wakeWriters();
      },
    };
    context.opened(this);
  }

  /** Makes a connection of a snapshot, which waits for its device; see {@link LoopbackHost.restore}. */
  static restore(fields: FieldReader, context: LoopbackContext): LoopbackConn {
    const inBytes = fields.bytes("in", LOOPBACK_BUFFER_BYTES);
    const outBytes = fields.bytes("out", LOOPBACK_BUFFER_BYTES);
    const flags = [
      fields.boolean("guestWriteEnded"),
      fields.boolean("guestReadEnded"),
      fields.boolean("writeClosed"),
      fields.boolean("closed"),
      fields.boolean("reset"),
    ] as const;
    const conn = new LoopbackConn(
      fields.u32("hostPort"),
      fields.u32("guestPort"),
      context,
    );
    conn.#in.push(inBytes);
    conn.#out.push(outBytes);
    [
      conn.#guestWriteEnded,
      conn.#guestReadEnded,
      conn.#writeClosed,
      conn.#closed,
      conn.#reset,
    ] = flags;
    return conn;
  }

  /** Its state as plain data; see {@link LoopbackHost.save}. */
  save(): LoopbackConnSnapshot {
    return {
      hostPort: this.hostPort,
      guestPort: this.guestPort,
      in: base64(this.#in.copy()),
      out: base64(this.#out.copy()),
      guestWriteEnded: this.#guestWriteEnded,
      guestReadEnded: this.#guestReadEnded,
      writeClosed: this.#writeClosed,
      closed: this.#closed,
      reset: this.#reset,
    };
  }

  /** True while no device has it. */
  get suspended(): boolean {
    return this.#events === null;
  }

  /** Takes it from its device; the program's bytes wait for the next one. */
  suspend(): void {
    this.#events = null;
  }

  /** Gives it to a device, which hears of it by `events`; returns the device's end. */
  resume(events: StreamEvents): HostStream {
    this.#events = events;
    // A device looks for itself at first.
    this.#readEventOwed = false;
    this.#writeEventOwed = false;
    if (this.#closed) events.hostHangup();
    return this.#stream;
  }

  /**
   * Reads what there is into `target`, at once: the bytes, 0 where there is nothing now, or null
   * at the end.
   *
   * @throws {Error} when the connection was reset.
   * @throws {TypeError} when it was closed here.
   */
  tryRead(target: Uint8Array): number | null {
    if (this.#closed) {
      throw new TypeError("Cannot read: the connection is closed");
    }
    const queue = this.#in;
    let done = 0;
    while (done < target.length && queue.length > 0) {
      const piece = queue.peek();
      const take = Math.min(piece.length, target.length - done);
      target.set(piece.subarray(0, take), done);
      queue.drop(take);
      done += take;
    }
    if (done > 0) {
      this.#roomForDevice();
      return done;
    }
    if (this.#reset) {
      throw new Error("Cannot read: the guest reset the connection");
    }
    return this.#guestWriteEnded && target.length > 0 ? null : 0;
  }

  /**
   * Writes what fits of `source`, at once; returns how many bytes.
   *
   * @throws {Error} when the guest receives no more.
   * @throws {TypeError} when it was closed here.
   */
  tryWrite(source: Uint8Array): number {
    if (this.#closed || this.#writeClosed) {
      throw new TypeError("Cannot write: the connection is closed");
    }
    if (this.#guestReadEnded) {
      throw new Error("Cannot write: the guest receives no more");
    }
    const take = Math.min(
      source.length,
      LOOPBACK_BUFFER_BYTES - this.#out.length,
    );
    if (take > 0) {
      this.#out.push(source.subarray(0, take));
      this.#bytesForDevice();
    }
    return take;
  }

  /** Reads into `target`: the bytes, 1 or more, or null at the end. See `tryRead` for errors. */
  async read(target: Uint8Array): Promise<number | null> {
    if (target.length === 0) return 0;
    for (;;) {
      const got = this.tryRead(target);
      if (got !== 0) return got;
      await new Promise<void>((resolve) => this.#readers.push(resolve));
    }
  }

  /** Writes all of `source`; returns its length. See `tryWrite` for errors. */
  async write(source: Uint8Array): Promise<number> {
    let done = this.tryWrite(source);
    while (done < source.length) {
      await new Promise<void>((resolve) => this.#writers.push(resolve));
      done += this.tryWrite(source.subarray(done));
    }
    return done;
  }

  /** Ends the sending side: the guest reads end of file after what was written. */
  closeWrite(): void {
    if (this.#writeClosed || this.#closed) return;
    this.#writeClosed = true;
    this.#wakeWriters();
    this.#bytesForDevice();
  }

  /** Ends the connection; what was written is still delivered, what was not read is dropped. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#writeClosed = true;
    this.#in.clear();
    this.#wakeReaders();
    this.#wakeWriters();
    this.#bytesForDevice();
    this.#events?.hostHangup();
    this.#context.wake();
  }

  /** The bytes from the guest; cancelling it closes the connection. */
  get readable(): ReadableStream<Uint8Array<ArrayBuffer>> {
    return this.#readable ??= new ReadableStream({
      type: "bytes",
      pull: async (controller) => {
        const chunk = new Uint8Array(65_536);
        const got = await this.read(chunk);
        if (got === null) controller.close();
        else controller.enqueue(chunk.subarray(0, got));
      },
      cancel: () => this.close(),
    }, { highWaterMark: 0 });
  }

  /** Bytes to the guest; closing it ends the sending side, aborting it the connection. */
  get writable(): WritableStream<Uint8Array> {
    return this.#writable ??= new WritableStream({
      write: async (chunk) => {
        await this.write(chunk);
      },
      close: () => this.closeWrite(),
      abort: () => this.close(),
    });
  }

  /** Closes the connection at the end of a `using` block. */
  [Symbol.dispose](): void {
    this.close();
  }

  #deviceWrites(from: Segments): number {
    if (this.#closed) return STREAM_BROKEN;
    const take = Math.min(from.bytes, LOOPBACK_BUFFER_BYTES - this.#in.length);
    if (take > 0) {
      const [first, second] = this.#in.extend(take);
      from.copyTo(first);
      if (second.length > 0) from.copyTo(second, first.length);
      this.#wakeReaders();
    }
    this.#writeEventOwed = take < from.bytes;
    return take;
  }

  #deviceWritesBytes(from: Uint8Array): number {
    if (this.#closed) return STREAM_BROKEN;
    const take = Math.min(from.length, LOOPBACK_BUFFER_BYTES - this.#in.length);
    if (take > 0) {
      this.#in.push(from.subarray(0, take));
      this.#wakeReaders();
    }
    this.#writeEventOwed = take < from.length;
    return take;
  }

  #deviceReads(into: Segments): number {
    const queue = this.#out;
    let done = 0;
    while (done < into.bytes && queue.length > 0) {
      const piece = queue.peek();
      const take = into.copyFrom(piece, done);
      queue.drop(take);
      done += take;
    }
    if (done > 0) {
      this.#wakeWriters();
      return done;
    }
    if (this.#writeClosed) return STREAM_EOF;
    this.#readEventOwed = true;
    return STREAM_AGAIN;
  }

  #bytesForDevice(): void {
    if (!this.#readEventOwed) return;
    this.#readEventOwed = false;
    this.#events?.hostReadable();
    this.#context.wake();
  }

  #roomForDevice(): void {
    if (!this.#writeEventOwed) return;
    this.#writeEventOwed = false;
    this.#events?.hostWritable();
    this.#context.wake();
  }

  #wakeReaders(): void {
    const readers = this.#readers;
    this.#readers = [];
    for (const resolve of readers) resolve();
  }

  #wakeWriters(): void {
    const writers = this.#writers;
    this.#writers = [];
    for (const resolve of writers) resolve();
  }
}

function keyOf({ hostPort, guestPort }: RestoredConnection): string {
  return `${hostPort}:${guestPort}`;
}
