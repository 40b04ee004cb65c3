//! `cargo xtask run`: from a clone to a running load balancer.
//!
//! The demo backends hold the reading end of a pipe as standard input, `lemonade` holds the only writing end, and xtask
//! becomes `lemonade` by `exec`. So signals, terminal and exit code are Lemonade's own, the backends live until it has
//! drained, and none of them outlives it however it ends.

mod plan;

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, ErrorKind, PipeReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::{bpf, set_up, workspace};
use plan::{Demo, Plan};

/// What to run.
#[derive(clap::Args)]
pub struct Args {
    /// Command that starts Lemonade, split at white space, such as "sudo -E"; without it nothing asks for a password
    #[arg(long, value_name = "COMMAND")]
    runner: Option<String>,
    /// Arguments of `lemonade run`, such as `--config my.toml`; without them the demo runs
    #[arg(last = true)]
    lemonade: Vec<OsString>,
}

const CONFIG: &str = "config/lemonade.toml";

/// Time that a demo backend of the run before may take to go away.
const PORT_PATIENCE: Duration = Duration::from_secs(1);

/// Builds, starts and becomes Lemonade; returns only when something went wrong before that.
pub fn main(args: &Args) -> anyhow::Result<ExitCode> {
    set_up::install_for_build();
    let mut build = workspace::cargo(&["build", "--release", "--package", "lemonade"]);
    bpf::equip(&mut build, bpf::set_up().as_ref());
    workspace::run(&mut build)?;
    let lemonade = workspace::lemonade("release");
    let runner = args.runner.as_deref();
    if !args.lemonade.is_empty() {
        return become_lemonade(started(runner, &lemonade).args(&args.lemonade));
    }

    let config = workspace::root().join(CONFIG);
    let check = Command::new(&lemonade).arg("check").arg(&config).stdout(Stdio::null()).status();
    let check = check.with_context(|| format!("cannot start {}", lemonade.display()))?;
    if !check.success() {
        return Ok(exit_code(check));
    }
    let text =
        std::fs::read_to_string(&config).with_context(|| format!("cannot read {}", config.display()))?;
    let plan = Plan::read(&text)?;
    let busy = busy(&plan);
    if !busy.is_empty() {
        bail!("{}", busy.join("\n"));
    }

    let (reader, writer) = io::pipe()?;
    let ids: Vec<u32> =
        plan.demos.iter().map(|demo| start(&lemonade, demo, &reader)).collect::<anyhow::Result<_>>()?;
    drop(reader);
    println!("{}", plan.next_steps(&ids, CONFIG, &shown(&lemonade)));
    become_lemonade(started(runner, &lemonade).arg("--config").arg(&config).stdin(Stdio::from(writer)))
}

/// `lemonade run`, through the words of `runner`.
fn started(runner: Option<&str>, lemonade: &Path) -> Command {
    let mut words = runner.unwrap_or_default().split_whitespace();
    let mut command = match words.next() {
        Some(program) => {
            let mut command = Command::new(program);
            command.args(words).arg(lemonade);
            command
        }
        None => Command::new(lemonade),
    };
    command.arg("run");
    command
}

/// Starts a demo backend and returns its process id once it accepts.
fn start(lemonade: &Path, demo: &Demo, stdin: &PipeReader) -> anyhow::Result<u32> {
    let mut command = Command::new(lemonade);
    command
        .args(["demo-backend", "--until-stdin-closes", "--name", &demo.name])
        .args(["--listen", &demo.listen.to_string()])
        .args(["--delay", &format!("{}ms", demo.delay.as_millis())])
        .stdin(Stdio::from(stdin.try_clone()?))
        .stdout(Stdio::piped());
    // Ctrl-C reaches the terminal's process group: the backends must not see it while Lemonade drains.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.spawn().with_context(|| format!("cannot start demo backend {}", demo.name))?;

    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    if line.is_empty() {
        bail!("demo backend {} ended before it listened: {}", demo.name, child.wait()?);
    }
    Ok(child.id())
}

/// One sentence for each address that somebody else listens on.
fn busy(plan: &Plan) -> Vec<String> {
    let deadline = Instant::now() + PORT_PATIENCE;
    plan.addresses()
        .filter(|(address, _)| {
            while is_busy(*address) {
                if Instant::now() > deadline {
                    return true;
                }
                thread::sleep(Duration::from_millis(20));
            }
            false
        })
        .map(|(address, setting)| {
            format!(
                "{address} is in use; stop what listens there (`ss -ltnp 'sport = :{}'` names it) \
                 or change {setting} in {CONFIG}",
                address.port()
            )
        })
        .collect()
}

fn is_busy(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
}

/// A path as the user would type it here.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}

#[cfg(unix)]
fn become_lemonade(command: &mut Command) -> anyhow::Result<ExitCode> {
    let error = std::os::unix::process::CommandExt::exec(command);
    Err(error).with_context(|| format!("cannot start {}", workspace::shown(command)))
}

#[cfg(not(unix))]
fn become_lemonade(command: &mut Command) -> anyhow::Result<ExitCode> {
    Ok(exit_code(command.status().with_context(|| format!("cannot start {}", workspace::shown(command)))?))
}

fn exit_code(status: std::process::ExitStatus) -> ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(runner: Option<&str>) -> Vec<String> {
        let command = started(runner, Path::new("/a b/lemonade"));
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words.map(|word| word.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_runner_comes_before_lemonade_word_by_word() {
        assert_eq!(words(Some("sudo  -E")), ["sudo", "-E", "/a b/lemonade", "run"]);
    }

    #[test]
    fn without_a_runner_lemonade_is_started_itself() {
        assert_eq!(words(None), ["/a b/lemonade", "run"]);
        assert_eq!(words(Some(" ")), ["/a b/lemonade", "run"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_runner_gets_its_words_and_then_lemonades() {
        let folder = std::env::temp_dir().join(format!("lemonade-runner-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (script, seen) = (folder.join("stand-in"), folder.join("seen"));
        std::fs::write(&script, format!("printf '%s\\n' \"$@\" > {}", seen.display())).unwrap();
        let runner = format!("sh {} -E", script.display());
        let mut command = started(Some(&runner), Path::new("/a b/lemonade"));
        assert!(command.args(["--config", "my own.toml"]).status().unwrap().success());
        let seen = std::fs::read_to_string(seen).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(seen, "-E\n/a b/lemonade\nrun\n--config\nmy own.toml\n");
    }
}
