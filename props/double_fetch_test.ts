import { assert, assertInstanceOf } from "@std/assert";
import { Chain } from "../ring/chain.ts";
import { RingError } from "../ring/errors.ts";
import { GuestMemory } from "../ring/memory.ts";
import { PackedDevice } from "../ring/packed_device.ts";
import type { DeviceQueue, QueueConfig, RingFormat } from "../ring/queue.ts";
import { SplitDevice } from "../ring/split_device.ts";
import { breathe, withScribbler } from "./scribbler.ts";

// Each attempt is a queue of its own over the same memory, which takes about a microsecond.
const ATTEMPTS = Number(Deno.env.get("RINGSIDE_DOUBLE_FETCH") ?? 20_000);
/** How long further attempts go on while the threads have not met. */
const PATIENCE_MS = 15_000;
const BYTES = 0x1_0000;
const TABLE = 0x3000;
const CONFIG: QueueConfig = {
  size: 8,
  descriptorArea: 0,
  driverArea: 0x1000,
  deviceArea: 0x2000,
  indirect: true,
};
const INDIRECT = 4;
/** Flags of a packed descriptor that is available on the first lap. */
const AVAILABLE = 0x80;

/** Memory with one buffer in it, which a table of two entries describes or one descriptor. */
function oneBuffer(ring: RingFormat, indirect: boolean): SharedArrayBuffer {
  const buffer = new SharedArrayBuffer(BYTES);
  const view = new DataView(buffer);
  const packed = ring === "packed";
  const describe = (at: number, address: number, length: number) => {
    view.setUint32(at, address, true);
    view.setUint32(at + 8, length, true);
  };
  describe(0, indirect ? TABLE : 0x8000, 32);
  const flags = (packed ? AVAILABLE : 0) | (indirect ? INDIRECT : 0);
  view.setUint16(packed ? 14 : 12, flags, true);
  describe(TABLE, 0x8000, 16);
  describe(TABLE + 16, 0x9000, 16);
  if (!packed) {
    view.setUint16(TABLE + 12, 1, true);
    view.setUint16(TABLE + 14, 1, true);
    view.setUint16(0x1002, 1, true);
    // What lies behind the one buffer looks good, too.
    for (let i = 0; i < 8; i++) view.setUint16(0x1004 + 2 * i, i, true);
  }
  return buffer;
}

function newDevice(ring: RingFormat, memory: GuestMemory): DeviceQueue {
  return ring === "packed"
    ? new PackedDevice(memory, CONFIG)
    : new SplitDevice(memory, CONFIG);
}

/** Fetches from new queues while the word at `offset` takes the two values in turn. */
async function fetchWhile(
  ring: RingFormat,
  indirect: boolean,
  offset: number,
  values: number[],
  attempts: number = ATTEMPTS,
): Promise<{ good: number; faulty: number; refused: number }> {
  const buffer = oneBuffer(ring, indirect);
  const memory = new GuestMemory([{ guestAddress: 0, size: BYTES, buffer }]);
  const chain = new Chain(memory);
  const seen = { good: 0, faulty: 0, refused: 0 };
  await withScribbler(async (scribbler) => {
    await scribbler.start(buffer, 1, [[offset, 2]], values);
    // On a busy machine, the other thread may begin late, or not have its turn for a while.
    const end = performance.now() + PATIENCE_MS;
    const raced = (): boolean =>
      seen.good > 0 && seen.faulty + seen.refused > 0;
    for (let i = 0; i < attempts || !raced(); i++) {
      if (i % 10_000 === 0) {
        await breathe();
        if (i >= attempts && performance.now() > end) break;
      }
      const device = newDevice(ring, memory);
      try {
        if (!device.pop(chain)) continue;
        if (chain.fault === null) seen.good++;
        else seen.faulty++;
        for (let row = 0; row < chain.count; row++) {
          const end = chain.offset[row]! + chain.length[row]!;
          assert(end <= BYTES, `a segment ends at ${end} of ${BYTES}`);
        }
        if (device.pop(chain)) throw new Error("there is one buffer only");
      } catch (error) {
        assertInstanceOf(error, RingError);
        seen.refused++;
      }
    }
    await scribbler.stop();
  });
  return seen;
}

Deno.test("SplitDevice.pop() reads avail.idx once, while another thread writes it", async () => {
  const seen = await fetchWhile(
    "split",
    false,
    0x1002,
    [1, 20_000],
    4 * ATTEMPTS,
  );
  assert(seen.good > 0 && seen.refused > 0, JSON.stringify(seen));
});

for (const ring of ["split", "packed"] as const) {
  const Device = ring === "split" ? "SplitDevice" : "PackedDevice";
  const places: [what: string, indirect: boolean, at: number, end: number][] = [
    ["a length", false, 8, 0xffff],
    ["an address", false, 0, 0xfffe],
    ["a table's length", true, 8, 0xfff0],
    ["a table's address", true, 0, 0xfff0],
    ["a length in a table", true, TABLE + 8, 0xffff],
    ["an address in a table", true, TABLE + 16, 0xfffe],
  ];
  for (const [what, indirect, at, wrong] of places) {
    Deno.test(`${Device}.pop() uses what it has checked, while another thread writes ${what}`, async () => {
      const right = new DataView(oneBuffer(ring, indirect)).getUint16(at, true);
      const seen = await fetchWhile(ring, indirect, at, [right, wrong]);
      assert(seen.good > 0 && seen.faulty > 0, JSON.stringify(seen));
    });
  }
}
