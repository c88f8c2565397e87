import { VIRTIO_F_NOTIFICATION_DATA } from "../ring/virtio_ring.ts";
import { FieldParts, type FieldPartsSnapshot } from "./_field_parts.ts";
import { cut, PciCommon, type PciCommonSnapshot } from "./_pci_common.ts";
import {
  INTERRUPT_CONFIG,
  INTERRUPT_QUEUE,
  liesInside,
  Registers,
  type RegisterSnapshot,
} from "./_registers.ts";
import type { EmulatorOptions } from "./emulator.ts";
import { PCI_CONFIG_BYTES, PciConfig, type PciIdentity } from "./pci_config.ts";
import { layOutBar, type PciLayout, type PciSpace } from "./pci_layout.ts";
import {
  type MsixSnapshot,
  MsixTable,
  type PciMsixOptions,
} from "./pci_msix.ts";
import { base64, seal, SnapshotError, unseal } from "./snapshot.ts";
import { featureMask, type VirtioDevice } from "./virtio_device.ts";
import {
  PCI_BASE_ADDRESS_0,
  PCI_COMMAND,
  PCI_COMMAND_INTX_DISABLE,
  PCI_COMMAND_IO,
  PCI_COMMAND_MASTER,
  PCI_COMMAND_MEMORY,
  PCI_MSIX_FLAGS_ENABLE,
  PCI_MSIX_FLAGS_MASKALL,
  PCI_STATUS,
  PCI_STATUS_INTERRUPT,
  VIRTIO_PCI_CAP_BAR,
  VIRTIO_PCI_CAP_LENGTH,
  VIRTIO_PCI_CAP_OFFSET,
  VIRTIO_PCI_CFG_CAP_DATA,
} from "./virtio_pci.ts";

/** What a {@link PciTransport} needs of an emulator, and how the device presents itself. */
export type PciOptions = EmulatorOptions & PciIdentity & {
  /** Address space of the BAR. `"memory"` unless told. */
  space?: PciSpace;
  /**
   * Offers MSI-X, for a BAR in memory space. For an emulator that hands over accesses to configuration
   * space, where MSI-X is enabled. Only the interrupt line unless told.
   */
  msix?: PciMsixOptions;
};

const NOTIFICATION_DATA = featureMask(VIRTIO_F_NOTIFICATION_DATA);
/** Version of the snapshots of a function, and the only one that is read. */
const PCI_SNAPSHOT_VERSION = 1;

/** What a PCI function holds beside its device, as plain data. */
export type PciSnapshot = {
  /** Version of the format. */
  version: number;
  /** Of all else in it. */
  checksum: string;
  /** The 256 bytes of configuration space, in base64. */
  config: string;
  /** What all register transports have. */
  registers: RegisterSnapshot;
  /** Vectors of the events. */
  common: PciCommonSnapshot;
  /** The table of MSI-X, empty where it is not offered. */
  msix: MsixSnapshot;
  /** A field that was written in part. */
  parts: FieldPartsSnapshot;
};

/**
 * A virtio device on a PCI bus (virtio 1.4, 4.1, without the legacy interface), for an emulator that is
 * written in JavaScript.
 *
 * It is a conventional PCI function with one BAR, which holds all structures, one interrupt line, and MSI-X
 * where the emulator offers it. The emulator maps {@link PciTransport.read} and {@link PciTransport.write}
 * where the guest has put the BAR ({@link PciTransport.barAddress}), and hands over accesses to
 * configuration space by {@link PciTransport.configRead} and {@link PciTransport.configWrite}. One that
 * keeps configuration spaces itself begins with {@link PciTransport.configSpace}; then there is no MSI-X
 * and no access through configuration space, and INTx is never disabled. An access of 8 bytes is split
 * into two of 4. A register may give the device work: after a write, and when the host's side has
 * something, the emulator calls {@link PciTransport.syncMemory}, then the model's `process()`, again while
 * that says so.
 *
 * The bus master bit holds messages back, not accesses to guest memory: many an emulator never shows it to its
 * devices. A driver that takes it away resets the device first.
 *
 * Fields are accessed as wide as they are (4.1.3.1). Since some emulators split accesses, a field may also be
 * written in parts: it takes its value when all its bytes have come, in any order, without a write to
 * another field in between. A read may have any width that stays inside one structure.
 *
 * Whatever a guest does, nothing is thrown: what the specification does not allow is ignored, reads as 0
 * and is counted in the device's diagnostics (`pci_*`).
 *
 * Two fields that the specification does not know, {@link VIRTIO_PCI_COMMON_Q_AVAIL_STATE} and
 * {@link VIRTIO_PCI_COMMON_Q_USED_STATE}, carry the virtqueue state facility where the device offers
 * VIRTIO_F_QUEUE_STATE. They lie behind the common configuration, whose length has room for them then.
 *
 * @example
 * ```ts ignore
 * const vsock = new VsockDevice({ guestCid: 3, host });
 * const virtio = new VirtioDevice(vsock);
 * vsock.attach(virtio);
 * const pci = new PciTransport(virtio, {
 *   memory: followMemory(() => ({
 *     guestAddress: 0,
 *     size: machine.memoryBytes,
 *     buffer: machine.wasmMemory.buffer,
 *     byteOffset: machine.memoryOffset,
 *   })),
 *   interrupt: (level) => machine.setIrq(11, level),
 *   space: "io",
 * });
 * machine.plug({
 *   configSpace: pci.configSpace(),
 *   barSize: pci.barSize,
 *   read: (offset, width) => pci.read(offset, width),
 *   write: (offset, width, value) => {
 *     pci.write(offset, width, value);
 *     while (vsock.process());
 *   },
 * });
 * ```
 */
