import { assertEquals } from "@std/assert";
import type { LoopbackConn } from "../../device/vsock/loopback.ts";
import { CheckedStream, guestCounts } from "./streams.ts";

/** The end of a connection of which a stream uses two methods; `bytes` wait to be read. */
function conn(bytes: number[], take: number): LoopbackConn {
  const rest = [...bytes];
  return {
    tryRead: (target: Uint8Array) => {
      const got = rest.splice(0, target.length);
      target.set(got);
      return got.length;
    },
    tryWrite: (source: Uint8Array) => Math.min(take, source.length),
  } as unknown as LoopbackConn;
}

/** The first bytes that the guest sends on stream 0, as `guest/streams.c` makes them. */
function fromGuest(count: number): number[] {
  const bytes: number[] = [];
  for (let k = 0; bytes.length < count; k++) {
    let x = Math.imul(k ^ (2 * 0x01000193), 0x9e3779b1);
    x ^= x >>> 15;
    x = Math.imul(x, 0x85ebca6b);
    for (let i = 0; i < 4; i++) bytes.push(x >>> (8 * i) & 0xff);
  }
  return bytes.slice(0, count);
}

Deno.test("CheckedStream counts each wrong byte, at whatever position reads begin", () => {
  for (const limit of [1, 3, 4, 7, 1000]) {
    const bytes = fromGuest(100);
    const good = new CheckedStream(0, conn(bytes, 5));
    bytes[17]! ^= 1;
    bytes[99]! ^= 0x80;
    const bad = new CheckedStream(0, conn(bytes, 5));
    while (good.pump(limit) > Math.min(5, limit));
    while (bad.pump(limit) > Math.min(5, limit));
    assertEquals([good.received, good.wrong], [100, 0]);
    assertEquals([bad.received, bad.wrong], [100, 2]);
  }
});

Deno.test("guestCounts() reads what the guest's program prints", () => {
  const counts = guestCounts(
    "guest# streams run\r\nstream 0 sent 1 received 2 wrong 0 error 0\r\n" +
      "stream 11 sent 4294967295 received 0 wrong 7 error 104\r\nstreams done\r\n",
  );
  assertEquals([...counts], [
    [0, { sent: 1, received: 2, wrong: 0, error: 0 }],
    [11, { sent: 4294967295, received: 0, wrong: 7, error: 104 }],
  ]);
});
