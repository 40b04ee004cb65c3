import type { Pool } from "../api.ts";
import type { View } from "../app.ts";
import { command } from "../command.ts";
import { h } from "../dom.ts";
import { count } from "../format.ts";
import { backendWord, mark } from "../mark.ts";
import { Table } from "../table.ts";

export const pools: View = {
  id: "pools",
  title: "Pools",
  show(place, app) {
    const up = (pool: Pool) => pool.backends.filter((own) => backendWord(own)[1] === "up").length;
    const live = (pool: Pool) => pool.backends.reduce((all, own) => all + own.live, 0);
    const state = (pool: Pool) => {
      const [some, all] = [up(pool), pool.backends.length];
      return some === all ? mark("good", "all up") : some > 0 ? mark("warn", "in part") : mark("bad", "none up");
    };
    const users = (pool: Pool) => (app.status?.frontends ?? []).filter((own) => own.pool === pool.name).map((own) => own.name);
    const table = new Table<Pool>({
      caption: "Pools",
      empty: "The configuration has no pool.",
      key: (pool) => pool.name,
      text: (pool) => `${pool.name} ${pool.strategy} ${users(pool).join(" ")}`,
      columns: [
        { title: "Pool", cell: (pool) => pool.name, sort: (pool) => pool.name },
        { title: "State", cell: state, sort: (pool) => up(pool) / Math.max(1, pool.backends.length) },
        { title: "Strategy", cell: (pool) => pool.strategy, sort: (pool) => pool.strategy },
        { title: "Frontends", cell: (pool) => users(pool).join(", ") || "none" },
        { title: "Up", numeric: true, cell: (pool) => `${count(up(pool))} of ${count(pool.backends.length)}`, sort: up },
        { title: "Live", numeric: true, cell: (pool) => count(live(pool)), sort: live },
        { title: "Waiting", numeric: true, cell: (pool) => count(pool.queued), sort: (pool) => pool.queued },
        { title: "Retries", numeric: true, cell: (pool) => count(pool.retries), sort: (pool) => pool.retries },
        { title: "Hedges", numeric: true, cell: (pool) => count(pool.hedges), sort: (pool) => pool.hedges },
        { title: "Over budget", numeric: true, cell: (pool) => count(pool.budget_exhausted), sort: (pool) => pool.budget_exhausted },
      ],
      detail: (pool) =>
        h(
          "div",
          {},
          h("p", {}, "Backends: ", pool.backends.slice(0, 50).map((own) => `${own.name} (${backendWord(own)[1]})`).join(", "), pool.backends.length > 50 && " and more"),
          command(`lemonade check ${app.file}`, `tests the file after you changed [pool.${pool.name}] in it; saving it applies it`),
        ),
    });
    place.append(table.element);
    return { update: () => table.update(app.status?.pools ?? []) };
  },
};
