//! Relay `copy`: userspace copies with a buffer borrowed for the time of each copy.
//!
//! One task serves both directions. It waits for readiness without a buffer, reads as much as one buffer holds and
//! writes it at once; only what the destination does not take keeps the buffer. While a side is not being read, because
//! its FIN was seen or because the other side is slow, its error state is watched, so that a reset is passed on at once.
//!
//! What a direction reads at once doubles while there is enough to read, and halves when the destination does not take all:
//! a fast stream needs fewer turns and longer packets, and a slow reader holds little memory.
//!
//! A small read is written in the task's next turn. The connections that are ready now so read first and then write in a
//! row: their packets find the next hop still busy with the one before, and no interrupt is needed to call it again.

use std::future::{Future, poll_fn};
use std::io::{self, Write};
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::{Half, Pending, State};
use crate::metrics::port::End;
use crate::proxy::buffer;
use crate::proxy::flow::Direction;
use crate::proxy::socket::read;

/// Time until a meter is asked again that had no room.
const PAUSE: Duration = Duration::from_millis(1);

/// Bytes per direction before other connections get their turn.
const SHARE: usize = 1024 * 1024;

/// Bytes that a direction reads at once to begin with, and that a read counts at least against [`SHARE`].
const FIRST: usize = 64 * 1024;

/// What a relay tells while it runs.
pub trait Meter {
    /// Bytes were written in `direction`.
    fn moved(&self, direction: Direction, bytes: u64);

    /// The relay runs: something has happened, or the connection's task was woken.
    fn polled(&self) {}

    /// Bytes that may be written in `direction` now; 0 says to ask again in a moment.
    fn room(&self, _direction: Direction) -> usize {
        usize::MAX
    }

    /// Whether FIN may be passed on in `direction`; if not, it is asked again in a moment.
    fn settled(&self, _direction: Direction) -> bool {
        true
    }

    /// Whether what looks like FIN of the source of `direction` was a close with bytes unread, which is a reset.
    fn cut_short(&self, _direction: Direction) -> bool {
        false
    }

    /// Whether the source of `direction` may hold more than a short read has brought, where the kernel does not say.
    fn more(&self, _direction: Direction) -> bool {
        true
    }

    /// The relay has read so many bytes up and down and not written them, and another does not go on yet. Whether to be asked
    /// again in a moment, even if nothing happens.
    fn waits(&self, _unwritten: [u64; 2]) -> bool {
        false
    }

    /// Whether another relay goes on with the connection, of which nothing is held here.
    fn hands_over(&self) -> bool {
        false
    }
}

impl<F: Fn(Direction, u64)> Meter for F {
    fn moved(&self, direction: Direction, bytes: u64) {
        self(direction, bytes);
    }
}

/// How copying stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The connection ended.
    End(End),
    /// Every byte read was written, and neither side has more, nor FIN, nor an error: another relay may go on.
    HandOver,
}

/// Which side of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Backend,
}

/// Why a direction stopped before its FIN was passed on.
pub(super) struct Broken {
    side: Side,
    timed_out: bool,
}

impl Broken {
    pub(super) fn new(side: Side, error: &io::Error) -> Self {
        Self { side, timed_out: error.kind() == io::ErrorKind::TimedOut }
    }

    pub(super) const fn side(&self) -> Side {
        self.side
    }

    pub(super) const fn end(&self) -> End {
        match (self.side, self.timed_out) {
            (Side::Client, false) => End::ClientReset,
            (Side::Client, true) => End::ClientTimeout,
            (Side::Backend, false) => End::BackendReset,
            (Side::Backend, true) => End::BackendTimeout,
        }
    }
}

/// Moves bytes until both directions have ended, one side is reset, or the meter hands over.
///
/// The sockets stay open. `size` is the buffer size in bytes. Dropping the future between two polls loses nothing that
/// `state` does not hold.
pub fn copy<'a>(
    client: &'a TcpStream,
    backend: &'a TcpStream,
    state: &'a mut State,
    size: usize,
    meter: &'a impl Meter,
) -> impl Future<Output = Stop> {
    let mut watches = Watches { client: None, backend: None, pause: None };
    // Not an async fn, which would keep its arguments twice.
    poll_fn(move |cx| poll(cx, client, backend, state, size, meter, &mut watches))
}

