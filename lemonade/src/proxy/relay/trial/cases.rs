//! The self-tests, each a hazard that relays of this kind have fallen to.

#![cfg(target_os = "linux")]

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::try_join_all;
use lemonade_common::abi::RELAY_UNACKED;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Ends, Relay, Stage};
use crate::metrics::port::End;
use crate::proxy::socket::reset_on_close;

/// Length of the repeated block, a prime: bytes that are lost, doubled or moved by less show as wrong ones.
const BLOCK: usize = 65_521;

/// Bytes of the large transfer in each direction.
const LARGE: usize = 16 << 20;

/// What may be held between a writer and a reader that has stopped: the relay's bound, and small buffers of sockets.
const HELD: usize = RELAY_UNACKED as usize + (2 << 20);

/// Time without progress that counts as pressed back.
const STILL: Duration = Duration::from_millis(50);

/// A self-test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// Bytes that come after the hand-over wake their reader.
    WakeUp,
    /// Bytes that were waiting at the hand-over go on without a further segment.
    EarlyData,
    /// The client closes first, the backend answers behind it.
    ClientClosesFirst,
    /// The backend closes first.
    BackendClosesFirst,
    /// A reset stays a reset, in both directions.
    Reset,
    /// 16 MiB both ways at once.
    Bulk,
    /// A stopped reader presses back, and gets every byte later.
    SlowReader,
    /// FIN right behind megabytes that are not read yet.
    CloseWithBacklog,
    /// 32 connections at once.
    Parallel,
}

impl Case {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 9] = [
        Self::WakeUp,
        Self::EarlyData,
        Self::ClientClosesFirst,
        Self::BackendClosesFirst,
        Self::Reset,
        Self::Bulk,
        Self::SlowReader,
        Self::CloseWithBacklog,
        Self::Parallel,
    ];

    /// Its name for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WakeUp => "wake-up after the hand-over",
            Self::EarlyData => "early data",
            Self::ClientClosesFirst => "client closes first",
            Self::BackendClosesFirst => "backend closes first",
            Self::Reset => "reset stays reset",
            Self::Bulk => "16 MiB both ways",
            Self::SlowReader => "slow reader",
            Self::CloseWithBacklog => "close with a backlog",
            Self::Parallel => "32 streams at once",
        }
    }

    /// Runs it; the error says what a peer saw.
    pub(super) async fn run(self, relay: &Arc<Relay>) -> Result<(), String> {
        match self {
            Self::WakeUp => wake_up(relay).await,
            Self::EarlyData => early_data(relay).await,
            Self::ClientClosesFirst => half_close(relay, true).await,
            Self::BackendClosesFirst => half_close(relay, false).await,
            Self::Reset => {
                reset(relay, true).await?;
                reset(relay, false).await
            }
            Self::Bulk => both_ways(relay, LARGE).await,
            Self::SlowReader => slow_reader(relay).await,
            Self::CloseWithBacklog => backlog(relay).await,
            Self::Parallel => try_join_all((0..32).map(|_| both_ways(relay, 256 << 10))).await.map(drop),
        }
    }
}

async fn wake_up(relay: &Arc<Relay>) -> Result<(), String> {
    let mut stage = Stage::start(relay).await?;
    let mut at = 0;
    for length in [1, 100, 1, 9_000, 3] {
        send(&mut stage.client, at, length).await?;
        receive(&mut stage.backend, at, length).await?;
        send(&mut stage.backend, at, length).await?;
        receive(&mut stage.client, at, length).await?;
        at += length;
    }
    stage.ends(End::Closed).await
}

async fn early_data(relay: &Arc<Relay>) -> Result<(), String> {
    let mut ends = Ends::connect().await.map_err(|error| format!("no canary: {error}"))?;
    send(&mut ends.client, 0, 1_000).await?;
    send(&mut ends.backend, 0, 5_000).await?;
    // Until it is there: the hand-over must find it waiting.
    ends.near_client.peek(&mut [0]).await.map_err(|error| said("the client's side", &error))?;
    ends.near_backend.peek(&mut [0]).await.map_err(|error| said("the backend's side", &error))?;
    let mut stage = ends.carry(relay).map_err(|error| format!("no canary: {error}"))?;
    receive(&mut stage.backend, 0, 1_000).await?;
    receive(&mut stage.client, 0, 5_000).await?;
    stage.ends(End::Closed).await
}

async fn half_close(relay: &Arc<Relay>, client_first: bool) -> Result<(), String> {
    const LENGTH: usize = 300_000;
    let mut stage = Stage::start(relay).await?;
    let (first, second) = if client_first {
        (&mut stage.client, &mut stage.backend)
    } else {
        (&mut stage.backend, &mut stage.client)
    };
    // Armed by now: a FIN before that is left to userspace.
    send(first, 0, 1).await?;
    receive(second, 0, 1).await?;
    let closing = async {
        send(first, 1, LENGTH).await?;
        finish(first).await
    };
    tokio::try_join!(closing, async {
        receive(second, 1, LENGTH).await?;
        at_end(second).await
    })?;
    tokio::try_join!(
        async {
            send(second, 0, LENGTH).await?;
            finish(second).await
        },
        async {
            receive(first, 0, LENGTH).await?;
            at_end(first).await
        }
    )?;
    stage.ends(End::Closed).await
}

