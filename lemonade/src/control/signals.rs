//! Reads once a second what the kernel counted, and notes it at the backends of the table in force: for people, for the
//! strategies that go by latency, and for health.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lemonade_common::BackendIx;
use lemonade_common::abi::BackendSignals;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

#[cfg(target_os = "linux")]
use super::relays::Relays;
#[cfg(target_os = "linux")]
use super::short_way::ShortWays;
#[cfg(target_os = "linux")]
use super::splices::Splices;
use super::table::{BackendEntry, DispatchTable};
use crate::health::port::{Signal, SignalKind};
use crate::model::Moment;
use crate::model::tcp::{TcpCounts, latency};
use crate::proxy::adapters::bpf::Kernel;
use crate::proxy::clock::Clock;

/// Time from one reading to the next.
const PERIOD: Duration = Duration::from_secs(1);

/// What the last reading told of each backend: its signals, and the early resets that the proxy had seen itself.
type Before = HashMap<BackendIx, (BackendSignals, u64)>;

/// What reading takes.
pub struct Reader {
    /// What is in the kernel.
    pub kernel: Kernel,
    /// Where health listens.
    pub health: mpsc::Sender<Signal>,
    /// Clock of the data plane.
    pub clock: Clock,
    /// Relay `splice`, which may have taken over flows already.
    #[cfg(target_os = "linux")]
    pub splices: Splices,
}

/// Reads until `stop`, then takes everything out of the kernel.
pub async fn run(
    reader: Reader,
    #[cfg(target_os = "linux")] (mut relays, mut short_ways): (Relays, ShortWays),
    tables: watch::Receiver<Arc<DispatchTable>>,
    stop: CancellationToken,
) {
    let Reader { mut kernel, health, clock, .. } = reader;
    #[cfg(target_os = "linux")]
    let mut splices = reader.splices;
    kernel.follow_log();
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = Before::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let table = tables.borrow().clone();
        #[cfg(target_os = "linux")]
        {
            relays.follow(&mut kernel, &table, &stop);
            short_ways.follow(&kernel, &table, &stop);
            splices.follow(&table, &stop).await;
        }
        let signals = match kernel.signals() {
            Ok(signals) => signals.into_iter().collect(),
            Err(error) => {
                tracing::debug!(%error, "signals of backends");
                continue;
            }
        };
        before = note(&table, &signals, &before, clock.now(), |signal| {
            // A full channel has signals enough.
            let _ = health.try_send(signal);
        });
    }
}

/// Notes `signals` at each backend that they are of. Pools that share an address each get all of its connections.
fn note(
    table: &DispatchTable,
    signals: &HashMap<SocketAddr, BackendSignals>,
    before: &Before,
    now: Moment,
    mut tell: impl FnMut(Signal),
) -> Before {
    let mut noted = Before::with_capacity(before.len());
    for backend in table.pools.values().flat_map(|pool| &pool.backends) {
        let Some(own) = own(backend, signals) else { continue };
        let cell = &backend.cell;
        let counts = TcpCounts {
            connect_us: own.connect_us_last,
            closes: own.closes,
            resets: own.resets,
            early_resets: own.early_resets,
        };
        cell.tcp.counted(own.srtt_us, own.retransmits, counts);
        let seen = cell.early_resets.load(Ordering::Relaxed);
        if let Some((last, seen_then)) = before.get(&backend.ix) {
            if let Some(latency) = news(last, &own, cell.live.load(Ordering::Relaxed).into()) {
                cell.told(latency, now);
            }
            // Those that the proxy has seen itself it has told itself.
            let unseen = own.early_resets.saturating_sub(last.early_resets) > seen.saturating_sub(*seen_then);
            if unseen {
                tell(Signal { backend: backend.ix, kind: SignalKind::Reset });
            }
        }
        noted.insert(backend.ix, (own, seen));
    }
    noted
}

/// What was counted of the connections to one backend.
fn own(backend: &BackendEntry, signals: &HashMap<SocketAddr, BackendSignals>) -> Option<BackendSignals> {
    match backend.id.port {
        Some(port) => signals.get(&SocketAddr::new(backend.id.ip, port)).copied(),
        // Without a port of its own it has as many entries as there are ports that clients use.
        None => {
            let all = signals.iter().filter(|(address, _)| address.ip() == backend.id.ip);
            all.map(|(_, one)| *one).reduce(sum)
        }
    }
}

