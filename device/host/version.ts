/** Version of this package, as in deno.json; a constant, so that no file is read to tell it. */
export const VERSION = "0.1.0";
