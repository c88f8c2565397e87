/**
 * The kernel of a QEMU guest: Debian's cloud kernel, downloaded and unpacked into a
 * cache of the user's, never installed.
 *
 * @module
 */

import { requireProgram, runProgram } from "./programs.ts";

/** An unpacked kernel. */
export interface GuestKernel {
  /** Release as `uname -r` says it. */
  readonly release: string;
  /** The bootable image. */
  readonly image: string;
  /** The folder of its modules. */
  readonly modules: string;
}

const META_PACKAGE = "linux-image-cloud-amd64";

/**
 * Where what was fetched and built is kept: `RINGSIDE_CACHE`, else `ringside` in
 * `XDG_CACHE_HOME`, else in `~/.cache`.
 */
export function cacheFolder(): string {
  const own = Deno.env.get("RINGSIDE_CACHE");
  if (own) return own;
  const shared = Deno.env.get("XDG_CACHE_HOME");
  if (shared) return `${shared}/ringside`;
  return `${Deno.env.get("HOME") ?? "/var/tmp"}/.cache/ringside`;
}

/**
 * The kernel in the cache.
 *
 * @returns The newest one, or `undefined` if none was fetched yet.
 */
export async function cachedKernel(): Promise<GuestKernel | undefined> {
  return await newestKernel(`${cacheFolder()}/kernels`);
}

async function newestKernel(folder: string): Promise<GuestKernel | undefined> {
  const kernels: GuestKernel[] = [];
  try {
    for await (const entry of Deno.readDir(folder)) {
      if (!entry.isDirectory || entry.name.startsWith(".")) continue;
      const kernel = await kernelIn(`${folder}/${entry.name}`);
      if (kernel !== undefined) kernels.push(kernel);
    }
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  const order = new Intl.Collator("en", { numeric: true });
  kernels.sort((a, b) => order.compare(b.release, a.release));
  return kernels[0];
}

async function kernelIn(folder: string): Promise<GuestKernel | undefined> {
  let release: string | undefined;
  for await (const entry of Deno.readDir(`${folder}/boot`)) {
    if (entry.name.startsWith("vmlinuz-")) release = entry.name.slice(8);
  }
  if (release === undefined) return undefined;
  for (const root of ["lib", "usr/lib"]) {
    const modules = `${folder}/${root}/modules/${release}`;
    try {
      if ((await Deno.stat(modules)).isDirectory) {
        return { release, image: `${folder}/boot/vmlinuz-${release}`, modules };
      }
    } catch {
      // In the other place, then.
    }
  }
  return undefined;
}

/**
 * The kernel for QEMU guests: the cached one, else fetched with `apt-get download`,
 * which needs no root.
 *
 * @param onProgress Told in words what takes a while.
 * @throws {Error} If it is not cached and cannot be fetched.
 */
export async function guestKernel(
  onProgress: (text: string) => void = () => {},
): Promise<GuestKernel> {
  const cached = await cachedKernel();
  if (cached !== undefined) return cached;
  const kernels = `${cacheFolder()}/kernels`;
  const name = await kernelPackage();
  onProgress(`fetching ${name} (27 MB) into ${kernels}`);
  await Deno.mkdir(kernels, { recursive: true });
  const work = await Deno.makeTempDir({ dir: kernels, prefix: ".fetch-" });
  try {
    await runProgram("apt-get", ["download", name], { cwd: work });
    const files = [...Deno.readDirSync(work)].filter((entry) =>
      entry.name.endsWith(".deb")
    );
    if (files.length !== 1) {
      throw new Error(
        `Cannot unpack ${name}: ${files.length} packages came down`,
      );
    }
    await runProgram("dpkg-deb", [
      "-x",
      `${work}/${files[0]!.name}`,
      `${work}/root`,
    ]);
    try {
      await Deno.rename(`${work}/root`, `${kernels}/${name}`);
    } catch (error) {
      // Another process was faster; its kernel is as good as ours.
      if (await cachedKernel() === undefined) throw error;
    }
  } finally {
    await Deno.remove(work, { recursive: true });
  }
  const kernel = await cachedKernel();
  if (kernel === undefined) {
    throw new Error(`Cannot use ${name}: it holds no kernel with modules`);
  }
  return kernel;
}

/** The package of the current cloud kernel, as the meta package names it. */
async function kernelPackage(): Promise<string> {
  requireProgram("apt-get");
  requireProgram("dpkg-deb");
  let text = "";
  try {
    const stdout = await runProgram("apt-cache", [
      "depends",
      "--no-recommends",
      META_PACKAGE,
    ]);
    text = new TextDecoder().decode(stdout);
  } catch {
    // apt-cache fails for a package that it does not know.
  }
  const match = /Depends: (linux-image-\S+)/.exec(text);
  if (match === null) {
    throw new Error(
      `Cannot fetch the guest's kernel: apt knows no ${META_PACKAGE} ` +
        "(it is Debian's; run `apt-get update` if the lists are empty)",
    );
  }
  return match[1]!;
}
