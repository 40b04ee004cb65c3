//! What the kernel tells of single packets, as events: a flow that it opened is a decision, a packet that it dropped a
//! refusal.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use lemonade_common::decide::source_hash;
use lemonade_common::flow::{TCP, UDP};
use lemonade_common::hash::flow_hash;
use lemonade_common::notice::Notice;
use lemonade_common::{BackendIx, FlowKey, FrontendIx, PacketReason, maglev};

use crate::control::table::{DispatchTable, FrontendEntry};
use crate::metrics::port::{End, Route};
use crate::model::config::{Protocol, StrategyKind};
use crate::model::{Moment, Name};
use crate::proxy::port::{Connection, Decision};
use crate::proxy::tap::EventKind;
use crate::strategy::port::Basis;

/// The event that a notice stands for, seen at `now`; nothing if the notice is of another program.
pub(super) fn event(
    notice: &Notice,
    table: &DispatchTable,
    seed: u64,
    now: Moment,
) -> Option<(EventKind, Connection)> {
    let reason = notice.reason()?;
    let entry = frontend(notice, table);
    let nobody = || Name::new("-");
    let opened = reason == PacketReason::Opened;
    let connection = Connection {
        id: 0,
        client: end(notice.key.src, notice.key.sport),
        local: end(notice.key.dst, notice.key.dport),
        started: now,
        frontend: entry.map_or_else(nobody, |entry| entry.frontend.name.clone()),
        pool: entry.map_or_else(nobody, |entry| entry.pool.pool.name.clone()),
        plane: "forward",
        relay: entry.and_then(|entry| entry.frontend.forward.as_ref()).map_or("-", |own| own.mode.as_str()),
        route: entry
            .filter(|_| opened)
            .and_then(|entry| route(entry, BackendIx(notice.backend), notice.key.dport, table.version)),
        decision: entry.filter(|_| opened).map(|entry| decision(entry, &notice.key, seed)),
        failed: Box::default(),
        bytes_up: 0,
        bytes_down: 0,
        idle_seconds: 0,
        end: (!opened).then_some((End::Dropped(reason), now)),
    };
    Some((if opened { EventKind::Decision } else { EventKind::Refusal }, connection))
}

/// The frontend that a packet was for: that of its flow, else the one that has its address.
fn frontend<'a>(notice: &Notice, table: &'a DispatchTable) -> Option<&'a FrontendEntry> {
    let of_flow = table.frontends.get(&FrontendIx(notice.frontend));
    let protocol = match notice.key.protocol {
        TCP => Some(Protocol::Tcp),
        UDP => Some(Protocol::Udp),
        _ => None,
    };
    let local = end(notice.key.dst, notice.key.dport);
    let at = |entry: &&Arc<FrontendEntry>| {
        let mut listens = entry.frontend.listen.iter();
        Some(entry.frontend.protocol) == protocol
            && listens.any(|own| own.ip().to_canonical() == local.ip() && own.port() == local.port())
    };
    of_flow.or_else(|| table.frontends.values().find(at)).map(Arc::as_ref)
}

/// Where the kernel sends what came to `port` for a backend of `entry`.
pub(super) fn route(
    entry: &FrontendEntry,
    backend: BackendIx,
    port: [u8; 2],
    table_version: u64,
) -> Option<Route> {
    let backend = entry.pool.backends.iter().find(|own| own.ix == backend)?;
    let candidates = u32::try_from(entry.pool.candidates.len()).unwrap_or(u32::MAX);
    Some(Route {
        pool: backend.id.pool.clone(),
        backend: backend.id.name.clone(),
        address: backend.id.address(u16::from_be_bytes(port)),
        strategy: entry.pool.pool.strategy,
        candidates,
        attempts: 1,
        hedged: false,
        table_version,
        connect: Duration::ZERO,
    })
}

/// What the kernel went by: the slot of the ring, unless it counts.
pub(super) fn decision(entry: &FrontendEntry, key: &FlowKey, seed: u64) -> Decision {
    let slot = |hash| Basis::Slot(maglev::slot(hash));
    let basis = match entry.pool.pool.strategy {
        StrategyKind::LeastConnections => Basis::Counted,
        StrategyKind::SourceHash => slot(source_hash(key, seed)),
        StrategyKind::RoundRobin
        | StrategyKind::WeightedRoundRobin
        | StrategyKind::FastestResponseTime
        | StrategyKind::Adaptive => slot(flow_hash(key, seed)),
    };
    Decision { basis, rival: None }
}

/// An address as maps have it.
pub(super) fn end(ip: [u8; 16], port: [u8; 2]) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), u16::from_be_bytes(port))
}

#[cfg(test)]
mod tests {
    use lemonade_common::notice::NOBODY;

    use super::*;
    use crate::control::compile::tests::{backend, config, frontend, next, pool};
    use crate::health::port::HealthView;

    fn table() -> DispatchTable {
        let config =
            config([pool("web", vec![backend("a", 1), backend("b", 2)])], [frontend("web", 80, "web")]);
        next(&config, &HealthView::default(), &DispatchTable::default())
    }

    fn notice(table: &DispatchTable, reason: PacketReason, known: bool) -> Notice {
        let (ix, entry) = table.frontends.first_key_value().expect("one");
        let key = FlowKey::tcp("192.0.2.7:5000".parse().unwrap(), entry.frontend.listen[0]);
        let (frontend, backend) = if known { (ix.0, entry.pool.backends[1].ix.0) } else { (NOBODY, NOBODY) };
        Notice { key, reason: reason.index() as u32, frontend, backend, reserved: 0 }
    }

    #[test]
    fn a_flow_that_was_opened_is_a_decision_for_its_backend() {
        let table = table();
        let opened = notice(&table, PacketReason::Opened, true);
        let (kind, told) = event(&opened, &table, 7, Moment(9)).expect("an event");
        let route = told.route.expect("a backend");
        assert_eq!((kind, told.plane, told.frontend.as_str()), (EventKind::Decision, "forward", "web"));
        assert_eq!((route.backend.as_str(), told.client), ("b", "192.0.2.7:5000".parse().unwrap()));
        assert_eq!((told.end, told.started), (None, Moment(9)));
        let slot = maglev::slot(flow_hash(&opened.key, 7));
        assert_eq!(told.decision, Some(Decision { basis: Basis::Slot(slot), rival: None }));
    }

    #[test]
    fn a_dropped_packet_is_a_refusal_of_the_frontend_that_has_its_address() {
        let table = table();
        let (kind, told) =
            event(&notice(&table, PacketReason::Options, false), &table, 7, Moment(9)).expect("an event");
        assert_eq!((kind, told.frontend.as_str(), told.route.is_none()), (EventKind::Refusal, "web", true));
        assert_eq!(told.end, Some((End::Dropped(PacketReason::Options), Moment(9))));
        let mut elsewhere = notice(&table, PacketReason::Options, false);
        elsewhere.key.dport = [0, 1];
        let (_, told) = event(&elsewhere, &table, 7, Moment(9)).expect("an event");
        assert_eq!(told.frontend.as_str(), "-");
        assert!(event(&Notice { reason: 1000, ..elsewhere }, &table, 7, Moment(9)).is_none());
    }
}
