/**
 * The command-line program behind `deno task props:planted`.
 *
 * @module
 */

// deno-lint-ignore-file no-console

import { encodeCounterexample } from "./counterexample.ts";
import { type Plant, PlantError, PLANTS } from "./planted.ts";
import { isKilled, type PlantedResult, runPlant } from "./planted_bugs.ts";

const DEFAULT_SECONDS = 60;
/** Bugs under test at a time. */
const AT_A_TIME = 2;
const SEED = 0x5eed;

const HELP =
  `Plants bugs in a copy of the sources and lets the properties find them.

Usage: deno task props:planted [OPTIONS]

Options:
  --only NAME   One bug; may be given more than once
  --seconds S   Seconds for each; default: ${DEFAULT_SECONDS}
  --seed X      Seed of the scripts; default: ${SEED}
  --keep PATH   Write the script that finds each to a file of that folder,
                as props/regressions/ has them
  --help        Print this text

Exit code 1 unless all are found.
`;

type Options = {
  plants: readonly Plant[];
  seconds: number;
  seed: number;
  keep: string | null;
};

function parse(words: readonly string[]): Options | string {
  const only = new Set<string>();
  let keep: string | null = null;
  let seconds = DEFAULT_SECONDS;
  let seed = SEED;
  for (let i = 0; i < words.length; i += 2) {
    const [option, value] = words.slice(i, i + 2);
    const number = /^-?\d{1,9}$/.test(value ?? "") ? Number(value) : NaN;
    if (option === "--only") {
      if (!PLANTS.some(({ name }) => name === value)) {
        return `--only takes one of\n  ${
          PLANTS.map(({ name }) => name).join("\n  ")
        }`;
      }
      only.add(value!);
    } else if (option === "--keep" && value) keep = value;
    else if (option === "--seconds" && number >= 1) seconds = number;
    else if (option === "--seed" && !Number.isNaN(number)) seed = number;
    else return `cannot take ${option} ${value ?? ""}`.trimEnd();
  }
  const plants = PLANTS.filter(({ name }) => only.size === 0 || only.has(name));
  return { plants, seconds, seed, keep };
}

function line(result: PlantedResult): string {
  const { plant, seconds, outcome } = result;
  const name = plant.name.padEnd(42);
  if (typeof outcome === "string") return `NOT FOUND  ${name} ${outcome}`;
  const { failure, runs } = outcome;
  if (failure === null) {
    return `NOT FOUND  ${name} after ${runs} runs, ${seconds.toFixed(1)} s`;
  }
  const { property, invariant, steps, start } = failure;
  const before = start === 0 ? "" : `, after ${start} buffers`;
  return `found      ${name} ${property.padEnd(13)} ${
    String(runs).padStart(6)
  } runs ${seconds.toFixed(1).padStart(5)} s ${
    String(steps).padStart(3)
  } steps  ${invariant}${before}`;
}

/** Keeps the script that finds a bug, for those who plant it no more. */
async function keepScript(
  { plant: { name, who }, outcome }: PlantedResult,
  folder: string,
): Promise<void> {
  if (typeof outcome === "string" || outcome.failure === null) return;
  const { property, script } = outcome.failure;
  const about = `Fails where the bug ${name} is planted, as ${who} had it.`;
  await Deno.mkdir(folder, { recursive: true });
  await Deno.writeTextFile(
    `${folder}/${name}.json`,
    encodeCounterexample(property, script, outcome.failure, {
      about,
      plant: name,
    }),
  );
}

async function main(words: readonly string[]): Promise<number> {
  if (words.includes("--help")) {
    console.log(HELP);
    return 0;
  }
  const options = parse(words);
  if (typeof options === "string") {
    console.error(`props:planted: ${options}\nTry --help.`);
    return 2;
  }
  const root = new URL("../", import.meta.url);
  const { plants, seconds, seed, keep } = options;
  let next = 0;
  let found = 0;
  let longest = 0;
  const work = async () => {
    for (;;) {
      const plant = plants[next++];
      if (plant === undefined) return;
      const result = await runPlant(plant, root, seconds, seed);
      console.log(line(result));
      if (keep !== null) await keepScript(result, keep);
      if (!isKilled(result)) continue;
      found++;
      const { outcome } = result;
      if (typeof outcome === "string") continue;
      longest = Math.max(longest, outcome.failure!.steps);
    }
  };
  try {
    await Promise.all(Array.from({ length: AT_A_TIME }, work));
  } catch (error) {
    if (!(error instanceof PlantError)) throw error;
    console.error(`props:planted: ${error.message}`);
    return 1;
  }
  console.log(
    `${found} of ${plants.length} found, the longest script has ${longest} steps`,
  );
  return found === plants.length ? 0 : 1;
}

if (import.meta.main) Deno.exit(await main(Deno.args));
