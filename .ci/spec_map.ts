/**
 * Checks `docs/spec_map.json`, which says for every requirement of the specification what in our code meets it and which test proves
 * that, and makes `docs/spec_map.md` of it.
 *
 * Symbols are looked up in what `deno doc` reads from their file, tests among the names that their file registers (`list_tests.ts`).
 * Prints one line for each fault and exits with code 1 if there is any. `--write` writes the page first.
 *
 * @module
 */

// deno-lint-ignore-file no-console

/** What the specification says of a requirement; `is` describes without a key word. */
export type Level =
  | "MUST"
  | "MUST NOT"
  | "SHOULD"
  | "SHOULD NOT"
  | "MAY"
  | "is";

/** One requirement, in words of our own. */
export interface Requirement {
  /** Kebab case; unique. */
  readonly id: string;
  readonly level: Level;
  readonly text: string;
  /** `path#Name` or `path#Name.member`. */
  readonly code?: readonly string[];
  /** `path: name`; `{a,b}` stands for each of them, `*` at the end for any ending. */
  readonly tests?: readonly string[];
  /** Why nothing of ours has to meet it. */
  readonly left_out?: string;
  /** Why what meets it has no test. */
  readonly no_test?: string;
  /** What is being written that will meet it. */
  readonly pending?: string;
}

/** The requirements of one section. */
export interface Section {
  /** Number in virtio 1.4, or `QS` and a number for the proposal. */
  readonly section: string;
  readonly title: string;
  /** Whom it binds. */
  readonly side: "device" | "driver" | "both";
  readonly requirements: readonly Requirement[];
}

/** The contents of `docs/spec_map.json`. */
export interface SpecMap {
  readonly chapters: readonly {
    readonly title: string;
    readonly note?: string;
    readonly sections: readonly Section[];
  }[];
}

/** What is there to be named. */
export interface Inventory {
  /** Names that a file declares, members as `Name.member`; undefined if there is no such file. */
  symbols(path: string): ReadonlySet<string> | undefined;
  /** Names of the tests in a file; undefined if there is no such file. */
  tests(path: string): readonly string[] | undefined;
}

