import { assertEquals } from "@std/assert";
import { MAX_EMPTY_MESSAGES, MessageQueue } from "./message_queue.ts";

Deno.test("MessageQueue has room for as many messages as its bytes, and the empty ones", () => {
  for (const limit of [1, 5, 100, 3000]) {
    const queue = new MessageQueue(limit);
    // Twice, so that the second time the ring does not begin at its start.
    for (let round = 0; round < 2; round++) {
      for (let i = 0; i < limit; i++) {
        queue.bytes.push(Uint8Array.of(i));
        assertEquals(queue.complete(i % 3 === 0), true);
      }
      for (let i = 0; i < MAX_EMPTY_MESSAGES; i++) {
        assertEquals(queue.complete(true), true);
      }
      assertEquals(queue.complete(true), false);
      assertEquals(queue.count, limit + MAX_EMPTY_MESSAGES);
      for (let i = 0; i < limit; i++) {
        assertEquals([...queue.peek()], [i & 0xff]);
        assertEquals(queue.firstEndsRecord, i % 3 === 0);
        queue.drop();
      }
      for (let i = 0; i < MAX_EMPTY_MESSAGES; i++) {
        assertEquals(queue.firstLength, 0);
        queue.drop();
      }
      assertEquals([queue.count, queue.bytes.length], [0, 0]);
    }
  }
});
