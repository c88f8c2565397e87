import { assert, assertEquals } from "@std/assert";
import { Chain } from "./chain.ts";
import { GuestMemory } from "./memory.ts";
import { BufferList, type QueueConfig, type QueueState } from "./queue.ts";
import { SplitDevice } from "./split_device.ts";
import { SplitDriver } from "./split_driver.ts";

/** Bytes of memory for each token's buffers: four readable segments, then four writable ones. */
const SLOT_BYTES = 256;
const SEGMENT_BYTES = 32;
const TABLE_ENTRIES = 8;

/** A pseudo-random sequence (xorshift32), so that a failure comes again. */
function random(seed: number): (below: number) => number {
  let x = seed | 1;
  return (below) => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return (x >>> 0) % below;
  };
}

type Setup = {
  size: number;
  eventIdx: boolean;
  indirect: boolean;
  seed: number;
};

/** A driver and a device over one memory, and what each buffer in flight must carry. */
class Pair {
  readonly config: QueueConfig;
  readonly memory: GuestMemory;
  readonly driver: SplitDriver;
  device: SplitDevice;
  readonly chain: Chain;
  readonly next: (below: number) => number;
  readonly list: BufferList = new BufferList(8);
  readonly base: number;
  readonly data: number;
  readonly bytes: Uint8Array;
  /** By token: the serial number that was written into the request, or -1. */
  readonly expected: Int32Array;
  /** By token: offset and length of each writable segment. */
  readonly answers: number[][] = [];
  /** Slots of memory that no buffer uses. */
  readonly slots: number[];
  readonly slotOf: Int32Array;
  readonly lengthOf: Int32Array;
  /** Popped and not pushed: [token, serial]. */
  readonly held: [number, number][] = [];
  serial = 0;
  done = 0;
  kicked = false;
  interrupted = false;

  constructor({ size, eventIdx, indirect, seed }: Setup) {
    const avail = 16 * size;
    const used = avail + 16 * size + 16;
    const tables = used + 16 * size + 16;
    this.data = tables + size * TABLE_ENTRIES * 16;
    const total = this.data + size * SLOT_BYTES;
    // Two regions that adjoin inside the data: some segments cross.
    const border = Math.floor((this.data + size * SLOT_BYTES / 2 + 40) / 16) *
      16;
    const buffer = new SharedArrayBuffer(total);
    const base = 2 ** 32 - Math.floor(this.data / 16) * 16;
    this.memory = new GuestMemory([
      {
        guestAddress: base + border,
        size: total - border,
        buffer,
        byteOffset: border,
      },
      { guestAddress: base, size: border, buffer },
    ]);
    this.bytes = new Uint8Array(buffer);
    this.data += base;
    this.base = base;
    this.config = {
      size,
      descriptorArea: base,
      driverArea: base + avail,
      deviceArea: base + used,
      eventIdx,
      indirect,
    };
    this.driver = new SplitDriver(
      this.memory,
      this.config,
      indirect
        ? { indirect: { address: base + tables, entries: TABLE_ENTRIES } }
        : {},
    );
    this.device = new SplitDevice(this.memory, this.config);
    this.chain = new Chain(this.memory, 1);
    this.next = random(seed);
    this.expected = new Int32Array(size).fill(-1);
    this.slots = Array.from({ length: size }, (_, i) => i);
    this.slotOf = new Int32Array(size);
    this.lengthOf = new Int32Array(size);
  }

