//! A simulated minute as SVG, in light and dark.

use std::fmt::Write;

use lemonade::model::StrategyKind;

use crate::simulate::{FAILING, SECONDS, SLOW, Told, weights};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 44.0;
const TOP: f64 = 40.0;
const RIGHT: f64 = 596.0;
const BOTTOM: f64 = 180.0;

const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#222}.axis{stroke:#888;stroke-width:1}.band{fill:#8884}\
.a{stroke:#0b6bcb}.b{stroke:#1f8a4c}.c{stroke:#c2410c}path{fill:none;stroke-width:2}.b{stroke-dasharray:6 3}\
.c{stroke-dasharray:2 2}rect.page{fill:#fff}\
@media(prefers-color-scheme:dark){text{fill:#ddd}rect.page{fill:#1b1b1b}.a{stroke:#6cb2ff}.b{stroke:#5fd08d}.c{stroke:#ff9a66}}";

/// Draws which share of the new connections each backend got.
pub fn picture(kind: StrategyKind, told: &Told) -> String {
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n\
         <title>{}: share of new connections over a simulated minute</title>\n<style>{STYLE}</style>\n\
         <rect class=\"page\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n",
        kind.as_str(),
    );
    let [a, b, c] = weights(kind);
    let head = format!(
        "{}, weights {a}, {b}, {c}: mean {:.0} ms while c is slow, {} connects failed",
        kind.as_str(),
        told.slow_mean * 1000.0,
        told.failed,
    );
    text(&mut out, LEFT, 18.0, "start", &head);
    for (range, words) in [(SLOW, "c is ten times slower"), (FAILING, "c fails half")] {
        let (from, to) = (x(range.start), x(range.end));
        let width = to - from;
        let height = BOTTOM - TOP;
        line(
            &mut out,
            format_args!(
                "<rect class=\"band\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{height}\"/>"
            ),
        );
        text(&mut out, from + 4.0, TOP - 6.0, "start", words);
    }
    for percent in [0, 25, 50, 75, 100] {
        let height = y(f64::from(percent) / 100.0);
        line(
            &mut out,
            format_args!(
                "<path class=\"axis\" d=\"M{LEFT} {height:.1}H{}\"/>",
                if percent == 0 { RIGHT } else { LEFT + 4.0 }
            ),
        );
        text(&mut out, LEFT - 6.0, height + 4.0, "end", &format!("{percent}%"));
    }
    for second in (0..=SECONDS).step_by(10) {
        text(&mut out, x(second), BOTTOM + 18.0, "middle", &format!("{second} s"));
    }
    let mut ends = Vec::new();
    for (backend, name) in ["a", "b", "c"].into_iter().enumerate() {
        let points: Vec<String> = (0..SECONDS)
            .map(|second| {
                let share = told.share(backend, second..second + 1);
                format!("{:.1} {:.1}", x(second) + (RIGHT - LEFT) / SECONDS as f64 / 2.0, y(share))
            })
            .collect();
        line(&mut out, format_args!("<path class=\"{name}\" d=\"M{}\"/>", points.join("L")));
        ends.push((y(told.share(backend, SECONDS - 5..SECONDS)), name));
    }
    ends.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut free = f64::MIN;
    for (height, name) in ends {
        // Names that would lie upon each other stand below each other.
        let height = height.max(free);
        free = height + 14.0;
        text(&mut out, RIGHT + 8.0, height + 4.0, "start", name);
    }
    out.push_str("</svg>\n");
    out
}

fn x(second: usize) -> f64 {
    LEFT + (RIGHT - LEFT) * second as f64 / SECONDS as f64
}

fn y(share: f64) -> f64 {
    BOTTOM - (BOTTOM - TOP) * share
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    line(out, format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"));
}

fn line(out: &mut String, what: std::fmt::Arguments<'_>) {
    writeln!(out, "{what}").expect("writing to a string");
}
