import type { QueueState } from "../ring/queue.ts";
import { saveQueue } from "../ring/save.ts";
import { readUsedIdx } from "../ring/split_device.ts";
import {
  decodeQueueStateWords,
  decodeVringBase,
  encodeQueueStateWords,
  encodeVringBase,
} from "../ring/state.ts";
import type { Exposed, QueueModel } from "./queue_model.ts";
import type { QueueRig } from "./queue_rig.ts";
import { expectSame, Violation } from "./violation.ts";

/** How a state travels to the next device side: with buffers in flight or without. */
export type RestoreWay = "carry" | "rewind" | "words" | "base";

/**
 * One step of a script, plain data. Counts of 0 mean all; picks count modulo what there is, so that a step
 * stays possible while others are taken out.
 */
export type QueueStep =
  | { do: "add"; readable: number[]; writable: number[] }
  | { do: "fill"; readable: number; writable: number }
  | { do: "publish" }
  | { do: "needsKick" }
  | { do: "reclaim"; count: number }
  | { do: "armInterrupts" }
  | { do: "disarmInterrupts" }
  | { do: "fetch"; count: number }
  | { do: "unpop"; count: number }
  | { do: "complete"; picks: number[]; written: number }
  | { do: "completeAll"; backwards: boolean; written: number }
  | { do: "publishUsed" }
  | { do: "needsInterrupt" }
  | { do: "armKicks" }
  | { do: "disarmKicks" }
  | { do: "restore"; way: RestoreWay };

/** What happened in a run, for statistics; null where a property has no such notion. */
export type QueueRun = {
  /** A device side was replaced with buffers in flight. */
  midFlight: boolean | null;
  /** Lap of the ring in which the script began. */
  firstLap: number;
  /** The script went on into another lap. */
  wrapped: boolean | null;
  /** All descriptors were taken. */
  full: boolean | null;
  /** A buffer went through an indirect table. */
  indirect: boolean | null;
  /** Buffers that came back. */
  buffers: number;
};

/** A model and what it judges, with the script so far in words. */
export type QueueWorld = { rig: QueueRig; run: QueueRun; lines: string[] };

/** Whether the step can be taken. */
export function isPossible(
  step: QueueStep,
  model: Readonly<QueueModel>,
): boolean {
  const { size } = model.setup;
  switch (step.do) {
    case "add": {
      const count = step.readable.length + step.writable.length;
      return count > 0 && (count <= size || model.isIndirect(count));
    }
    case "fill": {
      const count = step.readable + step.writable;
      return count <= size || model.isIndirect(count);
    }
    case "unpop":
      return model.lastFetched !== undefined;
    case "complete":
    case "completeAll":
      return model.fetched.length > 0;
    case "restore":
      return model.completed.length === 0;
    default:
      return true;
  }
}

/** Takes the step on both, compares, and notes it in words. */
export function takeStep(
  step: QueueStep,
  model: QueueModel,
  world: QueueWorld,
): void {
  world.lines.push(describe(step));
  const outcome = perform(step, model, world);
  const last = world.lines.length - 1;
  world.lines[last] += outcome === "" ? "" : `: ${outcome}`;
  const { driver, device } = world.rig;
  expectSame("exactly once", "driver.free", driver.free, model.free);
  expectSame("exactly once", "driver.inFlight", driver.inFlight, model.exposed);
  const open = model.fetched.length;
  expectSame("exactly once", "device.inFlight", device.inFlight, open);
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
    case "publish": {
      const news = model.staged.length > 0;
      const said = driver.publish();
      model.publish();
      expectSame("progress", "driver.publish()", said, news);
      return "";
    }
    case "needsKick": {
      const answer = driver.needsKick();
      model.kicks.judge("needsKick()", answer, model.published);
      if (answer) model.deviceAsleep = false;
      const data = driver.notificationData(5);
      const word = positionWord(model, model.published);
      expectSame("positions", "notificationData()", data, word * 65536 + 5);
      return String(answer);
    }
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
      return fetch(step.count || Infinity, model, rig);
    case "unpop": {
      const tokens: number[] = [];
      while (tokens.length < step.count) {
        const last = model.lastFetched;
        if (last === undefined) break;
        rig.unpop(last.token);
        model.unpop(rig.restored);
        tokens.push(last.token);
      }
      return names(tokens);
    }
    case "complete": {
      const tokens: number[] = [];
      for (const pick of step.picks) {
        if (model.fetched.length === 0) break;
        const index = model.setup.inOrder ? 0 : pick % model.fetched.length;
        tokens.push(complete(index, step.written, model, rig));
      }
      rig.completeAgain(tokens[0]!);
      return names(tokens);
    }
    case "completeAll": {
      const tokens: number[] = [];
      while (model.fetched.length > 0) {
        const last = step.backwards && !model.setup.inOrder;
        const index = last ? model.fetched.length - 1 : 0;
        tokens.push(complete(index, step.written, model, rig));
      }
      return names(tokens);
    }
    case "publishUsed": {
      const news = model.completed.length > 0;
      const said = device.publish();
      model.publishUsed();
      expectSame("progress", "device.publish()", said, news);
      return "";
    }
    case "needsInterrupt": {
      const answer = device.needsInterrupt();
      model.interrupts.judge("needsInterrupt()", answer, model.usedPosition);
      if (answer) model.driverAsleep = false;
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
    case "restore":
      return restore(step.way, model, world);
  }
}

