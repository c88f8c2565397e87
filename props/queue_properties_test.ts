import {
  assert,
  assertEquals,
  assertGreater,
  assertInstanceOf,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { SplitDevice } from "../ring/split_device.ts";
import { runCampaign } from "./campaign.ts";
import { decodeToken, encodeToken, failureLines } from "./counterexample.ts";
import { HOSTILE_DEVICE_PROPERTY } from "./hostile_device_properties.ts";
import { HOSTILE_STATE_PROPERTY } from "./hostile_state_properties.ts";
import { INFLIGHT_PROPERTIES } from "./inflight_properties.ts";
import { MISUSE_PROPERTY } from "./misuse_properties.ts";
import {
  INVARIANT_PROPERTIES,
  QUEUE_PROPERTIES,
  type QueueScript,
  replayQueueScript,
  ScriptFailure,
} from "./queue_properties.ts";

import { FORMATS_PROPERTY, TWIN_PROPERTIES } from "./twin_properties.ts";

const FIXED_SEED = 0x5eed;
const RUNS = 400;

for (const property of QUEUE_PROPERTIES) {
  for (const fresh of [false, true]) {
    Deno.test(`Property ${property.name} holds, from a ${fresh ? "fresh" : "fixed"} seed`, () => {
      const seed = fresh
        ? crypto.getRandomValues(new Int32Array(1))[0]!
        : FIXED_SEED;
      // deno-lint-ignore no-console
      if (fresh) console.log(`${property.name}: --seed ${seed}`);
      const limits = { runs: RUNS, seconds: 60 };
      const result = runCampaign(property, seed, limits);
      if (result.failure !== null) {
        throw new Error(failureLines(property.name, result.failure).join("\n"));
      }
      assertEquals(result.runs, RUNS);
      // Scripts that never come to what they are for would prove nothing.
      for (const key of ["midFlight", "wrapped", "full", "indirect"] as const) {
        assertGreater(result[key], RUNS / 20, key);
      }
    });
  }
}

Deno.test("Each invariant of a queue is a property that holds, from a fresh seed", () => {
  const seed = crypto.getRandomValues(new Int32Array(1))[0]!;
  // deno-lint-ignore no-console
  console.log(`--seed ${seed}`);
  const others = [
    ...TWIN_PROPERTIES,
    FORMATS_PROPERTY,
    ...INFLIGHT_PROPERTIES,
    HOSTILE_DEVICE_PROPERTY,
    HOSTILE_STATE_PROPERTY,
    MISUSE_PROPERTY,
  ];
  for (const property of [...INVARIANT_PROPERTIES, ...others]) {
    const result = runCampaign(property, seed, { runs: 40, seconds: 60 });
    if (result.failure !== null) {
      throw new Error(failureLines(property.name, result.failure).join("\n"));
    }
    assertEquals(result.runs, 40, property.name);
  }
});

Deno.test("A property of an invariant leaves others to theirs", () => {
  const { push } = SplitDevice.prototype;
  SplitDevice.prototype.push = function (token: number, written: number): void {
    push.call(this, token, Math.max(0, written - 1));
  };
  try {
    const failed = INVARIANT_PROPERTIES.filter((property) =>
      property.name.startsWith("split/") &&
      runCampaign(property, FIXED_SEED, { runs: 100, seconds: 60 }).failure !==
        null
    );
    assertEquals(failed.map(({ name }) => name), ["split/used-length"]);
  } finally {
    SplitDevice.prototype.push = push;
  }
});

const SCRIPT: QueueScript = {
  setup: {
    format: "split",
    size: 2,
    eventIdx: true,
    indirect: false,
    inOrder: false,
    strongOrdering: false,
    oneRegion: true,
    start: 3,
  },
  steps: [
    { do: "add", readable: [3], writable: [5] },
    { do: "publish" },
    { do: "fetch", count: 1 },
    { do: "complete", picks: [0], written: 1 },
    { do: "publishUsed" },
    { do: "restore", way: "words" },
  ],
};

Deno.test("replayQueueScript() takes a script that was kept", () => {
  const { buffers, midFlight } = replayQueueScript(SCRIPT);
  assertEquals([buffers, midFlight], [1, false]);
});

Deno.test("A campaign finds a device that forgets a kick, and prints the shortest script", () => {
  const [property] = QUEUE_PROPERTIES;
  const { armKicks } = SplitDevice.prototype;
  SplitDevice.prototype.armKicks = function (): boolean {
    armKicks.call(this);
    return false;
  };
  try {
    const limits = { runs: 2000, seconds: 60 };
    const { failure, runs } = runCampaign(property!, FIXED_SEED, limits);
    assertInstanceOf(failure, ScriptFailure);
    assertGreater(2000, runs);
    assertEquals(failure.invariant, "progress");
    assertGreater(6, failure.script.steps.length);
    assertStringIncludes(failure.message, "armKicks()");
    // The script alone is enough.
    const word = encodeToken(property!.name, failure.script);
    const kept = decodeToken(word);
    assert(kept !== undefined);
    assertThrows(() => property!.replay(kept.script), ScriptFailure);
  } finally {
    SplitDevice.prototype.armKicks = armKicks;
  }
  replayQueueScript(SCRIPT);
});
