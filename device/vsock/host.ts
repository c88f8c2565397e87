import type { Segments } from "./segments.ts";

/** {@link HostStream.read}: nothing to read now; `hostReadable` tells when there is. */
export const STREAM_AGAIN: number = 0;
/** {@link HostStream.read}: the host program has ended its sending side. */
export const STREAM_EOF: number = -1;
/** {@link HostStream.read} and `write`: the stream is broken in that direction. */
export const STREAM_BROKEN: number = -2;

/**
 * The host's end of one connection: a non-blocking byte stream. The connection calls it; it calls
 * the {@link StreamEvents} that it was made with. It never throws for what a host program does.
 *
 * It is edge-triggered: after `read` returned {@link STREAM_AGAIN}, or `write` took less than
 * it was given, exactly one event says when to try again.
 */
export interface HostStream {
  /**
   * Takes bytes from guest memory, in order; returns how many, fewer than there are where it is
   * full, or {@link STREAM_BROKEN} when nobody will ever read them.
   */
  write(from: Segments): number;
  /** The same for bytes of our own. */
  writeBytes(from: Uint8Array): number;
  /**
   * Puts bytes into guest memory; returns how many (1 or more), {@link STREAM_AGAIN},
   * {@link STREAM_EOF}, or {@link STREAM_BROKEN}.
   */
  read(into: Segments): number;
  /** Ends the guest's sending side: the host program reads end of file after what was written. */
  shutdownWrite(): void;
  /** Ends the guest's receiving side: the host program cannot send any more. */
  shutdownRead(): void;
  /** Ends the stream; `reset` tells the host program, where that is possible, that bytes were lost. */
  close(reset: boolean): void;
}

/** What a {@link HostStream} tells its connection. */
export interface StreamEvents {
  /** `read` has bytes, an end of file or an error. */
  hostReadable(): void;
  /** `write` has room again. */
  hostWritable(): void;
  /** The host program has closed both directions; what it sent before can still be read. */
  hostHangup(): void;
}

/** {@link HostMessages.readMessage} and `writeMessage`: not now; an event tells when. */
export const MESSAGE_AGAIN: number = -3;
/** {@link HostMessages.writeMessage}: the host program's end can never take so long a message. */
export const MESSAGE_TOO_LONG: number = -4;

/**
 * The host's end of one seqpacket connection: whole messages, of which each is taken or not.
 *
 * Non-blocking and edge-triggered as {@link HostStream} is: after {@link MESSAGE_AGAIN} exactly one
 * event says when to try again. It never throws for what a host program does.
 */
export interface HostMessages {
  /** True where the message that `readMessage` returned last ends a record. */
  readonly endOfRecord: boolean;
  /**
   * Takes a message from guest memory, of 0 bytes or more; `eor` says that it ends a record. Returns
   * its length, {@link MESSAGE_AGAIN}, {@link MESSAGE_TOO_LONG}, or {@link STREAM_BROKEN} when
   * nobody will ever read it.
   */
  writeMessage(from: Segments, eor: boolean): number;
  /** The same for bytes of our own. */
  writeMessageBytes(from: Uint8Array, eor: boolean): number;
  /**
   * Puts the host program's next message at the start of `into`; returns its length, which can be
   * 0, {@link MESSAGE_AGAIN}, {@link STREAM_EOF}, or {@link STREAM_BROKEN}.
   *
   * A message that is longer than `into` is lost; its length, or any that is greater than that of
   * `into`, says so.
   */
  readMessage(into: Uint8Array): number;
  /** Ends the guest's sending side: the host program reads end of file after what was written. */
  shutdownWrite(): void;
  /** Ends the guest's receiving side: the host program cannot send any more. */
  shutdownRead(): void;
  /** Ends the connection; `reset` tells the host program, where that is possible, of lost messages. */
  close(reset: boolean): void;
}

/** What {@link HostMessages} tell their connection, and what they can ask it. */
export interface MessageEvents extends StreamEvents {
  /** Longest message that the guest can take; it changes when the guest says so. */
  readonly maxMessageBytes: number;
}

/**
 * A guest's wish to connect to a host port, which the host side answers now or later, once. `End` is
 * what it gives the connection: a {@link HostStream} unless told.
 */
