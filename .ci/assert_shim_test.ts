import * as a from "./assert_shim.ts";

function fails(name: string, fn: () => void): void {
  let message: string | undefined;
  try {
    fn();
  } catch (error) {
    message = (error as Error).name;
  }
  if (message !== "AssertionError") {
    throw new Error(`${name}: expected an AssertionError, got ${message}`);
  }
}

Deno.test("assert_shim: equal values pass, different ones fail", () => {
  a.assertEquals({ x: [1, { y: new Map([[1, new Set([2])]]) }] }, {
    x: [1, { y: new Map([[1, new Set([2])]]) }],
  });
  a.assertEquals(NaN, NaN);
  a.assertEquals(new Uint8Array([1, 2]), new Uint8Array([1, 2]));
  a.assertEquals([new Uint16Array([1])], [new Uint16Array([1])]);
  fails("number and string", () => a.assertEquals<unknown>(1, "1"));
  fails("set", () => a.assertEquals(new Set([1]), new Set([2])));
  fails("map", () => a.assertEquals(new Map([[1, 1]]), new Map([[1, 2]])));
  fails("bytes", () => a.assertEquals(new Uint8Array(2), new Uint8Array(3)));
  fails(
    "byte",
    () => a.assertEquals(new Uint8Array([1, 2]), new Uint8Array([1, 3])),
  );
  fails(
    "array type",
    () => a.assertEquals<unknown>(new Uint8Array(2), new Int8Array(2)),
  );
  fails(
    "nested bytes",
    () => a.assertEquals([new Uint8Array([1])], [new Uint8Array([2])]),
  );
  fails("missing key", () => a.assertEquals<unknown>({ a: undefined }, {}));
  a.assertNotEquals([1], [2]);
  fails("same", () => a.assertNotEquals([1], [1]));
});

Deno.test("assert_shim: identity, existence, class, text and order", () => {
  const object = {};
  a.assert(1);
  fails("assert", () => a.assert(0));
  a.assertStrictEquals(object, object);
  fails("strict", () => a.assertStrictEquals({}, object));
  a.assertExists(0);
  fails("exists", () => a.assertExists(null));
  a.assertInstanceOf(new RangeError(), Error);
  fails("instance", () => a.assertInstanceOf(new Error(), RangeError));
  a.assertMatch("abc", /b/);
  fails("match", () => a.assertMatch("abc", /d/));
  a.assertStringIncludes("abc", "bc");
  fails("includes", () => a.assertStringIncludes("abc", "cb"));
  a.assertGreater(2, 1);
  fails("greater", () => a.assertGreater(1, 1));
  a.assertGreaterOrEqual(1, 1);
  fails("greater or equal", () => a.assertGreaterOrEqual(0, 1));
  a.assertLess(1, 2);
  fails("less", () => a.assertLess(1, 1));
  a.assertLessOrEqual(1, 1);
  fails("less or equal", () => a.assertLessOrEqual(2, 1));
  fails("fail", () => a.fail("x"));
  fails("unreachable", () => a.unreachable());
});

Deno.test("assert_shim: assertThrows() returns the error and checks class and message", () => {
  const boom = (): never => {
    throw new RangeError("out of range");
  };
  const error: RangeError = a.assertThrows(boom, RangeError, "of range");
  a.assertStringIncludes(error.message, "out of range");
  a.assertInstanceOf(a.assertThrows(boom), RangeError);
  fails("quiet", () => a.assertThrows(() => 1));
  fails("class", () => a.assertThrows(boom, TypeError));
  fails("message", () => a.assertThrows(boom, RangeError, "nothing"));
});

Deno.test("assert_shim: assertRejects() returns the error and checks class and message", async () => {
  const boom = () => Promise.reject(new RangeError("out of range"));
  const error: RangeError = await a.assertRejects(boom, RangeError, "of range");
  a.assertStringIncludes(error.message, "out of range");
  await a.assertRejects(
    () => a.assertRejects(() => Promise.resolve()),
    Error,
    "Expected function to reject",
  );
  await a.assertRejects(
    () => a.assertRejects(boom, TypeError),
    Error,
    "TypeError",
  );
  await a.assertRejects(
    () =>
      a.assertRejects(() => {
        throw new Error("sync");
      }),
    Error,
    "threw",
  );
});
