import { fromFileUrl } from "./paths.ts";

/** Folder for what is built, which git ignores. */
export const CACHE: string = fromFileUrl(
  new URL("../.ci/.cache/bench/", import.meta.url),
);

/** A program that could be built, or why not. */
export type Built = { path: string } | { missing: string };

/** Builds the ring in C; needs gcc. */
export async function buildC(): Promise<Built> {
  await Deno.mkdir(CACHE, { recursive: true });
  const source = fromFileUrl(new URL("./peers/ring.c", import.meta.url));
  const path = `${CACHE}ring`;
  const options = ["-O2", "-pthread", "-o", path, source];
  return await build("gcc", options, path);
}

/**
 * Builds the loop over rust-vmm's `virtio-queue`; needs cargo, and its registry at the first time. The profile is
 * cargo's own for a release.
 */
export async function buildRust(): Promise<Built> {
  const folder = fromFileUrl(
    new URL("./peers/virtio_queue/", import.meta.url),
  );
  const target = `${CACHE}target`;
  const options = [
    "build",
    "--quiet",
    "--release",
    "--locked",
    "--manifest-path",
    `${folder}Cargo.toml`,
    "--target-dir",
    target,
  ];
  const path = `${target}/release/ringside-bench-virtio-queue`;
  return await build("cargo", options, path);
}

/** Runs a compiler that leaves a program at `path`. */
export async function build(
  command: string,
  args: string[],
  path: string,
): Promise<Built> {
  let output: Deno.CommandOutput;
  try {
    output = await new Deno.Command(command, { args, stdin: "null" }).output();
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    return { missing: `${command} is not here` };
  }
  if (output.success) return { path };
  const words = new TextDecoder().decode(output.stderr).trim();
  return { missing: `${command} cannot build it: ${words}` };
}

/** A program that measures on request: takes lines "CASE COUNT" and answers each by nanoseconds. */
export class Peer {
  readonly #child: Deno.ChildProcess;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
  readonly #reader: ReadableStreamDefaultReader<string>;
  readonly #encoder: TextEncoder = new TextEncoder();
  #text = "";

  /** Starts it. */
  constructor(command: string, args: string[] = []) {
    this.#child = new Deno.Command(command, {
      args,
      stdin: "piped",
      stdout: "piped",
      stderr: "inherit",
    }).spawn();
    this.#writer = this.#child.stdin.getWriter();
    this.#reader = this.#child.stdout
      .pipeThrough(new TextDecoderStream()).getReader();
  }

  /** Measures once; the nanoseconds that one of `count` took. */
  async measure(name: string, count: number): Promise<number> {
    await this.#writer.write(this.#encoder.encode(`${name} ${count}\n`));
    for (;;) {
      const end = this.#text.indexOf("\n");
      if (end >= 0) {
        const ns = Number(this.#text.slice(0, end));
        this.#text = this.#text.slice(end + 1);
        if (!(ns > 0)) throw new Error(`${name} took ${ns} ns`);
        return ns;
      }
      const { value, done } = await this.#reader.read();
      if (done) throw new Error(`a peer has ended in ${name}`);
      this.#text += value;
    }
  }

  /** Ends it. */
  async close(): Promise<void> {
    await this.#writer.close();
    await this.#reader.cancel();
    await this.#child.status;
  }
}

/** The program of ours that measures the ring, in a process of its own. */
export function ringPeer(): Peer {
  const script = fromFileUrl(new URL("./ring_peer.ts", import.meta.url));
  return new Peer(Deno.execPath(), [
    "run",
    "--no-check",
    "--quiet",
    "-A",
    script,
  ]);
}
