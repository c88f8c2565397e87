import {
  type HostStream,
  STREAM_AGAIN,
  STREAM_BROKEN,
  STREAM_EOF,
  type StreamEvents,
} from "../vsock/host.ts";
import { MAX_SEGMENTS, type Segments } from "../vsock/segments.ts";
import { EAGAIN, EINTR, SystemError } from "./errno.ts";
import {
  EPOLLERR,
  EPOLLET,
  EPOLLHUP,
  EPOLLIN,
  EPOLLOUT,
  EPOLLRDHUP,
  type EventLoop,
  type FdHandler,
} from "./event_loop.ts";
import { addressOf, errno, fixedBytes, libc } from "./ffi.ts";
import {
  closeFd,
  receiveBytes,
  sendBytes,
  SHUT_RD,
  SHUT_RDWR,
  SHUT_WR,
  shutdownSocket,
} from "./socket.ts";

const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;

const IOVEC_WORDS = 4;
const MSGHDR_BYTES = 56;
const MSG_IOV = 16;
/** Index of the low half of `msg_iovlen` in 32-bit words. */
const MSG_IOVLEN_WORD = 6;

const SCRATCH_BYTES = 65_536;
/**
 * Unread bytes that a graceful close throws away; more than a socket holds by default (208 KiB).
 * Beyond it the host program may read "connection reset" instead of its end of file.
 */
const MAX_DISCARD_BYTES = 8 * 1024 * 1024;

const IDLE_EVENTS = EPOLLIN | EPOLLRDHUP | EPOLLET;
const BLOCKED_EVENTS = IDLE_EVENTS | EPOLLOUT;

/**
 * Gathering writes and scattering reads between a socket and guest memory, straight at the
 * addresses where the memory is mapped: the kernel copies, JavaScript touches no payload byte.
 * Memory without an address is copied through a scratch buffer.
 *
 * One serves all streams of a thread. The calls return a count, 0 at the end of file, or a
 * negative errno.
 */
