//! What it costs to be watched: a scrape a second, `top`, a `trace` reader and 50 open pages, against nobody.
//!
//! Pairs of samples, one with and one without, in alternating order. Those who watch run on the same machine, so their
//! own work is part of the loss.

use std::fs::File;
use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::super::load::Held;
use super::super::peers::{ADMIN, Peer};
use super::super::process::{Running, pause};
use super::super::world::Background;
use super::traffic::closed;
use super::{Readings, Trial};

const PAGES: &str = "50";
/// Events per second that the page asks for.
const RATE: &str = "50";
/// Pairs of one figure.
const PAIRS: usize = 4;
/// Time that those who watch get to begin.
const BEGIN: Duration = Duration::from_millis(1_200);

type Kind = (&'static [&'static str], [&'static str; 3]);

const KINDS: [Kind; 2] = [
    (&["--conns", "64", "--answer", "100"], ["cost.alone", "cost.watched", "cost.share"]),
    (
        &["--conns", "32", "--answer", "100", "--reconnect"],
        ["cost.new.alone", "cost.new.watched", "cost.new.share"],
    ),
];

pub(super) fn cost(trial: &Trial<'_>) -> Result<Readings> {
    if trial.instance.peer != Peer::Lemonade {
        return Ok(Vec::new());
    }
    let pairs = if trial.quick { 1 } else { PAIRS };
    let mut readings = Vec::new();
    for (words, [alone_key, watched_key, share_key]) in KINDS {
        let (mut alone, mut watched, mut shares) = (Vec::new(), Vec::new(), Vec::new());
        for pair in 0..pairs {
            let rate = |with: bool| -> Result<f64> {
                let _watchers = if with { Some(Watchers::start(trial)?) } else { None };
                let sample = closed(trial, words)?;
                Ok(sample.done as f64 / sample.seconds / 1000.0)
            };
            let first = rate(pair % 2 == 1)?;
            let second = rate(pair % 2 == 0)?;
            let (without, with) = if pair % 2 == 1 { (second, first) } else { (first, second) };
            alone.push(without);
            watched.push(with);
            shares.push((1.0 - with / without) * 100.0);
        }
        readings.push((alone_key, median(alone)));
        readings.push((watched_key, median(watched)));
        readings.push((share_key, median(shares)));
    }
    Ok(readings)
}

/// Everybody who watches; they end with this.
struct Watchers {
    _pages: Background,
    top: Running,
    trace: Running,
}

impl Watchers {
    fn start(trial: &Trial<'_>) -> Result<Self> {
        let args = ["bench", "watch", "--admin", ADMIN, "--pages", PAGES, "--rate", RATE].map(str::to_owned);
        let mut pages = Background::start(&mut trial.world.watching(trial.world.program(), &args))?;
        let open: Held = pages.report()?;
        ensure!(open.held > 0, "no page is open");
        let lemonade = &trial.instance.place.binary;
        let socket = trial.instance.place.dir.join("admin.sock").display().to_string();
        let words = |command: &str| [command.to_owned(), "--admin".to_owned(), socket.clone()];
        let mut trace = trial.world.watching(lemonade, &words("trace"));
        let trace = Running::start(trace.stdout(Stdio::null()).stderr(Stdio::null()))?;
        let top = on_terminal(&mut trial.world.watching(lemonade, &words("top")))?;
        pause(BEGIN)?;
        let mut watchers = Self { _pages: pages, top, trace };
        ensure!(watchers.top.alive() && watchers.trace.alive(), "`top` or `trace` has ended");
        Ok(watchers)
    }
}

/// Starts a command on a terminal of 80 columns and 24 lines that is read and forgotten.
fn on_terminal(command: &mut std::process::Command) -> Result<Running> {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&terminal)?;
    unlockpt(&terminal)?;
    tcsetwinsize(&terminal, Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 })?;
    let name = ptsname(&terminal, Vec::new())?.into_string().context("the name of a terminal is text")?;
    let other = || File::options().read(true).write(true).open(&name);
    command.stdin(Stdio::from(other()?)).stdout(Stdio::from(other()?)).stderr(Stdio::from(other()?));
    let running = Running::start(command.env("TERM", "xterm"))?;
    let mut reader = File::from(terminal);
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        // Ends with an error when the other end is closed.
        while reader.read(&mut bytes).is_ok() {}
    });
    Ok(running)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    f64::midpoint(values[middle], values[(values.len() - 1) / 2])
}
