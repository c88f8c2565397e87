/**
 * What the tests of this folder share: a guest that drives a device byte by byte, and a host side that
 * does what a test says. Nothing else imports it.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { GuestMemory } from "../../ring/memory.ts";
import { PackedDriver } from "../../ring/packed_driver.ts";
import { BufferList, type DriverQueue } from "../../ring/queue.ts";
import { SplitDriver } from "../../ring/split_driver.ts";
import { Diagnostics } from "../diagnostics.ts";
import { VirtioDevice } from "../virtio_device.ts";
import { VsockDevice, type VsockDeviceOptions } from "./device.ts";
import {
  type ConnectRequest,
  type HostMessages,
  type HostSide,
  type HostStream,
  MESSAGE_AGAIN,
  type MessageEvents,
  type MessagesRequest,
  STREAM_AGAIN,
  STREAM_BROKEN,
  type StreamEvents,
} from "./host.ts";
import type { Segments } from "./segments.ts";

export const REQUEST = 1;
export const RESPONSE = 2;
export const RST = 3;
export const SHUTDOWN = 4;
export const RW = 5;
export const UPDATE = 6;
export const ASK = 7;
export const CID = 42;
export const RINGS = ["split", "packed"] as const;

export type Packet = {
  srcCid: number;
  dstCid: number;
  srcPort: number;
  dstPort: number;
  len: number;
  type: number;
  op: number;
  flags: number;
  bufAlloc: number;
  fwdCnt: number;
  payload: number[];
};

/** The host's end of a stream, which does what a test says. */
export class Stream implements HostStream {
  events: StreamEvents | null = null;
  /** Bytes that it takes before it is full. */
  room: number = Infinity;
  broken = false;
  written: number[] = [];
  writes = 0;
  input: number[] = [];
  atEnd: number = STREAM_AGAIN;
  calls: string[] = [];

  write(from: Segments): number {
    const bytes = new Uint8Array(from.bytes);
    from.copyTo(bytes);
    return this.writeBytes(bytes);
  }
  writeBytes(from: Uint8Array): number {
    this.writes++;
    if (this.broken) return STREAM_BROKEN;
    const take = Math.min(from.length, this.room);
    this.written.push(...from.subarray(0, take));
    this.room -= take;
    return take;
  }
  read(into: Segments): number {
    if (this.input.length === 0) return this.atEnd;
    const got = into.copyFrom(Uint8Array.from(this.input));
    this.input.splice(0, got);
    return got;
  }
  shutdownWrite(): void {
    this.calls.push("shutdownWrite");
  }
  shutdownRead(): void {
    this.calls.push("shutdownRead");
  }
  close(reset: boolean): void {
    this.calls.push(reset ? "reset" : "close");
  }
  say(...bytes: number[]): void {
    this.input = this.input.concat(bytes);
    this.events!.hostReadable();
  }
  end(how: number): void {
    this.atEnd = how;
    this.events!.hostReadable();
  }
}

/** The host's end of a seqpacket connection, which does what a test says. */
export class Messages implements HostMessages {
  events: MessageEvents | null = null;
  /** Messages that it takes before it is full. */
  room: number = Infinity;
  /** What it answers to any message instead, where that is not 0. */
  answer = 0;
  written: number[][] = [];
  records: boolean[] = [];
  writes = 0;
  input: { bytes: Uint8Array; eor: boolean }[] = [];
  atEnd: number = MESSAGE_AGAIN;
  calls: string[] = [];
  endOfRecord = false;

  writeMessage(from: Segments, eor: boolean): number {
    const bytes = new Uint8Array(from.bytes);
    from.copyTo(bytes);
    return this.writeMessageBytes(bytes, eor);
  }
  writeMessageBytes(from: Uint8Array, eor: boolean): number {
    this.writes++;
    if (this.answer !== 0) return this.answer;
    if (this.room === 0) return MESSAGE_AGAIN;
    this.room--;
    this.written.push([...from]);
    this.records.push(eor);
    return from.length;
  }
  readMessage(into: Uint8Array): number {
    const next = this.input.shift();
    if (next === undefined) return this.atEnd;
    this.endOfRecord = next.eor;
    into.set(next.bytes.subarray(0, into.length));
    return next.bytes.length;
  }
  shutdownWrite(): void {
    this.calls.push("shutdownWrite");
  }
  shutdownRead(): void {
    this.calls.push("shutdownRead");
  }
  close(reset: boolean): void {
    this.calls.push(reset ? "reset" : "close");
  }
  say(bytes: Uint8Array, eor = false): void {
    this.input.push({ bytes, eor });
    this.events!.hostReadable();
  }
  end(how: number): void {
    this.atEnd = how;
    this.events!.hostReadable();
  }
}

