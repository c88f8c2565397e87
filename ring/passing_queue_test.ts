import { assertEquals, assertStrictEquals } from "@std/assert";
import { Chain } from "./chain.ts";
import { GuestMemory } from "./memory.ts";
import { PassingQueue } from "./passing_queue.ts";
import type { DeviceQueue, QueueState } from "./queue.ts";
import { initialQueueState } from "./state.ts";

const memory = new GuestMemory([{
  guestAddress: 0,
  size: 4096,
  buffer: new ArrayBuffer(4096),
}]);
const state: QueueState = initialQueueState("packed");

Deno.test("PassingQueue passes every call on, and its answer back", () => {
  const calls: unknown[][] = [];
  const said = <T>(answer: T, ...call: unknown[]): T => {
    calls.push(call);
    return answer;
  };
  for (const answer of [true, false]) {
    const behind: DeviceQueue = {
      format: "packed",
      size: 7,
      inFlight: 3,
      usedPosition: 5,
      pop: (chain) => said(answer, "pop", chain),
      unpop: (token) => said(undefined, "unpop", token),
      push: (token, written) => said(undefined, "push", token, written),
      publish: () => said(answer, "publish"),
      needsInterrupt: () => said(answer, "needsInterrupt"),
      armKicks: () => said(answer, "armKicks"),
      disarmKicks: () => said(undefined, "disarmKicks"),
      save: () => said(state, "save"),
      rebind: (memory) => said(undefined, "rebind", memory),
    };
    const queue: DeviceQueue = new PassingQueue(behind);
    const { format, size, inFlight, usedPosition } = queue;
    assertEquals([format, size, inFlight, usedPosition], ["packed", 7, 3, 5]);
    const chain = new Chain(memory);
    calls.length = 0;
    assertEquals(queue.pop(chain), answer);
    queue.unpop(1);
    queue.push(2, 30);
    assertEquals(queue.publish(), answer);
    assertEquals(queue.needsInterrupt(), answer);
    assertEquals(queue.armKicks(), answer);
    queue.disarmKicks();
    assertStrictEquals(queue.save(), state);
    queue.rebind(memory);
    assertEquals(calls.map(([name, ...rest]) => [name, rest.length]), [
      ["pop", 1],
      ["unpop", 1],
      ["push", 2],
      ["publish", 0],
      ["needsInterrupt", 0],
      ["armKicks", 0],
      ["disarmKicks", 0],
      ["save", 0],
      ["rebind", 1],
    ]);
    assertStrictEquals(calls[0]![1], chain);
    assertEquals(calls[1]![1], 1);
    assertEquals(calls[2]!.slice(1), [2, 30]);
    assertStrictEquals(calls[8]![1], memory);
  }
});
