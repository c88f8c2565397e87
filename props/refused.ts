import { Violation } from "./violation.ts";

/** Calls what throws an error of `kind`. */
export function refused(
  kind: new (message: string) => Error,
  call: () => unknown,
): string {
  try {
    call();
  } catch (error) {
    if (error instanceof kind && error.message.startsWith("Cannot ")) {
      return error.message;
    }
    throw new Violation("misuse", `${error} where a ${kind.name} is due`);
  }
  throw new Violation("misuse", `no ${kind.name}`);
}
