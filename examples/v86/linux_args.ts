/**
 * The command line of `deno task linux`.
 *
 * @module
 */

/** Where bytes go on the host. */
export type Address =
  | { transport: "tcp"; hostname: string; port: number }
  | { transport: "unix"; path: string };

/** What the command line asks for. */
export type LinuxArgs = {
  ring: "split" | "packed";
  guestCid: number;
  /** Host ports whose connections are shown and answered. */
  listen: number[];
  /** Host ports whose connections go on to an address of the host's. */
  forward: { port: number; to: Address }[];
  /** Addresses of the host's whose connections go on to a port of the guest's. */
  publish: { from: Address; port: number }[];
  /** A command for the guest; none for a shell. */
  command: string[];
};

/** A command line that cannot be obeyed; the message is one line. */
export class UsageError extends Error {
  /** The class's name. */
  override readonly name = "UsageError";
}

/** The text of `--help`. */
export const HELP: string =
  `Boots Debian's Linux for i386 in this process, in v86, with a vsock device of ours in it.

Usage: deno task linux [OPTIONS] [-- COMMAND [ARGUMENT...]]

Without COMMAND there is a shell; Ctrl-] ends it from outside. Where standard input is no
terminal, the shell reads its commands from it, and COMMAND has it as its own. The exit code
of the shell or of COMMAND becomes this program's.

Options:
  --ring split|packed     The format of the virtqueues; default: packed
  --guest-cid N           The guest's CID, 3 to 4294967294; default: 3
  --listen PORT           Take the guest's connections to host port PORT: show what comes on
                          standard error, and send it back (repeatable)
  --forward PORT:ADDRESS  Carry the guest's connections to host port PORT on to ADDRESS on
                          this host (repeatable)
  --publish ADDRESS:PORT  Listen at ADDRESS on this host, and carry connections on to port
                          PORT of the guest (repeatable)
  --help                  Print this text

ADDRESS is the path of a Unix socket, with a slash in it, or HOST:PORT for TCP. In the guest:

  vsock connect PORT                 standard input and output to host port PORT
  vsock connect CID PORT             the same to another guest
  vsock listen PORT                  the same for one connection to the guest's port PORT
  vsock serve PORT PROGRAM [ARG...]  a PROGRAM for each connection, by its path

Kernel and busybox are fetched from Debian (apt, nothing is installed), v86 from npm, once,
57 MB, into ~/.cache/ringside/v86 (RINGSIDE_CACHE for another place); gcc builds the guest's
programs. RINGSIDE_I386_SOURCES names a sources.list for apt where the system's own has no
packages for i386.
`;

const RINGS = ["split", "packed"] as const;

/**
 * Reads the command line.
 *
 * @throws {UsageError} when it cannot be obeyed.
 */
export function parseLinuxArgs(words: readonly string[]): LinuxArgs | "help" {
  const args: LinuxArgs = {
    ring: "packed",
    guestCid: 3,
    listen: [],
    forward: [],
    publish: [],
    command: [],
  };
  for (let i = 0; i < words.length; i++) {
    const option = words[i]!;
    if (option === "--") {
      args.command = words.slice(i + 1);
      if (args.command.length === 0) throw new UsageError("-- needs a COMMAND");
      break;
    }
    if (option === "--help" || option === "-h") return "help";
    if (
      !["--ring", "--guest-cid", "--listen", "--forward", "--publish"]
        .includes(option)
    ) {
      throw new UsageError(`unknown argument ${option}`);
    }
    const value = words[++i];
    if (value === undefined) throw new UsageError(`${option} needs a value`);
    if (option === "--ring") {
      const ring = RINGS.find((one) => one === value);
      if (ring === undefined) {
        throw new UsageError(`--ring takes split or packed, not ${value}`);
      }
      args.ring = ring;
    } else if (option === "--guest-cid") {
      args.guestCid = number(value, 3, 0xffff_fffe, option);
    } else if (option === "--listen") {
      args.listen.push(vsockPort(value, option));
    } else if (option === "--forward") {
      const colon = value.indexOf(":");
      if (colon < 1) {
        throw new UsageError(`--forward takes PORT:ADDRESS, not ${value}`);
      }
      args.forward.push({
        port: vsockPort(value.slice(0, colon), option),
        to: address(value.slice(colon + 1), option),
      });
    } else {
      const colon = value.lastIndexOf(":");
      if (colon < 1) {
        throw new UsageError(`--publish takes ADDRESS:PORT, not ${value}`);
      }
      args.publish.push({
        from: address(value.slice(0, colon), option),
        port: vsockPort(value.slice(colon + 1), option),
      });
    }
  }
  const ports = [...args.listen, ...args.forward.map(({ port }) => port)];
  const twice = ports.find((port, i) => ports.indexOf(port) !== i);
  if (twice !== undefined) {
    throw new UsageError(`host port ${twice} is asked for twice`);
  }
  return args;
}

/** The highest ports are this program's own. */
function vsockPort(text: string, option: string): number {
  return number(text, 0, 0xfffe_ffff, option);
}

function number(
  text: string,
  min: number,
  max: number,
  option: string,
): number {
  const value = /^[0-9]{1,10}$/.test(text) ? Number(text) : NaN;
  if (!(value >= min && value <= max)) {
    throw new UsageError(
      `${option} takes a number from ${min} to ${max}, not ${
        text || "nothing"
      }`,
    );
  }
  return value;
}

function address(text: string, option: string): Address {
  if (text.includes("/")) return { transport: "unix", path: text };
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]]+)):([0-9]+)$/.exec(text);
  if (match === null) {
    throw new UsageError(
      `${option} takes HOST:PORT or a path with a slash as its ADDRESS, not ${
        text || "nothing"
      }`,
    );
  }
  return {
    transport: "tcp",
    hostname: match[1] ?? match[2]!,
    port: number(match[3]!, 1, 65_535, option),
  };
}
