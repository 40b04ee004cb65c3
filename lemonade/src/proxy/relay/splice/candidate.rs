//! A connection of relay `copy` that may become a spliced flow.

#![cfg(target_os = "linux")]

mod bulk;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::check::{Anchor, Ends, Lacks, Place, Tcp, fits, legs, meets, ready};
use super::lulls::Lulls;
use super::socket::{held, info, place, stamp};
use super::{Memo, Relay, Spliced, Watched, frontend_word};
use crate::model::relay::{Kept, KernelRelay, RelayCell};
use crate::proxy::adapters::bpf::Seen;
use crate::proxy::flow::{Direction, Flow};
use lemonade_common::splice::lull;

/// Quiet moments after which programs that have not seen a side's packets will not.
const BLIND: u32 = 64;

/// Quiet moments that are let pass at most between two tries.
const MOST_SKIPPED: u32 = 16;

/// A connection that asks for the relay, as its copying task sees it.
#[derive(Debug)]
pub struct Candidate<'a, S> {
    relay: &'a Arc<Relay>,
    sockets: [&'a S; 2],
    ends: Ends,
    flow: &'a Flow,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    stage: Stage,
    /// Tries of this stage that cost system calls and came to nothing.
    tries: u32,
    /// Quiet moments that are let pass.
    skip: u32,
    /// A moment was looked at that was none for a hand-over.
    missed: bool,
    /// Turns of the relay that a busy connection is let alone for.
    rest: u32,
}

impl State {
    const fn at(stage: Stage) -> Self {
        Self { stage, tries: 0, skip: 0, missed: false, rest: 0 }
    }
}

/// How far it is.
#[derive(Debug)]
enum Stage {
    /// Sides of which it is known where they stood.
    New([Option<Anchor>; 2]),
    /// `blind` counts the moments at which the programs had not seen enough.
    Watched {
        flow: Watched,
        anchors: [Anchor; 2],
        blind: u32,
        lulls: Lulls,
    },
    Kept,
    Spliced(Spliced),
}

/// A moment at which nothing that was counted speaks against the hand-over.
struct Chance {
    /// The slot's state, read before all else: a packet that comes later changes it.
    state: u64,
    seen: [Seen; 2],
    /// Where the streams stand by what the relay has copied.
    places: [Place; 2],
}

/// Why a step came to nothing.
enum Failure {
    /// Another moment may be better.
    Later,
    /// A flow that ended a moment ago still has its ends.
    Taken,
    /// It stays with `copy`.
    Never(Kept),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        tracing::debug!(%error, "a connection is not spliced");
        Self::Never(Kept::Kernel)
    }
}

impl<'a, S: AsFd> Candidate<'a, S> {
    /// A connection between `client` and `backend`, whose ends are each the peer's and the own address.
    pub fn new(
        relay: &'a Arc<Relay>,
        client: &'a S,
        backend: &'a S,
        ends: [[SocketAddr; 2]; 2],
        flow: &'a Flow,
    ) -> Self {
        let state = Mutex::new(State::at(Stage::New([None; 2])));
        Self { relay, sockets: [client, backend], ends, flow, state }
    }

    /// Goes a step on at a moment at which userspace holds nothing of the connection; tells whether it was handed over.
    ///
    /// The caller has read all of both sockets, and nobody writes to them during the call.
    pub fn advance(&self) -> bool {
        let mut state = self.lock();
        let State { stage, skip, missed, .. } = &mut *state;
        match stage {
            Stage::Kept | Stage::Spliced(_) => return false,
            Stage::Watched { flow, .. } if !flow.settled.load(Ordering::Acquire) => return false,
            // In a lull each moment may be the one that it is for.
            _ if *skip > 0 && !stage.is_lulled() => {
                *skip -= 1;
                return false;
            }
            Stage::New(_) => {
                if let Err(why) = meets(&self.ends) {
                    self.keep(stage, why);
                    return false;
                }
                self.relay.spent.time(|| self.begin(&mut state));
            }
            Stage::Watched { flow, anchors, blind, .. } => match self.chance(flow, anchors) {
                Ok(chance) => self.relay.spent.time(|| self.attempt(&mut state, &chance)),
                Err(Lacks::Quiet) => *missed = true,
                Err(Lacks::Packets) if *blind < BLIND => *blind += 1,
                Err(Lacks::Packets) => self.keep(stage, Kept::Path),
            },
        }
        matches!(state.stage, Stage::Spliced(_))
    }

    fn begin(&self, state: &mut State) {
        let Stage::New(known) = &mut state.stage else { return };
        match self.look(known).and_then(|()| self.watch(known)) {
            Ok(Some((flow, anchors))) => *state = self.watched(flow, anchors),
            // Each moment may be the last one before a long pause.
            Ok(None) | Err(Failure::Later) => {}
            Err(failure) => self.failed(state, failure),
        }
    }

