/**
 * Bugs that other implementations had, as small edits of our own sources: properties that do not find
 * them again prove little.
 *
 * @module
 */

/** A change of one file: what is there once, and what takes its place. */
export type PlantEdit = {
  /** Path from the root of the repository. */
  readonly file: string;
  /** Text that is in the file exactly once. */
  readonly find: string;
  /** What takes its place. */
  readonly replace: string;
};

/** A bug to be planted. */
export type Plant = {
  /** What `--only` takes. */
  readonly name: string;
  /** Who had it. */
  readonly who: string;
  /** Edits that make it; all apply or none. */
  readonly edits: readonly PlantEdit[];
};

/** An edit does not fit the source any more. */
export class PlantError extends Error {
  /** @param message Which, and why not. */
  constructor(message: string) {
    super(message);
    this.name = "PlantError";
  }
}

/**
 * Applies an edit to the text of its file.
 *
 * @throws {PlantError} unless what it looks for is there exactly once.
 */
export function applyEdit(
  plant: string,
  edit: PlantEdit,
  text: string,
): string {
  const count = text.split(edit.find).length - 1;
  if (count !== 1) {
    throw new PlantError(
      `Cannot plant ${plant}: ${edit.file} has its text ${count} times: ${
        JSON.stringify(edit.find)
      }`,
    );
  }
  return text.replace(edit.find, () => edit.replace);
}

const SPLIT = "ring/split_device.ts";
const PACKED = "ring/packed_device.ts";
const WALK = "ring/_packed_walk.ts";
const NOTIFY = "ring/notify.ts";
const STATE = "ring/state.ts";

function plant(
  name: string,
  who: string,
  ...edits: [file: string, find: string, replace: string][]
): Plant {
  return {
    name,
    who,
    edits: edits.map(([file, find, replace]) => ({ file, find, replace })),
  };
}

