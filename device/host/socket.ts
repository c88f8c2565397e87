/**
 * Unix stream sockets and eventfds by system call: non-blocking, closed on exec, without SIGPIPE.
 *
 * Calls on the path of data return a count or a negative errno and never throw; calls that set
 * something up throw {@link SystemError}.
 *
 * @module
 */

import {
  check,
  EADDRINUSE,
  EAGAIN,
  ECONNREFUSED,
  EINTR,
  ENOENT,
} from "./errno.ts";
import { addressOf, errno, fixedBytes, libc } from "./ffi.ts";

const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_SEQPACKET = 5;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_TYPE = 3;
const SO_SNDBUF = 7;
const SO_PASSCRED = 16;
const SCM_RIGHTS = 1;
const MSG_PEEK = 0x2;
const MSG_CTRUNC = 0x8;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x40000000;
const EFD_NONBLOCK = 0o4000;
const EFD_CLOEXEC = 0o2000000;
const POLLOUT = 4;
const F_GETFL = 3;
const O_NONBLOCK = 0o4000;

/** {@link shutdownSocket}: no more receiving. */
export const SHUT_RD = 0;
/** {@link shutdownSocket}: no more sending. */
export const SHUT_WR = 1;
/** {@link shutdownSocket}: neither. */
export const SHUT_RDWR = 2;

/** Type of a Unix socket. */
export type SocketKind = "stream" | "seqpacket";

/** Longest path of a Unix socket, in bytes: `sun_path` less its final zero. */
export const MAX_SOCKET_PATH_BYTES = 107;

/** Send buffer that a seqpacket socket asks for; the system grants up to twice `net.core.wmem_max`. */
const MESSAGE_BUFFER_BYTES = 1 << 20;

/** Bytes of `struct sockaddr_un` before its path. */
const SUN_PATH = 2;

/** Bytes that `path` has as the address of a Unix socket. */
export function socketPathBytes(path: string): number {
  return new TextEncoder().encode(path).length;
}

/** `struct sockaddr_un` of a path, or null where it is too long, empty, or has a zero in it. */
function socketAddress(path: string): Uint8Array<ArrayBuffer> | null {
  const bytes = new TextEncoder().encode(path);
  if (
    bytes.length === 0 || bytes.length > MAX_SOCKET_PATH_BYTES ||
    bytes.includes(0)
  ) return null;
  const address = fixedBytes(SUN_PATH + bytes.length + 1);
  new DataView(address.buffer).setUint16(0, AF_UNIX, true);
  address.set(bytes, SUN_PATH);
  return address;
}

function requireAddress(path: string, action: string): Uint8Array<ArrayBuffer> {
  const address = socketAddress(path);
  if (address === null) {
    throw new RangeError(
      `Cannot ${action} ${path}: the path has ${
        socketPathBytes(path)
      } bytes, and a Unix socket takes 1 to ${MAX_SOCKET_PATH_BYTES}`,
    );
  }
  return address;
}

function typeOf(kind: SocketKind): number {
  const type = kind === "stream" ? SOCK_STREAM : SOCK_SEQPACKET;
  return type | SOCK_NONBLOCK | SOCK_CLOEXEC;
}

function newSocket(kind: SocketKind): number {
  return libc().socket(AF_UNIX, typeOf(kind), 0);
}

/** A socket that listens at a path, and the file that it made there. */
export type Listener = {
  /** The socket's descriptor. */
  readonly fd: number;
  /** Closes the socket and removes the file, unless it is somebody else's by now. */
  close(): void;
};

/**
 * Listens at `path`, with a file that only this user can connect to (mode 0600).
 *
 * A socket file that nobody listens at any more is replaced; anything else at that path is left
 * as it is.
 *
 * @throws {RangeError} when the path is too long.
 * @throws {TypeError} when something else is there: a live socket, or a file that is no socket.
 * @throws {SystemError} when the system refuses.
 */
