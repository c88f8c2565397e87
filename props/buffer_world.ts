/**
 * A guest that offers buffers of any shape, and the stream that goes through them: too small, of many pieces, with pieces that the
 * device must not write to, in rings that it breaks now and then.
 *
 * @module
 */

import fc from "fast-check";
import { VsockDevice } from "../device/vsock/device.ts";
import {
  type ConnectRequest,
  type HostSide,
  type HostStream,
  STREAM_AGAIN,
  type StreamEvents,
} from "../device/vsock/host.ts";
import type { Segments } from "../device/vsock/segments.ts";
import { VirtioDevice } from "../device/virtio_device.ts";
import { GuestMemory } from "../ring/memory.ts";
import { PackedDriver } from "../ring/packed_driver.ts";
import { BufferList, type DriverQueue } from "../ring/queue.ts";
import { SplitDriver } from "../ring/split_driver.ts";
import {
  CID_HOST,
  HEADER_BYTES,
  OP_CREDIT_UPDATE,
  OP_REQUEST,
  OP_RESPONSE,
  OP_RW,
  opName,
  PacketHeader,
  TYPE_STREAM,
} from "./guest/mod.ts";
import type { QueueRun } from "./queue_steps.ts";
import { newRun, type ScriptWorld } from "./script_property.ts";
import { expectSame, Violation } from "./violation.ts";
import { DirectionModel } from "./vsock_model.ts";

/** What guest and device are made with. */
export type BufferSetup = {
  format: "split" | "packed";
  /** Descriptors of each queue. */
  size: number;
  eventIdx: boolean;
  indirect: boolean;
};

/** One step of a script. */
export type BufferStep =
  /** Receive buffers of so many bytes in so many pieces; the first piece may be one that is not to be written. */
  | {
    do: "offer";
    bytes: number;
    pieces: number;
    readable: boolean;
    count: number;
  }
  /** A buffer for events. */
  | { do: "offerEvent"; bytes: number; readable: boolean }
  /** Packets of so many bytes, each in so many pieces. */
  | { do: "send"; bytes: number; pieces: number; count: number }
  | { do: "hostSend"; bytes: number }
  | { do: "run" }
  /** The device's memory is handed to it anew. */
  | { do: "remap" }
  | { do: "transportReset" }
  /** The guest breaks a ring, and starts anew. */
  | { do: "break"; queue: number };

const GUEST_CID = 3;
const PORT = 80;
const FIRST_PORT = 5000;
const RX = 0;
const TX = 1;
const EVENT = 2;
const NEEDS_RESET = 0x40;
const ENTRIES = 256;
const SLOT_BYTES = 0x4000;
const SLOTS_AT = 0x60_0000;
const QUEUE_BYTES = 0x20_0000;
const EVENT_SLOT = 64;
const MEMORY_BYTES = 0x100_0000;
const UNTOUCHED = 0xa5;
const GUEST_BUFFER = 0x4000_0000;
const DEVICE_BUFFER = 262_144;

/** A buffer that the device has. */
type Buffer = {
  slot: number;
  pieces: { at: number; length: number }[];
  /** Bytes that may be written, or 0 where the buffer is of no use. */
  room: number;
};

/** The program, which takes all there is. */
class Program implements HostStream {
  readonly events: StreamEvents;
  readonly up: DirectionModel;
  /** What it has sent and nobody has read. */
  unread = new Uint8Array(0);
  closed = false;

  constructor(events: StreamEvents, up: DirectionModel) {
    this.events = events;
    this.up = up;
  }

  write(from: Segments): number {
    const bytes = new Uint8Array(from.bytes);
    from.copyTo(bytes);
    return this.writeBytes(bytes);
  }

  writeBytes(from: Uint8Array): number {
    this.up.take(from);
    return from.length;
  }

  read(into: Segments): number {
    if (this.unread.length === 0) return STREAM_AGAIN;
    const count = into.copyFrom(this.unread);
    this.unread = this.unread.slice(count);
    return count;
  }

  shutdownWrite(): void {}
  shutdownRead(): void {}
  close(): void {
    this.closed = true;
  }
}

