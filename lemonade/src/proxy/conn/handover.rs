//! A connection that has lasted, from the relay `copy` to its end in the kernel.

#![cfg(target_os = "linux")]

use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::{Context, Watch, abort, finish};
use crate::metrics::port::End;
use crate::model::relay::KernelRelay;
use crate::proxy::admit::Member;
use crate::proxy::establish::Established;
use crate::proxy::flow::Direction;
use crate::proxy::relay::copy::{Stop, copy};
use crate::proxy::relay::sockmap::Carried;
use crate::proxy::relay::{State, is_abort};
use crate::proxy::socket::{Liveness, set_liveness};

/// Carries the connection to its end: in the kernel, or here if the kernel refuses.
pub(super) async fn carry(context: Arc<Context>, client: TcpStream, held: Established, member: Member) {
    let shared = &*context.shared;
    let flow = member.flow();
    let settings = &flow.frontend.frontend;
    let (backend, mut held) = held.replace(());
    // Out of tokio's set of sockets, which would wake the worker for each packet.
    let (Ok(client), Ok(backend)) = (client.into_std(), backend.into_std()) else {
        return finish(shared, member.flows(), flow, End::BackendReset);
    };
    if let Some(spliced) = held.spliced.take()
        && let Some(relay) = shared.splice.get()
    {
        let cell = &flow.frontend.cell.relays[KernelRelay::Splice.index()];
        let meter = |direction: Direction, bytes: u64| flow.moved(direction, bytes, shared.clock.now());
        flow.relayed_by(Some(KernelRelay::Splice));
        let end = relay.carry(*spliced, [client, backend], &meter, cell, flow.ordered()).await;
        finish(shared, member.flows(), flow, end);
        // The backend's place is given back before the connection stops counting.
        drop(held);
        drop(member);
        return;
    }
    if let Some(relay) = shared.sockmap.get() {
        if !flow.lasts() {
            let _ = set_liveness(&backend, Liveness::from(&**settings));
        }
        let cell = &flow.frontend.cell.relays[KernelRelay::Sockmap.index()];
        let meter = |direction: Direction, bytes: u64| flow.moved(direction, bytes, shared.clock.now());
        let idle = settings.idle_timeout;
        flow.relayed_by(Some(KernelRelay::Sockmap));
        let carried = relay.carry(&client, &backend, &meter, cell, idle, flow.ordered()).await;
        if let Carried::End(end) = carried {
            return conclude(&context, end, client, held.replace(backend).1, member).await;
        }
        flow.relayed_by(None);
    }
    let (Ok(client), Ok(backend)) = (TcpStream::from_std(client), TcpStream::from_std(backend)) else {
        return finish(shared, member.flows(), flow, End::BackendReset);
    };
    let held = held.replace(backend).1;
    let meter = Stays(Watch::new(shared, flow, &client, &held));
    let mut state = State::default();
    let end = tokio::select! {
        biased;
        end = flow.ordered() => end,
        stop = copy(&client, &held.stream, &mut state, shared.buffer, &meter) => match stop {
            Stop::End(end) => end,
            Stop::HandOver => End::Closed,
        },
    };
    drop(meter);
    conclude(&context, end, client, held, member).await;
}

/// Ends the connection as the relay says.
async fn conclude<S: AsFd + Sync>(
    context: &Context,
    end: End,
    client: impl AsFd + Sync,
    held: Established<S>,
    member: Member,
) {
    if is_abort(end) {
        abort(end, &client, Some(&held.stream)).await;
    }
    finish(&context.shared, member.flows(), member.flow(), end);
    // The sockets close before the connection stops counting.
    drop(held);
    drop((client, member));
}

/// A meter that keeps the connection in userspace.
struct Stays<'a>(Watch<'a>);

impl crate::proxy::relay::copy::Meter for Stays<'_> {
    fn moved(&self, direction: Direction, bytes: u64) {
        self.0.moved(direction, bytes);
    }

    fn polled(&self) {
        self.0.polled();
    }
}
