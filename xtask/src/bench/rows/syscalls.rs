//! System calls per round trip, counted from outside.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::super::load::Closed;
use super::super::process::{Running, pause};
use super::super::world::sample;
use super::{Readings, Trial};

/// Enough that the set-up of the connection and the health checks vanish in the last digit.
const ROUND_TRIPS: &str = "10000";

pub(super) fn per_round_trip(trial: &Trial<'_>) -> Result<Readings> {
    if !trial.instance.peer.is_process() {
        return Ok(Vec::new());
    }
    let trace = trial.world.folder().join("calls.strace");
    let mut args = vec!["-f".to_owned(), "-qq".to_owned(), "-o".to_owned(), trace.display().to_string()];
    for pid in trial.instance.pids() {
        args.extend(["-p".to_owned(), pid.to_string()]);
    }
    let strace = Running::start(&mut trial.world.beside_balancer(Path::new("strace"), &args))
        .context("strace is not installed")?;
    pause(Duration::from_millis(700))?;
    let target = &trial.instance.targets()[..1];
    let words = ["--seconds", "15", "--warm", "0", "--count", ROUND_TRIPS];
    let ping: Closed = sample(&mut trial.world.load("ping", target, &words))?;
    drop(strace);
    let text = std::fs::read_to_string(&trace).unwrap_or_default();
    // A call that another thread interrupts is two lines; signals and exits are no calls.
    let calls = text.lines().filter(|line| line.contains('(') && !line.contains(" resumed>")).count();
    ensure!(calls > 0, "strace saw nothing");
    Ok(vec![("syscalls", calls as f64 / ping.done as f64)])
}
