/**
 * What the tests of this folder share: a device model, ports that count descriptors, a front-end.
 * Nothing else imports it.
 *
 * @module
 */
import { Chain } from "../../ring/chain.ts";
import { GuestMemory } from "../../ring/memory.ts";
import { PackedDriver } from "../../ring/packed_driver.ts";
import {
  BufferList,
  type DeviceQueue,
  type DriverQueue,
  type RingFormat,
} from "../../ring/queue.ts";
import { SplitDriver } from "../../ring/split_driver.ts";
import { VIRTIO_F_RING_PACKED } from "../../ring/virtio_ring.ts";
import { Diagnostics } from "../diagnostics.ts";
import {
  type DeviceModel,
  featureMask,
  type RingChoice,
  VirtioDevice,
} from "../virtio_device.ts";
import * as vu from "./constants.ts";
import { VhostUserError } from "./errors.ts";
import {
  encodeMemoryRegion,
  encodeMemoryTable,
  encodeRequest,
  encodeU64,
  encodeVringAddresses,
  encodeVringState,
  type MemoryRegionDescription,
  parseMessage,
  parseU64,
  parseVringState,
  type VhostUserMessage,
} from "./message.ts";
import { MessageAssembler } from "./message_assembler.ts";
import type { MappedMemory, SessionPorts } from "./ports.ts";
import { VhostUserSession, type VhostUserSessionOptions } from "./session.ts";

function same(actual: unknown, expected: unknown, what = "a value"): void {
  if (JSON.stringify(actual) === JSON.stringify(expected)) return;
  throw new Error(
    `${what}: ${JSON.stringify(actual)}, not ${JSON.stringify(expected)}`,
  );
}

/** Writes the sum of a buffer's readable bytes into its writable ones, and notes what it is told. */
export class SumModel implements DeviceModel {
  readonly deviceId = 19;
  readonly features = 0n;
  readonly maxQueueSizes: readonly number[] = [256, 256, 256];
  readonly config: Uint8Array = new Uint8Array([3, 0, 0, 0, 0, 0, 0, 0]);
  readonly events: string[] = [];
  served = 0;
  /** Keeps what it fetches, also when it should give it back. */
  keep = false;
  /** Tokens of what it keeps. */
  readonly kept: number[] = [];
  readonly queues: (DeviceQueue | null)[] = [null, null, null];
  host: VirtioDevice | null = null;

  configSpace(): Uint8Array {
    return this.config;
  }
  featuresAccepted(features: bigint): void {
    this.events.push(`features ${features.toString(16)}`);
  }
  queueStarted(index: number, queue: DeviceQueue, fresh: boolean): void {
    this.queues[index] = queue;
    this.events.push(`start ${index}${fresh ? " fresh" : ""}`);
  }
  queueStopped(index: number): void {
    this.queues[index] = null;
    this.events.push(`stop ${index}`);
  }
  memoryChanging(): void {}
  memoryChanged(_memory: GuestMemory): void {}
  reset(): void {
    this.events.push("reset");
  }

  queueKicked(index: number): void {
    const queue = this.queues[index]!;
    const device = this.host!;
    const chain = new Chain(device.memory);
    chain.memory = device.memory;
    try {
      while (queue.pop(chain)) {
        this.served++;
        if (this.keep) {
          this.kept.push(chain.token);
          continue;
        }
        let sum = 0;
        const { regions } = device.memory;
        for (let i = 0; i < chain.readable; i++) {
          const from = chain.offset[i]!;
          const bytes = regions[chain.region[i]!]!.bytes;
          for (const b of bytes.subarray(from, from + chain.length[i]!)) {
            sum = (sum + b) & 0xff;
          }
        }
        let written = 0;
        for (let i = chain.readable; i < chain.count; i++) {
          const from = chain.offset[i]!;
          const bytes = regions[chain.region[i]!]!.bytes;
          bytes.fill(sum, from, from + chain.length[i]!);
          written += chain.length[i]!;
        }
        queue.push(chain.token, written);
      }
    } catch (error) {
      device.breakQueue(index, error as never);
      return;
    }
    if (queue.publish() && queue.needsInterrupt()) device.interrupt(index);
    queue.armKicks();
  }
}

