import { Diagnostics, type Log } from "../diagnostics.ts";
import { type RingChoice, VirtioDevice } from "../virtio_device.ts";
import { VsockDevice } from "../vsock/device.ts";
import { EventLoop, type LoopWork } from "./event_loop.ts";
import { MAX_SOCKET_PATH_BYTES, socketPathBytes } from "./socket.ts";
import { UnixBackend } from "./unix_backend.ts";
import { VhostUserServer } from "./vhost_user_server.ts";

/** How long {@link DeviceHost.stop} waits for the guest to take the RSTs of its connections. */
export const GOODBYE_TIMEOUT_MS = 300;

/** Bytes of `_4294967294`. */
const PORT_SUFFIX_BYTES = 11;

/** What a {@link DeviceHost} is made with; plain data. */
export type DeviceHostOptions = {
  /** Path of the socket that the front-end (QEMU, user-mode-linux) connects to. */
  socketPath: string;
  /** Path of the socket for host programs, and prefix of theirs. */
  udsPath: string;
  /** The guest's CID. */
  guestCid: number;
  /** Ring formats that are offered. */
  ring: RingChoice;
  /** Offer seqpacket sockets; yes unless told. */
  seqpackets?: boolean;
  /** Host ports that the guest may connect to; all unless told. */
  allowedHostPorts?: readonly number[];
  /** Guest ports that host programs may connect to; all unless told. */
  allowedGuestPorts?: readonly number[];
};

/**
 * A vsock device with everything around it, on the calling thread: {@link DeviceHost.turn} blocks.
 */
export class DeviceHost implements LoopWork {
  /** The loop, for descriptors of the caller's own. */
  readonly loop: EventLoop = new EventLoop();
  readonly #diagnostics: Diagnostics;
  readonly #backend: UnixBackend;
  readonly #vsock: VsockDevice;
  readonly #server: VhostUserServer;

  /**
   * Makes the device and listens on both paths.
   *
   * @throws {RangeError} when the CID is reserved or a path is too long.
   * @throws {TypeError} when a live process listens at a path, or a file that is no socket is there.
   * @throws {SystemError} when the system refuses.
   */
  constructor(options: DeviceHostOptions, log: Log) {
    const loop = this.loop;
    const diagnostics = new Diagnostics(log);
    this.#diagnostics = diagnostics;
    try {
      this.#backend = new UnixBackend({ loop, diagnostics, ...options });
      this.#vsock = new VsockDevice({
        guestCid: options.guestCid,
        host: this.#backend,
        diagnostics,
        seqpackets: options.seqpackets,
        now: loop.now,
      });
      const device = new VirtioDevice(this.#vsock, {
        ring: options.ring,
        // The one architecture that Deno runs on and that does not reorder loads with loads.
        strongOrdering: Deno.build.arch === "x86_64",
        diagnostics,
      });
      this.#vsock.attach(device);
      const { socketPath } = options;
      this.#server = new VhostUserServer({
        loop,
        socketPath,
        device,
        diagnostics,
      });
      this.#server.start();
      try {
        this.#backend.start(this.#vsock);
      } catch (error) {
        this.#server.stop();
        throw error;
      }
    } catch (error) {
      loop.close();
      throw error;
    }
    loop.setWork(this);
    const { udsPath } = options;
    if (socketPathBytes(udsPath) > MAX_SOCKET_PATH_BYTES - PORT_SUFFIX_BYTES) {
      log(
        "warn",
        `${udsPath} leaves too little room for every "_<port>" behind it: guests cannot connect to high ports`,
      );
    }
  }

  /** Waits for events and handles them, once. */
  turn(maxSleepMs?: number): void {
    this.loop.turn(maxSleepMs);
  }

  /** {@inheritDoc LoopWork.process} */
  process(): boolean {
    this.#server.checkMemory();
    try {
      return this.#vsock.process();
    } catch (error) {
      this.failed(error);
      return false;
    }
  }

  /**
   * {@inheritDoc LoopWork.failed}
   *
   * It ends the front-end's session, and must not take the device from the next guest.
   */
  failed(error: unknown): void {
    this.#server.fail(error);
  }

  /** {@inheritDoc LoopWork.nextDeadline} */
  nextDeadline(): number {
    return this.#vsock.nextDeadline();
  }

  /** {@inheritDoc LoopWork.expire} */
  expire(now: number): void {
    this.#vsock.expire(now);
  }

  /** Counters since the start, and gauges, by name. */
  metrics(): Record<string, number> {
    return {
      front_end_connected: this.#server.connected ? 1 : 0,
      connections: this.#vsock.connectionCount,
      host_streams: this.#backend.streamCount,
      host_pending: this.#backend.pendingCount,
      kicks: this.#server.kicks,
      calls: this.#server.calls,
      ...Object.fromEntries(this.#diagnostics.counters),
    };
  }

  /**
   * Ends it: host programs read end of file, the guest is told by RST of each connection, both
   * sockets are removed, the front-end's session ends.
   */
  stop(): void {
    this.#vsock.resetConnections();
    this.#backend.stop();
    const end = this.loop.now() + GOODBYE_TIMEOUT_MS;
    do this.turn(10); while (
      this.#vsock.ready && this.#vsock.connectionCount > 0 &&
      this.loop.now() < end
    );
    this.#server.stop();
    this.loop.close();
  }
}
