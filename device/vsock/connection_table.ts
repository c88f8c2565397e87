import type { Connection } from "./connection.ts";

/**
 * Connections by guest port, peer CID and peer port; each operation takes constant time, as long as few
 * peers share a pair of ports.
 */
export class ConnectionTable {
  // By guest port, then the peer's. Both are any u32, so that no number holds the two.
  readonly #byGuestPort = new Map<number, Map<number, Connection[]>>();

  /** The connection of a tuple, or null. */
  find(
    guestPort: number,
    peerCid: number,
    peerPort: number,
  ): Connection | null {
    const list = this.#byGuestPort.get(guestPort)?.get(peerPort);
    if (list === undefined) return null;
    for (const connection of list) {
      if (connection.peerCid === peerCid) return connection;
    }
    return null;
  }

  /** Adds a connection whose tuple is not in it. */
  insert(connection: Connection): void {
    const { guestPort, hostPort } = connection;
    let byPeerPort = this.#byGuestPort.get(guestPort);
    if (byPeerPort === undefined) {
      this.#byGuestPort.set(guestPort, byPeerPort = new Map());
    }
    const list = byPeerPort.get(hostPort);
    if (list === undefined) byPeerPort.set(hostPort, [connection]);
    else list.push(connection);
  }

  /** Takes a connection out where it is in it. */
  delete(connection: Connection): void {
    const { guestPort, hostPort } = connection;
    const byPeerPort = this.#byGuestPort.get(guestPort);
    const list = byPeerPort?.get(hostPort);
    const at = list?.indexOf(connection) ?? -1;
    if (byPeerPort === undefined || list === undefined || at < 0) return;
    list.splice(at, 1);
    if (list.length > 0) return;
    byPeerPort.delete(hostPort);
    if (byPeerPort.size === 0) this.#byGuestPort.delete(guestPort);
  }
}
