import { assertEquals, assertThrows } from "@std/assert";
import { GuestMemory } from "../../ring/memory.ts";
import { MemoryArena } from "./memory_arena.ts";

function arena(size: number, skip?: number): MemoryArena {
  const memory = new GuestMemory([
    { guestAddress: 0x1000, size: 64, buffer: new ArrayBuffer(64) },
    { guestAddress: 0x20000, size, buffer: new ArrayBuffer(size) },
  ]);
  return new MemoryArena(memory, 1, skip);
}

Deno.test("MemoryArena.allocate() hands out pieces that do not overlap", () => {
  const pieces = arena(256);
  assertEquals(pieces.allocate(1), 0x20000);
  assertEquals(pieces.allocate(17), 0x20010);
  assertEquals(pieces.allocate(16), 0x20030);
  assertEquals(pieces.untouched, 256 - 64);
});

Deno.test("MemoryArena.allocate() aligns and refuses what does not fit", () => {
  const pieces = arena(4096 * 2, 8);
  assertEquals(pieces.allocate(16), 0x20010);
  assertEquals(pieces.allocate(16, 4096), 0x21000);
  assertThrows(() => pieces.allocate(4096), RangeError, "4080 are left");
  assertEquals(pieces.allocate(4080), 0x21010);
  assertThrows(() => pieces.allocate(0), RangeError);
  assertThrows(() => pieces.allocate(16, 24), RangeError);
});

Deno.test("MemoryArena.free() makes a piece available to requests of its size", () => {
  const pieces = arena(64);
  const first = pieces.allocate(30);
  pieces.allocate(32);
  assertThrows(() => pieces.allocate(20), RangeError);
  pieces.free(first, 30);
  assertEquals(pieces.allocate(20), first);
});

Deno.test("MemoryArena.bytes() views its region only", () => {
  const pieces = arena(64);
  pieces.bytes(0x20010, 4).set([1, 2, 3, 4]);
  assertEquals([...pieces.memory.bytes(0x20011, 2)], [2, 3]);
  assertThrows(() => pieces.bytes(0x1000, 4), RangeError);
  assertThrows(() => pieces.bytes(0x20000 + 62, 4), RangeError);
});
