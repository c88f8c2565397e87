import { assertEquals, assertThrows } from "@std/assert";
import { ByteQueue } from "./byte_queue.ts";

function drain(queue: ByteQueue): number[] {
  const out: number[] = [];
  while (queue.length > 0) {
    const piece = queue.peek();
    out.push(...piece);
    queue.drop(piece.length);
  }
  return out;
}

Deno.test("ByteQueue keeps the order across its wrap and its growth", () => {
  const queue = new ByteQueue(20_000);
  const expected: number[] = [];
  const seen: number[] = [];
  let next = 0;
  // Uneven steps, so that every position of start and end comes up.
  for (let round = 0; round < 500; round++) {
    const bytes = new Uint8Array((round * 37) % 190).map(() => next++ & 0xff);
    queue.push(bytes);
    expected.push(...bytes);
    let take = Math.min(queue.length, (round * 53) % 180);
    while (take > 0) {
      const piece = queue.peek().subarray(0, take);
      seen.push(...piece);
      queue.drop(piece.length);
      take -= piece.length;
    }
  }
  seen.push(...drain(queue));
  assertEquals(seen, expected);
});

Deno.test("ByteQueue.extend() hands out two pieces where the room wraps", () => {
  const queue = new ByteQueue(4096);
  queue.push(new Uint8Array(4000));
  queue.drop(3900);
  const [first, second] = queue.extend(200);
  assertEquals([first.length, second.length], [96, 104]);
  first.fill(1);
  second.fill(2);
  assertEquals(drain(queue).slice(100), [
    ...Array(96).fill(1),
    ...Array(104).fill(2),
  ]);
});

Deno.test("ByteQueue refuses more than its limit and less than nothing", () => {
  const queue = new ByteQueue(10);
  queue.push(new Uint8Array(10));
  assertThrows(() => queue.push(new Uint8Array(1)), RangeError, "10 of 10");
  assertThrows(() => queue.drop(11), RangeError, "10 are queued");
  queue.drop(10);
  assertEquals(queue.length, 0);
  assertEquals(queue.peek().length, 0);
});

Deno.test("ByteQueue keeps no more than 4 KiB while it is empty", () => {
  const queue = new ByteQueue(1 << 20);
  assertEquals(queue.peek().buffer.byteLength, 0);
  queue.push(new Uint8Array(1 << 19));
  queue.drop(1 << 19);
  assertEquals(queue.peek().buffer.byteLength, 0);
  queue.push(Uint8Array.of(1, 2, 3));
  const { buffer } = queue.peek();
  queue.drop(3);
  queue.push(Uint8Array.of(4, 5));
  assertEquals([...queue.peek()], [4, 5]);
  assertEquals(queue.peek().buffer, buffer, "the memory from before");
  assertEquals(buffer.byteLength, 4096);
  queue.clear();
  assertEquals(queue.peek().buffer.byteLength, 0);
});
