//! The file is replaced under load: when the change is seen, and what it costs.

use std::time::Duration;

use anyhow::{Context, Result};

use super::super::load::{Outcome, Steady};
use super::super::process::pause;
use super::super::world::{BACKENDS, Background};
use super::{Readings, Trial};

const SWITCHES: u32 = 5;
const GAP: Duration = Duration::from_millis(900);
const RATE: &str = "900";
const OLD: u8 = 1;
const NEW: u8 = 3;

pub(super) fn reload(trial: &Trial<'_>) -> Result<Readings> {
    if trial.instance.targets_are_fixed() {
        return Ok(Vec::new());
    }
    trial.instance.switch(trial.world, &[OLD])?;
    pause(GAP)?;
    let seconds = (GAP * (SWITCHES + 1)).as_secs_f64().to_string();
    let words = ["--rate", RATE, "--seconds", &seconds];
    let mut load = Background::start(&mut trial.world.load("steady", &trial.instance.targets(), &words))?;
    pause(GAP)?;
    let mut switches = Vec::new();
    for turn in 0..SWITCHES {
        let (old, new) = if turn % 2 == 0 { (OLD, NEW) } else { (NEW, OLD) };
        let at_ns = trial.instance.switch(trial.world, &[new])?;
        switches.push(Switch { at_ns, old, new });
        pause(GAP)?;
    }
    let steady: Steady = load.report()?;
    trial.instance.switch(trial.world, &BACKENDS)?;
    trial.instance.await_all(trial.world)?;
    let end = switches.iter().skip(1).map(|next| next.at_ns).chain([u64::MAX]);
    let seen: Vec<(f64, f64)> = switches
        .iter()
        .zip(end)
        .map(|(switch, end_ns)| {
            switch.seen(&steady.outcomes, end_ns).context("a change was not seen in 0.9 s")
        })
        .collect::<Result<_>>()?;
    let failed = steady.outcomes.iter().filter(|outcome| outcome.answer == 0).count();
    Ok(vec![
        ("reload.first", median(seen.iter().map(|(first, _)| *first).collect())),
        ("reload.last", median(seen.iter().map(|(_, last)| *last).collect())),
        ("reload.failed", failed as f64),
    ])
}

struct Switch {
    at_ns: u64,
    old: u8,
    new: u8,
}

impl Switch {
    /// Returns milliseconds to the first new and to the last old answer.
    fn seen(&self, outcomes: &[Outcome], end_ns: u64) -> Option<(f64, f64)> {
        let after = |answer: u8| {
            let ends = outcomes.iter().filter(move |outcome| outcome.answer == answer);
            ends.map(|outcome| outcome.end_ns()).filter(|end| (self.at_ns..end_ns).contains(end))
        };
        let millis = |ns: u64| (ns - self.at_ns) as f64 / 1e6;
        Some((millis(after(self.new).min()?), after(self.old).max().map_or(0.0, millis)))
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
