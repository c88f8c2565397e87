import { assert, assertEquals } from "@std/assert";
import { Chain } from "../../ring/chain.ts";
import { GuestMemory } from "../../ring/memory.ts";
import { PackedDevice } from "../../ring/packed_device.ts";
import { PackedDriver } from "../../ring/packed_driver.ts";
import { BufferList, type RingFormat } from "../../ring/queue.ts";
import { SplitDevice } from "../../ring/split_device.ts";
import { SplitDriver } from "../../ring/split_driver.ts";
import { LoggedQueue } from "../logged_queue.ts";
import { DirtyLog, VHOST_LOG_PAGE } from "./dirty_log.ts";

const PAGE = VHOST_LOG_PAGE;

/** The pages that a log tells of, and an empty log. */
function take(bytes: Uint8Array): number[] {
  const pages: number[] = [];
  bytes.forEach((byte, at) => {
    for (let bit = 0; bit < 8; bit++) {
      if ((byte >> bit & 1) === 1) pages.push(at * 8 + bit);
    }
  });
  bytes.fill(0);
  return pages;
}

Deno.test("DirtyLog.mark() marks every page that some byte lies in", () => {
  const bytes = new Uint8Array(16);
  const log = new DirtyLog(bytes);
  for (
    const [address, length, pages] of [
      [0, 0, []],
      [PAGE, 0, []],
      [0, 1, [0]],
      [PAGE - 1, 1, [0]],
      [PAGE - 1, 2, [0, 1]],
      [PAGE, PAGE, [1]],
      [7 * PAGE + 5, PAGE, [7, 8]],
      [100 * PAGE, 3 * PAGE + 1, [100, 101, 102, 103]],
      [127 * PAGE, PAGE, [127]],
    ] as const
  ) {
    log.mark(address, length);
    assertEquals(take(bytes), [...pages], `${length} bytes at ${address}`);
  }
  assertEquals(log.pagesBeyond, 0);
});

Deno.test("DirtyLog.mark() counts pages beyond the log and touches nothing else", () => {
  const whole = new Uint8Array(24);
  const bytes = whole.subarray(8, 16);
  const log = new DirtyLog(bytes);
  log.mark(62 * PAGE, 4 * PAGE);
  assertEquals(log.pagesBeyond, 2);
  assertEquals(take(bytes), [62, 63]);
  log.mark(2 ** 53 - 2 * PAGE, PAGE);
  log.mark(2 ** 46, 1);
  assertEquals(log.pagesBeyond, 4);
  assertEquals(take(whole), []);
});

Deno.test("DirtyLog.moveTo() leaves the old log as it is", () => {
  const old = new Uint8Array(8);
  const bytes = new Uint8Array(16);
  const log = new DirtyLog(old);
  log.mark(3 * PAGE, 1);
  log.moveTo(bytes);
  log.mark(5 * PAGE, 1);
  assertEquals(take(old), [3]);
  assertEquals(take(bytes), [5]);
});

/**
 * The front-end, which takes words out of the log, and another device that shares it: it marks the odd
 * pages while the log under test marks the even ones.
 */
const OTHERS = `
  onmessage = ({ data: { log, taken, turn, rounds } }) => {
    const bytes = new Uint8Array(log), words = new Int32Array(log);
    const out = new Int32Array(taken), go = new Int32Array(turn);
    for (let round = 1; round <= rounds; round++) {
      while (Atomics.load(go, 0) !== round);
      for (let at = 0; at < bytes.length; at++) {
        for (let bit = 1; bit < 8; bit += 2) Atomics.or(bytes, at, 1 << bit);
        const word = Math.random() * words.length | 0;
        out[word] |= Atomics.exchange(words, word, 0);
      }
      Atomics.store(go, 1, round);
    }
    close();
  };
`;

