import { assertEquals } from "@std/assert";
import { vringNeedEvent } from "./notify.ts";

/** The rule in the words of 2.7.7.2: after each entry, "idx was equal to used_event". */
function writtenOneByOne(event: number, newIdx: number, oldIdx: number) {
  for (let idx = oldIdx; idx !== newIdx; idx = (idx + 1) & 0xffff) {
    if (idx === event) return true;
  }
  return false;
}

Deno.test("vringNeedEvent() is true exactly when an entry was written at the event index", () => {
  for (const start of [0, 1, 0x7ffe, 0x8000, 0xfff0, 0xffff]) {
    for (let moved = 0; moved <= 20; moved++) {
      const newIdx = (start + moved) & 0xffff;
      for (let around = -3; around <= 23; around++) {
        const event = (start + around) & 0xffff;
        assertEquals(
          vringNeedEvent(event, newIdx, start),
          writtenOneByOne(event, newIdx, start),
          `event ${event}, new ${newIdx}, old ${start}`,
        );
      }
    }
  }
});

Deno.test("vringNeedEvent() is false where nothing moved, whatever the event", () => {
  for (let event = 0; event < 0x10000; event++) {
    assertEquals(vringNeedEvent(event, 0x1234, 0x1234), false);
  }
});

Deno.test("vringNeedEvent() holds for a move of the largest queue across 65535", () => {
  const oldIdx = 0xfff0;
  const newIdx = (oldIdx + 32768) & 0xffff;
  let count = 0;
  for (let event = 0; event < 0x10000; event++) {
    if (vringNeedEvent(event, newIdx, oldIdx)) count++;
  }
  assertEquals(count, 32768);
  assertEquals(vringNeedEvent(oldIdx, newIdx, oldIdx), true);
  assertEquals(vringNeedEvent(newIdx - 1, newIdx, oldIdx), true);
  assertEquals(vringNeedEvent(newIdx, newIdx, oldIdx), false);
  assertEquals(vringNeedEvent(oldIdx - 1, newIdx, oldIdx), false);
});

Deno.test("vringNeedEvent() takes indices that were not cut to 16 bits", () => {
  assertEquals(vringNeedEvent(0xffff, 0x10000, 0xffff), true);
  assertEquals(vringNeedEvent(-1, 0, -1), true);
  assertEquals(vringNeedEvent(0x10005, 5, 3), false);
});
