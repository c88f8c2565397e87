/**
 * Random programs on both ends of a socket device, judged by a model of streams.
 *
 * @module
 */

import fc from "fast-check";
import type {
  LoopbackConn,
  LoopbackListener,
} from "../device/vsock/loopback.ts";
import {
  type GuestConnection,
  type GuestListener,
  OP_CREDIT_REQUEST,
  OP_CREDIT_UPDATE,
  OP_REQUEST,
  OP_RESPONSE,
  OP_RST,
  OP_RW,
  OP_SHUTDOWN,
  opName,
  SHUTDOWN_RCV,
  SHUTDOWN_SEND,
} from "./guest/mod.ts";
import { newRun, type ScriptWorld } from "./script_property.ts";
import type { QueueRun } from "./queue_steps.ts";
import { expectSame, Violation } from "./violation.ts";
import { type DirectionModel, StreamModel } from "./vsock_model.ts";
import {
  RX_LAYOUTS,
  TX_LAYOUTS,
  VsockRig,
  type VsockSetup,
} from "./vsock_rig.ts";

/** One step of a script; picks count modulo the streams that there are. */
export type VsockStep =
  | { do: "guestConnect"; listening: boolean }
  | { do: "hostConnect"; listening: boolean }
  | { do: "accept" }
  | { do: "guestSend" | "hostSend"; pick: number; bytes: number }
  | { do: "guestRead" | "hostRead"; pick: number; bytes: number }
  | { do: "guestShutdown"; pick: number; flags: number }
  | { do: "guestClose" | "guestAbort" | "hostCloseWrite"; pick: number }
  | { do: "hostClose"; pick: number }
  | { do: "askCredit" | "tellCredit"; pick: number }
  | { do: "stray"; op: number; type: number }
  | { do: "pauseRx"; paused: boolean }
  /** The guest's stack works, and its notifications are on their way. */
  | { do: "publish" }
  | { do: "run"; passes: number }
  | { do: "time"; ms: number }
  | { do: "restore" | "migrate" | "migrateAll" | "transportReset" }
  /** Another device is offered a snapshot that is spoiled. */
  | { do: "spoiledSnapshot"; seed: number };

const HOST_PORT = 1234;
const NO_HOST_PORT = 99;
/** Host programs that connect have ports from here on. */
const FIRST_HOST_PORT = 0x4000_0000;
const GUEST_PORT = 80;
const NO_GUEST_PORT = 81;
/** How long a host program waits for the guest to accept it. */
const HOST_PATIENCE_MS = 10_000;
/** Guest ports from here on belong to packets of no connection. */
const STRAY_PORT = 0x1000_0000;
const MANY_CONNECTIONS = 64;
/** Rounds in which both ends read what there is, until all must have arrived. */
const MAX_ROUNDS = 3000;
/** Windows full of bytes that are on their way at a time. */
const MAX_WINDOWS = 300;
/** Rounds without news that are enough to say that there will be none. */
const IDLE_ROUNDS = 4;

/** A packet of no connection; `lost` where its answer may have been. */
type Stray = { op: number; type: number; lost: boolean };

type Stream = {
  model: StreamModel;
  /** Null until the other end has been seen. */
  guest: GuestConnection | null;
  host: LoopbackConn | null;
  listening: boolean;
};

/** Programs on both ends of streams, a guest's stack as Linux has it, and the device between them. */
export class StreamWorld implements ScriptWorld<VsockStep> {
  /** For statistics. */
  readonly run: QueueRun = newRun("midFlight", "wrapped", "full", "indirect");
  readonly #setup: VsockSetup;
  readonly #rig: VsockRig;
  #hostListener: LoopbackListener;
  readonly #guestListener: GuestListener;
  readonly #streams: Stream[] = [];
  /** By guest port and host port. */
  readonly #byPorts: Map<string, Stream> = new Map();
  readonly #strays: Map<number, Stray> = new Map();
  #settling = false;
  /** Programs that had connected from a port below when all moved, and had no answer, are lost. */
  #lostPorts = 0;

  /** @param setup What guest and device are made with. */
  constructor(setup: VsockSetup) {
    this.#setup = setup;
    if (!setup.indirect) this.run.indirect = null;
    this.#rig = new VsockRig(setup);
    this.#hostListener = this.#rig.host.listen(HOST_PORT);
    const { driver } = this.#rig.guest;
    this.#guestListener = driver.listen(GUEST_PORT, setup.backlog);
  }

  /** Whether it has the stream that the step is about. */
  possible(step: VsockStep): boolean {
    return !("pick" in step) || this.#streams.length > 0;
  }

