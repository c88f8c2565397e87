/**
 * The part of `@std/assert` that the tests use, over `node:assert`, for machines that cannot reach JSR.
 *
 * @module
 */

import nodeAssert, { AssertionError } from "node:assert";

/** Anything that can stand on the right of `instanceof`. */
type Constructor<T> = abstract new (...args: never[]) => T;

type Bytes =
  | Uint8Array
  | Uint16Array
  | Uint32Array
  | Int8Array
  | Int16Array
  | Int32Array;

function fault(message: string, msg: string | undefined): AssertionError {
  return new AssertionError({
    message: msg === undefined ? message : `${message}: ${msg}`,
  });
}

function show(value: unknown): string {
  return Deno.inspect(value, {
    depth: 4,
    iterableLimit: 32,
    strAbbreviateSize: 200,
  });
}

function isIntegers(value: unknown): value is Bytes {
  return ArrayBuffer.isView(value) && (
    value instanceof Uint8Array || value instanceof Uint16Array ||
    value instanceof Uint32Array || value instanceof Int8Array ||
    value instanceof Int16Array || value instanceof Int32Array
  );
}

/** Index of the first difference, -1 if there is none. */
function firstDifference(actual: Bytes, expected: Bytes): number {
  const shorter = Math.min(actual.length, expected.length);
  for (let i = 0; i < shorter; i++) {
    if (actual[i] !== expected[i]) return i;
  }
  return actual.length === expected.length ? -1 : shorter;
}

/** Fails unless `expr` is truthy. */
export function assert(expr: unknown, msg: string = ""): asserts expr {
  if (!expr) throw new AssertionError({ message: msg });
}

/** Fails unless both are deeply and strictly equal; large typed arrays are compared without a diff of their contents. */
export function assertEquals<T>(actual: T, expected: T, msg?: string): void {
  if (
    isIntegers(actual) && isIntegers(expected) &&
    actual.constructor === expected.constructor
  ) {
    const at = firstDifference(actual, expected);
    if (at < 0) return;
    throw fault(
      `Values are not equal: index ${at} is ${actual[at]}, expected ${
        expected[at]
      } (lengths ${actual.length} and ${expected.length})`,
      msg,
    );
  }
  try {
    nodeAssert.deepStrictEqual(actual, expected);
  } catch (error) {
    if (!(error instanceof AssertionError)) throw error;
    throw fault(`Values are not equal: ${error.message}`, msg);
  }
}

/** Fails if both are deeply and strictly equal. */
export function assertNotEquals<T>(actual: T, expected: T, msg?: string): void {
  try {
    nodeAssert.deepStrictEqual(actual, expected);
  } catch (error) {
    if (error instanceof AssertionError) return;
    throw error;
  }
  throw fault(`Expected values to differ, both are ${show(actual)}`, msg);
}

/** Fails unless both are the same value (`Object.is`). */
export function assertStrictEquals<T>(
  actual: unknown,
  expected: T,
  msg?: string,
): asserts actual is T {
  if (!Object.is(actual, expected)) {
    throw fault(
      `Values are not strictly equal: ${show(actual)}, expected ${
        show(expected)
      }`,
      msg,
    );
  }
}

/** Fails if the value is null or undefined. */
export function assertExists<T>(
  actual: T,
  msg?: string,
): asserts actual is NonNullable<T> {
  if (actual === undefined || actual === null) {
    throw fault(`Expected a value, got ${actual}`, msg);
  }
}

/** Fails unless the value is an instance of the class. */
export function assertInstanceOf<T>(
  actual: unknown,
  expectedType: Constructor<T>,
  msg?: string,
): asserts actual is T {
  if (!(actual instanceof expectedType)) {
    throw fault(
      `Expected an instance of ${expectedType.name}, got ${show(actual)}`,
      msg,
    );
  }
}

/** Fails unless the text matches. */
export function assertMatch(
  actual: string,
  expected: RegExp,
  msg?: string,
): void {
  if (!expected.test(actual)) {
    throw fault(`Expected ${show(actual)} to match ${expected}`, msg);
  }
}

/** Fails unless the text contains the other. */
export function assertStringIncludes(
  actual: string,
  expected: string,
  msg?: string,
): void {
  if (!actual.includes(expected)) {
    throw fault(`Expected ${show(actual)} to contain ${show(expected)}`, msg);
  }
}

