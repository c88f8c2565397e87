/** What can be wrong between a vhost-user front-end and this back-end, by name. */
export type VhostUserErrorCode =
  // The byte stream cannot be trusted any more.
  | "BAD_VERSION"
  | "MESSAGE_TOO_LONG"
  | "TOO_MANY_FDS"
  // A message that is not lawful.
  | "REPLY_FLAG_SET"
  | "PAYLOAD_TOO_SHORT"
  | "NUMBER_TOO_LARGE"
  | "UNKNOWN_REQUEST"
  | "NOT_NEGOTIATED"
  | "BAD_FEATURES"
  | "BAD_PROTOCOL_FEATURES"
  | "BAD_STATUS"
  | "BAD_QUEUE_INDEX"
  | "BAD_VALUE"
  | "MISSING_FD"
  | "UNEXPECTED_FD"
  | "BAD_CONFIG_ACCESS"
  // Memory and rings.
  | "BAD_MEMORY_REGION"
  | "TOO_MANY_REGIONS"
  | "MAP_FAILED"
  | "RING_RUNNING"
  | "RING_NOT_IN_MEMORY"
  | "BAD_RING"
  | "BAD_VRING_BASE"
  | "BAD_INFLIGHT_REGION"
  | "BUFFERS_LOST"
  | "NO_LOG"
  // This side.
  | "SESSION_CLOSED";

/**
 * A fault of a vhost-user front-end, or of what it hands over.
 *
 * `code` names the rule and `section` the heading in the vhost-user specification (QEMU,
 * docs/interop/vhost-user) that states it. The front-end is answered by a non-zero reply where it
 * asked for one; with `fatal` the session ends after that, as the stream or what was negotiated
 * leaves no way to go on.
 */
export class VhostUserError extends Error {
  /** `"VhostUserError"`. */
  override readonly name = "VhostUserError";
  /** The rule that was broken. */
  readonly code: VhostUserErrorCode;
  /** Heading in the vhost-user specification, such as `"Header"`. */
  readonly section: string;
  /** True when the session ends: its socket is to be closed. */
  readonly fatal: boolean;

  /** Makes an error of `code`, with words for the log; built only on the failing path. */
  constructor(
    code: VhostUserErrorCode,
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
