import type { GuestConnection } from "./guest_connection.ts";

/** A guest port on which connections are accepted. */
export class GuestListener {
  /** The port. */
  readonly port: number;
  /** Connections that may wait for `accept()`; one more is refused by RST. */
  readonly backlog: number;
  /** Socket type of its connections. */
  readonly type: number;
  readonly #waiting: GuestConnection[] = [];
  readonly #close: () => void;

  /** Made by {@link VsockDriver.listen}. */
  constructor(port: number, backlog: number, type: number, close: () => void) {
    this.port = port;
    this.type = type;
    this.backlog = backlog;
    this.#close = close;
  }

  /** Connections that wait. */
  get waiting(): number {
    return this.#waiting.length;
  }

  /** Takes the connection that has waited longest, or null. It is connected already. */
  accept(): GuestConnection | null {
    return this.#waiting.shift() ?? null;
  }

  /** Queues a connection; called by the driver. */
  push(connection: GuestConnection): void {
    this.#waiting.push(connection);
  }

  /** Stops listening and aborts the connections that nobody has accepted. */
  close(): void {
    this.#close();
    for (const connection of this.#waiting.splice(0)) connection.abort();
  }
}
