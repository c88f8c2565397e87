/**
 * What both machines share on the way to a running agent: the configuration that the
 * guest's init script reads, and the shape of a machine that is ready to start.
 *
 * @module
 */

/** Everything that is needed to start a guest's machine. */
export interface Machine {
  /** The program on the host. */
  readonly command: string;
  /** Its arguments. */
  readonly args: readonly string[];
  /** Environment variables beside the host's. */
  readonly env: Readonly<Record<string, string>>;
  /** Bytes that may be unread on the way to the agent; `undefined` for no bound. */
  readonly window: number | undefined;
  /** The socket of QEMU's machine protocol. */
  readonly qmpPath?: string;
}

/** What a machine is built from. */
export interface MachineOptions {
  /** A folder for this boot alone, removed when the guest is gone. */
  readonly folder: string;
  /** The vhost-user socket of the vsock device; none, no device. */
  readonly socketPath: string | undefined;
  /** Whether QEMU offers packed rings. */
  readonly packed: boolean;
  /** The guest's memory in MiB. */
  readonly memoryMiB: number;
  /** Host files that a QEMU guest gets too. */
  readonly include: readonly string[];
  /** The working directory in the guest, if it exists there. */
  readonly directory: string;
  /** True to preload ptrace_shim.c even where the CPU does not ask for it. */
  readonly forcePtraceShim: boolean;
  /** Told in words what takes a while. */
  readonly onProgress: (text: string) => void;
}

/** Settings of the guest's init script. */
export interface InitConfig {
  /** busybox in the guest. */
  readonly busybox: string;
  /** The Python interpreter in the guest. */
  readonly python: string;
  /** The agent in the guest. */
  readonly agent: string;
  /** The device of the control channel. */
  readonly control: string;
  /** True if the agent tells how much it has read. */
  readonly acknowledge: boolean;
  /** Modules in the order to load them in. */
  readonly modules: readonly string[];
  /** The working directory. */
  readonly directory: string;
  /** Folders that programs are looked up in, beside Python's. */
  readonly path: string;
}

/**
 * The init script's configuration as shell text.
 *
 * @param config The settings.
 */
export function initConfig(config: InitConfig): string {
  const pythonFolder = config.python.slice(0, config.python.lastIndexOf("/"));
  const values: Record<string, string> = {
    BUSYBOX: config.busybox,
    PYTHON: config.python,
    AGENT: config.agent,
    CONTROL: config.control,
    ACK: config.acknowledge ? "--ack" : "",
    MODULES: config.modules.join(" "),
    DIRECTORY: config.directory,
  };
  const environment: Record<string, string> = {
    PATH: `${pythonFolder}:${config.path}`,
    HOME: "/run/home",
    TMPDIR: "/run/tmp",
    TERM: Deno.env.get("TERM") ?? "linux",
    LANG: "C.UTF-8",
  };
  const libraries = Deno.env.get("LD_LIBRARY_PATH");
  if (libraries) environment.LD_LIBRARY_PATH = libraries;
  const lines = Object.entries(values).map(([name, value]) =>
    `${name}=${shellQuote(value)}`
  );
  for (const [name, value] of Object.entries(environment)) {
    lines.push(`export ${name}=${shellQuote(value)}`);
  }
  return `${lines.join("\n")}\n`;
}

/**
 * A word as the shell reads it back unchanged.
 *
 * @param word Any text without zero bytes.
 */
export function shellQuote(word: string): string {
  return `'${word.replaceAll("'", `'\\''`)}'`;
}

/**
 * A text file that lies beside this module.
 *
 * @param name Its name.
 */
export async function textBeside(name: string): Promise<string> {
  const response = await fetch(new URL(`./${name}`, import.meta.url));
  if (!response.ok) throw new Error(`Cannot read ${name}: ${response.status}`);
  return await response.text();
}
