import { type RunningDevice, startDevice } from "../device/host/mod.ts";
import type { DeviceOptions } from "../device/host/mod.ts";
import { libc } from "../device/host/ffi.ts";
import type { GuestConnection } from "./guest/guest_connection.ts";
import {
  type FrontEndOptions,
  VhostUserFrontEnd,
} from "./guest/vhost_user_front_end.ts";
import { SHUTDOWN_BOTH } from "./guest/vsock_header.ts";
import { readExactly, readLine, text, write } from "./streams.ts";

// The library stays open for good, so that no test is the one that opens it.
libc();

/** CID of the guest in a {@link Rig}. */
export const RIG_CID = 3;

/** A device that listens, in a folder of its own, and a front-end of our own that drives it. */
export class Rig implements AsyncDisposable {
  /** The device; another one after {@link Rig.crash}. */
  device: RunningDevice;
  /** The front-end; another one after {@link Rig.reconnect}. */
  front: VhostUserFrontEnd;
  /** Path of the vhost-user socket. */
  readonly socketPath: string;
  /** Path of the socket for host programs. */
  readonly udsPath: string;
  readonly #folder: string;
  readonly #log: string[];
  readonly #frontEnd: Omit<FrontEndOptions, "socketPath">;
  readonly #conns: Deno.Conn[] = [];

  private constructor(
    device: RunningDevice,
    folder: string,
    log: string[],
    frontEnd: Omit<FrontEndOptions, "socketPath">,
  ) {
    this.device = device;
    this.#folder = folder;
    this.#log = log;
    this.#frontEnd = frontEnd;
    this.socketPath = `${folder}/vhost`;
    this.udsPath = `${folder}/vsock`;
    this.front = new VhostUserFrontEnd({
      ...frontEnd,
      socketPath: this.socketPath,
    });
  }

  /** Process of the device, or `self` where it is a Worker of this one. */
  get pid(): number | "self" {
    return this.device instanceof DeviceProcess ? this.device.pid : "self";
  }

  /** What the device has logged. */
  get log(): string[] {
    return this.device instanceof DeviceProcess ? this.device.log : this.#log;
  }

  /** Starts a device and a front-end. */
  static async start(
    frontEnd: Omit<FrontEndOptions, "socketPath"> = {},
    device: Partial<DeviceOptions> = {},
  ): Promise<Rig> {
    const folder = await Deno.makeTempDir();
    const log: string[] = [];
    const running = await startDevice({
      socketPath: `${folder}/vhost`,
      udsPath: `${folder}/vsock`,
      guestCid: RIG_CID,
      logLevel: "debug",
      onLog: (level, text) => log.push(`${level}: ${text}`),
      ...device,
    });
    try {
      return new Rig(running, folder, log, frontEnd);
    } catch (error) {
      await running.stop();
      throw error;
    }
  }

  /**
   * Starts `deno task device` as a process of its own, with at most `maxFds` descriptors, and a front-end.
   */
  static async startProcess(
    frontEnd: Omit<FrontEndOptions, "socketPath"> = {},
    maxFds = 1024,
  ): Promise<Rig> {
    const folder = await Deno.makeTempDir();
    const device = await DeviceProcess.start(folder, maxFds);
    try {
      return new Rig(device, folder, device.log, frontEnd);
    } catch (error) {
      await device.stop();
      throw error;
    }
  }

  /** Hangs up, as a machine that is switched off, and connects anew with new memory. */
  reconnect(frontEnd: Omit<FrontEndOptions, "socketPath"> = {}): void {
    this.front.close();
    this.front = new VhostUserFrontEnd({
      ...this.#frontEnd,
      ...frontEnd,
      socketPath: this.socketPath,
    });
  }

