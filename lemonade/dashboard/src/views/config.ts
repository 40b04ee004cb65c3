import { read, type Json } from "../api.ts";
import type { View } from "../app.ts";
import { command } from "../command.ts";
import { h } from "../dom.ts";
import { mark } from "../mark.ts";
import { choices, resolve, type Schema } from "../schema.ts";

type Keys = { [key: string]: Json };

interface Section {
  title: string;
  keys: Keys;
  schema: Schema;
}

export const config: View = {
  id: "config",
  title: "Configuration",
  show(place, app) {
    const head = h("div");
    const body = h("div", {}, h("p", { role: "status" }, "Reading the configuration…"));
    place.append(head, body);
    let schema: Schema | null = null;
    let drawnVersion = -1;
    let closed = false;
    const draw = () => {
      if (!schema || !app.config || app.config.version === drawnVersion) return;
      drawnVersion = app.config.version;
      const { file, version } = app.config;
      head.replaceChildren(
        h("p", {}, "Version ", h("strong", {}, String(version)), " of ", h("code", {}, file), ", every key with its value and what it means. Keys that differ from their default are marked."),
        command(`lemonade check ${app.file}`, "tests the file before you save it"),
        command("lemonade schema", "prints the JSON Schema, for editors"),
      );
      body.replaceChildren(...drawn(schema, app.config.config));
    };
    read<Schema>("api/v1/schema").then(
      (answer) => {
        schema = answer;
        if (!closed) draw();
      },
      (error: unknown) => !closed && body.replaceChildren(h("p", { role: "alert" }, `The schema could not be read: ${String(error)}`)),
    );
    return { update: draw, close: () => (closed = true) };
  },
};

function drawn(root: Schema, config: { [section: string]: Keys }): Node[] {
  const property = (name: string) => resolve(root, root.properties?.[name]);
  const nodes: Node[] = ["runtime", "admin", "log", "telemetry"].map((name) => folded({ title: `[${name}]`, keys: config[name] ?? {}, schema: property(name) }, root, true));
  for (const kind of ["frontend", "pool"]) {
    const { additionalProperties } = property(kind);
    const schema = resolve(root, typeof additionalProperties === "object" ? additionalProperties : undefined);
    const named = Object.entries(config[kind] ?? {}) as [string, Keys][];
    for (const [name, keys] of named) nodes.push(folded({ title: `[${kind}.${name}]`, keys, schema }, root, named.length <= 3));
  }
  return nodes;
}

/** Its rows are made when it is opened: a file may have thousands of sections. */
function folded(section: Section, root: Schema, open: boolean): HTMLElement {
  const details = h("details", { open }, h("summary", {}, h("h2", {}, section.title)));
  const build = () => {
    if (details.open && details.childElementCount === 1) details.append(...content(section, root));
  };
  details.addEventListener("toggle", build);
  build();
  return details;
}

function content({ title, keys, schema }: Section, root: Schema): Node[] {
  const plain: HTMLElement[] = [];
  const inner: Node[] = [];
  for (const [key, value] of Object.entries(keys)) {
    const own = resolve(root, schema.properties?.[key]);
    const name = title.slice(1, -1);
    if (Array.isArray(value) && own.items) {
      const items = resolve(root, own.items);
      if (items.properties) {
        value.forEach((item, number) => inner.push(folded({ title: `[[${name}.${key}]] ${label(item, number)}`, keys: item as Keys, schema: items }, root, value.length <= 3)));
        continue;
      }
    }
    if (typeof value === "object" && value !== null && !Array.isArray(value)) {
      inner.push(folded({ title: `[${name}.${key}]`, keys: value, schema: own }, root, true));
      continue;
    }
    plain.push(row(key, value, own, root));
  }
  const head = h("thead", {}, h("tr", {}, ...["Key", "Value", "Meaning"].map((text) => h("th", { scope: "col" }, text))));
  const table = h("table", { class: "keys" }, h("caption", { class: "unseen" }, title), head, h("tbody", {}, ...plain));
  return [h("div", { class: "frame", tabindex: 0, role: "region", "aria-label": title }, table), ...inner];
}

function label(item: Json, number: number): string {
  const name = typeof item === "object" && item !== null && !Array.isArray(item) ? (item["name"] ?? item["address"]) : undefined;
  return typeof name === "string" ? name : String(number + 1);
}

function row(key: string, value: Json, schema: Schema, root: Schema): HTMLElement {
  const standard = schema.default;
  const differs = standard !== undefined && JSON.stringify(standard) !== JSON.stringify(value);
  const words = choices(root, schema);
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, h("code", {}, key)),
    h("td", {}, h("code", {}, JSON.stringify(value)), differs && mark("warn", "set")),
    h(
      "td",
      {},
      schema.description,
      differs && h("p", { class: "quiet" }, "Default: ", h("code", {}, JSON.stringify(standard))),
      words.some((choice) => choice.means !== "") && h("ul", { class: "plain quiet" }, ...words.map((choice) => h("li", {}, h("code", {}, choice.word), ` ${choice.means}`))),
    ),
  );
}
