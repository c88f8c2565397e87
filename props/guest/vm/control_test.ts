import {
  assertEquals,
  assertInstanceOf,
  assertLessOrEqual,
  assertRejects,
} from "@std/assert";
import { AgentError, ControlChannel, LineSplitter } from "./control.ts";

/** The guest's end of a channel: what arrives, and how to answer. */
class FakeAgent {
  readonly received: Uint8Array<ArrayBuffer>[] = [];
  readonly channel: ControlChannel;
  readonly noise: string[] = [];
  #controller!: ReadableStreamDefaultController<Uint8Array<ArrayBuffer>>;
  #arrived: (() => void)[] = [];

  constructor(window?: number) {
    const readable = new ReadableStream<Uint8Array<ArrayBuffer>>({
      start: (controller) => {
        this.#controller = controller;
      },
    });
    const writable = new WritableStream<Uint8Array<ArrayBuffer>>({
      write: (bytes) => {
        this.received.push(bytes.slice());
        for (const wake of this.#arrived.splice(0)) wake();
      },
    });
    this.channel = new ControlChannel(readable, writable, {
      window,
      onNoise: (line) => this.noise.push(line),
    });
  }

  say(text: string): void {
    this.#controller.enqueue(new TextEncoder().encode(text));
  }

  hangUp(): void {
    this.#controller.close();
  }

  get text(): string {
    return this.received.map((bytes) => new TextDecoder().decode(bytes)).join(
      "",
    );
  }

  async line(count = 1): Promise<Record<string, unknown>> {
    while (this.text.split("\n").length <= count) {
      await new Promise<void>((resolve) => this.#arrived.push(resolve));
    }
    return JSON.parse(this.text.split("\n")[count - 1]!);
  }
}

Deno.test("LineSplitter.split() joins lines and characters that come in pieces", () => {
  const bytes = new TextEncoder().encode("ab\n\ncé\nrest");
  for (let size = 1; size <= bytes.length; size++) {
    const lines = new LineSplitter();
    const found: string[] = [];
    for (let at = 0; at < bytes.length; at += size) {
      found.push(...lines.split(bytes.slice(at, at + size)));
    }
    assertEquals(found, ["ab", "", "cé"]);
  }
});

Deno.test("ControlChannel matches answers to calls in any order", async () => {
  const agent = new FakeAgent();
  const first = agent.channel.start({ op: "one", value: 1 });
  const second = agent.channel.start({ op: "two" });
  assertEquals(await agent.line(2), { op: "two", id: second.id });
  assertEquals(await agent.line(1), { op: "one", value: 1, id: first.id });
  agent.say(`{"id":${second.id},"ok":"b"}\n{"id":${first.id},"ok":"a"}\n`);
  assertEquals(await first.result, "a");
  assertEquals(await second.result, "b");
  agent.hangUp();
  await agent.channel.ended;
});

Deno.test("ControlChannel hands over what the agent says of itself, and noise apart", async () => {
  const agent = new FakeAgent();
  const ready = { cid: 3, kernel: "6.1", python: "3.11", uptime: 1 };
  agent.say(`random: crng init\n${JSON.stringify({ ready })}\n`);
  assertEquals(await agent.channel.ready, ready);
  assertEquals(agent.noise, ["random: crng init"]);
  agent.hangUp();
  await agent.channel.ended;
});

Deno.test("AgentCall.event() gives each event once, waiting or not", async () => {
  const agent = new FakeAgent();
  const call = agent.channel.start({ op: "recv" });
  const early = call.event("listening");
  agent.say(`{"id":${call.id},"event":"listening","port":5}\n`);
  assertEquals((await early).port, 5);
  agent.say(
    `{"id":${call.id},"event":"a","n":1}\n{"id":${call.id},"event":"a","n":2}\n{"id":${call.id},"ok":null}\n`,
  );
  await call.result;
  assertEquals((await call.event("a")).n, 1);
  assertEquals((await call.event("a")).n, 2);
  await assertRejects(
    () => call.event("a"),
    Error,
    "Cannot wait for a: recv has ended without it",
  );
  agent.hangUp();
  await agent.channel.ended;
});

Deno.test("AgentCall rejects with the agent's error, its event waiters too", async () => {
  const agent = new FakeAgent();
  const call = agent.channel.start({ op: "send" });
  const waiting = call.event("connected");
  waiting.catch(() => {});
  agent.say(
    `{"id":${call.id},"error":{"type":"OSError","message":"no","trace":"line 3"}}\n`,
  );
  const error = await assertRejects(() => call.result, AgentError);
  assertEquals(error.message, "Cannot send in the guest: OSError: no\nline 3");
  assertInstanceOf(await waiting.catch((reason) => reason), AgentError);
  agent.hangUp();
  await agent.channel.ended;
});

Deno.test("AgentCall gives up when its time is over, and its late answer is ignored", async () => {
  const agent = new FakeAgent();
  const call = agent.channel.start({ op: "recv" }, { timeoutMs: 1 });
  await assertRejects(() => call.result, Error, "no answer in 1 ms");
  agent.say(`{"id":${call.id},"ok":1}\n`);
  agent.hangUp();
  await agent.channel.ended;
});

Deno.test("ControlChannel fails every call when the guest ends", async () => {
  const agent = new FakeAgent();
  const before = agent.channel.start({ op: "recv" });
  agent.hangUp();
  await agent.channel.ended;
  const after = agent.channel.start({ op: "recv" });
  for (const result of [before.result, after.result, agent.channel.ready]) {
    await assertRejects(
      () => result as Promise<unknown>,
      Error,
      "it has ended",
    );
  }
});

Deno.test("ControlChannel never has more than its window on the way", async () => {
  const window = 64;
  const agent = new FakeAgent(window);
  const value = "é".repeat(1000);
  const call = agent.channel.start({ op: "ping", value });
  let unread = 0;
  let largest = 0;
  let seen = 0;
  for (let round = 0; round < 1000; round++) {
    await new Promise((resolve) => setTimeout(resolve, 0));
    for (; seen < agent.received.length; seen++) {
      unread += agent.received[seen]!.byteLength;
    }
    largest = Math.max(largest, unread);
    if (agent.text.endsWith("\n")) break;
    const part = Math.max(1, unread >> 1); // acks cover any part of what came
    agent.say(`{"ack":${part}}\n`);
    unread -= part;
  }
  assertLessOrEqual(largest, window);
  assertEquals(await agent.line(), { op: "ping", value, id: call.id });
  agent.say(`{"id":${call.id},"ok":null}\n`);
  await call.result;
  agent.hangUp();
  await agent.channel.ended;
});
