import { assertEquals, assertStringIncludes } from "@std/assert";
import { linkTarget } from "./initramfs.ts";
import { runProgram } from "./programs.ts";
import { initConfig, shellQuote, textBeside } from "./setup.ts";

Deno.test("shellQuote() gives any word back through a shell", async () => {
  for (const word of ["", "a b", "it's", '$HOME `x` \\ "q"', "''", "é\n"]) {
    const output = await runProgram("sh", [
      "-c",
      `printf %s ${shellQuote(word)}`,
    ]);
    assertEquals(new TextDecoder().decode(output), word);
  }
});

Deno.test("initConfig() is a script that sets and exports what the guest needs", async () => {
  const text = initConfig({
    busybox: "/bin/busybox",
    python: "/opt/py thon/bin/python3.11",
    agent: "/a/agent.py",
    control: "/dev/tty1",
    acknowledge: true,
    modules: ["/m/a.ko", "/m/b.ko"],
    directory: "/it's here",
    path: "/usr/bin:/bin",
  });
  const output = await runProgram("sh", [
    "-c",
    `${text}echo "$PYTHON|$ACK|$MODULES|$DIRECTORY"; env | grep '^PATH='`,
  ]);
  assertEquals(
    new TextDecoder().decode(output),
    "/opt/py thon/bin/python3.11|--ack|/m/a.ko /m/b.ko|/it's here\n" +
      "PATH=/opt/py thon/bin:/usr/bin:/bin\n",
  );
});

Deno.test("textBeside() reads the guest's own files", async () => {
  assertStringIncludes(await textBeside("init.sh"), "insmod");
  assertStringIncludes(await textBeside("agent.py"), "def op_echo_server");
  assertStringIncludes(await textBeside("ptrace_shim.c"), "PTRACE_SETREGSET");
});

Deno.test("linkTarget() resolves relative and absolute links", () => {
  assertEquals(linkTarget("/usr/bin/a", "b"), "/usr/bin/b");
  assertEquals(linkTarget("/usr/bin/a", "../lib/./b c"), "/usr/lib/b c");
  assertEquals(linkTarget("/usr/bin/a", "/lib/../b"), "/b");
  assertEquals(linkTarget("/a", "../../b"), "/b");
});
