import { assertEquals, assertNotEquals, assertThrows } from "@std/assert";
import { RingError } from "./errors.ts";
import type { InFlightBuffer, QueueState } from "./queue.ts";
import {
  checkQueueState,
  decodeQueueStateWords,
  decodeVringBase,
  encodeQueueStateWords,
  encodeVringBase,
  initialQueueState,
} from "./state.ts";

function buffer(id: number, slots = 1): InFlightBuffer {
  return {
    id,
    slots,
    descriptors: [
      { addr: 0x1000, len: 44, writable: false },
      { addr: 0x2000, len: 64, writable: true },
    ],
  };
}

function split(
  lastAvailIdx: number,
  usedIdx: number,
  ...inFlight: InFlightBuffer[]
): QueueState {
  return { format: "split", lastAvailIdx, usedIdx, inFlight };
}

function packed(
  avail: [number, 0 | 1],
  used: [number, 0 | 1],
  ...inFlight: InFlightBuffer[]
): QueueState {
  return {
    format: "packed",
    lastAvailIdx: avail[0],
    lastAvailWrapCounter: avail[1],
    usedIdx: used[0],
    usedWrapCounter: used[1],
    inFlight,
  };
}

function refuses(value: unknown, size: number, words: string): void {
  const error = assertThrows(
    () => checkQueueState(value, size),
    RingError,
    words,
  );
  assertEquals(error.code, "BAD_QUEUE_STATE");
  assertEquals(error.fatal, true);
}

Deno.test("checkQueueState() copies a lawful state of either format", () => {
  for (
    const [state, size] of [
      [split(0, 0), 1],
      [split(65535, 65535), 8],
      [split(1, 65535, buffer(7), buffer(0, 8)), 8],
      [
        split(32768, 0, ...Array.from({ length: 32768 }, (_, i) => buffer(i))),
        32768,
      ],
      [packed([0, 1], [0, 1]), 1],
      [packed([0, 0], [0, 0]), 5],
      [packed([4, 1], [1, 1], buffer(65535, 2), buffer(3)), 5],
      [packed([1, 0], [4, 1], buffer(0, 2)), 5],
      [packed([3, 0], [3, 1], buffer(0, 5)), 5],
      [packed([0, 0], [0, 1], buffer(9)), 1],
    ] as [QueueState, number][]
  ) {
    const saved = structuredClone(state);
    const checked = checkQueueState(state, size);
    assertEquals(checked, saved);
    assertEquals(
      checkQueueState(JSON.parse(JSON.stringify(state)), size),
      saved,
    );
    for (const { descriptors } of state.inFlight) descriptors[0]!.len = 1;
    state.inFlight.length = 0;
    assertEquals(checked, saved);
  }
});

Deno.test("checkQueueState() drops what it does not know", () => {
  const state = {
    ...split(1, 0, { ...buffer(0), more: 1 } as InFlightBuffer),
    size: 99,
  };
  assertEquals(checkQueueState(state, 8), split(1, 0, buffer(0)));
});

Deno.test("checkQueueState() holds a split state to its rules", () => {
  refuses(split(65536, 0), 8, "lastAvailIdx is 65536");
  refuses(split(0, -1), 8, "usedIdx is -1");
  refuses(split(1.5, 0), 8, "lastAvailIdx is 1.5");
  refuses(split(NaN, 0), 8, "lastAvailIdx is NaN");
  refuses(split(3, 3, buffer(0)), 8, "0 ahead of usedIdx 3, but 1 buffers");
  refuses(split(5, 3, buffer(0)), 8, "2 ahead of usedIdx 3, but 1 buffers");
  refuses(split(2, 3), 8, "65535 ahead");
  refuses(split(2, 0, buffer(1), buffer(1)), 8, "id 1 is in flight twice");
  refuses(split(1, 0, buffer(8)), 8, "inFlight[0].id is 8");
  refuses(split(2, 0, buffer(0), buffer(1)), 1, "more than 1");
});

