/// <reference lib="dom" />
/**
 * The page: shows a {@link Session} and carries what is typed and pressed to it.
 *
 * @module
 */

import { MEMORY_BYTES } from "../machine.ts";
import type { MachineOptions } from "../machine.ts";
import type { V86Constructor } from "../v86.ts";
import type { RingPosition } from "./packet_tap.ts";
import { keyText } from "./screen.ts";
import { Session } from "./session.ts";

const STREAMS = 4;
/** Packets that are shown. */
const SHOWN = 30;
const PUMP_MS = 20;
const DRAW_MS = 150;

function element<T extends HTMLElement = HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (found === null) throw new TypeError(`The page has no element ${id}`);
  return found as T;
}

function show(id: string, text: string): void {
  const at = element(id);
  if (at.textContent !== text) at.textContent = text;
}

function bytes(count: number): string {
  if (count < 10_000) return `${count} B`;
  return count < 1e6
    ? `${(count / 1e3).toFixed(0)} kB`
    : `${(count / 1e6).toFixed(1)} MB`;
}

function ringWords(ring: RingPosition | null): string {
  if (ring === null) return "not started";
  const wrap = ring.wrap === null ? "" : `, wrap counter ${ring.wrap}`;
  return `${ring.size} descriptors, next ${ring.available}${wrap}; ${ring.inFlight} in flight`;
}

/** Rows of a table's body. */
function rows(
  id: string,
  cells: readonly (readonly (string | number)[])[],
  className: (row: number) => string = () => "",
): void {
  const body = element(id).querySelector("tbody")!;
  body.replaceChildren(...cells.map((row, i) => {
    const tr = document.createElement("tr");
    tr.className = className(i);
    tr.append(...row.map((cell) => {
      const td = document.createElement("td");
      td.textContent = String(cell);
      return td;
    }));
    return tr;
  }));
}

class Page {
  readonly #options: MachineOptions;
  #session: Session;
  #saved: Uint8Array<ArrayBuffer> | null = null;
  #url: string | null = null;
  #busy = false;
  #drawnVersion = -1;
  #drawnScreen: Session | null = null;
  #restores = 0;

  constructor(options: MachineOptions, session: Session) {
    this.#options = options;
    this.#session = session;
    this.#wire();
    setInterval(() => {
      try {
        this.#session.pump();
      } catch (error) {
        this.#fail(error);
      }
    }, PUMP_MS);
    setInterval(() => this.#draw(), DRAW_MS);
    this.#draw();
    this.#state("running", "running");
    element("terminal").focus();
  }

  #wire(): void {
    const press = (id: string, act: () => Promise<void> | void): void =>
      element(id).addEventListener("click", () => this.#run(act));
    press("save", () => this.#save());
    press("restore", () => this.#restore(this.#saved!));
    press("start", () => this.#session.startStreams(STREAMS));
    press("end", () => this.#session.endStreams());
    const open = element<HTMLInputElement>("open");
    open.addEventListener("change", () =>
      this.#run(async () => {
        const file = open.files?.[0];
        open.value = "";
        if (file === undefined) return;
        await this.#restore(new Uint8Array(await file.arrayBuffer()));
      }));
    const terminal = element("terminal");
    terminal.addEventListener("keydown", (event) => {
      if (event.metaKey || event.altKey || event.isComposing) return;
      const text = keyText(event.key, event.ctrlKey);
      if (text === null) return;
      event.preventDefault();
      this.#type(text);
    });
    terminal.addEventListener("paste", (event) => {
      event.preventDefault();
      const text = event.clipboardData?.getData("text/plain") ?? "";
      this.#type(text.replaceAll(/\r?\n/g, "\r"));
    });
  }

  #type(text: string): void {
    this.#session.machine.type(text);
  }

  /** Does one thing at a time, and says what goes wrong. */
  async #run(act: () => Promise<void> | void): Promise<void> {
    if (this.#busy) return;
    this.#busy = true;
    this.#draw();
    try {
      await act();
    } catch (error) {
      this.#fail(error);
    } finally {
      this.#busy = false;
      this.#draw();
    }
  }

  #fail(error: unknown): void {
    this.#state("failed", error instanceof Error ? error.message : `${error}`);
  }

  #state(state: string, words: string): void {
    element("state").dataset["state"] = state;
    show("state", words);
  }

  async #save(): Promise<void> {
    const session = this.#session;
    this.#state("saving", "saving");
    const began = performance.now();
    const { moved } = session;
    let file: Uint8Array<ArrayBuffer>;
    try {
      file = await session.save();
    } finally {
      await session.resume();
    }
    this.#saved = file;
    const ms = (performance.now() - began).toFixed(0);
    this.#state("running", "running");
    element("saved").dataset["moved"] = String(moved);
    show(
      "saved",
      `saved ${bytes(file.length)} in ${ms} ms, ${
        bytes(moved)
      } into the streams`,
    );
    if (this.#url !== null) URL.revokeObjectURL(this.#url);
    this.#url = URL.createObjectURL(new Blob([file]));
    const link = element<HTMLAnchorElement>("download");
    link.href = this.#url;
    link.download = "linux.ringvm";
    link.hidden = false;
  }

