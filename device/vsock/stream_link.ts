import type { Chain } from "../../ring/chain.ts";
import { base64, bytesOfBase64 } from "../snapshot.ts";
import { ByteQueue } from "./byte_queue.ts";
import type { Credit } from "./credit.ts";
import { type HostMessages, type HostStream, STREAM_BROKEN } from "./host.ts";
import {
  type HostLink,
  LINK_AGAIN,
  LINK_BROKEN,
  LINK_GATHERS,
  LINK_NO_CREDIT,
  type LinkState,
} from "./host_link.ts";
import type { PacketHeader } from "./packet.ts";
import type { RxWriter } from "./rx_writer.ts";
import type { Segments } from "./segments.ts";
import { VIRTIO_VSOCK_TYPE_STREAM, VSOCK_HEADER_SIZE } from "./virtio_vsock.ts";

/** Receive buffers that one read fills at most; a connection comes to that by doubling from 1. */
const READ_HINT_MAX_BUFFERS = 32;

/** The bytes of a stream, between its connection and a {@link HostStream}. */
export class StreamLink implements HostLink {
  /** Streams. */
  readonly packetType: number = VIRTIO_VSOCK_TYPE_STREAM;
  readonly #credit: Credit;
  readonly #buffer: ByteQueue;
  #stream: HostStream | null = null;
  #readHint = 1;

  /** Makes a link without a host program. */
  constructor(credit: Credit) {
    this.#credit = credit;
    this.#buffer = new ByteQueue(credit.bufAlloc);
  }

  /** {@inheritDoc HostLink.attached} */
  get attached(): boolean {
    return this.#stream !== null;
  }

  /** {@inheritDoc HostLink.delivered} */
  get delivered(): boolean {
    return this.#buffer.length === 0;
  }

  /** {@inheritDoc HostLink.canSend} */
  get canSend(): boolean {
    return this.#credit.peerFree > 0;
  }

  /** {@inheritDoc HostLink.updateDue} */
  get updateDue(): boolean {
    return this.#credit.updateDue;
  }

  /** {@inheritDoc HostLink.attach} */
  attach(end: HostStream | HostMessages): void {
    // The types of a request and of its answers see to it.
    this.#stream = end as HostStream;
  }

  /** {@inheritDoc HostLink.receive} */
  receive(chain: Chain, length: number): number {
    return this.#buffer.length === 0 ? LINK_GATHERS : this.#keep(chain, length);
  }

  #keep(chain: Chain, length: number): number {
    const buffer = this.#buffer;
    const [first, second] = buffer.extend(length);
    chain.read(first, VSOCK_HEADER_SIZE);
    if (second.length > 0) chain.read(second, VSOCK_HEADER_SIZE + first.length);
    return LINK_AGAIN;
  }

  /** {@inheritDoc HostLink.gathered} */
  gathered(segments: Segments): number {
    const stream = this.#stream;
    if (stream === null) {
      this.#credit.forwarded(segments.bytes);
      return LINK_AGAIN;
    }
    let taken = 0;
    if (this.#buffer.length === 0) {
      taken = stream.write(segments);
      if (taken === STREAM_BROKEN) {
        this.#credit.forwarded(segments.bytes);
        return LINK_BROKEN;
      }
    }
    const rest = segments.bytes - taken;
    if (rest > 0) {
      const [first, second] = this.#buffer.extend(rest);
      segments.copyTo(first, taken);
      if (second.length > 0) segments.copyTo(second, taken + first.length);
    }
    this.#credit.forwarded(taken);
    return LINK_AGAIN;
  }

  /** {@inheritDoc HostLink.flush} */
  flush(): number {
    const stream = this.#stream;
    const buffer = this.#buffer;
    while (stream !== null && buffer.length > 0) {
      const piece = buffer.peek();
      const taken = stream.writeBytes(piece);
      if (taken === STREAM_BROKEN) {
        this.discard();
        return LINK_BROKEN;
      }
      buffer.drop(taken);
      this.#credit.forwarded(taken);
      if (taken < piece.length) break;
    }
    return LINK_AGAIN;
  }

  /** {@inheritDoc HostLink.transmit} */
  transmit(rx: RxWriter, header: PacketHeader): number {
    const stream = this.#stream;
    if (stream === null) return LINK_AGAIN;
    const credit = this.#credit;
    const free = credit.peerFree;
    if (free === 0) return LINK_NO_CREDIT;
    const hint = this.#readHint;
    const packets = credit.packetsFree < hint ? credit.packetsFree : hint;
    const got = rx.sendData(header, credit, stream, free, packets);
    if (got > 0) {
      if (got === rx.offered) {
        if (hint < READ_HINT_MAX_BUFFERS) this.#readHint = hint * 2;
      } else if (got < rx.offered >>> 2 && hint > 1) {
        this.#readHint = hint >>> 1;
      }
    }
    return got;
  }

  /** {@inheritDoc HostLink.shutdownWrite} */
  shutdownWrite(): void {
    this.#stream?.shutdownWrite();
  }

  /** {@inheritDoc HostLink.shutdownRead} */
  shutdownRead(): void {
    this.#stream?.shutdownRead();
  }

  /** {@inheritDoc HostLink.discard} */
  discard(): void {
    this.#credit.forwarded(this.#buffer.length);
    this.#buffer.clear();
  }

  /** {@inheritDoc HostLink.close} */
  close(reset: boolean): void {
    const stream = this.#stream;
    this.#stream = null;
    if (stream === null) return;
    stream.close(reset);
    this.#buffer.clear();
  }

  /** {@inheritDoc HostLink.save} */
  save(): LinkState {
    return {
      buffered: base64(this.#buffer.copy()),
      messages: [],
      outgoing: null,
    };
  }

  /** {@inheritDoc HostLink.restore} */
  restore(state: LinkState): void {
    this.#buffer.push(bytesOfBase64(state.buffered));
  }
}
