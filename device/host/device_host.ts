import { Diagnostics, type Log } from "../diagnostics.ts";
import { type RingChoice, VirtioDevice } from "../virtio_device.ts";
import { VsockDevice } from "../vsock/device.ts";
import { VsockSwitch } from "../vsock/switch.ts";
import { EventLoop, type LoopWork } from "./event_loop.ts";
import { MAX_SOCKET_PATH_BYTES, socketPathBytes } from "./socket.ts";
import { UnixBackend } from "./unix_backend.ts";
import { VhostUserServer } from "./vhost_user_server.ts";

/** How long {@link DeviceHost.stop} waits for the guest to take the RSTs of its connections. */
export const GOODBYE_TIMEOUT_MS = 300;

/** Bytes of `_4294967294`. */
const PORT_SUFFIX_BYTES = 11;

/** One guest of a {@link DeviceHost}, and its sockets. */
export type GuestOptions = {
  /** Path of the socket that the front-end (QEMU, user-mode-linux) connects to. */
  socketPath: string;
  /** Path of the socket for host programs, and prefix of theirs. */
  udsPath: string;
  /** The guest's CID. */
  guestCid: number;
  /** Ring formats that are offered to this guest; those of the first one unless told. */
  ring?: RingChoice;
};

/** What a {@link DeviceHost} is made with; plain data. */
export type DeviceHostOptions = GuestOptions & {
  /** Further guests; all can connect to each other. */
  moreGuests?: readonly GuestOptions[];
  /** Ring formats that are offered. */
  ring: RingChoice;
  /** Offer seqpacket sockets; yes unless told. */
  seqpackets?: boolean;
  /** Host ports that the guests may connect to; all unless told. */
  allowedHostPorts?: readonly number[];
  /** Guest ports that host programs may connect to; all unless told. */
  allowedGuestPorts?: readonly number[];
  /**
   * Microseconds at most that the thread looks for the next request before it sleeps, while guest and host
   * program answer each other; {@link DEFAULT_POLL_US} unless told, 0 for never.
   */
  pollUs?: number;
};

/** The most that {@link DeviceHostOptions.pollUs} may be. */
export const MAX_POLL_US = 1000;

/** {@link DeviceHostOptions.pollUs} unless told: longer than most answers take, where there is a second processor. */
export const DEFAULT_POLL_US: number = navigator.hardwareConcurrency > 1
  ? 60
  : 0;

/** Sides that an {@link EventLoop} tells apart. */
const SIDES = 32;

/** A device with everything around it. */
class Place {
  readonly diagnostics: Diagnostics;
  readonly backend: UnixBackend;
  readonly vsock: VsockDevice;
  readonly server: VhostUserServer;

  /** Makes the device and listens on both paths. */
  constructor(
    loop: EventLoop,
    side: number,
    options: DeviceHostOptions,
    guest: GuestOptions,
    log: Log,
  ) {
    const diagnostics = new Diagnostics(log);
    const { seqpackets, allowedHostPorts, allowedGuestPorts } = options;
    const { guestCid, socketPath, udsPath } = guest;
    this.diagnostics = diagnostics;
    this.backend = new UnixBackend({
      loop,
      udsPath,
      diagnostics,
      seqpackets,
      allowedHostPorts,
      allowedGuestPorts,
    });
    this.vsock = new VsockDevice({
      guestCid,
      host: this.backend,
      diagnostics,
      seqpackets,
      now: loop.now,
    });
    const device = new VirtioDevice(this.vsock, {
      ring: guest.ring ?? options.ring,
      // The one architecture that Deno runs on and that does not reorder loads with loads.
      strongOrdering: Deno.build.arch === "x86_64",
      diagnostics,
    });
    this.vsock.attach(device);
    this.server = new VhostUserServer({
      loop,
      socketPath,
      device,
      diagnostics,
      side,
    });
    this.server.start();
    try {
      this.backend.start(this.vsock);
    } catch (error) {
      this.server.stop();
      throw error;
    }
    if (socketPathBytes(udsPath) > MAX_SOCKET_PATH_BYTES - PORT_SUFFIX_BYTES) {
      log(
        "warn",
        `${udsPath} leaves too little room for every "_<port>" behind it: guests cannot connect to high ports`,
      );
    }
  }

