import type { ScriptWorld, Step } from "./script_property.ts";
import { Violation } from "./violation.ts";

/**
 * A world of which some invariants alone are judged: a run in which another one breaks is over and says
 * nothing. Faults that are no violation still come up.
 *
 * @param invariants Names of those that are judged.
 */
export function judgingOnly<S extends Step>(
  invariants: readonly string[],
  world: ScriptWorld<S>,
): ScriptWorld<S> {
  let over = false;
  const unlessOver = <T>(work: () => T, otherwise: T): T => {
    if (over) return otherwise;
    try {
      return work();
    } catch (error) {
      if (!(error instanceof Violation)) throw error;
      if (invariants.includes(error.invariant)) throw error;
      over = true;
      return otherwise;
    }
  };
  return {
    run: world.run,
    possible: (step) => !over && world.possible(step),
    take: (step) => unlessOver(() => world.take(step), "over"),
    settle: () => unlessOver(() => world.settle(), undefined),
  };
}
