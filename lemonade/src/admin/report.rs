//! The status as a table for people, 100 columns wide.

use std::fmt::Write as _;
use std::time::Duration;

use super::forward::ForwardStatus;
use super::routes::phase_words;
use super::status::{BackendStatus, ConfigStatus, FrontendStatus, PoolStatus, Rates, Status};
use super::table::{Column, Row, bytes, count, painted, table};
use super::words::clean;
use crate::metrics::snapshot::RelaySnapshot;
use crate::model::config::Status as Up;
use crate::model::relay::RelayCounters;

/// Draws `status`; `colours` is for a terminal.
pub fn report(status: &Status, colours: bool) -> String {
    let mut out = String::new();
    head(status, colours, &mut out).expect("writing to a string does not fail");
    let row = |own: &FrontendStatus| Row {
        cells: frontend_cells(own),
        bad: own.listening.is_empty(),
        note: (!own.plane_why.is_empty()).then(|| format!("  {}: {}", own.plane, own.plane_why)),
    };
    let frontends = status.frontends.iter().map(row);
    out.push('\n');
    table(&FRONTEND, frontends.collect(), colours, &mut out);
    let relays: Vec<Row> = status.frontends.iter().flat_map(relay_rows).collect();
    if !relays.is_empty() {
        table(&RELAY, relays, colours, &mut out);
    }
    for pool in &status.pools {
        out.push('\n');
        pool_line(pool, &mut out).expect("writing to a string does not fail");
        table(&BACKEND, pool.backends.iter().map(backend_row).collect(), colours, &mut out);
        let tcp: Vec<Row> = pool.backends.iter().filter_map(tcp_row).collect();
        if !tcp.is_empty() {
            table(&TCP, tcp, colours, &mut out);
        }
    }
    out
}

