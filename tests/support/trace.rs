//! What an endpoint saw of its connection, in a form that two planes can be compared by.

use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, TcpStream};

use crate::stream;

/// One thing that an endpoint saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Exactly the bytes `0..n` of the expected stream.
    Bytes(u64),
    /// A correct beginning of the expected stream, of a length that timing decides.
    Prefix,
    /// Bytes that are not the expected stream.
    Wrong(String),
    /// Orderly end of the other side's data.
    Fin,
    /// `ECONNRESET`.
    Reset,
    /// `EPIPE`: reset after the other side's FIN.
    Broken,
    /// Any other error.
    Failed(String),
    /// Nothing within the bound.
    Silence,
}

impl Event {
    /// Names an error of a read, a write or `SO_ERROR`.
    pub fn of_error(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionReset => Self::Reset,
            ErrorKind::BrokenPipe => Self::Broken,
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::Silence,
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// Whether the length of what arrived is part of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// It is.
    Exact,
    /// Timing decides it; only the bytes count.
    Any,
}

/// Reads stream `seed` until it ends in whatever way.
pub fn read_to_end(stream: &mut TcpStream, seed: u64, length: Length) -> Vec<Event> {
    let (read, end) = read_up_to(stream, seed, u64::MAX);
    let end = end.unwrap_or(Event::Silence);
    let bytes = match length {
        _ if matches!(end, Event::Wrong(_)) => None,
        Length::Exact => Some(Event::Bytes(read)),
        Length::Any => Some(Event::Prefix),
    };
    bytes.into_iter().chain([end]).collect()
}

/// Reads stream `seed` up to `limit` bytes; the event is the end that came first, if one did.
pub fn read_up_to(stream: &mut TcpStream, seed: u64, limit: u64) -> (u64, Option<Event>) {
    read_on(stream, seed, 0, limit)
}

/// Goes on reading stream `seed` from byte `from` to byte `limit`; tells how far it came, and which end came first.
pub fn read_on(stream: &mut TcpStream, seed: u64, from: u64, limit: u64) -> (u64, Option<Event>) {
    let mut buffer = vec![0; 64 * 1024];
    let mut at = from;
    while at < limit {
        let want = buffer.len().min(usize::try_from(limit - at).unwrap_or(usize::MAX));
        match crate::socket::read(stream, &mut buffer[..want]) {
            Ok(0) => return (at, Some(Event::Fin)),
            Ok(n) => {
                if let Err(mismatch) = stream::check(seed, at, &buffer[..n]) {
                    return (at, Some(Event::Wrong(mismatch.to_string())));
                }
                at += n as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return (at, Some(Event::of_error(&error))),
        }
    }
    (at, None)
}

/// Writes bytes `0..n` of stream `seed`.
pub fn write_exactly(stream: &mut TcpStream, seed: u64, n: u64) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut at = 0;
    while at < n {
        let len = buffer.len().min(usize::try_from(n - at).unwrap_or(usize::MAX));
        stream::fill(seed, at, &mut buffer[..len]);
        stream.write_all(&buffer[..len])?;
        at += len as u64;
    }
    Ok(())
}

/// Writes stream `seed` until a write fails and says how.
pub fn write_until_error(stream: &mut TcpStream, seed: u64) -> Event {
    match write_exactly(stream, seed, 1 << 40) {
        Ok(()) => Event::Silence,
        Err(error) => Event::of_error(&error),
    }
}

/// Writes stream `seed` until neither kernel nor relay takes more for half a second; returns how many bytes were taken.
///
/// # Panics
/// When more than `limit` bytes are taken: then nothing presses back.
pub fn write_until_blocked(stream: &mut TcpStream, seed: u64, limit: u64) -> u64 {
    write_for(stream, seed, limit, std::time::Duration::ZERO)
}

/// As [`write_until_blocked`], but goes on trying for as long as `least`.
///
/// # Panics
/// When more than `limit` bytes are taken.
pub fn write_for(stream: &mut TcpStream, seed: u64, limit: u64, least: std::time::Duration) -> u64 {
    let mut taken = 0;
    let mut buffer = vec![0; 64 * 1024];
    stream.set_nonblocking(true).expect("mode of a live socket");
    let begun = std::time::Instant::now();
    let mut idle_since = begun;
    while idle_since.elapsed() < std::time::Duration::from_millis(500) || begun.elapsed() < least {
        stream::fill(seed, taken, &mut buffer);
        match stream.write(&buffer) {
            Ok(n) => {
                taken += n as u64;
                idle_since = std::time::Instant::now();
                assert!(
                    taken <= limit,
                    "{taken} bytes taken although nobody reads; at most {limit} expected"
                );
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            Err(error) => panic!("write to a stopped reader: {error}"),
        }
    }
    stream.set_nonblocking(false).expect("mode of a live socket");
    taken
}

/// Sends FIN.
pub fn finish(stream: &TcpStream) {
    stream.shutdown(Shutdown::Write).expect("shutdown of a live socket");
}
