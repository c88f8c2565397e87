import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { HELP, parseGuestArgs, UsageError } from "./cli_args.ts";

Deno.test("parseGuestArgs() has defaults for everything", () => {
  assertEquals(parseGuestArgs([]), {
    vm: undefined,
    ring: "split",
    udsPath: undefined,
    guestCid: 3,
    memoryMiB: 384,
    socketPath: undefined,
    include: [],
    showConsole: false,
    command: [],
  });
});

Deno.test("parseGuestArgs() takes every option in both spellings, and the command as it is", () => {
  const args = parseGuestArgs([
    "--vm=qemu",
    "--ring",
    "packed",
    "--uds-path=/tmp/a=b",
    "--guest-cid",
    "4294967294",
    "--memory=512",
    "--include",
    "/a",
    "--include=/b",
    "--console",
    "--",
    "python3",
    "--vm",
    "--",
    "x",
  ]);
  assertEquals(args, {
    vm: "qemu",
    ring: "packed",
    udsPath: "/tmp/a=b",
    guestCid: 4294967294,
    memoryMiB: 512,
    socketPath: undefined,
    include: ["/a", "/b"],
    showConsole: true,
    command: ["python3", "--vm", "--", "x"],
  });
});

Deno.test("parseGuestArgs() answers help, but not behind --", () => {
  assertEquals(parseGuestArgs(["--vm", "uml", "--help"]), "help");
  assertEquals(parseGuestArgs(["-h"]), "help");
  const args = parseGuestArgs(["--", "ls", "--help"]);
  assertEquals(args !== "help" && args.command, ["ls", "--help"]);
  for (
    const option of ["--vm", "--ring", "--uds-path", "--guest-cid", "--socket"]
  ) assertStringIncludes(HELP, option);
});

Deno.test("parseGuestArgs() rejects what it cannot obey in one clear line", () => {
  const cases: [string[], string][] = [
    [["--vm", "kvm"], "--vm takes uml or qemu, not kvm"],
    [["--ring=triple"], "--ring takes split or packed, not triple"],
    [
      ["--guest-cid", "2"],
      "--guest-cid takes a number from 3 to 4294967294, not 2",
    ],
    [
      ["--guest-cid", "4294967295"],
      "--guest-cid takes a number from 3 to 4294967294, not 4294967295",
    ],
    [
      ["--guest-cid", "0x3"],
      "--guest-cid takes a number from 3 to 4294967294, not 0x3",
    ],
    [["--memory=1"], "--memory takes a number from 64 to 65536, not 1"],
    [["--uds-path"], "--uds-path needs a value"],
    [["--uds-path="], "--uds-path needs a value"],
    [["--kvm"], "unknown option --kvm"],
    [["--console=1"], "unknown option --console"],
    [["ls"], "unexpected ls: a command comes after --"],
    [["--"], "no command after --"],
    [
      ["--socket", "/s", "--uds-path", "/u"],
      "--uds-path belongs to a device of our own, not to --socket",
    ],
  ];
  for (const [words, message] of cases) {
    const error = assertThrows(() => parseGuestArgs(words), UsageError);
    assertEquals(error.message, message);
  }
});
