import type { DeviceSnapshot } from "../../device/device_snapshot.ts";
import {
  type DeviceModel,
  featureMask,
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FEATURES_OK,
  VirtioDevice,
} from "../../device/virtio_device.ts";
import {
  VIRTIO_VSOCK_F_SEQPACKET,
  VIRTIO_VSOCK_F_STREAM,
} from "../../device/vsock/virtio_vsock.ts";
import { GuestMemory } from "../../ring/memory.ts";
import type {
  DeviceQueue,
  QueueConfig,
  QueueState,
  RingFormat,
} from "../../ring/queue.ts";
import {
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
} from "../../ring/virtio_ring.ts";
import type { VsockDriverOptions } from "./driver_options.ts";
import { layOutQueue, makeDriverQueue } from "./driver_queue.ts";
import { MemoryArena } from "./memory_arena.ts";
import { VsockDriver } from "./vsock_driver.ts";

/** A device model that its owner drives; a `VsockDevice` is one. */
export interface PolledDevice extends DeviceModel {
  /** Gives it its virtio side. */
  attach(virtio: VirtioDevice): void;
  /** Does a bounded amount of work; true when there is more. */
  process(): boolean;
}

/** Options of an {@link InProcessGuest}. */
export type InProcessOptions = {
  /** What the guest drives. */
  device: PolledDevice;
  /** Format of the queues. `"split"` unless told. */
  ring?: RingFormat;
  /** Descriptors of each queue. 256 unless told. */
  queueSize?: number;
  /** Accept VIRTIO_F_EVENT_IDX. True unless told. */
  eventIdx?: boolean;
  /** Accept VIRTIO_VSOCK_F_SEQPACKET. True unless told. */
  seqpackets?: boolean;
  /** Descriptors in each indirect table; 0 does without VIRTIO_F_INDIRECT_DESC. 20 unless told. */
  indirectEntries?: number;
  /** Use the event queue. True unless told. */
  eventQueue?: boolean;
  /** Guest memory, in bytes. 48 MiB unless told. */
  memoryBytes?: number;
  /** Guest memory is a SharedArrayBuffer. False unless told. */
  shared?: boolean;
  /** Options of the vsock driver that are not given by the wiring. */
  driver?: Omit<
    VsockDriverOptions,
    "rx" | "tx" | "event" | "arena" | "readCid" | "kick" | "seqpackets"
  >;
};

/** What the guest can do; other bits are not accepted, whatever they mean (virtio 1.4, 2.2.1). */
const KNOWN_FEATURES = [
  VIRTIO_VSOCK_F_STREAM,
  VIRTIO_VSOCK_F_SEQPACKET,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_VERSION_1,
  VIRTIO_F_RING_PACKED,
].reduce((mask, bit) => mask | featureMask(bit), 0n);

/** Guest address of the memory: not 0, so that an address taken for an offset is seen. */
const MEMORY_START = 0x10_0000;
/** Where it begins in its buffer, for the same reason. */
const BUFFER_OFFSET = 4096;

/**
 * A guest and a device over one shared buffer in one thread: no VM, no files, no permissions.
 *
 * Each side runs only when it was told to, the device by a kick and the driver by an interrupt, so that
 * a notification that gets lost shows as traffic that stands still. {@link InProcessGuest.run} goes on
 * until neither has anything to do.
 *
 * @example
 * ```ts ignore
 * const host = new LoopbackHost({ schedule: (work) => guest.schedule(work) });
 * const vsock = new VsockDevice({ guestCid: 3, host });
 * const guest = new InProcessGuest({ device: vsock, ring: "packed" });
 * host.attach(vsock);
 * const listener = host.listen(1234);
 * const conn = guest.driver.connect(1234);
 * guest.run();
 * ```
 */
export class InProcessGuest {
  /** The guest's vsock stack. */
  readonly driver: VsockDriver;
  /** The guest's memory. */
  readonly memory: GuestMemory;
  /** What is left of it. */
  readonly arena: MemoryArena;
  /** Kicks carried to the device. */
  kicks = 0;
  /** Interrupts carried to the driver. */
  interrupts = 0;

  #device: PolledDevice;
  #virtio: VirtioDevice;
  readonly #configs: readonly QueueConfig[];
  readonly #features: bigint;
  readonly #works: (() => void)[] = [];
  #kicked: number[] = [];
  #interrupted = false;
  #deviceDue = false;
  #restoring = false;

