//! Relay `splice`: once a connection is decided, programs at tc pass packets between its two connections, which are one from
//! then on; userspace watches.
//!
//! The hand-over has three steps. The programs first only count a flow's packets ([`Candidate`]); when every packet that had
//! passed them before is through, and at a moment at which userspace and both sockets hold nothing, one compare-and-swap hands
//! the flow over. The sockets stay until their peers have what they had sent, then fall silent and hold the ports.

#![cfg(target_os = "linux")]

mod candidate;
mod check;
mod left;
mod lulls;
mod memo;
mod socket;
pub mod trial;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lemonade_common::FlowKey;
use lemonade_common::splice::{Leg, REOPENED};
use tokio::sync::Notify;

use super::copy::Meter;
use crate::metrics::port::End;
use crate::model::relay::RelayCell;
use crate::proxy::adapters::bpf::{Splice, Unavailable};
use crate::proxy::flow::Direction;
pub use candidate::Candidate;
use check::{Standing, bytes, paid, standing};
use left::Found;
pub use left::Left;
pub use memo::{Memo, frontend_word};
use socket::Holder;

/// Flows that there is room for.
pub const FLOWS: u32 = 1 << 15;

/// Time between two looks at all flows.
const SWEEP: Duration = Duration::from_millis(100);

/// Longest time between two looks of a flow's own task.
const LOOK: Duration = Duration::from_secs(2);

/// First and longest time between two looks at sockets whose peers still lack bytes.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// Time that a silent socket gets to hear that its peer has everything; it sends again three times meanwhile.
const UNSURE: Duration = Duration::from_secs(1);

/// Time for which the last packets of a flow that is over still find it.
const LINGER: Duration = Duration::from_secs(3);

/// The programs, and the flows that they have.
#[derive(Debug)]
pub struct Relay {
    programs: Splice,
    table: Mutex<Table>,
    /// There is something to wait for a grace period with.
    news: Condvar,
    spent: Spent,
}

/// What hand-overs have cost.
#[derive(Debug, Default)]
pub struct Spent {
    /// Flows that were handed over.
    pub flows: AtomicU64,
    /// Nanoseconds of processor time in which tasks looked whether they can be, tries in vain included, and silenced their
    /// sockets.
    pub nanos: AtomicU64,
}

impl Spent {
    /// Runs `work` and adds its time.
    fn time<T>(&self, work: impl FnOnce() -> T) -> T {
        let began = processor_time();
        let done = work();
        self.nanos.fetch_add(processor_time().saturating_sub(began), Ordering::Relaxed);
        done
    }

    /// Flows, and microseconds of each.
    pub fn told(&self) -> (u64, f64) {
        let flows = self.flows.load(Ordering::Relaxed);
        (flows, self.nanos.load(Ordering::Relaxed) as f64 / 1e3 / flows.max(1) as f64)
    }
}

#[derive(Debug, Default)]
struct Table {
    free: Vec<u32>,
    /// Flows that began to be watched: packets may be on their way that the programs have not seen.
    fresh: Vec<Arc<AtomicBool>>,
    /// Slots that were given back: a program may still be at work on them.
    retired: Vec<u32>,
    live: HashMap<u32, Live>,
    lingering: Vec<Lingering>,
    /// Flows that a killed process has left, until they are asked for.
    found: Vec<Found>,
}

/// Client's and backend's leg.
type Legs = [(FlowKey, Leg); 2];

/// What the sweep knows of a flow that the programs have.
#[derive(Debug)]
struct Live {
    notify: Arc<Notify>,
    forwarded: u64,
}

/// A flow that is over.
#[derive(Debug)]
struct Lingering {
    until: Instant,
    flow: Watched,
    /// They hold the ports.
    _holders: [Holder; 2],
}

/// A flow whose packets the programs see; dropping it takes it out of their maps.
#[derive(Debug)]
struct Watched {
    relay: Arc<Relay>,
    slot: u32,
    legs: Legs,
    /// No packet is on its way any more that the programs have not seen.
    settled: Arc<AtomicBool>,
}

/// A flow that was handed over.
#[derive(Debug)]
pub struct Spliced {
    flow: Watched,
    /// Ends of both streams at that moment.
    base: [u64; 2],
}

impl Relay {
    /// Sends the programs through the verifier and makes room for `flows`.
    ///
    /// # Errors
    /// Why the kernel refuses, and what would change that.
    pub fn load(flows: u32) -> Result<Self, Unavailable> {
        Self::with(|| Splice::load(flows))
    }

