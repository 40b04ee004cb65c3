// Fields with their labels.

import { h } from "./dom.ts";

/** A text that somebody writes; told when they have paused for a moment. */
export function field(label: string, type: "search" | "text", change: (value: string) => void): HTMLElement {
  let wait: ReturnType<typeof setTimeout> | undefined;
  const input = (event: Event) => {
    clearTimeout(wait);
    wait = setTimeout(() => change((event.target as HTMLInputElement).value.trim()), 250);
  };
  return h("label", { class: "filter" }, `${label} `, h("input", { type, autocomplete: "off", spellcheck: "false", input }));
}

/** One of several values, each with its words. */
export function choice(label: string, options: [string, string][], change: (value: string) => void): HTMLElement {
  const select = h("select", { change: (event) => change((event.target as HTMLSelectElement).value) }, ...options.map(([value, text]) => h("option", { value }, text)));
  return h("label", { class: "filter" }, `${label} `, select);
}
