//! Draws the screen; made for 80 columns and 24 lines.

use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState};

use crate::admin::status::{BackendStatus, FrontendStatus, PoolStatus, Status};
use crate::admin::table::{bytes, count, cut, latency, second, wrapped};
use crate::admin::words::clean;
use crate::cli::show::age;
use crate::control::overrides::Change;
use crate::metrics::port::BackendSample;

use super::state::{Prompt, Seen, State, View};

/// Seconds that a sparkline shows at most, and at least.
const SPARK: usize = 20;
const SHORT: usize = 10;

/// Frontends shown above the backends at most.
const FRONTENDS: usize = 6;

/// Lines of a message at most.
const MESSAGE: usize = 4;

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Draws `state`.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    let Some(seen) = &state.seen else { return };
    let message = message_lines(state, frame.area().width.into());
    let foot = message.len().max(1) as u16 + 1;
    let rows = [Constraint::Length(3), Constraint::Min(3), Constraint::Length(foot)];
    let [head, middle, foot] = Layout::vertical(rows).areas(frame.area());
    frame.render_widget(Paragraph::new(head_lines(seen, state.view)), head);
    match state.view {
        View::Backends => {
            let height = (seen.status.frontends.len().min(FRONTENDS) + 1) as u16;
            let parts = [Constraint::Length(height + 1), Constraint::Min(3)];
            let [above, below] = Layout::vertical(parts).areas(middle);
            draw_frontends(frame, above, seen, None);
            draw_backends(frame, below, state, seen);
        }
        View::Connections => draw_connections(frame, middle, state, seen),
        View::Refusals => draw_refusals(frame, middle, state),
        View::Frontends => draw_frontends(frame, middle, seen, Some(state.selected)),
    }
    frame.render_widget(Paragraph::new(foot_lines(state, message)), foot);
}

/// What came of a key; without that, what is to be known of a backend.
fn message_lines(state: &State, width: usize) -> Vec<String> {
    let text = match (state.message(), state.view) {
        ("", View::Backends) => detail(state),
        (message, _) => clean(message),
    };
    let mut lines = wrapped(&text, Some(width), 0);
    if lines.len() > MESSAGE {
        lines.truncate(MESSAGE);
        lines[MESSAGE - 1] += "…";
    }
    lines
}

/// Why the selected backend is as it is; where it takes connections and another one is down, why that one is.
fn detail(state: &State) -> String {
    let backends = state.backends();
    let selected = backends.get(state.selected);
    let down = || backends.iter().find(|(_, own)| own.word() == "DOWN");
    let found = selected.filter(|(_, own)| own.word() != "up").or_else(down).or(selected);
    let Some((pool, own)) = found else { return String::new() };
    let word = own.word();
    let since = own.since.as_deref().filter(|_| word == "DOWN");
    let since = since.map_or_else(String::new, |since| format!(" since {}", second(since)));
    clean(&format!("{}/{} ({}) {word}{since}: {}", pool.name, own.name, own.address, own.why))
}

fn head_lines(seen: &Seen, view: View) -> Vec<Line<'static>> {
    let Status { version, uptime_seconds, config, process, last_10s, .. } = &seen.status;
    let up = humantime::format_duration(Duration::from_secs(*uptime_seconds));
    let refused = match &config.refused {
        Some(_) => Span::styled("  NEWEST FILE REFUSED", bad()),
        None => Span::raw(""),
    };
    let opened: Vec<u64> = seen.series.process.iter().map(|sample| sample.opened).collect();
    let tabs = [
        (View::Backends, "1 backends"),
        (View::Connections, "2 connections"),
        (View::Refusals, "3 refusals"),
        (View::Frontends, "4 frontends"),
    ];
    let tab = |(own, name): (View, &'static str)| {
        let style = if own == view { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
        [Span::styled(format!(" {name} "), style), Span::raw(" ")]
    };
    vec![
        Line::from(vec![
            Span::raw(format!(
                "lemonade {version}, up {up}, config {}, {} live",
                config.version, process.live
            )),
            refused,
        ]),
        Line::raw(format!(
            "{} {:.1}/s, {:.1} refused/s, {}/s up, {}/s down",
            spark(&opened, SPARK),
            last_10s.opened_per_second,
            last_10s.refused_per_second,
            bytes(last_10s.bytes_up_per_second as u64),
            bytes(last_10s.bytes_down_per_second as u64)
        )),
        Line::from(tabs.into_iter().flat_map(tab).collect::<Vec<_>>()),
    ]
}