export function listenAt(
  path: string,
  backlog: number,
  kind: SocketKind = "stream",
): Listener {
  const address = requireAddress(path, "listen at");
  const c = libc();
  const fd = check(newSocket(kind), "create a socket");
  try {
    // bind() gives the file the mode of the socket, so that there is no moment with a wider one.
    check(c.fchmod(fd, 0o600), "set the mode of a socket");
    let result = c.bind(fd, address, address.length);
    if (result < 0 && errno() === EADDRINUSE) {
      removeStale(path, kind);
      result = c.bind(fd, address, address.length);
    }
    check(result, `listen at ${path}`);
    const inode = Deno.lstatSync(path).ino;
    check(c.listen(fd, backlog), `listen at ${path}`);
    let open = true;
    return {
      fd,
      close(): void {
        if (!open) return;
        open = false;
        c.close(fd);
        try {
          if (Deno.lstatSync(path).ino === inode) Deno.removeSync(path);
        } catch (error) {
          if (!(error instanceof Deno.errors.NotFound)) throw error;
        }
      },
    };
  } catch (error) {
    c.close(fd);
    throw error;
  }
}

function removeStale(path: string, kind: SocketKind): void {
  if (!Deno.lstatSync(path).isSocket) {
    throw new TypeError(
      `Cannot listen at ${path}: a file that is no socket is there`,
    );
  }
  const probe = connectTo(path, kind);
  if (probe >= 0) libc().close(probe);
  if (probe === -ECONNREFUSED) Deno.removeSync(path);
  else if (probe !== -ENOENT) {
    throw new TypeError(
      `Cannot listen at ${path}: a live process listens there already`,
    );
  }
}

// Where the last connection went: a guest's connections mostly go to the same program.
let lastPath = "";
let lastAddress: Uint8Array<ArrayBuffer> | null = null;

/**
 * Connects to a Unix socket without waiting; returns the descriptor, or a negative errno:
 * `-EAGAIN` when the listener's backlog is full, `-ENOENT` also for a path that is too long.
 */
export function connectTo(path: string, kind: SocketKind = "stream"): number {
  if (path !== lastPath) {
    lastAddress = socketAddress(path);
    lastPath = path;
  }
  const address = lastAddress;
  if (address === null) return -ENOENT;
  const c = libc();
  const fd = newSocket(kind);
  if (fd < 0) return -errno();
  for (;;) {
    if (c.connect(fd, address, address.length) === 0) return fd;
    const error = errno();
    if (error === EINTR) continue;
    c.close(fd);
    return -error;
  }
}

/** Accepts one connection; returns its descriptor, or a negative errno (`-EAGAIN`: nobody waits). */
export function acceptFrom(listener: number): number {
  for (;;) {
    const fd = libc().accept4(
      listener,
      null,
      null,
      SOCK_NONBLOCK | SOCK_CLOEXEC,
    );
    if (fd >= 0) return fd;
    const error = errno();
    if (error !== EINTR) return -error;
  }
}

/** Two connected sockets. */
export function socketPair(kind: SocketKind = "stream"): [number, number] {
  const pair = new Int32Array(new ArrayBuffer(8));
  check(
    libc().socketpair(AF_UNIX, typeOf(kind), 0, pair),
    "create a pair of sockets",
  );
  return [pair[0]!, pair[1]!];
}

/**
 * Prepares a seqpacket socket: every message, an empty one as well, comes with its sender's
 * credentials, and long ones may be sent, as far as the system allows.
 */
export function prepareMessageSocket(fd: number): void {
  const c = libc();
  const value = new Int32Array(new ArrayBuffer(4)).fill(1);
  c.setsockopt(fd, SOL_SOCKET, SO_PASSCRED, value, 4);
  value[0] = MESSAGE_BUFFER_BYTES;
  c.setsockopt(fd, SOL_SOCKET, SO_SNDBUF, value, 4);
}

/** Tells whether `fd` is a socket. */
export function isSocket(fd: number): boolean {
  const value = new Int32Array(new ArrayBuffer(4));
  const length = new Uint32Array(new ArrayBuffer(4)).fill(4);
  return libc().getsockopt(fd, SOL_SOCKET, SO_TYPE, value, length) === 0;
}

/** Ends a socket's sending, receiving, or both; a socket whose other end is gone does not mind. */
export function shutdownSocket(fd: number, how: number): void {
  libc().shutdown(fd, how);
}

/** Closes a descriptor. */
export function closeFd(fd: number): void {
  libc().close(fd);
}

/** Sends up to `length` bytes; returns how many, or a negative errno. */
export function sendBytes(
  fd: number,
  bytes: Uint8Array<ArrayBuffer>,
  length: number,
): number {
  for (;;) {
    const sent = libc().send(fd, bytes, length, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) return sent;
    const error = errno();
    if (error !== EINTR) return -error;
  }
}

