/**
 * A user-mode-linux guest: the host's own files, read-only, are its root.
 *
 * @module
 */

import { cacheFolder } from "./kernel.ts";
import { loadModules, VSOCK_MODULES } from "./modules.ts";
import {
  findPython,
  hostHasAmx,
  requireProgram,
  runProgram,
} from "./programs.ts";
import {
  initConfig,
  type Machine,
  type MachineOptions,
  textBeside,
} from "./setup.ts";

/** Where Debian's user-mode-linux keeps its modules, by release. */
const MODULES_FOLDER = "/usr/lib/uml/modules";

/** The virtio device number of vsock (virtio 1.4, 5). */
const VIRTIO_ID_VSOCK = 19;

/**
 * Bytes on the way that the agent has not read. A console's buffer takes 4096; once
 * it was full, user-mode-linux 6.1 reads no more input.
 */
const CONSOLE_WINDOW_BYTES = 2048;

/**
 * Prepares a user-mode-linux guest.
 *
 * Its standard input and output become the control channel (`tty1`), its standard
 * error the console (`tty0`).
 */
export async function umlMachine(options: MachineOptions): Promise<Machine> {
  const { folder } = options;
  const kernel = requireProgram("linux.uml");
  const busybox = requireProgram("busybox");
  const python = await findPython();
  const modules: string[] = [];
  for (const one of await loadModules(await modulesFolder(), VSOCK_MODULES)) {
    if (one.path.endsWith(".ko")) {
      modules.push(one.path);
    } else { // busybox may not know the compression
      modules.push(`${folder}/${one.name}.ko`);
      await Deno.writeFile(`${folder}/${one.name}.ko`, one.content);
    }
  }
  await Deno.writeTextFile(`${folder}/agent.py`, await textBeside("agent.py"));
  const script = (await textBeside("init.sh")).replace("/bin/busybox", busybox);
  await Deno.writeTextFile(`${folder}/init`, script, { mode: 0o755 });
  await Deno.writeTextFile(
    `${folder}/config`,
    initConfig({
      busybox,
      python: python.executable,
      agent: `${folder}/agent.py`,
      control: "/dev/tty1",
      acknowledge: true,
      modules,
      directory: options.directory,
      path: Deno.env.get("PATH") ?? "/usr/sbin:/usr/bin:/sbin:/bin",
    }),
  );
  const args = [
    `mem=${options.memoryMiB}M`,
    "root=/dev/root",
    "rootfstype=hostfs",
    "rootflags=/",
    "ro",
    `init=${folder}/init`,
    `uml_dir=${folder}/`,
    "umid=uml",
    "con=null",
    "con0=null,fd:2",
    "con1=fd:0,fd:1",
    "quiet",
    "panic=-1",
  ];
  if (options.socketPath !== undefined) {
    if (/[\s:"]/.test(options.socketPath)) {
      throw new TypeError(
        `Cannot hand over ${options.socketPath}: user-mode-linux takes no space, colon or quote in it`,
      );
    }
    args.push(`virtio_uml.device=${options.socketPath}:${VIRTIO_ID_VSOCK}`);
  }
  const env: Record<string, string> = {};
  if (options.forcePtraceShim || hostHasAmx()) {
    env.LD_PRELOAD = await buildPtraceShim();
  }
  return { command: kernel, args, env, window: CONSOLE_WINDOW_BYTES };
}

/** The modules of the kernel that linux.uml is. */
async function modulesFolder(): Promise<string> {
  const release = new TextDecoder()
    .decode(await runProgram("linux.uml", ["--version"])).trim();
  const folder = `${MODULES_FOLDER}/${release}`;
  try {
    await Deno.stat(folder);
  } catch {
    throw new Error(
      `Cannot boot a uml guest: the modules of its kernel ${release} are not in ${MODULES_FOLDER}`,
    );
  }
  return folder;
}

/**
 * Builds the preloaded ptrace() for hosts with AMX and keeps it in the cache.
 *
 * @returns The library's path.
 */
export async function buildPtraceShim(): Promise<string> {
  const source = new TextEncoder().encode(await textBeside("ptrace_shim.c"));
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", source));
  const folder = `${cacheFolder()}/ptrace_shim`;
  const path = `${folder}/${hash.subarray(0, 12).toHex()}.so`;
  try {
    await Deno.stat(path);
    return path;
  } catch {
    // To be built.
  }
  await Deno.mkdir(folder, { recursive: true });
  const work = await Deno.makeTempDir({ dir: folder, prefix: ".build-" });
  try {
    await Deno.writeFile(`${work}/ptrace_shim.c`, source);
    await runProgram("cc", [
      "-O2",
      "-shared",
      "-fPIC",
      "-o",
      `${work}/ptrace_shim.so`,
      `${work}/ptrace_shim.c`,
    ]);
    await Deno.rename(`${work}/ptrace_shim.so`, path);
  } finally {
    await Deno.remove(work, { recursive: true });
  }
  return path;
}
