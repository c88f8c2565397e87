/**
 * A driver that saves and restores its queue by the virtqueue state facility, through any number of
 * resets, and one that forgets to.
 *
 * @module
 */

import fc from "fast-check";
import type { DeviceModel } from "../device/device_model.ts";
import { featureMask, VirtioDevice } from "../device/virtio_device.ts";
import { Chain } from "../ring/chain.ts";
import { GuestMemory } from "../ring/memory.ts";
import { PackedDriver } from "../ring/packed_driver.ts";
import {
  BufferList,
  type DeviceQueue,
  type DriverQueue,
  type QueueConfig,
} from "../ring/queue.ts";
import { SplitDriver } from "../ring/split_driver.ts";
import type { NamedProperty } from "./queue_properties.ts";
import { newRun, scriptProperty, type ScriptWorld } from "./script_property.ts";
import { expectSame, Violation } from "./violation.ts";

type Setup = { format: "split" | "packed"; size: number };
type FacilityStep =
  /** A driver starts the device, with the state of its queue or without. */
  | { do: "start"; set: boolean }
  /** Buffers go round; the device keeps some of them. */
  | { do: "traffic"; count: number; kept: number }
  /** The driver resets the device, and reads the state. */
  | { do: "reset" }
  /** The driver gives its running queue another size. */
  | { do: "resize"; size: number };

const START = 0x10_0000;
const VERSION_1 = 32;
const RING_PACKED = 34;
const QUEUE_STATE = 40;
const ACKNOWLEDGE = 1;
const DRIVER = 2;
const DRIVER_OK = 4;
const FEATURES_OK = 8;

/** A device type of one queue that notes what it is given. */
class NotingModel implements DeviceModel {
  readonly deviceId = 4;
  readonly features = 0n;
  readonly maxQueueSizes: readonly number[];
  queue: DeviceQueue | null = null;

  constructor(size: number) {
    this.maxQueueSizes = [size];
  }

  configSpace(): Uint8Array {
    return new Uint8Array(0);
  }

  featuresAccepted(_features: bigint): void {}

  queueStarted(_index: number, queue: DeviceQueue, _fresh: boolean): void {
    this.queue = queue;
  }

  queueStopped(_index: number): void {
    this.queue = null;
  }

  memoryChanging(): void {}

  memoryChanged(_memory: GuestMemory): void {}

  queueKicked(_index: number): void {}

  reset(): void {
    this.queue = null;
  }
}

class FacilityWorld implements ScriptWorld<FacilityStep> {
  readonly run = newRun("midFlight");
  readonly #setup: Setup;
  readonly #model: NotingModel;
  readonly #device: VirtioDevice;
  readonly #driver: DriverQueue;
  readonly #config: QueueConfig;
  readonly #list = new BufferList(1);
  readonly #chain: Chain;
  readonly #dataStart: number;
  /** Whether the device runs, and with the queue in use. */
  #live = false;
  #working = false;
  /** Absolute positions behind what was made available, and behind what was used. */
  #added = 0;
  #used = 0;

