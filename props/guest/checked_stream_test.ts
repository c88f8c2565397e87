import { assertEquals } from "@std/assert";
import { CheckedSink, CheckedSource } from "./checked_stream.ts";

/** Moves a whole stream in odd portions; `change` sees the bytes on their way. */
function move(
  total: number,
  change: (bytes: Uint8Array, at: number) => void = () => {},
  seeds: [number, number] = [5, 5],
): CheckedSink {
  const source = new CheckedSource(seeds[0], total);
  const sink = new CheckedSink(seeds[1], total);
  let wire = new Uint8Array(0);
  let at = 0;
  for (let step = 1; !source.done || wire.length > 0; step++) {
    let room = (step * 7919) % 30011;
    source.pump((bytes) => {
      const taken = Math.min(room, bytes.length);
      room -= taken;
      const next = new Uint8Array(wire.length + taken);
      next.set(wire);
      next.set(bytes.subarray(0, taken), wire.length);
      wire = next;
      return taken;
    });
    change(wire, at);
    sink.pump((target) => {
      const taken = Math.min(target.length, wire.length, 1 + step * 13 % 20011);
      target.set(wire.subarray(0, taken));
      wire = wire.slice(taken);
      at += taken;
      return taken;
    });
  }
  return sink;
}

Deno.test("CheckedSink accepts a stream of any length in any portions", () => {
  for (const total of [1, 2, 3, 4, 5, 65_535, 65_536, 65_537, 300_001]) {
    const sink = move(total);
    assertEquals([sink.done, sink.verified, sink.wrongAt], [true, total, -1]);
  }
});

Deno.test("CheckedSink finds any one wrong byte", () => {
  const total = 140_003;
  for (
    const wrong of [0, 3, 4, 65_535, 65_536, 131_072, total - 4, total - 1]
  ) {
    let changed = false;
    const sink = move(total, (bytes, at) => {
      const index = wrong - at;
      if (changed || index < 0 || index >= bytes.length) return;
      bytes[index]! ^= 1;
      changed = true;
    });
    assertEquals([sink.done, sink.wrongAt], [false, wrong & ~3], `at ${wrong}`);
  }
});

Deno.test("CheckedSink tells streams of different seeds apart", () => {
  assertEquals(move(1000, () => {}, [1, 2]).wrongAt, 0);
});
