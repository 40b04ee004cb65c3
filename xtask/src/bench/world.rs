//! The namespaces with their backends, and one balancer at a time between them and the load.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde::de::DeserializeOwned;

use crate::cgroup::Cgroup;

use super::args::Placement;
use super::install::Installed;
use super::load::{First, now_ns};
use super::net::{BALANCER_CORE, LOAD_CORE, Net, Side, Stage};
use super::peers::{Admin, Peer, Place};
use super::process::{Running, check_interrupted, inside, output, pause, send, wait_until};

/// All backends by their numbers.
pub const BACKENDS: [u8; 3] = [1, 2, 3];

/// Everything around the balancer.
#[derive(Debug)]
pub struct World {
    // Fields drop in this order: processes before the namespaces they live in.
    backends: [Option<Running>; 3],
    net: Net,
    program: PathBuf,
    folder: PathBuf,
    placement: Placement,
    stage: Stage,
    cgroup: Option<Cgroup>,
    instances: u32,
}

impl World {
    /// Builds the namespaces; `folder` is this run's own.
    pub fn build(program: PathBuf, folder: PathBuf) -> Result<Self> {
        let net = Net::build()?;
        let (placement, stage) = (Placement::Unpinned, Stage::Apart);
        let cgroup = Cgroup::enter("bench")
            .inspect_err(|error| println!("left out: relay sk_msg, which needs a cgroup: {error:#}"))
            .ok();
        Ok(Self {
            backends: [None, None, None],
            net,
            program,
            folder,
            placement,
            stage,
            cgroup,
            instances: 0,
        })
    }

    /// Starts all backends anew in a placement.
    pub fn place(&mut self, placement: Placement) -> Result<()> {
        self.placement = placement;
        self.net.pin_receive(placement == Placement::Pinned)?;
        for id in BACKENDS {
            self.start_backend(id)?;
        }
        Ok(())
    }

    /// Moves the backends to where a measure wants them; says whether they moved.
    pub fn set_stage(&mut self, stage: Stage) -> Result<bool> {
        if self.stage == stage {
            return Ok(false);
        }
        self.stage = stage;
        BACKENDS.into_iter().try_for_each(|id| self.start_backend(id))?;
        Ok(true)
    }

    /// Returns the namespaces.
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// Returns the folder of this run.
    pub fn folder(&self) -> &PathBuf {
        &self.folder
    }

    /// Starts one backend, in place of an older one.
    pub fn start_backend(&mut self, id: u8) -> Result<()> {
        let slot = &mut self.backends[usize::from(id - 1)];
        *slot = None;
        let listen = self.stage.backend(id).to_string();
        let namespace = self.net.name(self.stage.namespace_of(Side::Backends));
        let args = ["bench", "serve", "--listen", &listen, "--id", &id.to_string()].map(str::to_owned);
        let core = (self.placement == Placement::Pinned).then_some(LOAD_CORE);
        *slot = Some(Running::start(&mut inside(&namespace, core, &self.program, &args))?);
        let listening = || {
            let filter = ["-Htln", "src", &listen].map(str::to_owned);
            let found = output(&mut inside(&namespace, None, "ss".as_ref(), &filter));
            found.is_ok_and(|listing| !listing.trim().is_empty())
        };
        ensure!(wait_until(Duration::from_secs(5), listening)?, "backend {id} does not listen");
        Ok(())
    }

    /// Kills one backend at once.
    pub fn kill_backend(&mut self, id: u8) -> Result<()> {
        let running = self.backends[usize::from(id - 1)].take().context("the backend does not run")?;
        running.signal(Signal::KILL)
    }

    /// Builds a load command on the client side.
    pub fn load(&self, mode: &str, targets: &[std::net::SocketAddrV4], rest: &[&str]) -> Command {
        let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
        let mut args = vec!["bench".to_owned(), mode.to_owned(), "--target".to_owned(), targets.join(",")];
        args.extend(rest.iter().map(|&word| word.to_owned()));
        let core = (self.placement == Placement::Pinned).then_some(LOAD_CORE);
        inside(&self.net.name(self.stage.namespace_of(Side::Client)), core, &self.program, &args)
    }

