/**
 * Real Linux drivers whose queues are stopped, continued, taken away and started anew under traffic.
 *
 * `RINGSIDE_STOP_CONT_CYCLES` says how often a machine is stopped, 10 times unless told, and
 * `RINGSIDE_GUEST_KILLS` how many guests are killed on one device, 5 unless told; of QEMU's, half as many.
 */
// deno-lint-ignore-file no-console
import { assert, assertEquals, assertGreater, assertLess } from "@std/assert";
import { openFds } from "./front_end_rig.ts";
import type { VmKind } from "./guest/vm/mod.ts";
import { skippedWithout } from "./guest/vm/skip.ts";
import { GuestSetup } from "./guest_setup.ts";
import { GuestTraffic, sleep, untilStill } from "./guest_traffic.ts";
import { type Digest, readAll, within } from "./streams.ts";

const CYCLES = countFrom("RINGSIDE_STOP_CONT_CYCLES", 10);
const KILLS = countFrom("RINGSIDE_GUEST_KILLS", 5);
/** Bound of a stall after `cont`. */
const STALL_LIMIT_MS = 1000;
/** How long a host program may not know that its guest is gone. */
const END_LIMIT_MS = 3000;

function countFrom(variable: string, fallback: number): number {
  const words = Deno.env.get(variable) ?? String(fallback);
  if (!/^[1-9]\d*$/.test(words)) {
    throw new TypeError(`Cannot take ${variable}=${words}: no count`);
  }
  return Number(words);
}

/** How long after a driver has started its rings the log may take to say so. */
const LOG_LIMIT_MS = 1000;

/** What a lawful guest gives no reason to log. */
function complaints(setup: GuestSetup): string[] {
  return setup.log.filter((line) => /^(warn|error)/.test(line));
}

/** All rings that the machine hands over have started as new ones, once, since the last look. */
async function assertStartedNew(setup: GuestSetup): Promise<void> {
  const { vm, ring } = setup;
  const [size, rings] = vm === "uml" ? [256, [0, 1, 2]] : [128, [0, 1]];
  const lines: string[] = [];
  // The log comes from another thread, and the guest does not wait for it.
  const end = performance.now() + LOG_LIMIT_MS;
  do {
    await setup.device.metrics();
    lines.push(...setup.newLog().filter((line) => / started /.test(line)));
  } while (lines.length < rings.length && performance.now() < end);
  assertEquals(
    lines,
    rings.map((index) => `debug: ring ${index} (${ring}, ${size}) started new`),
  );
}

async function stopAndCont(setup: GuestSetup): Promise<void> {
  using traffic = await GuestTraffic.start(setup);
  const started = performance.now();
  let longest = 0;
  for (let cycle = 0; cycle < CYCLES; cycle++) {
    await sleep(Math.random() * 30);
    await setup.guest.qmp("stop");
    await untilStill(traffic.streams);
    await setup.guest.qmp("cont");
    if (cycle % 4 === 3) {
      // Another one before anything has moved.
      await setup.guest.qmp("stop");
      await setup.guest.qmp("cont");
    }
    longest = Math.max(longest, await traffic.flowing());
  }
  const seconds = (performance.now() - started) / 1000;
  await traffic.end();
  console.log(
    `    ${CYCLES} cycles of stop and cont in ${seconds.toFixed(1)} s, ${
      (traffic.bytes / 1e6).toFixed(0)
    } MB both ways verified, longest stall ${longest.toFixed(0)} ms`,
  );
  assertLess(longest, STALL_LIMIT_MS, "a stall after cont");
  const stops = setup.log.filter((line) => /ring 1 .* stopped at/.test(line));
  assertGreater(stops.length, CYCLES - 1, "stopped in deed");
}

/** Takes the device from its driver and gives it back; returns its feature bits as text. */
const REBIND = `
driver = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport"
device = next(name for name in os.listdir(driver) if name.startswith("virtio"))
with open(driver + "/" + device + "/features") as file:
    result = file.read().strip()
for action in ("unbind", "bind"):
    with open(driver + "/" + action, "w") as file:
        file.write(device)
`;

/** Removes the driver from the kernel and loads it again. */
const RELOAD = `
import subprocess
busybox = modules = None
with open(os.path.dirname(sys.argv[0]) + "/config") as file:
    for line in file:
        name, _, value = line.rstrip().partition("=")
        if name == "BUSYBOX":
            busybox = value.strip("'")
        if name == "MODULES":
            modules = value.strip("'").split()
driver = "vmw_vsock_virtio_transport"
path = next(path for path in modules if path.endswith("/" + driver + ".ko"))
# Sockets that were closed hold it until the device has answered, or for the 8 s that Linux waits for that.
end = time.monotonic() + 20
while subprocess.run([busybox, "rmmod", driver], stderr=subprocess.DEVNULL).returncode != 0:
    if time.monotonic() > end:
        raise Exception("the driver is in use for 20 s")
    time.sleep(0.05)
subprocess.run([busybox, "insmod", path], check=True)
`;

