//! `lemonade top` of a running Lemonade, as its terminal shows it.

use std::fmt::Write;
use std::fs;
use std::process::Command;

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::{Lemonade, binary};
use lemonade_tests::load::{Flows, Load};
use lemonade_tests::setup::Setup;
use lemonade_tests::socket::refusing_address;
use lemonade_tests::terminal::{COLUMNS, LINES, Screen};
use lemonade_tests::wait;
use vt100::{Cell, Color};

use super::{folder, writes};

const CELL: (f64, f64) = (8.4, 17.0);

/// Words that `top` shows whatever it counts: its tabs, the heads of its columns, its keys.
fn fixed(lines: &[String]) -> Vec<String> {
    let heads = |line: &&String| {
        ["1 backends", "BACKEND", "FRONTEND", " quit"].iter().any(|word| line.contains(word))
    };
    lines.iter().filter(heads).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn the_picture_of_top_shows_what_top_shows() {
    let backends = Backend::several(2);
    let mut addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    addresses.push(refusing_address());
    let setup = Setup::single(&addresses)
        .health(&["kind = \"tcp\"", "interval = \"1s\""])
        .pool(&["strategy = \"adaptive\""]);
    let lemonade = Lemonade::start(&setup);
    wait::until("the dead backend is down", wait::SOON, || !lemonade.status().is_up("web", "c"));
    let flows = Flows::start(lemonade.address("web"), 6, std::time::Duration::from_millis(20));
    let load = Load::start(lemonade.address("web"), 60);
    let mut screen = Screen::start(Command::new(binary()).arg("top").arg("--admin").arg(lemonade.socket()));
    screen.shows("web/a");
    if writes() {
        // Sparklines grow by a bar a second.
        std::thread::sleep(std::time::Duration::from_secs(22));
    }
    let parser = screen.now();
    let lines: Vec<String> = parser.screen().rows(0, COLUMNS).collect();
    screen.press("q");
    wait::until("top has ended", wait::SOON, || screen.ended().is_some());
    assert_eq!(load.stop().failed.len(), 0);
    for flow in flows.stop() {
        flow.expect("a flow is unharmed");
    }
    let path = folder().join("top.svg");
    if writes() {
        fs::create_dir_all(folder()).expect("a writable folder");
        fs::write(&path, picture(parser.screen())).expect("a writable folder");
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    let shown: Vec<String> = kept.lines().filter_map(plain).collect();
    let heads = fixed(&lines);
    assert!(heads.len() >= 3, "{lines:#?}");
    assert_eq!(fixed(&shown), heads, "docs/pictures/top.svg is out of date; run `cargo xtask pictures`");
}

/// Text of a line of the picture.
fn plain(line: &str) -> Option<String> {
    let rest = line.strip_prefix("<text")?;
    let mut words = String::new();
    for part in rest.split('<') {
        words.push_str(part.split_once('>').map_or("", |(_, words)| words));
    }
    Some(words.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
}

/// The screen as SVG: one `text` a line, and a `tspan` for each run of equal style.
fn picture(screen: &vt100::Screen) -> String {
    let (width, height) = (f64::from(COLUMNS) * CELL.0 + 16.0, f64::from(LINES) * CELL.1 + 16.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\">\n\
         <title>lemonade top</title>\n\
         <style>text{{font:14px ui-monospace,Menlo,Consolas,monospace;white-space:pre;fill:#ddd}}</style>\n\
         <rect width=\"{width:.0}\" height=\"{height:.0}\" rx=\"6\" fill=\"#16181c\"/>\n"
    );
    for row in 0..LINES {
        let y = 8.0 + CELL.1 * (f64::from(row) + 0.75);
        let mut runs: Vec<(String, u16, String)> = Vec::new();
        for column in 0..COLUMNS {
            let Some(cell) = screen.cell(row, column) else { continue };
            let contents = if cell.has_contents() { cell.contents() } else { " " };
            let style = style(cell);
            match runs.last_mut() {
                Some((last, _, words)) if *last == style => words.push_str(contents),
                _ => runs.push((style, column, contents.to_owned())),
            }
        }
        if runs.iter().all(|(style, _, words)| style.is_empty() && words.trim().is_empty()) {
            continue;
        }
        let mut text = String::new();
        for (style, column, words) in runs {
            let x = 8.0 + CELL.0 * f64::from(column);
            let length = CELL.0 * words.chars().count() as f64;
            let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            write!(text, "<tspan x=\"{x:.1}\" textLength=\"{length:.1}\"{style}>{words}</tspan>")
                .expect("writing to a string");
        }
        writeln!(out, "<text xml:space=\"preserve\" y=\"{y:.1}\">{text}</text>")
            .expect("writing to a string");
    }
    out.push_str("</svg>\n");
    out
}

fn style(cell: &Cell) -> String {
    let colour = match cell.fgcolor() {
        Color::Default => None,
        Color::Idx(1 | 9) => Some("#ff7b72"),
        Color::Idx(2 | 10) => Some("#7ee787"),
        Color::Idx(3 | 11) => Some("#f2cc60"),
        Color::Idx(_) | Color::Rgb(..) => Some("#79c0ff"),
    };
    let mut style = String::new();
    if cell.inverse() {
        style.push_str(" text-decoration=\"underline\" fill=\"#fff\"");
    } else if let Some(colour) = colour {
        style.push_str(&format!(" fill=\"{colour}\""));
    }
    if cell.bold() {
        style.push_str(" font-weight=\"bold\"");
    }
    style
}
