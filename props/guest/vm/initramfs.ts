/**
 * The initial file system of a QEMU guest: busybox, the host's Python with its
 * standard library, kernel modules, and whatever else of the host's files is wanted,
 * each at the path that it has on the host.
 *
 * @module
 */

import { CpioWriter } from "./cpio.ts";
import { cacheFolder, type GuestKernel } from "./kernel.ts";
import { type KernelModule, loadModules } from "./modules.ts";
import {
  findProgram,
  findPython,
  type PythonHome,
  requireProgram,
  runProgram,
} from "./programs.ts";

/** Changes whenever the content of the cached part does. */
const FORMAT = 1;

/** Folder of the harness's own files in the guest. */
export const GUEST_FOLDER = "/ringside";

/** Modules that a QEMU guest needs beside those of vsock. */
const QEMU_MODULES: readonly string[] = [
  "virtio_pci",
  "virtio_console",
  "vmw_vsock_virtio_transport",
];

/** Parts of the standard library that no scenario needs and that are large. */
const SKIPPED_FOLDERS: ReadonlySet<string> = new Set([
  "test",
  "tests",
  "idlelib",
  "idle_test",
  "tkinter",
  "turtledemo",
  "ensurepip",
  "lib2to3",
  "distutils",
  "pydoc_data",
  "site-packages",
  "dist-packages",
]);

const SKIPPED_EXTENSIONS = /^(_tkinter|_test|_xxtest|xx|_ctypes_test)/;

/** The unchanging part of the initial file system, and what it holds. */
export interface BaseArchive {
  /** The archive in the cache. */
  readonly path: string;
  /** The modules' paths in the guest, in the order to load them in. */
  readonly modules: readonly string[];
}

/**
 * The shared libraries that programs need, dynamic linker included.
 *
 * @param paths ELF files; a static one needs none.
 * @returns Paths as the linker looks them up, each once.
 */
