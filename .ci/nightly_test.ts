import { assert, assertEquals } from "@std/assert";
import { parse } from "yaml";
import { parsePropsArgs } from "../props/cli_args.ts";

const ROOT = new URL("../", import.meta.url);

type Step = {
  run?: string;
  uses?: string;
  with?: Record<string, unknown>;
  env?: Record<string, string>;
};
type Job = {
  needs?: string;
  container?: string;
  strategy?: { matrix: Record<string, (string | number)[]> };
  steps: Step[];
};
type Workflow = {
  env: Record<string, string | number>;
  jobs: Record<string, Job>;
};

async function read(name: string): Promise<Workflow> {
  const path = new URL(`.github/workflows/${name}.yml`, ROOT);
  return parse(await Deno.readTextFile(path)) as Workflow;
}

/** The words behind `deno task props` in a step, with the values of its variables. */
function propsWords(job: Job, variables: Record<string, string>): string[] {
  const { run } = job.steps.find(({ run }) =>
    run?.startsWith("deno task props ")
  )!;
  const known = run!.replaceAll(/\$(\w+)/g, (_, name) => variables[name]!);
  return known.replaceAll('"', "").split(" ").slice(3);
}

Deno.test("The nightly workflow runs every shard of one campaign and merges them", async () => {
  const { env, jobs } = await read("nightly");
  const { campaign, merge } = jobs;
  const shards = campaign!.strategy!.matrix.shard!;
  assertEquals(shards, shards.map((_, i) => i));
  assertEquals(env.SHARDS, shards.length);
  for (const shard of shards) {
    const args = parsePropsArgs(
      propsWords(campaign!, {
        SEED: "5",
        SECONDS_EACH: "60",
        SHARD: String(shard),
        SHARDS: String(env.SHARDS),
      }),
      ["a"],
    );
    assert(args !== "help");
    assertEquals(args.seed, 5);
    assertEquals(args.seconds, 60);
    assertEquals(args.shard, { index: shard, of: shards.length });
    assertEquals(args.out, "results");
  }
  // The walks are split alike.
  assertEquals(jobs.walk!.strategy!.matrix.shard, shards);
  assertEquals(merge!.needs, "campaign");
  const merging = parsePropsArgs(propsWords(merge!, {}), ["a"]);
  assert(merging !== "help");
  assertEquals(merging.merge, ["results"]);
  const uses = (job: Job, name: string) =>
    job.steps.find(({ uses }) => uses?.startsWith(`actions/${name}@`))!.with!;
  // What is uploaded is what comes down, to where it is merged.
  assertEquals(uses(campaign!, "upload-artifact").path, "results/");
  assertEquals(
    uses(campaign!, "upload-artifact").name,
    "results-${{ matrix.shard }}",
  );
  assertEquals(uses(merge!, "download-artifact").pattern, "results-*");
  assertEquals(uses(merge!, "download-artifact").path, "results");
});

Deno.test("The nightly workflow runs tasks that there are, in the container of the checks", async () => {
  const { jobs } = await read("nightly");
  const ci = await read("ci");
  const { tasks } = JSON.parse(
    await Deno.readTextFile(new URL("deno.json", ROOT)),
  );
  for (const task of jobs.long!.strategy!.matrix.task!) {
    assert(Object.hasOwn(tasks, task), String(task));
  }
  for (const [name, { container }] of Object.entries(jobs)) {
    if (name !== "seed") assertEquals(container, ci.jobs.run!.container);
  }
  // It installs the version of Deno that the checks install.
  const script = await Deno.readTextFile(new URL(".ci/run", ROOT));
  assert(/^DENO_VERSION=\d+\.\d+\.\d+$/m.test(script));
});
