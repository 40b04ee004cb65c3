// Command lines to copy: this page changes nothing, they do.

import { h } from "./dom.ts";

/** A command line with what it does. */
export function command(line: string, does: string): HTMLElement {
  const said = h("span", { class: "quiet", role: "status", "data-own": true });
  const code = h("code", {}, line);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(code.textContent ?? "");
      said.textContent = "copied";
    } catch {
      said.textContent = "select the line and copy it";
    }
    setTimeout(() => (said.textContent = ""), 3000);
  };
  return h(
    "div",
    { class: "command" },
    code,
    h("button", { type: "button", "aria-label": `Copy ${line}`, click: () => void copy() }, "Copy"),
    h("p", { class: "quiet" }, does, " ", said),
  );
}

/** A word as a shell takes it. */
export function quoted(word: string): string {
  return /^[\w./:@%+=,-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
