/**
 * Two queues that take the same script: one whose device is restored and one whose device is not, and one of each ring format.
 *
 * @module
 */

import type fc from "fast-check";
import type { QueueWorld } from "./queue_actions.ts";
import { bareSetups, setups, steps } from "./queue_arbitraries.ts";
import type { QueueModel, QueueSetup } from "./queue_model.ts";
import type { NamedProperty } from "./queue_properties.ts";
import { isPossible, type QueueRun, type QueueStep } from "./queue_steps.ts";
import { openQueue, settle, takeStep } from "./queue_take.ts";
import { scriptProperty, type ScriptWorld } from "./script_property.ts";
import { expectSame, Violation } from "./violation.ts";

type Side = { model: QueueModel; world: QueueWorld };

/** What another side does has to be done here as well; that it cannot be is a violation of this invariant. */
function likewise<T>(invariant: string, side: string, body: () => T): T {
  try {
    return body();
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    throw new Violation(invariant, `${side}: ${text}`);
  }
}

/** A queue whose device is replaced by one that is restored, beside one whose device goes on. */
class TwinWorld implements ScriptWorld<QueueStep> {
  readonly run: QueueRun;
  readonly #original: Side;
  readonly #twin: Side;
  /** Buffers that were in flight when the device was replaced: giving them back means something else to each. */
  readonly #held: Set<number> = new Set();

  constructor(setup: QueueSetup) {
    this.#original = openQueue(setup, null);
    this.#twin = openQueue(setup, null);
    this.run = this.#twin.world.run;
  }

  possible(step: QueueStep): boolean {
    const { model } = this.#original;
    if (!isPossible(step, model)) return false;
    return step.do !== "unpop" ||
      !this.#held.has(model.lastFetched!.generation);
  }

  take(step: QueueStep): string {
    if (step.do === "restore") return this.#replace(step);
    return this.#both(step.do === "unpop" ? { ...step, count: 1 } : step);
  }

  #both(step: QueueStep): string {
    const { model, world } = this.#original;
    const outcome = takeStep(step, model, world);
    const twin = this.#twin;
    const other = likewise(
      "restore-run",
      "the restored device",
      () => takeStep(step, twin.model, twin.world),
    );
    expectSame("restore-run", `${step.do} of the twin`, other, outcome);
    this.#compare(step.do);
    return outcome;
  }

  #compare(what: string): void {
    const original = this.#original.world.rig;
    const twin = this.#twin.world.rig;
    twin.expectMemory(
      "restore-run",
      `${what} of the restored device, unlike that of the original,`,
      original.copyMemory(),
    );
    if (this.#original.model.completed.length > 0) return;
    expectSame(
      "restore-run",
      "the state of the twin",
      JSON.stringify(twin.device.save()),
      JSON.stringify(original.device.save()),
    );
  }

  /** The original asks for notifications, as a restored device does by itself; that one fetches again what the other holds. */
  #replace(step: QueueStep): string {
    const { model, world } = this.#original;
    const twin = this.#twin;
    for (const { generation } of model.fetched) this.#held.add(generation);
    model.batch = [];
    takeStep({ do: "needsInterrupt" }, model, world);
    const way = likewise("restore-run", "the restored device", () => {
      const way = takeStep(step, twin.model, twin.world);
      takeStep({ do: "needsInterrupt" }, twin.model, twin.world);
      const count = model.fetched.length;
      if (count > 0) takeStep({ do: "fetch", count }, twin.model, twin.world);
      return way;
    });
    this.#both({ do: "armKicks" });
    // It heard of an interrupt more, which is lawful.
    model.driverAsleep = twin.model.driverAsleep = false;
    return way;
  }

  settle(): void {
    settle(this.#original.model, this.#original.world);
    const { model, world } = this.#twin;
    likewise("restore-run", "the restored device", () => settle(model, world));
    this.#compare("what comes to rest");
  }
}

