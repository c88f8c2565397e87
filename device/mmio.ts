import { RingError } from "../ring/errors.ts";
import type { GuestMemory } from "../ring/memory.ts";
import { VIRTIO_F_NOTIF_CONFIG_DATA } from "../ring/virtio_ring.ts";
import { refuseFeatures } from "./transport_features.ts";
import {
  VIRTIO_CONFIG_S_FEATURES_OK,
  VIRTIO_CONFIG_S_SUSPEND,
  type VirtioDevice,
} from "./virtio_device.ts";
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
const TWO_32 = 0x100000000;
/** Words of feature bits: 0 to 127 are defined (virtio 1.4, 2.2). */
const FEATURE_WORDS = 4;

/** What an {@link MmioTransport} needs of an emulator. */
export type MmioOptions = {
  /**
   * Guest memory as it is now; asked at each access to a register. Another object than the time before
   * means that the memory has moved, been grown or been replaced. The emulator makes one object for as
   * long as the buffers behind it stay what they are.
   */
  memory: () => GuestMemory;
  /** Drives the interrupt line; called when the level changes. */
  interrupt: (level: boolean) => void;
  /** What the VendorID register reads as, a u32. */
  vendorId?: number;
};

type Words = {
  size: number;
  /** Low and high halves of the descriptor, driver and device areas, as the driver wrote them. */
  areas: Uint32Array;
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

  readonly #memory: () => GuestMemory;
  readonly #setLine: (level: boolean) => void;
  readonly #vendorId: number;
  readonly #queues: Words[];
  readonly #driverFeatures: Uint32Array = new Uint32Array(FEATURE_WORDS);
  // A feature was accepted beyond those that exist.
  #unknownFeatures = false;
  #deviceFeaturesSel = 0;
  #driverFeaturesSel = 0;
  #queueSel = 0;
  #interruptStatus = 0;

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
    this.#memory = options.memory;
    this.#setLine = options.interrupt;
    this.#vendorId = (options.vendorId ?? VENDOR_ID) >>> 0;
    this.#queues = Array.from({ length: virtio.queueCount }, (_, index) => ({
      size: virtio.model.maxQueueSizes[index]!,
      areas: new Uint32Array(6),
    }));
    virtio.connect({
      interrupt: () => this.#raise(VIRTIO_MMIO_INT_VRING),
      configChanged: () => this.#raise(VIRTIO_MMIO_INT_CONFIG),
    });
  }

  /** Level of the interrupt line. */
  get interruptLevel(): boolean {
    return this.#interruptStatus !== 0;
  }

  /**
   * Lets the device go on over the guest's memory as it is now; to be called before the model works by
   * itself, when the memory may have moved since the last access to a register.
   */
  syncMemory(): void {
    const memory = this.#memory();
    if (memory === this.virtio.memory) return;
    try {
      this.virtio.setMemory(memory);
    } catch (error) {
      // A queue that is not inside the memory any more: it is broken, and that is counted.
      if (!(error instanceof RingError)) throw error;
    }
  }

  /** Resets the device as the machine's own reset does; the same as a Status of 0. */
  reset(): void {
    this.virtio.setStatus(0);
    for (const [index, queue] of this.#queues.entries()) {
      this.#forget(queue, index);
    }
    this.#driverFeatures.fill(0);
    this.#unknownFeatures = false;
    this.#deviceFeaturesSel = 0;
    this.#driverFeaturesSel = 0;
    this.#queueSel = 0;
    this.#acknowledge(ALL_ONES);
  }

  /**
   * Reads `width` bytes, 1, 2 or 4, at `offset` from the device's base; little-endian, unsigned.
   *
   * Registers are read in aligned words, the configuration space in any way inside it (4.2.2.2).
   */
  read(offset: number, width: number): number {
    this.syncMemory();
    if (offset >= VIRTIO_MMIO_CONFIG) return this.#readConfig(offset, width);
    if (width !== 4) return this.#ignored("read", offset, width);
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
      case VIRTIO_MMIO_DEVICE_FEATURES: {
        const word = this.#deviceFeaturesSel;
        return word >= FEATURE_WORDS ? 0 : Number(
          virtio.offeredFeatures >> BigInt(32 * word) & 0xffffffffn,
        );
      }
      case VIRTIO_MMIO_QUEUE_NUM_MAX:
        return virtio.model.maxQueueSizes[this.#queueSel] ?? 0;
      case VIRTIO_MMIO_QUEUE_READY:
        return this.#selected !== null && virtio.queueReady(this.#queueSel)
          ? 1
          : 0;
      case VIRTIO_MMIO_INTERRUPT_STATUS:
        return this.#interruptStatus;
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
      case VIRTIO_MMIO_QUEUE_USED_STATE:
        return this.#readState(offset);
      case VIRTIO_MMIO_CONFIG_GENERATION:
        return virtio.configGeneration;
      default:
        return this.#ignored("read", offset, width);
    }
  }

  /**
   * Writes `width` bytes, 1, 2 or 4, of `value` at `offset` from the device's base; little-endian.
   *
   * Registers are written in aligned words, the configuration space in any way inside it (4.2.2.2).
   */
  write(offset: number, width: number, value: number): void {
    this.syncMemory();
    if (offset >= VIRTIO_MMIO_CONFIG) {
      this.#writeConfig(offset, width, value);
      return;
    }
    if (width !== 4) {
      this.#ignored("write", offset, width);
      return;
    }
    const word = value >>> 0;
    const { virtio } = this;
    switch (offset) {
      case VIRTIO_MMIO_DEVICE_FEATURES_SEL:
        this.#deviceFeaturesSel = word;
        return;
      case VIRTIO_MMIO_DRIVER_FEATURES_SEL:
        this.#driverFeaturesSel = word;
        return;
      case VIRTIO_MMIO_DRIVER_FEATURES:
        this.#writeFeatures(word);
        return;
      case VIRTIO_MMIO_QUEUE_SEL:
        this.#queueSel = word;
        return;
      case VIRTIO_MMIO_QUEUE_NOTIFY:
        virtio.notify(word);
        return;
      case VIRTIO_MMIO_INTERRUPT_ACK:
        this.#acknowledge(word);
        return;
      case VIRTIO_MMIO_STATUS:
        if (word === 0) this.reset();
        else if (word <= 0xff) virtio.setStatus(word);
        else this.#refused("status", `0x${word.toString(16)} is no status`);
        return;
      case VIRTIO_MMIO_SHM_SEL:
        // Whatever is selected does not exist.
        return;
      case VIRTIO_MMIO_QUEUE_NUM:
      case VIRTIO_MMIO_QUEUE_READY:
      case VIRTIO_MMIO_QUEUE_DESC_LOW:
      case VIRTIO_MMIO_QUEUE_DESC_HIGH:
      case VIRTIO_MMIO_QUEUE_AVAIL_LOW:
      case VIRTIO_MMIO_QUEUE_AVAIL_HIGH:
      case VIRTIO_MMIO_QUEUE_USED_LOW:
      case VIRTIO_MMIO_QUEUE_USED_HIGH:
      case VIRTIO_MMIO_QUEUE_RESET:
        this.#writeQueue(offset, word);
        return;
      case VIRTIO_MMIO_QUEUE_AVAIL_STATE:
      case VIRTIO_MMIO_QUEUE_USED_STATE:
        this.#writeState(offset, word);
        return;
      default:
        this.#ignored("write", offset, width);
    }
  }

  get #selected(): Words | null {
    return this.#queues[this.#queueSel] ?? null;
  }

  #writeFeatures(word: number): void {
    const { virtio } = this;
    if ((virtio.status & VIRTIO_CONFIG_S_FEATURES_OK) !== 0) {
      this.#refused("features", "FEATURES_OK is set");
      return;
    }
    const sel = this.#driverFeaturesSel;
    if (sel < FEATURE_WORDS) this.#driverFeatures[sel] = word;
    else if (word !== 0) this.#unknownFeatures = true;
    let features = this.#unknownFeatures ? 1n << 128n : 0n;
    for (const [i, part] of this.#driverFeatures.entries()) {
      features |= BigInt(part) << BigInt(32 * i);
    }
    virtio.setFeatures(features);
  }

  #writeQueue(offset: number, word: number): void {
    const index = this.#queueSel;
    const queue = this.#selected;
    const { virtio } = this;
    if (queue === null) {
      this.#refused("queue", `the device has no queue ${index}`);
      return;
    }
    if (offset === VIRTIO_MMIO_QUEUE_READY) {
      this.#writeReady(queue, index, word);
      return;
    }
    if (offset === VIRTIO_MMIO_QUEUE_RESET) {
      if (word === 1 && virtio.resetQueue(index)) this.#forget(queue, index);
      else if (word !== 1) this.#refused("queue", `QueueReset takes 1`);
      return;
    }
    if (virtio.queueReady(index)) {
      this.#refused("queue", `queue ${index} is ready, so it is frozen`);
      return;
    }
    switch (offset) {
      case VIRTIO_MMIO_QUEUE_NUM:
        if (word >= 1 && word <= virtio.model.maxQueueSizes[index]!) {
          queue.size = word;
        } else {
          this.#refused(
            "queue",
            `queue ${index} cannot have ${word} descriptors`,
          );
        }
        return;
      case VIRTIO_MMIO_QUEUE_DESC_LOW:
        queue.areas[0] = word;
        return;
      case VIRTIO_MMIO_QUEUE_DESC_HIGH:
        queue.areas[1] = word;
        return;
      case VIRTIO_MMIO_QUEUE_AVAIL_LOW:
        queue.areas[2] = word;
        return;
      case VIRTIO_MMIO_QUEUE_AVAIL_HIGH:
        queue.areas[3] = word;
        return;
      case VIRTIO_MMIO_QUEUE_USED_LOW:
        queue.areas[4] = word;
        return;
      default:
        queue.areas[5] = word;
    }
  }

  #writeReady(queue: Words, index: number, word: number): void {
    const { virtio } = this;
    if (word > 1) {
      this.#refused("queue", "QueueReady takes 0 and 1");
      return;
    }
    if (word === 1 && !virtio.queueReady(index)) {
      const { size, areas } = queue;
      virtio.setupQueue(index, {
        size,
        descriptorArea: areas[1]! * TWO_32 + areas[0]!,
        driverArea: areas[3]! * TWO_32 + areas[2]!,
        deviceArea: areas[5]! * TWO_32 + areas[4]!,
      });
    }
    virtio.setQueueReady(index, word === 1);
  }

  #forget(queue: Words, index: number): void {
    queue.size = this.virtio.model.maxQueueSizes[index]!;
    queue.areas.fill(0);
  }

  #readState(offset: number): number {
    const index = this.#queueSel;
    const problem = this.#stateProblem(index, "get");
    if (problem !== null) {
      this.#refused("state", `queue ${index}: ${problem}`);
      return ALL_ONES;
    }
    return offset === VIRTIO_MMIO_QUEUE_AVAIL_STATE
      ? this.virtio.availableState(index)
      : this.virtio.usedState(index);
  }

  #writeState(offset: number, word: number): void {
    const index = this.#queueSel;
    const problem = word > 0xffff
      ? `0x${word.toString(16)} has more than 16 bits`
      : this.#stateProblem(index, "set");
    if (problem !== null) {
      this.#refused("state", `queue ${index}: ${problem}`);
    } else if (offset === VIRTIO_MMIO_QUEUE_AVAIL_STATE) {
      this.virtio.setAvailableState(index, word);
    } else {
      this.virtio.setUsedState(index, word);
    }
  }

  #stateProblem(index: number, access: "get" | "set"): string | null {
    if (this.#selected === null) return "the device has no such queue";
    return this.virtio.queueStateProblem(index, access);
  }

  #readConfig(offset: number, width: number): number {
    const at = offset - VIRTIO_MMIO_CONFIG;
    const config = this.virtio.model.configSpace();
    if (!liesInside(at, width, config.length)) {
      return this.#ignored("read", offset, width);
    }
    let value = 0;
    for (let i = width - 1; i >= 0; i--) value = value * 256 + config[at + i]!;
    return value;
  }

  #writeConfig(offset: number, width: number, value: number): void {
    const at = offset - VIRTIO_MMIO_CONFIG;
    const { model, status } = this.virtio;
    if (
      model.writeConfig === undefined ||
      !liesInside(at, width, model.configSpace().length) ||
      (status & VIRTIO_CONFIG_S_SUSPEND) !== 0
    ) {
      this.#ignored("write", offset, width);
      return;
    }
    const bytes = Uint8Array.from(
      { length: width },
      (_, i) => value >>> (8 * i),
    );
    model.writeConfig(at, bytes);
  }

  #raise(bit: number): void {
    const before = this.#interruptStatus;
    this.#interruptStatus = before | bit;
    if (before === 0) this.#setLine(true);
  }

  #acknowledge(bits: number): void {
    const before = this.#interruptStatus;
    this.#interruptStatus = before & ~bits;
    if (before !== 0 && this.#interruptStatus === 0) this.#setLine(false);
  }

  #refused(what: string, why: string): void {
    this.virtio.diagnostics.fault(`mmio_${what}_refused`, () => why);
  }

  #ignored(access: "read" | "write", offset: number, width: number): number {
    this.virtio.diagnostics.fault(
      `mmio_bad_${access}`,
      () => `${width} bytes at offset 0x${offset.toString(16)}`,
    );
    return 0;
  }
}

function liesInside(at: number, width: number, length: number): boolean {
  return (width === 1 || width === 2 || width === 4) && Number.isInteger(at) &&
    at + width <= length;
}
