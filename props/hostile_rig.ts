/**
 * A whole device over memory that a hostile guest owns: what {@link HostileRig} checks after each call of the device, and
 * a healthy connection beside what the guest spoils.
 *
 * @module
 */

import {
  VHOST_USER_ADD_MEM_REG,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_SET_FEATURES,
  VHOST_USER_SET_MEM_TABLE,
  VHOST_USER_SET_OWNER,
  VHOST_USER_SET_PROTOCOL_FEATURES,
  VHOST_USER_SET_VRING_ADDR,
  VHOST_USER_SET_VRING_BASE,
  VHOST_USER_SET_VRING_CALL,
  VHOST_USER_SET_VRING_ENABLE,
  VHOST_USER_SET_VRING_ERR,
  VHOST_USER_SET_VRING_KICK,
  VHOST_USER_SET_VRING_NUM,
} from "../device/vhost_user/constants.ts";
import { VhostUserError } from "../device/vhost_user/errors.ts";
import {
  encodeMemoryRegion,
  encodeMemoryTable,
  encodeRequest,
  encodeU64,
  encodeVringAddresses,
  encodeVringState,
  type MemoryRegionDescription,
} from "../device/vhost_user/message.ts";
import { MessageAssembler } from "../device/vhost_user/message_assembler.ts";
import type { SessionPorts } from "../device/vhost_user/ports.ts";
import { VhostUserSession } from "../device/vhost_user/session.ts";
import {
  type DeviceModel,
  featureMask,
  VIRTIO_CONFIG_S_NEEDS_RESET,
  VirtioDevice,
} from "../device/virtio_device.ts";
import { PACKED_INITIAL_BASE } from "../device/ring_position.ts";
import { VsockDevice } from "../device/vsock/device.ts";
import { type LoopbackConn, LoopbackHost } from "../device/vsock/loopback.ts";
import { GuestMemory } from "../ring/memory.ts";
import type { QueueConfig, RingFormat } from "../ring/queue.ts";
import {
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
} from "../ring/virtio_ring.ts";
import { layOutQueue, makeDriverQueue } from "./guest/driver_queue.ts";
import type { GuestConnection } from "./guest/guest_connection.ts";
import { MemoryArena } from "./guest/memory_arena.ts";
import { VsockDriver } from "./guest/vsock_driver.ts";
import {
  AccessCount,
  CountingMemory,
  HOSTILE_REGIONS,
  HostileMemory,
} from "./hostile_memory.ts";
import { QueueWatch, WatchedQueue } from "./hostile_queue.ts";
import { Violation } from "./violation.ts";

/** What a rig is made of. */
export type HostileOptions = {
  /** Format of the queues. */
  ring: RingFormat;
  /** VIRTIO_F_EVENT_IDX. */
  eventIdx: boolean;
  /** Plain reads of runs of packed flags. */
  strongOrdering: boolean;
  /** How the device is reached. */
  transport: "direct" | "vhost-user";
  /** Another thread writes to the memory, too: what the device wrote can't be told apart. */
  shared: boolean;
};

/** Ports of the guest on which hostile connections are. */
export const HOSTILE_PORTS: readonly number[] = Array.from(
  { length: 40 },
  (_, i) => 5000 + i,
);
/** The healthy connection's port; it has no byte in common with the others. */
const HEALTHY_PORT = 0x5a17c3e1;
/** Where host programs listen. */
export const HOST_PORT = 1234;
const GUEST_CID = 42;
const QUEUE_SIZE = 32;
const MAX_CONNECTIONS = 16;
/** Looks for a buffer in one `process()`: a pass takes up to 256 packets and 512 receive buffers. */
const MAX_LOOKS = 1024;
const MAX_PROCESS_MS = 5_000;
/** Kinds of faults that there are at most, whatever a guest does. */
const MAX_FAULT_KINDS = 64;
/** Answers to packets of no connection. */
const MAX_ANSWERS = 256;
const BUF_ALLOC = 16_384;
/** Characters of a snapshot: what is buffered, in base64, and what is said of each connection and answer. */
const MAX_SAVED = MAX_CONNECTIONS * (2 * BUF_ALLOC + 4000) + MAX_ANSWERS * 200;
/** Addresses of a buffer: its table, and as many entries as that may have. */
const MAX_BUFFER_LOOKUPS = 1 + 1024;
/** Addresses where queues are set up. */
const SET_UP_LOOKUPS = 32;
const USER_START = 0x7f00_0000_0000;

