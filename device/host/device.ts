import type { Log, LogLevel } from "../diagnostics.ts";
import type { RingChoice } from "../virtio_device.ts";
import { isGuestCid } from "../vsock/virtio_vsock.ts";
import { type GuestOptions, MAX_POLL_US } from "./device_host.ts";
import { check } from "./errno.ts";
import { fixedBytes, openLibc } from "./ffi.ts";
import { MAX_SOCKET_PATH_BYTES, socketPathBytes } from "./socket.ts";
import {
  COMMAND_METRICS,
  COMMAND_STOP,
  type FromWorker,
  LOG_LEVELS,
  type ToWorker,
} from "./worker_messages.ts";

/** CID of the guest unless told: the first that is no one else's. */
export const DEFAULT_GUEST_CID = 3;

const EFD_NONBLOCK = 0o4000;
const EFD_CLOEXEC = 0o2000000;

/** Options of {@link startDevice}. */
export type DeviceOptions = {
  /** Path of the socket that the front-end connects to; at most 107 bytes. */
  socketPath: string;
  /**
   * Path of the socket for host programs, which send `CONNECT <guest port>`; at most 107 bytes. A
   * guest that connects to host port P reaches the program that listens at this path with `_P`
   * behind it.
   */
  udsPath: string;
  /** The guest's CID, 3 to 0xfffffffe. {@link DEFAULT_GUEST_CID} unless told. */
  guestCid?: number;
  /**
   * Further guests, which the same Worker serves. All of them can connect to each other by CID; a guest
   * alone reaches none.
   */
  moreGuests?: readonly GuestOptions[];
  /** Ring formats that are offered. `"auto"`, both, unless told. */
  ring?: RingChoice;
  /**
   * Offer seqpacket sockets beside streams. True unless told. Host programs use SOCK_SEQPACKET sockets:
   * they connect to `udsPath` with `.seqpacket` behind it, or listen where they would for streams.
   */
  seqpackets?: boolean;
  /** The least level that `onLog` is given. `"info"` unless told. */
  logLevel?: LogLevel;
  /** Takes the log; nobody unless told. */
  onLog?: Log;
  /** Host ports that the guest may connect to; all unless told. */
  allowedHostPorts?: readonly number[];
  /** Guest ports that host programs may connect to; all unless told. */
  allowedGuestPorts?: readonly number[];
  /**
   * Microseconds, 0 to 1000, that the Worker looks for the next request at most before it sleeps, while guest
   * and host program answer each other; 0 for never. 60 unless told, 0 where there is one processor.
   */
  pollUs?: number;
};

/** A device that runs in a Worker of its own, until it is stopped. */
export type RunningDevice = {
  /** Resolves when it has stopped; rejects when it stopped by an error of its own. */
  readonly closed: Promise<void>;
  /** Stops it: host programs read end of file, the guest is told, the sockets are removed. */
  stop(): Promise<void>;
  /** Counters since the start, and gauges, by name. */
  metrics(): Promise<Record<string, number>>;
};

/**
 * Starts a vsock device for one guest; it listens on both sockets when the promise resolves.
 *
 * It outlives its guest: when the front-end is gone, it listens for the next one.
 * Needs `--allow-ffi`, `--allow-read` and `--allow-write`.
 *
 * @throws {RangeError} when the CID is reserved, or a path is empty or too long for a socket.
 * @throws {TypeError} when both paths are the same, a path is in use by a live process, or a file
 * that is no socket is there.
 *
 * @example
 * ```ts ignore
 * import { startDevice } from "@ringside/vsock/host";
 *
 * const device = await startDevice({
 *   socketPath: "/tmp/vhost.sock",
 *   udsPath: "/tmp/vsock",
 * });
 * // A guest's connection to CID 2, port 1234 arrives here.
 * const server = Deno.listen({ transport: "unix", path: "/tmp/vsock_1234" });
 * const connection = await server.accept();
 * await connection.readable.pipeTo(connection.writable);
 * server.close();
 * await device.stop();
 * ```
 */
