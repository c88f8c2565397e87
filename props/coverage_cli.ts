/**
 * The command-line program behind `deno task props:coverage`: which lines of the queues and of the vsock device the properties of
 * campaigns reach, without any other test.
 *
 * @module
 */

// deno-lint-ignore-file no-console

import { copySources } from "./planted_bugs.ts";

/** Folders that have to reach the bar, each on its own. */
const FOLDERS = ["ring/", "device/vsock/"] as const;
const DEFAULT_RUNS = 300;
const DEFAULT_BAR = 95;
const SEED = 0x5eed;

const HELP = `Tells which lines the properties reach, by deno coverage.

Usage: deno task props:coverage [OPTIONS]

Options:
  --runs N      Runs of each property, a tenth of them of those that take long;
                default: ${DEFAULT_RUNS}
  --seed X      Seed of the scripts; default: ${SEED}
  --bar P       Percent of the lines of each folder; default: ${DEFAULT_BAR}
  --help        Print this text

Folders: ${
  FOLDERS.join(", ")
}. The same seed and runs reach the same lines on any machine. Exit code 1 if one of them is under the bar, or if
a property does not hold.
`;

/** Lines of a file: how often each was reached. */
type FileLines = { path: string; lines: Map<number, number> };

/** Reads a report in the format of lcov. */
export function parseLcov(text: string, root: string): FileLines[] {
  const files: FileLines[] = [];
  for (const line of text.split("\n")) {
    if (line.startsWith("SF:")) {
      const path = line.slice(3).replace(root, "");
      files.push({ path, lines: new Map() });
    } else if (line.startsWith("DA:")) {
      const [number, count] = line.slice(3).split(",").map(Number);
      files.at(-1)!.lines.set(number!, count!);
    }
  }
  return files;
}

/** Lines that were reached, of how many; and which were not, in ranges. */
export function countLines(
  { lines }: FileLines,
): { hit: number; all: number; missed: string } {
  const numbers = [...lines.keys()].sort((a, b) => a - b);
  const missed = numbers.filter((number) => lines.get(number) === 0);
  const ranges: [number, number][] = [];
  for (const number of missed) {
    const last = ranges.at(-1);
    const before = numbers[numbers.indexOf(number) - 1];
    if (last !== undefined && last[1] === before) last[1] = number;
    else ranges.push([number, number]);
  }
  return {
    hit: numbers.length - missed.length,
    all: numbers.length,
    missed: ranges.map(([from, to]) => from === to ? from : `${from}-${to}`)
      .join(" "),
  };
}

function percent(hit: number, all: number): string {
  return `${(all === 0 ? 100 : 100 * hit / all).toFixed(1).padStart(5)} %`;
}

/** Files of a folder that have code, and are no tests. */
async function sourcesOf(folder: string, root: string): Promise<string[]> {
  const paths: string[] = [];
  for await (const { name } of Deno.readDir(root + folder)) {
    if (
      !/^[a-z_]+\.ts$/.test(name) || /_test\.ts|^_fixture|^_test_/.test(name)
    ) {
      continue;
    }
    const text = await Deno.readTextFile(root + folder + name);
    if (/^(export )?(class|function|const) /m.test(text)) {
      paths.push(folder + name);
    }
  }
  return paths.sort();
}

/** Prints the table of a folder; whether it reaches the bar. */
async function report(
  folder: string,
  files: readonly FileLines[],
  root: string,
  bar: number,
): Promise<boolean> {
  let hit = 0;
  let all = 0;
  let lost = 0;
  for (const path of await sourcesOf(folder, root)) {
    if (files.some((file) => file.path === path)) continue;
    console.log(`      -  ${path.padEnd(32)} is not in the report`);
    lost++;
  }
  for (const file of files) {
    if (!file.path.startsWith(folder)) continue;
    const count = countLines(file);
    hit += count.hit;
    all += count.all;
    console.log(
      `${percent(count.hit, count.all)}  ${file.path.padEnd(32)} ${
        count.missed === "" ? "" : `not: ${count.missed}`
      }`.trimEnd(),
    );
  }
  const reached = lost === 0 && all > 0 && 100 * hit / all >= bar;
  console.log(
    `${percent(hit, all)}  ${folder} in all: ${hit} of ${all} lines${
      reached
        ? ""
        : lost > 0
        ? `, without ${lost} files`
        : `, under the bar of ${bar} %`
    }\n`,
  );
  return reached;
}

async function deno(
  args: string[],
): Promise<{ success: boolean; text: string }> {
  const command = new Deno.Command(Deno.execPath(), {
    args,
    stderr: "inherit",
  });
  const { success, stdout } = await command.output();
  return { success, text: new TextDecoder().decode(stdout) };
}

async function measure(
  runs: number,
  seed: number,
  bar: number,
): Promise<number> {
  // A copy, since what is edited meanwhile would be missing from the report.
  const root = `${await Deno.makeTempDir({ prefix: "coverage-" })}/`;
  const folder = `${root}counts`;
  try {
    await copySources(new URL("../", import.meta.url), root.slice(0, -1));
    const run = await deno([
      "run",
      "-A",
      "--quiet",
      `--coverage=${folder}`,
      `--config=${root}deno.json`,
      `${root}props/coverage_run.ts`,
      String(runs),
      String(seed),
    ]);
    console.log(run.text);
    const include = FOLDERS.map((path) => `--include=^file://${root}${path}`);
    const { success, text } = await deno(
      ["coverage", "--quiet", "--lcov", ...include, folder],
    );
    if (!success) return 1;
    const files = parseLcov(text, root);
    const reached: boolean[] = [];
    for (const path of FOLDERS) {
      reached.push(await report(path, files, root, bar));
    }
    return run.success && !reached.includes(false) ? 0 : 1;
  } finally {
    await Deno.remove(root, { recursive: true });
  }
}

async function main(words: readonly string[]): Promise<number> {
  const options = { runs: DEFAULT_RUNS, seed: SEED, bar: DEFAULT_BAR };
  for (let i = 0; i < words.length; i += 2) {
    const [option, value] = words.slice(i, i + 2);
    if (option === "--help") {
      console.log(HELP);
      return 0;
    }
    const name = option?.replace(/^--/, "") as keyof typeof options;
    if (!/^-?\d{1,9}$/.test(value ?? "") || !Object.hasOwn(options, name)) {
      console.error(`props:coverage: cannot take ${option} ${value ?? ""}`);
      return 2;
    }
    options[name] = Number(value);
  }
  return await measure(options.runs, options.seed, options.bar);
}

if (import.meta.main) Deno.exit(await main(Deno.args));
