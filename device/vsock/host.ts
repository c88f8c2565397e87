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

/** A guest's wish to connect to a host port, which the host side answers now or later, once. */
export interface ConnectRequest {
  /** Port on the host that the guest asks for. */
  readonly hostPort: number;
  /** The guest's own port. */
  readonly guestPort: number;
  /** True when the guest has withdrawn, so that an answer comes too late. */
  readonly cancelled: boolean;
  /**
   * There is a host program: bytes flow between the guest and the stream that `open` returns.
   * False, with `open` not called, when the guest has withdrawn.
   */
  accept(open: (events: StreamEvents) => HostStream): boolean;
  /** There is none: the guest is told by RST. */
  refuse(): void;
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
  /** The guest connects to a host port. */
  connect(request: ConnectRequest): void;

  /**
   * A restored device goes on with a connection: returns what opens its stream, whose bytes go on
   * where the saved device left them; null where the host program is not there, so that the
   * guest is told by RST. A host side without this method has no host program left.
   */
  resume?(
    connection: RestoredConnection,
  ): ((events: StreamEvents) => HostStream) | null;

  /** The same for a host program whose connect the guest has not answered. */
  resumeConnect?(connection: RestoredConnection): ConnectAnswer | null;
}

/** How a host program that connects to a guest port hears the answer; one of the two is called. */
export interface ConnectAnswer {
  /** The guest has accepted; `hostPort` is the host's own port. Returns the stream. */
  accepted(hostPort: number, events: StreamEvents): HostStream;
  /** The guest has refused, does not answer, or is not there. */
  refused(reason: string): void;
}

/** A host program's wish to connect that is not answered yet. */
export interface PendingConnect {
  /** The host's own port; -1 where the connect was refused at once. */
  readonly hostPort: number;
  /** Withdraws; `answer` is not called any more. */
  cancel(): void;
}
