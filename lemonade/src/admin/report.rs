//! The status as a table for people.

use std::time::Duration;

use super::forward::ForwardStatus;
use super::routes::phase_words;
use super::status::{BackendStatus, ConfigStatus, FrontendStatus, PoolStatus, Rates, Status};
use super::table::{
    Column, Group, Look, Row, bytes, count, grouped, latency, line, many, painted, second, table, wrapped,
};
use super::words::clean;
use crate::metrics::snapshot::RelaySnapshot;
use crate::model::config::Status as Up;
use crate::model::relay::{KernelRelay, RelayCounters};

/// Draws `status`, with what TCP tells of each backend where `tcp` asks for it.
pub fn report(status: &Status, tcp: bool, look: Look) -> String {
    let mut out = String::new();
    head(status, look, &mut out);
    out.push('\n');
    table(&FRONTEND, status.frontends.iter().flat_map(frontend_rows).collect(), look, &mut out);
    let relays: Vec<Row> = status.frontends.iter().flat_map(relay_rows).collect();
    if !relays.is_empty() {
        table(&RELAY, relays, look, &mut out);
    }
    out.push('\n');
    grouped(&BACKEND, status.pools.iter().map(pool_group).collect(), look, &mut out);
    if tcp {
        out.push('\n');
        tcp_table(status, look, &mut out);
    }
    for own in &status.removed {
        line(&format!("Removed   {}", clean(&own.words())), look, &mut out);
    }
    out
}

/// The first `height` lines of [`report`]; the last of them says how many there are not, and what might be missed so.
pub fn first_lines(status: &Status, tcp: bool, look: Look, height: usize) -> String {
    let report = report(status, tcp, look);
    let all: Vec<&str> = report.lines().collect();
    if all.len() <= height {
        return all.join("\n");
    }
    let shown = height.saturating_sub(1);
    let left = all.len() - shown;
    let down = status.pools.iter().flat_map(|pool| &pool.backends).filter(|own| own.word() == "DOWN").count();
    let down = match down {
        0 => String::new(),
        1 => ", 1 backend is DOWN".to_owned(),
        down => format!(", {down} backends are DOWN"),
    };
    let said = format!("({left} lines more{down}: `lemonade status` or `top` shows all)");
    all[..shown].iter().copied().chain([said.as_str()]).collect::<Vec<_>>().join("\n")
}

fn head(status: &Status, look: Look, out: &mut String) {
    let mut say = |text: String| line(&text, look, out);
    let up = humantime::format_duration(Duration::from_secs(status.uptime_seconds));
    let phase = phase_words(status.phase);
    let Status { version, pid, log_filter, .. } = status;
    let workers = many(status.workers as u64, "worker", "workers");
    say(format!("Lemonade {version}: {phase}, up {up}, pid {pid}, {workers}, log filter {log_filter}"));
    let ConfigStatus { file, version, table_version, at, cause, .. } = &status.config;
    say(format!("Config    {file}, version {version} (table {table_version}), {cause} at {}", second(at)));
    let warn = |text: &str, out: &mut String| {
        let lines = wrapped(text, look.width, 10);
        lines.into_iter().for_each(|text| out.push_str(&(painted(text, look.colours) + "\n")));
    };
    if let Some(refused) = &status.config.refused {
        let at = second(&refused.at);
        warn(&format!("REFUSED   {} at {at}: still running version {version}", refused.cause), out);
        for error in &refused.errors {
            line(&format!("  {}", clean(error)), look, out);
        }
    }
    for setting in &status.config.pending_restart {
        line(&format!("Waits for the next start: {}", clean(setting)), look, out);
    }
    line(&format!("Kernel    {}", clean(&status.kernel)), look, out);
    for (names, words, usable) in relay_lines(status) {
        let text = format!("Relay     {names}: {words}");
        if usable { line(&text, look, out) } else { warn(&text, out) }
    }
    if let Some(own) = &status.forward {
        line(&format!("Forward   {}", clean(&forward_words(own))), look, out);
    }
    let process = &status.process;
    let traffic =
        format!("Traffic   {} live, {} opened, {} closed", process.live, process.opened, process.closed);
    line(&traffic, look, out);
    line(&format!("  10 s    {}", rates_words(&status.last_10s)), look, out);
    line(&format!("  60 s    {}", rates_words(&status.last_60s)), look, out);
    let lost = process.events_dropped + status.journal_dropped;
    if lost > 0 || process.accept_pauses > 0 {
        let (lost, paused) = (many(lost, "event", "events"), many(process.accept_pauses, "time", "times"));
        warn(&format!("Trouble   {lost} lost, accepting paused {paused}"), out);
    }
}

