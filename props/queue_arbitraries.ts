/**
 * Random set-ups and steps of a queue, with more of what an invariant is about.
 *
 * @module
 */

import fc from "fast-check";
import type { Invariant } from "./invariants.ts";
import type { DeviceFeatures, QueueSetup } from "./queue_model.ts";
import { MAX_SEGMENT } from "./queue_rig.ts";
import type { QueueStep, RestoreWay } from "./queue_steps.ts";

/** Which steps and set-ups come up: those of one invariant, or a mixture. */
export type Focus = Invariant | null;

const SIZES = {
  split: [1, 2, 4, 8, 256],
  packed: [1, 2, 3, 5, 7, 8, 256],
} as const;
/** What copies all memory at each step does so with less of it. */
const SMALL: readonly Focus[] = [
  "save-pure",
  "codec",
  "suspend",
  "reset",
  "restore-run",
];
/** About what happens to a whole device. */
const OF_DEVICES: readonly Focus[] = ["suspend", "reset"];
const WAYS: readonly RestoreWay[] = [
  "plain",
  "carry",
  "carry",
  "clone",
  "rewind",
  "words",
  "base",
  "region",
  "facility",
  "fresh",
  "snapshot",
];

/** True in `few` of `of` cases. */
function now(few: number, of: number): fc.Arbitrary<boolean> {
  return fc.oneof(
    { arbitrary: fc.constant(false), weight: of - few },
    { arbitrary: fc.constant(true), weight: few },
  );
}

/** Where the script begins: at the start, somewhere in the first laps, or up to `near` before an index wraps. */
function starts(
  format: "split" | "packed",
  size: number,
  near = 12,
  wraps = 1,
): fc.Arbitrary<number> {
  const laps = fc.nat(2 * size + 2);
  const early = { arbitrary: fc.constant(0), weight: 20 };
  const end = fc.nat(2).map((few) => Math.max(0, size - 1 - few));
  if (format === "packed") {
    return fc.oneof(early, { arbitrary: laps, weight: 15 }, {
      arbitrary: end,
      weight: 15,
    });
  }
  const before = fc.nat(Math.min(size + 2, near)).map((few) => 0x1_0000 - few);
  return fc.oneof(
    early,
    { arbitrary: laps, weight: 14 },
    { arbitrary: end, weight: 5 },
    { arbitrary: before, weight: wraps },
  );
}

function devices(focus: Focus): fc.Arbitrary<DeviceFeatures> {
  return fc.record({
    bit40: fc.constantFrom("none" as const, "reset" as const, "state" as const),
    suspend: focus === "suspend" ? fc.constant(true) : fc.boolean(),
    notificationData: fc.boolean(),
    configData: fc.boolean(),
    orderPlatform: fc.boolean(),
  });
}

/** Set-ups of bare queues of one format. */
export function bareSetups(
  format: "split" | "packed",
  focus: Focus,
): fc.Arbitrary<QueueSetup> {
  return fc.constantFrom(...SIZES[format]).chain((size) =>
    fc.record({
      format: fc.constant(format),
      size: fc.constant(SMALL.includes(focus) && size > 8 ? 8 : size),
      eventIdx: fc.boolean(),
      indirect: fc.boolean(),
      inOrder: focus === "use-order" ? fc.constant(true) : now(1, 4),
      strongOrdering: fc.boolean(),
      oneRegion: fc.boolean(),
      start: starts(format, size),
    })
  );
}

/** Set-ups of queues of one format, and every lawful subset of features. */
export function setups(
  format: "split" | "packed",
  focus: Focus,
): fc.Arbitrary<QueueSetup> {
  const plain = bareSetups(format, focus);
  const ofDevice = fc.tuple(plain, devices(focus)).map(([setup, device]) => ({
    ...setup,
    device,
  }));
  if (OF_DEVICES.includes(focus)) return ofDevice;
  return fc.oneof(
    { arbitrary: plain, weight: 6 },
    { arbitrary: ofDevice, weight: 3 },
    {
      arbitrary: plain.map((setup) => ({ ...setup, tracked: true })),
      weight: 2,
    },
  );
}

/** What a queue is set up with of which one side is not Ringside's own. */
export type ForeignSetup = {
  /** Format of the ring. */
  readonly format: "split" | "packed";
  /** Sizes, of which each script takes one. */
  readonly sizes: readonly number[];
  /** VIRTIO_F_EVENT_IDX comes up too. */
  readonly eventIdx: boolean;
  /** Scripts begin anywhere; otherwise in a new ring. */
  readonly anywhere: boolean;
};

/** Set-ups of bare queues in one region, with no feature but VIRTIO_F_EVENT_IDX. */
export function foreignSetups(
  { format, sizes, eventIdx, anywhere }: ForeignSetup,
): fc.Arbitrary<QueueSetup> {
  return fc.constantFrom(...sizes).chain((size) =>
    fc.record({
      format: fc.constant(format),
      size: fc.constant(size),
      eventIdx: eventIdx ? fc.boolean() : fc.constant(false),
      indirect: fc.constant(false),
      inOrder: fc.constant(false),
      strongOrdering: fc.constant(true),
      oneRegion: fc.constant(true),
      start: anywhere ? starts(format, size, 2, 2) : fc.constant(0),
    })
  );
}

/** Rings whose last entries lie 64 KiB and more from the first, and scripts that begin just before those. */
export function largeSetups(): fc.Arbitrary<QueueSetup> {
  return fc.record({
    format: fc.constantFrom("split" as const, "packed" as const),
    size: fc.constant(32768),
    eventIdx: fc.boolean(),
    indirect: fc.constant(false),
    inOrder: now(1, 4),
    strongOrdering: fc.boolean(),
    oneRegion: fc.boolean(),
    start: fc.tuple(fc.integer({ min: 1, max: 2 }), fc.nat(6)).map((
      [laps, few],
    ) => laps * 32768 - few),
  });
}