const LEVELS: ReadonlySet<string> = new Set(
  ["MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "MAY", "is"],
);
const SIDES: ReadonlySet<string> = new Set(["device", "driver", "both"]);
const SECTION = /^(?:[1-9]\d*(?:\.[1-9]\d*){0,5}|QS\.[1-9])$/;
const ID = /^[a-z0-9]+(?:-[a-z0-9]+)*$/;

/** Every name that a pattern with `{a,b}` stands for. */
export function expand(pattern: string): string[] {
  const match = /^(.*?)\{([^{}]*,[^{}]*)\}(.*)$/s.exec(pattern);
  if (match === null) return [pattern];
  const [, head = "", choices = "", tail = ""] = match;
  return choices.split(",").flatMap((choice) => expand(head + choice + tail));
}

/** Splits `path#name` or `path: name`; null if there is no such mark. */
function cut(text: string, mark: string): [path: string, name: string] | null {
  const at = text.indexOf(mark);
  if (at <= 0 || at + mark.length >= text.length) return null;
  return [text.slice(0, at), text.slice(at + mark.length)];
}

function codeFault(symbol: string, inventory: Inventory): string | null {
  const parts = cut(symbol, "#");
  if (parts === null) return `"${symbol}" is not path#name`;
  const [path, name] = parts;
  if (path.endsWith("_test.ts")) return `"${symbol}" is a test, no code`;
  const names = inventory.symbols(path);
  if (names === undefined) return `there is no file ${path}`;
  return names.has(name) ? null : `${path} declares no ${name}`;
}

function testFaults(test: string, inventory: Inventory): string[] {
  const parts = cut(test, ": ");
  if (parts === null) return [`"${test}" is not path: name`];
  const [path, pattern] = parts;
  const names = inventory.tests(path);
  if (names === undefined) return [`there is no test file ${path}`];
  const faults: string[] = [];
  for (const name of expand(pattern)) {
    const there = name.endsWith("*")
      ? names.some((other) => other.startsWith(name.slice(0, -1)))
      : names.includes(name);
    if (!there) faults.push(`${path} has no test "${name}"`);
  }
  return faults;
}

function requirementFaults(
  requirement: Requirement,
  inventory: Inventory,
): string[] {
  const { code = [], tests = [] } = requirement;
  const faults: string[] = [];
  if (!ID.test(requirement.id)) faults.push("the id is not in kebab case");
  if (!LEVELS.has(requirement.level)) {
    faults.push(`"${requirement.level}" is no level`);
  }
  if (requirement.text.trim() === "") faults.push("there is no text");
  for (const symbol of code) {
    const fault = codeFault(symbol, inventory);
    if (fault !== null) faults.push(fault);
  }
  for (const test of tests) faults.push(...testFaults(test, inventory));
  const { left_out, no_test, pending } = requirement;
  const reasons = [left_out, no_test, pending].filter((r) => r !== undefined);
  if (reasons.some((reason) => reason.trim() === "")) {
    faults.push("a reason is empty");
  }
  if (reasons.length > 1) faults.push("more than one reason is given");
  if (no_test !== undefined && (code.length === 0 || tests.length > 0)) {
    faults.push("no_test is for code without a test");
  }
  if (pending !== undefined && code.length > 0 && tests.length > 0) {
    faults.push("it is pending, and has code and a test");
  }
  if (reasons.length === 0) {
    if (code.length === 0) faults.push("no code meets it, and no reason");
    if (tests.length === 0) faults.push("no test proves it, and no reason");
  }
  return faults;
}

/** One line, `section id: fault`, for each thing that is wrong; empty if all is well. */
export function faultsOf(map: SpecMap, inventory: Inventory): string[] {
  const faults: string[] = [];
  const ids = new Set<string>();
  const headings = new Set<string>();
  for (const { sections } of map.chapters) {
    for (const { section, title, side, requirements } of sections) {
      if (!SECTION.test(section)) {
        faults.push(`${section}: not a section number`);
      }
      if (!SIDES.has(side)) faults.push(`${section}: "${side}" is no side`);
      if (title.trim() === "") faults.push(`${section}: there is no title`);
      if (headings.has(`${section} ${side}`)) {
        faults.push(`${section}: the section is there twice`);
      }
      headings.add(`${section} ${side}`);
      if (requirements.length === 0) faults.push(`${section}: it is empty`);
      for (const requirement of requirements) {
        const where = `${section} ${requirement.id}`;
        if (ids.has(requirement.id)) faults.push(`${where}: the id is in use`);
        ids.add(requirement.id);
        for (const fault of requirementFaults(requirement, inventory)) {
          faults.push(`${where}: ${fault}`);
        }
      }
    }
  }
  return faults;
}

/** How many requirements there are of each kind. */
export interface Counts {
  readonly all: number;
  readonly tested: number;
  readonly no_test: number;
  readonly left_out: number;
  readonly pending: number;
}

/** Counts the requirements by what is said of them. */
export function count(map: SpecMap): Counts {
  const counts = { all: 0, tested: 0, no_test: 0, left_out: 0, pending: 0 };
  for (const { sections } of map.chapters) {
    for (const { requirements } of sections) {
      for (const requirement of requirements) {
        counts.all++;
        if (requirement.left_out !== undefined) counts.left_out++;
        else if (requirement.no_test !== undefined) counts.no_test++;
        else if (requirement.pending !== undefined) counts.pending++;
        else counts.tested++;
      }
    }
  }
  return counts;
}

/** Entries of the form `path<mark>name`, gathered by path. */
function byPath(
  entries: readonly string[],
  mark: string,
): [path: string, names: string[]][] {
  const paths = new Map<string, string[]>();
  for (const entry of entries) {
    const [path, name] = cut(entry, mark) ?? [entry, ""];
    const names = paths.get(path);
    if (names === undefined) paths.set(path, [name]);
    else names.push(name);
  }
  return [...paths];
}

function list(path: string, names: readonly string[]): string {
  return `[${path}](../${path}): ${
    names.map((name) => "`" + name + "`").join(", ")
  }`;
}

/** Asterisks and angle brackets outside code stand for themselves; so do underscores within words. */
function plain(text: string): string {
  return text.replaceAll(
    /(`[^`]*`)|[*<]/g,
    (found, code) => code ?? `\\${found}`,
  );
}

function requirementLines(requirement: Requirement): string[] {
  const { id, level, text, code = [], tests = [] } = requirement;
  const word = level === "is" ? "" : `**${level}** `;
  const lines = [`- \`${id}\`: ${word}${plain(text)}`];
  for (const [path, names] of byPath(code, "#")) {
    lines.push(`  - code: ${list(path, names)}`);
  }
  for (const [path, names] of byPath(tests, ": ")) {
    lines.push(`  - tests: ${list(path, names)}`);
  }
  const { left_out, no_test, pending } = requirement;
  if (left_out !== undefined) lines.push(`  - left out: ${plain(left_out)}`);
  if (no_test !== undefined) lines.push(`  - no test: ${plain(no_test)}`);
  if (pending !== undefined) lines.push(`  - pending: ${plain(pending)}`);
  return lines;
}

const SIDE_NAMES = {
  device: "device",
  driver: "driver",
  both: "device and driver",
} as const;

/** The page, before `deno fmt`. */
export function page(map: SpecMap): string {
  const { all, tested, no_test, left_out, pending } = count(map);
  const lines = [
    "# Map of the specification",
    "",
    "<!-- Made of docs/spec_map.json by `deno task check:spec --write`. -->",
    "",
    "What virtio 1.4 and the virtqueue-state proposal require of rings, of the basic facilities, of the virtio-pci and virtio-mmio transports and of the socket device, in our words; what in our code meets it; which tests prove it. `deno task check:spec` fails when a symbol or a test that is named here is gone.",
    "",
    "In names of tests, `{a,b}` stands for each of them and `*` at the end for any ending. A driver requirement is met by our own driver side (`ring/` and `props/guest/`), or its breach is caught by the device. One entry may join statements that belong together. What is in bold is the word of the specification; entries without it describe how something works.",
    "",
    `Of ${all} requirements, ${tested} have code and a test, ${no_test} code without a test, ${left_out} are left out${
      pending === 0 ? "" : `, ${pending} are pending`
    }.`,
  ];
  for (const { title, note, sections } of map.chapters) {
    lines.push("", `## ${title}`, "");
    if (note !== undefined) lines.push(note, "");
    for (const { section, title, side, requirements } of sections) {
      lines.push(`### ${section} ${plain(title)} (${SIDE_NAMES[side]})`, "");
      for (const requirement of requirements) {
        lines.push(...requirementLines(requirement));
      }
      lines.push("");
    }
  }
  return lines.join("\n");
}

interface DocMember {
  readonly name: string;
}

/** What this check reads of the output of `deno doc --json --private`. */
export interface DocOutput {
  readonly nodes: Readonly<
    Record<string, {
      readonly symbols?: readonly {
        readonly name: string;
        readonly declarations: readonly {
          readonly kind: string;
          readonly location: { readonly filename: string };
          readonly def?: {
            readonly constructors?: readonly DocMember[];
            readonly methods?: readonly DocMember[];
            readonly properties?: readonly DocMember[];
            readonly tsType?: {
              readonly value?: unknown;
            };
          };
        }[];
      }[];
    }>
  >;
}

function propertiesOf(literal: unknown): readonly DocMember[] {
  if (typeof literal !== "object" || literal === null) return [];
  return (literal as { properties?: readonly DocMember[] }).properties ?? [];
}

/** The names that each file declares, by its URL. */
export function symbolsOf(doc: DocOutput): Map<string, Set<string>> {
  const files = new Map<string, Set<string>>();
  for (const [url, { symbols = [] }] of Object.entries(doc.nodes)) {
    const names = new Set<string>();
    for (const { name, declarations } of symbols) {
      for (const { location, def } of declarations) {
        if (location.filename !== url) continue;
        names.add(name);
        const members = [
          ...def?.constructors ?? [],
          ...def?.methods ?? [],
          ...def?.properties ?? [],
          ...propertiesOf(def?.tsType?.value),
        ];
        for (const member of members) names.add(`${name}.${member.name}`);
      }
    }
    files.set(url, names);
  }
  return files;
}

const root = new URL("../", import.meta.url);

/** What `deno` writes to stdout. */
async function deno(args: readonly string[], input = ""): Promise<string> {
  const child = new Deno.Command(Deno.execPath(), {
    args: [...args],
    cwd: root,
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
    env: { NO_COLOR: "1" },
  }).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(input));
  await writer.close();
  const { success, stdout, stderr } = await child.output();
  if (!success) {
    throw new Error(
      `Cannot run deno ${args[0]}: ${new TextDecoder().decode(stderr)}`,
    );
  }
  return new TextDecoder().decode(stdout);
}

