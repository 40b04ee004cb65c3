//! The rows of the table: what each figure is, which direction is better, what Lemonade is to reach.

use clap::ValueEnum;
use serde::Serialize;

use Better::{Higher, Lower};

use super::net::Stage;

/// One thing that is run; it gives one or more figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Measure {
    /// Start to first byte.
    Start,
    /// Memory idle, per idle connection, given back.
    Memory,
    /// One request at a time on one connection.
    Pingpong,
    /// 64 connections, 100 B answers.
    Small,
    /// 64 connections, 16 KiB answers.
    Medium,
    /// 64 connections, 64 KiB answers.
    Large,
    /// New connections, 32 at a time.
    Connections,
    /// Bulk from the backend, 1 and 8 streams.
    Down,
    /// Bulk to the backend, 1 and 8 streams.
    Up,
    /// Bulk from the backend, 1 stream, on a connection that has lasted.
    Lasting,
    /// What a hand-over costs, relay `splice` only.
    HandOver,
    /// The file replaced under load.
    Reload,
    /// A backend killed under load.
    Kill,
    /// A backend that falls silent under load.
    Silent,
    /// The balancer killed and started again under load.
    Killed,
    /// System calls per round trip.
    Syscalls,
    /// Requests and connections with and without somebody who watches, Lemonade only.
    Cost,
    /// Client and backends on the balancer's own host: 64 connections, 100 B answers; new connections.
    SameHost,
    /// 1,000 frontends and 10,000 backends, Lemonade only.
    Scale,
}

impl Measure {
    /// Says whether it is measured in one placement only.
    pub fn pinned_only(self) -> bool {
        match self {
            Self::Start | Self::Memory | Self::Reload | Self::Kill | Self::Silent | Self::Killed => true,
            Self::Syscalls | Self::Cost | Self::Scale | Self::HandOver => true,
            Self::Pingpong | Self::Small | Self::Medium | Self::Large | Self::Connections => false,
            Self::Down | Self::Up | Self::Lasting | Self::SameHost => false,
        }
    }

    /// Returns where client and backends are for it.
    pub fn stage(self) -> Stage {
        if self == Self::SameHost { Stage::SameHost } else { Stage::Apart }
    }

    /// Says whether a figure comes from it.
    pub fn owns(self, id: &str) -> bool {
        let prefix = match self {
            Self::Start => "start",
            Self::Memory => "memory.",
            Self::Pingpong => "pingpong.",
            Self::Small => "small.",
            Self::Medium => "medium.",
            Self::Large => "large.",
            Self::Connections => "connections.",
            Self::Down => "down",
            Self::Up => "up",
            Self::Lasting => "lasting.",
            Self::HandOver => "handover.",
            Self::Reload => "reload.",
            Self::Kill => "kill.",
            Self::Silent => "silent.",
            Self::Killed => "killed.",
            Self::Syscalls => "syscalls",
            Self::Cost => "cost.",
            Self::SameHost => "same.",
            Self::Scale => return false,
        };
        id.starts_with(prefix)
    }

    /// Estimates how long it takes, in seconds, for samples of a given length.
    pub fn cost(self, sample: f64) -> f64 {
        match self {
            Self::Start => 0.5,
            Self::Memory => 15.0,
            Self::Pingpong => sample + 0.4,
            Self::Small | Self::Medium | Self::Large | Self::Connections => sample + 0.7,
            Self::Lasting | Self::HandOver => sample + 1.5,
            Self::Down | Self::Up => 2.0 * (sample + 0.7),
            Self::Reload => 7.0,
            Self::Kill => 7.0,
            Self::Silent => 9.0,
            Self::Killed => 10.0,
            Self::Syscalls => 2.0,
            Self::Cost => 16.0 * (sample + 1.5),
            Self::SameHost => 2.0 * (sample + 0.7) + 1.5,
            Self::Scale => 25.0,
        }
    }
}

/// Which direction is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
}

