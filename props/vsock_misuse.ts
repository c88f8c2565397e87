/**
 * Calls that a device's owner or a host program must not make: each is refused in words, and nothing comes of it.
 *
 * @module
 */

import { VsockDevice } from "../device/vsock/device.ts";
import { LoopbackHost } from "../device/vsock/loopback.ts";
import { VirtioDevice } from "../device/virtio_device.ts";
import {
  useListener,
  useMessages,
  useQueues,
  useStream,
} from "./loopback_use.ts";
import { refused } from "./refused.ts";
import { Violation } from "./violation.ts";
import type { VsockRig } from "./vsock_rig.ts";

/** How many calls there are. */
export const MISUSES = 16;

/**
 * Makes call `which`.
 *
 * @throws {Violation} when it is not refused as it should be.
 */
export function misuse(rig: VsockRig, which: number): string {
  const { host, device } = rig;
  const other = new LoopbackHost({ schedule: () => {} });
  const make = (options: object) =>
    new VsockDevice({ guestCid: 4, host: other, ...options });
  const no = { accepted: unexpected, refused: () => {} };
  switch (which) {
    case 0:
      return refused(RangeError, () => make({ guestCid: 2 }));
    case 1:
      return refused(RangeError, () => make({ bufAlloc: 0 }));
    case 2:
      return refused(RangeError, () => make({ maxConnections: 0 }));
    case 3:
      return refused(
        TypeError,
        () => device.attach(new VirtioDevice(make({}))),
      );
    case 4:
      return refused(RangeError, () => device.connect(0xffff_ffff, no));
    case 5:
      return refused(TypeError, () => host.attach(device));
    case 6:
      return refused(RangeError, () => host.listen(-1));
    case 7: {
      const listener = other.listen(1);
      refused(TypeError, () => other.listen(1));
      listener.close();
      listener.close();
      other.listen(1).close();
      return "";
    }
    case 8:
      other.connect(1).then(unexpected, () => {});
      return "";
    case 9: {
      // No driver has started it.
      let reason = "";
      make({}).connect(1, {
        ...no,
        refused: (text: string) => reason = text,
      });
      if (reason === "") throw new Violation("misuse", "a connect hangs");
      return reason;
    }
    case 10:
      // Neither a device without seqpackets takes one, nor a guest.
      other.attach({ connect: () => unexpected(), process: () => false });
      other.connect(1, { type: "seqpacket" }).then(unexpected, () => {});
      if (rig.streamsOnly) {
        host.connect(1, { type: "seqpacket" }).then(unexpected, () => {});
      }
      return "";
    case 11:
      return useStream();
    case 12:
      return useMessages();
    case 13:
      return useListener();
    case 14:
      return useQueues();
    default: {
      if (make({}).process()) {
        throw new Violation("misuse", "a device without a driver has work");
      }
      return "";
    }
  }
}

function unexpected(): never {
  throw new Violation("misuse", "what must be refused is taken");
}
