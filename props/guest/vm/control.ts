/**
 * The control channel to the agent in a guest: JSON lines both ways over a pipe,
 * requests matched to answers by id, and a window for channels that lose input.
 *
 * @module
 */

/** What the agent says once it listens. */
export interface AgentReady {
  /** The guest's own CID, `null` without a vsock device. */
  readonly cid: number | null;
  /** Its kernel's release. */
  readonly kernel: string;
  /** Its Python's version. */
  readonly python: string;
  /** Seconds that its kernel had been up. */
  readonly uptime: number;
}

/** A request to the agent: an operation and its arguments, all JSON. */
export interface AgentRequest {
  /** The operation, as `agent.py` names it. */
  readonly op: string;
  /** Its arguments. */
  readonly [argument: string]: unknown;
}

/** Something that happened in a call, such as `listening`. */
export interface AgentEvent {
  /** The event's name. */
  readonly event: string;
  /** Its fields. */
  readonly [field: string]: unknown;
}

/** Thrown when the agent answers with an error. */
export class AgentError extends Error {
  /** The Python exception's class. */
  readonly type: string;
  /** The Python trace. */
  readonly trace: string;

  /**
   * Made by the channel.
   *
   * @param op The operation.
   * @param type The exception's class.
   * @param message Its text.
   * @param trace Its trace.
   */
  constructor(op: string, type: string, message: string, trace: string) {
    super(`Cannot ${op} in the guest: ${type}: ${message}\n${trace}`.trimEnd());
    this.name = "AgentError";
    this.type = type;
    this.trace = trace;
  }
}

/** Default time that a call may take, in milliseconds. */
export const CALL_TIMEOUT_MS = 60_000;

/** Settings of one call. */
export interface CallOptions {
  /** Time until the call is given up, in milliseconds; default 60,000. */
  readonly timeoutMs?: number;
  /** Called for each event, in order. */
  readonly onEvent?: (event: AgentEvent) => void;
}

