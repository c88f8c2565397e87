/**
 * A thread that scribbles over guest memory while a device reads it.
 *
 * Each message is a {@link Scribbling}: it writes until it is told to stop by the word in `control`, and
 * then says how many words it wrote.
 *
 * @module
 */

import { randomBelow } from "./race.ts";

/** What to scribble over. */
export type Scribbling = {
  /** The memory. */
  buffer: SharedArrayBuffer;
  /** Two words: 0 while it goes on, and the words written up to now. */
  control: SharedArrayBuffer;
  /** Offset in the buffer and bytes, both multiples of 2. */
  ranges: [offset: number, bytes: number][];
  /** Chooses where and what. */
  seed: number;
  /** The only values that are written, in turn; any others unless told. */
  values?: number[];
};

function scribble({ buffer, control, ranges, seed }: Scribbling): number {
  const pick = randomBelow(seed);
  const stop = new Int32Array(control);
  const words = new Uint16Array(buffer);
  let written = 0;
  while (Atomics.load(stop, 0) === 0) {
    for (let i = 0; i < 64; i++) {
      const [offset, bytes] = ranges[pick(ranges.length)]!;
      const at = (offset + pick(bytes / 2) * 2) / 2;
      const before = words[at]!;
      let value = pick(65536);
      switch (pick(6)) {
        case 0:
          value = before + 1;
          break;
        case 1:
          value = before ^ (1 << pick(16));
          break;
        case 2:
          value = pick(64);
          break;
        case 3: // there and back: two reads differ
          words[at] = ~before;
          value = before;
          break;
        case 4:
          value = 0xffff;
      }
      words[at] = value;
      written++;
    }
    Atomics.store(stop, 1, written);
  }
  return written;
}

/** Writes the values in turn, as fast as it can. */
function toggle({ buffer, control, ranges, values }: Scribbling): number {
  const stop = new Int32Array(control);
  const words = new Uint16Array(buffer);
  const at = ranges[0]![0] / 2;
  let written = 0;
  while (Atomics.load(stop, 0) === 0) {
    for (const value of values!) Atomics.store(words, at, value);
    written += values!.length;
    Atomics.store(stop, 1, written);
  }
  return written;
}

/** The worker's side of its messages, which the window's types do not have. */
const scope = globalThis as unknown as {
  onmessage: ((event: MessageEvent<Scribbling>) => void) | null;
  postMessage(written: number): void;
};

scope.onmessage = ({ data }) => {
  scope.postMessage(data.values === undefined ? scribble(data) : toggle(data));
};
