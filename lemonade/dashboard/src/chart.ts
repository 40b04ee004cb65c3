// A chart over time with its values in words below it.

import uPlot from "uplot";
import { h } from "./dom.ts";
import type { Point } from "./history.ts";

export interface Line {
  title: string;
  /** Variable of the style sheet. */
  colour: string;
  dash?: number[];
  pick(point: Point): number;
}

const HEIGHT = 150;

/** Steps of an axis that counts. */
const WHOLE = Array.from({ length: 9 }, (_, power) => [1, 2, 5].map((step) => step * 10 ** power)).flat();

function clock(seconds: number): string {
  return new Date(seconds * 1000).toLocaleTimeString("en-GB");
}

/** Reads variables of the style sheet as the theme in force makes them: a canvas knows no variables. */
function colours(): (name: string) => string {
  const probe = h("span", { hidden: true });
  document.body.append(probe);
  const found = new Map<string, string>();
  for (const name of ["--quiet", "--line", "--series-0", "--series-1"]) {
    probe.style.color = `var(${name})`;
    found.set(name, getComputedStyle(probe).color);
  }
  probe.remove();
  return (name) => found.get(name) ?? "gray";
}

export class Chart {
  readonly element: HTMLElement;
  private readonly plot: uPlot;
  private readonly legend: HTMLElement;
  private readonly resize: ResizeObserver;

  constructor(
    private readonly title: string,
    private readonly lines: Line[],
    private readonly say: (value: number) => string,
    whole = false,
  ) {
    const box = h("div", { class: "plot", role: "img" });
    this.legend = h("p", { class: "legend" });
    this.element = h("figure", {}, h("figcaption", {}, title), box, this.legend);
    const colour = colours();
    const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    this.plot = new uPlot(
      {
        width: 300,
        height: HEIGHT,
        legend: { show: false },
        cursor: { drag: { x: false, y: false }, points: { size: 6 } },
        scales: { y: { range: (_plot, _low, high) => [0, Math.max(high * 1.1, 1)] } },
        axes: [
          { ...axis, space: 80, size: 24, values: (_plot, times) => times.map(clock) },
          { ...axis, size: 62, space: 28, values: (_plot, values) => values.map(say), ...(whole ? { incrs: WHOLE } : {}) },
        ],
        series: [{}, ...lines.map((line) => ({ label: line.title, stroke: colour(line.colour), width: 1.5, dash: line.dash, points: { show: false } }))],
        hooks: { setCursor: [() => this.tell()] },
      },
      [[], ...lines.map(() => [])] as uPlot.AlignedData,
      box,
    );
    this.resize = new ResizeObserver(() => {
      const width = Math.max(200, Math.floor(box.clientWidth));
      if (width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
    });
    this.resize.observe(box);
  }

  show(points: readonly Point[]): void {
    const data = [points.map((point) => point.at), ...this.lines.map((line) => points.map((point) => line.pick(point)))];
    this.plot.setData(data as uPlot.AlignedData);
    this.tell();
  }

  close(): void {
    this.resize.disconnect();
    this.plot.destroy();
  }

  /** The values under the pointer, or the newest ones. */
  private tell(): void {
    const times = this.plot.data[0];
    const index = this.plot.cursor.idx ?? times.length - 1;
    const at = times[index];
    const values = this.lines.map((line, number) => {
      const value = this.plot.data[number + 1]?.[index];
      return `${line.title} ${value === null || value === undefined ? "–" : this.say(value)}`;
    });
    const time = at === undefined ? "no history yet" : clock(at);
    const swatch = (number: number) => h("span", { class: `swatch swatch-${number}`, "aria-hidden": "true" });
    this.legend.replaceChildren(...values.flatMap((text, number) => [h("span", {}, swatch(number), text)]), h("span", { class: "quiet" }, time));
    this.plot.root.parentElement?.setAttribute("aria-label", `${this.title}: ${values.join(", ")}`);
  }
}
