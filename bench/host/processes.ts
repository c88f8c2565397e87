import { build, type Built, CACHE } from "../peers.ts";
import { fromFileUrl } from "../paths.ts";
import type { LoadRequest, LoadResult } from "./load.ts";

/** Version of the Rust device that is compared with. */
export const PEER_VERSION = "0.3.0";

/** Builds the host programs; needs gcc. */
export async function buildProgram(): Promise<Built> {
  await Deno.mkdir(CACHE, { recursive: true });
  const source = fromFileUrl(new URL("./program.c", import.meta.url));
  const path = `${CACHE}host_program`;
  return await build("gcc", ["-O2", "-o", path, source], path);
}

/** Builds vhost-device-vsock from its registry the first time; needs cargo. */
export async function buildPeer(): Promise<Built> {
  const root = `${CACHE}vhost-device-vsock-${PEER_VERSION}`;
  const path = `${root}/bin/vhost-device-vsock`;
  if (await exists(path)) return { path };
  const name = ["vhost-device-vsock", "--version", PEER_VERSION];
  // To standard error: the first time, it takes minutes.
  const note = `building vhost-device-vsock ${PEER_VERSION} by cargo, once\n`;
  Deno.stderr.writeSync(new TextEncoder().encode(note));
  const options = ["install", "--quiet", "--locked", "--root", root, ...name];
  return await build("cargo", options, path);
}

