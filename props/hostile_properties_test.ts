import { assertEquals, assertGreater, assertInstanceOf } from "@std/assert";
import { Chain } from "../ring/chain.ts";
import { GuestMemory } from "../ring/memory.ts";
import { VsockDevice } from "../device/vsock/device.ts";
import { runCampaign } from "./campaign.ts";
import { AccessCount, CountingMemory } from "./hostile_memory.ts";
import { HOSTILE_PROPERTIES } from "./hostile_properties.ts";
import { ScriptFailure } from "./queue_properties.ts";

const FIXED_SEED = 0x5eed;
const RUNS = 40;

for (const property of HOSTILE_PROPERTIES) {
  for (const fresh of [false, true]) {
    Deno.test(`Property ${property.name} holds, from a ${fresh ? "fresh" : "fixed"} seed`, () => {
      const seed = fresh
        ? crypto.getRandomValues(new Int32Array(1))[0]!
        : FIXED_SEED;
      // deno-lint-ignore no-console
      if (fresh) console.log(`${property.name}: --seed ${seed}`);
      const result = runCampaign(property, seed, { runs: RUNS, seconds: 60 });
      if (result.failure !== null) {
        const { lines, message } = result.failure;
        throw new Error(
          `seed ${result.failedSeed}: ${lines.join("\n")}\n${message}`,
        );
      }
      assertEquals(result.runs, RUNS);
      assertGreater(result.indirect ?? 0, 0);
    });
  }
}

/** What a campaign says of a device that is changed for as long as it takes. */
function foundBy(name: string, change: () => () => void): string {
  const property = HOSTILE_PROPERTIES.find((one) => one.name === name)!;
  const undo = change();
  try {
    const limits = { runs: 300, seconds: 60 };
    const { failure } = runCampaign(property, FIXED_SEED, limits);
    assertInstanceOf(failure, ScriptFailure);
    return failure.invariant;
  } finally {
    undo();
  }
}

Deno.test("A campaign finds a device that throws out of its loop", () => {
  const { process } = VsockDevice.prototype;
  const invariant = foundBy("hostile/packets", () => {
    VsockDevice.prototype.process = function (): boolean {
      const more = process.call(this);
      if (this.diagnostics.counters.has("type_unknown")) {
        throw new Error("lost");
      }
      return more;
    };
    return () => VsockDevice.prototype.process = process;
  });
  assertEquals(invariant, "no-throw");
});

Deno.test("A campaign finds a device that stops a queue and tells nobody", () => {
  const { process } = VsockDevice.prototype;
  const invariant = foundBy("hostile/packets", () => {
    VsockDevice.prototype.process = function (): boolean {
      return !this.diagnostics.counters.has("length_wrong") &&
        process.call(this);
    };
    return () => VsockDevice.prototype.process = process;
  });
  assertEquals(invariant, "healthy-or-reset");
});

Deno.test("A campaign finds a device that writes where a buffer is readable", () => {
  const { read } = Chain.prototype;
  const invariant = foundBy("hostile/packets", () => {
    Chain.prototype.read = function (target, from): number {
      const count = read.call(this, target, from);
      const at = this.offset[0]! + this.length[0]! - 1;
      if (count > 0) this.memory.regions[this.region[0]!]!.bytes[at]! ^= 1;
      return count;
    };
    return () => Chain.prototype.read = read;
  });
  assertEquals(invariant, "own-memory");
});

Deno.test("CountingMemory counts what is looked up, and finds what GuestMemory finds", () => {
  const memory = new GuestMemory([
    { guestAddress: 0x1000, size: 64, buffer: new ArrayBuffer(64) },
    { guestAddress: 0x2000, size: 16, buffer: new ArrayBuffer(16) },
  ]);
  const count = new AccessCount();
  const counting = new CountingMemory(memory, count);
  for (const address of [0x1000, 0x103f, 0x1040, 0x2000, 0x200f, -1, 2 ** 60]) {
    assertEquals(counting.locate(address), memory.locate(address));
    assertEquals(counting.foundRoom, memory.foundRoom);
  }
  assertEquals(count.lookups, 7);
  assertEquals(count.outside, null);
});