fn head(status: &Status, colours: bool, out: &mut String) -> std::fmt::Result {
    let up = humantime::format_duration(Duration::from_secs(status.uptime_seconds));
    let phase = phase_words(status.phase);
    let Status { version, pid, workers, .. } = status;
    writeln!(
        out,
        "Lemonade {version}: {phase}, up {up}, pid {pid}, {workers} workers, log filter {}",
        status.log_filter
    )?;
    let ConfigStatus { file, version, table_version, at, cause, .. } = &status.config;
    writeln!(out, "Config    {file}, version {version} (table {table_version}), {cause} at {at}")?;
    if let Some(refused) = &status.config.refused {
        let line = format!("REFUSED   {} at {}: still running version {version}", refused.cause, refused.at);
        writeln!(out, "{}", painted(line, colours))?;
        for error in &refused.errors {
            writeln!(out, "  {}", clean(error))?;
        }
    }
    for setting in &status.config.pending_restart {
        writeln!(out, "Waits for the next start: {}", clean(setting))?;
    }
    writeln!(out, "Kernel    {}", clean(&status.kernel))?;
    let asked = |own: &RelaySnapshot| !own.findings.why.is_empty();
    for own in status.relays.iter().filter(|own| asked(own)) {
        let line = format!("Relay     {}: {}", own.relay.as_str(), clean(&relay_words(own)));
        writeln!(out, "{}", if own.usable { line } else { painted(line, colours) })?;
    }
    if let Some(own) = &status.forward {
        writeln!(out, "Forward   {}", clean(&forward_words(own)))?;
    }
    let process = &status.process;
    writeln!(out, "Traffic   {} live, {} opened, {} closed", process.live, process.opened, process.closed)?;
    writeln!(out, "  10 s    {}", rates_words(&status.last_10s))?;
    writeln!(out, "  60 s    {}", rates_words(&status.last_60s))?;
    let lost = process.events_dropped + status.journal_dropped;
    if lost > 0 || process.accept_pauses > 0 {
        let line = format!("Trouble   {lost} events lost, accepting paused {} times", process.accept_pauses);
        writeln!(out, "{}", painted(line, colours))?;
    }
    Ok(())
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
    format!("{words}; {live} flows live, {opened} opened, {entries} of {room} entries; packets: {packets}")
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

fn pool_line(pool: &PoolStatus, out: &mut String) -> std::fmt::Result {
    let PoolStatus { name, strategy, queued, retries, hedges, budget_exhausted, .. } = pool;
    write!(out, "POOL {name}: {strategy}, {queued} waiting, {retries} retries, {hedges} hedges")?;
    if *budget_exhausted > 0 {
        write!(out, ", {budget_exhausted} retries over budget")?;
    }
    writeln!(out)
}

const TCP: [Column; 8] = [
    Column::text("  TCP"),
    Column::text("ADDRESS"),
    Column::text("TOLD BY"),
    Column::number("RTT"),
    Column::number("HANDSHAKE"),
    Column::number("SENT AGAIN"),
    Column::number("CLOSED"),
    Column::number("RESET"),
];

/// What TCP tells of a backend, if it does.
fn tcp_row(own: &BackendStatus) -> Option<Row> {
    let tcp = own.tcp?;
    let millis = |micros: u32| format!("{:.2}ms", f64::from(micros) / 1e3);
    let nothing = || "-".to_owned();
    let cells = vec![
        format!("  {}", own.name),
        own.address.clone(),
        tcp.source.as_str().to_owned(),
        millis(tcp.srtt_us),
        tcp.counts.map_or_else(nothing, |counts| millis(counts.connect_us)),
        count(tcp.retransmits),
        tcp.counts.map_or_else(nothing, |counts| count(counts.closes)),
        tcp.counts.map_or_else(nothing, |counts| count(counts.resets)),
    ];
    Some(Row { cells, bad: false, note: None })
}

const FRONTEND: [Column; 11] = [
    Column::text("FRONTEND"),
    Column::text("ADDRESS"),
    Column::text("POOL"),
    Column::text("RELAY"),
    Column::number("LIVE"),
    Column::number("OPENED"),
    Column::number("REFUSED"),
    Column::number("/S 10S"),
    Column::number("/S 60S"),
    Column::number("UP"),
    Column::number("DOWN"),
];

fn frontend_cells(own: &FrontendStatus) -> Vec<String> {
    let addresses = if own.listening.is_empty() { &own.configured } else { &own.listening };
    let address = match (addresses.as_slice(), own.listening.is_empty()) {
        ([], _) => "none".to_owned(),
        ([first, ..], true) => format!("{first} (closed)"),
        ([only], false) => only.to_string(),
        ([first, more @ ..], false) => format!("{first} +{}", more.len()),
    };
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
    Column::number("KEPT"),
    Column::number("DEMOTED"),
    Column::number("RESUMED"),
    Column::number("BYTES"),
];

fn relay_rows(own: &FrontendStatus) -> Vec<Row> {
    let row = |(relay, carried): (&String, &RelayCounters)| {
        let RelayCounters { live, promoted, kept, demoted, resumed, .. } = *carried;
        let mut cells = vec![format!("  {}", own.name), relay.clone()];
        cells.extend([live, promoted, kept, demoted, resumed].map(count));
        cells.push(bytes(carried.bytes));
        Row { cells, bad: false, note: None }
    };
    own.relays.iter().map(row).collect()
}

const BACKEND: [Column; 9] = [
    Column::text("  BACKEND"),
    Column::text("ADDRESS"),
    Column::text("STATUS"),
    Column::number("WEIGHT"),
    Column::number("LIVE"),
    Column::number("PICKS"),
    Column::number("FAILED"),
    Column::number("CONNECT"),
    Column::number("1ST BYTE"),
];

fn backend_row(own: &BackendStatus) -> Row {
    let down = own.enabled && own.status == Up::Down;
    let idle = down || !own.enabled || own.weight == 0;
    let note = idle.then(|| format!("    {}", own.why));
    Row { cells: backend_cells(own), bad: down, note }
}

fn backend_cells(own: &BackendStatus) -> Vec<String> {
    let status = match (own.enabled, own.status) {
        (false, _) => "off",
        (true, Up::Up) => "up",
        (true, Up::Down) => "DOWN",
    };
    let latency =
        |millis: Option<f64>| millis.map_or_else(|| "-".to_owned(), |millis| format!("{millis:.1}ms"));
    vec![
        format!("  {}", own.name),
        own.address.clone(),
        status.to_owned(),
        count(own.weight.into()),
        count(own.live),
        count(own.picks),
        count(own.failures.saturating_add(own.resets)),
        latency(own.connect_ms),
        latency(own.first_byte_ms),
    ]
}

#[cfg(test)]
mod tests;
