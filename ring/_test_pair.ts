import { Chain } from "./chain.ts";
import { GuestMemory } from "./memory.ts";
import { PackedDevice } from "./packed_device.ts";
import { PackedDriver } from "./packed_driver.ts";
import {
  BufferList,
  type DeviceQueue,
  type DriverQueue,
  type QueueConfig,
  type QueueState,
  type RingFormat,
} from "./queue.ts";
import { SplitDevice } from "./split_device.ts";
import { SplitDriver } from "./split_driver.ts";

/** Guest address of the descriptor area. */
export const PAIR_RING = 0x1000;
/** Guest address of the driver area. */
export const PAIR_DRIVER_AREA = 0x4000;
/** Guest address of the device area. */
export const PAIR_DEVICE_AREA = 0x5000;
/** Guest address of indirect tables. */
const TABLES = 0x8000;
const TABLE_ENTRIES = 4;
/** Guest address from which buffers are taken, 64 bytes a segment. */
export const PAIR_DATA = 0x10000;
const CELL = 64;
const CELLS = 512;
const BYTES = PAIR_DATA + CELL * CELLS;

/** Makes a device queue over the memory of a pair. */
export function newDevice(
  memory: GuestMemory,
  config: QueueConfig,
  format: RingFormat,
  state?: QueueState,
): SplitDevice | PackedDevice {
  return format === "split"
    ? new SplitDevice(memory, config, state)
    : new PackedDevice(memory, config, state);
}

/** A driver and a device of a small ring over one memory; for tests. */
export class TestPair {
  readonly format: RingFormat;
  readonly config: QueueConfig;
  readonly memory: GuestMemory;
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly driver: DriverQueue;
  readonly chain: Chain;
  device: DeviceQueue;
  #cell = 0;

  constructor(
    format: RingFormat,
    size: number,
    options: Partial<QueueConfig> = {},
  ) {
    const buffer = new ArrayBuffer(BYTES);
    this.format = format;
    this.bytes = new Uint8Array(buffer);
    this.memory = new GuestMemory([{ guestAddress: 0, size: BYTES, buffer }]);
    this.config = {
      size,
      descriptorArea: PAIR_RING,
      driverArea: PAIR_DRIVER_AREA,
      deviceArea: PAIR_DEVICE_AREA,
      ...options,
    };
    const tables = options.indirect
      ? { indirect: { address: TABLES, entries: TABLE_ENTRIES } }
      : {};
    this.driver = format === "split"
      ? new SplitDriver(this.memory, this.config, tables)
      : new PackedDriver(this.memory, this.config, tables);
    this.device = newDevice(this.memory, this.config, format);
    this.chain = new Chain(this.memory);
  }

  /** Adds a buffer of segments of its own, of `length` bytes each; its token, -1 while full. */
  add(readable: number, writable: number, length = 16): number {
    const list = new BufferList(readable + writable);
    for (let i = 0; i < readable + writable; i++) {
      const address = PAIR_DATA + (this.#cell + i) % CELLS * CELL;
      if (i < readable) list.addReadable(address, length);
      else list.addWritable(address, length);
    }
    const token = this.driver.add(list);
    if (token >= 0) this.#cell += readable + writable;
    return token;
  }

  /** Where the device stands after a restore of `state`, which goes through JSON. */
  restore(state: QueueState): void {
    const copy = JSON.parse(JSON.stringify(state)) as QueueState;
    this.device = newDevice(this.memory, this.config, this.format, copy);
  }

  /** Pops one buffer: its token, or -1. */
  pop(): number {
    return this.device.pop(this.chain) ? this.chain.token : -1;
  }

  /** What the last pop() has filled the chain with, in words. */
  seen(): string {
    const { chain } = this;
    let text = `${chain.token}:`;
    for (let i = 0; i < chain.count; i++) {
      text += ` ${i < chain.readable ? "r" : "w"}${chain.offset[i]}+${
        chain.length[i]
      }`;
    }
    return text;
  }
}
