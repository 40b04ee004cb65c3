//! The phases of the process's life, and the signals that move it on.

use std::io;

use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// Phase of the process; it only moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Binding and compiling.
    Starting,
    /// Serving.
    Running,
    /// Still accepting, no longer ready.
    LameDuck,
    /// No longer accepting, waiting for connections.
    Draining,
    /// Resetting what is left.
    Forced,
    /// Gone.
    Stopped,
}

/// The signals that Lemonade listens to.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Takes the signals over from the system's default, which would end the process.
    ///
    /// # Errors
    /// As sigaction(2).
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for SIGTERM or SIGINT.
    pub async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for SIGTERM or SIGINT; each SIGHUP until then asks for a reload.
    pub async fn until_stop(&mut self, reloads: &mpsc::Sender<String>) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => {
                    // A full channel means that a reload is on its way already.
                    let _ = reloads.try_send("SIGHUP".to_owned());
                }
            }
        }
    }
}
