/**
 * A walk over every state that a driver and a device of a small ring can come to.
 *
 * @module
 */

import { FORM_BYTES, stepName, type WalkSetup } from "./exhaustive_model.ts";
import { type OpenRing, openRing } from "./exhaustive_open.ts";
import { WalkPair } from "./exhaustive_pair.ts";
import { FormStore, Ways } from "./exhaustive_store.ts";
import { Violation } from "./violation.ts";

export type { WalkSetup } from "./exhaustive_model.ts";

/** How far a walk goes. */
export type WalkLimits = {
  /** States at which it ends though some are left. */
  readonly states: number;
  /** Seconds after which it ends. */
  readonly seconds: number;
  /** In how many members of a class each step is taken; see {@link walk}. 1 unless told. */
  readonly members?: number;
  /** The script of every so-manieth state is run plainly, see {@link walk}; none unless told. */
  readonly plainly?: number;
  /** The code that is walked; `ring/` as it is unless told. */
  readonly ring?: OpenRing;
};

/** The shortest way to something that must not be. */
export type WalkFailure = {
  /** Name of the invariant. */
  readonly invariant: string;
  /** What was seen. */
  readonly message: string;
  /** What was done, one step a line, with what came of it; the walk's steps. */
  readonly script: string[];
  /**
   * Where in the ring the same steps, one after another and with nothing put in between, come to a violation, too;
   * null where they come to one only with the names, places and dead words that the walk has drawn.
   */
  readonly plainly: string | null;
};

/** What a walk has found. */
export type WalkResult = {
  readonly setup: WalkSetup;
  /** States that differ, the first one included. */
  readonly states: number;
  /** Steps that were taken and judged. */
  readonly transitions: number;
  /** Steps of the longest shortest script. */
  readonly depth: number;
  /** States from which both sides, going on alone, were seen to bring everything back. */
  readonly settled: number;
  /** No state is left that was not gone on from. */
  readonly emptied: boolean;
  readonly seconds: number;
  /** Null where every invariant held. */
  readonly failure: WalkFailure | null;
};

/** How often a walk looks at the clock, in states. */
const LOOK_STATES = 1024;

/**
 * Walks breadth first from the initial state of a pair to all that it can come to.
 *
 * A state is the ring's memory, what both sides keep privately and the model, in a canonical form that is said in
 * {@link SplitForm} and {@link PackedForm}; it is a class of states that differ by names, by place in the ring,
 * and by what nobody may read. Each state is made of its form before a step is taken from it, as a member of its
 * class that a hash of the form draws. After each step all invariants are checked. In the end each state
 * is followed to rest: both sides go on alone, by steps of the walk, each while it is awake, until all has come
 * back.
 *
 * With `members` above 1 each step is taken in so many members of each class, which must all come to the same
 * class: this checks that the members behave the same, which is what the walk rests on.
 *
 * With `plainly` the script of some states is run once more from a fresh pair: one step after another, at any place,
 * and nothing is made of a form on the way. It must come to the class that the walk says. This checks the forms,
 * too: that nothing which matters is left out of them, and no state is made of one that cannot be. It ends
 * where a packed ring's event that was passed is met again after two laps, which the walk does not see.
 *
 * `tell` is called now and then with the states and transitions so far and the depth.
 */
