import { assert, assertEquals, assertGreater } from "@std/assert";

const ROOT = new URL("../../", import.meta.url);
const read = (path: string) => Deno.readTextFileSync(new URL(path, ROOT));

const PAGE = read("docs/oracle.md");

/** Sources below a folder, tests and what tests share left out. */
function sources(folder: string): Map<string, string> {
  const found = new Map<string, string>();
  for (const { name, isDirectory } of Deno.readDirSync(new URL(folder, ROOT))) {
    const path = `${folder}${name}`;
    if (isDirectory) {
      for (const [inner, text] of sources(`${path}/`)) found.set(inner, text);
    } else if (/^(?!_test|_fixture).*(?<!_test)\.ts$/.test(name)) {
      found.set(path, read(path));
    }
  }
  return found;
}

/** The part of the page below a heading, up to the next one. */
function below(heading: string): string {
  const start = PAGE.indexOf(`\n### ${heading}\n`);
  assertGreater(start, 0, heading);
  const end = PAGE.indexOf("\n#", start + 1 + heading.length);
  return PAGE.slice(start, end);
}

/** Cells of all rows whose first cell is a word in code type. */
function rows(text: string): string[][] {
  return text.split("\n")
    .filter((line) => /^\| `/.test(line))
    .map((line) => line.split("|").slice(1, -1).map((cell) => cell.trim()));
}

const code = (cell: string) => cell.replaceAll("`", "");

/** Names in a union of strings, each with the comment above its group. */
function unionOf(path: string, name: string): Map<string, string> {
  const text = read(path);
  const start = text.indexOf(`type ${name} =`);
  const found = new Map<string, string>();
  let group = "";
  for (const line of text.slice(start, text.indexOf(";", start)).split("\n")) {
    group = /\/\/ (.*)/.exec(line)?.[1] ?? group;
    const member = /"([A-Z_]+)"/.exec(line)?.[1];
    if (member !== undefined) found.set(member, group);
  }
  assertGreater(found.size, 10);
  return found;
}

const WHOSE: Readonly<Record<string, string>> = {
  "Faults of the ring.": "the ring",
  "Faults of a chain.": "one buffer",
  "Faults that a driver sees in what a device wrote.": "the device",
  "Faults of a queue's configuration or of a saved state.": "set-up",
};

/** By code: the sections that the sources of `ring/` give with it. */
function sectionsOf(codes: Iterable<string>): Map<string, Set<string>> {
  const known = new Set(codes);
  const found = new Map<string, Set<string>>();
  for (const [, text] of sources("ring/")) {
    // Where the section is not told with each code, it is the file's.
    const own = /section = "([\d.]+)"/.exec(text)?.[1] ??
      /new RingError\(\s*code,\s*"([\d.]+)"/.exec(text)?.[1];
    const places = text.matchAll(
      /"([A-Z_]+)",\s*(?:"([\d.]+|vhost-user)[^"]*")?/g,
    );
    for (const [, name, section = own] of places) {
      if (!known.has(name!)) continue;
      assert(section !== undefined, `${name} has no section`);
      found.set(name!, (found.get(name!) ?? new Set()).add(section));
    }
  }
  return found;
}

/** Kinds of faults and other counters in the sources of `device/`. */
function kinds(): Set<string> {
  const found = new Set<string>();
  for (const [path, text] of sources("device/")) {
    const told = text.matchAll(
      /(?:\.fault|\.count|#complain|#refuse|#wrongLength)\(\s*(?:fault === null\s*\? )?"([a-z_]+)"/g,
    );
    for (const [, kind] of told) found.add(kind!);
    const file = path.slice("device/".length);
    const names = file === "_registers.ts"
      ? ["mmio", "pci"]
      : file === "mmio.ts"
      ? ["mmio"]
      : file === "pci.ts" || file === "_pci_common.ts"
      ? ["pci"]
      : [];
    for (const name of names) {
      for (const [, what] of text.matchAll(/\.refused\(\s*"([a-z]+)"/g)) {
        found.add(`${name}_${what}_refused`);
      }
      for (const [, access] of text.matchAll(/\.ignored\(\s*"([a-z_]+)"/g)) {
        found.add(`${name}_bad_${access}`);
      }
    }
  }
  return found;
}

Deno.test("docs/oracle.md has each code of a ring, whose fault it is, and the sections that the sources give", () => {
  const groups = unionOf("ring/errors.ts", "RingErrorCode");
  const sections = sectionsOf(groups.keys());
  const expected = [...groups].map(([name, group]) => {
    assert(WHOSE[group] !== undefined, group);
    const where = [...sections.get(name)!].sort((a, b) =>
      a.localeCompare(b, "en", { numeric: true })
    );
    return [name, WHOSE[group], where.join(", ")];
  });
  const told = rows(below("Codes of a ring"));
  assertEquals(
    told.map(([name, whose, where]) => [code(name!), whose, where]),
    expected,
  );
  for (const [name, , , wrong] of told) assertGreater(wrong!.length, 20, name);
});

Deno.test("docs/oracle.md has each code of vhost-user", () => {
  const codes = unionOf("device/vhost_user/errors.ts", "VhostUserErrorCode");
  const told = rows(below("Counters"))
    .filter((row) => row.length === 2)
    .map(([name]) => code(name!));
  assertEquals(told, [...codes.keys()]);
});

Deno.test("docs/oracle.md has each counter of a device, and no other", () => {
  const codes = [
    ...unionOf("ring/errors.ts", "RingErrorCode").keys(),
    ...unionOf("device/vhost_user/errors.ts", "VhostUserErrorCode").keys(),
  ];
  const derived = new Set(
    codes.flatMap((name) =>
      ["ring_", "tx_", "rx_", "vhost_user_"].map((prefix) =>
        prefix + name.toLowerCase()
      )
    ),
  );
  const told = new Set(
    [...below("Counters").matchAll(/`([a-z]+(?:_[a-z]+)+)`/g)]
      .map(([, name]) => name!)
      .filter((name) => name !== "guest_cid" && !derived.has(name)),
  );
  const counted = [...kinds()].filter((kind) => !derived.has(kind));
  assertGreater(counted.length, 60);
  assertEquals([...told].sort(), counted.sort());
});

Deno.test("docs/oracle.md names tasks that there are, and their arguments", () => {
  const { tasks } = JSON.parse(read("deno.json"));
  const asked = [...PAGE.matchAll(/deno task ([a-z][a-z:-]*)(?: ([a-z-]+))?/g)];
  assertGreater(asked.length, 8);
  for (const [text, name, word] of asked) {
    assert(tasks[name!] !== undefined, text);
    const toy = /^oracle:(driver|device|registers)$/.exec(name!)?.[1];
    if (toy === undefined || word === undefined) continue;
    const file = toy === "registers" ? toy : `toy_${toy}`;
    assert(read(`examples/oracle/${file}.ts`).includes(`"${word}":`), text);
  }
});
