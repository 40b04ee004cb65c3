//! `cargo xtask demo`: shows what a relay in the kernel brings on this machine, against `copy` in the same run, the
//! forward plane between network namespaces, or how a spliced download outlives the balancer.

mod forward;
mod splice;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cgroup::Cgroup;
use crate::{bpf, set_up, workspace};

/// What to show.
#[derive(clap::Args)]
pub struct Args {
    /// The relay sk_msg or splice, or the plane forward
    #[arg(value_parser = ["sk_msg", "splice", "forward"])]
    relay: String,
    /// Rounds, each of both relays
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Connections that ask at a time
    #[arg(long, default_value_t = 64)]
    connections: u32,
}

const CONFIG: &str = "config/examples/same-host.toml";

/// Frontends of the example, and its backends.
const PLAIN: &str = "127.0.0.1:8080";
const SHORT: &str = "127.0.0.1:8081";
const BACKENDS: [&str; 2] = ["127.0.0.1:9101", "127.0.0.1:9102"];

/// Time that something started gets to be there.
const PATIENCE: Duration = Duration::from_secs(15);

/// Builds, starts everything in a cgroup of its own, measures, prints and takes it away again.
pub fn main(args: &Args) -> Result<()> {
    if let ("splice", Some(lemonade)) = (&*args.relay, std::env::var_os("LEMONADE_BIN")) {
        return splice::run(lemonade.into());
    }
    set_up::install_for_build();
    let objects = bpf::set_up();
    match &*args.relay {
        "forward" => return forward::main(objects.as_ref()),
        "splice" => return splice::main(objects.as_ref()),
        _ => {}
    }
    let mut build = workspace::cargo(&["build", "--release", "--package", "lemonade"]);
    bpf::equip(&mut build, objects.as_ref());
    workspace::run(&mut build)?;
    let possible = bpf::probe(objects.as_ref());
    let cgroup = match &possible {
        Ok(()) => Some(Cgroup::enter("demo-sk_msg")?),
        Err(why) => {
            println!("{}: not possible here, so both frontends use copy: {why}", args.relay);
            None
        }
    };
    let folder = workspace::target().join("demo");
    fs::create_dir_all(&folder)?;
    let stage = Stage::start(cgroup.as_ref().map(Cgroup::path), &folder)?;
    if cgroup.is_some() {
        stage.await_relay(&args.relay)?;
    }
    let mut gains = Vec::new();
    println!(
        "{:>6}  {:<8} {:>12} {:>9} {:>9} {:>22}",
        "round", "relay", "requests/s", "p50 us", "p99 us", "machine CPU us/request"
    );
    for round in 1..=args.rounds {
        let [plain, short] = [("copy", PLAIN), (&*args.relay, SHORT)].map(|(name, target)| {
            let sample = stage.ask(target, args)?;
            let (rate, cpu) = (sample.rate(), sample.cpu());
            println!(
                "{round:>6}  {name:<8} {rate:>12.0} {:>9.0} {:>9.0} {cpu:>22.1}",
                sample.p50_us, sample.p99_us
            );
            anyhow::Ok(sample)
        });
        let (plain, short) = (plain?, short?);
        gains.push((short.rate() / plain.rate(), short.cpu() / plain.cpu()));
    }
    let middle = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let (rate, cpu) = gains.into_iter().unzip();
    println!(
        "\n{} against copy: {:.2} times the requests/s at {:.2} of the machine's CPU per request",
        args.relay,
        middle(rate),
        middle(cpu)
    );
    println!("\n{}", stage.status_lines(&args.relay, args)?);
    Ok(())
}

/// One measurement, as the load of the bench prints it.
#[derive(serde::Deserialize)]
struct Sample {
    seconds: f64,
    done: u64,
    errors: u64,
    p50_us: f64,
    p99_us: f64,
    machine: f64,
}

impl Sample {
    fn rate(&self) -> f64 {
        self.done as f64 / self.seconds
    }

    fn cpu(&self) -> f64 {
        self.machine / self.done as f64 * 1e6
    }
}

/// Lemonade with its backends.
struct Stage {
    running: Vec<Child>,
    lemonade: PathBuf,
    socket: PathBuf,
}

