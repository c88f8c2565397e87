/**
 * A process that runs one machine with its streams, as {@link MachineProcess} tells it by lines of JSON.
 *
 * @module
 */

// deno-lint-ignore-file no-console

import { TextLineStream } from "./_lines.ts";
import { bootedMachine } from "./booted.ts";
import type { MachineOptions } from "./machine.ts";
import type { Command } from "./migration.ts";
import { machineParts } from "./parts.ts";
import { Traveller } from "./traveller.ts";

let options: MachineOptions | null = null;
let traveller: Traveller | null = null;

async function prepared(ring: "split" | "packed"): Promise<MachineOptions> {
  options ??= { build: (await machineParts()).build };
  return { ...options, ring };
}

function running(): Traveller {
  if (traveller === null) throw new Error("Cannot go on: no machine runs");
  return traveller;
}

async function obey(command: Command): Promise<unknown> {
  switch (command.op) {
    case "prepare":
      await prepared("split");
      return {};
    case "start": {
      const { file } = await bootedMachine();
      traveller = await Traveller.start(await prepared(command.ring), file);
      if (command.flood !== null) await traveller.flood(command.flood);
      await traveller.open(command.streams, command.chunk);
      return traveller.positions;
    }
    case "restore": {
      const file = await Deno.readFile(command.path);
      traveller = await Traveller.restore(await prepared(command.ring), file);
      return {};
    }
    case "move":
      return await running().move(command.bytes);
    case "save": {
      const { file, report } = await running().save(command.wish);
      await Deno.writeFile(command.path, file);
      await running().close();
      traveller = null;
      return report;
    }
    case "end": {
      const report = await running().end();
      await running().close();
      traveller = null;
      return report;
    }
  }
}

async function main(): Promise<void> {
  const lines = Deno.stdin.readable
    .pipeThrough(new TextDecoderStream())
    .pipeThrough(new TextLineStream());
  for await (const line of lines) {
    let answer: unknown;
    try {
      answer = { result: await obey(JSON.parse(line) as Command) };
    } catch (error) {
      answer = { error: error instanceof Error ? error.message : `${error}` };
    }
    console.log(JSON.stringify(answer));
  }
}

if (import.meta.main) {
  await main();
  Deno.exit(0);
}
