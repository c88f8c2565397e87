import type { PciLayout } from "./pci_layout.ts";
import { little } from "./pci_msix.ts";
import {
  PCI_BASE_ADDRESS_0,
  PCI_BASE_ADDRESS_SPACE_IO,
  PCI_CACHE_LINE_SIZE,
  PCI_CAP_ID_MSIX,
  PCI_CAP_ID_VNDR,
  PCI_CAPABILITY_LIST,
  PCI_CLASS_PROG,
  PCI_COMMAND,
  PCI_COMMAND_INTX_DISABLE,
  PCI_COMMAND_IO,
  PCI_COMMAND_MASTER,
  PCI_COMMAND_MEMORY,
  PCI_DEVICE_ID,
  PCI_INTERRUPT_LINE,
  PCI_INTERRUPT_PIN,
  PCI_MSIX_FLAGS_ENABLE,
  PCI_MSIX_FLAGS_MASKALL,
  PCI_REVISION_ID,
  PCI_STATUS,
  PCI_STATUS_CAP_LIST,
  PCI_SUBSYSTEM_ID,
  PCI_SUBSYSTEM_VENDOR_ID,
  PCI_VENDOR_ID,
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
  VIRTIO_PCI_DEVICE_ID_BASE,
  VIRTIO_PCI_NOTIFY_CAP_MULT,
  VIRTIO_PCI_VENDOR_ID,
} from "./virtio_pci.ts";

/** Bytes of configuration space. */
export const PCI_CONFIG_BYTES = 256;

/** What a PCI device says of itself. */
export type PciIdentity = {
  /** Subsystem vendor ID. That of virtio unless told. */
  subsystemVendorId?: number;
  /** Subsystem ID, 0x40 or more (4.1.2.1). 0x40 unless told. */
  subsystemId?: number;
  /** Revision, 1 or more (4.1.2.1). 1 unless told. */
  revision?: number;
  /** Class, subclass and programming interface, 24 bits. 0x078000, another communication controller, unless told. */
  classCode?: number;
  /** Where the BAR is before anybody has set it. 0 unless told. */
  barAddress?: number;
  /** What the interrupt line register is before anybody has set it. 0 unless told. */
  interruptLine?: number;
};

const FIRST_CAPABILITY = 0x40;

/**
 * The bytes of PCI configuration space and which of their bits a guest can write; what a write does
 * is the transport's.
 */
export class PciConfig {
  /** Where the capability of the window is. */
  readonly windowCapability: number = 0;
  /** Where the capability of MSI-X is; 0 where there is none. */
  readonly msixCapability: number = 0;

  readonly #bytes: Uint8Array = new Uint8Array(PCI_CONFIG_BYTES);
  readonly #writable: Uint8Array = new Uint8Array(PCI_CONFIG_BYTES);
  readonly #initial: Uint8Array;