export async function sharedLibraries(
  paths: readonly string[],
): Promise<string[]> {
  const found = new Set<string>();
  if (paths.length === 0) return [];
  // ldd fails for a static program, but goes on with the others.
  const output = await new Deno.Command(requireProgram("ldd"), {
    args: [...paths],
    stdin: "null",
    stderr: "null",
  }).output();
  for (const line of new TextDecoder().decode(output.stdout).split("\n")) {
    const match = /^\s+(?:\S+ => )?(\/\S+) \(0x/.exec(line);
    if (match !== null) found.add(match[1]!);
  }
  return [...found];
}

/**
 * Adds host files to an archive: files with the libraries or the interpreter that
 * they need, folders with all that is in them, links with what they point at.
 *
 * @param archive Where to.
 * @param paths Absolute host paths.
 */
export async function addHostFiles(
  archive: CpioWriter,
  paths: readonly string[],
): Promise<void> {
  const elf: string[] = [];
  for (const path of paths) await addOne(archive, path, elf);
  for (const library of await sharedLibraries(elf)) {
    await addFile(archive, library);
  }
}

async function addOne(
  archive: CpioWriter,
  path: string,
  elf: string[],
): Promise<void> {
  if (archive.has(path)) return;
  const info = await Deno.lstat(path);
  if (info.isSymlink) {
    const target = await Deno.readLink(path);
    archive.symlink(path, target);
    await addOne(archive, linkTarget(path, target), elf);
  } else if (info.isDirectory) {
    archive.directory(path, (info.mode ?? 0o755) & 0o7777);
    for await (const entry of Deno.readDir(path)) {
      await addOne(archive, `${path}/${entry.name}`, elf);
    }
  } else if (info.isFile) {
    const content = await addFile(archive, path);
    if (content[0] === 0x7f && content[1] === 0x45) { // \x7fELF
      elf.push(path);
    } else if (content[0] === 0x23 && content[1] === 0x21) { // #!
      const line = new TextDecoder().decode(content.subarray(2, 256));
      const [interpreter, argument] = line.split("\n", 1)[0]!.trim().split(" ");
      for (const word of [interpreter, argument]) {
        const found = word?.startsWith("/")
          ? word
          : word === undefined
          ? undefined
          : findProgram(word);
        if (found !== undefined && !archive.has(found)) {
          await addOne(archive, found, elf).catch(() => {});
        }
      }
    }
  }
}

/**
 * The absolute path that a link leads to.
 *
 * @param link The link's own absolute path.
 * @param target What it points at.
 */
export function linkTarget(link: string, target: string): string {
  const parts: string[] = target.startsWith("/")
    ? []
    : link.split("/").slice(1, -1);
  for (const part of target.split("/")) {
    if (part === "..") parts.pop();
    else if (part !== "" && part !== ".") parts.push(part);
  }
  return `/${parts.join("/")}`;
}

async function addFile(
  archive: CpioWriter,
  path: string,
): Promise<Uint8Array<ArrayBuffer>> {
  const content = await Deno.readFile(path);
  const info = await Deno.stat(path);
  archive.file(
    path,
    content,
    (info.mode ?? 0o644) & 0o7777,
    (info.mtime?.getTime() ?? 0) / 1000,
  );
  return content;
}

/** Adds the interpreter and its standard library, compiled files included. */
async function addPython(
  archive: CpioWriter,
  python: PythonHome,
): Promise<void> {
  const binaries = [python.executable];
  await addFile(archive, python.executable);
  const folder = python.executable.slice(
    0,
    python.executable.lastIndexOf("/"),
  );
  const name = python.executable.slice(folder.length + 1);
  for (const alias of ["python3", "python"]) {
    if (name !== alias) archive.symlink(`${folder}/${alias}`, name);
  }
  const extensions: string[] = [];
  for await (const entry of Deno.readDir(python.extensions)) {
    if (!entry.name.endsWith(".so") || SKIPPED_EXTENSIONS.test(entry.name)) {
      continue;
    }
    extensions.push(`${python.extensions}/${entry.name}`);
  }
  for (const path of extensions) await addFile(archive, path);
  for (
    const library of await sharedLibraries([...binaries, ...extensions])
  ) {
    await addFile(archive, library);
  }
  const tag = `.cpython-${python.version.split(".").slice(0, 2).join("")}.pyc`;
  const folders = [python.standardLibrary];
  while (folders.length > 0) {
    const current = folders.pop()!;
    for await (const entry of Deno.readDir(current)) {
      const path = `${current}/${entry.name}`;
      if (entry.isDirectory) {
        if (
          !SKIPPED_FOLDERS.has(entry.name) && !entry.name.startsWith("config-")
        ) folders.push(path);
      } else if (
        entry.name.endsWith(".py") ||
        current.endsWith("/__pycache__") && entry.name.endsWith(tag)
      ) {
        await addFile(archive, path);
      }
    }
  }
}

/**
 * The unchanging part of the initial file system: built once, then kept in the cache.
 *
 * @param kernel The kernel that it is for.
 * @param onProgress Told in words what takes a while.
 */
export async function baseArchive(
  kernel: GuestKernel,
  onProgress: (text: string) => void = () => {},
): Promise<BaseArchive> {
  const python = await findPython();
  const busybox = requireProgram("busybox");
  const modules = await loadModules(kernel.modules, QEMU_MODULES);
  const guestPaths = modules.map((one) =>
    `${GUEST_FOLDER}/modules/${one.name}.ko`
  );
  const key = await keyOf(kernel, python, busybox);
  const folder = `${cacheFolder()}/initramfs`;
  const path = `${folder}/${key}.cpio`;
  try {
    await Deno.stat(path);
    return { path, modules: guestPaths };
  } catch {
    onProgress(`building the guest's file system in ${folder}`);
  }
  const content = await buildBase(python, busybox, modules);
  await Deno.mkdir(folder, { recursive: true });
  const work = await Deno.makeTempFile({ dir: folder, prefix: ".build-" });
  await Deno.writeFile(work, content);
  await Deno.rename(work, path);
  await removeOthers(folder, `${key}.cpio`);
  return { path, modules: guestPaths };
}

/** A name that changes when one of the files that the archive is made of does. */
async function keyOf(
  kernel: GuestKernel,
  python: PythonHome,
  busybox: string,
): Promise<string> {
  const facts: unknown[] = [FORMAT, kernel.release, kernel.image, python];
  for (const path of [python.executable, busybox, python.extensions]) {
    const info = await Deno.stat(path);
    facts.push(path, info.size, info.mtime?.getTime());
  }
  const bytes = new TextEncoder().encode(JSON.stringify(facts));
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return hash.subarray(0, 12).toHex();
}

/** Keeps the cache from growing: archives of other keys are a day old at most. */
async function removeOthers(folder: string, keep: string): Promise<void> {
  const oldest = Date.now() - 24 * 3600 * 1000;
  for await (const entry of Deno.readDir(folder)) {
    if (entry.name === keep) continue;
    const path = `${folder}/${entry.name}`;
    const info = await Deno.stat(path).catch(() => undefined);
    if (info !== undefined && (info.mtime?.getTime() ?? 0) < oldest) {
      await Deno.remove(path).catch(() => {});
    }
  }
}

async function buildBase(
  python: PythonHome,
  busybox: string,
  modules: readonly KernelModule[],
): Promise<Uint8Array<ArrayBuffer>> {
  const archive = new CpioWriter();
  for (const folder of ["/proc", "/sys", "/dev", "/run", "/tmp", "/root"]) {
    archive.directory(folder);
  }
  const text = new TextEncoder();
  archive.file("/etc/passwd", text.encode("root:x:0:0:root:/root:/bin/sh\n"));
  archive.file("/etc/group", text.encode("root:x:0:\n"));
  archive.file("/etc/hosts", text.encode("127.0.0.1 localhost\n"));
  archive.file("/bin/busybox", await Deno.readFile(busybox), 0o755);
  for (const one of await sharedLibraries([busybox])) {
    await addFile(archive, one);
  }
  const list = new TextDecoder().decode(await runProgram(busybox, ["--list"]));
  for (const applet of list.trim().split("\n")) {
    archive.symlink(`/bin/${applet}`, "busybox");
  }
  for (const module of modules) {
    archive.file(`${GUEST_FOLDER}/modules/${module.name}.ko`, module.content);
  }
  await addPython(archive, python);
  return archive.finish();
}
