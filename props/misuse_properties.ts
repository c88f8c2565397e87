/**
 * Callers that make mistakes in the middle of traffic: each is refused by an error that says so, and the queue goes on as if nothing had been.
 *
 * @module
 */

import fc from "fast-check";
import { Chain } from "../ring/chain.ts";
import { ChainBatch } from "../ring/chain_batch.ts";
import { inflightRegionSize, openInflight } from "../ring/inflight.ts";
import { encodeNotificationData } from "../ring/notify.ts";
import { PackedDevice } from "../ring/packed_device.ts";
import { PackedDriver } from "../ring/packed_driver.ts";
import { BufferList } from "../ring/queue.ts";
import { SplitDevice } from "../ring/split_device.ts";
import { SplitDriver } from "../ring/split_driver.ts";
import { checkQueueState, initialQueueState } from "../ring/state.ts";
import { TrackedQueue } from "../ring/tracked_queue.ts";
import type { QueueWorld } from "./queue_actions.ts";
import { bareSetups, steps } from "./queue_arbitraries.ts";
import type { QueueModel, QueueSetup } from "./queue_model.ts";
import type { NamedProperty } from "./queue_properties.ts";
import { isPossible, type QueueRun, type QueueStep } from "./queue_steps.ts";
import { openQueue, settle, takeStep } from "./queue_take.ts";
import { scriptProperty, type ScriptWorld } from "./script_property.ts";
import { Violation } from "./violation.ts";

type MisuseStep = QueueStep | { do: "misuse"; which: number };

/** A mistake, made with what there is; `NOT_NOW` where there is nothing to make it with. */
type Mistake = (model: QueueModel, world: QueueWorld) => unknown;

const NOT_NOW = Symbol("not now");

/** The other format. */
function other(model: QueueModel): "split" | "packed" {
  return model.setup.format === "split" ? "packed" : "split";
}

/** Finds out late, when free descriptors have been written, at which nobody looks. */
const TOO_LARGE = "a buffer of more than 2^32 bytes";

const MISTAKES: Readonly<Record<string, Mistake>> = {
  "an empty buffer": (_model, { rig }) => rig.driver.add(new BufferList(1)),
  "a buffer that never fits": (model, { rig }) => {
    const count = model.setup.size + 5;
    const list = new BufferList(count);
    for (let i = 0; i < count; i++) list.addReadable(0x1000, 1);
    rig.driver.add(list);
  },
  [TOO_LARGE]: (model, { rig }) => {
    const list = new BufferList(2);
    list.addReadable(0x1000, 0xffffffff).addReadable(0x1000, 0xffffffff);
    if (model.slotsFor(2) > model.free) return NOT_NOW;
    return rig.driver.add(list);
  },
  "a readable segment behind a writable one": () =>
    new BufferList(2).addWritable(0x1000, 1).addReadable(0x1000, 1),
  "a segment that the list has no room for": () =>
    new BufferList(1).addWritable(0x1000, 1).addWritable(0x1000, 1),
  "a queue of more than 16 bits": (_model, { rig }) =>
    rig.driver.notificationData(0x1_0000),
  "a position of more than 15 bits": () =>
    encodeNotificationData({ queue: 0, nextOff: 0x8000, nextWrap: 0 }),
  "a buffer that is not in flight given back": (model, { rig }) =>
    rig.device.unpop(model.setup.size + 7),
  "a buffer given back out of turn": (model, { rig }) => {
    const [first] = model.fetched;
    if (first === undefined || model.fetched.length < 2) return NOT_NOW;
    return rig.device.unpop(first.token);
  },
  "a used length that does not fit": (model, { rig }) => {
    const [first] = model.fetched;
    if (first === undefined) return NOT_NOW;
    return rig.device.push(first.token, first.writableBytes + 1);
  },
  "a used length that is no number of bytes": (model, { rig }) => {
    const [first] = model.fetched;
    if (first === undefined) return NOT_NOW;
    return rig.device.push(first.token, -1);
  },
  "a batch with a buffer that is not in flight": (_model, { rig }) => {
    const { device } = rig;
    if (!(device instanceof SplitDevice || device instanceof PackedDevice)) {
      return NOT_NOW;
    }
    const batch = new ChainBatch(rig.memory, 1);
    const chain = new Chain(rig.memory);
    chain.token = device.size + 3;
    batch.append(chain);
    return device.pushBatch(batch);
  },
  "a batch without room": (_model, { rig }) => new ChainBatch(rig.memory, 0),
  "a buffer too many in a batch": (_model, { rig }) => {
    const batch = new ChainBatch(rig.memory, 1);
    batch.append(new Chain(rig.memory));
    batch.append(new Chain(rig.memory));
  },
  "a buffer that the batch does not have": (_model, { rig }) =>
    new ChainBatch(rig.memory, 1).copyTo(0, new Chain(rig.memory)),
  "a segment that the chain does not have": (_model, { rig }) =>
    new Chain(rig.memory).bytes(0),
  "a state of a queue without a size": (model) =>
    checkQueueState(initialQueueState(model.setup.format), 0),
  "a region that is too short": (model, { rig }) => {
    const { format, size } = model.setup;
    const bytes = new Uint8Array(inflightRegionSize(format, size) - 64);
    openInflight(format, bytes, rig.memory, rig.config);
  },
  "a region for a state of the other format": (model, { rig }) => {
    const { format, size } = model.setup;
    const bytes = new Uint8Array(inflightRegionSize(format, size));
    openInflight(format, bytes, rig.memory, rig.config)
      .initialize(initialQueueState(other(model)));
  },
  "a region of the other format": (model, { rig }) => {
    const { size } = model.setup;
    // The areas of a packed ring are too small for a split one.
    if (model.setup.format === "packed") return NOT_NOW;
    const { memory, config } = rig;
    const format = other(model);
    const bytes = new Uint8Array(inflightRegionSize(format, size));
    const queue = new SplitDevice(memory, config);
    return new TrackedQueue(queue, openInflight(format, bytes, memory, config));
  },
  "tables of no size": (model, { rig }) => {
    const { memory } = rig;
    const config = { ...rig.config, indirect: true };
    const options = { indirect: { address: 0, entries: 0 } };
    if (model.setup.format === "split") {
      new SplitDriver(memory, config, options);
    } else new PackedDriver(memory, config, options);
  },
  "tables without the feature": (_model, { rig }) => {
    const { memory, config } = rig;
    const options = {
      indirect: { address: config.descriptorArea, entries: 1 },
    };
    const bare = { ...config, indirect: false };
    if (rig.driver.format === "split") new SplitDriver(memory, bare, options);
    else new PackedDriver(memory, bare, options);
  },
};

