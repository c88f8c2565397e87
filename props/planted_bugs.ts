import { applyEdit, type Plant, PlantError } from "./planted.ts";
import type { PlantedFinding } from "./planted_run.ts";

/** What became of a planted bug. */
export type PlantedResult = {
  plant: Plant;
  /** How long the properties took, with the start of the process. */
  seconds: number;
  /** What they found; a text where they came to no end. */
  outcome: PlantedFinding | string;
};

/** Folders whose sources the properties need. */
const FOLDERS = ["ring", "device", "props"];
/** Seconds beyond the properties' own that a process may take to start and to shrink what it found. */
const GRACE_SECONDS = 20;

/** Whether a property found it. */
export function isKilled({ outcome }: PlantedResult): boolean {
  return typeof outcome !== "string" && outcome.failure !== null;
}

/**
 * Plants a bug in a temporary copy of the sources at `root`, and runs the properties there for up to
 * `seconds`.
 *
 * @throws {PlantError} when an edit does not apply exactly once.
 */
export async function runPlant(
  plant: Plant,
  root: URL,
  seconds: number,
  seed: number,
): Promise<PlantedResult> {
  const copy = await Deno.makeTempDir({ prefix: "planted-" });
  try {
    await plantInCopy(plant, root, copy);
    const started = performance.now();
    const isIn = (path: RegExp) =>
      plant.edits.every(({ file }) => path.test(file));
    const near = isIn(/^device\/vsock\//)
      ? "vsock"
      : isIn(/inflight/)
      ? "inflight"
      : "";
    const outcome = await runProperties(copy, seconds, seed, near);
    return { plant, seconds: (performance.now() - started) / 1000, outcome };
  } finally {
    await Deno.remove(copy, { recursive: true });
  }
}

/**
 * Copies the sources at `root` to the folder `copy`, and plants a bug there.
 *
 * @throws {PlantError} when an edit does not apply exactly once.
 */
export async function plantInCopy(
  plant: Plant,
  root: URL,
  copy: string,
): Promise<void> {
  await copySources(root, copy);
  for (const edit of plant.edits) {
    const path = `${copy}/${edit.file}`;
    const text = await Deno.readTextFile(path).catch(() => {
      throw new PlantError(
        `Cannot plant ${plant.name}: there is no ${edit.file}`,
      );
    });
    await Deno.writeTextFile(path, applyEdit(plant.name, edit, text));
  }
}

async function runProperties(
  copy: string,
  seconds: number,
  seed: number,
  near: string,
): Promise<PlantedFinding | string> {
  const limit = AbortSignal.timeout((seconds + GRACE_SECONDS) * 1000);
  const command = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--quiet", "--config", `${copy}/deno.json`]
      .concat(
        `${copy}/props/planted_run.ts`,
        String(seconds),
        String(seed),
        near,
      ),
    stdout: "piped",
    stderr: "piped",
    signal: limit,
  });
  const { success, stdout, stderr } = await command.output();
  const decoder = new TextDecoder();
  if (success) return JSON.parse(decoder.decode(stdout)) as PlantedFinding;
  if (limit.aborted) return "the properties came to no end";
  return `the properties did not run: ${decoder.decode(stderr).trim()}`;
}

/** Copies what the properties need of the sources at `root` into the folder `copy`. */
export async function copySources(root: URL, copy: string): Promise<void> {
  await Deno.copyFile(new URL("deno.json", root), `${copy}/deno.json`);
  for (const folder of FOLDERS) await copyFolder(root, copy, folder);
}

async function copyFolder(
  root: URL,
  copy: string,
  folder: string,
): Promise<void> {
  await Deno.mkdir(`${copy}/${folder}`);
  for await (
    const { name, isDirectory } of Deno.readDir(new URL(folder, root))
  ) {
    const path = `${folder}/${name}`;
    if (isDirectory) await copyFolder(root, copy, path);
    else if (name.endsWith(".ts") && !name.endsWith("_test.ts")) {
      await Deno.copyFile(new URL(path, root), `${copy}/${path}`);
    }
  }
}
