import { check } from "./check.ts";
import { Connections } from "./vsock_connections.ts";

/** Packets that one iteration of the muxer moves, all of different connections if there are so many. */
const PACKETS = 4096;
const BYTES = 64;
/** Packets that are sent before the device runs. */
const BURST = 64;

const data = crypto.getRandomValues(new Uint8Array(BYTES));
const words = new Int32Array(data.buffer);

for (const count of [1, 16, 256, 1000]) {
  const group = "vsock/muxer/guest_to_host";
  let made: Connections | undefined;
  const target = new Uint8Array(BYTES * BURST);
  const targetWords = new Int32Array(target.buffer);
  Deno.bench(`${group}/c${count}`, { group, baseline: count === 1 }, () => {
    const { guest, near, far } = made ??= new Connections("split", count);
    let received = 0;
    for (let sent = 0; sent < PACKETS; sent += BURST) {
      for (let i = 0; i < BURST; i++) {
        check("bytes sent", near[(sent + i) % count]!.send(data), BYTES);
      }
      guest.run();
      // With few connections several packets wait in each.
      for (let i = 0; i < Math.min(BURST, count); i++) {
        const got = far[(sent + i) % count]!.tryRead(target) ?? 0;
        for (let at = 0; at < got / 4; at++) {
          if (targetWords[at] !== words[at % words.length]) {
            throw new Error(`a wrong byte near ${at * 4}`);
          }
        }
        received += got;
      }
    }
    check("bytes", received, PACKETS * BYTES);
  });
}

for (const count of [1, 100, 1000]) {
  const options = (kind: string) => ({
    group: `vsock/snapshot/${kind}`,
    baseline: count === 1,
  });
  let made: Connections | undefined;
  Deno.bench(`vsock/snapshot/save/c${count}`, options("save"), () => {
    const { guest } = made ??= new Connections("split", count);
    const { model } = guest.virtio.save() as unknown as {
      model: { connections: unknown[] };
    };
    check("connections", model.connections.length, count);
  });
  Deno.bench(`vsock/snapshot/migrate/c${count}`, options("migrate"), () => {
    const connections = made ??= new Connections("split", count);
    connections.migrate();
    connections.guest.run();
    const last = connections.near.at(-1)!;
    check("bytes sent", last.send(data), BYTES);
    connections.guest.run();
    const target = new Uint8Array(BYTES);
    check("bytes", connections.far.at(-1)!.tryRead(target), BYTES);
  });
}
