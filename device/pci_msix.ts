import { FieldReader } from "./snapshot.ts";
import {
  PCI_MSIX_ENTRY_CTRL_MASKBIT,
  PCI_MSIX_ENTRY_SIZE,
  VIRTIO_MSI_NO_VECTOR,
} from "./virtio_pci.ts";

/** What an emulator that takes messages in place of an interrupt line offers. */
export type PciMsixOptions = {
  /** Vectors, 2 to 2048. */
  vectors: number;
  /**
   * Sends a message: `data`, a u32, is written to `address`, as the guest has set vector `vector` up.
   * `address` is exact below 2^53. It is the guest's choice: one that is no place for interrupts, such as a
   * BAR, is to be ignored. Called in the middle of the device's work, as the interrupt line is driven.
   */
  message: (address: number, data: number, vector: number) => void;
};

const WORDS = PCI_MSIX_ENTRY_SIZE / 4;
const ADDRESS_HIGH = 1;
const DATA = 2;
const CONTROL = 3;

/**
 * The table of MSI-X and its pending bits (PCI Local Bus 3.0, 6.8.2): what is fired while it is masked is
 * pending, and sent when it is not masked any more.
 */
export class MsixTable {
  /** Vectors; 0 where the emulator offers none. */
  readonly vectors: number;
  /** Bytes of the table. */
  readonly tableBytes: number;
  /** Bytes of the pending bits. */
  readonly pendingBytes: number;

  readonly #message: PciMsixOptions["message"] | null;
  // Little-endian, as the machine is: see GuestMemory.
  readonly #words: Uint32Array;
  readonly #bytes: Uint8Array;
  readonly #pending: Uint8Array;
  #open = false;

  /**
   * Makes a table whose vectors are all masked.
   *
   * @throws {RangeError} when there cannot be so many vectors.
   */
  constructor(options: PciMsixOptions | undefined) {
    const vectors = options?.vectors ?? 0;
    const lawful = Number.isInteger(vectors) && vectors >= 2 && vectors <= 2048;
    if (options !== undefined && !lawful) {
      throw new RangeError(
        `Cannot offer ${vectors} vectors: not 2 to 2048`,
      );
    }
    this.vectors = vectors;
    this.#message = options?.message ?? null;
    this.tableBytes = vectors * PCI_MSIX_ENTRY_SIZE;
    this.pendingBytes = Math.ceil(vectors / 64) * 8;
    this.#words = new Uint32Array(vectors * WORDS);
    this.#bytes = new Uint8Array(this.#words.buffer);
    this.#pending = new Uint8Array(this.pendingBytes);
    this.reset();
  }

  /** Masks all vectors and forgets what they were set to. */
  reset(): void {
    this.#words.fill(0);
    for (let vector = 0; vector < this.vectors; vector++) {
      this.#words[vector * WORDS + CONTROL] = PCI_MSIX_ENTRY_CTRL_MASKBIT;
    }
    this.#pending.fill(0);
  }

  /** Lets messages through, or keeps them pending. */
  open(open: boolean): void {
    this.#open = open;
    if (!open) return;
    for (let vector = 0; vector < this.vectors; vector++) this.#flush(vector);
  }

  /** Sends the message of `vector`, or notes that it is due; nothing for one that there is not. */
  fire(vector: number): void {
    if (vector === VIRTIO_MSI_NO_VECTOR || vector >= this.vectors) return;
    this.#pending[vector >> 3]! |= 1 << (vector & 7);
    this.#flush(vector);
  }

  #flush(vector: number): void {
    const bit = 1 << (vector & 7);
    if ((this.#pending[vector >> 3]! & bit) === 0 || !this.#open) return;
    const words = this.#words;
    const at = vector * WORDS;
    if ((words[at + CONTROL]! & PCI_MSIX_ENTRY_CTRL_MASKBIT) !== 0) return;
    this.#pending[vector >> 3]! &= ~bit;
    const address = words[at + ADDRESS_HIGH]! * 0x100000000 + words[at]!;
    this.#message!(address, words[at + DATA]!, vector);
  }

  /** Reads `width` bytes of the table, which lie inside it. */
  readTable(at: number, width: number): number {
    return little(this.#bytes, at, width);
  }

  /** Reads `width` of the pending bits' bytes, which lie inside them. */
  readPending(at: number, width: number): number {
    return little(this.#pending, at, width);
  }

  /** Writes `width` bytes of the table, which lie inside it. */
  writeTable(at: number, width: number, value: number): void {
    const words = this.#words;
    for (let i = 0; i < width; i++) this.#bytes[at + i] = value >>> (8 * i);
    const first = Math.floor(at / PCI_MSIX_ENTRY_SIZE);
    const last = Math.floor((at + width - 1) / PCI_MSIX_ENTRY_SIZE);
    for (let vector = first; vector <= last; vector++) {
      words[vector * WORDS]! &= ~3;
      words[vector * WORDS + CONTROL]! &= PCI_MSIX_ENTRY_CTRL_MASKBIT;
      this.#flush(vector);
    }
  }

  /** The table and the pending bits, as plain data. */
  save(): MsixSnapshot {
    return { table: [...this.#words], pending: [...this.#pending] };
  }

  /**
   * Checks what `save` returned for a table of the same size, and returns what goes on from it.
   *
   * @throws {SnapshotError} `CONTENT`.
   */
  prepareRestore(saved: unknown): () => void {
    const fields = new FieldReader(saved, "msix");
    const words = fields.integers("table", this.#words.length, 0xffffffff);
    const pending = fields.integers("pending", this.pendingBytes, 0xff);
    for (const [at, word] of words.entries()) {
      const column = at % WORDS;
      if (
        (column === 0 && word % 4 !== 0) ||
        (column === CONTROL && word > PCI_MSIX_ENTRY_CTRL_MASKBIT)
      ) {
        throw fields.bad("table", "no table that a guest can have written");
      }
    }
    for (let vector = this.vectors; vector < pending.length * 8; vector++) {
      if ((pending[vector >> 3]! & 1 << (vector & 7)) !== 0) {
        throw fields.bad("pending", "of a vector that there is not");
      }
    }
    return () => {
      this.#words.set(words);
      this.#pending.set(pending);
    };
  }
}

/** A table of MSI-X as plain data. */
export type MsixSnapshot = {
  /** Four u32 for each vector. */
  table: number[];
  /** Bytes of the pending bits. */
  pending: number[];
};

/** The number that stands little-endian in `width` bytes, unsigned. */
export function little(bytes: Uint8Array, at: number, width: number): number {
  let value = 0;
  for (let i = width - 1; i >= 0; i--) value = value * 256 + bytes[at + i]!;
  return value;
}
