//! One direction of a connection that the kernel carries, as userspace looks after it.

#![cfg(target_os = "linux")]

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::model::relay::RelayCell;
use crate::proxy::adapters::bpf::Sockmap;
use crate::proxy::buffer;
use crate::proxy::flow::Direction;
use crate::proxy::relay::copy::{Broken, Side};
use crate::proxy::socket::{progress, unacknowledged};

/// Copies before other connections get their turn.
const TURNS: u32 = 8;

/// Bytes unacknowledged by the reader at which the kernel may go on.
const CAUGHT_UP: usize = 256 * 1024;

/// First and longest time between two looks at something that the kernel does not tell of.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A wake-up will come when there is more to do.
    Wait,
    /// None will: look again after this time.
    Later(Duration),
}

/// Who moves the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mover {
    /// The program.
    Kernel,
    /// Nobody: what the program has sent on is on its way into the target, and userspace must not overtake it.
    Settling,
    /// Userspace.
    Copy,
}

/// Who moves the bytes after the program was told that it may go on: `written` bytes of those that it had left to
/// userspace were moved, and it had `sent` others on before that. `passed` and `redirected` are those figures now.
const fn mover_after(passed: u64, redirected: u64, written: u64, sent: u64) -> Mover {
    if passed == written {
        Mover::Kernel
    } else if redirected == sent {
        // A segment came before the program was told: it is for userspace, and so are all behind it.
        Mover::Copy
    } else {
        // The program went on and has stopped again already; what it sent on meanwhile must not be overtaken.
        Mover::Settling
    }
}

/// Bytes that were read and not yet written, in a borrowed buffer.
struct Pending {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

/// One direction.
pub(super) struct Leg<'a> {
    pub(super) direction: Direction,
    pub(super) source: &'a TcpStream,
    target: &'a TcpStream,
    /// Of the source.
    pub(super) cookie: u64,
    target_cookie: u64,
    /// What the target had been given when the kernel took over.
    base: u64,
    /// What the source had received then, and userspace had read.
    received: u64,
    mover: Mover,
    armed: bool,
    /// Bytes that the program had sent on when userspace last took over.
    redirected: u64,
    /// Bytes read and written by userspace since.
    read: u64,
    written: u64,
    pending: Option<Pending>,
    blocked: bool,
    /// FIN was passed on.
    pub(super) over: bool,
    /// Bytes told, of all and of those that the kernel moved.
    told: (u64, u64),
    pause: Duration,
    /// Whether readable and writable are asked for at the source's socket.
    pub(super) asked: (bool, bool),
}

impl<'a> Leg<'a> {
    pub(super) fn new(
        direction: Direction,
        source: &'a TcpStream,
        target: &'a TcpStream,
        cookie: u64,
        target_cookie: u64,
        base: u64,
        received: u64,
    ) -> Self {
        Self {
            direction,
            source,
            target,
            cookie,
            target_cookie,
            base,
            received,
            mover: Mover::Kernel,
            armed: true,
            redirected: 0,
            read: 0,
            written: 0,
            pending: None,
            blocked: false,
            over: false,
            told: (0, 0),
            pause: PAUSE.0,
            asked: (false, false),
        }
    }

    /// The kernel does not see what the source receives: userspace moves it to the end.
    pub(super) fn unarmed(&mut self) {
        self.armed = false;
        self.mover = Mover::Copy;
    }

    pub(super) fn wants_readable(&self) -> bool {
        self.mover == Mover::Copy && self.pending.is_none() && !self.over
    }

    /// Whether the target's becoming writable is waited for.
    pub(super) fn wants_writable(&self) -> bool {
        !self.over && (self.mover == Mover::Settling || self.blocked)
    }

    /// Does what can be done now. `closed` says that the source has sent FIN or is in error.
    pub(super) fn step(
        &mut self,
        maps: &Sockmap,
        size: usize,
        closed: bool,
        cell: &RelayCell,
    ) -> Result<Step, Broken> {
        if self.over {
            return Ok(Step::Wait);
        }
        let Some(mut flow) = maps.flow(self.cookie) else { return Err(self.gone()) };
        if flow.lost > 0 {
            tracing::error!(
                bytes = flow.lost,
                "relay sockmap: bytes met a socket that was gone; the connection is reset"
            );
            return Err(self.gone());
        }
        if self.mover == Mover::Kernel && flow.held != 0 && flow.passed != self.written {
            self.mover = Mover::Settling;
            self.pause = PAUSE.0;
            cell.demoted.fetch_add(1, Ordering::Relaxed);
            // A map is not read at one stroke: only now is it sure that nothing more is sent on.
            let Some(held) = maps.flow(self.cookie) else { return Err(self.gone()) };
            flow = held;
        }
        if self.mover == Mover::Settling {
            if self.given() < flow.redirected + self.written {
                return Ok(self.later());
            }
            self.mover = Mover::Copy;
            self.redirected = flow.redirected;
            self.pause = PAUSE.0;
        }
        if self.mover == Mover::Copy {
            return self.copy(maps, size, cell);
        }
        if !closed {
            return Ok(Step::Wait);
        }
        // FIN may be told before the program has seen the last segment, and that may not be in the target yet.
        let total = flow.redirected + flow.passed;
        let received = progress(self.source).map_err(|error| Broken::new(self.from(), &error))?.received;
        // FIN counts as a byte received.
        let seen = received.saturating_sub(self.received) <= total + 1;
        if !seen || self.given() != total {
            return Ok(self.later());
        }
        self.finish();
        Ok(Step::Wait)
    }

