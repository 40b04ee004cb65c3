//! The picture: one small bar chart per figure, written by hand.

use std::fmt::Write;

use super::args::Placement;
use super::figures::{Better, by_id};
use super::peers::Peer;
use super::results::{Cell, Results};

/// Figures in the picture, in reading order, with their words.
const PANELS: &[(&str, Placement, &str)] = &[
    ("small.rate", Placement::Unpinned, "Requests, 100 B (thousand/s)"),
    ("connections.rate", Placement::Unpinned, "New connections (thousand/s)"),
    ("down8.rate", Placement::Unpinned, "Bulk down, 8 streams (Gbit/s)"),
    ("small.cpu", Placement::Unpinned, "CPU per 100k requests (s)"),
    ("connections.cpu", Placement::Unpinned, "CPU per 100k connections (s)"),
    ("down8.cpu", Placement::Unpinned, "CPU per GB down (s)"),
    ("memory.each", Placement::Pinned, "Memory per idle connection (KiB)"),
    ("reload.first", Placement::Pinned, "Reload to first new answer (ms)"),
    ("silent.slowest", Placement::Pinned, "Slowest answered, backend silent (ms)"),
];
const COLUMNS: usize = 3;
const PANEL_WIDTH: f64 = 320.0;
const ROW: f64 = 20.0;
const HEAD: f64 = 44.0;
const LABEL: f64 = 72.0;
const BAR: f64 = 170.0;

/// Draws the panels that have readings.
pub fn chart(results: &Results, peers: &[Peer], caption: &str) -> String {
    let panel_height = HEAD + ROW * peers.len() as f64 + 16.0;
    let panels: Vec<_> = PANELS
        .iter()
        .filter(|(id, placement, _)| peers.iter().any(|peer| results.cell(id, *placement, *peer).is_some()))
        .collect();
    let lines = panels.len().div_ceil(COLUMNS);
    let (width, height) = (PANEL_WIDTH * COLUMNS as f64 + 24.0, panel_height * lines as f64 + 44.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" font-family=\"system-ui, sans-serif\" font-size=\"12\">\n\
         <title>{caption}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
        caption = escape(caption),
    );
    for (index, (id, placement, title)) in panels.into_iter().enumerate() {
        let x = 12.0 + PANEL_WIDTH * (index % COLUMNS) as f64;
        let y = 8.0 + panel_height * (index / COLUMNS) as f64;
        panel(&mut svg, results, peers, (id, *placement, title), (x, y));
    }
    let _ = writeln!(
        svg,
        "<text x=\"12\" y=\"{:.0}\" fill=\"#666666\" font-size=\"11\">{}</text>\n</svg>",
        height - 14.0,
        escape(caption)
    );
    svg
}

fn panel(
    svg: &mut String,
    results: &Results,
    peers: &[Peer],
    (id, placement, title): (&'static str, Placement, &str),
    (x, y): (f64, f64),
) {
    let Some(figure) = by_id(id) else { return };
    let direction = if figure.better == Better::Higher { "more is better" } else { "less is better" };
    let _ = writeln!(
        svg,
        "<text x=\"{x:.0}\" y=\"{:.0}\" font-weight=\"600\" fill=\"#222222\">{}</text>\n\
         <text x=\"{x:.0}\" y=\"{:.0}\" font-size=\"10\" fill=\"#888888\">{direction}, {}</text>",
        y + 16.0,
        escape(title),
        y + 30.0,
        placement.name(),
    );
    let read = |peer: &Peer| results.cell(id, placement, *peer).and_then(Cell::median);
    let most = peers.iter().filter_map(read).fold(0.0, f64::max);
    for (row, peer) in peers.iter().enumerate() {
        let top = y + HEAD + ROW * row as f64;
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\" fill=\"#444444\">{}</text>",
            x + LABEL - 6.0,
            top + 11.0,
            peer.name()
        );
        let (length, words) = match read(peer) {
            Some(value) if most > 0.0 => (value / most * BAR, format!("{value:.*}", figure.digits)),
            Some(value) => (0.0, format!("{value:.*}", figure.digits)),
            None => (0.0, "-".to_owned()),
        };
        let _ = writeln!(
            svg,
            "<rect x=\"{left:.0}\" y=\"{top:.0}\" width=\"{:.1}\" height=\"14\" rx=\"2\" fill=\"{}\"/>\n\
             <text x=\"{:.1}\" y=\"{:.0}\" fill=\"#222222\">{words}</text>",
            length.max(1.0),
            colour(*peer),
            x + LABEL + length + 6.0,
            top + 11.0,
            left = x + LABEL,
        );
    }
}

fn colour(peer: Peer) -> &'static str {
    match peer {
        Peer::Direct => "#d4d4d4",
        Peer::Nft => "#b8b8b8",
        Peer::Haproxy => "#7f9ec4",
        Peer::Nginx => "#86b58a",
        Peer::Envoy => "#b792bf",
        Peer::Lemonade => "#f2c029",
        Peer::Sockmap => "#d98e04",
        Peer::SkMsg => "#b56a00",
        Peer::Splice => "#f08a4b",
        Peer::Forward => "#e0561b",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
