//! The balancers that are compared: how each is configured, started and told to reload.

mod envoy;
mod haproxy;
mod lemonade;
mod nft;
mod nginx;

use std::fs;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;
use rustix::process::Signal;
use serde::Serialize;

pub use lemonade::{ADMIN, Admin, SCALE_FRONTENDS, SCALE_POOL, scale_file};

use super::figures::Measure;
use super::net::Stage;

/// One way from the client to the backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Peer {
    /// No balancer: the kernel forwards, the client spreads its connections.
    Direct,
    /// nftables: destination NAT in the kernel, without health checks.
    Nft,
    /// HAProxy in TCP mode.
    Haproxy,
    /// nginx with its stream module.
    Nginx,
    /// Envoy with its TCP proxy.
    Envoy,
    /// This project.
    Lemonade,
    /// This project with relay `sockmap`.
    Sockmap,
    /// This project with relay `sk_msg`.
    #[value(name = "sk_msg")]
    #[serde(rename = "sk_msg")]
    SkMsg,
    /// This project with relay `splice`.
    Splice,
    /// This project with its forward plane.
    Forward,
}

/// What carries the bytes in this project.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relay {
    Copy,
    Sockmap,
    SkMsg,
    Splice,
    Forward,
}

impl Peer {
    /// All, in the order of the table.
    pub const ALL: [Self; 10] = [
        Self::Direct,
        Self::Nft,
        Self::Haproxy,
        Self::Nginx,
        Self::Envoy,
        Self::Lemonade,
        Self::Sockmap,
        Self::SkMsg,
        Self::Splice,
        Self::Forward,
    ];

    /// Name in tables and folders.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nft => "nft",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
            Self::Lemonade => "lemonade",
            Self::Sockmap => "lemonade-sockmap",
            Self::SkMsg => "lemonade-sk_msg",
            Self::Splice => "lemonade-splice",
            Self::Forward => "lemonade-forward",
        }
    }

    /// Says whether it is a process, so that its memory and processor time can be read.
    pub fn is_process(self) -> bool {
        !matches!(self, Self::Direct | Self::Nft)
    }

    /// Says whether it is this project.
    pub fn is_own(self) -> bool {
        self.relay().is_some()
    }

    /// Returns what carries the bytes, if it is this project.
    pub(super) fn relay(self) -> Option<Relay> {
        match self {
            Self::Direct | Self::Nft | Self::Haproxy | Self::Nginx | Self::Envoy => None,
            Self::Lemonade => Some(Relay::Copy),
            Self::Sockmap => Some(Relay::Sockmap),
            Self::SkMsg => Some(Relay::SkMsg),
            Self::Splice => Some(Relay::Splice),
            Self::Forward => Some(Relay::Forward),
        }
    }

    /// Says whether a measure means something for it.
    pub fn takes(self, measure: Measure) -> bool {
        if measure == Measure::HandOver {
            return self == Self::Splice;
        }
        match self {
            Self::Direct | Self::Haproxy | Self::Nginx | Self::Envoy | Self::Lemonade => true,
            Self::Nft | Self::Sockmap => measure != Measure::SameHost,
            Self::SkMsg => measure == Measure::SameHost,
            Self::Splice | Self::Forward => !matches!(measure, Measure::SameHost | Measure::Syscalls),
        }
    }

    /// Returns the addresses that a client connects to.
    pub fn targets(self, stage: Stage) -> Vec<SocketAddrV4> {
        if self == Self::Direct {
            (1..=3).map(|id| stage.backend(id)).collect()
        } else {
            vec![stage.listen()]
        }
    }

    /// Returns the signal that makes it read its file again, if it does not watch the file.
    pub fn reload_signal(self) -> Option<Signal> {
        match self {
            Self::Haproxy => Some(Signal::USR2),
            Self::Nginx => Some(Signal::HUP),
            Self::Direct
            | Self::Nft
            | Self::Envoy
            | Self::Lemonade
            | Self::Sockmap
            | Self::SkMsg
            | Self::Splice
            | Self::Forward => None,
        }
    }

    /// Writes all files of an instance.
    pub fn prepare(self, place: &Place, backends: &[u8]) -> Result<()> {
        fs::create_dir_all(&place.dir)?;
        if self == Self::Envoy {
            write(&place.dir.join(envoy::BOOTSTRAP), &envoy::bootstrap(place)?)?;
        }
        self.replace(place, backends)
    }

    /// Replaces, by rename, the file that lists the backends.
    pub fn replace(self, place: &Place, backends: &[u8]) -> Result<()> {
        let text = match self {
            Self::Direct => return Ok(()),
            Self::Nft => nft::rules(place, backends),
            Self::Haproxy => haproxy::config(place, backends),
            Self::Nginx => nginx::config(place, backends),
            Self::Envoy => envoy::endpoints(place, backends)?,
            Self::Lemonade => lemonade::config(place, backends, Relay::Copy),
            Self::Sockmap => lemonade::config(place, backends, Relay::Sockmap),
            Self::SkMsg => lemonade::config(place, backends, Relay::SkMsg),
            Self::Splice => lemonade::config(place, backends, Relay::Splice),
            Self::Forward => lemonade::config(place, backends, Relay::Forward),
        };
        write(&self.file(place), &text)
    }

    /// Returns the file that lists the backends.
    pub fn file(self, place: &Place) -> PathBuf {
        place.dir.join(match self {
            Self::Direct => "none",
            Self::Nft => "rules.nft",
            Self::Haproxy => "haproxy.cfg",
            Self::Nginx => "nginx.conf",
            Self::Envoy => envoy::ENDPOINTS,
            Self::Lemonade | Self::Sockmap | Self::SkMsg | Self::Splice | Self::Forward => lemonade::FILE,
        })
    }

    /// Returns the arguments of its process.
    pub fn arguments(self, place: &Place) -> Vec<String> {
        let file = self.file(place).display().to_string();
        let dir = place.dir.display().to_string();
        let workers = place.workers.to_string();
        let bootstrap = place.dir.join(envoy::BOOTSTRAP).display().to_string();
        let words: Vec<&str> = match self {
            Self::Direct | Self::Nft => Vec::new(),
            Self::Haproxy => vec!["-W", "-db", "-q", "-f", &file],
            Self::Nginx => vec!["-p", &dir, "-e", "error.log", "-c", &file],
            Self::Envoy => {
                vec!["-c", &bootstrap, "--concurrency", &workers, "--disable-hot-restart", "-l", "error"]
            }
            Self::Lemonade | Self::Sockmap | Self::SkMsg | Self::Splice | Self::Forward => {
                vec!["run", "--config", &file]
            }
        };
        words.into_iter().map(str::to_owned).collect()
    }
}

/// Where one instance lives.
#[derive(Clone, Debug)]
pub struct Place {
    /// Folder of its files, absolute.
    pub dir: PathBuf,
    /// Its binary.
    pub binary: PathBuf,
    /// Threads or workers.
    pub workers: u32,
    /// Where its clients and backends are.
    pub stage: Stage,
    /// The cgroup that the bench and all it starts are in, if there is one.
    pub cgroup: Option<PathBuf>,
}

/// Writes a file beside its name and renames it: no reader sees half of it.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let beside = path.with_extension("new");
    fs::write(&beside, text).with_context(|| format!("cannot write {}", beside.display()))?;
    fs::rename(&beside, path).with_context(|| format!("cannot replace {}", path.display()))
}
