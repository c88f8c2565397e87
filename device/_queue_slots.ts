import { RingError } from "../ring/errors.ts";
import { GuestMemory } from "../ring/memory.ts";
import { PackedDevice } from "../ring/packed_device.ts";
import type {
  DeviceQueue,
  QueueConfig,
  QueueState,
  RingFormat,
} from "../ring/queue.ts";
import { SplitDevice } from "../ring/split_device.ts";
import { VIRTQ_MAX_SIZE } from "../ring/virtio_ring.ts";
import type { DeviceModel, QueueSetup } from "./device_model.ts";
import type { QueueSnapshot } from "./device_snapshot.ts";

/** Stands before a queue of the device. */
export type WrapQueue = (index: number, queue: DeviceQueue) => DeviceQueue;

/** What a queue is made of beside its size and addresses. */
export type RingTerms =
  & { format: RingFormat }
  & Pick<
    Required<QueueConfig>,
    "eventIdx" | "indirect" | "inOrder" | "strongOrdering"
  >;

/** One queue that the device can have. */
export type QueueSlot = {
  readonly index: number;
  setup: QueueSetup;
  queue: DeviceQueue | null;
  /** What the model gets: the queue, or the wrapper before it. */
  outer: DeviceQueue | null;
  /** Given to the model; a queue can be started and not enabled. */
  given: boolean;
  fresh: boolean;
  broken: boolean;
  /** A register transport has been told that the queue is ready. */
  ready: boolean;
  /** The model gets the queue back when the device is resumed. */
  suspended: boolean;
  /** The model has had the queue since the device was reset. */
  used: boolean;
};

/**
 * The queues of a device, from their configuration to the model that uses them. When that may happen is for
 * the {@link VirtioDevice}, which has the rules of its driver's status.
 */
export class QueueSlots {
  /** In the order of their indices. */
  readonly all: readonly QueueSlot[];
  /** Where queues are started. */
  memory: GuestMemory = new GuestMemory([]);

  readonly #model: DeviceModel;
  readonly #terms: () => RingTerms;
  readonly #interrupt: (index: number) => void;
  #wrap: WrapQueue | null = null;

  /** Makes the queues of `model`, none of which runs; `terms` tells what was negotiated. */
  constructor(
    model: DeviceModel,
    terms: () => RingTerms,
    interrupt: (index: number) => void,
  ) {
    this.#model = model;
    this.#terms = terms;
    this.#interrupt = interrupt;
    this.all = model.maxQueueSizes.map((_, index) => ({
      index,
      setup: this.#initialSetup(index),
      queue: null,
      outer: null,
      given: false,
      fresh: true,
      broken: false,
      ready: false,
      suspended: false,
      used: false,
    }));
  }

  /**
   * Queue `index`.
   *
   * @throws {RangeError} when the device has no such queue.
   */
  at(index: number): QueueSlot {
    const slot = this.all[index];
    if (slot === undefined) {
      throw new RangeError(
        `Cannot use queue ${index}: the device has ${this.all.length}`,
      );
    }
    return slot;
  }

  /** True while any queue runs. */
  get running(): boolean {
    return this.all.some(({ queue }) => queue !== null);
  }

  /** See `VirtioDevice.setupQueue`. */
  configure(index: number, setup: Partial<QueueSetup>): void {
    const slot = this.at(index);
    if (slot.queue !== null) {
      throw new TypeError(`Cannot configure queue ${index}: it is running`);
    }
    const max = VIRTQ_MAX_SIZE;
    if (setup.size !== undefined && !(setup.size >= 1 && setup.size <= max)) {
      throw new RingError(
        "BAD_QUEUE_SIZE",
        "2.7",
        `Cannot set queue ${index} to ${setup.size} descriptors`,
      );
    }
    slot.setup = { ...slot.setup, ...setup };
  }

  /** What a queue is made of when it is started now. */
  config(slot: QueueSlot): QueueConfig {
    const { format: _format, ...terms } = this.#terms();
    return { ...slot.setup, ...terms };
  }