/// Names, words and whether they are of use, of the relays that were asked about; those of equal words at once.
fn relay_lines(status: &Status) -> Vec<(String, String, bool)> {
    let mut lines: Vec<(String, String, bool)> = Vec::new();
    for own in status.relays.iter().filter(|own| !own.findings.why.is_empty()) {
        let same = !own.usable && own.findings.tests.is_empty() && status.kernel.contains(&own.findings.why);
        let words = if same { "OFF, for the same reason".to_owned() } else { clean(&relay_words(own)) };
        match lines.last_mut().filter(|(_, last, _)| *last == words) {
            Some((names, ..)) => *names = format!("{names}, {}", own.relay.as_str()),
            None => lines.push((own.relay.as_str().to_owned(), words, own.usable)),
        }
    }
    lines
}

/// Whether a relay is on, why, and which of its self-tests failed.
fn relay_words(own: &RelaySnapshot) -> String {
    let tests = &own.findings.tests;
    let failed: Vec<String> = tests
        .iter()
        .filter(|test| !test.passed)
        .map(|test| format!("{}: {}", test.name, test.detail))
        .collect();
    let state = if own.usable { "on" } else { "OFF" };
    let passed = tests.len() - failed.len();
    let counted =
        if tests.is_empty() { String::new() } else { format!(", {passed} of {} tests", tests.len()) };
    let failed = if failed.is_empty() { String::new() } else { format!("; {}", failed.join("; ")) };
    format!("{state}, {}{counted}{failed}", own.findings.why)
}

/// Where packets are forwarded, how full the table is, and what became of packets.
fn forward_words(own: &ForwardStatus) -> String {
    let ForwardStatus { words, live, opened, entries, room, packets, .. } = own;
    if *room == 0 {
        return words.clone();
    }
    let packets: Vec<String> = packets.iter().map(|(why, packets)| format!("{why} {packets}")).collect();
    let packets = if packets.is_empty() { "none".to_owned() } else { packets.join(", ") };
    let live = many(*live, "flow", "flows");
    format!("{words}; {live} live, {opened} opened, {entries} of {room} entries; packets: {packets}")
}

fn rates_words(rates: &Rates) -> String {
    format!(
        "{:.1} connections/s, {:.1} refused/s, {}/s up, {}/s down",
        rates.opened_per_second,
        rates.refused_per_second,
        bytes(rates.bytes_up_per_second as u64),
        bytes(rates.bytes_down_per_second as u64)
    )
}

fn pool_group(pool: &PoolStatus) -> Group {
    let PoolStatus { name, strategy, queued, budget_exhausted, backends, .. } = pool;
    let up = backends.iter().filter(|own| own.word() == "up").count();
    let backends = many(backends.len() as u64, "backend", "backends");
    let (retries, hedges) = (many(pool.retries, "retry", "retries"), many(pool.hedges, "hedge", "hedges"));
    let mut head =
        format!("POOL {name}: {strategy}, {up} of {backends} up, {queued} waiting, {retries}, {hedges}");
    if *budget_exhausted > 0 {
        head += &format!(", {} over budget", many(*budget_exhausted, "retry", "retries"));
    }
    Group { head: vec![head], rows: pool.backends.iter().map(backend_row).collect() }
}

const TCP: [Column; 8] = [
    Column::text("TCP"),
    Column::address("ADDRESS"),
    Column::text("TOLD BY").spare(2),
    Column::number("RTT"),
    Column::number("HANDSHAKE"),
    Column::number("SENT AGAIN"),
    Column::number("CLOSED").spare(1),
    Column::number("RESET"),
];

fn tcp_table(status: &Status, look: Look, out: &mut String) {
    let rows = |pool: &PoolStatus| pool.backends.iter().filter_map(|own| tcp_row(&pool.name, own)).collect();
    let rows: Vec<Row> = status.pools.iter().flat_map::<Vec<Row>, _>(rows).collect();
    if rows.is_empty() {
        line("TCP       has told of no backend yet: no connection was made", look, out);
    } else {
        table(&TCP, rows, look, out);
    }
}

/// What TCP tells of a backend, if it does.
fn tcp_row(pool: &str, own: &BackendStatus) -> Option<Row> {
    let tcp = own.tcp?;
    let time = |micros: u32| latency(f64::from(micros) / 1e3);
    let nothing = || "-".to_owned();
    let cells = vec![
        format!("{pool}/{}", own.name),
        own.address.clone(),
        tcp.source.as_str().to_owned(),
        time(tcp.srtt_us),
        tcp.counts.map_or_else(nothing, |counts| time(counts.connect_us)),
        count(tcp.retransmits),
        tcp.counts.map_or_else(nothing, |counts| count(counts.closes)),
        tcp.counts.map_or_else(nothing, |counts| count(counts.resets)),
    ];
    Some(Row { cells, bad: false, note: None })
}

