import { assertEquals } from "@std/assert";
import plugin from "./lint_plugin.ts";

const root = new URL("../", import.meta.url).pathname;

function reports(path: string, source: string): number {
  return Deno.lint.runPlugin(plugin, root + path, source).length;
}

Deno.test("no-deno-in-core: finds the identifier and leaves comments and strings alone", () => {
  const harmless = '/** Deno */\nexport const name: string = "Deno"; // Deno\n';
  assertEquals(reports("ring/x.ts", harmless), 0);
  assertEquals(reports("ring/x.ts", "Deno.exit();"), 1);
  assertEquals(reports("mod.ts", "export type P = Deno.PointerValue;"), 1);
  assertEquals(reports("device/x.ts", "globalThis.Deno;"), 1);
  assertEquals(reports("device/vsock/x.ts", "`${Deno.pid}`;"), 1);
});

Deno.test("no-deno-in-core: device/host/, tests and props may name it", () => {
  for (
    const path of [
      "device/host/x.ts",
      "ring/x_test.ts",
      "props/guest/mod.ts",
      ".ci/x.ts",
      "examples/mod.ts",
    ]
  ) {
    assertEquals(reports(path, "Deno.exit();"), 0, path);
  }
});
