//! Tries a relay in the kernel as soon as a frontend asks for it, and goes on trying it while it is in use.

#![cfg(target_os = "linux")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::table::DispatchTable;
use crate::model::ProcessCell;
use crate::model::relay::{Findings, KernelRelay, RelayState, SelfTest};
use crate::proxy::adapters::bpf::{Kernel, Sockmap};
use crate::proxy::relay::sockmap::Relay;
use crate::proxy::relay::trial::{self, Case};

/// Time from one canary to the next.
pub(super) const CANARY: Duration = Duration::from_secs(10);

/// What canaries run in turn: the ones that cost little.
const CANARIES: [Case; 4] =
    [Case::EarlyData, Case::ClientClosesFirst, Case::BackendClosesFirst, Case::WakeUp];

/// Gives the data plane a relay; whether it may be used says its state.
pub type Offer = Box<dyn FnMut(Arc<Relay>) + Send>;

/// Starts relays when they are first asked for.
pub struct Relays {
    process: Arc<ProcessCell>,
    offer: Offer,
    /// Bytes of a relay buffer.
    buffer: usize,
    started: bool,
}

impl Relays {
    /// Starts nothing yet.
    pub fn new(process: Arc<ProcessCell>, offer: Offer, buffer: usize) -> Self {
        Self { process, offer, buffer, started: false }
    }

    /// Starts the relay that a frontend of `table` asks for, unless that was done before.
    pub fn follow(&mut self, kernel: &mut Kernel, table: &DispatchTable, stop: &CancellationToken) {
        let asked = |relay: KernelRelay| {
            table.frontends.values().any(|entry| entry.frontend.relay.kernel() == Some(relay))
        };
        if self.started || !asked(KernelRelay::Sockmap) {
            return;
        }
        self.started = true;
        if !trial::proven() {
            return refuse(&self.process, trial::UNPROVEN);
        }
        if let Err(why) = self.start(kernel, stop) {
            refuse(&self.process, &why);
        }
    }

    fn start(&mut self, kernel: &mut Kernel, stop: &CancellationToken) -> Result<(), String> {
        let maps = Sockmap::attach(kernel).map_err(|error| error.to_string())?;
        let relay = Arc::new(Relay::new(maps, self.buffer).map_err(|error| error.to_string())?);
        relay.want(true).map_err(|error| error.to_string())?;
        let (process, stop) = (Arc::clone(&self.process), stop.clone());
        (self.offer)(Arc::clone(&relay));
        let lookout = Arc::clone(&relay);
        let state = Arc::clone(&process);
        tokio::spawn(async move {
            let Err(error) = lookout.run().await else { return };
            refuse(&state, &format!("its events cannot be waited for: {error}"));
        });
        // A runtime of its own, so that a test neither waits for the control plane nor holds it up.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let thread = std::thread::Builder::new().name("relay-trial".to_owned());
        let tests = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = keep_trying(&relay, &process.relays[KernelRelay::Sockmap.index()]) => {}
                }
            });
        };
        thread.spawn(tests).map(drop).map_err(|error| error.to_string())
    }
}

/// Notes why relays in the kernel cannot be used here; the line about the kernel in the log has said so.
pub fn impossible(process: &ProcessCell, why: &str) {
    for state in &process.relays {
        state.set(false, Findings { why: why.to_owned(), tests: Vec::new() });
    }
}

fn refuse(process: &ProcessCell, why: &str) {
    let state = &process.relays[KernelRelay::Sockmap.index()];
    state.set(false, Findings { why: why.to_owned(), tests: Vec::new() });
    tracing::warn!("relay sockmap is off: {why}");
}

/// Tests, then tries canaries until one fails: from then on new connections stay with `copy`.
async fn keep_trying(relay: &Arc<Relay>, state: &RelayState) {
    let began = Instant::now();
    let tests = trial::run(relay).await;
    let took = began.elapsed();
    let failed = failures(&tests);
    if !failed.is_empty() {
        tracing::error!("relay sockmap is off: self-tests failed: {failed}");
        state.set(false, Findings { why: "self-tests failed on this kernel".to_owned(), tests });
        return;
    }
    tracing::info!(
        tests = tests.len(),
        took_ms = took.as_millis() as u64,
        "relay sockmap is on: its self-tests passed"
    );
    state.set(true, Findings { why: "its self-tests passed".to_owned(), tests: tests.clone() });
    for case in CANARIES.into_iter().cycle() {
        tokio::time::sleep(CANARY).await;
        let canary = trial::one(Arc::clone(relay), case).await;
        if !canary.passed {
            let failed = failures(std::slice::from_ref(&canary));
            tracing::error!("relay sockmap is off for new connections: a canary failed: {failed}");
            let why = format!("a canary failed while it was in use: {failed}");
            state.set(false, Findings { why, tests: [tests, vec![canary]].concat() });
            return;
        }
    }
}

/// The tests that failed, in words; empty if none did.
pub(super) fn failures(tests: &[SelfTest]) -> String {
    let failed = tests.iter().filter(|test| !test.passed);
    failed.map(|test| format!("{}: {}", test.name, test.detail)).collect::<Vec<_>>().join("; ")
}
