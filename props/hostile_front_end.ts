/**
 * What a hostile front-end does: requests at a bad time, and messages that are spoiled.
 *
 * @module
 */

import * as vu from "../device/vhost_user/constants.ts";
import {
  encodeConfig,
  encodeInflight,
  encodeMemoryRegion,
  encodeMemoryTable,
  encodeRequest,
  encodeU64,
  encodeVringAddresses,
  encodeVringState,
  parseVringState,
} from "../device/vhost_user/message.ts";
import { PACKED_INITIAL_BASE } from "../device/ring_position.ts";
import { HOSTILE_REGIONS } from "./hostile_memory.ts";
import type { Pick } from "./hostile_moves.ts";
import { type HostileRig, userRegion } from "./hostile_rig.ts";

/** A front-end that is lawful but stops and starts rings, and moves memory, at any time. */
export function restless(rig: HostileRig, pick: Pick): void {
  const index = pick(3);
  const state = (num: number) => encodeVringState({ index, num });
  switch (pick(4)) {
    case 0:
      rig.say(vu.VHOST_USER_SET_VRING_ENABLE, state(0));
      rig.step();
      rig.say(vu.VHOST_USER_SET_VRING_ENABLE, state(1));
      break;
    case 1: {
      rig.say(vu.VHOST_USER_GET_VRING_BASE, state(0));
      const { num } = parseVringState(rig.lastReply);
      rig.step();
      rig.startRing(index, num);
      break;
    }
    case 2:
      rig.sendMemory();
      break;
    default:
      rig.sendRegion(vu.VHOST_USER_REM_MEM_REG, 1);
      rig.step();
      rig.sendRegion(vu.VHOST_USER_ADD_MEM_REG, 1);
  }
}

/** Any of its requests, unlawful ones among them. */
export function unlawful(rig: HostileRig, pick: Pick): void {
  rig.spoiled = true;
  const index = pick(3);
  switch (pick(6)) {
    case 0:
      rig.startRing(index, pick(0x1_0000_0000));
      break;
    case 1:
      rig.say(
        vu.VHOST_USER_GET_VRING_BASE,
        encodeVringState({ index, num: 0 }),
      );
      rig.startRing(index, pick(0x1_0000_0000), 16 * pick(0x8000));
      break;
    case 2:
      rig.sendMemory(pick(3));
      break;
    case 3:
      rig.say(vu.VHOST_USER_RESET_DEVICE);
      break;
    case 4:
      rig.sendRegion(vu.VHOST_USER_REM_MEM_REG, pick(2));
      break;
    default:
      restless(rig, pick);
  }
}

/** A message that is right at the right time, with as many descriptors as belong to it. */
type Message = { request: number; payload?: Uint8Array; files: number };

