import { fixedBytes, libc } from "../../device/host/ffi.ts";
import { createMemfd, duplicateFd, Mapping } from "../../device/host/mmap.ts";
import {
  closeFd,
  createEventFd,
  drainEventFd,
  raiseSignal,
  type Signal,
  signalOf,
} from "../../device/host/socket.ts";
import * as vhost from "../../device/vhost_user/constants.ts";
import {
  encodeMemoryTable,
  encodeU64,
  encodeVringAddresses,
  encodeVringState,
  parseBits,
} from "../../device/vhost_user/message.ts";
import { featureMask } from "../../device/virtio_device.ts";
import {
  VIRTIO_VSOCK_OP_CREDIT_REQUEST,
  VIRTIO_VSOCK_OP_CREDIT_UPDATE,
  VIRTIO_VSOCK_OP_REQUEST,
  VIRTIO_VSOCK_OP_RESPONSE,
  VIRTIO_VSOCK_OP_RST,
  VIRTIO_VSOCK_OP_RW,
  VIRTIO_VSOCK_OP_SHUTDOWN,
  VIRTIO_VSOCK_SHUTDOWN_MASK,
  VIRTIO_VSOCK_SHUTDOWN_SEND,
  VIRTIO_VSOCK_TYPE_STREAM,
  VMADDR_CID_HOST,
  VSOCK_HEADER_SIZE,
} from "../../device/vsock/virtio_vsock.ts";
import {
  layOutQueue,
  makeDriverQueue,
} from "../../props/guest/driver_queue.ts";
import { MemoryArena } from "../../props/guest/memory_arena.ts";
import { VhostUserChannel } from "../../props/guest/vhost_user_channel.ts";
import { GuestMemory } from "../../ring/memory.ts";
import {
  BufferList,
  type DriverQueue,
  type QueueConfig,
  type RingFormat,
} from "../../ring/queue.ts";
import {
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
} from "../../ring/virtio_ring.ts";

/** The guest's CID; the device is started with it. */
export const GUEST_CID = 3;
/** Bytes of a connection's receive buffer, as Linux has them. */
const BUF_ALLOC_BYTES = 262_144;
/** Linux tells of freed space when less than this is known to be free. */
const MAX_PACKET_BYTES = 65_536;
/** Payload of a receive buffer. */
const RX_PAYLOAD_BYTES = 4_096;

const QUEUE_SIZE = 128;
const MEMORY_BYTES = 16 * 1024 * 1024;
const USER_OFFSET = 0x7e00_0000_0000;
const PACKED_INITIAL_BASE = 0x8000_8000;
const FIRST_PORT = 10_000;
/** Packets between two looks at whether the device has to be kicked. */
const PUBLISH_EVERY = 16;
/** Packets in flight that payload leaves to answers. */
const RESERVED_SLOTS = 4;
/** Packets that come back before a guest that looks for them sends again: half of all, so that it goes on in batches. */
const REFILL_SLOTS = QUEUE_SIZE / 4;
/** The longest look for work before the guest sleeps, and how often the clock is read meanwhile. */
const MOST_LOOK_MS = 0.1;
const LOOKS_A_CLOCK = 16;
/** How long a device may keep still before it is kicked without a reason. */
const STALL_MS = 1_000;
/** How often that may happen. */
const MAX_STALLS = 20;

/** Where a {@link LoadConnection} stands. */
export type LoadState = "asking" | "open" | "closed";

/** One connection of a {@link LoadGuest}. */
export class LoadConnection {
  /** Port in the guest. */
  readonly port: number;
  /** Port of the host program. */
  readonly peerPort: number;
  /** Where it stands. */
  state: LoadState = "asking";
  /** Payload bytes that came since whoever uses it set this. */
  received = 0;
  /** Payload bytes that are to be sent. */
  toSend = 0;
  /** Bytes of the write that a full window has cut, still to be sent. */
  rest = 0;

  txCnt = 0;
  peerBufAlloc = 0;
  peerFwdCnt = 0;
  fwdCnt = 0;
  toldFwdCnt = 0;

