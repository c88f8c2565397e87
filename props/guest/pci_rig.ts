import { PciTransport } from "../../device/pci.ts";
import type { PciSpace } from "../../device/pci_layout.ts";
import { PciDriver, type PciDriverOptions } from "./pci_driver.ts";
import { RegisterRig, type RigOptions } from "./register_rig.ts";

/** Options of a {@link PciRig}. */
export type PciRigOptions = RigOptions & Omit<PciDriverOptions, "msix"> & {
  /** Address space of the BAR. `"memory"` unless told. */
  space?: PciSpace;
  /** Vectors that the emulator offers, and the driver uses. None unless told. */
  vectors?: number;
};

/** A {@link RegisterRig} over PCI, whose driver has probed the function. */
export class PciRig extends RegisterRig {
  /** The function. */
  pci: PciTransport;
  /** The driver's side of it. */
  readonly registers: PciDriver;
  /** Messages that the device has sent: vector and data. */
  readonly messages: { vector: number; address: number; data: number }[] = [];

  readonly #pciOptions: PciRigOptions;

  /** Makes both sides; nothing is negotiated. */
  constructor(options: PciRigOptions = {}) {
    super(options);
    this.#pciOptions = options;
    this.pci = this.#plug();
    this.registers = new PciDriver({
      read: (offset, width) => this.access(() => this.pci.read(offset, width)),
      write: (offset, width, value) =>
        this.access(() => this.pci.write(offset, width, value)),
      configRead: (offset, width) =>
        this.access(() => this.pci.configRead(offset, width)),
      configWrite: (offset, width, value) =>
        this.access(() => this.pci.configWrite(offset, width, value)),
    }, { ...options, msix: options.vectors !== undefined });
    this.registers.probe();
  }

  /** Its registers. */
  get transport(): PciTransport {
    return this.pci;
  }

  #plug(): PciTransport {
    const { space, vectors } = this.#pciOptions;
    return new PciTransport(this.virtio, {
      ...this.emulator,
      ...(space === undefined ? {} : { space }),
      ...(vectors === undefined ? {} : {
        msix: {
          vectors,
          message: (address, data, vector) => {
            this.messages.push({ vector, address, data });
          },
        },
      }),
    });
  }

  /** Plugs another device in. */
  protected override replug(): void {
    this.pci = this.#plug();
  }
}