    /// Builds a command on the balancer's side.
    pub fn beside_balancer(&self, program: &std::path::Path, args: &[String]) -> Command {
        let core = (self.placement == Placement::Pinned).then_some(BALANCER_CORE);
        inside(&self.net.name(Side::Balancer), core, program, args)
    }

    /// Builds a command that reaches the balancer's loopback and runs where the load does.
    pub fn watching(&self, program: &std::path::Path, args: &[String]) -> Command {
        let core = (self.placement == Placement::Pinned).then_some(LOAD_CORE);
        inside(&self.net.name(Side::Balancer), core, program, args)
    }

    /// Returns the program of the load side.
    pub fn program(&self) -> &std::path::Path {
        &self.program
    }

    /// Takes the files and rules of one peer away and makes a folder for the next.
    pub fn clean(&mut self) -> Result<PathBuf> {
        self.net.nft_flush(Side::Balancer)?;
        self.net.nft_flush(Side::Backends)?;
        self.instances += 1;
        Ok(self.folder.join(self.instances.to_string()))
    }
}

/// Runs a load to its end and reads its sample.
pub fn sample<T: DeserializeOwned>(command: &mut Command) -> Result<T> {
    check_interrupted()?;
    let text = output(command)?;
    let line = text.lines().last().context("the load reported nothing")?;
    Ok(serde_json::from_str(line)?)
}

/// A load that runs beside what the bench does.
#[derive(Debug)]
pub struct Background {
    running: Running,
    lines: BufReader<ChildStdout>,
}

impl Background {
    /// Starts it.
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut running = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let stdout = running.child().stdout.take().context("the load has no output")?;
        Ok(Self { running, lines: BufReader::new(stdout) })
    }

    /// Reads its next report.
    pub fn report<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        check_interrupted()?;
        ensure!(!line.is_empty(), "the load ended without a report");
        Ok(serde_json::from_str(&line)?)
    }

    /// Tells it to go on.
    pub fn go_on(&mut self) {
        self.running.child().stdin = None;
    }
}

/// One balancer.
#[derive(Debug)]
pub struct Instance {
    /// Which.
    pub peer: Peer,
    /// Where.
    pub place: Place,
    running: Option<Running>,
}

impl Instance {
    /// Starts a peer with all backends; returns it with the milliseconds to its first answer.
    pub fn start(world: &mut World, peer: Peer, installed: &Installed) -> Result<(Self, f64)> {
        let dir = world.clean()?;
        let binary = installed.binaries.get(&peer).cloned().unwrap_or_default();
        let place = Place {
            dir,
            binary,
            workers: world.placement.workers(),
            stage: world.stage,
            cgroup: world.cgroup.as_ref().map(|cgroup| cgroup.path().to_owned()),
        };
        peer.prepare(&place, &BACKENDS)?;
        world.net.ports(Side::Balancer, peer == Peer::Forward)?;
        let mut prober =
            Background::start(&mut world.load("first", &peer.targets(world.stage), &["--seconds", "10"]))?;
        let _: super::load::Held = prober.report()?;
        let before = now_ns();
        let running = match peer {
            Peer::Direct => None,
            Peer::Nft => {
                world.net.nft(Side::Balancer, &peer.file(&place))?;
                None
            }
            _ => Some(spawn(world, peer, &place)?),
        };
        let mut instance = Self { peer, place, running };
        let first: First = prober.report()?;
        let at = first.at_ns.with_context(|| instance.why_silent())?;
        match peer {
            Peer::Sockmap | Peer::Splice => instance.await_kernel("relay_usable")?,
            Peer::SkMsg => instance.await_short_way()?,
            Peer::Forward => instance.await_kernel("frontend_forwarded")?,
            _ => {}
        }
        Ok((instance, at.saturating_sub(before) as f64 / 1e6))
    }

