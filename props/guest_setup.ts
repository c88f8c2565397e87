import { type RunningDevice, startDevice } from "../device/host/mod.ts";
import type { DeviceOptions } from "../device/host/mod.ts";
import { bootGuest, type Guest, type VmKind } from "./guest/vm/mod.ts";
import type { RingFormat } from "../ring/queue.ts";
import { readLine, text, write } from "./streams.ts";

/** A device with a real guest on it, and the host's ends of its connections. */
export class GuestSetup implements AsyncDisposable {
  /** Where the sockets are. */
  readonly folder: string;
  /** What the device has logged. */
  readonly log: string[] = [];
  /** The device. */
  device!: RunningDevice;
  /** The guest; another one after {@link GuestSetup.boot}. */
  guest!: Guest;
  /** Its machine. */
  vm!: VmKind;
  /** Format of its rings. */
  ring!: RingFormat;
  #port = 10_000;
  #logSeen = 0;

  private constructor() {
    this.folder = Deno.makeTempDirSync({ prefix: "ringside-" });
  }

  /** Starts a device, and boots a guest on it. */
  static async start(vm: VmKind, ring: RingFormat): Promise<GuestSetup> {
    const setup = await GuestSetup.startDevice({ ring });
    try {
      await setup.boot(vm, ring);
    } catch (error) {
      await setup[Symbol.asyncDispose]();
      throw error;
    }
    return setup;
  }

  /** Starts a device, without a guest. */
  static async startDevice(
    options: Partial<DeviceOptions> = {},
  ): Promise<GuestSetup> {
    const setup = new GuestSetup();
    try {
      setup.device = await startDevice({
        socketPath: `${setup.folder}/vhost`,
        udsPath: `${setup.folder}/vm`,
        guestCid: 3,
        logLevel: "debug",
        onLog: (level, text) => setup.log.push(`${level}: ${text}`),
        ...options,
      });
    } catch (error) {
      await setup[Symbol.asyncDispose]();
      throw error;
    }
    return setup;
  }

  /** Boots a guest, the same as before unless told; the one before is gone. */
  async boot(
    vm: VmKind = this.vm,
    ring: RingFormat = this.ring,
  ): Promise<void> {
    this.vm = vm;
    this.ring = ring;
    this.guest = await bootGuest({
      vm,
      socketPath: `${this.folder}/vhost`,
      packed: ring === "packed",
    });
  }

  /** What the device has logged since the last call. */
  newLog(): string[] {
    const lines = this.log.slice(this.#logSeen);
    this.#logSeen = this.log.length;
    return lines;
  }

  /** A port that no test has used. */
  port(): number {
    return this.#port++;
  }

  /** Listens where the guest's connections to `port` arrive. */
  listen(port: number): Deno.UnixListener {
    return Deno.listen({
      transport: "unix",
      path: `${this.folder}/vm_${port}`,
    });
  }

  /** Connects to a port in the guest. */
  async connect(port: number): Promise<Deno.UnixConn> {
    const conn = await Deno.connect({
      transport: "unix",
      path: `${this.folder}/vm`,
    });
    try {
      await write(conn, text(`CONNECT ${port}\n`));
      const line = await readLine(conn);
      if (line === "") throw new Error("the guest refused");
      if (!/^OK \d+$/.test(line)) throw new Error(`the answer is ${line}`);
      return conn;
    } catch (error) {
      conn.close();
      throw error;
    }
  }

  /** Ends everything and removes the files. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.guest?.kill();
    await this.device?.stop();
    await Deno.remove(this.folder, { recursive: true });
  }
}
