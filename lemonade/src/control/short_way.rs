//! Starts relay `sk_msg` when a frontend first asks for it, and tells it whom to serve.

#![cfg(target_os = "linux")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use lemonade_common::sk_msg::Count;

use super::table::DispatchTable;
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
    pub fn follow(&mut self, kernel: &Kernel, table: &DispatchTable) {
        let asking = || {
            let frontends = table.frontends.values().map(|entry| &entry.frontend);
            frontends.filter(|frontend| frontend.relay.kernel() == Some(KernelRelay::SkMsg))
        };
        if self.relay.is_none() && !self.refused && asking().next().is_some() {
            self.refused = self.start(kernel).map_err(|why| self.refuse(&why)).is_err();
        }
        let state = &self.process.relays[KernelRelay::SkMsg.index()];
        let Some(relay) = self.relay.as_ref().filter(|_| state.usable()) else { return };
        let names: BTreeSet<&Name> = asking().map(|frontend| &frontend.name).collect();
        let listeners = (self.listeners)().into_iter().filter(|(name, _)| names.contains(name));
        let frontends: BTreeSet<SocketAddr> = listeners.map(|(_, address)| address).collect();
        let cgroups: BTreeSet<PathBuf> =
            asking().filter_map(|frontend| frontend.accelerate_cgroup.clone()).collect();
        let wanted = (frontends, cgroups);
        if wanted != self.served {
            match relay.serve(&wanted.0, &wanted.1) {
                Ok(()) => warn_of(&wanted.1, &self.served.1),
                Err(error) => tracing::warn!("relay sk_msg: {error}"),
            }
            self.served = wanted;
        }
        note(relay, state);
    }

    fn start(&mut self, kernel: &Kernel) -> Result<(), String> {
        let cgroup = kernel.cgroup().ok_or("the process has no cgroup of its own")?;
        let relay = Arc::new(ShortWay::load(cgroup).map_err(|error| error.to_string())?);
        (self.offer)(Arc::clone(&relay));
        self.relay = Some(Arc::clone(&relay));
        let process = Arc::clone(&self.process);
        // A thread of its own: the tests block.
        let thread = std::thread::Builder::new().name("relay-trial".to_owned());
        let started = thread.spawn(move || decide(&relay, &process.relays[KernelRelay::SkMsg.index()]));
        started.map(drop).map_err(|error| error.to_string())
    }

    fn refuse(&self, why: &str) {
        let findings = Findings { why: why.to_owned(), tests: Vec::new() };
        self.process.relays[KernelRelay::SkMsg.index()].set(false, findings);
        tracing::warn!("relay sk_msg is off: {why}");
    }
}

/// Tests the relay and notes whether it may be used.
fn decide(relay: &ShortWay, state: &RelayState) {
    let began = Instant::now();
    let tests = relay.try_out();
    let failed = tests.iter().filter(|test| !test.passed);
    let failed: Vec<String> = failed.map(|test| format!("{}: {}", test.name, test.detail)).collect();
    if failed.is_empty() {
        let took_ms = began.elapsed().as_millis() as u64;
        tracing::info!(tests = tests.len(), took_ms, "relay sk_msg is on: its self-tests passed");
        state.set(true, Findings { why: "its self-tests passed".to_owned(), tests });
    } else {
        tracing::error!("relay sk_msg is off: self-tests failed: {}", failed.join("; "));
        state.set(false, Findings { why: "self-tests failed on this kernel".to_owned(), tests });
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
