import type { Diagnostics } from "../diagnostics.ts";
import { VhostUserError } from "../vhost_user/errors.ts";
import type { MappedMemory, SessionPorts } from "../vhost_user/ports.ts";
import { EAGAIN, SystemError } from "./errno.ts";
import {
  EPOLLET,
  EPOLLIN,
  type EventLoop,
  type FdHandler,
} from "./event_loop.ts";
import { fixedBytes } from "./ffi.ts";
import { createMemfd, duplicateFd, Mapping } from "./mmap.ts";
import {
  closeFd,
  type FdChannel,
  isSocket,
  raiseSignal,
  receiveBytes,
  type Signal,
  signalOf,
  waitWritable,
} from "./socket.ts";

/** How long a front-end may leave a reply unread before it is given up. */
export const REPLY_TIMEOUT_MS = 1_000;

const DRAIN_BYTES = 4_096;

/** What the ports tell their server. */
export interface PortEvents {
  /** Queue `index` was kicked. */
  kicked(index: number): void;
}

/**
 * A kick descriptor. An eventfd is never read: edge-triggered, each write to it is an event of its
 * own, which saves a system call a kick and cannot block on an eventfd that its owner made blocking.
 */
class Kick implements FdHandler {
  readonly fd: number;
  readonly #index: number;
  readonly #events: PortEvents;
  readonly #scratch: Uint8Array<ArrayBuffer> | null;

  constructor(fd: number, index: number, events: PortEvents) {
    this.fd = fd;
    this.#index = index;
    this.#events = events;
    this.#scratch = isSocket(fd) ? fixedBytes(DRAIN_BYTES) : null;
  }

  onEvents(_events: number): void {
    const scratch = this.#scratch;
    if (scratch !== null) {
      // A full read may have left some; a front-end that floods is served again at its next write.
      receiveBytes(this.fd, scratch, scratch.length);
    }
    this.#events.kicked(this.#index);
  }
}

/** The descriptors and mappings of one vhost-user session; it owns all that it is given. */
export class FdPorts implements SessionPorts {
  /** Calls that were signalled. */
  calls = 0;

  readonly #loop: EventLoop;
  readonly #socket: number;
  readonly #channel: FdChannel;
  readonly #events: PortEvents;
  readonly #diagnostics: Diagnostics;
  readonly #side: number;
  readonly #kicks: (Kick | null)[] = [];
  readonly #calls: (Signal | null)[] = [];
  readonly #errs: (Signal | null)[] = [];
  readonly #mappings = new Set<Mapping>();
  readonly #watched = new Set<Mapping>();
  #backendChannel = -1;

  /** Makes the ports of the front-end at `socket`, which stays the caller's; `side` is what its kicks come from. */
  constructor(
    loop: EventLoop,
    socket: number,
    channel: FdChannel,
    events: PortEvents,
    diagnostics: Diagnostics,
    side: number,
  ) {
    this.#loop = loop;
    this.#socket = socket;
    this.#channel = channel;
    this.#events = events;
    this.#diagnostics = diagnostics;
    this.#side = side;
  }

  /** True when there is memory that could not be sealed against shrinking: see `mmap.ts`. */
  get watching(): boolean {
    return this.#watched.size > 0;
  }

  /** False when a file has shrunk under its mapping, whose bytes must not be touched any more. */
  intact(): boolean {
    for (const mapping of this.#watched) {
      if (!mapping.intact()) return false;
    }
    return true;
  }

