/**
 * `deno task device`: runs a vsock device until SIGINT or SIGTERM.
 *
 * @module
 */

// deno-lint-ignore-file no-console

import type { LogLevel } from "../diagnostics.ts";
import type { RingChoice } from "../virtio_device.ts";
import {
  DEFAULT_GUEST_CID,
  type DeviceOptions,
  type RunningDevice,
  startDevice,
} from "./device.ts";
import {
  DEFAULT_POLL_US,
  type GuestOptions,
  MAX_POLL_US,
} from "./device_host.ts";
import { checkReadyFd, tellReady } from "./ready.ts";
import { VERSION } from "./version.ts";
import { LOG_LEVELS } from "./worker_messages.ts";

/** Exit code for bad arguments. */
export const EXIT_USAGE = 2;

const USAGE = `ringside-device ${VERSION}: a virtio-vsock device in user space

Usage: deno task device --socket PATH --uds-path PATH [options]
       deno task device --vm guest-cid=N,socket=PATH,uds-path=PATH --vm ... [options]

  --socket PATH        socket that the vhost-user front-end connects to (QEMU, user-mode-linux)
  --uds-path PATH      socket for host programs: they send "CONNECT <guest port>"; a guest's
                       connection to host port P goes to the program that listens at PATH_P
  --guest-cid N        context identifier of the guest, 3 to 4294967294 [default: ${DEFAULT_GUEST_CID}]
  --vm KEY=VALUE,...   a guest, by guest-cid, socket and uds-path, in place of these three options;
                       may be repeated: the guests of one process can connect to each other by CID;
                       ring=FORMAT is for this guest alone
  --ring FORMAT        auto, split or packed [default: auto]
  --seqpacket on|off   offer seqpacket sockets beside streams [default: on]; host programs connect
                       by a SOCK_SEQPACKET socket to PATH.seqpacket, or listen by one at PATH_P
  --log-level LEVEL    error, warn, info or debug [default: info]
  --allow-host-port N  host port that the guest may connect to; may be repeated [default: all]
  --allow-guest-port N guest port that host programs may connect to; may be repeated [default: all]
  --ready-fd N         once all sockets listen, write a newline to descriptor N, which was left open
                       for this process (a shell's N>FILE), and close it; 3 or above
  --poll-us N          microseconds, 0 to ${MAX_POLL_US}, that it looks for the next request at most before it
                       sleeps, while guest and host program answer each other [default: ${DEFAULT_POLL_US}]
  -h, --help           print this and exit
  -V, --version        print the version and exit

It listens again when its guest is gone. SIGINT and SIGTERM end it; the sockets are removed.
`;

/** A mistake in the arguments; its message is the line that is printed. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

/** What the arguments ask for. */
export type Invocation =
  | { readonly kind: "help" }
  | { readonly kind: "version" }
  | {
    readonly kind: "run";
    readonly options: DeviceOptions & { logLevel: LogLevel };
    /** Descriptor on which readiness is told; undefined for none. */
    readonly readyFd?: number;
  };

const FLAGS: ReadonlySet<string> = new Set([
  "--socket",
  "--uds-path",
  "--guest-cid",
  "--vm",
  "--ring",
  "--seqpacket",
  "--log-level",
  "--poll-us",
  "--allow-host-port",
  "--allow-guest-port",
  "--ready-fd",
]);

/**
 * Reads the command line: `--flag value` or `--flag=value`.
 *
 * @throws {UsageError} when it is not a lawful one.
 */
