/**
 * Devices that die after any store that they make to a ring or to its region of buffers in flight, also while they repair what
 * another one has left: every buffer is completed once, and handed out again until it is.
 *
 * @module
 */

import fc from "fast-check";
import type { Chain } from "../ring/chain.ts";
import { PassingQueue } from "../ring/passing_queue.ts";
import type { DeviceQueue, QueueState } from "../ring/queue.ts";
import type { QueueWorld } from "./queue_actions.ts";
import { bareSetups, steps } from "./queue_arbitraries.ts";
import type { QueueModel, QueueSetup } from "./queue_model.ts";
import { checkSavedAt, positionWord, wordsOf } from "./queue_positions.ts";
import type { NamedProperty } from "./queue_properties.ts";
import { isPossible, type QueueRun, type QueueStep } from "./queue_steps.ts";
import { openQueue, settle, takeStep } from "./queue_take.ts";
import { scriptProperty, type ScriptWorld } from "./script_property.ts";
import { Stopped, StoreWatch } from "./store_watch.ts";
import { expectSame, Violation } from "./violation.ts";

type InflightStep =
  | QueueStep
  /**
   * The device dies after this many further stores, counted from its next call of that name on, and those that repair what it left
   * die after so many each.
   */
  | { do: "doom"; in: Doing["call"]; stores: number; repairs: number[] };

/** What a device was about when it died. */
type Doing =
  | { call: "pop" | "publish" | "other" }
  | { call: "unpop"; token: number }
  | { call: "push"; token: number; written: number };

/** A device queue whose stores are counted, and which dies by them. */
class MortalQueue extends PassingQueue {
  doing: Doing = { call: "other" };
  /** The call in which stores begin to count, and how many are left then. */
  doom: { in: Doing["call"]; stores: number } | null = null;
  readonly #watch: StoreWatch;

  constructor(queue: DeviceQueue, watch: StoreWatch) {
    super(queue);
    this.#watch = watch;
  }

  override pop(chain: Chain): boolean {
    return this.#do({ call: "pop" }, () => this.queue.pop(chain));
  }
  override unpop(token: number): void {
    this.#do({ call: "unpop", token }, () => this.queue.unpop(token));
  }
  override push(token: number, written: number): void {
    const doing: Doing = { call: "push", token, written };
    this.#do(doing, () => this.queue.push(token, written));
  }
  override publish(): boolean {
    return this.#do({ call: "publish" }, () => this.queue.publish());
  }
  override needsInterrupt(): boolean {
    return this.#do({ call: "other" }, () => this.queue.needsInterrupt());
  }
  override armKicks(): boolean {
    return this.#do({ call: "other" }, () => this.queue.armKicks());
  }
  override disarmKicks(): void {
    this.#do({ call: "other" }, () => this.queue.disarmKicks());
  }

  #do<T>(doing: Doing, body: () => T): T {
    this.doing = doing;
    const { doom } = this;
    if (doom !== null && (doom.in === "other" || doom.in === doing.call)) {
      this.#watch.left = doom.stores;
      this.doom = null;
    }
    return this.#watch.during(body);
  }
}

class InflightWorld implements ScriptWorld<InflightStep> {
  readonly run: QueueRun;
  readonly #model: QueueModel;
  readonly #world: QueueWorld;
  readonly #watch: StoreWatch;
  #device: MortalQueue;
  #repairs: readonly number[] = [];

  constructor(setup: QueueSetup) {
    const { model, world } = openQueue(setup, null);
    this.#model = model;
    this.#world = world;
    this.run = world.run;
    this.#watch = new StoreWatch(...world.rig.buffers);
    this.#device = this.#recover();
    this.#goOn();
  }

