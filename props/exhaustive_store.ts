import { FORM_BYTES } from "./exhaustive_model.ts";

/** Words of a form. */
const WORDS = FORM_BYTES / 4;
/** Forms of a chunk. */
const CHUNK_BITS = 18;
const CHUNK = 1 << CHUNK_BITS;

/**
 * All forms that were met, in the order in which they were, each whole: that two states are taken for one
 * cannot happen. 16 bytes a form, and 8 to 16 for the table by which it is found.
 */
export class FormStore {
  /** Forms in it. */
  count = 0;
  readonly #chunks: Uint32Array[] = [];
  // By hash: numbers of forms plus 1, by open addressing.
  #table: Uint32Array = new Uint32Array(1 << 12);
  readonly #words: Uint32Array = new Uint32Array(WORDS);
  readonly #bytes: Uint8Array = new Uint8Array(this.#words.buffer);

  /** The number of a form: `count` before the call where it is new. */
  add(form: Uint8Array): number {
    this.#bytes.set(form);
    const words = this.#words;
    const mask = this.#table.length - 1;
    let slot = hash(words, 0) & mask;
    for (;; slot = (slot + 1) & mask) {
      const found = this.#table[slot]!;
      if (found === 0) break;
      const chunk = this.#chunks[(found - 1) >>> CHUNK_BITS]!;
      const at = ((found - 1) & (CHUNK - 1)) * WORDS;
      if (
        chunk[at] === words[0] && chunk[at + 1] === words[1] &&
        chunk[at + 2] === words[2] && chunk[at + 3] === words[3]
      ) return found - 1;
    }
    const number = this.count++;
    if ((number & (CHUNK - 1)) === 0) {
      this.#chunks.push(new Uint32Array(CHUNK * WORDS));
    }
    this.#chunks[number >>> CHUNK_BITS]!.set(
      words,
      (number & (CHUNK - 1)) * WORDS,
    );
    this.#table[slot] = number + 1;
    if (this.count * 2 > this.#table.length) this.#grow();
    return number;
  }

  /** Copies a form out; returns a hash of it. */
  read(number: number, into: Uint8Array): number {
    const chunk = this.#chunks[number >>> CHUNK_BITS]!;
    const at = (number & (CHUNK - 1)) * WORDS;
    for (let i = 0; i < WORDS; i++) this.#words[i] = chunk[at + i]!;
    into.set(this.#bytes);
    return hash(chunk, at);
  }

  #grow(): void {
    const table = new Uint32Array(this.#table.length * 2);
    const mask = table.length - 1;
    for (let number = 0; number < this.count; number++) {
      const chunk = this.#chunks[number >>> CHUNK_BITS]!;
      let slot = hash(chunk, (number & (CHUNK - 1)) * WORDS) & mask;
      while (table[slot] !== 0) slot = (slot + 1) & mask;
      table[slot] = number + 1;
    }
    this.#table = table;
  }
}

function hash(words: Uint32Array, at: number): number {
  let sum = 0x9e3779b9;
  for (let i = at; i < at + WORDS; i++) {
    sum = Math.imul(sum ^ words[i]!, 0x85ebca6b);
    sum ^= sum >>> 15;
    sum = Math.imul(sum, 0xc2b2ae35);
    sum ^= sum >>> 13;
  }
  return (sum ^ sum >>> 16) >>> 0;
}

/** In place of a next state: there is none, all has come back. */
const REST = 0xffffffff;
/** The next state is not known, since the walk ended before. */
const OPEN = 0xfffffffe;
/** Comes to rest. */
const SETTLED = 0xfffffffd;

/** By state: the state before it with the step from there, and the state after it on the way to rest. */
export class Ways {
  #parents: Uint32Array = new Uint32Array(1 << 12);
  #steps: Uint8Array = new Uint8Array(1 << 12);
  #rests: Uint32Array = new Uint32Array(1 << 12);
  #count = 0;

  /** Appends a state. */
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

  /** The state after one, on the way to rest; that state itself where it is at rest. */
  setRest(state: number, next: number): void {
    this.#rests[state] = next === state ? REST : next;
  }

  /** The states from the first one to `state`. */
  path(state: number): number[] {
    const path = [state];
    for (let at = state; at !== 0;) path.push(at = this.#parents[at]!);
    return path.reverse();
  }

  /** The step that led to a state first. */
  stepTo(state: number): number {
    return this.#steps[state]!;
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
