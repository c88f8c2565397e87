import { little } from "../../device/pci_msix.ts";
import {
  PCI_BASE_ADDRESS_0,
  PCI_BASE_ADDRESS_SPACE_IO,
  PCI_CAP_ID_MSIX,
  PCI_CAP_ID_VNDR,
  PCI_CAPABILITY_LIST,
  PCI_COMMAND,
  PCI_COMMAND_IO,
  PCI_COMMAND_MASTER,
  PCI_COMMAND_MEMORY,
  PCI_DEVICE_ID,
  PCI_MSIX_ENTRY_SIZE,
  PCI_MSIX_FLAGS_ENABLE,
  PCI_STATUS,
  PCI_STATUS_CAP_LIST,
  PCI_VENDOR_ID,
  VIRTIO_MSI_NO_VECTOR,
  VIRTIO_PCI_CAP_BAR,
  VIRTIO_PCI_CAP_CFG_TYPE,
  VIRTIO_PCI_CAP_COMMON_CFG,
  VIRTIO_PCI_CAP_DEVICE_CFG,
  VIRTIO_PCI_CAP_ISR_CFG,
  VIRTIO_PCI_CAP_LENGTH,
  VIRTIO_PCI_CAP_NOTIFY_CFG,
  VIRTIO_PCI_CAP_OFFSET,
  VIRTIO_PCI_CAP_PCI_CFG,
  VIRTIO_PCI_CFG_CAP_DATA,
  VIRTIO_PCI_COMMON_CFGGENERATION,
  VIRTIO_PCI_COMMON_DF,
  VIRTIO_PCI_COMMON_DFSELECT,
  VIRTIO_PCI_COMMON_GF,
  VIRTIO_PCI_COMMON_GFSELECT,
  VIRTIO_PCI_COMMON_MSIX,
  VIRTIO_PCI_COMMON_Q_AVAIL_STATE,
  VIRTIO_PCI_COMMON_Q_DESCLO,
  VIRTIO_PCI_COMMON_Q_ENABLE,
  VIRTIO_PCI_COMMON_Q_MSIX,
  VIRTIO_PCI_COMMON_Q_NDATA,
  VIRTIO_PCI_COMMON_Q_NOFF,
  VIRTIO_PCI_COMMON_Q_RESET,
  VIRTIO_PCI_COMMON_Q_SELECT,
  VIRTIO_PCI_COMMON_Q_SIZE,
  VIRTIO_PCI_COMMON_Q_USED_STATE,
  VIRTIO_PCI_COMMON_STATE_SIZE,
  VIRTIO_PCI_COMMON_STATUS,
  VIRTIO_PCI_DEVICE_ID_BASE,
  VIRTIO_PCI_NOTIFY_CAP_MULT,
  VIRTIO_PCI_VENDOR_ID,
} from "../../device/virtio_pci.ts";
import type { QueueStateWords } from "../../ring/state.ts";
import {
  addressHalves,
  type QueueAreas,
  type RegisterBus,
  RegisterDriver,
} from "./register_driver.ts";

/** A PCI function: its BAR and its configuration space; a `PciTransport` is one. */
export interface PciBus extends RegisterBus {
  /** Reads `width` bytes of configuration space. */
  configRead(offset: number, width: number): number;
  /** Writes `width` bytes of configuration space. */
  configWrite(offset: number, width: number, value: number): void;
}

/** How a {@link PciDriver} gets at the BAR. */
export type PciAccess =
  /** As wide as the fields are. */
  | "natural"
  /** A byte after the other, as by an emulator that splits accesses. */
  | "bytes"
  /** Through the window in configuration space. */
  | "window";

/** Options of a {@link PciDriver}. */
export type PciDriverOptions = {
  /** How it gets at the BAR. `"natural"` unless told. */
  access?: PciAccess;
  /** Where it puts the BAR. 0xc000 unless told. */
  barAddress?: number;
  /** Sets MSI-X up, one vector for each queue behind that of the configuration. False unless told. */
  msix?: boolean;
};

const MSIX_ADDRESS = 0xfee0_0000;
/** What the message of vector 0 says; that of another says its number more. */
export const MSIX_DATA = 0x4000;

/**
 * A driver's side of virtio on a PCI bus (virtio 1.4, 4.1): it finds the structures by the capabilities of a
 * function, and takes the steps of 3.1 that it is told to.
 */
