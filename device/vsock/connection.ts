import type { Chain } from "../../ring/chain.ts";
import { Credit } from "./credit.ts";
import type {
  ConnectAnswer,
  HostMessages,
  HostSide,
  HostStream,
  MessageEvents,
} from "./host.ts";
import {
  type HostLink,
  LINK_AGAIN,
  LINK_BROKEN,
  LINK_EOF,
  LINK_GATHERS,
  LINK_NO_CREDIT,
  LINK_STARVED,
  LINK_TOO_LONG,
  LINK_TOO_MANY,
} from "./host_link.ts";
import { MessageLink } from "./message_link.ts";
import type { PacketHeader } from "./packet.ts";
import type { RxWriter } from "./rx_writer.ts";
import type { Segments } from "./segments.ts";
import type { ConnectionSnapshot } from "./snapshot.ts";
import { StreamLink } from "./stream_link.ts";
import {
  VIRTIO_VSOCK_OP_CREDIT_REQUEST,
  VIRTIO_VSOCK_OP_CREDIT_UPDATE,
  VIRTIO_VSOCK_OP_REQUEST,
  VIRTIO_VSOCK_OP_RESPONSE,
  VIRTIO_VSOCK_OP_RST,
  VIRTIO_VSOCK_OP_RW,
  VIRTIO_VSOCK_OP_SHUTDOWN,
  VIRTIO_VSOCK_SHUTDOWN_MASK,
  VIRTIO_VSOCK_SHUTDOWN_RCV,
  VIRTIO_VSOCK_SHUTDOWN_SEND,
  VIRTIO_VSOCK_TYPE_SEQPACKET,
} from "./virtio_vsock.ts";

/** How long a guest may take to answer a host program's REQUEST. */
export const CONNECT_TIMEOUT_MS = 10_000;
/** How long we wait for a guest's RST after SHUTDOWN of both directions (5.10.6.5). */
export const DISCONNECT_TIMEOUT_MS = 8_000;
/** First pause before a guest without free space is asked for it again; doubles up to 1 s. */
const CREDIT_RETRY_MS = 20;
const CREDIT_RETRY_MAX_MS = 1_000;

/** Bytes that one connection sends to the guest before the next one has its turn. */
const QUANTUM_BYTES = 65_536;

/**
 * Where a connection stands.
 *
 * | state | left by |
 * |---|---|
 * | `asking-host`: the guest sent REQUEST | the host side accepts (RESPONSE) or refuses (RST) |
 * | `asking-guest`: a host program wants the guest | RESPONSE, RST, or the timeout |
 * | `open`: bytes flow; each direction may end by itself | SHUTDOWN of both, RST |
 * | `closing`: we ended both directions | the guest's RST, or the timeout |
 * | `resetting`: an RST is to be sent | its being sent |
 * | `lingering`: over for the guest; the host program has not taken all bytes | its taking them |
 * | `closed`: nothing is left | |
 */
export type ConnectionState =
  | "asking-host"
  | "asking-guest"
  | "open"
  | "closing"
  | "resetting"
  | "lingering"
  | "closed";

/** {@link Connection.transmit}: nothing more to send now. */
export const TRANSMIT_DONE = 0;
/** {@link Connection.transmit}: there is more; other connections first. */
export const TRANSMIT_MORE = 1;
/** {@link Connection.transmit}: there is more, but the guest has no receive buffer. */
export const TRANSMIT_STARVED = 2;

/** What a connection needs from its muxer. */
export interface ConnectionOwner {
  /** The connection has something to send to the guest. */
  schedule(connection: Connection): void;
  /** The connection is over for the guest; its address tuple is free. */
  forget(connection: Connection): void;
  /** The connection is over for the host program as well. */
  finished(connection: Connection): void;
  /** Calls `expire` in `ms` milliseconds, unless told another time until then. */
  setTimer(connection: Connection, ms: number): void;
  /** Counts a fault of the guest. */
  fault(kind: string, text: () => string): void;
  /** Lends `length` bytes of memory until the next call. */
  scratch(length: number): Uint8Array;
}

