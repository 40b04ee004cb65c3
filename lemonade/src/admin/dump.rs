//! Everything at one moment, for a bug report; no secrets.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::AdminWiring;
use super::status::{Status, rfc3339};
use crate::config;
use crate::control::table::DispatchTable;
use crate::metrics::adapters::prometheus;

/// Journal lines in a dump.
const JOURNAL_LINES: usize = 200;

/// Reads everything at `now`.
pub(super) fn dump(wiring: &AdminWiring, now: SystemTime) -> Value {
    let table = std::sync::Arc::clone(&wiring.control.borrow().table);
    let histories = wiring.health.histories();
    let histories: BTreeMap<String, _> =
        histories.iter().map(|(ix, history)| (ix.to_string(), history)).collect();
    let metrics = prometheus::encode(wiring.metrics.snapshot(), *wiring.phase.borrow());
    json!({
        "at": rfc3339(now),
        "program": { "version": env!("CARGO_PKG_VERSION"), "os": std::env::consts::OS, "arch": std::env::consts::ARCH },
        "status": Status::read(wiring, now),
        "table": table_json(&table),
        "config": table.config.as_ref().map(|config| config::written(config)),
        "health": histories,
        "series": wiring.metrics.series(None).samples,
        "metrics": metrics.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>(),
        "journal": wiring.journal.tail(JOURNAL_LINES),
    })
}

fn table_json(table: &DispatchTable) -> Value {
    let frontends = table.frontends.values().map(|entry| {
        json!({
            "ix": entry.ix.to_string(),
            "name": entry.frontend.name,
            "pool": entry.pool.pool.name,
            "listen": entry.frontend.listen,
        })
    });
    let pools = table.pools.values().map(|entry| {
        let backends = entry.backends.iter().map(|backend| {
            json!({
                "ix": backend.ix.to_string(),
                "name": backend.backend.name,
                "ip": backend.id.ip,
                "port": backend.id.port,
                "status": backend.status,
            })
        });
        json!({
            "name": entry.pool.name,
            "strategy": entry.pool.strategy,
            "backends": backends.collect::<Vec<_>>(),
            "candidates": entry.candidates.iter().map(|candidate| candidate.ix.to_string()).collect::<Vec<_>>(),
        })
    });
    json!({
        "version": table.version,
        "config_version": table.config_version,
        "frontends": frontends.collect::<Vec<_>>(),
        "pools": pools.collect::<Vec<_>>(),
        "next_ix": table.next_ix,
    })
}
