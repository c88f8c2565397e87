import { VsockDevice } from "../device/vsock/device.ts";
import { type LoopbackConn, LoopbackHost } from "../device/vsock/loopback.ts";
import {
  InProcessGuest,
  RX_LAYOUT_LINUX_6,
  RX_LAYOUT_LINUX_OLD,
  RX_LAYOUT_ONE_PIECE,
} from "./guest/mod.ts";
import { SlowHost } from "./slow_host.ts";

/** Layouts of receive buffers, by name. */
export const RX_LAYOUTS: Readonly<
  Record<"3776" | "44+4096" | "4140" | "20+30+100" | "30+60", readonly number[]>
> = {
  "3776": RX_LAYOUT_LINUX_6,
  "44+4096": RX_LAYOUT_LINUX_OLD,
  "4140": RX_LAYOUT_ONE_PIECE,
  "20+30+100": [20, 30, 100],
  "30+60": [30, 60],
};

/** What guest and device are made with. */
export type VsockSetup = {
  format: "split" | "packed";
  /** Descriptors of each queue. */
  size: number;
  eventIdx: boolean;
  indirect: boolean;
  rx: keyof typeof RX_LAYOUTS;
  /** Receive buffers of the guest's streams and the device's, in bytes. */
  guestBuffer: number;
  deviceBuffer: number;
  /** Bytes that a host program lets wait before it has read them. */
  hostRoom: number;
  /** Connections that the device takes. */
  maxConnections: number;
  /** Connections that wait for the guest to accept them. */
  backlog: number;
};

/** A guest with its device and its host, with a clock of their own. */
export class VsockRig {
  /** Milliseconds of the clock. */
  now = 0;
  /** Where host programs are. */
  readonly host: LoopbackHost;
  /** The guest. */
  readonly guest: InProcessGuest;
  /** The device; another one after each migration. */
  device: VsockDevice;
  readonly #setup: VsockSetup;
  readonly #slow: SlowHost;

  /** @param setup What it is made with. */
  constructor(setup: VsockSetup) {
    this.#setup = setup;
    const { format, size, eventIdx, indirect, rx, guestBuffer } = setup;
    this.host = new LoopbackHost({
      schedule: (work) => this.guest.schedule(work),
    });
    this.#slow = new SlowHost(this.host, setup.hostRoom);
    this.device = this.#newDevice();
    this.guest = new InProcessGuest({
      device: this.device,
      ring: format,
      queueSize: size,
      eventIdx,
      indirectEntries: indirect ? 4 : 0,
      memoryBytes: 1 << 20,
      driver: {
        rxLayout: RX_LAYOUTS[rx],
        // Without tables a buffer takes as many descriptors as it has segments.
        rxBuffers: indirect ? size : Math.floor(size / RX_LAYOUTS[rx].length),
        maxPayload: 4096,
        bufAlloc: guestBuffer,
        now: () => this.now,
        strict: false,
      },
    });
    this.host.attach(this.#slow.before(this.device));
  }

  /** Moves the guest to another device, whose host programs stay. */
  migrate(): void {
    this.host.detach();
    this.device = this.#newDevice();
    this.host.attach(this.#slow.before(this.device));
    this.guest.migrate(this.device);
  }

  /** A host program reads what there is; null at the end. See `LoopbackConn.tryRead` for errors. */
  hostRead(conn: LoopbackConn, target: Uint8Array): number | null {
    const count = conn.tryRead(target);
    this.#slow.wasRead(conn, count ?? 0);
    this.guest.wake();
    return count;
  }

  /** Lets time pass, for the device and where told for the guest. */
  passTime(ms: number, guestToo: boolean): void {
    this.now += ms;
    this.device.expire(this.now);
    if (guestToo) this.guest.driver.expire(this.now);
    this.guest.wake();
  }

  #newDevice(): VsockDevice {
    const { deviceBuffer, maxConnections } = this.#setup;
    return new VsockDevice({
      guestCid: 3,
      host: this.#slow,
      bufAlloc: deviceBuffer,
      maxConnections,
      now: () => this.now,
    });
  }
}
