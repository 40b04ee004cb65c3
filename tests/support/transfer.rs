//! Transfers: many connections, each with a stream of random length in both directions at the same time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::backend::GREETING;
use crate::load::{Header, Kind};
use crate::skip::full;
use crate::{socket, stream};

/// Largest stream.
pub const LARGEST: u64 = 64 << 20;
/// Time without progress after which a transfer counts as failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// One connection of a plan.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Seed of the client's stream.
    pub seed: u64,
    /// Bytes from client to backend.
    pub up: u64,
    /// Bytes from backend to client.
    pub down: u64,
    /// Bytes sent at once, before anything is read or the backend is known to be connected.
    pub early: u64,
    /// Whether the client waits for the greeting before it sends the rest.
    pub waits: bool,
}

/// A plan of `n` transfers with sizes log-uniform up to [`LARGEST`], and up to 64 KiB once `budget` bytes are planned.
pub fn plan(seed: u64, n: usize, budget: u64) -> Vec<Transfer> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut planned = 0;
    let mut transfers: Vec<Transfer> = (0..n)
        .map(|index| {
            let largest = if planned < budget { LARGEST } else { 64 << 10 };
            // Both ends of the range are in every plan.
            let mut size = |fixed: Option<u64>| fixed.unwrap_or_else(|| log_uniform(&mut random, largest));
            let (up, down) = match index {
                0 => (size(Some(0)), size(Some(0))),
                1 => (size(Some(LARGEST)), size(None)),
                2 => (size(None), size(Some(LARGEST))),
                _ => (size(None), size(None)),
            };
            planned += up + down;
            let early = log_uniform(&mut random, 1 << 20).min(up);
            Transfer { seed: random.u64(..), up, down, early, waits: random.bool() }
        })
        .collect();
    random.shuffle(&mut transfers);
    transfers
}

/// 0 or a size up to `largest` whose logarithm is uniform.
fn log_uniform(random: &mut fastrand::Rng, largest: u64) -> u64 {
    let exponent = random.f64() * ((largest + 1) as f64).ln();
    (exponent.exp() as u64).saturating_sub(1).min(largest)
}

/// Runs `transfers` with at most `concurrency` at a time; returns what went wrong.
pub async fn run(address: SocketAddr, transfers: &[Transfer], concurrency: usize) -> Vec<String> {
    let permits = Arc::new(Semaphore::new(concurrency));
    let mut under_way = tokio::task::JoinSet::new();
    for &transfer in transfers {
        let permit = Arc::clone(&permits).acquire_owned().await.expect("never closed");
        under_way.spawn(async move {
            let outcome = client(address, transfer).await;
            drop(permit);
            outcome.map_err(|why| format!("{transfer:?}: {why}"))
        });
    }
    let ended = under_way.join_all().await;
    ended.into_iter().filter_map(Result::err).collect()
}

/// The client's side of one transfer, towards a backend that speaks first.
pub async fn client(address: SocketAddr, transfer: Transfer) -> Result<(), String> {
    let Transfer { seed, up, down, early, waits } = transfer;
    let stream = TcpStream::connect(address).await.map_err(|error| format!("connect: {error}"))?;
    stream.set_nodelay(true).map_err(|error| format!("option: {error}"))?;
    if full() {
        socket::small_buffers(&stream);
    }
    let (mut reader, mut writer) = stream.into_split();
    let sending = async {
        let mut first = Header { kind: Kind::Transfer, seed, up, down }.encode().to_vec();
        let header = first.len();
        first.resize(header + usize::try_from(early).expect("64-bit"), 0);
        stream::fill(seed, 0, &mut first[header..]);
        if waits {
            let cut = fastrand::usize(..=first.len());
            writer.write_all(&first[..cut]).await.map_err(|error| format!("early bytes: {error}"))?;
            tokio::task::yield_now().await;
            first.drain(..cut);
        }
        writer.write_all(&first).await.map_err(|error| format!("early bytes: {error}"))?;
        send(&mut writer, seed, early, up).await
    };
    let receiving = async {
        let mut greeting = [0; GREETING.len()];
        let read = timeout(PATIENCE, reader.read_exact(&mut greeting)).await;
        read.map_err(|_| "no greeting".to_owned())?.map_err(|error| format!("greeting: {error}"))?;
        if greeting != *GREETING {
            return Err(format!("greeting {greeting:?}"));
        }
        receive(&mut reader, !seed, down).await
    };
    tokio::try_join!(sending, receiving).map(|_| ())
}

/// Sends `out` bytes of one stream while it receives `back` bytes of another; returns both counts.
pub async fn exchange(
    stream: &mut TcpStream,
    out_seed: u64,
    out: u64,
    back_seed: u64,
    back: u64,
) -> Result<(u64, u64), String> {
    let (mut reader, mut writer) = stream.split();
    tokio::try_join!(send(&mut writer, out_seed, 0, out), receive(&mut reader, back_seed, back))
}

async fn send(
    writer: &mut (impl AsyncWriteExt + Unpin),
    seed: u64,
    from: u64,
    to: u64,
) -> Result<u64, String> {
    let mut buffer = vec![0; 64 * 1024];
    let mut at = from;
    while at < to {
        let len = buffer.len().min(usize::try_from(to - at).expect("64-bit"));
        stream::fill(seed, at, &mut buffer[..len]);
        let written = timeout(PATIENCE, writer.write_all(&buffer[..len])).await;
        written
            .map_err(|_| format!("write stuck at {at}"))?
            .map_err(|error| format!("write at {at}: {error}"))?;
        at += len as u64;
    }
    writer.shutdown().await.map_err(|error| format!("shutdown at {at}: {error}"))?;
    Ok(at)
}

async fn receive(reader: &mut (impl AsyncReadExt + Unpin), seed: u64, expected: u64) -> Result<u64, String> {
    let mut buffer = vec![0; 64 * 1024];
    let mut at = 0;
    loop {
        let read = timeout(PATIENCE, reader.read(&mut buffer)).await;
        let n = read.map_err(|_| format!("read stuck at {at} of {expected}"))?;
        match n.map_err(|error| format!("read at {at} of {expected}: {error}"))? {
            0 if at == expected => return Ok(at),
            0 => return Err(format!("end after {at} of {expected} bytes")),
            n => {
                stream::check(seed, at, &buffer[..n]).map_err(|mismatch| mismatch.to_string())?;
                at += n as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LARGEST, plan};

    #[test]
    fn a_plan_is_reproducible_holds_both_ends_and_keeps_its_budget() {
        let transfers = plan(1, 1000, 1 << 30);
        assert_eq!(format!("{transfers:?}"), format!("{:?}", plan(1, 1000, 1 << 30)));
        assert!(transfers.iter().any(|t| t.up == 0 && t.down == 0));
        assert!(transfers.iter().any(|t| t.up == LARGEST) && transfers.iter().any(|t| t.down == LARGEST));
        let total: u64 = transfers.iter().map(|t| t.up + t.down).sum();
        assert!(total < (1 << 30) + 2 * LARGEST + 1000 * (128 << 10), "{total}");
    }
}
