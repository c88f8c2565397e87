import {
  featureMask,
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FEATURES_OK,
  VIRTIO_CONFIG_S_SUSPEND,
} from "../../device/virtio_device.ts";
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

/** Registers of a virtio-mmio device; an `MmioTransport` is one. */
export interface RegisterBus {
  /** Reads a register. */
  read(offset: number, width: number): number;
  /** Writes a register. */
  write(offset: number, width: number, value: number): void;
}

/** Where a queue of a driver lies. */
export type QueueAreas = {
  /** Descriptors. */
  size: number;
  /** Guest address of the descriptor area. */
  descriptorArea: number;
  /** Guest address of the driver area. */
  driverArea: number;
  /** Guest address of the device area. */
  deviceArea: number;
};

/**
 * A driver's side of virtio over MMIO (virtio 1.4, 4.2): it knows a device by its registers only, and
 * takes the steps of 3.1 that it is told to.
 */
export class MmioDriver {
  readonly #bus: RegisterBus;

  /** Looks at nothing yet. */
  constructor(bus: RegisterBus) {
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

  /** Sets status bits beside those that are set. */
  addStatus(bits: number): void {
    this.set(VIRTIO_MMIO_STATUS, this.status | bits);
  }

  /** Resets the device. */
  reset(): void {
    this.set(VIRTIO_MMIO_STATUS, 0);
  }

  /** Features that the device offers, bits 0 to 127. */
  offeredFeatures(): bigint {
    let features = 0n;
    for (let word = 0; word < 4; word++) {
      this.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, word);
      const bits = this.get(VIRTIO_MMIO_DEVICE_FEATURES);
      features |= BigInt(bits) << BigInt(32 * word);
    }
    return features;
  }

  /** Sets ACKNOWLEDGE and DRIVER, accepts `features` and sets FEATURES_OK; true when that is taken. */
  accept(features: bigint): boolean {
    this.addStatus(VIRTIO_CONFIG_S_ACKNOWLEDGE);
    this.addStatus(VIRTIO_CONFIG_S_DRIVER);
    for (let word = 0; word < 4; word++) {
      this.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, word);
      const bits = features >> BigInt(32 * word) & 0xffffffffn;
      this.set(VIRTIO_MMIO_DRIVER_FEATURES, Number(bits));
    }
    this.addStatus(VIRTIO_CONFIG_S_FEATURES_OK);
    return (this.status & VIRTIO_CONFIG_S_FEATURES_OK) !== 0;
  }

  /** Largest size of queue `index`; 0 where there is none. */
  maxQueueSize(index: number): number {
    this.set(VIRTIO_MMIO_QUEUE_SEL, index);
    return this.get(VIRTIO_MMIO_QUEUE_NUM_MAX);
  }

  /** Configures queue `index` and makes it ready; true when the device took it. */
  setupQueue(index: number, areas: QueueAreas): boolean {
    const { size, descriptorArea, driverArea, deviceArea } = areas;
    this.set(VIRTIO_MMIO_QUEUE_SEL, index);
    this.set(VIRTIO_MMIO_QUEUE_NUM, size);
    const halves: [number, number, number][] = [
      [VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, descriptorArea],
      [VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, driverArea],
      [VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_QUEUE_USED_HIGH, deviceArea],
    ];
    for (const [low, high, address] of halves) {
      this.set(low, address >>> 0);
      this.set(high, Math.floor(address / 0x100000000));
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

  /** Sets DRIVER_OK: the device may use the queues, or goes on after it was suspended. */
  driverOk(): void {
    this.addStatus(VIRTIO_CONFIG_S_DRIVER_OK);
  }

  /** Suspends the device; true when it says that it is. */
  suspend(): boolean {
    this.addStatus(VIRTIO_CONFIG_S_SUSPEND);
    const mask = VIRTIO_CONFIG_S_SUSPEND | VIRTIO_CONFIG_S_DRIVER_OK;
    return (this.status & mask) === VIRTIO_CONFIG_S_SUSPEND;
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

  /** Reads the first `length` bytes of the configuration space, all of one generation. */
  readConfig(length: number): Uint8Array {
    const config = new Uint8Array(length);
    let generation: number;
    do {
      generation = this.get(VIRTIO_MMIO_CONFIG_GENERATION);
      for (let i = 0; i < length; i++) {
        config[i] = this.#bus.read(VIRTIO_MMIO_CONFIG + i, 1);
      }
    } while (generation !== this.get(VIRTIO_MMIO_CONFIG_GENERATION));
    return config;
  }
}

/** One mask of several feature bits. */
export function featureBits(...bits: number[]): bigint {
  return bits.reduce((mask, bit) => mask | featureMask(bit), 0n);
}
