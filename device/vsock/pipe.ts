import { base64, type FieldReader } from "../snapshot.ts";
import { ByteQueue } from "./byte_queue.ts";
import {
  type ConnectionAddress,
  type HostMessages,
  type HostStream,
  MESSAGE_AGAIN,
  MESSAGE_TOO_LONG,
  type MessageEvents,
  STREAM_AGAIN,
  STREAM_BROKEN,
  STREAM_EOF,
  type StreamEvents,
} from "./host.ts";
import { MAX_EMPTY_MESSAGES, MessageQueue } from "./message_queue.ts";
import type { Segments } from "./segments.ts";

/** Bytes that wait between two guests in each direction of a connection; or one longer message. */
export const PIPE_BUFFER_BYTES = 65_536;
/** Messages that wait between two guests in each direction of a connection. */
export const PIPE_BUFFER_MESSAGES: number = MAX_EMPTY_MESSAGES;

/** Longest message, as the credit counts bytes in 31 bits. */
const MAX_MESSAGE_BYTES = 2 ** 31 - 1;

const READABLE = 1;
const WRITABLE = 2;
const HANGUP = 4;

/** One end of a {@link PipeSnapshot}. */
export type PipeEndSnapshot = {
  /** CID of the guest at this end. */
  cid: number;
  /** Its port. */
  port: number;
  /** Bytes for this guest that its device has not taken, in base64. */
  waiting: string;
  /** Whole messages among them: twice the length, plus 1 at the end of a record. */
  messages: number[];
  writeEnded: boolean;
  readEnded: boolean;
  closed: boolean;
  broken: boolean;
};

/** A connection between two guests, as plain data. */
export type PipeSnapshot = {
  type: "stream" | "seqpacket";
  ends: [PipeEndSnapshot, PipeEndSnapshot];
};

/** What a {@link PipeEnd} needs of its switch. */
export interface PipeOwner {
  /** The end has events for its device, which is to be woken. */
  eventsDue(end: PipeEnd): void;
  /** The device is through with the end. */
  endClosed(end: PipeEnd): void;
}

/**
 * One of the two ends of a connection between guests: what its device has in the place of a host
 * program.
 *
 * What happens at one end is told to the other's device when that works the next time, so that no
 * device is entered from within another.
 */
export abstract class PipeEnd {
  /** The guest of this end, and the one at the other. */
  readonly address: ConnectionAddress;
  /** The other end; set once, when both are made. */
  peer!: PipeEnd;
  /** Its guest sends no more. */
  protected writeEnded = false;
  /** Its guest receives no more. */
  protected readEnded = false;
  /** Its device is through with it. */
  protected closed = false;
  /** The other end was reset: after what waits there is no lawful end. */
  protected broken = false;
  /** The device found nothing, and is owed an event. */
  protected readOwed = false;
  /** The device found no room, and is owed an event. */
  protected writeOwed = false;
  readonly #owner: PipeOwner;
  // Null while no device has it.
  #events: StreamEvents | null = null;
  #due = 0;

  /** Makes an end that no device has. */
  constructor(owner: PipeOwner, address: ConnectionAddress) {
    this.#owner = owner;
    this.address = address;
  }

  /** What it carries. */
  abstract readonly type: "stream" | "seqpacket";
  /** Drops what waits for the guest of this end. */
  protected abstract clear(): void;
  /** What waits for the guest of this end, as plain data. */
  protected abstract saveWaiting(): Pick<
    PipeEndSnapshot,
    "waiting" | "messages"
  >;
  /** Takes what waited when it was saved. */
  protected abstract restoreWaiting(fields: FieldReader): void;

  /** True while no device has it. */
  get suspended(): boolean {
    return this.#events === null;
  }

  /** True when its device is through with it. */
  get over(): boolean {
    return this.closed;
  }

  /** Takes it from its device; what comes waits for the next one. */
  suspend(): void {
    this.#events = null;
    this.#due = 0;
  }

  /** Gives it to a device, which hears of it by `events` and looks for itself at first. */
  protected attach(events: StreamEvents): void {
    this.#events = events;
    this.readOwed = false;
    this.writeOwed = false;
    this.#due = 0;
    if (this.peer.closed) this.#tell(HANGUP);
  }

  /** Tells the device what has happened since the last time; called while it works. */
  deliver(): void {
    const due = this.#due;
    this.#due = 0;
    if ((due & READABLE) !== 0) this.#events?.hostReadable();
    if ((due & WRITABLE) !== 0) this.#events?.hostWritable();
    if ((due & HANGUP) !== 0) this.#events?.hostHangup();
  }

