//! Commands that look at, ask and steer a running Lemonade.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::control::overrides::MAX_WEIGHT;

use super::ask::{Answer, Instance};
use super::{foresee, show, steer, top, trace};

/// Commands for a running Lemonade.
#[derive(Debug, Subcommand)]
pub(super) enum Operate {
    /// Show what a running Lemonade is doing
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Show it again every second until interrupted
        #[arg(long, conflicts_with = "json")]
        watch: bool,
        /// Show what TCP tells of each backend too
        #[arg(long, conflicts_with = "json")]
        tcp: bool,
        #[command(flatten)]
        instance: Instance,
    },
    /// Watch frontends, backends and connections on one screen, with keys to steer
    Top {
        #[command(flatten)]
        instance: Instance,
    },
    /// List connections
    Connections(Connections),
    /// Say why a connection went where it went, got no backend, or ended
    Why {
        /// Its number, CLIENT:PORT, CLIENT:PORT->ADDRESS:PORT, or CLIENT for its newest connection
        #[arg(value_name = "CONNECTION")]
        connection: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        instance: Instance,
    },
    /// Say which backend the next connection of a client would get, and why; changes nothing
    Explain {
        /// Client address, with or without its port
        #[arg(value_name = "CLIENT")]
        client: String,
        /// Frontend; without it, each of them
        #[arg(value_name = "FRONTEND")]
        frontend: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        instance: Instance,
    },
    /// Say what a configuration would change in the running Lemonade; changes nothing
    Plan {
        /// Configuration file
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        instance: Instance,
    },
    /// Show decisions, refusals and ends of connections as they happen
    Trace(Trace),
    /// Show who changed what, when, and what came of it
    History(History),
    /// Change a backend of the running Lemonade; the file stays as it is
    Backend {
        #[command(flatten)]
        instance: Instance,
        #[command(subcommand)]
        change: Backend,
    },
    /// Read the configuration file again and tell the outcome
    Reload {
        #[command(flatten)]
        instance: Instance,
    },
    /// Show the log filter, or set it until the next start
    LogLevel {
        /// Level, or levels by part: info,lemonade::health=debug
        #[arg(value_name = "FILTER")]
        filter: Option<String>,
        #[command(flatten)]
        instance: Instance,
    },
    /// Write everything at one moment as JSON, for a bug report
    Dump {
        /// File to write; without it, standard output
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        instance: Instance,
    },
}

/// What to list.
#[derive(Debug, Args)]
pub(super) struct Connections {
    /// Rows, 1000 at most
    #[arg(long, short = 'n', default_value_t = 50)]
    pub(super) limit: usize,
    /// id, age, bytes, idle or connect; with - before it, the largest first
    #[arg(long, default_value = "age", allow_hyphen_values = true)]
    pub(super) sort: String,
    /// Text in frontend, pool, backend, client or backend address
    #[arg(long)]
    pub(super) filter: Option<String>,
    /// Only of this frontend
    #[arg(long)]
    pub(super) frontend: Option<String>,
    /// Only to this backend: NAME or POOL/NAME
    #[arg(long)]
    pub(super) backend: Option<String>,
    /// Those that ended last instead
    #[arg(long)]
    pub(super) ended: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) instance: Instance,
}

/// What to hear of.
#[derive(Debug, Args)]
pub(super) struct Trace {
    /// Only of this frontend
    #[arg(long)]
    pub(super) frontend: Option<String>,
    /// Only to this backend: NAME or POOL/NAME
    #[arg(long)]
    pub(super) backend: Option<String>,
    /// Only refusals and ends for this reason, such as no_backend_up or client_reset
    #[arg(long)]
    pub(super) reason: Option<String>,
    /// Only of this client: an address, with or without its port
    #[arg(long)]
    pub(super) client: Option<String>,
    /// decision, refusal or end; several separated by commas
    #[arg(long)]
    pub(super) kind: Option<String>,
    /// Lines per second at most; what is above is lost and counted
    #[arg(long, value_name = "N")]
    pub(super) rate: Option<u32>,
    /// End after so many lines
    #[arg(long, short = 'n', value_name = "N")]
    pub(super) count: Option<u64>,
    /// Print a JSON object a line
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) instance: Instance,
}

