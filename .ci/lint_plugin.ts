/**
 * Lint rules of this project.
 *
 * `ringside/no-deno-in-core`: only `device/host/` names `Deno`, so that everything else that `mod.ts` exports also runs in a browser.
 *
 * @module
 */

/** Paths relative to the root of the repository. */
const CORE: RegExp = /^(ring|device)\/.*\.ts$|^mod\.ts$/;
const EXEMPT: RegExp = /^device\/host\/|_test\.ts$/;

const root: string = new URL("../", import.meta.url).pathname;

/** Whether a file must do without `Deno`. */
function isCore(filename: string): boolean {
  const name = filename.startsWith("file://")
    ? new URL(filename).pathname
    : filename;
  if (!name.startsWith(root)) return false;
  const path = name.slice(root.length);
  return CORE.test(path) && !EXEMPT.test(path);
}

const plugin: Deno.lint.Plugin = {
  name: "ringside",
  rules: {
    "no-deno-in-core": {
      create(context: Deno.lint.RuleContext): Deno.lint.LintVisitor {
        if (!isCore(context.filename)) return {};
        return {
          Identifier(node: Deno.lint.Identifier): void {
            if (node.name !== "Deno") return;
            context.report({
              node,
              message: "Only device/host/ names Deno",
              hint: "Take what is needed as a parameter or an interface",
            });
          },
        };
      },
    },
  },
};

export default plugin;
