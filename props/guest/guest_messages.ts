import type { ByteRing } from "./byte_ring.ts";
import { SEQ_EOM, SEQ_EOR } from "./vsock_header.ts";

/** A message that a guest has received. */
export type GuestMessage = {
  /** Its bytes; there may be none. */
  bytes: Uint8Array<ArrayBuffer>;
  /** It ends a record: MSG_EOR of `recvmsg(2)`. */
  endOfRecord: boolean;
};

/**
 * The messages of a guest's seqpacket connection: where they end among the bytes that were received,
 * and what is left of the one that is being sent.
 */
export class GuestMessages {
  /** What is left of the message that is being sent; null where none is. */
  rest: Uint8Array | null = null;
  /** Flags of the last packet of that message. */
  restFlags = 0;

  readonly #received: ByteRing;
  readonly #ends: { length: number; endOfRecord: boolean }[] = [];
  #partial = 0;

  /** Divides the bytes of `received`. */
  constructor(received: ByteRing) {
    this.#received = received;
  }

  /** Whole messages that wait to be read. */
  get count(): number {
    return this.#ends.length;
  }

  /** Bytes of a message whose end has not come. */
  get partial(): number {
    return this.#partial;
  }

  /** A packet has brought `length` bytes, with `flags`; what is wrong with it in words, or null. */
  received(length: number, flags: number): string | null {
    this.#partial += length;
    if ((flags & SEQ_EOM) === 0) {
      if ((flags & SEQ_EOR) !== 0) return "EOR without EOM";
      return length === 0
        ? "RW without payload, not the end of a message"
        : null;
    }
    this.#ends.push({
      length: this.#partial,
      endOfRecord: (flags & SEQ_EOR) !== 0,
    });
    this.#partial = 0;
    return null;
  }

  /** Takes the first whole message, or null. */
  take(): GuestMessage | null {
    const end = this.#ends.shift();
    if (end === undefined) return null;
    const bytes = new Uint8Array(end.length);
    this.#received.read(bytes);
    return { bytes, endOfRecord: end.endOfRecord };
  }

  /** Begins to send a copy of `bytes`. */
  begin(bytes: Uint8Array, endOfRecord: boolean): void {
    this.rest = bytes.slice();
    this.restFlags = endOfRecord ? SEQ_EOM | SEQ_EOR : SEQ_EOM;
  }

  /** `length` more bytes were sent; at the end there is no rest. */
  sent(length: number): void {
    const rest = this.rest!.subarray(length);
    this.rest = rest.length === 0 ? null : rest;
  }
}
