import { FieldReader, SnapshotError } from "../snapshot.ts";
import type { ConnectionState } from "./connection.ts";
import { type CreditState, MAX_UNREAD_PACKETS } from "./credit.ts";
import type { LinkState, OutgoingState } from "./host_link.ts";
import { MAX_EMPTY_MESSAGES } from "./message_queue.ts";
import {
  VIRTIO_VSOCK_SHUTDOWN_MASK,
  VIRTIO_VSOCK_TYPE_SEQPACKET,
  VIRTIO_VSOCK_TYPE_STREAM,
  VMADDR_CID_HOST,
  VMADDR_PORT_ANY,
} from "./virtio_vsock.ts";

/** One connection in a snapshot; see `Connection` for what the fields mean. */
export type ConnectionSnapshot = LinkState & {
  /** Socket type: 1 for a stream, 2 for a seqpacket. */
  type: number;
  guestPort: number;
  /** CID of the other end: 2 for the host. */
  peerCid: number;
  hostPort: number;
  state: Exclude<ConnectionState, "closed">;
  credit: CreditState;
  requestSent: boolean;
  responseDue: boolean;
  updateAsked: boolean;
  wantShutdown: number;
  sentShutdown: number;
  guestShutdown: number;
  hostWriteEnded: boolean;
  discard: boolean;
  hungUp: boolean;
  /** Milliseconds until its timer; -1 without one. */
  timerMs: number;
};

/** An RST that belongs to no connection and waits for a receive buffer. */
export type StraySnapshot = {
  srcCid: number;
  dstCid: number;
  srcPort: number;
  dstPort: number;
  type: number;
};

/** The part of a device snapshot that is the socket device's; plain data. */
export type VsockSnapshot = {
  guestCid: number;
  /** Receive buffer that was advertised for every connection. */
  bufAlloc: number;
  nextHostPort: number;
  resetEventDue: boolean;
  strays: StraySnapshot[];
  /** In the order in which they were made. */
  connections: ConnectionSnapshot[];
};

/** Limits of the device that reads a snapshot. */
export type VsockSnapshotLimits = {
  guestCid: number;
  bufAlloc: number;
  maxConnections: number;
  maxStrays: number;
};

const STATES = [
  "asking-host",
  "asking-guest",
  "open",
  "closing",
  "resetting",
  "lingering",
] as const;

/** Longest time that any timer of a connection runs. */
const MAX_TIMER_MS = 3_600_000;

/**
 * Converts an untrusted value to a snapshot that a device with these limits can go on from.
 *
 * @throws {SnapshotError} `CONTENT` or `MISMATCH`, naming the field.
 */
export function readVsockSnapshot(
  value: unknown,
  limits: VsockSnapshotLimits,
): VsockSnapshot {
  const fields = new FieldReader(value, "model");
  const guestCid = fields.u32("guestCid");
  if (guestCid !== limits.guestCid) {
    throw new SnapshotError(
      "MISMATCH",
      `it is of the guest with CID ${guestCid}, this device's has ${limits.guestCid}`,
    );
  }
  const bufAlloc = fields.integer("bufAlloc", 1, 2 ** 31 - 1);
  if (bufAlloc > limits.bufAlloc) {
    throw new SnapshotError(
      "MISMATCH",
      `its connections have buffers of ${bufAlloc} bytes, this device's ${limits.bufAlloc}`,
    );
  }
  const values = fields.array("connections", Infinity);
  if (values.length > limits.maxConnections) {
    throw new SnapshotError(
      "MISMATCH",
      `it has ${values.length} connections, this device takes ${limits.maxConnections}`,
    );
  }
  const seen = new Set<string>();
  const connections = values.map((one, i) => {
    const connection = readConnection(
      new FieldReader(one, `connections[${i}]`),
      bufAlloc,
    );
    // A lingering connection has given its address tuple back.
    const tuple =
      `${connection.guestPort}:${connection.peerCid}:${connection.hostPort}`;
    if (connection.state !== "lingering" && seen.has(tuple)) {
      throw new SnapshotError("CONTENT", `${tuple} is connected twice`);
    }
    if (connection.state !== "lingering") seen.add(tuple);
    return connection;
  });
  return {
    guestCid,
    bufAlloc,
    nextHostPort: fields.integer("nextHostPort", 0, VMADDR_PORT_ANY - 1),
    resetEventDue: fields.boolean("resetEventDue"),
    strays: fields.array("strays", limits.maxStrays).map((one, i) => {
      const stray = new FieldReader(one, `strays[${i}]`);
      return {
        srcCid: stray.integer("srcCid", 0, Number.MAX_VALUE),
        dstCid: stray.integer("dstCid", 0, Number.MAX_VALUE),
        srcPort: stray.u32("srcPort"),
        dstPort: stray.u32("dstPort"),
        type: stray.integer("type", 0, 0xffff),
      };
    }),
    connections,
  };
}

