import { assert, assertEquals, assertGreater, assertThrows } from "@std/assert";
import { PropsUsageError } from "./cli_args.ts";
import { walk, type WalkSetup } from "./exhaustive.ts";
import { parseWalkArgs } from "./exhaustive_args.ts";
import { checkFields, openRing } from "./exhaustive_open.ts";
import { WalkPair } from "./exhaustive_pair.ts";

const SETUP: WalkSetup = {
  format: "split",
  size: 1,
  chains: 1,
  eventIdx: true,
  start: "zero",
  notify: "both",
};
const LIMITS = { states: 1e6, seconds: 60 };

for (const format of ["split", "packed"] as const) {
  for (const eventIdx of [false, true]) {
    const name = `${format}, event idx ${eventIdx}`;
    Deno.test(`walk() empties a ring of one descriptor: ${name}`, async () => {
      const counts: number[] = [];
      for (const start of ["zero", "wrap"] as const) {
        const setup = { ...SETUP, format, eventIdx, start };
        const result = await walk(setup, LIMITS);
        assertEquals(result.failure, null);
        assert(result.emptied);
        assertEquals(result.settled, result.states);
        assertGreater(result.states, 500);
        counts.push(result.states);
      }
      // Where the walk begins changes nothing that can be seen.
      assertEquals(counts[0], counts[1]);
    });

    Deno.test(`walk() goes over a larger ring without a failure: ${name}`, async () => {
      const setup = { ...SETUP, format, eventIdx, size: 4, chains: 2 } as const;
      const result = await walk(setup, { states: 6000, seconds: 60 });
      assertEquals(result.failure, null);
      assertGreater(result.states, 5999);
      assert(!result.emptied);
    });
  }
}

Deno.test("walk() empties rings whose buffers alone are interleaved", async () => {
  for (const format of ["split", "packed"] as const) {
    for (const eventIdx of [false, true]) {
      const setup = {
        ...SETUP,
        format,
        eventIdx,
        size: 2,
        chains: 2,
        notify: "none",
      } as const;
      const result = await walk(setup, LIMITS);
      assertEquals(result.failure, null);
      assert(result.emptied);
      assertEquals(result.settled, result.states);
    }
  }
});

Deno.test("WalkPair.load() makes the state that save() has written", async () => {
  const ring = await openRing();
  for (const format of ["split", "packed"] as const) {
    const setup = { ...SETUP, format, size: 2, chains: 2 } as const;
    const pair = new WalkPair(ring, setup);
    let seed = 1;
    const steps: number[] = [];
    const met = new Set<string>();
    for (let i = 0; i < 2000; i++) {
      const form = Uint16Array.from(pair.save());
      pair.load(form);
      assertEquals(Uint16Array.from(pair.save()), form);
      met.add(form.join());
      pair.model.steps(steps);
      seed = Math.imul(seed, 0x19660d) + 0x3c6ef35f | 0;
      pair.take(steps[(seed >>> 8) % steps.length]!);
    }
    assertGreater(met.size, 500);
  }
});

Deno.test("checkFields() refuses a queue with a field that it does not know", async () => {
  const ring = await openRing();
  const memory = new ring.GuestMemory([
    { guestAddress: 0, size: 4096, buffer: new ArrayBuffer(4096) },
  ]);
  const config = {
    size: 2,
    descriptorArea: 0,
    driverArea: 64,
    deviceArea: 128,
  };
  const driver = new ring.PackedDriver(memory, config);
  checkFields("PackedDriver", driver);
  assertThrows(
    () => checkFields("PackedDriver", Object.assign(driver, { $more: 1 })),
    TypeError,
    "more",
  );
});

Deno.test("parseWalkArgs() gives every walk to one shard", () => {
  const all = parseWalkArgs([]);
  assert(all !== "help");
  const parts = [0, 1, 2].flatMap((i) => {
    const part = parseWalkArgs(["--shard", `${i}/3`]);
    assert(part !== "help");
    return part.walks;
  });
  assertEquals(
    parts.map((walk) => JSON.stringify(walk)).sort(),
    all.walks.map((walk) => JSON.stringify(walk)).sort(),
  );
  const one = parseWalkArgs(["--format=split", "--size", "4", "--chains", "2"]);
  assert(one !== "help");
  assertEquals(one.walks.length, 12);
});

Deno.test("parseWalkArgs() refuses what is no walk", () => {
  for (
    const words of [
      ["--format", "ring"],
      ["--size", "5"],
      ["--format", "split", "--size", "3"],
      ["--shard", "3/3"],
      ["--seconds"],
      ["--deep", "1"],
    ]
  ) assertThrows(() => parseWalkArgs(words), PropsUsageError);
});
