import {
  MAX_PAYLOAD_BYTES,
  VHOST_MEMORY_BASELINE_NREGIONS,
  VHOST_USER_HDR_SIZE,
  VHOST_USER_MAX_CONFIG_SIZE,
  VHOST_USER_NEED_REPLY_FLAG,
  VHOST_USER_REPLY_FLAG,
  VHOST_USER_VERSION,
  VHOST_USER_VERSION_MASK,
} from "./constants.ts";
import { VhostUserError } from "./errors.ts";

/** A whole message, in either direction. */
export type VhostUserMessage = {
  /** `VHOST_USER_...` */
  request: number;
  /** Version and flags. */
  flags: number;
  /** The bytes behind the header; not shared with anybody. */
  payload: Uint8Array;
  /** Descriptors that came with it; the receiver owns them. */
  fds: readonly number[];
};

/** A vring state description: SET_VRING_NUM, BASE, ENABLE, and the reply of GET_VRING_BASE. */
export type VringState = {
  /** Index of the ring. */
  index: number;
  /** 32 bits, whatever the request says they are. */
  num: number;
};

/** A vring address description. */
export type VringAddresses = {
  /** Index of the ring. */
  index: number;
  /** `VHOST_VRING_F_LOG_MASK` or 0. */
  flags: number;
  /** User address of the descriptor area. */
  descriptor: number;
  /** User address of the used ring (split) or the device event structure (packed). */
  used: number;
  /** User address of the available ring (split) or the driver event structure (packed). */
  available: number;
  /** Guest address by which the used ring is logged; some front-ends send all ones. */
  log: bigint;
};

/** One region of guest memory as a front-end describes it. */
export type MemoryRegionDescription = {
  /** Guest physical address of the first byte. */
  guestAddress: number;
  /** Bytes. */
  size: number;
  /** Address of the first byte in the front-end's own address space. */
  userAddress: number;
  /** Offset of the first byte in the file of the descriptor. */
  mmapOffset: number;
};

/** A part of the configuration space. */
export type ConfigAccess = {
  /** Offset of the first byte. */
  offset: number;
  /** Bytes. */
  size: number;
  /** `VHOST_USER_CONFIG_TYPE_...` */
  flags: number;
  /** The bytes; fewer than `size` where the sender left them out. */
  bytes: Uint8Array;
};

/** Where the dirty log lies in its file. */
export type LogDescription = {
  /** Bytes. */
  size: number;
  /** Offset in the file. */
  offset: number;
};

/** An inflight description. */
export type InflightDescription = {
  /** Bytes of the region. */
  mmapSize: number;
  /** Offset in the file. */
  mmapOffset: number;
  /** Queues that it tracks. */
  numQueues: number;
  /** Size of each. */
  queueSize: number;
};

const RANGE = 2 ** 32;
const SAFE_HIGH_END = 2 ** 21;

