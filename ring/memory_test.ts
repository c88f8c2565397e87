import { assertEquals, assertStrictEquals, assertThrows } from "@std/assert";
import { RingError } from "./errors.ts";
import { GuestMemory, type MemoryRegion } from "./memory.ts";

function region(
  guestAddress: number,
  size: number,
  change: Partial<MemoryRegion> = {},
): MemoryRegion {
  return { guestAddress, size, buffer: new ArrayBuffer(size), ...change };
}

/** What locate() finds: [region, offset, room], or null. */
function find(memory: GuestMemory, address: number): number[] | null {
  const index = memory.locate(address);
  return index < 0 ? null : [index, memory.foundOffset, memory.foundRoom];
}

Deno.test("GuestMemory.locate() finds the first and the last byte of each region and none between", () => {
  const memory = new GuestMemory([
    region(2 ** 32, 64),
    region(0x100, 32),
    region(0x120, 16), // adjoins
    region(2 ** 53 - 32, 16),
  ]);
  assertEquals(memory.regions.map((r) => r.guestAddress), [
    0x100,
    0x120,
    2 ** 32,
    2 ** 53 - 32,
  ]);
  const places: [number, number[] | null][] = [
    [0xff, null],
    [0x100, [0, 0, 32]],
    [0x11f, [0, 31, 1]],
    [0x120, [1, 0, 16]],
    [0x12f, [1, 15, 1]],
    [0x130, null],
    [2 ** 32 - 1, null],
    [2 ** 32, [2, 0, 64]],
    [2 ** 32 + 63, [2, 63, 1]],
    [2 ** 32 + 64, null],
    [2 ** 53 - 32, [3, 0, 16]],
    [2 ** 53 - 17, [3, 15, 1]],
    [2 ** 53 - 16, null],
    [2 ** 53, null],
    [2 ** 64, null],
    [-1, null],
    [NaN, null],
    [Infinity, null],
  ];
  // In both orders, so that each comes after another region was found last.
  for (const [address, expected] of [...places, ...places.toReversed()]) {
    assertEquals(find(memory, address), expected, `address ${address}`);
  }
});

Deno.test("GuestMemory.locate() finds nothing where there are no regions", () => {
  assertEquals(find(new GuestMemory([]), 0), null);
});

Deno.test("GuestMemory.bytes() is a view over the owner's buffer", () => {
  const buffer = new SharedArrayBuffer(64);
  const memory = new GuestMemory([
    {
      guestAddress: 0x1000,
      size: 32,
      buffer,
      byteOffset: 16,
      hostAddress: 0x7000,
    },
  ]);
  const view = memory.bytes(0x1004, 8);
  view[0] = 7;
  assertEquals(new Uint8Array(buffer)[20], 7);
  assertEquals(view.length, 8);
  assertStrictEquals(view.buffer, buffer);
  assertEquals(memory.regions[0]!.hostAddress, 0x7000);
  assertEquals(memory.bytes(0x101f, 1).length, 1);
});

Deno.test("GuestMemory has the bytes of each region as words, too", () => {
  const buffer = new ArrayBuffer(64);
  const { regions } = new GuestMemory([
    { guestAddress: 0x1000, size: 30, buffer, byteOffset: 16 },
  ]);
  const { bytes, words } = regions[0]!;
  assertEquals(words.length, 7);
  bytes[5] = 0x12;
  assertEquals(words[1], 0x1200);
  words[6] = 0x44332211;
  assertEquals([...bytes.subarray(24)], [0x11, 0x22, 0x33, 0x44, 0, 0]);
});

Deno.test("GuestMemory.bytes() throws BAD_ADDRESS for bytes that are not in one region", () => {
  const memory = new GuestMemory([region(0, 16), region(16, 16)]);
  for (
    const [address, length] of [[15, 2], [32, 1], [-1, 1], [31, 2]] as const
  ) {
    const error = assertThrows(() => memory.bytes(address, length), RingError);
    assertEquals([error.code, error.fatal], ["BAD_ADDRESS", false]);
  }
});

Deno.test("new GuestMemory() refuses regions that overlap, whatever their order", () => {
  const overlapping = [region(0x100, 0x20), region(0x110, 0x20)];
  assertThrows(() => new GuestMemory(overlapping), TypeError, "overlap");
  assertThrows(
    () => new GuestMemory(overlapping.reverse()),
    TypeError,
    "overlap",
  );
  assertThrows(
    () => new GuestMemory([region(0, 64), region(0, 16)]),
    TypeError,
    "overlap",
  );
});

Deno.test("new GuestMemory() refuses what is out of range, misaligned or larger than its buffer", () => {
  for (
    const bad of [
      region(8, 16),
      region(0, 16, { byteOffset: 8, buffer: new ArrayBuffer(64) }),
      region(0, 0),
      region(0, 16, { size: 17 }),
      region(0, 16, { byteOffset: 16 }),
      region(-16, 16),
      region(NaN, 16),
      region(2 ** 53, 16),
      region(2 ** 53 - 16, 16),
      region(0, 16, { size: 0.5 }),
      region(0, 16, { hostAddress: -1 }),
    ]
  ) {
    assertThrows(() => new GuestMemory([bad]), RangeError);
  }
});
