/**
 * An invariant that did not hold.
 *
 * `invariant` names it in a few words, `message` says what was seen.
 */
export class Violation extends Error {
  /** Name of the invariant. */
  readonly invariant: string;

  /** @param invariant Its name. @param message What was seen instead. @param cause The fault that told it. */
  constructor(invariant: string, message: string, cause?: Error) {
    super(`${invariant}: ${message}`, { cause });
    this.name = "Violation";
    this.invariant = invariant;
  }
}

/** Throws a {@link Violation} of `invariant` unless `found` is `expected`. */
export function expectSame(
  invariant: string,
  what: string,
  found: unknown,
  expected: unknown,
): void {
  if (found !== expected) {
    throw new Violation(
      invariant,
      `${what} is ${show(found)}, expected ${show(expected)}`,
    );
  }
}

/** The same for numbers, without a cost where they are equal. */
export function expectIs(
  invariant: string,
  what: string,
  found: number,
  expected: number,
): void {
  if (found !== expected) {
    throw new Violation(invariant, `${what} is ${found}, expected ${expected}`);
  }
}

function show(value: unknown): string {
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
