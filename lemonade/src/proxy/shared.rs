//! What every worker of the Tokio plane shares.

use std::sync::Arc;
#[cfg(target_os = "linux")]
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use lemonade_common::BackendIx;
use tokio::sync::mpsc;

use super::clock::Clock;
use super::flow::Flow;
#[cfg(target_os = "linux")]
use super::relay::sk_msg::ShortWay;
#[cfg(target_os = "linux")]
use super::relay::sockmap::Relay;
#[cfg(target_os = "linux")]
use super::relay::splice;
use super::sample::Sampler;
use super::tap::Tap;
use crate::control::table::{DispatchTable, FrontendEntry};
use crate::health::port::{Signal, SignalKind};
use crate::metrics::port::Recorder;
use crate::model::ProcessCell;
use crate::model::relay::KernelRelay;

/// The table and the ways out of the data plane.
pub(super) struct Shared {
    table: ArcSwap<DispatchTable>,
    /// Connections in total that are allowed; 0 is no limit.
    pub(super) total_limit: AtomicU32,
    pub(super) process: Arc<ProcessCell>,
    pub(super) recorder: Arc<dyn Recorder>,
    signals: mpsc::Sender<Signal>,
    pub(super) tap: Tap,
    pub(super) clock: Clock,
    pub(super) seed: u64,
    pub(super) sampler: Sampler,
    /// Bytes of a relay buffer.
    pub(super) buffer: usize,
    next_id: AtomicU64,
    accepting: AtomicUsize,
    /// The relay in the kernel, once there is one; whether it may be used says its state.
    #[cfg(target_os = "linux")]
    pub(super) sockmap: OnceLock<Arc<Relay>>,
    /// The same of relay `sk_msg`.
    #[cfg(target_os = "linux")]
    pub(super) sk_msg: OnceLock<Arc<ShortWay>>,
    /// The same of relay `splice`.
    #[cfg(target_os = "linux")]
    pub(super) splice: OnceLock<Arc<splice::Relay>>,
}

/// Where the data plane tells what it does.
pub(super) struct Outlets {
    /// Takes access records.
    pub(super) recorder: Arc<dyn Recorder>,
    /// Takes passive health signals.
    pub(super) signals: mpsc::Sender<Signal>,
    /// Takes what happens to connections, while somebody reads it.
    pub(super) tap: Tap,
}

/// A listener of one worker, until its accept queue was served to the end.
pub(super) struct Accepting(Arc<Shared>);

impl Accepting {
    /// Counts it.
    pub(super) fn count(shared: &Arc<Shared>) -> Self {
        shared.accepting.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(shared))
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        self.0.accepting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Shared {
    pub(super) fn new(
        process: Arc<ProcessCell>,
        Outlets { recorder, signals, tap }: Outlets,
        clock: Clock,
        seed: u64,
        sampler: Sampler,
        buffer: usize,
    ) -> Self {
        Self {
            table: ArcSwap::default(),
            total_limit: AtomicU32::new(0),
            process,
            recorder,
            signals,
            tap,
            clock,
            seed,
            sampler,
            buffer,
            next_id: AtomicU64::new(1),
            accepting: AtomicUsize::new(0),
            #[cfg(target_os = "linux")]
            sockmap: OnceLock::new(),
            #[cfg(target_os = "linux")]
            sk_msg: OnceLock::new(),
            #[cfg(target_os = "linux")]
            splice: OnceLock::new(),
        }
    }

    /// The table now: the one place where it is read.
    pub(super) fn table(&self) -> Arc<DispatchTable> {
        self.table.load_full()
    }

    /// Makes `table` the one that new connections see.
    pub(super) fn commit(&self, table: Arc<DispatchTable>) {
        self.table.store(table);
    }

    /// Tells health what was noticed; a full channel drops and counts, it never holds a connection up.
    pub(super) fn signal(&self, backend: BackendIx, kind: SignalKind) {
        if self.signals.try_send(Signal { backend, kind }).is_err() {
            self.process.events_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Listeners whose queues are still served.
    pub(super) fn accepting(&self) -> usize {
        self.accepting.load(Ordering::Acquire)
    }

    /// Whether a relay in the kernel is asked for by the frontend of `flow` and may be used.
    pub(super) fn takes_over(&self, flow: &Flow) -> bool {
        self.asked(&flow.frontend, KernelRelay::Sockmap)
    }

    /// Whether the frontend asks for `relay`, and it may be used.
    fn asked(&self, entry: &FrontendEntry, relay: KernelRelay) -> bool {
        let asked = entry.frontend.relay.takes(relay);
        cfg!(target_os = "linux") && asked && self.process.relays[relay.index()].usable()
    }

    /// The short way between sockets of this host, if connections of the frontend may take it.
    #[cfg(target_os = "linux")]
    pub(super) fn short_way(&self, entry: &FrontendEntry) -> Option<&Arc<ShortWay>> {
        self.sk_msg.get().filter(|_| self.asked(entry, KernelRelay::SkMsg))
    }

    /// Relay `splice`, if connections of the frontend may pass to it.
    #[cfg(target_os = "linux")]
    pub(super) fn splices(&self, entry: &FrontendEntry) -> Option<&Arc<splice::Relay>> {
        self.splice.get().filter(|_| self.asked(entry, KernelRelay::Splice))
    }

    /// Number for a new connection.
    pub(super) fn connection_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}