/** Fails unless `actual > expected`. */
export function assertGreater<T>(actual: T, expected: T, msg?: string): void {
  if (!(actual > expected)) {
    throw fault(`Expected ${show(actual)} > ${show(expected)}`, msg);
  }
}

/** Fails unless `actual >= expected`. */
export function assertGreaterOrEqual<T>(
  actual: T,
  expected: T,
  msg?: string,
): void {
  if (!(actual >= expected)) {
    throw fault(`Expected ${show(actual)} >= ${show(expected)}`, msg);
  }
}

/** Fails unless `actual < expected`. */
export function assertLess<T>(actual: T, expected: T, msg?: string): void {
  if (!(actual < expected)) {
    throw fault(`Expected ${show(actual)} < ${show(expected)}`, msg);
  }
}

/** Fails unless `actual <= expected`. */
export function assertLessOrEqual<T>(
  actual: T,
  expected: T,
  msg?: string,
): void {
  if (!(actual <= expected)) {
    throw fault(`Expected ${show(actual)} <= ${show(expected)}`, msg);
  }
}

/** Fails. */
export function fail(msg?: string): never {
  throw fault("Failed assertion", msg);
}

/** Fails because it was reached. */
export function unreachable(reason?: string): never {
  throw fault("Unreachable code was reached", reason);
}

/** Checks an error that was thrown against what the test expects of it. */
function checkError(
  error: unknown,
  errorClass: Constructor<Error> | undefined,
  msgIncludes: string | undefined,
  msg: string | undefined,
): void {
  if (errorClass === undefined) return;
  if (!(error instanceof errorClass)) {
    throw fault(
      `Expected an instance of ${errorClass.name}, got ${show(error)}`,
      msg,
    );
  }
  if (msgIncludes !== undefined && !error.message.includes(msgIncludes)) {
    throw fault(
      `Expected the error message to contain ${show(msgIncludes)}, got ${
        show(error.message)
      }`,
      msg,
    );
  }
}

/** Fails unless the function throws; returns what it threw. */
export function assertThrows(fn: () => unknown, msg?: string): unknown;
/** Fails unless the function throws an instance of the class whose message contains `msgIncludes`; returns it. */
export function assertThrows<E extends Error>(
  fn: () => unknown,
  errorClass: Constructor<E>,
  msgIncludes?: string,
  msg?: string,
): E;
export function assertThrows(
  fn: () => unknown,
  classOrMsg?: Constructor<Error> | string,
  msgIncludes?: string,
  msg?: string,
): unknown {
  const errorClass = typeof classOrMsg === "string" ? undefined : classOrMsg;
  const text = typeof classOrMsg === "string" ? classOrMsg : msg;
  let error: unknown;
  let threw = false;
  try {
    fn();
  } catch (caught) {
    threw = true;
    error = caught;
  }
  if (!threw) throw fault("Expected function to throw", text);
  checkError(error, errorClass, msgIncludes, text);
  return error;
}

/** Fails unless the function returns a promise that rejects; resolves to what it rejected with. */
export function assertRejects(
  fn: () => PromiseLike<unknown>,
  msg?: string,
): Promise<unknown>;
/** Fails unless the promise rejects with an instance of the class whose message contains `msgIncludes`; resolves to it. */
export function assertRejects<E extends Error>(
  fn: () => PromiseLike<unknown>,
  errorClass: Constructor<E>,
  msgIncludes?: string,
  msg?: string,
): Promise<E>;
export async function assertRejects(
  fn: () => PromiseLike<unknown>,
  classOrMsg?: Constructor<Error> | string,
  msgIncludes?: string,
  msg?: string,
): Promise<unknown> {
  const errorClass = typeof classOrMsg === "string" ? undefined : classOrMsg;
  const text = typeof classOrMsg === "string" ? classOrMsg : msg;
  let promise: PromiseLike<unknown>;
  try {
    promise = fn();
  } catch (caught) {
    throw fault(
      `Expected function to reject, but it threw ${show(caught)}`,
      text,
    );
  }
  if (typeof promise?.then !== "function") {
    throw fault(
      `Expected function to return a promise, got ${show(promise)}`,
      text,
    );
  }
  let error: unknown;
  let rejected = false;
  try {
    await promise;
  } catch (caught) {
    rejected = true;
    error = caught;
  }
  if (!rejected) throw fault("Expected function to reject", text);
  checkError(error, errorClass, msgIncludes, text);
  return error;
}
