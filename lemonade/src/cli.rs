//! The command line.

mod ask;
mod decap;
mod foresee;
mod operate;
mod screen;
mod show;
mod steer;
mod top;
mod trace;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

use crate::admin::openapi;
use crate::admin::table::many;
use crate::app::{self, Settings};
use crate::config::adapters::notify::FileConfig;
use crate::config::port::ConfigService;
use crate::config::{self, error::ConfigError};
use crate::demo::{self, DemoOptions};
use crate::doctor;
use crate::log;
use crate::metrics::adapters::{access_format, otlp};
use crate::proxy::adapters::bpf;
use crate::shutdown::Signals;

use ask::BAD_INPUT;
use operate::Operate;

const EXIT_CODES: &str = "Exit codes: 0 success, 1 failure at run time (nobody answers at the admin socket, or it \
cannot do it), 2 bad configuration, name or command line: nothing was changed, 3 --if-version names another version: \
nothing was changed.";

/// A load balancer in one binary and one TOML file.
#[derive(Debug, Parser)]
#[command(name = "lemonade", version, about, long_about = None)]
#[command(after_help = EXIT_CODES)]
pub struct Cli {
    /// Admin socket of the instance to ask; it may also follow the command
    #[arg(long, value_name = "SOCKET")]
    admin: Option<OsString>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the load balancer in the foreground
    Run {
        /// Configuration file; changes to it take effect at once
        #[arg(long, short, value_name = "FILE")]
        config: PathBuf,
        /// Admin socket, instead of the one in the configuration
        #[arg(long, value_name = "SOCKET")]
        admin: Option<PathBuf>,
    },
    /// Check a configuration: every error with its line, its column and what to write instead
    Check {
        /// Configuration file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Print a JSON schema
    Schema {
        /// What it describes
        #[arg(value_enum, default_value_t)]
        of: Document,
    },
    #[command(flatten)]
    Operate(Operate),
    /// Say what this host and this build can do, and what each frontend of a configuration would get
    Doctor {
        /// Configuration file; without it, only the host and the build are looked at
        #[arg(long, short, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove what killed processes of Lemonade left in the kernel; what lives is left alone
    Cleanup,
    /// On a backend: take off the headers that a balancer in mode dsr-ipip puts in front of packets, until stopped
    Decap(decap::Options),
    /// Serve as a backend that says its name, for trying Lemonade out
    DemoBackend(DemoOptions),
    /// Print shell completions
    Completions {
        /// Shell to write for
        shell: clap_complete::Shell,
    },
    /// Print the man page
    Man,
}

/// What has a schema.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Document {
    /// The configuration file
    #[default]
    Config,
    /// A line of the access log
    Access,
    /// The admin API, as OpenAPI
    Admin,
}

/// Runs the command line of the process.
pub fn main() -> ExitCode {
    let Cli { admin: before, command } = Cli::parse();
    if before.is_some() && !matches!(command, Command::Run { .. } | Command::Operate(_)) {
        complain("--admin goes with run and with commands for a running Lemonade");
        return ExitCode::from(BAD_INPUT);
    }
    let done = match command {
        Command::Run { config, admin } => return run(&config, admin.or_else(|| before.map(PathBuf::from))),
        Command::Check { file } => return check(&file),
        Command::Schema { of: Document::Config } => print(config::schema().as_bytes()),
        Command::Schema { of: Document::Access } => print(access_format::schema().as_bytes()),
        Command::Schema { of: Document::Admin } => print(openapi::document().as_bytes()),
        Command::Operate(command) => {
            return match command.run(before) {
                Ok(()) => ExitCode::SUCCESS,
                Err(trouble) => trouble.tell(),
            };
        }
        Command::Doctor { config, json } => return doctor(config.as_deref(), json),
        Command::Cleanup => cleanup(),
        Command::Decap(options) => runtime().and_then(|runtime| runtime.block_on(decap::run(options))),
        Command::DemoBackend(options) => runtime().and_then(|runtime| runtime.block_on(demo::serve(options))),
        Command::Completions { shell } => {
            let mut out = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "lemonade", &mut out);
            print(&out)
        }
        Command::Man => man().map_err(Into::into).and_then(|page| print(&page)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn run(file: &Path, admin: Option<PathBuf>) -> ExitCode {
    let mut environment = environment();
    if let Some(socket) = admin {
        environment.push(("LEMONADE__ADMIN__SOCKET".to_owned(), socket.to_string_lossy().into_owned()));
    }
    let service = Arc::new(FileConfig::new(file.to_owned(), environment.clone()));
    let config = match service.load() {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    let process = Arc::default();
    let (telemetry, exporter) = otlp::channel(Arc::clone(&process));
    let (handle, style) = match log::init(&config.log, &telemetry) {
        Ok(log) => log,
        Err(error) => return fail(&anyhow::anyhow!("log.level: {error}")),
    };
    let settings = Settings {
        service,
        config,
        file: file.to_owned(),
        environment,
        process,
        telemetry: (telemetry, exporter),
        log: handle,
        style,
        stream: Box::new(io::stderr()),
    };
    let ran = runtime().and_then(|runtime| {
        runtime.block_on(async {
            let signals = Signals::listen().context("cannot listen to signals")?;
            let bound = app::build(settings).await?;
            for (frontend, address) in bound.listeners() {
                tracing::info!(%frontend, %address, "listening");
            }
            match bound.admin_address() {
                Some(address) => {
                    tracing::info!(socket = %bound.admin_socket().display(), %address, "admin");
                }
                None => tracing::info!(socket = %bound.admin_socket().display(), "admin"),
            }
            bound.run(signals).await
        })
    });
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Takes away what killed processes left: cgroups, and what the forward plane keeps for the next start.
fn cleanup() -> anyhow::Result<()> {
    let removed = bpf::cleanup()?;
    if removed.is_empty() {
        return print(b"nothing was left\n");
    }
    let lines: String = removed.iter().map(|path| format!("removed {}\n", path.display())).collect();
    print(lines.as_bytes())
}

fn check(file: &Path) -> ExitCode {
    match config::read(file, &environment()) {
        Ok(config) => {
            let backends: usize = config.pools.values().map(|pool| pool.backends.len()).sum();
            let summary = format!(
                "{}: ok: {}, {}, {}\n",
                file.display(),
                many(config.frontends.len() as u64, "frontend", "frontends"),
                many(config.pools.len() as u64, "pool", "pools"),
                many(backends as u64, "backend", "backends")
            );
            let notes = config::notes(&config).into_iter().map(|note| format!("note: {note}\n"));
            let summary = summary + &notes.collect::<String>();
            print(summary.as_bytes()).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
        }
        Err(error) => refuse(&error),
    }
}

/// Fails where something that the configuration asks for is impossible.
fn doctor(file: Option<&Path>, json: bool) -> ExitCode {
    let config = match file.map(|file| config::read(file, &environment())).transpose() {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    let report = doctor::examine(file.zip(config.as_ref()), doctor::try_relays());
    let text =
        if json { serde_json::to_string_pretty(&report).map(|text| text + "\n") } else { Ok(report.table()) };
    match text.map_err(Into::into).and_then(|text| print(text.as_bytes())) {
        Ok(()) if report.configuration.is_some_and(|own| !own.runs_as_asked) => ExitCode::FAILURE,
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn man() -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let mut command = Cli::command();
    command.build();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    for sub in command.get_subcommands() {
        clap_mangen::Man::new(sub.clone()).render_options_section(&mut page)?;
        for own in sub.get_subcommands() {
            clap_mangen::Man::new(own.clone()).render_options_section(&mut page)?;
        }
    }
    Ok(page)
}

/// Control runs on one thread: what it does is short or waits, and the workers have threads of their own.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// The environment variables that override keys of the configuration.
fn environment() -> Vec<(String, String)> {
    let text = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
    };
    std::env::vars_os().filter_map(text).filter(|(name, _)| name.starts_with("LEMONADE__")).collect()
}

fn print(bytes: &[u8]) -> anyhow::Result<()> {
    // A reader may have seen enough: `lemonade schema | head`.
    heard(bytes).map(|_| ())
}

/// As [`print`]; tells whether anybody still reads.
fn heard(bytes: &[u8]) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => Ok(written.map(|()| true)?),
    }
}

/// Says on stderr what is wrong.
fn complain(why: &str) {
    // With stderr gone there is nobody left to tell.
    let _ = writeln!(io::stderr(), "lemonade: {why}");
}

fn refuse(error: &ConfigError) -> ExitCode {
    let count = error.diagnostics.len();
    let plural = if count == 1 { "" } else { "s" };
    // With stderr gone there is nobody left to tell.
    let _ = writeln!(io::stderr(), "{error}\n{count} error{plural}");
    ExitCode::from(BAD_INPUT)
}

fn fail(error: &anyhow::Error) -> ExitCode {
    complain(&format!("{error:#}"));
    ExitCode::FAILURE
}
