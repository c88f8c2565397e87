import { Chain } from "../../ring/chain.ts";
import { RingError } from "../../ring/errors.ts";
import { GuestMemory } from "../../ring/memory.ts";
import type { DeviceQueue } from "../../ring/queue.ts";
import { Diagnostics } from "../diagnostics.ts";
import {
  type DeviceModel,
  featureMask,
  type VirtioDevice,
} from "../virtio_device.ts";
import type { AnyAnswer } from "./connection.ts";
import type {
  ConnectAnswer,
  HostSide,
  MessagesAnswer,
  PeerAddress,
  PeerSide,
  PendingConnect,
} from "./host.ts";
import {
  DEFAULT_BUF_ALLOC_BYTES,
  DEFAULT_MAX_CONNECTIONS,
  MAX_STRAY_RESETS,
  Muxer,
} from "./muxer.ts";
import { RxWriter } from "./rx_writer.ts";
import { readVsockSnapshot, type VsockSnapshot } from "./snapshot.ts";
import {
  isGuestCid,
  VIRTIO_ID_VSOCK,
  VIRTIO_VSOCK_EVENT_TRANSPORT_RESET,
  VIRTIO_VSOCK_F_SEQPACKET,
  VIRTIO_VSOCK_F_STREAM,
  VIRTIO_VSOCK_TYPE_SEQPACKET,
  VIRTIO_VSOCK_TYPE_STREAM,
  VSOCK_EVENT_SIZE,
  VSOCK_QUEUE_EVENT,
  VSOCK_QUEUE_RX,
  VSOCK_QUEUE_TX,
} from "./virtio_vsock.ts";

/** Packets that one pass takes from the guest at most. */
const MAX_PACKETS_PER_PASS = 256;

/** What a {@link VsockDevice} is made with. */
export type VsockDeviceOptions = {
  /** The guest's CID, 3 to 0xfffffffe. */
  guestCid: number;
  /** Where the guest's connections go. */
  host: HostSide;
  /** Counters and log. */
  diagnostics?: Diagnostics;
  /** Largest queue, a power of two. 1024 unless told. */
  maxQueueSize?: number;
  /**
   * Bytes that a connection buffers for its host program, 1 to 2^31 - 1. 256 KiB unless told. A snapshot of a
   * device with larger buffers is refused.
   */
  bufAlloc?: number;
  /**
   * Connections at a time. 2048 unless told. Memory for one guest is bounded by this times
   * `bufAlloc`, all of it in use only when no program reads. A guest of seqpackets of one byte takes six
   * times that, as their lengths are kept, and a message to it.
   */
  maxConnections?: number;
  /** Offer seqpacket sockets beside streams. True unless told. */
  seqpackets?: boolean;
  /** Milliseconds that never go back; `performance.now` unless told. */
  now?: () => number;
};

/**
 * A socket device (virtio 1.4, 5.10): three queues, a muxer and the host's side.
 *
 * It does nothing by itself. Kicks and host events only note work; whoever owns it calls
 * {@link VsockDevice.process} after them, again while that says so, and {@link VsockDevice.expire}
 * at {@link VsockDevice.nextDeadline}.
 *
 * @example
 * ```ts ignore
 * const vsock = new VsockDevice({ guestCid: 3, host });
 * const virtio = new VirtioDevice(vsock);
 * vsock.attach(virtio);
 * // The transport negotiates, starts the queues, carries kicks to virtio.kick(); after each:
 * while (vsock.process());
 * ```
 */
export class VsockDevice implements DeviceModel {
  /** 19: a socket device. */
  readonly deviceId: number = VIRTIO_ID_VSOCK;
  /** Streams, and seqpackets unless told otherwise. */
  readonly features: bigint;
  /** rx, tx, event. */
  readonly maxQueueSizes: readonly number[];
  /** The guest's CID. */
  readonly guestCid: number;
  /** Counters and log. */
  readonly diagnostics: Diagnostics;

  readonly #muxer: Muxer;
  readonly #rx: RxWriter;
  readonly #now: () => number;
  readonly #maxConnections: number;
  readonly #bufAlloc: number;
  #virtio: VirtioDevice | null = null;
  #tx: DeviceQueue | null = null;
  #event: DeviceQueue | null = null;
  #chain: Chain;
  #txWork = false;
  // Since the last reset: a guest whose machine is paused is there, though no queue runs.
  #driverSeen = false;
  // The driver's connections are in a snapshot that was restored.
  #restored = false;
  #processing = false;
  #resetEventDue = false;

