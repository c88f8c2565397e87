/**
 * Shared memory of another process, mapped into this one.
 *
 * The other process is not trusted, and it can shrink the file behind a mapping at any time. A
 * load or store of a page that the file no longer has raises SIGBUS, which kills this process:
 * JavaScript cannot catch it. So, in this order:
 *
 * 1. The file is sealed against shrinking (`F_SEAL_SHRINK`) where it is a memfd that allows it;
 *    many are sealed by their owner already. The owner's `ftruncate` then fails with EPERM, and
 *    nothing can happen any more.
 * 2. A file that takes no seal (on disk, on tmpfs, a memfd made without MFD_ALLOW_SEALING) is
 *    watched: {@link Mapping.intact} asks for its size again. Its user calls that before each
 *    batch of work and drops the mapping when it answers false. **A window remains**: a file that
 *    shrinks while a batch is under way can still kill the process, one Worker's device and all.
 *    A front-end that wants to be safe from its own tricks uses a sealable memfd.
 *
 * Payload bytes are safe in both cases: system calls touch them, and those answer EFAULT.
 *
 * @module
 */

import { check, SystemError } from "./errno.ts";
import { libc, pointerTo } from "./ffi.ts";

const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 1;
const MAP_FAILED = 0xffff_ffff_ffff_ffffn;

const MFD_CLOEXEC = 1;
const MFD_ALLOW_SEALING = 2;

const F_DUPFD_CLOEXEC = 1030;
const F_ADD_SEALS = 1033;
const F_GET_SEALS = 1034;
const F_SEAL_SHRINK = 2;

const PAGE_BYTES = 4096;
/** Largest page size that a file may ask for: hugetlbfs has at most 1 GiB (16 GiB on arm64). */
const MAX_PAGE_BYTES = 2 ** 34;

// struct stat is 144 bytes on x86-64 and 128 on arm64; these two lie at the same place on both.
const STAT_BYTES = 144;
const ST_SIZE = 48;
const ST_BLKSIZE = 56;

const stat = new DataView(new ArrayBuffer(STAT_BYTES));

/** Bytes of the open file `fd`; its block size is in {@link stat}. */
function fileSize(fd: number): number {
  check(libc().fstat(fd, stat), "read the size of a file");
  return Number(stat.getBigInt64(ST_SIZE, true));
}

/** Makes sure that the file can not shrink any more; false where it cannot be made sure. */
function sealShrink(fd: number): boolean {
  const c = libc();
  const seals = c.fcntl(fd, F_GET_SEALS, 0);
  if (seals < 0) return false;
  if ((seals & F_SEAL_SHRINK) !== 0) return true;
  return c.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) === 0;
}

/** A shared mapping of a part of a file; `MappedMemory` of the vhost-user session. */
export class Mapping {
  /** The mapped bytes; detached by {@link Mapping.release}. */
  readonly buffer: ArrayBuffer;
  /** Address of the first byte in this process. */
  readonly hostAddress: number;
  /** True where the file cannot shrink, so that {@link Mapping.intact} is always true. */
  readonly sealed: boolean;

  #fd: number;
  #fileEnd: number;
  #base: Deno.PointerValue;
  #length: number;

