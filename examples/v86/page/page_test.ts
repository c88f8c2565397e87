// deno-lint-ignore-file no-console

import {
  assert,
  assertEquals,
  assertGreater,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import type { Browser, Page } from "playwright-core";
import { findProgram } from "../../../props/guest/vm/programs.ts";
import { skipped } from "../../../props/guest/vm/skip.ts";
import { buildSite, serveSite, type Site } from "./site.ts";

/** How long a slow, busy machine may take for one thing. */
const PATIENCE_MS = 90_000;
const VIEWPORT = { width: 1440, height: 850 };
/** Bytes that each stream moves each way between two steps. */
const BYTES = 30_000;
/** Where to leave a picture of the page; none unless told. */
const SCREENSHOT = Deno.env.get("RINGSIDE_PAGE_SCREENSHOT");

/** What is needed, or why it is not there. */
async function parts(): Promise<
  { site: Site; launch: () => Promise<Browser> } | string
> {
  const program = Deno.env.get("RINGSIDE_CHROMIUM") ?? findProgram("chromium");
  if (program === undefined) return "page: chromium is missing";
  try {
    const { chromium } = await import("playwright-core");
    const site = await buildSite((text) => console.log(`page: ${text}`));
    const launch = () =>
      chromium.launch({
        executablePath: program,
        // Its own page is all that it opens; root, and many containers, cannot have the sandbox.
        chromiumSandbox: false,
        timeout: PATIENCE_MS,
        handleSIGINT: false,
        handleSIGTERM: false,
        handleSIGHUP: false,
      });
    return { site, launch };
  } catch (error) {
    return `page: ${(error as Error).message}`;
  }
}

/** One row of the table of streams. */
type Stream = { toGuest: number; toPage: number; wrong: number; state: string };

/** The page, as one who sits before it sees it. */
class Visitor {
  readonly page: Page;
  /** What went wrong without being looked for. */
  readonly errors: string[] = [];
  /** Where it has asked for anything. */
  readonly origins = new Set<string>();

  constructor(page: Page) {
    this.page = page;
    page.setDefaultTimeout(PATIENCE_MS);
    page.on("pageerror", (error) => this.errors.push(error.message));
    page.on("console", (message) => {
      if (message.type() === "error") this.errors.push(message.text());
    });
    // A blob: URL has the origin of the page that made it.
    page.on("request", (request) => {
      this.origins.add(new URL(request.url()).origin);
    });
  }

  async sees(id: string, text: string | RegExp): Promise<void> {
    try {
      await this.page.locator(`#${id}`).filter({ hasText: text }).waitFor();
    } catch (error) {
      throw new Error(
        `#${id} does not show ${text}, but ${await this.text(id)}; state: ` +
          `${await this.text("state")}; errors: ${this.errors.join("; ")}`,
        { cause: error },
      );
    }
  }

  async text(id: string): Promise<string> {
    return await this.page.locator(`#${id}`).textContent() ?? "";
  }

  async press(id: string): Promise<void> {
    await this.page.locator(`#${id}:enabled`).click();
  }

  async type(text: string): Promise<void> {
    await this.page.locator("#terminal").pressSequentially(text);
  }

  /** The streams, all at one time. */
  async streams(): Promise<Stream[]> {
    const rows = await this.page.evaluate(
      "[...document.querySelectorAll('#streams tbody tr')]" +
        ".map((row) => [...row.cells].map((cell) => cell.textContent))",
    ) as string[][];
    return rows.map((row) => ({
      toGuest: Number(row[4]),
      toPage: Number(row[5]),
      wrong: Number(row[6]),
      state: row[7]!,
    }));
  }

  /** Waits until each stream has moved {@link BYTES} more each way than `from`. */
  async moves(from: readonly Stream[]): Promise<Stream[]> {
    const deadline = performance.now() + PATIENCE_MS;
    for (;;) {
      const streams = await this.streams();
      for (const { wrong, state } of streams) {
        assertEquals({ wrong, state }, { wrong: 0, state: "open" });
      }
      if (
        streams.length === from.length &&
        streams.every(({ toGuest, toPage }, i) =>
          toGuest >= from[i]!.toGuest + BYTES &&
          toPage >= from[i]!.toPage + BYTES
        )
      ) return streams;
      assert(
        performance.now() < deadline,
        `the streams stand still: ${JSON.stringify(streams)}`,
      );
      await this.page.waitForTimeout(100);
    }
  }

  /**
   * Ends the streams, and has both ends compare their counts. Beside them, `others` bytes went each way since the
   * machine began: all of them are in the log of packets, as it is saved with the machine.
   */
  async ends(others: number): Promise<void> {
    await this.press("end");
    await this.sees("streams-state", "ended: ");
    assertMatch(
      await this.text("streams-state"),
      /^ended: both ends have counted the same, .* none wrong$/,
    );
    // Where both ends close at the same time, a reset comes for a connection that is gone.
    assertMatch(
      await this.text("counters"),
      /^(nothing unusual|reset_unknown \d+)$/,
    );
    assertStringIncludes(
      await this.text("packet-counts"),
      ", 0 without credit",
    );
    const streams = await this.streams();
    const logged = await this.page.locator("#packet-counts")
      .getAttribute("data-bytes");
    const toGuest = streams.reduce((sum, one) => sum + one.toGuest, others);
    const toPage = streams.reduce((sum, one) => sum + one.toPage, others);
    assertEquals(logged, `${toGuest} ${toPage}`);
  }
}

function total(streams: readonly Stream[]): number {
  return streams.reduce((sum, one) => sum + one.toGuest + one.toPage, 0);
}

const NONE: readonly Stream[] = Array.from(
  { length: 4 },
  () => ({ toGuest: 0, toPage: 0, wrong: 0, state: "open" }),
);

Deno.test("a page runs a Linux that talks to it by packed rings, is saved, goes back, and goes on in another page", async () => {
  const found = await parts();
  if (typeof found === "string") {
    skipped(found);
    return;
  }
  await using server = serveSite(found.site, 0);
  const origin = new URL(server.url).origin;
  const browser = await found.launch();
  const folder = await Deno.makeTempDir();
  try {
    const first = new Visitor(await browser.newPage({ viewport: VIEWPORT }));
    await first.page.goto(server.url);
    await first.sees("terminal", "guest#");
    await first.type("uname -a\n");
    await first.sees("terminal", /Linux guest 6\.\S+-686 .*Debian/);
    assertStringIncludes(await first.text("format"), "packed");
    assertStringIncludes(await first.text("features"), "RING_PACKED");

    // Both ways: what is said, and what comes back in capitals.
    await first.type("echo to the page | vsock connect 1234\n");
    await first.sees("terminal", "TO THE PAGE");

    // Streams that run on while the machine is saved.
    await first.press("start");
    await first.sees("streams-state", "running");
    const before = await first.moves(NONE);
    await first.press("save");
    await first.sees("saved", /^saved [0-9]/);
    const saved = Number(
      await first.page.locator("#saved").getAttribute("data-moved"),
    );
    assertGreater(saved, total(before) - 1);
    const after = await first.moves(await first.streams());
    assertGreater(total(after), saved);
    if (SCREENSHOT !== undefined) {
      await first.page.screenshot({ path: SCREENSHOT });
    }

    // Back, and on from where it was: the page's ends of the streams, too.
    await first.press("restore");
    await first.sees("saved", "restored (1)");
    assertEquals(
      Number(await first.page.locator("#saved").getAttribute("data-moved")),
      saved,
    );
    await first.moves(before);
    await first.type("echo again | vsock connect 1234\n");
    await first.sees("terminal", "AGAIN");

    // A file that was edited changes nothing; the same file in another page makes a machine of its own.
    const download = first.page.waitForEvent("download");
    await first.page.locator("#download").click();
    const path = `${folder}/linux.ringvm`;
    await (await download).saveAs(path);
    const file = await Deno.readFile(path);
    file[file.length >> 1]! ^= 1;
    await Deno.writeFile(`${folder}/edited`, file);
    await first.page.locator("#open").setInputFiles(`${folder}/edited`);
    await first.sees("state", "the file was edited");
    await first.moves(await first.streams());
    await first.ends("to the page\nagain\n".length);

    const second = new Visitor(await browser.newPage({ viewport: VIEWPORT }));
    await second.page.goto(server.url);
    await second.sees("state", "running");
    await second.page.locator("#open").setInputFiles(path);
    await second.sees("saved", "restored (1)");
    assertEquals(
      Number(await second.page.locator("#saved").getAttribute("data-moved")),
      saved,
    );
    await second.sees("terminal", "TO THE PAGE");
    await second.moves(before);
    await second.ends("to the page\n".length);

    for (const visitor of [first, second]) {
      assertEquals(visitor.errors, []);
      assertEquals([...visitor.origins], [origin]);
      assertEquals(await visitor.page.evaluate("crossOriginIsolated"), false);
    }
    assertEquals(server.missing, []);
  } finally {
    await browser.close();
    await Deno.remove(folder, { recursive: true });
  }
});