export class PciTransport {
  /** The device behind the registers. */
  readonly virtio: VirtioDevice;

  readonly #registers: Registers;
  readonly #common: PciCommon;
  readonly #layout: PciLayout;
  readonly #config: PciConfig;
  readonly #msix: MsixTable;
  #msixEnabled = false;
  readonly #parts: FieldParts = new FieldParts();

  /**
   * Plugs `virtio` in.
   *
   * @throws {TypeError} when MSI-X is to be in I/O space, which PCI does not allow.
   * @throws {RangeError} when the structures do not fit into I/O space, or there cannot be so many vectors.
   */
  constructor(virtio: VirtioDevice, options: PciOptions) {
    const space = options.space ?? "memory";
    if (space === "io" && options.msix !== undefined) {
      throw new TypeError(
        "Cannot offer MSI-X: its table has to be in memory space, the BAR is in I/O space",
      );
    }
    this.virtio = virtio;
    this.#registers = new Registers("pci", virtio, options);
    this.#msix = new MsixTable(options.msix);
    this.#common = new PciCommon(this.#registers, this.#msix.vectors);
    this.#layout = layOutBar(virtio, space, this.#msix);
    this.#config = new PciConfig(virtio.model.deviceId, this.#layout, options);
    virtio.connect({
      interrupt: (index) => this.#interrupt(index),
      configChanged: () => this.#configChanged(),
    });
  }

  /** Bytes of BAR 0, a power of two. */
  get barSize(): number {
    return this.#layout.size;
  }

  /** Where the guest has put BAR 0 in the address space that was chosen; null while the device does not answer there. */
  get barAddress(): number | null {
    const io = this.#layout.space === "io";
    const command = this.#config.get(PCI_COMMAND, 2);
    const enabled = command & (io ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY);
    if (enabled === 0) return null;
    const bar = this.#config.get(PCI_BASE_ADDRESS_0, 4);
    return io ? bar - (bar & 3) : bar;
  }

  /** Level of the interrupt line. */
  get interruptLevel(): boolean {
    return this.#registers.interruptLevel;
  }

  /**
   * Lets the device go on over the guest's memory as it is now; to be called before the model works by
   * itself, when the memory may have moved since the last access to a register.
   *
   * @throws {TypeError} when the memory is not there any more: its buffer is detached.
   */
  syncMemory(): void {
    this.#registers.syncMemory();
  }

  /** Resets the function as the machine's own reset does: configuration space, MSI-X and the device. */
  reset(): void {
    this.#config.reset();
    this.#msix.reset();
    this.#parts.drop();
    this.#common.reset();
    this.#commandChanged();
  }

