import type { Chain } from "../../ring/chain.ts";
import { base64, bytesOfBase64 } from "../snapshot.ts";
import type { Credit } from "./credit.ts";
import {
  type HostMessages,
  type HostStream,
  MESSAGE_AGAIN,
  MESSAGE_TOO_LONG,
  STREAM_BROKEN,
  STREAM_EOF,
} from "./host.ts";
import {
  type HostLink,
  LINK_AGAIN,
  LINK_BROKEN,
  LINK_EOF,
  LINK_NO_CREDIT,
  LINK_STARVED,
  LINK_TOO_LONG,
  LINK_TOO_MANY,
  type LinkState,
} from "./host_link.ts";
import { MessageQueue } from "./message_queue.ts";
import type { PacketHeader } from "./packet.ts";
import type { RxWriter } from "./rx_writer.ts";
import type { Segments } from "./segments.ts";
import {
  VIRTIO_VSOCK_SEQ_EOM,
  VIRTIO_VSOCK_SEQ_EOR,
  VIRTIO_VSOCK_TYPE_SEQPACKET,
  VSOCK_HEADER_SIZE,
} from "./virtio_vsock.ts";

/** {@link HostLink.receive} on its way from a host program's answer to a message. */
function writtenBy(result: number): number {
  if (result === STREAM_BROKEN) return LINK_BROKEN;
  return result === MESSAGE_TOO_LONG ? LINK_TOO_LONG : LINK_AGAIN;
}

/**
 * The messages of a seqpacket connection, between it and {@link HostMessages} (virtio 1.4, 5.10.6.6).
 *
 * A message comes and goes in fragments, of which only the last is marked; the host program sees
 * none. What has come of a message is kept until its end, which the credit bounds; what the guest
 * has no room for yet is kept as well, one message at most.
 */
export class MessageLink implements HostLink {
  /** Seqpackets. */
  readonly packetType: number = VIRTIO_VSOCK_TYPE_SEQPACKET;
  readonly #credit: Credit;
  readonly #scratch: (length: number) => Uint8Array;
  readonly #queue: MessageQueue;
  #end: HostMessages | null = null;

  // A message to the guest that is not sent, or not all of it.
  #rest: Uint8Array | null = null;
  #restOf = 0;
  #restFlags = 0;

  /** Makes a link without a host program; `scratch` lends memory until its next call. */
  constructor(credit: Credit, scratch: (length: number) => Uint8Array) {
    this.#credit = credit;
    this.#scratch = scratch;
    this.#queue = new MessageQueue(credit.bufAlloc);
  }

  /** {@inheritDoc HostLink.attached} */
  get attached(): boolean {
    return this.#end !== null;
  }

  /** {@inheritDoc HostLink.delivered} */
  get delivered(): boolean {
    return this.#queue.count === 0;
  }

