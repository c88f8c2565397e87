import {
  assert,
  assertEquals,
  assertGreaterOrEqual,
  assertThrows,
} from "@std/assert";
import { SystemError } from "./errno.ts";
import {
  EPOLLET,
  EPOLLHUP,
  EPOLLIN,
  EPOLLOUT,
  EPOLLRDHUP,
  EventLoop,
  EVENTS_PER_WAKE_UP,
} from "./event_loop.ts";
import { fixedBytes, libc } from "./ffi.ts";
import { duplicateFd } from "./mmap.ts";
import {
  closeFd,
  createEventFd,
  drainEventFd,
  raiseSignal,
  receiveBytes,
  sendBytes,
  SHUT_WR,
  shutdownSocket,
  signalOf,
  socketPair,
} from "./socket.ts";

libc(); // Opened here, because a library opened inside a test counts as a leak.

/** A loop, and everything that it and `pair()` opened closed at the end. */
function withLoop(
  body: (loop: EventLoop, pair: () => [number, number]) => void,
): void {
  const before = [...Deno.readDirSync("/proc/self/fd")].length;
  const loop = new EventLoop();
  const fds: number[] = [];
  try {
    body(loop, () => {
      const both = socketPair();
      fds.push(...both);
      return both;
    });
  } finally {
    for (const fd of fds) {
      loop.unregister(fd);
      closeFd(fd);
    }
    loop.close();
  }
  assertEquals([...Deno.readDirSync("/proc/self/fd")].length, before);
}

function recorder(into: number[]): { onEvents(events: number): void } {
  return { onEvents: (events) => into.push(events) };
}

Deno.test("EventLoop reports a level for as long as it lasts, an edge once", () => {
  withLoop((loop, pair) => {
    const [a, b] = pair();
    const [c, d] = pair();
    const level: number[] = [];
    const edge: number[] = [];
    loop.register(b, EPOLLIN, recorder(level));
    loop.register(d, EPOLLIN | EPOLLET, recorder(edge));
    assertEquals(loop.size, 2);
    const byte = fixedBytes(1);
    sendBytes(a, byte, 1);
    sendBytes(c, byte, 1);
    for (let i = 0; i < 3; i++) loop.turn(0);
    assertEquals(level, [EPOLLIN, EPOLLIN, EPOLLIN]);
    assertEquals(edge, [EPOLLIN]);
    sendBytes(c, byte, 1);
    loop.turn(0);
    assertEquals(edge.length, 2);
  });
});

Deno.test("EventLoop tells a half-close from a hang-up", () => {
  withLoop((loop, pair) => {
    const [a, b] = pair();
    const seen: number[] = [];
    loop.register(b, EPOLLIN | EPOLLRDHUP | EPOLLET, recorder(seen));
    shutdownSocket(a, SHUT_WR);
    loop.turn(0);
    assertEquals(seen, [EPOLLIN | EPOLLRDHUP]);
    const duplicate = duplicateFd(a);
    closeFd(duplicate);
    loop.turn(0);
    assertEquals(seen.length, 1);
    shutdownSocket(b, SHUT_WR);
    loop.turn(0);
    assertEquals(seen[1]! & EPOLLHUP, EPOLLHUP);
  });
});

Deno.test("EventLoop forgets events of a descriptor that a handler removed in the same batch", () => {
  withLoop((loop, pair) => {
    const ends = [pair(), pair()] as const;
    const ran: number[] = [];
    for (const [i, [, watched]] of ends.entries()) {
      loop.register(watched, EPOLLIN, {
        onEvents: () => {
          ran.push(i);
          loop.unregister(ends[1 - i]![1]);
        },
      });
    }
    for (const [peer] of ends) sendBytes(peer, fixedBytes(1), 1);
    assertEquals(loop.turn(0), 2);
    assertEquals(ran.length, 1);
    assertEquals(loop.size, 1);
  });
});

