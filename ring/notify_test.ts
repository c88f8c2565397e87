import { assertEquals, assertThrows } from "@std/assert";
import { GuestMemory } from "./memory.ts";
import {
  decodeNotificationData,
  encodeNotificationData,
  type NotificationData,
  vringNeedEvent,
} from "./notify.ts";
import { PackedDevice } from "./packed_device.ts";
import { PackedDriver } from "./packed_driver.ts";
import { BufferList } from "./queue.ts";
import { SplitDevice } from "./split_device.ts";
import { SplitDriver } from "./split_driver.ts";
import { Chain } from "./chain.ts";

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

Deno.test("2.9 NOTIFICATION_DATA: queue in bits 0 to 15, next_off in 16 to 30, next_wrap in 31", () => {
  const cases: [NotificationData, number][] = [
    [{ queue: 0, nextOff: 0, nextWrap: 0 }, 0],
    [{ queue: 0x1234, nextOff: 0, nextWrap: 0 }, 0x1234],
    [{ queue: 0, nextOff: 0x5678, nextWrap: 0 }, 0x56780000],
    [{ queue: 0, nextOff: 0, nextWrap: 1 }, 0x80000000],
    [{ queue: 0xffff, nextOff: 0x7fff, nextWrap: 1 }, 0xffffffff],
    [{ queue: 1, nextOff: 2, nextWrap: 1 }, 0x80020001],
  ];
  for (const [data, value] of cases) {
    assertEquals(encodeNotificationData(data), value);
    assertEquals(decodeNotificationData(value), data);
    assertEquals(decodeNotificationData(value | 0), data);
  }
  for (
    const data of [
      { queue: 0x10000, nextOff: 0, nextWrap: 0 },
      { queue: -1, nextOff: 0, nextWrap: 0 },
      { queue: 0.5, nextOff: 0, nextWrap: 0 },
      { queue: 0, nextOff: 0x8000, nextWrap: 0 },
      { queue: 0, nextOff: NaN, nextWrap: 0 },
      { queue: 0, nextOff: 0, nextWrap: 2 as 1 },
    ] as NotificationData[]
  ) assertThrows(() => encodeNotificationData(data), RangeError);
});

for (const format of ["split", "packed"] as const) {
  Deno.test(`2.9 NOTIFICATION_DATA: a driver tells where the next buffer comes (${format})`, () => {
    const memory = new GuestMemory([
      { guestAddress: 0, size: 0x8000, buffer: new ArrayBuffer(0x8000) },
    ]);
    const config = {
      size: 4,
      descriptorArea: 0x1000,
      driverArea: 0x2000,
      deviceArea: 0x3000,
    };
    const split = format === "split";
    const driver = split
      ? new SplitDriver(memory, config)
      : new PackedDriver(memory, config);
    const device = split
      ? new SplitDevice(memory, config)
      : new PackedDevice(memory, config);
    const chain = new Chain(memory);
    const list = new BufferList().addReadable(0x4000, 1);
    assertThrows(() => driver.notificationData(0x10000), RangeError);
    const words = new DataView(memory.bytes(0, 0x8000).buffer);
    const most = split ? 0x10003 : 22;
    for (let published = 0; published < most; published++) {
      // The queue's index, or what the device gave for it (VIRTIO_F_NOTIF_CONFIG_DATA).
      const told = decodeNotificationData(driver.notificationData(0xabcd));
      const availIdx = words.getUint16(0x2002, true);
      assertEquals(
        told,
        split
          ? {
            queue: 0xabcd,
            nextOff: availIdx & 0x7fff,
            nextWrap: availIdx >>> 15 as 0 | 1,
          }
          : {
            queue: 0xabcd,
            nextOff: published % 4,
            nextWrap: (published >>> 2) % 2 === 0 ? 1 : 0,
          },
      );
      const before = driver.notificationData(7);
      driver.add(list);
      assertEquals(driver.notificationData(7), before, "staged is not told");
      driver.publish();
      device.pop(chain);
      device.push(chain.token, 0);
      device.publish();
      driver.reclaim();
    }
  });
}