/** A call to the agent that is under way. */
export class AgentCall {
  /** Its number on the channel. */
  readonly id: number;
  /** The operation that was asked for. */
  readonly op: string;
  /** Settled when the agent has answered, the time is up, or the guest has ended. */
  readonly result: Promise<unknown>;
  #channel: ControlChannel;
  #events: AgentEvent[] = [];
  #waiting: {
    name: string;
    resolve: (event: AgentEvent) => void;
    reject: (reason: Error) => void;
  }[] = [];
  #settle: PromiseWithResolvers<unknown> = Promise.withResolvers<unknown>();
  #onEvent: ((event: AgentEvent) => void) | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #failure: Error | undefined;
  #settled = false;

  /** Made by {@linkcode ControlChannel.start}. */
  constructor(
    channel: ControlChannel,
    id: number,
    op: string,
    options: CallOptions,
  ) {
    this.#channel = channel;
    this.id = id;
    this.op = op;
    this.#onEvent = options.onEvent;
    this.result = this.#settle.promise;
    // A caller that waits for an event first must not lose the process to a rejection.
    this.result.catch(() => {});
    const timeoutMs = options.timeoutMs ?? CALL_TIMEOUT_MS;
    if (timeoutMs !== Infinity) {
      this.#timer = setTimeout(() => {
        this.fail(
          new Error(`Cannot ${op} in the guest: no answer in ${timeoutMs} ms`),
        );
      }, timeoutMs);
    }
  }

  /**
   * The next event of this name, which may have come already. Each is given once.
   *
   * @param name The event's name.
   * @throws {Error} If the call ends without it.
   */
  event(name: string): Promise<AgentEvent> {
    const at = this.#events.findIndex((event) => event.event === name);
    if (at !== -1) return Promise.resolve(this.#events.splice(at, 1)[0]!);
    if (this.#settled) return Promise.reject(this.#without(name));
    const { promise, resolve, reject } = Promise.withResolvers<AgentEvent>();
    this.#waiting.push({ name, resolve, reject });
    return promise;
  }

  /**
   * Says a word to the call, such as `stop` to an echo server.
   *
   * @param word What the operation waits for.
   */
  async tell(word: string): Promise<void> {
    await this.#channel.start({ op: "tell", to: this.id, word }).result;
  }

  /** Takes an event from the channel. */
  take(event: AgentEvent): void {
    this.#onEvent?.(event);
    const at = this.#waiting.findIndex((one) => one.name === event.event);
    if (at !== -1) this.#waiting.splice(at, 1)[0]!.resolve(event);
    // With a listener the events are its own; kept, they would grow without end.
    else if (this.#onEvent === undefined) this.#events.push(event);
  }

  /** Ends the call with a value. */
  succeed(value: unknown): void {
    if (!this.#end()) return;
    this.#settle.resolve(value);
    for (const one of this.#waiting.splice(0)) {
      one.reject(this.#without(one.name));
    }
  }

  /** Ends the call with an error. */
  fail(reason: Error): void {
    if (!this.#end()) return;
    this.#failure = reason;
    this.#settle.reject(reason);
    for (const one of this.#waiting.splice(0)) one.reject(reason);
  }

  #end(): boolean {
    if (this.#settled) return false;
    this.#settled = true;
    clearTimeout(this.#timer);
    this.#channel.forget(this.id);
    return true;
  }

  #without(name: string): Error {
    return this.#failure ??
      new Error(`Cannot wait for ${name}: ${this.op} has ended without it`);
  }
}

/** A message from the agent, before it is known which. */
interface AgentMessage {
  id?: number;
  ready?: AgentReady;
  ack?: number;
  event?: string;
  ok?: unknown;
  error?: { type: string; message: string; trace: string };
}

/**
 * One end of the channel. It reads until the guest's end closes, and never writes
 * more than `window` bytes that the agent has not read yet: user-mode-linux stops
 * reading a console for good once its 4096 byte buffer was full.
 */
export class ControlChannel {
  /** Settled when the agent listens; rejected when the channel ends before. */
  readonly ready: Promise<AgentReady>;
  /** Settled when the guest's end has closed. */
  readonly ended: Promise<void>;
  #ready: PromiseWithResolvers<AgentReady> = Promise.withResolvers<
    AgentReady
  >();
  #writer: WritableStreamDefaultWriter<Uint8Array<ArrayBuffer>>;
  #window: number;
  #calls: Map<number, AgentCall> = new Map<number, AgentCall>();
  #nextId = 1;
  #unread = 0;
  #queue: Uint8Array<ArrayBuffer>[] = [];
  #pumping = false;
  #room: (() => void) | undefined;
  #over: Error | undefined;
  #onNoise: (line: string) => void;

  /**
   * @param readable What the agent writes.
   * @param writable What the agent reads.
   * @param options The window in bytes, and who takes lines that are no message.
   */
  constructor(
    readable: ReadableStream<Uint8Array<ArrayBuffer>>,
    writable: WritableStream<Uint8Array<ArrayBuffer>>,
    options: { window?: number; onNoise?: (line: string) => void } = {},
  ) {
    this.#writer = writable.getWriter();
    this.#writer.closed.catch(() => {});
    this.#window = options.window ?? Infinity;
    this.#onNoise = options.onNoise ?? (() => {});
    this.ready = this.#ready.promise;
    this.ready.catch(() => {});
    this.ended = this.#read(readable);
  }

  /** True if the agent tells how much it has read. */
  get acknowledged(): boolean {
    return this.#window !== Infinity;
  }

  /**
   * Sends a request.
   *
   * @param request The operation and its arguments.
   * @param options Time and listener.
   */
  start(request: AgentRequest, options: CallOptions = {}): AgentCall {
    const id = this.#nextId++;
    const call = new AgentCall(this, id, request.op, options);
    if (this.#over !== undefined) {
      call.fail(this.#over);
      return call;
    }
    this.#calls.set(id, call);
    this.#queue.push(
      new TextEncoder().encode(`${JSON.stringify({ ...request, id })}\n`),
    );
    this.#pump();
    return call;
  }

  /** Forgets a call that has ended. */
  forget(id: number): void {
    this.#calls.delete(id);
  }

  /** Closes the host's end, which ends the agent; then all calls fail. */
  async close(): Promise<void> {
    this.#finish(new Error("Cannot talk to the guest: the channel is closed"));
    await this.#writer.close().catch(() => {});
  }

  #finish(reason: Error): void {
    if (this.#over !== undefined) return;
    this.#over = reason;
    this.#queue.length = 0;
    this.#room?.();
    this.#ready.reject(reason);
    for (const call of [...this.#calls.values()]) call.fail(reason);
  }

  async #read(
    readable: ReadableStream<Uint8Array<ArrayBuffer>>,
  ): Promise<void> {
    const lines = new LineSplitter();
    try {
      for await (const bytes of readable) {
        for (const line of lines.split(bytes)) this.#take(line);
      }
    } catch {
      // The guest was killed; the end is the end.
    }
    this.#finish(new Error("Cannot talk to the guest: it has ended"));
  }

  #take(line: string): void {
    let message: AgentMessage;
    try {
      message = JSON.parse(line) as AgentMessage;
    } catch {
      if (line.trim() !== "") this.#onNoise(line);
      return;
    }
    if (message.ready !== undefined) {
      this.#ready.resolve(message.ready);
    } else if (message.ack !== undefined) {
      this.#unread -= message.ack;
      this.#room?.();
    } else if (message.id !== undefined) {
      const call = this.#calls.get(message.id);
      if (call === undefined) return; // given up before
      if (message.event !== undefined) {
        call.take(message as AgentEvent);
      } else if (message.error !== undefined) {
        const { type, message: text, trace } = message.error;
        call.fail(new AgentError(call.op, type, text, trace));
      } else {
        call.succeed(message.ok);
      }
    }
  }

  async #pump(): Promise<void> {
    if (this.#pumping) return;
    this.#pumping = true;
    try {
      while (this.#queue.length > 0) {
        const bytes = this.#queue.shift()!;
        for (let at = 0; at < bytes.byteLength;) {
          while (this.#unread >= this.#window && this.#over === undefined) {
            await new Promise<void>((resolve) => this.#room = resolve);
          }
          if (this.#over !== undefined) return;
          const end = Math.min(
            bytes.byteLength,
            at + this.#window - this.#unread,
          );
          if (this.acknowledged) this.#unread += end - at;
          await this.#writer.write(bytes.subarray(at, end));
          at = end;
        }
      }
    } catch {
      // The guest's end is closed: the reader sees that too, and fails the calls.
    } finally {
      this.#pumping = false;
    }
  }
}

/** Cuts a byte stream into lines of text. */
export class LineSplitter {
  #decoder: TextDecoder = new TextDecoder();
  #pieces: string[] = [];

  /**
   * Takes the next bytes.
   *
   * @param bytes Any part of the stream.
   * @returns The lines that are whole now, without their line feeds.
   */
  split(bytes: Uint8Array<ArrayBuffer>): string[] {
    const text = this.#decoder.decode(bytes, { stream: true });
    const lines = text.split("\n");
    if (lines.length === 1) {
      this.#pieces.push(text);
      return [];
    }
    this.#pieces.push(lines[0]!);
    lines[0] = this.#pieces.join("");
    this.#pieces = [lines.pop()!];
    return lines;
  }
}
