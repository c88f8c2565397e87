import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import {
  helpText,
  parsePropsArgs,
  type PropsArgs,
  PropsUsageError,
  selectNames,
} from "./cli_args.ts";

const NAMES = ["queue/split", "queue/split/order", "queue/packed", "vsock"];

Deno.test("parsePropsArgs() reads the command line", () => {
  const parse = (...words: string[]) => parsePropsArgs(words, NAMES);
  assertEquals(parse("--help"), "help");
  const defaults = {
    runs: 500,
    seconds: 86400,
    seed: undefined,
    shard: { index: 0, of: 1 },
    jobs: undefined,
    only: NAMES,
    replay: undefined,
    merge: undefined,
    out: undefined,
  };
  assertEquals(parse(), defaults);
  assertEquals(parse("--seed", "-5", "--runs=7", "--only", "vsock"), {
    ...defaults,
    runs: 7,
    seed: -5,
    only: ["vsock"],
  });
  assertEquals(parse("--seconds", "3", "--jobs", "4", "--out=a/b"), {
    ...defaults,
    runs: 1e9,
    seconds: 3,
    jobs: 4,
    out: "a/b",
  });
  assertEquals(parse("--shard", "2/3", "--seed=1"), {
    ...defaults,
    shard: { index: 2, of: 3 },
    seed: 1,
  });
  assertEquals(parse("--merge", "a", "b", "--out", "c.json"), {
    ...defaults,
    merge: ["a", "b"],
    out: "c.json",
  });
  assertEquals(parse("--replay", "word"), { ...defaults, replay: "word" });
});

Deno.test("parsePropsArgs() refuses what it cannot obey", () => {
  for (
    const words of [
      ["--runs"],
      ["--runs", "0"],
      ["--runs", "1.5"],
      ["--seconds=x"],
      ["--seed", "2147483648"],
      ["--seed", "1", "--shard", "3/3"],
      ["--seed", "1", "--shard", "-1/3"],
      ["--seed", "1", "--shard", "1"],
      ["--shard", "1/3"],
      ["--jobs", "0"],
      ["--only", "c"],
      ["--only", "queue/spli"],
      ["--merge"],
      ["--merge", "a", "--runs", "3"],
      ["--replay", "a", "--seed", "3"],
      ["--nothing"],
      ["word"],
    ]
  ) {
    assertThrows(
      () => parsePropsArgs(words, NAMES),
      PropsUsageError,
      "",
      words.join(" "),
    );
  }
});

Deno.test("selectNames() takes a name, what is below it, or a pattern", () => {
  const select = (pattern: string) => selectNames(pattern, NAMES);
  assertEquals(select("queue/split"), ["queue/split"]);
  assertEquals(select("queue"), NAMES.slice(0, 3));
  assertEquals(select("queue/"), NAMES.slice(0, 3));
  assertEquals(select("queue/split*"), NAMES.slice(0, 2));
  assertEquals(select("*order"), ["queue/split/order"]);
  assertEquals(select("*"), NAMES);
  assertEquals(select("q.*"), []);
  assertEquals(select("que"), []);
  const { only } = parsePropsArgs(
    ["--only", "vsock", "--only", "queue/p*"],
    NAMES,
  ) as PropsArgs;
  assertEquals(only, ["queue/packed", "vsock"]);
});

Deno.test("helpText() tells of every option and every property", () => {
  const text = helpText(NAMES);
  for (
    const option of "runs seconds seed only jobs shard out replay merge help"
      .split(" ")
  ) assertStringIncludes(text, `\n  --${option} `);
  for (const name of NAMES) assertStringIncludes(text, `\n  ${name}\n`);
});
