import type { Status } from "../api.ts";
import type { App, View } from "../app.ts";
import { Chart } from "../chart.ts";
import { command } from "../command.ts";
import { fill, h } from "../dom.ts";
import { bytes, count, rate, span, when, words } from "../format.ts";
import { backendWord, frontendWord, mark, phaseWord } from "../mark.ts";

export const overview: View = {
  id: "overview",
  title: "Overview",
  show(place, app) {
    const [head, tiles, trouble, lines] = [h("div"), h("div"), h("div"), h("div")];
    const charts = [
      new Chart("Live connections", [{ title: "live", colour: "--series-0", pick: (point) => point.live }], count, true),
      new Chart(
        "Connections per second",
        [
          { title: "opened", colour: "--series-0", pick: (point) => point.opened },
          { title: "refused", colour: "--series-1", dash: [5, 3], pick: (point) => point.refused },
        ],
        rate,
      ),
      new Chart(
        "Bytes per second",
        [
          { title: "up", colour: "--series-0", pick: (point) => point.up },
          { title: "down", colour: "--series-1", dash: [5, 3], pick: (point) => point.down },
        ],
        (value) => `${bytes(value)}/s`,
      ),
    ];
    place.append(head, tiles, h("div", { class: "charts" }, ...charts.map((chart) => chart.element)), trouble, lines);
    return {
      update() {
        const { status } = app;
        if (!status) return;
        fill(head, process(status));
        fill(tiles, numbers(status));
        fill(trouble, attention(status));
        fill(lines, commands(app, status));
        charts.forEach((chart) => chart.show(app.history.of("process")));
      },
      close: () => charts.forEach((chart) => chart.close()),
    };
  },
};

function process(status: Status): HTMLElement {
  const { config } = status;
  const fact = (name: string, value: Node | string) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
  return h(
    "dl",
    { class: "facts" },
    fact("Phase", mark(...phaseWord(status.phase))),
    fact("Up", span(status.uptime_seconds)),
    fact("Process", `${status.pid}, ${status.workers} workers`),
    fact("Configuration", `version ${config.version} (table ${config.table_version}), ${config.cause} at ${when(config.at)}`),
    fact("File", h("code", {}, config.file)),
    fact("Kernel", status.kernel),
    fact("Log filter", h("code", {}, status.log_filter)),
  );
}

function numbers(status: Status): HTMLElement {
  const backends = status.pools.flatMap((pool) => pool.backends);
  const up = backends.filter((own) => backendWord(own)[1] === "up").length;
  const tile = (name: string, value: string, more: string) => h("div", {}, h("dt", {}, name), h("dd", {}, h("strong", {}, value), h("span", { class: "quiet" }, more)));
  const { process, last_10s, last_60s } = status;
  return h(
    "dl",
    { class: "tiles" },
    tile("Live connections", count(process.live), `${count(process.opened)} since the start`),
    tile("Opened per second", rate(last_10s.opened_per_second), `${rate(last_60s.opened_per_second)} over 60 s`),
    tile("Refused per second", rate(last_10s.refused_per_second), `${rate(last_60s.refused_per_second)} over 60 s`),
    tile("To backends", `${bytes(last_10s.bytes_up_per_second)}/s`, `${bytes(last_60s.bytes_up_per_second)}/s over 60 s`),
    tile("To clients", `${bytes(last_10s.bytes_down_per_second)}/s`, `${bytes(last_60s.bytes_down_per_second)}/s over 60 s`),
    tile("Backends up", `${count(up)} of ${count(backends.length)}`, `${count(status.frontends.length)} frontends, ${count(status.pools.length)} pools`),
  );
}

/** Lines of one kind of trouble at most. */
const MOST = 20;

function attention(status: Status): HTMLElement {
  const items: HTMLElement[] = [];
  const item = (...parts: (Node | string)[]) => items.push(h("li", {}, ...parts));
  const { refused, pending_restart } = status.config;
  if (refused) {
    item(mark("bad", "refused"), ` configuration of ${refused.cause} at ${when(refused.at)}; version ${status.config.version} goes on`, h("pre", { tabindex: 0 }, refused.errors.join("\n")));
  }
  pending_restart.forEach((text) => item(mark("warn", "waits for the next start"), ` ${text}`));
  for (const own of status.frontends.filter((one) => one.listening.length === 0)) item(mark(...frontendWord(own)), ` frontend ${own.name}`);
  const off = status.pools.flatMap((pool) => pool.backends.filter((own) => backendWord(own)[1] !== "up").map((own) => ({ pool, own })));
  for (const { pool, own } of off.slice(0, MOST)) item(mark(...backendWord(own)), ` ${pool.name}/${own.name}: ${own.why}`);
  if (off.length > MOST) item(`and ${off.length - MOST} more backends that are not up`);
  for (const own of status.frontends.slice(0, MOST)) {
    for (const [reason, times] of Object.entries(own.refused)) item(mark("warn", `${count(times)} refused`), ` frontend ${own.name}: ${words(reason)}`);
  }
  for (const own of status.frontends.filter((one) => one.plane === "proxy" && one.plane_why !== "").slice(0, MOST)) item(mark("warn", "not in the kernel"), ` frontend ${own.name}: ${own.plane_why}`);
  for (const [reason, times] of Object.entries(status.forward?.dropped ?? {})) item(mark("warn", `${count(times)} packets dropped`), ` forward plane: ${words(reason)}`);
  const lost = status.process.events_dropped + status.journal_dropped;
  if (lost > 0) item(mark("warn", `${count(lost)} lost`), " events, access records or journal lines");
  if (status.process.accept_pauses > 0) item(mark("warn", `${count(status.process.accept_pauses)} pauses`), " of accepting, for want of descriptors or memory");
  return h("section", { "aria-labelledby": "attention" }, h("h2", { id: "attention" }, "Needs a look"), items.length > 0 ? h("ul", { class: "plain" }, ...items) : h("p", { class: "quiet" }, "Nothing: every backend is up and nothing was refused."));
}

function commands(app: App, status: Status): HTMLElement {
  return h(
    "section",
    { "aria-labelledby": "commands" },
    h("h2", { id: "commands" }, "From the command line"),
    command(app.line("status", "--watch"), "shows this in a terminal"),
    command(app.line("reload"), "reads the configuration file again and tells the outcome"),
    command(app.line("log-level", "debug"), "logs more, until the next start"),
    command(app.line("dump", "--output", "lemonade.json"), "writes everything at one moment, for a bug report"),
    command(`kill -TERM ${status.pid}`, "stops: live connections get their time to finish"),
  );
}
