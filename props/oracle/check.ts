import { RingError, type RingErrorCode } from "../../ring/errors.ts";
import type { RingFormat } from "../../ring/queue.ts";
import { type Invariant, INVARIANTS } from "../invariants.ts";
import {
  type AnyScript,
  foreignQueueProperty,
  type NamedProperty,
  ScriptFailure,
} from "../queue_properties.ts";
import type { QueueSetup } from "../queue_model.ts";
import { QueueRig, type QueueSides } from "../queue_rig.ts";
import type { QueueStep } from "../queue_steps.ts";
import {
  inStoreOrder,
  STORE_ORDER,
  STORE_ORDER_PROMISE,
} from "./store_order.ts";
import { ForeignDevice, ForeignDriver } from "./foreign_queues.ts";
import type { DeviceUnderTest, DriverUnderTest, MakeSide } from "./sides.ts";

/** What is judged, and for how long. */
export type CheckOptions = {
  /** Format of the ring. */
  readonly format: RingFormat;
  /**
   * Sizes of queues, of which each script takes one. 1, 2, 4, 8 and 256 unless told, and for a packed ring 3, 5 and
   * 7.
   */
  readonly sizes?: readonly number[];
  /** VIRTIO_F_EVENT_IDX comes up too. False unless told. */
  readonly eventIdx?: boolean;
  /** Random scripts. 1000 unless told. */
  readonly runs?: number;
  /** What the scripts follow from. One from the clock unless told. */
  readonly seed?: number;
  /**
   * Watch the order of stores in a split ring: see {@link Finding} `"store-order"`. While the side runs, `DataView` and
   * typed arrays are replaced by others that tell of stores, which a few APIs of the host do not take. True unless
   * told; scripts that begin far behind the start of a ring go without.
   */
  readonly storeOrder?: boolean;
  /** The one script that is taken, of an earlier {@link Finding}, in place of random ones. */
  readonly script?: AnyScript;
};

/** What is wrong with a side of a queue, with the shortest script that shows it. Plain data. */
export type Finding = {
  /** Name of what did not hold, such as `"exactly-once"`. */
  readonly invariant: string;
  /** What that promises. */
  readonly promise: string;
  /** The rule of the ring that was broken, where the other side could name one. */
  readonly rule: {
    readonly code: RingErrorCode;
    /** Section of the virtio 1.4 specification. */
    readonly section: string;
  } | null;
  /** What was seen. */
  readonly message: string;
  /** The script in words, a line a step; the last one failed. */
  readonly lines: readonly string[];
  /** The script as plain data, for {@link CheckOptions.script}. */
  readonly script: AnyScript;
};

const PLAIN = {
  eventIdx: false,
  indirect: false,
  inOrder: false,
  strongOrdering: true,
  oneRegion: true,
  start: 0,
};

const SIZES: Readonly<Record<RingFormat, readonly number[]>> = {
  split: [1, 2, 4, 8, 256],
  packed: [1, 2, 3, 5, 7, 8, 256],
};

/**
 * Runs a foreign device side of a queue against Ringside's driver, by random scripts that a model judges;
 * returns what is wrong with it, or null where nothing was found.
 *
 * `make` is called once for each script, and once before.
 *
 * @throws {TypeError} when VIRTIO_F_EVENT_IDX is asked of a device that has no `needsInterrupt()` or no
 * `disarmKicks()`.
 */
export function checkDevice(
  make: MakeSide<DeviceUnderTest>,
  options: CheckOptions,
): Finding | null {
  const { format } = options;
  const probe = probed(make, options);
  return check(
    "device",
    (watched) => {
      const side = watched ? inStoreOrder("device", make) : make;
      return {
        device: (memory, config) =>
          new ForeignDevice(format, side(memory, config), memory, config),
      };
    },
    // Giving back is an affair of Ringside's devices.
    ["unpop"],
    { disarmInterrupts: probe.needsInterrupt, disarmKicks: probe.disarmKicks },
    options,
  );
}

/**
 * Runs a foreign driver side of a queue against Ringside's device, by random scripts that a model judges;
 * returns what is wrong with it, or null where nothing was found.
 *
 * `make` is called once for each script, and once before.
 *
 * @throws {TypeError} when VIRTIO_F_EVENT_IDX is asked of a driver that has no `needsKick()` or no
 * `disarmInterrupts()`.
 */
