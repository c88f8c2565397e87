import type { Diagnostics } from "../diagnostics.ts";
import type { VirtioDevice } from "../virtio_device.ts";
import { VhostUserError } from "../vhost_user/errors.ts";
import { MessageAssembler } from "../vhost_user/message_assembler.ts";
import { VhostUserSession } from "../vhost_user/session.ts";
import { EAGAIN, errnoName, SystemError } from "./errno.ts";
import {
  EPOLLET,
  EPOLLIN,
  EPOLLRDHUP,
  type EventLoop,
  type FdHandler,
  type Timer,
} from "./event_loop.ts";
import { FdPorts, type PortEvents } from "./fd_ports.ts";
import { fixedBytes } from "./ffi.ts";
import {
  acceptFrom,
  closeFd,
  FdChannel,
  listenAt,
  type Listener,
} from "./socket.ts";

/** Reads that one wake-up does for the front-end; a message takes two. */
const MAX_READS = 64;
const READ_BYTES = 8_192;
const LISTEN_BACKLOG = 4;
const ACCEPT_PAUSE_MS = 100;
/** How often rings without a kick descriptor are looked at. */
const POLL_INTERVAL_MS = 1;

/** What a {@link VhostUserServer} is made with. */
export type VhostUserServerOptions = {
  /** The loop that watches its sockets. */
  loop: EventLoop;
  /** Path of the socket that front-ends connect to. At most 107 bytes. */
  socketPath: string;
  /** The device that is served. */
  device: VirtioDevice;
  /** Counters and log. */
  diagnostics: Diagnostics;
  /** The guest's side for the loop, 0 to 31: see `BusyPoll`. */
  side: number;
};

/**
 * Serves a device to vhost-user front-ends, one after the other: when one is gone the device is
 * reset, and the next is served, which may have been waiting.
 */
export class VhostUserServer {
  /** Kicks that have arrived. */
  kicks = 0;

  readonly #loop: EventLoop;
  readonly #socketPath: string;
  readonly #device: VirtioDevice;
  readonly #diagnostics: Diagnostics;
  readonly #side: number;
  #listener: Listener | null = null;
  #retry: Timer | null = null;
  #frontEnd: FrontEnd | null = null;
  #pastCalls = 0;

  /** Makes a server that does not listen yet. */
  constructor(options: VhostUserServerOptions) {
    this.#loop = options.loop;
    this.#socketPath = options.socketPath;
    this.#device = options.device;
    this.#diagnostics = options.diagnostics;
    this.#side = options.side;
  }

  /** True while a front-end is connected. */
  get connected(): boolean {
    return this.#frontEnd !== null;
  }

  /** Interrupts that were signalled. */
  get calls(): number {
    return this.#pastCalls + (this.#frontEnd?.calls ?? 0);
  }

  /**
   * Listens for front-ends.
   *
   * @throws {RangeError} when the path is too long.
   * @throws {TypeError} when a live process listens there, or it is no socket.
   * @throws {SystemError} when the system refuses.
   */
  start(): void {
    const listener = listenAt(this.#socketPath, LISTEN_BACKLOG);
    this.#listener = listener;
    this.#loop.register(listener.fd, EPOLLIN | EPOLLET, {
      onEvents: () => this.#arrived(),
    });
  }

  /** Ends the front-end's session and removes the socket. */
  stop(): void {
    const listener = this.#listener;
    this.#listener = null;
    this.#retry?.cancel();
    if (listener !== null) {
      this.#loop.unregister(listener.fd);
      listener.close();
    }
    this.#frontEnd?.end(null);
  }

  /**
   * Makes sure that guest memory may be touched; ends the session where the front-end has shrunk
   * it. To be called at each wake-up, before the device works.
   */
  checkMemory(): void {
    this.#frontEnd?.checkMemory();
  }

  /** Ends the session because of an error of our own, so that the next front-end is served. */
  fail(error: unknown): void {
    this.#frontEnd?.fail(error);
  }

  #arrived(): void {
    if (this.#frontEnd === null) this.#accept();
    else {
      this.#diagnostics.count("front_ends_waiting");
      this.#diagnostics.log(
        "warn",
        `another front-end has connected to ${this.#socketPath}: it waits until the present one is gone`,
      );
    }
  }

  #accept(): void {
    const listener = this.#listener;
    if (listener === null || this.#frontEnd !== null) return;
    const fd = acceptFrom(listener.fd);
    if (fd === -EAGAIN) return;
    if (fd < 0) return this.#acceptLater(-fd);
    try {
      this.#frontEnd = new FrontEnd(this.#loop, fd, {
        device: this.#device,
        diagnostics: this.#diagnostics,
        side: this.#side,
        kicked: () => this.kicks++,
        ended: (frontEnd) => {
          this.#pastCalls += frontEnd.calls;
          this.#frontEnd = null;
          this.#accept();
        },
      });
    } catch (error) {
      closeFd(fd);
      if (!(error instanceof SystemError)) throw error;
      return this.#acceptLater(error.errno);
    }
    this.#diagnostics.count("front_ends");
    this.#diagnostics.log("info", "a front-end has connected");
  }

  #acceptLater(error: number): void {
    this.#diagnostics.fault(
      "front_end_not_accepted",
      () => `cannot accept a front-end: ${errnoName(error)}`,
    );
    // The edge is used up.
    this.#retry = this.#loop.after(ACCEPT_PAUSE_MS, () => this.#accept());
  }
}

