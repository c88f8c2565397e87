import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { Chain } from "./chain.ts";
import { GuestMemory } from "./memory.ts";
import { PackedDevice } from "./packed_device.ts";
import { PackedDriver } from "./packed_driver.ts";
import {
  BufferList,
  type DeviceQueue,
  type DriverQueue,
  type QueueConfig,
} from "./queue.ts";
import { SplitDevice } from "./split_device.ts";
import { SplitDriver } from "./split_driver.ts";

// Requirements on who may write where and when. Every call of either side is compared with memory as it was before it.

const FORMATS = ["split", "packed"] as const;
const NEXT = 1;
const INDIRECT = 4;

const SIZE = 8;
const DESCRIPTORS = 0;
const DRIVER_AREA = 0x1000;
const DEVICE_AREA = 0x2000;
const TABLES = 0x3000;
const TABLE_ENTRIES = 4;
const READABLE = 0x4000;
const WRITABLE = 0x4400;
const CELL = 16;
const CELLS = 64;
const BYTES = 0x4800;

type Options = { eventIdx: boolean; indirect: boolean };
const OPTIONS: readonly Options[] = [
  { eventIdx: false, indirect: false },
  { eventIdx: false, indirect: true },
  { eventIdx: true, indirect: false },
  { eventIdx: true, indirect: true },
];

/** Both sides of one queue, and an account of which descriptors belong to whom. */
class Account {
  readonly format: typeof FORMATS[number];
  readonly options: Options;
  readonly bytes: Uint8Array;
  readonly view: DataView;
  readonly driver: DriverQueue;
  readonly device: DeviceQueue;
  readonly chain: Chain;
  /** Descriptors that a buffer takes in the ring, by its token on the driver's side. */
  readonly slots = new Map<number, number>();
  /** Packed: whether the device has the descriptor. Split: whether it is in a buffer that the driver has not taken back. */
  readonly theirs: boolean[] = new Array(SIZE).fill(false);
  /** Split: descriptors of each buffer in flight, by the index of its head. */
  readonly chains = new Map<number, number[]>();
  before: Uint8Array;
  #cell = 0;
  #driverAt = 0;
  #deviceAt = 0;

  constructor(format: typeof FORMATS[number], options: Options) {
    this.format = format;
    this.options = options;
    const buffer = new ArrayBuffer(BYTES);
    this.bytes = new Uint8Array(buffer);
    this.view = new DataView(buffer);
    const memory = new GuestMemory([{ guestAddress: 0, size: BYTES, buffer }]);
    const config: QueueConfig = {
      size: SIZE,
      descriptorArea: DESCRIPTORS,
      driverArea: DRIVER_AREA,
      deviceArea: DEVICE_AREA,
      ...options,
    };
    const tables = options.indirect
      ? { indirect: { address: TABLES, entries: TABLE_ENTRIES } }
      : {};
    if (format === "split") {
      this.driver = new SplitDriver(memory, config, tables);
      this.device = new SplitDevice(memory, config);
    } else {
      this.driver = new PackedDriver(memory, config, tables);
      this.device = new PackedDevice(memory, config);
    }
    this.chain = new Chain(memory);
    this.bytes.fill(0x5a, READABLE, WRITABLE);
    this.before = this.bytes.slice();
  }

  u16(at: number): number {
    return this.view.getUint16(at, true);
  }

  /** Runs a step of one side; the addresses that it changed. */
  changed(step: () => void): number[] {
    this.before.set(this.bytes);
    step();
    const at: number[] = [];
    for (let i = 0; i < BYTES; i++) {
      if (this.bytes[i] !== this.before[i]) at.push(i);
    }
    return at;
  }

  /** A step of the device: what may change is its own area, its packed descriptors, and writable buffers. */
  deviceStep(step: () => void): void {
    for (const at of this.changed(step)) {
      if (at >= DEVICE_AREA && at < TABLES) continue;
      assert(
        this.format === "packed" && at < DRIVER_AREA,
        `the device wrote at 0x${at.toString(16)}`,
      );
      assert(this.theirs[at >> 4], `descriptor ${at >> 4} is the driver's`);
    }
    const flags = this.u16(DEVICE_AREA + (this.format === "split" ? 0 : 2));
    const most = this.format === "packed" && this.options.eventIdx ? 2 : 1;
    assert(flags <= most, `device flags ${flags}`);
    if (this.format === "split" && this.options.eventIdx) {
      assertEquals(flags, 0);
    }
  }

  /** A step of the driver: what may change is its own area, tables, and descriptors that are its own. */
  driverStep(step: () => void): void {
    for (const at of this.changed(step)) {
      if (at >= DRIVER_AREA && at < DEVICE_AREA) continue;
      if (at >= TABLES && at < READABLE) continue;
      assert(at < DRIVER_AREA, `the driver wrote at 0x${at.toString(16)}`);
      assert(!this.theirs[at >> 4], `descriptor ${at >> 4} is the device's`);
    }
    const flags = this.u16(DRIVER_AREA + (this.format === "split" ? 0 : 2));
    const most = this.format === "packed" && this.options.eventIdx ? 2 : 1;
    assert(flags <= most, `driver flags ${flags}`);
    if (this.format === "split" && this.options.eventIdx) {
      assertEquals(flags, 0);
    }
  }

