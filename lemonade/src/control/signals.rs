//! Reads once a second what the kernel counted, and notes it at the backends of the table in force.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lemonade_common::abi::BackendSignals;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

#[cfg(target_os = "linux")]
use super::relays::Relays;
use super::table::DispatchTable;
use crate::proxy::adapters::bpf::Kernel;

/// Time from one reading to the next.
const PERIOD: Duration = Duration::from_secs(1);

/// Reads until `stop`, then takes everything out of the kernel.
pub async fn run(
    mut kernel: Kernel,
    #[cfg(target_os = "linux")] mut relays: Relays,
    tables: watch::Receiver<Arc<DispatchTable>>,
    stop: CancellationToken,
) {
    kernel.follow_log();
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {
                let table = tables.borrow().clone();
                #[cfg(target_os = "linux")]
                relays.follow(&mut kernel, &table, &stop);
                note(&table, &kernel.signals().into_iter().collect());
            }
        }
    }
}

/// Notes `signals` at each backend that they are of. Pools that share an address each get all of its connections.
fn note(table: &DispatchTable, signals: &HashMap<SocketAddr, BackendSignals>) {
    for backend in table.pools.values().flat_map(|pool| &pool.backends) {
        // Without a port of its own it has as many entries as there are ports that clients use.
        let own = match backend.id.port {
            Some(port) => signals.get(&SocketAddr::new(backend.id.ip, port)).copied(),
            None => {
                let all = signals.iter().filter(|(address, _)| address.ip() == backend.id.ip);
                all.map(|(_, one)| *one).reduce(sum)
            }
        };
        let Some(own) = own else { continue };
        let tcp = &backend.cell.tcp;
        tcp.srtt_us.store(own.srtt_us, Ordering::Relaxed);
        tcp.connect_us.store(own.connect_us_last, Ordering::Relaxed);
        tcp.retransmits.store(own.retransmits, Ordering::Relaxed);
        tcp.closes.store(own.closes, Ordering::Relaxed);
        tcp.resets.store(own.resets, Ordering::Relaxed);
        tcp.read.store(true, Ordering::Release);
    }
}

/// Counts add up; of times the longest stays.
fn sum(one: BackendSignals, other: BackendSignals) -> BackendSignals {
    BackendSignals {
        connects: one.connects + other.connects,
        connect_us_sum: one.connect_us_sum + other.connect_us_sum,
        retransmits: one.retransmits + other.retransmits,
        closes: one.closes + other.closes,
        resets: one.resets + other.resets,
        connect_us_last: one.connect_us_last.max(other.connect_us_last),
        srtt_us: one.srtt_us.max(other.srtt_us),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::fixture::state;

    #[test]
    fn figures_go_to_the_backend_with_that_address_and_port() {
        let table = state(&["web"], &["a", "b"]).table;
        let seen =
            BackendSignals { retransmits: 3, closes: 7, resets: 2, srtt_us: 250, ..Default::default() };
        let elsewhere = BackendSignals { closes: 99, ..seen };
        let at = |text: &str| text.parse().unwrap();
        note(&table, &HashMap::from([(at("192.0.2.1:80"), seen), (at("192.0.2.0:81"), elsewhere)]));
        let backends = &table.pools.values().next().unwrap().backends;
        let read = |at: usize| backends[at].cell.tcp.read();
        assert_eq!(read(0), None, "another port is another backend");
        let b = read(1).unwrap();
        assert_eq!((b.srtt_us, b.retransmits, b.closes, b.resets), (250, 3, 7, 2));
    }
}
