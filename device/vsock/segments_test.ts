import { assertEquals, assertThrows } from "@std/assert";
import { Chain } from "../../ring/chain.ts";
import { GuestMemory } from "../../ring/memory.ts";
import { MAX_SEGMENTS, Segments } from "./segments.ts";

function setup(lengths: number[]): { guest: GuestMemory; chain: Chain } {
  const guest = new GuestMemory([
    { guestAddress: 0, size: 65_536, buffer: new ArrayBuffer(65_536) },
    { guestAddress: 1 << 20, size: 65_536, buffer: new ArrayBuffer(65_536) },
  ]);
  for (const region of guest.regions) {
    region.bytes.forEach((_, i, all) => all[i] = i * 7);
  }
  const chain = new Chain(guest);
  lengths.forEach((length, i) =>
    chain.append((i % 2 << 20) + i * 1000, length, false)
  );
  chain.readable = chain.count;
  return { guest, chain };
}

function all(chain: Chain): Uint8Array {
  const bytes = new Uint8Array(chain.readableBytes);
  chain.read(bytes);
  return bytes;
}

Deno.test("Segments.add() takes any part of a chain", () => {
  const { guest, chain } = setup([10, 1, 100, 5]);
  const whole = all(chain);
  for (let skip = 0; skip <= whole.length; skip += 3) {
    for (let length = 0; length <= whole.length - skip; length += 7) {
      const segments = new Segments(guest);
      assertEquals(segments.add(chain, 0, chain.count, skip, length), length);
      assertEquals(segments.bytes, length);
      const copy = new Uint8Array(length);
      assertEquals(segments.copyTo(copy), length);
      assertEquals(copy, whole.slice(skip, skip + length));
    }
  }
});

Deno.test("Segments.add() stops where the chain or the list ends", () => {
  const { guest, chain } = setup([10, 20]);
  const segments = new Segments(guest);
  assertEquals(segments.add(chain, 0, 2, 5, 1000), 25);
  while (segments.count < MAX_SEGMENTS) segments.add(chain, 0, 1, 0, 1);
  assertEquals(segments.add(chain, 0, 1, 0, 1), 0);
  assertEquals(segments.count, MAX_SEGMENTS);
});

Deno.test("Segments.add() keeps what it has when the list grows", () => {
  const { guest, chain } = setup(new Array<number>(65).fill(7));
  guest.regions[1]!.bytes.reverse();
  const segments = new Segments(guest);
  // By twos: a list that is not full, and one that is, go on as well.
  for (let i = 0; i < chain.count; i += 2) {
    const to = Math.min(i + 2, chain.count);
    assertEquals(segments.add(chain, i, to, 0, 14), 7 * (to - i));
  }
  assertEquals(segments.count, 65);
  const copy = new Uint8Array(chain.readableBytes);
  segments.copyTo(copy);
  assertEquals(copy, all(chain));
});

Deno.test("Segments.copyTo() and copyFrom() skip, and meet in the middle of segments", () => {
  const { guest, chain } = setup([10, 1, 100, 5]);
  const segments = new Segments(guest);
  segments.add(chain, 0, chain.count, 0, 116);
  const copy = new Uint8Array(30);
  assertEquals(segments.copyTo(copy, 95), 21);
  assertEquals(copy.slice(0, 21), all(chain).slice(95));

  const source = Uint8Array.from({ length: 40 }, (_, i) => 200 + i);
  assertEquals(segments.copyFrom(source, 8), 40);
  assertEquals(all(chain).slice(8, 48), source);
  assertEquals(segments.copyFrom(source, 100), 16);
  assertEquals(all(chain).slice(100), source.slice(0, 16));
});

Deno.test("Segments.copyTo() copies short and long segments, aligned to words or not", () => {
  for (let at = 0; at < 4; at++) {
    for (const length of [0, 1, 4, 63, 64, 252, 253, 256, 257, 260, 900]) {
      const { guest, chain } = setup([length, 8, length, 3, length]);
      const segments = new Segments(guest);
      segments.add(chain, 0, chain.count, at, chain.readableBytes);
      const expected = all(chain).slice(at);
      // Fewer bytes than there are, somewhere in a buffer.
      for (const missing of [0, 1, 4]) {
        const take = Math.max(0, expected.length - missing);
        const around = new Uint8Array(take + 16).fill(0xee);
        const target = around.subarray(at, at + take);
        assertEquals(segments.copyTo(target), take);
        const wanted = new Uint8Array(take + 16).fill(0xee);
        wanted.set(expected.subarray(0, take), at);
        assertEquals(around, wanted);
      }
    }
  }
});

Deno.test("Segments.view() refuses a segment that is not there", () => {
  const { guest } = setup([]);
  assertThrows(() => new Segments(guest).view(0), RangeError, "there are 0");
});