  /**
   * What the function holds, as plain data that survives `structuredClone` and JSON; what the device
   * behind it holds is for {@link VirtioDevice.save}. Changes nothing.
   *
   * Configuration space is in it as far as accesses to it were handed over.
   */
  save(): PciSnapshot {
    return seal(PCI_SNAPSHOT_VERSION, {
      config: base64(this.#config.image()),
      registers: this.#registers.save(),
      common: this.#common.save(),
      msix: this.#msix.save(),
      parts: this.#parts.save(),
    });
  }

  /**
   * Goes on from what {@link PciTransport.save} returned, before {@link VirtioDevice.restore} does, over
   * guest memory with the same contents. Drives the interrupt line to the level that it had; the emulator
   * maps the BAR where it was.
   *
   * @throws {SnapshotError} when it is no snapshot that this function can go on from; it is as it was.
   * @throws {TypeError} when the device is not in its state after reset.
   */
  restore(snapshot: unknown): void {
    const fields = unseal(snapshot, PCI_SNAPSHOT_VERSION);
    const config = fields.bytes("config", PCI_CONFIG_BYTES);
    if (!this.#config.matches(config)) {
      throw new SnapshotError(
        "MISMATCH",
        "it is of a PCI function that presents itself otherwise",
      );
    }
    const goOn = [
      this.#registers.prepareRestore(fields.any("registers")),
      this.#common.prepareRestore(fields.any("common")),
      this.#msix.prepareRestore(fields.any("msix")),
      this.#parts.prepareRestore(fields.any("parts")),
    ];
    this.#registers.needReset();
    this.#config.restore(config);
    this.#commandChanged();
    for (const step of goOn) step();
  }

  // -- Interrupts --

  #interrupt(index: number): void {
    if (this.#msixEnabled) this.#msix.fire(this.#common.queueVectors[index]!);
    else this.#registers.raiseInterrupt(INTERRUPT_QUEUE);
  }

  #configChanged(): void {
    this.#registers.raiseInterrupt(INTERRUPT_CONFIG);
    if (this.#msixEnabled) this.#msix.fire(this.#common.configVector);
  }

  /** Command or message control have changed. */
  #commandChanged(): void {
    const command = this.#config.get(PCI_COMMAND, 2);
    const at = this.#config.msixCapability;
    const control = at === 0 ? 0 : this.#config.get(at + 2, 2);
    const enabled = (control & PCI_MSIX_FLAGS_ENABLE) !== 0;
    this.#msixEnabled = enabled;
    this.#registers.openLine(
      !enabled && (command & PCI_COMMAND_INTX_DISABLE) === 0,
    );
    // A message is a write to memory, so it takes a bus master.
    this.#msix.open(
      enabled && (control & PCI_MSIX_FLAGS_MASKALL) === 0 &&
        (command & PCI_COMMAND_MASTER) !== 0,
    );
  }

  // -- Configuration space --

  /**
   * A copy of the 256 bytes of configuration space as they are: for an emulator that handles accesses to it
   * itself.
   */
  configSpace(): Uint8Array {
    return this.#config.image();
  }

  /** Reads `width` bytes, 1, 2 or 4, at `offset` in configuration space; little-endian, unsigned. */
  configRead(offset: number, width: number): number {
    this.#registers.syncMemory();
    if (!liesInside(offset, width, PCI_CONFIG_BYTES)) {
      return this.#registers.ignored("config_read", offset, width);
    }
    const data = this.#config.windowCapability + VIRTIO_PCI_CFG_CAP_DATA;
    if (offset <= data && offset + width > data) this.#readWindow();
    const value = this.#config.get(offset, width);
    const status = PCI_STATUS - offset;
    if (
      status < 0 || status >= width || this.#msixEnabled ||
      this.#registers.interruptStatus === 0
    ) {
      return value;
    }
    return (value | PCI_STATUS_INTERRUPT << (8 * status)) >>> 0;
  }

  /**
   * Writes `width` bytes, 1, 2 or 4, of `value` at `offset` in configuration space; little-endian. Bits
   * that cannot be written stay what they are.
   */
  configWrite(offset: number, width: number, value: number): void {
    this.#registers.syncMemory();
    if (!liesInside(offset, width, PCI_CONFIG_BYTES)) {
      this.#registers.ignored("config_write", offset, width);
      return;
    }
    this.#config.write(offset, width, value);
    const { windowCapability, msixCapability } = this.#config;
    const end = offset + width;
    if (
      (offset < PCI_COMMAND + 2 && end > PCI_COMMAND) ||
      (offset < msixCapability + 4 && end > msixCapability + 2)
    ) {
      this.#commandChanged();
    }
    // Where the access was split, its last byte counts.
    const length = this.#config.get(
      windowCapability + VIRTIO_PCI_CAP_LENGTH,
      4,
    );
    const last = windowCapability + VIRTIO_PCI_CFG_CAP_DATA +
      Math.min(Math.max(length, 1), 4) - 1;
    if (offset <= last && end > last) this.#writeWindow();
  }

  /** The driver reads through the window (4.1.4.9): what it names is read into its data. */
  #readWindow(): void {
    const at = this.#config.windowCapability;
    const offset = this.#config.get(at + VIRTIO_PCI_CAP_OFFSET, 4);
    const length = this.#config.get(at + VIRTIO_PCI_CAP_LENGTH, 4);
    const value = this.#windowOpen() ? this.read(offset, length) : 0;
    this.#config.write(at + VIRTIO_PCI_CFG_CAP_DATA, 4, value);
  }

  /** The driver has written to the window: so is what it names. */
  #writeWindow(): void {
    if (!this.#windowOpen()) return;
    const at = this.#config.windowCapability;
    const offset = this.#config.get(at + VIRTIO_PCI_CAP_OFFSET, 4);
    const length = this.#config.get(at + VIRTIO_PCI_CAP_LENGTH, 4);
    const data = at + VIRTIO_PCI_CFG_CAP_DATA;
    this.write(offset, length, this.#config.get(data, length));
  }

  #windowOpen(): boolean {
    const at = this.#config.windowCapability;
    const bar = this.#config.get(at + VIRTIO_PCI_CAP_BAR, 1);
    const offset = this.#config.get(at + VIRTIO_PCI_CAP_OFFSET, 4);
    const length = this.#config.get(at + VIRTIO_PCI_CAP_LENGTH, 4);
    if (
      bar === 0 && liesInside(offset, length, this.barSize) &&
      offset % length === 0
    ) {
      return true;
    }
    this.#registers.refused(
      "window",
      `${length} bytes at offset 0x${offset.toString(16)} of BAR ${bar}`,
    );
    return false;
  }

  // -- The BAR --

  /** Reads `width` bytes, 1, 2 or 4, at `offset` in BAR 0; little-endian, unsigned. */
  read(offset: number, width: number): number {
    this.#registers.syncMemory();
    const { common, isr, device, msixTable, msixPending } = this.#layout;
    if (lies(offset, width, common)) return this.#common.read(offset, width);
    if (offset === isr.offset && width === 1) return this.#readIsr();
    if (lies(offset, width, device)) {
      this.#common.noticeConfig();
      const value = this.#registers.readConfig(offset - device.offset, width);
      if (value >= 0) return value;
    }
    if (lies(offset, width, msixTable)) {
      return this.#msix.readTable(offset - msixTable.offset, width);
    }
    if (lies(offset, width, msixPending)) {
      return this.#msix.readPending(offset - msixPending.offset, width);
    }
    return this.#registers.ignored("read", offset, width);
  }

  #readIsr(): number {
    const status = this.#registers.interruptStatus;
    this.#registers.clearInterrupt(status);
    return status;
  }

  /** Writes `width` bytes, 1, 2 or 4, of `value` at `offset` in BAR 0; little-endian. */
  write(offset: number, width: number, value: number): void {
    const registers = this.#registers;
    registers.syncMemory();
    const { device, msixTable } = this.#layout;
    if (lies(offset, width, device)) {
      if (registers.writeConfig(offset - device.offset, width, value)) return;
      registers.ignored("write", offset, width);
      return;
    }
    if (lies(offset, width, msixTable)) {
      this.#msix.writeTable(offset - msixTable.offset, width, value);
      return;
    }
    const start = this.#fieldStart(offset);
    const size = start === -1 ? 0 : this.#fieldSize(start);
    const at = offset - start;
    if (
      (width !== 1 && width !== 2 && width !== 4) || at + width > size
    ) {
      registers.ignored("write", offset, width);
      return;
    }
    if (width === size) {
      this.#parts.drop();
      this.#writeField(start, cut(value, 0, width));
    } else if (this.#parts.add(start, size, at, width, value)) {
      this.#writeField(start, this.#parts.value);
    }
  }

  /** Where the field at `offset` begins; the fields that are written in parts are aligned to their size. */
  #fieldStart(offset: number): number {
    const { common, isr, notify } = this.#layout;
    if (lies(offset, 1, common)) return this.#common.start(offset);
    if (offset === isr.offset) return offset;
    return lies(offset, 1, notify) ? offset - (offset & 3) : -1;
  }

  #fieldSize(start: number): number {
    const { common, isr } = this.#layout;
    if (lies(start, 1, common)) return this.#common.size(start);
    if (start === isr.offset) return 1;
    return (this.virtio.features & NOTIFICATION_DATA) === 0n ? 2 : 4;
  }

  #writeField(start: number, value: number): void {
    const registers = this.#registers;
    const { isr, notify } = this.#layout;
    if (lies(start, 1, notify)) {
      this.virtio.notify(value);
      return;
    }
    if (start === isr.offset) {
      registers.refused("write", "the ISR status is read-only");
      return;
    }
    this.#common.write(start, value);
  }
}

/** True for a naturally wide access inside a structure. */
function lies(
  offset: number,
  width: number,
  place: { readonly offset: number; readonly size: number },
): boolean {
  return liesInside(offset - place.offset, width, place.size);
}