/** Ports that hand out buffers and check that each descriptor is used once. */
export class FakePorts implements SessionPorts {
  /** What each descriptor names, for `map`. */
  readonly files: Map<number, ArrayBuffer> = new Map();
  /** Descriptors that were handed in and where they went. */
  readonly open: Set<number> = new Set();
  readonly held: Map<string, number> = new Map();
  mapped = 0;
  readonly calls: number[] = [0, 0, 0];
  readonly errors: number[] = [0, 0, 0];
  readonly replies: Uint8Array[] = [];
  /** Files that went with replies. */
  readonly replyFiles: ArrayBuffer[] = [];
  readonly backendRequests: Uint8Array[] = [];
  failMap = false;
  readonly log: string[] = [];
  #next = 100;

  /** A new descriptor on its way to the session. */
  newFd(file: ArrayBuffer | null = null): number {
    const fd = this.#next++;
    this.open.add(fd);
    if (file !== null) this.files.set(fd, file);
    return fd;
  }
  #consume(fd: number): void {
    if (!this.open.delete(fd)) {
      throw new Error(`descriptor ${fd} was handed over twice`);
    }
  }
  #hold(name: string, fd: number): void {
    const old = this.held.get(name);
    if (old !== undefined) this.held.delete(name);
    if (fd === -1) return;
    this.#consume(fd);
    this.held.set(name, fd);
  }

  map(fd: number, size: number, offset: number): MappedMemory {
    this.#consume(fd);
    const file = this.files.get(fd);
    if (this.failMap || file === undefined || offset + size > file.byteLength) {
      throw new VhostUserError("MAP_FAILED", "Memory access", "no such file");
    }
    this.mapped++;
    this.log.push(`map ${size}@${offset}`);
    // Tests share one buffer between both sides, so a region begins where its file does.
    if (offset !== 0) {
      throw new Error("the fixture maps files from their beginning on");
    }
    return this.#mapping(file);
  }
  #mapping(buffer: ArrayBuffer): MappedMemory {
    let released = false;
    return {
      buffer,
      hostAddress: 0,
      release: () => {
        if (released) throw new Error("a mapping was released twice");
        released = true;
        this.mapped--;
        this.log.push("release");
      },
    };
  }
  allocate(size: number): { memory: MappedMemory; fd: number } {
    if (this.failMap) {
      throw new VhostUserError("MAP_FAILED", "Memory access", "no memory");
    }
    const file = new ArrayBuffer(size);
    this.mapped++;
    return { memory: this.#mapping(file), fd: this.newFd(file) };
  }
  setKick(index: number, fd: number): void {
    this.#hold(`kick ${index}`, fd);
  }
  setCall(index: number, fd: number): void {
    this.#hold(`call ${index}`, fd);
  }
  setErr(index: number, fd: number): void {
    this.#hold(`err ${index}`, fd);
  }
  setBackendChannel(fd: number): void {
    this.#hold("channel", fd);
  }
  call(index: number): void {
    this.calls[index] = this.calls[index]! + 1;
  }
  signalErr(index: number): void {
    this.errors[index] = this.errors[index]! + 1;
  }
  sendBackendRequest(message: Uint8Array): boolean {
    this.backendRequests.push(message);
    return this.held.has("channel");
  }
  reply(message: Uint8Array, fds: readonly number[]): void {
    this.replies.push(message);
    for (const fd of fds) {
      if (!this.open.has(fd)) throw new Error(`descriptor ${fd} is closed`);
      this.replyFiles.push(this.files.get(fd)!);
    }
  }
  closeFd(fd: number): void {
    this.#consume(fd);
  }
}

export const REGION_BYTES = 0x40000;
export const GUEST_BASE = 0x10_0000;
export const USER_BASE = 0x7f00_0000_0000;
/** Every protocol feature that a session offers. */
export const ALL_PROTOCOL_FEATURES: bigint = [
  vu.VHOST_USER_PROTOCOL_F_MQ,
  vu.VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  vu.VHOST_USER_PROTOCOL_F_REPLY_ACK,
  vu.VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  vu.VHOST_USER_PROTOCOL_F_CONFIG,
  vu.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  vu.VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  vu.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  vu.VHOST_USER_PROTOCOL_F_STATUS,
].reduce((bits, bit) => bits | featureMask(bit), 0n);
/** The same without the status. */
export const PROTOCOL_FEATURES: bigint = ALL_PROTOCOL_FEATURES &
  ~featureMask(vu.VHOST_USER_PROTOCOL_F_STATUS);