impl Stage {
    fn start(cgroup: Option<&Path>, folder: &Path) -> Result<Self> {
        let text = fs::read_to_string(workspace::root().join(CONFIG))?;
        let socket = folder.join("admin.sock");
        let line = |line: &str| match cgroup {
            Some(cgroup) if line.starts_with("accelerate_cgroup") => {
                format!("accelerate_cgroup = {cgroup:?}\n")
            }
            None if line.starts_with("accelerate_cgroup") => String::new(),
            None if line.starts_with("relay") => "relay = \"copy\"\n".to_owned(),
            _ => format!("{line}\n"),
        };
        let own = format!(
            "[runtime]\nstate_dir = {:?}\n[admin]\nsocket = {socket:?}\nlisten = \"off\"\n[log]\nlevel = \"warn\"\naccess = \"off\"\n",
            folder.join("state")
        );
        let config = folder.join("same-host.toml");
        fs::write(&config, own + &text.lines().map(line).collect::<String>())?;
        let lemonade = workspace::lemonade("release");
        let mut stage = Self { running: Vec::new(), lemonade, socket };
        for (at, listen) in BACKENDS.into_iter().enumerate() {
            let mut backend = own_load(&["serve", "--listen", listen, "--id", &(at + 1).to_string()])?;
            stage.running.push(backend.spawn()?);
        }
        let mut balancer = Command::new(&stage.lemonade);
        stage.running.push(balancer.arg("run").arg("--config").arg(&config).stdin(Stdio::null()).spawn()?);
        for address in BACKENDS.into_iter().chain([PLAIN, SHORT]) {
            let address: SocketAddr = address.parse()?;
            stage.wait(&format!("nothing answers on {address}"), || {
                Ok(std::net::TcpStream::connect(address).is_ok())
            })?;
        }
        Ok(stage)
    }

    /// Waits until the relay serves, or says why it does not.
    fn await_relay(&self, relay: &str) -> Result<()> {
        self.wait("the relay was not tried in time", || {
            let status: Value = serde_json::from_str(&self.status(&["--json"])?)?;
            let relays = status["relays"].as_array().cloned().unwrap_or_default();
            let own = relays.into_iter().find(|own| own["relay"] == relay).unwrap_or_default();
            let why = own["findings"]["why"].as_str().unwrap_or_default();
            ensure!(own["usable"] == true || why.is_empty(), "{relay} is off: {own:#}");
            Ok(why.contains("messages"))
        })
    }

    fn ask(&self, target: &str, args: &Args) -> Result<Sample> {
        let output = load(target, args)?.stdout(Stdio::piped()).spawn()?.wait_with_output()?;
        let text = String::from_utf8(output.stdout)?;
        let sample: Sample = serde_json::from_str(text.lines().last().context("the load reported nothing")?)?;
        ensure!(
            sample.done > 0 && sample.errors == 0,
            "{} requests to {target}, {} failed",
            sample.done,
            sample.errors
        );
        Ok(sample)
    }

    /// What `lemonade status` says of the relay while a load runs through it.
    fn status_lines(&self, relay: &str, args: &Args) -> Result<String> {
        let mut load = load(SHORT, args)?.stdout(Stdio::null()).spawn()?;
        thread::sleep(Duration::from_secs_f64(args.seconds / 2.0));
        let status = self.status(&[]);
        load.wait()?;
        let status = status?;
        let lines = status.lines().filter(|line| line.contains(relay) || line.contains("IN KERNEL"));
        Ok(format!("lemonade status:\n{}", lines.collect::<Vec<_>>().join("\n")))
    }

    fn status(&self, rest: &[&str]) -> Result<String> {
        workspace::output(
            Command::new(&self.lemonade).arg("status").arg("--admin").arg(&self.socket).args(rest),
        )
    }

    fn wait(&self, otherwise: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        let began = Instant::now();
        while !holds()? {
            if began.elapsed() > PATIENCE {
                bail!("{otherwise}");
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for child in self.running.iter_mut().rev() {
            // Ended already is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn load(target: &str, args: &Args) -> Result<Command> {
    let (seconds, connections) = (args.seconds.to_string(), args.connections.to_string());
    own_load(&[
        "closed",
        "--target",
        target,
        "--conns",
        &connections,
        "--answer",
        "100",
        "--seconds",
        &seconds,
    ])
}

/// A process of the bench's load side.
fn own_load(words: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("bench").args(words).stdin(Stdio::null());
    Ok(command)
}
