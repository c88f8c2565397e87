import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { applyEdit, type Plant, PlantError, PLANTS } from "./planted.ts";
import { isKilled, runPlant } from "./planted_bugs.ts";
import type { PlantedFinding } from "./planted_run.ts";

const ROOT = new URL("../", import.meta.url);
const SEED = 0x5eed;
const SPLIT = "ring/split_device.ts";

function plantOf(find: string, replace: string, file = SPLIT): Plant {
  return { name: "a test", who: "nobody", edits: [{ file, find, replace }] };
}

Deno.test("Every planted bug still applies to the sources", async () => {
  for (const { name, edits } of PLANTS) {
    const texts = new Map<string, string>();
    for (const edit of edits) {
      const text = texts.get(edit.file) ??
        await Deno.readTextFile(new URL(edit.file, ROOT));
      texts.set(edit.file, applyEdit(name, edit, text));
    }
  }
  assertEquals(new Set(PLANTS.map(({ name }) => name)).size, PLANTS.length);
});

for (
  const [name, property] of [
    ["split-saved-index-modulo-size", "split/distance"],
    ["packed-used-goes-on-by-one", "packed/exactly-once"],
  ] as const
) {
  Deno.test(`runPlant() finds ${name} and leaves the sources alone`, async () => {
    const plant = PLANTS.find((one) => one.name === name)!;
    const [edit] = plant.edits;
    const path = new URL(edit!.file, ROOT);
    const before = await Deno.readTextFile(path);
    const result = await runPlant(plant, ROOT, 30, SEED);
    assert(isKilled(result), JSON.stringify(result.outcome));
    const { failure } = result.outcome as PlantedFinding;
    assertEquals(failure!.property, property);
    assert(failure!.steps <= 15, `${failure!.steps} steps`);
    assertEquals(await Deno.readTextFile(path), before);
  });
}

Deno.test("runPlant() says that an edit which changes nothing is not found", async () => {
  const find = "if (availIdx === lastAvailIdx) return false;";
  const result = await runPlant(plantOf(find, find), ROOT, 1, SEED);
  assertEquals(isKilled(result), false);
  const { failure, runs } = result.outcome as PlantedFinding;
  assertEquals(failure, null);
  assert(runs > 0);
});

Deno.test("runPlant() says that sources which do not load are not found", async () => {
  const find = "if (availIdx === lastAvailIdx) return false;";
  const result = await runPlant(plantOf(find, "if ("), ROOT, 1, SEED);
  assertEquals(isKilled(result), false);
  assertStringIncludes(result.outcome as string, "did not run");
});

Deno.test("runPlant() refuses an edit that does not apply exactly once", async () => {
  for (
    const plant of [
      plantOf("no such text", ""),
      plantOf("return", ""),
      plantOf("", "", "ring/nothing.ts"),
    ]
  ) {
    await assertRejects(() => runPlant(plant, ROOT, 1, SEED), PlantError);
  }
});