/** The guest, its device, and one stream after the other. */
export class BufferWorld implements ScriptWorld<BufferStep> {
  /** For statistics. */
  readonly run: QueueRun = newRun("wrapped", "full", "indirect");
  readonly #setup: BufferSetup;
  readonly #bytes = new Uint8Array(MEMORY_BYTES);
  readonly #device: VsockDevice;
  readonly #virtio: VirtioDevice;
  #drivers: DriverQueue[] = [];
  #offered: Map<number, Buffer>[] = [];
  #program: Program | null = null;
  #up = new DirectionModel("", 0);
  #down = new DirectionModel("", 0);
  #port = FIRST_PORT;
  #answered = false;
  /** Bytes that the device has told that it passed on. */
  #told = 0;
  /** An event is due. */
  #eventDue = false;
  #used = 0;

  /** @param setup What guest and device are made with. */
  constructor(setup: BufferSetup) {
    this.#setup = setup;
    if (!setup.indirect) this.run.indirect = null;
    this.#device = new VsockDevice({
      guestCid: GUEST_CID,
      host: this.#host(),
      bufAlloc: DEVICE_BUFFER,
      now: () => 0,
    });
    this.#virtio = new VirtioDevice(this.#device, { ring: setup.format });
    this.#device.attach(this.#virtio);
    this.#virtio.setMemory(this.#newMemory());
    this.#start();
  }

  /** Always. */
  possible(_step: BufferStep): boolean {
    return true;
  }

  /** Takes a step and judges what comes back. */
  take(step: BufferStep): string {
    const outcome = this.#perform(step);
    this.#collect();
    return outcome;
  }

  #perform(step: BufferStep): string {
    switch (step.do) {
      case "offer": {
        let count = 0;
        while (count < step.count && this.#offer(RX, step)) count++;
        return `${count} buffers`;
      }
      case "offerEvent":
        return this.#offer(EVENT, { ...step, pieces: 1 }) ? "" : "no room";
      case "send": {
        let count = 0;
        while (count < step.count && this.#sendData(step.bytes, step.pieces)) {
          count++;
        }
        this.#kick(TX);
        return `${count} packets`;
      }
      case "hostSend":
        return this.#hostSend(step.bytes);
      case "run":
        this.#work();
        return "";
      case "remap":
        this.#virtio.setMemory(this.#newMemory());
        return "";
      case "transportReset":
        this.#work();
        this.#collect();
        this.#device.transportReset();
        this.#eventDue = true;
        this.#lose("it was reset");
        this.#collect();
        this.#connect();
        return "";
      case "break":
        return this.#break(step.queue);
    }
  }

  /** With buffers that are of use, everything arrives. */
  settle(): void {
    for (let round = 0; round < 400; round++) {
      this.#perform({ do: "run" });
      this.#collect();
      const done = this.#answered && this.#up.done && this.#down.done &&
        !this.#eventDue;
      if (done) break;
      this.#offer(EVENT, { bytes: 8, pieces: 1, readable: false });
      while (
        this.#offer(RX, { bytes: 4096, pieces: 1, readable: false })
      );
    }
    expectSame("progress", "a REQUEST was answered", this.#answered, true);
    for (const way of [this.#up, this.#down]) {
      if (!way.done) throw new Violation("progress", `${way}`);
    }
    expectSame("progress", "an event is due", this.#eventDue, false);
    expectSame("progress", "status", this.#virtio.status & NEEDS_RESET, 0);
    this.#virtio.setStatus(0);
    const left = this.#device.connectionCount;
    expectSame("every-connection-ends", "what is left", left, 0);
    const closed = this.#program?.closed;
    expectSame("every-connection-ends", "the program heard", closed, true);
  }

  // -- The guest --

  #start(): void {
    const { size, format, eventIdx, indirect } = this.#setup;
    const virtio = this.#virtio;
    virtio.setStatus(1 | 2);
    let features = virtio.offeredFeatures;
    if (!eventIdx) features &= ~(1n << 29n);
    if (!indirect) features &= ~(1n << 28n);
    virtio.setFeatures(features);
    virtio.setStatus(1 | 2 | 8);
    expectSame("progress", "features are taken", virtio.status, 1 | 2 | 8);
    this.#bytes.fill(0, 0, SLOTS_AT);
    this.#drivers = [];
    this.#offered = [];
    for (let index = 0; index < 3; index++) {
      const at = index * QUEUE_BYTES;
      const setup = {
        size,
        descriptorArea: at,
        driverArea: at + 0x2000,
        deviceArea: at + 0x4000,
      };
      const config = { ...setup, eventIdx, indirect };
      const options = indirect
        ? { indirect: { address: at + 0x8000, entries: ENTRIES } }
        : {};
      this.#drivers.push(
        format === "packed"
          ? new PackedDriver(this.#newMemory(), config, options)
          : new SplitDriver(this.#newMemory(), config, options),
      );
      this.#offered.push(new Map());
      virtio.setupQueue(index, setup);
      virtio.startQueue(index, null);
      virtio.enableQueue(index, true);
    }
    virtio.setStatus(1 | 2 | 8 | 4);
    this.#connect();
  }

  /** Asks for a stream; the answer waits for a buffer. */
  #connect(): void {
    this.#port++;
    this.#answered = false;
    this.#told = 0;
    this.#up = new DirectionModel(`stream ${this.#port} up`, this.#port);
    this.#down = new DirectionModel(`stream ${this.#port} down`, this.#port);
    this.#program = null;
    this.#send(OP_REQUEST, new Uint8Array(0), 1);
    this.#kick(TX);
    this.#work();
    if (this.#program === null) {
      throw new Violation("progress", "a REQUEST has reached no program");
    }
  }

  #lose(reason: string): void {
    this.#up.cut(reason);
    this.#down.cut(reason);
    const closed = this.#program?.closed;
    expectSame("every-connection-ends", "the program heard", closed, true);
  }

  /** Offers a buffer; false without room for it. */
  #offer(
    queue: number,
    shape: { bytes: number; pieces: number; readable: boolean },
  ): boolean {
    const { bytes, readable } = shape;
    const driver = this.#drivers[queue]!;
    const pieces = this.#most(driver, shape.pieces, readable ? 1 : 0);
    if (pieces === 0) return false;
    const list = new BufferList(pieces + 1);
    const slot = this.#slot(queue);
    const spare = this.#slotBytes(queue, slot).fill(UNTOUCHED);
    const start = this.#slotAt(queue, slot);
    if (readable) list.addReadable(start, 1);
    const buffer: Buffer = { slot, pieces: [], room: 0 };
    for (const { at, length } of apart(bytes, pieces, spare.length)) {
      list.addWritable(start + at, length);
      buffer.pieces.push({ at, length });
    }
    const least = queue === RX ? HEADER_BYTES + 1 : 4;
    // A receive buffer must be writable as a whole; an event's may have more.
    if (bytes >= least && !(readable && queue === RX)) buffer.room = bytes;
    this.#add(queue, list, buffer);
    this.#kick(queue);
    return true;
  }

  #sendData(bytes: number, pieces: number): boolean {
    if (!this.#answered) return false;
    // By what it has been told alone.
    const room = DEVICE_BUFFER - (this.#up.sent - this.#told);
    const few = Math.min(bytes, room);
    if (few === 0) return false;
    return this.#send(OP_RW, this.#up.offer(few), pieces);
  }

  #send(op: number, payload: Uint8Array, wanted: number): boolean {
    const driver = this.#drivers[TX]!;
    const pieces = this.#most(driver, wanted, 0);
    if (pieces === 0) {
      this.run.full = true;
      return false;
    }
    const header = new PacketHeader().set({
      srcCid: GUEST_CID,
      dstCid: CID_HOST,
      srcPort: this.#port,
      dstPort: PORT,
      type: TYPE_STREAM,
      op,
      flags: 0,
      len: payload.length,
      bufAlloc: GUEST_BUFFER,
      fwdCnt: this.#down.received,
    });
    const packet = new Uint8Array(HEADER_BYTES + payload.length);
    header.write(new DataView(packet.buffer), 0);
    packet.set(payload, HEADER_BYTES);
    const slot = this.#slot(TX);
    const memory = this.#slotBytes(TX, slot);
    const list = new BufferList(pieces);
    let done = 0;
    for (const { at, length } of apart(packet.length, pieces, memory.length)) {
      memory.set(packet.subarray(done, done += length), at);
      list.addReadable(this.#slotAt(TX, slot) + at, length);
    }
    this.#add(TX, list, { slot, pieces: [], room: 0 });
    if (op === OP_RW) this.#up.sent += payload.length;
    return true;
  }

  /** As many pieces as there is room for. */
  #most(driver: DriverQueue, pieces: number, more: number): number {
    if (driver.free === 0) return 0;
    if (this.#setup.indirect) {
      if (pieces > 1) this.run.indirect = true;
      return Math.min(pieces, this.#setup.size - more, ENTRIES - more);
    }
    return Math.max(0, Math.min(pieces, driver.free - more));
  }

  #add(queue: number, list: BufferList, buffer: Buffer): void {
    const token = this.#drivers[queue]!.add(list);
    if (token < 0) throw new Violation("progress", "there was room");
    this.#offered[queue]!.set(token, buffer);
  }

  #kick(queue: number): void {
    const driver = this.#drivers[queue]!;
    if (driver.publish() && driver.needsKick()) this.#virtio.kick(queue);
  }

  /** Takes back what the device has used, and judges it. */
  #collect(): void {
    for (const queue of [RX, TX, EVENT]) {
      const driver = this.#drivers[queue]!;
      for (let token = driver.reclaim(); token >= 0; token = driver.reclaim()) {
        const buffer = this.#offered[queue]!.get(token);
        if (buffer === undefined) {
          throw new Violation("packets", "a buffer comes back twice");
        }
        this.#offered[queue]!.delete(token);
        if (++this.#used > this.#setup.size) this.run.wrapped = true;
        this.#judge(queue, buffer, driver.usedLength);
      }
    }
    this.run.buffers = this.#used;
  }

  #judge(queue: number, buffer: Buffer, usedLength: number): void {
    if (queue === TX) {
      expectSame("packets", "used.len of a packet", usedLength, 0);
      return;
    }
    const { room } = buffer;
    const written = this.#written(queue, buffer, usedLength);
    if (room === 0) {
      expectSame("packets", "used.len of a useless buffer", usedLength, 0);
      return;
    }
    if (queue === EVENT) {
      expectSame("packets", "used.len of an event", usedLength, 4);
      expectSame("packets", "event", written.join(), "0,0,0,0");
      expectSame("packets", "an event is due", this.#eventDue, true);
      this.#eventDue = false;
      return;
    }
    if (usedLength < HEADER_BYTES || usedLength > room) {
      throw new Violation("packets", `${usedLength} of ${room} bytes are used`);
    }
    const header = new PacketHeader();
    header.read(new DataView(written.buffer), 0);
    expectSame("packets", "len", header.len, usedLength - HEADER_BYTES);
    expectSame("packets", "port", header.dstPort, this.#port);
    this.#told = header.fwdCnt;
    switch (header.op) {
      case OP_RESPONSE:
        expectSame("packets", "a second answer", this.#answered, false);
        this.#answered = true;
        return;
      case OP_RW:
        expectSame("packets", "data before the answer", this.#answered, true);
        this.#down.take(written.subarray(HEADER_BYTES));
        return;
      case OP_CREDIT_UPDATE:
        return;
      default:
        throw new Violation("rst-rules", `${opName(header.op)} comes`);
    }
  }

  /** The bytes of a used buffer, of which no other was written. */
  #written(queue: number, { slot, pieces }: Buffer, count: number): Uint8Array {
    const memory = this.#slotBytes(queue, slot);
    const bytes = new Uint8Array(count);
    let done = 0;
    for (const { at, length } of pieces) {
      const take = Math.min(length, count - done);
      bytes.set(memory.subarray(at, at + take), done);
      memory.fill(UNTOUCHED, at, at + take);
      done += take;
    }
    expectSame("packets", "bytes written", done, count);
    if (memory.some((byte) => byte !== UNTOUCHED)) {
      throw new Violation("packets", "a byte beside what came was written");
    }
    return bytes;
  }

  #break(queue: number): string {
    const { format, size } = this.#setup;
    this.#work();
    this.#collect();
    // A packed ring has no place that says how much there is.
    if (format === "packed") return "";
    const view = new DataView(this.#bytes.buffer);
    const at = queue * QUEUE_BYTES + 0x2000 + 2;
    view.setUint16(at, view.getUint16(at, true) + 2 * size, true);
    const offered = [...this.#offered[queue]!.values()];
    // More than fits into what it has, so that it looks for more.
    const room = offered.reduce((sum, { room }) => sum + room, 1000);
    if (queue === RX) this.#hostSend(room);
    if (queue === EVENT) this.#device.transportReset();
    this.#virtio.kick(queue);
    this.#work();
    // With a buffer for its event it need not look at the index.
    if (queue !== EVENT || offered.every(({ room }) => room === 0)) {
      const status = this.#virtio.status & NEEDS_RESET;
      expectSame("healthy-or-reset", "status", status, NEEDS_RESET);
    }
    this.#virtio.setStatus(0);
    this.#lose("the device was reset");
    this.#eventDue = false;
    this.#start();
    return "and starts anew";
  }

  #slotAt(queue: number, slot: number): number {
    if (queue === EVENT) return SLOTS_AT - (slot + 1) * EVENT_SLOT;
    return SLOTS_AT + (queue * 256 + slot) * SLOT_BYTES;
  }

  #slotBytes(queue: number, slot: number): Uint8Array {
    const at = this.#slotAt(queue, slot);
    const length = queue === EVENT ? EVENT_SLOT : SLOT_BYTES;
    return this.#bytes.subarray(at, at + length);
  }

  #slot(queue: number): number {
    const taken = new Set(
      [...this.#offered[queue]!.values()].map(({ slot }) => slot),
    );
    let slot = 0;
    while (taken.has(slot)) slot++;
    return slot;
  }

  // -- The device and its host --

  #work(): void {
    for (let pass = 0; this.#device.process(); pass++) {
      if (pass > 1000) throw new Violation("progress", "it comes to no end");
    }
  }

  #hostSend(bytes: number): string {
    const program = this.#program!;
    // It has asked before, or is asked when there is a buffer.
    const more = this.#down.offer(bytes);
    const unread = new Uint8Array(program.unread.length + more.length);
    unread.set(program.unread);
    unread.set(more, program.unread.length);
    program.unread = unread;
    this.#down.sent += bytes;
    program.events.hostReadable();
    return "";
  }

  #host(): HostSide {
    return {
      connect: (request: ConnectRequest) => {
        request.accept((events) =>
          this.#program = new Program(events, this.#up)
        );
      },
    };
  }

  #newMemory(): GuestMemory {
    const { buffer } = this.#bytes;
    return new GuestMemory([{ guestAddress: 0, size: MEMORY_BYTES, buffer }]);
  }
}