  constructor(setup: Setup) {
    this.#setup = setup;
    const { format, size } = setup;
    const table = 16 * size;
    const area = 16 * Math.ceil((6 + 8 * size) / 16);
    const bytes = table + 2 * area + 16;
    this.#dataStart = START + table + 2 * area;
    const memory = new GuestMemory([{
      guestAddress: START,
      size: bytes,
      buffer: new ArrayBuffer(bytes),
      byteOffset: 0,
    }]);
    this.#config = {
      size,
      descriptorArea: START,
      driverArea: START + table,
      deviceArea: START + table + area,
    };
    this.#driver = format === "split"
      ? new SplitDriver(memory, this.#config)
      : new PackedDriver(memory, this.#config);
    this.#model = new NotingModel(size);
    this.#device = new VirtioDevice(this.#model, {
      ring: "auto",
      queueState: true,
    });
    this.#device.setMemory(memory);
    this.#chain = new Chain(memory);
  }

  possible(step: FacilityStep): boolean {
    if (step.do === "start") return !this.#live;
    if (step.do === "reset") return true;
    return this.#working;
  }

  take(step: FacilityStep): string {
    const device = this.#device;
    switch (step.do) {
      case "start":
        return this.#start(step.set);
      case "reset": {
        device.setStatus(0);
        if (this.#model.queue !== null) {
          throw new Violation("reset", "the queue is in use after a reset");
        }
        const held = this.#added > this.#used;
        if (this.#working && held) this.run.midFlight = true;
        if (this.#working) this.#checkWords();
        this.#live = this.#working = false;
        return "";
      }
      case "resize": {
        let refused = false;
        try {
          device.setupQueue(0, { size: step.size });
        } catch (error) {
          if (!(error instanceof TypeError)) throw error;
          refused = true;
        }
        expectSame("a running queue is frozen", "refused", refused, true);
        const { size } = device.queueSetup(0);
        expectSame("a running queue is frozen", "size", size, this.#setup.size);
        return "";
      }
      case "traffic":
        return this.#traffic(step.count, step.kept);
    }
  }

  settle(): void {
    if (this.#live) this.take({ do: "reset" });
    this.#start(true);
    this.#traffic(0, 0);
    expectSame("exactly once", "free", this.#driver.free, this.#setup.size);
  }

  #start(set: boolean): string {
    const device = this.#device;
    const { format } = this.#setup;
    device.setStatus(ACKNOWLEDGE);
    if (device.queueStateProblem(0, "get") === null) {
      throw new Violation("ACKNOWLEDGE clears", "a state can be read after it");
    }
    device.setStatus(ACKNOWLEDGE | DRIVER);
    let features = featureMask(VERSION_1) | featureMask(QUEUE_STATE);
    if (format === "packed") features |= featureMask(RING_PACKED);
    device.setFeatures(features);
    device.setStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    const { size, descriptorArea, driverArea, deviceArea } = this.#config;
    device.setupQueue(0, { size, descriptorArea, driverArea, deviceArea });
    device.setQueueReady(0, true);
    if (set) {
      const word = this.#word();
      device.setAvailableState(0, word);
      device.setUsedState(0, format === "split" ? 0 : word);
    }
    device.setStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    this.#live = true;
    this.#working = set;
    const given = this.#model.queue !== null;
    if (given !== set) {
      throw new Violation(
        "reset",
        set
          ? "a queue whose state was set does not run"
          : "a queue runs whose state was not set since the reset",
      );
    }
    return "";
  }

  #traffic(count: number, kept: number): string {
    const driver = this.#driver;
    const queue = this.#model.queue!;
    const list = this.#list.clear().addReadable(this.#dataStart, 4);
    for (let i = 0; i < count && driver.add(list) >= 0; i++) this.#added++;
    driver.publish();
    const tokens: number[] = [];
    while (tokens.length <= this.#setup.size && queue.pop(this.#chain)) {
      tokens.push(this.#chain.token);
    }
    if (tokens.length !== this.#added - this.#used) {
      throw new Violation(
        "exactly once",
        `pop() gave ${tokens.length} buffers, expected ${
          this.#added - this.#used
        }`,
      );
    }
    while (tokens.length > Math.min(kept, tokens.length)) {
      queue.push(tokens.shift()!, 0);
      this.#used++;
    }
    queue.publish();
    for (const token of tokens.reverse()) queue.unpop(token);
    let came = 0;
    while (came <= this.#setup.size && driver.reclaim() >= 0) came++;
    this.run.buffers += came;
    expectSame(
      "exactly once",
      "buffers in flight",
      driver.inFlight,
      this.#added - this.#used,
    );
    return `${came} came back`;
  }

  #word(): number {
    const { format, size } = this.#setup;
    if (format === "split") return this.#used & 0xffff;
    const lap = Math.floor(this.#used / size);
    return this.#used % size + (lap % 2 === 0 ? 0x8000 : 0);
  }

  #checkWords(): void {
    const word = this.#word();
    const device = this.#device;
    const found = [device.availableState(0), device.usedState(0)].join();
    const expected = [word, this.#setup.format === "split" ? 0 : word].join();
    expectSame("positions", "the state that is read", found, expected);
  }
}

/** The virtqueue state facility of a device, as its driver sees it. */
export const FACILITY_PROPERTY: NamedProperty = scriptProperty<
  Setup,
  FacilityStep
>({
  name: "facility",
  setups: fc.oneof(
    fc.record({
      format: fc.constant("split" as const),
      size: fc.constantFrom(1, 2, 4, 8),
    }),
    fc.record({
      format: fc.constant("packed" as const),
      size: fc.constantFrom(1, 2, 3, 5, 8),
    }),
  ),
  steps: [
    fc.record({ do: fc.constant("start" as const), set: fc.boolean() }),
    fc.record({ do: fc.constant("start" as const), set: fc.constant(true) }),
    fc.record({
      do: fc.constant("traffic" as const),
      count: fc.nat(8),
      kept: fc.nat(3),
    }),
    fc.record({ do: fc.constant("reset" as const) }),
    fc.record({
      do: fc.constant("resize" as const),
      size: fc.constantFrom(1, 2, 4, 16, 32768),
    }),
  ],
  maxSteps: 30,
  make: (setup) => new FacilityWorld(setup),
});
