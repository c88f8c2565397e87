import type { AgentCall } from "./guest/vm/mod.ts";
import { EndlessStream, Pattern, type StreamCounts } from "./endless_stream.ts";
import type { GuestSetup } from "./guest_setup.ts";
import { within } from "./streams.ts";

/** Connections of a {@link GuestTraffic}; half of them are opened by the guest. */
export const TRAFFIC_CONNECTIONS = 8;

/** How long bytes may take to move at all, and to stop moving. */
const PATIENCE_MS = 10_000;
/** Streams that have not moved for so long stand still. */
const STILL_MS = 10;

/**
 * The guest's ends: per connection a thread that sends and one that compares. A stream that is cut is
 * an "error" of its counts.
 */
const PROGRAM = `
unit = a2b_base64(args["unit"])
plus = bytes(range(256)) * 2
period = b"".join(unit.translate(plus[n : n + 256]) for n in range(256))
pattern = period + period[:CHUNK_BYTES]
starts = args["starts"]
ports = args["ports"]
ending = threading.Event()
counts = [{"sent": 0, "received": 0, "wrongAt": -1} for _ in ports]

def sender(number, stream):
    count = counts[number]
    view = memoryview(pattern)
    try:
        while not ending.is_set():
            at = (starts[2 * number + 1] + count["sent"]) % len(period)
            count["sent"] += stream.send(view[at : at + CHUNK_BYTES])
        stream.shutdown(socket.SHUT_WR)
    except OSError as error:
        count["error"] = errno.errorcode[error.errno]

def receiver(number, stream):
    count = counts[number]
    buffer = memoryview(bytearray(CHUNK_BYTES))
    try:
        while True:
            got = stream.recv_into(buffer)
            if not got:
                return
            at = (starts[2 * number] + count["received"]) % len(period)
            if bytes(buffer[:got]) != pattern[at : at + got] and count["wrongAt"] < 0:
                count["wrongAt"] = count["received"]
            count["received"] += got
    except OSError as error:
        count["error"] = errno.errorcode[error.errno]

half = len(ports) // 2
listeners = [listen(port) for port in ports[half:]]
emit("listening")
streams = [connect(port) for port in ports[:half]]
for listener in listeners:
    streams.append(listener.accept()[0])
    listener.close()
threads = [
    threading.Thread(target=run, args=one, daemon=True)
    for one in enumerate(streams)
    for run in (sender, receiver)
]
for thread in threads:
    thread.start()
call.wait_for("end", 600)
ending.set()
for thread in threads:
    thread.join(60)
for stream in streams:
    stream.close()
result = counts
`;

type GuestCounts = StreamCounts & { error?: string };

/** Streams both ways over several connections between a real guest and host programs, without pause. */
export class GuestTraffic implements Disposable {
  /** The host's ends. */
  readonly streams: EndlessStream[];
  readonly #setup: GuestSetup;
  readonly #call: AgentCall;

  private constructor(
    setup: GuestSetup,
    call: AgentCall,
    streams: EndlessStream[],
  ) {
    this.#setup = setup;
    this.#call = call;
    this.streams = streams;
  }

  /** Opens the connections; resolves when all of them move bytes both ways. */
  static async start(setup: GuestSetup): Promise<GuestTraffic> {
    const pattern = new Pattern();
    const half = TRAFFIC_CONNECTIONS / 2;
    const ports = Array.from(
      { length: TRAFFIC_CONNECTIONS },
      () => setup.port(),
    );
    const starts = Array.from(
      { length: 2 * TRAFFIC_CONNECTIONS },
      (_, i) => Pattern.startOf(i),
    );
    const listeners = ports.slice(0, half).map((port) => setup.listen(port));
    const streams: EndlessStream[] = [];
    const call = setup.guest.start({
      op: "python",
      code: PROGRAM,
      args: { ports, starts, unit: pattern.unit.toBase64() },
    }, { timeoutMs: Infinity });
    // A guest that is killed ends it.
    call.result.catch(() => {});
    const traffic = new GuestTraffic(setup, call, streams);
    try {
      await call.event("listening");
      const opening = [
        ...listeners.map((listener) => listener.accept()),
        ...ports.slice(half).map((port) => setup.connect(port)),
      ];
      for (const [number, conn] of opening.entries()) {
        streams.push(new EndlessStream(await conn, pattern, number));
      }
      await traffic.flowing();
      return traffic;
    } catch (error) {
      traffic[Symbol.dispose]();
      throw error;
    } finally {
      for (const listener of listeners) listener.close();
    }
  }

