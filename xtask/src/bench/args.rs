//! What the user asks the bench for.

use std::time::Duration;

use clap::ValueEnum;

use super::figures::Measure;
use super::load::Load;
use super::peers::Peer;

/// Arguments of `cargo xtask bench`.
#[derive(Clone, Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    /// One round of short samples: shows that everything runs, proves no figure.
    #[arg(long)]
    pub quick: bool,
    /// Only these rows.
    #[arg(long, value_delimiter = ',', value_name = "ROW")]
    pub only: Vec<Measure>,
    /// Only these peers.
    #[arg(long, value_delimiter = ',', value_name = "PEER")]
    pub peers: Vec<Peer>,
    /// Seconds of a steady sample [default: 2, quick: 0.7].
    #[arg(long)]
    pub seconds: Option<f64>,
    /// Rounds; each visits every peer [default: 3, quick: 1].
    #[arg(long)]
    pub rounds: Option<u32>,
    /// Placement of the processes.
    #[arg(long, value_enum, default_value_t = Pinning::Both)]
    pub pinning: Pinning,
    /// Counts system calls per round trip with strace.
    #[arg(long)]
    pub syscalls: bool,
    /// Writes the table and the picture into docs/ as well.
    #[arg(long)]
    pub docs: bool,
    #[command(subcommand)]
    pub(super) load: Option<Load>,
}

/// Placements that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Pinning {
    /// Balancer on one core, load and backends on the other.
    Pinned,
    /// The scheduler decides.
    Unpinned,
    /// One after the other.
    Both,
}

impl Pinning {
    /// Returns the placements in the order in which they run.
    pub fn placements(self) -> &'static [Placement] {
        match self {
            Self::Pinned => &[Placement::Pinned],
            Self::Unpinned => &[Placement::Unpinned],
            Self::Both => &[Placement::Pinned, Placement::Unpinned],
        }
    }
}

/// Where the processes of one sample run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// Balancer on one core with its receive work, load and backends on the other; one worker.
    Pinned,
    /// The scheduler decides; two workers.
    Unpinned,
}

impl Placement {
    /// Threads or workers of a balancer.
    pub fn workers(self) -> u32 {
        match self {
            Self::Pinned => 1,
            Self::Unpinned => 2,
        }
    }

    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pinned => "pinned",
            Self::Unpinned => "unpinned",
        }
    }
}

impl Args {
    /// Returns the length of a steady sample.
    pub fn sample(&self) -> Duration {
        Duration::from_secs_f64(self.seconds.unwrap_or(if self.quick { 0.7 } else { 2.0 }))
    }

    /// Returns the number of rounds.
    pub fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 1 } else { 3 }).max(1)
    }

    /// Says whether a row is to be measured.
    pub fn wants(&self, measure: Measure) -> bool {
        if measure == Measure::Syscalls {
            return self.syscalls || self.only.contains(&measure);
        }
        self.only.is_empty() || self.only.contains(&measure)
    }

    /// Says whether a peer is to be measured.
    pub fn includes(&self, peer: Peer) -> bool {
        self.peers.is_empty() || self.peers.contains(&peer)
    }
}
