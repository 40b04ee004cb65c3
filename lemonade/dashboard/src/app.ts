// What all views share: the newest status and its history.

import type { Config, Status } from "./api.ts";
import { quoted } from "./command.ts";
import { History } from "./history.ts";

export class App {
  readonly history = new History();
  status: Status | null = null;
  config: Config | null = null;

  /** The configuration file, for a command line. */
  get file(): string {
    return quoted(this.status?.config.file ?? "lemonade.toml");
  }

  /** A `lemonade` command line that asks this instance. */
  line(...words: string[]): string {
    const socket = this.config?.config["admin"]?.["socket"];
    const other = typeof socket === "string" && socket !== "auto" ? ["--admin", socket] : [];
    return ["lemonade", ...words, ...other].map(quoted).join(" ");
  }
}

/** A view that is being shown. */
export interface Shown {
  /** Draws the newest status. */
  update(): void;
  /** Stops what moves by itself, or goes on. */
  hold?(held: boolean): void;
  /** Lets go of what outlives its elements. */
  close?(): void;
}

export interface View {
  /** Its part of the address, after `#/`. */
  id: string;
  title: string;
  show(place: HTMLElement, app: App): Shown;
}