export class VectorIo {
  // The list of (base, length) that readv and sendmsg take: per segment base low, base high,
  // length, 0. Halves of 32 bits, because a BigInt costs 20 times as much.
  #iovec: Uint32Array<ArrayBuffer> = new Uint32Array(
    new ArrayBuffer(MAX_SEGMENTS * IOVEC_WORDS * 4),
  );
  #header: Uint32Array<ArrayBuffer> = new Uint32Array(
    new ArrayBuffer(MSGHDR_BYTES),
  );
  #scratch: Uint8Array<ArrayBuffer> = fixedBytes(SCRATCH_BYTES);

  /** Makes the lists; they are reused by every call. */
  constructor() {
    const iovecs = BigInt(addressOf(this.#iovec));
    new DataView(this.#header.buffer).setBigUint64(MSG_IOV, iovecs, true);
  }

  /** Fills the list; false where some of the memory has no address. */
  #point(segments: Segments): boolean {
    const { count, region, offset, length } = segments;
    const regions = segments.memory.regions;
    const iovec = this.#iovec;
    let at = 0;
    for (let i = 0; i < count; i++) {
      const base = regions[region[i]!]!.hostAddress;
      if (base === 0) return false;
      const address = base + offset[i]!;
      iovec[at] = address; // modulo 2^32
      iovec[at + 1] = address / 0x1_0000_0000;
      iovec[at + 2] = length[i]!;
      at += IOVEC_WORDS;
    }
    return true;
  }

  /** Sends segments; fewer bytes than there are only when the socket is full. */
  write(fd: number, from: Segments): number {
    if (!this.#point(from)) return this.#writeCopied(fd, from);
    const header = this.#header;
    header[MSG_IOVLEN_WORD] = from.count;
    for (;;) {
      const sent = libc().sendmsg(
        fd,
        header,
        MSG_NOSIGNAL | MSG_DONTWAIT,
      );
      if (sent >= 0) return sent;
      const error = errno();
      if (error !== EINTR) return -error;
    }
  }

  #writeCopied(fd: number, from: Segments): number {
    const scratch = this.#scratch;
    let done = 0;
    while (done < from.bytes) {
      const length = from.copyTo(scratch, done);
      const sent = sendBytes(fd, scratch, length);
      if (sent < 0) return sent === -EAGAIN && done > 0 ? done : sent;
      done += sent;
      if (sent < length) break;
    }
    return done;
  }

  /** Receives into segments. */
  read(fd: number, into: Segments): number {
    if (!this.#point(into)) {
      const scratch = this.#scratch;
      const length = Math.min(into.bytes, scratch.length);
      const received = receiveBytes(fd, scratch, length);
      if (received > 0) into.copyFrom(scratch.subarray(0, received));
      return received;
    }
    for (;;) {
      const received = libc().readv(fd, this.#iovec, into.count);
      if (received >= 0) return received;
      const error = errno();
      if (error !== EINTR) return -error;
    }
  }

  /** Throws unread bytes away, boundedly. */
  discard(fd: number): void {
    for (let left = MAX_DISCARD_BYTES; left > 0;) {
      const received = receiveBytes(fd, this.#scratch, SCRATCH_BYTES);
      if (received <= 0) return;
      left -= received;
    }
  }
}

/** Who keeps a {@link UnixStream}. */
export interface StreamOwner {
  /** The stream has given its descriptor back. */
  streamClosed(stream: UnixStream): void;
}

/**
 * A host program's end of a connection: a connected, non-blocking stream socket, which the
 * stream owns.
 *
 * Room to write is watched only after a write that did not fit: otherwise every read of the host
 * program would wake the loop.
 */
export class UnixStream implements HostStream, FdHandler {
  #loop: EventLoop;
  #io: VectorIo;
  #owner: StreamOwner;
  #events: StreamEvents;
  #fd: number;
  #readBlocked = true;
  #writeBlocked = false;
  #watchesRoom = false;
  #hungUp = false;

  /**
   * Takes `fd` over and tells `events` what happens on it, from the loop's next turn on.
   *
   * Where epoll cannot watch it, the stream is broken from the start, and says so on that turn.
   */
  constructor(
    loop: EventLoop,
    io: VectorIo,
    fd: number,
    events: StreamEvents,
    owner: StreamOwner,
  ) {
    this.#loop = loop;
    this.#io = io;
    this.#fd = fd;
    this.#events = events;
    this.#owner = owner;
    try {
      loop.register(fd, IDLE_EVENTS, this);
    } catch (error) {
      if (!(error instanceof SystemError)) throw error;
      closeFd(fd);
      this.#fd = -1;
      loop.after(0, () => {
        events.hostReadable();
        events.hostHangup();
        owner.streamClosed(this);
      });
    }
  }

  /** {@inheritDoc HostStream.write} */
  write(from: Segments): number {
    if (this.#fd < 0) return STREAM_BROKEN;
    return this.#written(this.#io.write(this.#fd, from), from.bytes);
  }

  /** {@inheritDoc HostStream.writeBytes} */
  writeBytes(from: Uint8Array): number {
    if (this.#fd < 0) return STREAM_BROKEN;
    const length = from.length;
    const sent = sendBytes(
      this.#fd,
      from as Uint8Array<ArrayBuffer>,
      length,
    );
    return this.#written(sent, length);
  }

  #written(sent: number, length: number): number {
    if (sent === length) return sent;
    if (sent < 0 && sent !== -EAGAIN) return STREAM_BROKEN;
    this.#writeBlocked = true;
    if (!this.#watchesRoom) {
      this.#watchesRoom = true;
      this.#loop.change(this.#fd, BLOCKED_EVENTS, this);
    }
    return sent < 0 ? 0 : sent;
  }

  /** {@inheritDoc HostStream.read} */
  read(into: Segments): number {
    if (this.#fd < 0) return STREAM_BROKEN;
    const received = this.#io.read(this.#fd, into);
    if (received > 0) return received;
    if (received === 0 && into.bytes > 0) return STREAM_EOF;
    if (received < 0 && received !== -EAGAIN) return STREAM_BROKEN;
    this.#readBlocked = true;
    return STREAM_AGAIN;
  }

  /** {@inheritDoc HostStream.shutdownWrite} */
  shutdownWrite(): void {
    if (this.#fd >= 0) shutdownSocket(this.#fd, SHUT_WR);
  }

  /** {@inheritDoc HostStream.shutdownRead} */
  shutdownRead(): void {
    if (this.#fd >= 0) shutdownSocket(this.#fd, SHUT_RD);
  }

  /**
   * {@inheritDoc HostStream.close}
   *
   * What was written can still be read by the host program, then comes its end of file. With
   * `reset` it reads "connection reset" where it had sent bytes that nobody took; a Unix socket
   * has no other way to say that.
   */
  close(reset: boolean): void {
    const fd = this.#fd;
    if (fd < 0) return;
    this.#fd = -1;
    this.#loop.unregister(fd);
    if (!reset) {
      // Unread input would turn the host program's end of file into "connection reset".
      shutdownSocket(fd, SHUT_RDWR);
      this.#io.discard(fd);
    }
    closeFd(fd);
    this.#owner.streamClosed(this);
  }

  /** {@inheritDoc FdHandler.onEvents} */
  onEvents(events: number): void {
    if (
      this.#readBlocked &&
      (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) !== 0
    ) {
      this.#readBlocked = false;
      this.#events.hostReadable();
    }
    if ((events & EPOLLOUT) !== 0 && this.#fd >= 0) {
      if (this.#writeBlocked) {
        this.#writeBlocked = false;
        this.#events.hostWritable();
      } else if (this.#watchesRoom) {
        this.#watchesRoom = false;
        this.#loop.change(this.#fd, IDLE_EVENTS, this);
      }
    }
    if ((events & EPOLLHUP) !== 0 && this.#fd >= 0 && !this.#hungUp) {
      this.#hungUp = true;
      this.#events.hostHangup();
    }
  }
}
