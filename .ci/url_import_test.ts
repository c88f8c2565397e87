import { assert, assertEquals, assertStringIncludes } from "@std/assert";

const ROOT = new URL("../", import.meta.url);

/** Moves buffers through both ring formats with nothing but what `mod.ts` exports. */
const SCRIPT = `
import {
  BufferList, Chain, GuestMemory, PackedDevice, PackedDriver, SplitDevice, SplitDriver,
} from "ORIGIN/mod.ts";

const SIZE = 8;
const ROUNDS = 100;
const config = { size: SIZE, descriptorArea: 0, driverArea: 0x400, deviceArea: 0x800, eventIdx: true };

for (const [format, Driver, Device] of [
  ["split", SplitDriver, SplitDevice],
  ["packed", PackedDriver, PackedDevice],
]) {
  const buffer = new ArrayBuffer(0x10000);
  const memory = new GuestMemory([{ guestAddress: 0, size: buffer.byteLength, buffer }]);
  const driver = new Driver(memory, config);
  const device = new Device(memory, config);
  const chain = new Chain(memory);
  const list = new BufferList();
  const bytes = new Uint8Array(buffer);
  let moved = 0;
  for (let round = 0; round < ROUNDS; round++) {
    for (let i = 0; i < SIZE / 2; i++) {
      const address = 0x1000 + i * 0x100;
      bytes.fill(round + i, address, address + 16);
      bytes.fill(0, address + 0x80, address + 0x90);
      if (driver.add(list.clear().addReadable(address, 16).addWritable(address + 0x80, 16)) < 0) {
        throw new Error(format + ": no room");
      }
    }
    driver.publish();
    const copy = new Uint8Array(16);
    while (device.pop(chain)) {
      if (chain.fault !== null) throw chain.fault;
      if (chain.read(copy) !== 16 || chain.write(copy) !== 16) throw new Error(format + ": short buffer");
      device.push(chain.token, 16);
    }
    device.publish();
    while (driver.reclaim() >= 0) {
      if (driver.usedLength !== 16) throw new Error(format + ": used length " + driver.usedLength);
      moved++;
    }
    for (let i = 0; i < SIZE / 2; i++) {
      for (let at = 0; at < 16; at++) {
        const value = bytes[0x1000 + i * 0x100 + 0x80 + at];
        if (value !== (round + i) % 256) throw new Error(format + ": got " + value);
      }
    }
  }
  console.log(format + " moved " + moved);
}
`;

/** The repository on loopback, and the paths that were asked for. */
function serve(): { origin: string; asked: string[]; server: Deno.HttpServer } {
  const asked: string[] = [];
  const server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen: () => {} },
    async (request) => {
      const path = new URL(request.url).pathname.slice(1);
      asked.push(path);
      try {
        return new Response(await Deno.readTextFile(new URL(path, ROOT)), {
          headers: { "content-type": "application/typescript" },
        });
      } catch {
        return new Response(null, { status: 404 });
      }
    },
  );
  const { port } = server.addr as Deno.NetAddr;
  return { origin: `http://127.0.0.1:${port}`, asked, server };
}

/** Runs Deno with an empty cache and without the repository's configuration, outside of it. */
async function run(
  args: (origin: string, folder: string) => Promise<string[]> | string[],
): Promise<{ code: number; stdout: string; stderr: string; asked: string[] }> {
  const { origin, asked, server } = serve();
  const folder = await Deno.makeTempDir();
  try {
    const output = await new Deno.Command(Deno.execPath(), {
      args: await args(origin, folder),
      cwd: folder,
      env: { DENO_DIR: `${folder}/cache`, NO_COLOR: "1" },
      stdin: "null",
    }).output();
    const decoder = new TextDecoder();
    return {
      code: output.code,
      stdout: decoder.decode(output.stdout),
      stderr: decoder.decode(output.stderr),
      asked,
    };
  } finally {
    await server.shutdown();
    await Deno.remove(folder, { recursive: true });
  }
}

Deno.test("mod.ts, imported from a URL, moves buffers through a split and a packed queue", async () => {
  const { code, stdout, stderr, asked } = await run(async (origin, folder) => {
    const script = `${folder}/script.ts`;
    await Deno.writeTextFile(script, SCRIPT.replace("ORIGIN", origin));
    const host = origin.slice("http://".length);
    return ["run", "--no-config", `--allow-import=${host}`, script];
  });
  assertEquals({ code, stdout }, {
    code: 0,
    stdout: "split moved 400\npacked moved 400\n",
  }, stderr);
  assert(asked.includes("mod.ts"));
  for (const path of asked) {
    assert(/^(mod\.ts$|ring\/|device\/(?!host\/))/.test(path), path);
  }
});

Deno.test("device/host/cli.ts, run from a URL, answers --help", async () => {
  const { code, stdout, stderr, asked } = await run((origin) => [
    "run",
    "--no-config",
    `${origin}/device/host/cli.ts`,
    "--help",
  ]);
  assertEquals(code, 0, stderr);
  assertStringIncludes(stdout, "--socket");
  for (const path of asked) assert(/^(ring|device)\//.test(path), path);
});
