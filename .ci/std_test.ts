import { assertEquals, assertStringIncludes } from "@std/assert";

const ROOT = new URL("../", import.meta.url).pathname;
const FALLBACK = "--import-map=.ci/offline.json\n";

async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", bytes);
  return new Uint8Array(digest).toHex();
}

/** A registry that has one version of `@std/assert`, made of the given source. */
async function registry(source: string): Promise<Map<string, string>> {
  const bytes = new TextEncoder().encode(source);
  return new Map([
    [
      "/@std/assert/meta.json",
      JSON.stringify({
        scope: "std",
        name: "assert",
        latest: "1.9.9",
        versions: { "1.9.9": {} },
      }),
    ],
    [
      "/@std/assert/1.9.9_meta.json",
      JSON.stringify({
        exports: { ".": "./mod.ts" },
        manifest: {
          "/mod.ts": {
            size: bytes.length,
            checksum: `sha256-${await sha256(bytes)}`,
          },
        },
      }),
    ],
    ["/@std/assert/1.9.9/mod.ts", source],
  ]);
}

/** Runs Deno with an empty cache against a registry; what it wrote to stdout. */
async function runWith(
  registryUrl: string,
  args: readonly string[],
): Promise<string> {
  const cache = await Deno.makeTempDir();
  try {
    const { stdout } = await new Deno.Command(Deno.execPath(), {
      args: [...args],
      cwd: ROOT,
      env: { DENO_DIR: cache, JSR_URL: registryUrl, NO_COLOR: "1" },
    }).output();
    return new TextDecoder().decode(stdout);
  } finally {
    await Deno.remove(cache, { recursive: true });
  }
}

const STD = ["run", "-A", "--quiet", ".ci/std.ts"];

Deno.test("std: falls back where nobody answers", async () => {
  assertEquals(await runWith("http://127.0.0.1:1/", STD), FALLBACK);
});

Deno.test("std: falls back where the registry never answers", async () => {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const conns: Deno.Conn[] = [];
  const accepting = (async () => {
    for await (const conn of listener) conns.push(conn);
  })();
  const output = await runWith(`http://127.0.0.1:${listener.addr.port}/`, STD);
  listener.close();
  await accepting;
  for (const conn of conns) conn.close();
  assertEquals(output, FALLBACK);
});

Deno.test("std: leaves it to deno.json where the registry answers, and tests then use the registry", async () => {
  const files = await registry(
    'export function assertEquals(): void { console.log("from the registry"); }\n',
  );
  const server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen: () => {} },
    (request) => {
      const body = files.get(new URL(request.url).pathname);
      const type = request.url.endsWith(".ts")
        ? "application/typescript"
        : "application/json";
      return body === undefined
        ? new Response(null, { status: 404 })
        : new Response(body, { headers: { "content-type": type } });
    },
  );
  try {
    const url = `http://127.0.0.1:${server.addr.port}/`;
    assertEquals(await runWith(url, STD), "");
    const script =
      'import { assertEquals } from "@std/assert"; assertEquals();';
    assertStringIncludes(
      await runWith(url, ["eval", "--quiet", script]),
      "from the registry",
    );
  } finally {
    await server.shutdown();
  }
});
