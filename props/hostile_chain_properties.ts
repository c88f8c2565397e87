/**
 * A driver that writes any descriptors: what a device fetches takes a bounded number of steps and lies in
 * memory, or is refused.
 *
 * @module
 */

import fc from "fast-check";
import { Chain } from "../ring/chain.ts";
import { RingError } from "../ring/errors.ts";
import { GuestMemory } from "../ring/memory.ts";
import { PackedDevice } from "../ring/packed_device.ts";
import type { DeviceQueue, QueueConfig } from "../ring/queue.ts";
import { SplitDevice } from "../ring/split_device.ts";
import type { NamedProperty } from "./queue_properties.ts";
import { newRun, scriptProperty, type ScriptWorld } from "./script_property.ts";
import { Violation } from "./violation.ts";

type Setup = { format: "split" | "packed"; size: number; indirect: boolean };

/** Where descriptor `at` of the ring or of a table says that its bytes are. */
type Place = "data" | "table" | "nowhere";
type Descriptor = {
  at: number;
  place: Place;
  length: number;
  flags: number;
  next: number;
};
type HostileStep =
  | { do: "ring"; descriptor: Descriptor }
  | { do: "table"; descriptor: Descriptor }
  | { do: "same"; flags: number }
  /** All of a table that descriptor 0 of the ring refers to, each with the same next one. */
  | { do: "loop"; flags: number; next: number }
  | { do: "offer"; head: number }
  | { do: "fetch" };

const START = 0x10_0000;
const TABLE_ENTRIES = 8;
const DATA_BYTES = 4096;
const F_NEXT = 1;
const F_WRITE = 2;
const F_INDIRECT = 4;
const AVAIL = 0x80;
const USED = 0x8000;
/** Segments of one buffer: a ring of them and a table, and the most that any table may have. */
const MAX_SEGMENTS = 1100;

/** A chain that counts, so that a walk without an end is noticed. */
class CountingChain extends Chain {
  steps = 0;

  override append(address: number, length: number, writable: boolean): boolean {
    if (++this.steps > MAX_SEGMENTS) {
      throw new Violation(
        "bounded steps",
        `a buffer has taken ${this.steps} steps`,
      );
    }
    return super.append(address, length, writable);
  }
}

class HostileWorld implements ScriptWorld<HostileStep> {
  readonly run = newRun();
  readonly #setup: Setup;
  readonly #view: DataView;
  readonly #device: DeviceQueue;
  readonly #chain: CountingChain;
  readonly #table: number;
  readonly #data: number;
  readonly #driverArea: number;
  readonly #memory: GuestMemory;
  #offered = 0;
  #fetched = 0;
  #broken = false;

