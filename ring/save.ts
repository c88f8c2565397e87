import { mapPackedViews } from "./_packed.ts";
import { PackedWalker } from "./_packed_walk.ts";
import { splitViews } from "./_split_layout.ts";
import type { GuestMemory } from "./memory.ts";
import type {
  DeviceQueue,
  InFlightBuffer,
  InFlightDescriptor,
  QueueConfig,
  QueueState,
} from "./queue.ts";
import type { PackedQueueState, SplitQueueState } from "./state.ts";
import {
  VIRTQ_DESC_F_AVAIL,
  VIRTQ_DESC_F_NEXT,
  VIRTQ_DESC_F_USED,
} from "./virtio_ring.ts";

/**
 * How a state tells of the buffers that were fetched and not used.
 *
 * - `drain`: there are none; what was fetched has been used.
 * - `rewind`: their fetching is taken back. The positions alone tell everything, and the next device fetches
 *   them from the ring again. Only where the ring still holds them, so where nothing overtook them.
 * - `carry`: the state has a list of them, with copies of their descriptors. Always possible.
 */
export type SaveWay = "drain" | "rewind" | "carry";

/** State of a queue, with the way that it tells of buffers in flight. */
export type SavedQueue = { way: SaveWay; state: QueueState };

/** Where the ring of a queue lies. */
export type RingPlace = Pick<
  QueueConfig,
  "size" | "descriptorArea" | "driverArea" | "deviceArea"
>;

/**
 * Saves a queue in the middle of traffic and says which of the lawful ways it took.
 *
 * Without buffers in flight it is `drain`. Otherwise `prefer` decides where both others are possible:
 * `rewind`, which is the default and gives a state that two words can tell, or `carry`. The queue is not
 * changed. In each case a device that goes on from the state gets every buffer that was not used, in the
 * order of the first fetch, and none that was.
 *
 * `memory` and `place` are those of the queue.
 *
 * @throws {TypeError} when completions are staged that were not published.
 */
export function saveQueue(
  queue: DeviceQueue,
  memory: GuestMemory,
  place: RingPlace,
  prefer: "rewind" | "carry" = "rewind",
): SavedQueue {
  const state = queue.save();
  if (state.inFlight.length === 0) return { way: "drain", state };
  if (prefer === "rewind") {
    const rewound = rewindInFlight(memory, place, state);
    if (rewound !== null) return { way: "rewind", state: rewound };
  }
  return { way: "carry", state };
}

/**
 * Takes back the fetching of all buffers in flight; null where the ring does not hold them as they were
 * fetched any more, because something that was fetched later was used before them.
 *
 * `state` is what a queue in that ring has saved. Split: the entries of the available ring between the used and
 * the available index stay until they are used, and are the buffers in flight when nothing overtook
 * them. Packed: a used descriptor is written over the first slots in flight, so all of them must still be
 * available, go on as far as they did, have the id in the last one, and say what was fetched.
 *
 * The ring is the driver's memory. What a driver changes in it meanwhile changes what is fetched again, as
 * it would with any buffer; it cannot make a buffer that was used come back.
 *
 * @throws {RingError} `BAD_QUEUE_SIZE` or `BAD_QUEUE_ADDRESS` where there is no ring at `place`.
 */
export function rewindInFlight(
  memory: GuestMemory,
  place: RingPlace,
  state: QueueState,
): QueueState | null {
  if (state.inFlight.length === 0) return state;
  return state.format === "split"
    ? rewindSplit(memory, place, state)
    : rewindPacked(memory, place, state);
}

function rewindSplit(
  memory: GuestMemory,
  place: RingPlace,
  state: SplitQueueState,
): QueueState | null {
  const { avail } = splitViews(memory, place);
  const { usedIdx, inFlight } = state;
  for (const [i, { id }] of inFlight.entries()) {
    if (avail[2 + ((usedIdx + i) & (place.size - 1))] !== id) return null;
  }
  return { ...state, lastAvailIdx: usedIdx, inFlight: [] };
}

function rewindPacked(
  memory: GuestMemory,
  place: RingPlace,
  state: PackedQueueState,
): QueueState | null {
  const { size } = place;
  const { u16, u32 } = mapPackedViews(memory, place);
  // A buffer that was fetched through an indirect table was saved with what was in it.
  const walker = new PackedWalker(memory, u32, size, true);
  let slot = state.usedIdx;
  let wrap: number = state.usedWrapCounter;
  for (const { id, slots, descriptors } of state.inFlight) {
    const table = new Uint32Array(slots * 4);
    for (let i = 0; i < slots; i++) {
      const flags = u16[slot * 8 + 7]!;
      const avail = (flags & VIRTQ_DESC_F_AVAIL) !== 0 ? 1 : 0;
      const used = (flags & VIRTQ_DESC_F_USED) !== 0 ? 1 : 0;
      if (avail !== wrap || used === wrap) return null;
      const more = (flags & VIRTQ_DESC_F_NEXT) !== 0;
      if (more !== (i < slots - 1)) return null;
      if (i === slots - 1 && u16[slot * 8 + 6] !== id) return null;
      table.set(u32.subarray(slot * 4, slot * 4 + 4), i * 4);
      if (++slot === size) {
        slot = 0;
        wrap ^= 1;
      }
    }
    // Slots can look available again after a repair though a used descriptor was written there.
    if (!sameDescriptors(descriptors, walker.resolve(table))) return null;
  }
  return {
    ...state,
    lastAvailIdx: state.usedIdx,
    lastAvailWrapCounter: state.usedWrapCounter,
    inFlight: [],
  };
}

// A malformed buffer was saved without descriptors, and is fetched as malformed again.
function sameDescriptors(
  saved: InFlightBuffer["descriptors"],
  found: InFlightDescriptor[],
): boolean {
  return saved.length === 0 ||
    (saved.length === found.length && saved.every((descriptor, i) => {
      const { addr, len, writable } = found[i]!;
      return descriptor.addr === addr && descriptor.len === len &&
        descriptor.writable === writable;
    }));
}