/// One row of the table.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Figure {
    /// Key in the JSON.
    pub id: &'static str,
    /// Words in the table.
    pub title: &'static str,
    /// Unit of the number.
    pub unit: &'static str,
    /// Digits after the point.
    pub digits: usize,
    /// Which direction is better.
    pub better: Better,
    /// What Lemonade is to reach whatever the peers do.
    pub goal: Option<f64>,
    /// Differences of this size are the instrument's.
    pub grain: f64,
}

const fn figure(
    id: &'static str,
    title: &'static str,
    unit: &'static str,
    digits: usize,
    better: Better,
) -> Figure {
    Figure { id, title, unit, digits, better, goal: None, grain: 0.0 }
}

const fn goal(figure: Figure, goal: f64) -> Figure {
    Figure { goal: Some(goal), ..figure }
}

const fn grain(figure: Figure, grain: f64) -> Figure {
    Figure { grain, ..figure }
}

/// All rows, in the order of the table.
pub const FIGURES: &[Figure] = &[
    figure("small.rate", "64 connections, 100 B answers", "thousand/s", 1, Higher),
    figure("small.p50", "- p50", "us", 0, Lower),
    figure("small.p99", "- p99", "us", 0, Lower),
    figure("small.cpu", "- process CPU per 100k requests", "s", 2, Lower),
    figure("small.machine", "- whole machine CPU per 100k requests", "s", 2, Lower),
    figure("medium.rate", "64 connections, 16 KiB answers", "thousand/s", 1, Higher),
    figure("medium.p50", "- p50", "us", 0, Lower),
    figure("medium.p99", "- p99", "us", 0, Lower),
    figure("medium.cpu", "- process CPU per 100k requests", "s", 2, Lower),
    figure("medium.machine", "- whole machine CPU per 100k requests", "s", 2, Lower),
    figure("large.rate", "64 connections, 64 KiB answers", "thousand/s", 1, Higher),
    figure("large.p50", "- p50", "us", 0, Lower),
    figure("large.p99", "- p99", "us", 0, Lower),
    figure("large.cpu", "- process CPU per 100k requests", "s", 2, Lower),
    figure("large.machine", "- whole machine CPU per 100k requests", "s", 2, Lower),
    figure("connections.rate", "new connections, 32 at a time", "thousand/s", 2, Higher),
    figure("connections.p50", "- p50", "us", 0, Lower),
    figure("connections.p99", "- p99", "us", 0, Lower),
    figure("connections.cpu", "- process CPU per 100k connections", "s", 2, Lower),
    figure("connections.machine", "- whole machine CPU per 100k connections", "s", 2, Lower),
    figure("pingpong.p50", "ping-pong 64 B, p50", "us", 1, Lower),
    figure("pingpong.p99", "- p99", "us", 1, Lower),
    goal(figure("syscalls", "- system calls per round trip", "calls", 1, Lower), 6.0),
    figure("cost.alone", "watched by nobody: 100 B answers", "thousand/s", 1, Higher),
    figure("cost.watched", "- by a scrape a second, top, trace and 50 pages", "thousand/s", 1, Higher),
    goal(figure("cost.share", "- lost by that", "%", 1, Lower), 2.0),
    figure("cost.new.alone", "watched by nobody: new connections", "thousand/s", 2, Higher),
    figure("cost.new.watched", "- by the same, each connection an event", "thousand/s", 2, Higher),
    goal(figure("cost.new.share", "- lost by that", "%", 1, Lower), 2.0),
    figure("down1.rate", "bulk down, 1 stream", "Gbit/s", 1, Higher),
    figure("down1.cpu", "- process CPU per GB", "s", 3, Lower),
    figure("down1.machine", "- whole machine CPU per GB", "s", 3, Lower),
    figure("down8.rate", "bulk down, 8 streams", "Gbit/s", 1, Higher),
    figure("down8.cpu", "- process CPU per GB", "s", 3, Lower),
    figure("down8.machine", "- whole machine CPU per GB", "s", 3, Lower),
    figure("up1.rate", "bulk up, 1 stream", "Gbit/s", 1, Higher),
    figure("up1.cpu", "- process CPU per GB", "s", 3, Lower),
    figure("up1.machine", "- whole machine CPU per GB", "s", 3, Lower),
    figure("up8.rate", "bulk up, 8 streams", "Gbit/s", 1, Higher),
    figure("up8.cpu", "- process CPU per GB", "s", 3, Lower),
    figure("up8.machine", "- whole machine CPU per GB", "s", 3, Lower),
    figure("lasting.rate", "bulk down behind questions, 1 stream", "Gbit/s", 1, Higher),
    figure("lasting.cpu", "- process CPU per GB", "s", 3, Lower),
    figure("lasting.machine", "- whole machine CPU per GB", "s", 3, Lower),
    figure("handover.rate", "connections of 400 requests, one at a time", "thousand/s", 2, Higher),
    figure("handover.share", "- handed over", "%", 0, Higher),
    goal(
        figure("handover.took", "- processor time of a hand-over, tries in vain included", "us", 1, Lower),
        30.0,
    ),
    figure("same.rate", "same host: 64 connections, 100 B answers", "thousand/s", 1, Higher),
    figure("same.p50", "- p50", "us", 0, Lower),
    figure("same.p99", "- p99", "us", 0, Lower),
    figure("same.cpu", "- process CPU per 100k requests", "s", 2, Lower),
    figure("same.machine", "- whole machine CPU per 100k requests", "s", 2, Lower),
    figure("same.new.rate", "same host: new connections, 32 at a time", "thousand/s", 2, Higher),
    figure("same.new.machine", "- whole machine CPU per 100k connections", "s", 2, Lower),
    figure("memory.idle", "memory idle (PSS)", "MiB", 1, Lower),
    figure("memory.held", "idle connections held (of 9,600)", "", 0, Higher),
    goal(figure("memory.each", "memory per idle connection", "KiB", 2, Lower), 1.6),
    goal(grain(figure("memory.back", "given back after they close", "%", 0, Higher), 2.0), 90.0),
    grain(figure("start", "start to first byte", "ms", 1, Lower), 1.0),
    grain(figure("reload.first", "reload: first new answer", "ms", 1, Lower), 1.2),
    grain(figure("reload.last", "- last old answer", "ms", 1, Lower), 1.2),
    goal(figure("reload.failed", "- failed of those sent", "requests", 0, Lower), 0.0),
    grain(figure("kill.failed", "backend SIGKILL: failed", "requests", 0, Lower), 2.0),
    figure("kill.slowest", "- slowest answered", "ms", 0, Lower),
    goal(grain(figure("silent.failed", "backend silent: failed", "requests", 0, Lower), 2.0), 0.0),
    goal(figure("silent.slowest", "- slowest answered", "ms", 0, Lower), 300.0),
    figure(
        "killed.broken",
        "balancer SIGKILL and start, 3 times: broken of 64 connections",
        "in all",
        0,
        Lower,
    ),
    figure("killed.gap", "- longest wait for an answer", "ms", 1, Lower),
    figure("killed.calm", "- the same before the first kill", "ms", 1, Lower),
];

/// How busy the generator was, in percent of a core, by the words of its row: not rows of their own.
pub const GENERATOR: &[(&str, &str)] = &[
    ("small.generator", "100 B requests"),
    ("medium.generator", "16 KiB requests"),
    ("lasting.generator", "bulk down behind questions"),
    ("large.generator", "64 KiB requests"),
    ("same.generator", "same host"),
    ("connections.generator", "connections"),
    ("down1.generator", "bulk down 1"),
    ("down8.generator", "bulk down 8"),
    ("up1.generator", "bulk up 1"),
    ("up8.generator", "bulk up 8"),
];

/// Finds a row by its key.
pub fn by_id(id: &str) -> Option<&'static Figure> {
    FIGURES.iter().find(|figure| figure.id == id)
}
