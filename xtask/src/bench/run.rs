//! The order of a run: rounds, placements, peers, rows.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::args::{Args, Placement};
use super::figures::{FIGURES, Measure};
use super::install::{Folders, Installed, build_load, peers as install_peers};
use super::load::{Held, machine_seconds};
use super::net::Stage;
use super::peers::Peer;
use super::process::{catch_signals, check_interrupted, pause};
use super::publish::publish;
use super::results::Results;
use super::rows::{Trial, scale};
use super::table::Setting;
use super::world::{Background, Instance, World};

/// Rows in the order in which one instance meets them: memory while it is fresh, failures last.
const ORDER: [Measure; 17] = [
    Measure::Memory,
    Measure::Pingpong,
    Measure::Syscalls,
    Measure::Small,
    Measure::Medium,
    Measure::Large,
    Measure::Connections,
    Measure::Cost,
    Measure::Down,
    Measure::Up,
    Measure::Lasting,
    Measure::HandOver,
    Measure::Reload,
    Measure::Kill,
    Measure::Silent,
    Measure::Killed,
    Measure::SameHost,
];

/// Measures everything that was asked for.
pub fn run(args: &Args) -> Result<()> {
    ensure!(rustix::process::getuid().is_root(), "the bench needs root, to make network namespaces");
    catch_signals()?;
    raise_descriptor_limit()?;
    let folders = Folders::find()?;
    let wanted: Vec<Peer> = Peer::ALL.into_iter().filter(|peer| args.includes(*peer)).collect();
    println!("building");
    let program = build_load(&folders, wanted.iter().any(|peer| peer.is_own()))?;
    check_interrupted()?;
    let installed = install_peers(&folders, &wanted);
    check_interrupted()?;
    for (peer, why) in &installed.missing {
        println!("left out: {}: {why}", peer.name());
    }
    let present: Vec<Peer> = wanted
        .into_iter()
        .filter(|peer| *peer == Peer::Direct || installed.binaries.contains_key(peer))
        .collect();
    ensure!(!present.is_empty(), "no peer is left");
    println!("{} peers, about {}", present.len(), words(estimate(args, &present)));

    let folder = folders.of_this_run()?;
    let measured = measure(args, &program, &folder, &installed, &present);
    let _ = fs::remove_dir_all(&folder);
    let (results, setting) = measured?;
    publish(&folders, &results, &setting, &present, args.docs)
}

fn measure(
    args: &Args,
    program: &std::path::Path,
    folder: &std::path::Path,
    installed: &Installed,
    peers: &[Peer],
) -> Result<(Results, Setting)> {
    let mut setting = setting(args, installed);
    let mut results = Results::default();
    let mut world = World::build(program.to_owned(), folder.to_owned())?;
    world.place(Placement::Unpinned)?;
    setting.congestion = congestion(&mut world, installed, peers)?;
    println!("{}", setting.congestion);
    let began = Instant::now();
    for round in 1..=args.rounds() {
        for placement in args.pinning.placements() {
            world.place(*placement)?;
            for peer in peers {
                let minute = began.elapsed().as_secs() / 60;
                println!("minute {minute}: round {round}, {}, {}", placement.name(), peer.name());
                setting.disturbance.push(disturbance()?);
                visit(args, &mut world, *placement, *peer, installed, &mut results)?;
                check_interrupted()?;
            }
        }
    }
    if args.wants(Measure::Scale) && peers.contains(&Peer::Lemonade) {
        world.place(Placement::Unpinned)?;
        println!("scale");
        results.scale = scale(&mut world, installed)
            .unwrap_or_else(|error| vec![("failed".to_owned(), format!("{error:#}"))]);
        check_interrupted()?;
    }
    Ok((results, setting))
}

/// Runs all rows of one peer; what fails is noted in its row, and the others go on with a new instance.
fn visit(
    args: &Args,
    world: &mut World,
    placement: Placement,
    peer: Peer,
    installed: &Installed,
    results: &mut Results,
) -> Result<()> {
    let here = |measure: Measure| {
        args.wants(measure)
            && peer.takes(measure)
            && (placement == args.pinning.placements()[0] || !measure.pinned_only())
    };
    let mut instance = None;
    let mut first_start = true;
    for measure in [Measure::Start].into_iter().chain(ORDER).filter(|measure| here(*measure)) {
        check_interrupted()?;
        if world.set_stage(measure.stage())? {
            drop(instance.take());
        }
        let alive = instance.as_mut().is_some_and(Instance::alive);
        if !alive {
            drop(instance.take());
            match Instance::start(world, peer, installed) {
                Ok((started, millis)) => {
                    if first_start && here(Measure::Start) && peer != Peer::Direct {
                        results.add("start", placement, peer, millis);
                    }
                    instance = Some(started);
                }
                Err(error) => {
                    note(results, measure, placement, peer, &error);
                    continue;
                }
            }
            first_start = false;
        }
        let Some(current) = &mut instance else { continue };
        let mut trial = Trial { world, instance: current, sample: args.sample(), quick: args.quick };
        match trial.run(measure) {
            Ok(readings) => {
                for (id, value) in readings {
                    results.add(id, placement, peer, value);
                }
            }
            Err(error) => {
                check_interrupted()?;
                note(results, measure, placement, peer, &error);
                instance = None;
            }
        }
        // Sockets of the last row close before the next begins.
        pause(Duration::from_millis(100))?;
    }
    Ok(())
}