Deno.test("DirtyLog.mark() loses nothing to others that change the log at the same time", () => {
  const SIZE = 256;
  const ROUNDS = 300;
  const shared = new SharedArrayBuffer(SIZE);
  const taken = new SharedArrayBuffer(SIZE);
  const turn = new SharedArrayBuffer(8);
  const go = new Int32Array(turn);
  const url = URL.createObjectURL(
    new Blob([OTHERS], { type: "text/javascript" }),
  );
  const worker = new Worker(url, { type: "module" });
  try {
    worker.postMessage({ log: shared, taken, turn, rounds: ROUNDS });
    const bytes = new Uint8Array(shared);
    const out = new Uint8Array(taken);
    const log = new DirtyLog(bytes);
    for (let round = 1; round <= ROUNDS; round++) {
      Atomics.store(go, 0, round);
      for (let page = 0; page < SIZE * 8; page += 2) log.mark(page * PAGE, 1);
      while (Atomics.load(go, 1) !== round);
      const lost = out.findIndex((byte, at) => (byte | bytes[at]!) !== 0xff);
      assertEquals(lost, -1, `round ${round}`);
      out.fill(0);
      bytes.fill(0);
    }
  } finally {
    worker.terminate();
    URL.revokeObjectURL(url);
  }
});

// -- Queues --

const SIZE = 64;
/** Rings in one region; buffers in two that adjoin and one that is far away. */
const RINGS = { guestAddress: 0x1_0000, size: 0x1_0000 };
const NEAR = { guestAddress: 0x10_0000, size: 0x1_8800 };
const NEXT = { guestAddress: 0x11_8800, size: 0x1_7800 };
const FAR = { guestAddress: 0x1_0000_0000, size: 0x2_0000 };
const REGIONS = [RINGS, NEAR, NEXT, FAR];
const SLOT_BYTES = 0x3000;
const LOG_BYTES = 0x1_0004_0000 / PAGE / 8;

type Case = {
  format: RingFormat;
  eventIdx: boolean;
  indirect: boolean;
  inOrder?: boolean;
  /** Where the device area counts as in the log; undefined for its own address, -1 for nowhere. */
  logAddress?: number;
};

/** A queue under a log, with a driver, and a copy of its memory to compare with. */
class LoggedRig {
  readonly bytes: Uint8Array = new Uint8Array(LOG_BYTES);
  readonly log: DirtyLog = new DirtyLog(this.bytes);
  readonly memory: GuestMemory = new GuestMemory(
    REGIONS.map((region) => ({
      ...region,
      buffer: new ArrayBuffer(region.size),
    })),
  );
  readonly config;
  readonly logAddress: number;
  readonly driver: SplitDriver | PackedDriver;
  readonly inner: SplitDevice | PackedDevice;
  readonly queue: LoggedQueue;
  readonly freeSlots: number[] = [];
  readonly slots: Map<number, number> = new Map();
  #before: Uint8Array[] = [];
  #seed: number;

  constructor(ring: Case, seed: number) {
    this.#seed = seed;
    const { format, eventIdx, indirect, inOrder = false } = ring;
    // Areas that cross pages, as those of large queues do.
    this.config = {
      size: SIZE,
      descriptorArea: RINGS.guestAddress + 0x1e00,
      driverArea: RINGS.guestAddress + 0x4000,
      deviceArea: RINGS.guestAddress + (format === "split" ? 0x5f08 : 0x5ffc),
      eventIdx,
      indirect,
      inOrder,
    };
    this.logAddress = ring.logAddress ?? this.config.deviceArea;
    const options = indirect
      ? {
        indirect: { address: RINGS.guestAddress + 0x8000, entries: 8 },
      }
      : {};
    this.driver = format === "split"
      ? new SplitDriver(this.memory, this.config, options)
      : new PackedDriver(this.memory, this.config, options);
    this.inner = format === "split"
      ? new SplitDevice(this.memory, this.config)
      : new PackedDevice(this.memory, this.config);
    this.queue = new LoggedQueue(this.inner, this.log, {
      descriptorArea: this.config.descriptorArea,
      eventIdx,
      logAddress: this.logAddress,
    });
    for (const { guestAddress, size } of [{ ...NEAR, size: 0x3_0000 }, FAR]) {
      for (let at = 0; at + SLOT_BYTES <= size; at += SLOT_BYTES) {
        this.freeSlots.push(guestAddress + at);
      }
    }
  }