Deno.test("EventLoop does not give an old event to a new descriptor of the same number", () => {
  withLoop((loop, pair) => {
    const [p1, first] = pair();
    const [p2, second] = pair();
    const wrong: number[] = [];
    let reused = -1;
    const replace = (victim: number): void => {
      if (reused >= 0) return;
      loop.unregister(victim);
      closeFd(victim);
      reused = createEventFd();
      assertEquals(reused, victim);
      loop.register(reused, EPOLLIN, recorder(wrong));
    };
    loop.register(first, EPOLLIN, { onEvents: () => replace(second) });
    loop.register(second, EPOLLIN, { onEvents: () => replace(first) });
    sendBytes(p1, fixedBytes(1), 1);
    sendBytes(p2, fixedBytes(1), 1);
    assertEquals(loop.turn(0), 2);
    assert(reused >= 0);
    assertEquals(wrong, []);
    raiseSignal(signalOf(reused));
    loop.turn(0);
    assertEquals(wrong, [EPOLLIN]);
  });
});

Deno.test("EventLoop.unregister() frees a file that another descriptor keeps open", () => {
  withLoop((loop) => {
    const event = createEventFd();
    const seen: number[] = [];
    loop.register(event, EPOLLIN, recorder(seen));
    const kept = duplicateFd(event); // the front-end's copy
    loop.unregister(event);
    closeFd(event);
    raiseSignal(signalOf(kept));
    assertEquals(loop.turn(0), 0);
    assertEquals(seen, []);
    closeFd(kept);
  });
});

Deno.test("EventLoop.change() reports what is there to the new handler", () => {
  withLoop((loop, pair) => {
    const [a, b] = pair();
    const first: number[] = [];
    const second: number[] = [];
    loop.register(b, EPOLLET, recorder(first));
    sendBytes(a, fixedBytes(1), 1);
    assertEquals(loop.turn(0), 0);
    loop.change(b, EPOLLIN | EPOLLOUT | EPOLLET, recorder(second));
    loop.turn(0);
    assertEquals(first, []);
    assertEquals(second, [EPOLLIN | EPOLLOUT]);
    assertThrows(() => loop.register(b, EPOLLIN, recorder(first)), TypeError);
    loop.unregister(b);
    assertThrows(() => loop.change(b, EPOLLIN, recorder(first)), TypeError);
  });
});

Deno.test("EventLoop.register() of what epoll cannot watch", () => {
  withLoop((loop) => {
    const handler = recorder([]);
    assertThrows(
      () => loop.register(12345, EPOLLIN, handler),
      SystemError,
      "EBADF",
    );
    assertEquals(loop.size, 0);
  });
});

Deno.test("EventLoop serves more ready descriptors than a wake-up takes, all of them", () => {
  withLoop((loop, pair) => {
    const count = EVENTS_PER_WAKE_UP + 10;
    const seen = new Set<number>();
    const target = fixedBytes(1);
    for (let i = 0; i < count; i++) {
      const [a, b] = pair();
      loop.register(b, EPOLLIN, {
        onEvents: () => {
          receiveBytes(b, target, 1);
          seen.add(b);
        },
      });
      sendBytes(a, fixedBytes(1), 1);
    }
    assertEquals(loop.turn(0), EVENTS_PER_WAKE_UP);
    assertEquals(loop.turn(0), 10);
    assertEquals(seen.size, count);
  });
});

Deno.test("EventLoop wakes for timers, in their order, and not for cancelled ones", () => {
  withLoop((loop) => {
    const fired: string[] = [];
    const start = loop.now();
    loop.after(20, () => fired.push("b"));
    loop.after(10, () => {
      fired.push("a");
      loop.after(0, () => fired.push("nested"));
    });
    const cancelled = loop.after(5, () => fired.push("cancelled"));
    assert(cancelled.pending);
    cancelled.cancel();
    while (fired.length < 3) loop.turn(5000);
    assertEquals(fired, ["a", "nested", "b"]);
    assertGreaterOrEqual(loop.now() - start, 20);
    assertEquals(loop.turn(0), 0);
  });
});

Deno.test("EventLoop does not sleep while work is pending, and calls expire() when it is due", () => {
  withLoop((loop) => {
    let pending = 3;
    let deadline = loop.now() + 10;
    let expired = 0;
    loop.setWork({
      failed: (error) => {
        throw error;
      },
      process: () => --pending > 0,
      nextDeadline: () => deadline,
      expire: (now) => {
        assertGreaterOrEqual(now, deadline);
        deadline = Infinity;
        expired++;
      },
    });
    loop.turn(0);
    loop.turn(); // would sleep for an hour without pending work
    loop.turn();
    assertEquals(pending, 0);
    while (expired === 0) loop.turn();
    assertEquals(expired, 1);
  });
});

