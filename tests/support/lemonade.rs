//! The process under test.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::http;
use crate::setup::Setup;
use crate::view::{Metrics, Status};
use crate::wait;

/// Time in which a process starts to serve.
const START: Duration = Duration::from_secs(30);

/// Path of the binary: `LEMONADE_BIN`, else built once from this workspace.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("LEMONADE_BIN") {
            return path.into();
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace");
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "-p", "lemonade", "--bin", "lemonade"])
            .current_dir(root)
            .status()
            .expect("cargo runs");
        assert!(built.success(), "cargo build of lemonade failed: {built}");
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        target.join("debug/lemonade")
    })
}

/// Runs `lemonade` with `arguments` to its end.
///
/// # Panics
/// When it does not end within half a minute, or panicked.
pub fn run(arguments: &[&str]) -> Output {
    run_in(arguments, |_| {})
}

/// As [`run`], with a change to the command.
///
/// # Panics
/// When it does not end within half a minute, or panicked.
pub fn run_in(arguments: &[&str], change: impl FnOnce(&mut Command)) -> Output {
    let mut command = Command::new(binary());
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    change(&mut command);
    let mut child = command.spawn().expect("lemonade starts");
    let pid = pid_of(&child);
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let guard = std::thread::spawn(move || {
        if ended.recv_timeout(START).is_err() {
            let _ = kill_process(pid, Signal::KILL);
        }
    });
    drop(child.stdin.take());
    let output = child.wait_with_output().expect("output of lemonade");
    let _ = done.send(());
    guard.join().expect("the guard does not panic");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains("panicked"), "lemonade {arguments:?} panicked:\n{text}");
    assert!(output.status.code().is_some(), "lemonade {arguments:?} did not end by itself:\n{text}");
    output
}

/// A running process with its folder: configuration, state, admin socket and output.
pub struct Lemonade {
    child: Child,
    folder: TempDir,
    ended: Option<ExitStatus>,
}

impl Lemonade {
    /// Starts a process with `setup` and waits until it is ready.
    ///
    /// # Panics
    /// When it does not get ready.
    pub fn start(setup: &Setup) -> Self {
        Self::start_in(setup, |_| {})
    }

    /// As [`Self::start`], with relay `sockmap` in use although it is not proven.
    ///
    /// # Panics
    /// When it does not get ready.
    pub fn start_on_unproven(setup: &Setup) -> Self {
        Self::start_in(setup, |command| {
            command.env("LEMONADE_UNPROVEN_RELAYS", "sockmap");
        })
    }

    /// As [`Self::start`], with a change to the command (environment, namespace).
    ///
    /// # Panics
    /// When it does not get ready.
    pub fn start_in(setup: &Setup, change: impl FnOnce(&mut Command)) -> Self {
        Self::start_through(Command::new(binary()), setup, change)
    }

