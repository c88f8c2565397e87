import { assertEquals, assertStrictEquals } from "@std/assert";
import { Connection, type ConnectionOwner } from "./connection.ts";
import { ConnectionTable } from "./connection_table.ts";

const OWNER: ConnectionOwner = {
  schedule: () => {},
  forget: () => {},
  finished: () => {},
  setTimer: () => {},
  fault: () => {},
  scratch: (length) => new Uint8Array(length),
};

function connect(
  guestPort: number,
  peerCid: number,
  hostPort: number,
): Connection {
  const setup = {
    guestCid: 3,
    guestPort,
    peerCid,
    hostPort,
    packetType: 1,
    bufAlloc: 4096,
  };
  return new Connection(OWNER, setup, null);
}

Deno.test("ConnectionTable finds each connection by all of its tuple, and no other", () => {
  const table = new ConnectionTable();
  const ports = [0, 1, 2, 1024, 0x4000_0000, 0x7fff_ffff, 0xffff_fffe];
  const cids = [2, 3, 0xffff_fffe];
  const all: Connection[] = [];
  for (const guestPort of ports) {
    for (const hostPort of ports) {
      for (const cid of cids) {
        assertEquals(table.find(guestPort, cid, hostPort), null);
        const connection = connect(guestPort, cid, hostPort);
        table.insert(connection);
        all.push(connection);
      }
    }
  }
  const find = ({ guestPort, peerCid, hostPort }: Connection) =>
    table.find(guestPort, peerCid, hostPort);
  for (const connection of all) {
    assertStrictEquals(find(connection), connection);
  }
  assertEquals(table.find(3, 2, 1), null);

  // Every third one goes, some come again, and none takes another one with it.
  const gone = all.filter((_, i) => i % 3 === 0);
  for (const connection of gone) table.delete(connection);
  for (const connection of gone) table.delete(connection);
  for (const [i, connection] of all.entries()) {
    assertStrictEquals(find(connection), i % 3 === 0 ? null : connection);
  }
  const again = connect(0, 2, 0);
  table.insert(again);
  assertStrictEquals(table.find(0, 2, 0), again);
  table.delete(gone[0]!);
  assertStrictEquals(table.find(0, 2, 0), again);
});
