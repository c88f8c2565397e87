import { ByteRing } from "./byte_ring.ts";
import { type GuestMessage, GuestMessages } from "./guest_messages.ts";
import type { ReceiveBuffers } from "./receive_buffers.ts";
import {
  OP_CREDIT_REQUEST,
  OP_CREDIT_UPDATE,
  OP_REQUEST,
  OP_RESPONSE,
  OP_RST,
  OP_RW,
  OP_SHUTDOWN,
  opName,
  type PacketHeader,
  SHUTDOWN_BOTH,
  SHUTDOWN_RCV,
  SHUTDOWN_SEND,
  TYPE_SEQPACKET,
  TYPE_STREAM,
} from "./vsock_header.ts";

/** Free space announced to the device below which reading sends a CREDIT_UPDATE, as Linux has it. */
export const CREDIT_UPDATE_THRESHOLD_BYTES: number = 64 * 1024;
/** How long a guest waits for the RST that answers its close, as Linux does. */
export const CLOSE_TIMEOUT_MS: number = 8000;

/**
 * Where a connection stands.
 *
 * `connecting`: REQUEST sent. `connected`: both ends agreed. `closing`: the program has closed it
 * and the device's RST is awaited. `closed`: over; what was received before can still be read.
 */
export type GuestConnectionState =
  | "connecting"
  | "connected"
  | "closing"
  | "closed";

/**
 * Why a connection is `closed`. `refused`: RST to a REQUEST. `reset`: RST in mid-life. `shutdown`:
 * both ends said that they were done. `timeout`: no answer to REQUEST or to the close. `aborted`:
 * by this guest. `transport`: TRANSPORT_RESET.
 */
export type GuestCloseReason =
  | "refused"
  | "reset"
  | "shutdown"
  | "timeout"
  | "aborted"
  | "transport";

/** What a connection asks of the driver that it belongs to. */
export interface ConnectionPort {
  /** Largest payload of a packet. */
  readonly maxPayload: number;
  /** Milliseconds of a steady clock. */
  now(): number;
  /** Sends a packet without payload, now or as soon as there is room; order is kept. */
  sendControl(connection: GuestConnection, op: number, flags: number): void;
  /** Sends one RW packet; false where there is no room. */
  sendPayload(
    connection: GuestConnection,
    bytes: Uint8Array,
    from: number,
    length: number,
    flags: number,
  ): boolean;
  /** Calls `sendRest` of the connection when there may be room again. */
  sendLater(connection: GuestConnection): void;
  /** The connection is `closed`. */
  connectionClosed(connection: GuestConnection): void;
  /** The device broke a rule. */
  violation(text: string): void;
}

/**
 * A guest's end of one connection, with the credit and the states of Linux's vsock.
 *
 * It is made by its driver. `send` and `read` of a stream never wait: they take what there is room or
 * data for. A seqpacket connection has `sendMessage` and `readMessage` instead.
 */
export class GuestConnection {
  /** Socket type: {@link TYPE_STREAM} or {@link TYPE_SEQPACKET}. */
  readonly type: number;
  /** The guest's own port. */
  readonly localPort: number;
  /** CID of the other end: 2 for the host. */
  readonly peerCid: number;
  /** Port of the other end. */
  readonly peerPort: number;
  /** Receive buffer that is announced, in bytes. */
  readonly bufAlloc: number;
  /** Where it stands. */
  state: GuestConnectionState;
  /** Why it is closed, null before. */
  closeReason: GuestCloseReason | null = null;
  /** SHUTDOWN flags that the device has sent, together. */
  peerShutdown = 0;
  /** SHUTDOWN flags that were sent to the device, together. */
  localShutdown = 0;
  /** Receive buffer that the device announces, in bytes. */
  peerBufAlloc = 0;
  /** Bytes that the device says it has taken out of that buffer, mod 2^32. */
  peerFwdCnt = 0;
  /** Bytes sent, mod 2^32. */
  txCnt = 0;
  /** Bytes received, mod 2^32. */
  rxCnt = 0;
  /** Bytes read by the program, mod 2^32. */
  fwdCnt = 0;
  /** The value of `fwdCnt` that the device was told last. */
  lastFwdCnt = 0;
  /** CREDIT_UPDATE packets that the device has sent. */
  creditUpdates = 0;
  /** When to give up in state `connecting` or `closing`, by the driver's clock; Infinity for never. */
  deadline: number = Infinity;
  /** Next connection of the same bucket in the driver's table. */
  next: GuestConnection | null = null;
  /** True when the last word of this end was an RST. */
  resetSent = false;

