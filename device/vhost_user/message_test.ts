import { assertEquals, assertThrows } from "@std/assert";
import {
  VHOST_USER_ADD_MEM_REG,
  VHOST_USER_GET_FEATURES,
  VHOST_USER_NEED_REPLY_FLAG,
  VHOST_USER_REPLY_FLAG,
  VHOST_USER_VERSION,
} from "./constants.ts";
import { VhostUserError } from "./errors.ts";
import {
  encodeConfig,
  encodeInflight,
  encodeLog,
  encodeMemoryRegion,
  encodeMemoryTable,
  encodeReply,
  encodeRequest,
  encodeU64,
  encodeVringAddresses,
  encodeVringState,
  parseBits,
  parseConfig,
  parseHeader,
  parseInflight,
  parseLog,
  parseMemoryRegion,
  parseMemoryTable,
  parseMessage,
  parseU64,
  parseVringAddresses,
  parseVringState,
} from "./message.ts";

const hex = (bytes: Uint8Array): string =>
  [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");

const region = {
  guestAddress: 0x1000,
  size: 0x2_0000_0000,
  userAddress: 0x7f12_3456_7000,
  mmapOffset: 0x4000,
};
const REGION_HEX = "0010000000000000" + "0000000002000000" +
  "00705634127f0000" + "0040000000000000";

Deno.test("encodeRequest() and encodeReply() lay out a header", () => {
  assertEquals(
    hex(encodeRequest(VHOST_USER_GET_FEATURES)),
    "010000000100000000000000",
  );
  assertEquals(
    hex(encodeRequest(VHOST_USER_ADD_MEM_REG, new Uint8Array([7]), true)),
    "25000000090000000100000007",
  );
  const reply = parseHeader(encodeReply(1, encodeU64(1)));
  assertEquals(reply, {
    request: 1,
    flags: VHOST_USER_VERSION | VHOST_USER_REPLY_FLAG,
    size: 8,
  });
  const request = parseMessage(encodeRequest(3, new Uint8Array([1]), true));
  assertEquals(request.flags & VHOST_USER_NEED_REPLY_FLAG, 8);
  assertEquals(request.payload, new Uint8Array([1]));
});

Deno.test("parseMessage() refuses bytes that its header does not announce", () => {
  const bytes = encodeRequest(3, new Uint8Array(4));
  assertThrows(() => parseMessage(bytes.subarray(0, 15)), VhostUserError);
  assertThrows(() => parseMessage(bytes.subarray(0, 11)), VhostUserError);
});

Deno.test("payloads lie as the specification draws them, and come back", () => {
  assertEquals(hex(encodeU64(0x1_0000_0002)), "0200000001000000");
  assertEquals(parseU64(encodeU64(2 ** 53 - 1)), 2 ** 53 - 1);
  assertEquals(parseBits(encodeU64(2n ** 64n - 1n)), 2n ** 64n - 1n);

  const state = { index: 2, num: 0x80008000 };
  assertEquals(hex(encodeVringState(state)), "0200000000800080");
  assertEquals(parseVringState(encodeVringState(state)), state);

  const addresses = {
    index: 1,
    flags: 0,
    descriptor: 0x1000,
    used: 0x2000,
    available: 0x3000,
    log: 2n ** 64n - 1n,
  };
  assertEquals(
    hex(encodeVringAddresses(addresses)),
    "0100000000000000" + "0010000000000000" + "0020000000000000" +
      "0030000000000000" + "ffffffffffffffff",
  );
  assertEquals(
    parseVringAddresses(encodeVringAddresses(addresses)),
    addresses,
  );

  assertEquals(
    hex(encodeMemoryTable([region])),
    "0100000000000000" + REGION_HEX,
  );
  const table = [region, { ...region, guestAddress: 0x9_0000_0000 }];
  assertEquals(parseMemoryTable(encodeMemoryTable(table)), table);
  assertEquals(
    hex(encodeMemoryRegion(region)),
    "0000000000000000" + REGION_HEX,
  );
  assertEquals(parseMemoryRegion(encodeMemoryRegion(region)), region);

  const config = {
    offset: 1,
    size: 2,
    flags: 1,
    bytes: new Uint8Array([8, 9]),
  };
  assertEquals(hex(encodeConfig(config)), "0100000002000000010000000809");
  assertEquals(parseConfig(encodeConfig(config)), config);

  const log = { size: 4096, offset: 8192 };
  assertEquals(hex(encodeLog(log)), "00100000000000000020000000000000");
  assertEquals(parseLog(encodeLog(log)), log);

  const inflight = {
    mmapSize: 0x3000,
    mmapOffset: 0x1000,
    numQueues: 3,
    queueSize: 128,
  };
  assertEquals(
    hex(encodeInflight(inflight)),
    "0030000000000000" + "0010000000000000" + "0300" + "8000" + "00000000",
  );
  assertEquals(
    parseInflight(encodeInflight(inflight).subarray(0, 20)),
    inflight,
  );
});

Deno.test("parseMemoryTable() ignores room behind the regions and refuses too many", () => {
  const payload = new Uint8Array(72).fill(0xff);
  payload.set(encodeMemoryTable([region]));
  assertEquals(parseMemoryTable(payload), [region]);
  const error = assertThrows(
    () => parseMemoryTable(encodeMemoryTable(new Array(9).fill(region))),
    VhostUserError,
  );
  assertEquals(error.code, "TOO_MANY_REGIONS");
});

Deno.test("parsers refuse payloads that are too short, and keep the session", () => {
  for (
    const [parse, length] of [
      [parseU64, 8],
      [parseBits, 8],
      [parseVringState, 8],
      [parseVringAddresses, 40],
      [parseMemoryTable, 8],
      [parseMemoryRegion, 40],
      [parseConfig, 12],
      [parseLog, 16],
      [parseInflight, 20],
    ] as const
  ) {
    parse(new Uint8Array(length));
    const error = assertThrows(
      () => parse(new Uint8Array(length - 1)),
      VhostUserError,
    );
    assertEquals([error.code, error.fatal], ["PAYLOAD_TOO_SHORT", false]);
  }
  assertThrows(
    () => parseMemoryTable(new Uint8Array([1, ...new Array(38).fill(0)])),
    VhostUserError,
  );
});

Deno.test("parsers refuse numbers of 2^53 and more", () => {
  const far = encodeU64(2n ** 53n);
  assertEquals(
    assertThrows(() => parseU64(far), VhostUserError).code,
    "NUMBER_TOO_LARGE",
  );
  for (const at of [8, 16, 24, 32]) {
    const bytes = encodeMemoryRegion(region);
    bytes.set(far, at);
    assertThrows(() => parseMemoryRegion(bytes), VhostUserError);
  }
  for (const at of [8, 16, 24]) {
    const bytes = new Uint8Array(40);
    bytes.set(far, at);
    assertThrows(() => parseVringAddresses(bytes), VhostUserError);
  }
});

Deno.test("parseConfig() refuses more than a message can carry", () => {
  const bytes = new Uint8Array(12);
  new DataView(bytes.buffer).setUint32(4, 257, true);
  assertEquals(
    assertThrows(() => parseConfig(bytes), VhostUserError).code,
    "BAD_CONFIG_ACCESS",
  );
});

Deno.test("encoders refuse numbers that no u64 of ours holds", () => {
  for (const bad of [-1, 1.5, 2 ** 53]) {
    assertThrows(
      () => encodeMemoryRegion({ ...region, size: bad }),
      RangeError,
    );
  }
});
