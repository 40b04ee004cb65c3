//! Draws the screen; made for 80 columns and 24 lines.

use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState};

use crate::admin::status::{BackendStatus, FrontendStatus, PoolStatus, Status};
use crate::admin::table::{bytes, count};
use crate::admin::words::clean;
use crate::cli::show::age;
use crate::control::overrides::Change;
use crate::metrics::port::BackendSample;
use crate::model::config::Status as Up;

use super::state::{Prompt, Seen, State, View};

/// Seconds that a sparkline shows.
const SPARK: usize = 20;

/// Frontends shown above the backends at most.
const FRONTENDS: usize = 6;

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Draws `state`.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    let Some(seen) = &state.seen else { return };
    let rows = [Constraint::Length(3), Constraint::Min(3), Constraint::Length(2)];
    let [head, middle, foot] = Layout::vertical(rows).areas(frame.area());
    frame.render_widget(Paragraph::new(head_lines(seen, state.view)), head);
    match state.view {
        View::Backends => {
            let height = (seen.status.frontends.len().min(FRONTENDS) + 1) as u16;
            let parts = [Constraint::Length(height + 1), Constraint::Min(3)];
            let [above, below] = Layout::vertical(parts).areas(middle);
            draw_frontends(frame, above, seen);
            draw_backends(frame, below, state, seen);
        }
        View::Connections => draw_connections(frame, middle, state, seen),
        View::Refusals => draw_refusals(frame, middle, state),
    }
    frame.render_widget(Paragraph::new(foot_lines(state)), foot);
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
            spark(&opened),
            last_10s.opened_per_second,
            last_10s.refused_per_second,
            bytes(last_10s.bytes_up_per_second as u64),
            bytes(last_10s.bytes_down_per_second as u64)
        )),
        Line::from(tabs.into_iter().flat_map(tab).collect::<Vec<_>>()),
    ]
}

fn foot_lines(state: &State) -> Vec<Line<'static>> {
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
        (None, View::Refusals) => "q quit  Tab view  up/down select".to_owned(),
    };
    vec![Line::raw(clean(&state.message)), Line::styled(keys, Style::new().add_modifier(Modifier::BOLD))]
}

fn draw_frontends(frame: &mut Frame<'_>, area: Rect, seen: &Seen) {
    let row = |own: &FrontendStatus| {
        let series = seen.series.frontends.iter().find(|series| series.name == own.name);
        let opened: Vec<u64> = series
            .map(|series| series.samples.iter().map(|sample| sample.opened).collect())
            .unwrap_or_default();
        let rate =
            own.last_10s.map_or_else(|| "-".to_owned(), |rates| format!("{:.1}", rates.opened_per_second));
        let refused: u64 = own.refused.values().sum();
        Row::new([
            clean(&own.name),
            clean(&own.pool),
            format!("{}/{}", own.plane, own.relay),
            count(own.live),
            rate,
            count(refused),
            spark(&opened),
        ])
    };
    let widths = [14, 12, 11, 7, 8, 7, SPARK as u16].map(Constraint::Length);
    let table = Table::new(seen.status.frontends.iter().take(FRONTENDS).map(row), widths).header(header([
        "FRONTEND",
        "POOL",
        "RELAY",
        "LIVE",
        "CONN/S",
        "REFUSED",
        "CONNECTIONS/S",
    ]));
    frame.render_widget(table, area);
}

fn draw_backends(frame: &mut Frame<'_>, area: Rect, state: &State, seen: &Seen) {
    let rows = state.backends().into_iter().map(|(pool, own)| backend_row(pool, own, seen));
    let widths = [20, 6, 5, 6, 6, 8, 6, SPARK as u16].map(Constraint::Length);
    let table = Table::new(rows, widths)
        .header(header(["BACKEND", "STATUS", "WGHT", "LIVE", "FAILED", "1ST BYTE", "PICK/S", "PICKS/S"]))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    selectable(frame, area, table, state.selected);
}

fn backend_row(pool: &PoolStatus, own: &BackendStatus, seen: &Seen) -> Row<'static> {
    let same = |pool_name: &str, name: &str, address: &str| {
        pool_name == pool.name && name == own.name && address == own.address
    };
    let series = seen.series.backends.iter().find(|one| same(&one.pool, &one.name, &one.address));
    let samples: &[BackendSample] = series.map_or(&[], |series| &series.samples);
    let picks: Vec<u64> = samples.iter().map(|sample| u64::from(sample.picks)).collect();
    let (status, style) = match (own.enabled, own.weight, own.status) {
        (false, _, _) => ("off", dim()),
        (true, 0, _) => ("drain", dim()),
        (true, _, Up::Down) => ("DOWN", bad()),
        (true, _, Up::Up) => ("up", Style::new()),
    };
    let latency = own.first_byte_ms.or(own.connect_ms);
    Row::new([
        clean(&format!("{}/{}", pool.name, own.name)),
        status.to_owned(),
        own.weight.to_string(),
        count(own.live),
        count(own.failures + own.resets),
        latency.map_or_else(|| "-".to_owned(), |millis| format!("{millis:.1}ms")),
        picks.last().map_or_else(|| "-".to_owned(), |picks| count(*picks)),
        spark(&picks),
    ])
    .style(style)
}

fn draw_connections(frame: &mut Frame<'_>, area: Rect, state: &State, seen: &Seen) {
    let page = &seen.page;
    let rows = page.connections.iter().map(|own| {
        let backend = own.route.as_ref().map_or_else(|| own.state.clone(), |route| route.backend.clone());
        Row::new([
            if own.id == 0 { "-".to_owned() } else { own.id.to_string() },
            own.client.to_string(),
            clean(&own.frontend),
            clean(&backend),
            format!("{}/{}", own.plane, own.relay),
            age(own.age_seconds),
            bytes(own.bytes_up + own.bytes_down),
        ])
    });
    let widths = [8, 22, 11, 11, 10, 6, 9].map(Constraint::Length);
    let filter = state.filter().map_or_else(String::new, |text| format!(" with `{text}`"));
    let title = format!("{} of {} live connections{filter}, by {}", page.matching, page.total, state.sort());
    let [above, below] = Layout::vertical([Constraint::Length(1), Constraint::Min(2)]).areas(area);
    frame.render_widget(Paragraph::new(clean(&title)), above);
    let table = Table::new(rows, widths)
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
        Row::new([clean(frontend), (*reason).to_owned(), count(*refused)])
    });
    let table = Table::new(rows, [24, 24, 12].map(Constraint::Length))
        .header(header(["FRONTEND", "REASON", "REFUSED"]))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    selectable(frame, area, table, state.selected);
}

fn selectable(frame: &mut Frame<'_>, area: Rect, table: Table<'_>, selected: usize) {
    let mut at = TableState::new().with_selected(Some(selected));
    frame.render_stateful_widget(table, area, &mut at);
}

fn header<const N: usize>(titles: [&'static str; N]) -> Row<'static> {
    Row::new(titles.map(Cell::from)).style(Style::new().add_modifier(Modifier::BOLD))
}

fn bad() -> Style {
    Style::new().fg(Color::Red)
}

fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

/// The last samples as bars, the highest of them as a full one.
fn spark(samples: &[u64]) -> String {
    let last = &samples[samples.len().saturating_sub(SPARK)..];
    let highest = last.iter().copied().max().unwrap_or(0).max(1);
    let bar = |sample: &u64| match sample {
        0 => ' ',
        sample => BARS[((sample * 8).div_ceil(highest) as usize).clamp(1, 8) - 1],
    };
    let bars: String = last.iter().map(bar).collect();
    format!("{bars:>SPARK$}")
}