  /** Longest message that this end's guest can take. */
  get maxMessageBytes(): number {
    const events = this.#events as MessageEvents | null;
    return events === null ? MAX_MESSAGE_BYTES : events.maxMessageBytes;
  }

  /** Something waits for this end. */
  protected arrived(): void {
    if (!this.readOwed) return;
    this.readOwed = false;
    this.#tell(READABLE);
  }

  /** There is room for this end's device to write again. */
  protected roomMade(): void {
    if (!this.writeOwed) return;
    this.writeOwed = false;
    this.#tell(WRITABLE);
  }

  /** This end's guest sends no more. */
  shutdownWrite(): void {
    this.writeEnded = true;
    this.peer.arrived();
  }

  /** This end's guest receives no more. */
  shutdownRead(): void {
    this.readEnded = true;
    this.clear();
    this.peer.roomMade();
  }

  /** The device is through with it; `reset` says that its guest's connection was reset. */
  close(reset: boolean): void {
    if (this.closed) return;
    this.closed = true;
    this.writeEnded = true;
    this.readEnded = true;
    this.#events = null;
    this.clear();
    const { peer } = this;
    if (!peer.closed) {
      peer.broken ||= reset;
      peer.readOwed = false;
      peer.writeOwed = false;
      peer.#tell(READABLE | WRITABLE | HANGUP);
    }
    this.#owner.endClosed(this);
  }

  /** Cuts it: its device finds no lawful end, and nobody takes what the other end sends. */
  abort(): void {
    if (this.closed) return;
    this.broken = true;
    this.readEnded = true;
    this.clear();
    this.readOwed = false;
    this.writeOwed = false;
    this.#tell(READABLE | WRITABLE | HANGUP);
  }

  /** Its state as plain data. */
  save(): PipeEndSnapshot {
    return {
      cid: this.address.guestCid,
      port: this.address.guestPort,
      ...this.saveWaiting(),
      writeEnded: this.writeEnded,
      readEnded: this.readEnded,
      closed: this.closed,
      broken: this.broken,
    };
  }

  /** Goes on from a state. */
  restore(fields: FieldReader): void {
    this.restoreWaiting(fields);
    this.writeEnded = fields.boolean("writeEnded");
    this.readEnded = fields.boolean("readEnded");
    this.closed = fields.boolean("closed");
    this.broken = fields.boolean("broken");
  }

  /** What `read` says where nothing waits. */
  protected nothing(again: number): number {
    if (this.broken) return STREAM_BROKEN;
    if (this.peer.writeEnded) return STREAM_EOF;
    this.readOwed = true;
    return again;
  }

  #tell(event: number): void {
    if (this.#events === null) return;
    const before = this.#due;
    this.#due = before | event;
    if (before === 0) this.#owner.eventsDue(this);
  }
}

/** An end of a stream between two guests. */
export class StreamPipeEnd extends PipeEnd implements HostStream {
  /** A stream. */
  readonly type = "stream";
  declare peer: StreamPipeEnd;
  readonly #waiting = new ByteQueue(PIPE_BUFFER_BYTES);

  /** Gives it to a device; returns itself. */
  resume(events: StreamEvents): HostStream {
    this.attach(events);
    return this;
  }

  /** {@inheritDoc HostStream.write} */
  write(from: Segments): number {
    const { peer } = this;
    if (peer.readEnded) return STREAM_BROKEN;
    const waiting = peer.#waiting;
    const take = Math.min(from.bytes, PIPE_BUFFER_BYTES - waiting.length);
    if (take > 0) {
      const [first, second] = waiting.extend(take);
      from.copyTo(first);
      if (second.length > 0) from.copyTo(second, first.length);
      peer.arrived();
    }
    this.writeOwed = take < from.bytes;
    return take;
  }

  /** {@inheritDoc HostStream.writeBytes} */
  writeBytes(from: Uint8Array): number {
    const { peer } = this;
    if (peer.readEnded) return STREAM_BROKEN;
    const waiting = peer.#waiting;
    const take = Math.min(from.length, PIPE_BUFFER_BYTES - waiting.length);
    if (take > 0) {
      waiting.push(from.subarray(0, take));
      peer.arrived();
    }
    this.writeOwed = take < from.length;
    return take;
  }

