import type { PoolProgress } from "./campaign_pool.ts";

/** Where a campaign is told of. */
export type ProgressOutput = {
  /** Whether a line can be drawn anew. */
  readonly terminal: boolean;
  /** Characters in a line of the terminal. */
  columns(): number;
  write(text: string): void;
};

/** Seconds between two lines where no line can be drawn anew. */
const LINE_SECONDS = 10;
const BAR_CELLS = 20;
const CLEAR_LINE = "\r\x1b[K";

/** Standard output: a terminal, unless a CI system or `TERM=dumb` says that it is none to draw on. */
export function standardOutput(): ProgressOutput {
  const encoder = new TextEncoder();
  return {
    terminal: Deno.stdout.isTerminal() && Deno.env.get("TERM") !== "dumb" &&
      !Deno.env.get("CI"),
    columns() {
      try {
        return Deno.consoleSize().columns;
      } catch {
        return 80; // a terminal that does not tell
      }
    },
    write(text) {
      let bytes = encoder.encode(text);
      while (bytes.length > 0) {
        bytes = bytes.subarray(Deno.stdout.writeSync(bytes));
      }
    },
  };
}

/** Tells how far a campaign is: by a bar in one line of a terminal, elsewhere by a line from time to time. */
export class Progress {
  readonly #out: ProgressOutput;
  #drawn = false;
  #told = 0;

  /** @param out Where to. */
  constructor(out: ProgressOutput) {
    this.#out = out;
  }

  /** Prints lines that stay, above the bar. */
  print(...lines: readonly string[]): void {
    this.#clear();
    this.#out.write(lines.map((line) => `${line}\n`).join(""));
  }

  /** Draws the bar anew, or prints a line if it is time. */
  tell(progress: PoolProgress): void {
    const { seconds } = progress;
    if (this.#out.terminal) {
      // The last column stays free, since some terminals go on to the next line behind it.
      const width = Math.max(1, this.#out.columns() - 1);
      const text = barText(progress).slice(0, width);
      this.#out.write(CLEAR_LINE + text);
      this.#drawn = true;
    } else if (seconds - this.#told >= LINE_SECONDS) {
      this.#told = seconds;
      this.#out.write(`${stateText(progress)}\n`);
    }
  }

  /** Takes the bar away. */
  end(): void {
    this.#clear();
  }

  #clear(): void {
    if (this.#drawn) this.#out.write(CLEAR_LINE);
    this.#drawn = false;
  }
}

function stateText({ seconds, runs, share, failed }: PoolProgress): string {
  const speed = seconds > 0 ? runs / seconds : 0;
  const text = `${Math.floor(100 * share)} %, ${
    seconds.toFixed(0)
  } s, ${runs} sequences, ${speed.toFixed(0)}/s`;
  return failed === 0 ? text : `${text}, ${failed} FAILED`;
}

function barText(progress: PoolProgress): string {
  const cells = Math.floor(BAR_CELLS * progress.share);
  const bar = "#".repeat(cells) + ".".repeat(BAR_CELLS - cells);
  const current = [...new Set(progress.current)].join(", ");
  return `[${bar}] ${stateText(progress)}  ${current}`;
}