/** What a {@link Connection} is made for. */
export type ConnectionSetup = {
  /** CID of the guest. */
  readonly guestCid: number;
  /** Port in the guest. */
  readonly guestPort: number;
  /** CID of the other end: 2 for the host. */
  readonly peerCid: number;
  /** Port of the other end. */
  readonly hostPort: number;
  /** Socket type. */
  readonly packetType: number;
  /** Bytes that are kept for the host program, as the guest is told. */
  readonly bufAlloc: number;
};

/** The host program that wants the guest, whatever kind of end it gives. */
export type AnyAnswer = ConnectAnswer<HostStream | HostMessages, MessageEvents>;

/**
 * One connection between a guest's socket and a host program: states, credit and half-closes
 * (virtio 1.4, 5.10.6.5); what it carries, bytes or messages, is the matter of its {@link HostLink}.
 * Packets come through `receive` and its kin, host events through {@link MessageEvents}; what is to
 * be sent is decided in `transmit`, when the guest has room. It is its host side's `ConnectRequest`.
 */
export class Connection implements MessageEvents {
  /** The guest's CID. */
  readonly guestCid: number;
  /** The guest's port. */
  readonly guestPort: number;
  /** CID of the other end: 2 for the host. */
  readonly peerCid: number;
  /** The other end's port. */
  readonly hostPort: number;
  /** Socket type of its packets. */
  readonly packetType: number;
  /** The table's: the next connection in the same list. */
  nextInTable: Connection | null = null;
  /** Flow control. */
  readonly credit: Credit;
  /** When `expire` is due, in the muxer's milliseconds; Infinity without a timer. */
  deadline: number = Infinity;
  /** True while the muxer has it in its list. */
  scheduled = false;
  /** Which of the muxer's lists has payload of it; -1 for none. */
  gatherIndex = -1;

  #state: ConnectionState;
  readonly #owner: ConnectionOwner;
  readonly #link: HostLink;
  #answer: AnyAnswer | null = null;

  // To the guest.
  #requestSent = false;
  #responseDue = false;
  #updateAsked = false;
  #wantShutdown = 0;
  #sentShutdown = 0;
  #readable = false;
  #creditRetryMs = 0;

  // From the guest.
  #guestShutdown = 0;
  #hostWriteEnded = false;
  #discard = false;
  #hungUp = false;

  /** Makes a connection that the guest asks for (`answer` null) or that a host program does. */
  constructor(
    owner: ConnectionOwner,
    setup: ConnectionSetup,
    answer: AnyAnswer | null,
  ) {
    this.#owner = owner;
    this.guestCid = setup.guestCid;
    this.guestPort = setup.guestPort;
    this.peerCid = setup.peerCid;
    this.hostPort = setup.hostPort;
    this.packetType = setup.packetType;
    const credit = new Credit(setup.bufAlloc);
    this.credit = credit;
    this.#link = setup.packetType === VIRTIO_VSOCK_TYPE_SEQPACKET
      ? new MessageLink(credit, (length) => owner.scratch(length))
      : new StreamLink(credit);
    this.#answer = answer;
    this.#state = answer === null ? "asking-host" : "asking-guest";
    if (answer !== null) owner.setTimer(this, CONNECT_TIMEOUT_MS);
  }

  /** Where it stands. */
  get state(): ConnectionState {
    return this.#state;
  }

  /** Longest message that the guest can take. */
  get maxMessageBytes(): number {
    return this.credit.maxMessageBytes;
  }

  // -- Snapshots --

