import { assertEquals, assertThrows } from "@std/assert";
import { SnapshotError } from "../../../device/snapshot.ts";
import { PacketHeader } from "../../../device/vsock/packet.ts";
import { type Packet, PacketLog } from "./packet_log.ts";

const REQUEST = 1;
const RESPONSE = 2;
const RST = 3;
const RW = 5;
const CREDIT_UPDATE = 6;

/** Adds a packet of the connection from guest port 1000 to page port 5. */
function add(
  log: PacketLog,
  direction: Packet["direction"],
  op: number,
  fields: { len?: number; bufAlloc?: number; fwdCnt?: number } = {},
): Packet {
  const header = new PacketHeader();
  const fromGuest = direction === "to page";
  header.srcPort = fromGuest ? 1000 : 5;
  header.dstPort = fromGuest ? 5 : 1000;
  header.op = op;
  header.len = fields.len ?? 0;
  header.bufAlloc = fields.bufAlloc ?? (fromGuest ? 80 : 100);
  header.fwdCnt = fields.fwdCnt ?? 0;
  log.add(direction, header);
  return log.packets.at(-1)!;
}

function connected(): PacketLog {
  const log = new PacketLog();
  assertEquals(add(log, "to page", REQUEST).credit, null);
  assertEquals(add(log, "to guest", RESPONSE).credit, 80);
  return log;
}

Deno.test("PacketLog.add() tells the credit that a sender has left", () => {
  const log = connected();
  assertEquals(add(log, "to page", RW, { len: 60 }).credit, 40);
  assertEquals(add(log, "to guest", RW, { len: 30 }).credit, 50);
  assertEquals(add(log, "to guest", CREDIT_UPDATE, { fwdCnt: 60 }).credit, 50);
  assertEquals(add(log, "to page", RW, { len: 100 }).credit, 0);
  assertEquals(log.overdrawn, 0);
  assertEquals(add(log, "to page", RW, { len: 1 }).credit, -1);
  assertEquals(log.overdrawn, 1);
});

Deno.test("PacketLog.add() counts over the end of 32 bits", () => {
  const log = connected();
  const most = 2 ** 32 - 10;
  add(log, "to page", RW, { len: most });
  add(log, "to guest", CREDIT_UPDATE, { fwdCnt: most });
  assertEquals(add(log, "to page", RW, { len: 30 }).credit, 70);
  assertEquals(add(log, "to guest", CREDIT_UPDATE, { fwdCnt: 20 }).credit, 80);
  assertEquals(add(log, "to page", RW, { len: 5 }).credit, 95);
});

Deno.test("PacketLog.add() names ports by their side, and counts packets, payload and resets", () => {
  const log = connected();
  const { operation, guestPort, hostPort, number } = add(log, "to guest", RST);
  assertEquals([operation, guestPort, hostPort, number], ["RST", 1000, 5, 3]);
  assertEquals(log.resets, 1);
  // Nothing is known of a connection that was reset.
  assertEquals(add(log, "to page", RW, { len: 7 }).credit, null);
  assertEquals(log.counts["to page"], { packets: 2, bytes: 7 });
  assertEquals(log.counts["to guest"], { packets: 2, bytes: 0 });
  assertEquals(add(log, "to page", 99).operation, "operation 99");
});

Deno.test("PacketLog.add() keeps the last packets only", () => {
  const log = connected();
  for (let i = 0; i < 500; i++) add(log, "to page", CREDIT_UPDATE);
  assertEquals(log.packets.length, 200);
  assertEquals(log.packets.at(-1)!.number, 502);
});

Deno.test("PacketLog.restore() goes on with counts and credit", () => {
  const log = connected();
  add(log, "to page", RW, { len: 60 });
  const restored = PacketLog.restore(JSON.parse(JSON.stringify(log.save())));
  assertEquals(restored.counts, log.counts);
  const packet = add(restored, "to page", RW, { len: 30 });
  assertEquals([packet.credit, packet.number], [10, 4]);
  assertThrows(() => PacketLog.restore({ connections: [] }), SnapshotError);
});