    /// Waits until the kernel serves, as a metric tells; without it, the rows would be those of `copy`.
    fn await_kernel(&self, metric: &str) -> Result<()> {
        let admin = Admin::of(&self.place);
        for _ in 0..200 {
            if admin.metric(metric)?.is_some_and(|usable| usable > 0.0) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("the kernel does not serve: {metric} stays 0")
    }

    /// Waits until connections made from now on take the short way, which the status tells by what its program counts.
    fn await_short_way(&self) -> Result<()> {
        let admin = Admin::of(&self.place);
        let serves = || admin.read("/api/v1/status").is_ok_and(|status| status.contains("messages: "));
        ensure!(wait_until(Duration::from_secs(10), serves)?, "relay sk_msg is off");
        Ok(())
    }

    /// Kills all its processes, and starts it again a moment later; returns before it serves.
    pub fn kill_and_start(&mut self, world: &World, after: Duration) -> Result<()> {
        let running = self.running.take().context("no process")?;
        for pid in running.tree() {
            // A child may have ended with its parent.
            let _ = send(pid, Signal::KILL);
        }
        drop(running);
        pause(after)?;
        self.running = Some(spawn(world, self.peer, &self.place)?);
        Ok(())
    }

    /// Returns the addresses that a client connects to.
    pub fn targets(&self) -> Vec<std::net::SocketAddrV4> {
        self.peer.targets(self.place.stage)
    }

    /// Returns its processes, for the load to read their processor time.
    pub fn pids(&self) -> Vec<u32> {
        self.running.as_ref().map(Running::tree).unwrap_or_default()
    }

    /// Says whether nothing stands between client and backends that could change.
    pub fn targets_are_fixed(&self) -> bool {
        self.peer == Peer::Direct
    }

    /// Returns its process.
    pub fn process(&self) -> Result<&Running> {
        self.running.as_ref().context("no process")
    }

    /// Says whether it still runs.
    pub fn alive(&mut self) -> bool {
        self.running.as_mut().is_none_or(Running::alive)
    }

    /// Waits until all backends answer through it.
    pub fn await_all(&self, world: &World) -> Result<()> {
        let words = ["--backends", "3", "--seconds", "12"];
        let mut prober = Background::start(&mut world.load("first", &self.targets(), &words))?;
        let _: super::load::Held = prober.report()?;
        let first: First = prober.report()?;
        first.at_ns.map(drop).context("not all backends are back after 12 s")
    }

    /// Replaces its backends its own way; returns the moment just before.
    pub fn switch(&self, world: &World, backends: &[u8]) -> Result<u64> {
        let before = now_ns();
        self.peer.replace(&self.place, backends)?;
        if self.peer == Peer::Nft {
            world.net.nft(Side::Balancer, &self.peer.file(&self.place))?;
        }
        if let Some(signal) = self.peer.reload_signal() {
            self.process()?.signal(signal)?;
        }
        Ok(before)
    }

    fn why_silent(&mut self) -> String {
        let end = Instant::now() + Duration::from_millis(200);
        while self.alive() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        let said = std::fs::read_to_string(self.place.dir.join("output.log")).unwrap_or_default();
        let last: Vec<&str> = said.lines().rev().take(3).collect();
        let state = if self.alive() { "gave no answer in 10 s" } else { "ended at its start" };
        format!("{} {state}: {}", self.peer.name(), last.join(" / "))
    }
}

fn spawn(world: &World, peer: Peer, place: &Place) -> Result<Running> {
    let log = std::fs::File::create(place.dir.join("output.log"))?;
    let mut command = world.beside_balancer(&place.binary, &peer.arguments(place));
    command.stdout(log.try_clone()?).stderr(log).current_dir(&place.dir);
    Running::start(&mut command)
}
