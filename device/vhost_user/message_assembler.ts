import { MAX_MESSAGE_FDS, VHOST_USER_HDR_SIZE } from "./constants.ts";
import { VhostUserError } from "./errors.ts";
import {
  parseHeader,
  type VhostUserHeader,
  type VhostUserMessage,
} from "./message.ts";

/** Descriptors that arrived with a chunk, by the chunk's last byte. */
type Arrival = { at: number; fds: readonly number[] };

/**
 * Cuts a byte stream with descriptors into messages.
 *
 * Linux ends a `recvmsg` behind the data that descriptors came with, so the descriptors of a chunk
 * belong to the message that holds the chunk's last byte. Reading no more than
 * {@link MessageAssembler.wanted} bytes at a time makes that plain: then no chunk holds bytes of two
 * messages.
 *
 * It owns the descriptors until it hands them out; {@link MessageAssembler.close} gives back the rest.
 */
export class MessageAssembler {
  #buffer: Uint8Array = new Uint8Array(1024);
  #length = 0;
  /** Stream position of the buffer's first byte. */
  #start = 0;
  #header: VhostUserHeader | null = null;
  #arrivals: Arrival[] = [];

  /** Bytes up to the end of the header, or of the payload, that comes next. */
  get wanted(): number {
    const end = this.#header === null
      ? VHOST_USER_HDR_SIZE
      : VHOST_USER_HDR_SIZE + this.#header.size;
    return Math.max(end - this.#length, 0);
  }

  /** Takes the bytes of one `recvmsg`, which are copied, with the descriptors that came with it. */
  push(bytes: Uint8Array, fds: readonly number[] = []): void {
    const length = this.#length + bytes.length;
    if (length > this.#buffer.length) {
      const larger = new Uint8Array(Math.max(length, 2 * this.#buffer.length));
      larger.set(this.#buffer.subarray(0, this.#length));
      this.#buffer = larger;
    }
    this.#buffer.set(bytes, this.#length);
    this.#length = length;
    if (fds.length !== 0) {
      const at = this.#start + Math.max(length - 1, 0);
      this.#arrivals.push({ at, fds: [...fds] });
    }
    this.#readHeaderSize();
  }

  /**
   * Returns the next whole message, or null where more bytes are needed.
   *
   * @throws {VhostUserError} with `fatal` when the stream is no vhost-user stream: `BAD_VERSION`,
   * `MESSAGE_TOO_LONG` or `TOO_MANY_FDS`. It is to be closed then.
   */
  next(): VhostUserMessage | null {
    if (this.#header === null && this.#length >= VHOST_USER_HDR_SIZE) {
      this.#header = parseHeader(this.#buffer.subarray(0, this.#length));
    }
    const header = this.#header;
    const end = VHOST_USER_HDR_SIZE + (header?.size ?? 0);
    const stop = this.#start + end;
    let count = 0;
    for (const { at, fds } of this.#arrivals) {
      if (at < stop) count += fds.length;
    }
    if (count > MAX_MESSAGE_FDS) {
      throw new VhostUserError(
        "TOO_MANY_FDS",
        "Communication",
        `Cannot take a message: ${count} descriptors came with it, more than ${MAX_MESSAGE_FDS}`,
        true,
      );
    }
    if (header === null) return null;
    const { request, flags } = header;
    if (this.#length < end) return null;
    const payload = this.#buffer.slice(VHOST_USER_HDR_SIZE, end);
    const fds: number[] = [];
    while (this.#arrivals.length !== 0 && this.#arrivals[0]!.at < stop) {
      fds.push(...this.#arrivals.shift()!.fds);
    }
    this.#buffer.copyWithin(0, end, this.#length);
    this.#length -= end;
    this.#start = stop;
    this.#header = null;
    this.#readHeaderSize();
    return { request, flags, payload, fds };
  }

  /** Forgets everything and returns the descriptors that were not handed out, to be closed. */
  close(): number[] {
    const fds = this.#arrivals.flatMap((arrival) => arrival.fds);
    this.#arrivals = [];
    this.#length = 0;
    this.#header = null;
    return fds;
  }

  // For `wanted`; what is wrong with the header is said by next().
  #readHeaderSize(): void {
    if (this.#header !== null || this.#length < VHOST_USER_HDR_SIZE) return;
    try {
      this.#header = parseHeader(this.#buffer.subarray(0, this.#length));
    } catch (error) {
      if (!(error instanceof VhostUserError)) throw error;
    }
  }
}
