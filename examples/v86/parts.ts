/**
 * What a machine is made of: fetched once into a cache of the user's, unpacked, never installed.
 *
 * The kernel and busybox are Debian's for i386, fetched by apt, which checks their signatures, with a
 * configuration and an index of its own. v86 comes from npm, through Deno. The guest's programs are built by
 * gcc. All of it is read from the cache afterwards, without a network.
 *
 * @module
 */

import { CpioWriter } from "../../props/guest/vm/cpio.ts";
import { cacheFolder } from "../../props/guest/vm/kernel.ts";
import { loadModules } from "../../props/guest/vm/modules.ts";
import { findProgram, runProgram } from "../../props/guest/vm/programs.ts";
import { compressedKernel, type KernelImage } from "./boot.ts";
import { V86_VERSION, type V86Build, type V86Constructor } from "./v86.ts";

/** SHA-256 of v86's files, which are used beyond what it declares. */
const V86_FILES: ReadonlyMap<string, string> = new Map([
  [
    "libv86.mjs",
    "581c169db27daad9d64679bd117f4a90c37c23c6ad9e660b7e89ee731eb2a446",
  ],
  [
    "v86.wasm",
    "aa0d0e149d6b60063b85de4871e78505637ce92821e14a9f9802c4008ba2336e",
  ],
]);

/** The package that names the newest kernel. */
const KERNEL_META_PACKAGE = "linux-image-686";
const PACKAGE_NAME = /^linux-image-[0-9][a-z0-9.+~-]*-686$/;
const MODULES = ["virtio_pci", "vmw_vsock_virtio_transport"];
const GUEST_PROGRAMS = ["vsock", "streams", "flood"];
const COMMAND_LINE =
  "console=ttyS0 quiet nokaslr cryptomgr.notests noisapnp panic=-1";
/** Changes when unpacked packages are laid out otherwise. */
const LAYOUT = 1;

/** Whoever waits is told in words what takes a while. */
export type Progress = (text: string) => void;

/** What a machine is made of. */
export type Parts = {
  /** The emulator. */
  build: V86Build;
  /** Names and checksums of all that a booted machine depends on. */
  key: string;
  /** Reads the kernel and makes the initial file system. */
  image: () => Promise<KernelImage>;
};

function folder(): string {
  return `${cacheFolder()}/v86`;
}

async function exists(path: string): Promise<boolean> {
  return await Deno.stat(path).then(() => true, () => false);
}

/** SHA-256 in hexadecimal. */
export async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
}

/**
 * Fills a folder of the cache once: `fill` gets an empty one, which takes its place when it is full.
 */
async function once(
  path: string,
  fill: (work: string) => Promise<void>,
): Promise<void> {
  if (await exists(path)) return;
  await Deno.mkdir(folder(), { recursive: true });
  const work = await Deno.makeTempDir({ dir: folder(), prefix: ".work-" });
  try {
    await Deno.mkdir(`${work}/full`);
    await fill(`${work}/full`);
    try {
      await Deno.rename(`${work}/full`, path);
    } catch (error) {
      // Another process was faster; what it has made is as good.
      if (!await exists(path)) throw error;
    }
  } finally {
    await Deno.remove(work, { recursive: true });
  }
}

/** v86's files, from npm through Deno's own client. */
async function fetchV86(progress: Progress): Promise<string> {
  const path = `${folder()}/v86-${V86_VERSION}`;
  await once(path, async (full) => {
    progress(`fetching v86 ${V86_VERSION} (4 MB)`);
    const work = `${full}/work`;
    await Deno.mkdir(work);
    await Deno.writeTextFile(
      `${work}/package.json`,
      JSON.stringify({ dependencies: { v86: V86_VERSION } }),
    );
    await runProgram(Deno.execPath(), [
      "install",
      "--quiet",
      "--no-lock",
      "--node-modules-dir=auto",
    ], { cwd: work });
    const from = `${work}/node_modules/v86`;
    for (const [name, expected] of V86_FILES) {
      const bytes = await Deno.readFile(`${from}/build/${name}`);
      if (await sha256(bytes) !== expected) {
        throw new Error(
          `Cannot use v86 ${V86_VERSION}: its ${name} is not the file that this example knows`,
        );
      }
      await Deno.writeFile(`${full}/${name}`, bytes);
    }
    await Deno.copyFile(`${from}/LICENSE`, `${full}/LICENSE`);
    await Deno.remove(work, { recursive: true });
  });
  return path;
}

/** apt with a state of its own: nothing of the system's is changed. */
class PrivateApt {
  readonly #options: string[];

