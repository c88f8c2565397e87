/**
 * A machine in one file: the emulator's state and that of all beside it.
 *
 * Layout, little-endian: 8 bytes of magic, u32 version, u32 bytes of the description (JSON, UTF-8), u32 bytes
 * of the emulator's state, 4 bytes of zero, a checksum (SHA-256 of the bytes before it and of the SHA-256 of those after it), the description, the state.
 *
 * Works in a browser.
 *
 * @module
 */

import { type Plain, SnapshotError } from "../../device/snapshot.ts";

/** Version of the files that this code writes, and the only one that it reads. */
export const FILE_VERSION = 1;

const MAGIC = new TextEncoder().encode("RINGVM\r\n");
const CHECKSUM = 24;
const HEADER_BYTES = 56;

/** What is in a file. */
export type SnapshotContent = {
  /** All but the emulator's state. */
  description: Plain;
  /** The emulator's state. */
  state: Uint8Array<ArrayBuffer>;
};

/** Writes a file. */
export async function writeSnapshot(
  content: SnapshotContent,
): Promise<Uint8Array<ArrayBuffer>> {
  const description = new TextEncoder().encode(
    JSON.stringify(content.description),
  );
  const { state } = content;
  const file = new Uint8Array(HEADER_BYTES + description.length + state.length);
  const view = new DataView(file.buffer);
  file.set(MAGIC);
  view.setUint32(8, FILE_VERSION, true);
  view.setUint32(12, description.length, true);
  view.setUint32(16, state.length, true);
  file.set(description, HEADER_BYTES);
  file.set(state, HEADER_BYTES + description.length);
  file.set(await checksumOf(file), CHECKSUM);
  return file;
}

/**
 * Reads a file.
 *
 * @throws {SnapshotError} when it is none, of another version, cut, or edited.
 */
export async function readSnapshot(
  file: Uint8Array<ArrayBuffer>,
): Promise<SnapshotContent> {
  if (
    file.length < MAGIC.length ||
    MAGIC.some((byte, i) => file[i] !== byte)
  ) {
    throw new SnapshotError("CONTENT", "the file is no snapshot of a machine");
  }
  if (file.length < HEADER_BYTES) {
    throw new SnapshotError(
      "CHECKSUM",
      `the file was cut: it has ${file.length} bytes, its header alone ${HEADER_BYTES}`,
    );
  }
  const view = new DataView(file.buffer, file.byteOffset, file.length);
  const version = view.getUint32(8, true);
  if (version !== FILE_VERSION) {
    throw new SnapshotError(
      "VERSION",
      `the file is of version ${version}, this program reads version ${FILE_VERSION}`,
    );
  }
  const described = view.getUint32(12, true);
  const expected = HEADER_BYTES + described + view.getUint32(16, true);
  if (file.length !== expected) {
    throw new SnapshotError(
      "CHECKSUM",
      `the file was cut or has grown: it has ${file.length} bytes, its header says ${expected}`,
    );
  }
  const sum = await checksumOf(file);
  if (sum.some((byte, i) => byte !== file[CHECKSUM + i])) {
    throw new SnapshotError(
      "CHECKSUM",
      "the file was edited: its checksum is of something else",
    );
  }
  const text = file.subarray(HEADER_BYTES, HEADER_BYTES + described);
  try {
    return {
      description: JSON.parse(new TextDecoder().decode(text)) as Plain,
      state: file.subarray(HEADER_BYTES + described),
    };
  } catch {
    throw new SnapshotError("CONTENT", "its description is no JSON");
  }
}

/** SHA-256 of a file without the place of its checksum. */
async function checksumOf(
  file: Uint8Array<ArrayBuffer>,
): Promise<Uint8Array<ArrayBuffer>> {
  const before = file.slice(0, CHECKSUM);
  const after = await digest(file.subarray(HEADER_BYTES));
  const both = new Uint8Array(CHECKSUM + after.length);
  both.set(before);
  both.set(after, CHECKSUM);
  return await digest(both);
}

async function digest(
  bytes: Uint8Array<ArrayBuffer>,
): Promise<Uint8Array<ArrayBuffer>> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
}
