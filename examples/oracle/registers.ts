/**
 * A small driver that brings a vsock device up over MMIO and connects to a host port, with mistakes that can be
 * switched on, and what the device says of each.
 *
 * ```sh
 * deno run examples/oracle/registers.ts                # each mistake in turn, and the driver without one
 * deno run examples/oracle/registers.ts short-packet   # one mistake
 * ```
 *
 * Needs no permissions. A driver of your own, in an emulator for instance, takes the place of
 * {@link drive} from the registers on.
 *
 * @module
 */

// deno-lint-ignore-file no-console

import { Diagnostics } from "../../device/diagnostics.ts";
import { MmioTransport } from "../../device/mmio.ts";
import { VirtioDevice } from "../../device/virtio_device.ts";
import {
  VIRTIO_MMIO_DRIVER_FEATURES,
  VIRTIO_MMIO_DRIVER_FEATURES_SEL,
  VIRTIO_MMIO_QUEUE_AVAIL_LOW,
  VIRTIO_MMIO_QUEUE_DESC_LOW,
  VIRTIO_MMIO_QUEUE_NOTIFY,
  VIRTIO_MMIO_QUEUE_NUM,
  VIRTIO_MMIO_QUEUE_READY,
  VIRTIO_MMIO_QUEUE_SEL,
  VIRTIO_MMIO_QUEUE_USED_LOW,
  VIRTIO_MMIO_STATUS,
} from "../../device/virtio_mmio.ts";
import { VsockDevice } from "../../device/vsock/device.ts";
import { LoopbackHost } from "../../device/vsock/loopback.ts";
import {
  encodeHeader,
  HEADER_BYTES,
  OP_REQUEST,
  OP_RW,
  opName,
  PacketHeader,
  TYPE_STREAM,
} from "../../props/guest/vsock_header.ts";
import { GuestMemory } from "../../ring/memory.ts";
import { ToyDriver } from "./toy_driver.ts";

/** Mistakes, by the word that switches each on. */
export const MISTAKES = {
  "no-version-1": "does not accept VIRTIO_F_VERSION_1",
  "driver-ok-first": "sets DRIVER_OK before FEATURES_OK",
  "narrow-status": "writes the status by a byte",
  "queue-of-3": "sets up a split queue of 3 descriptors",
  "used-ring-at-6": "puts a used ring at an address that ends in 6",
  "moved-queue": "gives a queue another address while it is ready",
  "kick-of-9": "kicks queue 9",
  "index-jump": "publishes 100 buffers in a queue of 8",
  "self-next": "lets a descriptor's `next` name the descriptor itself",
  "readable-rx": "posts receive buffers that the device may not write",
  "short-packet": "sends 43 bytes, where a header has 44",
  "wrong-cid": "sends with a source CID that is not its own",
  "wrong-type": "asks for a socket of type 9",
  "no-connect": "sends data where nothing is connected",
} as const;

/** One of {@link MISTAKES}. */
export type Mistake = keyof typeof MISTAKES;

/** What came of it. */
export type Report = {
  /** Faults by kind, and how often each came. */
  readonly counters: Readonly<Record<string, number>>;
  /** Lines of the device's log. */
  readonly log: readonly string[];
  /** What the device answered on the receive queue. */
  readonly answers: readonly string[];
  /** The device's status, as the driver reads it. */
  readonly status: number;
};

const GUEST_CID = 3;
const HOST_PORT = 1234;
const MEMORY_START = 0x10_0000;
const QUEUE_SIZE = 8;
const RX = 0;
const TX = 1;

const S_ACKNOWLEDGE = 1;
const S_DRIVER = 2;
const S_DRIVER_OK = 4;
const S_FEATURES_OK = 8;

