import { assertEquals } from "@std/assert";
import { findProgram, runProgram } from "./programs.ts";
import { skipped } from "./skip.ts";
import { buildPtraceShim } from "./uml.ts";

/**
 * Does to any CPU with AVX what user-mode-linux does to one with AMX: hands over less
 * state than the host has. It prints the outcome of setting the child's first SSE
 * register, and what the register holds afterwards.
 */
const CHECK = `
#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static _Alignas(64) unsigned char some[640], all[65536];

int main(void) {
  pid_t child = fork();
  if (child == 0) {
    ptrace(PTRACE_TRACEME, 0, NULL, NULL);
    raise(SIGSTOP);
    _exit(7);
  }
  int status;
  waitpid(child, &status, 0);
  struct iovec part = {some, sizeof some}, whole = {all, sizeof all};
  if (ptrace(PTRACE_GETREGSET, child, NT_X86_XSTATE, &part) < 0) return 1;
  if (part.iov_len != sizeof some) return 2;
  memcpy(some + 160, "0123456789abcdef", 16); /* xmm0 */
  some[512] |= 2;                             /* SSE is not in its initial state */
  errno = 0;
  long result = ptrace(PTRACE_SETREGSET, child, NT_X86_XSTATE, &part);
  printf("%ld %d ", result, result < 0 ? errno : 0);
  if (ptrace(PTRACE_GETREGSET, child, NT_X86_XSTATE, &whole) < 0) return 3;
  printf("%.16s %d ", (char *)all + 160, whole.iov_len > sizeof some);
  errno = 5;
  long word = ptrace(PTRACE_PEEKDATA, child, &status, NULL);
  printf("%d ", errno == 0 && (int)word == 0);
  ptrace(PTRACE_CONT, child, NULL, NULL);
  waitpid(child, &status, 0);
  printf("%d\\n", WEXITSTATUS(status));
  return 0;
}
`;

Deno.test("buildPtraceShim() hands over part of the state where the host wants all of it", async () => {
  const hasAvx = /\bavx\b/.test(await Deno.readTextFile("/proc/cpuinfo"));
  if (skipped(findProgram("cc") === undefined ? "cc is missing" : undefined)) {
    return;
  }
  if (!hasAvx) return; // all of this CPU's state is no more than that part
  const folder = await Deno.makeTempDir();
  try {
    await Deno.writeTextFile(`${folder}/check.c`, CHECK);
    await runProgram("cc", ["-o", `${folder}/check`, `${folder}/check.c`]);
    const shim = await buildPtraceShim();
    const output = await runProgram(`${folder}/check`, [], {
      env: { LD_PRELOAD: shim },
    });
    assertEquals(
      new TextDecoder().decode(output),
      "0 0 0123456789abcdef 1 1 7\n",
    );
    // Without it the host refuses, or this check would prove nothing.
    const plain = await runProgram(`${folder}/check`, []);
    assertEquals(new TextDecoder().decode(plain).slice(0, 6), "-1 14 ");
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
