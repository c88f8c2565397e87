import { assertEquals, assertThrows } from "@std/assert";
import { EchoDevice } from "../props/guest/mmio_rig.ts";
import {
  VIRTIO_F_NOTIF_CONFIG_DATA,
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_VERSION_1,
} from "../ring/virtio_ring.ts";
import { featureMask } from "./transport_features.ts";
import { VirtioDevice, type VirtioDeviceOptions } from "./virtio_device.ts";

function kicks(
  options: VirtioDeviceOptions,
  bits: number[],
  values: number[],
): { kicked: number[]; unknown: number } {
  const model = new EchoDevice([8, 8, 8]);
  const virtio = new VirtioDevice(model, options);
  const kicked: number[] = [];
  virtio.kick = (index) => kicked.push(index);
  let features = featureMask(VIRTIO_F_VERSION_1);
  for (const bit of bits) features |= featureMask(bit);
  virtio.setFeatures(features);
  virtio.setStatus(15);
  assertEquals(virtio.status, 15);
  for (const value of values) virtio.notify(value);
  const unknown = virtio.diagnostics.counters.get("notification_unknown") ?? 0;
  return { kicked, unknown };
}

Deno.test("VirtioDevice.notify() takes an index, or a value of the device, each with data or without", () => {
  const DATA = VIRTIO_F_NOTIFICATION_DATA;
  const CONFIG = VIRTIO_F_NOTIF_CONFIG_DATA;
  const options = {
    notificationData: true,
    notifConfigData: [0x1234, 7, 0xffff],
  };
  assertEquals(kicks(options, [], [0, 2, 3, 0x10001]), {
    kicked: [0, 2],
    unknown: 2,
  });
  assertEquals(kicks(options, [DATA], [0x80010001, 2, 0x1234]), {
    kicked: [1, 2],
    unknown: 1,
  });
  assertEquals(kicks(options, [CONFIG], [0x1234, 0xffff, 0, 0x10007]), {
    kicked: [0, 2],
    unknown: 2,
  });
  assertEquals(
    kicks(options, [DATA, CONFIG], [0x00021234, 0xffffffff, 0x80010007, 1]),
    { kicked: [0, 2, 1], unknown: 1 },
  );
});

Deno.test("VirtioDevice gives each queue its value for notifications", () => {
  const values = [9, 8];
  const virtio = new VirtioDevice(new EchoDevice([8, 8]), {
    notifConfigData: values,
  });
  assertEquals([0, 1].map((i) => virtio.queueNotifConfigData(i)), values);
  const plain = new VirtioDevice(new EchoDevice([8, 8]));
  assertEquals([0, 1].map((i) => plain.queueNotifConfigData(i)), [0, 1]);
  for (const wrong of [[1], [1, 1], [1, 0x10000], [1, -1], [1, 0.5]]) {
    assertThrows(
      () =>
        new VirtioDevice(new EchoDevice([8, 8]), { notifConfigData: wrong }),
      RangeError,
    );
  }
});