const NO_ROOM = "no room";

function add(
  readable: readonly number[],
  writable: readonly number[],
  model: QueueModel,
  { rig, run }: QueueWorld,
): string {
  const lengths = [...readable, ...writable];
  const slots = model.slotsFor(lengths.length);
  const cells = rig.takeCells(lengths.length);
  if (cells === undefined) return NO_ROOM;
  const segments = lengths.map((length, i) => ({
    address: cells[i]!,
    length,
    writable: i >= readable.length,
  }));
  const writableBytes = writable.reduce((sum, length) => sum + length, 0);
  const buffer = {
    generation: model.nextGeneration(),
    segments,
    slots,
    writableBytes,
    written: 0,
    overtaken: false,
  };
  const token = rig.add(buffer);
  if (token === -1) {
    rig.returnCells(cells);
    if (slots <= model.free) {
      throw new Violation(
        "progress",
        `add() has no room for ${slots} of ${model.free} free descriptors`,
      );
    }
    return NO_ROOM;
  }
  if (slots > model.free) {
    throw new Violation(
      "exactly once",
      `add() took ${slots} of ${model.free} free descriptors`,
    );
  }
  if (model.setup.format === "packed") {
    rig.spoilIds(model.published + model.places(model.staged), slots);
  }
  model.add({ token, ...buffer });
  if (model.isIndirect(lengths.length)) run.indirect = true;
  return `buffer ${token}`;
}

function fetch(count: number, model: QueueModel, rig: QueueRig): string {
  const tokens: number[] = [];
  while (tokens.length < count) {
    const token = rig.fetch();
    const expected = model.next;
    if (token !== (expected?.token ?? -1)) {
      throw new Violation(
        token < 0 ? "progress" : "fetch order",
        `pop() gave ${token < 0 ? "nothing" : `buffer ${token}`}, expected ${
          expected === undefined ? "nothing" : `buffer ${expected.token}`
        }`,
      );
    }
    if (expected === undefined) break;
    model.fetch();
    rig.checkFetched(expected);
    tokens.push(token);
  }
  return names(tokens);
}

function complete(
  index: number,
  written: number,
  model: QueueModel,
  rig: QueueRig,
): number {
  const buffer = model.fetched[index]!;
  // 0 is nothing and 1 all; in between it depends on the number alone.
  const room = buffer.writableBytes;
  const bytes = written === 0 ? 0 : room - (written - 1) % (room + 1);
  rig.complete(buffer, bytes);
  model.complete(index, bytes);
  return buffer.token;
}

function reclaim(
  count: number,
  model: QueueModel,
  { rig, run }: QueueWorld,
): string {
  const tokens: number[] = [];
  while (tokens.length < count) {
    const token = rig.driver.reclaim();
    const expected: Exposed | undefined = model.used[0];
    if (token !== (expected?.token ?? -1)) {
      throw new Violation(
        "exactly once",
        `reclaim() gave ${
          token < 0 ? "nothing" : `buffer ${token}`
        }, expected ${
          expected === undefined ? "nothing" : `buffer ${expected.token}`
        }`,
      );
    }
    if (expected === undefined) break;
    expectSame(
      "used length",
      `usedLength of buffer ${token}`,
      rig.driver.usedLength,
      expected.written,
    );
    rig.checkReclaimed(expected);
    model.reclaim();
    run.buffers++;
    tokens.push(token);
  }
  return names(tokens);
}

/** What 16 bits tell of a position: a split index, or a packed one with its wrap counter. */
function positionWord({ setup }: QueueModel, position: number): number {
  if (setup.format === "split") return position & 0xffff;
  const lap = Math.floor(position / setup.size);
  return position % setup.size + (lap % 2 === 0 ? 0x8000 : 0);
}

/** Checks where a saved state stands against the model. */
function checkState(
  state: QueueState,
  model: QueueModel,
  availPosition: number,
): void {
  const words = state.format === "split"
    ? [state.lastAvailIdx, state.usedIdx]
    : [
      state.lastAvailIdx + state.lastAvailWrapCounter * 0x8000,
      state.usedIdx + state.usedWrapCounter * 0x8000,
    ];
  const expected = [
    positionWord(model, availPosition),
    positionWord(model, model.usedPosition),
  ];
  expectSame("positions", "the saved state", words.join(), expected.join());
}

