/** Where a poll begins, in milliseconds. */
const FIRST_MS = 0.01;
/** What a wake-up by the other side than the last one adds to the count of turns, and any other takes off. */
const TURN_GAIN = 2;
const TURN_LOSS = 1;
const MAX_TURNS = 8;
/** Count of turns from which on there is somebody who waits for answers. */
const MIN_TURNS = 5;

/**
 * How long a loop looks for events again and again before it sleeps.
 *
 * To sleep and to be woken takes longer than most answers. But sleep is also what makes bytes
 * gather: a loop that looks at a stream again and again finds it in crumbs. So there is a window only
 * while wake-ups come from different sides in turns, as requests and answers do; it grows while what is
 * waited for comes within the longest window, and closes at the first wait that takes longer.
 */
export class BusyPoll {
  /** How long to look before the next sleep, in milliseconds; 0 for not at all. */
  window = 0;
  readonly #maxMs: number;
  #ms = 0;
  #turns = 0;
  #last = 0;

  /** @param maxMs Longest window, in milliseconds; 0 for none ever. */
  constructor(maxMs: number) {
    this.#maxMs = maxMs;
  }

  /** A wait is over that took `waitedMs`; bit n of `sides` is set where side n had events. */
  woke(sides: number, waitedMs: number): void {
    const last = this.#last;
    this.#last = sides;
    const inTurns = sides !== 0 && last !== 0 && (sides & last) === 0;
    const turns = this.#turns + (inTurns ? TURN_GAIN : -TURN_LOSS);
    this.#turns = turns < 0 ? 0 : turns > MAX_TURNS ? MAX_TURNS : turns;
    if (waitedMs > this.#maxMs) this.#ms = 0;
    else {
      const ms = this.#ms === 0 ? FIRST_MS : 2 * this.#ms;
      this.#ms = ms < this.#maxMs ? ms : this.#maxMs;
    }
    this.window = this.#turns >= MIN_TURNS ? this.#ms : 0;
  }
}
