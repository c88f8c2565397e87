import { assertEquals, assertStringIncludes } from "@std/assert";
import { fromFileUrl } from "./paths.ts";

async function run(
  file: string,
  ...words: string[]
): Promise<{ code: number; out: string; err: string }> {
  const path = fromFileUrl(new URL(file, import.meta.url));
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", "--quiet", path, ...words],
    env: { NO_COLOR: "1" },
    stdin: "null",
  }).output();
  const text = new TextDecoder();
  return { code, out: text.decode(stdout), err: text.decode(stderr) };
}

for (const task of ["ring", "track", "host"]) {
  const file = `./${task}_cli.ts`;

  Deno.test(`bench:${task} --help prints its options`, async () => {
    const { code, out, err } = await run(file, "--help");
    assertEquals([code, err], [0, ""]);
    assertStringIncludes(out, `Usage: deno task bench:${task}`);
  });

  Deno.test(`bench:${task} refuses an option that it does not know in one line`, async () => {
    const { code, out, err } = await run(file, "--slowly");
    assertEquals([code, out], [2, ""]);
    assertEquals(err, `bench:${task}: unknown option --slowly\nTry --help.\n`);
  });
}

Deno.test("bench:ring refuses a filter that leaves no case before it builds anything", async () => {
  const { code, err } = await run("./ring_cli.ts", "--filter", "nothing");
  assertEquals(code, 2);
  assertStringIncludes(err, "no case has nothing in its name");
});