  /** Counters since the start, and gauges, by name. */
  metrics(): Record<string, number> {
    return {
      front_end_connected: this.server.connected ? 1 : 0,
      connections: this.vsock.connectionCount,
      host_streams: this.backend.streamCount,
      host_pending: this.backend.pendingCount,
      kicks: this.server.kicks,
      calls: this.server.calls,
      ...Object.fromEntries(this.diagnostics.counters),
    };
  }
}

/**
 * Vsock devices with everything around them, one for each guest, on the calling thread:
 * {@link DeviceHost.turn} blocks. Where there are several, their guests reach each other by CID.
 */
export class DeviceHost implements LoopWork {
  /** The loop, for descriptors of the caller's own. */
  readonly loop: EventLoop;
  readonly #places: Place[] = [];

  /**
   * Makes the devices and listens on all paths.
   *
   * @throws {RangeError} when a CID is reserved or a path is too long.
   * @throws {TypeError} when a live process listens at a path, a file that is no socket is there, or two
   * guests have the same CID.
   * @throws {SystemError} when the system refuses.
   */
  constructor(options: DeviceHostOptions, log: Log) {
    const pollUs = options.pollUs ?? DEFAULT_POLL_US;
    const loop = new EventLoop(undefined, pollUs / 1000);
    this.loop = loop;
    const guests = [options, ...options.moreGuests ?? []];
    const several = guests.length > 1;
    // The loop looks at all devices before it sleeps.
    const network = new VsockSwitch<VsockDevice>({ wake: () => {} });
    try {
      for (const [index, guest] of guests.entries()) {
        const logOfGuest: Log = several
          ? (level, text) => log(level, `guest ${guest.guestCid}: ${text}`)
          : log;
        // Side 0 are the host programs of all.
        const side = 1 + index % (SIDES - 1);
        const place = new Place(loop, side, options, guest, logOfGuest);
        this.#places.push(place);
        if (several) network.join(place.vsock);
      }
    } catch (error) {
      for (const { backend, server } of this.#places) {
        backend.stop();
        server.stop();
      }
      loop.close();
      throw error;
    }
    loop.setWork(this);
  }

  /** Waits for events and handles them, once. */
  turn(maxSleepMs?: number): void {
    this.loop.turn(maxSleepMs);
  }

  /** {@inheritDoc LoopWork.process} */
  process(): boolean {
    for (const { server, vsock } of this.#places) {
      server.checkMemory();
      try {
        vsock.process();
      } catch (error) {
        server.fail(error);
      }
    }
    // After all of them, as one gives work to another.
    for (const { vsock } of this.#places) if (vsock.pending) return true;
    return false;
  }

  /**
   * {@inheritDoc LoopWork.failed}
   *
   * It ends the front-ends' sessions, and must not take the devices from the next guests.
   */
  failed(error: unknown): void {
    for (const { server } of this.#places) server.fail(error);
  }

  /** {@inheritDoc LoopWork.nextDeadline} */
  nextDeadline(): number {
    let next = Infinity;
    for (const { vsock } of this.#places) {
      const deadline = vsock.nextDeadline();
      if (deadline < next) next = deadline;
    }
    return next;
  }

  /** {@inheritDoc LoopWork.expire} */
  expire(now: number): void {
    for (const { vsock } of this.#places) vsock.expire(now);
  }

  /** Counters since the start, and gauges, by name; sums where there are several guests. */
  metrics(): Record<string, number> {
    const sums: Record<string, number> = {};
    for (const place of this.#places) {
      for (const [name, value] of Object.entries(place.metrics())) {
        sums[name] = (sums[name] ?? 0) + value;
      }
    }
    return sums;
  }

  /**
   * Ends it: host programs read end of file, the guests are told by RST of each connection, all
   * sockets are removed, the front-ends' sessions end.
   */
  stop(): void {
    for (const { vsock, backend } of this.#places) {
      vsock.resetConnections();
      backend.stop();
    }
    const end = this.loop.now() + GOODBYE_TIMEOUT_MS;
    do this.turn(10); while (
      this.#places.some(({ vsock }) =>
        vsock.ready && vsock.connectionCount > 0
      ) &&
      this.loop.now() < end
    );
    for (const { server } of this.#places) server.stop();
    this.loop.close();
  }
}
