import { assertEquals, assertRejects } from "@std/assert";
import { loadModules, moduleDependencies, moduleName } from "./modules.ts";

function module(depends: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(
    `\x7fELF\0\0\0dep\0license=GPL\0depends=${depends}\0retpoline=Y\0`,
  );
}

async function withFolder(
  files: Record<string, Uint8Array<ArrayBuffer>>,
  use: (folder: string) => Promise<void>,
): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    for (const [path, content] of Object.entries(files)) {
      const end = path.lastIndexOf("/");
      await Deno.mkdir(`${folder}/${path.slice(0, end)}`, { recursive: true });
      await Deno.writeFile(`${folder}/${path}`, content);
    }
    await use(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

Deno.test("moduleName() takes suffixes off and spells dashes as the kernel does", () => {
  assertEquals(moduleName("virtio-rng.ko"), "virtio_rng");
  assertEquals(moduleName("vsock.ko.xz"), "vsock");
  assertEquals(moduleName("vsock.ko.zst"), "vsock");
  assertEquals(moduleName("vsock.ko.gz"), "vsock");
  assertEquals(moduleName("modules.dep"), undefined);
  assertEquals(moduleName("vsock.ko.sig"), undefined);
});

Deno.test("moduleDependencies() reads the .modinfo strings", () => {
  assertEquals(moduleDependencies(module("")), []);
  assertEquals(moduleDependencies(module("vsock")), ["vsock"]);
  assertEquals(moduleDependencies(module("a-b,c")), ["a_b", "c"]);
  assertEquals(moduleDependencies(new Uint8Array(100)), []);
});

Deno.test("loadModules() puts dependencies first and unpacks gzip", async () => {
  const zipped = new Uint8Array(
    await new Response(
      new Blob([module("c,builtin")]).stream()
        .pipeThrough(new CompressionStream("gzip")),
    ).arrayBuffer(),
  );
  await withFolder({
    "net/a.ko": module("b,c"),
    "net/deep/b.ko.gz": zipped,
    "lib/c.ko": module(""),
    "lib/unused.ko": module(""),
  }, async (folder) => {
    const modules = await loadModules(folder, ["a", "c"]);
    assertEquals(modules.map((one) => one.name), ["c", "b", "a"]);
    assertEquals(modules[1]!.content, module("c,builtin"));
  });
});

Deno.test("loadModules() rejects a wanted module that is not there", async () => {
  await withFolder({ "net/a.ko": module("") }, async (folder) => {
    await assertRejects(
      () => loadModules(folder, ["vsock"]),
      Error,
      "Cannot load vsock: no file in",
    );
  });
});
