import { Chain } from "../../ring/chain.ts";
import { RingError } from "../../ring/errors.ts";
import type { GuestMemory } from "../../ring/memory.ts";
import type { DeviceQueue } from "../../ring/queue.ts";
import type { Diagnostics } from "../diagnostics.ts";
import type { Credit } from "./credit.ts";
import type { HostStream } from "./host.ts";
import type { PacketHeader } from "./packet.ts";
import { MAX_SEGMENTS, Segments } from "./segments.ts";
import { VSOCK_HEADER_SIZE } from "./virtio_vsock.ts";

/** {@link RxWriter.sendData}: the guest has no receive buffers; the next kick tells of more. */
export const RX_STARVED = -3;

/** Receive buffers that are held for one gathering read at most. */
const MAX_HELD = 32;

/** Receive buffers that one pass takes at most, so that a guest cannot keep the device busy. */
const MAX_BUFFERS_PER_PASS = 512;

/**
 * Writes packets into the guest's receive buffers (virtio 1.4, 5.10.6.4).
 *
 * A host stream reads straight into the buffers behind the headers; a read that finds nothing
 * leaves them held for the next packet. Held buffers are given back when the queue stops.
 */
export class RxWriter {
  /** True when the last packet found no buffer; a kick of the rx queue clears it. */
  starved = false;
  /** Payload bytes that the last `sendData` offered to its stream. */
  offered = 0;
  /** Raised when the guest broke the queue; the device stops it. */
  fault: RingError | null = null;

  readonly #diagnostics: Diagnostics;
  readonly #chains: Chain[] = [];
  readonly #segments: Segments;
  #memory: GuestMemory;
  #queue: DeviceQueue | null = null;
  #held = 0;
  #budget = 0;

  /** Makes a writer without a queue, over `memory`. */
  constructor(memory: GuestMemory, diagnostics: Diagnostics) {
    this.#memory = memory;
    this.#segments = new Segments(memory);
    this.#diagnostics = diagnostics;
  }

  /** True when there is a queue to write to. */
  get attached(): boolean {
    return this.#queue !== null;
  }

  /** Starts to use `queue`. */
  attach(queue: DeviceQueue): void {
    this.#queue = queue;
    this.fault = null;
    this.kicked();
  }

  /** The guest may have added buffers; no kick is needed until they are used up. */
  kicked(): void {
    this.starved = false;
    this.#queue?.disarmKicks();
  }

  /** Gives back the held buffers, makes the used ones known, and forgets the queue. */
  detach(): void {
    this.giveBack();
    this.#queue = null;
  }