  /**
   * Negotiates as a driver does, starts the queues and posts receive buffers.
   *
   * @throws {TypeError} when the device does not take the features.
   */
  constructor(options: InProcessOptions) {
    const {
      device,
      ring = "split",
      queueSize = 256,
      eventIdx = true,
      seqpackets = true,
      indirectEntries = 20,
      eventQueue = true,
      memoryBytes = 48 * 1024 * 1024,
      shared = false,
    } = options;
    const bytes = BUFFER_OFFSET + memoryBytes;
    const buffer = shared
      ? new SharedArrayBuffer(bytes)
      : new ArrayBuffer(bytes);
    this.#device = device;
    this.memory = new GuestMemory([{
      guestAddress: MEMORY_START,
      size: memoryBytes,
      buffer,
      byteOffset: BUFFER_OFFSET,
    }]);
    this.arena = new MemoryArena(this.memory);
    this.#virtio = this.#plug(device);
    let features = this.virtio.offeredFeatures & KNOWN_FEATURES;
    const without = (bit: number) => features &= ~featureMask(bit);
    if (ring === "split") without(VIRTIO_F_RING_PACKED);
    if (!eventIdx) without(VIRTIO_F_EVENT_IDX);
    if (!seqpackets) without(VIRTIO_VSOCK_F_SEQPACKET);
    if (indirectEntries === 0) without(VIRTIO_F_INDIRECT_DESC);
    this.#features = features;
    const indirect = indirectEntries > 0;
    const count = eventQueue ? 3 : 2;
    this.#configs = Array.from(
      { length: count },
      () => ({
        ...layOutQueue(this.arena, ring, queueSize),
        eventIdx,
        indirect,
        strongOrdering: true,
      }),
    );
    const [rx, tx, event] = this.#configs.map((config) =>
      makeDriverQueue(this.arena, ring, config, indirectEntries)
    );
    this.#negotiate();
    for (let index = 0; index < count; index++) {
      this.virtio.startQueue(index, null);
    }
    this.#enable();
    this.driver = new VsockDriver({
      ...options.driver,
      seqpackets: (features & featureMask(VIRTIO_VSOCK_F_SEQPACKET)) !== 0n,
      rx: rx!,
      tx: tx!,
      event: event ?? null,
      arena: this.arena,
      readCid: () => {
        const config = device.configSpace();
        return new DataView(config.buffer, config.byteOffset).getUint32(
          0,
          true,
        );
      },
      kick: (queue) => {
        this.kicks++;
        this.#kicked.push(queue);
      },
    });
  }

  /** The virtio side of the device that the guest drives now. */
  get virtio(): VirtioDevice {
    return this.#virtio;
  }

  /** Does `work` in the next {@link InProcessGuest.run}; what a `LoopbackHost` takes as `schedule`. */
  schedule(work: () => void): void {
    this.#works.push(work);
  }

  /** Lets the device run once although nobody kicked it, after its timers or its owner gave it work. */
  wake(): void {
    this.#deviceDue = true;
  }

  /**
   * Carries notifications and lets both sides work until they are idle; true when that was reached
   * within `limit` passes, as many as it takes unless told.
   *
   * @throws {VsockViolation} when the device breaks a rule, unless the driver is not strict.
   */
  run(limit: number = Infinity): boolean {
    // What the guest's programs did since the last time.
    this.driver.poll();
    for (let pass = 0; pass < limit; pass++) {
      if (!this.step()) return true;
    }
    return false;
  }

  /** One pass of the device and one of the driver, where they are due; false where neither was. */
  step(): boolean {
    let busy = false;
    for (const work of this.#works.splice(0)) {
      busy = true;
      work();
    }
    const kicked = this.#kicked;
    if (kicked.length > 0) {
      this.#kicked = [];
      this.#deviceDue = true;
      for (const queue of kicked) this.virtio.kick(queue);
    }
    if (this.#deviceDue) {
      busy = true;
      this.#deviceDue = this.#device.process();
    }
    if (this.#interrupted) {
      busy = true;
      this.#interrupted = false;
      this.driver.poll();
    }
    return busy;
  }

  /**
   * Saves the state of all queues, resets the virtio device, negotiates anew and restores: what a stop
   * and a continuation of a machine do to a device, between any two steps. Returns what was saved, as
   * it came out of JSON.
   *
   * Status, features, queue addresses and queues are lost by the reset and set up again; the guest's
   * driver and the connections notice nothing. Kicks and interrupts that were under way are lost, too,
   * since a restored device has to do without.
   */
  saveResetRestore(): QueueState[] {
    const states = this.#configs.map((_, index) => {
      const state = this.virtio.stopQueue(index);
      if (state === null) {
        throw new TypeError(`Cannot save queue ${index}: it is not running`);
      }
      return state;
    });
    const saved = JSON.parse(JSON.stringify(states)) as QueueState[];
    this.#restoring = true;
    try {
      this.virtio.reset();
    } finally {
      this.#restoring = false;
    }
    this.#kicked = [];
    this.#interrupted = false;
    this.#negotiate();
    for (const [index, state] of saved.entries()) {
      this.virtio.startQueue(index, state);
    }
    this.#enable();
    this.#deviceDue = true;
    return saved;
  }

  /**
   * Moves the guest to `device`, another instance, by a snapshot of the one that it drives now:
   * what a migration does, between any two steps. Returns the snapshot as it came out of JSON; the
   * earlier device is not used any more. The caller moves the host side first.
   *
   * Kicks and interrupts that were under way are lost.
   *
   * @throws {SnapshotError} when `device` cannot go on from it; the guest stays where it is.
   */
  migrate(device: PolledDevice): DeviceSnapshot {
    const snapshot = JSON.parse(
      JSON.stringify(this.#virtio.save()),
    ) as DeviceSnapshot;
    const virtio = this.#plug(device);
    virtio.setMemory(this.memory);
    this.#kicked = [];
    this.#interrupted = false;
    virtio.restore(snapshot);
    this.#virtio.connect(null);
    this.#virtio = virtio;
    this.#device = device;
    this.#deviceDue = true;
    return snapshot;
  }

  #plug(device: PolledDevice): VirtioDevice {
    // One thread: nobody else can see the memory, so plain reads stay in order.
    const virtio = new VirtioDevice(this.#relay(device), {
      ring: "auto",
      strongOrdering: true,
    });
    device.attach(virtio);
    virtio.connect({
      interrupt: () => {
        this.interrupts++;
        this.#interrupted = true;
      },
      configChanged: () => {
        this.#interrupted = true;
      },
    });
    return virtio;
  }

  #negotiate(): void {
    const virtio = this.virtio;
    virtio.setMemory(this.memory);
    virtio.setStatus(VIRTIO_CONFIG_S_ACKNOWLEDGE);
    virtio.setStatus(virtio.status | VIRTIO_CONFIG_S_DRIVER);
    virtio.setFeatures(this.#features);
    virtio.setStatus(virtio.status | VIRTIO_CONFIG_S_FEATURES_OK);
    if ((virtio.status & VIRTIO_CONFIG_S_FEATURES_OK) === 0) {
      throw new TypeError(
        `Cannot drive the device: ${
          virtio.featureProblem(this.#features) ?? "FEATURES_OK is not taken"
        }`,
      );
    }
    for (const [index, config] of this.#configs.entries()) {
      const { size, descriptorArea, driverArea, deviceArea } = config;
      virtio.setupQueue(index, {
        size,
        descriptorArea,
        driverArea,
        deviceArea,
      });
    }
  }

  #enable(): void {
    for (const index of this.#configs.keys()) {
      this.virtio.enableQueue(index, true);
    }
    this.virtio.setStatus(this.virtio.status | VIRTIO_CONFIG_S_DRIVER_OK);
  }

  /** The model as the virtio device sees it: a reset that is followed by a restore is no farewell. */
  #relay(device: PolledDevice): DeviceModel {
    return {
      deviceId: device.deviceId,
      features: device.features,
      maxQueueSizes: device.maxQueueSizes,
      configSpace: () => device.configSpace(),
      featuresAccepted: (features) => device.featuresAccepted(features),
      queueStarted: (index: number, queue: DeviceQueue, fresh: boolean) =>
        device.queueStarted(index, queue, fresh),
      queueStopped: (index) => device.queueStopped(index),
      memoryChanging: () => device.memoryChanging(),
      memoryChanged: (memory) => device.memoryChanged(memory),
      queueKicked: (index) => device.queueKicked(index),
      reset: () => {
        if (!this.#restoring) device.reset();
      },
      ...(device.save === undefined ? {} : { save: () => device.save!() }),
      ...(device.prepareRestore === undefined ? {} : {
        prepareRestore: (saved: unknown) => device.prepareRestore!(saved),
      }),
    };
  }
}
