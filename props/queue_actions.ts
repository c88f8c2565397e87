/**
 * What the two sides do with buffers, on the model and on what it judges at once.
 *
 * @module
 */

import type { Exposed, QueueModel } from "./queue_model.ts";
import type { QueueRig } from "./queue_rig.ts";
import type { QueueRun, RestoreWay } from "./queue_steps.ts";
import { expectSame, Violation } from "./violation.ts";

/** A model and what it judges, with the script so far in words. */
export type QueueWorld = {
  rig: QueueRig;
  run: QueueRun;
  lines: string[];
  /** The one invariant that is looked at closely; null for a glance at each. */
  focus: string | null;
  /** The device is replaced after each step. */
  always: RestoreWay | null;
  /** What the driver, and what the device, has seen of buffers, which have their numbers; null where nobody looks. */
  history: { driver: string[]; device: string[] } | null;
};

/** What an `add()` without effect comes to. */
export const NO_ROOM = "no room";

/** The driver adds a buffer of segments of these lengths. */
export function add(
  readable: readonly number[],
  writable: readonly number[],
  model: QueueModel,
  world: QueueWorld,
): string {
  const [token] = addAll(1, readable, writable, model, world);
  return token === undefined ? NO_ROOM : `buffer ${token}`;
}

/** The driver adds up to `count` buffers of segments of these lengths, at once where they are more than one; their tokens. */
export function addAll(
  count: number,
  readable: readonly number[],
  writable: readonly number[],
  model: QueueModel,
  { rig, run, history }: QueueWorld,
): number[] {
  const lengths = [...readable, ...writable];
  const slots = model.slotsFor(lengths.length);
  const writableBytes = writable.reduce((sum, length) => sum + length, 0);
  const buffers: Omit<Exposed, "token">[] = [];
  while (buffers.length < count) {
    const cells = rig.takeCells(lengths.length);
    if (cells === undefined) break;
    const segments = lengths.map((length, i) => ({
      address: cells[i]!,
      length,
      writable: i >= readable.length,
    }));
    buffers.push({
      generation: model.nextGeneration(),
      segments,
      slots,
      writableBytes,
      written: 0,
      touched: 0,
      overtaken: false,
    });
  }
  const tokens = buffers.length === 0 ? [] : rig.addAll(buffers);
  for (const [i, buffer] of buffers.entries()) {
    const token = tokens[i];
    if (token === undefined) {
      rig.returnCells(buffer.segments.map(({ address }) => address));
      if (slots <= model.free) {
        throw new Violation(
          "progress",
          `add() has no room for ${slots} of ${model.free} free descriptors`,
        );
      }
      history?.driver.push(NO_ROOM);
      continue;
    }
    if (slots > model.free) {
      throw new Violation(
        "exactly-once",
        `add() took ${slots} of ${model.free} free descriptors`,
      );
    }
    if (model.setup.format === "packed") {
      rig.spoilIds(model.published + model.places(model.staged), slots);
    }
    model.add({ token, ...buffer });
    history?.driver.push(`added ${buffer.generation}`);
    if (model.isIndirect(lengths.length)) run.indirect = true;
  }
  return tokens;
}

/** The device fetches up to `count` buffers. */
export function fetch(
  count: number,
  model: QueueModel,
  { rig, history }: QueueWorld,
): string {
  const tokens: number[] = [];
  while (tokens.length < count) {
    const token = rig.fetch();
    if (!fetched(token, model, rig, history)) break;
    tokens.push(token);
  }
  return names(tokens);
}

/** The device fetches up to `count` buffers, as many of them at once as it sees at once. */
export function fetchBatch(
  count: number,
  model: QueueModel,
  world: QueueWorld,
): string {
  const { rig, history } = world;
  model.batch = [];
  const { next } = model;
  const tokens = rig.fetchBatch(count);
  for (const token of tokens) {
    fetched(token, model, rig, history);
    model.batch.push(model.owners.get(token)!);
  }
  if (tokens.length === 0 && next !== undefined) {
    throw new Violation(
      "progress",
      `popBatch() gave nothing, expected buffer ${next.token}`,
    );
  }
  const rest = fetch(count - tokens.length, model, world);
  return `${names(tokens)}, then ${rest}`;
}

/** Compares a token that `pop()` gave, -1 where it gave none; whether it gave one. */
function fetched(
  token: number,
  model: QueueModel,
  rig: QueueRig,
  history: QueueWorld["history"],
): boolean {
  const expected = model.next;
  if (token !== (expected?.token ?? -1)) {
    throw new Violation(
      token < 0
        ? "progress"
        : model.isNext(token)
        ? "fetch-order"
        : "exactly-once",
      `pop() gave ${token < 0 ? "nothing" : `buffer ${token}`}, expected ${
        expected === undefined ? "nothing" : `buffer ${expected.token}`
      }`,
    );
  }
  if (expected === undefined) return false;
  model.fetch();
  rig.checkFetched(expected);
  const owner = model.owners.get(token)!.generation;
  history?.device.push(`fetched ${owner}: ${rig.seen(token)}`);
  return true;
}

