import { duplicateFd, Mapping } from "../../device/host/mmap.ts";
import { closeFd } from "../../device/host/socket.ts";
import {
  VHOST_USER_GET_INFLIGHT_FD,
  VHOST_USER_SET_INFLIGHT_FD,
} from "../../device/vhost_user/constants.ts";
import {
  encodeInflight,
  type InflightDescription,
  parseInflight,
} from "../../device/vhost_user/message.ts";
import { inflightRegionSize } from "../../ring/inflight.ts";
import type { RingFormat } from "../../ring/queue.ts";
import { FrontEndError, type VhostUserChannel } from "./vhost_user_channel.ts";

/** Bytes of a queue region's header, and of each entry; an entry begins with its in-flight flag. */
const UNIT_BYTES = { split: 16, packed: 32 } as const;

/** In-flight regions that a front-end keeps for its back-ends. */
export class InflightFile {
  readonly #fd: number;
  readonly #mapping: Mapping;
  readonly #description: InflightDescription;

  /**
   * Asks a back-end for them.
   *
   * @throws {FrontEndError} when it has none to give.
   */
  constructor(channel: VhostUserChannel, numQueues: number, queueSize: number) {
    const { payload, fds } = channel.exchange(
      VHOST_USER_GET_INFLIGHT_FD,
      encodeInflight({ mmapSize: 0, mmapOffset: 0, numQueues, queueSize }),
    );
    const description = parseInflight(payload);
    const { mmapSize, mmapOffset } = description;
    const [fd] = fds;
    if (mmapSize === 0 || fd === undefined || fds.length !== 1) {
      for (const fd of fds) closeFd(fd);
      throw new FrontEndError(
        `Cannot keep buffers in flight: ${mmapSize} bytes in ${fds.length} files`,
      );
    }
    this.#fd = fd;
    this.#description = description;
    this.#mapping = new Mapping(duplicateFd(fd), mmapSize, mmapOffset);
  }

  /** Hands them to a back-end by `tell`. */
  send(
    tell: (request: number, payload: Uint8Array, fds: number[]) => void,
  ): void {
    const payload = encodeInflight(this.#description);
    tell(VHOST_USER_SET_INFLIGHT_FD, payload, [this.#fd]);
  }

  /** Buffers of queue `index` that are noted as in flight. */
  inFlight(index: number, format: RingFormat): number {
    const { queueSize } = this.#description;
    const unit = UNIT_BYTES[format];
    const start = index * inflightRegionSize(format, queueSize) + unit;
    const bytes = new Uint8Array(this.#mapping.buffer);
    let count = 0;
    for (let entry = 0; entry < queueSize; entry++) {
      count += bytes[start + entry * unit]!;
    }
    return count;
  }

  /** Gives them back. */
  close(): void {
    this.#mapping.release();
    closeFd(this.#fd);
  }
}