  /** Gives back the held buffers and makes the used ones known. */
  giveBack(): void {
    const queue = this.#queue;
    if (queue === null) return;
    while (this.#held > 0) queue.unpop(this.#chains[--this.#held]!.token);
    queue.publish();
  }

  /** Goes on over other memory; held buffers were given back before. */
  setMemory(memory: GuestMemory): void {
    this.#memory = memory;
    this.#segments.memory = memory;
    this.#segments.clear();
    this.#chains.length = 0;
    this.#held = 0;
  }

  /** Begins a pass of bounded work. */
  begin(): void {
    this.#budget = MAX_BUFFERS_PER_PASS;
  }

  /** True when the pass has used up its share. */
  get exhausted(): boolean {
    return this.#budget <= 0;
  }

  /** Makes the packets of this pass known; true when the guest wants an interrupt for them. */
  publish(): boolean {
    const queue = this.#queue;
    if (queue === null) return false;
    queue.publish();
    return queue.needsInterrupt();
  }

  /** Asks for kicks where the writer is starved; true when buffers came meanwhile. */
  arm(): boolean {
    const queue = this.#queue;
    if (queue === null || !this.starved) return false;
    if (!queue.armKicks()) return false;
    this.kicked();
    return true;
  }

  /** Writes a packet without payload; false where there is no buffer. */
  sendControl(header: PacketHeader): boolean {
    if (!this.#hold(1)) return false;
    const chain = this.#chains[0]!;
    header.len = 0;
    header.writeTo(chain);
    this.#take(1);
    this.#queue!.push(chain.token, VSOCK_HEADER_SIZE);
    return true;
  }

  /**
   * Reads up to `limit` bytes from `stream` into at most `maxPackets` packets with `header`,
   * counting each in `credit`. Returns the bytes, what `stream.read` returned where it had none,
   * or {@link RX_STARVED}.
   */
  sendData(
    header: PacketHeader,
    credit: Credit,
    stream: HostStream,
    limit: number,
    maxPackets: number,
  ): number {
    const segments = this.#segments;
    segments.clear();
    let packets = 0;
    while (
      segments.bytes < limit && packets < maxPackets && this.#hold(packets + 1)
    ) {
      const chain = this.#chains[packets]!;
      if (segments.count + chain.count > MAX_SEGMENTS) break;
      segments.add(
        chain,
        0,
        chain.count,
        VSOCK_HEADER_SIZE,
        limit - segments.bytes,
      );
      packets++;
    }
    if (packets === 0) return RX_STARVED;
    this.offered = segments.bytes;
    const got = stream.read(segments);
    if (got <= 0) return got;

    const queue = this.#queue!;
    let left = got;
    let used = 0;
    while (left > 0) {
      const chain = this.#chains[used++]!;
      const room = chain.writableBytes - VSOCK_HEADER_SIZE;
      const length = left < room ? left : room;
      header.len = length;
      header.writeTo(chain);
      queue.push(chain.token, VSOCK_HEADER_SIZE + length);
      credit.sent(length);
      left -= length;
    }
    this.#take(used);
    return got;
  }

  /** True when the guest has a receive buffer for a packet. */
  ready(): boolean {
    return this.#hold(1);
  }

  /**
   * Sends the first `limit` bytes of `bytes` in packets with `header`, counting each in `credit`; the
   * packet with the last byte of all has `lastFlags`, and is sent also where there is no byte.
   * Returns how many bytes it sent, fewer where the guest runs out of receive buffers, or {@link RX_STARVED}.
   */
  sendBytes(
    header: PacketHeader,
    credit: Credit,
    bytes: Uint8Array,
    limit: number,
    lastFlags: number,
  ): number {
    let done = 0;
    do {
      if (!this.#hold(1)) return done > 0 ? done : RX_STARVED;
      const chain = this.#chains[0]!;
      const room = chain.writableBytes - VSOCK_HEADER_SIZE;
      const length = limit - done < room ? limit - done : room;
      header.len = length;
      header.flags = done + length === bytes.length ? lastFlags : 0;
      header.writeTo(chain);
      chain.write(bytes.subarray(done, done + length), VSOCK_HEADER_SIZE);
      this.#take(1);
      this.#queue!.push(chain.token, VSOCK_HEADER_SIZE + length);
      credit.sent(length);
      done += length;
    } while (done < limit);
    return done;
  }

  /** Pops until `count` good buffers are held; false where the guest has no more just then. */
  #hold(count: number): boolean {
    const queue = this.#queue;
    if (queue === null || this.fault !== null || count > MAX_HELD) return false;
    while (this.#held < count) {
      if (this.#budget <= 0) return false;
      let chain = this.#chains[this.#held];
      if (chain === undefined) {
        this.#chains.push(chain = new Chain(this.#memory, 8));
      }
      try {
        if (!queue.pop(chain)) {
          // A guest could show a buffer and hide it again as often as it is looked for.
          this.#budget--;
          // With others held, a packet can still be sent.
          this.starved = this.#held === 0;
          return false;
        }
      } catch (error) {
        if (!(error instanceof RingError)) throw error;
        this.fault = error;
        return false;
      }
      this.#budget--;
      if (
        chain.fault !== null || chain.readable > 0 ||
        chain.writableBytes <= VSOCK_HEADER_SIZE || chain.count > MAX_SEGMENTS
      ) {
        if (this.#held > 0) {
          // Used now, it would keep the ones that are held from being given back.
          queue.unpop(chain.token);
          return false;
        }
        const { fault, writableBytes, count: pieces } = chain;
        this.#diagnostics.fault(
          fault === null
            ? "rx_buffer_unusable"
            : `rx_${fault.code.toLowerCase()}`,
          () =>
            fault?.message ??
              `a receive buffer with ${writableBytes} writable bytes in ${pieces} pieces`,
        );
        queue.push(chain.token, 0);
        continue;
      }
      this.#held++;
    }
    return true;
  }

  /** Forgets the first `count` held buffers, which were pushed. */
  #take(count: number): void {
    const chains = this.#chains;
    const held = this.#held;
    for (let i = 0; i + count < held; i++) {
      const chain = chains[i]!;
      chains[i] = chains[i + count]!;
      chains[i + count] = chain;
    }
    this.#held = held - count;
  }
}
