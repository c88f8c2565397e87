import {
  assertEquals,
  assertGreater,
  assertInstanceOf,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { Credit } from "../device/vsock/credit.ts";
import { runCampaign } from "./campaign.ts";
import { failureLines } from "./counterexample.ts";
import { FACILITY_PROPERTY } from "./facility_properties.ts";
import { HOSTILE_CHAIN_PROPERTY } from "./hostile_chain_properties.ts";
import {
  LARGE_QUEUE_PROPERTY,
  type NamedProperty,
  ScriptFailure,
} from "./queue_properties.ts";
import { DirectionModel } from "./vsock_model.ts";
import { Violation } from "./violation.ts";
import { VSOCK_PROPERTIES } from "./vsock_properties.ts";

const FIXED_SEED = 0x5eed;

function propertyOf(name: string): NamedProperty {
  return VSOCK_PROPERTIES.find((one) => one.name === name)!;
}

for (
  const [property, runs] of [
    ...VSOCK_PROPERTIES.map((property) => [property, 60] as const),
    [HOSTILE_CHAIN_PROPERTY, 300],
    [FACILITY_PROPERTY, 300],
    [LARGE_QUEUE_PROPERTY, 15],
  ] as const
) {
  for (const fresh of [false, true]) {
    Deno.test(`Property ${property.name} holds, from a ${fresh ? "fresh" : "fixed"} seed`, () => {
      const seed = fresh
        ? crypto.getRandomValues(new Int32Array(1))[0]!
        : FIXED_SEED;
      // deno-lint-ignore no-console
      if (fresh) console.log(`${property.name}: --seed ${seed}`);
      const result = runCampaign(property, seed, { runs, seconds: 60 });
      if (result.failure !== null) {
        throw new Error(failureLines(property.name, result.failure).join("\n"));
      }
      assertEquals(result.runs, runs);
      assertGreater(result.buffers, 0);
      if (property.name === "vsock/snapshot") {
        assertGreater(result.midFlight ?? 0, runs / 4);
      }
    });
  }
}

Deno.test("A campaign finds a device that tells of a wrong count of bytes read, and its script alone is enough", () => {
  const { forwarded } = Credit.prototype;
  Credit.prototype.forwarded = function (length: number): void {
    forwarded.call(this, length + 1);
  };
  try {
    const limits = { runs: 400, seconds: 60 };
    const property = propertyOf("vsock/late-packets");
    const { failure } = runCampaign(property, FIXED_SEED, limits);
    assertInstanceOf(failure, ScriptFailure);
    assertEquals(failure.invariant, "credit");
    assertStringIncludes(failure.message, "fwd_cnt");
    assertThrows(() => property.replay(failure.script), ScriptFailure);
    Credit.prototype.forwarded = forwarded;
    property.replay(failure.script);
  } finally {
    Credit.prototype.forwarded = forwarded;
  }
});

Deno.test("DirectionModel.take() refuses bytes that were not sent, or in another order", () => {
  const sent = new DirectionModel("a stream", 3);
  const bytes = sent.offer(300);
  sent.sent = 300;
  sent.take(bytes.subarray(0, 100));
  assertThrows(() => sent.take(bytes.subarray(101)), Violation, "byte 100");
  sent.take(bytes.subarray(100));
  assertThrows(() => sent.take(bytes.subarray(0, 1)), Violation, "more than");
  assertThrows(() => sent.takeEnd(), Violation, "not ended");
  sent.ended = true;
  sent.takeEnd();
});
