/**
 * The Worker of a device: its thread does nothing else, and is blocked in `epoll_wait` for want of
 * work.
 *
 * @module
 */

import type { LogLevel } from "../diagnostics.ts";
import { DeviceHost } from "./device_host.ts";
import { EPOLLIN } from "./event_loop.ts";
import { drainEventFd } from "./socket.ts";
import {
  COMMAND_METRICS,
  COMMAND_STOP,
  type FromWorker,
  LOG_LEVELS,
  type ToWorker,
} from "./worker_messages.ts";

/** What this file uses of its global scope. */
type Scope = {
  postMessage(message: FromWorker): void;
  addEventListener(
    type: "message",
    listener: (event: MessageEvent<ToWorker>) => void,
    options: { once: boolean },
  ): void;
};

const scope = globalThis as unknown as Scope;

function run({ options, logLevel, commands, eventFd }: ToWorker): void {
  const least = LOG_LEVELS.indexOf(logLevel);
  const log = (level: LogLevel, text: string): void => {
    if (LOG_LEVELS.indexOf(level) < least) return;
    scope.postMessage({ type: "log", level, text });
  };
  const word = new Int32Array(commands);
  let host: DeviceHost;
  try {
    host = new DeviceHost(options, log);
  } catch (error) {
    const kind = error instanceof Error ? error.name : "Error";
    const text = error instanceof Error ? error.message : String(error);
    scope.postMessage({ type: "failed", kind, text });
    return;
  }
  let stopping = false;
  host.loop.register(eventFd, EPOLLIN, {
    onEvents: () => {
      drainEventFd(eventFd);
      const bits = Atomics.exchange(word, 0, 0);
      if ((bits & COMMAND_METRICS) !== 0) {
        scope.postMessage({ type: "metrics", values: host.metrics() });
      }
      if ((bits & COMMAND_STOP) !== 0) stopping = true;
    },
  });
  scope.postMessage({ type: "listening" });
  let failure: string | null = null;
  try {
    while (!stopping) host.turn();
  } catch (error) {
    failure = error instanceof Error
      ? error.stack ?? error.message
      : String(error);
  }
  try {
    host.stop();
  } catch (error) {
    failure ??= error instanceof Error ? error.message : String(error);
  }
  scope.postMessage({ type: "stopped", error: failure });
}

scope.addEventListener("message", (event) => run(event.data), { once: true });
