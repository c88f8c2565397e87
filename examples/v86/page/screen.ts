/**
 * What a terminal of 80 columns shows: text, a cursor, and the few sequences that a shell of busybox sends.
 *
 * Works in a browser; draws nothing by itself.
 *
 * @module
 */

import type { FieldReader, Plain } from "../../../device/snapshot.ts";

/** Columns. */
export const COLUMNS = 80;
/** Lines. */
export const ROWS = 24;
/** Lines that have left the screen and are kept. */
const HISTORY = 300;
const ESCAPE = "\x1b";
/** A longer sequence is none. */
const LONGEST_SEQUENCE = 32;

const BLANK = " ".repeat(COLUMNS);

/** A screen. */
export class Screen {
  /** Counts changes. */
  version = 0;
  #history: string[] = [];
  #lines: string[] = Array.from({ length: ROWS }, () => BLANK);
  #row = 0;
  #column = 0;
  #sequence = "";
  readonly #answer: (text: string) => void;

  /** Makes an empty one; `answer` takes what a terminal answers, when it is asked where its cursor is. */
  constructor(answer: (text: string) => void) {
    this.#answer = answer;
  }

  /** Goes on with what another has saved. */
  restore(fields: FieldReader): void {
    const lines = fields.array("lines", HISTORY + ROWS).map(String);
    if (lines.length < ROWS) throw fields.bad("lines", `fewer than ${ROWS}`);
    this.#history = lines.slice(0, -ROWS);
    this.#lines = lines.slice(-ROWS)
      .map((line) => line.slice(0, COLUMNS).padEnd(COLUMNS));
    this.#row = fields.integer("row", 0, ROWS - 1);
    this.#column = fields.integer("column", 0, COLUMNS);
    this.#sequence = "";
    this.version++;
  }

  /** What it shows, as plain data. */
  save(): Plain {
    return {
      lines: [...this.#history, ...this.#lines],
      row: this.#row,
      column: this.#column,
    };
  }

  /** Lines that have left it and lines on it, without the blanks at their ends. */
  get lines(): string[] {
    return [...this.#history, ...this.#lines].map((line) => line.trimEnd());
  }

  /** Where the cursor is: an index of {@link Screen.lines} and a column. */
  get cursor(): { line: number; column: number } {
    return {
      line: this.#history.length + this.#row,
      column: Math.min(this.#column, COLUMNS - 1),
    };
  }

  /** Takes a byte. */
  write(byte: number): void {
    this.version++;
    const char = String.fromCharCode(byte);
    if (this.#sequence !== "" || char === ESCAPE) {
      this.#sequence += char;
      if (sequenceEnds(this.#sequence)) {
        const sequence = this.#sequence;
        this.#sequence = "";
        this.#control(sequence);
      }
      return;
    }
    if (char === "\r") this.#column = 0;
    else if (char === "\n") this.#lineFeed();
    else if (char === "\b") this.#column = Math.max(0, this.#column - 1);
    else if (char === "\t") {
      this.#column = Math.min(COLUMNS, (this.#column | 7) + 1);
    } else if (byte >= 0x20 && byte < 0x7f) this.#put(char);
  }

  #put(char: string): void {
    if (this.#column >= COLUMNS) {
      this.#column = 0;
      this.#lineFeed();
    }
    this.#edit((line, column) =>
      line.slice(0, column) + char + line.slice(column + 1)
    );
    this.#column++;
  }

  #edit(change: (line: string, column: number) => string): void {
    this.#lines[this.#row] = change(this.#lines[this.#row]!, this.#column);
  }

  #lineFeed(): void {
    if (this.#row < ROWS - 1) {
      this.#row++;
      return;
    }
    this.#history.push(this.#lines.shift()!);
    this.#lines.push(BLANK);
    if (this.#history.length > HISTORY) this.#history.shift();
  }

  #control(sequence: string): void {
    if (!sequence.startsWith("\x1b[")) return;
    const numbers = sequence.slice(2, -1).split(";").map(Number);
    const count = numbers[0] || 1;
    const move = (rows: number, columns: number) => {
      this.#row = Math.max(0, Math.min(ROWS - 1, this.#row + rows));
      this.#column = Math.max(0, Math.min(COLUMNS - 1, this.#column + columns));
    };
    switch (sequence.at(-1)) {
      case "A":
        return move(-count, 0);
      case "B":
        return move(count, 0);
      case "C":
        return move(0, count);
      case "D":
        return move(0, -count);
      case "H":
        this.#row = this.#column = 0;
        return move(count - 1, (numbers[1] || 1) - 1);
      case "J":
        return this.#erase(numbers[0] === 2 ? 0 : this.#row);
      case "K":
        return this.#edit((line, column) =>
          line.slice(0, column).padEnd(COLUMNS)
        );
      case "n":
        if (numbers[0] !== 6) return;
        return this.#answer(`\x1b[${this.#row + 1};${this.#column + 1}R`);
    }
  }

  /** Erases all lines after `from`, and that one from the cursor on. */
  #erase(from: number): void {
    if (from === this.#row) {
      this.#edit((line, column) => line.slice(0, column).padEnd(COLUMNS));
      from++;
    }
    for (let row = from; row < ROWS; row++) this.#lines[row] = BLANK;
  }
}

function sequenceEnds(sequence: string): boolean {
  if (sequence.length < 2) return false;
  if (sequence.length > LONGEST_SEQUENCE) return true;
  if (sequence[1] === "]") return sequence.endsWith("\x07");
  if (sequence[1] !== "[") return true;
  return sequence.length > 2 && /[@-~]/.test(sequence.at(-1)!);
}

/** What a key sends, as `KeyboardEvent` names it; null where that is nothing. */
export function keyText(key: string, control: boolean): string | null {
  if (control) {
    return /^[a-z@[\\\]^_]$/i.test(key)
      ? String.fromCharCode(key.toUpperCase().charCodeAt(0) & 0x1f)
      : null;
  }
  if (key.length === 1) return key;
  const named: Record<string, string> = {
    Enter: "\r",
    Backspace: "\x7f",
    Tab: "\t",
    Escape: ESCAPE,
    ArrowUp: "\x1b[A",
    ArrowDown: "\x1b[B",
    ArrowRight: "\x1b[C",
    ArrowLeft: "\x1b[D",
    Home: "\x1b[H",
    End: "\x1b[F",
    Delete: "\x1b[3~",
  };
  return named[key] ?? null;
}
