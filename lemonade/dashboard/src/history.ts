// What the counters did: what the server remembers, then a point with each reading of the status.

import type { Series, Status } from "./api.ts";

/** Points kept of each series: ten minutes, as the server keeps. */
const KEPT = 600;

/** Most backends whose points are kept. */
const MOST = 2000;

export interface Point {
  /** Seconds since the epoch. */
  at: number;
  live: number;
  opened: number;
  refused: number;
  up: number;
  down: number;
}

type Totals = Omit<Point, "at" | "live">;

export class History {
  private readonly points = new Map<string, Point[]>();
  private readonly totals = new Map<string, Totals & { at: number }>();

  of(key: string): readonly Point[] {
    return this.points.get(key) ?? [];
  }

  private clear(): void {
    this.points.clear();
    this.totals.clear();
  }

  /** Begins with what the server remembers: samples a second apart, the newest last. */
  begin(series: Series): void {
    this.clear();
    const end = new Date(series.at).getTime() / 1000;
    const keep = <S>(key: string, samples: S[], point: (sample: S) => Omit<Point, "at">) => {
      this.points.set(key, samples.map((sample, number) => ({ at: end - (samples.length - 1 - number), ...point(sample) })));
    };
    const traffic = (own: Series["process"][number]) => ({ live: own.live, opened: own.opened, refused: own.refused, up: own.bytes_up, down: own.bytes_down });
    keep("process", series.process, traffic);
    for (const { name, samples } of series.frontends) keep(`frontend ${name}`, samples, traffic);
    for (const own of series.backends) {
      keep(backendKey(own.pool, own), own.samples, ({ live, picks, failures }) => ({ live, opened: picks, refused: failures, up: 0, down: 0 }));
    }
  }

  take(status: Status, at: number): void {
    const sum = (pick: (f: Status["frontends"][number]) => number) => status.frontends.reduce((all, own) => all + pick(own), 0);
    const refused = (own: Status["frontends"][number]) => Object.values(own.refused).reduce((all, one) => all + one, 0);
    this.push("process", at, status.process.live, {
      opened: status.process.opened,
      refused: sum(refused),
      up: sum((own) => own.bytes_up),
      down: sum((own) => own.bytes_down),
    });
    for (const own of status.frontends) {
      this.push(`frontend ${own.name}`, at, own.live, { opened: own.opened, refused: refused(own), up: own.bytes_up, down: own.bytes_down });
    }
    if (status.pools.reduce((all, pool) => all + pool.backends.length, 0) > MOST) return;
    for (const pool of status.pools) {
      for (const own of pool.backends) {
        this.push(backendKey(pool.name, own), at, own.live, { opened: own.picks, refused: own.failures, up: 0, down: 0 });
      }
    }
  }

  /** Counters become rates; one that went back belongs to something new of the same name. */
  private push(key: string, at: number, live: number, now: Totals): void {
    const before = this.totals.get(key);
    this.totals.set(key, { at, ...now });
    if (before === undefined || at <= before.at) return;
    const rate = (name: keyof Totals) => Math.max(0, now[name] - before[name]) / (at - before.at);
    const points = this.points.get(key) ?? [];
    points.push({ at, live, opened: rate("opened"), refused: rate("refused"), up: rate("up"), down: rate("down") });
    if (points.length > KEPT) points.shift();
    this.points.set(key, points);
  }
}

export function backendKey(pool: string, backend: { name: string; address: string }): string {
  return `backend ${pool} ${backend.name} ${backend.address}`;
}