export class PciDriver extends RegisterDriver {
  /** Bytes of the BAR, as {@link PciDriver.probe} found by sizing it. */
  barSize = 0;
  /** Vectors of MSI-X, 0 where they are not used. */
  vectors = 0;

  readonly #bus: PciBus;
  readonly #access: PciAccess;
  readonly #barAddress: number;
  readonly #msix: boolean;
  // Offsets in the BAR, by type of the structure.
  readonly #places: Map<number, number> = new Map();
  #notifyMultiplier = 0;
  #window = 0;
  #hasStates = false;

  /** Looks at nothing yet. */
  constructor(bus: PciBus, options: PciDriverOptions = {}) {
    super();
    this.#bus = bus;
    this.#access = options.access ?? "natural";
    this.#barAddress = options.barAddress ?? 0xc000;
    this.#msix = options.msix ?? false;
  }

  /**
   * Checks that there is a virtio device, walks its capabilities, puts its BAR somewhere and lets it
   * answer there; returns its type.
   *
   * @throws {TypeError} when it is no virtio device, or lacks a structure.
   */
  probe(): number {
    const bus = this.#bus;
    const vendor = bus.configRead(PCI_VENDOR_ID, 2);
    const device = bus.configRead(PCI_DEVICE_ID, 2);
    if (vendor !== VIRTIO_PCI_VENDOR_ID || device < VIRTIO_PCI_DEVICE_ID_BASE) {
      throw new TypeError(
        `Cannot drive the device: vendor 0x${vendor.toString(16)}, device 0x${
          device.toString(16)
        }`,
      );
    }
    const command = bus.configRead(PCI_COMMAND, 2);
    bus.configWrite(PCI_COMMAND, 2, 0);
    bus.configWrite(PCI_BASE_ADDRESS_0, 4, 0xffffffff);
    const bits = bus.configRead(PCI_BASE_ADDRESS_0, 4);
    const io = (bits & PCI_BASE_ADDRESS_SPACE_IO) !== 0;
    this.barSize = (-(bits - bits % 16)) >>> 0;
    bus.configWrite(PCI_BASE_ADDRESS_0, 4, this.#barAddress);
    bus.configWrite(
      PCI_COMMAND,
      2,
      command | PCI_COMMAND_MASTER | (io ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY),
    );
    const msix = this.#walk();
    for (
      const type of [
        VIRTIO_PCI_CAP_COMMON_CFG,
        VIRTIO_PCI_CAP_NOTIFY_CFG,
        VIRTIO_PCI_CAP_ISR_CFG,
      ]
    ) {
      if (this.#places.has(type)) continue;
      throw new TypeError(
        `Cannot drive the device: it has no structure of type ${type}`,
      );
    }
    if (this.#msix) this.#setUpMsix(msix);
    return device - VIRTIO_PCI_DEVICE_ID_BASE;
  }

  /** Looks at all capabilities; returns where that of MSI-X is. */
  #walk(): number {
    const bus = this.#bus;
    if ((bus.configRead(PCI_STATUS, 2) & PCI_STATUS_CAP_LIST) === 0) return 0;
    let msix = 0;
    let at = bus.configRead(PCI_CAPABILITY_LIST, 1);
    for (let steps = 0; at !== 0 && steps < 48; steps++) {
      const id = bus.configRead(at, 1);
      if (id === PCI_CAP_ID_MSIX) msix = at;
      if (id === PCI_CAP_ID_VNDR) this.#note(at);
      at = bus.configRead(at + 1, 1);
    }
    return msix;
  }

  #note(at: number): void {
    const bus = this.#bus;
    const type = bus.configRead(at + VIRTIO_PCI_CAP_CFG_TYPE, 1);
    const offset = bus.configRead(at + VIRTIO_PCI_CAP_OFFSET, 4);
    const length = bus.configRead(at + VIRTIO_PCI_CAP_LENGTH, 4);
    if (type === VIRTIO_PCI_CAP_PCI_CFG) {
      this.#window = at;
    } else if (
      bus.configRead(at + VIRTIO_PCI_CAP_BAR, 1) === 0 &&
      !this.#places.has(type)
    ) {
      this.#places.set(type, offset);
      if (type === VIRTIO_PCI_CAP_COMMON_CFG) {
        this.#hasStates = length >= VIRTIO_PCI_COMMON_STATE_SIZE;
      }
      if (type === VIRTIO_PCI_CAP_NOTIFY_CFG) {
        this.#notifyMultiplier = bus.configRead(
          at + VIRTIO_PCI_NOTIFY_CAP_MULT,
          4,
        );
      }
    }
  }

