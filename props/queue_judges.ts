/**
 * Looks at one invariant after each step, by what stands in memory and what `save()` tells.
 *
 * @module
 */

import type { QueueState } from "../ring/queue.ts";
import { rewindInFlight } from "../ring/save.ts";
import { checkQueueState, encodeQueueStateWords } from "../ring/state.ts";
import type { QueueWorld } from "./queue_actions.ts";
import type { QueueModel } from "./queue_model.ts";
import { checkSavedAt, positionWord, wordsOf } from "./queue_positions.ts";
import { throughWords } from "./queue_restore.ts";
import { expectSame, Violation } from "./violation.ts";

/** A judge of one invariant. */
type Judge = (model: QueueModel, world: QueueWorld) => void;

/** Looks closely at the invariant on which the world has its focus. */
export function judgeClosely(model: QueueModel, world: QueueWorld): void {
  if (world.focus === null || !model.running) return;
  JUDGES.get(world.focus)?.(model, world);
}

/**
 * Split: `avail.idx - last_avail` is what the driver has published and the device not fetched, at most N, and `last_avail - used.idx`
 * is what is in flight, mod 2^16; `avail.idx` and `used.idx` are read from memory. Packed: the distance of the two positions is the
 * sum of the descriptors of the buffers in flight, where different wrap counters mean a lap.
 */
function judgeDistance(model: QueueModel, { rig }: QueueWorld): void {
  const { size, format, inOrder } = model.setup;
  if (!inOrder) {
    const next = model.usedPosition + model.places(model.completed);
    const found = rig.device.usedPosition;
    expectSame("distance", "usedPosition", found, next % size);
  }
  if (model.completed.length > 0) return;
  const state = rig.device.save();
  const { unused } = model;
  if (format === "split") {
    const { lastAvailIdx } = state;
    const ahead = (rig.availIdx - lastAvailIdx) & 0xffff;
    if (ahead > size) {
      throw new Violation(
        "distance",
        `avail.idx ${rig.availIdx} is ${ahead} ahead of last_avail ${lastAvailIdx} in a queue of ${size}`,
      );
    }
    const waits = model.available.length;
    expectSame("distance", "avail.idx - last_avail", ahead, waits);
    const held = (lastAvailIdx - rig.usedIdx) & 0xffff;
    expectSame("distance", "last_avail - used.idx", held, unused.length);
    return;
  }
  const [available, used] = wordsOf(state);
  const lap = (available ^ used) & 0x8000 ? size : 0;
  const distance = (available & 0x7fff) - (used & 0x7fff) + lap;
  const slots = unused.reduce((sum, buffer) => sum + buffer.slots, 0);
  expectSame("distance", "the distance of the positions", distance, slots);
  const told = state.inFlight.reduce((sum, buffer) => sum + buffer.slots, 0);
  expectSame("distance", "the slots of the state", told, slots);
}

/** At rest both sides stand at the same place, also with their wrap counters. */
function judgeCursors(model: QueueModel, { rig }: QueueWorld): void {
  if (model.exposed > 0) return;
  const state = rig.device.save();
  const word = positionWord(model, model.published);
  checkSavedAt("cursors", state, model, model.published);
  const [available, used] = wordsOf(state);
  expectSame("cursors", "the available position", available, word);
  expectSame("cursors", "the used position", used, word);
  const driver = rig.driver.notificationData(0) >>> 16;
  expectSame("cursors", "the driver's position", driver, word);
  if (model.setup.format === "split") {
    expectSame("cursors", "avail.idx", rig.availIdx, word);
    expectSame("cursors", "used.idx", rig.usedIdx, word);
  }
  expectSame("cursors", "free", rig.driver.free, model.setup.size);
}

/** `save()` twice gives the same, changes no memory and nothing that the device tells of itself. */
function judgeSave(model: QueueModel, { rig }: QueueWorld): void {
  const { device, host } = rig;
  const before = rig.copyMemory();
  const told = [device.inFlight, device.usedPosition].join();
  if (model.completed.length > 0) {
    let refused = false;
    try {
      device.save();
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
      refused = true;
    }
    expectSame("save-pure", "save() of staged completions", refused, true);
  } else {
    const first = JSON.stringify(device.save());
    const second = JSON.stringify(device.save());
    expectSame("save-pure", "save() for the second time", second, first);
    if (host !== null) {
      expectSame("save-pure", "the snapshot", host.save(), host.save());
    }
  }
  rig.expectMemory("save-pure", "save()", before);
  const now = [device.inFlight, device.usedPosition].join();
  expectSame("save-pure", "inFlight and usedPosition", now, told);
}

/** What is decoded is what was encoded, in each of the encodings that can tell it. */
function judgeCodecs(model: QueueModel, world: QueueWorld): void {
  if (model.completed.length > 0) return;
  const { rig } = world;
  const { size, format } = model.setup;
  const state = rig.device.save();
  const text = JSON.stringify(state);
  const same = (what: string, other: QueueState) =>
    expectSame("codec", what, JSON.stringify(other), text);
  same("the state through JSON", JSON.parse(text));
  same("the state through structuredClone", structuredClone(state));
  same(
    "the state that is checked",
    format === "split"
      ? checkQueueState(state, size, "split")
      : checkQueueState(state, size, "packed"),
  );
  if (rig.regionTakes(state, true)) {
    same("the state through a region", rig.throughRegion(state));
  }
  if (state.inFlight.length > 0) {
    let refused = false;
    try {
      encodeQueueStateWords(state);
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
      refused = true;
    }
    expectSame("codec", "words of buffers in flight refused", refused, true);
  }
  const rewound = rewindInFlight(rig.memory, rig.config, state);
  if (rewound === null) return;
  const position = model.availPosition - model.places(model.unused);
  throughWords("words", rewound, position, model, world);
  throughWords("base", rewound, position, model, world);
}

const JUDGES: ReadonlyMap<string, Judge> = new Map<string, Judge>([
  ["distance", judgeDistance],
  ["cursors", judgeCursors],
  ["save-pure", judgeSave],
  ["codec", judgeCodecs],
]);
