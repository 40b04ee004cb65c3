//! Starts relay `sk_msg` when a frontend first asks for it, and tells it whom to serve.

#![cfg(target_os = "linux")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lemonade_common::sk_msg::Count;
use tokio_util::sync::CancellationToken;

use super::relays::{CANARY, failures};
use super::table::DispatchTable;
use crate::model::config::Frontend;
use crate::model::relay::{Findings, KernelRelay, RelayState};
use crate::model::{Name, ProcessCell};
use crate::proxy::adapters::bpf::Kernel;
use crate::proxy::relay::sk_msg::ShortWay;

/// Addresses that the data plane accepts on, by frontend.
type Listeners = Box<dyn Fn() -> Vec<(Name, SocketAddr)> + Send>;

/// Gives the data plane the relay; whether it may be used says its state.
type Offer = Box<dyn Fn(Arc<ShortWay>) + Send>;

/// The relay from the control plane's side.
pub struct ShortWays {
    process: Arc<ProcessCell>,
    listeners: Listeners,
    offer: Offer,
    relay: Option<Arc<ShortWay>>,
    refused: bool,
    /// Whom it serves: what was last told.
    served: (BTreeSet<SocketAddr>, BTreeSet<PathBuf>),
}

impl ShortWays {
    /// Starts nothing yet.
    pub fn new(process: Arc<ProcessCell>, listeners: Listeners, offer: Offer) -> Self {
        Self { process, listeners, offer, relay: None, refused: false, served: Default::default() }
    }

    /// Brings the relay up to what `table` asks for.
    pub fn follow(&mut self, kernel: &Kernel, table: &DispatchTable, stop: &CancellationToken) {
        if self.relay.is_none() && !self.refused && asking(table).next().is_some() {
            self.refused = self.start(kernel, stop).map_err(|why| self.refuse(&why)).is_err();
        }
        let state = &self.process.relays[KernelRelay::SkMsg.index()];
        let Some(relay) = &self.relay else { return };
        // One that was turned off lets new connections be, whoever makes them.
        let wanted =
            if state.usable() { (self.frontends(table), cgroups(table)) } else { Default::default() };
        if wanted != self.served {
            match relay.serve(&wanted.0, &wanted.1) {
                Ok(()) => warn_of(&wanted.1, &self.served.1),
                Err(error) => tracing::warn!("relay sk_msg: {error}"),
            }
            self.served = wanted;
        }
        note(relay, state);
    }

    /// Addresses of the frontends that ask.
    fn frontends(&self, table: &DispatchTable) -> BTreeSet<SocketAddr> {
        let names: BTreeSet<&Name> = asking(table).map(|frontend| &frontend.name).collect();
        let listeners = (self.listeners)().into_iter().filter(|(name, _)| names.contains(name));
        listeners.map(|(_, address)| address).collect()
    }

    fn start(&mut self, kernel: &Kernel, stop: &CancellationToken) -> Result<(), String> {
        let cgroup = kernel.cgroup().ok_or("the process has no cgroup of its own")?;
        let relay = Arc::new(ShortWay::load(cgroup).map_err(|error| error.to_string())?);
        (self.offer)(Arc::clone(&relay));
        self.relay = Some(Arc::clone(&relay));
        let (process, stop) = (Arc::clone(&self.process), stop.clone());
        // A thread of its own: the tests block.
        let thread = std::thread::Builder::new().name("relay-trial".to_owned());
        let tests = move || keep_trying(&relay, &process.relays[KernelRelay::SkMsg.index()], CANARY, &stop);
        thread.spawn(tests).map(drop).map_err(|error| error.to_string())
    }

    fn refuse(&self, why: &str) {
        let findings = Findings { why: why.to_owned(), tests: Vec::new() };
        self.process.relays[KernelRelay::SkMsg.index()].set(false, findings);
        tracing::warn!("relay sk_msg is off: {why}");
    }
}

/// Frontends that ask for the relay.
fn asking(table: &DispatchTable) -> impl Iterator<Item = &Frontend> {
    let frontends = table.frontends.values().map(|entry| &*entry.frontend);
    frontends.filter(|frontend| frontend.relay.kernel() == Some(KernelRelay::SkMsg))
}

/// Cgroups that they name.
fn cgroups(table: &DispatchTable) -> BTreeSet<PathBuf> {
    asking(table).filter_map(|frontend| frontend.accelerate_cgroup.clone()).collect()
}

/// Tests, then tries a canary each `period` until one fails or the process is to `stop`: from then on new connections
/// stay with TCP.
pub fn keep_trying(relay: &ShortWay, state: &RelayState, period: Duration, stop: &CancellationToken) {
    let began = Instant::now();
    let tests = relay.try_out();
    let failed = failures(&tests);
    if !failed.is_empty() {
        tracing::error!("relay sk_msg is off: self-tests failed: {failed}");
        return state.set(false, Findings { why: "self-tests failed on this kernel".to_owned(), tests });
    }
    let took_ms = began.elapsed().as_millis() as u64;
    tracing::info!(tests = tests.len(), took_ms, "relay sk_msg is on: its self-tests passed");
    state.set(true, Findings { why: "its self-tests passed".to_owned(), tests: tests.clone() });
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else {
        let why = "it cannot be watched: there is no timer".to_owned();
        return state.set(false, Findings { why, tests });
    };
    for turn in 0.. {
        let stopped =
            runtime.block_on(async { tokio::time::timeout(period, stop.cancelled()).await.is_ok() });
        if stopped {
            return;
        }
        let Some(canary) = relay.canary(turn) else {
            tracing::debug!("no canary of relay sk_msg: no sockets, or no room for them");
            continue;
        };
        // At the end the process leaves its cgroup, and no socket joins any more.
        if canary.passed || stop.is_cancelled() {
            continue;
        }
        let failed = failures(std::slice::from_ref(&canary));
        // Fails only where nothing is served any more.
        let _ = relay.serve(&BTreeSet::new(), &BTreeSet::new());
        tracing::error!("relay sk_msg is off for new connections: a canary failed: {failed}");
        let why = format!("a canary failed while it was in use: {failed}");
        return state.set(false, Findings { why, tests: [tests, vec![canary]].concat() });
    }
}

/// Says what it means for the processes of cgroups that were not seen before.
fn warn_of(cgroups: &BTreeSet<PathBuf>, before: &BTreeSet<PathBuf>) {
    for cgroup in cgroups.difference(before) {
        tracing::warn!(
            cgroup = %cgroup.display(),
            "relay sk_msg touches connections of these processes to its frontends: what they exchange skips TCP, packet filters and captures, and MSG_WAITALL, SO_RCVLOWAT, splice(2) from a socket and urgent bytes do not work as with TCP (docs/guide/kernel.md)"
        );
    }
}

/// Keeps the program's counters where `status` shows them.
fn note(relay: &ShortWay, state: &RelayState) {
    let counts = relay.counts();
    let of = |what: Count| counts[what as usize];
    let words = format!(
        "its self-tests passed; messages: {} the short way ({} bytes), {} by TCP behind others, {} by TCP for want of room, {} alone; sockets: {} joined, {} found no room",
        of(Count::Redirected),
        of(Count::Bytes),
        of(Count::Behind),
        of(Count::Overflowed),
        of(Count::Alone),
        of(Count::Joined),
        of(Count::Full),
    );
    state.explain(words);
}
