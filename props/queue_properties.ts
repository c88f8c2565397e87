/**
 * Random scripts of a driver and a device over one virtqueue, judged by a model.
 *
 * @module
 */

import fc from "fast-check";
import { QueueModel, type QueueSetup } from "./queue_model.ts";
import { MAX_SEGMENT, QueueRig } from "./queue_rig.ts";
import {
  advance,
  describe,
  isPossible,
  type QueueRun,
  type QueueStep,
  type QueueWorld,
  type RestoreWay,
  settle,
  takeStep,
} from "./queue_steps.ts";
import { Violation } from "./violation.ts";

/** A script that can be kept and taken again: plain data. */
export type QueueScript = { setup: QueueSetup; steps: QueueStep[] };

/** A script of any property. */
export type AnyScript = { setup: object; steps: readonly object[] };

/** A script on which an invariant did not hold, with what happened, in words. */
export class ScriptFailure extends Error {
  /** What can be taken again. */
  readonly script: AnyScript;
  /** One line a step; the last one failed. Steps behind the script's are the ones to come to rest. */
  readonly lines: readonly string[];
  /** Which invariant did not hold. */
  readonly invariant: string;

  /** @param script The script. @param lines Its steps in words. @param cause What was thrown. */
  constructor(script: AnyScript, lines: readonly string[], cause: unknown) {
    const found = cause instanceof Error ? cause : new Error(String(cause));
    super(
      found instanceof Violation ? found.message : `no fault: ${found.message}`,
      { cause },
    );
    this.name = "ScriptFailure";
    this.script = script;
    this.lines = lines;
    this.invariant = found instanceof Violation ? found.invariant : "no fault";
  }
}

/** One step as a command of fast-check, which takes out those that do not matter. */
class StepCommand implements fc.Command<QueueModel, ScriptRun> {
  readonly #step: QueueStep;

  constructor(step: QueueStep) {
    this.#step = step;
  }

