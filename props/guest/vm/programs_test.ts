import {
  assertEquals,
  assertMatch,
  assertRejects,
  assertThrows,
} from "@std/assert";
import {
  findProgram,
  findPython,
  missingPrograms,
  MissingProgramsError,
  missingWords,
  requireProgram,
  runProgram,
} from "./programs.ts";
import { skipped } from "./skip.ts";

Deno.test("missingWords() names each program and each package once", () => {
  assertEquals(
    missingWords([
      { program: "apt-get", debianPackage: "apt" },
      { program: "linux.uml", debianPackage: "user-mode-linux" },
      { program: "apt-cache", debianPackage: "apt" },
    ]),
    "missing apt-get, linux.uml, apt-cache; on Debian or Ubuntu: " +
      "sudo apt-get install apt user-mode-linux",
  );
});

Deno.test("MissingProgramsError says which machine lacks what", () => {
  const error = new MissingProgramsError("qemu", [
    { program: "qemu-system-x86_64", debianPackage: "qemu-system-x86" },
  ]);
  assertEquals(
    error.message,
    "Cannot boot a qemu guest: missing qemu-system-x86_64; " +
      "on Debian or Ubuntu: sudo apt-get install qemu-system-x86",
  );
});

Deno.test("findProgram() finds executables on PATH only", () => {
  assertMatch(findProgram("sh") ?? "", /\/sh$/);
  assertEquals(findProgram("no-such-program"), undefined);
  assertEquals(findProgram("passwd.txt"), undefined);
});

Deno.test("missingPrograms() lacks nothing that findProgram() finds", () => {
  for (const vm of ["uml", "qemu"] as const) {
    for (const one of missingPrograms(vm)) {
      assertEquals(findProgram(one.program), undefined);
    }
    const first = vm === "uml" ? "linux.uml" : "qemu-system-x86_64";
    const isMissing = missingPrograms(vm).some((one) => one.program === first);
    assertEquals(isMissing, findProgram(first) === undefined);
  }
});

Deno.test("requireProgram() names the package of a missing program", () => {
  assertThrows(
    () => requireProgram("no-such-program"),
    Error,
    "Cannot run no-such-program: missing no-such-program",
  );
});

Deno.test("runProgram() gives output, or the error output of a failure", async () => {
  const output = await runProgram("sh", ["-c", "echo out"]);
  assertEquals(new TextDecoder().decode(output), "out\n");
  await assertRejects(
    () => runProgram("sh", ["-c", "echo why >&2; exit 3"]),
    Error,
    "it ended with 3: why",
  );
});

Deno.test("findPython() leads to an interpreter and its library", async () => {
  const isMissing = findProgram("python3") === undefined;
  if (skipped(isMissing ? "python3 is missing" : undefined)) return;
  const python = await findPython();
  assertEquals((await Deno.lstat(python.executable)).isFile, true);
  assertEquals(
    (await Deno.stat(`${python.standardLibrary}/os.py`)).isFile,
    true,
  );
  assertEquals((await Deno.stat(python.extensions)).isDirectory, true);
});
