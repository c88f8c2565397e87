/**
 * Remembers packets: the last of them one by one, all of them in counts, and the credit of each connection.
 *
 * Works in a browser.
 *
 * @module
 */

import { FieldReader, type Plain } from "../../../device/snapshot.ts";
import type { PacketHeader } from "../../../device/vsock/packet.ts";

/** Packets that are kept. */
const KEPT = 200;
/** Connections that a snapshot may name. */
const MOST_CONNECTIONS = 10_000;
const OPERATIONS = [
  "INVALID",
  "REQUEST",
  "RESPONSE",
  "RST",
  "SHUTDOWN",
  "RW",
  "CREDIT_UPDATE",
  "CREDIT_REQUEST",
];
const REQUEST = 1;
const RST = 3;
const RW = 5;

/** One packet. */
export type Packet = {
  /** Which it is, counted from 1 on. */
  number: number;
  direction: "to guest" | "to page";
  operation: string;
  guestPort: number;
  hostPort: number;
  length: number;
  bufAlloc: number;
  fwdCnt: number;
  /** Bytes that its sender may still send after it; null where the receiver has told nothing yet. */
  credit: number | null;
};

/** What one end of a connection has told and sent, modulo 2^32. */
type End = { sent: number; bufAlloc: number; fwdCnt: number; told: boolean };

/** The log of one device. */
export class PacketLog {
  /** The last packets, oldest first. */
  readonly packets: Packet[] = [];
  /** Packets and payload, by direction. */
  readonly counts: Record<
    "to guest" | "to page",
    { packets: number; bytes: number }
  > = {
    "to guest": { packets: 0, bytes: 0 },
    "to page": { packets: 0, bytes: 0 },
  };
  /** RST packets. */
  resets = 0;
  /** Packets that were sent without credit. */
  overdrawn = 0;
  readonly #connections = new Map<string, { guest: End; page: End }>();

  /** Goes on where another was saved. */
  static restore(saved: unknown): PacketLog {
    const log = new PacketLog();
    const fields = new FieldReader(saved, "packets");
    log.resets = fields.u32("resets");
    log.overdrawn = fields.u32("overdrawn");
    for (const direction of ["to guest", "to page"] as const) {
      const counts = new FieldReader(fields.any(direction), direction);
      const most = Number.MAX_SAFE_INTEGER;
      log.counts[direction].packets = counts.integer("packets", 0, most);
      log.counts[direction].bytes = counts.integer("bytes", 0, most);
    }
    const connections = fields.array("connections", MOST_CONNECTIONS);
    for (const value of connections) {
      const one = new FieldReader(value, "connection");
      const end = (name: string): End => {
        const end = new FieldReader(one.any(name), name);
        return {
          sent: end.u32("sent"),
          bufAlloc: end.u32("bufAlloc"),
          fwdCnt: end.u32("fwdCnt"),
          told: end.boolean("told"),
        };
      };
      log.#connections.set(one.string("ports"), {
        guest: end("guest"),
        page: end("page"),
      });
    }
    return log;
  }

  /** Counts and credit as plain data; the packets are left out. */
  save(): Plain {
    return {
      ...this.counts,
      resets: this.resets,
      overdrawn: this.overdrawn,
      connections: [...this.#connections].map(([ports, { guest, page }]) => ({
        ports,
        guest,
        page,
      })),
    };
  }

  /** Takes a packet. */
  add(direction: Packet["direction"], header: PacketHeader): void {
    const fromGuest = direction === "to page";
    const { op, len, bufAlloc, fwdCnt } = header;
    const guestPort = fromGuest ? header.srcPort : header.dstPort;
    const hostPort = fromGuest ? header.dstPort : header.srcPort;
    const counts = this.counts[direction];
    counts.packets++;
    counts.bytes += len;
    if (op === RST) this.resets++;
    this.packets.push({
      number: this.counts["to guest"].packets + this.counts["to page"].packets,
      direction,
      operation: OPERATIONS[op] ?? `operation ${op}`,
      guestPort,
      hostPort,
      length: len,
      bufAlloc,
      fwdCnt,
      credit: this.#account(`${guestPort} ${hostPort}`, fromGuest, header),
    });
    if (this.packets.length > KEPT) this.packets.shift();
  }

  /** Keeps the accounts of a connection (virtio 1.4, 5.10.6.3); what its sender may still send. */
  #account(
    ports: string,
    fromGuest: boolean,
    header: PacketHeader,
  ): number | null {
    const { op, len, bufAlloc, fwdCnt } = header;
    let ends = this.#connections.get(ports);
    if (op === RST) {
      this.#connections.delete(ports);
      return null;
    }
    if (op === REQUEST) {
      ends = { guest: newEnd(), page: newEnd() };
      this.#connections.set(ports, ends);
    }
    if (ends === undefined) return null;
    const [from, to] = fromGuest
      ? [ends.guest, ends.page]
      : [ends.page, ends.guest];
    from.bufAlloc = bufAlloc;
    from.fwdCnt = fwdCnt;
    from.told = true;
    if (op === RW) from.sent = (from.sent + len) >>> 0;
    if (!to.told) return null;
    const credit = to.bufAlloc - ((from.sent - to.fwdCnt) >>> 0);
    if (credit < 0) this.overdrawn++;
    return credit;
  }
}

function newEnd(): End {
  return { sent: 0, bufAlloc: 0, fwdCnt: 0, told: false };
}
