import { RingError } from "../ring/errors.ts";
import type { GuestMemory } from "../ring/memory.ts";
import { decodeNotificationData } from "../ring/notify.ts";
import type { PackedDevice } from "../ring/packed_device.ts";
import type {
  DeviceQueue,
  QueueConfig,
  QueueState,
  RingFormat,
} from "../ring/queue.ts";
import type { SplitDevice } from "../ring/split_device.ts";
import {
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_NOTIF_CONFIG_DATA,
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_RING_RESET,
  VIRTIO_F_VERSION_1,
} from "../ring/virtio_ring.ts";
import {
  type DeviceModel,
  type QueueSetup,
  type RingChoice,
  type TransportPort,
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FAILED,
  VIRTIO_CONFIG_S_FEATURES_OK,
  VIRTIO_CONFIG_S_NEEDS_RESET,
  VIRTIO_CONFIG_S_SUSPEND,
  type VirtioDeviceOptions,
} from "./device_model.ts";
import {
  type DeviceSnapshot,
  openSnapshot,
  sealSnapshot,
} from "./device_snapshot.ts";
import { Diagnostics } from "./diagnostics.ts";
import { type QueueSlot, QueueSlots, type RingTerms } from "./_queue_slots.ts";
import { type QueueStateAccess, QueueStateFacility } from "./queue_state.ts";
import { type Plain, SnapshotError } from "./snapshot.ts";
import {
  featureMask,
  featureProblem,
  transportFeatures,
  VIRTIO_F_QUEUE_STATE,
  VIRTIO_F_SUSPEND,
} from "./transport_features.ts";

export {
  type DeviceModel,
  type QueueSetup,
  type RingChoice,
  type TransportPort,
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FAILED,
  VIRTIO_CONFIG_S_FEATURES_OK,
  VIRTIO_CONFIG_S_NEEDS_RESET,
  VIRTIO_CONFIG_S_SUSPEND,
  type VirtioDeviceOptions,
} from "./device_model.ts";
export { featureMask } from "./transport_features.ts";

const STATUS_BITS = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER |
  VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_FEATURES_OK |
  VIRTIO_CONFIG_S_FAILED;

/**
 * A virtio device behind any transport: status, features, configuration space and the life of its
 * queues (virtio 1.4, 2 and 3). What the device does is its {@link DeviceModel}'s.
 *
 * A transport gives it memory, negotiates, configures and starts queues, kicks them, and carries
 * interrupts the other way through its {@link TransportPort}.
 */
export class VirtioDevice {
  /** What the device does. */
  readonly model: DeviceModel;
  /** Counters and log. */
  readonly diagnostics: Diagnostics;
  /** Features that a driver may accept. */
  readonly offeredFeatures: bigint;
  /** Raised by one at each change of the configuration space (2.5). */
  configGeneration = 0;

  #ring: RingChoice;
  #strongOrdering: boolean;
  #port: TransportPort | null = null;
  #status = 0;
  #features = 0n;
  readonly #queues: QueueSlots;
  readonly #queueState: QueueStateFacility;
  // Bit 40 is offered as VIRTIO_F_QUEUE_STATE, not as VIRTIO_F_RING_RESET.
  readonly #offersQueueState: boolean;
  readonly #notifConfigData: readonly number[];
  // The model was not told of a reset, since its queues may be restored.
  #modelKept = false;
  // A change of the configuration to tell when the device is resumed.
  #configDue = false;

