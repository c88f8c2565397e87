/** How much a log line matters, least first. */
export type LogLevel = "debug" | "info" | "warn" | "error";

/** Takes a log line; without a newline. */
export type Log = (level: LogLevel, text: string) => void;

/**
 * Counters by kind, and one log line for the first of each kind.
 *
 * A guest can cause any number of faults, so the text is built for the first of a kind only; the
 * counter tells the rest.
 */
export class Diagnostics {
  /** Occurrences by kind, since the device was made. */
  readonly counters: Map<string, number> = new Map();
  /** Where lines go. */
  readonly log: Log;

  /** Makes an empty set of counters that logs to `log`; to nowhere unless told. */
  constructor(log: Log = () => {}) {
    this.log = log;
  }

  /** Counts one `kind`; `text` is called, and logged as a warning, for the first of its kind. */
  fault(kind: string, text: () => string): void {
    this.count(kind);
    if (this.counters.get(kind) === 1) {
      this.log("warn", `${kind}: ${text()} (further ones are only counted)`);
    }
  }

  /** Counts one `kind` without a line. */
  count(kind: string): void {
    this.counters.set(kind, (this.counters.get(kind) ?? 0) + 1);
  }
}
