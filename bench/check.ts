/** Throws unless `found` is `expected`: a benchmark that moved something else has measured nothing. */
export function check(what: string, found: unknown, expected: unknown): void {
  if (found !== expected) {
    throw new Error(`${what}: ${String(found)}, expected ${String(expected)}`);
  }
}