  /** Adds one buffer whose first four readable bytes are its serial number; false where it is full. */
  add(most: number): boolean {
    const list = this.list.clear();
    const slot = this.slots.at(-1);
    if (slot === undefined) return false;
    const address = this.data + slot * SLOT_BYTES;
    const count = 1 + this.next(most);
    const readable = 1 + this.next(count);
    // The serial number may be split over the readable segments.
    for (let i = 0; i < readable; i++) {
      const length = i + 1 < readable ? this.next(4) : 4;
      list.addReadable(address + i * SEGMENT_BYTES, length);
    }
    for (let i = readable; i < count; i++) {
      list.addWritable(
        address + i * SEGMENT_BYTES,
        1 + this.next(SEGMENT_BYTES),
      );
    }
    const token = this.driver.add(list);
    if (token < 0) return false;
    this.slots.pop();
    assertEquals(this.expected[token], -1, "a token is handed out twice");
    const serial = this.serial++;
    this.expected[token] = serial;
    this.slotOf[token] = slot;
    const answer: number[] = this.answers[token] = [];
    let writable = 0;
    let at = 0;
    for (let i = 0; i < count; i++) {
      const offset = list.address[i]! - this.base;
      for (let j = 0; j < list.length[i]!; j++) {
        if (i < readable) {
          this.bytes[offset + j] = at < 4 ? serial >>> 8 * at++ : 0;
        } else this.bytes[offset + j] = 0;
      }
      if (i >= readable) {
        writable += list.length[i]!;
        answer.push(offset, list.length[i]!);
      }
    }
    this.lengthOf[token] = writable;
    return true;
  }

  /** The device takes up to `most` buffers and reads their serial numbers. */
  fetch(most: number): void {
    const head = new Uint8Array(4);
    for (let i = 0; i < most && this.device.pop(this.chain); i++) {
      const { chain } = this;
      assertEquals(chain.fault, null);
      assertEquals(chain.read(head), 4);
      const serial = new DataView(head.buffer).getUint32(0, true);
      assertEquals(serial, this.expected[chain.token]);
      assertEquals(chain.writableBytes, this.lengthOf[chain.token]);
      if (this.next(8) === 0) {
        this.device.unpop(chain.token);
        continue;
      }
      // It fills the writable part with its serial number's low byte.
      const answer = new Uint8Array(chain.writableBytes).fill(serial);
      assertEquals(chain.write(answer), answer.length);
      this.held.push([chain.token, answer.length]);
    }
  }

  /** The device completes up to `most` buffers in any order, as one batch. */
  complete(most: number): void {
    for (let i = 0; i < most && this.held.length > 0; i++) {
      const [picked] = this.held.splice(this.next(this.held.length), 1);
      this.device.push(...picked!);
    }
    this.device.publish();
    if (this.device.needsInterrupt()) this.interrupted = true;
  }

  /** The driver takes back everything that was used. */
  reclaim(): void {
    for (
      let token = this.driver.reclaim();
      token >= 0;
      token = this.driver.reclaim()
    ) {
      assert(this.expected[token]! >= 0, "a token comes back twice");
      assertEquals(this.driver.usedLength, this.lengthOf[token]);
      this.checkAnswer(token);
      this.expected[token] = -1;
      this.slots.push(this.slotOf[token]!);
      this.done++;
    }
  }

  /** The writable bytes, wherever they lie in the slot, hold the low byte of the serial number. */
  checkAnswer(token: number): void {
    const low = this.expected[token]! & 0xff;
    const list = this.answers[token]!;
    for (let i = 0; i < list.length; i += 2) {
      for (let j = 0; j < list[i + 1]!; j++) {
        if (this.bytes[list[i]! + j] !== low) {
          throw new Error(
            `buffer ${token} has a byte ${
              this.bytes[list[i]! + j]
            }, not ${low}`,
          );
        }
      }
    }
  }

  /** Both run only when they were told to: a lost notification ends the traffic. */
  step(most: number, batch: number): void {
    for (let i = 0; i < batch && this.add(most); i++);
    this.driver.publish();
    if (this.driver.needsKick()) this.kicked = true;
    if (this.kicked) {
      this.kicked = false;
      this.device.disarmKicks();
      do this.fetch(1 + this.next(batch)); while (this.device.armKicks());
    }
    this.complete(1 + this.next(batch));
    if (this.interrupted) {
      this.interrupted = false;
      this.driver.disarmInterrupts();
      do this.reclaim(); while (this.driver.armInterrupts());
    }
  }

