import { FieldReader } from "./snapshot.ts";

const NONE = -1;

/** A field that was written in part, as plain data. */
export type FieldPartsSnapshot = {
  /** Where it begins; -1 where none was. */
  start: number;
  /** Which of its bytes have come, a mask. */
  bytes: number;
  /** What they are, little-endian. */
  value: number;
};

/**
 * Gathers a field of up to 4 bytes that is written in parts, as by an emulator that splits accesses. There
 * is one at a time: a write to another field drops what had come.
 */
export class FieldParts {
  /** What was gathered when {@link FieldParts.add} says that all has come. */
  value = 0;

  #start = NONE;
  #bytes = 0;

  /** Forgets what has come. */
  drop(): void {
    this.#start = NONE;
    this.#bytes = 0;
    this.value = 0;
  }

  /**
   * Takes `width` bytes of `value` for the field of `size` bytes at `start`, from its byte `at` on; true when
   * that is the last of them.
   */
  add(
    start: number,
    size: number,
    at: number,
    width: number,
    value: number,
  ): boolean {
    if (start !== this.#start) this.drop();
    const mask = (2 ** (8 * width) - 1) << (8 * at);
    this.#start = start;
    this.#bytes |= ((1 << width) - 1) << at;
    this.value = ((this.value & ~mask) | ((value << (8 * at)) & mask)) >>> 0;
    if (this.#bytes !== (1 << size) - 1) return false;
    this.#start = NONE;
    this.#bytes = 0;
    return true;
  }

  /** What has come. */
  save(): FieldPartsSnapshot {
    return { start: this.#start, bytes: this.#bytes, value: this.value };
  }

  /**
   * Checks what `save` returned in another instance, and returns what goes on from it.
   *
   * @throws {SnapshotError} `CONTENT`.
   */
  prepareRestore(saved: unknown): () => void {
    const fields = new FieldReader(saved, "parts");
    const start = fields.integer("start", NONE, 0x7fffffff);
    const bytes = fields.integer("bytes", 0, 0b1111);
    const value = fields.u32("value");
    return () => {
      this.#start = start;
      this.#bytes = bytes;
      this.value = value;
    };
  }
}
