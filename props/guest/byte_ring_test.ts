import { assertEquals, assertThrows } from "@std/assert";
import { ByteRing } from "./byte_ring.ts";

Deno.test("ByteRing returns the bytes in order across growth and wrap-around", () => {
  const ring = new ByteRing(10_000);
  const source = Uint8Array.from(
    { length: 50_000 },
    (_, i) => i * 7 + (i >> 8),
  );
  const target = new Uint8Array(source.length);
  let written = 0;
  let read = 0;
  for (let step = 1; read < source.length; step++) {
    const room = Math.min(ring.limit - ring.length, (step * 997) % 4001);
    const end = Math.min(source.length, written + room);
    ring.write(source, written, end);
    written = end;
    const wanted = (step * 631) % 3001;
    read += ring.read(target.subarray(read, Math.min(read + wanted, written)));
    assertEquals(ring.length, written - read);
  }
  assertEquals(target, source);
});

Deno.test("ByteRing.write() refuses more than its limit and keeps what it has", () => {
  const ring = new ByteRing(4);
  ring.write(new Uint8Array([1, 2, 3]), 0, 3);
  assertThrows(() => ring.write(new Uint8Array(2), 0, 2), RangeError);
  const target = new Uint8Array(8);
  assertEquals(ring.read(target), 3);
  assertEquals([...target.subarray(0, 3)], [1, 2, 3]);
  assertEquals(ring.read(target), 0);
});
