import {
  featureMask,
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FEATURES_OK,
  VIRTIO_CONFIG_S_SUSPEND,
} from "../../device/virtio_device.ts";
import type { QueueStateWords } from "../../ring/state.ts";

/** Registers, or what takes their place; an `MmioTransport` is one. */
export interface RegisterBus {
  /** Reads `width` bytes. */
  read(offset: number, width: number): number;
  /** Writes `width` bytes. */
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
 * A driver's side of a transport with registers: it knows a device by those only, and takes the steps of 3.1
 * that it is told to. What is the same for all transports is here.
 */
export abstract class RegisterDriver {
  /**
   * Checks that there is a device, and returns its type.
   *
   * @throws {TypeError} when there is none that it can drive.
   */
  abstract probe(): number;

  /** The device status. */
  abstract get status(): number;

  /** Writes the device status as it is. */
  abstract writeStatus(status: number): void;

  /** Reads 32 offered features. */
  abstract readDeviceFeatures(word: number): number;

  /** Writes 32 accepted features. */
  abstract writeDriverFeatures(word: number, bits: number): void;

  /** Largest size of queue `index`; 0 where there is none. */
  abstract maxQueueSize(index: number): number;

  /** Configures queue `index` and makes it ready; true when the device took it. */
  abstract setupQueue(index: number, areas: QueueAreas): boolean;

  /** Tells whether queue `index` is ready. */
  abstract queueReady(index: number): boolean;

  /** Resets queue `index` alone; true when the device says that it did. */
  abstract resetQueue(index: number): boolean;

  /**
   * Notifies a queue by its index, with VIRTIO_F_NOTIFICATION_DATA by what its driver's queue tells; `queue`
   * is its index where that says something else.
   */
  abstract kick(notification: number, queue?: number): void;

  /** Reads why there is an interrupt and acknowledges it: 1 used buffers, 2 configuration. */
  abstract takeInterrupt(): number;

  /** Gets the state of queue `index`; null where the device tells none. */
  abstract queueState(index: number): QueueStateWords | null;

  /** Sets the state of queue `index`. */
  abstract setQueueState(index: number, words: QueueStateWords): void;

  /** Changes with the configuration space. */
  abstract get configGeneration(): number;

  /** Reads `width` bytes of the configuration space. */
  abstract readConfigField(offset: number, width: number): number;

  /** Writes `width` bytes of the configuration space. */
  abstract writeConfigField(
    offset: number,
    width: number,
    value: number,
  ): void;

  /** Sets status bits beside those that are set. */
  addStatus(bits: number): void {
    this.writeStatus(this.status | bits);
  }

  /** Resets the device. */
  reset(): void {
    this.writeStatus(0);
  }

  /** Features that the device offers, bits 0 to 127. */
  offeredFeatures(): bigint {
    let features = 0n;
    for (let word = 0; word < 4; word++) {
      features |= BigInt(this.readDeviceFeatures(word)) << BigInt(32 * word);
    }
    return features;
  }

  /** Sets ACKNOWLEDGE and DRIVER, accepts `features` and sets FEATURES_OK; true when that is taken. */
  accept(features: bigint): boolean {
    this.addStatus(VIRTIO_CONFIG_S_ACKNOWLEDGE);
    this.addStatus(VIRTIO_CONFIG_S_DRIVER);
    for (let word = 0; word < 4; word++) {
      const bits = features >> BigInt(32 * word) & 0xffffffffn;
      this.writeDriverFeatures(word, Number(bits));
    }
    this.addStatus(VIRTIO_CONFIG_S_FEATURES_OK);
    return (this.status & VIRTIO_CONFIG_S_FEATURES_OK) !== 0;
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

  /** Reads the first `length` bytes of the configuration space, all of one generation. */
  readConfig(length: number): Uint8Array {
    const config = new Uint8Array(length);
    let generation: number;
    do {
      generation = this.configGeneration;
      for (let i = 0; i < length; i++) config[i] = this.readConfigField(i, 1);
    } while (generation !== this.configGeneration);
    return config;
  }
}

/** Low and high halves of the addresses of a queue's areas, in the order of the registers. */
export function addressHalves(areas: QueueAreas): number[] {
  return [areas.descriptorArea, areas.driverArea, areas.deviceArea].flatMap(
    (address) => [address >>> 0, Math.floor(address / 0x100000000)],
  );
}

/** One mask of several feature bits. */
export function featureBits(...bits: number[]): bigint {
  return bits.reduce((mask, bit) => mask | featureMask(bit), 0n);
}