/// Latency of the way to a backend since the last reading, or `None` when nothing has happened.
///
/// The mean of the handshakes; without any, the round trip that connections which ended had measured.
fn news(last: &BackendSignals, own: &BackendSignals, live: u64) -> Option<Duration> {
    let since = |field: fn(&BackendSignals) -> u64| field(own).saturating_sub(field(last));
    let connects = since(|signals| signals.connects);
    let again = since(|signals| signals.retransmits);
    let closes = since(|signals| signals.closes);
    if connects + again + closes == 0 {
        return None;
    }
    let mean = since(|signals| signals.connect_us_sum).checked_div(connects);
    let round_trip = mean.unwrap_or_else(|| own.srtt_us.into());
    (round_trip != 0).then(|| latency(Duration::from_micros(round_trip), again, connects.max(live)))
}

/// Counts add up; of times the longest stays.
fn sum(one: BackendSignals, other: BackendSignals) -> BackendSignals {
    BackendSignals {
        connects: one.connects + other.connects,
        connect_us_sum: one.connect_us_sum + other.connect_us_sum,
        retransmits: one.retransmits + other.retransmits,
        closes: one.closes + other.closes,
        resets: one.resets + other.resets,
        early_resets: one.early_resets + other.early_resets,
        connect_us_last: one.connect_us_last.max(other.connect_us_last),
        srtt_us: one.srtt_us.max(other.srtt_us),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::fixture::state;

    const NOW: Moment = Moment(1_000_000);

    #[test]
    fn figures_go_to_the_backend_with_that_address_and_port() {
        let table = state(&["web"], &["a", "b"]).table;
        let seen =
            BackendSignals { retransmits: 3, closes: 7, resets: 2, srtt_us: 250, ..Default::default() };
        let elsewhere = BackendSignals { closes: 99, ..seen };
        let at = |text: &str| text.parse().unwrap();
        let signals = HashMap::from([(at("192.0.2.1:80"), seen), (at("192.0.2.0:81"), elsewhere)]);
        note(&table, &signals, &Before::new(), NOW, |_| panic!("nothing is new"));
        let backends = &table.pools.values().next().unwrap().backends;
        let read = |at: usize| backends[at].cell.tcp.read();
        assert_eq!(read(0), None, "another port is another backend");
        let b = read(1).unwrap();
        let counts = b.counts.unwrap();
        assert_eq!((b.srtt_us, b.retransmits, counts.closes, counts.resets), (250, 3, 7, 2));
    }

    #[test]
    fn the_mean_handshake_since_the_last_reading_is_the_latency() {
        let last = BackendSignals { connects: 10, connect_us_sum: 90_000, ..Default::default() };
        assert_eq!(news(&last, &last, 3), None);
        let own = BackendSignals { connects: 12, connect_us_sum: 94_000, ..last };
        assert_eq!(news(&last, &own, 0), Some(Duration::from_millis(2)));
        let lossy = BackendSignals { retransmits: 1, ..own };
        assert_eq!(news(&last, &lossy, 20), Some(Duration::from_millis(12)), "by connection");
        let ended = BackendSignals { closes: 1, srtt_us: 700, ..last };
        assert_eq!(news(&last, &ended, 0), Some(Duration::from_micros(700)));
        // The entry was evicted and made anew.
        assert_eq!(news(&own, &BackendSignals::default(), 0), None);
    }

    #[test]
    fn health_hears_of_early_resets_that_the_proxy_has_not_seen() {
        let table = state(&["web"], &["a", "b"]).table;
        let backend = &table.pools.values().next().unwrap().backends[1];
        let address = "192.0.2.1:80".parse().unwrap();
        let read = |early_resets, before: &Before| {
            let own = BackendSignals { early_resets, resets: early_resets, ..Default::default() };
            let mut told = Vec::new();
            let noted =
                note(&table, &HashMap::from([(address, own)]), before, NOW, |signal| told.push(signal));
            (noted, told)
        };
        let (before, told) = read(4, &Before::new());
        assert_eq!(told, [], "counted before this process looked");
        backend.cell.early_resets.fetch_add(1, Ordering::Relaxed);
        let (before, told) = read(5, &before);
        assert_eq!(told, [], "the proxy has told");
        let (_, told) = read(6, &before);
        assert_eq!(told, [Signal { backend: backend.ix, kind: SignalKind::Reset }]);
    }
}