  /** Its state as plain data, at `now`; null where nothing is left of it. */
  save(now: number): ConnectionSnapshot | null {
    const state = this.#state;
    if (state === "closed") return null;
    return {
      type: this.packetType,
      guestPort: this.guestPort,
      peerCid: this.peerCid,
      hostPort: this.hostPort,
      state,
      credit: this.credit.save(),
      ...this.#link.save(),
      requestSent: this.#requestSent,
      responseDue: this.#responseDue,
      updateAsked: this.#updateAsked,
      wantShutdown: this.#wantShutdown,
      sentShutdown: this.#sentShutdown,
      guestShutdown: this.#guestShutdown,
      hostWriteEnded: this.#hostWriteEnded,
      discard: this.#discard,
      hungUp: this.#hungUp,
      timerMs: this.deadline === Infinity
        ? -1
        : Math.max(0, Math.ceil(this.deadline - now)),
    };
  }

  /**
   * Goes on from a state that was checked. It is just made and in the owner's table; its host
   * program is asked for now.
   */
  restore(from: ConnectionSnapshot, host: HostSide | null): void {
    const { state } = from;
    this.#state = state;
    this.credit.restore(from.credit);
    this.#link.restore(from);
    this.#requestSent = from.requestSent;
    this.#responseDue = from.responseDue;
    this.#updateAsked = from.updateAsked;
    this.#wantShutdown = from.wantShutdown;
    this.#sentShutdown = from.sentShutdown;
    this.#guestShutdown = from.guestShutdown;
    this.#hostWriteEnded = from.hostWriteEnded;
    this.#discard = from.discard;
    this.#hungUp = from.hungUp;
    if (from.timerMs >= 0) this.#owner.setTimer(this, from.timerMs);
    if (state === "lingering") this.#owner.forget(this);
    this.#owner.schedule(this);

    const messages = this.packetType === VIRTIO_VSOCK_TYPE_SEQPACKET;
    if (state === "asking-host") {
      this.askHost(host);
    } else if (state === "asking-guest") {
      this.#answer = (messages
        ? host?.resumeConnectMessages?.(this)
        : host?.resumeConnect?.(this)) ?? null;
      if (this.#answer === null) {
        this.reset();
      }
    } else if (state === "open" || !this.#link.delivered) {
      const open =
        (messages ? host?.resumeMessages?.(this) : host?.resume?.(this)) ??
          null;
      if (open !== null) {
        this.#link.attach(open(this));
        // What was owed to the saved device is looked for once.
        if ((this.#guestShutdown & VIRTIO_VSOCK_SHUTDOWN_RCV) === 0) {
          this.#readable =
            (this.#wantShutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) === 0;
        }
        this.hostWritable();
        return;
      }
      this.#owner.fault(
        "restored_without_host_program",
        () =>
          `nobody goes on with host port ${this.hostPort}, guest port ${this.guestPort}`,
      );
      this.#link.discard();
      if (state === "open") this.reset();
      else this.#closeWhenWritten();
    }
  }

  // -- The host side's answer to the guest (ConnectRequest) --

  /** Hands the guest's wish to the host side; one without seqpackets, or none at all, refuses. */
  askHost(host: HostSide | null): void {
    if (this.packetType !== VIRTIO_VSOCK_TYPE_SEQPACKET) {
      if (host !== null) host.connect(this);
      else this.refuse();
    } else if (host?.connectMessages !== undefined) {
      host.connectMessages(this);
    } else {
      this.refuse();
    }
  }

  /** True when the guest does not wait for an answer any more. */
  get cancelled(): boolean {
    return this.#state !== "asking-host";
  }

