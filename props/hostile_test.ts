import { assert } from "@std/assert";
import { restless, unlawful } from "./hostile_front_end.ts";
import { HOSTILE_AREA, HOSTILE_AREA_BYTES } from "./hostile_memory.ts";
import { type Pick, sendHostile, spoilRings } from "./hostile_moves.ts";
import { type HostileOptions, HostileRig } from "./hostile_rig.ts";
import type { Scribbling } from "./hostile_worker.ts";
import { randomBelow } from "./race.ts";
import { withScribbler } from "./scribbler.ts";

const REPLAY = Deno.env.get("RINGSIDE_HOSTILE_SEED");
const LIVES = REPLAY === undefined
  ? Number(Deno.env.get("RINGSIDE_HOSTILE_LIVES") ?? 60)
  : 1;
const FIRST_SEED = REPLAY === undefined
  ? crypto.getRandomValues(new Uint32Array(1))[0]!
  : Number(REPLAY);

// deno-lint-ignore no-console
console.log(`hostile guests: ${LIVES} lives from seed ${FIRST_SEED} on`);

function optionsOf(
  pick: Pick,
  changes: Partial<HostileOptions>,
): HostileOptions {
  return {
    ring: pick(2) === 0 ? "split" : "packed",
    eventIdx: pick(3) !== 0,
    strongOrdering: pick(2) === 0,
    transport: "direct",
    shared: false,
    ...changes,
  };
}

/** Runs `live` for each seed, and names the seed where it fails. */
async function campaign(
  lives: number,
  changes: Partial<HostileOptions>,
  live: (rig: HostileRig, pick: Pick, seed: number) => void | Promise<void>,
): Promise<Map<string, number>> {
  const faults = new Map<string, number>();
  for (let i = 0; i < lives; i++) {
    const seed = (FIRST_SEED + i) >>> 0;
    const pick = randomBelow(seed);
    const options = optionsOf(pick, changes);
    try {
      const rig = new HostileRig(options);
      await live(rig, pick, seed);
      rig.close();
      for (const [kind, count] of rig.vsock.diagnostics.counters) {
        faults.set(kind, (faults.get(kind) ?? 0) + count);
      }
    } catch (error) {
      throw new Error(
        `seed ${seed}, to be run again by RINGSIDE_HOSTILE_SEED=${seed}: ${
          JSON.stringify(options)
        }: ${error instanceof Error ? error.message : error}`,
        { cause: error },
      );
    }
  }
  return faults;
}

function checkFaults(faults: Map<string, number>, atLeast: number): void {
  if (REPLAY !== undefined) return;
  // The campaign reaches what it is there for.
  const kinds = [...faults.keys()].join(", ");
  assert(faults.size >= atLeast, `${faults.size} kinds of faults: ${kinds}`);
}

Deno.test("VsockDevice bears hostile packets and descriptors beside a healthy connection", async () => {
  const faults = await campaign(LIVES, {}, (rig, pick) => {
    for (let round = 0; round < 8; round++) {
      sendHostile(rig, pick, 1 + pick(12));
      rig.checkedStep();
      rig.exchange(600);
    }
    rig.checkBounds();
  });
  checkFaults(faults, 15);
});

Deno.test("VsockDevice asks for a reset or goes on where rings are spoiled, and works after the reset", async () => {
  let needed = 0;
  const faults = await campaign(LIVES, {}, (rig, pick) => {
    for (let round = 0; round < 3; round++) {
      for (let step = 0; step < 6; step++) {
        sendHostileOrNothing(rig, pick);
        spoilRings(rig, pick, 1 + pick(6));
        rig.virtio.kick(pick(3));
        rig.checkedStep();
        assert(rig.answers, "the device neither works nor asks for a reset");
      }
      if (!rig.vsock.ready) needed++;
      rig.checkBounds();
      rig.restart();
      rig.exchange(600);
    }
  });
  checkFaults(faults, 8);
  assert(needed > 0 || REPLAY !== undefined, "no ring was ever broken");
});

Deno.test("VsockDevice holds a bounded number of answers for a guest that takes none", async () => {
  await campaign(Math.ceil(LIVES / 6), {}, (rig, pick) => {
    rig.driver.rxBlocked = true;
    for (let round = 0; round < 80; round++) {
      sendHostile(rig, pick, 12);
      rig.step();
      rig.checkBounds();
    }
    rig.driver.rxBlocked = false;
    rig.exchange(600);
  });
});

/** The driver notices a broken ring, too, and does then no more. */
function sendHostileOrNothing(rig: HostileRig, pick: Pick): void {
  if (rig.driverProblem !== null) return;
  sendHostile(rig, pick, 1 + pick(4));
}