    fn attempt(&self, state: &mut State, chance: &Chance) {
        let lulled = state.stage.is_lulled();
        let Stage::Watched { flow, anchors, .. } = &state.stage else { return };
        if let Err(failure) = self.hand_over(flow, anchors, chance, lulled) {
            return self.failed(state, failure);
        }
        if let Stage::Watched { flow, .. } = std::mem::replace(&mut state.stage, Stage::Kept) {
            self.relay.spent.flows.fetch_add(1, Ordering::Relaxed);
            state.stage = Stage::Spliced(Spliced { flow, base: chance.seen.map(|side| side.end) });
        }
    }

    fn failed(&self, state: &mut State, failure: Failure) {
        match failure {
            Failure::Later => {
                state.tries = state.tries.saturating_add(1);
                state.skip = state.tries.min(MOST_SKIPPED);
                state.missed = true;
            }
            Failure::Taken => state.skip = MOST_SKIPPED,
            Failure::Never(why) => self.keep(&mut state.stage, why),
        }
    }

    fn keep(&self, stage: &mut Stage, why: Kept) {
        self.cell().keep(why);
        if let Stage::Watched { flow, lulls, .. } = stage
            && lulls.lasts()
        {
            self.open(flow);
        }
        *stage = Stage::Kept;
    }

    /// The flow, if it was handed over: from then on nothing may be read from the sockets nor written to them.
    pub fn take(&self) -> Option<Spliced> {
        let mut state = self.lock();
        match std::mem::replace(&mut state.stage, Stage::Kept) {
            Stage::Spliced(spliced) => Some(spliced),
            other @ (Stage::New(_) | Stage::Watched { .. } | Stage::Kept) => {
                state.stage = other;
                None
            }
        }
    }

    /// Finds out where sides stand that are not `known`. First comes the one that sends nothing now, as it waits for what the other
    /// has been asked.
    fn look(&self, known: &mut [Option<Anchor>; 2]) -> Result<(), Failure> {
        let first = usize::from(self.flow.last() == Direction::Down);
        for at in [first, 1 - first] {
            if known[at].is_none() {
                match self.anchor(at) {
                    Ok(anchor) => {
                        known[at] = Some(anchor);
                        return Ok(());
                    }
                    Err(Failure::Later) => {}
                    Err(failure) => return Err(failure),
                }
            }
        }
        Ok(())
    }

    /// Where a side stands, if its socket holds nothing.
    fn anchor(&self, at: usize) -> Result<Anchor, Failure> {
        let socket = self.sockets[at];
        let tcp = info(socket)?;
        if !tcp.quiet() {
            return Err(Failure::Later);
        }
        let place = place(socket)?;
        // After the place: what has come since is held, and nothing of it is in what was counted.
        if held(socket)? > 0 {
            return Err(Failure::Later);
        }
        Ok(Anchor { place, tcp, copied: self.copied(at) })
    }

    /// Bytes that the relay has copied from a side, and to it.
    fn copied(&self, at: usize) -> [u64; 2] {
        let (up, down) = self.flow.bytes();
        if at == 0 { [up, down] } else { [down, up] }
    }

    /// Makes the flow known to the programs, which count its packets from then on, if both sides are.
    fn watch(&self, known: &[Option<Anchor>; 2]) -> Result<Option<(Watched, [Anchor; 2])>, Failure> {
        let &[Some(client), Some(backend)] = known else { return Ok(None) };
        let (anchors, tcp) = ([client, backend], [client.tcp, backend.tcp]);
        fits(&tcp).map_err(Failure::Never)?;
        let places = [0, 1].map(|at| anchors[at].place(self.copied(at)));
        let slot = self.relay.lock().free.pop().ok_or(Failure::Never(Kept::Full))?;
        let legs = legs(slot, &self.ends, &tcp, &places);
        let settled = Arc::new(AtomicBool::new(false));
        let programs = &self.relay.programs;
        programs.begin(slot, places.map(|place| place.received), places.map(|place| place.sent));
        if let Err(error) = programs.join(&legs) {
            self.relay.lock().free.push(slot);
            return Err(match error.raw_os_error() {
                Some(libc::E2BIG) => Failure::Never(Kept::Full),
                Some(libc::EEXIST) => Failure::Taken,
                _ => error.into(),
            });
        }
        self.relay.lock().fresh.push(Arc::clone(&settled));
        self.relay.news.notify_one();
        Ok(Some((Watched { relay: Arc::clone(self.relay), slot, legs, settled }, anchors)))
    }