  check(model: Readonly<QueueModel>): boolean {
    return isPossible(this.#step, model);
  }

  run(model: QueueModel, { taken, world }: ScriptRun): void {
    taken.push(this.#step);
    takeStep(this.#step, model, world);
  }

  toString(): string {
    return describe(this.#step);
  }
}

type ScriptRun = { world: QueueWorld; taken: QueueStep[] };

const SIZES = {
  split: [1, 2, 4, 8, 256],
  packed: [1, 2, 3, 5, 7, 8, 256],
} as const;
const WAYS: readonly RestoreWay[] = ["carry", "rewind", "words", "base"];
const MAX_COMMANDS = 60;

/** Where the script begins: at the start, somewhere in the first laps, or just before an index wraps. */
function starts(
  format: "split" | "packed",
  size: number,
): fc.Arbitrary<number> {
  const laps = fc.nat(2 * size + 2);
  const early = { arbitrary: fc.constant(0), weight: 20 };
  if (format === "packed") {
    return fc.oneof(early, { arbitrary: laps, weight: 20 });
  }
  const before = fc.nat(Math.min(size + 2, 12)).map((few) => 0x1_0000 - few);
  return fc.oneof(
    early,
    { arbitrary: laps, weight: 19 },
    { arbitrary: before, weight: 1 },
  );
}

function setups(format: "split" | "packed"): fc.Arbitrary<QueueSetup> {
  return fc.constantFrom(...SIZES[format]).chain((size) =>
    fc.record({
      format: fc.constant(format),
      size: fc.constant(size),
      eventIdx: fc.boolean(),
      indirect: fc.boolean(),
      inOrder: fc.oneof(
        { arbitrary: fc.constant(false), weight: 3 },
        { arbitrary: fc.constant(true), weight: 1 },
      ),
      strongOrdering: fc.boolean(),
      oneRegion: fc.boolean(),
      start: starts(format, size),
    })
  );
}

/** Rings whose last entries lie 64 KiB and more from the first, and scripts that begin just before those. */
function largeSetups(): fc.Arbitrary<QueueSetup> {
  return fc.record({
    format: fc.constantFrom("split" as const, "packed" as const),
    size: fc.constant(32768),
    eventIdx: fc.boolean(),
    indirect: fc.constant(false),
    inOrder: fc.constant(false),
    strongOrdering: fc.boolean(),
    oneRegion: fc.boolean(),
    start: fc.tuple(fc.integer({ min: 1, max: 2 }), fc.nat(6)).map((
      [laps, few],
    ) => laps * 32768 - few),
  });
}

function commands(
  maxCommands: number,
): fc.Arbitrary<Iterable<fc.Command<QueueModel, ScriptRun>>> {
  const lengths = fc.array(fc.nat(MAX_SEGMENT), { maxLength: 4, size: "max" });
  const few = fc.nat(3);
  const step = <Shape extends Record<string, unknown>>(
    kind: QueueStep["do"],
    shape: { [Key in keyof Shape]: fc.Arbitrary<Shape[Key]> },
  ) =>
    fc.record(shape).map((fields) =>
      new StepCommand({ do: kind, ...fields } as unknown as QueueStep)
    );
  const add = step("add", { readable: lengths, writable: lengths });
  const fill = fc.tuple(few, few).filter(([r, w]) => r + w > 0).map(
    ([readable, writable]) =>
      new StepCommand({ do: "fill", readable, writable }),
  );
  const publish = step("publish", {});
  const needsKick = step("needsKick", {});
  const fetch = step("fetch", { count: few });
  const complete = step("complete", {
    picks: fc.array(fc.nat(7), { minLength: 1, maxLength: 4, size: "max" }),
    written: fc.nat(20),
  });
  const restore = step("restore", { way: fc.constantFrom(...WAYS) });
  const publishUsed = step("publishUsed", {});
  const needsInterrupt = step("needsInterrupt", {});
  const reclaim = step("reclaim", { count: few });
  // What stands here more than once comes up more often.
  const all = [
    add,
    add,
    add,
    fill,
    publish,
    publish,
    needsKick,
    needsKick,
    fetch,
    fetch,
    fetch,
    step("unpop", { count: fc.integer({ min: 1, max: 3 }) }),
    complete,
    complete,
    step("completeAll", { backwards: fc.boolean(), written: fc.nat(20) }),
    publishUsed,
    publishUsed,
    needsInterrupt,
    needsInterrupt,
    reclaim,
    reclaim,
    step("armKicks", {}),
    step("disarmKicks", {}),
    step("armInterrupts", {}),
    step("disarmInterrupts", {}),
    restore,
    restore,
    restore,
  ];
  return fc.commands<QueueModel, ScriptRun>(all, {
    maxCommands,
    size: "max",
    disableReplayLog: true,
  });
}

/**
 * Takes the commands on a new queue and lets both sides come to rest.
 *
 * @throws {ScriptFailure} when an invariant does not hold.
 */
function runCommands(
  setup: QueueSetup,
  script: Iterable<fc.Command<QueueModel, ScriptRun>>,
): QueueRun {
  const run: QueueRun = {
    midFlight: false,
    firstLap: 0,
    wrapped: false,
    full: false,
    indirect: false,
    buffers: 0,
  };
  const lines: string[] = [];
  const taken: QueueStep[] = [];
  try {
    const model = new QueueModel(setup);
    const world = { rig: new QueueRig(setup), run, lines };
    advance(setup.start, model, world);
    lines.length = 0;
    fc.modelRun(() => ({ model, real: { world, taken } }), script);
    settle(model, world);
  } catch (error) {
    throw new ScriptFailure({ setup, steps: taken }, lines, error);
  }
  return run;
}

/** Takes a script that was kept; throws a {@link ScriptFailure} when an invariant does not hold. */
export function replayQueueScript(script: QueueScript): QueueRun {
  return runCommands(
    script.setup,
    script.steps.map((step) => new StepCommand(step)),
  );
}

/** A property that a campaign can run. */
export type NamedProperty = {
  /** What `--only` takes. */
  readonly name: string;
  /** Takes random scripts; `seen` hears of every run, with null of one that failed. */
  check(
    seen: (run: QueueRun | null) => void,
    parameters: { seed: number; numRuns: number },
  ): { failed: boolean; errorInstance: unknown };
  /** Takes a script of its own again; throws a {@link ScriptFailure} when an invariant does not hold. */
  replay(script: AnyScript): QueueRun;
};

function queueProperty(
  name: string,
  setup: fc.Arbitrary<QueueSetup>,
  maxCommands: number,
): NamedProperty {
  return {
    name,
    replay: (script) => replayQueueScript(script as QueueScript),
    check: (seen, parameters) =>
      fc.check(
        fc.property(setup, commands(maxCommands), (setup, script) => {
          try {
            seen(runCommands(setup, script));
          } catch (error) {
            seen(null);
            throw error;
          }
        }),
        parameters,
      ),
  };
}

/** All properties of queues. */
export const QUEUE_PROPERTIES: readonly NamedProperty[] = [
  queueProperty("queue/split", setups("split"), MAX_COMMANDS),
  queueProperty("queue/packed", setups("packed"), MAX_COMMANDS),
];

/** Queues as large as they can be, in short scripts. */
export const LARGE_QUEUE_PROPERTY: NamedProperty = queueProperty(
  "queue/large",
  largeSetups(),
  8,
);
