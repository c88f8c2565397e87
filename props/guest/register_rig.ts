import type { EmulatorOptions } from "../../device/emulator.ts";
import {
  type DeviceModel,
  VirtioDevice,
  type VirtioDeviceOptions,
} from "../../device/virtio_device.ts";
import { Chain } from "../../ring/chain.ts";
import { RingError } from "../../ring/errors.ts";
import { GuestMemory } from "../../ring/memory.ts";
import {
  BufferList,
  type DeviceQueue,
  type DriverQueue,
  type RingFormat,
} from "../../ring/queue.ts";
import type { QueueStateWords } from "../../ring/state.ts";
import {
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
} from "../../ring/virtio_ring.ts";
import { layOutQueue, makeDriverQueue } from "./driver_queue.ts";
import { MemoryArena } from "./memory_arena.ts";
import {
  featureBits,
  type QueueAreas,
  type RegisterDriver,
} from "./register_driver.ts";

/**
 * A device for tests of transports: it answers each buffer by its readable bytes, inverted, at once or
 * when it is told to.
 */
export class EchoDevice implements DeviceModel {
  /** No type that the specification knows. */
  readonly deviceId = 63;
  /** None of its own. */
  readonly features = 0n;
  /** Largest sizes of its queues. */
  readonly maxQueueSizes: readonly number[];
  /** Fetched buffers wait for {@link EchoDevice.finish}. */
  hold = false;
  /** Buffers that are held stay in flight when their queue stops, against the contract of a model. */
  clings = false;
  /** Buffers that are held, as fetched. */
  readonly held: { index: number; token: number; answer: Uint8Array }[] = [];
  /** What happened, in words. */
  readonly events: string[] = [];
  /** The configuration space. */
  readonly config: Uint8Array = new Uint8Array(12).map((_, i) => 0xa0 + i);

  readonly #queues: (DeviceQueue | null)[];
  #virtio: VirtioDevice | null = null;
  #chain: Chain = new Chain(new GuestMemory([]));

  /** Makes a device with queues of these sizes at most. */
  constructor(maxQueueSizes: readonly number[]) {
    this.maxQueueSizes = maxQueueSizes;
    this.#queues = maxQueueSizes.map(() => null);
  }

  /** Gives it its virtio side. */
  attach(virtio: VirtioDevice): void {
    this.#virtio = virtio;
  }

  /** Answers what is there. */
  process(): void {
    for (const [index, queue] of this.#queues.entries()) {
      if (queue === null) continue;
      try {
        this.#processQueue(index, queue);
      } catch (error) {
        if (!(error instanceof RingError)) throw error;
        this.#virtio!.breakQueue(index, error);
      }
    }
  }

  #processQueue(index: number, queue: DeviceQueue): void {
    const chain = this.#chain;
    do {
      while (queue.pop(chain)) {
        const answer = new Uint8Array(64);
        const length = chain.read(answer);
        const held = {
          index,
          token: chain.token,
          answer: answer.subarray(0, length).map((byte) => byte ^ 0xff),
        };
        if (this.hold) this.held.push(held);
        else queue.push(held.token, chain.write(held.answer));
      }
      queue.publish();
      if (queue.needsInterrupt()) this.#virtio!.interrupt(index);
    } while (queue.armKicks());
  }

  /** Uses the buffer at `at` among the held ones, without an answer. */
  finish(at: number): void {
    const { index, token } = this.held.splice(at, 1)[0]!;
    const queue = this.#queues[index]!;
    queue.push(token, 0);
    queue.publish();
    if (queue.needsInterrupt()) this.#virtio!.interrupt(index);
  }

  /** Twelve bytes. */
  configSpace(): Uint8Array {
    return this.config;
  }

  /** Takes whatever is written. */
  writeConfig(offset: number, bytes: Uint8Array): void {
    this.config.set(bytes, offset);
    this.events.push(`config ${offset}: ${bytes}`);
  }

  /** Nothing depends on them. */
  featuresAccepted(): void {}

  /** Takes the queue. */
  queueStarted(index: number, queue: DeviceQueue, fresh: boolean): void {
    this.#queues[index] = queue;
    this.events.push(`start ${index}${fresh ? " fresh" : ""}`);
  }

  /** Gives back what it holds of the queue. */
  queueStopped(index: number): void {
    const queue = this.#queues[index]!;
    for (let i = this.held.length - 1; i >= 0; i--) {
      if (this.held[i]!.index !== index) continue;
      const { token } = this.held.splice(i, 1)[0]!;
      if (!this.clings) queue.unpop(token);
    }
    this.#queues[index] = null;
    this.events.push(`stop ${index}`);
  }

  /** Gives back what it holds. */
  memoryChanging(): void {
    for (const { index, token } of this.held.splice(0).reverse()) {
      this.#queues[index]!.unpop(token);
    }
    this.events.push("memory");
  }

  /** Goes on over `memory`. */
  memoryChanged(memory: GuestMemory): void {
    this.#chain = new Chain(memory);
  }

  /** Looks at all queues anyway. */
  queueKicked(): void {}

  /** Notes it. */
  reset(): void {
    this.events.push("reset");
  }

  /** The configuration space; buffers that are held are in the state of their queues. */
  save(): unknown {
    return [...this.config];
  }

  /** Takes the configuration space. */
  prepareRestore(saved: unknown): () => void {
    return () => this.config.set(saved as number[]);
  }
}

