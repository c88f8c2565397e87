/**
 * Random scripts over any rig, as properties that a campaign can run beside those of the queues.
 *
 * @module
 */

import fc from "fast-check";
import { type NamedProperty, ScriptFailure } from "./queue_properties.ts";
import type { QueueRun } from "./queue_steps.ts";

/** One step, plain data; `do` says what. */
export type Step = { readonly do: string };

/** What a script runs on: the model and what it judges. */
export interface ScriptWorld<S extends Step> {
  /** For statistics. */
  readonly run: QueueRun;
  /** Whether the step can be taken now; by the model alone. */
  possible(step: S): boolean;
  /** Takes it on both and compares; returns what happened, in a few words. */
  take(step: S): string;
  /** Comes to rest and compares for the last time. */
  settle(): void;
}

/** What makes a property of random scripts. */
export type ScriptPropertyOptions<Setup extends object, S extends Step> = {
  /** What `--only` takes. */
  readonly name: string;
  /** What the rig is made with. */
  readonly setups: fc.Arbitrary<Setup>;
  /** Steps; what stands there more than once comes up more often. */
  readonly steps: readonly fc.Arbitrary<S>[];
  /** Longest script. */
  readonly maxSteps: number;
  /** The one invariant that it is about; a run on which another one does not hold ends there. All unless told. */
  readonly invariant?: string;
  /** Makes model and rig. */
  readonly make: (setup: Setup) => ScriptWorld<S>;
};

/** What statistics tell of a run, where a property has such a notion. */
export type Notion = "midFlight" | "wrapped" | "full" | "indirect";

/**
 * A run about which nothing is known yet.
 *
 * @param notions Those that the property has; the others are null.
 */
export function newRun(...notions: readonly Notion[]): QueueRun {
  const unless = (notion: Notion) => notions.includes(notion) ? false : null;
  return {
    midFlight: unless("midFlight"),
    firstLap: 0,
    wrapped: unless("wrapped"),
    full: unless("full"),
    indirect: unless("indirect"),
    buffers: 0,
  };
}

type Real<S extends Step> = { taken: S[]; lines: string[] };

class ScriptCommand<S extends Step>
  implements fc.Command<ScriptWorld<S>, Real<S>> {
  readonly #step: S;

  constructor(step: S) {
    this.#step = step;
  }

  check(world: Readonly<ScriptWorld<S>>): boolean {
    return world.possible(this.#step);
  }

  run(world: ScriptWorld<S>, { taken, lines }: Real<S>): void {
    taken.push(this.#step);
    lines.push(this.toString());
    const outcome: string | undefined = world.take(this.#step);
    // A kept script may be older than the steps.
    if (outcome === undefined) throw new TypeError("there is no such step");
    if (outcome !== "") lines[lines.length - 1] += `: ${outcome}`;
  }

  toString(): string {
    return JSON.stringify(this.#step);
  }
}

/** Makes a property of random scripts. */
export function scriptProperty<Setup extends object, S extends Step>(
  options: ScriptPropertyOptions<Setup, S>,
): NamedProperty {
  const { name, setups, steps, maxSteps, make, invariant } = options;
  const runScript = (
    setup: Setup,
    commands: Iterable<fc.Command<ScriptWorld<S>, Real<S>>>,
  ): QueueRun => {
    const real: Real<S> = { taken: [], lines: [] };
    let run = newRun();
    try {
      const world = make(setup);
      ({ run } = world);
      fc.modelRun(() => ({ model: world, real }), commands);
      real.lines.push("both sides come to rest");
      world.settle();
    } catch (error) {
      const script = { setup, steps: real.taken };
      const failure = new ScriptFailure(script, real.lines, error);
      if (invariant === undefined || failure.invariant === invariant) {
        throw failure;
      }
    }
    return run;
  };
  const commands = fc.commands(
    steps.map((one) => one.map((step) => new ScriptCommand(step))),
    { maxCommands: maxSteps, size: "max", disableReplayLog: true },
  );
  return {
    name,
    check: (seen, parameters) =>
      fc.check(
        fc.property(setups, commands, (setup, script) => {
          try {
            seen(runScript(setup, script));
          } catch (error) {
            seen(null);
            throw error;
          }
        }),
        parameters,
      ),
    replay: ({ setup, steps }) =>
      runScript(
        setup as Setup,
        (steps as unknown as S[]).map((step) => new ScriptCommand(step)),
      ),
  };
}
