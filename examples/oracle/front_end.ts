/**
 * A front-end that drives any vhost-user vsock back-end over its socket, without a virtual machine, checks
 * each of its packets, and names the rules that it breaks.
 *
 * ```sh
 * deno run -A examples/oracle/front_end.ts --socket /tmp/vhost.sock --uds-path /tmp/guest.vsock
 * ```
 *
 * The back-end is started by hand before; host programs reach it at `--uds-path`, as with Firecracker,
 * vhost-device-vsock and Ringside. Exits with 1 where something is wrong.
 *
 * @module
 */

// deno-lint-ignore-file no-console

import {
  CheckedSink,
  CheckedSource,
} from "../../props/guest/checked_stream.ts";
import type { GuestConnection } from "../../props/guest/guest_connection.ts";
import { FrontEndError } from "../../props/guest/vhost_user_channel.ts";
import {
  type FrontEndOptions,
  VhostUserFrontEnd,
} from "../../props/guest/vhost_user_front_end.ts";
import { SHUTDOWN_SEND } from "../../props/guest/vsock_header.ts";
import { VIRTIO_F_RING_PACKED } from "../../ring/virtio_ring.ts";
import type { RingFormat } from "../../ring/queue.ts";

/** Where the back-end is. */
export type BackEnd = {
  /** Socket of the front-end. */
  readonly socketPath: string;
  /** Socket of host programs; those that listen have `_PORT` behind it. */
  readonly udsPath: string;
  /** How long it may take for anything, in milliseconds. 15 000 unless told. */
  readonly patienceMs?: number;
};

/** What came of one scenario. */
export type Result = {
  readonly ring: RingFormat;
  readonly name: string;
  /** What is wrong, in words; empty where nothing is. */
  readonly wrong: readonly string[];
};

type Scenario = (front: VhostUserFrontEnd, backEnd: BackEnd) => Promise<void>;

const HOST_PORT = 1234;
const GUEST_PORT = 5000;
const NOBODY = 9;
const BYTES = 1 << 20;
const PATIENCE_MS = 15_000;

/** By what each is about. */
const SCENARIOS: Readonly<Record<string, Scenario>> = {
  "a host port without a listener is refused": async (front, backEnd) => {
    const near = front.driver.connect(NOBODY);
    await wait(front, backEnd, "an RST", () => near.state === "closed");
    if (near.closeReason !== "refused") {
      throw new Error(`the connection ends by ${near.closeReason}`);
    }
  },
  "1 MiB to the host and back": async (front, backEnd) => {
    await throughHost(front, backEnd, {});
  },
  "the same, with stop and cont in the middle": async (front, backEnd) => {
    const midway = () => front.cont(front.stop());
    await throughHost(front, backEnd, { midway });
  },
  "the same, ended by a half-close": async (front, backEnd) => {
    await throughHost(front, backEnd, { halfClose: true });
  },
  "a host program connects to the guest": async (front, backEnd) => {
    const listener = front.driver.listen(GUEST_PORT);
    const path = backEnd.udsPath;
    using far = await Deno.connect({ transport: "unix", path });
    await far.write(new TextEncoder().encode(`CONNECT ${GUEST_PORT}\n`));
    const line = new Uint8Array(64);
    let length: number | null = 0;
    // What goes wrong may leave it waiting until `far` is closed.
    far.read(line).then((count) => length = count, () => {});
    let near: GuestConnection | null = null;
    await wait(
      front,
      backEnd,
      "a REQUEST",
      () => (near ??= listener.accept()) !== null,
    );
    await wait(
      front,
      backEnd,
      "the line of the host program",
      () => length !== 0,
    );
    const text = new TextDecoder().decode(line.subarray(0, length ?? 0));
    if (!/^OK \d+\n$/.test(text)) {
      throw new Error(`the host program reads ${JSON.stringify(text)}`);
    }
    near!.close();
    await wait(front, backEnd, "the end", () => near!.state === "closed");
    listener.close();
  },
};

/**
 * Sends a stream to a host program that sends it back, and closes; `midway` is called in the middle. With `halfClose`
 * the guest ends its own direction first, and waits for the end of the other one.
 */
