import type { StreamEvents } from "../vsock/host.ts";
import { SystemError } from "./errno.ts";
import {
  EPOLLERR,
  EPOLLET,
  EPOLLHUP,
  EPOLLIN,
  EPOLLOUT,
  EPOLLPRI,
  EPOLLRDHUP,
  type EventLoop,
  type FdHandler,
} from "./event_loop.ts";
import {
  closeFd,
  SHUT_RD,
  SHUT_RDWR,
  SHUT_WR,
  shutdownSocket,
} from "./socket.ts";
import type { VectorIo } from "./vector_io.ts";

const IDLE_EVENTS = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLET;
/** Events after which there may be something behind what a read finds. */
const END_EVENTS = EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR;
const BLOCKED_EVENTS = IDLE_EVENTS | EPOLLOUT;

/** Who keeps a {@link UnixEnd}. */
export interface EndOwner {
  /** The end has given its descriptor back. */
  endClosed(end: UnixEnd): void;
}

/**
 * A host program's end of a connection, whatever it carries: a connected, non-blocking Unix socket, which
 * the end owns.
 *
 * Room to write is watched only after a write that did not fit: otherwise every read of the host
 * program would wake the loop.
 */
export class UnixEnd implements FdHandler {
  /** Moves bytes between sockets and guest memory. */
  protected readonly io: VectorIo;
  /** The socket; -1 once it is closed. */
  protected fd: number;
  readonly #loop: EventLoop;
  readonly #owner: EndOwner;
  readonly #events: StreamEvents;
  #readBlocked = true;
  // Nothing has come since a read took all there was.
  #drained = false;
  // An event has told of the end, or of a byte out of band: a read ends before it, and no other event may come.
  #marked = false;
  #writeBlocked = false;
  #watchesRoom = false;
  #hungUp = false;

  /**
   * Takes `fd` over, which may be watched already, and tells `events` what happens on it, from the loop's next turn on.
   *
   * Where epoll cannot watch it, the end is broken from the start, and says so on that turn.
   */
  constructor(
    loop: EventLoop,
    io: VectorIo,
    fd: number,
    events: StreamEvents,
    owner: EndOwner,
  ) {
    this.#loop = loop;
    this.io = io;
    this.fd = fd;
    this.#events = events;
    this.#owner = owner;
    try {
      if (loop.watches(fd)) loop.change(fd, IDLE_EVENTS, this);
      else loop.register(fd, IDLE_EVENTS, this);
    } catch (error) {
      if (!(error instanceof SystemError)) throw error;
      closeFd(fd);
      this.fd = -1;
      loop.after(0, () => {
        events.hostReadable();
        events.hostHangup();
        owner.endClosed(this);
      });
    }
  }

  /** There was nothing to read: an event tells when there is. */
  protected readBlocked(): void {
    this.#readBlocked = true;
    this.#drained = false;
  }

  /**
   * A read has found less than it could take, so that the next one would find nothing: an event tells of
   * what comes after it.
   */
  protected readAll(): void {
    if (this.#marked) return;
    this.#readBlocked = true;
    this.#drained = true;
  }

  /** True where the next read would find nothing; true once. */
  protected takeDrained(): boolean {
    const drained = this.#drained;
    this.#drained = false;
    return drained;
  }

  /** There was no room for all: an event tells when there is. */
  protected writeBlocked(): void {
    this.#writeBlocked = true;
    if (this.#watchesRoom) return;
    this.#watchesRoom = true;
    this.#loop.change(this.fd, BLOCKED_EVENTS, this);
  }

  /** Ends the guest's sending side. */
  shutdownWrite(): void {
    if (this.fd >= 0) shutdownSocket(this.fd, SHUT_WR);
  }

  /** Ends the guest's receiving side. */
  shutdownRead(): void {
    if (this.fd >= 0) shutdownSocket(this.fd, SHUT_RD);
  }

  /**
   * Ends it. What was written can still be read by the host program, then comes its end of file.
   * With `reset` it reads "connection reset" where it had sent bytes that nobody took; a Unix socket
   * has no other way to say that.
   */
  close(reset: boolean): void {
    const fd = this.fd;
    if (fd < 0) return;
    this.fd = -1;
    this.#loop.forget(fd);
    if (!reset) {
      // Unread input would turn the host program's end of file into "connection reset".
      shutdownSocket(fd, SHUT_RDWR);
      this.io.discard(fd);
    }
    closeFd(fd);
    this.#owner.endClosed(this);
  }

  /** {@inheritDoc FdHandler.onEvents} */
  onEvents(events: number): void {
    if ((events & END_EVENTS) !== 0) this.#marked = true;
    this.#drained = false;
    if (
      this.#readBlocked &&
      (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) !== 0
    ) {
      this.#readBlocked = false;
      this.#events.hostReadable();
    }
    if ((events & EPOLLOUT) !== 0 && this.fd >= 0) {
      if (this.#writeBlocked) {
        this.#writeBlocked = false;
        this.#events.hostWritable();
      } else if (this.#watchesRoom) {
        this.#watchesRoom = false;
        this.#loop.change(this.fd, IDLE_EVENTS, this);
      }
    }
    if ((events & EPOLLHUP) !== 0 && this.fd >= 0 && !this.#hungUp) {
      this.#hungUp = true;
      this.#events.hostHangup();
    }
  }
}
