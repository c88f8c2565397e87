import {
  type InflightRegion,
  inflightRegionSize,
  openInflight,
} from "../../ring/inflight.ts";
import type { GuestMemory } from "../../ring/memory.ts";
import type { QueueConfig, RingFormat } from "../../ring/queue.ts";
import { VIRTQ_MAX_SIZE } from "../../ring/virtio_ring.ts";
import { VhostUserError } from "./errors.ts";
import { type InflightDescription, parseInflight } from "./message.ts";
import type { MappedMemory, SessionPorts } from "./ports.ts";
import type { ReceivedFds } from "./_received_fds.ts";

/** Where a queue region has its version, a u16, in both formats. */
const VERSION_OFFSET = 8;
/** The version of the regions; 0 is one that was not set up yet. */
const VERSION = 1;
/** The first words of a region are 64-bit. */
const OFFSET_ALIGNMENT = 8;

/** Memory with the regions of `numQueues` queues of up to `queueSize` descriptors. */
type InflightArea = {
  mapping: MappedMemory | null;
  bytes: Uint8Array;
  numQueues: number;
  queueSize: number;
};

const NOTHING: InflightArea = {
  mapping: null,
  bytes: new Uint8Array(0),
  numQueues: 0,
  queueSize: 0,
};

/**
 * The memory of a session's in-flight regions, one for each of its first queues, which the front-end
 * keeps for the next back-end ("Inflight I/O tracking"). Without it rings are not tracked.
 */
export class InflightMemory {
  readonly #ports: SessionPorts;
  #area: InflightArea = NOTHING;

  /** Has no memory yet. */
  constructor(ports: SessionPorts) {
    this.#ports = ports;
  }

  /**
   * GET_INFLIGHT_FD: makes memory for regions that are not set up, all of it zero, and returns what to tell
   * of it and the descriptor to send, which is the caller's. Nothing is tracked in it before it comes
   * back. With `format` null, which is a front-end that asks before it accepts features, there is room for
   * either.
   *
   * @throws {VhostUserError} when the request cannot be served.
   */
  allocate(
    payload: Uint8Array,
    format: RingFormat | null,
    queueCount: number,
  ): { description: InflightDescription; fd: number } {
    const { numQueues, queueSize } = parseInflight(payload);
    checkShape("VHOST_USER_GET_INFLIGHT_FD", numQueues, queueSize, queueCount);
    const mmapSize = numQueues *
      inflightRegionSize(format ?? "packed", queueSize);
    const { memory, fd } = this.#ports.allocate(mmapSize);
    memory.release();
    return {
      description: { mmapSize, mmapOffset: 0, numQueues, queueSize },
      fd,
    };
  }

  /**
   * SET_INFLIGHT_FD: maps memory that the front-end has kept, for {@link InflightMemory.moveTo}.
   *
   * @throws {VhostUserError} when it cannot be what a back-end has left.
   */
  map(
    payload: Uint8Array,
    fds: ReceivedFds,
    format: RingFormat | null,
    queueCount: number,
  ): InflightArea {
    const section = "VHOST_USER_SET_INFLIGHT_FD";
    const { mmapSize, mmapOffset, numQueues, queueSize } = parseInflight(
      payload,
    );
    checkShape(section, numQueues, queueSize, queueCount);
    fds.expect(1, section);
    const least = numQueues * inflightRegionSize(format ?? "split", queueSize);
    if (mmapSize < least || mmapOffset % OFFSET_ALIGNMENT !== 0) {
      throw new VhostUserError(
        "BAD_INFLIGHT_REGION",
        section,
        `Cannot take the in-flight regions of ${numQueues} queues of ${queueSize}: ${mmapSize} bytes at offset ${mmapOffset}, not ${least} at a multiple of ${OFFSET_ALIGNMENT}`,
      );
    }
    // No more than can be used, whatever the front-end says.
    const most = numQueues * inflightRegionSize("packed", queueSize);
    const size = Math.min(mmapSize, most);
    const mapping = this.#ports.map(fds.take(), size, mmapOffset);
    const bytes = new Uint8Array(mapping.buffer, 0, size);
    try {
      if (format !== null) checkVersions(bytes, format, numQueues, queueSize);
    } catch (error) {
      mapping.release();
      throw error;
    }
    return { mapping, bytes, numQueues, queueSize };
  }

  /** Goes over to other memory. No queue is tracked in the one before, which is released. */
  moveTo(area: InflightArea): void {
    const old = this.#area;
    this.#area = area;
    old.mapping?.release();
  }

  /** Tells whether there is a region for queue `index`. */
  covers(index: number): boolean {
    return index < this.#area.numQueues;
  }

  /**
   * The region of queue `index`, which is at `config` in `memory`; null where there is none. Touches neither.
   *
   * @throws {VhostUserError} when it has no room for the queue.
   * @throws {RingError} when there is no such queue.
   */
  open(
    index: number,
    format: RingFormat,
    memory: GuestMemory,
    config: QueueConfig,
  ): InflightRegion | null {
    if (!this.covers(index)) return null;
    const { queueSize, bytes } = this.#area;
    const stride = inflightRegionSize(format, queueSize);
    const end = (index + 1) * stride;
    if (config.size > queueSize || end > bytes.length) {
      throw new VhostUserError(
        "BAD_INFLIGHT_REGION",
        "Inflight I/O tracking",
        `Cannot start ring ${index}, ${format}, of ${config.size} descriptors: its in-flight region is for ${queueSize}, and ends at byte ${end} of ${bytes.length}`,
      );
    }
    return openInflight(
      format,
      bytes.subarray(end - stride, end),
      memory,
      config,
    );
  }

  /** Gives the memory back; no queue is tracked in it any more. */
  release(): void {
    this.moveTo(NOTHING);
  }
}

function checkShape(
  section: string,
  numQueues: number,
  queueSize: number,
  queueCount: number,
): void {
  const queues = numQueues >= 1 && numQueues <= queueCount;
  if (queues && queueSize >= 1 && queueSize <= VIRTQ_MAX_SIZE) return;
  throw new VhostUserError(
    "BAD_VALUE",
    section,
    `Cannot track ${numQueues} queues of ${queueSize} descriptors: not 1 to ${queueCount} of 1 to ${VIRTQ_MAX_SIZE}`,
  );
}

// What else can be wrong shows when a ring starts.
function checkVersions(
  bytes: Uint8Array,
  format: RingFormat,
  numQueues: number,
  queueSize: number,
): void {
  const stride = inflightRegionSize(format, queueSize);
  for (let index = 0; index < numQueues; index++) {
    const at = index * stride + VERSION_OFFSET;
    const version = bytes[at]! | bytes[at + 1]! << 8;
    if (version <= VERSION) continue;
    throw new VhostUserError(
      "BAD_INFLIGHT_REGION",
      "VHOST_USER_SET_INFLIGHT_FD",
      `Cannot take the in-flight region of queue ${index}: its version is ${version}, not ${VERSION} or 0`,
    );
  }
}