/** The device gives up to `count` buffers back to the ring, the last fetched one first. */
export function unpop(
  count: number,
  model: QueueModel,
  { rig, history }: QueueWorld,
): string {
  const tokens: number[] = [];
  while (tokens.length < count) {
    const last = model.lastFetched;
    if (last === undefined) break;
    rig.unpop(last.token);
    model.unpop(rig.restored);
    history?.device.push(`gave back ${last.generation}`);
    tokens.push(last.token);
  }
  return names(tokens);
}

/** The device completes one of the fetched buffers. */
export function complete(
  index: number,
  written: number,
  model: QueueModel,
  { rig }: QueueWorld,
): number {
  const buffer = model.fetched[index]!;
  const bytes = bytesOf(buffer, written);
  rig.complete(buffer, bytes);
  model.complete(index, bytes);
  return buffer.token;
}

/** The device completes at once what it has fetched so. */
export function completeBatch(
  written: readonly number[],
  model: QueueModel,
  { rig }: QueueWorld,
): string {
  const { batch } = model;
  const bytes = batch.map((buffer, i) => bytesOf(buffer, written[i] ?? 1));
  rig.completeBatch(batch, bytes);
  for (const [i, buffer] of batch.entries()) {
    model.complete(model.fetched.indexOf(buffer), bytes[i]!);
  }
  model.batch = [];
  return names(batch.map(({ token }) => token));
}

/** 0 is nothing and 1 all; in between it depends on the number alone. */
function bytesOf({ writableBytes }: Exposed, written: number): number {
  return written === 0
    ? 0
    : writableBytes - (written - 1) % (writableBytes + 1);
}

/** The device publishes what it has completed. */
export function publishUsed(model: QueueModel, world: QueueWorld): void {
  const { rig } = world;
  const news = model.completed.length > 0;
  const said = rig.device.publish();
  model.publishUsed();
  world.history?.device.push(`published ${said}`);
  expectSame("progress", "device.publish()", said, news);
}

/** The driver takes up to `count` used buffers back. */
export function reclaim(
  count: number,
  model: QueueModel,
  world: QueueWorld,
): string {
  const { driver } = world.rig;
  const tokens: number[] = [];
  while (tokens.length < count) {
    const token = driver.reclaim();
    if (!reclaimed(token, driver.usedLength, model, world)) break;
    tokens.push(token);
  }
  return names(tokens);
}

/** The driver takes up to `count` used buffers back, as many of them at once as it sees at once. */
export function reclaimBatch(
  count: number,
  model: QueueModel,
  world: QueueWorld,
): string {
  const [next] = model.used;
  const found = world.rig.reclaimBatch(count);
  for (const [token, length] of found) reclaimed(token, length, model, world);
  if (found.length === 0 && next !== undefined) {
    throw new Violation(
      "progress",
      `reclaimBatch() gave nothing, expected buffer ${next.token}`,
    );
  }
  const rest = reclaim(count - found.length, model, world);
  return `${names(found.map(([token]) => token))}, then ${rest}`;
}

/** Compares what `reclaim()` gave, -1 where that was nothing; whether it gave a buffer. */
function reclaimed(
  token: number,
  length: number,
  model: QueueModel,
  { rig, run, history }: QueueWorld,
): boolean {
  const expected = model.used[0];
  if (token !== (expected?.token ?? -1)) {
    const early = model.used.some((buffer) => buffer.token === token);
    throw new Violation(
      early ? "use-order" : "exactly-once",
      `reclaim() gave ${token < 0 ? "nothing" : `buffer ${token}`}, expected ${
        expected === undefined ? "nothing" : `buffer ${expected.token}`
      }`,
    );
  }
  if (expected === undefined) return false;
  const what = `usedLength of buffer ${token}`;
  expectSame("used-length", what, length, expected.written);
  rig.checkReclaimed(expected);
  const owner = model.owners.get(token)!.generation;
  history?.driver.push(`got back ${owner}: ${length}`);
  if (model.setup.inOrder && model.oldest !== expected) {
    throw new Violation(
      "use-order",
      `buffer ${token} came back before buffer ${model.oldest?.token}, which was made available before it`,
    );
  }
  model.reclaim();
  run.buffers++;
  return true;
}

/** The device has to part with its buffers: they are given back where that is possible, and used where not. */
export function giveBack(model: QueueModel, world: QueueWorld): void {
  if (model.completed.length > 0) publishUsed(model, world);
  unpop(Infinity, model, world);
  if (model.fetched.length === 0 && model.canRewind) return;
  if (model.waiting.length > 0) fetch(model.waiting.length, model, world);
  while (model.fetched.length > 0) complete(0, 1, model, world);
  publishUsed(model, world);
}

/** Tokens in words. */
export function names(tokens: readonly number[]): string {
  if (tokens.length === 0) return "nothing";
  const shown = tokens.slice(0, 8).join(", ");
  const more = tokens.length > 8 ? `, ... (${tokens.length})` : "";
  return `buffer ${shown}${more}`;
}