  /** Takes a step and looks for rules that were broken. */
  take(step: VsockStep): string {
    const outcome = this.#perform(step);
    this.#look();
    this.#rig.tell(this.run);
    return outcome;
  }

  #perform(step: VsockStep): string {
    const rig = this.#rig;
    const { guest } = rig;
    const { driver } = guest;
    const stream = "pick" in step
      ? this.#streams[step.pick % this.#streams.length]!
      : null;
    switch (step.do) {
      case "guestConnect": {
        const port = step.listening ? HOST_PORT : NO_HOST_PORT;
        const connection = driver.connect(port);
        const made = this.#stream(connection.localPort, port, step.listening);
        made.guest = connection;
        return `guest port ${connection.localPort}`;
      }
      case "hostConnect":
        // What becomes of it is seen by the connections of the host side.
        rig.host.connect(step.listening ? GUEST_PORT : NO_GUEST_PORT)
          .catch(() => {});
        return "";
      case "accept":
        return this.#accept();
      case "guestSend": {
        const { up } = stream!.model;
        const bytes = atMost(step.bytes, up, this.#setup.hostRoom);
        const sent = stream!.guest?.send(up.offer(bytes)) ?? 0;
        up.sent += sent;
        // With credit left, it was the queue that had no room.
        const { guest } = stream!;
        if (
          sent < bytes && guest?.sendEnded === false && guest.credit > 0
        ) {
          this.run.full = true;
        }
        return `${sent} bytes`;
      }
      case "hostSend":
        return `${this.#hostSend(stream!, step.bytes)} bytes`;
      case "guestRead":
        return `${this.#guestRead(stream!, step.bytes)} bytes`;
      case "hostRead":
        return `${this.#hostRead(stream!, step.bytes)} bytes`;
      case "guestShutdown":
        if (stream!.guest?.state !== "connected") return "";
        stream!.guest.shutdown(step.flags);
        stream!.model.guestShutdown(
          (step.flags & SHUTDOWN_SEND) !== 0,
          (step.flags & SHUTDOWN_RCV) !== 0,
        );
        return "";
      case "guestClose":
        this.#guestClose(stream!);
        return "";
      case "guestAbort":
        if (stream!.guest === null) return "";
        stream!.model.abort("the guest has aborted");
        stream!.guest.abort();
        return "";
      case "hostCloseWrite":
        if (stream!.host === null) return "";
        stream!.model.hostCloseWrite();
        stream!.host.closeWrite();
        return "";
      case "hostClose":
        if (stream!.host === null) return "";
        stream!.model.hostClose();
        stream!.host.close();
        return "";
      case "askCredit":
        stream!.guest?.requestCredit();
        return "";
      case "tellCredit":
        stream!.guest?.updateCredit();
        return "";
      case "stray": {
        const srcPort = STRAY_PORT + this.#strays.size;
        const fields = { srcPort, dstPort: NO_HOST_PORT, op: step.op };
        driver.claimPort(srcPort);
        const { type } = step;
        if (driver.sendPacket({ ...fields, type }) === null) return "no room";
        this.#strays.set(srcPort, { op: step.op, type, lost: false });
        return opName(step.op);
      }
      case "pauseRx":
        driver.rxPaused = step.paused;
        if (!step.paused) driver.poll();
        return "";
      case "publish":
        driver.poll();
        return "";
      case "run":
        guest.run(step.passes === 0 ? Infinity : step.passes);
        return "";
      case "time":
        rig.passTime(step.ms, true);
        return "";
      case "restore":
      case "migrate":
        if (this.#underWay()) this.run.midFlight = true;
        if (step.do === "restore") guest.saveResetRestore();
        else rig.migrate();
        return "";
      case "migrateAll":
        if (this.#underWay()) this.run.midFlight = true;
        this.#migrateAll();
        return "";
      case "spoiledSnapshot":
        return rig.offerSpoiled(step.seed);
      case "transportReset":
        // With an event buffer there, the guest hears of it at once.
        driver.poll();
        rig.device.transportReset();
        // What came before the event is taken first.
        driver.poll();
        for (const { model } of this.#streams) {
          model.abort("the connections were reset");
        }
        // Answers that wait are lost, too.
        for (const stray of this.#strays.values()) stray.lost = true;
        return "";
    }
  }

  /** Both ends read all there is and close: nothing is left. */
  settle(): void {
    const rig = this.#rig;
    const { driver } = rig.guest;
    this.#settling = true;
    driver.rxPaused = false;
    driver.poll();
    this.#drain();
    const givenUp = rig.now >= HOST_PATIENCE_MS;
    for (const { model, host } of this.#streams) {
      // A host program that has given up, or whose end came and went in one run, was never seen here.
      if (host === null && (givenUp || model.guestDone)) continue;
      for (const direction of [model.up, model.down]) {
        if (!direction.done) throw new Violation("progress", `${direction}`);
      }
    }
    this.#checkStates();
    // Both ends are done; no clock is needed for the rest.
    for (const stream of this.#streams) {
      this.#guestClose(stream);
      stream.host?.close();
    }
    rig.guest.run();
    this.#look();
    for (const { guest } of this.#streams) {
      if (guest !== null && guest.state !== "closed") {
        throw new Violation(
          "every-connection-ends",
          `both ends of guest port ${guest.localPort} are done, and it is ${guest.state}`,
        );
      }
    }
    const left = [
      driver.connections,
      rig.device.connectionCount,
      rig.host.connections.length,
    ];
    expectSame("every-connection-ends", "what is left", left.join(), "0,0,0");
    this.#checkStrays();
    rig.tell(this.run);
  }

  /** Host programs move as well; those whose connect has no answer are lost. */
  #migrateAll(): void {
    const rig = this.#rig;
    this.#lostPorts = rig.device.save().nextHostPort;
    const ends = new Map(rig.migrate("move"));
    this.#hostListener = rig.host.listen(HOST_PORT);
    for (const stream of this.#streams) {
      const after = stream.host && ends.get(stream.host);
      if (after !== undefined && after !== null) {
        stream.host = after as LoopbackConn;
      }
    }
    this.#look();
    for (const [key, stream] of this.#byPorts) {
      const hostPort = Number(key.split(":")[1]);
      if (stream.host === null) this.#loseProgram(stream, hostPort);
    }
  }

  #loseProgram({ model }: Stream, hostPort: number): void {
    if (hostPort < FIRST_HOST_PORT || hostPort >= this.#lostPorts) return;
    model.abort("its program was lost");
  }

  /** Packets that the device has not taken, or bytes that have not arrived. */
  #underWay(): boolean {
    return this.#rig.guest.driver.unusedPackets > 0 ||
      this.#streams.some(({ model }) => !model.up.done || !model.down.done);
  }

  /** Both ends read all there is, for as long as that brings anything. */
  #drain(): void {
    const rig = this.#rig;
    let idle = 0;
    for (let round = 0; round < MAX_ROUNDS && idle < IDLE_ROUNDS; round++) {
      rig.guest.run();
      this.#accept();
      this.#look();
      let news = 0;
      for (const stream of this.#streams) {
        news += this.#guestRead(stream, 5000) + this.#hostRead(stream, 5000);
      }
      idle = news > 0 ? 0 : idle + 1;
      // A device that waits for credit asks for it by the clock.
      if (news === 0) rig.passTime(1100, false);
    }
  }

