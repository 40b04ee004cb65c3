//! The results as Markdown and as JSON.

use std::fmt::Write;

use serde::Serialize;
use serde_json::{Value, json};

use super::args::Placement;
use super::figures::{Better, FIGURES, Figure, GENERATOR};
use super::goals;
use super::peers::Peer;
use super::results::{Cell, Comparison, Results, Verdict};

/// Circumstances of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Setting {
    /// Machine and kernel in words.
    pub machine: String,
    /// Load average before the first round.
    pub load_before: String,
    /// Rounds.
    pub rounds: u32,
    /// Seconds of a steady sample.
    pub seconds: f64,
    /// Peers with their versions.
    pub versions: Vec<(String, String)>,
    /// Peers that are left out, and why.
    pub missing: Vec<(String, String)>,
    /// What the congestion control of the sockets was found to be.
    pub congestion: String,
    /// Percent of the machine that other work took, before each visit to a peer.
    pub disturbance: Vec<f64>,
}

/// Percent of the machine from which on other work spoils a run.
const DISTURBED: f64 = 10.0;
/// Percent of a core from which on the generator may be the limit.
const LIMIT: f64 = 90.0;

/// Writes the whole report in Markdown.
pub fn markdown(results: &Results, setting: &Setting, peers: &[Peer]) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{}. Load average before the run: {}.", setting.machine, setting.load_before);
    let _ = writeln!(
        text,
        "{} round(s), steady samples of {} s; median [least-most]. {}",
        setting.rounds, setting.seconds, setting.congestion
    );
    let mut others = setting.disturbance.clone();
    others.sort_by(f64::total_cmp);
    let (median, most) =
        (others.get(others.len() / 2).copied().unwrap_or(0.0), others.last().copied().unwrap_or(0.0));
    let _ = writeln!(
        text,
        "Other work took {median:.0} % of the machine between the samples (median; {most:.0} % at most)."
    );
    if median >= DISTURBED {
        let _ = writeln!(
            text,
            "**That is too much: this run shows that everything works, and proves no figure.**"
        );
    }
    let limited = limited_by_generator(results, peers);
    if !limited.is_empty() {
        let _ = writeln!(
            text,
            "Lower bounds, as the generator used over {LIMIT:.0} % of a core: {}.",
            limited.join(", ")
        );
    }
    let versions: Vec<String> =
        setting.versions.iter().map(|(peer, version)| format!("{peer} {version}")).collect();
    let _ = writeln!(text, "Versions: {}.", versions.join(", "));
    for (peer, why) in &setting.missing {
        let _ = writeln!(text, "Left out: {peer}: {why}.");
    }
    for placement in [Placement::Pinned, Placement::Unpinned] {
        table(&mut text, results, placement, peers);
    }
    text.push_str(&goals::markdown(results));
    if !results.scale.is_empty() {
        let _ = writeln!(text, "\n### Scale, Lemonade only\n\n| what | value |\n|---|---|");
        for (title, value) in &results.scale {
            let _ = writeln!(text, "| {title} | {value} |");
        }
    }
    text
}

fn limited_by_generator(results: &Results, peers: &[Peer]) -> Vec<String> {
    let mut found = Vec::new();
    for placement in [Placement::Pinned, Placement::Unpinned] {
        for peer in peers {
            for (id, words) in GENERATOR {
                let busy = results.cell(id, placement, *peer).and_then(Cell::median);
                if let Some(busy) = busy.filter(|busy| *busy > LIMIT) {
                    found.push(format!("{} {} {words} ({busy:.0})", peer.name(), placement.name()));
                }
            }
        }
    }
    found
}

