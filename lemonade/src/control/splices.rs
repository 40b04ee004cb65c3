//! Starts relay `splice` when a frontend first asks for it or may have it, or a killed process has left some of it, and attaches
//! its programs to interfaces that come.

#![cfg(target_os = "linux")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use lemonade_common::hash::seed_from_text;
use lemonade_common::splice::Count;
use tokio_util::sync::CancellationToken;

use super::relays::failures;
use super::table::{DispatchTable, FrontendEntry};
use crate::model::ProcessCell;
use crate::model::config::RelayChoice;
use crate::model::relay::{Findings, KernelRelay, RelayState, SelfTest};
use crate::proxy::adapters::bpf::{Splice, remove_all};
use crate::proxy::relay::splice::{FLOWS, Left, Relay, trial};

/// Gives the data plane the relay; whether it may be used says its state.
type Offer = Box<dyn Fn(Arc<Relay>) + Send>;

/// Has the data plane go on with flows that were left; tells how many.
type Resume = Box<dyn Fn(Vec<Left>) -> usize + Send>;

/// The relay from the control plane's side.
pub struct Splices {
    process: Arc<ProcessCell>,
    /// Whose maps and links outlive the process.
    owner: u64,
    offer: Offer,
    resume: Resume,
    relay: Option<Arc<Relay>>,
    stage: Stage,
    sweeps: bool,
    /// Sets of another version, whose flows have until the drain deadline, counted from here.
    others: Option<Instant>,
    /// Interfaces that the programs are attached to, or why one refused.
    attached: Result<Vec<String>, String>,
}

/// Whether new connections may use it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Unasked,
    Tested,
    Refused,
}

/// Word that names what the relay keeps in the kernel of the instance with this state folder.
pub fn owner(state_dir: &Path) -> u64 {
    let place = std::fs::canonicalize(state_dir).unwrap_or_else(|_| state_dir.to_owned());
    seed_from_text(&format!("splice {}", place.display()))
}

impl Splices {
    /// Starts nothing yet.
    pub fn new(process: Arc<ProcessCell>, owner: u64, offer: Offer, resume: Resume) -> Self {
        Self {
            process,
            owner,
            offer,
            resume,
            relay: None,
            stage: Stage::Unasked,
            sweeps: false,
            others: None,
            attached: Ok(Vec::new()),
        }
    }

    /// Takes over what a killed process has left, and holds the ports of its flows before anything connects. If the start
    /// fails, all is as it was.
    pub fn adopt(&mut self) {
        let (fits, others) = Splice::left_by(self.owner);
        if others > 0 {
            tracing::warn!(
                "relay splice: what a killed process left is of another version: its flows have until runtime.drain_timeout to end"
            );
            self.others = Some(Instant::now());
        }
        if !fits {
            return;
        }
        match Relay::load_or_adopt(self.owner, FLOWS) {
            Ok(relay) => self.relay = Some(Arc::new(relay)),
            Err(error) => {
                tracing::error!("relay splice: flows that a killed process left go on by themselves: {error}")
            }
        }
    }

    /// Goes on with the flows of [`Self::adopt`], now that there is a table and nothing of the start can fail any more.
    pub fn resume(&mut self) {
        let Some(relay) = self.relay.take() else { return };
        relay.programs().own();
        let left = relay.left();
        if left.is_empty() && !relay.lingers() {
            relay.close();
            return;
        }
        (self.offer)(Arc::clone(&relay));
        let flows = (self.resume)(left);
        tracing::info!(flows, "relay splice: takes over what a killed process left");
        self.relay = Some(relay);
    }

    /// Brings the relay up to what `table` asks for, and to the interfaces that there are.
    pub async fn follow(&mut self, table: &DispatchTable, stop: &CancellationToken) {
        if self.stage == Stage::Unasked && table.frontends.values().any(|entry| entry.splices()) {
            self.stage = match self.start().await {
                Ok(()) => Stage::Tested,
                Err(why) => {
                    let named = |entry: &FrontendEntry| entry.frontend.relay == RelayChoice::Splice;
                    self.refuse(&why, table.frontends.values().any(|entry| named(entry)));
                    Stage::Refused
                }
            };
        }
        self.let_others_go(table);
        let Some(relay) = self.relay.clone() else { return };
        if !self.sweeps {
            match sweep(&relay, stop) {
                Ok(()) => self.sweeps = true,
                Err(error) => tracing::error!("relay splice: {error}"),
            }
        }
        self.attach(&relay);
        self.state().explain(self.words(&relay));
    }

