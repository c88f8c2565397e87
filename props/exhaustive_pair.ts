import type { Chain } from "../ring/chain.ts";
import type { GuestMemory } from "../ring/memory.ts";
import type {
  BufferList,
  DeviceQueue,
  DriverQueue,
  QueueConfig,
  QueueState,
} from "../ring/queue.ts";
import {
  ADD,
  ADD_TWO,
  ARM_INTERRUPTS,
  ARM_KICKS,
  CARRY,
  Cursor,
  DISARM_INTERRUPTS,
  DISARM_KICKS,
  NEEDS_INTERRUPT,
  NEEDS_KICK,
  POP,
  PUBLISH,
  PUBLISH_USED,
  PUSH,
  RECLAIM,
  REWIND,
  WalkModel,
  type WalkSetup,
  writtenBytes,
} from "./exhaustive_model.ts";
import {
  checkFields,
  type OpenRing,
  type PackedDeviceFields,
  type PackedDriverFields,
  type SplitDeviceFields,
  type SplitDriverFields,
} from "./exhaustive_open.ts";
import { PackedForm } from "./exhaustive_packed.ts";
import { SplitForm } from "./exhaustive_split.ts";
import { expectSame, Violation } from "./violation.ts";

const RING = 0x1000;
const DRIVER_AREA = 0x2000;
const DEVICE_AREA = 0x3000;
/** Data of token 0; addresses fit 16 bits, so that a form is one of 16-bit words. */
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
  readonly #scratch: number[] = [];
  readonly #cursor: Cursor = new Cursor();

  /** Sets a pair up in its first state. */
  constructor(ring: OpenRing, setup: WalkSetup) {
    const { format, size, eventIdx, start } = setup;
    this.#setup = setup;
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
    };
    const memory = this.#memory;
    const config = this.#config;
    if (format === "split") {
      const base = start === "wrap" ? 0x10000 - size : 0;
      this.#sides = {
        format,
        form: new SplitForm(memory, config, base),
        driver: new ring.SplitDriver(memory, config),
        device: new ring.SplitDevice(memory, config),
      };
      checkFields("SplitDriver", this.#sides.driver);
      checkFields("SplitDevice", this.#sides.device);
    } else {
      this.#sides = {
        format,
        form: new PackedForm(memory, config),
        driver: new ring.PackedDriver(memory, config),
        device: new ring.PackedDevice(memory, config),
      };
      checkFields("PackedDriver", this.#sides.driver);
      checkFields("PackedDevice", this.#sides.device);
    }
    this.#chain = new ring.Chain(memory);
    for (let token = 0; token < size; token++) {
      const at = DATA + token * CELL;
      this.#lists.push([
        new ring.BufferList(1).addWritable(at, SEGMENT),
        new ring.BufferList(2).addReadable(at, SEGMENT)
          .addWritable(at + CELL / 2, SEGMENT),
      ]);
    }
    if (format === "packed" && start === "wrap") {
      const steps = [ADD, PUBLISH, NEEDS_KICK, POP, PUSH, PUBLISH_USED];
      for (let i = 0; i < size - 1; i++) {
        for (const step of steps) this.take(step);
        this.take(NEEDS_INTERRUPT);
        this.take(RECLAIM);
      }
    }
  }

  /** The canonical form of the state, as 16-bit words in an array that the next call fills again. */
  save(): readonly number[] {
    const out = this.#scratch;
    out.length = 0;
    this.model.save(out);
    const sides = this.#sides;
    if (sides.format === "split") {
      sides.form.save(out, this.model, sides.driver, sides.device);
    } else sides.form.save(out, this.model, sides.driver, sides.device);
    return out;
  }

  /** Makes a state of its canonical form. */
  load(form: Uint16Array): void {
    const from = this.#cursor.begin(form);
    this.model.load(from);
    const sides = this.#sides;
    if (sides.format === "split") {
      sides.form.load(from, this.model, sides.driver, sides.device);
    } else sides.form.load(from, this.model, sides.driver, sides.device);
  }

  /**
   * Takes a step, judges it, and checks the state that it leads to; returns what came of it, for a script.
   *
   * @throws {Violation} where an invariant does not hold.
   */
  take(step: number): string | number | boolean {
    let came: string | number | boolean;
    try {
      came = this.#take(step);
    } catch (error) {
      if (error instanceof Violation || !(error instanceof Error)) throw error;
      throw new Violation("nobody breaks a rule", `${error}`);
    }
    this.#check();
    return came;
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
        model.unkicked = 0;
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
        model.untold = 0;
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
    if (list.count === 2) {
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
    expectSame(
      "used length",
      `that of ${token}`,
      driver.usedLength,
      writtenBytes(token, model.kind[token]!),
    );
    model.used.shift();
    model.kind[token] = 0;
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
    model.pending.shift();
    if (model.again > 0) model.again--;
    model.fetched.push(token);
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

  #push(token: number): string {
    const { model } = this;
    const written = writtenBytes(token, model.kind[token]!);
    this.#sides.device.push(token, written);
    model.fetched.splice(model.fetched.indexOf(token), 1);
    model.done.push(token);
    return "";
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
    const copy = JSON.parse(JSON.stringify(state)) as QueueState;
    if (sides.format === "split") {
      sides.device = new this.#ring.SplitDevice(memory, config, copy);
    } else sides.device = new this.#ring.PackedDevice(memory, config, copy);
    model.restored();
    // What was rewound comes from the ring, and is no debt of a state any more.
    if (way !== "carry") model.again = 0;
    if (model.interruptsAtOnce) this.#take(NEEDS_INTERRUPT);
    return way;
  }

  #check(): void {
    const { model } = this;
    const sides = this.#sides;
    const { driver, device } = sides;
    const { staged, pending, fetched, done, used } = model;
    model.checkAwake();
    if (model.free === this.#setup.size) this.#expectRest();
    expectSame(
      "in flight",
      "driver's count",
      driver.inFlight,
      staged.length + pending.length + fetched.length + done.length +
        used.length,
    );
    expectSame("in flight", "free descriptors", driver.free, model.free);
    expectSame(
      "in flight",
      "device's count",
      device.inFlight,
      fetched.length,
    );
    if (sides.format === "split") {
      sides.form.check(model, sides.driver, sides.device);
    } else sides.form.check(model, sides.driver, sides.device);
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