  /**
   * Maps `size` bytes of `fd` from file offset `offset` on, for reading and writing. Neither has
   * to be a multiple of a page. The mapping owns `fd` from the call on, also when it throws.
   *
   * @throws {RangeError} when `size` is 0 or the file is shorter than that; nothing is mapped.
   * @throws {SystemError} when it cannot be mapped.
   */
  constructor(fd: number, size: number, offset: number) {
    const c = libc();
    let kept = false;
    try {
      const end = offset + size;
      if (
        !Number.isSafeInteger(offset) || offset < 0 ||
        !Number.isSafeInteger(size) || size <= 0 || !Number.isSafeInteger(end)
      ) {
        throw new RangeError(
          `Cannot map ${size} bytes at ${offset} of a file: out of range`,
        );
      }
      // First the seal, then the size: the other way round it could shrink in between.
      this.sealed = sealShrink(fd);
      const length = fileSize(fd);
      if (length < end) {
        throw new RangeError(
          `Cannot map ${size} bytes at ${offset} of a file: it has ${length}`,
        );
      }
      // The pages of hugetlbfs are larger, and mmap and munmap want multiples of them.
      const page = pageBytes(stat.getUint32(ST_BLKSIZE, true));
      const start = offset - offset % page;
      const rounded = Math.ceil((end - start) / page) * page;
      const base = c.mmap(
        null,
        BigInt(rounded),
        PROT_READ | PROT_WRITE,
        MAP_SHARED,
        fd,
        BigInt(start),
      );
      if (base === null || Deno.UnsafePointer.value(base) === MAP_FAILED) {
        check(-1, `map ${size} bytes of a file`);
      }
      const skip = offset - start;
      this.#base = base;
      this.#length = rounded;
      this.#fileEnd = end;
      this.hostAddress = Number(Deno.UnsafePointer.value(base)) + skip;
      this.buffer = Deno.UnsafePointerView.getArrayBuffer(
        pointerTo(this.hostAddress)!,
        size,
      );
      kept = !this.sealed;
      this.#fd = kept ? fd : -1;
    } finally {
      if (!kept) c.close(fd);
    }
  }

  /**
   * False when the file has become shorter than what is mapped of it, or the mapping is released:
   * the bytes must not be touched any more. One system call for a file that is not sealed.
   */
  intact(): boolean {
    if (this.#base === null) return false;
    if (this.#fd < 0) return true;
    try {
      return fileSize(this.#fd) >= this.#fileEnd;
    } catch (error) {
      if (error instanceof SystemError) return false;
      throw error;
    }
  }

  /** Detaches `buffer`, so that a late access finds no bytes instead of crashing, then unmaps it. */
  release(): void {
    if (this.#base === null) return;
    const c = libc();
    this.buffer.transfer(0);
    c.munmap(this.#base, BigInt(this.#length));
    this.#base = null;
    if (this.#fd >= 0) c.close(this.#fd);
    this.#fd = -1;
  }
}

function pageBytes(blockSize: number): number {
  const power = (blockSize & (blockSize - 1)) === 0;
  return power && blockSize > PAGE_BYTES && blockSize <= MAX_PAGE_BYTES
    ? blockSize
    : PAGE_BYTES;
}

/** How {@link createMemfd} makes the file. */
export type MemfdOptions = {
  /** Whether seals may be added. True unless told. */
  sealable?: boolean;
};

/**
 * Makes an anonymous file of `size` zero bytes, for memory that is shared by passing its
 * descriptor; the caller owns the descriptor.
 *
 * @throws {SystemError} when the system is out of descriptors or memory.
 */
export function createMemfd(size: number, options: MemfdOptions = {}): number {
  const c = libc();
  const name = new TextEncoder().encode("ringside\0");
  const flags = MFD_CLOEXEC |
    (options.sealable ?? true ? MFD_ALLOW_SEALING : 0);
  const fd = check(c.memfd_create(name, flags), "create shared memory");
  try {
    resizeFile(fd, size);
  } catch (error) {
    c.close(fd);
    throw error;
  }
  return fd;
}

/**
 * Makes the file `fd` `size` bytes long.
 *
 * @throws {SystemError} `EPERM` where a seal forbids it.
 */
export function resizeFile(fd: number, size: number): void {
  check(libc().ftruncate(fd, BigInt(size)), `resize a file to ${size} bytes`);
}

/** A second descriptor of the same open file. */
export function duplicateFd(fd: number): number {
  return check(libc().fcntl(fd, F_DUPFD_CLOEXEC, 3), "duplicate a descriptor");
}
