import type { Registers } from "./_registers.ts";
import { FieldReader } from "./snapshot.ts";
import {
  VIRTIO_MSI_NO_VECTOR,
  VIRTIO_PCI_COMMON_ADM_Q_IDX,
  VIRTIO_PCI_COMMON_ADM_Q_NUM,
  VIRTIO_PCI_COMMON_CFGGENERATION,
  VIRTIO_PCI_COMMON_DF,
  VIRTIO_PCI_COMMON_DFSELECT,
  VIRTIO_PCI_COMMON_GF,
  VIRTIO_PCI_COMMON_GFSELECT,
  VIRTIO_PCI_COMMON_MSIX,
  VIRTIO_PCI_COMMON_NUMQ,
  VIRTIO_PCI_COMMON_Q_AVAIL_STATE,
  VIRTIO_PCI_COMMON_Q_AVAILHI,
  VIRTIO_PCI_COMMON_Q_AVAILLO,
  VIRTIO_PCI_COMMON_Q_DESCHI,
  VIRTIO_PCI_COMMON_Q_DESCLO,
  VIRTIO_PCI_COMMON_Q_ENABLE,
  VIRTIO_PCI_COMMON_Q_MSIX,
  VIRTIO_PCI_COMMON_Q_NDATA,
  VIRTIO_PCI_COMMON_Q_NOFF,
  VIRTIO_PCI_COMMON_Q_RESET,
  VIRTIO_PCI_COMMON_Q_SELECT,
  VIRTIO_PCI_COMMON_Q_SIZE,
  VIRTIO_PCI_COMMON_Q_USED_STATE,
  VIRTIO_PCI_COMMON_Q_USEDHI,
  VIRTIO_PCI_COMMON_Q_USEDLO,
  VIRTIO_PCI_COMMON_STATUS,
} from "./virtio_pci.ts";

/** Bytes of the fields of the common configuration, in their order; a le64 is two fields. */
const SIZES: readonly number[] = [
  ...[4, 4, 4, 4, 2, 2, 1, 1, 2, 2, 2, 2, 2],
  ...[4, 4, 4, 4, 4, 4, 2, 2, 2, 2, 4, 4],
];
/** First offset of the field at each offset. */
const STARTS: readonly number[] = SIZES.flatMap((size, i) => {
  const start = SIZES.slice(0, i).reduce((sum, before) => sum + before, 0);
  return Array.from({ length: size }, () => start);
});
/** Bytes of the field at each offset. */
const WIDTHS: readonly number[] = SIZES.flatMap((size) =>
  Array.from({ length: size }, () => size)
);

/** The common configuration as plain data, without what all transports have. */
export type PciCommonSnapshot = {
  /** Vector of configuration changes, 0xffff for none. */
  configVector: number;
  /** Vectors of the queues, likewise. */
  queueVectors: number[];
  /** The field `config_generation`. */
  generation: number;
  /** The device's own generation when the driver last read its configuration. */
  readAt: number;
};

/**
 * The common configuration of a virtio device on a PCI bus (virtio 1.4, 4.1.4.3): which field is where, and
 * what it does.
 */
export class PciCommon {
  /** Vector of configuration changes. */
  configVector: number = VIRTIO_MSI_NO_VECTOR;
  /** Vectors of the queues. */
  readonly queueVectors: Uint16Array;

  readonly #registers: Registers;
  readonly #vectors: number;
  // It has 8 bits, so that it must not simply count: 256 changes would go unnoticed. It changes when the
  // driver reads a configuration that has changed since it read the last time.
  #generation = 0;
  #readAt = 0;

  /** Makes the fields before `registers`, on a function with so many vectors. */
  constructor(registers: Registers, vectors: number) {
    this.#registers = registers;
    this.#vectors = vectors;
    this.queueVectors = new Uint16Array(registers.virtio.queueCount)
      .fill(VIRTIO_MSI_NO_VECTOR);
  }

