// deno-lint-ignore-file no-console

import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { SnapshotError } from "../../device/snapshot.ts";
import { skipped } from "../../props/guest/vm/skip.ts";
import type { VsockDevice } from "../../device/vsock/device.ts";
import { VsockSwitch } from "../../device/vsock/switch.ts";
import type { V86Vsock } from "./adapter.ts";
import { type BootedMachine, bootedMachine } from "./booted.ts";
import { Machine } from "./machine.ts";
import { type Journey, journey, type Move } from "./migration.ts";
import { readSnapshot, writeSnapshot } from "./snapshot_file.ts";
import { Traveller } from "./traveller.ts";

const MOVES = Number(Deno.env.get("RINGSIDE_MIGRATIONS") ?? 10);
const STREAMS = 8;
const CHUNK = 16_384;
const BYTES = 20_000;

let booted: Promise<BootedMachine | string> | undefined;

/** The booted machine, or undefined where there can be none: then the test is skipped. */
async function machine(): Promise<BootedMachine | undefined> {
  booted ??= bootedMachine((text) => console.log(`v86: ${text}`))
    .catch((error) => `v86: ${(error as Error).message}`);
  const found = await booted;
  if (typeof found !== "string") return found;
  skipped(found);
  return undefined;
}

function print(ring: string, { moves, streams }: Journey): void {
  const megabytes = (bytes: number) => (bytes / 1e6).toFixed(1);
  const place = ({ available, wrap }: Move["tx"]) =>
    `${available}${wrap === null ? "" : ` (wrap ${wrap})`}`;
  for (const [i, move] of moves.entries()) {
    const { rx, tx } = move;
    console.log(
      `${ring} move ${i + 1} to process ${move.pid}: ` +
        `${megabytes(move.moved)} MB moved so far; ` +
        `in flight rx ${rx.inFlight} at ${place(rx)}, ` +
        `tx ${tx.inFlight} at ${place(tx)}, ${tx.indirect} of them indirect; ` +
        `not fetched rx ${rx.waiting}, tx ${tx.waiting}; ` +
        `with host programs ${move.buffered} bytes; ` +
        `file ${megabytes(move.bytes)} MB; ` +
        `down ${move.downtimeMs.toFixed(0)} ms, ${
          move.saveMs.toFixed(0)
        } of them to save`,
    );
  }
  const sorted = moves.map(({ downtimeMs }) => downtimeMs).sort((a, b) =>
    a - b
  );
  console.log(
    `${ring}: ${moves.length} moves, ${
      megabytes(streams.sent)
    } MB to the guest and ` +
      `${
        megabytes(streams.received)
      } MB from it, every byte compared at both ends; ` +
      `median downtime ${sorted[sorted.length >> 1]!.toFixed(0)} ms`,
  );
}

/** What is true of every journey. */
function check(result: Journey): void {
  assertEquals(result.streams.wrong, []);
  for (const { rx, tx, eventIdx, indirect } of result.moves) {
    assert(eventIdx && indirect);
    assert(rx.inFlight > 0 && tx.inFlight > 0);
    assert(tx.waiting > 0);
  }
  // Packets without payload need no table.
  const indirect = result.moves.filter(({ tx }) => tx.indirect > 0);
  assert(indirect.length >= result.moves.length / 2);
  // It was saved just before the end of the tx ring.
  assert(
    result.moves.some(({ tx, size }) => tx.available % size >= size - 5),
    "no save was near the end of the ring",
  );
}

Deno.test("a running Linux with split rings moves through new processes, over the end of its 16-bit indices", async () => {
  if (await machine() === undefined) return;
  // As many packets as the streams have sent before the first save, and some more.
  const near = 65_536 - 900;
  const result = await journey({
    ring: "split",
    moves: MOVES,
    streams: STREAMS,
    chunk: CHUNK,
    bytes: BYTES,
    flood: { rx: near, tx: near },
    until: (moves) => moves.some(({ tx }) => tx.available < near),
  });
  print("split", result);
  check(result);
  for (const name of ["rx", "tx"] as const) {
    const indices = result.moves.map((move) => move[name].available);
    assert(indices[0]! >= near, `${name} began at ${indices[0]}`);
    assert(indices.some((index) => index < near), `${name}: ${indices}`);
  }
});

Deno.test("a running Linux with packed rings moves through new processes", async () => {
  if (await machine() === undefined) return;
  const result = await journey({
    ring: "packed",
    moves: MOVES,
    streams: STREAMS,
    chunk: CHUNK,
    bytes: BYTES,
  });
  print("packed", result);
  check(result);
  const wraps = new Set(result.moves.map(({ tx }) => tx.wrap));
  assertEquals(wraps, new Set([0, 1]));
});

for (const ring of ["split", "packed"] as const) {
  Deno.test(`a running Linux with ${ring} rings goes to and fro between two processes`, async () => {
    if (await machine() === undefined) return;
    const result = await journey({
      ring,
      moves: 4,
      streams: STREAMS,
      chunk: CHUNK,
      bytes: BYTES,
      pingPong: true,
    });
    print(`to and fro, ${ring}`, result);
    check(result);
    assertEquals(new Set(result.moves.map(({ pid }) => pid)).size, 2);
  });
}

