import { base64, FieldReader } from "../snapshot.ts";
import {
  type HostMessages,
  MESSAGE_AGAIN,
  type MessageEvents,
  STREAM_BROKEN,
  STREAM_EOF,
} from "./host.ts";
import {
  LOOPBACK_BUFFER_BYTES,
  type LoopbackContext,
} from "./loopback_conn.ts";

/** Messages that a {@link LoopbackMessages} holds in each direction, whatever their lengths. */
export const LOOPBACK_BUFFER_MESSAGES = 1024;

/** Longest message, as the credit counts bytes in 31 bits. */
const MAX_MESSAGE_BYTES = 2 ** 31 - 1;

/** A message of a seqpacket connection. */
export type LoopbackMessage = {
  /** Its bytes; there may be none. */
  bytes: Uint8Array<ArrayBuffer>;
  /** It ends a record. */
  endOfRecord: boolean;
};

/** One message in a snapshot. */
export type LoopbackMessageSnapshot = {
  /** In base64. */
  bytes: string;
  endOfRecord: boolean;
};

/** One {@link LoopbackMessages} in a snapshot. */
export type LoopbackMessagesSnapshot = {
  hostPort: number;
  guestPort: number;
  /** Messages that the program has not received. */
  in: LoopbackMessageSnapshot[];
  /** Messages that the device has not taken. */
  out: LoopbackMessageSnapshot[];
  guestWriteEnded: boolean;
  guestReadEnded: boolean;
  writeClosed: boolean;
  closed: boolean;
  reset: boolean;
};

/** Whole messages, bounded in bytes and in number. */
class Messages {
  readonly list: LoopbackMessage[] = [];
  bytes = 0;

  hasRoom(length: number): boolean {
    return this.list.length === 0 ||
      (this.bytes + length <= LOOPBACK_BUFFER_BYTES &&
        this.list.length < LOOPBACK_BUFFER_MESSAGES);
  }

  push(bytes: Uint8Array<ArrayBuffer>, endOfRecord: boolean): void {
    this.list.push({ bytes, endOfRecord });
    this.bytes += bytes.length;
  }

  shift(): LoopbackMessage | null {
    const message = this.list.shift();
    if (message === undefined) return null;
    this.bytes -= message.bytes.length;
    return message;
  }

  clear(): void {
    this.list.length = 0;
    this.bytes = 0;
  }

  save(): LoopbackMessageSnapshot[] {
    return this.list.map(({ bytes, endOfRecord }) => ({
      bytes: base64(bytes),
      endOfRecord,
    }));
  }
}

/**
 * A host program's end of a seqpacket connection.
 *
 * Each direction holds {@link LOOPBACK_BUFFER_BYTES} in up to {@link LOOPBACK_BUFFER_MESSAGES}
 * messages, or one longer message, and ends by itself.
 */
export class LoopbackMessages {
  /** The host's port. */
  readonly hostPort: number;
  /** The guest's port. */
  readonly guestPort: number;

  readonly #context: LoopbackContext<LoopbackMessages>;
  readonly #end: HostMessages;
  // Null while no device has it: before it is opened, and between a device and its successor.
  #events: MessageEvents | null = null;
  readonly #in = new Messages();
  readonly #out = new Messages();
  #readers: (() => void)[] = [];
  #writers: (() => void)[] = [];
  #endOfRecord = false;

  // Who has ended what: the guest its sending, the guest its receiving, the program its own two.
  #guestWriteEnded = false;
  #guestReadEnded = false;
  #writeClosed = false;
  #closed = false;
  #reset = false;
  // The device found nothing, or no room, and is owed an event.
  #readEventOwed = false;
  #writeEventOwed = false;