/** Options of a {@link RegisterRig}. */
export type RigOptions = VirtioDeviceOptions & {
  /** Format of the queues that the driver asks for. `"split"` unless told. */
  format?: RingFormat;
  /** Sizes of the queues. Two of 8 unless told. */
  sizes?: readonly number[];
  /** Accept VIRTIO_F_EVENT_IDX. True unless told. */
  eventIdx?: boolean;
  /** Feature bits that the driver accepts besides those that the queues need. */
  accept?: readonly number[];
  /** Note what the device writes to memory. False unless told. */
  written?: boolean;
};

/** What a rig needs of the registers that it is about. */
export interface RigTransport {
  /** See `MmioTransport.syncMemory`. */
  syncMemory(): void;
  /** See `MmioTransport.save`. */
  save(): unknown;
  /** See `MmioTransport.restore`. */
  restore(snapshot: unknown): void;
}

const MEMORY_START = 0x1000_0000;
const MEMORY_BYTES = 0x4_0000;

/** An {@link EchoDevice} and its driver, which know each other by registers and guest memory only. */
export abstract class RegisterRig {
  /** The device. */
  model: EchoDevice;
  /** Its virtio side. */
  virtio: VirtioDevice;
  /** Its registers. */
  abstract readonly transport: RigTransport;
  /** The driver's side of the registers. */
  abstract readonly registers: RegisterDriver;
  /** The driver's queues. */
  readonly queues: DriverQueue[];
  /** Where they lie. */
  readonly areas: QueueAreas[];
  /** Features that the driver accepts. */
  readonly features: bigint;
  /** What is left of guest memory. */
  readonly arena: MemoryArena;
  /** Guest memory; another object stands for memory that has moved. */
  memory: GuestMemory;
  /** Level of the interrupt line. */
  line = false;
  /** How often the line went up. */
  edges = 0;
  /** What the device said it wrote, where `written` was asked for: address and length by turns. */
  readonly written: number[] = [];
  /** Options that it was made with. */
  readonly options: RigOptions;
  /** Called before the device gets to work: at each access to a register, and before it processes. */
  enter: () => void = () => {};
  /** Called after that. */
  leave: () => void = () => {};
  /** Memory that the device sees, where that is not the driver's. */
  deviceMemory: (() => GuestMemory) | null = null;

  readonly #eventIdx: boolean;
  readonly #inOrder: boolean;
  readonly #notificationData: boolean;
  // Addresses of answers by queue and token.
  readonly #out: Map<string, number> = new Map();

  /** Makes both sides; nothing is negotiated. */
  constructor(options: RigOptions = {}) {
    this.options = options;
    const {
      format = "split",
      sizes = [8, 8],
      eventIdx = true,
      accept = [],
    } = options;
    [this.model, this.virtio] = this.#makeDevice();
    this.memory = new GuestMemory([{
      guestAddress: MEMORY_START,
      size: MEMORY_BYTES,
      buffer: new ArrayBuffer(MEMORY_BYTES),
    }]);
    this.features = featureBits(
      VIRTIO_F_VERSION_1,
      ...(format === "packed" ? [VIRTIO_F_RING_PACKED] : []),
      ...(eventIdx ? [VIRTIO_F_EVENT_IDX] : []),
      ...accept,
    );
    this.#eventIdx = eventIdx;
    this.arena = new MemoryArena(this.memory);
    this.areas = sizes.map((size) => layOutQueue(this.arena, format, size));
    this.#notificationData = accept.includes(VIRTIO_F_NOTIFICATION_DATA);
    this.#inOrder = accept.includes(VIRTIO_F_IN_ORDER);
    const config = { eventIdx, inOrder: this.#inOrder };
    this.queues = this.areas.map((areas) =>
      makeDriverQueue(this.arena, format, { ...areas, ...config }, 0)
    );
  }

  #makeDevice(): [EchoDevice, VirtioDevice] {
    const model = new EchoDevice(this.options.sizes ?? [8, 8]);
    const virtio = new VirtioDevice(model, this.options);
    model.attach(virtio);
    return [model, virtio];
  }

  /** What a transport needs of the emulator that this is. */
  protected get emulator(): EmulatorOptions {
    const written = (address: number, length: number) =>
      this.written.push(address, length);
    return {
      memory: () => this.deviceMemory?.() ?? this.memory,
      interrupt: (level) => {
        if (level && !this.line) this.edges++;
        this.line = level;
      },
      ...(this.options.written ? { written } : {}),
    };
  }

