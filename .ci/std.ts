/**
 * Says how to resolve the test dependencies on this machine.
 *
 * Prints nothing where `jsr:@std/assert` can be imported, so that `deno.json` decides, and `--import-map=.ci/offline.json` where it
 * cannot, so that tests run on a machine that reaches npm only. Meant for command substitution: `deno test -A $(deno run -A .ci/std.ts)`.
 *
 * @module
 */

// deno-lint-ignore-file no-console

/** How long the registry may take before the fallback is used, in milliseconds. */
const REGISTRY_TIMEOUT_MS = 4000;

/** Not a literal, so that it is resolved when it is imported and not when this file is loaded. */
const specifier: string = ["jsr:", "@std/assert@1"].join("");

async function registryAnswers(): Promise<boolean> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const timeout = new Promise<boolean>((resolve) => {
    timer = setTimeout(() => resolve(false), REGISTRY_TIMEOUT_MS);
  });
  const attempt = import(specifier).then(() => true, () => false);
  try {
    return await Promise.race([attempt, timeout]);
  } finally {
    clearTimeout(timer);
  }
}

if (!await registryAnswers()) console.log("--import-map=.ci/offline.json");
Deno.exit(0); // an attempt that timed out may still be under way
