// What the admin interface answers; docs/guide/metrics.md describes each field.

export interface Rates {
  opened_per_second: number;
  refused_per_second: number;
  bytes_up_per_second: number;
  bytes_down_per_second: number;
}

export interface Frontend {
  name: string;
  configured: string[];
  listening: string[];
  plane: string;
  plane_why: string;
  relay: string;
  relay_why: string;
  pool: string;
  live: number;
  opened: number;
  closed: number;
  bytes_up: number;
  bytes_down: number;
  refused: Record<string, number>;
  last_10s: Rates | null;
  last_60s: Rates | null;
}

export interface Outcome {
  at: string;
  ok: boolean;
  detail: string;
  took_ms: number;
}

export interface Backend {
  name: string;
  address: string;
  status: "up" | "down";
  why: string;
  since: string | null;
  weight: number;
  enabled: boolean;
  /** What was changed at run time, in words. */
  changed: string | null;
  live: number;
  connecting: number;
  picks: number;
  failures: number;
  resets: number;
  connect_ms: number | null;
  first_byte_ms: number | null;
  tcp: { srtt_us: number; connect_us: number; retransmits: number; closes: number; resets: number } | null;
  outcomes: Outcome[];
}

export interface Pool {
  name: string;
  strategy: string;
  queued: number;
  retries: number;
  hedges: number;
  budget_exhausted: number;
  backends: Backend[];
}

export interface Status {
  version: string;
  pid: number;
  uptime_seconds: number;
  phase: string;
  workers: number;
  log_filter: string;
  kernel: string;
  config: {
    file: string;
    version: number;
    table_version: number;
    at: string;
    cause: string;
    refused: { at: string; cause: string; errors: string[] } | null;
    pending_restart: string[];
  };
  process: {
    live: number;
    opened: number;
    closed: number;
    accept_pauses: number;
    events_dropped: number;
    telemetry_dropped: number;
    telemetry_failures: number;
    health_transitions: number;
    probes: number;
    reloads_accepted: number;
    reloads_refused: number;
  };
  last_10s: Rates;
  last_60s: Rates;
  journal_dropped: number;
  forward: { words: string; live: number; opened: number; entries: number; room: number; packets: Record<string, number>; dropped: Record<string, number> } | null;
  frontends: Frontend[];
  pools: Pool[];
}

export interface Connection {
  id: number;
  state: "connecting" | "established" | "ended";
  frontend: string;
  pool: string;
  client: string;
  local: string;
  plane: string;
  relay: string;
  started: string;
  age_seconds: number;
  idle_seconds: number;
  bytes_up: number;
  bytes_down: number;
  route: {
    backend: string;
    address: string;
    strategy: string;
    why: string;
    candidates: number;
    attempts: number;
    hedged: boolean;
    table_version: number;
    connect_ms: number;
  } | null;
  end: string | null;
  end_why: string | null;
}

export interface Connections {
  total: number;
  matching: number;
  connections: Connection[];
}

export interface Entry {
  time: string;
  version: number;
  who: string;
  uid?: number | null;
  what: "config" | "health" | "admin";
  diff: string[];
  result: string;
}

interface Sample {
  live: number;
  opened: number;
  refused: number;
  bytes_up: number;
  bytes_down: number;
}

export interface Series {
  at: string;
  process: Sample[];
  frontends: { name: string; samples: Sample[] }[];
  backends: { pool: string; name: string; address: string; samples: { live: number; picks: number; failures: number }[] }[];
}

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

export interface Config {
  file: string;
  version: number;
  config: { [section: string]: { [key: string]: Json } };
}

export interface Line {
  name: string;
  verdict: "pass" | "fail" | "not_possible";
  detail: string;
  cure: string;
}

export interface Doctor {
  version: string;
  sections: { name: string; lines: Line[] }[];
  configuration: {
    file: string;
    runs_as_asked: boolean;
    lines: Line[];
    frontends: { frontend: string; asked: string; data_plane: string; relay: string; why: string; change: string }[];
  } | null;
}

/** Reads one answer; the error says what to do. */
export async function read<T>(path: string): Promise<T> {
  const answer = await fetch(path, { signal: AbortSignal.timeout(10_000), headers: { accept: "application/json" } });
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${(await answer.text()).trim()}`);
  return (await answer.json()) as T;
}