  /** Made by `LoopbackHost`. */
  constructor(
    hostPort: number,
    guestPort: number,
    context: LoopbackContext<LoopbackMessages>,
  ) {
    this.hostPort = hostPort;
    this.guestPort = guestPort;
    this.#context = context;
    const endOfRecord = () => this.#endOfRecord;
    this.#end = {
      get endOfRecord(): boolean {
        return endOfRecord();
      },
      writeMessage: (from, eor) => {
        const room = this.#roomFor(from.bytes);
        if (room < 0) return room;
        const bytes = new Uint8Array(from.bytes);
        from.copyTo(bytes);
        return this.#deviceWrites(bytes, eor);
      },
      writeMessageBytes: (from, eor) => {
        const room = this.#roomFor(from.length);
        return room < 0 ? room : this.#deviceWrites(from.slice(), eor);
      },
      readMessage: (into) => this.#deviceReads(into),
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

  /** Makes a connection of a snapshot, which waits for its device; see `LoopbackHost.restore`. */
  static restore(
    fields: FieldReader,
    context: LoopbackContext<LoopbackMessages>,
  ): LoopbackMessages {
    const inMessages = readMessages(fields, "in");
    const outMessages = readMessages(fields, "out");
    const flags = [
      fields.boolean("guestWriteEnded"),
      fields.boolean("guestReadEnded"),
      fields.boolean("writeClosed"),
      fields.boolean("closed"),
      fields.boolean("reset"),
    ] as const;
    const conn = new LoopbackMessages(
      fields.u32("hostPort"),
      fields.u32("guestPort"),
      context,
    );
    for (const { bytes, endOfRecord } of inMessages) {
      conn.#in.push(bytes, endOfRecord);
    }
    for (const { bytes, endOfRecord } of outMessages) {
      conn.#out.push(bytes, endOfRecord);
    }
    [
      conn.#guestWriteEnded,
      conn.#guestReadEnded,
      conn.#writeClosed,
      conn.#closed,
      conn.#reset,
    ] = flags;
    return conn;
  }

  /** Its state as plain data; see `LoopbackHost.save`. */
  save(): LoopbackMessagesSnapshot {
    return {
      hostPort: this.hostPort,
      guestPort: this.guestPort,
      in: this.#in.save(),
      out: this.#out.save(),
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

  /** Takes it from its device; the program's messages wait for the next one. */
  suspend(): void {
    this.#events = null;
  }

  /** Gives it to a device, which hears of it by `events`; returns the device's end. */
  resume(events: MessageEvents): HostMessages {
    this.#events = events;
    // A device looks for itself at first.
    this.#readEventOwed = false;
    this.#writeEventOwed = false;
    if (this.#closed) events.hostHangup();
    return this.#end;
  }

  /** Longest message that can be sent; 0 while no device has the connection. */
  get maxMessageBytes(): number {
    return this.#events?.maxMessageBytes ?? 0;
  }

  /** True when all was received and nothing will come any more. */
  get atEnd(): boolean {
    return this.#closed ||
      (this.#guestWriteEnded && this.#in.list.length === 0);
  }

  /**
   * Takes the next message, at once; null where there is none now, or at the end.
   *
   * @throws {Error} when the connection was reset.
   * @throws {TypeError} when it was closed here.
   */
  tryReceive(): LoopbackMessage | null {
    if (this.#closed) {
      throw new TypeError("Cannot receive: the connection is closed");
    }
    const message = this.#in.shift();
    if (message !== null) {
      if (this.#writeEventOwed) {
        this.#writeEventOwed = false;
        this.#events?.hostWritable();
        this.#context.wake();
      }
    } else if (this.#reset) {
      throw new Error("Cannot receive: the guest reset the connection");
    }
    return message;
  }

  /**
   * Sends a copy of `bytes` as one message, at once; false where there is no room now.
   *
   * @throws {RangeError} when the guest can never take so long a message (EMSGSIZE).
   * @throws {Error} when the guest receives no more.
   * @throws {TypeError} when it was closed here.
   */
  trySend(
    bytes: Uint8Array,
    options: { endOfRecord?: boolean } = {},
  ): boolean {
    if (this.#closed || this.#writeClosed) {
      throw new TypeError("Cannot send: the connection is closed");
    }
    if (this.#guestReadEnded) {
      throw new Error("Cannot send: the guest receives no more");
    }
    const events = this.#events;
    if (events !== null && bytes.length > events.maxMessageBytes) {
      throw new RangeError(
        `Cannot send a message of ${bytes.length} bytes: the guest takes up to ${events.maxMessageBytes}`,
      );
    }
    if (!this.#out.hasRoom(bytes.length)) return false;
    this.#out.push(bytes.slice(), options.endOfRecord ?? false);
    this.#toDevice();
    return true;
  }

  /** Receives the next message, or null at the end. See `tryReceive` for errors. */
  async receive(): Promise<LoopbackMessage | null> {
    for (;;) {
      const message = this.tryReceive();
      if (message !== null || this.#guestWriteEnded) return message;
      await new Promise<void>((resolve) => this.#readers.push(resolve));
    }
  }

  /** Sends `bytes` as one message. See `trySend` for errors. */
  async send(
    bytes: Uint8Array,
    options: { endOfRecord?: boolean } = {},
  ): Promise<void> {
    while (!this.trySend(bytes, options)) {
      await new Promise<void>((resolve) => this.#writers.push(resolve));
    }
  }

  /** Messages until the end. */
  async *[Symbol.asyncIterator](): AsyncIterator<LoopbackMessage> {
    for (
      let message = await this.receive();
      message !== null;
      message = await this.receive()
    ) yield message;
  }

  /** Ends the sending side: the guest reads end of file after what was sent. */
  closeWrite(): void {
    if (this.#writeClosed || this.#closed) return;
    this.#writeClosed = true;
    this.#wakeWriters();
    this.#toDevice();
  }

  /** Ends the connection; what was sent is still delivered, what was not received is dropped. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#writeClosed = true;
    this.#in.clear();
    this.#wakeReaders();
    this.#wakeWriters();
    this.#toDevice();
    this.#events?.hostHangup();
    this.#context.wake();
  }

  /** Closes the connection at the end of a `using` block. */
  [Symbol.dispose](): void {
    this.close();
  }

  #roomFor(length: number): number {
    if (this.#closed) return STREAM_BROKEN;
    if (this.#in.hasRoom(length)) return length;
    this.#writeEventOwed = true;
    return MESSAGE_AGAIN;
  }

  #deviceWrites(bytes: Uint8Array<ArrayBuffer>, eor: boolean): number {
    this.#in.push(bytes, eor);
    this.#wakeReaders();
    return bytes.length;
  }

  #deviceReads(into: Uint8Array): number {
    const message = this.#out.shift();
    if (message === null) {
      if (this.#writeClosed) return STREAM_EOF;
      this.#readEventOwed = true;
      return MESSAGE_AGAIN;
    }
    const { bytes, endOfRecord } = message;
    this.#endOfRecord = endOfRecord;
    if (bytes.length <= into.length) into.set(bytes);
    this.#wakeWriters();
    return bytes.length;
  }

  #toDevice(): void {
    if (!this.#readEventOwed) return;
    this.#readEventOwed = false;
    this.#events?.hostReadable();
    this.#context.wake();
  }

  #wakeReaders(): void {
    for (const resolve of this.#readers.splice(0)) resolve();
  }

  #wakeWriters(): void {
    for (const resolve of this.#writers.splice(0)) resolve();
  }
}

function readMessages(fields: FieldReader, name: string): LoopbackMessage[] {
  const values = fields.array(name, LOOPBACK_BUFFER_MESSAGES);
  const messages = values.map((value, i) => {
    const one = new FieldReader(value, `${name}[${i}]`);
    return {
      bytes: one.bytes("bytes", MAX_MESSAGE_BYTES),
      endOfRecord: one.boolean("endOfRecord"),
    };
  });
  const bytes = messages.reduce((sum, one) => sum + one.bytes.length, 0);
  if (messages.length > 1 && bytes > LOOPBACK_BUFFER_BYTES) {
    throw fields.bad(name, `more than ${LOOPBACK_BUFFER_BYTES} bytes`);
  }
  return messages;
}
