/**
 * The C library, by FFI: every system call of the host layer goes through {@link libc}.
 *
 * Nothing is loaded by importing this file. Sizes are declared u32 and results i32, because a
 * 64-bit integer costs twice the call; no buffer here is 2 GiB or more.
 *
 * @module
 */

const SYMBOLS = {
  /** Address of the calling thread's errno. */
  __errno_location: { parameters: [], result: "pointer" },

  epoll_create1: {
    parameters: [
      "i32", // int flags
    ],
    result: "i32",
  },
  epoll_ctl: {
    parameters: [
      "i32", // int epfd
      "i32", // int op
      "i32", // int fd
      "buffer", // struct epoll_event *event
    ],
    result: "i32",
  },
  /** Blocks the thread: only the device's own Worker gives it a timeout. */
  epoll_wait: {
    parameters: [
      "i32", // int epfd
      "buffer", // struct epoll_event *events
      "i32", // int maxevents
      "i32", // int timeout, milliseconds
    ],
    result: "i32",
  },
  eventfd: {
    parameters: [
      "u32", // unsigned int initval
      "i32", // int flags
    ],
    result: "i32",
  },
  poll: {
    parameters: [
      "buffer", // struct pollfd *fds
      "u32", // nfds_t nfds
      "i32", // int timeout, milliseconds
    ],
    result: "i32",
  },

  read: {
    parameters: [
      "i32", // int fd
      "buffer", // void *buf
      "u32", // size_t count
    ],
    result: "i32", // ssize_t
  },
  write: {
    parameters: [
      "i32", // int fd
      "buffer", // const void *buf
      "u32", // size_t count
    ],
    result: "i32", // ssize_t
  },
  readv: {
    parameters: [
      "i32", // int fd
      "buffer", // const struct iovec *iov
      "i32", // int iovcnt
    ],
    result: "i32", // ssize_t
  },
  close: {
    parameters: [
      "i32", // int fd
    ],
    result: "i32",
  },
  /** Variadic in C; the third argument is an int for every command used here. */
  fcntl: {
    parameters: [
      "i32", // int fd
      "i32", // int cmd
      "i32", // int arg
    ],
    result: "i32",
  },
  fstat: {
    parameters: [
      "i32", // int fd
      "buffer", // struct stat *statbuf
    ],
    result: "i32",
  },
  fchmod: {
    parameters: [
      "i32", // int fd
      "u32", // mode_t mode
    ],
    result: "i32",
  },
  ftruncate: {
    parameters: [
      "i32", // int fd
      "i64", // off_t length
    ],
    result: "i32",
  },

  socket: {
    parameters: [
      "i32", // int domain
      "i32", // int type
      "i32", // int protocol
    ],
    result: "i32",
  },
  socketpair: {
    parameters: [
      "i32", // int domain
      "i32", // int type
      "i32", // int protocol
      "buffer", // int sv[2]
    ],
    result: "i32",
  },
  bind: {
    parameters: [
      "i32", // int sockfd
      "buffer", // const struct sockaddr *addr
      "u32", // socklen_t addrlen
    ],
    result: "i32",
  },
  listen: {
    parameters: [
      "i32", // int sockfd
      "i32", // int backlog
    ],
    result: "i32",
  },
  connect: {
    parameters: [
      "i32", // int sockfd
      "buffer", // const struct sockaddr *addr
      "u32", // socklen_t addrlen
    ],
    result: "i32",
  },
  accept4: {
    parameters: [
      "i32", // int sockfd
      "buffer", // struct sockaddr *addr, null here
      "buffer", // socklen_t *addrlen, null here
      "i32", // int flags
    ],
    result: "i32",
  },
  getsockopt: {
    parameters: [
      "i32", // int sockfd
      "i32", // int level
      "i32", // int optname
      "buffer", // void *optval
      "buffer", // socklen_t *optlen
    ],
    result: "i32",
  },
  setsockopt: {
    parameters: [
      "i32", // int sockfd
      "i32", // int level
      "i32", // int optname
      "buffer", // const void *optval
      "u32", // socklen_t optlen
    ],
    result: "i32",
  },
  shutdown: {
    parameters: [
      "i32", // int sockfd
      "i32", // int how
    ],
    result: "i32",
  },
  send: {
    parameters: [
      "i32", // int sockfd
      "buffer", // const void *buf
      "u32", // size_t len
      "i32", // int flags
    ],
    result: "i32", // ssize_t
  },
  recv: {
    parameters: [
      "i32", // int sockfd
      "buffer", // void *buf
      "u32", // size_t len
      "i32", // int flags
    ],
    result: "i32", // ssize_t
  },
  sendmsg: {
    parameters: [
      "i32", // int sockfd
      "buffer", // const struct msghdr *msg
      "i32", // int flags
    ],
    result: "i32", // ssize_t
  },
  recvmsg: {
    parameters: [
      "i32", // int sockfd
      "buffer", // struct msghdr *msg
      "i32", // int flags
    ],
    result: "i32", // ssize_t
  },

  memfd_create: {
    parameters: [
      "buffer", // const char *name
      "u32", // unsigned int flags
    ],
    result: "i32",
  },
  mmap: {
    parameters: [
      "pointer", // void *addr
      "usize", // size_t length
      "i32", // int prot
      "i32", // int flags
      "i32", // int fd
      "i64", // off_t offset
    ],
    result: "pointer",
  },
  munmap: {
    parameters: [
      "pointer", // void *addr
      "usize", // size_t length
    ],
    result: "i32",
  },
} as const;

