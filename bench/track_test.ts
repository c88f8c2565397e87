import { assert, assertEquals, assertMatch } from "@std/assert";
import { chart } from "./chart.ts";
import { median, quantile } from "./stats.ts";
import {
  actionJson,
  bandOf,
  type Baseline,
  judge,
  makeBaseline,
  type Ratios,
  ROUNDS_THAT_CONVICT,
  TRACKED,
} from "./track.ts";

const MACHINE = "a processor";
const NAMES = Object.keys(TRACKED);
/** The first of them are about rings, with the narrow band. */
const RINGS = 8;

/** Seeded numbers from 0 to 1. */
function numbers(seed: number): () => number {
  return () => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return seed / 2 ** 32;
  };
}

/**
 * What a process of a noisy machine measures: most rounds are near the truth, one in six takes up to three times as
 * long, and a process as a whole is up to 12 % off, since compilers decide differently.
 */
function noisy(truth: number, random: () => number): number {
  const own = 1 + 0.24 * (random() - 0.5);
  return median(Array.from({ length: 11 }, () => {
    const spike = random() < 1 / 6 ? 1 + 2 * random() : 1;
    return truth * own * spike * (1 + 0.06 * (random() - 0.5));
  }));
}

function round(random: () => number, slower: Record<string, number>): Ratios {
  return Object.fromEntries(NAMES.map((name, i) => {
    const truth = (1 + i) * (slower[name] ?? 1);
    return [name, median([1, 2, 3].map(() => noisy(truth, random)))];
  }));
}

function baselineOf(random: () => number): Baseline {
  const rounds = Array.from({ length: 5 }, () => round(random, {}));
  return makeBaseline(MACHINE, 0.1, rounds);
}

/** Judges as the command does: what is suspect is measured again. */
function convicted(
  baseline: Baseline,
  random: () => number,
  slower: Record<string, number>,
  machine: string = MACHINE,
): string[] {
  const rounds: Ratios[] = [];
  for (;;) {
    rounds.push(round(random, slower));
    const verdicts = judge(baseline, machine, rounds);
    const of = (wanted: string) =>
      verdicts.filter(({ state }) => state === wanted).map(({ name }) => name);
    if (of("suspect").length === 0) return of("slower");
    assert(rounds.length < ROUNDS_THAT_CONVICT);
  }
}

Deno.test("judge() never takes noise for a regression", () => {
  for (let seed = 1; seed <= 300; seed++) {
    const random = numbers(seed);
    assertEquals(convicted(baselineOf(random), random, {}), [], `seed ${seed}`);
  }
});

Deno.test("judge() finds each figure that is slower than its band by far, and a third on rings in most runs", () => {
  const runs = 300;
  let found = 0;
  for (let seed = 1; seed <= runs; seed++) {
    const random = numbers(seed * 7);
    const name = NAMES[seed % NAMES.length]!;
    const baseline = baselineOf(random);
    const slower = { [name]: 1.3 * (1 + baseline.figures[name]!.band) };
    assertEquals(convicted(baseline, random, slower), [name]);
  }
  // Within a process's own noise of 12 % a third can look like a quarter.
  for (let seed = 1; seed <= runs; seed++) {
    const random = numbers(seed * 11);
    const name = NAMES[seed % RINGS]!;
    const baseline = baselineOf(random);
    const names = convicted(baseline, random, { [name]: 1.34 });
    if (names.includes(name)) found++;
    assert(names.every((other) => other === name));
  }
  assert(found > runs / 2, `${found} of ${runs}`);
});

const SIMPLE: Baseline = {
  machine: MACHINE,
  calibrationMs: 0.1,
  figures: { [NAMES[0]!]: { ratio: 2, band: 0.25 } },
};
const roundsOf = (...ratios: number[]): Ratios[] =>
  ratios.map((ratio) => ({ [NAMES[0]!]: ratio }));
const stateOf = (...ratios: number[]) =>
  judge(SIMPLE, MACHINE, roundsOf(...ratios))[0]!.state;