function viewOf(
  bytes: Uint8Array,
  needed: number,
  section: string,
): DataView {
  if (bytes.length < needed) {
    throw new VhostUserError(
      "PAYLOAD_TOO_SHORT",
      section,
      `Cannot read a message: its payload has ${bytes.length} bytes of ${needed}`,
    );
  }
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function readNumber(view: DataView, at: number, section: string): number {
  const high = view.getUint32(at + 4, true);
  if (high >= SAFE_HIGH_END) {
    throw new VhostUserError(
      "NUMBER_TOO_LARGE",
      section,
      `Cannot use 0x${
        view.getBigUint64(at, true).toString(16)
      }: it is 2^53 or more`,
    );
  }
  return high * RANGE + view.getUint32(at, true);
}

function writeNumber(view: DataView, at: number, value: number): void {
  if (!Number.isSafeInteger(value) || value < 0) {
    throw new RangeError(`Cannot encode ${value}: not 0 to 2^53 - 1`);
  }
  view.setUint32(at, value % RANGE, true);
  view.setUint32(at + 4, Math.floor(value / RANGE), true);
}

/** A header without its payload. */
export type VhostUserHeader = { request: number; flags: number; size: number };

/**
 * Reads and checks a header ("Header": request, flags, size; 32 bits each, little-endian).
 *
 * @throws {VhostUserError} with `fatal`: `BAD_VERSION` or `MESSAGE_TOO_LONG`.
 */
export function parseHeader(bytes: Uint8Array): VhostUserHeader {
  const view = viewOf(bytes, VHOST_USER_HDR_SIZE, "Header");
  const request = view.getUint32(0, true);
  const flags = view.getUint32(4, true);
  const size = view.getUint32(8, true);
  if ((flags & VHOST_USER_VERSION_MASK) !== VHOST_USER_VERSION) {
    throw new VhostUserError(
      "BAD_VERSION",
      "Header",
      `Cannot read request ${request}: its flags are 0x${
        flags.toString(16)
      }, which is not version ${VHOST_USER_VERSION}`,
      true,
    );
  }
  if (size > MAX_PAYLOAD_BYTES) {
    throw new VhostUserError(
      "MESSAGE_TOO_LONG",
      "Header",
      `Cannot read request ${request}: its payload would have ${size} bytes, more than ${MAX_PAYLOAD_BYTES}`,
      true,
    );
  }
  return { request, flags, size };
}

/** Puts a header in front of a payload; `flags` are added to the version. */
export function encodeMessage(
  request: number,
  flags: number,
  payload: Uint8Array = new Uint8Array(0),
): Uint8Array {
  const bytes = new Uint8Array(VHOST_USER_HDR_SIZE + payload.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, request, true);
  view.setUint32(4, flags | VHOST_USER_VERSION, true);
  view.setUint32(8, payload.length, true);
  bytes.set(payload, VHOST_USER_HDR_SIZE);
  return bytes;
}

/** Encodes a request; with `needReply` its sender waits for an answer. */
export function encodeRequest(
  request: number,
  payload?: Uint8Array,
  needReply = false,
): Uint8Array {
  return encodeMessage(
    request,
    needReply ? VHOST_USER_NEED_REPLY_FLAG : 0,
    payload,
  );
}

/** Encodes a reply to `request`. */
export function encodeReply(request: number, payload?: Uint8Array): Uint8Array {
  return encodeMessage(request, VHOST_USER_REPLY_FLAG, payload);
}

/**
 * Reads a whole message, as a front-end reads a reply.
 *
 * @throws {VhostUserError} when it is malformed or has more or fewer bytes than its header says.
 */
export function parseMessage(
  bytes: Uint8Array,
  fds: readonly number[] = [],
): VhostUserMessage {
  const { request, flags, size } = parseHeader(bytes);
  if (bytes.length !== VHOST_USER_HDR_SIZE + size) {
    throw new VhostUserError(
      "PAYLOAD_TOO_SHORT",
      "Header",
      `Cannot read request ${request}: ${
        bytes.length - VHOST_USER_HDR_SIZE
      } bytes follow a header that says ${size}`,
      true,
    );
  }
  return { request, flags, payload: bytes.slice(VHOST_USER_HDR_SIZE), fds };
}

/** Reads a u64 that is a number below 2^53. */
export function parseU64(payload: Uint8Array): number {
  const section = "A single 64-bit integer";
  return readNumber(viewOf(payload, 8, section), 0, section);
}

/** Reads a u64 that is a set of bits. */
export function parseBits(payload: Uint8Array): bigint {
  return viewOf(payload, 8, "A single 64-bit integer").getBigUint64(0, true);
}

/** Encodes a u64. */
export function encodeU64(value: number | bigint): Uint8Array {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(value), true);
  return bytes;
}

/** Reads a vring state: two 32-bit numbers. */
export function parseVringState(payload: Uint8Array): VringState {
  const view = viewOf(payload, 8, "A vring state description");
  return { index: view.getUint32(0, true), num: view.getUint32(4, true) };
}

/** Encodes a vring state. */
export function encodeVringState(state: VringState): Uint8Array {
  const bytes = new Uint8Array(8);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, state.index, true);
  view.setUint32(4, state.num, true);
  return bytes;
}

/**
 * Reads a vring address description (40 bytes): the addresses in the order descriptor, used,
 * available. The log address is not judged, since some front-ends leave it all ones.
 */
export function parseVringAddresses(payload: Uint8Array): VringAddresses {
  const section = "A vring address description";
  const view = viewOf(payload, 40, section);
  return {
    index: view.getUint32(0, true),
    flags: view.getUint32(4, true),
    descriptor: readNumber(view, 8, section),
    used: readNumber(view, 16, section),
    available: readNumber(view, 24, section),
    log: view.getBigUint64(32, true),
  };
}

/** Encodes a vring address description. */
export function encodeVringAddresses(addresses: VringAddresses): Uint8Array {
  const bytes = new Uint8Array(40);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, addresses.index, true);
  view.setUint32(4, addresses.flags, true);
  writeNumber(view, 8, addresses.descriptor);
  writeNumber(view, 16, addresses.used);
  writeNumber(view, 24, addresses.available);
  view.setBigUint64(32, addresses.log, true);
  return bytes;
}

const REGION_BYTES = 32;

function readRegion(
  view: DataView,
  at: number,
  section: string,
): MemoryRegionDescription {
  return {
    guestAddress: readNumber(view, at, section),
    size: readNumber(view, at + 8, section),
    userAddress: readNumber(view, at + 16, section),
    mmapOffset: readNumber(view, at + 24, section),
  };
}

function writeRegion(
  view: DataView,
  at: number,
  region: MemoryRegionDescription,
): void {
  writeNumber(view, at, region.guestAddress);
  writeNumber(view, at + 8, region.size);
  writeNumber(view, at + 16, region.userAddress);
  writeNumber(view, at + 24, region.mmapOffset);
}

