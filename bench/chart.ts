import { TRACKED } from "./track.ts";

/** What `history.json` holds: figures in calibrated nanoseconds, oldest first. */
export type History = {
  points: { name: string; figures: Record<string, number> }[];
};

const WIDTH = 900;
const PANEL_HEIGHT = 210;
const LEFT = 60;
const RIGHT = 260;
const TOP = 34;
const BOTTOM = 34;
const COLORS = [
  "#1f6feb",
  "#d1242f",
  "#1a7f37",
  "#9a6700",
  "#8250df",
  "#bf3989",
  "#57606a",
  "#0b7285",
];

/** What a chart shows beside each other: figures of one kind on one scale. */
const PANELS: readonly [string, (name: string) => boolean][] = [
  ["ring, ns a buffer", (name) => name.startsWith("ring/")],
  ["vsock/packet/parse, ns a header", (name) => name === "vsock/packet/parse"],
  [
    "vsock, µs a write",
    (name) => name.startsWith("vsock/") && name !== "vsock/packet/parse",
  ],
];

/** Draws the history: one panel a kind, one line a figure, time from left to right. */
export function chart(history: History): string {
  const height = PANELS.length * PANEL_HEIGHT;
  const parts = PANELS.map(([title, belongs], i) =>
    panel(history, title, Object.keys(TRACKED).filter(belongs), i)
  );
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" font-family="sans-serif" font-size="11">
<title>What the tracked benchmarks took, by commit</title>
<rect width="${WIDTH}" height="${height}" fill="#ffffff"/>
${parts.join("\n")}
</svg>
`;
}

function panel(
  { points }: History,
  title: string,
  names: readonly string[],
  index: number,
): string {
  const top = index * PANEL_HEIGHT + TOP;
  const bottom = (index + 1) * PANEL_HEIGHT - BOTTOM;
  const scale = title.includes("µs") ? 1000 : 1;
  const value = (name: string, at: number): number | undefined => {
    const ns = points[at]!.figures[name];
    return ns === undefined ? undefined : ns / scale;
  };
  const most = Math.max(
    1,
    ...names.flatMap((name) => points.map((_, at) => value(name, at) ?? 0)),
  );
  const x = (at: number) =>
    LEFT + at * (WIDTH - LEFT - RIGHT) / Math.max(1, points.length - 1);
  const y = (of: number) => bottom - of / most * (bottom - top);
  const lines = [
    `<text x="${LEFT}" y="${top - 14}" font-weight="bold">${
      escape(title)
    }</text>`,
  ];
  for (const part of [0, 0.5, 1]) {
    const at = y(most * part).toFixed(1);
    lines.push(
      `<line x1="${LEFT}" x2="${
        WIDTH - RIGHT
      }" y1="${at}" y2="${at}" stroke="#d0d7de"/>`,
      `<text x="${
        LEFT - 6
      }" y="${at}" text-anchor="end" dominant-baseline="middle">${
        (most * part).toPrecision(3)
      }</text>`,
    );
  }
  points.forEach(({ name }, at) => {
    lines.push(
      `<text x="${x(at).toFixed(1)}" y="${bottom + 16}" text-anchor="middle">${
        escape(name)
      }</text>`,
    );
  });
  names.forEach((name, i) => {
    const color = COLORS[i % COLORS.length]!;
    const known = points.map((_, at) => [at, value(name, at)] as const).filter((
      [, of],
    ) => of !== undefined);
    if (known.length === 0) return;
    const path = known.map(([at, of]) =>
      `${x(at).toFixed(1)},${y(of!).toFixed(1)}`
    );
    lines.push(
      `<polyline points="${
        path.join(" ")
      }" fill="none" stroke="${color}" stroke-width="2"/>`,
    );
    for (const place of path) {
      const [cx, cy] = place.split(",");
      lines.push(`<circle cx="${cx}" cy="${cy}" r="3" fill="${color}"/>`);
    }
    const legend = top + 4 + i * 16;
    lines.push(
      `<circle cx="${WIDTH - RIGHT + 14}" cy="${
        legend - 4
      }" r="4" fill="${color}"/>`,
      `<text x="${WIDTH - RIGHT + 24}" y="${legend}">${escape(name)} ${
        known.at(-1)![1]!.toPrecision(3)
      }</text>`,
    );
  });
  return lines.join("\n");
}

function escape(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}