  /** Makes one that has sent nothing. */
  constructor(port: number, peerPort: number) {
    this.port = port;
    this.peerPort = peerPort;
  }
}

/** A queue as the device was told of it. */
type Vring = {
  config: QueueConfig;
  queue: DriverQueue;
  kick: Signal;
  callFd: number;
};

type Scheduler = ReturnType<typeof openScheduler>;

function openScheduler(): Deno.DynamicLibrary<
  { sched_yield: { parameters: []; result: "i32" } }
> {
  return Deno.dlopen("libc.so.6", {
    sched_yield: { parameters: [], result: "i32" },
  });
}

/**
 * A guest that makes load: the driver's side of a vsock device over vhost-user, as plain and as lean as it can be.
 *
 * Its packets are laid out once, in memory that both sides map, and nothing is allocated per packet; nothing of
 * what the device says is checked beyond what counts of bytes need. Flow control is Linux's: a write goes out as
 * far as the window is open, and freed space is told when less than 64 KiB of 256 is known to be free.
 */
export class LoadGuest {
  /** Interrupts that were waited for. */
  sleeps = 0;
  /** Times that the device kept still with work to do. */
  stalls = 0;
  /** Connections of host programs that were accepted and are over. */
  served = 0;

  readonly #channel: VhostUserChannel;
  readonly #memoryFd: number;
  readonly #mapping: Mapping;
  readonly #memory: GuestMemory;
  readonly #vrings: Vring[] = [];
  readonly #rx: DriverQueue;
  readonly #tx: DriverQueue;
  readonly #words: Uint32Array;
  readonly #scheduler: Scheduler = openScheduler();
  readonly #pollEntries: Uint8Array<ArrayBuffer> = fixedBytes(16);

  readonly #rxLists: BufferList[] = [];
  readonly #rxAt: number[] = [];
  /** Buffer by token, in each queue. */
  readonly #rxSlot: Int32Array = new Int32Array(QUEUE_SIZE);
  readonly #txSlot: Int32Array = new Int32Array(QUEUE_SIZE);
  readonly #txData: BufferList[] = [];
  readonly #txControl: BufferList[] = [];
  readonly #txAt: number[] = [];
  readonly #free: number[] = [];
  #staged = 0;
  /** Payload waits for packets to come back. */
  #full = false;
  #lastWaitWasShort = false;
  /** Whose turn is first. */
  #turn = 0;

  // Answers that found no room: operation and connection, first one first.
  #waiting: { connection: LoadConnection; op: number; flags: number }[] = [];
  readonly #byPort: (LoadConnection | undefined)[] = [];
  readonly #accepted: Map<number, LoadConnection> = new Map();
  #nextPort = FIRST_PORT;