async fn reset(relay: &Arc<Relay>, client_resets: bool) -> Result<(), String> {
    let mut stage = Stage::start(relay).await?;
    send(&mut stage.client, 0, 10).await?;
    receive(&mut stage.backend, 0, 10).await?;
    send(&mut stage.backend, 0, 10).await?;
    receive(&mut stage.client, 0, 10).await?;
    let Stage { client, backend, carried } = stage;
    let (resets, mut sees, end) = if client_resets {
        (client, backend, End::ClientReset)
    } else {
        (backend, client, End::BackendReset)
    };
    reset_on_close(&resets);
    drop(resets);
    match sees.read(&mut [0; 8]).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        Err(error) => return Err(format!("instead of a reset came {error}")),
        Ok(0) => return Err("a reset came as an orderly end".to_owned()),
        Ok(count) => return Err(format!("{count} bytes that nobody sent came before a reset")),
    }
    match carried.await {
        Ok(super::Carried::End(seen)) if seen == end => Ok(()),
        other => Err(format!("it ended as {other:?}")),
    }
}

async fn both_ways(relay: &Arc<Relay>, length: usize) -> Result<(), String> {
    let mut stage = Stage::start(relay).await?;
    let Stage { client, backend, .. } = &mut stage;
    let side = async |stream: &mut TcpStream, out: usize, back: usize| {
        let (mut reader, mut writer) = stream.split();
        tokio::try_join!(
            async {
                send(&mut writer, out, length).await?;
                finish(&mut writer).await
            },
            async {
                receive(&mut reader, back, length).await?;
                at_end(&mut reader).await
            }
        )
        .map(drop)
    };
    tokio::try_join!(side(client, 0, 7), side(backend, 7, 0))?;
    stage.ends(End::Closed).await
}

async fn slow_reader(relay: &Arc<Relay>) -> Result<(), String> {
    let ends = Ends::connect().await.map_err(|error| format!("no canary: {error}"))?;
    ends.shrink().map_err(|error| format!("no canary: {error}"))?;
    let mut stage = ends.carry(relay).map_err(|error| format!("no canary: {error}"))?;
    send(&mut stage.backend, 0, 1).await?;
    receive(&mut stage.client, 0, 1).await?;
    let mut sent = 1;
    let block = block();
    loop {
        let at = sent % BLOCK;
        match timeout(STILL, stage.backend.write(&block[at..at + BLOCK])).await {
            Ok(Ok(count)) => sent += count,
            Ok(Err(error)) => return Err(said("the writer", &error)),
            Err(_) => break,
        }
        if sent > HELD {
            return Err(format!("{sent} bytes were taken although nobody reads; at most {HELD} may be"));
        }
    }
    finish(&mut stage.backend).await?;
    receive(&mut stage.client, 1, sent - 1).await?;
    at_end(&mut stage.client).await?;
    stage.ends(End::Closed).await
}

async fn backlog(relay: &Arc<Relay>) -> Result<(), String> {
    const LENGTH: usize = 4 << 20;
    let mut stage = Stage::start(relay).await?;
    let Stage { client, backend, .. } = &mut stage;
    tokio::try_join!(
        async {
            send(backend, 0, LENGTH).await?;
            finish(backend).await
        },
        async {
            let mut at = 0;
            while at < LENGTH {
                // Slower than the writer: what it closes behind is on its way for a while.
                tokio::time::sleep(Duration::from_millis(2)).await;
                let length = (256 << 10).min(LENGTH - at);
                receive(client, at, length).await?;
                at += length;
            }
            at_end(client).await
        }
    )?;
    stage.ends(End::Closed).await
}

/// Pseudo-random bytes, twice, so that a slice may begin anywhere in the first half.
fn block() -> &'static [u8] {
    static BLOCK_TWICE: OnceLock<Vec<u8>> = OnceLock::new();
    BLOCK_TWICE.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        let once: Vec<u8> = (0..BLOCK).map(|_| next()).collect();
        [&*once, &once].concat()
    })
}

/// Sends bytes `at..at + length` of the endless stream.
async fn send(stream: &mut (impl AsyncWrite + Unpin), at: usize, length: usize) -> Result<(), String> {
    let mut sent = 0;
    while sent < length {
        let from = (at + sent) % BLOCK;
        let count = BLOCK.min(length - sent);
        let part = &block()[from..from + count];
        stream.write_all(part).await.map_err(|error| said("a write", &error))?;
        sent += count;
    }
    Ok(())
}

/// Receives bytes `at..at + length` of the endless stream, and compares each.
async fn receive(stream: &mut (impl AsyncRead + Unpin), at: usize, length: usize) -> Result<(), String> {
    let mut buffer = vec![0; BLOCK.min(length)];
    let mut seen = 0;
    while seen < length {
        let count = buffer.len().min(length - seen);
        let count = stream.read(&mut buffer[..count]).await.map_err(|error| said("a read", &error))?;
        if count == 0 {
            return Err(format!("the stream ended after {seen} of {length} bytes"));
        }
        let from = (at + seen) % BLOCK;
        if buffer[..count] != block()[from..from + count] {
            return Err(format!("a wrong byte came after {seen} of {length} bytes"));
        }
        seen += count;
    }
    Ok(())
}

async fn at_end(stream: &mut (impl AsyncRead + Unpin)) -> Result<(), String> {
    match stream.read(&mut [0; 64]).await {
        Ok(0) => Ok(()),
        Ok(count) => Err(format!("{count} bytes came that nobody sent")),
        Err(error) => Err(said("the end", &error)),
    }
}

async fn finish(stream: &mut (impl AsyncWrite + Unpin)) -> Result<(), String> {
    stream.shutdown().await.map_err(|error| said("shutdown", &error))
}

fn said(what: &str, error: &io::Error) -> String {
    format!("{what} met: {error}")
}
