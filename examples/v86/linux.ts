/**
 * Boots a real Linux in this process and gives a shell in it, whose vsock reaches the host:
 * `deno task linux --help`.
 *
 * @module
 */

// deno-lint-ignore-file no-console

import type { LoopbackConn } from "../../device/vsock/loopback.ts";
import { bootedMachine } from "./booted.ts";
import {
  type Address,
  HELP,
  type LinuxArgs,
  parseLinuxArgs,
  UsageError,
} from "./linux_args.ts";
import { Machine } from "./machine.ts";

/** Host port from which the guest reads standard input. */
const INPUT_PORT = 0xffff_0000;
/** The guest's first process ends its words with this and a code. */
const END = "\x1b]ringside;";
/** Ctrl-], as telnet has it. */
const ESCAPE = 0x1d;

/** Splits what the guest says from the code with which it ends. */
class Console {
  /** The code of what has run in the guest. */
  readonly code: Promise<number>;
  #ended: (code: number) => void = () => {};
  #held = "";

  constructor() {
    this.code = new Promise((resolve) => this.#ended = resolve);
  }

  /** Takes a byte from the guest. */
  take(byte: number): void {
    const char = String.fromCharCode(byte);
    if (this.#held.startsWith(END)) {
      if (char === "\x07") this.#ended(Number(this.#held.slice(END.length)));
      else this.#held += char;
      return;
    }
    const held = this.#held + char;
    if (END.startsWith(held)) {
      this.#held = held;
      return;
    }
    this.#held = "";
    if (held.length > 1 && char === END[0]) {
      this.#held = char;
      this.#write(held.slice(0, -1));
    } else {
      this.#write(held);
    }
  }

  #write(text: string): void {
    const bytes = Uint8Array.from(text, (char) => char.charCodeAt(0));
    for (let at = 0; at < bytes.length;) {
      at += Deno.stdout.writeSync(bytes.subarray(at));
    }
  }
}

function say(text: string): void {
  // A terminal may be raw.
  Deno.stderr.writeSync(new TextEncoder().encode(`linux: ${text}\r\n`));
}

/** Shows what comes over the guest's connections, and sends it back. */
async function listen(machine: Machine, port: number): Promise<void> {
  for await (const conn of machine.listen({ port })) {
    show(conn, port).catch((error) => say(`port ${port}: ${error.message}`));
  }
}

async function show(conn: LoopbackConn, port: number): Promise<void> {
  using _ = conn;
  say(`port ${port}: the guest connects from its port ${conn.guestPort}`);
  const decoder = new TextDecoder();
  for await (const chunk of conn.readable) {
    const text = JSON.stringify(decoder.decode(chunk, { stream: true }));
    say(
      `port ${port}: ${text.length > 200 ? `${text.slice(0, 200)}...` : text}`,
    );
    await conn.write(chunk);
  }
  say(`port ${port}: the guest has closed`);
}

/** Carries bytes both ways until both ends are through. */
async function join(guest: LoopbackConn, host: Deno.Conn): Promise<void> {
  using _ = guest;
  try {
    await Promise.all([
      guest.readable.pipeTo(host.writable, { preventClose: true })
        .then(() => host.closeWrite()),
      (async () => {
        const chunk = new Uint8Array(65_536);
        for (let got; (got = await host.read(chunk)) !== null;) {
          await guest.write(chunk.slice(0, got));
        }
        guest.closeWrite();
      })(),
    ]);
  } finally {
    try {
      host.close();
    } catch {
      // A write that failed has closed it.
    }
  }
}

function words(address: Address): string {
  return address.transport === "unix"
    ? address.path
    : `${address.hostname}:${address.port}`;
}

async function forward(
  machine: Machine,
  port: number,
  to: Address,
): Promise<void> {
  for await (const guest of machine.listen({ port })) {
    (async () => {
      const host = to.transport === "unix"
        ? await Deno.connect(to)
        : await Deno.connect(to);
      await join(guest, host);
    })().catch((error) => {
      guest.close();
      say(`port ${port} to ${words(to)}: ${error.message}`);
    });
  }
}

