/**
 * The command-line program behind `deno task props`.
 *
 * @module
 */

// deno-lint-ignore-file no-console

import { BATCH_RUNS, type Finding } from "./campaign.ts";
import { CampaignPool } from "./campaign_pool.ts";
import {
  type CampaignReport,
  decodeReport,
  encodeReport,
  mergeReports,
  reportLines,
} from "./campaign_result.ts";
import {
  helpText,
  parsePropsArgs,
  type PropsArgs,
  PropsUsageError,
} from "./cli_args.ts";
import {
  counterexampleName,
  decodeCounterexample,
  decodeToken,
  encodeCounterexample,
  failureLines,
  KeptFileError,
  type KeptScript,
  replayScript,
} from "./counterexample.ts";
import { Progress, standardOutput } from "./progress.ts";
import { PROPERTIES } from "./properties.ts";
import { ScriptFailure } from "./queue_properties.ts";

const OK = 0;
const FAILED = 1;
const MISUSED = 2;
const INTERRUPTED = 130;
/** Time between two looks at how far a campaign is. */
const TELL_MS = 250;

function freshSeed(): number {
  return crypto.getRandomValues(new Int32Array(1))[0]!;
}

/** Where a report goes, and the scripts that failed. */
type Output = { report: string | null; folder: string };

async function prepareOutput(
  out: string | undefined,
  reportName: string,
): Promise<Output> {
  if (out === undefined) return { report: null, folder: "." };
  const isFile = out.endsWith(".json");
  const cut = out.lastIndexOf("/");
  const folder = isFile ? (cut < 0 ? "." : out.slice(0, cut) || "/") : out;
  await Deno.mkdir(folder, { recursive: true });
  return { report: isFile ? out : `${folder}/${reportName}`, folder };
}

/** Writes the script that failed; returns what to print of it. */
function tellFinding(
  name: string,
  finding: Finding,
  { folder }: Output,
): string[] {
  const { script, seed, batch } = finding;
  const lines = ["", ...failureLines(name, finding)];
  if (script !== null) {
    const path = `${folder}/${counterexampleName(name, script)}`;
    const text = encodeCounterexample(name, script, finding);
    try {
      Deno.writeTextFileSync(path, text);
      lines.push("or by the file that keeps it:");
      lines.push(`  deno task props --replay ${path}`);
    } catch (error) {
      // The word is enough, and other properties go on.
      lines.push(`(no file of it: ${(error as Error).message})`);
    }
  }
  lines.push(`The scripts among which it was found (batch ${batch}):`);
  lines.push(
    `  deno task props --only ${name} --seed ${seed} --runs ${BATCH_RUNS}`,
  );
  return lines;
}

async function campaign(args: PropsArgs): Promise<number> {
  const { runs, seconds, shard, only } = args;
  const seed = args.seed ?? freshSeed();
  const jobs = args.jobs ?? navigator.hardwareConcurrency;
  const { index, of } = shard;
  const output = await prepareOutput(
    args.out,
    `props-${seed}-${index}-of-${of}.json`,
  );
  const abort = new AbortController();
  const interrupt = () => abort.abort();
  Deno.addSignalListener("SIGINT", interrupt);
  Deno.addSignalListener("SIGTERM", interrupt);
  const progress = new Progress(standardOutput());
  const part = of === 1 ? "" : `, shard ${index} of ${of}`;
  progress.print(`seed ${seed}${part}`);
  const started = performance.now();
  const pool = new CampaignPool({
    properties: only,
    seed,
    shard,
    runs,
    seconds,
    jobs,
    signal: abort.signal,
    found: (name, finding) =>
      progress.print(...tellFinding(name, finding, output)),
  });
  const timer = setInterval(() => progress.tell(pool.progress), TELL_MS);
  try {
    await pool.done;
  } finally {
    clearInterval(timer);
    Deno.removeSignalListener("SIGINT", interrupt);
    Deno.removeSignalListener("SIGTERM", interrupt);
    progress.end();
  }
  const report: CampaignReport = {
    seed,
    shard,
    runs,
    seconds,
    took: (performance.now() - started) / 1000,
    jobs,
    interrupted: abort.signal.aborted,
    properties: pool.results,
  };
  const code = await tellReport(report, output);
  if (!report.interrupted) return code;
  console.log("interrupted: what was under way does not count");
  return INTERRUPTED;
}

