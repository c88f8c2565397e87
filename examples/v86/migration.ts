/**
 * Moves a running machine from process to process, and tells what was on its way each time.
 *
 * @module
 */

import { TextLineStream } from "./_lines.ts";
import type { SaveReport, SaveWish, StreamsReport } from "./traveller.ts";

/** What a {@link MachineProcess} is told. */
export type Command =
  | { op: "prepare" }
  | {
    op: "start";
    ring: "split" | "packed";
    flood: { rx: number; tx: number } | null;
    streams: number;
    chunk: number;
  }
  | { op: "restore"; path: string; ring: "split" | "packed" }
  | { op: "move"; bytes: number }
  | { op: "save"; path: string; wish: SaveWish }
  | { op: "end" };

/** What it answers. */
type Answers = {
  prepare: Record<never, never>;
  start: { rx: number; tx: number };
  restore: Record<never, never>;
  move: { firstAt: number };
  save: SaveReport;
  end: StreamsReport;
};

const WORKER = new URL("./migration_worker.ts", import.meta.url);

/** A process of its own that runs a machine. */
export class MachineProcess implements AsyncDisposable {
  readonly #process: Deno.ChildProcess;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array<ArrayBuffer>>;
  readonly #lines: ReadableStreamDefaultReader<string>;

  /** Starts it. */
  constructor() {
    this.#process = new Deno.Command(Deno.execPath(), {
      args: ["run", "-A", "--quiet", "--no-check", WORKER.href],
      stdin: "piped",
      stdout: "piped",
      stderr: "inherit",
    }).spawn();
    this.#writer = this.#process.stdin.getWriter();
    this.#lines = this.#process.stdout
      .pipeThrough(new TextDecoderStream())
      .pipeThrough(new TextLineStream()).getReader();
  }

  /** Its number. */
  get pid(): number {
    return this.#process.pid;
  }

  /**
   * Tells it what to do, and returns its answer.
   *
   * @throws {Error} when it cannot, in its own words.
   */
  async tell<C extends Command>(command: C): Promise<Answers[C["op"]]> {
    const line = `${JSON.stringify(command)}\n`;
    await this.#writer.write(new TextEncoder().encode(line));
    const { value, done } = await this.#lines.read();
    if (done) {
      throw new Error(`Cannot ${command.op}: process ${this.pid} is gone`);
    }
    const answer = JSON.parse(value) as {
      result?: Answers[C["op"]];
      error?: string;
    };
    if (answer.result === undefined) {
      throw new Error(`process ${this.pid}: ${answer.error}`);
    }
    return answer.result;
  }

  /** Ends it. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#writer.close().catch(() => {});
    await this.#process.status;
    await this.#lines.cancel();
  }
}

/** One move, as it was seen. */
export type Move = SaveReport & {
  /** The process that the machine went to. */
  pid: number;
  /** From the last turn of the device to the first byte that came from the guest elsewhere. */
  downtimeMs: number;
};

/** How a journey is made. */
export type JourneyOptions = {
  ring: "split" | "packed";
  /** Moves from process to process. */
  moves: number;
  /** Streams, half of them opened by each side. */
  streams: number;
  /** Bytes that a write of the guest has at most. */
  chunk: number;
  /** Bytes that each stream moves each way between two moves, at least. */
  bytes: number;
  /** Indices of the split rings to begin at. */
  flood?: { rx: number; tx: number };
  /** True to go to and fro between two processes; each time to a new one unless told. */
  pingPong?: boolean;
  /** What has to be seen, too; there may be twice as many moves for it. */
  until?: (moves: readonly Move[]) => boolean;
  /** Told of each move. */
  onMove?: (move: Move, number: number) => void;
};

/** What came of it. */
export type Journey = { moves: Move[]; streams: StreamsReport };

/**
 * Lets a machine travel: its streams run all the time, and at each move it is saved as one file and goes on
 * from that in another process.
 *
 * @throws {Error} when a process cannot go on, or a stream stands still or is reset.
 */
export async function journey(options: JourneyOptions): Promise<Journey> {
  const { ring, bytes, streams, chunk, flood = null, pingPong = false } =
    options;
  await using processes = new AsyncDisposableStack();
  const path = await Deno.makeTempFile({ prefix: "machine-" });
  processes.defer(() => Deno.remove(path));
  const other = () => processes.use(new MachineProcess());
  let here = other();
  await here.tell({ op: "start", ring, flood, streams, chunk });
  const moves: Move[] = [];
  let there: MachineProcess | null = null;
  const enough = (): boolean =>
    moves.length >= 2 * options.moves ||
    (moves.length >= options.moves && (options.until?.(moves) ?? true));
  for (let i = 0; !enough(); i++) {
    // The other process is up before the machine stops here.
    there ??= other();
    const preparing = there.tell({ op: "prepare" });
    if (i > 0) await here.tell({ op: "move", bytes });
    await preparing;
    const report = await here.tell({
      op: "save",
      path,
      // Alternately anywhere, and just before the end of the tx ring.
      wish: i % 2 === 0 ? { tx: 3 } : { tx: 2, nearEnd: 4 },
    });
    await there.tell({ op: "restore", path, ring });
    const { firstAt } = await there.tell({ op: "move", bytes: 1 });
    const move = {
      ...report,
      pid: there.pid,
      downtimeMs: firstAt - report.stoppedAt,
    };
    moves.push(move);
    options.onMove?.(move, i + 1);
    const before: MachineProcess = here;
    here = there;
    there = pingPong ? before : null;
    if (!pingPong) await before[Symbol.asyncDispose]();
  }
  await here.tell({ op: "move", bytes });
  return { moves, streams: await here.tell({ op: "end" }) };
}