/// Writes everything that was read.
pub fn json(results: &Results, setting: &Setting, peers: &[Peer]) -> Value {
    let mut rows = Vec::new();
    for placement in [Placement::Pinned, Placement::Unpinned] {
        for figure in FIGURES {
            let cells: serde_json::Map<String, Value> = peers
                .iter()
                .filter_map(|peer| {
                    let cell = results.cell(figure.id, placement, *peer)?;
                    let (least, most) = cell.range().unzip();
                    let read = json!({
                        "median": cell.median(), "min": least, "max": most, "values": cell.values, "notes": cell.notes,
                    });
                    Some((peer.name().to_owned(), read))
                })
                .collect();
            if !cells.is_empty() {
                let verdict = results.verdict(figure, placement);
                rows.push(
                    json!({ "figure": figure, "placement": placement, "peers": cells, "verdict": verdict }),
                );
            }
        }
    }
    let mut generator = Vec::new();
    for placement in [Placement::Pinned, Placement::Unpinned] {
        for ((id, _), peer) in GENERATOR.iter().flat_map(|key| peers.iter().map(move |peer| (key, peer))) {
            if let Some(busy) = results.cell(id, placement, *peer).and_then(Cell::median) {
                generator.push(
                    json!({ "id": id, "placement": placement, "peer": peer, "percent_of_a_core": busy }),
                );
            }
        }
    }
    json!({ "setting": setting, "rows": rows, "generator": generator, "scale": results.scale })
}

fn table(text: &mut String, results: &Results, placement: Placement, peers: &[Peer]) {
    let measured =
        |figure: &&Figure| peers.iter().any(|peer| results.cell(figure.id, placement, *peer).is_some());
    let rows: Vec<&Figure> = FIGURES.iter().filter(measured).collect();
    if rows.is_empty() {
        return;
    }
    let words = match placement {
        Placement::Pinned => "Pinned: balancer on one core with one worker, load and backends on the other",
        Placement::Unpinned => "Unpinned: the scheduler decides, two workers",
    };
    let compared = peers.contains(&Peer::Lemonade);
    let names: Vec<&str> = peers.iter().map(|peer| peer.name()).collect();
    let _ = write!(text, "\n### {words}\n\n| | {} |", names.join(" | "));
    let _ = writeln!(text, "{}", if compared { " Lemonade against the best peer |" } else { "" });
    let _ = writeln!(text, "|---|{}", "---|".repeat(peers.len() + usize::from(compared)));
    for figure in rows {
        let unit = if figure.unit.is_empty() { String::new() } else { format!(", {}", figure.unit) };
        let _ = write!(text, "| {}{unit} |", figure.title);
        for peer in peers {
            let _ = write!(text, " {} |", shown(figure, results.cell(figure.id, placement, *peer)));
        }
        if compared {
            let ours = results.cell(figure.id, placement, Peer::Lemonade).and_then(Cell::median);
            let _ = write!(text, " {} |", judged(figure, results.verdict(figure, placement).as_ref(), ours));
        }
        text.push('\n');
    }
}

fn shown(figure: &Figure, cell: Option<&Cell>) -> String {
    let Some(cell) = cell else { return String::new() };
    let digits = figure.digits;
    let notes = || {
        let rounds = cell.values.len() + cell.notes.len();
        let why = cell.notes.first().map_or("", String::as_str);
        format!("{} of {rounds}: {}", cell.notes.len(), why.replace('|', "/").replace('\n', " "))
    };
    let (Some(median), Some((least, most))) = (cell.median(), cell.range()) else { return notes() };
    let mut text = format!("{median:.digits$}");
    if cell.values.len() > 1 {
        let _ = write!(text, " [{least:.digits$}-{most:.digits$}]");
    }
    if !cell.notes.is_empty() {
        let _ = write!(text, " ({})", notes());
    }
    text
}

fn judged(figure: &Figure, verdict: Option<&Verdict>, ours: Option<f64>) -> String {
    let mut text = String::new();
    if let Some(Verdict { best, ratio, outcome }) = verdict {
        let word = match outcome {
            Comparison::Win => "win",
            Comparison::Tie => "tie (within noise)",
            Comparison::Loss => "**LOSS**",
        };
        let ratio = ratio.map_or_else(String::new, |ratio| format!("{ratio:.2} of "));
        let _ = write!(text, "{word}: {ratio}{}", best.name());
    }
    if let (Some(goal), Some(ours)) = (figure.goal, ours) {
        let scale = 10f64.powi(i32::try_from(figure.digits).unwrap_or(0));
        let ours = (ours * scale).round() / scale;
        let met = if figure.better == Better::Higher { ours >= goal } else { ours <= goal };
        let word = if met { "met" } else { "**MISSED**" };
        let separator = if text.is_empty() { "" } else { "; " };
        let _ = write!(text, "{separator}goal {goal} {word}");
    }
    text
}
