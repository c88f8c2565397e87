import { assert, assertEquals, assertGreater, assertThrows } from "@std/assert";
import { PropsUsageError } from "./cli_args.ts";
import { walk, type WalkSetup } from "./exhaustive.ts";
import { parseWalkArgs } from "./exhaustive_args.ts";
import { FORM_BYTES } from "./exhaustive_model.ts";
import { checkFields, openEdited, openRing } from "./exhaustive_open.ts";
import { WalkPair } from "./exhaustive_pair.ts";
import { findPlanted } from "./exhaustive_planted.ts";
import { FormStore } from "./exhaustive_store.ts";
import { applyEdit } from "./planted.ts";

const SETUP: WalkSetup = {
  format: "split",
  size: 1,
  chains: 1,
  eventIdx: true,
  start: "zero",
  notify: "both",
  more: "nothing",
};
const LIMITS = { states: 1e6, seconds: 60 };

function nameOf({ format, size, eventIdx }: WalkSetup): string {
  return `${format} ${size}, event idx ${eventIdx ? "on" : "off"}`;
}

function setups(size: number): WalkSetup[] {
  const chains = size === 1 ? 1 : 2;
  return (["split", "packed"] as const).flatMap((format) =>
    [false, true].map((eventIdx) => ({
      ...SETUP,
      format,
      size,
      chains,
      eventIdx,
    }))
  );
}

for (
  const setup of [1, 2].flatMap(setups).flatMap((setup) =>
    (["nothing", "unpop", "indirect"] as const).map((more) => ({
      ...setup,
      more,
      chains: more === "indirect" ? 2 as const : setup.chains,
    }))
  )
) {
  const { size, more, format, eventIdx } = setup;
  // The larger ones are the task's.
  if (size === 2 && more !== "nothing" && (format === "packed" || eventIdx)) {
    continue;
  }
  Deno.test(`walk() empties a ring, by all ways of looking at it: ${nameOf(setup)}, with ${more}`, async () => {
    const counts: number[] = [];
    for (const start of ["zero", "wrap"] as const) {
      const result = await walk({ ...setup, start }, {
        ...LIMITS,
        members: size === 1 ? 2 : 1,
        plainly: size === 1 ? 4 : 32,
      });
      assertEquals(result.failure, null);
      assert(result.emptied);
      assertEquals(result.settled, result.states);
      counts.push(result.states);
    }
    assertGreater(counts[0]!, size === 1 ? 300 : 2500);
    // Where in the ring everything lies changes nothing that can be seen.
    assertEquals(counts[0], counts[1]);
  });
}

for (const setup of setups(4)) {
  Deno.test(`walk() ends at a limit, and says so: ${nameOf(setup)}`, async () => {
    const limits = { states: 6000, seconds: 60, members: 2 };
    const result = await walk({ ...setup, start: "wrap" }, limits);
    assertEquals(result.failure, null);
    assertGreater(result.states, 5999);
    assert(!result.emptied);
  });
}

/** Forms after each number of steps, of pairs that just run: nothing is made of a form on the way. */
function formsByRunning(setup: WalkSetup, depth: number, pair: WalkPair) {
  const start = Uint8Array.from(pair.save());
  const met = new Set<string>([start.join()]);
  let level: number[][] = [[]];
  const steps: number[] = [];
  const run = (script: readonly number[]): Uint8Array => {
    pair.loadPlain(start, setup.format === "split" ? 0xfffd : 0, 1);
    for (const step of script) pair.take(step);
    return pair.save();
  };
  const raw = new Set<string>();
  for (let i = 0; i < depth; i++) {
    const next: number[][] = [];
    for (const script of level) {
      run(script);
      pair.model.steps(steps);
      for (const step of [...steps]) {
        const way = [...script, step];
        met.add(run(way).join());
        const state = pair.raw();
        if (raw.has(state)) continue;
        raw.add(state);
        next.push(way);
      }
    }
    level = next;
  }
  return { met, raw: raw.size };
}

function formsByWalking(depth: number, pair: WalkPair) {
  const seen = new FormStore();
  const form = new Uint8Array(FORM_BYTES);
  seen.add(pair.save());
  const met = new Set<string>([pair.save().join()]);
  const steps: number[] = [];
  let from = 0;
  for (let i = 0; i < depth; i++) {
    const end = seen.count;
    for (; from < end; from++) {
      const number = seen.read(from, form);
      pair.load(form, number);
      pair.model.steps(steps);
      for (const step of steps) {
        pair.load(form, number);
        pair.take(step);
        const found = pair.save();
        met.add(found.join());
        seen.add(found);
      }
    }
  }
  return met;
}

for (const [size, depth] of [[1, 11], [2, 7], [4, 5]] as const) {
  for (const setup of setups(size)) {
    Deno.test(`A walk meets the classes that running pairs come to, and no others: ${nameOf(setup)}`, async () => {
      const ring = await openRing();
      const run = formsByRunning(setup, depth, new WalkPair(ring, setup));
      const walked = formsByWalking(depth, new WalkPair(ring, setup));
      assertEquals(walked.difference(run.met), new Set());
      assertEquals(run.met.difference(walked), new Set());
      // There are more states than classes, or nothing was shown.
      assertGreater(run.raw, run.met.size);
    });
  }
}

