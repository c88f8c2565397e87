import { assertEquals, assertThrows } from "@std/assert";
import { parseLinuxArgs, UsageError } from "./linux_args.ts";

Deno.test("parseLinuxArgs() takes ports, addresses and a command", () => {
  assertEquals(parseLinuxArgs([]), {
    ring: "packed",
    guestCid: 3,
    listen: [],
    forward: [],
    publish: [],
    command: [],
  });
  const words =
    "--ring split --guest-cid 7 --listen 1234 --listen 1235 --forward 80:127.0.0.1:8080 " +
    "--forward 81:./a:b.sock --publish [::1]:22:2022 --publish /run/x.sock:23 -- ls --ring";
  assertEquals(parseLinuxArgs(words.split(" ")), {
    ring: "split",
    guestCid: 7,
    listen: [1234, 1235],
    forward: [
      {
        port: 80,
        to: { transport: "tcp", hostname: "127.0.0.1", port: 8080 },
      },
      { port: 81, to: { transport: "unix", path: "./a:b.sock" } },
    ],
    publish: [
      { from: { transport: "tcp", hostname: "::1", port: 22 }, port: 2022 },
      { from: { transport: "unix", path: "/run/x.sock" }, port: 23 },
    ],
    command: ["ls", "--ring"],
  });
  assertEquals(parseLinuxArgs(["--listen", "1", "--help"]), "help");
});

Deno.test("parseLinuxArgs() says in words what it cannot obey", () => {
  const cases: [string, string][] = [
    ["--rings split", "unknown argument --rings"],
    ["shell", "unknown argument shell"],
    ["--ring", "--ring needs a value"],
    ["--ring round", "--ring takes split or packed, not round"],
    ["--guest-cid 2", "takes a number from 3 to 4294967294, not 2"],
    ["--listen 1e3", "not 1e3"],
    ["--listen 4294967295", "not 4294967295"],
    ["--forward 80", "--forward takes PORT:ADDRESS, not 80"],
    ["--forward :/run/x", "takes PORT:ADDRESS, not :/run/x"],
    ["--forward 80:", "HOST:PORT or a path with a slash"],
    ["--forward 80:host", "not host"],
    ["--forward 80:host:0", "from 1 to 65535, not 0"],
    ["--publish 22", "--publish takes ADDRESS:PORT, not 22"],
    ["--publish 127.0.0.1:22", "not 127.0.0.1"],
    ["--listen 80 --forward 80:/run/x", "host port 80 is asked for twice"],
    ["--", "-- needs a COMMAND"],
  ];
  for (const [words, expected] of cases) {
    assertThrows(() => parseLinuxArgs(words.split(" ")), UsageError, expected);
  }
});