  constructor(work: string) {
    this.#options = [
      `Dir::State=${work}/state`,
      `Dir::State::status=${work}/status`,
      `Dir::Cache=${work}/cache`,
      "APT::Architecture=i386",
      "APT::Architectures=i386",
      "APT::Sandbox::User=",
      "Acquire::Languages=none",
    ];
    const sources = Deno.env.get("RINGSIDE_I386_SOURCES");
    if (sources) {
      this.#options.push(
        `Dir::Etc::sourcelist=${sources}`,
        "Dir::Etc::sourceparts=-",
      );
    }
    this.#options = this.#options.flatMap((option) => ["-o", option]);
    for (const part of ["state/lists/partial", "cache/archives/partial"]) {
      Deno.mkdirSync(`${work}/${part}`, { recursive: true });
    }
    Deno.writeTextFileSync(`${work}/status`, "");
  }

  async run(
    program: string,
    args: string[],
    cwd?: string,
  ): Promise<string> {
    const output = await runProgram(
      program,
      [...this.#options, ...args],
      cwd === undefined ? {} : { cwd },
    );
    return new TextDecoder().decode(output);
  }
}

async function fetchDebian(progress: Progress): Promise<string> {
  const path = `${folder()}/debian-${LAYOUT}`;
  await once(path, async (full) => {
    const work = `${full}/work`;
    await Deno.mkdir(work);
    const apt = new PrivateApt(work);
    progress("fetching the index of Debian's packages for i386 (14 MB)");
    // A source without packages for i386 fails; whether those that are needed are there shows next.
    let problem = "there is no network, or no source of apt's has it; " +
      "RINGSIDE_I386_SOURCES can name a sources.list that does";
    await apt.run("apt-get", ["update", "--quiet"]).catch((error) => {
      problem = (error as Error).message;
    });
    const kernel = await kernelPackage(apt).catch(() => {
      throw new Error(
        `Cannot fetch ${KERNEL_META_PACKAGE} for i386: ${problem}`,
      );
    });
    progress(`fetching ${kernel} and busybox-static for i386 (53 MB)`);
    const root = `${work}/root`;
    await Deno.mkdir(root);
    await apt.run("apt-get", ["download", kernel, "busybox-static"], work);
    const files = [...Deno.readDirSync(work)]
      .filter(({ name }) => name.endsWith(".deb")).map(({ name }) => name);
    for (const name of files) {
      await runProgram("dpkg-deb", ["--extract", `${work}/${name}`, root]);
    }
    progress("unpacking the kernel");
    const release = kernel.slice("linux-image-".length);
    const bzImage = await Deno.readFile(`${root}/boot/vmlinuz-${release}`);
    await Deno.writeFile(`${full}/bzImage`, bzImage);
    await Deno.writeFile(`${full}/vmlinux`, await unpackKernel(bzImage, work));
    const modules = await loadModules(
      `${root}/${await libraries(root)}/modules/${release}`,
      MODULES,
    );
    await Deno.mkdir(`${full}/modules`);
    for (const { name, content } of modules) {
      await Deno.writeFile(`${full}/modules/${name}.ko`, content);
    }
    await Deno.writeTextFile(
      `${full}/modules/order`,
      modules.map(({ name }) => `${name}\n`).join(""),
    );
    const busybox = await exists(`${root}/bin/busybox`) ? "bin" : "usr/bin";
    await Deno.copyFile(`${root}/${busybox}/busybox`, `${full}/busybox`);
    await Deno.writeTextFile(
      `${full}/packages`,
      files.sort().map((name) => `${name}\n`).join(""),
    );
    await Deno.remove(work, { recursive: true });
  });
  return path;
}

async function libraries(root: string): Promise<string> {
  return await exists(`${root}/lib/modules`) ? "lib" : "usr/lib";
}

async function kernelPackage(apt: PrivateApt): Promise<string> {
  const shown = await apt.run("apt-cache", [
    "show",
    "--no-all-versions",
    KERNEL_META_PACKAGE,
  ]);
  const depends = /^Depends:(.*)$/m.exec(shown)?.[1] ?? "";
  for (const one of depends.split(",")) {
    const name = one.trim().split(/[ :]/, 1)[0]!;
    if (PACKAGE_NAME.test(name)) return name;
  }
  throw new Error(`${KERNEL_META_PACKAGE} names no kernel`);
}

