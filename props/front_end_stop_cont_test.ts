/** Queues that a front-end of our own stops and continues under traffic: no virtual machine. */
// deno-lint-ignore-file no-console
import {
  assert,
  assertEquals,
  assertGreater,
  assertLess,
  assertNotEquals,
} from "@std/assert";
import { VHOST_USER_GET_VRING_BASE } from "../device/vhost_user/constants.ts";
import {
  encodeVringState,
  parseVringState,
} from "../device/vhost_user/message.ts";
import { featureMask } from "../device/virtio_device.ts";
import type { RingFormat } from "../ring/queue.ts";
import { EndlessStream, Pattern } from "./endless_stream.ts";
import { Rig } from "./front_end_rig.ts";
import type { GuestConnection } from "./guest/guest_connection.ts";
import type { VhostUserFrontEnd } from "./guest/vhost_user_front_end.ts";
import { SHUTDOWN_SEND } from "./guest/vsock_header.ts";
import { sleep, untilFlowing } from "./guest_traffic.ts";

const CYCLES = 40;
/** Bound of a stall after the queues are continued. */
const STALL_LIMIT_MS = 1000;
/** Streams; half of them are opened by the guest. */
const STREAMS = 8;
/** In each of two regions: rings in the first one, buffers in the second. */
const MEMORY_BYTES = 32 * 1024 * 1024;

/** The guest's end of a stream of patterns both ways. */
class NearStream {
  sent = 0;
  received = 0;
  wrongAt = -1;
  readonly near: GuestConnection;
  readonly #pattern: Pattern;
  readonly #number: number;
  readonly #chunk = new Uint8Array(64 * 1024);

  constructor(near: GuestConnection, pattern: Pattern, number: number) {
    this.near = near;
    this.#pattern = pattern;
    this.#number = number;
  }

  /** Sends what there is room for, unless it is `ending`, and reads what has come. */
  pump(ending = false): void {
    const { near } = this;
    if (!ending) {
      const bytes = this.#pattern.bytes(2 * this.#number + 1, this.sent);
      this.sent += near.send(bytes);
    }
    const got = near.read(this.#chunk);
    const bytes = this.#chunk.subarray(0, got);
    const wrong = this.#pattern.wrongAt(2 * this.#number, this.received, bytes);
    if (wrong >= 0 && this.wrongAt < 0) this.wrongAt = wrong;
    this.received += got;
  }
}

/** Remembers guest memory, and tells where it has changed since. */
class MemorySnapshot {
  readonly #words: Int32Array[];
  readonly #kept: Int32Array[];

  constructor(front: VhostUserFrontEnd) {
    this.#words = front.memory.regions.map(({ bytes }) =>
      new Int32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4)
    );
    this.#kept = this.#words.map((words) => new Int32Array(words.length));
  }

  take(): void {
    for (const [i, words] of this.#words.entries()) this.#kept[i]!.set(words);
  }

  /** `region:offset` of the first word that differs, in `regions`; null where none does. */
  difference(regions: readonly number[] = [0, 1]): string | null {
    for (const region of regions) {
      const words = this.#words[region]!;
      const kept = this.#kept[region]!;
      for (let i = 0; i < words.length; i++) {
        if (words[i] !== kept[i]) return `${region}:0x${(4 * i).toString(16)}`;
      }
    }
    return null;
  }
}

/** Asks for the base of a queue, which stops it, as it is. */
function haltQueue(front: VhostUserFrontEnd, index: number): number {
  return parseVringState(
    front.channel.ask(
      VHOST_USER_GET_VRING_BASE,
      encodeVringState({ index, num: 0 }),
    ),
  ).num;
}

/** Whether a base says that nothing is in flight: fetched and used are the same. */
function isDrained(
  front: VhostUserFrontEnd,
  ring: RingFormat,
  index: number,
  base: number,
): boolean {
  if (ring === "packed") return (base & 0xffff) === base >>> 16;
  const { deviceArea } = front.queueConfig(index);
  const used = front.memory.bytes(deviceArea, 4);
  return (used[2]! | used[3]! << 8) === base;
}

