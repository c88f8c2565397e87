/** Shared memory of a front-end, mapped into this process. */
export type MappedMemory = {
  /** The mapped bytes. */
  readonly buffer: ArrayBuffer;
  /** Address of `buffer`'s first byte in this process; 0 where there is none (tests). */
  readonly hostAddress: number;
  /** Detaches `buffer`, so that a late access throws instead of crashing, then unmaps it. */
  release(): void;
};

/**
 * What a vhost-user session needs from its surroundings: everything that touches a file
 * descriptor. File descriptors are opaque numbers to the session; it hands each one that it
 * received to exactly one of these calls, which then owns it, also when the call throws.
 */
export interface SessionPorts {
  /**
   * Maps `size` bytes of `fd` from file offset `offset` on, and closes the descriptor.
   *
   * `offset` and `size` need not be multiples of a page. Throws {@link VhostUserError} when the
   * file is shorter than that or cannot be mapped.
   */
  map(fd: number, size: number, offset: number): MappedMemory;

  /** Makes a new shared memory file of `size` bytes: its mapping, and a descriptor to send. */
  allocate(size: number): { memory: MappedMemory; fd: number };

  /** Kicks for queue `index` come from `fd` (an eventfd); -1 ends it. Closes the one before. */
  setKick(index: number, fd: number): void;

  /** Interrupts of queue `index` go to `fd` (an eventfd or a stream socket); -1 ends it. */
  setCall(index: number, fd: number): void;

  /** Errors of queue `index` go to `fd`; -1 ends it. */
  setErr(index: number, fd: number): void;

  /** Signals the call descriptor of queue `index`; nothing where there is none. */
  call(index: number): void;

  /** Signals the error descriptor of queue `index`; nothing where there is none. */
  signalErr(index: number): void;

  /** Requests to the front-end go to `fd`, a stream socket; -1 ends it. */
  setBackendChannel(fd: number): void;

  /** Sends a request of the back-end on that channel; false where there is no channel. */
  sendBackendRequest(message: Uint8Array): boolean;

  /** Sends a reply to the front-end, with descriptors that stay the caller's until it returns. */
  reply(message: Uint8Array, fds: readonly number[]): void;

  /** Closes a descriptor that the session has no use for. */
  closeFd(fd: number): void;
}
