import { type LoopbackConn, LoopbackHost, VsockDevice } from "../device/mod.ts";
import { type GuestConnection, InProcessGuest } from "../props/guest/mod.ts";
import type { RingFormat } from "../ring/mod.ts";

const PORT = 1234;
/** Connections that are made before the guest and the device run. */
const AT_ONCE = 64;

/** A guest and a device with many connections, which all are open. */
export class Connections {
  readonly guest: InProcessGuest;
  readonly near: GuestConnection[] = [];
  readonly far: LoopbackConn[] = [];
  readonly #host: LoopbackHost;

  /** Connects `count` times. */
  constructor(ring: RingFormat, count: number) {
    this.#host = new LoopbackHost({
      schedule: (work) => this.guest.schedule(work),
    });
    const device = this.#device();
    this.#host.attach(device);
    this.guest = new InProcessGuest({ device, ring });
    const listener = this.#host.listen(PORT);
    while (this.near.length < count) {
      const end = Math.min(count, this.near.length + AT_ONCE);
      while (this.near.length < end) {
        this.near.push(this.guest.driver.connect(PORT));
      }
      this.guest.run();
      for (;;) {
        const conn = listener.tryAccept();
        if (conn === null) break;
        this.far.push(conn);
      }
    }
    listener.close();
    if (this.far.length !== count) throw new Error("connections are missing");
  }

  /** Moves to another device with the same host programs, through a snapshot. */
  migrate(): void {
    this.#host.detach();
    const device = this.#device();
    this.#host.attach(device);
    this.guest.migrate(device);
  }

  #device(): VsockDevice {
    return new VsockDevice({ guestCid: 3, host: this.#host });
  }
}