  /** What is due without time passing has come to pass for each stream. */
  #checkStates(): void {
    const many = this.#setup.maxConnections === MANY_CONNECTIONS;
    for (const { model, guest, host, listening } of this.#streams) {
      const cut = model.up.lossy !== "" || model.down.lossy !== "";
      if (guest === null || cut || model.guestDone || model.hostDone) continue;
      const { state, closeReason } = guest;
      if (state === "connecting") {
        throw new Violation("progress", "a REQUEST has no answer");
      }
      if (state === "connected" && host === null) {
        throw new Violation("progress", "a connection has no host program");
      }
      if (!listening && closeReason !== "refused" && state !== "closed") {
        throw new Violation("rst-rules", `a port of nobody is ${state}`);
      }
      const refused = closeReason === "refused" && (!listening || !many);
      // A host program does not wait for ever.
      if (host === null && this.#rig.now >= HOST_PATIENCE_MS) continue;
      if (state === "closed" && !refused && closeReason !== "timeout") {
        throw new Violation(
          "rst-rules",
          `nobody has ended guest port ${guest.localPort}, and it is closed: ${closeReason}`,
        );
      }
    }
  }

  /** An RST for each packet of no connection that is none itself (5.10.6.4.1). */
  #checkStrays(): void {
    const answers = new Map<number, string[]>();
    for (const { header } of this.#rig.guest.driver.rawPackets) {
      const list = answers.get(header.dstPort) ?? [];
      list.push(`${opName(header.op)} of type ${header.type}`);
      answers.set(header.dstPort, list);
    }
    for (const [port, { op, type, lost }] of this.#strays) {
      const found = answers.get(port)?.join() ?? "nothing";
      if (lost && found === "nothing") continue;
      const expected = op === OP_RST
        ? "nothing"
        : `${opName(OP_RST)} of type ${type}`;
      const what = `the answer to ${opName(op)} of no connection`;
      expectSame("rst-rules", what, found, expected);
    }
  }

  /** Looks for rules that were broken, for new ends and for ends that time has cut. */
  #look(): void {
    const { host, guest } = this.#rig;
    // The RST of a host program that has given up may have crossed the guest's answer, which the guest takes
    // back before it sees what came earlier.
    const givenUp = this.#rig.now >= HOST_PATIENCE_MS;
    const violation = guest.driver.violations.find((text) =>
      !givenUp || !text.startsWith("RST ")
    );
    if (violation !== undefined) {
      throw new Violation(invariantOf(violation), violation);
    }
    for (const conn of host.connections) {
      this.#stream(conn.guestPort, conn.hostPort, true).host ??= conn;
    }
    for (const { model, guest: end } of this.#streams) {
      if (end === null) continue;
      const { closeReason } = end;
      if (closeReason === "timeout") model.abort("the guest gave up waiting");
      if (closeReason === "transport") model.abort("it was lost");
    }
  }

  #stream(guestPort: number, hostPort: number, listening: boolean): Stream {
    const key = `${guestPort}:${hostPort}`;
    let stream = this.#byPorts.get(key);
    if (stream === undefined) {
      const model = new StreamModel(this.#streams.length);
      stream = { model, guest: null, host: null, listening };
      this.#byPorts.set(key, stream);
      this.#streams.push(stream);
      const there = this.#rig.host.connections.some((conn) =>
        conn.guestPort === guestPort && conn.hostPort === hostPort
      );
      if (!there) this.#loseProgram(stream, hostPort);
    }
    return stream;
  }

  #accept(): string {
    let accepted = 0;
    for (;;) {
      const end = this.#guestListener.accept();
      if (end === null) break;
      accepted++;
      const stream = this.#stream(end.localPort, end.peerPort, true);
      stream.guest = end;
    }
    for (;;) {
      const conn = this.#hostListener.tryAccept();
      if (conn === null) break;
      accepted++;
      this.#stream(conn.guestPort, conn.hostPort, true).host = conn;
    }
    return `${accepted} ends`;
  }

  #guestClose({ model, guest }: Stream): void {
    if (guest === null || guest.state === "closed") return;
    if (guest.state === "connecting") model.abort("the guest has withdrawn");
    else if (guest.state === "connected") model.guestClose();
    guest.close();
  }

  #guestRead({ model, guest }: Stream, bytes: number): number {
    // After its own close it reads nothing any more, as a program cannot.
    if (guest === null || guest.state === "closing") return 0;
    const target = new Uint8Array(bytes);
    const count = guest.read(target);
    model.down.take(target.subarray(0, count));
    if (count === 0 && guest.state === "connected" && guest.atEnd) {
      model.down.takeEnd();
    }
    return count;
  }

  #hostSend({ model, host }: Stream, bytes: number): number {
    const { down } = model;
    if (host === null || model.hostDone || down.ended) return 0;
    try {
      const { guestBuffer, rx } = this.#setup;
      // One packet may be all that there is room for.
      const packet = RX_LAYOUTS[rx].reduce((sum, piece) => sum + piece, -44);
      const few = atMost(bytes, down, Math.min(guestBuffer, packet));
      const sent = host.tryWrite(down.offer(few));
      down.sent += sent;
      return sent;
    } catch (error) {
      if (!(error instanceof Error) || error instanceof TypeError) throw error;
      if (down.lossy === "" && !model.guestDone) {
        throw new Violation("rst-rules", `nobody has cut ${down}`);
      }
      return 0;
    }
  }

  #hostRead({ model, host }: Stream, bytes: number): number {
    if (host === null || model.hostDone) return 0;
    const { up } = model;
    const target = new Uint8Array(bytes);
    let count: number | null;
    try {
      count = this.#rig.hostRead(host, target);
    } catch (error) {
      if (!(error instanceof Error) || error instanceof TypeError) throw error;
      if (up.lossy === "") {
        throw new Violation("rst-rules", `nobody has cut ${up}`);
      }
      return 0;
    }
    if (count === null) up.takeEnd();
    else up.take(target.subarray(0, count));
    return count ?? 0;
  }
}

