import type { Connection } from "./connection.ts";

const FIRST_BUCKETS = 16;

/**
 * Connections by guest port, peer CID and peer port; each operation takes constant time.
 *
 * Lists of connections by a hash of the three: each packet looks its connection up, and with many of them
 * what it touches on the way is not in the first caches. The hash is another one in each table, so that a
 * guest cannot choose ports that share a list.
 */
export class ConnectionTable {
  #buckets: (Connection | null)[] = emptyBuckets(FIRST_BUCKETS);
  #count = 0;
  readonly #seed: number = Math.floor(Math.random() * 0x1_0000_0000);

  /** The connection of a tuple, or null. */
  find(
    guestPort: number,
    peerCid: number,
    peerPort: number,
  ): Connection | null {
    const bucket = this.#bucketOf(guestPort, peerCid, peerPort);
    let at: Connection | null = this.#buckets[bucket]!;
    while (
      at !== null &&
      (at.guestPort !== guestPort || at.hostPort !== peerPort ||
        at.peerCid !== peerCid)
    ) at = at.nextInTable;
    return at;
  }

  /** Adds a connection whose tuple is not in it. */
  insert(connection: Connection): void {
    if (this.#count === this.#buckets.length) this.#grow();
    this.#link(connection);
    this.#count++;
  }

  /** Takes a connection out where it is in it. */
  delete(connection: Connection): void {
    const { guestPort, peerCid, hostPort, nextInTable } = connection;
    const bucket = this.#bucketOf(guestPort, peerCid, hostPort);
    let before: Connection | null = null;
    let at: Connection | null = this.#buckets[bucket]!;
    while (at !== null && at !== connection) {
      before = at;
      at = at.nextInTable;
    }
    if (at === null) return;
    if (before === null) this.#buckets[bucket] = nextInTable;
    else before.nextInTable = nextInTable;
    connection.nextInTable = null;
    this.#count--;
  }

  #link(connection: Connection): void {
    const { guestPort, peerCid, hostPort } = connection;
    const bucket = this.#bucketOf(guestPort, peerCid, hostPort);
    connection.nextInTable = this.#buckets[bucket]!;
    this.#buckets[bucket] = connection;
  }

  #grow(): void {
    const old = this.#buckets;
    this.#buckets = emptyBuckets(old.length * 2);
    for (const first of old) {
      for (let at = first; at !== null;) {
        const next: Connection | null = at.nextInTable;
        this.#link(at);
        at = next;
      }
    }
  }

  #bucketOf(guestPort: number, peerCid: number, peerPort: number): number {
    let hash = mix(this.#seed ^ guestPort);
    hash = mix(hash ^ peerPort);
    hash = mix(hash ^ peerCid);
    return hash & (this.#buckets.length - 1);
  }
}

function emptyBuckets(count: number): (Connection | null)[] {
  return new Array<Connection | null>(count).fill(null);
}

// Each bit of the result depends on each of `value`.
function mix(value: number): number {
  value = Math.imul(value ^ (value >>> 16), 0x85ebca6b);
  value = Math.imul(value ^ (value >>> 13), 0xc2b2ae35);
  return value ^ (value >>> 16);
}
