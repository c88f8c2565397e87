/**
 * What a switch has between two guests, without the guests: two devices that write, read and leave as they like, and the
 * ends of connections that they are given.
 *
 * @module
 */

import fc from "fast-check";
import type {
  ConnectAnswer,
  HostMessages,
  HostStream,
  MessageEvents,
  MessagesAnswer,
  PeerAddress,
  PeerSide,
  PendingConnect,
} from "../device/vsock/host.ts";
import { type SwitchedDevice, VsockSwitch } from "../device/vsock/switch.ts";
import { MessagesModel } from "./message_model.ts";
import { PipeModel } from "./pipe_model.ts";
import type { QueueRun } from "./queue_steps.ts";
import { SegmentMemory } from "./segment_memory.ts";
import { refused } from "./refused.ts";
import { newRun, type ScriptWorld } from "./script_property.ts";
import { expectSame, Violation } from "./violation.ts";
import { DirectionModel } from "./vsock_model.ts";
import { refusal } from "./vsock_rig.ts";

/** What two devices are made with. */
export type PipeSetup = {
  /** Longest message that each device's guest takes. */
  maxMessageBytes: number;
  /** Connections that one guest may open to the other. */
  maxConnections: number;
};

/** One step of a script; `side` is a device, picks count modulo the connections that there are. */
export type PipeStep =
  /** The other device accepts or refuses, or the one that asks does not wait for that. */
  | {
    do: "connect";
    side: number;
    messages: boolean;
    answer: "accepted" | "refused" | "withdrawn" | "left" | "detached";
  }
  /** From guest memory in so many pieces, or from bytes of the device's own where there are none. */
  | { do: "write"; pick: number; side: number; bytes: number; pieces: number }
  | { do: "read"; pick: number; side: number; bytes: number; pieces: number }
  /** Empty messages until no more is taken. */
  | { do: "empties"; pick: number; side: number }
  | { do: "shutdown"; pick: number; side: number; write: boolean }
  | { do: "close"; pick: number; side: number; reset: boolean }
  /** The device works, and hears of what has happened. */
  | { do: "work"; side: number }
  /** It leaves the switch and joins it again. */
  | { do: "leave"; side: number }
  /** Another device takes its place, and goes on with its connections or does not. */
  | { do: "move"; side: number; lost: boolean }
  /** Both go on in another switch. */
  | { do: "moveAll" }
  /** Calls and snapshots that must be refused. */
  | { do: "misuse" };

const CIDS = [3, 4];
const PORT = 80;
const FIRST_PORT = 5000;
const BROKEN = -2;
const MESSAGE_AGAIN = -3;

class Device implements SwitchedDevice {
  readonly guestCid: number;
  peers: PeerSide | null = null;
  readonly asked: (ConnectAnswer | MessagesAnswer)[] = [];

  constructor(guestCid: number) {
    this.guestCid = guestCid;
  }

  connectPeer(
    _port: number,
    _peer: PeerAddress,
    answer: ConnectAnswer,
  ): PendingConnect {
    return this.#ask(answer);
  }

  connectPeerMessages(
    _port: number,
    _peer: PeerAddress,
    answer: MessagesAnswer,
  ): PendingConnect {
    return this.#ask(answer);
  }

  process(): boolean {
    this.peers?.deliver();
    return false;
  }

  #ask(answer: ConnectAnswer | MessagesAnswer): PendingConnect {
    this.asked.push(answer);
    return { hostPort: PORT, cancel: () => {} };
  }
}

type Pipe = {
  messages: boolean;
  port: number;
  model: PipeModel;
  /** What a device holds of it, by side. */
  ends: [HostStream | HostMessages, HostStream | HostMessages];
  /** Events that a device has had, by side. */
  heard: [string[], string[]];
  /** What is sent by either side. */
  bytes: [DirectionModel, DirectionModel];
  sent: [MessagesModel, MessagesModel];
};

/** Two devices and the switch between them. */
export class PipeWorld implements ScriptWorld<PipeStep> {
  /** For statistics. */
  readonly run: QueueRun = newRun("midFlight", "full");
  readonly #setup: PipeSetup;
  readonly #memory = new SegmentMemory();
  readonly #woken = new Set<number>();
  #switch: VsockSwitch<Device>;
  #devices: [Device, Device] = [new Device(CIDS[0]!), new Device(CIDS[1]!)];
  #pipes: Pipe[] = [];
  #made = 0;