export type RigOptions = VhostUserSessionOptions & {
  ring?: RingChoice;
  /** The guest's memory, from a rig before. */
  memory?: ArrayBuffer;
};

/** A device, its session, and a front-end that talks to it in bytes. */
export class Rig {
  readonly model: SumModel = new SumModel();
  readonly ports: FakePorts = new FakePorts();
  readonly lines: string[] = [];
  readonly device: VirtioDevice;
  readonly session: VhostUserSession;
  readonly assembler: MessageAssembler = new MessageAssembler();
  readonly memory: ArrayBuffer;
  readonly guest: GuestMemory;

  constructor(options: RigOptions = {}) {
    this.device = new VirtioDevice(this.model, {
      ring: options.ring ?? "auto",
      diagnostics: new Diagnostics((_level, text) => this.lines.push(text)),
    });
    this.memory = options.memory ?? new ArrayBuffer(REGION_BYTES);
    this.guest = new GuestMemory([
      { guestAddress: GUEST_BASE, size: REGION_BYTES, buffer: this.memory },
    ]);
    this.model.host = this.device;
    this.session = new VhostUserSession(this.device, this.ports, options);
  }

  /** Sends bytes with descriptors; returns the replies. */
  sendBytes(bytes: Uint8Array, fds: readonly number[] = []): Uint8Array[] {
    this.ports.replies.length = 0;
    this.assembler.push(bytes, fds);
    for (
      let message: VhostUserMessage | null;
      (message = this.assembler.next()) !== null;
    ) this.session.receive(message);
    return [...this.ports.replies];
  }
  /** Sends a request without asking for a reply. */
  send(
    request: number,
    payload?: Uint8Array,
    fds: readonly number[] = [],
  ): Uint8Array[] {
    return this.sendBytes(encodeRequest(request, payload), fds);
  }
  /** Sends a request with NEED_REPLY and returns the answer. */
  ask(
    request: number,
    payload?: Uint8Array,
    fds: readonly number[] = [],
  ): number {
    const replies = this.sendBytes(encodeRequest(request, payload, true), fds);
    same(replies.length, 1, `one reply to ${request}`);
    const reply = parseMessage(replies[0]!);
    same(reply.request, request);
    return parseU64(reply.payload);
  }
  /** The same, which has to succeed. */
  ok(request: number, payload?: Uint8Array, fds: readonly number[] = []): void {
    same(this.ask(request, payload, fds), 0, this.lines.join("\n"));
  }
  /** Sends a request that has a reply of its own, and returns its payload. */
  get(request: number, payload?: Uint8Array): Uint8Array {
    const replies = this.send(request, payload);
    same(replies.length, 1);
    return parseMessage(replies[0]!).payload;
  }