    /// Whether this may be a moment for the hand-over, by what programs and relay have counted: no system call is needed to see
    /// that bytes are on their way.
    fn chance(&self, flow: &Watched, anchors: &[Anchor; 2]) -> Result<Chance, Lacks> {
        // First of all: a packet that comes from now on changes it.
        let state = self.relay.programs.state(flow.slot);
        let seen = self.relay.seen(flow.slot);
        let places = [0, 1].map(|at| anchors[at].place(self.copied(at)));
        ready(&seen, &flow.legs, anchors[0].tcp.stamped(), &places)?;
        Ok(Chance { state, seen, places })
    }

    /// Hands the flow over, if this is a moment for it. Windows are opened that were closed because it was `lulled`.
    fn hand_over(
        &self,
        flow: &Watched,
        anchors: &[Anchor; 2],
        chance: &Chance,
        lulled: bool,
    ) -> Result<(), Failure> {
        let Chance { state, seen, places } = chance;
        let programs = &self.relay.programs;
        let tcp = self.quiet()?;
        // Of the last bytes of a full queue some may be lost: a socket to which few acknowledgements come would take long to send
        // them again, and keep what comes behind them.
        if lulled && !tcp.iter().all(Tcp::paid) {
            return Err(Failure::Later);
        }
        for (at, socket) in self.sockets.into_iter().enumerate() {
            let (anchor, copied) = (&anchors[at], self.copied(at));
            if !anchor.received(&tcp[at], copied) {
                return Err(Failure::Later);
            }
            if !anchor.sent(&tcp[at], copied) && place(socket)? != places[at] {
                return Err(Failure::Later);
            }
        }
        self.empty()?;
        for at in 0..2 {
            // Later than anything that the other socket has sent to its peer, who takes nothing earlier (RFC 7323, 5.3).
            let delta = match tcp[at].stamped() {
                true => stamp(self.sockets[1 - at])?.wrapping_sub(seen[at].stamp).wrapping_add(1),
                false => 0,
            };
            programs.promise(flow.slot, at, places[at].received, places[at].sent, delta);
        }
        // Before the hand-over, behind which acknowledgements change one and not the other.
        let windows = lulled.then(|| Self::windows(&tcp));
        programs.set_memo(flow.slot, self.memo(seen.map(|side| side.end)).to_words());
        if !programs.hand_over(flow.slot, *state) {
            return Err(Failure::Later);
        }
        if cfg!(debug_assertions) {
            let looked = self.sockets.map(|socket| place(socket).ok());
            assert_eq!(looked, places.map(Some), "what was counted is not where the sockets stand");
        }
        if let Some(windows) = windows {
            self.open_beyond(flow, windows);
        }
        Ok(())
    }

    /// What the process after this one needs to know if this one is killed.
    fn memo(&self, ends: [u64; 2]) -> Memo {
        let (up, down) = self.flow.bytes();
        let frontend = &self.flow.frontend.frontend;
        let idle = frontend.idle_timeout.as_secs();
        Memo::new(frontend_word(&frontend.name), self.flow.started, idle, ends, [up, down])
    }

    /// What the kernel tells of both sockets, if neither side has closed, all is sent, and each side understands the other.
    fn quiet(&self) -> Result<[Tcp; 2], Failure> {
        let tcp = [info(self.sockets[0])?, info(self.sockets[1])?];
        if !tcp.iter().all(Tcp::quiet) {
            return Err(Failure::Later);
        }
        fits(&tcp).map_err(Failure::Never)?;
        Ok(tcp)
    }

    /// Whether neither socket holds anything that it has received. What has come out of order is acknowledged (SACK): its sender
    /// would not send it again before it thinks that we have thrown it away.
    fn empty(&self) -> Result<(), Failure> {
        if held(self.sockets[0])? > 0 || held(self.sockets[1])? > 0 { Err(Failure::Later) } else { Ok(()) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing inside panics half-way, so a poisoned lock still holds a whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stage {
    /// Whether windows are closed for the hand-over.
    const fn is_lulled(&self) -> bool {
        matches!(self, Self::Watched { lulls, .. } if lulls.lasts())
    }
}

impl<S> Candidate<'_, S> {
    fn cell(&self) -> &RelayCell {
        &self.flow.frontend.cell.relays[KernelRelay::Splice.index()]
    }
}

impl<S> Drop for Candidate<'_, S> {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Stage::Watched { flow, lulls, .. } = &state.stage
            && lulls.lasts()
        {
            // What the sockets still say is theirs.
            self.relay.programs.set_lull(flow.slot, lull::NONE);
        }
        if matches!(state.stage, Stage::Watched { .. }) && state.missed {
            self.cell().keep(Kept::Busy);
        }
    }
}