/** The C library's functions that this layer calls, with their C names. */
export type Libc = Deno.DynamicLibrary<typeof SYMBOLS>["symbols"];

/** A C library that its opener closes, for a thread that must not keep one open. */
export type OpenLibc = {
  /** The functions. */
  readonly symbols: Libc;
  /** Unloads it; the functions must not be called any more. */
  close(): void;
};

let symbols: Libc | null = null;
let errnoWord: Int32Array | null = null;

/**
 * Opens the C library for the caller alone; {@link libc} is the shared one.
 *
 * @throws {Deno.errors.NotCapable} without `--allow-ffi`.
 */
export function openLibc(): OpenLibc {
  if (Deno.build.os !== "linux") {
    throw new TypeError(
      `Cannot open the C library: this is ${Deno.build.os}, and only linux has epoll and memfd`,
    );
  }
  return Deno.dlopen(
    "libc.so.6",
    SYMBOLS satisfies Deno.ForeignLibraryInterface,
  );
}

/**
 * The C library, opened once for each thread, at the first call, and never closed.
 *
 * @throws {Deno.errors.NotCapable} without `--allow-ffi`.
 */
export function libc(): Libc {
  return symbols ??= openLibc().symbols;
}

/** The calling thread's `errno`, meaningful right after a call that failed. */
export function errno(): number {
  // A view of the word itself, made once for each thread: 1 ns instead of a call and a pointer.
  errnoWord ??= new Int32Array(
    Deno.UnsafePointerView.getArrayBuffer(libc().__errno_location()!, 4),
  );
  return errnoWord[0]!;
}

/** The address of a buffer that the caller keeps alive; below 2^53, as every Linux user address. */
export function addressOf(buffer: ArrayBufferView<ArrayBuffer>): number {
  return Number(Deno.UnsafePointer.value(Deno.UnsafePointer.of(buffer)));
}

/** The pointer to `address`; null for 0. Not for hot paths: it takes a BigInt. */
export function pointerTo(address: number): Deno.PointerValue {
  return Deno.UnsafePointer.create(BigInt(address));
}

/**
 * A buffer that does not move while C code holds its address: V8 may keep the bytes of a small
 * typed array in its own heap, but never those of an `ArrayBuffer`.
 */
export function fixedBytes(length: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(new ArrayBuffer(length));
}