fn note(results: &mut Results, measure: Measure, placement: Placement, peer: Peer, error: &anyhow::Error) {
    let why = format!("{error:#}");
    eprintln!("{} {}: {why}", peer.name(), placement.name());
    let short: String = why.chars().take(90).collect();
    for figure in FIGURES.iter().filter(|figure| measure.owns(figure.id)) {
        let process_only = figure.id.ends_with(".cpu") && !peer.is_process();
        if !process_only {
            results.note(figure.id, placement, peer, &short);
        }
    }
}

fn estimate(args: &Args, peers: &[Peer]) -> Duration {
    let sample = args.sample().as_secs_f64();
    let mut seconds = 0.0;
    for measure in ORDER.into_iter().chain([Measure::Start]).filter(|measure| args.wants(*measure)) {
        let placements = if measure.pinned_only() { 1 } else { args.pinning.placements().len() };
        let visitors = peers
            .iter()
            .filter(|peer| peer.takes(measure) && (peer.is_process() || !measure.pinned_only()))
            .count();
        seconds += measure.cost(sample) * placements as f64 * visitors as f64;
    }
    seconds *= f64::from(args.rounds());
    if args.wants(Measure::Scale) && peers.contains(&Peer::Lemonade) {
        seconds += Measure::Scale.cost(sample);
    }
    Duration::from_secs_f64(seconds)
}

fn words(time: Duration) -> String {
    if time.as_secs() < 90 {
        format!("{} s", time.as_secs())
    } else {
        format!("{} min", time.as_secs().div_ceil(60))
    }
}

/// Looks at sockets under load, through a proxy if there is one, so that all three sides have some.
fn congestion(world: &mut World, installed: &Installed, peers: &[Peer]) -> Result<String> {
    let proxy = peers.iter().copied().find(|peer| peer.is_process()).unwrap_or(Peer::Direct);
    let (instance, _) = Instance::start(world, proxy, installed)?;
    let words = ["--conns", "12", "--seconds", "5"];
    let mut load = Background::start(&mut world.load("hold", &proxy.targets(Stage::Apart), &words))?;
    let _: Held = load.report()?;
    let counts = world.net().congestion()?;
    load.go_on();
    drop(instance);
    let (cubic, all) = counts.iter().fold((0, 0), |(c, a), (_, cubic, all)| (c + cubic, a + all));
    ensure!(all > 0 && cubic == all, "{} of {all} sockets do not use cubic: {counts:?}", all - cubic);
    Ok(format!("Congestion control: cubic on all {all} sockets seen with ss in the three namespaces."))
}

/// Returns the share of the machine, in percent, that other work takes while the bench does nothing.
fn disturbance() -> Result<f64> {
    let cores = std::thread::available_parallelism()?.get() as f64;
    let (began, before) = (Instant::now(), machine_seconds());
    pause(Duration::from_millis(500))?;
    Ok((machine_seconds() - before) / began.elapsed().as_secs_f64() / cores * 100.0)
}

fn setting(args: &Args, installed: &Installed) -> Setting {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let field =
        |name: &str| cpu.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(": "));
    let model = field("model name").map_or("unknown processor", |(_, model)| model.trim());
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = read("/proc/sys/kernel/osrelease");
    let names = |peer: &Peer, words: &str| (peer.name().to_owned(), words.to_owned());
    Setting {
        machine: format!("{cores} cores ({model}), Linux {}", kernel.trim()),
        load_before: read("/proc/loadavg").split_whitespace().take(2).collect::<Vec<_>>().join(" "),
        rounds: args.rounds(),
        seconds: args.sample().as_secs_f64(),
        versions: installed.versions.iter().map(|(peer, version)| names(peer, version)).collect(),
        missing: installed.missing.iter().map(|(peer, why)| names(peer, why)).collect(),
        congestion: String::new(),
        disturbance: Vec::new(),
    }
}

/// Children inherit the limit: two descriptors per connection add up.
fn raise_descriptor_limit() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context("cannot raise the descriptor limit")
}
