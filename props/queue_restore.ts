/**
 * The ways in which a device side is replaced by another one, stopped and started again.
 *
 * @module
 */

import type { QueueState } from "../ring/queue.ts";
import { rewindInFlight, saveQueue } from "../ring/save.ts";
import { readUsedIdx } from "../ring/split_device.ts";
import {
  decodeQueueStateWords,
  decodeVringBase,
  encodeQueueStateWords,
  encodeVringBase,
  initialQueueState,
} from "../ring/state.ts";
import { giveBack, type QueueWorld } from "./queue_actions.ts";
import type { QueueModel } from "./queue_model.ts";
import { checkSavedAt, positionWord } from "./queue_positions.ts";
import type { QueueHost } from "./queue_host.ts";
import type { RestoreWay } from "./queue_steps.ts";
import { expectSame, Violation } from "./violation.ts";

/** Replaces the device side; returns the way that was taken. */
export function restore(
  way: RestoreWay,
  model: QueueModel,
  world: QueueWorld,
): string {
  const { rig, run } = world;
  if (model.unused.length > 0) run.midFlight = true;
  if (rig.host !== null) return restoreDevice(way, rig.host, model, world);
  if (model.setup.tracked && isOfDevices(way)) return die(model, world);
  return restoreQueue(way, model, world);
}

function isOfDevices(way: RestoreWay): boolean {
  return way === "region" || way === "facility" || way === "fresh" ||
    way === "snapshot";
}

function carries(way: RestoreWay): boolean {
  return way !== "rewind" && way !== "words" && way !== "base";
}

function restoreQueue(
  way: RestoreWay,
  model: QueueModel,
  world: QueueWorld,
): string {
  const { rig } = world;
  const { device, memory, config } = rig;
  const first = JSON.stringify(device.save());
  const saved = carries(way)
    ? { way: "carry", state: device.save() }
    : saveQueue(device, memory, config);
  expectSame("save-pure", "save()", JSON.stringify(device.save()), first);
  if (!rig.regionTakes(saved.state)) return die(model, world);
  const rewound = saved.way === "rewind";
  const { unused } = model;
  if (rewound && !model.canRewind) {
    throw new Violation(
      "exactly-once",
      "buffers in flight are rewound although others overtook them",
    );
  }
  const position = model.availPosition - (rewound ? model.places(unused) : 0);
  checkSavedAt("positions", saved.state, model, position);
  const ids = saved.state.inFlight.map(({ id }) => id);
  const expected = rewound ? [] : unused.map(({ token }) => token);
  expectSame("exactly-once", "inFlight", ids.join(), expected.join());

  const copy = JSON.stringify(saved.state);
  const travelled = travel(way, saved.state, position, model, world);
  rig.replaceDevice(rig.newDevice(travelled), ids.length);
  // It is the device's own now, whatever becomes of the object.
  travelled.lastAvailIdx ^= 1;
  travelled.usedIdx ^= 1;
  travelled.inFlight.length = 0;
  const again = JSON.stringify(rig.device.save());
  expectSame("restore-run", "save() after restore", again, copy);
  model.restored(rewound);
  return saved.way;
}

/** The state as it comes out at the other end. */
function travel(
  way: RestoreWay,
  state: QueueState,
  position: number,
  model: QueueModel,
  world: QueueWorld,
): QueueState {
  if (way === "plain") return state;
  if (way === "clone") return structuredClone(state);
  const copy = JSON.parse(JSON.stringify(state)) as QueueState;
  if (state.inFlight.length > 0 || (way !== "words" && way !== "base")) {
    return copy;
  }
  return throughWords(way, copy, position, model, world);
}

/** The state by way of its words, which must be those of the model's positions. */
export function throughWords(
  way: "words" | "base",
  state: QueueState,
  position: number,
  model: QueueModel,
  { rig }: QueueWorld,
): QueueState {
  const { format } = model.setup;
  const usedIdx = format === "split" ? readUsedIdx(rig.memory, rig.config) : 0;
  const words = encodeQueueStateWords(state);
  const base = encodeVringBase(state);
  const available = positionWord(model, position);
  const used = format === "split" ? 0 : positionWord(model, model.usedPosition);
  const found = [words.available, words.used].join();
  expectSame("codec", "the words of the state", found, `${available},${used}`);
  expectSame("codec", "the vring base", base, used * 65536 + available);
  const decoded = way === "words"
    ? decodeQueueStateWords(format, words, usedIdx)
    : decodeVringBase(format, base, usedIdx);
  expectSame(
    "codec",
    "the decoded state",
    JSON.stringify(decoded),
    JSON.stringify(state),
  );
  return decoded;
}

/** The device is gone without a word, and another one goes on from the region. */
export function die(model: QueueModel, { rig, run }: QueueWorld): string {
  model.died();
  if (model.waiting.length > 0) run.midFlight = true;
  rig.replaceDevice(rig.recoverDevice(), model.waiting.length);
  const state = rig.device.save();
  checkSavedAt("positions", state, model, model.availPosition);
  const ids = state.inFlight.map(({ id }) => id).join();
  const expected = model.waiting.map(({ token }) => token).join();
  expectSame("exactly-once", "inFlight", ids, expected);
  model.restored(false);
  return "region";
}

function restoreDevice(
  way: RestoreWay,
  host: QueueHost,
  model: QueueModel,
  world: QueueWorld,
): string {
  const byWords = way === "facility" || way === "fresh" || way === "rewind" ||
    way === "words";
  if (byWords && model.setup.device?.bit40 === "state") {
    const same = way === "facility" || way === "words";
    restoreByFacility(same, host, model, world);
    return same ? "same instance" : "another instance";
  }
  if ((byWords || way === "base") && model.running) {
    stopAndStart(host, model, world);
    return "stopped and started";
  }
  restoreSnapshot(host, model, world);
  return "snapshot";
}

