//! A connection that a killed process has left to programs in the kernel.

#![cfg(target_os = "linux")]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::finish;
use crate::control::former::{Former, place};
use crate::control::table::DispatchTable;
use crate::model::relay::KernelRelay;
use crate::proxy::admit::{Member, Slot, enter};
use crate::proxy::flow::{Direction, Flow, Routed};
use crate::proxy::relay::splice::{Left, frontend_word};
use crate::proxy::seat::{Seat, Workers};
use crate::proxy::shared::Shared;
use crate::strategy::port::Basis;

/// Counts the connection, as one that was opened now, and looks after it to its end.
pub(in crate::proxy) fn resume(
    shared: &Arc<Shared>,
    workers: &Arc<Workers>,
    table: &DispatchTable,
    left: Left,
) {
    let [client, local] = left.client;
    let former = Former { local, backend: left.backend, idle: Duration::from_secs(left.memo.idle) };
    let placed = place(table, &former, |name| frontend_word(name) == left.memo.frontend);
    let (Some((entry, position)), Some(Seat { flows, runtime })) = (placed, workers.lightest()) else {
        // Before the first table there is nobody to take over for.
        return;
    };
    // A limit that was lowered ends no connection.
    enter(&shared.process, 0, &entry.cell, 0);
    let Some(slot) = Slot::take(&entry, position, 0) else { return };
    slot.backend().cell.opened.fetch_add(1, Ordering::Relaxed);
    let flow = Flow::new(shared.connection_id(), client, local, Arc::clone(&entry), left.memo.started);
    let flow = flow.goes_on(left.bytes, left.active);
    flow.routed(Routed {
        entry,
        position: slot.position(),
        attempts: 1,
        hedged: false,
        connect_us: 0,
        table_version: table.version,
        basis: Basis::Former,
    });
    flow.relayed_by(Some(KernelRelay::Splice));
    let member = Member::join(Arc::clone(flows), Arc::clone(&shared.process), Arc::new(flow));
    runtime.spawn(serve(Arc::clone(shared), left, slot, member));
}

async fn serve(shared: Arc<Shared>, left: Left, slot: Slot, member: Member) {
    let flow = member.flow();
    let cell = &flow.frontend.cell.relays[KernelRelay::Splice.index()];
    let meter = |direction: Direction, bytes: u64| flow.moved(direction, bytes, shared.clock.now());
    let relay = left.relay();
    let end = relay.resume(left, &meter, cell, flow.ordered()).await;
    finish(&shared, member.flows(), flow, end);
    // The backend's place is given back before the connection stops counting.
    drop(slot);
    drop(member);
}