  region(): MemoryRegionDescription {
    return {
      guestAddress: GUEST_BASE,
      size: REGION_BYTES,
      userAddress: USER_BASE,
      mmapOffset: 0,
    };
  }
  /** Features that this rig's driver accepts. */
  featureBits(format: RingFormat): bigint {
    let bits = this.device.offeredFeatures |
      featureMask(vu.VHOST_USER_F_PROTOCOL_FEATURES);
    if (format === "split") bits &= ~featureMask(VIRTIO_F_RING_PACKED);
    return bits;
  }
  /** Negotiates and hands over memory. */
  negotiate(format: RingFormat, protocol: bigint = PROTOCOL_FEATURES): void {
    this.send(vu.VHOST_USER_SET_PROTOCOL_FEATURES, encodeU64(protocol));
    this.ok(vu.VHOST_USER_SET_OWNER);
    this.ok(
      vu.VHOST_USER_SET_FEATURES,
      encodeU64(this.featureBits(format)),
    );
    this.ok(
      vu.VHOST_USER_SET_MEM_TABLE,
      encodeMemoryTable([this.region()]),
      [this.ports.newFd(this.memory)],
    );
  }
  addRegion(region: MemoryRegionDescription, file: ArrayBuffer): number {
    return this.ask(
      vu.VHOST_USER_ADD_MEM_REG,
      encodeMemoryRegion(region),
      [this.ports.newFd(file)],
    );
  }
  state(index: number, num: number): Uint8Array {
    return encodeVringState({ index, num });
  }
  addresses(index: number, size: number): Uint8Array {
    const { descriptorArea, driverArea, deviceArea } = ringAt(index, size);
    const user = USER_BASE - GUEST_BASE;
    return encodeVringAddresses({
      index,
      flags: 0,
      descriptor: descriptorArea + user,
      available: driverArea + user,
      used: deviceArea + user,
      log: 0xffff_ffff_ffff_ffffn,
    });
  }
  /** Starts a ring as QEMU does, and enables it. */
  startRing(index: number, size: number, base: number): void {
    this.ok(vu.VHOST_USER_SET_VRING_NUM, this.state(index, size));
    this.ok(vu.VHOST_USER_SET_VRING_BASE, this.state(index, base));
    this.ok(vu.VHOST_USER_SET_VRING_ADDR, this.addresses(index, size));
    this.ok(
      vu.VHOST_USER_SET_VRING_KICK,
      encodeU64(index),
      [this.ports.newFd()],
    );
    this.ok(
      vu.VHOST_USER_SET_VRING_CALL,
      encodeU64(index),
      [this.ports.newFd()],
    );
    this.enable(index, 1);
  }
  enable(index: number, value: number): void {
    this.ok(vu.VHOST_USER_SET_VRING_ENABLE, this.state(index, value));
  }
  getBase(index: number): number {
    return parseVringState(
      this.get(vu.VHOST_USER_GET_VRING_BASE, this.state(index, 0)),
    ).num;
  }
  driver(index: number, size: number, format: RingFormat): DriverQueue {
    const config = {
      ...ringAt(index, size),
      size,
      eventIdx: true,
      indirect: true,
    };
    return format === "split"
      ? new SplitDriver(this.guest, config)
      : new PackedDriver(this.guest, config);
  }
  /** Sends `count` buffers through a ring, one by one, and checks what comes back. */
  roundTrips(driver: DriverQueue, index: number, count: number): void {
    const list = new BufferList();
    for (let i = 0; i < count; i++) {
      this.offer(driver, list, i & 0xff);
      this.session.kick(index);
      this.collect(driver, i & 0xff);
    }
  }
  /** Makes one buffer available: two readable bytes that add up to `value`, one to write. */
  offer(driver: DriverQueue, list: BufferList, value: number): void {
    const bytes = this.guest.bytes(GUEST_BASE + 0x30000, 16);
    bytes[0] = value;
    bytes[1] = 0;
    bytes[8] = ~value;
    list.clear()
      .addReadable(GUEST_BASE + 0x30000, 2)
      .addWritable(GUEST_BASE + 0x30008, 1);
    same(driver.add(list) >= 0, true);
    driver.publish();
  }
  collect(driver: DriverQueue, value: number): void {
    same(driver.reclaim() >= 0, true, "the buffer was used");
    same(driver.usedLength, 1);
    same(this.guest.bytes(GUEST_BASE + 0x30008, 1)[0], value);
  }
  /** Ends the session and checks that nothing is left over. */
  finish(): void {
    for (const fd of this.assembler.close()) this.ports.closeFd(fd);
    this.session.close();
    same([...this.ports.open], [], "no descriptor leaks");
    same([...this.ports.held.keys()], [], "all were given back");
    same(this.ports.mapped, 0, "all mappings were released");
  }
}

/** Where the fixture puts ring `index`. */
export function ringAt(
  index: number,
  size: number,
): {
  size: number;
  descriptorArea: number;
  driverArea: number;
  deviceArea: number;
} {
  const base = GUEST_BASE + index * 0x4000;
  return {
    size,
    descriptorArea: base,
    driverArea: base + 0x2000,
    deviceArea: base + 0x3000,
  };
}

/** Runs `test` with a rig and checks that nothing is left over. */
export function withRig(test: (rig: Rig) => void, options?: RigOptions): void {
  const rig = new Rig(options);
  test(rig);
  rig.finish();
}
