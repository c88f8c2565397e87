import { RingError } from "../../ring/errors.ts";
import type { InflightRegion } from "../../ring/inflight.ts";
import type { QueueState, RingFormat } from "../../ring/queue.ts";
import { rewindInFlight } from "../../ring/save.ts";
import { readUsedIdx } from "../../ring/split_device.ts";
import {
  checkQueueState,
  decodeVringBase,
  encodeVringBase,
  initialQueueState,
} from "../../ring/state.ts";
import { TrackedQueue } from "../../ring/tracked_queue.ts";
import { VIRTQ_MAX_SIZE } from "../../ring/virtio_ring.ts";
import type { QueueSetup, VirtioDevice } from "../virtio_device.ts";
import { VHOST_VRING_F_LOG_MASK } from "./constants.ts";
import { VhostUserError } from "./errors.ts";
import type { InflightMemory } from "./_inflight.ts";
import { MemoryTable } from "./memory_table.ts";
import type { VringAddresses, VringState } from "./message.ts";
import type { SessionPorts } from "./ports.ts";
import {
  hasUntouchedDescriptor,
  isFreshRing,
  PACKED_INITIAL_BASE,
  ringInMemory,
} from "../ring_position.ts";

const LOG_FLAG = VHOST_VRING_F_LOG_MASK;
/** Addresses are numbers below it. */
const NUMBER_LIMIT = 1n << 53n;

/** What {@link Vrings} needs to know of its session. */
export type VringsContext = {
  /** Makes sure that the device has features, just before a ring starts. */
  beforeStart(): void;
  /** Carries an interrupt as a message, where that was negotiated. */
  callInBand(index: number): void;
  /** Whether dirty pages can be logged: VHOST_USER_PROTOCOL_F_LOG_SHMFD was negotiated. */
  canLog(): boolean;
  /** Where buffers in flight are noted. */
  readonly inflight: InflightMemory;
};

/** Where a ring stood, and lay, when it was last stopped, and whether it was a new one no more. */
type Stop = { base: number; setup: QueueSetup; lived: boolean };

type Vring = {
  /** 0 until it is told, like the next two. */
  size: number;
  addresses: VringAddresses | null;
  base: number | null;
  /** As SET_VRING_ENABLE says; null where it never came. */
  enabled: boolean | null;
  /** SET_VRING_KICK came: the ring starts as soon as everything is there. */
  kicked: boolean;
  hasKick: boolean;
  hasCall: boolean;
  hasErr: boolean;
  /** The model has had the queue since its start. */
  used: boolean;
  /** It started as a new ring, so that no interrupt can have been lost. */
  fresh: boolean;
  /** Its buffers in flight are noted in a region. */
  tracked: boolean;
  /** Where it stood when it was stopped after use. */
  stop: Stop | null;
};

function newVring(): Vring {
  return {
    size: 0,
    addresses: null,
    base: null,
    enabled: null,
    kicked: false,
    hasKick: false,
    hasCall: false,
    hasErr: false,
    used: false,
    fresh: false,
    tracked: false,
    stop: null,
  };
}

/**
 * The life of the rings of a session ("Ring states").
 *
 * What a front-end tells of a ring is collected in any order. The ring starts when its size, addresses
 * and base are known, SET_VRING_KICK has come, the features are accepted, and memory holds it; it
 * stops at GET_VRING_BASE. A ring whose memory is taken away is stopped where it stands and started
 * again when the memory is back. A ring that is running but disabled can be set up anew without
 * GET_VRING_BASE, as a front-end does that disables rings at the end of a driver and nothing else.
 *
 * A ring with an in-flight region goes on from what that says, unless the ring is new: the base
 * that a front-end gives after a crash is what it can find out, if anything. A split ring without a
 * region goes on where nothing is in flight, so at the index of its used ring, to which QEMU sets the base
 * when a back-end has gone without a word; any other base means that buffers were lost, and is refused.
 */
export class Vrings {
  /** Bit 30 was negotiated: rings are disabled at first. */
  disabledAtFirst = false;
  /** SET_FEATURES has come: rings may start. */
  ready = false;
  /** Where rings are looked up. */
  table: MemoryTable = new MemoryTable();

  readonly #device: VirtioDevice;
  readonly #ports: SessionPorts;
  readonly #context: VringsContext;
  readonly #rings: Vring[];

