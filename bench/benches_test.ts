import { assert, assertEquals, assertGreater } from "@std/assert";

type Bench = { name: string; group: string; baseline: boolean; fn: () => void };

/** What the files register, without measuring it, and what ends their threads. */
async function registered(): Promise<{ benches: Bench[]; close: () => void }> {
  const benches: Bench[] = [];
  const { bench } = Deno;
  const note = (
    name: string,
    options: { group: string; baseline?: boolean },
    fn: () => void,
  ) => {
    const { group, baseline = false } = options;
    benches.push({ name, group, baseline, fn });
  };
  Object.assign(Deno, { bench: note });
  try {
    await import("./ring_split_bench.ts");
    await import("./ring_packed_bench.ts");
    await import("./vsock_packet_bench.ts");
    await import("./vsock_stream_bench.ts");
    await import("./vsock_connections_bench.ts");
    const split = await import("./ring_split_threads_bench.ts");
    const packed = await import("./ring_packed_threads_bench.ts");
    const close = () => {
      split.close();
      packed.close();
    };
    return { benches, close };
  } finally {
    Object.assign(Deno, { bench });
  }
}

Deno.test("Every benchmark moves what it says, twice, and every group has one baseline", async () => {
  const { benches, close } = await registered();
  assertGreater(benches.length, 50);
  const names = benches.map(({ name }) => name);
  assertEquals(new Set(names).size, names.length);
  for (const group of new Set(benches.map(({ group }) => group))) {
    const members = benches.filter((bench) => bench.group === group);
    assert(members.length >= 2, group);
    assertEquals(members.filter(({ baseline }) => baseline).length, 1, group);
  }
  try {
    for (const { fn } of benches) {
      fn();
      fn();
    }
  } finally {
    close();
  }
});