export async function walk(
  setup: WalkSetup,
  limits: WalkLimits,
  tell: (states: number, transitions: number, depth: number) => void = () => {},
): Promise<WalkResult> {
  const began = performance.now();
  const pair = new WalkPair(limits.ring ?? await openRing(), setup);
  const members = limits.members ?? 1;
  const seen = new FormStore();
  const ways = new Ways();
  ways.push(0, 0);
  let failure: WalkFailure | null = null;
  try {
    seen.add(pair.save());
  } catch (error) {
    if (!(error instanceof Violation)) throw error;
    const { invariant, message } = error;
    failure = { invariant, message, script: [], plainly: "the beginning" };
  }
  const form = new Uint8Array(FORM_BYTES);
  const steps: number[] = [];
  const after: number[] = [];
  let levelEnd = 1;
  let transitions = 0;
  let depth = 0;
  let stopped = false;
  walking: for (let state = 0; state < seen.count; state++) {
    if (state === levelEnd) {
      depth++;
      levelEnd = seen.count;
    }
    if (seen.count >= limits.states) stopped = true;
    if (state % LOOK_STATES === 0) {
      if (performance.now() - began > limits.seconds * 1000) stopped = true;
      tell(seen.count, transitions, depth);
    }
    if (stopped) break;
    const number = seen.read(state, form);
    for (let member = 0; member < members; member++) {
      const drawn = memberOf(number, member);
      pair.load(form, drawn);
      pair.model.steps(steps);
      const rest = pair.model.restStep();
      if (rest < 0 && pair.model.free < setup.size) {
        const path = ways.path(state);
        const why = new Violation("quiescence", "both sides sleep too early");
        failure = explain(pair, seen, ways, path, -1, 0, why);
        break walking;
      }
      if (rest < 0) ways.setRest(state, state);
      for (let i = 0; i < steps.length; i++) {
        const step = steps[i]!;
        if (i > 0) pair.load(form, drawn);
        transitions++;
        try {
          pair.take(step);
          const count = seen.count;
          const index = seen.add(pair.save());
          if (index === count) ways.push(state, step);
          if (member === 0) {
            after[i] = index;
            if (step === rest) ways.setRest(state, index);
          } else if (index !== after[i]) {
            throw new Violation(
              "members behave the same",
              "the same step leads elsewhere with other names or at another place",
            );
          }
        } catch (error) {
          if (!(error instanceof Violation)) throw error;
          const path = ways.path(state);
          failure = explain(pair, seen, ways, path, step, drawn, error);
          break walking;
        }
      }
    }
  }
  if (failure === null && (limits.plainly ?? 0) > 0) {
    failure = runPlainly(pair, seen, ways, limits.plainly!);
  }
  const settled = ways.settle();
  if (failure === null && settled.stuck >= 0) {
    const path = ways.path(settled.stuck);
    const why = new Violation("quiescence", "both sides go on for ever");
    failure = explain(pair, seen, ways, path, -1, 0, why);
  }
  return {
    setup,
    states: seen.count,
    transitions,
    depth: stopped || failure !== null ? depth + 1 : depth,
    settled: settled.count,
    emptied: !stopped && failure === null,
    seconds: (performance.now() - began) / 1000,
    failure,
  };
}

// Every so-manieth state, by its script from a fresh pair.
function runPlainly(
  pair: WalkPair,
  seen: FormStore,
  ways: Ways,
  every: number,
): WalkFailure | null {
  const first = new Uint8Array(FORM_BYTES);
  const form = new Uint8Array(FORM_BYTES);
  seen.read(0, first);
  // Any of the states, not always those at the same place in a level.
  for (let at = 0; at < seen.count; at += every) {
    const state = at + (Math.imul(at, 0x9e3779b1) >>> 0) % every;
    if (state >= seen.count) break;
    const path = ways.path(state);
    const places = pair.places(path.length);
    const { name, base, wrap } = places[state % places.length]!;
    let why: Violation | null = null;
    try {
      pair.loadPlain(first, base, wrap);
      for (let i = 1; i < path.length; i++) {
        pair.take(ways.stepTo(path[i]!));
        const found = pair.save();
        seen.read(path[i]!, form);
        if (found.every((byte, i) => byte === form[i])) continue;
        // From here on it may go another way than the walk.
        if (pair.isMetAgain(found, form)) break;
        throw new Violation(
          "forms are whole",
          `step ${i} leads elsewhere from ${name} on: ${found}, not ${form}`,
        );
      }
    } catch (error) {
      if (!(error instanceof Violation)) throw error;
      why = error;
    }
    if (why !== null) return explain(pair, seen, ways, path, -1, 0, why);
  }
  return null;
}

function memberOf(number: number, member: number): number {
  return (number + Math.imul(member, 0x9e3779b1)) >>> 0;
}

/** `last` is the step from the path's last state, or -1; `drawn` the member in which it was taken. */
function explain(
  pair: WalkPair,
  seen: FormStore,
  ways: Ways,
  path: readonly number[],
  last: number,
  drawn: number,
  { invariant, message }: Violation,
): WalkFailure {
  const form = new Uint8Array(FORM_BYTES);
  const steps = path.slice(1).map((state) => ways.stepTo(state));
  if (last >= 0) steps.push(last);
  const script = steps.map((step, i) => {
    const number = seen.read(path[i]!, form);
    pair.load(form, i + 1 < path.length ? number : drawn);
    return said(pair, step);
  });
  seen.read(0, form);
  const plainly = pair.places(steps.length).find(({ base, wrap }) => {
    pair.loadPlain(form, base, wrap);
    try {
      for (const step of steps) {
        pair.take(step);
        pair.save();
      }
      return false;
    } catch (error) {
      return error instanceof Violation;
    }
  });
  return { invariant, message, script, plainly: plainly?.name ?? null };
}

function said(pair: WalkPair, step: number): string {
  try {
    const came = String(pair.take(step));
    return came === "" ? stepName(step) : `${stepName(step)}: ${came}`;
  } catch (error) {
    if (!(error instanceof Violation)) throw error;
    return stepName(step);
  }
}
