import { read, type Doctor, type Line } from "../api.ts";
import type { View } from "../app.ts";
import { command } from "../command.ts";
import { h } from "../dom.ts";
import { mark, verdictWord } from "../mark.ts";

export const doctor: View = {
  id: "doctor",
  title: "Doctor",
  show(place, app) {
    const body = h("div", {}, h("p", { role: "status" }, "Looking at the host…"));
    place.append(body);
    let closed = false;
    read<Doctor>("api/v1/doctor").then(
      (report) => !closed && body.replaceChildren(...drawn(report), command(`lemonade doctor --config ${app.file}`, "looks again; here the host was looked at once since the start")),
      (error: unknown) => !closed && body.replaceChildren(h("p", { role: "alert" }, `The report could not be read: ${String(error)}`)),
    );
    return { update: () => undefined, close: () => (closed = true) };
  },
};

function drawn(report: Doctor): Node[] {
  const nodes: Node[] = [];
  const { configuration: own } = report;
  if (own) {
    nodes.push(h("h2", {}, "This configuration"), h("p", {}, own.runs_as_asked ? mark("good", "runs as asked") : mark("bad", "does not run as asked")), lines("This configuration", own.lines));
    const rows = own.frontends.map((route) =>
      h("tr", {}, h("th", { scope: "row" }, route.frontend), h("td", {}, `${route.data_plane} / ${route.relay}`), h("td", {}, route.asked), h("td", {}, route.why), h("td", {}, route.change)),
    );
    nodes.push(h("h2", {}, "Frontends"), framed("Frontends", ["Frontend", "Plane / relay", "Asked for", "Why no better one", "What would change that"], rows));
  }
  for (const section of report.sections) {
    const title = section.name.charAt(0).toUpperCase() + section.name.slice(1);
    nodes.push(h("h2", {}, title), lines(title, section.lines));
  }
  return nodes;
}

function lines(title: string, all: Line[]): HTMLElement {
  const rows = all.map((line) => h("tr", {}, h("th", { scope: "row" }, line.name), h("td", {}, mark(...verdictWord(line.verdict))), h("td", {}, line.detail), h("td", {}, line.cure)));
  return framed(title, ["What", "Verdict", "Seen", "Cure"], rows);
}

function framed(title: string, heads: string[], rows: HTMLElement[]): HTMLElement {
  const head = h("thead", {}, h("tr", {}, ...heads.map((text) => h("th", { scope: "col" }, text))));
  return h("div", { class: "frame", tabindex: 0, role: "region", "aria-label": title }, h("table", {}, h("caption", { class: "unseen" }, title), head, h("tbody", {}, ...rows)));
}
