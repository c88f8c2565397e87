/**
 * Checks that `mod.ts` runs where there is no Deno.
 *
 * First it is type-checked with the browser's declarations only, then it is bundled for browsers and the bundle is evaluated in a global scope
 * without `Deno` and `process`.
 *
 * Takes another entry than `mod.ts` as its argument; exits with code 1 and says why if the entry is not fit for a browser.
 *
 * @module
 */

// deno-lint-ignore-file no-console

const COMPILER_OPTIONS: Record<string, unknown> = {
  lib: ["dom", "dom.iterable", "dom.asynciterable", "esnext"],
  types: [],
  strict: true,
  noUncheckedIndexedAccess: true,
};

/** Evaluated by a Worker, so that nothing of this process is in reach except what is deleted first. */
const WORKER_SOURCE: string = `
delete globalThis.Deno;
delete globalThis.process;
self.onmessage = async (event) => {
  try {
    if ("Deno" in globalThis || "process" in globalThis) throw new Error("the scope still has Deno");
    const url = URL.createObjectURL(new Blob([event.data], { type: "text/javascript" }));
    const module = await import(url);
    self.postMessage({ names: Object.keys(module) });
  } catch (error) {
    self.postMessage({ error: String(error) });
  }
};
`;

async function run(args: readonly string[]): Promise<string | undefined> {
  const command = new Deno.Command(Deno.execPath(), {
    args: [...args],
    env: { NO_COLOR: "1" },
  });
  const { success, stdout, stderr } = await command.output();
  if (success) return undefined;
  const decoder = new TextDecoder();
  return (decoder.decode(stdout) + decoder.decode(stderr)).trim();
}

/** Names that the bundle exports, or what went wrong. */
function evaluate(
  bundle: string,
): Promise<{ names?: string[]; error?: string }> {
  const url = URL.createObjectURL(
    new Blob([WORKER_SOURCE], { type: "text/javascript" }),
  );
  const worker = new Worker(url, { type: "module" });
  return new Promise<{ names?: string[]; error?: string }>((resolve) => {
    worker.onmessage = (event) => resolve(event.data);
    worker.onerror = (event) => {
      event.preventDefault();
      resolve({ error: event.message });
    };
    worker.postMessage(bundle);
  }).finally(() => {
    worker.terminate();
    URL.revokeObjectURL(url);
  });
}

/** What keeps `entry` (a path) out of a browser, or undefined and the number of its exports. */
export async function checkBrowser(
  entry: string,
): Promise<{ fault?: string; exports: number }> {
  const folder = await Deno.makeTempDir();
  try {
    const config = `${folder}/deno.json`;
    await Deno.writeTextFile(
      config,
      JSON.stringify({ compilerOptions: COMPILER_OPTIONS, lock: false }),
    );
    const types = await run(["check", "--quiet", "--config", config, entry]);
    if (types !== undefined) return { fault: types, exports: 0 };
    const output = `${folder}/bundle.js`;
    const bundling = await run([
      "bundle",
      "--quiet",
      "--config",
      config,
      "--platform",
      "browser",
      "--output",
      output,
      entry,
    ]);
    if (bundling !== undefined) return { fault: bundling, exports: 0 };
    const bundle = await Deno.readTextFile(output);
    const left = /^import\b.*$|\bimport\(\s*["'].*$/m.exec(bundle);
    if (left !== null) {
      return { fault: `the bundle still imports: ${left[0]}`, exports: 0 };
    }
    const { names, error } = await evaluate(bundle);
    if (names === undefined) return { fault: error ?? "no answer", exports: 0 };
    if (names.length === 0) return { fault: "nothing is exported", exports: 0 };
    return { exports: names.length };
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

async function main(): Promise<number> {
  const root = new URL("../", import.meta.url).pathname;
  const entry = Deno.args[0] ?? `${root}mod.ts`;
  try {
    await Deno.stat(entry);
  } catch {
    console.log(`browser: ${entry} does not exist`);
    return 1;
  }
  const { fault, exports } = await checkBrowser(entry);
  console.log(
    fault === undefined
      ? `browser: ${exports} exports, no Deno needed`
      : `browser: not fit for a browser\n${fault}`,
  );
  return fault === undefined ? 0 : 1;
}

if (import.meta.main) Deno.exit(await main());
