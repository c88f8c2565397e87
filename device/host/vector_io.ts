import { MAX_SEGMENTS, type Segments } from "../vsock/segments.ts";
import { EAGAIN, EINTR } from "./errno.ts";
import { addressOf, errno, fixedBytes, libc } from "./ffi.ts";
import { receiveBytes, sendBytes } from "./socket.ts";

const MSG_CTRUNC = 0x8;
const MSG_DONTWAIT = 0x40;
const MSG_TRUNC = 0x20;
const MSG_NOSIGNAL = 0x4000;

const IOVEC_WORDS = 4;
const MSGHDR_BYTES = 56;
const MSG_IOV = 16;
/** Index of the low half of `msg_iovlen` in 32-bit words. */
const MSG_IOVLEN_WORD = 6;
/** Index of `msg_flags` in 32-bit words. */
const MSG_FLAGS_WORD = 12;

const MSG_IOVLEN = 24;
const MSG_CONTROL = 32;
const MSG_CONTROLLEN = 40;
/** `struct cmsghdr` and `struct ucred`: no room for descriptors, which a host program might send. */
const CONTROL_BYTES = 32;

/** {@link VectorIo.readMessage}: the other end sends no more. No errno has this number. */
export const END_OF_FILE = -4096;

const SCRATCH_BYTES = 65_536;
/**
 * Unread bytes that a graceful close throws away; more than a socket holds by default (208 KiB).
 * Beyond it the host program may read "connection reset" instead of its end of file.
 */
const MAX_DISCARD_BYTES = 8 * 1024 * 1024;

/**
 * Gathering writes and scattering reads between a socket and guest memory, straight at the
 * addresses where the memory is mapped: the kernel copies, JavaScript touches no payload byte.
 * Memory without an address is copied through a scratch buffer.
 *
 * One serves all streams of a thread. The calls return a count, 0 at the end of file, or a
 * negative errno.
 */
export class VectorIo {
  /** The last `read()` took all there was: the next one would find nothing, unless something has come. */
  drained = false;

  // The list of (base, length) that readv and sendmsg take: per segment base low, base high,
  // length, 0. Halves of 32 bits, because a BigInt costs 20 times as much.
  #iovec: Uint32Array<ArrayBuffer> = new Uint32Array(
    new ArrayBuffer(MAX_SEGMENTS * IOVEC_WORDS * 4),
  );
  #header: Uint32Array<ArrayBuffer> = new Uint32Array(
    new ArrayBuffer(MSGHDR_BYTES),
  );
  #scratch: Uint8Array<ArrayBuffer> = fixedBytes(SCRATCH_BYTES);
  #message: Uint8Array<ArrayBuffer> = fixedBytes(MSGHDR_BYTES);
  #messageIovec: Uint8Array<ArrayBuffer> = fixedBytes(16);
  #control: Uint8Array<ArrayBuffer> = fixedBytes(CONTROL_BYTES);

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

  /** Sends segments as one message, whole or not at all. */
  writeMessage(fd: number, from: Segments): number {
    if (this.#point(from)) return this.write(fd, from);
    const copy = fixedBytes(from.bytes);
    from.copyTo(copy);
    return sendBytes(fd, copy, copy.length);
  }

  /**
   * Receives one message; {@link END_OF_FILE} at the end. The result is greater than the length of `into` where
   * the message is; then the rest of it is lost.
   */
  readMessage(fd: number, into: Uint8Array<ArrayBuffer>): number {
    const header = this.#message;
    const iovec = new DataView(this.#messageIovec.buffer);
    iovec.setBigUint64(0, BigInt(addressOf(into)), true);
    iovec.setBigUint64(8, BigInt(into.length), true);
    const fields = new DataView(header.buffer);
    fields.setBigUint64(MSG_IOV, BigInt(addressOf(this.#messageIovec)), true);
    fields.setBigUint64(MSG_IOVLEN, 1n, true);
    fields.setBigUint64(MSG_CONTROL, BigInt(addressOf(this.#control)), true);
    for (;;) {
      fields.setBigUint64(MSG_CONTROLLEN, BigInt(CONTROL_BYTES), true);
      const received = libc().recvmsg(fd, header, MSG_DONTWAIT | MSG_TRUNC);
      if (received > 0) return received;
      // An empty message has its sender's credentials, the end of file has none.
      if (received === 0) {
        return fields.getBigUint64(MSG_CONTROLLEN, true) > 0n ? 0 : END_OF_FILE;
      }
      const error = errno();
      if (error !== EINTR) return -error;
    }
  }

  /** Receives into segments. */
  read(fd: number, into: Segments): number {
    this.drained = false;
    if (!this.#point(into)) {
      const scratch = this.#scratch;
      const length = Math.min(into.bytes, scratch.length);
      const received = receiveBytes(fd, scratch, length);
      if (received > 0) into.copyFrom(scratch.subarray(0, received));
      return received;
    }
    const header = this.#header;
    header[MSG_IOVLEN_WORD] = into.count;
    for (;;) {
      const received = libc().recvmsg(fd, header, MSG_DONTWAIT);
      if (received >= 0) {
        // A read also ends behind bytes that came with descriptors, which are dropped.
        this.drained = received < into.bytes &&
          (header[MSG_FLAGS_WORD]! & MSG_CTRUNC) === 0;
        return received;
      }
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
