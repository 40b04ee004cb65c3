//! What the planes in the kernel are to reach against what they replace.

use std::fmt::Write;

use super::args::Placement;
use super::figures::{Better, by_id};
use super::peers::Peer;
use super::results::{Cell, Results};

/// A ratio of one peer of this project to the best of others; a bound of its own figure if there are no others.
struct Goal {
    ours: Peer,
    figure: &'static str,
    against: &'static [Peer],
    ratio: f64,
}

const PROXIES: &[Peer] = &[Peer::Haproxy, Peer::Nginx, Peer::Envoy];
const COPIES: &[Peer] = &[Peer::Lemonade, Peer::Haproxy];

const fn forward(figure: &'static str, against: &'static [Peer], ratio: f64) -> Goal {
    Goal { ours: Peer::Forward, figure, against, ratio }
}

const fn same_host(figure: &'static str, ratio: f64) -> Goal {
    Goal { ours: Peer::SkMsg, figure, against: COPIES, ratio }
}

const fn sockmap(figure: &'static str, ratio: f64) -> Goal {
    Goal { ours: Peer::Sockmap, figure, against: &[Peer::Lemonade], ratio }
}

const ALL: &[Peer] = &[Peer::Lemonade, Peer::Haproxy, Peer::Nginx, Peer::Envoy];

const fn splice(figure: &'static str, against: &'static [Peer], ratio: f64) -> Goal {
    Goal { ours: Peer::Splice, figure, against, ratio }
}

const fn bound(ours: Peer, figure: &'static str, most: f64) -> Goal {
    Goal { ours, figure, against: &[], ratio: most }
}

/// At most the ratio where less is better, at least it where more is.
const GOALS: &[Goal] = &[
    forward("small.machine", &[Peer::Direct], 1.10),
    forward("down8.rate", &[Peer::Direct], 0.95),
    forward("small.machine", &[Peer::Nft], 0.85),
    forward("connections.rate", &[Peer::Nft], 1.2),
    forward("down8.rate", &[Peer::Nft], 1.05),
    forward("small.machine", PROXIES, 0.65),
    forward("down8.machine", PROXIES, 0.65),
    forward("connections.rate", PROXIES, 1.4),
    forward("down8.rate", PROXIES, 1.6),
    same_host("same.rate", 2.0),
    same_host("same.machine", 0.5),
    sockmap("pingpong.p50", 0.85),
    sockmap("down1.rate", 0.9),
    splice("small.rate", &[Peer::Direct], 0.9),
    splice("medium.rate", &[Peer::Direct], 0.9),
    splice("small.rate", ALL, 1.5),
    splice("medium.rate", ALL, 1.25),
    splice("small.machine", ALL, 0.65),
    splice("medium.machine", ALL, 0.65),
    splice("lasting.rate", &[Peer::Lemonade], 1.3),
    splice("lasting.rate", &[Peer::Envoy], 1.0),
    splice("connections.rate", &[Peer::Lemonade], 0.97),
    bound(Peer::Splice, "killed.broken", 0.0),
    bound(Peer::Splice, "killed.gap", 50.0),
    bound(Peer::Forward, "killed.broken", 0.0),
];

/// Writes a table of what was measured of it; nothing if nothing was.
pub fn markdown(results: &Results) -> String {
    let mut rows = String::new();
    for placement in [Placement::Pinned, Placement::Unpinned] {
        for goal in GOALS {
            let _ = row(&mut rows, results, placement, goal);
        }
    }
    if rows.is_empty() {
        return rows;
    }
    let head = "\n### Planes in the kernel against what they replace\n\n| figure | plane | against | ratio, or itself | goal |\n";
    format!("{head}|---|---|---|---|---|\n{rows}")
}

fn row(text: &mut String, results: &Results, placement: Placement, goal: &Goal) -> Option<()> {
    let figure = by_id(goal.figure)?;
    let median = |peer: Peer| results.cell(figure.id, placement, peer).and_then(Cell::median);
    let ours = median(goal.ours)?;
    let lower = figure.better == Better::Lower;
    let (theirs, best) = if goal.against.is_empty() {
        (1.0, "-")
    } else {
        goal.against
            .iter()
            .filter_map(|peer| Some((median(*peer).filter(|theirs| *theirs > 0.0)?, peer.name())))
            .min_by(|(a, _), (b, _)| if lower { a.total_cmp(b) } else { b.total_cmp(a) })?
    };
    let ratio = ours / theirs;
    let (bound, met) =
        if lower { ("at most", ratio <= goal.ratio) } else { ("at least", ratio >= goal.ratio) };
    let word = if met { "met" } else { "**MISSED**" };
    let ours = goal.ours.name();
    let (id, placement) = (figure.id, placement.name());
    writeln!(
        text,
        "| {id}, {placement} | {ours} | {best} | {ratio:.2} | {bound} {bound_ratio:.2} {word} |",
        bound_ratio = goal.ratio
    )
    .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plane_is_compared_with_the_best_of_those_it_replaces() {
        let mut results = Results::default();
        for (peer, machine) in [(Peer::Haproxy, 3.0), (Peer::Nginx, 2.0), (Peer::Forward, 1.5)] {
            results.add("small.machine", Placement::Pinned, peer, machine);
        }
        let text = markdown(&results);
        let told = "| small.machine, pinned | lemonade-forward | nginx | 0.75 | at most 0.65 **MISSED** |";
        assert_eq!(text.lines().last(), Some(told));
        results.add("small.machine", Placement::Unpinned, Peer::Nft, 2.0);
        results.add("small.machine", Placement::Unpinned, Peer::Forward, 1.0);
        assert!(markdown(&results).ends_with("| nft | 0.50 | at most 0.85 met |\n"));
    }

    #[test]
    fn a_figure_without_others_is_held_against_its_bound() {
        let mut results = Results::default();
        results.add("killed.gap", Placement::Pinned, Peer::Splice, 61.0);
        results.add("killed.broken", Placement::Pinned, Peer::Splice, 0.0);
        let text = markdown(&results);
        assert!(
            text.contains("| killed.gap, pinned | lemonade-splice | - | 61.00 | at most 50.00 **MISSED** |")
        );
        assert!(text.contains("| killed.broken, pinned | lemonade-splice | - | 0.00 | at most 0.00 met |"));
    }

    #[test]
    fn every_goal_names_a_row() {
        assert!(GOALS.iter().all(|goal| by_id(goal.figure).is_some()));
    }
}
