import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { encodeToken } from "./campaign.ts";
import type { QueueScript } from "./queue_properties.ts";

const CLI = new URL("./cli.ts", import.meta.url);
const CONFIG = new URL("../deno.json", import.meta.url);

async function props(
  ...words: string[]
): Promise<{ code: number; out: string; err: string }> {
  const command = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--quiet", "--config", CONFIG.pathname, CLI.href]
      .concat(words),
    env: { NO_COLOR: "1" },
  });
  const { code, stdout, stderr } = await command.output();
  const text = new TextDecoder();
  return { code, out: text.decode(stdout), err: text.decode(stderr) };
}

Deno.test("props prints its options for --help", async () => {
  const { code, out } = await props("--help");
  assertEquals(code, 0);
  for (
    const option of ["--runs", "--seconds", "--seed", "--only", "--replay"]
  ) {
    assertStringIncludes(out, `${option} `);
  }
  assertStringIncludes(out, "queue/split, queue/packed");
});

Deno.test("props says in a line what it cannot obey, with exit code 2", async () => {
  const unknown = await props("--only", "nothing");
  assertEquals(unknown.code, 2);
  assertStringIncludes(unknown.err, "props: --only takes queue/split or");
  const spoiled = await props("--replay", "nothing");
  assertEquals(spoiled.code, 2);
  assertStringIncludes(spoiled.err, "props: --replay takes the word");
});

Deno.test("props runs one property from a seed and prints what the runs came to", async () => {
  const words = ["--only", "queue/packed", "--runs", "60", "--seed", "9"];
  const { code, out } = await props(...words);
  assertEquals(code, 0);
  const [seed, , head, row, ...rest] = out.trimEnd().split("\n");
  assertEquals(seed, "seed 9");
  assertMatch(head!, /^property +runs .* restored in mid-flight +wrapped/);
  assertMatch(row!, /^queue\/packed +60 .* holds$/);
  assertEquals(rest, []);
});

Deno.test("props takes a script again that was kept", async () => {
  const script: QueueScript = {
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
  const { code, out } = await props(
    "--replay",
    encodeToken("queue/packed", script),
  );
  assertEquals(code, 0);
  assertEquals(out, "queue/packed holds on this script (1 buffers)\n");
});
