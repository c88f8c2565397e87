// deno-lint-ignore-file no-console

import { describeFinding, type Finding } from "../../props/oracle/mod.ts";

/** What follows from the same seed is the same each time. */
const SEED = 1;

/**
 * The command line of both examples: without an argument each mistake is judged, and what is without one; with
 * the word of a mistake, or `none`, that alone. Returns the exit code: 0 where what was expected came out, and,
 * of one alone, where nothing is wrong with it.
 */
export function runExample<Bug extends string>(
  what: string,
  bugs: Readonly<Record<Bug, string>>,
  judge: (bug: Bug | null, seed: number) => Finding | null,
  args: readonly string[],
): number {
  const names = Object.keys(bugs) as Bug[];
  const [word] = args;
  if (args.length > 1 || word?.startsWith("-")) {
    console.log(
      `Usage: deno run examples/oracle/${what}.ts [none | ${
        names.join(" | ")
      }]`,
    );
    return word === "-h" || word === "--help" ? 0 : 2;
  }
  if (word === undefined) return judgeAll(what, bugs, names, judge);
  const bug = names.find((name) => name === word);
  if (bug === undefined && word !== "none") {
    console.error(`${word} is none of none, ${names.join(", ")}`);
    return 2;
  }
  const finding = judge(bug ?? null, SEED);
  if (bug !== undefined) console.log(`${what} that ${bugs[bug]}:\n`);
  console.log(
    finding === null ? "nothing is wrong with it" : describeFinding(finding),
  );
  return finding === null ? 0 : 1;
}

function judgeAll<Bug extends string>(
  what: string,
  bugs: Readonly<Record<Bug, string>>,
  names: readonly Bug[],
  judge: (bug: Bug | null, seed: number) => Finding | null,
): number {
  let right = judge(null, SEED) === null;
  console.log(
    `${what} without a mistake: ${
      right ? "nothing is wrong with it" : "WRONG"
    }`,
  );
  for (const bug of names) {
    const finding = judge(bug, SEED);
    console.log(`\n${bug}: ${bugs[bug]}`);
    if (finding === null) {
      right = false;
      console.log("  NOT FOUND");
      continue;
    }
    const { invariant, rule, message, lines } = finding;
    const name = rule === null
      ? invariant
      : `${rule.code} (virtio 1.4, ${rule.section})`;
    console.log(`  ${name}, after ${lines.length} steps\n  ${message}`);
  }
  return right ? 0 : 1;
}
