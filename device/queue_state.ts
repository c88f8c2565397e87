import { RingError } from "../ring/errors.ts";
import type { GuestMemory } from "../ring/memory.ts";
import type { QueueState, RingFormat } from "../ring/queue.ts";
import { rewindInFlight } from "../ring/save.ts";
import { readUsedIdx } from "../ring/split_device.ts";
import {
  decodeQueueStateWords,
  encodeQueueStateWords,
  initialQueueState,
  type QueueStateWords,
} from "../ring/state.ts";
import type { QueueSetup } from "./device_model.ts";
import { readSetup } from "./device_snapshot.ts";
import { isFreshRing, ringInMemory } from "./ring_position.ts";
import { FieldReader, SnapshotError } from "./snapshot.ts";

/** Whether a driver reads or writes the state of a queue. */
export type QueueStateAccess = "get" | "set";

/**
 * Where the facility stands, from the driver's steps:
 *
 * - `idle`: since the device was made, or reset without the facility negotiated.
 * - `kept`: reset with the facility negotiated; states can be read.
 * - `cleared`: ACKNOWLEDGE was set.
 * - `declined`: FEATURES_OK was set without the facility.
 * - `settable`: FEATURES_OK was set with it, DRIVER_OK was not; states can be set.
 * - `live`: DRIVER_OK was set with it.
 */
type Phase =
  | "idle"
  | "kept"
  | "cleared"
  | "declined"
  | "settable"
  | "live";

const PHASES: readonly Phase[] = [
  "idle",
  "kept",
  "cleared",
  "declined",
  "settable",
  "live",
];
const FORMATS: readonly RingFormat[] = ["split", "packed"];

const GET_PROBLEMS: Readonly<Record<Phase, string | null>> = {
  idle:
    "no state was kept, as no driver has used VIRTIO_F_QUEUE_STATE before the last reset",
  kept: null,
  cleared: "ACKNOWLEDGE, once set, clears it",
  declined: "the driver did not accept VIRTIO_F_QUEUE_STATE",
  settable: "the device was not reset",
  live: "the device was not reset",
};

const SET_PROBLEMS: Readonly<Record<Phase, string | null>> = {
  idle: "FEATURES_OK is not set",
  kept: "FEATURES_OK is not set",
  cleared: "FEATURES_OK is not set",
  declined: "the driver did not accept VIRTIO_F_QUEUE_STATE",
  settable: null,
  live: "DRIVER_OK is set",
};

/** Where the facility stands, and what it holds, as plain data. */
export type FacilitySnapshot = {
  /** How far the driver has gone. */
  phase: string;
  /** Format of the rings that were negotiated. */
  format: RingFormat;
  /** Format of the rings that the kept states are of; null where none are. */
  keptFormat: RingFormat | null;
  /** By queue. */
  entries: FacilityEntry[];
};

/** What the facility holds of a queue. */
export type FacilityEntry = {
  /** What the driver has set; -1 where it has not. */
  available: number;
  /** Likewise. */
  used: number;
  /** What was kept when the queue was stopped, or why nothing could be. */
  kept: QueueStateWords | string | null;
  /** Where it was last stopped. */
  stop: { setup: QueueSetup; words: QueueStateWords } | null;
};

/**
 * The virtqueue state facility: when a driver may set and get the two words of each queue, and what
 * they are in the meantime.
 *
 * Where the proposal's rules are kept:
 *
 * | rule | kept by |
 * |---|---|
 * | the driver sets every queue's state between FEATURES_OK and DRIVER_OK | {@link QueueStateFacility.problem} refuses it sooner and later, {@link QueueStateFacility.wordsToStart} a queue without one |
 * | the driver resets before it reads a state | `problem` |
 * | a reset leaves the states alone | {@link QueueStateFacility.reset} |
 * | ACKNOWLEDGE clears them | {@link QueueStateFacility.acknowledge} |
 */
export class QueueStateFacility {
  /** Format of the rings that the kept states are of; null where none are. */
  keptFormat: RingFormat | null = null;

  readonly #entries: FacilityEntry[];
  #phase: Phase = "idle";
  #format: RingFormat = "split";

