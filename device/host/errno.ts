/**
 * The errno values that this layer tells apart, with their numbers on Linux (x86-64 and arm64).
 *
 * @module
 */

import { errno } from "./ffi.ts";

/** Not permitted; epoll: the file cannot be watched. */
export const EPERM = 1;
/** No such file. */
export const ENOENT = 2;
/** Interrupted by a signal. */
export const EINTR = 4;
/** Bad file descriptor. */
export const EBADF = 9;
/** Would block, or a listener's backlog is full. */
export const EAGAIN = 11;
/** Out of memory. */
export const ENOMEM = 12;
/** Permission denied. */
export const EACCES = 13;
/** Bad address: memory that is not mapped, or no longer backed by its file. */
export const EFAULT = 14;
/** Invalid argument. */
export const EINVAL = 22;
/** The system is out of file descriptors. */
export const ENFILE = 23;
/** The process is out of file descriptors. */
export const EMFILE = 24;
/** Nobody reads the other end. */
export const EPIPE = 32;
/** Not a socket. */
export const ENOTSOCK = 88;
/** A message is longer than the socket can take. */
export const EMSGSIZE = 90;
/** The socket at a path is of another type. */
export const EPROTOTYPE = 91;
/** The path is taken. */
export const EADDRINUSE = 98;
/** The other end closed without reading all. */
export const ECONNRESET = 104;
/** No buffer space. */
export const ENOBUFS = 105;
/** Nobody listens. */
export const ECONNREFUSED = 111;

const NAMES: Readonly<Record<number, string>> = {
  [EPERM]: "EPERM",
  [ENOENT]: "ENOENT",
  [EINTR]: "EINTR",
  [EBADF]: "EBADF",
  [EAGAIN]: "EAGAIN",
  [ENOMEM]: "ENOMEM",
  [EACCES]: "EACCES",
  [EFAULT]: "EFAULT",
  17: "EEXIST",
  19: "ENODEV",
  20: "ENOTDIR",
  [EINVAL]: "EINVAL",
  [ENFILE]: "ENFILE",
  [EMFILE]: "EMFILE",
  28: "ENOSPC",
  30: "EROFS",
  [EPIPE]: "EPIPE",
  [ENOTSOCK]: "ENOTSOCK",
  [EMSGSIZE]: "EMSGSIZE",
  [EPROTOTYPE]: "EPROTOTYPE",
  [EADDRINUSE]: "EADDRINUSE",
  [ECONNRESET]: "ECONNRESET",
  [ENOBUFS]: "ENOBUFS",
  107: "ENOTCONN",
  [ECONNREFUSED]: "ECONNREFUSED",
};

/** The name of an errno value, such as `"EPIPE"`. */
export function errnoName(number: number): string {
  return NAMES[number] ?? `errno ${number}`;
}

/** A system call that failed; `code` is errno's name and `errno` its number. */
export class SystemError extends Error {
  override readonly name = "SystemError";
  /** Name of the errno value, such as `"EADDRINUSE"`. */
  readonly code: string;
  /** The errno value. */
  readonly errno: number;

  /** Makes the error of an `action` that failed with errno `number`. */
  constructor(action: string, number: number) {
    const code = errnoName(number);
    super(`Cannot ${action}: ${code}`);
    this.code = code;
    this.errno = number;
  }
}

/** Passes the result of a system call on, and throws {@link SystemError} where it is negative. */
export function check(result: number, action: string): number {
  if (result < 0) throw new SystemError(action, errno());
  return result;
}
