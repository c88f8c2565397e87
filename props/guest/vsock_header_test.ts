import { assert, assertEquals } from "@std/assert";
import { encodeHeader, HEADER_BYTES, PacketHeader } from "./vsock_header.ts";

const FIELDS = {
  srcCid: 0x04030201,
  srcCidHigh: 0x08070605,
  dstCid: 0x0c0b0a09,
  dstCidHigh: 0x100f0e0d,
  srcPort: 0x14131211,
  dstPort: 0x18171615,
  len: 0x1c1b1a19,
  type: 0x1e1d,
  op: 0x201f,
  flags: 0x24232221,
  bufAlloc: 0x28272625,
  fwdCnt: 0x2c2b2a29,
};

Deno.test("encodeHeader() lays the fields out as struct virtio_vsock_hdr", () => {
  // Each byte of the fields above is its offset plus 1.
  assertEquals(
    encodeHeader(FIELDS),
    Uint8Array.from({ length: HEADER_BYTES }, (_, i) => i + 1),
  );
});

Deno.test("PacketHeader.read() takes what write() wrote", () => {
  const bytes = new Uint8Array(HEADER_BYTES + 3);
  const view = new DataView(bytes.buffer);
  new PacketHeader().set(FIELDS).write(view, 3);
  assertEquals(new PacketHeader().read(view, 3).fields(), FIELDS);
});

Deno.test("PacketHeader.blank tells a buffer that was never written", () => {
  const header = new PacketHeader();
  assert(header.blank);
  for (const name of Object.keys(FIELDS)) {
    assert(!new PacketHeader().set({ [name]: 0x80000000 }).blank, name);
  }
});