  /**
   * Makes a device in the state after reset, without memory and transport.
   *
   * @throws {TypeError} when `queueState` and `ringReset` are asked for, which are one feature bit.
   * @throws {RangeError} when `notifConfigData` does not fit the model's queues.
   */
  constructor(model: DeviceModel, options: VirtioDeviceOptions = {}) {
    this.model = model;
    this.diagnostics = options.diagnostics ?? new Diagnostics();
    this.#ring = options.ring ?? "auto";
    this.#strongOrdering = options.strongOrdering ?? false;
    let offered = model.features | featureMask(VIRTIO_F_VERSION_1) |
      featureMask(VIRTIO_F_INDIRECT_DESC) | featureMask(VIRTIO_F_EVENT_IDX);
    if (this.#ring !== "split") offered |= featureMask(VIRTIO_F_RING_PACKED);
    const queueCount = model.maxQueueSizes.length;
    offered |= transportFeatures(options, queueCount);
    this.#offersQueueState = options.queueState === true;
    this.#queueState = new QueueStateFacility(queueCount);
    this.#notifConfigData = options.notifConfigData ?? [];
    this.offeredFeatures = offered;
    this.#queues = new QueueSlots(
      model,
      () => this.#terms(),
      (index) => this.interrupt(index),
    );
  }

  /** Plugs the device into a transport, or out of it with null. */
  connect(port: TransportPort | null): void {
    this.#port = port;
  }

  /** Number of queues that the device can have; a transport may start fewer. */
  get queueCount(): number {
    return this.#queues.all.length;
  }

  /** Guest memory as the transport last gave it. */
  get memory(): GuestMemory {
    return this.#queues.memory;
  }

  /** Features that the driver has accepted. */
  get features(): bigint {
    return this.#features;
  }

  /** Format of queues that are started now: a matter of the accepted features. */
  get ringFormat(): RingFormat {
    return this.#has(VIRTIO_F_RING_PACKED) ? "packed" : "split";
  }

  /** The status field (2.1). */
  get status(): number {
    return this.#status;
  }