/** A host side on whose port 1234 somebody listens, and on 1235 somebody who takes his time. */
export class Host implements HostSide {
  streams: Stream[] = [];
  messages: Messages[] = [];
  slow: ConnectRequest[] = [];
  connectMessages(request: MessagesRequest): void {
    if (request.hostPort !== 1234) return request.refuse();
    request.accept((events) => {
      const messages = new Messages();
      messages.events = events;
      this.messages.push(messages);
      return messages;
    });
  }
  connect(request: ConnectRequest): void {
    if (request.hostPort === 1235) this.slow.push(request);
    else if (request.hostPort === 1234) this.accept(request);
    else request.refuse();
  }
  accept(request: ConnectRequest): boolean {
    return request.accept((events) => this.open(events));
  }
  open(events: StreamEvents): Stream {
    const stream = new Stream();
    stream.events = events;
    this.streams.push(stream);
    return stream;
  }
}

/** A driver that sends and receives packets byte by byte, and believes nothing. */
export class Guest {
  readonly memory: GuestMemory = new GuestMemory([
    { guestAddress: 0, size: 1 << 21, buffer: new ArrayBuffer(1 << 21) },
  ]);
  readonly host: Host = new Host();
  readonly diagnostics: Diagnostics = new Diagnostics();
  readonly vsock: VsockDevice;
  readonly virtio: VirtioDevice;
  readonly queues: DriverQueue[] = [];
  readonly interrupts: number[] = [0, 0, 0];
  readonly size = 32;
  now = 0;
  rxBytes: number;
  /** Receive buffers that came back without a packet. */
  empty = 0;
  #txBuffers: number[] = [];
  #rxTokens = new Map<number, number>();
  #txTokens = new Map<number, number>();

  constructor(
    ring: typeof RINGS[number],
    options: Partial<VsockDeviceOptions> = {},
    rxBytes = 4096,
  ) {
    this.rxBytes = rxBytes;
    this.vsock = new VsockDevice({
      guestCid: CID,
      host: this.host,
      diagnostics: this.diagnostics,
      now: () => this.now,
      ...options,
    });
    this.virtio = new VirtioDevice(this.vsock, {
      ring,
      diagnostics: this.diagnostics,
    });
    this.vsock.attach(this.virtio);
    this.virtio.connect({
      interrupt: (index) => this.interrupts[index]!++,
      configChanged: () => {},
    });
    this.virtio.setMemory(this.memory);
    this.start();
  }

  start(): void {
    const { virtio } = this;
    virtio.setStatus(1 | 2);
    virtio.setFeatures(virtio.offeredFeatures);
    virtio.setStatus(1 | 2 | 8);
    assertEquals(virtio.status & 8, 8);
    this.queues.length = 0;
    this.#txBuffers = [];
    for (let i = 0; i < this.size; i++) this.#txBuffers.push(i);
    for (let index = 0; index < 3; index++) {
      const setup = {
        size: this.size,
        descriptorArea: index * 0x2000,
        driverArea: index * 0x2000 + 0x800,
        deviceArea: index * 0x2000 + 0x1000,
      };
      this.memory.bytes(setup.descriptorArea, 0x2000).fill(0);
      const config = { ...setup, eventIdx: true };
      this.queues.push(
        virtio.ringFormat === "packed"
          ? new PackedDriver(this.memory, config)
          : new SplitDriver(this.memory, config),
      );
      virtio.setupQueue(index, setup);
      virtio.startQueue(index, null);
    }
    for (let index = 0; index < 3; index++) virtio.enableQueue(index, true);
    virtio.setStatus(1 | 2 | 8 | 4);
  }