  /** Bytes that the host's ends have moved, both directions. */
  get bytes(): number {
    return moved(this.streams).reduce((sum, count) => sum + count, 0);
  }

  /** {@link untilFlowing} of these streams. */
  async flowing(): Promise<number> {
    return await untilFlowing(this.streams);
  }

  /**
   * Ends the streams, and compares what both ends say of each.
   *
   * @throws {Error} when a byte is wrong, lost or doubled, or a stream was cut.
   */
  async end(): Promise<void> {
    for (const stream of this.streams) stream.end();
    await this.#setup.guest.agent({
      op: "tell",
      to: this.#call.id,
      word: "end",
    });
    const guest = await within(
      60_000,
      "the end of the streams",
      this.#call.result,
    ) as GuestCounts[];
    await within(PATIENCE_MS, "the host's end of the streams", this.finished());
    for (
      const [number, { sent, received, wrongAt, cut }] of this.streams.entries()
    ) {
      const host = { sent: received, received: sent, wrongAt };
      if (cut || JSON.stringify(host) !== JSON.stringify(guest[number])) {
        throw new Error(
          `stream ${number}: the host's end ${cut ? "was cut and " : ""}says ${
            JSON.stringify(host)
          }, the guest's ${JSON.stringify(guest[number])}`,
        );
      }
    }
  }

  /** What the guest's program says of its ends, in a stream that was cut. */
  async guestErrors(): Promise<(string | undefined)[]> {
    await this.#setup.guest.agent({
      op: "tell",
      to: this.#call.id,
      word: "end",
    });
    const counts = await this.#call.result as GuestCounts[];
    return counts.map(({ error }) => error);
  }

  /** Resolves when the host's ends are over. */
  async finished(): Promise<void> {
    await Promise.all(this.streams.map((stream) => stream.finished));
  }

  /** Closes the host's ends. */
  [Symbol.dispose](): void {
    for (const stream of this.streams) stream[Symbol.dispose]();
  }
}

/** Lets `ms` pass. */
export async function sleep(ms: number): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, ms));
}

function moved(streams: readonly EndlessStream[]): number[] {
  return streams.flatMap(({ sent, received }) => [sent, received]);
}

/**
 * Waits until every stream has moved bytes in both directions from now on, and returns how long the
 * slowest took, in milliseconds.
 *
 * `pass` lets a little time pass; it is a sleep unless told.
 */
export async function untilFlowing(
  streams: readonly EndlessStream[],
  pass: () => Promise<void> = () => sleep(1),
): Promise<number> {
  const before = moved(streams);
  const start = performance.now();
  while (moved(streams).some((count, i) => count === before[i])) {
    if (performance.now() - start > PATIENCE_MS) {
      const what = moved(streams).flatMap((count, i) =>
        count === before[i]
          ? [`${i >> 1} ${i % 2 === 0 ? "to" : "from"} the guest at ${count}`]
          : []
      );
      throw new Error(`no byte moves on ${what.join(", ")}`);
    }
    await pass();
  }
  return performance.now() - start;
}

/** Waits until no stream moves any more, as the other ends have stopped. */
export async function untilStill(
  streams: readonly EndlessStream[],
): Promise<void> {
  const start = performance.now();
  let last = moved(streams);
  let since = start;
  while (performance.now() - since < STILL_MS) {
    await sleep(2);
    const now = moved(streams);
    if (now.some((count, i) => count !== last[i])) {
      last = now;
      since = performance.now();
      if (since - start > PATIENCE_MS) {
        throw new Error("bytes move without end while the guest is stopped");
      }
    }
  }
}
