import { assertEquals, assertThrows } from "@std/assert";
import { skipped } from "./skip.ts";

function withRequirement(value: string | undefined, use: () => void): void {
  const name = "RINGSIDE_REQUIRE_GUESTS";
  const before = Deno.env.get(name);
  const set = (to: string | undefined): void => {
    if (to === undefined) Deno.env.delete(name);
    else Deno.env.set(name, to);
  };
  set(value);
  try {
    use();
  } finally {
    set(before);
  }
}

Deno.test("skipped() leaves a test out, unless guests are required", () => {
  withRequirement("1", () => {
    assertEquals(skipped(undefined), false);
    assertThrows(() => skipped("no uml"), Error, "no uml");
  });
  withRequirement(undefined, () => assertEquals(skipped(undefined), false));
});