function readConnection(
  fields: FieldReader,
  bufAlloc: number,
): ConnectionSnapshot {
  const state = fields.oneOf("state", STATES);
  const credit = readCredit(new FieldReader(fields.any("credit"), "credit"));
  const bytes = fields.bytes("buffered", bufAlloc);
  const held = (credit.rxCnt - credit.fwdCnt) >>> 0;
  if (
    held > bufAlloc || bytes.length > held ||
    (state === "open" && bytes.length !== held)
  ) {
    throw fields.bad(
      "buffered",
      `${bytes.length} bytes where the credit says ${held}`,
    );
  }
  const shutdown = (name: string): number =>
    fields.integer(name, 0, VIRTIO_VSOCK_SHUTDOWN_MASK);
  const type = fields.integer(
    "type",
    VIRTIO_VSOCK_TYPE_STREAM,
    VIRTIO_VSOCK_TYPE_SEQPACKET,
  );
  return {
    type,
    ...type === VIRTIO_VSOCK_TYPE_SEQPACKET
      ? readMessages(fields, bytes.length, bufAlloc)
      : { messages: [], outgoing: null },
    guestPort: fields.u32("guestPort"),
    peerCid: fields.integer("peerCid", VMADDR_CID_HOST, 0xfffffffe),
    hostPort: fields.u32("hostPort"),
    state,
    credit,
    buffered: fields.string("buffered"),
    requestSent: fields.boolean("requestSent"),
    responseDue: fields.boolean("responseDue"),
    updateAsked: fields.boolean("updateAsked"),
    wantShutdown: shutdown("wantShutdown"),
    sentShutdown: shutdown("sentShutdown"),
    guestShutdown: shutdown("guestShutdown"),
    hostWriteEnded: fields.boolean("hostWriteEnded"),
    discard: fields.boolean("discard"),
    hungUp: fields.boolean("hungUp"),
    timerMs: fields.integer("timerMs", -1, MAX_TIMER_MS),
  };
}

/** Whole messages among `held` bytes, and what is left of one to the guest. */
function readMessages(
  fields: FieldReader,
  held: number,
  bufAlloc: number,
): Pick<LinkState, "messages" | "outgoing"> {
  const messages = fields.u32s("messages", held + MAX_EMPTY_MESSAGES);
  const whole = messages.reduce((sum, word) => sum + (word >>> 1), 0);
  const empty = messages.filter((word) => word >>> 1 === 0).length;
  if (whole > held || empty > MAX_EMPTY_MESSAGES) {
    throw fields.bad("messages", `no messages of ${held} bytes`);
  }
  let outgoing: OutgoingState | null = null;
  if (fields.any("outgoing") !== null) {
    const rest = new FieldReader(fields.any("outgoing"), "outgoing");
    const length = rest.integer("length", 0, bufAlloc);
    rest.bytes("rest", length);
    outgoing = {
      rest: rest.string("rest"),
      length,
      endOfRecord: rest.boolean("endOfRecord"),
    };
  }
  return { messages, outgoing };
}

function readCredit(fields: FieldReader): CreditState {
  const credit = {
    fwdCnt: fields.u32("fwdCnt"),
    toldFwdCnt: fields.u32("toldFwdCnt"),
    rxCnt: fields.u32("rxCnt"),
    txCnt: fields.u32("txCnt"),
    peerBufAlloc: fields.u32("peerBufAlloc"),
    peerFwdCnt: fields.u32("peerFwdCnt"),
    unread: fields.u32s("unread", MAX_UNREAD_PACKETS),
  };
  const last = credit.unread.at(-1);
  if (last !== undefined && last !== credit.txCnt) {
    throw fields.bad("unread", "of other packets than were sent last");
  }
  return credit;
}
