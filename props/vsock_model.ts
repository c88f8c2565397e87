/**
 * What the streams of a socket device promise, as bookkeeping of its own: it imports nothing of what it
 * judges and sees no packet.
 *
 * @module
 */

import { Violation } from "./violation.ts";

/** Byte `at` of what is sent in one direction of a stream. */
function byteOf(seed: number, at: number): number {
  return (seed * 101 + at * 7 + (at >>> 8) * 13 + 1) & 0xff;
}

/** One direction of a stream: bytes come out as they went in, up to where it was cut. */
export class DirectionModel {
  /** Bytes that the sender handed over. */
  sent = 0;
  /** Bytes that the receiver got. */
  received = 0;
  /** Why what was handed over need not arrive; empty where it has to. */
  lossy = "";
  /** The sender has ended it. */
  ended = false;
  readonly #name: string;
  readonly #seed: number;

  /** @param name In messages. @param seed Tells its bytes from those of others. */
  constructor(name: string, seed: number) {
    this.#name = name;
    this.#seed = seed;
  }

  /** The next `count` bytes to hand over. */
  offer(count: number): Uint8Array {
    return Uint8Array.from(
      { length: count },
      (_, i) => byteOf(this.#seed, this.sent + i),
    );
  }

  /** Judges what the receiver got. */
  take(bytes: Uint8Array): void {
    for (const byte of bytes) {
      if (this.received === this.sent) {
        throw new Violation(
          "bytes-in-order",
          `${this.#name} brings more than the ${this.sent} bytes that were sent`,
        );
      }
      if (byte !== byteOf(this.#seed, this.received)) {
        throw new Violation(
          "bytes-in-order",
          `${this.#name}: byte ${this.received} is ${byte}, expected ${
            byteOf(this.#seed, this.received)
          }`,
        );
      }
      this.received++;
    }
  }

  /** Judges an end of file. */
  takeEnd(): void {
    if (this.lossy !== "") return;
    if (!this.ended || this.received < this.sent) {
      throw new Violation(
        "bytes-in-order",
        `${this.#name} ends after ${this.received} of ${this.sent} bytes, and its sender has ${
          this.ended ? "" : "not "
        }ended it`,
      );
    }
  }

  /** What was handed over may be lost from now on; the first reason is kept. */
  cut(reason: string): void {
    this.lossy ||= reason;
  }

  /** True when nothing is on its way any more, or need not be. */
  get done(): boolean {
    return this.lossy !== "" || this.received === this.sent;
  }

  /** Where it stands, in words. */
  toString(): string {
    return `${this.#name}: ${this.received} of ${this.sent} bytes`;
  }
}

/** A stream between a guest's program and a host's. */
export class StreamModel {
  /** Guest to host. */
  readonly up: DirectionModel;
  /** Host to guest. */
  readonly down: DirectionModel;
  /** The guest has closed or aborted it. */
  guestDone = false;
  /** The host's program has closed it. */
  hostDone = false;

  /** @param id Tells it from others. */
  constructor(id: number) {
    this.up = new DirectionModel(`stream ${id} to the host`, 2 * id);
    this.down = new DirectionModel(`stream ${id} to the guest`, 2 * id + 1);
  }

  /** The guest says that it sends no more, receives no more, or both. */
  guestShutdown(send: boolean, receive: boolean): void {
    if (send) this.up.ended = true;
    if (receive) this.down.cut("the guest receives no more");
    // With both it is as good as closed, for the device.
    if (this.up.ended && this.down.lossy !== "") this.guestDone = true;
  }

  /** The guest closes it: what it sent still arrives. */
  guestClose(): void {
    this.guestShutdown(true, true);
  }

  /** The host's program sends no more. */
  hostCloseWrite(): void {
    this.down.ended = true;
  }

  /** The host's program closes it: what it sent still arrives. */
  hostClose(): void {
    this.down.ended = true;
    this.hostDone = true;
    this.up.cut("the host's program has closed");
  }

  /** It was cut at once: nothing need arrive. */
  abort(reason: string): void {
    this.up.cut(reason);
    this.down.cut(reason);
    this.guestDone = true;
  }
}
