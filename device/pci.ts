import { VIRTIO_F_NOTIFICATION_DATA } from "../ring/virtio_ring.ts";
import {
  INTERRUPT_CONFIG,
  INTERRUPT_QUEUE,
  liesInside,
  Registers,
} from "./_registers.ts";
import type { EmulatorOptions } from "./emulator.ts";
import { PCI_CONFIG_BYTES, PciConfig, type PciIdentity } from "./pci_config.ts";
import { layOutBar, type PciLayout, type PciSpace } from "./pci_layout.ts";
import { MsixTable, type PciMsixOptions } from "./pci_msix.ts";
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
  VIRTIO_MSI_NO_VECTOR,
  VIRTIO_PCI_CAP_BAR,
  VIRTIO_PCI_CAP_LENGTH,
  VIRTIO_PCI_CAP_OFFSET,
  VIRTIO_PCI_CFG_CAP_DATA,
  VIRTIO_PCI_COMMON_ADM_Q_IDX,
  VIRTIO_PCI_COMMON_ADM_Q_NUM,
  VIRTIO_PCI_COMMON_CFGGENERATION,
  VIRTIO_PCI_COMMON_DF,
  VIRTIO_PCI_COMMON_DFSELECT,
  VIRTIO_PCI_COMMON_GF,
  VIRTIO_PCI_COMMON_GFSELECT,
  VIRTIO_PCI_COMMON_MSIX,
  VIRTIO_PCI_COMMON_NUMQ,
  VIRTIO_PCI_COMMON_Q_AVAILHI,
  VIRTIO_PCI_COMMON_Q_AVAILLO,
  VIRTIO_PCI_COMMON_Q_DESCHI,
  VIRTIO_PCI_COMMON_Q_DESCLO,
  VIRTIO_PCI_COMMON_Q_ENABLE,
  VIRTIO_PCI_COMMON_Q_MSIX,
  VIRTIO_PCI_COMMON_Q_NDATA,
  VIRTIO_PCI_COMMON_Q_NOFF,
  VIRTIO_PCI_COMMON_Q_RESET,
  VIRTIO_PCI_COMMON_Q_SELECT,
  VIRTIO_PCI_COMMON_Q_SIZE,
  VIRTIO_PCI_COMMON_Q_USEDHI,
  VIRTIO_PCI_COMMON_Q_USEDLO,
  VIRTIO_PCI_COMMON_STATUS,
  VIRTIO_PCI_QUEUE_AVAIL_STATE,
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

