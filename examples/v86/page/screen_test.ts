import { assertEquals, assertThrows } from "@std/assert";
import { FieldReader, SnapshotError } from "../../../device/snapshot.ts";
import { COLUMNS, keyText, ROWS, Screen } from "./screen.ts";

function screen(text: string, answers: string[] = []): Screen {
  const made = new Screen((answer) => answers.push(answer));
  for (const byte of new TextEncoder().encode(text)) made.write(byte);
  return made;
}

function shown(text: string): string {
  return screen(text).lines.join("\n").trimEnd();
}

Deno.test("Screen.write() moves the cursor by control characters", () => {
  assertEquals(shown("one\r\ntwo"), "one\ntwo");
  assertEquals(shown("one\rtwo\bx"), "twx");
  assertEquals(shown("a\tb"), "a       b");
  assertEquals(shown("a\x07\x00\xff"), "a");
});

Deno.test("Screen.write() goes on in the next line after the last column", () => {
  const full = "x".repeat(COLUMNS);
  assertEquals(screen(full).cursor, { line: 0, column: COLUMNS - 1 });
  assertEquals(shown(`${full}y`), `${full}\ny`);
  // A line that is exactly full is followed by no empty one.
  assertEquals(shown(`${full}\r\ny`), `${full}\ny`);
});

Deno.test("Screen.write() keeps the lines that leave it, up to a limit", () => {
  const text = Array.from({ length: 1000 }, (_, i) => `${i}`).join("\r\n");
  const { lines, cursor } = screen(text);
  assertEquals(lines.length, 300 + ROWS);
  assertEquals(lines.at(-1), "999");
  assertEquals(lines[0], String(1000 - 300 - ROWS));
  assertEquals(cursor, { line: lines.length - 1, column: 3 });
});

Deno.test("Screen.write() obeys the sequences of a shell that edits its line", () => {
  assertEquals(shown("abcd\x1b[2Dx"), "abxd");
  assertEquals(shown("abcd\x1b[2D\x1b[J"), "ab");
  assertEquals(shown("abcd\x1b[3D\x1b[K"), "a");
  assertEquals(shown("a\r\nb\x1b[Ac\x1b[Bd"), "ac\nb d");
  assertEquals(shown("one\r\ntwo\x1b[H\x1b[Jx"), "x");
  assertEquals(shown("one\r\ntwo\x1b[2Jx"), "\n   x");
  assertEquals(shown("\x1b[2;3Hx"), "\n  x");
  assertEquals(shown("\x1b[1;31mred\x1b[0m"), "red");
  assertEquals(shown("\x1b]title\x07text"), "text");
  assertEquals(shown("\x1b[99;99Hx\x1b[99A\x1b[99Dy").startsWith("y"), true);
});

Deno.test("Screen.write() answers where the cursor is", () => {
  const answers: string[] = [];
  screen("ab\r\nc\x1b[6n", answers);
  assertEquals(answers, ["\x1b[2;2R"]);
});

Deno.test("Screen.write() is not held up by a sequence without an end", () => {
  const endless = `\x1b[${"1;".repeat(40)}`;
  assertEquals(shown(`${endless}\r\nend`).endsWith("end"), true);
});

Deno.test("Screen.restore() shows what was saved and goes on there", () => {
  const saved = JSON.parse(JSON.stringify(screen("one\r\ntwo").save()));
  const other = screen("other\r\nwords");
  other.restore(new FieldReader(saved, "screen"));
  for (const char of "\b!") other.write(char.charCodeAt(0));
  assertEquals(other.lines.join("\n").trimEnd(), "one\ntw!");
  assertThrows(
    () =>
      other.restore(new FieldReader({ ...saved, lines: ["one"] }, "screen")),
    SnapshotError,
  );
});

Deno.test("keyText() sends what a terminal sends", () => {
  assertEquals(keyText("a", false), "a");
  assertEquals(keyText("c", true), "\x03");
  assertEquals(keyText("]", true), "\x1d");
  assertEquals(keyText("Enter", false), "\r");
  assertEquals(keyText("ArrowUp", false), "\x1b[A");
  assertEquals(keyText("Shift", false), null);
  assertEquals(keyText("1", true), null);
});
