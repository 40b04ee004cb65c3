import { read, type Connection, type Connections } from "../api.ts";
import type { App, View } from "../app.ts";
import { command } from "../command.ts";
import { choice, field } from "../form.ts";
import { h } from "../dom.ts";
import { bytes, count, millis, span, when, words } from "../format.ts";
import { mark } from "../mark.ts";
import { Table } from "../table.ts";

/** Rows asked for at a time; the filter finds the others. */
const LIMIT = 200;

const ORDERS: [string, string][] = [
  ["-id", "newest first"],
  ["id", "oldest first"],
  ["-bytes", "most bytes first"],
  ["-idle", "longest idle first"],
  ["-connect", "slowest connect first"],
];

export const connections: View = {
  id: "connections",
  title: "Connections",
  show(place, app) {
    const asked = { limit: String(LIMIT), sort: "-id", filter: "", ended: "false" };
    const note = h("p", { role: "status", class: "quiet" });
    const lines = h("div");
    let asking = false;
    let again = false;
    let closed = false;
    const table = new Table<Connection>({
      caption: "Connections",
      empty: "No such connection.",
      key: (own) => String(own.id),
      columns: [
        { title: "Number", cell: (own) => String(own.id) },
        { title: "State", cell: state },
        { title: "Client", cell: (own) => own.client },
        { title: "Frontend", cell: (own) => own.frontend },
        { title: "Backend", cell: (own) => (own.route ? `${own.pool}/${own.route.backend}` : "none") },
        { title: "Plane / relay", cell: (own) => `${own.plane} / ${own.relay}` },
        { title: "Age", numeric: true, cell: (own) => span(own.age_seconds) },
        { title: "Idle", numeric: true, cell: (own) => span(own.idle_seconds) },
        { title: "Up", numeric: true, cell: (own) => bytes(own.bytes_up) },
        { title: "Down", numeric: true, cell: (own) => bytes(own.bytes_down) },
        { title: "Connect", numeric: true, cell: (own) => millis(own.route?.connect_ms) },
      ],
      detail: (own) => detail(app, own),
    });
    const ask = async () => {
      again = asking;
      if (asking) return;
      asking = true;
      try {
        const page = await read<Connections>(`api/v1/connections?${new URLSearchParams(asked)}`);
        if (closed) return;
        table.update(page.connections);
        const kind = asked.ended === "true" ? "remembered" : "live";
        const text = `${count(page.connections.length)} of ${count(page.matching)} that match are shown; ${count(page.total)} are ${kind}.`;
        if (note.textContent !== text) note.textContent = text;
      } catch (error) {
        note.textContent = `The connections could not be read: ${String(error)}`;
      } finally {
        asking = false;
      }
      if (again && !closed) await ask();
    };
    const change = (name: keyof typeof asked) => (value: string) => {
      asked[name] = value;
      tell();
      void ask();
    };
    const tell = () => {
      const more = [...(asked.filter === "" ? [] : ["--filter", asked.filter]), ...(asked.ended === "true" ? ["--ended"] : []), ...(asked.sort === "-id" ? [] : ["--sort", asked.sort])];
      lines.replaceChildren(command(app.line("connections", ...more), "lists them in a terminal"));
    };
    place.append(
      field("Filter", "search", change("filter")),
      choice("Show", [["false", "live"], ["true", "ended"]], change("ended")),
      choice("Order", ORDERS, change("sort")),
      note,
      table.element,
      lines,
    );
    tell();
    return { update: () => void ask(), close: () => (closed = true) };
  },
};

function state(own: Connection): HTMLElement {
  if (own.state === "established") return mark("good", "established");
  if (own.state === "connecting") return mark("idle", "connecting");
  return own.end === "closed" ? mark("idle", "closed") : mark("warn", words(own.end ?? "ended"));
}

/** Why a connection went where it went, and how it ended. */
export function story(own: Connection): string {
  const { route } = own;
  const parts = [];
  if (route) {
    parts.push(`${route.strategy} picked ${own.pool}/${route.backend} (${route.address}) of ${route.candidates} because: ${route.why}`);
    if (route.attempts > 1) parts.push(`${route.attempts} connects were made`);
    if (route.hedged) parts.push("it won the race against a late first connect");
  } else if (own.state !== "ended") {
    parts.push("no backend is connected yet");
  }
  if (own.end_why !== null) parts.push(own.end_why);
  return parts.join("; ");
}

function detail(app: App, own: Connection): HTMLElement {
  return h(
    "div",
    {},
    h("p", {}, `${story(own)}.`),
    h("p", {}, `${own.client} to ${own.local}, accepted ${when(own.started)}`, own.route !== null && `, table version ${own.route.table_version}`),
    command(app.line("why", String(own.id)), "says this in a terminal"),
    command(app.line("trace", "--client", own.client), "shows what happens to this client"),
  );
}
