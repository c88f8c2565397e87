import { assertEquals, assertStringIncludes } from "@std/assert";
import { checkBrowser } from "./browser.ts";

async function check(
  source: string,
): Promise<{ fault?: string; exports: number }> {
  const folder = await Deno.makeTempDir();
  try {
    await Deno.writeTextFile(`${folder}/x.ts`, source);
    await Deno.writeTextFile(
      `${folder}/mod.ts`,
      'export { answer, other } from "./x.ts";\n',
    );
    return await checkBrowser(`${folder}/mod.ts`);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

Deno.test("browser: a module without Deno passes", async () => {
  assertEquals(
    await check("export const answer = 42;\nexport const other = btoa('x');\n"),
    { exports: 2 },
  );
});

Deno.test("browser: a typed use of Deno is caught", async () => {
  const { fault = "" } = await check(
    "export const answer = Deno.pid;\nexport const other = 1;\n",
  );
  assertStringIncludes(fault, "Deno");
});

Deno.test("browser: an untyped use of Deno is caught when the bundle runs", async () => {
  const { fault = "" } = await check(
    "// deno-lint-ignore no-explicit-any\nexport const answer = (globalThis as any).Deno.pid;\nexport const other = 1;\n",
  );
  assertStringIncludes(fault, "undefined");
});

Deno.test("browser: an import of node: is caught", async () => {
  const { fault = "" } = await check(
    'import process from "node:process";\nexport const answer: number = process.pid;\nexport const other = 1;\n',
  );
  assertStringIncludes(fault, "node:process");
});