  /** Makes the configuration space of a virtio device of type `deviceId`. */
  constructor(deviceId: number, layout: PciLayout, identity: PciIdentity) {
    const io = layout.space === "io";
    this.#set16(PCI_VENDOR_ID, VIRTIO_PCI_VENDOR_ID);
    this.#set16(PCI_DEVICE_ID, VIRTIO_PCI_DEVICE_ID_BASE + deviceId);
    this.#allow(
      PCI_COMMAND,
      2,
      (io ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY) | PCI_COMMAND_MASTER |
        PCI_COMMAND_INTX_DISABLE,
    );
    this.#set16(PCI_STATUS, PCI_STATUS_CAP_LIST);
    this.#bytes[PCI_REVISION_ID] = identity.revision ?? 1;
    const classCode = identity.classCode ?? 0x078000;
    this.#set16(PCI_CLASS_PROG, classCode & 0xffff);
    this.#bytes[PCI_CLASS_PROG + 2] = classCode >>> 16;
    this.#allow(PCI_CACHE_LINE_SIZE, 1, 0xff);
    const addressBits = (-layout.size) >>> 0;
    this.#allow(PCI_BASE_ADDRESS_0, 4, addressBits);
    this.#set32(
      PCI_BASE_ADDRESS_0,
      ((identity.barAddress ?? 0) & addressBits) |
        (io ? PCI_BASE_ADDRESS_SPACE_IO : 0),
    );
    this.#set16(
      PCI_SUBSYSTEM_VENDOR_ID,
      identity.subsystemVendorId ?? VIRTIO_PCI_VENDOR_ID,
    );
    this.#set16(PCI_SUBSYSTEM_ID, identity.subsystemId ?? 0x40);
    this.#allow(PCI_INTERRUPT_LINE, 1, 0xff);
    this.#bytes[PCI_INTERRUPT_LINE] = identity.interruptLine ?? 0;
    this.#bytes[PCI_INTERRUPT_PIN] = 1;

    let link = PCI_CAPABILITY_LIST;
    let at = FIRST_CAPABILITY;
    const add = (id: number, length: number): number => {
      const place = at;
      this.#bytes[link] = place;
      this.#bytes[place] = id;
      link = place + 1;
      at = place + length;
      return place;
    };
    const structure = (
      type: number,
      length: number,
      offset: number,
      size: number,
    ): number => {
      const place = add(PCI_CAP_ID_VNDR, length);
      this.#bytes[place + 2] = length;
      this.#bytes[place + VIRTIO_PCI_CAP_CFG_TYPE] = type;
      this.#set32(place + VIRTIO_PCI_CAP_OFFSET, offset);
      this.#set32(place + VIRTIO_PCI_CAP_LENGTH, size);
      return place;
    };
    const { common, isr, device, notify, msixTable, msixPending } = layout;
    structure(VIRTIO_PCI_CAP_COMMON_CFG, 16, common.offset, common.size);
    const notifyAt = structure(
      VIRTIO_PCI_CAP_NOTIFY_CFG,
      20,
      notify.offset,
      notify.size,
    );
    this.#set32(
      notifyAt + VIRTIO_PCI_NOTIFY_CAP_MULT,
      layout.notifyMultiplier,
    );
    structure(VIRTIO_PCI_CAP_ISR_CFG, 16, isr.offset, isr.size);
    if (device.size !== 0) {
      structure(VIRTIO_PCI_CAP_DEVICE_CFG, 16, device.offset, device.size);
    }
    const window = structure(VIRTIO_PCI_CAP_PCI_CFG, 20, 0, 0);
    this.windowCapability = window;
    this.#allow(window + VIRTIO_PCI_CAP_BAR, 1, 0xff);
    this.#allow(window + VIRTIO_PCI_CAP_OFFSET, 4, 0xffffffff);
    this.#allow(window + VIRTIO_PCI_CAP_LENGTH, 4, 0xffffffff);
    this.#allow(window + VIRTIO_PCI_CFG_CAP_DATA, 4, 0xffffffff);
    if (msixTable.size !== 0) {
      const place = add(PCI_CAP_ID_MSIX, 12);
      this.#set16(place + 2, msixTable.size / 16 - 1);
      this.#allow(
        place + 2,
        2,
        PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL,
      );
      this.#set32(place + 4, msixTable.offset);
      this.#set32(place + 8, msixPending.offset);
      this.msixCapability = place;
    }
    this.#initial = this.#bytes.slice();
  }

  /** A copy of all bytes. */
  image(): Uint8Array {
    return this.#bytes.slice();
  }

  /** Goes back to what it was at first. */
  reset(): void {
    this.#bytes.set(this.#initial);
  }

  /** True where `image` differs from this space in nothing but what a guest can write. */
  matches(image: Uint8Array): boolean {
    return image.length === PCI_CONFIG_BYTES &&
      image.every((byte, at) =>
        ((byte ^ this.#initial[at]!) & ~this.#writable[at]!) === 0
      );
  }

  /** Takes all bytes of an image that matches. */
  restore(image: Uint8Array): void {
    this.#bytes.set(image);
  }

  /** The number in `width` bytes at `at`. */
  get(at: number, width: number): number {
    return little(this.#bytes, at, width);
  }

  /** Writes what a guest can write of `width` bytes at `at`. */
  write(at: number, width: number, value: number): void {
    for (let i = 0; i < width; i++) {
      const mask = this.#writable[at + i]!;
      const old = this.#bytes[at + i]!;
      this.#bytes[at + i] = (old & ~mask) | ((value >>> (8 * i)) & mask);
    }
  }

  #allow(at: number, width: number, bits: number): void {
    for (let i = 0; i < width; i++) this.#writable[at + i] = bits >>> (8 * i);
  }

  #set16(at: number, value: number): void {
    this.#bytes[at] = value;
    this.#bytes[at + 1] = value >>> 8;
  }

  #set32(at: number, value: number): void {
    this.#set16(at, value);
    this.#set16(at + 2, value >>> 16);
  }
}
