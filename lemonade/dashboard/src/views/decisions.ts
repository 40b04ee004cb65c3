import type { Connection } from "../api.ts";
import type { View } from "../app.ts";
import { command } from "../command.ts";
import { h } from "../dom.ts";
import { choice, field } from "../form.ts";
import { bytes, count, when, words } from "../format.ts";
import { mark } from "../mark.ts";
import { Table } from "../table.ts";
import { story } from "./connections.ts";

/** Events a second at most: more than anybody reads. */
const RATE = 50;

/** Rows kept. */
const KEPT = 200;

/** Time between two drawings, in milliseconds. */
const DRAWN = 250;

const KINDS = ["decision", "refusal", "end"] as const;

interface Told {
  number: number;
  kind: (typeof KINDS)[number];
  at: Date;
  own: Connection;
}

export const decisions: View = {
  id: "decisions",
  title: "Decisions",
  show(place, app) {
    const asked = { kind: "", frontend: "", client: "" };
    const note = h("p", { role: "status", class: "quiet" });
    const lines = h("div");
    let stream: EventSource | null = null;
    let told: Told[] = [];
    let number = 0;
    let lost = 0;
    let fresh = true;
    let isHeld = false;
    const table = new Table<Told>({
      caption: "Decisions, refusals and ends, newest first",
      empty: "Nothing yet.",
      key: (row) => `${row.number}`,
      columns: [
        { title: "Time", cell: (row) => when(row.at.toISOString()) },
        { title: "What", cell: kind },
        { title: "Number", numeric: true, cell: (row) => String(row.own.id) },
        { title: "Client", cell: (row) => row.own.client },
        { title: "Frontend", cell: (row) => row.own.frontend },
        { title: "Backend", cell: (row) => (row.own.route ? `${row.own.pool}/${row.own.route.backend}` : "none") },
        { title: "Why", cell: why },
      ],
    });
    const say = (text: string) => {
      if (note.textContent !== text) note.textContent = text;
    };
    const close = () => {
      stream?.close();
      stream = null;
    };
    const open = () => {
      close();
      const query = new URLSearchParams({ rate: String(RATE) });
      for (const [name, value] of Object.entries(asked)) if (value !== "") query.set(name, value);
      const options = [...query].filter(([name]) => name !== "rate").flatMap(([name, value]) => [`--${name}`, value]);
      lines.replaceChildren(command(app.line("trace", ...options), "shows them in a terminal"));
      if (isHeld) return say("Paused.");
      const source = new EventSource(`api/v1/events?${query}`);
      stream = source;
      source.addEventListener("open", () => say("Listening."));
      source.addEventListener("error", () => say(source.readyState === EventSource.CLOSED ? "The stream was refused: too many readers, or a client address that is none." : "The stream broke off; trying again."));
      source.addEventListener("lost", (event) => {
        lost += (JSON.parse((event as MessageEvent<string>).data) as { lost: number }).lost;
        say(`Listening; ${count(lost)} more happened than are shown (at most ${RATE} a second).`);
      });
      for (const name of KINDS) {
        source.addEventListener(name, (event) => {
          number += 1;
          told.unshift({ number, kind: name, at: new Date(), own: JSON.parse((event as MessageEvent<string>).data) as Connection });
          told = told.slice(0, KEPT);
          fresh = true;
        });
      }
    };
    const draw = setInterval(() => {
      if (fresh && !isHeld) table.update(told);
      fresh = false;
    }, DRAWN);
    const change = (name: keyof typeof asked) => (value: string) => {
      asked[name] = value;
      told = [];
      lost = 0;
      fresh = true;
      open();
    };
    const names = (app.status?.frontends ?? []).map((own): [string, string] => [own.name, own.name]);
    place.append(
      choice("Kind", [["", "all"], ["decision", "decisions"], ["refusal", "refusals"], ["end", "ends"]], change("kind")),
      choice("Frontend", [["", "all"], ...names], change("frontend")),
      field("Client address", "search", change("client")),
      note,
      table.element,
      lines,
    );
    return {
      update: () => undefined,
      hold: (held) => {
        if (isHeld === held && stream !== null) return;
        isHeld = held;
        open();
      },
      close: () => {
        close();
        clearInterval(draw);
      },
    };
  },
};

function kind({ kind: name, own }: Told): HTMLElement {
  if (name === "decision") return mark("good", "decision");
  if (name === "refusal") return mark("bad", "refusal");
  return own.end === "closed" ? mark("idle", "end") : mark("warn", "end");
}

function why({ kind: name, own }: Told): HTMLElement {
  if (name === "decision") return h("span", { class: "wide" }, story(own));
  const amount = name === "end" ? `, ${bytes(own.bytes_up)} up, ${bytes(own.bytes_down)} down` : "";
  return h("span", { class: "wide" }, `${own.end_why ?? words(own.end ?? "")}${amount}`);
}
