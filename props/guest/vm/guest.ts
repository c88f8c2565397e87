/**
 * A running Linux guest with an agent in it: booting, calls to the agent, programs
 * run in it, and its end.
 *
 * @module
 */

import {
  type AgentCall,
  type AgentReady,
  type AgentRequest,
  type CallOptions,
  ControlChannel,
} from "./control.ts";
import { cachedKernel } from "./kernel.ts";
import {
  missingPrograms,
  MissingProgramsError,
  type VmKind,
} from "./programs.ts";
import { qemuMachine } from "./qemu.ts";
import { Qmp } from "./qmp.ts";
import type { Machine } from "./setup.ts";
import { umlMachine } from "./uml.ts";

/** Settings of a guest. */
export interface GuestOptions {
  /** The machine. */
  readonly vm: VmKind;
  /**
   * The vhost-user socket of its vsock device, already served by a back-end; left
   * out, the guest has no such device.
   */
  readonly socketPath?: string;
  /**
   * Whether QEMU offers packed rings to the guest; default false. A user-mode-linux
   * guest takes what the device offers.
   */
  readonly packed?: boolean;
  /** Memory in MiB, 64 at least; default 384. */
  readonly memoryMiB?: number;
  /** Host files and folders, absolute, that a QEMU guest gets too. */
  readonly include?: readonly string[];
  /** The working directory of programs; default the host's, where the guest has it. */
  readonly directory?: string;
  /** A file that gets all that appears on the console. */
  readonly consoleLog?: string;
  /** Told all that appears on the console, as it appears. */
  readonly onConsole?: (text: string) => void;
  /** Told in words what takes a while before the boot. */
  readonly onProgress?: (text: string) => void;
  /** Time until the agent must listen, in milliseconds; default 60,000. */
  readonly bootTimeoutMs?: number;
  /** Aborted, it ends a boot that is under way; without effect afterwards. */
  readonly signal?: AbortSignal;
  /**
   * True to boot user-mode-linux with the help that it needs on hosts with AMX, even
   * on others; default, `RINGSIDE_PTRACE_SHIM=1` in the environment.
   */
  readonly forcePtraceShim?: boolean;
}

/** Settings of a program that is run in a guest. */
export interface ExecOptions {
  /** Its standard input; default none. */
  readonly stdin?: string | Uint8Array | ReadableStream<Uint8Array>;
  /** Environment variables beside the guest's. */
  readonly env?: Readonly<Record<string, string>>;
  /** Its working directory. */
  readonly cwd?: string;
  /** A terminal of this size instead of pipes; standard error is in it then. */
  readonly terminal?: TerminalSize;
  /** Time until it is killed, in milliseconds; default 60,000. */
  readonly timeoutMs?: number;
  /** Told when it runs. */
  readonly onStarted?: (program: RunningProgram) => void;
  /** Takes its output as it comes; it is not in the result then. */
  readonly onStdout?: (bytes: Uint8Array<ArrayBuffer>) => void;
  /** The same for standard error. */
  readonly onStderr?: (bytes: Uint8Array<ArrayBuffer>) => void;
}

/** The size of a terminal in characters. */
export interface TerminalSize {
  /** Lines. */
  readonly rows: number;
  /** Characters a line. */
  readonly columns: number;
}

/** A program that runs in a guest. */
export interface RunningProgram {
  /** Its process id in the guest. */
  readonly pid: number;
  /** Sends a signal, by its number, to it and to what it has started. */
  signal(signal: number): Promise<void>;
  /** Tells its terminal's new size, if it has a terminal. */
  resize(size: TerminalSize): Promise<void>;
}

/** How a program in a guest ended. */
export interface ExecResult {
  /** Its exit code, 128 + signal if a signal ended it, 127 if it is not there. */
  readonly code: number;
  /** What it wrote, as text. */
  readonly stdout: string;
  /** The same of standard error. */
  readonly stderr: string;
  /** What it wrote, as bytes. */
  readonly stdoutBytes: Uint8Array<ArrayBuffer>;
}

/** Default boot timeout in milliseconds. */
export const BOOT_TIMEOUT_MS = 60_000;

/** Time that a guest has to power itself off, in milliseconds. */
export const SHUTDOWN_TIMEOUT_MS = 15_000;

