import {
  type HostStream,
  STREAM_AGAIN,
  STREAM_BROKEN,
  STREAM_EOF,
} from "../vsock/host.ts";
import type { Segments } from "../vsock/segments.ts";
import { EAGAIN } from "./errno.ts";
import { sendBytes } from "./socket.ts";
import { UnixEnd } from "./unix_end.ts";

/** A host program's end of a stream: a connected stream socket. */
export class UnixStream extends UnixEnd implements HostStream {
  /** {@inheritDoc HostStream.write} */
  write(from: Segments): number {
    if (this.fd < 0) return STREAM_BROKEN;
    return this.#written(this.io.write(this.fd, from), from.bytes);
  }

  /** {@inheritDoc HostStream.writeBytes} */
  writeBytes(from: Uint8Array): number {
    if (this.fd < 0) return STREAM_BROKEN;
    const length = from.length;
    const sent = sendBytes(this.fd, from as Uint8Array<ArrayBuffer>, length);
    return this.#written(sent, length);
  }

  #written(sent: number, length: number): number {
    if (sent === length) return sent;
    if (sent < 0 && sent !== -EAGAIN) return STREAM_BROKEN;
    this.writeBlocked();
    return sent < 0 ? 0 : sent;
  }

  /** {@inheritDoc HostStream.read} */
  read(into: Segments): number {
    if (this.fd < 0) return STREAM_BROKEN;
    if (this.takeDrained()) return STREAM_AGAIN;
    const received = this.io.read(this.fd, into);
    if (received > 0) {
      if (this.io.drained) this.readAll();
      return received;
    }
    if (received === 0 && into.bytes > 0) return STREAM_EOF;
    if (received < 0 && received !== -EAGAIN) return STREAM_BROKEN;
    this.readBlocked();
    return STREAM_AGAIN;
  }
}
