import { read, type Entry } from "../api.ts";
import type { View } from "../app.ts";
import { command } from "../command.ts";
import { h } from "../dom.ts";
import { choice, field } from "../form.ts";
import { when } from "../format.ts";
import { mark } from "../mark.ts";
import { Table } from "../table.ts";

/** Lines asked for. */
const LIMIT = 200;

/** Readings of the status between two readings of the journal, which is in files. */
const EVERY = 5;

export const journal: View = {
  id: "journal",
  title: "Journal",
  show(place, app) {
    const asked = { limit: String(LIMIT), what: "", filter: "" };
    const note = h("p", { role: "alert" });
    const lines = h("div");
    let turn = 0;
    let version: number | undefined;
    let closed = false;
    const table = new Table<Entry & { number: number }>({
      caption: "Journal, newest first",
      empty: "No such line.",
      key: (entry) => `${entry.time} ${entry.number}`,
      columns: [
        { title: "Time", cell: (entry) => when(entry.time) },
        { title: "What", cell: (entry) => entry.what },
        { title: "Who", cell: (entry) => (typeof entry.uid === "number" ? `${entry.who} (user ${entry.uid})` : entry.who) },
        { title: "Change", cell: (entry) => h("ul", { class: "plain wide" }, ...entry.diff.map((line) => h("li", {}, line))) },
        { title: "Result", cell: (entry) => (entry.result === "accepted" ? mark("good", "accepted") : h("span", { class: "wide" }, mark("bad", "refused"), ` ${entry.result}`)) },
        { title: "Version after it", numeric: true, cell: (entry) => String(entry.version) },
      ],
    });
    const ask = async () => {
      const query = new URLSearchParams(Object.entries(asked).filter(([, value]) => value !== ""));
      try {
        const { entries } = await read<{ entries: Entry[] }>(`api/v1/journal?${query}`);
        if (closed) return;
        // Lines of one moment are told apart by their place among those.
        const seen = new Map<string, number>();
        const numbered = entries.map((entry) => {
          const number = (seen.get(entry.time) ?? 0) + 1;
          seen.set(entry.time, number);
          return { ...entry, number };
        });
        table.update(numbered.reverse());
        if (note.textContent !== "") note.textContent = "";
      } catch (error) {
        note.textContent = `The journal could not be read: ${String(error)}`;
      }
    };
    const tell = () => {
      const more = [...(asked.what === "" ? [] : ["--what", asked.what]), ...(asked.filter === "" ? [] : ["--filter", asked.filter])];
      lines.replaceChildren(command(app.line("history", ...more), "shows it in a terminal"));
    };
    const change = (name: keyof typeof asked) => (value: string) => {
      asked[name] = value;
      tell();
      void ask();
    };
    place.append(
      field("Filter", "search", change("filter")),
      choice("What", [["", "all"], ["config", "configuration"], ["health", "health"], ["admin", "changes by command"]], change("what")),
      note,
      table.element,
      lines,
    );
    tell();
    return {
      update: () => {
        const changed = version !== app.status?.config.table_version;
        version = app.status?.config.table_version;
        if (changed || turn % EVERY === 0) void ask();
        turn += 1;
      },
      close: () => (closed = true),
    };
  },
};
