import { assertEquals, assertMatch } from "@std/assert";

const DEMO = new URL("./demo.ts", import.meta.url).pathname;

async function demo(
  ...args: string[]
): Promise<{ code: number; text: string; errors: string }> {
  // No permission flags: the demo must do without.
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-prompt", "--no-config", DEMO, ...args],
    stdin: "null",
  }).output();
  const decoder = new TextDecoder();
  return {
    code,
    text: decoder.decode(stdout),
    errors: decoder.decode(stderr),
  };
}

Deno.test("demo moves and compares every byte over both ring formats", async () => {
  const { code, text, errors } = await demo("--bytes", "8000003");
  assertEquals(code, 0, text + errors);
  for (const ring of ["split", "packed"]) {
    for (const direction of ["guest to host", "host to guest"]) {
      assertMatch(
        text,
        new RegExp(
          `^${ring} +${direction} +8,000,003 +8,000,003 .* 3  ok$`,
          "m",
        ),
      );
    }
  }
  assertMatch(text, /^All bytes are right\.$/m);
});

Deno.test("demo exits with 1 when one byte is wrong", async () => {
  const { code, text } = await demo("--bytes", "8000003", "--corrupt");
  assertEquals(code, 1);
  assertMatch(
    text,
    /^split, guest to host, connection 0: a wrong byte at \d+$/m,
  );
  assertMatch(text, /^FAILED$/m);
});

Deno.test("demo exits with 2 for an argument that it does not know", async () => {
  const { code, errors } = await demo("--byte", "3");
  assertEquals(code, 2);
  assertMatch(errors, /unknown argument --byte/);
});
