import { createMemfd, duplicateFd, Mapping } from "../../device/host/mmap.ts";
import {
  closeFd,
  createEventFd,
  drainEventFd,
  raiseSignal,
  type Signal,
  signalOf,
  socketPair,
} from "../../device/host/socket.ts";
import {
  VHOST_USER_ADD_MEM_REG,
  VHOST_USER_F_PROTOCOL_FEATURES,
  VHOST_USER_GET_CONFIG,
  VHOST_USER_GET_FEATURES,
  VHOST_USER_GET_MAX_MEM_SLOTS,
  VHOST_USER_GET_PROTOCOL_FEATURES,
  VHOST_USER_GET_QUEUE_NUM,
  VHOST_USER_GET_VRING_BASE,
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_SET_BACKEND_REQ_FD,
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
} from "../../device/vhost_user/constants.ts";
import {
  encodeConfig,
  encodeMemoryRegion,
  encodeMemoryTable,
  encodeU64,
  encodeVringAddresses,
  encodeVringState,
  type MemoryRegionDescription,
  parseBits,
  parseConfig,
  parseU64,
  parseVringState,
} from "../../device/vhost_user/message.ts";
import { featureMask } from "../../device/virtio_device.ts";
import { GuestMemory } from "../../ring/memory.ts";
import type { DriverQueue, QueueConfig, RingFormat } from "../../ring/queue.ts";
import {
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
} from "../../ring/virtio_ring.ts";
import { readUsedIdx } from "../../ring/split_device.ts";
import type { VsockDriverOptions } from "./driver_options.ts";
import { InflightFile } from "./inflight_file.ts";
import { layOutQueue, makeDriverQueue } from "./driver_queue.ts";
import { MemoryArena } from "./memory_arena.ts";
import {
  FrontEndError,
  pollFds,
  VhostUserChannel,
} from "./vhost_user_channel.ts";
import { VsockDriver } from "./vsock_driver.ts";

/** Options of a {@link VhostUserFrontEnd}. */
export type FrontEndOptions = {
  /** Path of the back-end's socket. */
  socketPath: string;
  /** The guest's CID, for a back-end without PROTOCOL_F_CONFIG. 3 unless told. */
  guestCid?: number;
  /** Format of the queues. `"split"` unless told. */
  ring?: RingFormat;
  /** Queues that are handed over: rx and tx, or the event queue too. 3 unless told. */
  queues?: 2 | 3;
  /** Descriptors of each queue. 128 unless told. */
  queueSize?: number;
  /** Accept VIRTIO_F_EVENT_IDX where it is offered. True unless told. */
  eventIdx?: boolean;
  /** Descriptors in each indirect table where they are offered; 0 for none. 20 unless told. */
  indirectEntries?: number;
  /**
   * Protocol feature bits to accept where they are offered. MQ, CONFIG, REPLY_ACK,
   * CONFIGURE_MEM_SLOTS and BACKEND_REQ unless told. With INFLIGHT_SHMFD, in-flight regions are kept
   * for {@link VhostUserFrontEnd.reconnect}.
   */
  protocolFeatures?: readonly number[];
  /** Guest memory, in bytes; half of it in each of two regions. 64 MiB unless told. */
  memoryBytes?: number;
  /** Base of a packed ring that is new: 0 says user-mode-linux. 0x80008000 unless told. */
  packedBase?: number;
  /** How long the back-end may take to answer. 5000 unless told. */
  timeoutMs?: number;
  /** Options of the vsock driver that are not given by the wiring. */
  driver?: Omit<
    VsockDriverOptions,
    "rx" | "tx" | "event" | "arena" | "readCid" | "kick"
  >;
};

const DEFAULT_PROTOCOL_FEATURES: readonly number[] = [
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
];

/** Guest addresses of the two regions, with a hole between them. */
const REGION_STARTS: readonly number[] = [0x10_0000, 0x1_0000_0000];
/** What user addresses have over guest addresses, so that one taken for the other is seen. */
const USER_OFFSET = 0x7e00_0000_0000;
/** Where the guest's memory begins in its file. */
const FILE_OFFSET = 0x1_0000;
const PACKED_INITIAL_BASE = 0x8000_8000;

