import { OP_RST, opName, type PacketHeader } from "./vsock_header.ts";

/** Connections that are remembered at most after their end; the oldest is forgotten first. */
const MAX_TUPLES = 4096;

type Tuple = {
  /** Whose RST ended it. */
  by: "device" | "guest";
  /** The device has no reason left for an RST: one would be an answer to ours, or a second one. */
  final: boolean;
  /** Token of our RST while the device has it; -1 before and after. */
  token: number;
  /** The device has taken our RST. */
  taken: boolean;
};

/**
 * Connections that have ended by an RST, so that a packet that comes too late, or an RST that
 * answers an RST, is told from one that was on its way.
 */
export class ClosedTuples {
  readonly #tuples: Map<string, Tuple> = new Map();
  readonly #tokens: Map<number, Tuple> = new Map();

  /**
   * The device has ended it: it may send nothing more but a REQUEST, and RSTs where it has not taken all
   * packets of this guest yet (`crossing`), which then belong to no connection.
   */
  resetByDevice(
    localPort: number,
    peerCid: number,
    peerPort: number,
    crossing: boolean,
  ): void {
    this.#set(localPort, peerCid, peerPort, {
      by: "device",
      final: !crossing,
      token: -1,
      taken: false,
    });
  }

  /**
   * This guest has ended it. `final` where the device had no reason left to end it by itself, so that
   * an RST after it took ours is an answer.
   */
  resetByGuest(
    localPort: number,
    peerCid: number,
    peerPort: number,
    final: boolean,
  ): void {
    // The RST itself may have been staged before this is told.
    const token = this.#tuples.get(keyOf(localPort, peerCid, peerPort))?.token;
    const tuple: Tuple = {
      by: "guest",
      final,
      token: token ?? -1,
      taken: false,
    };
    if (tuple.token >= 0) this.#tokens.set(tuple.token, tuple);
    this.#set(localPort, peerCid, peerPort, tuple);
  }

  /** The RST of a tuple is in the queue as `token`. */
  resetStaged(
    localPort: number,
    peerCid: number,
    peerPort: number,
    token: number,
  ): void {
    const key = keyOf(localPort, peerCid, peerPort);
    let tuple = this.#tuples.get(key);
    if (tuple === undefined) {
      tuple = { by: "guest", final: false, token, taken: false };
      this.#set(localPort, peerCid, peerPort, tuple);
    }
    tuple.token = token;
    this.#tokens.set(token, tuple);
  }

  /** The device has used packet `token`. */
  sentPacketUsed(token: number): void {
    const tuple = this.#tokens.get(token);
    if (tuple === undefined) return;
    this.#tokens.delete(token);
    tuple.token = -1;
    tuple.taken = true;
  }

  /** The tuple is in use again. */
  delete(localPort: number, peerCid: number, peerPort: number): void {
    this.#tuples.delete(keyOf(localPort, peerCid, peerPort));
  }

  /** Forgets all: TRANSPORT_RESET. */
  clear(): void {
    this.#tuples.clear();
  }

  /** What is wrong with a packet of no connection, in words, or null. */
  judge(header: PacketHeader): string | null {
    const key = keyOf(header.dstPort, header.srcCid, header.srcPort);
    const tuple = this.#tuples.get(key);
    if (tuple === undefined) return null;
    const name = opName(header.op);
    if (tuple.by === "device") {
      return header.op === OP_RST && !tuple.final
        ? null
        : `${name} after the device's RST`;
    }
    if (header.op === OP_RST && tuple.final && tuple.taken) {
      return "RST in answer to an RST";
    }
    return null;
  }

  #set(
    localPort: number,
    peerCid: number,
    peerPort: number,
    tuple: Tuple,
  ): void {
    const key = keyOf(localPort, peerCid, peerPort);
    this.#tuples.delete(key);
    this.#tuples.set(key, tuple);
    if (this.#tuples.size > MAX_TUPLES) {
      for (const oldest of this.#tuples.keys()) {
        this.#tuples.delete(oldest);
        break;
      }
    }
  }
}

function keyOf(localPort: number, peerCid: number, peerPort: number): string {
  return `${localPort} ${peerCid}:${peerPort}`;
}
