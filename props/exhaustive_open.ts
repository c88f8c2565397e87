import type { Chain } from "../ring/chain.ts";
import type { GuestMemory, MemoryRegion } from "../ring/memory.ts";
import type {
  BufferList,
  DeviceQueue,
  DriverQueue,
  IndirectTables,
  InFlightBuffer,
  QueueConfig,
  QueueState,
} from "../ring/queue.ts";
import type { saveQueue } from "../ring/save.ts";
import type {
  decodeQueueStateWords,
  decodeVringBase,
  encodeQueueStateWords,
  encodeVringBase,
} from "../ring/state.ts";

/** Private fields of a split driver that change, by name with `$` for `#`. */
export type SplitDriverFields = {
  $lastUsedIdx: number;
  $usedIdx: number;
  $availIdx: number;
  $nextAvailIdx: number;
  $kicked: number;
  $kickedValid: boolean;
  $interruptsOff: boolean;
  $freeHead: number;
  $free: number;
  $next: Uint16Array;
  $tail: Uint16Array;
  $slots: Uint16Array;
  $limit: Float64Array;
  $order: Float64Array;
  $addedCount: number;
  $publishedCount: number;
  $usedLength: number;
  $fault: Error | null;
};

/** Private fields of a split device that change. */
export type SplitDeviceFields = {
  $lastAvailIdx: number;
  $availIdx: number;
  $usedIdx: number;
  $nextUsedIdx: number;
  $batchIdx: number;
  $signalled: number;
  $signalledValid: boolean;
  $kicksOff: boolean;
  $limit: Float64Array;
  $order: Float64Array;
  $fetched: number;
  $restored: InFlightBuffer[];
  $restoredNext: number;
  $waiting: number;
  $fault: Error | null;
};

/** Private fields of a packed driver that change. */
export type PackedDriverFields = {
  $next: number;
  $nextBits: number;
  $free: number;
  $inFlight: number;
  $usedLength: number;
  $used: number;
  $usedBits: number;
  $stagedSlots: number;
  $stagedFirst: number;
  $stagedFlags: number;
  $batch: number;
  $moved: number;
  $eventFlags: number;
  $ids: Uint16Array;
  $slots: Uint16Array;
  $room: Float64Array;
  $batchOf: Float64Array;
  $fault: Error | null;
};

/** Private fields of a packed device that change. */
export type PackedDeviceFields = {
  $avail: number;
  $availBits: number;
  $outstanding: number;
  $inFlight: number;
  $used: number;
  $usedBits: number;
  $stagedSlots: number;
  $stagedFirst: number;
  $stagedFlags: number;
  $batch: number;
  $batchBits: number;
  $moved: number;
  $movedValid: boolean;
  $eventFlags: number;
  $book: Uint32Array;
  $copies: Map<number, { slots: number; table: Uint32Array }>;
  $copied: number;
  $restored: InFlightBuffer[];
  $nextRestored: number;
  $restoredLeft: number;
  $restoredAvail: number;
  $restoredBits: number;
  $pastRestored: boolean;
  $broken: Error | null;
};

type Driver<T> = new (
  memory: GuestMemory,
  config: QueueConfig,
  options?: { indirect?: IndirectTables },
) => T;
type Device<T> = new (
  memory: GuestMemory,
  config: QueueConfig,
  state?: QueueState,
) => T;

/** The classes of `ring/`, with private fields that can be seen. */
export type OpenRing = {
  GuestMemory: new (regions: readonly MemoryRegion[]) => GuestMemory;
  Chain: new (memory: GuestMemory) => Chain;
  BufferList: new (capacity?: number) => BufferList;
  SplitDriver: Driver<DriverQueue & SplitDriverFields>;
  SplitDevice: Device<DeviceQueue & SplitDeviceFields>;
  PackedDriver: Driver<DriverQueue & PackedDriverFields>;
  PackedDevice: Device<DeviceQueue & PackedDeviceFields>;
  /** The sources were changed: fields that nobody knows of are no reason not to walk. */
  edited?: boolean;
  saveQueue: typeof saveQueue;
  encodeVringBase: typeof encodeVringBase;
  decodeVringBase: typeof decodeVringBase;
  encodeQueueStateWords: typeof encodeQueueStateWords;
  decodeQueueStateWords: typeof decodeQueueStateWords;
};

