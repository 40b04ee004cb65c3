// A small line in a table cell, drawn with the colour of its text.

import { svg } from "./dom.ts";

const WIDTH = 96;
const HEIGHT = 20;

/** Draws the last `points` values; `what` is read to those who do not see it. */
export function spark(values: readonly number[], what: string, points = 60): SVGElement {
  const shown = values.slice(-points);
  const most = Math.max(...shown, 1e-9);
  const at = (value: number, index: number) => {
    const x = WIDTH - 1 - (shown.length - 1 - index) * ((WIDTH - 2) / (points - 1));
    return `${x.toFixed(1)},${(HEIGHT - 1.5 - (value / most) * (HEIGHT - 3)).toFixed(1)}`;
  };
  const last = shown.at(-1) ?? 0;
  const label = shown.length < 2 ? `${what}: no history yet` : `${what}: now ${last.toFixed(1)}, most ${Math.max(...shown).toFixed(1)} in ${shown.length} s`;
  const line = svg("polyline", { points: shown.map(at).join(" "), fill: "none", stroke: "currentColor", "stroke-width": 1.5, "stroke-linejoin": "round" });
  return svg("svg", { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: WIDTH, height: HEIGHT, role: "img", "aria-label": label }, line);
}
