//! Host names of backends, resolved outside the accept path; the last good answer stays when a lookup fails.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::control::table::DispatchTable;
use crate::model::{Config, Resolution, Target};

#[cfg(test)]
mod tests;

/// Time between two lookups of a name that resolves.
pub const REFRESH: Duration = Duration::from_secs(10);

/// Time between two lookups of a name that never resolved.
pub const RETRY: Duration = Duration::from_secs(2);

/// Time that a lookup may take.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Addresses taken of one name; each is a backend.
pub const ADDRESSES: usize = 64;

/// Lookups under way at once; each holds a thread until the system's resolver gives up.
const CONCURRENT: usize = 16;

/// Resolves the host names in the table's configuration again and again, until `stop`.
///
/// What `out` holds at first counts as last known good. It is told only of changes.
pub async fn run(
    config: watch::Receiver<Arc<DispatchTable>>,
    out: watch::Sender<Arc<Resolution>>,
    stop: CancellationToken,
) {
    stop.run_until_cancelled(resolve(system, config, out)).await;
}

/// Resolves every host name in `config` at once; what takes longer than `limit` is absent.
pub async fn first(config: &Config, limit: Duration) -> Resolution {
    first_with(system, config, limit).await
}

/// Asks the system's resolver (`getaddrinfo`).
async fn system(host: Arc<str>) -> io::Result<Vec<IpAddr>> {
    let found = tokio::net::lookup_host((&*host, 0)).await?;
    Ok(found.map(|address| address.ip()).collect())
}

/// A name that is watched.
#[derive(Debug)]
struct Host {
    known: Vec<IpAddr>,
    failing: bool,
    next: Instant,
    busy: bool,
}

async fn resolve<L, F>(
    lookup: L,
    mut config: watch::Receiver<Arc<DispatchTable>>,
    out: watch::Sender<Arc<Resolution>>,
) where
    L: Fn(Arc<str>) -> F,
    F: Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(CONCURRENT));
    let mut lookups = JoinSet::new();
    let mut hosts: BTreeMap<Arc<str>, Host> = BTreeMap::new();
    let mut followed: Option<Arc<Config>> = None;
    let mut open = true;
    config.mark_changed();
    loop {
        let now = Instant::now();
        for (name, host) in hosts.iter_mut().filter(|(_, host)| !host.busy && host.next <= now) {
            host.busy = true;
            let (name, found) = (Arc::clone(name), bounded(lookup(Arc::clone(name)), &slots));
            lookups.spawn(async move { (name, found.await) });
        }
        let next = hosts.values().filter(|host| !host.busy).map(|host| host.next).min();
        tokio::select! {
            changed = config.changed(), if open => {
                open = changed.is_ok();
                let table = Arc::clone(&config.borrow_and_update());
                // The empty table before the first commit says nothing about names; health commits keep the configuration.
                let differs = |new: &&Arc<Config>| !followed.as_ref().is_some_and(|old| Arc::ptr_eq(old, new));
                let Some(new) = table.config.as_ref().filter(differs) else { continue };
                follow(&mut hosts, new, &out.borrow());
                followed = Some(Arc::clone(new));
                publish(&hosts, &out);
            }
            Some(Ok((name, found))) = lookups.join_next(), if !lookups.is_empty() => {
                if hosts.get_mut(&name).is_some_and(|host| take(&name, host, found)) {
                    publish(&hosts, &out);
                }
            }
            () = sleep_until(next) => {}
        }
    }
}

/// Watches the names in `config` and forgets the others.
fn follow(hosts: &mut BTreeMap<Arc<str>, Host>, config: &Config, known: &Resolution) {
    let wanted = names(config);
    hosts.retain(|name, _| wanted.contains(name));
    let now = Instant::now();
    for name in wanted {
        hosts.entry(name).or_insert_with_key(|name| {
            let known = known.hosts.get(name).cloned().unwrap_or_default();
            // Known from the start: the first lookup has just been.
            let next = if known.is_empty() { now } else { now + REFRESH };
            Host { known, failing: false, next, busy: false }
        });
    }
}

/// Takes in an answer; on an error or an empty answer what is known stays. Whether that changed.
fn take(name: &str, host: &mut Host, found: Result<Vec<IpAddr>, String>) -> bool {
    host.busy = false;
    let changed = found.as_ref().is_ok_and(|found| *found != host.known);
    match found {
        Ok(found) => {
            if host.failing || changed {
                info!(host = name, addresses = ?found, "backend host resolves");
            }
            host.failing = false;
            host.known = found;
        }
        Err(why) => {
            if !host.failing {
                let kept = host.known.len();
                warn!(host = name, %why, kept, "backend host does not resolve; known addresses are kept");
            }
            host.failing = true;
        }
    }
    host.next = Instant::now() + if host.known.is_empty() { RETRY } else { REFRESH };
    changed
}

fn publish(hosts: &BTreeMap<Arc<str>, Host>, out: &watch::Sender<Arc<Resolution>>) {
    let known = hosts.iter().filter(|(_, host)| !host.known.is_empty());
    let known = known.map(|(name, host)| (Arc::clone(name), host.known.clone())).collect();
    let resolution = Resolution { hosts: known };
    out.send_if_modified(|published| {
        let changed = **published != resolution;
        if changed {
            *published = Arc::new(resolution);
        }
        changed
    });
}

async fn first_with<L, F>(lookup: L, config: &Config, limit: Duration) -> Resolution
where
    L: Fn(Arc<str>) -> F,
    F: Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(CONCURRENT));
    let mut lookups = JoinSet::new();
    for name in names(config) {
        let found = bounded(lookup(Arc::clone(&name)), &slots);
        lookups.spawn(async move { (name, found.await) });
    }
    let mut resolution = Resolution::default();
    let all = async {
        while let Some(answer) = lookups.join_next().await {
            if let Ok((name, Ok(found))) = answer {
                resolution.hosts.insert(name, found);
            }
        }
    };
    // What is late is looked up again by the task that watches the names.
    let _ = timeout(limit, all).await;
    resolution
}

/// One lookup within its time: sorted addresses, at least one, or why there is none.
///
/// A lookup that is late keeps its slot until it ends, as the system's resolver cannot be interrupted.
fn bounded<F>(lookup: F, slots: &Arc<Semaphore>) -> impl Future<Output = Result<Vec<IpAddr>, String>> + use<F>
where
    F: Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static,
{
    let slots = Arc::clone(slots);
    async move {
        let slot = slots.acquire_owned().await;
        let lookup = tokio::spawn(async move {
            let found = lookup.await;
            drop(slot);
            found
        });
        let late = |_| format!("no answer within {}", humantime::format_duration(LOOKUP_TIMEOUT));
        let answer = timeout(LOOKUP_TIMEOUT, lookup).await.map_err(late)?;
        let found = answer.map_err(io::Error::other).flatten().map_err(|error| error.to_string())?;
        let mut found: Vec<_> = found.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        found.truncate(ADDRESSES);
        if found.is_empty() { Err("the answer is empty".to_owned()) } else { Ok(found) }
    }
}

fn names(config: &Config) -> BTreeSet<Arc<str>> {
    let backends = config.pools.values().flat_map(|pool| &pool.backends);
    let hosts = backends.filter_map(|backend| match &backend.target {
        Target::Host(host, _) => Some(Arc::clone(host)),
        Target::Address(..) => None,
    });
    hosts.collect()
}

async fn sleep_until(next: Option<Instant>) {
    match next {
        Some(next) => tokio::time::sleep_until(next).await,
        None => std::future::pending().await,
    }
}
