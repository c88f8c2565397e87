import type { Chain } from "../ring/chain.ts";
import type { GuestMemory } from "../ring/memory.ts";
import type {
  BufferList,
  DeviceQueue,
  DriverQueue,
  QueueConfig,
  QueueState,
} from "../ring/queue.ts";
import { draw, type Member, newMember, plain } from "./exhaustive_draw.ts";
import {
  ADD,
  ADD_TWO,
  ARM_INTERRUPTS,
  ARM_KICKS,
  CARRY,
  DISARM_INTERRUPTS,
  DISARM_KICKS,
  FormReader,
  FormWriter,
  MISUSE,
  NEEDS_INTERRUPT,
  NEEDS_KICK,
  POP,
  PUBLISH,
  PUBLISH_USED,
  PUSH,
  RECLAIM,
  REWIND,
  UNPOP,
  WalkModel,
  type WalkSetup,
} from "./exhaustive_model.ts";
import {
  checkFields,
  type OpenRing,
  type PackedDeviceFields,
  type PackedDriverFields,
  type SplitDeviceFields,
  type SplitDriverFields,
} from "./exhaustive_open.ts";
import { DECISIONS_AT, PackedForm, wasPassed } from "./exhaustive_packed.ts";
import { SplitForm } from "./exhaustive_split.ts";
import { Tables } from "./exhaustive_tables.ts";
import { expectIs, expectSame, Violation } from "./violation.ts";

const RING = 0x1000;
const DRIVER_AREA = 0x2000;
const DEVICE_AREA = 0x3000;
const TABLES = 0x4000;
/** Data of token 0. */
const DATA = 0x8000;
const CELL = 64;
const SEGMENT = 8;
const BYTES = 0x10000;

type Sides =
  | {
    format: "split";
    form: SplitForm;
    driver: DriverQueue & SplitDriverFields;
    device: DeviceQueue & SplitDeviceFields;
  }
  | {
    format: "packed";
    form: PackedForm;
    driver: DriverQueue & PackedDriverFields;
    device: DeviceQueue & PackedDeviceFields;
  };

// The fields of a side that are data of its own: no views of the ring, and nothing that stays.
function changing(side: object): [string, unknown][] {
  return Object.entries(side).filter(([, value]) =>
    !(value instanceof Object) || value instanceof Map || isOwn(value) ||
    (Array.isArray(value) && !value.some(ArrayBuffer.isView))
  ).map(([name, value]) => [name, value instanceof Map ? [...value] : value]);
}

function isOwn(value: object): boolean {
  return ArrayBuffer.isView(value) && value.buffer.byteLength < BYTES;
}

function refuses(
  what: string,
  error: new () => Error,
  act: () => void,
): void {
  try {
    act();
  } catch (thrown) {
    if (thrown instanceof error) return;
    throw thrown;
  }
  throw new Violation("misuse is refused", `${what} did what is not allowed`);
}

/** A driver and a device over a ring, with the model that judges them: one state of the walk. */
export class WalkPair {
  /** What was asked for; the steps that may come next. */
  readonly model: WalkModel;
  readonly #setup: WalkSetup;
  readonly #ring: OpenRing;
  readonly #memory: GuestMemory;
  readonly #config: QueueConfig;
  readonly #sides: Sides;
  readonly #chain: Chain;
  // By token: a buffer of one segment and one of two.
  readonly #lists: BufferList[][] = [];
  readonly #writer: FormWriter = new FormWriter();
  readonly #reader: FormReader = new FormReader();
  readonly #member: Member;

