import { BufferList, type DriverQueue } from "../../ring/queue.ts";
import type { MemoryArena } from "./memory_arena.ts";

/** A chain that was sent as it is. */
export type RawSend = {
  /** The device has used the chain. */
  used: boolean;
  /** Bytes that the device says it wrote, once used. */
  usedLength: number;
  /** What its device-writable segments hold, once used. */
  written: Uint8Array[];
};

type Sent = {
  send: RawSend;
  pieces: { address: number; length: number; writable: boolean }[];
};

/** Sends chains of any bytes in any descriptors on a driver queue. */
export class RawSender {
  readonly #arena: MemoryArena;
  readonly #queue: DriverQueue;
  readonly #sent: Map<number, Sent> = new Map();

  /** Takes memory from `arena` for each chain and gives it back when the device has used it. */
  constructor(arena: MemoryArena, queue: DriverQueue) {
    this.#arena = arena;
    this.#queue = queue;
  }

  /** Stages a chain: one descriptor for each of `segments` and of `writable`; null without room. */
  send(
    segments: readonly Uint8Array[],
    writable: readonly number[],
  ): RawSend | null {
    const list = new BufferList(segments.length + writable.length);
    const pieces: Sent["pieces"] = [];
    for (const segment of segments) {
      const address = this.#arena.allocate(Math.max(1, segment.length));
      this.#arena.bytes(address, segment.length).set(segment);
      list.addReadable(address, segment.length);
      pieces.push({ address, length: segment.length, writable: false });
    }
    for (const length of writable) {
      const address = this.#arena.allocate(Math.max(1, length));
      this.#arena.bytes(address, length).fill(0);
      list.addWritable(address, length);
      pieces.push({ address, length, writable: true });
    }
    return this.#add(list, pieces);
  }

  /** Stages a chain at any guest addresses, which stay the caller's; null without room. */
  sendList(list: BufferList): RawSend | null {
    return this.#add(list, []);
  }

  /** The chain with this token, filled in, or null where the token is not of this sender. */
  complete(token: number, usedLength: number): RawSend | null {
    const sent = this.#sent.get(token);
    if (sent === undefined) return null;
    this.#sent.delete(token);
    const { send, pieces } = sent;
    send.used = true;
    send.usedLength = usedLength;
    for (const { address, length, writable } of pieces) {
      if (writable) {
        send.written.push(this.#arena.bytes(address, length).slice());
      }
    }
    this.#free(pieces);
    return send;
  }

  #add(list: BufferList, pieces: Sent["pieces"]): RawSend | null {
    const token = this.#queue.add(list);
    if (token < 0) {
      this.#free(pieces);
      return null;
    }
    const send: RawSend = { used: false, usedLength: 0, written: [] };
    this.#sent.set(token, { send, pieces });
    return send;
  }

  #free(pieces: Sent["pieces"]): void {
    for (const { address, length } of pieces) {
      this.#arena.free(address, Math.max(1, length));
    }
  }
}
