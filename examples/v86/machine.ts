/**
 * A PC in this thread: v86, with our vsock device in it and a host side in memory.
 *
 * Works in a browser. Programs meet the guest by {@link Machine.listen} and {@link Machine.connect}, as those
 * of the loopback host side do.
 *
 * @module
 */

import type { RingChoice } from "../../device/virtio_device.ts";
import {
  FieldReader,
  type Plain,
  SnapshotError,
} from "../../device/snapshot.ts";
import type { HostSide } from "../../device/vsock/host.ts";
import {
  type LoopbackConn,
  LoopbackHost,
  type LoopbackListener,
} from "../../device/vsock/loopback.ts";
import { V86Vsock } from "./adapter.ts";
import { bootBlobs, bootRom, type KernelImage } from "./boot.ts";
import { readSnapshot, writeSnapshot } from "./snapshot_file.ts";
import { V86_VERSION, type V86Build, type V86Emulator } from "./v86.ts";

/** Memory of a machine unless told, in bytes. */
export const MEMORY_BYTES: number = 64 << 20;
/** A guest's CID unless told. */
export const GUEST_CID = 3;

/** What a machine is made with. */
export type MachineOptions = {
  /** The emulator. */
  build: V86Build;
  /** Ring formats that its device offers: both unless told. */
  ring?: RingChoice;
  /** The guest's CID, {@link GUEST_CID} unless told. */
  guestCid?: number;
  /** Takes what the guest writes to its serial line. */
  serial?: (byte: number) => void;
  /**
   * Where the guest's connections go, if not to {@link Machine.host}: makes the host side, and is told the
   * machine's own.
   */
  host?: (own: LoopbackHost) => HostSide;
};

/** A machine that goes on from a snapshot. */
export type RestoredMachine = {
  machine: Machine;
  /** The host side's connections, in the order in which they were made, for programs to go on with. */
  connections: LoopbackConn[];
  /** What the programs of the other machine left for those of this one. */
  programs: Plain;
};

/** A machine. */
export class Machine {
  /** The emulator. */
  readonly emulator: V86Emulator;
  /** The vsock device. */
  readonly device: V86Vsock;
  /** Its host side. */
  readonly host: LoopbackHost;
  /** Ring formats that the device offers. */
  readonly ring: RingChoice;
  readonly #memoryBytes: number;
  readonly #serial: ((byte: number) => void) | undefined;
  #closed = false;

  private constructor(
    emulator: V86Emulator,
    memoryBytes: number,
    options: MachineOptions,
  ) {
    const { ring = "auto", guestCid = GUEST_CID } = options;
    this.emulator = emulator;
    this.ring = ring;
    this.#memoryBytes = memoryBytes;
    this.#serial = options.serial;
    this.host = new LoopbackHost({ schedule: (work) => work() });
    const host = options.host?.(this.host) ?? this.host;
    this.device = new V86Vsock(emulator, { guestCid, ring, host });
    const { vsock } = this.device;
    this.host.attach({
      connect: (port, answer) => vsock.connect(port, answer),
      // Called when a program has given the device work; it is done when the processor's turn is over.
      process: () => {
        this.device.wake();
        return false;
      },
    });
    if (this.#serial !== undefined) {
      emulator.add_listener("serial0-output-byte", this.#serial);
    }
  }

  static async #create(
    options: MachineOptions,
    memoryBytes: number,
    rom?: Uint8Array<ArrayBuffer>,
  ): Promise<Machine> {
    const { V86, wasm } = options.build;
    const emulator = new V86({
      autostart: false,
      memory_size: memoryBytes,
      ...(rom === undefined ? {} : { bios: { buffer: rom.buffer } }),
      net_device: { type: "none" },
      disable_keyboard: true,
      disable_mouse: true,
      disable_speaker: true,
      wasm_fn: async (imports) =>
        (await WebAssembly.instantiate(wasm, imports)).exports,
    });
    await new Promise<void>((resolve) =>
      emulator.add_listener("emulator-loaded", resolve)
    );
    return new Machine(emulator, memoryBytes, options);
  }

