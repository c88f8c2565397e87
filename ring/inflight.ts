import type { GuestMemory } from "./memory.ts";
import { PackedInflight } from "./packed_inflight.ts";
import type { QueueConfig, QueueState, RingFormat } from "./queue.ts";
import { SplitInflight } from "./split_inflight.ts";

/**
 * What a back-end keeps outside of itself about the buffers of one queue that it has fetched and not used, so
 * that the next one can go on after a crash: a queue region of vhost-user ("Inflight I/O tracking").
 *
 * A {@link TrackedQueue} keeps it exact. The order of the stores is such that a crash between any two of
 * them leaves a region that {@link InflightRegion.recover} understands.
 */
export interface InflightRegion {
  /** Split or packed. */
  readonly format: RingFormat;
  /** Descriptors of the queue. */
  readonly size: number;
  /** False while the region is all zero, as a front-end makes it for a queue that is new. */
  readonly initialized: boolean;

  /**
   * Sets the region up for a queue that starts from `state`; whatever it held is forgotten.
   *
   * Also for a queue that starts anew though the region is initialized, as after a guest's reboot.
   *
   * @throws {TypeError} when buffers of a packed queue are in flight, whose descriptors it cannot tell.
   */
  initialize(state: QueueState): void;

  /**
   * Repairs the region, and a packed ring, after a back-end has gone away at any point, and returns the
   * state from which a queue goes on: with all buffers in flight, to be handed out again in the order of
   * their first fetch.
   *
   * The region is the front-end's and the ring the guest's; neither is trusted.
   *
   * @throws {RingError} `BAD_QUEUE_STATE` when no back-end can have left them so.
   */
  recover(): QueueState;

  /** A buffer was fetched from the ring, where it takes `slots` descriptors. */
  fetched(token: number, slots: number): void;
  /** The buffer that was fetched last was given back to the ring. */
  returned(token: number): void;
  /** A completion was staged. */
  stage(token: number): void;
  /** What was staged is about to be published. */
  beginPublish(): void;
  /** What was staged was published. */
  endPublish(): void;
  /** The ring lies in other memory now, at the same addresses. */
  rebind(memory: GuestMemory): void;
}

/** Regions begin at multiples of this. */
const REGION_ALIGNMENT = 64;

/**
 * Bytes from one queue region to the next: its header, and an entry for each of `size` descriptors,
 * rounded up to 64.
 *
 * Split: 16 bytes and 16 an entry (`QueueRegionSplit`). Packed: 32 and 32 (`QueueRegionPacked`).
 */
export function inflightRegionSize(format: RingFormat, size: number): number {
  const entry = format === "split" ? 16 : 32;
  return Math.ceil(entry * (size + 1) / REGION_ALIGNMENT) * REGION_ALIGNMENT;
}

/**
 * Opens the region of a queue at `config` in `memory`. Touches neither of them.
 *
 * `bytes` stays the caller's and must hold `inflightRegionSize()` bytes, from a multiple of 8 on.
 *
 * @throws {RangeError} when it does not.
 * @throws {RingError} `BAD_QUEUE_SIZE` or `BAD_QUEUE_ADDRESS` where there is no such queue.
 */
export function openInflight(
  format: RingFormat,
  bytes: Uint8Array,
  memory: GuestMemory,
  config: QueueConfig,
): InflightRegion {
  return format === "split"
    ? new SplitInflight(bytes, memory, config)
    : new PackedInflight(bytes, memory, config);
}