fn poll<'a>(
    cx: &mut Context<'_>,
    client: &'a TcpStream,
    backend: &'a TcpStream,
    state: &mut State,
    size: usize,
    meter: &impl Meter,
    watches: &mut Watches<'a>,
) -> Poll<Stop> {
    meter.polled();
    let State { up, down } = state;
    if let Poll::Ready(Err(broken)) = transfer(cx, up, down, client, backend, Direction::Up, size, meter) {
        return Poll::Ready(Stop::End(broken.end()));
    }
    if let Poll::Ready(Err(broken)) = transfer(cx, down, up, backend, client, Direction::Down, size, meter) {
        return Poll::Ready(Stop::End(broken.end()));
    }
    match (up.broken, down.broken) {
        (true, _) if down.over() => return Poll::Ready(Stop::End(End::BackendReset)),
        (_, true) if up.over() => return Poll::Ready(Stop::End(End::ClientReset)),
        (false, false) if up.over() && down.over() => return Poll::Ready(Stop::End(End::Closed)),
        _ => {}
    }
    for (watch, idle, stream, side) in [
        (&mut watches.client, !up.reading() && !up.put_off, client, Side::Client),
        (&mut watches.backend, !down.reading() && !down.put_off, backend, Side::Backend),
    ] {
        if idle && let Poll::Ready(error) = watch_errors(cx, watch, stream) {
            return Poll::Ready(Stop::End(Broken::new(side, &error).end()));
        }
    }
    // A socket that is not ready said so in its last read: nothing of it is left half-read. The meter is asked when all is done:
    // what it says holds for a moment at which nothing is held here.
    if up.reading()
        && down.reading()
        && client.poll_read_ready(cx).is_pending()
        && backend.poll_read_ready(cx).is_pending()
        && meter.hands_over()
    {
        return Poll::Ready(Stop::HandOver);
    }
    if meter.waits([up.unwritten(), down.unwritten()]) || up.held || down.held {
        let pause = watches.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(PAUSE)));
        if pause.as_mut().poll(cx).is_ready() {
            watches.pause = None;
            cx.waker().wake_by_ref();
        }
    }
    Poll::Pending
}

