//! Steps in words, for the journal.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use crate::control::table::{BackendEntry, FrontendEntry, PoolEntry};
use crate::model::Config;
use crate::model::config::{AccessLog, Status, WhenAllDown};

use super::MapOp;

impl MapOp {
    /// Whether it says something of its own; `false` for a step that only carries the change of another one over.
    pub fn is_news(&self) -> bool {
        match self {
            Self::AddBackend(_)
            | Self::SetBackend { .. }
            | Self::Unlisten { .. }
            | Self::RemoveFrontend(_)
            | Self::RemovePool(_)
            | Self::RemoveBackend(_) => true,
            Self::PutPool { before, after } => {
                before.as_ref().is_none_or(|before| !pool_changes(before, after).is_empty())
            }
            Self::PutFrontend { before, after } => {
                before.as_ref().is_none_or(|before| !frontend_changes(before, after).is_empty())
            }
            Self::Listen { before, after, .. } => before.as_ref().is_none_or(|before| before.ix != after.ix),
        }
    }
}

impl Display for MapOp {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddBackend(entry) => {
                write!(f, "pool {}: backend {} added ({})", entry.id.pool, entry.id.name, address(entry))
            }
            Self::SetBackend { before, after } if before.backend == after.backend => {
                write!(f, "backend {} {} -> {}", after.id, status(before), status(after))
            }
            Self::SetBackend { before, after } => {
                write!(f, "backend {}: {}", after.id, backend_changes(before, after))
            }
            Self::PutPool { before: None, after } => {
                write!(f, "pool {} added: strategy {}", after.pool.name, after.pool.strategy.as_str())
            }
            Self::PutPool { before: Some(before), after } => {
                let changes = pool_changes(before, after);
                write!(f, "pool {}: ", after.pool.name)?;
                if changes.is_empty() {
                    write!(f, "{} of {} backends may be picked", after.candidates.len(), after.backends.len())
                } else {
                    f.write_str(&changes)
                }
            }
            Self::PutFrontend { before: None, after } => {
                write!(f, "frontend {} added: pool {}", after.frontend.name, after.frontend.pool)
            }
            Self::PutFrontend { before: Some(before), after } => {
                let changes = frontend_changes(before, after);
                write!(f, "frontend {}: ", after.frontend.name)?;
                if changes.is_empty() {
                    write!(f, "follows pool {}", after.frontend.pool)
                } else {
                    f.write_str(&changes)
                }
            }
            Self::Listen { address, before, after } => match before {
                None => write!(f, "frontend {}: listens on {address}", after.frontend.name),
                Some(before) if before.ix == after.ix => {
                    write!(f, "frontend {}: {address} takes the change", after.frontend.name)
                }
                Some(before) => {
                    write!(
                        f,
                        "frontend {}: takes {address} from {}",
                        after.frontend.name, before.frontend.name
                    )
                }
            },
            Self::Unlisten { address, before } => {
                write!(f, "frontend {}: listens no more on {address}", before.frontend.name)
            }
            Self::RemoveFrontend(entry) => write!(f, "frontend {} removed", entry.frontend.name),
            Self::RemovePool(entry) => write!(f, "pool {} removed", entry.pool.name),
            Self::RemoveBackend(entry) => {
                write!(f, "pool {}: backend {} removed", entry.id.pool, entry.id.name)
            }
        }
    }
}

/// `what before -> after` of everything that differs, separated by commas.
#[derive(Default)]
struct Changes(Vec<String>);

impl Changes {
    fn note<T: PartialEq>(&mut self, what: &str, before: &T, after: &T, show: impl Fn(&T) -> String) {
        if before != after {
            self.0.push(format!("{what} {} -> {}", show(before), show(after)));
        }
    }

    fn done(self) -> String {
        self.0.join(", ")
    }
}

/// What changes of the process at once, a sentence each; what waits for the next start is told elsewhere.
pub fn process_changes(before: &Config, after: &Config) -> Vec<String> {
    let (was, is) = (&before.runtime, &after.runtime);
    let mut changes = Changes::default();
    changes.note("runtime.drain_timeout", &was.drain_timeout, &is.drain_timeout, time);
    changes.note("runtime.lame_duck", &was.lame_duck, &is.lame_duck, time);
    changes.note("runtime.max_connections", &was.max_connections, &is.max_connections, |limit| {
        limit.map_or_else(|| "auto".into(), |limit| limit.to_string())
    });
    changes.note("runtime.probes_per_second", &was.probes_per_second, &is.probes_per_second, u32::to_string);
    changes.note("log.level", &before.log.level, &after.log.level, String::clone);
    changes.note("log.access", &before.log.access, &after.log.access, |access| match access {
        AccessLog::On => "on".into(),
        AccessLog::Off => "off".into(),
        AccessLog::File(path) => path.display().to_string(),
    });
    let (was, is) = (&before.telemetry, &after.telemetry);
    changes.note("telemetry.endpoint", &was.endpoint, &is.endpoint, |endpoint| {
        endpoint.clone().unwrap_or_else(|| "off".into())
    });
    changes.note("telemetry.interval", &was.interval, &is.interval, time);
    changes.note("telemetry.sample", &was.sample, &is.sample, f64::to_string);
    changes.note("telemetry.service_name", &was.service_name, &is.service_name, String::clone);
    if was.headers != is.headers {
        changes.0.push("telemetry.headers changed".into());
    }
    changes.0
}

