/**
 * A walk over every state that a driver and a device of a small ring can come to.
 *
 * @module
 */

import { stepName, type WalkSetup } from "./exhaustive_model.ts";
import { openRing } from "./exhaustive_open.ts";
import { WalkPair } from "./exhaustive_pair.ts";
import { Violation } from "./violation.ts";

export type { WalkSetup } from "./exhaustive_model.ts";

/** Where a walk ends though states are left. */
export type WalkLimits = {
  /** States. */
  readonly states: number;
  /** Seconds. */
  readonly seconds: number;
};

/** The shortest way to something that must not be. */
export type WalkFailure = {
  /** Name of the invariant. */
  readonly invariant: string;
  /** What was seen. */
  readonly message: string;
  /** What was done, one step a line, with what came of it; the walk's steps. */
  readonly script: string[];
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

/** Words of a row in a set of forms. */
const ROW = 5;
/** How often a walk looks at the clock, in states. */
const LOOK_STATES = 1024;

/**
 * Walks breadth first from the initial state of a pair to all that it can come to.
 *
 * A state is the ring's memory, what both sides keep privately and the model, in a canonical form that is said in
 * {@link SplitForm} and {@link PackedForm}. Each state is made of its canonical form before a step is taken from
 * it, so that what the form leaves out cannot matter unseen. After each step the invariants are checked. In the end
 * each state is followed to rest: both sides go on alone, by steps of the walk, each while it is awake, until all
 * has come back.
 *
 * States are told apart by a hash of 128 bits of the form: with 10^8 states the chance that any two are taken for
 * one is below 10^-22.
 *
 * The one bound of the model: a side decides about a notification before more than `size + 1` buffers (split) or
 * descriptors (packed) were published without a decision, unless one publication alone has more.
 *
 * `tell` is called now and then with the states and transitions so far and the depth.
 */
export async function walk(
  setup: WalkSetup,
  limits: WalkLimits,
  tell: (states: number, transitions: number, depth: number) => void = () => {},
): Promise<WalkResult> {
  const began = performance.now();
  const pair = new WalkPair(await openRing(), setup);
  const first = Uint16Array.from(pair.save());
  const seen = new FormSet();
  const ways = new Ways();
  seen.add(pair.save());
  ways.push(0, 0);
  const steps: number[] = [];
  let level: Uint16Array[] = [first];
  let levelStart = 0;
  let transitions = 0;
  let depth = 0;
  let failure: WalkFailure | null = null;
  let stopped = false;
  walking: while (true) {
    const next: Uint16Array[] = [];
    const nextStart = seen.count;
    for (let i = 0; i < level.length; i++) {
      const form = level[i]!;
      const state = levelStart + i;
      pair.load(form);
      pair.model.steps(steps);
      const rest = pair.model.restStep();
      if (rest < 0) ways.setRest(state, REST);
      for (const step of steps) {
        pair.load(form);
        transitions++;
        try {
          pair.take(step);
          const found = pair.save();
          const count = seen.count;
          const index = seen.add(found);
          if (step === rest) ways.setRest(state, index);
          if (index < count) continue;
          ways.push(state, step);
          next.push(Uint16Array.from(found));
        } catch (error) {
          if (!(error instanceof Violation)) throw error;
          const way = [...ways.to(state), step];
          failure = explain(pair, first, way, error);
          break walking;
        }
      }
      if (seen.count >= limits.states) stopped = true;
      if (i % LOOK_STATES === 0) {
        if (performance.now() - began > limits.seconds * 1000) stopped = true;
        tell(seen.count, transitions, depth);
      }
      if (stopped) break walking;
    }
    if (next.length === 0) break;
    level = next;
    levelStart = nextStart;
    depth++;
  }
  const settled = ways.settle();
  if (failure === null && settled.stuck >= 0) {
    const way = ways.to(settled.stuck);
    const why = new Violation("quiescence", "both sides go on for ever");
    failure = explain(pair, first, way, why);
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

function explain(
  pair: WalkPair,
  first: Uint16Array,
  way: readonly number[],
  { invariant, message }: Violation,
): WalkFailure {
  const script: string[] = [];
  pair.load(first);
  for (const step of way) {
    let came: string;
    try {
      came = String(pair.take(step));
      pair.load(Uint16Array.from(pair.save()));
    } catch (error) {
      if (!(error instanceof Violation)) throw error;
      came = "";
    }
    script.push(came === "" ? stepName(step) : `${stepName(step)}: ${came}`);
  }
  return { invariant, message, script };
}

/** In place of a next state: there is none, all has come back. */
const REST = 0xffffffff;
/** The next state is not known, since the walk ended before. */
const OPEN = 0xfffffffe;
/** Comes to rest. */
const SETTLED = 0xfffffffd;

/** By state: the state before it with the step from there, and the state after it on the way to rest. */
class Ways {
  #parents: Uint32Array = new Uint32Array(1 << 12);
  #steps: Uint8Array = new Uint8Array(1 << 12);
  #rests: Uint32Array = new Uint32Array(1 << 12);
  #count = 0;

  push(parent: number, step: number): void {
    const count = this.#count;
    if (count === this.#parents.length) {
      const parents = new Uint32Array(count * 2);
      const steps = new Uint8Array(count * 2);
      const rests = new Uint32Array(count * 2);
      parents.set(this.#parents);
      steps.set(this.#steps);
      rests.set(this.#rests);
      this.#parents = parents;
      this.#steps = steps;
      this.#rests = rests;
    }
    this.#parents[count] = parent;
    this.#steps[count] = step;
    this.#rests[count] = OPEN;
    this.#count = count + 1;
  }

  setRest(state: number, next: number): void {
    this.#rests[state] = next;
  }

  to(state: number): number[] {
    const way: number[] = [];
    for (let at = state; at !== 0; at = this.#parents[at]!) {
      way.push(this.#steps[at]!);
    }
    return way.reverse();
  }

  /** Follows each state to rest: how many get there, and the first of those that go round for ever, or -1. */
  settle(): { count: number; stuck: number } {
    const rests = this.#rests;
    let count = 0;
    const path: number[] = [];
    for (let state = 0; state < this.#count; state++) {
      path.length = 0;
      let at = state;
      // As long as there are states; one more would mean that one came twice.
      while (at < SETTLED && path.length <= this.#count) {
        path.push(at);
        at = rests[at]!;
      }
      if (at < SETTLED) return { count, stuck: state };
      const end = at === OPEN ? OPEN : SETTLED;
      for (const passed of path) rests[passed] = end;
      if (end === SETTLED) count++;
    }
    return { count, stuck: -1 };
  }
}

/** Hashes of forms, four words each, with the number of the form, by open addressing. */
class FormSet {
  /** Forms in it. */
  count = 0;
  #table: Uint32Array = new Uint32Array(ROW << 12);
  #mask = (1 << 12) - 1;
  readonly #hash: Uint32Array = new Uint32Array(ROW);

  /** The number of a form: `count` before the call where it is new. */
  add(form: readonly number[]): number {
    hash(form, this.#hash);
    this.#hash[4] = this.count;
    const index = this.#place(this.#hash, 0);
    if (index === this.count) {
      this.count++;
      if (this.count * 2 > this.#mask) this.#grow();
    }
    return index;
  }

  #place(from: Uint32Array, at: number): number {
    const table = this.#table;
    const a = from[at]!;
    const b = from[at + 1]!;
    const c = from[at + 2]!;
    const d = from[at + 3]!;
    for (let slot = a & this.#mask;; slot = (slot + 1) & this.#mask) {
      const row = slot * ROW;
      // The fourth word is never 0 in a row that is taken.
      if (table[row + 3] === 0) {
        table[row] = a;
        table[row + 1] = b;
        table[row + 2] = c;
        table[row + 3] = d;
        table[row + 4] = from[at + 4]!;
        return from[at + 4]!;
      }
      if (
        table[row] === a && table[row + 1] === b && table[row + 2] === c &&
        table[row + 3] === d
      ) return table[row + 4]!;
    }
  }

  #grow(): void {
    const old = this.#table;
    this.#table = new Uint32Array(old.length * 2);
    this.#mask = this.#table.length / ROW - 1;
    for (let row = 0; row < old.length; row += ROW) {
      if (old[row + 3] !== 0) this.#place(old, row);
    }
  }
}

// Four lanes that take each word in with a multiplier of their own, mixed at the end.
function hash(form: readonly number[], into: Uint32Array): void {
  let a = 0x9e3779b9 ^ form.length;
  let b = 0x85ebca6b;
  let c = 0xc2b2ae35;
  let d = 0x27d4eb2f;
  for (let i = 0; i < form.length; i++) {
    const word = form[i]!;
    a = Math.imul(a ^ word, 0x01000193);
    a ^= a >>> 15;
    b = Math.imul(b + word, 0x5bd1e995);
    b ^= b >>> 13;
    c = Math.imul(c ^ (word + a), 0x1b873593);
    c ^= c >>> 16;
    d = Math.imul(d + (word ^ b), 0xcc9e2d51);
    d ^= d >>> 14;
  }
  into[0] = mix(a ^ Math.imul(d, 3));
  into[1] = mix(b + a);
  into[2] = mix(c ^ b);
  into[3] = mix(d + c) | 1;
}

function mix(word: number): number {
  word ^= word >>> 16;
  word = Math.imul(word, 0x85ebca6b);
  word ^= word >>> 13;
  word = Math.imul(word, 0xc2b2ae35);
  return word ^ word >>> 16;
}