    /// As [`Self::load`], so that flows outlive the process if it is killed; those that a killed process of `owner` has left
    /// are taken over.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_or_adopt(owner: u64, flows: u32) -> Result<Self, Unavailable> {
        Self::with(|| Splice::load_or_adopt(owner, flows))
    }

    fn with(programs: impl FnOnce() -> Result<Splice, Unavailable>) -> Result<Self, Unavailable> {
        grace().map_err(|error| Unavailable {
            why: format!("the kernel does not tell when packets are through (membarrier: {error})"),
            cure: "boot without nohz_full, and allow membarrier(2)".to_owned(),
        })?;
        let programs = programs()?;
        let found = programs.legs().map_err(|error| Unavailable {
            why: format!("flows that a killed process has left cannot be listed: {error}"),
            cure: "`lemonade cleanup` takes them away".to_owned(),
        })?;
        let whole = |(slot, [client, backend]): (u32, [Option<_>; 2])| Some((slot, [client?, backend?]));
        let found: Vec<Found> = found.into_iter().filter_map(whole).map(Found::hold).collect();
        let taken: BTreeSet<u32> = found.iter().map(|own| own.slot).collect();
        let free = (0..programs.slots()).rev().filter(|slot| !taken.contains(slot)).collect();
        let table = Table { free, found, ..Table::default() };
        Ok(Self { programs, table: Mutex::new(table), news: Condvar::new(), spent: Spent::default() })
    }

    /// Takes programs and maps away, and forgets flows that are over.
    pub fn close(&self) {
        // Each holds the relay.
        let lingering = std::mem::take(&mut self.lock().lingering);
        self.programs.close();
        drop(lingering);
    }

    /// Attaches the programs to interfaces that have come; tells all that they are attached to.
    ///
    /// # Errors
    /// Why one refuses.
    pub fn attach(&self) -> Result<Vec<String>, Unavailable> {
        self.programs.attach()
    }

    /// The programs.
    pub const fn programs(&self) -> &Splice {
        &self.programs
    }

    /// What hand-overs have cost.
    pub const fn spent(&self) -> &Spent {
        &self.spent
    }

    /// Looks after all flows until `stop` says so; blocks its thread.
    pub fn sweep(&self, stop: impl Fn() -> bool) {
        let mut looked = Instant::now();
        while !stop() {
            let table = self.lock();
            let nothing = |table: &mut Table| table.fresh.is_empty() && table.retired.is_empty();
            let waited = self.news.wait_timeout_while(table, SWEEP, nothing);
            let (mut table, _) = waited.unwrap_or_else(PoisonError::into_inner);
            let (fresh, retired) = (std::mem::take(&mut table.fresh), std::mem::take(&mut table.retired));
            drop(table);
            if !(fresh.is_empty() && retired.is_empty()) {
                self.wait_for_packets(&fresh, retired);
            }
            if looked.elapsed() >= SWEEP {
                looked = Instant::now();
                self.look(looked);
            }
        }
    }

    /// Waits until every packet is through that programs may have met before.
    fn wait_for_packets(&self, fresh: &[Arc<AtomicBool>], retired: Vec<u32>) {
        if let Err(error) = grace() {
            tracing::warn!(%error, "relay splice: flows stay with copy");
            return;
        }
        for settled in fresh {
            settled.store(true, Ordering::Release);
        }
        self.lock().free.extend(retired);
    }

    fn look(&self, now: Instant) {
        let mut table = self.lock();
        for (slot, live) in &mut table.live {
            let forwarded = (0..2).map(|at| self.programs.seen(*slot, at).forwarded).sum();
            if forwarded != live.forwarded {
                live.forwarded = forwarded;
                live.notify.notify_one();
            }
        }
        let reopened = |flow: &Watched| self.seen(flow.slot).iter().any(|side| side.marks & REOPENED != 0);
        let over: Vec<_> =
            table.lingering.extract_if(.., |own| own.until <= now || reopened(&own.flow)).collect();
        drop(table);
        // Outside the lock, which giving a slot back takes.
        drop(over);
    }

    /// Carries a flow that was handed over to its end, which `ordered` may tell too. `meter` is told what moves.
    pub async fn carry(
        self: &Arc<Self>,
        spliced: Spliced,
        sockets: [TcpStream; 2],
        meter: &impl Meter,
        cell: &RelayCell,
        ordered: impl Future<Output = End>,
    ) -> End {
        cell.promoted.fetch_add(1, Ordering::Relaxed);
        self.follow(spliced, sockets.map(Holder::new), meter, cell, ordered).await
    }

    /// As [`Self::carry`], for a flow that a killed process has left.
    pub async fn resume(
        self: &Arc<Self>,
        left: Left,
        meter: &impl Meter,
        cell: &RelayCell,
        ordered: impl Future<Output = End>,
    ) -> End {
        self.follow(left.spliced, left.holders, meter, cell, ordered).await
    }

    async fn follow(
        self: &Arc<Self>,
        spliced: Spliced,
        holders: [Holder; 2],
        meter: &impl Meter,
        cell: &RelayCell,
        ordered: impl Future<Output = End>,
    ) -> End {
        let slot = spliced.flow.slot;
        let notify = Arc::new(Notify::new());
        let live = Live { notify: Arc::clone(&notify), forwarded: 0 };
        self.lock().live.insert(slot, live);
        cell.live.fetch_add(1, Ordering::Relaxed);
        let mut carried = Carried { spliced, holders, told: [0; 2] };
        let end = carried.serve(meter, cell, &notify, ordered).await;
        self.lock().live.remove(&slot);
        let Carried { spliced: Spliced { flow, .. }, mut holders, .. } = carried;
        if matches!(end, End::Closed | End::ClientReset | End::BackendReset) {
            holders.iter_mut().for_each(silence);
            let until = Instant::now() + LINGER;
            self.lock().lingering.push(Lingering { until, flow, _holders: holders });
        } else {
            self.programs.halt(slot);
            // A packet that comes behind RST gets one of the host's own, from exactly where its sender expects it.
            for holder in holders {
                holder.reset();
            }
            drop(flow);
        }
        cell.live.fetch_sub(1, Ordering::Relaxed);
        end
    }

    fn seen(&self, slot: u32) -> [crate::proxy::adapters::bpf::Seen; 2] {
        [0, 1].map(|at| self.programs.seen(slot, at))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Nothing inside panics half-way, so a poisoned lock still holds a whole table.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.relay.programs.part(&self.legs.map(|(key, _)| key));
        self.relay.lock().retired.push(self.slot);
        self.relay.news.notify_one();
    }
}