async function throughHost(
  front: VhostUserFrontEnd,
  backEnd: BackEnd,
  { midway, halfClose = false }: { midway?: () => void; halfClose?: boolean },
): Promise<void> {
  const path = `${backEnd.udsPath}_${HOST_PORT}`;
  using listener = Deno.listen({ transport: "unix", path });
  const echo = listener.accept().then((far) =>
    far.readable.pipeTo(far.writable)
  );
  let ended = false;
  echo.finally(() => ended = true).catch(() => {});
  try {
    const near = front.driver.connect(HOST_PORT);
    await wait(front, backEnd, "a RESPONSE", () => near.state !== "connecting");
    if (near.state !== "connected") {
      throw new Error(`the connection ends by ${near.closeReason}`);
    }
    const source = new CheckedSource(1, BYTES);
    const sink = new CheckedSink(1, BYTES);
    let due = midway !== undefined;
    await wait(front, backEnd, "all bytes back", () => {
      source.pump((bytes) => near.send(bytes));
      sink.pump((target) => near.read(target));
      if (due && sink.received >= BYTES / 2) {
        due = false;
        midway?.();
      }
      return sink.done || sink.wrongAt >= 0 || near.state === "closed";
    });
    if (!sink.done) {
      throw new Error(
        `${sink.received} of ${BYTES} bytes came back, ${
          sink.wrongAt < 0 ? "all right" : `wrong from ${sink.wrongAt} on`
        }`,
      );
    }
    if (halfClose) {
      // The host program reads the end of file, and closes in turn.
      near.shutdown(SHUTDOWN_SEND);
      await wait(front, backEnd, "the end of file", () => near.atEnd);
    }
    near.close();
    await wait(front, backEnd, "the end", () => near.state === "closed");
    await wait(front, backEnd, "the host program's end of file", () => ended);
  } finally {
    Deno.removeSync(path);
  }
}

/** Carries interrupts until `done()`. */
async function wait(
  front: VhostUserFrontEnd,
  { patienceMs = PATIENCE_MS }: BackEnd,
  what: string,
  done: () => boolean,
): Promise<void> {
  const end = performance.now() + patienceMs;
  let is = false;
  await front.until(
    () => (is = done()) || performance.now() > end,
    2 * patienceMs,
  );
  if (!is) throw new Error(`${what} does not come within ${patienceMs} ms`);
}

/** Connects; a back-end may take a moment after the front-end before. */
async function connect(
  { socketPath, patienceMs = PATIENCE_MS }: BackEnd,
  options: Omit<FrontEndOptions, "socketPath"> = {},
): Promise<VhostUserFrontEnd> {
  const end = performance.now() + patienceMs;
  for (;;) {
    try {
      return new VhostUserFrontEnd({ ...options, socketPath });
    } catch (error) {
      if (!(error instanceof FrontEndError) || performance.now() > end) {
        throw error;
      }
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

/** Runs each scenario with each ring format that the back-end offers, one machine after the other. */
export async function judgeBackEnd(backEnd: BackEnd): Promise<Result[]> {
  const results: Result[] = [];
  for (const ring of ["split", "packed"] as const) {
    if (ring === "packed" && !await offersPacked(backEnd)) break;
    for (const [name, scenario] of Object.entries(SCENARIOS)) {
      const wrong: string[] = [];
      try {
        using front = await connect(backEnd, {
          ring,
          driver: { strict: false },
        });
        try {
          await scenario(front, backEnd);
        } catch (error) {
          wrong.push(String(error));
        }
        wrong.push(...front.driver.violations);
      } catch (error) {
        wrong.push(String(error));
      }
      results.push({ ring, name, wrong });
    }
  }
  return results;
}

async function offersPacked(backEnd: BackEnd): Promise<boolean> {
  try {
    using front = await connect(backEnd);
    return (front.offeredFeatures >> BigInt(VIRTIO_F_RING_PACKED) & 1n) === 1n;
  } catch (error) {
    // One that is gone offers nothing; what it did before is still to be told.
    if (error instanceof FrontEndError) return false;
    throw error;
  }
}

async function main(args: readonly string[]): Promise<number> {
  const [socket, socketPath, uds, udsPath] = args;
  if (
    socket !== "--socket" || uds !== "--uds-path" || !udsPath ||
    args.length > 4
  ) {
    console.error(
      "Usage: deno run -A examples/oracle/front_end.ts --socket PATH --uds-path PATH",
    );
    return 2;
  }
  const results = await judgeBackEnd({ socketPath: socketPath!, udsPath });
  for (const { ring, name, wrong } of results) {
    console.log(
      `${ring.padEnd(6)}  ${wrong.length === 0 ? "ok   " : "WRONG"}  ${name}`,
    );
    for (const text of wrong) console.log(`               ${text}`);
  }
  return results.every(({ wrong }) => wrong.length === 0) ? 0 : 1;
}

if (import.meta.main) Deno.exit(await main(Deno.args));
