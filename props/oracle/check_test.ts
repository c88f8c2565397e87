import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { Chain } from "../../ring/chain.ts";
import type { GuestMemory } from "../../ring/memory.ts";
import { PackedDevice } from "../../ring/packed_device.ts";
import { PackedDriver } from "../../ring/packed_driver.ts";
import {
  BufferList,
  type DeviceQueue,
  type DriverQueue,
  type QueueConfig,
  type RingFormat,
} from "../../ring/queue.ts";
import { SplitDevice } from "../../ring/split_device.ts";
import { SplitDriver } from "../../ring/split_driver.ts";
import { checkDevice, checkDriver, describeFinding } from "./check.ts";
import type {
  DeviceUnderTest,
  DriverUnderTest,
  FetchedBuffer,
  Segment,
  UsedBuffer,
} from "./sides.ts";

const FORMATS: readonly RingFormat[] = ["split", "packed"];
const SEED = 20261122;

/** Ringside's own device as a foreign one. */
class OwnDevice implements DeviceUnderTest {
  readonly queue: DeviceQueue;
  readonly #memory: GuestMemory;
  readonly #chain: Chain;

  constructor(format: RingFormat, memory: GuestMemory, config: QueueConfig) {
    this.queue = format === "split"
      ? new SplitDevice(memory, config)
      : new PackedDevice(memory, config);
    this.#memory = memory;
    this.#chain = new Chain(memory);
  }

  pop(): FetchedBuffer | null {
    const chain = this.#chain;
    if (!this.queue.pop(chain)) return null;
    const segments: Segment[] = [];
    for (let i = 0; i < chain.count; i++) {
      segments.push({
        address: this.#memory.regions[chain.region[i]!]!.guestAddress +
          chain.offset[i]!,
        length: chain.length[i]!,
        writable: i >= chain.readable,
      });
    }
    return { token: chain.token, segments };
  }
  push(token: number, written: number): void {
    this.queue.push(token, written);
  }
  publish(): void {
    this.queue.publish();
  }
  needsInterrupt(): boolean {
    return this.queue.needsInterrupt();
  }
  armKicks(): boolean {
    return this.queue.armKicks();
  }
  disarmKicks(): void {
    this.queue.disarmKicks();
  }
}

/** Ringside's own driver as a foreign one. */
class OwnDriver implements DriverUnderTest {
  readonly queue: DriverQueue;

  constructor(format: RingFormat, memory: GuestMemory, config: QueueConfig) {
    this.queue = format === "split"
      ? new SplitDriver(memory, config)
      : new PackedDriver(memory, config);
  }

  add(segments: readonly Segment[]): number {
    const list = new BufferList();
    for (const { address, length, writable } of segments) {
      if (writable) list.addWritable(address, length);
      else list.addReadable(address, length);
    }
    return this.queue.add(list);
  }
  publish(): void {
    this.queue.publish();
  }
  needsKick(): boolean {
    return this.queue.needsKick();
  }
  reclaim(): UsedBuffer | null {
    const token = this.queue.reclaim();
    return token < 0 ? null : { token, length: this.queue.usedLength };
  }
  armInterrupts(): boolean {
    return this.queue.armInterrupts();
  }
  disarmInterrupts(): void {
    this.queue.disarmInterrupts();
  }
}

/** What has only what it must have: it tells of each buffer at once, and of each notification. */
function plain(device: DeviceUnderTest): DeviceUnderTest {
  return {
    pop: () => device.pop(),
    push: (token, written) => {
      device.push(token, written);
      device.publish?.();
    },
    armKicks: () => device.armKicks(),
  };
}

function plainDriver(driver: DriverUnderTest): DriverUnderTest {
  return {
    add: (segments) => driver.add(segments),
    publish: () => driver.publish(),
    reclaim: () => driver.reclaim(),
    armInterrupts: () => driver.armInterrupts(),
  };
}