  /** {@inheritDoc SessionPorts.map} */
  map(fd: number, size: number, offset: number): MappedMemory {
    const mapping = mapped(fd, size, offset);
    if (!mapping.sealed) {
      this.#watched.add(mapping);
      this.#diagnostics.count("memory_unsealed");
      this.#diagnostics.log(
        "debug",
        "the front-end's memory takes no seal against shrinking; it is watched instead",
      );
    }
    return this.#keep(mapping);
  }

  #keep(mapping: Mapping): MappedMemory {
    this.#mappings.add(mapping);
    return {
      buffer: mapping.buffer,
      hostAddress: mapping.hostAddress,
      release: () => this.#release(mapping),
    };
  }

  #release(mapping: Mapping): void {
    this.#mappings.delete(mapping);
    this.#watched.delete(mapping);
    mapping.release();
  }

  /** {@inheritDoc SessionPorts.allocate} */
  allocate(size: number): { memory: MappedMemory; fd: number } {
    try {
      const fd = createMemfd(size);
      try {
        const memory = new Mapping(duplicateFd(fd), size, 0);
        return { memory: this.#keep(memory), fd };
      } catch (error) {
        closeFd(fd);
        throw error;
      }
    } catch (error) {
      throw mapFailure(error);
    }
  }

  /** {@inheritDoc SessionPorts.setKick} */
  setKick(index: number, fd: number): void {
    const old = this.#kicks[index] ?? null;
    if (old !== null) {
      this.#kicks[index] = null;
      // Before closing: the front-end holds the same open file, so epoll would go on watching it.
      this.#loop.unregister(old.fd);
      closeFd(old.fd);
    }
    if (fd < 0) return;
    const kick = new Kick(fd, index, this.#events);
    try {
      this.#loop.register(fd, EPOLLIN | EPOLLET, kick, this.#side);
    } catch (error) {
      closeFd(fd);
      if (!(error instanceof SystemError)) throw error;
      throw new VhostUserError(
        "BAD_VALUE",
        "VHOST_USER_SET_VRING_KICK",
        `Cannot use the kick descriptor of ring ${index}: ${error.message}`,
      );
    }
    this.#kicks[index] = kick;
  }

  /** {@inheritDoc SessionPorts.setCall} */
  setCall(index: number, fd: number): void {
    replaceSignal(this.#calls, index, fd);
  }

  /** {@inheritDoc SessionPorts.setErr} */
  setErr(index: number, fd: number): void {
    replaceSignal(this.#errs, index, fd);
  }

  /** {@inheritDoc SessionPorts.call} */
  call(index: number): void {
    const signal = this.#calls[index];
    if (!signal) return;
    this.calls++;
    raiseSignal(signal);
  }

  /** {@inheritDoc SessionPorts.signalErr} */
  signalErr(index: number): void {
    const signal = this.#errs[index];
    if (signal) raiseSignal(signal);
  }

  /** {@inheritDoc SessionPorts.setBackendChannel} */
  setBackendChannel(fd: number): void {
    if (this.#backendChannel >= 0) closeFd(this.#backendChannel);
    this.#backendChannel = fd;
  }

  /** {@inheritDoc SessionPorts.sendBackendRequest} */
  sendBackendRequest(message: Uint8Array): boolean {
    const fd = this.#backendChannel;
    if (fd < 0) return false;
    const bytes = new Uint8Array(message);
    const sent = this.#channel.send(fd, bytes, bytes.length, []);
    if (sent === bytes.length) return true;
    this.#diagnostics.count("backend_requests_dropped");
    if (sent > 0) {
      // Half a message would make nonsense of all that follow.
      this.setBackendChannel(-1);
    }
    return sent === -EAGAIN;
  }

  /** {@inheritDoc SessionPorts.reply} */
  reply(message: Uint8Array, fds: readonly number[]): void {
    const deadline = this.#loop.now() + REPLY_TIMEOUT_MS;
    let bytes = new Uint8Array(message);
    while (bytes.length > 0) {
      const sent = this.#channel.send(
        this.#socket,
        bytes,
        bytes.length,
        bytes.length === message.length ? fds : [],
      );
      if (sent >= 0) {
        bytes = bytes.subarray(sent);
        continue;
      }
      const left = Math.ceil(deadline - this.#loop.now());
      if (
        sent !== -EAGAIN || left <= 0 || !waitWritable(this.#socket, left)
      ) {
        throw new VhostUserError(
          "SESSION_CLOSED",
          "Communication",
          sent === -EAGAIN
            ? "Cannot reply: the front-end does not read"
            : "Cannot reply: the front-end is gone",
          true,
        );
      }
    }
  }

  /** {@inheritDoc SessionPorts.closeFd} */
  closeFd(fd: number): void {
    closeFd(fd);
  }

  /** Gives back what a session has left: nothing, unless it failed. */
  close(): void {
    for (const mapping of this.#mappings) this.#release(mapping);
    for (const index of this.#kicks.keys()) this.setKick(index, -1);
    for (const index of this.#calls.keys()) this.setCall(index, -1);
    for (const index of this.#errs.keys()) this.setErr(index, -1);
    this.setBackendChannel(-1);
  }
}

function mapped(fd: number, size: number, offset: number): Mapping {
  try {
    return new Mapping(fd, size, offset);
  } catch (error) {
    throw mapFailure(error);
  }
}

function mapFailure(error: unknown): unknown {
  if (error instanceof RangeError || error instanceof SystemError) {
    return new VhostUserError(
      "MAP_FAILED",
      "Memory region description",
      error.message,
    );
  }
  return error;
}

function replaceSignal(
  signals: (Signal | null)[],
  index: number,
  fd: number,
): void {
  const old = signals[index];
  if (old) closeFd(old.fd);
  signals[index] = null;
  if (fd >= 0) signals[index] = signalOf(fd);
}
