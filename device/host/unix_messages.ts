import {
  type HostMessages,
  MESSAGE_AGAIN,
  MESSAGE_TOO_LONG,
  type MessageEvents,
  STREAM_BROKEN,
  STREAM_EOF,
} from "../vsock/host.ts";
import type { Segments } from "../vsock/segments.ts";
import { EAGAIN, EMSGSIZE } from "./errno.ts";
import type { EventLoop } from "./event_loop.ts";
import { prepareMessageSocket, sendBytes } from "./socket.ts";
import { type EndOwner, UnixEnd } from "./unix_end.ts";
import { END_OF_FILE, type VectorIo } from "./vector_io.ts";

/**
 * A host program's end of a seqpacket connection: a connected SOCK_SEQPACKET socket.
 *
 * Unix sockets have messages, no records: a guest's end of a record is lost on the way. A host program
 * reads an empty message as 0 bytes, as it reads the end of file.
 */
export class UnixMessages extends UnixEnd implements HostMessages {
  /** Always false: Unix sockets have no records. */
  readonly endOfRecord: boolean = false;

  /** Takes `fd` over; see {@link UnixEnd}. */
  constructor(
    loop: EventLoop,
    io: VectorIo,
    fd: number,
    events: MessageEvents,
    owner: EndOwner,
  ) {
    prepareMessageSocket(fd);
    super(loop, io, fd, events, owner);
  }

  /** {@inheritDoc HostMessages.writeMessage} */
  writeMessage(from: Segments): number {
    if (this.fd < 0) return STREAM_BROKEN;
    return this.#written(this.io.writeMessage(this.fd, from));
  }

  /** {@inheritDoc HostMessages.writeMessageBytes} */
  writeMessageBytes(from: Uint8Array): number {
    if (this.fd < 0) return STREAM_BROKEN;
    return this.#written(
      sendBytes(this.fd, from as Uint8Array<ArrayBuffer>, from.length),
    );
  }

  #written(sent: number): number {
    if (sent >= 0) return sent;
    if (sent === -EMSGSIZE) return MESSAGE_TOO_LONG;
    if (sent !== -EAGAIN) return STREAM_BROKEN;
    this.writeBlocked();
    return MESSAGE_AGAIN;
  }

  /** {@inheritDoc HostMessages.readMessage} */
  readMessage(into: Uint8Array): number {
    if (this.fd < 0) return STREAM_BROKEN;
    const received = this.io.readMessage(
      this.fd,
      into as Uint8Array<ArrayBuffer>,
    );
    if (received >= 0) return received;
    if (received === END_OF_FILE) return STREAM_EOF;
    if (received !== -EAGAIN) return STREAM_BROKEN;
    this.readBlocked();
    return MESSAGE_AGAIN;
  }
}