async function exists(path: string): Promise<boolean> {
  try {
    await Deno.stat(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/** A process that answers lines by lines. */
export class LineProcess {
  /** Its id. */
  readonly pid: number;
  readonly #child: Deno.ChildProcess;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
  readonly #reader: ReadableStreamDefaultReader<string>;
  readonly #encoder: TextEncoder = new TextEncoder();
  #text = "";

  /** Starts it. */
  constructor(command: string, args: string[]) {
    this.#child = new Deno.Command(command, {
      args,
      stdin: "piped",
      stdout: "piped",
      stderr: "inherit",
    }).spawn();
    this.pid = this.#child.pid;
    this.#writer = this.#child.stdin.getWriter();
    this.#reader = this.#child.stdout
      .pipeThrough(new TextDecoderStream()).getReader();
  }

  /** Its next line. */
  async line(): Promise<string> {
    for (;;) {
      const end = this.#text.indexOf("\n");
      if (end >= 0) {
        const line = this.#text.slice(0, end);
        this.#text = this.#text.slice(end + 1);
        return line;
      }
      const { value, done } = await this.#reader.read();
      if (done) throw new Error("a process has ended in the middle of a load");
      this.#text += value;
    }
  }

  /** Sends it a line and returns its answer. */
  async ask(line: string): Promise<string> {
    await this.#writer.write(this.#encoder.encode(`${line}\n`));
    return await this.line();
  }

  /** Lets it end, and waits for that. */
  async close(): Promise<void> {
    await this.#writer.close().catch(() => {});
    await this.#reader.cancel();
    await this.#child.status;
  }
}

/** Seconds of processor time, of each of the three processes. */
export type CpuSeconds = { guest: number; device: number; program: number };

/** A device to be compared: its process, a guest and host programs, each a process. */
export class Side {
  /** `"split"`, `"packed"` or `"peer"`. */
  readonly name: string;
  /** Process of the device. */
  readonly pid: number;
  /** Memory before a guest was there, in bytes. */
  readonly startBytes: number;
  readonly #device: Deno.ChildProcess;
  readonly #guest: LineProcess;
  readonly #program: LineProcess;
  readonly #programPath: string;
  readonly #udsPath: string;

  private constructor(
    name: string,
    startBytes: number,
    device: Deno.ChildProcess,
    guest: LineProcess,
    program: LineProcess,
    programPath: string,
    udsPath: string,
  ) {
    this.name = name;
    this.pid = device.pid;
    this.startBytes = startBytes;
    this.#device = device;
    this.#guest = guest;
    this.#program = program;
    this.#programPath = programPath;
    this.#udsPath = udsPath;
  }

  /** Starts a device by `command`, with its sockets in `folder`, and its guest. */
  static async start(
    name: string,
    command: readonly string[],
    ring: "split" | "packed",
    folder: string,
    programPath: string,
    programPort: number,
  ): Promise<Side> {
    const socketPath = `${folder}/${name}.sock`;
    const udsPath = `${folder}/${name}`;
    const device = new Deno.Command(command[0]!, {
      args: [
        ...command.slice(1),
        ...["--guest-cid", "3"],
        ...["--socket", socketPath],
        ...["--uds-path", udsPath],
      ],
      stdin: "null",
      stdout: "null",
      stderr: "null",
    }).spawn();
    try {
      const program = new LineProcess(programPath, [
        "serve",
        `${udsPath}_${programPort}`,
      ]);
      await program.line();
      const end = performance.now() + 20_000;
      while (!(await exists(socketPath) && await exists(udsPath))) {
        if (performance.now() > end) throw new Error(`${name} does not listen`);
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
      // What start-up leaves to be done.
      await new Promise((resolve) => setTimeout(resolve, 500));
      const startBytes = residentBytes(device.pid);
      const script = fromFileUrl(new URL("./load.ts", import.meta.url));
      const guest = new LineProcess(Deno.execPath(), [
        "run",
        "--no-check",
        "--quiet",
        "-A",
        script,
        socketPath,
        ring,
      ]);
      await guest.line();
      return new Side(
        name,
        startBytes,
        device,
        guest,
        program,
        programPath,
        udsPath,
      );
    } catch (error) {
      device.kill("SIGKILL");
      throw error;
    }
  }

  /** Has the guest make a load. */
  async load(request: LoadRequest): Promise<LoadResult> {
    return JSON.parse(await this.#guest.ask(JSON.stringify(request)));
  }

  /** Processor time that each process has used; not that of programs that connect. */
  cpu(): CpuSeconds {
    return {
      guest: cpuSeconds(this.#guest.pid),
      device: cpuSeconds(this.pid),
      program: cpuSeconds(this.#program.pid),
    };
  }

  /** Host programs connect to the guest and close at once; nanoseconds of all, and of their processor time. */
  async connectFromHost(
    port: number,
    request: LoadRequest & { kind: "accept" },
  ): Promise<{ ns: number; cpuNs: number }> {
    const { count, window } = request;
    const accepted = this.load(request);
    const output = await new Deno.Command(this.#programPath, {
      args: [
        "connect",
        this.#udsPath,
        String(port),
        String(count),
        String(window),
      ],
      stdin: "null",
      stderr: "inherit",
    }).output();
    if (!output.success) throw new Error(`${this.name} refused a connection`);
    await accepted;
    const text = new TextDecoder().decode(output.stdout);
    const [ns, cpuNs] = text.split(" ").map(Number);
    return { ns: ns!, cpuNs: cpuNs! };
  }

  /** Ends all processes. */
  async close(): Promise<void> {
    await this.#guest.close();
    this.#device.kill("SIGTERM");
    const killer = setTimeout(() => this.#device.kill("SIGKILL"), 5_000);
    await this.#device.status;
    clearTimeout(killer);
    await this.#program.close();
  }
}

/** Resident memory of a process in bytes, without what it shares with the guest. */
export function residentBytes(pid: number): number {
  const status = Deno.readTextFileSync(`/proc/${pid}/status`);
  const kib = (name: string): number =>
    Number(status.match(new RegExp(`^${name}:\\s+(\\d+) kB$`, "m"))?.[1] ?? 0);
  return (kib("VmRSS") - kib("RssShmem")) * 1024;
}

/** Seconds of processor time that a process has used; threads that are over are missing. */
export function cpuSeconds(pid: number): number {
  let ns = 0;
  try {
    // In ns; the fields of `stat` are in hundredths of a second.
    for (const { name } of Deno.readDirSync(`/proc/${pid}/task`)) {
      const text = Deno.readTextFileSync(`/proc/${pid}/task/${name}/schedstat`);
      ns += Number(text.split(" ")[0]);
    }
    return ns / 1e9;
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    const stat = Deno.readTextFileSync(`/proc/${pid}/stat`);
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return (Number(fields[11]) + Number(fields[12])) / 100;
  }
}