  /** Connects the guest to the end that `open` returns; see `ConnectRequest.accept`. */
  accept(open: (events: MessageEvents) => HostStream | HostMessages): boolean {
    if (this.#state !== "asking-host") return false;
    this.#state = "open";
    this.#responseDue = true;
    this.#readable = true;
    this.#owner.schedule(this);
    this.#link.attach(open(this));
    return true;
  }

  /** Refuses the guest's connection. */
  refuse(): void {
    if (this.#state === "asking-host") this.reset();
  }

  // -- Packets from the guest --

  /** The guest accepts a host program's connection. */
  receiveResponse(): void {
    // A RST is on its way: the host program gave up meanwhile.
    if (this.#state === "resetting") return;
    const answer = this.#answer;
    if (this.#state !== "asking-guest" || answer === null) {
      this.#owner.fault(
        "response_unexpected",
        () => `a RESPONSE in state ${this.#state}`,
      );
      this.reset();
      return;
    }
    this.#answer = null;
    this.#state = "open";
    this.#owner.setTimer(this, Infinity);
    this.#link.attach(answer.accepted(this.hostPort, this));
    this.#readable = true;
    this.#owner.schedule(this);
  }

  /** The guest aborts the connection, or confirms its end. It is never answered. */
  receiveReset(): void {
    const answer = this.#answer;
    this.#answer = null;
    this.#leave(this.#state === "open");
    answer?.refused("the guest refused the connection");
  }

  /** The guest ends one or both directions; flags add up (5.10.6.5). */
  receiveShutdown(flags: number): void {
    if (this.#state === "resetting") return;
    if (this.#state !== "open" && this.#state !== "closing") {
      this.#owner.fault(
        "shutdown_unexpected",
        () => `a SHUTDOWN in state ${this.#state}`,
      );
      this.reset();
      return;
    }
    const before = this.#guestShutdown;
    const now = before | (flags & VIRTIO_VSOCK_SHUTDOWN_MASK);
    this.#guestShutdown = now;
    if (now === VIRTIO_VSOCK_SHUTDOWN_MASK) {
      // The guest keeps the tuple until our RST. What it sent is ours to deliver, so that it
      // need not wait for a slow host program: the connection goes on without it.
      this.#state = "resetting";
      this.#owner.setTimer(this, Infinity);
      this.#owner.schedule(this);
      this.#closeWhenWritten();
      return;
    }
    if ((now & ~before & VIRTIO_VSOCK_SHUTDOWN_RCV) !== 0) {
      this.#link.shutdownRead();
      this.#readable = false;
      // The end of file that would follow the rest of the host program's bytes does not come up.
      if (this.#hungUp) this.#endBoth();
    }
    this.#endHostWriteWhenWritten();
  }

  /**
   * Takes `length` bytes of payload with `flags`, which start after the header in `chain`.
   *
   * True when they may wait in a gathering write with others, which ends in `gathered()`; false
   * when they were dealt with. `scratch` is empty, and left so.
   */
  receiveData(
    chain: Chain,
    length: number,
    flags: number,
    scratch: Segments,
  ): boolean {
    const state = this.#state;
    if (state === "resetting") return false;
    if (
      (state !== "open" && state !== "closing") ||
      (this.#guestShutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) !== 0
    ) {
      this.#complain("data_unexpected", length);
      this.reset();
      return false;
    }
    if (!this.credit.received(length)) {
      this.#complain("credit_exceeded", length);
      this.reset();
      return false;
    }
    if (this.#discard) {
      this.credit.forwarded(length);
      this.#tellRoom();
      return false;
    }
    const result = this.#link.receive(chain, length, flags, scratch);
    if (result === LINK_GATHERS) return true;
    this.#handedOver(result);
    return false;
  }

  // A closure in `receiveData` would cost every packet.
  #complain(kind: string, length: number): void {
    const state = this.#state;
    this.#owner.fault(
      kind,
      () => `port ${this.guestPort} sent ${length} bytes in state ${state}`,
    );
  }

  /** Writes gathered payload to the host program and keeps what it does not take. */
  gathered(segments: Segments): void {
    if (this.#discard) {
      this.credit.forwarded(segments.bytes);
      this.#tellRoom();
    } else {
      this.#handedOver(this.#link.gathered(segments));
    }
  }

  /** Takes the credit that every header of the guest carries. */
  receiveCredit(bufAlloc: number, fwdCnt: number): void {
    const credit = this.credit;
    const shrunk = bufAlloc < credit.peerBufAlloc;
    credit.hear(bufAlloc, fwdCnt);
    // A smaller buffer is a smaller window: an update that was not due can be what the guest waits for.
    if (shrunk) this.#tellRoom();
    if (this.#readable && this.#link.canSend) {
      if (this.#creditRetryMs !== 0) {
        this.#creditRetryMs = 0;
        if (this.#state === "open") this.#owner.setTimer(this, Infinity);
      }
      this.#owner.schedule(this);
    }
  }

  /** The guest asks for our credit. */
  receiveCreditRequest(): void {
    this.#updateAsked = true;
    this.#owner.schedule(this);
  }

  // -- The host program (MessageEvents) --

  /** The host program has sent something, or ended. */
  hostReadable(): void {
    if (this.#readable || this.#state !== "open") return;
    if ((this.#guestShutdown & VIRTIO_VSOCK_SHUTDOWN_RCV) !== 0) return;
    if ((this.#wantShutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) !== 0) return;
    this.#readable = true;
    this.#owner.schedule(this);
  }

  /** The host program takes bytes again. */
  hostWritable(): void {
    if (!this.#link.attached) return;
    const result = this.#link.flush();
    this.#handedOver(result);
    if (result !== LINK_AGAIN) return;
    if (this.#state === "lingering" || this.#state === "resetting") {
      this.#closeWhenWritten();
    } else this.#endHostWriteWhenWritten();
  }

  /** The host program is gone; what it sent before is still delivered. */
  hostHangup(): void {
    if (this.#hungUp) return;
    this.#hungUp = true;
    if (this.#state === "open") {
      this.#hostWriteBroken();
      // A guest that receives no more is not sent the rest, so that no end of file comes up.
      if ((this.#guestShutdown & VIRTIO_VSOCK_SHUTDOWN_RCV) !== 0) {
        this.#endBoth();
      } else {
        this.hostReadable();
      }
    } else if (this.#state === "lingering" || this.#state === "resetting") {
      this.#link.discard();
      this.#closeWhenWritten();
    }
  }

  // -- To the guest --

  /** Ends the connection, by RST where the guest knows of it, and tells the host program. */
  reset(): void {
    const state = this.#state;
    if (state === "resetting" || state === "lingering" || state === "closed") {
      return;
    }
    const answer = this.#answer;
    this.#answer = null;
    if (state === "asking-guest" && !this.#requestSent) {
      // The guest has never heard of it.
      this.#leave(true);
    } else {
      this.#state = "resetting";
      this.#owner.setTimer(this, Infinity);
      this.#closeLink(state === "open");
      this.#owner.schedule(this);
    }
    answer?.refused("the connection was reset");
  }

  /** The host program does not wait for the guest's answer any more. */
  cancel(): void {
    if (this.#state !== "asking-guest") return;
    this.#answer = null;
    this.reset();
  }

  /**
   * Ends the connection without a word to the guest, which is gone. What it sent before it closed
   * is still delivered.
   */
  abandon(): void {
    const answer = this.#answer;
    this.#answer = null;
    this.#leave(this.#state !== "resetting");
    answer?.refused("the guest is gone");
  }

  /** The time set by the owner's timer has come. */
  expire(): void {
    const state = this.#state;
    if (state === "asking-guest") {
      const answer = this.#answer;
      this.#answer = null;
      this.reset();
      answer?.refused("the guest did not answer");
    } else if (state === "closing") {
      this.reset();
    } else if (state === "open" && this.#creditRetryMs !== 0) {
      this.#owner.schedule(this);
    }
  }

  /**
   * Sends what there is to send, as far as the guest has receive buffers; returns one of the
   * `TRANSMIT_` values. `header` is scratch.
   */
  transmit(rx: RxWriter, header: PacketHeader): number {
    switch (this.#state) {
      case "asking-guest":
        if (this.#requestSent) return TRANSMIT_DONE;
        if (!this.#send(rx, header, VIRTIO_VSOCK_OP_REQUEST, 0)) {
          return TRANSMIT_STARVED;
        }
        this.#requestSent = true;
        return TRANSMIT_DONE;
      case "resetting":
        if (!this.#send(rx, header, VIRTIO_VSOCK_OP_RST, 0)) {
          return TRANSMIT_STARVED;
        }
        this.#leave(false);
        return TRANSMIT_DONE;
      case "open":
      case "closing":
        return this.#transmitOpen(rx, header);
      default:
        return TRANSMIT_DONE;
    }
  }

  #transmitOpen(rx: RxWriter, header: PacketHeader): number {
    if (this.#responseDue) {
      if (!this.#send(rx, header, VIRTIO_VSOCK_OP_RESPONSE, 0)) {
        return TRANSMIT_STARVED;
      }
      this.#responseDue = false;
    }
    let result = TRANSMIT_DONE;
    if (this.#readable) {
      result = this.#transmitData(rx, header);
      if (result === TRANSMIT_STARVED || this.#state === "resetting") {
        return result === TRANSMIT_STARVED ? result : TRANSMIT_MORE;
      }
    }
    if (this.#sentShutdown !== this.#wantShutdown) {
      const flags = this.#wantShutdown;
      if (!this.#send(rx, header, VIRTIO_VSOCK_OP_SHUTDOWN, flags)) {
        return TRANSMIT_STARVED;
      }
      this.#sentShutdown = flags;
      if (flags === VIRTIO_VSOCK_SHUTDOWN_MASK) {
        this.#state = "closing";
        this.#closeLink(false);
        this.#owner.setTimer(this, DISCONNECT_TIMEOUT_MS);
      }
    }
    if (this.#updateAsked || this.#link.updateDue) {
      if (!this.#send(rx, header, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0)) {
        return TRANSMIT_STARVED;
      }
    }
    return result;
  }

  #transmitData(rx: RxWriter, header: PacketHeader): number {
    const link = this.#link;
    let quantum = QUANTUM_BYTES;
    while (quantum > 0) {
      this.#fill(header, VIRTIO_VSOCK_OP_RW, 0);
      const got = link.transmit(rx, header);
      if (got > 0) {
        this.#told();
        quantum -= got;
        continue;
      }
      if (got === LINK_NO_CREDIT) return this.#askForCredit(rx, header);
      // Who got something has had its turn, so that few buffers are shared as well.
      if (got === LINK_STARVED) {
        return quantum < QUANTUM_BYTES ? TRANSMIT_MORE : TRANSMIT_STARVED;
      }
      this.#readable = false;
      if (got === LINK_AGAIN) return TRANSMIT_DONE;
      if (got === LINK_EOF) {
        this.#wantShutdown |= VIRTIO_VSOCK_SHUTDOWN_SEND;
        if (this.#hungUp) this.#wantShutdown = VIRTIO_VSOCK_SHUTDOWN_MASK;
      } else {
        if (got === LINK_TOO_LONG) this.#tooLong("the guest");
        this.reset();
      }
      return TRANSMIT_DONE;
    }
    return TRANSMIT_MORE;
  }

  /**
   * Asks for credit, at ever longer intervals: a guest that reads slowly must not keep us busy.
   *
   * Guests tell of freed bytes by themselves, so that the first question waits; of freed packets
   * they know nothing, so that it does not.
   */
  #askForCredit(rx: RxWriter, header: PacketHeader): number {
    if (this.#creditRetryMs !== 0 && this.deadline !== Infinity) {
      return TRANSMIT_DONE;
    }
    if (this.#creditRetryMs !== 0 || this.credit.packetsFree === 0) {
      if (!this.#send(rx, header, VIRTIO_VSOCK_OP_CREDIT_REQUEST, 0)) {
        return TRANSMIT_STARVED;
      }
    }
    const pause = this.#creditRetryMs === 0
      ? CREDIT_RETRY_MS
      : Math.min(this.#creditRetryMs * 2, CREDIT_RETRY_MAX_MS);
    this.#creditRetryMs = pause;
    this.#owner.setTimer(this, pause);
    return TRANSMIT_DONE;
  }

  #fill(header: PacketHeader, op: number, flags: number): void {
    header.srcCid = this.peerCid;
    header.dstCid = this.guestCid;
    header.srcPort = this.hostPort;
    header.dstPort = this.guestPort;
    header.len = 0;
    header.type = this.packetType;
    header.op = op;
    header.flags = flags;
    header.bufAlloc = this.credit.bufAlloc;
    header.fwdCnt = this.credit.fwdCnt;
  }

  #send(
    rx: RxWriter,
    header: PacketHeader,
    op: number,
    flags: number,
  ): boolean {
    this.#fill(header, op, flags);
    if (!rx.sendControl(header)) return false;
    this.#told();
    return true;
  }

  #told(): void {
    this.credit.toldFwdCnt = this.credit.fwdCnt;
    this.#updateAsked = false;
  }

  /** The host program has taken some of what the guest sent; the guest may have to hear of it. */
  #tellRoom(): void {
    if (this.#link.updateDue) this.#owner.schedule(this);
  }

  /** What came of handing payload to the host program. */
  #handedOver(result: number): void {
    if (result === LINK_AGAIN) {
      this.#tellRoom();
    } else if (result === LINK_BROKEN) {
      this.#hostWriteBroken();
    } else {
      if (result === LINK_TOO_LONG) this.#tooLong("the host program");
      else if (result === LINK_TOO_MANY) {
        this.#owner.fault(
          "empty_messages_exceeded",
          () => `port ${this.guestPort} sends empty messages that nobody reads`,
        );
      }
      this.reset();
    }
  }

  #tooLong(who: string): void {
    this.#owner.fault(
      "message_too_long",
      () =>
        `a message between guest port ${this.guestPort} and port ${this.hostPort} is longer than ${who} can take`,
    );
  }

  /** Nobody takes the guest's bytes any more: it is told once, and what comes is dropped. */
  #hostWriteBroken(): void {
    this.#discard = true;
    this.#link.discard();
    this.#tellRoom();
    if (this.#state === "lingering" || this.#state === "resetting") {
      this.#closeWhenWritten();
    } else if (this.#state === "open") {
      this.#wantShutdown |= VIRTIO_VSOCK_SHUTDOWN_RCV;
      this.#owner.schedule(this);
      // Where the guest has ended before, nothing is left to be written first.
      this.#endHostWriteWhenWritten();
    }
  }

  #endBoth(): void {
    this.#wantShutdown = VIRTIO_VSOCK_SHUTDOWN_MASK;
    this.#owner.schedule(this);
  }

  #endHostWriteWhenWritten(): void {
    if (this.#hostWriteEnded || !this.#link.delivered) return;
    if ((this.#guestShutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) === 0) return;
    this.#hostWriteEnded = true;
    this.#link.shutdownWrite();
  }

  #closeWhenWritten(): void {
    if (!this.#link.delivered) return;
    this.#closeLink(false);
    if (this.#state === "lingering") this.#finish();
  }

  #closeLink(lost: boolean): void {
    this.#readable = false;
    this.#link.close(lost);
  }

  /** The tuple is free; bytes for the host program may remain, unless they are `lost`. */
  #leave(lost: boolean): void {
    const state = this.#state;
    if (state === "lingering" || state === "closed") return;
    this.#owner.setTimer(this, Infinity);
    this.#owner.forget(this);
    if (lost || this.#link.delivered) {
      this.#closeLink(lost);
      this.#finish();
    } else {
      this.#state = "lingering";
    }
  }

  #finish(): void {
    if (this.#state === "closed") return;
    this.#state = "closed";
    this.#owner.finished(this);
  }
}
