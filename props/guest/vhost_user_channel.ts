import { EAGAIN, errnoName } from "../../device/host/errno.ts";
import { fixedBytes, libc } from "../../device/host/ffi.ts";
import {
  closeFd,
  connectTo,
  FdChannel,
  waitWritable,
} from "../../device/host/socket.ts";
import { VHOST_USER_REPLY_FLAG } from "../../device/vhost_user/constants.ts";
import {
  encodeRequest,
  parseBits,
  type VhostUserMessage,
} from "../../device/vhost_user/message.ts";
import { MessageAssembler } from "../../device/vhost_user/message_assembler.ts";

const POLLIN = 1;
const CHUNK_BYTES = 4096;

/** The back-end does not answer, has hung up, or has said no. */
export class FrontEndError extends Error {
  /** `"FrontEndError"`. */
  override readonly name = "FrontEndError";
}

/**
 * Waits for one of `fds` to be readable or over, up to `timeoutMs`; the thread sleeps meanwhile.
 * Returns a mask of those that are, bit 0 for the first one.
 */
export function pollFds(fds: readonly number[], timeoutMs: number): number {
  const entries = fixedBytes(8 * fds.length);
  const fields = new DataView(entries.buffer);
  for (const [i, fd] of fds.entries()) {
    fields.setInt32(8 * i, fd, true);
    fields.setInt16(8 * i + 4, POLLIN, true);
  }
  let ready = 0;
  if (libc().poll(entries, fds.length, timeoutMs) > 0) {
    for (let i = 0; i < fds.length; i++) {
      if (fields.getInt16(8 * i + 6, true) !== 0) ready |= 1 << i;
    }
  }
  return ready;
}

/** A front-end's end of a vhost-user socket: messages with descriptors, one at a time. */
export class VhostUserChannel {
  /** The socket. */
  readonly fd: number;
  /** True when the back-end has hung up. */
  ended = false;
  readonly #timeoutMs: number;
  readonly #channel: FdChannel = new FdChannel();
  readonly #assembler: MessageAssembler = new MessageAssembler();
  readonly #chunk: Uint8Array<ArrayBuffer> = fixedBytes(CHUNK_BYTES);
  #open = true;

  /**
   * Connects to the back-end at `path`; an answer may take `timeoutMs`.
   *
   * @throws {FrontEndError} when nobody listens there.
   */
  constructor(path: string, timeoutMs: number) {
    const fd = connectTo(path);
    if (fd < 0) {
      throw new FrontEndError(`Cannot connect to ${path}: ${errnoName(-fd)}`);
    }
    this.fd = fd;
    this.#timeoutMs = timeoutMs;
  }

  /**
   * Sends bytes as they are, with copies of `fds`.
   *
   * @throws {FrontEndError} when the back-end has hung up or takes nothing for too long.
   */
  sendBytes(bytes: Uint8Array, fds: readonly number[] = []): void {
    const copy = fixedBytes(bytes.length);
    copy.set(bytes);
    for (let done = 0; done < copy.length;) {
      const rest = copy.subarray(done);
      const passed = done === 0 ? fds : [];
      const sent = this.#channel.send(this.fd, rest, rest.length, passed);
      if (sent >= 0) {
        done += sent;
      } else if (sent !== -EAGAIN || !waitWritable(this.fd, this.#timeoutMs)) {
        this.ended ||= sent !== -EAGAIN;
        throw new FrontEndError(`Cannot send: ${errnoName(-sent)}`);
      }
    }
  }

  /** Sends a request. */
  send(
    request: number,
    payload?: Uint8Array,
    fds: readonly number[] = [],
    needReply = false,
  ): void {
    this.sendBytes(encodeRequest(request, payload, needReply), fds);
  }

  /** The next message of the back-end, or null after `timeoutMs` or when it has hung up. */
  receive(timeoutMs: number = this.#timeoutMs): VhostUserMessage | null {
    const until = performance.now() + timeoutMs;
    for (;;) {
      const message = this.#assembler.next();
      if (message !== null) return message;
      const wanted = Math.min(this.#assembler.wanted, CHUNK_BYTES);
      const got = this.#channel.receive(this.fd, this.#chunk, wanted);
      if (got > 0) {
        const bytes = this.#chunk.subarray(0, got);
        this.#assembler.push(bytes, this.#channel.fds);
      } else if (got === -EAGAIN) {
        const left = Math.ceil(until - performance.now());
        if (left <= 0) return null;
        pollFds([this.fd], left);
      } else {
        this.ended = true;
        return null;
      }
    }
  }

  /**
   * Sends a request and returns the payload of its reply.
   *
   * @throws {FrontEndError} when there is none, or it answers something else.
   */
  ask(
    request: number,
    payload?: Uint8Array,
    fds: readonly number[] = [],
    needReply = false,
  ): Uint8Array {
    const { payload: answer, fds: received } = this.exchange(
      request,
      payload,
      fds,
      needReply,
    );
    for (const fd of received) closeFd(fd);
    return answer;
  }

  /**
   * Sends a request and returns its reply, whose descriptors are the caller's.
   *
   * @throws {FrontEndError} when there is none, or it answers something else.
   */
  exchange(
    request: number,
    payload?: Uint8Array,
    fds: readonly number[] = [],
    needReply = false,
  ): VhostUserMessage {
    this.send(request, payload, fds, needReply);
    const reply = this.receive();
    if (reply === null) {
      throw new FrontEndError(
        `Cannot go on: request ${request} was ${
          this.ended ? "answered by hanging up" : "not answered"
        }`,
      );
    }
    if (
      reply.request !== request || (reply.flags & VHOST_USER_REPLY_FLAG) === 0
    ) {
      for (const fd of reply.fds) closeFd(fd);
      throw new FrontEndError(
        `Cannot go on: request ${request} was answered by ${reply.request} with flags ${reply.flags}`,
      );
    }
    return reply;
  }

  /**
   * Sends a request that has no reply of its own and waits for it to be acknowledged.
   *
   * @throws {FrontEndError} when it was refused.
   */
  acknowledge(
    request: number,
    payload?: Uint8Array,
    fds: readonly number[] = [],
  ): void {
    const result = parseBits(this.ask(request, payload, fds, true));
    if (result !== 0n) {
      throw new FrontEndError(`Cannot go on: request ${request} was refused`);
    }
  }

  /** Hangs up. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    for (const fd of this.#assembler.close()) closeFd(fd);
    closeFd(this.fd);
  }
}
