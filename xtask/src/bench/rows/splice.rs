//! Relay `splice`: that it took part, and what a hand-over costs.

use anyhow::{Result, ensure};

use super::super::peers::{Admin, Peer};
use super::traffic::closed;
use super::{Readings, Trial};

/// Requests of a connection that lasts.
const REQUESTS: &str = "400";

/// Connections that were handed over since the start.
fn promoted(trial: &Trial<'_>) -> Result<f64> {
    Ok(Admin::of(&trial.instance.place).metric("frontend_relay_promoted_total")?.unwrap_or(0.0))
}

/// Measures a row; of relay `splice` only if at least `least` connections were handed over in it.
pub(super) fn proven(
    trial: &Trial<'_>,
    least: f64,
    measure: impl FnOnce(&Trial<'_>) -> Result<Readings>,
) -> Result<Readings> {
    if trial.instance.peer != Peer::Splice {
        return measure(trial);
    }
    let before = promoted(trial)?;
    let readings = measure(trial)?;
    let spliced = promoted(trial)? - before;
    ensure!(spliced >= least, "blocked: {spliced} connections were handed over, {least} at least wanted");
    Ok(readings)
}

/// Connections that last as long as they must to be handed over, one after the other: beside others, system calls have packets of
/// those to handle, which would count as theirs.
pub(super) fn hand_over(trial: &Trial<'_>) -> Result<Readings> {
    let admin = Admin::of(&trial.instance.place);
    let (before, (earlier, each)) = (promoted(trial)?, admin.hand_overs()?);
    let words = ["--conns", "1", "--answer", "100", "--reconnect", "--requests", REQUESTS];
    let sample = closed(trial, &words)?;
    // What the status tells of it is some tenths of a second old.
    std::thread::sleep(std::time::Duration::from_millis(1_500));
    let (spliced, (later, each_later)) = (promoted(trial)? - before, admin.hand_overs()?);
    let count = later - earlier;
    ensure!(count > 10.0, "blocked: {count} connections were handed over");
    let connections = sample.done as f64 / REQUESTS.parse::<f64>()?;
    // Those of the generator's warm-up are among the spliced ones.
    let share = spliced / connections * sample.seconds / (sample.seconds + 0.5) * 100.0;
    Ok(vec![
        ("handover.rate", connections / sample.seconds / 1000.0),
        ("handover.share", share.min(100.0)),
        ("handover.took", (each_later * later - each * earlier) / count),
    ])
}