/** Where a queue lies and its descriptors. */
type Vring = {
  config: QueueConfig;
  queue: DriverQueue;
  kick: Signal;
  callFd: number;
  errFd: number;
  /** What the back-end was given last. */
  base: number;
};

/**
 * A vhost-user front-end that drives a vsock back-end over its socket, as a virtual machine does, with
 * a {@link VsockDriver} for the guest.
 *
 * It is synchronous: it sleeps in `poll(2)` for the back-end's replies and interrupts, so the back-end
 * has to run in another thread or process. Guest memory is a memfd; the back-end gets two regions of it.
 *
 * Needs `--allow-ffi`, and read and write permission for the socket.
 */
export class VhostUserFrontEnd {
  /** The socket; another one after {@link VhostUserFrontEnd.reconnect}. */
  channel: VhostUserChannel;
  /** Features that the back-end offers. */
  readonly offeredFeatures: bigint;
  /** Features that were accepted. */
  readonly features: bigint;
  /** Protocol features that were accepted. */
  readonly protocolFeatures: bigint;
  /** What GET_QUEUE_NUM said; 0 where it was not asked. */
  readonly queueCount: number;
  /** The guest's memory. */
  readonly memory: GuestMemory;
  /** The memory's file. */
  readonly memoryFd: number;
  /** The memory as the back-end was told of it. */
  readonly regions: readonly MemoryRegionDescription[];
  /** The guest's vsock stack; another one after {@link VhostUserFrontEnd.reboot}. */
  driver: VsockDriver;
  /** Interrupts that came. */
  interrupts = 0;
  /** Kicks that were sent. */
  kicks = 0;

  readonly #options: FrontEndOptions;
  readonly #ring: RingFormat;
  readonly #mapping: Mapping;
  readonly #backendFds: number[] = [];
  #inflight: InflightFile | null = null;
  #vrings: Vring[] = [];
  #closed = false;