/// Which lines of the journal.
#[derive(Debug, Args)]
pub(super) struct History {
    /// From then on: 14:02, 14:02:30 or 2026-11-25T14:02:00Z (UTC, as Lemonade shows times), or 10m for ten minutes ago
    #[arg(long, value_name = "TIME")]
    pub(super) since: Option<String>,
    /// Until then
    #[arg(long, value_name = "TIME")]
    pub(super) until: Option<String>,
    /// config, health or admin
    #[arg(long)]
    pub(super) what: Option<String>,
    /// Text in a sentence of the line, such as the name of a backend
    #[arg(long)]
    pub(super) filter: Option<String>,
    /// Lines, 1000 at most
    #[arg(long, short = 'n', default_value_t = 50)]
    pub(super) limit: usize,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) instance: Instance,
}

/// What to do with a backend.
#[derive(Debug, Subcommand)]
pub(super) enum Backend {
    /// No new connections; those that exist go on, and probes too
    Drain(Target),
    /// No new connections and no probes
    Disable(Target),
    /// New connections again, even if the file disables it
    Enable(Target),
    /// Another share of connections
    Weight {
        #[command(flatten)]
        target: Target,
        /// Share relative to the others; 0 gets no new connections
        #[arg(value_name = "WEIGHT", allow_negative_numbers = true, value_parser = weight)]
        weight: u32,
    },
}

/// Which backend.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// POOL/NAME, or a name that only one pool has
    #[arg(value_name = "BACKEND")]
    pub(super) backend: String,
    /// Refuse, with exit code 3, unless the configuration has this version
    #[arg(long, value_name = "VERSION")]
    pub(super) if_version: Option<u64>,
}

fn weight(text: &str) -> Result<u32, String> {
    let read = text.parse().ok().filter(|weight| *weight <= MAX_WEIGHT);
    read.ok_or_else(|| format!("write a whole number from 0 to {MAX_WEIGHT}"))
}

impl Operate {
    /// Does it, at the admin socket that was named before the command if there was one.
    pub(super) fn run(mut self, before: Option<OsString>) -> Answer {
        self.instance().name(before);
        match self {
            Self::Status { json, watch, tcp, instance } => show::status(&instance, json, watch, tcp),
            Self::Top { instance } => top::top(&instance),
            Self::Connections(asked) => show::connections(&asked),
            Self::Why { connection, json, instance } => show::why(&connection, json, &instance),
            Self::Explain { client, frontend, json, instance } => {
                foresee::explain(client, frontend, json, &instance)
            }
            Self::Plan { file, json, instance } => foresee::plan(&file, json, &instance),
            Self::Trace(asked) => trace::trace(&asked),
            Self::History(asked) => show::history(&asked),
            Self::Backend { instance, change } => steer::backend(change, &instance),
            Self::Reload { instance } => steer::reload(&instance),
            Self::LogLevel { filter, instance } => steer::log_level(filter, &instance),
            Self::Dump { output, instance } => show::dump(output, &instance),
        }
    }

    fn instance(&mut self) -> &mut Instance {
        match self {
            Self::Status { instance, .. }
            | Self::Top { instance }
            | Self::Why { instance, .. }
            | Self::Explain { instance, .. }
            | Self::Plan { instance, .. }
            | Self::Backend { instance, .. }
            | Self::Reload { instance }
            | Self::LogLevel { instance, .. }
            | Self::Dump { instance, .. } => instance,
            Self::Connections(asked) => &mut asked.instance,
            Self::Trace(asked) => &mut asked.instance,
            Self::History(asked) => &mut asked.instance,
        }
    }
}
