/**
 * The programs that a real guest needs: where they are, and which Debian package
 * brings a missing one.
 *
 * @module
 */

/** The virtual machines that can run a guest: user-mode-linux or QEMU. */
export type VmKind = "uml" | "qemu";

/** A program that is not there, and what brings it. */
export interface MissingProgram {
  /** The program's name, as on `PATH`. */
  readonly program: string;
  /** The Debian package that holds it. */
  readonly debianPackage: string;
}

const DEBIAN_PACKAGES: Readonly<Record<string, string>> = {
  "linux.uml": "user-mode-linux",
  "qemu-system-x86_64": "qemu-system-x86",
  "busybox": "busybox-static",
  "python3": "python3",
  "ldd": "libc-bin",
  "cc": "gcc",
  "apt-get": "apt",
  "apt-cache": "apt",
  "dpkg-deb": "dpkg",
  "xz": "xz-utils",
  "zstd": "zstd",
};

/** Thrown when a guest cannot be booted because programs are missing. */
export class MissingProgramsError extends Error {
  /** What is missing, at least one. */
  readonly missing: readonly MissingProgram[];

  /**
   * Names what is missing and what brings it.
   *
   * @param vm The machine that was asked for.
   * @param missing What it lacks.
   */
  constructor(vm: VmKind, missing: readonly MissingProgram[]) {
    super(`Cannot boot a ${vm} guest: ${missingWords(missing)}`);
    this.name = "MissingProgramsError";
    this.missing = missing;
  }
}

/**
 * Says what is missing and how to install it, on one line.
 *
 * @param missing The missing programs, at least one.
 */
export function missingWords(missing: readonly MissingProgram[]): string {
  const programs = [...new Set(missing.map((one) => one.program))];
  const packages = [...new Set(missing.map((one) => one.debianPackage))];
  return `missing ${programs.join(", ")}; on Debian or Ubuntu: ` +
    `sudo apt-get install ${packages.join(" ")}`;
}

/**
 * The absolute path of a program on `PATH` or in the system's folders.
 *
 * @param name The program's name.
 * @returns Its path, or `undefined` if it is nowhere.
 */
export function findProgram(name: string): string | undefined {
  const folders = (Deno.env.get("PATH") ?? "").split(":");
  for (const folder of [...folders, "/usr/bin", "/bin", "/usr/sbin", "/sbin"]) {
    if (folder === "") continue;
    const path = `${folder}/${name}`;
    try {
      const info = Deno.statSync(path);
      if (info.isFile && ((info.mode ?? 0) & 0o111) !== 0) return path;
    } catch {
      // Not in this folder.
    }
  }
  return undefined;
}

/** `findProgram()` that turns a missing program into a {@linkcode MissingProgram}. */
function lookUp(names: readonly string[]): MissingProgram[] {
  const missing: MissingProgram[] = [];
  for (const program of names) {
    if (findProgram(program) === undefined) {
      missing.push({
        program,
        debianPackage: DEBIAN_PACKAGES[program] ?? program,
      });
    }
  }
  return missing;
}

/** True if the host's CPU has AMX, on which user-mode-linux 6.1 needs help. */
export function hostHasAmx(): boolean {
  try {
    return /\bamx_tile\b/.test(Deno.readTextFileSync("/proc/cpuinfo"));
  } catch {
    return false;
  }
}

/**
 * The programs that a guest of this kind lacks on this host.
 *
 * @param vm The machine.
 * @param kernelCached True if the QEMU guest's kernel need not be fetched.
 */
export function missingPrograms(
  vm: VmKind,
  kernelCached = false,
): MissingProgram[] {
  const names = ["busybox", "python3"];
  if (vm === "uml") {
    names.unshift("linux.uml");
    if (hostHasAmx()) names.push("cc");
  } else {
    names.unshift("qemu-system-x86_64");
    names.push("ldd");
    if (!kernelCached) names.push("apt-get", "apt-cache", "dpkg-deb");
  }
  return lookUp(names);
}

/**
 * A program's path.
 *
 * @param name The program's name.
 * @throws {Error} If it is missing; the message names its Debian package.
 */
export function requireProgram(name: string): string {
  const path = findProgram(name);
  if (path === undefined) {
    throw new Error(`Cannot run ${name}: ${missingWords(lookUp([name]))}`);
  }
  return path;
}

/**
 * Runs a program to its end and returns its standard output.
 *
 * @param name The program's name or path.
 * @param args Its arguments.
 * @param options Working directory and environment.
 * @throws {Error} If it is missing or fails; the message holds its last words.
 */
export async function runProgram(
  name: string,
  args: readonly string[],
  options: { cwd?: string; env?: Record<string, string> } = {},
): Promise<Uint8Array<ArrayBuffer>> {
  const path = name.includes("/") ? name : requireProgram(name);
  const output = await new Deno.Command(path, {
    args: [...args],
    stdin: "null",
    ...options,
  }).output();
  if (!output.success) {
    const words = new TextDecoder().decode(output.stderr).trim();
    throw new Error(
      `Cannot run ${name} ${args.join(" ")}: it ended with ${output.code}` +
        (words === "" ? "" : `: ${words.slice(-400)}`),
    );
  }
  return output.stdout;
}

/** Where the host's Python keeps what a guest needs of it. */
export interface PythonHome {
  /** The interpreter itself, links resolved. */
  readonly executable: string;
  /** The folder of the pure standard library. */
  readonly standardLibrary: string;
  /** The folder of its extension modules. */
  readonly extensions: string;
  /** Version as in `3.11.7`. */
  readonly version: string;
}

let pythonHome: Promise<PythonHome> | undefined;

/**
 * Finds the real Python interpreter behind `python3` (which may be a shim).
 *
 * @throws {Error} If there is none.
 */
export function findPython(): Promise<PythonHome> {
  pythonHome ??= askPython().catch((error) => {
    pythonHome = undefined;
    throw error;
  });
  return pythonHome;
}

async function askPython(): Promise<PythonHome> {
  const code = "import sys, os, json, sysconfig\n" +
    "print(json.dumps({'executable': os.path.realpath(sys.executable)," +
    " 'standardLibrary': os.path.realpath(sysconfig.get_path('stdlib'))," +
    " 'extensions': os.path.realpath(sysconfig.get_config_var('DESTSHARED'))," +
    " 'version': sys.version.split()[0]}))";
  const stdout = await runProgram("python3", ["-I", "-c", code]);
  return JSON.parse(new TextDecoder().decode(stdout)) as PythonHome;
}
