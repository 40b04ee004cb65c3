//! What happens to connections, as a stream of server-sent events.
//!
//! A reader looks a few times a second instead of being woken, so the data plane pays only for telling. Who is late, or
//! asks for less than happens, loses events and is told how many.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use futures_util::stream;
use serde::Deserialize;

use super::AdminWiring;
use super::connections::carried_by;
use super::feed::{EVERY, Feed};
use super::words;
use crate::control::overrides::{find, listed};
use crate::model::Moment;
use crate::model::time::micros;
use crate::proxy::port::{Connection, Which};
use crate::proxy::tap::{Event, EventKind};
use crate::shutdown::Phase;

/// Readers at a time, over both doors.
pub const MAX_READERS: usize = 128;

/// Time between two looks of a reader that wants many events, and of one that wants at most `FEW` a second.
const LOOK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(200));

/// Events per second that a person can follow on a page.
const FEW: u32 = 100;

/// Time after which a silent stream shows that it lives.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// Events per second for a reader that does not say how many it wants, and for one that wants as many as possible.
const RATE: (u32, u32) = (1_000, 10_000);

/// What a reader wants to hear of.
#[derive(Clone, Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Wanted {
    /// `decision`, `refusal` or `end`; several separated by commas.
    pub kind: Option<String>,
    /// Frontend, exactly.
    pub frontend: Option<String>,
    /// Backend, exactly, or `pool/backend`.
    pub backend: Option<String>,
    /// Reason of a refusal or an end, by name; decisions have none.
    pub reason: Option<String>,
    /// Client: an address, with or without its port.
    pub client: Option<String>,
    /// Events per second at most; what is above is lost and counted.
    pub rate: Option<u32>,
}

impl Wanted {
    /// Checks the words that have a fixed meaning.
    ///
    /// # Errors
    /// What is wrong and what to write instead.
    pub fn check(&self) -> Result<(), String> {
        let kinds = self.kind.iter().flat_map(|kinds| kinds.split(','));
        if let Some(kind) = kinds.into_iter().find(|kind| !["decision", "refusal", "end"].contains(kind)) {
            return Err(format!("no kind of event `{kind}`; write decision, refusal or end"));
        }
        if let Some(reason) = self.reason.as_deref().filter(|own| words::reasons().all(|name| name != *own)) {
            let all = words::reasons().collect::<Vec<_>>().join(", ");
            return Err(format!("no reason `{reason}`; write one of: {all}"));
        }
        Ok(())
    }

    /// Checks the names, by what there is now or still has connections.
    ///
    /// # Errors
    /// What there is instead, in words.
    pub(super) fn names(&self, wiring: &AdminWiring) -> Result<(), String> {
        if let Some(client) = self.client.as_deref()
            && client.parse::<IpAddr>().is_err()
            && client.parse::<SocketAddr>().is_err()
        {
            let client = words::clean(client);
            return Err(format!(
                "`{client}` is no client; write an address such as 192.0.2.7 or 192.0.2.7:5000"
            ));
        }
        let state = wiring.control.borrow().clone();
        let lives =
            |such: &dyn Fn(&Connection) -> bool| !wiring.plane.connections(Which::Live, such).is_empty();
        if let Some(name) = self.frontend.as_deref() {
            let mut names = state.table.frontends.values().map(|entry| &entry.frontend.name);
            if names.clone().all(|own| own.as_str() != name) && !lives(&|own| own.frontend.as_str() == name) {
                let names = listed(&mut names);
                return Err(format!("no frontend `{}`; there are: {names}", words::clean(name)));
            }
        }
        if let (Some(name), Some(config)) = (self.backend.as_deref(), &state.table.config) {
            // A name that several pools have stands for the backends of all of them.
            let bare =
                config.pools.values().flat_map(|pool| &pool.backends).any(|own| own.name.as_str() == name);
            if !bare && !lives(&|own| carried_by(own, name)) {
                find(config, name).map_err(|why| words::clean(&why))?;
            }
        }
        Ok(())
    }

    /// Whether it is every event.
    fn is_all(&self) -> bool {
        let Self { kind, frontend, backend, reason, client, rate: _ } = self;
        [kind, frontend, backend, reason, client].into_iter().all(Option::is_none)
    }

    fn wants(&self, event: &Event) -> bool {
        let own = &*event.connection;
        self.kind.as_deref().is_none_or(|kinds| kinds.split(',').any(|kind| kind == name(event.kind)))
            && self.frontend.as_deref().is_none_or(|frontend| own.frontend.as_str() == frontend)
            && self.backend.as_deref().is_none_or(|backend| carried_by(own, backend))
            && self.reason.as_deref().is_none_or(|reason| {
                event.kind != EventKind::Decision && own.end.is_some_and(|(end, _)| end.as_str() == reason)
            })
            && self.client.as_deref().is_none_or(|client| is_client(own, client))
    }
}

/// The moment of the next look: the same for all readers, so that many cost one wake-up of their thread.
fn next_look(now: Moment, every: Duration) -> Moment {
    Moment((now.0 + 1).next_multiple_of(micros(every)))
}

