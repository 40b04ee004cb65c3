//! What a process holds when nothing moves.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::super::load::Held;
use super::super::process::{pause, wait_until};
use super::super::world::Background;
use super::{Readings, Trial};

/// Two descriptors per connection, below a hard limit of 20,000.
const CONNECTIONS: u64 = 9_600;
const SETTLE: Duration = Duration::from_millis(500);
/// Looks in a row that have to find the memory no smaller, before what a start has used counts as given back.
const STEADY: u32 = 8;

pub(super) fn memory(trial: &Trial<'_>) -> Result<Readings> {
    if !trial.instance.peer.is_process() {
        return Ok(Vec::new());
    }
    let process = trial.instance.process()?;
    let idle = settled(|| process.memory_kib(), Duration::from_secs(if trial.quick { 6 } else { 20 }))?;
    let conns = CONNECTIONS.to_string();
    let words = ["--conns", &conns, "--seconds", "15"];
    let mut load = Background::start(&mut trial.world.load("hold", &trial.instance.targets(), &words))?;
    let held: Held = load.report()?;
    pause(SETTLE)?;
    let full = process.memory_kib();
    load.go_on();
    let at_end: Held = load.report()?;
    ensure!(held.held > 0, "no connection was held");
    ensure!(full > idle, "{} connections took no memory: {idle} KiB before, {full} KiB with them", held.held);
    ensure!(at_end.failed == 0, "{} of {} idle connections were closed", at_end.failed, held.held);
    let grown = full.saturating_sub(idle) as f64;
    let back = |now: u64| full.saturating_sub(now) as f64 / grown * 100.0;
    let patience = Duration::from_secs(if trial.quick { 2 } else { 10 });
    wait_until(patience, || {
        std::thread::sleep(Duration::from_millis(100));
        back(process.memory_kib()) >= 97.0
    })?;
    Ok(vec![
        ("memory.idle", idle as f64 / 1024.0),
        ("memory.held", held.held as f64),
        ("memory.each", grown / held.held as f64),
        ("memory.back", back(process.memory_kib()).min(100.0)),
    ])
}

/// Reads until what is read has not fallen for a while: memory that a start has used comes back late.
fn settled(read: impl Fn() -> u64, patience: Duration) -> Result<u64> {
    let (mut least, mut steady) = (read(), 0);
    wait_until(patience, || {
        std::thread::sleep(SETTLE);
        let now = read();
        steady = if now < least { 0 } else { steady + 1 };
        least = least.min(now);
        steady >= STEADY
    })?;
    Ok(least)
}
