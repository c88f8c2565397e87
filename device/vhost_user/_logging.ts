import { VIRTIO_F_EVENT_IDX } from "../../ring/virtio_ring.ts";
import type { DeviceQueue } from "../../ring/queue.ts";
import { LoggedQueue } from "../logged_queue.ts";
import { featureMask, type VirtioDevice } from "../virtio_device.ts";
import { DirtyLog } from "./dirty_log.ts";
import type { MappedMemory } from "./ports.ts";

const NOTHING = new Uint8Array(0);

/**
 * Whether and where a session logs dirty pages: it does so while VHOST_F_LOG_ALL is accepted and there
 * is a log. Only then stands a {@link LoggedQueue} before each of the device's queues.
 */
export class Logging {
  /** VHOST_F_LOG_ALL is accepted. */
  wanted = false;

  readonly #device: VirtioDevice;
  readonly #logAddress: (index: number) => number;
  readonly #log: DirtyLog = new DirtyLog(NOTHING);
  readonly #queues: Map<number, LoggedQueue> = new Map();
  #mapping: MappedMemory | null = null;
  #active = false;

  /** `logAddress` tells where the ring of a queue is logged: see {@link LoggedQueue.logRing}. */
  constructor(device: VirtioDevice, logAddress: (index: number) => number) {
    this.#device = device;
    this.#logAddress = logAddress;
  }

  /** True while pages are logged. */
  get active(): boolean {
    return this.#active;
  }

  /** True when there is a log. */
  get hasLog(): boolean {
    return this.#mapping !== null;
  }

  /** Takes over a log, or takes it away with null; the one before is released. */
  setLog(mapping: MappedMemory | null): void {
    const old = this.#mapping;
    this.#mapping = mapping;
    if (mapping !== null) this.#log.moveTo(new Uint8Array(mapping.buffer));
    this.#update();
    if (mapping === null) this.#log.moveTo(NOTHING);
    this.#tell();
    old?.release();
  }

  /** Notes whether VHOST_F_LOG_ALL is accepted. */
  setWanted(wanted: boolean): void {
    this.wanted = wanted;
    this.#update();
  }

  /** Notes that the ring of queue `index` is logged elsewhere, or no more. */
  ringChanged(index: number): void {
    this.#queues.get(index)?.logRing(this.#logAddress(index));
  }

  /** Ends logging and releases the log. */
  close(): void {
    this.setWanted(false);
    this.setLog(null);
  }

  #update(): void {
    const active = this.wanted && this.#mapping !== null;
    if (active === this.#active) return;
    this.#active = active;
    const { diagnostics } = this.#device;
    if (active) {
      this.#device.wrapQueues((index, queue) => this.#wrap(index, queue));
      diagnostics.log("info", "writes to guest memory are logged from now on");
    } else {
      this.#device.wrapQueues(null);
      this.#queues.clear();
      this.#tell();
      diagnostics.log("info", "writes to guest memory are not logged any more");
    }
  }

  #wrap(index: number, queue: DeviceQueue): DeviceQueue {
    const { features } = this.#device;
    const logged = new LoggedQueue(queue, this.#log, {
      descriptorArea: this.#device.queueSetup(index).descriptorArea,
      eventIdx: (features & featureMask(VIRTIO_F_EVENT_IDX)) !== 0n,
      logAddress: this.#logAddress(index),
    });
    this.#queues.set(index, logged);
    return logged;
  }

  // A log that is too small is the front-end's mistake, and loses pages at the target.
  #tell(): void {
    const pages = this.#log.pagesBeyond;
    if (pages === 0) return;
    this.#log.pagesBeyond = 0;
    this.#device.diagnostics.fault(
      "vhost_user_log_too_small",
      () => `${pages} pages that were written lie beyond the log's end`,
    );
  }
}
