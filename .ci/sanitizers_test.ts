import { assertEquals, assertStringIncludes } from "@std/assert";

const CONFIG = new URL("../deno.json", import.meta.url).pathname;

async function runTest(
  body: string,
): Promise<{ success: boolean; output: string }> {
  const folder = await Deno.makeTempDir();
  try {
    const path = `${folder}/probe_test.ts`;
    await Deno.writeTextFile(path, `Deno.test("probe", () => { ${body} });\n`);
    const { success, stdout } = await new Deno.Command(Deno.execPath(), {
      args: ["test", "-A", "--quiet", "--config", CONFIG, path],
      env: { NO_COLOR: "1" },
    }).output();
    return { success, output: new TextDecoder().decode(stdout) };
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

Deno.test("deno.json: a test that cleans up passes", async () => {
  const { success } = await runTest('Deno.openSync("/dev/null").close();');
  assertEquals(success, true);
});

Deno.test("deno.json: a test that leaks a resource fails", async () => {
  const { success, output } = await runTest('Deno.openSync("/dev/null");');
  assertEquals(success, false);
  assertStringIncludes(output, "Leaks detected");
});

Deno.test("deno.json: a test that leaves an operation behind fails", async () => {
  const { success, output } = await runTest("setTimeout(() => {}, 50);");
  assertEquals(success, false);
  assertStringIncludes(output, "Leaks detected");
});
