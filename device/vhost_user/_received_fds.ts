import { VhostUserError } from "./errors.ts";
import type { SessionPorts } from "./ports.ts";

/** Descriptors of one message: each is taken once, and what nobody took is closed. */
export class ReceivedFds {
  readonly #fds: readonly number[];
  readonly #ports: SessionPorts;
  #taken = 0;

  /** Takes the descriptors over. */
  constructor(fds: readonly number[], ports: SessionPorts) {
    this.#fds = fds;
    this.#ports = ports;
  }

  /** Checks that there are exactly `count`. */
  expect(count: number, section: string): void {
    if (this.#fds.length === count) return;
    throw new VhostUserError(
      this.#fds.length < count ? "MISSING_FD" : "UNEXPECTED_FD",
      section,
      `Cannot serve the request: ${this.#fds.length} descriptors came with it, not ${count}`,
    );
  }

  /** The next descriptor; whoever gets it owns it. */
  take(): number {
    return this.#fds[this.#taken++]!;
  }

  /** Closes the rest and returns how many that were. */
  close(): number {
    const rest = this.#fds.slice(this.#taken);
    this.#taken = this.#fds.length;
    for (const fd of rest) this.#ports.closeFd(fd);
    return rest.length;
  }
}