  /** Resets the device and all that its driver has written. */
  reset(): void {
    this.configVector = VIRTIO_MSI_NO_VECTOR;
    this.queueVectors.fill(VIRTIO_MSI_NO_VECTOR);
    this.#registers.reset();
  }

  /** The driver is about to read configuration of the device: a change since the last time shows. */
  noticeConfig(): void {
    const { configGeneration } = this.#registers.virtio;
    if (configGeneration === this.#readAt) return;
    this.#readAt = configGeneration;
    this.#generation = (this.#generation + 1) & 0xff;
  }

  /** Where the field at `offset` begins. */
  start(offset: number): number {
    return STARTS[offset]!;
  }

  /** Bytes of the field that begins at `start`. */
  size(start: number): number {
    return WIDTHS[start]!;
  }

  /** Reads `width` bytes at `offset`, which lie inside. */
  read(offset: number, width: number): number {
    if (STARTS[offset + width - 1] === offset) {
      return cut(this.#readField(offset), 0, width);
    }
    let value = 0;
    for (let i = 0; i < width; i++) {
      const first = STARTS[offset + i]!;
      const byte = cut(this.#readField(first), offset + i - first, 1);
      value += byte * 2 ** (8 * i);
    }
    return value;
  }

  #readField(start: number): number {
    const registers = this.#registers;
    const { virtio, queueSelect: index, queueExists } = registers;
    switch (start) {
      case VIRTIO_PCI_COMMON_DFSELECT:
        return registers.deviceFeatureSelect;
      case VIRTIO_PCI_COMMON_DF:
        return registers.deviceFeatures;
      case VIRTIO_PCI_COMMON_GFSELECT:
        return registers.driverFeatureSelect;
      case VIRTIO_PCI_COMMON_GF:
        return registers.driverFeatures;
      case VIRTIO_PCI_COMMON_MSIX:
        return this.configVector;
      case VIRTIO_PCI_COMMON_NUMQ:
        return virtio.queueCount;
      case VIRTIO_PCI_COMMON_STATUS:
        return virtio.status;
      case VIRTIO_PCI_COMMON_CFGGENERATION:
        return this.#generation;
      case VIRTIO_PCI_COMMON_Q_SELECT:
        return index;
      case VIRTIO_PCI_COMMON_Q_SIZE:
        return registers.queueSize;
      case VIRTIO_PCI_COMMON_Q_MSIX:
        return this.queueVectors[index] ?? VIRTIO_MSI_NO_VECTOR;
      case VIRTIO_PCI_COMMON_Q_ENABLE:
        return registers.queueReady ? 1 : 0;
      case VIRTIO_PCI_COMMON_Q_NOFF:
        return queueExists ? index : 0;
      case VIRTIO_PCI_COMMON_Q_NDATA:
        return queueExists ? virtio.queueNotifConfigData(index) : 0;
      case VIRTIO_PCI_COMMON_Q_RESET:
        // A queue is reset before the write that asks for it returns.
        return 0;
      case VIRTIO_PCI_COMMON_Q_AVAIL_STATE:
        return registers.readState("available");
      case VIRTIO_PCI_COMMON_Q_USED_STATE:
        return registers.readState("used");
      case VIRTIO_PCI_COMMON_ADM_Q_IDX:
      case VIRTIO_PCI_COMMON_ADM_Q_NUM:
        return 0;
      default:
        return registers.area((start - VIRTIO_PCI_COMMON_Q_DESCLO) / 4);
    }
  }

  /** Writes the field that begins at `start`. */
  write(start: number, value: number): void {
    const registers = this.#registers;
    switch (start) {
      case VIRTIO_PCI_COMMON_DFSELECT:
        registers.deviceFeatureSelect = value;
        return;
      case VIRTIO_PCI_COMMON_GFSELECT:
        registers.driverFeatureSelect = value;
        return;
      case VIRTIO_PCI_COMMON_GF:
        registers.writeDriverFeatures(value);
        return;
      case VIRTIO_PCI_COMMON_MSIX:
        this.configVector = this.#vector(value);
        return;
      case VIRTIO_PCI_COMMON_STATUS:
        if (value === 0) this.reset();
        else registers.writeStatus(value);
        return;
      case VIRTIO_PCI_COMMON_Q_SELECT:
        registers.queueSelect = value;
        return;
      case VIRTIO_PCI_COMMON_Q_SIZE:
        registers.writeQueueSize(value, !registers.packed);
        return;
      case VIRTIO_PCI_COMMON_Q_MSIX:
        if (!registers.needQueue()) return;
        this.queueVectors[registers.queueSelect] = this.#vector(value);
        return;
      case VIRTIO_PCI_COMMON_Q_ENABLE:
        if (!registers.needQueue()) return;
        if (value === 1) registers.writeReady(true);
        else registers.refused("queue", "queue_enable takes 1");
        return;
      case VIRTIO_PCI_COMMON_Q_RESET:
        if (!registers.needQueue()) return;
        if (value !== 1) {
          registers.refused("queue", "queue_reset takes 1");
        } else if (registers.resetQueue()) {
          this.queueVectors[registers.queueSelect] = VIRTIO_MSI_NO_VECTOR;
        }
        return;
      case VIRTIO_PCI_COMMON_Q_AVAIL_STATE:
        registers.writeState("available", value);
        return;
      case VIRTIO_PCI_COMMON_Q_USED_STATE:
        registers.writeState("used", value);
        return;
      case VIRTIO_PCI_COMMON_Q_DESCLO:
      case VIRTIO_PCI_COMMON_Q_DESCHI:
      case VIRTIO_PCI_COMMON_Q_AVAILLO:
      case VIRTIO_PCI_COMMON_Q_AVAILHI:
      case VIRTIO_PCI_COMMON_Q_USEDLO:
      case VIRTIO_PCI_COMMON_Q_USEDHI:
        registers.writeArea((start - VIRTIO_PCI_COMMON_Q_DESCLO) / 4, value);
        return;
      default:
        registers.refused(
          "write",
          `the field at offset 0x${start.toString(16)} is read-only`,
        );
    }
  }

  /** The vector that an event is mapped to when the driver asks for `value` (4.1.5.1.2). */
  #vector(value: number): number {
    if (value === VIRTIO_MSI_NO_VECTOR || value < this.#vectors) {
      return value;
    }
    this.#registers.refused(
      "vector",
      `vector ${value} of ${this.#vectors}`,
    );
    return VIRTIO_MSI_NO_VECTOR;
  }