  /** {@inheritDoc HostStream.read} */
  read(into: Segments): number {
    const waiting = this.#waiting;
    let done = 0;
    while (done < into.bytes && waiting.length > 0) {
      const take = into.copyFrom(waiting.peek(), done);
      waiting.drop(take);
      done += take;
    }
    if (done === 0) return this.nothing(STREAM_AGAIN);
    this.peer.roomMade();
    return done;
  }

  /** {@inheritDoc PipeEnd.clear} */
  protected clear(): void {
    this.#waiting.clear();
  }

  /** {@inheritDoc PipeEnd.saveWaiting} */
  protected saveWaiting(): Pick<PipeEndSnapshot, "waiting" | "messages"> {
    return { waiting: base64(this.#waiting.copy()), messages: [] };
  }

  /** {@inheritDoc PipeEnd.restoreWaiting} */
  protected restoreWaiting(fields: FieldReader): void {
    this.#waiting.push(fields.bytes("waiting", PIPE_BUFFER_BYTES));
  }
}

/** An end of a seqpacket connection between two guests. */
export class MessagePipeEnd extends PipeEnd implements HostMessages {
  /** Messages. */
  readonly type = "seqpacket";
  /** {@inheritDoc HostMessages.endOfRecord} */
  endOfRecord = false;
  declare peer: MessagePipeEnd;
  readonly #waiting = new MessageQueue(MAX_MESSAGE_BYTES);

  /** Gives it to a device; returns itself. */
  resume(events: MessageEvents): HostMessages {
    this.attach(events);
    return this;
  }

  /** {@inheritDoc HostMessages.writeMessage} */
  writeMessage(from: Segments, eor: boolean): number {
    const length = from.bytes;
    const refused = this.#refusal(length);
    if (refused < 0) return refused;
    const waiting = this.peer.#waiting;
    if (length > 0) {
      const [first, second] = waiting.bytes.extend(length);
      from.copyTo(first);
      if (second.length > 0) from.copyTo(second, first.length);
    }
    waiting.complete(eor);
    this.peer.arrived();
    return length;
  }

  /** {@inheritDoc HostMessages.writeMessageBytes} */
  writeMessageBytes(from: Uint8Array, eor: boolean): number {
    const refused = this.#refusal(from.length);
    if (refused < 0) return refused;
    const waiting = this.peer.#waiting;
    waiting.bytes.push(from);
    waiting.complete(eor);
    this.peer.arrived();
    return from.length;
  }

  /** {@inheritDoc HostMessages.readMessage} */
  readMessage(into: Uint8Array): number {
    const waiting = this.#waiting;
    if (waiting.count === 0) return this.nothing(MESSAGE_AGAIN);
    const message = waiting.peek();
    const { length } = message;
    if (length <= into.length) into.set(message);
    this.endOfRecord = waiting.firstEndsRecord;
    waiting.drop();
    this.peer.roomMade();
    return length;
  }

  /** Why a message of `length` bytes is not taken; 0 where it is. */
  #refusal(length: number): number {
    const { peer } = this;
    if (peer.readEnded) return STREAM_BROKEN;
    if (length > peer.maxMessageBytes) return MESSAGE_TOO_LONG;
    const { count, bytes } = peer.#waiting;
    if (
      count > 0 && (count >= PIPE_BUFFER_MESSAGES ||
        bytes.length + length > PIPE_BUFFER_BYTES)
    ) {
      this.writeOwed = true;
      return MESSAGE_AGAIN;
    }
    return 0;
  }

  /** {@inheritDoc PipeEnd.clear} */
  protected clear(): void {
    this.#waiting.clear();
  }

  /** {@inheritDoc PipeEnd.saveWaiting} */
  protected saveWaiting(): Pick<PipeEndSnapshot, "waiting" | "messages"> {
    const waiting = this.#waiting;
    return {
      waiting: base64(waiting.bytes.copy()),
      messages: waiting.save(),
    };
  }

  /** {@inheritDoc PipeEnd.restoreWaiting} */
  protected restoreWaiting(fields: FieldReader): void {
    const bytes = fields.bytes("waiting", MAX_MESSAGE_BYTES);
    const words = fields.u32s("messages", PIPE_BUFFER_MESSAGES);
    const whole = words.reduce((sum, word) => sum + (word >>> 1), 0);
    if (whole !== bytes.length) {
      throw fields.bad("messages", `not ${bytes.length} bytes in all`);
    }
    this.#waiting.restore(bytes, words);
  }
}
