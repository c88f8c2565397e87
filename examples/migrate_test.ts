import { assertEquals, assertMatch } from "@std/assert";

const MIGRATE = new URL("./migrate.ts", import.meta.url).pathname;

Deno.test("migrate moves queues of both formats in mid-flight, each buffer answered once, without permissions", async () => {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-prompt", "--no-config", MIGRATE],
    stdin: "null",
  }).output();
  const text = new TextDecoder().decode(stdout);
  assertEquals(code, 0, text + new TextDecoder().decode(stderr));
  for (const format of ["split", "packed"]) {
    const row = new RegExp(
      `^${format} +100 drained, 100 rewound, 100 carried; (\\d+) questions, (\\d+) answered once and right, 0 wrong  ok$`,
      "m",
    );
    assertMatch(text, row);
    const [, asked, once] = row.exec(text)!;
    assertEquals(once, asked);
  }
  // The states that it explains are the ones that it shows.
  assertMatch(text, /in two words: available 0x8006, used 0x8006/);
  const states = [...text.matchAll(/^ +(\{.*\})$/gm)].map(([, json]) =>
    JSON.parse(json!)
  );
  assertEquals(
    states.map(({ format, inFlight }) => [format, inFlight.length]),
    ["split", "packed"].flatMap((format) => [
      [format, 0],
      [format, 0],
      [format, 2],
    ]),
  );
});
