import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { type DeviceOptions, startDevice } from "../../device/host/mod.ts";
import { libc } from "../../device/host/ffi.ts";
import { type BackEnd, judgeBackEnd, type Result } from "./front_end.ts";

// The library stays open for good, so that no test is the one that opens it.
libc();

async function judge(options: Partial<DeviceOptions>): Promise<Result[]> {
  const folder = await Deno.makeTempDir();
  const backEnd: BackEnd = {
    socketPath: `${folder}/vhost`,
    udsPath: `${folder}/vsock`,
  };
  const device = await startDevice({ ...backEnd, ...options });
  try {
    return await judgeBackEnd(backEnd);
  } finally {
    await device.stop();
    await Deno.remove(folder, { recursive: true });
  }
}

Deno.test("examples/oracle/front_end.ts: nothing is wrong with Ringside's device", async () => {
  const results = await judge({});
  const rings = results.map(({ ring }) => ring);
  assertEquals(rings.filter((ring) => ring === "split").length, 5);
  assertEquals(rings.filter((ring) => ring === "packed").length, 5);
  for (const { name, wrong } of results) assertEquals(wrong, [], name);
});

Deno.test("examples/oracle/front_end.ts tells which scenario fails, and drives split rings alone where no others are offered", async () => {
  const results = await judge({ ring: "split", allowedHostPorts: [1] });
  assertEquals(results.map(({ wrong }) => wrong.length), [0, 1, 1, 1, 0]);
  const [, first] = results;
  assert(first !== undefined);
  assertStringIncludes(first.wrong[0]!, "the connection ends by refused");
});

Deno.test("examples/oracle/front_end.ts tells what was wrong when the back-end is gone in the middle", async () => {
  const folder = await Deno.makeTempDir();
  const socketPath = `${folder}/vhost`;
  const device = await startDevice({ socketPath, udsPath: `${folder}/vsock` });
  // A host program is taken here, and hears nothing: the device ends then.
  const udsPath = `${folder}/deaf`;
  const deaf = Deno.listen({ transport: "unix", path: udsPath });
  const taken = deaf.accept();
  const ended = taken.then(() => device.stop());
  try {
    const results = await judgeBackEnd({
      socketPath,
      udsPath,
      patienceMs: 1500,
    });
    // Nobody has come where this fails.
    deaf.close();
    await ended;
    assertEquals(results.map(({ ring }) => ring), Array(5).fill("split"));
    assertStringIncludes(results[4]!.wrong[0]!, "a REQUEST does not come");
    (await taken).close();
  } finally {
    await device.stop();
    await Deno.remove(folder, { recursive: true });
  }
});
