/**
 * Hostile guests and front-ends against a whole device, as properties that a campaign can run.
 *
 * @module
 */

import fc from "fast-check";
import { restless, sendSpoiled, unlawful } from "./hostile_front_end.ts";
import { sendHostile, spoilRings } from "./hostile_moves.ts";
import {
  HostileFinding,
  type HostileOptions,
  HostileRig,
} from "./hostile_rig.ts";
import type { NamedProperty } from "./queue_properties.ts";
import type { QueueRun } from "./queue_steps.ts";
import { randomBelow } from "./race.ts";
import { newRun, scriptProperty, type ScriptWorld } from "./script_property.ts";

/** One step of a script; `seed` chooses what it does in particular. */
type HostileStep =
  /** Packets and descriptors that no driver should send. */
  | { do: "packets"; seed: number; count: number }
  /** Any words in any area of any ring. */
  | { do: "spoil"; seed: number; count: number }
  /** The guest takes what comes, or does not. */
  | { do: "block"; blocked: boolean }
  | { do: "exchange"; bytes: number }
  | { do: "kick"; queue: number }
  | { do: "run" }
  /** The device's owner says that all connections are lost. */
  | { do: "transportReset" }
  /** The device is reset, and the next driver finds it clean. */
  | { do: "restart" }
  /** A front-end's requests: lawful, at a bad time, or spoiled. */
  | { do: "restless" | "unlawful" | "message"; seed: number };

class HostileWorld implements ScriptWorld<HostileStep> {
  readonly run: QueueRun = newRun("wrapped", "full", "indirect");
  readonly #rig: HostileRig;
  #over = false;
  #blocked = false;

  constructor(options: HostileOptions) {
    this.#rig = new HostileRig(options);
  }

  possible(_step: HostileStep): boolean {
    return true;
  }

  take(step: HostileStep): string {
    const outcome = this.#perform(step);
    if (!this.#over) {
      // Once a front-end has moved the regions, what may be written cannot be told by address.
      this.#rig.checkedStep();
      this.#checkAnswers();
    }
    this.#rig.checkBounds();
    return outcome;
  }

  #perform(step: HostileStep): string {
    const rig = this.#rig;
    if (this.#over && step.do !== "restart") return "over";
    const pick = randomBelow("seed" in step ? step.seed : 0);
    switch (step.do) {
      case "packets":
        // The driver notices a broken ring, too, and does then no more.
        if (rig.driverProblem !== null) return "the driver has stopped";
        sendHostile(rig, pick, step.count);
        this.run.indirect = true;
        return "";
      case "spoil":
        spoilRings(rig, pick, step.count);
        return "";
      case "block":
        this.#blocked = rig.driver.rxBlocked = step.blocked;
        return "";
      case "exchange":
        if (rig.spoiled || this.#blocked) return "";
        rig.exchange(step.bytes);
        this.run.buffers += step.bytes;
        return "";
      case "kick":
        rig.virtio.kick(step.queue);
        return "";
      case "run":
        return "";
      case "transportReset":
        rig.spoiled = true;
        rig.vsock.transportReset();
        return "";
      case "restart":
        this.#restart();
        return "";
      case "restless":
        if (rig.spoiled) return "";
        restless(rig, pick);
        return "";
      case "unlawful":
        unlawful(rig, pick);
        return "";
      case "message":
        this.#over = !sendSpoiled(rig, pick);
        return this.#over ? "ends the session" : "";
    }
  }

  settle(): void {
    const rig = this.#rig;
    if (rig.spoiled || this.#over) this.#restart();
    this.#blocked = rig.driver.rxBlocked = false;
    rig.exchange(600);
    rig.checkBounds();
    rig.close();
  }

  #restart(): void {
    const rig = this.#rig;
    rig.restart();
    this.#over = this.#blocked = false;
  }

  /** The device works or asks for a reset, unless its front-end has stopped it. */
  #checkAnswers(): void {
    const { run } = this;
    const { driver, answers, startedQueues } = this.#rig;
    const { size } = this.#rig.configs[0]!;
    if (driver.usedPackets > size) run.wrapped = true;
    if (driver.unusedPackets >= size || driver.pendingPackets > 0) {
      run.full = true;
    }
    if (!answers && startedQueues) {
      throw new HostileFinding(
        "healthy-or-reset",
        "the device neither works nor asks for a reset",
      );
    }
  }
}

const formats = fc.constantFrom("split" as const, "packed" as const);

function setups(
  transport: "direct" | "vhost-user",
): fc.Arbitrary<HostileOptions> {
  return fc.record({
    ring: formats,
    eventIdx: fc.boolean(),
    strongOrdering: fc.boolean(),
    transport: fc.constant(transport),
    shared: fc.constant(false),
  });
}

const seed = fc.nat(0x7fff_ffff);
const count = fc.integer({ min: 1, max: 12 });
const packets = fc.record({
  do: fc.constant("packets" as const),
  seed,
  count,
});
const spoil = fc.record({
  do: fc.constant("spoil" as const),
  seed,
  count: fc.integer({ min: 1, max: 6 }),
});
const kick = fc.record({
  do: fc.constant("kick" as const),
  queue: fc.nat(2),
});
const exchange = fc.record({
  do: fc.constant("exchange" as const),
  bytes: fc.constantFrom(1, 100, 600, 3000),
});
const run = fc.constant({ do: "run" as const });
const restart = fc.constant({ do: "restart" as const });
const block = fc.record({
  do: fc.constant("block" as const),
  blocked: fc.boolean(),
});

function requests(
  kind: "restless" | "unlawful" | "message",
): fc.Arbitrary<HostileStep> {
  return fc.record({ do: fc.constant(kind), seed });
}

function hostile(
  name: string,
  transport: "direct" | "vhost-user",
  steps: readonly fc.Arbitrary<HostileStep>[],
): NamedProperty {
  return scriptProperty<HostileOptions, HostileStep>({
    name: `hostile/${name}`,
    setups: setups(transport),
    steps,
    maxSteps: 25,
    make: (options) => new HostileWorld(options),
  });
}

/** A healthy connection goes on, or the device asks for a reset, whatever a guest or its front-end does. */
export const HOSTILE_PROPERTIES: readonly NamedProperty[] = [
  hostile("packets", "direct", [packets, packets, packets, exchange, block]),
  hostile("rings", "direct", [
    packets,
    spoil,
    spoil,
    kick,
    run,
    fc.constant({ do: "transportReset" as const }),
    restart,
  ]),
  hostile("front-end", "vhost-user", [
    packets,
    exchange,
    requests("restless"),
    requests("restless"),
  ]),
  hostile("requests", "vhost-user", [
    packets,
    spoil,
    kick,
    requests("unlawful"),
    requests("unlawful"),
    restart,
  ]),
  hostile("messages", "vhost-user", [
    packets,
    kick,
    requests("message"),
    requests("message"),
    requests("message"),
    restart,
  ]),
];
