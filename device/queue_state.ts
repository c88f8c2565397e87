import { RingError } from "../ring/errors.ts";
import type { RingFormat } from "../ring/queue.ts";
import {
  encodeQueueStateWords,
  initialQueueState,
  type QueueStateWords,
} from "../ring/state.ts";

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

type Entry = {
  /** What the driver has set; -1 where it has not. */
  available: number;
  used: number;
  /** Words as the queue stood when it was stopped, or why there are none. */
  kept: QueueStateWords | string | null;
};

/**
 * The virtqueue state facility: when a driver may set and get the two words of each queue, and what
 * they are in the meantime. It knows nothing of queues.
 *
 * The proposal's rules and where they are:
 *
 * - "a driver MUST set the state of each virtqueue after setting the FEATURE_OK status bit but before
 *   setting the DRIVER_OK status bit": {@link QueueStateFacility.problem} for anything sooner or later,
 *   {@link QueueStateFacility.wordsToStart} for a queue whose state was not set.
 * - "a driver MUST reset the device before getting the virtqueue state": `problem`, again.
 * - "a device MUST NOT clear the queue state upon reset": {@link QueueStateFacility.reset}.
 * - "and MUST reset the queue state when the driver sets ACKNOWLEDGE status bit":
 *   {@link QueueStateFacility.acknowledge}.
 */
export class QueueStateFacility {
  /** Format of the rings that the kept states are of; null where none are. */
  keptFormat: RingFormat | null = null;

  readonly #entries: Entry[];
  #phase: Phase = "idle";
  #format: RingFormat = "split";

  /** Makes the facility of a device with `queueCount` queues. */
  constructor(queueCount: number) {
    this.#entries = Array.from(
      { length: queueCount },
      () => ({ available: -1, used: -1, kept: null }),
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

  /** Takes one word of queue `index`, 16 bits; where that is no problem. */
  set(index: number, word: "available" | "used", value: number): void {
    this.#entries[index]![word] = value;
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
   * The words from which queue `index` starts.
   *
   * @throws {RingError} `BAD_QUEUE_STATE` when the driver has not set them.
   */
  wordsToStart(index: number): QueueStateWords {
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

  /** Queue `index` has stopped where `words` say, or cannot be told in words. */
  keep(index: number, words: QueueStateWords | string): void {
    this.#entries[index]!.kept = words;
  }

  /**
   * The device is reset, after its queues were stopped. A state that was kept stays, also through further
   * resets; that of a queue which did not run is the one that was set, or the initial one.
   */
  reset(): void {
    if (this.negotiated) {
      const initial = encodeQueueStateWords(
        this.#format === "split"
          ? initialQueueState("split")
          : initialQueueState("packed"),
      );
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

  #clear(): void {
    this.keptFormat = null;
    for (const entry of this.#entries) {
      entry.available = -1;
      entry.used = -1;
      entry.kept = null;
    }
  }
}
