import { MmioTransport } from "../../device/mmio.ts";
import { MmioDriver } from "./mmio_driver.ts";
import { RegisterRig, type RigOptions } from "./register_rig.ts";

export { EchoDevice, initialWords } from "./register_rig.ts";

/** Options of an {@link MmioRig}. */
export type MmioRigOptions = RigOptions;

/** A {@link RegisterRig} over MMIO. */
export class MmioRig extends RegisterRig {
  /** Its registers. */
  mmio: MmioTransport;
  /** The driver's side of the registers. */
  readonly registers: MmioDriver;

  /** Makes both sides; nothing is negotiated. */
  constructor(options: MmioRigOptions = {}) {
    super(options);
    this.mmio = new MmioTransport(this.virtio, this.emulator);
    this.registers = new MmioDriver({
      read: (offset, width) => this.access(() => this.mmio.read(offset, width)),
      write: (offset, width, value) =>
        this.access(() => this.mmio.write(offset, width, value)),
    });
  }

  /** Its registers. */
  get transport(): MmioTransport {
    return this.mmio;
  }

  /** Plugs another device in. */
  protected override replug(): void {
    this.mmio = new MmioTransport(this.virtio, this.emulator);
  }
}
