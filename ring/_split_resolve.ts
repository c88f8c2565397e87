import { maxIndirectEntries } from "./_indirect.ts";
import type { GuestMemory } from "./memory.ts";
import type {
  InFlightBuffer,
  InFlightDescriptor,
  QueueConfig,
} from "./queue.ts";

// Local copies of the constants in virtio_ring.ts, in a form that suits the words of a table.
const F_NEXT = 1;
const F_WRITE = 2;
const F_INDIRECT = 4;

/** High words from here on make an address of 2^53 or more. */
const ADDRESS_HIGH_END = 0x200000;
const TWO_32 = 0x100000000;

/** Descriptors that an indirect table may have; 0 where none was negotiated. */
export function indirectEntries({ size, indirect }: QueueConfig): number {
  return indirect === true ? maxIndirectEntries(size) : 0;
}

/** Where and how the descriptors of a split queue are read. */
export type SplitTable = {
  /** Guest memory, for indirect tables. */
  memory: GuestMemory;
  /** Descriptor table: four words a descriptor. */
  table: Uint32Array;
  /** Descriptors in the table. */
  size: number;
  /** Descriptors that an indirect table may have; 0 where none was negotiated. */
  maxIndirect: number;
};

/**
 * Returns the buffer that begins at `head` as plain data, with its indirect table resolved and
 * descriptors of length zero in their place; without descriptors where it breaks a rule.
 *
 * Each descriptor is read once; the work is bounded by the sizes of the two tables. Whether memory holds
 * the addresses is for the queue to see that takes the buffer over.
 */
export function resolveSplit(from: SplitTable, head: number): InFlightBuffer {
  const { table, size, maxIndirect } = from;
  const descriptors: InFlightDescriptor[] = [];
  let index = head;
  let slots = 0;
  for (;;) {
    const at = index * 4;
    const low = table[at]!;
    const high = table[at + 1]!;
    const length = table[at + 2]!;
    const flags = table[at + 3]!;
    slots++;
    let good: boolean;
    if ((flags & F_INDIRECT) !== 0) {
      good = maxIndirect !== 0 && (flags & F_NEXT) === 0 &&
        length / 16 <= maxIndirect && high < ADDRESS_HIGH_END &&
        appendTable(descriptors, from.memory, high * TWO_32 + low, length);
      return { id: head, slots, descriptors: good ? descriptors : [] };
    }
    good = append(descriptors, low, high, length, flags);
    const next = flags >>> 16;
    if (good && (flags & F_NEXT) === 0) return { id: head, slots, descriptors };
    if (!good || next >= size || slots === size) {
      return { id: head, slots, descriptors: [] };
    }
    index = next;
  }
}

// Appends what an indirect table says (2.7.5.3); false where it breaks a rule.
function appendTable(
  descriptors: InFlightDescriptor[],
  memory: GuestMemory,
  address: number,
  bytes: number,
): boolean {
  const region = memory.locate(address);
  if (
    bytes === 0 || bytes % 16 !== 0 || region < 0 || memory.foundRoom < bytes
  ) return false;
  const offset = memory.foundOffset;
  const copy = memory.regions[region]!.bytes.slice(offset, offset + bytes);
  const table = new Uint32Array(copy.buffer);
  const entries = bytes / 16;
  let index = 0;
  for (let steps = 0; steps < entries; steps++) {
    const at = index * 4;
    const flags = table[at + 3]!;
    if (
      (flags & F_INDIRECT) !== 0 ||
      !append(descriptors, table[at]!, table[at + 1]!, table[at + 2]!, flags)
    ) return false;
    if ((flags & F_NEXT) === 0) return true;
    index = flags >>> 16;
    if (index >= entries) return false;
  }
  return false;
}

function append(
  descriptors: InFlightDescriptor[],
  low: number,
  high: number,
  len: number,
  flags: number,
): boolean {
  const writable = (flags & F_WRITE) !== 0;
  if (
    high >= ADDRESS_HIGH_END ||
    (!writable && descriptors.at(-1)?.writable === true)
  ) return false;
  descriptors.push({ addr: high * TWO_32 + low, len, writable });
  return true;
}