/**
 * Reads a memory regions description: count, padding, then 32 bytes a region. Bytes behind the last
 * region are ignored: some front-ends send room for more regions than they tell of.
 */
export function parseMemoryTable(
  payload: Uint8Array,
): MemoryRegionDescription[] {
  const section = "Memory regions description";
  const count = viewOf(payload, 8, section).getUint32(0, true);
  if (count > VHOST_MEMORY_BASELINE_NREGIONS) {
    throw new VhostUserError(
      "TOO_MANY_REGIONS",
      section,
      `Cannot take a memory table: it has ${count} regions, more than ${VHOST_MEMORY_BASELINE_NREGIONS}`,
    );
  }
  const view = viewOf(payload, 8 + count * REGION_BYTES, section);
  const regions: MemoryRegionDescription[] = [];
  for (let i = 0; i < count; i++) {
    regions.push(readRegion(view, 8 + i * REGION_BYTES, section));
  }
  return regions;
}

/** Encodes a memory regions description. */
export function encodeMemoryTable(
  regions: readonly MemoryRegionDescription[],
): Uint8Array {
  const bytes = new Uint8Array(8 + regions.length * REGION_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, regions.length, true);
  regions.forEach((region, i) =>
    writeRegion(view, 8 + i * REGION_BYTES, region)
  );
  return bytes;
}

/** Reads a single memory region description: 8 bytes of padding, then a region. */
export function parseMemoryRegion(
  payload: Uint8Array,
): MemoryRegionDescription {
  const section = "Single memory region description";
  return readRegion(viewOf(payload, 8 + REGION_BYTES, section), 8, section);
}

/** Encodes a single memory region description. */
export function encodeMemoryRegion(
  region: MemoryRegionDescription,
): Uint8Array {
  const bytes = new Uint8Array(8 + REGION_BYTES);
  writeRegion(new DataView(bytes.buffer), 8, region);
  return bytes;
}

const CONFIG_HDR_BYTES = 12;

/** Reads an access to the configuration space: offset, size, flags, then the bytes. */
export function parseConfig(payload: Uint8Array): ConfigAccess {
  const section = "Virtio device config space";
  const view = viewOf(payload, CONFIG_HDR_BYTES, section);
  const size = view.getUint32(4, true);
  if (size > VHOST_USER_MAX_CONFIG_SIZE) {
    throw new VhostUserError(
      "BAD_CONFIG_ACCESS",
      section,
      `Cannot reach ${size} bytes of the configuration space: the limit is ${VHOST_USER_MAX_CONFIG_SIZE}`,
    );
  }
  return {
    offset: view.getUint32(0, true),
    size,
    flags: view.getUint32(8, true),
    bytes: payload.slice(CONFIG_HDR_BYTES, CONFIG_HDR_BYTES + size),
  };
}

/** Encodes an access to the configuration space; `bytes` are padded with zeros to `size`. */
export function encodeConfig(access: ConfigAccess): Uint8Array {
  const bytes = new Uint8Array(CONFIG_HDR_BYTES + access.size);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, access.offset, true);
  view.setUint32(4, access.size, true);
  view.setUint32(8, access.flags, true);
  bytes.set(access.bytes.subarray(0, access.size), CONFIG_HDR_BYTES);
  return bytes;
}

/** Reads a log description: size and offset, 64 bits each. */
export function parseLog(payload: Uint8Array): LogDescription {
  const section = "Log description";
  const view = viewOf(payload, 16, section);
  return {
    size: readNumber(view, 0, section),
    offset: readNumber(view, 8, section),
  };
}

/** Encodes a log description. */
export function encodeLog(log: LogDescription): Uint8Array {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  writeNumber(view, 0, log.size);
  writeNumber(view, 8, log.offset);
  return bytes;
}

/** Reads an inflight description; the 4 bytes of padding that C adds behind it may be missing. */
export function parseInflight(payload: Uint8Array): InflightDescription {
  const section = "Inflight description";
  const view = viewOf(payload, 20, section);
  return {
    mmapSize: readNumber(view, 0, section),
    mmapOffset: readNumber(view, 8, section),
    numQueues: view.getUint16(16, true),
    queueSize: view.getUint16(18, true),
  };
}

/** Encodes an inflight description, with the padding that C adds: 24 bytes. */
export function encodeInflight(inflight: InflightDescription): Uint8Array {
  const bytes = new Uint8Array(24);
  const view = new DataView(bytes.buffer);
  writeNumber(view, 0, inflight.mmapSize);
  writeNumber(view, 8, inflight.mmapOffset);
  view.setUint16(16, inflight.numQueues, true);
  view.setUint16(18, inflight.queueSize, true);
  return bytes;
}