Deno.test("VhostUserSession keeps a healthy connection while rings stop and start beside hostile packets", async () => {
  const lives = Math.ceil(LIVES / 2);
  const faults = await campaign(
    lives,
    { transport: "vhost-user" },
    (rig, pick) => {
      for (let round = 0; round < 6; round++) {
        sendHostile(rig, pick, 1 + pick(8));
        restless(rig, pick);
        rig.checkedStep();
        rig.exchange(400);
      }
      rig.checkBounds();
    },
  );
  checkFaults(faults, 10);
});

Deno.test("VhostUserSession bears spoiled rings between requests, and the next session works", async () => {
  const lives = Math.ceil(LIVES / 2);
  const faults = await campaign(
    lives,
    { transport: "vhost-user" },
    (rig, pick) => {
      for (let round = 0; round < 3; round++) {
        for (let step = 0; step < 6; step++) {
          sendHostileOrNothing(rig, pick);
          if (pick(2) === 0) spoilRings(rig, pick, 1 + pick(6));
          unlawful(rig, pick);
          rig.checkedStep();
        }
        rig.checkBounds();
        rig.restart();
        rig.exchange(400);
      }
    },
  );
  checkFaults(faults, 8);
});

Deno.test("VsockDevice bears packets and indirect tables that change under its hands", async () => {
  await withScribbler(async (scribbler) => {
    const lives = Math.ceil(LIVES / 6);
    await campaign(lives, { shared: true }, async (rig, pick, seed) => {
      const at = rig.memory.offset(HOSTILE_AREA);
      await scribbler.start(rig.memory.buffers[0]!, seed, [[
        at,
        HOSTILE_AREA_BYTES,
      ]]);
      for (let round = 0; round < 20; round++) {
        sendHostile(rig, pick, 1 + pick(12));
        rig.step();
        rig.exchange(100);
      }
      rig.checkBounds();
      await scribbler.stop();
    });
  });
});

Deno.test("VsockDevice bears rings that change under its hands, and works after the reset", async () => {
  await withScribbler(async (scribbler) => {
    const lives = Math.ceil(LIVES / 6);
    await campaign(lives, { shared: true }, async (rig, pick, seed) => {
      for (let round = 0; round < 6; round++) {
        const ranges: Scribbling["ranges"] = [];
        for (const config of rig.configs) {
          const packed = rig.virtio.ringFormat === "packed";
          const { driverArea, deviceArea, descriptorArea, size } = config;
          const areas: Scribbling["ranges"] = [
            [rig.memory.offset(descriptorArea), size * 16],
            [rig.memory.offset(driverArea), packed ? 4 : 6 + 2 * size],
            [rig.memory.offset(deviceArea), packed ? 4 : 6 + 8 * size],
          ];
          // All of them, or one alone, which leaves the rest intact for longer.
          if (round % 2 === 0) ranges.push(...areas);
          else ranges.push(areas[pick(3)]!);
        }
        rig.spoiled = true;
        await scribbler.start(rig.memory.buffers[0]!, seed + round, ranges);
        for (let step = 0; step < 40; step++) {
          sendHostileOrNothing(rig, pick);
          for (const index of [0, 1, 2]) rig.virtio.kick(index);
          rig.step();
          assert(rig.answers, "the device neither works nor asks for a reset");
        }
        await scribbler.stop();
        rig.checkBounds();
        rig.restart();
        rig.exchange(300);
      }
    });
  });
});

Deno.test("VsockDevice keeps no memory of a hostile guest's lives", async () => {
  if (REPLAY !== undefined) return;
  const rig = new HostileRig(optionsOf(randomBelow(1), { ring: "split" }));
  const pick = randomBelow(FIRST_SEED);
  const live = () => {
    for (let round = 0; round < 150; round++) {
      sendHostile(rig, pick, 1 + pick(12));
      rig.step();
      if (round % 5 === 4) {
        spoilRings(rig, pick, 1);
        rig.step();
        rig.restart();
      }
    }
  };
  // Programs whose stream was ended are let go in microtasks.
  const settle = () => new Promise((resolve) => setTimeout(resolve, 0));
  live();
  await settle();
  const before = Deno.memoryUsage().heapUsed;
  for (let i = 0; i < 4; i++) live();
  await settle();
  const grown = Deno.memoryUsage().heapUsed - before;
  // Garbage is not collected yet; what is kept by each packet would be far more.
  assert(grown < 96 * 1024 * 1024, `the heap grew by ${grown} bytes`);
  rig.close();
});