for (const ring of ["split", "packed"] as const) {
  Deno.test(`a machine with ${ring} rings that is restored twice makes two, and goes on itself`, async () => {
    const found = await machine();
    if (found === undefined) return;
    const options = { build: found.parts.build, ring };
    await using first = await Traveller.start(options, found.file);
    await first.open(STREAMS / 2, CHUNK);
    await first.move(BYTES);
    const { file } = await first.save();
    await using second = await Traveller.restore(options, file);
    await using third = await Traveller.restore(options, file);
    await first.goOn();
    // All of them at the same time, from the same bytes on.
    const all = [first, second, third];
    const before = all.map(({ moved }) => moved);
    await Promise.all(all.map((one) => one.move(BYTES / 4)));
    for (const [i, one] of all.entries()) {
      const { wrong, sent, received } = await one.end();
      assertEquals(wrong, []);
      assert(sent + received > before[i]!);
    }
  });
}

Deno.test("two guests talk to each other through a switch, one over split rings, the other over packed ones", async () => {
  const found = await machine();
  if (found === undefined) return;
  const { build } = found.parts;
  const turns = new Map<VsockDevice, V86Vsock>();
  const network = new VsockSwitch<VsockDevice>({
    wake: (device) => turns.get(device)!.wake(),
  });
  const guest = async (ring: "split" | "packed", guestCid: number) => {
    const one = await Traveller.start({ build, ring, guestCid }, found.file);
    const { device } = one.machine;
    turns.set(device.vsock, device);
    network.join(device.vsock);
    return one;
  };
  await using split = await guest("split", 3);
  await using packed = await guest("packed", 4);
  const bytes = 200_000;
  split.type(`streams 4 7000 ${STREAMS} ${CHUNK}`);
  packed.type(`streams 3 7000 ${STREAMS} ${CHUNK} ${bytes}`);
  const ends = [await split.counts(), await packed.counts()] as const;
  let moved = 0;
  for (let i = 0; i < STREAMS; i++) {
    const near = ends[0].get(i)!;
    const far = ends[1].get(i)!;
    assertEquals([near.wrong, near.error], [0, 0]);
    assertEquals([far.wrong, far.error], [0, 0]);
    assertEquals(far.sent, bytes);
    assertEquals(near.received, far.sent);
    assertEquals(far.received, near.sent);
    moved += near.sent + near.received;
  }
  console.log(
    `two guests: ${STREAMS} streams, ${
      (moved / 1e6).toFixed(1)
    } MB, every byte compared at both ends`,
  );
  const formats = [split, packed].map(({ machine }) =>
    machine.device.virtio.ringFormat
  );
  assertEquals(formats, ["split", "packed"]);
});

Deno.test("what is no snapshot of such a machine is refused in words", async () => {
  const found = await machine();
  if (found === undefined) return;
  const options = { build: found.parts.build, ring: "packed" } as const;
  await using traveller = await Traveller.start(options, found.file);
  await traveller.open(2, CHUNK);
  const { file } = await traveller.save();
  await refuses(options, file);
});

/** What the test changes of a file's description. */
type Description = {
  v86: string;
  device: { virtio: { version: number; features: string } };
};

async function refuses(
  options: { build: BootedMachine["parts"]["build"]; ring: "split" | "packed" },
  file: Uint8Array<ArrayBuffer>,
): Promise<void> {
  const refused = async (
    edit:
      | Uint8Array<ArrayBuffer>
      | ((copy: Uint8Array<ArrayBuffer>) => Uint8Array<ArrayBuffer> | void),
    words: RegExp,
    other: Partial<{ ring: "split" | "packed"; guestCid: number }> = {},
  ) => {
    const copy = file.slice();
    const edited = typeof edit === "function" ? edit(copy) ?? copy : edit;
    const error = await assertRejects(
      () => Machine.restore({ ...options, ...other }, edited),
      SnapshotError,
    );
    assertMatch(error.message, words);
  };
  const view = new DataView(file.buffer);
  const state = 56 + view.getUint32(12, true);
  // Of the guest's memory, and of the description, one bit.
  for (const at of [100, state + 1_000_000, file.length - 1]) {
    await refused((copy) => {
      copy[at]! ^= 1;
    }, /^Cannot restore the snapshot: the file was edited/);
  }
  for (const length of [20, 55, 56, state, file.length - 1]) {
    await refused(
      (copy) => copy.subarray(0, length),
      /^Cannot restore the snapshot: the file was cut/,
    );
  }
  await refused((copy) => {
    copy[8] = 0;
  }, /the file is of version 0, this program reads version 1$/);
  await refused((copy) => {
    copy[0] = 0;
  }, /the file is no snapshot of a machine$/);
  await refused(() => new Uint8Array(0), /the file is no snapshot/);
  // Whole files, of what is older or other than this program.
  const content = await readSnapshot(file);
  const described = async (change: (description: Description) => void) => {
    const description = structuredClone(content.description) as Description;
    change(description);
    return await writeSnapshot({ ...content, description });
  };
  await refused(
    await described((of) => of.device.virtio.version = 1),
    /it is of version 1, this device reads version \d+$/,
  );
  await refused(
    await described((of) => of.v86 = "0.5.461"),
    /it is of v86 0\.5\.461, this is 0\.5\.462$/,
  );
  await refused(
    await described((of) => of.device.virtio.features = "0x0"),
    /it was cut or edited/,
  );
  await refused(() => {}, /CID 3/, { guestCid: 4 });
  const ring = options.ring === "split" ? "packed" : "split";
  await refused(() => {}, /ring|packed|PACKED/i, { ring });
}