for (
  const [name, steps, invariant] of [
    ["event-off-by-one", 3, "no wake-up is lost"],
    ["packed-device-wrap-of-a-full-ring-chain", 3, "packed distance"],
    ["split-saved-used-is-avail", 4, "saved in order"],
  ] as const
) {
  Deno.test(`findPlanted() finds ${name}, by the shortest script`, async () => {
    const { result, walks } = await findPlanted(name, LIMITS);
    assert(result !== null, `${walks} walks`);
    assertEquals(result.failure!.invariant, invariant);
    assertEquals(result.failure!.script.length, steps);
    // It needs nothing that the walk has drawn.
    assert(result.failure!.plainly !== null);
  });
}

Deno.test("walk() finds in a ring of four what no smaller one has: two buffers overwritten at once", async () => {
  const find = "if (id >= 0 && id !== token) {";
  const ring = await openEdited((path, text) => {
    if (path !== "ring/packed_device.ts") return text;
    const edit = {
      file: path,
      find,
      replace: `if (i === 0 && ${find.slice(4)}`,
    };
    return applyEdit("only the first one is copied", edit, text);
  });
  const setup = { ...SETUP, format: "packed", size: 4, chains: 2 } as const;
  const result = await walk({ ...setup, eventIdx: false }, { ...LIMITS, ring });
  assertEquals(result.failure!.invariant, "in flight");
  assertEquals(result.failure!.script.length, 8);
  assert(result.failure!.plainly !== null);
  const three = await walk({ ...setup, size: 3, eventIdx: false }, {
    states: 5000,
    seconds: 60,
    ring,
  });
  assertEquals(three.failure, null);
});

Deno.test("WalkPair.load() makes the state that save() has written, in every member", async () => {
  const ring = await openRing();
  for (const format of ["split", "packed"] as const) {
    for (const start of ["zero", "wrap"] as const) {
      const setup = { ...SETUP, format, start, size: 4, chains: 2 } as const;
      const pair = new WalkPair(ring, setup);
      let seed = 1;
      const steps: number[] = [];
      const met = new Set<string>();
      for (let i = 0; i < 2000; i++) {
        const form = Uint8Array.from(pair.save());
        for (let member = 0; member < 3; member++) {
          seed = Math.imul(seed, 0x19660d) + 0x3c6ef35f | 0;
          pair.load(form, seed);
          assertEquals(pair.save(), form);
        }
        met.add(form.join());
        pair.model.steps(steps);
        pair.take(steps[(seed >>> 8) % steps.length]!);
      }
      assertGreater(met.size, 500);
    }
  }
});

Deno.test("FormStore numbers forms in the order in which they were added", () => {
  const store = new FormStore();
  const form = new Uint8Array(FORM_BYTES);
  // At any place, and never the same.
  const write = (n: number) => {
    const view = new DataView(form.buffer);
    view.setUint32(n & 8, n);
    view.setUint8(4, n & 7);
  };
  for (let n = 0; n < 20000; n++) {
    form.fill(0);
    write(n);
    assertEquals(store.add(form), n);
  }
  for (let n = 0; n < 20000; n++) {
    form.fill(0);
    write(n);
    assertEquals(store.add(form), n);
    const copy = Uint8Array.from(form);
    store.read(n, form);
    assertEquals(form, copy);
  }
  assertEquals(store.count, 20000);
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
    return part;
  });
  const names = (walks: typeof all) =>
    walks.map((walk) => JSON.stringify(walk)).sort();
  assertEquals(names(parts), names(all));
  const one = parseWalkArgs(["--format=split", "--size", "4", "--chains", "2"]);
  assert(one !== "help");
  assertEquals(one.length, 4);
});

Deno.test("parseWalkArgs() asks for every walk of the sizes with all notifications", () => {
  const all = parseWalkArgs([]);
  assert(all !== "help");
  // One chain at size 1, two above; event idx off and on; two starts.
  const plain = all.filter(({ setup }) => setup.more === "nothing");
  assertEquals(plain.length, 4 * (1 + 2 * 2) + 4 * (1 + 2 * 3));
  // At sizes 1 and 2: as many that give buffers back, and two a size with tables.
  assertEquals(all.length - plain.length, 4 * 2 * (3 + 2));
  assert(all.every(({ setup }) => setup.notify === "both"));
});

Deno.test("parseWalkArgs() refuses what is no walk", () => {
  for (
    const words of [
      ["--format", "ring"],
      ["--size", "5"],
      ["--format", "split", "--size", "3"],
      ["--shard", "3/3"],
      ["--seconds"],
      ["--members", "0"],
      ["--deep", "1"],
    ]
  ) assertThrows(() => parseWalkArgs(words), PropsUsageError);
});
