import { assert, assertEquals } from "@std/assert";
import {
  ASK,
  Guest,
  type Packet,
  packetBytes,
  REQUEST,
  RESPONSE,
  RINGS,
  RST,
  RW,
  SHUTDOWN,
  type Stream,
  UPDATE,
} from "../device/vsock/_fixture.ts";
import {
  type PendingConnect,
  STREAM_AGAIN,
  STREAM_BROKEN,
  STREAM_EOF,
} from "../device/vsock/host.ts";
import { randomBelow } from "./race.ts";

const REPLAY = Deno.env.get("RINGSIDE_VSOCK_FUZZ_SEED");
const LIVES = REPLAY === undefined
  ? Number(Deno.env.get("RINGSIDE_VSOCK_FUZZ_LIVES") ?? 100)
  : 1;
const FIRST_SEED = REPLAY === undefined
  ? crypto.getRandomValues(new Uint32Array(1))[0]!
  : Number(REPLAY);
const STEPS = 150;
/** What a guest offers to a program that connects to it, in bytes. */
const BUF_ALLOC = 500;

// deno-lint-ignore no-console
console.log(`vsock scripts: ${LIVES} lives from seed ${FIRST_SEED} on`);

/** The guest's end of a connection. */
type Connection = {
  guestPort: number;
  hostPort: number;
  /** Bytes sent, and how many of them the device has taken. */
  sent: number;
  deviceFwdCnt: number;
  /** Bytes received, and how many of them the device was told of. */
  received: number;
  fwdCnt: number;
  bufAlloc: number;
  /** The most that the device was ever told. */
  maxBufAlloc: number;
  /** Flags of SHUTDOWN that were sent. */
  shut: number;
};

/** The host's end of a stream. */
type Program = {
  stream: Stream;
  said: number;
  checked: number;
  closed: boolean;
  hungUp: boolean;
};

/** A random life of a guest, its host programs and the device between them, with a model of each stream. */
class Life {
  readonly log: string[] = [];
  readonly #pick: (below: number) => number;
  readonly #guest: Guest;
  readonly #bufAlloc: number;
  readonly #connections: Map<string, Connection> = new Map();
  readonly #programs: Program[] = [];
  readonly #pending: PendingConnect[] = [];

  constructor(ring: typeof RINGS[number], seed: number) {
    const pick = randomBelow(seed);
    this.#pick = pick;
    this.#bufAlloc = [64, 1000, 4096][pick(3)]!;
    const guest = new Guest(
      ring,
      { bufAlloc: this.#bufAlloc, maxConnections: 6 },
      [60, 300, 4096][pick(3)]!,
    );
    this.#guest = guest;
    const open = guest.host.open.bind(guest.host);
    guest.host.open = (events) => {
      const stream = open(events);
      const program: Program = {
        stream,
        said: 0,
        checked: 0,
        closed: false,
        hungUp: false,
      };
      this.#programs.push(program);
      const close = stream.close.bind(stream);
      stream.close = (reset) => {
        assert(!program.closed, "a stream is closed twice");
        program.closed = true;
        close(reset);
      };
      return stream;
    };
  }

  run(): void {
    for (let step = 0; step < STEPS; step++) {
      if (this.#pick(3) > 0) this.#drain();
      this.#step(step);
      for (const program of this.#programs) this.#checkProgram(program);
    }
    this.#windDown();
  }

  // -- What the guest sees --

  #drain(): void {
    const guest = this.#guest;
    for (let i = 0; guest.vsock.process(); i++) assert(i < 500, "it spins");
    for (const packet of guest.receive()) this.#receive(packet);
    guest.reclaim();
  }

  #receive(packet: Packet): void {
    const { op, dstPort, srcPort } = packet;
    const key = `${dstPort}:${srcPort}`;
    if (op === RST) {
      if (packet.type === 1) this.#connections.delete(key);
      return;
    }
    if (op === REQUEST) {
      this.#add(dstPort, srcPort, BUF_ALLOC).deviceFwdCnt = packet.fwdCnt;
      return;
    }
    const connection = this.#connections.get(key);
    if (connection === undefined) {
      this.log.push(`stray ${op}`);
      if (this.#guest.queues[1]!.free > 0) {
        this.#guest.send({ op: RST, srcPort: dstPort, dstPort: srcPort });
      }
      return;
    }
    connection.deviceFwdCnt = packet.fwdCnt;
    const taken = (connection.sent - packet.fwdCnt) >>> 0;
    assert(taken <= connection.sent, "the device took what was not sent");
    if (op !== RW) return;
    assert(packet.len > 0, "an empty packet");
    for (const byte of packet.payload) {
      assertEquals(byte, connection.received++ & 255, "a byte to the guest");
    }
    const unread = connection.received - connection.fwdCnt;
    assert(unread <= connection.maxBufAlloc, "the guest's credit is exceeded");
  }

  #add(guestPort: number, hostPort: number, bufAlloc: number): Connection {
    const connection: Connection = {
      guestPort,
      hostPort,
      sent: 0,
      deviceFwdCnt: 0,
      received: 0,
      fwdCnt: 0,
      bufAlloc,
      maxBufAlloc: bufAlloc,
      shut: 0,
    };
    this.#connections.set(`${guestPort}:${hostPort}`, connection);
    return connection;
  }