export async function startDevice(
  options: DeviceOptions,
): Promise<RunningDevice> {
  checkOptions(options);
  const { onLog, logLevel = "info" } = options;
  // The library is this device's, so that nothing is left open when it has stopped.
  const libc = openLibc();
  let eventFd = -1;
  let worker: Worker | null = null;
  const dispose = (): void => {
    worker?.terminate();
    worker = null;
    if (eventFd >= 0) libc.symbols.close(eventFd);
    eventFd = -1;
    libc.close();
  };
  const listening = Promise.withResolvers<void>();
  const closed = Promise.withResolvers<void>();
  let metricsWaiting: ((values: Record<string, number>) => void)[] = [];
  let running = true;

  const finish = (error: Error | null): void => {
    if (!running) return;
    running = false;
    dispose();
    if (error === null) closed.resolve();
    else {
      listening.reject(error);
      closed.reject(error);
    }
    for (const resolve of metricsWaiting) resolve({});
    metricsWaiting = [];
  };
  // Whoever waits for one of them hears of it; nobody has to.
  listening.promise.catch(() => {});
  closed.promise.catch(() => {});

  const commands = new Int32Array(new SharedArrayBuffer(4));
  const one = fixedBytes(8);
  one[0] = 1;
  const command = (bit: number): void => {
    Atomics.or(commands, 0, bit);
    libc.symbols.write(eventFd, one, 8);
  };

  try {
    eventFd = libc.symbols.eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (eventFd < 0) check(eventFd, "create an eventfd");
    worker = new Worker(new URL("./worker.ts", import.meta.url), {
      type: "module",
      name: `vsock device ${options.guestCid ?? DEFAULT_GUEST_CID}`,
    });
  } catch (error) {
    dispose();
    throw error;
  }
  worker.onmessage = ({ data }: MessageEvent<FromWorker>): void => {
    switch (data.type) {
      case "listening":
        return listening.resolve();
      case "failed":
        return finish(startError(data.kind, data.text));
      case "log":
        return onLog?.(data.level, data.text);
      case "metrics":
        for (const resolve of metricsWaiting) resolve(data.values);
        metricsWaiting = [];
        return;
      case "stopped":
        return finish(data.error === null ? null : new Error(data.error));
    }
  };
  worker.onerror = (event): void => {
    event.preventDefault();
    finish(new Error(`The device's worker has failed: ${event.message}`));
  };
  const start: ToWorker = {
    options: {
      socketPath: options.socketPath,
      udsPath: options.udsPath,
      guestCid: options.guestCid ?? DEFAULT_GUEST_CID,
      moreGuests: options.moreGuests,
      ring: options.ring ?? "auto",
      seqpackets: options.seqpackets ?? true,
      allowedHostPorts: options.allowedHostPorts,
      allowedGuestPorts: options.allowedGuestPorts,
      pollUs: options.pollUs,
    },
    logLevel,
    commands: commands.buffer,
    eventFd,
  };
  worker.postMessage(start);
  await listening.promise;

  return {
    closed: closed.promise,
    stop: (): Promise<void> => {
      if (running) command(COMMAND_STOP);
      return closed.promise;
    },
    metrics: (): Promise<Record<string, number>> => {
      if (!running) return Promise.resolve({});
      const { promise, resolve } = Promise.withResolvers<
        Record<string, number>
      >();
      metricsWaiting.push(resolve);
      command(COMMAND_METRICS);
      return promise;
    },
  };
}

function startError(kind: string, text: string): Error {
  if (kind === "TypeError") return new TypeError(text);
  if (kind === "RangeError") return new RangeError(text);
  return new Error(text);
}

/** Checks what can be checked without the system. */
function checkOptions(options: DeviceOptions): void {
  const { logLevel, pollUs = 0 } = options;
  const paths = new Set<string>();
  const cids = new Set<number>();
  for (const guest of [options, ...options.moreGuests ?? []]) {
    const { socketPath, udsPath, guestCid = DEFAULT_GUEST_CID, ring } = guest;
    for (const [name, path] of Object.entries({ socketPath, udsPath })) {
      checkPath(name, path);
      const whole = absolute(path);
      if (paths.has(whole)) {
        throw new TypeError(
          `Cannot use ${path} for two sockets: the paths are the same`,
        );
      }
      paths.add(whole);
    }
    if (!isGuestCid(guestCid)) {
      throw new RangeError(
        `Cannot use ${guestCid} as guestCid: a guest's CID is 3 to 4294967294`,
      );
    }
    if (cids.has(guestCid)) {
      throw new TypeError(`Cannot use ${guestCid} as guestCid of two guests`);
    }
    cids.add(guestCid);
    if (ring !== undefined && !["auto", "split", "packed"].includes(ring)) {
      throw new RangeError(
        `Cannot use ${ring} as ring: it is auto, split or packed`,
      );
    }
  }
  if (logLevel !== undefined && !LOG_LEVELS.includes(logLevel)) {
    throw new RangeError(
      `Cannot use ${logLevel} as logLevel: it is error, warn, info or debug`,
    );
  }
  if (!(pollUs >= 0 && pollUs <= MAX_POLL_US)) {
    throw new RangeError(
      `Cannot use ${pollUs} as pollUs: it is 0 to ${MAX_POLL_US}`,
    );
  }
  for (
    const port of [
      ...options.allowedHostPorts ?? [],
      ...options.allowedGuestPorts ?? [],
    ]
  ) {
    if (!(Number.isInteger(port) && port >= 0 && port < 0xffff_ffff)) {
      throw new RangeError(
        `Cannot allow port ${port}: a port is 0 to 4294967294`,
      );
    }
  }
}

function checkPath(name: string, path: string): void {
  const bytes = socketPathBytes(path);
  if (bytes < 1 || bytes > MAX_SOCKET_PATH_BYTES || path.includes("\0")) {
    throw new RangeError(
      `Cannot use ${
        JSON.stringify(path)
      } as ${name}: a Unix socket's path has 1 to ${MAX_SOCKET_PATH_BYTES} bytes, this one ${bytes}`,
    );
  }
}

/** A path without `.`, `..` and doubled slashes, to compare it with another. */
function absolute(path: string): string {
  const parts: string[] = [];
  const from = path.startsWith("/") ? path : `${Deno.cwd()}/${path}`;
  for (const part of from.split("/")) {
    if (part === "..") parts.pop();
    else if (part !== "" && part !== ".") parts.push(part);
  }
  return `/${parts.join("/")}`;
}
