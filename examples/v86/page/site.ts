/**
 * Builds the page and serves it on loopback.
 *
 * @module
 */

import { cacheFolder } from "../../../props/guest/vm/kernel.ts";
import { runProgram } from "../../../props/guest/vm/programs.ts";
import { bootedMachine } from "../booted.ts";
import type { Progress } from "../parts.ts";
import { V86_VERSION } from "../v86.ts";

/** One file of the page. */
export type SiteFile = { type: string; bytes: Uint8Array<ArrayBuffer> };

/** All files of the page, by path without a slash before it; the page itself has the empty path. */
export type Site = ReadonlyMap<string, SiteFile>;

/**
 * Builds the page from the sources beside this file; takes what is not this project's from the cache.
 *
 * @param progress Told what takes a while.
 * @throws {Error} when something is missing and cannot be fetched.
 */
export async function buildSite(progress: Progress = () => {}): Promise<Site> {
  const { file } = await bootedMachine(progress);
  const v86 = `${cacheFolder()}/v86/v86-${V86_VERSION}`;
  const here = async (name: string) =>
    await Deno.readFile(new URL(name, import.meta.url));
  return new Map<string, SiteFile>([
    ["", { type: "text/html; charset=utf-8", bytes: await here("index.html") }],
    ["style.css", {
      type: "text/css; charset=utf-8",
      bytes: await here("style.css"),
    }],
    ["page.js", { type: SCRIPT, bytes: await bundle() }],
    ["libv86.mjs", {
      type: SCRIPT,
      bytes: await Deno.readFile(`${v86}/libv86.mjs`),
    }],
    ["v86.wasm", {
      type: "application/wasm",
      bytes: await Deno.readFile(`${v86}/v86.wasm`),
    }],
    ["machine", { type: "application/octet-stream", bytes: file }],
  ]);
}

const SCRIPT = "text/javascript; charset=utf-8";

/** The page's program and what it imports, in one file. */
async function bundle(): Promise<Uint8Array<ArrayBuffer>> {
  const work = await Deno.makeTempDir();
  try {
    // A configuration of its own, so that the program is the same wherever it is built.
    await Deno.writeTextFile(`${work}/deno.json`, '{"lock":false}');
    await runProgram(Deno.execPath(), [
      "bundle",
      "--quiet",
      "--config",
      `${work}/deno.json`,
      "--platform",
      "browser",
      "--output",
      `${work}/page.js`,
      new URL("./main.ts", import.meta.url).href,
    ]);
    return await Deno.readFile(`${work}/page.js`);
  } finally {
    await Deno.remove(work, { recursive: true });
  }
}

/** A server of a page, on loopback. */
export type SiteServer = AsyncDisposable & {
  /** Where it is. */
  url: string;
  /** Paths that were asked for and are not there. */
  missing: readonly string[];
};

/** Serves `site` at `port` of 127.0.0.1; 0 takes a free one. */
export function serveSite(site: Site, port: number): SiteServer {
  const missing: string[] = [];
  const server = Deno.serve({
    hostname: "127.0.0.1",
    port,
    onListen: () => {},
  }, (request) => {
    const path = new URL(request.url).pathname.slice(1);
    const file = site.get(path);
    if (file === undefined) {
      missing.push(path);
      return new Response("There is no such file\n", { status: 404 });
    }
    return new Response(file.bytes, {
      headers: { "content-type": file.type, "cache-control": "no-store" },
    });
  });
  return {
    url: `http://127.0.0.1:${server.addr.port}/`,
    missing,
    [Symbol.asyncDispose]: () => server.shutdown(),
  };
}
