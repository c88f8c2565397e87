/**
 * Kernel modules as files: finding them, reading what they depend on, unpacking
 * compressed ones.
 *
 * @module
 */

import { runProgram } from "./programs.ts";

/** A module that is to be loaded. */
export interface KernelModule {
  /** Name with underscores, without suffix. */
  readonly name: string;
  /** The file on the host; may be compressed. */
  readonly path: string;
  /** The module itself, unpacked. */
  readonly content: Uint8Array<ArrayBuffer>;
}

/** The modules of a vsock guest; what they depend on is found in the files. */
export const VSOCK_MODULES: readonly string[] = [
  "vmw_vsock_virtio_transport",
];

/**
 * A module's name as the kernel spells it.
 *
 * @param file A file name such as `virtio-rng.ko.xz`.
 * @returns The name, or `undefined` if the file is no module.
 */
export function moduleName(file: string): string | undefined {
  const match = /^(.+)\.ko(?:\.(?:xz|zst|gz))?$/.exec(file);
  return match === null ? undefined : match[1]!.replaceAll("-", "_");
}

/**
 * The names that a module's `.modinfo` says it depends on.
 *
 * @param content The module, unpacked.
 */
export function moduleDependencies(
  content: Uint8Array<ArrayBuffer>,
): string[] {
  // .modinfo holds "key=value" strings, each ended by a zero byte.
  const key = new TextEncoder().encode("\0depends=");
  search: for (let at = content.indexOf(0); at !== -1;) {
    for (let i = 1; i < key.length; i++) {
      if (content[at + i] !== key[i]) {
        at = content.indexOf(0, at + 1);
        continue search;
      }
    }
    const start = at + key.length;
    const end = content.indexOf(0, start);
    const value = new TextDecoder().decode(content.subarray(start, end));
    return value === ""
      ? []
      : value.split(",").map((name) => name.replaceAll("-", "_"));
  }
  return [];
}

/** All modules below a folder: name to path. */
async function listModules(folder: string): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  const folders = [folder];
  while (folders.length > 0) {
    const current = folders.pop()!;
    for await (const entry of Deno.readDir(current)) {
      if (entry.isDirectory) {
        folders.push(`${current}/${entry.name}`);
      } else {
        const name = moduleName(entry.name);
        if (name !== undefined) found.set(name, `${current}/${entry.name}`);
      }
    }
  }
  return found;
}

async function unpack(path: string): Promise<Uint8Array<ArrayBuffer>> {
  if (path.endsWith(".xz")) return await runProgram("xz", ["-dc", path]);
  if (path.endsWith(".zst")) return await runProgram("zstd", ["-dcq", path]);
  const content = await Deno.readFile(path);
  if (!path.endsWith(".gz")) return content;
  const stream = new Blob([content]).stream()
    .pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/**
 * The wanted modules and all that they depend on, in the order to load them in.
 *
 * @param folder The folder of one kernel's modules.
 * @param wanted Names with underscores.
 * @throws {Error} If a wanted module is not there. A dependency that is not there is
 * taken to be built in.
 */
export async function loadModules(
  folder: string,
  wanted: readonly string[],
): Promise<KernelModule[]> {
  const files = await listModules(folder);
  const ordered = new Map<string, KernelModule>();
  const add = async (name: string, needed: boolean): Promise<void> => {
    if (ordered.has(name)) return;
    const path = files.get(name);
    if (path === undefined) {
      if (needed) throw new Error(`Cannot load ${name}: no file in ${folder}`);
      return;
    }
    const content = await unpack(path);
    for (const other of moduleDependencies(content)) await add(other, false);
    ordered.set(name, { name, path, content });
  };
  for (const name of wanted) await add(name, true);
  return [...ordered.values()];
}
