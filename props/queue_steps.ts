/**
 * Steps of a driver and a device over one queue, as plain data.
 *
 * @module
 */

import type { QueueModel } from "./queue_model.ts";

/**
 * How a state travels to the next device side.
 *
 * `plain`, `carry` and `clone`: the object itself, as JSON and by `structuredClone`, with the buffers in flight. `rewind`: as JSON,
 * with their fetching taken back where that is possible. `words` and `base`: the two words of the queue-state facility, and the
 * number that vhost-user has for them. `region`: none is saved, the region of buffers in flight tells.
 * Of a whole device: `facility` and `fresh` read and set those words on the same instance and on another one; `snapshot` is all of the device, as JSON.
 */
export type RestoreWay =
  | "plain"
  | "carry"
  | "clone"
  | "rewind"
  | "words"
  | "base"
  | "region"
  | "facility"
  | "fresh"
  | "snapshot";

/**
 * One step of a script, plain data. Counts of 0 mean all; picks count modulo what there is, so that a step
 * stays possible while others are taken out.
 */
export type QueueStep =
  | { do: "add"; readable: number[]; writable: number[] }
  | { do: "fill"; readable: number; writable: number }
  /** Some buffers at once. */
  | { do: "addBatch"; count: number; readable: number; writable: number }
  | { do: "publish" }
  | { do: "needsKick" }
  | { do: "reclaim"; count: number }
  | { do: "reclaimBatch"; count: number }
  | { do: "armInterrupts" }
  | { do: "disarmInterrupts" }
  | { do: "fetch"; count: number }
  /** The same many at a time, and the completion of what was fetched so. */
  | { do: "fetchBatch"; count: number }
  | { do: "completeBatch"; written: number[] }
  | { do: "unpop"; count: number }
  | { do: "complete"; picks: number[]; written: number }
  | { do: "completeAll"; backwards: boolean; written: number }
  | { do: "publishUsed" }
  | { do: "needsInterrupt" }
  | { do: "armKicks" }
  | { do: "disarmKicks" }
  /** The device is replaced by another one, `times` in a row (1 unless told). */
  | { do: "restore"; way: RestoreWay; times?: number }
  /** From now on the device is replaced after each step; no longer with null. */
  | { do: "restoreAlways"; way: RestoreWay | null }
  /** The device is gone in the middle of a batch; what it has staged is lost. */
  | { do: "crash" }
  /** The driver resets the queue and starts it anew; between them it kicks. */
  | { do: "queueReset"; kicks: number }
  | { do: "suspend" }
  | { do: "resume" }
  /** Single buffers go round until the next lap, or the next wrap of a free-running index, is near. */
  /** The memory table changes; addresses stay. */
  | { do: "rebind" }
  | { do: "jump"; to: "lap" | "wrap"; before: number };

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

/** Whether the step can be taken; by the model alone. */
export function isPossible(
  step: QueueStep,
  model: Readonly<QueueModel>,
): boolean {
  const { size, device, tracked } = model.setup;
  switch (step.do) {
    case "add": {
      const count = step.readable.length + step.writable.length;
      return count > 0 && (count <= size || model.isIndirect(count));
    }
    case "fill":
    case "addBatch": {
      const count = step.readable + step.writable;
      return count <= size || model.isIndirect(count);
    }
    case "fetch":
    case "fetchBatch":
    case "publishUsed":
    case "needsInterrupt":
    case "armKicks":
    case "disarmKicks":
      return model.running;
    case "unpop":
      return model.running && model.lastFetched !== undefined;
    case "complete":
    case "completeAll":
      return model.fetched.length > 0;
    case "completeBatch":
      return model.canCompleteBatch;
    case "restore":
      return model.completed.length === 0;
    case "crash":
      return tracked === true;
    case "queueReset":
      return device !== undefined &&
        (model.running || device.bit40 !== "reset");
    case "suspend":
      return device?.suspend === true && model.running;
    case "resume":
      return !model.running;
    case "jump":
      return model.running && model.exposed === 0;
    default:
      return true;
  }
}

const WAYS: Readonly<Record<RestoreWay, string>> = {
  plain: "as the state itself",
  carry: "through JSON",
  clone: "through structuredClone",
  rewind: "rewound where possible",
  words: "through the words of the state",
  base: "through the vring base",
  region: "from the region of buffers in flight",
  facility: "by the queue-state facility",
  fresh: "by the queue-state facility, into another instance",
  snapshot: "through a snapshot of the whole device",
};

/** The step in words. */
export function describe(step: QueueStep): string {
  const count = "count" in step && step.count > 0 ? step.count : "all";
  switch (step.do) {
    case "add":
      return `driver adds readable [${step.readable}] writable [${step.writable}]`;
    case "fill":
      return `driver fills the ring with buffers of ${step.readable} readable and ${step.writable} writable segments`;
    case "addBatch":
      return `driver adds ${step.count} buffers of ${step.readable} readable and ${step.writable} writable segments at once`;
    case "reclaimBatch":
      return `driver reclaims ${count} at once`;
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
    case "fetchBatch":
      return `device fetches ${count} at once`;
    case "completeBatch":
      return `device completes at once what it fetched so (written ${step.written})`;
    case "rebind":
      return "device gets another memory table";
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
      return `device is saved, reset and restored ${WAYS[step.way]}${
        (step.times ?? 1) > 1 ? `, ${step.times} times in a row` : ""
      }`;
    case "restoreAlways":
      return step.way === null
        ? "from here on the device is left alone"
        : `from here on, after each step, device is saved, reset and restored ${
          WAYS[step.way]
        }`;
    case "crash":
      return "device is killed";
    case "queueReset":
      return `driver resets the queue and kicks ${step.kicks} times before it starts it anew`;
    case "suspend":
      return "driver suspends the device";
    case "resume":
      return "driver resumes the device";
    case "jump":
      return `single buffers go round until ${step.before} before the next ${
        step.to === "lap" ? "lap" : "wrap of an index"
      }`;
  }
}
