import type { Backend } from "../api.ts";
import type { App, View } from "../app.ts";
import { command } from "../command.ts";
import { h } from "../dom.ts";
import { count, millis, when } from "../format.ts";
import { backendKey } from "../history.ts";
import { backendWord, mark } from "../mark.ts";
import { spark } from "../spark.ts";
import { Table } from "../table.ts";

interface Row {
  pool: string;
  own: Backend;
}

export const backends: View = {
  id: "backends",
  title: "Backends",
  show(place, app) {
    const table = new Table<Row>({
      caption: "Backends",
      empty: "The configuration has no backend.",
      key: ({ pool, own }) => `${pool}/${own.name} ${own.address}`,
      text: ({ pool, own }) => `${pool} ${own.name} ${own.address} ${backendWord(own)[1]}`,
      columns: [
        { title: "Backend", cell: ({ own }) => own.name, sort: ({ own }) => own.name },
        { title: "Pool", cell: ({ pool }) => pool, sort: ({ pool }) => pool },
        { title: "State", cell: ({ own }) => mark(...backendWord(own)), sort: ({ own }) => backendWord(own)[1] },
        { title: "Address", cell: ({ own }) => own.address, sort: ({ own }) => own.address },
        { title: "Weight", numeric: true, cell: ({ own }) => count(own.weight), sort: ({ own }) => own.weight },
        { title: "Live", numeric: true, cell: ({ own }) => count(own.live), sort: ({ own }) => own.live },
        { title: "Picks", numeric: true, cell: ({ own }) => count(own.picks), sort: ({ own }) => own.picks },
        { title: "Picks/s, last minute", cell: ({ pool, own }) => spark(app.history.of(backendKey(pool, own)).map((point) => point.opened), `Picks per second of ${own.name}`) },
        { title: "Failed", numeric: true, cell: ({ own }) => count(own.failures), sort: ({ own }) => own.failures },
        { title: "Connect", numeric: true, cell: ({ own }) => millis(own.connect_ms), sort: ({ own }) => own.connect_ms ?? -1 },
        { title: "First byte", numeric: true, cell: ({ own }) => millis(own.first_byte_ms), sort: ({ own }) => own.first_byte_ms ?? -1 },
      ],
      detail: (row) => detail(app, row),
    });
    place.append(table.element);
    return {
      update: () => table.update((app.status?.pools ?? []).flatMap((pool) => pool.backends.map((own) => ({ pool: pool.name, own })))),
    };
  },
};

function detail(app: App, { pool, own }: Row): HTMLElement {
  const { tcp } = own;
  return h(
    "div",
    {},
    h("p", {}, mark(...backendWord(own)), ` ${own.why}`, own.since !== null && `, since ${when(own.since)}`),
    own.changed !== null && h("p", {}, mark("warn", "changed"), ` from the command line: ${own.changed}`),
    h("p", {}, `${count(own.connecting)} connecting, ${count(own.resets)} reset by it. `, tcp !== null && `TCP: round trip ${millis(tcp.srtt_us / 1e3)}, handshake ${millis(tcp.connect_us / 1e3)}, ${count(tcp.retransmits)} sent again, ${count(tcp.closes)} closed, ${count(tcp.resets)} reset.`),
    h("ul", { class: "plain" }, ...own.outcomes.map((one) => h("li", {}, mark(one.ok ? "good" : "bad", one.ok ? "good" : "failed"), ` ${when(one.at)} ${one.detail}, ${millis(one.took_ms)}`))),
    ...steps(app, `${pool}/${own.name}`, own),
  );
}

/** What may be done with a backend in the state that it is in; a reload of a changed file undoes it. */
function steps(app: App, name: string, own: Backend): HTMLElement[] {
  const [, word] = backendWord(own);
  const takes = word === "up" || word === "down";
  return [
    takes && command(app.line("backend", "drain", name), "no new connections; those that exist go on"),
    own.enabled && command(app.line("backend", "disable", name), "no new connections and no probes"),
    !takes && command(app.line("backend", "enable", name), "new connections again"),
    command(app.line("backend", "weight", name, "2"), "another share of connections"),
    command(app.line("connections", "--backend", name), "lists its connections"),
    command(app.line("trace", "--backend", name), "shows what happens to it"),
  ].filter((step) => step !== false);
}
