import { assertEquals, assertStrictEquals, assertThrows } from "@std/assert";
import { Chain } from "./chain.ts";
import { RingError } from "./errors.ts";
import { GuestMemory } from "./memory.ts";

/** Two regions that adjoin at 0x100 in guest memory but not in this process, each byte its address mod 251. */
function memory(): GuestMemory {
  const fill = (start: number) =>
    Uint8Array.from({ length: 0x100 }, (_, i) => (start + i) % 251).buffer;
  return new GuestMemory([
    { guestAddress: 0, size: 0x100, buffer: fill(0) },
    { guestAddress: 0x100, size: 0x100, buffer: fill(0x100) },
  ]);
}

function pattern(start: number, length: number): number[] {
  return Array.from({ length }, (_, i) => (start + i) % 251);
}

Deno.test("Chain.append() splits at the border of two regions and skips empty segments", () => {
  const chain = new Chain(memory(), 1);
  assertEquals(chain.append(0xf0, 0x20, false), true);
  assertEquals(chain.append(0x5, 0, false), true);
  assertEquals(chain.append(0x10, 4, true), true);
  assertEquals([chain.count, chain.readable], [3, 2]);
  assertEquals([chain.readableBytes, chain.writableBytes], [0x20, 4]);
  assertEquals([...chain.region.subarray(0, 3)], [0, 1, 0]);
  assertEquals([...chain.offset.subarray(0, 3)], [0xf0, 0, 0x10]);
  assertEquals([...chain.length.subarray(0, 3)], [0x10, 0x10, 4]);
});

Deno.test("Chain.append() is false where some bytes lie in no region", () => {
  for (const [address, length] of [[0x1ff, 2], [0x200, 1], [-1, 1]] as const) {
    assertEquals(new Chain(memory()).append(address, length, false), false);
  }
});

Deno.test("Chain.append() grows its columns and keeps what they held", () => {
  const chain = new Chain(memory(), 0);
  for (let i = 0; i < 100; i++) chain.append(i, i + 1, i >= 60);
  assertEquals([chain.count, chain.readable], [100, 60]);
  for (let i = 0; i < 100; i++) {
    assertEquals([chain.offset[i], chain.length[i]], [i, i + 1]);
  }
});

Deno.test("Chain.read() crosses segments and stops at the writable part", () => {
  const chain = new Chain(memory());
  chain.append(0x10, 3, false);
  chain.append(0xc0, 0x90, false); // crosses the border; both halves are longer than a loop copies
  chain.append(0x20, 50, true);
  const all = [...pattern(0x10, 3), ...pattern(0xc0, 0x90)];
  for (const skip of [0, 1, 3, 4, 66, 67, 68, 146, 147, 148]) {
    for (const length of [0, 1, 2, 5, 64, 65, 147, 200]) {
      const target = new Uint8Array(length).fill(255);
      const expected = all.slice(skip, skip + length);
      assertEquals(chain.read(target, skip), expected.length);
      assertEquals([...target.subarray(0, expected.length)], expected);
      assertEquals(
        target.subarray(expected.length).every((b) => b === 255),
        true,
      );
    }
  }
});

Deno.test("Chain.write() crosses segments and leaves everything else alone", () => {
  for (const skip of [0, 4, 5, 6, 69, 70, 134, 135]) {
    for (const length of [0, 1, 3, 64, 65, 135, 200]) {
      const guest = memory();
      const chain = new Chain(guest);
      chain.append(0x10, 8, false);
      chain.append(0x20, 5, true);
      chain.append(0xc0, 130, true);
      const source = Uint8Array.from({ length }, (_, i) => 255 - i % 4);
      const fits = Math.max(0, Math.min(length, 135 - skip));
      assertEquals(chain.write(source, skip), fits);
      const expected = pattern(0, 0x200);
      for (let i = 0; i < fits; i++) {
        const at = skip + i;
        expected[at < 5 ? 0x20 + at : 0xc0 + at - 5] = source[i]!;
      }
      const found = guest.regions.flatMap(({ bytes }) => [...bytes]);
      assertEquals(found, expected);
    }
  }
});

Deno.test("Chain.bytes() is a view of one segment and refuses others", () => {
  const guest = memory();
  const chain = new Chain(guest);
  chain.append(0xfe, 4, true);
  assertEquals([...chain.bytes(1)], pattern(0x100, 2));
  assertStrictEquals(chain.bytes(1).buffer, guest.regions[1]!.bytes.buffer);
  for (const index of [-1, 2, NaN]) {
    assertThrows(() => chain.bytes(index), RangeError, "the chain has 2");
  }
});

Deno.test("Chain.clear() forgets segments and fault", () => {
  const chain = new Chain(memory());
  chain.append(0, 10, false);
  chain.append(0, 10, true);
  chain.fault = new RingError("BAD_ADDRESS", "2.7.5", "Cannot");
  chain.clear();
  assertEquals(
    [chain.count, chain.readable, chain.readableBytes, chain.writableBytes],
    [0, 0, 0, 0],
  );
  assertEquals(chain.fault, null);
  assertEquals(chain.read(new Uint8Array(4)), 0);
});