/** What must hold whatever a guest does. */
export type HostileInvariant =
  | "no-throw"
  | "bounded-steps"
  | "own-memory"
  | "no-growth"
  | "healthy-or-reset";

/** A thing that the device must never do. */
export class HostileFinding extends Violation {
  /** `"HostileFinding"`. */
  override readonly name = "HostileFinding";

  /** @param invariant Which it breaks. @param message What it did. @param cause What was thrown. */
  constructor(invariant: HostileInvariant, message: string, cause?: unknown) {
    super(invariant, message);
    this.cause = cause;
  }
}

/** A device, a driver that is lawful but for what a test spoils, and what neither may touch. */
export class HostileRig {
  readonly memory: HostileMemory;
  readonly vsock: VsockDevice;
  readonly virtio: VirtioDevice;
  /** The driver of the current life. */
  driver!: VsockDriver;
  /** Where its queues lie. */
  configs: QueueConfig[] = [];
  /** What the driver found wrong with its ring, which its own guest has spoiled, or null. */
  driverProblem: unknown = null;
  /** Times that a front-end was told of a broken ring. */
  ringErrors = 0;
  /**
   * A ring was changed by its guest, or put elsewhere by its front-end, since the last `restart()`: packets may
   * come again, so that bytes of the healthy connection are not compared.
   */
  spoiled = false;
  /** Calls of `process()`. */
  passes = 0;
  /** The most addresses that were looked up between two looks at them. */
  mostLookups = 0;
  /** The longest snapshot, in characters. */
  mostSaved = 0;

  readonly #options: HostileOptions;
  readonly #host: LoopbackHost;
  readonly #accept: () => LoopbackConn | null;
  readonly #watch: QueueWatch = new QueueWatch();
  readonly #programs: LoopbackConn[] = [];
  readonly #works: (() => void)[] = [];
  readonly #count: AccessCount = new AccessCount();
  #assembler: MessageAssembler = new MessageAssembler();
  #session: VhostUserSession | null = null;
  #fd = 100;
  #kicked: number[] = [];
  #now = 0;
  #checkWrites = false;
  /** What the front-end has given the device last, where its addresses count. */
  #deviceMemory: GuestMemory = new GuestMemory([]);

  // The healthy connection, with how many bytes were sent and received in each direction.
  #guest: GuestConnection | null = null;
  #program: LoopbackConn | null = null;
  #up = { sent: 0, received: 0 };
  #down = { sent: 0, received: 0 };

