/**
 * A device that is killed in the middle of traffic, and another one that goes on with its rings by the
 * in-flight regions that the front-end has kept. That no buffer is lost or used twice is the driver's to say: it
 * refuses a completion of what it did not offer, and in the end every receive buffer has come back.
 */
import { assert, assertEquals } from "@std/assert";
import {
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
} from "../device/vhost_user/constants.ts";
import type { RingFormat } from "../ring/queue.ts";
import { Rig } from "./front_end_rig.ts";
import type { GuestConnection } from "./guest/guest_connection.ts";

/** Kills in each test. */
const CRASHES = Number(Deno.env.get("RINGSIDE_CRASHES") ?? 6);
const QUEUE_SIZE = 128;
const CHUNK = Uint8Array.from({ length: 50_000 }, (_, i) => i * i >> 3);

const PROTOCOL_FEATURES = [
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
];

/** Streams without end, two each way, until the device is gone. */
class Traffic {
  readonly nears: GuestConnection[] = [];
  readonly #tasks: Promise<void>[] = [];
  readonly #sending: GuestConnection[] = [];
  readonly #chunk = new Uint8Array(CHUNK.length);
  bytes = 0;

  static async start(rig: Rig): Promise<Traffic> {
    const traffic = new Traffic();
    for (const port of [5001, 5002]) {
      const up = await rig.fromGuest(port);
      const down = await rig.fromHost(port);
      traffic.nears.push(up.near, down.near);
      traffic.#sending.push(up.near);
      traffic.#tasks.push(swallow(up.far), feed(down.far));
    }
    return traffic;
  }

  /** Sends and reads what can be sent and read at the guest's end. */
  step(): void {
    for (const near of this.nears) {
      if (near.state !== "connected") continue;
      if (this.#sending.includes(near)) this.bytes += near.send(CHUNK);
      for (let got; (got = near.read(this.#chunk)) > 0;) this.bytes += got;
    }
  }

  /** Says a word on every connection, as programs do sooner or later. */
  speak(): void {
    for (const near of this.nears) {
      if (near.state === "connected") near.send(CHUNK.subarray(0, 1));
    }
  }

  /** The host programs have noticed. */
  async ended(): Promise<void> {
    await Promise.all(this.#tasks);
  }
}

async function swallow(far: Deno.Conn): Promise<void> {
  const chunk = new Uint8Array(1 << 16);
  try {
    while (await far.read(chunk) !== null);
  } catch (error) {
    assert(error instanceof Deno.errors.ConnectionReset, String(error));
  }
  far.close();
}

async function feed(far: Deno.Conn): Promise<void> {
  try {
    for (;;) await far.write(CHUNK);
  } catch (error) {
    assert(
      error instanceof Deno.errors.BrokenPipe ||
        error instanceof Deno.errors.ConnectionReset,
      String(error),
    );
  }
  far.close();
}

/** Makes the device use every receive buffer that it has, and none is left. */
async function drainReceiveBuffers(rig: Rig): Promise<void> {
  const { driver } = rig.front;
  const { near, far } = await rig.fromHost(6000);
  driver.rxPaused = true;
  const fed = feed(far);
  const chunk = new Uint8Array(1 << 16);
  await rig.front.until(() => {
    while (near.read(chunk) > 0);
    return driver.postedBuffers === 0;
  });
  driver.rxPaused = false;
  driver.poll();
  assertEquals(driver.postedBuffers, QUEUE_SIZE);
  near.abort();
  await rig.drive(fed);
  await rig.front.until(() => driver.unusedPackets === 0);
}

function crashTest(ring: RingFormat, queues: 2 | 3): void {
  Deno.test(`A device takes up what a killed one had in flight: ${ring}, ${queues} queues`, async () => {
    let seed = ring === "split" ? queues : 10 + queues;
    const random = (below: number): number => {
      seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff;
      return (seed >>> 8) % below;
    };
    await using rig = await Rig.startProcess({
      ring,
      queues,
      queueSize: QUEUE_SIZE,
      protocolFeatures: PROTOCOL_FEATURES,
      driver: { strict: false },
    });
    const { front } = rig;
    const { driver } = front;
    const hits = [0, 0, 0];
    // More only where, against all odds, no kill has hit a buffer in flight.
    let crash = 0;
    while (crash < CRASHES || (hits[0] === 0 && crash < 4 * CRASHES)) {
      crash++;
      const traffic = await Traffic.start(rig);
      const enough = 200_000 + random(2_000_000);
      await front.until(() => {
        traffic.step();
        return traffic.bytes > enough;
      });
      // Somewhere in what the device does with this.
      traffic.step();
      driver.flush();
      const until = performance.now() + random(300) / 1000;
      while (performance.now() < until);
      const { pid } = rig;
      const crashed = rig.crash();
      // Nobody answers now, and the guest goes on until its queue is full.
      traffic.step();
      driver.flush();
      await crashed;
      assert(rig.pid !== pid);
      for (const index of hits.keys()) {
        if (index < queues) hits[index]! += front.inFlight(index);
      }
      // The regions tell where the rings stand, whatever the front-end thinks.
      if (crash % 2 === 0) front.reconnect();
      else {front.reconnect(
          Array(queues).fill(ring === "split" ? 0 : 0x80008000),
        );}
      if (queues === 2) traffic.speak();
      await front.until(() =>
        traffic.nears.every(({ state }) => state === "closed")
      );
      if (queues === 3) await front.until(() => driver.events === crash);
      await traffic.ended();
      await rig.echo();
      await drainReceiveBuffers(rig);
      assertEquals(driver.connections, 0);
      // The next device answers each packet of a connection that it does not know by RST; one that knew it
      // would do so once.
      const wrong = driver.violations.filter((text) =>
        !text.startsWith("RST after the device's RST")
      );
      assertEquals(wrong, []);
    }
    // deno-lint-ignore no-console
    console.log(
      `${ring}, ${queues} queues: ${crash} kills, ${hits[0]} receive and ${
        hits[1]
      } transmit buffers in flight`,
    );
    assert(hits[0]! > 0, "no kill hit a buffer in flight");
  });
}

for (const ring of ["split", "packed"] as const) {
  crashTest(ring, 2);
  crashTest(ring, 3);
}
