import type { QueueState } from "../ring/queue.ts";
import { checkQueueState } from "../ring/state.ts";
import { VIRTQ_MAX_SIZE } from "../ring/virtio_ring.ts";
import type { QueueSetup } from "./device_model.ts";
import type { FacilitySnapshot } from "./queue_state.ts";
import {
  FieldReader,
  type Plain,
  seal,
  SnapshotError,
  unseal,
} from "./snapshot.ts";

/** Version of the snapshots that this code makes, and the only one that it reads. */
export const SNAPSHOT_VERSION = 2;

/** A queue in a snapshot. */
export type QueueSnapshot = {
  /** Size and addresses, also of a queue that does not run. */
  setup: QueueSetup;
  /** Null for a queue that does not run. */
  state: QueueState | null;
  /** The device may use it. */
  enabled: boolean;
  /** Its driver broke it; it waits for a reset. */
  broken: boolean;
  /** Its driver has handed it over by a register. */
  ready: boolean;
  /** The model has had it since the device was reset. */
  used: boolean;
};

/** A whole device, as plain data. */
export type DeviceSnapshot = {
  /** {@link SNAPSHOT_VERSION}. */
  version: number;
  /** Of everything else in it but the version. */
  checksum: string;
  /** Device type. */
  deviceId: number;
  /** Accepted features, in hexadecimal. */
  features: string;
  /** Status field. */
  status: number;
  /** Generation of the configuration space. */
  configGeneration: number;
  /** A change of the configuration is due when the device is resumed. */
  configDue: boolean;
  /** In the order of their indices. */
  queues: QueueSnapshot[];
  /** Where the virtqueue state facility stands. */
  queueState: FacilitySnapshot;
  /** The model has not been told of the last reset, as its queues may be restored. */
  modelKept: boolean;
  /** What the model saved. */
  model: Plain;
};

/** What a snapshot says, after its checks. */
export type SnapshotContent = {
  features: bigint;
  status: number;
  configGeneration: number;
  configDue: boolean;
  queues: QueueSnapshot[];
  /** Not checked yet: that is for the facility. */
  queueState: unknown;
  modelKept: boolean;
  /** Not checked yet: that is for the model. */
  model: unknown;
};

/** Adds version and checksum to the content of a snapshot. */
export function sealSnapshot(
  content: Omit<DeviceSnapshot, "version" | "checksum">,
): DeviceSnapshot {
  return seal(SNAPSHOT_VERSION, content);
}

/**
 * Converts an untrusted value to the content of a snapshot of a device of type `deviceId` with
 * `queueCount` queues.
 *
 * @throws {SnapshotError} with the code that fits.
 */
export function openSnapshot(
  value: unknown,
  deviceId: number,
  queueCount: number,
): SnapshotContent {
  const fields = unseal(value, SNAPSHOT_VERSION);
  if (fields.u32("deviceId") !== deviceId) {
    throw new SnapshotError(
      "MISMATCH",
      `it is of device type ${
        fields.u32("deviceId")
      }, this one has ${deviceId}`,
    );
  }
  const features = fields.string("features");
  if (!/^0x[0-9a-f]{1,33}$/.test(features)) {
    throw fields.bad("features", "no hexadecimal number");
  }
  const queues = fields.array("queues", 65_536);
  if (queues.length !== queueCount) {
    throw new SnapshotError(
      "MISMATCH",
      `it has ${queues.length} queues, this device ${queueCount}`,
    );
  }
  return {
    features: BigInt(features),
    status: fields.integer("status", 0, 0xff),
    configGeneration: fields.u32("configGeneration"),
    configDue: fields.boolean("configDue"),
    queueState: fields.any("queueState"),
    modelKept: fields.boolean("modelKept"),
    queues: queues.map((queue, index) => readQueue(queue, `queues[${index}]`)),
    model: fields.any("model"),
  };
}

/**
 * Converts an untrusted value to the size and addresses of a queue.
 *
 * @throws {SnapshotError} `CONTENT`.
 */
export function readSetup(value: unknown, what: string): QueueSetup {
  const fields = new FieldReader(value, what);
  // What a driver has written by halves can be beyond the integers that are exact.
  const address = (name: string): number => {
    const found = fields.any(name);
    if (
      typeof found !== "number" || !(found >= 0 && found <= 2 ** 64) ||
      !Number.isInteger(found)
    ) {
      throw fields.bad(name, "no address");
    }
    return found;
  };
  return {
    size: fields.integer("size", 1, VIRTQ_MAX_SIZE),
    descriptorArea: address("descriptorArea"),
    driverArea: address("driverArea"),
    deviceArea: address("deviceArea"),
  };
}

function readQueue(value: unknown, what: string): QueueSnapshot {
  const fields = new FieldReader(value, what);
  const setup = readSetup(fields.any("setup"), `${what}.setup`);
  const { size } = setup;
  const state = fields.any("state");
  let checked: QueueState | null = null;
  if (state !== null) {
    try {
      checked = checkQueueState(state, size);
    } catch (error) {
      throw new SnapshotError(
        "CONTENT",
        `${what}: ${(error as Error).message}`,
      );
    }
  }
  const enabled = fields.boolean("enabled");
  if (enabled && checked === null) {
    throw fields.bad("enabled", "true of a queue that does not run");
  }
  return {
    setup,
    state: checked,
    enabled,
    broken: fields.boolean("broken"),
    ready: fields.boolean("ready"),
    used: fields.boolean("used"),
  };
}