const FRONTEND: [Column; 11] = [
    Column::text("FRONTEND"),
    Column::address("ADDRESS"),
    Column::text("POOL"),
    Column::text("RELAY").spare(1),
    Column::number("LIVE"),
    Column::number("OPENED"),
    Column::number("REFUSED"),
    Column::number("/S 10S").spare(2),
    Column::number("/S 60S").spare(4),
    Column::number("UP").spare(3),
    Column::number("DOWN").spare(3),
];

/// A row, and one more for each further address.
fn frontend_rows(own: &FrontendStatus) -> Vec<Row> {
    let closed = own.listening.is_empty();
    let addresses = if closed { &own.configured } else { &own.listening };
    let mut addresses = addresses
        .iter()
        .map(|address| if closed { format!("{address} (closed)") } else { address.to_string() });
    let first = addresses.next().unwrap_or_else(|| "none".to_owned());
    let mut rows = vec![Row { cells: frontend_cells(own, first), bad: closed, note: None }];
    for address in addresses {
        let mut cells = vec![String::new(); FRONTEND.len()];
        cells[1] = address;
        rows.push(Row { cells, bad: closed, note: None });
    }
    if let (false, Some(last)) = (own.plane_why.is_empty(), rows.last_mut()) {
        last.note = Some(format!("  {}: {}", own.plane, own.plane_why));
    }
    rows
}

fn frontend_cells(own: &FrontendStatus, address: String) -> Vec<String> {
    let rate = |rates: Option<Rates>| {
        rates.map_or_else(|| "-".to_owned(), |rates| format!("{:.1}", rates.opened_per_second))
    };
    vec![
        own.name.clone(),
        address,
        own.pool.clone(),
        format!("{}/{}", own.plane, own.relay),
        count(own.live),
        count(own.opened),
        count(own.refused.values().sum()),
        rate(own.last_10s),
        rate(own.last_60s),
        bytes(own.bytes_up),
        bytes(own.bytes_down),
    ]
}

const RELAY: [Column; 8] = [
    Column::text("  IN KERNEL"),
    Column::text("RELAY"),
    Column::number("LIVE"),
    Column::number("PROMOTED"),
    Column::number("KEPT").spare(1),
    Column::number("DEMOTED").spare(1),
    Column::number("RESUMED").spare(1),
    Column::number("BYTES"),
];

fn relay_rows(own: &FrontendStatus) -> Vec<Row> {
    let row = |(relay, carried): (&String, &RelayCounters)| {
        let RelayCounters { live, promoted, kept, demoted, resumed, .. } = *carried;
        let mut cells = vec![format!("  {}", own.name), relay.clone()];
        cells.extend([live, promoted, kept, demoted, resumed].map(count));
        cells.push(bytes(carried.bytes));
        let kept: Vec<_> = own.kept.iter().map(|(why, count)| format!("{why} {count}")).collect();
        let told = relay == KernelRelay::Splice.as_str() && !kept.is_empty();
        Row { cells, bad: false, note: told.then(|| format!("    kept: {}", kept.join(", "))) }
    };
    own.relays.iter().map(row).collect()
}

const BACKEND: [Column; 9] = [
    Column::text("  BACKEND"),
    Column::address("ADDRESS"),
    Column::text("STATUS"),
    Column::number("WEIGHT").spare(2),
    Column::number("LIVE"),
    Column::number("PICKS").spare(1),
    Column::number("FAILED"),
    Column::number("CONNECT"),
    Column::number("1ST BYTE"),
];

/// A row, with the reason below where the backend takes nothing or is not as in the file.
fn backend_row(own: &BackendStatus) -> Row {
    let down = own.enabled && own.status == Up::Down;
    let told = own.word() != "up" || own.changed.is_some();
    let since = own.since.as_deref().filter(|_| down);
    let since = since.map_or_else(String::new, |since| format!("since {}: ", second(since)));
    let note = told.then(|| format!("    {since}{}", own.why));
    Row { cells: backend_cells(own), bad: down, note }
}

fn backend_cells(own: &BackendStatus) -> Vec<String> {
    let time = |millis: Option<f64>| millis.map_or_else(|| "-".to_owned(), latency);
    vec![
        format!("  {}", own.name),
        own.address.clone(),
        own.word().to_owned(),
        count(own.weight.into()),
        count(own.live),
        count(own.picks),
        count(own.failures.saturating_add(own.resets)),
        time(own.connect_ms),
        time(own.first_byte_ms),
    ]
}

#[cfg(test)]
mod tests;
