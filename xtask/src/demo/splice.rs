//! `cargo xtask demo splice`: a download goes on while the balancer is killed and started again.
//!
//! ```text
//! client 192.0.2.1 --- 192.0.2.10 balancer 10.0.0.1 --- 10.0.0.11, 10.0.0.12 backends
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::forward::{Namespace, PATIENCE, join};
use crate::{bpf, generate, set_up, workspace};

const CONFIG: &str = "config/examples/splice.toml";

/// What is downloaded, and its bytes.
const BYTES: u64 = 60_000_000;
const RATE: u64 = 10_000_000;

/// Backends of the example by name.
const BACKENDS: [(&str, &str); 2] = [("a", "10.0.0.11:8080"), ("b", "10.0.0.12:8080")];

/// Builds and runs the demo.
pub fn main(objects: Option<&bpf::Objects>) -> Result<()> {
    bpf::probe(objects).map_err(|why| anyhow::anyhow!("packets cannot be spliced here: {why}"))?;
    run(generate::build_with(objects)?)
}

/// Makes the namespaces, runs the example in them, kills it in the middle of a download, starts it again, and takes everything
/// away.
pub fn run(lemonade: PathBuf) -> Result<()> {
    set_up::probe_namespaces().map_err(|why| anyhow::anyhow!("the demo needs network namespaces: {why}"))?;
    ensure!(set_up::on_path("curl"), "the demo needs curl (Debian package curl)");
    let folder = workspace::target().join("demo-splice");
    fs::create_dir_all(&folder)?;
    let mut stage = Stage::start(lemonade, &folder)?;
    println!("$ lemonade run --config {CONFIG}    (from the balancer's namespace)");
    stage.run()?;
    stage.wait("relay splice is not on: `lemonade status` says why", |stage| {
        Ok(stage.ask(&["status"])?.contains("its self-tests passed"))
    })?;
    let target = format!("http://192.0.2.10/bytes/{BYTES}?rate={RATE}");
    println!("\n$ curl --output download '{target}'    (from the client's namespace)");
    let file = folder.join("download");
    let _ = fs::remove_file(&file);
    let mut curl = stage.client.command("curl");
    curl.args(["--silent", "--show-error", "--max-time", "60", "--output"]).arg(&file).arg(&target);
    let download = stage.downloads.insert(curl.spawn()?);
    let download = Pid::from_child(download);
    stage.wait("the download was not spliced", |stage| {
        Ok(stage.ask(&["connections"])?.lines().any(|line| line.contains("splice")))
    })?;
    thread::sleep(Duration::from_secs(1));
    println!("\n$ lemonade connections");
    print!("{}", stage.ask(&["connections"])?);
    let so_far = || fs::metadata(&file).map_or(0, |about| about.len());
    let killed = so_far();
    println!("\n$ kill -9 {}    after {killed} bytes", stage.balancer()?.as_raw_nonzero());
    stage.end(Signal::KILL)?;
    thread::sleep(Duration::from_secs(1));
    let alone = so_far();
    println!("a second later, without a balancer: {alone} bytes");
    ensure!(alone > killed, "the download stands still");
    println!("\n$ lemonade run --config {CONFIG}");
    stage.run()?;
    println!("\n$ lemonade connections");
    let list = stage.ask(&["connections"])?;
    print!("{list}");
    ensure!(
        list.lines().any(|line| line.contains("splice")),
        "the next process does not know of the download"
    );
    let ended = stage.downloads.as_mut().context("it was started")?.wait()?;
    ensure!(ended.success(), "curl (pid {}) ended with {ended}", download.as_raw_nonzero());
    ensure!(so_far() == BYTES, "{} of {BYTES} bytes came", so_far());
    println!("\nthe download is whole: {BYTES} bytes");
    println!("\nCtrl-C");
    stage.end(Signal::INT)?;
    println!("Lemonade has ended; the programs are detached, and the namespaces go.");
    Ok(())
}

/// Everything that runs, which ends before the namespaces go.
struct Stage {
    balancer: Option<Child>,
    backends: Vec<Child>,
    downloads: Option<Child>,
    lemonade: PathBuf,
    socket: PathBuf,
    config: PathBuf,
    client: Namespace,
    middle: Namespace,
    _far: Namespace,
}

impl Stage {
    fn start(lemonade: PathBuf, folder: &Path) -> Result<Self> {
        let [client, middle, far] =
            [Namespace::make("client")?, Namespace::make("balancer")?, Namespace::make("backends")?];
        join(&client, &middle, &far)?;
        let mut backends = Vec::new();
        for (name, listen) in BACKENDS {
            let mut command = far.command(&lemonade);
            command.args(["demo-backend", "--name", name, "--listen", listen]).stdout(Stdio::null());
            backends.push(command.spawn().context("a demo backend cannot be started")?);
        }
        let socket = folder.join("admin.sock");
        let own = format!(
            "[runtime]\nstate_dir = {:?}\nlame_duck = \"0s\"\ndrain_timeout = \"2s\"\n[admin]\nsocket = {socket:?}\nlisten = \"off\"\n",
            folder.join("state")
        );
        let config = folder.join("splice.toml");
        fs::write(&config, own + &fs::read_to_string(workspace::root().join(CONFIG))?)?;
        Ok(Self {
            balancer: None,
            backends,
            downloads: None,
            lemonade,
            socket,
            config,
            client,
            middle,
            _far: far,
        })
    }

    /// Starts Lemonade and waits until it serves.
    fn run(&mut self) -> Result<()> {
        let mut run = self.middle.command(&self.lemonade);
        self.balancer = Some(run.arg("run").arg("--config").arg(&self.config).spawn()?);
        self.wait("Lemonade did not get ready in time", |stage| Ok(stage.ask(&["status"]).is_ok()))
    }

    fn wait(&mut self, otherwise: &str, mut holds: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        let began = Instant::now();
        while !holds(self)? {
            let balancer = self.balancer.as_mut().context("it runs")?;
            ensure!(balancer.try_wait()?.is_none(), "Lemonade ended: see above");
            if began.elapsed() > PATIENCE {
                bail!("{otherwise}");
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn ask(&self, words: &[&str]) -> Result<String> {
        let (command, rest) = words.split_first().context("a command")?;
        let mut lemonade = Command::new(&self.lemonade);
        lemonade.arg(command).args(rest).arg("--admin").arg(&self.socket).stderr(Stdio::null());
        workspace::output(&mut lemonade)
    }

    /// Its process: `nsenter` becomes the program that it starts.
    fn balancer(&self) -> Result<Pid> {
        self.balancer.as_ref().map(Pid::from_child).context("it runs")
    }

    /// Ends Lemonade; in order it must succeed.
    fn end(&mut self, signal: Signal) -> Result<()> {
        kill_process(self.balancer()?, signal)?;
        let mut balancer = self.balancer.take().context("it runs")?;
        let began = Instant::now();
        loop {
            if let Some(status) = balancer.try_wait()? {
                ensure!(signal == Signal::KILL || status.success(), "Lemonade ended with {status}");
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                let _ = balancer.kill();
                bail!("Lemonade did not end in time");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let started = self.downloads.iter_mut().chain(&mut self.backends).chain(&mut self.balancer);
        for child in started {
            // Ended already is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