  /** @param setup What devices and switch are made with. */
  constructor(setup: PipeSetup) {
    this.#setup = setup;
    this.#switch = this.#newSwitch();
    for (const device of this.#devices) this.#switch.join(device);
  }

  /** Whether there is a connection for it. */
  possible(step: PipeStep): boolean {
    return !("pick" in step) || this.#pipes.length > 0;
  }

  /** Takes a step and compares what comes of it. */
  take(step: PipeStep): string {
    const outcome = this.#perform(step);
    this.#check();
    return outcome;
  }

  #perform(step: PipeStep): string {
    const pipe = "pick" in step
      ? this.#pipes[step.pick % this.#pipes.length]!
      : null;
    switch (step.do) {
      case "connect":
        return this.#connect(step.side, step.messages, step.answer);
      case "write":
        return this.#write(pipe!, step.side, step.bytes, step.pieces);
      case "read":
        return this.#read(pipe!, step.side, step.bytes, step.pieces);
      case "empties": {
        if (!pipe!.messages) return "";
        let count = 0;
        while (this.#write(pipe!, step.side, 0, 0) === "0" && count < 2000) {
          count++;
        }
        return `${count} messages`;
      }
      case "shutdown": {
        const { model, ends } = pipe!;
        if (model.ends[step.side]!.closed) return "";
        if (step.write) {
          model.shutdownWrite(step.side);
          ends[step.side]!.shutdownWrite();
        } else {
          model.shutdownRead(step.side);
          ends[step.side]!.shutdownRead();
        }
        return "";
      }
      case "close":
        this.#close(pipe!, step.side, step.reset);
        return "";
      case "work":
        this.#work(step.side);
        return "";
      case "leave": {
        const device = this.#devices[step.side]!;
        this.#switch.leave(device);
        for (const { model, heard } of this.#pipes) {
          model.abort();
          // The one that has left heard at once.
          const due = model.hear(step.side);
          expectSame("progress", "heard", heard[step.side]!.join(), due);
          heard[step.side]!.length = 0;
        }
        expectSame("misuse", "peers", device.peers, null);
        this.#switch.join(device);
        return "";
      }
      case "move":
        this.#flight();
        this.#switch.detach(this.#devices[step.side]!);
        this.#join(step.side);
        for (const pipe of this.#pipes) {
          pipe.model.suspend(step.side);
          if (!step.lost) this.#resume(pipe, step.side);
        }
        this.#settleSwitch();
        return "";
      case "moveAll": {
        this.#flight();
        const saved = JSON.stringify(this.#switch.save());
        for (const device of this.#devices) this.#switch.detach(device);
        const kept = JSON.stringify(this.#switch.save());
        expectSame("snapshot", "what devices left behind", kept, saved);
        this.#switch = this.#newSwitch();
        this.#switch.restore(JSON.parse(saved));
        const again = JSON.stringify(this.#switch.save());
        expectSame("snapshot", "the switch", again, saved);
        for (const side of [0, 1]) this.#join(side);
        for (const pipe of this.#pipes) {
          for (const side of [0, 1]) pipe.model.suspend(side);
          for (const side of [0, 1]) this.#resume(pipe, side);
        }
        this.#settleSwitch();
        return "";
      }
      case "misuse":
        return this.#misuse();
    }
  }

  /** What waits is read, and nothing is left. */
  settle(): void {
    for (const pipe of this.#pipes) {
      for (const side of [0, 1]) {
        while (pipe.model.waiting(side) > 0) this.#read(pipe, side, 70_000, 3);
      }
    }
    for (const pipe of [...this.#pipes]) {
      for (const side of [0, 1]) this.#close(pipe, side, false);
    }
    this.#check();
    const left = this.#switch.connectionCount;
    expectSame("every-connection-ends", "what is left", left, 0);
    const empty = this.#switch.save().pipes.length;
    expectSame("every-connection-ends", "what is saved", empty, 0);
  }

  // -- What devices do --

  #connect(
    side: number,
    messages: boolean,
    answer: (PipeStep & { do: "connect" })["answer"],
  ): string {
    const from = this.#devices[side]!;
    const to = this.#devices[1 - side]!;
    const id = this.#made++;
    const port = FIRST_PORT + id;
    const address = {
      guestCid: from.guestCid,
      guestPort: port,
      peerCid: to.guestCid,
      hostPort: PORT,
    };
    const [mine, others] = [this.#events(), this.#events()];
    let end: HostStream | HostMessages | null = null;
    let refused = 0;
    const request = {
      ...address,
      cancelled: answer === "withdrawn",
      accept: (open: (events: MessageEvents) => HostStream & HostMessages) => {
        if (answer === "withdrawn") return false;
        end = open(mine.events);
        return true;
      },
      refuse: () => {
        refused++;
      },
    };
    const opened = this.#pipes.filter(({ model }) => model.from === side);
    const full = opened.length >= this.#setup.maxConnections;
    const { peers } = from;
    if (messages) peers!.connectMessages(request as never);
    else peers!.connect(request as never);
    const asked = to.asked.splice(0) as ConnectAnswer<
      HostStream | HostMessages,
      MessageEvents
    >[];
    expectSame("packets", "connects that arrive", asked.length, full ? 0 : 1);
    if (full) {
      expectSame("rst-rules", "refused", refused, 1);
      return "too many";
    }
    if (answer === "refused") asked[0]!.refused("nobody listens");
    if (answer === "left") this.#perform({ do: "leave", side });
    if (answer === "detached") {
      this.#perform({ do: "move", side: 1 - side, lost: false });
      expectSame("rst-rules", "refused", refused, 1);
    }
    if (answer === "refused" || answer === "detached") {
      expectSame("rst-rules", "an end", end, null);
      expectSame("rst-rules", "refused", refused, 1);
      return "";
    }
    const other = asked[0]!.accepted(PORT, others.events);
    if (answer !== "accepted") {
      // The one that asked is gone: what the other one was given is at its end.
      expectSame("rst-rules", "an end", end, null);
      expectSame("rst-rules", "refused", refused, 1);
      this.#work(1 - side);
      expectSame("progress", "heard", others.heard.join(), "hangup");
      const count = messages
        ? (other as HostMessages).readMessage(new Uint8Array(1))
        : (other as HostStream).read(this.#memory.place(1, 1));
      expectSame("rst-rules", "read() of a lost connection", count, BROKEN);
      other.close(true);
      return "";
    }
    expectSame("rst-rules", "refused", refused, 0);
    if (end === null) throw new Violation("packets", "it has no end");
    const directions = [0, 1].map((n) =>
      new DirectionModel(`pipe ${id} from side ${n}`, 2 * id + n)
    ) as Pipe["bytes"];
    const sent = [0, 1].map((n) =>
      new MessagesModel(`pipe ${id} from side ${n}`, 2 * id + n)
    ) as Pipe["sent"];
    this.#pipes.push({
      messages,
      port,
      model: new PipeModel(side),
      ends: side === 0 ? [end, other] : [other, end],
      heard: side === 0
        ? [mine.heard, others.heard]
        : [others.heard, mine.heard],
      bytes: directions,
      sent,
    });
    return `port ${port}`;
  }

  #write(pipe: Pipe, side: number, bytes: number, pieces: number): string {
    const { model, messages, ends } = pipe;
    if (model.ends[side]!.closed) return "";
    if (messages) return this.#writeMessage(pipe, side, bytes, pieces);
    const direction = pipe.bytes[side]!;
    const expected = model.write(side, bytes);
    const source = direction.offer(bytes);
    const end = ends[side] as HostStream;
    const taken = pieces === 0
      ? end.writeBytes(source)
      : end.write(this.#memory.hold(source, pieces));
    expectSame("bytes-in-order", "bytes taken", taken, expected);
    if (taken > 0) direction.sent += taken;
    if (taken >= 0 && taken < bytes) this.run.full = true;
    return `${taken}`;
  }

  #writeMessage(
    pipe: Pipe,
    side: number,
    bytes: number,
    pieces: number,
  ): string {
    const { model, ends } = pipe;
    const sent = pipe.sent[side]!;
    const { maxMessageBytes } = this.#setup;
    const expected = model.writeMessage(side, bytes, maxMessageBytes);
    const message = sent.offer(bytes, bytes % 3 === 0);
    const end = ends[side] as HostMessages;
    const { endOfRecord } = message;
    const taken = pieces === 0
      ? end.writeMessageBytes(message.bytes, endOfRecord)
      : end.writeMessage(this.#memory.hold(message.bytes, pieces), endOfRecord);
    expectSame("seqpacket-messages", "what was taken", taken, expected);
    if (taken >= 0) sent.sent(message);
    if (taken === MESSAGE_AGAIN) this.run.full = true;
    return `${taken}`;
  }

  #read(pipe: Pipe, side: number, bytes: number, pieces: number): string {
    const { model, messages, ends } = pipe;
    if (model.ends[side]!.closed) return "";
    if (messages) return this.#readMessage(pipe, side);
    const expected = model.read(side, bytes);
    const target = this.#memory.place(bytes, pieces);
    const got = (ends[side] as HostStream).read(target);
    expectSame("bytes-in-order", "bytes read", got, expected);
    const direction = pipe.bytes[1 - side]!;
    direction.take(this.#memory.copy(target, Math.max(0, got)));
    this.run.buffers += Math.max(0, got);
    return `${got}`;
  }

  #readMessage(pipe: Pipe, side: number): string {
    const { model, ends } = pipe;
    const expected = model.readMessage(side);
    const end = ends[side] as HostMessages;
    const sent = pipe.sent[1 - side]!;
    const target = new Uint8Array(this.#setup.maxMessageBytes);
    const got = end.readMessage(target);
    expectSame("seqpacket-messages", "what was read", got, expected);
    if (got >= 0) sent.take(target.subarray(0, got), end.endOfRecord);
    this.run.buffers += Math.max(0, got);
    return `${got}`;
  }

  #close(pipe: Pipe, side: number, reset: boolean): void {
    const { model, ends } = pipe;
    if (model.ends[side]!.closed) return;
    model.close(side, reset);
    ends[side]!.close(reset);
    // A device may say so twice.
    ends[side]!.close(!reset);
    if (model.over) this.#pipes.splice(this.#pipes.indexOf(pipe), 1);
  }

  #work(side: number): void {
    const device = this.#devices[side]!;
    this.#woken.delete(device.guestCid);
    device.process();
    expectSame("progress", "events left", device.peers!.pending, false);
    for (const { model, heard } of this.#pipes) {
      const due = model.hear(side);
      expectSame("progress", "heard", heard[side]!.join(), due);
      heard[side]!.length = 0;
    }
  }

  // -- Moves --

  #flight(): void {
    const waits = this.#pipes.some(({ model }) =>
      model.waiting(0) + model.waiting(1) > 0
    );
    if (waits) this.run.midFlight = true;
  }

