/**
 * A virtio device of one queue whose model is a script's: it fetches and completes when the script says so.
 *
 * @module
 */

import type { DeviceModel } from "../device/device_model.ts";
import { featureMask, VirtioDevice } from "../device/virtio_device.ts";
import type { GuestMemory } from "../ring/memory.ts";
import type { DeviceQueue, QueueConfig, QueueState } from "../ring/queue.ts";
import type { QueueSetup } from "./queue_model.ts";
import { expectSame, Violation } from "./violation.ts";

const EVENT_IDX = 29;
const INDIRECT_DESC = 28;
const VERSION_1 = 32;
const RING_PACKED = 34;
const IN_ORDER = 35;
const ORDER_PLATFORM = 36;
const NOTIFICATION_DATA = 38;
const NOTIF_CONFIG_DATA = 39;
const BIT_40 = 40;
const SUSPEND = 43;

/** Status bits (virtio 1.4, 2.1). */
const S_ACKNOWLEDGE = 1;
const S_DRIVER = 2;
const S_DRIVER_OK = 4;
const S_FEATURES_OK = 8;
const S_SUSPEND = 16;
const S_READY = S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK | S_DRIVER_OK;

/** What the queue is called in notifications with VIRTIO_F_NOTIF_CONFIG_DATA. */
const CONFIG_DATA = 0x5a3c;

/** A device type of one queue that notes what it is given and does nothing by itself. */
class NotingModel implements DeviceModel {
  readonly deviceId = 4;
  readonly features = 0n;
  readonly maxQueueSizes: readonly number[];
  queue: DeviceQueue | null = null;
  fresh = false;
  kicks = 0;
  /** The device wants the queue back: buffers are to be used or given back now. */
  whenStopped: () => void = () => {};

  constructor(size: number) {
    this.maxQueueSizes = [2 ** Math.ceil(Math.log2(size))];
  }

  configSpace(): Uint8Array {
    return new Uint8Array(0);
  }
  featuresAccepted(_features: bigint): void {}
  queueStarted(_index: number, queue: DeviceQueue, fresh: boolean): void {
    this.queue = queue;
    this.fresh = fresh;
  }
  queueStopped(_index: number): void {
    this.whenStopped();
    this.queue = null;
  }
  memoryChanging(): void {
    this.whenStopped();
  }
  memoryChanged(_memory: GuestMemory): void {}
  queueKicked(_index: number): void {
    this.kicks++;
  }
  reset(): void {
    this.queue = null;
  }
  save(): unknown {
    return {};
  }
  prepareRestore(_saved: unknown): () => void {
    return () => {};
  }
}

/** A virtio device around the queue of a script, and its driver's side of the registers. */
export class QueueHost {
  /** Interrupts that came. */
  interrupts = 0;
  readonly #model: NotingModel;
  readonly #device: VirtioDevice;
  readonly #setup: QueueSetup;
  #memory: GuestMemory;
  readonly #config: QueueConfig;

