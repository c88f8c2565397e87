import type { MsixTable } from "./pci_msix.ts";
import type { VirtioDevice } from "./virtio_device.ts";
import {
  VIRTIO_PCI_COMMON_SIZE,
  VIRTIO_PCI_COMMON_STATE_SIZE,
} from "./virtio_pci.ts";

/** Which address space a BAR is in. */
export type PciSpace = "io" | "memory";

/** A structure in the BAR; one that is not there has size 0. */
export type PciPlace = {
  /** Where it begins. */
  readonly offset: number;
  /** Bytes. */
  readonly size: number;
};

/** What lies where in BAR 0. */
export type PciLayout = {
  /** Where the BAR is. */
  readonly space: PciSpace;
  /** Bytes of the BAR, a power of two. */
  readonly size: number;
  /** Common configuration, at the start; with the states of queues where the device offers them. */
  readonly common: PciPlace;
  /** ISR status. */
  readonly isr: PciPlace;
  /** The device's own configuration. */
  readonly device: PciPlace;
  /** Notification addresses. */
  readonly notify: PciPlace;
  /** Bytes from one queue's notification address to the next one's. */
  readonly notifyMultiplier: number;
  /** Table of MSI-X, where the emulator offers it. */
  readonly msixTable: PciPlace;
  /** Pending bits of MSI-X, likewise. */
  readonly msixPending: PciPlace;
};

/** Room for 32 bits, which VIRTIO_F_NOTIFICATION_DATA needs. */
const NOTIFY_MULTIPLIER = 4;
/** The most that PCI allows. */
const IO_BYTES = 256;
/** A page, so that an emulator can map it by itself. */
const MEMORY_BYTES = 4096;

/**
 * Lays out BAR 0, densely, so that a device of few queues fits into the 256 bytes that I/O space allows.
 *
 * @throws {RangeError} when it does not fit.
 */
export function layOutBar(
  virtio: VirtioDevice,
  space: PciSpace,
  msix: MsixTable,
): PciLayout {
  let end = 0;
  const place = (size: number, alignment: number): PciPlace => {
    if (size === 0) return { offset: 0, size };
    const offset = Math.ceil(end / alignment) * alignment;
    end = offset + size;
    return { offset, size };
  };
  const { model, queueCount } = virtio;
  const common = place(
    virtio.offersQueueState
      ? VIRTIO_PCI_COMMON_STATE_SIZE
      : VIRTIO_PCI_COMMON_SIZE,
    4,
  );
  const isr = place(1, 4);
  const device = place(model.configSpace().length, 8);
  const notify = place(NOTIFY_MULTIPLIER * queueCount, 8);
  const msixTable = place(msix.tableBytes, 16);
  const msixPending = place(msix.pendingBytes, 8);
  let size = space === "io" ? IO_BYTES : MEMORY_BYTES;
  while (size < end) size *= 2;
  if (space === "io" && size > IO_BYTES) {
    throw new RangeError(
      `Cannot lay out the registers in I/O space: they take ${end} bytes, PCI allows ${IO_BYTES}`,
    );
  }
  return {
    space,
    size,
    common,
    isr,
    device,
    notify,
    notifyMultiplier: NOTIFY_MULTIPLIER,
    msixTable,
    msixPending,
  };
}
