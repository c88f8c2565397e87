import { median } from "./stats.ts";

/** What one iteration of a tracked benchmark has, and what is noise at least where the processor is the baseline's. */
export type Tracked = { units: number; unit: string; leastBand: number };

const RING: Tracked = { units: 4096, unit: "ns/buffer", leastBand: 0.25 };
/** What allocates and has many objects differs more from process to process. */
const STREAM: Tracked = { units: 4096, unit: "ns/write", leastBand: 0.6 };

/** What is tracked, by the names of benchmarks. */
export const TRACKED: Readonly<Record<string, Tracked>> = {
  "ring/split/pop_push/q256/b1": RING,
  "ring/split/pop_push/q256/b32": RING,
  "ring/split/pop_push/q256/b32/batch": RING,
  "ring/split/round_trip/q256/b32": RING,
  "ring/packed/pop_push/q256/b1": RING,
  "ring/packed/pop_push/q256/b32": RING,
  "ring/packed/pop_push/q256/b32/batch": RING,
  "ring/packed/round_trip/q256/b32": RING,
  "vsock/packet/parse": { ...RING, unit: "ns/header" },
  "vsock/split/guest_to_host/64B": STREAM,
  "vsock/split/guest_to_host/64KiB": { ...STREAM, units: 16 },
  "vsock/packed/host_to_guest/4KiB": { ...STREAM, units: 256 },
};

/** Figures in times of the calibration, by name. */
export type Ratios = Readonly<Record<string, number>>;

/** What `baseline.json` holds. */
export type Baseline = {
  /** The processor on which it was measured. */
  machine: string;
  /** Milliseconds of the calibration there, which make a figure nanoseconds again. */
  calibrationMs: number;
  /** By name: the figure, and how much more is still noise on such a machine (0.25 is a quarter). */
  figures: Record<string, { ratio: number; band: number }>;
};

/** Rounds in which a regression has to be seen before it counts. */
export const ROUNDS_THAT_CONVICT = 3;
/** The least elsewhere: processors differ in what they are good at, and the calibration is only one mixture. */
export const LEAST_BAND_ELSEWHERE = 1;

/** How much more than the baseline is still noise on `machine`. */
export function bandOf(
  baseline: Baseline,
  name: string,
  machine: string,
): number {
  const { band } = baseline.figures[name]!;
  return machine === baseline.machine
    ? band
    : Math.max(2 * band, LEAST_BAND_ELSEWHERE);
}

/** One figure beside the baseline. */
export type Verdict = {
  name: string;
  /** By round: times of the baseline. */
  changes: number[];
  band: number;
  /** `slower` only where every one of the rounds that convict is beyond the band. */
  state: "new" | "same" | "suspect" | "slower" | "faster";
};

/**
 * Judges the rounds that were measured so far. A figure beyond the band is suspect until it was beyond it in
 * {@link ROUNDS_THAT_CONVICT} rounds; one round within it is an acquittal.
 */
export function judge(
  baseline: Baseline,
  machine: string,
  rounds: readonly Ratios[],
): Verdict[] {
  const names = Object.keys(rounds[0] ?? {});
  return names.map((name): Verdict => {
    const known = baseline.figures[name];
    const ratios = rounds.map((round) => round[name]).filter((ratio) =>
      ratio !== undefined
    );
    if (known === undefined) {
      return { name, changes: [], band: 0, state: "new" };
    }
    const changes = ratios.map((ratio) => ratio / known.ratio);
    const band = bandOf(baseline, name, machine);
    const verdict = { name, changes, band };
    if (changes.every((change) => change > 1 + band)) {
      const convicted = changes.length >= ROUNDS_THAT_CONVICT;
      return { ...verdict, state: convicted ? "slower" : "suspect" };
    }
    return {
      ...verdict,
      state: changes.every((change) => change < 1 / (1 + band))
        ? "faster"
        : "same",
    };
  });
}

/**
 * Makes a baseline of many rounds: medians, and a band of twice the widest distance of a round from its median.
 */
export function makeBaseline(
  machine: string,
  calibrationMs: number,
  rounds: readonly Ratios[],
): Baseline {
  const figures: Baseline["figures"] = {};
  for (const name of Object.keys(rounds[0] ?? {})) {
    const ratios = rounds.map((round) => round[name]!);
    const ratio = median(ratios);
    const widest = Math.max(...ratios) / ratio - 1;
    const band = Math.max(TRACKED[name]?.leastBand ?? 0, 2 * widest);
    figures[name] = { ratio: round4(ratio), band: Math.ceil(band * 100) / 100 };
  }
  return { machine, calibrationMs: round4(calibrationMs), figures };
}

/** A figure in nanoseconds on a machine as fast as the baseline's. */
export function calibratedNs(
  name: string,
  ratio: number,
  calibrationMs: number,
): number {
  return ratio * calibrationMs * 1e6 / TRACKED[name]!.units;
}

/** What github-action-benchmark reads as `customSmallerIsBetter`. */
export function actionJson(ratios: Ratios, baseline: Baseline): string {
  const entries = Object.entries(ratios).map(([name, ratio]) => ({
    name,
    unit: `${TRACKED[name]!.unit}, calibrated`,
    value: round4(calibratedNs(name, ratio, baseline.calibrationMs)),
  }));
  return `${JSON.stringify(entries, null, 2)}\n`;
}

function round4(value: number): number {
  return Number(value.toPrecision(4));
}
