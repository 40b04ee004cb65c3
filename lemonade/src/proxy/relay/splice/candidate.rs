//! A connection of relay `copy` that may become a spliced flow.

#![cfg(target_os = "linux")]

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::check::{Ends, Lacks, Place, fits, legs, ready};
use super::socket::{held, info, place, stamp};
use super::{Memo, Relay, Spliced, Watched, frontend_word};
use crate::model::relay::{Kept, KernelRelay, RelayCell};
use crate::proxy::flow::Flow;

/// Tries after which programs that have not seen a side's packets will not.
const BLIND: u32 = 16;

/// Quiet moments that are let pass at most between two tries.
const MOST_SKIPPED: u32 = 16;

/// A connection that asks for the relay, as its copying task sees it.
#[derive(Debug)]
pub struct Candidate<'a, S> {
    relay: &'a Arc<Relay>,
    sockets: [&'a S; 2],
    ends: Ends,
    flow: &'a Flow,
    stage: Mutex<Stage>,
}

/// How far it is.
#[derive(Debug)]
enum Stage {
    New,
    Watched { flow: Watched, tries: u32, skip: u32, blind: u32 },
    Kept,
    Spliced(Spliced),
}

/// Why a step came to nothing.
enum Failure {
    /// Another moment may be better.
    Later(Lacks),
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
        Self { relay, sockets: [client, backend], ends, flow, stage: Mutex::new(Stage::New) }
    }

    /// Goes a step on at a moment at which userspace holds nothing of the connection; tells whether it was handed over.
    ///
    /// The caller has read all of both sockets, and nobody writes to them during the call.
    pub fn advance(&self) -> bool {
        let mut stage = self.lock();
        match &mut *stage {
            Stage::Kept | Stage::Spliced(_) => return false,
            Stage::Watched { flow, .. } if !flow.settled.load(Ordering::Acquire) => return false,
            Stage::Watched { skip, .. } if *skip > 0 => {
                *skip -= 1;
                return false;
            }
            Stage::New | Stage::Watched { .. } => {}
        }
        self.relay.spent.time(|| self.step(&mut stage))
    }

    fn step(&self, stage: &mut Stage) -> bool {
        let done = match stage {
            Stage::New => self.watch().map(|flow| Stage::Watched { flow, tries: 0, skip: 0, blind: 0 }),
            Stage::Watched { flow, tries, skip, blind } => match self.hand_over(flow) {
                Ok(base) => {
                    let Stage::Watched { flow, .. } = std::mem::replace(stage, Stage::Kept) else {
                        return false;
                    };
                    self.relay.spent.flows.fetch_add(1, Ordering::Relaxed);
                    Ok(Stage::Spliced(Spliced { flow, base }))
                }
                Err(Failure::Later(lacks)) => {
                    *tries = tries.saturating_add(1);
                    *blind += u32::from(lacks == Lacks::Packets);
                    *skip = (*tries).min(MOST_SKIPPED);
                    if *blind > BLIND { Err(Failure::Never(Kept::Path)) } else { return false }
                }
                Err(failure) => Err(failure),
            },
            Stage::Kept | Stage::Spliced(_) => return false,
        };
        match done {
            Ok(next) => *stage = next,
            Err(Failure::Later(_)) => {}
            Err(Failure::Never(why)) => {
                self.cell().keep(why);
                *stage = Stage::Kept;
            }
        }
        matches!(stage, Stage::Spliced(_))
    }

    /// The flow, if it was handed over: from then on nothing may be read from the sockets nor written to them.
    pub fn take(&self) -> Option<Spliced> {
        let mut stage = self.lock();
        match std::mem::replace(&mut *stage, Stage::Kept) {
            Stage::Spliced(spliced) => Some(spliced),
            other @ (Stage::New | Stage::Watched { .. } | Stage::Kept) => {
                *stage = other;
                None
            }
        }
    }

    /// Makes the flow known to the programs, which count its packets from then on.
    fn watch(&self) -> Result<Watched, Failure> {
        let tcp = [info(self.sockets[0])?, info(self.sockets[1])?];
        if !tcp.iter().all(|socket| socket.quiet()) {
            return Err(Failure::Later(Lacks::Quiet));
        }
        fits(&self.ends, &tcp).map_err(Failure::Never)?;
        let places = self.places()?;
        let slot = self.relay.lock().free.pop().ok_or(Failure::Never(Kept::Full))?;
        let legs = legs(slot, &self.ends, &tcp, &places);
        let settled = Arc::new(AtomicBool::new(false));
        let programs = &self.relay.programs;
        programs.begin(slot, places.map(|place| place.received), places.map(|place| place.sent));
        if let Err(error) = programs.join(&legs) {
            self.relay.lock().free.push(slot);
            // A leg that is there already belongs to a flow that ended a moment ago.
            return Err(match error.raw_os_error() {
                Some(libc::E2BIG) => Failure::Never(Kept::Full),
                Some(libc::EEXIST) => Failure::Later(Lacks::Quiet),
                _ => error.into(),
            });
        }
        self.relay.lock().fresh.push(Arc::clone(&settled));
        self.relay.news.notify_one();
        Ok(Watched { relay: Arc::clone(self.relay), slot, legs, settled })
    }

    /// Hands the flow over, if this is a moment for it; tells where its streams stood.
    fn hand_over(&self, flow: &Watched) -> Result<[u64; 2], Failure> {
        let programs = &self.relay.programs;
        // First of all: a packet that comes from now on changes it.
        let state = programs.state(flow.slot);
        let tcp = [info(self.sockets[0])?, info(self.sockets[1])?];
        if !tcp.iter().all(|socket| socket.quiet()) {
            return Err(Failure::Later(Lacks::Quiet));
        }
        fits(&self.ends, &tcp).map_err(Failure::Never)?;
        let places = self.places()?;
        let seen = self.relay.seen(flow.slot);
        ready(&seen, &flow.legs, &tcp, &places).map_err(Failure::Later)?;
        for at in 0..2 {
            // Later than anything that the other socket has sent to its peer, who takes nothing earlier (RFC 7323, 5.3).
            let delta = match tcp[at].stamped() {
                true => stamp(self.sockets[1 - at])?.wrapping_sub(seen[at].stamp).wrapping_add(1),
                false => 0,
            };
            programs.promise(flow.slot, at, places[at].received, places[at].sent, delta);
        }
        let ends = seen.map(|side| side.end);
        programs.set_memo(flow.slot, self.memo(ends).to_words());
        if programs.hand_over(flow.slot, state) { Ok(ends) } else { Err(Failure::Later(Lacks::Quiet)) }
    }

    /// What the process after this one needs to know if this one is killed.
    fn memo(&self, ends: [u64; 2]) -> Memo {
        let (up, down) = self.flow.bytes();
        let frontend = &self.flow.frontend.frontend;
        let idle = frontend.idle_timeout.as_secs();
        Memo::new(frontend_word(&frontend.name), self.flow.started, idle, ends, [up, down])
    }

    /// Where the streams stand, if neither socket holds anything of them. What has come out of order is acknowledged (SACK): its
    /// sender would not send it again before it thinks that we have thrown it away.
    fn places(&self) -> Result<[Place; 2], Failure> {
        let places = [place(self.sockets[0])?, place(self.sockets[1])?];
        // After the places: what has come since is held.
        if held(self.sockets[0])? > 0 || held(self.sockets[1])? > 0 {
            return Err(Failure::Later(Lacks::Quiet));
        }
        Ok(places)
    }

    fn lock(&self) -> MutexGuard<'_, Stage> {
        // Nothing inside panics half-way, so a poisoned lock still holds a whole stage.
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> Candidate<'_, S> {
    fn cell(&self) -> &RelayCell {
        &self.flow.frontend.cell.relays[KernelRelay::Splice.index()]
    }
}

impl<S> Drop for Candidate<'_, S> {
    fn drop(&mut self) {
        let stage = self.stage.get_mut().unwrap_or_else(PoisonError::into_inner);
        if matches!(stage, Stage::Watched { tries, .. } if *tries > 0) {
            self.cell().keep(Kept::Busy);
        }
    }
}