/// Moves what can be moved in one direction; `Ready(Ok)` when it is done.
#[expect(clippy::too_many_arguments, reason = "one call site; a struct would only rename them")]
fn transfer(
    cx: &mut Context<'_>,
    half: &mut Half,
    other: &Half,
    source: &TcpStream,
    destination: &TcpStream,
    direction: Direction,
    size: usize,
    meter: &impl Meter,
) -> Poll<Result<(), Broken>> {
    half.held = false;
    half.put_off = false;
    let (from, to) = match direction {
        Direction::Up => (Side::Client, Side::Backend),
        Direction::Down => (Side::Backend, Side::Client),
    };
    let mut left = SHARE;
    while left > 0 {
        if half.pending.is_some() {
            if half.broken {
                // Kept for another backend; the end shows in the other direction.
                return Poll::Pending;
            }
            if let Err(error) = ready!(flush(cx, half, destination, direction, meter)) {
                if error.kind() == io::ErrorKind::TimedOut {
                    return Poll::Ready(Err(Broken::new(to, &error)));
                }
                // What the destination sent before it reset may still be unread: the other direction reads it and
                // meets the end there.
                half.broken = true;
                if half.written > 0 {
                    half.release();
                }
                cx.waker().wake_by_ref();
                continue;
            }
        }
        if half.fin_sent {
            return Poll::Ready(Ok(()));
        }
        if half.fin_seen {
            if !half.broken && !meter.settled(direction) {
                half.held = true;
                return Poll::Pending;
            }
            // The last FIN needs no call of its own: both sockets are closed next.
            if !other.fin_sent && !half.broken {
                let _ = SockRef::from(destination).shutdown(Shutdown::Write);
            }
            half.fin_sent = true;
            return Poll::Ready(Ok(()));
        }
        let mut scratch = buffer::take(size);
        let most = (FIRST << half.doubled).min(size);
        match poll_read(cx, source, &mut scratch[..most], || meter.more(direction)) {
            Poll::Pending => {
                buffer::put(scratch);
                return Poll::Pending;
            }
            Poll::Ready(Ok(0)) => {
                buffer::put(scratch);
                if other.broken || meter.cut_short(direction) {
                    // The write that met the reset has taken the error with it: what is left looks like FIN.
                    return Poll::Ready(Err(Broken { side: from, timed_out: false }));
                }
                half.fin_seen = true;
            }
            Poll::Ready(Ok(count)) => {
                half.read += count as u64;
                left = left.saturating_sub(count.max(FIRST));
                half.doubled += u8::from(count == most && most < size);
                if half.broken {
                    buffer::put(scratch);
                } else if count < buffer::LEAST {
                    half.pending =
                        Some(Pending { buffer: scratch[..count].into(), start: 0, end: count as u32 });
                    buffer::put(scratch);
                    half.put_off = true;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                } else {
                    half.pending = Some(Pending { buffer: scratch, start: 0, end: count as u32 });
                }
            }
            Poll::Ready(Err(error)) => {
                buffer::put(scratch);
                return Poll::Ready(Err(Broken::new(from, &error)));
            }
        }
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// Writes what is pending; `Ready(Ok)` when the buffer is given back.
fn flush(
    cx: &mut Context<'_>,
    half: &mut Half,
    destination: &TcpStream,
    direction: Direction,
    meter: &impl Meter,
) -> Poll<io::Result<()>> {
    while let Some(pending) = half.pending.as_mut().filter(|pending| pending.start < pending.end) {
        let bytes = &pending.buffer[pending.start as usize..pending.end as usize];
        let room = meter.room(direction).min(bytes.len());
        if room == 0 {
            half.held = true;
            return Poll::Pending;
        }
        let count = ready!(poll_write(cx, destination, &bytes[..room]))?;
        half.doubled = half.doubled.saturating_sub(u8::from(count < room));
        pending.start += count as u32;
        half.written += count as u64;
        meter.moved(direction, count as u64);
    }
    half.release();
    Poll::Ready(Ok(()))
}

impl Half {
    /// Gives the borrowed buffer back.
    fn release(&mut self) {
        if let Some(pending) = self.pending.take() {
            buffer::put(pending.buffer);
        }
    }

    /// Bytes that were read and not written.
    fn unwritten(&self) -> u64 {
        self.pending.as_ref().map_or(0, |pending| (pending.end - pending.start).into())
    }

    /// Whether the source is being waited for, so that its errors show as the result of a read.
    const fn reading(&self) -> bool {
        self.pending.is_none() && !self.fin_seen
    }
}

/// Reads once; `more` is asked of a short read where the kernel does not say whether that was all.
fn poll_read(
    cx: &mut Context<'_>,
    stream: &TcpStream,
    buffer: &mut [u8],
    more: impl Fn() -> bool,
) -> Poll<io::Result<usize>> {
    poll_io(cx, stream, Interest::READABLE, || {
        let (count, told) = read(stream, buffer)?;
        Ok((count, told.unwrap_or_else(|| count == buffer.len() || more())))
    })
}

fn poll_write(cx: &mut Context<'_>, stream: &TcpStream, bytes: &[u8]) -> Poll<io::Result<usize>> {
    poll_io(cx, stream, Interest::WRITABLE, || {
        let count = (&*SockRef::from(stream)).write(bytes)?;
        Ok((count, count == bytes.len()))
    })
}

/// Tries a call when the socket is ready. It tells a count and whether a further call may do more; when not, readiness
/// is given up at once, which saves the call that would say "would block".
fn poll_io(
    cx: &mut Context<'_>,
    stream: &TcpStream,
    interest: Interest,
    mut call: impl FnMut() -> io::Result<(usize, bool)>,
) -> Poll<io::Result<usize>> {
    loop {
        if interest.is_readable() {
            ready!(stream.poll_read_ready(cx))?;
        } else {
            ready!(stream.poll_write_ready(cx))?;
        }
        let mut moved = None;
        let tried = stream.try_io(interest, || {
            let (count, more) = call()?;
            moved = Some(count);
            if 0 < count && !more { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        if let Some(count) = moved {
            return Poll::Ready(Ok(count));
        }
        match tried {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Poll::Ready(Err(error)),
            Ok(()) => return Poll::Ready(Ok(0)),
        }
    }
}

type Watch<'a> = Option<Pin<Box<dyn Future<Output = io::Error> + Send + 'a>>>;

/// Error watches of sides that are not being read; made only when needed, since most connections never are.
struct Watches<'a> {
    client: Watch<'a>,
    backend: Watch<'a>,
    /// Runs while a direction is held.
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
}

fn watch_errors<'a>(cx: &mut Context<'_>, watch: &mut Watch<'a>, stream: &'a TcpStream) -> Poll<io::Error> {
    watch.get_or_insert_with(|| Box::pin(error_of(stream))).as_mut().poll(cx)
}

/// Waits until the socket is in error and tells which.
async fn error_of(stream: &TcpStream) -> io::Error {
    match stream.ready(Interest::ERROR).await {
        Ok(_) => stream.take_error().ok().flatten().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()),
        Err(error) => error,
    }
}
