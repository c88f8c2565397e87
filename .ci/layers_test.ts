import { assert, assertEquals } from "@std/assert";
import { type Edge, edgesOf, urlEdges, violations } from "./layers.ts";

function edge(from: string, to: string): Edge {
  return { from, to, specifier: `./${to}` };
}

function bare(from: string, specifier: string): Edge {
  return { from, to: specifier, specifier };
}

Deno.test("layers: imports that point downwards break no rule", () => {
  assertEquals(
    violations([
      edge("ring/split_device.ts", "ring/memory.ts"),
      edge("device/mmio.ts", "device/virtio_device.ts"),
      edge("device/mmio.ts", "ring/queue.ts"),
      edge("device/vsock/device.ts", "device/virtio_device.ts"),
      edge("device/vhost_user/session.ts", "ring/memory.ts"),
      edge("device/mod.ts", "device/vsock/device.ts"),
      edge("device/host/unix_backend.ts", "device/mod.ts"),
      edge("mod.ts", "ring/mod.ts"),
      edge("mod.ts", "device/mod.ts"),
      edge("props/guest/vsock_driver.ts", "device/host/mmap.ts"),
      edge("props/cli.ts", "props/models/queue.ts"),
      edge("bench/ring_bench.ts", "props/guest/mod.ts"),
      edge("examples/demo.ts", "mod.ts"),
      edge("ring/memory_test.ts", "props/guest/mod.ts"),
      edge("mod_test.ts", "mod.ts"),
      bare("ring/memory_test.ts", "@std/assert"),
      bare("device/vsock/_fixture.ts", "@std/assert"),
      edge("device/vsock/device_test.ts", "device/vsock/_fixture.ts"),
      edge("ring/save_test.ts", "ring/_test_pair.ts"),
      bare("props/models/queue.ts", "fast-check"),
    ]),
    [],
  );
});

for (
  const planted of [
    edge("ring/memory.ts", "device/virtio_device.ts"),
    edge("ring/memory_test.ts", "device/virtio_device.ts"),
    edge("props/queue_model.ts", "ring/queue.ts"),
    edge("device/mmio.ts", "device/vsock/device.ts"),
    edge("device/mmio.ts", "device/mod.ts"),
    edge("device/vsock/device.ts", "device/vhost_user/session.ts"),
    edge("device/vhost_user/session.ts", "device/vsock/device.ts"),
    edge("device/vsock/device.ts", "device/host/socket.ts"),
    edge("device/mod.ts", "device/host/mod.ts"),
    edge("device/host/worker.ts", "mod.ts"),
    edge("device/host/worker.ts", "props/guest/mod.ts"),
    edge("mod.ts", "ring/memory.ts"),
    edge("mod.ts", "device/host/mod.ts"),
    edge("props/guest/mod.ts", "props/models/queue.ts"),
    edge("props/guest/mod.ts", "mod.ts"),
    edge("bench/ring_bench.ts", "props/models/queue.ts"),
    edge("ring/memory.ts", "ring/memory_test.ts"),
    edge("ring/memory.ts", "ring/_test_pair.ts"),
    edge("device/vsock/device.ts", "device/vsock/_fixture.ts"),
    edge("ring/memory.ts", ".ci/assert_shim.ts"),
    edge("scratch/x.ts", "ring/memory.ts"),
    bare("ring/memory.ts", "@std/assert"),
    bare("ring/memory.ts", "node:buffer"),
    bare("device/host/ffi.ts", "npm:x"),
    bare("props/guest/mod.ts", "jsr:@std/path@1"),
    bare("mod.ts", "http://127.0.0.1/ring/mod.ts"),
    bare("props/cli.ts", "http://127.0.0.1/x.ts"),
  ]
) {
  Deno.test(`layers: catches ${planted.from} -> ${planted.to}`, () => {
    const lines = violations([planted]);
    assertEquals(lines.length, 1);
    assert(lines[0]?.startsWith(`${planted.from} -> ${planted.to}: `));
  });
}

Deno.test("layers: edgesOf() reads code, type and broken imports of a module graph", () => {
  const edges = edgesOf({
    modules: [
      {
        specifier: "file:///r/ring/a.ts",
        dependencies: [
          { specifier: "./b.ts", type: { specifier: "file:///r/ring/b.ts" } },
          { specifier: "./no.ts", code: { specifier: "file:///r/ring/no.ts" } },
          { specifier: "@std/assert", code: {} },
        ],
      },
      { specifier: "file:///r/ring/no.ts", error: "Module not found" },
      { specifier: "file:///tmp/entry.ts", dependencies: [] },
    ],
  }, "file:///r/");
  assertEquals(edges.map((e) => [e.from, e.to]), [
    ["ring/a.ts", "ring/b.ts"],
    ["ring/a.ts", "ring/no.ts"],
    ["ring/a.ts", "@std/assert"],
  ]);
  assertEquals(violations(edges).length, 2);
});

Deno.test("layers: urlEdges() sees the module of a Worker", () => {
  const source =
    'new Worker(new URL("../../props/x.ts", import.meta.url), { type: "module" })';
  const edges = urlEdges("device/host/worker_port.ts", source);
  assertEquals(edges.map((e) => e.to), ["props/x.ts"]);
  assertEquals(violations(edges).length, 1);
});