/** Pieces of `bytes` in all, a byte apart where there is room for that. */
function* apart(
  bytes: number,
  pieces: number,
  most: number,
): Generator<{ at: number; length: number }> {
  const each = Math.max(1, Math.ceil(bytes / pieces));
  let at = 1;
  for (let left = bytes; left > 0;) {
    const length = Math.min(each, left);
    yield { at, length };
    at += length + 1;
    left -= length;
  }
  if (at > most) throw new RangeError(`${bytes} bytes in ${pieces} pieces`);
}

/** What guest and device may be made with. */
export const BUFFER_SETUPS: fc.Arbitrary<BufferSetup> = fc.record({
  format: fc.constantFrom("split" as const, "packed" as const),
  size: fc.constantFrom(8, 256, 256),
  eventIdx: fc.boolean(),
  indirect: fc.boolean(),
});

/** Steps of random scripts; what stands there more than once comes up more often. */
export function bufferSteps(): fc.Arbitrary<BufferStep>[] {
  const bytes = fc.oneof(
    fc.integer({ min: 1, max: 100 }),
    fc.integer({ min: 1, max: 9000 }),
  );
  const pieces = fc.constantFrom(1, 1, 2, 3, 8, 100, 250);
  const count = fc.constantFrom(1, 2, 5, 12);
  const of = <D extends BufferStep["do"]>(
    kind: D,
    shape: Record<string, fc.Arbitrary<unknown>> = {},
  ): fc.Arbitrary<BufferStep> =>
    fc.record(shape).map((fields) =>
      ({ do: kind, ...fields }) as unknown as BufferStep
    );
  const seldom = fc.nat(5).map((n) => n === 0);
  const offer = of("offer", { bytes, pieces, readable: seldom, count });
  const small = of("offer", {
    bytes: fc.constantFrom(1, 43, 44, 45, 46),
    pieces: fc.constantFrom(1, 2, 44),
    readable: seldom,
    count,
  });
  const send = of("send", { bytes, pieces, count });
  const hostSend = of("hostSend", {
    bytes: fc.oneof(
      fc.integer({ min: 1, max: 100 }),
      fc.integer({ min: 1, max: 60_000 }),
    ),
  });
  return [
    offer,
    offer,
    offer,
    small,
    of("offerEvent", { bytes: fc.constantFrom(1, 3, 4, 8), readable: seldom }),
    send,
    send,
    send,
    hostSend,
    hostSend,
    of("run"),
    of("run"),
    of("remap"),
    fc.oneof(of("transportReset"), of("break", { queue: fc.nat(2) })),
  ];
}
