import { assert, assertEquals, assertGreater } from "@std/assert";
import { registered } from "./registry.ts";

Deno.test("Every benchmark moves what it says, twice, and every group has one baseline", async () => {
  const ends: (() => void)[] = [];
  const benches = await registered(async () => {
    await import("./ring_split_bench.ts");
    await import("./ring_packed_bench.ts");
    await import("./vsock_packet_bench.ts");
    await import("./vsock_stream_bench.ts");
    await import("./vsock_connections_bench.ts");
    ends.push((await import("./ring_split_threads_bench.ts")).close);
    ends.push((await import("./ring_packed_threads_bench.ts")).close);
  });
  try {
    assertGreater(benches.length, 80);
    const names = benches.map(({ name }) => name);
    assertEquals(new Set(names).size, names.length);
    for (const group of new Set(benches.map(({ group }) => group))) {
      const members = benches.filter((bench) => bench.group === group);
      assert(members.length >= 2, group);
      assertEquals(members.filter(({ baseline }) => baseline).length, 1, group);
    }
    for (const { fn } of benches) {
      fn();
      fn();
    }
  } finally {
    for (const end of ends) end();
  }
});