/// A flow that the programs carry, with its sockets.
struct Carried {
    spliced: Spliced,
    holders: [Holder; 2],
    /// Bytes of both directions that the meter was told of.
    told: [u64; 2],
}

impl Carried {
    async fn serve(
        &mut self,
        meter: &impl Meter,
        cell: &RelayCell,
        notify: &Notify,
        ordered: impl Future<Output = End>,
    ) -> End {
        let mut ordered = std::pin::pin!(ordered);
        let mut pause = PAUSE.0;
        loop {
            let standing = self.look(meter, cell);
            match standing {
                Standing::Open => {}
                Standing::Closed => return End::Closed,
                Standing::Reset(0) => return End::ClientReset,
                Standing::Reset(_) => return End::BackendReset,
            }
            let wait = if self.holders.iter().all(Holder::is_silent) { LOOK } else { pause };
            pause = (pause * 2).min(PAUSE.1);
            tokio::select! {
                biased;
                end = &mut ordered => {
                    self.look(meter, cell);
                    return end;
                }
                () = notify.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Counts what has moved, and silences sockets that nobody needs any more.
    fn look(&mut self, meter: &impl Meter, cell: &RelayCell) -> Standing {
        let Self { spliced: Spliced { flow, base }, holders, told } = self;
        let seen = flow.relay.seen(flow.slot);
        for (at, direction) in [Direction::Up, Direction::Down].into_iter().enumerate() {
            let moved = bytes(&seen[at], base[at]);
            let fresh = moved.saturating_sub(told[at]);
            if fresh > 0 {
                told[at] = moved;
                meter.moved(direction, fresh);
                cell.bytes.fetch_add(fresh, Ordering::Relaxed);
            }
            let holder = &mut holders[at];
            // One that a killed process has left goes when its peer has all that it had sent, or by and by.
            let _ = holder.claim();
            if !holder.is_silent() && (paid(&seen[at]) || holder.knows()) {
                flow.relay.spent.time(|| silence(holder));
            }
            if let Err(error) = holder.renew(UNSURE) {
                tracing::debug!(%error, "the port of a spliced flow is not held");
            }
        }
        standing(&seen, &flow.legs)
    }
}

fn silence(holder: &mut Holder) {
    if let Err(error) = holder.silence() {
        tracing::debug!(%error, "a socket of a spliced flow does not fall silent");
    }
}

/// Nanoseconds that this thread has had a processor for.
fn processor_time() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Waits until no packet is on its way any more that was on its way at the call.
fn grace() -> io::Result<()> {
    /// `MEMBARRIER_CMD_GLOBAL` (linux/membarrier.h): waits for a grace period of RCU, in which packets are handled.
    const GLOBAL: libc::c_int = 1;
    // SAFETY: it takes no pointers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