  /** Makes the device, in its state after reset. */
  constructor(setup: QueueSetup, memory: GuestMemory, config: QueueConfig) {
    this.#setup = setup;
    this.#memory = memory;
    this.#config = config;
    this.#model = new NotingModel(setup.size);
    this.#device = new VirtioDevice(this.#model, {
      ring: "auto",
      strongOrdering: setup.strongOrdering,
      queueState: setup.device?.bit40 === "state",
      ringReset: setup.device?.bit40 !== "state",
      inOrder: true,
      orderPlatform: true,
      notificationData: true,
      notifConfigData: [CONFIG_DATA],
      suspend: true,
    });
    this.#device.connect({
      interrupt: () => void this.interrupts++,
      configChanged: () => {},
      queueBroken: (_index, error) => {
        throw error;
      },
    });
    this.#device.setMemory(memory);
  }

  /** What is called when the device takes its queue back. */
  set whenStopped(body: () => void) {
    this.#model.whenStopped = body;
  }

  /** The queue, while the device may use it. */
  get queue(): DeviceQueue | null {
    return this.#model.queue;
  }

  /** The queue was started for a driver that is new. */
  get fresh(): boolean {
    return this.#model.fresh;
  }

  /** The queue; it must be in use. */
  running(): DeviceQueue {
    const { queue } = this.#model;
    if (queue === null) {
      throw new Violation("reset", "a queue that was started is not in use");
    }
    return queue;
  }

  /** The queue must not be in use. */
  expectStopped(invariant: string): void {
    expectSame(invariant, "a queue in use", this.#model.queue !== null, false);
  }

  /** A driver negotiates and starts the queue, with the words of its state where it can set them. */
  start(words?: { available: number; used: number }): DeviceQueue {
    const device = this.#device;
    device.setStatus(S_ACKNOWLEDGE);
    device.setStatus(S_ACKNOWLEDGE | S_DRIVER);
    device.setFeatures(this.#features());
    device.setStatus(S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK);
    expectSame("no-fault", "FEATURES_OK", device.status & S_FEATURES_OK, 8);
    this.#setUp();
    if (this.#setup.device?.bit40 === "state") {
      const initial = this.#setup.format === "split" ? 0 : 0x8000;
      device.setAvailableState(0, words?.available ?? initial);
      device.setUsedState(0, words?.used ?? initial);
    }
    device.setStatus(S_READY);
    return this.running();
  }

  /** The driver resets the device; with the facility it can read the words of the queue's state then. */
  resetDevice(): void {
    this.#device.setStatus(0);
    this.expectStopped("reset");
  }

  /** The words that can be read after a reset. */
  words(): { available: number; used: number } {
    const device = this.#device;
    return { available: device.availableState(0), used: device.usedState(0) };
  }

  /** The driver resets the queue alone. */
  resetQueue(): void {
    const done = this.#device.resetQueue(0);
    expectSame("reset", "resetQueue()", done, true);
    expectSame("reset", "queueReady()", this.#device.queueReady(0), false);
    this.expectStopped("reset");
  }

  /** The driver makes the queue ready again. */
  restartQueue(): DeviceQueue {
    this.#setUp();
    return this.running();
  }

  /** A transport stops the queue and takes its state. */
  stopQueue(): QueueState {
    const state = this.#device.stopQueue(0);
    this.expectStopped("reset");
    return state!;
  }

  /** A transport starts the queue in a state. */
  startQueue(state: QueueState): DeviceQueue {
    this.#device.startQueue(0, state);
    this.#device.enableQueue(0, true);
    return this.running();
  }

  /** The driver suspends the device. */
  suspend(): void {
    this.#device.setStatus(S_READY | S_SUSPEND);
    const { status } = this.#device;
    const found = status & (S_SUSPEND | S_DRIVER_OK);
    expectSame("suspend", "SUSPEND and DRIVER_OK", found, S_SUSPEND);
    this.expectStopped("suspend");
  }

  /** The driver resumes the device. */
  resume(): DeviceQueue {
    this.#device.setStatus(S_READY);
    const { status } = this.#device;
    expectSame("suspend", "the status", status, S_READY);
    return this.running();
  }

  /** The driver notifies the queue; returns how often the device's model heard of it. */
  notify(notificationData: (queue: number) => number): number {
    const before = this.#model.kicks;
    const features = this.#setup.device!;
    const queue = features.configData
      ? this.#device.queueNotifConfigData(0)
      : 0;
    const { diagnostics } = this.#device;
    this.#device.notify(
      features.notificationData ? notificationData(queue) : queue,
    );
    for (const name of ["notification_unknown", "notification_position"]) {
      const faults = diagnostics.counters.get(name) ?? 0;
      expectSame("progress", `faults of the kind ${name}`, faults, 0);
    }
    return this.#model.kicks - before;
  }

  /** Somebody kicks a device for which nothing is negotiated; returns how often its model heard of it. */
  kick(): number {
    const before = this.#model.kicks;
    this.#device.notify(0);
    return this.#model.kicks - before;
  }

  /** The model says that an interrupt is due; it has to come unless the device is suspended. */
  interrupt(): void {
    const before = this.interrupts;
    this.#device.interrupt(0);
    expectSame("progress", "interrupts", this.interrupts - before, 1);
  }

  /** Memory is another table of the same bytes. */
  rebind(memory: GuestMemory): void {
    this.#memory = memory;
    this.#device.setMemory(memory);
  }

  /** The whole device as plain data. */
  save(): string {
    return JSON.stringify(this.#device.save());
  }

  /** Goes on from what another one has saved. */
  restore(saved: string): void {
    this.#device.restore(JSON.parse(saved));
  }

  #setUp(): void {
    const { size, descriptorArea, driverArea, deviceArea } = this.#config;
    this.#device.setupQueue(0, {
      size,
      descriptorArea,
      driverArea,
      deviceArea,
    });
    const ready = this.#device.setQueueReady(0, true);
    expectSame("no-fault", "setQueueReady()", ready, true);
  }

  #features(): bigint {
    const { format, eventIdx, indirect, inOrder, device } = this.#setup;
    const bits: [boolean | undefined, number][] = [
      [true, VERSION_1],
      [format === "packed", RING_PACKED],
      [eventIdx, EVENT_IDX],
      [indirect, INDIRECT_DESC],
      [inOrder, IN_ORDER],
      [device?.orderPlatform, ORDER_PLATFORM],
      [device?.notificationData, NOTIFICATION_DATA],
      [device?.configData, NOTIF_CONFIG_DATA],
      [device !== undefined && device.bit40 !== "none", BIT_40],
      [device?.suspend, SUSPEND],
    ];
    let mask = 0n;
    for (const [accepted, bit] of bits) {
      if (accepted) mask |= featureMask(bit);
    }
    return mask;
  }

  /** Makes another instance of the same device over the same memory. */
  another(): QueueHost {
    const other = new QueueHost(this.#setup, this.#memory, this.#config);
    other.whenStopped = this.#model.whenStopped;
    return other;
  }
}
