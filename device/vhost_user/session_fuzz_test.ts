import { assert } from "@std/assert";
import { inflightRegionSize } from "../../ring/inflight.ts";
import { BufferList, type DriverQueue } from "../../ring/queue.ts";
import {
  ALL_PROTOCOL_FEATURES,
  GUEST_BASE,
  REGION_BYTES,
  Rig,
} from "./_fixture.ts";
import * as vu from "./constants.ts";
import { VhostUserError } from "./errors.ts";
import {
  encodeConfig,
  encodeInflight,
  encodeMemoryRegion,
  encodeMemoryTable,
  encodeRequest,
  encodeU64,
} from "./message.ts";
import { PACKED_INITIAL_BASE } from "../ring_position.ts";

type Step = { bytes: Uint8Array; files: (ArrayBuffer | null)[] };

// mulberry32: small, seeded, good enough to choose what to spoil.
function random(seed: number): (below: number) => number {
  return (below) => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

/** A whole life of a session in messages, none of which ends it. */
function life(rig: Rig, packed: boolean): Step[] {
  const steps: Step[] = [];
  const add = (
    request: number,
    payload?: Uint8Array,
    files: (ArrayBuffer | null)[] = [],
  ): void => {
    steps.push({ bytes: encodeRequest(request, payload, true), files });
  };
  const extra = {
    guestAddress: GUEST_BASE + REGION_BYTES,
    size: 4096,
    userAddress: 0x9000,
    mmapOffset: 0,
  };
  let inflightFile: ArrayBuffer | null = null;
  const base = packed ? PACKED_INITIAL_BASE : 0;
  const features = encodeU64(rig.featureBits(packed ? "packed" : "split"));
  add(vu.VHOST_USER_GET_FEATURES);
  add(vu.VHOST_USER_GET_PROTOCOL_FEATURES);
  add(vu.VHOST_USER_SET_PROTOCOL_FEATURES, encodeU64(ALL_PROTOCOL_FEATURES));
  add(vu.VHOST_USER_GET_QUEUE_NUM);
  add(vu.VHOST_USER_SET_BACKEND_REQ_FD, undefined, [null]);
  add(vu.VHOST_USER_SET_OWNER);
  const config = { offset: 0, size: 8, flags: 0, bytes: new Uint8Array(8) };
  add(vu.VHOST_USER_GET_CONFIG, encodeConfig(config));
  for (let round = 0; round < 2; round++) {
    add(vu.VHOST_USER_SET_FEATURES, features);
    add(vu.VHOST_USER_SET_STATUS, encodeU64(11));
    const regions = encodeMemoryTable([rig.region()]);
    add(vu.VHOST_USER_SET_MEM_TABLE, regions, [rig.memory]);
    const mmapSize = 2 * inflightRegionSize(packed ? "packed" : "split", 8);
    const inflight = encodeInflight({
      mmapSize,
      mmapOffset: 0,
      numQueues: 2,
      queueSize: 8,
    });
    add(vu.VHOST_USER_GET_INFLIGHT_FD, inflight);
    inflightFile ??= new ArrayBuffer(mmapSize);
    add(vu.VHOST_USER_SET_INFLIGHT_FD, inflight, [inflightFile]);
    for (const index of [0, 1]) {
      add(vu.VHOST_USER_SET_VRING_CALL, encodeU64(index), [null]);
      add(vu.VHOST_USER_SET_VRING_ERR, encodeU64(index), [null]);
      add(vu.VHOST_USER_SET_VRING_NUM, rig.state(index, 8));
      add(vu.VHOST_USER_SET_VRING_BASE, rig.state(index, base));
      add(vu.VHOST_USER_SET_VRING_ADDR, rig.addresses(index, 8));
      add(vu.VHOST_USER_SET_VRING_KICK, encodeU64(index), [null]);
      add(vu.VHOST_USER_SET_VRING_ENABLE, rig.state(index, 1));
    }
    add(vu.VHOST_USER_SET_STATUS, encodeU64(15));
    add(
      vu.VHOST_USER_ADD_MEM_REG,
      encodeMemoryRegion(extra),
      [new ArrayBuffer(4096)],
    );
    add(vu.VHOST_USER_REM_MEM_REG, encodeMemoryRegion(extra));
    add(vu.VHOST_USER_GET_STATUS);
    for (const index of [0, 1]) {
      add(vu.VHOST_USER_SET_VRING_ENABLE, rig.state(index, 0));
      add(vu.VHOST_USER_GET_VRING_BASE, rig.state(index, 0));
    }
    add(vu.VHOST_USER_SET_STATUS, encodeU64(0));
  }
  add(vu.VHOST_USER_RESET_DEVICE);
  return steps;
}

function spoil(steps: Step[], pick: (below: number) => number): Step[] {
  const spoiled = steps.map(({ bytes, files }) => ({
    bytes: bytes.slice(),
    files: [...files],
  }));
  for (let n = 1 + pick(4); n > 0; n--) {
    const at = pick(spoiled.length);
    const step = spoiled[at]!;
    switch (pick(9)) {
      case 0: // a wild byte in the payload, or the header
        step.bytes[pick(step.bytes.length)] = pick(256);
        break;
      case 1: // another request
        if (step.bytes.length > 0) step.bytes[0] = pick(45);
        break;
      case 2: { // shorter or longer, and honest about it
        const length = 12 + pick(80);
        const bytes = new Uint8Array(length);
        bytes.set(step.bytes.subarray(0, length));
        new DataView(bytes.buffer).setUint32(8, length - 12, true);
        step.bytes = bytes;
        break;
      }
      case 3: // cut off
        step.bytes = step.bytes.slice(0, pick(step.bytes.length));
        break;
      case 4: // descriptors too many
        for (let i = 1 + pick(34); i > 0; i--) step.files.push(null);
        break;
      case 5: // descriptors missing
        step.files.length = 0;
        break;
      case 6: // said twice
        spoiled.splice(at, 0, {
          bytes: step.bytes.slice(),
          files: [...step.files],
        });
        break;
      case 7: // left out
        spoiled.splice(at, 1);
        break;
      default: { // in another order
        const other = pick(spoiled.length);
        spoiled[at] = spoiled[other]!;
        spoiled[other] = step;
      }
    }
  }
  return spoiled;
}

function run(rig: Rig, steps: Step[], drivers: DriverQueue[]): boolean {
  const list = new BufferList()
    .addReadable(GUEST_BASE + 0x30000, 16)
    .addWritable(GUEST_BASE + 0x30100, 16);
  for (const { bytes, files } of steps) {
    const fds = files.map((file) => rig.ports.newFd(file));
    try {
      rig.sendBytes(bytes, fds);
    } catch (error) {
      if (error instanceof VhostUserError && error.fatal) return false;
      throw error;
    }
    for (const [index, driver] of drivers.entries()) {
      if (driver.free >= 2) {
        driver.add(list);
        driver.publish();
      }
      rig.session.kick(index);
    }
    rig.session.poll();
  }
  return true;
}

Deno.test("VhostUserSession survives spoiled messages and leaks nothing", () => {
  let ended = 0;
  let served = 0;
  const kinds = new Set<string>();
  for (let seed = 0; seed < 1500; seed++) {
    const pick = random(seed);
    const packed = seed % 2 === 1;
    const rig = new Rig();
    const drivers = [0, 1].map((index) =>
      rig.driver(index, 8, packed ? "packed" : "split")
    );
    const steps = spoil(life(rig, packed), pick);
    try {
      if (!run(rig, steps, drivers)) ended++;
      served += rig.model.served;
      rig.finish();
      for (const kind of rig.device.diagnostics.counters.keys()) {
        kinds.add(kind);
      }
    } catch (error) {
      throw new Error(`seed ${seed}`, { cause: error });
    }
  }
  // The campaign reaches what it is there for.
  assert(ended > 50 && ended < 1400, `${ended} sessions ended`);
  assert(served > 1000, `${served} buffers were served`);
  assert(kinds.size > 15, [...kinds].join(", "));
});

Deno.test("VhostUserSession lives through an unspoiled life without a fault", () => {
  for (const packed of [false, true]) {
    const rig = new Rig();
    const drivers = [0, 1].map((index) =>
      rig.driver(index, 8, packed ? "packed" : "split")
    );
    // Its second round starts at base 0 a ring that has lived, which is refused: play one round.
    const steps = life(rig, packed);
    assert(run(rig, steps.slice(0, 7 + (steps.length - 8) / 2), drivers));
    assert(rig.model.served > 0);
    assert(
      rig.device.diagnostics.counters.size === 0,
      rig.lines.join("\n"),
    );
    rig.finish();
  }
});