  /**
   * Writes the status field as a driver does: 0 resets; a set bit stays set until then.
   *
   * FEATURES_OK is not taken, which a driver sees by reading, when the accepted features are not
   * a subset of those offered, or lack VERSION_1 or the ring format that the device insists on.
   * DRIVER_OK is not taken without FEATURES_OK. It starts the queues that are ready, and with
   * VIRTIO_F_SUSPEND resumes a device that is suspended.
   */
  setStatus(status: number): void {
    if (status === 0) {
      this.reset();
      return;
    }
    const before = this.#status;
    let bits = before | (status & STATUS_BITS);
    const set = bits & ~before;
    if ((set & VIRTIO_CONFIG_S_ACKNOWLEDGE) !== 0) {
      this.#queueState.acknowledge();
    }
    if ((set & VIRTIO_CONFIG_S_FEATURES_OK) !== 0) {
      const reason = this.featureProblem(this.#features);
      if (reason !== null) {
        this.diagnostics.fault("features_refused", () => reason);
        bits &= ~VIRTIO_CONFIG_S_FEATURES_OK;
      } else {
        this.model.featuresAccepted(this.#features);
        this.#queueState.featuresAccepted(
          this.#offersQueueState && this.#has(VIRTIO_F_QUEUE_STATE),
          this.ringFormat,
        );
      }
    }
    const starts = (set & VIRTIO_CONFIG_S_DRIVER_OK) !== 0;
    if (starts && (bits & VIRTIO_CONFIG_S_FEATURES_OK) === 0) {
      this.diagnostics.fault(
        "driver_ok_early",
        () => "the driver set DRIVER_OK without FEATURES_OK",
      );
      bits &= ~VIRTIO_CONFIG_S_DRIVER_OK;
    } else if (starts) {
      bits &= ~VIRTIO_CONFIG_S_SUSPEND;
    }
    this.#status = bits;
    if ((set & bits & VIRTIO_CONFIG_S_DRIVER_OK) !== 0) this.#run();
    if (
      (status & VIRTIO_CONFIG_S_SUSPEND) !== 0 &&
      (before & VIRTIO_CONFIG_S_DRIVER_OK) !== 0
    ) {
      this.#suspend();
    }
  }

  /** DRIVER_OK was set: the queues that are ready start, those of a suspended device go on. */
  #run(): void {
    if (this.#modelKept && !this.#queueState.negotiated) this.model.reset();
    this.#modelKept = false;
    this.#queueState.driverOk();
    for (const slot of this.#queues.all) this.#startReady(slot);
    for (const slot of this.#queues.all) {
      if (slot.ready || slot.suspended) this.enableQueue(slot.index, true);
      slot.suspended = false;
    }
    if (this.#configDue) this.notifyConfig();
  }

  /** Takes the queues away from the model until DRIVER_OK is set again (3.4). */
  #suspend(): void {
    if (!this.#has(VIRTIO_F_SUSPEND)) {
      this.diagnostics.fault(
        "suspend_refused",
        () => "the driver set SUSPEND without having accepted VIRTIO_F_SUSPEND",
      );
      return;
    }
    let held = 0;
    for (const slot of this.#queues.all) {
      if (!slot.given) continue;
      const queue = slot.queue!;
      slot.suspended = true;
      this.enableQueue(slot.index, false);
      held += queue.inFlight;
      if (queue.needsInterrupt()) this.interrupt(slot.index);
    }
    if (held === 0) {
      this.#status &= ~VIRTIO_CONFIG_S_DRIVER_OK;
      this.#status |= VIRTIO_CONFIG_S_SUSPEND;
      return;
    }
    this.diagnostics.fault(
      "suspend_failed",
      () => `the device does not let ${held} buffers go`,
    );
    this.#needReset();
  }

  /** True from DRIVER_OK to the reset, also while the device is suspended. */
  get #live(): boolean {
    return (this.#status &
      (VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_SUSPEND)) !== 0;
  }

  #needReset(): void {
    if (!this.#live) return;
    this.#status |= VIRTIO_CONFIG_S_NEEDS_RESET;
    this.notifyConfig();
  }

  /** Why a driver cannot have `features`, in words, or null where it can. */
  featureProblem(features: bigint): string | null {
    return featureProblem(features, this.offeredFeatures, this.#ring);
  }

  /**
   * Takes the features that a driver accepts; they are judged when FEATURES_OK is set, by
   * {@link VirtioDevice.setStatus}.
   *
   * @throws {TypeError} when FEATURES_OK is set.
   */
  setFeatures(features: bigint): void {
    if ((this.#status & VIRTIO_CONFIG_S_FEATURES_OK) !== 0) {
      throw new TypeError("Cannot set the features: FEATURES_OK is set");
    }
    this.#features = features;
  }

  /**
   * Gives the device other guest memory; running queues go on over it.
   *
   * @throws {RingError} `BAD_QUEUE_ADDRESS` when a running queue is not inside it; that queue is
   * then broken, the others go on.
   */
  setMemory(memory: GuestMemory): void {
    this.model.memoryChanging();
    const failed = this.#queues.rebind(
      memory,
      (index, error) => this.breakQueue(index, error),
    );
    this.model.memoryChanged(memory);
    if (failed !== null) throw failed;
  }

  /** What is configured for queue `index`; a copy. */
  queueSetup(index: number): QueueSetup {
    return { ...this.#queues.at(index).setup };
  }

  /** What queue `index` is made of when it is started now: its setup, and what was negotiated. */
  queueConfig(index: number): QueueConfig {
    return this.#queues.config(this.#queues.at(index));
  }

  /**
   * Configures queue `index`; what is left out stays as it is.
   *
   * @throws {RangeError} when the device has no such queue.
   * @throws {TypeError} when the queue is running: its size and addresses are frozen.
   * @throws {RingError} `BAD_QUEUE_SIZE` when the size is not 1 to 32768; what less a device wants is its
   * transport's to enforce.
   */
  setupQueue(index: number, setup: Partial<QueueSetup>): void {
    this.#queues.configure(index, setup);
  }

  /**
   * Starts queue `index` in `state`, or in the initial state with null. It is given to the model
   * once it is enabled.
   *
   * What `track` makes of the new queue takes its place until it is stopped, behind whatever
   * {@link VirtioDevice.wrapQueues} puts before it.
   *
   * @throws {TypeError} when it is running already.
   * @throws {RingError} when its size, its addresses or the state are not valid.
   */
  startQueue(
    index: number,
    state: QueueState | null,
    track?: (queue: PackedDevice | SplitDevice) => DeviceQueue,
  ): void {
    this.#queues.start(index, state, track);
  }

  /**
   * Lets the model use queue `index`, which is running, or takes it away from it. A broken queue stays
   * away until it is started again.
   */
  enableQueue(index: number, enabled: boolean): void {
    this.#queues.enable(index, enabled);
  }

  /**
   * Puts what `wrap` returns before each queue, those that run and those that are started later; null
   * takes it away. The model gives all buffers back and gets the other queue, with the driver from
   * before.
   */
  wrapQueues(
    wrap: ((index: number, queue: DeviceQueue) => DeviceQueue) | null,
  ): void {
    this.#queues.wrap(wrap, (index) => this.kick(index));
  }

  /**
   * Stops queue `index` and returns the state in which it can be started again; null where it
   * was not running.
   *
   * The memory of the queue is not touched after this returns.
   */
  stopQueue(index: number): QueueState | null {
    const slot = this.#queues.at(index);
    const queue = this.#queues.stop(slot);
    if (queue === null) return null;
    slot.ready = false;
    return queue.save();
  }

  /** Tells whether queue `index` was started and not stopped. */
  queueRunning(index: number): boolean {
    return this.#queues.at(index).queue !== null;
  }

  // -- For transports whose driver sets up queues by registers --

  /** Tells whether queue `index` is ready: the driver has handed it over, and it was found usable. */
  queueReady(index: number): boolean {
    return this.#queues.at(index).ready;
  }

  /**
   * Makes queue `index` ready, as it is configured, or takes it back; false where that is refused, which
   * is counted.
   *
   * A queue that is ready is frozen. It starts at DRIVER_OK; one that becomes ready after that starts at
   * once, unless VIRTIO_F_QUEUE_STATE was negotiated: its state could not be set any more.
   *
   * @throws {RangeError} when the device has no such queue.
   */
  setQueueReady(index: number, ready: boolean): boolean {
    const slot = this.#queues.at(index);
    if (slot.ready === ready) return true;
    if (!ready) {
      slot.ready = false;
      this.#stop(slot);
      return true;
    }
    const problem = this.#readyProblem(slot);
    if (problem !== null) {
      this.diagnostics.fault(
        "queue_not_ready",
        () => `queue ${index}: ${problem}`,
      );
      return false;
    }
    slot.ready = true;
    if ((this.#status & VIRTIO_CONFIG_S_DRIVER_OK) !== 0) {
      this.#startReady(slot);
      this.enableQueue(index, true);
    }
    return true;
  }

  #readyProblem(slot: QueueSlot): string | null {
    if ((this.#status & VIRTIO_CONFIG_S_FEATURES_OK) === 0) {
      return "FEATURES_OK is not set";
    }
    if (this.#live && this.#queueState.negotiated) {
      return "DRIVER_OK is set, and with VIRTIO_F_QUEUE_STATE queues start before that";
    }
    try {
      this.#queues.make(slot, null);
      return null;
    } catch (error) {
      if (!(error instanceof RingError)) throw error;
      return error.message;
    }
  }

  /**
   * Resets queue `index` alone (2.6.1): it is not ready any more, its memory is not touched again, and it
   * starts in the initial state when it is made ready again. Other queues go on. False where that is
   * refused, which is counted: VIRTIO_F_RING_RESET was not negotiated.
   *
   * @throws {RangeError} when the device has no such queue.
   */
  resetQueue(index: number): boolean {
    const slot = this.#queues.at(index);
    if (
      this.#offersQueueState || !this.#has(VIRTIO_F_RING_RESET) ||
      (this.#status & VIRTIO_CONFIG_S_FEATURES_OK) === 0
    ) {
      this.diagnostics.fault(
        "queue_reset_refused",
        () => `queue ${index}: VIRTIO_F_RING_RESET was not negotiated`,
      );
      return false;
    }
    this.enableQueue(index, false);
    const { used } = slot;
    this.#queues.clear(slot);
    slot.used = used;
    return true;
  }

  /**
   * Takes a notification as a driver writes it (2.9): the index of a queue, or the value that the
   * device gave it with VIRTIO_F_NOTIF_CONFIG_DATA; with VIRTIO_F_NOTIFICATION_DATA also the driver's
   * position, which is checked and has no other use here. What names no queue is counted.
   */
  notify(value: number): void {
    const { queue, nextOff } = decodeNotificationData(value);
    const index = this.#has(VIRTIO_F_NOTIF_CONFIG_DATA)
      ? this.#notifConfigData.indexOf(queue)
      : queue;
    const size = this.#queues.all[index]?.setup.size;
    const withData = this.#has(VIRTIO_F_NOTIFICATION_DATA);
    if (size === undefined || (!withData && value !== queue)) {
      this.diagnostics.fault(
        "notification_unknown",
        () => `0x${value.toString(16)} names no queue`,
      );
      return;
    }
    if (withData && this.ringFormat === "packed" && nextOff >= size) {
      this.diagnostics.fault(
        "notification_position",
        () => `queue ${index} of ${size} descriptors: next_off is ${nextOff}`,
      );
    }
    this.kick(index);
  }

  /** The value for queue `index` with VIRTIO_F_NOTIF_CONFIG_DATA; its index unless told otherwise. */
  queueNotifConfigData(index: number): number {
    return this.#notifConfigData[index] ?? index;
  }

  // -- The virtqueue state facility --

  /** True where bit 40 is offered as VIRTIO_F_QUEUE_STATE. */
  get offersQueueState(): boolean {
    return this.#offersQueueState;
  }

  /** Why a driver cannot get or set the state of queue `index` now, in words; null where it can. */
  queueStateProblem(index: number, access: QueueStateAccess): string | null {
    this.#queues.at(index);
    if (!this.#offersQueueState) return "VIRTIO_F_QUEUE_STATE is not offered";
    return this.#queueState.problem(index, access);
  }

  /** Format of the rings whose states can be read; null where none can. Kept across the reset. */
  get keptRingFormat(): RingFormat | null {
    return this.#queueState.keptFormat;
  }

  /**
   * The available state of queue `index`, a le16, as it was at the last reset. Split: `last_avail_idx`.
   * Packed: the index in bits 0 to 14, the wrap counter in bit 15.
   *
   * @throws {TypeError} when {@link VirtioDevice.queueStateProblem} has something to say.
   */
  availableState(index: number): number {
    this.#needState(index, "get");
    return this.#queueState.get(index).available;
  }

  /**
   * The used state of queue `index`, a le16, as it was at the last reset. Split: 0. Packed: the index in
   * bits 0 to 14, the wrap counter in bit 15.
   *
   * @throws {TypeError} when {@link VirtioDevice.queueStateProblem} has something to say.
   */
  usedState(index: number): number {
    this.#needState(index, "get");
    return this.#queueState.get(index).used;
  }

  /**
   * Sets the available state of queue `index`; the queue checks it when it starts, at DRIVER_OK.
   *
   * @throws {TypeError} when {@link VirtioDevice.queueStateProblem} has something to say.
   * @throws {RangeError} when `word` has more than 16 bits.
   */
  setAvailableState(index: number, word: number): void {
    this.#needState(index, "set");
    this.#queueState.set(index, "available", word);
  }

  /**
   * Sets the used state of queue `index`; it means nothing for a split queue.
   *
   * @throws {TypeError} when {@link VirtioDevice.queueStateProblem} has something to say.
   * @throws {RangeError} when `word` has more than 16 bits.
   */
  setUsedState(index: number, word: number): void {
    this.#needState(index, "set");
    this.#queueState.set(index, "used", word);
  }

  #needState(index: number, access: QueueStateAccess): void {
    const problem = this.queueStateProblem(index, access);
    if (problem === null) return;
    throw new TypeError(
      `Cannot ${access} the state of queue ${index}: ${problem}`,
    );
  }

  /** Starts a queue if it is ready; a state that it cannot have been in breaks it. */
  #startReady(slot: QueueSlot): void {
    if (!slot.ready || slot.queue !== null) return;
    const { index, used, setup } = slot;
    try {
      const state = this.#queueState.negotiated
        ? this.#queueState.stateToStart(index, this.memory, setup)
        : null;
      this.startQueue(index, state);
      // After a reset of the queue alone the driver is the one from before.
      if (used) slot.fresh = false;
    } catch (error) {
      if (!(error instanceof RingError)) throw error;
      this.breakQueue(index, error);
    }
  }

  /** Stops a queue; with the facility negotiated its state is kept. */
  #stop(slot: QueueSlot): void {
    const queue = this.#queues.stop(slot);
    if (queue === null) return;
    const { index } = slot;
    if (!this.#queueState.negotiated) return;
    const problem = this.#queueState.keep(
      index,
      this.memory,
      slot.setup,
      queue.save(),
    );
    if (problem === null) return;
    this.diagnostics.fault(
      "queue_state_lost",
      () => `queue ${index}: ${problem}`,
    );
  }

  /** Carries a kick of queue `index`; one for a queue that is not in use is ignored (2.1.2). */
  kick(index: number): void {
    const slot = this.#queues.all[index];
    if (slot === undefined || !slot.given || slot.broken) return;
    this.model.queueKicked(index);
  }

  /** Carries an interrupt for queue `index` to the transport; called by the model. */
  interrupt(index: number): void {
    if ((this.#status & VIRTIO_CONFIG_S_SUSPEND) !== 0) return;
    this.#port?.interrupt(index);
  }

  /**
   * Stops the use of queue `index`, whose driver broke it, until the device is reset or the queue
   * is started again; called by the model. The driver is told by DEVICE_NEEDS_RESET.
   */
  breakQueue(index: number, error: RingError): void {
    const slot = this.#queues.at(index);
    if (slot.broken) return;
    slot.broken = true;
    this.diagnostics.fault(
      `ring_${error.code.toLowerCase()}`,
      () => `queue ${index}: ${error.message}`,
    );
    this.enableQueue(index, false);
    this.#port?.queueBroken?.(index, error);
    this.#needReset();
  }

  /**
   * Tells the driver of a change in the configuration space; called by the model. A driver that has
   * suspended the device is told when it resumes it.
   */
  notifyConfig(): void {
    this.#configDue = (this.#status & VIRTIO_CONFIG_S_SUSPEND) !== 0;
    if (this.#configDue) return;
    this.configGeneration = (this.configGeneration + 1) >>> 0;
    this.#port?.configChanged();
  }

  /**
   * Forgets the status and the accepted features, so that they are negotiated anew, and leaves the
   * model as it is. For a transport whose front-end writes status 0 whenever the machine is paused:
   * whether the driver is a new one, which voids what was agreed with the old, is then told by how
   * the queues are started.
   *
   * @throws {TypeError} when a queue is running.
   */
  renegotiate(): void {
    if (this.#queues.running) {
      throw new TypeError("Cannot renegotiate: a queue is running");
    }
    this.#status = 0;
    this.#features = 0n;
  }

  /**
   * The whole device as plain data that survives `structuredClone` and JSON: queues with the
   * buffers in flight, and what the model holds. Changes nothing; the device goes on.
   *
   * Guest memory is not in it: whoever moves the guest moves that.
   *
   * @throws {TypeError} when the model cannot be saved.
   */
  save(): DeviceSnapshot {
    const model = this.model;
    if (model.save === undefined) {
      throw new TypeError(
        `Cannot save device ${model.deviceId}: its model has no snapshots`,
      );
    }
    return sealSnapshot({
      deviceId: model.deviceId,
      features: `0x${this.#features.toString(16)}`,
      status: this.#status,
      configGeneration: this.configGeneration,
      configDue: this.#configDue,
      queues: this.#queues.save(),
      queueState: this.#queueState.save(),
      modelKept: this.#modelKept,
      model: model.save() as Plain,
    });
  }

  /**
   * Goes on from a snapshot, which another instance may have saved, over guest memory with the
   * same contents at the same addresses ({@link VirtioDevice.setMemory} comes first). Queues look
   * for work without a kick, and the driver has one interrupt for each, as the last may be lost.
   *
   * @throws {SnapshotError} when it is no snapshot that this device can go on from: of another
   * version, cut, edited, or of a device that differs. The device is as it was.
   * @throws {TypeError} when the device is not in its state after reset.
   */
  restore(snapshot: unknown): void {
    if (this.#status !== 0 || this.#queues.running) {
      throw new TypeError(
        "Cannot restore: the device is not in its state after reset",
      );
    }
    const model = this.model;
    const content = openSnapshot(snapshot, model.deviceId, this.queueCount);
    // Until FEATURES_OK the driver writes them word by word, and nobody has judged them.
    const negotiated = (content.status & VIRTIO_CONFIG_S_FEATURES_OK) !== 0 ||
      content.queues.some(({ state }) => state !== null);
    const problem = negotiated ? this.featureProblem(content.features) : null;
    if (problem !== null) throw new SnapshotError("MISMATCH", problem);
    if (model.prepareRestore === undefined) {
      throw new SnapshotError("MISMATCH", "this device has no snapshots");
    }
    const keepStates = this.#queueState.prepareRestore(
      content.queueState,
      negotiated && this.#offersQueueState &&
        (content.features & featureMask(VIRTIO_F_QUEUE_STATE)) !== 0n,
    );
    const goOn = model.prepareRestore(content.model);

    this.#features = content.features;
    try {
      for (const [index, { setup, state }] of content.queues.entries()) {
        this.setupQueue(index, setup);
        if (state !== null) this.startQueue(index, state);
      }
    } catch (error) {
      for (const slot of this.#queues.all) this.#queues.clear(slot);
      this.#features = 0n;
      if (!(error instanceof RingError)) throw error;
      throw new SnapshotError("MISMATCH", error.message);
    }
    this.#status = content.status;
    this.configGeneration = content.configGeneration;
    this.#configDue = content.configDue;
    this.#modelKept = content.modelKept;
    if (negotiated) model.featuresAccepted(content.features);
    keepStates();
    goOn();
    for (const [index, saved] of content.queues.entries()) {
      const { enabled, broken, ready, used } = saved;
      const slot = this.#queues.at(index);
      slot.broken = broken;
      slot.ready = ready;
      slot.used = used;
      slot.suspended = slot.queue !== null && !enabled &&
        (this.#status & VIRTIO_CONFIG_S_SUSPEND) !== 0;
      this.enableQueue(index, enabled);
      this.kick(index);
    }
  }

  /**
   * Resets the device: no queue runs, no feature is accepted, the status is 0 (2.4).
   *
   * Where VIRTIO_F_QUEUE_STATE was negotiated, the states of the queues are kept for the driver to read,
   * and the model is not told, as the queues may be restored. It hears of a driver that starts anew by
   * `queueStarted` with `fresh`, or by `reset` where that driver does without the facility.
   */
  reset(): void {
    for (const { index } of this.#queues.all) this.enableQueue(index, false);
    for (const slot of this.#queues.all) {
      this.#stop(slot);
      this.#queues.clear(slot);
    }
    if (this.#queueState.negotiated) this.#modelKept = true;
    this.#queueState.reset();
    this.#status = 0;
    this.#features = 0n;
    this.#configDue = false;
    if (!this.#modelKept) this.model.reset();
  }

  #terms(): RingTerms {
    return {
      format: this.ringFormat,
      eventIdx: this.#has(VIRTIO_F_EVENT_IDX),
      indirect: this.#has(VIRTIO_F_INDIRECT_DESC),
      inOrder: this.#has(VIRTIO_F_IN_ORDER),
      strongOrdering: this.#strongOrdering,
    };
  }

  #has(bit: number): boolean {
    return (this.#features & featureMask(bit)) !== 0n;
  }
}