async function tellReport(
  report: CampaignReport,
  output: Output,
): Promise<number> {
  console.log(["", ...reportLines(report)].join("\n"));
  if (output.report !== null) {
    await Deno.writeTextFile(output.report, encodeReport(report));
    console.log(`written to ${output.report}`);
  }
  const holds = report.properties.every(({ findings }) => !findings.length);
  return holds ? OK : FAILED;
}

/** Reads the reports that lie at some paths, files or folders. */
async function readReports(
  paths: readonly string[],
): Promise<{ from: string; report: CampaignReport }[]> {
  const files: string[] = [];
  for (const path of paths) {
    const stat = await Deno.stat(path).catch(() => null);
    if (!stat?.isDirectory) {
      files.push(path);
      continue;
    }
    const names: string[] = [];
    for await (const { name } of Deno.readDir(path)) {
      if (name.endsWith(".json")) names.push(`${path}/${name}`);
    }
    files.push(...names.sort());
  }
  const parts: { from: string; report: CampaignReport }[] = [];
  for (const from of files) {
    try {
      const report = decodeReport(await readText(from));
      if (report === null) console.log(`${from} is a counterexample: left out`);
      else parts.push({ from, report });
    } catch (error) {
      if (!(error instanceof KeptFileError)) throw error;
      throw new KeptFileError(`cannot merge ${from}: ${error.message}`);
    }
  }
  return parts;
}

async function readText(path: string): Promise<string> {
  try {
    return await Deno.readTextFile(path);
  } catch (error) {
    throw new KeptFileError((error as Error).message);
  }
}

async function merge(
  paths: readonly string[],
  out: string | undefined,
): Promise<number> {
  const parts = await readReports(paths);
  const { report, missing, interrupted } = mergeReports(parts);
  const { of } = parts[0]!.report.shard;
  console.log(`seed ${report.seed}, ${parts.length} of ${of} shards`);
  const output = await prepareOutput(out, `props-${report.seed}.json`);
  for (const { name, findings } of report.properties) {
    for (const finding of findings) {
      console.log(tellFinding(name, finding, output).join("\n"));
    }
  }
  let code = await tellReport(report, output);
  const lack = (shards: readonly number[], what: string) => {
    if (shards.length === 0) return;
    console.log(`${what}: ${shards.map((i) => `${i}/${of}`).join(", ")}`);
    code = FAILED;
  };
  lack(missing, "shards that are missing");
  lack(interrupted, "shards that were interrupted");
  return code;
}

async function readKept(text: string): Promise<KeptScript> {
  const word = decodeToken(text);
  if (word !== undefined) return word;
  const stat = await Deno.stat(text).catch(() => null);
  if (stat === null) {
    throw new KeptFileError(
      "--replay takes the word that a failure has printed, or the file that it has written",
    );
  }
  try {
    return decodeCounterexample(await readText(text));
  } catch (error) {
    if (!(error instanceof KeptFileError)) throw error;
    throw new KeptFileError(`cannot replay ${text}: ${error.message}`);
  }
}

async function replay(text: string): Promise<number> {
  const kept = await readKept(text);
  const { property, script } = kept;
  try {
    const { buffers } = replayScript(kept, PROPERTIES);
    console.log(
      `${property} holds on this script (steps: ${script.steps.length}, buffers: ${buffers})`,
    );
    return OK;
  } catch (error) {
    if (!(error instanceof ScriptFailure)) throw error;
    console.log(failureLines(property, error).join("\n"));
    return FAILED;
  }
}

async function main(words: readonly string[]): Promise<number> {
  const names = PROPERTIES.map(({ name }) => name);
  try {
    const args = parsePropsArgs(words, names);
    if (args === "help") {
      console.log(helpText(names));
      return OK;
    }
    if (args.merge !== undefined) return await merge(args.merge, args.out);
    if (args.replay !== undefined) return await replay(args.replay);
    return await campaign(args);
  } catch (error) {
    if (error instanceof PropsUsageError) {
      console.error(`props: ${error.message}\nTry --help.`);
    } else if (error instanceof KeptFileError) {
      console.error(`props: ${error.message}`);
    } else throw error;
    return MISUSED;
  }
}

if (import.meta.main) Deno.exit(await main(Deno.args));