async function publish(
  machine: Machine,
  listener: Deno.Listener,
  port: number,
): Promise<void> {
  for await (const host of listener) {
    machine.connect({ port }).then(
      (guest) => join(guest, host as Deno.Conn),
      (error) => {
        host.close();
        throw error;
      },
    ).catch((error) => say(`guest port ${port}: ${error.message}`));
  }
}

function quoted(word: string): string {
  return `'${word.replaceAll("'", `'\\''`)}'`;
}

/** Gives the guest standard input over its vsock. */
async function feed(machine: Machine): Promise<void> {
  const listener = machine.listen({ port: INPUT_PORT });
  const conn = await listener.accept();
  listener.close();
  if (conn === null) return;
  // A guest that reads no more is no fault.
  await Deno.stdin.readable.pipeTo(conn.writable).catch(() => {});
}

/** Gives the guest the terminal. */
async function keyboard(machine: Machine): Promise<void> {
  const bytes = new Uint8Array(1024);
  for (let got; (got = await Deno.stdin.read(bytes)) !== null;) {
    const typed = bytes.subarray(0, got);
    if (typed.includes(ESCAPE)) return;
    machine.emulator.serial_send_bytes(0, typed);
  }
}

/** The line with which the guest goes on. */
function firstLine(args: LinuxArgs): string {
  const command = args.command.map(quoted).join(" ");
  if (!Deno.stdin.isTerminal()) {
    // Bytes come as they are written, and standard input is not mixed with the console's.
    return `stty raw; vsock connect ${INPUT_PORT} </dev/null | ${
      command || "sh"
    }`;
  }
  if (command !== "") return `stty raw; ${command} </dev/null`;
  const { columns, rows } = Deno.consoleSize();
  // Some terminals do not know their size.
  const size = columns > 0 && rows > 0 ? `columns ${columns} rows ${rows}` : "";
  return `stty echo ${size}; cd; setsid cttyhack sh`;
}

async function run(args: LinuxArgs): Promise<number> {
  const { parts, file } = await bootedMachine(say);
  const terminal = new Console();
  const { machine } = await Machine.restore({
    build: parts.build,
    ring: args.ring,
    guestCid: args.guestCid,
    serial: (byte) => terminal.take(byte),
  }, file);
  for (const port of args.listen) listen(machine, port);
  for (const { port, to } of args.forward) forward(machine, port, to);
  const listeners: { close(): void }[] = [];
  for (const { from, port } of args.publish) {
    const listener: Deno.Listener = from.transport === "unix"
      ? Deno.listen(from) as Deno.Listener
      : Deno.listen(from);
    listeners.push(listener);
    publish(machine, listener, port);
  }
  const shell = Deno.stdin.isTerminal() && args.command.length === 0;
  try {
    if (shell) Deno.stdin.setRaw(true);
    await machine.run();
    machine.type(`${firstLine(args)}\n`);
    if (!Deno.stdin.isTerminal()) feed(machine);
    return await Promise.race([
      terminal.code,
      ...shell ? [keyboard(machine).then(() => 0)] : [],
    ]);
  } finally {
    if (shell) Deno.stdin.setRaw(false);
    for (const listener of listeners) listener.close();
    for (const { from } of args.publish) {
      if (from.transport === "unix") await Deno.remove(from.path);
    }
    await machine.close();
  }
}

async function main(): Promise<number> {
  try {
    const args = parseLinuxArgs(Deno.args);
    if (args === "help") {
      console.log(HELP.trimEnd());
      return 0;
    }
    return await run(args);
  } catch (error) {
    say(error instanceof Error ? error.message : String(error));
    return error instanceof UsageError ? 2 : 1;
  }
}

if (import.meta.main) Deno.exit(await main());
