import type { GuestMemory } from "./memory.ts";

/**
 * Descriptors that an indirect table may have on any queue. The specification holds a chain to the
 * queue's size (2.7.5.3.1), but Linux builds tables by its scatter lists (1024 entries is its
 * IOV_MAX), also on a smaller queue.
 */
const INDIRECT_ENTRIES = 1024;

/** Descriptors that an indirect table may have on a queue of `size`. */
export function maxIndirectEntries(size: number): number {
  return Math.max(size, INDIRECT_ENTRIES);
}

/** The regions as words, to read tables in them. */
export function regionWords(memory: GuestMemory): Uint32Array[] {
  return memory.regions.map(({ words }) => words);
}