  /** Makes a machine that is about to boot `image`; {@link Machine.run} starts it. */
  static async boot(
    options: MachineOptions,
    image: KernelImage,
    memoryBytes: number = MEMORY_BYTES,
  ): Promise<Machine> {
    const { entry, blobs } = bootBlobs(image, memoryBytes);
    const machine = await Machine.#create(options, memoryBytes, bootRom(entry));
    for (const { address, bytes } of blobs) {
      machine.emulator.v86.cpu.write_blob(bytes, address);
    }
    return machine;
  }

  /**
   * Makes a machine that goes on from `file`, which {@link Machine.save} made, here or elsewhere;
   * {@link Machine.run} lets it go on.
   *
   * A snapshot without a device is of a guest that has not begun to use it, and takes any ring format and CID.
   *
   * @throws {SnapshotError} when the file is none, of another version, cut, edited, or of a machine that differs.
   */
  static async restore(
    options: MachineOptions,
    file: Uint8Array<ArrayBuffer>,
  ): Promise<RestoredMachine> {
    const { description, state } = await readSnapshot(file);
    const fields = new FieldReader(description, "machine");
    const v86 = fields.string("v86");
    if (v86 !== V86_VERSION) {
      throw new SnapshotError(
        "MISMATCH",
        `it is of v86 ${v86}, this is ${V86_VERSION}`,
      );
    }
    const memoryBytes = fields.integer("memoryBytes", 1 << 20, 2 ** 31);
    const saved = fields.any("device");
    const machine = await Machine.#create(options, memoryBytes);
    try {
      await machine.emulator.restore_state(
        state.slice().buffer as ArrayBuffer,
      );
      let connections: LoopbackConn[] = [];
      if (saved !== null) {
        const device = new FieldReader(saved, "machine.device");
        const { pci, virtio } = machine.device;
        pci.syncMemory();
        pci.restore(device.any("pci"));
        connections = machine.host.restore(device.any("host"));
        virtio.restore(device.any("virtio"));
      }
      const programs = fields.any("programs") as Plain;
      return { machine, connections, programs };
    } catch (error) {
      await machine.close();
      throw error;
    }
  }

  /** Takes the guest's connections to a host port. */
  listen(options: { port: number }): LoopbackListener {
    return this.host.listen(options.port);
  }

  /** Connects to a port of the guest's. */
  connect(options: { port: number }): Promise<LoopbackConn> {
    return this.host.connect(options.port);
  }

  /** Sends text to the guest's serial line. */
  type(text: string): void {
    this.emulator.serial_send_bytes(0, new TextEncoder().encode(text));
  }

  /** Starts the machine, or lets it go on. */
  async run(): Promise<void> {
    this.device.release();
    await this.emulator.run();
  }

  /** Stops it between two instructions; no byte moves any more until it is run again. */
  async stop(): Promise<void> {
    await this.emulator.stop();
    this.device.hold();
  }

  /**
   * Saves a stopped machine as a file. It stays as it is: it may go on, too.
   *
   * @param options `programs` is whatever the host's programs leave for those that go on with their
   * connections; `device` false leaves out the device, which the guest must not have used yet.
   */
  async save(
    options: { programs?: Plain; device?: boolean } = {},
  ): Promise<Uint8Array<ArrayBuffer>> {
    // All of it in one turn.
    const state = this.emulator.save_state();
    this.device.pci.syncMemory();
    const description = {
      v86: V86_VERSION,
      memoryBytes: this.#memoryBytes,
      device: options.device === false ? null : {
        virtio: this.device.virtio.save() as unknown as Plain,
        pci: this.device.pci.save() as unknown as Plain,
        host: this.host.save() as unknown as Plain,
      },
      programs: options.programs ?? null,
    };
    return await writeSnapshot({
      description,
      state: new Uint8Array(await state),
    });
  }

  /** Ends the machine. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.stop();
    this.host.detach();
    if (this.#serial !== undefined) {
      this.emulator.remove_listener("serial0-output-byte", this.#serial);
    }
    await this.emulator.destroy();
  }

  /** Ends the machine at the end of an `await using` block. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
