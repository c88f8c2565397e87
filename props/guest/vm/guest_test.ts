import {
  assert,
  assertEquals,
  assertGreater,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { AgentError } from "./control.ts";
import { bootGuest, type Guest, type GuestOptions } from "./guest.ts";
import { findProgram, type VmKind } from "./programs.ts";
import { skipped, skippedWithout } from "./skip.ts";

/** The processes of a group that are still there, dead ones aside. */
function livingOf(group: number): number[] {
  const living: number[] = [];
  for (const entry of Deno.readDirSync("/proc")) {
    if (!/^\d+$/.test(entry.name)) continue;
    try {
      const stat = Deno.readTextFileSync(`/proc/${entry.name}/stat`);
      // pid (name) state parent group ...
      const [state, , pgrp] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
      if (Number(pgrp) === group && state !== "Z") {
        living.push(Number(entry.name));
      }
    } catch {
      // It has just gone.
    }
  }
  return living;
}

/** One boot, without a vsock device, for all that a guest can do without one. */
async function checkGuest(
  t: Deno.TestContext,
  options: GuestOptions,
): Promise<void> {
  await using guest: Guest = await bootGuest(options);
  assertEquals(guest.vm, options.vm);
  assertGreater(guest.bootMs, 0);
  assertMatch(guest.info.kernel, /^6\./);

  await t.step("agent() answers several requests at once", async () => {
    const slow = guest.python("import time; time.sleep(0.5); result = 'slow'");
    const order: string[] = [];
    await Promise.all([
      slow.then(() => order.push("slow")),
      guest.agent({ op: "ping" }).then(() => order.push("fast")),
    ]);
    assertEquals(order, ["fast", "slow"]);
  });

  await t.step("a request of 200 KB arrives whole", async () => {
    const value = "é\u0000\n".repeat(50_000);
    assert(await guest.agent({ op: "ping", value }) === value);
  });

  await t.step("python() has arguments, helpers and events", async () => {
    const seen: unknown[] = [];
    const digest = await guest.python(
      "digest = sha256(); digest.update(args['text'].encode())\n" +
        "emit('step', n=7)\nresult = digest.hexdigest()",
      { text: "abc" },
      { onEvent: (event) => seen.push(event.n) },
    );
    assertStringIncludes(String(digest), "ba7816bf");
    assertEquals(seen, [7]);
  });

  await t.step("an exception in the guest carries its trace", async () => {
    const error = await assertRejects(
      () => guest.python("\n1 / 0"),
      AgentError,
    );
    assertEquals(error.type, "ZeroDivisionError");
    assertStringIncludes(error.trace, `File "scenario", line 2`);
  });

  await t.step("tell() reaches a call that waits", async () => {
    const call = guest.start({
      op: "python",
      code: "emit('ready'); call.wait_for('go', 10); result = 'gone'",
    });
    await call.event("ready");
    await call.tell("go");
    assertEquals(await call.result, "gone");
  });

  await t.step("exec() gives output, error output and exit code", async () => {
    const result = await guest.exec([
      "sh",
      "-c",
      "echo out; echo err >&2; exit 3",
    ]);
    assertEquals(result.code, 3);
    assertEquals(result.stdout, "out\n");
    assertEquals(result.stderr, "err\n");
    assertEquals((await guest.exec(["sh", "-c", "kill -9 $$"])).code, 137);
    assertEquals((await guest.exec(["no-such-program"])).code, 127);
  });

  await t.step("exec() feeds binary input to python3 to its end", async () => {
    const stdin = crypto.getRandomValues(new Uint8Array(60_001));
    const { stdoutBytes } = await guest.exec([
      "python3",
      "-c",
      "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read()[::-1])",
    ], { stdin });
    assertEquals(stdoutBytes.reverse(), stdin);
  });

  await t.step("exec() stops feeding a program that has ended", async () => {
    const endless = new ReadableStream<Uint8Array>({
      pull: (controller) => controller.enqueue(new Uint8Array(1000)),
    });
    assertEquals((await guest.exec(["true"], { stdin: endless })).code, 0);
  });

  await t.step("exec() kills a program that takes too long", async () => {
    await assertRejects(
      () =>
        guest.exec(["sh", "-c", "echo before; sleep 100"], { timeoutMs: 300 }),
      Error,
      "did not end in 300 ms and was killed; it wrote:\nbefore",
    );
  });

  await t.step(
    "a started program can be signalled and its terminal resized",
    async () => {
      const { stdout, code } = await guest.exec([
        "sh",
        "-c",
        "trap 'stty size; exit 4' TERM; echo up; while :; do sleep 0.05; done",
      ], {
        terminal: { rows: 10, columns: 20 },
        onStarted: async (program) => {
          assertGreater(program.pid, 1);
          await new Promise((resolve) => setTimeout(resolve, 300));
          await program.resize({ rows: 11, columns: 21 });
          await program.signal(15);
        },
      });
      assertMatch(stdout, /^up\r?\n.*11 21\r?\n$/s);
      assertEquals(code, 4);
    },
  );

  await t.step("exec() gives a terminal of the wanted size", async () => {
    const { stdout } = await guest.exec(["sh", "-c", "tty; stty size"], {
      terminal: { rows: 33, columns: 99 },
    });
    assertMatch(stdout, /\/dev\/pts\/0\r?\n33 99/);
  });

  if (options.vm === "qemu") {
    await t.step("qmp() stops the guest and lets it go on", async () => {
      await guest.qmp("stop");
      const status = await guest.qmp("query-status") as { running: boolean };
      assertEquals(status.running, false);
      const ping = guest.agent({ op: "ping", value: 1 });
      await guest.qmp("cont");
      assertEquals(await ping, 1);
    });
  } else {
    await t.step("qmp() is QEMU's only", async () => {
      await assertRejects(() => guest.qmp("stop"), TypeError, "has no QMP");
    });
  }

  await t.step(
    "shutdown() powers it off and leaves nothing behind",
    async () => {
      await guest.shutdown();
      assertEquals((await guest.exited).success, true);
      assertMatch(guest.console, /reboot: (Power down|System halted)/);
      assertEquals(livingOf(guest.pid), []);
      await assertRejects(
        () => guest.agent({ op: "ping" }),
        Error,
        "it has ended",
      );
    },
  );
}

for (const vm of ["uml", "qemu"] as const satisfies readonly VmKind[]) {
  Deno.test(`bootGuest() boots ${vm} and runs programs in it`, async (t) => {
    if (await skippedWithout(vm)) return;
    await checkGuest(t, { vm });
  });

  Deno.test(`Guest.kill() leaves nothing of ${vm} behind`, async () => {
    if (await skippedWithout(vm)) return;
    const guest = await bootGuest({ vm });
    const waiting = guest.exec(["sleep", "100"]);
    waiting.catch(() => {});
    await guest.agent({ op: "ping" });
    assertGreater(livingOf(guest.pid).length, 0);
    await guest.kill();
    assertEquals(livingOf(guest.pid), []);
    await assertRejects(() => waiting, Error, "it has ended");
    await guest.kill(); // once more does no harm
  });

  Deno.test(`bootGuest() gives up on ${vm} in time, with its console`, async () => {
    if (await skippedWithout(vm)) return;
    const log = await Deno.makeTempFile();
    try {
      const error = await assertRejects(
        () => bootGuest({ vm, bootTimeoutMs: 700, consoleLog: log }),
        Error,
        "it has not booted in 700 ms",
      );
      const logged = (await Deno.readTextFile(log)).trim();
      if (logged !== "") assertStringIncludes(error.message, "its console");
    } finally {
      await Deno.remove(log);
    }
  });

  Deno.test(`A ${vm} guest ends with the process that booted it`, async () => {
    if (await skippedWithout(vm)) return;
    const module = new URL("./guest.ts", import.meta.url).href;
    const code = `import { bootGuest } from ${JSON.stringify(module)};
      const guest = await bootGuest({ vm: ${JSON.stringify(vm)} });
      console.log(guest.pid);
      Deno.kill(Deno.pid, "SIGKILL");`;
    // Killed, that process cannot remove its guest's folder.
    const folder = await Deno.makeTempDir();
    try {
      const { stdout } = await new Deno.Command(Deno.execPath(), {
        args: ["eval", "--no-config", code],
        env: { TMPDIR: folder },
        stderr: "inherit",
      }).output();
      const pid = Number(new TextDecoder().decode(stdout).trim());
      assertGreater(pid, 0);
      const deadline = performance.now() + 10_000;
      while (livingOf(pid).length > 0 && performance.now() < deadline) {
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
      assertEquals(livingOf(pid), []);
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  });
}

Deno.test("bootGuest() says why a machine ended before its agent listened", async () => {
  if (await skippedWithout("qemu")) return;
  await assertRejects(
    () => bootGuest({ vm: "qemu", socketPath: "/nonexistent/vhost.sock" }),
    Error,
    "/nonexistent/vhost.sock",
  );
});

Deno.test("bootGuest() ends a boot when its signal is aborted", async () => {
  if (await skippedWithout("uml")) return;
  const boot = new AbortController();
  const booting = bootGuest({ vm: "uml", signal: boot.signal });
  setTimeout(() => boot.abort(new Error("enough")), 300);
  await assertRejects(() => booting, Error, "enough");
});

Deno.test("bootGuest() boots uml with the help for hosts with AMX", async () => {
  if (await skippedWithout("uml")) return;
  if (skipped(findProgram("cc") === undefined ? "cc is missing" : undefined)) {
    return;
  }
  await using guest = await bootGuest({ vm: "uml", forcePtraceShim: true });
  const { stdout } = await guest.exec([
    "python3",
    "-c",
    "print(sum(1 / n for n in range(1, 100001)))",
  ]);
  assertStringIncludes(stdout, "12.09014612986");
  await guest.shutdown();
});