/** Receives up to `length` bytes; returns how many, 0 at the end of file, or a negative errno. */
export function receiveBytes(
  fd: number,
  bytes: Uint8Array<ArrayBuffer>,
  length: number,
): number {
  return receive(fd, bytes, length, MSG_DONTWAIT);
}

/** {@link receiveBytes} that leaves the bytes where they are. */
export function peekBytes(
  fd: number,
  bytes: Uint8Array<ArrayBuffer>,
  length: number,
): number {
  return receive(fd, bytes, length, MSG_DONTWAIT | MSG_PEEK);
}

function receive(
  fd: number,
  bytes: Uint8Array<ArrayBuffer>,
  length: number,
  flags: number,
): number {
  for (;;) {
    const received = libc().recv(fd, bytes, length, flags);
    if (received >= 0) return received;
    const error = errno();
    if (error !== EINTR) return -error;
  }
}

/** Descriptors that come with one message at most; a vhost-user message has up to 8. */
export const MAX_MESSAGE_FDS = 32;

// struct msghdr and struct cmsghdr on 64-bit Linux.
const MSGHDR_BYTES = 56;
const MSG_IOV = 16;
const MSG_IOVLEN = 24;
const MSG_CONTROL = 32;
const MSG_CONTROLLEN = 40;
const MSG_FLAGS = 48;
const CMSG_DATA = 16;
const IOVEC_BYTES = 16;

/**
 * A message with descriptors (SCM_RIGHTS), to send or to receive; reusable.
 *
 * Descriptors belong to the first byte that they were sent with: to keep them with their
 * message, receive no byte of the next one in the same call.
 */
export class FdChannel {
  /** Descriptors that the last {@link FdChannel.receive} brought; they are the caller's. */
  readonly fds: number[] = [];
  /** Whether the kernel dropped descriptors, because there were too many, or no room for them. */
  truncated = false;