function restoreByFacility(
  same: boolean,
  host: QueueHost,
  model: QueueModel,
  world: QueueWorld,
): void {
  const { rig } = world;
  host.resetDevice();
  const position = model.availPosition - model.places(model.waiting);
  const expected = {
    available: positionWord(model, position),
    used: model.setup.format === "split"
      ? 0
      : positionWord(model, model.usedPosition),
  };
  const words = host.words();
  expectSame(
    "positions",
    "the state that is read",
    JSON.stringify(words),
    JSON.stringify(expected),
  );
  // A second reset leaves it alone.
  host.resetDevice();
  const again = JSON.stringify(host.words());
  expectSame("save-pure", "the words", again, JSON.stringify(words));
  const next = same ? host : host.another();
  const before = next.interrupts;
  rig.host = next;
  rig.replaceDevice(next.start(words), 0);
  goesOn(next, before, model);
}

function stopAndStart(
  host: QueueHost,
  model: QueueModel,
  world: QueueWorld,
): void {
  const { rig } = world;
  const stopped = host.stopQueue();
  const rewound = rewindInFlight(rig.memory, rig.config, stopped);
  if (rewound === null) {
    throw new Violation(
      "exactly-once",
      "buffers in flight that nothing has overtaken cannot be rewound",
    );
  }
  const position = model.availPosition - model.places(model.waiting);
  checkSavedAt("positions", rewound, model, position);
  const state = throughWords("base", rewound, position, model, world);
  const before = host.interrupts;
  rig.replaceDevice(host.startQueue(state), 0);
  goesOn(host, before, model);
}

/** The queue was started again, with the fetching of all buffers taken back. */
function goesOn(host: QueueHost, before: number, model: QueueModel): void {
  if (host.fresh) {
    // That ring looks as if nothing had happened in it, so that nothing can be lost: the events stand as they stood.
    expectSame("progress", "used buffers", model.used.length, 0);
    const { wish, hinted } = model.kicks;
    model.restored(true);
    model.kicks.wish = wish;
    model.kicks.hinted = hinted;
    model.interrupts.forced = false;
    model.interrupts.decided = model.usedPosition;
  } else {
    model.restored(true);
    expectSame("progress", "interrupts", host.interrupts - before, 1);
    model.driverAsleep = false;
  }
  model.running = true;
}

function restoreSnapshot(
  host: QueueHost,
  model: QueueModel,
  world: QueueWorld,
): void {
  const { rig } = world;
  const saved = host.save();
  expectSame("save-pure", "the snapshot", host.save(), saved);
  const { unused, running } = model;
  const next = host.another();
  next.restore(saved);
  rig.host = next;
  if (running) {
    expectSame("progress", "interrupts", next.interrupts, 1);
    model.driverAsleep = false;
    rig.replaceDevice(next.running(), unused.length);
  } else {
    next.expectStopped("suspend");
    rig.restored = 0;
  }
  expectSame("restore-run", "the snapshot", next.save(), saved);
  model.restored(false);
  model.running = running;
}

/** The driver resets the queue alone, or the device where the queue cannot be, kicks, and starts it anew. */
export function resetQueue(
  kicks: number,
  model: QueueModel,
  { rig }: QueueWorld,
): string {
  const host = rig.host!;
  const alone = model.setup.device?.bit40 === "reset";
  if (alone) host.resetQueue();
  else host.resetDevice();
  const before = rig.copyMemory();
  const interrupts = host.interrupts;
  for (let i = 0; i < kicks; i++) {
    const told = alone
      ? host.notify((queue) => rig.driver.notificationData(queue))
      : host.kick();
    expectSame("reset", "kicks that reach a queue that was reset", told, 0);
  }
  rig.expectMemory("reset", "a device whose queue was reset", before);
  expectSame("reset", "interrupts", host.interrupts, interrupts);

  for (const buffer of model.owners.values()) rig.checkCancelled(buffer);
  rig.replaceDriver();
  rig.replaceDevice(alone ? host.restartQueue() : host.start(), 0);
  model.reset();
  if (!alone && !host.fresh) {
    // It goes on where it was stopped, which happens to be the start.
    model.interrupts.forced = true;
    model.kicks.arm(0);
  }
  const state = JSON.stringify(rig.device.save());
  const initial = JSON.stringify(initialQueueState(model.setup.format));
  expectSame("reset", "the state after a reset", state, initial);
  return alone ? "the queue alone" : "the device";
}

/** The driver suspends the device. */
export function suspend(model: QueueModel, world: QueueWorld): string {
  const host = world.rig.host!;
  const before = host.interrupts;
  // The model's buffers are given back first, so that what they come to is told.
  giveBack(model, world);
  host.suspend();
  model.running = false;
  const told = host.interrupts > before;
  model.interrupts.judge(
    "the interrupt of a suspension",
    told,
    model.usedPosition,
  );
  if (told) model.driverAsleep = false;
  return told ? "with an interrupt" : "";
}

/** The driver resumes it. */
export function resume(model: QueueModel, { rig }: QueueWorld): void {
  const host = rig.host!;
  const before = host.interrupts;
  const device = host.resume();
  const others = device === rig.device ? rig.restored : model.waiting.length;
  if (device !== rig.device) rig.replaceDevice(device, others);
  expectSame("progress", "interrupts", host.interrupts - before, 1);
  model.running = true;
  // What was kicked meanwhile was not heard.
  model.deviceAsleep = false;
  model.driverAsleep = false;
}
