/**
 * A client of QEMU's machine protocol (QMP) over a Unix socket.
 *
 * @module
 */

import { LineSplitter } from "./control.ts";

/** Thrown when QEMU refuses a command. */
export class QmpError extends Error {
  /**
   * Made by the client.
   *
   * @param command The command.
   * @param description QEMU's words.
   */
  constructor(command: string, description: string) {
    super(`Cannot ${command}: ${description}`);
    this.name = "QmpError";
  }
}

interface QmpMessage {
  QMP?: unknown;
  id?: number;
  return?: unknown;
  error?: { desc: string };
  event?: string;
}

interface Waiting {
  command: string;
  resolve: (value: unknown) => void;
  reject: (reason: Error) => void;
}

/** One connection to a running QEMU. */
export class Qmp {
  /** The names of the events that QEMU has reported, oldest first. */
  readonly events: string[] = [];
  #connection: Deno.UnixConn;
  #waiting: Map<number, Waiting> = new Map<number, Waiting>();
  #nextId = 1;
  #ended: Promise<void>;
  #over = false;

  private constructor(connection: Deno.UnixConn) {
    this.#connection = connection;
    this.#ended = this.#read();
  }

  /**
   * Connects and leaves the negotiation mode.
   *
   * @param path The socket that QEMU's `-qmp unix:` names.
   */
  static async connect(path: string): Promise<Qmp> {
    const qmp = new Qmp(await Deno.connect({ transport: "unix", path }));
    await qmp.execute("qmp_capabilities");
    return qmp;
  }

  /**
   * Runs a command.
   *
   * @param command Its name, such as `stop`.
   * @param args Its arguments.
   * @returns What QEMU returns.
   * @throws {QmpError} If QEMU refuses.
   */
  async execute(
    command: string,
    args?: Record<string, unknown>,
  ): Promise<unknown> {
    if (this.#over) throw new QmpError(command, "QEMU has ended");
    const id = this.#nextId++;
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    this.#waiting.set(id, { command, resolve, reject });
    let bytes = new TextEncoder().encode(
      JSON.stringify({ execute: command, arguments: args, id }) + "\n",
    );
    try {
      while (bytes.byteLength > 0) {
        bytes = bytes.subarray(await this.#connection.write(bytes));
      }
    } catch (error) {
      this.#waiting.delete(id);
      throw new QmpError(command, `QEMU has ended (${error})`);
    }
    return await promise;
  }

  /** Closes the connection; QEMU goes on. */
  async close(): Promise<void> {
    if (!this.#over) {
      this.#over = true;
      this.#connection.close();
    }
    await this.#ended;
  }

  async #read(): Promise<void> {
    const lines = new LineSplitter();
    const buffer = new Uint8Array(16 * 1024);
    try {
      for (;;) {
        const count = await this.#connection.read(buffer);
        if (count === null) break;
        for (const line of lines.split(buffer.subarray(0, count))) {
          this.#take(line);
        }
      }
    } catch {
      // Closed here, or QEMU was killed.
    }
    if (!this.#over) {
      this.#over = true;
      this.#connection.close();
    }
    for (const one of this.#waiting.values()) {
      one.reject(new QmpError(one.command, "QEMU has ended"));
    }
    this.#waiting.clear();
  }

  #take(line: string): void {
    if (line.trim() === "") return;
    const message = JSON.parse(line) as QmpMessage;
    if (message.event !== undefined) this.events.push(message.event);
    const one = this.#waiting.get(message.id ?? -1);
    if (one === undefined) return;
    this.#waiting.delete(message.id!);
    if (message.error !== undefined) {
      one.reject(new QmpError(one.command, message.error.desc));
    } else {
      one.resolve(message.return);
    }
  }
}