Deno.test("checkQueueState() holds a packed state to its rules", () => {
  refuses(packed([5, 1], [0, 1]), 5, "lastAvailIdx is 5");
  refuses(packed([0, 1], [5, 1]), 5, "usedIdx is 5");
  refuses(packed([0, 2 as 1], [0, 1]), 5, "lastAvailWrapCounter is 2");
  refuses(
    packed([0, 1], [0, true as unknown as 1]),
    5,
    "usedWrapCounter is true",
  );
  refuses(
    packed([1, 1], [2, 1], buffer(0, 4)),
    5,
    "behind usedIdx 2 in the same lap",
  );
  refuses(packed([3, 0], [2, 1], buffer(0, 5)), 5, "more than a lap ahead");
  refuses(packed([0, 1], [0, 0]), 5, "5 slots ahead of the used one, but 0");
  refuses(
    packed([3, 1], [1, 1], buffer(0, 1)),
    5,
    "2 slots ahead of the used one, but 1",
  );
  refuses(
    packed([2, 1], [0, 1], buffer(4), buffer(4)),
    5,
    "id 4 is in flight twice",
  );
  refuses(packed([1, 1], [0, 1], buffer(65536)), 5, "inFlight[0].id is 65536");
});

Deno.test("checkQueueState() accepts exactly the packed positions that lie within one lap", () => {
  const size = 3;
  let lawful = 0;
  for (let avail = 0; avail < size; avail++) {
    for (let used = 0; used < size; used++) {
      for (const availWrap of [0, 1] as const) {
        for (const usedWrap of [0, 1] as const) {
          // Positions on a circle of two laps; the queue holds what lies between.
          const from = (usedWrap ^ 1) * size + used;
          const to = (availWrap ^ 1) * size + avail;
          const distance = (to - from + 2 * size) % (2 * size);
          const inFlight = Array.from(
            { length: Math.min(distance, size) },
            (_, i) => buffer(i),
          );
          const state = packed(
            [avail, availWrap],
            [used, usedWrap],
            ...inFlight,
          );
          if (distance <= size) {
            assertEquals(checkQueueState(state, size), state);
            lawful++;
          } else refuses(state, size, "lap");
        }
      }
    }
  }
  assertEquals(lawful, 2 * size * (size + 1));
});

Deno.test("checkQueueState() holds each buffer in flight to its rules", () => {
  const one = (change: Record<string, unknown>) => ({
    ...split(1, 0),
    inFlight: [{ ...buffer(0), ...change }],
  });
  const first = (change: Record<string, unknown>) =>
    one({ descriptors: [{ addr: 16, len: 1, writable: false, ...change }] });
  refuses(one({ slots: 0 }), 8, "inFlight[0].slots is 0");
  refuses(one({ slots: 9 }), 8, "inFlight[0].slots is 9");
  refuses(one({ descriptors: null }), 8, "inFlight[0].descriptors is null");
  refuses(first({ addr: 2 ** 53 }), 8, "addr is 9007199254740992");
  refuses(first({ addr: "16" }), 8, 'addr is "16"');
  refuses(first({ len: 2 ** 32 }), 8, "len is 4294967296");
  refuses(first({ writable: 1 }), 8, "writable is 1");
  refuses(
    one({ descriptors: buffer(0).descriptors.reverse() }),
    8,
    "readable behind",
  );
  const many = (count: number) =>
    one({
      descriptors: Array(count).fill({ addr: 0, len: 0, writable: true }),
    });
  assertEquals(
    checkQueueState(many(8 + 1024), 8).inFlight[0]!.descriptors.length,
    1032,
  );
  refuses(many(8 + 1025), 8, "has 1033 entries");
});

Deno.test("checkQueueState() refuses what is no state at all", () => {
  refuses(null, 8, "the state is null");
  refuses("split", 8, 'the state is "split"');
  refuses({}, 8, "its format is undefined");
  refuses({ format: "ring" }, 8, 'its format is "ring"');
  refuses(
    { format: "split", lastAvailIdx: 0, usedIdx: 0 },
    8,
    "inFlight is undefined",
  );
  refuses(
    { ...split(0, 0), inFlight: { length: 0 } },
    8,
    "inFlight is an object",
  );
  // deno-lint-ignore no-sparse-arrays
  refuses({ ...split(1, 0), inFlight: [,] }, 8, "inFlight[0] is undefined");
});