  /**
   * Makes a device that no transport carries yet.
   *
   * @throws {RangeError} when the CID is reserved (5.10.4) or a limit is out of range.
   */
  constructor(options: VsockDeviceOptions) {
    const {
      guestCid,
      host,
      diagnostics = new Diagnostics(),
      maxQueueSize = 1024,
      bufAlloc = DEFAULT_BUF_ALLOC_BYTES,
      maxConnections = DEFAULT_MAX_CONNECTIONS,
      seqpackets = true,
      now = () => performance.now(),
    } = options;
    if (!isGuestCid(guestCid)) {
      throw new RangeError(
        `Cannot make a device for CID ${guestCid}: it is no guest's`,
      );
    }
    if (!(Number.isInteger(bufAlloc) && bufAlloc >= 1 && bufAlloc < 2 ** 31)) {
      throw new RangeError(
        `Cannot make a device with buffers of ${bufAlloc} bytes`,
      );
    }
    if (!(Number.isInteger(maxConnections) && maxConnections >= 1)) {
      throw new RangeError(
        `Cannot make a device for ${maxConnections} connections`,
      );
    }
    this.features = featureMask(VIRTIO_VSOCK_F_STREAM) |
      (seqpackets ? featureMask(VIRTIO_VSOCK_F_SEQPACKET) : 0n);
    this.guestCid = guestCid;
    this.diagnostics = diagnostics;
    this.maxQueueSizes = [maxQueueSize, maxQueueSize, maxQueueSize];
    const memory = new GuestMemory([]);
    this.#now = now;
    this.#maxConnections = maxConnections;
    this.#bufAlloc = bufAlloc;
    this.#chain = new Chain(memory);
    this.#rx = new RxWriter(memory, diagnostics);
    this.#muxer = new Muxer(memory, {
      guestCid,
      host,
      diagnostics,
      bufAlloc,
      maxConnections,
      now,
    });
  }

  /** Gives the device its virtio side, once. */
  attach(virtio: VirtioDevice): void {
    if (this.#virtio !== null) {
      throw new TypeError("Cannot attach the device: it is attached");
    }
    this.#virtio = virtio;
  }

  // -- For whoever owns the device --

  /** True when a driver runs: packets can go both ways. */
  get ready(): boolean {
    return this.#tx !== null && this.#rx.attached;
  }

  /** Connections, those included whose host program has not taken all bytes. */
  get connectionCount(): number {
    return this.#muxer.connectionCount;
  }

  /** True when `process()` would do something. */
  get pending(): boolean {
    return this.peers?.pending === true || (this.ready &&
      (this.#txReady || (this.#muxer.hasOutput && !this.#rx.starved)));
  }

  /**
   * Connects a host program to a guest's port by a stream; `answer` hears of it, now or later:
   * refused at once where no driver has started the device since its reset.
   *
   * @throws {RangeError} when `guestPort` is no port.
   */
  connect(guestPort: number, answer: ConnectAnswer): PendingConnect {
    return this.#connect(VIRTIO_VSOCK_TYPE_STREAM, guestPort, answer);
  }

  /**
   * The same by a seqpacket socket; refused also where the driver has not negotiated them.
   *
   * @throws {RangeError} when `guestPort` is no port.
   */
  connectMessages(guestPort: number, answer: MessagesAnswer): PendingConnect {
    return this.#connect(VIRTIO_VSOCK_TYPE_SEQPACKET, guestPort, answer);
  }

  /** Where connections to other guests go; null, so that there are none, unless a switch set it. */
  get peers(): PeerSide | null {
    return this.#muxer.peers;
  }

  set peers(peers: PeerSide | null) {
    this.#muxer.peers = peers;
  }

  /**
   * Connects another guest's port to a port of this one by a stream; called by a switch. Refused also where
   * these two ports are connected.
   *
   * @throws {RangeError} when `guestPort` is no port.
   */
  connectPeer(
    guestPort: number,
    peer: PeerAddress,
    answer: ConnectAnswer,
  ): PendingConnect {
    return this.#connect(VIRTIO_VSOCK_TYPE_STREAM, guestPort, answer, peer);
  }

  /**
   * The same by a seqpacket socket; refused also where the driver has not negotiated them.
   *
   * @throws {RangeError} when `guestPort` is no port.
   */
  connectPeerMessages(
    guestPort: number,
    peer: PeerAddress,
    answer: MessagesAnswer,
  ): PendingConnect {
    return this.#connect(VIRTIO_VSOCK_TYPE_SEQPACKET, guestPort, answer, peer);
  }

  #connect(
    type: number,
    guestPort: number,
    answer: AnyAnswer,
    peer: PeerAddress | null = null,
  ): PendingConnect {
    if (this.#driverSeen) {
      return this.#muxer.connect(type, guestPort, answer, peer);
    }
    answer.refused("no guest is running");
    return { hostPort: -1, cancel: () => {} };
  }

  /**
   * Does a bounded amount of work: packets from the guest, packets to it, interrupts. True when
   * more is pending.
   */
  process(): boolean {
    // Called by a host side from within: there is one scratch of everything.
    if (this.#processing) return this.ready;
    this.#processing = true;
    try {
      this.#muxer.peers?.deliver();
      if (!this.ready) return false;
      this.#processTx();
      this.#processRx();
      this.#processEvents();
    } finally {
      this.#processing = false;
    }
    return this.pending;
  }

  /** When {@link VsockDevice.expire} is due, in the clock's milliseconds; Infinity for never. */
  nextDeadline(): number {
    return this.#muxer.nextDeadline;
  }

  /** Handles timeouts that were due by `now`; `process()` sends what they cause. */
  expire(now: number = this.#now()): void {
    this.#muxer.expire(now);
  }

  /** Ends all connections by RST: the host side is about to go. `process()` sends them. */
  resetConnections(): void {
    this.#muxer.resetAll();
  }

  /**
   * Tells the guest that its connections are lost and its CID is to be read again (5.10.6.7).
   * Waits for an event buffer where the guest has none. Both ends drop all connections.
   */
  transportReset(): void {
    this.#muxer.abandonAll();
    this.#resetEventDue = true;
    this.#processEvents();
  }

  // -- DeviceModel --

  /** `struct virtio_vsock_config`: le64 guest_cid (5.10.4). */
  configSpace(): Uint8Array {
    const config = new Uint8Array(8);
    new DataView(config.buffer).setUint32(0, this.guestCid, true);
    return config;
  }

  /** Streams are implied, whatever was accepted (5.10.3.2); seqpackets are not. */
  featuresAccepted(features: bigint): void {
    this.#muxer.seqpackets =
      (features & featureMask(VIRTIO_VSOCK_F_SEQPACKET)) !== 0n;
  }

  /** Takes a queue over. */
  queueStarted(index: number, queue: DeviceQueue, fresh: boolean): void {
    if (index === VSOCK_QUEUE_TX) {
      // Packets of a new driver know nothing of the old one's connections.
      if (fresh) this.#muxer.abandonAll();
      // A driver from before, in the hands of another device: its connections are lost, and those that only
      // wait for bytes would wait for ever.
      else if (!this.#driverSeen && !this.#restored) this.#resetEventDue = true;
      this.#restored = false;
      this.#tx = queue;
      this.#txWork = true;
      this.#driverSeen = true;
    } else if (index === VSOCK_QUEUE_RX) {
      this.#rx.attach(queue);
    } else {
      this.#event = queue;
    }
  }

  /** Lets a queue go; no buffer of it is held afterwards. */
  queueStopped(index: number): void {
    if (index === VSOCK_QUEUE_TX) this.#tx = null;
    else if (index === VSOCK_QUEUE_RX) this.#rx.detach();
    else this.#event = null;
  }

  /** Gives back the held receive buffers. */
  memoryChanging(): void {
    this.#rx.giveBack();
  }

  /** Goes on over other memory. */
  memoryChanged(memory: GuestMemory): void {
    this.#chain = new Chain(memory);
    this.#rx.setMemory(memory);
    this.#muxer.setMemory(memory);
  }

  /** Notes that a queue has work. */
  queueKicked(index: number): void {
    if (index === VSOCK_QUEUE_TX) this.#txWork = true;
    else if (index === VSOCK_QUEUE_RX) this.#rx.kicked();
  }

  /** The driver is gone: host programs hear of it. */
  reset(): void {
    this.#driverSeen = false;
    this.#restored = false;
    this.#muxer.abandonAll();
    this.#resetEventDue = false;
    this.#txWork = false;
  }

  /**
   * Its state as plain data: connections, credit, the bytes that host programs have not taken.
   * Changes nothing; to be called between two calls of `process()`.
   */
  save(): VsockSnapshot {
    return {
      guestCid: this.guestCid,
      resetEventDue: this.#resetEventDue,
      ...this.#muxer.save(),
    };
  }

  /**
   * Checks a snapshot and returns what goes on from it. The host side is asked for each
   * connection's host program; what it does not know is reset.
   *
   * @throws {SnapshotError} when it is no snapshot of such a device.
   */
  prepareRestore(snapshot: unknown): () => void {
    const checked = readVsockSnapshot(snapshot, {
      guestCid: this.guestCid,
      bufAlloc: this.#bufAlloc,
      maxConnections: this.#maxConnections,
      maxStrays: MAX_STRAY_RESETS,
    });
    return () => {
      this.#muxer.abandonAll();
      this.#resetEventDue = checked.resetEventDue;
      this.#muxer.restore(checked);
      this.#restored = true;
    };
  }

  // -- The three queues --

  get #txReady(): boolean {
    // With every answer waiting for receive buffers, packets wait too.
    return this.#txWork && (this.#muxer.canReceive || !this.#rx.starved);
  }

  #processTx(): void {
    const queue = this.#tx;
    if (queue === null || !this.#txWork) return;
    const muxer = this.#muxer;
    const chain = this.#chain;
    let budget = MAX_PACKETS_PER_PASS;
    let fault: RingError | null = null;
    queue.disarmKicks();
    try {
      while (budget > 0 && muxer.canReceive) {
        if (!queue.pop(chain)) {
          if (queue.armKicks()) {
            // A guest could show a buffer and hide it again as often as it is looked for.
            budget--;
            continue;
          }
          this.#txWork = false;
          break;
        }
        budget--;
        if (chain.fault !== null) {
          const { code, message } = chain.fault;
          this.diagnostics.fault(`tx_${code.toLowerCase()}`, () => message);
        } else {
          muxer.receive(chain);
        }
        // Gathered payload stays the device's until publish().
        queue.push(chain.token, 0);
      }
    } catch (error) {
      if (!(error instanceof RingError)) throw error;
      fault = error;
    }
    muxer.flush();
    queue.publish();
    if (queue.needsInterrupt()) this.#virtio?.interrupt(VSOCK_QUEUE_TX);
    if (fault !== null) this.#virtio?.breakQueue(VSOCK_QUEUE_TX, fault);
  }

  #processRx(): void {
    const rx = this.#rx;
    if (!rx.attached) return;
    rx.begin();
    do {
      if (!rx.starved) this.#muxer.transmit(rx);
      if (rx.publish()) this.#virtio?.interrupt(VSOCK_QUEUE_RX);
      // Buffers may have come between the last look and the arming.
    } while (rx.fault === null && rx.arm() && !rx.exhausted);
    if (rx.fault !== null) this.#virtio?.breakQueue(VSOCK_QUEUE_RX, rx.fault);
  }

  #processEvents(): void {
    const queue = this.#event;
    if (queue === null || !this.#resetEventDue) return;
    const chain = this.#chain;
    try {
      // A guest could offer useless buffers as fast as they are taken.
      for (let left = queue.size; this.#resetEventDue && left > 0; left--) {
        if (!queue.pop(chain)) {
          if (queue.armKicks()) continue;
          break;
        }
        let written = 0;
        if (chain.fault === null && chain.writableBytes >= VSOCK_EVENT_SIZE) {
          const event = new Uint8Array(VSOCK_EVENT_SIZE);
          new DataView(event.buffer).setUint32(
            0,
            VIRTIO_VSOCK_EVENT_TRANSPORT_RESET,
            true,
          );
          written = chain.write(event);
          this.#resetEventDue = false;
        } else {
          this.diagnostics.fault(
            "event_buffer_unusable",
            () => `${chain.writableBytes} bytes`,
          );
        }
        queue.push(chain.token, written);
      }
      queue.publish();
      if (queue.needsInterrupt()) this.#virtio?.interrupt(VSOCK_QUEUE_EVENT);
    } catch (error) {
      if (!(error instanceof RingError)) throw error;
      this.#virtio?.breakQueue(VSOCK_QUEUE_EVENT, error);
    }
  }
}