  /** {@inheritDoc HostLink.canSend} */
  get canSend(): boolean {
    // A message that has begun frees nothing before its end, however many packets that takes.
    const { bytesFree, packetsFree } = this.#credit;
    return bytesFree > 0 && (this.#rest !== null || packetsFree > 0);
  }

  /**
   * {@inheritDoc HostLink.updateDue}
   *
   * After each message, as a guest may wait until it has room for a whole one.
   */
  get updateDue(): boolean {
    return this.#credit.fwdCnt !== this.#credit.toldFwdCnt;
  }

  /** {@inheritDoc HostLink.attach} */
  attach(end: HostStream | HostMessages): void {
    // The types of a request and of its answers see to it.
    this.#end = end as HostMessages;
  }

  /** {@inheritDoc HostLink.receive} */
  receive(
    chain: Chain,
    length: number,
    flags: number,
    scratch: Segments,
  ): number {
    const end = this.#end;
    if (end === null) {
      this.#credit.forwarded(length);
      return LINK_AGAIN;
    }
    const queue = this.#queue;
    const last = (flags & VIRTIO_VSOCK_SEQ_EOM) !== 0;
    const endOfRecord = (flags & VIRTIO_VSOCK_SEQ_EOR) !== 0;
    let waits = queue.count > 0;
    if (last && !waits && queue.partial === 0) {
      const rows = chain.readable;
      const whole =
        scratch.add(chain, 0, rows, VSOCK_HEADER_SIZE, length) === length;
      const result = whole
        ? end.writeMessage(scratch, endOfRecord)
        : MESSAGE_AGAIN;
      scratch.clear();
      if (result !== MESSAGE_AGAIN) {
        this.#credit.forwarded(length);
        return writtenBy(result);
      }
      waits = whole;
    }
    if (length > 0) {
      const [first, second] = queue.bytes.extend(length);
      chain.read(first, VSOCK_HEADER_SIZE);
      if (second.length > 0) {
        chain.read(second, VSOCK_HEADER_SIZE + first.length);
      }
    }
    if (!last) return LINK_AGAIN;
    if (!queue.complete(endOfRecord)) return LINK_TOO_MANY;
    // Where one waits, an event tells when it may go.
    return waits ? LINK_AGAIN : this.flush();
  }

  /** {@inheritDoc HostLink.gathered} Messages are not gathered. */
  gathered(segments: Segments): number {
    this.#credit.forwarded(segments.bytes);
    return LINK_AGAIN;
  }

  /** {@inheritDoc HostLink.flush} */
  flush(): number {
    const end = this.#end;
    const queue = this.#queue;
    while (end !== null && queue.count > 0) {
      const message = queue.peek();
      const result = end.writeMessageBytes(message, queue.firstEndsRecord);
      if (result === MESSAGE_AGAIN) break;
      if (result === STREAM_BROKEN) {
        this.discard();
        return LINK_BROKEN;
      }
      if (result === MESSAGE_TOO_LONG) return LINK_TOO_LONG;
      const length = message.length;
      queue.drop();
      this.#credit.forwarded(length);
    }
    return LINK_AGAIN;
  }

  /** {@inheritDoc HostLink.transmit} */
  transmit(rx: RxWriter, header: PacketHeader): number {
    const credit = this.#credit;
    let rest = this.#rest;
    if (rest === null) {
      const end = this.#end;
      if (end === null) return LINK_AGAIN;
      if (credit.packetsFree === 0) return LINK_NO_CREDIT;
      // What a host program gave cannot be given back.
      if (!rx.ready()) return LINK_STARVED;
      const limit = credit.maxMessageBytes;
      const scratch = this.#scratch(limit);
      const length = end.readMessage(scratch);
      if (length < 0) {
        if (length === STREAM_EOF) return LINK_EOF;
        return length === STREAM_BROKEN ? LINK_BROKEN : LINK_AGAIN;
      }
      if (length > limit) return LINK_TOO_LONG;
      rest = scratch.subarray(0, length);
      this.#restOf = length;
      this.#restFlags = VIRTIO_VSOCK_SEQ_EOM |
        (end.endOfRecord ? VIRTIO_VSOCK_SEQ_EOR : 0);
    }
    const free = credit.bytesFree;
    if (free === 0 && rest.length > 0) {
      // A guest that has made its buffer smaller waits for an end that cannot come.
      if (this.#restOf > credit.peerBufAlloc) return LINK_TOO_LONG;
      this.#keepRest(rest);
      return LINK_NO_CREDIT;
    }
    const limit = free < rest.length ? free : rest.length;
    const sent = rx.sendBytes(header, credit, rest, limit, this.#restFlags);
    if (sent < 0) {
      this.#keepRest(rest);
      return LINK_STARVED;
    }
    if (sent === rest.length) this.#rest = null;
    else this.#keepRest(rest.subarray(sent));
    // An empty message is a packet, too.
    return sent === 0 ? 1 : sent;
  }

  /** {@inheritDoc HostLink.shutdownWrite} */
  shutdownWrite(): void {
    this.#end?.shutdownWrite();
  }

  /** {@inheritDoc HostLink.shutdownRead} */
  shutdownRead(): void {
    this.#rest = null;
    this.#end?.shutdownRead();
  }

  /** {@inheritDoc HostLink.discard} */
  discard(): void {
    this.#credit.forwarded(this.#queue.bytes.length);
    this.#queue.clear();
  }

  /** {@inheritDoc HostLink.close} */
  close(reset: boolean): void {
    const end = this.#end;
    this.#end = null;
    this.#rest = null;
    if (end === null) return;
    end.close(reset);
    this.#queue.clear();
  }

  /** {@inheritDoc HostLink.save} */
  save(): LinkState {
    const queue = this.#queue;
    const rest = this.#rest;
    return {
      buffered: base64(queue.bytes.copy()),
      messages: queue.save(),
      outgoing: rest === null ? null : {
        rest: base64(rest),
        length: this.#restOf,
        endOfRecord: (this.#restFlags & VIRTIO_VSOCK_SEQ_EOR) !== 0,
      },
    };
  }

  /** {@inheritDoc HostLink.restore} */
  restore(state: LinkState): void {
    this.#queue.restore(bytesOfBase64(state.buffered), state.messages);
    const { outgoing } = state;
    if (outgoing === null) return;
    this.#rest = bytesOfBase64(outgoing.rest);
    this.#restOf = outgoing.length;
    this.#restFlags = VIRTIO_VSOCK_SEQ_EOM |
      (outgoing.endOfRecord ? VIRTIO_VSOCK_SEQ_EOR : 0);
  }

  /** Keeps what is not sent, which may be lent memory. */
  #keepRest(rest: Uint8Array): void {
    if (this.#rest?.buffer === rest.buffer) this.#rest = rest;
    else this.#rest = rest.slice();
  }
}
