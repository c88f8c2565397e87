/**
 * The command line of `deno task guest`.
 *
 * @module
 */

import type { VmKind } from "./programs.ts";

/** What the command line asks for. */
export interface GuestArgs {
  /** The machine; `undefined` for the first that can be used. */
  readonly vm: VmKind | undefined;
  /** The ring format. */
  readonly ring: "split" | "packed";
  /** Where host programs connect; `undefined` for a temporary path. */
  readonly udsPath: string | undefined;
  /** The guest's CID. */
  readonly guestCid: number;
  /** The guest's memory in MiB. */
  readonly memoryMiB: number;
  /** The vhost-user socket of a device that runs already. */
  readonly socketPath: string | undefined;
  /** Host files that a QEMU guest gets too. */
  readonly include: readonly string[];
  /** True to show the guest's console. */
  readonly showConsole: boolean;
  /** The command and its arguments; none for a shell. */
  readonly command: readonly string[];
}

/** Thrown for a command line that cannot be obeyed; the message is one line. */
export class UsageError extends Error {
  /** @param message What is wrong. */
  constructor(message: string) {
    super(message);
    this.name = "UsageError";
  }
}

/** The text of `--help`. */
export const HELP: string =
  `Boots a real Linux guest on a vsock device and runs a command in it.

Usage: deno task guest [OPTIONS] [-- COMMAND [ARGUMENT...]]

COMMAND gets this program's standard input, and its exit code becomes this one's.
Without COMMAND there is a shell.

Options:
  --vm uml|qemu        The machine; default: uml if it can be used, else qemu
  --ring split|packed  The format of the virtqueues; default: split
  --uds-path PATH      Where host programs connect; default: a temporary path
  --guest-cid N        The guest's CID, 3 to 4294967294; default: 3
  --memory MIB         The guest's memory; default: 384
  --include PATH       Give a QEMU guest this host file or folder (repeatable);
                       a user-mode-linux guest sees all of the host's files
  --socket PATH        Use the vhost-user device that is served there already
  --console            Show the guest's console on standard error
  --help               Print this text

Host to guest: connect to the Unix socket PATH, send "CONNECT <port>\\n" and read
"OK <port>\\n"; then bytes flow. Guest to host: listen on the Unix socket
PATH_<port>; the guest connects to CID 2, port <port>.

Needs Debian's user-mode-linux and busybox-static, or qemu-system-x86 and
busybox-static; the QEMU guest's kernel is fetched with apt-get download.
`;

/** CIDs from here to the highest but one can be a guest's (virtio 1.4, 5.10.4). */
const LOWEST_GUEST_CID = 3;
const HIGHEST_GUEST_CID = 0xffff_fffe;
const VMS: readonly VmKind[] = ["uml", "qemu"];
const RINGS: readonly ("split" | "packed")[] = ["split", "packed"];
const LOWEST_MEMORY_MIB = 64;

/**
 * Reads the command line.
 *
 * @param args Its words.
 * @returns What it asks for, or `"help"`.
 * @throws {UsageError} If it cannot be obeyed.
 */
export function parseGuestArgs(args: readonly string[]): GuestArgs | "help" {
  const end = args.indexOf("--");
  const words = end === -1 ? [...args] : args.slice(0, end);
  const command = end === -1 ? [] : args.slice(end + 1);
  let vm: VmKind | undefined;
  let ring: "split" | "packed" = "split";
  let udsPath: string | undefined;
  let socketPath: string | undefined;
  let guestCid = LOWEST_GUEST_CID;
  let memoryMiB = 384;
  let showConsole = false;
  const include: string[] = [];
  while (words.length > 0) {
    const word = words.shift()!;
    const equals = word.startsWith("--") ? word.indexOf("=") : -1;
    const name = equals === -1 ? word : word.slice(0, equals);
    if (equals !== -1) words.unshift(word.slice(equals + 1));
    const value = (): string => {
      const next = words.shift();
      if (next === undefined || next === "") {
        throw new UsageError(`${name} needs a value`);
      }
      return next;
    };
    if (name === "--help" || name === "-h") return "help";
    else if (name === "--vm") vm = oneOf(name, value(), VMS);
    else if (name === "--ring") {
      ring = oneOf(name, value(), RINGS);
    } else if (name === "--uds-path") udsPath = value();
    else if (name === "--socket") socketPath = value();
    else if (name === "--include") include.push(value());
    else if (name === "--guest-cid") {
      guestCid = number(name, value(), LOWEST_GUEST_CID, HIGHEST_GUEST_CID);
    } else if (name === "--memory") {
      memoryMiB = number(name, value(), LOWEST_MEMORY_MIB, 64 * 1024);
    } else if (name === "--console" && equals === -1) showConsole = true;
    else if (!name.startsWith("-")) {
      throw new UsageError(`unexpected ${name}: a command comes after --`);
    } else throw new UsageError(`unknown option ${name}`);
  }
  if (end !== -1 && command.length === 0) {
    throw new UsageError("no command after --");
  }
  if (socketPath !== undefined && udsPath !== undefined) {
    throw new UsageError(
      "--uds-path belongs to a device of our own, not to --socket",
    );
  }
  return {
    vm,
    ring,
    udsPath,
    guestCid,
    memoryMiB,
    socketPath,
    include,
    showConsole,
    command,
  };
}

function oneOf<Word extends string>(
  name: string,
  value: string,
  words: readonly Word[],
): Word {
  const found = words.find((word) => word === value);
  if (found === undefined) {
    throw new UsageError(`${name} takes ${words.join(" or ")}, not ${value}`);
  }
  return found;
}

function number(
  name: string,
  value: string,
  lowest: number,
  highest: number,
): number {
  const parsed = /^\d{1,10}$/.test(value) ? Number(value) : NaN;
  if (!(parsed >= lowest && parsed <= highest)) {
    throw new UsageError(
      `${name} takes a number from ${lowest} to ${highest}, not ${value}`,
    );
  }
  return parsed;
}
