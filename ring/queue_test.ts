import { assertEquals, assertStrictEquals, assertThrows } from "@std/assert";
import { BufferList } from "./queue.ts";

Deno.test("BufferList keeps readable segments before writable ones", () => {
  const list = new BufferList(3);
  assertStrictEquals(list.addReadable(2 ** 40, 44), list);
  list.addReadable(1, 0).addWritable(2, 0xffffffff);
  assertEquals([list.count, list.readable], [3, 2]);
  assertEquals([...list.address], [2 ** 40, 1, 2]);
  assertEquals([...list.length], [44, 0, 0xffffffff]);
});

Deno.test("BufferList has its segments as descriptors have them, and their bytes", () => {
  const list = new BufferList(3).addWritable(1, 2);
  list.clear().addReadable(2 ** 52 + 2 ** 31, 44);
  list.addWritable(16, 0xffffffff).addWritable(2 ** 32 - 1, 0xffffffff);
  assertEquals([...list.words], [
    ...[2 ** 31, 2 ** 20, 44, 0],
    ...[16, 0, 0xffffffff, 2],
    ...[0xffffffff, 0, 0xffffffff, 2],
  ]);
  assertEquals(list.bytes, 44 + 2 * 0xffffffff);
  assertEquals(list.writableBytes, 2 * 0xffffffff);
});

Deno.test("BufferList.setLength() changes one segment, its descriptor and the sums", () => {
  const list = new BufferList(3).addReadable(0, 44).addReadable(64, 100);
  list.addWritable(256, 1000);
  list.setLength(1, 0xffffffff);
  list.setLength(2, 7);
  assertEquals([...list.length], [44, 0xffffffff, 7]);
  const same = new BufferList(3).addReadable(0, 44).addReadable(64, 0xffffffff);
  same.addWritable(256, 7);
  assertEquals(list, same);
  for (const index of [3, -1, 0.5, NaN]) {
    assertThrows(() => list.setLength(index, 1), RangeError, "there are 3");
  }
  list.clear().addReadable(0, 44);
  assertThrows(() => list.setLength(1, 1), RangeError, "there are 1");
});

Deno.test("BufferList.addReadable() refuses a segment behind a writable one", () => {
  const list = new BufferList().addWritable(0, 1);
  assertThrows(
    () => list.addReadable(0, 1),
    TypeError,
    "a writable one comes before it",
  );
  assertEquals([list.count, list.readable], [1, 0]);
});

Deno.test("BufferList refuses more segments than it has room for, and takes them after clear()", () => {
  const list = new BufferList(2).addReadable(0, 1).addWritable(0, 1);
  assertThrows(() => list.addWritable(0, 1), RangeError, "room for 2");
  assertStrictEquals(list.clear(), list);
  assertEquals([list.count, list.readable], [0, 0]);
  list.addReadable(5, 6);
  assertEquals([list.count, list.readable, list.address[0]], [1, 1, 5]);
});
