import { RingError } from "../ring/errors.ts";
import {
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_RING_PACKED,
} from "../ring/virtio_ring.ts";
import type { EmulatorOptions } from "./emulator.ts";
import { LoggedQueue } from "./logged_queue.ts";
import { FieldReader, SnapshotError } from "./snapshot.ts";
import {
  featureMask,
  VIRTIO_CONFIG_S_FEATURES_OK,
  VIRTIO_CONFIG_S_SUSPEND,
  type VirtioDevice,
} from "./virtio_device.ts";

/** Words of feature bits: 0 to 127 are defined (virtio 1.4, 2.2). */
const FEATURE_WORDS = 4;
/** Low and high halves of the addresses of three areas. */
const AREA_WORDS = 6;
const TWO_32 = 0x100000000;
/** What a state that cannot be told reads as. */
const NO_STATE = 0xffffffff;

/** Interrupt status: the device has used buffers. */
export const INTERRUPT_QUEUE = 1;
/** Interrupt status: the configuration, or the status, has changed. */
export const INTERRUPT_CONFIG = 2;

type QueueWords = {
  size: number;
  /** Low and high halves of the descriptor, driver and device areas, as the driver wrote them. */
  areas: Uint32Array;
};

/** What the registers of a transport hold, as plain data. */
export type RegisterSnapshot = {
  /** Which 32 offered features are read. */
  deviceFeatureSelect: number;
  /** Which 32 accepted features are written. */
  driverFeatureSelect: number;
  /** Which queue the registers of queues are about. */
  queueSelect: number;
  /** Accepted features as they were written, in words. */
  driverFeatures: number[];
  /** A feature was accepted beyond bit 127. */
  unknownFeatures: boolean;
  /** As the driver configured them; six halves of addresses each. */
  queues: { size: number; areas: number[] }[];
  /** Why the interrupt line is up, or would be: 1 used buffers, 2 configuration. */
  interruptStatus: number;
};

/**
 * What all register transports have in common: everything but where a register lies and how it is
 * accessed. Guest memory, feature words, the selected queue's words, the status, the interrupt status
 * and its line, the configuration space, the virtqueue state facility.
 *
 * Nothing that a guest does throws; `name` is the first part of the counters' names.
 */
export class Registers {
  /** The device behind them. */
  readonly virtio: VirtioDevice;
  /** Which 32 offered features are read. */
  deviceFeatureSelect = 0;
  /** Which 32 accepted features are written. */
  driverFeatureSelect = 0;
  /** Which queue the registers of queues are about; any number. */
  queueSelect = 0;

  readonly #name: string;
  readonly #emulator: EmulatorOptions;
  readonly #queues: QueueWords[];
  readonly #driverFeatures: Uint32Array = new Uint32Array(FEATURE_WORDS);
  // A feature was accepted beyond those that exist.
  #unknownFeatures = false;
  #interruptStatus = 0;
  #lineOpen = true;
  #level = false;

