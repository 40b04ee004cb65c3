//! A backend dies, or falls silent, under a steady rate of new connections.

use std::time::Duration;

use anyhow::Result;

use super::super::load::Steady;
use super::super::net::{Side, Stage};
use super::super::peers::{Admin, Peer};
use super::super::process::pause;
use super::super::world::Background;
use super::{Readings, Trial};

const RATE: &str = "2000";
const VICTIM: u8 = 2;
const LEAD: Duration = Duration::from_millis(1000);

pub(super) fn kill(trial: &mut Trial<'_>) -> Result<Readings> {
    if trial.instance.targets_are_fixed() {
        return Ok(Vec::new());
    }
    let mut load = steady(trial, "4")?;
    pause(LEAD)?;
    trial.world.kill_backend(VICTIM)?;
    let steady: Result<Steady> = load.report();
    trial.world.start_backend(VICTIM)?;
    trial.instance.await_all(trial.world)?;
    readings(trial, &steady?, ["kill.failed", "kill.slowest"])
}

pub(super) fn silent(trial: &mut Trial<'_>) -> Result<Readings> {
    if trial.instance.targets_are_fixed() {
        return Ok(Vec::new());
    }
    let rules = trial.world.folder().join("silent.nft");
    let address = Stage::Apart.backend(VICTIM);
    let text = format!(
        "table ip silent {{
    chain input {{
        type filter hook input priority 0;
        ip daddr {} drop;
    }}
}}
",
        address.ip()
    );
    std::fs::write(&rules, text)?;
    let mut load = steady(trial, "5")?;
    pause(LEAD)?;
    trial.world.net().nft(Side::Backends, &rules)?;
    let steady: Result<Steady> = load.report();
    trial.world.net().nft_flush(Side::Backends)?;
    trial.instance.await_all(trial.world)?;
    readings(trial, &steady?, ["silent.failed", "silent.slowest"])
}

fn steady(trial: &Trial<'_>, seconds: &str) -> Result<Background> {
    let words = ["--rate", RATE, "--seconds", seconds];
    Background::start(&mut trial.world.load("steady", &trial.instance.targets(), &words))
}

fn readings(trial: &Trial<'_>, steady: &Steady, [failed, slowest]: [&'static str; 2]) -> Result<Readings> {
    let answered = steady.outcomes.iter().filter(|outcome| outcome.answer != 0);
    let worst = answered.clone().map(|outcome| outcome.took_us).max().unwrap_or(0);
    let lost = steady.outcomes.len() - answered.count();
    if lost > 0 && trial.instance.peer == Peer::Lemonade {
        println!("{failed} {lost}, since its start: {}", Admin::of(&trial.instance.place).reasons()?);
    }
    Ok(vec![(failed, lost as f64), (slowest, f64::from(worst) / 1000.0)])
}
