import { assert, assertEquals } from "@std/assert";
import { RingError } from "./errors.ts";

Deno.test("RingError tells the rule, its section and its consequence", () => {
  const error = new RingError("DESCRIPTOR_LOOP", "2.7.5.2", "Cannot follow it");
  assert(error instanceof Error);
  assertEquals(
    [error.name, error.code, error.section, error.message, error.fatal],
    ["RingError", "DESCRIPTOR_LOOP", "2.7.5.2", "Cannot follow it", false],
  );
  assertEquals(`${error}`, "RingError: Cannot follow it");
  assertEquals(new RingError("ID_IN_FLIGHT", "2.7", "", true).fatal, true);
});
