//! `cargo xtask demo forward`: the example of NAT between three network namespaces, asked with curl.
//!
//! ```text
//! client --- 192.0.2.10, 2001:db8::10 balancer 10.0.0.1, fd00::1 --- 10.0.0.11, 10.0.0.12, fd00::11 backends
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::{bpf, generate, set_up, workspace};

const CONFIG: &str = "config/examples/forward-nat.toml";

/// Addresses that curl asks, each so many times.
const ASKED: [(&str, usize); 2] = [("http://192.0.2.10/", 9), ("http://[2001:db8::10]/", 3)];

/// Backends of the example by name.
const BACKENDS: [(&str, &str); 3] =
    [("a", "10.0.0.11:8080"), ("b", "10.0.0.12:8080"), ("six", "[fd00::11]:8080")];

/// Time that something started gets to be there, or to end.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

/// Builds, makes the namespaces, runs the example in them, shows that it serves, and takes everything away again.
pub fn main(objects: Option<&bpf::Objects>) -> Result<()> {
    set_up::probe_namespaces().map_err(|why| anyhow::anyhow!("the demo needs network namespaces: {why}"))?;
    ensure!(set_up::on_path("curl"), "the demo needs curl (Debian package curl)");
    if let Err(why) = bpf::probe(objects) {
        println!("packets cannot be forwarded here, so the proxy will serve: {why}");
    }
    let lemonade = generate::build_with(objects)?;
    let folder = workspace::target().join("demo-forward");
    fs::create_dir_all(&folder)?;
    let mut stage = Stage::start(lemonade, &folder)?;
    for (target, count) in ASKED {
        println!("\n$ curl {target}    (from the client's namespace, {count} times)");
        for _ in 0..count {
            let answer = workspace::output(stage.client.command("curl").args([
                "--silent",
                "--show-error",
                "--max-time",
                "5",
                target,
            ]))?;
            print!("{answer}");
        }
    }
    // Counters follow within a quarter of a second.
    thread::sleep(Duration::from_millis(600));
    println!("\n$ lemonade status");
    print!("{}", stage.ask(&["status"])?);
    println!("\n$ lemonade explain 192.0.2.1:40000");
    print!("{}", stage.ask(&["explain", "192.0.2.1:40000"])?);
    println!("\nCtrl-C");
    stage.stop()?;
    println!("Lemonade has ended; the program is detached, and the namespaces go.");
    Ok(())
}

/// A network namespace, deleted by name when dropped.
pub(super) struct Namespace(String);

impl Namespace {
    pub(super) fn make(role: &str) -> Result<Self> {
        let namespace = Self(format!("lemonade-demo-{}-{role}", std::process::id()));
        workspace::run(Command::new("ip").args(["netns", "add", &namespace.0]))?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    fn ip(&self, words: &str) -> Result<()> {
        workspace::run(Command::new("ip").args(["-n", &self.0]).args(words.split(' ')))
    }

    /// A command that runs in it.
    pub(super) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        // `ip netns exec` would hide the cgroups.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/var/run/netns/{}", self.0)).arg(program).stdin(Stdio::null());
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

/// Everything that runs, which ends before the namespaces go.
struct Stage {
    balancer: Child,
    backends: Vec<Child>,
    lemonade: PathBuf,
    socket: PathBuf,
    client: Namespace,
    _others: [Namespace; 2],
}

impl Stage {
    fn start(lemonade: PathBuf, folder: &Path) -> Result<Self> {
        let [client, middle, far] =
            [Namespace::make("client")?, Namespace::make("balancer")?, Namespace::make("backends")?];
        join(&client, &middle, &far)?;
        let backend = |(name, listen): (&str, &str)| {
            let mut command = far.command(&lemonade);
            command.args(["demo-backend", "--name", name, "--listen", listen]).stdout(Stdio::null());
            command.spawn().context("a demo backend cannot be started")
        };
        let mut backends = Vec::new();
        for own in BACKENDS {
            backends.push(backend(own)?);
        }
        let socket = folder.join("admin.sock");
        let own = format!(
            "[runtime]\nstate_dir = {:?}\nlame_duck = \"0s\"\ndrain_timeout = \"2s\"\n[admin]\nsocket = {socket:?}\nlisten = \"off\"\n",
            folder.join("state")
        );
        let config = folder.join("forward-nat.toml");
        fs::write(&config, own + &fs::read_to_string(workspace::root().join(CONFIG))?)?;
        println!("$ lemonade run --config {CONFIG}    (from the balancer's namespace)");
        let mut run = middle.command(&lemonade);
        let balancer = run.arg("run").arg("--config").arg(&config).spawn()?;
        let mut stage = Self { balancer, backends, lemonade, socket, client, _others: [middle, far] };
        let began = Instant::now();
        while stage.ask(&["status"]).is_err() {
            ensure!(stage.balancer.try_wait()?.is_none(), "Lemonade ended: see above");
            if began.elapsed() > PATIENCE {
                bail!("Lemonade did not get ready in time");
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(stage)
    }

    fn ask(&self, words: &[&str]) -> Result<String> {
        let (command, rest) = words.split_first().context("a command")?;
        let mut lemonade = Command::new(&self.lemonade);
        lemonade.arg(command).args(rest).arg("--admin").arg(&self.socket).stderr(Stdio::null());
        workspace::output(&mut lemonade)
    }

    /// Ends Lemonade as a user would.
    fn stop(&mut self) -> Result<()> {
        // `nsenter` becomes the program that it starts.
        kill_process(Pid::from_child(&self.balancer), Signal::INT)?;
        let began = Instant::now();
        loop {
            if let Some(status) = self.balancer.try_wait()? {
                ensure!(status.success(), "Lemonade ended with {status}");
                return Ok(());
            }
            ensure!(began.elapsed() < PATIENCE, "Lemonade did not end in time");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for child in self.backends.iter_mut().chain([&mut self.balancer]) {
            // Ended already is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Joins the namespaces by two links and gives them the addresses of the example.
pub(super) fn join(client: &Namespace, middle: &Namespace, far: &Namespace) -> Result<()> {
    for (end, name) in [(client, "clients"), (far, "backends")] {
        end.ip(&format!("link add uplink type veth peer name {name} netns {}", middle.0))?;
        end.ip("link set uplink up")?;
        middle.ip(&format!("link set {name} up"))?;
    }
    for address in ["192.0.2.1/24", "2001:db8::1/64 nodad"] {
        client.ip(&format!("addr add {address} dev uplink"))?;
    }
    for (address, link) in [
        ("192.0.2.10/24", "clients"),
        ("2001:db8::10/64 nodad", "clients"),
        ("10.0.0.1/24", "backends"),
        ("fd00::1/64 nodad", "backends"),
    ] {
        middle.ip(&format!("addr add {address} dev {link}"))?;
    }
    for address in ["10.0.0.11/24", "10.0.0.12/24", "fd00::11/64 nodad"] {
        far.ip(&format!("addr add {address} dev uplink"))?;
    }
    Ok(())
}
