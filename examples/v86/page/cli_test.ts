import { assertEquals } from "@std/assert";

Deno.test("deno task page says which of its arguments it cannot take", async () => {
  const cases: [string, string][] = [
    ["--porch 80", "unknown option --porch"],
    ["--port", "--port needs a value"],
    ["--port 65536", "--port takes a number from 0 to 65535, not 65536"],
    ["--out folder more", "unexpected argument more"],
  ];
  const path = new URL("./cli.ts", import.meta.url).href;
  await Promise.all(cases.map(async ([words, expected]) => {
    const { code, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "-A", "--no-check", "--quiet", path, ...words.split(" ")],
      stdin: "null",
    }).output();
    assertEquals(code, 2);
    const text = new TextDecoder().decode(stderr);
    assertEquals(text, `page: ${expected}\nTry --help.\n`);
  }));
});
