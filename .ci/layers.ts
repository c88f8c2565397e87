/**
 * Checks that imports only point downwards.
 *
 * Every module belongs to a room, and {@link ROOMS} says which rooms a room may import. Edges come from `deno info`, so they are the ones that
 * Deno follows, type-only and dynamic ones included, and from `new URL("./x.ts", import.meta.url)`, which is how Workers are started.
 *
 * Prints one line for each violation and exits with code 1 if there is any.
 *
 * @module
 */

// deno-lint-ignore-file no-console

/** One import: paths are relative to the root of the repository. */
export interface Edge {
  /** The importing module. */
  readonly from: string;
  /** The imported module, or the specifier itself if it leads out of the repository. */
  readonly to: string;
  /** The import as it is written. */
  readonly specifier: string;
  /** Why the import leads nowhere, if it does. */
  readonly error?: string;
}

/** A set of modules with the same rights. */
interface Room {
  /** Which paths belong to it; the first room that matches wins. */
  readonly paths: RegExp;
  /** The rooms that it may import; its tests may import the `guest` room as well. */
  readonly imports: readonly string[];
  /** If given, the only files that may be imported, except by tests. */
  readonly only?: readonly string[];
  /** Shipped code has no dependencies. */
  readonly shipped: boolean;
}

const CORE: readonly string[] = ["ring", "device", "vsock", "vhost_user"];
const BELOW_PROPS: readonly string[] = [...CORE, "device/mod", "host", "guest"];

