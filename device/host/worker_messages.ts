import type { LogLevel } from "../diagnostics.ts";
import type { DeviceHostOptions } from "./device_host.ts";

/** Bit of the command word: stop. */
export const COMMAND_STOP = 1;
/** Bit of the command word: send a {@link FromWorker} `metrics`. */
export const COMMAND_METRICS = 2;

/** Log levels, least first. */
export const LOG_LEVELS: readonly LogLevel[] = [
  "debug",
  "info",
  "warn",
  "error",
];

/**
 * The one message to a device's Worker. Its thread is blocked in `epoll_wait` afterwards and
 * receives no other: commands go through the shared word and the eventfd.
 */
export type ToWorker = {
  /** What to run. */
  readonly options: DeviceHostOptions;
  /** Lines below it are not sent. */
  readonly logLevel: LogLevel;
  /** One word, an OR of `COMMAND_` bits, which the Worker takes. */
  readonly commands: SharedArrayBuffer;
  /** An eventfd, written after each change of the word; the sender's to close. */
  readonly eventFd: number;
};

/** What a device's Worker tells. */
export type FromWorker =
  /** It listens on both sockets. */
  | { readonly type: "listening" }
  /** It cannot start; `kind` is the name of the error's class. */
  | { readonly type: "failed"; readonly kind: string; readonly text: string }
  /** A line for the log. */
  | { readonly type: "log"; readonly level: LogLevel; readonly text: string }
  /** The answer to `COMMAND_METRICS`. */
  | { readonly type: "metrics"; readonly values: Record<string, number> }
  /** It has stopped, as told, or by an error; it says no more. */
  | { readonly type: "stopped"; readonly error: string | null };