/** What a BIOS sends to clear a screen. */
// deno-lint-ignore no-control-regex
const TERMINAL_SEQUENCES = /\x1b(?:c|\[[0-9;?]*[A-Za-z])/g;

const CONSOLE_KEPT_CHARACTERS = 256 * 1024;
const CONSOLE_QUOTED_CHARACTERS = 2000;
const INPUT_CHUNK_BYTES = 24 * 1024;
const AGENT_SILENT_MS = 5_000;
const SIGKILL = 9;

/**
 * A running guest. Dispose of it (`await using`) so that nothing stays behind; it
 * also ends when the process that booted it does.
 */
export class Guest implements AsyncDisposable {
  /** The machine that it runs in. */
  readonly vm: VmKind;
  /** The process id of its machine on the host. */
  readonly pid: number;
  /** Settled with the machine's exit status, after all of it has gone. */
  readonly exited: Promise<Deno.CommandStatus>;
  /** What its agent said of itself; set once it has booted. */
  info: AgentReady = { cid: null, kernel: "", python: "", uptime: 0 };
  /** Milliseconds from the machine's start until the agent listened. */
  bootMs = 0;
  #child: Deno.ChildProcess;
  #channel: ControlChannel;
  #folder: string;
  #qmpPath: string | undefined;
  #qmp: Promise<Qmp> | undefined;
  #console = "";
  #gone = false;
  #onUnload: () => void = () => this.#signalGroup();

  private constructor(
    machine: Machine,
    options: GuestOptions,
    folder: string,
  ) {
    this.vm = options.vm;
    this.#folder = folder;
    this.#qmpPath = machine.qmpPath;
    // A group of its own: user-mode-linux leaves helpers behind when it is killed.
    this.#child = new Deno.Command(machine.command, {
      args: [...machine.args],
      env: { ...machine.env },
      stdin: "piped",
      stdout: "piped",
      stderr: "piped",
      detached: true,
    }).spawn();
    this.pid = this.#child.pid;
    globalThis.addEventListener("unload", this.#onUnload);
    const reading = this.#readConsole(options);
    this.#channel = new ControlChannel(this.#child.stdout, this.#child.stdin, {
      window: machine.window,
      onNoise: (line) => this.#keep(`${line}\n`, options),
    });
    this.exited = this.#watch(reading);
  }

  /** Used by {@linkcode bootGuest}. */
  static async boot(options: GuestOptions): Promise<Guest> {
    const missing = missingPrograms(
      options.vm,
      options.vm === "qemu" && await cachedKernel() !== undefined,
    );
    if (missing.length > 0) throw new MissingProgramsError(options.vm, missing);
    const folder = await Deno.makeTempDir({ prefix: "ringside-guest-" });
    let guest: Guest;
    try {
      const prepare = options.vm === "uml" ? umlMachine : qemuMachine;
      const machine = await prepare({
        folder,
        socketPath: options.socketPath,
        packed: options.packed ?? false,
        memoryMiB: options.memoryMiB ?? 384,
        include: options.include ?? [],
        directory: options.directory ?? Deno.cwd(),
        forcePtraceShim: options.forcePtraceShim ??
          Deno.env.get("RINGSIDE_PTRACE_SHIM") === "1",
        onProgress: options.onProgress ?? (() => {}),
      });
      options.signal?.throwIfAborted();
      guest = new Guest(machine, options, folder);
    } catch (error) {
      await Deno.remove(folder, { recursive: true });
      throw error;
    }
    const stop = (): void => guest.#signalGroup();
    options.signal?.addEventListener("abort", stop);
    try {
      await guest.#awaitAgent(options.bootTimeoutMs ?? BOOT_TIMEOUT_MS);
      // 70 MB that QEMU holds in its memory by now.
      await Deno.remove(`${folder}/initrd`).catch(() => {});
      return guest;
    } catch (error) {
      await guest.kill();
      options.signal?.throwIfAborted();
      throw error;
    } finally {
      options.signal?.removeEventListener("abort", stop);
    }
  }

  /** What has appeared on its console, the last 256 Ki characters. */
  get console(): string {
    return this.#console;
  }

  /**
   * Starts an operation of the agent, to follow its events.
   *
   * @param request The operation and its arguments.
   * @param options Time and listener.
   */
  start(request: AgentRequest, options: CallOptions = {}): AgentCall {
    return this.#channel.start(request, options);
  }

  /**
   * Runs an operation of the agent to its end.
   *
   * @param request The operation and its arguments.
   * @param options Time and listener.
   * @returns What it answers.
   */
  async agent<Result = unknown>(
    request: AgentRequest,
    options: CallOptions = {},
  ): Promise<Result> {
    // With no one to take them, events need not be kept.
    const onEvent = options.onEvent ?? (() => {});
    return await this.start(request, { ...options, onEvent }).result as Result;
  }

  /**
   * Executes Python code in the guest, with the agent's helpers at hand.
   *
   * @param code Statements; what they leave in `result` is answered.
   * @param args What they find in `args`.
   * @param options Time and listener.
   */
  async python<Result = unknown>(
    code: string,
    args: Record<string, unknown> = {},
    options: CallOptions = {},
  ): Promise<Result> {
    return await this.agent<Result>({ op: "python", code, args }, options);
  }

  /**
   * Runs a program in the guest.
   *
   * @param argv The program and its arguments.
   * @param options Input, output, environment and time.
   * @throws {Error} If it takes too long: it is killed then.
   */
  async exec(
    argv: readonly string[],
    options: ExecOptions = {},
  ): Promise<ExecResult> {
    const stdout: Uint8Array<ArrayBuffer>[] = [];
    const stderr: Uint8Array<ArrayBuffer>[] = [];
    const onStdout = options.onStdout ?? ((bytes) => stdout.push(bytes));
    const onStderr = options.onStderr ?? ((bytes) => stderr.push(bytes));
    const started = Promise.withResolvers<void>();
    const call = this.start({
      op: "spawn",
      argv,
      env: options.env ?? {},
      cwd: options.cwd,
      stdin: options.stdin !== undefined,
      pty: options.terminal,
    }, {
      timeoutMs: Infinity,
      onEvent: (event) => {
        if (event.event === "started") {
          started.resolve();
          options.onStarted?.(this.#program(call, event.pid as number));
        } else if (event.event === "stdout") onStdout(bytesOf(event.data));
        else if (event.event === "stderr") onStderr(bytesOf(event.data));
      },
    });
    const timeoutMs = options.timeoutMs ?? 60_000;
    let late = false;
    let timer = timeoutMs === Infinity ? undefined : setTimeout(() => {
      late = true;
      this.#program(call, 0).signal(SIGKILL).catch(() => {});
      // An agent that does not answer any more is no reason to wait for ever.
      timer = setTimeout(
        () => call.fail(this.#error("the agent is silent")),
        AGENT_SILENT_MS,
      );
    }, timeoutMs);
    const ended = new AbortController();
    const feeding = options.stdin === undefined
      ? Promise.resolve()
      : started.promise.then(() => this.#feed(call, options.stdin!, ended));
    feeding.catch(() => {});
    try {
      const { code } = await call.result as { code: number };
      if (late) {
        throw this.#error(
          `${
            argv[0]
          } did not end in ${timeoutMs} ms and was killed; it wrote:\n` +
            textOf([...stdout, ...stderr]).slice(-CONSOLE_QUOTED_CHARACTERS),
        );
      }
      return {
        code,
        stdout: textOf(stdout),
        stderr: textOf(stderr),
        stdoutBytes: joined(stdout),
      };
    } finally {
      clearTimeout(timer);
      ended.abort();
    }
  }

  /**
   * Runs a command of QEMU's machine protocol, such as `stop` or `cont`.
   *
   * @param command Its name.
   * @param args Its arguments.
   * @throws {TypeError} If the machine is not QEMU.
   */
  async qmp(
    command: string,
    args?: Record<string, unknown>,
  ): Promise<unknown> {
    if (this.#qmpPath === undefined) {
      throw new TypeError(`Cannot ${command}: ${this.vm} has no QMP`);
    }
    this.#qmp ??= Qmp.connect(this.#qmpPath);
    return await (await this.#qmp).execute(command, args);
  }

  /**
   * Powers the guest off from inside and waits until its machine has gone.
   *
   * @throws {Error} If that takes longer than 15 s: it is killed then.
   */
  async shutdown(): Promise<void> {
    if (this.#gone) return;
    await this.start({ op: "poweroff" }, { timeoutMs: SHUTDOWN_TIMEOUT_MS })
      .result.catch(() => {});
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<true>((resolve) => {
      timer = setTimeout(() => resolve(true), SHUTDOWN_TIMEOUT_MS);
    });
    const isLate = await Promise.race([late, this.exited.then(() => false)]);
    clearTimeout(timer);
    if (isLate) {
      const error = this.#error(
        `the guest did not power off in ${SHUTDOWN_TIMEOUT_MS} ms and was killed`,
      );
      await this.kill();
      throw error;
    }
  }

  /** Kills the machine at once, like a power failure, and waits until it has gone. */
  async kill(): Promise<void> {
    if (!this.#gone) this.#signalGroup();
    await this.exited;
  }

  /** {@linkcode Guest.kill}, for `await using`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }

  async #awaitAgent(timeoutMs: number): Promise<void> {
    const started = performance.now();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<undefined>((resolve) => {
      timer = setTimeout(() => resolve(undefined), timeoutMs);
    });
    const ended = this.exited.then((status) => {
      throw this.#error(`the machine has ended with ${status.code}`);
    });
    ended.catch(() => {});
    // A closed channel is followed by the end of the machine, which says more.
    const ready = this.#channel.ready.catch(() => ended);
    try {
      const info = await Promise.race([ready, late, ended]);
      if (info === undefined) {
        throw this.#error(`it has not booted in ${timeoutMs} ms`);
      }
      this.info = info;
      this.bootMs = performance.now() - started;
    } finally {
      clearTimeout(timer);
    }
  }

  /** Copies input to a program, one chunk under way at a time. */
  async #feed(
    call: AgentCall,
    stdin: string | Uint8Array | ReadableStream<Uint8Array>,
    ended: AbortController,
  ): Promise<void> {
    const source: AsyncIterable<Uint8Array> = stdin instanceof ReadableStream
      ? readUntil(stdin, ended.signal)
      : ReadableStream.from([
        typeof stdin === "string" ? new TextEncoder().encode(stdin) : stdin,
      ]);
    for await (const bytes of source) {
      for (let at = 0; at < bytes.byteLength; at += INPUT_CHUNK_BYTES) {
        if (ended.signal.aborted) return;
        const data = bytes.subarray(at, at + INPUT_CHUNK_BYTES).toBase64();
        await this.start(
          { op: "input", to: call.id, data },
          { timeoutMs: Infinity },
        ).result;
      }
    }
    if (ended.signal.aborted) return;
    await this.start({ op: "input", to: call.id, eof: true }).result;
  }

  #program(call: AgentCall, pid: number): RunningProgram {
    return {
      pid,
      signal: async (signal) => {
        await this.agent({ op: "signal", to: call.id, signal });
      },
      resize: async ({ rows, columns }) => {
        await this.agent({ op: "resize", to: call.id, rows, columns });
      },
    };
  }

  async #readConsole(options: GuestOptions): Promise<void> {
    const log = options.consoleLog === undefined
      ? undefined
      : await Deno.open(options.consoleLog, {
        write: true,
        create: true,
        truncate: true,
      });
    const decoder = new TextDecoder();
    try {
      for await (const bytes of this.#child.stderr) {
        if (log !== undefined) await log.write(bytes);
        this.#keep(decoder.decode(bytes, { stream: true }), options);
      }
    } finally {
      log?.close();
    }
  }

  #keep(raw: string, options: GuestOptions): void {
    const text = raw.replaceAll(TERMINAL_SEQUENCES, "");
    this.#console = (this.#console + text).slice(-CONSOLE_KEPT_CHARACTERS);
    options.onConsole?.(text);
  }

  /** Waits for the end, then puts everything away. */
  async #watch(reading: Promise<void>): Promise<Deno.CommandStatus> {
    const status = await this.#child.status;
    this.#signalGroup(); // helpers that have outlived it hold its pipes open
    this.#gone = true;
    globalThis.removeEventListener("unload", this.#onUnload);
    await Promise.all([reading.catch(() => {}), this.#channel.ended]);
    await this.#channel.close();
    await this.#qmp?.then((qmp) => qmp.close()).catch(() => {});
    await Deno.remove(this.#folder, { recursive: true }).catch(() => {});
    return status;
  }

  #signalGroup(): void {
    try {
      Deno.kill(-this.pid, "SIGKILL");
    } catch {
      // Nobody is left.
    }
  }

  #error(words: string): Error {
    const tail = this.#console.slice(-CONSOLE_QUOTED_CHARACTERS).trim();
    return new Error(
      `Cannot use the ${this.vm} guest: ${words}` +
        (tail === "" ? "" : `\nThe end of its console:\n${tail}`),
    );
  }
}

/**
 * Boots a guest and waits until its agent listens.
 *
 * @param options Which machine, on which device.
 * @throws {MissingProgramsError} If programs are missing on the host.
 * @throws {Error} If it does not boot; the message ends with its console's last words.
 */
export async function bootGuest(options: GuestOptions): Promise<Guest> {
  return await Guest.boot(options);
}

async function* readUntil(
  stream: ReadableStream<Uint8Array>,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array> {
  const reader = stream.getReader();
  const stop = () => reader.cancel().catch(() => {});
  signal.addEventListener("abort", stop);
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    signal.removeEventListener("abort", stop);
    reader.releaseLock();
  }
}

function bytesOf(data: unknown): Uint8Array<ArrayBuffer> {
  return Uint8Array.fromBase64(data as string);
}

function joined(
  parts: readonly Uint8Array<ArrayBuffer>[],
): Uint8Array<ArrayBuffer> {
  const size = parts.reduce((sum, part) => sum + part.byteLength, 0);
  const whole = new Uint8Array(size);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.byteLength;
  }
  return whole;
}

function textOf(parts: readonly Uint8Array<ArrayBuffer>[]): string {
  return new TextDecoder().decode(joined(parts));
}