type Weights = Record<QueueStep["do"], number>;

const WEIGHTS: Readonly<Weights> = {
  add: 8,
  fill: 3,
  addBatch: 3,
  reclaimBatch: 2,
  publish: 8,
  needsKick: 3,
  fetch: 10,
  fetchBatch: 3,
  completeBatch: 3,
  rebind: 1,
  unpop: 1,
  complete: 4,
  completeAll: 1,
  publishUsed: 4,
  needsInterrupt: 3,
  reclaim: 4,
  armKicks: 2,
  disarmKicks: 1,
  armInterrupts: 2,
  disarmInterrupts: 1,
  restore: 10,
  restoreAlways: 1,
  crash: 4,
  queueReset: 1,
  suspend: 1,
  resume: 3,
  jump: 1,
};

/** What comes up more often, or not at all. */
const MORE: Readonly<Partial<Record<Invariant, Partial<Weights>>>> = {
  "exactly-once": { restore: 10, crash: 6, unpop: 3 },
  "bytes": { add: 9, restore: 6 },
  "used-length": { complete: 8, reclaim: 6 },
  "readable-untouched": { add: 9, complete: 6 },
  "positions": { restore: 10, needsKick: 5, jump: 2 },
  "cursors": { completeAll: 4, reclaim: 8, jump: 3 },
  "fetch-order": { fetch: 10, unpop: 4, restore: 10 },
  "use-order": { complete: 8, publishUsed: 2, reclaim: 6 },
  "progress": { armKicks: 4, armInterrupts: 4, suspend: 2 },
  "suppression": {
    armKicks: 4,
    armInterrupts: 4,
    needsKick: 6,
    needsInterrupt: 6,
    disarmKicks: 3,
    disarmInterrupts: 3,
    restore: 4,
    restoreAlways: 0,
  },
  "restore-run": {
    fetch: 14,
    restore: 9,
    restoreAlways: 0,
    crash: 0,
    queueReset: 0,
    suspend: 0,
    resume: 0,
  },
  "reset": { queueReset: 8 },
  "suspend": { suspend: 6, resume: 4 },
};

/** Of a large queue: short scripts that come to the point. */
const LARGE: Partial<Weights> = {
  add: 4,
  fill: 12,
  publish: 16,
  fetch: 20,
  restore: 20,
  restoreAlways: 0,
};

/** Steps, as often as the focus, or a large queue, wants them, `without` some. */
export function steps(
  focus: Focus | "large",
  without: readonly QueueStep["do"][] = [],
): fc.WeightedArbitrary<QueueStep>[] {
  const lengths = fc.array(fc.nat(MAX_SEGMENT), { maxLength: 4, size: "max" });
  const few = fc.nat(3);
  const way = fc.constantFrom(...WAYS);
  const arbitraries: {
    [Kind in QueueStep["do"]]:
      Omit<Extract<QueueStep, { do: Kind }>, "do"> extends infer Fields
        ? fc.Arbitrary<Fields>
        : never;
  } = {
    add: fc.record({ readable: lengths, writable: lengths }),
    fill: fc.constantFrom(
      { readable: 1, writable: 0 },
      { readable: 1, writable: 1 },
      { readable: 0, writable: 3 },
    ),
    addBatch: fc.record({
      count: fc.integer({ min: 2, max: 4 }),
      readable: fc.integer({ min: 1, max: 2 }),
      writable: fc.nat(2),
    }),
    reclaimBatch: fc.record({ count: few }),
    publish: fc.constant({}),
    needsKick: fc.constant({}),
    fetch: fc.record({ count: few }),
    fetchBatch: fc.record({ count: few }),
    completeBatch: fc.record({
      written: fc.array(fc.nat(20), { maxLength: 3 }),
    }),
    rebind: fc.constant({}),
    unpop: fc.record({ count: fc.integer({ min: 1, max: 3 }) }),
    complete: fc.record({
      picks: fc.array(fc.nat(7), { minLength: 1, maxLength: 4, size: "max" }),
      written: fc.nat(20),
    }),
    completeAll: fc.record({ backwards: fc.boolean(), written: fc.nat(20) }),
    publishUsed: fc.constant({}),
    needsInterrupt: fc.constant({}),
    reclaim: fc.record({ count: few }),
    armKicks: fc.constant({}),
    disarmKicks: fc.constant({}),
    armInterrupts: fc.constant({}),
    disarmInterrupts: fc.constant({}),
    restore: fc.record({ way, times: fc.integer({ min: 1, max: 2 }) }),
    restoreAlways: fc.record({ way: fc.option(way, { freq: 2 }) }),
    crash: fc.constant({}),
    queueReset: fc.record({ kicks: fc.nat(2) }),
    suspend: fc.constant({}),
    resume: fc.constant({}),
    jump: fc.record({
      to: fc.constantFrom(...Array(60).fill("lap" as const), "wrap" as const),
      before: few,
    }),
  };
  const weights: Weights = {
    ...WEIGHTS,
    ...(focus === null ? {} : focus === "large" ? LARGE : MORE[focus]),
  };
  return (Object.keys(arbitraries) as QueueStep["do"][])
    .filter((kind) => !without.includes(kind))
    .map((kind) => ({
      weight: weights[kind],
      arbitrary: arbitraries[kind].map((fields) =>
        ({ do: kind, ...fields }) as unknown as QueueStep
      ),
    }));
}
