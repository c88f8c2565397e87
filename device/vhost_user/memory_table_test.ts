import { assertEquals, assertThrows } from "@std/assert";
import { VhostUserError } from "./errors.ts";
import {
  checkRegions,
  type MappedRegion,
  MemoryTable,
} from "./memory_table.ts";

function mapped(guest: number, size: number, user: number): MappedRegion {
  return {
    description: {
      guestAddress: guest,
      size,
      userAddress: user,
      mmapOffset: 0,
    },
    mapping: {
      buffer: new ArrayBuffer(size),
      hostAddress: 0,
      release: () => {},
    },
  };
}

const low = mapped(0, 0x1000, 0x7f00_0000_0000);
const high = mapped(0x10_0000, 0x2000, 0x7e00_0000_0000);

Deno.test("MemoryTable.toGuest() finds user addresses in every region", () => {
  const table = new MemoryTable([low, high]);
  assertEquals(table.toGuest(0x7f00_0000_0000), 0);
  assertEquals(table.toGuest(0x7f00_0000_0fff), 0xfff);
  assertEquals(table.toGuest(0x7f00_0000_1000), -1);
  assertEquals(table.toGuest(0x7e00_0000_1ff0), 0x10_1ff0);
  assertEquals(table.toGuest(0x7dff_ffff_ffff), -1);
  assertEquals(table.toGuest(0), -1);
  const same = new MemoryTable([mapped(0x6000_0000, 0x1000, 0x6000_0000)]);
  assertEquals(same.toGuest(0x6000_0010), 0x6000_0010);
  assertEquals(new MemoryTable().toGuest(0), -1);
});

Deno.test("MemoryTable.with() and without() leave the table as it was", () => {
  const table = new MemoryTable([low]);
  const both = table.with(high);
  assertEquals(table.regions.length, 1);
  assertEquals(both.memory.regions.map((r) => r.guestAddress), [0, 0x10_0000]);
  const left = both.without({ ...low.description, mmapOffset: 5 });
  assertEquals(left.regions, [high]);
  assertEquals(both.regions.length, 2);
  for (
    const wrong of [
      { ...low.description, size: 0x2000 },
      { ...low.description, userAddress: 0 },
      { ...low.description, guestAddress: 0x1000 },
    ]
  ) {
    const error = assertThrows(() => both.without(wrong), VhostUserError);
    assertEquals(error.code, "BAD_MEMORY_REGION");
  }
});

Deno.test("checkRegions() lets neighbours pass and refuses overlaps", () => {
  const one = {
    guestAddress: 0x1000,
    size: 0x1000,
    userAddress: 0x5000,
    mmapOffset: 0,
  };
  const next = { ...one, guestAddress: 0x2000, userAddress: 0x6000 };
  checkRegions([next, one], 2);
  const codeOf = (regions: (typeof one)[], most = 8): string =>
    assertThrows(() => checkRegions(regions, most), VhostUserError).code;
  assertEquals(codeOf([one, next], 1), "TOO_MANY_REGIONS");
  const bad = "BAD_MEMORY_REGION";
  assertEquals(codeOf([one, { ...next, guestAddress: 0x1ff0 }]), bad);
  assertEquals(codeOf([{ ...next, guestAddress: 0x10 }, one]), bad);
  assertEquals(codeOf([one, { ...next, userAddress: 0x5fff }]), bad);
  assertEquals(codeOf([one, one]), bad);
  assertEquals(codeOf([{ ...one, size: 0 }]), bad);
  assertEquals(codeOf([{ ...one, guestAddress: 0x1008 }]), bad);
  assertEquals(codeOf([{ ...one, userAddress: 2 ** 53 - 0x1000 }]), bad);
  assertEquals(codeOf([{ ...one, mmapOffset: 2 ** 53 - 0x1000 }]), bad);
});
