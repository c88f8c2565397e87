import { assert, assertEquals, assertGreater, assertMatch } from "@std/assert";
import { fromFileUrl } from "./paths.ts";

const hasCompiler: boolean = await has("gcc");

async function has(command: string): Promise<boolean> {
  try {
    const options: Deno.CommandOptions = {
      args: ["--version"],
      stdout: "null",
    };
    return (await new Deno.Command(command, options).output()).success;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

Deno.test({
  name: "bench:host drives the device with every kind of load",
  ignore: Deno.build.os !== "linux" || !hasCompiler,
  async fn() {
    const json = await Deno.makeTempFile();
    const script = fromFileUrl(new URL("./host_cli.ts", import.meta.url));
    const options = [
      "--quick",
      "--no-peer",
      "--shares",
      "--floor",
      "--json",
      json,
    ];
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "-A", "--no-check", script, ...options],
      stdin: "null",
    }).output();
    assertEquals(code, 0, new TextDecoder().decode(stderr));
    const rows: {
      name: string;
      values: Record<string, number[]>;
      shares?: Record<string, Record<string, number[]>>;
    }[] = JSON.parse(await Deno.readTextFile(json));
    await Deno.remove(json);
    const table = new TextDecoder().decode(stdout);
    assertGreater(rows.length, 10);
    for (const { name, values } of rows) {
      assert(table.includes(name), name);
      assertEquals(Object.keys(values), ["split", "packed"], name);
      if (name.includes("CPU") || name.includes("memory an idle")) continue;
      for (const [figure] of Object.values(values)) assertGreater(figure!, 0);
    }
    assert(table.includes("share of a core"));
    assertMatch(
      table,
      /guest to host, 4 KiB, 1000 connections +[0-9]+\.[0-9]{2} +- +-/,
    );
    const measured = rows.filter(({ shares }) => shares !== undefined);
    assertEquals(measured.length, 6, "cases with shares");
    for (const { name, shares } of measured) {
      assertEquals(Object.keys(shares!), ["split", "packed"], name);
      for (const side of Object.values(shares!)) {
        assertEquals(Object.keys(side), ["guest", "device", "program"], name);
        assertGreater(side["device"]![0]!, 0, name);
      }
    }
  },
});