  /** Offers `count` receive buffers. */
  post(count: number = this.size): void {
    const rx = this.queues[0]!;
    for (let i = 0; i < count && rx.free > 0; i++) {
      const used = new Set(this.#rxTokens.values());
      let slot = 0;
      while (used.has(slot)) slot++;
      const address = 0x10000 + slot * 0x4000;
      const token = rx.add(new BufferList().addWritable(address, this.rxBytes));
      this.#rxTokens.set(token, slot);
    }
    if (rx.publish() && rx.needsKick()) this.virtio.kick(0);
  }

  /** Sends bytes in descriptors of the given lengths, the rest in a last one. */
  raw(bytes: Uint8Array, ...lengths: number[]): void {
    const tx = this.queues[1]!;
    this.reclaim();
    const slot = this.#txBuffers.pop()!;
    const address = 0x100000 + slot * 0x8000;
    this.memory.bytes(address, bytes.length).set(bytes);
    const list = new BufferList();
    let at = 0;
    for (const length of lengths) {
      list.addReadable(address + at, length);
      at += length;
    }
    if (at < bytes.length) list.addReadable(address + at, bytes.length - at);
    const token = tx.add(list);
    assert(token >= 0, "the transmit queue is full");
    this.#txTokens.set(token, slot);
    if (tx.publish() && tx.needsKick()) this.virtio.kick(1);
  }

  /** Sends a packet from port 5 to port 1234. */
  send(fields: Partial<Packet>, payload: number[] | Uint8Array = []): void {
    this.raw(packetBytes({ len: payload.length, ...fields }, payload));
  }

  /** Takes transmitted buffers back and says how many; each was used with length 0. */
  reclaim(): number {
    const tx = this.queues[1]!;
    let count = 0;
    for (let token = tx.reclaim(); token >= 0; token = tx.reclaim()) {
      assertEquals(tx.usedLength, 0);
      this.#txBuffers.push(this.#txTokens.get(token)!);
      this.#txTokens.delete(token);
      count++;
    }
    return count;
  }

  /** Lets the device work until it is idle and returns what it sent. */
  run(): Packet[] {
    while (this.vsock.process());
    return this.receive();
  }

  receive(): Packet[] {
    const rx = this.queues[0]!;
    const packets: Packet[] = [];
    for (let token = rx.reclaim(); token >= 0; token = rx.reclaim()) {
      const slot = this.#rxTokens.get(token)!;
      this.#rxTokens.delete(token);
      if (rx.usedLength === 0) {
        this.empty++;
        continue;
      }
      const bytes = this.memory.bytes(0x10000 + slot * 0x4000, rx.usedLength);
      packets.push(parse(bytes));
    }
    return packets;
  }

  /** Connects port 5 to port 1234. */
  connect(fields: Partial<Packet> = {}): Stream {
    this.send({ op: REQUEST, ...fields });
    const [response] = this.run();
    assertEquals(response!.op, RESPONSE);
    return this.host.streams.at(-1)!;
  }

  /** The same by a seqpacket socket. */
  connectMessages(fields: Partial<Packet> = {}): Messages {
    this.send({ op: REQUEST, type: 2, ...fields });
    const [response] = this.run();
    assertEquals([response!.op, response!.type], [RESPONSE, 2]);
    return this.host.messages.at(-1)!;
  }

  count(kind: string): number {
    return this.diagnostics.counters.get(kind) ?? 0;
  }
}

export function packetBytes(
  fields: Partial<Packet>,
  payload: number[] | Uint8Array,
): Uint8Array {
  const bytes = new Uint8Array(44 + payload.length);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, BigInt(fields.srcCid ?? CID), true);
  view.setBigUint64(8, BigInt(fields.dstCid ?? 2), true);
  view.setUint32(16, fields.srcPort ?? 5, true);
  view.setUint32(20, fields.dstPort ?? 1234, true);
  view.setUint32(24, fields.len ?? payload.length, true);
  view.setUint16(28, fields.type ?? 1, true);
  view.setUint16(30, fields.op ?? RW, true);
  view.setUint32(32, fields.flags ?? 0, true);
  view.setUint32(36, fields.bufAlloc ?? 262_144, true);
  view.setUint32(40, fields.fwdCnt ?? 0, true);
  bytes.set(payload, 44);
  return bytes;
}

function parse(bytes: Uint8Array): Packet {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const packet = {
    srcCid: Number(view.getBigUint64(0, true)),
    dstCid: Number(view.getBigUint64(8, true)),
    srcPort: view.getUint32(16, true),
    dstPort: view.getUint32(20, true),
    len: view.getUint32(24, true),
    type: view.getUint16(28, true),
    op: view.getUint16(30, true),
    flags: view.getUint32(32, true),
    bufAlloc: view.getUint32(36, true),
    fwdCnt: view.getUint32(40, true),
    payload: [...bytes.subarray(44)],
  };
  assertEquals(packet.payload.length, packet.len, "used.len is 44 + len");
  return packet;
}

export const ops = (packets: Packet[]): number[] =>
  packets.map((packet) => packet.op);
