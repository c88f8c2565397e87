/**
 * What can be wrong with a virtqueue, by name.
 *
 * A *fault of a chain* concerns one buffer: the queue can still name it, so it is completed with
 * a used length of 0 and the queue goes on. A *fault of the ring* leaves no way to tell which
 * buffer comes next: the queue stops until it is reset (virtio 1.4, 2.1.2 DEVICE_NEEDS_RESET).
 */
export type RingErrorCode =
  // Faults of the ring.
  | "AVAIL_IDX_JUMP"
  | "HEAD_OUT_OF_RANGE"
  | "ID_IN_FLIGHT"
  | "CHAIN_TOO_LONG_FOR_RING"
  // Faults of a chain.
  | "NEXT_OUT_OF_RANGE"
  | "DESCRIPTOR_LOOP"
  | "INDIRECT_NOT_NEGOTIATED"
  | "INDIRECT_WITH_NEXT"
  | "INDIRECT_NESTED"
  | "INDIRECT_TABLE_SIZE"
  | "READABLE_AFTER_WRITABLE"
  | "BAD_ADDRESS"
  // Faults that a driver sees in what a device wrote.
  | "USED_IDX_JUMP"
  | "USED_ID_UNKNOWN"
  | "USED_LEN_TOO_LARGE"
  // Faults of a queue's configuration or of a saved state.
  | "BAD_QUEUE_SIZE"
  | "BAD_QUEUE_ADDRESS"
  | "BAD_QUEUE_STATE";

/**
 * A fault of the other side of a virtqueue: a guest that breaks the rules of the ring, or a
 * saved state that no queue can have been in.
 *
 * `code` names the rule, `section` the place in the virtio 1.4 specification that states it.
 * `fatal` tells whether the queue must stop (true) or only the one buffer is bad (false).
 */
export class RingError extends Error {
  /** Always `"RingError"`. */
  override readonly name = "RingError";
  /** The rule that was broken. */
  readonly code: RingErrorCode;
  /** Section of the virtio 1.4 specification, such as `"2.7.5.3.1"`. */
  readonly section: string;
  /** True when the queue cannot go on; its device answers with DEVICE_NEEDS_RESET. */
  readonly fatal: boolean;

  /** Makes an error of `code`, with words for the log; built only on the failing path. */
  constructor(
    code: RingErrorCode,
    section: string,
    message: string,
    fatal = false,
  ) {
    super(message);
    this.code = code;
    this.section = section;
    this.fatal = fatal;
  }
}
