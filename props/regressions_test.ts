import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { decodeCounterexample, replayScript } from "./counterexample.ts";
import { PLANTS } from "./planted.ts";
import { plantInCopy } from "./planted_bugs.ts";
import { PROPERTIES } from "./properties.ts";

const ROOT = new URL("../", import.meta.url);
const FOLDER = new URL("./regressions/", import.meta.url);
/** One a kind of script, to be taken again where it failed. */
const FAILING = [
  "split-saved-index-modulo-size.json",
  "vsock-credit-ignored.json",
];

const FILES = [...Deno.readDirSync(FOLDER)].map(({ name }) => name).sort();

for (const name of FILES) {
  Deno.test(`Regression ${name} holds`, async () => {
    const kept = decodeCounterexample(
      await Deno.readTextFile(new URL(name, FOLDER)),
    );
    // A file that does not say what it is for will be deleted by someone.
    assert(kept.about !== "", "it does not say what it is about");
    replayScript(kept, PROPERTIES);
  });
}

for (const name of FAILING) {
  Deno.test(`Regression ${name} fails where its bug is planted`, async () => {
    const path = new URL(name, FOLDER);
    const kept = decodeCounterexample(await Deno.readTextFile(path));
    const plant = PLANTS.find((one) => one.name === kept.plant);
    assert(plant !== undefined, `no such bug: ${kept.plant}`);
    const copy = await Deno.makeTempDir({ prefix: "planted-" });
    try {
      await plantInCopy(plant, ROOT, copy);
      const { code, stdout, stderr } = await new Deno.Command(
        Deno.execPath(),
        {
          args: ["run", "-A", "--quiet", "--config", `${copy}/deno.json`]
            .concat(`${copy}/props/cli.ts`, "--replay", path.pathname),
        },
      ).output();
      const decoder = new TextDecoder();
      const text = decoder.decode(stdout);
      assertEquals(code, 1, text + decoder.decode(stderr));
      assertStringIncludes(text, `${kept.property} does not hold: `);
    } finally {
      await Deno.remove(copy, { recursive: true });
    }
  });
}
