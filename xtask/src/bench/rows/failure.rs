//! A backend dies, or falls silent, under a steady rate of new connections; or the balancer itself is killed.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::super::load::{Steady, Talks, now_ns};
use super::super::net::{Side, Stage};
use super::super::peers::{Admin, Peer};
use super::super::process::pause;
use super::super::world::Background;
use super::{Readings, Trial};

const RATE: &str = "2000";
const VICTIM: u8 = 2;
const LEAD: Duration = Duration::from_millis(1000);
const KILLS: u32 = 3;
/// Time before the first kill, and from one to the next.
const CALM: Duration = Duration::from_secs(3);
const LIVE: Duration = Duration::from_secs(2);
/// Time from a kill to the start behind it.
const DEAD: Duration = Duration::from_millis(100);

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

/// Kills the balancer again and again beside conversations that last.
pub(super) fn killed(trial: &mut Trial<'_>) -> Result<Readings> {
    if !trial.instance.peer.is_process() {
        return Ok(Vec::new());
    }
    let seconds = (CALM + LIVE * KILLS).as_secs_f64().to_string();
    let words = ["--conns", "64", "--answer", "100", "--pause", "5", "--seconds", &seconds];
    let mut load = Background::start(&mut trial.world.load("talk", &trial.instance.targets(), &words))?;
    // The first answers, and hand-overs where there are any, are not what is told of.
    pause(CALM / 2)?;
    let settled = now_ns();
    pause(CALM / 2)?;
    let first_kill = now_ns();
    for _ in 0..KILLS {
        trial.instance.kill_and_start(trial.world, DEAD)?;
        pause(LIVE.saturating_sub(DEAD))?;
    }
    let talks: Talks = load.report()?;
    trial.instance.await_all(trial.world)?;
    ensure!(talks.answers > 0, "no answer");
    let longest = |from: u64, to: u64| {
        let within = talks.silences.iter().filter(|one| (from..to).contains(&(one.since_ns + one.took_ns)));
        within.map(|one| one.took_ns).max().unwrap_or(0) as f64 / 1e6
    };
    Ok(vec![
        ("killed.broken", talks.broken as f64),
        ("killed.gap", longest(first_kill, u64::MAX)),
        ("killed.calm", longest(settled, first_kill)),
    ])
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
