/**
 * What tests do where the programs for a real guest are missing.
 *
 * @module
 */

// deno-lint-ignore-file no-console

import { cachedKernel } from "./kernel.ts";
import { missingPrograms, missingWords, type VmKind } from "./programs.ts";

/**
 * Whether a test must be left out. If so, a line `SKIPPED (reason)` is printed; with
 * `RINGSIDE_REQUIRE_GUESTS=1` in the environment nothing may be left out.
 *
 * @param reason Why it cannot run; `undefined` if it can.
 * @throws {Error} If it cannot run and must.
 */
export function skipped(reason: string | undefined): boolean {
  if (reason === undefined) return false;
  if (Deno.env.get("RINGSIDE_REQUIRE_GUESTS") === "1") {
    throw new Error(`Cannot leave this test out: ${reason}`);
  }
  console.log(`SKIPPED (${reason})`);
  return true;
}

/**
 * {@linkcode skipped} for tests that boot a guest.
 *
 * @param vm The machine that it boots.
 * @throws {Error} If it cannot boot and must.
 */
export async function skippedWithout(vm: VmKind): Promise<boolean> {
  const missing = missingPrograms(
    vm,
    vm === "qemu" && await cachedKernel() !== undefined,
  );
  return skipped(
    missing.length === 0 ? undefined : `${vm}: ${missingWords(missing)}`,
  );
}
