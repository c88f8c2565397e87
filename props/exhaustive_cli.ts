/**
 * The command-line program behind `deno task props:exhaustive`.
 *
 * @module
 */

// deno-lint-ignore-file no-console

import { PropsUsageError } from "./cli_args.ts";
import { walk, type WalkResult, type WalkSetup } from "./exhaustive.ts";
import { PLANTS } from "./planted.ts";
import { findPlanted, plantsOfWalks } from "./exhaustive_planted.ts";
import { parseWalkArgs, type Walk, WALK_HELP } from "./exhaustive_args.ts";

/** Seconds between two lines about how far a walk is. */
const TELL_SECONDS = 15;

function nameOf(setup: WalkSetup): string {
  const { format, size, chains, eventIdx, start, notify, more } = setup;
  return `${format} ${size}, chains to ${chains}, event idx ${
    eventIdx ? "on" : "off"
  }, start ${start}, notify ${notify}${
    more === "nothing" ? "" : `, with ${more}`
  }`;
}

function print(result: WalkResult): void {
  const { states, transitions, depth, settled, emptied, seconds } = result;
  console.log(
    `  ${states} states, ${transitions} transitions, depth ${depth}, ${settled} settled, ${
      seconds.toFixed(1)
    } s: ${
      result.failure !== null
        ? "FAILED"
        : emptied
        ? "frontier emptied"
        : "NOT emptied, ended by a limit"
    }`,
  );
  if (result.failure === null) return;
  const { invariant, message, script } = result.failure;
  console.log(`\n  Does not hold: ${invariant}. Shortest script:`);
  for (const [i, line] of script.entries()) {
    console.log(`  ${String(i + 1).padStart(4)}. ${line}`);
  }
  console.log(`  => ${message}`);
  console.log(
    result.failure.plainly === null
      ? "  Only with names, places and dead words as the walk has drawn them.\n"
      : `  The same steps alone fail, too, from ${result.failure.plainly} on.\n`,
  );
}

async function mainPlanted(name: string): Promise<number> {
  const names = name === "all"
    ? plantsOfWalks().map((plant) => plant.name)
    : [name];
  let missed = 0;
  for (const one of names) {
    const limits = { states: 1e7, seconds: 600 };
    const { result, walks } = await findPlanted(one, limits);
    if (result === null) missed++;
    if (result === null || names.length === 1) {
      console.log(
        `${one}: ${result === null ? "NOT " : ""}found, ${walks} walks`,
      );
      if (result === null) continue;
      console.log(nameOf(result.setup));
      print(result);
      continue;
    }
    const { setup, states, failure } = result;
    console.log(
      `${one}: found in ${setup.format} ${setup.size} after ${states} states, ${
        failure!.script.length
      } steps: ${failure!.message}`,
    );
  }
  console.log(`${names.length} planted, ${missed} not found.`);
  return missed === 0 ? 0 : 1;
}

async function main(words: readonly string[]): Promise<number> {
  // What a misuse throws is only looked at for what it is.
  Error.stackTraceLimit = 0;
  if (words[0] === "--planted" && words.length === 2) {
    const name = words[1]!;
    if (name === "all" || PLANTS.some((plant) => plant.name === name)) {
      return await mainPlanted(name);
    }
    const names = plantsOfWalks().map((plant) => plant.name);
    console.error(
      `props:exhaustive: --planted takes all, or one of\n  ${
        names.join("\n  ")
      }`,
    );
    return 2;
  }
  let walks: Walk[] | "help";
  try {
    walks = parseWalkArgs(words);
  } catch (error) {
    if (!(error instanceof PropsUsageError)) throw error;
    console.error(`props:exhaustive: ${error.message}\nTry --help.`);
    return 2;
  }
  if (walks === "help") {
    console.log(WALK_HELP);
    return 0;
  }
  let emptied = 0;
  let failed = 0;
  let states = 0;
  let transitions = 0;
  for (const { setup, limits } of walks) {
    console.log(nameOf(setup));
    let told = performance.now();
    const result = await walk(setup, limits, (states, steps, depth) => {
      const now = performance.now();
      if (now - told < TELL_SECONDS * 1000) return;
      told = now;
      console.log(`  ${states} states, ${steps} transitions, depth ${depth}`);
    });
    print(result);
    if (result.emptied) emptied++;
    states += result.states;
    transitions += result.transitions;
    if (result.failure !== null) failed++;
  }
  console.log(
    `${walks.length} walks: ${emptied} emptied, ${failed} failed, ${states} states, ${transitions} transitions.`,
  );
  return failed === 0 ? 0 : 1;
}

if (import.meta.main) Deno.exit(await main(Deno.args));