fn is_client(own: &Connection, client: &str) -> bool {
    own.client.ip().to_string() == client || own.client.to_string() == client
}

/// Name of a kind of event.
pub const fn name(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Decision => "decision",
        EventKind::Refusal => "refusal",
        EventKind::End => "end",
    }
}

/// A place among the readers, given back when the stream ends.
struct Place {
    readers: Arc<AtomicUsize>,
    feed: Arc<Mutex<Feed>>,
    rate: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.readers.fetch_sub(1, Ordering::Relaxed);
        self.feed.lock().unwrap_or_else(PoisonError::into_inner).leave(self.rate);
    }
}

struct Reader {
    wiring: Arc<AdminWiring>,
    wanted: Wanted,
    /// Number of the next event.
    next: u64,
    /// Events that may still be sent in this second, and when it began.
    left: u32,
    second: Instant,
    lost: u64,
    /// When it was told of those before.
    told: Instant,
    spoke: Instant,
    _place: Place,
}

/// The stream for `wanted`, or `None` when there are too many readers already.
pub(super) fn stream(wiring: &Arc<AdminWiring>, wanted: Wanted) -> Option<Body> {
    let readers = Arc::clone(&wiring.readers);
    let feed = Arc::clone(&wiring.feed);
    if readers.fetch_add(1, Ordering::Relaxed) >= MAX_READERS {
        readers.fetch_sub(1, Ordering::Relaxed);
        return None;
    }
    let rate = wanted.demand();
    let next = feed.lock().unwrap_or_else(PoisonError::into_inner).join(&wiring.tap, rate);
    let place = Place { readers, feed, rate };
    let now = Instant::now();
    let reader = Reader {
        wiring: Arc::clone(wiring),
        next,
        left: wanted.rate(),
        wanted,
        second: now,
        lost: 0,
        told: now,
        spoke: now,
        _place: place,
    };
    let first = stream::once(async { Ok(Bytes::from_static(b": reading\n\n")) });
    let rest = stream::unfold(reader, |mut reader| async move {
        let bytes = reader.next().await?;
        Some((Ok::<_, Infallible>(bytes), reader))
    });
    Some(Body::from_stream(futures_util::StreamExt::chain(first, rest)))
}

impl Wanted {
    fn rate(&self) -> u32 {
        self.rate.unwrap_or(RATE.0).clamp(1, RATE.1)
    }

    /// Events per second that it has to see to find those that it wants.
    fn demand(&self) -> u32 {
        if self.is_all() { self.rate() } else { EVERY }
    }

    fn look(&self) -> Duration {
        if self.rate() <= FEW { LOOK.1 } else { LOOK.0 }
    }
}

impl Reader {
    /// What is to be sent next; `None` when Lemonade stops.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let text = self.look();
            if !text.is_empty() {
                self.spoke = Instant::now();
                return Some(Bytes::from(text));
            }
            if *self.wiring.phase.borrow() == Phase::Stopped {
                return None;
            }
            if self.spoke.elapsed() >= SIGN_OF_LIFE {
                self.spoke = Instant::now();
                return Some(Bytes::from_static(b": alive\n\n"));
            }
            let clock = &self.wiring.clock;
            tokio::time::sleep_until(clock.instant(next_look(clock.now(), self.wanted.look()))).await;
        }
    }

    /// Takes what has been told since the last look.
    fn look(&mut self) -> Vec<u8> {
        if self.second.elapsed() >= Duration::from_secs(1) {
            (self.second, self.left) = (Instant::now(), self.wanted.rate());
        }
        let mut taken = Vec::new();
        {
            let mut feed = self.wiring.feed.lock().unwrap_or_else(PoisonError::into_inner);
            let (here, missed, next) = feed.since(self.next);
            let count = here.len() as u64;
            (self.next, self.lost) = (next, self.lost + missed);
            if self.wanted.is_all() {
                // Without a look at each: a page wants few of many.
                taken.extend(here.take(self.left as usize).map(Arc::clone));
                self.lost += count - taken.len() as u64;
            } else {
                let mut wanted = here.filter(|told| self.wanted.wants(&told.event));
                taken.extend(wanted.by_ref().take(self.left as usize).map(Arc::clone));
                self.lost += wanted.count() as u64;
            }
        }
        self.left -= u32::try_from(taken.len()).unwrap_or(self.left);
        let mut text = Vec::new();
        for told in taken {
            text.extend_from_slice(&told.text(&self.wiring.clock));
        }
        // Those of a second in one line: a reader that is late is not helped by more to read.
        if self.lost > 0 && self.told.elapsed() >= Duration::from_secs(1) {
            self.told = Instant::now();
            let lost = std::mem::take(&mut self.lost);
            text.extend_from_slice(format!("event: lost\ndata: {{\"lost\":{lost}}}\n\n").as_bytes());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_look_at_the_same_moments() {
        let every = Duration::from_millis(200);
        for (now, next) in [(1, 200_000), (199_999, 200_000), (200_000, 400_000), (200_001, 400_000)] {
            assert_eq!(next_look(Moment(now), every), Moment(next));
        }
    }
}