  random(below: number): number {
    this.#seed = (this.#seed * 1103515245 + 12345) & 0x7fffffff;
    return (this.#seed >> 8) % below;
  }

  /** Makes a buffer available; false where there is no room. */
  offer(): boolean {
    const slot = this.freeSlots.pop();
    if (slot === undefined) return false;
    const list = new BufferList();
    let at = slot + this.random(64);
    if (this.random(4) === 0) list.addReadable(at, 44);
    at += 44;
    for (let left = 1 + this.random(4); left > 0; left--) {
      const length = 1 + this.random(this.random(2) === 0 ? 80 : 2800);
      list.addWritable(at, length);
      at += length + this.random(50);
    }
    const token = this.driver.add(list);
    if (token < 0) {
      this.freeSlots.unshift(slot);
      return false;
    }
    this.slots.set(token, slot);
    return true;
  }

  reclaim(): void {
    for (let token; (token = this.driver.reclaim()) >= 0;) {
      this.freeSlots.unshift(this.slots.get(token)!);
      this.slots.delete(token);
    }
  }

  /** Spoils what the driver does not need, so that every write to it is seen; takes the copy. */
  prepare(): void {
    const { deviceArea } = this.config;
    if (this.inner.format === "split") {
      const used = this.memory.bytes(deviceArea, 6 + 8 * SIZE);
      used.fill(0xee, 0, 2);
      used.fill(0xee, 4);
    } else this.memory.bytes(deviceArea, 4).fill(0xee);
    this.#before = this.memory.regions.map(({ bytes }) => bytes.slice());
  }

  /** Pages that have changed since then, as the log has to tell of them. */
  changed(): number[] {
    const { descriptorArea, deviceArea } = this.config;
    const split = this.inner.format === "split";
    const deviceEnd = deviceArea + (split ? 6 + 8 * SIZE : 4);
    const pages = new Set<number>();
    this.memory.regions.forEach(({ guestAddress, bytes }, i) => {
      const before = this.#before[i]!;
      for (let at = 0; at < bytes.length; at++) {
        if (bytes[at] === before[at]) continue;
        let address = guestAddress + at;
        const inRing = address < RINGS.guestAddress + RINGS.size;
        if (inRing && this.logAddress < 0) continue;
        if (address >= deviceArea && address < deviceEnd) {
          address += this.logAddress - deviceArea;
        } else if (inRing) {
          // Nothing else of a ring is the device's to write.
          assert(!split && address >= descriptorArea);
          assert(address < descriptorArea + 16 * SIZE);
        }
        pages.add(Math.floor(address / PAGE));
      }
    });
    return [...pages].sort((a, b) => a - b);
  }

  /** Turns the first `written` writable bytes of a chain over. */
  write(chain: Chain, written: number): void {
    for (let i = chain.readable; i < chain.count && written > 0; i++) {
      const bytes = chain.bytes(i).subarray(0, written);
      bytes.forEach((byte, at) => bytes[at] = byte ^ 0xff);
      written -= bytes.length;
    }
  }
}

function check(name: string, { format, ...rest }: Case): void {
  Deno.test(`LoggedQueue logs the pages that a ${format} queue writes, and no other: ${name}`, () => {
    let laps = 0;
    for (let seed = 1; seed <= 8; seed++) {
      const rig = new LoggedRig({ format, ...rest }, seed);
      const { queue } = rig;
      take(rig.bytes);
      const held: { chain: Chain; order: number }[] = [];
      let fetched = 0;
      for (let step = 0; step < 60; step++) {
        rig.reclaim();
        for (let n = rig.random(6); n > 0 && rig.offer(); n--);
        rig.driver.publish();
        rig.prepare();
        if (rig.random(2) === 0) queue.disarmKicks();
        for (let n = rig.random(8); n > 0; n--) {
          const chain = new Chain(rig.memory);
          if (!queue.pop(chain)) break;
          assertEquals(chain.fault, null);
          held.push({ chain, order: ++fetched });
        }
        // Some of what is held goes back, some is completed, in any order that is lawful.
        for (
          let n = rig.random(3);
          n > 0 && held.at(-1)?.order === fetched;
          n--
        ) {
          queue.unpop(held.pop()!.chain.token);
          fetched--;
        }
        for (let n = rig.random(held.length + 1); n > 0; n--) {
          const { chain } = held.splice(
            rest.inOrder ? 0 : rig.random(held.length),
            1,
          )[0]!;
          const written = rig.random(3) === 0
            ? 0
            : rest.inOrder && rig.random(2) === 0
            ? chain.writableBytes
            : rig.random(chain.writableBytes + 1);
          rig.write(chain, written);
          queue.push(chain.token, written);
          laps++;
        }
        queue.publish();
        queue.needsInterrupt();
        if (rig.random(2) === 0) queue.armKicks();
        assertEquals(
          take(rig.bytes),
          rig.changed(),
          `seed ${seed}, step ${step}`,
        );
      }
      assertEquals(rig.log.pagesBeyond, 0);
    }
    assert(laps > 4 * SIZE, `${laps} buffers`);
  });
}

for (const format of ["split", "packed"] as const) {
  check("plain", { format, eventIdx: false, indirect: false });
  check("event index and tables", { format, eventIdx: true, indirect: true });
  check("in order", {
    format,
    eventIdx: true,
    indirect: false,
    inOrder: true,
  });
  // A ring may be logged at an address where the guest has no memory.
  const logAddress = 0x20_0ff4;
  check("ring elsewhere", {
    format,
    eventIdx: true,
    indirect: false,
    logAddress,
  });
  check("ring not at all", {
    format,
    eventIdx: false,
    indirect: true,
    logAddress: -1,
  });
}

for (const format of ["split", "packed"] as const) {
  Deno.test(`LoggedQueue.publish() logs a ${format} ring that the front-end has looked at since push()`, () => {
    const rig = new LoggedRig({ format, eventIdx: true, indirect: false }, 1);
    const chain = new Chain(rig.memory);
    rig.offer();
    rig.driver.publish();
    assert(rig.queue.pop(chain));
    rig.queue.push(chain.token, 0);
    take(rig.bytes);
    rig.prepare();
    assert(rig.queue.publish());
    assertEquals(take(rig.bytes), rig.changed());
    assertEquals(rig.queue.publish(), false);
    assertEquals(take(rig.bytes), []);
  });
}

Deno.test("LoggedQueue.logRing() starts and ends the log of the ring", () => {
  const rig = new LoggedRig(
    { format: "split", eventIdx: true, indirect: false, logAddress: -1 },
    1,
  );
  const serve = () => {
    rig.reclaim();
    rig.offer();
    rig.driver.publish();
    const chain = new Chain(rig.memory);
    assert(rig.queue.pop(chain));
    rig.queue.push(chain.token, 0);
    rig.queue.publish();
    rig.queue.armKicks();
    return take(rig.bytes);
  };
  assertEquals(serve(), []);
  rig.queue.logRing(0x20_0000);
  assertEquals(serve(), [0x200]);
  rig.queue.logRing(-1);
  assertEquals(serve(), []);
});

Deno.test("LoggedQueue logs buffers of a restored queue, with ids beyond its size", () => {
  const memory = new GuestMemory([{
    ...RINGS,
    buffer: new ArrayBuffer(RINGS.size),
  }]);
  const config = {
    size: 4,
    descriptorArea: RINGS.guestAddress,
    driverArea: RINGS.guestAddress + 0x100,
    deviceArea: RINGS.guestAddress + 0x110,
  };
  const descriptors = [
    { addr: RINGS.guestAddress + 0x2fff, len: 2, writable: true },
    { addr: RINGS.guestAddress + 0x5000, len: 0x1001, writable: true },
  ];
  const queue = new PackedDevice(memory, config, {
    format: "packed",
    lastAvailIdx: 2,
    lastAvailWrapCounter: 1,
    usedIdx: 0,
    usedWrapCounter: 1,
    inFlight: [{ id: 60_000, slots: 2, descriptors }],
  });
  const bytes = new Uint8Array(16);
  const logged = new LoggedQueue(queue, new DirtyLog(bytes), {
    descriptorArea: config.descriptorArea,
    eventIdx: false,
    logAddress: config.deviceArea,
  });
  assertEquals(take(bytes), [0x10], "the queue has asked for kicks");
  const chain = new Chain(memory);
  assert(logged.pop(chain));
  assertEquals(chain.token, 60_000);
  logged.unpop(chain.token);
  assert(logged.pop(chain));
  logged.push(chain.token, 0x1003);
  logged.publish();
  assertEquals(take(bytes), [0x10, 0x12, 0x13, 0x15, 0x16]);
});
