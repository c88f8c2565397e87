import { PacketHeader } from "../device/vsock/packet.ts";
import {
  CID_HOST,
  encodeHeader,
  OP_RW,
  TYPE_STREAM,
} from "../props/guest/mod.ts";
import { Chain, GuestMemory } from "../ring/mod.ts";
import { check } from "./check.ts";

/** Headers that one iteration parses. */
const HEADERS = 4096;
const DIFFERENT = 64;
const HEADER_BYTES = 44;
/** Longer than a header, so that none lies where the last one did. */
const STRIDE = 48;
const GUEST_CID = 3;

const buffer = new ArrayBuffer(DIFFERENT * STRIDE);
const memory = new GuestMemory([{
  guestAddress: 0,
  size: buffer.byteLength,
  buffer,
}]);
const chains: Chain[] = [];
let expected = 0;
for (let i = 0; i < DIFFERENT; i++) {
  const bytes = encodeHeader({
    srcCid: GUEST_CID,
    dstCid: CID_HOST,
    srcPort: 1000 + i,
    dstPort: 0xffff_0000 + i,
    len: i * 100,
    type: TYPE_STREAM,
    op: OP_RW,
    flags: 0,
    bufAlloc: 262_144,
    fwdCnt: i,
  });
  new Uint8Array(buffer).set(bytes, i * STRIDE);
  const chain = new Chain(memory);
  chain.append(i * STRIDE, HEADER_BYTES, false);
  chains.push(chain);
  expected += GUEST_CID + CID_HOST + 1000 + i + 0xffff_0000 + i + i * 100 +
    TYPE_STREAM + OP_RW + 262_144 + i;
}
expected *= HEADERS / DIFFERENT;

const group = "vsock/packet/parse";
const header = new PacketHeader();

Deno.bench(group, { group }, () => {
  let sum = 0;
  for (let i = 0; i < HEADERS; i++) {
    if (!header.readFrom(chains[i % DIFFERENT]!)) throw new Error("too short");
    sum += header.srcCid + header.dstCid + header.srcPort + header.dstPort +
      header.len + header.type + header.op + header.flags + header.bufAlloc +
      header.fwdCnt;
  }
  check("sum of the fields", sum, expected);
});

function parseNaively(chain: Chain) {
  const bytes = chain.bytes(0).slice();
  const view = new DataView(bytes.buffer);
  return {
    srcCid: Number(view.getBigUint64(0, true)),
    dstCid: Number(view.getBigUint64(8, true)),
    srcPort: view.getUint32(16, true),
    dstPort: view.getUint32(20, true),
    len: view.getUint32(24, true),
    type: view.getUint16(28, true),
    op: view.getUint16(30, true),
    flags: view.getUint32(32, true),
    bufAlloc: view.getUint32(36, true),
    fwdCnt: view.getUint32(40, true),
  };
}

Deno.bench(`${group}/naive`, { group, baseline: true }, () => {
  let sum = 0;
  for (let i = 0; i < HEADERS; i++) {
    const parsed = parseNaively(chains[i % DIFFERENT]!);
    sum += parsed.srcCid + parsed.dstCid + parsed.srcPort + parsed.dstPort +
      parsed.len + parsed.type + parsed.op + parsed.flags + parsed.bufAlloc +
      parsed.fwdCnt;
  }
  check("sum of the fields", sum, expected);
});
