/**
 * Prints the names of the tests that some files register, as JSON: `{ "ring/x_test.ts": ["name", ...] }`.
 *
 * It imports them and notes what they pass to `Deno.test`, so that names made in a loop are seen as the runner sees them; no test runs.
 * Paths are relative to the root of the repository. The answer is the last line of the output, as a module may print while it loads.
 *
 * @module
 */

// deno-lint-ignore-file no-console

const root = new URL("../", import.meta.url);

let names: string[] = [];

/** Stands in for `Deno.test`, whose name is its first argument, or a property or the name of that. */
function note(first: unknown): void {
  if (typeof first === "string") names.push(first);
  else names.push((first as { name: string }).name);
}

const hooks = {
  beforeAll() {},
  afterAll() {},
  beforeEach() {},
  afterEach() {},
};
Object.assign(Deno, {
  test: Object.assign(note, { ignore: note, only: note }, hooks),
});

const found: Record<string, string[]> = {};
for (const path of Deno.args) {
  names = [];
  await import(new URL(path, root).href);
  found[path] = names;
}
console.log(JSON.stringify(found));
Deno.exit(0);
