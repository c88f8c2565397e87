import { BufferList, type DriverQueue } from "../../ring/queue.ts";
import type { ClosedTuples } from "./closed_tuples.ts";
import type { MemoryArena } from "./memory_arena.ts";
import { type RawSend, RawSender } from "./raw_sender.ts";
import { SendBuffers, type SendLayout } from "./send_buffers.ts";
import { OP_RST, type PacketFields, PacketHeader } from "./vsock_header.ts";

const EMPTY: Uint8Array = new Uint8Array(0);

/** A guest's transmit queue: packets with and without payload, and raw chains, in order. */
export class PacketSender {
  /** Chains of {@link PacketSender.sendRaw} that the device has used, oldest first. */
  readonly rawCompletions: RawSend[] = [];
  /** Packets sent, by operation. */
  readonly sent: Float64Array = new Float64Array(8);
  /** Packets and raw chains that the device has used. */
  used = 0;
  /** The fields of the packet that is sent next; a scratch of the caller. */
  readonly header: PacketHeader = new PacketHeader();

  readonly #queue: DriverQueue;
  readonly #buffers: SendBuffers;
  readonly #raw: RawSender;
  readonly #closed: ClosedTuples;
  readonly #violation: (text: string) => void;
  // By token: which buffer it is.
  readonly #bufferOf: Int32Array;
  readonly #list: BufferList;
  #waiting: PacketFields[] = [];

  /** Sends on `queue` from buffers in `arena`, in chains of `layout`. */
  constructor(
    queue: DriverQueue,
    arena: MemoryArena,
    layout: SendLayout,
    maxPayload: number,
    closed: ClosedTuples,
    violation: (text: string) => void,
  ) {
    this.#queue = queue;
    this.#buffers = new SendBuffers(arena, layout, maxPayload, queue.size);
    this.#raw = new RawSender(arena, queue);
    this.#closed = closed;
    this.#violation = violation;
    this.#bufferOf = new Int32Array(queue.size).fill(-1);
    this.#list = new BufferList(this.#buffers.maxSegments);
  }

  /** Packets without payload that wait for room. */
  get waiting(): number {
    return this.#waiting.length;
  }

  /** Sends `header`, without payload: now where nothing waits and there is room, else later. */
  sendControl(): void {
    if (this.#waiting.length > 0 || !this.#stageControl()) {
      this.#waiting.push(this.header.fields());
    }
  }

  /**
   * Sends `header` with bytes `from` to `from + length - 1` of `source`; false where packets wait
   * or there is no room.
   */
  sendPayload(source: Uint8Array, from: number, length: number): boolean {
    if (this.#waiting.length > 0) return false;
    const token = this.#stage(length);
    if (token < 0) return false;
    const buffer = this.#bufferOf[token]!;
    this.#buffers.fill(buffer, this.header, source, from, length);
    this.sent[this.header.op]!++;
    return true;
  }

  /** Sends any chain; see {@link RawSender.send}. */
  sendRaw(
    segments: readonly Uint8Array[],
    writable: readonly number[],
  ): RawSend | null {
    return this.#raw.send(segments, writable);
  }

  /** Sends a chain at any guest addresses; see {@link RawSender.sendList}. */
  sendList(list: BufferList): RawSend | null {
    return this.#raw.sendList(list);
  }

  /** Sends what waits as far as there is room; true where some was. */
  flush(): boolean {
    const waiting = this.#waiting;
    if (waiting.length === 0) return false;
    let done = 0;
    while (done < waiting.length) {
      this.header.set(waiting[done]!);
      if (!this.#stageControl()) break;
      done++;
    }
    if (done > 0) this.#waiting = waiting.slice(done);
    return done > 0;
  }

  /** Takes back what the device has used; true where there was any. */
  reclaim(): boolean {
    const queue = this.#queue;
    let any = false;
    for (;;) {
      const token = queue.reclaim();
      if (token < 0) return any;
      any = true;
      this.used++;
      const raw = this.#raw.complete(token, queue.usedLength);
      if (raw !== null) {
        this.rawCompletions.push(raw);
        continue;
      }
      if (queue.usedLength !== 0) {
        this.#violation(
          `the device claims ${queue.usedLength} bytes in a packet that it only reads`,
        );
      }
      this.#closed.sentPacketUsed(token);
      this.#buffers.release(this.#bufferOf[token]!);
    }
  }

  #stageControl(): boolean {
    const token = this.#stage(0);
    if (token < 0) return false;
    const header = this.header;
    this.#buffers.fill(this.#bufferOf[token]!, header, EMPTY, 0, 0);
    if (header.op === OP_RST) {
      const { srcPort, dstCid, dstPort } = header;
      this.#closed.resetStaged(srcPort, dstCid, dstPort, token);
    }
    this.sent[header.op]!++;
    return true;
  }

  /** Stages a packet with `length` bytes of payload, to be filled in; its token or -1. */
  #stage(length: number): number {
    const buffers = this.#buffers;
    const buffer = buffers.take();
    if (buffer < 0) return -1;
    const list = buffers.describe(buffer, length, this.#list);
    const token = this.#queue.add(list);
    if (token < 0) buffers.release(buffer);
    else this.#bufferOf[token] = buffer;
    return token;
  }
}
