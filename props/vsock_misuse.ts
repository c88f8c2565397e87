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
import { expectSame, Violation } from "./violation.ts";
import { refusal, type VsockRig } from "./vsock_rig.ts";

/** How many calls there are. */
export const MISUSES = 18;

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
    case 15:
      return offerToOthers(rig);
    case 16:
      return offerWrong(rig);
    default: {
      if (make({}).process()) {
        throw new Violation("misuse", "a device without a driver has work");
      }
      return "";
    }
  }
}

/** A device of another kind takes no snapshot. */
function offerToOthers({ device }: VsockRig): string {
  const host = new LoopbackHost({ schedule: () => {} });
  const saved = device.save();
  const offer = (guestCid: number, bufAlloc: number, maxConnections: number) =>
    refusal(() =>
      new VsockDevice({ guestCid, host, bufAlloc, maxConnections })
        .prepareRestore(saved)
    );
  const { guestCid, bufAlloc, connections } = saved;
  const most = connections.length;
  const mismatch = "MISMATCH";
  const another = offer(guestCid + 1, bufAlloc, most + 1);
  expectSame("snapshot", "another guest's", another, mismatch);
  const small = offer(guestCid, bufAlloc - 1, most + 1);
  expectSame("snapshot", "one of larger buffers", small, mismatch);
  if (most > 1) {
    const few = offer(guestCid, bufAlloc, most - 1);
    expectSame("snapshot", "one of more connections", few, mismatch);
  }
  expectSame(
    "snapshot",
    "its own",
    offer(guestCid, bufAlloc, most + 1),
    "taken",
  );
  return "";
}

/** Snapshots that no device and no host side have made: nothing is made of them. */
function offerWrong({ device, host }: VsockRig): string {
  const other = new LoopbackHost({ schedule: () => {} });
  const { guestCid, bufAlloc, ...rest } = device.save();
  const fresh = new VsockDevice({ guestCid, host: other, bufAlloc });
  const offer = (connections: unknown[]): string =>
    refusal(() =>
      fresh.prepareRestore({ guestCid, bufAlloc, ...rest, connections })
    );
  const wrong = "CONTENT";
  for (const one of rest.connections) {
    // A stream has no messages, and none has more than it has bytes.
    const longer = { ...one, type: 2, messages: [2 * bufAlloc + 2] };
    expectSame("snapshot", "a longer message", offer([longer]), wrong);
    const more = { ...one, buffered: "AAAA" };
    const held = (one.credit.rxCnt - one.credit.fwdCnt) >>> 0;
    if (held < 3) {
      expectSame("snapshot", "more bytes than credit", offer([more]), wrong);
    }
    const outgoing = { length: 1, rest: "AAAA", endOfRecord: false };
    const message = { ...one, type: 2, messages: [], outgoing };
    expectSame("snapshot", "a longer rest", offer([message]), wrong);
    if (one.state !== "lingering") {
      expectSame("snapshot", "one twice", offer([one, one]), wrong);
    }
  }
  const saved = host.save();
  const [first] = saved.connections;
  const spoiled = { ...saved, messages: [{ hostPort: 1 }] };
  expectSame(
    "snapshot",
    "no message",
    refusal(() => other.restore(spoiled)),
    wrong,
  );
  const ends = first === undefined ? [{}] : [first, {}];
  const half = { ...saved, connections: ends };
  expectSame(
    "snapshot",
    "half of it",
    refusal(() => other.restore(half)),
    wrong,
  );
  const made = other.connections.length + other.messageConnections.length;
  expectSame("snapshot", "what was made", made, 0);
  const end = { hostPort: 1, guestPort: 2 };
  const ports = [
    other.resume(end),
    other.resumeMessages(end),
    other.resumeConnect(end),
    other.resumeConnectMessages(end),
  ];
  expectSame("snapshot", "ends of nobody", ports.join(), ",,,");
  return "";
}

function unexpected(): never {
  throw new Violation("misuse", "what must be refused is taken");
}