for (const format of FORMATS) {
  Deno.test(`checkDevice() finds nothing wrong with a right ${format} device`, () => {
    const options = { format, seed: SEED, runs: 100 };
    assertEquals(
      checkDevice(
        (memory, config) => new OwnDevice(format, memory, config),
        { ...options, eventIdx: true },
      ),
      null,
    );
    assertEquals(
      checkDevice(
        (memory, config) => plain(new OwnDevice(format, memory, config)),
        options,
      ),
      null,
    );
  });

  Deno.test(`checkDriver() finds nothing wrong with a right ${format} driver`, () => {
    const options = { format, seed: SEED, runs: 100 };
    assertEquals(
      checkDriver(
        (memory, config) => new OwnDriver(format, memory, config),
        { ...options, eventIdx: true },
      ),
      null,
    );
    assertEquals(
      checkDriver(
        (memory, config) => plainDriver(new OwnDriver(format, memory, config)),
        options,
      ),
      null,
    );
  });

  Deno.test(`checkDevice() and checkDriver() find a ${format} side that loses a buffer`, () => {
    class Losing extends OwnDevice {
      #count = 0;
      override push(token: number, written: number): void {
        if (++this.#count % 3 !== 0) super.push(token, written);
      }
    }
    class Keeping extends OwnDriver {
      #count = 0;
      override reclaim(): UsedBuffer | null {
        const used = super.reclaim();
        return ++this.#count % 3 === 0 ? null : used;
      }
    }
    const options = { format, seed: SEED, runs: 200, sizes: [4] };
    const findings = [
      checkDevice(
        (memory, config) => new Losing(format, memory, config),
        options,
      ),
      checkDriver(
        (memory, config) => new Keeping(format, memory, config),
        options,
      ),
    ];
    for (const finding of findings) {
      // Where another buffer comes in its place, that shows first.
      assertMatch(finding?.invariant ?? "", /^(exactly-once|use-order)$/);
    }
  });
}

Deno.test("checkDevice() leaves the classes of views alone where the order of stores is not asked for", () => {
  class Decoding extends OwnDevice {
    readonly #bytes: Uint8Array;
    constructor(memory: GuestMemory, config: QueueConfig) {
      super("split", memory, config);
      this.#bytes = new Uint8Array(memory.regions[0]!.bytes.buffer, 16, 4);
    }
    override pop(): FetchedBuffer | null {
      new TextDecoder().decode(this.#bytes);
      return super.pop();
    }
  }
  const make = (memory: GuestMemory, config: QueueConfig) =>
    new Decoding(memory, config);
  const options = { format: "split", seed: SEED, runs: 50 } as const;
  assertEquals(checkDevice(make, { ...options, storeOrder: false }), null);
  assertEquals(checkDevice(make, options)?.invariant, "no-fault");
});

Deno.test("checkDriver() sees whether an index that is stored by any of Atomics comes last", () => {
  // It stores the index once more: behind the entries, or for a moment before one.
  class Exchanging extends OwnDriver {
    readonly #avail: Uint16Array;
    readonly #first: boolean;
    #added = 0;
    #index = 0;
    constructor(memory: GuestMemory, config: QueueConfig, first: boolean) {
      super("split", memory, config);
      const { buffer, byteOffset } = memory.bytes(config.driverArea, 4);
      this.#avail = new Uint16Array(buffer, byteOffset, 2);
      this.#first = first;
    }
    override add(segments: readonly Segment[]): number {
      // Ringside's stores the entry here, so that this comes before it.
      if (this.#first) Atomics.add(this.#avail, 1, 1);
      const token = super.add(segments);
      if (this.#first) Atomics.sub(this.#avail, 1, 1);
      if (token >= 0) this.#added++;
      return token;
    }
    override publish(): void {
      super.publish();
      this.#index = (this.#index + this.#added) & 0xffff;
      this.#added = 0;
      const before = Atomics.exchange(this.#avail, 1, this.#index);
      if (before !== this.#index) throw new Error("the index is another one");
    }
  }
  const options = { format: "split", seed: SEED, runs: 100 } as const;
  const judge = (first: boolean) =>
    checkDriver(
      (memory, config) => new Exchanging(memory, config, first),
      options,
    );
  assertEquals(judge(false), null);
  assertEquals(judge(true)?.invariant, "store-order");
});

Deno.test("checkDevice() names the rule, and takes the script of a finding again", () => {
  const lying = (memory: GuestMemory, config: QueueConfig) => {
    const device = new OwnDevice("split", memory, config);
    let count = 0;
    device.push = (token, written) => {
      device.queue.push(token, written);
      // The length of the entry that was staged.
      const entry = config.deviceArea + 4 + 8 * (count++ % config.size);
      memory.bytes(entry + 4, 4).set([0xff, 0xff, 0xff, 0]);
    };
    return device;
  };
  const options = { format: "split", seed: SEED } as const;
  const finding = checkDevice(lying, options);
  assert(finding !== null);
  assertEquals(finding.rule, { code: "USED_LEN_TOO_LARGE", section: "2.7.8" });
  const text = describeFinding(finding);
  assertStringIncludes(text, "USED_LEN_TOO_LARGE: virtio 1.4, 2.7.8");
  assertStringIncludes(text, "1. driver");

  const script = JSON.parse(JSON.stringify(finding.script));
  assertEquals(checkDevice(lying, { ...options, script }), finding);
  const right = checkDevice(
    (memory, config) => new OwnDevice("split", memory, config),
    { ...options, script },
  );
  assertEquals(right, null);
});

Deno.test("checkDevice() and checkDriver() refuse VIRTIO_F_EVENT_IDX for what does not use it", () => {
  const options = { format: "split", eventIdx: true } as const;
  assertThrows(
    () =>
      checkDevice(
        (memory, config) => plain(new OwnDevice("split", memory, config)),
        options,
      ),
    TypeError,
    "Cannot check a device with VIRTIO_F_EVENT_IDX",
  );
  assertThrows(
    () =>
      checkDriver(
        (memory, config) => plainDriver(new OwnDriver("split", memory, config)),
        options,
      ),
    TypeError,
    "Cannot check a driver with VIRTIO_F_EVENT_IDX",
  );
});
