// States by shape and word; colour only repeats them.

import type { Backend, Frontend, Line } from "./api.ts";
import { h } from "./dom.ts";

type Tone = "good" | "warn" | "bad" | "idle";

const SHAPES: Record<Tone, string> = { good: "●", warn: "◆", bad: "▼", idle: "○" };

export function mark(tone: Tone, word: string): HTMLElement {
  return h("span", { class: `mark ${tone}` }, h("span", { "aria-hidden": "true" }, SHAPES[tone]), ` ${word}`);
}

export function backendWord(own: Backend): [Tone, string] {
  if (!own.enabled) return ["idle", "disabled"];
  if (own.status === "down") return ["bad", "down"];
  if (own.weight === 0) return ["warn", "draining"];
  return ["good", "up"];
}

export function frontendWord(own: Frontend): [Tone, string] {
  return own.listening.length > 0 ? ["good", "accepting"] : ["bad", "closed"];
}

export function phaseWord(phase: string): [Tone, string] {
  const name = phase.toLowerCase().replaceAll("_", " ");
  return [name === "running" ? "good" : name === "starting" ? "idle" : "warn", name];
}

export function verdictWord(verdict: Line["verdict"]): [Tone, string] {
  if (verdict === "pass") return ["good", "pass"];
  return verdict === "fail" ? ["bad", "fail"] : ["idle", "not possible"];
}
