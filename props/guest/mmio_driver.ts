import {
  VIRTIO_MMIO_CONFIG,
  VIRTIO_MMIO_CONFIG_GENERATION,
  VIRTIO_MMIO_DEVICE_FEATURES,
  VIRTIO_MMIO_DEVICE_FEATURES_SEL,
  VIRTIO_MMIO_DEVICE_ID,
  VIRTIO_MMIO_DRIVER_FEATURES,
  VIRTIO_MMIO_DRIVER_FEATURES_SEL,
  VIRTIO_MMIO_INT_CONFIG,
  VIRTIO_MMIO_INT_VRING,
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
  VIRTIO_MMIO_STATUS,
  VIRTIO_MMIO_VERSION,
} from "../../device/virtio_mmio.ts";
import type { QueueStateWords } from "../../ring/state.ts";
import {
  addressHalves,
  type QueueAreas,
  type RegisterBus,
  RegisterDriver,
} from "./register_driver.ts";

export {
  featureBits,
  type QueueAreas,
  type RegisterBus,
} from "./register_driver.ts";

const HALVES: readonly number[] = [
  VIRTIO_MMIO_QUEUE_DESC_LOW,
  VIRTIO_MMIO_QUEUE_DESC_HIGH,
  VIRTIO_MMIO_QUEUE_AVAIL_LOW,
  VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
  VIRTIO_MMIO_QUEUE_USED_LOW,
  VIRTIO_MMIO_QUEUE_USED_HIGH,
];

/**
 * A driver's side of virtio over MMIO (virtio 1.4, 4.2): it knows a device by its registers only, and
 * takes the steps of 3.1 that it is told to.
 */
export class MmioDriver extends RegisterDriver {
  readonly #bus: RegisterBus;

  /** Looks at nothing yet. */
  constructor(bus: RegisterBus) {
    super();
    this.#bus = bus;
  }

  /**
   * Checks that there is a device, and returns its type; 0 for a placeholder.
   *
   * @throws {TypeError} when magic value or version are wrong.
   */
  probe(): number {
    const magic = this.get(VIRTIO_MMIO_MAGIC_VALUE);
    const version = this.get(VIRTIO_MMIO_VERSION);
    if (magic !== VIRTIO_MMIO_MAGIC || version !== 2) {
      throw new TypeError(
        `Cannot drive the device: magic value 0x${
          magic.toString(16)
        }, version ${version}`,
      );
    }
    return this.get(VIRTIO_MMIO_DEVICE_ID);
  }

  /** Reads a register. */
  get(offset: number): number {
    return this.#bus.read(offset, 4);
  }

  /** Writes a register. */
  set(offset: number, value: number): void {
    this.#bus.write(offset, 4, value);
  }

  /** The device status. */
  get status(): number {
    return this.get(VIRTIO_MMIO_STATUS);
  }

  /** Writes the device status as it is. */
  writeStatus(status: number): void {
    this.set(VIRTIO_MMIO_STATUS, status);
  }

  /** Reads 32 offered features. */
  readDeviceFeatures(word: number): number {
    this.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, word);
    return this.get(VIRTIO_MMIO_DEVICE_FEATURES);
  }

  /** Writes 32 accepted features. */
  writeDriverFeatures(word: number, bits: number): void {
    this.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, word);
    this.set(VIRTIO_MMIO_DRIVER_FEATURES, bits);
  }

  /** Largest size of queue `index`; 0 where there is none. */
  maxQueueSize(index: number): number {
    this.set(VIRTIO_MMIO_QUEUE_SEL, index);
    return this.get(VIRTIO_MMIO_QUEUE_NUM_MAX);
  }

  /** Configures queue `index` and makes it ready; true when the device took it. */
  setupQueue(index: number, areas: QueueAreas): boolean {
    this.set(VIRTIO_MMIO_QUEUE_SEL, index);
    this.set(VIRTIO_MMIO_QUEUE_NUM, areas.size);
    for (const [i, half] of addressHalves(areas).entries()) {
      this.set(HALVES[i]!, half);
    }
    this.set(VIRTIO_MMIO_QUEUE_READY, 1);
    return this.queueReady(index);
  }

  /** Tells whether queue `index` is ready. */
  queueReady(index: number): boolean {
    this.set(VIRTIO_MMIO_QUEUE_SEL, index);
    return this.get(VIRTIO_MMIO_QUEUE_READY) === 1;
  }

  /** Stops the use of queue `index`; true when the device says that it did (4.2.2.2). */
  stopQueue(index: number): boolean {
    this.set(VIRTIO_MMIO_QUEUE_SEL, index);
    this.set(VIRTIO_MMIO_QUEUE_READY, 0);
    return !this.queueReady(index);
  }

  /** Resets queue `index` alone; true when the device says that it did. */
  resetQueue(index: number): boolean {
    this.set(VIRTIO_MMIO_QUEUE_SEL, index);
    this.set(VIRTIO_MMIO_QUEUE_RESET, 1);
    return this.get(VIRTIO_MMIO_QUEUE_RESET) === 0 &&
      this.get(VIRTIO_MMIO_QUEUE_READY) === 0;
  }

  /** Notifies a queue by its index, with VIRTIO_F_NOTIFICATION_DATA by what its driver's queue tells. */
  kick(notification: number): void {
    this.set(VIRTIO_MMIO_QUEUE_NOTIFY, notification);
  }

  /** Reads why there is an interrupt and acknowledges it; bits without a meaning are left out. */
  takeInterrupt(): number {
    const known = VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG;
    const bits = this.get(VIRTIO_MMIO_INTERRUPT_STATUS) & known;
    this.set(VIRTIO_MMIO_INTERRUPT_ACK, bits);
    return bits;
  }

  /** Gets the state of queue `index`; null where the device tells none. */
  queueState(index: number): QueueStateWords | null {
    this.set(VIRTIO_MMIO_QUEUE_SEL, index);
    const available = this.get(VIRTIO_MMIO_QUEUE_AVAIL_STATE);
    const used = this.get(VIRTIO_MMIO_QUEUE_USED_STATE);
    return available > 0xffff || used > 0xffff ? null : { available, used };
  }

  /** Sets the state of queue `index`. */
  setQueueState(index: number, words: QueueStateWords): void {
    this.set(VIRTIO_MMIO_QUEUE_SEL, index);
    this.set(VIRTIO_MMIO_QUEUE_AVAIL_STATE, words.available);
    this.set(VIRTIO_MMIO_QUEUE_USED_STATE, words.used);
  }

  /** Changes with the configuration space. */
  get configGeneration(): number {
    return this.get(VIRTIO_MMIO_CONFIG_GENERATION);
  }

  /** Reads `width` bytes of the configuration space. */
  readConfigField(offset: number, width: number): number {
    return this.#bus.read(VIRTIO_MMIO_CONFIG + offset, width);
  }

  /** Writes `width` bytes of the configuration space. */
  writeConfigField(offset: number, width: number, value: number): void {
    this.#bus.write(VIRTIO_MMIO_CONFIG + offset, width, value);
  }
}