  /** What its fields hold beside the registers. */
  save(): PciCommonSnapshot {
    return {
      configVector: this.configVector,
      queueVectors: [...this.queueVectors],
      generation: this.#generation,
      readAt: this.#readAt,
    };
  }

  /**
   * Checks what `save` returned in another instance, and returns what goes on from it.
   *
   * @throws {SnapshotError} `CONTENT`.
   */
  prepareRestore(saved: unknown): () => void {
    const fields = new FieldReader(saved, "common");
    const configVector = fields.integer("configVector", 0, 0xffff);
    const queueVectors = fields.integers(
      "queueVectors",
      this.queueVectors.length,
      0xffff,
    );
    const lawful = [configVector, ...queueVectors].every((vector) =>
      vector === VIRTIO_MSI_NO_VECTOR || vector < this.#vectors
    );
    if (!lawful) {
      throw fields.bad("queueVectors", "of a vector that there is not");
    }
    const generation = fields.integer("generation", 0, 0xff);
    const readAt = fields.u32("readAt");
    return () => {
      this.#generation = generation;
      this.#readAt = readAt;
      this.configVector = configVector;
      this.queueVectors.set(queueVectors);
    };
  }
}

/** `width` bytes of a 32-bit value, from byte `at` on. */
export function cut(value: number, at: number, width: number): number {
  const part = value >>> (8 * at);
  return width === 4 ? part >>> 0 : part & (2 ** (8 * width) - 1);
}
