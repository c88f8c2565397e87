import { assertEquals, assertThrows } from "@std/assert";
import {
  counterexampleName,
  decodeCounterexample,
  decodeToken,
  encodeCounterexample,
  encodeToken,
  failureLines,
  KeptFileError,
  replayScript,
} from "./counterexample.ts";
import {
  type AnyScript,
  type NamedProperty,
  ScriptFailure,
} from "./queue_properties.ts";
import { newRun } from "./script_property.ts";
import { Violation } from "./violation.ts";

const SCRIPT: AnyScript = {
  setup: { format: "split", size: 2, parts: [1, 2] },
  steps: [
    { do: "add", readable: [24, 7, 13, 21], writable: [] },
    { do: "publish" },
    {
      do: "complete",
      picks: [1, 2, 3, 4, 5, 6, 7],
      written: 1234567,
      more: [1234567, 1234567, 1234567],
    },
  ],
};
const FINDING = {
  invariant: "bytes",
  message: 'bytes: one is "missing"',
  lines: ["driver adds", "driver publishes", "device completes", "rest"],
};

/** A property that does not hold for scripts of three steps and more. */
const SHORT: NamedProperty = {
  name: "short",
  check: () => ({ failed: false, errorInstance: null }),
  replay(script) {
    if (script.steps.length < 3) return { ...newRun(), buffers: 7 };
    throw new ScriptFailure(script, ["a"], new Violation("short", "too long"));
  },
};

Deno.test("encodeToken() makes a word from which decodeToken() makes the script", () => {
  const word = encodeToken("queue/split", SCRIPT);
  assertEquals(/^[\w+/]+$/.test(word), true);
  assertEquals(decodeToken(word), { property: "queue/split", script: SCRIPT });
});

Deno.test("decodeToken() refuses what no failure has printed", () => {
  for (
    const value of [
      "null",
      '{"name":1}',
      '{"name":"a","script":{"setup":{},"steps":{}}}',
      '{"name":"a","script":{"setup":null,"steps":[]}}',
      '{"name":"a","script":{"setup":{},"steps":[{"to":1}]}}',
      '{"script":{"setup":{},"steps":[]}}',
    ]
  ) assertEquals(decodeToken(btoa(value)), undefined, value);
  for (const word of ["", "!", "e30", "a/b.json"]) {
    assertEquals(decodeToken(word), undefined, word);
  }
});

Deno.test("encodeCounterexample() makes a file from which decodeCounterexample() makes the script", () => {
  const text = encodeCounterexample("queue/split", SCRIPT, FINDING, {
    about: "A bug.",
    plant: "a-bug",
  });
  assertEquals(decodeCounterexample(text), {
    property: "queue/split",
    script: SCRIPT,
    about: "A bug.",
    plant: "a-bug",
  });
  const bare = encodeCounterexample("queue/split", SCRIPT, FINDING);
  assertEquals(decodeCounterexample(bare), {
    property: "queue/split",
    script: SCRIPT,
    about: "",
  });
});

Deno.test("encodeCounterexample() writes as deno fmt does", async () => {
  const text = encodeCounterexample("queue/split", SCRIPT, FINDING);
  const format = new Deno.Command(Deno.execPath(), {
    args: ["fmt", "--quiet", "--no-config", "--ext", "json", "-"],
    stdin: "piped",
    stdout: "piped",
  }).spawn();
  const writer = format.stdin.getWriter();
  await writer.write(new TextEncoder().encode(text));
  await writer.close();
  const { stdout } = await format.output();
  assertEquals(new TextDecoder().decode(stdout), text);
});

Deno.test("decodeCounterexample() refuses files that are none", () => {
  const good = JSON.parse(encodeCounterexample("a", SCRIPT, FINDING));
  const spoiled = (change: Record<string, unknown>) =>
    JSON.stringify({ ...good, ...change });
  for (
    const [text, message] of [
      ["", "no JSON"],
      ["{", "no JSON"],
      ["[]", "no counterexample"],
      ["null", "no counterexample"],
      [spoiled({ kind: "ringside-campaign" }), "no counterexample"],
      [spoiled({ version: 2 }), "version is 2"],
      [spoiled({ property: 1 }), "no property"],
      [spoiled({ about: undefined }), "about"],
      [spoiled({ plant: 1 }), "planted bug"],
      [spoiled({ script: null }), "no script"],
      [spoiled({ script: { setup: {}, steps: [1] } }), "no script"],
      [spoiled({ script: { setup: {}, steps: [{}] } }), "no script"],
      [spoiled({ script: { steps: [] } }), "no script"],
    ] as const
  ) {
    assertThrows(() => decodeCounterexample(text), KeptFileError, message);
  }
});

Deno.test("counterexampleName() is the same for the same script, and differs for others", () => {
  const name = counterexampleName("queue/split: order", SCRIPT);
  assertEquals(
    /^counterexample-queue-split-order-[0-9a-f]{8}\.json$/.test(name),
    true,
    name,
  );
  assertEquals(counterexampleName("queue/split: order", SCRIPT), name);
  const other = { ...SCRIPT, steps: SCRIPT.steps.slice(1) };
  assertEquals(counterexampleName("queue/split: order", other) === name, false);
});

Deno.test("replayScript() takes the script on its property, and refuses one that is not there", () => {
  const script = { setup: {}, steps: SCRIPT.steps.slice(0, 2) };
  const take = (property: string, script: AnyScript) =>
    replayScript({ property, script }, [SHORT]);
  assertEquals(take("short", script).buffers, 7);
  assertThrows(() => take("short", SCRIPT), ScriptFailure, "too long");
  assertThrows(() => take("long", script), KeptFileError, '"long"');
});

Deno.test("failureLines() tells the set-up, the steps, what was seen, and how to take it again", () => {
  assertEquals(failureLines("queue/split", { ...FINDING, script: SCRIPT }), [
    "queue/split does not hold: bytes",
    "  set up: format split, size 2, parts [1,2]",
    "    1. driver adds",
    "    2. driver publishes",
    "    3. device completes",
    "  then rest",
    '  => bytes: one is "missing"',
    "3 steps. Take it again:",
    `  deno task props --replay ${encodeToken("queue/split", SCRIPT)}`,
  ]);
  assertEquals(failureLines("a", { ...FINDING, lines: [], script: null }), [
    "a does not hold: bytes",
    '  => bytes: one is "missing"',
  ]);
});
