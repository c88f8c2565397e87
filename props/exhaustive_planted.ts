/**
 * Walks over rings with a planted bug.
 *
 * @module
 */

import { walk, type WalkLimits, type WalkResult } from "./exhaustive.ts";
import { parseWalkArgs } from "./exhaustive_args.ts";
import { openEdited } from "./exhaustive_open.ts";
import { applyEdit, type Plant, PlantError, PLANTS } from "./planted.ts";

/** Bugs in `ring/` that no walk can find, and why. */
export const BEYOND_WALKS: Readonly<Record<string, string>> = {
  "split-ring-offset-of-16-bits": "the ring has to be larger than 8191",
  "split-indirect-table-without-end": "the driver has to break the rules",
  "split-chain-longer-than-the-ring": "the driver has to break the rules",
  "packed-chain-longer-than-the-ring": "the driver has to break the rules",
};

/** What a walk has found of a planted bug. */
export type PlantedWalk = {
  /** The walk that has found it, or null. */
  readonly result: WalkResult | null;
  /** Walks that were taken. */
  readonly walks: number;
};

/** The bugs that are in `ring/` alone, and that walks can find. */
export function plantsOfWalks(): Plant[] {
  return PLANTS.filter(({ name, edits }) =>
    BEYOND_WALKS[name] === undefined &&
    edits.every(({ file }) => file.startsWith("ring/"))
  );
}

/**
 * Plants a bug and walks, from the smallest ring on, until an invariant does not hold.
 *
 * @throws {PlantError} when there is no such bug, or an edit does not apply exactly once.
 */
export async function findPlanted(
  name: string,
  limits: WalkLimits,
): Promise<PlantedWalk> {
  const plant = PLANTS.find((one) => one.name === name);
  if (plant === undefined) {
    throw new PlantError(`Cannot plant ${name}: there is no such bug`);
  }
  const edits = plant.edits.filter(({ file }) => file.startsWith("ring/"));
  const ring = await openEdited((path, text) =>
    edits.filter(({ file }) => file === path).reduce(
      (edited, edit) => applyEdit(name, edit, edited),
      text,
    )
  );
  const walks = parseWalkArgs([]);
  if (walks === "help") throw new TypeError("Cannot walk: no walks");
  let count = 0;
  for (const { setup } of walks) {
    if (!name.startsWith(setup.format) && /^(split|packed)-/.test(name)) {
      continue;
    }
    count++;
    const result = await walk(setup, { ...limits, ring });
    if (result.failure !== null) return { result, walks: count };
  }
  return { result: null, walks: count };
}
