import { assert, assertEquals } from "@std/assert";
import { Chain } from "../../ring/chain.ts";
import { GuestMemory } from "../../ring/memory.ts";
import { PacketHeader } from "./packet.ts";

// A REQUEST from CID 3, port 0x11223344, to the host's port 1234, byte by byte.
// deno-fmt-ignore
const REQUEST = Uint8Array.of(
  3, 0, 0, 0, 0, 0, 0, 0,
  2, 0, 0, 0, 0, 0, 0, 0,
  0x44, 0x33, 0x22, 0x11,
  0xd2, 0x04, 0, 0,
  5, 0, 0, 0,
  1, 0,
  7, 0,
  3, 0, 0, 0x80,
  0, 0, 4, 0,
  0xff, 0xff, 0xff, 0xff,
);

function memory(): GuestMemory {
  return new GuestMemory([{
    guestAddress: 0x1000,
    size: 4096,
    buffer: new ArrayBuffer(4096),
  }]);
}

function check(header: PacketHeader): void {
  assertEquals(header.srcCid, 3);
  assertEquals(header.dstCid, 2);
  assertEquals(header.srcPort, 0x11223344);
  assertEquals(header.dstPort, 1234);
  assertEquals(header.len, 5);
  assertEquals(header.type, 1);
  assertEquals(header.op, 7);
  assertEquals(header.flags, 0x80000003);
  assertEquals(header.bufAlloc, 262_144);
  assertEquals(header.fwdCnt, 0xffffffff);
}

Deno.test("PacketHeader.readFrom() reads a header however it is split over descriptors", () => {
  for (let at = 0; at <= 44; at++) {
    const guest = memory();
    guest.bytes(0x1000, at).set(REQUEST.subarray(0, at));
    guest.bytes(0x1800, 44 - at).set(REQUEST.subarray(at));
    const chain = new Chain(guest);
    chain.append(0x1000, at, false);
    chain.append(0x1800, 44 - at, false);
    chain.readable = chain.count;
    const header = new PacketHeader();
    assert(header.readFrom(chain));
    check(header);
  }
});

Deno.test("PacketHeader.readFrom() refuses fewer than 44 bytes", () => {
  const chain = new Chain(memory());
  chain.append(0x1000, 43, false);
  chain.readable = 1;
  assert(!new PacketHeader().readFrom(chain));
});

Deno.test("PacketHeader.readFrom() tells a CID with upper bits from one without", () => {
  const guest = memory();
  guest.bytes(0x1000, 44).set(REQUEST);
  guest.bytes(0x1004, 1)[0] = 1;
  guest.bytes(0x100f, 1)[0] = 0x80;
  const chain = new Chain(guest);
  chain.append(0x1000, 44, false);
  chain.readable = 1;
  const header = new PacketHeader();
  assert(header.readFrom(chain));
  assertEquals(header.srcCid, 0x1_0000_0003);
  assert(header.dstCid > 2 ** 62);
});

Deno.test("PacketHeader.writeTo() writes the same bytes, also over split buffers", () => {
  for (const at of [44, 1, 13, 43]) {
    const guest = memory();
    guest.bytes(0x1000, 44).set(REQUEST);
    const from = new Chain(guest);
    from.append(0x1000, 44, false);
    from.readable = 1;
    const header = new PacketHeader();
    header.readFrom(from);

    const into = new Chain(guest);
    into.append(0x1100, at, true);
    into.append(0x1200, 100, true);
    assert(header.writeTo(into));
    const written = [
      ...guest.bytes(0x1100, at),
      ...guest.bytes(0x1200, 44 - at),
    ];
    assertEquals(written, [...REQUEST]);
    assertEquals(guest.bytes(0x1200 + 44 - at, 1)[0], 0);
  }
});

Deno.test("PacketHeader.writeTo() refuses a buffer that is too short", () => {
  const chain = new Chain(memory());
  chain.append(0x1000, 43, true);
  assert(!new PacketHeader().writeTo(chain));
});

Deno.test("PacketHeader reads and writes its 44 bytes and no others, aligned to words or not", () => {
  for (let at = 0; at < 8; at++) {
    const guest = new GuestMemory([
      { guestAddress: 0, size: 64, buffer: new ArrayBuffer(64) },
      {
        guestAddress: 0x1000,
        size: 100,
        buffer: new ArrayBuffer(132),
        byteOffset: 32,
      },
    ]);
    const bytes = guest.bytes(0x1000, 100).fill(0xee);
    bytes.set(REQUEST, at);
    const from = new Chain(guest);
    from.append(0x1000 + at, 50, false);
    const header = new PacketHeader();
    assert(header.readFrom(from));
    check(header);

    bytes.fill(0xee);
    const to = new Chain(guest);
    to.append(0, 4, false);
    to.append(0x1000 + at, 50, true);
    assert(header.writeTo(to));
    const expected = new Uint8Array(100).fill(0xee);
    expected.set(REQUEST, at);
    assertEquals(bytes, expected);
    assertEquals(guest.bytes(0, 64), new Uint8Array(64));
  }
});
