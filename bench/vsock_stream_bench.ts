import { type LoopbackConn, LoopbackHost, VsockDevice } from "../device/mod.ts";
import { type GuestConnection, InProcessGuest } from "../props/guest/mod.ts";
import type { RingFormat } from "../ring/mod.ts";
import { check } from "./check.ts";

/** Bytes that one iteration moves: a mebibyte, of small writes a quarter. */
const BYTES = 1024 * 1024;
const SMALL_BYTES = BYTES / 4;
const SMALL = 64;
const WRITES: readonly [string, number][] = [
  ["64B", SMALL],
  ["4KiB", 4096],
  ["64KiB", 65_536],
];
const PORT = 1234;
/** Bytes that are read at a time. */
const READ_BYTES = 65_536;
/** Every so many words one is compared; all of them in the first read of an iteration. */
const SAMPLE_WORDS = 61;

/** What is sent: no stretch of it comes twice. */
const DATA = new Uint8Array(BYTES);
for (let i = 0; i < BYTES; i += 65_536) {
  crypto.getRandomValues(DATA.subarray(i, i + 65_536));
}
const DATA_WORDS = new Int32Array(DATA.buffer);

/** One connection over queues of one format. */
class Pipe {
  readonly guest: InProcessGuest;
  readonly near: GuestConnection;
  readonly far: LoopbackConn;

  constructor(ring: RingFormat) {
    const host = new LoopbackHost({
      schedule: (work) => this.guest.schedule(work),
    });
    const device = new VsockDevice({ guestCid: 3, host });
    host.attach(device);
    this.guest = new InProcessGuest({ device, ring });
    const listener = host.listen(PORT);
    this.near = this.guest.driver.connect(PORT);
    this.guest.run();
    const far = listener.tryAccept();
    if (far === null) throw new Error("no connection");
    this.far = far;
    listener.close();
  }
}

/** Sends `total` bytes in writes of `write` bytes and compares what arrives. */
function move(
  guest: InProcessGuest,
  send: (bytes: Uint8Array) => number,
  read: (target: Uint8Array) => number,
  write: number,
  total: number,
): void {
  const target = new Uint8Array(READ_BYTES);
  const words = new Int32Array(target.buffer);
  let sent = 0;
  let received = 0;
  while (received < total) {
    while (sent < total) {
      const end = sent + write - sent % write;
      const taken = send(DATA.subarray(sent, end));
      if (taken === 0) break;
      sent += taken;
    }
    guest.run();
    const before = received;
    for (;;) {
      const got = read(target);
      if (got === 0) break;
      const step = received === 0 ? 1 : SAMPLE_WORDS;
      // Where a read ends within a word, positions of words and bytes part: compare bytes then.
      if (received % 4 === 0) {
        for (let i = 0; i < got >>> 2; i += step) {
          if (words[i] !== DATA_WORDS[received / 4 + i]) {
            wrong(received + i * 4);
          }
        }
      } else {
        for (let i = 0; i < got; i += step) {
          if (target[i] !== DATA[received + i]) wrong(received + i);
        }
      }
      received += got;
    }
    if (received === before) throw new Error(`stuck at ${received} bytes`);
  }
  check("bytes", received, total);
}

function wrong(at: number): never {
  throw new Error(`a wrong byte near ${at}`);
}

for (const ring of ["split", "packed"] as const) {
  for (const [label, write] of WRITES) {
    const total = write === SMALL ? SMALL_BYTES : BYTES;
    const up = new Pipe(ring);
    Deno.bench(
      `vsock/${ring}/guest_to_host/${label}`,
      { group: `vsock/guest_to_host/${label}`, baseline: ring === "split" },
      () => {
        const { guest, near, far } = up;
        const send = (bytes: Uint8Array) => near.send(bytes);
        const read = (target: Uint8Array) => far.tryRead(target) ?? 0;
        move(guest, send, read, write, total);
      },
    );
    const down = new Pipe(ring);
    Deno.bench(
      `vsock/${ring}/host_to_guest/${label}`,
      { group: `vsock/host_to_guest/${label}`, baseline: ring === "split" },
      () => {
        const { guest, near, far } = down;
        const send = (bytes: Uint8Array) => far.tryWrite(bytes);
        const read = (target: Uint8Array) => near.read(target);
        move(guest, send, read, write, total);
      },
    );
  }
}