  /** Makes a device and starts its first driver. */
  constructor(options: HostileOptions) {
    this.#options = options;
    this.memory = new HostileMemory(options.shared, options.transport);
    this.#host = new LoopbackHost({
      schedule: (work) => this.#works.push(work),
    });
    this.vsock = new VsockDevice({
      guestCid: GUEST_CID,
      host: this.#host,
      bufAlloc: BUF_ALLOC,
      maxConnections: MAX_CONNECTIONS,
      now: () => this.#now,
    });
    this.virtio = new VirtioDevice(watched(this.vsock, this.#watch), {
      strongOrdering: options.strongOrdering,
    });
    this.vsock.attach(this.virtio);
    const setMemory = this.virtio.setMemory.bind(this.virtio);
    this.virtio.setMemory = (memory) => {
      setMemory(new CountingMemory(memory, this.#count));
      this.#deviceMemory = memory;
    };
    this.#host.attach({
      connect: (port, answer) => this.vsock.connect(port, answer),
      process: () => this.#process(),
    });
    const listener = this.#host.listen(HOST_PORT);
    this.#accept = () => listener.tryAccept();
    this.restart();
  }

  /** Buffers that the device fetched in its last pass. */
  get fetched(): number {
    return this.#watch.fetched;
  }

  /** True while the device uses its queues or asks for a reset, one of which is always so. */
  get answers(): boolean {
    return this.vsock.ready || this.ringErrors > 0 ||
      (this.virtio.status & VIRTIO_CONFIG_S_NEEDS_RESET) !== 0;
  }

  /** True where the front-end has started both queues of packets and not stopped them, as far as it knows. */
  get startedQueues(): boolean {
    return this.#session === null;
  }

  /** Resets the device and starts a new driver over clean memory, which connects. */
  restart(): void {
    if (this.#session === null) this.virtio.reset();
    else this.#session.close();
    this.#session = null;
    this.#kicked = [];
    this.driverProblem = null;
    this.spoiled = false;
    this.ringErrors = 0;
    this.memory.clear();
    this.#watch.clear();
    const { ring, eventIdx } = this.#options;
    const arena = new MemoryArena(
      new GuestMemory([this.memory.regions[0]!]),
    );
    this.configs = [0, 1, 2].map(() => ({
      ...layOutQueue(arena, ring, QUEUE_SIZE),
      eventIdx,
      indirect: true,
    }));
    const queues = this.configs.map((config) =>
      makeDriverQueue(arena, ring, config, 4)
    );
    if (this.#options.transport === "direct") this.#startDirectly();
    else this.#startSession();
    this.driver = new VsockDriver({
      rx: queues[0]!,
      tx: queues[1]!,
      event: queues[2]!,
      arena,
      readCid: () => GUEST_CID,
      kick: (queue) => this.#kicked.push(queue),
      now: () => this.#now,
      strict: false,
      maxPayload: 2048,
      bufAlloc: 8192,
    });
    for (const port of HOSTILE_PORTS) this.driver.claimPort(port);
    this.#connect();
  }

  /** What its driver accepts. */
  get driverFeatures(): bigint {
    const bits = [
      VIRTIO_F_VERSION_1,
      VIRTIO_F_INDIRECT_DESC,
      ...(this.#options.eventIdx ? [VIRTIO_F_EVENT_IDX] : []),
      ...(this.#options.ring === "packed" ? [VIRTIO_F_RING_PACKED] : []),
    ];
    return bits.reduce((mask, bit) => mask | featureMask(bit), 0n);
  }

  #startDirectly(): void {
    const { virtio } = this;
    virtio.connect({ interrupt: () => {}, configChanged: () => {} });
    virtio.setMemory(new GuestMemory(this.memory.regions));
    virtio.setStatus(1 | 2);
    virtio.setFeatures(this.driverFeatures);
    virtio.setStatus(1 | 2 | 8);
    for (const [index, config] of this.configs.entries()) {
      const { size, descriptorArea, driverArea, deviceArea } = config;
      virtio.setupQueue(index, {
        size,
        descriptorArea,
        driverArea,
        deviceArea,
      });
      virtio.startQueue(index, null);
      virtio.enableQueue(index, true);
    }
    virtio.setStatus(1 | 2 | 8 | 4);
  }

  #startSession(): void {
    this.#assembler = new MessageAssembler();
    this.#session = new VhostUserSession(this.virtio, this.#ports());
    const protocol = featureMask(VHOST_USER_PROTOCOL_F_REPLY_ACK) |
      featureMask(VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS);
    const features = this.driverFeatures | featureMask(30);
    this.say(VHOST_USER_SET_PROTOCOL_FEATURES, encodeU64(protocol));
    this.say(VHOST_USER_SET_OWNER);
    this.say(VHOST_USER_SET_FEATURES, encodeU64(features));
    this.sendMemory();
    const base = this.#options.ring === "packed" ? PACKED_INITIAL_BASE : 0;
    for (const index of this.configs.keys()) this.startRing(index, base);
  }

  // -- Requests of a front-end --

  /** Sends a request, with `files` descriptors; false where it ended the session. */
  say(request: number, payload?: Uint8Array, files = 0): boolean {
    return this.sayBytes(encodeRequest(request, payload, true), files);
  }

  /** Sends any bytes, with `files` descriptors; false where they ended the session. */
  sayBytes(bytes: Uint8Array, files: number): boolean {
    const fds = Array.from({ length: files }, () => this.#fd++);
    this.#assembler.push(bytes, fds);
    try {
      for (;;) {
        const message = this.#assembler.next();
        if (message === null) return true;
        this.#session!.receive(message);
      }
    } catch (error) {
      if (error instanceof VhostUserError && error.fatal) return false;
      throw new HostileFinding(
        "no-throw",
        `a message threw ${error}`,
        error,
      );
    } finally {
      this.#afterDevice();
    }
  }

  /** The next descriptors are those of regions, from `index` on. */
  takeFiles(index: number): void {
    this.#fd = 100 + index;
  }

  /** Sends the memory table with the first `count` regions. */
  sendMemory(count: number = HOSTILE_REGIONS.length): void {
    const regions = HOSTILE_REGIONS.slice(0, count).map((_, i) =>
      userRegion(i)
    );
    this.#fd = 100;
    this.say(VHOST_USER_SET_MEM_TABLE, encodeMemoryTable(regions), count);
  }

  /** Sends a request for region `index` alone: to add it, with its file, or to take it away. */
  sendRegion(request: number, index: number): void {
    this.#fd = 100 + index;
    const files = request === VHOST_USER_ADD_MEM_REG ? 1 : 0;
    this.say(request, encodeMemoryRegion(userRegion(index)), files);
  }

  /** Starts ring `index` at `base`, its areas `shift` bytes from where they are, and enables it. */
  startRing(index: number, base: number, shift = 0): void {
    const config = this.configs[index]!;
    const user = userRegion(0).userAddress - userRegion(0).guestAddress +
      shift;
    const state = (num: number) => encodeVringState({ index, num });
    this.say(VHOST_USER_SET_VRING_NUM, state(config.size));
    this.say(VHOST_USER_SET_VRING_BASE, state(base));
    this.say(
      VHOST_USER_SET_VRING_ADDR,
      encodeVringAddresses({
        index,
        flags: 0,
        descriptor: config.descriptorArea + user,
        available: config.driverArea + user,
        used: config.deviceArea + user,
        log: 0n,
      }),
    );
    this.say(VHOST_USER_SET_VRING_CALL, encodeU64(index), 1);
    this.say(VHOST_USER_SET_VRING_ERR, encodeU64(index), 1);
    this.say(VHOST_USER_SET_VRING_KICK, encodeU64(index), 1);
    this.say(VHOST_USER_SET_VRING_ENABLE, state(1));
    this.#kicked.push(index);
  }

  /** The last reply's payload to a request that has one. */
  lastReply: Uint8Array = new Uint8Array(0);

  #ports(): SessionPorts {
    return {
      // The descriptors of a memory table are the first ones after `sendMemory()` began.
      map: (fd, size, offset) => {
        const buffer = this.memory.buffers[fd - 100];
        const region = HOSTILE_REGIONS[fd - 100];
        if (
          buffer === undefined || region === undefined || size > region.size ||
          offset !== 0
        ) {
          throw new VhostUserError("MAP_FAILED", "Memory access", "no file");
        }
        return {
          buffer: buffer as ArrayBuffer,
          hostAddress: 0,
          release: () => {},
        };
      },
      allocate: () => {
        throw new VhostUserError("MAP_FAILED", "Memory access", "no file");
      },
      setKick: () => {},
      setCall: () => {},
      setErr: () => {},
      call: () => {},
      signalErr: () => {
        this.ringErrors++;
      },
      setBackendChannel: () => {},
      sendBackendRequest: () => false,
      reply: (message) => {
        this.lastReply = message.slice(12);
      },
      closeFd: () => {},
    };
  }

  // -- Running --

  /** Lets time, device, driver and host programs go on by one step each. */
  step(): void {
    for (const work of this.#works.splice(0)) work();
    for (const index of this.#kicked.splice(0)) {
      if (this.#session === null) this.virtio.kick(index);
      else this.#session.kick(index);
    }
    this.#now += 1;
    if (this.vsock.nextDeadline() <= this.#now) this.vsock.expire(this.#now);
    this.#process();
    if (this.driverProblem === null) {
      try {
        this.driver.poll();
      } catch (error) {
        this.driverProblem = error;
      }
    }
    this.#serve();
  }

  /** Lets the device alone go on by one pass. */
  stepDevice(): void {
    this.#process();
  }

  /** Lets a step pass with a look at every byte that the device writes. */
  checkedStep(): void {
    this.#checkWrites = !this.#options.shared;
    this.step();
    this.#checkWrites = false;
  }

  #process(): boolean {
    this.passes++;
    this.#watch.begin();
    if (this.#checkWrites) this.memory.remember();
    const before = performance.now();
    let more: boolean;
    try {
      more = this.vsock.process();
    } catch (error) {
      throw new HostileFinding("no-throw", `process() threw ${error}`, error);
    }
    const ms = performance.now() - before;
    if (ms > MAX_PROCESS_MS) {
      throw new HostileFinding("bounded-steps", `process() took ${ms} ms`);
    }
    this.#afterDevice();
    if (this.#checkWrites) this.#checkWritten();
    return more;
  }

  #afterDevice(): void {
    const watch = this.#watch;
    if (watch.looks > MAX_LOOKS) {
      const text = `a pass looked ${watch.looks} times`;
      throw new HostileFinding("bounded-steps", text);
    }
    const { lookups, outside } = this.#count;
    this.#count.lookups = 0;
    this.mostLookups = Math.max(this.mostLookups, lookups);
    // A buffer is no longer than its ring, or than a table may be.
    if (lookups > SET_UP_LOOKUPS + watch.looks * MAX_BUFFER_LOOKUPS) {
      const text = `${lookups} addresses in ${watch.looks} looks`;
      throw new HostileFinding("bounded-steps", text);
    }
    if (outside !== null) throw new HostileFinding("own-memory", outside);
    const where = this.memory.brokenCanary();
    if (where !== null) {
      throw new HostileFinding(
        "own-memory",
        `memory outside the regions was written: ${where}`,
      );
    }
    const { connectionCount, diagnostics } = this.vsock;
    if (connectionCount > MAX_CONNECTIONS) {
      throw new HostileFinding("no-growth", `${connectionCount} connections`);
    }
    if (diagnostics.counters.size > MAX_FAULT_KINDS) {
      const text = `${diagnostics.counters.size} kinds of faults`;
      throw new HostileFinding("no-growth", text);
    }
  }

  #checkWritten(): void {
    const { memory } = this;
    const packed = this.#options.ring === "packed";
    const allow = (address: number, length: number): void => {
      const own = this.#deviceMemory;
      const region = own.regions[own.locate(address)];
      if (region) memory.allow(region.bytes, own.foundOffset, length);
    };
    for (const index of this.configs.keys()) {
      // Where the front-end has put the ring last.
      const setup = this.virtio.queueSetup(index);
      const { size, descriptorArea, deviceArea } = setup;
      allow(deviceArea, packed ? 4 : 6 + 8 * size);
      if (packed) allow(descriptorArea, 16 * size);
    }
    for (const { bytes, offset, length } of this.#watch.writable) {
      memory.allow(bytes, offset, length);
    }
    const at = memory.firstForbidden();
    if (at !== null) {
      throw new HostileFinding("own-memory", `it wrote to address ${at}`);
    }
  }

  /** What the device keeps is bounded: answers that wait for a receive buffer, and all that a snapshot holds. */
  checkBounds(): void {
    const saved = this.vsock.save();
    if (saved.strays.length > MAX_ANSWERS) {
      const text = `${saved.strays.length} answers wait`;
      throw new HostileFinding("no-growth", text);
    }
    const { length } = JSON.stringify(saved);
    this.mostSaved = Math.max(this.mostSaved, length);
    if (length > MAX_SAVED) {
      throw new HostileFinding("no-growth", `${length} characters are kept`);
    }
  }

  // -- The healthy connection --

  #connect(): void {
    this.#program = null;
    this.#up = { sent: 0, received: 0 };
    this.#down = { sent: 0, received: 0 };
    this.#guest = this.driver.connect(HOST_PORT, {
      localPort: HEALTHY_PORT,
      timeoutMs: Infinity,
    });
    for (let i = 0; i < 100 && this.#program === null; i++) this.step();
    this.exchange(100);
  }

  /**
   * Sends `bytes` more in each direction of the healthy connection.
   *
   * @throws {HostileFinding} when they do not arrive, or others do.
   */
  exchange(bytes: number): void {
    const up = this.#up.sent + bytes;
    const down = this.#down.sent + bytes;
    for (let pass = 0; pass < 400; pass++) {
      const guest = this.#guest!;
      const program = this.#program;
      if (this.driverProblem !== null) break;
      if (program !== null) {
        this.#up.sent += guest.send(pattern(this.#up.sent, up));
        const chunk = pattern(this.#down.sent, down);
        if (chunk.length > 0) this.#down.sent += program.tryWrite(chunk);
      }
      this.step();
      if (this.#up.received === up && this.#down.received === down) return;
    }
    throw new HostileFinding(
      "healthy-or-reset",
      `the healthy connection stands still: ${this.#up.received} of ${up} and ${this.#down.received} of ${down} bytes, ${
        this.#guest!.state
      }; status ${this.virtio.status}, ${
        JSON.stringify([...this.vsock.diagnostics.counters])
      }`,
      this.driverProblem,
    );
  }

  /** Host programs and the guest's end of the healthy connection read what there is. */
  #serve(): void {
    for (let conn = this.#accept(); conn !== null; conn = this.#accept()) {
      if (conn.guestPort === HEALTHY_PORT) this.#program = conn;
      else this.#programs.push(conn);
    }
    const target = new Uint8Array(4096);
    if (this.#program !== null) {
      try {
        this.#receive(this.#up, this.#program.tryRead(target) ?? 0, target);
      } catch (error) {
        // A reset shows as bytes that do not arrive.
        if (error instanceof HostileFinding) throw error;
      }
    }
    if (this.#guest !== null) {
      this.#receive(this.#down, this.#guest.read(target), target);
    }
    const programs = this.#programs;
    for (let i = programs.length - 1; i >= 0; i--) {
      try {
        if (programs[i]!.tryRead(target) !== null) {
          programs[i]!.tryWrite(target.subarray(0, 64));
          continue;
        }
      } catch {
        // It was reset, or the guest receives no more.
      }
      programs[i]!.close();
      programs.splice(i, 1);
    }
    this.driver.rawPackets.length = 0;
    this.driver.rawCompletions.length = 0;
    this.driver.violations.length = 0;
  }

  #receive(
    way: { received: number },
    count: number,
    bytes: Uint8Array,
  ): void {
    if (!this.spoiled) compare(way.received, count, bytes);
    way.received += count;
  }

  /** Ends it all. */
  close(): void {
    this.#session?.close();
    this.virtio.reset();
  }
}

/** Region `index` as a front-end tells of it. */
export function userRegion(index: number): MemoryRegionDescription {
  const { guestAddress, size } = HOSTILE_REGIONS[index]!;
  return {
    guestAddress,
    size,
    userAddress: USER_START + guestAddress,
    mmapOffset: 0,
  };
}

function byteAt(position: number): number {
  return (position * 31 ^ position >>> 7) & 0xff;
}

function pattern(from: number, to: number): Uint8Array {
  const bytes = new Uint8Array(Math.min(to - from, 4096));
  for (let i = 0; i < bytes.length; i++) bytes[i] = byteAt(from + i);
  return bytes;
}

function compare(from: number, count: number, bytes: Uint8Array): void {
  for (let i = 0; i < count; i++) {
    if (bytes[i] === byteAt(from + i)) continue;
    throw new HostileFinding(
      "healthy-or-reset",
      `byte ${from + i} of the healthy connection is wrong`,
    );
  }
}

/** The device model with its queues watched. */
function watched(device: DeviceModel, watch: QueueWatch): DeviceModel {
  return {
    deviceId: device.deviceId,
    features: device.features,
    maxQueueSizes: device.maxQueueSizes,
    configSpace: () => device.configSpace(),
    featuresAccepted: (features) => device.featuresAccepted(features),
    queueStarted: (index, queue, fresh) =>
      device.queueStarted(index, new WatchedQueue(queue, watch), fresh),
    queueStopped: (index) => device.queueStopped(index),
    memoryChanging: () => device.memoryChanging(),
    memoryChanged: (memory) => device.memoryChanged(memory),
    queueKicked: (index) => device.queueKicked(index),
    reset: () => device.reset(),
  };
}