  constructor(setup: Setup) {
    const { format, size, indirect } = setup;
    this.#setup = setup;
    const ring = 16 * size;
    const areas = 16 * Math.ceil((6 + 8 * size) / 16);
    this.#driverArea = ring;
    this.#table = ring + 2 * areas;
    this.#data = this.#table + 16 * TABLE_ENTRIES;
    const buffer = new ArrayBuffer(this.#data + DATA_BYTES);
    this.#view = new DataView(buffer);
    this.#memory = new GuestMemory([
      { guestAddress: START, size: buffer.byteLength, buffer, byteOffset: 0 },
    ]);
    const config: QueueConfig = {
      size,
      descriptorArea: START,
      driverArea: START + ring,
      deviceArea: START + ring + areas,
      indirect,
    };
    this.#device = format === "split"
      ? new SplitDevice(this.#memory, config)
      : new PackedDevice(this.#memory, config);
    this.#chain = new CountingChain(this.#memory, 2);
  }

  possible(step: HostileStep): boolean {
    if (step.do !== "offer") return true;
    return this.#setup.format === "packed" ||
      this.#offered - this.#fetched < this.#setup.size;
  }

  take(step: HostileStep): string {
    const { size, format } = this.#setup;
    switch (step.do) {
      case "ring":
        this.#describe(step.descriptor.at % size * 16, step.descriptor);
        return "";
      case "table":
        this.#describe(
          this.#table + step.descriptor.at % TABLE_ENTRIES * 16,
          step.descriptor,
        );
        return "";
      case "same":
        // All of the ring, each the next of the one before.
        for (let at = 0; at < size; at++) {
          const next = (at + 1) % size;
          const { flags } = step;
          this.#describe(at * 16, {
            at,
            place: "data",
            length: 8,
            flags,
            next,
          });
        }
        return "";
      case "loop": {
        const { flags, next } = step;
        for (let at = 0; at < TABLE_ENTRIES; at++) {
          const entry: Descriptor = {
            at,
            place: "data",
            length: 8,
            flags,
            next,
          };
          this.#describe(this.#table + at * 16, entry);
        }
        this.#describe(0, {
          at: 0,
          place: "table",
          length: 16 * TABLE_ENTRIES,
          flags: F_INDIRECT,
          next: 0,
        });
        return "";
      }
      case "offer": {
        this.#offered++;
        if (format === "split") {
          const slot = (this.#offered - 1) % size;
          const at = this.#driverArea;
          this.#view.setUint16(at + 4 + 2 * slot, step.head % size, true);
          this.#view.setUint16(at + 2, this.#offered, true);
        } else {
          const at = step.head % size * 16 + 14;
          const flags = this.#view.getUint16(at, true) & ~USED;
          this.#view.setUint16(at, flags | AVAIL, true);
        }
        return "";
      }
      case "fetch":
        return this.#fetch();
    }
  }

  settle(): void {
    while (this.#fetch() !== "nothing");
  }

  #fetch(): string {
    const chain = this.#chain;
    if (this.#broken) return "nothing";
    chain.steps = 0;
    try {
      if (!this.#device.pop(chain)) return "nothing";
    } catch (error) {
      if (!(error instanceof RingError)) throw error;
      this.#broken = true;
      return error.code;
    }
    this.#fetched++;
    this.run.buffers++;
    if (chain.fault !== null) {
      if (chain.count !== 0) {
        throw new Violation("refused", "a malformed buffer has segments");
      }
    } else this.#checkSegments(chain);
    this.#device.push(chain.token, 0);
    this.#device.publish();
    return chain.fault?.code ?? `${chain.count} segments`;
  }

  #checkSegments(chain: Chain): void {
    const total = this.#view.byteLength;
    const { size } = this.#setup;
    const most = this.#setup.indirect ? size + 1024 : size;
    if (chain.count > most) {
      throw new Violation(
        "bounded steps",
        `a buffer has ${chain.count} segments, more than ${most}`,
      );
    }
    for (let i = 0; i < chain.count; i++) {
      if (chain.offset[i]! + chain.length[i]! > total) {
        throw new Violation("inside", `segment ${i} lies outside of memory`);
      }
    }
  }

  #describe(offset: number, { place, length, flags, next }: Descriptor): void {
    const view = this.#view;
    const address = place === "data"
      ? START + this.#data
      : place === "table"
      ? START + this.#table
      : 2 ** 40;
    view.setUint32(offset, address % 2 ** 32, true);
    view.setUint32(offset + 4, Math.floor(address / 2 ** 32), true);
    view.setUint32(offset + 8, length, true);
    if (this.#setup.format === "split") {
      view.setUint16(offset + 12, flags, true);
      view.setUint16(offset + 14, next, true);
    } else {
      view.setUint16(offset + 12, next, true);
      // The head of a chain is told by "offer"; those behind it are not looked at.
      view.setUint16(offset + 14, flags, true);
    }
  }
}

const flags = fc.constantFrom(
  0,
  F_NEXT,
  F_NEXT,
  F_WRITE,
  F_NEXT | F_WRITE,
  F_INDIRECT,
  F_INDIRECT,
  F_INDIRECT | F_NEXT,
  AVAIL | USED,
);
const descriptor = fc.record({
  at: fc.nat(7),
  place: fc.constantFrom<Place>("data", "data", "table", "table", "nowhere"),
  length: fc.constantFrom(0, 8, 16, 64, 16 * TABLE_ENTRIES, DATA_BYTES * 4),
  flags,
  next: fc.oneof(fc.nat(7), fc.nat(0xffff)),
});

/** Whatever a driver writes into ring and tables. */
export const HOSTILE_CHAIN_PROPERTY: NamedProperty = scriptProperty<
  Setup,
  HostileStep
>({
  name: "queue/hostile",
  setups: fc.record({
    format: fc.constantFrom("split" as const, "packed" as const),
    size: fc.constantFrom(1, 2, 4, 8),
    indirect: fc.boolean(),
  }),
  steps: [
    fc.record({ do: fc.constant("ring" as const), descriptor }),
    fc.record({ do: fc.constant("ring" as const), descriptor }),
    fc.record({ do: fc.constant("table" as const), descriptor }),
    fc.record({ do: fc.constant("table" as const), descriptor }),
    fc.record({
      do: fc.constant("same" as const),
      flags: fc.constantFrom(F_NEXT, F_NEXT | F_WRITE),
    }),
    fc.record({
      do: fc.constant("loop" as const),
      flags: fc.constantFrom(F_NEXT, F_NEXT | F_WRITE),
      next: fc.nat(TABLE_ENTRIES - 1),
    }),
    fc.record({ do: fc.constant("offer" as const), head: fc.nat(7) }),
    fc.record({ do: fc.constant("offer" as const), head: fc.nat(7) }),
    fc.record({ do: fc.constant("fetch" as const) }),
    fc.record({ do: fc.constant("fetch" as const) }),
  ],
  maxSteps: 24,
  make: (setup) => new HostileWorld(setup),
});