  /** Goes on with a file; with the machine from before where it is none. */
  async #restore(file: Uint8Array<ArrayBuffer>): Promise<void> {
    const before = this.#session;
    this.#state("restoring", "restoring");
    const began = performance.now();
    await before.pause();
    let session: Session;
    try {
      session = await Session.restore(this.#options, file);
    } catch (error) {
      await before.resume();
      throw error;
    }
    this.#session = session;
    const moved = session.moved;
    await before.close();
    await session.resume();
    this.#restores++;
    const ms = (performance.now() - began).toFixed(0);
    this.#state("running", "running");
    element("saved").dataset["moved"] = String(moved);
    show(
      "saved",
      `restored (${this.#restores}) in ${ms} ms, goes on ${
        bytes(moved)
      } into the streams`,
    );
  }

  // -- Drawing --

  #draw(): void {
    const session = this.#session;
    const { streamsState, features, log } = session;
    const idle = !this.#busy;
    const disable = (id: string, disabled: boolean): void => {
      element<HTMLButtonElement>(id).disabled = disabled;
    };
    disable("save", !idle);
    disable("restore", !idle || this.#saved === null);
    disable("open", !idle);
    disable("start", !idle || !["none", "ended"].includes(streamsState));
    disable("end", !idle || streamsState !== "running");
    this.#drawTerminal();
    const { rx, tx } = session.rings;
    show("format", tx === null ? "none yet" : `${tx.format}, as negotiated`);
    show("features", features.join(", ") || "none yet");
    show("rx", ringWords(rx));
    show("tx", ringWords(tx));
    const { "to guest": toGuest, "to page": toPage } = log.counts;
    show(
      "packet-counts",
      `to guest ${toGuest.packets} with ${bytes(toGuest.bytes)}, ` +
        `to page ${toPage.packets} with ${bytes(toPage.bytes)}; ` +
        `${log.resets} resets, ${log.overdrawn} without credit`,
    );
    element("packet-counts").dataset["bytes"] =
      `${toGuest.bytes} ${toPage.bytes}`;
    show("counters", session.counters.join(", ") || "nothing unusual");
    this.#drawStreams();
    if (!element<HTMLInputElement>("hold").checked) this.#drawPackets();
  }

  #drawTerminal(): void {
    const { screen } = this.#session;
    if (
      screen.version === this.#drawnVersion &&
      this.#session === this.#drawnScreen
    ) return;
    this.#drawnVersion = screen.version;
    this.#drawnScreen = this.#session;
    const terminal = element("terminal");
    const { lines, cursor } = screen;
    const line = lines[cursor.line]!.padEnd(cursor.column + 1);
    const before = [...lines.slice(0, cursor.line), ""].join("\n") +
      line.slice(0, cursor.column);
    const after = line.slice(cursor.column + 1).trimEnd() +
      ["", ...lines.slice(cursor.line + 1)].join("\n");
    const mark = document.createElement("span");
    mark.className = "cursor";
    mark.textContent = line[cursor.column]!;
    terminal.replaceChildren(before, mark, after);
    terminal.scrollTop = terminal.scrollHeight;
  }

  #drawStreams(): void {
    const { streams, streamsState, verdict } = this.#session;
    const sent = streams.reduce((sum, one) => sum + one.sent, 0);
    const received = streams.reduce((sum, one) => sum + one.received, 0);
    const ended = verdict.length === 0
      ? `ended: both ends have counted the same, ${
        bytes(sent)
      } to the guest and ${bytes(received)} to the page, none wrong`
      : `ended: ${verdict.join("; ")}`;
    show("streams-state", streamsState === "ended" ? ended : streamsState);
    rows(
      "streams",
      streams.map((one) => {
        const { hostPort, guestPort } = one.ports;
        return [
          one.index,
          hostPort < 0x4000_0000 ? "guest" : "page",
          guestPort,
          hostPort,
          one.sent,
          one.received,
          one.wrong,
          one.broken ?? (one.ended ? "ended" : "open"),
        ];
      }),
    );
  }

  #drawPackets(): void {
    const shown = this.#session.log.packets.slice(-SHOWN);
    rows(
      "packets",
      shown.map((packet) => [
        packet.number,
        packet.direction === "to guest" ? "→ guest" : "← guest",
        packet.operation,
        packet.guestPort,
        packet.hostPort,
        packet.length,
        packet.fwdCnt,
        packet.credit ?? "",
      ]),
      (row) => shown[row]!.direction === "to guest" ? "to-guest" : "",
    );
  }
}

async function fetched(path: string): Promise<Response> {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response;
}

async function main(): Promise<void> {
  try {
    const choice = new URLSearchParams(location.search).get("ring");
    const ring = choice === "split" || choice === "auto" ? choice : "packed";
    // Not a literal: it is no part of this page's own code.
    const emulator = "./libv86.mjs";
    const { V86 } = await import(new URL(emulator, location.href).href) as {
      V86: V86Constructor;
    };
    const wasm = await WebAssembly.compileStreaming(fetched("v86.wasm"));
    show("state", `loading a machine with ${bytes(MEMORY_BYTES)} of memory`);
    const booted = await fetched("machine");
    const options: MachineOptions = { build: { V86, wasm }, ring };
    const session = await Session.start(
      options,
      new Uint8Array(await booted.arrayBuffer()),
    );
    new Page(options, session);
  } catch (error) {
    element("state").dataset["state"] = "failed";
    show("state", error instanceof Error ? error.message : `${error}`);
  }
}

await main();
