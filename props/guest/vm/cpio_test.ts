import { assertEquals, assertStringIncludes } from "@std/assert";
import { CpioWriter } from "./cpio.ts";
import { findProgram, runProgram } from "./programs.ts";
import { skipped } from "./skip.ts";

interface Entry {
  name: string;
  mode: number;
  mtime: number;
  content: string;
}

/** Reads an archive by the format's description, apart from the writer. */
function readCpio(archive: Uint8Array<ArrayBuffer>): Entry[] {
  const text = new TextDecoder();
  const entries: Entry[] = [];
  for (let at = 0;;) {
    const header = text.decode(archive.subarray(at, at + 110));
    assertEquals(header.slice(0, 6), "070701");
    const field = (i: number): number =>
      parseInt(header.slice(6 + 8 * i, 14 + 8 * i), 16);
    const nameEnd = at + 110 + field(11);
    assertEquals(archive[nameEnd - 1], 0);
    const name = text.decode(archive.subarray(at + 110, nameEnd - 1));
    const start = Math.ceil(nameEnd / 4) * 4;
    const end = start + field(6);
    at = Math.ceil(end / 4) * 4;
    if (name === "TRAILER!!!") {
      assertEquals(at, archive.byteLength);
      return entries;
    }
    const content = text.decode(archive.subarray(start, end));
    entries.push({ name, mode: field(1), mtime: field(5), content });
  }
}

Deno.test("CpioWriter.finish() gives files, links and their parent folders once each", () => {
  const writer = new CpioWriter();
  const text = new TextEncoder();
  writer.file("/usr/bin/tool", text.encode("12345"), 0o755, 1_700_000_000.9);
  writer.file("usr/bin//./tool", text.encode("another"));
  writer.symlink("/usr/bin/alias", "tool");
  writer.directory("/tmp", 0o1777);
  assertEquals(writer.has("/usr/bin"), true);
  assertEquals(writer.has("/usr/lib"), false);
  assertEquals(readCpio(writer.finish()), [
    { name: "usr", mode: 0o40755, mtime: 0, content: "" },
    { name: "usr/bin", mode: 0o40755, mtime: 0, content: "" },
    {
      name: "usr/bin/tool",
      mode: 0o100755,
      mtime: 1_700_000_000,
      content: "12345",
    },
    { name: "usr/bin/alias", mode: 0o120777, mtime: 0, content: "tool" },
    { name: "tmp", mode: 0o41777, mtime: 0, content: "" },
  ]);
  assertEquals(writer.size, 0);
});

Deno.test("CpioWriter pads names and contents of every length to four bytes", () => {
  const writer = new CpioWriter();
  const expected: string[] = [];
  for (let length = 0; length < 9; length++) {
    const name = "n".repeat(length + 1);
    expected.push(`${name}:${"c".repeat(length)}`);
    writer.file(name, new TextEncoder().encode("c".repeat(length)));
  }
  const read = readCpio(writer.finish());
  assertEquals(read.map((one) => `${one.name}:${one.content}`), expected);
});

Deno.test("CpioWriter writes what busybox can read", async () => {
  const busybox = findProgram("busybox");
  if (skipped(busybox === undefined ? "busybox is missing" : undefined)) return;
  const writer = new CpioWriter();
  writer.file("/a/b", new TextEncoder().encode("content"));
  const file = await Deno.makeTempFile();
  try {
    await Deno.writeFile(file, writer.finish());
    const list = await runProgram("busybox", ["cpio", "-t", "-F", file]);
    assertStringIncludes(new TextDecoder().decode(list), "a/b");
  } finally {
    await Deno.remove(file);
  }
});