  /** Makes the registers after reset; nothing is plugged in yet. */
  constructor(name: string, virtio: VirtioDevice, emulator: EmulatorOptions) {
    this.#name = name;
    this.virtio = virtio;
    this.#emulator = emulator;
    this.#queues = virtio.model.maxQueueSizes.map((size) => ({
      size,
      areas: new Uint32Array(AREA_WORDS),
    }));
    const { written } = emulator;
    if (written !== undefined) this.#tellWrites(written);
  }

  #tellWrites(written: (address: number, length: number) => void): void {
    const { virtio } = this;
    const log = {
      mark(address: number, length: number): void {
        if (length !== 0) written(address, length);
      },
    };
    virtio.wrapQueues((index, queue) => {
      const { descriptorArea, deviceArea } = virtio.queueSetup(index);
      return new LoggedQueue(queue, log, {
        descriptorArea,
        eventIdx: (virtio.features & featureMask(VIRTIO_F_EVENT_IDX)) !== 0n,
        logAddress: deviceArea,
      });
    });
  }

  /**
   * Lets the device go on over the guest's memory as it is now.
   *
   * @throws {TypeError} when a buffer of it is detached, which is the emulator's mistake.
   */
  syncMemory(): void {
    const memory = this.#emulator.memory();
    const { regions } = memory;
    for (let i = 0; i < regions.length; i++) {
      const region = regions[i]!;
      if (region.bytes.length !== region.size) {
        throw new TypeError(
          "Cannot reach guest memory: its buffer is detached, and nobody gave another",
        );
      }
    }
    if (memory === this.virtio.memory) return;
    try {
      this.virtio.setMemory(memory);
    } catch (error) {
      // A queue that is not inside the memory any more: it is broken, and that is counted.
      if (!(error instanceof RingError)) throw error;
    }
  }

  /** Resets the device and all that its driver has written. */
  reset(): void {
    this.virtio.setStatus(0);
    for (let index = 0; index < this.#queues.length; index++) {
      this.#forget(index);
    }
    this.#driverFeatures.fill(0);
    this.#unknownFeatures = false;
    this.deviceFeatureSelect = 0;
    this.driverFeatureSelect = 0;
    this.queueSelect = 0;
    this.clearInterrupt(0xffffffff);
  }

  /** Takes a status as the driver writes it, but 0, which resets. */
  writeStatus(status: number): void {
    if (status <= 0xff) this.virtio.setStatus(status);
    else this.refused("status", `0x${status.toString(16)} is no status`);
  }

  // -- Features --

  /** The selected 32 offered features. */
  get deviceFeatures(): number {
    const word = this.deviceFeatureSelect;
    if (word >= FEATURE_WORDS) return 0;
    const { offeredFeatures } = this.virtio;
    return Number(offeredFeatures >> BigInt(32 * word) & 0xffffffffn);
  }

  /** The selected 32 accepted features, as they were written. */
  get driverFeatures(): number {
    return this.#driverFeatures[this.driverFeatureSelect] ?? 0;
  }

  /** Takes the selected 32 accepted features. */
  writeDriverFeatures(word: number): void {
    const { virtio } = this;
    if ((virtio.status & VIRTIO_CONFIG_S_FEATURES_OK) !== 0) {
      this.refused("features", "FEATURES_OK is set");
      return;
    }
    const select = this.driverFeatureSelect;
    if (select < FEATURE_WORDS) this.#driverFeatures[select] = word;
    else if (word !== 0) this.#unknownFeatures = true;
    let features = this.#unknownFeatures ? 1n << 128n : 0n;
    for (const [i, part] of this.#driverFeatures.entries()) {
      features |= BigInt(part) << BigInt(32 * i);
    }
    virtio.setFeatures(features);
  }

  // -- The selected queue --

  /** True where the device has the selected queue. */
  get queueExists(): boolean {
    return this.queueSelect < this.#queues.length;
  }

  /** Most descriptors of the selected queue, 0 where there is none. */
  get maxQueueSize(): number {
    return this.virtio.model.maxQueueSizes[this.queueSelect] ?? 0;
  }

  /** Descriptors of the selected queue as they are configured, 0 where there is none. */
  get queueSize(): number {
    return this.#queues[this.queueSelect]?.size ?? 0;
  }

  /** True while the selected queue is ready. */
  get queueReady(): boolean {
    return this.queueExists && this.virtio.queueReady(this.queueSelect);
  }

  /** Half of an address of the selected queue, as it was written; 0 where there is none. */
  area(half: number): number {
    return this.#queues[this.queueSelect]?.areas[half] ?? 0;
  }

  /** Tells that the device has the selected queue; counts where it has not. */
  needQueue(): boolean {
    if (this.queueExists) return true;
    this.refused("queue", `the device has no queue ${this.queueSelect}`);
    return false;
  }

  #queueOpen(): boolean {
    if (!this.needQueue()) return false;
    const index = this.queueSelect;
    if (this.virtio.queueReady(index)) {
      this.refused("queue", `queue ${index} is ready, so it is frozen`);
      return false;
    }
    return true;
  }

  /** Takes the size of the selected queue. */
  writeQueueSize(size: number, powerOfTwo: boolean): void {
    if (!this.#queueOpen()) return;
    const index = this.queueSelect;
    if (
      size < 1 || size > this.maxQueueSize ||
      (powerOfTwo && (size & (size - 1)) !== 0)
    ) {
      this.refused("queue", `queue ${index} cannot have ${size} descriptors`);
      return;
    }
    this.#queues[index]!.size = size;
  }

  /** True once packed rings were accepted, whose sizes need not be powers of two. */
  get packed(): boolean {
    return (this.virtio.features & featureMask(VIRTIO_F_RING_PACKED)) !== 0n;
  }

  /** Takes half of an address of the selected queue. */
  writeArea(half: number, word: number): void {
    if (!this.#queueOpen()) return;
    this.#queues[this.queueSelect]!.areas[half] = word;
  }

  /** Makes the selected queue, which exists, ready, or takes it back. */
  writeReady(ready: boolean): void {
    const { virtio } = this;
    const index = this.queueSelect;
    if (ready && !virtio.queueReady(index)) {
      // One that was restored from a transport without such a register.
      if (virtio.queueRunning(index)) {
        this.refused("queue", `queue ${index} is running`);
        return;
      }
      const { size, areas } = this.#queues[index]!;
      virtio.setupQueue(index, {
        size,
        descriptorArea: areas[1]! * TWO_32 + areas[0]!,
        driverArea: areas[3]! * TWO_32 + areas[2]!,
        deviceArea: areas[5]! * TWO_32 + areas[4]!,
      });
    }
    virtio.setQueueReady(index, ready);
  }

  /** Resets the selected queue, which exists, alone; false where that is refused. */
  resetQueue(): boolean {
    const index = this.queueSelect;
    if (!this.virtio.resetQueue(index)) return false;
    this.#forget(index);
    return true;
  }

  #forget(index: number): void {
    const queue = this.#queues[index]!;
    queue.size = this.virtio.model.maxQueueSizes[index]!;
    queue.areas.fill(0);
  }

  // -- The virtqueue state facility --

  /** One word of the selected queue's state; 0xffffffff where none can be told. */
  readState(which: "available" | "used"): number {
    const index = this.queueSelect;
    const problem = this.#stateProblem("get");
    if (problem !== null) {
      this.refused("state", `queue ${index}: ${problem}`);
      return NO_STATE;
    }
    return which === "available"
      ? this.virtio.availableState(index)
      : this.virtio.usedState(index);
  }

  /** Takes one word of the selected queue's state. */
  writeState(which: "available" | "used", word: number): void {
    const index = this.queueSelect;
    const problem = word > 0xffff
      ? `0x${word.toString(16)} has more than 16 bits`
      : this.#stateProblem("set");
    if (problem !== null) {
      this.refused("state", `queue ${index}: ${problem}`);
    } else if (which === "available") {
      this.virtio.setAvailableState(index, word);
    } else {
      this.virtio.setUsedState(index, word);
    }
  }

  #stateProblem(access: "get" | "set"): string | null {
    if (!this.queueExists) return "the device has no such queue";
    return this.virtio.queueStateProblem(this.queueSelect, access);
  }

  // -- Configuration space of the device --

  /** Reads `width` bytes at `at`; -1 where they do not lie inside. */
  readConfig(at: number, width: number): number {
    const config = this.virtio.model.configSpace();
    if (!liesInside(at, width, config.length)) return -1;
    let value = 0;
    for (let i = width - 1; i >= 0; i--) value = value * 256 + config[at + i]!;
    return value;
  }

  /** Writes `width` bytes at `at`; false where the device does not take them. */
  writeConfig(at: number, width: number, value: number): boolean {
    const { model, status } = this.virtio;
    if (
      model.writeConfig === undefined ||
      !liesInside(at, width, model.configSpace().length) ||
      (status & VIRTIO_CONFIG_S_SUSPEND) !== 0
    ) {
      return false;
    }
    model.writeConfig(
      at,
      Uint8Array.from({ length: width }, (_, i) => value >>> (8 * i)),
    );
    return true;
  }

  // -- Interrupts --

  /** Why the line is up, or would be: {@link INTERRUPT_QUEUE} and {@link INTERRUPT_CONFIG}. */
  get interruptStatus(): number {
    return this.#interruptStatus;
  }

  /** Level of the interrupt line. */
  get interruptLevel(): boolean {
    return this.#level;
  }

  /** Sets bits of the interrupt status. */
  raiseInterrupt(bits: number): void {
    this.#interruptStatus |= bits;
    this.#updateLine();
  }

  /** Clears bits of the interrupt status. */
  clearInterrupt(bits: number): void {
    this.#interruptStatus &= ~bits;
    this.#updateLine();
  }

  /** Lets the interrupt status through to the line, or keeps the line down. */
  openLine(open: boolean): void {
    this.#lineOpen = open;
    this.#updateLine();
  }

  #updateLine(): void {
    const level = this.#lineOpen && this.#interruptStatus !== 0;
    if (level === this.#level) return;
    this.#level = level;
    this.#emulator.interrupt(level);
  }

  // -- What a driver must not do --

  /** Counts a value that is not taken. */
  refused(what: string, why: string): void {
    this.virtio.diagnostics.fault(`${this.#name}_${what}_refused`, () => why);
  }

  /** Counts an access that is no access to a register; returns what it reads as. */
  ignored(
    access: "read" | "write" | "config_read" | "config_write",
    offset: number,
    width: number,
  ): number {
    this.virtio.diagnostics.fault(
      `${this.#name}_bad_${access}`,
      () => `${width} bytes at offset 0x${offset.toString(16)}`,
    );
    return 0;
  }

  // -- Snapshots --

  /** All that they hold. */
  save(): RegisterSnapshot {
    return {
      deviceFeatureSelect: this.deviceFeatureSelect,
      driverFeatureSelect: this.driverFeatureSelect,
      queueSelect: this.queueSelect,
      driverFeatures: [...this.#driverFeatures],
      unknownFeatures: this.#unknownFeatures,
      queues: this.#queues.map(({ size, areas }) => ({
        size,
        areas: [...areas],
      })),
      interruptStatus: this.#interruptStatus,
    };
  }

  /**
   * Checks what `save` returned for another instance, and returns what goes on from it. The interrupt line
   * is driven again, up or down, as the emulator may have another idea of it.
   *
   * @throws {SnapshotError} `CONTENT` or `MISMATCH`.
   */
  prepareRestore(saved: unknown): () => void {
    const { maxQueueSizes } = this.virtio.model;
    const fields = new FieldReader(saved, "registers");
    const selects = {
      deviceFeatureSelect: fields.u32("deviceFeatureSelect"),
      driverFeatureSelect: fields.u32("driverFeatureSelect"),
      queueSelect: fields.u32("queueSelect"),
    };
    const features = fields.integers(
      "driverFeatures",
      FEATURE_WORDS,
      0xffffffff,
    );
    const unknownFeatures = fields.boolean("unknownFeatures");
    const status = fields.integer(
      "interruptStatus",
      0,
      INTERRUPT_QUEUE | INTERRUPT_CONFIG,
    );
    const queues = fields.array("queues", 65_536);
    if (queues.length !== maxQueueSizes.length) {
      throw new SnapshotError(
        "MISMATCH",
        `it has registers of ${queues.length} queues, this device ${maxQueueSizes.length}`,
      );
    }
    const checked = queues.map((queue, index) => {
      const words = new FieldReader(queue, `registers.queues[${index}]`);
      return {
        size: words.integer("size", 1, maxQueueSizes[index]!),
        areas: words.integers("areas", AREA_WORDS, 0xffffffff),
      };
    });
    return () => {
      Object.assign(this, selects);
      this.#driverFeatures.set(features);
      this.#unknownFeatures = unknownFeatures;
      for (const [index, { size, areas }] of checked.entries()) {
        const queue = this.#queues[index]!;
        queue.size = size;
        queue.areas.set(areas);
      }
      this.#interruptStatus = status;
      this.#level = this.#lineOpen && status !== 0;
      this.#emulator.interrupt(this.#level);
    };
  }

  /**
   * Makes sure that a snapshot can be restored, and takes guest memory as it is now.
   *
   * @throws {TypeError} when the device is not in its state after reset.
   */
  needReset(): void {
    if (this.virtio.status !== 0) {
      throw new TypeError(
        "Cannot restore: the device is not in its state after reset",
      );
    }
    this.syncMemory();
  }
}

/** True for a naturally wide access inside `length` bytes. */
export function liesInside(at: number, width: number, length: number): boolean {
  return (width === 1 || width === 2 || width === 4) && Number.isInteger(at) &&
    at >= 0 && at + width <= length;
}
