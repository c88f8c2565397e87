import type { Chain } from "../../ring/chain.ts";
import type { GuestMemory } from "../../ring/memory.ts";
import type {
  BufferList,
  DeviceQueue,
  DriverQueue,
  QueueConfig,
  QueueState,
  RingFormat,
} from "../../ring/queue.ts";
import type { DeviceUnderTest, DriverUnderTest, Segment } from "./sides.ts";

/** A device under test, as what the model judges. What is not its own it does not do: it is never restored. */
export class ForeignDevice implements DeviceQueue {
  readonly format: RingFormat;
  readonly size: number;
  readonly #device: DeviceUnderTest;
  readonly #memory: GuestMemory;
  readonly #fetched: Set<number> = new Set();
  #staged: { token: number; written: number }[] = [];
  #news = false;

  constructor(
    format: RingFormat,
    device: DeviceUnderTest,
    memory: GuestMemory,
    { size }: QueueConfig,
  ) {
    this.format = format;
    this.size = size;
    this.#device = device;
    this.#memory = memory;
  }

  get inFlight(): number {
    return this.#fetched.size;
  }

  get usedPosition(): number {
    return notItsOwn("tell where it stands");
  }

  pop(chain: Chain): boolean {
    const buffer = this.#device.pop();
    if (buffer === null) return false;
    const { token, segments } = buffer;
    chain.memory = this.#memory;
    chain.clear();
    chain.token = token;
    this.#fetched.add(token);
    for (const { address, length, writable } of segments) {
      if (!chain.append(address, length, writable)) {
        throw new Error(
          `the device fetches a segment of ${length} bytes at 0x${
            address.toString(16)
          }, which is outside of memory`,
        );
      }
    }
    return true;
  }

  unpop(): void {
    notItsOwn("give a buffer back");
  }

  push(token: number, written: number): void {
    // The judge completes buffers twice, to see that it is refused: that is a device's own affair.
    if (!this.#fetched.delete(token)) {
      throw new RangeError(`Cannot push token ${token}: it is not in flight`);
    }
    this.#staged.push({ token, written });
    if (this.#device.publish !== undefined) this.#device.push(token, written);
  }

  publish(): boolean {
    const staged = this.#staged;
    if (staged.length === 0) return false;
    this.#staged = [];
    this.#news = true;
    if (this.#device.publish !== undefined) this.#device.publish();
    else {
      for (const { token, written } of staged) {
        this.#device.push(token, written);
      }
    }
    return true;
  }

  needsInterrupt(): boolean {
    const news = this.#news;
    this.#news = false;
    return this.#device.needsInterrupt?.() ?? news;
  }

  armKicks(): boolean {
    return this.#device.armKicks();
  }

  disarmKicks(): void {
    this.#device.disarmKicks?.();
  }

  save(): QueueState {
    return notItsOwn("be saved");
  }

  rebind(): void {
    notItsOwn("get another memory");
  }
}

/** A driver under test, as what the model judges. */
export class ForeignDriver implements DriverQueue {
  readonly format: RingFormat;
  readonly size: number;
  free: number;
  usedLength = 0;
  readonly #driver: DriverUnderTest;
  // Descriptors by token.
  readonly #slots: Map<number, number> = new Map();
  #staged = false;
  #news = false;

  constructor(
    format: RingFormat,
    driver: DriverUnderTest,
    { size }: QueueConfig,
  ) {
    this.format = format;
    this.size = size;
    this.free = size;
    this.#driver = driver;
  }

  get inFlight(): number {
    return this.#slots.size;
  }

  add(buffers: BufferList): number {
    const { count, readable, address, length } = buffers;
    const segments: Segment[] = [];
    for (let i = 0; i < count; i++) {
      segments.push({
        address: address[i]!,
        length: length[i]!,
        writable: i >= readable,
      });
    }
    const token = this.#driver.add(segments);
    if (token < 0) return -1;
    this.#slots.set(token, count);
    this.free -= count;
    this.#staged = true;
    return token;
  }

  publish(): boolean {
    const staged = this.#staged;
    this.#staged = false;
    if (staged) this.#news = true;
    this.#driver.publish();
    return staged;
  }

  needsKick(): boolean {
    const news = this.#news;
    this.#news = false;
    return this.#driver.needsKick?.() ?? news;
  }

  notificationData(): number {
    return notItsOwn("tell where it stands");
  }

  reclaim(): number {
    const used = this.#driver.reclaim();
    if (used === null) return -1;
    this.free += this.#slots.get(used.token) ?? 0;
    this.#slots.delete(used.token);
    this.usedLength = used.length;
    return used.token;
  }

  armInterrupts(): boolean {
    return this.#driver.armInterrupts();
  }

  disarmInterrupts(): void {
    this.#driver.disarmInterrupts?.();
  }
}

function notItsOwn(what: string): never {
  throw new TypeError(
    `Cannot ${what}: this side of the queue is a foreign one`,
  );
}
