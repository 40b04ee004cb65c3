//! Looks: status, connections, why, history, dump.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;

use crate::admin::connections::{FailedRow, Page, RouteRow, Row};
use crate::admin::reads::Lines;
use crate::admin::report;
use crate::admin::status::Status;
use crate::admin::table::{Column, Row as TableRow, bytes, count, table};
use crate::admin::words::clean;
use crate::control::journal::{Entry, Kind};

use super::ask::{Answer, Instance, Trouble, print_json, query};
use super::operate::{Connections, History};
use super::{print, screen};

/// Time between two looks of `--watch`.
const WATCH: Duration = Duration::from_secs(1);

/// Clears a terminal and goes to its first cell.
const HOME: &str = "\u{1b}[H\u{1b}[2J";

pub(super) fn status(instance: &Instance, json: bool, watch: bool, tcp: bool) -> Answer {
    const PATH: &str = "/api/v1/status";
    if json {
        return Ok(print(&instance.bytes_of(PATH)?)?);
    }
    loop {
        let seen = instance.read::<Status>(PATH)?;
        let text = match screen::height().filter(|_| watch) {
            Some(height) => format!("{HOME}{}", report::first_lines(&seen, tcp, screen::look(), height)),
            None => report::report(&seen, tcp, screen::look()),
        };
        if !watch {
            return Ok(print(text.as_bytes())?);
        }
        if !super::heard(text.as_bytes())? {
            return Ok(());
        }
        std::thread::sleep(WATCH);
    }
}

pub(super) fn connections(asked: &Connections) -> Answer {
    let pairs = [
        ("limit", Some(asked.limit.to_string())),
        ("sort", Some(asked.sort.clone())),
        ("filter", asked.filter.clone()),
        ("frontend", asked.frontend.clone()),
        ("backend", asked.backend.clone()),
        ("ended", asked.ended.then(|| "true".to_owned())),
    ];
    let page: Page = asked.instance.read(&query("/api/v1/connections", &pairs))?;
    if asked.json {
        return print_json(&page);
    }
    let mut text = String::new();
    table(&CONNECTION, page.connections.iter().map(connection_row).collect(), screen::look(), &mut text);
    let kind = if asked.ended { "ended, remembered" } else { "live" };
    let Page { total, matching, connections } = &page;
    writeln!(text, "{} shown of {matching} that match, {total} {kind}", connections.len())
        .context("writing to a string")?;
    Ok(print(text.as_bytes())?)
}

const CONNECTION: [Column; 9] = [
    Column::number("ID"),
    Column::address("CLIENT"),
    Column::text("FRONTEND"),
    Column::text("BACKEND"),
    Column::text("RELAY").spare(1),
    Column::number("AGE"),
    Column::number("UP"),
    Column::number("DOWN"),
    Column::text("STATE"),
];

fn connection_row(own: &Row) -> TableRow {
    let backend = own.route.as_ref().map_or_else(|| "-".to_owned(), |route| route.backend.clone());
    let cells = vec![
        if own.id == 0 { "-".to_owned() } else { own.id.to_string() },
        own.client.to_string(),
        own.frontend.clone(),
        backend,
        format!("{}/{}", own.plane, own.relay),
        age(own.age_seconds),
        bytes(own.bytes_up),
        bytes(own.bytes_down),
        own.end.clone().unwrap_or_else(|| own.state.clone()),
    ];
    TableRow { cells, bad: false, note: None }
}

/// Seconds in few characters.
pub(super) fn age(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.1}s"),
        s if s < 600.0 => format!("{s:.0}s"),
        s if s < 36_000.0 => format!("{:.0}m", s / 60.0),
        s => format!("{:.0}h", s / 3600.0),
    }
}

pub(super) fn why(connection: &str, json: bool, instance: &Instance) -> Answer {
    let path = query("/api/v1/why", &[("connection", Some(connection.to_owned()))]);
    let row: Row = instance.read(&path)?;
    if json { print_json(&row) } else { Ok(print(explain(&row).as_bytes())?) }
}

/// A connection in sentences.
fn explain(row: &Row) -> String {
    let Row { id, client, local, frontend, pool, started, plane, relay, .. } = row;
    let (what, began) = match id {
        0 => ("flow".to_owned(), "opened"),
        id => (format!("connection {id}"), "accepted"),
    };
    let mut lines =
        vec![format!("{what}: {client} -> {local}, frontend {frontend}, pool {pool}, {began} {started}")];
    match &row.route {
        Some(route) => {
            let RouteRow { backend, address, strategy, why, candidates, attempts, connect_ms, .. } = route;
            lines.push(format!("went to backend {pool}/{backend} ({address}) over {plane}/{relay}"));
            lines.push(format!("why: {strategy} among {candidates} candidates: {why}"));
            let tries = match (attempts, route.hedged) {
                (_, true) => {
                    format!("; it won a race against a first connect that was late ({attempts} connects)")
                }
                (_, false) => String::new(),
            };
            lines.push(if route.table_version == 0 {
                "the kernel picked, and sends its packets on without a connect".to_owned()
            } else {
                format!("connected in {connect_ms:.2} ms, by table version {}{tries}", route.table_version)
            });
        }
        None if row.end.is_some() => lines.push("got no backend".to_owned()),
        None => lines.push("has no backend yet: it is being connected, or waits in the queue".to_owned()),
    }
    for FailedRow { backend, fault, why } in &row.failed {
        lines.push(format!("tried in vain: {pool}/{backend}: {why} ({fault})"));
    }
    let moved = format!("{} up, {} down", bytes(row.bytes_up), bytes(row.bytes_down));
    lines.push(match (&row.end, &row.end_why) {
        (Some(end), Some(why)) => {
            format!("ended after {}: {why} ({end}); {moved}", age(row.age_seconds))
        }
        _ => format!("lives for {}, {} s without a byte; {moved}", age(row.age_seconds), row.idle_seconds),
    });
    lines.join("\n") + "\n"
}

