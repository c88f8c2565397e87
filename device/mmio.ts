import { VIRTIO_F_NOTIF_CONFIG_DATA } from "../ring/virtio_ring.ts";
import {
  INTERRUPT_CONFIG,
  INTERRUPT_QUEUE,
  Registers,
  type RegisterSnapshot,
} from "./_registers.ts";
import type { EmulatorOptions } from "./emulator.ts";
import { seal, unseal } from "./snapshot.ts";
import { refuseFeatures } from "./transport_features.ts";
import type { VirtioDevice } from "./virtio_device.ts";
import {
  VIRTIO_MMIO_CONFIG,
  VIRTIO_MMIO_CONFIG_GENERATION,
  VIRTIO_MMIO_DEVICE_FEATURES,
  VIRTIO_MMIO_DEVICE_FEATURES_SEL,
  VIRTIO_MMIO_DEVICE_ID,
  VIRTIO_MMIO_DRIVER_FEATURES,
  VIRTIO_MMIO_DRIVER_FEATURES_SEL,
  VIRTIO_MMIO_INTERRUPT_ACK,
  VIRTIO_MMIO_INTERRUPT_STATUS,
  VIRTIO_MMIO_MAGIC,
  VIRTIO_MMIO_MAGIC_VALUE,
  VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
  VIRTIO_MMIO_QUEUE_AVAIL_LOW,
  VIRTIO_MMIO_QUEUE_AVAIL_STATE,
  VIRTIO_MMIO_QUEUE_DESC_HIGH,
  VIRTIO_MMIO_QUEUE_DESC_LOW,
  VIRTIO_MMIO_QUEUE_NOTIFY,
  VIRTIO_MMIO_QUEUE_NUM,
  VIRTIO_MMIO_QUEUE_NUM_MAX,
  VIRTIO_MMIO_QUEUE_READY,
  VIRTIO_MMIO_QUEUE_RESET,
  VIRTIO_MMIO_QUEUE_SEL,
  VIRTIO_MMIO_QUEUE_USED_HIGH,
  VIRTIO_MMIO_QUEUE_USED_LOW,
  VIRTIO_MMIO_QUEUE_USED_STATE,
  VIRTIO_MMIO_SHM_BASE_HIGH,
  VIRTIO_MMIO_SHM_BASE_LOW,
  VIRTIO_MMIO_SHM_LEN_HIGH,
  VIRTIO_MMIO_SHM_LEN_LOW,
  VIRTIO_MMIO_SHM_SEL,
  VIRTIO_MMIO_STATUS,
  VIRTIO_MMIO_VENDOR_ID,
  VIRTIO_MMIO_VERSION,
} from "./virtio_mmio.ts";

/** What VendorID reads as unless told: "Ring". */
const VENDOR_ID = 0x676e6952;
const ALL_ONES = 0xffffffff;

/** What an {@link MmioTransport} needs of an emulator. */
export type MmioOptions = EmulatorOptions & {
  /** What the VendorID register reads as, a u32. */
  vendorId?: number;
};

/** Version of the snapshots of registers, and the only one that is read. */
const MMIO_SNAPSHOT_VERSION = 1;

/** What the registers hold beside the device, as plain data. */
export type MmioSnapshot = {
  /** Version of the format. */
  version: number;
  /** Of all else in it. */
  checksum: string;
  /** The registers. */
  registers: RegisterSnapshot;
};

/**
 * A virtio device as registers in memory (virtio 1.4, 4.2, version 2), for an emulator that is written in
 * JavaScript.
 *
 * The emulator maps {@link MmioTransport.read} and {@link MmioTransport.write} where the guest looks for
 * the device, 0x100 bytes and the configuration space, and wires the interrupt line. It splits an access
 * of 8 bytes into two of 4. A register may give the device work: after a write, and when the host's side
 * has something, it calls {@link MmioTransport.syncMemory}, then the model's `process()`, again while
 * that says so.
 *
 * Whatever a guest does to the registers, nothing is thrown: what the specification does not allow is
 * ignored, reads as 0 and is counted in the device's diagnostics (`mmio_*`).
 *
 * Two registers that the specification does not know, {@link VIRTIO_MMIO_QUEUE_AVAIL_STATE} and
 * {@link VIRTIO_MMIO_QUEUE_USED_STATE}, carry the virtqueue state facility where the device offers
 * VIRTIO_F_QUEUE_STATE.
 *
 * @example
 * ```ts ignore
 * const vsock = new VsockDevice({ guestCid: 3, host });
 * const virtio = new VirtioDevice(vsock, { queueState: true });
 * vsock.attach(virtio);
 * const mmio = new MmioTransport(virtio, {
 *   memory: () => machine.memory,
 *   interrupt: (level) => machine.setIrq(5, level),
 * });
 * machine.map(0x1000_1000, 0x200, {
 *   read: (offset, width) => mmio.read(offset, width),
 *   write: (offset, width, value) => {
 *     mmio.write(offset, width, value);
 *     while (vsock.process());
 *   },
 * });
 * ```
 */