  #setUpMsix(at: number): void {
    if (at === 0) {
      throw new TypeError("Cannot drive the device: it has no MSI-X");
    }
    const bus = this.#bus;
    const control = bus.configRead(at + 2, 2);
    const table = bus.configRead(at + 4, 4);
    this.vectors = (control & 0x7ff) + 1;
    bus.configWrite(at + 2, 2, control | PCI_MSIX_FLAGS_ENABLE);
    for (let vector = 0; vector < this.vectors; vector++) {
      const entry = table + vector * PCI_MSIX_ENTRY_SIZE;
      const words = [MSIX_ADDRESS, 0, MSIX_DATA + vector, 0];
      for (const [i, word] of words.entries()) this.put(entry + 4 * i, 4, word);
    }
  }

  /** Reads a field of `width` bytes at `offset` in the BAR. */
  get(offset: number, width: number): number {
    switch (this.#access) {
      case "natural":
        return this.#bus.read(offset, width);
      case "bytes": {
        const bytes = Uint8Array.from(
          { length: width },
          (_, i) => this.#bus.read(offset + i, 1),
        );
        return little(bytes, 0, width);
      }
      case "window": {
        this.#aim(offset, width);
        const data = this.#window + VIRTIO_PCI_CFG_CAP_DATA;
        return this.#bus.configRead(data, width);
      }
    }
  }

  /** Writes a field of `width` bytes at `offset` in the BAR. */
  put(offset: number, width: number, value: number): void {
    switch (this.#access) {
      case "natural":
        this.#bus.write(offset, width, value);
        return;
      case "bytes":
        for (let i = 0; i < width; i++) {
          this.#bus.write(offset + i, 1, value >>> (8 * i) & 0xff);
        }
        return;
      case "window":
        this.#aim(offset, width);
        this.#bus.configWrite(
          this.#window + VIRTIO_PCI_CFG_CAP_DATA,
          width,
          value,
        );
    }
  }

  #aim(offset: number, width: number): void {
    const bus = this.#bus;
    bus.configWrite(this.#window + VIRTIO_PCI_CAP_BAR, 1, 0);
    bus.configWrite(this.#window + VIRTIO_PCI_CAP_OFFSET, 4, offset);
    bus.configWrite(this.#window + VIRTIO_PCI_CAP_LENGTH, 4, width);
  }

  #place(type: number): number {
    const place = this.#places.get(type);
    if (place === undefined) {
      throw new TypeError("Cannot drive the device: it was not probed");
    }
    return place;
  }

  /** Reads a field of the common configuration. */
  common(field: number, width: number): number {
    return this.get(this.#place(VIRTIO_PCI_CAP_COMMON_CFG) + field, width);
  }

  /** Writes a field of the common configuration. */
  setCommon(field: number, width: number, value: number): void {
    this.put(this.#place(VIRTIO_PCI_CAP_COMMON_CFG) + field, width, value);
  }

  #select(index: number): void {
    this.setCommon(VIRTIO_PCI_COMMON_Q_SELECT, 2, index);
  }

  /** The device status. */
  get status(): number {
    return this.common(VIRTIO_PCI_COMMON_STATUS, 1);
  }

  /** Writes the device status as it is. */
  writeStatus(status: number): void {
    this.setCommon(VIRTIO_PCI_COMMON_STATUS, 1, status);
  }

  /**
   * Resets the device, and reads that it is.
   *
   * @throws {TypeError} when it is not.
   */
  override reset(): void {
    super.reset();
    if (this.status !== 0) {
      throw new TypeError(
        `Cannot go on: the device is not reset, its status is ${this.status}`,
      );
    }
  }

  /** Reads 32 offered features. */
  readDeviceFeatures(word: number): number {
    this.setCommon(VIRTIO_PCI_COMMON_DFSELECT, 4, word);
    return this.common(VIRTIO_PCI_COMMON_DF, 4);
  }

  /** Writes 32 accepted features. */
  writeDriverFeatures(word: number, bits: number): void {
    this.setCommon(VIRTIO_PCI_COMMON_GFSELECT, 4, word);
    this.setCommon(VIRTIO_PCI_COMMON_GF, 4, bits);
  }

  /** Largest size of queue `index`, before it is configured; 0 where there is none. */
  maxQueueSize(index: number): number {
    this.#select(index);
    return this.common(VIRTIO_PCI_COMMON_Q_SIZE, 2);
  }

  /** Configures queue `index` and makes it ready; true when the device took it. */
  setupQueue(index: number, areas: QueueAreas): boolean {
    this.#select(index);
    this.setCommon(VIRTIO_PCI_COMMON_Q_SIZE, 2, areas.size);
    for (const [i, half] of addressHalves(areas).entries()) {
      this.setCommon(VIRTIO_PCI_COMMON_Q_DESCLO + 4 * i, 4, half);
    }
    if (this.vectors > 0) {
      this.#map(VIRTIO_PCI_COMMON_MSIX, 0);
      this.#map(VIRTIO_PCI_COMMON_Q_MSIX, 1 + index % (this.vectors - 1));
    }
    this.setCommon(VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
    return this.queueReady(index);
  }

  #map(field: number, vector: number): void {
    this.setCommon(field, 2, vector);
    if (this.common(field, 2) !== VIRTIO_MSI_NO_VECTOR) return;
    throw new TypeError(`Cannot map an event to vector ${vector}`);
  }

  /** Tells whether queue `index` is ready. */
  queueReady(index: number): boolean {
    this.#select(index);
    return this.common(VIRTIO_PCI_COMMON_Q_ENABLE, 2) === 1;
  }

  /** Resets queue `index` alone; true when the device says that it did. */
  resetQueue(index: number): boolean {
    this.#select(index);
    this.setCommon(VIRTIO_PCI_COMMON_Q_RESET, 2, 1);
    return this.common(VIRTIO_PCI_COMMON_Q_RESET, 2) === 0 &&
      this.common(VIRTIO_PCI_COMMON_Q_ENABLE, 2) === 0;
  }

  /** What names queue `index` in notifications with VIRTIO_F_NOTIF_CONFIG_DATA. */
  notificationName(index: number): number {
    this.#select(index);
    return this.common(VIRTIO_PCI_COMMON_Q_NDATA, 2);
  }

  /**
   * Notifies a queue by its index, in 16 bits; with VIRTIO_F_NOTIFICATION_DATA in 32 bits by what its driver's
   * queue tells: then `queue`, its index, is to be given (4.1.5.2).
   */
  kick(notification: number, queue?: number): void {
    this.#select(queue ?? notification);
    const offset = this.#place(VIRTIO_PCI_CAP_NOTIFY_CFG) +
      this.common(VIRTIO_PCI_COMMON_Q_NOFF, 2) * this.#notifyMultiplier;
    this.put(offset, queue === undefined ? 2 : 4, notification);
  }

  /** Reads why there is an interrupt, which acknowledges it; bits without a meaning are left out. */
  takeInterrupt(): number {
    return this.get(this.#place(VIRTIO_PCI_CAP_ISR_CFG), 1) & 3;
  }

  /** Gets the state of queue `index`; null where the device tells none. */
  queueState(index: number): QueueStateWords | null {
    if (!this.#hasStates) return null;
    this.#select(index);
    const available = this.common(VIRTIO_PCI_COMMON_Q_AVAIL_STATE, 4);
    const used = this.common(VIRTIO_PCI_COMMON_Q_USED_STATE, 4);
    return available > 0xffff || used > 0xffff ? null : { available, used };
  }

  /** Sets the state of queue `index`. */
  setQueueState(index: number, words: QueueStateWords): void {
    this.#select(index);
    this.setCommon(VIRTIO_PCI_COMMON_Q_AVAIL_STATE, 4, words.available);
    this.setCommon(VIRTIO_PCI_COMMON_Q_USED_STATE, 4, words.used);
  }

  /** Changes with the configuration space of the device. */
  get configGeneration(): number {
    return this.common(VIRTIO_PCI_COMMON_CFGGENERATION, 1);
  }

  /** Reads `width` bytes of the device's configuration space. */
  readConfigField(offset: number, width: number): number {
    return this.get(this.#place(VIRTIO_PCI_CAP_DEVICE_CFG) + offset, width);
  }

  /** Writes `width` bytes of the device's configuration space. */
  writeConfigField(offset: number, width: number, value: number): void {
    this.put(this.#place(VIRTIO_PCI_CAP_DEVICE_CFG) + offset, width, value);
  }
}