pub(super) fn history(asked: &History) -> Answer {
    let now = SystemTime::now();
    let time = |text: &Option<String>| text.as_deref().map(|text| moment(text, now)).transpose();
    let pairs = [
        ("since", time(&asked.since).map_err(Trouble::BadInput)?),
        ("until", time(&asked.until).map_err(Trouble::BadInput)?),
        ("what", asked.what.clone()),
        ("filter", asked.filter.clone()),
        ("limit", Some(asked.limit.to_string())),
    ];
    let lines: Lines = asked.instance.read(&query("/api/v1/journal", &pairs))?;
    if asked.json {
        return print_json(&lines);
    }
    let text: String = lines.entries.iter().map(entry).collect();
    Ok(print(if text.is_empty() { b"nothing happened in that time\n" } else { text.as_bytes() })?)
}

fn entry(own: &Entry) -> String {
    let what = match own.what {
        Kind::Config => "config",
        Kind::Health => "health",
        Kind::Admin => "admin",
    };
    let who = own.uid.map_or_else(|| own.who.clone(), |uid| format!("{} (uid {uid})", own.who));
    let mut text =
        format!("{} {what} version {} by {}: {}\n", own.time, own.version, clean(&who), first(&own.result));
    for line in own.diff.iter().map(String::as_str).chain(own.result.lines().skip(1)) {
        text.push_str(&format!("    {}\n", clean(line)));
    }
    text
}

fn first(text: &str) -> String {
    clean(text.lines().next().unwrap_or_default())
}

/// A moment as RFC 3339: a time of the day in UTC, today or yesterday, a whole time, or a time ago.
fn moment(text: &str, now: SystemTime) -> Result<String, String> {
    let rfc3339 = |at: SystemTime| humantime::format_rfc3339_millis(at).to_string();
    if let Ok(at) = humantime::parse_rfc3339_weak(text) {
        return Ok(rfc3339(at));
    }
    if let Ok(ago) = humantime::parse_duration(text)
        && let Some(at) = now.checked_sub(ago)
    {
        return Ok(rfc3339(at));
    }
    let today = rfc3339(now);
    let (date, _) = today.split_once('T').unwrap_or((&today, ""));
    let whole = if text.matches(':').count() == 1 { format!("{text}:00") } else { text.to_owned() };
    let at = humantime::parse_rfc3339_weak(&format!("{date} {whole}")).map_err(|_| {
        format!("cannot read the time `{text}`; write 14:02, 2026-11-25T14:02:00Z (UTC) or 10m")
    })?;
    let day = Duration::from_secs(24 * 3600);
    Ok(rfc3339(if at > now { at.checked_sub(day).unwrap_or(at) } else { at }))
}

pub(super) fn dump(output: Option<PathBuf>, instance: &Instance) -> Answer {
    let bytes = instance.bytes_of("/api/v1/dump")?;
    match output {
        None => Ok(print(&bytes)?),
        Some(file) => {
            std::fs::write(&file, &bytes).with_context(|| format!("cannot write {}", file.display()))?;
            Ok(print(format!("{}: {} written\n", file.display(), count(bytes.len() as u64)).as_bytes())?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_of_today_or_yesterday_or_ago() {
        let now = humantime::parse_rfc3339("2026-11-25T14:10:00Z").unwrap();
        let at = |text: &str| moment(text, now).unwrap();
        assert_eq!(at("14:02"), "2026-11-25T14:02:00.000Z");
        assert_eq!(at("14:02:30"), "2026-11-25T14:02:30.000Z");
        assert_eq!(at("23:00"), "2026-11-24T23:00:00.000Z", "that has not been yet today");
        assert_eq!(at("10m"), "2026-11-25T14:00:00.000Z");
        assert_eq!(at("2026-01-02T03:04:05Z"), "2026-01-02T03:04:05.000Z");
        for wrong in ["noon", "25:00", "14", ""] {
            assert!(moment(wrong, now).unwrap_err().contains("14:02"), "{wrong}");
        }
    }

    #[test]
    fn a_journal_line_names_who_when_what_and_the_effect() {
        let mut own = Entry::new(SystemTime::UNIX_EPOCH, 7, "admin", Kind::Admin);
        own.uid = Some(1000);
        own.diff = vec!["backend web/a: weight 1 -> 0".to_owned(), "evil\u{1b}[2J".to_owned()];
        assert_eq!(
            entry(&own),
            "1970-01-01T00:00:00.000Z admin version 7 by admin (uid 1000): accepted\n    \
             backend web/a: weight 1 -> 0\n    evil?[2J\n"
        );
    }
}
