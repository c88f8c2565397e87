/**
 * `deno task guest`: boots a real Linux guest on a device of its own and runs a
 * command in it, or gives a shell.
 *
 * @module
 */

// deno-lint-ignore-file no-console

import {
  type GuestArgs,
  HELP,
  parseGuestArgs,
  UsageError,
} from "./cli_args.ts";
import { startDevice } from "../../../device/host/mod.ts";
import {
  bootGuest,
  type Guest,
  type RunningProgram,
  type TerminalSize,
} from "./guest.ts";
import { cachedKernel } from "./kernel.ts";
import {
  findProgram,
  missingPrograms,
  MissingProgramsError,
  missingWords,
  type VmKind,
} from "./programs.ts";

const EXIT_FAILURE = 1;
const EXIT_USAGE = 2;
const EXIT_INTERRUPTED = 130;

/** The user wants no more of it. */
class InterruptedError extends Error {}

/** Says something to the user, apart from the command's own output. */
function say(text: string): void {
  console.error(`ringside: ${text}`);
}

/** The machine to use: the one asked for, else the first that can be used. */
async function chooseVm(asked: VmKind | undefined): Promise<VmKind> {
  const cached = await cachedKernel() !== undefined;
  if (asked !== undefined) {
    const missing = missingPrograms(asked, cached);
    if (missing.length > 0) throw new MissingProgramsError(asked, missing);
    return asked;
  }
  const lacks = {
    uml: missingPrograms("uml"),
    qemu: missingPrograms("qemu", cached),
  };
  if (lacks.uml.length === 0) return "uml";
  if (lacks.qemu.length === 0) return "qemu";
  throw new Error(
    `Cannot boot a guest.\n  uml: ${missingWords(lacks.uml)}\n` +
      `  qemu: ${missingWords(lacks.qemu)}`,
  );
}

/** Runs the command, or a shell, and returns its exit code. */
async function runCommand(guest: Guest, args: GuestArgs): Promise<number> {
  const isShell = args.command.length === 0;
  const shell = guest.vm === "uml" ? findProgram("bash") : undefined;
  const argv = isShell ? [shell ?? "sh"] : args.command;
  const interactive = isShell && Deno.stdin.isTerminal() &&
    Deno.stdout.isTerminal();
  let output = Promise.resolve();
  const copyTo = (target: WritableStream<Uint8Array>) => {
    const writer = target.getWriter();
    return (bytes: Uint8Array<ArrayBuffer>): void => {
      // A reader that has left is no reason to stop the command.
      output = output.then(() => writer.write(bytes)).catch(() => {});
    };
  };
  const onStdout = copyTo(Deno.stdout.writable);
  const onStderr = copyTo(Deno.stderr.writable);
  let code: number;
  if (interactive) {
    say("a shell in the guest; leave it with exit or Control-D");
    Deno.stdin.setRaw(true);
    let program: RunningProgram | undefined;
    const onResize = (): void => {
      program?.resize(terminalSize()).catch(() => {});
    };
    Deno.addSignalListener("SIGWINCH", onResize);
    try {
      ({ code } = await guest.exec(argv, {
        stdin: Deno.stdin.readable,
        terminal: terminalSize(),
        onStarted: (started) => program = started,
        env: { PS1: "guest:\\w# " },
        timeoutMs: Infinity,
        onStdout,
        onStderr,
      }));
    } finally {
      Deno.removeSignalListener("SIGWINCH", onResize);
      Deno.stdin.setRaw(false);
    }
  } else {
    ({ code } = await guest.exec(argv, {
      stdin: Deno.stdin.readable,
      timeoutMs: Infinity,
      onStdout,
      onStderr,
    }));
  }
  await output;
  return code;
}

function terminalSize(): TerminalSize {
  const { rows, columns } = Deno.consoleSize();
  return { rows, columns };
}