export function parseArguments(args: readonly string[]): Invocation {
  const values = new Map<string, string[]>();
  for (let i = 0; i < args.length; i++) {
    const arg = args[i]!;
    if (arg === "-h" || arg === "--help") return { kind: "help" };
    if (arg === "-V" || arg === "--version") return { kind: "version" };
    const at = arg.startsWith("--") ? arg.indexOf("=") : -1;
    const flag = at < 0 ? arg : arg.slice(0, at);
    if (!FLAGS.has(flag)) {
      throw new UsageError(
        flag.startsWith("-")
          ? `unknown option ${flag}`
          : `unexpected argument ${JSON.stringify(arg)}`,
      );
    }
    const value = at < 0 ? args[++i] : arg.slice(at + 1);
    if (value === undefined || value === "") {
      throw new UsageError(`${flag} needs a value`);
    }
    const list = values.get(flag) ?? [];
    if (list.length > 0 && !flag.startsWith("--allow-") && flag !== "--vm") {
      throw new UsageError(`${flag} is given twice`);
    }
    values.set(flag, [...list, value]);
  }
  const one = (flag: string): string | undefined => values.get(flag)?.[0];
  const required = (flag: string): string => {
    const value = one(flag);
    if (value === undefined) {
      throw new UsageError(
        `${flag} PATH is missing; --socket and --uds-path are needed, --help tells more`,
      );
    }
    return value;
  };
  const ports = (flag: string): { ports?: number[] } => {
    const list = values.get(flag);
    return list === undefined ? {} : {
      ports: list.map((text) => wholeNumber(flag, text, 0, 0xffff_fffe)),
    };
  };
  const oneGuest = (): GuestOptions => ({
    socketPath: required("--socket"),
    udsPath: required("--uds-path"),
    guestCid: guestCid(
      "--guest-cid",
      one("--guest-cid") ?? String(DEFAULT_GUEST_CID),
    ),
  });
  const vms = (values.get("--vm") ?? []).map(parseVm);
  for (const flag of ["--socket", "--uds-path", "--guest-cid"]) {
    if (vms.length > 0 && values.has(flag)) {
      throw new UsageError(`${flag} does not go with --vm, which says it too`);
    }
  }
  const [guest = oneGuest(), ...moreGuests] = vms;
  const ring = choice("--ring", one("--ring") ?? "auto", RINGS);
  const readyFd = one("--ready-fd");
  return {
    kind: "run",
    ...readyFd === undefined
      ? {}
      : { readyFd: wholeNumber("--ready-fd", readyFd, 3, 0x7fff_ffff) },
    options: {
      ...guest,
      ...moreGuests.length > 0
        ? { moreGuests: moreGuests.map((more) => ({ ring, ...more })) }
        : {},
      ring: guest.ring ?? ring,
      seqpackets:
        choice("--seqpacket", one("--seqpacket") ?? "on", ["on", "off"]) ===
          "on",
      logLevel: choice<LogLevel>(
        "--log-level",
        one("--log-level") ?? "info",
        LOG_LEVELS,
      ),
      allowedHostPorts: ports("--allow-host-port").ports,
      allowedGuestPorts: ports("--allow-guest-port").ports,
      pollUs: wholeNumber(
        "--poll-us",
        one("--poll-us") ?? String(DEFAULT_POLL_US),
        0,
        MAX_POLL_US,
      ),
    },
  };
}

const RINGS: readonly RingChoice[] = ["auto", "split", "packed"];

/** Reads the value of `--vm`: a list of keys and values, in any order. */
function parseVm(text: string): GuestOptions {
  const values = new Map<string, string>();
  for (const pair of text.split(",")) {
    const at = pair.indexOf("=");
    const key = pair.slice(0, Math.max(at, 0));
    if (!["guest-cid", "socket", "uds-path", "ring"].includes(key)) {
      throw new UsageError(
        `--vm ${text}: ${
          JSON.stringify(pair)
        } is none of guest-cid=N, socket=PATH, uds-path=PATH, ring=FORMAT`,
      );
    }
    if (values.has(key)) throw new UsageError(`--vm ${text}: ${key} twice`);
    values.set(key, pair.slice(at + 1));
  }
  const need = (key: string): string => {
    const value = values.get(key);
    if (!value) throw new UsageError(`--vm ${text}: ${key} is missing`);
    return value;
  };
  return {
    socketPath: need("socket"),
    udsPath: need("uds-path"),
    guestCid: guestCid(`--vm ${text}: guest-cid`, need("guest-cid")),
    ...values.has("ring")
      ? { ring: choice(`--vm ${text}: ring`, values.get("ring")!, RINGS) }
      : {},
  };
}

