import type { Frontend } from "../api.ts";
import type { View } from "../app.ts";
import { command } from "../command.ts";
import { h } from "../dom.ts";
import { bytes, count, rate, words } from "../format.ts";
import { frontendWord, mark } from "../mark.ts";
import { spark } from "../spark.ts";
import { Table } from "../table.ts";

export const frontends: View = {
  id: "frontends",
  title: "Frontends",
  show(place, app) {
    const points = (own: Frontend) => app.history.of(`frontend ${own.name}`);
    const addresses = (own: Frontend) => (own.listening.length > 0 ? own.listening : own.configured);
    const refused = (own: Frontend) => Object.values(own.refused).reduce((all, one) => all + one, 0);
    const table = new Table<Frontend>({
      caption: "Frontends",
      empty: "The configuration has no frontend.",
      key: (own) => own.name,
      text: (own) => [own.name, own.pool, own.relay, own.plane, ...addresses(own)].join(" "),
      columns: [
        { title: "Frontend", cell: (own) => own.name, sort: (own) => own.name },
        { title: "State", cell: (own) => mark(...frontendWord(own)), sort: (own) => frontendWord(own)[1] },
        { title: "Address", cell: (own) => short(addresses(own)), sort: (own) => addresses(own)[0] ?? "" },
        { title: "Pool", cell: (own) => own.pool, sort: (own) => own.pool },
        { title: "Plane / relay", cell: (own) => `${own.plane} / ${own.relay}`, sort: (own) => `${own.plane} ${own.relay}` },
        { title: "Live", numeric: true, cell: (own) => count(own.live), sort: (own) => own.live },
        { title: "Opened/s", numeric: true, cell: (own) => rate(own.last_10s?.opened_per_second), sort: (own) => own.last_10s?.opened_per_second ?? -1 },
        { title: "Last minute", cell: (own) => spark(points(own).map((point) => point.opened), `Connections per second of ${own.name}`) },
        { title: "Refused", numeric: true, cell: (own) => count(refused(own)), sort: refused },
        { title: "Up", numeric: true, cell: (own) => bytes(own.bytes_up), sort: (own) => own.bytes_up },
        { title: "Down", numeric: true, cell: (own) => bytes(own.bytes_down), sort: (own) => own.bytes_down },
      ],
      detail: (own) =>
        h(
          "div",
          {},
          h("p", {}, `Relay ${own.relay}: ${own.relay_why}.`),
          h("p", {}, "Addresses: ", addresses(own).join(", ") || "none", own.listening.length === 0 && " (closed)"),
          h("p", {}, `${count(own.opened)} opened, ${count(own.closed)} closed. `, Object.entries(own.refused).map(([reason, times]) => `${count(times)} refused: ${words(reason)}`).join("; ")),
          command(app.line("connections", "--frontend", own.name), "lists its connections"),
          command(app.line("trace", "--frontend", own.name), "shows its decisions, refusals and ends"),
          command(`lemonade doctor --config ${app.file}`, "says which plane and relay each frontend gets, and what would change that"),
        ),
    });
    place.append(table.element);
    return { update: () => table.update(app.status?.frontends ?? []) };
  },
};

function short(addresses: string[]): string {
  const [first, ...more] = addresses;
  if (first === undefined) return "none";
  return more.length > 0 ? `${first} +${more.length}` : first;
}
