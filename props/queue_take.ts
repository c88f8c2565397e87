/**
 * Takes the steps of a script on the model and on what it judges, and compares.
 *
 * @module
 */

import {
  decodeNotificationData,
  encodeNotificationData,
} from "../ring/notify.ts";
import type { DriverQueue } from "../ring/queue.ts";
import {
  add,
  addAll,
  complete,
  completeBatch,
  fetch,
  fetchBatch,
  giveBack,
  names,
  NO_ROOM,
  publishUsed,
  type QueueWorld,
  reclaim,
  reclaimBatch,
  unpop,
} from "./queue_actions.ts";
import { judgeClosely } from "./queue_judges.ts";
import { QueueModel, type QueueSetup } from "./queue_model.ts";
import { checkSavedAt, positionWord } from "./queue_positions.ts";
import { die, resetQueue, restore, resume, suspend } from "./queue_restore.ts";
import { QueueRig, type QueueSides } from "./queue_rig.ts";
import { describe, isPossible, type QueueStep } from "./queue_steps.ts";
import { expectSame, Violation } from "./violation.ts";

/** A run about which nothing is known yet. */
export function newQueueRun(): QueueWorld["run"] {
  return {
    midFlight: false,
    firstLap: 0,
    wrapped: false,
    full: false,
    indirect: false,
    buffers: 0,
  };
}

/** Makes both sides of a queue, Ringside's own but for `sides`, and their model, where the script begins. */
export function openQueue(
  setup: QueueSetup,
  focus: string | null,
  sides: QueueSides = {},
): { model: QueueModel; world: QueueWorld } {
  const model = new QueueModel(setup);
  const world: QueueWorld = {
    rig: new QueueRig(setup, sides),
    run: newQueueRun(),
    lines: [],
    focus,
    always: null,
    history: null,
  };
  const { host } = world.rig;
  if (host !== null) host.whenStopped = () => giveBack(model, world);
  advance(setup.start, model, world);
  world.run.firstLap = lapOf(model);
  world.lines.length = 0;
  return { model, world };
}

/** Takes the step on both, compares, and notes it in words; returns what it came to. */
export function takeStep(
  step: QueueStep,
  model: QueueModel,
  world: QueueWorld,
): string {
  world.lines.push(describe(step));
  const outcome: string | undefined = perform(step, model, world);
  // A kept script may be older than the steps.
  if (outcome === undefined) throw new TypeError("there is no such step");
  const last = world.lines.length - 1;
  world.lines[last] += outcome === "" ? "" : `: ${outcome}`;
  compare(model, world);
  const { always } = world;
  if (always !== null && step.do !== "restore") {
    const again: QueueStep = { do: "restore", way: always };
    if (isPossible(again, model)) {
      restore(always, model, world);
      compare(model, world);
    }
  }
  return outcome;
}

function compare(model: QueueModel, world: QueueWorld): void {
  const { driver, device } = world.rig;
  expectSame("exactly-once", "driver.free", driver.free, model.free);
  expectSame("exactly-once", "driver.inFlight", driver.inFlight, model.exposed);
  const open = model.fetched.length;
  expectSame("exactly-once", "device.inFlight", device.inFlight, open);
  judgeClosely(model, world);
  if (model.free === 0) world.run.full = true;
  if (lapOf(model) !== world.run.firstLap) world.run.wrapped = true;
}

function lapOf(model: QueueModel): number {
  return Math.floor(model.published / model.setup.size);
}

function perform(
  step: QueueStep,
  model: QueueModel,
  world: QueueWorld,
): string {
  const { rig } = world;
  const { driver, device } = rig;
  switch (step.do) {
    case "add":
      return add(step.readable, step.writable, model, world);
    case "fill": {
      const readable = new Array<number>(step.readable).fill(4);
      const writable = new Array<number>(step.writable).fill(4);
      let added = 0;
      while (add(readable, writable, model, world) !== NO_ROOM) added++;
      return `${added} buffers`;
    }
    case "addBatch": {
      const { count } = step;
      const readable = new Array<number>(step.readable).fill(4);
      const writable = new Array<number>(step.writable).fill(4);
      return names(addAll(count, readable, writable, model, world));
    }
    case "reclaimBatch":
      return reclaimBatch(step.count || Infinity, model, world);
    case "publish": {
      const news = model.staged.length > 0;
      const said = driver.publish();
      model.publish();
      expectSame("progress", "driver.publish()", said, news);
      return "";
    }
    case "needsKick":
      return needsKick(model, world);
    case "reclaim":
      return reclaim(step.count || Infinity, model, world);
    case "armInterrupts": {
      const more = driver.armInterrupts();
      model.interrupts.arm(model.reclaimed);
      const expected = model.used.length > 0;
      expectSame("progress", "armInterrupts()", more, expected);
      model.driverAsleep = !more;
      return String(more);
    }
    case "disarmInterrupts":
      driver.disarmInterrupts();
      model.interrupts.disarm();
      model.driverAsleep = false;
      return "";
    case "fetch":
      return fetch(step.count || Infinity, model, world);
    case "fetchBatch":
      return fetchBatch(step.count || Infinity, model, world);
    case "completeBatch":
      return completeBatch(step.written, model, world);
    case "rebind":
      rig.rebind();
      return "";
    case "unpop":
      return unpop(step.count, model, world);
    case "complete": {
      const tokens: number[] = [];
      for (const pick of step.picks) {
        if (model.fetched.length === 0) break;
        const index = pick % model.fetched.length;
        if (model.setup.inOrder && index > 0) {
          rig.refuse(model.fetched[index]!.token, "use-order");
        }
        const chosen = model.setup.inOrder ? 0 : index;
        tokens.push(complete(chosen, step.written, model, world));
      }
      rig.refuse(tokens[0]!, "exactly-once");
      return names(tokens);
    }
    case "completeAll": {
      const tokens: number[] = [];
      while (model.fetched.length > 0) {
        const last = step.backwards && !model.setup.inOrder;
        const index = last ? model.fetched.length - 1 : 0;
        tokens.push(complete(index, step.written, model, world));
      }
      return names(tokens);
    }
    case "publishUsed":
      publishUsed(model, world);
      return "";
    case "needsInterrupt": {
      const answer = device.needsInterrupt();
      model.interrupts.judge("needsInterrupt()", answer, model.usedPosition);
      if (answer) {
        rig.host?.interrupt();
        model.driverAsleep = false;
      }
      return String(answer);
    }
    case "armKicks": {
      const more = device.armKicks();
      model.kicks.arm(model.availPosition);
      const expected = model.next !== undefined;
      expectSame("progress", "armKicks()", more, expected);
      model.deviceAsleep = !more;
      return String(more);
    }
    case "disarmKicks":
      device.disarmKicks();
      model.kicks.disarm();
      model.deviceAsleep = false;
      return "";
    case "restore": {
      let way = "";
      for (let time = step.times ?? 1; time > 0; time--) {
        way = restore(step.way, model, world);
      }
      return way;
    }
    case "restoreAlways":
      world.always = step.way;
      return "";
    case "crash":
      die(model, world);
      return "";
    case "queueReset":
      return resetQueue(step.kicks, model, world);
    case "suspend":
      return suspend(model, world);
    case "resume":
      resume(model, world);
      return "";
    case "jump":
      return jump(step.to, step.before, model, world);
  }
}