  readonly #port: ConnectionPort;
  readonly #received: ByteRing;
  readonly #messages: GuestMessages | null;

  /** Made by `VsockDriver`. */
  constructor(
    port: ConnectionPort,
    localPort: number,
    peerCid: number,
    peerPort: number,
    bufAlloc: number,
    state: "connecting" | "connected",
    type: number = TYPE_STREAM,
  ) {
    this.#port = port;
    this.type = type;
    this.localPort = localPort;
    this.peerCid = peerCid;
    this.peerPort = peerPort;
    this.bufAlloc = bufAlloc;
    this.state = state;
    this.#received = new ByteRing(bufAlloc);
    this.#messages = type === TYPE_SEQPACKET
      ? new GuestMessages(this.#received)
      : null;
  }

  /** Bytes that wait to be read. */
  get available(): number {
    return this.#received.length;
  }

  /** Whole messages that wait to be read. */
  get messages(): number {
    return this.#messages?.count ?? 0;
  }

  /** True while a message is being sent: what there was no room for goes out by itself. */
  get sending(): boolean {
    return this.#messages !== null && this.#messages.rest !== null;
  }

  /** True when nothing waits and nothing will come any more. */
  get atEnd(): boolean {
    return (this.#messages?.count ?? this.#received.length) === 0 &&
      (this.state === "closed" || this.state === "closing" ||
        (this.peerShutdown & SHUTDOWN_SEND) !== 0);
  }

  /** True when the device takes no more bytes on this connection. */
  get sendEnded(): boolean {
    return this.state === "closed" || this.state === "closing" ||
      (this.localShutdown & SHUTDOWN_SEND) !== 0 ||
      (this.peerShutdown & SHUTDOWN_RCV) !== 0;
  }

  /** Bytes that the device has room for, by what it announced (virtio 1.4, 5.10.6.3). */
  get credit(): number {
    const free = this.peerBufAlloc - ((this.txCnt - this.peerFwdCnt) >>> 0);
    return free > 0 ? free : 0;
  }

  /**
   * Sends as many of `bytes` as credit and queue have room for and returns how many; 0 where the
   * direction is over or the connection not yet established.
   *
   * @throws {TypeError} on a seqpacket connection.
   */
  send(bytes: Uint8Array): number {
    if (this.#messages !== null) {
      throw new TypeError("Cannot send bytes: it is a seqpacket connection");
    }
    if (this.state !== "connected" || this.sendEnded) return 0;
    const port = this.#port;
    const end = bytes.length;
    let done = 0;
    while (done < end) {
      let length = Math.min(end - done, port.maxPayload);
      const credit = this.credit;
      if (length > credit) length = credit;
      if (length === 0) break;
      this.txCnt = (this.txCnt + length) >>> 0;
      if (!port.sendPayload(this, bytes, done, length, 0)) {
        this.txCnt = (this.txCnt - length) >>> 0;
        break;
      }
      done += length;
    }
    return done;
  }

  /**
   * Moves received bytes into `target`, returns how many, and tells the device of the room where
   * less than {@link CREDIT_UPDATE_THRESHOLD_BYTES} of it are known there.
   *
   * @throws {TypeError} on a seqpacket connection.
   */
  read(target: Uint8Array): number {
    if (this.#messages !== null) {
      throw new TypeError("Cannot read bytes: it is a seqpacket connection");
    }
    const count = this.#received.read(target);
    if (count === 0 || this.#wasRead(count)) return count;
    const told = this.bufAlloc - ((this.fwdCnt - this.lastFwdCnt) >>> 0);
    if (told < CREDIT_UPDATE_THRESHOLD_BYTES) {
      this.#port.sendControl(this, OP_CREDIT_UPDATE, 0);
    }
    return count;
  }

  /** Counts bytes that were read; true where the device is not to hear of them. */
  #wasRead(count: number): boolean {
    this.fwdCnt = (this.fwdCnt + count) >>> 0;
    if (this.state !== "connected") return true;
    if (this.peerShutdown !== SHUTDOWN_BOTH || this.#received.length > 0) {
      return false;
    }
    this.#finish("shutdown", true);
    return true;
  }

  /**
   * Sends a copy of `bytes` as one message, of 0 bytes or more, which may end a record: what there is room
   * for now, the rest by itself, in packets of which only the last says that it ends the message. False,
   * with nothing sent, where another one is being sent, the direction is over or the connection not yet
   * established.
   *
   * @throws {RangeError} when it is longer than the device's buffer or this end's own, as Linux has it
   * (EMSGSIZE).
   * @throws {TypeError} on a stream.
   */
  sendMessage(bytes: Uint8Array, endOfRecord = false): boolean {
    const messages = this.#needMessages("send");
    if (this.state !== "connected" || this.sendEnded) return false;
    if (messages.rest !== null) return false;
    const most = Math.min(this.peerBufAlloc, this.bufAlloc);
    if (bytes.length > most) {
      throw new RangeError(
        `Cannot send a message of ${bytes.length} bytes: there is room for ${most}`,
      );
    }
    messages.begin(bytes, endOfRecord);
    this.sendRest();
    return true;
  }

  /** Sends what is left of a message as far as there is room; true where it sent something. */
  sendRest(): boolean {
    const messages = this.#messages;
    if (messages === null || messages.rest === null) return false;
    if (this.state !== "connected" || this.sendEnded) {
      messages.rest = null;
      return false;
    }
    const port = this.#port;
    let any = false;
    while (messages.rest !== null) {
      const rest: Uint8Array = messages.rest;
      const length = Math.min(rest.length, port.maxPayload, this.credit);
      const last = length === rest.length;
      if (length === 0 && !last) break;
      const flags = last ? messages.restFlags : 0;
      this.txCnt = (this.txCnt + length) >>> 0;
      if (!port.sendPayload(this, rest, 0, length, flags)) {
        this.txCnt = (this.txCnt - length) >>> 0;
        break;
      }
      messages.sent(length);
      any = true;
    }
    if (messages.rest !== null) port.sendLater(this);
    return any;
  }

  /**
   * Takes the next whole message, or null where there is none, and tells the device of the room.
   *
   * @throws {TypeError} on a stream.
   */
  readMessage(): GuestMessage | null {
    const message = this.#needMessages("read").take();
    if (message !== null && !this.#wasRead(message.bytes.length)) {
      this.#port.sendControl(this, OP_CREDIT_UPDATE, 0);
    }
    return message;
  }

  #needMessages(action: string): GuestMessages {
    if (this.#messages !== null) return this.#messages;
    throw new TypeError(`Cannot ${action} a message: it is a stream`);
  }

  /** Sends a CREDIT_UPDATE whether it is due or not. */
  updateCredit(): void {
    if (this.state === "connected") {
      this.#port.sendControl(this, OP_CREDIT_UPDATE, 0);
    }
  }

  /** Asks the device for a CREDIT_UPDATE. */
  requestCredit(): void {
    if (this.state === "connected") {
      this.#port.sendControl(this, OP_CREDIT_REQUEST, 0);
    }
  }

  /**
   * Ends directions as `shutdown(2)` does: {@link SHUTDOWN_RCV}, {@link SHUTDOWN_SEND} or both. What is
   * left of a message is not sent any more.
   */
  shutdown(flags: number): void {
    if (this.state !== "connected") return;
    this.localShutdown |= flags & SHUTDOWN_BOTH;
    this.#port.sendControl(this, OP_SHUTDOWN, flags & SHUTDOWN_BOTH);
  }

  /**
   * Closes it as `close(2)` does: by RST where the device is done already, else by SHUTDOWN with
   * both flags, and the device has {@link CLOSE_TIMEOUT_MS} for its RST. Unread bytes are lost.
   */
  close(): void {
    if (this.state === "closed" || this.state === "closing") return;
    if (this.state === "connecting") {
      // Linux withdraws without a word; the answer then finds nobody and gets an RST.
      this.#finish("aborted", false);
    } else if (this.peerShutdown === SHUTDOWN_BOTH) {
      this.#finish("shutdown", true);
    } else {
      if (this.localShutdown !== SHUTDOWN_BOTH) this.shutdown(SHUTDOWN_BOTH);
      this.state = "closing";
      this.deadline = this.#port.now() + CLOSE_TIMEOUT_MS;
    }
  }

  /** Ends it by RST, whatever its state. */
  abort(): void {
    if (this.state !== "closed") this.#finish("aborted", true);
  }

  /** Drops it without a word: TRANSPORT_RESET, or a `connect` or `close` that timed out. */
  drop(reason: "transport" | "timeout", reset: boolean): void {
    if (this.state !== "closed") this.#finish(reason, reset);
  }

  /**
   * Takes a packet of the device for this connection; called by the driver.
   *
   * `buffer` of `from` holds the payload, behind the header.
   */
  receive(header: PacketHeader, from: ReceiveBuffers, buffer: number): void {
    const op = header.op;
    if (op !== OP_RST) this.#takeCredit(header);
    if (this.state === "connecting") {
      if (op === OP_RESPONSE) {
        this.state = "connected";
        this.deadline = Infinity;
      } else if (op === OP_RST) {
        this.#finish("refused", false);
      } else {
        this.#violation(`${opName(op)} before RESPONSE`);
        this.#finish("aborted", true);
      }
      return;
    }
    switch (op) {
      case OP_RW:
        this.#receivePayload(header, from, buffer);
        break;
      case OP_CREDIT_UPDATE:
        this.creditUpdates++;
        break;
      case OP_CREDIT_REQUEST:
        this.#port.sendControl(this, OP_CREDIT_UPDATE, 0);
        break;
      case OP_SHUTDOWN:
        this.peerShutdown |= header.flags & SHUTDOWN_BOTH;
        if (
          (header.flags & SHUTDOWN_SEND) !== 0 &&
          this.#messages !== null && this.#messages.partial > 0
        ) this.#violation("SHUTDOWN(SEND) in the middle of a message");
        if (
          this.peerShutdown === SHUTDOWN_BOTH && this.#received.length === 0
        ) {
          this.#finish("shutdown", true);
        }
        break;
      case OP_RST:
        this.#finish(this.state === "closing" ? "shutdown" : "reset", false);
        break;
      default:
        this.#violation(`${opName(op)} on a ${this.state} connection`);
        if (op === OP_REQUEST) this.#finish("aborted", true);
    }
  }

  /** Takes credit from a REQUEST that made this connection; called by the driver. */
  takeRequest(header: PacketHeader): void {
    this.#takeCredit(header);
  }

  #takeCredit(header: PacketHeader): void {
    const inFlight = (this.txCnt - this.peerFwdCnt) >>> 0;
    const advance = (header.fwdCnt - this.peerFwdCnt) >>> 0;
    if (advance > inFlight) {
      this.#violation(
        `fwd_cnt went from ${this.peerFwdCnt} to ${header.fwdCnt} with ${this.txCnt} bytes sent`,
      );
      return;
    }
    this.peerFwdCnt = header.fwdCnt;
    this.peerBufAlloc = header.bufAlloc;
  }