/** Fields that stay as the constructor made them, or that only VIRTIO_F_IN_ORDER and indirect tables use. */
const FIXED: Readonly<Record<string, string>> = {
  SplitDriver: "eventIdx inOrder mask table availRing usedRing usedEntries " +
    "heads batchLast batchLength tables tablesAddress tableEntries",
  SplitDevice: "config eventIdx indirect maxIndirect inOrder strong mask " +
    "memory table availRing usedRing usedEntries region windowHigh " +
    "windowStart windowSize windowOffset regionWords unaligned pushed chain",
  PackedDriver: "size eventIdx strong inOrder u16 u32 driverEvent " +
    "deviceEvent tables tablesAddress entries ready added oldest batchLast " +
    "batchLength",
  PackedDevice: "size eventIdx indirect strong inOrder config memory u16 " +
    "u32 driverEvent deviceEvent walker ready restoredPushed chain",
};

const CHANGING: Readonly<Record<string, string>> = {
  SplitDriver: "lastUsedIdx usedIdx availIdx nextAvailIdx kicked " +
    "kickedValid interruptsOff freeHead free next tail slots limit order " +
    "addedCount publishedCount usedLength fault",
  SplitDevice: "lastAvailIdx availIdx usedIdx nextUsedIdx batchIdx " +
    "signalled signalledValid kicksOff limit order fetched restored " +
    "restoredNext waiting fault",
  PackedDriver: "next nextBits free inFlight usedLength used usedBits " +
    "stagedSlots stagedFirst stagedFlags batch moved eventFlags ids slots " +
    "room batchOf fault",
  PackedDevice: "avail availBits outstanding inFlight used usedBits " +
    "stagedSlots stagedFirst stagedFlags batch batchBits moved movedValid " +
    "eventFlags book copies copied restored nextRestored restoredLeft " +
    "restoredAvail restoredBits pastRestored broken",
};

/**
 * Checks that a queue has the private fields that the canonical form knows of, and no others.
 *
 * A field that nobody told the walk of could make two states look the same that are not.
 *
 * @throws {TypeError} naming the fields that are new or gone.
 */
export function checkFields(name: string, queue: object): void {
  const fixed = new Set(FIXED[name]!.split(" "));
  const changing = new Set(CHANGING[name]!.split(" "));
  const found = new Set(
    Object.keys(queue).filter((key) => key.startsWith("$")).map((key) =>
      key.slice(1)
    ),
  );
  const strange = [...found.symmetricDifference(changing).difference(fixed)];
  if (strange.length !== 0) {
    throw new TypeError(
      `Cannot walk the states of ${name}: its fields changed: ${strange}`,
    );
  }
}

const SOURCES = new URL("../ring/", import.meta.url);
let opened: Promise<OpenRing> | undefined;

/**
 * Loads `ring/` from a temporary copy in which each `#private` name is a `$visible` one.
 *
 * It is the same code otherwise; shipped classes need no door for the walk. The copy is removed again.
 */
export function openRing(): Promise<OpenRing> {
  return opened ??= load(SOURCES, (_, text) => text);
}

/**
 * Loads `ring/` with sources that are changed before: `edit` gets a path from the root of the repository and the text,
 * and returns what takes its place.
 */
export async function openEdited(
  edit: (path: string, text: string) => string,
): Promise<OpenRing> {
  return { ...await load(SOURCES, edit), edited: true };
}

async function load(
  from: URL,
  edit: (path: string, text: string) => string,
): Promise<OpenRing> {
  const dir = await Deno.makeTempDir({ prefix: "ringside-open-" });
  try {
    for await (const { name } of Deno.readDir(from)) {
      if (!name.endsWith(".ts") || name.endsWith("_test.ts")) continue;
      const text = await Deno.readTextFile(new URL(name, from));
      const open = edit(`ring/${name}`, text)
        .replaceAll(/#(?=[A-Za-z])/g, "$");
      await Deno.writeTextFile(`${dir}/${name}`, open);
    }
    // Under a name that no import map and no cache of types knows of.
    const at = new URL(`file://${dir}/mod.ts`).href;
    return await import(at) as OpenRing;
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}
