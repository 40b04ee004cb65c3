//! Requests, connections and bulk at full speed.

use anyhow::{Result, ensure};

use super::super::load::{Bulk, Closed, Direction};
use super::super::world::sample;
use super::{Readings, Trial};

const PER: f64 = 100_000.0;

pub(super) fn small(trial: &Trial<'_>) -> Result<Readings> {
    let sample = closed(trial, &["--conns", "64", "--answer", "100"])?;
    let mut readings = requests(&sample, ["small.rate", "small.p50", "small.p99", "small.generator"]);
    readings.push(("small.machine", sample.machine / sample.done as f64 * PER));
    push_cpu(trial, &mut readings, "small.cpu", sample.watched / sample.done as f64 * PER);
    Ok(readings)
}

pub(super) fn medium(trial: &Trial<'_>) -> Result<Readings> {
    let sample = closed(trial, &["--conns", "64", "--answer", "16384"])?;
    let mut readings = requests(&sample, ["medium.rate", "medium.p50", "medium.p99", "medium.generator"]);
    readings.push(("medium.machine", sample.machine / sample.done as f64 * PER));
    push_cpu(trial, &mut readings, "medium.cpu", sample.watched / sample.done as f64 * PER);
    Ok(readings)
}

pub(super) fn large(trial: &Trial<'_>) -> Result<Readings> {
    let sample = closed(trial, &["--conns", "64", "--answer", "65536"])?;
    let mut readings = requests(&sample, ["large.rate", "large.p50", "large.p99", "large.generator"]);
    readings.push(("large.machine", sample.machine / sample.done as f64 * PER));
    push_cpu(trial, &mut readings, "large.cpu", sample.watched / sample.done as f64 * PER);
    Ok(readings)
}

pub(super) fn same_host(trial: &Trial<'_>) -> Result<Readings> {
    let asked = closed(trial, &["--conns", "64", "--answer", "100"])?;
    let mut readings = requests(&asked, ["same.rate", "same.p50", "same.p99", "same.generator"]);
    readings.push(("same.machine", asked.machine / asked.done as f64 * PER));
    push_cpu(trial, &mut readings, "same.cpu", asked.watched / asked.done as f64 * PER);
    let opened = closed(trial, &["--conns", "32", "--answer", "100", "--reconnect"])?;
    readings.push(("same.new.rate", opened.done as f64 / opened.seconds / 1000.0));
    readings.push(("same.new.machine", opened.machine / opened.done as f64 * PER));
    Ok(readings)
}

pub(super) fn connections(trial: &Trial<'_>) -> Result<Readings> {
    let sample = closed(trial, &["--conns", "32", "--answer", "100", "--reconnect"])?;
    let mut readings = requests(
        &sample,
        ["connections.rate", "connections.p50", "connections.p99", "connections.generator"],
    );
    readings.push(("connections.machine", sample.machine / sample.done as f64 * PER));
    push_cpu(trial, &mut readings, "connections.cpu", sample.watched / sample.done as f64 * PER);
    Ok(readings)
}

pub(super) fn pingpong(trial: &Trial<'_>) -> Result<Readings> {
    let seconds = trial.sample.as_secs_f64().to_string();
    let target = &trial.instance.targets()[..1];
    let sample: Closed = sample(&mut trial.world.load("ping", target, &["--seconds", &seconds]))?;
    Ok(vec![("pingpong.p50", sample.p50_us), ("pingpong.p99", sample.p99_us)])
}

pub(super) fn bulk(trial: &Trial<'_>, direction: Direction) -> Result<Readings> {
    let (word, keys) = match direction {
        Direction::Down => (
            "down",
            [
                ["down1.rate", "down1.cpu", "down1.machine", "down1.generator"],
                ["down8.rate", "down8.cpu", "down8.machine", "down8.generator"],
            ],
        ),
        Direction::Up => (
            "up",
            [
                ["up1.rate", "up1.cpu", "up1.machine", "up1.generator"],
                ["up8.rate", "up8.cpu", "up8.machine", "up8.generator"],
            ],
        ),
    };
    let mut readings = Vec::new();
    for (conns, keys) in ["1", "8"].into_iter().zip(keys) {
        readings.extend(streams(trial, &["--conns", conns, "--direction", word], keys)?);
    }
    Ok(readings)
}

/// A stream on a connection on which questions were asked before, with pauses.
pub(super) fn lasting(trial: &Trial<'_>) -> Result<Readings> {
    let keys = ["lasting.rate", "lasting.cpu", "lasting.machine", "lasting.generator"];
    streams(trial, &["--conns", "1", "--direction", "down", "--questions", "200"], keys)
}

fn streams(
    trial: &Trial<'_>,
    rest: &[&str],
    [rate, cpu, machine, generator]: [&'static str; 4],
) -> Result<Readings> {
    let seconds = trial.sample.as_secs_f64().to_string();
    let watch = trial.watch();
    let mut words = rest.to_vec();
    words.extend(["--seconds", &seconds]);
    if !watch.is_empty() {
        words.extend(["--watch", &watch]);
    }
    let bulk: Bulk = sample(&mut trial.world.load("bulk", &trial.instance.targets(), &words))?;
    ensure!(bulk.errors == 0, "{} streams closed early", bulk.errors);
    ensure!(bulk.bytes > 0, "no byte moved");
    let mut readings = vec![
        (rate, bulk.bytes as f64 * 8.0 / bulk.seconds / 1e9),
        (generator, bulk.own / bulk.seconds * 100.0),
        (machine, bulk.machine / (bulk.bytes as f64 / 1e9)),
    ];
    push_cpu(trial, &mut readings, cpu, bulk.watched / (bulk.bytes as f64 / 1e9));
    Ok(readings)
}

pub(super) fn closed(trial: &Trial<'_>, rest: &[&str]) -> Result<Closed> {
    let seconds = trial.sample.as_secs_f64().to_string();
    let watch = trial.watch();
    let mut words = rest.to_vec();
    words.extend(["--seconds", &seconds]);
    if !watch.is_empty() {
        words.extend(["--watch", &watch]);
    }
    let sample: Closed = sample(&mut trial.world.load("closed", &trial.instance.targets(), &words))?;
    ensure!(sample.done > 0, "no answer, {} connections failed", sample.errors);
    ensure!(sample.errors * 1000 <= sample.done, "{} failed beside {} answers", sample.errors, sample.done);
    Ok(sample)
}

fn requests(sample: &Closed, [rate, p50, p99, generator]: [&'static str; 4]) -> Readings {
    vec![
        (rate, sample.done as f64 / sample.seconds / 1000.0),
        (p50, sample.p50_us),
        (p99, sample.p99_us),
        (generator, sample.own / sample.seconds * 100.0),
    ]
}

fn push_cpu(trial: &Trial<'_>, readings: &mut Readings, key: &'static str, value: f64) {
    if trial.instance.peer.is_process() {
        readings.push((key, value));
    }
}