function needsKick(model: QueueModel, { rig }: QueueWorld): string {
  const { driver, host } = rig;
  const answer = driver.needsKick();
  model.kicks.judge("needsKick()", answer, model.published);
  if (rig.sides.driver === undefined) checkNotificationData(driver, model);
  if (!answer) return "false";
  if (model.running) model.deviceAsleep = false;
  if (host !== null) {
    const before = model.running ? null : rig.copyMemory();
    const heard = host.notify((queue) => driver.notificationData(queue));
    if (before !== null) {
      rig.expectMemory("suspend", "a kick of a suspended device", before);
      expectSame("suspend", "kicks that reach it", heard, 0);
    } else expectSame("progress", "kicks that reach the device", heard, 1);
  }
  return "true";
}

function checkNotificationData(driver: DriverQueue, model: QueueModel): void {
  const data = driver.notificationData(5);
  const word = positionWord(model, model.published);
  expectSame("positions", "notificationData()", data, word * 65536 + 5);
  const told = decodeNotificationData(data);
  expectSame("codec", "notificationData()", encodeNotificationData(told), data);
}

const SPLIT_WRAP = 0x1_0000;

function jump(
  to: "lap" | "wrap",
  before: number,
  model: QueueModel,
  world: QueueWorld,
): string {
  const { size, format } = model.setup;
  const period = to === "wrap" && format === "split" ? SPLIT_WRAP : size;
  const left = period - model.published % period;
  const count = left - before % period;
  advance(count < 0 ? count + period : count, model, world);
  return `position ${model.published}`;
}

/** Moves single buffers round, silently, until `count` have gone; then both sides sleep. */
function advance(count: number, model: QueueModel, world: QueueWorld): void {
  if (count === 0) return;
  const { driver, device } = world.rig;
  world.rig.goRound(count);
  model.published += count;
  model.reclaimed += count;
  driver.needsKick();
  device.needsInterrupt();
  model.kicks.decided = model.published;
  model.interrupts.decided = model.usedPosition;
  model.interrupts.forced = false;
  perform({ do: "armKicks" }, model, world);
  perform({ do: "armInterrupts" }, model, world);
}

/**
 * Lets each side run only when it was told to, until both sleep: then every buffer must be back, and both
 * sides stand at the same place.
 */
export function settle(model: QueueModel, world: QueueWorld): void {
  world.always = null;
  const take = (step: QueueStep) => takeStep(step, model, world);
  if (!model.running) take({ do: "resume" });
  take({ do: "publish" });
  take({ do: "needsKick" });
  // What the device holds it answers without being told.
  if (model.fetched.length > 0) {
    take({ do: "completeAll", backwards: false, written: 1 });
  }
  take({ do: "publishUsed" });
  take({ do: "needsInterrupt" });
  while (!model.deviceAsleep || !model.driverAsleep) {
    if (!model.deviceAsleep) {
      take({ do: "fetch", count: 0 });
      if (model.fetched.length > 0) {
        take({ do: "completeAll", backwards: false, written: 1 });
      }
      take({ do: "publishUsed" });
      take({ do: "needsInterrupt" });
      take({ do: "armKicks" });
    }
    if (!model.driverAsleep) {
      take({ do: "reclaim", count: 0 });
      take({ do: "armInterrupts" });
    }
  }
  if (model.exposed > 0) {
    throw new Violation(
      "progress",
      `both sides sleep while ${model.exposed} buffers are on their way`,
    );
  }
  const { driver, device, sides } = world.rig;
  if (sides.device === undefined) {
    const state = device.save();
    checkSavedAt("cursors", state, model, model.availPosition);
    expectSame("exactly-once", "inFlight", state.inFlight.length, 0);
  }
  const free = driver.free;
  expectSame("exactly-once", "free descriptors", free, model.setup.size);
}
