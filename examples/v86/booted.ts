/**
 * A machine whose kernel has booted and has not loaded the device's driver: booted once, kept in the cache.
 *
 * @module
 */

import { cacheFolder } from "../../props/guest/vm/kernel.ts";
import { Machine } from "./machine.ts";
import { machineParts, type Parts, type Progress, sha256 } from "./parts.ts";

/** What the guest's first process says when it can be saved. */
const READY = "RINGSIDE-READY";
/** Booted machines in the cache, 39 MB each. */
const KEPT = 3;
const BOOT_TIMEOUT_MS = 180_000;

/** A machine to go on with, as a file, and what it is made of. */
export type BootedMachine = {
  /** The parts. */
  parts: Parts;
  /** The file, for {@link Machine.restore}. */
  file: Uint8Array<ArrayBuffer>;
};

/**
 * Boots a machine, or reads the one that was booted before from the cache.
 *
 * @param progress Told what takes a while.
 * @throws {Error} when something is missing, or the guest does not come up.
 */
export async function bootedMachine(
  progress: Progress = () => {},
): Promise<BootedMachine> {
  const parts = await machineParts(progress);
  const key = (await sha256(new TextEncoder().encode(parts.key))).slice(0, 16);
  const path = `${cacheFolder()}/v86/booted-${key}`;
  try {
    return { parts, file: await Deno.readFile(path) };
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  progress("booting Linux (10 to 30 s, once)");
  const file = await boot(parts);
  const work = await Deno.makeTempFile({ dir: `${cacheFolder()}/v86` });
  await Deno.writeFile(work, file);
  await Deno.rename(work, path);
  await forgetOld();
  return { parts, file };
}

/** Machines that were booted for what was here before; other checkouts have theirs. */
async function forgetOld(): Promise<void> {
  const found: { path: string; time: number }[] = [];
  for await (const { name } of Deno.readDir(`${cacheFolder()}/v86`)) {
    if (!name.startsWith("booted-")) continue;
    const path = `${cacheFolder()}/v86/${name}`;
    const info = await Deno.stat(path).catch(() => null);
    found.push({ path, time: info?.mtime?.getTime() ?? 0 });
  }
  found.sort((a, b) => b.time - a.time);
  for (const { path } of found.slice(KEPT)) {
    await Deno.remove(path).catch(() => {});
  }
}

async function boot(parts: Parts): Promise<Uint8Array<ArrayBuffer>> {
  let said = "";
  let ready = (): void => {};
  const readiness = new Promise<void>((resolve) => ready = resolve);
  await using machine = await Machine.boot({
    build: parts.build,
    serial: (byte) => {
      said += String.fromCharCode(byte);
      if (said.endsWith(READY)) ready();
    },
  }, await parts.image());
  await machine.run();
  let timer: ReturnType<typeof setTimeout> | undefined;
  try {
    await Promise.race([
      readiness,
      new Promise((_, reject) => {
        timer = setTimeout(
          () => reject(new Error(`Cannot boot the guest: it said ${said}`)),
          BOOT_TIMEOUT_MS,
        );
      }),
    ]);
  } finally {
    clearTimeout(timer);
  }
  await machine.stop();
  return await machine.save({ device: false });
}