    /// As [`Self::start`], under a limit of `descriptors` open files.
    ///
    /// # Panics
    /// When it does not get ready.
    pub fn start_limited(setup: &Setup, descriptors: u32) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"")]).arg(binary());
        Self::start_through(shell, setup, |_| {})
    }

    /// Starts `command` (which runs lemonade with the arguments added here) and waits until it is ready.
    ///
    /// # Panics
    /// When it does not get ready.
    pub fn start_through(command: Command, setup: &Setup, change: impl FnOnce(&mut Command)) -> Self {
        let mut this = Self::spawn(command, setup, change);
        this.await_ready();
        this
    }

    fn await_ready(&mut self) {
        wait::until("lemonade is ready", START, || {
            assert!(self.exited().is_none(), "lemonade ended at start:\n{}", self.output());
            http::get_unix(&self.socket(), "/readyz").is_ok_and(|answer| answer.status == 200)
        });
    }

    /// As [`Self::start`], with a text that is made for its folder.
    ///
    /// # Panics
    /// When it does not get ready.
    pub fn start_text(text: impl FnOnce(&Path) -> String) -> Self {
        let mut this = Self::spawn_text(Command::new(binary()), text, |_| {});
        this.await_ready();
        this
    }

    /// Starts a process that may fail and does not wait for it.
    ///
    /// # Panics
    /// When the process cannot be made.
    pub fn spawn(command: Command, setup: &Setup, change: impl FnOnce(&mut Command)) -> Self {
        Self::spawn_text(command, |folder| setup.text(folder), change)
    }

    fn spawn_text(
        mut command: Command,
        text: impl FnOnce(&Path) -> String,
        change: impl FnOnce(&mut Command),
    ) -> Self {
        let folder = tempfile::Builder::new().prefix("lemonade-").tempdir().expect("a temporary folder");
        let config = folder.path().join("lemonade.toml");
        fs::write(&config, text(folder.path())).expect("a writable folder");
        let log = File::create(folder.path().join("output")).expect("a writable folder");
        command.arg("run").arg("--config").arg(&config).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a second descriptor")).stderr(log);
        command.env_remove("NOTIFY_SOCKET");
        change(&mut command);
        let child = command.spawn().expect("lemonade starts");
        Self { child, folder, ended: None }
    }

    /// Starts it again in its folder, after it has ended.
    ///
    /// # Panics
    /// When it does not get ready.
    pub fn restart(&mut self) {
        self.restart_by(binary());
    }

    /// As [`Self::restart`], by another build of it.
    ///
    /// # Panics
    /// When it does not get ready.
    pub fn restart_by(&mut self, binary: &Path) {
        let path = self.folder.path().join("output");
        let log = File::options().append(true).open(path).expect("a writable folder");
        let mut command = Command::new(binary);
        command.arg("run").arg("--config").arg(self.config()).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a second descriptor")).stderr(log);
        self.child = command.env_remove("NOTIFY_SOCKET").spawn().expect("lemonade starts");
        self.ended = None;
        self.await_ready();
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder().join("lemonade.toml")
    }

    /// Its admin socket.
    pub fn socket(&self) -> PathBuf {
        self.folder().join("admin.sock")
    }

    /// What it wrote to standard output and standard error so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder().join("output")).unwrap_or_default()).into_owned()
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        pid_of(&self.child)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the process is ours");
    }

    /// Its exit status, if it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("the child is ours");
        }
        self.ended
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end within `bound`.
    pub fn wait(&mut self, bound: Duration) -> ExitStatus {
        wait::for_some("lemonade ends", bound, || self.exited())
    }

    /// Its status.
    ///
    /// # Panics
    /// When the admin socket does not answer.
    pub fn status(&self) -> Status {
        self.try_status().expect("status over the admin socket")
    }

    /// Its status, unless the admin socket is gone.
    pub fn try_status(&self) -> Option<Status> {
        let answer = http::get_unix(&self.socket(), "/api/v1/status").ok()?;
        (answer.status == 200).then(|| Status::parse(&answer.body))
    }

    /// Its metrics.
    ///
    /// # Panics
    /// When the admin socket does not answer.
    pub fn metrics(&self) -> Metrics {
        let answer = http::get_unix(&self.socket(), "/metrics").expect("the admin socket answers");
        assert_eq!(answer.status, 200, "{}", answer.body);
        Metrics::parse(&answer.body)
    }

    /// First address of a frontend.
    ///
    /// # Panics
    /// When it has none.
    pub fn address(&self, frontend: &str) -> SocketAddr {
        let listening = self.status().listening(frontend);
        *listening.first().unwrap_or_else(|| panic!("frontend {frontend} does not listen"))
    }

    /// Address of its admin interface over TCP, as its log tells it.
    ///
    /// # Panics
    /// When the log does not.
    pub fn admin_address(&self) -> SocketAddr {
        let output = self.output();
        let line =
            output.lines().find(|line| line.contains("admin.sock")).expect("a line about the admin socket");
        let mut words = line.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':'));
        words.find_map(|word| word.parse().ok()).unwrap_or_else(|| panic!("no admin address in: {line}"))
    }

    /// Replaces the configuration file atomically.
    ///
    /// # Panics
    /// When the folder is not writable.
    pub fn write(&self, text: &str) {
        let next = self.folder().join("lemonade.toml.next");
        fs::write(&next, text).expect("a writable folder");
        fs::rename(&next, self.config()).expect("a writable folder");
    }

    /// Replaces the configuration, if it differs, and waits until the new one is in force.
    ///
    /// # Panics
    /// When it is refused or takes too long.
    pub fn reload(&self, setup: &Setup) {
        let text = setup.text(self.folder());
        if fs::read_to_string(self.config()).is_ok_and(|now| now == text) {
            return;
        }
        let before = self.status();
        self.write(&text);
        wait::until("the new configuration is in force", wait::SOON, || {
            let now = self.status();
            let refused = now.refused_at() != before.refused_at() && now.refused_at().is_some();
            assert!(!refused, "refused: {:?}", now.reload_error());
            now.config_version() > before.config_version()
        });
    }

    /// Writes a bad configuration and waits until it is refused; returns the error in the status.
    ///
    /// # Panics
    /// When it is not refused.
    pub fn reload_bad(&self, text: &str) -> String {
        let before = self.status();
        self.write(text);
        let error =
            wait::for_some("the bad configuration is refused", wait::SOON, || self.status().reload_error());
        assert_eq!(self.status().config_version(), before.config_version(), "the last good one goes on");
        error
    }

    /// Resident memory in bytes.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn resident(&self) -> u64 {
        let pid = self.pid().as_raw_nonzero();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a live process");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
        kib * 1024
    }

    /// Processor time used so far.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn processor_time(&self) -> Duration {
        let pid = self.pid().as_raw_nonzero();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a live process");
        let fields: Vec<&str> = stat.rsplit(") ").next().expect("a name").split(' ').collect();
        let ticks: u64 = fields[11..13].iter().map(|n| n.parse::<u64>().expect("a number")).sum();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }
}

impl Drop for Lemonade {
    fn drop(&mut self) {
        if self.exited().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        forget_what_outlives(self.child.id());
        let output = self.output();
        if std::thread::panicking() {
            let access = |line: &&str| line.contains("\"kind\":\"access\"");
            let log: Vec<&str> = output.lines().rev().filter(|line| !access(line)).take(20).collect();
            let records: Vec<&str> = output.lines().rev().filter(access).take(5).collect();
            eprintln!("--- last log lines, newest first\n{}", log.join("\n"));
            eprintln!("--- last access records, newest first\n{}\n---", records.join("\n"));
        } else {
            assert!(!output.contains("panicked"), "lemonade panicked:\n{output}");
        }
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Takes away what of the forward plane a killed process has left for a next one that does not come.
fn forget_what_outlives(pid: u32) {
    let entries =
        |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    for set in entries(Path::new("/sys/fs/bpf/lemonade")) {
        if set.join(format!("pid-{pid}")).exists() {
            for path in entries(&set) {
                let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
            }
            let _ = fs::remove_dir(set);
        }
    }
}
