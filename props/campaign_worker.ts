/**
 * A thread of a campaign: runs the batches that it is told to, one after the other.
 *
 * @module
 */

import { emptyTally, runBatch } from "./campaign.ts";
import type { BatchNews, BatchOrder } from "./campaign_pool.ts";
import { PROPERTIES } from "./properties.ts";

/** Time between two signs of life, in milliseconds. */
const ALIVE_MS = 200;

function take({ property: name, seed, runs }: BatchOrder): BatchNews {
  const property = PROPERTIES.find((one) => one.name === name)!;
  let told = performance.now();
  let count = 0;
  try {
    const { tally, failure } = runBatch(property, seed, runs, (holds) => {
      if (holds) count++;
      const now = performance.now();
      if (now - told < ALIVE_MS) return;
      told = now;
      send({ kind: "alive", runs: count, holds });
    });
    if (failure === null) return { kind: "done", tally, failure };
    const { invariant, message, lines, script } = failure;
    return {
      kind: "done",
      tally,
      failure: { invariant, message, lines, script },
    };
  } catch (error) {
    const message = error instanceof Error
      ? error.stack ?? error.message
      : String(error);
    return {
      kind: "done",
      tally: emptyTally(),
      failure: { invariant: "no fault", message, lines: [], script: null },
    };
  }
}

/** The worker's side of its messages, which the window's types do not have. */
const scope = globalThis as unknown as {
  onmessage: ((event: MessageEvent<BatchOrder>) => void) | null;
  postMessage(news: BatchNews): void;
};

function send(news: BatchNews): void {
  scope.postMessage(news);
}

scope.onmessage = ({ data }) => send(take(data));
send({ kind: "ready" });
