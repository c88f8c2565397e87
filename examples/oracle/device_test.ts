import {
  assert,
  assertEquals,
  assertLess,
  assertStringIncludes,
} from "@std/assert";
import { describeFinding } from "../../props/oracle/mod.ts";
import { judge } from "./device.ts";
import { type Bug, BUGS } from "./toy_device.ts";

/** What each mistake is called, by seed 1. */
const NAMES: Readonly<Record<Bug, string>> = {
  "used-length": "USED_LEN_TOO_LARGE",
  "twice": "USED_IDX_JUMP",
  "index-first": "store-order",
  "last-id": "exactly-once",
  "no-wrap": "exactly-once",
  "no-first": "bytes",
  "interrupt-if-equal": "progress",
  "no-recheck": "progress",
};

Deno.test("examples/oracle/device.ts: nothing is wrong with the device without a mistake", () => {
  assertEquals(judge(null, 1), null);
});

for (const bug of Object.keys(BUGS) as Bug[]) {
  Deno.test(`examples/oracle/device.ts: "${bug}" is named, by a short script`, () => {
    const finding = judge(bug, 1);
    assert(finding !== null);
    assertEquals(finding.rule?.code ?? finding.invariant, NAMES[bug]);
    assertLess(finding.lines.length, 20);
  });
}

Deno.test("examples/oracle/device.ts runs as a program, without permissions", async () => {
  const path = new URL("./device.ts", import.meta.url).pathname;
  const run = async (...args: string[]) => {
    const { code, stdout } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "--no-prompt", "--no-check", path, ...args],
      env: { NO_COLOR: "1" },
    }).output();
    return { code, text: new TextDecoder().decode(stdout) };
  };
  const all = await run();
  assertEquals(all.code, 0, all.text);
  assertStringIncludes(all.text, "without a mistake: nothing is wrong with it");
  for (const bug of Object.keys(BUGS)) assertStringIncludes(all.text, bug);
  const one = await run("no-recheck");
  assertEquals(one.code, 1);
  assertStringIncludes(one.text, "expected true");
  assertEquals((await run("no-such")).code, 2);
});

Deno.test('docs/oracle.md shows what examples/oracle/device.ts says of "twice"', async () => {
  const page = new URL("../../docs/oracle.md", import.meta.url);
  const finding = judge("twice", 1);
  assert(finding !== null);
  assertStringIncludes(
    await Deno.readTextFile(page),
    describeFinding(finding),
  );
});