Deno.test("judge() catches 30 % where it shows in three rounds, and lets go at one round without it", () => {
  assertEquals(stateOf(2.6), "suspect");
  assertEquals(stateOf(2.6, 2.6), "suspect");
  assertEquals(stateOf(2.6, 2.6, 2.6), "slower");
  assertEquals(stateOf(2.6, 2.6, 2.4), "same");
  assertEquals(stateOf(9, 2.4), "same");
  assertEquals(stateOf(2.5), "same");
  assertEquals(stateOf(1.5), "faster");
  assertEquals(judge(SIMPLE, MACHINE, [{ unheard: 1 }])[0]!.state, "new");
});

Deno.test("bandOf() is wider on another processor", () => {
  const name = NAMES[0]!;
  assertEquals(bandOf(SIMPLE, name, MACHINE), 0.25);
  assertEquals(bandOf(SIMPLE, name, "another"), 1);
  const wide: Baseline = {
    ...SIMPLE,
    figures: { [name]: { ratio: 2, band: 0.7 } },
  };
  assertEquals(bandOf(wide, name, "another"), 1.4);
  // Three rounds at 1.9 times are a regression here, and may be the processor there.
  const rounds = roundsOf(3.8, 3.8, 3.8);
  assertEquals(judge(SIMPLE, MACHINE, rounds)[0]!.state, "slower");
  assertEquals(judge(SIMPLE, "another", rounds)[0]!.state, "same");
});

Deno.test("makeBaseline() keeps medians, and a band of twice the widest distance", () => {
  const name = NAMES[0]!;
  const rounds = roundsOf(10, 11, 9, 10, 14);
  const { figures, calibrationMs } = makeBaseline(MACHINE, 0.12345, rounds);
  assertEquals(figures, { [name]: { ratio: 10, band: 0.8 } });
  assertEquals(calibrationMs, 0.1235);
  const quiet = makeBaseline(MACHINE, 0.1, roundsOf(10, 10.1, 10));
  assertEquals(quiet.figures[name]!.band, 0.25);
});

Deno.test("actionJson() is a list of names, units and values", () => {
  const [entry] = JSON.parse(actionJson({ [NAMES[0]!]: 2 }, SIMPLE));
  assertEquals(Object.keys(entry), ["name", "unit", "value"]);
  assertEquals(entry.name, NAMES[0]);
  // Twice 0.1 ms for 4096 buffers.
  assertEquals(entry.value, 48.83);
  assertMatch(entry.unit, /^ns\/buffer/);
});

Deno.test("The baseline that is kept knows every tracked figure, and no other", async () => {
  const text = await Deno.readTextFile(
    new URL("./baseline.json", import.meta.url),
  );
  const baseline: Baseline = JSON.parse(text);
  assertEquals(Object.keys(baseline.figures).sort(), [...NAMES].sort());
  for (const { ratio, band } of Object.values(baseline.figures)) {
    assert(ratio > 0 && band >= 0.25 && band < 1.5, `${ratio} ${band}`);
  }
});

Deno.test("The chart that is kept is drawn from the history that is kept", async () => {
  const read = (path: string) =>
    Deno.readTextFile(new URL(path, import.meta.url));
  const history = JSON.parse(await read("./history.json"));
  assertEquals(await read("../docs/performance.svg"), chart(history));
});

Deno.test("chart() draws a line for each figure and leaves out what a point does not have", () => {
  const [one, two] = [NAMES[0]!, NAMES[1]!];
  const svg = chart({
    points: [
      { name: "a<b", figures: { [one]: 10 } },
      { name: "c", figures: { [one]: 20, [two]: 5 } },
    ],
  });
  assertEquals(svg.match(/<polyline/g)!.length, 2);
  assertMatch(svg, /a&lt;b/);
  assertEquals(svg.includes("NaN"), false);
});

Deno.test("quantile() lies between its neighbours", () => {
  assertEquals(quantile([4, 1, 3, 2], 0.5), 2.5);
  assertEquals(quantile([1, 2, 3], 0), 1);
  assertEquals(median([5]), 5);
});
