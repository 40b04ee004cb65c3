//! How a connection's bytes move once its backend is connected.
//!
//! [`State`] is all that a relay knows of a connection besides its sockets. When [`State::quiescent`], a connection
//! can pass from one relay to another between two bytes.

pub mod copy;
#[cfg(target_os = "linux")]
mod lookout;
#[cfg(target_os = "linux")]
pub mod sk_msg;
#[cfg(target_os = "linux")]
pub mod sockmap;
#[cfg(target_os = "linux")]
pub mod splice;
#[cfg(target_os = "linux")]
pub mod trial;

#[cfg(test)]
mod tests;

use crate::metrics::port::End;

/// Relay state of a connection: one [`Half`] per direction.
#[derive(Debug, Default)]
pub struct State {
    /// Client to backend.
    pub up: Half,
    /// Backend to client.
    pub down: Half,
}

/// Relay state of one direction.
#[derive(Debug, Default)]
pub struct Half {
    /// Bytes read from the source.
    pub read: u64,
    /// Bytes that the destination's kernel has taken.
    pub written: u64,
    /// The source has sent FIN, and every byte before it was read.
    pub fin_seen: bool,
    /// FIN was passed on, after the last byte.
    pub fin_sent: bool,
    /// The destination has reset: what is read from now on goes nowhere.
    pub broken: bool,
    /// The meter had no room for the destination; it is asked again in a moment.
    held: bool,
    /// How often the bytes that are read at once were doubled.
    doubled: u8,
    /// What was read is written in the next turn.
    put_off: bool,
    pending: Option<Pending>,
}

/// Bytes that were read and not yet written, in a borrowed buffer.
#[derive(Debug)]
struct Pending {
    buffer: Box<[u8]>,
    start: u32,
    end: u32,
}

impl State {
    /// Whether no byte of the client has gone on to the backend and none has come back,
    /// so that another backend may serve the connection from its first byte.
    pub const fn untouched(&self) -> bool {
        self.up.written == 0 && self.down.read == 0 && !self.up.fin_sent
    }

    /// Prepares an untouched connection for another backend; bytes read from the client and not sent on are kept.
    pub fn restart(&mut self) {
        self.up.broken = false;
        self.down = Half::default();
    }

    /// Whether every byte read was written in both directions.
    pub const fn quiescent(&self) -> bool {
        self.up.pending.is_none() && self.down.pending.is_none()
    }
}

impl Half {
    /// Whether FIN was passed on, or nothing more can be.
    pub const fn over(&self) -> bool {
        self.fin_sent || self.broken
    }
}

/// Whether what ended the connection was a reset or a timeout, which the other side must see as RST.
pub const fn is_abort(end: End) -> bool {
    !matches!(end, End::Closed)
}
