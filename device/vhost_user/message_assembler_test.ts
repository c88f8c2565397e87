import { assertEquals, assertThrows } from "@std/assert";
import {
  MAX_PAYLOAD_BYTES,
  VHOST_USER_HDR_SIZE,
  VHOST_USER_SET_MEM_TABLE,
  VHOST_USER_SET_VRING_NUM,
} from "./constants.ts";
import { VhostUserError } from "./errors.ts";
import { encodeRequest, type VhostUserMessage } from "./message.ts";
import { MessageAssembler } from "./message_assembler.ts";

function all(assembler: MessageAssembler): VhostUserMessage[] {
  const messages: VhostUserMessage[] = [];
  for (
    let message: VhostUserMessage | null;
    (message = assembler.next()) !== null;
  ) messages.push(message);
  return messages;
}

function joined(...parts: Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(parts.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

const first = encodeRequest(
  VHOST_USER_SET_VRING_NUM,
  new Uint8Array([1, 2, 3, 4, 5, 6, 7, 8]),
);
const second = encodeRequest(VHOST_USER_SET_MEM_TABLE, new Uint8Array(300));

Deno.test("MessageAssembler yields messages from any cut of the stream", () => {
  const stream = joined(first, second, first);
  for (let cut = 1; cut < 40; cut++) {
    const assembler = new MessageAssembler();
    const messages: VhostUserMessage[] = [];
    for (let at = 0; at < stream.length; at += cut) {
      assembler.push(stream.subarray(at, at + cut));
      messages.push(...all(assembler));
    }
    assertEquals(messages.map((m) => m.request), [8, 5, 8]);
    assertEquals(messages[0]!.payload, first.subarray(VHOST_USER_HDR_SIZE));
    assertEquals(messages[1]!.payload.length, 300);
    assertEquals(messages[2]!.payload, messages[0]!.payload);
    assertEquals(assembler.wanted, VHOST_USER_HDR_SIZE);
  }
});

Deno.test("MessageAssembler.wanted leads from header to payload to header", () => {
  const assembler = new MessageAssembler();
  assertEquals(assembler.wanted, 12);
  assembler.push(first.subarray(0, 5));
  assertEquals(assembler.wanted, 7);
  assembler.push(first.subarray(5, 12));
  assertEquals(assembler.wanted, 8);
  assertEquals(assembler.next(), null);
  assembler.push(first.subarray(12));
  assertEquals(assembler.wanted, 0);
  assertEquals(assembler.next()!.request, VHOST_USER_SET_VRING_NUM);
  assertEquals(assembler.wanted, 12);
});

Deno.test("MessageAssembler gives descriptors to the message that they came with", () => {
  const exact = new MessageAssembler();
  exact.push(first.subarray(0, 12), [7]);
  exact.push(first.subarray(12), []);
  exact.push(second.subarray(0, 12), [8, 9]);
  exact.push(second.subarray(12));
  assertEquals(all(exact).map((m) => m.fds), [[7], [8, 9]]);

  // recvmsg stops behind the data that descriptors came with: they are the last message's.
  const greedy = new MessageAssembler();
  greedy.push(joined(first, second), [8, 9]);
  greedy.push(joined(first, second.subarray(0, 20)), [10]);
  greedy.push(second.subarray(20));
  assertEquals(all(greedy).map((m) => m.fds), [[], [8, 9], [], [10]]);
});

Deno.test("MessageAssembler.close() gives back what was not handed out", () => {
  const assembler = new MessageAssembler();
  assembler.push(first, [1]);
  assembler.push(second.subarray(0, 4), [2, 3]);
  assertEquals(all(assembler).map((m) => m.fds), [[1]]);
  assertEquals(assembler.close(), [2, 3]);
  assertEquals(assembler.close(), []);
});

Deno.test("MessageAssembler ends the session on a stream that is none", () => {
  const header = (flags: number, size: number): Uint8Array => {
    const bytes = new Uint8Array(12);
    new DataView(bytes.buffer).setUint32(4, flags, true);
    new DataView(bytes.buffer).setUint32(8, size, true);
    return bytes;
  };
  for (
    const [bytes, code] of [
      [header(0, 0), "BAD_VERSION"],
      [header(2, 0), "BAD_VERSION"],
      [header(1, MAX_PAYLOAD_BYTES + 1), "MESSAGE_TOO_LONG"],
      [header(1, 0xffffffff), "MESSAGE_TOO_LONG"],
    ] as const
  ) {
    const assembler = new MessageAssembler();
    assembler.push(joined(first, bytes), [5]);
    assertEquals(assembler.next()!.request, VHOST_USER_SET_VRING_NUM);
    const error = assertThrows(() => assembler.next(), VhostUserError);
    assertEquals([error.code, error.fatal], [code, true]);
    assertEquals(assembler.close(), [5]);
  }
});

Deno.test("MessageAssembler bounds the descriptors of a message, also before its header is whole", () => {
  const assembler = new MessageAssembler();
  for (let i = 0; i < 8; i++) {
    assembler.push(first.subarray(i, i + 1), [i, i, i, i]);
    assertEquals(assembler.next(), null);
  }
  assembler.push(first.subarray(8, 9), [99]);
  const error = assertThrows(() => assembler.next(), VhostUserError);
  assertEquals([error.code, error.fatal], ["TOO_MANY_FDS", true]);
  assertEquals(assembler.close().length, 33);
});
