/**
 * Random scripts of a driver and a device over one virtqueue, judged by a model.
 *
 * @module
 */

import fc from "fast-check";
import { INVARIANTS } from "./invariants.ts";
import type { QueueWorld } from "./queue_actions.ts";
import {
  type Focus,
  type ForeignSetup,
  foreignSetups,
  largeSetups,
  setups,
  steps,
} from "./queue_arbitraries.ts";
import type { QueueModel, QueueSetup } from "./queue_model.ts";
import {
  describe,
  isPossible,
  type QueueRun,
  type QueueStep,
} from "./queue_steps.ts";
import type { QueueSides } from "./queue_rig.ts";
import { newQueueRun, openQueue, settle, takeStep } from "./queue_take.ts";
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
      found instanceof Violation ? found.message : `no-fault: ${found.message}`,
      { cause },
    );
    this.name = "ScriptFailure";
    this.script = script;
    this.lines = lines;
    this.invariant = found instanceof Violation ? found.invariant : "no-fault";
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

const MAX_COMMANDS = 60;

function commands(
  focus: Focus | "large",
  maxCommands: number,
  without: readonly QueueStep["do"][],
): fc.Arbitrary<Iterable<fc.Command<QueueModel, ScriptRun>>> {
  // fast-check takes no weights here: what comes up more often stands there more often.
  const all = steps(focus, without).flatMap(({ arbitrary, weight }) =>
    new Array(weight).fill(arbitrary.map((step) => new StepCommand(step)))
  );
  return fc.commands<QueueModel, ScriptRun>(all, {
    maxCommands,
    size: "max",
    disableReplayLog: true,
  });
}

/**
 * Takes the commands on a new queue and lets both sides come to rest.
 *
 * With a focus the run is about one invariant: where another one does not hold, it ends there.
 *
 * @throws {ScriptFailure} when an invariant does not hold.
 */
function runCommands(
  setup: QueueSetup,
  script: Iterable<fc.Command<QueueModel, ScriptRun>>,
  focus: Focus,
  sides?: QueueSides,
): QueueRun {
  let run = newQueueRun();
  let lines: string[] = [];
  const taken: QueueStep[] = [];
  try {
    const { model, world } = openQueue(setup, focus, sides);
    ({ run, lines } = world);
    fc.modelRun(() => ({ model, real: { world, taken } }), script);
    settle(model, world);
  } catch (error) {
    const failure = new ScriptFailure({ setup, steps: taken }, lines, error);
    if (focus === null || failure.invariant === focus) throw failure;
  }
  return run;
}

/**
 * Takes a script that was kept, with a look at one invariant or a glance at all.
 *
 * @throws {ScriptFailure} when an invariant does not hold.
 */
export function replayQueueScript(
  { setup, steps }: QueueScript,
  focus: Focus = null,
  sides?: QueueSides,
): QueueRun {
  const script = steps.map((step) => new StepCommand(step));
  return runCommands(setup, script, focus, sides);
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

/** What a property of one queue is made of; what is not told is as for Ringside's own queues. */
type QueuePropertyOptions = {
  readonly focus?: Focus;
  readonly large?: boolean;
  readonly sides?: QueueSides;
  /** Steps that do not come up. */
  readonly without?: readonly QueueStep["do"][];
};

function queueProperty(
  name: string,
  setup: fc.Arbitrary<QueueSetup>,
  maxCommands: number,
  { focus = null, large = false, sides, without = [] }: QueuePropertyOptions =
    {},
): NamedProperty {
  const scripts = commands(large ? "large" : focus, maxCommands, without);
  return {
    name,
    replay: (script) => replayQueueScript(script as QueueScript, focus, sides),
    check: (seen, parameters) =>
      fc.check(
        fc.property(setup, scripts, (setup, script) => {
          try {
            seen(runCommands(setup, script, focus, sides));
          } catch (error) {
            seen(null);
            throw error;
          }
        }),
        parameters,
      ),
  };
}

/** All invariants at a glance. */
export const QUEUE_PROPERTIES: readonly NamedProperty[] = [
  queueProperty("queue/split", setups("split", null), MAX_COMMANDS),
  queueProperty("queue/packed", setups("packed", null), MAX_COMMANDS),
];

/** One invariant each, by its name; `restore-run` has another shape and is elsewhere. */
export const INVARIANT_PROPERTIES: readonly NamedProperty[] =
  (["split", "packed"] as const).flatMap((format) =>
    (Object.keys(INVARIANTS) as (keyof typeof INVARIANTS)[])
      .filter((invariant) => invariant !== "restore-run")
      .map((invariant) =>
        queueProperty(
          `${format}/${invariant}`,
          setups(format, invariant),
          MAX_COMMANDS,
          { focus: invariant },
        )
      )
  );

/** Queues as large as they can be, in short scripts. */
export const LARGE_QUEUE_PROPERTY: NamedProperty = queueProperty(
  "queue/large",
  largeSetups(),
  16,
  { large: true },
);

/** What replaces a side, or belongs to a device around the queue: not for sides that are not Ringside's own. */
const OWN_STEPS: readonly QueueStep["do"][] = [
  "restore",
  "restoreAlways",
  "crash",
  "queueReset",
  "suspend",
  "resume",
  "rebind",
];

/** All invariants at a glance, of a queue of which one side is not Ringside's own, without some steps. */
export function foreignQueueProperty(
  name: string,
  setup: ForeignSetup,
  sides: QueueSides,
  without: readonly QueueStep["do"][],
): NamedProperty {
  return queueProperty(name, foreignSetups(setup), MAX_COMMANDS, {
    sides,
    without: [...OWN_STEPS, ...without],
  });
}