/** Opens the streams, half of them from each side. */
async function open(
  rig: Rig,
): Promise<{ nears: NearStream[]; fars: EndlessStream[] }> {
  const pattern = new Pattern();
  const pairs = [];
  for (let i = 0; i < STREAMS; i++) {
    pairs.push(
      await (i % 2 === 0 ? rig.fromGuest(900 + i) : rig.fromHost(900 + i)),
    );
  }
  return {
    nears: pairs.map(({ near }, i) => new NearStream(near, pattern, i)),
    fars: pairs.map(({ far }, i) => new EndlessStream(far, pattern, i)),
  };
}

async function stopUnderTraffic(
  ring: RingFormat,
  queues: 2 | 3,
): Promise<void> {
  await using rig = await Rig.start({
    ring,
    queues,
    memoryBytes: MEMORY_BYTES,
  });
  const { front } = rig;
  const { nears, fars } = await open(rig);
  const run = async (ms: number): Promise<void> => {
    const end = performance.now() + ms;
    await front.until(() => {
      for (const stream of nears) stream.pump();
      return performance.now() >= end;
    });
  };
  const flowing = () => untilFlowing(fars, () => run(1));
  await flowing();
  const snapshot = new MemorySnapshot(front);
  const seen = new Set<number>();
  let longest = 0;
  for (let cycle = 0; cycle < CYCLES; cycle++) {
    await run(Math.random() * 15);
    let bases: number[] = [];
    if (cycle % 4 === 3) {
      // Queues that are still enabled, one after the other, and the guest adds to them meanwhile.
      bases[0] = haltQueue(front, 0);
      snapshot.take();
      await sleep(5);
      assertEquals(snapshot.difference([1]), null, "receive buffers");
      for (const stream of nears) stream.pump();
      front.driver.flush();
      for (let i = queues - 1; i >= 1; i--) bases[i] = haltQueue(front, i);
    } else {
      bases = front.stop();
    }
    snapshot.take();
    for (const [index, base] of bases.entries()) {
      assert(isDrained(front, ring, index, base), `queue ${index} at ${base}`);
    }
    seen.add(bases[1]!);
    // The host's programs write as much as they can, and its readers read, but nothing moves here.
    await sleep(5 + Math.random() * 10);
    assertEquals(snapshot.difference(), null, "memory of a stopped queue");
    front.cont(bases);
    longest = Math.max(longest, await flowing());
  }
  for (const far of fars) far.end();
  let ended = false;
  const finished = Promise.all(fars.map((far) => far.finished))
    .then(() => ended = true);
  await front.until(() =>
    nears.every(({ near, received }, i) => {
      nears[i]!.pump(true);
      if (near.credit > 0 && (near.localShutdown & SHUTDOWN_SEND) === 0) {
        near.shutdown(SHUTDOWN_SEND);
      }
      return near.atEnd && received === fars[i]!.sent;
    })
  );
  await front.until(() => ended);
  await finished;
  let bytes = 0;
  for (const [i, { sent, received, wrongAt, near }] of nears.entries()) {
    const far = fars[i]!;
    assertEquals([wrongAt, far.wrongAt], [-1, -1]);
    assertEquals([far.sent, far.received], [received, sent]);
    bytes += sent + received;
    near.close();
  }
  console.log(
    `    ${ring}, ${queues} queues: ${CYCLES} stops, ${
      (bytes / 1e6).toFixed(0)
    } MB both ways verified, longest stall ${longest.toFixed(0)} ms`,
  );
  assertLess(longest, STALL_LIMIT_MS);
  assertGreater(seen.size, CYCLES / 2, "stops at different places");
  assertEquals(rig.log.filter((line) => /^(warn|error)/.test(line)), []);
  await rig.echo();
}

for (const ring of ["split", "packed"] as const) {
  for (const queues of [2, 3] as const) {
    Deno.test(`3. Queues that are stopped and continued under load lose nothing and lie still meanwhile (${ring}, ${queues} queues)`, () =>
      stopUnderTraffic(ring, queues));
  }
}

/** VIRTIO_F_RING_RESET since virtio 1.2; the proposal for the state of queues had it before. */
const BIT_40 = 40;

for (const ring of ["auto", "split", "packed"] as const) {
  Deno.test(`Device offers nothing as bit 40 to a front-end (${ring})`, async () => {
    await using rig = await Rig.start(
      { ring: ring === "packed" ? "packed" : "split" },
      { ring },
    );
    const { offeredFeatures } = rig.front;
    assertNotEquals(offeredFeatures, 0n);
    assertEquals(offeredFeatures & featureMask(BIT_40), 0n);
  });
}
