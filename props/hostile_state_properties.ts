/**
 * States, words, regions of buffers in flight and ring addresses that somebody has made up: each is refused in words, or is one that a
 * queue can have been in, and then a queue that starts from it takes a bounded number of steps.
 *
 * @module
 */

import fc from "fast-check";
import { Chain } from "../ring/chain.ts";
import { RingError } from "../ring/errors.ts";
import {
  type InflightRegion,
  inflightRegionSize,
  openInflight,
} from "../ring/inflight.ts";
import { GuestMemory } from "../ring/memory.ts";
import { PackedDevice } from "../ring/packed_device.ts";
import { PackedDriver } from "../ring/packed_driver.ts";
import {
  BufferList,
  type DeviceQueue,
  type DriverQueue,
  type QueueConfig,
  type QueueState,
} from "../ring/queue.ts";
import { rewindInFlight } from "../ring/save.ts";
import { readUsedIdx, SplitDevice } from "../ring/split_device.ts";
import { SplitDriver } from "../ring/split_driver.ts";
import {
  checkQueueState,
  decodeQueueStateWords,
  decodeVringBase,
  encodeQueueStateWords,
  encodeVringBase,
} from "../ring/state.ts";
import { TrackedQueue } from "../ring/tracked_queue.ts";
import type { NamedProperty } from "./queue_properties.ts";
import { newRun, scriptProperty, type ScriptWorld } from "./script_property.ts";
import { Violation } from "./violation.ts";

type Setup = { format: "split" | "packed"; size: number; indirect: boolean };
/** What takes the place of a value of a state. */
type Odd = null | boolean | number | string | object;
type ForgeStep =
  /** Buffers go round, and the device keeps some of what it fetches. */
  | { do: "traffic"; count: number; kept: number; segments: number }
  | { do: "state"; edits: { at: number; value: Odd }[] }
  | { do: "words"; available: number; used: number; usedIdx: number }
  | { do: "region"; edits: { at: number; value: number }[] }
  | { do: "ring"; at: number; value: number }
  | { do: "place"; size: number; area: number; address: number }
  | { do: "memory"; edits: { at: number; key: number; value: number }[] };

const START = 0x10_0000;
const TABLE_ENTRIES = 3;
const DATA_BYTES = 256;

class ForgeWorld implements ScriptWorld<ForgeStep> {
  readonly run = newRun("midFlight");
  readonly #setup: Setup;
  readonly #bytes: Uint8Array<ArrayBuffer>;
  readonly #region: Uint8Array<ArrayBuffer>;
  readonly #memory: GuestMemory;
  readonly #config: QueueConfig;
  readonly #driver: DriverQueue;
  readonly #device: DeviceQueue;
  readonly #list = new BufferList(4);
  readonly #chain: Chain;
  readonly #held: number[] = [];

