import { assertThrows } from "@std/assert";
import { EchoDevice } from "../../props/guest/mmio_rig.ts";
import { VirtioDevice, type VirtioDeviceOptions } from "../virtio_device.ts";
import type { SessionPorts } from "./ports.ts";
import { VhostUserSession } from "./session.ts";

const CASES: [VirtioDeviceOptions, number][] = [
  [{ queueState: true }, 40],
  [{ ringReset: true }, 40],
  [{ suspend: true }, 43],
  [{ notificationData: true }, 38],
  [{ notifConfigData: [1, 2] }, 39],
];

for (const [options, bit] of CASES) {
  Deno.test(`VhostUserSession does not carry a device with ${Object.keys(options)}`, () => {
    const virtio = new VirtioDevice(new EchoDevice([8, 8]), options);
    assertThrows(
      () => new VhostUserSession(virtio, {} as SessionPorts),
      TypeError,
      `Cannot carry the device by vhost-user: it offers feature bit ${bit}`,
    );
  });
}