  /**
   * Makes a queue as it is configured, which runs nowhere yet.
   *
   * @throws {RingError} when its size, its addresses or the state are not valid.
   */
  make(
    slot: QueueSlot,
    state: QueueState | null,
  ): PackedDevice | SplitDevice {
    const config = this.config(slot);
    return this.#terms().format === "packed"
      ? new PackedDevice(this.memory, config, state ?? undefined)
      : new SplitDevice(this.memory, config, state ?? undefined);
  }

  /** See `VirtioDevice.startQueue`. */
  start(
    index: number,
    state: QueueState | null,
    track?: (queue: PackedDevice | SplitDevice) => DeviceQueue,
  ): void {
    const slot = this.at(index);
    if (slot.queue !== null) {
      throw new TypeError(`Cannot start queue ${index}: it is running`);
    }
    const queue = this.make(slot, state);
    slot.queue = track?.(queue) ?? queue;
    slot.outer = this.#wrap?.(index, slot.queue) ?? slot.queue;
    slot.fresh = state === null;
    slot.broken = false;
  }

  /** See `VirtioDevice.enableQueue`. */
  enable(index: number, enabled: boolean): void {
    const slot = this.at(index);
    if (slot.queue === null || slot.given === enabled) return;
    if (enabled && slot.broken) return;
    slot.given = enabled;
    if (enabled) {
      const fresh = slot.fresh;
      slot.fresh = false;
      slot.used = true;
      this.#model.queueStarted(index, slot.outer!, fresh);
      // The last interrupt before the queue stopped may be lost; one too many is lawful (2.7.7.2).
      if (!fresh) this.#interrupt(index);
    } else {
      this.#model.queueStopped(index);
    }
  }

  /** Stops a queue, whose memory is not touched any more; null where it was not running. */
  stop(slot: QueueSlot): DeviceQueue | null {
    const queue = slot.queue;
    if (queue === null) return null;
    this.enable(slot.index, false);
    slot.queue = null;
    slot.outer = null;
    return queue;
  }

  /** See `VirtioDevice.wrapQueues`. `kick` looks for work of a queue that the model gets back. */
  wrap(wrap: WrapQueue | null, kick: (index: number) => void): void {
    const given = this.all.map((slot) => slot.given);
    for (const index of given.keys()) this.enable(index, false);
    this.#wrap = wrap;
    for (const slot of this.all) {
      const { index, queue } = slot;
      if (queue === null) continue;
      slot.outer = wrap?.(index, queue) ?? queue;
      if (!given[index]) continue;
      this.enable(index, true);
      kick(index);
    }
  }

  /** Goes on in `memory`; a queue that is not inside it is lost, which `broken` is told, and the error returned. */
  rebind(
    memory: GuestMemory,
    broken: (index: number, error: RingError) => void,
  ): RingError | null {
    this.memory = memory;
    let failed: RingError | null = null;
    for (const slot of this.all) {
      if (slot.queue === null) continue;
      try {
        slot.queue.rebind(memory);
      } catch (error) {
        if (!(error instanceof RingError)) throw error;
        failed = error;
        broken(slot.index, error);
        slot.queue = null;
      }
    }
    return failed;
  }

  /** Forgets all of a queue, which has been stopped, or never ran. */
  clear(slot: QueueSlot): void {
    slot.queue = null;
    slot.outer = null;
    slot.given = false;
    slot.broken = false;
    slot.fresh = true;
    slot.ready = false;
    slot.suspended = false;
    slot.used = false;
    slot.setup = this.#initialSetup(slot.index);
  }

  /** All queues as plain data. */
  save(): QueueSnapshot[] {
    return this.all.map((slot) => ({
      setup: { ...slot.setup },
      state: slot.queue === null ? null : slot.queue.save(),
      enabled: slot.given,
      broken: slot.broken,
      ready: slot.ready,
      used: slot.used,
    }));
  }

  #initialSetup(index: number): QueueSetup {
    return {
      size: this.#model.maxQueueSizes[index]!,
      descriptorArea: 0,
      driverArea: 0,
      deviceArea: 0,
    };
  }
}