    fn let_others_go(&mut self, table: &DispatchTable) {
        let deadline = table.config.as_ref().map(|config| config.runtime.drain_timeout);
        if let (Some(since), Some(deadline)) = (self.others, deadline)
            && since.elapsed() >= deadline
        {
            self.others = None;
            let sets = match &self.relay {
                Some(relay) => relay.programs().remove_others(),
                None => remove_all(self.owner),
            };
            tracing::info!(sets, "relay splice: took away what a killed process of another version left");
        }
    }

    fn attach(&mut self, relay: &Relay) {
        let attached = relay.attach().map_err(|error| error.to_string());
        if attached != self.attached {
            match &attached {
                Ok(names) => tracing::info!("relay splice: attached to {}", names.join(", ")),
                Err(why) => tracing::warn!("relay splice: {why}"),
            }
            self.attached = attached;
        }
    }

    async fn start(&mut self) -> Result<(), String> {
        let (owner, relay) = (self.owner, self.relay.clone());
        // In a thread of its own: verifier and tests take some tenths of a second.
        let begun = tokio::task::spawn_blocking(move || begin(owner, relay)).await;
        let (relay, tests) = begun.map_err(|error| error.to_string())??;
        self.attach(&relay);
        let failed = failures(&tests);
        if !failed.is_empty() {
            let findings = Findings { why: "self-tests failed on this kernel".to_owned(), tests };
            self.state().set(false, findings);
            return Err(format!("self-tests failed: {failed}"));
        }
        let outlives = relay.programs().outlives();
        tracing::info!(tests = tests.len(), outlives, "relay splice is on: its self-tests passed");
        // Whoever sees that it is on sees all that there is to say of it.
        self.state().set(true, Findings { why: self.words(&relay), tests });
        (self.offer)(Arc::clone(&relay));
        self.relay = Some(relay);
        Ok(())
    }

    /// Says why it is off: to all if a frontend asks for it by name.
    fn refuse(&self, why: &str, named: bool) {
        if self.state().read().1.tests.is_empty() {
            self.state().set(false, Findings { why: why.to_owned(), tests: Vec::new() });
        }
        if named {
            tracing::warn!("relay splice is off: {why}");
        } else {
            tracing::info!("relay splice is off, connections are copied: {why}");
        }
    }

    /// What `status` shows of it while it is on: the interfaces and the programs' counters.
    fn words(&self, relay: &Relay) -> String {
        let places = match &self.attached {
            Ok(names) if names.is_empty() => "to no interface".to_owned(),
            Ok(names) => format!("to {}", names.join(", ")),
            Err(why) => format!("not everywhere ({why})"),
        };
        let counts = relay.programs().counts();
        let counts: Vec<_> =
            Count::NAMES.iter().zip(counts).map(|(name, count)| format!("{count} {name}")).collect();
        let outlives = if relay.programs().outlives() { "; goes on if the process is killed" } else { "" };
        let (flows, each) = relay.spent().told();
        let counts = counts.join(", ");
        format!(
            "its self-tests passed; attached {places}{outlives}; {flows} hand-overs at {each:.1} us each; packets: {counts}"
        )
    }

    fn state(&self) -> &RelayState {
        &self.process.relays[KernelRelay::Splice.index()]
    }
}

/// Loads the relay, unless it is there, and tries it.
fn begin(owner: u64, relay: Option<Arc<Relay>>) -> Result<(Arc<Relay>, Vec<SelfTest>), String> {
    let relay = match relay {
        Some(relay) => relay,
        None => {
            let relay = Relay::load_or_adopt(owner, FLOWS).map_err(|error| error.to_string())?;
            relay.programs().own();
            Arc::new(relay)
        }
    };
    let tests = trial::run(&relay);
    Ok((relay, tests))
}

fn sweep(relay: &Arc<Relay>, stop: &CancellationToken) -> std::io::Result<()> {
    let (sweeping, stop) = (Arc::clone(relay), stop.clone());
    let thread = std::thread::Builder::new().name("splice-sweep".to_owned());
    thread.spawn(move || sweeping.sweep(|| stop.is_cancelled())).map(drop)
}
