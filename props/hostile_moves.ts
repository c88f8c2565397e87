/**
 * What a hostile guest does: packets, descriptors and ring words, spoiled by a seeded choice.
 *
 * @module
 */

import { BufferList } from "../ring/queue.ts";
import { HOSTILE_AREA, HOSTILE_REGIONS } from "./hostile_memory.ts";
import { HOST_PORT, HOSTILE_PORTS, type HostileRig } from "./hostile_rig.ts";

/** A random number below a bound. */
export type Pick = (below: number) => number;

const NEXT = 1;
const WRITE = 2;
const INDIRECT = 4;
const SLOTS = 24;
const SLOT_BYTES = 0x800;
/** Guest address of indirect tables, behind the slots. */
const TABLES = HOSTILE_AREA + SLOTS * SLOT_BYTES;
const TABLE_COUNT = 16;
const TABLE_BYTES = 0x400;
const TX = 1;

/**
 * Publishes up to `count` packets, lawful or not, from memory of their own, and spoils their descriptors
 * where the rest of the ring does not suffer.
 */
export function sendHostile(rig: HostileRig, pick: Pick, count: number): void {
  const sent: number[] = [];
  for (let i = 0; i < count; i++) {
    const address = HOSTILE_AREA + pick(SLOTS) * SLOT_BYTES;
    const length = writePacket(rig, pick, address);
    const list = new BufferList(1).addReadable(address, length);
    if (rig.driver.sendList(list) !== null) sent.push(address);
  }
  rig.driver.flush();
  const { descriptorArea, size } = rig.configs[TX]!;
  const table = rig.memory.at(descriptorArea);
  for (let at = 0; at < size * 16; at += 16) {
    const address = table.getUint32(at, true);
    if (sent.includes(address) && pick(3) !== 0) {
      spoilDescriptor(rig, pick, table, at);
    }
  }
}

function writePacket(rig: HostileRig, pick: Pick, address: number): number {
  const view = rig.memory.at(address);
  const payload = [0, 0, 1, 100, 2000][pick(5)]!;
  view.setBigUint64(0, pick(12) === 0 ? wideValue(pick) : 42n, true);
  view.setBigUint64(8, pick(12) === 0 ? wideValue(pick) : 2n, true);
  view.setUint32(16, HOSTILE_PORTS[pick(HOSTILE_PORTS.length)]!, true);
  view.setUint32(20, pick(4) === 0 ? 99 : HOST_PORT, true);
  view.setUint32(24, pick(6) === 0 ? word(pick) : payload, true);
  view.setUint16(28, pick(10) === 0 ? pick(65536) : 1, true);
  view.setUint16(30, pick(3) === 0 ? 1 : pick(10), true);
  view.setUint32(32, pick(4) === 0 ? word(pick) : pick(4), true);
  view.setUint32(36, [0, 1, 4096, 0xffff_ffff][pick(4)]!, true);
  view.setUint32(40, pick(2) === 0 ? 0 : word(pick), true);
  // Now and then too short for a header.
  return pick(10) === 0 ? 1 + pick(44) : 44 + payload;
}

/** Spoils one descriptor such that the queue's other buffers keep their places. */
function spoilDescriptor(
  rig: HostileRig,
  pick: Pick,
  table: DataView,
  at: number,
): void {
  const packed = rig.virtio.ringFormat === "packed";
  const flagsAt = at + (packed ? 14 : 12);
  // In a packed ring they say whose the descriptor is.
  const kept = packed ? table.getUint16(flagsAt, true) & 0x8080 : 0;
  switch (pick(packed ? 5 : 6)) {
    case 0:
      setAddress(table, at, pick);
      break;
    case 1:
      table.setUint32(at + 8, word(pick), true);
      break;
    case 2:
      table.setUint16(flagsAt, kept | WRITE, true);
      break;
    case 3:
    case 4: {
      const address = TABLES + pick(TABLE_COUNT) * TABLE_BYTES;
      const entries = writeTable(rig, pick, address);
      table.setUint32(at, address + (pick(10) === 0 ? 8 : 0), true);
      table.setUint32(
        at + 8,
        pick(6) === 0 ? word(pick) : entries * 16,
        true,
      );
      const extra = pick(8) === 0 ? WRITE : 0;
      table.setUint16(flagsAt, kept | INDIRECT | extra, true);
      if (pick(8) === 0) setAddress(table, at, pick);
      break;
    }
    default: // into itself, any other, or none
      table.setUint16(flagsAt, NEXT | pick(8), true);
      table.setUint16(
        at + 14,
        [at / 16, pick(32), 32, 0xffff][pick(4)]!,
        true,
      );
  }
}