export interface ConnectRequest<End = HostStream, Events = StreamEvents> {
  /** Port on the host that the guest asks for. */
  readonly hostPort: number;
  /** The guest's own port. */
  readonly guestPort: number;
  /** True when the guest has withdrawn, so that an answer comes too late. */
  readonly cancelled: boolean;
  /**
   * There is a host program: bytes flow between the guest and the end that `open` returns.
   * False, with `open` not called, when the guest has withdrawn.
   */
  accept(open: (events: Events) => End): boolean;
  /** There is none: the guest is told by RST. */
  refuse(): void;
}

/** A guest's wish for a seqpacket connection. */
export type MessagesRequest = ConnectRequest<HostMessages, MessageEvents>;

/** Two ends of a connection, and whose they are. */
export interface ConnectionAddress {
  /** CID of the guest. */
  readonly guestCid: number;
  /** Port in the guest. */
  readonly guestPort: number;
  /** CID of the other end: 2 for the host. */
  readonly peerCid: number;
  /** Port of the other end. */
  readonly hostPort: number;
}

/** A connection of a restored device, as its host side is asked to go on with it. */
export interface RestoredConnection {
  /** Port on the host. */
  readonly hostPort: number;
  /** Port in the guest. */
  readonly guestPort: number;
}

/** Where a guest's connections go: the host's side of the device. */
export interface HostSide {
  /** The guest connects a stream to a host port. */
  connect(request: ConnectRequest): void;

  /** The guest connects a seqpacket socket. A host side without this method refuses them all. */
  connectMessages?(request: MessagesRequest): void;

  /**
   * A restored device goes on with a connection: returns what opens its stream, whose bytes go on
   * where the saved device left them; null where the host program is not there, so that the
   * guest is told by RST. A host side without this method has no host program left.
   */
  resume?(
    connection: RestoredConnection,
  ): ((events: StreamEvents) => HostStream) | null;

  /** The same for a seqpacket connection. */
  resumeMessages?(
    connection: RestoredConnection,
  ): ((events: MessageEvents) => HostMessages) | null;

  /** The same for a host program whose connect the guest has not answered. */
  resumeConnect?(connection: RestoredConnection): ConnectAnswer | null;

  /** The same for a seqpacket connect. */
  resumeConnectMessages?(connection: RestoredConnection): MessagesAnswer | null;
}

/**
 * How a host program that connects to a guest port hears the answer; one of the two is called. `End`
 * is what it gives the connection: a {@link HostStream} unless told.
 */
export interface ConnectAnswer<End = HostStream, Events = StreamEvents> {
  /** The guest has accepted; `hostPort` is the host's own port. Returns the host's end. */
  accepted(hostPort: number, events: Events): End;
  /** The guest has refused, does not answer, or is not there. */
  refused(reason: string): void;
}

/** How a host program hears the guest's answer to a seqpacket connect. */
export type MessagesAnswer = ConnectAnswer<HostMessages, MessageEvents>;

/** A host program's wish to connect that is not answered yet. */
export interface PendingConnect {
  /** The host's own port; -1 where the connect was refused at once. */
  readonly hostPort: number;
  /** Withdraws; `answer` is not called any more. */
  cancel(): void;
}

/** A port of another guest. */
export type PeerAddress = {
  /** The other guest's CID. */
  readonly cid: number;
  /** Its port. */
  readonly port: number;
};

/** A guest's wish to connect a stream to another guest. */
export type PeerRequest = ConnectRequest & ConnectionAddress;

/** A guest's wish to connect a seqpacket socket to another guest. */
export type PeerMessagesRequest = MessagesRequest & ConnectionAddress;

/** Where a guest's connections to other guests go; a `VsockSwitch` gives one to each device. */
export interface PeerSide {
  /** True when the device has to be told of something: `deliver()` does. */
  readonly pending: boolean;
  /** Tells connections what has happened at their other ends; called when the device works. */
  deliver(): void;
  /** True where there is another guest with this CID. */
  reaches(cid: number): boolean;
  /** The guest connects a stream to a port of another one. */
  connect(request: PeerRequest): void;
  /** The guest connects a seqpacket socket. */
  connectMessages(request: PeerMessagesRequest): void;
  /** See {@link HostSide.resume}. */
  resume(
    connection: ConnectionAddress,
  ): ((events: StreamEvents) => HostStream) | null;
  /** See {@link HostSide.resumeMessages}. */
  resumeMessages(
    connection: ConnectionAddress,
  ): ((events: MessageEvents) => HostMessages) | null;
}