/** As many of `bytes` as arrive within the rounds that are waited, `window` bytes in each. */
function atMost(bytes: number, way: DirectionModel, window: number): number {
  const room = window * MAX_WINDOWS - (way.sent - way.received);
  return Math.max(0, Math.min(bytes, room));
}

/** The invariant that a guest's stack has seen broken. */
function invariantOf(text: string): string {
  if (/^(credit exceeded|fwd_cnt)/.test(text)) return "credit";
  return /RST|closed|no connection/.test(text) ? "rst-rules" : "packets";
}

/** What guest and device may be made with. */
export const STREAM_SETUPS: fc.Arbitrary<VsockSetup> = fc.record({
  format: fc.constantFrom("split" as const, "packed" as const),
  size: fc.constantFrom(4, 8, 32),
  eventIdx: fc.boolean(),
  indirect: fc.boolean(),
  rx: fc.constantFrom(
    ...(Object.keys(RX_LAYOUTS) as (keyof typeof RX_LAYOUTS)[]),
  ),
  tx: fc.constantFrom(
    ...(Object.keys(TX_LAYOUTS) as (keyof typeof TX_LAYOUTS)[]),
  ),
  maxPayload: fc.constantFrom(100, 4096, 4096, 65_536),
  guestBuffer: fc.constantFrom(60, 500, 3000, 16_384),
  deviceBuffer: fc.constantFrom(60, 500, 5000, 262_144),
  hostRoom: fc.constantFrom(60, 1000, 100_000),
  maxConnections: fc.constantFrom(1, 3, MANY_CONNECTIONS, MANY_CONNECTIONS),
  backlog: fc.constantFrom(1, 2, 128),
});