  /** Makes the facility of a device with `queueCount` queues. */
  constructor(queueCount: number) {
    this.#entries = Array.from(
      { length: queueCount },
      () => ({ available: -1, used: -1, kept: null, stop: null }),
    );
  }

  /** True where it was negotiated, from FEATURES_OK until the reset. */
  get negotiated(): boolean {
    return this.#phase === "settable" || this.#phase === "live";
  }

  /** Why a driver cannot `access` the state of queue `index` now, in words; null where it can. */
  problem(index: number, access: QueueStateAccess): string | null {
    if (access === "set") return SET_PROBLEMS[this.#phase];
    const problem = GET_PROBLEMS[this.#phase];
    if (problem !== null) return problem;
    const { kept } = this.#entries[index]!;
    return typeof kept === "string" ? kept : null;
  }

  /** What is kept of queue `index`; where that is no problem. */
  get(index: number): QueueStateWords {
    const { kept } = this.#entries[index]!;
    if (kept === null || typeof kept === "string") {
      throw new TypeError(`Cannot get the state of queue ${index}: ${kept}`);
    }
    return kept;
  }

  /**
   * Takes one word of queue `index`; where that is no problem.
   *
   * @throws {RangeError} when it has more than 16 bits.
   */
  set(index: number, which: "available" | "used", word: number): void {
    if (!Number.isInteger(word) || word < 0 || word > 0xffff) {
      throw new RangeError(
        `Cannot set the ${which} state of queue ${index} to ${word}: not 16 bits`,
      );
    }
    this.#entries[index]![which] = word;
  }

  /** The driver sets ACKNOWLEDGE: what was kept is gone. */
  acknowledge(): void {
    this.#phase = "cleared";
    this.#clear();
  }

  /** The driver sets FEATURES_OK, with the facility or without, and with rings of `format`. */
  featuresAccepted(negotiated: boolean, format: RingFormat): void {
    this.#phase = negotiated ? "settable" : "declined";
    this.#format = format;
    this.#clear();
  }

  /** The driver sets DRIVER_OK. */
  driverOk(): void {
    if (this.#phase === "settable") this.#phase = "live";
  }

  /**
   * The state in which the driver wants queue `index` to start; null for a ring that is new, which a driver
   * that has just been started tells by the words of a new one and by the ring's memory.
   *
   * The queue checks the state. A ring that goes on where it was stopped is not new, whatever it looks
   * like.
   *
   * @throws {RingError} `BAD_QUEUE_STATE` when the driver has not set it; others for a ring that is not in
   * memory.
   */
  stateToStart(
    index: number,
    memory: GuestMemory,
    setup: QueueSetup,
  ): QueueState | null {
    const format = this.#format;
    const { stop } = this.#entries[index]!;
    const words = this.#wordsToStart(index);
    const resumed = stop !== null && sameWords(stop.words, words) &&
      sameSetup(stop.setup, setup);
    if (
      !resumed && sameWords(initialWords(format), words) &&
      ringInMemory(memory, format, setup)
    ) {
      const base = (words.used << 16 | words.available) >>> 0;
      if (isFreshRing(memory, format, setup, base)) return null;
    }
    const usedIdx = format === "split" ? readUsedIdx(memory, setup) : 0;
    return decodeQueueStateWords(format, words, usedIdx);
  }

  #wordsToStart(index: number): QueueStateWords {
    const { available, used } = this.#entries[index]!;
    const packed = this.#format === "packed";
    if (available < 0 || (packed && used < 0)) {
      throw new RingError(
        "BAD_QUEUE_STATE",
        "Virtqueue State",
        `Cannot start queue ${index}: its driver, which accepted VIRTIO_F_QUEUE_STATE, has not set its ${
          available < 0 ? "available" : "used"
        } state`,
        true,
      );
    }
    return { available, used: packed ? used : 0 };
  }

  /**
   * Queue `index` was stopped in `state`. The fetching of buffers in flight is taken back, as words cannot
   * tell them; returns why it cannot be, or null.
   */
  keep(
    index: number,
    memory: GuestMemory,
    setup: QueueSetup,
    state: QueueState,
  ): string | null {
    const entry = this.#entries[index]!;
    const rewound = rewindInFlight(memory, setup, state);
    if (rewound === null) {
      entry.stop = null;
      entry.kept =
        `${state.inFlight.length} buffers are in flight behind others that were used, which two words cannot tell`;
      return entry.kept;
    }
    const words = encodeQueueStateWords(rewound);
    entry.kept = words;
    entry.stop = { setup: { ...setup }, words };
    return null;
  }

  /**
   * The device is reset, after its queues were stopped. A state that was kept stays, also through further
   * resets; that of a queue which did not run is the one that was set, or the initial one.
   */
  reset(): void {
    if (this.negotiated) {
      const initial = initialWords(this.#format);
      for (const entry of this.#entries) {
        const { available, used } = entry;
        entry.kept ??= {
          available: available < 0 ? initial.available : available,
          used: used < 0 || this.#format === "split" ? initial.used : used,
        };
      }
      this.keptFormat = this.#format;
      this.#phase = "kept";
    } else if (this.#phase === "declined") {
      this.#phase = "idle";
    }
  }

  /** All that it holds, as plain data. */
  save(): FacilitySnapshot {
    return {
      phase: this.#phase,
      format: this.#format,
      keptFormat: this.keptFormat,
      entries: structuredClone(this.#entries),
    };
  }

  /**
   * Checks what `save` returned in another instance, and returns what goes on from it. `negotiated` tells
   * whether the features of the snapshot have the facility where this device offers it.
   *
   * @throws {SnapshotError} `CONTENT` or `MISMATCH`.
   */
  prepareRestore(saved: unknown, negotiated: boolean): () => void {
    const what = "queueState";
    const fields = new FieldReader(saved, what);
    const phase = fields.oneOf("phase", PHASES);
    const format = fields.oneOf("format", FORMATS);
    const keptFormat = fields.any("keptFormat") === null
      ? null
      : fields.oneOf("keptFormat", FORMATS);
    if ((phase === "settable" || phase === "live") !== negotiated) {
      throw new SnapshotError(
        "MISMATCH",
        `its queue states are ${phase}, which the features that were accepted do not make them here`,
      );
    }
    const entries = fields.array("entries", this.#entries.length).map(
      (entry, index) => readEntry(entry, `${what}.entries[${index}]`),
    );
    if (entries.length !== this.#entries.length) {
      throw fields.bad("entries", "not one for each queue");
    }
    if (phase === "kept" && entries.some(({ kept }) => kept === null)) {
      throw fields.bad("entries", "without a state that was kept");
    }
    return () => {
      this.#phase = phase;
      this.#format = format;
      this.keptFormat = keptFormat;
      for (const [index, entry] of entries.entries()) {
        this.#entries[index] = entry;
      }
    };
  }

  #clear(): void {
    this.keptFormat = null;
    for (const entry of this.#entries) {
      entry.available = -1;
      entry.used = -1;
      entry.kept = null;
    }
  }
}

function readEntry(value: unknown, what: string): FacilityEntry {
  const fields = new FieldReader(value, what);
  const kept = fields.any("kept");
  const stop = fields.any("stop");
  const stopFields = stop === null ? null : new FieldReader(stop, what);
  return {
    available: fields.integer("available", -1, 0xffff),
    used: fields.integer("used", -1, 0xffff),
    kept: kept === null || typeof kept === "string"
      ? kept
      : readWords(kept, `${what}.kept`),
    stop: stopFields === null ? null : {
      setup: readSetup(stopFields.any("setup"), `${what}.stop.setup`),
      words: readWords(stopFields.any("words"), `${what}.stop.words`),
    },
  };
}

function readWords(value: unknown, what: string): QueueStateWords {
  const fields = new FieldReader(value, what);
  return {
    available: fields.integer("available", 0, 0xffff),
    used: fields.integer("used", 0, 0xffff),
  };
}

function initialWords(format: RingFormat): QueueStateWords {
  return encodeQueueStateWords(
    format === "split"
      ? initialQueueState("split")
      : initialQueueState("packed"),
  );
}

function sameWords(a: QueueStateWords, b: QueueStateWords): boolean {
  return a.available === b.available && a.used === b.used;
}

function sameSetup(a: QueueSetup, b: QueueSetup): boolean {
  return a.size === b.size && a.descriptorArea === b.descriptorArea &&
    a.driverArea === b.driverArea && a.deviceArea === b.deviceArea;
}
