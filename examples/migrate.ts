/**
 * A live migration in small: one driver, and a device that is replaced by another again and again while
 * buffers are in flight. What moves is the state of the queue, as JSON; the ring stays where it is.
 *
 * ```sh
 * deno run examples/migrate.ts
 * ```
 *
 * Needs no permissions. Exits with 1 if an answer is missing, wrong, or came twice.
 *
 * @module
 */

// deno-lint-ignore-file no-console

import { Chain } from "../ring/chain.ts";
import { GuestMemory } from "../ring/memory.ts";
import { PackedDevice } from "../ring/packed_device.ts";
import { PackedDriver } from "../ring/packed_driver.ts";
import {
  BufferList,
  type DeviceQueue,
  type DriverQueue,
  type QueueConfig,
  type RingFormat,
} from "../ring/queue.ts";
import { saveQueue, type SaveWay } from "../ring/save.ts";
import { SplitDevice } from "../ring/split_device.ts";
import { SplitDriver } from "../ring/split_driver.ts";
import { checkQueueState, encodeQueueStateWords } from "../ring/state.ts";

const MOVES = 300;
const CONFIG: QueueConfig = {
  size: 16,
  descriptorArea: 0x1_0000,
  driverArea: 0x1_0200,
  deviceArea: 0x1_0300,
  eventIdx: true,
};
/** By token of the driver: 16 bytes, a question and room for its answer. */
const BUFFERS = 0x1_1000;

/** The guest: asks for the squares of 0, 1, 2, ... */
class Guest {
  readonly memory: GuestMemory = new GuestMemory([
    {
      guestAddress: 0x1_0000,
      size: 0x1_0000,
      buffer: new ArrayBuffer(0x1_0000),
    },
  ]);
  readonly queue: DriverQueue;
  /** By question: how many right answers came. */
  readonly answers: number[] = [];
  wrong = 0;
  readonly #list: BufferList = new BufferList();
  // Buffers by the slot of memory that they have, and the slots by token.
  readonly #free: number[] = Array.from({ length: 16 }, (_, i) => i);
  readonly #slots: Map<number, { slot: number; question: number }> = new Map();

  constructor(format: RingFormat) {
    this.queue = format === "split"
      ? new SplitDriver(this.memory, CONFIG)
      : new PackedDriver(this.memory, CONFIG);
  }

  /** Asks up to `count` questions, as many as the ring takes. */
  ask(count: number): void {
    for (let i = 0; i < count && this.queue.free >= 2; i++) {
      const slot = this.#free.pop()!;
      const question = this.answers.push(0) - 1;
      const address = BUFFERS + 16 * slot;
      this.#view(address).setUint32(0, question, true);
      this.#view(address).setUint32(8, 0xffffffff, true);
      this.#list.clear().addReadable(address, 4).addWritable(address + 8, 4);
      this.#slots.set(this.queue.add(this.#list), { slot, question });
    }
    this.queue.publish();
  }

  /** Takes the answers that are there. */
  listen(): void {
    for (;;) {
      const token = this.queue.reclaim();
      if (token < 0) return;
      const { slot, question } = this.#slots.get(token)!;
      this.#slots.delete(token);
      this.#free.push(slot);
      const answer = this.#view(BUFFERS + 16 * slot).getUint32(8, true);
      if (answer === question ** 2) this.answers[question]!++;
      else this.wrong++;
    }
  }

  #view(address: number): DataView {
    const bytes = this.memory.bytes(address, 16);
    return new DataView(bytes.buffer, bytes.byteOffset, 16);
  }
}

/** A device: fetches questions, and answers them in whatever order it is told. */
class Device {
  readonly queue: DeviceQueue;
  readonly #held: { token: number; answer: Uint8Array; chain: Chain }[] = [];
  readonly #memory: GuestMemory;

  /** Takes the queue over where `state`, a JSON text of another device, says; null for a new ring. */
  constructor(memory: GuestMemory, format: RingFormat, state: string | null) {
    this.#memory = memory;
    // What comes from elsewhere is checked before it is believed.
    const checked = state === null
      ? undefined
      : checkQueueState(JSON.parse(state), CONFIG.size, format);
    this.queue = format === "split"
      ? new SplitDevice(memory, CONFIG, checked)
      : new PackedDevice(memory, CONFIG, checked);
  }