  /** Takes the device's queues, none of which runs. */
  constructor(
    device: VirtioDevice,
    ports: SessionPorts,
    context: VringsContext,
  ) {
    this.#device = device;
    this.#ports = ports;
    this.#context = context;
    this.#rings = Array.from({ length: device.queueCount }, newVring);
  }

  /** True when some ring is in the model's hands. */
  get anyActive(): boolean {
    return this.#rings.some((ring, index) => this.#active(ring, index));
  }

  /** True when some ring runs without a descriptor for kicks, so that it has to be polled. */
  get polling(): boolean {
    return this.#rings.some((ring, index) =>
      !ring.hasKick && this.#active(ring, index)
    );
  }

  /** SET_VRING_NUM. */
  setSize({ index, num }: VringState): void {
    const ring = this.#ring(index, "VHOST_USER_SET_VRING_NUM");
    if (num < 1 || num > VIRTQ_MAX_SIZE) {
      throw new VhostUserError(
        "BAD_VALUE",
        "VHOST_USER_SET_VRING_NUM",
        `Cannot give ring ${index} ${num} descriptors: not 1 to ${VIRTQ_MAX_SIZE}`,
      );
    }
    this.#change(ring, index, ring.size !== num);
    ring.size = num;
    this.#start(ring, index);
  }

  /** SET_VRING_ADDR. */
  setAddresses(addresses: VringAddresses): void {
    const { index } = addresses;
    const section = "VHOST_USER_SET_VRING_ADDR";
    const ring = this.#ring(index, section);
    const { flags, log } = addresses;
    if (flags !== 0 && (flags !== LOG_FLAG || !this.#context.canLog())) {
      throw new VhostUserError(
        "BAD_VALUE",
        section,
        `Cannot set the addresses of ring ${index}: flags 0x${
          flags.toString(16)
        } were not negotiated`,
      );
    }
    if (flags !== 0 && log >= NUMBER_LIMIT) {
      throw new VhostUserError(
        "NUMBER_TOO_LARGE",
        section,
        `Cannot log ring ${index} at 0x${log.toString(16)}: it is 2^53 or more`,
      );
    }
    const old = ring.addresses;
    const changed = old === null || old.descriptor !== addresses.descriptor ||
      old.used !== addresses.used || old.available !== addresses.available;
    // Where it is logged, a ring is told while it runs.
    if (changed || logAddressOf(old) === logAddressOf(addresses)) {
      this.#change(ring, index, changed);
    }
    ring.addresses = addresses;
    this.#start(ring, index);
  }

  /** Guest address at which ring `index` is logged; -1 where it is not. */
  logAddress(index: number): number {
    return logAddressOf(this.#rings[index]?.addresses ?? null);
  }

  /** SET_VRING_BASE. */
  setBase({ index, num }: VringState): void {
    const section = "VHOST_USER_SET_VRING_BASE";
    const ring = this.#ring(index, section);
    if (this.ready) {
      this.#checkBase(ring, index, num);
    }
    this.#change(ring, index, true);
    ring.base = num;
    this.#start(ring, index);
  }

  /** GET_VRING_BASE: stops the ring, whose memory is not touched after this returns. */
  getBase(index: number): number {
    const ring = this.#ring(index, "VHOST_USER_GET_VRING_BASE");
    this.#halt(ring, index);
    this.#unkick(ring, index);
    return ring.base ??
      (this.#device.ringFormat === "packed" ? PACKED_INITIAL_BASE : 0);
  }

  /** SET_VRING_KICK with a descriptor, or -1 for a ring that is to be polled. */
  setKick(index: number, fd: number): void {
    const ring = this.#rings[index]!;
    // False while it is not certain that the ports take it; the old one is gone in any case.
    ring.hasKick = false;
    this.#ports.setKick(index, fd);
    ring.hasKick = fd >= 0;
    this.start(index);
    this.kick(index);
  }

  /** Starts a ring as SET_VRING_KICK and VRING_KICK do, or as soon as it is complete. */
  start(index: number): void {
    const ring = this.#rings[index]!;
    ring.kicked = true;
    this.#start(ring, index, true);
  }

  /** SET_VRING_CALL with a descriptor or -1. */
  setCall(index: number, fd: number): void {
    const ring = this.#rings[index]!;
    // False while it is not certain that the ports take it; the old one is gone in any case.
    ring.hasCall = false;
    this.#ports.setCall(index, fd);
    ring.hasCall = fd >= 0;
    // What was signalled to the descriptor before may have been lost with it.
    if (fd >= 0 && this.#active(ring, index)) this.#ports.call(index);
  }

  /** SET_VRING_ERR with a descriptor or -1. */
  setErr(index: number, fd: number): void {
    const ring = this.#rings[index]!;
    ring.hasErr = false;
    this.#ports.setErr(index, fd);
    ring.hasErr = fd >= 0;
  }

  /** SET_VRING_ENABLE. */
  setEnabled({ index, num }: VringState): void {
    const section = "VHOST_USER_SET_VRING_ENABLE";
    const ring = this.#ring(index, section);
    if (num > 1) {
      throw new VhostUserError(
        "BAD_VALUE",
        section,
        `Cannot enable ring ${index} with ${num}: not 0 or 1`,
      );
    }
    ring.enabled = num === 1;
    this.#applyEnabled(ring, index);
  }

  /** A kick of ring `index`; ignored where it is not in use. */
  kick(index: number): void {
    const ring = this.#rings[index];
    if (ring !== undefined && this.#active(ring, index)) {
      this.#device.kick(index);
    }
  }

  /** An interrupt for ring `index`. */
  interrupt(index: number): void {
    if (this.#rings[index]?.hasCall) this.#ports.call(index);
    else this.#context.callInBand(index);
  }

  /** Whether ring `index` has a descriptor for errors. */
  hasErr(index: number): boolean {
    return this.#rings[index]?.hasErr === true;
  }

  /** Looks at rings that have no descriptor for kicks. */
  poll(): void {
    for (const [index, ring] of this.#rings.entries()) {
      if (!ring.hasKick) this.kick(index);
    }
  }

  /** Stops the rings that `table` does not hold, before the device moves to it. */
  leaveMemory(table: MemoryTable): void {
    for (const [index, ring] of this.#rings.entries()) {
      if (!this.#device.queueRunning(index)) continue;
      const setup = this.#device.queueSetup(index);
      if (ringInMemory(table.memory, this.#device.ringFormat, setup)) continue;
      this.#device.diagnostics.fault(
        "vhost_user_ring_without_memory",
        () =>
          `ring ${index} runs in memory that the front-end takes away; it is stopped until the memory is back`,
      );
      this.#halt(ring, index);
    }
  }

  /** Starts what has become complete by something that is not told to one ring. */
  startComplete(): void {
    for (const [index, ring] of this.#rings.entries()) {
      try {
        this.#start(ring, index);
      } catch (error) {
        if (!(error instanceof VhostUserError)) throw error;
        this.#device.diagnostics.fault(
          `vhost_user_${error.code.toLowerCase()}`,
          () => error.message,
        );
      }
    }
  }

  /** Stops all rings where they stand; each needs a new SET_VRING_KICK. */
  stopAll(): void {
    for (const [index, ring] of this.#rings.entries()) {
      this.#halt(ring, index);
      this.#unkick(ring, index);
    }
  }

  /** Stops the rings that run and are disabled; each needs a new SET_VRING_KICK. */
  stopDisabled(): void {
    for (const [index, ring] of this.#rings.entries()) {
      this.#change(ring, index, false);
    }
  }

  /** Forgets the rings after a reset of the device; descriptors of calls and errors stay. */
  forgetAll(): void {
    for (const [index, ring] of this.#rings.entries()) {
      this.#unkick(ring, index);
      const { hasCall, hasErr } = ring;
      this.#rings[index] = { ...newVring(), hasCall, hasErr };
    }
  }

  /** Gives all descriptors back. */
  close(): void {
    for (const [index, ring] of this.#rings.entries()) {
      if (ring.hasKick) this.#ports.setKick(index, -1);
      if (ring.hasCall) this.#ports.setCall(index, -1);
      if (ring.hasErr) this.#ports.setErr(index, -1);
      this.#rings[index] = newVring();
    }
  }

  /**
   * Checks that the device has a queue `index`.
   *
   * @throws {VhostUserError} `BAD_QUEUE_INDEX` when it has not.
   */
  checkIndex(index: number, section: string): void {
    this.#ring(index, section);
  }

  #ring(index: number, section: string): Vring {
    const ring = this.#rings[index];
    if (ring === undefined) {
      throw new VhostUserError(
        "BAD_QUEUE_INDEX",
        section,
        `Cannot use ring ${index}: the device has ${this.#rings.length}`,
      );
    }
    return ring;
  }

  #active(ring: Vring, index: number): boolean {
    return this.#enabled(ring) && this.#device.queueRunning(index);
  }

  #enabled(ring: Vring): boolean {
    return ring.enabled ?? !this.disabledAtFirst;
  }

  // Something that a running ring is frozen in is told anew.
  #change(ring: Vring, index: number, changed: boolean): void {
    if (!this.#device.queueRunning(index)) return;
    if (!this.#active(ring, index)) {
      this.#halt(ring, index);
      this.#unkick(ring, index);
    } else if (changed) {
      throw new VhostUserError(
        "RING_RUNNING",
        "Ring states",
        `Cannot set up ring ${index}: it is running and enabled`,
      );
    }
  }

  #unkick(ring: Vring, index: number): void {
    ring.kicked = false;
    // The front-end takes kicks from the same open file now: a kick read here would be lost to it.
    if (ring.hasKick) this.#ports.setKick(index, -1);
    ring.hasKick = false;
  }

  #halt(ring: Vring, index: number): void {
    if (!this.#device.queueRunning(index)) return;
    const format = this.#device.ringFormat;
    const setup = this.#device.queueSetup(index);
    const state = this.#device.stopQueue(index);
    if (state === null) return;
    ring.base = this.#baseOf(index, setup, state);
    if (ring.used) {
      const { memory } = this.table;
      const lived = !isFreshRing(memory, format, setup, ring.base);
      ring.stop = { base: ring.base, setup, lived };
    }
    ring.used = false;
    this.#device.diagnostics.log(
      "debug",
      `ring ${index} (${format}) stopped at 0x${ring.base.toString(16)}`,
    );
  }

  #baseOf(index: number, setup: QueueSetup, state: QueueState): number {
    if (state.inFlight.length === 0) return encodeVringBase(state);
    const rewound = rewindInFlight(this.table.memory, setup, state);
    if (rewound !== null) return encodeVringBase(rewound);
    const base = encodeVringBase({ ...state, inFlight: [] });
    if (this.#rings[index]!.tracked) return base;
    this.#device.diagnostics.fault(
      "vhost_user_buffers_lost",
      () =>
        `ring ${index} was stopped with ${state.inFlight.length} buffers in flight, which its base cannot tell: they are lost`,
    );
    return base;
  }

  #checkBase(ring: Vring, index: number, base: number): void {
    const format = this.#device.ringFormat;
    if (format === "packed" && (base === 0 || ring.size === 0)) return;
    try {
      const state = decodeVringBase(format, base);
      // The used index of a split ring is in memory, which is looked at when the ring starts.
      // With an in-flight region the two halves of a packed base may differ by what is in flight.
      if (state.format === "packed" && !this.#context.inflight.covers(index)) {
        checkQueueState(state, ring.size, "packed");
      }
    } catch (error) {
      throw badBase(index, base, error);
    }
  }

  // `told` where the front-end waits for the ring to start.
  #start(ring: Vring, index: number, told = false): void {
    const { size, addresses, base } = ring;
    if (
      !this.ready || !ring.kicked || size === 0 || addresses === null ||
      base === null || this.#device.queueRunning(index)
    ) return;
    const { table } = this;
    const setup: QueueSetup = {
      size,
      descriptorArea: table.toGuest(addresses.descriptor),
      driverArea: table.toGuest(addresses.available),
      deviceArea: table.toGuest(addresses.used),
    };
    const format = this.#device.ringFormat;
    if (!ringInMemory(table.memory, format, setup)) {
      if (!told || table.regions.length === 0) return;
      throw new VhostUserError(
        "RING_NOT_IN_MEMORY",
        "Memory access",
        `Cannot start ring ${index}: the memory table does not hold the areas at user addresses 0x${
          addresses.descriptor.toString(16)
        }, 0x${addresses.available.toString(16)}, 0x${
          addresses.used.toString(16)
        }`,
      );
    }
    this.#context.beforeStart();
    try {
      this.#device.setupQueue(index, setup);
    } catch (error) {
      throw badRing(index, error);
    }
    // A ring that goes on where it was stopped has its driver from before, also at index 0; but one
    // that had lived and has descriptors without a trace of it now was made anew in the same place.
    const { stop } = ring;
    const goesOn = sameStop(stop, base, setup) &&
      !(format === "packed" && stop?.lived === true &&
        hasUntouchedDescriptor(table.memory, setup));
    const fresh = !goesOn && isFreshRing(table.memory, format, setup, base);
    const region = this.#openRegion(index, format);
    const state = fresh
      ? null
      : region?.initialized === true
      ? this.#recover(index, region)
      : this.#stateAt(index, base, setup);
    try {
      if (region === null) this.#device.startQueue(index, state);
      else {
        if (state === null || !region.initialized) {
          region.initialize(state ?? initialQueueState(format));
        }
        this.#device.startQueue(
          index,
          state,
          (queue) => new TrackedQueue(queue, region),
        );
      }
    } catch (error) {
      throw badRing(index, error);
    }
    ring.tracked = region !== null;
    ring.fresh = fresh;
    this.#device.diagnostics.log(
      "debug",
      `ring ${index} (${format}, ${size}) started ${
        fresh
          ? "new"
          : region !== null
          ? "by its in-flight region"
          : `at 0x${base.toString(16)}`
      }`,
    );
    this.#applyEnabled(ring, index);
  }

  #stateAt(index: number, base: number, setup: QueueSetup): QueueState {
    const format = this.#device.ringFormat;
    try {
      const usedIdx = format === "split"
        ? readUsedIdx(this.table.memory, setup)
        : 0;
      const state = decodeVringBase(format, base, usedIdx);
      return checkQueueState(state, setup.size);
    } catch (error) {
      throw badBase(index, base, error);
    }
  }

  #openRegion(index: number, format: RingFormat): InflightRegion | null {
    const { inflight } = this.#context;
    if (!inflight.covers(index)) return null;
    const config = this.#device.queueConfig(index);
    try {
      return inflight.open(index, format, this.table.memory, config);
    } catch (error) {
      throw badRing(index, error);
    }
  }

  // What the region and the ring say, whatever the base is.
  #recover(index: number, region: InflightRegion): QueueState {
    let state: QueueState;
    try {
      state = region.recover();
    } catch (error) {
      if (!(error instanceof RingError)) throw error;
      throw new VhostUserError(
        "BAD_INFLIGHT_REGION",
        "Inflight I/O tracking",
        `Cannot start ring ${index} by its in-flight region: ${error.message}`,
      );
    }
    const { inFlight } = state;
    if (inFlight.length !== 0) {
      this.#device.diagnostics.log(
        "info",
        `ring ${index}: ${inFlight.length} buffers were in flight and are taken up again`,
      );
    }
    return state;
  }

  #applyEnabled(ring: Vring, index: number): void {
    const device = this.#device;
    if (!device.queueRunning(index)) return;
    const enabled = this.#enabled(ring);
    device.enableQueue(index, enabled);
    if (!enabled) return;
    // Kicks and interrupts from before may have been lost: look once, and let the driver look once.
    if (ring.used || !ring.fresh) this.interrupt(index);
    ring.used = true;
    device.kick(index);
  }
}

function logAddressOf(addresses: VringAddresses | null): number {
  return addresses !== null && (addresses.flags & LOG_FLAG) !== 0
    ? Number(addresses.log)
    : -1;
}

function sameStop(
  stop: Stop | null,
  base: number,
  setup: QueueSetup,
): boolean {
  return stop !== null && stop.base === base &&
    stop.setup.size === setup.size &&
    stop.setup.descriptorArea === setup.descriptorArea &&
    stop.setup.driverArea === setup.driverArea &&
    stop.setup.deviceArea === setup.deviceArea;
}

function badBase(index: number, base: number, error: unknown): unknown {
  if (!(error instanceof RingError)) return error;
  return new VhostUserError(
    error.code === "BAD_QUEUE_STATE" ? "BAD_VRING_BASE" : "BAD_RING",
    "VHOST_USER_SET_VRING_BASE",
    `Cannot start ring ${index} at base 0x${
      base.toString(16)
    }: ${error.message}`,
  );
}

function badRing(index: number, error: unknown): unknown {
  if (!(error instanceof RingError)) return error;
  return new VhostUserError(
    "BAD_RING",
    "VHOST_USER_SET_VRING_ADDR",
    `Cannot start ring ${index}: ${error.message}`,
  );
}