function restore(
  way: RestoreWay,
  model: QueueModel,
  { rig, run }: QueueWorld,
): string {
  const { device, memory, config } = rig;
  const format = model.setup.format;
  const first = JSON.stringify(device.save());
  const saved = way === "carry"
    ? { way, state: device.save() }
    : saveQueue(device, memory, config);
  expectSame("save is pure", "save()", JSON.stringify(device.save()), first);
  const rewound = saved.way === "rewind";
  const unused = model.unused;
  if (unused.length > 0) run.midFlight = true;
  if (rewound && !model.canRewind) {
    throw new Violation(
      "exactly once",
      "buffers in flight are rewound although others overtook them",
    );
  }
  const position = model.availPosition - (rewound ? model.places(unused) : 0);
  checkState(saved.state, model, position);
  const ids = saved.state.inFlight.map(({ id }) => id);
  const expected = rewound ? [] : unused.map(({ token }) => token);
  expectSame("exactly once", "inFlight", ids.join(), expected.join());

  const copy = JSON.stringify(saved.state);
  let state = JSON.parse(copy) as QueueState;
  if (ids.length === 0 && (way === "words" || way === "base")) {
    const usedIdx = format === "split" ? readUsedIdx(memory, config) : 0;
    const words = encodeQueueStateWords(state);
    const usedWord = format === "split"
      ? 0
      : positionWord(model, model.usedPosition);
    expectSame(
      "positions",
      "the words of the state",
      [words.available, words.used].join(),
      [positionWord(model, position), usedWord].join(),
    );
    expectSame(
      "positions",
      "the vring base",
      encodeVringBase(state),
      usedWord * 65536 + positionWord(model, position),
    );
    state = way === "words"
      ? decodeQueueStateWords(format, encodeQueueStateWords(state), usedIdx)
      : decodeVringBase(format, encodeVringBase(state), usedIdx);
    checkState(state, model, position);
  }
  rig.replaceDevice(rig.newDevice(state), ids.length);
  const again = JSON.stringify(rig.device.save());
  expectSame("save is pure", "save() after restore", again, copy);
  model.restored(rewound);
  return saved.way;
}

/** Moves single buffers round, silently, until `count` have gone; then both sides sleep. */
export function advance(
  count: number,
  model: QueueModel,
  world: QueueWorld,
): void {
  if (count === 0) return;
  const { driver, device } = world.rig;
  world.rig.goRound(count);
  model.published = model.reclaimed = count;
  driver.needsKick();
  device.needsInterrupt();
  model.kicks.decided = model.published;
  model.interrupts.decided = model.usedPosition;
  world.run.firstLap = lapOf(model);
  takeStep({ do: "armKicks" }, model, world);
  takeStep({ do: "armInterrupts" }, model, world);
}

/**
 * Lets each side run only when it was told to, until both sleep: then every buffer must be back, and both
 * sides stand at the same place.
 */
export function settle(model: QueueModel, world: QueueWorld): void {
  const take = (step: QueueStep) => takeStep(step, model, world);
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
  const state = world.rig.device.save();
  checkState(state, model, model.availPosition);
  expectSame("exactly once", "inFlight", state.inFlight.length, 0);
  const free = world.rig.driver.free;
  expectSame("exactly once", "free descriptors", free, model.setup.size);
}

function names(tokens: readonly number[]): string {
  if (tokens.length === 0) return "nothing";
  const shown = tokens.slice(0, 8).join(", ");
  const more = tokens.length > 8 ? `, ... (${tokens.length})` : "";
  return `buffer ${shown}${more}`;
}

/** The step in words. */
export function describe(step: QueueStep): string {
  const count = "count" in step && step.count > 0 ? step.count : "all";
  switch (step.do) {
    case "add":
      return `driver adds readable [${step.readable}] writable [${step.writable}]`;
    case "fill":
      return `driver fills the ring with buffers of ${step.readable} readable and ${step.writable} writable segments`;
    case "publish":
      return "driver publishes";
    case "needsKick":
      return "driver decides on a kick";
    case "reclaim":
      return `driver reclaims ${count}`;
    case "armInterrupts":
      return "driver asks for interrupts";
    case "disarmInterrupts":
      return "driver needs no interrupts";
    case "fetch":
      return `device fetches ${count}`;
    case "unpop":
      return `device gives back the last ${count}`;
    case "complete":
      return `device completes ${step.picks.length} (picks ${step.picks}, written ${step.written})`;
    case "completeAll":
      return `device completes all${
        step.backwards ? " from the last one on" : ""
      } (written ${step.written})`;
    case "publishUsed":
      return "device publishes";
    case "needsInterrupt":
      return "device decides on an interrupt";
    case "armKicks":
      return "device asks for kicks";
    case "disarmKicks":
      return "device needs no kicks";
    case "restore":
      return `device is saved, reset and restored (${step.way})`;
  }
}
