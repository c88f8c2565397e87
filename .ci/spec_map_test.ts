import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import {
  count,
  expand,
  faultsOf,
  type Inventory,
  page,
  type Requirement,
  type SpecMap,
  symbolsOf,
  takeInventory,
} from "./spec_map.ts";

const INVENTORY: Inventory = {
  symbols: (path) =>
    path === "ring/a.ts" ? new Set(["Ring", "Ring.pop"]) : undefined,
  tests: (path) =>
    path === "ring/a_test.ts"
      ? ["pop() takes (split)", "pop() takes (packed)"]
      : undefined,
};

const GOOD: Requirement = {
  id: "ring-order",
  level: "MUST",
  text: "Take buffers in their order.",
  code: ["ring/a.ts#Ring.pop", "ring/a.ts#Ring"],
  tests: ["ring/a_test.ts: pop() takes ({split,packed})"],
};

function mapOf(
  requirements: readonly Requirement[],
  section = "2.7.1",
): SpecMap {
  return {
    chapters: [{
      title: "Rings",
      sections: [{ section, title: "Order", side: "device", requirements }],
    }],
  };
}

Deno.test("spec map: a requirement with code and tests has no fault", () => {
  assertEquals(faultsOf(mapOf([GOOD]), INVENTORY), []);
  const ending = { ...GOOD, tests: ["ring/a_test.ts: pop() takes*"] };
  assertEquals(faultsOf(mapOf([ending]), INVENTORY), []);
});

Deno.test("spec map: a reason stands for what is not there, and is counted", () => {
  const { level, text, code } = { ...GOOD, code: ["ring/a.ts#Ring"] };
  const map = mapOf([
    GOOD,
    { id: "a", level, text, left_out: "no such bus" },
    { id: "b", level, text, code, no_test: "cannot be seen" },
    { id: "c", level, text, pending: "being written" },
  ]);
  assertEquals(faultsOf(map, INVENTORY), []);
  assertEquals(count(map), {
    all: 4,
    tested: 1,
    no_test: 1,
    left_out: 1,
    pending: 1,
  });
});

const PLANTED: [what: string, change: Partial<Requirement>, fault: string][] = [
  ["a symbol that is gone", { code: ["ring/a.ts#Ring.pull"] }, "Ring.pull"],
  ["a file that is gone", { code: ["ring/b.ts#Ring"] }, "ring/b.ts"],
  ["a symbol without a file", { code: ["Ring.pop"] }, "not path#name"],
  ["a test named as code", { code: ["ring/a_test.ts#x"] }, "is a test"],
  [
    "a test that is gone",
    { tests: ["ring/a_test.ts: pop() drops"] },
    "pop() drops",
  ],
  [
    "one test of two that is gone",
    { tests: ["ring/a_test.ts: pop() takes ({split,mmio})"] },
    "(mmio)",
  ],
  [
    "an ending of nothing",
    { tests: ["ring/a_test.ts: push()*"] },
    "push()*",
  ],
  [
    "a prefix that is no name",
    { tests: ["ring/a_test.ts: pop() takes"] },
    "pop() takes",
  ],
  [
    "a test file that is gone",
    { tests: ["ring/b_test.ts: x"] },
    "ring/b_test.ts",
  ],
  ["a test without a file", { tests: ["pop() takes"] }, "not path: name"],
  ["a requirement without code", { code: [] }, "no code"],
  ["a requirement without a test", { tests: [] }, "no test"],
  ["an empty reason", { code: [], tests: [], left_out: " " }, "empty"],
  [
    "two reasons",
    { left_out: "a", pending: "b", tests: [] },
    "more than one",
  ],
  ["no_test beside a test", { no_test: "hard" }, "no_test"],
  ["pending that has landed", { pending: "soon" }, "pending"],
  ["an id that is none", { id: "Ring order" }, "kebab"],
  ["a level that is none", { level: "must" as "MUST" }, "no level"],
  ["an empty text", { text: "" }, "no text"],
];

for (const [what, change, fault] of PLANTED) {
  Deno.test(`spec map: catches ${what}`, () => {
    const faults = faultsOf(mapOf([{ ...GOOD, ...change }]), INVENTORY);
    assertEquals(faults.length, 1, faults.join("\n"));
    assertStringIncludes(faults[0] ?? "", "2.7.1 ");
    assertStringIncludes(faults[0] ?? "", fault);
  });
}

Deno.test("spec map: catches an id that is in use", () => {
  const faults = faultsOf(mapOf([GOOD, GOOD]), INVENTORY);
  assertEquals(faults, ["2.7.1 ring-order: the id is in use"]);
});

Deno.test("spec map: catches sections that are no number, or twice, or empty", () => {
  for (const section of ["", "2.", "2.07", "v2.7", "2.7.1.1.1.1.1", "QS"]) {
    const faults = faultsOf(mapOf([GOOD], section), INVENTORY);
    assertEquals(faults, [`${section}: not a section number`]);
  }
  for (const section of ["2", "2.6.1.1.1", "QS.2"]) {
    assertEquals(faultsOf(mapOf([GOOD], section), INVENTORY), []);
  }
  const [chapter] = mapOf([GOOD]).chapters;
  const other = mapOf([{ ...GOOD, id: "other" }]).chapters;
  assertEquals(
    faultsOf({ chapters: [chapter!, ...other] }, INVENTORY),
    ["2.7.1: the section is there twice"],
  );
  assertEquals(faultsOf(mapOf([]), INVENTORY), ["2.7.1: it is empty"]);
});

