/** What can be wrong with a snapshot. */
export type SnapshotErrorCode =
  /** It was made by another version of this format. */
  | "VERSION"
  /** It is not what was saved: truncated or edited. */
  | "CHECKSUM"
  /** It says something that no device can have saved. */
  | "CONTENT"
  /** It is whole, but this device cannot go on from it. */
  | "MISMATCH";

/**
 * A snapshot that a device cannot go on from. The device is as it was before.
 */
export class SnapshotError extends Error {
  /** The class's name. */
  override readonly name = "SnapshotError";
  /** What is wrong. */
  readonly code: SnapshotErrorCode;

  /** Makes an error of `code`, with words for the operator. */
  constructor(code: SnapshotErrorCode, message: string) {
    super(`Cannot restore the snapshot: ${message}`);
    this.code = code;
  }
}

/** A plain value: what survives JSON. */
export type Plain = null | boolean | number | string | Plain[] | {
  [key: string]: Plain;
};

/**
 * Checksum of a plain value, as 16 hexadecimal digits, whatever the order of its keys.
 *
 * It tells a snapshot that was cut or edited by accident from a whole one (FNV-1a over two lanes
 * of 32 bits); it is no protection against somebody who computes it anew.
 */
export function checksum(value: Plain): string {
  let low = 0x811c9dc5;
  let high = 0xc9dc5118;
  const text = canonical(value);
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i);
    low = Math.imul(low ^ unit, 0x01000193);
    high = Math.imul(high ^ unit ^ (low >>> 15), 0x01000193);
  }
  return hex(high) + hex(low);
}

/** Adds a version and a checksum to plain data; {@link unseal} takes it back. */
export function seal<T>(
  version: number,
  content: T,
): { version: number; checksum: string } & T {
  return { version, checksum: checksum(content as Plain), ...content };
}

/**
 * Copies an untrusted value that {@link seal} made, so that nobody changes it after its checks, and
 * returns it with those of version and checksum done.
 *
 * @throws {SnapshotError} `CONTENT` when it is no plain data, `VERSION`, or `CHECKSUM`.
 */
export function unseal(value: unknown, version: number): FieldReader {
  let copy: unknown;
  try {
    copy = JSON.parse(JSON.stringify(value));
  } catch {
    throw new SnapshotError("CONTENT", "it is no plain data");
  }
  const fields = new FieldReader(copy, "snapshot");
  const made = fields.any("version");
  if (made !== version) {
    const which = typeof made === "number" ? `version ${made}` : "no version";
    throw new SnapshotError(
      "VERSION",
      `it is of ${which}, this device reads version ${version}`,
    );
  }
  const { version: _version, checksum: expected, ...content } = copy as {
    [key: string]: Plain;
  };
  let found: string;
  try {
    found = checksum(content);
  } catch {
    throw new SnapshotError("CONTENT", "it is nested too deeply");
  }
  if (found !== expected) {
    throw new SnapshotError(
      "CHECKSUM",
      "it was cut or edited: its checksum is of something else",
    );
  }
  return fields;
}

function hex(value: number): string {
  return (value >>> 0).toString(16).padStart(8, "0");
}

function canonical(value: Plain): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (typeof value === "object" && value !== null) {
    const keys = Object.keys(value).sort();
    return `{${
      keys.map((key) => `${JSON.stringify(key)}:${canonical(value[key]!)}`)
        .join(",")
    }}`;
  }
  return JSON.stringify(value);
}

/**
 * Reads an untrusted plain object: each field is taken once, checked, and named in the error.
 */
export class FieldReader {
  readonly #what: string;
  readonly #fields: { readonly [key: string]: unknown };

  /**
   * Reads the fields of `value`, which is called `what` in errors.
   *
   * @throws {SnapshotError} `CONTENT` when it is no object.
   */
  constructor(value: unknown, what: string) {
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      throw new SnapshotError("CONTENT", `${what} is no object`);
    }
    this.#what = what;
    this.#fields = value as { [key: string]: unknown };
  }

  /** The field as it is. */
  any(name: string): unknown {
    return Object.hasOwn(this.#fields, name) ? this.#fields[name] : undefined;
  }

  /** An integer from `min` to `max`. */
  integer(name: string, min: number, max: number): number {
    const value = this.any(name);
    if (
      !Number.isInteger(value) || (value as number) < min ||
      (value as number) > max
    ) {
      throw this.bad(name, `no integer from ${min} to ${max}`);
    }
    return value as number;
  }

  /** A u32. */
  u32(name: string): number {
    return this.integer(name, 0, 0xffffffff);
  }

  /** An array of exactly `length` integers from 0 to `max`. */
  integers(name: string, length: number, max: number): number[] {
    const values = this.array(name, length);
    const lawful = values.every((value) =>
      Number.isInteger(value) && (value as number) >= 0 &&
      (value as number) <= max
    );
    if (!lawful || values.length !== length) {
      throw this.bad(name, `no array of ${length} integers from 0 to ${max}`);
    }
    return values as number[];
  }

  /** True or false. */
  boolean(name: string): boolean {
    const value = this.any(name);
    if (typeof value !== "boolean") {
      throw this.bad(name, "neither true nor false");
    }
    return value;
  }

  /** A string. */
  string(name: string): string {
    const value = this.any(name);
    if (typeof value !== "string") throw this.bad(name, "no string");
    return value;
  }

  /** One of some strings. */
  oneOf<T extends string>(name: string, values: readonly T[]): T {
    const value = this.string(name);
    const found = values.find((one) => one === value);
    if (found === undefined) {
      throw this.bad(name, `none of ${values.join(", ")}`);
    }
    return found;
  }

  /** An array of at most `max` entries. */
  array(name: string, max: number): unknown[] {
    const value = this.any(name);
    if (!Array.isArray(value)) throw this.bad(name, "no array");
    if (value.length > max) {
      throw this.bad(name, `an array of more than ${max}`);
    }
    return [...value];
  }

  /** An array of at most `max` u32. */
  u32s(name: string, max: number): number[] {
    const values = this.array(name, max);
    for (const value of values) {
      if (
        !Number.isInteger(value) || (value as number) < 0 ||
        (value as number) > 0xffffffff
      ) {
        throw this.bad(name, "no array of u32");
      }
    }
    return values as number[];
  }

  /** Bytes, in base64, at most `max` of them. */
  bytes(name: string, max: number): Uint8Array<ArrayBuffer> {
    const text = this.string(name);
    if (text.length > Math.ceil(max / 3) * 4) {
      throw this.bad(name, `more than ${max} bytes`);
    }
    let bytes: Uint8Array<ArrayBuffer>;
    try {
      bytes = bytesOfBase64(text);
    } catch {
      throw this.bad(name, "no base64");
    }
    if (bytes.length > max) throw this.bad(name, `more than ${max} bytes`);
    return bytes;
  }

  /** An error about a field. */
  bad(name: string, problem: string): SnapshotError {
    return new SnapshotError("CONTENT", `${this.#what}.${name} is ${problem}`);
  }
}

/**
 * Bytes of a base64 text that {@link base64} made.
 *
 * @throws {Error} when it is none.
 */
export function bytesOfBase64(text: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(atob(text), (unit) => unit.charCodeAt(0));
}

/** Bytes as base64, for a snapshot. */
export function base64(bytes: Uint8Array): string {
  let binary = "";
  // In pieces, since the arguments of a call are limited.
  for (let at = 0; at < bytes.length; at += 8192) {
    binary += String.fromCharCode(...bytes.subarray(at, at + 8192));
  }
  return btoa(binary);
}