  #header: Uint8Array<ArrayBuffer> = fixedBytes(MSGHDR_BYTES);
  #fields: DataView = new DataView(this.#header.buffer);
  #iovec: Uint8Array<ArrayBuffer> = fixedBytes(IOVEC_BYTES);
  #control: Uint8Array<ArrayBuffer> = fixedBytes(
    CMSG_DATA + 4 * MAX_MESSAGE_FDS,
  );
  #controlFields: DataView = new DataView(this.#control.buffer);

  /** Makes a channel; it holds no descriptor. */
  constructor() {
    const fields = this.#fields;
    fields.setBigUint64(MSG_IOV, BigInt(addressOf(this.#iovec)), true);
    fields.setBigUint64(MSG_IOVLEN, 1n, true);
  }

  #point(bytes: Uint8Array<ArrayBuffer>, length: number): void {
    const iovec = new DataView(this.#iovec.buffer);
    iovec.setBigUint64(0, BigInt(addressOf(bytes)), true);
    iovec.setBigUint64(8, BigInt(length), true);
  }

  #pointControl(length: number): void {
    const address = length === 0 ? 0 : addressOf(this.#control);
    this.#fields.setBigUint64(MSG_CONTROL, BigInt(address), true);
    this.#fields.setBigUint64(MSG_CONTROLLEN, BigInt(length), true);
  }

  /**
   * Receives up to `length` bytes into `bytes`, and descriptors into `fds`, closed on exec.
   *
   * Returns how many bytes, 0 at the end of file, or a negative errno.
   */
  receive(
    fd: number,
    bytes: Uint8Array<ArrayBuffer>,
    length: number,
  ): number {
    this.fds.length = 0;
    this.truncated = false;
    this.#point(bytes, length);
    for (;;) {
      this.#pointControl(this.#control.length);
      const received = libc().recvmsg(
        fd,
        this.#header,
        MSG_DONTWAIT | MSG_CMSG_CLOEXEC,
      );
      if (received < 0) {
        const error = errno();
        if (error === EINTR) continue;
        return -error;
      }
      this.#takeFds();
      return received;
    }
  }

  #takeFds(): void {
    const flags = this.#fields.getInt32(MSG_FLAGS, true);
    this.truncated = (flags & MSG_CTRUNC) !== 0;
    const total = Number(this.#fields.getBigUint64(MSG_CONTROLLEN, true));
    const control = this.#controlFields;
    for (let at = 0; at + CMSG_DATA <= total;) {
      const length = Number(control.getBigUint64(at, true));
      if (length < CMSG_DATA || at + length > total) break;
      if (
        control.getInt32(at + 8, true) === SOL_SOCKET &&
        control.getInt32(at + 12, true) === SCM_RIGHTS
      ) {
        for (let i = at + CMSG_DATA; i + 4 <= at + length; i += 4) {
          this.fds.push(control.getInt32(i, true));
        }
      }
      at += (length + 7) & ~7;
    }
  }

  /**
   * Sends up to `length` bytes of `bytes` with copies of `fds`, which stay the caller's.
   *
   * Returns how many bytes were sent, or a negative errno; the descriptors went with the first.
   *
   * @throws {RangeError} when there are more than {@link MAX_MESSAGE_FDS} descriptors.
   */
  send(
    fd: number,
    bytes: Uint8Array<ArrayBuffer>,
    length: number,
    fds: readonly number[],
  ): number {
    if (fds.length > MAX_MESSAGE_FDS) {
      throw new RangeError(
        `Cannot send ${fds.length} descriptors: a message takes ${MAX_MESSAGE_FDS}`,
      );
    }
    this.#point(bytes, length);
    const control = this.#controlFields;
    if (fds.length > 0) {
      const size = CMSG_DATA + 4 * fds.length;
      control.setBigUint64(0, BigInt(size), true);
      control.setInt32(8, SOL_SOCKET, true);
      control.setInt32(12, SCM_RIGHTS, true);
      for (const [i, passed] of fds.entries()) {
        control.setInt32(CMSG_DATA + 4 * i, passed, true);
      }
      this.#pointControl((size + 7) & ~7);
    } else {
      this.#pointControl(0);
    }
    for (;;) {
      const sent = libc().sendmsg(
        fd,
        this.#header,
        MSG_NOSIGNAL | MSG_DONTWAIT,
      );
      if (sent >= 0) return sent;
      const error = errno();
      if (error !== EINTR) return -error;
    }
  }
}

/** Waits up to `timeoutMs` for room to send; false when there is none. */
export function waitWritable(fd: number, timeoutMs: number): boolean {
  const entry = fixedBytes(8);
  const fields = new DataView(entry.buffer);
  fields.setInt32(0, fd, true);
  fields.setInt16(4, POLLOUT, true);
  return libc().poll(entry, 1, timeoutMs) === 1;
}

/** Makes an eventfd with counter 0 that does not block. */
export function createEventFd(): number {
  return check(
    libc().eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC),
    "create an eventfd",
  );
}

/** Takes the counter of an eventfd down to 0; false where it was 0. */
export function drainEventFd(fd: number): boolean {
  return libc().read(fd, eightBytes, 8) === 8;
}

// One, as the 8 bytes that an eventfd takes; a stream socket gets the same (user-mode-linux).
const one = fixedBytes(8);
one[0] = 1;
const eightBytes: Uint8Array<ArrayBuffer> = fixedBytes(8);

/** How a descriptor that another process gave us is signalled. */
export type Signal = {
  /** The descriptor. */
  readonly fd: number;
  /** True for a stream socket. */
  readonly socket: boolean;
  /** True where a write could wait: an eventfd that its owner made blocking. */
  readonly blocking: boolean;
};

/** Looks at what kind of descriptor `fd` is. */
export function signalOf(fd: number): Signal {
  const flags = check(libc().fcntl(fd, F_GETFL, 0), "use a descriptor");
  const socket = isSocket(fd);
  return { fd, socket, blocking: !socket && (flags & O_NONBLOCK) === 0 };
}

/**
 * Signals an eventfd or a stream socket without waiting; true unless its other end is gone.
 *
 * One that is full has a signal under way already.
 */
export function raiseSignal(signal: Signal): boolean {
  if (signal.socket) {
    const sent = sendBytes(signal.fd, one, 8);
    return sent >= 0 || sent === -EAGAIN;
  }
  // The flag of the open file is its owner's too, so it is not ours to change.
  if (signal.blocking && !waitWritable(signal.fd, 0)) return true;
  const written = libc().write(signal.fd, one, 8);
  return written === 8 || errno() === EAGAIN;
}