  /**
   * Connects, negotiates, hands over memory and queues, and enables them.
   *
   * @throws {FrontEndError} when the back-end refuses or does not answer.
   */
  constructor(options: FrontEndOptions) {
    const {
      ring = "split",
      eventIdx = true,
      indirectEntries = 20,
      memoryBytes = 64 * 1024 * 1024,
      timeoutMs = 5000,
    } = options;
    this.#options = options;
    this.#ring = ring;
    this.channel = new VhostUserChannel(options.socketPath, timeoutMs);
    this.memoryFd = createMemfd(FILE_OFFSET + memoryBytes);
    this.#mapping = new Mapping(
      duplicateFd(this.memoryFd),
      memoryBytes,
      FILE_OFFSET,
    );
    const half = memoryBytes / 2;
    this.regions = REGION_STARTS.map((guestAddress, i) => ({
      guestAddress,
      size: half,
      userAddress: guestAddress + USER_OFFSET,
      mmapOffset: FILE_OFFSET + i * half,
    }));
    this.memory = new GuestMemory(
      this.regions.map(({ guestAddress, size }, i) => ({
        guestAddress,
        size,
        buffer: this.#mapping.buffer,
        byteOffset: i * half,
      })),
    );
    try {
      const { channel } = this;
      this.offeredFeatures = parseBits(channel.ask(VHOST_USER_GET_FEATURES));
      this.protocolFeatures = this.#negotiateProtocol();
      this.queueCount = this.#hasProtocol(VHOST_USER_PROTOCOL_F_MQ)
        ? parseU64(channel.ask(VHOST_USER_GET_QUEUE_NUM))
        : 0;
      this.tell(VHOST_USER_SET_OWNER);
      this.#openBackendChannel();
      const wanted = [VHOST_USER_F_PROTOCOL_FEATURES, VIRTIO_F_VERSION_1];
      if (eventIdx) wanted.push(VIRTIO_F_EVENT_IDX);
      if (indirectEntries > 0) wanted.push(VIRTIO_F_INDIRECT_DESC);
      let features = 0n;
      for (const bit of wanted) features |= featureMask(bit);
      features &= this.offeredFeatures;
      // Not masked by the offer: a front-end may insist, and is to be refused in words.
      if (ring === "packed") features |= featureMask(VIRTIO_F_RING_PACKED);
      this.features = features;
      this.tell(VHOST_USER_SET_FEATURES, encodeU64(features));
      if (this.#hasProtocol(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD)) {
        const { queues = 3, queueSize = 128 } = options;
        this.#inflight = new InflightFile(channel, queues, queueSize);
      }
      this.#shareMemory();
      this.#makeQueues();
      const base = options.packedBase ?? PACKED_INITIAL_BASE;
      const bases = this.#vrings.map(() => ring === "packed" ? base : 0);
      this.#startQueues(bases);
      this.driver = this.#makeDriver();
      this.driver.poll();
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** Configuration of queue `index`. */
  queueConfig(index: number): QueueConfig {
    return this.#vrings[index]!.config;
  }

  /** The guest's CID in the configuration space, or the one from the options. */
  readCid(): number {
    const { guestCid = 3 } = this.#options;
    if (!this.#hasProtocol(VHOST_USER_PROTOCOL_F_CONFIG)) return guestCid;
    const bytes = new Uint8Array(8);
    const reply = this.channel.ask(
      VHOST_USER_GET_CONFIG,
      encodeConfig({ offset: 0, size: 8, flags: 0, bytes }),
    );
    const config = parseConfig(reply).bytes;
    return new DataView(config.buffer, config.byteOffset).getUint32(0, true);
  }

  /** Sends a request that has no reply of its own; waits for its acknowledgement with REPLY_ACK. */
  tell(
    request: number,
    payload?: Uint8Array,
    fds: readonly number[] = [],
  ): void {
    if (this.#hasProtocol(VHOST_USER_PROTOCOL_F_REPLY_ACK)) {
      this.channel.acknowledge(request, payload, fds);
    } else {
      this.channel.send(request, payload, fds);
    }
  }

  /** Waits until the back-end has dealt with everything that was sent. */
  synchronize(): void {
    this.channel.ask(VHOST_USER_GET_FEATURES);
  }

  /** Stops all queues as a machine that is stopped; returns their bases. */
  stop(): number[] {
    return this.#vrings.map((_, index) => {
      this.#enable(index, false);
      const state = encodeVringState({ index, num: 0 });
      const reply = this.channel.ask(VHOST_USER_GET_VRING_BASE, state);
      return parseVringState(reply).num;
    });
  }

  /** Starts the queues again where {@link VhostUserFrontEnd.stop} left them. */
  cont(bases: readonly number[]): void {
    this.#startQueues(bases);
  }

