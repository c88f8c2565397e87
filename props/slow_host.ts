import {
  type ConnectAnswer,
  type ConnectRequest,
  type HostMessages,
  type HostSide,
  type HostStream,
  MESSAGE_AGAIN,
  type MessageEvents,
  type MessagesAnswer,
  type MessagesRequest,
  type PendingConnect,
  type RestoredConnection,
  STREAM_BROKEN,
  type StreamEvents,
} from "../device/vsock/host.ts";
import type {
  LoopbackConn,
  LoopbackDevice,
  LoopbackHost,
} from "../device/vsock/loopback.ts";
import type { LoopbackMessages } from "../device/vsock/loopback_messages.ts";

/** Messages that a program takes before it has received some, whatever their lengths. */
export const SLOW_MESSAGES = 64;

/** Bytes and messages that a program has taken and not read. */
type Room = {
  taken: number;
  messages: number;
  owed: boolean;
  /** It takes nothing any more, and says so when it is asked. */
  broken: boolean;
  events: StreamEvents;
};

/**
 * A host side whose programs take few bytes at a time: it stands between a device and a loopback host, and
 * lets no more than `room` bytes of a stream through that its program has not read, so that the device has
 * to keep the rest.
 */
export class SlowHost implements HostSide {
  #inner: LoopbackHost;
  readonly #room: number;
  readonly #rooms: WeakMap<object, Room> = new WeakMap();
  #held: ConnectRequest[] = [];
  /** Host port whose programs answer when they are told to; -1 for none. */
  heldPort = -1;
  /** Answers that programs which connect to the guest have had. */
  readonly connects: { accepted: number; refused: number } = {
    accepted: 0,
    refused: 0,
  };

  /** @param inner Where the programs are. @param room Bytes a stream. */
  constructor(inner: LoopbackHost, room: number) {
    this.#inner = inner;
    this.#room = room;
  }

  /** The device, as the inner host is to see it. */
  before(device: LoopbackDevice): LoopbackDevice {
    return {
      connect: (guestPort: number, answer: ConnectAnswer): PendingConnect =>
        device.connect(guestPort, this.#slowStreamAnswer(answer)),
      connectMessages: (
        guestPort: number,
        answer: MessagesAnswer,
      ): PendingConnect =>
        device.connectMessages!(guestPort, this.#slowMessagesAnswer(answer)),
      process: () => device.process(),
    };
  }

  /** A program has read `count` bytes. */
  wasRead(program: LoopbackConn, count: number): void {
    const room = this.#rooms.get(program);
    if (room === undefined || count === 0) return;
    this.#free(room, count);
  }

  /** A guest connects. */
  connect(request: ConnectRequest): void {
    if (request.hostPort === this.heldPort) this.#held.push(request);
    else this.#pass(request);
  }

  /** The connections that wait for {@link SlowHost.release}, those withdrawn not among them. */
  get held(): readonly ConnectRequest[] {
    return this.#held = this.#held.filter(({ cancelled }) => !cancelled);
  }

  /** A program takes a guest's connection that was held, or none does. */
  release(request: ConnectRequest, accept: boolean): void {
    this.#held = this.#held.filter((one) => one !== request);
    if (accept) this.#pass(request);
    else request.refuse();
  }

  /** Programs go on elsewhere: `ends` has the old end and the new one of each. */
  moveTo(inner: LoopbackHost, ends: readonly [object, object][]): void {
    this.#inner = inner;
    for (const [before, after] of ends) {
      const room = this.#rooms.get(before);
      if (room !== undefined) this.#rooms.set(after, room);
    }
  }

  /** The device is gone; the next one asks again. */
  forgetRequests(): void {
    this.#held = [];
  }

  #pass(request: ConnectRequest): void {
    this.#inner.connect({
      hostPort: request.hostPort,
      guestPort: request.guestPort,
      get cancelled(): boolean {
        return request.cancelled;
      },
      accept: (open) =>
        request.accept((events) => this.#slow(open, events, null)),
      refuse: () => request.refuse(),
    });
  }

  /** A restored device goes on with a stream. */
  resume(
    connection: RestoredConnection,
  ): ((events: StreamEvents) => HostStream) | null {
    // The one that the inner host goes on with.
    const program = this.#inner.connections.find((one) =>
      one.suspended && one.hostPort === connection.hostPort &&
      one.guestPort === connection.guestPort
    );
    const open = this.#inner.resume(connection);
    return open && ((events) => this.#slow(open, events, program ?? null));
  }

  /** A restored device goes on with a connect. */
  resumeConnect(connection: RestoredConnection): ConnectAnswer | null {
    const answer = this.#inner.resumeConnect(connection);
    return answer && this.#slowStreamAnswer(answer);
  }