/** Takes the driver away under traffic and gives it back; the old streams are cut. */
async function rebindUnderTraffic(setup: GuestSetup): Promise<string> {
  using old = await GuestTraffic.start(setup);
  setup.newLog();
  const features = await setup.guest.python<string>(REBIND);
  await within(END_LIMIT_MS, "the end of the streams", old.finished());
  for (const error of await old.guestErrors()) {
    assert(error !== undefined, "the guest's end of a stream was not cut");
  }
  return features;
}

/**
 * The same with a stream that is idle: the reset of a device by user-mode-linux 6.1 reaches no
 * device, so that one that works would go on in memory that the driver has given back.
 */
async function rebindIdle(setup: GuestSetup): Promise<string> {
  const port = setup.port();
  const waiting = setup.guest.start({ op: "slow_reader", listen: port });
  await waiting.event("listening");
  using conn = await setup.connect(port);
  await waiting.event("waiting");
  setup.newLog();
  const features = await setup.guest.python<string>(REBIND);
  await within(END_LIMIT_MS, "the end of the stream", readAll(conn));
  await setup.guest.agent({ op: "tell", to: waiting.id, word: "resume" });
  const { error } = await waiting.result as Digest;
  assert(error !== undefined, "the guest's end of the stream was not cut");
  return features;
}

async function newDriver(setup: GuestSetup): Promise<void> {
  const { vm, ring } = setup;
  const features = vm === "uml"
    ? await rebindIdle(setup)
    : await rebindUnderTraffic(setup);
  assertEquals(features[40], "0", "RING_RESET");
  assertEquals(features[34], ring === "packed" ? "1" : "0");
  for (const code of [null, RELOAD, REBIND, RELOAD]) {
    if (code !== null) await setup.guest.python(code);
    await assertStartedNew(setup);
    using traffic = await GuestTraffic.start(setup);
    await sleep(Math.random() * 100);
    await traffic.end();
  }
}

for (const ring of ["split", "packed"] as const) {
  Deno.test(`Linux on qemu is stopped and continued under traffic, and starts new drivers (${ring})`, async (t) => {
    if (await skippedWithout("qemu")) return;
    await using setup = await GuestSetup.start("qemu", ring);
    await t.step(
      "stop and cont lose no byte of 8 connections",
      () => stopAndCont(setup),
    );
    await t.step(
      "a new driver on the same rings starts afresh",
      () => newDriver(setup),
    );
    assertEquals(complaints(setup), []);
  });
}

Deno.test("Linux on uml starts packed rings at base 0 as new ones, at each boot and for each driver", async () => {
  if (await skippedWithout("uml")) return;
  await using setup = await GuestSetup.start("uml", "packed");
  await assertStartedNew(setup);
  await newDriver(setup);
  await setup.guest.shutdown();
  await setup.boot();
  await assertStartedNew(setup);
  using traffic = await GuestTraffic.start(setup);
  await traffic.end();
  assertEquals(complaints(setup), []);
});

/** What a device holds for its guest, and the descriptors of this process, which it is in. */
async function inUse(setup: GuestSetup): Promise<Record<string, number>> {
  const { connections, host_streams, host_pending, front_end_connected } =
    await setup.device.metrics();
  return {
    connections: connections!,
    host_streams: host_streams!,
    host_pending: host_pending!,
    front_end_connected: front_end_connected!,
    fds: openFds("self"),
  };
}

/** Kills a guest under traffic and boots the next one on the same device, once for each of `guests`. */
async function killAndBoot(
  guests: readonly { vm: VmKind; ring: "split" | "packed" }[],
): Promise<void> {
  await using setup = await GuestSetup.startDevice();
  const fds = openFds("self");
  for (const [round, { vm, ring }] of guests.entries()) {
    await setup.boot(vm, ring);
    await assertStartedNew(setup);
    {
      using traffic = await GuestTraffic.start(setup);
      await sleep(Math.random() * 100);
      assertEquals((await setup.device.metrics()).host_streams, 8);
      await setup.guest.kill();
      await within(END_LIMIT_MS, "the end of the streams", traffic.finished());
      for (const { wrongAt } of traffic.streams) assertEquals(wrongAt, -1);
    }
    let left = await inUse(setup);
    const end = performance.now() + END_LIMIT_MS;
    while (
      (left.fds !== fds || left.connections !== 0) && performance.now() < end
    ) {
      await sleep(10);
      left = await inUse(setup);
    }
    assertEquals(left, {
      connections: 0,
      host_streams: 0,
      host_pending: 0,
      front_end_connected: 0,
      fds,
    }, `after guest ${round} (${vm}, ${ring})`);
  }
  assertEquals(complaints(setup), []);
}

Deno.test("Device outlives uml guests that are killed under traffic", async () => {
  if (await skippedWithout("uml")) return;
  await killAndBoot(new Array(KILLS).fill({ vm: "uml", ring: "packed" }));
});

Deno.test("Device outlives qemu guests of either ring that are killed under traffic", async () => {
  if (await skippedWithout("qemu")) return;
  await killAndBoot(
    Array.from({ length: Math.max(1, KILLS >> 1) }, (_, i) => ({
      vm: "qemu",
      ring: i % 2 === 0 ? "packed" : "split",
    })),
  );
});
