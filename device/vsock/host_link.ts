import type { Chain } from "../../ring/chain.ts";
import type { HostMessages, HostStream } from "./host.ts";
import type { PacketHeader } from "./packet.ts";
import type { RxWriter } from "./rx_writer.ts";
import type { Segments } from "./segments.ts";

/** {@link HostLink.receive}: the payload may wait in a gathering write with others. */
export const LINK_GATHERS = 1;
/** Done; from `transmit`, that the host program has sent nothing more for now. */
export const LINK_AGAIN = 0;
/** The host program has ended its sending side. */
export const LINK_EOF = -1;
/** The host program's end is broken in that direction. */
export const LINK_BROKEN = -2;
/** The guest has no receive buffer. */
export const LINK_STARVED = -3;
/** The guest has no room. */
export const LINK_NO_CREDIT = -4;
/** A message is longer than the other end can ever take. */
export const LINK_TOO_LONG = -5;
/** The guest has sent more messages than can be kept. */
export const LINK_TOO_MANY = -6;

/** What a {@link HostLink} keeps, as plain data. */
export type LinkState = {
  /** Bytes from the guest that the host program has not taken, in base64. */
  buffered: string;
  /** Whole messages among them: twice the length, plus 1 at the end of a record. */
  messages: number[];
  /** What is left of a message that the guest has received in part. */
  outgoing: OutgoingState | null;
};

/** The rest of a message to the guest. */
export type OutgoingState = {
  /** The rest, in base64. */
  rest: string;
  /** Length of the whole message. */
  length: number;
  /** It ends a record. */
  endOfRecord: boolean;
};

/**
 * Between a connection and its host program: hands payload over in both directions, keeps what the
 * program does not take, and counts what it took in the connection's credit. A stream's link moves
 * bytes, a seqpacket's whole messages.
 */
export interface HostLink {
  /** Socket type of its packets. */
  readonly packetType: number;
  /** True while there is a host program's end. */
  readonly attached: boolean;
  /** True when nothing waits that the host program could take. */
  readonly delivered: boolean;
  /** True when the guest has room, as far as it told. */
  readonly canSend: boolean;
  /** True when the guest should hear of our room without having asked. */
  readonly updateDue: boolean;

  /** Gives it the host program's end. */
  attach(end: HostStream | HostMessages): void;

  /**
   * Takes `length` bytes of payload, which start after the header in `chain` and which the credit
   * allows. {@link LINK_GATHERS}, {@link LINK_AGAIN} where they were dealt with,
   * {@link LINK_BROKEN}, {@link LINK_TOO_LONG} or {@link LINK_TOO_MANY}. `scratch` is empty, and left so.
   */
  receive(
    chain: Chain,
    length: number,
    flags: number,
    scratch: Segments,
  ): number;

  /** Hands gathered payload over, and keeps what is not taken; {@link LINK_BROKEN} or {@link LINK_AGAIN}. */
  gathered(segments: Segments): number;

  /** Hands over what was kept; {@link LINK_AGAIN}, {@link LINK_BROKEN} or {@link LINK_TOO_LONG}. */
  flush(): number;

  /**
   * Sends some of what the host program has sent in packets with `header`; how much, which is 1 or
   * more, {@link LINK_AGAIN}, {@link LINK_EOF}, {@link LINK_BROKEN}, {@link LINK_STARVED},
   * {@link LINK_NO_CREDIT} or {@link LINK_TOO_LONG}.
   */
  transmit(rx: RxWriter, header: PacketHeader): number;

  /** The guest sends no more; what was kept has been handed over. */
  shutdownWrite(): void;
  /** The guest receives no more. */
  shutdownRead(): void;
  /** Drops what was kept, as if it had been taken. */
  discard(): void;
  /** Ends the host program's end, and drops what was kept. */
  close(reset: boolean): void;

  /** What it keeps, as plain data. */
  save(): LinkState;
  /** Goes on from a state that was checked. */
  restore(state: LinkState): void;
}
