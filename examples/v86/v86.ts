/**
 * What this example uses of v86, an x86 emulator in JavaScript and WebAssembly.
 *
 * Most of it is not in v86's own declarations: it is what the normal, minified build of {@link V86_VERSION}
 * has, so that another version may need changes here.
 *
 * @module
 */

/** The version of v86 whose insides are described here. */
export const V86_VERSION = "0.5.462";

/** A handler of a port; v86 calls it with the device that it was registered with as `this`. */
export type PortRead = () => number;
/** A handler of a port; the value may come as a negative number. */
export type PortWrite = (value: number) => void;

/** A PCI device as v86 takes it. */
export type V86PciDevice = {
  name: string;
  /** Bus, device and function: device x 8 + function. */
  pci_id: number;
  /** Configuration space, little-endian; v86 holds a copy of its own and answers reads from that. */
  pci_space: readonly number[];
  pci_bars: { size: number }[];
};

/** v86's PCI bus. */
export interface V86Pci {
  /** To be called when the ports that its BARs stand at are registered. */
  register_device(device: V86PciDevice): void;
  raise_irq(pciId: number): void;
  lower_irq(pciId: number): void;
  /** Configuration space of the ISA bridge: from 0x60 on, the interrupts of PIRQA to PIRQD. */
  readonly isa_bridge_space8: Uint8Array;
}

/** v86's processor, which owns all else. */
export interface V86Cpu {
  readonly io: {
    register_read(
      port: number,
      device: object,
      read8?: PortRead,
      read16?: PortRead,
      read32?: PortRead,
    ): void;
    register_write(
      port: number,
      device: object,
      write8?: PortWrite,
      write16?: PortWrite,
      write32?: PortWrite,
    ): void;
  };
  readonly devices: { readonly pci: V86Pci };
  readonly wasm_memory: WebAssembly.Memory;
  /** The guest's memory; slow, since it is looked up at each access. */
  readonly mem8: { readonly byteOffset: number };
  readonly memory_size: ArrayLike<number>;
  write_blob(bytes: Uint8Array, address: number): void;
}

/** An emulator. */
export interface V86Emulator {
  readonly v86: { readonly cpu: V86Cpu };
  add_listener(event: "serial0-output-byte", f: (byte: number) => void): void;
  add_listener(event: "emulator-loaded", f: () => void): void;
  remove_listener(
    event: "serial0-output-byte",
    f: (byte: number) => void,
  ): void;
  run(): Promise<void>;
  /** Resolves between two instructions, when none runs any more. */
  stop(): Promise<void>;
  destroy(): Promise<void>;
  save_state(): Promise<ArrayBuffer>;
  restore_state(state: ArrayBuffer): Promise<void>;
  serial_send_bytes(serial: number, bytes: Uint8Array): void;
}

/** Options of an emulator, those that are used here. */
export type V86Options = {
  autostart: boolean;
  memory_size: number;
  bios?: { buffer: ArrayBuffer };
  net_device: { type: "none" };
  disable_keyboard: boolean;
  disable_mouse: boolean;
  disable_speaker: boolean;
  /** Instantiates `v86.wasm`. */
  wasm_fn: (imports: WebAssembly.Imports) => Promise<WebAssembly.Exports>;
};

/** The class that `libv86.mjs` exports as `V86`. */
export type V86Constructor = new (options: V86Options) => V86Emulator;

/** What is needed to make an emulator. */
export type V86Build = {
  V86: V86Constructor;
  /** `v86.wasm`, compiled. */
  wasm: WebAssembly.Module;
};
