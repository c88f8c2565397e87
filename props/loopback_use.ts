/**
 * What programs in memory may do in their own time, with no device that answers: they wait, give up, and ask a stream
 * that is over.
 *
 * @module
 */

import { ByteQueue } from "../device/vsock/byte_queue.ts";
import { MESSAGE_AGAIN, STREAM_BROKEN } from "../device/vsock/host.ts";
import {
  LOOPBACK_BUFFER_BYTES,
  LoopbackConn,
  LoopbackHost,
} from "../device/vsock/loopback.ts";
import { LoopbackMessages } from "../device/vsock/loopback_messages.ts";
import { Segments } from "../device/vsock/segments.ts";
import { GuestMemory } from "../ring/memory.ts";
import { expectSame, Violation } from "./violation.ts";
import { refused } from "./refused.ts";

const INVARIANT = "misuse";
const LARGE = LOOPBACK_BUFFER_BYTES + 1;

function context(): { wake(): void; opened(): void; released(): void } {
  return { wake: () => {}, opened: () => {}, released: () => {} };
}

/** Counts what a device hears. */
function events(): { heard: string[] } & {
  maxMessageBytes: number;
  hostReadable(): void;
  hostWritable(): void;
  hostHangup(): void;
} {
  const heard: string[] = [];
  return {
    heard,
    maxMessageBytes: 2 * LARGE,
    hostReadable: () => heard.push("readable"),
    hostWritable: () => heard.push("writable"),
    hostHangup: () => heard.push("hangup"),
  };
}

/** A stream whose program waits, and ends. */
export function useStream(): string {
  const conn = new LoopbackConn(1, 2, context());
  const told = events();
  const end = conn.resume(told);
  const empty = new Segments(new GuestMemory([]));
  conn.read(new Uint8Array(0)).catch(() => {});
  conn.read(new Uint8Array(1)).catch(() => {});
  conn.write(new Uint8Array(LARGE)).catch(() => {});
  expectSame(
    INVARIANT,
    "taken",
    end.writeBytes(new Uint8Array(LARGE)),
    LARGE - 1,
  );
  expectSame(INVARIANT, "taken", end.writeBytes(new Uint8Array(1)), 0);
  // Room is told of once.
  conn.tryRead(new Uint8Array(10));
  conn.tryRead(new Uint8Array(10));
  expectSame(INVARIANT, "heard", told.heard.join(), "writable");
  end.shutdownRead();
  let full = false;
  try {
    conn.tryWrite(new Uint8Array(1));
  } catch {
    full = true;
  }
  expectSame(INVARIANT, "a write that the guest does not receive", full, true);
  conn[Symbol.dispose]();
  expectSame(INVARIANT, "heard", told.heard.join(), "writable,hangup");
  expectSame(INVARIANT, "write()", end.write(empty), STREAM_BROKEN);
  const written = end.writeBytes(new Uint8Array(1));
  expectSame(INVARIANT, "writeBytes()", written, STREAM_BROKEN);
  refused(TypeError, () => conn.tryRead(new Uint8Array(1)));
  end.close(true);
  end.close(false);
  return "";
}

/** The same for messages. */
export function useMessages(): string {
  const conn = new LoopbackMessages(1, 2, context());
  expectSame(INVARIANT, "longest", conn.maxMessageBytes, 0);
  const told = events();
  const end = conn.resume(told);
  const large = new Uint8Array(LARGE);
  const empty = new Segments(new GuestMemory([]));
  conn.receive().catch(() => {});
  conn[Symbol.asyncIterator]().next().catch(() => {});
  // One message is always taken, whatever its length.
  conn.send(large).catch(() => {});
  conn.send(large).catch(() => {});
  expectSame(INVARIANT, "a second one", conn.trySend(large), false);
  refused(RangeError, () => conn.trySend(new Uint8Array(2 * LARGE + 1)));
  expectSame(INVARIANT, "taken", end.writeMessage(empty, true), 0);
  expectSame(
    INVARIANT,
    "taken",
    end.writeMessageBytes(large, false),
    MESSAGE_AGAIN,
  );
  const first = conn.tryReceive();
  if (first === null || first.bytes.length !== 0 || !first.endOfRecord) {
    throw new Violation(INVARIANT, "an empty message is lost");
  }
  expectSame(INVARIANT, "heard", told.heard.join(), "writable");
  expectSame(INVARIANT, "taken", end.writeMessageBytes(large, false), LARGE);
  end.shutdownRead();
  let deaf = false;
  try {
    conn.trySend(new Uint8Array(1));
  } catch {
    deaf = true;
  }
  expectSame(INVARIANT, "a message that nobody receives", deaf, true);
  conn[Symbol.dispose]();
  const written = end.writeMessage(empty, false);
  expectSame(INVARIANT, "writeMessage()", written, STREAM_BROKEN);
  refused(TypeError, () => conn.tryReceive());
  end.close(true);
  return "";
}

/** A listener that programs wait at, and that goes. */
export function useListener(): string {
  const host = new LoopbackHost({ schedule: () => {} });
  const listener = host.listen(1);
  listener.accept().catch(() => {});
  listener[Symbol.asyncIterator]().next().catch(() => {});
  listener.close();
  listener.accept().catch(() => {});
  expectSame(INVARIANT, "room", listener.hasRoom, false);
  return "";
}

/** What holds bytes for programs takes and gives no more than there is. */
export function useQueues(): string {
  const queue = new ByteQueue(4);
  refused(RangeError, () => queue.push(new Uint8Array(5)));
  queue.push(Uint8Array.of(1, 2, 3));
  refused(RangeError, () => queue.push(new Uint8Array(2)));
  refused(RangeError, () => queue.drop(4));
  expectSame(INVARIANT, "bytes", queue.copy().join(), "1,2,3");
  refused(RangeError, () => new Segments(new GuestMemory([])).view(0));
  return "";
}