  /**
   * Starts over as a guest that was rebooted: the queues are stopped, and new ones, which are empty, are
   * handed over, with a new driver. The session goes on.
   */
  reboot(): void {
    this.stop();
    this.#closeQueues();
    this.#makeQueues();
    const base = this.#options.packedBase ?? PACKED_INITIAL_BASE;
    this.#startQueues(
      this.#vrings.map(() => this.#ring === "packed" ? base : 0),
    );
    this.driver = this.#makeDriver();
    this.driver.poll();
  }

  /**
   * Connects to a back-end that listens where another one is gone, with the memory, the queues and the in-flight
   * regions from before; the driver goes on as if nothing had happened.
   *
   * `bases` are what QEMU gives unless told: of a split queue the used index in its ring, of a packed one
   * what was given before, as there is nothing to read.
   *
   * @throws {FrontEndError} when the back-end does not listen or refuses.
   */
  reconnect(bases?: readonly number[]): void {
    const { socketPath, timeoutMs = 5000 } = this.#options;
    this.channel.close();
    for (const fd of this.#backendFds.splice(0)) closeFd(fd);
    this.channel = new VhostUserChannel(socketPath, timeoutMs);
    this.channel.ask(VHOST_USER_GET_FEATURES);
    if (this.#negotiateProtocol() !== this.protocolFeatures) {
      throw new FrontEndError("Cannot go on: other protocol features");
    }
    this.tell(VHOST_USER_SET_OWNER);
    this.#openBackendChannel();
    this.tell(VHOST_USER_SET_FEATURES, encodeU64(this.features));
    this.#shareMemory();
    this.#startQueues(
      bases ??
        this.#vrings.map(({ config, base }) =>
          this.#ring === "packed" ? base : readUsedIdx(this.memory, config)
        ),
    );
    this.driver.poll();
  }

  /** Buffers of queue `index` that the in-flight region has as fetched and not used; 0 without one. */
  inFlight(index: number): number {
    return this.#inflight?.inFlight(index, this.#ring) ?? 0;
  }

  /** Kicks queue `index`, with or without a reason. */
  kick(index: number): void {
    this.kicks++;
    raiseSignal(this.#vrings[index]!.kick);
  }

  /**
   * Publishes what the guest's programs have sent and sleeps until an interrupt comes, up to `timeoutMs`;
   * then the driver polls. True when one came.
   *
   * @throws {VsockViolation} when the device breaks a rule.
   */
  wait(timeoutMs: number): boolean {
    this.driver.flush();
    const fds = this.#vrings.map(({ callFd }) => callFd);
    const ready = pollFds(fds, timeoutMs);
    if (ready === 0) return false;
    for (const [i, fd] of fds.entries()) {
      if ((ready & (1 << i)) !== 0 && drainEventFd(fd)) this.interrupts++;
    }
    this.driver.poll();
    return true;
  }

  /**
   * Carries interrupts until `done()` says so, and lets other tasks of this thread run in between.
   *
   * @throws {FrontEndError} when it does not within `timeoutMs`, 5000 unless told.
   */
  async until(done: () => boolean, timeoutMs = 5000): Promise<void> {
    const end = performance.now() + timeoutMs;
    while (!done()) {
      if (performance.now() > end) {
        throw new FrontEndError(
          `Cannot go on: not within ${timeoutMs} ms: ${done}`,
        );
      }
      this.wait(1);
      await new Promise<void>((resolve) => setTimeout(resolve, 0));
    }
    // What `done()` has sent.
    this.driver.flush();
  }

  /** True when the error descriptor of queue `index` was signalled since the last call. */
  takeError(index: number): boolean {
    return drainEventFd(this.#vrings[index]!.errFd);
  }

  /** Hangs up, and gives memory and descriptors back. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.channel.close();
    this.#closeQueues();
    this.#inflight?.close();
    for (const fd of this.#backendFds.splice(0)) closeFd(fd);
    this.#mapping.release();
    closeFd(this.memoryFd);
  }

  /** Hangs up at the end of a `using` block. */
  [Symbol.dispose](): void {
    this.close();
  }

  #hasProtocol(bit: number): boolean {
    return ((this.protocolFeatures ?? 0n) & featureMask(bit)) !== 0n;
  }

  #negotiateProtocol(): bigint {
    const { channel } = this;
    const bit = featureMask(VHOST_USER_F_PROTOCOL_FEATURES);
    if ((this.offeredFeatures & bit) === 0n) return 0n;
    const offered = parseBits(channel.ask(VHOST_USER_GET_PROTOCOL_FEATURES));
    const wanted = this.#options.protocolFeatures ?? DEFAULT_PROTOCOL_FEATURES;
    let accepted = 0n;
    for (const bit of wanted) accepted |= offered & featureMask(bit);
    channel.send(VHOST_USER_SET_PROTOCOL_FEATURES, encodeU64(accepted));
    return accepted;
  }

  #openBackendChannel(): void {
    if (!this.#hasProtocol(VHOST_USER_PROTOCOL_F_BACKEND_REQ)) return;
    const [near, far] = socketPair();
    this.#backendFds.push(near);
    this.tell(VHOST_USER_SET_BACKEND_REQ_FD, undefined, [far]);
    closeFd(far);
  }

  #shareMemory(): void {
    if (!this.#hasProtocol(VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS)) {
      const fds = this.regions.map(() => this.memoryFd);
      this.tell(
        VHOST_USER_SET_MEM_TABLE,
        encodeMemoryTable(this.regions),
        fds,
      );
      return;
    }
    const slots = parseU64(this.channel.ask(VHOST_USER_GET_MAX_MEM_SLOTS));
    if (slots < this.regions.length) {
      throw new FrontEndError(`Cannot share memory: there are ${slots} slots`);
    }
    for (const region of this.regions) {
      this.tell(
        VHOST_USER_ADD_MEM_REG,
        encodeMemoryRegion(region),
        [this.memoryFd],
      );
    }
  }

  #makeQueues(): void {
    const {
      queues = 3,
      queueSize = 128,
      indirectEntries = 20,
    } = this.#options;
    // Rings in the first region, buffers in the second.
    const arena = new MemoryArena(this.memory, 0);
    const indirect = (this.features & featureMask(VIRTIO_F_INDIRECT_DESC)) !==
      0n;
    const eventIdx = (this.features & featureMask(VIRTIO_F_EVENT_IDX)) !== 0n;
    for (let index = 0; index < queues; index++) {
      const config = {
        ...layOutQueue(arena, this.#ring, queueSize),
        eventIdx,
        indirect,
      };
      const entries = indirect ? indirectEntries : 0;
      this.#vrings.push({
        config,
        queue: makeDriverQueue(arena, this.#ring, config, entries),
        kick: signalOf(createEventFd()),
        callFd: createEventFd(),
        errFd: createEventFd(),
        base: 0,
      });
    }
  }

  #startQueues(bases: readonly number[]): void {
    this.#inflight?.send((request, payload, fds) =>
      this.tell(request, payload, fds)
    );
    for (const [index, vring] of this.#vrings.entries()) {
      const { size, descriptorArea, driverArea, deviceArea } = vring.config;
      const state = (num: number) => encodeVringState({ index, num });
      this.tell(VHOST_USER_SET_VRING_NUM, state(size));
      vring.base = bases[index]!;
      this.tell(VHOST_USER_SET_VRING_BASE, state(vring.base));
      this.tell(
        VHOST_USER_SET_VRING_ADDR,
        encodeVringAddresses({
          index,
          flags: 0,
          descriptor: descriptorArea + USER_OFFSET,
          used: deviceArea + USER_OFFSET,
          available: driverArea + USER_OFFSET,
          log: 0xffff_ffff_ffff_ffffn,
        }),
      );
      const number = encodeU64(index);
      this.tell(VHOST_USER_SET_VRING_ERR, number, [vring.errFd]);
      this.tell(VHOST_USER_SET_VRING_CALL, number, [vring.callFd]);
      this.tell(VHOST_USER_SET_VRING_KICK, number, [vring.kick.fd]);
    }
    for (const index of this.#vrings.keys()) this.#enable(index, true);
  }

  #enable(index: number, enabled: boolean): void {
    const bit = featureMask(VHOST_USER_F_PROTOCOL_FEATURES);
    if ((this.features & bit) === 0n) return;
    const state = encodeVringState({ index, num: enabled ? 1 : 0 });
    this.tell(VHOST_USER_SET_VRING_ENABLE, state);
  }

  #makeDriver(): VsockDriver {
    const [rx, tx, event] = this.#vrings;
    return new VsockDriver({
      ...this.#options.driver,
      rx: rx!.queue,
      tx: tx!.queue,
      event: event?.queue ?? null,
      arena: new MemoryArena(this.memory, 1),
      readCid: () => this.readCid(),
      kick: (queue) => this.kick(queue),
    });
  }

  #closeQueues(): void {
    for (const { kick, callFd, errFd } of this.#vrings.splice(0)) {
      closeFd(kick.fd);
      closeFd(callFd);
      closeFd(errFd);
    }
  }
}