    /// Moves bytes until one side would block.
    fn copy(&mut self, maps: &Sockmap, size: usize, cell: &RelayCell) -> Result<Step, Broken> {
        for _ in 0..TURNS {
            if !self.flush()? {
                return Ok(Step::Wait);
            }
            let mut scratch = buffer::take(size);
            let read = (&mut self.source).read(&mut scratch);
            if let Ok(count @ 1..) = read {
                self.read += count as u64;
                self.pause = PAUSE.0;
                self.pending = Some(Pending { buffer: scratch, start: 0, end: count });
                continue;
            }
            buffer::put(scratch);
            match read {
                Ok(_) => {
                    let flow = maps.flow(self.cookie).unwrap_or_default();
                    // Bytes that the program left to userspace may still be on their way to where they are read.
                    if self.armed && self.read < flow.passed {
                        return Ok(self.later());
                    }
                    self.finish();
                    return Ok(Step::Wait);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return if self.armed { self.give_back(maps, cell) } else { Ok(Step::Wait) };
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Broken::new(self.from(), &error)),
            }
        }
        Ok(Step::Later(Duration::ZERO))
    }

    /// Writes what was read; whether all of it is written.
    fn flush(&mut self) -> Result<bool, Broken> {
        while let Some(pending) = &mut self.pending {
            match (&mut self.target).write(&pending.buffer[pending.start..pending.end]) {
                Ok(count) => {
                    pending.start += count;
                    self.written += count as u64;
                    if pending.start == pending.end {
                        self.release();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = true;
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Broken::new(self.to(), &error)),
            }
        }
        self.blocked = false;
        Ok(true)
    }

    /// Lets the kernel go on when its reader has caught up and nothing is left in userspace.
    fn give_back(&mut self, maps: &Sockmap, cell: &RelayCell) -> Result<Step, Broken> {
        if unacknowledged(self.target) > CAUGHT_UP {
            return Ok(self.later());
        }
        // The callbacks may have missed the last acknowledgements.
        let acknowledged =
            progress(self.target).map_err(|error| Broken::new(self.to(), &error))?.acknowledged;
        let told = maps.acknowledged(self.target_cookie, acknowledged).is_ok()
            && maps.moved(self.cookie, self.written).is_ok();
        // Read twice, since a map is not read at one stroke: once the program has left more to userspace than it was told of,
        // it sends nothing on until it is told again.
        let (Some(first), Some(now)) = (maps.flow(self.cookie), maps.flow(self.cookie)) else {
            return Err(self.gone());
        };
        let passed = if told { first.passed } else { u64::MAX };
        self.mover = mover_after(passed, now.redirected, self.written, self.redirected);
        if self.mover == Mover::Kernel {
            self.pause = PAUSE.0;
            cell.resumed.fetch_add(1, Ordering::Relaxed);
            return Ok(Step::Later(Duration::ZERO));
        }
        Ok(self.later())
    }

    /// Passes FIN on; every byte before it is in the target.
    fn finish(&mut self) {
        // Fails only when the target is gone, which shows as its error.
        let _ = self.target.shutdown(Shutdown::Write);
        self.over = true;
    }

    /// Whether all that left the source in the kernel is in the target, as far as can be seen.
    pub(super) fn settled(&self, maps: &Sockmap) -> bool {
        maps.flow(self.cookie).is_none_or(|flow| self.given() >= flow.redirected + self.written)
    }

    /// Bytes moved since the last call: all of them, and those that the kernel moved.
    pub(super) fn count(&mut self, maps: &Sockmap) -> (u64, u64) {
        let Some(flow) = maps.flow(self.cookie) else { return (0, 0) };
        let sent = flow.redirected + self.written;
        // What a reset kept from its reader does not count; a FIN of ours would count as a byte.
        let total = if self.over { sent } else { sent.min(self.given()) };
        let since = (total.saturating_sub(self.told.0), flow.redirected.saturating_sub(self.told.1));
        self.told = (self.told.0 + since.0, self.told.1 + since.1);
        since
    }

    /// Bytes in the target since the kernel took over, acknowledged or waiting to be sent.
    fn given(&self) -> u64 {
        progress(self.target).map_or(0, |now| now.written.saturating_sub(self.base))
    }

    fn later(&mut self) -> Step {
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE.1);
        Step::Later(pause)
    }

    fn release(&mut self) {
        if let Some(pending) = self.pending.take() {
            buffer::put(pending.buffer);
        }
    }

    const fn from(&self) -> Side {
        match self.direction {
            Direction::Up => Side::Client,
            Direction::Down => Side::Backend,
        }
    }

    const fn to(&self) -> Side {
        match self.direction {
            Direction::Up => Side::Backend,
            Direction::Down => Side::Client,
        }
    }

    /// What the kernel says of a connection that it no longer knows is lost.
    fn gone(&self) -> Broken {
        Broken::new(self.to(), &io::ErrorKind::ConnectionReset.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_sent_on_while_it_was_told_is_not_overtaken() {
        const WRITTEN: u64 = 5_000;
        const SENT: u64 = 70_000;
        let after = |passed, redirected| mover_after(passed, redirected, WRITTEN, SENT);
        assert_eq!(after(WRITTEN, SENT), Mover::Kernel, "it goes on with the next segment");
        assert_eq!(after(WRITTEN, SENT + 900), Mover::Kernel, "it has gone on");
        assert_eq!(after(WRITTEN + 100, SENT), Mover::Copy, "a segment came before it was told");
        assert_eq!(
            after(WRITTEN + 100, SENT + 900),
            Mover::Settling,
            "it went on, and the reader was slow again"
        );
    }
}