fn foot_lines(state: &State, message: Vec<String>) -> Vec<Line<'static>> {
    let keys = match (&state.prompt, state.view) {
        (Some(Prompt::Confirm(change)), _) => {
            let what = match change.change {
                Change::Drain => "drain",
                Change::Disable => "disable",
                Change::Enable => "enable",
                Change::Weight(_) => "weigh",
            };
            format!("{what} {}, until the next start? y, or any other key", clean(&change.backend))
        }
        (Some(Prompt::Weight(backend, text)), _) => format!("weight of {}: {text}_", clean(backend)),
        (Some(Prompt::Filter(text)), _) => format!("filter: {text}_"),
        (None, View::Backends) => {
            "q quit  Tab view  up/down select  d drain  e enable  x disable  w weight".to_owned()
        }
        (None, View::Connections) => {
            format!("q quit  Tab view  s sort ({})  / filter  Esc clear", state.sort())
        }
        (None, View::Refusals | View::Frontends) => "q quit  Tab view  up/down select".to_owned(),
    };
    let keys = Line::styled(keys, Style::new().add_modifier(Modifier::BOLD));
    message.into_iter().map(Line::raw).chain([keys]).collect()
}

/// All frontends with a cursor, or the first of them and how many more there are.
fn draw_frontends(frame: &mut Frame<'_>, area: Rect, seen: &Seen, selected: Option<usize>) {
    let all = &seen.status.frontends;
    let (name, pool, relay) = (words(area, 14, 24), words(area, 12, 20), words(area, 11, 13));
    let spark_width = usize::from(area.width).saturating_sub(name + pool + relay + 22 + 6).min(SPARK);
    let row = |own: &FrontendStatus| {
        let series = seen.series.frontends.iter().find(|series| series.name == own.name);
        let opened: Vec<u64> = series
            .map(|series| series.samples.iter().map(|sample| sample.opened).collect())
            .unwrap_or_default();
        let rate =
            own.last_10s.map_or_else(|| "-".to_owned(), |rates| format!("{:.1}", rates.opened_per_second));
        let refused: u64 = own.refused.values().sum();
        Row::new([
            cut(&clean(&own.name), name),
            cut(&clean(&own.pool), pool),
            cut(&format!("{}/{}", own.plane, own.relay), relay),
            count(own.live),
            rate,
            count(refused),
            spark(&opened, spark_width),
        ])
    };
    let shown = if selected.is_some() { all.len() } else { FRONTENDS };
    let mut rows: Vec<Row<'_>> = all.iter().take(shown).map(row).collect();
    if all.len() > shown {
        let left = all.len() - shown + 1;
        rows[shown - 1] = Row::new([format!("+{left} more"), "press 4".to_owned()]).style(dim());
    }
    let widths = [name, pool, relay, 7, 8, 7, spark_width].map(|width| Constraint::Length(width as u16));
    let titles = ["FRONTEND", "POOL", "RELAY", "LIVE", "CONN/S", "REFUSED", "CONNECTIONS/S"];
    let table = Table::new(rows, widths).header(header(titles));
    match selected {
        Some(selected) => selectable(frame, area, table, selected),
        None => frame.render_widget(table, area),
    }
}

/// Characters of a column of words: `least` on 80 columns, `most` where there is room.
fn words(area: Rect, least: usize, most: usize) -> usize {
    (least + usize::from(area.width).saturating_sub(80) / 4).min(most)
}

fn draw_backends(frame: &mut Frame<'_>, area: Rect, state: &State, seen: &Seen) {
    const NUMBERS: [usize; 6] = [8, 5, 5, 6, 8, 6];
    let backends = state.backends();
    let title = match backends.len() {
        0 => "BACKEND".to_owned(),
        all => format!("BACKEND {}/{all}", state.selected + 1),
    };
    // What the numbers and the blanks between columns leave goes to names first, as far as they need it.
    let room = usize::from(area.width).saturating_sub(NUMBERS.iter().sum::<usize>() + NUMBERS.len() + 1);
    let names = backends.iter().map(|(pool, own)| pool.name.len() + 1 + own.name.len());
    let longest = names.chain([title.len()]).max().unwrap_or_default();
    let name = longest.min(room.saturating_sub(SHORT));
    let spark_width = room.saturating_sub(name).min(SPARK);
    let rows = backends.iter().map(|(pool, own)| backend_row(pool, own, seen, (name, spark_width)));
    let [status, weight, live, failed, first_byte, picks] = NUMBERS;
    let widths = [name, status, weight, live, failed, first_byte, picks, spark_width];
    let titles = [title.as_str(), "STATUS", "WGHT", "LIVE", "FAILED", "1ST BYTE", "PICK/S", "PICKS/S"];
    let table = Table::new(rows, widths.map(|width| Constraint::Length(width as u16)))
        .header(header(titles.map(str::to_owned)))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    selectable(frame, area, table, state.selected);
}

