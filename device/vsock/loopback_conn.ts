import { base64, type FieldReader } from "../snapshot.ts";
import { ByteQueue } from "./byte_queue.ts";
import {
  type HostStream,
  STREAM_AGAIN,
  STREAM_BROKEN,
  STREAM_EOF,
  type StreamEvents,
} from "./host.ts";
import type { Segments } from "./segments.ts";

/** Bytes that a {@link LoopbackConn} holds in each direction. */
export const LOOPBACK_BUFFER_BYTES = 262_144;
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

/** What a {@link LoopbackConn}, or another kind of connection, tells its host side. */
export interface LoopbackContext<Conn = LoopbackConn> {
  /** The device has work. */
  wake(): void;
  /** There is a new connection. */
  opened(conn: Conn): void;
  /** The device is through with it. */
  released(conn: Conn): void;
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