  /** Fetches up to `count` questions; true when it got one. */
  fetch(count: number): boolean {
    let fetched = 0;
    while (fetched < count) {
      const chain = new Chain(this.#memory, 4);
      if (!this.queue.pop(chain)) break;
      fetched++;
      const bytes = new Uint8Array(4);
      chain.read(bytes);
      const view = new DataView(bytes.buffer);
      view.setUint32(0, view.getUint32(0, true) ** 2, true);
      this.#held.push({ token: chain.token, answer: bytes, chain });
    }
    return fetched > 0;
  }

  /** Answers the held question at `index`, oldest first; false where there is none. */
  answer(index: number): boolean {
    const [held] = this.#held.splice(index, 1);
    if (held === undefined) return false;
    this.queue.push(held.token, held.chain.write(held.answer));
    this.queue.publish();
    return true;
  }
}

/** How each device ends: what it fetches, and which of it, by age, it still answers. */
const ENDINGS: { fetch: number; answers: number[]; text: string }[] = [
  {
    fetch: 3,
    answers: [0, 0, 0],
    text: "it answers all that it has fetched before it goes",
  },
  {
    fetch: 4,
    answers: [0],
    text:
      "it has fetched four and answered the oldest; the next one fetches the other three again",
  },
  {
    fetch: 4,
    answers: [2, 0],
    text:
      "it has answered the third and then the first of four: no position tells that, so the state has a list of the others",
  },
];

type Result = {
  format: RingFormat;
  ways: Record<SaveWay, number>;
  asked: number;
  once: number;
  wrong: number;
};

function migrate(format: RingFormat): Result {
  const guest = new Guest(format);
  const ways: Record<SaveWay, number> = { drain: 0, rewind: 0, carry: 0 };
  let device = new Device(guest.memory, format, null);
  console.log(`\nA ${format} ring of ${CONFIG.size} descriptors`);
  for (let move = 0; move < MOVES; move++) {
    const ending = ENDINGS[move % ENDINGS.length]!;
    guest.ask(4);
    device.fetch(ending.fetch);
    for (const index of ending.answers) device.answer(index);
    const { way, state } = saveQueue(device.queue, guest.memory, CONFIG);
    ways[way]++;
    const json = JSON.stringify(state);
    if (move < ENDINGS.length) {
      console.log(`\n  ${way}: ${ending.text}`);
      console.log(`    ${json}`);
      console.log(`    ${words(way, state)}`);
    }
    device = new Device(guest.memory, format, json);
    // The driver has noticed nothing. It takes what was answered, by whichever device.
    guest.listen();
  }
  // The last device finishes what all of them have left.
  while (device.fetch(16)) {
    while (device.answer(0));
    guest.listen();
  }
  const { answers, wrong } = guest;
  const once = answers.filter((count) => count === 1).length;
  return { format, ways, asked: answers.length, once, wrong };
}

function words(
  way: SaveWay,
  state: ReturnType<typeof saveQueue>["state"],
): string {
  if (way === "carry") {
    return "two words cannot tell it: positions, and holes between them";
  }
  const { available, used } = encodeQueueStateWords(state);
  const hex = (word: number) => `0x${word.toString(16).padStart(4, "0")}`;
  return state.format === "packed"
    ? `in two words: available ${hex(available)}, used ${hex(used)}`
    : `in a word: available ${hex(available)} (the used index is in the ring)`;
}

function main(): number {
  console.log(
    `One driver asks for squares. ${MOVES} times, while it goes on, its device is replaced by another,\n` +
      "which knows the ring, that has stayed in guest memory, and a state that came as JSON.\n" +
      "A device that stops has three lawful ways to tell of what it has fetched and not answered.",
  );
  const results = (["split", "packed"] as const).map(migrate);
  console.log();
  let failed = false;
  for (const { format, ways, asked, once, wrong } of results) {
    const good = once === asked && wrong === 0;
    failed ||= !good;
    console.log(
      `${
        format.padEnd(6)
      }  ${ways.drain} drained, ${ways.rewind} rewound, ${ways.carry} carried; ` +
        `${asked} questions, ${once} answered once and right, ${wrong} wrong  ${
          good ? "ok" : "FAILED"
        }`,
    );
  }
  return failed ? 1 : 0;
}

if (import.meta.main) Deno.exit(main());
