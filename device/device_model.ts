import type { RingError } from "../ring/errors.ts";
import type { GuestMemory } from "../ring/memory.ts";
import type { DeviceQueue, RingFormat } from "../ring/queue.ts";
import type { Diagnostics } from "./diagnostics.ts";
import type { TransportFeatureOptions } from "./transport_features.ts";

/** Status bit: the guest has noticed the device (virtio 1.4, 2.1). */
export const VIRTIO_CONFIG_S_ACKNOWLEDGE = 1;
/** Status bit: the guest has a driver for it (2.1). */
export const VIRTIO_CONFIG_S_DRIVER = 2;
/** Status bit: the driver is ready (2.1). */
export const VIRTIO_CONFIG_S_DRIVER_OK = 4;
/** Status bit: feature negotiation is complete (2.1). */
export const VIRTIO_CONFIG_S_FEATURES_OK = 8;
/** Status bit: the device is suspended; needs VIRTIO_F_SUSPEND (2.1 and 3.4). */
export const VIRTIO_CONFIG_S_SUSPEND = 16;
/** Status bit: the device met an error that it cannot recover from (2.1). */
export const VIRTIO_CONFIG_S_NEEDS_RESET = 64;
/** Status bit: the guest has given up on the device (2.1). */
export const VIRTIO_CONFIG_S_FAILED = 128;

/** Which ring formats a device offers: both, or one that a driver must take. */
export type RingChoice = "auto" | RingFormat;

/**
 * What a kind of device adds to {@link VirtioDevice}: its features, its configuration space and
 * the work on its queues. It owns a queue from `queueStarted` until `queueStopped`.
 */
export interface DeviceModel {
  /** Device type, as in virtio 1.4, 5. */
  readonly deviceId: number;
  /** Feature bits 0 to 23 and 50 to 127 that are offered. */
  readonly features: bigint;
  /** Largest size of each queue, a power of two at most 32768; a driver may choose less. */
  readonly maxQueueSizes: readonly number[];

  /** The device's configuration space as it is now, little-endian. */
  configSpace(): Uint8Array;

  /** A driver writes `bytes` at `offset`, inside the space; without it the space is read-only. */
  writeConfig?(offset: number, bytes: Uint8Array): void;

  /** A driver has accepted `features`, a subset of what was offered. */
  featuresAccepted(features: bigint): void;

  /**
   * Queue `index` may be used. `fresh` tells that its driver has just been started, so that what
   * was agreed with an earlier driver is void; otherwise the driver is the one from before.
   */
  queueStarted(index: number, queue: DeviceQueue, fresh: boolean): void;

  /**
   * Queue `index` must not be used any more. Before it returns, the model publishes or gives back
   * every buffer that it holds.
   */
  queueStopped(index: number): void;

  /** Guest memory moves: the model gives back the buffers that it holds, as its chains are void. */
  memoryChanging(): void;

  /** Guest memory is now `memory`. */
  memoryChanged(memory: GuestMemory): void;

  /** The driver says that queue `index` has buffers, or the transport that it may have. */
  queueKicked(index: number): void;

  /** The driver has reset the device, or is gone. */
  reset(): void;

  /** Its state as plain data, for {@link VirtioDevice.save}; changes nothing. */
  save?(): unknown;

  /**
   * Checks what `save` returned in another instance, and returns what goes on from it; that is
   * called before the queues are given back to it.
   *
   * @throws {SnapshotError} when it cannot go on from it.
   */
  prepareRestore?(saved: unknown): () => void;
}

/** What a transport does for the device. */
export interface TransportPort {
  /** Tells the driver that queue `index` has used buffers. */
  interrupt(index: number): void;
  /** Tells the driver that the configuration, or the status, has changed. */
  configChanged(): void;
  /** Queue `index` is broken by its driver and stopped (vhost-user: the vring's error fd). */
  queueBroken?(index: number, error: RingError): void;
}

/** One queue as a transport configures it, before it is started. */
export type QueueSetup = {
  /** Descriptors. */
  size: number;
  /** Guest address of the descriptor area. */
  descriptorArea: number;
  /** Guest address of the driver area. */
  driverArea: number;
  /** Guest address of the device area. */
  deviceArea: number;
};

/** Options of a {@link VirtioDevice}. */
export type VirtioDeviceOptions = TransportFeatureOptions & {
  /** Ring formats that are offered. `"auto"` unless told. */
  ring?: RingChoice;
  /**
   * True where loads are not reordered with loads, or nobody else runs: see
   * `QueueConfig.strongOrdering`. False unless told.
   */
  strongOrdering?: boolean;
  /** Counters and log. */
  diagnostics?: Diagnostics;
};