function guestCid(what: string, text: string): number {
  return wholeNumber(what, text, 3, 0xffff_fffe);
}

function wholeNumber(
  flag: string,
  text: string,
  least: number,
  most: number,
): number {
  const value = /^(0x[0-9a-fA-F]+|[0-9]+)$/.test(text) ? Number(text) : NaN;
  if (!(value >= least && value <= most)) {
    throw new UsageError(
      `${flag} ${text}: not a number from ${least} to ${most}`,
    );
  }
  return value;
}

function choice<T extends string>(
  flag: string,
  text: string,
  choices: readonly T[],
): T {
  const found = choices.find((each) => each === text);
  if (found === undefined) {
    throw new UsageError(`${flag} ${text}: not one of ${choices.join(", ")}`);
  }
  return found;
}

/** Runs the command line; resolves to the exit code. */
export async function main(args: readonly string[]): Promise<number> {
  let invocation: Invocation;
  try {
    invocation = parseArguments(args);
  } catch (error) {
    return failed(error);
  }
  switch (invocation.kind) {
    case "help":
      console.log(USAGE.trimEnd());
      return 0;
    case "version":
      console.log(`ringside-device ${VERSION}`);
      return 0;
    case "run":
      return await run(invocation.options, invocation.readyFd);
  }
}

/**
 * A second signal that comes sooner is the first one again: a terminal signals every process of the
 * group, and a task runner passes it on besides.
 */
const REPEATED_SIGNAL_MS = 1000;

async function run(
  options: DeviceOptions,
  readyFd: number | undefined,
): Promise<number> {
  // Before anything is made that a signal would leave behind.
  let device: RunningDevice | null = null;
  let signalledAt = -1;
  const onSignal = (): void => {
    if (signalledAt < 0) {
      signalledAt = performance.now();
      device?.stop().catch(() => {});
    } else if (performance.now() - signalledAt > REPEATED_SIGNAL_MS) {
      Deno.exit(130);
    }
  };
  Deno.addSignalListener("SIGINT", onSignal);
  Deno.addSignalListener("SIGTERM", onSignal);
  try {
    if (readyFd !== undefined) checkReadyFd(readyFd);
    device = await startDevice({
      ...options,
      onLog: (level, text) => console.error(`${level}: ${text}`),
    });
    if (signalledAt >= 0) await device.stop();
    else {
      for (const guest of [options, ...options.moreGuests ?? []]) {
        console.log(
          `listening on ${guest.socketPath} for a front-end (guest CID ${guest.guestCid}), on ${guest.udsPath} for host programs`,
        );
      }
      if (readyFd !== undefined) tellReady(readyFd);
    }
    await device.closed;
    return 0;
  } catch (error) {
    await device?.stop().catch(() => {});
    return failed(error);
  } finally {
    // Where one has come the process is about to end, and its repetition must not kill it on the way.
    if (signalledAt < 0) {
      Deno.removeSignalListener("SIGINT", onSignal);
      Deno.removeSignalListener("SIGTERM", onSignal);
    }
  }
}

function failed(error: unknown): number {
  const text = error instanceof Error ? error.message : String(error);
  console.error(`error: ${text.replaceAll("\n", " ")}`);
  // The paths and the numbers are arguments; what else fails is the system's.
  const usage = error instanceof UsageError || error instanceof RangeError ||
    error instanceof TypeError;
  return usage ? EXIT_USAGE : 1;
}

if (import.meta.main) Deno.exit(await main(Deno.args));
