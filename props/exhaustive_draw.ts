import type { WalkSetup } from "./exhaustive_model.ts";

/**
 * Which of the states that differ only by names and by place a form is made into.
 *
 * Ids, descriptors of a split table with the addresses of their buffers, and the place in the ring where
 * everything begins, are no part of a form: a driver and a device treat all of them the same. A state is made of
 * its form with names and a place that are drawn, so that an implementation which does not treat them the same
 * is found out: there are no states with tidy names only.
 */
export type Member = {
  /** All descriptors of a split table or all ids of a packed ring, in the order in which they are given out. */
  names: Uint8Array;
  /** Index (split) or descriptor (packed) at which the driver reclaims next. */
  base: number;
  /** Packed: the wrap counter there. */
  wrap: 0 | 1;
  /** To choose what is left open: dead bits and events that lie behind. */
  bits: number;
};

/** Makes a member that `draw` fills. */
export function newMember(size: number): Member {
  return { names: new Uint8Array(size), base: 0, wrap: 1, bits: 0 };
}

/** Draws the member of a number; numbers that differ in their low bits differ in all that is drawn. */
export function draw(into: Member, setup: WalkSetup, number: number): void {
  const { format, size, start } = setup;
  let left = number >>> 0;
  const take = (most: number): number => {
    const taken = left % most;
    left = (left - taken) / most;
    return taken;
  };
  const place = take(size);
  into.wrap = take(2) === 0 ? 1 : 0;
  if (format === "split") {
    into.base = start === "zero" ? place : 0x10000 - size + place;
  } else if (start === "zero" || size === 1) {
    into.base = 0;
    // One descriptor is the first and the last: there the start is the lap.
    if (size === 1) into.wrap = start === "zero" ? 1 : 0;
  } else into.base = 1 + place % (size - 1);
  const { names } = into;
  for (let i = 0; i < size; i++) names[i] = i;
  for (let i = size - 1; i > 0; i--) {
    const j = take(i + 1);
    const name = names[i]!;
    names[i] = names[j]!;
    names[j] = name;
  }
  into.bits = Math.imul(number ^ number >>> 15, 0x2c1b3c6d) >>> 8;
}

/** The tidy member: names in ascending order, at a place. */
export function plain(into: Member, base: number, wrap: 0 | 1): void {
  for (let i = 0; i < into.names.length; i++) into.names[i] = i;
  into.base = base;
  into.wrap = wrap;
  into.bits = 0;
}