  constructor(setup: Setup) {
    const { format, size, indirect } = setup;
    this.#setup = setup;
    const table = 16 * size;
    const area = 16 * Math.ceil((6 + 8 * size) / 16);
    const tables = table + 2 * area;
    const data = tables + 16 * TABLE_ENTRIES * size;
    const buffer = new ArrayBuffer(data + DATA_BYTES);
    this.#bytes = new Uint8Array(buffer);
    this.#region = new Uint8Array(inflightRegionSize(format, size));
    this.#memory = memoryOver(buffer);
    this.#config = {
      size,
      indirect,
      descriptorArea: START,
      driverArea: START + table,
      deviceArea: START + table + area,
    };
    const options = indirect
      ? { indirect: { address: START + tables, entries: TABLE_ENTRIES } }
      : {};
    this.#driver = format === "split"
      ? new SplitDriver(this.#memory, this.#config, options)
      : new PackedDriver(this.#memory, this.#config, options);
    const queue = this.#queue(this.#memory);
    const region = this.#open(this.#region, this.#memory);
    region.initialize(queue.save());
    this.#device = new TrackedQueue(queue, region);
    this.#chain = new Chain(this.#memory);
  }

  possible(_step: ForgeStep): boolean {
    return true;
  }

  take(step: ForgeStep): string {
    switch (step.do) {
      case "traffic":
        return this.#traffic(step.count, step.kept, step.segments);
      case "state":
        return this.#forgeState(step.edits);
      case "words":
        return this.#forgeWords(step.available, step.used, step.usedIdx);
      case "region":
        return this.#forgeRegion(step.edits, []);
      case "ring":
        return this.#forgeRegion([], [step]);
      case "place":
        return this.#forgePlace(step.size, step.area, step.address);
      case "memory":
        return this.#forgeMemory(step.edits);
    }
  }

  settle(): void {
    this.#traffic(0, 0, 1);
    if (this.#driver.free !== this.#setup.size) {
      throw new Violation("exactly-once", "buffers do not come back");
    }
  }

  #traffic(count: number, kept: number, segments: number): string {
    const list = this.#list.clear();
    const at = START + this.#bytes.length - DATA_BYTES;
    const most = this.#setup.indirect ? 3 : Math.min(3, this.#setup.size);
    for (let i = 1; i < Math.min(segments, most); i++) list.addReadable(at, 8);
    list.addWritable(at + 64, 8);
    for (let i = 0; i < count; i++) this.#driver.add(list);
    this.#driver.publish();
    while (this.#device.pop(this.#chain)) this.#held.push(this.#chain.token);
    // From the last one on, so that some are overtaken.
    while (this.#held.length > kept) this.#device.push(this.#held.pop()!, 8);
    this.#device.publish();
    while (this.#driver.reclaim() >= 0) this.run.buffers++;
    if (this.#held.length > 0) this.run.midFlight = true;
    return `${this.#held.length} in flight`;
  }

  #forgeState(edits: readonly { at: number; value: Odd }[]): string {
    const state: unknown = JSON.parse(JSON.stringify(this.#device.save()));
    let forged: { state: unknown } = { state };
    for (const { at, value } of edits) forged = replaced(forged, at, value);
    const before = JSON.stringify(forged.state);
    const { format, size } = this.#setup;
    const outcome = refusedOr("BAD_QUEUE_STATE", () => {
      const found = checkQueueState(forged.state, size);
      expectLawful(found, size);
      return found.format === format ? this.#start(found) : "another format";
    });
    if (JSON.stringify(forged.state) !== before) {
      throw new Violation("save-pure", "a state is changed by a look at it");
    }
    refusedOr("BAD_QUEUE_STATE", () => {
      const copy = memoryOver(this.#bytes.slice().buffer);
      this.#queue(copy, forged.state as QueueState);
      return "";
    });
    return outcome;
  }

  #forgeWords(available: number, used: number, usedIdx: number): string {
    const { format, size } = this.#setup;
    return refusedOr("BAD_QUEUE_STATE", () => {
      const state = decodeQueueStateWords(format, { available, used }, usedIdx);
      const words = encodeQueueStateWords(state);
      const base = encodeVringBase(state);
      const same = words.available === available &&
        words.used === (format === "split" ? 0 : used) &&
        JSON.stringify(decodeVringBase(format, base, usedIdx)) ===
          JSON.stringify(state);
      if (!same) throw new Violation("codec", "words do not come back");
      expectLawful(checkQueueState(state, size), size);
      return this.#start(state);
    });
  }

  #forgeRegion(
    edits: readonly { at: number; value: number }[],
    ring: readonly { at: number; value: number }[],
  ): string {
    const region = this.#region.slice();
    const bytes = this.#bytes.slice();
    for (const { at, value } of edits) region[at % region.length] = value;
    const most = bytes.length - DATA_BYTES;
    for (const { at, value } of ring) bytes[at % most] = value;
    const memory = memoryOver(bytes.buffer);
    return refusedOr(null, () => {
      const opened = this.#open(region, memory);
      if (!opened.initialized) return "not set up";
      const state = opened.recover();
      expectLawful(state, this.#setup.size);
      const again = JSON.stringify(this.#open(region, memory).recover());
      if (again !== JSON.stringify(state)) {
        throw new Violation("save-pure", "a repair that is repeated differs");
      }
      const queue = new TrackedQueue(this.#queue(memory, state), opened);
      return this.#drive(queue, memory);
    });
  }

  #forgePlace(size: number, area: number, address: number): string {
    const { format } = this.#setup;
    const areas = ["descriptorArea", "driverArea", "deviceArea"] as const;
    const config = { ...this.#config, size };
    if (area < 3) config[areas[area]!] = address;
    const memory = memoryOver(this.#bytes.slice().buffer);
    const tables = { indirect: { address, entries: TABLE_ENTRIES } };
    const options = area === 3 && config.indirect ? tables : {};
    let made = 0;
    const attempts: (() => unknown)[] = [
      () => readUsedIdx(memory, config),
      () => openInflight(format, this.#region, memory, config),
      () => this.#queue(memory, undefined, config),
      () =>
        format === "split"
          ? new SplitDriver(memory, config, options)
          : new PackedDriver(memory, config, options),
      () => {
        const state = this.#device.save();
        return state.inFlight.length === 0 ||
          rewindInFlight(memory, config, state);
      },
      () => this.#queue(memory).rebind(new GuestMemory([])),
    ];
    for (const attempt of attempts) {
      try {
        attempt();
        made++;
      } catch (error) {
        // A region that is too short for such a queue is the caller's mistake.
        if (error instanceof RangeError) continue;
        if (
          !(error instanceof RingError) ||
          (error.code !== "BAD_QUEUE_SIZE" &&
            error.code !== "BAD_QUEUE_ADDRESS")
        ) throw error;
      }
    }
    return `${made} of ${attempts.length} were taken`;
  }

  #forgeMemory(edits: readonly { at: number; key: number; value: number }[]) {
    const buffer = new ArrayBuffer(1024);
    const keys = ["guestAddress", "size", "byteOffset", "hostAddress"] as const;
    const regions = [0, 1, 2].map((i) => ({
      guestAddress: 0x1000 * i,
      size: 256,
      byteOffset: 256 * i,
      hostAddress: 0,
      buffer,
    }));
    for (const { at, key, value } of edits) {
      regions[at % 3]![keys[key % 4]!] = value;
    }
    let memory: GuestMemory;
    try {
      memory = new GuestMemory(regions);
    } catch (error) {
      if (error instanceof TypeError || error instanceof RangeError) {
        return "refused";
      }
      throw error;
    }
    for (const { guestAddress, size } of regions) {
      for (
        const address of [guestAddress - 1, guestAddress, guestAddress + size]
      ) {
        const inside = regions.findIndex((region) =>
          address >= region.guestAddress &&
          address < region.guestAddress + region.size
        );
        const at = memory.locate(address);
        const found = at < 0 ? -1 : memory.regions[at]!.guestAddress;
        const expected = inside < 0 ? -1 : regions[inside]!.guestAddress;
        if (found !== expected) {
          throw new Violation("inside", `${address} is found at ${found}`);
        }
        const bytes = refusedOr(
          "BAD_ADDRESS",
          () => `${memory.bytes(address, 1).length}`,
        );
        if ((bytes === "1") !== (inside >= 0)) {
          throw new Violation("inside", `bytes(${address}, 1) is ${bytes}`);
        }
      }
    }
    return "taken";
  }

  /** A queue from a state that was made up, over memory of its own. */
  #start(state: QueueState): string {
    const memory = memoryOver(this.#bytes.slice().buffer);
    return this.#drive(this.#queue(memory, state), memory);
  }

  /** Takes all buffers that there seem to be, and gives them back or completes them. */
  #drive(queue: DeviceQueue, memory: GuestMemory): string {
    const { size } = this.#setup;
    const chain = new Chain(memory);
    const tokens: number[] = [];
    try {
      queue.armKicks();
      while (queue.pop(chain)) {
        tokens.push(chain.token);
        if (tokens.length > size) {
          throw new Violation(
            "bounded steps",
            `${tokens.length} are in flight`,
          );
        }
        const total = memory.regions[0]!.size;
        for (let i = 0; i < chain.count; i++) {
          if (chain.offset[i]! + chain.length[i]! > total) {
            throw new Violation("inside", "a segment lies outside of memory");
          }
        }
      }
      if (new Set(tokens).size !== tokens.length) {
        throw new Violation("exactly-once", "a buffer is handed out twice");
      }
      queue.rebind(memory);
      if (tokens.length > 1) queue.unpop(tokens.pop()!);
      for (const token of tokens) queue.push(token, 0);
      queue.publish();
      queue.needsInterrupt();
      expectLawful(queue.save(), size);
    } catch (error) {
      if (!(error instanceof RingError)) throw error;
      return error.code;
    }
    return `${tokens.length} buffers`;
  }

  #queue(
    memory: GuestMemory,
    state?: QueueState,
    config: QueueConfig = this.#config,
  ): SplitDevice | PackedDevice {
    return this.#setup.format === "split"
      ? new SplitDevice(memory, config, state)
      : new PackedDevice(memory, config, state);
  }

  #open(bytes: Uint8Array, memory: GuestMemory): InflightRegion {
    return openInflight(this.#setup.format, bytes, memory, this.#config);
  }
}

function memoryOver(buffer: ArrayBuffer): GuestMemory {
  const size = buffer.byteLength;
  return new GuestMemory([{ guestAddress: START, size, buffer }]);
}

/** What `body` returns, or the code of the error by which it refuses; `code` is the only one, unless null. */
function refusedOr(code: string | null, body: () => string): string {
  try {
    return body();
  } catch (error) {
    if (!(error instanceof RingError)) throw error;
    if (code !== null && error.code !== code) throw error;
    return error.code;
  }
}

type Slot = { owner: Record<string, unknown>; key: string };

/** Every place of a value, from the outside in. */
function slotsOf(owner: Record<string, unknown>, into: Slot[] = []): Slot[] {
  for (const [key, value] of Object.entries(owner)) {
    into.push({ owner, key });
    if (typeof value === "object" && value !== null) {
      slotsOf(value as Record<string, unknown>, into);
    }
  }
  return into;
}

function replaced(
  forged: { state: unknown },
  at: number,
  value: Odd,
): { state: unknown } {
  const slots = slotsOf(forged);
  const { owner, key } = slots[at % slots.length]!;
  // The same value may come twice.
  owner[key] = structuredClone(value);
  return forged;
}

/** Whether a queue of `size` can have been in a state: the rules of `checkQueueState()`, in other words. */
function expectLawful(state: QueueState, size: number): void {
  const { format, lastAvailIdx, usedIdx, inFlight } = state;
  const below = format === "split" ? 0x1_0000 : size;
  const ids = new Set(inFlight.map(({ id }) => id));
  let ahead = lastAvailIdx - usedIdx;
  if (state.format === "split") ahead = (ahead + 0x1_0000) % 0x1_0000;
  else if (state.lastAvailWrapCounter !== state.usedWrapCounter) ahead += size;
  let held = 0;
  let fine = isBelow(lastAvailIdx, below) && isBelow(usedIdx, below) &&
    ids.size === inFlight.length;
  for (const { id, slots, descriptors } of inFlight) {
    held += format === "split" ? 1 : slots;
    const readable = descriptors.findIndex(({ writable }) => writable);
    const behind = readable < 0 ? [] : descriptors.slice(readable);
    fine &&= isBelow(id, format === "split" ? size : 0x1_0000) &&
      isBelow(slots - 1, size) &&
      behind.every(({ writable }) => writable) &&
      descriptors.every(({ addr, len }) =>
        isBelow(addr, 2 ** 53) && isBelow(len, 2 ** 32)
      );
  }
  if (!fine || ahead !== held || held > size) {
    throw new Violation(
      "lawful states",
      `a queue of ${size} is in ${JSON.stringify(state)}`,
    );
  }
}

function isBelow(value: number, limit: number): boolean {
  return Number.isInteger(value) && value >= 0 && value < limit;
}

const odd: fc.Arbitrary<Odd> = fc.oneof(
  fc.nat(9),
  fc.constantFrom<Odd>(
    -1,
    1.5,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    2 ** 32,
    2 ** 53,
    null,
    true,
    false,
    "split",
    "packed",
    "1",
    {},
    [],
  ),
  fc.constantFrom(
    { id: 1, slots: 1, descriptors: [{ addr: 0, len: 1, writable: false }] },
    [{ id: 0, slots: 1, descriptors: [] }, {
      id: 0,
      slots: 1,
      descriptors: [],
    }],
    new Array(40).fill({ id: 0, slots: 1, descriptors: [] }),
  ),
);
const word = fc.oneof(
  fc.nat(9),
  fc.constantFrom(0x7fff, 0x8000, 0x8001, 0x8003, 0xffff, 0x1_0000, -1, 0.5),
);
const count = fc.nat(0xfff);
const byte = fc.oneof(fc.nat(9), fc.nat(255));
const traffic = fc.record({
  do: fc.constant("traffic" as const),
  count: fc.nat(5),
  kept: fc.nat(4),
  segments: fc.integer({ min: 1, max: 3 }),
});

/** Whatever is made up of what a queue starts from. */
export const HOSTILE_STATE_PROPERTY: NamedProperty = scriptProperty<
  Setup,
  ForgeStep
>({
  name: "queue/hostile-state",
  setups: fc.oneof(
    fc.record({
      format: fc.constant("split" as const),
      size: fc.constantFrom(1, 2, 4, 8),
      indirect: fc.boolean(),
    }),
    fc.record({
      format: fc.constant("packed" as const),
      size: fc.constantFrom(1, 2, 3, 5, 8),
      indirect: fc.boolean(),
    }),
  ),
  steps: [
    traffic,
    traffic,
    fc.record({
      do: fc.constant("state" as const),
      edits: fc.array(fc.record({ at: count, value: odd }), { maxLength: 3 }),
    }),
    fc.record({
      do: fc.constant("words" as const),
      available: word,
      used: word,
      usedIdx: word,
    }),
    fc.record({
      do: fc.constant("region" as const),
      edits: fc.array(fc.record({ at: count, value: byte }), { maxLength: 4 }),
    }),
    fc.record({ do: fc.constant("ring" as const), at: count, value: byte }),
    fc.record({
      do: fc.constant("place" as const),
      size: fc.constantFrom(0, 1, 2, 3, 4, 8, 16, 1.5, -1, 32768, 65536),
      area: fc.nat(4),
      address: fc.constantFrom(
        START,
        START + 8,
        START + 1,
        START + 64,
        -16,
        0.5,
        2 ** 40,
        2 ** 54,
      ),
    }),
    fc.record({
      do: fc.constant("memory" as const),
      edits: fc.array(
        fc.record({
          at: fc.nat(2),
          key: fc.nat(3),
          value: fc.constantFrom(
            0,
            16,
            240,
            256,
            0x1000,
            0x1100,
            8,
            -16,
            0.5,
            1008,
            2 ** 53,
            2 ** 53 - 16,
          ),
        }),
        { maxLength: 3 },
      ),
    }),
  ],
  maxSteps: 24,
  make: (setup) => new ForgeWorld(setup),
});
