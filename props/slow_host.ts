import type {
  ConnectAnswer,
  ConnectRequest,
  HostSide,
  HostStream,
  PendingConnect,
  RestoredConnection,
  StreamEvents,
} from "../device/vsock/host.ts";
import type {
  LoopbackConn,
  LoopbackDevice,
  LoopbackHost,
} from "../device/vsock/loopback.ts";

type Room = { taken: number; owed: boolean; events: StreamEvents };

/**
 * A host side whose programs take few bytes at a time: it stands between a device and a loopback host, and
 * lets no more than `room` bytes of a stream through that its program has not read, so that the device has
 * to keep the rest.
 */
export class SlowHost implements HostSide {
  readonly #inner: LoopbackHost;
  readonly #room: number;
  readonly #rooms: WeakMap<LoopbackConn, Room> = new WeakMap();
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
        device.connect(guestPort, this.#slowAnswer(answer)),
      process: () => device.process(),
    };
  }

  /** A program has read `count` bytes. */
  wasRead(program: LoopbackConn, count: number): void {
    const room = this.#rooms.get(program);
    if (room === undefined || count === 0) return;
    room.taken -= count;
    if (!room.owed) return;
    room.owed = false;
    room.events.hostWritable();
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
    return answer && this.#slowAnswer(answer);
  }

  #slowAnswer(answer: ConnectAnswer): ConnectAnswer {
    return {
      accepted: (hostPort, events) => {
        this.connects.accepted++;
        return this.#slow(
          (inner) => answer.accepted(hostPort, inner),
          events,
          null,
        );
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
    const end = program ?? this.#inner.connections.at(-1)!;
    // What was taken before a migration still waits to be read.
    const taken = this.#rooms.get(end)?.taken ?? 0;
    const room = { taken, owed: false, events };
    this.#rooms.set(end, room);
    const writeBytes = (bytes: Uint8Array): number => {
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