  possible(step: InflightStep): boolean {
    return step.do === "doom" || isPossible(step, this.#model);
  }

  take(step: InflightStep): string {
    if (step.do === "doom") {
      this.#device.doom = step;
      this.#repairs = step.repairs;
      return "";
    }
    try {
      if (step.do === "crash") throw new Stopped();
      return takeStep(step, this.#model, this.#world);
    } catch (error) {
      if (!(error instanceof Stopped)) throw error;
    }
    return this.#bury(
      step.do === "crash" ? { call: "other" } : this.#device.doing,
    );
  }

  settle(): void {
    this.#watch.left = Infinity;
    this.#device.doom = null;
    settle(this.#model, this.#world);
  }

  /** A device that goes on from the region, in place of the one before; it may die in turn. */
  #recover(): MortalQueue {
    const { rig } = this.#world;
    const queue = this.#watch.during(() => rig.recoverDevice());
    const device = new MortalQueue(queue, this.#watch);
    return device;
  }

  #bury(doing: Doing): string {
    let died = 0;
    for (const stores of [...this.#repairs, Infinity]) {
      this.#watch.left = stores;
      try {
        this.#device = this.#recover();
        break;
      } catch (error) {
        if (!(error instanceof Stopped)) throw error;
        died++;
      }
    }
    this.#watch.left = Infinity;
    this.#repairs = [];
    const outcome = this.#decide(doing, this.#device.save());
    this.#goOn();
    return `died ${outcome}${died > 0 ? `, and ${died} in the repair` : ""}`;
  }

  /** The model learns whether what the device was about when it died has happened; either is lawful, but nothing between. */
  #decide(doing: Doing, state: QueueState): string {
    const model = this.#model;
    const ids = state.inFlight.map(({ id }) => id);
    const [next] = model.available;
    const buffer = "token" in doing ? model.owners.get(doing.token) : undefined;
    switch (doing.call) {
      case "pop":
        if (model.waiting.length > 0 || next === undefined) return "in pop()";
        if (ids.at(-1) !== next.token) return "before a fetch";
        model.fetch();
        return "behind a fetch";
      case "unpop":
        if (ids.includes(doing.token)) return "before it gave a buffer back";
        model.unpop(this.#world.rig.restored);
        return "when it had given a buffer back";
      case "push":
        // The bytes were written before that.
        if (buffer === undefined) break;
        buffer.touched = Math.max(buffer.touched, doing.written);
        return "in push()";
      case "publish": {
        if (model.completed.length === 0) return "in publish()";
        const behind = model.usedPosition + model.places(model.completed);
        if (wordsOf(state)[1] !== positionWord(model, behind)) {
          return "before it published";
        }
        model.publishUsed();
        return "when it had published";
      }
    }
    return "between two calls";
  }

  #goOn(): void {
    const model = this.#model;
    const { rig } = this.#world;
    model.died();
    if (model.waiting.length > 0) this.run.midFlight = true;
    rig.replaceDevice(this.#device, model.waiting.length);
    const state = rig.device.save();
    checkSavedAt("positions", state, model, model.availPosition);
    const ids = state.inFlight.map(({ id }) => id).join();
    const expected = model.waiting.map(({ token }) => token).join();
    expectSame("exactly-once", "what is in flight", ids, expected);
    this.#expectNothingNew();
    model.restored(false);
  }

  /** A repair publishes nothing. */
  #expectNothingNew(): void {
    const { driver } = this.#world.rig;
    const model = this.#model;
    if (model.used.length > 0) return;
    const token = driver.reclaim();
    if (token < 0) return;
    throw new Violation(
      "exactly-once",
      `reclaim() gave buffer ${token}, which is still in flight`,
    );
  }
}

const QUEUE_STEPS: readonly QueueStep["do"][] = [
  "restore",
  "restoreAlways",
  "queueReset",
  "suspend",
  "resume",
  "jump",
];

function inflightProperty(format: "split" | "packed"): NamedProperty {
  const doom: fc.Arbitrary<InflightStep> = fc.record({
    do: fc.constant("doom" as const),
    in: fc.constantFrom<Doing["call"]>(
      "other",
      "publish",
      "publish",
      "pop",
      "unpop",
    ),
    stores: fc.integer({ min: 1, max: 10 }),
    repairs: fc.array(fc.integer({ min: 1, max: 24 }), { maxLength: 2 }),
  });
  const others = steps("exactly-once", QUEUE_STEPS).flatMap((
    { arbitrary, weight },
  ) => new Array<fc.Arbitrary<InflightStep>>(weight).fill(arbitrary));
  return scriptProperty<QueueSetup, InflightStep>({
    name: `inflight/${format}`,
    setups: bareSetups(format, "restore-run").map((setup) => ({
      ...setup,
      tracked: true,
      start: setup.start % 64,
    })),
    steps: [...others, ...new Array<fc.Arbitrary<InflightStep>>(20).fill(doom)],
    maxSteps: 50,
    make: (setup) => new InflightWorld(setup),
  });
}

/** Buffers in flight survive the device. */
export const INFLIGHT_PROPERTIES: readonly NamedProperty[] = [
  inflightProperty("split"),
  inflightProperty("packed"),
];
