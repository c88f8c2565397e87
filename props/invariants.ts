/**
 * What a queue promises, by name: each is a property of its own for each ring format.
 *
 * @module
 */

/** An invariant of a single queue. */
export type Invariant =
  | "exactly-once"
  | "bytes"
  | "used-length"
  | "readable-untouched"
  | "distance"
  | "positions"
  | "cursors"
  | "fetch-order"
  | "use-order"
  | "progress"
  | "suppression"
  | "codec"
  | "save-pure"
  | "restore-run"
  | "reset"
  | "suspend"
  | "no-fault";

/** All of them, with what they say. */
export const INVARIANTS: Readonly<Record<Invariant, string>> = {
  "exactly-once":
    "every buffer that was made available comes back once, across any save, reset and restore",
  "bytes": "the device gets the driver's bytes, and the driver the device's",
  "used-length": "the driver is told the length that the device has written",
  "readable-untouched":
    "memory that the device may only read, or that was not offered, is never written",
  "distance":
    "split: avail.idx - last_avail is at most N, last_avail - used.idx what is in flight; packed: the distance is the sum of descriptors in flight",
  "positions": "a saved state and a notification stand where the model does",
  "cursors": "cursors and wrap counters of both sides agree at rest",
  "fetch-order": "buffers are fetched in the order in which they came",
  "use-order":
    "buffers come back in the order in which they were used, with IN_ORDER that in which they came",
  "progress":
    "where work waits and a side is idle, a notification is owed and given",
  "suppression": "no notification is given that was not asked for",
  "codec": "what is decoded is what was encoded",
  "save-pure":
    "save() changes neither memory nor device, and says the same again",
  "restore-run":
    "a device that was restored goes on exactly as the one that was saved",
  "reset":
    "a queue that was reset is in its default state, and its memory is left alone",
  "suspend": "a suspended device leaves memory and driver alone",
  "no-fault": "nothing lawful is refused",
};
