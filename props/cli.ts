/**
 * The command-line program behind `deno task props`.
 *
 * @module
 */

// deno-lint-ignore-file no-console

import {
  type CampaignResult,
  decodeToken,
  encodeToken,
  runCampaign,
} from "./campaign.ts";
import {
  helpText,
  parsePropsArgs,
  type PropsArgs,
  PropsUsageError,
} from "./cli_args.ts";
import { PROPERTIES } from "./properties.ts";
import { ScriptFailure } from "./queue_properties.ts";

/** Seconds between two lines about how far a campaign is. */
const TELL_SECONDS = 10;

function freshSeed(): number {
  return crypto.getRandomValues(new Int32Array(1))[0]!;
}

function printFailure(name: string, failure: ScriptFailure): void {
  const { setup, steps } = failure.script;
  console.log(`\n${name} does not hold: ${failure.invariant}`);
  console.log(
    `  set up: ${
      Object.entries(setup).map(([key, value]) => `${key} ${value}`).join(", ")
    }`,
  );
  for (const [i, line] of failure.lines.entries()) {
    const number = i < steps.length ? `${i + 1}.` : "then";
    console.log(`  ${number.padStart(4)} ${line}`);
  }
  console.log(`  => ${failure.message}`);
  console.log(`${steps.length} steps. Take it again:`);
  console.log(
    `  deno task props --replay ${encodeToken(name, failure.script)}`,
  );
}

function printTable(results: readonly CampaignResult[]): void {
  const share = (part: number, { runs }: CampaignResult) =>
    runs === 0 ? "-" : `${(100 * part / runs).toFixed(1)} %`;
  const rows = results.map((result) => [
    result.name,
    String(result.runs),
    result.seconds.toFixed(1),
    (result.runs / result.seconds).toFixed(0),
    String(result.buffers),
    share(result.midFlight, result),
    share(result.wrapped, result),
    share(result.full, result),
    share(result.indirect, result),
    result.failure === null ? "holds" : "FAILED",
  ]);
  const head = [
    "property",
    "runs",
    "s",
    "runs/s",
    "buffers",
    "restored in mid-flight",
    "wrapped",
    "ring full",
    "indirect",
    "",
  ];
  const widths = head.map((text, i) =>
    Math.max(text.length, ...rows.map((row) => row[i]!.length))
  );
  console.log();
  for (const row of [head, ...rows]) {
    const cells = row.map((cell, i) =>
      i === 0 || i === row.length - 1
        ? cell.padEnd(widths[i]!)
        : cell.padStart(widths[i]!)
    );
    console.log(cells.join("  ").trimEnd());
  }
}

function replay(token: string): number {
  const kept = decodeToken(token);
  const property = PROPERTIES.find(({ name }) => name === kept?.name);
  if (kept === undefined || property === undefined) {
    console.error("props: --replay takes the word that a failure has printed");
    return 2;
  }
  try {
    const { buffers } = property.replay(kept.script);
    console.log(`${kept.name} holds on this script (${buffers} buffers)`);
    return 0;
  } catch (error) {
    if (!(error instanceof ScriptFailure)) throw error;
    printFailure(kept.name, error);
    return 1;
  }
}

function campaign(args: PropsArgs): number {
  const seed = args.seed ?? freshSeed();
  const chosen = PROPERTIES.filter(({ name }) =>
    args.only === undefined || name === args.only
  );
  console.log(`seed ${seed}`);
  const results: CampaignResult[] = [];
  for (const property of chosen) {
    let told = performance.now();
    const result = runCampaign(
      property,
      seed,
      { runs: args.runs, seconds: args.seconds / chosen.length },
      (runs) => {
        const now = performance.now();
        if (now - told < TELL_SECONDS * 1000) return;
        told = now;
        console.log(`${property.name}: ${runs} runs`);
      },
    );
    results.push(result);
    if (result.failure !== null) {
      printFailure(property.name, result.failure);
      console.log(
        `Or the campaign that found it:\n  deno task props --only ${property.name} --seed ${result.failedSeed}`,
      );
    }
  }
  printTable(results);
  return results.every(({ failure }) => failure === null) ? 0 : 1;
}

function main(words: readonly string[]): number {
  const names = PROPERTIES.map(({ name }) => name);
  let args: PropsArgs | "help";
  try {
    args = parsePropsArgs(words, names);
  } catch (error) {
    if (!(error instanceof PropsUsageError)) throw error;
    console.error(`props: ${error.message}\nTry --help.`);
    return 2;
  }
  if (args === "help") {
    console.log(helpText(names));
    return 0;
  }
  return args.replay === undefined ? campaign(args) : replay(args.replay);
}

if (import.meta.main) Deno.exit(main(Deno.args));