fn backend_changes(before: &BackendEntry, after: &BackendEntry) -> String {
    let (was, is) = (&before.backend, &after.backend);
    let mut changes = Changes::default();
    changes.note("weight", &was.weight, &is.weight, u32::to_string);
    changes.note("max_connections", &was.max_connections, &is.max_connections, u32::to_string);
    changes.note("enabled", &was.enabled, &is.enabled, bool::to_string);
    changes.note("address", &was.target, &is.target, ToString::to_string);
    changes.note("status", &before.status, &after.status, |status| status_word(*status).into());
    changes.done()
}

fn pool_changes(before: &PoolEntry, after: &PoolEntry) -> String {
    let (was, is) = (&before.pool, &after.pool);
    let mut changes = Changes::default();
    changes.note("strategy", &was.strategy, &is.strategy, |strategy| strategy.as_str().into());
    changes.note("retries", &was.retries, &is.retries, u32::to_string);
    changes.note("retry_budget", &was.retry_budget, &is.retry_budget, f64::to_string);
    changes.note("when_all_down", &was.when_all_down, &is.when_all_down, |choice| match choice {
        WhenAllDown::Refuse => "refuse".into(),
        WhenAllDown::TryAll => "try_all".into(),
    });
    changes.note("queue", &was.queue, &is.queue, u32::to_string);
    changes.note("queue_timeout", &was.queue_timeout, &is.queue_timeout, time);
    changes.note("source", &was.source, &is.source, |source| or_off(source, ToString::to_string));
    if was.health != is.health {
        changes.0.push("health check changed".into());
    }
    changes.done()
}

fn frontend_changes(before: &FrontendEntry, after: &FrontendEntry) -> String {
    let (was, is) = (&before.frontend, &after.frontend);
    let optional = |value: &Option<Duration>| or_off(value, time);
    let mut changes = Changes::default();
    changes.note("pool", &was.pool, &is.pool, ToString::to_string);
    changes.note("protocol", &was.protocol, &is.protocol, |protocol| protocol.as_str().into());
    changes.note("data_plane", &was.forward.is_some(), &is.forward.is_some(), |forward| {
        if *forward { "forward".into() } else { "proxy".into() }
    });
    if was.forward.is_some() && is.forward.is_some() && was.forward != is.forward {
        changes.0.push("keys of forward changed".into());
    }
    changes.note("relay", &was.relay, &is.relay, |relay| relay.as_str().into());
    changes.note("accelerate_cgroup", &was.accelerate_cgroup, &is.accelerate_cgroup, |cgroup| {
        cgroup.as_ref().map_or_else(|| "none".to_owned(), |path| path.display().to_string())
    });
    changes.note("max_connections", &was.max_connections, &is.max_connections, u32::to_string);
    changes.note("connect_timeout", &was.connect_timeout, &is.connect_timeout, time);
    changes.note("hedge_after", &was.hedge_after, &is.hedge_after, optional);
    changes.note("idle_timeout", &was.idle_timeout, &is.idle_timeout, time);
    changes.note("keepalive", &was.keepalive, &is.keepalive, optional);
    changes.note("user_timeout", &was.user_timeout, &is.user_timeout, optional);
    changes.done()
}

fn address(entry: &BackendEntry) -> String {
    entry.id.port.map_or_else(|| entry.id.ip.to_string(), |port| entry.id.address(port).to_string())
}

fn status(entry: &BackendEntry) -> &'static str {
    status_word(entry.status)
}

const fn status_word(status: Status) -> &'static str {
    match status {
        Status::Up => "up",
        Status::Down => "down",
    }
}

fn time(duration: &Duration) -> String {
    humantime::format_duration(*duration).to_string()
}

fn or_off<T>(value: &Option<T>, show: impl Fn(&T) -> String) -> String {
    value.as_ref().map_or_else(|| "off".into(), show)
}
