// The page: navigation, the reading of the status once a second, and one view at a time.

import "uplot/dist/uPlot.min.css";
import "./style.css";
import { read, type Config, type Series, type Status } from "./api.ts";
import { App, type Shown, type View } from "./app.ts";
import { fill, h } from "./dom.ts";
import { mark, phaseWord } from "./mark.ts";
import { nextTheme, theme } from "./theme.ts";
import { backends } from "./views/backends.ts";
import { config } from "./views/config.ts";
import { connections } from "./views/connections.ts";
import { decisions } from "./views/decisions.ts";
import { doctor } from "./views/doctor.ts";
import { frontends } from "./views/frontends.ts";
import { journal } from "./views/journal.ts";
import { overview } from "./views/overview.ts";
import { pools } from "./views/pools.ts";

const VIEWS: readonly View[] = [overview, frontends, pools, backends, connections, decisions, journal, config, doctor];

/** Time between two readings of the status, in milliseconds. */
const PERIOD = 1000;

const app = new App();
const title = h("h1", { tabindex: -1 });
const place = h("div", { class: "view" });
const trouble = h("p", { class: "trouble", role: "alert" });
const phase = h("span", { class: "phase" });
const links = new Map(VIEWS.map((view) => [view, h("a", { href: `#/${view.id}` }, view.title)]));
let current: { view: View; shown: Shown } | null = null;
let paused = false;

function chosen(): View {
  const id = location.hash.replace(/^#\//, "").split("/")[0];
  return VIEWS.find((view) => view.id === id) ?? overview;
}

function go(): void {
  const view = chosen();
  if (current?.view === view) return;
  const first = current === null;
  current?.shown.close?.();
  place.replaceChildren();
  links.forEach((link, of) => (of === view ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current")));
  title.textContent = view.title;
  document.title = `${view.title} · Lemonade`;
  current = { view, shown: view.show(place, app) };
  current.shown.update();
  current.shown.hold?.(held());
  // Whoever cannot see the change is told of it, and goes on from there.
  if (!first) {
    title.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
}

/** Whether nobody wants to see anything move; a hidden page asks for nothing. */
function held(): boolean {
  return paused || document.visibilityState !== "visible";
}

/** A view whose look depends on the theme is made again. */
function redraw(): void {
  current?.shown.close?.();
  place.replaceChildren();
  if (current) {
    current.shown = current.view.show(place, app);
    current.shown.update();
    current.shown.hold?.(held());
  }
}

async function refresh(): Promise<void> {
  try {
    const status = await read<Status>("api/v1/status");
    if (app.status?.pid !== status.pid) app.history.begin(await read<Series>("api/v1/series?last=600"));
    app.history.take(status, Date.now() / 1000);
    app.status = status;
    if (app.config?.version !== status.config.version) app.config = await read<Config>("api/v1/config");
    fill(phase, mark(...phaseWord(status.phase)));
    if (trouble.textContent !== "") trouble.textContent = "";
    current?.shown.update();
  } catch (error) {
    const text = `No answer from Lemonade; trying again. What is shown is old. (${error instanceof Error ? error.message : String(error)})`;
    if (trouble.textContent !== text) trouble.textContent = text;
  }
}

/** A status that takes long, since there is much to tell, is asked for less often. */
async function run(): Promise<never> {
  for (;;) {
    const began = performance.now();
    if (!held()) await refresh();
    const took = performance.now() - began;
    await new Promise((done) => setTimeout(done, Math.max(PERIOD - took, 4 * took)));
  }
}

function controls(): HTMLElement {
  const pause = h("button", { type: "button", "aria-pressed": "false" }, "Pause");
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    current?.shown.hold?.(held());
  });
  const look = h("button", { type: "button" }, `Theme: ${theme()}`);
  look.addEventListener("click", () => {
    look.textContent = `Theme: ${nextTheme()}`;
    redraw();
  });
  return h("div", { class: "controls" }, phase, pause, look);
}

theme();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
const skip = h("a", { class: "skip", href: "#main", click: (event) => (event.preventDefault(), title.focus()) }, "Skip to the content");
const brand = h("p", { class: "brand" }, h("img", { src: "icon.svg", alt: "", width: 22, height: 22 }), "Lemonade");
document.body.append(
  skip,
  h("header", {}, brand, h("nav", { "aria-label": "Views" }, h("ul", {}, ...[...links.values()].map((link) => h("li", {}, link)))), controls()),
  h("main", { id: "main" }, trouble, title, place),
  h("footer", { class: "quiet" }, "This page only reads: each change is a command line."),
);
document.addEventListener("visibilitychange", () => current?.shown.hold?.(held()));
addEventListener("hashchange", go);
go();
void run();
