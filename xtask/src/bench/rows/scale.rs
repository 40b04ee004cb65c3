//! A large file, Lemonade only: what its size costs.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::super::install::Installed;
use super::super::load::cpu_seconds;
use super::super::net::{Side, Stage};
use super::super::peers::{Admin, Peer, Place, SCALE_FRONTENDS, SCALE_POOL, scale_file, write};
use super::super::process::{Running, check_interrupted, output, pause, wait_until};
use super::super::world::World;

const READY: Duration = Duration::from_secs(60);
const SEEN: Duration = Duration::from_secs(15);
const PROBES: Duration = Duration::from_secs(5);

/// Measures check, start, memory, probes and reload; each line is a title and a value in words.
pub fn scale(world: &mut World, installed: &Installed) -> Result<Vec<(String, String)>> {
    let binary = installed.binaries.get(&Peer::Lemonade).context("lemonade is not there")?.clone();
    let place = Place { dir: world.clean()?, binary, workers: 2, stage: Stage::Apart, cgroup: None };
    std::fs::create_dir_all(&place.dir)?;
    let file = place.dir.join("scale.toml");
    write(&file, &scale_file(&place, false))?;
    answer_all_probes(world)?;
    let mut lines = vec![(
        "file".to_owned(),
        format!(
            "{SCALE_FRONTENDS} frontends, {} backends, {} KiB",
            u32::from(SCALE_FRONTENDS) * u32::from(SCALE_POOL),
            std::fs::metadata(&file)?.len() / 1024
        ),
    )];
    lines.push(("lemonade check".to_owned(), millis(check(&place, &file)?)));

    let log = std::fs::File::create(place.dir.join("output.log"))?;
    let args = ["run".to_owned(), "--config".to_owned(), file.display().to_string()];
    let began = Instant::now();
    let mut command = world.beside_balancer(&place.binary, &args);
    let running = Running::start(command.stdout(log.try_clone()?).stderr(log).current_dir(&place.dir))?;
    let admin = Admin::of(&place);
    let ready = wait_until(READY, || admin.read("/readyz").is_ok())?;
    ensure!(ready, "not ready after {} s", READY.as_secs());
    lines.push(("start to ready".to_owned(), millis(began.elapsed())));
    pause(Duration::from_secs(2))?;
    lines.push(("memory (PSS)".to_owned(), format!("{:.1} MiB", running.memory_kib() as f64 / 1024.0)));

    let before = admin.metric("probes_total")?;
    let watched = Instant::now();
    pause(PROBES)?;
    let after = admin.metric("probes_total")?;
    let probes = match (before, after) {
        (Some(before), Some(after)) => format!("{:.0}", (after - before) / watched.elapsed().as_secs_f64()),
        (None, _) | (_, None) => "no metric".to_owned(),
    };
    lines.push(("probes per second".to_owned(), probes));

    let version = admin.metric("config_version")?.context("no metric config_version")?;
    let journal = place.dir.join("state/journal.jsonl");
    let length = || std::fs::metadata(&journal).map_or(0, |entry| entry.len());
    let (ticks, before) = (cpu_seconds(&running.tree()), length());
    let began = Instant::now();
    write(&file, &scale_file(&place, true))?;
    while length() == before && began.elapsed() < SEEN {
        check_interrupted()?;
        std::thread::sleep(Duration::from_millis(1));
    }
    let (took, busy) = (began.elapsed(), cpu_seconds(&running.tree()) - ticks);
    let now = admin.metric("config_version")?;
    ensure!(now.is_some_and(|now| now > version), "a changed backend was not seen in {} s", SEEN.as_secs());
    lines.push(("reload of one backend, until its line is in the journal".to_owned(), millis(took)));
    lines.push(("- process CPU until then".to_owned(), format!("{busy:.2} s")));
    Ok(lines)
}

/// Median of three.
fn check(place: &Place, file: &Path) -> Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..3 {
        let began = Instant::now();
        output(std::process::Command::new(&place.binary).arg("check").arg(file))?;
        times.push(began.elapsed());
    }
    times.sort();
    Ok(times[1])
}

/// Leads every port of the first backend's address to the one that answers.
fn answer_all_probes(world: &World) -> Result<()> {
    let rules = world.folder().join("scale.nft");
    let backend = Stage::Apart.backend(1);
    let text = format!(
        "table ip scale {{
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        ip daddr {} tcp dport 20000-30100 redirect to :{};
    }}
}}
",
        backend.ip(),
        backend.port()
    );
    std::fs::write(&rules, text)?;
    world.net().nft(Side::Backends, &rules)
}

fn millis(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1000.0)
}