fn backend_row(
    pool: &PoolStatus,
    own: &BackendStatus,
    seen: &Seen,
    (name, spark_width): (usize, usize),
) -> Row<'static> {
    let same = |pool_name: &str, name: &str, address: &str| {
        pool_name == pool.name && name == own.name && address == own.address
    };
    let series = seen.series.backends.iter().find(|one| same(&one.pool, &one.name, &one.address));
    let samples: &[BackendSample] = series.map_or(&[], |series| &series.samples);
    let picks: Vec<u64> = samples.iter().map(|sample| u64::from(sample.picks)).collect();
    let style = match own.word() {
        "up" => Style::new(),
        "DOWN" => bad(),
        _ => dim(),
    };
    let time = own.first_byte_ms.or(own.connect_ms);
    Row::new([
        cut(&clean(&format!("{}/{}", pool.name, own.name)), name),
        own.word().to_owned(),
        own.weight.to_string(),
        count(own.live),
        count(own.failures.saturating_add(own.resets)),
        time.map_or_else(|| "-".to_owned(), latency),
        picks.last().map_or_else(|| "-".to_owned(), |picks| count(*picks)),
        spark(&picks, spark_width),
    ])
    .style(style)
}

fn draw_connections(frame: &mut Frame<'_>, area: Rect, state: &State, seen: &Seen) {
    let page = &seen.page;
    let widths = [8, words(area, 21, 47), words(area, 10, 24), words(area, 9, 24), words(area, 12, 13), 5, 9];
    let [_, client, frontend, backend, relay, ..] = widths;
    let rows = page.connections.iter().map(|own| {
        let to = own.route.as_ref().map_or(&own.state, |route| &route.backend);
        Row::new([
            if own.id == 0 { "-".to_owned() } else { own.id.to_string() },
            cut(&own.client.to_string(), client),
            cut(&clean(&own.frontend), frontend),
            cut(&clean(to), backend),
            cut(&format!("{}/{}", own.plane, own.relay), relay),
            age(own.age_seconds),
            bytes(own.bytes_up.saturating_add(own.bytes_down)),
        ])
    });
    let filter = state.filter().map_or_else(String::new, |text| format!(" with `{text}`"));
    let title = format!("{} of {} live connections{filter}, by {}", page.matching, page.total, state.sort());
    let [above, below] = Layout::vertical([Constraint::Length(1), Constraint::Min(2)]).areas(area);
    frame.render_widget(Paragraph::new(clean(&title)), above);
    let table = Table::new(rows, widths.map(|width| Constraint::Length(width as u16)))
        .header(header(["ID", "CLIENT", "FRONTEND", "BACKEND", "RELAY", "AGE", "BYTES"]))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    selectable(frame, below, table, state.selected);
}

fn draw_refusals(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let refusals = state.refusals();
    if refusals.is_empty() {
        frame.render_widget(Paragraph::new("no connection was refused"), area);
        return;
    }
    let rows = refusals.iter().map(|(frontend, reason, refused)| {
        Row::new([cut(&clean(frontend), 40), (*reason).to_owned(), count(*refused)])
    });
    let table = Table::new(rows, [40, 24, 12].map(Constraint::Length))
        .header(header(["FRONTEND", "REASON", "REFUSED"]))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    selectable(frame, area, table, state.selected);
}

fn selectable(frame: &mut Frame<'_>, area: Rect, table: Table<'_>, selected: usize) {
    let mut at = TableState::new().with_selected(Some(selected));
    frame.render_stateful_widget(table, area, &mut at);
}

fn header<const N: usize, T: Into<Cell<'static>>>(titles: [T; N]) -> Row<'static> {
    Row::new(titles.map(|title| -> Cell<'static> { title.into() }))
        .style(Style::new().add_modifier(Modifier::BOLD))
}

fn bad() -> Style {
    Style::new().fg(Color::Red)
}

fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

/// The last samples as bars, the highest of them as a full one.
fn spark(samples: &[u64], width: usize) -> String {
    let last = &samples[samples.len().saturating_sub(width)..];
    let highest = last.iter().copied().max().unwrap_or(0).max(1);
    let bar = |sample: &u64| match sample {
        0 => ' ',
        sample => BARS[((sample * 8).div_ceil(highest) as usize).clamp(1, 8) - 1],
    };
    let bars: String = last.iter().map(bar).collect();
    format!("{bars:>width$}")
}
