//! A connection that never pauses: how it becomes known to the programs, and the lull that makes it pause.

#![cfg(target_os = "linux")]

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use lemonade_common::splice::lull;

use super::{Candidate, Failure, Lacks, Stage, State};
use crate::model::Moment;
use crate::proxy::relay::splice::Watched;
use crate::proxy::relay::splice::check::{Anchor, Tcp, meets};
use crate::proxy::relay::splice::lulls::{Lulls, length};
use crate::proxy::relay::splice::socket::{info, place_busy, probe, unread};
use crate::proxy::socket::unacknowledged;

/// Bytes that a connection has carried when it is one that may never pause.
const BULK: u64 = 256 * 1024;

/// Looks at busy sockets that wait for a moment at which nothing waits to be sent.
const PATIENT: u32 = 4;

/// Turns of the relay between later looks, each of up to a MiB.
const REST: u32 = 16;

impl<S: AsFd> Candidate<'_, S> {
    /// Goes a step on whatever is under way. The relay has read so many bytes up and down, and not written them: `unwritten`.
    /// Tells whether it is to be asked again in a moment.
    ///
    /// Nobody reads from the sockets nor writes to them during the call.
    pub fn press(&self, now: Moment, unwritten: [u64; 2]) -> bool {
        let mut state = self.lock();
        if state.rest > 0 {
            state.rest -= 1;
            return state.stage.is_lulled();
        }
        let carried = self.carried();
        match &mut state.stage {
            Stage::Kept | Stage::Spliced(_) => {}
            Stage::New(_) if carried < BULK => {}
            Stage::New(_) => {
                if let Err(why) = meets(&self.ends) {
                    self.keep(&mut state.stage, why);
                    return false;
                }
                self.relay.spent.time(|| self.begin_busy(&mut state, unwritten));
            }
            Stage::Watched { flow, lulls, .. } if lulls.lasts() => {
                if lulls.over(now) {
                    lulls.end(now, carried);
                    self.open(flow);
                }
            }
            Stage::Watched { flow, anchors, lulls, .. } => {
                let settled = flow.settled.load(Ordering::Acquire);
                if settled
                    && lulls.due(now, carried)
                    && self.chance(flow, anchors).err() != Some(Lacks::Packets)
                {
                    let closed = self.relay.spent.time(|| self.close(flow, lulls, now));
                    state.missed = true;
                    if let Err(failure) = closed {
                        self.failed(&mut state, failure);
                    }
                }
            }
        }
        state.stage.is_lulled()
    }

    /// Ends a lull, before something is sent that a closed window must not stand in.
    pub fn end_lull(&self, now: Moment) {
        if let Stage::Watched { flow, lulls, .. } = &mut self.lock().stage
            && lulls.lasts()
        {
            lulls.end(now, self.carried());
            self.open(flow);
        }
    }

    /// Bytes of both directions.
    fn carried(&self) -> u64 {
        let (up, down) = self.flow.bytes();
        up + down
    }

    pub(super) fn watched(&self, flow: Watched, anchors: [Anchor; 2]) -> State {
        State::at(Stage::Watched { flow, anchors, blind: 0, lulls: Lulls::since(self.carried()) })
    }

    fn begin_busy(&self, state: &mut State, unwritten: [u64; 2]) {
        let patient = state.tries < PATIENT;
        let Stage::New(known) = &mut state.stage else { return };
        let looked =
            (0..2).filter(|at| known[*at].is_none()).collect::<Vec<_>>().into_iter().try_for_each(|at| {
                known[at] = Some(self.anchor_busy(at, unwritten, patient)?);
                Ok(())
            });
        match looked.and_then(|()| self.watch(known)) {
            Ok(Some((flow, anchors))) => *state = self.watched(flow, anchors),
            Ok(None) | Err(Failure::Later) => {
                state.tries = state.tries.saturating_add(1);
                state.rest = if patient { 0 } else { REST };
            }
            Err(failure) => self.failed(state, failure),
        }
    }

    /// Where a side stands, whatever is under way; one that is `patient` waits for nothing to be sent.
    fn anchor_busy(&self, at: usize, unwritten: [u64; 2], patient: bool) -> Result<Anchor, Failure> {
        let socket = self.sockets[at];
        let before = info(socket)?;
        if !before.open() || patient && before.unsent() > 0 {
            return Err(Failure::Later);
        }
        let Some((place, unread)) = place_busy(socket)? else { return Err(Failure::Later) };
        let tcp = info(socket)?;
        if tcp.received() != before.received() {
            return Err(Failure::Later);
        }
        let [from, to] = self.copied(at);
        Ok(Anchor { place, tcp: tcp.settled(unread), copied: [from + unwritten[at], to] })
    }

    /// Closes the windows of both peers for a moment.
    fn close(&self, flow: &Watched, lulls: &mut Lulls, now: Moment) -> Result<(), Failure> {
        let tcp = [info(self.sockets[0])?, info(self.sockets[1])?];
        let mut backlogs = self.sockets.map(|socket| unacknowledged(socket));
        for (at, backlog) in backlogs.iter_mut().enumerate() {
            *backlog += unread(self.sockets[1 - at])? as usize;
        }
        match length(&tcp, backlogs).filter(|_| tcp.iter().all(Tcp::open)) {
            Some(length) => {
                lulls.begin(now, length);
                self.cell().lulls.fetch_add(1, Ordering::Relaxed);
                self.relay.programs.set_lull(flow.slot, now.plus(length).0.saturating_mul(1_000));
            }
            None => lulls.end(now, self.carried()),
        }
        Ok(())
    }

    /// Opens the windows again of a connection that stays with the relay for now.
    pub(super) fn open(&self, flow: &Watched) {
        self.tell(flow, [true; 2]);
    }

    /// The window that each side's peer is to be told when the other side's takes what it sends.
    pub(super) fn windows(tcp: &[Tcp; 2]) -> [u16; 2] {
        [0, 1].map(|at| tcp[1 - at].window_for(&tcp[at]))
    }

    /// Opens the windows of a flow that was handed over. Where there is none to tell, the other side's peer opens it.
    pub(super) fn open_beyond(&self, flow: &Watched, windows: [u16; 2]) {
        self.relay.programs.set_windows(flow.slot, windows);
        self.tell(flow, windows.map(|window| window > 0));
    }

    fn tell(&self, flow: &Watched, sides: [bool; 2]) {
        let programs = &self.relay.programs;
        programs.set_lull(flow.slot, lull::OPENS);
        for (socket, _) in self.sockets.into_iter().zip(sides).filter(|(_, told)| *told) {
            if let Err(error) = probe(socket) {
                // A peer whose window stays closed asks by itself.
                tracing::debug!(%error, "a window is not opened");
            }
        }
        programs.set_lull(flow.slot, lull::NONE);
    }
}