function twinProperty(format: "split" | "packed"): NamedProperty {
  return scriptProperty<QueueSetup, QueueStep>({
    name: `${format}/restore-run`,
    invariant: "restore-run",
    setups: bareSetups(format, "restore-run"),
    // How many a device hands out at once is its own affair: one that looked a while ago sees fewer.
    steps: weighted(steps("restore-run", ["fetchBatch", "completeBatch"])),
    maxSteps: 50,
    make: (setup) => new TwinWorld(setup),
  });
}

/** Steps that come up more often stand there more often. */
function weighted(
  list: readonly fc.WeightedArbitrary<QueueStep>[],
): fc.Arbitrary<QueueStep>[] {
  return list.flatMap(({ arbitrary, weight }) =>
    new Array<fc.Arbitrary<QueueStep>>(weight).fill(arbitrary)
  );
}

/** A device that was restored goes on exactly as the one that was saved. */
export const TWIN_PROPERTIES: readonly NamedProperty[] = [
  twinProperty("split"),
  twinProperty("packed"),
];

/**
 * A split and a packed queue beside each other.
 *
 * What is compared: which buffers find room; which are fetched, with which segments and bytes, in which order; which are given back;
 * what is published; which come back, with which length, in which order. What is not: notifications, since the indices
 * by which the two formats suppress them wrap at different places, and tokens, which each format numbers in its way. While the
 * script goes on, both see the same after each step; at rest, where notifications decide who goes first, each side's own order counts.
 */
class FormatsWorld implements ScriptWorld<QueueStep> {
  readonly run: QueueRun;
  readonly #split: Side;
  readonly #packed: Side;

  constructor(setup: QueueSetup) {
    this.#split = openQueue({ ...setup, format: "split" }, null);
    this.#packed = openQueue({ ...setup, format: "packed" }, null);
    for (const { world } of [this.#split, this.#packed]) {
      world.history = { driver: [], device: [] };
    }
    this.run = this.#packed.world.run;
  }

  possible(step: QueueStep): boolean {
    return isPossible(step, this.#split.model) &&
      isPossible(step, this.#packed.model);
  }

  take(step: QueueStep): string {
    const { model, world } = this.#split;
    const packed = this.#packed;
    const outcome = takeStep(step, model, world);
    likewise(
      "same-history",
      "the packed queue",
      () => takeStep(step, packed.model, packed.world),
    );
    this.#compare();
    return outcome;
  }

  #compare(): void {
    const split = this.#split.world.history!;
    const packed = this.#packed.world.history!;
    for (const side of ["driver", "device"] as const) {
      const ofSplit = split[side].splice(0);
      const ofPacked = packed[side].splice(0);
      if (ofSplit.join() === ofPacked.join()) continue;
      const at = ofSplit.findIndex((event, i) => event !== ofPacked[i]);
      const i = at < 0 ? ofSplit.length : at;
      throw new Violation(
        "same-history",
        `the ${side} of a packed queue sees "${
          ofPacked[i]
        }" where that of a split one sees "${ofSplit[i]}"`,
      );
    }
  }

  settle(): void {
    settle(this.#split.model, this.#split.world);
    const { model, world } = this.#packed;
    likewise("same-history", "the packed queue", () => settle(model, world));
    for (const { world } of [this.#split, this.#packed]) {
      // Without anything staged, publishing is no event.
      const history = world.history!;
      history.device = history.device.filter((event) =>
        event !== "published false"
      );
    }
    this.#compare();
  }
}

/** The same script gives the driver the same history with both ring formats. */
export const FORMATS_PROPERTY: NamedProperty = scriptProperty<
  QueueSetup,
  QueueStep
>({
  name: "both/same-history",
  invariant: "same-history",
  setups: setups("split", null).map((setup) => ({
    ...setup,
    // A script far behind the start would be the same in a packed ring and take long.
    start: setup.start > 0xff00 ? setup.start % 512 : setup.start,
  })),
  // How many a queue hands out at once is its own affair.
  steps: weighted(steps(null, ["fetchBatch", "completeBatch"])),
  maxSteps: 50,
  make: (setup) => new FormatsWorld(setup),
});