function anyMessage(rig: HostileRig, pick: Pick): Message {
  const index = pick(3);
  const config = rig.configs[index]!;
  const { userAddress, guestAddress } = userRegion(0);
  const user = userAddress - guestAddress;
  const state = (request: number, num: number): Message => ({
    request,
    payload: encodeVringState({ index, num }),
    files: 0,
  });
  const word = (request: number, value: number | bigint, files = 0) => ({
    request,
    payload: encodeU64(BigInt(value)),
    files,
  });
  const packed = rig.virtio.ringFormat === "packed";
  const inflight = encodeInflight({
    mmapSize: 0x4000,
    mmapOffset: 0,
    numQueues: 3,
    queueSize: config.size,
  });
  const messages: (() => Message)[] = [
    () => ({ request: vu.VHOST_USER_GET_FEATURES, files: 0 }),
    () => ({ request: vu.VHOST_USER_GET_PROTOCOL_FEATURES, files: 0 }),
    () => ({ request: vu.VHOST_USER_GET_QUEUE_NUM, files: 0 }),
    () => ({ request: vu.VHOST_USER_SET_OWNER, files: 0 }),
    () => word(vu.VHOST_USER_SET_FEATURES, rig.driverFeatures),
    () => word(vu.VHOST_USER_SET_PROTOCOL_FEATURES, 0xffff),
    () => word(vu.VHOST_USER_SET_STATUS, [0, 1, 11, 15, 128][pick(5)]!),
    () => ({ request: vu.VHOST_USER_GET_STATUS, files: 0 }),
    () => ({ request: vu.VHOST_USER_RESET_DEVICE, files: 0 }),
    () => ({
      request: vu.VHOST_USER_SET_MEM_TABLE,
      payload: encodeMemoryTable(HOSTILE_REGIONS.map((_, i) => userRegion(i))),
      files: HOSTILE_REGIONS.length,
    }),
    () => ({
      request: vu.VHOST_USER_ADD_MEM_REG,
      payload: encodeMemoryRegion(userRegion(pick(2))),
      files: 1,
    }),
    () => ({
      request: vu.VHOST_USER_REM_MEM_REG,
      payload: encodeMemoryRegion(userRegion(pick(2))),
      files: 0,
    }),
    () => ({
      request: vu.VHOST_USER_GET_CONFIG,
      payload: encodeConfig({
        offset: 0,
        size: 8,
        flags: 0,
        bytes: new Uint8Array(8),
      }),
      files: 0,
    }),
    () => ({
      request: vu.VHOST_USER_GET_INFLIGHT_FD,
      payload: inflight,
      files: 0,
    }),
    () => ({
      request: vu.VHOST_USER_SET_INFLIGHT_FD,
      payload: inflight,
      files: 1,
    }),
    () => state(vu.VHOST_USER_SET_VRING_NUM, config.size),
    () => state(vu.VHOST_USER_SET_VRING_BASE, packed ? PACKED_INITIAL_BASE : 0),
    () => state(vu.VHOST_USER_GET_VRING_BASE, 0),
    () => state(vu.VHOST_USER_SET_VRING_ENABLE, pick(2)),
    () => ({
      request: vu.VHOST_USER_SET_VRING_ADDR,
      payload: encodeVringAddresses({
        index,
        flags: pick(2),
        descriptor: config.descriptorArea + user,
        available: config.driverArea + user,
        used: config.deviceArea + user,
        log: 0n,
      }),
      files: 0,
    }),
    () => word(vu.VHOST_USER_SET_VRING_KICK, index, 1),
    () => word(vu.VHOST_USER_SET_VRING_CALL, index, 1),
    () => word(vu.VHOST_USER_SET_VRING_ERR, index, 1),
  ];
  return messages[pick(messages.length)]!();
}

/** Sends a message that is spoiled in one way or not at all; false where it ended the session. */
export function sendSpoiled(rig: HostileRig, pick: Pick): boolean {
  rig.spoiled = true;
  const message = anyMessage(rig, pick);
  let { files } = message;
  let bytes = encodeRequest(message.request, message.payload, pick(2) === 0);
  switch (pick(8)) {
    case 0: // a wild byte anywhere
      bytes[pick(bytes.length)] = pick(256);
      break;
    case 1: // a wild word in the payload
      if (bytes.length >= 16) {
        const at = 12 + 4 * pick((bytes.length - 12) >> 2);
        const view = new DataView(bytes.buffer, bytes.byteOffset);
        view.setUint32(at, [0, 1, 0xffff_ffff, pick(2 ** 32)][pick(4)]!, true);
      }
      break;
    case 2: // another request with the same payload
      bytes[0] = pick(45);
      break;
    case 3: { // shorter or longer, and honest about it
      const other = new Uint8Array(12 + pick(80));
      other.set(bytes.subarray(0, other.length));
      new DataView(other.buffer).setUint32(8, other.length - 12, true);
      bytes = other;
      break;
    }
    case 4: // cut off, so that the next message is part of this one
      bytes = bytes.slice(0, pick(bytes.length));
      break;
    case 5:
      files = pick(12);
  }
  rig.takeFiles(pick(4) === 0 ? 1 : 0);
  return rig.sayBytes(bytes, files);
}
