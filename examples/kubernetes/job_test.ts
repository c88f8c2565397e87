import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { parse } from "yaml";

const ROOT = new URL("../../", import.meta.url);

/** What of the Job matters here. */
type Job = {
  apiVersion: string;
  kind: string;
  spec: {
    completionMode: string;
    completions: number;
    parallelism: number;
    backoffLimitPerIndex: number;
    podFailurePolicy: { rules: { onExitCodes?: { containerName: string } }[] };
    template: {
      spec: {
        restartPolicy: string;
        containers: {
          name: string;
          env: { name: string; value: string }[];
          command: string[];
          args: string[];
          volumeMounts: { name: string; mountPath: string }[];
        }[];
        volumes: { name: string }[];
      };
    };
  };
};

async function readJob(): Promise<Job> {
  const text = await Deno.readTextFile(new URL("job.yaml", import.meta.url));
  return parse(text) as Job;
}

Deno.test("The Job is an Indexed one, with as many shards as completions", async () => {
  const { apiVersion, kind, spec } = await readJob();
  assertEquals([apiVersion, kind], ["batch/v1", "Job"]);
  assertEquals(spec.completionMode, "Indexed");
  const pod = spec.template.spec;
  // What Kubernetes asks for where a pod's failure may count for its index alone.
  assertEquals(pod.restartPolicy, "Never");
  assert(spec.backoffLimitPerIndex > 0);
  const [container, ...others] = pod.containers;
  assertEquals(others, []);
  const env = new Map(container!.env.map(({ name, value }) => [name, value]));
  assertEquals(env.get("SHARDS"), String(spec.completions));
  assert(spec.parallelism <= spec.completions);
  // The seed is given, and the same for all.
  assert(/^--seed \d+ /.test(env.get("CAMPAIGN")!));
  const [mount] = container!.volumeMounts;
  assertEquals(env.get("RESULTS"), mount!.mountPath);
  assertEquals(mount!.name, pod.volumes[0]!.name);
  for (const { onExitCodes } of spec.podFailurePolicy.rules) {
    if (onExitCodes === undefined) continue;
    assertEquals(onExitCodes.containerName, container!.name);
  }
});

Deno.test("Three pods of the Job run shards whose results merge", async () => {
  const { spec } = await readJob();
  const { command, args, env } = spec.template.spec.containers[0]!;
  const folder = await Deno.makeTempDir({ prefix: "pods-" });
  const decoder = new TextDecoder();
  const path = `${Deno.execPath().replace(/\/[^/]*$/, "")}:${
    Deno.env.get("PATH")
  }`;
  try {
    const pods = [0, 1, 2].map(async (index) => {
      const results = `${folder}/pod-${index}`;
      await Deno.mkdir(results);
      const { code, stdout, stderr } = await new Deno.Command(command[0]!, {
        args: [...command.slice(1), ...args],
        cwd: ROOT,
        env: {
          ...Object.fromEntries(env.map(({ name, value }) => [name, value])),
          PATH: path,
          CAMPAIGN: "--seed 1 --runs 50 --only facility",
          SHARDS: "3",
          RESULTS: results,
          JOB_COMPLETION_INDEX: String(index),
        },
      }).output();
      const log = decoder.decode(stdout);
      assertEquals(code, 0, log + decoder.decode(stderr));
      const last = log.trimEnd().split("\n").at(-1)!;
      await Deno.writeTextFile(`${folder}/${index}.json`, last);
      await Deno.remove(results, { recursive: true });
    });
    await Promise.all(pods);
    const { code, stdout } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "-A", "--quiet", "props/cli.ts", "--merge", folder],
      cwd: ROOT,
    }).output();
    const text = decoder.decode(stdout);
    assertEquals(code, 0, text);
    assertStringIncludes(text, "seed 1, 3 of 3 shards\n");
    assert(/^facility +50 .*holds$/m.test(text), text);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
