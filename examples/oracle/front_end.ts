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
import { VhostUserFrontEnd } from "../../props/guest/vhost_user_front_end.ts";
import { SHUTDOWN_SEND } from "../../props/guest/vsock_header.ts";
import { VIRTIO_F_RING_PACKED } from "../../ring/virtio_ring.ts";
import type { RingFormat } from "../../ring/queue.ts";

/** Where the back-end is. */
export type BackEnd = {
  /** Socket of the front-end. */
  readonly socketPath: string;
  /** Socket of host programs; those that listen have `_PORT` behind it. */
  readonly udsPath: string;
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
/** How long the back-end may take for anything. */
const PATIENCE_MS = 15_000;

/** By what each is about. */
const SCENARIOS: Readonly<Record<string, Scenario>> = {
  "a host port without a listener is refused": async (front) => {
    const near = front.driver.connect(NOBODY);
    await front.until(() => near.state === "closed", PATIENCE_MS);
    if (near.closeReason !== "refused") {
      throw new Error(`the connection ends by ${near.closeReason}`);
    }
  },
  "1 MiB to the host and back, with a half-close": async (front, backEnd) => {
    await throughHost(front, backEnd, () => {});
  },
  "the same, with stop and cont in the middle": async (front, backEnd) => {
    await throughHost(front, backEnd, () => front.cont(front.stop()));
  },
  "a host program connects to the guest": async (front, { udsPath }) => {
    const listener = front.driver.listen(GUEST_PORT);
    using far = await Deno.connect({ transport: "unix", path: udsPath });
    await far.write(new TextEncoder().encode(`CONNECT ${GUEST_PORT}\n`));
    const line = new Uint8Array(64);
    const answer = far.read(line);
    let near: GuestConnection | null = null;
    await front.until(() => (near ??= listener.accept()) !== null, PATIENCE_MS);
    let length: number | null = 0;
    answer.then((count) => length = count);
    await front.until(() => length !== 0, PATIENCE_MS);
    const text = new TextDecoder().decode(line.subarray(0, length ?? 0));
    if (!/^OK \d+\n$/.test(text)) {
      throw new Error(`the host program reads ${JSON.stringify(text)}`);
    }
    near!.close();
    await front.until(() => near!.state === "closed", PATIENCE_MS);
    listener.close();
  },
};

/** Sends a stream to a host program that sends it back, and closes; `midway` is called in the middle. */
async function throughHost(
  front: VhostUserFrontEnd,
  { udsPath }: BackEnd,
  midway: () => void,
): Promise<void> {
  const path = `${udsPath}_${HOST_PORT}`;
  using listener = Deno.listen({ transport: "unix", path });
  const echo = listener.accept().then((far) =>
    far.readable.pipeTo(far.writable)
  );
  echo.catch(() => {});
  try {
    const near = front.driver.connect(HOST_PORT);
    await front.until(() => near.state !== "connecting", PATIENCE_MS);
    if (near.state !== "connected") {
      throw new Error(`the connection ends by ${near.closeReason}`);
    }
    const source = new CheckedSource(1, BYTES);
    const sink = new CheckedSink(1, BYTES);
    let due = true;
    await front.until(() => {
      source.pump((bytes) => near.send(bytes));
      sink.pump((target) => near.read(target));
      if (due && sink.received >= BYTES / 2) {
        due = false;
        midway();
      }
      return sink.done || sink.wrongAt >= 0 || near.state === "closed";
    }, PATIENCE_MS);
    if (!sink.done) {
      throw new Error(
        `${sink.received} of ${BYTES} bytes came back, ${
          sink.wrongAt < 0 ? "all right" : `wrong from ${sink.wrongAt} on`
        }`,
      );
    }
    // The host program reads the end of file, and closes in turn.
    near.shutdown(SHUTDOWN_SEND);
    await front.until(() => near.atEnd, PATIENCE_MS);
    near.close();
    await front.until(() => near.state === "closed", PATIENCE_MS);
    await echo;
  } finally {
    Deno.removeSync(path);
  }
}

/** Runs each scenario with each ring format that the back-end offers, one machine after the other. */
export async function judgeBackEnd(backEnd: BackEnd): Promise<Result[]> {
  const results: Result[] = [];
  for (const ring of ["split", "packed"] as const) {
    if (ring === "packed" && !offersPacked(backEnd)) break;
    for (const [name, scenario] of Object.entries(SCENARIOS)) {
      const wrong: string[] = [];
      try {
        using front = new VhostUserFrontEnd({
          socketPath: backEnd.socketPath,
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

function offersPacked({ socketPath }: BackEnd): boolean {
  using front = new VhostUserFrontEnd({ socketPath });
  return (front.offeredFeatures >> BigInt(VIRTIO_F_RING_PACKED) & 1n) === 1n;
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