Deno.test("spec map: expand() makes every name", () => {
  assertEquals(expand("x"), ["x"]);
  assertEquals(expand("x {a}"), ["x {a}"]);
  assertEquals(expand("{a,b} of {1,2}"), [
    "a of 1",
    "a of 2",
    "b of 1",
    "b of 2",
  ]);
});

Deno.test("spec map: symbolsOf() leaves out what a file only passes on", () => {
  const at = (filename: string) => ({ kind: "class", location: { filename } });
  const names = symbolsOf({
    nodes: {
      "file:///a.ts": {
        symbols: [
          { name: "Ours", declarations: [at("file:///a.ts")] },
          { name: "Theirs", declarations: [at("file:///b.ts")] },
        ],
      },
    },
  });
  assertEquals([...names.get("file:///a.ts") ?? []], ["Ours"]);
});

Deno.test("spec map: the inventory has members, functions of one file, and names made in a loop", async () => {
  const inventory = await takeInventory(mapOf([{
    ...GOOD,
    code: [".ci/spec_map.ts#cut", "ring/chain.ts#Chain", "ring/none.ts#x"],
    tests: [".ci/spec_map_test.ts: x", "ring/none_test.ts: x"],
  }]));
  assert(inventory.symbols(".ci/spec_map.ts")?.has("cut"));
  assert(inventory.symbols(".ci/spec_map.ts")?.has("Requirement.left_out"));
  assert(inventory.symbols("ring/chain.ts")?.has("Chain.append"));
  assert(!inventory.symbols("ring/chain.ts")?.has("Chain.prepend"));
  assert(!inventory.symbols("ring/chain.ts")?.has("RingError"));
  assertEquals(inventory.symbols("ring/none.ts"), undefined);
  const tests = inventory.tests(".ci/spec_map_test.ts");
  assert(tests?.includes("spec map: catches a symbol that is gone"));
  assertEquals(inventory.tests("ring/none_test.ts"), undefined);
});

Deno.test("spec map: the page has every requirement, and its reason", () => {
  const text = page(mapOf([
    GOOD,
    { id: "bus", level: "is", text: "`a * b` < c_d * e", left_out: "no bus" },
  ]));
  assertStringIncludes(text, "### 2.7.1 Order (device)");
  assertStringIncludes(text, "- `ring-order`: **MUST** Take buffers");
  assertStringIncludes(
    text,
    "  - code: [ring/a.ts](../ring/a.ts): `Ring.pop`, `Ring`",
  );
  assertStringIncludes(text, "`pop() takes ({split,packed})`");
  assertStringIncludes(
    text,
    "- `bus`: `a * b` \\< c_d \\* e\n  - left out: no bus",
  );
});

Deno.test("spec map: the command fails for a stale page and for a symbol or a test that is renamed", async () => {
  const folder = await Deno.makeTempDir();
  try {
    for (const name of ["spec_map.ts", "list_tests.ts"]) {
      await Deno.mkdir(`${folder}/.ci`, { recursive: true });
      await Deno.copyFile(
        new URL(name, import.meta.url),
        `${folder}/.ci/${name}`,
      );
    }
    await Deno.writeTextFile(`${folder}/.ci/std.ts`, "export {};\n");
    await Deno.writeTextFile(`${folder}/deno.json`, "{}");
    await Deno.mkdir(`${folder}/docs`);
    await Deno.mkdir(`${folder}/ring`);
    const code = `${folder}/ring/a.ts`;
    const test = `${folder}/ring/a_test.ts`;
    await Deno.writeTextFile(code, "export class Ring { pop(): void {} }\n");
    await Deno.writeTextFile(
      test,
      'for (const r of ["split", "packed"]) {\n  Deno.test(`pop() takes (${r})`, () => {});\n}\nconsole.log("loaded");\n',
    );
    const json = JSON.stringify(
      mapOf([{ ...GOOD, code: GOOD.code!.slice(0, 1) }]),
    );
    await Deno.writeTextFile(`${folder}/docs/spec_map.json`, json);
    const run = async (...args: string[]) => {
      const { code, stdout } = await new Deno.Command(Deno.execPath(), {
        args: ["run", "-A", "--no-check", ".ci/spec_map.ts", ...args],
        cwd: folder,
        env: { NO_COLOR: "1" },
      }).output();
      return { code, output: new TextDecoder().decode(stdout) };
    };
    assertEquals((await run()).code, 1);
    assertEquals((await run("--write")).code, 0);
    assertEquals((await run()).code, 0);

    await Deno.writeTextFile(`${folder}/docs/spec_map.md`, "# Map\n");
    const stale = await run();
    assertEquals(stale.code, 1);
    assertStringIncludes(stale.output, "docs/spec_map.md is not");
    assertEquals((await run("--write")).code, 0);

    await Deno.writeTextFile(code, "export class Ring { pull(): void {} }\n");
    const renamed = await run();
    assertEquals(renamed.code, 1);
    assertStringIncludes(renamed.output, "declares no Ring.pop");

    await Deno.writeTextFile(
      test,
      'Deno.test("pop() takes (split)", () => {});\n',
    );
    const gone = await run();
    assertEquals(gone.code, 1);
    assertStringIncludes(gone.output, 'no test "pop() takes (packed)"');
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