  /** Sets a pair up in its first state. */
  constructor(ring: OpenRing, setup: WalkSetup) {
    const { format, size, eventIdx, chains, more } = setup;
    this.#setup = setup;
    this.#member = newMember(size);
    this.#ring = ring;
    this.model = new WalkModel(setup);
    this.#memory = new ring.GuestMemory([
      { guestAddress: 0, size: BYTES, buffer: new ArrayBuffer(BYTES) },
    ]);
    this.#config = {
      size,
      descriptorArea: RING,
      driverArea: DRIVER_AREA,
      deviceArea: DEVICE_AREA,
      eventIdx,
      indirect: more === "indirect",
    };
    const memory = this.#memory;
    const config = this.#config;
    this.#chain = new ring.Chain(memory);
    for (let token = 0; token < size; token++) {
      const at = DATA + token * CELL;
      this.#lists.push([
        new ring.BufferList(1).addWritable(at, SEGMENT),
        new ring.BufferList(2).addReadable(at, SEGMENT)
          .addWritable(at + CELL / 2, SEGMENT),
      ]);
    }
    const tables = more === "indirect"
      ? new Tables(memory, TABLES, size, format === "split")
      : null;
    const options = tables === null ? {} : { indirect: tables.place };
    if (format === "split") {
      this.#sides = {
        format,
        form: new SplitForm(memory, config, this.#lists, tables),
        driver: new ring.SplitDriver(memory, config, options),
        device: new ring.SplitDevice(memory, config),
      };
    } else {
      this.#sides = {
        format,
        form: new PackedForm(
          memory,
          config,
          this.#lists,
          tables,
          tables === null ? chains : 1,
        ),
        driver: new ring.PackedDriver(memory, config, options),
        device: new ring.PackedDevice(memory, config),
      };
    }
    if (ring.edited === true) return;
    const name = format === "split" ? "Split" : "Packed";
    checkFields(`${name}Driver`, this.#sides.driver);
    checkFields(`${name}Device`, this.#sides.device);
  }

  /**
   * Checks the state and gives its form, in an array that the next call fills again.
   *
   * @throws {Violation} where an invariant does not hold.
   */
  save(): Uint8Array {
    const { model } = this;
    const sides = this.#sides;
    const out = this.#writer.begin();
    this.#check();
    model.save(out);
    if (sides.format === "split") {
      sides.form.save(out, model, sides.driver, sides.device);
    } else sides.form.save(out, model, sides.driver, sides.device);
    return out.bytes;
  }

  /** All that the ring's memory, both sides and the model hold, as a text: equal for equal states. */
  raw(): string {
    const { driver, device } = this.#sides;
    const areas = [RING, DRIVER_AREA, DEVICE_AREA]
      .map((area) => this.#memory.bytes(area, 64).join());
    return JSON.stringify([areas, changing(driver), changing(device), {
      ...this.model,
    }]);
  }

  /** Makes a state of its form: the member of that number. */
  load(form: Uint8Array, number: number): void {
    draw(this.#member, this.#setup, number);
    this.#load(form);
  }

  /** Makes the member of a form that has tidy names and begins at a place in the ring. */
  loadPlain(form: Uint8Array, base: number, wrap: 0 | 1): void {
    plain(this.#member, base, wrap);
    this.#load(form);
  }

  /** Places in the ring at which a script of so many steps may begin, so that it meets every wrap. */
  places(steps: number): { name: string; base: number; wrap: 0 | 1 }[] {
    const { format, size } = this.#setup;
    const places: { name: string; base: number; wrap: 0 | 1 }[] = [];
    if (format === "split") {
      for (let i = 0; i <= Math.max(size, steps); i++) {
        const base = -i & 0xffff;
        places.push({ name: `index ${base}`, base, wrap: 1 });
      }
    } else {
      for (const wrap of [1, 0] as const) {
        for (let base = 0; base < size; base++) {
          const name = `descriptor ${base}, wrap counter ${wrap}`;
          places.push({ name, base, wrap });
        }
      }
    }
    return places;
  }

  /** Whether a form differs from the one expected only by an event that was passed two laps ago and comes again. */
  isMetAgain(found: Uint8Array, expected: Uint8Array): boolean {
    const { format, eventIdx, size } = this.#setup;
    if (format !== "packed" || !eventIdx || size === 1) return false;
    const at = this.model.bytes + DECISIONS_AT;
    return found.every((byte, i) =>
      byte === expected[i] ||
      ((i === at || i === at + 1) && (byte ^ expected[i]!) < 4 &&
        (wasPassed(expected[i]!) || wasPassed(byte)))
    );
  }

  #load(form: Uint8Array): void {
    const from = this.#reader.begin(form);
    const { model } = this;
    const sides = this.#sides;
    const member = this.#member;
    model.load(from, member.names);
    if (sides.format === "split") {
      sides.form.load(from, model, member, sides.driver, sides.device);
    } else sides.form.load(from, model, member, sides.driver, sides.device);
  }

  /**
   * Takes a step and judges it; returns what came of it, for a script.
   *
   * @throws {Violation} where an invariant does not hold.
   */
  take(step: number): string | number | boolean {
    try {
      return this.#take(step);
    } catch (error) {
      if (error instanceof Violation || !(error instanceof Error)) throw error;
      throw new Violation("nobody breaks a rule", `${error}`);
    }
  }

  #take(step: number): string | number | boolean {
    const { model } = this;
    const { driver, device } = this.#sides;
    switch (step) {
      case ADD:
        return this.#add(1);
      case ADD_TWO:
        return this.#add(2);
      case PUBLISH:
        expectSame("publish tells", "it", driver.publish(), true);
        model.published();
        return model.kicksAtOnce ? this.#take(NEEDS_KICK) : true;
      case NEEDS_KICK: {
        const kick = driver.needsKick();
        model.unkicked = false;
        if (kick) model.deviceAsleep = false;
        return kick;
      }
      case RECLAIM:
        return this.#reclaim();
      case ARM_INTERRUPTS: {
        const more = driver.armInterrupts();
        model.driverAsleep = !more;
        return more;
      }
      case DISARM_INTERRUPTS:
        driver.disarmInterrupts();
        model.driverAsleep = false;
        return "";
      case POP:
        return this.#pop();
      case PUBLISH_USED:
        expectSame("publish tells", "it", device.publish(), true);
        model.usedPublished();
        return model.interruptsAtOnce ? this.#take(NEEDS_INTERRUPT) : true;
      case NEEDS_INTERRUPT: {
        const interrupt = device.needsInterrupt();
        if (model.fresh) {
          expectSame("restored device interrupts", "it", interrupt, true);
        }
        model.fresh = false;
        model.untold = false;
        if (interrupt) model.driverAsleep = false;
        return interrupt;
      }
      case ARM_KICKS: {
        const more = device.armKicks();
        model.deviceAsleep = !more;
        return more;
      }
      case DISARM_KICKS:
        device.disarmKicks();
        model.deviceAsleep = false;
        return "";
      case CARRY:
        return this.#restore("carry");
      case REWIND:
        return this.#restore("rewind");
      case UNPOP:
        return this.#unpop();
      case MISUSE:
        return this.#misuse();
      default:
        return this.#push(step - PUSH);
    }
  }

  #add(kind: 1 | 2): number {
    const sides = this.#sides;
    // A glance at the id that comes next keeps the address of a buffer a function of its id.
    const next = sides.format === "split"
      ? sides.driver.$freeHead
      : sides.driver.$ids[this.#setup.size - 1 - sides.driver.$inFlight]!;
    const list = this.#lists[next]?.[kind - 1];
    if (list === undefined) throw new Violation("ids are unique", `id ${next}`);
    const token = sides.format === "split"
      ? sides.driver.add(list)
      : this.#addPacked(sides.driver, list);
    this.model.added(token, kind);
    return token;
  }

  // Ids of all but the last descriptor are reserved, and whoever reads them is wrong (virtio 1.4, 2.8.6).
  #addPacked(
    driver: DriverQueue & PackedDriverFields,
    list: BufferList,
  ): number {
    const first = driver.$next;
    const token = driver.add(list);
    if (list.count === 2 && this.#setup.more !== "indirect") {
      const id = this.#memory.bytes(RING + first * 16 + 12, 2);
      id[0] = ~id[0]!;
      id[1] = ~id[1]!;
    }
    return token;
  }

  #reclaim(): number {
    const { model } = this;
    const { driver } = this.#sides;
    const token = driver.reclaim();
    expectSame("exactly once", "reclaim()", token, model.used[0] ?? -1);
    if (token < 0) return token;
    expectIs("used length", "it", driver.usedLength, model.written[token]!);
    model.reclaimed();
    model.driverAsleep = false;
    return token;
  }

  #pop(): number {
    const { model } = this;
    const chain = this.#chain;
    const expected = model.pending[0] ?? -1;
    const token = this.#sides.device.pop(chain) ? chain.token : -1;
    expectSame("fetch order", "pop()", token, expected);
    if (token < 0) return token;
    model.popped();
    model.deviceAsleep = false;
    const list = this.#lists[token]![model.kind[token]! - 1]!;
    if (chain.fault !== null) throw chain.fault;
    expectSame("bytes", "segments", chain.count, list.count);
    expectSame("bytes", "readable segments", chain.readable, list.readable);
    for (let i = 0; i < list.count; i++) {
      expectSame("bytes", "address", chain.offset[i], list.address[i]);
      expectSame("bytes", "length", chain.length[i], list.length[i]);
    }
    return token;
  }

  #push(place: number): string {
    const { model } = this;
    const token = model.fetched[place]!;
    this.#sides.device.push(token, model.written[token]!);
    model.pushed(token);
    return `of buffer ${token}`;
  }

  #unpop(): string {
    const { model } = this;
    const { device } = this.#sides;
    const token = model.fetched[model.fetched.length - 1]!;
    if (model.last < 0) {
      refuses("unpop()", TypeError, () => device.unpop(token));
      return `refused, of buffer ${token}`;
    }
    device.unpop(token);
    model.unpopped();
    return `of buffer ${token}`;
  }

  // Each of these must be refused and change nothing.
  #misuse(): string {
    const { model } = this;
    const { device } = this.#sides;
    const token = this.#member.bits % this.#setup.size;
    const inFlight = model.fetched.includes(token);
    // Above the room that each buffer has.
    const written = inFlight ? SEGMENT + 1 : 0;
    refuses("push()", RangeError, () => device.push(token, written));
    if (!inFlight || model.fetched.at(-1) !== token) {
      refuses("unpop()", TypeError, () => device.unpop(token));
    }
    return `with buffer ${token}`;
  }

  // A state's way to the next device: in the words that a transport has where those can tell it, else as a text.
  #carried(state: QueueState): QueueState {
    if (state.inFlight.length > 0) {
      return JSON.parse(JSON.stringify(state)) as QueueState;
    }
    const { format } = state;
    const ring = this.#ring;
    const base = ring.encodeVringBase(state);
    const told = state.format === "split"
      ? state.lastAvailIdx
      : state.usedWrapCounter << 31 | state.usedIdx << 16 |
        state.lastAvailWrapCounter << 15 | state.lastAvailIdx;
    expectIs("saved in words", "the vring base", base, told >>> 0);
    const once = ring.decodeVringBase(format, base, state.usedIdx);
    const words = ring.encodeQueueStateWords(once);
    return ring.decodeQueueStateWords(format, words, once.usedIdx);
  }

  #restore(prefer: "carry" | "rewind"): string {
    const { model } = this;
    const sides = this.#sides;
    const memory = this.#memory;
    const config = this.#config;
    const saved = this.#ring.saveQueue(sides.device, memory, config, prefer);
    const { way, state } = saved;
    const held = [...model.fetched, ...model.pending.slice(0, model.again)];
    const ids = state.inFlight.map(({ id }) => id);
    if (way === "carry") {
      expectSame("saved in order", "in flight", `${ids}`, `${held}`);
    } else {
      expectSame("saved in order", "in flight", ids.length, 0);
      expectSame(
        "saved in order",
        "drained",
        way === "drain",
        held.length === 0,
      );
    }
    const copy = this.#carried(state);
    if (sides.format === "split") {
      sides.device = new this.#ring.SplitDevice(memory, config, copy);
    } else sides.device = new this.#ring.PackedDevice(memory, config, copy);
    model.restored(way === "rewind");
    if (model.interruptsAtOnce) this.#take(NEEDS_INTERRUPT);
    return way;
  }

  #check(): void {
    const { model } = this;
    const { driver, device } = this.#sides;
    const { staged, pending, fetched, done, used } = model;
    model.checkAwake();
    if (model.free === this.#setup.size) this.#expectRest();
    expectIs(
      "in flight",
      "driver's count",
      driver.inFlight,
      staged.length + pending.length + fetched.length + done.length +
        used.length,
    );
    expectIs("in flight", "free descriptors", driver.free, model.free);
    expectIs("in flight", "device's count", device.inFlight, fetched.length);
  }

  #expectRest(): void {
    const { device } = this.#sides;
    const { state } = this.#ring.saveQueue(
      device,
      this.#memory,
      this.#config,
      "carry",
    );
    expectSame("quiescence", "in flight", state.inFlight.length, 0);
    expectSame(
      "quiescence",
      "used position",
      state.usedIdx,
      state.lastAvailIdx,
    );
    if (state.format === "packed") {
      expectSame(
        "quiescence",
        "used wrap",
        state.usedWrapCounter,
        state.lastAvailWrapCounter,
      );
    }
  }
}