/** The kernel in a bzImage, which Debian compresses by xz; its last 4 bytes are the size. */
async function unpackKernel(
  bzImage: Uint8Array<ArrayBuffer>,
  work: string,
): Promise<Uint8Array<ArrayBuffer>> {
  const compressed = compressedKernel(bzImage);
  if (compressed[0] !== 0xfd || compressed[1] !== 0x37) {
    throw new Error("Cannot unpack the kernel: it is not compressed by xz");
  }
  const file = `${work}/vmlinux.xz`;
  await Deno.writeFile(file, compressed.subarray(0, compressed.length - 4));
  if (findProgram("xz") !== undefined || findProgram("python3") === undefined) {
    return await runProgram("xz", ["-dc", file]);
  }
  const code =
    "import lzma, sys; sys.stdout.buffer.write(lzma.open(sys.argv[1]).read())";
  return await runProgram("python3", ["-I", "-c", code, file]);
}

/** Builds the guest's programs. */
async function buildPrograms(progress: Progress): Promise<string> {
  const sources = [
    "guest/linux_i386.h",
    ...GUEST_PROGRAMS.map((name) => `guest/${name}.c`),
  ];
  const texts: Uint8Array<ArrayBuffer>[] = [];
  for (const source of sources) texts.push(await readHere(source));
  const key = (await sha256(
    new Uint8Array(
      await new Blob(texts).arrayBuffer(),
    ),
  )).slice(0, 16);
  const path = `${folder()}/programs-${key}`;
  await once(path, async (full) => {
    progress("building the guest's programs");
    for (const [i, source] of sources.entries()) {
      await Deno.writeFile(`${full}/${source.slice(6)}`, texts[i]!);
    }
    for (const name of GUEST_PROGRAMS) {
      await runProgram("gcc", [
        ..."-m32 -nostdlib -static -ffreestanding -fno-stack-protector".split(
          " ",
        ),
        ..."-fno-pic -no-pie -fno-tree-loop-distribute-patterns".split(" "),
        ..."-fno-asynchronous-unwind-tables -O2 -s -Wall -Wextra".split(" "),
        ...["-Wl,--build-id=none", "-o", name, `${name}.c`],
      ], { cwd: full });
    }
  });
  return path;
}

async function readHere(path: string): Promise<Uint8Array<ArrayBuffer>> {
  return await Deno.readFile(new URL(path, import.meta.url));
}

/**
 * All parts, from the cache or fetched into it.
 *
 * @param progress Told what takes a while.
 * @throws {Error} when something is not in the cache and cannot be fetched or built; the message says what.
 */
export async function machineParts(
  progress: Progress = () => {},
): Promise<Parts> {
  const v86 = await fetchV86(progress);
  const debian = await fetchDebian(progress);
  const programs = await buildPrograms(progress);
  const module = await import(`file://${v86}/libv86.mjs`) as {
    V86: V86Constructor;
  };
  const wasm = await WebAssembly.compile(
    await Deno.readFile(`${v86}/v86.wasm`),
  );
  const init = await readHere("guest/init");
  const key = [
    V86_VERSION,
    await Deno.readTextFile(`${debian}/packages`),
    programs.slice(programs.lastIndexOf("-")),
    COMMAND_LINE,
    await sha256(init),
    // What the kernel finds when it boots.
    await sha256(await readHere("boot.ts")),
    await sha256(await readHere("adapter.ts")),
    // What the file is like.
    await sha256(await readHere("machine.ts")),
    await sha256(await readHere("snapshot_file.ts")),
  ].join("\n");
  const image = async (): Promise<KernelImage> => ({
    vmlinux: await Deno.readFile(`${debian}/vmlinux`),
    bzImage: await Deno.readFile(`${debian}/bzImage`),
    initrd: await initialFiles(debian, programs, init),
    commandLine: COMMAND_LINE,
  });
  return { build: { V86: module.V86, wasm }, key, image };
}

/** The guest's files, as a cpio archive. */
async function initialFiles(
  debian: string,
  programs: string,
  init: Uint8Array<ArrayBuffer>,
): Promise<Uint8Array<ArrayBuffer>> {
  const archive = new CpioWriter();
  for (const name of ["dev", "proc", "sys", "tmp"]) archive.directory(name);
  archive.file("init", init, 0o755);
  archive.file("bin/busybox", await Deno.readFile(`${debian}/busybox`), 0o755);
  archive.symlink("bin/sh", "busybox");
  for (const name of GUEST_PROGRAMS) {
    archive.file(
      `bin/${name}`,
      await Deno.readFile(`${programs}/${name}`),
      0o755,
    );
  }
  for await (const { name } of Deno.readDir(`${debian}/modules`)) {
    archive.file(
      `modules/${name}`,
      await Deno.readFile(`${debian}/modules/${name}`),
    );
  }
  return archive.finish();
}
