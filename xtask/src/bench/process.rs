//! Processes of the bench: started inside a namespace, read from /proc, ended by id.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Makes SIGINT, SIGTERM and SIGHUP end the run between two steps, with everything torn down.
pub fn catch_signals() -> Result<()> {
    let flag = INTERRUPTED.get_or_init(Arc::default);
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(flag))?;
    }
    Ok(())
}

/// Fails once the user has asked to stop.
pub fn check_interrupted() -> Result<()> {
    let asked = INTERRUPTED.get().is_some_and(|flag| flag.load(Ordering::Relaxed));
    ensure!(!asked, "interrupted");
    Ok(())
}

/// Sleeps, in short pieces that end at an interruption.
pub fn pause(length: Duration) -> Result<()> {
    let end = Instant::now() + length;
    loop {
        check_interrupted()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}

/// Waits until a condition holds; says whether it did before the time ran out.
pub fn wait_until(patience: Duration, mut holds: impl FnMut() -> bool) -> Result<bool> {
    let end = Instant::now() + patience;
    while Instant::now() < end {
        if holds() {
            return Ok(true);
        }
        check_interrupted()?;
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(holds())
}

/// Builds a command that runs inside a namespace, on one core if one is given.
pub fn inside(namespace: &str, core: Option<u32>, program: &Path, args: &[String]) -> Command {
    let mut command = Command::new("nsenter");
    // So that the relay is measured which no frontend gets otherwise; other programs do not know the word.
    command.env("LEMONADE_UNPROVEN_RELAYS", "sockmap");
    command.arg(format!("--net=/run/netns/{namespace}"));
    if let Some(core) = core {
        command.args(["taskset", "-c", &core.to_string()]);
    }
    command.arg(program).args(args).stdin(Stdio::null());
    command
}

/// Runs a command to its end; its output is part of the error when it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } = command
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
    if !status.success() {
        let shown = format!("{command:?}").replace('"', "");
        bail!("{shown}: {status}: {}", String::from_utf8_lossy(&stderr).trim());
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// A process that ends, with its children, when this goes out of scope.
#[derive(Debug)]
pub struct Running {
    child: Child,
}

impl Running {
    /// Starts a command.
    pub fn start(command: &mut Command) -> Result<Self> {
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
        Ok(Self { child })
    }

    /// Returns its id; the programs before it (nsenter, taskset) have become it.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the child, to speak with it.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Says whether it still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Returns the ids of the process and of all its descendants.
    pub fn tree(&self) -> Vec<u32> {
        let mut found = vec![self.pid()];
        let mut next = 0;
        while let Some(pid) = found.get(next).copied() {
            found.extend(children(pid));
            next += 1;
        }
        found
    }

    /// Sums the proportional set size of the tree, in KiB.
    pub fn memory_kib(&self) -> u64 {
        self.tree().into_iter().filter_map(memory_kib).sum()
    }

    /// Sends a signal to the process itself.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        send(self.pid(), signal)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let tree: BTreeMap<u32, String> =
            self.tree().into_iter().filter_map(|pid| Some((pid, started(pid)?))).collect();
        if self.alive() {
            let _ = self.signal(Signal::TERM);
        }
        let end = Instant::now() + Duration::from_millis(700);
        while self.alive() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        if self.alive() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
        for (pid, start) in tree {
            if started(pid).is_some_and(|now| now == start) {
                let _ = send(pid, Signal::KILL);
            }
        }
    }
}

/// Sends a signal to a process by its id.
pub fn send(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no such process id")?;
    Ok(kill_process(pid, signal)?)
}

fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|p| p.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

fn memory_kib(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Start time of a process: with the id it names one process for ever.
fn started(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19).map(str::to_owned)
}
