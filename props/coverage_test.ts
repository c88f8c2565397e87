import { assertEquals } from "@std/assert";
import { countLines, parseLcov } from "./coverage_cli.ts";

Deno.test("parseLcov() and countLines() tell which lines were not reached", () => {
  const [a, b] = parseLcov(
    [
      "SF:/repo/ring/a.ts",
      "DA:1,1",
      "DA:2,0",
      "DA:5,0",
      "DA:7,3",
      "DA:9,0",
      "end_of_record",
      "SF:/repo/ring/b.ts",
      "DA:1,2",
      "end_of_record",
    ].join("\n"),
    "/repo/",
  );
  assertEquals(a!.path, "ring/a.ts");
  assertEquals(countLines(a!), { hit: 2, all: 5, missed: "2-5 9" });
  assertEquals(countLines(b!), { hit: 1, all: 1, missed: "" });
});
