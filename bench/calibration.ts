/**
 * The loop that the tracker times beside every figure. What a figure is divided by must not change: whoever changes this
 * file writes the baseline anew.
 *
 * It does what the hot paths do: walks linked rows of a table, checks bounds, fills columns of three kinds of
 * typed arrays, calls a method with private fields, and now and then an atomic access.
 *
 * @module
 */

const ROWS = 1024;
const STEPS = 32_768;

class Column {
  #next = 0;
  #sum = 0;
  readonly #offset = new Float64Array(64);
  readonly #length = new Uint32Array(64);
  readonly #place = new Int32Array(64);

  take(low: number, length: number): void {
    const at = this.#next & 63;
    this.#offset[at] = low + 4096;
    this.#length[at] = length;
    this.#place[at] = at;
    this.#sum = (this.#sum + length) & 0xfffffff;
    this.#next = (this.#next + 1) & 0xffff;
  }

  get sum(): number {
    return this.#sum;
  }
}

const table = new Uint32Array(new SharedArrayBuffer(ROWS * 16));
const words = new Uint16Array(table.buffer);
for (let i = 0; i < ROWS; i++) {
  table[i * 4] = i * 64;
  table[i * 4 + 2] = i % 61;
  table[i * 4 + 3] = (i * 389 + 7) % ROWS;
}
const column = new Column();

/** Runs the loop once. */
export function calibrate(): void {
  let row = 0;
  for (let i = 0; i < STEPS; i++) {
    const at = row * 4;
    const low = table[at]!;
    const length = table[at + 2]!;
    if (low > 65_536 - length) throw new Error("the table is wrong");
    column.take(low, length);
    row = table[at + 3]!;
    if ((i & 31) === 0) {
      Atomics.store(words, at * 2 + 2, Atomics.load(words, at * 2 + 2) ^ 1);
    }
  }
  if (column.sum < 0) throw new Error("the sum is wrong");
}