  #join(side: number): void {
    const device = new Device(CIDS[side]!);
    this.#devices[side] = device;
    this.#switch.join(device);
  }

  #resume(pipe: Pipe, side: number): void {
    const { model, messages, port } = pipe;
    if (model.ends[side]!.closed) return;
    const first = model.from === side;
    const [guestPort, hostPort] = first ? [port, PORT] : [PORT, port];
    const address = {
      guestCid: CIDS[side]!,
      guestPort,
      peerCid: CIDS[1 - side]!,
      hostPort,
    };
    const { peers } = this.#devices[side]!;
    const open = messages
      ? peers!.resumeMessages(address)
      : peers!.resume(address);
    if (open === null) throw new Violation("snapshot", "an end is lost");
    const { events, heard } = this.#events();
    pipe.ends[side] = open(events);
    pipe.heard[side] = heard;
    model.resume(side);
    // Nobody else goes on with it.
    const twice = messages
      ? peers!.resumeMessages(address)
      : peers!.resume(address);
    expectSame("snapshot", "a second device's end", twice, null);
  }

  #settleSwitch(): void {
    this.#switch.settle();
    for (const pipe of [...this.#pipes]) {
      pipe.model.settle();
      if (pipe.model.over) this.#pipes.splice(this.#pipes.indexOf(pipe), 1);
    }
  }

  #misuse(): string {
    refused(RangeError, () => new VsockSwitch({ maxConnections: -1 }));
    refused(TypeError, () => this.#switch.detach(new Device(CIDS[0]!)));
    refused(TypeError, () => this.#switch.leave(new Device(9)));
    const saved = this.#switch.save();
    for (const pipe of saved.pipes) {
      const [one, other] = pipe.ends;
      const closed = { ...one, closed: true };
      for (
        const ends of [
          [],
          [one],
          [one, { ...other, cid: one.cid }],
          [closed, { ...other, closed: true }],
          [one, { ...other, waiting: "AAAA", messages: [2] }],
          [one, { ...other, waiting: "%" }],
        ]
      ) {
        // Bytes of a stream have no messages beside them.
        if (pipe.type === "stream" && ends[1]?.waiting === "AAAA") continue;
        const wrong = { ...saved, pipes: [pipe, { ...pipe, ends }] };
        const switched = this.#newSwitch();
        const answer = refusal(() => switched.restore(wrong));
        expectSame("snapshot", "a wrong snapshot", answer, "CONTENT");
        expectSame("snapshot", "what was made", switched.connectionCount, 0);
      }
    }
    const version = { ...saved, version: 0 };
    const answer = refusal(() => this.#newSwitch().restore(version));
    expectSame("snapshot", "another version", answer, "VERSION");
    return "";
  }

  #newSwitch(): VsockSwitch<Device> {
    return new VsockSwitch<Device>({
      maxConnections: this.#setup.maxConnections,
      wake: ({ guestCid }) => this.#woken.add(guestCid),
    });
  }

  #events(): { events: MessageEvents; heard: string[] } {
    const heard: string[] = [];
    return {
      heard,
      events: {
        maxMessageBytes: this.#setup.maxMessageBytes,
        hostReadable: () => heard.push("readable"),
        hostWritable: () => heard.push("writable"),
        hostHangup: () => heard.push("hangup"),
      },
    };
  }

  /** Nobody was told from within another device, and who is to be told was woken. */
  #check(): void {
    for (const [side, { guestCid, peers }] of this.#devices.entries()) {
      let due = false;
      for (const { model, heard } of this.#pipes) {
        expectSame("progress", "heard too early", heard[side]!.join(), "");
        due ||= model.ends[side]!.due.size > 0;
      }
      if (!due) continue;
      expectSame("progress", "pending", peers!.pending, true);
      const woken = this.#woken.has(guestCid);
      expectSame("progress", "a device was woken", woken, true);
    }
    const count = this.#switch.connectionCount;
    expectSame("memory-bounded", "connections", count, this.#pipes.length);
  }
}

