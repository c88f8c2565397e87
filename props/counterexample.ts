/**
 * Scripts on which a property did not hold, as one word or as a file.
 *
 * @module
 */

import { type Finding, hashOf } from "./campaign.ts";
import type {
  AnyScript,
  NamedProperty,
  ScriptFailure,
} from "./queue_properties.ts";
import type { QueueRun } from "./queue_steps.ts";

/** A script to be taken again. */
export type KeptScript = {
  /** Name of the property. */
  readonly property: string;
  readonly script: AnyScript;
};

/** What a file tells besides its script. */
export type CounterexampleNotes = {
  /** Which bug it shows, in a sentence. */
  readonly about?: string;
  /** The planted bug on which it fails. */
  readonly plant?: string;
};

/** What is wrong with a file, in a line. */
export class KeptFileError extends Error {
  /** @param message What is wrong. */
  constructor(message: string) {
    super(message);
    this.name = "KeptFileError";
  }
}

/** What the first line of a counterexample's file says. */
export const COUNTEREXAMPLE_KIND = "ringside-counterexample";
const VERSION = 1;
/** Bytes of the longest file that is read. */
const MAX_TEXT = 16 << 20;

/** A script as one word for `--replay`. */
export function encodeToken(name: string, script: AnyScript): string {
  return btoa(JSON.stringify({ name, script })).replaceAll("=", "");
}

/** What {@link encodeToken} made; undefined where it is no such word. */
export function decodeToken(token: string): KeptScript | undefined {
  try {
    const { name, script } = JSON.parse(atob(token));
    return typeof name === "string" && isScript(script)
      ? { property: name, script }
      : undefined;
  } catch {
    return undefined;
  }
}

/** Whether the value can be a script: a set-up and steps, each an object that says what to do. */
export function isScript(value: unknown): value is AnyScript {
  return isObject(value) && isObject(value.setup) &&
    Array.isArray(value.steps) &&
    value.steps.every((step) => isObject(step) && typeof step.do === "string");
}

/** Whether the value is an object with members by name. */
export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * Text of a file that keeps a script, in the form that `deno fmt` gives it.
 *
 * @param notes What is told besides.
 */
export function encodeCounterexample(
  property: string,
  script: AnyScript,
  { invariant, message, lines }: Pick<
    Finding,
    "invariant" | "message" | "lines"
  >,
  { about = "", plant }: CounterexampleNotes = {},
): string {
  const value = {
    kind: COUNTEREXAMPLE_KIND,
    version: VERSION,
    about,
    ...plant === undefined ? {} : { plant },
    property,
    invariant,
    message,
    script,
    lines,
  };
  return `${formatJson(value, "")}\n`;
}

/**
 * Reads what {@link encodeCounterexample} wrote.
 *
 * @throws {KeptFileError} If it is no such text.
 */
export function decodeCounterexample(
  text: string,
): KeptScript & CounterexampleNotes {
  const value = parseJson(text);
  if (!isObject(value) || value.kind !== COUNTEREXAMPLE_KIND) {
    throw new KeptFileError("it is no counterexample");
  }
  const { version, property, script, about, plant } = value;
  if (version !== VERSION) {
    throw new KeptFileError(`its version is ${JSON.stringify(version)}`);
  }
  if (typeof property !== "string") {
    throw new KeptFileError("it names no property");
  }
  if (!isScript(script)) throw new KeptFileError("it holds no script");
  if (typeof about !== "string") {
    throw new KeptFileError("it does not say what it is about");
  }
  if (plant === undefined) return { property, script, about };
  if (typeof plant !== "string") {
    throw new KeptFileError("it does not name its planted bug");
  }
  return { property, script, about, plant };
}

/**
 * Parses the text of a file.
 *
 * @throws {KeptFileError} If it is too long, or no JSON.
 */
export function parseJson(text: string): unknown {
  if (text.length > MAX_TEXT) throw new KeptFileError("it is too long");
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new KeptFileError(`it is no JSON (${(error as Error).message})`);
  }
}

/**
 * Takes a kept script again.
 *
 * @throws {KeptFileError} If there is no such property, or a step is none of its own.
 * @throws {ScriptFailure} If an invariant does not hold.
 */
export function replayScript(
  { property: name, script }: KeptScript,
  properties: readonly NamedProperty[],
): QueueRun {
  const property = properties.find((one) => one.name === name);
  if (property === undefined) {
    throw new KeptFileError(`there is no property ${JSON.stringify(name)}`);
  }
  return property.replay(script);
}

/** Name of the file for a script: the property, and a hash, so that the same script has the same name. */
export function counterexampleName(
  property: string,
  script: AnyScript,
): string {
  const hash = hashOf(JSON.stringify([property, script])) >>> 0;
  const word = hash.toString(16).padStart(8, "0");
  return `counterexample-${property.replaceAll(/[^\w-]+/g, "-")}-${word}.json`;
}

/** A script that failed, in words: the set-up, the steps, what was seen, and how to take it again. */
export function failureLines(
  name: string,
  finding: Omit<Finding, "batch" | "seed"> | ScriptFailure,
): string[] {
  const { invariant, message, lines, script } = finding;
  const out = [`${name} does not hold: ${invariant}`];
  if (script !== null) {
    const setup = Object.entries(script.setup).map(([key, value]) =>
      `${key} ${typeof value === "object" ? JSON.stringify(value) : value}`
    );
    out.push(`  set up: ${setup.join(", ")}`);
  }
  const steps = script === null ? 0 : script.steps.length;
  for (const [i, line] of lines.entries()) {
    const number = i < steps ? `${i + 1}.` : "then";
    out.push(`  ${number.padStart(4)} ${line}`);
  }
  out.push(`  => ${message}`);
  if (script !== null) {
    out.push(
      `${steps} step${steps === 1 ? "" : "s"}. Take it again:`,
      `  deno task props --replay ${encodeToken(name, script)}`,
    );
  }
  return out;
}

const LINE_WIDTH = 80;

/** JSON in which whatever fits into a line takes one; `used` is what the line has already. */
function formatJson(value: unknown, indent: string, used = 0): string {
  const line = flatJson(value);
  const fits = indent.length + used + line.length < LINE_WIDTH;
  if (typeof value !== "object" || value === null) return line;
  if (fits && indent !== "") return line;
  const inner = `${indent}  `;
  const items = Array.isArray(value)
    ? value.map((one) => inner + formatJson(one, inner))
    : Object.entries(value).map(([key, one]) => {
      const name = `${JSON.stringify(key)}: `;
      return inner + name + formatJson(one, inner, name.length);
    });
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  return `${open}\n${items.join(",\n")}\n${indent}${close}`;
}

function flatJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(flatJson).join(", ")}]`;
  if (!isObject(value)) return JSON.stringify(value);
  const members = Object.entries(value).map(([key, one]) =>
    `${JSON.stringify(key)}: ${flatJson(one)}`
  );
  return members.length === 0 ? "{}" : `{ ${members.join(", ")} }`;
}