/** What a script of streams may be about more than of anything else. */
export type StreamTheme = "traffic" | "ends" | "restores" | "resets";

/** Steps of random scripts; what stands there more than once comes up more often. */
export function streamSteps(theme: StreamTheme): fc.Arbitrary<VsockStep>[] {
  const pick = fc.nat(7);
  const bytes = fc.oneof(
    fc.nat(20),
    fc.nat(500),
    fc.nat(9000),
    { arbitrary: fc.constantFrom(65_535, 65_536, 70_000), weight: 1 },
  );
  const of = <D extends VsockStep["do"]>(
    kind: D,
    shape: Record<string, fc.Arbitrary<unknown>> = {},
  ): fc.Arbitrary<VsockStep> =>
    fc.record(shape).map((fields) =>
      ({ do: kind, ...fields }) as unknown as VsockStep
    );
  const listening = fc.nat(4).map((n) => n > 0);
  const connect = of("guestConnect", { listening });
  const hostConnect = of("hostConnect", { listening });
  const traffic = [
    of("guestSend", { pick, bytes }),
    of("hostSend", { pick, bytes }),
    of("guestRead", { pick, bytes }),
    of("hostRead", { pick, bytes }),
  ];
  const run = of("run", { passes: fc.nat(3) });
  const stray = of("stray", {
    op: fc.constantFrom(
      OP_RST,
      OP_RST,
      OP_REQUEST,
      OP_RESPONSE,
      OP_RW,
      OP_SHUTDOWN,
      OP_CREDIT_REQUEST,
      OP_CREDIT_UPDATE,
    ),
    type: fc.constantFrom(1, 1, 1, 7),
  });
  const ends = [
    of("guestShutdown", { pick, flags: fc.integer({ min: 0, max: 3 }) }),
    of("guestClose", { pick }),
    of("guestAbort", { pick }),
    of("hostCloseWrite", { pick }),
    of("hostClose", { pick }),
  ];
  const publish = of("publish");
  const moves = [of("restore"), of("migrate"), of("migrateAll")];
  const spoiled = of("spoiledSnapshot", { seed: fc.nat(0x7fff_ffff) });
  const themed = {
    traffic: traffic,
    ends,
    restores: [spoiled, publish, publish, ...moves, ...moves, ...moves],
    resets: [stray, stray, of("transportReset")],
  }[theme];
  return [
    connect,
    connect,
    hostConnect,
    hostConnect,
    of("accept"),
    of("accept"),
    ...traffic,
    ...traffic,
    ...traffic,
    run,
    run,
    run,
    run,
    ...ends,
    of("askCredit", { pick }),
    of("tellCredit", { pick }),
    stray,
    of("pauseRx", { paused: fc.boolean() }),
    of("time", { ms: fc.constantFrom(5, 50, 1500, 5000, 9000) }),
    ...moves,
    publish,
    ...themed,
  ];
}