/** What two devices may be made with. */
export const PIPE_SETUPS: fc.Arbitrary<PipeSetup> = fc.record({
  maxMessageBytes: fc.constantFrom(500, 70_000, 100_000),
  maxConnections: fc.constantFrom(1, 3, 100),
});

/** Steps of random scripts; what stands there more than once comes up more often. */
export function pipeSteps(): fc.Arbitrary<PipeStep>[] {
  const pick = fc.nat(5);
  const side = fc.nat(1);
  const bytes = fc.oneof(fc.nat(20), fc.nat(5000), fc.nat(70_000));
  const pieces = fc.constantFrom(0, 1, 2, 7, 100);
  const some = fc.constantFrom(1, 2, 7, 100);
  const of = <D extends PipeStep["do"]>(
    kind: D,
    shape: Record<string, fc.Arbitrary<unknown>> = {},
  ): fc.Arbitrary<PipeStep> =>
    fc.record(shape).map((fields) =>
      ({ do: kind, ...fields }) as unknown as PipeStep
    );
  const messages = fc.boolean();
  const answers = ["refused", "withdrawn", "left", "detached"] as const;
  const connect = of("connect", {
    side,
    messages,
    answer: fc.constant("accepted"),
  });
  const write = of("write", { pick, side, bytes, pieces });
  const read = of("read", { pick, side, bytes, pieces: some });
  return [
    connect,
    connect,
    connect,
    of("connect", { side, messages, answer: fc.constantFrom(...answers) }),
    write,
    write,
    write,
    write,
    write,
    read,
    read,
    read,
    of("work", { side }),
    of("work", { side }),
    of("shutdown", { pick, side, write: fc.boolean() }),
    of("close", { pick, side, reset: fc.boolean() }),
    of("empties", { pick, side }),
    of("leave", { side }),
    of("move", { side, lost: fc.nat(3).map((n) => n === 0) }),
    of("moveAll"),
    of("misuse"),
  ];
}
