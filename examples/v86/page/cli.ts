/**
 * Builds the page with a Linux in it and serves it on loopback, or writes its files to a folder: `deno task page`.
 *
 * @module
 */

// deno-lint-ignore-file no-console

import { buildSite, serveSite } from "./site.ts";

const HELP = `\
Serves a page on loopback in which a real Linux talks to the page by vsock.

Usage: deno task page [--port PORT]
       deno task page --out FOLDER

  --port PORT   where to serve it; 8086 unless told, 0 takes a free port
  --out FOLDER  write its files there instead, for any server of files

In the page, ?ring=split or ?ring=packed says which rings its device offers; packed unless told.
`;

async function main(args: readonly string[]): Promise<number> {
  const [option, value, ...others] = args;
  if (option === "--help" || option === "-h") {
    console.log(HELP.trimEnd());
    return 0;
  }
  const port = option === "--port" ? Number(value || NaN) : 8086;
  let wrong = "";
  if (option !== undefined && !["--port", "--out"].includes(option)) {
    wrong = `unknown option ${option}`;
  } else if (option !== undefined && !value) wrong = `${option} needs a value`;
  else if (others.length > 0) wrong = `unexpected argument ${others[0]}`;
  else if (!Number.isInteger(port) || port < 0 || port > 65_535) {
    wrong = `--port takes a number from 0 to 65535, not ${value}`;
  }
  if (wrong !== "") {
    console.error(`page: ${wrong}\nTry --help.`);
    return 2;
  }
  try {
    const site = await buildSite((text) => console.error(`page: ${text}`));
    if (option === "--out") {
      await Deno.mkdir(value!, { recursive: true });
      for (const [path, { bytes }] of site) {
        await Deno.writeFile(`${value}/${path || "index.html"}`, bytes);
      }
      console.log(`page: ${site.size} files in ${value}`);
      return 0;
    }
    await using server = serveSite(site, port);
    console.log(`page: open ${server.url} in a browser; Ctrl-C ends this`);
    await new Promise<void>((resolve) => {
      Deno.addSignalListener("SIGINT", resolve);
      Deno.addSignalListener("SIGTERM", resolve);
    });
    return 0;
  } catch (error) {
    console.error(`page: ${(error as Error).message}`);
    return 1;
  }
}

if (import.meta.main) Deno.exit(await main(Deno.args));