/** Fills an indirect table, lawfully or not, and returns how many entries it has. */
function writeTable(rig: HostileRig, pick: Pick, address: number): number {
  const view = rig.memory.at(address);
  const packed = rig.virtio.ringFormat === "packed";
  const entries = 1 + pick(TABLE_BYTES / 16 - 1);
  const wild = pick(2) === 0;
  for (let i = 0; i < entries; i++) {
    const at = i * 16;
    view.setUint32(at, HOSTILE_AREA + pick(SLOTS) * SLOT_BYTES, true);
    view.setUint32(at + 4, 0, true);
    view.setUint32(at + 8, i === 0 ? 44 : pick(100), true);
    const last = i === entries - 1;
    view.setUint16(at + 12, packed ? 0 : last ? 0 : NEXT, true);
    view.setUint16(at + 14, packed ? 0 : last ? 0 : i + 1, true);
    if (!wild || pick(4) !== 0) continue;
    switch (pick(3)) {
      case 0:
        setAddress(view, at, pick);
        break;
      case 1:
        view.setUint32(at + 8, word(pick), true);
        break;
      default:
        view.setUint16(at + 12, pick(8), true);
        view.setUint16(at + 14, pick(2) === 0 ? pick(65536) : i, true);
    }
  }
  return entries;
}

/** Writes any words into any area of any queue: what comes of it is the guest's own fault. */
export function spoilRings(rig: HostileRig, pick: Pick, count: number): void {
  const packed = rig.virtio.ringFormat === "packed";
  rig.spoiled = true;
  for (let i = 0; i < count; i++) {
    const { descriptorArea, driverArea, deviceArea, size } = rig
      .configs[pick(8) === 0 ? 2 : pick(2)]!;
    const [area, bytes] = [
      [descriptorArea, size * 16],
      [driverArea, packed ? 4 : 6 + 2 * size],
      [deviceArea, packed ? 4 : 6 + 8 * size],
      // The words by which the sides meet.
      packed ? [descriptorArea, size * 16] : [driverArea, 4],
    ][pick(4)] as [number, number];
    const view = rig.memory.at(area);
    const at = pick(bytes / 2) * 2;
    const before = view.getUint16(at, true);
    const value = [
      pick(65536),
      before + 1,
      before - 1,
      before ^ 1 << pick(16),
      before + size,
      0xffff,
      0,
      pick(size),
    ][pick(8)]!;
    view.setUint16(at, value & 0xffff, true);
  }
}

function setAddress(view: DataView, at: number, pick: Pick): void {
  const region = HOSTILE_REGIONS[pick(HOSTILE_REGIONS.length)]!;
  const end = region.guestAddress + region.size;
  view.setUint32(
    at,
    [word(pick), end - 1 - pick(64), end, region.guestAddress - 1, 0][pick(5)]!,
    true,
  );
  if (pick(4) === 0) view.setUint32(at + 4, word(pick), true);
}

function word(pick: Pick): number {
  return [
    0,
    1,
    43,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    pick(0x1_0000_0000),
  ][pick(8)]!;
}

function wideValue(pick: Pick): bigint {
  return [0n, 1n, 0xffff_ffffn, 0x1_0000_0002n, 0xffff_ffff_ffff_ffffn][
    pick(5)
  ]!;
}
