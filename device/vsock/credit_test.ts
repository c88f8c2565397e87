import { assert, assertEquals } from "@std/assert";
import { Credit, MAX_UNREAD_PACKETS } from "./credit.ts";

Deno.test("Credit.peerFree follows buf_alloc - (tx_cnt - fwd_cnt)", () => {
  const credit = new Credit(4096);
  assertEquals(credit.peerFree, 0);
  credit.hear(65_536, 0);
  assertEquals(credit.peerFree, 65_536);
  credit.sent(65_000);
  assertEquals(credit.peerFree, 536);
  credit.sent(536);
  assertEquals(credit.peerFree, 0);
  credit.hear(65_536, 30_000);
  assertEquals(credit.peerFree, 30_000);
});

Deno.test("Credit.peerFree goes on when the counters wrap at 2^32", () => {
  const credit = new Credit(4096);
  credit.txCnt = 0xffff_ff00;
  credit.hear(65_536, 0xffff_ff00);
  credit.sent(0x200);
  assertEquals(credit.txCnt, 0x100);
  assertEquals(credit.peerFree, 65_536 - 0x200);
  credit.hear(65_536, 0x100);
  assertEquals(credit.peerFree, 65_536);
});

Deno.test("Credit.peerFree is 0 when the guest makes its buffer smaller than what is unread", () => {
  const credit = new Credit(4096);
  credit.hear(65_536, 0);
  credit.sent(10_000);
  credit.hear(4_096, 0);
  assertEquals(credit.peerFree, 0);
});

Deno.test("Credit.peerFree is 0 when too many packets are unread, however small", () => {
  const credit = new Credit(4096);
  credit.hear(1 << 20, 0);
  for (let i = 0; i < MAX_UNREAD_PACKETS; i++) {
    assert(credit.peerFree > 0);
    credit.sent(1);
  }
  assertEquals(credit.peerFree, 0);
  assertEquals(credit.packetsFree, 0);
  // Reading ten bytes frees ten packets.
  credit.hear(1 << 20, 10);
  assertEquals(credit.packetsFree, 10);
  assertEquals(credit.unreadPackets, MAX_UNREAD_PACKETS - 10);
});

Deno.test("Credit.packetsFree is smaller for a smaller buffer, and at least 1", () => {
  const credit = new Credit(4096);
  credit.hear(8 * 1024, 0);
  assertEquals(credit.packetsFree, 8);
  credit.hear(10, 0);
  assertEquals(credit.packetsFree, 1);
  credit.sent(1);
  assertEquals(credit.packetsFree, 0);
});

Deno.test("Credit.received() refuses what exceeds our buffer", () => {
  const credit = new Credit(1000);
  assert(credit.received(600));
  assert(!credit.received(401));
  assert(credit.received(400));
  assert(!credit.received(1));
  credit.forwarded(600);
  assert(!credit.received(601));
  assert(credit.received(600));
});

Deno.test("Credit.received() goes on when the counters wrap at 2^32", () => {
  const credit = new Credit(1000);
  credit.rxCnt = credit.fwdCnt = 0xffff_fff0;
  assert(credit.received(1000));
  assert(!credit.received(1));
  credit.forwarded(1000);
  assertEquals(credit.fwdCnt, credit.rxCnt);
  assert(credit.received(1000));
});

Deno.test("Credit.updateDue comes at a quarter of the smaller buffer", () => {
  const credit = new Credit(1000);
  credit.hear(400, 0);
  credit.received(200);
  credit.forwarded(99);
  assert(!credit.updateDue);
  credit.forwarded(1);
  assert(credit.updateDue);
  credit.toldFwdCnt = credit.fwdCnt;
  assert(!credit.updateDue);
});

Deno.test("Credit.updateDue comes for a guest that has no buffer itself", () => {
  const credit = new Credit(1000);
  credit.hear(0, 0);
  assert(!credit.updateDue);
  credit.received(1);
  credit.forwarded(1);
  assert(credit.updateDue);
});
