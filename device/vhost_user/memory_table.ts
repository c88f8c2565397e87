import { GuestMemory } from "../../ring/memory.ts";
import { VhostUserError } from "./errors.ts";
import type { MemoryRegionDescription } from "./message.ts";
import type { MappedMemory } from "./ports.ts";

/** A region of guest memory with its mapping. */
export type MappedRegion = {
  /** As the front-end described it. */
  readonly description: MemoryRegionDescription;
  /** The region's bytes; whoever takes the region out of use releases it. */
  readonly mapping: MappedMemory;
};

const SECTION = "Memory access";

/**
 * Checks what a front-end says of its regions, before anything is mapped.
 *
 * @throws {VhostUserError} `TOO_MANY_REGIONS`, or `BAD_MEMORY_REGION` where one is empty, not aligned to
 * 16 bytes or beyond 2^53, or two overlap as the guest or as the front-end addresses them.
 */
export function checkRegions(
  regions: readonly MemoryRegionDescription[],
  most: number,
): void {
  if (regions.length > most) {
    throw new VhostUserError(
      "TOO_MANY_REGIONS",
      SECTION,
      `Cannot have ${regions.length} memory regions: the limit is ${most}`,
    );
  }
  for (const region of regions) {
    const { guestAddress, size, userAddress, mmapOffset } = region;
    if (
      size === 0 || guestAddress % 16 !== 0 ||
      !Number.isSafeInteger(guestAddress + size) ||
      !Number.isSafeInteger(userAddress + size) ||
      !Number.isSafeInteger(mmapOffset + size)
    ) {
      throw new VhostUserError(
        "BAD_MEMORY_REGION",
        SECTION,
        `Cannot take the memory region ${
          show(region)
        }: it is empty, not aligned or too far up`,
      );
    }
  }
  refuseOverlaps(regions, "guestAddress");
  refuseOverlaps(regions, "userAddress");
}

function refuseOverlaps(
  regions: readonly MemoryRegionDescription[],
  key: "guestAddress" | "userAddress",
): void {
  const sorted = [...regions].sort((a, b) => a[key] - b[key]);
  for (let i = 1; i < sorted.length; i++) {
    const before = sorted[i - 1]!;
    const region = sorted[i]!;
    if (before[key] + before.size > region[key]) {
      throw new VhostUserError(
        "BAD_MEMORY_REGION",
        SECTION,
        `Cannot take the memory region ${show(region)}: it overlaps ${
          show(before)
        }`,
      );
    }
  }
}

function show(region: MemoryRegionDescription): string {
  return `of 0x${region.size.toString(16)} bytes at guest address 0x${
    region.guestAddress.toString(16)
  }, user address 0x${region.userAddress.toString(16)}`;
}

/**
 * The memory that a front-end has handed over: an immutable set of mapped regions.
 *
 * A region has two addresses. Descriptors hold guest addresses; a front-end names rings by *user*
 * addresses, its own pointers ("Memory access").
 */
export class MemoryTable {
  /** The regions, in the order in which they came. */
  readonly regions: readonly MappedRegion[];
  /** The same by guest address. */
  readonly memory: GuestMemory;

  /** Takes regions that {@link checkRegions} has let pass. */
  constructor(regions: readonly MappedRegion[] = []) {
    this.regions = [...regions];
    this.memory = new GuestMemory(
      this.regions.map(({ description, mapping }) => ({
        guestAddress: description.guestAddress,
        size: description.size,
        buffer: mapping.buffer,
        hostAddress: mapping.hostAddress,
      })),
    );
  }

  /** The guest address of user address `address`; -1 where no region holds it. */
  toGuest(address: number): number {
    for (const { description } of this.regions) {
      const offset = address - description.userAddress;
      if (offset >= 0 && offset < description.size) {
        return description.guestAddress + offset;
      }
    }
    return -1;
  }

  /** Returns a table with one region more. */
  with(region: MappedRegion): MemoryTable {
    return new MemoryTable([...this.regions, region]);
  }

  /**
   * Returns a table without the region of the same addresses and size.
   *
   * @throws {VhostUserError} `BAD_MEMORY_REGION` when there is none.
   */
  without(description: MemoryRegionDescription): MemoryTable {
    const left = this.regions.filter(({ description: own }) =>
      own.guestAddress !== description.guestAddress ||
      own.userAddress !== description.userAddress ||
      own.size !== description.size
    );
    if (left.length === this.regions.length) {
      throw new VhostUserError(
        "BAD_MEMORY_REGION",
        "VHOST_USER_REM_MEM_REG",
        `Cannot remove the memory region ${
          show(description)
        }: there is no such region`,
      );
    }
    return new MemoryTable(left);
  }
}