const NAMES = Object.keys(MISTAKES);

class MisuseWorld implements ScriptWorld<MisuseStep> {
  readonly run: QueueRun;
  readonly #model: QueueModel;
  readonly #world: QueueWorld;

  constructor(setup: QueueSetup) {
    const { model, world } = openQueue(setup, null);
    this.#model = model;
    this.#world = world;
    this.run = world.run;
  }

  possible(step: MisuseStep): boolean {
    return step.do === "misuse" || isPossible(step, this.#model);
  }

  take(step: MisuseStep): string {
    if (step.do !== "misuse") return takeStep(step, this.#model, this.#world);
    const name = NAMES[step.which % NAMES.length]!;
    const { rig } = this.#world;
    const before = rig.copyMemory();
    try {
      const made = MISTAKES[name]!(this.#model, this.#world);
      if (made === NOT_NOW) return `${name} cannot be made now`;
    } catch (error) {
      if (!(error instanceof TypeError || error instanceof RangeError)) {
        throw error;
      }
      if (name !== TOO_LARGE) rig.expectMemory("refused", name, before);
      return `${name} is refused`;
    }
    throw new Violation("refused", `${name} is taken`);
  }

  settle(): void {
    settle(this.#model, this.#world);
  }
}

function weighted(): fc.Arbitrary<MisuseStep>[] {
  const list = steps(null).flatMap(({ arbitrary, weight }) =>
    new Array<fc.Arbitrary<MisuseStep>>(weight).fill(arbitrary)
  );
  const misuse: fc.Arbitrary<MisuseStep> = fc.record({
    do: fc.constant("misuse" as const),
    which: fc.nat(NAMES.length - 1),
  });
  return [...list, ...new Array<typeof misuse>(20).fill(misuse)];
}

/** Mistakes of callers. */
export const MISUSE_PROPERTY: NamedProperty = scriptProperty<
  QueueSetup,
  MisuseStep
>({
  name: "queue/misuse",
  setups: fc.oneof(
    bareSetups("split", "restore-run"),
    bareSetups("packed", "restore-run"),
  ),
  steps: weighted(),
  maxSteps: 40,
  make: (setup) => new MisuseWorld(setup),
});