type FrontEndContext = {
  device: VirtioDevice;
  diagnostics: Diagnostics;
  side: number;
  kicked(): void;
  ended(frontEnd: FrontEnd): void;
};

/** A connected front-end and its session. */
class FrontEnd implements FdHandler, PortEvents {
  readonly #loop: EventLoop;
  readonly #fd: number;
  readonly #context: FrontEndContext;
  readonly #channel = new FdChannel();
  readonly #bytes = fixedBytes(READ_BYTES);
  readonly #assembler = new MessageAssembler();
  readonly #ports: FdPorts;
  readonly #session: VhostUserSession;
  #poll: Timer | null = null;
  #open = true;

  constructor(loop: EventLoop, fd: number, context: FrontEndContext) {
    this.#loop = loop;
    this.#fd = fd;
    this.#context = context;
    this.#ports = new FdPorts(
      loop,
      fd,
      this.#channel,
      this,
      context.diagnostics,
      context.side,
    );
    loop.register(fd, EPOLLIN | EPOLLRDHUP, this);
    this.#session = new VhostUserSession(context.device, this.#ports);
  }

  get calls(): number {
    return this.#ports.calls;
  }

  kicked(index: number): void {
    this.#context.kicked();
    this.#session.kick(index);
  }

  onEvents(_events: number): void {
    this.checkMemory();
    try {
      for (let reads = 0; this.#open && reads < MAX_READS; reads++) {
        if (!this.#read()) return;
      }
    } catch (error) {
      if (error instanceof VhostUserError) {
        this.#context.diagnostics.fault(
          `vhost_user_${error.code.toLowerCase()}`,
          () => error.message,
        );
        this.end(error.message);
      } else this.fail(error);
    }
  }

  /** Takes a piece of a message; false when there is none, or the front-end is gone. */
  #read(): boolean {
    const channel = this.#channel;
    const bytes = this.#bytes;
    const wanted = Math.min(this.#assembler.wanted, bytes.length);
    const received = channel.receive(this.#fd, bytes, wanted);
    if (received === -EAGAIN) return false;
    if (received <= 0) {
      this.end("it is gone");
      return false;
    }
    // Taken over at once, so that no way out of here loses one.
    this.#assembler.push(bytes.subarray(0, received), channel.fds);
    if (channel.truncated) {
      throw new VhostUserError(
        "TOO_MANY_FDS",
        "Communication",
        "Cannot take a message: the system dropped descriptors of it",
        true,
      );
    }
    const message = this.#assembler.next();
    if (message !== null) {
      this.#session.receive(message);
      this.#pollLater();
    }
    return true;
  }

  checkMemory(): void {
    if (!this.#open || !this.#ports.watching || this.#ports.intact()) return;
    this.#context.diagnostics.count("memory_truncated");
    this.#context.diagnostics.log(
      "error",
      "the front-end has cut off memory that it shares with the device",
    );
    this.end("its memory is gone");
  }

  fail(error: unknown): void {
    this.#logOwn(error);
    this.end("of that error");
  }

  #logOwn(error: unknown): void {
    const { diagnostics } = this.#context;
    diagnostics.count("internal_errors");
    diagnostics.log(
      "error",
      `an error of the device itself: ${
        error instanceof Error ? error.stack ?? error.message : error
      }`,
    );
  }

  #pollLater(): void {
    if (!this.#open || this.#poll?.pending || !this.#session.polling) return;
    this.#poll = this.#loop.after(POLL_INTERVAL_MS, () => {
      this.#session.poll();
      this.#pollLater();
    });
  }

  /** Ends the session and closes the connection; `reason` null says that it is we who stop. */
  end(reason: string | null): void {
    if (!this.#open) return;
    this.#open = false;
    this.#poll?.cancel();
    this.#loop.unregister(this.#fd);
    try {
      this.#session.close();
    } catch (error) {
      // The next front-end is served nevertheless.
      this.#logOwn(error);
    }
    for (const fd of this.#assembler.close()) closeFd(fd);
    this.#ports.close();
    closeFd(this.#fd);
    if (reason !== null) {
      this.#context.diagnostics.log(
        "info",
        `the front-end's session has ended: ${reason}; listening again`,
      );
    }
    this.#context.ended(this);
  }
}