  #receivePayload(
    header: PacketHeader,
    from: ReceiveBuffers,
    buffer: number,
  ): void {
    if ((this.peerShutdown & SHUTDOWN_SEND) !== 0) {
      this.#violation("RW after SHUTDOWN(SEND)");
    }
    const length = header.len;
    this.rxCnt = (this.rxCnt + length) >>> 0;
    const untold = (this.rxCnt - this.lastFwdCnt) >>> 0;
    if (untold > this.bufAlloc) {
      this.#violation(
        `credit exceeded: ${untold} bytes sent ahead of fwd_cnt ${this.lastFwdCnt}, buf_alloc ${this.bufAlloc}`,
      );
      this.#finish("aborted", true);
      return;
    }
    from.copyPayload(buffer, length, this.#received);
    const problem = this.#messages?.received(length, header.flags) ?? null;
    if (problem !== null) this.#violation(problem);
  }

  #finish(reason: GuestCloseReason, reset: boolean): void {
    this.state = "closed";
    this.closeReason = reason;
    this.deadline = Infinity;
    if (reset) {
      this.resetSent = true;
      this.#port.sendControl(this, OP_RST, 0);
    }
    this.#port.connectionClosed(this);
  }

  #violation(text: string): void {
    this.#port.violation(
      `${text} (guest port ${this.localPort}, peer ${this.peerCid}:${this.peerPort})`,
    );
  }
}