/** Programs of the host that a QEMU guest must get for the command to run. */
function includeFor(vm: VmKind, args: GuestArgs): string[] {
  const cwd = Deno.cwd();
  const include = args.include.map((path) =>
    path.startsWith("/") ? path : `${cwd}/${path}`
  );
  const program = args.command[0];
  if (vm === "qemu" && program !== undefined) {
    const path = program.includes("/")
      ? program.startsWith("/") ? program : `${cwd}/${program}`
      : findProgram(program);
    // Python is there already, and busybox has the common tools.
    const known = /^(python[0-9.]*|sh|cat|ls|busybox)$/.test(program);
    if (path !== undefined && !known) include.push(path);
  }
  return include;
}

/** What a guest without a vsock device says its CID is: VMADDR_CID_ANY. */
const NO_CID = 0xffffffff;

async function run(args: GuestArgs): Promise<number> {
  const vm = await chooseVm(args.vm);
  await using cleanup = new AsyncDisposableStack();
  const folder = await Deno.makeTempDir({ prefix: "ringside-" });
  cleanup.defer(() => Deno.remove(folder, { recursive: true }));
  const udsPath = args.udsPath ?? `${folder}/vsock.sock`;
  for (const path of args.include) {
    if (!await Deno.lstat(path).then(() => true, () => false)) {
      throw new UsageError(`--include ${path}: there is no such file`);
    }
  }
  let socketPath = args.socketPath;
  if (socketPath !== undefined) {
    // Not by a connection: a back-end may take that for its one front-end.
    const there = await Deno.lstat(socketPath).then(
      (info) => info.isSocket,
      () => false,
    );
    if (!there) {
      throw new UsageError(`--socket ${socketPath}: there is no such socket`);
    }
  } else {
    socketPath = `${folder}/vhost.sock`;
    const device = await startDevice({
      socketPath,
      guestCid: args.guestCid,
      udsPath,
      ring: args.ring,
      logLevel: "warn",
      onLog: (_level, text) => say(`device: ${text}`),
    });
    cleanup.defer(() => device.stop());
    say(`host programs connect to ${udsPath} with "CONNECT <port>\\n"`);
    say(`and listen on ${udsPath}_<port> for the guest`);
  }
  const boot = new AbortController();
  const running: { guest?: Guest } = {};
  const onInterrupt = (): void => {
    boot.abort(new InterruptedError());
    running.guest?.kill();
  };
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    Deno.addSignalListener(signal, onInterrupt);
    cleanup.defer(() => Deno.removeSignalListener(signal, onInterrupt));
  }
  const guest = await bootGuest({
    vm,
    signal: boot.signal,
    socketPath,
    packed: args.ring === "packed",
    memoryMiB: args.memoryMiB,
    include: includeFor(vm, args),
    onProgress: say,
    onConsole: args.showConsole
      ? (text) => Deno.stderr.writeSync(new TextEncoder().encode(text))
      : undefined,
  });
  running.guest = guest;
  cleanup.use(guest);
  if (guest.info.cid === null || guest.info.cid === NO_CID) {
    throw new Error(
      "the guest has no vsock device: its driver did not start it",
    );
  }
  say(
    `${vm} guest with Linux ${guest.info.kernel}, CID ${guest.info.cid}, ` +
      `${args.ring} rings, booted in ${(guest.bootMs / 1000).toFixed(1)} s`,
  );
  try {
    const code = await runCommand(guest, args);
    await guest.shutdown();
    return code;
  } finally {
    boot.signal.throwIfAborted();
  }
}

/**
 * Runs the program.
 *
 * @param words The command line's words.
 * @returns The exit code: the command's, 1 for a failure, 2 for bad arguments,
 * 130 if interrupted.
 */
export async function main(words: readonly string[]): Promise<number> {
  try {
    const args = parseGuestArgs(words);
    if (args === "help") {
      console.log(HELP.trimEnd());
      return 0;
    }
    return await run(args);
  } catch (error) {
    if (error instanceof InterruptedError) return EXIT_INTERRUPTED;
    say(error instanceof Error ? error.message : String(error));
    return error instanceof UsageError ? EXIT_USAGE : EXIT_FAILURE;
  }
}

if (import.meta.main) Deno.exit(await main(Deno.args));
