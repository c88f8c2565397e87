import { check, EBADF, EPIPE, SystemError } from "./errno.ts";
import { errno, fixedBytes, libc } from "./ffi.ts";
import { closeFd } from "./socket.ts";

const F_GETFD = 1;
const FD_CLOEXEC = 1;

/**
 * Checks that whoever started this process has left descriptor `fd` open for it.
 *
 * @throws {RangeError} when it is not open, or this process has opened it itself.
 */
export function checkReadyFd(fd: number): void {
  const flags = libc().fcntl(fd, F_GETFD, 0);
  if (flags < 0 && errno() !== EBADF) check(-1, `use descriptor ${fd}`);
  // What is left open by exec() does not have this flag; all that the runtime opens for itself has it.
  if (flags < 0 || (flags & FD_CLOEXEC) !== 0) {
    throw new RangeError(
      `Cannot tell of readiness by descriptor ${fd}: it is not open for this process`,
    );
  }
}

/**
 * Tells whoever started this process that it is ready: a newline on descriptor `fd`, which is closed then. One that
 * has hung up is told nothing.
 *
 * @throws {SystemError} when the descriptor takes no newline; it stays open.
 */
export function tellReady(fd: number): void {
  const newline = fixedBytes(1);
  newline[0] = 0x0a;
  const written = libc().write(fd, newline, 1);
  const error = written < 0 ? errno() : 0;
  if (error !== 0 && error !== EPIPE) {
    throw new SystemError(`tell of readiness by descriptor ${fd}`, error);
  }
  closeFd(fd);
}