  // -- What the guest does --

  /** True when the transmit queue has room, if need be after the device has worked. */
  #room(): boolean {
    const tx = this.#guest.queues[1]!;
    if (tx.free < 2) this.#drain();
    return tx.free >= 2;
  }

  #send(
    { guestPort, hostPort, bufAlloc, fwdCnt }: Connection,
    fields: Partial<Packet>,
    payload: number[] = [],
  ): boolean {
    if (!this.#room()) return false;
    this.#guest.send(
      { srcPort: guestPort, dstPort: hostPort, bufAlloc, fwdCnt, ...fields },
      payload,
    );
    return true;
  }

  #step(step: number): void {
    const pick = this.#pick;
    const kind = pick(22);
    this.log.push(`${step}:${kind}`);
    const connections = [...this.#connections.values()];
    const connection = connections[pick(connections.length || 1)];
    if (connection !== undefined && kind >= 2 && kind <= 10) {
      this.#sendOn(connection, kind);
    } else if (kind < 2) this.#request();
    else if (kind === 11) this.#sendNonsense(connection);
    else if (kind < 14) this.#guest.post(pick(6));
    else if (kind === 14) {
      this.#guest.rxBytes = [30, 44, 45, 60, 300, 4096][pick(6)]!;
    } else if (kind < 18) this.#actAsProgram(kind);
    else if (kind === 18) this.#passTime();
    else if (kind === 19) this.#answerOrConnect();
    else if (kind === 20) this.#pending.pop()?.cancel();
    else if (kind === 21) this.#moveQueues();
  }

  #request(): void {
    const guestPort = 5 + this.#pick(4);
    const hostPort = [1234, 1234, 1235, 99][this.#pick(4)]!;
    const bufAlloc = [0, 100, 500, 5000][this.#pick(4)]!;
    if (this.#connections.has(`${guestPort}:${hostPort}`) || !this.#room()) {
      return;
    }
    const connection = this.#add(guestPort, hostPort, bufAlloc);
    this.#send(connection, { op: REQUEST });
  }

  #sendOn(connection: Connection, kind: number): void {
    const pick = this.#pick;
    const { guestPort, hostPort } = connection;
    switch (kind) {
      case 6: {
        const flags = 1 + pick(3);
        if (this.#send(connection, { op: SHUTDOWN, flags })) {
          connection.shut |= flags;
        }
        break;
      }
      case 7:
        if (pick(3) === 0 && this.#send(connection, { op: RST })) {
          this.#connections.delete(`${guestPort}:${hostPort}`);
        }
        break;
      case 8: {
        const unread = connection.received - connection.fwdCnt;
        connection.fwdCnt = connection.received -
          (pick(2) === 0 ? pick(unread + 1) : 0);
        this.#offer(connection, [0, 100, 500, 5000][pick(4)]!);
        break;
      }
      case 9:
        this.#send(connection, { op: ASK });
        break;
      case 10:
        this.#send(connection, { op: RESPONSE });
        break;
      default: {
        if ((connection.shut & 2) !== 0) return;
        const unread = connection.sent - connection.deviceFwdCnt;
        const length = Math.min(pick(200), this.#bufAlloc - unread);
        if (length <= 0) return;
        const payload = counted(connection.sent, length);
        if (this.#send(connection, { op: RW }, payload)) {
          connection.sent += length;
        }
      }
    }
  }

  #offer(connection: Connection, bufAlloc: number): void {
    connection.bufAlloc = bufAlloc;
    connection.maxBufAlloc = Math.max(connection.maxBufAlloc, bufAlloc);
    this.#send(connection, { op: UPDATE });
  }

  #sendNonsense(connection: Connection | undefined): void {
    if (!this.#room()) return;
    const pick = this.#pick;
    this.#guest.raw(packetBytes({
      op: [0, 0, 2, 4, 6, 7, 8, 9][pick(8)]!,
      srcPort: pick(3) > 0 ? connection?.guestPort ?? 5 : 77,
      dstPort: connection?.hostPort ?? 1234,
      bufAlloc: connection?.bufAlloc ?? BUF_ALLOC,
      fwdCnt: connection?.fwdCnt ?? 0,
      len: pick(100),
      type: pick(8) > 0 ? 1 : 2,
    }, new Uint8Array(pick(60))));
  }

  // -- What host programs, time and machines do --

  #actAsProgram(kind: number): void {
    const pick = this.#pick;
    const program = this.#programs[pick(this.#programs.length || 1)];
    if (program === undefined) return;
    const { stream } = program;
    if (kind === 15) {
      const mute = stream.atEnd !== STREAM_AGAIN || program.hungUp;
      if (program.closed || mute) return;
      const bytes = counted(program.said, pick(400));
      program.said += bytes.length;
      stream.say(...bytes);
    } else if (kind === 16) {
      stream.room = [0, 1, 100, Infinity][pick(4)]!;
      stream.events!.hostWritable();
    } else if (pick(3) === 0) {
      stream.atEnd = pick(3) > 0 ? STREAM_EOF : STREAM_BROKEN;
      stream.events!.hostReadable();
      if (pick(2) > 0) {
        program.hungUp = true;
        stream.broken = true;
        stream.events!.hostHangup();
      }
    }
  }

  #checkProgram(program: Program): void {
    const { written } = program.stream;
    for (; program.checked < written.length; program.checked++) {
      const at = program.checked;
      assertEquals(written[at], at & 255, "a byte to the host");
    }
  }

  #passTime(): void {
    const guest = this.#guest;
    guest.now += [1, 20, 500, 3000][this.#pick(4)]!;
    if (guest.vsock.nextDeadline() <= guest.now) guest.vsock.expire(guest.now);
  }

  #answerOrConnect(): void {
    const pick = this.#pick;
    const { host, vsock } = this.#guest;
    if (pick(2) > 0) {
      const [request] = host.slow.splice(pick(host.slow.length || 1), 1);
      if (request === undefined) return;
      if (pick(2) > 0) host.accept(request);
      else request.refuse();
      return;
    }
    const pending = vsock.connect(80 + pick(3), {
      accepted: (_port, events) => host.open(events),
      refused: () => {},
    });
    if (pick(3) === 0) this.#pending.push(pending);
  }

  /** The machine is stopped and continued, its memory moves, or its connections are lost. */
  #moveQueues(): void {
    const { virtio, vsock, memory } = this.#guest;
    const kind = this.#pick(8);
    if (kind < 3) {
      const states = [0, 1, 2].map((index) => virtio.stopQueue(index));
      for (const [index, state] of states.entries()) {
        assertEquals(state!.inFlight, []);
        virtio.startQueue(index, state!);
        virtio.enableQueue(index, true);
      }
    } else if (kind < 6) virtio.setMemory(memory);
    else if (kind === 6) {
      this.#drain();
      vsock.transportReset();
      this.#connections.clear();
    }
  }

  // -- The end --

  /** All programs end and the guest reads everything: no connection, timer or work is left. */
  #windDown(): void {
    const guest = this.#guest;
    guest.rxBytes = 4096;
    for (let round = 0; round < 60; round++) {
      for (const request of guest.host.slow) request.refuse();
      for (const { stream, closed } of this.#programs) {
        if (closed) continue;
        stream.room = Infinity;
        stream.broken = true;
        stream.atEnd = STREAM_EOF;
        stream.events!.hostWritable();
        stream.events!.hostReadable();
        stream.events!.hostHangup();
      }
      guest.post();
      this.#drain();
      for (const connection of this.#connections.values()) {
        connection.fwdCnt = connection.received;
        this.#offer(connection, Math.max(connection.bufAlloc, BUF_ALLOC));
      }
      guest.now += 1000;
      guest.vsock.expire(guest.now);
    }
    guest.post();
    this.#drain();
    assertEquals(guest.vsock.connectionCount, 0, "connections are left");
    assert(this.#programs.every(({ closed }) => closed), "streams are left");
    assertEquals(guest.vsock.pending, false);
    assertEquals(guest.vsock.nextDeadline(), Infinity);
  }
}

function counted(from: number, length: number): number[] {
  return Array.from({ length }, (_, i) => (from + i) & 255);
}

for (const ring of RINGS) {
  Deno.test(`VsockDevice keeps bytes, credit and ends of random connections right (${ring})`, () => {
    for (let i = 0; i < LIVES; i++) {
      const seed = (FIRST_SEED + i) >>> 0;
      const life = new Life(ring, seed);
      try {
        life.run();
      } catch (error) {
        throw new Error(
          `seed ${seed}, to be run again by RINGSIDE_VSOCK_FUZZ_SEED=${seed}, after ${
            life.log.slice(-10).join(" ")
          }: ${error instanceof Error ? error.message : error}`,
          { cause: error },
        );
      }
    }
  });
}
