import {
  assert,
  assertEquals,
  assertInstanceOf,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { EXIT_USAGE, parseArguments, UsageError } from "./cli.ts";
import { VERSION } from "./version.ts";

const CLI = new URL("./cli.ts", import.meta.url).href;

function runArguments(
  args: readonly string[],
  permissions: readonly string[] = ["-A"],
): string[] {
  return ["run", "--no-config", "--no-check", ...permissions, CLI, ...args];
}

function command(
  args: readonly string[],
  permissions?: readonly string[],
): Deno.Command {
  return new Deno.Command(Deno.execPath(), {
    args: runArguments(args, permissions),
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    env: { NO_COLOR: "1" },
  });
}

async function run(
  args: readonly string[],
  permissions?: readonly string[],
): Promise<{ code: number; stdout: string; stderr: string }> {
  const { code, stdout, stderr } = await command(args, permissions).output();
  const decoder = new TextDecoder();
  return {
    code,
    stdout: decoder.decode(stdout),
    stderr: decoder.decode(stderr),
  };
}

/** Starts the device with descriptor 3 as the shell's `redirection` leaves it; `file` is its `$0`. */
function withFd3(
  redirection: string,
  file: string,
  args: readonly string[],
): Deno.ChildProcess {
  return new Deno.Command("sh", {
    args: [
      "-c",
      `exec "$@" 3${redirection}`,
      file,
      Deno.execPath(),
      ...runArguments([...args, "--ready-fd=3"]),
    ],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
}

async function inTempDir(body: (dir: string) => Promise<void>): Promise<void> {
  const dir = await Deno.makeTempDir();
  try {
    await body(dir);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

/** Starts the device; resolves with the process and its first line of output. */
async function start(
  dir: string,
): Promise<{ child: Deno.ChildProcess; line: string; paths: string[] }> {
  const paths = [`${dir}/vhost.sock`, `${dir}/vsock`];
  const child = command([`--socket=${paths[0]}`, "--uds-path", paths[1]!])
    .spawn();
  const reader = child.stdout.getReader();
  let line = "";
  while (!line.includes("\n")) {
    const { value, done } = await reader.read();
    if (done) break;
    line += new TextDecoder().decode(value);
  }
  reader.releaseLock();
  return { child, line, paths };
}

async function finish(child: Deno.ChildProcess): Promise<number> {
  const [{ code }] = await Promise.all([
    child.status,
    child.stdout.cancel(),
    child.stderr.cancel(),
  ]);
  return code;
}

Deno.test("parseArguments() has the defaults of vhost-device-vsock", () => {
  const invocation = parseArguments(["--socket", "a", "--uds-path=b"]);
  assert(invocation.kind === "run");
  const { socketPath, udsPath, guestCid, ring, logLevel } = invocation.options;
  assertEquals([socketPath, udsPath, guestCid, ring, logLevel], [
    "a",
    "b",
    3,
    "auto",
    "info",
  ]);
});

Deno.test("parseArguments() takes every option in both forms", () => {
  const values: [string, string][] = [
    ["--socket", "a=b"],
    ["--uds-path", "--c"],
    ["--guest-cid", "0x10"],
    ["--ring", "packed"],
    ["--seqpacket", "off"],
    ["--log-level", "debug"],
    ["--allow-host-port", "1"],
    ["--allow-host-port", "2"],
    ["--allow-guest-port", "4294967294"],
    ["--poll-us", "0"],
  ];
  const forms = [
    values.flat(),
    values.map(([flag, value]) => `${flag}=${value}`),
  ];
  for (const args of forms) {
    assertEquals(parseArguments(args), {
      kind: "run",
      options: {
        socketPath: "a=b",
        udsPath: "--c",
        guestCid: 16,
        ring: "packed",
        seqpackets: false,
        logLevel: "debug",
        allowedHostPorts: [1, 2],
        allowedGuestPorts: [4294967294],
        pollUs: 0,
      },
    });
  }
});

Deno.test("parseArguments() takes a descriptor for readiness", () => {
  const invocation = parseArguments(
    ["--socket", "a", "--uds-path", "b", "--ready-fd", "7"],
  );
  assert(invocation.kind === "run");
  assertEquals(invocation.readyFd, 7);
});

Deno.test("parseArguments() takes several guests", () => {
  const { kind, ...rest } = parseArguments([
    "--vm",
    "guest-cid=3,socket=/a/s,uds-path=/a/u=1",
    "--vm=uds-path=b,guest-cid=0x4,socket=c",
    "--vm=uds-path=d,guest-cid=5,socket=e,ring=packed",
    "--ring=split",
  ]);
  assertEquals(kind, "run");
  assert("options" in rest);
  const { socketPath, udsPath, guestCid, ring, moreGuests } = rest.options;
  assertEquals([socketPath, udsPath, guestCid, ring], [
    "/a/s",
    "/a/u=1",
    3,
    "split",
  ]);
  assertEquals(moreGuests, [
    { socketPath: "c", udsPath: "b", guestCid: 4, ring: "split" },
    { socketPath: "e", udsPath: "d", guestCid: 5, ring: "packed" },
  ]);
});

Deno.test("parseArguments() names the mistake", () => {
  const good = ["--socket", "a", "--uds-path", "b"];
  const bad: [string[], string][] = [
    [[], "--socket PATH is missing"],
    [["--socket", "a"], "--uds-path PATH is missing"],
    [["--socket"], "--socket needs a value"],
    [["--socket="], "--socket needs a value"],
    [[...good, "--socket", "c"], "--socket is given twice"],
    [[...good, "--guest-cid", "0"], "--guest-cid 0: not a number from 3"],
    [[...good, "--guest-cid", "1"], "--guest-cid 1:"],
    [[...good, "--guest-cid", "2"], "--guest-cid 2:"],
    [[...good, "--guest-cid", "4294967295"], "--guest-cid 4294967295:"],
    [[...good, "--guest-cid", "99999999999999999999"], "--guest-cid 9999"],
    [[...good, "--guest-cid", "-3"], "--guest-cid -3:"],
    [[...good, "--guest-cid", "3.5"], "--guest-cid 3.5:"],
    [[...good, "--guest-cid", "three"], "--guest-cid three:"],
    [[...good, "--guest-cid", " 3"], "--guest-cid  3:"],
    [["--vm", "guest-cid=3,socket=a"], "uds-path is missing"],
    [["--vm", "guest-cid=3,socket=,uds-path=b"], "socket is missing"],
    [["--vm", "guest-cid=2,socket=a,uds-path=b"], "guest-cid 2: not a number"],
    [["--vm", "cid=3,socket=a,uds-path=b"], '"cid=3" is none of'],
    [["--vm", "guest-cid"], '"guest-cid" is none of'],
    [["--vm", "socket=a,socket=b"], "socket twice"],
    [
      ["--vm", "guest-cid=3,socket=a,uds-path=b,ring=x"],
      "ring x: not one of auto",
    ],
    [[...good, "--vm", "guest-cid=3,socket=a,uds-path=b"], "does not go with"],
    [[...good, "--ring", "round"], "--ring round: not one of auto"],
    [[...good, "--seqpacket", "1"], "--seqpacket 1: not one of on"],
    [[...good, "--log-level", "all"], "--log-level all: not one of"],
    [[...good, "--allow-host-port", "x"], "--allow-host-port x:"],
    [[...good, "--ready-fd", "2"], "--ready-fd 2: not a number from 3"],
    [[...good, "--ready-fd", "3", "--ready-fd=4"], "--ready-fd is given twice"],
    [[...good, "--poll-us", "1001"], "--poll-us 1001: not a number from 0"],
    [[...good, "--verbose"], "unknown option --verbose"],
    [[...good, "-x"], "unknown option -x"],
    [[...good, "extra"], 'unexpected argument "extra"'],
  ];
  for (const [args, text] of bad) {
    const error = assertThrows(() => parseArguments(args), UsageError);
    assertStringIncludes((error as Error).message, text);
  }
});

Deno.test("The device's command line answers --help and --version without any permission", async () => {
  for (const flag of ["--help", "-h"]) {
    const help = await run(["--socket", "x", flag], []);
    assertEquals([help.code, help.stderr], [0, ""]);
    for (
      const word of [
        "--socket",
        "--guest-cid",
        "--uds-path",
        "--ring",
        "--log-level",
      ]
    ) assertStringIncludes(help.stdout, word);
  }
  const version = await run(["--version"], []);
  assertEquals([version.code, version.stdout], [
    0,
    `ringside-device ${VERSION}\n`,
  ]);
});

Deno.test("The device's command line ends with code 2 and one line for bad arguments", async () => {
  await inTempDir(async (dir) => {
    await Deno.writeTextFile(`${dir}/file`, "data");
    const live = Deno.listen({ transport: "unix", path: `${dir}/live` });
    const cases: [string[], string][] = [
      [[], "--socket PATH is missing"],
      [["--socket", `${dir}/s`, "--uds-path", `${dir}/s`], "the same"],
      [
        ["--socket", `${dir}/${"x".repeat(108)}`, "--uds-path", `${dir}/u`],
        "107 bytes",
      ],
      [["--socket", `${dir}/live`, "--uds-path", `${dir}/u`], "live process"],
      [["--socket", `${dir}/s`, "--uds-path", `${dir}/live`], "live process"],
      [["--socket", `${dir}/file`, "--uds-path", `${dir}/u`], "no socket"],
    ];
    await Promise.all(cases.map(async ([args, text]) => {
      const { code, stdout, stderr } = await run(args);
      assertEquals([code, stdout], [EXIT_USAGE, ""], stderr);
      assertStringIncludes(stderr, text);
      assertEquals(stderr.trimEnd().split("\n").length, 1, stderr);
      assert(stderr.startsWith("error: "));
    }));
    const names = [...Deno.readDirSync(dir)].map((entry) => entry.name);
    assertEquals(names.sort(), ["file", "live"]);
    live.close();
  });
});

for (const signal of ["SIGTERM", "SIGINT"] as const) {
  Deno.test(`The device's command line listens until ${signal} and removes its sockets`, async () => {
    await inTempDir(async (dir) => {
      const { child, line, paths } = await start(dir);
      assertEquals(
        line,
        `listening on ${paths[0]} for a front-end (guest CID 3), on ${
          paths[1]
        } for host programs\n`,
      );
      child.kill(signal);
      assertEquals(await finish(child), 0);
      assertEquals([...Deno.readDirSync(dir)].length, 0);
    });
  });
}

Deno.test("The device's command line writes a newline to --ready-fd once its sockets listen, and closes it", async () => {
  await inTempDir(async (dir) => {
    const pipe = `${dir}/ready`;
    const made = await new Deno.Command("mkfifo", { args: [pipe] }).output();
    assert(made.success);
    const paths = [`${dir}/vhost.sock`, `${dir}/vsock`];
    const args = ["--socket", paths[0]!, "--uds-path", paths[1]!];
    const child = withFd3('>"$0"', pipe, args);
    // To the end of the file: the device goes on, and has closed it.
    assertEquals(await Deno.readTextFile(pipe), "\n");
    for (const path of paths) {
      (await Deno.connect({ transport: "unix", path })).close();
    }
    child.kill("SIGTERM");
    assertEquals(await finish(child), 0);
    assertEquals([...Deno.readDirSync(dir)].map(({ name }) => name), ["ready"]);
  });
});

Deno.test("The device's command line refuses a --ready-fd that is not open, is the runtime's own, or cannot be written", async () => {
  await inTempDir(async (dir) => {
    const args = [`--socket=${dir}/s`, `--uds-path=${dir}/u`];
    const closed = await run([...args, "--ready-fd", "1000"]);
    assertEquals([closed.code, closed.stdout], [EXIT_USAGE, ""]);
    assertStringIncludes(closed.stderr, "descriptor 1000: it is not open");
    // The first descriptor that the runtime opens for itself, where nobody else has taken it.
    const own = await withFd3("<&-", "sh", args).output();
    assertEquals(own.code, EXIT_USAGE);
    assertStringIncludes(
      new TextDecoder().decode(own.stderr),
      "descriptor 3: it is not open",
    );
    const shell = await withFd3("</dev/null", "sh", args).output();
    assertEquals(shell.code, 1);
    assertStringIncludes(
      new TextDecoder().decode(shell.stderr),
      "Cannot tell of readiness by descriptor 3: EBADF",
    );
    assertEquals([...Deno.readDirSync(dir)].length, 0);
  });
});

Deno.test("The device's command line ends in order when one signal comes twice, as from a terminal", async () => {
  for (let i = 0; i < 3; i++) {
    await inTempDir(async (dir) => {
      const { child } = await start(dir);
      child.kill("SIGINT");
      await new Promise((resolve) => setTimeout(resolve, 5 * i));
      child.kill("SIGINT");
      assertEquals(await finish(child), 0);
      assertEquals([...Deno.readDirSync(dir)].length, 0);
    });
  }
});

Deno.test("The device's command line ends in order when signals come until its end", async () => {
  // One in eight found nobody to take it, between the end of the device and that of the process.
  for (let i = 0; i < 6; i++) {
    await inTempDir(async (dir) => {
      const { child } = await start(dir);
      const code = finish(child);
      let ended = false;
      const over = code.then(() => ended = true);
      const begun = performance.now();
      while (!ended && performance.now() - begun < 400) {
        try {
          for (let n = 0; n < 20; n++) child.kill("SIGINT");
        } catch (error) {
          assertInstanceOf(error, TypeError); // It has ended.
          break;
        }
        await new Promise((resolve) => setTimeout(resolve, 0));
      }
      await over;
      assertEquals(await code, 0);
    });
  }
});

Deno.test("The device's command line takes over from one that was killed", async () => {
  await inTempDir(async (dir) => {
    const first = await start(dir);
    first.child.kill("SIGKILL");
    await finish(first.child);
    assertEquals([...Deno.readDirSync(dir)].length, 3);
    const second = await start(dir);
    assertStringIncludes(second.line, "listening on");
    second.child.kill("SIGTERM");
    assertEquals(await finish(second.child), 0);
    assertEquals([...Deno.readDirSync(dir)].length, 0);
  });
});
