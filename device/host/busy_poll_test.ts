import { assert, assertEquals } from "@std/assert";
import { BusyPoll } from "./busy_poll.ts";

const GUEST = 1;
const HOST = 2;

/** Wake-ups by `sides`, each after `waitedMs`; the window behind each. */
function windows(poll: BusyPoll, sides: number[], waitedMs = 0.01): number[] {
  return sides.map((side) => {
    poll.woke(side, waitedMs);
    return poll.window;
  });
}

/** One that polls for as long as it may. */
function polling(maxMs: number): BusyPoll {
  const poll = new BusyPoll(maxMs);
  windows(poll, [GUEST, HOST, GUEST, HOST, GUEST, HOST, GUEST, HOST]);
  assertEquals(poll.window, maxMs);
  return poll;
}

Deno.test("BusyPoll.woke() opens a window where wake-ups come from two sides in turns, and widens it", () => {
  const poll = new BusyPoll(0.1);
  assertEquals(poll.window, 0);
  assertEquals(
    windows(poll, [GUEST, HOST, GUEST, HOST, GUEST, HOST]),
    [0, 0, 0, 0.08, 0.1, 0.1],
  );
});

Deno.test("BusyPoll.woke() leaves the window shut while one side streams", () => {
  for (const side of [GUEST, HOST]) {
    const poll = new BusyPoll(0.1);
    assert(
      windows(poll, Array(100).fill(side)).every((window) => window === 0),
    );
    // Credit, now and then.
    const pattern = [...Array(12).fill(side), GUEST + HOST - side];
    const stream = Array(20).fill(pattern).flat();
    assert(windows(poll, stream).every((window) => window === 0));
  }
});

Deno.test("BusyPoll.woke() shuts the window when both sides stream", () => {
  const poll = polling(0.1);
  assertEquals(
    windows(poll, Array(8).fill(GUEST | HOST)).slice(-4),
    [0, 0, 0, 0],
  );
});

Deno.test("BusyPoll.woke() keeps the window for a side that asks twice in each round", () => {
  const poll = polling(0.1);
  const round = [HOST, HOST, GUEST, HOST, GUEST];
  assert(
    windows(poll, Array(20).fill(round).flat()).every((window) => window > 0),
  );
});

Deno.test("BusyPoll.woke() shuts the window at the first long wait", () => {
  const poll = polling(0.06);
  poll.woke(GUEST, 0.061);
  assertEquals(poll.window, 0);
  // It opens again, small, by an answer that came in time.
  poll.woke(HOST, 0.03);
  assertEquals(poll.window, 0.01);
  poll.woke(GUEST, 0.03);
  assertEquals(poll.window, 0.02);
});

Deno.test("BusyPoll.woke() does not take a wait without events for a turn", () => {
  const poll = polling(0.06);
  for (let i = 0; i < 8; i++) poll.woke(0, 0);
  assertEquals(poll.window, 0);
  assertEquals(windows(poll, [GUEST, 0, HOST, 0, GUEST, 0]), [
    0,
    0,
    0,
    0,
    0,
    0,
  ]);
});

Deno.test("BusyPoll.woke() never opens a window of none", () => {
  const poll = new BusyPoll(0);
  const turns = Array(20).fill([GUEST, HOST]).flat();
  assert(windows(poll, turns, 0).every((window) => window === 0));
});