  /** Adds and shows one buffer; false where there is no room. */
  offer(readable: number, writable: number): boolean {
    const list = new BufferList();
    for (let i = 0; i < readable + writable; i++) {
      const cell = (this.#cell++ % CELLS) * CELL;
      if (i < readable) list.addReadable(READABLE + cell, CELL);
      else list.addWritable(WRITABLE + cell, CELL);
    }
    let token = -1;
    this.driverStep(() => token = this.driver.add(list));
    if (token < 0) return false;
    const availIdx = this.u16(DRIVER_AREA + 2);
    this.driverStep(() => assert(this.driver.publish()));
    const count = readable + writable;
    const slots = this.options.indirect && count > 1 ? 1 : count;
    this.slots.set(token, slots);
    if (this.format === "packed") {
      for (let i = 0; i < slots; i++) {
        this.theirs[this.#driverAt] = true;
        this.#driverAt = (this.#driverAt + 1) % SIZE;
      }
    } else {
      assertEquals(this.u16(DRIVER_AREA + 2), (availIdx + 1) & 0xffff);
      const head = this.u16(DRIVER_AREA + 4 + 2 * (availIdx % SIZE));
      const indices: number[] = [];
      for (let at = head, more = true; more; at = this.u16(16 * at + 14)) {
        indices.push(at);
        more = (this.u16(16 * at + 12) & NEXT) !== 0;
      }
      assertEquals(indices.length, slots);
      for (const index of indices) this.theirs[index] = true;
      this.chains.set(head, indices);
    }
    this.driverStep(() => this.driver.needsKick());
    return true;
  }

  /** Fetches the next buffer: its token and room, or null. */
  pop(): { token: number; slots: number; room: number } | null {
    let popped = false;
    this.deviceStep(() => popped = this.device.pop(this.chain));
    if (!popped) return null;
    const { token, fault, count, writableBytes } = this.chain;
    assertEquals(fault, null);
    const slots = this.options.indirect && count > 1 ? 1 : count;
    return { token, slots, room: writableBytes };
  }

  /** Uses a buffer that was popped. */
  use(token: number, slots: number, written: number): void {
    this.deviceStep(() => this.device.push(token, written));
    const usedIdx = this.u16(DEVICE_AREA + 2);
    this.deviceStep(() => assert(this.device.publish()));
    if (this.format === "split") {
      assertEquals(this.u16(DEVICE_AREA + 2), (usedIdx + 1) & 0xffff);
    } else {
      for (let i = 0; i < slots; i++) {
        this.theirs[this.#deviceAt] = false;
        this.#deviceAt = (this.#deviceAt + 1) % SIZE;
      }
    }
    this.deviceStep(() => this.device.needsInterrupt());
  }

  /** Takes back what is used. */
  reclaim(): number {
    let count = 0;
    for (;;) {
      let token = -1;
      const free = this.driver.free;
      this.driverStep(() => token = this.driver.reclaim());
      if (token < 0) return count;
      count++;
      assertEquals(this.driver.free - free, this.slots.get(token));
      this.slots.delete(token);
    }
  }
}

/** Numbers below `limit` that look arbitrary and are the same in each run. */
function numbers(seed: number): (limit: number) => number {
  let state = seed;
  return (limit) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor(state / 2 ** 32 * limit);
  };
}

for (const format of FORMATS) {
  const name = format === "split" ? "Split" : "Packed";

  Deno.test(`${name}Device and ${name}Driver write only where they may, and never what the other side has`, () => {
    for (const options of OPTIONS) {
      const account = new Account(format, options);
      const below = numbers(7);
      const held: { token: number; slots: number; room: number }[] = [];
      let used = 0;
      for (let step = 0; step < 4000; step++) {
        switch (below(6)) {
          case 0:
          case 1: {
            const readable = below(3);
            account.offer(readable, readable === 0 ? 1 + below(2) : below(3));
            break;
          }
          case 2: {
            const buffer = account.pop();
            if (buffer !== null) held.push(buffer);
            break;
          }
          case 3: {
            if (held.length === 0) break;
            const [buffer] = held.splice(below(held.length), 1);
            const { token, slots, room } = buffer!;
            account.use(token, slots, below(room + 1));
            used++;
            if (format === "split") {
              const at = (account.u16(DEVICE_AREA + 2) - 1) % SIZE;
              const head = account.view.getUint32(
                DEVICE_AREA + 4 + 8 * ((at + SIZE) % SIZE),
                true,
              );
              for (const index of account.chains.get(head)!) {
                account.theirs[index] = false;
              }
              account.chains.delete(head);
            }
            break;
          }
          case 4:
            account.reclaim();
            break;
          default:
            account.deviceStep(() => account.device.disarmKicks());
            account.deviceStep(() => account.device.armKicks());
            account.driverStep(() => account.driver.disarmInterrupts());
            account.driverStep(() => account.driver.armInterrupts());
        }
      }
      assert(used > 300, `only ${used} buffers were used`);
      assert(
        account.bytes.subarray(READABLE, WRITABLE).every((b) => b === 0x5a),
      );
    }
  });

  Deno.test(`${name}Device and ${name}Driver bear notifications that announce nothing`, () => {
    for (const options of OPTIONS) {
      const account = new Account(format, options);
      const { device, driver, chain } = account;
      for (let i = 0; i < 3; i++) {
        assertEquals(device.pop(chain), false);
        assertEquals(device.publish(), false);
        assertEquals(device.needsInterrupt(), false);
        assertEquals(driver.reclaim(), -1);
        assertEquals(driver.publish(), false);
        assertEquals(driver.needsKick(), false);
      }
      assert(account.offer(1, 1));
      const buffer = account.pop()!;
      for (let i = 0; i < 3; i++) {
        assertEquals(device.pop(chain), false);
        assertEquals(driver.reclaim(), -1);
      }
      account.use(buffer.token, buffer.slots, CELL);
      assertEquals(account.reclaim(), 1);
      assertEquals(driver.reclaim(), -1);
    }
  });

  Deno.test(`${name}Device and ${name}Driver write everything before the word that hands it over, and read the other side's wish after it`, () => {
    for (const options of OPTIONS) {
      const account = new Account(format, options);
      const { device, driver, chain, bytes } = account;
      const { load, store } = Atomics;
      let log: { kind: "load" | "store"; at: number; memory: Uint8Array }[] =
        [];
      /** Runs a step; its atomic accesses, with memory as it was right after each. */
      const observe = (step: () => void) => {
        log = [];
        Atomics.load = ((array: Uint16Array, index: number) => {
          const at = array.byteOffset + index * array.BYTES_PER_ELEMENT;
          log.push({ kind: "load", at, memory: bytes.slice() });
          return load(array, index);
        }) as typeof Atomics.load;
        Atomics.store = ((array: Uint16Array, index: number, value: number) => {
          const at = array.byteOffset + index * array.BYTES_PER_ELEMENT;
          const result = store(array, index, value);
          log.push({ kind: "store", at, memory: bytes.slice() });
          return result;
        }) as typeof Atomics.store;
        try {
          step();
        } finally {
          Atomics.load = load;
          Atomics.store = store;
        }
        return log;
      };
      /** The hand-over is the last access, at `word`, and the only thing of its moment that changed. */
      const handsOver = (word: number, step: () => void) => {
        const before = account.u16(word);
        const accesses = observe(step).filter(({ kind }) => kind === "store");
        const last = accesses.at(-1)!;
        assertEquals(last.at, word);
        assertEquals(last.memory, bytes, "something was written after it");
        assertNotEquals(account.u16(word), before);
        for (const { memory } of accesses.slice(0, -1)) {
          assertEquals(
            new DataView(memory.buffer).getUint16(word, true),
            before,
          );
        }
      };
      const asks = (area: number, step: () => void) => {
        const loads = observe(step).filter(({ kind }) => kind === "load");
        assert(
          loads.some(({ at }) => at >= area && at < area + 0x1000),
          "it does not ask the other side by an atomic load",
        );
      };
      let slot = 0;
      for (let round = 0; round < 20; round++) {
        const list = new BufferList()
          .addReadable(READABLE, CELL)
          .addWritable(WRITABLE, CELL);
        const slots = options.indirect ? 1 : 2;
        driver.add(list);
        driver.add(list);
        const head = format === "split" ? DRIVER_AREA + 2 : 16 * slot + 14;
        handsOver(head, () => driver.publish());
        asks(DEVICE_AREA, () => driver.needsKick());
        const tokens = [0, 1].map(() => {
          assert(device.pop(chain));
          return chain.token;
        });
        for (const token of tokens) device.push(token, 1);
        const used = format === "split" ? DEVICE_AREA + 2 : 16 * slot + 14;
        handsOver(used, () => device.publish());
        asks(DRIVER_AREA, () => device.needsInterrupt());
        while (driver.reclaim() >= 0);
        slot = (slot + 2 * slots) % SIZE;
      }
    }
  });
}

Deno.test("PackedDriver sets no flag but WRITE in a table, and no NEXT beside INDIRECT", () => {
  const account = new Account("packed", { eventIdx: false, indirect: true });
  for (let round = 0; round < 3 * SIZE; round++) {
    const list = new BufferList()
      .addReadable(READABLE, CELL)
      .addReadable(READABLE + CELL, CELL)
      .addWritable(WRITABLE, CELL);
    const { driver, device, chain } = account;
    assert(driver.add(list) >= 0);
    driver.publish();
    const at = 16 * (round % SIZE);
    assertEquals(account.u16(at + 14) & (NEXT | INDIRECT), INDIRECT);
    const table = Number(account.view.getBigUint64(at, true));
    assertEquals(account.view.getUint32(at + 8, true), 3 * 16);
    assertEquals(
      [0, 1, 2].map((i) => account.u16(table + 16 * i + 14)),
      [0, 0, 2],
    );
    assert(device.pop(chain));
    device.push(chain.token, 0);
    device.publish();
    assert(driver.reclaim() >= 0);
  }
});
