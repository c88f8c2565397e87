import type { QueueState } from "../ring/queue.ts";
import type { QueueModel } from "./queue_model.ts";
import { expectSame } from "./violation.ts";

/** What 16 bits tell of a position: a split index, or a packed one with its wrap counter. */
export function positionWord(
  { setup }: Readonly<QueueModel>,
  position: number,
): number {
  if (setup.format === "split") return position & 0xffff;
  const lap = Math.floor(position / setup.size);
  return position % setup.size + (lap % 2 === 0 ? 0x8000 : 0);
}

/** The two positions of a state as words, the available one first. */
export function wordsOf(state: QueueState): [number, number] {
  return state.format === "split" ? [state.lastAvailIdx, state.usedIdx] : [
    state.lastAvailIdx + state.lastAvailWrapCounter * 0x8000,
    state.usedIdx + state.usedWrapCounter * 0x8000,
  ];
}

/** Checks that a saved state stands where the model does, with its available index at `availPosition`. */
export function checkSavedAt(
  invariant: string,
  state: QueueState,
  model: QueueModel,
  availPosition: number,
): void {
  const expected = [
    positionWord(model, availPosition),
    positionWord(model, model.usedPosition),
  ];
  expectSame(
    invariant,
    "the saved state",
    wordsOf(state).join(),
    expected.join(),
  );
}