  /** A guest connects a seqpacket socket. */
  connectMessages(request: MessagesRequest): void {
    this.#inner.connectMessages({
      hostPort: request.hostPort,
      guestPort: request.guestPort,
      get cancelled(): boolean {
        return request.cancelled;
      },
      accept: (open) =>
        request.accept((events) => this.#slowMessages(open, events, null)),
      refuse: () => request.refuse(),
    });
  }

  /** A restored device goes on with a seqpacket connection. */
  resumeMessages(
    connection: RestoredConnection,
  ): ((events: MessageEvents) => HostMessages) | null {
    const program = this.#inner.messageConnections.find((one) =>
      one.suspended && one.hostPort === connection.hostPort &&
      one.guestPort === connection.guestPort
    );
    const open = this.#inner.resumeMessages(connection);
    return open &&
      ((events) => this.#slowMessages(open, events, program ?? null));
  }

  /** A restored device goes on with a seqpacket connect. */
  resumeConnectMessages(connection: RestoredConnection): MessagesAnswer | null {
    const answer = this.#inner.resumeConnectMessages(connection);
    return answer && this.#slowMessagesAnswer(answer);
  }

  /** A program has received a message of so many bytes. */
  wasReceived(program: LoopbackMessages, bytes: number): void {
    const room = this.#rooms.get(program);
    if (room === undefined) return;
    room.messages--;
    this.#free(room, bytes);
  }

  /** The same as `#slow()`, for a program of messages, of which it takes one at least. */
  #slowMessages(
    open: (events: MessageEvents) => HostMessages,
    events: MessageEvents,
    program: LoopbackMessages | null,
  ): HostMessages {
    const inner = open(events);
    const room = this.#enter(
      program ?? this.#inner.messageConnections.at(-1)!,
      events,
    );
    const writeMessageBytes = (bytes: Uint8Array, eor: boolean): number => {
      if (room.broken) return STREAM_BROKEN;
      const full = room.messages >= SLOW_MESSAGES ||
        room.taken + bytes.length > this.#room;
      if (room.messages > 0 && full) {
        room.owed = true;
        return MESSAGE_AGAIN;
      }
      const result = inner.writeMessageBytes(bytes, eor);
      if (result < 0) return result;
      room.messages++;
      room.taken += bytes.length;
      return result;
    };
    return {
      get endOfRecord(): boolean {
        return inner.endOfRecord;
      },
      writeMessageBytes,
      writeMessage: (from, eor) => {
        const bytes = new Uint8Array(from.bytes);
        from.copyTo(bytes);
        return writeMessageBytes(bytes, eor);
      },
      readMessage: (into) => inner.readMessage(into),
      shutdownWrite: () => inner.shutdownWrite(),
      shutdownRead: () => inner.shutdownRead(),
      close: (reset) => inner.close(reset),
    };
  }

  /** The room of a program: what it took before a migration still waits to be read. */
  #enter(program: object, events: StreamEvents): Room {
    const { taken = 0, messages = 0, broken = false } =
      this.#rooms.get(program) ?? {};
    const room = { taken, messages, owed: false, broken, events };
    this.#rooms.set(program, room);
    return room;
  }

  /** A program reads no more, as a socket that is shut down: the device hears of it when it writes. */
  breakOff(program: LoopbackConn | LoopbackMessages): void {
    const room = this.#rooms.get(program)!;
    room.broken = true;
    room.events.hostWritable();
  }

  #free(room: Room, bytes: number): void {
    room.taken -= bytes;
    if (!room.owed) return;
    room.owed = false;
    room.events.hostWritable();
  }

  #slowStreamAnswer(answer: ConnectAnswer): ConnectAnswer {
    return this.#slowAnswer(
      answer,
      (open, events) => this.#slow(open, events, null),
    );
  }

  #slowMessagesAnswer(answer: MessagesAnswer): MessagesAnswer {
    return this.#slowAnswer(
      answer,
      (open, events) => this.#slowMessages(open, events, null),
    );
  }

  /** Counts the answer, whose end is opened by `slow`. */
  #slowAnswer<End, Events>(
    answer: ConnectAnswer<End, Events>,
    slow: (open: (events: Events) => End, events: Events) => End,
  ): ConnectAnswer<End, Events> {
    return {
      accepted: (hostPort, events) => {
        this.connects.accepted++;
        return slow((inner) => answer.accepted(hostPort, inner), events);
      },
      refused: (reason) => {
        this.connects.refused++;
        answer.refused(reason);
      },
    };
  }

  /** Opens a stream: one that `program` had before another device went, or a new one. */
  #slow(
    open: (events: StreamEvents) => HostStream,
    events: StreamEvents,
    program: LoopbackConn | null,
  ): HostStream {
    const stream = open(events);
    const room = this.#enter(
      program ?? this.#inner.connections.at(-1)!,
      events,
    );
    const writeBytes = (bytes: Uint8Array): number => {
      if (room.broken) return STREAM_BROKEN;
      const free = Math.max(0, this.#room - room.taken);
      const count = stream.writeBytes(bytes.subarray(0, free));
      if (count < 0) return count;
      room.taken += count;
      room.owed = count < bytes.length;
      return count;
    };
    return {
      ...stream,
      writeBytes,
      write: (from) => {
        const bytes = new Uint8Array(from.bytes);
        from.copyTo(bytes);
        return writeBytes(bytes);
      },
    };
  }
}
