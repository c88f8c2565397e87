import { RingError } from "./errors.ts";

/** Version of the regions, both formats; 0 is one that was not set up. */
export const INFLIGHT_VERSION = 1;

/** Checks that `bytes` can be a region of `least` bytes. */
export function checkRegion(bytes: Uint8Array, least: number): void {
  if (bytes.length < least || bytes.byteOffset % 8 !== 0) {
    throw new RangeError(
      `Cannot open an in-flight region: ${bytes.length} bytes at offset ${bytes.byteOffset}, not ${least} at a multiple of 8`,
    );
  }
}

/** The error of a region that no back-end can have left. */
export function badRegion(rule: string): RingError {
  return new RingError(
    "BAD_QUEUE_STATE",
    "vhost-user, Inflight I/O tracking",
    `Cannot recover a queue: ${rule}`,
    true,
  );
}

/** Checks the part of the header that both formats have. */
export function checkHeader(
  version: number,
  descNum: number,
  size: number,
): void {
  if (version !== INFLIGHT_VERSION) {
    throw badRegion(
      `the region's version is ${version}, not ${INFLIGHT_VERSION}`,
    );
  }
  if (descNum !== size) {
    throw badRegion(`the region has ${descNum} entries, the queue ${size}`);
  }
}

/** Reads the 64-bit counter whose low word is at `at`. */
export function readCounter(words: Uint32Array, at: number): number {
  const high = words[at + 1]!;
  if (high >= 0x200000) throw badRegion("a counter is 2^53 or more");
  return high * 0x100000000 + words[at]!;
}

/** Reads a byte that is 0 or 1. */
export function checkFlag(value: number, name: string): boolean {
  if (value > 1) throw badRegion(`${name} is ${value}, not 0 or 1`);
  return value === 1;
}