/** Brings the device up and asks for a connection, by registers and guest memory alone. */
export function drive(mistake: Mistake | null): Report {
  const log: string[] = [];
  const diagnostics = new Diagnostics((level, text) =>
    log.push(`${level}: ${text}`)
  );
  const memory = new GuestMemory([{
    guestAddress: MEMORY_START,
    size: 0x1_0000,
    buffer: new ArrayBuffer(0x1_0000),
  }]);

  // The device: a host side in memory with a listener, the vsock device, virtio, registers.
  const host = new LoopbackHost();
  const vsock = new VsockDevice({ guestCid: GUEST_CID, host, diagnostics });
  host.attach(vsock);
  host.listen(HOST_PORT);
  const virtio = new VirtioDevice(vsock, { diagnostics });
  vsock.attach(virtio);
  const mmio = new MmioTransport(virtio, {
    memory: () => memory,
    interrupt: () => {},
  });

  // From here on there is only the driver.
  const set = (offset: number, value: number) => mmio.write(offset, 4, value);
  const setStatus = (bits: number) => {
    if (mistake === "narrow-status") mmio.write(VIRTIO_MMIO_STATUS, 1, bits);
    else set(VIRTIO_MMIO_STATUS, bits);
  };
  const setUp = (index: number): ToyDriver => {
    const start = MEMORY_START + 0x1000 * index;
    const config = {
      size: mistake === "queue-of-3" ? 3 : QUEUE_SIZE,
      descriptorArea: start,
      driverArea: start + 0x100,
      deviceArea: start + 0x200 + (mistake === "used-ring-at-6" ? 6 : 0),
    };
    set(VIRTIO_MMIO_QUEUE_SEL, index);
    set(VIRTIO_MMIO_QUEUE_NUM, config.size);
    set(VIRTIO_MMIO_QUEUE_DESC_LOW, config.descriptorArea);
    set(VIRTIO_MMIO_QUEUE_AVAIL_LOW, config.driverArea);
    set(VIRTIO_MMIO_QUEUE_USED_LOW, config.deviceArea);
    set(VIRTIO_MMIO_QUEUE_READY, 1);
    if (mistake === "moved-queue") set(VIRTIO_MMIO_QUEUE_DESC_LOW, start + 16);
    return new ToyDriver(
      memory,
      config,
      mistake === "self-next" ? "self-next" : null,
    );
  };

  let status = S_ACKNOWLEDGE;
  setStatus(status);
  setStatus(status |= S_DRIVER);
  if (mistake === "driver-ok-first") setStatus(status | S_DRIVER_OK);
  set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
  // VIRTIO_F_VERSION_1 is bit 32.
  set(VIRTIO_MMIO_DRIVER_FEATURES, mistake === "no-version-1" ? 0 : 1);
  setStatus(status |= S_FEATURES_OK);
  const rx = setUp(RX);
  const tx = setUp(TX);
  setStatus(status |= S_DRIVER_OK);

  const buffers = MEMORY_START + 0x8000;
  for (let i = 0; i < 2; i++) {
    const address = buffers + 0x200 * i;
    const writable = mistake !== "readable-rx";
    rx.add([{ address, length: 0x200, writable }]);
  }
  rx.publish();
  set(VIRTIO_MMIO_QUEUE_NOTIFY, RX);

  const packet = buffers + 0x1000;
  const header = encodeHeader({
    srcCid: mistake === "wrong-cid" ? 7 : GUEST_CID,
    dstCid: 2,
    srcPort: 1024,
    dstPort: HOST_PORT,
    type: mistake === "wrong-type" ? 9 : TYPE_STREAM,
    op: mistake === "no-connect" ? OP_RW : OP_REQUEST,
    bufAlloc: 0x1_0000,
  });
  memory.bytes(packet, HEADER_BYTES).set(header);
  const length = mistake === "short-packet" ? HEADER_BYTES - 1 : HEADER_BYTES;
  tx.add([
    { address: packet, length: 20, writable: false },
    { address: packet + 20, length: length - 20, writable: false },
  ]);
  tx.publish();
  if (mistake === "index-jump") {
    memory.bytes(MEMORY_START + 0x1000 * TX + 0x102, 2)[0] = 100;
  }
  set(VIRTIO_MMIO_QUEUE_NOTIFY, mistake === "kick-of-9" ? 9 : TX);
  while (vsock.process());

  const answers: string[] = [];
  for (let used = rx.reclaim(); used !== null; used = rx.reclaim()) {
    if (used.length < HEADER_BYTES) continue;
    const at = buffers + 0x200 * used.token;
    const bytes = memory.bytes(at, HEADER_BYTES).slice();
    answers.push(
      opName(new PacketHeader().read(new DataView(bytes.buffer), 0).op),
    );
  }
  return {
    counters: Object.fromEntries(diagnostics.counters),
    log,
    answers,
    status: mmio.read(VIRTIO_MMIO_STATUS, 4),
  };
}

function print(mistake: Mistake | null): void {
  const { log, answers, status } = drive(mistake);
  console.log(
    mistake === null ? "no mistake" : `${mistake}: ${MISTAKES[mistake]}`,
  );
  for (const line of log) console.log(`  ${line}`);
  console.log(
    `  the device's status is 0x${status.toString(16)}, it answers ${
      answers.join(", ") || "nothing"
    }\n`,
  );
}

function main(args: readonly string[]): number {
  const names = Object.keys(MISTAKES) as Mistake[];
  const [word] = args;
  const chosen = names.filter((name) => word === undefined || name === word);
  if (args.length > 1 || (chosen.length === 0 && word !== "none")) {
    console.error(
      `Usage: deno run examples/oracle/registers.ts [none | ${
        names.join(" | ")
      }]`,
    );
    return 2;
  }
  if (word === undefined || word === "none") print(null);
  for (const mistake of chosen) print(mistake);
  return 0;
}

if (import.meta.main) Deno.exit(main(Deno.args));
