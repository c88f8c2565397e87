import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { decodeReport } from "./campaign_result.ts";
import { encodeToken } from "./counterexample.ts";
import { PLANTS } from "./planted.ts";
import { plantInCopy } from "./planted_bugs.ts";
import type { QueueScript } from "./queue_properties.ts";

const ROOT = new URL("../", import.meta.url);

type Ended = { code: number; out: string; err: string };

function start(
  root: string,
  words: readonly string[],
  cwd: string = root,
): Deno.ChildProcess {
  const program = ["--quiet", "--config", `${root}/deno.json`]
    .concat(`${root}/props/cli.ts`);
  return new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", ...program, ...words],
    cwd,
    env: { NO_COLOR: "1" },
    stdout: "piped",
    stderr: "piped",
  }).spawn();
}

async function ended(child: Deno.ChildProcess): Promise<Ended> {
  const { code, stdout, stderr } = await child.output();
  const text = new TextDecoder();
  return { code, out: text.decode(stdout), err: text.decode(stderr) };
}

function props(...words: string[]): Promise<Ended> {
  return ended(start(ROOT.pathname.replace(/\/$/, ""), words));
}

async function inFolder(
  work: (folder: string) => Promise<void>,
): Promise<void> {
  const folder = await Deno.makeTempDir({ prefix: "props-" });
  try {
    await work(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

Deno.test("props prints its options for --help", async () => {
  const { code, out } = await props("--help");
  assertEquals(code, 0);
  assertStringIncludes(out, "--seconds S ");
  assertStringIncludes(out, "\n  queue/hostile\n");
});

Deno.test("props says in a line what it cannot obey, with exit code 2", async () => {
  const unknown = await props("--only", "nothing");
  assertEquals(unknown.code, 2);
  assertMatch(
    unknown.err,
    /^props: no property is called nothing\nTry --help\.\n$/,
  );
  const spoiled = await props("--replay", "nothing");
  assertEquals(spoiled.code, 2);
  assertStringIncludes(spoiled.err, "props: --replay takes the word");
  const absent = await props("--merge", "nothing.json");
  assertEquals(absent.code, 2);
  assertStringIncludes(absent.err, "props: cannot merge nothing.json: ");
});

Deno.test("props runs one property from a seed and prints what the runs came to", async () => {
  const words = ["--only", "queue/hostile", "--runs", "60", "--seed", "9"];
  const { code, out } = await props(...words);
  assertEquals(code, 0);
  const [seed, , head, row, , sum, ...rest] = out.trimEnd().split("\n");
  assertEquals(seed, "seed 9");
  assertMatch(head!, /^property +sequences .* mid-flight restore +wrapped/);
  // It restores nothing, and says so.
  assertMatch(row!, /^queue\/hostile +60 .* +- .* +holds$/);
  assertMatch(sum!, /^60 sequences in .* threads?: \d+ sequences\/s$/);
  assertEquals(rest, []);
});

Deno.test("props --merge of three shards gives what the whole campaign does", async () => {
  await inFolder(async (folder) => {
    const campaign = ["--only", "facility", "--only", "queue/hostile"]
      .concat("--runs", "110", "--seed", "-77");
    const parts = ["0/3", "1/3", "2/3"].map((shard) =>
      props(...campaign, "--shard", shard, "--out", `${folder}/shards`)
    );
    const all = [
      props(...campaign, "--out", `${folder}/whole.json`),
      ...parts,
    ];
    for (const { code, out, err } of await Promise.all(all)) {
      assertEquals(code, 0, out + err);
    }
    const files = [...Deno.readDirSync(`${folder}/shards`)].map(({ name }) =>
      `${folder}/shards/${name}`
    ).sort();
    assertEquals(files.length, 3);
    const merged = await props(
      "--merge",
      ...files,
      "--out",
      `${folder}/m.json`,
    );
    assertEquals(merged.code, 0, merged.err);
    assertStringIncludes(merged.out, "seed -77, 3 of 3 shards\n");
    const read = async (path: string) => {
      const report = decodeReport(await Deno.readTextFile(path))!;
      return report.properties.map((one) => ({ ...one, seconds: 0 }));
    };
    const whole = await read(`${folder}/whole.json`);
    assertEquals(whole.map(({ runs }) => runs), [110, 110]);
    assertEquals(await read(`${folder}/m.json`), whole);
    // The same rows, too.
    const counts = /^(facility|queue\/hostile) +110 /gm;
    assertEquals(merged.out.match(counts)?.length, 2);

    const partial = await props("--merge", files[0]!, files[2]!);
    assertEquals(partial.code, 1);
    assertStringIncludes(partial.out, "shards that are missing: 1/3\n");
    const twice = await props("--merge", ...files, files[1]!);
    assertEquals(twice.code, 2);
    assertMatch(twice.err, /^props: .* and .* are both shard 1 of 3\n$/);
  });
});

Deno.test("props ends on SIGINT, with the table of what was run", async () => {
  await inFolder(async (folder) => {
    const child = start(ROOT.pathname.replace(/\/$/, ""), [
      ...["--only", "facility", "--seconds", "600", "--seed", "1"],
      ...["--out", folder],
    ]);
    const reader = child.stdout.getReader();
    const decoder = new TextDecoder();
    const { value } = await reader.read();
    let out = decoder.decode(value);
    assertEquals(out, "seed 1\n");
    reader.releaseLock();
    child.kill("SIGINT");
    const rest = await ended(child);
    out += rest.out;
    assertEquals(rest.code, 130, rest.err);
    assertMatch(out, /^facility +\d+ /m);
    assertStringIncludes(out, "\ninterrupted: ");
    const [{ name }] = [...Deno.readDirSync(folder)] as [Deno.DirEntry];
    const report = decodeReport(Deno.readTextFileSync(`${folder}/${name}`));
    assertEquals(report!.interrupted, true);
    const merged = await props("--merge", folder);
    assertEquals(merged.code, 1);
    assertStringIncludes(merged.out, "that were interrupted: 0/1\n");
  });
});

const SCRIPT: QueueScript = {
  setup: {
    format: "packed",
    size: 3,
    eventIdx: true,
    indirect: true,
    inOrder: false,
    strongOrdering: true,
    oneRegion: false,
    start: 2,
  },
  steps: [
    { do: "add", readable: [1, 2], writable: [3] },
    { do: "publish" },
    { do: "fetch", count: 1 },
    { do: "restore", way: "carry" },
  ],
};

Deno.test("props takes a script again that was kept", async () => {
  const { code, out } = await props(
    "--replay",
    encodeToken("queue/packed", SCRIPT),
  );
  assertEquals(code, 0);
  assertEquals(
    out,
    "queue/packed holds on this script (steps: 4, buffers: 1)\n",
  );
});

Deno.test("props prints and keeps a script that fails on a planted bug, and takes it again", async () => {
  const plant = PLANTS.find(({ name }) =>
    name === "packed-used-goes-on-by-one"
  );
  await inFolder(async (folder) => {
    const copy = `${folder}/copy`;
    await Deno.mkdir(copy);
    await plantInCopy(plant!, ROOT, copy);
    const planted = (...words: string[]) => ended(start(copy, words, folder));
    const words = ["--only", "queue/packed", "--runs", "2000", "--seed", "5"];
    const found = await planted(...words);
    assertEquals(found.code, 1, found.out + found.err);
    assertMatch(found.out, /^queue\/packed does not hold: /m);
    assertMatch(found.out, /^ +1\. driver (adds|fills) /m);
    assertMatch(found.out, /^queue\/packed .* +FAILED$/m);
    const kept = [...Deno.readDirSync(folder)].map(({ name }) => name)
      .filter((name) => name.endsWith(".json"));
    assertEquals(kept.length, 1);
    const replays = [
      ...found.out.matchAll(/^ {2}deno task props --replay (\S+)$/gm),
    ].map(([, script]) => script!);
    assertEquals(replays.length, 2);
    assertEquals(replays[1], `./${kept[0]}`);
    // By the word and by the file: it fails there, and holds here.
    const failing = found.out.split("\n").filter((line) =>
      /^ {2}.*\d\. /.test(line)
    );
    for (const script of replays) {
      const again = await planted("--replay", script);
      assertEquals(again.code, 1);
      for (const line of failing) assertStringIncludes(again.out, line);
    }
    const [word] = replays;
    assertEquals((await props("--replay", word!)).code, 0);
    const fixed = await props("--replay", `${folder}/${kept[0]}`);
    assertEquals(fixed.code, 0);
    assertStringIncludes(fixed.out, "holds on this script");
    const [, seed] = /--only \S+ --seed (\S+) --runs 20$/m.exec(found.out)!;
    const batch = ["--only", "queue/packed", "--seed", seed!, "--runs", "20"];
    const same = await planted(...batch);
    assertEquals(same.code, 1);
    assert(same.out.includes(`--replay ${word}`));
    // The number of threads changes neither what is found nor what counts.
    const row = /^queue\/packed +(\d+) .* FAILED$/m;
    const [, runs] = row.exec(found.out)!;
    for (const jobs of ["1", "3"]) {
      const other = await planted(...words, "--jobs", jobs);
      assertEquals(row.exec(other.out)![1], runs);
      assert(other.out.includes(`--replay ${word}`));
    }
  });
});