export class MmioTransport {
  /** The device behind the registers. */
  readonly virtio: VirtioDevice;

  readonly #registers: Registers;
  readonly #vendorId: number;

  /**
   * Plugs `virtio` in.
   *
   * @throws {TypeError} when it offers VIRTIO_F_NOTIF_CONFIG_DATA: no register tells the driver the values.
   */
  constructor(virtio: VirtioDevice, options: MmioOptions) {
    refuseFeatures(
      virtio.offeredFeatures,
      [VIRTIO_F_NOTIF_CONFIG_DATA],
      "virtio-mmio",
    );
    this.virtio = virtio;
    const registers = new Registers("mmio", virtio, options);
    this.#registers = registers;
    this.#vendorId = (options.vendorId ?? VENDOR_ID) >>> 0;
    virtio.connect({
      interrupt: () => registers.raiseInterrupt(INTERRUPT_QUEUE),
      configChanged: () => registers.raiseInterrupt(INTERRUPT_CONFIG),
    });
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

  /** Resets the device as the machine's own reset does; the same as a Status of 0. */
  reset(): void {
    this.#registers.reset();
  }

  /**
   * What the registers hold, as plain data that survives `structuredClone` and JSON; what the device
   * behind them holds is for {@link VirtioDevice.save}. Changes nothing.
   */
  save(): MmioSnapshot {
    return seal(MMIO_SNAPSHOT_VERSION, { registers: this.#registers.save() });
  }

  /**
   * Goes on from what {@link MmioTransport.save} returned, before {@link VirtioDevice.restore} does, over
   * guest memory with the same contents. Drives the interrupt line to the level that it had.
   *
   * @throws {SnapshotError} when it is no snapshot that these registers can go on from; they are as they
   * were.
   * @throws {TypeError} when the device is not in its state after reset.
   */
  restore(snapshot: unknown): void {
    const fields = unseal(snapshot, MMIO_SNAPSHOT_VERSION);
    const goOn = this.#registers.prepareRestore(fields.any("registers"));
    this.#registers.needReset();
    goOn();
  }

  /**
   * Reads `width` bytes, 1, 2 or 4, at `offset` from the device's base; little-endian, unsigned.
   *
   * Registers are read in aligned words, the configuration space in any way inside it (4.2.2.2).
   */
  read(offset: number, width: number): number {
    const registers = this.#registers;
    registers.syncMemory();
    if (offset >= VIRTIO_MMIO_CONFIG) {
      const value = registers.readConfig(offset - VIRTIO_MMIO_CONFIG, width);
      return value < 0 ? registers.ignored("read", offset, width) : value;
    }
    if (width !== 4) return registers.ignored("read", offset, width);
    const { virtio } = this;
    switch (offset) {
      case VIRTIO_MMIO_MAGIC_VALUE:
        return VIRTIO_MMIO_MAGIC;
      case VIRTIO_MMIO_VERSION:
        return 2;
      case VIRTIO_MMIO_DEVICE_ID:
        return virtio.model.deviceId;
      case VIRTIO_MMIO_VENDOR_ID:
        return this.#vendorId;
      case VIRTIO_MMIO_DEVICE_FEATURES:
        return registers.deviceFeatures;
      case VIRTIO_MMIO_QUEUE_NUM_MAX:
        return registers.maxQueueSize;
      case VIRTIO_MMIO_QUEUE_READY:
        return registers.queueReady ? 1 : 0;
      case VIRTIO_MMIO_INTERRUPT_STATUS:
        return registers.interruptStatus;
      case VIRTIO_MMIO_STATUS:
        return virtio.status;
      case VIRTIO_MMIO_SHM_LEN_LOW:
      case VIRTIO_MMIO_SHM_LEN_HIGH:
      case VIRTIO_MMIO_SHM_BASE_LOW:
      case VIRTIO_MMIO_SHM_BASE_HIGH:
        return ALL_ONES;
      case VIRTIO_MMIO_QUEUE_RESET:
        // A queue is reset before the write that asks for it returns.
        return 0;
      case VIRTIO_MMIO_QUEUE_AVAIL_STATE:
        return registers.readState("available");
      case VIRTIO_MMIO_QUEUE_USED_STATE:
        return registers.readState("used");
      case VIRTIO_MMIO_CONFIG_GENERATION:
        return virtio.configGeneration;
      default:
        return registers.ignored("read", offset, width);
    }
  }

  /**
   * Writes `width` bytes, 1, 2 or 4, of `value` at `offset` from the device's base; little-endian.
   *
   * Registers are written in aligned words, the configuration space in any way inside it (4.2.2.2).
   */
  write(offset: number, width: number, value: number): void {
    const registers = this.#registers;
    registers.syncMemory();
    if (offset >= VIRTIO_MMIO_CONFIG) {
      const at = offset - VIRTIO_MMIO_CONFIG;
      if (registers.writeConfig(at, width, value)) return;
      registers.ignored("write", offset, width);
      return;
    }
    if (width !== 4) {
      registers.ignored("write", offset, width);
      return;
    }
    const word = value >>> 0;
    switch (offset) {
      case VIRTIO_MMIO_DEVICE_FEATURES_SEL:
        registers.deviceFeatureSelect = word;
        return;
      case VIRTIO_MMIO_DRIVER_FEATURES_SEL:
        registers.driverFeatureSelect = word;
        return;
      case VIRTIO_MMIO_DRIVER_FEATURES:
        registers.writeDriverFeatures(word);
        return;
      case VIRTIO_MMIO_QUEUE_SEL:
        registers.queueSelect = word;
        return;
      case VIRTIO_MMIO_QUEUE_NOTIFY:
        this.virtio.notify(word);
        return;
      case VIRTIO_MMIO_INTERRUPT_ACK:
        registers.clearInterrupt(word);
        return;
      case VIRTIO_MMIO_STATUS:
        if (word === 0) registers.reset();
        else registers.writeStatus(word);
        return;
      case VIRTIO_MMIO_SHM_SEL:
        // Whatever is selected does not exist.
        return;
      case VIRTIO_MMIO_QUEUE_NUM:
        registers.writeQueueSize(word, false);
        return;
      case VIRTIO_MMIO_QUEUE_READY:
        if (!registers.needQueue()) return;
        if (word <= 1) registers.writeReady(word === 1);
        else registers.refused("queue", "QueueReady takes 0 and 1");
        return;
      case VIRTIO_MMIO_QUEUE_DESC_LOW:
        registers.writeArea(0, word);
        return;
      case VIRTIO_MMIO_QUEUE_DESC_HIGH:
        registers.writeArea(1, word);
        return;
      case VIRTIO_MMIO_QUEUE_AVAIL_LOW:
        registers.writeArea(2, word);
        return;
      case VIRTIO_MMIO_QUEUE_AVAIL_HIGH:
        registers.writeArea(3, word);
        return;
      case VIRTIO_MMIO_QUEUE_USED_LOW:
        registers.writeArea(4, word);
        return;
      case VIRTIO_MMIO_QUEUE_USED_HIGH:
        registers.writeArea(5, word);
        return;
      case VIRTIO_MMIO_QUEUE_RESET:
        if (!registers.needQueue()) return;
        if (word === 1) registers.resetQueue();
        else registers.refused("queue", "QueueReset takes 1");
        return;
      case VIRTIO_MMIO_QUEUE_AVAIL_STATE:
        registers.writeState("available", word);
        return;
      case VIRTIO_MMIO_QUEUE_USED_STATE:
        registers.writeState("used", word);
        return;
      default:
        registers.ignored("write", offset, width);
    }
  }
}
