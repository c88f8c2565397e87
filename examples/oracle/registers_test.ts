import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { drive, type Mistake, MISTAKES } from "./registers.ts";

/** The first fault that each mistake is counted as. */
const FAULTS: Readonly<Record<Mistake, string>> = {
  "no-version-1": "features_refused",
  "driver-ok-first": "driver_ok_early",
  "narrow-status": "mmio_bad_write",
  "queue-of-3": "queue_not_ready",
  "used-ring-at-6": "queue_not_ready",
  "moved-queue": "mmio_queue_refused",
  "kick-of-9": "notification_unknown",
  "index-jump": "ring_avail_idx_jump",
  "self-next": "tx_descriptor_loop",
  "readable-rx": "rx_buffer_unusable",
  "short-packet": "packet_short",
  "wrong-cid": "source_cid_wrong",
  "wrong-type": "type_unknown",
  "no-connect": "connection_unknown",
};

Deno.test("examples/oracle/registers.ts: the driver without a mistake is connected, and no fault is counted", () => {
  assertEquals(drive(null), {
    counters: {},
    log: [],
    answers: ["RESPONSE"],
    status: 0xf,
  });
});

for (const mistake of Object.keys(MISTAKES) as Mistake[]) {
  Deno.test(`examples/oracle/registers.ts: "${mistake}" is counted and logged`, () => {
    const { counters, log } = drive(mistake);
    const fault = FAULTS[mistake];
    assertEquals(Object.keys(counters)[0], fault);
    assertMatch(log[0]!, new RegExp(`^warn: ${fault}: `));
    assertEquals(log.length, Object.keys(counters).length);
  });
}

Deno.test("examples/oracle/registers.ts: a fault of the ring asks for a reset, and a refused packet is answered by RST", () => {
  assertEquals(drive("index-jump").status & 0x40, 0x40);
  assertEquals(drive("wrong-cid").answers, ["RST"]);
});

Deno.test('docs/oracle.md shows what examples/oracle/registers.ts says of "index-jump"', async () => {
  const page = new URL("../../docs/oracle.md", import.meta.url);
  const [line] = drive("index-jump").log;
  assertStringIncludes(await Deno.readTextFile(page), `  ${line}\n`);
});