  /** Connects to the device at `socketPath`, negotiates and starts rx and tx, and an event queue without buffers. */
  constructor(socketPath: string, ring: RingFormat) {
    const channel = new VhostUserChannel(socketPath, 5_000);
    this.#channel = channel;
    this.#memoryFd = createMemfd(MEMORY_BYTES);
    this.#mapping = new Mapping(duplicateFd(this.#memoryFd), MEMORY_BYTES, 0);
    const guestAddress = 0x10_0000;
    const { buffer } = this.#mapping;
    this.#memory = new GuestMemory([
      { guestAddress, size: MEMORY_BYTES, buffer },
    ]);
    this.#words = new Uint32Array(buffer);
    const arena = new MemoryArena(this.#memory);

    let features = 0n;
    for (
      const bit of [
        vhost.VHOST_USER_F_PROTOCOL_FEATURES,
        VIRTIO_F_VERSION_1,
        VIRTIO_F_EVENT_IDX,
      ]
    ) features |= featureMask(bit);
    features &= parseBits(channel.ask(vhost.VHOST_USER_GET_FEATURES));
    if (ring === "packed") features |= featureMask(VIRTIO_F_RING_PACKED);
    const offered = parseBits(
      channel.ask(vhost.VHOST_USER_GET_PROTOCOL_FEATURES),
    );
    const accepted = offered &
      (featureMask(vhost.VHOST_USER_PROTOCOL_F_MQ) |
        featureMask(vhost.VHOST_USER_PROTOCOL_F_CONFIG));
    channel.send(
      vhost.VHOST_USER_SET_PROTOCOL_FEATURES,
      encodeU64(accepted),
    );
    channel.send(vhost.VHOST_USER_SET_OWNER);
    channel.send(vhost.VHOST_USER_SET_FEATURES, encodeU64(features));
    channel.send(
      vhost.VHOST_USER_SET_MEM_TABLE,
      encodeMemoryTable([{
        guestAddress,
        size: MEMORY_BYTES,
        userAddress: guestAddress + USER_OFFSET,
        mmapOffset: 0,
      }]),
      [this.#memoryFd],
    );
    const eventIdx = (features & featureMask(VIRTIO_F_EVENT_IDX)) !== 0n;
    for (let index = 0; index < 3; index++) {
      const layout = layOutQueue(arena, ring, QUEUE_SIZE);
      const config: QueueConfig = { ...layout, eventIdx, indirect: false };
      this.#vrings.push({
        config,
        queue: makeDriverQueue(arena, ring, config, 0),
        kick: signalOf(createEventFd()),
        callFd: createEventFd(),
      });
    }
    this.#rx = this.#vrings[0]!.queue;
    this.#tx = this.#vrings[1]!.queue;
    this.#layOutPackets(arena, guestAddress);
    this.#startQueues(ring === "packed" ? PACKED_INITIAL_BASE : 0);
    // Everything was dealt with once this is answered.
    channel.ask(vhost.VHOST_USER_GET_FEATURES);

    const poll = new DataView(this.#pollEntries.buffer);
    for (let i = 0; i < 2; i++) {
      poll.setInt32(8 * i, this.#vrings[i]!.callFd, true);
      poll.setInt16(8 * i + 4, 1, true);
    }
    this.#rx.publish();
    if (this.#rx.needsKick()) raiseSignal(this.#vrings[0]!.kick);
  }

  #layOutPackets(arena: MemoryArena, guestAddress: number): void {
    for (let i = 0; i < QUEUE_SIZE; i++) {
      const length = VSOCK_HEADER_SIZE + RX_PAYLOAD_BYTES;
      const address = arena.allocate(length);
      const list = new BufferList(1).addWritable(address, length);
      this.#rxLists.push(list);
      this.#rxAt.push((address - guestAddress) / 4);
      this.#rxSlot[this.#rx.add(list)] = i;
    }
    for (let i = 0; i < QUEUE_SIZE / 2; i++) {
      const header = arena.allocate(VSOCK_HEADER_SIZE);
      const payload = arena.allocate(MAX_PACKET_BYTES);
      const at = (header - guestAddress) / 4;
      this.#txAt.push(at);
      this.#words[at] = GUEST_CID;
      this.#words[at + 2] = VMADDR_CID_HOST;
      this.#words[at + 9] = BUF_ALLOC_BYTES;
      this.#txControl.push(
        new BufferList(1).addReadable(header, VSOCK_HEADER_SIZE),
      );
      this.#txData.push(
        new BufferList(2).addReadable(header, VSOCK_HEADER_SIZE)
          .addReadable(payload, MAX_PACKET_BYTES),
      );
      this.#free.push(i);
    }
  }

  #startQueues(base: number): void {
    const channel = this.#channel;
    for (const [index, { config, kick, callFd }] of this.#vrings.entries()) {
      const state = (num: number) => encodeVringState({ index, num });
      channel.send(vhost.VHOST_USER_SET_VRING_NUM, state(config.size));
      channel.send(vhost.VHOST_USER_SET_VRING_BASE, state(base));
      channel.send(
        vhost.VHOST_USER_SET_VRING_ADDR,
        encodeVringAddresses({
          index,
          flags: 0,
          descriptor: config.descriptorArea + USER_OFFSET,
          used: config.deviceArea + USER_OFFSET,
          available: config.driverArea + USER_OFFSET,
          log: 0xffff_ffff_ffff_ffffn,
        }),
      );
      const number = encodeU64(index);
      channel.send(vhost.VHOST_USER_SET_VRING_CALL, number, [callFd]);
      channel.send(vhost.VHOST_USER_SET_VRING_KICK, number, [kick.fd]);
    }
    for (let index = 0; index < 3; index++) {
      const state = encodeVringState({ index, num: 1 });
      channel.send(vhost.VHOST_USER_SET_VRING_ENABLE, state);
    }
  }

  // -- Connections --

  /** Begins to connect to a host port; `state` tells when it is open. */
  connect(peerPort: number): LoadConnection {
    const port = this.#nextPort++;
    const connection = new LoadConnection(port, peerPort);
    this.#byPort[port - FIRST_PORT] = connection;
    this.#control(connection, VIRTIO_VSOCK_OP_REQUEST, 0);
    return connection;
  }

  /** Waits until a packet can be sent. */
  awaitPacket(): void {
    while (this.#free.length === 0) {
      if (!this.poll() && this.#free.length === 0) this.wait(false);
    }
  }

  /** Ends both directions; `state` tells when the device has confirmed. */
  shutdown(connection: LoadConnection): void {
    this.#control(
      connection,
      VIRTIO_VSOCK_OP_SHUTDOWN,
      VIRTIO_VSOCK_SHUTDOWN_MASK,
    );
  }

  /** Carries packets until `done()` says so; `look` is that of {@link LoadGuest.wait}. */
  until(done: () => boolean, look = false): void {
    while (!done()) {
      if (!this.poll()) this.wait(look);
    }
    this.publish();
  }

  /** Opens `count` connections to `peerPort`, some at a time. */
  open(peerPort: number, count: number): LoadConnection[] {
    const connections: LoadConnection[] = [];
    while (connections.length < count) {
      const some: LoadConnection[] = [];
      while (some.length < 32 && connections.length + some.length < count) {
        some.push(this.connect(peerPort));
      }
      this.until(() => some.every(({ state }) => state !== "asking"));
      connections.push(...some);
    }
    const refused = connections.filter(({ state }) => state !== "open").length;
    if (refused > 0) throw new Error(`${refused} connections were refused`);
    return connections;
  }

  /** Ends connections, and waits for that. */
  closeAll(connections: readonly LoadConnection[]): void {
    for (const connection of connections) this.shutdown(connection);
    this.until(() => connections.every(({ state }) => state === "closed"));
  }

  /** Writes `bytes` on a connection that is idle, and publishes them. */
  write(connection: LoadConnection, bytes: Uint8Array): void {
    const slot = this.#takeSlot();
    if (slot < 0) throw new Error("no packet is free");
    const at = this.#txAt[slot]!;
    // Payloads lie behind their header, 16-byte aligned.
    new Uint8Array(this.#words.buffer, at * 4 + 48, bytes.length).set(bytes);
    this.#stage(connection, slot, bytes.length);
    this.publish();
  }

  /**
   * Sends on each connection, in turn, what is left of its `toSend` in writes of `size` bytes, as far as the
   * window and the queue take them; true when anything was sent.
   */
  pump(connections: readonly LoadConnection[], size: number): boolean {
    this.#reclaim();
    let sent = false;
    let more = true;
    while (more) {
      more = false;
      for (let i = 0; i < connections.length; i++) {
        if (this.#free.length <= RESERVED_SLOTS) {
          this.#full = true;
          // The next call goes on with those that had no turn.
          this.#turn = (this.#turn + i) % connections.length;
          this.publish();
          return sent;
        }
        const connection = connections[(i + this.#turn) % connections.length]!;
        let length = connection.rest > 0 ? connection.rest : size;
        if (length > connection.toSend) length = connection.toSend;
        const unread = (connection.txCnt - connection.peerFwdCnt) >>> 0;
        const window = connection.peerBufAlloc - unread;
        const whole = length;
        if (length > window) length = window;
        if (length <= 0) continue;
        connection.rest = whole - length;
        connection.toSend -= length;
        this.#stage(connection, this.#takeSlot(), length);
        if (++this.#staged >= PUBLISH_EVERY) this.publish();
        sent = true;
        more = true;
      }
    }
    this.publish();
    return sent;
  }

  // -- Queues --

  /** Makes what was staged known to the device, and kicks it where it wants that. */
  publish(): void {
    this.#staged = 0;
    if (this.#tx.publish() && this.#tx.needsKick()) {
      raiseSignal(this.#vrings[1]!.kick);
    }
  }

  /** Takes what the device has sent; true when there was something. */
  poll(): boolean {
    this.#reclaim();
    const rx = this.#rx;
    let count = 0;
    for (;;) {
      const token = rx.reclaim();
      if (token < 0) break;
      const slot = this.#rxSlot[token]!;
      this.#packet(this.#rxAt[slot]!);
      this.#rxSlot[rx.add(this.#rxLists[slot]!)] = slot;
      if ((++count & 31) === 0) this.#provide();
    }
    if (count > 0) this.#provide();
    if (this.#waiting.length > 0) this.#answer();
    this.publish();
    return count > 0;
  }

  /**
   * Waits until the device has something for us: where `look` says so, it looks for that for a bounded time before it
   * sleeps, so that the time to wake up is not taken for the device's.
   *
   * As KVM treats an idle processor (halt_poll_ns), it looks only where the last wait was a short one. Where there
   * are more processes than processors, the others go first.
   */
  wait(look: boolean): void {
    if (!look) {
      this.#sleep();
      return;
    }
    const start = performance.now();
    const end = start + MOST_LOOK_MS;
    if (!this.#lastWaitWasShort || !this.#lookUntil(end)) this.#sleep();
    this.#lastWaitWasShort = performance.now() < end;
  }

  // Looks for work until `end`; true when there is some.
  #lookUntil(end: number): boolean {
    do {
      for (let i = 0; i < LOOKS_A_CLOCK; i++) {
        if (this.poll() || this.#hasRoomAgain(REFILL_SLOTS)) return true;
      }
      this.#scheduler.symbols.sched_yield();
    } while (performance.now() < end);
    return false;
  }

  // Whether at least `slots` packets have come back since payload had to wait for them.
  #hasRoomAgain(slots: number): boolean {
    if (!this.#full || this.#free.length < slots) return false;
    this.#full = false;
    return true;
  }

  #sleep(): void {
    if (this.#hasRoomAgain(RESERVED_SLOTS + 1)) return;
    const short = this.#free.length <= RESERVED_SLOTS;
    const again = short && this.#tx.armInterrupts();
    if (this.#rx.armInterrupts() || again) return;
    this.sleeps++;
    if (libc().poll(this.#pollEntries, 2, STALL_MS) === 0) {
      this.stalls++;
      for (const { kick } of this.#vrings) raiseSignal(kick);
      if (this.stalls > MAX_STALLS) throw new Error("the device keeps still");
    }
    // A read that finds nothing costs less than a look at who is ready.
    drainEventFd(this.#vrings[0]!.callFd);
    drainEventFd(this.#vrings[1]!.callFd);
  }

  /** Hangs up. */
  close(): void {
    this.#channel.close();
    this.#scheduler.close();
    for (const { kick, callFd } of this.#vrings) {
      closeFd(kick.fd);
      closeFd(callFd);
    }
    this.#mapping.release();
    closeFd(this.#memoryFd);
  }

  #provide(): void {
    this.#rx.publish();
    if (this.#rx.needsKick()) raiseSignal(this.#vrings[0]!.kick);
  }

  #reclaim(): void {
    const tx = this.#tx;
    for (;;) {
      const token = tx.reclaim();
      if (token < 0) return;
      this.#free.push(this.#txSlot[token]!);
    }
  }

  #takeSlot(): number {
    if (this.#free.length === 0) this.#reclaim();
    return this.#free.pop() ?? -1;
  }

  #fill(connection: LoadConnection, at: number, op: number): void {
    const words = this.#words;
    words[at + 4] = connection.port;
    words[at + 5] = connection.peerPort;
    words[at + 7] = VIRTIO_VSOCK_TYPE_STREAM | (op << 16);
    words[at + 10] = connection.fwdCnt;
    connection.toldFwdCnt = connection.fwdCnt;
  }

  #stage(connection: LoadConnection, slot: number, length: number): void {
    const at = this.#txAt[slot]!;
    this.#fill(connection, at, VIRTIO_VSOCK_OP_RW);
    this.#words[at + 6] = length;
    this.#words[at + 8] = 0;
    connection.txCnt = (connection.txCnt + length) >>> 0;
    const list = this.#txData[slot]!;
    list.setLength(1, length);
    this.#txSlot[this.#tx.add(list)] = slot;
  }

  #control(connection: LoadConnection, op: number, flags: number): void {
    const slot = this.#waiting.length > 0 ? -1 : this.#takeSlot();
    if (slot < 0) {
      this.#waiting.push({ connection, op, flags });
      return;
    }
    this.#send(connection, slot, op, flags);
  }

  #send(
    connection: LoadConnection,
    slot: number,
    op: number,
    flags: number,
  ): void {
    const at = this.#txAt[slot]!;
    this.#fill(connection, at, op);
    this.#words[at + 6] = 0;
    this.#words[at + 8] = flags;
    this.#txSlot[this.#tx.add(this.#txControl[slot]!)] = slot;
  }

  #answer(): void {
    let done = 0;
    for (const { connection, op, flags } of this.#waiting) {
      const slot = this.#takeSlot();
      if (slot < 0) break;
      this.#send(connection, slot, op, flags);
      done++;
    }
    this.#waiting.splice(0, done);
  }

  #packet(at: number): void {
    const words = this.#words;
    const length = words[at + 6]!;
    const op = words[at + 7]! >>> 16;
    const peerPort = words[at + 4]!;
    const port = words[at + 5]!;
    let connection = this.#byPort[port - FIRST_PORT];
    if (connection === undefined) {
      connection = this.#accepted.get(peerPort);
      if (connection === undefined) {
        connection = new LoadConnection(port, peerPort);
        if (op !== VIRTIO_VSOCK_OP_REQUEST) return;
        this.#accepted.set(peerPort, connection);
      }
    }
    connection.peerBufAlloc = words[at + 9]!;
    connection.peerFwdCnt = words[at + 10]!;
    if (op === VIRTIO_VSOCK_OP_RW) {
      connection.received += length;
      const fwdCnt = (connection.fwdCnt + length) >>> 0;
      connection.fwdCnt = fwdCnt;
      const untold = (fwdCnt - connection.toldFwdCnt) >>> 0;
      if (BUF_ALLOC_BYTES - untold < MAX_PACKET_BYTES) {
        this.#control(connection, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0);
      }
      return;
    }
    switch (op) {
      case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
        this.#control(connection, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0);
        break;
      case VIRTIO_VSOCK_OP_RESPONSE:
        connection.state = "open";
        break;
      case VIRTIO_VSOCK_OP_REQUEST:
        connection.state = "open";
        this.#control(connection, VIRTIO_VSOCK_OP_RESPONSE, 0);
        break;
      case VIRTIO_VSOCK_OP_SHUTDOWN:
        // A host program that has closed receives no more, either.
        if ((words[at + 8]! & VIRTIO_VSOCK_SHUTDOWN_SEND) !== 0) {
          this.#control(connection, VIRTIO_VSOCK_OP_RST, 0);
          this.#over(connection);
        }
        break;
      case VIRTIO_VSOCK_OP_RST:
        this.#over(connection);
        break;
    }
  }

  #over(connection: LoadConnection): void {
    if (connection.state === "closed") return;
    connection.state = "closed";
    if (this.#accepted.delete(connection.peerPort)) this.served++;
    else this.#byPort[connection.port - FIRST_PORT] = undefined;
  }
}