async function exists(path: string): Promise<boolean> {
  try {
    return (await Deno.stat(new URL(path, root))).isFile;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/** The paths that are named in front of `mark`, and are there. */
async function pathsIn(
  map: SpecMap,
  mark: string,
  entries: (requirement: Requirement) => readonly string[] | undefined,
): Promise<string[]> {
  const paths = new Set<string>();
  for (const { sections } of map.chapters) {
    for (const { requirements } of sections) {
      for (const requirement of requirements) {
        for (const entry of entries(requirement) ?? []) {
          const parts = cut(entry, mark);
          if (parts !== null) paths.add(parts[0]);
        }
      }
    }
  }
  const there: string[] = [];
  for (const path of paths) if (await exists(path)) there.push(path);
  return there.sort();
}

/** Reads from the repository what the map names. */
export async function takeInventory(map: SpecMap): Promise<Inventory> {
  const files = await pathsIn(map, "#", (r) => r.code);
  const doc = files.length === 0
    ? { nodes: {} }
    : JSON.parse(await deno(["doc", "--json", "--private", ...files]));
  const symbols = symbolsOf(doc as DocOutput);
  const testFiles = await pathsIn(map, ": ", (r) => r.tests);
  const std = await deno(["run", "-A", "--quiet", ".ci/std.ts"]);
  const output = await deno([
    "run",
    "-A",
    "--no-check",
    ...std.split(/\s+/).filter((arg) => arg !== ""),
    ".ci/list_tests.ts",
    ...testFiles,
  ]);
  const tests = new Map<string, string[]>(
    Object.entries(JSON.parse(output.trimEnd().split("\n").at(-1) ?? "{}")),
  );
  return {
    symbols: (path) => symbols.get(new URL(path, root).href),
    tests: (path) => tests.get(path),
  };
}

async function main(): Promise<number> {
  const map = JSON.parse(
    await Deno.readTextFile(new URL("docs/spec_map.json", root)),
  ) as SpecMap;
  const faults = faultsOf(map, await takeInventory(map));
  const wanted = await deno(["fmt", "--ext", "md", "-"], page(map));
  const file = new URL("docs/spec_map.md", root);
  if (Deno.args.includes("--write")) await Deno.writeTextFile(file, wanted);
  const written = await exists("docs/spec_map.md")
    ? await Deno.readTextFile(file)
    : "";
  if (written !== wanted) {
    faults.push(
      "docs/spec_map.md is not what docs/spec_map.json says: deno task check:spec --write",
    );
  }
  for (const fault of faults) console.log(fault);
  const { all, tested, no_test, left_out, pending } = count(map);
  console.log(
    `spec map: ${all} requirements, ${tested} tested, ${no_test} without a test, ${left_out} left out, ${pending} pending, ${faults.length} faults`,
  );
  return faults.length === 0 ? 0 : 1;
}

if (import.meta.main) Deno.exit(await main());
