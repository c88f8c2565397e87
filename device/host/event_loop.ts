/**
 * A synchronous epoll loop: one thread, many descriptors, timers.
 *
 * A wake-up costs one system call and blocks the thread, so a loop with work of its own belongs
 * in a Worker. Handlers are called from {@link EventLoop.turn} only.
 *
 * @module
 */

import { BusyPoll } from "./busy_poll.ts";
import { check, EINTR, ENOENT, SystemError } from "./errno.ts";
import { errno, fixedBytes, libc } from "./ffi.ts";

/** There is something to read, or somebody to accept. */
export const EPOLLIN = 0x1;
/** There is a byte out of band. */
export const EPOLLPRI = 0x2;
/** There is room to write. */
export const EPOLLOUT = 0x4;
/** The descriptor is in error; always reported. */
export const EPOLLERR = 0x8;
/** Both directions are over; always reported. */
export const EPOLLHUP = 0x10;
/** The other end sends no more. */
export const EPOLLRDHUP = 0x2000;
/** Report changes only, not the state that lasts. */
export const EPOLLET = 0x8000_0000;

const EPOLL_CLOEXEC = 0o2000000;
const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLL_CTL_MOD = 3;

/** Events that one wake-up takes; the rest stay queued in the kernel, in fair order. */
export const EVENTS_PER_WAKE_UP = 64;

/** Longest sleep; longer ones do not fit an int for ever. */
const MAX_SLEEP_MS = 3_600_000;

/** What happens on a descriptor. */
export interface FdHandler {
  /** `events` is a mask of EPOLLIN and so on. */
  onEvents(events: number): void;
}

/** What a loop does between two waits, besides descriptors and its own timers. */
export interface LoopWork {
  /** Does a bounded amount of work; true when more is pending, so that the loop does not sleep. */
  process(): boolean;
  /** When `expire` is due on the loop's clock, in milliseconds; Infinity for never. */
  nextDeadline(): number;
  /** The deadline has come. */
  expire(now: number): void;
  /**
   * A handler, a timer or `expire` threw: an error of our own. The loop goes on when this returns.
   */
  failed(error: unknown): void;
}

/** A timer of an {@link EventLoop}; it fires once. */
export class Timer {
  /** When it fires, on the loop's clock. */
  readonly at: number;
  #fire: (() => void) | null;
  #others: Set<Timer>;

  /** Made by {@link EventLoop.after}, which keeps it in `others`. */
  constructor(at: number, fire: () => void, others: Set<Timer>) {
    this.at = at;
    this.#fire = fire;
    this.#others = others;
    others.add(this);
  }

  /** Whether it will fire. */
  get pending(): boolean {
    return this.#fire !== null;
  }

  /** Makes sure that it does not fire any more. */
  cancel(): void {
    this.#fire = null;
    this.#others.delete(this);
  }

  /** Fires it, unless it has fired or was cancelled. */
  fire(): void {
    const fire = this.#fire;
    this.cancel();
    fire?.();
  }
}

const NO_WORK: LoopWork = {
  process: () => false,
  nextDeadline: () => Infinity,
  expire: () => {},
  failed: (error) => {
    throw error;
  },
};

/** An epoll instance with its handlers and timers. */
export class EventLoop {
  /** Milliseconds that only grow. */
  readonly now: () => number;

  #epoll: number;
  #work: LoopWork = NO_WORK;
  #more = false;
  #open = true;
  // Indexed by descriptor: small numbers, by the kernel's rule of the lowest free one.
  #handlers: (FdHandler | null)[] = [];
  #generations: number[] = [];
  #sides: number[] = [];
  #generation = 0;
  #registered = 0;
  #timers: Set<Timer> = new Set();
  #earliest = Infinity;
  #busyPoll: BusyPoll;

  // struct epoll_event is packed on x86-64 only.
  #stride: number;
  #dataAt: number;
  #events: Uint8Array<ArrayBuffer>;
  #view: DataView;
  #control: Uint8Array<ArrayBuffer> = fixedBytes(16);
  #controlView: DataView = new DataView(this.#control.buffer);