/** First offset of each field of the common configuration, by offset; a le64 is two fields. */
const FIELD_START: Uint8Array = new Uint8Array(64);
/** Bytes of the field at each offset. */
const FIELD_SIZE: Uint8Array = new Uint8Array(64);
{
  const sizes = [4, 4, 4, 4, 2, 2, 1, 1, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4, 2, 2];
  let at = 0;
  for (const size of [...sizes, 2, 2]) {
    FIELD_START.fill(at, at, at + size);
    FIELD_SIZE.fill(size, at, at + size);
    at += size;
  }
}
const NO_FIELD = -1;

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
 * Fields are accessed as wide as they are (4.1.3.1). Since some emulators split accesses, a field may also be
 * written in parts: it takes its value when all its bytes have come, in any order, without a write to
 * another field in between. A read may have any width that stays inside one structure.
 *
 * Whatever a guest does, nothing is thrown: what the specification does not allow is ignored, reads as 0
 * and is counted in the device's diagnostics (`pci_*`).
 *
 * Where the device offers VIRTIO_F_QUEUE_STATE, a structure of its own, {@link VIRTIO_PCI_QUEUE_AVAIL_STATE}
 * and {@link VIRTIO_PCI_QUEUE_USED_STATE}, carries the virtqueue state facility. A vendor data capability
 * tells where it is.
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
  readonly #layout: PciLayout;
  readonly #config: PciConfig;
  readonly #msix: MsixTable;
  #msixEnabled = false;
  #configVector = VIRTIO_MSI_NO_VECTOR;
  readonly #queueVectors: Uint16Array;
  // A field that was written in part: where it begins, which of its bytes have come, and what they are.
  #partStart = NO_FIELD;
  #partBytes = 0;
  #partValue = 0;

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
    this.#layout = layOutBar(virtio, space, this.#msix);
    this.#config = new PciConfig(virtio.model.deviceId, this.#layout, options);
    this.#queueVectors = new Uint16Array(virtio.queueCount)
      .fill(VIRTIO_MSI_NO_VECTOR);
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
    this.#resetDevice();
    this.#commandChanged();
  }

  #resetDevice(): void {
    this.#configVector = VIRTIO_MSI_NO_VECTOR;
    this.#queueVectors.fill(VIRTIO_MSI_NO_VECTOR);
    this.#partStart = NO_FIELD;
    this.#registers.reset();
  }

  // -- Interrupts --

  #interrupt(index: number): void {
    if (this.#msixEnabled) this.#msix.fire(this.#queueVectors[index]!);
    else this.#registers.raiseInterrupt(INTERRUPT_QUEUE);
  }

  #configChanged(): void {
    this.#registers.raiseInterrupt(INTERRUPT_CONFIG);
    if (this.#msixEnabled) this.#msix.fire(this.#configVector);
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
    const { common, isr, state, device, msixTable, msixPending } = this.#layout;
    if (lies(offset, width, common)) return this.#readCommon(offset, width);
    if (offset === isr.offset && width === 1) return this.#readIsr();
    if (lies(offset, width, device)) {
      return this.#registers.readConfig(offset - device.offset, width);
    }
    if (lies(offset, width, state)) {
      const at = (offset - state.offset) & 4;
      const which = at === VIRTIO_PCI_QUEUE_AVAIL_STATE ? "available" : "used";
      const part = offset & 3;
      if (part + width <= 4) {
        return cut(this.#registers.readState(which), part, width);
      }
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

  #readCommon(offset: number, width: number): number {
    const start = FIELD_START[offset]!;
    const size = FIELD_SIZE[offset]!;
    if (offset === start && width === size) return this.#readField(start);
    let value = 0;
    for (let i = 0; i < width; i++) {
      const first = FIELD_START[offset + i]!;
      const byte = cut(this.#readField(first), offset + i - first, 1);
      value += byte * 2 ** (8 * i);
    }
    return value;
  }

  #readField(start: number): number {
    const registers = this.#registers;
    const { virtio, queueSelect: index, queueExists } = registers;
    switch (start) {
      case VIRTIO_PCI_COMMON_DFSELECT:
        return registers.deviceFeatureSelect;
      case VIRTIO_PCI_COMMON_DF:
        return registers.deviceFeatures;
      case VIRTIO_PCI_COMMON_GFSELECT:
        return registers.driverFeatureSelect;
      case VIRTIO_PCI_COMMON_GF:
        return registers.driverFeatures;
      case VIRTIO_PCI_COMMON_MSIX:
        return this.#configVector;
      case VIRTIO_PCI_COMMON_NUMQ:
        return virtio.queueCount;
      case VIRTIO_PCI_COMMON_STATUS:
        return virtio.status;
      case VIRTIO_PCI_COMMON_CFGGENERATION:
        return virtio.configGeneration & 0xff;
      case VIRTIO_PCI_COMMON_Q_SELECT:
        return index;
      case VIRTIO_PCI_COMMON_Q_SIZE:
        return registers.queueSize;
      case VIRTIO_PCI_COMMON_Q_MSIX:
        return this.#queueVectors[index] ?? VIRTIO_MSI_NO_VECTOR;
      case VIRTIO_PCI_COMMON_Q_ENABLE:
        return registers.queueReady ? 1 : 0;
      case VIRTIO_PCI_COMMON_Q_NOFF:
        return queueExists ? index : 0;
      case VIRTIO_PCI_COMMON_Q_NDATA:
        return queueExists ? virtio.queueNotifConfigData(index) : 0;
      case VIRTIO_PCI_COMMON_Q_RESET:
        // A queue is reset before the write that asks for it returns.
        return 0;
      case VIRTIO_PCI_COMMON_ADM_Q_IDX:
      case VIRTIO_PCI_COMMON_ADM_Q_NUM:
        return 0;
      default:
        return registers.area((start - VIRTIO_PCI_COMMON_Q_DESCLO) / 4);
    }
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
    const size = start === NO_FIELD ? 0 : this.#fieldSize(start);
    const at = offset - start;
    if (
      (width !== 1 && width !== 2 && width !== 4) || at + width > size
    ) {
      registers.ignored("write", offset, width);
      return;
    }
    if (width === size) {
      this.#partStart = NO_FIELD;
      this.#writeField(start, width === 4 ? value >>> 0 : cut(value, 0, width));
      return;
    }
    if (start !== this.#partStart) {
      this.#partStart = start;
      this.#partBytes = 0;
      this.#partValue = 0;
    }
    const bytes = (1 << width) - 1;
    const mask = (2 ** (8 * width) - 1) << (8 * at);
    this.#partBytes |= bytes << at;
    this.#partValue = (this.#partValue & ~mask) | ((value << (8 * at)) & mask);
    if (this.#partBytes !== (1 << size) - 1) return;
    this.#partStart = NO_FIELD;
    this.#writeField(start, this.#partValue >>> 0);
  }

  /** Where the field at `offset` begins; the fields that are written in parts are aligned to their size. */
  #fieldStart(offset: number): number {
    const { common, isr, state, notify } = this.#layout;
    if (lies(offset, 1, common)) return FIELD_START[offset]!;
    if (offset === isr.offset) return offset;
    if (lies(offset, 1, notify) || lies(offset, 1, state)) {
      return offset - (offset & 3);
    }
    return NO_FIELD;
  }

  #fieldSize(start: number): number {
    const { common, isr, notify } = this.#layout;
    if (lies(start, 1, common)) return FIELD_SIZE[start]!;
    if (start === isr.offset) return 1;
    if (!lies(start, 1, notify)) return 4;
    const { features } = this.virtio;
    const data = featureMask(VIRTIO_F_NOTIFICATION_DATA);
    return (features & data) === 0n ? 2 : 4;
  }

  #writeField(start: number, value: number): void {
    const registers = this.#registers;
    const { notify, state } = this.#layout;
    if (lies(start, 1, notify)) {
      this.virtio.notify(value);
      return;
    }
    if (lies(start, 1, state)) {
      const at = start - state.offset;
      registers.writeState(
        at === VIRTIO_PCI_QUEUE_AVAIL_STATE ? "available" : "used",
        value,
      );
      return;
    }
    switch (start) {
      case VIRTIO_PCI_COMMON_DFSELECT:
        registers.deviceFeatureSelect = value;
        return;
      case VIRTIO_PCI_COMMON_GFSELECT:
        registers.driverFeatureSelect = value;
        return;
      case VIRTIO_PCI_COMMON_GF:
        registers.writeDriverFeatures(value);
        return;
      case VIRTIO_PCI_COMMON_MSIX:
        this.#configVector = this.#vector(value);
        return;
      case VIRTIO_PCI_COMMON_STATUS:
        if (value === 0) this.#resetDevice();
        else registers.writeStatus(value);
        return;
      case VIRTIO_PCI_COMMON_Q_SELECT:
        registers.queueSelect = value;
        return;
      case VIRTIO_PCI_COMMON_Q_SIZE:
        registers.writeQueueSize(value, !registers.packed);
        return;
      case VIRTIO_PCI_COMMON_Q_MSIX:
        if (!registers.needQueue()) return;
        this.#queueVectors[registers.queueSelect] = this.#vector(value);
        return;
      case VIRTIO_PCI_COMMON_Q_ENABLE:
        if (!registers.needQueue()) return;
        if (value === 1) registers.writeReady(true);
        else registers.refused("queue", "queue_enable takes 1");
        return;
      case VIRTIO_PCI_COMMON_Q_RESET:
        if (!registers.needQueue()) return;
        if (value !== 1) {
          registers.refused("queue", "queue_reset takes 1");
        } else if (registers.resetQueue()) {
          this.#queueVectors[registers.queueSelect] = VIRTIO_MSI_NO_VECTOR;
        }
        return;
      case VIRTIO_PCI_COMMON_Q_DESCLO:
      case VIRTIO_PCI_COMMON_Q_DESCHI:
      case VIRTIO_PCI_COMMON_Q_AVAILLO:
      case VIRTIO_PCI_COMMON_Q_AVAILHI:
      case VIRTIO_PCI_COMMON_Q_USEDLO:
      case VIRTIO_PCI_COMMON_Q_USEDHI:
        registers.writeArea((start - VIRTIO_PCI_COMMON_Q_DESCLO) / 4, value);
        return;
      default:
        registers.refused(
          "write",
          `the field at offset 0x${start.toString(16)} is read-only`,
        );
    }
  }

  /** The vector that an event is mapped to when the driver asks for `value` (4.1.5.1.2). */
  #vector(value: number): number {
    if (value === VIRTIO_MSI_NO_VECTOR || value < this.#msix.vectors) {
      return value;
    }
    this.#registers.refused(
      "vector",
      `vector ${value} of ${this.#msix.vectors}`,
    );
    return VIRTIO_MSI_NO_VECTOR;
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

/** `width` bytes of a 32-bit value, from byte `at` on. */
function cut(value: number, at: number, width: number): number {
  const part = value >>> (8 * at);
  return width === 4 ? part >>> 0 : part & (2 ** (8 * width) - 1);
}