  /** The device's state goes through text to another instance over the same memory. */
  handOver(): void {
    const state: QueueState = this.device.save();
    this.device = new SplitDevice(
      this.memory,
      this.config,
      JSON.parse(JSON.stringify(state)),
    );
    // What was held comes again.
    const before = this.held.splice(0).map(([token]) => token);
    while (this.device.inFlight < before.length) {
      assert(this.device.pop(this.chain));
      this.held.push([this.chain.token, this.chain.writableBytes]);
      const serial = this.expected[this.chain.token]!;
      this.chain.write(new Uint8Array(this.chain.writableBytes).fill(serial));
    }
    const sorted = (tokens: number[]) => tokens.sort((a, b) => a - b);
    assertEquals(sorted(this.held.map(([token]) => token)), sorted(before));
    assertEquals(this.device.needsInterrupt(), true);
    this.kicked = true;
    this.interrupted = true;
  }
}

function traffic(
  setup: Setup,
  buffers: number,
  batch: number,
  handOvers = 0,
): void {
  const pair = new Pair(setup);
  const most = setup.indirect ? TABLE_ENTRIES : Math.min(4, setup.size);
  const every = Math.ceil(buffers / (handOvers + 1));
  let nextHandOver = every;
  let idle = 0;
  while (pair.done < buffers) {
    const before = pair.done;
    pair.step(most, batch);
    if (handOvers > 0 && pair.done >= nextHandOver) {
      pair.handOver();
      nextHandOver += every;
    }
    idle = pair.done === before ? idle + 1 : 0;
    assert(idle < 1000, `the traffic stands after ${pair.done} buffers`);
  }
  // Nothing stays behind.
  while (pair.driver.inFlight > 0) {
    pair.fetch(setup.size);
    pair.complete(setup.size);
    pair.reclaim();
  }
  assertEquals(pair.done, pair.serial);
  assertEquals(pair.driver.free, setup.size);
  assertEquals(pair.device.inFlight, 0);
}

for (const eventIdx of [false, true]) {
  for (const indirect of [false, true]) {
    const name = `${eventIdx ? "event index" : "flags"}, ${
      indirect ? "indirect" : "direct"
    }`;
    Deno.test(`SplitDriver and SplitDevice move buffers both ways at every size (${name})`, () => {
      for (const size of [1, 2, 4, 8, 256]) {
        traffic(
          { size, eventIdx, indirect, seed: 7 + size },
          3000,
          Math.max(1, size / 2),
          5,
        );
      }
    });
  }
}

Deno.test("SplitDriver and SplitDevice go on past index 65535", () => {
  traffic(
    { size: 8, eventIdx: true, indirect: false, seed: 3 },
    140_000,
    8,
    20,
  );
});

Deno.test("SplitDriver and SplitDevice fill a queue of 32768 descriptors more than twice", () => {
  traffic(
    { size: 32768, eventIdx: true, indirect: false, seed: 5 },
    80_000,
    32768,
    1,
  );
});

Deno.test("SplitDriver and SplitDevice hold 32768 buffers at once", () => {
  const pair = new Pair({
    size: 32768,
    eventIdx: true,
    indirect: false,
    seed: 1,
  });
  for (let round = 0; round < 3; round++) {
    while (pair.add(1));
    assertEquals([pair.driver.free, pair.driver.inFlight], [0, 32768]);
    pair.driver.publish();
    while (pair.device.inFlight < 32768) pair.fetch(32768);
    assertEquals(pair.held.length, 32768);
    assertEquals(pair.device.save().inFlight.length, 32768);
    for (const [token, written] of pair.held.splice(0).reverse()) {
      pair.device.push(token, written);
    }
    pair.complete(0);
    pair.reclaim();
    assertEquals([pair.done, pair.driver.free], [(round + 1) * 32768, 32768]);
  }
});