  /**
   * Makes a loop without descriptors.
   *
   * @param busyPollMs How long it may look for events before it sleeps, where {@link BusyPoll} finds
   * that worth while, in milliseconds; not at all unless told.
   * @throws {SystemError} when the system is out of descriptors.
   */
  constructor(
    now: () => number = () => performance.now(),
    busyPollMs: number = 0,
  ) {
    this.now = now;
    this.#busyPoll = new BusyPoll(busyPollMs);
    const packed = Deno.build.arch === "x86_64";
    this.#stride = packed ? 12 : 16;
    this.#dataAt = packed ? 4 : 8;
    this.#events = fixedBytes(EVENTS_PER_WAKE_UP * this.#stride);
    this.#view = new DataView(this.#events.buffer);
    this.#epoll = check(
      libc().epoll_create1(EPOLL_CLOEXEC),
      "create an epoll instance",
    );
  }

  /** Descriptors that are watched. */
  get size(): number {
    return this.#registered;
  }

  /** Sets what the loop does between two waits. */
  setWork(work: LoopWork): void {
    this.#work = work;
  }

  /**
   * Watches `fd` for `events`; with {@link EPOLLET}, what is there already counts as a change.
   *
   * @param side Who is at its other end, 0 to 31: see {@link BusyPoll}.
   * @throws {TypeError} when it is watched already.
   * @throws {SystemError} when epoll cannot watch it, or the system is out of memory.
   */
  register(
    fd: number,
    events: number,
    handler: FdHandler,
    side: number = 0,
  ): void {
    if (this.#handlers[fd]) {
      throw new TypeError(`Cannot watch descriptor ${fd}: it is watched`);
    }
    const generation = this.#nextGeneration();
    this.#ctl(EPOLL_CTL_ADD, fd, events, generation);
    // Descriptors are dense, so the arrays stay so: holes would make them slow.
    while (this.#handlers.length <= fd) {
      this.#handlers.push(null);
      this.#generations.push(0);
      this.#sides.push(0);
    }
    this.#handlers[fd] = handler;
    this.#generations[fd] = generation;
    this.#sides[fd] = side;
    this.#registered++;
  }

  /**
   * Gives `fd`, which is watched, another mask and another handler. Events of this wake-up that
   * are not dispatched yet are forgotten; what is there is reported anew.
   */
  change(fd: number, events: number, handler: FdHandler): void {
    if (!this.#handlers[fd]) {
      throw new TypeError(`Cannot change descriptor ${fd}: it is not watched`);
    }
    const generation = this.#nextGeneration();
    this.#ctl(EPOLL_CTL_MOD, fd, events, generation);
    this.#handlers[fd] = handler;
    this.#generations[fd] = generation;
  }

  /**
   * Stops watching `fd`; nothing where it is not watched. To be called before the descriptor is
   * closed: epoll watches the open file, which another process may hold as well.
   */
  unregister(fd: number): void {
    if (!this.#handlers[fd]) return;
    this.forget(fd);
    if (
      libc().epoll_ctl(this.#epoll, EPOLL_CTL_DEL, fd, this.#control) < 0 &&
      errno() !== ENOENT
    ) {
      throw new SystemError(`stop watching descriptor ${fd}`, errno());
    }
  }

  /** Whether `fd` is watched. */
  watches(fd: number): boolean {
    return (this.#handlers[fd] ?? null) !== null;
  }

  /**
   * {@link EventLoop.unregister} for a descriptor whose open file is the caller's alone, and which it closes before
   * the next turn: then the system stops watching it by itself.
   */
  forget(fd: number): void {
    if (!this.#handlers[fd]) return;
    this.#handlers[fd] = null;
    this.#generations[fd] = 0;
    this.#registered--;
  }

  /** Calls `fire` once, in `ms` milliseconds. */
  after(ms: number, fire: () => void): Timer {
    const timer = new Timer(this.now() + ms, fire, this.#timers);
    if (timer.at < this.#earliest) this.#earliest = timer.at;
    return timer;
  }

  /**
   * One turn: waits for descriptors, at most until the next deadline and not at all while work is
   * pending, then calls handlers, due timers, and the work once.
   *
   * `maxSleepMs` bounds the wait further. Returns the number of events.
   */
  turn(maxSleepMs: number = MAX_SLEEP_MS): number {
    let timeout = 0;
    if (!this.#more) {
      const deadline = Math.min(this.#earliest, this.#work.nextDeadline());
      timeout = maxSleepMs;
      if (deadline !== Infinity) {
        // Rounded up: a wake-up just before the deadline would spin until it has come.
        const left = Math.ceil(deadline - this.now());
        if (left < timeout) timeout = left > 0 ? left : 0;
      }
    }
    const count = timeout === 0 ? this.#look(0) : this.#wait(timeout);
    this.#dispatch(count);
    this.#fireTimers();
    const work = this.#work;
    if (work.nextDeadline() !== Infinity) {
      const now = this.now();
      if (work.nextDeadline() <= now) {
        try {
          work.expire(now);
        } catch (error) {
          work.failed(error);
        }
      }
    }
    this.#more = work.process();
    return count;
  }

  /** Closes the epoll instance. The descriptors stay open; no handler is called any more. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#handlers.fill(null);
    this.#registered = 0;
    this.#timers.clear();
    this.#earliest = Infinity;
    libc().close(this.#epoll);
  }

  #wait(timeout: number): number {
    const poll = this.#busyPoll;
    const start = this.now();
    let count = 0;
    if (poll.window > 0) {
      const end = start + Math.min(poll.window, timeout);
      do count = this.#look(0); while (count === 0 && this.now() < end);
      timeout -= Math.floor(this.now() - start);
    }
    if (count === 0) count = this.#look(Math.max(0, timeout));
    poll.woke(this.#sidesOf(count), this.now() - start);
    return count;
  }

  /** Takes events of the kernel's; how many. */
  #look(timeout: number): number {
    const count = libc().epoll_wait(
      this.#epoll,
      this.#events,
      EVENTS_PER_WAKE_UP,
      timeout,
    );
    if (count >= 0) return count;
    const error = errno();
    if (error === EINTR) return 0;
    throw new SystemError("wait for events", error);
  }

  #sidesOf(count: number): number {
    let sides = 0;
    for (let i = 0; i < count; i++) {
      const at = i * this.#stride + this.#dataAt;
      sides |= 1 << this.#sides[this.#view.getUint32(at, true)]!;
    }
    return sides;
  }

  #dispatch(count: number): void {
    const view = this.#view;
    for (let i = 0; i < count && this.#open; i++) {
      const at = i * this.#stride;
      const fd = view.getUint32(at + this.#dataAt, true);
      // A handler that ran before may have closed this descriptor, and another may have its number.
      if (
        this.#generations[fd] !== view.getUint32(at + this.#dataAt + 4, true)
      ) continue;
      try {
        this.#handlers[fd]!.onEvents(view.getUint32(at, true));
      } catch (error) {
        this.#work.failed(error);
      }
    }
  }

  #fireTimers(): void {
    if (this.#earliest === Infinity) return;
    const now = this.now();
    if (now < this.#earliest) return;
    const due: Timer[] = [];
    let earliest = Infinity;
    for (const timer of this.#timers) {
      if (timer.at <= now) due.push(timer);
      else if (timer.at < earliest) earliest = timer.at;
    }
    this.#earliest = earliest;
    for (const timer of due.sort((a, b) => a.at - b.at)) {
      try {
        timer.fire();
      } catch (error) {
        this.#work.failed(error);
      }
    }
  }

  #nextGeneration(): number {
    this.#generation = (this.#generation + 1) >>> 0 || 1;
    return this.#generation;
  }

  #ctl(op: number, fd: number, events: number, generation: number): void {
    const view = this.#controlView;
    view.setUint32(0, events, true);
    view.setUint32(this.#dataAt, fd, true);
    view.setUint32(this.#dataAt + 4, generation, true);
    check(
      libc().epoll_ctl(this.#epoll, op, fd, this.#control),
      `watch descriptor ${fd}`,
    );
  }
}