Deno.test("EventLoop goes on when a handler, a timer or its work throws", () => {
  withLoop((loop) => {
    const event = createEventFd();
    const signal = signalOf(event);
    const failures: string[] = [];
    let deadline = 0;
    loop.setWork({
      process: () => false,
      nextDeadline: () => deadline,
      expire: () => {
        deadline = Infinity;
        throw new Error("expire");
      },
      failed: (error) => failures.push((error as Error).message),
    });
    loop.register(event, EPOLLIN | EPOLLET, {
      onEvents: () => {
        throw new Error("handler");
      },
    });
    loop.after(0, () => {
      throw new Error("timer");
    });
    raiseSignal(signal);
    loop.turn(100);
    loop.turn(1);
    assertEquals(failures.sort(), ["expire", "handler", "timer"]);
    raiseSignal(signal);
    loop.turn(100);
    assertEquals(failures.length, 4);
    loop.unregister(event);
    closeFd(event);
  });
});

Deno.test("EventLoop looks for answers before it sleeps while two sides take turns", () => {
  // Each look at the clock is 1 us, so that time passes only where the loop looks at it.
  let clock = 0;
  let looks = 0;
  let onLook = (): void => {};
  const loop = new EventLoop(() => {
    looks++;
    onLook();
    return clock += 0.001;
  }, 0.05);
  const events = [createEventFd(), createEventFd()];
  const signals = events.map(signalOf);
  const heard: number[] = [];
  for (const side of [0, 1]) {
    loop.register(events[side]!, EPOLLIN | EPOLLET, {
      onEvents: () => heard.push(side),
    }, side);
  }
  loop.turn(0); // what is there already counts as a change
  heard.length = 0;
  const turn = (side: number): number => {
    raiseSignal(signals[side]!);
    looks = 0;
    loop.turn(15_000);
    return looks;
  };
  const few = turn(0);
  for (let i = 1; i < 8; i++) turn(i % 2);
  // An answer that comes while it looks: it is there at once, without a sleep.
  looks = 0;
  onLook = () => {
    if (looks === 20) raiseSignal(signals[0]!);
  };
  loop.turn(15_000);
  assertEquals(looks > 20 && looks < 25, true, `${looks}`);
  onLook = () => {};
  assertEquals(heard, [0, 1, 0, 1, 0, 1, 0, 1, 0]);
  // Nobody answers: it looks for the length of its window, then sleeps, and sleeps at once the next time.
  looks = 0;
  assertEquals(loop.turn(20), 0);
  assertEquals(looks > 40, true, `${looks}`);
  looks = 0;
  assertEquals(loop.turn(20), 0);
  assertEquals(looks, few);
  for (const fd of events) {
    loop.unregister(fd);
    closeFd(fd);
  }
  loop.close();
});

// The last one: its thread keeps a descriptor for a moment after its end.
Deno.test("EventLoop is woken by a write to an eventfd from another thread", async () => {
  const loop = new EventLoop();
  const event = createEventFd();
  let woken = false;
  loop.register(event, EPOLLIN, {
    onEvents: () => {
      woken = drainEventFd(event);
    },
  });
  const source = `
    const c = Deno.dlopen("libc.so.6", { write: { parameters: ["i32", "buffer", "u32"], result: "i32" } });
    self.onmessage = (e) => {
      c.symbols.write(e.data, new BigUint64Array([1n]), 8);
      c.close();
    };
    self.postMessage("ready");`;
  const worker = new Worker(
    `data:text/javascript,${encodeURIComponent(source)}`,
    {
      type: "module",
    },
  );
  await new Promise((resolve) => worker.onmessage = resolve);
  worker.postMessage(event);
  while (!woken) loop.turn(); // blocks this thread
  worker.terminate();
  loop.unregister(event);
  closeFd(event);
  loop.close();
});