/** From the lowest room to the highest. */
const ROOMS: ReadonlyMap<string, Room> = new Map<string, Room>([
  ["ring", { paths: /^ring\//, imports: ["ring"], shipped: true }],
  ["device/mod", { paths: /^device\/mod\.ts$/, imports: CORE, shipped: true }],
  ["device", {
    paths: /^device\/[^/]+$/,
    imports: ["ring", "device"],
    shipped: true,
  }],
  ["vsock", {
    paths: /^device\/vsock\//,
    imports: ["ring", "device", "vsock"],
    shipped: true,
  }],
  ["vhost_user", {
    paths: /^device\/vhost_user\//,
    imports: ["ring", "device", "vhost_user"],
    shipped: true,
  }],
  ["host", {
    paths: /^device\/host\//,
    imports: [...CORE, "device/mod", "host"],
    shipped: true,
  }],
  ["mod", {
    paths: /^mod(_test)?\.ts$/,
    imports: ["mod", "ring", "device/mod"],
    only: ["ring/mod.ts", "device/mod.ts"],
    shipped: true,
  }],
  ["guest", {
    paths: /^props\/guest\//,
    imports: BELOW_PROPS,
    shipped: true,
  }],
  ["oracle", {
    paths: /^props\/oracle\//,
    imports: [...BELOW_PROPS, "mod", "props", "oracle"],
    shipped: false,
  }],
  ["props", {
    paths: /^props\//,
    imports: [...BELOW_PROPS, "mod", "props"],
    shipped: false,
  }],
  ["bench", {
    paths: /^bench\//,
    imports: [...BELOW_PROPS, "mod", "bench"],
    shipped: false,
  }],
  ["examples", {
    paths: /^examples\//,
    imports: [...BELOW_PROPS, "mod", "oracle", "examples"],
    shipped: false,
  }],
  ["ci", {
    paths: /^\.ci\//,
    imports: [...BELOW_PROPS, "mod", "props", "ci"],
    shipped: false,
  }],
]);

/** Bare names that only tests, props and bench may use. */
const DEVELOPMENT_DEPENDENCIES: RegExp =
  /^(@std\/|fast-check$|playwright-core$|yaml$|node:|npm:)/;

function roomOf(path: string): string | undefined {
  for (const [name, room] of ROOMS) {
    if (room.paths.test(path)) return name;
  }
  return undefined;
}

function isRelative(specifier: string): boolean {
  return specifier.startsWith("./") || specifier.startsWith("../");
}

/** Tests, and the files beside them that they share. */
const TEST = /(_test|\/_fixture|\/_test_[a-z0-9_]+)\.ts$/;

/** What judges: it must not import what it judges. */
const MODEL = /^props\/[a-z_]+_model\.ts$/;

/** The rule that an import breaks, or undefined if it breaks none. */
function brokenRule(edge: Edge): string | undefined {
  const from = roomOf(edge.from);
  const room = from === undefined ? undefined : ROOMS.get(from);
  if (from === undefined || room === undefined) {
    return "every module belongs to a folder that the check knows";
  }
  const isTest = TEST.test(edge.from);
  if (!isRelative(edge.specifier)) {
    if (room.shipped && !isTest) {
      return "shipped code has relative imports only";
    }
    return DEVELOPMENT_DEPENDENCIES.test(edge.specifier)
      ? undefined
      : "not a dependency that tests, props and bench may use";
  }
  if (edge.error !== undefined) return edge.error;
  if (edge.to.endsWith("_test.ts")) return "nothing imports a test";
  if (!isTest && TEST.test(edge.to)) {
    return "only tests import what tests share";
  }
  const to = roomOf(edge.to);
  if (to === undefined) return "leads out of the known folders";
  if (isTest && to === "guest") return undefined;
  if (MODEL.test(edge.from) && to !== "props") {
    return "a model imports nothing of what it judges";
  }
  if (room.only !== undefined && !isTest && !room.only.includes(edge.to)) {
    return `${edge.from} imports ${room.only.join(" and ")} only`;
  }
  if (room.imports.includes(to)) return undefined;
  return `${from} imports ${room.imports.join(", ")} only`;
}

/** One line, `from -> to: rule`, for each import that breaks a rule; empty if all is well. */
export function violations(edges: readonly Edge[]): string[] {
  const lines: string[] = [];
  for (const edge of edges) {
    const rule = brokenRule(edge);
    if (rule !== undefined) lines.push(`${edge.from} -> ${edge.to}: ${rule}`);
  }
  return lines;
}

/** What this check reads of the output of `deno info --json`. */
export interface ModuleGraph {
  readonly modules: readonly {
    readonly specifier: string;
    readonly error?: string;
    readonly dependencies?: readonly {
      readonly specifier: string;
      readonly code?: { readonly specifier?: string };
      readonly type?: { readonly specifier?: string };
    }[];
  }[];
}

/** The imports of all modules below `root` (a file URL that ends with a slash). */
export function edgesOf(graph: ModuleGraph, root: string): Edge[] {
  const errors = new Map<string, string>();
  for (const module of graph.modules) {
    if (module.error !== undefined) {
      errors.set(module.specifier, "module not found or not parsable");
    }
  }
  const edges: Edge[] = [];
  for (const module of graph.modules) {
    if (!module.specifier.startsWith(root)) continue;
    const from = module.specifier.slice(root.length);
    for (const dependency of module.dependencies ?? []) {
      const { specifier } = dependency;
      const target = dependency.code?.specifier ?? dependency.type?.specifier ??
        specifier;
      const to = target.startsWith(root) ? target.slice(root.length) : target;
      const error = errors.get(target);
      edges.push(
        error === undefined
          ? { from, to, specifier }
          : { from, to, specifier, error },
      );
    }
  }
  return edges;
}

/** The modules that a source names by `new URL("./x.ts", import.meta.url)`. */
export function urlEdges(from: string, source: string): Edge[] {
  const edges: Edge[] = [];
  const pattern =
    /new\s+URL\(\s*["'`]([^"'`]*\.ts)["'`]\s*,\s*import\.meta\.url/g;
  for (const match of source.matchAll(pattern)) {
    const specifier = match[1] ?? "";
    const to = new URL(specifier, `file:///${from}`).pathname.slice(1);
    edges.push({ from, to, specifier });
  }
  return edges;
}

const SKIPPED_FOLDERS: ReadonlySet<string> = new Set([
  ".git",
  ".cache",
  "coverage",
  "node_modules",
]);

async function sources(root: URL, folder: string = ""): Promise<string[]> {
  const paths: string[] = [];
  for await (const entry of Deno.readDir(new URL(folder, root))) {
    const path = folder + entry.name;
    if (entry.isDirectory && !SKIPPED_FOLDERS.has(entry.name)) {
      paths.push(...await sources(root, `${path}/`));
    } else if (entry.isFile && entry.name.endsWith(".ts")) {
      paths.push(path);
    }
  }
  return paths.sort();
}

async function readGraph(
  root: URL,
  paths: readonly string[],
): Promise<ModuleGraph> {
  const entry = await Deno.makeTempFile({ suffix: ".ts" });
  try {
    const imports = paths.map((path) =>
      `import ${JSON.stringify(new URL(path, root).href)};\n`
    );
    await Deno.writeTextFile(entry, imports.join(""));
    const command = new Deno.Command(Deno.execPath(), {
      args: [
        "info",
        "--json",
        "--quiet",
        "--no-config",
        "--no-lock",
        "--no-npm",
        "--no-remote",
        entry,
      ],
    });
    const { success, stdout, stderr } = await command.output();
    if (!success) {
      throw new Error(
        `Cannot read the module graph: ${new TextDecoder().decode(stderr)}`,
      );
    }
    return JSON.parse(new TextDecoder().decode(stdout)) as ModuleGraph;
  } finally {
    await Deno.remove(entry);
  }
}

async function main(): Promise<number> {
  const root = new URL("../", import.meta.url);
  const paths = await sources(root);
  const edges = edgesOf(await readGraph(root, paths), root.href);
  for (const path of paths) {
    edges.push(...urlEdges(path, await Deno.readTextFile(new URL(path, root))));
  }
  const lines = violations(edges);
  for (const line of lines) console.log(line);
  console.log(
    `layers: ${paths.length} modules, ${edges.length} imports, ${lines.length} violations`,
  );
  return lines.length === 0 ? 0 : 1;
}

if (import.meta.main) Deno.exit(await main());
