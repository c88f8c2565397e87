/**
 * Runs the properties on the sources around it until one does not hold, and prints what was found as one
 * line of JSON; `deno task props:planted` starts it in a copy of the sources.
 *
 * @module
 */

// deno-lint-ignore-file no-console

import { runCampaign } from "./campaign.ts";
import { PROPERTIES } from "./properties.ts";
import type { AnyScript, NamedProperty } from "./queue_properties.ts";

const AT_A_GLANCE = /^queue\/(split|packed|large)$/;

/** What was found. */
export type PlantedFinding = {
  /** Runs of all properties together. */
  runs: number;
  /** How long they took. */
  seconds: number;
  /** What does not hold, or null. */
  failure: null | {
    property: string;
    invariant: string;
    message: string;
    /** Steps of the shrunk script. */
    steps: number;
    /** The script, and its steps in words. */
    script: AnyScript;
    lines: readonly string[];
    /** Buffers that went round before its first step. */
    start: number;
  };
};

/** Those of a single invariant come first, so that a bug is told by the promise that it breaks; then those of all at a glance. */
const ORDERED: readonly NamedProperty[] = [
  ...PROPERTIES.filter(({ name }) => !AT_A_GLANCE.test(name)),
  ...PROPERTIES.filter(({ name }) => AT_A_GLANCE.test(name)),
];

/** Runs of one property at a time, and of one that is about what was changed. */
const TURN_RUNS = 40;
const NEAR_RUNS = 400;
/** Seconds after which the next one has its turn. */
const TURN_SECONDS = 1;

/** @param near Properties below this name come first. */
function find(seconds: number, seed: number, near: string): PlantedFinding {
  const isNear = ({ name }: NamedProperty) => name.startsWith(`${near}/`);
  const properties = [
    ...ORDERED.filter(isNear),
    ...ORDERED.filter((property) => !isNear(property)),
  ];
  const started = performance.now();
  const finding: PlantedFinding = { runs: 0, seconds: 0, failure: null };
  const passed = () => (performance.now() - started) / 1000;
  for (let turn = 0; finding.failure === null; turn++) {
    for (const property of properties) {
      if (passed() >= seconds) break;
      const limits = isNear(property)
        ? { runs: NEAR_RUNS, seconds: 4 * TURN_SECONDS }
        : { runs: TURN_RUNS, seconds: TURN_SECONDS };
      const { runs, failure } = runCampaign(
        property,
        (seed + 1000 * turn) | 0,
        limits,
      );
      finding.runs += runs;
      if (failure === null) continue;
      finding.failure = {
        property: property.name,
        invariant: failure.invariant,
        message: failure.message,
        steps: failure.script.steps.length,
        script: failure.script,
        lines: failure.lines,
        start: startOf(failure.script.setup),
      };
      break;
    }
    if (passed() >= seconds) break;
  }
  finding.seconds = passed();
  return finding;
}

function startOf(setup: object): number {
  return "start" in setup && typeof setup.start === "number" ? setup.start : 0;
}

if (import.meta.main) {
  const [seconds, seed, near] = Deno.args;
  console.log(JSON.stringify(find(Number(seconds), Number(seed), near ?? "")));
}
