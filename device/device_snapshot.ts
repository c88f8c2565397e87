import type { QueueState } from "../ring/queue.ts";
import { checkQueueState } from "../ring/state.ts";
import { VIRTQ_MAX_SIZE } from "../ring/virtio_ring.ts";
import {
  checksum,
  FieldReader,
  type Plain,
  SnapshotError,
} from "./snapshot.ts";

/** Version of the snapshots that this code makes, and the only one that it reads. */
export const SNAPSHOT_VERSION = 1;

/** A queue in a snapshot. */
export type QueueSnapshot = {
  /** Size and addresses, also of a queue that does not run. */
  setup: {
    size: number;
    descriptorArea: number;
    driverArea: number;
    deviceArea: number;
  };
  /** Null for a queue that does not run. */
  state: QueueState | null;
  /** The device may use it. */
  enabled: boolean;
  /** Its driver broke it; it waits for a reset. */
  broken: boolean;
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
  /** In the order of their indices. */
  queues: QueueSnapshot[];
  /** What the model saved. */
  model: Plain;
};

/** What a snapshot says, after its checks. */
export type SnapshotContent = {
  features: bigint;
  status: number;
  configGeneration: number;
  queues: QueueSnapshot[];
  /** Not checked yet: that is for the model. */
  model: unknown;
};

/** Adds version and checksum to the content of a snapshot. */
export function sealSnapshot(
  content: Omit<DeviceSnapshot, "version" | "checksum">,
): DeviceSnapshot {
  return {
    version: SNAPSHOT_VERSION,
    checksum: checksum(content as Plain),
    ...content,
  };
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
  // A copy, so that nobody changes it between the checksum and its use.
  let copy: unknown;
  try {
    copy = JSON.parse(JSON.stringify(value));
  } catch {
    throw new SnapshotError("CONTENT", "it is no plain data");
  }
  const fields = new FieldReader(copy, "snapshot");
  const version = fields.any("version");
  if (version !== SNAPSHOT_VERSION) {
    throw new SnapshotError(
      "VERSION",
      `it is of version ${
        String(version)
      }, this device reads version ${SNAPSHOT_VERSION}`,
    );
  }
  const { version: _version, checksum: expected, ...content } =
    copy as DeviceSnapshot;
  if (checksum(content as Plain) !== expected) {
    throw new SnapshotError(
      "CHECKSUM",
      "it was cut or edited: its checksum is of something else",
    );
  }
  if (fields.u32("deviceId") !== deviceId) {
    throw new SnapshotError(
      "MISMATCH",
      `it is of device type ${
        fields.u32("deviceId")
      }, this one has ${deviceId}`,
    );
  }
  const features = fields.string("features");
  if (!/^0x[0-9a-f]{1,32}$/.test(features)) {
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
    queues: queues.map((queue, index) => readQueue(queue, `queues[${index}]`)),
    model: fields.any("model"),
  };
}

function readQueue(value: unknown, what: string): QueueSnapshot {
  const fields = new FieldReader(value, what);
  const setup = new FieldReader(fields.any("setup"), `${what}.setup`);
  const size = setup.integer("size", 1, VIRTQ_MAX_SIZE);
  const address = (name: string): number =>
    setup.integer(name, 0, Number.MAX_SAFE_INTEGER);
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
    setup: {
      size,
      descriptorArea: address("descriptorArea"),
      driverArea: address("driverArea"),
      deviceArea: address("deviceArea"),
    },
    state: checked,
    enabled,
    broken: fields.boolean("broken"),
  };
}