  /** An access of the driver to a register. */
  protected access<T>(work: () => T): T {
    this.enter();
    const value = work();
    this.leave();
    return value;
  }

  /** Plugs another device in, with registers of its own. */
  protected abstract replug(): void;

  /**
   * Goes on with another device and other registers, from snapshots of both that have been text, over the same
   * memory.
   */
  migrate(): void {
    const registers = JSON.stringify(this.transport.save());
    const device = JSON.stringify(this.virtio.save());
    this.virtio.connect(null);
    const { hold } = this.model;
    [this.model, this.virtio] = this.#makeDevice();
    this.model.hold = hold;
    this.replug();
    this.transport.restore(JSON.parse(registers));
    this.virtio.restore(JSON.parse(device));
  }

  /** Takes the steps of 3.1 up to FEATURES_OK. */
  negotiate(): void {
    if (this.registers.probe() !== this.model.deviceId) {
      throw new TypeError("Cannot drive the device: it is of another type");
    }
    if (!this.registers.accept(this.features)) {
      throw new TypeError("Cannot drive the device: FEATURES_OK is not taken");
    }
  }

  /** Makes all queues ready, with states where there are any. */
  setUp(states: readonly (QueueStateWords | null)[] = []): void {
    for (const [index, areas] of this.areas.entries()) {
      if (!this.registers.setupQueue(index, areas)) {
        throw new TypeError(`Cannot use queue ${index}: it is not ready`);
      }
      const words = states[index] ?? null;
      if (words !== null) this.registers.setQueueState(index, words);
    }
  }

  /** Resets, negotiates, makes all queues ready and sets DRIVER_OK. */
  start(states: readonly (QueueStateWords | null)[] = []): void {
    this.registers.reset();
    this.negotiate();
    this.setUp(states);
    this.registers.driverOk();
  }

  /** Uses a new driver's queue as queue `index`, where `areas` tell. */
  replaceQueue(index: number, areas: QueueAreas): void {
    const { format } = this.queues[index]!;
    const config = {
      ...areas,
      eventIdx: this.#eventIdx,
      inOrder: this.#inOrder,
    };
    this.areas[index] = areas;
    this.queues[index] = makeDriverQueue(this.arena, format, config, 0);
  }

  /** Offers `text` to queue `index`, with room for the answer, and kicks if that is asked for. */
  send(index: number, text: string): void {
    const bytes = new TextEncoder().encode(text);
    const address = this.arena.allocate(2 * bytes.length);
    this.memory.bytes(address, bytes.length).set(bytes);
    const queue = this.queues[index]!;
    const token = queue.add(
      new BufferList()
        .addReadable(address, bytes.length)
        .addWritable(address + bytes.length, bytes.length),
    );
    if (token < 0) throw new TypeError(`Cannot send: queue ${index} is full`);
    this.#out.set(`${index} ${token}`, address + bytes.length);
    queue.publish();
    if (queue.needsKick()) this.kick(index);
  }

  /** Notifies queue `index`, with its driver's position where that was negotiated. */
  kick(index: number): void {
    if (!this.#notificationData) this.registers.kick(index);
    else {this.registers.kick(
        this.queues[index]!.notificationData(index),
        index,
      );}
  }

  /** Lets the device work. */
  work(): void {
    this.access(() => {
      this.transport.syncMemory();
      this.model.process();
    });
  }

  /** Lets the device work, takes its interrupt and reads all answers on queue `index`. */
  receive(index: number): string[] {
    this.work();
    if (this.line) this.registers.takeInterrupt();
    const queue = this.queues[index]!;
    const answers: string[] = [];
    for (;;) {
      const token = queue.reclaim();
      if (token < 0 && queue.armInterrupts()) continue;
      if (token < 0) return answers;
      const address = this.#out.get(`${index} ${token}`)!;
      const bytes = this.memory.bytes(address, queue.usedLength);
      answers.push(new TextDecoder().decode(bytes.map((byte) => byte ^ 0xff)));
    }
  }

  /** The states of all queues, as the registers tell them. */
  states(): (QueueStateWords | null)[] {
    return this.areas.map((_, index) => this.registers.queueState(index));
  }

  /** How often a fault of this kind was counted. */
  faults(kind: string): number {
    return this.virtio.diagnostics.counters.get(kind) ?? 0;
  }

  /** All faults that were counted. */
  get allFaults(): string[] {
    return [...this.virtio.diagnostics.counters.keys()];
  }
}

/** The words of a ring that is new. */
export function initialWords(format: RingFormat): QueueStateWords {
  return format === "split"
    ? { available: 0, used: 0 }
    : { available: 0x8000, used: 0x8000 };
}