Deno.test("checkQueueState() refuses the other format where one is asked for", () => {
  assertThrows(
    () => checkQueueState(packed([0, 1], [0, 1]), 8, "split"),
    RingError,
    "its format is packed, that of the queue split",
  );
  assertThrows(() => checkQueueState(split(0, 0), 0), RangeError);
});

Deno.test("checkQueueState() reads each property once", () => {
  let reads = 0;
  const state = {
    format: "split",
    get lastAvailIdx() {
      return reads++ === 0 ? 0 : 1 << 20;
    },
    usedIdx: 0,
    inFlight: [],
  };
  assertEquals(checkQueueState(state, 8), split(0, 0));
  assertEquals(reads, 1);
});

Deno.test("initialQueueState() has both wrap counters 1", () => {
  assertEquals(initialQueueState("split"), split(0, 0));
  assertEquals(initialQueueState("packed"), packed([0, 1], [0, 1]));
});

Deno.test("encodeVringBase() puts the wrap counters into bits 15 and 31", () => {
  assertEquals(encodeVringBase(initialQueueState("split")), 0);
  assertEquals(encodeVringBase(initialQueueState("packed")), 0x80008000);
  assertEquals(encodeVringBase(split(0xabcd, 0xabcd)), 0xabcd);
  assertEquals(encodeVringBase(packed([7, 1], [5, 1])), 0x80058007);
  assertEquals(encodeVringBase(packed([1, 0], [0x7ffe, 1])), 0xfffe0001);
  assertEquals(encodeVringBase(packed([0x7ffe, 1], [1, 0])), 0x0001fffe);
});

Deno.test("decodeVringBase() takes back what encodeVringBase() gave", () => {
  for (
    const base of [
      0x80008000,
      0,
      0x80058007,
      0xfffe0001,
      0x0001fffe,
      0xffffffff,
    ]
  ) {
    assertEquals(encodeVringBase(decodeVringBase("packed", base)), base);
  }
  assertEquals(
    decodeVringBase("packed", 0x80008000),
    initialQueueState("packed"),
  );
  assertEquals(
    decodeVringBase("packed", 0xfffe0001),
    packed([1, 0], [0x7ffe, 1]),
  );
  assertEquals(decodeVringBase("split", 0xabcd, 0xabcc), split(0xabcd, 0xabcc));
});

Deno.test("decodeVringBase() takes a packed 0 as it stands, which is not the initial state", () => {
  assertEquals(decodeVringBase("packed", 0), packed([0, 0], [0, 0]));
  assertNotEquals(decodeVringBase("packed", 0), initialQueueState("packed"));
});

Deno.test("decodeVringBase() refuses a number that does not fit", () => {
  for (
    const [format, base, used] of [
      ["split", 0x10000, 0],
      ["split", -1, 0],
      ["split", 0, 0x10000],
      ["packed", 2 ** 32, 0],
      ["packed", 0.5, 0],
    ] as const
  ) {
    const error = assertThrows(
      () => decodeVringBase(format, base, used),
      RingError,
    );
    assertEquals(error.code, "BAD_QUEUE_STATE");
  }
});

Deno.test("encodeQueueStateWords() and decodeQueueStateWords() follow the facility's layout", () => {
  assertEquals(encodeQueueStateWords(split(513, 513)), {
    available: 513,
    used: 0,
  });
  assertEquals(encodeQueueStateWords(packed([2, 0], [9, 1])), {
    available: 0x0002,
    used: 0x8009,
  });
  assertEquals(
    decodeQueueStateWords("packed", { available: 0x8004, used: 0x0003 }),
    packed([4, 1], [3, 0]),
  );
  assertEquals(
    decodeQueueStateWords("split", { available: 9, used: 0xdead }, 8),
    split(9, 8),
  );
  assertThrows(
    () => decodeQueueStateWords("packed", { available: 0, used: 65536 }),
    RingError,
  );
});

Deno.test("encodeVringBase() refuses a state with buffers in flight", () => {
  assertThrows(
    () => encodeVringBase(split(1, 0, buffer(0))),
    TypeError,
    "1 buffers",
  );
  assertThrows(
    () => encodeQueueStateWords(packed([1, 1], [0, 1], buffer(0))),
    TypeError,
    "1 buffers",
  );
});