/** All of them. */
export const PLANTS: readonly Plant[] = [
  plant("split-avail-compared-by-less", "several", [
    SPLIT,
    "if (availIdx === lastAvailIdx) return false;",
    "if (!(lastAvailIdx < availIdx)) return false;",
  ]),
  plant("event-compared-without-modulo", "rcore", [
    NOTIFY,
    "return ((newIdx - event - 1) & 0xffff) < ((newIdx - oldIdx) & 0xffff);",
    "return newIdx !== oldIdx && newIdx >= event + 1;",
  ]),
  plant("split-saved-index-modulo-size", "v86", [
    SPLIT,
    "lastAvailIdx: this.#lastAvailIdx,",
    "lastAvailIdx: this.#lastAvailIdx & this.#mask,",
  ]),
  plant("split-ring-offset-of-16-bits", "libkrun", [
    SPLIT,
    "const at = (nextUsed & this.#mask) << 1;",
    "const at = (((nextUsed & this.#mask) * 8) & 0xffff) >>> 2;",
  ]),
  plant("split-used-idx-before-its-element", "several", [
    SPLIT,
    "const nextUsed = this.#nextUsedIdx;",
    "const nextUsed = this.#nextUsedIdx;\n" +
    "    Atomics.store(this.#usedRing, AT_IDX, (nextUsed + 1) & 0xffff);",
  ]),
  plant(
    "split-saved-used-is-avail",
    "DPDK",
    [SPLIT, "usedIdx: this.#usedIdx,", "usedIdx: this.#lastAvailIdx,"],
    [
      SPLIT,
      "inFlight: heads.map((head) => {",
      "inFlight: heads.slice(0, 0).map((head) => {",
    ],
  ),
  plant("packed-device-wrap-of-a-full-ring-chain", "OpenVMM #3990", [
    PACKED,
    "      next -= size;\n      bits ^= F_AVAIL_USED;\n    }\n    // The id",
    "      next -= size;\n      if (next < first) bits ^= F_AVAIL_USED;\n    }\n    // The id",
  ]),
  plant("packed-driver-wrap-of-a-full-ring-chain", "Linux 1acfe2c1", [
    "ring/packed_driver.ts",
    "this.#nextBits = bits;",
    "if (slot !== first) this.#nextBits = bits;",
  ]),
  plant(
    "packed-next-not-wrapped-in-a-chain",
    "OpenVMM #2983",
    [WALK, "if (at === end) at = 0;", "if (at === end) return 0;"],
    [WALK, "if (slot === size) slot = 0;", ""],
  ),
  plant("packed-used-flags-by-avail-wrap", "several", [
    PACKED,
    "const flags = written === 0 ? bits : bits | F_WRITE;",
    "const flags = (this.#availBits === F_AVAIL ? F_AVAIL_USED : 0) |\n" +
    "      (written === 0 ? 0 : F_WRITE);",
  ]),
  plant("packed-used-goes-on-by-one", "several", [
    PACKED,
    "const next = used + slots;",
    "const next = used + 1;",
  ]),
  plant(
    "packed-batch-written-side-by-side",
    "QEMU 2d9a31b3",
    [PACKED, "#stagedFlags = 0;", "#stagedFlags = 0;\n  #stagedBuffers = 0;"],
    [
      PACKED,
      "const used = this.#used;\n    if (this.#copied",
      "const used = this.#stagedSlots === 0\n      ? this.#used\n" +
      "      : (this.#stagedFirst + ++this.#stagedBuffers) % this.#size;\n" +
      "    if (this.#copied",
    ],
    [
      PACKED,
      "if (staged === 0) {\n      this.#stagedFirst = used;",
      "if (staged === 0) {\n      this.#stagedBuffers = 0;\n      this.#stagedFirst = used;",
    ],
    [PACKED, "const next = used + slots;", "const next = this.#used + slots;"],
  ),
  plant("packed-unpop-goes-back-by-one", "QEMU", [
    PACKED,
    "this.#avail = start;",
    "this.#avail = (this.#avail + this.#size - 1) % this.#size;",
  ]),
  plant("packed-id-of-the-first-descriptor", "several", [
    PACKED,
    "u32[(next === 0 ? size : next) * 4 - 1]! & 0xffff",
    "u32[first * 4 + 3]! & 0xffff",
  ]),
  plant("packed-base-without-its-used-half", "DPDK", [
    STATE,
    "return (used << 16 | available) >>> 0;",
    "return available;",
  ]),
  plant(
    "packed-wrap-at-the-wrong-end",
    "several",
    [
      STATE,
      "available: state.lastAvailWrapCounter << 15 | state.lastAvailIdx,",
      "available: state.lastAvailIdx << 1 | state.lastAvailWrapCounter,",
    ],
    [
      STATE,
      "used: state.usedWrapCounter << 15 | state.usedIdx,",
      "used: state.usedIdx << 1 | state.usedWrapCounter,",
    ],
    [
      STATE,
      "lastAvailIdx: available & 0x7fff,\n    lastAvailWrapCounter: wrapOf(available),",
      "lastAvailIdx: available >>> 1,\n    lastAvailWrapCounter: (available & 1) as 0 | 1,",
    ],
    [
      STATE,
      "usedIdx: used & 0x7fff,\n    usedWrapCounter: wrapOf(used),",
      "usedIdx: used >>> 1,\n    usedWrapCounter: (used & 1) as 0 | 1,",
    ],
  ),
  plant(
    "packed-initial-state-of-zeros",
    "user-mode-linux",
    [PACKED, "#availBits = F_AVAIL;", "#availBits = F_USED;"],
    [PACKED, "#usedBits = F_AVAIL_USED;", "#usedBits = 0;"],
  ),
  plant("reset-before-the-state-is-read", "rust-vmm/vhost #154", [
    "device/virtio_device.ts",
    "      this.#stop(slot);\n      this.#queues.clear(slot);\n",
    "      this.#queues.clear(slot);\n      this.#stop(slot);\n",
  ]),
  plant("reset-keeps-restored-indices", "cloud-hypervisor #1120", [
    "device/queue_state.ts",
    "      entry.available = -1;\n      entry.used = -1;\n",
    "",
  ]),
  plant("split-restore-forgets-its-own-kick", "Firecracker #5969", [
    SPLIT,
    "        this.#order[head] = i;\n      }\n      this.armKicks();\n",
    "        this.#order[head] = i;\n      }\n",
  ]),
  plant("packed-restore-forgets-its-own-kick", "Firecracker #5969", [
    PACKED,
    "    this.#copied = this.#copies.size;\n    this.armKicks();\n",
    "    this.#copied = this.#copies.size;\n",
  ]),
  plant("vsock-restore-forgets-its-own-kick", "Firecracker #5969", [
    "device/vsock/device.ts",
    "      this.#txWork = true;\n      this.#driverSeen",
    "      this.#driverSeen",
  ]),
  plant("split-restore-forgets-its-interrupt", "cloud-hypervisor #8004", [
    SPLIT,
    "this.#batchIdx = checked.usedIdx;\n      this.#signalledValid = false;\n",
    "this.#batchIdx = checked.usedIdx;\n",
  ]),
  plant("packed-restore-forgets-its-interrupt", "cloud-hypervisor #8004", [
    PACKED,
    "    this.#movedValid = false;\n",
    "",
  ]),
  plant("event-off-by-one", "several", [
    NOTIFY,
    "return ((newIdx - event - 1) & 0xffff) < ((newIdx - oldIdx) & 0xffff);",
    "return ((newIdx - event) & 0xffff) < ((newIdx - oldIdx) & 0xffff);",
  ]),
  plant("packed-event-of-the-lap-before", "OpenVMM #4267", [
    "ring/_packed.ts",
    "if (offWrap >>> 15 !== wrap) event -= size;",
    "",
  ]),
  plant("split-no-look-behind-arming", "several", [
    SPLIT,
    "return Atomics.load(this.#availRing, AT_IDX) !== lastAvail ||\n      this.#waiting !== 0;",
    "return this.#waiting !== 0;",
  ]),
  plant("packed-no-look-behind-arming", "several", [
    PACKED,
    "return this.#restoredLeft !== 0 ||\n      (Atomics.load(this.#u16, avail * 8 + 7) & F_AVAIL_USED) === bits;",
    "return this.#restoredLeft !== 0;",
  ]),
  plant("split-completion-taken-twice", "several", [
    SPLIT,
    "if (!(written <= limit[token]!) || written >>> 0 !== written) {",
    "if (limit[token] === undefined || written >>> 0 !== written) {",
  ]),
  plant("packed-completion-taken-twice", "several", [
    PACKED,
    "!(slots > 0 && written <= book[row + LIMIT]!) ||",
    "slots === undefined ||",
  ]),
  plant("queue-size-writable-while-it-runs", "Firecracker #6201", [
    "device/_queue_slots.ts",
    "if (slot.queue !== null) {\n      throw new TypeError(`Cannot configure",
    "if (slot.setup === undefined) {\n      throw new TypeError(`Cannot configure",
  ]),
  plant("split-indirect-table-without-end", "v86", [
    SPLIT,
    "for (let steps = entries; steps > 0; steps--) {",
    "for (;;) {",
  ]),
  plant("split-chain-longer-than-the-ring", "several", [
    SPLIT,
    "if (slots === size) {",
    "if (slots < 0) {",
  ]),
  plant("packed-chain-longer-than-the-ring", "several", [
    WALK,
    "if (slots === room) return 0;",
    "if (slots === room && fault !== null) return 0;",
  ]),
  plant("ring-reset-leaves-the-queue-in-use", "a guess", [
    "device/virtio_device.ts",
    "    this.enableQueue(index, false);\n    const { used } = slot;\n",
    "    const { used } = slot;\n",
  ]),
  plant("suspended-device-keeps-its-queue", "a guess", [
    "device/virtio_device.ts",
    "      this.enableQueue(slot.index, false);\n      held",
    "      held",
  ]),
  plant("suspension-forgets-its-interrupt", "a guess", [
    "device/virtio_device.ts",
    "      if (queue.needsInterrupt()) this.interrupt(slot.index);\n",
    "      queue.needsInterrupt();\n",
  ]),
  plant("save-turns-kicks-off", "a guess", [
    SPLIT,
    "    const limit = this.#limit;\n    const order = this.#order;\n    const heads",
    "    this.disarmKicks();\n    const limit = this.#limit;\n" +
    "    const order = this.#order;\n    const heads",
  ]),
  plant("restored-state-is-shared", "a guess", [
    SPLIT,
    "this.#restored = checked.inFlight;",
    "this.#restored = state.inFlight;",
  ]),
  plant("split-inflight-without-order", "a guess", [
    "ring/split_inflight.ts",
    "const counter = this.#counter++;",
    "const counter = 0;",
  ]),
  plant("split-inflight-told-before-its-flags", "a guess", [
    "ring/split_inflight.ts",
    "    if (this.#stagedCount === 0) return;\n    for (let i = 0; i < this.#stagedCount; i++) {\n      this.#u8",
    "    if (this.#stagedCount === 0) return;\n" +
    "    this.#u16[USED_IDX] = (this.#usedIdx + this.#stagedCount) & 0xffff;\n" +
    "    for (let i = 0; i < this.#stagedCount; i++) {\n      this.#u8",
  ]),
  plant("packed-inflight-batch-as-long-as-the-ring", "the document", [
    "ring/packed_inflight.ts",
    "const moved = usedIdx !== oldUsedIdx || wrap !== oldWrap;",
    "const moved = usedIdx !== oldUsedIdx;",
  ]),
  plant("packed-driver-takes-any-length", "several", [
    "ring/packed_driver.ts",
    "    if (length > this.#room[id]!) {\n      return this.#stop(",
    "    if (length > this.#room[id]! && this.#size === 0) {\n      return this.#stop(",
  ]),
  plant("split-state-of-any-distance", "several", [
    STATE,
    "if (distance !== inFlight.length) {",
    "if (distance > size) {",
  ]),
  plant("vsock-credit-ignored", "several", [
    "device/vsock/credit.ts",
    "if (unread >= this.peerBufAlloc || this.packetsFree === 0) return 0;\n    return this.peerBufAlloc - unread;",
    "return this.packetsFree === 0 || unread < 0 ? 0 : 65_536;",
  ]),
  plant("vsock-rst-answered-by-rst", "several", [
    "device/vsock/muxer.ts",
    "        connection.receiveReset();\n",
    "        connection.receiveReset();\n        this.#answerReset();\n",
  ]),
  plant("vsock-unknown-rst-answered-by-rst", "several", [
    "device/vsock/muxer.ts",
    'this.#diagnostics.count("reset_unknown");',
    "this.#answerReset();",
  ]),
  plant("vsock-eom-on-every-fragment", "several", [
    "device/vsock/rx_writer.ts",
    "header.flags = done + length === bytes.length ? lastFlags : 0;",
    "header.flags = lastFlags;",
  ]),
];
