import { assertEquals } from "@std/assert";
import type { PoolProgress } from "./campaign_pool.ts";
import { Progress } from "./progress.ts";

function outputOf(
  terminal: boolean,
  columns: number,
  work: (progress: Progress) => void,
): string {
  let text = "";
  work(
    new Progress({
      terminal,
      columns: () => columns,
      write: (more) => text += more,
    }),
  );
  return text;
}

function at(
  seconds: number,
  more: Partial<PoolProgress> = {},
): PoolProgress {
  return {
    seconds,
    runs: 100 * seconds,
    share: seconds / 60,
    current: ["queue/split", "queue/split"],
    failed: 0,
    ...more,
  };
}

Deno.test("Progress draws one line of a terminal anew, and takes it away for what stays", () => {
  const text = outputOf(true, 80, (progress) => {
    progress.print("seed 1");
    progress.tell(at(3));
    progress.tell(at(30, { failed: 1, current: ["vsock (shrinking)"] }));
    progress.print("vsock does not hold", "  1. step");
    progress.tell(at(60, { current: [] }));
    progress.end();
    progress.end();
  });
  const clear = "\r\x1b[K";
  assertEquals(
    text,
    "seed 1\n" +
      `${clear}[#...................] 5 %, 3 s, 300 sequences, 100/s  queue/split` +
      `${clear}[##########..........] 50 %, 30 s, 3000 sequences, 100/s, 1 FAILED  vsock (shri` +
      `${clear}vsock does not hold\n  1. step\n` +
      `${clear}[####################] 100 %, 60 s, 6000 sequences, 100/s  ` +
      clear,
  );
});

Deno.test("Progress never fills the last column", () => {
  for (const columns of [1, 2, 20, 60]) {
    const text = outputOf(true, columns, (progress) => progress.tell(at(30)));
    const [, line] = text.split("\r\x1b[K");
    assertEquals(line!.length, Math.max(1, columns - 1));
  }
});

Deno.test("Progress prints a line every ten seconds where there is no terminal", () => {
  const text = outputOf(false, 80, (progress) => {
    for (let seconds = 0; seconds <= 31; seconds++) progress.tell(at(seconds));
    progress.print("done");
    progress.end();
  });
  assertEquals(
    text,
    "16 %, 10 s, 1000 sequences, 100/s\n" +
      "33 %, 20 s, 2000 sequences, 100/s\n" +
      "50 %, 30 s, 3000 sequences, 100/s\n" +
      "done\n",
  );
});
