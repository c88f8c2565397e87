/**
 * A driver whose device writes anything into what a device may write: what the driver takes back was its own and is taken back once,
 * or the queue is given up.
 *
 * @module
 */

import fc from "fast-check";
import { RingError } from "../ring/errors.ts";
import { GuestMemory } from "../ring/memory.ts";
import { PackedDriver } from "../ring/packed_driver.ts";
import { BufferList, type DriverQueue } from "../ring/queue.ts";
import { SplitDriver } from "../ring/split_driver.ts";
import type { NamedProperty } from "./queue_properties.ts";
import { newRun, scriptProperty, type ScriptWorld } from "./script_property.ts";
import { Violation } from "./violation.ts";

type Setup = {
  format: "split" | "packed";
  size: number;
  eventIdx: boolean;
  indirect: boolean;
  inOrder: boolean;
  strongOrdering: boolean;
};
type DeviceStep =
  | { do: "add"; readable: number; writable: number; length: number }
  | { do: "publish" }
  /** An entry of the used ring, or a descriptor; `known` picks a buffer that is the device's. */
  | {
    do: "use";
    known: boolean;
    id: number;
    length: number;
    behind: number;
    lap: number;
    written: boolean;
  }
  /** The oldest buffer is used as it should be. */
  | { do: "serve"; length: number; excess?: boolean }
  /** The used index of a split ring. */
  | { do: "tell"; ahead: number }
  /** The words by which kicks are suppressed. */
  | { do: "event"; word: number; value: number }
  | { do: "notify" }
  | { do: "reclaim" };

const START = 0x10_0000;
const TABLE_ENTRIES = 3;
const DATA_BYTES = 4096;
const F_WRITE = 2;

type Offered = {
  writable: number;
  slots: number;
  published: boolean;
  served: boolean;
  order: number;
};

class HostileDeviceWorld implements ScriptWorld<DeviceStep> {
  readonly run = newRun("full", "indirect");
  readonly #setup: Setup;
  readonly #view: DataView;
  readonly #driver: DriverQueue;
  readonly #list = new BufferList(8);
  readonly #offered: Map<number, Offered> = new Map();
  readonly #deviceArea: number;
  readonly #data: number;
  #count = 0;
  /** Used entries that were told, and places of the ring that were reclaimed. */
  #told = 0;
  #reclaimed = 0;
  #broken: string | null = null;

