import type { GuestConnection } from "./guest_connection.ts";

/** A guest's connections by local port, peer CID and peer port; each operation takes constant time. */
export class ConnectionTable {
  // Pairs of ports that share a number are linked by `next`.
  readonly #buckets: Map<number, GuestConnection> = new Map();
  #size = 0;

  /** Connections in it. */
  get size(): number {
    return this.#size;
  }

  /** Adds a connection that is not in it. */
  insert(connection: GuestConnection): void {
    const key = bucketOf(connection.localPort, connection.peerPort);
    connection.next = this.#buckets.get(key) ?? null;
    this.#buckets.set(key, connection);
    this.#size++;
  }

  /** The connection of a tuple, or null. */
  find(
    localPort: number,
    peerCid: number,
    peerPort: number,
  ): GuestConnection | null {
    let found = this.#buckets.get(bucketOf(localPort, peerPort)) ?? null;
    while (
      found !== null &&
      (found.localPort !== localPort || found.peerCid !== peerCid ||
        found.peerPort !== peerPort)
    ) found = found.next;
    return found;
  }

  /** Takes a connection out; false where it is not in it. */
  delete(connection: GuestConnection): boolean {
    const key = bucketOf(connection.localPort, connection.peerPort);
    let found = this.#buckets.get(key) ?? null;
    if (found === connection) {
      if (connection.next === null) this.#buckets.delete(key);
      else this.#buckets.set(key, connection.next);
    } else {
      while (found !== null && found.next !== connection) found = found.next;
      if (found === null) return false;
      found.next = connection.next;
    }
    connection.next = null;
    this.#size--;
    return true;
  }

  /** A list of all, which stays as it is when they come and go. */
  all(): GuestConnection[] {
    const list: GuestConnection[] = [];
    for (const first of this.#buckets.values()) {
      for (
        let connection: GuestConnection | null = first;
        connection !== null;
        connection = connection.next
      ) list.push(connection);
    }
    return list;
  }
}

/** A number below 2^53 for a pair of ports; few pairs share one. */
function bucketOf(localPort: number, peerPort: number): number {
  return (localPort & 0x1fffff) * 0x100000000 + peerPort;
}
