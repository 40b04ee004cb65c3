// A table that is sorted by its headers, filtered by a text, and updated in place.

import { fill, h, type Child } from "./dom.ts";

export interface Column<R> {
  title: string;
  numeric?: boolean;
  cell(row: R): Child;
  /** Makes the column sortable. */
  sort?(row: R): number | string;
}

export interface Options<R> {
  caption: string;
  columns: Column<R>[];
  key(row: R): string;
  /** Text that the filter looks in; without it there is no filter. */
  text?(row: R): string;
  /** What a row opens to. */
  detail?(row: R): Node;
  empty: string;
}

/** Rows drawn at most; the filter finds the others. */
const MOST = 200;

interface Drawn {
  row: HTMLTableRowElement;
  cells: HTMLTableCellElement[];
  detail: HTMLTableRowElement | null;
}

let made = 0;

export class Table<R> {
  readonly element: HTMLElement;
  private readonly body = h("tbody");
  private readonly note = h("p", { class: "quiet", role: "status" });
  private readonly headers: HTMLTableCellElement[];
  private readonly drawn = new Map<string, Drawn>();
  private readonly open = new Set<string>();
  private readonly id = `table-${++made}`;
  private rows: readonly R[] = [];
  private order: { column: number; falling: boolean } | null = null;
  private wanted = "";

  constructor(private readonly options: Options<R>) {
    const { columns, caption } = options;
    this.headers = columns.map((column, number) => this.header(column, number));
    const table = h("table", {}, h("caption", { class: "unseen" }, caption), h("thead", {}, h("tr", {}, ...this.headers)), this.body);
    // It scrolls where it is wide, and what scrolls must be reachable by keyboard.
    const frame = h("div", { class: "frame", tabindex: 0, role: "region", "aria-label": caption }, table);
    this.element = h("div", { class: "tabular" }, options.text && this.filter(), frame, this.note);
  }

  update(rows: readonly R[]): void {
    this.rows = rows;
    this.draw();
  }

  private header(column: Column<R>, number: number): HTMLTableCellElement {
    const numeric = column.numeric ? "number" : undefined;
    if (!column.sort) return h("th", { scope: "col", class: numeric }, column.title);
    const sort = () => {
      const falling = this.order?.column === number ? !this.order.falling : column.numeric === true;
      this.order = { column: number, falling };
      this.headers.forEach((header, at) => {
        if (at === number) header.setAttribute("aria-sort", falling ? "descending" : "ascending");
        else header.removeAttribute("aria-sort");
      });
      this.draw();
    };
    return h("th", { scope: "col", class: numeric }, h("button", { type: "button", click: sort }, column.title));
  }

  private filter(): HTMLElement {
    const listen = (event: Event) => {
      this.wanted = (event.target as HTMLInputElement).value.toLowerCase();
      this.draw();
    };
    return h("label", { class: "filter" }, "Filter ", h("input", { type: "search", autocomplete: "off", spellcheck: "false", input: listen }));
  }

  private chosen(): R[] {
    const { text, columns } = this.options;
    const words = this.wanted.split(/\s+/).filter((word) => word !== "");
    const rows = this.rows.filter((row) => {
      const own = text?.(row).toLowerCase() ?? "";
      return words.every((word) => own.includes(word));
    });
    const sort = this.order && columns[this.order.column]?.sort;
    if (this.order && sort) {
      const sign = this.order.falling ? -1 : 1;
      rows.sort((a, b) => {
        const [left, right] = [sort(a), sort(b)];
        return sign * (typeof left === "number" && typeof right === "number" ? left - right : String(left).localeCompare(String(right), "en", { numeric: true }));
      });
    }
    return rows;
  }

  private draw(): void {
    const chosen = this.chosen();
    const shown = chosen.slice(0, MOST);
    const wanted: Node[] = [];
    const keys = new Set<string>();
    for (const row of shown) {
      const key = this.options.key(row);
      keys.add(key);
      const own = this.drawn.get(key) ?? this.begin(key);
      this.options.columns.forEach((column, number) => {
        const cell = own.cells[number];
        if (cell) fill(number === 0 && cell.lastElementChild?.className === "lead" ? cell.lastElementChild : cell, column.cell(row));
      });
      wanted.push(own.row);
      if (own.detail && this.options.detail) {
        fill(own.detail.cells[0] as Element, this.options.detail(row));
        wanted.push(own.detail);
      }
    }
    for (const key of this.drawn.keys()) if (!keys.has(key)) this.drawn.delete(key);
    // Only what has to move is moved: moving takes the focus away.
    wanted.forEach((node, at) => {
      if (this.body.childNodes[at] !== node) this.body.insertBefore(node, this.body.childNodes[at] ?? null);
    });
    while (this.body.childNodes.length > wanted.length) this.body.lastChild?.remove();
    const { length } = chosen;
    const note = this.rows.length === 0 ? this.options.empty : length === 0 ? "Nothing matches the filter." : length > MOST ? `${MOST} of ${length} rows are shown; filter to see the others.` : "";
    if (this.note.textContent !== note) this.note.textContent = note;
  }

  private begin(key: string): Drawn {
    const cells = this.options.columns.map((column, number) =>
      number === 0 ? h("th", { scope: "row" }) : h("td", { class: column.numeric ? "number" : undefined }),
    );
    const own: Drawn = { row: h("tr", {}, ...cells), cells, detail: null };
    if (this.options.detail) {
      const id = `${this.id}-${encodeURIComponent(key)}`;
      const lead = h("span", { class: "lead" });
      const button: HTMLButtonElement = h("button", { type: "button", class: "opener", "aria-label": `Details of ${key}`, "aria-expanded": "false", "aria-controls": id });
      button.addEventListener("click", () => {
        const opens = !this.open.has(key);
        if (opens) this.open.add(key);
        else this.open.delete(key);
        this.unfold(own, id, button, opens);
        this.draw();
      });
      cells[0]?.append(button, lead);
      this.unfold(own, id, button, this.open.has(key));
    }
    this.drawn.set(key, own);
    return own;
  }

  private unfold(own: Drawn, id: string, button: HTMLButtonElement, opens: boolean): void {
    button.setAttribute("aria-expanded", String(opens));
    own.detail?.remove();
    own.detail = opens ? h("tr", { id, class: "detail" }, h("td", { colspan: this.options.columns.length })) : null;
  }
}
