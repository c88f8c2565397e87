import type {
  ConnectRequest,
  HostSide,
  HostStream,
  PendingConnect,
  StreamEvents,
} from "./host.ts";
import {
  type ConnectAnswer,
  STREAM_AGAIN,
  STREAM_BROKEN,
  STREAM_EOF,
} from "./host.ts";
import { ByteQueue } from "./byte_queue.ts";
import type { Segments } from "./segments.ts";

/** Bytes that a {@link LoopbackConn} holds in each direction. */
export const LOOPBACK_BUFFER_BYTES = 262_144;
/** Connections that wait for `accept()` at most; further ones are refused. */
export const LOOPBACK_BACKLOG = 128;

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
  #device: LoopbackDevice | null = null;
  #scheduled = false;

  /** Makes a host side without listeners; work is scheduled by `queueMicrotask` unless told. */
  constructor(options: { schedule?: (work: () => void) => void } = {}) {
    this.#schedule = options.schedule ?? queueMicrotask;
  }

  /** Gives it its device, once. */
  attach(device: LoopbackDevice): void {
    if (this.#device !== null) {
      throw new TypeError("Cannot attach the host side: it is attached");
    }
    this.#device = device;
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
      this.#wake,
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
      device.connect(guestPort, {
        accepted: (hostPort, events) => {
          const conn = new LoopbackConn(
            hostPort,
            guestPort,
            events,
            this.#wake,
          );
          resolve(conn);
          return conn.stream;
        },
        refused: (reason) => {
          reject(
            new Error(`Cannot connect to guest port ${guestPort}: ${reason}`),
          );
        },
      });
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
  readonly #wake: () => void;
  readonly #onClose: () => void;
  readonly #backlog: LoopbackConn[] = [];
  readonly #waiting: ((conn: LoopbackConn | null) => void)[] = [];
  #closed = false;

  /** Made by {@link LoopbackHost.listen}. */
  constructor(port: number, wake: () => void, onClose: () => void) {
    this.port = port;
    this.#wake = wake;
    this.#onClose = onClose;
  }

  /** Takes a guest's connection; false where the backlog is full. */
  offer(request: ConnectRequest): boolean {
    if (this.#closed || this.#backlog.length >= LOOPBACK_BACKLOG) return false;
    request.accept((events) => {
      const conn = new LoopbackConn(
        request.hostPort,
        request.guestPort,
        events,
        this.#wake,
      );
      const waiting = this.#waiting.shift();
      if (waiting === undefined) this.#backlog.push(conn);
      else waiting(conn);
      return conn.stream;
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
  /** The device's end; not for host programs. */
  readonly stream: HostStream;

  readonly #events: StreamEvents;
  readonly #wake: () => void;
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
    events: StreamEvents,
    wake: () => void,
  ) {
    this.hostPort = hostPort;
    this.guestPort = guestPort;
    this.#events = events;
    this.#wake = wake;
    this.stream = {
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
        this.#wakeReaders();
        this.#wakeWriters();
      },
    };
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
    this.#events.hostHangup();
    this.#wake();
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
    this.#events.hostReadable();
    this.#wake();
  }

  #roomForDevice(): void {
    if (!this.#writeEventOwed) return;
    this.#writeEventOwed = false;
    this.#events.hostWritable();
    this.#wake();
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