  constructor(setup: Setup) {
    const { format, size, indirect } = setup;
    this.#setup = setup;
    const ring = 16 * size;
    const area = 16 * Math.ceil((6 + 8 * size) / 16);
    this.#deviceArea = ring + area;
    const tables = ring + 2 * area;
    this.#data = tables + 16 * TABLE_ENTRIES * size;
    const buffer = new ArrayBuffer(this.#data + DATA_BYTES);
    this.#view = new DataView(buffer);
    const memory = new GuestMemory([
      { guestAddress: START, size: buffer.byteLength, buffer },
    ]);
    const config = {
      ...setup,
      descriptorArea: START,
      driverArea: START + ring,
      deviceArea: START + ring + area,
    };
    const options = indirect
      ? { indirect: { address: START + tables, entries: TABLE_ENTRIES } }
      : {};
    this.#driver = format === "split"
      ? new SplitDriver(memory, config, options)
      : new PackedDriver(memory, config, options);
  }

  possible(_step: DeviceStep): boolean {
    return true;
  }

  take(step: DeviceStep): string {
    const driver = this.#driver;
    switch (step.do) {
      case "add":
        return this.#add(step.readable, step.writable, step.length);
      case "publish":
        driver.publish();
        for (const buffer of this.#offered.values()) buffer.published = true;
        return "";
      case "use":
        return this.#use(step);
      case "serve":
        return this.#serve(step.length, step.excess === true);
      case "tell":
        this.#told = (this.#told + step.ahead) & 0xffff;
        if (this.#setup.format === "split") {
          this.#view.setUint16(this.#deviceArea + 2, this.#told, true);
        }
        return "";
      case "event": {
        const { size, format } = this.#setup;
        const last = format === "split" ? 4 + 8 * size : 2;
        const at = this.#deviceArea + (step.word === 0 ? 0 : last);
        this.#view.setUint16(at, step.value, true);
        return "";
      }
      case "notify":
        driver.needsKick();
        driver.notificationData(0);
        driver.disarmInterrupts();
        if (driver.armInterrupts() && this.#broken !== null) {
          throw new Violation(
            "given up",
            "armInterrupts() finds work in a queue that was given up",
          );
        }
        return "";
      case "reclaim":
        return this.#reclaim();
    }
  }

  settle(): void {
    // No more can come back than was offered.
    const most = this.#offered.size;
    for (let i = 0; i <= most && this.#broken === null; i++) {
      if (this.#reclaim() === "nothing") return;
    }
    if (this.#broken !== null) this.#reclaim();
  }

  #add(readable: number, writable: number, length: number): string {
    const { size } = this.#setup;
    const count = readable + writable;
    if (count === 0 || count > size) return "does not fit";
    const list = this.#list.clear();
    const at = START + this.#data;
    for (let i = 0; i < readable; i++) list.addReadable(at, length);
    for (let i = 0; i < writable; i++) list.addWritable(at, length);
    const token = this.#driver.add(list);
    if (token < 0) {
      this.run.full = true;
      return "no room";
    }
    if (this.#offered.has(token)) {
      throw new Violation("exactly-once", `token ${token} is given twice`);
    }
    if (this.#setup.indirect && count > 1) this.run.indirect = true;
    const order = this.#count++;
    const bytes = writable * length;
    const slots = this.#setup.indirect ? 1 : count;
    this.#offered.set(token, {
      writable: bytes,
      slots,
      published: false,
      served: false,
      order,
    });
    return `buffer ${token}`;
  }

  #use(step: DeviceStep & { do: "use" }): string {
    const { format, size } = this.#setup;
    const tokens = [...this.#offered.keys()];
    const id = step.known && tokens.length > 0
      ? tokens[step.id % tokens.length]!
      : step.id;
    const view = this.#view;
    if (format === "split") {
      const slot = (this.#told + step.behind) % size;
      view.setUint32(this.#deviceArea + 4 + 8 * slot, id, true);
      view.setUint32(this.#deviceArea + 8 + 8 * slot, step.length, true);
    } else {
      const place = this.#reclaimed + step.behind;
      const slot = place % size;
      const lap = Math.floor(place / size) + step.lap;
      view.setUint32(16 * slot + 8, step.length, true);
      view.setUint16(16 * slot + 12, id, true);
      const flags = (lap % 2 === 0 ? 0x8080 : 0) |
        (step.written ? F_WRITE : 0);
      view.setUint16(16 * slot + 14, flags, true);
    }
    return `buffer ${id}`;
  }

  #serve(length: number, excess: boolean): string {
    const oldest = [...this.#offered].find(([, buffer]) =>
      buffer.published && !buffer.served
    );
    if (oldest === undefined) return "";
    const [token, buffer] = oldest;
    buffer.served = true;
    const before = [...this.#offered.values()].filter(({ served }) => served);
    const behind = before.reduce((sum, { slots }) => sum + slots, 0);
    this.#use({
      do: "use",
      known: false,
      id: token,
      length: excess ? buffer.writable + 1 : Math.min(length, buffer.writable),
      behind: this.#setup.format === "split" ? 0 : behind - buffer.slots,
      lap: 0,
      written: true,
    });
    return this.take({ do: "tell", ahead: 1 });
  }

  #reclaim(): string {
    let token: number;
    try {
      token = this.#driver.reclaim();
    } catch (error) {
      if (!(error instanceof RingError) || !error.fatal) throw error;
      if (this.#broken !== null && error.code !== this.#broken) {
        throw new Violation("given up", `${error.code} after ${this.#broken}`);
      }
      this.#broken = error.code;
      return error.code;
    }
    if (this.#broken !== null) {
      throw new Violation(
        "given up",
        `reclaim() gives ${token} after ${this.#broken}`,
      );
    }
    if (token < 0) return "nothing";
    const buffer = this.#offered.get(token);
    if (buffer === undefined || !buffer.published) {
      throw new Violation(
        "exactly-once",
        `reclaim() gives buffer ${token}, which is not the device's`,
      );
    }
    const { usedLength } = this.#driver;
    if (!(usedLength >= 0 && usedLength <= buffer.writable)) {
      throw new Violation(
        "used-length",
        `buffer ${token} has ${usedLength} of ${buffer.writable} bytes`,
      );
    }
    for (const { order } of this.#offered.values()) {
      if (this.#setup.inOrder && order < buffer.order) {
        throw new Violation("use-order", `buffer ${token} comes too soon`);
      }
    }
    this.#offered.delete(token);
    this.#reclaimed += buffer.slots;
    this.run.buffers++;
    return `buffer ${token}`;
  }
}

/** Whatever a device writes into a ring. */
export const HOSTILE_DEVICE_PROPERTY: NamedProperty = scriptProperty<
  Setup,
  DeviceStep
>({
  name: "queue/hostile-device",
  setups: fc.record({
    format: fc.constantFrom("split" as const, "packed" as const),
    size: fc.constantFrom(1, 2, 4, 8),
    eventIdx: fc.boolean(),
    indirect: fc.boolean(),
    inOrder: fc.boolean(),
    strongOrdering: fc.boolean(),
  }),
  steps: [
    ...Array(3).fill(fc.record({
      do: fc.constant("add" as const),
      readable: fc.nat(2),
      writable: fc.nat(2),
      length: fc.constantFrom(0, 1, 24),
    })),
    ...Array(5).fill(fc.record({ do: fc.constant("publish" as const) })),
    ...Array(2).fill(fc.record({
      do: fc.constant("use" as const),
      known: fc.constantFrom(true, true, true, true, true, true, false),
      id: fc.oneof(fc.nat(8), fc.constantFrom(0xffff, 0x10000, 0xffffffff)),
      length: fc.constantFrom(0, 0, 0, 0, 1, 24, 48, 49, 0xffffffff),
      behind: fc.constantFrom(0, 0, 0, 1, 2),
      lap: fc.constantFrom(0, 0, 0, 1),
      written: fc.boolean(),
    })),
    ...Array(8).fill(fc.record({
      do: fc.constant("serve" as const),
      length: fc.constantFrom(0, 1, 24, 48),
      excess: fc.constantFrom(...Array(15).fill(false), true),
    })),
    fc.record({
      do: fc.constant("tell" as const),
      ahead: fc.constantFrom(0, 0, 1, 1, 1, 2, 3, 0xffff, 0x8000),
    }),
    fc.record({
      do: fc.constant("event" as const),
      word: fc.nat(1),
      value: fc.oneof(fc.nat(3), fc.nat(0xffff)),
    }),
    ...Array(2).fill(fc.record({ do: fc.constant("notify" as const) })),
    ...Array(6).fill(fc.record({ do: fc.constant("reclaim" as const) })),
  ],
  maxSteps: 40,
  make: (setup) => new HostileDeviceWorld(setup),
});