export function checkDriver(
  make: MakeSide<DriverUnderTest>,
  options: CheckOptions,
): Finding | null {
  const { format } = options;
  const probe = probed(make, options);
  return check(
    "driver",
    (watched) => {
      const side = watched ? inStoreOrder("driver", make) : make;
      return {
        driver: (memory, config) =>
          new ForeignDriver(format, side(memory, config), config),
      };
    },
    [],
    { disarmKicks: probe.needsKick, disarmInterrupts: probe.disarmInterrupts },
    options,
  );
}

/** A finding as text, with its steps. */
export function describeFinding(finding: Finding): string {
  const { invariant, promise, rule, message, lines, script } = finding;
  const steps = lines.map((line, i) => `${String(i + 1).padStart(5)}. ${line}`);
  const { format, size, eventIdx, start } = script.setup as QueueSetup;
  return [
    rule === null
      ? `${invariant}: ${promise}`
      : `${rule.code}: virtio 1.4, ${rule.section}`,
    `  a ${format} queue of ${size}${
      eventIdx ? " with VIRTIO_F_EVENT_IDX" : ""
    }, ${start === 0 ? "new" : `after ${start} buffers went round one by one`}`,
    ...steps,
    `  => ${message}`,
  ].join("\n");
}

/** A side of a queue of no use but to tell which of its methods there are. */
function probed<Side>(make: MakeSide<Side>, options: CheckOptions): Side {
  const [size = 1] = options.sizes ?? [];
  const { memory, config } = new QueueRig({
    ...PLAIN,
    format: options.format,
    size,
  });
  for (const { bytes } of memory.regions) bytes.fill(0);
  return make(memory, config);
}

/** By step: the method without which it does not come up. */
type Needs = Partial<Record<QueueStep["do"], unknown>>;

function check(
  what: string,
  sides: (watched: boolean) => QueueSides,
  never: readonly QueueStep["do"][],
  needs: Needs,
  options: CheckOptions,
): Finding | null {
  const {
    format,
    sizes = SIZES[format],
    eventIdx = false,
    runs = 1000,
    seed = Date.now() | 0,
    storeOrder = true,
    script,
  } = options;
  const missing = (Object.keys(needs) as QueueStep["do"][])
    .filter((step) => needs[step] === undefined);
  if (eventIdx && missing.length > 0) {
    throw new TypeError(
      `Cannot check a ${what} with VIRTIO_F_EVENT_IDX: it does not tell who wants no notifications`,
    );
  }
  const property = (anywhere: boolean) => {
    const watched = !anywhere && storeOrder && format === "split";
    return foreignQueueProperty(
      `${format}/foreign-${what}`,
      { format, sizes, eventIdx, anywhere },
      sides(watched),
      // Where stores are watched, to go round 65536 times takes long.
      [...never, ...missing, ...watched ? ["jump"] as const : []],
    );
  };
  // What a new ring shows is the easier to read.
  const failure = script === undefined
    ? failureOf(property(false), Math.ceil(runs / 2), seed) ??
      failureOf(property(true), Math.floor(runs / 2), seed)
    : failureOfScript(
      property((script.setup as QueueSetup).start > 0),
      script,
    );
  return failure === null ? null : findingOf(failure);
}

function failureOf(
  property: NamedProperty,
  numRuns: number,
  seed: number,
): ScriptFailure | null {
  const { failed, errorInstance } = property.check(() => {}, { seed, numRuns });
  if (!failed) return null;
  if (errorInstance instanceof ScriptFailure) return errorInstance;
  throw errorInstance;
}

function failureOfScript(
  property: NamedProperty,
  script: AnyScript,
): ScriptFailure | null {
  try {
    property.replay(script);
    return null;
  } catch (error) {
    if (error instanceof ScriptFailure) return error;
    throw error;
  }
}

function findingOf(failure: ScriptFailure): Finding {
  const { invariant, message, lines, script } = failure;
  const fault = faultOf(failure);
  return {
    invariant,
    promise: invariant === STORE_ORDER
      ? STORE_ORDER_PROMISE
      : INVARIANTS[invariant as Invariant] ?? "",
    rule: fault === null ? null : { code: fault.code, section: fault.section },
    message: message.replace(`${invariant}: `, ""),
    lines: [...lines],
    script,
  };
}

/** The fault of the ring at the bottom of a failure. */
function faultOf(failure: ScriptFailure): RingError | null {
  for (
    let error: unknown = failure;
    error instanceof Error;
    error = error.cause
  ) {
    if (error instanceof RingError) return error;
  }
  return null;
}