  /**
   * Kills the device's process where it stands, and starts another one in its place. The front-end is not
   * told: see {@link VhostUserFrontEnd.reconnect}.
   *
   * @throws {TypeError} when the device has no process of its own.
   */
  async crash(): Promise<void> {
    const { device } = this;
    if (!(device instanceof DeviceProcess)) {
      throw new TypeError("Cannot kill the device: it has no process");
    }
    await device.kill();
    this.device = await DeviceProcess.start(this.#folder, device.maxFds);
  }

  /** Listens as a host program at a host port. */
  listen(port: number): Deno.UnixListener {
    return Deno.listen({ transport: "unix", path: `${this.udsPath}_${port}` });
  }

  /** Connects as a host program, without a word. */
  async dial(): Promise<Deno.UnixConn> {
    const conn = await Deno.connect({ transport: "unix", path: this.udsPath });
    this.#conns.push(conn);
    return conn;
  }

  /** Carries interrupts while `task` runs, and returns its result. */
  async drive<T>(task: Promise<T>, timeoutMs = 5000): Promise<T> {
    let settled = false;
    const done = task.finally(() => settled = true);
    // A failure is the caller's, below.
    done.catch(() => {});
    await this.front.until(() => settled, timeoutMs);
    return await done;
  }

  /** Lets `ms` pass while interrupts are carried. */
  async pass(ms: number): Promise<void> {
    const end = performance.now() + ms;
    await this.front.until(() => performance.now() >= end, ms + 5000);
  }

  /** Connects from the host to a guest port where the guest listens: both ends. */
  async fromHost(
    port: number,
  ): Promise<{ near: GuestConnection; far: Deno.UnixConn }> {
    const listener = this.front.driver.listen(port);
    try {
      const far = await this.dial();
      await write(far, text(`CONNECT ${port}\n`));
      const answer = await this.drive(readLine(far));
      if (!/^OK \d+$/.test(answer)) throw new Error(`the answer is ${answer}`);
      const near = listener.accept();
      if (near === null) throw new Error("the guest did not accept");
      return { near, far };
    } finally {
      listener.close();
    }
  }

  /** Connects from the guest to a host port: both ends. */
  async fromGuest(
    port: number,
  ): Promise<{ near: GuestConnection; far: Deno.UnixConn }> {
    using listener = this.listen(port);
    const near = this.front.driver.connect(port);
    const far = await this.drive(listener.accept());
    this.#conns.push(far);
    await this.front.until(() => near.state !== "connecting");
    return { near, far };
  }

  /** Reads `length` bytes from a host program's end while the guest goes on. */
  async readFar(far: Deno.Conn, length: number): Promise<Uint8Array> {
    return await this.drive(readExactly(far, length));
  }

  /** Sends all of `bytes` from the guest. */
  async sendNear(near: GuestConnection, bytes: Uint8Array): Promise<void> {
    let done = 0;
    await this.front.until(() => {
      done += near.send(bytes.subarray(done));
      return done === bytes.length;
    });
  }

  /** Reads `length` bytes at the guest's end. */
  async readNear(near: GuestConnection, length: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(length);
    let done = 0;
    await this.front.until(() => {
      done += near.read(bytes.subarray(done));
      return done === length;
    });
    return bytes;
  }

  /** Moves bytes both ways over a new connection: the device is well. */
  async echo(port = 7777): Promise<void> {
    const { near, far } = await this.fromGuest(port);
    const bytes = Uint8Array.from({ length: 100_000 }, (_, i) => i * i >> 3);
    const [, got] = await Promise.all([
      this.sendNear(near, bytes),
      readExactly(far, bytes.length),
    ]);
    if (!same(got, bytes)) throw new Error("guest to host: other bytes");
    const [back] = await Promise.all([
      this.readNear(near, bytes.length),
      write(far, bytes),
    ]);
    if (!same(back, bytes)) throw new Error("host to guest: other bytes");
    near.shutdown(SHUTDOWN_BOTH);
    await this.front.until(() => near.state === "closed");
    far.close();
  }

  /** Stops everything and removes the files. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.front.close();
    for (const conn of this.#conns.splice(0)) {
      try {
        conn.close();
      } catch (error) {
        if (!(error instanceof Deno.errors.BadResource)) throw error;
      }
    }
    await this.device.stop();
    await Deno.remove(this.#folder, { recursive: true });
  }
}

/** A device in a process of its own. */
class DeviceProcess implements RunningDevice {
  readonly log: string[] = [];
  readonly closed: Promise<void>;
  readonly pid: number;
  readonly maxFds: number;
  readonly #child: Deno.ChildProcess;

  private constructor(child: Deno.ChildProcess, maxFds: number) {
    this.#child = child;
    this.maxFds = maxFds;
    this.pid = child.pid;
    this.closed = Promise.all([
      child.status,
      this.#keep(child.stdout),
      this.#keep(child.stderr),
    ]).then(() => {});
  }

  static async start(folder: string, maxFds: number): Promise<DeviceProcess> {
    const cli = new URL("../device/host/cli.ts", import.meta.url).pathname;
    const args = ["run", "-A", "--no-config", cli];
    args.push("--socket", `${folder}/vhost`, "--uds-path", `${folder}/vsock`);
    args.push("--guest-cid", String(RIG_CID));
    const child = new Deno.Command("sh", {
      args: [
        "-c",
        `ulimit -n ${maxFds}; exec "$0" "$@"`,
        Deno.execPath(),
        ...args,
      ],
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    const device = new DeviceProcess(child, maxFds);
    // Not the files: a device that was killed has left them.
    for (let tries = 0; !device.log.join("").includes("listening"); tries++) {
      if (tries > 1000) throw new Error(`not there: ${device.log.join("")}`);
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    return device;
  }

  async kill(): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.closed;
  }

  async stop(): Promise<void> {
    try {
      this.#child.kill("SIGTERM");
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
    }
    await this.closed;
  }

  metrics(): Promise<Record<string, number>> {
    return Promise.resolve({});
  }

  async #keep(stream: ReadableStream<Uint8Array>): Promise<void> {
    const decoder = new TextDecoder();
    for await (const chunk of stream) this.log.push(decoder.decode(chunk));
  }
}

/** Tells whether there is a file at `path`. */
export function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

function same(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}

/** CPU time of a process and its threads so far, in milliseconds. */
export function cpuMs(pid: number | "self"): number {
  const stat = Deno.readTextFileSync(`/proc/${pid}/stat`);
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) * 10;
}

/** Open descriptors of a process. */
export function openFds(pid: number | "self"): number {
  return [...Deno.readDirSync(`/proc/${pid}/fd`)].length;
}
